import json
import random

import numpy as np
import pytest

from galvanic.studies.conditions import Condition
from galvanic.studies.statistics import compare, interval, verdicts
from galvanic.studies.summary import summarise

PLAIN = tuple(Condition(name=f"level {level:g}", level=level) for level in (2.0, 0.0, 1.0))
RENEWED = Condition(name="level 2, recalibrated", level=2.0, recalibrated=True)
BITS = Condition(name="2 bits", bits=2)
CONDITIONS = (*PLAIN, RENEWED, BITS)
SEEDS, CHIPS = (10, 11, 12), (1100, 1101)
LOSS = {"level 0": 0.0, "level 1": 0.1, "level 2": 0.3, "level 2, recalibrated": 0.15, "2 bits": 0.4}
FULL = {10: 0.9, 11: 0.8, 12: 0.85}
ARM = {"digital": 0.0, "tuned": 0.05, "worse": -0.05}


def accuracy(arm: str, seed: int, chip: int, condition: str) -> float:
    """Made up: as the digital network, less by condition, more by arm, and a little by chip where it is noisy."""
    return FULL[seed] - LOSS[condition] * (1 - ARM[arm]) + (ARM[arm] * seed / 10 if LOSS[condition] else 0.0) + (chip - 1100) / 100


def digital(arm: str = "digital", full: dict[int, float] = FULL) -> list[dict]:
    return [{"kind": "digital", "arm": arm, "seed": seed, "accuracy": value} for seed, value in full.items()]


def measured(arm: str, seeds=SEEDS, chips=CHIPS, conditions=CONDITIONS) -> list[dict]:
    return [
        {"kind": "chip", "arm": arm, "seed": s, "chip": c, "condition": o.name, "accuracy": accuracy(arm, s, c, o.name), "nll": 1.0 + s}
        for s in seeds
        for c in chips
        for o in conditions
    ]


def table(arm: str, condition: str) -> np.ndarray:
    return np.array([[accuracy(arm, s, c, condition) for c in CHIPS] for s in SEEDS])


def of(found: list[dict], kind: str) -> dict[tuple, dict]:
    return {tuple(r[k] for k in ("arm", "condition", "metric") if k in r): r for r in found if r["kind"] == kind}


ROWS = [*digital(), *(row for arm in ARM for row in measured(arm)), {"kind": "training", "arm": "tuned", "seed": 10, "loss": 1.0}]
FOUND = summarise(ROWS, CONDITIONS, "tuned")


def close(row: dict, values: np.ndarray) -> None:
    expected = interval(values)
    assert (row["seeds"], row["chips"]) == values.shape
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([expected.mean, expected.low, expected.high])
    assert row["mean"] == pytest.approx(values.mean())


# ------------------------------------------------------------------------------------------------------------------- by hand


def test_every_arm_and_condition_has_the_interval_of_its_table():
    found = of(FOUND, "interval")
    assert set(found) == {(arm, c.name, metric) for arm in ARM for c in CONDITIONS for metric in ("accuracy", "nll")}
    for arm in ARM:
        for c in CONDITIONS:
            close(found[arm, c.name, "accuracy"], table(arm, c.name))
    assert found["tuned", "2 bits", "nll"]["mean"] == pytest.approx(12.0)


def test_the_digital_accuracy_is_over_seeds():
    close(of(FOUND, "digital")[("digital",)], np.array([[0.9], [0.8], [0.85]]))


def test_retention_is_the_mean_ratio_to_the_digital_network_of_the_same_seed():
    found = of(FOUND, "retention")
    assert set(found) == {(arm, c.name) for arm in ARM for c in CONDITIONS}
    close(found["worse", "level 1"], table("worse", "level 1") / np.array([[0.9], [0.8], [0.85]]))
    assert found["digital", "level 0"]["mean"] == pytest.approx(np.mean([(v + d) / v for v in (0.9, 0.8, 0.85) for d in (0, 0.01)]))


def test_the_relative_area_is_that_of_trapezoids_over_the_plain_levels_alone():
    """Levels 0, 1 and 2, whatever their order; bits and recalibration do not count."""
    by_hand = []
    for seed, full in FULL.items():
        a, b, c = ([accuracy("worse", seed, chip, f"level {level}") for chip in CHIPS] for level in (0, 1, 2))
        by_hand.append([(x / 2 + y + z / 2) / (2 * full) for x, y, z in zip(a, b, c, strict=True)])
    found = of(FOUND, "rauc")
    assert set(found) == {(arm,) for arm in ARM}
    close(found[("worse",)], np.array(by_hand))


def test_recalibration_is_judged_against_the_same_condition_without_it():
    found = of(FOUND, "recalibration")
    assert set(found) == {(arm, "level 2") for arm in ARM}
    assert found["digital", "level 2"]["difference"] == pytest.approx(0.15)
    assert found["digital", "level 2"]["verdict"] == compare(table("digital", RENEWED.name), table("digital", "level 2")).verdict
    expected = compare(table("worse", RENEWED.name), table("worse", "level 2"))
    assert found["worse", "level 2"]["p"] == expected.p


def test_every_other_arm_is_compared_with_the_baseline_pair_by_pair_and_all_p_values_are_one_family():
    found = of(FOUND, "comparison")
    pairs = [(arm, c.name) for arm in ("digital", "worse") for c in CONDITIONS]
    assert list(found) == pairs
    expected = verdicts([compare(table(arm, c), table("tuned", c)) for arm, c in pairs])
    for pair, judged in zip(pairs, expected, strict=True):
        row = found[pair]
        assert row["baseline"] == "tuned"
        assert row["difference"] == pytest.approx((table(*pair) - table("tuned", pair[1])).mean())
        assert {k: row[k] for k in ("low", "high", "p", "p_corrected", "effect", "verdict")} == {
            k: getattr(judged, k) for k in ("low", "high", "p", "p_corrected", "effect", "verdict")
        }
    assert found["worse", "level 1"]["verdict"] == "worse"
    assert found["worse", "level 0"]["verdict"] == "no difference shown"
    assert any(row["p_corrected"] > row["p"] for row in found.values())


def test_the_order_of_the_rows_does_not_matter():
    shuffled = ROWS.copy()
    random.Random(0).shuffle(shuffled)
    again = summarise(shuffled, CONDITIONS, "tuned")
    key = lambda row: json.dumps([row.get(k) for k in ("kind", "arm", "condition", "metric")])  # noqa: E731
    for a, b in zip(sorted(FOUND, key=key), sorted(again, key=key), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == (pytest.approx(value) if isinstance(value, float) and not name.startswith("p") else b[name])


# ------------------------------------------------------------------------------------------------------------------- unfinished


def arms(found: list[dict], kind: str) -> set[str]:
    return {row["arm"] for row in found if row["kind"] == kind}


def test_nothing_is_said_of_nothing():
    assert summarise([], CONDITIONS, "tuned") == []
    assert summarise([{"kind": "training", "arm": "tuned", "seed": 10, "loss": 1.0}], CONDITIONS, "tuned") == []


def test_a_study_that_only_trained_so_far_has_digital_accuracies():
    assert {row["kind"] for row in summarise(digital(), CONDITIONS, "tuned")} == {"digital"}


@pytest.mark.parametrize("lacking", [measured("worse", seeds=SEEDS[:2]), measured("worse", chips=CHIPS[:1]), measured("worse")[:-5]])
def test_an_arm_that_lacks_a_seed_or_a_chip_is_left_out(lacking):
    found = summarise([*digital(), *measured("digital"), *measured("tuned"), *lacking], CONDITIONS, "tuned")
    for kind in ("interval", "retention", "rauc", "recalibration"):
        assert arms(found, kind) == {"digital", "tuned"}
    assert arms(found, "comparison") == {"digital"}


def test_arms_that_have_other_seeds_so_far_are_never_paired():
    """Equally many, but not the same."""
    rows = [*digital(), *measured("digital", seeds=(10,)), *measured("tuned", seeds=(11,))]
    assert {row["kind"] for row in summarise(rows, CONDITIONS, "tuned")} == {"digital"}


def test_without_the_baseline_there_are_intervals_and_no_comparisons():
    found = summarise([*digital(), *measured("digital"), *measured("worse")], CONDITIONS, "tuned")
    assert arms(found, "interval") == {"digital", "worse"}
    assert arms(found, "comparison") == set()


def test_retention_pairs_by_seed_though_more_seeds_were_trained_than_measured():
    rows = [*digital(full={12: 0.85, 10: 0.9, 11: 0.8}), *measured("worse", seeds=(11, 12))]
    found = of(summarise(rows, CONDITIONS, "tuned"), "retention")
    close(found["worse", "level 1"], table("worse", "level 1")[1:] / np.array([[0.8], [0.85]]))


@pytest.mark.parametrize("full", [{}, {10: 0.9}, {**FULL, 11: 0.0}], ids=["none", "one seed", "zero"])
def test_nothing_is_retained_of_a_digital_accuracy_that_is_unknown_or_zero(full):
    found = summarise([*digital(full=full), *measured("tuned"), *measured("worse")], CONDITIONS, "tuned")
    assert arms(found, "retention") == arms(found, "rauc") == set()
    assert arms(found, "comparison") == {"worse"}


def test_one_level_has_no_area_and_one_seed_no_interval():
    one = [c for c in CONDITIONS if c.name in ("level 1", "2 bits")]
    found = summarise([*digital(full={10: 0.9}), *(r for arm in ARM for r in measured(arm, (10,), CHIPS, one))], one, "tuned")
    assert arms(found, "rauc") == set()
    assert all(row["low"] is None and row["high"] is None for row in found)
    assert {row["verdict"] for row in found if row["kind"] == "comparison"} == {"no difference shown"}


def test_conditions_that_are_not_asked_for_are_left_out():
    found = summarise(ROWS, CONDITIONS[:1], "tuned")
    assert {row["condition"] for row in found if "condition" in row} == {"level 2"}


def test_every_row_is_plain_finite_json():
    for row in FOUND:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
