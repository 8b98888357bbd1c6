"""Trained weights on the levels that hardware has, without training: post-training quantisation."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.utils import parametrize

from galvanic.nn import Analog, Projection, analog_layers, convert, to_digital
from galvanic.nn.calibrate import answer
from galvanic.physics import DifferentialPair, Direct, Parallel, Quantize, Value
from galvanic.profile import Profile
from galvanic.seeding import generator

_CANDIDATES = 80  # full scales tried by LeastSquares
_STRETCH, _SHIFT = 1.2, 0.1  # of the sigmoid of AdaRound, so that it reaches 0 and 1

Call = tuple[Any, ...]
"""What a layer was called with: its input, and whatever followed."""


def weight_bits(profile: Profile) -> int | None:
    r"""The bits $b$ of the weights of this hardware, whose levels are $k / (2^{b-1} - 1)$, $|k| \le 2^{b-1} - 1$; None: not quantised.

    They are those of the first `Quantize` among the weight effects; a pair of unsigned conductances has the sign as one bit more.

    Raises:
        ValueError: weights are rounded to other levels.
    """
    quantiser = next((e for e in profile.weight if isinstance(e, Quantize)), None)
    if quantiser is None:
        return None
    code = profile.encoding
    while isinstance(code, Parallel):
        code = code.of
    symmetric = (isinstance(code, Direct) and quantiser.signed) or code == DifferentialPair()
    if quantiser.bits is None or quantiser.twos_complement or float(quantiser.full_scale) != 1 or not symmetric:
        raise ValueError(
            f"profile {profile.name!r}: its weights are not rounded to the levels k / (2^(b-1) - 1); a signed Quantize(bits=...) with "
            "full_scale=1, and an encoding Direct() or DifferentialPair(g_min=0), would do"
        )
    return quantiser.bits + (not quantiser.signed)


def top_level(bits: int) -> int:
    r"""The largest level, $2^{b-1} - 1$."""
    if bits < 2:
        raise ValueError(f"bits = {bits}: a weight with a sign and a zero needs 2 or more")
    return 2 ** (bits - 1) - 1


def from_levels(levels: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weights of these levels. The order of the operations is that of the hardware, whose bits they therefore have."""
    return levels * (1 / top_level(bits)) * scale


def to_levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Where weights lie between the levels, neither rounded nor clipped."""
    return weight / scale / (1 / top_level(bits))


def on_grid(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Weights rounded to the nearest level.

    Args:
        weight: in any layout.
        scale: the weight of the top level; broadcasts against `weight`.
        bits: 2 or more.
    """
    top = top_level(bits)
    return from_levels(to_levels(weight, scale, bits).round().clamp(-top, top), scale, bits)


def refuse_non_finite(name: str, weight: Tensor) -> None:
    """Raise a ValueError for a weight without a level."""
    if not weight.isfinite().all():
        raise ValueError(f"layer {name!r}: its weight holds NaN or infinity, for which there is no level")


@dataclass(frozen=True, kw_only=True)
class Rounding(Value, ABC):
    r"""A way to put trained weights on the levels of the hardware.

    A column whose full scale is $S$ has the levels $w = S k / (2^{b-1} - 1)$, $|k| \le 2^{b-1} - 1$. The hardware finds $S$ by itself, from
    the largest magnitude of the column (or the layer). Therefore the largest weight always goes to the nearest level, which is the one
    at $S$ (one above $S / 2$, where scales are rounded up to powers of two): the chip finds the $S$ that was meant, and `Quantize` leaves
    the weights as they are, bit for bit.
    """

    @torch.no_grad()
    def apply(self, model: nn.Module, profile: Profile | Mapping[str, Profile | None], batches: Iterable[Any] = ()) -> nn.Module:
        """A digital copy of the model whose weights are on the hardware's levels, to be converted as any other; the given one is untouched.

        Linear, convolution and transposed convolution layers are rounded, each with the bits of its own profile. The weights of recurrent
        layers and attention stay as they are: the chip rounds them. A weight that layers share is rounded once, by the first of them.

        Args:
            model: digital or analog.
            profile: the hardware, or glob patterns of layer names -> hardware, as for `convert`.
            batches: inputs, tuples that begin with them, or mappings of keyword arguments; no labels are needed, and no batches for a
                method that looks at weights alone.

        Raises:
            ValueError: no layer to round, or none with quantised weights; a weight that is not finite, or computed by a parametrisation;
                for a method that needs them, no batches.
        """
        rounded = to_digital(model)
        self._round(rounded, _quantised(rounded, profile), tuple(batches))
        return rounded

    @abstractmethod
    def _round(self, model: nn.Module, layers: Mapping[str, Analog], batches: tuple[Any, ...]) -> None:
        """Round the weights of a digital model in place; `layers` are the same layers on the hardware, with the weights of before."""


@dataclass(frozen=True, kw_only=True)
class MinMax(Rounding):
    """Rounding to nearest, full scale at the largest weight: what the chip does to weights that nobody prepared."""

    def _round(self, model: nn.Module, layers: Mapping[str, Analog], batches: tuple[Any, ...]) -> None:
        for name, layer in layers.items():
            _write(model, name, layer, on_grid(layer.cells(layer.weight), layer.scale(), _bits(layer)))


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Rounding):
    r"""Rounding to nearest, weights clipped at the full scale with the least squared error, $\min_S \sum_i (w_i - \hat w_i(S))^2$.

    Every column has its own, or every layer: as the hardware has it. It is one of 80 between 1/80 of the largest weight and all of it; of
    the halves, quarters, ... where the hardware's scales are powers of two.
    """

    def _round(self, model: nn.Module, layers: Mapping[str, Analog], batches: tuple[Any, ...]) -> None:
        for name, layer in layers.items():
            _write(model, name, layer, on_grid(layer.cells(layer.weight), _clipping_scale(layer), _bits(layer)))


def stretched_sigmoid(v: Tensor) -> Tensor:
    r"""$h(V) = \mathrm{clip}(1.2\,\sigma(V) - 0.1,\ 0,\ 1)$: a share of a level that does reach 0 and 1."""
    return (_STRETCH * v.sigmoid() - _SHIFT).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class AdaRound(Rounding):
    r"""Rounding up or down, whichever serves the outputs of the layer: learned, layer by layer, on some hundred unlabelled inputs.

    $$ \hat W = s\,\mathrm{clip}\big(\lfloor W / s \rfloor + h(V), -Q, Q\big), \qquad
    \min_V\ \overline{\lVert W x - \hat W \hat x \rVert^2} + \lambda \sum_{ij} \big(1 - |2 h(V_{ij}) - 1|^\beta\big) $$

    with $h$ = `stretched_sigmoid`, which starts where it changes nothing, $Q$ the top level and $s Q$ the full scale of `LeastSquares`.
    The inputs $x$ are those of the digital network, $\hat x$ those of the network whose earlier layers are rounded already. At the end
    $h$ is rounded itself. The largest weight of a column (or layer) is rounded to nearest, so that the hardware finds the same full scale;
    so are the weights of a layer that the inputs do not reach.

    Args:
        steps: of Adam, a layer.
        batch: inputs a step, drawn at random; vectors for a linear layer, images for a convolution.
        learning_rate: of Adam, for $V$.
        regularisation: $\lambda$.
        warm_up: share of the steps without regularisation.
        beta: $\beta$ after the warm-up and at the end, falling linearly in between.

    Reference:
        Nagel et al., Up or down? Adaptive rounding for post-training quantization, ICML, 2020.
    """

    steps: Annotated[int, Ge(1)] = 1000
    batch: Annotated[int, Ge(1)] = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-2
    regularisation: Annotated[float, Ge(0)] = 0.01
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.2
    beta: tuple[Annotated[float, Ge(1)], Annotated[float, Ge(1)]] = (20.0, 2.0)

    def _round(self, model: nn.Module, layers: Mapping[str, Analog], batches: tuple[Any, ...]) -> None:
        if not batches:
            raise ValueError("AdaRound: the batches are empty")
        modes = {module: module.training for module in model.modules()}
        digital = to_digital(model).eval()
        model.eval()
        for name in _in_order(digital, layers, batches):
            layer = layers[name]
            calls = _paired(name, _calls(digital, name, batches), _calls(model, name, batches))
            _write(model, name, layer, self._learned(name, layer, calls))
        for module, mode in modes.items():
            module.training = mode

    def _learned(self, name: str, layer: Analog, calls: list[tuple[Call, Call]]) -> Tensor:
        """The rounded weight of a layer, (blocks, columns, ...)."""
        bits, w, scale = _bits(layer), layer.cells(layer.weight.detach()), _clipping_scale(layer)
        if not calls:
            return on_grid(w, scale, bits)
        top, position = top_level(bits), to_levels(w, scale, bits)
        floor, nearest, largest = position.floor(), position.round().clamp(-top, top), _largest(layer, w)

        def levels(h: Tensor) -> Tensor:
            return torch.where(largest, nearest, (floor + h).clamp(-top, top))

        v = torch.logit((position - floor + _SHIFT) / _STRETCH).requires_grad_()
        optimizer, random = torch.optim.Adam([v], lr=self.learning_rate), generator("adaround", name)
        for step in range(self.steps):
            (x, *given), x_hat = _drawn(calls, layer.trailing, self.batch, random)
            how = layer.how(x, *given)
            wanted = layer.digital(x, layer.weight, *how)
            with torch.enable_grad():
                h = stretched_sigmoid(v)
                y = layer.digital(x_hat, layer.native(from_levels(levels(h), scale, bits)), *how)
                loss = (y - wanted).square().sum(1).mean() + self._regularisation(h, step)
                (v.grad,) = torch.autograd.grad(loss, [v])
            optimizer.step()
        return from_levels(levels((stretched_sigmoid(v) >= 0.5).to(w)), scale, bits)

    def _regularisation(self, h: Tensor, step: int) -> Tensor:
        begin = self.warm_up * self.steps
        if step < begin:
            return h.new_zeros(())
        first, last = self.beta
        beta = first + (last - first) * (step - begin) / (self.steps - begin)
        return self.regularisation * (1 - (2 * h - 1).abs() ** beta).sum()


def _quantised(model: nn.Module, profile: Profile | Mapping[str, Profile | None]) -> dict[str, Analog]:
    """The layers to round, on the hardware, by name; a weight that several share belongs to the first."""
    layers = {n: m for n, m in analog_layers(convert(model, profile, chip=0)).items() if not isinstance(m, Projection)}
    if not layers:
        raise ValueError("the model has no linear or convolution layer whose weights could be rounded")
    layers = {n: m for n, m in layers.items() if weight_bits(m.profile) is not None}
    if not layers:
        raise ValueError("the profile does not quantise weights: there is no Quantize among its weight effects")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"layer {name!r}: its weight is computed by a parametrisation; bake or remove that first")
        refuse_non_finite(name, layer.weight)
    first = {id(layer.weight): name for name, layer in reversed(layers.items())}
    return {name: layer for name, layer in layers.items() if first[id(layer.weight)] == name}


def _bits(layer: Analog) -> int:
    bits = weight_bits(layer.profile)
    assert bits is not None
    return bits


def _write(model: nn.Module, name: str, layer: Analog, cells: Tensor) -> None:
    """Give a layer of the digital model the weight of these cells."""
    weight: Any = model.get_submodule(name).weight
    weight.copy_(layer.native(cells))


def _groups(layer: Analog, w: Tensor) -> tuple[int, ...]:
    """The dimensions of (blocks, columns, ...) over which weights have a full scale in common."""
    return tuple(range(2 if layer.profile.weight_scale == "column" else 0, w.ndim))


def _largest(layer: Analog, w: Tensor) -> Tensor:
    """Where the weights are that the hardware finds its full scale by."""
    return w.abs() == w.abs().amax(_groups(layer, w), keepdim=True)


def _clipping_scale(layer: Analog) -> Tensor:
    """The full scale with the least squared error, (blocks, columns, 1, ...)."""
    w, bits, whole = layer.cells(layer.weight.detach()), _bits(layer), layer.scale()
    dims = _groups(layer, w)
    shares = [k / _CANDIDATES for k in range(_CANDIDATES, 0, -1)]
    if layer.profile.power_of_two_scales:
        shares = [2.0**-k for k in range(bits)]  # at a smaller one all but the smallest weights would be clipped
    best, least = whole, torch.full_like(w.sum(dims, keepdim=True), torch.inf)
    for share in shares:
        error = (on_grid(w, whole * share, bits) - w).square().sum(dims, keepdim=True)
        best, least = torch.where(error < least, whole * share, best), torch.minimum(error, least)
    return best


def _in_order(model: nn.Module, layers: Mapping[str, Analog], batches: tuple[Any, ...]) -> list[str]:
    """The names of the layers in the order in which the model calls them; those that it does not call come last."""
    called: dict[str, None] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: called.setdefault(name)) for name in layers
    ]
    try:
        answer(model, batches[0])
    finally:
        for hook in hooks:
            hook.remove()
    return list(called | dict.fromkeys(layers))


def _calls(model: nn.Module, name: str, batches: tuple[Any, ...]) -> list[Call]:
    """What the layer is called with while the model answers the batches."""
    seen: list[Call] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, *given = *args, *kwargs.values()
        seen.append((x.clone(), *given))  # the model may go on to change it in place

    hook = model.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True)
    try:
        for batch in batches:
            answer(model, batch)
    finally:
        hook.remove()
    return seen


def _paired(name: str, digital: list[Call], rounded: list[Call]) -> list[tuple[Call, Call]]:
    """The calls of a layer in the digital network and in the rounded one."""
    if [x.shape for x, *_ in digital] != [x.shape for x, *_ in rounded]:
        raise ValueError(f"AdaRound: layer {name!r} sees inputs of other shapes once earlier layers are rounded, and cannot be compared")
    if not all(x.isfinite().all() for x, *_ in (*digital, *rounded)):
        raise ValueError(f"AdaRound: the inputs of layer {name!r} are not finite; is there a NaN in the data?")
    return [(a, b) for a, b in zip(digital, rounded, strict=True) if a[0].numel()]


def _drawn(calls: list[tuple[Call, Call]], trailing: int, size: int, random: torch.Generator) -> tuple[Call, Tensor]:
    """A call with random inputs among those of one of the calls, and the same inputs in the rounded network."""
    lengths = torch.tensor([x.numel() for (x, *_), _ in calls], dtype=torch.float64)
    (x, *given), (x_hat, *_) = calls[int(torch.multinomial(lengths, 1, generator=random))]
    x, x_hat = (t.reshape(-1, *t.shape[t.ndim - 1 - trailing :]) for t in (x, x_hat))
    chosen = torch.randint(len(x), (size,), generator=random).to(x.device)
    return (x[chosen], *given), x_hat[chosen]
