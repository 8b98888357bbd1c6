"""The benchmarks run, and the page of their numbers is exactly what their rows give."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
TIMED = ("resnet18", "resnet18-512", "lenet", "lenet-5", "linear", "linear-first", "read-noise")


def run(script, *arguments, fails=False):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode != 0) == fails, result.stderr
    return result


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_of_speed_is_exactly_what_the_committed_rows_give(tmp_path):
    run("table.py", "--out", tmp_path / "speed.md")
    assert (tmp_path / "speed.md").read_text() == (ROOT / "docs" / "speed.md").read_text()


def test_every_timed_case_runs_small_and_its_ratio_is_that_of_the_times(tmp_path):
    names = [name + end for name in TIMED for end in ("", "-off")]
    result = run("speed.py", "--quick", *names, "--results", tmp_path / "rows.jsonl")
    rows = rows_of(tmp_path / "rows.jsonl")
    assert {(row["case"], row["arm"]) for row in rows} >= {(name, arm) for name in names for arm in ("digital", "galvanic")}
    twins = {row["case"]: row["milliseconds"] for row in rows if row["arm"] == "digital"}
    for row in rows:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / twins[row["case"]], rel=0.02)
        assert (row["threads"], row["rounds"]) == (1, 1)
        assert row["command"] == f"python benchmarks/speed.py {' '.join(names)} --quick"
        assert row["case"] in result.stdout


@LINUX
def test_a_large_enough_batch_is_seen_in_the_growth_of_memory(tmp_path):
    run("speed.py", "--quick", "memory", "--results", tmp_path / "rows.jsonl")
    rows = {row["arm"]: row for row in rows_of(tmp_path / "rows.jsonl")}
    # float32 inputs and results of the first convolution of 64 images, which backpropagation keeps
    assert rows["digital"]["mebibytes"] > rows["digital"]["batch"] * 6 * 28 * 28 * 4 / 2**20
    assert rows["galvanic"]["ratio"] == pytest.approx(rows["galvanic"]["mebibytes"] / rows["digital"]["mebibytes"], rel=0.01)


@LINUX
def test_every_case_of_scaling_runs_small(tmp_path):
    run("scaling.py", "--quick", "--results", tmp_path / "scaling.jsonl")
    rows = rows_of(tmp_path / "scaling.jsonl")
    assert {row["case"] for row in rows} == {"size", "batch", "chip", "chips", "imports"}
    for case, what in (("size", "programming"), ("size", "forward"), ("batch", "forward")):
        assert any(row["case"] == case and row["what"] == what and "exponent" in row for row in rows)


def test_measuring_a_case_again_replaces_its_rows_and_keeps_those_of_others(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from rows import replace_case

    for case, ratio in (("b", 2.0), ("a", 1.0), ("gone", 0.0), ("b", 3.0)):
        order = ("a", "b", "gone") if case != "b" else ("a", "b")
        replace_case(tmp_path / "rows.jsonl", case, [{"case": case, "ratio": ratio}], order)
    assert rows_of(tmp_path / "rows.jsonl") == [{"case": "a", "ratio": 1.0}, {"case": "b", "ratio": 3.0}]


def test_exponents_are_those_of_the_powers_behind_the_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scaling import exponents

    def row(count):
        return {"case": "size", "arm": "a", "what": "forward", "weights": count, "milliseconds": 3 * count**1.5, "mebibytes": count / 7}

    found = {(fit["of"], fit["over"]): fit["exponent"] for fit in exponents([row(10**power) for power in range(1, 8)])}
    assert found == {(of, over): p for of, p in (("milliseconds", 1.5), ("mebibytes", 1.0)) for over in ("all", "larger half")}


@LINUX
def test_the_growth_of_memory_is_what_is_allocated_and_not_what_was_there_before():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import torch
from measure import growth_MiB
torch.ones(64 << 18)  # 64 MiB that are gone again
print(growth_MiB(lambda: torch.ones(32 << 18).sum()))
"""
    grown = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 31 < grown < 36


@pytest.mark.parametrize("script", ["speed.py", "scaling.py", "table.py"])
def test_help_shows_a_command_to_copy(script):
    assert f"python benchmarks/{script}" in run(script, "--help").stdout


@pytest.mark.parametrize("script", ["speed.py", "scaling.py"])
def test_a_case_that_is_not_there_is_refused_with_those_that_are(script):
    message = run(script, "no-such-case", fails=True).stderr
    assert "no case 'no-such-case'; there are " in message


def test_every_way_to_train_runs_small(tmp_path):
    run("methods.py", "--quick", "--results", tmp_path / "methods.jsonl")
    rows = rows_of(tmp_path / "methods.jsonl")
    assert {"noise", "gates", "physics-informed", "half batch", "sharpness-aware"} <= {row["case"] for row in rows}
    plain = next(row for row in rows if row["case"] == "noise")
    assert all(row["ratio"] == pytest.approx(row["milliseconds"] / plain["milliseconds"], rel=0.02) for row in rows)
