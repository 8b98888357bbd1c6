"""Networks of every kind go to a chip and back without a trace, and on ideal hardware they compute the same bits."""

from importlib import import_module

import pytest
import torch

from galvanic import calibrate_ranges, convert, load_profile, profile_names, to_digital
from galvanic.nn import analog_layers

ARCHITECTURES = import_module("architectures").ARCHITECTURES


@pytest.fixture(params=ARCHITECTURES)
def network(request):
    torch.manual_seed(0)
    build, data = ARCHITECTURES[request.param]
    return build().eval(), data()


def seeded(model, x):
    torch.manual_seed(1)
    return model(x)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_at_least_thirty_architectures_are_tried():
    assert len(ARCHITECTURES) >= 30


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("with_gradient", [True, False], ids=["with gradient", "without"])
def test_on_ideal_hardware_the_bits_are_those_of_the_digital_network(network, mode, with_gradient):
    model, x = network
    analog = convert(model, load_profile("ideal"), chip=0)
    assert analog_layers(analog)
    with torch.set_grad_enabled(with_gradient):
        assert torch.equal(seeded(analog.train(mode), x), seeded(model.train(mode), x))


def test_gradients_on_ideal_hardware_are_those_of_the_digital_network(network):
    model, x = network
    gradients = []
    for net in (model, convert(model, load_profile("ideal"), chip=0)):
        seeded(net, x).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0]
    assert same(*gradients)


@pytest.mark.parametrize("name", profile_names())
def test_it_loads_strictly_both_ways_and_comes_back_bit_for_bit(network, name):
    model, x = network
    state, expected = {k: v.clone() for k, v in model.state_dict().items()}, seeded(model, x)
    analog = convert(model, load_profile(name), chip=3)
    analog.load_state_dict(state, strict=True)
    back = to_digital(analog)
    assert same(back.state_dict(), state)
    assert torch.equal(seeded(back, x), expected)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    model.load_state_dict({k: v for k, v in analog.state_dict().items() if not k.endswith("_range")}, strict=True)
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("name", ["hwa", "pcm"])
def test_calibrated_it_computes_on_a_chip_and_trains_every_parameter_that_it_trained_before(network, name):
    model, x = network
    seeded(model, x).square().sum().backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None}
    analog = calibrate_ranges(convert(model, load_profile(name), chip=3), [x])
    analog.zero_grad()
    y = seeded(analog, x)
    assert y.isfinite().all()
    y.square().sum().backward()
    assert trained <= {key for key, p in analog.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
