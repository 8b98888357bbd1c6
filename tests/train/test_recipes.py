import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from galvanic.nn import convert
from galvanic.profile import load_profile
from galvanic.ranges import Calibrated, Dynamic, Fixed, Learned, MinimumError
from galvanic.studies.settings import Settings
from galvanic.train import RECIPES, Recipe, Training, clip_weights
from galvanic.train.recipes import YEAR_S

PCM = load_profile("pcm")


def test_the_recipes_of_the_main_job_are_those_that_settings_take():
    assert tuple(RECIPES) == ("digital", "ptq", "noise")
    assert all(name == recipe.name and recipe.summary for name, recipe in RECIPES.items())
    (annotation,) = (a for a in get_args(Settings.model_fields["recipes"].annotation))
    assert set(get_args(annotation)) == set(RECIPES)


def test_only_the_noise_recipe_trains_on_hardware_and_begins_without():
    assert [name for name, recipe in RECIPES.items() if recipe.training.hardware_from is not None] == ["noise"]
    assert 0 < RECIPES["noise"].training.hardware_from < 1
    assert RECIPES["digital"].training == RECIPES["ptq"].training  # so they share their weights
    assert RECIPES["noise"].training.oldest_s == YEAR_S


# ------------------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
@pytest.mark.parametrize("given", [Dynamic(), Fixed(value=12.0)], ids=["dynamic", "fixed"])
def test_ranges_that_the_hardware_decides_stay(recipe, given):
    profile = replace(PCM, input_range=given, output_range=given)
    assert recipe.adapt(profile) == profile


@pytest.mark.parametrize("given", [Calibrated(quantile=0.9), MinimumError(), Learned()], ids=lambda r: type(r).__name__)
def test_ranges_that_are_left_to_data_are_the_recipes(given):
    profile = replace(PCM, input_range=given, output_range=Fixed(value=3.0))
    found = {name: recipe.adapt(profile) for name, recipe in RECIPES.items()}
    assert {name: p.input_range for name, p in found.items()} == {"digital": Calibrated(), "ptq": MinimumError(), "noise": Learned()}
    assert all(p == replace(profile, input_range=p.input_range) for p in found.values())  # nothing else changed


def test_a_recipe_without_ranges_keeps_the_profiles():
    assert Recipe(name="r", summary="").adapt(PCM) == PCM


# ------------------------------------------------------------------------------------------------------------------- the schedule


def test_noise_is_zero_before_the_switch_then_rises_to_one_and_stays():
    training = Training(hardware_from=0.5, ramp=0.2)
    shares = [0.0, 0.25, 0.4999, 0.5, 0.55, 0.6, 0.7, 0.9, 1.0]
    assert [training.noise_level(p) for p in shares] == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 1, 1, 1], abs=1e-12)


def test_noise_never_falls_and_never_exceeds_the_hardwares():
    for training in (RECIPES["noise"].training, Training(hardware_from=0.0, ramp=1.0), Training(hardware_from=0.3)):
        levels = [training.noise_level(k / 1000) for k in range(1001)]
        assert levels == sorted(levels)
        assert (levels[0], levels[-1]) == (0.0 if training.ramp or training.hardware_from else 1.0, 1.0)


def test_without_a_ramp_noise_is_whole_at_once():
    assert [Training(hardware_from=0.5).noise_level(p) for p in (0.49, 0.5, 1.0)] == [0.0, 1.0, 1.0]


def test_digital_training_has_no_noise():
    assert {RECIPES["digital"].training.noise_level(k / 10) for k in range(11)} == {0.0}


@pytest.mark.parametrize("oldest_s", [10.0, 3600.0, YEAR_S])
def test_ages_are_log_uniform_from_nothing_to_the_oldest(oldest_s):
    """The logarithm of (age + 20 s) / 20 s is uniform: u of the ages lie below age_s(u), and u is what the logarithm says."""
    training = Training(oldest_s=oldest_s)
    grid = [k / 100 for k in range(101)]
    ages = [training.age_s(u) for u in grid]
    assert ages[0] == 0.0
    assert ages[-1] == pytest.approx(oldest_s, rel=1e-12)
    assert ages == sorted(set(ages))
    assert [math.log1p(a / 20) / math.log1p(oldest_s / 20) for a in ages] == pytest.approx(grid, abs=1e-12)


def test_every_drawn_age_is_within_its_bounds():
    training = RECIPES["noise"].training
    u = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    ages = [training.age_s(x) for x in [*u, 1 - 2**-24]]  # the last: the largest that torch.rand gives
    assert 0 <= min(ages) < 20
    assert 0.5 * YEAR_S < max(ages) <= YEAR_S


def test_without_an_oldest_age_every_chip_is_fresh():
    assert {Training().age_s(u) for u in (0.0, 0.5, 0.999)} == {0.0}


@pytest.mark.parametrize(
    "wrong", [{"hardware_from": 1.5}, {"hardware_from": -0.1}, {"ramp": 2.0}, {"clip_sigmas": 0.0}, {"oldest_s": -1.0}, {"ramp": math.nan}]
)
def test_a_training_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"Training\.{next(iter(wrong))} = "):
        Training(**wrong)


# ------------------------------------------------------------------------------------------------------------------- clipping


def test_weights_are_clipped_at_multiples_of_their_layers_standard_deviation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 20))
    with torch.no_grad():
        model[0].weight.mul_(10)
    model = convert(model, {"0": load_profile("ideal"), "2": load_profile("ideal")}, chip=0)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    clip_weights(model, 1.5)
    for name, w in model.state_dict().items():
        if name in ("0.weight", "2.weight"):
            limit = 1.5 * before[name].std(correction=0)
            assert torch.equal(w, before[name].clamp(-limit, limit))
            assert (w != before[name]).float().mean() > 0.01
        else:
            assert torch.equal(w, before[name])


def test_digital_layers_of_an_analog_model_are_not_clipped():
    model = convert(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), {"0": load_profile("ideal")}, chip=0)
    before = model[1].weight.clone()
    clip_weights(model, 0.1)
    assert torch.equal(model[1].weight, before)
