import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic import train
from galvanic.nn import (
    AdaptiveNoise,
    GatedResidual,
    age,
    analog_layers,
    at,
    calibrate_ranges,
    convert,
    describe,
    program,
    reads,
    resnet,
    to_digital,
)
from galvanic.profile import Profile, load_profile
from galvanic.seeding import generator, seed
from galvanic.storage import read_tree
from galvanic.studies.datasets import load
from galvanic.train import (
    LSQ,
    AdaRound,
    Alignment,
    Blocks,
    Budget,
    Constant,
    Distillation,
    Divergence,
    Fit,
    Fluctuation,
    Grid,
    NonFinite,
    ParametricNoise,
    Ramp,
    Recipe,
    SharpnessAware,
    Training,
    WeightPrecision,
    deploy,
)
from galvanic.train import fit as module

IMAGES = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long()
BUDGET = Budget(epochs=4, batch=8, calibration=16)  # 3 steps an epoch, 12 in all
NOISE = Training(hardware_from=0.5, schedule=Ramp(over=0.15), clip_sigmas=2.5, oldest_s=365 * 86400.0, frozen_statistics=True)
RECIPES = {"digital": train.RECIPES["digital"], "ptq": train.RECIPES["ptq"], "noise": replace(train.RECIPES["noise"], training=NOISE)}
RAMPED = replace(RECIPES["noise"], training=replace(NOISE, schedule=Ramp(over=0.4)))  # rises over five steps


def network() -> nn.Module:
    """With everything that has a state or draws numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2)
    )


def fit(path, recipe: Recipe | str = "noise", profile: str | Profile = "pcm", **changes) -> Fit:
    settings = {
        "build": network,
        "profile": load_profile(profile) if isinstance(profile, str) else profile,
        "recipe": RECIPES[recipe] if isinstance(recipe, str) else recipe,
        "images": IMAGES,
        "labels": LABELS,
        "budget": BUDGET,
        "number": 0,
        "path": path,
    }
    return Fit(**settings | changes)


class Stop(BaseException):
    """A kill, as far as it can be had in one process."""


@pytest.fixture
def every_checkpoint(tmp_path, monkeypatch):
    """Copies of all the checkpoints that a run writes, in order."""
    copies = []
    write = module.write_tree

    def write_and_copy(path, tree):
        write(path, tree)
        copies.append(tmp_path / f"copy-{len(copies)}.safetensors")
        shutil.copy(path, copies[-1])

    monkeypatch.setattr(module, "write_tree", write_and_copy)
    return copies


# ------------------------------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("recipe", ["digital", "noise", RAMPED], ids=["digital", "noise", "long ramp"])
def test_a_run_that_goes_on_from_any_of_its_checkpoints_ends_with_the_same_bits(tmp_path, every_checkpoint, recipe):
    """A checkpoint holds weights, optimizer, random streams and rows, and equal checkpoints are equal files."""
    whole = fit(tmp_path / "whole.safetensors", recipe, checkpoint_every_s=0.0)
    rows, end = list(whole.run()), (tmp_path / "whole.safetensors").read_bytes()
    copies = list(every_checkpoint)
    assert {read_tree(copy)["step"] for copy in copies} == set(range(1, 13))
    for place, copy in enumerate(copies):
        path = tmp_path / f"resumed-{place}.safetensors"
        shutil.copy(copy, path)
        torch.manual_seed(place)  # what the process did before
        torch.rand(place)
        resumed = fit(path, recipe, checkpoint_every_s=0.0 if place % 2 else 1e9)
        assert list(resumed.run()) == rows
        assert path.read_bytes() == end


@pytest.mark.parametrize("profile", ["hwa", "generic-4bit", "reram", "ideal"])
def test_the_same_holds_on_other_hardware(tmp_path, every_checkpoint, profile):
    rows = list(fit(tmp_path / "whole.safetensors", RAMPED, profile, checkpoint_every_s=0.0).run())
    end = (tmp_path / "whole.safetensors").read_bytes()
    for copy in list(every_checkpoint)[4:-1:3]:
        assert list(fit(copy, RAMPED, profile).run()) == rows
        assert copy.read_bytes() == end


def test_a_run_killed_over_and_over_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Killed in the middle of every second write of a checkpoint, and before it: never is a step lost or done twice."""
    whole = tmp_path / "whole.safetensors"
    rows = list(fit(whole).run())
    path, write, calls = tmp_path / "killed.safetensors", module.write_tree, []

    def write_or_die(where, tree):
        calls.append(1)
        if len(calls) % 3 == 1:
            raise Stop
        write(where, tree)
        if len(calls) % 3 == 0:
            raise Stop

    monkeypatch.setattr(module, "write_tree", write_or_die)
    for _ in range(30):
        try:
            got = list(fit(path, checkpoint_every_s=0.0).run())
            break
        except Stop:
            torch.rand(3)
    assert got == rows
    assert path.read_bytes() == whole.read_bytes()


def test_a_caller_who_stops_looking_can_go_on(tmp_path):
    whole = tmp_path / "whole.safetensors"
    rows = list(fit(whole).run())
    run = fit(tmp_path / "left.safetensors", checkpoint_every_s=0.0).run()
    assert [next(run), next(run)] == rows[:2]
    run.close()
    assert list(fit(tmp_path / "left.safetensors").run()) == rows
    assert (tmp_path / "left.safetensors").read_bytes() == whole.read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path):
    rows = list(fit(tmp_path / "x.safetensors").run())
    before = (tmp_path / "x.safetensors").stat().st_mtime_ns
    assert list(fit(tmp_path / "x.safetensors").run()) == rows
    assert (tmp_path / "x.safetensors").stat().st_mtime_ns == before


def test_seeds_differ_in_weights_and_order_and_a_seed_repeats(tmp_path):
    ends = {}
    for name, number in (("a", 0), ("b", 0), ("c", 1)):
        list(fit(tmp_path / name, number=number, budget=replace(BUDGET, epochs=1)).run())
        ends[name] = (tmp_path / name).read_bytes()
    assert ends["a"] == ends["b"] != ends["c"]


def test_what_was_drawn_before_does_not_matter(tmp_path):
    for name, other in (("a", 1), ("b", 2)):
        torch.manual_seed(other)
        list(fit(tmp_path / name).run())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


DIGITS = load("digits", train_samples=100)
SHORT = Budget(epochs=2, batch=20, calibration=40)  # 5 steps an epoch, 10 in all


def tiny() -> nn.Module:
    return resnet((1, 1), width=4, channels=1)


@pytest.mark.parametrize("name", train.RECIPES)
def test_every_recipe_goes_on_from_any_place_with_the_same_bits_and_ends_on_a_chip(tmp_path, every_checkpoint, name):
    """Stopped in the digital part, at the switch, on chips, at the end of an epoch and after the last step."""
    recipe = train.RECIPES[name]
    if isinstance(recipe.rounding, AdaRound):
        recipe = replace(recipe, rounding=replace(recipe.rounding, steps=10))
    on_digits = {"build": tiny, "images": DIGITS.x_train, "labels": DIGITS.y_train, "budget": SHORT}
    whole = fit(tmp_path / "whole", recipe, "generic-4bit", checkpoint_every_s=0.0, **on_digits)
    rows, end = list(whole.run()), (tmp_path / "whole").read_bytes()
    copies = {read_tree(copy)["step"]: copy for copy in every_checkpoint}
    assert 1 < whole.switch < 4 or whole.switch == 10
    for step in sorted({1, whole.switch, 4, 5, 10}):
        torch.rand(step)
        assert list(fit(copies[step], recipe, "generic-4bit", **on_digits).run()) == rows
        assert copies[step].read_bytes() == end
    placed = deploy(whole.result(), whole.profile, recipe, DIGITS.x_train, SHORT, chip=1000)
    assert all(layer.chip.number == 1000 for layer in analog_layers(placed).values())
    assert len(analog_layers(placed)) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in tiny().modules())
    scores = placed(DIGITS.x_test[:20])
    assert scores.shape == (20, 10)
    assert bool(scores.isfinite().all())


# ------------------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("profile", ["pcm", "generic-4bit"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_main_job_are_what_they_say_bit_for_bit(tmp_path, name, profile):
    """Against a loop written out: cross-entropy, AdamW on a cosine, and for 'noise' fresh chips of log-uniform age after half the steps."""
    one = fit(tmp_path / "x", name, profile)
    rows, found = list(one.run()), one.result().state_dict()
    losses, levels = [], []
    torch.manual_seed(seed("network", 0))
    model = network().train()
    torch.manual_seed(seed("training", 0))
    optimizer = adamw(model)
    for step in range(12):
        if step == 6 and name == "noise":
            model = calibrate_ranges(convert(model, one.recipe.adapt(one.profile), chip=None), IMAGES[:16].split(8))
            optimizer = adamw(model)
            model[1].eval()
        levels.append(min(1.0, (step / 12 - 0.5) / 0.15) if hasattr(model[0], "profile") else 0.0)
        if hasattr(model[0], "profile"):
            if model[0].conditions.noise_level != levels[-1]:
                at(model, replace(model[0].conditions, noise_level=levels[-1]))
            program(model)
            age(model, 20 * math.expm1(float(torch.rand(())) * math.log1p(365 * 86400 / 20)))
        chosen = torch.randperm(20, generator=generator("order", 0, step // 3)).tensor_split(3)[step % 3]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 + math.cos(math.pi * step / 12)) / 2
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IMAGES[chosen]), LABELS[chosen])
        loss.backward()
        optimizer.step()
        if hasattr(model[0], "profile"):
            with torch.no_grad():
                for k in (0, 5, 6):
                    limit = 2.5 * model[k].weight.std(correction=0)
                    model[k].weight.clamp_(-limit, limit)
        losses.append(float(loss.detach()))
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], x) for key, x in model.state_dict().items())
    epochs = [{"epoch": k + 1, "loss": sum(losses[3 * k : 3 * k + 3]) / 3, "noise_level": levels[3 * k + 2]} for k in range(4)]
    assert rows == epochs


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 1e-3}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3)


# ------------------------------------------------------------------------------------------------------------------- fairness


def test_every_recipe_has_the_same_steps_images_and_learning_rates(tmp_path, monkeypatch):
    spent = {name: [] for name in RECIPES}
    plain = module.steps
    for name, seen in spent.items():

        def noted(model, batches, objective, optimizer, *, seen=seen, **how):
            batches = ((seen.append((y.tolist(), optimizer.param_groups[0]["lr"])), (x, y))[1] for x, y in batches)
            return plain(model, batches, objective, optimizer, **how)

        monkeypatch.setattr(module, "steps", noted)
        assert [row["epoch"] for row in fit(tmp_path / name, name).run()] == [1, 2, 3, 4]
    assert spent["digital"] == spent["ptq"] == spent["noise"]
    rates = [rate for _, rate in spent["noise"]]
    assert len(rates) == 12
    assert rates[0] == BUDGET.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1 * BUDGET.learning_rate


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(tmp_path):
    one = fit(tmp_path / "x", images=torch.arange(20.0), labels=torch.arange(20))
    batches = [x.tolist() for x, _ in one._batches(0, 12)]
    epochs = [[*a, *b, *c] for a, b, c in zip(*[iter(batches)] * 3, strict=True)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(torch.equal(x, y) for x, y in one._batches(0, 12))
    assert [x.tolist() for x, _ in one._batches(7, 12)] == batches[7:]


@pytest.mark.parametrize("n", [9, 17, 20, 24, 25])
def test_no_batch_is_larger_than_asked_for_or_a_single_image(tmp_path, n):
    """Batch normalisation refuses a single image in training, as the last of 25 in batches of 8 would be."""
    one = fit(tmp_path / "x", images=torch.arange(n), labels=torch.arange(n))
    sizes = [len(x) for x, _ in one._batches(0, one.epoch_steps)]
    assert sum(sizes) == n
    assert len(sizes) == -(-n // 8)
    assert max(sizes) <= 8
    assert min(sizes) >= max(sizes) - 1


def test_the_noise_recipe_changes_to_hardware_at_half_and_the_others_never(tmp_path):
    analog = {}
    for name in RECIPES:
        list(fit(tmp_path / name, name).run())
        result = fit(tmp_path / name, name).result()
        analog[name] = any(hasattr(m, "profile") for m in result.modules())
        assert not any(m.training for m in result.modules())
    assert analog == {"digital": False, "ptq": False, "noise": True}
    assert (fit("x", "noise").switch, fit("x", "digital").switch, fit("x").total) == (6, 12, 12)


def test_rows_tell_the_noise_that_the_steps_had(tmp_path):
    assert [row["noise_level"] for row in fit(tmp_path / "d", "digital").run()] == [0.0] * 4
    levels = [row["noise_level"] for row in fit(tmp_path / "n", RAMPED).run()]
    assert levels == pytest.approx([0, 0, (8 / 12 - 0.5) / 0.4, 1.0])


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(tmp_path, monkeypatch):
    losses = []
    plain = module.steps

    def noted(*args, **kw):
        for step in plain(*args, **kw):
            losses.append(float(step.loss))
            yield step

    monkeypatch.setattr(module, "steps", noted)
    rows = list(fit(tmp_path / "x").run())
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[k : k + 3]) / 3 for k in range(0, 12, 3)])


# ------------------------------------------------------------------------------------------------------------------- on hardware


def norms(path) -> dict[str, torch.Tensor]:
    return {name: x for name, x in read_tree(path)["model"].items() if name.startswith(("1.running", "1.num"))}


def test_frozen_statistics_do_not_move_on_hardware_and_others_do(tmp_path, every_checkpoint):
    for frozen in (True, False):
        every_checkpoint.clear()
        recipe = replace(RECIPES["noise"], training=replace(RECIPES["noise"].training, frozen_statistics=frozen))
        list(fit(tmp_path / f"{frozen}", recipe, checkpoint_every_s=0.0).run())
        steps = {read_tree(copy)["step"]: norms(copy) for copy in every_checkpoint}
        assert set(steps[6]) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        moved = [k for k in range(2, 13) if any(not torch.equal(steps[k][name], steps[k - 1][name]) for name in steps[k])]
        assert moved == (list(range(2, 7)) if frozen else list(range(2, 13)))
        weights = {k: read_tree(copy)["model"]["1.weight"] for k, copy in zip(steps, every_checkpoint, strict=False)}
        assert not torch.equal(weights[7], weights[12])  # scale and shift go on learning


def test_weights_are_clipped_on_hardware_only(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "clip_weights", lambda model, sigmas: calls.append(sigmas))
    list(fit(tmp_path / "n", "noise").run())
    assert calls == [2.5] * 6
    list(fit(tmp_path / "d", "digital").run())
    assert len(calls) == 6


def test_every_step_on_hardware_has_an_age_of_its_own(tmp_path, monkeypatch):
    ages = []
    plain = module.cross_entropy

    def noted(model, batch):
        ages.append({float(layer.conditions.age_s) for layer in analog_layers(model).values()} if hasattr(model[0], "profile") else None)
        return plain(model, batch)

    monkeypatch.setattr(module, "cross_entropy", noted)
    list(fit(tmp_path / "n").run())
    assert ages[:6] == [None] * 6
    assert all(len(a) == 1 for a in ages[6:])  # one age for the whole chip
    assert len(set.union(*ages[6:])) == 6
    assert all(0 <= age <= 365 * 86400.0 for age in set.union(*ages[6:]))


def test_learned_ranges_are_learned_and_those_of_the_hardware_are_not(tmp_path, every_checkpoint):
    list(fit(tmp_path / "pcm", checkpoint_every_s=0.0).run())
    ranges = {read_tree(c)["step"]: {n: x for n, x in read_tree(c)["model"].items() if n.endswith("_range")} for c in every_checkpoint}
    assert set(ranges[7]) == {f"{layer}.{side}_range" for layer in (0, 5, 6) for side in ("input", "output")}
    assert ranges[6] == {}
    assert all(not torch.equal(ranges[7][name], ranges[12][name]) for name in ranges[7])
    list(fit(tmp_path / "hwa", profile="hwa").run())  # its output window is fixed
    assert {n for n in read_tree(tmp_path / "hwa")["model"] if n.endswith("_range")} == {f"{layer}.input_range" for layer in (0, 5, 6)}


def test_hardware_from_the_first_or_after_the_last_step_works(tmp_path):
    for share, switch in ((0.0, 0), (1.0, 12)):
        recipe = Recipe(name="r", summary="", training=Training(hardware_from=share))
        one = fit(tmp_path / f"{share}", recipe, checkpoint_every_s=0.0)
        assert one.switch == switch
        assert len(list(one.run())) == 4
        one.result()


def test_one_step_in_all_is_enough(tmp_path):
    for name in RECIPES:
        one = fit(tmp_path / name, name, budget=Budget(epochs=1, batch=64))
        assert len(list(one.run())) == 1
        one.result()


def seen_levels(monkeypatch) -> list[set[float] | None]:
    """The noise levels of the layers at every step to come; None where the network is digital."""
    found = []
    plain = module.cross_entropy

    def noted(model, batch):
        on_chip = any(hasattr(m, "conditions") and hasattr(m, "profile") for m in model.modules())
        found.append({float(layer.conditions.noise_level) for layer in analog_layers(model).values()} if on_chip else None)
        return plain(model, batch)

    monkeypatch.setattr(module, "cross_entropy", noted)
    return found


def on_chips(**parts) -> Recipe:
    return Recipe(name="r", summary="", training=Training(**{"hardware_from": 0.5} | parts))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.37, 0.41, 0.5, 0.875])
def test_noise_is_whole_from_the_first_step_on_chips_wherever_between_two_steps_they_begin(tmp_path, monkeypatch, share):
    levels = seen_levels(monkeypatch)
    one = fit(tmp_path / "x", on_chips(hardware_from=share))
    rows = list(one.run())
    assert levels == [None] * one.switch + [{1.0}] * (12 - one.switch)
    assert [row["noise_level"] for row in rows] == [float(one.switch < 3 * row["epoch"]) for row in rows]


@pytest.mark.parametrize(
    "parts",
    [
        {"fluctuation": Fluctuation(theta=0.5, per="step")},
        {"schedule": Grid(shares=(0.0, 1.0), means=(1.0, 1.0), stds=(0.5, 0.5))},
        {"schedule": Grid(shares=(0.0,), means=(1.0,), stds=(0.5,)), "fluctuation": Fluctuation(theta=0.1, per="step")},
    ],
    ids=["fluctuation", "grid", "both"],
)
def test_every_step_has_a_level_of_its_own_and_rows_tell_the_mean(tmp_path, monkeypatch, parts):
    levels = seen_levels(monkeypatch)
    rows = list(fit(tmp_path / "x", on_chips(**parts)).run())
    assert levels[:6] == [None] * 6
    assert all(len(level) == 1 for level in levels[6:])  # one level for the whole chip
    drawn = set.union(*levels[6:])
    assert len(drawn) == 6
    assert all(0 <= level < 5 for level in drawn)
    assert [row["noise_level"] for row in rows] == [0.0, 0.0, 1.0, 1.0]


def test_every_example_has_a_level_of_its_own_on_chips_and_the_chip_keeps_the_schedules(tmp_path, monkeypatch):
    drawn, plain = [], module.fluctuate
    levels = seen_levels(monkeypatch)
    monkeypatch.setattr(module, "fluctuate", lambda model, given: (drawn.append(given), plain(model, given))[1])
    list(fit(tmp_path / "x", on_chips(fluctuation=Fluctuation(alpha=2.0, theta=0.5, one_sided=True), schedule=Constant(at=0.5))).run())
    assert levels == [None] * 6 + [{0.5}] * 6
    assert [len(given) for given in drawn] == [7, 7, 6] * 2
    every = torch.cat(drawn)
    assert len(set(every.tolist())) == 40
    assert float(every.min()) >= 2.0


@pytest.mark.parametrize("sharpness", [None, SharpnessAware(radius=0.5, adaptive=True)], ids=["plain", "sharpness-aware"])
def test_terms_are_means_over_the_steps_that_had_them_at_the_point_of_the_loss(tmp_path, monkeypatch, sharpness):
    """The switch is within the second epoch; a sharpness-aware step has a second pass, whose terms are not the step's."""
    losses, plain = [], module.steps

    def noted(*args, **how):
        for step in plain(*args, **how):
            losses.append(float(step.loss))
            yield step

    monkeypatch.setattr(module, "steps", noted)
    recipe = on_chips(hardware_from=1 / 3, hardware=(Alignment(share=1.0),), robustness=(Divergence(),), sharpness=sharpness)
    rows = list(fit(tmp_path / "x", recipe, "generic-4bit").run())
    assert "terms" not in rows[0]
    assert [set(row["terms"]) for row in rows[1:]] == [{"task", "Alignment", "Divergence", "total"}] * 3
    for row, steps in zip(rows[1:], (losses[4:6], losses[6:9], losses[9:]), strict=True):
        terms = row["terms"]
        assert terms["total"] == pytest.approx(sum(steps) / len(steps), rel=1e-6)
        assert terms["total"] == pytest.approx(terms["task"] + 0.3 * terms["Alignment"] + 0.3 * terms["Divergence"], rel=1e-5)


@pytest.mark.parametrize(
    "parts",
    [{}, {"quantised": LSQ(bits=4)}, {"sharpness": SharpnessAware()}, {"blocks": Blocks(noise=True)}],
    ids=["plain", "lsq", "sam", "blocks"],
)
def test_the_teacher_is_the_network_at_the_switch_and_stays_while_the_student_trains(tmp_path, every_checkpoint, parts):
    build = {"build": lambda: resnet((1,), width=4, channels=1, classes=2)}
    recipe = on_chips(distillation=Distillation(), **parts)
    list(fit(tmp_path / "x", recipe, "generic-4bit", checkpoint_every_s=0.0, **build).run())
    trees = {tree["step"]: tree for tree in map(read_tree, every_checkpoint)}
    taught = trees[6]["model"]
    assert all(trees[step]["teacher"] is None for step in range(1, 7))
    for step in range(7, 13):
        teacher = trees[step]["teacher"]
        assert teacher.keys() == taught.keys()
        assert all(torch.equal(x, taught[name]) for name, x in teacher.items())
    learned = "0.parametrizations.weight.original" if "quantised" in parts else "0.weight"
    assert not torch.equal(trees[7]["model"][learned], trees[12]["model"][learned])


@pytest.mark.parametrize("weight_scale", ["column", "layer"])
def test_quantised_training_has_the_bits_and_scales_of_the_hardware_and_ends_in_ordinary_layers(tmp_path, weight_scale):
    profile = replace(load_profile("generic-4bit"), weight_scale=weight_scale)
    one = fit(tmp_path / "x", on_chips(quantised=LSQ(bits=8)), profile=profile)
    list(one.run())
    result = one.result()
    for layer in analog_layers(result).values():
        w = layer.weight.detach().flatten(1)
        codes = 7 * w / (w.abs().amax(1, keepdim=True) if weight_scale == "column" else w.abs().max())
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    assert (
        result.state_dict().keys() - {f"{k}.{side}_range" for k in (0, 5, 6) for side in ("input", "output")}
        == network().state_dict().keys()
    )
    assert [type(m) for m in to_digital(result)] == [type(m) for m in network()]
    assert torch.equal(to_digital(result)[5].weight, result[5].weight)
    assert torch.equal(convert(result, profile, chip=0)[5].weight, result[5].weight)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_quantised_training_may_begin_with_the_first_step_or_after_the_last(tmp_path, share):
    one = fit(tmp_path / "x", on_chips(hardware_from=share, quantised=LSQ(bits=4)), "generic-4bit")
    list(one.run())
    assert one.result()(IMAGES).shape == (20, 2)


def test_injected_noise_is_trained_with_the_weights_and_gone_from_the_result(tmp_path):
    one = fit(tmp_path / "x", Recipe(name="r", summary="", training=Training(injection=ParametricNoise(start=0.5))))
    rows = list(one.run())
    held = read_tree(tmp_path / "x")["model"]
    alphas = [float(held[f"{k}.parametrizations.weight.0.alpha"]) for k in (0, 5, 6)]
    assert rows[-1]["noise_coefficient"] == pytest.approx(sum(alphas) / 3, rel=1e-12)
    assert all(0 < abs(alpha - 0.5) < 0.1 for alpha in alphas)
    result = one.result()
    assert result.state_dict().keys() == network().state_dict().keys()
    assert all(torch.equal(result[k].weight, held[f"{k}.parametrizations.weight.original"]) for k in (0, 5, 6))


@pytest.mark.parametrize(("kept", "anchored"), [(False, 6), (True, 12)], ids=["off on chips", "on on chips"])
def test_adaptive_noise_is_simulated_and_anchored_off_chips_and_on_them_where_it_is_asked_for(tmp_path, monkeypatch, kept, anchored):
    calls, plain = [], module.anchor
    monkeypatch.setattr(module, "anchor", lambda model: (calls.append(1), plain(model))[1])
    recipe = on_chips(blocks=Blocks(gate=0.3, noise=True, on_chips=kept))
    one = fit(tmp_path / "x", recipe, "generic-4bit", build=lambda: resnet((1, 1), width=4, channels=1, classes=2))
    list(one.run())
    assert len(calls) == anchored
    placed = deploy(one.result(), one.profile, one.recipe, IMAGES, BUDGET, chip=1)
    noises = [m for m in placed.modules() if isinstance(m, AdaptiveNoise)]
    assert [noise.simulated for noise in noises] == [kept, kept]
    told = {row["why"] for row in describe(placed) if ".noise" in row["layer"]}
    assert told == {"simulated noise: the chip makes its own"}
    gates = [m.gate.detach() for m in placed.modules() if isinstance(m, GatedResidual)]
    assert all(0 < float((gate - 0.3).abs().max()) < 0.05 for gate in gates)  # they are learned


def test_an_anchor_holds_the_learned_physics_where_it_was_measured(tmp_path):
    moved = []
    for weight in (0.0, 10.0):
        recipe = Recipe(name="r", summary="", training=Training(blocks=Blocks(noise=True, anchor=weight)))
        build = {"build": lambda: resnet((1,), width=4, channels=1, classes=2)}
        rows = list(fit(tmp_path / f"{weight}", recipe, "generic-4bit", **build).run())
        held = read_tree(tmp_path / f"{weight}")["model"]
        effects = {name.rpartition(".")[0] for name in held if name.endswith(".log_weight")}
        sizes = [math.exp(sum(bounded(held[f"{e}.{k}"]) for k in ("log_weight", "log_std") if f"{e}.{k}" in held)) for e in effects]
        assert rows[-1]["learned_noise"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-6)
        moved.append(sum(float(x.abs().sum()) for name, x in held.items() if ".log_" in name))
    assert moved[1] < moved[0] / 2


def bounded(raw: torch.Tensor) -> float:
    """A learned logarithm, within a factor of ten."""
    return math.log(10) * math.tanh(float(raw) / math.log(10))


def test_weight_precision_counts_in_the_bits_of_the_hardware_and_its_own_where_there_are_none():
    def bits(profile: str) -> int:
        one = fit("x", on_chips(hardware=(WeightPrecision(bits=7),)), profile)
        return one._for_hardware(one.recipe.training.hardware[0]).bits

    assert (bits("generic-4bit"), bits("pcm")) == (4, 7)


def test_sharpness_aware_steps_are_taken_throughout(tmp_path, monkeypatch):
    calls, plain = [], module.cross_entropy
    monkeypatch.setattr(module, "cross_entropy", lambda model, batch: (calls.append(hasattr(model[0], "profile")), plain(model, batch))[1])
    list(fit(tmp_path / "x", on_chips(sharpness=SharpnessAware())).run())
    assert calls == [False] * 12 + [True] * 12


def test_both_passes_of_a_sharpness_aware_step_are_on_one_chip_of_one_age_and_level(tmp_path, monkeypatch):
    seen, plain = [], module.cross_entropy

    def noted(model, batch):
        layers = analog_layers(model).values()
        seen.append([(float(m.conditions.age_s), float(m.conditions.noise_level), m.levels.tolist(), *m._draws.values()) for m in layers])
        return plain(model, batch)

    monkeypatch.setattr(module, "cross_entropy", noted)
    spread = Grid(shares=(0.0,), means=(1.0,), stds=(0.3,))
    parts = {"oldest_s": 1e6, "schedule": spread, "fluctuation": Fluctuation(theta=0.5), "sharpness": SharpnessAware()}
    list(fit(tmp_path / "x", on_chips(hardware_from=0.0, **parts)).run())
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        for a, b in zip(first, second, strict=True):
            assert a[:3] == b[:3]
            assert all(torch.equal(x, y) for x, y in zip(a[3:], b[3:], strict=True))
    assert len({first[0][0] for first in seen[::2]}) == 12


# ------------------------------------------------------------------------------------------------------------------- augmentation


def test_every_step_augments_its_images_from_numbers_of_its_own_and_a_resumed_run_goes_on_with_them(tmp_path, every_checkpoint):
    def noisy(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        drawn.append(float(torch.rand((), generator=draw)))
        return images + torch.randn(images.shape, generator=draw)

    drawn: list[float] = []
    rows = list(fit(tmp_path / "x", checkpoint_every_s=0.0, augmentation=noisy).run())
    first, end = list(drawn), (tmp_path / "x").read_bytes()
    assert len(set(first)) == 12
    for step, copy in [(read_tree(c)["step"], c) for c in list(every_checkpoint)][3:-1:4]:
        drawn.clear()
        assert list(fit(copy, augmentation=noisy).run()) == rows
        assert drawn == first[step:]
        assert copy.read_bytes() == end
    assert list(fit(tmp_path / "plain").run()) != rows
    drawn.clear()
    list(fit(tmp_path / "digital", "digital", augmentation=noisy).run())
    assert drawn == first  # every recipe sees the same images


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("profile", ["pcm", "ideal"])
def test_quantised_training_for_hardware_without_levels_is_refused_before_the_first_step(profile):
    with pytest.raises(ValueError, match=rf"^recipe 'lsq' trains quantised weights; profile '{profile}' does not quantise them$"):
        fit("x", train.RECIPES["lsq"], profile)


def test_a_checkpoint_of_another_recipe_is_refused_in_one_line(tmp_path):
    one = fit(tmp_path / "x", "digital", "generic-4bit")
    list(one.run())
    with pytest.raises(ValueError, match=r"x is not a checkpoint of this training run: ") as caught:
        list(fit(tmp_path / "x", train.RECIPES["pni"], "generic-4bit").run())
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_has_no_result(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        fit(path).result()
    run = fit(path, checkpoint_every_s=0.0).run()
    next(run)
    run.close()
    with pytest.raises(ValueError, match=r"x\.safetensors: this training run is at step \d+ of 12"):
        fit(path).result()


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    list(fit(path).run())
    raw = path.read_bytes()[:-5]
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.safetensors: damaged"):
        next(fit(path).run())
    assert path.read_bytes() == raw


@pytest.mark.parametrize("at", [4, 8], ids=["digital", "on hardware"])
def test_a_number_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, at):
    path = tmp_path / "x.safetensors"
    plain, calls = module.cross_entropy, []

    def spoiled(model, batch):
        calls.append(1)
        loss = plain(model, batch)
        return loss * float("nan") if len(calls) == at else loss

    with monkeypatch.context() as patch:
        patch.setattr(module, "cross_entropy", spoiled)
        with pytest.raises(NonFinite, match=rf"^recipe 'noise', seed 0, step {at - 1}: the loss is not finite"):
            list(fit(path, checkpoint_every_s=0.0).run())
    assert read_tree(path)["step"] == at - 1
    whole = tmp_path / "whole.safetensors"
    assert list(fit(path).run()) == list(fit(whole).run())  # the fault was not the run's: it can go on
    assert path.read_bytes() == whole.read_bytes()


# ------------------------------------------------------------------------------------------------------------------- deploy


def outputs(model: nn.Module) -> torch.Tensor:
    with reads(model, "off"), torch.no_grad():
        return model(IMAGES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_deployed_network_sits_fresh_on_its_chip_with_the_same_bits_each_time(tmp_path, recipe):
    one = fit(tmp_path / "x", recipe)
    list(one.run())

    def deployed(chip: int) -> nn.Module:
        return deploy(one.result(), one.profile, one.recipe, IMAGES, BUDGET, chip=chip)

    a, b, other = deployed(1000), deployed(1000), deployed(1001)
    assert all((m.chip.number, m.chip.write, float(m.conditions.age_s)) == (1000, 0, 0.0) for m in analog_layers(a).values())
    assert all(m.profile == one.recipe.adapt(one.profile) for m in analog_layers(a).values())
    assert torch.equal(outputs(a), outputs(b))
    assert not torch.equal(outputs(a), outputs(other))


def test_deploying_keeps_learned_ranges_and_leaves_a_digital_network_alone(tmp_path):
    one = fit(tmp_path / "n")
    list(one.run())
    learned = {name: x.clone() for name, x in one.result().state_dict().items()}
    placed = deploy(one.result(), one.profile, one.recipe, IMAGES * 100, BUDGET, chip=5)
    assert all(torch.equal(x, learned[name]) for name, x in placed.state_dict().items())
    digital = network()
    before = {name: x.clone() for name, x in digital.state_dict().items()}
    deploy(digital, one.profile, RECIPES["ptq"], IMAGES, BUDGET, chip=5)
    assert all(torch.equal(x, before[name]) for name, x in digital.state_dict().items())
    assert not hasattr(digital[0], "profile")


def test_a_deployed_network_is_the_trained_one_where_the_hardware_is_ideal(tmp_path):
    one = fit(tmp_path / "d", "digital", profile="ideal")
    list(one.run())
    trained = one.result()
    placed = deploy(trained, one.profile, one.recipe, IMAGES, BUDGET, chip=1)
    assert torch.equal(outputs(placed), trained(IMAGES))
    assert torch.equal(outputs(convert(trained, one.profile, chip=0)), trained(IMAGES))
