"""The numbers: equal to an independent computation, and no claim that the intervals do not show."""

import math
import re
import statistics
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_run import AGES_S, age_row, rows, write_run

from galvanic.report import write
from galvanic.report.compare import difference
from galvanic.report.headline import caution, sentences
from galvanic.report.run import Run
from galvanic.report.summary import interval, spread


def run_of(made: list[dict[str, Any]]) -> Run:
    return Run(config={"data": "digits", "profile": {"name": "pcm"}, "recipes": ["digital", "noise"]}, environment={}, rows=tuple(made))


def arms(gain: float, scatter: float, *, seeds: int, chips: int = 10) -> list[dict[str, Any]]:
    """Two recipes on the same chips: `noise` is better than `digital` by `gain` +- `scatter`."""
    draw = np.random.default_rng(1)
    made = []
    for seed in range(seeds):
        for chip in range(chips):
            base = 0.5 + 0.05 * draw.standard_normal()
            made += [age_row("digital", seed, chip, base), age_row("noise", seed, chip, base + gain + scatter * draw.standard_normal())]
    return made


def cells(text: str) -> list[list[str]]:
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in found]


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_table_equals_an_independent_computation(seeds: int, tmp_path: Path) -> None:
    made = rows(seeds=seeds)
    table = cells(write(write_run(tmp_path / "run", made)).read_text(encoding="utf-8"))
    of = [r for r in made if r["kind"] == "age" and (r["recipe"], r["compensation"], r["age_s"]) == ("noise", "global-drift", AGES_S[3])]
    means = [statistics.mean(r["accuracy"] for r in of if r["seed"] == seed) for seed in range(seeds)]
    values = [r["accuracy"] for r in of]
    mean, std = statistics.mean(means), statistics.stdev(values)
    expected = [f"{100 * mean:.1f} %", f"{100 * std:.1f}", f"{100 * min(values):.1f} %"]
    if seeds == 3:
        half = 4.303 * statistics.stdev(means) / math.sqrt(3)
        expected.append(f"{100 * (mean - half):.1f} – {100 * (mean + half):.1f} %")
    row = ["hardware-aware", "global drift compensation", "30 days", *expected, f"{seeds} × 10", "600"]
    assert row in table


def test_the_level_table_equals_an_independent_computation(tmp_path: Path) -> None:
    made = rows()
    table = cells(write(write_run(tmp_path / "run", made)).read_text(encoding="utf-8"))
    values = [r["accuracy"] for r in made if r["kind"] == "level" and r["recipe"] == "ptq" and r["noise_level"] == 1.5]
    expected = [f"{100 * statistics.mean(values):.1f} %", f"{100 * statistics.stdev(values):.1f}", f"{100 * min(values):.1f} %"]
    assert ["calibrated", "1.5×", *expected, "2 × 10", "600"] in table


def test_the_mean_is_over_seeds_of_chip_means_and_repeats_of_a_chip_count_once() -> None:
    made = [age_row("noise", 0, 0, 0.2), age_row("noise", 0, 0, 0.4), age_row("noise", 0, 1, 0.5), age_row("noise", 1, 0, 0.8)]
    found = spread(made)
    assert found.mean == pytest.approx((0.4 + 0.8) / 2)
    assert found.std == pytest.approx(statistics.stdev([0.3, 0.5, 0.8]))
    assert found.low == pytest.approx(0.3)
    assert (found.seeds, found.chips, found.values) == (2, (1, 2), 3)


def test_two_seeds_give_no_interval_and_the_page_says_so() -> None:
    assert spread([age_row("noise", seed, 0, 0.5) for seed in range(2)]).interval is None
    assert "Two trainings per recipe give no interval over trainings" in caution(run_of(arms(0.2, 0.01, seeds=2)))
    assert "interval over the trainings excludes zero" in caution(run_of(arms(0.2, 0.01, seeds=3)))


@pytest.mark.parametrize("freedom", [1, 2, 7, 30, 31, 45, 200])
def test_the_quantiles_are_those_of_students_t(freedom: int) -> None:
    units = [float(value) for value in range(freedom + 1)]
    low, high = interval(units) or (math.nan, math.nan)
    expected = stats.t.interval(0.95, freedom, loc=statistics.mean(units), scale=stats.sem(units))
    assert (low, high) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "better"), (-0.1, "worse"), (0.0, "no difference shown")])
def test_the_verdict_follows_the_distributions(seeds: int, gain: float, verdict: str) -> None:
    made = arms(gain, 0.02, seeds=seeds)
    found = difference(made, "noise", "digital")
    assert found
    assert found.verdict == verdict
    lead = " ".join(sentences(run_of(made)))
    words = {"better": "points more than ordinary training", "worse": "points less than ordinary training"}
    assert words.get(verdict, "no difference shown against ordinary training") in lead


def test_equal_accuracies_show_no_difference_and_the_lead_claims_none() -> None:
    made = [age_row(recipe, seed, chip, 0.5 + 0.01 * chip) for recipe in ("digital", "noise") for seed in range(3) for chip in range(4)]
    found = difference(made, "noise", "digital")
    assert found
    assert (found.verdict, found.mean, found.std) == ("no difference shown", 0.0, 0.0)
    assert "more than" not in " ".join(sentences(run_of(made)))


def test_one_training_that_shows_nothing_forbids_a_claim_for_both() -> None:
    clear = list(arms(0.3, 0.01, seeds=1))
    unclear = [r | {"seed": 1} for r in arms(0.0, 0.05, seeds=1)]
    found = difference(clear + unclear, "noise", "digital")
    assert found
    assert found.mean > 0.1
    assert found.verdict == "no difference shown"


def test_a_single_chip_or_less_than_one_test_example_is_no_difference() -> None:
    single = difference(arms(0.3, 0.0, seeds=2, chips=1), "noise", "digital")
    tiny = difference(arms(0.5 / 600, 0.0, seeds=3), "noise", "digital")
    assert single
    assert single.verdict == "no difference shown"
    assert tiny
    assert tiny.verdict == "no difference shown"


def test_the_difference_is_paired_by_seed_and_chip() -> None:
    made = arms(0.1, 0.01, seeds=2)
    found = difference([*made, age_row("noise", 0, 99, 0.0)], "noise", "digital")
    gaps = [b["accuracy"] - a["accuracy"] for a, b in zip(made[::2], made[1::2], strict=True)]
    assert found
    assert (found.pairs, found.alone) == (20, 1)
    assert found.mean == pytest.approx(statistics.mean(gaps))
    assert found.std == pytest.approx(statistics.stdev(gaps))
    assert difference([age_row("noise", 0, 1, 0.5), age_row("digital", 0, 2, 0.5)], "noise", "digital") is None


def test_the_headline_speaks_of_the_oldest_age_that_both_recipes_have() -> None:
    made = [age_row("digital", 0, 1, 0.25, age_s=a) for a in (0.0, 3600.0, 86400.0)]
    made += [age_row("noise", 0, 1, 0.75, age_s=a) for a in (0.0, 3600.0)]
    assert any("pcm chip, 1 h after programming and without compensation, it gets 25.0 % right" in s for s in sentences(run_of(made)))
