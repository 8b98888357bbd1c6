"""Digital-to-analog and analog-to-digital conversion."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.autograd import forward_ad

from galvanic.physics.base import Context, Nonideality
from galvanic.physics.value import NonNegative, Positive, Scalar


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `like`."""
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:  # forward-mode gradients are taken under no_grad, too
        return value
    return value.detach() + (like - like.detach())


@dataclass(frozen=True, kw_only=True)
class Quantize(Nonideality):
    r"""A uniform converter, $y = s\,\mathrm{round}(\mathrm{clip}(x / s, -Q_n, Q_p)) + \epsilon$.

    With `bits` $b$, signed, the levels are $s k$, $|k| \le 2^{b-1} - 1$, $s = \mathrm{full\ scale} / (2^{b-1} - 1)$: sign and magnitude,
    zero is one of them. Unsigned they are $s k$, $0 \le k \le 2^b - 1$. In two's complement they are $s k$, $-2^{b-1} \le k < 2^{b-1}$,
    $s = \mathrm{full\ scale} / 2^{b-1}$, a power of two where the full scale is one: sums and products of such codes are exact in floating
    point. With `step` instead of bits there is no clipping: ``step=2**-b`` is the published form $\mathrm{round}(x 2^b) / 2^b + \epsilon$.

    The gradient is the straight-through one: 1 where the nearest level is one of the converter's, so up to half a step beyond the range,
    and 0 where it clips; to the full scale it is (round(v) - v) / Q_p there, with v = x / s, and the end of the range beyond (+-1; 0 below
    an unsigned zero).

    Args:
        bits: resolution; either it or `step`.
        step: $s$, in units of the layer's range.
        signed: whether negative values are represented.
        twos_complement: whether the code is an integer's, with one more negative level than positive ones, and no level at full scale.
        full_scale: largest value represented, in units of the layer's range.
        stochastic: rounds up with the probability that makes the mean exact; not scaled by the noise level.
        error_std: standard deviation of $\epsilon$, in units of the layer's range.

    Raises:
        ValueError: neither or both of `bits` and `step`; one signed bit.

    Reference:
        Bengio et al., Estimating or propagating gradients through stochastic neurons, arXiv 1308.3432, 2013 (straight-through);
        Esser et al., Learned step size quantization, ICLR, 2020 (the gradient to the scale).
    """

    bits: Annotated[int, Ge(1), Le(24)] | None = None
    step: Positive | None = None
    signed: bool = True
    twos_complement: bool = False
    full_scale: Positive = 1.0
    stochastic: bool = False
    error_std: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits is None) == (self.step is None):
            raise ValueError("Quantize takes either bits or step, and one of them")
        if self.twos_complement and (self.bits is None or not self.signed):
            raise ValueError("Quantize.twos_complement is a code of signed bits: give bits, and leave signed=True")
        if self.bits == 1 and self.signed:
            raise ValueError("Quantize.bits = 1: a signed converter with a level at zero needs 2 bits or more; or signed=False")
        if self._random and self.per is None:
            object.__setattr__(self, "per", "read")

    @property
    def _random(self) -> bool:
        return self.stochastic or isinstance(self.error_std, Tensor) or self.error_std > 0

    def levels(self) -> tuple[int, int] | None:
        """The smallest and the largest code; None without bits."""
        if self.bits is None:
            return None
        if not self.signed:
            return 0, 2**self.bits - 1
        top = 2 ** (self.bits - 1) - 1
        return (-top - 1 if self.twos_complement else -top), top

    def size(self) -> Scalar:
        """The step $s$, in units of the layer's range."""
        if self.step is not None:
            return self.step
        assert self.bits is not None
        return self.full_scale / (2 ** (self.bits - self.signed) - (not self.twos_complement))

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Two draws stacked, (2, \\*shape): uniform on [-0.5, 0.5) for the rounding, standard normal for the error."""
        uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype) - 0.5
        return torch.stack([uniform, super().draw(shape, generator, device=device, dtype=dtype)])

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        codes = self.levels()
        step = self.size()
        v = x / step
        code = (v + z[0] if z is not None and self.stochastic else v).round()
        if codes is not None:
            low, high = codes
            code, v = code.clamp(low, high), v.clamp(low - 0.5, high + 0.5)
        y = straight_through(code, v) * step
        return y if z is None or not self._random else y + at.noise_level * self.error_std * z[1]


@dataclass(frozen=True, kw_only=True)
class Saturate(Nonideality):
    r"""Hard saturation of an amplifier, $y = \mathrm{clip}(x, L_-, L_+)$.

    Args:
        limit: both limits, $L_+ = -L_- = L$, in units of full scale.
        low: $L_-$, where it is another.
        high: $L_+$, where it is another.

    Raises:
        ValueError: a lower limit that is not below the upper one.
    """

    limit: Positive = 1.0
    low: Scalar | None = None
    high: Scalar | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self._low, self._high
        if not isinstance(low, Tensor) and not isinstance(high, Tensor) and low >= high:
            raise ValueError(f"Saturate: low = {low:g} is not below high = {high:g}")

    @property
    def _low(self) -> Scalar:
        return -self.limit if self.low is None else self.low

    @property
    def _high(self) -> Scalar:
        return self.limit if self.high is None else self.high

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return torch.clamp(torch.clamp(x, min=self._low), max=self._high)  # one by one: the two may be of different kinds


@dataclass(frozen=True, kw_only=True)
class Compress(Nonideality):
    r"""Soft saturation, of a differential pair, $y = L \tanh(x / L)$: straight at zero, $\pm L$ far out.

    Args:
        limit: $L$, in units of full scale.
    """

    limit: Positive = 1.0

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return self.limit * torch.tanh(x / self.limit)
