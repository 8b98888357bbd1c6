from math import sqrt

import numpy as np
import pytest
import torch

from galvanic.physics import Context, Polynomial, RandomTelegraph
from galvanic.seeding import generator

N = 400_000
TIMES = [(1.0, 1.0), (9.0, 1.0), (0.02, 0.38)]


def disturbed(effect: RandomTelegraph, x: float = 0.5, noise_level: float = 1.0) -> torch.Tensor:
    signal = torch.full((N,), x, dtype=torch.float64)
    return effect.apply(signal, effect.draw((N,), generator("telegraph"), dtype=torch.float64), Context(noise_level=noise_level))


@pytest.mark.parametrize(("capture_s", "emission_s"), TIMES)
def test_the_occupancy_is_the_share_of_time_a_simulated_trap_is_full(capture_s, emission_s):
    draw, cycles = np.random.default_rng(0), 20_000
    empty, full = draw.exponential(capture_s, cycles), draw.exponential(emission_s, cycles)
    p = RandomTelegraph(amplitude=0.1, capture_s=capture_s, emission_s=emission_s).occupancy()
    # a ratio of sums of exponentials has relative variance 2 / cycles; p (1 - p) of it is the share's
    assert full.sum() / (full.sum() + empty.sum()) == pytest.approx(p, abs=5 * p * (1 - p) * sqrt(2 / cycles))


@pytest.mark.parametrize(("capture_s", "emission_s"), TIMES)
def test_there_are_two_levels_an_amplitude_apart_visited_so_that_the_mean_is_kept(capture_s, emission_s):
    y = disturbed(RandomTelegraph(amplitude=0.2, capture_s=capture_s, emission_s=emission_s)).numpy()
    low, high = np.unique(y.round(12))
    p = emission_s / (capture_s + emission_s)
    assert high - low == pytest.approx(0.2 * 0.5, abs=1e-12)
    assert (y < 0.5).mean() == pytest.approx(p, abs=5 * sqrt(p * (1 - p) / N))
    assert p * low + (1 - p) * high == pytest.approx(0.5, abs=1e-12)
    assert y.mean() == pytest.approx(0.5, abs=5 * 0.1 * sqrt(p * (1 - p) / N))


def test_the_amplitude_is_that_at_the_written_conductance_and_scales_with_the_noise_level():
    effect = RandomTelegraph(amplitude=Polynomial(coefficients=(0.3, -0.2)))
    x, written = torch.full((N,), 0.25), torch.full((N,), 0.5)
    y = effect.apply(x, effect.draw((N,), generator("telegraph")), Context(written=written, noise_level=1.5))
    assert float(y.max() - y.min()) == pytest.approx(1.5 * (0.3 - 0.2 * 0.5) * 0.25, rel=1e-5)


def test_gradients_reach_signal_and_amplitude_and_not_the_times():
    def apply(x, amplitude):
        return RandomTelegraph(amplitude=amplitude).apply(x, z, Context())

    z = torch.tensor([-1.0, 1.0, 0.3], dtype=torch.float64)
    x = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, torch.tensor(0.2, dtype=torch.float64, requires_grad=True)))
    capture_s = torch.tensor(2.0, requires_grad=True)
    y = RandomTelegraph(amplitude=0.2, capture_s=capture_s).apply(x, z, Context())
    assert torch.autograd.grad(y.sum(), capture_s, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rare_trap_is_as_rare_in_every_dtype(dtype):
    effect = RandomTelegraph(amplitude=0.5, capture_s=999.0)
    y = effect.apply(torch.ones(N, dtype=dtype), effect.draw((N,), generator("telegraph"), dtype=dtype), Context())
    # five standard errors, and the grid of bfloat16
    assert float((y < 1).double().mean()) == pytest.approx(0.001, rel=5 / sqrt(0.001 * N) + 0.03)
