"""Training with quantised weights: a learned step size, or plain straight-through."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.utils import parametrize

from galvanic.nn import Analog, Projection
from galvanic.nn.layers import analog_form
from galvanic.physics import Value
from galvanic.physics.converters import straight_through
from galvanic.train.rounding import from_levels, on_grid, refuse_non_finite, to_levels, top_level


@dataclass(frozen=True, kw_only=True)
class QuantisedTraining(Value, ABC):
    r"""Training with weights that are rounded, in every forward pass, to levels $S k / Q$, $|k| \le Q = 2^{b-1} - 1$.

    The full scale $S$ never exceeds the largest weight of its column (or layer), so that the top level is taken and the hardware, which
    has the largest weight as its full scale, finds these levels: what was trained is what the chip holds, during training and after
    `bake`. (Hardware whose scales are rounded up to powers of two has other levels, and rounds once more.)

    Args:
        bits: $b$.
        weight_scale: whether every output column has its own $S$, or the layer has one; as in the profile.
    """

    bits: Annotated[int, Ge(2), Le(24)]
    weight_scale: Literal["column", "layer"] = "column"

    def prepare(self, model: nn.Module) -> None:
        """Round the weights of all linear, convolution and transposed convolution layers from now on, in place.

        Make the optimizer afterwards: there may be new parameters. The weights become computed ones (`torch.nn.utils.parametrize`): the
        state dict holds what is trained, and loads into a model that was prepared alike. Recurrent layers and attention stay as they
        are. Layers that share a weight share its levels. For other bits in some layers, prepare these modules one by one.

        Raises:
            ValueError: no such layer; a weight that is not finite, not there yet (lazy), or parametrised already.
        """
        shared: dict[int, nn.Module] = {}
        for layer, form in _layers(model):
            grid = shared.setdefault(id(layer.weight), self._grid(layer, form))
            parametrize.register_parametrization(layer, "weight", grid)

    def bake(self, model: nn.Module) -> None:
        """End the training, in place: the rounded weights become the weights of ordinary layers.

        Raises:
            ValueError: no layer is prepared; a weight that is not finite.
        """
        prepared = [(name, m) for name, m in model.named_modules() if _is_prepared(m)]
        if not prepared:
            raise ValueError("no layer of the model is prepared for quantised training; prepare(model) comes before bake(model)")
        for name, layer in prepared:
            refuse_non_finite(name, layer.weight)
        for _, layer in prepared:
            parametrize.remove_parametrizations(layer, "weight")

    @abstractmethod
    def _grid(self, layer: Any, form: type[Analog]) -> "_Grid":
        """What rounds the weight of this layer."""


@dataclass(frozen=True, kw_only=True)
class StraightThrough(QuantisedTraining):
    r"""Rounding to nearest, full scale at the largest weight; the gradient passes as if nothing had been rounded.

    Reference:
        Bengio et al., Estimating or propagating gradients through stochastic neurons, arXiv 1308.3432, 2013.
    """

    def _grid(self, layer: Any, form: type[Analog]) -> "_Grid":
        return _NearestGrid(layer, form, self.bits, self.weight_scale)


@dataclass(frozen=True, kw_only=True)
class LSQ(QuantisedTraining):
    r"""Learned step size quantisation, $\hat w = s\,\mathrm{round}(\mathrm{clip}(w / s, -Q, Q))$: the step $s$ is trained with the weights.

    $$ \frac{\partial \hat w}{\partial w} = [\,|w / s| \le Q\,], \qquad \frac{\partial \hat w}{\partial s} =
    \begin{cases} \mathrm{round}(w / s) - w / s & |w / s| \le Q \\ \pm Q & \text{beyond} \end{cases} $$

    The gradient to $s$ is scaled by $1 / \sqrt{N Q}$, for the $N$ weights that share it; $s$ starts at $2\,\overline{|w|} / \sqrt Q$. Other
    than published, the levels are symmetric, and $s$ counts as $\max|w| / Q$ where it is larger than that, with its gradient going to the
    largest weight: else no weight would take the top level, and the hardware would find other levels.

    Reference:
        Esser et al., Learned step size quantization, ICLR, 2020.
    """

    def _grid(self, layer: Any, form: type[Analog]) -> "_Grid":
        return _LearnedGrid(layer, form, self.bits, self.weight_scale)


class _Grid(nn.Module, ABC):
    """Rounds a weight to levels that the hardware finds in it, too."""

    def __init__(self, layer: Any, form: Any, bits: int, weight_scale: Literal["column", "layer"]) -> None:
        super().__init__()
        self.form, self.groups = form, getattr(layer, "groups", 1)  # all that the layout of a weight on hardware depends on
        self.bits, self.weight_scale = bits, weight_scale
        self.shared = 2 if weight_scale == "column" else 0  # the first of the dimensions that have a full scale in common

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""

    def cells(self, weight: Tensor) -> Tensor:
        """A weight in the layout (blocks, columns, ...)."""
        return self.form.cells(self, weight)

    def native(self, cells: Tensor) -> Tensor:
        return self.form.native(self, cells)

    def full_scale(self, w: Tensor) -> Tensor:
        """The largest magnitude of each column, or of the layer: that of the hardware, where a column of zeros has the layer's, or 1."""
        top = w.abs().amax(tuple(range(self.shared, w.ndim)), keepdim=True)
        largest = top.max()
        return torch.where(top > 0, top, torch.where(largest > 0, largest, 1.0))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, weight_scale={self.weight_scale!r}"


class _NearestGrid(_Grid):
    """Rounds a weight to levels up to its largest magnitude."""

    def forward(self, weight: Tensor) -> Tensor:
        w = self.cells(weight.detach())
        return straight_through(self.native(on_grid(w, self.full_scale(w), self.bits)), weight)


class _LearnedGrid(_Grid):
    """Rounds a weight to levels whose distance is learned."""

    def __init__(self, layer: Any, form: Any, bits: int, weight_scale: Literal["column", "layer"]) -> None:
        super().__init__(layer, form, bits, weight_scale)
        w, top = self.cells(layer.weight.detach()), top_level(bits)
        mean = w.abs().mean(tuple(range(self.shared, w.ndim)), keepdim=True)
        start = torch.where(mean > 0, 2 * mean / top**0.5, self.full_scale(w) / top)
        self.step = nn.Parameter(start.flatten())  # of one dimension, as the biases that are usually not decayed
        self.gradient_scale = (w.numel() / start.numel() * top) ** -0.5

    def forward(self, weight: Tensor) -> Tensor:
        w, top = self.cells(weight), top_level(self.bits)
        bound = self.full_scale(w) / top
        step = torch.minimum(self._step().view(bound.shape), bound)
        v = to_levels(w, step * top, self.bits).clamp(-top, top)
        return self.native(from_levels(straight_through(v.round(), v), step * top, self.bits))

    def _step(self) -> Tensor:
        """The step, whose sign says nothing, with the published scale of its gradient."""
        step = self.step.abs().clamp(min=torch.finfo(self.step.dtype).tiny)
        return straight_through(step, step * self.gradient_scale)


def _layers(model: nn.Module) -> list[tuple[Any, type[Analog]]]:
    """The layers to prepare, and their analog class, which knows what a column is."""
    found: list[tuple[Any, type[Analog]]] = []
    for name, module in model.named_modules():
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ValueError(f"layer {name!r} is lazy and has no weight yet: call the model once, then prepare it")
        parametrised = parametrize.is_parametrized(module, "weight")
        kind: Any = type(module).__bases__[0] if parametrised else type(module)
        form: Any = kind if issubclass(kind, Analog) else analog_form(kind)
        if form is None or not issubclass(form, Analog) or issubclass(form, Projection):
            continue
        if parametrised:
            raise ValueError(f"layer {name!r}: its weight is parametrised already; bake or remove that first")
        refuse_non_finite(name, module.weight)
        found.append((module, form))
    if not found:
        raise ValueError("the model has no linear or convolution layer whose weights could be quantised")
    return found


def _is_prepared(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight") and any(isinstance(p, _Grid) for p in module.parametrizations.weight)  # type: ignore[union-attr]
