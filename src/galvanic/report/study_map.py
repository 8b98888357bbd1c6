"""Which effect of which layer hurts: a map of the accuracy that is lost when it is there alone."""

from collections.abc import Mapping, Sequence
from functools import partial

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from galvanic.report import words
from galvanic.report.run import is_number
from galvanic.report.study import Study
from galvanic.report.summary import average, by
from galvanic.report.svg import panel, short

ALL = "all"
Drops = Mapping[tuple[str, str, str], float]
"""What is lost, by layer, side and effect; mean over chips."""


def drops(study: Study) -> dict[str, Drops]:
    """What every mapped arm loses."""
    groups = by(study.of("sensitivity"), "arm", "layer", "side", "effect")
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for (arm, *where), rows in groups.items():
        lost = average(rows, "drop")
        if lost is not None:
            found.setdefault(arm, {})[where[0], where[1], where[2]] = lost
    return dict(found)


def figures(study: Study) -> list[Markup]:
    """A map an arm: layers down, effects across, one scale of colours."""
    found = drops(study)
    most = max((lost for each in found.values() for lost in each.values()), default=0.0)
    return [
        panel(
            partial(_map, arm=arm, lost=lost, most=most or 1.0),
            size=_size(lost),
            describe=f"Accuracy lost by effect and layer, {arm}",
        )
        for arm, lost in found.items()
    ]


def _size(lost: Drops) -> tuple[float, float]:
    """Inches that leave each square its place beside the longest names."""
    layers, effects = _layers(lost), _effects(lost)
    beside = max(len(short(layer)) for layer in ("all layers", *layers))
    above = max(len(_above(*effect)) for effect in effects)
    return 0.4 + 0.085 * beside + 0.5 * len(effects), 0.6 + 0.085 * above + 0.26 * len(layers)


def _above(side: str, effect: str) -> str:
    return short(name(side, effect), 26)


def _map(axes: Axes, arm: str, lost: Drops, most: float) -> None:
    layers, effects = _layers(lost), _effects(lost)
    for (layer, side, effect), value in lost.items():
        x, y = effects.index((side, effect)), layers.index(layer)
        depth = (max(0.0, value) / most) ** 0.5  # the root: a single layer beside all of them
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colormaps["Oranges"](0.85 * depth), edgecolor="none"))
        text = f"{100 * value:.1f}".replace("-", "−")
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color="white" if depth > 0.75 else "#1d1d1f")
    axes.set_title(short(arm))
    axes.set_xlim(-0.55, len(effects) - 0.45)
    axes.set_ylim(len(layers) - 0.45, -0.55)
    axes.set_xticks(range(len(effects)), [_above(*effect) for effect in effects], rotation=90)
    axes.set_yticks(range(len(layers)), ["all layers" if layer == ALL else short(layer) for layer in layers])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def name(side: str, effect: str) -> str:
    """An effect and where it acts.

    >>> name("weight", "Gaussian"), name("all", "all")
    ('weight: Gaussian', 'all effects')
    """
    return "all effects" if effect == ALL else f"{side}: {effect}"


def worst(study: Study) -> list[str]:
    """A sentence an arm: the effect and layer that cost most alone, the effect that costs most in all layers, and all together."""
    return [f"“{arm}”: {'; '.join(parts)}." for arm, lost in drops(study).items() if (parts := _parts(study, lost))]


def _parts(study: Study, lost: Drops) -> list[str]:
    single = {key: value for key, value in lost.items() if ALL not in (key[0], key[2])}
    everywhere = {key: value for key, value in lost.items() if key[0] == ALL and key[2] != ALL}
    images = study.config.get("n_test", 0)
    example = 1 / images if is_number(images) and images > 0 else 0.0
    parts = []
    if single:
        layer, side, effect = max(single, key=lambda key: single[key])
        cost = single[layer, side, effect]
        one = f"the worst single spot is “{name(side, effect)}” in layer “{layer}”, which alone costs {_cost(cost)}"
        parts.append(one if cost > 0.999 * example else "no effect in any single layer costs as much as one test image")
    if everywhere:
        _, side, effect = max(everywhere, key=lambda key: everywhere[key])
        parts.append(f"in all layers at once “{name(side, effect)}” costs most, {_cost(everywhere[ALL, side, effect])}")
    if (ALL, ALL, ALL) in lost:
        parts.append(f"everything together costs {_cost(lost[ALL, ALL, ALL])}")
    return parts


def _cost(lost: float) -> str:
    return f"{words.points(lost).removeprefix('+')} points"


def _layers(lost: Drops) -> list[str]:
    return _all_last([layer for layer, _, _ in lost])


def _effects(lost: Drops) -> list[tuple[str, str]]:
    found = list(dict.fromkeys((side, effect) for _, side, effect in lost))
    sides = ("input", "input_coding", "encoding", "weight", "product", "output")
    return sorted(found, key=lambda each: (each[1] == ALL, sides.index(each[0]) if each[0] in sides else len(sides)))


def _all_last(names: Sequence[str]) -> list[str]:
    return sorted(dict.fromkeys(names), key=lambda each: each == ALL)
