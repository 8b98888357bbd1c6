import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import analog_layers, calibrate_ranges, convert, describe, program, reads, to_digital
from galvanic.profile import Profile, load_profile
from galvanic.ranges import Calibrated, Learned
from galvanic.studies.moving import moved, on_chip, profile_of, with_ranges

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
FOUR_BITS, IDEAL = load_profile("generic-4bit"), load_profile("ideal")


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        h = self.into(x).unsqueeze(1).expand(-1, 4, -1)
        return self.out(self.memory(self.attention(h, h, h)[0])[0][:, -1])


class Named(nn.Module):
    """Names that are patterns to glob, one of which matches the other."""

    def __init__(self):
        super().__init__()
        self.names = ("a[1]", "a1", "b*", "b?")
        for k, name in enumerate(self.names):
            self.add_module(name, nn.Linear(6, 6, bias=bool(k % 2)))

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x).relu()
        return x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.shared = nn.Linear(6, 6)
        self.shared.weight = self.first.weight

    def forward(self, x):
        return self.shared(self.again(self.first(x)))


NETS = {
    "chain": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "one layer": lambda: nn.Linear(6, 3),
    "attention and recurrent": Attending,
    "special names": Named,
    "tied": Tied,
}


@pytest.fixture(params=NETS.values(), ids=NETS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return calibrate_ranges(convert(request.param().eval(), FOUR_BITS, chip=7), [X])


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def quiet(model: nn.Module) -> torch.Tensor:
    with reads(model, "off"):
        return model(X)


def test_moved_to_the_same_hardware_and_chip_it_gives_the_same(model):
    assert torch.equal(quiet(moved(model, lambda p: p, 7)), quiet(model))


def test_weights_and_ranges_stay_and_the_hardware_changes(model):
    before, there = state(model), quiet(model)
    copied = moved(model, lambda p: replace(p, name="other", output=p.output[1:]), 1000)
    assert same(state(copied), before)
    assert same(state(to_digital(copied)), state(to_digital(model)))
    assert {layer.profile.name for layer in analog_layers(copied).values()} == {"other"}
    assert {layer.chip.number for layer in analog_layers(copied).values()} == {1000}
    assert analog_layers(copied).keys() == analog_layers(model).keys()
    assert not torch.equal(quiet(copied), there)


def test_the_given_model_stays_as_it_is(model):
    before, there = state(model), quiet(model)
    copied = moved(model.train(), lambda p: replace(p, weight=()), 1000)
    with torch.no_grad():
        for p in (*copied.parameters(), *copied.buffers()):
            p.zero_()
    assert model.training
    assert not copied.training
    model.eval()
    assert same(state(model), before)
    assert torch.equal(quiet(model), there)
    assert {layer.profile for layer in analog_layers(model).values()} == {FOUR_BITS}


def test_each_layer_changes_its_own_hardware_and_digital_ones_stay_digital():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    eight = replace(FOUR_BITS, name="eight", input=(), output_range=Learned())
    model = calibrate_ranges(convert(net, {"0": FOUR_BITS, "2": eight}, chip=7), [X])
    copied = moved(model, lambda p: replace(p, name=f"new {p.name}"), 8)
    assert {name: layer.profile.name for name, layer in analog_layers(copied).items()} == {"0": "new generic-4bit", "2": "new eight"}
    assert [row["where"] for row in describe(copied)] == ["analog", "digital", "analog"]
    assert same(state(copied), state(model))


def test_a_side_that_loses_its_converters_has_no_range_and_one_that_keeps_them_has_the_old():
    model = calibrate_ranges(convert(nn.Linear(6, 3), FOUR_BITS, chip=7), [X])
    copied = moved(model, lambda p: replace(p, output=()), 8)
    assert copied.stored_range("output") is None
    assert torch.equal(copied.stored_range("input"), model.stored_range("input"))


def test_ranges_that_are_learned_are_kept_as_they_were_learned():
    model = calibrate_ranges(convert(nn.Linear(6, 3), replace(FOUR_BITS, input_range=Learned()), chip=7), [X])
    with torch.no_grad():
        model.input_range.fill_(0.123)
    assert moved(model, lambda p: p, 8).input_range == torch.tensor([0.123])


def test_a_model_that_is_not_calibrated_yet_is_refused():
    model = convert(nn.Linear(6, 3), Profile(name="p", input=FOUR_BITS.input, input_range=Calibrated()), chip=7)
    with pytest.raises(RuntimeError, match="input range is not calibrated yet"):
        moved(model, lambda p: p, 8)


def test_what_is_on_the_chip_is_every_layer_and_every_module_of_several_matrices_once():
    def names(net: nn.Module) -> list[str]:
        return list(on_chip(convert(net, IDEAL, chip=0)))

    assert names(NETS["chain"]()) == ["0", "3"]
    assert names(nn.Linear(6, 3)) == [""]
    assert names(Attending()) == ["into", "attention", "memory", "out"]
    assert names(Named()) == ["a[1]", "a1", "b*", "b?"]
    assert names(Tied()) == ["first", "shared"]
    assert profile_of(on_chip(convert(Attending(), FOUR_BITS, chip=0))["attention"]) == FOUR_BITS


def test_ranges_go_over_without_touching_anything_else():
    torch.manual_seed(0)
    first, second = (convert(nn.Linear(6, 3), FOUR_BITS, chip=7) for _ in range(2))
    calibrate_ranges(first, [X])
    before = copy.deepcopy(second.weight)
    assert with_ranges(second, first) is second
    assert torch.equal(second.weight, before)
    assert torch.equal(second.output_range, first.output_range)
    assert torch.isfinite(program(second, 3)(X)).all()
