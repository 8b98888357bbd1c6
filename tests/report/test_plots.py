"""The figures: axes that tell the truth, labels that do not overlap, text that stays inert."""

import itertools
import re
from typing import Any

from synthetic_run import AGES_S, rows

from galvanic.report import curves, svg
from galvanic.report.plots import layer_errors, losses
from galvanic.report.run import Run


def of(made: list[dict[str, Any]]) -> Run:
    return Run(config={"recipes": ["digital", "ptq", "noise"]}, environment={}, rows=tuple(made))


def test_age_zero_has_its_own_place_left_of_the_logarithmic_axis() -> None:
    places = list(curves.age_axis(AGES_S).values())
    assert places == sorted(places)
    assert places[1] - places[0] > 1
    assert curves.age_axis([0.0]) == {0.0: 0.0}


def test_labels_keep_their_distance_and_their_order() -> None:
    placed = svg.apart([0.97, 0.965, 0.96, 0.2], 0.1, 1.0)
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[-1] <= 1
    assert placed == sorted(placed, reverse=True)


def test_the_panels_of_all_compensations_share_their_axis() -> None:
    panels = curves.over_age(of(rows(seeds=1, chips=3)), 0.98)
    ticks = [re.findall(r">(\d+ %)<", panel) for panel in panels]
    assert len(panels) == 3
    assert ticks[0] == ticks[1] == ticks[2]
    assert all("floating point 98.0 %" in panel and ">days<" in panel and ">//<" in panel for panel in panels)


def test_the_level_of_the_profile_is_marked() -> None:
    (panel,) = curves.over_level(of(rows(seeds=1, chips=3)), None)
    assert "this hardware" in panel
    assert "floating point" not in panel


def test_there_is_no_figure_without_rows() -> None:
    nothing = of([{"kind": "placement", "layer": "a"}])
    assert curves.over_level(nothing, 0.9) == []
    assert layer_errors(nothing, ["a"], [0.0]) == []
    assert losses(nothing) == []


def test_every_recipe_has_its_own_colour() -> None:
    found = svg.colors(["digital", "ptq", "noise", "sharp", "loop", "third", "fourth"])
    assert len(set(found.values())) == 7


def test_losses_are_labelled_with_plain_numbers() -> None:
    (panel,) = losses(of(rows(seeds=1, chips=1)))
    assert "mathdefault" not in panel
    assert re.search(r">0\.01\d?<", panel)


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    from matplotlib import rcParams

    before = dict(rcParams)
    losses(of(rows(seeds=1, chips=1)))
    assert dict(rcParams) == before


def test_dollars_and_braces_in_a_name_are_letters_not_a_formula() -> None:
    made = [row | ({"layer": r"$\frac{$"} if "layer" in row else {}) for row in rows(seeds=1, chips=1)]
    (panel,) = layer_errors(of(made), [r"$\frac{$"], [0.0])
    assert r"$\frac{$" in panel
