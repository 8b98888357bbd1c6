import numpy as np
import pytest
import torch

from galvanic.physics import Compress, Context, Nonlinearity, Saturate

AT = Context()
X = torch.linspace(-2, 2, 401, dtype=torch.float64)


@pytest.mark.parametrize(
    ("limits", "low", "high"),
    [
        ({"limit": 0.6}, -0.6, 0.6),
        ({"low": -0.2}, -0.2, 1.0),
        ({"low": 0.1, "high": 0.3}, 0.1, 0.3),
        ({"limit": 0.6, "high": 1.5}, -0.6, 1.5),
    ],
)
@pytest.mark.parametrize("number", [float, lambda v: torch.tensor(v, dtype=torch.float64)], ids=["number", "tensor"])
def test_a_signal_is_cut_at_both_limits(limits, low, high, number):
    y = Saturate(**{name: number(v) for name, v in limits.items()}).apply(X, None, AT)
    np.testing.assert_array_equal(y, np.clip(X.numpy(), low, high))


@pytest.mark.parametrize("limits", [{"low": 0.5, "high": 0.5}, {"low": 1.5}, {"high": -2.0}])
def test_a_lower_limit_that_is_not_below_the_upper_one_is_refused(limits):
    with pytest.raises(ValueError, match=r"^Saturate: low = \S+ is not below high = \S+$"):
        Saturate(**limits)


def test_beyond_the_limits_no_gradient_passes():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Saturate(low=-0.305, high=0.805).apply(x, None, AT).sum(), x)
    assert torch.equal(gradient, ((X > -0.305) & (X < 0.805)).double())


def test_soft_saturation_is_the_hyperbolic_tangent_and_never_beyond_its_limit():
    y = Compress(limit=0.7).apply(X, None, AT)
    np.testing.assert_allclose(y, 0.7 * np.tanh(X.numpy() / 0.7), rtol=0, atol=1e-15)
    assert y.abs().max() < 0.7


def test_small_signals_are_compressed_as_by_the_third_order_of_a_weak_nonlinearity():
    x = torch.linspace(-0.05, 0.05, 11, dtype=torch.float64)
    third = -1 / (3 * 0.7**2)
    fifth = 2 / (15 * 0.7**4)  # of the series of tanh: the next term bounds what is left out
    difference = Compress(limit=0.7).apply(x, None, AT) - Nonlinearity(third=third).apply(x, None, AT)
    assert (difference.abs() <= fifth * x.abs() ** 5 + 1e-17).all()
