"""Residual networks: built from plain blocks, and any such network with stochastic ones instead."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from galvanic.nn.adaptive import AdaptiveNoise
from galvanic.nn.analog import Analog
from galvanic.nn.convert import copied
from galvanic.nn.residual import GatedResidual, ResidualBlock
from galvanic.physics import Nonideality
from galvanic.physics.value import brief
from galvanic.profile import Profile

_EXPANSION = 4  # of a bottleneck
_PROBE = 16  # pixels of the image on which a block is compared with what its parts are taken for


def resnet(
    stages: Sequence[int] = (2, 2, 2, 2), *, width: int = 64, bottleneck: bool = False, classes: int = 10, channels: int = 3
) -> nn.Sequential:
    r"""A residual network for small images, which gives scores: a 3 x 3 stem without pooling, stages of `ResidualBlock`, global average.

    The default is ResNet-18; ``resnet((3, 4, 6, 3), bottleneck=True)`` is ResNet-50 and ``resnet((1, 1, 1), width=16)`` a small one.

    Args:
        stages: number of blocks in each stage; every stage after the first halves the image and doubles the channels.
        width: channels of the first stage.
        bottleneck: whether a block is 1 x 1, 3 x 3, 1 x 1 with four times the channels at its end, and not two of 3 x 3.
        classes: number of scores.
        channels: of the image.

    Raises:
        ValueError: a number below 1, or no stage.

    Reference:
        He et al., Deep residual learning for image recognition, CVPR, 2016.
    """
    if not stages or min(*stages, width, classes, channels) < 1:
        raise ValueError(f"resnet: stages = {brief(tuple(stages))}, width = {width}, classes = {classes}, channels = {channels}: 1 or more")
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(_block(inputs, width << stage, stride, bottleneck))
            inputs = (width << stage) * (_EXPANSION if bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _block(inputs: int, width: int, stride: int, bottleneck: bool) -> ResidualBlock:
    outputs = width * _EXPANSION if bottleneck else width
    if bottleneck:
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
    else:
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
    inner: list[nn.Module] = []
    for shape in shapes:
        inner += [*_normed(*shape), nn.ReLU()]
    same = stride == 1 and inputs == outputs
    return ResidualBlock(nn.Sequential(*inner[:-1]), None if same else nn.Sequential(*_normed(inputs, outputs, 1, stride)))


def _normed(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def stochastic(model: nn.Module, noise: Profile | Iterable[Nonideality] | AdaptiveNoise | None = None, *, gate: float = 0.5) -> nn.Module:
    r"""A copy of a residual network whose blocks, $\mathrm{relu}(F(x) + S(x))$, are stochastic ones, $\mathrm{relu}(u + N(u))$ with
    $u = a \odot S(x) + (1 - a) \odot F(x)$ (`GatedResidual`). All weights are kept, under other names.

    Blocks are `ResidualBlock`, and any module with the parts of one: convolutions `conv1`, `conv2` (and `conv3`), each with its `bn1` ...,
    and `downsample` or `shortcut`, as in torchvision and timm. Each is first compared with the sum of its parts on an image of its own.

    With a gate of 1/2 a block gives half of the plain sum, which the statistics of trained batch normalisation do not expect: train on, or
    recalibrate them.

    Args:
        model: a digital network; it is untouched.
        noise: what each block's own $N$ is made from: a hardware profile (`AdaptiveNoise.of`), effects, or a noise to be copied; None for
            the gate alone.
        gate: where $a$ starts.

    Raises:
        ValueError: no residual block; a block that computes something else; a model on a chip.
    """
    if any(isinstance(module, Analog) for module in model.modules()):
        raise ValueError("stochastic: the model is on a chip; make it stochastic first, convert(stochastic(model), profile, chip=...)")
    noise = _noise(noise)
    model = copied(model)
    found = {module: (name, parts) for name, module in model.named_modules() if (parts := _parts(module)) is not None}
    if not found:
        raise ValueError("stochastic: the model has no residual block: ResidualBlock, or one with conv1, bn1, conv2, bn2 and downsample")
    swapped = {block: _stochastic(name, block, parts, noise, gate) for block, (name, parts) in found.items()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in swapped:
                parent._modules[name] = swapped[child]
    return swapped.get(model, model)


def _noise(noise: Any) -> AdaptiveNoise | None:
    if noise is None or isinstance(noise, AdaptiveNoise):
        return noise
    return AdaptiveNoise.of(noise) if isinstance(noise, Profile) else AdaptiveNoise(noise)


class _Parts(NamedTuple):
    inner: nn.Module
    shortcut: nn.Module | None
    activation: nn.Module
    last: nn.Module | None
    """The layer that says how many channels there are."""


def _parts(block: nn.Module) -> _Parts | None:
    """What a residual block is made of; None for a module that is none."""
    if isinstance(block, ResidualBlock):
        layers = [m for m in block.inner.modules() if isinstance(m, _ConvNd | nn.Linear)]
        return _Parts(block.inner, block.shortcut, block.activation, layers[-1] if layers else None)

    def part(*names: str) -> nn.Module | None:
        found = (getattr(block, name, None) for name in names)
        return next((m for m in found if isinstance(m, nn.Module)), None)

    needed = all(isinstance(getattr(block, f"conv{k}", None), _ConvNd) and part(f"bn{k}") is not None for k in (1, 2))
    if not needed or not (hasattr(block, "downsample") or hasattr(block, "shortcut")):
        return None
    last = 2 if part("conv3") is None else 3
    order = []
    for k in range(1, last + 1):
        order += [(f"conv{k}", part(f"conv{k}")), (f"bn{k}", part(f"bn{k}"))]
        if k == last - 1:
            order.append(("drop_block", part("drop_block")))
        if k < last:
            order.append((f"act{k}", part(f"act{k}", "relu") or nn.ReLU()))
        if k == last - 1:
            order.append(("aa", part("aa")))
    order += [("se", part("se")), ("drop_path", part("drop_path"))]
    inner = nn.Sequential()
    for name, module in order:
        if module is not None:
            inner.add_module(name, module)
    return _Parts(inner, part("downsample", "shortcut"), part(f"act{last}", "relu") or nn.ReLU(), part(f"conv{last}"))


def _stochastic(name: str, block: nn.Module, parts: _Parts, noise: AdaptiveNoise | None, gate: float) -> nn.Sequential:
    where = name or "(the model)"
    if not isinstance(block, ResidualBlock):
        _refuse_other_forward(where, block)
    last = parts.last
    if not isinstance(last, _ConvNd | nn.Linear):
        raise ValueError(f"stochastic: block {where} has no linear or convolution layer to tell its channels")
    channels, axis = (last.out_channels, -1 - len(last.kernel_size)) if isinstance(last, _ConvNd) else (last.out_features, -1)
    own = None if noise is None else copy.deepcopy(noise).to(last.weight.device, last.weight.dtype)
    if own is not None and own.axis is None:
        own.axis = axis
    gated = GatedResidual(parts.inner, channels, noise=own, shortcut=parts.shortcut, gate=gate, axis=axis)
    gated.gate_logit = nn.Parameter(gated.gate_logit.detach().to(last.weight))
    new = nn.Sequential()
    new.add_module("residual", gated)
    new.add_module("activation", parts.activation)
    kept = set(block.modules())
    for module in new.modules():
        if module not in kept:  # a frozen norm stays frozen
            module.training = block.training
    return new


@torch.no_grad()
def _refuse_other_forward(name: str, block: nn.Module) -> None:
    """A module may have the parts of a residual block and compute something else with them (pre-activation, another order)."""
    block = copy.deepcopy(block).eval()
    for p in block.parameters():  # a norm that starts at zero would hide all that comes before it
        p.copy_(torch.where(p.any(), p, torch.ones_like(p)))
    parts, conv = _parts(block), block.conv1
    assert parts is not None and isinstance(conv, _ConvNd)  # noqa: PT018
    shape = (2, conv.in_channels, *[_PROBE] * len(conv.kernel_size))
    x = torch.linspace(0, 1e3, 2 * conv.in_channels * _PROBE ** len(conv.kernel_size)).sin().view(shape).to(conv.weight)
    expected = parts.activation(parts.inner(x) + (x if parts.shortcut is None else parts.shortcut(x)))
    got = block(x.clone())
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ValueError(f"stochastic: {type(block).__name__} {name} has the parts of a residual block, but does not add them up as one")
