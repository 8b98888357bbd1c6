import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from galvanic.nn import analog_layers
from galvanic.nn.analog import Analog
from galvanic.storage import read_tree
from galvanic.studies.grid import StudySettings, study_settings
from galvanic.studies.sensitivity import ALL
from galvanic.studies.trial import Trial

ARMS, CONDITIONS = ("digital", "ptq", "snt", "tuned"), ("level 1", "level 1, recalibrated", "fluctuating 1")
SMALL = {"data": "digits", "shrink": 1, "train_samples": 60, "test_samples": 30, "epochs": 2, "width": 2}
MEASURED = {"accuracy", "top5", "nll", "ece", "n_test"}


def settings(**changes) -> StudySettings:
    return study_settings("survival", **{"seeds": 2, "chips": 2, "arms": ARMS, "conditions": CONDITIONS, **SMALL} | changes)


def trial(folder: Path, **changes) -> Trial:
    chosen = settings(**changes)
    return Trial(chosen, chosen.load_data(), folder)


def computed(one: Trial) -> dict[str, list[dict]]:
    return {cell.name: list(one.rows(cell)) for cell in one.cells()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trial")


@pytest.fixture(scope="module")
def cells(folder) -> dict[str, list[dict]]:
    return computed(trial(folder))


# ------------------------------------------------------------------------------------------------------------------- cells and rows


def test_trainings_come_first_then_every_arm_and_seed_on_every_chip_then_the_maps(tmp_path):
    names = [cell.name for cell in trial(tmp_path).cells()]
    trainings = [f"{arm}-seed{n}-training" for arm in ("digital", "snt", "tuned") for n in (10, 11)]
    chips = [f"{arm}-seed{n}-chip{c}" for arm in ARMS for n in (10, 11) for c in (1100, 1101)]
    assert names == trainings + chips + ["digital-map", "tuned-map"]


def test_every_condition_is_measured_once_on_every_chip_for_every_arm_and_seed(cells):
    rows = [row for part in cells.values() for row in part]
    assert Counter((r["arm"], r["seed"], r["chip"], r["condition"]) for r in rows if r["kind"] == "chip") == Counter(
        (arm, n, chip, condition) for arm in ARMS for n in (10, 11) for chip in (1100, 1101) for condition in CONDITIONS
    )


def test_rows_have_the_keys_that_the_summary_and_the_page_read(cells):
    keys = {
        "training": {"arm", "seed", "epoch", "loss", "noise_level"},
        "digital": {"arm", "seed"} | MEASURED,
        "chip": {"arm", "seed", "chip", "condition"} | MEASURED,
        "sensitivity": {"arm", "seed", "layer", "effect", "side", "chip", "noise_level", "age_s", "value", "drop"},
        "sharpness": {"arm", "seed", "eigenvalue", "converged"},
        "landscape": {"arm", "seed", "direction", "radius", "distance", "loss"},
    }
    rows = [row for part in cells.values() for row in part]
    assert {row["kind"] for row in rows} == set(keys)
    for row in rows:
        assert set(row) == keys[row["kind"]] | {"kind"}
        json.dumps(row, allow_nan=False)


def test_a_map_takes_the_first_network_apart_effect_by_effect_and_along_two_directions(cells):
    for arm in ("digital", "tuned"):
        rows = cells[f"{arm}-map"]
        assert {(r["arm"], r["seed"]) for r in rows} == {(arm, 10)}
        assert {r["chip"] for r in rows if r["kind"] == "sensitivity"} == {1100, 1101}
        assert any((r["layer"], r["effect"]) == (ALL, ALL) for r in rows if r["kind"] == "sensitivity")
        lines = {d: [r for r in rows if r["kind"] == "landscape" and r["direction"] == d] for d in ("random", "ascent")}
        middle = {d: next(r["loss"] for r in line if r["radius"] == 0) for d, line in lines.items()}
        assert middle["random"] == pytest.approx(middle["ascent"])  # the same network, where it stands
        assert [r["radius"] for r in lines["random"]] == [r["radius"] for r in lines["ascent"]]


def test_with_fewer_than_six_classes_there_is_no_top_5(tmp_path):
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = draw.normal(size=(60, 8, 8)).astype(np.float32) + y[:, None, None]
    np.savez(tmp_path / "three.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    own = {"data": str(tmp_path / "three.npz"), "train_samples": 40, "test_samples": 20, "arms": ["digital"], "seeds": 1, "chips": 1}
    rows = next(iter(computed(trial(tmp_path, **own)).values()))
    assert set(rows[-1]) == {"kind", "arm", "seed"} | MEASURED - {"top5"}


# ------------------------------------------------------------------------------------------------------------------- the protocol


def test_recipes_that_train_alike_share_one_training(folder, cells):
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        f"{arm}-seed{n}.safetensors" for arm in ("digital", "snt", "tuned") for n in (10, 11)
    ]
    one = trial(folder)
    assert one.fit("ptq", 10).path == one.fit("digital", 10).path
    assert one.fit("snt", 10).path != one.fit("tuned", 10).path


def test_the_first_of_the_chosen_arms_trains_for_those_that_share(tmp_path):
    one = trial(tmp_path, arms=["ptq", "digital"])
    assert [cell.name for cell in one.cells() if cell.kind == "training"] == ["ptq-seed10-training", "ptq-seed11-training"]
    assert one.fit("digital", 10).path.name == "ptq-seed10.safetensors"


def test_a_shared_training_is_the_one_that_an_arm_alone_would_have(folder, cells, tmp_path):
    alone = computed(trial(tmp_path, arms=["ptq"], seeds=1, chips=1))
    assert alone["ptq-seed10-chip1100"] == cells["ptq-seed10-chip1100"]
    own, shared = (
        read_tree(path)["model"] for path in (tmp_path / "checkpoints/ptq-seed10.safetensors", trial(folder).fit("ptq", 10).path)
    )
    assert all(torch.equal(value, shared[key]) for key, value in own.items())


def test_every_arm_of_a_seed_begins_with_the_same_weights_and_sees_the_same_images_in_the_same_order(tmp_path):
    one = trial(tmp_path, arms=["digital", "snt", "tuned", "qat", "sam"])
    fits = {n: [one.fit(arm, n) for arm in one.settings.arms] for n in (10, 11)}
    states = {n: [fit._network().state_dict() for fit in arms] for n, arms in fits.items()}
    orders = {n: [list(fit._batches(0, fit.total)) for fit in arms] for n, arms in fits.items()}
    for n in (10, 11):
        for other in states[n][1:]:
            assert all(torch.equal(value, other[key]) for key, value in states[n][0].items())
        for other in orders[n][1:]:
            assert all(torch.equal(a, b) for one, two in zip(orders[n][0], other, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(states[10][0]["0.weight"], states[11][0]["0.weight"])
    assert not torch.equal(orders[10][0][0][0], orders[11][0][0][0])


def test_augmented_images_are_the_same_for_every_arm_and_others_than_the_given(tmp_path):
    one = trial(tmp_path)
    one.settings = one.settings.model_copy(update={"augment": True, "crop": 1})
    plain, *arms = [
        [images for images, _ in fit._batches(0, fit.total)] for fit in (trial(tmp_path).fit("snt", 10), *(one.fit(a, 10) for a in ARMS))
    ]
    for other in arms[1:]:
        assert all(torch.equal(a, b) for a, b in zip(arms[0], other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(arms[0], plain, strict=True))


def test_no_numbered_chip_takes_part_in_training(tmp_path, monkeypatch):
    numbers, place = set(), Analog.place

    def watched(self, chip, *rest, **more):
        numbers.add(chip.number)
        return place(self, chip, *rest, **more)

    monkeypatch.setattr(Analog, "place", watched)
    one = trial(tmp_path, arms=["tuned"], seeds=1)
    for cell in one.cells():
        if cell.kind == "training":
            list(one.rows(cell))
            assert numbers == {None}  # anonymous, new at every step
        elif cell.kind == "chip":
            list(one.rows(cell))
            assert cell.chip in numbers


def test_measuring_leaves_the_trained_network_as_it_is(folder, cells):
    one = trial(folder)
    model = one._deployed("tuned", 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for cell in one.cells():
        if (cell.kind, cell.arm, cell.number) == ("chip", "tuned", 10):
            list(one.rows(cell))
    assert one._deployed("tuned", 10) is model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {layer.chip.number for layer in analog_layers(model).values()} == {1100}


def test_a_cell_does_not_depend_on_what_was_computed_before_it_in_the_process(folder, cells):
    one = trial(folder)
    for cell in reversed([cell for cell in one.cells() if cell.kind != "training"]):
        torch.manual_seed(len(cell.name))
        assert list(one.rows(cell)) == cells[cell.name]


def test_a_checkpoint_that_was_lost_is_trained_again_to_the_same_rows(folder, cells, tmp_path):
    assert (
        list(trial(tmp_path).rows(next(c for c in trial(tmp_path).cells() if c.name == "snt-seed11-chip1101")))
        == (cells["snt-seed11-chip1101"])
    )


# ------------------------------------------------------------------------------------------------------------------- refusals


def test_vectors_are_refused(tmp_path, data_file):
    own = {"data": str(data_file), "train_samples": 45, "test_samples": 30}
    with pytest.raises(ValueError, match=r"my\.npz: a study takes images, not vectors"):
        trial(tmp_path, **own).check()


@pytest.mark.parametrize("arm", ["ptq-mse", "adaround", "lsq"])
def test_an_arm_that_rounds_weights_is_refused_on_hardware_without_levels_before_anything_is_computed(tmp_path, arm):
    with pytest.raises(ValueError, match="quantise"):
        trial(tmp_path, arms=["digital", arm], profile="pcm").check()
    assert list(tmp_path.iterdir()) == []


def test_tiles_too_small_for_a_kernel_are_refused(tmp_path):
    one = trial(tmp_path)
    one.__dict__["profile"] = replace(one.profile, rows=4)
    with pytest.raises(ValueError, match="4"):
        one.check()
