"""Reading a study directory: what is damaged is named in one line, what is unfinished is said on the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import ARMS, CONDITIONS, lines, study_rows, write_study

from galvanic.report import write
from galvanic.report.study import read_study
from galvanic.report.study_conditions import Condition, key, nominal, sweep
from galvanic.report.study_dots import reach
from galvanic.report.study_words import verdict


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return study_rows(seeds=2, chips=2)


@pytest.fixture
def folder(tmp_path: Path, made: list[dict[str, Any]]) -> Path:
    return write_study(tmp_path / "study", made, seeds=2, chips=2)


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl", "summary.jsonl"])
def test_a_missing_file_is_named_in_one_line(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name) as caught:
        write(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl", "summary.jsonl", "environment.json"])
@pytest.mark.parametrize("content", ["  \n", '{"kind": ', "[1, 2]", "nonsense\n"])
def test_a_damaged_file_is_named_in_one_line(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name) as caught:
        write(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "summary.jsonl"])
def test_a_last_line_that_was_cut_off_is_left_out(name: str, folder: Path) -> None:
    whole = read_study(folder)
    with (folder / name).open("a") as file:
        file.write('{"kind": "chi')
    cut = read_study(folder)
    assert (cut.rows, cut.summary) == (whole.rows, whole.summary)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("rows.jsonl", {"kind": "training", "seed": 0, "epoch": 1}, "a row of kind 'training' has no arm"),
        ("rows.jsonl", {"kind": "digital", "arm": "a", "seed": 0, "accuracy": 98.1}, r"accuracy is 98\.1, expected a fraction 0\.\.1"),
        ("rows.jsonl", {"kind": "sharpness", "arm": "a", "eigenvalue": float("nan")}, "eigenvalue is nan, expected a number"),
        (
            "summary.jsonl",
            {"kind": "rauc", "arm": "a", "mean": 0.9, "low": "none", "high": None},
            "low is 'none', expected a number or null",
        ),
        ("summary.jsonl", {"kind": "rauc", "arm": [], "mean": 0.9, "low": None, "high": None}, r"arm is \[\], expected a name"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_would_do(name: str, row: dict[str, Any], message: str, folder: Path) -> None:
    text = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text(text[0] + lines([row]) + "".join(text[1:]))
    with pytest.raises(ValueError, match=rf"{name.replace('.', '[.]')}, line 2: .*{message}"):
        read_study(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": "ours"}, "arms is 'ours', expected a list"),
        ({"profile": ["pcm"]}, r"profile is \['pcm'\], expected a table"),
        ({"condition_facts": ["level 1"]}, "a condition is 'level 1', expected a table with a name"),
        ({"condition_facts": [{"name": "x", "level": -1}]}, "level of condition 'x' is -1, expected a number >= 0"),
        ({"condition_facts": [{"name": "x", "level": None}]}, "level of condition 'x' is None, expected a number >= 0"),
        ({"condition_facts": [{"name": "x", "noise": []}]}, r"noise of condition 'x' is \[\], expected both, chip, read"),
        ({"condition_facts": [{"name": "x", "noise": "some"}]}, "noise of condition 'x' is 'some', expected both, chip, read"),
    ],
)
def test_a_config_of_the_wrong_shape_is_named(change: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_study(folder)


def test_a_study_without_one_complete_arm_has_an_empty_summary_and_a_page(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    begun = [row for row in made if row["kind"] == "training" and row["arm"] == "digital"]
    folder = write_study(tmp_path / "study", begun, environment=False, seeds=2, chips=2)
    assert (folder / "summary.jsonl").read_text() == ""
    text = write(folder).read_text()
    for note in (
        "No arm is complete yet",
        "Arm “digital” has not been measured on any chip (2 of 2 trainings have begun).",
        "Arm “ours” has not been measured on any chip.",
        "environment.json is missing",
        "There is nothing to compare yet.",
    ):
        assert note in text


def test_conditions_differ_from_the_hardware_as_it_is_in_one_fact_alone() -> None:
    known = tuple(Condition.of({k: getattr(c, k) for k in ("name", *FACTS)}, "here") for c in CONDITIONS)
    assert nominal(known) is not None
    for fact in ("level", "theta", "bits", "age_s", "temperature_K"):
        found = sweep(known, fact)
        assert [c for c in found if c.nominal] == [nominal(known)]
        assert len(found) == len({getattr(c, fact) for c in found}) > 2
        assert all(c.alone(fact) for c in found)
    assert {c.level for c in sweep(known, "level", recalibrated=True)} == {
        c.level for c in CONDITIONS if c.recalibrated and c.noise == "both"
    }


FACTS = ("noise", "level", "theta", "bits", "age_s", "temperature_K", "recalibrated")


def test_no_two_conditions_read_alike_and_the_first_table_has_the_far_ends() -> None:
    known = tuple(Condition.of({k: getattr(c, k) for k in ("name", *FACTS)}, "here") for c in CONDITIONS)
    assert len({c.words for c in known}) == len(known)
    assert [c.words for c in key(known)][:3] == ["1× noise", "2× noise", "4× noise"]
    assert {"2 bits", "after 1 year"} <= {c.words for c in key(known)}


def test_a_condition_of_which_only_the_name_is_known_keeps_it(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    folder = write_study(tmp_path / "study", made, seeds=2, chips=2, change={"condition_facts": []})
    study = read_study(folder)
    assert [c.name for c in study.conditions] == [c.name for c in CONDITIONS]
    assert not any(c.nominal for c in study.conditions)
    page = write(folder).read_text()
    assert all(f"</span>{arm}" in page for arm in ARMS)
    assert "At level 0" in page


def test_the_axis_of_differences_holds_all_unless_few_would_press_the_others_together() -> None:
    assert reach([0.01, 0.02, 0.03]) >= 0.03
    assert 0.03 < reach([0.01, 0.02, 0.03, 0.9]) < 0.1
    assert reach([0.0]) > 0
    assert reach([5.0, 5.0]) <= 1.1


def test_where_nothing_was_tested_nothing_is_judged() -> None:
    assert verdict({"verdict": "no difference shown", "p": None}) == "not judged"
    assert verdict({"verdict": "no difference shown", "p": 1.0}) == "no difference shown"
