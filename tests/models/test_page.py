"""What docs/models.md tells a reader to type works, in a process that knows nothing else."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def run(*markers: str) -> str:
    """What the marked blocks print, one after the other."""
    for library in ("timm", "torchvision", "transformers"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"the page is tried where {library} is installed: pip install 'galvanic[models]'")
    code = "".join(re.search(rf"<!-- {marker} -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1] for marker in markers)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_blocks_of_timm_put_a_network_on_a_chip_and_find_the_layers_that_are_not_called():
    first, *digital, before, after = run("guard", "timm", "idle").splitlines()
    assert first == "scores: (8, 10)"
    assert len(digital) == 14  # the stem has three, each of four blocks two, and each but the first a third in its shortcut
    assert all(line.endswith("(BatchNorm2d): normalisation: scale and shift are digital") for line in digital)
    assert before == "idle: ['layers.0.blocks.0.attn.qkv', 'layers.1.blocks.0.attn.qkv']"
    assert after == "idle: []"


def test_the_block_of_transformers_computes_a_loss_and_generates_on_a_chip():
    loss, generated = run("guard", "transformers").splitlines()
    assert 0 < float(loss.removeprefix("loss: ")) < 100
    assert generated == "generated: (4, 6)"
