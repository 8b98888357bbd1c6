"""How time and memory of galvanic grow with the size of a network, the batch and the number of chips; and how long it takes to import.

    python benchmarks/scaling.py                    # everything
    python benchmarks/scaling.py batch import       # these cases
    python benchmarks/scaling.py --quick            # small sizes, once: whether it works

One thread; times are the least CPU times of several rounds. Exponents are slopes of a straight line through the logarithms. Rows go to
results/speed/scaling.jsonl, where those of other cases stay; `python benchmarks/table.py` makes docs/speed.md of them.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import linregress
from torch import nn

import galvanic
from measure import Work, growth_MiB, interleaved
from networks import lenet
from rows import RESULTS, Row, environment, replace_case

PROFILES = ("hwa", "pcm")
COUNTED = ("weights", "vectors")


def on_chip(profile: str, inputs: int, outputs: int) -> tuple[nn.Module, torch.Tensor]:
    """A Linear layer on a numbered chip, its ranges calibrated, and a batch of inputs."""
    torch.manual_seed(0)
    x = torch.randn(32, inputs)
    analog = galvanic.convert(nn.Linear(inputs, outputs), galvanic.load_profile(profile), chip=0)
    return galvanic.calibrate_ranges(analog, [x]), x


def size(quick: bool) -> Iterator[Row]:
    """Programming a chip, until the first result is there, and a forward pass of 32 vectors, against the number of weights."""
    for profile in PROFILES:
        for decade in (2, 3, 4) if quick else np.arange(4, 8.5, 0.5):
            side = round(10 ** (decade / 2))
            model, x = on_chip(profile, side, side)
            jobs = {"programming": lambda m=model, x=x: galvanic.program(m, 1)(x[:1]), "forward": lambda m=model, x=x: m(x)}
            yield from _costs("size", profile, "weights", side * side, jobs, quick)


def batch(quick: bool) -> Iterator[Row]:
    """A forward pass against the number of vectors in the batch."""
    for profile in PROFILES:
        model, _ = on_chip(profile, *((16, 16) if quick else (512, 512)))
        for vectors in (1, 4, 16) if quick else [4**power for power in range(8)]:
            x = torch.randn(vectors, model.in_features)
            yield from _costs("batch", profile, "vectors", vectors, {"forward": lambda m=model, x=x: m(x)}, quick)


def _costs(case: str, profile: str, unit: str, count: int, jobs: dict[str, Work], quick: bool) -> Iterator[Row]:
    for what, job in jobs.items():
        work = torch.no_grad()(job)
        cpu_ms, grown_MiB = _milliseconds(work, quick), growth_MiB(work)
        costs = {"milliseconds": round(cpu_ms, 4), "mebibytes": round(grown_MiB, 2)}
        yield {"case": case, "arm": profile, "what": what, unit: count, **costs}


def _milliseconds(work: Work, quick: bool) -> float:
    """The least CPU time of up to a hundred rounds; a work of seconds is measured once, after it was done twice."""
    once = interleaved({"work": work}, 1)["work"].cpu_ms
    return once if quick or once > 1000 else interleaved({"work": work}, min(100, round(2000 / once)))["work"].cpu_ms


def chip(quick: bool) -> Iterator[Row]:
    """Drawing a chip of a million parameters."""
    side = 32 if quick else 1000
    models = {profile: on_chip(profile, side, side)[0] for profile in PROFILES}
    works = {profile: (lambda m=model: galvanic.program(m, 1)) for profile, model in models.items()}
    for profile, one in interleaved(works, 1 if quick else 30).items():
        yield {"case": "chip", "arm": profile, "weights": side * side, "milliseconds": round(one.cpu_ms, 3), "rounds": one.rounds}


def chips(quick: bool) -> Iterator[Row]:
    """Evaluating many chips together, against one after the other."""
    count = 2 if quick else 32
    mlp = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for name, network, shape in (("digits network", mlp, (360, 64)), ("LeNet", lenet(), (64, 3, 32, 32))):
        x = torch.randn(shape)
        analog = galvanic.calibrate_ranges(galvanic.convert(network, galvanic.load_profile("pcm"), chip=0), [x])
        found = interleaved(_ways(analog, x, count), 1 if quick else 10)
        for way, one in found.items():
            ratio = round(one.cpu_ms / found["one by one"].cpu_ms, 3)
            costs = {"milliseconds": round(one.cpu_ms, 3), "ratio": ratio, "rounds": one.rounds}
            yield {"case": "chips", "arm": way, "what": name, "chips": count, **costs}


def _ways(analog: nn.Module, x: torch.Tensor, count: int) -> dict[str, Work]:
    """The ways there are to evaluate so many chips."""

    def metric(model: nn.Module) -> float:
        return float(model(x).square().mean())

    return {
        "one by one": lambda: [galvanic.evaluate(analog, metric, chips=[number]) for number in range(count)],
        "evaluate": lambda: galvanic.evaluate(analog, metric, chips=range(count)),
    }


def imports(quick: bool) -> Iterator[Row]:
    """Importing galvanic and its models, against importing torch, each in a fresh interpreter."""
    codes = {"torch": "import torch", "galvanic": "import galvanic; galvanic.convert"}
    rounds = 1 if quick else 12
    least = dict.fromkeys(codes, float("inf"))
    for _ in range(rounds):
        for name, code in codes.items():
            least[name] = min(least[name], _cpu_ms([sys.executable, "-c", code]))
    for name, cpu_ms in least.items():
        yield {
            "case": "imports",
            "arm": name,
            "milliseconds": round(cpu_ms, 1),
            "ratio": round(cpu_ms / least["torch"], 3),
            "rounds": rounds,
        }


def _cpu_ms(command: list[str]) -> float:
    """CPU time of a process."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return 1e3 * (usage.ru_utime + usage.ru_stime)


CASES: dict[str, Callable[[bool], Iterator[Row]]] = {f.__name__: f for f in (size, batch, chip, chips, imports)}


def exponents(rows: list[Row]) -> Iterator[Row]:
    """How time and memory grow with what is counted: the slope of a line through the logarithms, with its standard error.

    What every call costs bends the line at small sizes, so there is one through the larger half of them, too. Memory below a mebibyte is
    left out: nothing is seen of it in the pages that a process holds.
    """
    for unit, arm, what in dict.fromkeys((unit, row["arm"], row["what"]) for row in rows for unit in COUNTED if unit in row):
        points = [row for row in rows if (row["arm"], row["what"]) == (arm, what)]
        for quantity, least in (("milliseconds", 0.0), ("mebibytes", 1.0)):
            seen = [(row[unit], row[quantity]) for row in points if row[quantity] > least]
            for over, some in (("all", seen), ("larger half", seen[len(seen) // 2 :])):
                if len(some) >= 3:
                    fit = linregress(*np.log(some).T)
                    line = {"exponent": round(float(fit.slope), 3), "standard_error": round(float(fit.stderr), 3)}
                    span = {"of": quantity, "in": unit, "over": over, "from": some[0][0], "to": some[-1][0]}
                    yield {"case": points[0]["case"], "arm": arm, "what": what, **span, **line}


def measured(name: str, quick: bool, tell: Callable[[], object]) -> list[Row]:
    """The rows of a case and, where something is counted, the exponents."""
    rows = []
    for row in CASES[name](quick):
        rows.append(row)
        tell()
    return [*rows, *(exponents(rows) if name in ("size", "batch") else ())]


def shown(rows: list[Row]) -> Table:
    """Rows for a terminal."""
    keys = ("case", "what", "arm", *COUNTED, "chips", "milliseconds", "mebibytes", "ratio", "of", "over", "exponent", "standard_error")
    table = Table(*keys)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in keys))
    return table


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which (default: all): {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, once; nothing is written unless --results says where")
    parser.add_argument("--results", type=Path, help="file of the rows (default: results/speed/scaling.jsonl)")
    given = parser.parse_args()
    unknown = [name for name in given.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    return given


def main() -> None:
    """The command line."""
    given = arguments()
    torch.set_num_threads(1)
    path = given.results or (None if given.quick else RESULTS / "scaling.jsonl")
    where, found = environment("scaling.py", [*given.cases, *["--quick"] * given.quick]), []
    with Progress(console=Console(stderr=True)) as bar:
        for name in given.cases or CASES:
            task = bar.add_task(name, total=None)
            rows = [row | where for row in measured(name, given.quick, lambda task=task: bar.advance(task))]
            bar.update(task, total=len(rows), completed=len(rows))
            found += rows
            if path is not None:
                replace_case(path, name, rows, CASES)
    Console(width=200).print(shown(found))


if __name__ == "__main__":
    main()
