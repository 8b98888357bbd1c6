"""A study directory: cells computed by several processes, each written whole; what was killed goes on where it was."""

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from annotated_types import Ge, Gt, Len

from galvanic import __version__
from galvanic.profile import Profile, load_profile, profile_to_dict
from galvanic.storage import sweep, write_atomic, write_json
from galvanic.studies.datasets import Dataset, load
from galvanic.studies.protocol import STUDIES, Progress
from galvanic.studies.settings import FIRST_TEST_CHIP
from galvanic.studies.summary import summarise
from galvanic.studies.trial import Row, StudyCell, Trial

_PARTS = ("cells", "checkpoints")
_FIRST_SEED, _FIRST_CHIP = 10, FIRST_TEST_CHIP + 100  # the numbers before them served to tune the recipes
Engine = Callable[[Callable[..., str], list[tuple[Any, ...]], int], Generator[str, None, None]]
"""Calls a function with each of the arguments, so many at a time, and yields the results as they come; closed, it waits for no more."""


class StudySettings(pydantic.BaseModel):
    """The choices of one study, as kept in its `config.json`.

    Args:
        study: its name.
        recipes_sha256: SHA-256 of every arm's recipe and of the conditions, as they were when the study began.
        data, root, partial_test, train_samples, test_samples, shrink: the data set.
        stages, width: the residual network.
        profile: the hardware, as nested dictionaries.
        arms: names.
        conditions: names.
        seeds: of weights, order and noise.
        chips: numbers of the chips it is evaluated on; none of them takes part in training.
        epochs, batch, learning_rate, weight_decay, calibration: the budget of every arm.
        augment: whether training images are shifted and mirrored.
        crop: pixels of the shift.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    study: str
    recipes_sha256: str
    data: str = "digits"
    root: str | None = None
    partial_test: bool = False
    train_samples: Annotated[int, Ge(1)] | None = None
    test_samples: Annotated[int, Ge(1)] | None = None
    shrink: Annotated[int, Ge(1)] | None = None
    stages: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = [1, 1, 1]
    width: Annotated[int, Ge(1)] = 16
    profile: dict[str, Any]
    arms: Annotated[list[str], Len(1)]
    conditions: Annotated[list[str], Len(1)]
    seeds: Annotated[list[int], Len(1)]
    chips: Annotated[list[int], Len(1)]
    epochs: Annotated[int, Ge(1)] = 8
    batch: Annotated[int, Ge(1)] = 64
    learning_rate: Annotated[float, Gt(0)] = 3e-3
    weight_decay: Annotated[float, Ge(0)] = 1e-3
    calibration: Annotated[int, Ge(1)] = 256
    augment: bool = False
    crop: Annotated[int, Ge(0)] = 2

    def load_data(self) -> Dataset:
        """The data set, read and checked."""
        choices = {name: getattr(self, name) for name in ("partial_test", "train_samples", "test_samples", "shrink")}
        return load(self.data, root=None if self.root is None else Path(self.root), **choices)


def study_settings(
    name: str, *, seeds: int = 5, chips: int = 10, arms: Iterable[str] = (), conditions: Iterable[str] = (), **given: Any
) -> StudySettings:
    """The settings of a study, with its own defaults, cut down or up.

    Raises:
        ValueError: no such study, arm, condition or profile; a number out of range.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; known: {', '.join(STUDIES)}")
    if seeds < 1 or chips < 1:
        raise ValueError(f"{seeds} seeds on {chips} chips: one of each or more")
    study = STUDIES[name]
    arms, conditions = list(dict.fromkeys(arms)), list(dict.fromkeys(conditions))
    for what, chosen, known in (("arm", arms, list(study.arms)), ("condition", conditions, [c.name for c in study.conditions])):
        for one in chosen:
            if one not in known:
                raise ValueError(f"study {name!r} has no {what} {one!r}; it has {', '.join(known)}")
    choices = study.settings | {key: value for key, value in given.items() if value is not None}
    hardware = choices.pop("profile", "generic-4bit")
    try:
        return StudySettings(
            study=name,
            recipes_sha256=_recipes_digest(name),
            profile=profile_to_dict(hardware if isinstance(hardware, Profile) else load_profile(hardware)),
            arms=arms or list(study.arms),
            conditions=conditions or [c.name for c in study.conditions],
            seeds=list(range(_FIRST_SEED, _FIRST_SEED + seeds)),
            chips=list(range(_FIRST_CHIP, _FIRST_CHIP + chips)),
            **choices,
        )
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg'].lower()}") from None


def _recipes_digest(name: str) -> str:
    study = STUDIES[name]
    facts = re.sub(r" at 0x[0-9a-f]+", "", repr((study.arms, study.conditions)))  # a function's address says nothing
    return hashlib.sha256(facts.encode()).hexdigest()


@dataclass
class StudyDirectory:
    """The folder of a study: ``config.json``, ``environment.json``, ``cells/``, ``checkpoints/``, ``rows.jsonl``, ``report.html``.

    Args:
        folder: the folder.
        settings: what the study is.
    """

    folder: Path
    settings: StudySettings

    def create(self, data: Dataset, command: str) -> None:
        """Write the configuration of a new study, after what could fail has been tried."""
        trial = Trial(self.settings, data, self.folder)
        trial.check()
        study = STUDIES[self.settings.study]
        facts = {
            "summary": study.summary,
            "baseline": study.baseline,
            "arm_summaries": {arm: study.arms[arm].summary for arm in self.settings.arms},
            "condition_facts": [_condition_facts(c) for c in study.conditions if c.name in self.settings.conditions],
            "data_note": data.note,
            "n_train": len(data.x_train),
            "n_test": len(data.x_test),
            "parameters": sum(p.numel() for p in trial.build().parameters()),
            "command": command,
        }
        config = self.settings.model_dump() | facts
        write_json(self.folder / "config.json", config | {"sha256": _digest(config)})

    @staticmethod
    def open(folder: Path) -> "StudyDirectory":
        """The study that was begun in a folder.

        Raises:
            FileNotFoundError: no study there.
            ValueError: its configuration is damaged, or its recipes are others by now.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"no study in {folder} (it has no config.json)")
        try:
            config = dict(json.loads(path.read_text()))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"{path} is damaged: it does not hold the settings of a study") from None
        if config.pop("sha256", None) != _digest(config):
            raise ValueError(f"{path} is damaged, or was changed: a study keeps its settings")
        if "study" not in config:
            raise ValueError(f"{folder} holds a run, not a study; `galvanic run --resume` goes on with it")
        try:
            settings = StudySettings(**{k: v for k, v in config.items() if k in StudySettings.model_fields})
        except pydantic.ValidationError as error:
            raise ValueError(f"{path}: {error.errors()[0]['msg']}") from None
        if settings.study not in STUDIES or settings.recipes_sha256 != _recipes_digest(settings.study):
            raise ValueError(
                f"{folder}: the recipes or conditions of study {settings.study!r} have changed since it began; begin a new one"
            )
        return StudyDirectory(folder, settings)

    def data(self) -> Dataset:
        """The data; refuses those that are not what the study began with."""
        data = self.settings.load_data()
        facts = json.loads((self.folder / "config.json").read_text())
        if (data.note, len(data.x_train), len(data.x_test)) != (facts["data_note"], facts["n_train"], facts["n_test"]):
            raise ValueError(f"{self.settings.data}: the data have changed since this study began; start a new one")
        return data

    def execute(self, progress: Progress, *, workers: int = 1, engine: Engine | None = None) -> None:
        """Compute what is missing, cell by cell, and gather the rows."""
        for place in (self.folder, *(self.folder / name for name in _PARTS)):
            sweep(place)
        started, threads = time.monotonic(), torch.get_num_threads()
        cells = Trial(self.settings, self.data(), self.folder).cells()
        efforts = {cell.name: cell.effort for cell in cells}
        missing = [cell for cell in cells if not self.path(cell).exists()]
        for cell in cells:
            if self.path(cell).exists():
                progress(cell.name, cell.effort)
        try:
            for kind in ("training", "chip", "map"):  # a chip needs its network
                batches = _batches([cell for cell in missing if cell.kind == kind])
                jobs = [(str(self.folder.resolve()), [cell.name for cell in batch]) for batch in batches]
                with contextlib.closing((engine or processes)(compute, jobs, workers)) as results:
                    for name in (name for done in results for name in done.split("\n")):
                        progress(name, efforts[name])
        finally:
            torch.set_num_threads(threads)  # `compute` may have run in this process
            self._gather(cells)
            self._environment(time.monotonic() - started, workers)

    def path(self, cell: StudyCell) -> Path:
        """Where the rows of a cell are."""
        return self.folder / "cells" / f"{cell.name}.jsonl"

    def rows(self) -> list[Row]:
        """All rows gathered so far."""
        return [json.loads(line) for line in (self.folder / "rows.jsonl").read_text().splitlines()]

    def _gather(self, cells: list[StudyCell]) -> None:
        done = [self.path(cell).read_bytes() for cell in cells if self.path(cell).exists()]
        write_atomic(self.folder / "rows.jsonl", b"".join(done))
        conditions = [c for c in STUDIES[self.settings.study].conditions if c.name in self.settings.conditions]
        summary = summarise(self.rows(), conditions, STUDIES[self.settings.study].baseline)
        write_atomic(self.folder / "summary.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in summary).encode())

    def summary(self) -> list[Row]:
        """What the rows say, as `summarise` gives it."""
        return [json.loads(line) for line in (self.folder / "summary.jsonl").read_text().splitlines()]

    def _environment(self, seconds: float, workers: int) -> None:
        path = self.folder / "environment.json"
        before: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # not worth stopping for
            before = dict(json.loads(path.read_text()))
        facts = {
            "galvanic": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "workers": workers,
            "started": before.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
            "seconds": round(before.get("seconds", 0.0) + seconds, 1),
        }
        write_json(path, facts)


def _condition_facts(condition: Any) -> dict[str, Any]:
    names = ("name", "noise", "level", "theta", "bits", "age_s", "temperature_K", "recalibrated")
    return {name: getattr(condition, name) for name in names}


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _batches(cells: list[StudyCell]) -> Iterator[list[StudyCell]]:
    """Cells that share a network, together."""
    groups: dict[tuple[str, int], list[StudyCell]] = {}
    for cell in cells:
        groups.setdefault((cell.arm, cell.number), []).append(cell)
    yield from groups.values()


@lru_cache(maxsize=1)  # the cells of a process are of one study, as it is configured now
def _trial(folder: str, config: str) -> tuple[StudyDirectory, Trial]:
    directory = StudyDirectory.open(Path(folder))
    return directory, Trial(directory.settings, directory.data(), directory.folder)


def compute(folder: str, names: list[str]) -> str:
    """Compute cells of the study in a folder, on one thread; returns their names, one a line. What is there already is left."""
    torch.set_num_threads(1)
    directory, trial = _trial(folder, (Path(folder) / "config.json").read_text())
    for cell in trial.cells():
        if cell.name in names and not directory.path(cell).exists():
            rows = "".join(json.dumps(row, allow_nan=False) + "\n" for row in trial.rows(cell))
            write_atomic(directory.path(cell), rows.encode())
    return "\n".join(names)


def processes(function: Callable[..., str], jobs: list[tuple[Any, ...]], workers: int) -> Generator[str, None, None]:
    """The engine of one machine: so many processes, which end with this one however it ends; in this process where it is one.

    Raises:
        RuntimeError: a process was killed.
    """
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    context = get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    try:
        with watched, held, ProcessPoolExecutor(workers, context, _end_with, (watched,)) as pool:
            try:
                with _without_interrupts():
                    pending = [pool.submit(function, *job) for job in jobs]
                for done in as_completed(pending):
                    yield done.result()
            except BaseException:
                held.close()  # ends the processes: what they compute is not waited for
                raise
    except BrokenProcessPool:
        raise RuntimeError(f"a process of this study was killed; if memory ran out, go on with fewer than {workers} --workers") from None


def _end_with(pipe: Connection) -> None:
    """In a process of the pool: end when the one that holds the other end of the pipe does, or lets it go."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            pipe.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes begun within it leave Ctrl-C to this one, which meets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def on_ray(function: Callable[..., str], jobs: list[tuple[Any, ...]], workers: int) -> Generator[str, None, None]:
    """The engine of a Ray cluster, or of a Ray begun here; the folder of the study is on storage that all its machines share.

    Raises:
        RuntimeError: a process or a machine was lost. What a job raises is raised here.
    """
    ray = _ray()
    if not ray.is_initialized():
        ray.init(num_cpus=workers if "RAY_ADDRESS" not in os.environ else None, log_to_driver=False, logging_level=logging.ERROR)
    remote = ray.remote(function)
    pending = [remote.remote(*job) for job in jobs]
    try:
        while pending:
            done, pending = ray.wait(pending)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray lost a part of this study: {str(error).splitlines()[0]}") from None
    finally:
        for job in pending:
            ray.cancel(job, force=True)


def _ray() -> Any:
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ValueError("--engine ray: Ray is not installed; pip install 'galvanic[ray]'") from None
    return ray


_ENGINES: dict[str, Engine] = {"processes": processes, "ray": on_ray}


def engine_named(name: str) -> Engine:
    """The engine of this name.

    Raises:
        ValueError: there is none, or it is not installed.
    """
    if name not in _ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: {', '.join(_ENGINES)}")
    if name == "ray":
        _ray()
    return _ENGINES[name]
