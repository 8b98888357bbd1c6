"""Terms of a loss that say what hardware finds hard. They are data; their signals are seen in the one forward pass of the task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from galvanic.nn import Analog, analog_layers
from galvanic.physics import Value


@dataclass(frozen=True)
class Pass:
    """The forward pass of the task, just done.

    Args:
        model: what was called.
        batch: on what.
        scores: what the model gave; None where no term asked for it.
        seen: what each term that watches signals made of them, one number a call of a layer, by the term's name.
        written: the weights last written to the hardware, by layer.
    """

    model: nn.Module
    batch: Any
    scores: Tensor | None
    seen: Mapping[str, Sequence[Tensor]]
    written: Mapping[str, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Term(Value, ABC):
    """A term of the loss.

    Args:
        strength: its factor. By default the gradient of a term about hardware is some tenth of the task's, and that of one about robustness
            some third (of a small convolutional network on 'generic-4bit').
    """

    strength: Annotated[float, Ge(0)] = 1.0

    @property
    def name(self) -> str:
        """What it is logged as."""
        return type(self).__name__

    def batch(self, batch: Any) -> Any:
        """What the task is computed on, where the term wants another batch."""
        return batch

    @abstractmethod
    def value(self, done: Pass) -> Tensor:
        """The term, without its strength."""


@dataclass(frozen=True, kw_only=True)
class OfWeights(Term, ABC):
    """A mean over layers of a function of the weight: of the analog layers, or where there is none of linear layers and convolutions."""

    @abstractmethod
    def of(self, layer: nn.Module) -> Tensor:
        """The value of one layer."""

    def value(self, done: Pass) -> Tensor:
        return torch.stack([self.of(layer) for layer in weighted_layers(done.model).values()]).mean()


@dataclass(frozen=True, kw_only=True)
class OfSignals(Term, ABC):
    """A mean over the calls of analog layers of a function of their signals.

    Args:
        share: of the batch that is looked at, its first examples: an unbiased estimate of the term for that share of its cost.
    """

    share: Annotated[float, Gt(0), Le(1)] = 1 / 32

    @abstractmethod
    def of(self, layer: Analog, x: Tensor, y: Tensor, *how: Any) -> Tensor | None:
        """The value of one call with inputs x and result y; None where it has none."""

    def value(self, done: Pass) -> Tensor:
        if not done.seen[self.name]:
            raise ValueError(f"{self.name}: no analog layer that was called has a range that is fixed, calibrated or learned")
        return torch.stack(list(done.seen[self.name])).mean()


@dataclass(frozen=True, kw_only=True)
class OfScores(Term, ABC):
    """A function of the model's predictions."""


@dataclass(frozen=True, kw_only=True)
class WeightPrecision(OfWeights):
    r"""Quantisation complexity: how far weights are from what cells of so many bits can hold,
    $\sum_{ij} (w_{ij} - q_{ij})^2 / \sum_{ij} w_{ij}^2$.

    $q_{ij}$ is the nearest of the $2^b - 1$ levels $s_j k / (2^{b-1} - 1)$ of the column, whose scale $s_j$ is its largest weight. Levels
    and denominator are yardsticks, without a gradient: every weight is drawn to its nearest level, and none is gained by growing.

    Args:
        bits: $b$, with the sign.
    """

    bits: Annotated[int, Ge(2), Le(24)] = 4

    def of(self, layer: nn.Module) -> Tensor:
        w, top = _cells(layer), 2 ** (self.bits - 1) - 1
        with torch.no_grad():
            step = _scale(layer) / top
            level = (w / step).round_() * step
        return _per(_sum_of_squares(w - level), _sum_of_squares(w.detach()))


@dataclass(frozen=True, kw_only=True)
class WeightRange(OfWeights):
    r"""Weights beyond a limit, $\sum_{ij} \mathrm{ReLU}(|w_{ij}| / \sigma - L)^2 / n$, with $\sigma$ the root mean square of the layer.

    In integer codes the published limit is $|w| \le 2^b$. Here the largest weight of a column is the largest code $2^{b-1} - 1$, however
    large it is: what costs resolution is an outlier. In a layer inside the limit $\sigma$ is $(2^{b-1} - 1) / L$ codes or more.
    $\sigma$ is a yardstick, without a gradient. This is the soft form of `clip_weights`.

    Args:
        limit: $L$, in units of $\sigma$.
    """

    strength: Annotated[float, Ge(0)] = 10.0
    limit: Annotated[float, Gt(0)] = 2.5

    def of(self, layer: nn.Module) -> Tensor:
        w = _weight(layer)
        power = w.detach().square().mean()
        return _per(F.relu(w.abs() - self.limit * power.sqrt()).square().mean(), power)


@dataclass(frozen=True, kw_only=True)
class WriteRegularity(Term):
    r"""How much a write would change, $\sum_{ij} (w_{ij} - w^0_{ij})^2 / \sum_{ij} (w^0_{ij})^2$, where writes are noisy.

    $w^0$ are the weights last written, which the caller keeps: ``Total(..., written=weights(model))``. The sums go over all layers.
    """

    def value(self, done: Pass) -> Tensor:
        if done.written is None:
            raise ValueError("WriteRegularity: which weights were written? Total(..., written=weights(model)) says it")
        pairs = [_now_and_written(name, _weight(layer), done.written) for name, layer in weighted_layers(done.model).items()]
        return _per(
            torch.stack([_sum_of_squares(w - old) for w, old in pairs]).sum(), torch.stack([_sum_of_squares(old) for _, old in pairs]).sum()
        )


@dataclass(frozen=True, kw_only=True)
class SignalRange(OfSignals):
    r"""Signals beyond converters, $\langle \mathrm{ReLU}(|x| / r - 1)^2 \rangle$ over the inputs of a layer plus over its tiles' results.

    Only sides whose range $r$ is fixed, calibrated or learned have an outside. Ranges are without a gradient: the term moves signals, and
    what a converter spans is left to the task. A result that was cut off is not in what a layer returns: the term computes what ideal
    cells give (`Analog.currents`), which costs the share of a second product.
    """

    strength: Annotated[float, Ge(0)] = 10.0

    def of(self, layer: Analog, x: Tensor, y: Tensor, *how: Any) -> Tensor | None:
        beyond = []
        if (r := layer.full_scale("input")) is not None:
            beyond.append(_overrun(x, r))
            x = x * (r / r.detach())  # in units of r, which currents are of, it has no gradient to r
        if (r := layer.full_scale("output")) is not None:
            beyond.append(_overrun(torch.cat([current.flatten() for current in layer.currents(x, *how)]), r))
        return torch.stack(beyond).sum() if beyond else None


@dataclass(frozen=True, kw_only=True)
class Sparsity(OfSignals):
    r"""How evenly the inputs of a layer are spread, $\langle \|x\|_1 / (\sqrt{n} \|x\|_2) \rangle$ over the examples of the batch.

    It is 1 where all magnitudes are alike and $\sqrt{k / n}$ where k of n are and the others are zero, whatever the unit.

    Reference:
        Hoyer, Non-negative matrix factorization with sparseness constraints, J. Mach. Learn. Res. 5, 2004.
    """

    strength: Annotated[float, Ge(0)] = 0.3

    def of(self, layer: Analog, x: Tensor, y: Tensor, *how: Any) -> Tensor:
        dims = tuple(range(1, x.ndim)) or (0,)
        n = prod(x.shape[k] for k in dims)
        return _per(torch.linalg.vector_norm(x, 1, dims), sqrt(n) * torch.linalg.vector_norm(x, 2, dims)).mean()


@dataclass(frozen=True, kw_only=True)
class ReadEnergy(OfSignals):
    r"""The energy dissipated in the cells of a layer by a read, $\sum x_i^2 |w_{ij}| / \sum 1$ over its cells and products.

    $x_i$ is the input in units of its range (of the vector's largest magnitude where there is none), clipped there; $|w_{ij}|$ the weight
    in units of its scale: the conductance of a cell that holds its magnitude. Full-scale inputs and weights have the energy 1. Range and
    scale are yardsticks, without a gradient. Linear in $x_i^2$, it takes the mean over examples first: its product is of one example.
    """

    def of(self, layer: Analog, x: Tensor, y: Tensor, *how: Any) -> Tensor:
        lines = tuple(range(x.ndim - 1 - layer.trailing, x.ndim))
        r = layer.full_scale("input")
        r = _positive(x.detach().abs().amax(lines, keepdim=True) if r is None else r.detach())
        power = F.hardtanh(x / r).square().reshape(-1, *(x.shape[k] for k in lines)).mean(0)
        g = (layer.cells(layer.weight) / layer.scale()).abs()
        spent = layer.contract(layer.prepare(power), layer.native(g.sum(1, keepdim=True)), *how)
        most = layer.contract(layer.prepare(torch.ones_like(power)), layer.native(torch.full_like(g[:, :1], g.shape[1])), *how)
        return spent.sum() / most.sum()


@dataclass(frozen=True, kw_only=True)
class Alignment(OfSignals):
    r"""How far the hardware's product is from the digital one of its input, $\langle (y_{hw} - y)^2 \rangle / \langle (y - b)^2 \rangle$.

    $y = W x + b$. Nothing is without a gradient: it lowers what clipping, rounding and noise make of the layer's own weight and input, and
    does not fit the weight to one chip. It costs the share of a second product, forward and backward.
    """

    strength: Annotated[float, Ge(0)] = 0.3

    def of(self, layer: Analog, x: Tensor, y: Tensor, *how: Any) -> Tensor:
        product = layer.contract(layer.prepare(x), layer.weight, *how)
        exact = product if layer.bias is None else product + layer.bias.view(-1, *[1] * layer.trailing)
        return _per(F.mse_loss(y, exact, reduction="sum"), _sum_of_squares(product))


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The analog layers by name, or where there is none the linear layers and convolutions, which would become analog.

    Raises:
        ValueError: there is none of either.
    """
    if any(isinstance(m, Analog) for m in model.modules()):
        return dict(analog_layers(model))
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    if not layers:
        raise ValueError("the model has no analog layer, no linear one and no convolution: there is no weight to speak of")
    return layers


def asked_of(model: nn.Module, name: str) -> dict[str, Analog]:
    """The analog layers, for a term of this name."""
    try:
        return analog_layers(model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of these layers by name: what was written, for `WriteRegularity`."""
    return {name: _weight(layer).detach().clone() for name, layer in weighted_layers(model).items()}


def _cells(layer: Any) -> Tensor:
    """The weight, (blocks, columns, channels, ...)."""
    if isinstance(layer, Analog):
        return layer.cells(layer.weight)
    w = _weight(layer)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return w.unflatten(0, (layer.groups, -1)).transpose(1, 2) if transposed else w.unsqueeze(0)


def _scale(layer: Any) -> Tensor:
    """The digital scale of every column."""
    if isinstance(layer, Analog):
        return layer.scale()
    w = _cells(layer).detach()
    return _positive(w.abs().amax(tuple(range(2, w.ndim)), keepdim=True))


def _weight(layer: Any) -> Tensor:
    w: Tensor = layer.weight
    return w


def _now_and_written(name: str, w: Tensor, written: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    old = written.get(name)
    if old is None or old.shape != w.shape:
        came = "none" if old is None else f"one of shape {tuple(old.shape)}"
        raise ValueError(f"WriteRegularity: layer {name!r} has a weight of shape {tuple(w.shape)}, and {came} was written")
    return w, old.to(w)


def _overrun(x: Tensor, r: Tensor) -> Tensor:
    """Mean square of what is beyond the range, in units of it."""
    return F.softshrink(x / r.detach(), 1.0).square().mean()


def _sum_of_squares(x: Tensor) -> Tensor:
    return x.square().sum()


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _per(x: Tensor, yardstick: Tensor) -> Tensor:
    """A ratio, zero where both are."""
    return x / _positive(yardstick)
