"""The page: a run read, summarised, drawn, rendered, and put in place in one step."""

import os
import secrets
from pathlib import Path
from typing import Any

from markupsafe import Markup

from galvanic.report import curves, headline, plots, tables
from galvanic.report.conditions import Point, comparisons, floating_point
from galvanic.report.missing import missing
from galvanic.report.run import Run, read, table
from galvanic.report.study import read_study
from galvanic.report.study_page import render_study
from galvanic.report.summary import SEEDS_FOR_INTERVAL, ages, compensations
from galvanic.report.svg import colors
from galvanic.report.templates import template
from galvanic.report.tiles import tiles

NAME = "report.html"


def write(run: Path) -> Path:
    """Write `report.html` into the directory `run` of a run or of a study and return its path.

    The page replaces an older one in a single step: whatever goes wrong, the older one stays whole.

    Raises:
        FileNotFoundError: `config.json`, `rows.jsonl` or a study's `summary.jsonl` is missing.
        ValueError: one of the files is empty or damaged; names the file and the line.
        OSError: the directory cannot be written to.
    """
    folder = Path(run)
    is_study = "study" in table(folder / "config.json")
    page = render_study(read_study(folder)) if is_study else render(read(folder))
    return _replace(folder / NAME, page.encode("utf-8"))


def render(run: Run) -> str:
    """The page of a run; the same rows give the same text."""
    return template("page.html.j2").render(**_content(run), **_figures(run))


def _content(run: Run) -> dict[str, Any]:
    profile = run.config.get("profile", {})
    point = Point.of(run)
    return {
        "config": run.config,
        "environment": run.environment,
        "profile": profile,
        "recipes": run.recipes,
        "colors": colors(run.recipes),
        "sentences": headline.sentences(run),
        "caution": headline.caution(run),
        "tiles": tiles(run),
        "point": point,
        "comparisons": [
            (name, each) for name in compensations(run.of("age")) for each in (comparisons(run, point.age_s, name) if point else [])
        ],
        "missing": missing(run),
        "over_age": tables.over_age(run),
        "over_level": tables.over_level(run),
        "enough_seeds": any(row["spread"].seeds >= SEEDS_FOR_INTERVAL for row in tables.over_age(run) + tables.over_level(run)),
        "ranges": tables.ranges(run),
        "range_age_s": min(ages(run.of("layer")), default=None),
        "placement": tables.placement(run),
        "effects": tables.effects(profile),
        "settings": tables.settings(profile),
    }


def _figures(run: Run) -> dict[str, list[Markup]]:
    reference = floating_point(run)
    accuracy = reference[1].mean if reference else None
    layer_ages = ages(run.of("layer"))
    return {
        "age_figures": curves.over_age(run, accuracy) if run.of("age") else [],
        "level_figures": curves.over_level(run, accuracy),
        "error_figures": plots.layer_errors(run, tables.layers(run), list(dict.fromkeys([*layer_ages[:1], *layer_ages[-1:]]))),
        "loss_figures": plots.losses(run),
    }


def _replace(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # the same directory: a rename within one disk
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
