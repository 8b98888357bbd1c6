"""Make docs/studies.md of the studies in results/.

python docs/studies.py
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "studies.md"
Row = dict[str, Any]
SIGNS = {"better": "+", "worse": "−", "no difference shown": "·"}

HEAD = """\
# Studies

What came out when the recipes were compared, whichever sign it has. Everything here comes from the rows under `results/`, each with the
command that made them; `python docs/studies.py` makes this page of them. *tier Command*: two processes, under two hours.

Every arm of a study has the same images, the same order of them, the same network, optimiser and number of steps, and every trained network
is put on the same chips, none of which took part in training. Numbers are accuracies in %, means over trainings and chips; [ ] is the 95 %
interval for trainings and chips that were not tried. + and − say better or worse than the baseline (marked *), paired by training and
chip, after Holm's correction over all arms and conditions of the study; · says that no difference was shown. The recipes were tuned with
other seeds and chips, on images of the same Fashion-MNIST test set.

How we read it:

- **Clipping hard is most of it.** Without its clip at 1.25 standard deviations the full recipe falls far behind, and `tuned` is `snt-ramp`
  with that clip. Weights of equal size use the whole range of every cell, and all noise is in units of that range.
- **The full recipe (`ours`) is not shown to be better than the tuned baseline**, on any data, at any level; no part of it but the clip is
  shown to be worth its place. Distillation from a network that has trained for 15 % of the steps teaches little, and the gates halve both
  branches. The revised recipe (alignment, divergence, adaptive sharpness-aware steps) gains under noise of two to four times the nominal;
  after correction that is shown at four times on CIFAR-10 only. It pays two gradients a step, which the protocol does not charge.
- **Variance-aware training** trades some accuracy at the nominal level for some beyond it, by a few points; it does not show the large gap
  that was published, in networks and data of this size.
- **New statistics of batch normalisation** give networks that were not trained for noise seven to twenty points under noise of the chip,
  and, other than expected, up to eight under reads at four times their noise: noise that is new every time shifts statistics, too. A
  network trained for the noise gains little from them.
- **A learned noise level switches itself off** under plain cross-entropy, on weights entirely; tied to the measured one it stays. Accuracy
  on chips does not show which was the case, since the chip's own noise is there in training.
- **The first layers and the output converters** hurt an ordinary network most; training for the chip takes both away.
- Networks and subsets are small, and budgets short: five trainings of a few epochs. Differences below two points are not resolved.
"""


def read(folder: Path) -> tuple[Row, list[Row], list[Row]]:
    """Configuration, summary, and the rows of maps and last epochs of a study."""
    config = json.loads((folder / "config.json").read_text())
    summary = [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    last = max(row["epoch"] for row in rows if row["kind"] == "training")
    wanted = [row for row in rows if row["kind"] in ("sensitivity", "sharpness") or (row["kind"] == "training" and row["epoch"] == last)]
    return config, summary, wanted


def page(folders: list[Path]) -> str:
    """The page."""
    parts = [HEAD]
    for folder in folders:
        config, summary, maps = read(folder)
        parts += [part for part in _study(config, summary, maps) if part]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _study(config: Row, summary: list[Row], maps: list[Row]) -> Iterator[str]:
    yield f"## {config['study']}: {config['summary']}"
    data = f"{config['data']}, {config['data_note']}" if config["data_note"] else config["data"]
    yield (
        f"{data}; {config['n_train']:,} training and {config['n_test']:,} test images. A residual network of "
        f"{config['parameters']:,} parameters, {config['epochs']} epochs; profile `{config['profile']['name']}`; {len(config['seeds'])} "
        f"trainings x {len(config['chips'])} unseen chips. Command: `{config['command']}`"
    )
    yield _accuracies(config, summary)
    yield _differences(config, summary)
    yield _learned(maps)
    yield _recalibration(config, summary)
    yield _maps(config, maps)


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def _interval(row: Row) -> str:
    mean = f"{100 * row['mean']:.1f}"
    return mean if row["low"] is None else f"{mean} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _accuracies(config: Row, summary: list[Row]) -> str:
    means = {(r["arm"], r["condition"]): r for r in summary if r["kind"] == "interval" and r["metric"] == "accuracy"}
    verdicts = {(r["arm"], r["condition"]): r["verdict"] for r in summary if r["kind"] == "comparison"}
    digital = {r["arm"]: r for r in summary if r["kind"] == "digital"}
    kept = {r["arm"]: r for r in summary if r["kind"] == "retention" and r["condition"] == "level 1"}
    areas = {r["arm"]: r for r in summary if r["kind"] == "rauc"}
    conditions = [c for c in config["conditions"] if any((arm, c) in means for arm in config["arms"])]
    lines = []
    for arm in config["arms"]:
        cells = [f"{arm}{' *' if arm == config['baseline'] else ''}", _interval(digital[arm]) if arm in digital else "as digital"]
        for c in conditions:
            sign = SIGNS.get(verdicts.get((arm, c), ""), "")
            cells.append(f"{_interval(means[arm, c])} {sign}".rstrip() if (arm, c) in means else "")
        cells += [f"{100 * by[arm]['mean']:.1f}" if arm in by else "" for by in (kept, areas)]
        lines.append(cells)
    return _table(["", "no hardware", *conditions, "retention", "relative area"], lines)


def _differences(config: Row, summary: list[Row]) -> str:
    found = {(r["arm"], r["condition"]): r for r in summary if r["kind"] == "comparison"}
    conditions = [c for c in ("level 1", "level 2", "level 4", "fluctuating 1") if c in config["conditions"]]
    lines = []
    for arm in config["arms"]:
        if arm != config["baseline"]:
            lines.append([arm, *(_difference(found[arm, c]) if (arm, c) in found else "" for c in conditions)])
    return f"Difference to `{config['baseline']}` in points, with its interval (not widened by the correction):\n\n" + _table(
        ["", *conditions], lines
    )


def _difference(row: Row) -> str:
    mean = f"{100 * row['difference']:+.1f}"
    return mean if row["low"] is None else f"{mean} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _learned(rows: list[Row]) -> str:
    """Learned sizes of noise at the end of training."""
    lines: dict[str, list[str]] = {}
    for key, start in (("learned_noise", 1.0), ("noise_coefficient", 0.25)):
        values: dict[str, list[float]] = {}
        for row in rows:
            if key in row:
                values.setdefault(row["arm"], []).append(abs(row[key]) / start)
        for arm, each in values.items():
            lines[arm] = [arm, f"{sum(each) / len(each):.2f}", f"{min(each):.2f}", f"{max(each):.2f}"]
    if not lines:
        return ""
    return "Learned size of the noise after training, over that at its start:\n\n" + _table(
        ["", "mean", "least", "most"], list(lines.values())
    )


def _recalibration(config: Row, summary: list[Row]) -> str:
    gains = {(r["arm"], r["condition"]): r for r in summary if r["kind"] == "recalibration"}
    if not gains:
        return ""
    conditions = list(dict.fromkeys(c for _, c in gains))
    lines = [[arm, *(_difference(gains[arm, c]) if (arm, c) in gains else "" for c in conditions)] for arm in config["arms"]]
    return "What new statistics of batch normalisation give, in points:\n\n" + _table(["", *conditions], lines)


def _maps(config: Row, maps: list[Row]) -> str:
    parts = []
    for arm in dict.fromkeys(row["arm"] for row in maps):
        drops: dict[tuple[str, str], list[float]] = {}
        for row in maps:
            if row["kind"] == "sensitivity" and row["arm"] == arm:
                effect = row["effect"] if row["side"] == "all" else f"{row['side']} {row['effect']}"
                drops.setdefault((row["layer"], effect), []).append(100 * row["drop"])
        layers, effects = (list(dict.fromkeys(key[k] for key in drops)) for k in (0, 1))
        lines = [[layer, *(f"{sum(d) / len(d):.1f}" if (d := drops.get((layer, e))) else "" for e in effects)] for layer in layers]
        sharp = next((row["eigenvalue"] for row in maps if row["kind"] == "sharpness" and row["arm"] == arm), None)
        more = "" if sharp is None else f" The largest eigenvalue of its Hessian is {sharp:.3g}."
        parts.append(
            f"Points lost by each effect alone in each layer, `{arm}`, seed {config['seeds'][0]}.{more}\n\n{_table(['', *effects], lines)}"
        )
    return "\n\n".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE)
    folders = sorted(path.parent for path in (ROOT / "results").glob("study-*/summary.jsonl"))
    parser.parse_args().out.write_text(page(folders))


if __name__ == "__main__":
    main()
