import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import convert
from galvanic.physics import Gaussian
from galvanic.profile import Profile
from galvanic.ranges import Fixed
from galvanic.train.sharpness import SharpnessAware
from galvanic.train.steps import NonFinite, backprop, cross_entropy, steps

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Point(nn.Module):
    """A point in several parameters."""

    def __init__(self, *parts: torch.Tensor) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(p.clone()) for p in parts])

    def v(self) -> torch.Tensor:
        return torch.cat([p.flatten() for p in self.parts])


def quadratic(seed: int = 0, n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=draw, dtype=torch.float64)
    return a @ a.T, torch.randn(n, generator=draw, dtype=torch.float64)


def bowl(model: Point, a: torch.Tensor) -> torch.Tensor:
    return model.v() @ a @ model.v() / 2


def slopes(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *(middle or (nn.Tanh(),)), nn.Linear(8, 3))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a | b)


@pytest.mark.parametrize("radius", [0.0, 0.1, 3.0])
def test_on_a_quadratic_it_is_the_gradient_at_the_point_uphill(radius):
    a, v = quadratic()
    model = Point(v[:2], v[2:].view(3, 1))  # the norm is over both
    loss = SharpnessAware(radius=radius)(model, a, bowl)
    g = a @ v
    assert torch.allclose(slopes(model), a @ (v + radius * g / g.norm()), rtol=1e-12)
    assert float(loss) == pytest.approx(float(v @ a @ v / 2))
    assert not loss.requires_grad


@pytest.mark.parametrize("radius", [0.0, 0.1, 3.0])
def test_the_adaptive_form_measures_each_parameter_by_its_size(radius):
    a, v = quadratic(1)
    model = Point(v[:2], v[2:])
    SharpnessAware(radius=radius, adaptive=True)(model, a, bowl)
    g = a @ v
    assert torch.allclose(slopes(model), a @ (v + radius * v**2 * g / (v.abs() * g).norm()), rtol=1e-12)


def test_the_adaptive_ascent_does_not_depend_on_how_parameters_are_scaled():
    a, v = quadratic(2)
    s = torch.tensor([0.1, 3.0, 7.0, 0.5, 2.0], dtype=torch.float64)
    one, other = Point(v), Point(v / s)
    SharpnessAware(radius=0.4, adaptive=True)(one, a, bowl)
    SharpnessAware(radius=0.4, adaptive=True)(other, s[:, None] * a * s, bowl)
    assert torch.allclose(slopes(other), s * slopes(one), rtol=1e-10)


def test_a_radius_may_follow_the_model():
    a, v = quadratic()
    model, fixed = Point(v), Point(v)
    SharpnessAware(radius=lambda m: 0.1 * float(m.v().detach().norm()))(model, a, bowl)
    SharpnessAware(radius=0.1 * float(v.norm()))(fixed, a, bowl)
    assert torch.equal(slopes(model), slopes(fixed))
    for wrong in (math.nan, -1.0, math.inf, "wide"):
        with pytest.raises(ValueError, match=r"^SharpnessAware: its radius gives .*; a finite number from 0 on$"):
            SharpnessAware(radius=lambda m, wrong=wrong: wrong)(model, a, bowl)
    with pytest.raises(ValueError, match=r"^SharpnessAware\.radius = -1"):
        SharpnessAware(radius=-1.0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_parameters_come_back_bit_for_bit(adaptive):
    model = network()
    before = state(model)
    SharpnessAware(radius=0.3, adaptive=adaptive)(model, (X, Y), cross_entropy)
    assert same(state(model), before)


@pytest.mark.parametrize("failing", [1, 2])
def test_parameters_and_gradients_come_back_from_a_pass_that_raises(failing):
    model, passes = network(), []
    before = state(model)

    def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        passes.append(state(model))
        if len(passes) == failing:
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        SharpnessAware(radius=0.3)(model, (X, Y), broken)
    assert len(passes) == failing
    assert same(passes[0], before)
    assert failing == 1 or not same(passes[1], before)
    assert same(state(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_and_those_without_a_gradient_stay():
    a, v = quadratic()
    model = Point(v[:2], v[2:], torch.ones(3, dtype=torch.float64))
    model.parts[0].requires_grad_(False)
    seen = []

    def part(model: Point, a: torch.Tensor) -> torch.Tensor:
        seen.append([p.detach().clone() for p in model.parts])
        w = torch.cat([model.parts[0], model.parts[1]])
        return w @ a @ w / 2

    SharpnessAware(radius=0.5)(model, a, part)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][2], seen[1][2])
    g = (a @ v)[2:]
    there = torch.cat([v[:2], v[2:] + 0.5 * g / g.norm()])
    assert torch.allclose(model.parts[1].grad, (a @ there)[2:], rtol=1e-12)
    assert model.parts[0].grad is None
    assert model.parts[2].grad is None


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_is_too_small_or_too_large(size, adaptive):
    model = Point(torch.tensor([1.0, -2.0]))
    SharpnessAware(radius=0.1, adaptive=adaptive)(model, None, lambda m, _: size * m.v().sum())
    assert torch.equal(slopes(model), torch.full((2,), size))


def test_half_precision_does_not_overflow():
    model = Point(torch.full((4,), 3.0, dtype=torch.float16))
    SharpnessAware(radius=0.5)(model, None, lambda m, _: 5e4 * m.v().sum() + m.v().square().sum())
    assert slopes(model).isfinite().all()


def test_nan_is_left_for_training_to_report():
    model = network()
    before = state(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(NonFinite, match="the batch holds nan"):
        next(steps(model, [(X * math.nan, Y)], cross_entropy, optimizer, gradient=SharpnessAware()))
    assert same(state(model), before)


def test_a_model_without_trainable_parameters_has_nothing_to_ascend():
    model = network().requires_grad_(False)
    head = nn.Parameter(torch.zeros(()))
    loss = SharpnessAware()(model, (X, Y), lambda m, b: cross_entropy(m, b) + head)
    assert torch.equal(loss, cross_entropy(model, (X, Y)))


def test_sparse_gradients_are_refused():
    model = nn.Embedding(5, 3, sparse=True)
    before = state(model)
    with pytest.raises(ValueError, match=r"^SharpnessAware: the gradient of weight is sparse; Embedding\(\.\.\., sparse=False\)"):
        SharpnessAware()(model, torch.tensor([1, 2]), lambda m, b: m(b).sum())
    assert same(state(model), before)
    assert model.weight.grad is None


def test_the_gradient_is_added_to_what_is_there():
    a, v = quadratic()
    once, twice = Point(v), Point(v)
    SharpnessAware(radius=0.5)(once, a, bowl)
    for _ in range(2):
        SharpnessAware(radius=0.5)(twice, a, bowl)
    assert torch.allclose(slopes(twice), 2 * slopes(once), rtol=1e-12)


def test_the_source_gives_both_gradients():
    a, v = quadratic()
    seen = []

    def doubled(model, batch, objective):
        seen.append(model.v().detach())
        return backprop(model, batch, lambda m, b: 2 * objective(m, b))

    model = Point(v)
    SharpnessAware(radius=0.5, source=doubled)(model, a, bowl)
    g = a @ v
    assert torch.allclose(slopes(model), 2 * a @ (v + 0.5 * g / g.norm()), rtol=1e-12)
    assert len(seen) == 2


def test_running_statistics_are_those_of_one_pass():
    one, other = network(nn.BatchNorm1d(8)).train(), network(nn.BatchNorm1d(8)).train()
    SharpnessAware(radius=0.5)(one, (X, Y), cross_entropy)
    cross_entropy(other, (X, Y))
    assert same(state(one), state(other))


NOISY = Profile(name="noisy", output=(Gaussian(std=0.2, per="read"),), output_range=Fixed(value=4.0))


def test_both_passes_see_the_same_draws_unless_told_otherwise():
    for model in (convert(network(), NOISY, chip=0), network(nn.Dropout(0.5))):
        plain = SharpnessAware(radius=0.0)
        for gradient, expected in ((plain, True), (replace(plain, same_draws=False), False)):
            torch.manual_seed(4)
            model.zero_grad()
            backprop(model, (X, Y), cross_entropy)
            once, after = slopes(model), torch.rand(())
            torch.manual_seed(4)
            model.zero_grad()
            gradient(model, (X, Y), cross_entropy)
            assert torch.equal(slopes(model), once) is expected
            assert torch.equal(torch.rand(()), after) is expected  # the stream goes on as after one pass


def test_it_finds_a_flatter_minimum():
    """A sharp well beside a flat one that is no deeper: plain descent stays in the sharp one, the other leaves it."""

    def wells(model: Point, _: None) -> torch.Tensor:
        v = model.v()
        return torch.minimum(50 * (v - 0.2).square(), 0.5 * (v + 1).square() + 0.1).sum()

    ends = []
    for gradient in (backprop, SharpnessAware(radius=0.35)):
        model = Point(torch.tensor([0.21]))
        list(steps(model, [None] * 300, wells, torch.optim.SGD(model.parameters(), 0.015), gradient=gradient))
        ends.append(float(model.v().detach()))
    assert ends[0] == pytest.approx(0.2, abs=1e-3)
    assert ends[1] < 0


def test_it_is_data():
    assert replace(SharpnessAware()) == SharpnessAware()
    assert SharpnessAware(radius=0.1) != SharpnessAware(radius=0.2)
    assert "0.05" in repr(SharpnessAware())
