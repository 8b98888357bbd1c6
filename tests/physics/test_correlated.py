from math import exp, sqrt

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from scipy.signal import lfilter

from galvanic.physics import Context, Correlated
from galvanic.physics.correlated import exponential
from galvanic.seeding import generator


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize("length", [0.01, 1.0, 5.0, 1e4])
def test_the_covariance_is_exactly_the_stationary_exponential_one_for_every_number_of_lines(n, length):
    root = exponential(torch.eye(n, dtype=torch.float64), length, axis=-1)  # what each white number becomes
    np.testing.assert_allclose(root.T @ root, toeplitz(np.exp(-np.arange(n) / length)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("along", "per", "shape", "axis"),
    [
        ("rows", "read", (4, 3, 50), -1),
        ("columns", "read", (4, 3, 50), -1),
        ("rows", "chip", (2, 40, 50), -1),
        ("columns", "chip", (2, 40, 50), -2),
        ("columns", "snapshot", (40, 50), -1),
        ("columns", "write", (50,), -1),
        ("time", "read", (4, 30, 6), None),
        ("time", "read", (6,), None),
    ],
)
def test_a_draw_is_the_filtered_white_noise_along_the_axis_that_is_meant(along, per, shape, axis):
    drawn = Correlated(std=1.0, length=3.0, along=along, per=per).draw(shape, generator("correlated"), dtype=torch.float64)
    white = torch.randn(shape, generator=generator("correlated"), dtype=torch.float64).numpy()
    series = np.moveaxis(white, axis, 0) if axis else white.reshape(-1, shape[-1])
    rho = exp(-1 / 3)
    scaled = np.concatenate([series[:1], sqrt(1 - rho**2) * series[1:]])
    filtered = lfilter([1], [1, -rho], scaled, axis=0)
    expected = np.moveaxis(filtered, 0, axis) if axis else filtered.reshape(shape)
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_draw_has_unit_variance_and_the_stated_correlation_in_short_dtypes_too(dtype):
    n, length = 2**20, 4.0
    z = Correlated(std=1.0, length=length).draw((n,), generator("correlated"), dtype=dtype).double()
    independent = n / (2 * length)  # about so many numbers are worth as much as n correlated ones
    assert float(z.square().mean()) == pytest.approx(1, abs=5 * sqrt(2 / independent))
    assert float((z[4:] * z[:-4]).mean()) == pytest.approx(1 / np.e, abs=5 * sqrt(2 / independent))


def test_noise_is_added_in_the_stated_strength():
    effect = Correlated(std=0.2, length=2.0)
    x = torch.zeros(2000, 50, dtype=torch.float64)
    z = effect.draw(tuple(x.shape), generator("correlated"), dtype=x.dtype)
    y = effect.apply(x, z, Context(noise_level=1.5))
    assert float(y[:, 0].std()) == pytest.approx(0.3, rel=5 / sqrt(2 * 2000))
    assert float(y[:, -1].std()) == pytest.approx(0.3, rel=5 / sqrt(2 * 2000))


def test_noise_in_time_that_is_held_is_refused():
    with pytest.raises(ValueError, match=r"^Correlated.per = 'chip': noise along time is drawn at every read, per='read'$"):
        Correlated(std=0.1, length=2.0, along="time", per="chip")


def test_a_learned_length_leaves_no_graph_in_the_draw():
    effect = Correlated(std=0.1, length=torch.tensor(2.0, requires_grad=True))
    assert not effect.draw((5,), generator("correlated")).requires_grad
