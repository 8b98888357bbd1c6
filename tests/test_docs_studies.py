"""The page of the studies is exactly what their committed rows give."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from galvanic.report import write
from galvanic.studies.protocol import STUDIES
from galvanic.studies.summary import summarise

ROOT = Path(__file__).parents[1]
FOLDERS = sorted((ROOT / "results").glob("study-*"))


def test_the_page_is_exactly_what_the_rows_give(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "studies.py", "--out", tmp_path / "studies.md"], check=True)
    assert (tmp_path / "studies.md").read_text() == (ROOT / "docs" / "studies.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_summary_is_what_its_rows_say(folder):
    config = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    conditions = [c for c in STUDIES[config["study"]].conditions if c.name in config["conditions"]]
    committed = [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]
    found = json.loads(json.dumps(summarise(rows, conditions, config["baseline"])))
    assert len(found) == len(committed)
    for row, known in zip(found, committed, strict=True):
        assert row.keys() == known.keys()
        for key, value in known.items():
            assert row[key] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value)


def test_a_committed_study_has_a_report(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    for name in ("config.json", "environment.json", "rows.jsonl", "summary.jsonl"):
        (folder / name).write_bytes((ROOT / "results" / "study-two-bits" / name).read_bytes())
    assert "lsq" in write(folder).read_text()
