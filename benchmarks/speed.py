"""Compare the speed and memory of galvanic, and of a peer where it is installed, with those of the digital twin.

    python benchmarks/speed.py                      # everything
    python benchmarks/speed.py linear linear-off    # these cases
    python benchmarks/speed.py --quick              # small cases, once: whether it works

One process, one thread; every arm is measured in every round, and its time is the least CPU time of all rounds. Peaks of memory are
those of a fresh process for every arm and round, in which freed memory goes back at once. The hardware: 8-bit inputs with a learned
range, 8-bit outputs of a window of 12 cells, output noise of 0.02 cells, weight noise of 0.03 drawn anew at every step (profile `hwa`);
in cases that end with -off, none. Rows go to results/speed/speed.jsonl, where those of other cases stay; `python benchmarks/table.py`
makes docs/speed.md of them.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from arms import ARMS, PEER, Case, arms_of, peer_installed, version_of
from cases import cases
from measure import growth_MiB, interleaved
from rows import RESULTS, Row, environment, replace_case
from table import verdict

RETURNED = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes the C library give the memory of every tensor back at once: what it would keep for later is no need, and differs between runs."""


def time_rows(case: Case, rounds: int, tell: Callable[[], object]) -> list[Row]:
    """A row for every arm: its time and the ratio to that of the digital twin."""
    found = interleaved({arm: ARMS[arm](case) for arm in arms_of(case)}, rounds, tell=tell)
    twin = found["digital"]
    return [
        {
            "arm": arm,
            "ratio": round(one.cpu_ms / twin.cpu_ms, 3),
            "milliseconds": round(one.cpu_ms, 4),
            "wall_ratio": round(one.wall_ms / twin.wall_ms, 3),
            "wall_milliseconds": round(one.wall_ms, 4),
        }
        for arm, one in found.items()
    ]


def memory_rows(name: str, case: Case, rounds: int, quick: bool, tell: Callable[[], object]) -> list[Row]:
    """A row for every arm: how much its peak of memory grows, the least of all rounds, and the ratio to that of the digital twin."""
    grown: dict[str, list[float]] = {arm: [] for arm in arms_of(case)}
    for _ in range(rounds):
        for arm, sizes in grown.items():
            command = [sys.executable, __file__, name, "--grow", arm, *["--quick"] * quick]
            sizes.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=RETURNED).stdout))
        tell()
    least = {arm: min(sizes) for arm, sizes in grown.items()}
    return [{"arm": arm, "ratio": round(size / least["digital"], 3), "mebibytes": round(size, 2)} for arm, size in least.items()]


def grow(case: Case, arm: str) -> float:
    """The growth of the peak in two training steps, in this process."""
    ARMS[arm](replace(case, batch=(2, *case.batch[1:])))()  # what is loaded at the first step is not what the step needs
    step = ARMS[arm](case)
    return growth_MiB(lambda: [step() for _ in range(2)])


def measured(name: str, case: Case, rounds: int, quick: bool, where: Row, tell: Callable[[], object]) -> list[Row]:
    """The rows of a case, complete."""
    rows = memory_rows(name, case, rounds, quick, tell) if case.memory else time_rows(case, rounds, tell)
    for row in rows:
        if row["arm"] == "galvanic":
            row |= {"must": case.must, "aim": case.aim}
    what = {"case": name, "what": case.what, "batch": case.batch[0], "rounds": rounds}
    return [what | row | {"version": version_of(row["arm"])} | where for row in rows]


def shown(rows: list[Row]) -> Table:
    """Rows for a terminal."""
    table = Table("case", "arm", "ratio", "", "must", "aim", "verdict")
    for row in rows:
        cost = f"{row['milliseconds']:.3f} ms" if "milliseconds" in row else f"{row['mebibytes']:.1f} MiB"
        table.add_row(row["case"], row["arm"], f"{row['ratio']:.2f}", cost, str(row.get("must", "")), str(row.get("aim", "")), verdict(row))
    return table


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which (default: all): {', '.join(cases())}")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default: by case, hundreds where it is short)")
    parser.add_argument("--quick", action="store_true", help="small cases, once; nothing is written unless --results says where")
    parser.add_argument("--results", type=Path, help="file of the rows (default: results/speed/speed.jsonl)")
    parser.add_argument("--grow", choices=list(ARMS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = [name for name in given.cases if name not in cases()]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(cases())}")
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: 1 or more")
    return given


def main() -> None:
    """The command line."""
    given = arguments()
    torch.set_num_threads(1)
    known = cases(quick=given.quick)
    chosen = {name: known[name] for name in given.cases or known}
    if given.grow:
        print(grow(chosen[given.cases[0]], given.grow))
        return
    path = given.results or (None if given.quick else RESULTS / "speed.jsonl")
    console = Console(stderr=True)
    if not peer_installed():
        console.print(f"{PEER} is not installed: its arm is left out; pip install {PEER} adds it")
    typed = [*given.cases, *([] if given.rounds is None else ["--rounds", str(given.rounds)]), *["--quick"] * given.quick]
    where, found = environment("speed.py", typed), []
    with Progress(console=console) as bar:
        for name, case in chosen.items():
            rounds = given.rounds or case.rounds
            task = bar.add_task(name, total=rounds)
            rows = measured(name, case, rounds, given.quick, where, lambda task=task: bar.advance(task))
            found += rows
            if path is not None:
                replace_case(path, name, rows, known)
    Console(width=120).print(shown(found))


if __name__ == "__main__":
    main()
