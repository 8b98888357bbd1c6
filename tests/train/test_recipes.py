import math
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from galvanic.nn import convert
from galvanic.profile import load_profile
from galvanic.ranges import Calibrated, Dynamic, Fixed, Learned, MinimumError
from galvanic.train import (
    LSQ,
    MAIN,
    RECIPES,
    AdaRound,
    Alignment,
    Blocks,
    Constant,
    Cosine,
    Distillation,
    Divergence,
    Fluctuation,
    Grid,
    ParametricNoise,
    Ramp,
    Recipe,
    SharpnessAware,
    SignalRange,
    Training,
    WeightPrecision,
    WriteRegularity,
    ablations,
    clip_weights,
)
from galvanic.train.recipes import YEAR_S

PCM = load_profile("pcm")


def test_every_recipe_has_a_name_of_its_own_and_a_sentence():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert all(recipe.summary.endswith(".") and len(recipe.summary) < 250 for recipe in RECIPES.values())
    assert MAIN == ("digital", "ptq", "noise")
    assert set(MAIN) < set(RECIPES)


def test_recipes_with_the_same_name_less_or_more_are_different_things():
    assert len({(r.training, r.rounding, r.input_range, r.output_range) for r in RECIPES.values()}) == len(RECIPES)


def test_recipes_that_round_afterwards_share_the_weights_of_digital_training():
    for name in ("digital", "ptq", "ptq-mse", "adaround"):
        assert RECIPES[name].training == Training()


def test_only_the_noise_recipe_of_the_main_job_trains_on_hardware_and_begins_without():
    assert [name for name in MAIN if RECIPES[name].training.hardware_from is not None] == ["noise"]
    assert 0 < RECIPES["noise"].training.hardware_from < 1
    assert RECIPES["noise"].training.oldest_s == YEAR_S


def test_recipes_of_the_studies_that_train_on_chips_begin_there_at_the_same_step_and_learn_their_ranges():
    on_chips = [r for name, r in RECIPES.items() if name not in MAIN and r.training.hardware_from is not None]
    assert len({r.training.hardware_from for r in on_chips}) == 1
    assert {r.input_range for r in on_chips} == {r.output_range for r in on_chips} == {Learned()}
    assert len(on_chips) > 10


# ------------------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
@pytest.mark.parametrize("given", [Dynamic(), Fixed(value=12.0)], ids=["dynamic", "fixed"])
def test_ranges_that_the_hardware_decides_stay(recipe, given):
    profile = replace(PCM, input_range=given, output_range=given)
    assert recipe.adapt(profile) == profile


@pytest.mark.parametrize("given", [Calibrated(quantile=0.9), MinimumError(), Learned()], ids=lambda r: type(r).__name__)
def test_ranges_that_are_left_to_data_are_the_recipes(given):
    profile = replace(PCM, input_range=given, output_range=Fixed(value=3.0))
    found = {name: RECIPES[name].adapt(profile) for name in MAIN}
    assert {name: p.input_range for name, p in found.items()} == {"digital": Calibrated(), "ptq": MinimumError(), "noise": Learned()}
    assert all(p == replace(profile, input_range=p.input_range) for p in found.values())  # nothing else changed


def test_a_recipe_without_ranges_keeps_the_profiles():
    assert Recipe(name="r", summary="").adapt(PCM) == PCM


# ------------------------------------------------------------------------------------------------------------------- the schedule


def test_noise_is_zero_before_the_switch_then_rises_to_one_and_stays():
    training = Training(hardware_from=0.5, schedule=Ramp(over=0.2))
    shares = [0.0, 0.25, 0.4999, 0.5, 0.55, 0.6, 0.7, 0.9, 1.0]
    assert [training.noise_level(p) for p in shares] == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 1, 1, 1], abs=1e-12)


def test_noise_never_falls_and_never_exceeds_the_hardwares():
    for training in (RECIPES["noise"].training, Training(hardware_from=0.0, schedule=Ramp(over=1.0)), Training(hardware_from=0.3)):
        levels = [training.noise_level(k / 1000) for k in range(1001)]
        assert levels == sorted(levels)
        assert (levels[0], levels[-1]) == (0.0, 1.0)


def test_without_a_ramp_noise_is_whole_at_once():
    assert [Training(hardware_from=0.5).noise_level(p) for p in (0.49, 0.5, 1.0)] == [0.0, 1.0, 1.0]


def test_any_schedule_runs_over_the_steps_on_chips_and_brings_its_spread():
    grid = Grid(shares=(0.0, 0.5), means=(2.0, 1.0), stds=(0.0, 0.4))
    training = Training(hardware_from=0.5, schedule=grid)
    assert [training.noise_level(p) for p in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 2, 1.5, 1])
    assert [training.noise_spread(p) for p in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0, 0.2, 0.4])
    assert Training(hardware_from=0.2, schedule=Cosine(over=0.4)).noise_level(0.4) == pytest.approx(0.5)
    assert Training().noise_spread(0.5) == 0.0


def test_digital_training_has_no_noise():
    assert {Training().noise_level(k / 10) for k in range(11)} == {0.0}


@pytest.mark.parametrize("oldest_s", [10.0, 3600.0, YEAR_S])
def test_ages_are_log_uniform_from_nothing_to_the_oldest(oldest_s):
    """The logarithm of (age + 20 s) / 20 s is uniform: u of the ages lie below age_s(u), and u is what the logarithm says."""
    training = Training(hardware_from=0.0, oldest_s=oldest_s)
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


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrong",
    [
        {"hardware_from": 1.5},
        {"hardware_from": -0.1},
        {"hardware_from": math.nan},
        {"schedule": 0.5},
        {"schedule": None},
        {"fluctuation": 0.5},
        {"clip_sigmas": 0.0},
        {"oldest_s": -1.0},
        {"quantised": True},
        {"hardware": WeightPrecision()},
        {"hardware": (1.0,)},
        {"robustness": ["Divergence"]},
        {"sharpness": 0.05},
    ],
    ids=str,
)
def test_a_training_out_of_range_or_of_a_wrong_type_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"^Training\.{next(iter(wrong))} = ") as caught:
        Training(**wrong)
    assert "\n" not in str(caught.value)


ON_CHIPS = {
    "schedule": Constant(at=0.5),
    "fluctuation": Fluctuation(theta=0.5),
    "clip_sigmas": 2.0,
    "oldest_s": 60.0,
    "frozen_statistics": True,
    "quantised": LSQ(bits=4),
    "hardware": (SignalRange(),),
    "robustness": (Divergence(),),
    "distillation": Distillation(),
}


@pytest.mark.parametrize("part", ON_CHIPS)
def test_what_acts_on_chips_is_refused_in_a_digital_training_and_taken_on_chips(part):
    with pytest.raises(ValueError, match=rf"^Training\.{part} acts on chips, and this training is digital: give hardware_from, or leave"):
        Training(**{part: ON_CHIPS[part]})
    assert getattr(Training(hardware_from=0.5, **{part: ON_CHIPS[part]}), part) == ON_CHIPS[part]


@pytest.mark.parametrize(
    "parts",
    [{"injection": ParametricNoise()}, {"blocks": Blocks(noise=True)}, {"sharpness": SharpnessAware()}],
    ids=lambda parts: next(iter(parts)),
)
def test_what_acts_throughout_is_taken_in_a_digital_training(parts):
    assert Training(**parts).hardware_from is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Training(hardware_from=0.5, injection=ParametricNoise()), "Training.injection is noise on digital weights"),
        (lambda: Training(hardware_from=0.5, clip_sigmas=2.0, quantised=LSQ(bits=4)), "clip_sigmas clips stored weights, quantised"),
        (lambda: Training(hardware_from=0.5, hardware=(WriteRegularity(),)), "WriteRegularity compares with weights written to one device"),
        (lambda: Training(hardware_from=0.5, robustness=(WriteRegularity(),)), "WriteRegularity compares with weights written to one"),
        (lambda: Training(hardware_from=0.0, distillation=Distillation()), "as it was before the chips, and hardware_from = 0 leaves none"),
        (lambda: Training(blocks=Blocks(noise=True, on_chips=True)), "Training.blocks stay on chips, and this training is digital"),
        (
            lambda: Training(hardware_from=0.5, hardware=(WeightPrecision(bits=3), WeightPrecision(bits=4))),
            "two terms WeightPrecision, which would be logged as one",
        ),
        (
            lambda: Training(hardware_from=0.5, hardware=(Divergence(),), robustness=(Divergence(draws=2),)),
            "two terms Divergence, which would be logged as one",
        ),
        (lambda: Blocks(on_chips=True), "Blocks.on_chips keeps the adaptive noise on chips: it needs noise=True"),
        (lambda: Blocks(gate=1.0), "Blocks.gate = 1.0"),
        (lambda: Blocks(anchor=-1.0), "Blocks.anchor = -1.0"),
        (
            lambda: Recipe(name="r", summary="", rounding=AdaRound(), training=Training(hardware_from=0.5)),
            "Recipe 'r': rounding is for weights trained digitally",
        ),
        (lambda: Recipe(name="r", summary="", rounding="nearest"), "Recipe.rounding = 'nearest'"),
    ],
)
def test_parts_that_exclude_one_another_are_refused_in_one_line(make, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_part_is_a_type_error_that_names_it():
    for make in (lambda: Training(ramp=0.1), lambda: replace(RECIPES["noise"], noise=1.0), lambda: Blocks(gates=0.5)):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(ramp|noise|gates)'"):
            make()


# ------------------------------------------------------------------------------------------------------------------- ablations

EVERYTHING = Recipe(
    name="all",
    summary="",
    training=Training(
        hardware_from=0.3,
        schedule=Ramp(over=0.2),
        fluctuation=Fluctuation(theta=0.5),
        clip_sigmas=2.0,
        oldest_s=60.0,
        frozen_statistics=True,
        blocks=Blocks(),
        hardware=(WeightPrecision(), SignalRange(), Alignment()),
        robustness=(Divergence(),),
        distillation=Distillation(),
        sharpness=SharpnessAware(),
    ),
)


def differences(a: Training, b: Training) -> list[str]:
    return [f.name for f in fields(Training) if getattr(a, f.name) != getattr(b, f.name)]


@pytest.mark.parametrize("recipe", [*RECIPES.values(), EVERYTHING], ids=lambda r: r.name)
def test_an_ablation_differs_from_the_recipe_in_exactly_one_part_and_is_named_after_it(recipe):
    for one in ablations(recipe):
        (part,) = differences(one.training, recipe.training)
        assert replace(one, name=recipe.name, summary=recipe.summary, training=recipe.training) == recipe
        assert one.name.startswith(f"{recipe.name}-no-{part.replace('_', '-')}")
        assert one.summary.startswith(f"As {recipe.name}, ")


@pytest.mark.parametrize("recipe", [*RECIPES.values(), EVERYTHING], ids=lambda r: r.name)
def test_every_part_and_every_term_of_several_has_one_ablation(recipe):
    training, plain = recipe.training, Training(hardware_from=recipe.training.hardware_from)
    parts = differences(training, plain)
    found = [(part, getattr(one.training, part)) for one in ablations(recipe) for part in differences(one.training, training)]
    without = [(part, getattr(plain, part)) for part in parts]
    for part in ("hardware", "robustness"):
        if len(terms := getattr(training, part)) > 1:
            without += [(part, tuple(t for t in terms if t != term)) for term in terms]
    assert len(found) == len(without)
    assert all(one in found for one in without)


def test_names_and_sentences_of_recipes_and_all_their_ablations_are_unique():
    every = [*RECIPES.values(), *(one for recipe in RECIPES.values() for one in ablations(recipe)), *ablations(EVERYTHING)]
    assert len({one.name for one in every}) == len({one.summary for one in every}) == len(every)
    assert len(ablations(EVERYTHING)) == 10 + 3
    assert ablations(RECIPES["digital"]) == ()


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
