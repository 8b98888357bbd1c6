"""Rows of results: where they were measured, and how they are kept."""

import json
import os
import platform
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import galvanic
from galvanic.storage import write_atomic

Row = dict[str, Any]
RESULTS = Path(__file__).parent.parent / "results" / "speed"


def environment(script: str, arguments: Iterable[str]) -> Row:
    """Where and by which command a row was measured."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "galvanic": galvanic.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "command": shlex.join(["python", f"benchmarks/{script}", *arguments]),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def replace_case(path: Path, case: str, rows: Iterable[Row], order: Iterable[str]) -> None:
    """Put the rows of a case in the place of its old ones, atomically; cases stand in this order."""
    places = {name: place for place, name in enumerate(order)}
    kept = [row for row in read_rows(path) if row["case"] != case and row["case"] in places]
    listed = sorted([*kept, *rows], key=lambda row: places[row["case"]])
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in listed).encode())
