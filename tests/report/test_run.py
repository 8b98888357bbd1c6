"""Reading a run directory: what is damaged is named in one line; what was cut off in mid-write is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import CONFIG, age_row, rows, write_run

from galvanic.report import write
from galvanic.report.run import read


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    made = rows(seeds=1, chips=2)
    folder = write_run(tmp_path / "run", made)
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"kind": "age", "recipe": "noi')
    assert len(read(folder).rows) == len(made)
    assert write(folder).exists()


def test_last_line_cut_inside_a_character_is_ignored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [age_row("noise", 0, 1, 0.5)])
    with (folder / "rows.jsonl").open("ab") as file:
        file.write('{"kind": "é'.encode()[:-1])
    assert len(read(folder).rows) == 1


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(seeds=1, chips=1))
    text = (folder / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text('{"kind": \n' + text)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not JSON"):
        read(folder)


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl"])
def test_a_missing_file_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(seeds=1, chips=1))
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name) as caught:
        write(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl", "environment.json"])
@pytest.mark.parametrize("content", ["", "  \n", '{"kind": ', "[1, 2]", "nonsense\n"])
def test_an_empty_or_damaged_file_is_named_in_one_line(name: str, content: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(seeds=1, chips=1))
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name) as caught:
        write(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 98.1}, r"accuracy is 98\.1, expected a fraction 0\.\.1"),
        ({"accuracy": float("nan")}, "accuracy is nan, expected a fraction"),
        ({"accuracy": True}, "accuracy is True"),
        ({"age_s": -1}, "age_s is -1, expected seconds"),
        ({"recipe": ["noise"]}, "recipe is .*, expected a name"),
        ({"compensation": None}, "compensation is None, expected a name"),
        ({"seed": {}}, "seed is {}, expected a number"),
        ({"n_test": 0}, "n_test is 0, expected a count"),
        ({"kind": 3}, "not a row"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_would_do(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = age_row("noise", 0, 1, 0.5)
    folder = write_run(tmp_path / "run", [good, good | change])
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read(folder)


def test_an_absent_field_is_named(tmp_path: Path) -> None:
    row = age_row("noise", 0, 1, 0.5)
    del row["chip"]
    with pytest.raises(ValueError, match="line 1: a row of kind 'age' has no chip"):
        read(write_run(tmp_path / "run", [row]))


def test_a_config_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(seeds=1, chips=1))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"profile": "pcm"}))
    with pytest.raises(ValueError, match=r"config\.json: profile is 'pcm', expected a table"):
        read(folder)
