from math import sqrt

import pytest
import torch

from galvanic.physics import Context, DeadLine, GainOffset
from galvanic.seeding import generator

N = 200_000
X = torch.linspace(-1, 1, 5, dtype=torch.float64)


def test_gain_and_offset_are_read_off_as_slope_and_intercept_of_each_line():
    effect = GainOffset(gain=0.1, offset=-0.05, gain_std=0.03, offset_std=0.02)
    z = effect.draw((N,), generator("lines"), dtype=torch.float64)
    y = effect.apply(X[:, None].expand(-1, N), z, Context(noise_level=2.0))
    slope = (y[-1] - y[0]) / 2
    intercept = y[2]
    for value, mean, std in ((slope, 1.1, 0.06), (intercept, -0.05, 0.04)):
        assert float(value.mean()) == pytest.approx(mean, abs=5 * std / sqrt(N))
        assert float(value.std()) == pytest.approx(std, rel=5 / sqrt(2 * N))
    assert float(torch.corrcoef(torch.stack([slope, intercept]))[0, 1]) == pytest.approx(0, abs=5 / sqrt(N))
    torch.testing.assert_close(y, slope * X[:, None] + intercept, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 7, 1, 1)])
def test_a_shared_amplifier_is_the_same_for_all_lines_and_another_on_another_chip(shape):
    effect = GainOffset(gain_std=0.1, offset_std=0.1, shared=True)
    one, other = (effect.draw(shape, generator("lines", chip)) for chip in range(2))
    assert one.shape == (2, *shape)
    assert [len(z.unique()) for z in one] == [1, 1]
    assert len(torch.cat([one, other]).unique()) == 4


def test_lines_are_dead_at_the_stated_rate_scaled_by_the_noise_level_and_carry_the_value():
    effect = DeadLine(fraction=0.02, value=-0.25)
    z = effect.draw((N,), generator("lines"))
    for noise_level in (0.0, 1.0, 3.0):
        y = effect.apply(torch.full((N,), 0.5), z, Context(noise_level=noise_level))
        p = 0.02 * noise_level
        assert float((y == -0.25).double().mean()) == pytest.approx(p, abs=5 * sqrt(p * (1 - p) / N))
        assert ((y == 0.5) | (y == -0.25)).all()


def test_a_line_is_dead_for_every_vector_that_passes_it():
    effect = DeadLine(fraction=0.5)
    y = effect.apply(torch.rand(20, 100) + 0.1, effect.draw((100,), generator("lines")), Context())
    dead = (y == 0).sum(0)
    assert set(dead.tolist()) == {0, 20}
