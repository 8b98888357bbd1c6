"""The page of a study: its numbers are those of the summary, a section without rows is left out, names stay inert."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import ARMS, PROFILE, SHORT, lines, study_rows, write_study
from test_page import HOSTILE, Elements, assert_inert

from galvanic.report import words, write
from galvanic.studies.conditions import LEVELS

SECTIONS = {
    "Who is better, who is worse",
    "Accuracy over the noise level",
    "Difference to the baseline",
    "Noise of the chip against noise of reads",
    "What recalibration gains",
    "What else was varied",
    "Which effect of which layer hurts",
    "How sharp the minimum is",
    "Calibration of the scores",
    "All numbers",
    "Training",
    "The arms",
    "The hardware",
    "How it was done",
}
MANY = (*ARMS, "ptq-mse", "qat", "snt", "vant", "sam")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("full"), study_rows())


@pytest.fixture(scope="module")
def full(folder: Path) -> str:
    return write(folder).read_text()


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.glob("*.json*"):
        (to / file.name).write_bytes(file.read_bytes())
    return to


def changed(folder: Path, to: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> str:
    """The page of a copy of a study, each of whose rows in one file is changed, or left out."""
    copy = copied(folder, to)
    rows = [change(json.loads(line)) for line in (copy / name).read_text().splitlines()]
    (copy / name).write_text(lines([row for row in rows if row is not None]))
    return write(copy).read_text()


def titles(text: str) -> set[str]:
    return {part.split("</h2>")[0] for part in text.split("<h2>")[1:]}


def test_a_full_study_shows_every_section_and_misses_nothing(full: str) -> None:
    assert titles(full) == SECTIONS
    text = Elements(full).text
    assert "unfinished" not in text
    for said in (
        "galvanic study survival --root data",
        "3 of each arm",
        "Holm",
        "500 test images",
        "a stratified subset",
        "1 min 37 s",
        "1 year",
    ):
        assert said in text


def test_the_page_loads_nothing_and_runs_nothing(full: str) -> None:
    assert_inert(full)
    assert len(full.encode()) < 1_000_000


def test_the_same_summary_gives_the_same_bytes_whatever_the_single_measurements_are(folder: Path, full: str, tmp_path: Path) -> None:
    others = changed(
        folder, tmp_path / "a", "rows.jsonl", lambda row: row | ({"accuracy": 0.123} if row["kind"] in ("chip", "digital") else {})
    )
    assert others == full


def test_every_interval_comparison_and_area_of_the_summary_is_on_the_page(folder: Path, full: str) -> None:
    text = " ".join(Elements(full).text.split())
    for row in map(json.loads, (folder / "summary.jsonl").read_text().splitlines()):
        shown = {
            "interval": lambda row: f"{row['mean']:.3f}" if row["metric"] == "nll" else words.percent(row["mean"]),
            "digital": lambda row: words.percent(row["mean"]),
            "retention": lambda row: words.percent(row["mean"]),
            "rauc": lambda row: words.percent(row["mean"]),
            "comparison": lambda row: words.points(row["difference"]),
            "recalibration": lambda row: words.points(row["difference"]),
        }[row["kind"]](row)
        assert shown in text


def test_the_verdicts_are_those_of_the_summary_in_words_and_with_a_sign(folder: Path, tmp_path: Path) -> None:
    verdicts = {"digital": "better", "ptq": "worse", "ours": "no difference shown"}  # against the numbers, to see that they are believed
    change = {arm: {"verdict": verdict} for arm, verdict in verdicts.items()}
    said = changed(folder, tmp_path / "a", "summary.jsonl", lambda row: row | (change[row["arm"]] if row["kind"] == "comparison" else {}))
    text = " ".join(Elements(said).text.split())
    rows = said[said.index("<table") : said.index("</table>")].split("<tr")[2:]
    for arm, sign in (("digital", "▲ better"), ("ptq", "▼ worse"), ("ours", "○ no difference shown")):
        (row,) = (row for row in rows if f"</span>{arm}" in row)
        assert row.count(sign) > 2
        assert not any(other in row for other in {"▲", "▼", "○"} - {sign[0]})
    headline = text[text.index("On the hardware as it is") : text.index("At 2×")]
    assert re.search(r"“digital” \(.[0-9.]+\) is better than the baseline “tuned” \([0-9.]+ %\)", headline)
    assert re.search(r"“ptq” \(.[0-9.]+\) is worse than the baseline", headline)
    assert "for “ours” no difference was shown" in headline


@pytest.mark.parametrize(
    ("name", "kinds", "gone"),
    [
        (
            "rows.jsonl",
            {"sensitivity", "training", "sharpness", "landscape"},
            {"Which effect of which layer hurts", "Training", "How sharp the minimum is"},
        ),
        (
            "summary.jsonl",
            {"recalibration", "comparison", "retention", "digital", "rauc"},
            {"What recalibration gains", "Difference to the baseline"},
        ),
    ],
)
def test_a_section_without_rows_is_left_out_and_the_others_stay(
    name: str, kinds: set[str], gone: set[str], folder: Path, tmp_path: Path
) -> None:
    text = changed(folder, tmp_path / "a", name, lambda row: None if row["kind"] in kinds else row)
    assert titles(text) == SECTIONS - gone
    assert_inert(text)


def test_the_level_is_shown_as_written_and_recalibrated_side_by_side_on_one_axis(full: str) -> None:
    section = full[full.index("<h2>Accuracy over the noise level") : full.index("<h2>Difference to the baseline")]
    assert section.count('aria-label="Accuracy by arm: as written"') == 1
    assert section.count('aria-label="Accuracy by arm: recalibrated on the chip"') == 1


def test_conditions_that_were_not_measured_leave_no_section(tmp_path: Path) -> None:
    made = study_rows(seeds=2, chips=2, conditions=SHORT)
    text = write(write_study(tmp_path / "study", made, seeds=2, chips=2, conditions=SHORT)).read_text()
    assert "unfinished" not in text
    gone = {"Accuracy over the noise level", "Noise of the chip against noise of reads", "What recalibration gains", "What else was varied"}
    assert titles(text) == SECTIONS - gone


def test_a_single_training_has_no_interval_no_verdict_and_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", study_rows(seeds=1, conditions=SHORT), seeds=1, conditions=SHORT)
    said = write(folder).read_text()
    text = " ".join(Elements(said).text.split())
    assert_inert(said)
    assert "One training of each arm gives no interval and no test" in text
    assert "– not judged" in text
    assert "▲ better and ▼ worse after correction" in text  # the key, and nowhere else:
    assert text.count("▲") + text.count("▼") == 2
    assert "None" not in text
    assert "nan" not in text.lower()


def test_an_interval_of_no_bounds_neither_fills_the_page_nor_stops_it(folder: Path, full: str, tmp_path: Path) -> None:
    wide = {"low": -1.7e308, "high": 1.7e308}
    text = changed(folder, tmp_path / "a", "summary.jsonl", lambda row: row | (wide if "low" in row else {}))
    assert_inert(text)
    assert "< −1000 – &gt; 1000 %".replace("<", "&lt;") in text
    assert len(text) < 1.1 * len(full)
    assert titles(text) == SECTIONS


def test_an_unfinished_study_says_what_is_missing_and_shows_the_rest(tmp_path: Path) -> None:
    made = study_rows(conditions=SHORT)
    kept = [row for row in made if not (row["kind"] == "chip" and row["arm"] == "ours" and (row["seed"], row["chip"]) != (0, 1000))]
    kept = [row for row in kept if row["kind"] != "sensitivity" or row["arm"] != "digital"]
    text = Elements(write(write_study(tmp_path / "study", kept, change={"maps": ["digital", "ours"]}, conditions=SHORT)).read_text()).text
    n = len(SHORT)
    assert "This study is unfinished." in text
    assert f"Arm “ours” was measured {n} of {9 * n} times, on 1 of 9 pairs of training and chip; it has no part in the statistics" in text
    assert "Arm “digital” has no map of its sensitivity yet." in text
    assert "Arm “tuned”" not in text


def test_without_the_baseline_there_are_numbers_but_no_verdicts(tmp_path: Path) -> None:
    kept = [row for row in study_rows(seeds=2, chips=2, conditions=SHORT) if row["arm"] != "tuned"]
    text = Elements(write(write_study(tmp_path / "study", kept, seeds=2, chips=2, conditions=SHORT)).read_text()).text
    assert "The baseline “tuned” is not complete: there are no verdicts." in text
    assert "There is nothing to compare yet." in text
    assert "Who is better, who is worse" in text


def test_hostile_names_come_out_inert(tmp_path: Path) -> None:
    def hostile(row: dict[str, Any]) -> dict[str, Any]:
        named = {k: HOSTILE for k in ("layer", "side", "effect", "direction") if isinstance(row.get(k), str)}
        terms = {"terms": {HOSTILE: 0.5}} if "terms" in row else {}
        return row | named | terms | {"arm": HOSTILE if row["arm"] == "tuned" else row["arm"]}

    config: dict[str, Any] = dict.fromkeys(("study", "summary", "data", "data_note", "command", HOSTILE), HOSTILE)
    config |= {"arm_summaries": {HOSTILE: HOSTILE}, "seeds": [HOSTILE], "profile": PROFILE | {"name": HOSTILE, HOSTILE: HOSTILE}}
    made = [hostile(row) for row in study_rows(seeds=2, chips=2)]
    folder = write_study(tmp_path / "study", made, change=config, arms=("digital", "ptq", HOSTILE, "ours"), baseline=HOSTILE)
    facts = json.loads((folder / "config.json").read_text())
    for fact in facts["condition_facts"]:
        fact["name"] = HOSTILE if fact["name"] == "level 1" else fact["name"]
    (folder / "config.json").write_text(json.dumps(facts))
    text = write(folder).read_text()
    assert_inert(text)
    assert f"{HOSTILE} (baseline)" in Elements(text).text  # {{ 7*7 }} unevaluated, $x^2$ untypeset


def test_of_many_arms_a_figure_names_a_few_and_each_other_has_a_small_one(tmp_path: Path) -> None:
    made = study_rows(MANY, seeds=2, chips=2, conditions=LEVELS)
    text = write(write_study(tmp_path / "study", made, arms=MANY, seeds=2, chips=2, conditions=LEVELS)).read_text()
    named = {part.split("</figcaption>")[0] for part in text.split("<figcaption>")[1:]}
    assert named == set(MANY) - {"digital", "tuned", "ours"}
    assert f"the {len(named)} others" in Elements(text).text


def test_of_few_arms_each_has_a_colour_of_its_own(full: str) -> None:
    arms = full[full.index("<h2>The arms</h2>") :]
    colors = {part.split('"')[0] for part in arms.split("--c:")[1:]}
    assert len(colors) == len(ARMS)


def test_a_run_is_still_shown_as_a_run(tmp_path: Path) -> None:
    from synthetic_run import rows, write_run

    text = write(write_run(tmp_path / "run", rows(seeds=1, chips=2))).read_text()
    assert "Does it survive the hardware?" in text
    assert "Who is better" not in text
