from math import sqrt

import numpy as np
import pytest
import torch
from scipy import stats

from galvanic.physics import Context, Polynomial, WriteVerify
from galvanic.seeding import generator

N = 100_000


def errors(effect: WriteVerify, target: float = 0.5, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Errors of n devices, and the draws that made them."""
    g = torch.full((n,), target, dtype=torch.float64)
    z = effect.draw((n,), generator("verify"), dtype=torch.float64)
    return (effect.apply(g, z, Context()) - g).numpy(), z.numpy()


def test_with_a_perfect_read_and_exact_pulses_the_error_is_within_the_window_or_that_of_the_last_pulse():
    error, z = errors(WriteVerify(pulses=3, window=0.03, pulse_std=0.05))
    accepted = abs(error) <= 0.03
    assert 0.5 < accepted.mean() < 1
    np.testing.assert_allclose(error[~accepted], 0.05 * z[-1][~accepted], rtol=0, atol=1e-14)


@pytest.mark.parametrize("pulses", [1, 2, 5])
def test_with_a_perfect_read_and_exact_pulses_the_error_is_a_mixture_of_a_cut_normal_and_a_whole_one(pulses):
    window, std = 0.03, 0.05
    error, _ = errors(WriteVerify(pulses=pulses, window=window, pulse_std=std))
    hit = stats.norm.cdf(window / std) - stats.norm.cdf(-window / std)
    verified = 1 - (1 - hit) ** (pulses - 1)
    cut = stats.truncnorm(-window / std, window / std, scale=std)
    result = stats.kstest(error, lambda e: verified * cut.cdf(e) + (1 - verified) * stats.norm.cdf(e, scale=std))
    assert result.pvalue > 1e-3


def simulated(target: float, rng: np.random.Generator, *, pulses, window, pulse_std, verify_std, up, down) -> float:
    """One device, as a programmer would write the loop."""
    g = up * target + pulse_std * rng.normal()
    for _ in range(pulses - 1):
        seen = g + verify_std * rng.normal()
        if abs(target - seen) <= window:
            break
        g += (up if seen < target else down) * (target - seen) + pulse_std * rng.normal()
    return g - target


@pytest.mark.parametrize(("target", "up", "down", "verify_std"), [(0.6, 1.0, 1.0, 0.02), (0.6, 0.8, 0.4, 0.02), (0.2, 0.5, 1.6, 0.0)])
def test_the_errors_are_distributed_as_those_of_a_plain_simulation(target, up, down, verify_std):
    rng, n = np.random.default_rng(1), 20_000
    plain = [simulated(target, rng, pulses=6, window=0.03, pulse_std=0.04, verify_std=verify_std, up=up, down=down) for _ in range(n)]
    effect = WriteVerify(pulses=6, window=0.03, pulse_std=0.04, verify_std=verify_std, set_gain=up, reset_gain=down)
    assert stats.ks_2samp(errors(effect, target, n)[0], plain).pvalue > 1e-3


def test_weak_pulses_without_randomness_approach_from_below_and_stop_inside_the_window():
    g = torch.tensor([0.8, -0.8, 0.05], dtype=torch.float64)
    reached = [WriteVerify(pulses=k, window=0.1, pulse_std=0.0, set_gain=0.5).apply(g, None, Context()) for k in range(1, 6)]
    # every pulse halves what is missing: 0.4, 0.2, then 0.1, which is accepted; 0.05 is within the window at once
    expected = [[0.4, 0.6, 0.7, 0.7, 0.7], [-0.4, -0.6, -0.7, -0.7, -0.7], [0.025] * 5]
    np.testing.assert_allclose(torch.stack(reached, -1), expected, rtol=0, atol=1e-15)


def test_stronger_reset_than_set_overshoots_downwards_alone():
    effect = WriteVerify(pulses=2, window=0.0, pulse_std=0.1, reset_gain=1.5)
    g = torch.full((2,), 0.5, dtype=torch.float64)
    z = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(effect.apply(g, z, Context()), [0.6 - 1.5 * 0.1, 0.5], rtol=0, atol=1e-15)


def test_a_window_by_curve_is_wide_where_the_curve_says_so():
    effect = WriteVerify(pulses=50, window=Polynomial(coefficients=(0.0, 0.1)), pulse_std=0.05)
    for target in (0.1, 0.9):
        error, _ = errors(effect, target)
        hit = 2 * stats.norm.cdf(0.1 * target / 0.05) - 1
        missed = (1 - hit) ** 49 * (1 - hit)
        assert (abs(error) > 0.1 * target).mean() == pytest.approx(missed, abs=5 * sqrt(missed / N) + 1e-12)


def test_more_pulses_make_better_writes_until_the_verifying_read_limits_them():
    spread = [errors(WriteVerify(pulses=k, window=0.01, pulse_std=0.05, verify_std=0.01))[0].std() for k in (1, 3, 10, 30)]
    assert spread[0] > 1.05 * spread[1] > 1.05**2 * spread[2] > 1.05**3 * spread[3] > 0.01


def test_to_the_target_the_gradient_of_exact_pulses_is_one():
    effect = WriteVerify(pulses=4, window=0.02, pulse_std=0.05, verify_std=0.01)
    g = torch.linspace(-1, 1, 1000, dtype=torch.float64, requires_grad=True)
    y = effect.apply(g, effect.draw((1000,), generator("verify"), dtype=torch.float64), Context())
    (gradient,) = torch.autograd.grad(y.sum(), g)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))
