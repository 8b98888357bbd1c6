from math import sqrt

import numpy as np
import pytest
import torch

from galvanic.physics import Context, Quantize, Saturate
from galvanic.seeding import generator

AT = Context()
N = 200_000


def convert(effect: Quantize, x: torch.Tensor) -> torch.Tensor:
    return effect.apply(x, effect.draw(tuple(x.shape), generator("converters"), dtype=x.dtype), AT)


def codes(bits: int, signed: bool) -> np.ndarray:
    """The bit conventions of the project: signed k / (2^(b-1) - 1), unsigned k / (2^b - 1)."""
    most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return np.arange(-most if signed else 0, most + 1) / most


@pytest.mark.parametrize("full_scale", [1.0, 0.75])
@pytest.mark.parametrize(("bits", "signed"), [(b, s) for b in range(1, 9) for s in (True, False) if b > 1 or not s])
def test_every_level_is_reached_and_every_value_goes_to_the_nearest(bits, signed, full_scale):
    x = torch.linspace(-1.5, 1.5, 10_007, dtype=torch.float64)
    levels = full_scale * codes(bits, signed)
    y = convert(Quantize(bits=bits, signed=signed, full_scale=full_scale), x).numpy()
    nearest = levels[np.abs(x.numpy()[:, None] - levels).argmin(1)]
    np.testing.assert_allclose(y, nearest, rtol=0, atol=1e-15)
    assert len(np.unique(y)) == len(levels) == (2**bits - 1 if signed else 2**bits)
    assert 0 in y


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_step_of_two_to_the_minus_b_is_the_published_form_which_does_not_clip(bits):
    x = 5 * torch.randn(N, dtype=torch.float64, generator=generator("signal"))
    rounded = np.round(x.numpy() * 2**bits) / 2**bits
    assert np.array_equal(convert(Quantize(step=2.0**-bits), x), rounded)
    error = convert(Quantize(step=2.0**-bits, error_std=0.02), x).numpy() - rounded
    assert error.mean() == pytest.approx(0, abs=5 * 0.02 / sqrt(N))
    assert error.std() == pytest.approx(0.02, rel=5 / sqrt(2 * N))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_of_rounding_has_variance_step_squared_over_twelve(bits):
    x = 2 * torch.rand(N, dtype=torch.float64, generator=generator("signal")) - 1
    step = 1 / (2 ** (bits - 1) - 1)
    error = convert(Quantize(bits=bits), x) - x
    # the square of a uniform error has relative variance 0.8
    assert float(error.square().mean()) == pytest.approx(step**2 / 12, rel=5 * sqrt(0.8 / N))


@pytest.mark.parametrize("value", [-1.0, -0.52, 0.0, 0.03, 0.31, 0.999])
def test_stochastic_rounding_goes_to_one_of_the_two_neighbours_with_the_exact_mean(value):
    step, levels = 1 / 7, codes(4, True)
    y = convert(Quantize(bits=4, stochastic=True), torch.full((N,), value, dtype=torch.float64))
    # a variable of two values spreads by half their distance at most
    assert float(y.mean()) == pytest.approx(value, abs=5 * step / 2 / sqrt(N) + 1e-12)
    assert np.abs(np.unique(y.numpy()) - value).max() < step
    assert np.abs(np.unique(y.numpy())[:, None] - levels).min(1).max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("signed", [True, False])
def test_stochastic_rounding_never_leaves_the_levels(dtype, signed):
    effect = Quantize(bits=8, signed=signed, stochastic=True)
    x = torch.linspace(-1.2, 1.2, 1001, dtype=dtype)
    largest = torch.nextafter(torch.tensor(0.5, dtype=dtype), torch.tensor(0.0, dtype=dtype))  # a draw from [-0.5, 0.5) can be this
    for dither in (largest, torch.tensor(-0.5, dtype=dtype)):
        y = effect.apply(x, torch.stack([dither.expand_as(x), torch.zeros_like(x)]), AT)
        assert y.max() <= 1
        assert y.min() >= (-1 if signed else 0)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_is_the_declared_straight_through_one(stochastic, signed):
    bits, full_scale = 4, torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-1.3, 1.3, 41, dtype=torch.float64, requires_grad=True)
    most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    effect = Quantize(bits=bits, full_scale=full_scale, signed=signed, stochastic=stochastic)
    y = convert(effect, x)
    (to_x,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    to_full_scale = [float(torch.autograd.grad(one, full_scale, retain_graph=True)[0]) for one in y]

    v = x.detach().numpy() / 0.8 * most
    inside = (v <= most + 0.5) & (v >= (-most if signed else 0) - 0.5)
    code = np.round(y.detach().numpy() / 0.8 * most)
    np.testing.assert_allclose(to_x, inside.astype(float), rtol=0, atol=1e-15)
    beyond = code / most  # +-1, or 0 at an unsigned zero
    np.testing.assert_allclose(to_full_scale, np.where(inside, (code - v) / most, beyond), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_gives_the_same_surrogate_under_no_grad_too(grad):
    x = torch.tensor([0.3, 2.0])
    with torch.set_grad_enabled(grad):
        y, tangent = torch.func.jvp(lambda x: Quantize(bits=4).apply(x, None, AT), (x,), (torch.ones(2),))
    assert y.tolist() == pytest.approx([2 / 7, 1.0])
    assert tangent.tolist() == [1.0, 0.0]


def test_the_gradient_to_the_step_is_the_rounding_error_in_steps():
    step = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    for value in (-0.33, 0.02, 0.47):
        y = Quantize(step=step).apply(torch.tensor(value, dtype=torch.float64), None, AT)
        (gradient,) = torch.autograd.grad(y, step)
        assert float(gradient) == pytest.approx(round(value / 0.1) - value / 0.1, abs=1e-12)


def test_a_converter_with_randomness_draws_at_every_read_unless_told_otherwise():
    assert Quantize(bits=4).per is None
    assert Quantize(bits=4, stochastic=True).per == "read"
    assert Quantize(bits=4, error_std=0.1).per == "read"
    assert Quantize(bits=4, error_std=0.1, per="chip").per == "chip"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "either bits or step"),
        ({"bits": 4, "step": 0.1}, "either bits or step"),
        ({"bits": 1}, "2 bits or more; or signed=False"),
        ({"bits": 0}, "bits = 0"),
        ({"bits": 25}, "bits = 25"),
        ({"bits": 4.0}, "bits = 4.0"),
        ({"bits": True}, "bits = True"),
        ({"step": 0.0}, "step = 0.0"),
        ({"bits": 4, "full_scale": 0.0}, "full_scale = 0.0"),
        ({"bits": 4, "error_std": -0.1}, "error_std = -0.1"),
        ({"bits": 4, "signed": 1}, "signed = 1"),
    ],
)
def test_a_converter_that_cannot_be_is_refused_by_name_and_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        Quantize(**wrong)


def test_saturation_clips_both_sides_and_passes_no_gradient_beyond():
    x = torch.linspace(-1, 1, 11, dtype=torch.float64, requires_grad=True)
    y = Saturate(limit=0.5).apply(x, None, AT)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    signal = x.detach().numpy()
    np.testing.assert_array_equal(y.detach(), np.clip(signal, -0.5, 0.5))
    np.testing.assert_array_equal(gradient, np.abs(signal) < 0.5)
