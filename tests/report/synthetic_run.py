"""A made-up run directory with the shape of a real one: accuracies that fall with age and noise, chips that scatter."""

import json
from pathlib import Path
from typing import Any

import numpy as np

AGES_S = (0.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0)
LAYERS = ("stem.conv", "block.conv1", "block.conv2", "head")
LOSS_PER_DECADE = {"digital": 0.09, "ptq": 0.075, "noise": 0.012}
RESCUE = {"none": 1.0, "global-drift": 0.35, "batch-norm": 0.25}

CONFIG: dict[str, Any] = {
    "data": "digits",
    "data_note": "",
    "n_train": 1197,
    "n_test": 600,
    "model": "cnn",
    "parameters": 12345,
    "profile": {
        "name": "pcm",
        "summary": "Phase-change memory in pairs of devices, as measured on a million-device prototype.",
        "input": [{"kind": "Quantize", "bits": 8, "source": "Joshi et al., Nature Communications, 2020"}],
        "weight": [
            {"kind": "ProgrammingNoise", "coefficients": [0.26348, 1.9650, -1.1731], "g_max_uS": 25.0, "source": "Joshi et al., 2020"},
            {"kind": "Drift", "nu": 0.0598, "nu_std": 0.0211, "t0_s": 20.0, "source": "Le Gallo et al., Adv. Electron. Mater., 2018"},
            {"kind": "ReadNoise", "exponent": -0.65, "source": "Nandakumar et al., ICECS, 2020"},
        ],
        "output": [{"kind": "Quantize", "bits": 8, "source": "Joshi et al., 2020"}],
        "encoding": {"kind": "Differential", "g_max": 1.0},
        "rows": 512,
        "columns": 512,
    },
    "recipes": ["digital", "ptq", "noise"],
    "recipe_summaries": {
        "digital": "Trained in floating point as usual and put on the chip as it is.",
        "ptq": "The same weights; the ranges of the converters are chosen to minimise the rounding error.",
        "noise": "Trained with the hardware's noise switched on, a fresh simulated chip at every step.",
    },
    "seeds": [0, 1],
    "chips": list(range(1000, 1010)),
    "epochs": 60,
    "command": "galvanic run --data digits --profile pcm",
}

ENVIRONMENT = {
    "galvanic": "0.1.0",
    "python": "3.11.2",
    "torch": "2.12.0+cpu",
    "platform": "Linux-6.1-x86_64",
    "cores": 2,
    "started": "2026-01-02T03:04:05+00:00",
    "seconds": 97.3,
}


def rows(*, seeds: int = 2, chips: int = 10, recipes: tuple[str, ...] = ("digital", "ptq", "noise")) -> list[dict[str, Any]]:
    """All rows of a complete run."""
    draw = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for recipe in recipes:
        for seed in range(seeds):
            made += _training(recipe, seed)
            made.append({"kind": "digital", "recipe": recipe, "seed": seed, "accuracy": 0.98 - 0.004 * seed, "n_test": 600})
            for chip in range(1000, 1000 + chips):
                made += _of_chip({"recipe": recipe, "seed": seed, "chip": chip}, draw)
    return made + [_placement(layer, place) for place, layer in enumerate(LAYERS)] + [_digital_placement()]


def write_run(folder: Path, made: list[dict[str, Any]], *, config: dict[str, Any] | None = None, environment: bool = True) -> Path:
    """Write the three files of a run into `folder`, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in made))
    if environment:
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def age_row(recipe: str, seed: int, chip: int, accuracy: float, *, age_s: float = AGES_S[-1], compensation: str = "none") -> dict[str, Any]:
    """One accuracy of one network on one chip."""
    row = {"kind": "age", "recipe": recipe, "seed": seed, "chip": chip, "age_s": age_s, "compensation": compensation}
    return row | {"accuracy": accuracy, "n_test": 600}


def _training(recipe: str, seed: int) -> list[dict[str, Any]]:
    row = {"kind": "training", "recipe": recipe, "seed": seed, "noise_level": 1.0 if recipe == "noise" else 0.0, "seconds": 0.2}
    floor = 0.05 if recipe == "noise" else 0.008
    return [row | {"epoch": epoch, "loss": floor + 2.2 * float(np.exp(-epoch / 8))} for epoch in range(60)]


def _of_chip(key: dict[str, Any], draw: np.random.Generator) -> list[dict[str, Any]]:
    def accuracy(loss: float) -> float:
        noisy = 0.97 - loss + 0.25 * (loss + 0.01) * draw.standard_normal()
        return round(float(np.clip(noisy, 0.1, 0.99)) * 600) / 600

    made: list[dict[str, Any]] = []
    slope = LOSS_PER_DECADE[key["recipe"]]
    for age_s in AGES_S:
        decades = 0.3 + float(np.log10(1 + age_s / 20))
        made += [age_row(**key, accuracy=accuracy(slope * decades * RESCUE[name]), age_s=age_s, compensation=name) for name in RESCUE]
    for level in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        made.append({"kind": "level", **key, "noise_level": level, "accuracy": accuracy(slope * 0.6 * level**1.7), "n_test": 600})
    return made + [_layer(key, layer, age_s, draw) for layer in LAYERS for age_s in (0.0, AGES_S[-1])]


def _layer(key: dict[str, Any], layer: str, age_s: float, draw: np.random.Generator) -> dict[str, Any]:
    growth = 1 + 0.12 * LAYERS.index(layer) + (3.5 if age_s else 0.0)
    scale = {"digital": 1.3, "ptq": 1.1, "noise": 0.8}[key["recipe"]]
    fixed = key["recipe"] != "digital"
    return {
        "kind": "layer", **key, "age_s": age_s, "layer": layer,
        "error": 0.08 * growth * scale * (1 + 0.1 * float(draw.standard_normal())),
        "input_max": 3.1 * scale, "input_range": 2.9 if fixed else None, "input_clipped": 0.004 if fixed else 0.0,
        "output_max": 9.0 * scale, "output_range": 10.0, "output_clipped": 0.021 if scale > 1.2 else 0.00002,
    }  # fmt: skip


def _placement(layer: str, place: int) -> dict[str, Any]:
    row = {"kind": "placement", "layer": layer, "type": "Linear" if layer == "head" else "Conv2d", "where": "analog"}
    size = {"rows": 72 * (place + 1), "columns": 16 * (place + 1), "tiles": 1, "utilisation": 0.05 * (place + 1)}
    return row | size | {"why": "a matrix product: runs in the array", "parameters": 1152 * (place + 1)}


def _digital_placement() -> dict[str, Any]:
    row = {"kind": "placement", "layer": "block.norm", "type": "BatchNorm2d", "where": "digital", "parameters": 32}
    nowhere = {"rows": None, "columns": None, "tiles": 0, "utilisation": None}
    return row | nowhere | {"why": "scales and shifts each channel: two numbers a channel, done after the ADC"}
