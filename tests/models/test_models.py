"""Laws that hold for every network of other libraries, and what docs/models.md says of each of them."""

import copy
import re
from pathlib import Path

import pytest
import torch

from galvanic import convert, describe, load_profile, program, reads, to_digital
from galvanic.nn import Analog, analog_layers

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {m[1]: [set(re.findall(r"`([\w.]+)`", cell)) for cell in m[2].split("|")] for m in re.finditer(r"^\| (.+?) \|(.*)\|$", PAGE, re.M)}


@pytest.fixture(scope="module")
def pcm(network):
    """The network on chip 3 of the profile `pcm`."""
    return network.on_chip(load_profile("pcm"))


@torch.no_grad()
def quiet(network, model):
    with reads(model, "off"):
        return network.output(model)


@torch.no_grad()
def test_on_ideal_hardware_the_outputs_are_the_digital_ones_bit_for_bit(network):
    assert torch.equal(network.output(convert(network.digital, load_profile("ideal"), chip=3)), network.output(network.digital))


@torch.no_grad()
def test_back_from_a_chip_the_outputs_are_the_digital_ones_bit_for_bit(network, pcm):
    back = to_digital(pcm)
    assert not any(isinstance(module, Analog) for module in back.modules())
    assert torch.equal(network.output(back), network.output(network.digital))


def test_digital_weights_load_strictly_into_the_analog_network_and_its_own_into_the_digital_one(network, pcm):
    digital, analog = network.digital.state_dict(), pcm.state_dict()
    assert {key for key in analog if not key.endswith("_range")} == digital.keys()
    pcm.load_state_dict(digital, strict=True)
    network.digital.load_state_dict({key: value for key, value in analog.items() if key in digital}, strict=True)
    back = to_digital(pcm).state_dict()
    assert back.keys() == digital.keys()
    assert all(torch.equal(back[key], value) for key, value in digital.items())


def test_another_chip_computes_something_else_and_the_same_number_the_same(network, pcm):
    first = quiet(network, pcm)
    assert first.isfinite().all()
    assert not torch.equal(quiet(network, program(pcm, 4)), first)
    assert torch.equal(quiet(network, program(pcm, 3)), first)


def test_one_backward_on_a_chip_reaches_the_parameters_that_it_reaches_digitally_with_finite_gradients(network):
    digital, model = copy.deepcopy(network.digital), network.on_chip(load_profile("hwa"))
    for each in (digital, model):
        network.output(each).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in gradients.values())
    ranges = {f"{name}.input_range" for name in _called(network, model)}
    assert gradients.keys() == {name for name, p in digital.named_parameters() if p.grad is not None} | ranges


def test_describe_tells_of_every_parameter_once_with_a_reason(network, pcm):
    rows = describe(pcm)
    own = [p for module in network.digital.modules() for p in module.parameters(recurse=False)]  # a tied one by each of its layers
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in own)
    assert len({row["layer"] for row in rows}) == len(rows)
    assert all(row["why"] for row in rows)
    assert {row["layer"] for row in rows if row["where"] == "analog"} == analog_layers(pcm).keys()


def test_what_stays_digital_is_what_the_page_says(network, pcm):
    assert {row["type"] for row in describe(pcm) if row["where"] == "digital"} == ROWS[network.name][0]


def test_the_analog_layers_whose_weight_the_network_uses_without_calling_them_are_those_that_the_page_names(network, pcm):
    idle = analog_layers(pcm).keys() - _called(network, pcm)
    assert {name.rpartition(".")[2] for name in idle} == ROWS[network.name][1]


@torch.no_grad()
def _called(network, model):
    """Names of the analog layers that a forward pass calls."""
    called = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in analog_layers(model).items()]
    network.output(model)
    for hook in hooks:
        hook.remove()
    return called
