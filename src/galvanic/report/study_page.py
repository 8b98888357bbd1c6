"""The page of a study: its summary in words, tables and figures."""

from typing import Any

from galvanic.report import study_dots, study_headline, study_lines, study_loss, study_map, study_tables, tables
from galvanic.report.study import Study
from galvanic.report.study_cast import cast
from galvanic.report.study_missing import missing
from galvanic.report.templates import template


def render_study(study: Study) -> str:
    """The page of a study; the same rows give the same text."""
    return template("study.html.j2").render(**_content(study), **_figures(study))


def _content(study: Study) -> dict[str, Any]:
    profile = study.config.get("profile", {})
    return {
        "config": study.config,
        "environment": study.environment,
        "profile": profile,
        "effects": tables.effects(profile),
        "settings": tables.settings(profile),
        "arms": study.arms,
        "baseline": study.baseline,
        "cast": cast(study),
        "compared": study_headline.compared(study),
        "outcomes": study_headline.outcomes(study),
        "caution": study_headline.caution(study),
        "missing": missing(study),
        "columns": study_tables.columns(study),
        "verdicts": study_tables.verdicts(study),
        "recalibration": study_tables.recalibration(study),
        "calibration": study_tables.calibration(study),
        "everything": study_tables.everything(study),
        "metrics": study_tables.METRICS,
        "sharpness": study_tables.sharpness(study),
        "worst": study_map.worst(study),
        "comparisons": len(study.said("comparison")),
    }


def _figures(study: Study) -> dict[str, Any]:
    parts, levels = cast(study), study_lines.levels(study)
    return {
        "level_figures": study_lines.figures(study, parts, levels),
        "level_multiples": study_lines.multiples(study, parts, levels[0]) if levels else [],
        "static_figures": study_dots.static(study, parts),
        "sweep_figures": study_lines.figures(study, parts, study_lines.others(study)),
        "forest_figures": study_dots.forest(study),
        "map_figures": study_map.figures(study),
        "landscape_figures": study_loss.landscape(study, parts),
        "training_figures": study_loss.training(study, parts),
        "term_figures": study_loss.terms(study),
    }
