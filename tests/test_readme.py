"""What the README tells a newcomer to type works, and its example shows what it says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block marked {marker}"
    return found[1]


def test_the_example_runs_in_25_lines_and_training_on_chips_pays_at_three_times_the_noise():
    code = block("example")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    scores = {name: float(score) for name, score in re.findall(r"(.+): (0\.\d+)", printed.getvalue())}
    assert set(scores) == {f"{who}, {level} x the noise" for who in ("ordinary", "hardware-aware") for level in (1, 3)}
    assert scores["hardware-aware, 3 x the noise"] > scores["ordinary, 3 x the noise"] + 0.02


def test_two_commands_set_up_everything():
    assert block("run").startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt . && .venv/bin/galvanic run")
    assert "pytest" in block("tests")
    assert (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()[-1] == "torch==2.13.0"


def test_every_link_of_the_readme_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    for target in filter(None, (a or b for a, b in targets)):
        assert target.startswith("https://") or (Path(__file__).parents[1] / target).exists(), target
