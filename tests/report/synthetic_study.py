"""A made-up study directory with the shape of a real one: arms of different strength, a summary by the code that writes the real one."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from galvanic.studies.conditions import AGES, BITS, FLUCTUATING, LEVELS, RECALIBRATED, STATIC, TEMPERATURES, Condition
from galvanic.studies.summary import summarise

CONDITIONS = (*LEVELS, *RECALIBRATED, *STATIC, *FLUCTUATING, *BITS, *AGES, *TEMPERATURES)
SHORT = tuple(c for c in CONDITIONS if c.name in ("level 1", "level 2"))
ARMS = ("digital", "ptq", "tuned", "ours")
STRENGTH = {"digital": 0.2, "ptq": 0.15, "tuned": 0.05, "ours": 0.035}  # accuracy lost to the nominal noise
LAYERS = ("0", "3.inner.0", "8")
EFFECTS = (("input", "Quantize"), ("weight", "Quantize"), ("weight", "Gaussian"), ("output", "Gaussian"))
N_TEST = 500

ENVIRONMENT = {"galvanic": "0.1.0", "python": "3.11.2", "torch": "2.12.0+cpu", "platform": "Linux x86_64", "cores": 2, "seconds": 97.3}
PROFILE: dict[str, Any] = {
    "name": "generic-4bit",
    "summary": "A coarse chip of no particular technology.",
    "input": [{"kind": "Quantize", "bits": 4, "source": "assumed: a low-cost DAC"}],
    "weight": [{"kind": "Gaussian", "std": 0.08, "source": "assumed"}],
    "output": [{"kind": "Quantize", "bits": 4, "source": "assumed: a low-cost ADC"}],
    "rows": 256,
}


def config(
    arms: tuple[str, ...] = ARMS,
    *,
    seeds: int = 3,
    chips: int = 3,
    baseline: str = "tuned",
    conditions: tuple[Condition, ...] = CONDITIONS,
) -> dict[str, Any]:
    """What a study writes into `config.json`."""
    names = ("name", "noise", "level", "theta", "bits", "age_s", "temperature_K", "recalibrated")
    return {
        "study": "survival", "summary": "Which way to train keeps a network alive?", "baseline": baseline, "arms": list(arms),
        "arm_summaries": {arm: f"How {arm} is trained." for arm in arms}, "conditions": [c.name for c in conditions],
        "condition_facts": [{name: getattr(c, name) for name in names} for c in conditions],
        "seeds": list(range(seeds)), "chips": list(range(1000, 1000 + chips)), "epochs": 8, "batch": 64, "width": 8, "stages": [1, 1, 1],
        "profile": PROFILE, "data": "fashion-mnist", "data_note": "a stratified subset", "n_train": 4000, "n_test": N_TEST,
        "parameters": 19810, "command": "galvanic study survival --root data", "sha256": "0" * 64,
    }  # fmt: skip


def study_rows(
    arms: tuple[str, ...] = ARMS, *, seeds: int = 3, chips: int = 3, conditions: tuple[Condition, ...] = CONDITIONS
) -> list[dict[str, Any]]:
    """All rows of a complete study."""
    draw, made = np.random.default_rng(0), list[dict[str, Any]]()
    for place, arm in enumerate(arms):
        for seed in range(seeds):
            made += [_training(arm, seed, epoch) for epoch in range(1, 9)]
            made.append({"kind": "digital", "arm": arm, "seed": seed, "accuracy": 0.9 + 0.004 * seed, "n_test": N_TEST})
            skill, shift = STRENGTH.get(arm, 0.04 + 0.006 * place), 0.004 * draw.standard_normal()
            for chip in range(1000, 1000 + chips):
                made += [_chip({"arm": arm, "seed": seed, "chip": chip}, c, skill, shift, draw) for c in conditions]
    return made + [row for arm in arms if arm in ("digital", "tuned", "ours") for row in _map(arm, draw)]


def write_study(
    folder: Path, made: list[dict[str, Any]], *, change: dict[str, Any] | None = None, environment: bool = True, **given: Any
) -> Path:
    """Write the four files of a study into `folder`, which it makes; the summary is that of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = config(**given) | (change or {})
    (folder / "config.json").write_text(json.dumps(asked))
    (folder / "rows.jsonl").write_text(lines(made))
    (folder / "summary.jsonl").write_text(lines(summarise(made, CONDITIONS, asked["baseline"])))
    if environment:
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def lines(made: list[dict[str, Any]]) -> str:
    """Rows as a file holds them."""
    return "".join(f"{json.dumps(row)}\n" for row in made)


def _training(arm: str, seed: int, epoch: int) -> dict[str, Any]:
    loss = 0.1 + 2.2 * float(np.exp(-epoch / 3))
    terms = {"terms": {"task": loss, "Distillation": 0.1 * loss, "Divergence": 0.0}} if arm.startswith("ours") and epoch > 3 else {}
    return {"kind": "training", "arm": arm, "seed": seed, "epoch": epoch, "loss": loss, "noise_level": 1.0, **terms}


def _chip(key: dict[str, Any], c: Condition, skill: float, shift: float, draw: np.random.Generator) -> dict[str, Any]:
    much = {"both": 1.0, "chip": 0.7, "read": 0.2}[c.noise] * c.level**1.4 * (0.7 if c.recalibrated else 1.0)
    more = (
        0.3 * c.theta
        + (2.0 ** (4 - (c.bits or 4)) - 1) * 0.5
        + 0.2 * np.log10(1 + c.age_s / 20)
        + 0.01 * abs((c.temperature_K or 300) - 300)
    )
    lost = max(skill * (much + more + 0.02), 0.0)
    accuracy = round(float(np.clip(0.905 - lost + shift + 0.05 * lost * draw.standard_normal(), 0.1, 0.99)) * N_TEST) / N_TEST
    scores = {"top5": min(1.0, accuracy + 0.1), "nll": 0.3 + 2 * lost, "ece": 0.02 + 0.3 * lost}
    return {"kind": "chip", **key, "condition": c.name, "accuracy": accuracy, **scores, "n_test": N_TEST}


def _map(arm: str, draw: np.random.Generator) -> list[dict[str, Any]]:
    skill, made = STRENGTH[arm], list[dict[str, Any]]()
    cells = [(layer, *effect, 0.2 + 0.2 * i) for layer in LAYERS for i, effect in enumerate((*EFFECTS, ("all", "all")))]
    cells += [("all", *effect, 0.5 + 0.3 * i) for i, effect in enumerate((*EFFECTS, ("all", "all")))]
    for layer, side, effect, share in cells:
        for chip in (1000, 1001):
            drop = round(skill * share * N_TEST + draw.normal()) / N_TEST
            made.append({"kind": "sensitivity", "arm": arm, "seed": 0, "layer": layer, "side": side, "effect": effect, "chip": chip,
                         "noise_level": 1.0, "age_s": 0.0, "value": 0.9 - drop, "drop": drop})  # fmt: skip
    made.append({"kind": "sharpness", "arm": arm, "seed": 0, "eigenvalue": 100 * skill, "converged": arm != "digital"})
    for direction in ("random", "ascent"):
        for radius in (-1.0, -0.5, 0.0, 0.5, 1.0):
            loss = 0.3 + 10 * skill * radius**2
            made.append(
                {"kind": "landscape", "arm": arm, "seed": 0, "direction": direction, "radius": radius, "distance": 5 * radius, "loss": loss}
            )
    return made
