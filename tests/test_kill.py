import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kill.py"


@pytest.fixture(scope="module")
def kill():
    specification = importlib.util.spec_from_file_location("kill", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_run_killed_at_20_random_moments_ends_with_the_bytes_of_one_left_in_peace(kill, tmp_path):
    row = kill.survive(20, 1, tmp_path)
    assert (row["kills"], row["lost"], row["torn"], row["failed"]) == (20, 0, 0, 0)
    assert row["runs"] >= 1
    assert sum(row["stages"].values()) == 20
    assert {"training", "chip"} <= set(row["stages"])  # else the moments were not spread over the run


def test_a_difference_and_a_torn_file_would_be_noticed(kill, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "cells").mkdir(parents=True)
        (tmp_path / name / "cells" / "x.jsonl").write_text('{"kind": "age"}\n')
        (tmp_path / name / "config.json").write_text(f'{{"command": "{name}"}}')
    assert kill.results(tmp_path / "a") == kill.results(tmp_path / "b")
    assert kill.torn(tmp_path) == []
    (tmp_path / "b" / "cells" / "x.jsonl").write_text('{"kind": "level"}\n')
    assert kill.results(tmp_path / "a") != kill.results(tmp_path / "b")
    (tmp_path / "a" / "cells" / ".y.jsonl.12.tmp").write_text("half")  # not a file of the run
    assert kill.torn(tmp_path) == []
    parts = {"rows.jsonl": '{"kind": "a', "cells/y.jsonl": '{"a": 1}', "c.json": "{", "m.safetensors": "x", "report.html": "<html>"}
    for name, text in parts.items():
        (tmp_path / "a" / name).write_text(text)
    assert sorted(kill.torn(tmp_path)) == sorted(str(tmp_path / "a" / name) for name in parts)


def test_the_command_says_what_it_can_do():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "--kills" in result.stdout


def test_committed_rows_have_no_losses():
    path = SCRIPT.parent.parent / "results" / "kill.jsonl"
    if not path.exists():
        pytest.skip("no rows of the long run are committed yet")
    for row in map(json.loads, path.read_text().splitlines()):
        assert (row["lost"], row["torn"], row["failed"]) == (0, 0, 0)
