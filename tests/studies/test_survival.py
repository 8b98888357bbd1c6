import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from galvanic.nn import BatchNorm, GlobalDrift, analog_layers, evaluate, load, program
from galvanic.physics import Conditions
from galvanic.seeding import seed
from galvanic.storage import read_tree
from galvanic.studies.settings import Settings, new_settings
from galvanic.studies.survival import Survival
from galvanic.train import MAIN

AGES_S, LEVELS = [0.0, 86400.0], [0.0, 1.0]


@pytest.fixture
def settings(model_file, data_file):
    def made(model: str = "Normed", **changes) -> Settings:
        plain = {"data": str(data_file), "model": f"{model_file}:{model}", "profile": "pcm", "recipes": list(MAIN), "seeds": [0, 1]}
        small = {"chips": [1000, 1001], "ages_s": AGES_S, "noise_levels": LEVELS, "epochs": 2, "batch": 16, "threads": 1}
        return new_settings(**plain | small | changes)

    return made


def study(settings: Settings, folder: Path) -> Survival:
    return Survival(settings, settings.load_data(), folder)


def computed(one: Survival) -> dict[str, list[dict]]:
    return {cell.name: list(cell.parts()) for cell in one.cells()}


def test_the_cells_are_placement_then_training_and_chips_of_each_recipe_and_seed(settings, tmp_path):
    names = [cell.name for cell in study(settings(), tmp_path).cells()]
    expected = ["placement"]
    for recipe, number in itertools.product(MAIN, (0, 1)):
        expected += [f"{recipe}-seed{number}-training", f"{recipe}-seed{number}-chip1000", f"{recipe}-seed{number}-chip1001"]
    assert names == expected
    assert all(cell.effort > 0 for cell in study(settings(), tmp_path).cells())


def test_every_condition_is_measured_once_on_every_chip_for_every_recipe_and_seed(settings, tmp_path):
    rows = [row for part in computed(study(settings(), tmp_path)).values() for row in part]
    who = list(itertools.product(MAIN, (0, 1), (1000, 1001)))
    ages = Counter((r["recipe"], r["seed"], r["chip"], r["compensation"], r["age_s"]) for r in rows if r["kind"] == "age")
    assert ages == Counter((*w, c, a) for w in who for c in ("none", "global-drift", "batch-norm") for a in AGES_S)
    levels = Counter((r["recipe"], r["seed"], r["chip"], r["noise_level"]) for r in rows if r["kind"] == "level")
    assert levels == Counter((*w, level) for w in who for level in LEVELS)
    layers = Counter((r["recipe"], r["seed"], r["chip"], r["age_s"], r["layer"]) for r in rows if r["kind"] == "layer")
    assert layers == Counter((*w, a, name) for w in who for a in (AGES_S[0], AGES_S[-1]) for name in ("0", "4"))
    training = Counter((r["recipe"], r["seed"], r["epoch"]) for r in rows if r["kind"] == "training")
    assert training == Counter(itertools.product(MAIN, (0, 1), (1, 2)))
    assert Counter((r["recipe"], r["seed"]) for r in rows if r["kind"] == "digital") == Counter(itertools.product(MAIN, (0, 1)))
    assert [r["layer"] for r in rows if r["kind"] == "placement"] == ["0", "1", "4"]
    accuracies = [r for r in rows if "accuracy" in r]
    assert all(
        0 <= r["accuracy"] <= 1 and r["n_test"] == 30 and r["accuracy"] * 30 == pytest.approx(round(r["accuracy"] * 30)) for r in accuracies
    )


def test_a_network_without_batch_statistics_has_no_batch_norm_compensation(settings, tmp_path):
    rows = computed(study(settings("Net", recipes=["digital"], seeds=[0], chips=[1000]), tmp_path))["digital-seed0-chip1000"]
    assert {r["compensation"] for r in rows if r["kind"] == "age"} == {"none", "global-drift"}


def test_cells_do_not_depend_on_one_another_or_on_their_order(settings, tmp_path):
    """Whatever is computed before, in whichever process: the rows are the same. (A resumed run computes what is missing.)"""
    one = settings(recipes=["ptq", "noise"], seeds=[0])
    forth = computed(study(one, tmp_path / "forth"))
    trained = [name for name in forth if name.endswith("training")]
    other = study(one, tmp_path / "back")
    cells = {cell.name: cell for cell in other.cells()}
    torch.manual_seed(99)
    for name in [*trained, *(n for n in reversed(forth) if n not in trained)]:
        torch.rand(3)
        assert list(cells[name].parts()) == forth[name], name
    for name in forth:  # and each by a study of its own, as after a kill
        fresh = {cell.name: cell for cell in study(one, tmp_path / "forth").cells()}
        assert list(fresh[name].parts()) == forth[name], name


def test_digital_and_ptq_share_one_training_and_noise_has_its_own(settings, tmp_path):
    rows = computed(study(settings(profile="generic-4bit", seeds=[0], chips=[1000]), tmp_path))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["digital-seed0.safetensors", "noise-seed0.safetensors"]

    def losses(recipe: str) -> list[float]:
        return [r["loss"] for r in rows[f"{recipe}-seed0-training"] if r["kind"] == "training"]

    assert losses("digital") == losses("ptq") != losses("noise")
    models = {recipe: read_tree(tmp_path / "models" / f"{recipe}-seed0.safetensors")["state"] for recipe in MAIN}
    assert torch.equal(models["digital"]["0.weight"], models["ptq"]["0.weight"])
    ranges = {recipe: [float(x) for name, x in state.items() if name.endswith("_range")] for recipe, state in models.items()}
    assert len(ranges["digital"]) == 4
    assert ranges["digital"] != ranges["ptq"]


def test_saved_models_give_the_rows_that_were_written(settings, tmp_path):
    """A reader who has nothing but the model file measures the same accuracy, over time, compensation and noise."""
    one = settings(seeds=[0])
    whole = study(one, tmp_path)
    rows = computed(whole)
    data = one.load_data()
    for recipe in MAIN:
        model = load(tmp_path / "models" / f"{recipe}-seed0.safetensors", one.builder(data)()).eval()
        assert {layer.chip.number for layer in analog_layers(model).values()} == {1000}
        for chip in (1000, 1001):
            torch.manual_seed(seed("evaluate", recipe, 0, chip))
            found = []
            for compensation in (None, GlobalDrift(), BatchNorm(data.x_train[:256].split(16))):
                found += evaluate(model, whole.accuracy, chips=[chip], ages_s=AGES_S, compensation=compensation)
            for level in LEVELS:
                found += evaluate(model, whole.accuracy, chips=[chip], conditions=Conditions(noise_level=level))
            written = [r for r in rows[f"{recipe}-seed0-chip{chip}"] if "accuracy" in r]
            assert [r["value"] for r in found] == [r["accuracy"] for r in written]


def test_the_digital_accuracy_is_that_of_the_trained_weights_without_hardware(settings, tmp_path):
    one = settings(seeds=[0], chips=[1000], epochs=80)
    rows = computed(study(one, tmp_path))
    data = one.load_data()
    for recipe, file in (("digital", "digital"), ("noise", "noise")):
        model = one.builder(data)()
        state = read_tree(tmp_path / "checkpoints" / f"{file}-seed0.safetensors")["model"]
        model.load_state_dict({name: x for name, x in state.items() if not name.endswith("_range")})
        right = (model.eval()(data.x_test).argmax(1) == data.y_test).float().mean()
        (row,) = (r for r in rows[f"{recipe}-seed0-training"] if r["kind"] == "digital")
        assert row["accuracy"] == pytest.approx(float(right))
        assert row["accuracy"] > 0.9  # three classes far apart: it did learn


def test_without_noise_level_every_chip_is_the_same_one(settings, tmp_path):
    rows = computed(study(settings(recipes=["digital"], seeds=[0], noise_levels=[0.0]), tmp_path))
    assert len({r["accuracy"] for part in rows.values() for r in part if r["kind"] == "level"}) == 1


def test_chips_and_seeds_differ(settings, tmp_path):
    rows = computed(study(settings(recipes=["noise"]), tmp_path))
    errors = {name: tuple(r["error"] for r in part if r["kind"] == "layer") for name, part in rows.items() if "chip" in name}
    assert len(set(errors.values())) == len(errors) == 4


def test_evaluation_leaves_the_deployed_model_as_it_was(settings, tmp_path):
    one = study(settings(recipes=["noise"], seeds=[0]), tmp_path)
    rows = computed(one)
    model = one.deployed("noise", 0)
    program(model, 5)
    again = {cell.name: cell for cell in one.cells()}
    assert list(again["noise-seed0-chip1000"].parts()) == rows["noise-seed0-chip1000"]


def test_accuracy_counts_the_right_ones_over_parts_of_the_test_set(settings, tmp_path, monkeypatch):
    one = study(settings(), tmp_path)
    monkeypatch.setattr("galvanic.studies.survival._EVALUATED_AT_ONCE", 7 * one.data.x_test[0].numel())
    sizes = []

    def scores(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return torch.tensor([[0.0, 1.0, 0.5]]).expand(len(x), 3)

    assert one.accuracy(scores) == pytest.approx(float((one.data.y_test == 1).float().mean()))
    assert sizes == [7, 7, 7, 7, 2]
