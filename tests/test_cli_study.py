import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from galvanic.cli import app, study
from galvanic.storage import lock
from galvanic.studies.directory import RunDirectory
from galvanic.studies.grid import StudyDirectory
from galvanic.studies.protocol import STUDIES
from galvanic.studies.settings import new_settings
from galvanic.train import RECIPES

SIZE = ["--train-samples", "60", "--test-samples", "30", "--shrink", "1", "--width", "2", "--chips", "1", "--workers", "1"]
TINY = ["survival", *SIZE, "--data", "my.npz", "--seeds", "1", "--epochs", "2", "--arm", "ptq", "--arm", "snt", "--condition", "level 1"]


def invoke(*arguments, **options) -> Result:
    result = CliRunner(**options).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(*arguments) -> str:
    """The one line with which a command is refused: on standard error, exit code 2, without a traceback."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


def write_images(path: Path) -> None:
    draw = np.random.default_rng(0)
    y = np.arange(120) % 10
    x = (np.eye(64)[6 * y] * 3 + draw.normal(size=(120, 64)) / 2).astype(np.float32).reshape(-1, 8, 8)
    np.savez(path, x_train=x[:70], y_train=y[:70], x_test=x[70:], y_test=y[70:])


def no_page(folder: Path) -> Path:
    (folder / "report.html").touch()
    return folder / "report.html"


def results(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".jsonl", ".safetensors")}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with data and a finished study."""
    place = tmp_path_factory.mktemp("world")
    write_images(place / "my.npz")
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr("galvanic.report.write", no_page)
        result = invoke("study", *TINY, "--out", "finished")
    assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def real_report():
    """The page takes most of the time of a tiny study: only tests that ask for it get it."""


@pytest.fixture(autouse=True)
def elsewhere(world, tmp_path, monkeypatch, request):
    """Every test has a folder of its own to stand in, with the data."""
    shutil.copy(world / "my.npz", tmp_path)
    monkeypatch.chdir(tmp_path)
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("galvanic.report.write", no_page)


@pytest.fixture
def folder(world) -> Path:
    """A finished study."""
    shutil.copytree(world / "finished", "finished")
    return Path("finished")


# ------------------------------------------------------------------------------------------------------------------- what it tells


def test_without_a_name_the_studies_are_listed_with_their_arms_in_full():
    result = invoke("study")
    assert result.exit_code == 0
    for one in STUDIES.values():
        assert f"{one.name}  {one.summary}" in result.stdout
        assert ", ".join(one.arms) in result.stdout
    assert os.listdir() == ["my.npz"]


def test_recipes_are_listed_by_their_full_names():
    printed = invoke("recipes").stdout
    assert all(f"│ {name} " in printed for name in RECIPES)


def test_the_help_has_examples_that_work(monkeypatch):
    assert invoke("study", "--help").exit_code == 0
    examples = [shlex.split(line) for line in map(str.strip, study.__doc__.splitlines()) if line.startswith("galvanic study")]
    assert len(examples) >= 4
    begun = []
    monkeypatch.setattr(StudyDirectory, "execute", lambda self, *_, **how: begun.append(self))
    monkeypatch.setattr(StudyDirectory, "summary", lambda self: [])
    for _, *arguments in examples:
        if "--root" not in arguments and "--resume" not in arguments:  # those need data, or a study
            result = invoke(*arguments)
            assert result.exit_code == 0, result.stderr
    assert begun


def test_a_study_prints_its_accuracies_and_leaves_what_it_says(folder):
    parts = ["cells", "checkpoints", "config.json", "environment.json", "report.html", "rows.jsonl", "run.lock", "summary.jsonl"]
    assert sorted(os.listdir(folder)) == parts
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*/*")}
    result = invoke("study", "--resume", folder, "--workers", 2)  # nothing is left to do
    assert result.exit_code == 0
    assert "1 training x 1 unseen chips" in result.stdout
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    measured = {row["arm"]: row["accuracy"] for row in rows if row["kind"] == "chip"}
    assert set(measured) == {"ptq", "snt"}
    for arm, accuracy in measured.items():
        assert any(line.split()[:2] == [arm, f"{100 * accuracy:.1f}"] for line in result.stdout.splitlines())
    assert f"report: {folder}/report.html" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*/*")} == before


def test_the_page_of_a_study_finished_or_not_is_written_from_its_rows(folder, real_report):
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    for kept in (rows, rows[: len(rows) // 2]):
        (folder / "rows.jsonl").write_text("".join(kept))
        (folder / "report.html").unlink()
        assert invoke("report", folder).exit_code == 0
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")


def test_an_arm_or_a_condition_given_twice_counts_once(folder):
    again = invoke("study", *TINY, "--arm", "ptq", "--condition", "level 1", "--out", "again")
    assert again.exit_code == 0, again.stderr
    assert results(Path("again")) == results(folder)


def test_studies_without_a_folder_of_their_own_are_numbered():
    assert invoke("study", *TINY).exit_code == 0
    (Path("studies") / "survival-2").mkdir()
    (Path("studies") / "survival-2" / "rows.jsonl").touch()
    assert "report: studies/survival-3/report.html" in invoke("study", *TINY).stdout.replace("\n", "")


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["surviva"], "unknown study 'surviva'; known: survival, "),
        (["survival", "--seeds", "0"], "--seeds"),
        (["survival", "--chips", "0"], "--chips"),
        (["survival", "--epochs", "0"], "--epochs"),
        (["survival", "--workers", "0"], "--workers"),
        (["survival", "--arm", "turbo"], "study 'survival' has no arm 'turbo'; it has digital, "),
        (["survival", "--condition", "level 9"], "study 'survival' has no condition 'level 9'; it has level 0, "),
        (["survival", "--profile", "nosuch"], "unknown profile 'nosuch'"),
        (["survival", "--engine", "turbo"], "unknown engine 'turbo'; known: processes, ray"),
        (["survival", "--data", "nosuch.npz"], "nosuch.npz"),
        (["survival", "--data", "my.npz", "--train-samples", "71"], "train_samples is 71; expected 10 "),
        (["--seeds", "3"], "--seeds of which study? `galvanic study` lists them"),
        (["--resume", "nosuch"], "no study in nosuch (it has no config.json)"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_studied_is_refused_and_nothing_is_begun(arguments, said):
    assert said in refusal("study", *arguments)
    assert not list(Path().rglob("config.json"))


def test_an_arm_that_does_not_fit_the_hardware_is_refused_before_anything_is_begun():
    assert "quantise" in refusal("study", *TINY, "--arm", "ptq-mse", "--profile", "pcm")
    assert not list(Path().rglob("config.json"))


def test_without_ray_its_engine_is_refused_before_anything_is_begun(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refusal("study", *TINY, "--engine", "ray") == "--engine ray: Ray is not installed; pip install 'galvanic[ray]'"
    assert os.listdir() == ["my.npz"]


@pytest.mark.parametrize(
    ("typed", "named"), [("--seeds 2", "--seeds"), ("--arm ptq", "--arm"), ("--out x", "--out"), ("survival", "survival")]
)
def test_a_resumed_study_keeps_its_settings_and_says_so(folder, typed, named):
    assert refusal("study", *typed.split(), "--resume", folder) == f"--resume keeps the settings of the study; leave out {named}"


@pytest.mark.parametrize("damage", ["truncated", "empty", "list", "epochs", "study", "deep", "not text"])
def test_a_damaged_configuration_is_refused_and_left(folder, damage):
    path = folder / "config.json"
    text = path.read_text()
    damaged = {
        "truncated": text[:100].encode(),
        "empty": b"",
        "list": b"[1, 2]",
        "epochs": json.dumps(json.loads(text) | {"epochs": 3}).encode(),
        "study": text.replace('"study"', '"studi"').encode(),
        "deep": b"[" * 100_000,
        "not text": b"\xff\xfe\x00",
    }[damage]
    path.write_bytes(damaged)
    before = results(folder)
    assert f"{path} is damaged" in refusal("study", "--resume", folder)
    assert path.read_bytes() == damaged
    assert results(folder) == before


def test_a_study_whose_recipes_changed_is_refused(folder, monkeypatch):
    now = STUDIES["survival"]
    ptq = replace(now.arms["ptq"], summary="Something else.")
    monkeypatch.setitem(STUDIES, "survival", replace(now, arms=now.arms | {"ptq": ptq}))
    said = refusal("study", "--resume", folder)
    assert said == f"{folder}: the recipes or conditions of study 'survival' have changed since it began; begin a new one"


def test_a_run_and_a_study_do_not_go_on_with_each_other(folder):
    run = RunDirectory(Path("run"), new_settings(data="digits", profile="pcm", recipes=["ptq"], seeds=[0], chips=[1000], threads=1))
    run.create(run.settings.load_data(), "galvanic run")
    assert refusal("study", "--resume", "run") == "run holds a run, not a study; `galvanic run --resume` goes on with it"
    assert str(folder) in refusal("run", "--resume", folder)
    for command in (["run"], ["study", *TINY]):
        assert f"{folder} holds a run already" in refusal(*command, "--out", folder)


def test_data_that_changed_or_were_cut_in_half_are_refused_and_nothing_is_lost(folder):
    before, data = results(folder), Path("my.npz")
    raw, arrays = data.read_bytes(), dict(np.load(data))
    (folder / "cells" / "snt-seed10-chip1100.jsonl").unlink()
    np.savez(data, **arrays | {"x_train": arrays["x_train"] + 1})
    assert refusal("study", "--resume", folder) == "my.npz: the data have changed since this study began; start a new one"
    data.write_bytes(raw[: len(raw) // 2])
    assert refusal("study", "--resume", folder).startswith("my.npz: ")
    data.unlink()
    assert refusal("study", "--resume", folder) == "my.npz: no such file"
    data.write_bytes(raw)
    assert invoke("study", "--resume", folder, "--workers", 1).exit_code == 0
    assert results(folder) == before


def test_a_damaged_checkpoint_is_named_and_can_be_taken_out_of_the_way(folder):
    before, path = results(folder), folder / "checkpoints" / "snt-seed10.safetensors"
    (folder / "cells" / "snt-seed10-chip1100.jsonl").unlink()
    path.write_bytes(path.read_bytes()[:-9])
    assert str(path) in refusal("study", "--resume", folder, "--workers", 1)
    path.unlink()
    assert invoke("study", "--resume", folder, "--workers", 1).exit_code == 0
    assert results(folder) == before


def test_a_study_in_use_is_refused(folder):
    with lock(folder):
        assert f"{folder} is in use by process {os.getpid()}" in refusal("study", "--resume", folder)


@pytest.mark.parametrize("room", [0, 30_000, 90_000])
def test_a_full_disk_stops_the_study_in_one_line_and_it_goes_on_when_there_is_room(folder, small_disk, room):
    """Whatever was written before is whole."""
    filler, out = small_disk / "filler", small_disk / "out"
    out.mkdir()
    (out / "run.lock").touch()
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - room))
    message = refusal("study", *TINY, "--out", out)
    assert message.startswith(str(out))
    assert message.endswith("No space left on device")
    assert list(small_disk.rglob("*.tmp")) == []
    filler.unlink()
    begun = (out / "config.json").exists()
    assert begun == (room > 0)
    assert invoke("study", *(("--resume", out, "--workers", 1) if begun else (*TINY, "--out", out))).exit_code == 0
    assert results(out) == results(folder)


# ------------------------------------------------------------------------------------------------------------------- signals

LONG = [*TINY[:-6], "--arm", "ptq", "--condition", "level 1", "--epochs", "300"]


@pytest.fixture(scope="module")
def undisturbed(world) -> dict[str, bytes]:
    with contextlib.chdir(world):
        assert invoke("study", *LONG, "--out", "long").exit_code == 0
    return results(world / "long")


def emptied(group: int) -> bool:
    """Whether every process of a group has ended, soon."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_a_study_that_is_stopped_leaves_no_process_behind_and_goes_on_to_the_same_rows(sent, undisturbed):
    """While another process trains. Ctrl-C reaches all processes at once, a kill only the first."""
    command = [sys.executable, "-m", "galvanic", "study", *LONG, "--workers", "2", "--out", "a folder"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out, pipe = Path("a folder"), subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not (out / "checkpoints" / "ptq-seed10.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        stopped = time.monotonic()
        stdout, stderr = process.communicate(timeout=20)
        assert time.monotonic() - stopped < 8
        assert emptied(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert stdout == ""
    if sent == signal.SIGINT:
        assert (process.returncode, stderr.strip()) == (130, "stopped; go on with: galvanic study --resume 'a folder'")
    assert not (out / "report.html").exists()
    assert invoke("study", "--resume", out, "--workers", 1).exit_code == 0
    assert results(out) == undisturbed


def test_a_study_stopped_before_it_began_does_not_say_that_it_could_go_on(monkeypatch):
    monkeypatch.setattr("galvanic.studies.grid.StudySettings.load_data", lambda _: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
    result = CliRunner().invoke(app, ["study", *TINY, "--out", "out"])
    assert result.exit_code == 130
    assert result.stderr.strip() == "stopped; nothing was begun"
    assert not Path("out/config.json").exists()
