"""What one of several processes does in the tests of distributed training; importable, so that a process can be spawned on it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from galvanic import calibrate_ranges, convert, load_profile, program, reads, seeding

WORLD = 2
CHIPS = (1, 2, 3)


def network(profile: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network on chip 1, inputs and targets: the same in every process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = torch.randn(8, 6).double(), torch.randn(8, 2).double()
    return calibrate_ranges(convert(net, load_profile(profile), chip=1), [0.9 * x]), x, y


def train(run: nn.Module, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A step on each of three chips."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for chip in CHIPS:
        program(model, chip)
        optimizer.zero_grad()
        (run(x) - y).square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().clone() for p in whole]


def share(rank: int, *tensors: Tensor) -> list[Tensor]:
    """This process's part of a batch."""
    return [t.chunk(WORLD)[rank] for t in tensors]


def replicated(rank: int, profile: str, quiet: bool) -> dict[str, Any]:
    """Data-parallel training, with noise of its own in every process or with none."""
    model, x, y = network(profile)
    run = DistributedDataParallel(model)
    if not quiet:
        seeding.seed_rank(5)
    with reads(model, "off" if quiet else "fresh"):
        train(run, model, *share(rank, x, y))
    with reads(model, "off"), torch.no_grad():
        outputs = program(model, 7)(x)
    return {"weights": weights(model), "outputs": outputs, "noise": program(model, 7)(x).detach()}


def noise(rank: int) -> list[Tensor]:
    """Two reads after the same seed."""
    model, x, _ = network("reram")
    found = []
    for _ in range(2):
        seeding.seed_rank(5)
        found.append(model(x).detach())
    return found


def sharded(rank: int, profile: str) -> list[Tensor]:
    """The weights after training with every layer's parameters divided among the processes."""
    model, x, y = network(profile)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with reads(model, "off"):
        train(model, model, *share(rank, x, y))
    return weights(model)


PROFILES = ("pcm", "hwa")

SCENES: dict[str, Callable[[int], Any]] = {
    "noise": noise,
    "replicated with noise": lambda rank: replicated(rank, "reram", quiet=False),
    **{f"replicated {p}": lambda rank, p=p: replicated(rank, p, quiet=True) for p in PROFILES},
    **{f"sharded {p}": lambda rank, p=p: sharded(rank, p) for p in PROFILES},
}


def play(rank: int, folder: Path) -> None:
    """Every scene, in one process group: to start one costs seconds. What a scene raises is kept for the test that asks for it."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    found: dict[str, Any] = {}
    for name, scene in SCENES.items():
        try:
            found[name] = scene(rank)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")
