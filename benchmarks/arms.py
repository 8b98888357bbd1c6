"""The arms of a comparison: the digital twin, galvanic, and a peer where it is installed."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import galvanic
from measure import Work

PEER = "aihwkit-lightning"
Job = Callable[[nn.Module, Tensor, Tensor, Callable[[], object]], Work]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A computation whose cost is compared with that of its digital twin.

    Args:
        what: it is, for a reader.
        network: makes the digital network.
        batch: shape of its inputs.
        job: what is done with it.
        profile: galvanic's hardware.
        peer: the peer's hardware, where it has the same.
        inner: whether the inputs want a gradient, as those of a layer within a network do.
        memory: whether the growth of the peak of memory is compared, and not the time.
        rounds: how often it is measured.
        must: the ratio that galvanic must not exceed.
        aim: the ratio it should not exceed.
    """

    what: str
    network: Callable[[], nn.Module]
    batch: tuple[int, ...]
    job: Job
    profile: galvanic.Profile
    peer: Callable[[], Any] | None = None
    inner: bool = False
    memory: bool = False
    rounds: int
    must: float
    aim: float


def training(model: nn.Module, x: Tensor, y: Tensor, before: Callable[[], object]) -> Work:
    """A step of gradient descent with momentum, from inputs `x` towards targets `y`."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        before()
        optimizer.zero_grad()
        x.grad = None
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor, y: Tensor, before: Callable[[], object]) -> Work:
    """A forward pass in evaluation mode, on a chip that was written before."""
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(x)

    return forward


def digital(case: Case) -> Work:
    """The digital twin."""
    model, x, y = _start(case)
    return case.job(model, x, y, lambda: None)


def on_galvanic(case: Case) -> Work:
    """The network on a simulated chip, a fresh one at every step of training."""
    model, x, y = _start(case)
    analog = galvanic.calibrate_ranges(galvanic.convert(model, case.profile, chip=None), [x[:8]])
    return case.job(analog, x, y, lambda: galvanic.program(analog))


def on_lightning(case: Case) -> Work:
    """The network on the peer's analog layers, whose weight noise is new in every forward pass.

    Its own optimizer only adds the clipping of weights, which no case asks for.
    """
    with contextlib.redirect_stdout(sys.stderr):  # it greets
        from aihwkit_lightning.nn.conversion import convert_to_analog
    assert case.peer is not None
    model, x, y = _start(case)
    analog = convert_to_analog(model, case.peer())
    return case.job(analog, x, y, lambda: None)


ARMS: dict[str, Callable[[Case], Work]] = {"digital": digital, "galvanic": on_galvanic, PEER: on_lightning}


def arms_of(case: Case) -> list[str]:
    """The arms that this case has here."""
    return [arm for arm in ARMS if arm != PEER or (case.peer is not None and peer_installed())]


def peer_installed() -> bool:
    """Whether the peer can be imported."""
    return importlib.util.find_spec("aihwkit_lightning") is not None


def version_of(arm: str) -> str:
    """Of the library behind an arm."""
    return {"digital": str(torch.__version__), "galvanic": galvanic.__version__}.get(arm) or version(arm)


def lightning_hwa(rows: int | None) -> Any:
    """The peer's form of the profile `hwa`: the same converters, and noise in units of the largest weight of each column."""
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig
    from aihwkit_lightning.simulator.parameters import WeightNoiseInjectionType

    config = TorchInferenceRPUConfig()
    config.forward.inp_res = config.forward.out_res = 2**8 - 2
    config.forward.out_bound = 12.0
    config.forward.out_noise, config.forward.out_noise_per_channel = 0.02, True
    config.modifier.noise_type, config.modifier.std_dev = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL, 0.03
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_from_data = 1  # from the first batch, and learned from then on
    config.mapping.max_input_size = rows or -1
    return config


def lightning_off(rows: int | None) -> Any:
    """The peer's layers without any noise or converter."""
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = rows or -1
    return config


def _start(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """The same network, inputs and random targets for every arm."""
    torch.manual_seed(0)
    model, x = case.network(), torch.randn(case.batch, requires_grad=case.inner)
    with torch.no_grad():
        outputs = model.eval()(x[:1])
    return model, x, torch.randn(len(x), *outputs.shape[1:])
