"""What wire resistance costs: the effective matrix of a tile, its gradient, the approximation and its error, and reads afterwards.

    python benchmarks/wires.py              # tiles of 32, 64, 128 and 256
    python benchmarks/wires.py 32 64        # tiles of these sizes
    python benchmarks/wires.py --rounds 3   # each measured three times (default: five)

One process, one thread, double precision; a time is the least CPU time of all rounds. Conductances are uniform in [0.01, 1] of 100 kohm
cells; every wire segment, driver and amplifier has 1 ohm. `read` is a linear layer on such tiles whose matrix is known, of 32 vectors in
single precision, beside the same layer without wires, as ratios to the digital layer; `non-linear` is the solution for 32 vectors of sinh
cells on these wires. Errors are those of the effective matrix in the Frobenius norm. Rows go to results/speed/wires.jsonl, where those of
other sizes stay.
"""

import argparse
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from galvanic import convert
from galvanic.physics import DifferentialPair, NonlinearCrossbar, Programming, SinhCell, WireResistance, WireResistanceApproximate
from galvanic.profile import Profile
from measure import growth_MiB, interleaved
from rows import RESULTS, Row, environment, read_rows, replace_case

WIRES = WireResistance(on_ohm=1e5, row_ohm=1.0, column_ohm=1.0, driver_ohm=1.0, sense_ohm=1.0)
NEAR = WireResistanceApproximate(**{f.name: getattr(WIRES, f.name) for f in fields(WIRES)})
VECTORS = 32


@torch.no_grad()
def matrix(product: WireResistance | WireResistanceApproximate, g: Tensor) -> Tensor:
    """The effective matrix alone."""
    return product.matrices(g)[0]


def matrix_and_gradient(g: Tensor) -> Tensor:
    """The effective matrix and the gradient of a loss to every cell."""
    leaf = g.clone().requires_grad_()
    return torch.autograd.grad(WIRES.matrices(leaf)[0].square().sum(), leaf)[0]


def reads(size: int) -> dict[str, Callable[[], Tensor]]:
    """A read of a digital layer, and of its twins on tiles with and without wires, whose matrices are known by then."""
    digital, x = nn.Linear(size, size, bias=False), torch.randn(VECTORS, size)
    written = Profile(name="written", encoding=DifferentialPair(), weight=(Programming(std=0.01),))
    twins = {"read without wires": convert(digital, written, chip=0), "read": convert(digital, replace(written, product=WIRES), chip=0)}
    return {arm: torch.no_grad()(lambda layer=layer: layer(x)) for arm, layer in {"digital": digital, **twins}.items()}


def measured(size: int, rounds: int, tell: Callable[[], object]) -> list[Row]:
    """The rows of tiles of a size."""
    generator = torch.Generator().manual_seed(0)
    g = 0.01 + 0.99 * torch.rand(size, size, generator=generator, dtype=torch.float64)
    u = 2 * torch.rand(VECTORS, size, generator=generator, dtype=torch.float64) - 1
    circuit = NonlinearCrossbar(wires=WIRES, cell=SinhCell(kappa=2.0))
    found = interleaved(
        {
            "effective matrix": lambda: matrix(WIRES, g),
            "effective matrix and gradient": lambda: matrix_and_gradient(g),
            "approximation": lambda: matrix(NEAR, g),
            **reads(size),
            "non-linear": torch.no_grad()(lambda: circuit.currents(u, g[None])),
        },
        rounds,
        tell=tell,
    )
    exact = matrix(WIRES, g)
    more: dict[str, Row] = {
        "effective matrix": {"mebibytes": round(growth_MiB(lambda: matrix(WIRES, g)), 1), "neglect_error": relative(g, exact)},
        "effective matrix and gradient": {"mebibytes": round(growth_MiB(lambda: matrix_and_gradient(g)), 1)},
        "approximation": {"error": relative(matrix(NEAR, g), exact)},
        **{arm: {"ratio": round(found[arm].cpu_ms / found["digital"].cpu_ms, 3)} for arm in ("read without wires", "read")},
        "non-linear": {"vectors": VECTORS},
    }
    case = {"case": str(size), "rounds": rounds}
    return [case | {"arm": arm, "milliseconds": float(f"{one.cpu_ms:.4g}")} | more.get(arm, {}) for arm, one in found.items()]


def relative(x: Tensor, exact: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float(f"{((x - exact).norm() / exact.norm()).item():.3g}")


def shown(rows: list[Row]) -> Table:
    """Rows for a terminal."""
    table = Table("tile", "arm", "CPU ms", "MiB", "error", "ratio to digital")
    for row in rows:
        error = row.get("error", row.get("neglect_error", ""))
        table.add_row(
            row["case"], row["arm"], *(str(x) for x in (row["milliseconds"], row.get("mebibytes", ""), error, row.get("ratio", "")))
        )
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, metavar="SIZE", help="rows and columns of a tile (default: 32 64 128 256)")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    given = parser.parse_args()
    if given.rounds < 1 or min(given.sizes, default=1) < 1:
        parser.error("sizes and rounds are 1 or more")
    torch.set_num_threads(1)
    sizes = sorted({*(given.sizes or (32, 64, 128, 256))})
    path, found = RESULTS / "wires.jsonl", []
    where = environment("wires.py", [*(str(s) for s in given.sizes), *(["--rounds", str(given.rounds)] if given.rounds != 5 else [])])
    with Progress(console=Console(stderr=True)) as bar:
        for size in sizes:
            task = bar.add_task(f"{size} x {size}", total=given.rounds)
            rows = [row | where for row in measured(size, given.rounds, lambda task=task: bar.advance(task))]
            order = sorted({size, *(int(row["case"]) for row in read_rows(path))})
            replace_case(path, str(size), rows, [str(s) for s in order])
            found += rows
    Console(width=120).print(shown(found))


if __name__ == "__main__":
    main()
