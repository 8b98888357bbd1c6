import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic import train
from galvanic.nn import analog_layers, convert, reads
from galvanic.profile import load_profile
from galvanic.storage import read_tree
from galvanic.train import Budget, Fit, NonFinite, Recipe, Training, deploy
from galvanic.train import fit as module

IMAGES = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long()
BUDGET = Budget(epochs=4, batch=8, calibration=16)  # 3 steps an epoch, 12 in all
NOISE = Training(hardware_from=0.5, ramp=0.15, clip_sigmas=2.5, oldest_s=365 * 86400.0, frozen_statistics=True)
RECIPES = train.RECIPES | {"noise": replace(train.RECIPES["noise"], training=NOISE)}  # in numbers that the tests know
RAMPED = replace(RECIPES["noise"], training=replace(RECIPES["noise"].training, ramp=0.4))  # rises over five steps


def network() -> nn.Module:
    """With everything that has a state or draws numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2)
    )


def fit(path, recipe: Recipe | str = "noise", profile: str = "pcm", **changes) -> Fit:
    settings = {
        "build": network,
        "profile": load_profile(profile),
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
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        list(fit(tmp_path / name).run())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ------------------------------------------------------------------------------------------------------------------- fairness


def test_every_recipe_has_the_same_steps_images_and_learning_rates(tmp_path, monkeypatch):
    spent = {name: [] for name in RECIPES}
    plain = module.steps
    for name, seen in spent.items():

        def noted(model, batches, objective, optimizer, *, first, seen=seen):
            batches = ((seen.append((y.tolist(), optimizer.param_groups[0]["lr"])), (x, y))[1] for x, y in batches)
            return plain(model, batches, objective, optimizer, first=first)

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


# ------------------------------------------------------------------------------------------------------------------- refusals


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
