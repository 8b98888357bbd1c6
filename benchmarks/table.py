"""Make docs/speed.md of the rows in results/speed.

python benchmarks/table.py
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from rows import RESULTS, Row, read_rows

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"

RATIOS = """\
# Speed and memory

How much a simulated chip costs beside the digital network. Everything here comes from the rows in `results/speed/`, each with the command
that measured it; `python benchmarks/table.py` makes this page of them.

## Beside the digital twin

CPU time over that of the same network without hardware: one process, one thread, every arm measured in every round, the least of all
rounds. Memory is how much the peak of a fresh process grows, where freed memory goes back at once. The hardware is the profile `hwa`:
8-bit inputs with a learned range, 8-bit outputs of a window of 12 cells, output noise of 0.02 cells, weight noise of 0.03 drawn anew at
every step; `off` is the profile `ideal`. *must* and *aim* are the bounds galvanic sets itself.
"""
METHODS = """\
## Ways to train

A step of each way to train over one of plain noise training: a residual network of three blocks and 16 channels, images of 3 x 32 x 32,
batch 64, profile `generic-4bit`.
"""
SIZES = """\
## How it grows

A square Linear layer. *Programming* is `program` until the first result is there; *forward* are 32 vectors on a chip that is written.
"""
BATCHES = """\
A forward pass of a Linear layer of 512 x 512 against the number of vectors:
"""
EXPONENTS = """\
Exponents: the slope of a line through the logarithms, with its standard error. What every call costs bends it at small sizes; the second
line goes through the larger half only.
"""
CHIPS = """\
## Many chips

Evaluating 32 chips of the profile `pcm` in one call, beside one call for each:
"""


def page(speed: list[Row], methods: list[Row], scaling: list[Row]) -> str:
    """The page."""
    parts = [RATIOS, *_ratios(speed), _origin(speed), METHODS, _methods(methods), _origin(methods), *_growth(scaling), _origin(scaling)]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _methods(rows: list[Row]) -> str:
    lines = [
        [
            row["what"],
            f"{row['ratio']:.2f}",
            row["must"] or "",
            ("met" if row["ratio"] <= row["must"] else "not met") if row["must"] else "",
        ]
        for row in rows
    ]
    return table(["", "ratio", "must", ""], lines)


def _ratios(rows: list[Row]) -> Iterator[str]:
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["arm"] != "digital"))
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["arm"]: row for row in rows if row["case"] == case}
        ours = found["galvanic"]
        ratios = [f"{found[arm]['ratio']:.2f}" if arm in found else "–" for arm in arms]
        lines.append([ours["what"], ours["batch"], _cost(found["digital"]), *ratios, ours["must"], ours["aim"], verdict(ours)])
    yield table(["", "batch", "digital", *arms, "must", "aim", ""], lines)


def verdict(row: Row) -> str:
    """Whether a ratio, to the two digits that are shown of it, is as small as it is meant to be."""
    if "must" not in row:
        return ""
    ratio = round(row["ratio"], 2)
    return "aim met" if ratio <= row["aim"] else "must met" if ratio <= row["must"] else "not met"


def _growth(rows: list[Row]) -> Iterator[str]:
    sized = [row for row in rows if row["case"] == "size" and "weights" in row]
    if sized:
        yield SIZES
        lines = [[f"{row['weights']:,}", row["arm"], row["what"], _number(row["milliseconds"]), _number(row["mebibytes"])] for row in sized]
        yield table(["weights", "profile", "", "ms", "MiB"], lines)
    batches = [row for row in rows if row["case"] == "batch" and "vectors" in row]
    if batches:
        yield BATCHES
        lines = [[f"{row['vectors']:,}", row["arm"], _number(row["milliseconds"]), _number(row["mebibytes"])] for row in batches]
        yield table(["vectors", "profile", "ms", "MiB"], lines)
    fits = [row for row in rows if "exponent" in row]
    if fits:
        yield EXPONENTS
        yield table(["", "profile", "from", "to", "exponent"], [_fit(row) for row in fits])
    drawn = [row for row in rows if row["case"] == "chip"]
    if drawn:
        lines = [[row["arm"], f"{row['weights']:,}", _number(row["milliseconds"])] for row in drawn]
        yield "Drawing a chip:\n"
        yield table(["profile", "weights", "ms"], lines)
    together = [row for row in rows if row["case"] == "chips"]
    if together:
        yield CHIPS
        lines = [[row["what"], row["arm"], row["chips"], _number(row["milliseconds"]), f"{row['ratio']:.2f}"] for row in together]
        yield table(["network", "way", "chips", "ms", "ratio"], lines)
    loaded = [row for row in rows if row["case"] == "imports"]
    if loaded:
        yield "## Importing\n\nCPU time of a fresh interpreter:\n"
        yield table(
            ["", "ms", "ratio"], [[f"`import {row['arm']}`", f"{row['milliseconds']:.0f}", f"{row['ratio']:.2f}"] for row in loaded]
        )


def _fit(row: Row) -> list[object]:
    of = {"milliseconds": "time", "mebibytes": "memory"}[row["of"]]
    what = f"{of} of {row['what']} against {row['in']}"
    return [what, row["arm"], f"{row['from']:,}", f"{row['to']:,}", f"{row['exponent']:.2f} ± {row['standard_error']:.2f}"]


def _cost(row: Row) -> str:
    return f"{_number(row['milliseconds'])} ms" if "milliseconds" in row else f"{_number(row['mebibytes'])} MiB"


def _number(x: float) -> str:
    """Three digits or so."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def table(head: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, ["---"] * len(head), *lines))


def _origin(rows: list[Row]) -> str:
    """Where and how the rows were measured; several lines where it was not in one go."""
    keys = ("command", "threads", "processor", "cores", "torch", "galvanic")
    runs = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    return "".join(
        f"- `{command}`: {threads} thread, {processor} ({cores} cores), torch {torch}, galvanic {galvanic}\n"
        for command, threads, processor, cores, torch, galvanic in runs
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    given = parser.parse_args()
    rows = [read_rows(given.results / f"{name}.jsonl") for name in ("speed", "methods", "scaling")]
    given.out.write_text(page(*rows))


if __name__ == "__main__":
    main()
