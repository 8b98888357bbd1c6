"""What the comparison of speed consists of."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from arms import Case, inference, lightning_hwa, lightning_off, training
from galvanic import Profile, load_profile
from galvanic.physics import Gaussian
from networks import lenet, lenet5, resnet18

READ_NOISE = Profile(name="read-noise", weight=(Gaussian(std=0.03, per="read"),))


def cases(*, quick: bool = False) -> dict[str, Case]:
    """Every case by name, each followed by itself with the hardware off.

    Args:
        quick: whether they are small and measured once, to see that they work.
    """
    listed = {}
    for name, case in _noisy(quick).items():
        listed[name] = case
        listed[f"{name}-off"] = _off(case)
    return listed


def _noisy(quick: bool) -> dict[str, Case]:
    hwa = load_profile("hwa")
    size, images, vectors = (16, 2, 4) if quick else (512, 32, 128)
    resnet, linear = partial(resnet18, 4 if quick else 64), partial(nn.Linear, size, size)
    few, many = (1, 1) if quick else (12, 300)

    def step(what: str, network: Callable[[], nn.Module], batch: tuple[int, ...], rows: int | None, rounds: int) -> partial[Case]:
        profile, peer = replace(hwa, rows=rows), partial(lightning_hwa, rows)
        what = f"training step, {what}"
        return partial(Case, what=what, network=network, batch=batch, job=training, profile=profile, peer=peer, rounds=rounds)

    image = (images, 3, 32, 32)
    return {
        "resnet18": step("ResNet-18, one tile a layer", resnet, image, None, few)(must=1.35, aim=1.15),
        "resnet18-512": step("ResNet-18, tiles of 512 rows", resnet, image, 32 if quick else 512, few)(must=1.9, aim=1.4),
        "lenet": step("LeNet, 16 and 32 channels", lenet, image, None, many)(must=1.6, aim=1.25),
        "lenet-5": step("LeNet-5, 6 and 16 channels", lenet5, image, None, many)(must=1.6, aim=1.25),
        "linear": step("Linear 512 x 512 within a network", linear, (vectors, size), None, many)(inner=True, must=2.3, aim=1.5),
        "linear-first": step("Linear 512 x 512, inputs without gradient", linear, (vectors, size), None, many)(must=2.3, aim=1.5),
        "read-noise": Case(
            what="inference with read noise of every cell, Linear 512 x 512",
            network=linear,
            batch=(vectors, size),
            job=inference,
            profile=READ_NOISE,
            rounds=many,
            must=2.5,
            aim=1.6,
        ),
        "memory": Case(
            what="growth of peak memory in two training steps, LeNet",
            network=lenet,
            batch=(64 if quick else 256, 3, 32, 32),
            job=training,
            profile=replace(hwa, rows=None),
            peer=partial(lightning_hwa, None),
            memory=True,
            rounds=1 if quick else 3,
            must=2.0,
            aim=1.3,
        ),
    }


def _off(case: Case) -> Case:
    ideal = replace(load_profile("ideal"), rows=case.profile.rows)
    peer = partial(lightning_off, case.profile.rows)
    return replace(case, what=f"{case.what}, hardware off", profile=ideal, peer=peer, must=1.1, aim=1.0)
