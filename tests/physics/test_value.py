from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from galvanic.physics import Conditions, Context, Drift, Gaussian, LogLaw, Nonlinearity, Polynomial, Programming

WRONG = [float("nan"), float("inf"), -0.1, "0.1", True, 1j, [0.1], {}, b"1", np.ones((3, 3)), "a\nb" * 1000]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda x: type(x).__name__)
def test_a_wrong_parameter_is_refused_in_one_short_line_with_class_field_and_value(wrong: Any):
    with pytest.raises(ValueError, match=r"^Gaussian.std = .*: ") as caught:
        Gaussian(std=wrong)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (lambda: Drift(nu="fast"), "Drift.nu = 'fast': "),
        (lambda: Drift(nu=Gaussian(std=0.1)), "Drift.nu = Gaussian("),
        (lambda: Drift(nu=0.1, t0_s=0.0), "Drift.t0_s = 0.0: "),
        (lambda: Polynomial(coefficients=(0.1, float("nan"))), "Polynomial.coefficients = (0.1, nan): "),
        (lambda: Polynomial(coefficients=0.1), "Polynomial.coefficients = 0.1: "),
        (lambda: LogLaw(slope=0.0, intercept=0.0, low=0.0, high=float("inf")), "LogLaw.high = inf: "),
        (lambda: Gaussian(std=0.1, per="sometimes"), "Gaussian.per = 'sometimes': "),
        (lambda: Gaussian(std=0.1, per=None), "Gaussian.per = None: "),  # else it would be silently left out
        (lambda: Gaussian(std=0.1, relative=1), "Gaussian.relative = 1: "),
        (lambda: Gaussian(std=0.1, source=3), "Gaussian.source = 3: "),
        (lambda: replace(Gaussian(std=0.1), std=-1.0), "Gaussian.std = -1.0: "),
        (lambda: Conditions(age_s=-1.0), "Conditions.age_s = -1.0: "),
        (lambda: Conditions(temperature_K=0.0), "Conditions.temperature_K = 0.0: "),
        (lambda: Conditions(noise_level=float("nan")), "Conditions.noise_level = nan: "),
    ],
)
def test_every_field_is_checked_when_a_value_is_made(make, start):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert str(caught.value).startswith(start)


def test_an_integer_is_a_number():
    assert Gaussian(std=1) == Gaussian(std=1.0)
    assert hash(Gaussian(std=1)) == hash(Gaussian(std=1.0))


def test_values_of_different_classes_or_fields_differ_and_their_source_does_not_count():
    assert Conditions() != Context()
    assert Nonlinearity(second=0.1) != Nonlinearity(third=0.1)
    assert Gaussian(std=0.1, source="a") == Gaussian(std=0.1, source="b")
    assert Programming(std=Polynomial(coefficients=(0.1,))) != Programming(std=0.1)


def test_a_parameter_for_every_device_compares_by_its_values_and_shape():
    a, b = (Gaussian(std=torch.tensor([0.1, 0.2]).requires_grad_()) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Gaussian(std=torch.tensor([[0.1, 0.2]]))
    assert a != Gaussian(std=torch.tensor([0.1, 0.3]))
    assert {a: 1}[b] == 1


def test_what_an_effect_sees_is_not_checked_again_at_every_product():
    assert Context(age_s=-1.0).age_s == -1.0
