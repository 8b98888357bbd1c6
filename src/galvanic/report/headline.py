"""What came out, in sentences that stay true whatever the numbers are."""

from galvanic.report import words
from galvanic.report.conditions import Point, comparisons, floating_point, rows_at, subject
from galvanic.report.run import Run
from galvanic.report.summary import SEEDS_FOR_INTERVAL, compensations, spread

NOUNS = {"digits": ("reads", "digits"), "mnist": ("reads", "digits")}


def sentences(run: Run) -> list[str]:
    """What came out: in floating point, on the chip as it is, on the chip when trained for it, with compensation."""
    point = Point.of(run)
    found = [_in_floating_point(run)]
    if point:
        chip = str(run.config.get("profile", {}).get("name", "analog"))
        found += [_as_it_is(run, point, chip), _trained(run, point, chip)]
        found += [_compensated(run, point.age_s, name) for name in compensations(run.of("age")) if name != point.compensation]
    return [sentence for sentence in found if sentence]


def caution(run: Run) -> str:
    """What the intervals behind the comparisons can and cannot say."""
    point = Point.of(run)
    ways = compensations(run.of("age"))
    shared = {each.seeds for name in ways for each in (comparisons(run, point.age_s, name) if point else [])}
    few, many = [n for n in shared if n < SEEDS_FOR_INTERVAL], [n for n in shared if n >= SEEDS_FOR_INTERVAL]
    said = []
    if few:
        number = "One training per recipe gives" if max(few) == 1 else "Two trainings per recipe give"
        said.append(f"{number} no interval over trainings: what is said holds for the networks trained here, over chips.")
        said.append("A difference is claimed only where in every training its 95 % interval over chips excludes zero.")
    if many:
        also = "With three or more trainings, a" if few else "A"
        said.append(f"{also} difference is claimed only where its 95 % interval over the trainings excludes zero.")
    return " ".join([*said, "Each comparison stands alone; none is corrected for there being several."]) if said else ""


def _in_floating_point(run: Run) -> str | None:
    found = floating_point(run)
    if not found:
        return None
    name, accuracy = found
    verb, noun = NOUNS.get(str(run.config.get("data")), ("classifies", "examples"))
    whose = "" if name == "digital" else f" ({words.training(name)})"
    return (
        f"In floating point, without any analog hardware, the network{whose} {verb} {words.percent(accuracy.mean)} "
        f"of the {words.count(accuracy.n_test)} test {noun} correctly."
    )


def _as_it_is(run: Run, point: Point, chip: str) -> str | None:
    rows = rows_at(run, point.age_s, point.compensation, "digital")
    if not rows:
        return None
    where = f"{words.after(point.age_s)} and {words.compensated(point.compensation)}"
    compensated = [
        f"{words.percent(spread(those).mean)} {words.compensated(name)}"
        for name in compensations(run.of("age"))
        if name != point.compensation and (those := rows_at(run, point.age_s, name, "digital"))
    ]
    also = f" ({words.joined(compensated)})" if compensated else ""
    return f"Put as it is on a simulated {chip} chip, {where}, it gets {words.percent(spread(rows).mean)} right{also}."


def _trained(run: Run, point: Point, chip: str) -> str | None:
    name = subject(run)
    rows = rows_at(run, point.age_s, point.compensation, name) if name else []
    if not name or not rows:
        return None
    who = "Trained for that hardware" if name == "noise" else f"Trained by recipe “{name}”"
    said = bool(rows_at(run, point.age_s, point.compensation, "digital"))
    where = "" if said else f", on a simulated {chip} chip, {words.after(point.age_s)} and {words.compensated(point.compensation)}"
    return f"{who}{where}, it gets {words.percent(spread(rows).mean)} right{_verdicts(run, name, point.age_s, point.compensation, ': ')}."


def _compensated(run: Run, age_s: float, compensation: str) -> str | None:
    measured = {name: rows for name in run.recipes if (rows := rows_at(run, age_s, compensation, name))}
    if not measured:
        return None
    parts = [f"{words.training(name)} {words.percent(spread(rows).mean)}" for name, rows in measured.items()]
    trained = subject(run)
    verdicts = _verdicts(run, trained, age_s, compensation, f". {words.capital(words.training(trained))}: ") if trained else ""
    return f"With {words.compensation(compensation)} at that age: {words.joined(parts)}{verdicts}."


def _verdicts(run: Run, name: str, age_s: float, compensation: str, before: str) -> str:
    found = [each.phrase for each in comparisons(run, age_s, compensation) if each.subject == name]
    return before + "; ".join(found) if found else ""
