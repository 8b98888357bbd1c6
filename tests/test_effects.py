"""docs/effects.md tells of every effect, with the clock and the parameters it has."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import galvanic.physics as physics
from galvanic.physics import Nonideality

PAGE = (Path(__file__).parents[1] / "docs" / "effects.md").read_text(encoding="utf-8")
ROWS = {m[1]: [cell.strip() for cell in m[2].split("|")] for m in re.finditer(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)}
EFFECTS = {
    name: x
    for name in physics.__all__
    if isinstance(x := getattr(physics, name), type) and issubclass(x, Nonideality) and not x.__abstractmethods__
}


def test_the_tables_have_a_row_for_every_effect_and_no_other():
    assert ROWS.keys() == EFFECTS.keys()


@pytest.mark.parametrize("name", EFFECTS)
def test_a_row_has_the_clock_and_all_parameters_of_its_effect(name):
    _, clock, _, parameters, _ = ROWS[name]
    own = {f.name: f.default for f in fields(EFFECTS[name])}
    assert clock == (own["per"] or "–")
    assert set(re.findall(r"`(\w+)`", parameters)) == own.keys() - {"per", "source"}


def test_every_test_and_effect_that_the_text_names_exists():
    for name in re.findall(r"`([A-Z]\w+)`", PAGE):
        assert hasattr(physics, name), name
    for file in re.findall(r"`(tests/\S+?\.py)`", PAGE):
        assert (Path(__file__).parents[1] / file).is_file(), file
