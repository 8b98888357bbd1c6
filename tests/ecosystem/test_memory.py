"""Memory: any layout of the input will do, and what the caller holds is left alone."""

import copy

import pytest
import torch
from torch import nn

from galvanic import reads

LAYOUTS = {
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


def numbers_and_gradients(model, x):
    torch.manual_seed(1)
    x = x.requires_grad_() if x.is_leaf else x
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_the_input_gives_the_numbers_of_the_contiguous_one(precise, layout):
    model, x = precise
    x = layout(x)
    with reads(model, "off"):
        for given, plain in zip(numbers_and_gradients(model, x), numbers_and_gradients(model, x.clone().contiguous()), strict=True):
            torch.testing.assert_close(given, plain, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            torch.testing.assert_close(model(x), model(x.contiguous()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_read_leaves_its_input_its_weights_and_earlier_results_alone(analog, with_gradient):
    model, x = analog
    given, state = x.clone(), copy.deepcopy(model.state_dict())
    with torch.set_grad_enabled(with_gradient):
        first = model(x)
        kept = first.clone()
        model(x)
    assert torch.equal(first, kept)
    assert torch.equal(x, given)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_what_is_done_in_place_to_a_result_does_not_reach_the_gradient(analog, profile):
    model, x = analog
    if profile.name == "ideal" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
        pytest.skip("torch's own recurrent layers, which ideal hardware leaves in place, keep their result for the gradient")
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(1)
        y = nn.functional.relu(model(x.requires_grad_()), inplace=inplace)
        gradients.append(torch.autograd.grad((y + 1).square().sum(), [x, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_empty_batch_gives_an_empty_result(analog):
    model, x = analog
    y = model(x[:0])
    assert y.shape == (0, *model(x).shape[1:])
    y.sum().backward()
