"""What was compared and what came out, in sentences that stay true whatever the numbers are."""

from collections.abc import Sequence
from typing import Any

from galvanic.report import words
from galvanic.report.run import Row, is_number
from galvanic.report.study import Study
from galvanic.report.study_conditions import Condition
from galvanic.report.study_dots import judged
from galvanic.report.study_words import UNTRIED, verdict

NAMED = 6  # arms in one sentence


def compared(study: Study) -> str:
    """The arms, data, network, hardware and budget."""
    config, seeds, chips = study.config, len(study.config.get("seeds", [])), len(study.config.get("chips", []))
    parts = [
        f"{_many(len(study.arms), 'way')} to train a network",
        f" ({config['parameters']:,} parameters)" if is_number(config.get("parameters")) else "",
        f" on “{words.value(config.get('data', '?'))}”",
        f" ({_number(config.get('n_train'))} images to train on, {_number(config.get('n_test'))} others to test on)",
        f", {_many(config['epochs'], 'epoch')} each" if is_number(config.get("epochs")) else "",
        f". Each is trained {_times(seeds)}, and every trained network is put on the same {_many(chips, 'unseen chip')}",
        f" of simulated hardware “{words.value(config.get('profile', {}).get('name', '?'))}”.",
    ]
    return "".join(parts)


def outcomes(study: Study) -> list[str]:
    """Which arms are better or worse than the baseline, on the hardware as it is and at twice its noise."""
    return [_outcome(study, c, first=not place) for place, c in enumerate(judged(study))]


def caution(study: Study) -> str:
    """What the intervals and verdicts can and cannot say."""
    comparisons = study.said("comparison")
    seeds = [row["seeds"] for row in (comparisons or study.said("interval")) if is_number(row.get("seeds"))]
    if not seeds:
        return ""
    if max(seeds) < 2:
        return "One training of each arm gives no interval and no test: differences are shown, but nothing is judged."
    said = "Two trainings of each arm: intervals are wide, and only a very regular difference can be shown. " if max(seeds) == 2 else ""
    family = f"the p values of all {len(comparisons)} comparisons of the study are corrected together (Holm, α = 0.05)"
    return f"{said}A difference is claimed only where a test over trainings and chips shows it; {family}." if comparisons else said.strip()


def _outcome(study: Study, condition: Condition, *, first: bool) -> str:
    rows = [row for row in study.said("comparison") if row["condition"] == condition.name]
    where = "On the hardware as it is" if condition.nominal else f"At {condition.words}"
    base = study.accuracy(study.baseline, condition)
    level = f" ({words.percent(base['mean'])})" if base else ""
    whom = f"the baseline “{study.baseline}”{level}" if first else f"“{study.baseline}”{level}"
    groups = {kind: [row for row in rows if verdict(row) == kind] for kind in ("better", "worse", "no difference shown", UNTRIED)}
    parts = [f"{_named(groups[kind])} {_is(groups[kind])} {kind} than {whom}" for kind in ("better", "worse") if groups[kind]]
    same, untried = groups["no difference shown"], groups[UNTRIED]
    if untried:
        parts.append(f"{_differences(untried)} from {whom}, of which one training can judge nothing")
    if same and not parts:
        return f"{where}, no difference to {whom} was shown for {'any' if len(same) > 1 else 'the'} other arm."
    if same:
        parts.append(f"for {_plainly(same)} no difference was shown")
    return f"{where}, {'; '.join(parts)}."


def _named(rows: Sequence[Row]) -> str:
    shown = sorted(rows, key=lambda row: -abs(row["difference"]))
    names = [f"“{row['arm']}” ({words.points(row['difference'])})" for row in shown]
    return words.joined(names if len(names) <= NAMED + 1 else [*names[:NAMED], f"{len(names) - NAMED} others"])


def _differences(rows: Sequence[Row]) -> str:
    return f"{_named(rows)} {'differ' if len(rows) > 1 else 'differs'} by so many points"


def _plainly(rows: Sequence[Row]) -> str:
    names = [f"“{row['arm']}”" for row in rows]
    return words.joined(names) if len(names) <= NAMED else f"the {len(names)} others"


def _is(rows: Sequence[Row]) -> str:
    return "are" if len(rows) > 1 else "is"


def _number(value: Any) -> str:
    return f"{value:,}" if is_number(value) else "?"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
