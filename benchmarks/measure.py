"""Time and memory of what a process does, as free of the machine's other business as one process can make it."""

import contextlib
import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The least time that something took in any round.

    Args:
        cpu_ms: of the processor, in this process.
        wall_ms: of the clock on the wall.
        rounds: how many.
    """

    cpu_ms: float
    wall_ms: float
    rounds: int


def interleaved(
    works: Mapping[str, Work], rounds: int, *, block_s: float = 0.01, tell: Callable[[], object] = lambda: None
) -> dict[str, Duration]:
    """The duration of each work, every one measured in every round, so that a disturbance of the machine meets all.

    Args:
        works: what is timed, by name; each is done once beforehand.
        rounds: how often.
        block_s: a work that is shorter is repeated until a round has this much of it.
        tell: called after every round.
    """
    repeats = {name: _repeats(work, block_s) for name, work in works.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            cpu_s, wall_s = _time(work, repeats[name])
            spent[name].append((cpu_s / repeats[name], wall_s / repeats[name]))
        tell()
    return {
        name: Duration(cpu_ms=1e3 * min(cpu for cpu, _ in times), wall_ms=1e3 * min(wall for _, wall in times), rounds=rounds)
        for name, times in spent.items()
    }


def _repeats(work: Work, block_s: float) -> int:
    work()  # what is made on first use
    cpu_s, _ = _time(work, 1)
    return max(1, min(1000, round(block_s / max(cpu_s, 1e-6))))


def _time(work: Work, repeats: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        work()
    return time.process_time() - cpu, time.perf_counter() - wall


def growth_MiB(work: Work) -> float:
    """How much more memory a process holds at most while it works than before (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that earlier work left behind would be used again, and hide what is asked for
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is from now on the present
    before = _status_MiB("VmRSS")
    work()
    return max(0.0, _status_MiB("VmHWM") - before)


def _status_MiB(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
