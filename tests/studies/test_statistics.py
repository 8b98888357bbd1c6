import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtrit

from galvanic.studies.statistics import Comparison, by_seed_and_chip, compare, correct, interval, verdicts

STUDIES = 1500
WITHIN = 3.5 * math.sqrt(0.05 * 0.95 / STUDIES)  # of 95 %, by chance: fixed seeds, and a margin for another NumPy


def drawn(draw: np.random.Generator, shape: tuple[int, int], of_seeds: float, of_chips: float, rest: float) -> np.ndarray:
    seeds, chips = shape
    x = of_seeds * draw.normal(size=(seeds, 1)) + of_chips * draw.normal(size=(1, chips))
    return x + rest * draw.normal(size=shape)


def null(draw: np.random.Generator, shape: tuple[int, int] = (5, 10)) -> tuple[np.ndarray, np.ndarray]:
    """Two arms alike: hard seeds and chips are hard for both, and each arm has a luck of its own with seeds and chips."""
    common = drawn(draw, shape, 2.0, 3.0, 0.0)
    return common + drawn(draw, shape, 1.0, 0.5, 1.0), common + drawn(draw, shape, 1.0, 0.5, 1.0)


@pytest.mark.parametrize("shape", [(2, 10), (5, 10), (5, 3), (10, 20)])
def test_where_seeds_dominate_the_interval_covers_the_truth_in_95_of_100_studies(shape):
    assert 0.95 - WITHIN <= covered(shape, (1.0, 0.0, 0.1)) <= 0.95 + WITHIN


@pytest.mark.parametrize("shape", [(2, 10), (5, 10), (5, 3), (10, 20)])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (0.1, 1.0, 0.1), (0.0, 0.0, 1.0)], ids=["both", "chips", "neither"])
def test_elsewhere_it_covers_the_truth_at_least_as_often(shape, sizes):
    assert covered(shape, sizes) >= 0.95 - WITHIN


def covered(shape: tuple[int, int], sizes: tuple[float, float, float]) -> float:
    draw = np.random.default_rng(0)
    found = [interval(7 + drawn(draw, shape, *sizes)) for _ in range(STUDIES)]
    return np.mean([i.low <= 7 <= i.high for i in found])


@pytest.mark.parametrize("shape", [(2, 10), (5, 10), (5, 3), (10, 20)])
def test_the_interval_is_never_narrower_than_that_of_the_t_test_over_seeds(shape):
    draw = np.random.default_rng(0)
    for sizes in ((1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.1, 1.0, 0.1)):
        x = drawn(draw, shape, *sizes)
        found, plain = interval(x), stats.ttest_1samp(x.mean(1), 0).confidence_interval(0.95)
        assert found.low <= plain.low + 1e-9
        assert found.high >= plain.high - 1e-9


def test_a_bootstrap_of_seeds_and_chips_would_be_too_narrow():
    """Which is why there is none here."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        x = drawn(draw, (5, 10), 1.0, 0.0, 0.1)
        i, j = draw.integers(0, 5, (200, 5)), draw.integers(0, 10, (200, 10))
        low, high = np.quantile(x[i[:, :, None], j[:, None, :]].mean((1, 2)), [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / 300 < 0.9


def test_without_an_effect_of_chips_the_interval_and_p_are_those_of_the_paired_t_test_over_seeds():
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(2, 6, 1)) + np.zeros((1, 1, 4))
    found = compare(a, b)
    reference = stats.ttest_rel(a.mean(1), b.mean(1))
    low, high = reference.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((reference.pvalue, low, high), rel=1e-9)
    alone = compare(a[:, :1], b[:, :1])  # one chip
    assert (alone.p, alone.low, alone.high) == pytest.approx((reference.pvalue, low, high), rel=1e-9)


def test_the_standard_error_is_that_of_the_mean_squares():
    """By hand: row means 2, 5; column means 2, 5; nothing left but 0.5 in each corner."""
    x = np.array([[1.0, 3.0], [3.0, 7.0]])
    of_seeds, of_chips, rest = 2 * 4.5, 2 * 4.5, 1.0
    freedom = (of_seeds + of_chips - rest) ** 2 / (of_seeds**2 + of_chips**2 + rest**2)
    half = math.sqrt((of_seeds + of_chips - rest) / 4) * stdtrit(min(freedom, 1), 0.975)
    found = interval(x)
    assert (found.mean, found.low, found.high) == pytest.approx((3.5, 3.5 - half, 3.5 + half))


def test_few_chips_that_differ_much_leave_few_degrees_of_freedom():
    """Five seeds that agree on two chips: about one degree of freedom, not four."""
    x = np.array([[1.0, -1.0]]) + 1e-6 * np.random.default_rng(0).normal(size=(5, 2))
    found = interval(x)
    assert found.high - found.mean == pytest.approx(stdtrit(1, 0.975), rel=1e-3)  # of a standard error of 1: 2 / sqrt(2) / sqrt(2)


def test_the_unit_is_the_seed_more_chips_do_not_make_a_difference_significant():
    per_seed = np.array([[0.4], [-0.3], [0.5], [-0.1], [0.2]])
    few, many = (compare(np.repeat(per_seed, chips, 1), np.zeros((5, chips))) for chips in (2, 200))
    assert many.p == pytest.approx(few.p)
    assert many.verdict == "no difference shown"


def test_a_difference_that_varies_from_chip_to_chip_is_not_certain_because_every_seed_agrees():
    per_chip = np.array([[0.9, -0.4, 0.5, -0.2]])
    noise = 0.01 * np.random.default_rng(0).normal(size=(5, 4))
    assert stats.ttest_1samp((per_chip + noise).mean(1), 0).pvalue < 1e-4
    assert compare(per_chip + noise, np.zeros((5, 4))).p > 0.3


def test_one_seed_gives_a_mean_and_nothing_else():
    found = interval([[1.0, 2.0, 3.0]])
    assert (found.mean, found.low, found.high, found.seeds, found.chips) == (2.0, None, None, 1, 3)
    alone = compare([[1.0, 2.0]], [[0.0, 0.0]])
    assert (alone.difference, alone.low, alone.p, alone.p_corrected, alone.effect) == (1.5, None, None, None, None)
    assert alone.verdict == "no difference shown"


def test_arms_that_are_the_same_do_not_differ():
    x = np.random.default_rng(0).normal(size=(4, 3))
    found = compare(x, x)
    assert (found.difference, found.low, found.high, found.p, found.verdict) == (0.0, 0.0, 0.0, 1.0, "no difference shown")


@pytest.mark.parametrize("seeds", [2, 5, 6, 9])
def test_without_any_spread_the_exact_sign_flip_test_decides(seeds):
    x = np.random.default_rng(0).random((seeds, 4))
    found = compare(x + 0.1, x)
    exact = stats.permutation_test((np.full(seeds, 0.1),), np.mean, permutation_type="samples", n_resamples=1000).pvalue
    assert found.p == pytest.approx(exact)
    assert found.effect is None
    assert found.verdict == ("better" if seeds >= 6 else "no difference shown")


def test_five_seeds_are_too_few_for_the_sign_flip_test_and_enough_for_the_t_test():
    x = 0.1 + 0.02 * np.random.default_rng(0).normal(size=(5, 4))
    exact = stats.permutation_test((x.mean(1),), np.mean, permutation_type="samples", n_resamples=1000).pvalue
    assert exact == 1 / 16
    assert compare(x, np.zeros((5, 4))).verdict == "better"


def test_the_effect_is_cohens_over_seeds_with_hedges_correction():
    ours = np.array([[1.0, 3.0], [2.0, 4.0], [4.0, 4.0], [5.0, 9.0]])  # means 2, 3, 4, 7
    assert compare(ours, np.zeros((4, 2))).effect == pytest.approx(4 / math.sqrt(14 / 3) * (1 - 3 / 11))
    assert compare(ours[:2], np.zeros((2, 2))).effect is None  # two seeds: the correction has no value


def test_the_other_way_round_everything_is_negative_and_p_the_same():
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(5, 4)) + 3, draw.normal(size=(5, 4))
    forth, back = compare(a, b), compare(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert (back.p, back.effect) == pytest.approx((forth.p, -forth.effect))
    assert (forth.verdict, back.verdict) == ("better", "worse")
    assert compare(a, b, higher_is_better=False).verdict == "worse"
    assert compare(b, a, higher_is_better=False).verdict == "better"


def test_holms_correction_by_hand():
    assert correct([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert correct([0.02]) == [0.02]
    assert correct([0.02, 0.02]) == [0.04, 0.04]
    assert correct([]) == []


def some(p: float | None, difference: float = 1.0) -> Comparison:
    plain = {"difference": difference, "low": 0.0, "high": 2.0, "p": p, "p_corrected": None, "effect": 1.0}
    return Comparison(**plain, verdict="no difference shown", seeds=5, chips=4, higher_is_better=True)


def test_verdicts_are_those_of_the_family():
    family = verdicts([some(0.04), some(0.01, -1.0), some(None), some(0.2)])
    assert [c.p_corrected for c in family] == pytest.approx([0.08, 0.03, None, 0.2])
    assert [c.verdict for c in family] == ["no difference shown", "worse", "no difference shown", "no difference shown"]
    assert verdicts([some(0.04)])[0].verdict == "better"
    assert verdicts([some(0.04)], alpha=0.01)[0].verdict == "no difference shown"


def test_a_family_of_arms_that_are_alike_has_a_wrong_verdict_in_at_most_5_of_100_studies():
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(STUDIES):
        family = verdicts([compare(*null(draw)) for _ in range(4)])
        wrong += any(c.verdict != "no difference shown" for c in family)
    assert wrong / STUDIES <= 0.05 + WITHIN


def test_one_comparison_of_arms_that_are_alike_is_wrong_in_about_5_of_100_studies():
    """Not far fewer either, or nothing would ever be found."""
    draw = np.random.default_rng(0)
    wrong = np.mean([compare(*null(draw)).verdict != "no difference shown" for _ in range(STUDIES)])
    assert 0.025 <= wrong <= 0.05 + WITHIN


def test_a_big_difference_is_found():
    draw = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        families = [null(draw) for _ in range(4)]
        judged = verdicts([compare(ours + (5.0 if k == 0 else 0.0), theirs) for k, (ours, theirs) in enumerate(families)])
        found += judged[0].verdict == "better"
    assert found >= 190


def test_pairing_finds_what_the_spread_of_seeds_and_chips_would_hide():
    draw = np.random.default_rng(0)
    common = drawn(draw, (5, 10), 5.0, 5.0, 0.0)
    ours, theirs = common + 0.5 + 0.1 * draw.normal(size=(5, 10)), common
    assert compare(ours, theirs).verdict == "better"
    assert stats.ttest_ind(ours.mean(1), theirs.mean(1)).pvalue > 0.5


def test_rows_become_a_table_whatever_their_order():
    rows = [{"seed": s, "chip": c, "accuracy": 10 * s + c} for s in (3, 1) for c in (1001, 1000, 1002)]
    assert by_seed_and_chip(rows).tolist() == [[1010, 1011, 1012], [1030, 1031, 1032]]
    assert by_seed_and_chip([{"seed": 0, "chip": 0, "loss": 2}], "loss").tolist() == [[2]]
    with pytest.raises(ValueError, match="seed 1, chip 1000 has no row"):
        by_seed_and_chip([r for r in rows if (r["seed"], r["chip"]) != (1, 1000)])
    with pytest.raises(ValueError, match="seed 3, chip 1001 has two rows"):
        by_seed_and_chip([*rows, rows[0]])
    with pytest.raises(ValueError, match="no rows"):
        by_seed_and_chip([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"values has shape \(2,\): \(seeds, chips\)"),
        ([[]], r"values has shape \(1, 0\)"),
        ([], r"values has shape \(0,\)"),
        ([[1.0, 2.0], [3.0]], "values: not a table of numbers"),
        ([["a"]], "values: not a table of numbers"),
        ([[1.0, 2.0], [3.0, math.nan]], "values is nan at seed 1, chip 1"),
        ([[math.inf]], "values is inf at seed 0, chip 0"),
    ],
)
def test_what_is_no_table_of_finite_numbers_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


def test_arms_of_different_shapes_and_what_is_no_probability_are_refused():
    with pytest.raises(ValueError, match=r"ours is \(2, 3\), theirs \(2, 1\)"):
        compare(np.zeros((2, 3)), np.zeros((2, 1)))
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="a probability"):
            correct([0.5, p])
    with pytest.raises(ValueError, match="alpha = 5"):
        verdicts([some(0.01)], alpha=5)
