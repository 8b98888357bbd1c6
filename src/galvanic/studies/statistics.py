"""Whether one arm of a study is better than another: seeds and chips are samples, and so is what is measured on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

Table = NDArray[np.float64]
"""What was measured, (seeds, chips)."""
Verdict = Literal["better", "worse", "no difference shown"]

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and chips, and its 95 % confidence interval for seeds and chips that were not tried.

    Args:
        mean: over all seeds and chips.
        low: lower end; None with fewer than two seeds.
        high: upper end; likewise.
        seeds: number of seeds.
        chips: number of chips.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    chips: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against another, both measured with the same seeds on the same chips.

    Args:
        difference: mean of ours minus theirs.
        low: lower end of its 95 % confidence interval, which no correction has widened; None with fewer than two seeds.
        high: upper end; likewise.
        p: two-sided, of the hypothesis that there is no difference; None with fewer than two seeds.
        p_corrected: the same after correction for the family of comparisons it was judged in.
        effect: standardised effect over seeds, Cohen's $d_z$ with the correction of Hedges; None with fewer than three seeds, or no spread.
        verdict: 'better' or 'worse' for ours, or 'no difference shown'.
        seeds: number of seeds.
        chips: number of chips.
        higher_is_better: whether a large value is good.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    effect: float | None
    verdict: Verdict
    seeds: int
    chips: int
    higher_is_better: bool


def by_seed_and_chip(rows: Iterable[dict[str, Any]], value: str = "accuracy") -> Table:
    """The values of rows that have a seed and a chip, (seeds, chips), each in ascending order.

    Raises:
        ValueError: no row; a seed and chip that have no row, or two.
    """
    found: dict[tuple[int, int], float] = {}
    for row in rows:
        if (row["seed"], row["chip"]) in found:
            raise ValueError(f"seed {row['seed']}, chip {row['chip']} has two rows; choose one age, noise level and recipe")
        found[row["seed"], row["chip"]] = row[value]
    seeds, chips = (sorted({key[axis] for key in found}) for axis in (0, 1))
    absent = [(s, c) for s in seeds for c in chips if (s, c) not in found]
    if absent or not found:
        raise ValueError(f"seed {absent[0][0]}, chip {absent[0][1]} has no row" if absent else "there are no rows")
    return _table("rows", [[found[s, c] for c in chips] for s in seeds])


def interval(values: ArrayLike) -> Interval:
    r"""Mean and 95 % confidence interval of results (seeds, chips), with seeds and chips as crossed random factors.

    $$ x_{sc} = \mu + a_s + b_c + e_{sc}, \qquad \widehat{\mathrm{Var}}(\bar x) = \frac{M_a + \max(M_b - M_e, 0)}{S C} $$

    with the mean squares $M_a$ over $S$ seeds, $M_b$ over $C$ chips and $M_e$ of what is left; the half-width is Student's quantile times
    the root, with the degrees of freedom of Satterthwaite, but at most $S - 1$. So it is never narrower than the t interval over the
    seeds' means, and is that interval where chips differ by no more than chance.

    In simulated studies of 2 to 10 seeds on 3 to 50 chips it covers the truth in 95 % where seeds dominate, and in 93 to 100 % where chips
    do or both; the more, the fewer the seeds (`tests/studies/test_statistics.py`). A bootstrap that resamples seeds and chips is too narrow
    for few seeds: where they dominate it covers 84 % with five, 54 % with two. On a single chip nothing is known about others: the interval
    is then about that chip. Without any spread it has no width.

    Args:
        values: (seeds, chips).

    Raises:
        ValueError: another shape, no value, or one that is not finite.

    Reference:
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946. Of the bootstrap:
        Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007.
    """
    x = _table("values", values)
    mean, error, freedom = _crossed(x)
    seeds, chips = x.shape
    half = None if seeds < 2 else float(error * stdtrit(freedom, (1 + _CONFIDENCE) / 2))
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Interval(mean=mean, low=low, high=high, seeds=seeds, chips=chips)


def compare(ours: ArrayLike, theirs: ArrayLike, *, higher_is_better: bool = True, alpha: float = 0.05) -> Comparison:
    r"""Ours against theirs, paired by seed and chip.

    The test is a t test of the mean difference, with the standard error and the degrees of freedom of `interval`: the paired t test over
    seeds (each the mean over its chips) where chips do not matter, and a stricter one where the difference varies from chip to chip.
    The exact sign-flip test over seeds cannot decide here: with five seeds its p is at least 1/16, with fewer it is larger. It does decide
    where all differences are the same, so that no t exists: then $p = 2^{1 - S}$.

    Args:
        ours: (seeds, chips).
        theirs: likewise, of the same seeds and chips in the same order.
        higher_is_better: False for a loss.
        alpha: significance level of the verdict on this comparison alone; `verdicts` judges several.

    Raises:
        ValueError: shapes that differ or are no (seeds, chips); a value that is not finite.

    Reference:
        Clark, The language-as-fixed-effect fallacy, J. Verbal Learn. Verbal Behav. 12, 1973 (two crossed random factors); Hedges,
        Distribution theory for Glass's estimator of effect size and related estimators, J. Educ. Stat. 6, 1981.
    """
    a, b = _table("ours", ours), _table("theirs", theirs)
    if a.shape != b.shape:
        raise ValueError(f"ours is {a.shape}, theirs {b.shape}: both (seeds, chips), of the same seeds and chips")
    found = interval(a - b)
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    alone = Comparison(
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=_p(a - b, rounding),
        p_corrected=None,
        effect=_effect(a - b, rounding),
        verdict="no difference shown",
        seeds=found.seeds,
        chips=found.chips,
        higher_is_better=higher_is_better,
    )
    return verdicts([alone], alpha)[0]


def verdicts(comparisons: Sequence[Comparison], alpha: float = 0.05) -> list[Comparison]:
    """The comparisons of one family, with p corrected for their number and a verdict each.

    The probability of any wrong 'better' or 'worse' among them is at most alpha. One that could not be tested is not counted.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha}: between 0 and 1")
    corrected = iter(correct([c.p for c in comparisons if c.p is not None]))
    judged = []
    for c in comparisons:
        p = None if c.p is None else next(corrected)
        judged.append(replace(c, p_corrected=p, verdict=_verdict(c, p, alpha)))
    return judged


def correct(p_values: Sequence[float]) -> list[float]:
    r"""Holm's corrected p values: of $m$ in ascending order, $\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\,p_{(j)})$.

    Args:
        p_values: of one family of tests.

    Raises:
        ValueError: something that is no probability.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6, 1979.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p = {p}: a probability, between 0 and 1")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _table(name: str, values: ArrayLike) -> Table:
    try:
        x = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: not a table of numbers (seeds, chips)") from None
    if x.ndim != 2 or not x.size:
        raise ValueError(f"{name} has shape {x.shape}: (seeds, chips), one of each or more")
    if not np.isfinite(x).all():
        seed, chip = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"{name} is {x[seed, chip]} at seed {seed}, chip {chip} of the table: every value is finite")
    return x


def _crossed(x: Table) -> tuple[float, float, float]:
    """The mean, its standard error, and the degrees of freedom of that."""
    seeds, chips = x.shape
    mean = float(x.mean())
    if seeds < 2:
        return mean, inf, 0.0
    of_seeds = chips * x.mean(1).var(ddof=1)
    excess, rest = 0.0, 0.0
    if chips > 1:
        left = x - x.mean(1, keepdims=True) - x.mean(0, keepdims=True) + mean
        of_chips, of_rest = seeds * x.mean(0).var(ddof=1), np.square(left).sum() / ((seeds - 1) * (chips - 1))
        of_seeds = max(of_seeds, of_rest)  # less than what is left is chance, and would take all degrees of freedom
        if of_chips > of_rest:
            excess = of_chips - of_rest
            rest = of_chips**2 / (chips - 1) + of_rest**2 / ((seeds - 1) * (chips - 1))
    spread = of_seeds**2 / (seeds - 1) + rest
    total = of_seeds + excess
    return mean, sqrt(total / x.size), min(seeds - 1.0, float(total**2 / spread)) if spread > 0 else seeds - 1.0


def _p(x: Table, rounding: float) -> float | None:
    mean, error, freedom = _crossed(x)
    if len(x) < 2:
        return None
    if error <= rounding:
        return 1.0 if abs(mean) <= rounding else 2.0 ** (1 - len(x))
    return float(2 * stdtr(freedom, -abs(mean) / error))


def _effect(x: Table, rounding: float) -> float | None:
    seeds = len(x)
    spread = x.mean(1).std(ddof=1) if seeds > 2 else 0.0
    return None if spread <= rounding else float(x.mean() / spread * (1 - 3 / (4 * (seeds - 1) - 1)))


def _verdict(c: Comparison, p: float | None, alpha: float) -> Verdict:
    if p is None or p > alpha:
        return "no difference shown"
    return "better" if (c.difference > 0) == c.higher_is_better else "worse"
