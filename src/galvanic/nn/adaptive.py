"""Noise on a signal whose physical parameters are learned, and tied to what was measured."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cache, reduce
from typing import Any, Self, get_args, get_type_hints

import torch
from torch import Tensor, nn

from galvanic.physics import Additive, Conditions, Context, GainOffset, Gaussian, Nonideality, Quantize
from galvanic.physics.value import as_tensor, brief
from galvanic.profile import Profile
from galvanic.seeding import generator

_COLUMNS, _ROWS = 16, 256  # of the sample of weights that stands for a layer
_LEAST_GAIN = 1e-3  # smaller ones are the sample's


class AdaptiveNoise(nn.Module):
    r"""What physical non-idealities $f_i$ add to a signal $u$, with learned weights and learned physics.

    $$ N(u) = r \sum_i w_i \big(f_i(u / r;\ \theta_i) - u / r\big), \qquad
    w_i = e^{s(\rho_i)}, \quad \theta_{ij} = \bar\theta_{ij}\,e^{s(\rho_{ij})}, \quad s(\rho) = \ln b\,\tanh(\rho / \ln b) $$

    $\bar\theta$ are the measured parameters, those of the effects as given, and $\rho$ the learned numbers, which start at 0. So a learned
    value keeps its sign and stays within a factor $b$ of the measured one, as the weight does of 1; weight decay pulls it to the
    measurement. Learned is every number of an effect that is not 0 and that a gradient reaches (not the length of a correlation, nor the
    probability of a fault). Of a weight and the standard deviation it multiplies, the data see the product only.

    Effects are in units of full scale. $r$ is the largest magnitude of each vector, or of all channels of each image: found from the data
    and detached. $N$ is thereby scale-free, $N(c u) = c N(u)$ for the same draws: a network that grows its signals grows the noise with
    them. Gradients reach the signal and the physics through the draws (reparameterisation); only `Quantize` has a straight-through one.

    Randomness is from torch's global stream: per read, a draw for every element; for what belongs to a chip, a write or a snapshot, one
    for every channel, alike for all signals of the batch, new at every call: each call is a chip of its own.

    Under plain cross-entropy a learned noise level switches itself off, since less noise is less loss. Train on the loss plus `anchor`, or
    plus `likelihood` of measured errors.

    Args:
        effects: non-idealities that act on signals; none adds nothing.
        conditions: age, temperature ... that they see; an attribute, which may be set at any time.
        span: $b$, the largest factor between a learned value and the measured one.
        tolerance: relative uncertainty of the measured values, for `anchor`.
        axis: where the channels are; None: axis 1 of signals with four dimensions or more, (n, channels, \*space), and the last axis of
            others, (n, features) or (n, tokens, features). The signal of a one-dimensional convolution wants 1.

    Attributes:
        simulated: whether it adds anything. `convert` switches it off, since hardware makes its own noise, and `to_digital` on again.

    Raises:
        ValueError: an effect that is none; a span that is not above 1; a tolerance that is not above 0.

    Reference:
        He, Rakin and Fan, Parametric noise injection: trainable randomness to improve deep neural network robustness against adversarial
        attack, CVPR, 2019 (a learned noise level, and that it vanishes without adversarial training).
    """

    def __init__(
        self,
        effects: Iterable[Nonideality],
        *,
        conditions: Conditions | None = None,
        span: float = 10.0,
        tolerance: float = 0.1,
        axis: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 < span < math.inf:
            raise ValueError(f"AdaptiveNoise: span = {span}: a factor above 1")
        if not 0 < tolerance < math.inf:
            raise ValueError(f"AdaptiveNoise: tolerance = {tolerance}: a relative uncertainty above 0, such as 0.1")
        self.conditions = conditions or Conditions()
        self.tolerance = tolerance
        self.axis = axis
        self.simulated = True
        self.effects = nn.ModuleList(LearnedEffect(effect, span, self.conditions) for effect in effects)

    @classmethod
    def of(cls, profile: Profile, *, conditions: Conditions | None = None, tolerance: float = 0.1, axis: int | None = None) -> Self:
        r"""The noise of a kind of hardware, as it appears on the signal between two layers.

        Input and output effects act as they are. A weight effect is replaced by what it does to products: it is applied, after those
        before it, to a sample of normal weights, encoded as the profile says, under the conditions. Of the error, what is proportional to
        the weight becomes a `GainOffset` (drift, temperature, supply), and the rest a `Gaussian` per read of its standard deviation
        $\sigma$ (programming and read noise, mismatch, faults, the rounding of weights). $\sigma$ carries over because independent
        errors $e_i$ of the cells make

        $$ \sum_i e_i x_i \sim N\Big(0,\ \sigma^2 \sum_i x_i^2\Big) \quad\text{of}\quad
        \sum_i w_i x_i \sim N\Big(0,\ \langle w^2 \rangle \sum_i x_i^2\Big), $$

        where RMS over largest magnitude is of the signal what it is of the weights. Left out: what the product, the input coding and the
        cut into tiles do (wire resistance, curved cells, several converters a column); that an error of the weights is the same for equal
        inputs; gains below 0.1 %.
        """
        conditions = conditions or Conditions()
        with torch.device("cpu"):
            on_signals = _on_signals(profile, conditions)
        effects = [*profile.input, *on_signals, *profile.output]
        return cls(effects, conditions=conditions, tolerance=tolerance, axis=axis)

    @property
    def weights(self) -> Tensor:
        """The weights $w_i$, one an effect."""
        ratios = [effect.ratio("weight") for effect in self._each()]
        return torch.stack(ratios) if ratios else torch.zeros(0)

    def physics(self) -> tuple[Nonideality, ...]:
        """The effects with what was learned so far."""
        return tuple(effect.learned() for effect in self._each())

    def forward(self, u: Tensor) -> Tensor:
        """What is added to the signal `u`, of its shape."""
        if not self.simulated or not len(self.effects):
            return torch.zeros_like(u)
        axis = channel_axis(u, self.axis)
        x = u.to(torch.promote_types(u.dtype, torch.float32))  # a small difference of two numbers: half precision would not see it
        full_scale = x.detach().abs().amax(tuple(range(axis, x.ndim)), keepdim=True)
        x = x / full_scale.clamp(min=torch.finfo(x.dtype).tiny)  # a silent signal stays silent
        at = Context(**vars(self.conditions))
        parts = [effect.ratio("weight") * (_disturbed(effect.learned(), x, axis, at) - x) for effect in self._each()]
        return (full_scale * reduce(torch.add, parts)).to(u.dtype)

    def anchor(self) -> Tensor:
        r"""Half the squared log ratio of every learned value to the measured one, over the tolerance $\tau$,
        $\sum \frac{1}{2} \big(\ln(\theta / \bar\theta) / \tau\big)^2$: the negative logarithm of a log-normal prior, a scalar."""
        logs = [effect.log_ratio(name) for effect in self._each() for name in effect.names]
        return torch.stack(logs).div(self.tolerance).square().sum() / 2 if logs else torch.zeros(())

    def likelihood(self, residuals: Tensor, signals: Tensor | None = None) -> Tensor:
        r"""Negative log-likelihood of measured errors $e$ of an output, the mean over measurements, in nats:

        $$ \frac{1}{2} \Big\langle \frac{(e - \mu)^2}{v} + \ln 2 \pi v \Big\rangle, \qquad
        \mu = \sum_i w_i\,\mu_i(u), \quad v = \sum_i w_i^2\,v_i(u) $$

        with $\mu_i$ and $v_i$ the mean and the variance of the error of effect $i$ over reads and chips; rounding counts as uniform noise,
        of variance $s^2 / 12$ for a step $s$.

        Args:
            residuals: measured output less wanted output, in units of full scale.
            signals: the wanted outputs, in units of full scale, of the same shape; None: zero, where relative noise is not seen.

        Raises:
            ValueError: no measurement; shapes that differ; an effect whose noise is neither Gaussian nor a rounding; nothing random.
        """
        if not residuals.numel():
            raise ValueError("likelihood: no residual; it takes one measurement or more")
        u = torch.zeros_like(residuals) if signals is None else signals
        if u.shape != residuals.shape:
            raise ValueError(f"likelihood: residuals {tuple(residuals.shape)} and signals {tuple(u.shape)} differ in shape")
        at = Context(**vars(self.conditions))
        mean, variance = torch.zeros_like(u), torch.zeros_like(u)
        for effect in self._each():
            mu, v = _moments(effect.learned(), u, at)
            mean, variance = mean + effect.ratio("weight") * mu, variance + effect.ratio("weight").square() * v
        if not bool((variance.detach() > 0).any()):
            raise ValueError("likelihood: no effect makes noise at these signals; relative noise needs signals that are not zero")
        variance = variance.clamp(min=torch.finfo(variance.dtype).tiny)
        return ((residuals - mean).square() / variance + (2 * math.pi * variance).log()).mean() / 2

    def _each(self) -> Iterator["LearnedEffect"]:
        return iter(self.effects)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"simulated={self.simulated}, tolerance={self.tolerance:g}"


class LearnedEffect(nn.Module):
    """A non-ideality, its weight, and a learned logarithm for each of its numbers: `log_weight`, and `log_std` for `std`.

    Args:
        effect: with the measured numbers.
        span: the largest factor between a learned value and the measured one.
        conditions: under which a gradient must reach a number to be learned.
    """

    def __init__(self, effect: Nonideality, span: float, conditions: Conditions) -> None:
        super().__init__()
        if not isinstance(effect, Nonideality):
            raise ValueError(f"AdaptiveNoise: an effect is a non-ideality such as Gaussian(std=0.02), not {brief(effect)}")
        self.effect = effect
        self.limit = math.log(span)
        self.measured = _learnable(effect, conditions)
        self.names = ("weight", *self.measured)
        for name in self.names:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.zeros(1)))  # (1,), since sharding knows no scalars

    def log_ratio(self, name: str) -> Tensor:
        """ln(learned / measured), 0-d, which leaves the precision of a signal alone."""
        raw = getattr(self, f"log_{name}").squeeze(0)
        return self.limit * torch.tanh(raw.to(torch.promote_types(raw.dtype, torch.float32)) / self.limit)

    def ratio(self, name: str) -> Tensor:
        return self.log_ratio(name).exp()

    def learned(self) -> Nonideality:
        """The effect with the learned numbers."""
        numbers: dict[str, Any] = {name: number * self.ratio(name) for name, number in self.measured.items()}
        return replace(self.effect, **numbers)

    def extra_repr(self) -> str:
        return repr(self.effect)


def channel_axis(x: Tensor, axis: int | None) -> int:
    """Where the channels of a signal are: 1 in (n, channels, *space), the last axis in (n, features) and (n, tokens, features).

    Raises:
        ValueError: an axis that the signal does not have.
    """
    axis = (1 if x.ndim > 3 else -1) if axis is None else axis
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"a signal of shape {tuple(x.shape)} has no axis {axis} for its channels")
    return axis % x.ndim


@torch.no_grad()
def learned_noise(model: nn.Module) -> float | None:
    """The learned size of the adaptive noise in a model over the measured one, a mean over its effects; None where there is none.

    Of an effect it is the product of its weight and, where it has one, of its standard deviation, each over the measured.
    """
    effects = [m for m in model.modules() if isinstance(m, LearnedEffect)]
    logs = [sum(float(e.log_ratio(name)) for name in e.names if name == "weight" or name.endswith("std")) for e in effects]
    return sum(map(math.exp, logs)) / len(logs) if logs else None


def simulate(model: nn.Module, on: bool) -> nn.Module:
    """Switch the simulated noise of every `AdaptiveNoise` of the model on or off, in place."""
    for module in model.modules():
        if isinstance(module, AdaptiveNoise):
            module.simulated = on
    return model


def _disturbed(effect: Nonideality, x: Tensor, axis: int, at: Context) -> Tensor:
    if effect.lines:  # it takes the lines as the last axis
        return _with_draw(effect, x.movedim(axis, -1), -1, at).movedim(-1, axis)
    return _with_draw(effect, x, axis, at)


def _with_draw(effect: Nonideality, x: Tensor, axis: int, at: Context) -> Tensor:
    if effect.per is None:
        return effect.apply(x, None, at)
    shape = list(x.shape)
    if effect.per != "read":
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
    return effect.apply(x, effect.draw(tuple(shape), device=x.device, dtype=x.dtype), at)


@cache
def _scalars(kind: type[Nonideality]) -> tuple[str, ...]:
    """The fields that may be a number or a tensor."""
    hints = get_type_hints(kind)
    return tuple(f.name for f in fields(kind) if Tensor in get_args(hints[f.name]))


def _learnable(effect: Nonideality, conditions: Conditions) -> dict[str, float]:
    """The numbers of an effect that are not 0 and that a gradient reaches."""
    given = {name: getattr(effect, name) for name in _scalars(type(effect))}
    numbers = {name: float(x) for name, x in given.items() if isinstance(x, int | float | Tensor) and as_tensor(x).ndim == 0 and x != 0}
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-0.9, 1.1, 8, dtype=torch.float64)
        z = None if effect.per is None else effect.draw(tuple(x.shape), generator("learnable"), dtype=x.dtype)
        leaves: dict[str, Any] = {name: torch.tensor(number, dtype=x.dtype, requires_grad=True) for name, number in numbers.items()}
        y = replace(effect, **leaves).apply(x, z, Context(**vars(conditions)))
        if not y.requires_grad:
            return {}
        gradients = torch.autograd.grad(y.sum(), list(leaves.values()), allow_unused=True)
    return {name: number for (name, number), g in zip(numbers.items(), gradients, strict=True) if g is not None}


@torch.no_grad()
def _on_signals(profile: Profile, conditions: Conditions) -> list[Nonideality]:
    """What the effects on weights do to products: for each of them, in order, a gain and noise."""
    w = torch.randn(1, _COLUMNS, _ROWS, generator=generator("weights"), dtype=torch.float64)
    w = w / w.abs().amax(-1, keepdim=True)
    code = profile.encoding
    target = g = code.encode(w).squeeze(1)  # (devices, columns, rows)
    at = Context(**vars(conditions) | {"target": target, "written": target})
    gains, stds, level = list[float](), list[float](), 1.0
    for index, effect in enumerate(profile.weight):
        z = None if effect.per is None else effect.draw(tuple(g.shape), generator("effect", index), dtype=g.dtype)
        after = [effect.apply(g, draw, at) for draw in ((None,) if z is None else (z, -z))]  # equally likely; their mean has no noise
        after = [x.clamp(min=0) if code.nonnegative else x for x in after]
        errors = torch.stack([code.decode((x - g).unsqueeze(1)) for x in after])
        gain = float((errors.mean(0) * w).sum() / w.square().sum())
        stds = [std * (1 + gain / level) for std in stds]  # it acts on the noise of those before, too
        gains.append(gain)
        stds.append(float((errors - gain * w).square().mean().sqrt()))
        g, level = torch.stack(after).mean(0), level + gain
    found: list[Nonideality] = []
    for effect, gain, std in zip(profile.weight, gains, stds, strict=True):
        source = f"{type(effect).__name__} of weights"
        found += [GainOffset(gain=gain, source=source)] if abs(gain) > _LEAST_GAIN else []
        found += [Gaussian(std=abs(std), source=source)] if std else []
    return found


def _moments(effect: Nonideality, u: Tensor, at: Context) -> tuple[Tensor, Tensor]:
    """Mean and variance of an effect's error at signal `u`."""
    if isinstance(effect, Quantize):
        noise = at.noise_level * as_tensor(effect.error_std) if effect.per else as_tensor(0.0)
        return torch.zeros_like(u), u.new_zeros(()) + as_tensor(effect.size()).square() / 12 + noise.square()
    if isinstance(effect, Additive):
        return torch.zeros_like(u), (at.noise_level * as_tensor(effect.sigma(u, at))).square()
    if isinstance(effect, GainOffset):
        spread = (effect.gain_std * u) ** 2 + as_tensor(effect.offset_std) ** 2
        return effect.apply(u, None, at) - u, as_tensor(at.noise_level) ** 2 * spread
    if effect.per is None:
        return effect.apply(u, None, at) - u, torch.zeros_like(u)
    raise ValueError(f"likelihood: the noise of {type(effect).__name__} is not Gaussian; it takes additive noise, GainOffset and Quantize")
