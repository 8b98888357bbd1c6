"""A study is computed once, whatever happens to it on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from galvanic.studies.grid import StudyDirectory, _digest, on_ray, study_settings
from galvanic.studies.protocol import STUDIES
from galvanic.studies.trial import Trial

SMALL = {"train_samples": 60, "test_samples": 30, "epochs": 1, "width": 2}
ARMS, CONDITIONS = ("ptq", "digital", "tuned"), ("level 1", "level 1, recalibrated", "fluctuating 1")


def small(**changes):
    given = SMALL | {"seeds": 2, "chips": 2, "arms": ARMS, "conditions": CONDITIONS, "data": "digits", "shrink": 1} | changes
    return study_settings("survival", **given)


def study(folder, **changes):
    directory = StudyDirectory(folder, small(**changes))
    directory.create(directory.settings.load_data(), "galvanic study")
    return directory


def executed(directory, **how):
    directory.execute(lambda name, effort: None, **how)
    return (directory.folder / "rows.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "study"
    return folder, executed(study(folder))


def test_rows_say_what_was_measured_on_which_chip(whole):
    rows = [json.loads(line) for line in whole[1].splitlines()]
    chips = [row for row in rows if row["kind"] == "chip"]
    assert len(chips) == len(ARMS) * 2 * 2 * len(CONDITIONS)
    assert all(0 <= row["accuracy"] <= row["top5"] <= 1 and row["nll"] > 0 and row["n_test"] == 30 for row in chips)
    assert {row["arm"] for row in rows if row["kind"] == "digital"} == {"ptq", "tuned"}  # digital shares the training of ptq


def test_two_processes_give_the_rows_of_one(whole, tmp_path):
    assert executed(study(tmp_path / "study"), workers=2) == whole[1]


def test_a_killed_study_goes_on_and_ends_with_the_same_rows(whole, tmp_path):
    study(tmp_path / "study")
    code = "import sys; from pathlib import Path; from galvanic.studies.grid import StudyDirectory;"
    code += "StudyDirectory.open(Path(sys.argv[1])).execute(lambda name, effort: print(name, flush=True))"
    for finished in (1, 5):
        with subprocess.Popen([sys.executable, "-c", code, tmp_path / "study"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(finished):
                process.stdout.readline()
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    directory = StudyDirectory.open(tmp_path / "study")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir() if path.suffix == ".jsonl"}
    assert kept
    assert executed(directory) == whole[1]
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())


def test_a_chip_does_not_depend_on_what_was_computed_before_it(whole):
    directory = StudyDirectory.open(whole[0])
    trial = Trial(directory.settings, directory.data(), directory.folder)
    last = [cell for cell in trial.cells() if cell.kind == "chip"][-1]
    rows = "".join(json.dumps(row) + "\n" for row in trial.rows(last))
    assert rows == directory.path(last).read_text()


def test_chips_of_the_evaluation_are_apart_from_those_that_tuned_the_recipes():
    settings = small()
    assert min(settings.seeds) >= 10
    assert min(settings.chips) >= 1100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 0}, "0 seeds on 2 chips: one of each or more"),
        ({"chips": 0}, "2 seeds on 0 chips: one of each or more"),
        ({"arms": ["turbo"]}, "study 'survival' has no arm 'turbo'; it has digital, "),
        ({"conditions": ["level 9"]}, "study 'survival' has no condition 'level 9'; it has level 0, "),
        ({"profile": "pcn"}, "pcn"),
        ({"width": 0}, "width = 0"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_line(changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said.replace("(", r"\(")) as error:
        small(**changes)
    assert "\n" not in str(error.value)


def test_an_unknown_study_is_named():
    with pytest.raises(ValueError, match="unknown study 'survive'; known: survival, "):
        study_settings("survive")


def edited(folder, tmp_path, **changes):
    """A copy of a study whose configuration was changed by hand."""
    target = tmp_path / "edited"
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_configuration_that_was_changed_is_refused(whole, tmp_path):
    with pytest.raises(ValueError, match="is damaged, or was changed: a study keeps its settings"):
        StudyDirectory.open(edited(whole[0], tmp_path, epochs=9))


def test_a_study_of_other_recipes_is_refused(whole, tmp_path, monkeypatch):
    other = dict(STUDIES)
    other["survival"] = type(STUDIES["survival"])(
        **{**vars(STUDIES["survival"]), "arms": {"digital": STUDIES["survival"].arms["ptq"]}},
    )
    monkeypatch.setattr("galvanic.studies.grid.STUDIES", other)
    with pytest.raises(ValueError, match="the recipes or conditions of study 'survival' have changed since it began"):
        StudyDirectory.open(whole[0])


def test_the_folder_of_a_run_is_no_study(tmp_path):
    config = {"data": "digits"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"sha256": _digest(config)}))
    with pytest.raises(ValueError, match="holds a run, not a study"):
        StudyDirectory.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="no study in"):
        StudyDirectory.open(tmp_path / "nowhere")


def test_ray_computes_the_same_rows(whole, tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'galvanic[ray]'")
    assert executed(study(tmp_path / "study"), workers=2, engine=on_ray) == whole[1]


def test_without_ray_its_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'galvanic\[ray\]'"):
        list(on_ray(str, [("x",)], 1))


def test_the_command_line_computes_a_study_and_refuses_what_it_cannot(tmp_path):
    def call(*given, fails=False):
        command = [sys.executable, "-m", "galvanic", *map(str, given)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == (2 if fails else 0), result.stderr
        return result.stderr if fails else result.stdout

    assert "survival-cifar" in call("study")
    assert "sharpness-aware" in call("recipes")
    small = ["--data", "digits", "--shrink", 1, "--train-samples", 60, "--test-samples", 30, "--epochs", 1, "--width", 2, "--seeds", 1]
    few = ["--chips", 1, "--arm", "digital", "--condition", "level 1", "--workers", 1, "--out", "small"]
    assert "report: small/report.html" in call("study", "survival", *small, *few).replace("\n", "")
    assert "better" in (tmp_path / "small" / "report.html").read_text()
    assert "small holds a run already" in call("study", "survival", *small, *few, fails=True)
    assert (
        call("study", "--resume", "small", "--seeds", 3, fails=True)
        == "error: --resume keeps the settings of the study; leave out --seeds\n"
    )
    assert "unknown engine 'rays'" in call("study", "survival", "--engine", "rays", fails=True)
    assert "say where they are with --root" in call("study", "survival", fails=True)
