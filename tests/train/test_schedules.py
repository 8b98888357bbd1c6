"""How strong noise is in training: over time against hand values, from example to example against SciPy's distributions."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from galvanic.train import Constant, Cosine, Fluctuation, Grid, Ramp

SCHEDULES = [
    Constant(),
    Constant(at=0.0),
    Ramp(over=0.5),
    Ramp(over=0.0),
    Cosine(over=0.4, to=2.0),
    Grid(shares=(0.0, 0.3, 1.0), means=(0.0, 1.5, 1.0), stds=(0.0, 0.5, 0.2)),
]


@pytest.mark.parametrize(
    ("schedule", "shares", "levels"),
    [
        (Constant(), [0.0, 0.4, 1.0], [1, 1, 1]),
        (Constant(at=0.5), [0.0, 0.4, 1.0], [0.5, 0.5, 0.5]),
        (Ramp(over=0.2), [0.0, 0.05, 0.1, 0.2, 0.7], [0, 0.25, 0.5, 1, 1]),
        (Ramp(over=0.5, to=3.0), [0.0, 0.25, 0.5, 0.6], [0, 1.5, 3, 3]),
        (Ramp(over=0.0, to=2.0), [0.0, 1.0], [2, 2]),
        (Cosine(over=0.4), [0.0, 0.1, 0.2, 0.3, 0.4, 0.9], [0, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1, 1]),
        (Cosine(over=0.4, to=2.0), [0.0, 0.2, 0.5], [0, 1, 2]),
        (Cosine(over=0.0), [0.0, 1.0], [1, 1]),
        (Grid(shares=(0.2, 0.4, 0.8), means=(1.0, 3.0, 2.0)), [0, 0.2, 0.25, 0.4, 0.5, 0.8, 1], [1, 1, 1.5, 3, 2.75, 2, 2]),
        (Grid(shares=(0.5,), means=(0.7,)), [0.0, 0.5, 1.0], [0.7, 0.7, 0.7]),
    ],
    ids=repr,
)
def test_levels_are_those_computed_by_hand(schedule, shares, levels):
    assert [schedule.level(share) for share in shares] == pytest.approx(levels, abs=1e-12)


def test_the_spread_of_a_grid_is_linear_between_its_times_and_nothing_elsewhere_has_one():
    grid = Grid(shares=(0.0, 0.5, 1.0), means=(1.0, 1.0, 1.0), stds=(0.0, 0.4, 0.2))
    assert [grid.spread(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2])
    without = [*SCHEDULES[:-1], Grid(shares=(0.0, 1.0), means=(1.0, 2.0))]
    assert {schedule.spread(share / 10) for schedule in without for share in range(11)} == {0.0}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_levels_are_finite_never_negative_and_without_jumps(schedule):
    levels = [schedule.level(k / 1000) for k in range(1001)]
    assert all(0 <= level < math.inf for level in levels)
    assert max(abs(a - b) for a, b in pairwise(levels)) < 0.02


@pytest.mark.parametrize("schedule", [Ramp(over=0.7), Cosine(over=0.7)], ids=repr)
def test_a_rise_never_falls(schedule):
    levels = [schedule.level(k / 1000) for k in range(1001)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Constant(at=-1.0), "Constant.at = -1.0"),
        (lambda: Constant(at=math.nan), "Constant.at = nan"),
        (lambda: Ramp(over=1.5), "Ramp.over = 1.5"),
        (lambda: Cosine(over=0.1, to=math.inf), "Cosine.to = inf"),
        (lambda: Grid(shares=(), means=()), "Grid.shares = "),
        (lambda: Grid(shares=(0.0, 1.0), means=(1.0,)), "Grid: 2 shares, 1 means, 0 stds: as many of each"),
        (lambda: Grid(shares=(0.0, 1.0), means=(1.0, 1.0), stds=(0.1,)), "Grid: 2 shares, 2 means, 1 stds"),
        (lambda: Grid(shares=(0.5, 0.5), means=(1.0, 1.0)), "every one is larger than the one before"),
        (lambda: Grid(shares=(0.0, 2.0), means=(1.0, 1.0)), "Grid.shares = "),
        (lambda: Grid(shares=(0.0, 1.0), means=(1.0, 1.0), stds=(0.1, -0.1)), "Grid.stds = "),
        (lambda: Fluctuation(theta=0.0), "Fluctuation.theta = 0.0"),
        (lambda: Fluctuation(theta=0.5, alpha=-1.0), "Fluctuation.alpha = -1.0"),
        (lambda: Fluctuation(theta=0.5, per="batch"), "Fluctuation.per = 'batch'"),
    ],
)
def test_a_schedule_out_of_range_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------- fluctuation

N = 100_000


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("theta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_fluctuating_levels_are_folded_normal_or_one_sided_half_normal(alpha, theta, one_sided):
    """Mean and spread within five standard errors, and the whole distribution by Kolmogorov and Smirnov."""
    levels = Fluctuation(alpha=alpha, theta=theta, one_sided=one_sided).draw(N, torch.Generator().manual_seed(0)).double()
    exact = stats.halfnorm(loc=alpha, scale=theta) if one_sided else stats.foldnorm(alpha / theta, scale=theta)
    mean, variance, kurtosis = (float(x) for x in exact.stats("mvk"))
    assert levels.shape == (N,)
    assert abs(float(levels.mean()) - mean) < 5 * (variance / N) ** 0.5
    assert abs(float(levels.var()) - variance) < 5 * variance * ((kurtosis + 2) / N) ** 0.5
    assert stats.kstest(levels.numpy(), exact.cdf).pvalue > 1e-4


def test_one_sided_levels_are_never_below_alpha_and_no_level_is_negative():
    draw = torch.Generator().manual_seed(0)
    assert float(Fluctuation(alpha=0.7, theta=1.0, one_sided=True).draw(N, draw).min()) >= 0.7
    assert 0 <= float(Fluctuation(alpha=0.7, theta=1.0).draw(N, draw).min()) < 0.01


def test_levels_are_drawn_from_the_global_stream_unless_another_is_given():
    fluctuation = Fluctuation(theta=0.5)
    torch.manual_seed(3)
    drawn = fluctuation.draw(5)
    assert not torch.equal(fluctuation.draw(5), drawn)
    assert torch.equal(fluctuation.draw(5, torch.Generator().manual_seed(3)), drawn)
    assert fluctuation.draw(0).shape == (0,)
