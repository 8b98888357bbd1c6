"""`torch.func`: many chips or inputs at once, Jacobians, second derivatives, per-sample gradients, other weights."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import galvanic
from galvanic import load_profile, program, reads
from galvanic.nn import unfused

CHIPS = (0, 4, 9)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


@torch.no_grad()
def test_an_ensemble_of_chips_is_the_loop_over_chips(precise):
    model, x = precise
    with reads(model, "off"):
        before = model(x)
        together = galvanic.ensemble(model, x, chips=CHIPS)
        assert_close(model(x), before)
        assert_close(together, torch.stack([program(model, chip)(x) for chip in CHIPS]))


def test_the_gradient_of_an_ensemble_is_the_sum_over_its_chips(precise):
    model, x = precise
    with reads(model, "off"):
        together = torch.autograd.grad(galvanic.ensemble(model, x, chips=CHIPS).square().sum(), list(model.parameters()))
        apart = [torch.autograd.grad(program(model, chip)(x).square().sum(), list(model.parameters())) for chip in CHIPS]
    for a, b in zip(together, zip(*apart, strict=True), strict=True):
        assert_close(a, sum(b))


def skip_where_torch_has_no_rule(model, profile):
    if profile.name == "ideal" and any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in model.modules()):
        pytest.skip("torch's own recurrent layers, which ideal hardware leaves in place, have no batching rule")


@torch.no_grad()
def test_vmap_over_inputs_is_the_loop_over_inputs(precise, profile):
    model, x = precise
    skip_where_torch_has_no_rule(model, profile)
    xs = torch.stack([x, -x, x / 2])
    with reads(model, "off"):
        assert_close(vmap(model)(xs), torch.stack([model(x) for x in xs]))


@torch.no_grad()
def test_vmap_with_randomness_different_draws_anew_for_every_input(place):
    torch.manual_seed(0)
    x = torch.randn(2, 5)
    model = place(nn.Linear(5, 4), load_profile("reram"), x)
    twice = vmap(model, randomness="different")(torch.stack([x, x]))
    assert not torch.equal(*twice)
    assert torch.equal(*vmap(model, randomness="same")(torch.stack([x, x])))


def test_forward_and_reverse_jacobians_are_those_of_row_by_row_autograd(precise):
    model, x = precise
    with reads(model, "off"):
        expected = torch.autograd.functional.jacobian(model, x)
        assert_close(jacrev(model)(x), expected)
        assert_close(jacfwd(model)(x), expected)


def test_jacobians_to_the_weights_agree_forward_and_reverse(precise):
    model, x = precise
    with reads(model, "off"):
        reverse, forward = (jac(lambda p: functional_call(model, p, (x[:1],)))(parameters(model)) for jac in (jacrev, jacfwd))
    for name, jacobian in reverse.items():
        assert_close(forward[name], jacobian)


def test_other_weights_through_a_functional_call_are_those_written_into_the_layer(precise):
    model, x = precise
    other = {name: p * 0.7 if p.ndim else p for name, p in parameters(model).items()}
    with reads(model, "off"):
        y = functional_call(model, other, (x,))
        assert not torch.equal(y, model(x))
        model.load_state_dict(other, strict=False)
        assert_close(y, model(x))


def test_vmap_of_grad_gives_the_gradient_of_every_sample(precise, profile):
    model, x = precise
    skip_where_torch_has_no_rule(model, profile)

    def loss(p, sample):
        return functional_call(model, p, (sample.unsqueeze(0),)).square().sum()

    with reads(model, "off"):
        together = vmap(grad(loss), in_dims=(None, 0))(parameters(model), x)
        for k, sample in enumerate(x):
            apart = torch.autograd.grad(model(sample.unsqueeze(0)).square().sum(), list(model.parameters()))
            for name, expected in zip(together, apart, strict=True):
                assert_close(together[name][k], expected)


# -- against finite differences ---------------------------------------------------------------------------------------------------------


def pinned(p):
    """At least one weight of every column, whichever axis the columns are: they are the largest, set the digital scale, and do not move.

    The gradient holds the scale still, finite differences would not.
    """
    mask = torch.zeros_like(p, dtype=torch.bool)
    if p.ndim > 1:
        i, j = torch.meshgrid(torch.arange(p.shape[0]), torch.arange(p.shape[1]), indexing="ij")
        mask.flatten(2 if p.ndim > 2 else 1).view(*p.shape[:2], -1)[..., 0] = (i + j) % min(p.shape[:2]) == 0
    return mask


@pytest.fixture
def differentiable(layer, smooth, place):
    """A layer without quantisers, as a function of input and weights; these are away from zero, where a pair of devices has a kink."""
    digital, x = layer
    digital, x = digital.double(), x.double()[:1]
    with torch.no_grad():
        for p in digital.parameters():
            p.copy_(p.sign() * torch.where(pinned(p), 1.0, 0.1 + 0.7 * torch.rand_like(p)))
    model = place(digital, smooth, x)
    names, weights = zip(*parameters(model).items(), strict=True)

    def run(x, *steps):
        moved = {name: p + step * ~pinned(p) for name, p, step in zip(names, weights, steps, strict=True)}
        with reads(model, "off"):
            return functional_call(model, moved, (x,))

    return run, [t.requires_grad_() for t in (x, *(torch.zeros_like(p) for p in weights))]


def test_first_derivatives_agree_with_finite_differences(differentiable):
    assert torch.autograd.gradcheck(*differentiable, fast_mode=True)


def test_second_derivatives_agree_with_finite_differences(differentiable):
    assert torch.autograd.gradgradcheck(*differentiable, fast_mode=True)


def test_second_derivatives_through_converters_are_those_of_the_composable_path(precise):
    """A Hessian by autograd twice, against forward over reverse, which takes the effects one by one; learned ranges ask for that."""
    model, x = precise
    learned = any(name.endswith("input_range") for name, _ in model.named_parameters())

    def loss(x):
        return model(x).pow(3).sum()

    with reads(model, "off"):
        with unfused() if learned else nullcontext():
            hessian = torch.autograd.functional.hessian(loss, x[:1])
        assert_close(hessian, jacfwd(jacrev(loss))(x[:1]))
