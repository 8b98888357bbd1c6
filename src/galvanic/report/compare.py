"""Is one recipe better than another? Paired on the same chips, and never said without an interval that shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from galvanic.report import words
from galvanic.report.run import Row
from galvanic.report.summary import SEEDS_FOR_INTERVAL, interval, per_chip

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of one recipe minus another's, paired by seed and chip.

    Args:
        mean: mean over seeds of the mean difference over chips.
        std: standard deviation over all pairs; None for a single pair.
        pairs: how many seed x chip pairs both recipes have.
        alone: how many seed x chip values only one of them has, which are left out.
        seeds: how many trainings they come from.
        interval: 95 % interval of the mean with the seeds as units; None below three seeds.
        verdict: what may be said.
    """

    subject: str
    baseline: str
    mean: float
    std: float | None
    pairs: int
    alone: int
    seeds: int
    interval: tuple[float, float] | None
    verdict: Verdict

    @property
    def phrase(self) -> str:
        """The comparison as part of a sentence whose subject is `subject`."""
        baseline, gap = words.training(self.baseline), words.points(self.mean)
        if self.verdict == "no difference shown":
            return f"no difference shown against {baseline} ({gap} points{self._where})"
        return f"{gap.lstrip('+−')} points {'more' if self.mean > 0 else 'less'} than {baseline}{self._where}"

    @property
    def _where(self) -> str:
        return f" on the {self.pairs} chip test{'s' if self.pairs > 1 else ''} made for both" if self.alone else ""


def difference(rows: Sequence[Row], subject: str, baseline: str) -> Difference | None:
    """`subject` against `baseline` over `rows` of one condition; None where they share no seed and chip.

    With three or more seeds the verdict follows the interval over seeds. With fewer there is no interval over
    trainings: then every training must show the difference by its own interval over chips. A mean difference below one
    test example is never called a difference.
    """
    ours = per_chip([row for row in rows if row["recipe"] == subject])
    theirs = per_chip([row for row in rows if row["recipe"] == baseline])
    seeds = [[ours[s][c] - theirs[s][c] for c in ours[s] if c in theirs[s]] for s in ours if s in theirs]
    seeds = [pairs for pairs in seeds if pairs]
    if not seeds:
        return None
    pairs = [pair for of_seed in seeds for pair in of_seed]
    means = [float(np.mean(of_seed)) for of_seed in seeds]
    over_seeds = interval(means) if len(means) >= SEEDS_FOR_INTERVAL else None
    intervals = [over_seeds] if over_seeds else [interval(of_seed) for of_seed in seeds]
    example = 1 / max(int(row["n_test"]) for row in rows)
    return Difference(
        subject=subject,
        baseline=baseline,
        mean=float(np.mean(means)),
        std=float(np.std(pairs, ddof=1)) if len(pairs) > 1 else None,
        pairs=len(pairs),
        alone=sum(map(len, ours.values())) + sum(map(len, theirs.values())) - 2 * len(pairs),
        seeds=len(seeds),
        interval=over_seeds,
        verdict=_verdict(intervals) if abs(np.mean(means)) > 0.999 * example else "no difference shown",
    )


def _verdict(intervals: Sequence[tuple[float, float] | None]) -> Verdict:
    if all(found and found[0] > 0 for found in intervals):
        return "better"
    if all(found and found[1] < 0 for found in intervals):
        return "worse"
    return "no difference shown"
