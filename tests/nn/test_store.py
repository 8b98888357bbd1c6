import json
import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from galvanic.nn import ColumnDrift, GlobalDrift, age, analog_layers, at, calibrate_ranges, compensate, convert, load, program, reads, save
from galvanic.physics import Conditions
from galvanic.profile import load_profile, profile_names
from galvanic.ranges import Learned, MinimumError
from galvanic.storage import read_tree, write_tree
from galvanic.train import Budget, Fit, Recipe


def digital() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 2, bias=False))
    return nn.Sequential(*layers).eval()


IMAGES = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def on_chip(profile="pcm", *, chip: int = 7) -> nn.Module:
    model = convert(digital(), load_profile(profile) if isinstance(profile, str) else profile, chip=chip)
    return calibrate_ranges(model, [IMAGES])


@torch.no_grad()
def still(model: nn.Module) -> torch.Tensor:
    with reads(model, "off"):
        return model(IMAGES)


def assert_the_same_model(a: nn.Module, b: nn.Module) -> None:
    assert torch.equal(still(a), still(b))
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    for one, other in zip(analog_layers(a).values(), analog_layers(b).values(), strict=True):
        assert (one.profile, one.chip, one.conditions, one.name) == (other.profile, other.chip, other.conditions, other.name)


PLACES = {
    "just converted": lambda m: m,
    "another write": lambda m: program(m, 9, write=3),
    "aged": lambda m: age(m, 86400.0),
    "another snapshot": lambda m: age(m, 3600.0, snapshot=2),
    "hot and noisy": lambda m: at(m, Conditions(age_s=0.1, temperature_K=350.0, time_s=1e-3, supply_V=0.9, noise_level=2.5), snapshot=1),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_model_comes_back_on_the_same_chip_with_the_same_bits(tmp_path, place):
    model = PLACES[place](on_chip())
    save(tmp_path / "m.safetensors", model)
    assert_the_same_model(model, load(tmp_path / "m.safetensors", digital()))


@pytest.mark.parametrize("profile", profile_names())
def test_every_shipped_profile_comes_back(tmp_path, profile):
    model = age(on_chip(profile), 3600.0)
    save(str(tmp_path / "m.safetensors"), model)
    assert_the_same_model(model, load(str(tmp_path / "m.safetensors"), digital()))


def test_what_differs_between_chips_survives_the_way_through_the_file(tmp_path):
    """The outputs of two chips differ, else the tests above say little."""
    a, b = on_chip(chip=1), on_chip(chip=2)
    assert not torch.equal(still(a), still(b))
    assert not torch.equal(still(a), still(age(on_chip(chip=1), 86400.0)))
    save(tmp_path / "a.safetensors", a)
    assert not torch.equal(still(load(tmp_path / "a.safetensors", digital())), still(b))


@pytest.mark.parametrize("compensation", [GlobalDrift(), ColumnDrift()], ids=lambda c: c.name)
def test_a_drift_compensation_survives(tmp_path, compensation):
    aged = age(on_chip(), 86400.0)
    before = still(aged)
    compensate(aged, compensation)
    assert not torch.equal(before, still(aged))
    save(tmp_path / "m.safetensors", aged)
    assert_the_same_model(aged, load(tmp_path / "m.safetensors", digital()))


def test_learned_ranges_survive_and_go_on_learning(tmp_path):
    profile = replace(load_profile("pcm"), input_range=Learned(), output_range=MinimumError())
    model = on_chip(profile)
    save(tmp_path / "m.safetensors", model)
    back = load(tmp_path / "m.safetensors", digital())
    assert_the_same_model(model, back)
    back(IMAGES).sum().backward()
    assert all(isinstance(layer.input_range, nn.Parameter) and layer.input_range.grad is not None for layer in analog_layers(back).values())


def test_layers_left_digital_and_layers_on_other_hardware_come_back_so(tmp_path):
    model = convert(digital(), {"0": load_profile("reram"), "4": load_profile("pcm"), "5": None}, chip=3)
    calibrate_ranges(model, [IMAGES])
    save(tmp_path / "m.safetensors", model)
    back = load(tmp_path / "m.safetensors", digital())
    assert {name: layer.profile.name for name, layer in analog_layers(back).items()} == {"0": "reram", "4": "pcm"}
    assert_the_same_model(model, back)


def test_a_model_that_is_one_layer_and_names_with_brackets_come_back(tmp_path):
    save(tmp_path / "one.safetensors", convert(nn.Linear(16, 2), load_profile("ideal"), chip=0))
    assert list(analog_layers(load(tmp_path / "one.safetensors", nn.Linear(16, 2)))) == [""]

    def named() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2), "*": nn.Linear(2, 2)})

    profiles = {"a[[]0]": load_profile("pcm"), "a0": load_profile("reram"), "[*]": load_profile("hwa")}
    save(tmp_path / "named.safetensors", convert(named(), profiles, chip=0))
    back = load(tmp_path / "named.safetensors", named())
    assert {name: layer.profile.name for name, layer in analog_layers(back).items()} == {"a[0]": "pcm", "a0": "reram", "*": "hwa"}


def test_tied_weights_stay_tied(tmp_path):
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    save(tmp_path / "m.safetensors", convert(tied(), load_profile("ideal"), chip=0))
    back = load(tmp_path / "m.safetensors", tied())
    assert back[0].weight is back[2].weight


def test_load_takes_an_analog_model_and_leaves_the_given_one_alone(tmp_path):
    model = on_chip("reram", chip=1)
    with torch.no_grad():
        model[4].weight.mul_(2)
    save(tmp_path / "m.safetensors", model)
    given = on_chip("pcm", chip=2)
    before = still(given).clone()
    assert_the_same_model(model, load(tmp_path / "m.safetensors", given))
    assert torch.equal(before, still(given))


def test_load_does_not_move_the_global_stream(tmp_path):
    save(tmp_path / "m.safetensors", on_chip())
    model = digital()
    before = torch.get_rng_state()
    load(tmp_path / "m.safetensors", model)
    assert torch.equal(before, torch.get_rng_state())


def test_equal_models_give_equal_files(tmp_path):
    save(tmp_path / "a.safetensors", on_chip())
    save(tmp_path / "b.safetensors", on_chip())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------------------------------- refusals


def refusal(path, model) -> str:
    with pytest.raises(ValueError, match=str(path)) as caught:
        load(path, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_anonymous_chip_is_refused_before_anything_is_written(tmp_path):
    model = program(on_chip())
    with pytest.raises(ValueError, match=r"0 sits on an anonymous chip.*program\(model, chip=\.\.\.\)"):
        save(tmp_path / "m.safetensors", model)
    assert os.listdir(tmp_path) == []


def test_a_digital_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no analog layer: convert\("):
        save(tmp_path / "m.safetensors", digital())


def linear(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


OTHERS = {
    "another width": linear(4, 5, 2),
    "another depth": linear(4, 3, 3, 2),
    "fewer layers": linear(4, 3),
    "no bias": nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2)),
    "other names": nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 2)}),
    "other layers": nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(3)),
    "nothing to convert": nn.ReLU(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_architecture_is_refused_and_the_file_named(tmp_path, other):
    path = tmp_path / "m.safetensors"
    save(path, convert(linear(4, 3, 2), load_profile("ideal"), chip=0))
    assert "does not fit this model" in refusal(path, OTHERS[other])


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, convert(linear(2, 2), load_profile("ideal"), chip=0))
    raw = path.read_bytes()
    for place in range(0, len(raw), 97):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        refusal(path, linear(2, 2))
    path.write_bytes(raw[:-1])
    assert "damaged" in refusal(path, linear(2, 2))
    with pytest.raises(FileNotFoundError, match="nosuch"):
        load(tmp_path / "nosuch", linear(2, 2))


def test_a_checkpoint_of_training_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    budget = Budget(epochs=1)
    ideal = load_profile("ideal")
    fit = Fit(
        build=lambda: linear(2, 2),
        profile=ideal,
        recipe=Recipe(name="d", summary=""),
        images=x,
        labels=y,
        budget=budget,
        number=0,
        path=path,
    )
    list(fit.run())
    assert "not a saved model" in refusal(path, linear(2, 2))


WRONG = {
    "another format": {"format": 2},
    "a list": [1],
    "no layers": {"layers": None},
    "no state": {"state": None},
    "a layer that is a number": {"layers": {"0": 7}},
    "a profile that is a number": {"layers": {"0": {"profile": 7, "chip": {}, "conditions": {}, "gain": None}}},
    "unknown key of the chip": {"layers": {"0": {"chip": {"nosuch": 1}}}},
    "negative age": {"layers": {"0": {"conditions": {"age_s": -1.0}}}},
    "gain that is text": {"layers": {"0": {"gain": "loud"}}},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_whole_file_with_wrong_content_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "m.safetensors"
    save(path, convert(linear(2, 2), load_profile("ideal"), chip=0))
    tree = read_tree(path)
    wrong = WRONG[name]
    if isinstance(wrong, dict):
        merged = json.loads(json.dumps(tree["layers"])) if wrong.get("layers") else {}
        for layer, values in (wrong.get("layers") or {}).items():
            merged[layer] = merged[layer] | values if isinstance(values, dict) else values
        wrong = tree | wrong | ({"layers": merged} if merged else {})
    write_tree(path, wrong)
    assert str(path) in refusal(path, linear(2, 2))
