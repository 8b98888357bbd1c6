"""The tables of a study's page, as rows of its summary; the template only formats them."""

from typing import Any

from galvanic.report.study import Study
from galvanic.report.study_conditions import Condition, key, nominal

METRICS = {"accuracy": "accuracy", "top5": "top 5", "nll": "NLL", "ece": "ECE"}


def columns(study: Study) -> list[Condition]:
    """The conditions of the first table: those that stand for all and were measured."""
    shown = [c for c in study.conditions if study.measured(c)]
    return [c for c in key(study.conditions) if c in shown] or shown[:3]


def verdicts(study: Study) -> list[dict[str, Any]]:
    """Arm x condition: accuracy and comparison; what is kept on the hardware as it is, and over all levels."""
    shown, first = columns(study), nominal(study.conditions)
    return [
        {
            "arm": arm,
            "digital": study.find("digital", arm),
            "cells": [(study.accuracy(arm, c), study.find("comparison", arm, c.name)) for c in shown],
            "retention": study.find("retention", arm, first.name) if first else None,
            "area": study.find("rauc", arm),
        }
        for arm in study.arms
        if any(study.accuracy(arm, c) for c in shown)
    ]


def recalibration(study: Study) -> dict[str, Any]:
    """Arm x condition: what new statistics on the chip gain."""
    there = {row["condition"] for row in study.said("recalibration")}
    shown = [c for c in study.conditions if c.name in there]
    rows = [(arm, [study.find("recalibration", arm, c.name) for c in shown]) for arm in study.arms]
    return {"columns": shown, "rows": [(arm, cells) for arm, cells in rows if any(cells)]}


def calibration(study: Study) -> dict[str, Any]:
    """Arm x condition: likelihood and calibration error, on the hardware as it is and on the next worse one."""
    shown = [c for c in columns(study) if any(study.find("interval", arm, c.name, "nll") for arm in study.arms)][:2]
    rows = [
        (arm, [(study.find("interval", arm, c.name, "nll"), study.find("interval", arm, c.name, "ece")) for c in shown])
        for arm in study.arms
    ]
    return {"columns": shown, "rows": [(arm, cells) for arm, cells in rows if any(nll or ece for nll, ece in cells)]}


def everything(study: Study) -> list[dict[str, Any]]:
    """Arm x condition: all that the summary says."""
    return [
        {
            "arm": arm,
            "condition": c,
            "metrics": {metric: study.find("interval", arm, c.name, metric) for metric in METRICS},
            "retention": study.find("retention", arm, c.name),
            "comparison": study.find("comparison", arm, c.name),
        }
        for arm in study.arms
        for c in study.conditions
        if study.accuracy(arm, c)
    ]


def sharpness(study: Study) -> list[dict[str, Any]]:
    """The largest eigenvalue of each arm's Hessian, in the order of the arms."""
    found = study.of("sharpness")
    return [{"arm": row["arm"], "eigenvalue": row["eigenvalue"], "converged": row.get("converged") is True} for row in found]
