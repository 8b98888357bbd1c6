"""Conditions as a study recorded them: what each is in words, and which of them differ in one thing alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from reprlib import repr as short
from typing import Any

from galvanic.report import words
from galvanic.report.run import is_number

FACTS = ("level", "theta", "bits", "age_s", "temperature_K")
NOISES = {"both": "all noise", "chip": "noise per chip only", "read": "noise per read only"}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How trained networks were measured.

    Args:
        name: short name.
        noise: which: "both", or only that of the "chip", or only that of every "read".
        level: of all noise, in units of the hardware's.
        theta: the level of the noise of reads fluctuates from image to image, by this factor.
        bits: of the converters; None: the hardware's own.
        age_s: seconds since the write.
        temperature_K: of the chip; None: room temperature.
        recalibrated: whether batch normalisation was given new statistics on the chip.
        known: whether the study recorded what the condition is, beyond its name.
    """

    name: str
    noise: str = "both"
    level: float = 1.0
    theta: float = 0.0
    bits: int | None = None
    age_s: float = 0.0
    temperature_K: float | None = None
    recalibrated: bool = False
    known: bool = True

    @classmethod
    def of(cls, facts: Any, where: str) -> "Condition":
        """A condition out of JSON.

        Raises:
            ValueError: a fact that cannot be; names the file.
        """
        if not isinstance(facts, Mapping) or not isinstance(facts.get("name"), str):
            raise ValueError(f"{where}: a condition is {short(facts)}, expected a table with a name")
        for key in FACTS:
            value = facts.get(key, getattr(cls, key))
            if not (is_number(value) and value >= 0) and not (value is None and getattr(cls, key) is None):
                raise ValueError(f"{where}: {key} of condition {short(facts['name'])} is {short(value)}, expected a number >= 0")
        if facts.get("noise", "both") not in tuple(NOISES):
            raise ValueError(f"{where}: noise of condition {short(facts['name'])} is {short(facts['noise'])}, expected {', '.join(NOISES)}")
        given = {f.name: facts[f.name] for f in fields(cls) if f.name in facts and f.name != "known"}
        return cls(**given | {"recalibrated": bool(facts.get("recalibrated"))})

    @property
    def nominal(self) -> bool:
        """Whether it is the hardware as it is."""
        return self.known and self.alone("level") and self.level == 1

    def alone(self, *varied: str) -> bool:
        """Whether it is the hardware as it is but for these facts."""
        names = [name for name in ("noise", *FACTS, "recalibrated") if name not in varied]
        return self.known and all(getattr(self, name) == getattr(Condition, name) for name in names)

    @property
    def words(self) -> str:
        """What it is, for a reader; the name where nothing else is known."""
        if not self.known:
            return self.name
        said = [
            *([f"{self.level:g}× noise"] if self.noise == "both" and (self.level != 1 or self.alone("level", "recalibrated")) else []),
            *([] if self.noise == "both" else [f"{NOISES[self.noise]}, {self.level:g}×"]),
            *([f"noise level fluctuating by {self.theta:g}"] if self.theta else []),
            *([f"{self.bits} bits"] if self.bits is not None else []),
            *([f"after {words.age(self.age_s)}"] if self.age_s else []),
            *([f"at {self.temperature_K:g} K"] if self.temperature_K is not None else []),
            *(["recalibrated"] if self.recalibrated else []),
        ]
        return ", ".join(said)


def nominal(conditions: tuple[Condition, ...]) -> Condition | None:
    """The hardware as it is; else the first condition there is."""
    return next((c for c in conditions if c.nominal), conditions[0] if conditions else None)


def sweep(conditions: tuple[Condition, ...], fact: str, *, recalibrated: bool = False) -> list[Condition]:
    """The conditions that differ from the hardware as it is in one fact alone, that one ascending, the hardware itself first or within."""
    found = [c for c in conditions if c.alone(fact, "recalibrated") and c.recalibrated == recalibrated]
    return sorted(found, key=lambda c: (getattr(c, fact) is not None, getattr(c, fact) or 0))


def key(conditions: tuple[Condition, ...]) -> list[Condition]:
    """The conditions that stand for all: the hardware as it is, twice its noise, and the far end of everything that was varied."""
    first = nominal(conditions)
    twice = [c for c in sweep(conditions, "level") if c.level == 2]
    varied = {fact: [c for c in sweep(conditions, fact) if not c.nominal] for fact in FACTS}
    ends = [found[0 if fact == "bits" else -1] for fact, found in varied.items() if found]
    return list(dict.fromkeys([*([first] if first else []), *twice, *ends])) or list(conditions[:3])
