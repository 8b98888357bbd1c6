"""State: what a checkpoint holds, what a copy shares, what a change of precision or device keeps."""

import copy

import pytest
import torch

from galvanic import convert, load, program, reads, save
from galvanic.physics import Gaussian
from galvanic.profile import Profile
from galvanic.ranges import Dynamic, Fixed


def ranges(profile):
    """The ranges that are state: those of a side with effects, neither found per vector nor fixed."""
    sides = (side for side in ("input", "output") if getattr(profile, side))
    return {f"{side}_range" for side in sides if not isinstance(getattr(profile, f"{side}_range"), Dynamic | Fixed)}


def quiet(model, x):
    with torch.no_grad(), reads(model, "off"):
        return model(x)


def noisy(model, x):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(x)


def emptied(model):
    """A copy whose parameters are zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


def test_the_keys_are_the_digital_ones_and_the_ranges(layer, profile):
    digital, _ = layer
    keys = set(convert(digital, profile, chip=3).state_dict())
    assert {key for key in keys if not key.endswith("_range")} == set(digital.state_dict())
    assert {key.rpartition(".")[2] for key in keys if key.endswith("_range")} == ranges(profile)


def test_a_digital_checkpoint_loads_strictly_and_the_ranges_stay(layer, profile, place):
    digital, x = layer
    analog, empty = place(digital, profile, x), emptied(digital)
    expected = quiet(analog, x)
    found = {key: value.clone() for key, value in analog.state_dict().items() if key.endswith("_range")}
    analog.load_state_dict(empty.state_dict(), strict=True)
    assert all(torch.equal(analog.state_dict()[key], value) for key, value in found.items())
    assert not torch.equal(quiet(analog, x), expected)
    analog.load_state_dict(digital.state_dict(), strict=True)
    assert torch.equal(quiet(analog, x), expected)


def test_the_state_dict_survives_torch_save_with_weights_only(layer, profile, place, tmp_path):
    digital, x = layer
    analog = place(digital, profile, x)
    torch.save(analog.state_dict(), tmp_path / "w.pt")
    other = convert(emptied(digital), profile, chip=3)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=True)
    assert torch.equal(noisy(other, x), noisy(analog, x))


def test_a_saved_model_comes_back_on_its_chip_with_its_bits(layer, profile, place, tmp_path):
    digital, x = layer
    analog = place(digital, profile, x)
    save(tmp_path / "m.st", analog)
    assert torch.equal(noisy(load(tmp_path / "m.st", emptied(digital)), x), noisy(analog, x))


def test_a_copy_is_on_the_same_chip_and_independent(analog):
    model, x = analog
    twin, before = copy.deepcopy(model), noisy(model, x)
    assert torch.equal(noisy(twin, x), before)
    program(twin, 4)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
    assert torch.equal(noisy(model, x), before)
    assert not torch.equal(noisy(twin, x), before)


def test_to_double_and_back_gives_the_same_bits(analog):
    model, x = analog
    before = quiet(model, x)
    assert quiet(model.double(), x.double()).dtype == torch.float64
    assert torch.equal(quiet(model.float(), x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_changes_a_chip_little_more_than_the_digital_layer(layer, smooth, place, dtype):
    """Conductances and scales are rounded besides weights and results: ten times the error is room for them."""
    digital, x = layer

    analog = place(digital, smooth, x)
    errors = []
    for model, run in ((analog, quiet), (copy.deepcopy(digital), lambda model, x: model(x).detach())):
        before = run(model, x)
        after = run(model.to(dtype), x.to(dtype))
        assert after.dtype == dtype
        errors.append((after.double() - before.double()).abs().max())
    assert errors[0] <= 10 * errors[1] + 1e-6


def test_after_bfloat16_the_devices_are_again_those_of_the_chip(layer, profile, place):
    digital, x = layer
    model = place(digital, profile, x).bfloat16()
    assert quiet(model, x.bfloat16()).isfinite().all()
    model.float().load_state_dict(place(digital, profile, x).state_dict())
    assert torch.equal(quiet(model, x), quiet(place(digital, profile, x), x))


def test_autocast_gives_the_precision_of_the_digital_layer(layer, profile, place):
    digital, x = layer
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = place(digital, profile, x)(x), digital(x)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    assert y.isfinite().all()


def test_autocast_changes_a_chip_little_more_than_the_digital_layer(layer, smooth, place):
    digital, x = layer
    analog, errors = place(digital, smooth, x), []
    for run in (lambda: quiet(analog, x), lambda: digital(x).detach()):
        with torch.autocast("cpu", torch.bfloat16):
            rough = run()
        errors.append((rough.double() - run().double()).abs().max())
    assert errors[0] <= 10 * errors[1]


def test_a_model_goes_to_meta_and_computes_shapes_there(analog):
    model, x = analog
    y = model(x)
    there = model.to("meta")(x.to("meta"))
    assert there.is_meta
    assert (there.shape, there.dtype) == (y.shape, y.dtype)


def filled(model, expected):
    model = model.to_empty(device="cpu")
    model.load_state_dict(expected.state_dict(), strict=True)
    return model


def test_a_model_converted_on_meta_and_filled_later_is_the_same_chip(layer, profile, place):
    digital, x = layer
    expected = place(digital, profile, x)
    model = filled(convert(copy.deepcopy(digital).to("meta"), profile, chip=3), expected)
    assert torch.equal(noisy(model, x), noisy(expected, x))


def test_a_model_converted_under_the_device_meta_and_filled_later_is_the_same_chip(layer, profile, place):
    digital, x = layer
    expected = place(digital, profile, x)
    with torch.device("meta"):
        model = convert(copy.deepcopy(digital).to("meta"), profile, chip=3)
    assert torch.equal(noisy(filled(model, expected), x), noisy(expected, x))


def test_an_anonymous_chip_on_meta_is_drawn_when_it_is_filled(layer):
    digital, x = layer
    profile = Profile(name="p", weight=(Gaussian(std=0.1, per="chip"),))
    model = convert(copy.deepcopy(digital).to("meta"), profile, chip=None)
    y = filled(model, digital)(x)
    assert y.isfinite().all()
    assert not torch.allclose(y, digital(x), atol=1e-4)
