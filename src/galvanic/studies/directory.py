"""A run directory: a run that is killed at any moment goes on where it was, and ends with the same rows."""

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from galvanic import __version__
from galvanic.storage import sweep, write_atomic, write_json
from galvanic.studies.datasets import Dataset
from galvanic.studies.settings import Settings, parse_settings
from galvanic.studies.survival import Cell, Row, Survival
from galvanic.studies.user import check_fit

_PARTS = ("cells", "checkpoints", "models")

Progress = Callable[[str, float], None]
"""Told, after every part: which cell, and how many passes over the training set it was worth."""


@dataclass
class RunDirectory:
    """What lies in the folder of a run.

    ``config.json`` its settings and facts, ``environment.json`` where it ran, ``cells/`` finished pieces of the study, ``rows.jsonl`` all
    their rows, ``checkpoints/`` of training, ``models/`` the trained networks on their chip, ``report.html`` the page.

    Args:
        folder: the folder.
        settings: what the run is.
    """

    folder: Path
    settings: Settings

    def create(self, data: Dataset, command: str) -> None:
        """Write the configuration of a new run, after what could fail has been tried."""
        study = Survival(self.settings, data, self.folder)
        first = study.build()
        check_fit(first, data.x_train[:2], data.classes, self.settings.model)
        list(study.placement())  # the tiles take the network
        for recipe in self.settings.recipes:
            study.fit(recipe, self.settings.seeds[0]).check()
        facts = {
            "data_note": data.note,
            "n_train": len(data.x_train),
            "n_test": len(data.x_test),
            "parameters": sum(p.numel() for p in first.parameters()),
            "recipe_summaries": {r: self.settings.recipe(r).summary for r in self.settings.recipes},
            "command": command,
        }
        config = self.settings.model_dump() | facts
        write_json(self.folder / "config.json", config | {"sha256": _digest(config)})

    @staticmethod
    def open(folder: Path) -> "RunDirectory":
        """The run that was begun in a folder.

        Raises:
            FileNotFoundError: no run there.
            ValueError: its configuration is damaged.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"no run in {folder} (it has no config.json)")
        try:
            config = dict(json.loads(path.read_text()))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"{path} is damaged: it does not hold the settings of a run") from None
        if config.pop("sha256", None) != _digest(config):
            raise ValueError(f"{path} is damaged, or was changed: a run keeps its settings")
        try:
            return RunDirectory(folder, parse_settings({k: v for k, v in config.items() if k in Settings.model_fields}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def study(self, data: Dataset, checkpoint_every_s: float) -> Survival:
        """The study of this run; refuses data that are not those it began with."""
        facts = json.loads((self.folder / "config.json").read_text())
        now = (data.note, len(data.x_train), len(data.x_test))
        if now != (facts["data_note"], facts["n_train"], facts["n_test"]):
            raise ValueError(f"{self.settings.data}: the data have changed since this run began; start a new run")
        return Survival(self.settings, data, self.folder, checkpoint_every_s)

    def execute(self, study: Survival, progress: Progress) -> None:
        """Compute what is missing, cell by cell, and gather the rows."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        for place in (self.folder, *(self.folder / name for name in _PARTS)):
            sweep(place)
        started = time.monotonic()
        cells = study.cells()
        try:
            for cell in cells:
                self._compute(cell, progress)
        finally:
            torch.set_num_threads(threads)
            self._gather(cells)
            self._environment(time.monotonic() - started)

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.jsonl"

    def _compute(self, cell: Cell, progress: Progress) -> None:
        if self._path(cell).exists():
            progress(cell.name, cell.effort)
            return
        rows: list[Row] = []
        paid = 0.0
        for row in cell.parts():
            rows.append(row)
            if row["kind"] == "training":  # the only cell that takes long enough to be watched
                progress(cell.name, 1.0)
                paid += 1.0
        write_atomic(self._path(cell), "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
        progress(cell.name, cell.effort - paid)

    def _gather(self, cells: list[Cell]) -> None:
        done = [self._path(cell).read_bytes() for cell in cells if self._path(cell).exists()]
        write_atomic(self.folder / "rows.jsonl", b"".join(done))

    def _environment(self, seconds: float) -> None:
        """Where the run ran, with the time of all its parts; the only file that two equal runs do not share."""
        path = self.folder / "environment.json"
        before: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # not worth stopping for
            before = dict(json.loads(path.read_text()))
        write_json(
            path,
            {
                "galvanic": __version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "platform": f"{platform.system()} {platform.machine()}",
                "cores": os.cpu_count(),
                "threads": self.settings.threads,
                "started": before.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
                "seconds": round(before.get("seconds", 0.0) + seconds, 1),
            },
        )

    def rows(self) -> list[Row]:
        """All rows gathered so far."""
        return [json.loads(line) for line in (self.folder / "rows.jsonl").read_text().splitlines()]


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def occupied(folder: Path) -> bool:
    """Whether a folder holds a run, or parts of one."""
    return any((folder / name).exists() for name in ("config.json", "rows.jsonl", *_PARTS))


def free_folder(data: str, profile: str) -> Path:
    """A folder below `runs` that no run is in."""
    stem = f"{Path(data).stem}-{profile}"
    candidates = (Path("runs") / name for name in (stem, *(f"{stem}-{n}" for n in range(2, 10000))))
    return next(path for path in candidates if not occupied(path))
