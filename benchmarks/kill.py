"""Kill `galvanic run` at random moments, resume it each time, and compare what it ends with.

    python benchmarks/kill.py --kills 200

One run is left in peace. Others with the same options are killed (SIGKILL) over and over and resumed. After every kill each file that is
there must be whole; at the end rows, checkpoints and models must be those of the first run, to the byte. The row with the counts is
printed and appended to results/kill.jsonl.
"""

import argparse
import json
import os
import platform
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ALONE = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
RESULTS = Path(__file__).parent.parent / "results" / "kill.jsonl"


def serve() -> None:
    """Run the commands that come in, each in a child of this process: it need not import torch, and dies like any other."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401  # what the first step of an optimizer imports

    import galvanic.cli
    import galvanic.report
    import galvanic.studies.directory

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.argv = ["galvanic", *json.loads(line)]
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)  # what it has to complain about goes to standard error
            try:
                galvanic.cli.app()
            except SystemExit as stop:
                os._exit(stop.code or 0)  # without a second spent on tidying up what its parent imported
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Server:
    """`serve` in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ALONE, bufsize=0)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()  # type: ignore[union-attr]

    def start(self, arguments: list[str]) -> int:
        self.process.stdin.write(json.dumps(arguments).encode() + b"\n")  # type: ignore[union-attr]
        return self._number()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code of the command, or None where it is not over after so many seconds."""
        over, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self._number() if over else None

    def _number(self) -> int:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit("the process that runs the commands has ended")
        return int(line)


def options(folder: Path) -> list[str]:
    """A small run that has everything: batch normalisation, three recipes, checkpoints in the middle of epochs."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.float32)
    np.savez(folder / "digits.npz", x_train=x[:100], y_train=y[:100], x_test=x[100:160], y_test=y[100:160])
    size = ["--epochs", "6", "--batch", "16", "--seeds", "1", "--chips", "1", "--checkpoint-every", "0"]
    return ["run", "--data", str(folder / "digits.npz"), *size]


def results(folder: Path) -> dict[str, bytes]:
    """What equal runs share: rows, cells, checkpoints and models."""
    found = [path for path in folder.rglob("*") if path.suffix in (".jsonl", ".safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def torn(folder: Path) -> list[str]:
    """Files that a kill left in parts."""
    return [str(path) for path in folder.rglob("[!.]*") if path.is_file() and not _whole(path)]


def _whole(path: Path) -> bool:
    from galvanic.storage import read_tree

    try:
        if path.suffix == ".safetensors":
            read_tree(path)
        elif path.suffix == ".jsonl":
            text = path.read_text()
            return text.endswith("\n") and all(isinstance(json.loads(line), dict) for line in text.splitlines())
        elif path.suffix == ".json":
            return isinstance(json.loads(path.read_text()), dict)
        elif path.suffix == ".html":
            return path.read_text().rstrip().endswith("</html>")
    except ValueError:
        return False
    return True


def stage(folder: Path, cells: list[str]) -> str:
    """What a run was at when it was killed, or had still to do when it was killed at its start."""
    if not (folder / "config.json").exists():
        return "start"
    missing = next((cell for cell in cells if not (folder / cell).exists()), "report")
    return next(name for name in ("placement", "training", "chip", "report") if name in missing)


def survive(kills: int, number: int, folder: Path, tell: Any = lambda done: None) -> dict[str, Any]:
    """Spend so many kills on runs in this folder; how many files and runs did not survive them.

    Args:
        kills: how many.
        number: seed of the moments.
        folder: an empty one.
        tell: told how many kills are done.
    """
    draw, begun = random.Random(number), time.monotonic()
    command = options(folder)
    counts: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    halves: set[Path] = set()
    peace = [sys.executable, "-m", "galvanic", *command, "--out", str(folder / "peace")]
    with Server() as server, subprocess.Popen(peace, env=ALONE, stdout=subprocess.DEVNULL) as alone:
        counts["failed"] += alone.wait() != 0
        expected = results(folder / "peace")
        started = time.monotonic()
        server.start([*command, "--out", str(folder / "first")])
        counts["failed"] += server.wait() != 0
        whole_s = time.monotonic() - started
        counts["lost"] += results(folder / "first") != expected
        cells = _in_order(folder / "first")
        while counts["kills"] < kills:
            run = folder / f"killed-{counts['runs']}"
            while True:
                again = ["run", "--resume", str(run), "--checkpoint-every", "0"]
                child = server.start(again if (run / "config.json").exists() else [*command, "--out", str(run)])
                code = server.wait(draw.uniform(0, whole_s / 2) if counts["kills"] < kills else None)
                if code is not None:
                    break
                os.kill(child, signal.SIGKILL)
                if server.wait() != -signal.SIGKILL:
                    break  # it was over in this very moment
                counts["kills"] += 1
                counts["torn"] += len(torn(run))
                halves.update(run.rglob(".*.tmp"))
                stages[stage(run, cells)] += 1
                tell(counts["kills"])
            counts["runs"] += 1
            counts["failed"] += code not in (0, None)
            counts["lost"] += results(run) != expected
    return {
        "benchmark": "kill",
        "command": f"python benchmarks/kill.py --kills {kills} --seed {number}",
        "kills": counts["kills"],
        "runs": counts["runs"],
        "lost": counts["lost"],
        "torn": counts["torn"],
        "failed": counts["failed"],
        "in_a_write": len(halves),
        "stages": dict(sorted(stages.items())),
        "whole_run_s": round(whole_s, 2),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _in_order(folder: Path) -> list[str]:
    """The cells of a finished run, in the order in which they were written."""
    paths = sorted((folder / "cells").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [str(path.relative_to(folder)) for path in paths]


def environment() -> dict[str, Any]:
    """Where it ran."""
    import torch

    import galvanic

    return {
        "galvanic": galvanic.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def main() -> None:
    """The command line."""
    from rich.console import Console
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to which the row is appended")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("kills", total=given.kills)
        row = survive(given.kills, given.seed, Path(folder), lambda done: bar.update(task, completed=done)) | environment()
    given.results.parent.mkdir(exist_ok=True)
    with given.results.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
    sys.exit(1 if row["lost"] or row["torn"] or row["failed"] else 0)


if __name__ == "__main__":
    main()
