import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import galvanic
from galvanic import cli
from galvanic.cli import app
from galvanic.nn import load
from galvanic.profile import load_profile, profile_names, to_toml
from galvanic.storage import lock

ROW_NEEDS = {  # what the report reads
    "placement": {"layer", "type", "where", "why", "rows", "columns", "tiles", "utilisation", "padding", "parameters"},
    "training": {"recipe", "seed", "epoch", "loss", "noise_level"},
    "digital": {"recipe", "seed", "accuracy", "n_test"},
    "age": {"recipe", "seed", "chip", "age_s", "compensation", "accuracy", "n_test"},
    "level": {"recipe", "seed", "chip", "noise_level", "accuracy", "n_test"},
    "layer": {"recipe", "seed", "chip", "age_s", "layer", "error", "input_max", "input_range", "input_clipped", "output_max"},
}


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
    assert result.stderr.endswith("\n")
    return result.stderr.removeprefix("error: ").rstrip("\n")


SIZE = ["--recipe", "digital", "--recipe", "noise", "--epochs", "2", "--seeds", "1", "--chips", "1", "--batch", "16"]
TINY = ["--data", "my.npz", "--model", "my.py:Net", *SIZE]


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_data, write_models) -> Path:
    """A folder with data, networks and a finished run."""
    place = tmp_path_factory.mktemp("world")
    write_data(place / "my.npz")
    write_models(place / "my.py")
    with contextlib.chdir(place):
        result = invoke("run", *TINY, "--out", "finished")
    assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def real_report():
    """The page itself takes most of the time of a tiny run: only tests that ask for it get it."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, request):
    """Every test has a folder of its own to stand in."""

    def write(folder: Path) -> Path:
        assert (folder / "rows.jsonl").stat().st_size > 1000
        (folder / "report.html").touch()
        return folder / "report.html"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("galvanic.report.write", write)


@pytest.fixture
def tiny(world) -> list[str]:
    """The options of a run that takes a quarter of a second."""
    for name in ("my.npz", "my.py"):
        shutil.copy(world / name, name)
    return TINY


@pytest.fixture
def data_file(tiny) -> Path:
    return Path("my.npz")


@pytest.fixture
def model_file(tiny) -> Path:
    return Path("my.py")


@pytest.fixture
def folder(world, tiny) -> Path:
    """A finished run."""
    shutil.copytree(world / "finished", "finished")
    return Path("finished")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "environment.json"}


def same_results(a: Path, b: Path) -> bool:
    """Rows, checkpoints and models to the byte."""
    return results(a) == results(b)


def results(folder: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in contents(folder).items() if name.endswith((".jsonl", ".safetensors"))}


# ------------------------------------------------------------------------------------------------------------------- good


def test_a_run_of_the_digits_writes_all_that_it_promises(real_report):
    size = ["--epochs", 1, "--seeds", 1, "--chips", 1, "--train-samples", 100]
    result = invoke("run", *size, "--recipe", "noise", "--out", "here")
    assert result.exit_code == 0, result.stderr
    names = {str(p.relative_to("here")) for p in Path("here").rglob("*") if p.is_file()}
    cells = {f"cells/{name}.jsonl" for name in ("placement", "noise-seed0-training", "noise-seed0-chip1000")}
    stored = {f"{place}/noise-seed0.safetensors" for place in ("checkpoints", "models")}
    assert names == cells | stored | {"config.json", "environment.json", "rows.jsonl", "report.html", "run.lock"}
    rows = [json.loads(line) for line in Path("here/rows.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(ROW_NEEDS)
    for row in rows:
        assert ROW_NEEDS[row["kind"]] <= set(row)
    assert "here/report.html" in result.stdout
    assert "noise" in result.stdout
    assert Path("here/report.html").read_text().count("noise") > 3


def test_without_options_it_is_all_recipes_two_seeds_and_ten_chips(monkeypatch):
    """Only what the command asks for is looked at; the run itself takes minutes."""
    asked = []
    monkeypatch.setattr(cli, "_execute", lambda directory, every, new: asked.append((directory, every, new)))
    assert invoke("run").exit_code == 0
    ((directory, every, new),) = asked
    s = directory.settings
    assert (s.data, s.model, s.profile["name"], s.train_samples) == ("digits", "cnn", "pcm", None)
    assert (s.recipes, s.seeds, s.chips) == (["digital", "ptq", "noise"], [0, 1], list(range(1000, 1010)))
    assert (directory.folder, every, new) == (Path("runs/digits-pcm"), 2.0, True)


def test_two_equal_runs_are_equal_to_the_byte_and_another_seed_is_not(tiny, folder):
    assert invoke("run", *tiny, "--out", "again").exit_code == 0
    assert same_results(folder, Path("again"))
    assert invoke("run", *tiny, "--seed", 1, "--out", "other").exit_code == 0

    def losses(folder) -> list[float]:
        return [r["loss"] for r in map(json.loads, Path(folder, "rows.jsonl").read_text().splitlines()) if r["kind"] == "training"]

    assert not set(losses(folder)) & set(losses("other"))


def test_runs_without_a_folder_get_one_each(tiny):
    for _ in range(2):
        assert invoke("run", *tiny, "--recipe", "digital").exit_code == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["my-pcm", "my-pcm-2"]
    assert same_results(Path("runs/my-pcm"), Path("runs/my-pcm-2"))


@pytest.mark.parametrize("name", ["Net", "Normed", "vector", "image"])
def test_a_network_and_data_of_ones_own_are_taken(data_file, model_file, name):
    """Vectors (n, f) reach the network as vectors (n, f); images as images."""
    with model_file.open("a") as stream:
        stream.write("vector = Net()\nimage = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))\n")
    if name == "image":
        arrays = dict(np.load(data_file))
        wide = {k: np.pad(x, ((0, 0), (0, 3))).reshape(-1, 3, 3) if k.startswith("x") else x for k, x in arrays.items()}
        np.savez(data_file, **wide)
    result = invoke(*f"run --data my.npz --model my.py:{name} --epochs 60 --seeds 1 --chips 1 --batch 16 --out out".split())
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert {row["where"] for row in rows if row["kind"] == "placement" and row["type"] in ("Linear", "Conv2d")} == {"analog"}
    if name != "image":
        assert all(row["accuracy"] > 0.5 for row in rows if row["kind"] == "digital")  # three classes: it does learn


def test_a_saved_model_is_the_users_network_again(folder, model_file):
    from galvanic.studies.user import load_builder

    model = load(folder / "models" / "noise-seed0.safetensors", load_builder(f"{model_file}:Net")())
    assert model(torch.randn(4, 6)).shape == (4, 3)


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_runs(tiny, profile, real_report):
    result = invoke("run", *tiny, "--recipe", "ptq", "--profile", profile, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert Path("out/report.html").exists()


def test_a_profile_of_ones_own_runs_and_is_kept_in_the_run(tiny):
    Path("mine.toml").write_text(to_toml(load_profile("pcm")).replace("rows = 512", "rows = 5"))
    assert invoke("run", *tiny, "--profile", "mine.toml", "--out", "out").exit_code == 0
    Path("mine.toml").unlink()
    assert invoke("run", "--resume", "out").exit_code == 0
    assert '"rows": 5' in Path("out/config.json").read_text()


def test_a_finished_run_goes_on_to_itself_and_its_report_is_written_again(folder, real_report):
    before = contents(folder)
    (folder / "report.html").unlink()
    result = invoke("run", "--resume", folder)
    assert result.exit_code == 0
    after = contents(folder)
    html = {"report.html", "run.lock"}
    assert {k: v for k, v in after.items() if k not in html} == {k: v for k, v in before.items() if k not in html}
    assert "report.html" in after
    (folder / "report.html").unlink()
    result = invoke("report", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{folder}/report.html" in result.stdout
    assert (folder / "report.html").exists()


def test_the_table_tells_every_number_whole(folder):
    text = invoke("run", "--resume", folder).stdout
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    numbers = re.findall(r"(\d+\.\d)±0\.0", text)
    expected = [f"{100 * r['accuracy']:.1f}" for r in rows if r["kind"] == "age"]
    assert numbers == expected
    assert "…" not in text
    assert all(head in text for head in ("0 s", "1 h", "1 d", "30 d", "1 y"))


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_the_table_can_be_written_to_any_terminal(folder, charset):
    assert invoke("run", "--resume", folder, charset=charset).exit_code == 0


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_shown_with_its_numbers_and_drawn(name):
    result = invoke("show", name)
    assert result.exit_code == 0
    assert name in result.stdout
    assert Path(f"{name}.svg").stat().st_size > 1000


def test_the_drawing_goes_where_it_is_asked_to():
    assert "plots: sub/x.png" in invoke("show", "ideal", "--out", "sub/x.png").stdout
    assert Path("sub/x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_printed_as_toml_is_the_same_profile(name):
    result = invoke("show", name, "--toml")
    Path("mine.toml").write_text(result.stdout)
    assert load_profile("mine.toml") == load_profile(name)
    assert os.listdir() == ["mine.toml"]  # nothing was drawn


def test_profiles_are_listed():
    result = invoke("profiles")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in profile_names())


def test_version_and_help():
    assert invoke("--version").stdout.strip() == galvanic.__version__
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("run", "report", "profiles", "show"))
    assert "--resume" in invoke("run", "--help").stdout


def test_without_a_command_the_help_is_shown():
    result = invoke()
    assert result.exit_code == 2
    assert "Usage" in result.output
    assert "error" not in result.output


def test_the_module_answers_as_the_command_and_help_does_not_wait_for_torch():
    code = "import sys; sys.argv = ['galvanic', '--help']; import runpy\ntry: runpy.run_module('galvanic', run_name='__main__')\n"
    code += "except SystemExit as stop: assert not stop.code; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "galvanic" in result.stdout


# ------------------------------------------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--profile pcn", "unknown profile 'pcn'; did you mean 'pcm'?"),
        ("--profile nosuch.toml", "no profile file nosuch.toml"),
        ("--recipe nois", "unknown recipe 'nois'; did you mean 'noise'?"),
        ("--recipe xyzzy", "unknown recipe 'xyzzy'; known: digital, ptq, noise"),
        ("--data digit", "unknown dataset 'digit'; did you mean 'digits'?"),
        ("--data nosuch.npz", "nosuch.npz: no such file"),
        ("--data mnist", "say where they are with --root DIR"),
        ("--data mnist --root nosuch", "no train-images-idx3-ubyte"),
        ("--model resnet18", "a network of your own is given as FILE.py:NAME"),
        ("--model nosuch.py:Net", "no file nosuch.py"),
        ("--seeds 0", "Invalid value for '--seeds'"),
        ("--chips 0", "Invalid value for '--chips'"),
        ("--epochs 0", "Invalid value for '--epochs'"),
        ("--batch 0", "Invalid value for '--batch'"),
        ("--train-samples 0", "Invalid value for '--train-samples'"),
        ("--train-samples 3", "3"),
        ("--seed -1", "Invalid value for '--seed'"),
        ("--checkpoint-every -1", "Invalid value for '--checkpoint-every'"),
        ("--checkpoint-every nan", "checkpoint-every"),
        ("--seeds two", "Invalid value for '--seeds'"),
        ("--seeds", "requires an argument"),
        ("--sedes 2", "--seeds"),
        ("extra", "unexpected extra argument"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_and_leaves_nothing(arguments, said):
    assert said in refusal("run", *arguments.split())
    assert os.listdir() == []


def test_a_wrong_command_is_refused_in_one_line():
    assert "did you mean 'run'?" in refusal("runn").lower()


PROFILES = {
    "bits = 0": ('name = "x"\n[[input]]\nkind = "Quantize"\nbits = 0\n', "bits"),
    "unknown key": ('name = "x"\nrowz = 3\n', "did you mean 'rows'?"),
    "not TOML": ("name = \n", "bad.toml: "),
    "no name": ("rows = 3\n", "name is missing"),
    "NaN": ('name = "x"\n[[output]]\nkind = "Gaussian"\nstd = nan\n', "std"),
    "empty": ("", "name is missing"),
    "not text": ("\ud800", "bad.toml"),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("command", ["run", "show"])
def test_a_wrong_profile_file_is_refused_with_file_and_key(name, command):
    text, said = PROFILES[name]
    Path("bad.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refusal("run", "--profile", "bad.toml") if command == "run" else refusal("show", "bad.toml")
    assert "bad.toml" in message
    assert said in message
    assert os.listdir() == ["bad.toml"]


def change(data_file: Path, **arrays) -> None:
    np.savez(data_file, **{k: arrays.get(k, x) for k, x in np.load(data_file).items() if arrays.get(k, x) is not None})


def bad_data(name: str, data_file: Path) -> None:
    arrays = dict(np.load(data_file))
    x, y = arrays["x_train"], arrays["y_train"]
    if name == "NaN":
        x[3, 2] = np.nan
        change(data_file, x_train=x)
    elif name == "infinity":
        change(data_file, x_test=arrays["x_test"] * np.inf)
    elif name == "empty arrays":
        change(data_file, x_train=x[:0], y_train=y[:0])
    elif name == "empty file":
        data_file.write_bytes(b"")
    elif name == "no arrays":
        np.savez(data_file)
    elif name == "missing array":
        change(data_file, y_test=None)
    elif name == "pickle":
        change(data_file, x_train=np.array([{}] * 45, dtype=object))
    elif name == "fewer labels":
        change(data_file, y_train=y[:-1])
    elif name == "other width in the test":
        change(data_file, x_test=arrays["x_test"][:, :-1])
    elif name == "truncated":
        data_file.write_bytes(data_file.read_bytes()[:-100])
    else:
        change(data_file, y_test=arrays["y_test"] + 1)


@pytest.mark.parametrize(
    "name",
    [
        "NaN",
        "infinity",
        "empty arrays",
        "empty file",
        "no arrays",
        "missing array",
        "pickle",
        "fewer labels",
        "other width in the test",
        "truncated",
        "label that training never shows",
    ],
)
def test_wrong_data_are_refused_with_their_file_and_leave_nothing(tiny, data_file, name):
    bad_data(name, data_file)
    assert str(data_file) in refusal("run", *tiny, "--out", "out")
    assert not Path("out").exists()


def test_rows_too_few_for_a_kernel_are_refused_with_what_would_do():
    Path("small.toml").write_text(to_toml(load_profile("pcm")).replace("rows = 512", "rows = 4"))
    message = refusal("run", "--profile", "small.toml", "--out", "out")
    assert "a kernel column takes 9 rows" in message
    assert "tiles of 9 rows or more" in message
    assert not (Path("out") / "config.json").exists()


NETWORKS = {
    "nosuch": ("", "has no network 'nosuch'"),
    "Nett": ("", "did you mean 'Net'?"),
    "syntax": ("def (:", "SyntaxError"),
    "crash": ("x = 1 / 0", "ZeroDivisionError"),
    "leaves": ("raise SystemExit(0)", "SystemExit"),
    "number": ("number = 7", "has no network 'number'"),
    "needs": ("def needs(size): return nn.Linear(size, 3)", "missing 1 required positional argument: 'size'"),
    "gives": ("def gives(): return 7", "makes a int, not a torch.nn.Module"),
    "narrow": ("def narrow(): return nn.Linear(5, 3)", "does not take inputs of shape (2, 6)"),
    "classes": ("def classes(): return nn.Linear(6, 4)", "gives (2, 4) for 2 inputs; scores of shape (2, 3) are needed"),
    "digital": ("def digital(): return nn.Bilinear(6, 6, 3)", "does not take inputs"),
    "nothing": ("class nothing(nn.LayerNorm):\n    def __init__(self):\n        super().__init__(6)\n"
                "    def forward(self, x):\n        return super().forward(x)[:, :3]\n", "no layer that could go on a chip"),
    "frozen": ("def frozen(): return Net().requires_grad_(False)", "nothing to train"),
    "lazy": ("def lazy(): return nn.LazyLinear(3)", "has no shape before the first call"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_network_is_refused_in_one_line_before_anything_begins(data_file, model_file, name):
    text, said = NETWORKS[name]
    model_file.write_text(model_file.read_text() + "import torch\n" + text + "\n")
    message = refusal("run", "--data", data_file, "--model", f"my.py:{name}", "--out", "out")
    assert said in message
    assert "my.py" in message or name == "nothing"
    assert not (Path("out") / "config.json").exists()


def test_vectors_and_the_built_in_network_do_not_fit_and_it_says_what_would():
    np.savez("v.npz", x_train=np.eye(6), y_train=np.arange(6) % 2, x_test=np.eye(6), y_test=np.arange(6) % 2)
    assert "not vectors of 6 features; bring your own with --model FILE.py:NAME" in refusal("run", "--data", "v.npz")


# ------------------------------------------------------------------------------------------------------------------- bad folders


def test_a_file_where_the_folder_should_be_is_refused(tiny):
    Path("taken").touch()
    assert refusal("run", *tiny, "--out", "taken") == "taken: File exists"
    assert refusal("run", *tiny, "--out", "taken/below") == "taken/below: Not a directory"
    assert refusal("run", "--resume", "taken") == "no run in taken (it has no config.json)"


def test_a_folder_that_cannot_be_written_is_refused(tiny, tmp_path):
    place = tmp_path / "locked"
    place.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(["chattr", "+i", place], capture_output=True).returncode:
            pytest.skip("as root, on a file system without immutable folders, every folder can be written")
    else:
        place.chmod(0o500)
    try:
        for out in (place, place / "below"):
            message = refusal("run", *tiny, "--out", out)
            assert str(place) in message
            assert "not permitted" in message or "denied" in message
    finally:
        subprocess.run(["chattr", "-i", place], capture_output=True)
        place.chmod(0o700)


def test_a_folder_of_a_run_is_refused_and_left_as_it_is(tiny, folder):
    before = contents(folder)
    assert refusal("run", *tiny, "--out", folder) == (
        f"{folder} holds a run already; --resume {folder} goes on with it, or choose another --out"
    )
    assert contents(folder) == before


def test_the_remains_of_a_run_are_not_mixed_into_another(tiny, folder):
    """Its cells and checkpoints may be of other settings."""
    (folder / "config.json").unlink()
    assert "holds parts of a run" in refusal("run", *tiny, "--out", folder)


def test_two_runs_in_one_folder_the_second_is_refused_with_the_number_of_the_first(tiny, folder):
    with lock(folder):
        message = refusal("run", "--resume", folder)
        assert message == f"{folder} is in use by process {os.getpid()}; wait for it, or choose another --out"
    with lock(Path("new")):
        assert f"new is in use by process {os.getpid()}" in refusal("run", *tiny, "--out", "new")
    assert invoke("run", "--resume", folder).exit_code == 0


@pytest.mark.parametrize("room", [0, 20_000, 60_000])
def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on_when_there_is_room(tiny, folder, small_disk, room):
    """Whatever was written before is whole."""
    filler = small_disk / "filler"
    arguments = ("run", *tiny, "--checkpoint-every", 0, "--out", small_disk / "out")
    (small_disk / "out").mkdir()
    (small_disk / "out" / "run.lock").touch()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - room))
    message = refusal(*arguments)
    assert message.startswith(str(small_disk / "out"))
    assert message.endswith("No space left on device")
    assert list(small_disk.rglob("*.tmp")) == []
    filler.unlink()
    begun = (small_disk / "out" / "config.json").exists()
    assert begun == (room > 0)
    assert invoke(*(("run", "--resume", small_disk / "out") if begun else arguments)).exit_code == 0
    assert same_results(small_disk / "out", folder)


# ------------------------------------------------------------------------------------------------------------------- bad resumes


def test_a_folder_without_a_run_is_not_resumed():
    for place in ("nosuch", "."):
        assert refusal("run", "--resume", place) == f"no run in {place} (it has no config.json)"
    assert os.listdir() == []


@pytest.mark.parametrize("option", ["--data digits", "--seeds 2", "--out x", "--profile pcm", "--recipe noise", "--partial-test"])
def test_a_resumed_run_keeps_its_settings_and_says_so(folder, option):
    name = option.split()[0]
    assert refusal("run", "--resume", folder, *option.split()) == f"--resume keeps the settings of the run; leave out {name}"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "list", "a setting", "deep", "not text", "no fact"])
def test_a_damaged_configuration_is_refused(folder, damage):
    path = folder / "config.json"
    text = path.read_text()
    config = json.loads(text)
    damaged = {
        "truncated": text[:100].encode(),
        "empty": b"",
        "text": b"hello",
        "list": b"[1, 2]",
        "a setting": json.dumps(config | {"epochs": -3}).encode(),
        "deep": b"[" * 100_000,
        "not text": b"\xff\xfe\x00",
        "no fact": json.dumps({k: v for k, v in config.items() if k != "data_note"}).encode(),
    }
    path.write_bytes(damaged[damage])
    assert str(path) in refusal("run", "--resume", folder)
    assert path.read_bytes() == damaged[damage]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_and_can_be_taken_out_of_the_way(folder, damage):
    before = results(folder)
    path = folder / "checkpoints" / "noise-seed0.safetensors"
    raw = path.read_bytes()
    path.write_bytes({"truncated": raw[:-9], "flipped": raw[:900] + bytes([raw[900] ^ 1]) + raw[901:], "empty": b""}[damage])
    for name in ("noise-seed0-training", "noise-seed0-chip1000"):
        (folder / "cells" / f"{name}.jsonl").unlink()
    assert refusal("run", "--resume", folder).startswith(f"{path}: ")
    path.unlink()
    assert invoke("run", "--resume", folder).exit_code == 0
    assert results(folder) == before


def test_a_checkpoint_of_another_network_is_refused(folder, tiny, model_file):
    path = folder / "checkpoints" / "digital-seed0.safetensors"
    (folder / "cells" / "digital-seed0-training.jsonl").unlink()
    other = [a.replace(":Net", ":Normed") for a in tiny]
    assert invoke("run", *other, "--out", "other").exit_code == 0
    path.write_bytes((Path("other") / "checkpoints" / path.name).read_bytes())
    assert str(path) in refusal("run", "--resume", folder)


def test_data_that_changed_since_the_run_began_are_refused(folder, data_file):
    change(data_file, x_train=np.load(data_file)["x_train"] + 1)
    assert refusal("run", "--resume", folder) == f"{data_file}: the data have changed since this run began; start a new run"


def test_a_network_file_that_changed_since_the_run_began_is_refused(folder, model_file):
    model_file.write_text(model_file.read_text() + "\n")
    assert refusal("run", "--resume", folder) == f"{model_file}:Net: the file has changed since this run began; start a new run"


def test_training_that_diverges_is_told_with_recipe_seed_step_and_layer(tiny, model_file):
    text = model_file.read_text().replace("nn.Linear(6, 8), nn.ReLU()", "nn.Linear(6, 8), nn.ReLU(), Far()")
    far = "class Far(nn.Module):\n    def forward(self, x):\n        return x * (float('nan') if self.training else 1)\n"
    model_file.write_text(text.replace("class Net", far + "\nclass Net"))
    assert refusal("run", *tiny, "--out", "out") == "recipe 'digital', seed 0, step 0: the output of layer 2 (Far) is not finite"


# ------------------------------------------------------------------------------------------------------------------- other commands


def test_the_report_of_no_run_is_refused(folder, real_report):
    Path("empty").mkdir()
    assert refusal("report", "empty").startswith("empty/config.json is missing")
    assert "is missing" in refusal("report", "nosuch")
    (folder / "rows.jsonl").write_bytes(b"")
    assert str(folder / "rows.jsonl") in refusal("report", folder)


def test_the_report_of_an_unfinished_run_is_written(folder, real_report):
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[: len(rows) // 2]))
    assert invoke("report", folder).exit_code == 0


def test_wrong_things_to_show_are_refused_and_nothing_is_drawn():
    assert refusal("show", "nosuch").startswith("unknown profile 'nosuch'")
    assert refusal("show", "pcm", "--out", "x.txt") == "x.txt: a drawing ends in .svg, .png, .pdf"
    assert os.listdir() == []


def test_a_profile_cannot_choose_where_its_drawing_goes(monkeypatch):
    """Its name is not the name of a file."""
    monkeypatch.setattr("galvanic.studies.portrait.draw", lambda profile, path: path.touch() or path)
    Path("work").mkdir()
    monkeypatch.chdir("work")
    for name in ("../escaped", "/tmp/escaped", "a/b", ".."):
        Path("mine.toml").write_text(f'name = "{name}"\n')
        assert invoke("show", "mine.toml").exit_code == 0
    assert sorted(os.listdir()) == ["mine.svg", "mine.toml"]
    assert os.listdir("..") == ["work"]


# ------------------------------------------------------------------------------------------------------------------- hostile names

NAMES = ["two  spaces [bold] :warning:", "[/bold]", "[red]x[/red]", "a'b\"c ä€ 50% $HOME", "b\\s", "tail\\", "-x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_out_literally(tiny, data_file, monkeypatch, name):
    """In what is printed, in the report's path and in the refusals; rich would take some of them for markup."""
    monkeypatch.setattr("galvanic.studies.portrait.draw", lambda profile, path: path)  # slow, and tested where it is
    data, out = Path(f"{name}.npz"), Path(f"out {name}")
    data.parent.mkdir(exist_ok=True)  # for those with a slash
    data.write_bytes(data_file.read_bytes())
    Path(f"{name}.toml").write_text(f"name = {json.dumps(name)}\n")
    arguments = ["run", *tiny, f"--data={data}", f"--profile={name}.toml", "--out", out]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert f"report: {out}/report.html" in result.stdout
    assert f"on {data}, profile {name}," in " ".join(result.stdout.splitlines())
    assert f"{out} holds a run already" in refusal(*arguments)
    assert refusal("run", f"--profile=no {name}.toml") == f"no profile file no {name}.toml"
    shown = invoke("show", "--", f"{name}.toml").stdout
    assert shown.startswith(f"{name}  \n")
    assert shown.endswith(f"plots: {Path(name).name}.svg\n")


@pytest.mark.parametrize("name", ["new\nline", "escape\x1b[31m", "return\r", "tab\t.", "bell\x07"])
def test_control_characters_break_no_line_and_reach_no_terminal(tiny, name):
    message = refusal("run", *tiny, "--profile", f"{name}.toml")
    assert message.isprintable()
    assert message.startswith("no profile file ")
    result = invoke("run", *tiny, "--out", name)
    assert result.exit_code == 0
    assert Path(name, "report.html").exists()


# ------------------------------------------------------------------------------------------------------------------- signals


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "galvanic", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupted_run_stops_soon_says_how_to_go_on_and_ends_with_the_same_bytes(tiny):
    longer = [*tiny, "--epochs", "60"]
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    processes = {sent: start("run", *longer, "--checkpoint-every", 0, "--out", f"a folder {sent}") for sent in codes}
    try:
        for sent, process in processes.items():
            out = Path(f"a folder {sent}")
            wait_for(out / "checkpoints" / "digital-seed0.safetensors", process)
            time.sleep(0.1)
            process.send_signal(sent)
            stopped = time.monotonic()
            stdout, stderr = process.communicate(timeout=20)
            assert time.monotonic() - stopped < 5
            assert (process.returncode, stdout) == (codes[sent], "")
            assert stderr.strip() == f"stopped; go on with: galvanic run --resume '{out}'"
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    assert invoke("run", *longer, "--out", "whole").exit_code == 0
    for sent in codes:
        assert not (Path(f"a folder {sent}") / "report.html").exists()
        assert invoke("run", "--resume", f"a folder {sent}").exit_code == 0
        assert same_results(Path(f"a folder {sent}"), Path("whole"))


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_the_middle_of_an_import_is_not_lost(tmp_path, sent, code):
    """Torch takes an exception there for a missing numpy, and goes on, broken. Here a numpy that takes for ever stands in its place."""
    (tmp_path / "numpy.py").write_text("import pathlib, time\npathlib.Path('reached').touch()\nwhile True: time.sleep(0.01)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "galvanic", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_for(Path("reached"), process)
        process.send_signal(getattr(signal, sent))
        assert process.communicate(timeout=20) == ("", "\nstopped; nothing was begun\n")
        assert process.returncode == code
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_run_interrupted_before_it_began_does_not_say_that_it_could_go_on(tiny, monkeypatch, sent):
    from galvanic.studies.settings import Settings

    monkeypatch.setattr(Settings, "load_data", lambda self: os.kill(os.getpid(), sent) or time.sleep(5))
    result = CliRunner().invoke(app, ["run", *tiny, "--out", "out"])
    assert result.exit_code == (130 if sent == signal.SIGINT else 143)
    assert result.stderr.strip() == "stopped; nothing was begun"
    assert not Path("out/config.json").exists()


def test_sigterm_is_the_callers_again_after_a_run(folder):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
