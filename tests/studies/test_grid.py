"""A study is computed once, whatever happens to it on the way."""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from multiprocessing import get_context

import pytest
import torch

from galvanic.storage import read_tree
from galvanic.studies.grid import StudyDirectory, _digest, on_ray, processes, study_settings
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


def contents(folder):
    """What equal studies share."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".jsonl", ".safetensors")}


def test_rows_say_what_was_measured_on_which_chip(whole):
    rows = [json.loads(line) for line in whole[1].splitlines()]
    chips = [row for row in rows if row["kind"] == "chip"]
    assert len(chips) == len(ARMS) * 2 * 2 * len(CONDITIONS)
    assert all(0 <= row["accuracy"] <= row["top5"] <= 1 and row["nll"] > 0 and row["n_test"] == 30 for row in chips)
    assert {row["arm"] for row in rows if row["kind"] == "digital"} == {"ptq", "tuned"}  # digital shares the training of ptq


def test_two_processes_give_the_rows_of_one(whole, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(whole[0], folder)
    for path in (*folder.glob("*/ptq-seed*"), *folder.glob("cells/digital-seed11-*")):
        path.unlink()
    assert executed(StudyDirectory.open(folder), workers=2) == whole[1]
    assert contents(folder) == contents(whole[0])


def torn(path):
    """Whether a file is there in part."""
    if path.suffix == ".safetensors":
        return not read_tree(path)
    text = path.read_text()
    return not text.endswith("\n") or not all(map(json.loads, text.splitlines()))


def test_a_study_killed_at_random_moments_ends_with_the_rows_of_one_left_in_peace(tmp_path):
    """Each time in a child of a process that imported everything before, so that the moments fall into the work."""
    context, moments = get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["galvanic.studies.grid", "torch._dynamo"])  # the latter is what the first step of an optimiser imports
    few = {"arms": ["ptq", "snt"], "epochs": 8}

    def child(directory):
        process = context.Process(target=directory.execute, args=(print,))
        process.start()
        return process

    undisturbed = study(tmp_path / "undisturbed", **few)
    started = time.monotonic()
    process = child(undisturbed)
    process.join()
    seconds = time.monotonic() - started
    assert process.exitcode == 0
    interrupted, kept, kills = study(tmp_path / "interrupted", **few), {}, 0
    for _ in range(8):
        process = child(interrupted)
        process.join(moments.uniform(0, seconds / 3))
        kills += process.is_alive()
        process.kill()
        process.join()
        found = [path for path in interrupted.folder.glob("*/*") if path.suffix in (".jsonl", ".safetensors")]
        assert not any(map(torn, found))
        cells = {path: path.stat().st_mtime_ns for path in found if path.suffix == ".jsonl"}
        assert kept.items() <= cells.items()  # what was finished is neither lost nor computed again
        kept = cells
    assert kills > 2
    assert kept
    executed(StudyDirectory.open(interrupted.folder))
    assert contents(interrupted.folder) == contents(undisturbed.folder)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())


@pytest.mark.parametrize("draw", range(3))
def test_whatever_is_missing_or_half_written_is_computed_again_to_the_byte(whole, tmp_path, draw):
    folder, chosen = tmp_path / "study", random.Random(draw)
    shutil.copytree(whole[0], folder)
    cells = sorted((folder / "cells").iterdir())
    for path in chosen.sample(cells, 4):
        leftover = path.with_name(f".{path.name}.4242.tmp")
        leftover.write_bytes(path.read_bytes()[:50])
        path.unlink()
    (folder / "rows.jsonl").unlink()
    checkpoints = sorted((folder / "checkpoints").iterdir())
    for path in chosen.sample(checkpoints, 2):
        path.unlink()  # trained again where a cell needs it
    kept = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.jsonl")}
    assert executed(StudyDirectory.open(folder)) == whole[1]
    assert contents(folder).items() <= contents(whole[0]).items()
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert not list(folder.rglob(".*.tmp"))


def test_a_folder_that_was_emptied_holds_the_next_study_and_not_the_last(tmp_path):
    """A process keeps the study it works on, but not for ever."""
    few = {"arms": ["ptq"], "conditions": ["level 1"], "seeds": 1, "chips": 1}
    first = executed(study(tmp_path / "study", **few))
    shutil.rmtree(tmp_path / "study")
    other = executed(study(tmp_path / "study", **few | {"train_samples": 70}))
    assert other != first
    assert other == executed(study(tmp_path / "another", **few | {"train_samples": 70}))


def test_progress_adds_up_to_the_whole_and_threads_are_given_back(whole):
    directory, paid, threads = StudyDirectory.open(whole[0]), [], torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (whole[0] / "cells" / "ptq-seed10-chip1100.jsonl").unlink()
        directory.execute(lambda name, effort: paid.append((name, effort)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    cells = Trial(directory.settings, directory.data(), directory.folder).cells()
    assert sorted(paid) == sorted((cell.name, cell.effort) for cell in cells)


JOBS = """
import os, pathlib, time

def killed(folder):
    os.kill(os.getpid(), 9)

def full(folder):
    raise OSError(28, "No space left on device", "a file")

def forever(folder):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
"""


def test_processes_that_die_or_fail_or_are_left_are_waited_for_no_longer(tmp_path, monkeypatch):
    (tmp_path / "jobs_of_a_study.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    jobs = importlib.import_module("jobs_of_a_study")
    with pytest.raises(RuntimeError, match="a process of this study was killed; if memory ran out, go on with fewer than 2 --workers"):
        list(processes(jobs.killed, [(str(tmp_path),)], 2))
    with pytest.raises(OSError, match="No space left on device: 'a file'"):
        list(processes(jobs.full, [(str(tmp_path),)], 2))
    (tmp_path / "pids").mkdir()

    def interrupt():
        while not (found := os.listdir(tmp_path / "pids")):
            time.sleep(0.01)
        pids.extend(map(int, found))
        os.kill(os.getpid(), signal.SIGINT)

    pids = []
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(processes(jobs.forever, [(str(tmp_path / "pids"),)], 2))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_nothing_to_do_begins_no_process():
    assert list(processes(str, [], 2)) == []


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
