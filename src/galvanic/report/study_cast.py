"""Who plays which part: with many arms a figure names a few, and leaves the others in grey."""

from collections.abc import Mapping
from dataclasses import dataclass

from galvanic.report.lines import MARKERS
from galvanic.report.study import Study
from galvanic.report.study_conditions import nominal
from galvanic.report.svg import COLORS, OTHERS

NAMED = 7
NOTED = ("digital", "ours", "ours-revised")
GREY = "#b4b3ae"


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The arms of a study, by what the figures make of them.

    Args:
        leading: with a colour, a marker and a label.
        others: in grey.
        colors: of every arm.
        markers: of those that lead.
        parts: what an arm is, where it is something.
    """

    leading: tuple[str, ...]
    others: tuple[str, ...]
    colors: Mapping[str, str]
    markers: Mapping[str, str]
    parts: Mapping[str, str]


def cast(study: Study) -> Cast:
    """All arms lead where they are few; of many: the digital one, the baseline, ours, and whoever keeps most."""
    best, how = _best(study)
    parts = {study.baseline: "the baseline", "digital": "trained without hardware"}
    parts |= {best: "; ".join([*([parts[best]] if best in parts else []), how])} if best else {}
    few = len(study.arms) <= NAMED
    leading = tuple(arm for arm in study.arms if few or arm in (*NOTED, study.baseline, best))
    fixed = {study.baseline: COLORS["ptq"], "digital": COLORS["digital"], "ours": COLORS["noise"]}
    rest = [arm for arm in leading if arm not in fixed]
    colors = {arm: fixed[arm] if arm in fixed else OTHERS[rest.index(arm) % len(OTHERS)] for arm in leading}
    return Cast(
        leading=leading,
        others=tuple(arm for arm in study.arms if arm not in leading),
        colors={arm: colors.get(arm, GREY) for arm in study.arms},
        markers={arm: MARKERS[place % len(MARKERS)] for place, arm in enumerate(leading)},
        parts=parts,
    )


def _best(study: Study) -> tuple[str | None, str]:
    """The arm of the largest relative area, or, where nobody has one, of the largest accuracy on the hardware as it is."""
    areas = {row["arm"]: row["mean"] for row in study.said("rauc")}
    first = nominal(study.conditions)
    found = areas or {arm: row["mean"] for arm in study.arms if first and (row := study.accuracy(arm, first))}
    how = "largest relative area" if areas else f"highest accuracy at {first.words}" if first else ""
    return (max(found, key=lambda arm: found[arm]), how) if len(found) > 1 else (None, "")
