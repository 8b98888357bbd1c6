import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import analog_layers, calibrate_ranges, convert, program, reads
from galvanic.physics import Gaussian, Quantize, Thermal
from galvanic.profile import Profile, load_profile, profile_names
from galvanic.studies.conditions import AGES, BITS, FLUCTUATING, LEVELS, RECALIBRATED, STATIC, TEMPERATURES, Condition
from galvanic.studies.moving import moved

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
ON = {name: load_profile(name) for name in profile_names()}
every_profile = pytest.mark.parametrize("profile", ON.values(), ids=ON)


def placed_on(profile: Profile, chip: int = 7) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for _ in range(20):
        net(X)
    return calibrate_ranges(convert(net.eval(), profile, chip=chip), [X])


def measured(condition: Condition, model: nn.Module, chip: int = 1000) -> torch.Tensor:
    return condition.scores(condition.place(model, chip, [X]), X, 20)


@pytest.fixture
def model() -> nn.Module:
    return placed_on(ON["generic-4bit"])


# ------------------------------------------------------------------------------------------------------------------- which noise


@every_profile
def test_chip_noise_alone_gives_the_same_at_every_read(profile):
    placed = Condition(name="", noise="chip").place(placed_on(profile), 1000, [])
    torch.manual_seed(1)
    first = placed(X)
    torch.manual_seed(2)
    assert torch.equal(first, placed(X))


@every_profile
def test_read_noise_alone_gives_the_same_on_every_chip(profile):
    condition, model = Condition(name="", noise="read"), placed_on(profile)
    placed = [condition.place(model, chip, []) for chip in (1000, 1001)]
    with reads(placed[0], "off"), reads(placed[1], "off"):
        assert torch.equal(placed[0](X), placed[1](X))


def test_both_noises_are_there_where_they_are_asked_for(model):
    for condition in (Condition(name=""), Condition(name="", noise="chip")):
        placed = [condition.place(model, chip, []) for chip in (1000, 1001)]
        with reads(placed[0], "off"), reads(placed[1], "off"):
            assert not torch.equal(placed[0](X), placed[1](X))
    for condition in (Condition(name=""), Condition(name="", noise="read")):
        placed = condition.place(model, 1000, [])
        assert not torch.equal(placed(X), placed(X))


@every_profile
def test_level_0_is_hardware_whose_every_random_effect_was_taken_out(profile):
    model = placed_on(profile)
    without = Condition(name="", noise="chip").hardware(Condition(name="", noise="read").hardware(profile))
    assert all(e.per is None or isinstance(e, Quantize) for side in ("input", "weight", "output") for e in getattr(without, side))
    quiet = Condition(name="", level=0.0).place(model, 1000, [])
    torch.testing.assert_close(quiet(X), program(moved(model, lambda _: without, 3), 3)(X))
    assert torch.equal(quiet(X), Condition(name="", level=0.0).place(model, 1001, [])(X))


def test_noise_is_proportional_to_its_level():
    """Of a linear layer, with the same draws."""
    profile = Profile(name="p", weight=(Gaussian(std=0.1, per="chip"),))
    model = convert(nn.Linear(6, 4), profile, chip=0)
    quiet, one, three = (Condition(name="", level=level).place(model, 1000, [])(X) for level in (0.0, 1.0, 3.0))
    torch.testing.assert_close(three - quiet, 3 * (one - quiet))


# ------------------------------------------------------------------------------------------------------------------- what else


def test_bits_are_those_of_every_converter_and_quantised_weight_and_nothing_else_changes():
    profile = ON["generic-4bit"]
    for bits in (2, 6):
        changed = Condition(name="", bits=bits).hardware(profile)
        found = [e.bits for side in ("input", "weight", "output") for e in getattr(changed, side) if isinstance(e, Quantize)]
        assert found == [bits] * 3
        assert Condition(name="", bits=4).hardware(changed) == profile
    assert Condition(name="").hardware(profile) == profile


def test_bits_leave_a_quantiser_of_a_fixed_step_alone():
    profile = Profile(name="p", input=(Quantize(step=0.125), Quantize(bits=8)))
    assert Condition(name="", bits=3).hardware(profile).input == (Quantize(step=0.125), Quantize(bits=3))


def test_bits_reach_the_layers(model):
    noiseless = [Condition(name="", level=0.0, bits=bits) for bits in (2, 4, 12)]
    coarse, same, fine = (measured(condition, model) for condition in noiseless)
    digital = measured(Condition(name="", level=0.0), model)
    assert torch.equal(same, digital)  # it has four
    exact = moved(model, lambda p: replace(p, input=(), weight=(), output=()), 0)(X)
    errors = [(y - exact).norm() for y in (coarse, same, fine)]
    assert errors[0] > 2 * errors[1] > 8 * errors[2]


@pytest.mark.parametrize("changes", [{"age_s": 3600.0}, {"temperature_K": 350.0}, {"level": 2.0}], ids=str)
def test_age_temperature_and_level_reach_every_layer(model, changes):
    placed = Condition(name="", **changes).place(model, 1000, [])
    reached = {"age_s": 0.0, "temperature_K": 300.0, "noise_level": 1.0} | {
        k.replace("level", "noise_level"): v for k, v in changes.items()
    }
    for layer in analog_layers(placed).values():
        assert {key: float(getattr(layer.conditions, key)) for key in reached} == reached
        assert layer.chip.number == 1000


def test_an_old_chip_has_drifted():
    model = placed_on(ON["pcm"])
    young, old = (measured(Condition(name="", noise="chip", age_s=age_s), model) for age_s in (0.0, 3e7))
    assert old.std() < 0.9 * young.std()


def test_thermal_noise_rises_with_the_root_of_the_temperature():
    johnson = Thermal(resistance_ohm=1e3, bandwidth_Hz=1e9, full_scale_A=1e-6)
    model = convert(nn.Linear(6, 4), Profile(name="p", output=(johnson,)), chip=0)
    exact, noisy = measured(Condition(name="", level=0.0), model), []
    for kelvin in (300.0, 1200.0):
        torch.manual_seed(0)
        noisy.append(measured(Condition(name="", temperature_K=kelvin), model))
    torch.testing.assert_close(noisy[1] - exact, 2 * (noisy[0] - exact), rtol=1e-4, atol=1e-6)
    assert (noisy[0] - exact).std() > 0.01


def test_the_level_of_reads_fluctuates_from_image_to_image():
    r"""Noise of N(0, s^2) times |1 + theta e| has the variance s^2 (1 + theta^2) over images."""
    model = convert(nn.Linear(6, 4), Profile(name="p", output=(Gaussian(std=0.1),)), chip=0)
    same = X[:1].expand(20_000, 6)
    exact, spread = measured(Condition(name="", level=0.0), model)[:1], {}
    torch.manual_seed(0)
    for theta in (0.0, 1.0):
        condition = Condition(name="", theta=theta)
        noise = condition.scores(condition.place(model, 1000, []), same, 4096) - exact
        spread[theta] = float(noise.square().mean())
    assert spread[1.0] / spread[0.0] == pytest.approx(2.0, rel=0.05)  # 80,000 draws, of which 20,000 levels
    assert all(layer.levels is None for layer in analog_layers(model).values())


def test_recalibration_renews_the_statistics_of_the_copy_alone(model):
    before = copy.deepcopy(model.state_dict())
    raw, renewed = (Condition(name="", level=2.0, recalibrated=yes).place(model, 1000, [X]) for yes in (False, True))
    assert torch.equal(raw[1].running_mean, before["1.running_mean"])
    assert not torch.equal(renewed[1].running_mean, before["1.running_mean"])
    assert not torch.equal(renewed[1].running_var, before["1.running_var"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(renewed.state_dict()[key], value)


def test_recalibration_of_a_network_without_statistics_changes_nothing():
    for net in (nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False))):
        model = calibrate_ranges(convert(net, ON["generic-4bit"], chip=0), [X])
        raw, renewed = (measured(Condition(name="", noise="chip", recalibrated=yes), model) for yes in (False, True))
        assert torch.equal(raw, renewed)


def test_a_placed_model_answers_in_evaluation_mode_whatever_the_given_one_was_in(model):
    assert not any(m.training for m in Condition(name="").place(model.train(), 1000, []).modules())
    assert model.training


def test_scores_are_those_of_all_images_in_order_whatever_the_batch(model):
    placed = Condition(name="", noise="chip").place(model, 1000, [])
    whole = placed(X)
    for batch in (1, 20, 48, 100):
        torch.testing.assert_close(Condition(name="").scores(placed, X, batch), whole)
    assert not Condition(name="").scores(placed, X, 20).requires_grad


# ------------------------------------------------------------------------------------------------------------------- the lists


def test_every_condition_has_a_name_of_its_own():
    names = [c.name for c in (*LEVELS, *RECALIBRATED, *STATIC, *FLUCTUATING, *BITS, *AGES, *TEMPERATURES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "wrong", [{"level": -1.0}, {"level": float("nan")}, {"theta": -0.1}, {"bits": 1}, {"bits": 17}, {"age_s": -1.0}, {"temperature_K": 0.0}]
)
def test_a_condition_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"Condition\.{next(iter(wrong))}"):
        Condition(name="", **wrong)
