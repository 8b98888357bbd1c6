"""Undoing drift digitally: what is measured through the noisy array, and corrected after it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from galvanic.nn.analog import Analog
from galvanic.nn.calibrate import answer
from galvanic.nn.convert import analog_layers
from galvanic.physics import Quantize
from galvanic.physics.value import brief
from galvanic.seeding import generator


class Compensation(ABC):
    """A digital correction of a chip, measured through its noisy array."""

    name: str

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Correct the model in place."""


def compensate(model: nn.Module, compensation: Compensation) -> nn.Module:
    """Correct the model for the chip it is on and the age it has, in place. `program` forgets a drift compensation."""
    if not isinstance(compensation, Compensation):
        raise ValueError(f"a compensation is a GlobalDrift(), ColumnDrift() or BatchNorm(batches), not {brief(compensation)}")
    compensation.apply(model)
    return model


@dataclass(frozen=True)
class _Drift(Compensation):
    r"""Gain of the array, $\gamma = \overline{|y(0)|} / \overline{|y(t)|}$, both read through its converters and noise; 1 at age 0.

    The inputs are rows of zeros and random signs, so many of them that three standard deviations of every column stay inside the
    converter's window. A column whose answer is smaller than one step of its converter says nothing: its gain is 1.

    Args:
        probes: number of input vectors.
    """

    probes: int = 256
    columns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"{type(self).__name__}.probes = {self.probes}: one input vector or more")

    def apply(self, model: nn.Module) -> None:
        for layer in analog_layers(model).values():
            if layer.profile.weight:
                layer.gain = self._gain(layer) if float(layer.conditions.age_s) > 0 else None

    def _gain(self, layer: Analog) -> Tensor:
        reference, now = _probe(layer, self.probes, 0.0), _probe(layer, self.probes, layer.conditions.age_s)
        heard = torch.minimum(reference, now) > _step(layer)
        if not self.columns:
            reference, now, heard = (reference * heard).sum(), (now * heard).sum(), heard.any()
        return torch.where(heard, reference / now, 1.0)


@dataclass(frozen=True)
class GlobalDrift(_Drift):
    """One gain a layer: the mean magnitude of the outputs just after the write over that of today.

    Args:
        probes: number of input vectors.

    Reference:
        Joshi et al., Accurate deep neural network inference using computational phase-change memory, Nat. Commun. 11, 2020.
    """

    name = "global-drift"
    columns = False


@dataclass(frozen=True)
class ColumnDrift(_Drift):
    """One gain a column of the array.

    Args:
        probes: number of input vectors.
    """

    name = "column-drift"
    columns = True


@torch.no_grad()
def _probe(layer: Analog, probes: int, age_s: Any) -> Tensor:
    """Mean magnitude that each column answers to random signs, (n_out,), at this age of the present write."""
    chip, conditions, draws, gain = layer.chip, layer.conditions, dict(layer._draws), layer.gain
    try:
        if age_s != layer.conditions.age_s:
            layer.place(layer.chip, replace(layer.conditions, age_s=age_s), renew=("snapshot",))
        layer.gain = None
        y = layer(_signs(layer, probes))
    finally:
        layer._draws, layer.gain = draws, gain
        layer.place(chip, conditions, renew=())
    if layer.bias is not None:
        y = y - layer._broadcast(layer.bias)
    return y.abs().transpose(0, 1).flatten(1).mean(1)


def _signs(layer: Analog, probes: int) -> Tensor:
    """Signals of full-scale random signs among zeros, (probes, n_in, ...): as many as the window of the output converters allows."""
    blocks, _, channels, *kernel = layer.layout()
    space = [2 * d * (k - 1) + 1 for d, k in zip(getattr(layer, "dilation", ()), kernel, strict=True)]
    shape, random = (probes, blocks * channels, *space), generator("probe")
    signs = (torch.randint(0, 2, shape, generator=random) * 2 - 1).to(layer.weight)
    r_x, r_y = layer.full_scale("input"), layer.full_scale("output")
    strongest = (layer.cells(layer.weight) / layer.scale()).flatten(2).norm(dim=2).max()
    share = 1.0 if r_y is None or strongest == 0 else float((r_y / (3 * strongest)).square().clamp(max=1))
    return signs * (torch.rand(shape, generator=random) < share).to(signs) * (1 if r_x is None else r_x)


def _step(layer: Analog) -> Tensor:
    """One step of the output converter, in units of the output, (n_out,); 0 where there is none, or its range follows the signal."""
    steps = [e.size() for e in layer.profile.output if isinstance(e, Quantize) and e.bits is not None]
    r_x, r_y = layer.full_scale("input"), layer.full_scale("output")
    size = 0.0 if r_y is None or not steps else max(map(float, steps)) * r_y * (1 if r_x is None else r_x)
    return layer.scale().flatten() * size


@dataclass(frozen=True)
class BatchNorm(Compensation):
    """New statistics of every batch normalisation, from unlabelled inputs run through the noisy chip.

    Args:
        batches: inputs, or tuples that begin with them; run through once.

    Raises:
        ValueError: the model has no batch normalisation, or no batch came.

    Reference:
        Joshi et al., Accurate deep neural network inference using computational phase-change memory, Nat. Commun. 11, 2020 (AdaBS);
        Tsai et al., Robust processing-in-memory neural networks via noise-aware normalization, arXiv 2007.03230, 2020.
    """

    batches: Iterable[Any]
    name = "batch-norm"

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            object.__setattr__(self, "batches", tuple(self.batches))  # it is run through for every chip

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        if not norms:
            raise ValueError("BatchNorm: the model has no batch normalisation whose statistics could be renewed")
        modes = {m: m.training for m in model.modules()}
        before = [(m.momentum, copy.deepcopy(m._buffers)) for m in norms]
        model.eval()
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a plain average over the batches
            m.train()
        seen = 0
        try:
            seen = sum(1 for batch in self.batches if answer(model, batch) is not None)
        finally:
            for m, (momentum, buffers) in zip(norms, before, strict=True):
                m.momentum = momentum
                if not seen:
                    m._buffers.update(buffers)
            for module, mode in modes.items():
                module.training = mode
        if not seen:
            raise ValueError("BatchNorm: the batches are empty")
