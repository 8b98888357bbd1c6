import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from galvanic import report
from galvanic.studies.directory import RunDirectory, free_folder, occupied
from galvanic.studies.settings import Settings, new_settings
from galvanic.train import MAIN


@pytest.fixture
def settings(model_file, data_file):
    def made(model: str = "Normed", **changes) -> Settings:
        plain = {"data": str(data_file), "model": f"{model_file}:{model}", "profile": "pcm", "recipes": list(MAIN), "seeds": [0]}
        small = {"chips": [1000, 1001], "ages_s": [0.0, 3600.0], "noise_levels": [1.0], "epochs": 2, "batch": 16, "threads": 1}
        return new_settings(**plain | small | changes)

    return made


def created(folder: Path, settings: Settings) -> RunDirectory:
    directory = RunDirectory(folder, settings)
    directory.create(settings.load_data(), "galvanic run")
    return directory


def executed(directory: RunDirectory, progress=lambda name, effort: None, checkpoint_every_s: float = 2.0) -> RunDirectory:
    directory.execute(directory.study(directory.settings.load_data(), checkpoint_every_s), progress)
    return directory


def contents(folder: Path) -> dict[str, bytes]:
    """What equal runs share."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("environment.json", "report.html")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def finished(tmp_path, settings) -> RunDirectory:
    return executed(created(tmp_path / "run", settings()))


# ------------------------------------------------------------------------------------------------------------------- a run


def test_a_run_leaves_what_it_says(finished):
    folder = finished.folder
    assert sorted(p.name for p in folder.iterdir()) == ["cells", "checkpoints", "config.json", "environment.json", "models", "rows.jsonl"]
    config = json.loads((folder / "config.json").read_text())
    assert {k: config[k] for k in ("n_train", "n_test", "parameters", "command")} == {
        "n_train": 45,
        "n_test": 30,
        "parameters": 6 * 8 + 8 + 8 + 8 + 8 * 3 + 3,
        "command": "galvanic run",
    }
    assert set(config["recipe_summaries"]) == set(MAIN)
    environment = json.loads((folder / "environment.json").read_text())
    assert {"galvanic", "python", "torch", "threads", "started", "seconds"} <= set(environment)
    assert report.write(folder) == folder / "report.html"


def test_rows_are_the_cells_in_order(finished):
    cells = [json.loads(line) for cell in finished.study(finished.settings.load_data(), 2.0).cells() for line in cell_lines(finished, cell)]
    assert finished.rows() == cells
    assert len(cells) == len((finished.folder / "rows.jsonl").read_text().splitlines()) > 20


def cell_lines(directory: RunDirectory, cell) -> list[str]:
    return (directory.folder / "cells" / f"{cell.name}.jsonl").read_text().splitlines()


def test_rows_hold_plain_finite_numbers(finished):
    def refuse(constant: str):
        raise AssertionError(constant)

    for line in (finished.folder / "rows.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_two_runs_of_the_same_settings_are_the_same_files_and_another_seed_is_not(tmp_path, settings, finished):
    again = executed(created(tmp_path / "again", settings()))
    assert contents(again.folder) == contents(finished.folder)
    other = executed(created(tmp_path / "other", settings(seeds=[1])))
    assert not set(rows_without_seed(other)) & set(rows_without_seed(finished))


def rows_without_seed(directory: RunDirectory) -> list[tuple[float, ...]]:
    return [(r["loss"],) if r["kind"] == "training" else (r["error"],) for r in directory.rows() if r["kind"] in ("training", "layer")]


def test_an_opened_run_has_the_settings_it_began_with(finished):
    opened = RunDirectory.open(finished.folder)
    assert opened.settings == finished.settings
    assert opened.settings.hardware() == finished.settings.hardware()


# ------------------------------------------------------------------------------------------------------------------- going on


def test_a_finished_run_computes_nothing_again(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*/*")}
    executed(RunDirectory.open(finished.folder))
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*/*")} == before


@pytest.mark.parametrize("draw", range(6))
def test_whatever_is_missing_is_computed_again_to_the_bit(finished, draw):
    """Any part of the files that a run writes after its configuration may be lost."""
    whole = contents(finished.folder)
    chosen = random.Random(draw)
    files = sorted(path for path in finished.folder.rglob("*") if path.is_file() and path.name not in ("config.json", "run.lock"))
    for path in chosen.sample(files, chosen.randint(1, len(files))):
        path.unlink()
    for name in ("cells", "models", "checkpoints"):
        if chosen.random() < 0.2:
            shutil.rmtree(finished.folder / name)
    torch.manual_seed(draw)
    executed(RunDirectory.open(finished.folder))
    lost_for_good = {name for name in whole if name not in contents(finished.folder)}
    assert {name.split("/")[0] for name in lost_for_good} <= {"models", "checkpoints"}  # of finished cells, which need them no more
    assert contents(finished.folder).items() <= whole.items()
    assert contents(finished.folder)["rows.jsonl"] == whole["rows.jsonl"]


class Stop(BaseException):
    pass


def test_a_run_stopped_after_any_part_goes_on_to_the_same_files(tmp_path, settings):
    small, told = settings(recipes=["ptq", "noise"], chips=[1000]), []
    whole = contents(executed(created(tmp_path / "whole", small), lambda name, effort: told.append(name)).folder)
    assert len(told) == 1 + 2 * (2 + 1 + 1)
    for stop in range(len(told)):
        folder = tmp_path / f"stopped-{stop}"
        left = [stop]

        def progress(name, effort, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Stop

        with pytest.raises(Stop):
            executed(created(folder, small), progress)
        assert (folder / "rows.jsonl").exists()  # what there is, is gathered
        executed(RunDirectory.open(folder), checkpoint_every_s=0.0)
        assert contents(folder) == whole


def test_progress_adds_up_to_the_whole_however_often_a_run_goes_on(tmp_path, settings):
    directory = created(tmp_path / "run", settings())
    total = sum(cell.effort for cell in directory.study(directory.settings.load_data(), 2.0).cells())
    paid = []
    executed(directory, lambda name, effort: paid.append(effort))
    assert sum(paid) == pytest.approx(total)
    assert min(paid) >= 0
    (directory.folder / "cells" / "noise-seed0-training.jsonl").unlink()
    paid.clear()
    executed(directory, lambda name, effort: paid.append(effort))
    assert sum(paid) == pytest.approx(total)


def test_leftovers_of_killed_writers_are_swept_and_other_files_left(tmp_path, settings):
    directory = created(tmp_path / "run", settings(recipes=["digital"], chips=[1000]))
    leftovers = ["", "cells", "checkpoints", "models"]
    for name in leftovers:
        (directory.folder / name).mkdir(exist_ok=True)
        (directory.folder / name / ".x.jsonl.4242.tmp").touch()
    for name in ("mine.tmp", ".mine.tmp", "notes.txt"):
        (directory.folder / name).touch()
    executed(directory)
    assert [p for name in leftovers for p in (directory.folder / name).glob(".x*.tmp")] == []
    assert all((directory.folder / name).exists() for name in ("mine.tmp", ".mine.tmp", "notes.txt"))


def test_time_adds_up_and_a_damaged_environment_stops_no_run(finished):
    path = finished.folder / "environment.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"seconds": 1000.0, "started": "then"}))
    executed(finished)
    after = json.loads(path.read_text())
    assert after["started"] == "then"
    assert after["seconds"] >= 1000.0
    for damage in ("", "{", "[]", "7", "\x00"):
        path.write_text(damage)
        executed(finished)
        assert json.loads(path.read_text())["seconds"] < 1000


# ------------------------------------------------------------------------------------------------------------------- refusals


def refusal(kind: type[Exception], folder: Path) -> str:
    def go_on() -> None:
        opened = RunDirectory.open(folder)
        opened.study(opened.settings.load_data(), 2.0).cells()

    with pytest.raises(kind) as caught:
        go_on()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.fixture
def begun(tmp_path, settings) -> RunDirectory:
    return created(tmp_path / "run", settings("Net", recipes=["digital"]))


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nosuch"):
        assert refusal(FileNotFoundError, folder) == f"no run in {folder} (it has no config.json)"


def test_a_truncated_configuration_is_refused(begun):
    path = begun.folder / "config.json"
    text = path.read_text()
    for size in range(0, len(text) - 1, 31):
        path.write_text(text[:size])
        assert str(path) in refusal(ValueError, begun.folder)


def test_a_changed_character_of_the_configuration_is_refused(begun):
    path = begun.folder / "config.json"
    raw = path.read_bytes()
    for place in range(0, len(raw), 5):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert str(path) in refusal(ValueError, begun.folder)


def test_a_setting_changed_by_hand_is_refused(begun):
    path = begun.folder / "config.json"
    config = json.loads(path.read_text())
    for changes in ({"epochs": 3}, {"profile": {}}, {"data_note": "x"}, {"new": 1}):
        path.write_text(json.dumps(config | changes))
        assert refusal(ValueError, begun.folder) == f"{path} is damaged, or was changed: a run keeps its settings"
    path.write_text(json.dumps(config, sort_keys=True, indent=7))
    RunDirectory.open(begun.folder)  # another layout, the same settings


def test_data_that_changed_are_refused(begun, data_file):
    arrays = dict(np.load(data_file))
    arrays["x_train"][0, 0] += 1e-3
    np.savez(data_file, **arrays)
    assert refusal(ValueError, begun.folder) == f"{data_file}: the data have changed since this run began; start a new run"
    data_file.unlink()
    assert str(data_file) in refusal(FileNotFoundError, begun.folder)


def test_a_network_file_that_changed_is_refused(begun, model_file):
    model_file.write_text(model_file.read_text() + "\n")
    assert "the file has changed since this run began" in refusal(ValueError, begun.folder)


def test_nothing_is_begun_with_a_network_that_does_not_fit(tmp_path, settings, model_file):
    model_file.write_text("from torch import nn\ndef small():\n    return nn.Linear(6, 2)\ndef none():\n    return nn.Bilinear(6, 6, 3)\n")
    for name, said in (("small", r"gives \(2, 2\)"), ("none", "does not take inputs")):
        with pytest.raises(ValueError, match=said):
            created(tmp_path / "run", settings(name))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_stops_the_run_and_names_the_file(begun):
    executed(begun)
    (begun.folder / "cells" / "digital-seed0-training.jsonl").unlink()
    path = begun.folder / "checkpoints" / "digital-seed0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{path}: damaged"):
        executed(begun)


# ------------------------------------------------------------------------------------------------------------------- folders


def test_a_free_folder_is_named_after_data_and_profile_and_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_folder("digits", "pcm") == Path("runs/digits-pcm")
    assert free_folder("/data/my.v2.npz", "pcm") == Path("runs/my.v2-pcm")
    for name in ("digits-pcm", "digits-pcm-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").touch()
    assert free_folder("digits", "pcm") == Path("runs/digits-pcm-3")


def test_a_folder_in_which_a_run_was_refused_is_free_and_one_with_any_part_of_a_run_is_not(tmp_path):
    (tmp_path / "run.lock").touch()
    (tmp_path / "notes.txt").touch()
    assert not occupied(tmp_path)
    assert not occupied(tmp_path / "nosuch")
    for name in ("cells", "checkpoints", "models", "rows.jsonl", "config.json"):
        (tmp_path / name).touch()
        assert occupied(tmp_path)
        (tmp_path / name).unlink()
