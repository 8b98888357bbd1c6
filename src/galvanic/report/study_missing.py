"""What a study should hold and does not yet."""

from galvanic.report import words
from galvanic.report.study import Study


def missing(study: Study) -> list[str]:
    """One sentence for each thing that is missing; empty for a complete study."""
    notes = [*_untold(study), *(note for arm in study.arms if (note := _short(study, arm)))]
    mapped = {row["arm"] for row in study.of("sensitivity")}
    notes += [f"Arm “{arm}” has no map of its sensitivity yet." for arm in study.config.get("maps", []) if arm not in mapped]
    if not study.environment:
        notes.append("environment.json is missing: the study was cut short.")
    return notes


def _untold(study: Study) -> list[str]:
    if not study.said("interval"):
        return ["No arm is complete yet, so there are no statistics."]
    if study.baseline and not any(row["arm"] == study.baseline for row in study.said("interval")):
        return [f"The baseline “{study.baseline}” is not complete: there are no verdicts."]
    return []


def _short(study: Study, arm: str) -> str | None:
    """What an arm lacks of its trainings x chips x conditions."""
    config = study.config
    seeds, chips, conditions = (len(config.get(key, [])) for key in ("seeds", "chips", "conditions"))
    there = {(str(row["seed"]), str(row["chip"]), row["condition"]) for row in study.of("chip") if row["arm"] == arm}
    if len(there) >= seeds * chips * conditions:
        return None
    if not there:
        trained = len({str(row["seed"]) for row in study.of("training") if row["arm"] == arm})
        return f"Arm “{arm}” has not been measured on any chip" + (f" ({trained} of {seeds} trainings have begun)." if trained else ".")
    planned, pairs = seeds * chips, len({key[:2] for key in there})
    left = "" if any(row["arm"] == arm for row in study.said("interval")) else "; it has no part in the statistics until it is complete"
    names = {name for _, _, name in there}
    lacking = [c.words for c in study.conditions if c.name not in names]
    where = f" (nothing yet: {words.joined(lacking[:5])})" if lacking and pairs == planned else ""
    counts = f"{len(there):,} of {planned * conditions:,} times, on {pairs} of {planned} pairs of training and chip"
    return f"Arm “{arm}” was measured {counts}{where}{left}."
