"""What docs/extending.md tells a reader to type works, in a process that knows nothing else. Its effect also meets every law of
tests/physics/test_contract.py."""

import re
import subprocess
import sys
from math import exp
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/extending.md has no block marked {marker}"
    return found[1]


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "leak.py").write_text(block("effect"), encoding="utf-8")
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_the_effect_takes_no_more_than_thirty_lines():
    assert len([line for line in block("effect").splitlines() if line.strip()]) <= 30


def test_a_plain_import_is_enough_for_code_toml_and_layers(tmp_path):
    ran = run(tmp_path, block("use"))
    assert ran.returncode == 0, ran.stderr
    left = float(re.fullmatch(r"left after 1000 s: (\d\.\d\d)\n", ran.stdout)[1])
    # of two outputs, each a sum of four weights, every one of which keeps exp(-e^(0.3 z)), here |z| <= 3
    assert exp(-exp(0.9)) < left < exp(-exp(-0.9))


def test_without_the_import_the_profile_is_refused_by_name(tmp_path):
    without = "\n".join(line for line in block("use").splitlines() if "leak" not in line and "Leak(" not in line)
    ran = run(tmp_path, without)
    assert ran.returncode == 1
    assert "unknown kind 'Leak'" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["draw", "apply", "after_write", "lines"])
def test_what_the_page_says_of_an_effect_exists(name):
    from galvanic.physics import Nonideality

    assert name in PAGE
    assert hasattr(Nonideality, name)
