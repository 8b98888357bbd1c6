"""The page as a file: it opens offline, runs nothing, shows what there is and never leaves half a page behind."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import AGES_S, ENVIRONMENT, LAYERS, age_row, rows, write_run

from galvanic.report import page, write
from galvanic.report.run import read

HOSTILE = '"onload="alert(1)\'><script>alert(2)</script>&<svg onload=alert(3)> $x^2$ {{ 7*7 }} --> ]]> </style>'
VOID = {"meta", "link", "br"}
LOADS = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background", "formaction"}


class Elements(HTMLParser):
    """Every element with its attributes, the text outside of style, and a check that tags close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(write_run(tmp_path_factory.mktemp("full"), rows())).read_text(encoding="utf-8")


def assert_inert(text: str) -> None:
    for tag, attributes in Elements(text).elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "img", "image", "foreignobject"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in LOADS:
                assert value
                assert value.startswith(("#", "data:,"))
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    assert not re.search(r"@import|url\((?!#)", text)


def test_a_full_run_shows_every_section_and_misses_nothing(full: str) -> None:
    text = Elements(full).text
    for words in (
        "Accuracy over time",
        "Accuracy over the noise level",
        "1 year",
        "30 days",
        *LAYERS,
        "Le Gallo et al.",
        "galvanic run",
        "1 min 37 s",
    ):
        assert words in text
    assert "incomplete" not in text
    assert "This run holds no" not in text
    assert full.count("<svg") == 3 + 1 + 2 + 1  # compensations, levels, layers at two ages, losses


def test_the_page_loads_nothing_runs_nothing_and_says_so_to_the_browser(full: str) -> None:
    assert_inert(full)
    policy = [a["content"] for tag, a in Elements(full).elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert str(policy[0]).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert len(full.encode()) < 500_000


def test_a_recipe_that_only_calibrates_needs_no_training_rows(tmp_path: Path) -> None:
    kept = [row for row in rows(chips=10) if not (row["kind"] == "training" and row["recipe"] == "ptq")]
    assert "incomplete" not in write(write_run(tmp_path / "run", kept)).read_text(encoding="utf-8")


def test_an_incomplete_run_shows_what_there_is_and_names_what_is_missing(tmp_path: Path) -> None:
    kept = [row for row in rows() if row["kind"] not in ("level", "placement") and row.get("recipe") != "ptq"]
    kept = [row for row in kept if not (row.get("recipe") == "noise" and (row["seed"] == 1 or row.get("chip", 0) > 1003))]
    text = Elements(write(write_run(tmp_path / "run", kept, environment=False)).read_text(encoding="utf-8")).text
    for note in (
        "There are no rows for accuracy over the noise level.",
        "There are no rows for where each layer runs.",
        "Recipe “ptq” has no rows for accuracy in floating point",
        "Recipe “noise” was evaluated for 1 of 2 trainings.",
        "Recipe “noise” has conditions measured on only 4 of 10 chips.",
        "environment.json is missing",
        "on the 4 chip tests made for both",
    ):
        assert note in text


@pytest.mark.parametrize("kind", ["training", "digital", "age", "level", "layer", "placement"])
def test_each_kind_of_rows_alone_makes_a_page(kind: str, tmp_path: Path) -> None:
    alone = [row for row in rows(seeds=1, chips=2) if row["kind"] == kind]
    text = write(write_run(tmp_path / "run", alone, environment=False)).read_text(encoding="utf-8")
    assert_inert(text)
    assert "This run is incomplete" in text


def test_an_empty_config_and_unknown_recipes_and_kinds_make_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [age_row("in-the-loop", 0, 7, 0.5, compensation="column-drift"), {"kind": "from the future"}])
    (folder / "config.json").write_text("{}")
    text = write(folder).read_text(encoding="utf-8")
    assert "in-the-loop" in text
    assert "column-drift" in text
    assert "Trained by recipe “in-the-loop”" in text


def test_hostile_names_come_out_inert(tmp_path: Path) -> None:
    names = {"recipe": HOSTILE, "layer": HOSTILE, "compensation": HOSTILE, "type": HOSTILE, "why": HOSTILE, "where": HOSTILE}
    bad = [row | {key: value for key, value in names.items() if key in row} for row in rows(seeds=1, chips=2, recipes=("digital",))]
    effect = {"kind": HOSTILE, "source": HOSTILE, HOSTILE: HOSTILE}
    config: dict[str, Any] = dict.fromkeys(("data", "data_note", "model", "command", HOSTILE), HOSTILE)
    config |= {"recipes": [HOSTILE], "recipe_summaries": {HOSTILE: HOSTILE}, "seeds": [HOSTILE], "chips": [HOSTILE]}
    config["profile"] = {"name": HOSTILE, "summary": HOSTILE, "weight": [effect, HOSTILE, 3], HOSTILE: HOSTILE}
    folder = write_run(tmp_path / "run", bad, config=config)
    text = write(folder).read_text(encoding="utf-8")
    assert_inert(text)
    assert HOSTILE in Elements(text).text  # {{ 7*7 }} unevaluated, $x^2$ untypeset


def test_unprintable_and_unencodable_names_do_not_break_the_page(tmp_path: Path) -> None:
    made = [row | ({"layer": "conv\ud800\x00\x1b[31m层"} if "layer" in row else {}) for row in rows(seeds=1, chips=2)]
    text = write(write_run(tmp_path / "run", made)).read_text(encoding="utf-8")
    assert "层" in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(seeds=1, chips=2))
    first = write(folder).read_bytes()
    assert write(folder).read_bytes() == first


def test_numbers_of_a_real_run_that_are_absent_are_dashes(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("error", "input_max", "input_range", "input_clipped", "output_max", "output_range", "output_clipped"))
    made = [row | (nothing if row["kind"] == "layer" and row["layer"] == "head" else {}) for row in rows(seeds=1, chips=2)]
    made = [row | ({"loss": float("nan")} if row["kind"] == "training" and row["epoch"] > 3 else {}) for row in made]
    text = write(write_run(tmp_path / "run", made)).read_text(encoding="utf-8")
    assert "nan" not in Elements(text).text.lower().replace("nandakumar", "")


@pytest.mark.parametrize("culprit", ["render", "fsync", "replace"])
def test_whatever_goes_wrong_the_old_report_stays_whole(culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", [age_row("noise", 0, 1, 0.5)])
    before, files = write(folder).read_bytes(), sorted(os.listdir(folder))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(page if culprit == "render" else os, culprit, fail)
    with pytest.raises(OSError, match="disk full"):
        write(folder)
    assert (folder / "report.html").read_bytes() == before
    assert sorted(os.listdir(folder)) == files


def test_the_report_is_as_readable_as_any_file_and_its_path_is_returned(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [age_row("noise", 0, 1, 0.5)])
    path = write(folder)
    assert path == folder / "report.html"
    assert path.stat().st_mode == (folder / "rows.jsonl").stat().st_mode


def test_the_report_imports_nothing_of_galvanic_but_itself() -> None:
    for file in Path(page.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) (galvanic(?!\.report)|\.)", file.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_whole_environment_and_every_age_is_on_the_page(full: str) -> None:
    text = Elements(full).text
    assert all(str(ENVIRONMENT[key]) in text for key in ("galvanic", "python", "torch", "platform", "started"))
    assert len({row["age_s"] for row in rows() if row["kind"] == "age"}) == len(AGES_S)


def test_reading_does_not_depend_on_the_environment_file(tmp_path: Path) -> None:
    assert read(write_run(tmp_path / "run", rows(seeds=1, chips=1), environment=False)).environment == {}
