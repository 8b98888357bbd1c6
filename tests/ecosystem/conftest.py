"""The matrix that torch's own tools are tried on: every analog layer under every shipped profile, on tiny tensors."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from galvanic import Profile, calibrate_ranges, convert, load_profile, profile_names
from galvanic.physics import Quantize

sys.path.insert(0, str(Path(__file__).parent))  # spawned processes import their functions from a module beside the tests

CHIP = 3


class First(nn.Module):
    """The first thing that a layer returns, as a function of one input: queries, keys and values are the same."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        return self.core(*[x] * (3 if isinstance(self.core, nn.MultiheadAttention) else 1))[0]


# name -> (a digital layer, an input for it); another layer is another line
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(5, 4), lambda: torch.randn(3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), lambda: torch.randn(3, 2, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), lambda: torch.randn(3, 3, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2), lambda: torch.randn(3, 2, 5, 5)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="circular"), lambda: torch.randn(3, 4, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), lambda: torch.randn(3, 2, 3, 3, 3)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), lambda: torch.randn(3, 3, 4)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 2, 3, groups=2, padding=1), lambda: torch.randn(3, 4, 3, 3)),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), lambda: torch.randn(3, 2, 2, 2, 2)),
    "RNN": (lambda: First(nn.RNN(3, 2, batch_first=True)), lambda: torch.randn(3, 2, 3)),
    "LSTM": (lambda: First(nn.LSTM(3, 2, batch_first=True)), lambda: torch.randn(3, 2, 3)),
    "GRU in both directions": (lambda: First(nn.GRU(3, 2, batch_first=True, bidirectional=True)), lambda: torch.randn(3, 2, 3)),
    "GRU cell": (lambda: nn.GRUCell(3, 2), lambda: torch.randn(3, 3)),
    "attention": (lambda: First(nn.MultiheadAttention(4, 2, batch_first=True)), lambda: torch.randn(3, 2, 4)),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A digital layer and an input."""
    torch.manual_seed(0)
    build, data = LAYERS[request.param]
    return build(), data()


@pytest.fixture(params=profile_names())
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


@pytest.fixture
def smooth(profile: Profile) -> Profile:
    """The profile without its quantisers, whose gradient is declared, not derived."""

    def kept(side: str) -> tuple:
        return tuple(e for e in getattr(profile, side) if not isinstance(e, Quantize))

    return replace(profile, input=kept("input"), weight=kept("weight"), output=kept("output"))


def on_chip(model: nn.Module, profile: Profile, x: Tensor) -> nn.Module:
    """The model on chip 3, with ranges that clip a little: at the very edge of a range, rounding would decide what the gradient is."""
    return calibrate_ranges(convert(model, profile, chip=CHIP), [0.9 * x])


@pytest.fixture
def place() -> Callable[..., nn.Module]:
    return on_chip


@pytest.fixture
def analog(layer: tuple[nn.Module, Tensor], profile: Profile) -> tuple[nn.Module, Tensor]:
    """A layer on chip 3 of a profile, and an input."""
    digital, x = layer
    return on_chip(digital, profile, x), x


@pytest.fixture
def precise(layer: tuple[nn.Module, Tensor], profile: Profile) -> tuple[nn.Module, Tensor]:
    """The same in double precision, where another order of summation does not reach the next level of a converter."""
    digital, x = layer
    return on_chip(digital.double(), profile, x.double()), x.double()


class SideBySide(nn.Module):
    """Layers, each with an input of its own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten() for layer, x in zip(self.layers, inputs, strict=True)])


@pytest.fixture
def side_by_side(profile: Profile) -> tuple[nn.Module, list[Tensor]]:
    """Layers on chip 3, in double precision, and their inputs. Every layer meets a profile and every profile a layer.

    All pairs would be compiled for minutes.
    """
    torch.manual_seed(0)
    place, count = profile_names().index(profile.name), len(profile_names())
    pairs = [(build().double(), data().double()) for build, data in list(LAYERS.values())[place % len(LAYERS) :: count]]
    model = convert(SideBySide([digital for digital, _ in pairs]), profile, chip=CHIP)
    for layer, (_, x) in zip(model.layers, pairs, strict=True):
        calibrate_ranges(layer, [0.9 * x])
    return model, [x for _, x in pairs]
