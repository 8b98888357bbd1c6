"""What each way to train costs a step, beside plain noise training of the same network.

    python benchmarks/methods.py              # everything
    python benchmarks/methods.py --rounds 20  # fewer rounds
    python benchmarks/methods.py --quick      # a small network, once; nothing is written unless --results says where

A residual network of three blocks and 16 channels for images of 3 x 32 x 32, batch 64, profile generic-4bit with learned ranges, a fresh
chip at every step, stochastic gradient descent; one process, one thread, every arm in every round, the least CPU time of all rounds. Rows
go to results/speed/methods.jsonl.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from galvanic import calibrate_ranges, convert, load_profile, program
from galvanic.nn import resnet, simulate, stochastic
from galvanic.ranges import Learned
from galvanic.train import Distillation, Divergence, HalfBatch, SharpnessAware, SignalRange, Total, WeightPrecision, backprop
from galvanic.train.steps import Gradient
from measure import Work, interleaved
from rows import RESULTS, Row, environment, replace_case

HARDWARE = replace(load_profile("generic-4bit"), input_range=Learned(), output_range=Learned())


@dataclass(frozen=True, kw_only=True)
class Method:
    """One arm.

    Args:
        what: it is, for a reader.
        must: ratio to plain noise training that it must not exceed; None: none is set.
        swap: makes the digital network another one.
        on_chips: whether simulated noise stays on where the chip makes its own.
        objective: the loss, given the digital network.
        gradient: where the gradient comes from.
    """

    what: str
    must: float | None = None
    swap: Callable[[nn.Module], nn.Module] = lambda model: model
    on_chips: bool = False
    objective: Callable[[nn.Module], Total] = lambda model: Total()
    gradient: Gradient = backprop


METHODS = {
    "noise": Method(what="plain noise training"),
    "gates": Method(what="gated stochastic residual blocks", must=1.25, swap=stochastic),
    "gates and adaptive noise": Method(
        what="the same, their adaptive noise on beside that of the chip", must=1.25, swap=lambda m: stochastic(m, HARDWARE), on_chips=True
    ),
    "physics-informed": Method(
        what="loss on weight levels and converter windows",
        must=1.1,
        objective=lambda m: Total(hardware=(WeightPrecision(bits=4), SignalRange())),
    ),
    "divergence": Method(
        what="robustness term, one further pass", must=2.1, objective=lambda m: Total(robustness=(Divergence(reference="noisy"),))
    ),
    "divergence from the twin": Method(
        what="robustness term, one further digital pass", must=2.1, objective=lambda m: Total(robustness=(Divergence(),))
    ),
    "half batch": Method(
        what="robustness term between two halves of a batch", must=1.3, objective=lambda m: Total(robustness=(HalfBatch(),))
    ),
    "distillation": Method(what="distillation", objective=lambda m: Total(distillation=Distillation(), teacher=m)),
    "sharpness-aware": Method(what="sharpness-aware minimisation", must=2.1, gradient=SharpnessAware()),
}


def step(method: Method, *, quick: bool) -> Work:
    """A training step."""
    torch.manual_seed(0)
    size, n = (8, 4) if quick else (32, 64)
    x, y = torch.randn(n, 3, size, size), torch.randint(10, (n,))
    digital = method.swap(resnet((1, 1, 1), width=4 if quick else 16))
    model = calibrate_ranges(convert(digital, HARDWARE, chip=None), [x]).train()
    simulate(model, method.on_chips)
    objective, optimizer = method.objective(digital), torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def one() -> None:
        program(model)
        optimizer.zero_grad()
        method.gradient(model, (x, y), objective)
        optimizer.step()

    return one


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="how often everything is measured")
    parser.add_argument("--quick", action="store_true", help="a small network, once")
    parser.add_argument("--results", type=Path, help="file of the rows (default: results/speed/methods.jsonl)")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: 1 or more")
    torch.set_num_threads(1)
    rounds = 1 if given.quick else given.rounds
    works = {name: step(method, quick=given.quick) for name, method in METHODS.items()}
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("methods", total=rounds)
        found = interleaved(works, rounds, tell=lambda: bar.advance(task))
    where = environment("methods.py", ["--rounds", str(given.rounds), *["--quick"] * given.quick])
    table = Table("method", "ratio", "ms", "must")
    for name, method in METHODS.items():
        ratio = round(found[name].cpu_ms / found["noise"].cpu_ms, 3)
        row: Row = {"case": name, "what": method.what, "ratio": ratio, "milliseconds": round(found[name].cpu_ms, 3), "must": method.must}
        table.add_row(name, f"{ratio:.2f}", f"{row['milliseconds']:.1f}", "" if method.must is None else f"{method.must:g}")
        path = given.results or (None if given.quick else RESULTS / "methods.jsonl")
        if path is not None:
            replace_case(path, name, [row | {"rounds": rounds} | where], METHODS)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
