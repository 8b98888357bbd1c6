import numpy as np
import pytest
import torch

import galvanic.physics as physics
from galvanic.physics import Curve, Exponential, InversePower, LogLaw, Piecewise, Polynomial, SaturatingExponential
from galvanic.physics.curves import evaluate

G = np.linspace(1e-3, 1.2, 500)

CURVES = {
    Polynomial(coefficients=(0.3, -1.2, 2.0), full_scale=25.0): (0.3 - 1.2 * G + 2.0 * G**2) / 25,
    LogLaw(slope=-0.0155, intercept=0.0244, low=0.049, high=0.1): np.clip(-0.0155 * np.log(G) + 0.0244, 0.049, 0.1),
    Exponential(scale=0.2167, length=7.8): 0.2167 * np.exp(-G / 7.8),
    SaturatingExponential(scale=12.58, length=215.4, full_scale=3200.0): 12.58 * (1 - np.exp(-G * 3200 / 215.4)) / 3200,
    InversePower(scale=0.0088, power=0.65, high=0.2): np.minimum(0.0088 / G**0.65, 0.2),
    Piecewise(threshold=0.25, below=Polynomial(coefficients=(0.2,)), above=Polynomial(coefficients=(0.0, 1.0))): np.where(G < 0.25, 0.2, G),
}
every_curve = pytest.mark.parametrize("curve", CURVES, ids=lambda c: type(c).__name__)


def with_tensors(curve: Curve, leaves: list[torch.Tensor]) -> Curve:
    def leaf(v):
        if isinstance(v, Curve):
            return with_tensors(v, leaves)
        if isinstance(v, tuple):
            return tuple(map(leaf, v))
        leaves.append(torch.tensor(v, dtype=torch.float64, requires_grad=True))
        return leaves[-1]

    return type(curve)(**{name: leaf(v) for name, v in vars(curve).items()})


def test_every_curve_of_the_library_stands_in_this_table():
    public = {x for name in physics.__all__ if isinstance(x := getattr(physics, name), type) and issubclass(x, Curve)}
    assert public - {Curve} == set(map(type, CURVES))


@every_curve
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_curve_is_its_formula(curve, dtype):
    value = curve(torch.from_numpy(G).to(dtype))
    assert value.dtype == dtype
    if dtype != torch.bfloat16:  # in which the argument itself is 0.4 % off
        np.testing.assert_allclose(value, CURVES[curve], rtol=2e-5 if dtype == torch.float32 else 1e-12)


@every_curve
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_at_no_conductance_a_curve_and_all_its_gradients_are_finite(curve, dtype):
    leaves: list[torch.Tensor] = []
    x = torch.zeros(3, dtype=dtype, requires_grad=True)
    value = with_tensors(curve, leaves)(x)
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), [x, *leaves], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every_curve
def test_a_curve_keeps_its_value_with_any_one_parameter_as_a_tensor(curve):
    x = torch.from_numpy(G)
    for name, v in vars(curve).items():
        if isinstance(v, float):
            learned = type(curve)(**{**vars(curve), name: torch.tensor(v, dtype=torch.float64, requires_grad=True)})
            torch.testing.assert_close(learned(x), curve(x), rtol=1e-12, atol=0)


def test_the_second_part_of_a_piecewise_curve_begins_at_the_threshold():
    step = Piecewise(threshold=0.5, below=Polynomial(coefficients=(1.0,)), above=Polynomial(coefficients=(2.0,)))
    assert step(torch.tensor([0.49, 0.5, 0.51])).tolist() == [1.0, 2.0, 2.0]


def test_a_constant_parameter_is_itself_at_every_conductance():
    assert evaluate(0.3, torch.rand(2)) == 0.3
    assert evaluate(Polynomial(coefficients=(0.3,)), torch.rand(2)).tolist() == pytest.approx([0.3, 0.3])
