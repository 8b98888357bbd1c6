"""Residual layers: the plain sum, and the two stochastic ones, with noise of learned physics."""

import math

import torch
from torch import Tensor, nn

from galvanic.nn.adaptive import AdaptiveNoise, channel_axis


class ResidualBlock(nn.Module):
    r"""A plain residual block, $y = \mathrm{relu}(F(x) + S(x))$.

    Args:
        inner: $F$.
        shortcut: $S$, where the shapes of `x` and $F(x)$ differ; None: the signal itself.

    Reference:
        He et al., Deep residual learning for image recognition, CVPR, 2016.
    """

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.shortcut = shortcut
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.inner(x) + (x if self.shortcut is None else self.shortcut(x)))


class GatedResidual(nn.Module):
    r"""A stochastic residual layer with a learned gate,

    $$ y = u + N(u), \qquad u = a \odot S(x) + (1 - a) \odot F(x), \qquad a = \mathrm{sigmoid}(\alpha) \in (0, 1) $$

    with a gate $a$ for every channel, whose parameter is `gate_logit` $\alpha$.

    Args:
        inner: $F$, any module.
        channels: number of channels, or features, of its result.
        noise: $N$; None for the gate alone.
        shortcut: $S$, where the shapes of `x` and $F(x)$ differ; None: the signal itself.
        gate: where $a$ starts.
        axis: where the channels are; None: axis 1 of signals with four dimensions or more, (n, channels, \*space), and the last axis of
            others, (n, features) or (n, tokens, features). The signal of a one-dimensional convolution wants 1, and so does its noise.

    Raises:
        ValueError: a gate outside of (0, 1); in the call, shapes that do not fit.
    """

    def __init__(
        self,
        inner: nn.Module,
        channels: int,
        *,
        noise: AdaptiveNoise | None = None,
        shortcut: nn.Module | None = None,
        gate: float = 0.5,
        axis: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < gate < 1:
            raise ValueError(f"GatedResidual: gate = {gate}: a number between 0 and 1, both excluded")
        self.inner = inner
        self.shortcut = shortcut
        self.noise = noise
        self.axis = axis
        self.gate_logit = nn.Parameter(torch.full((channels,), math.log(gate / (1 - gate))))

    @property
    def gate(self) -> Tensor:
        """$a$, one a channel."""
        return self.gate_logit.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        around, through = x if self.shortcut is None else self.shortcut(x), self.inner(x)
        _refuse_other_shape("GatedResidual", "the shortcut", around, through, "give a shortcut that makes them alike")
        axis = channel_axis(through, self.axis)
        if through.shape[axis] != len(self.gate_logit):
            raise ValueError(
                f"GatedResidual: channels = {len(self.gate_logit)}, but the inner module gives {tuple(through.shape)}, whose axis {axis} "
                f"has {through.shape[axis]}; axis= says where the channels are"
            )
        a = self.gate.to(torch.promote_types(around.dtype, through.dtype)).view(-1, *[1] * (through.ndim - 1 - axis))
        u = a * around + (1 - a) * through
        return u if self.noise is None else u + self.noise(u)

    def extra_repr(self) -> str:
        return f"channels={len(self.gate_logit)}"


class AdditiveResidual(nn.Module):
    r"""A stochastic residual layer with learned strengths, $h' = f(h) + \alpha W h + \beta P(h; \theta)$.

    Args:
        inner: $f$, any module.
        transform: $W$, such as ``nn.Linear(n, m, bias=False)``, a convolution or ``nn.Identity()``.
        perturbation: $P$, any module that returns what is added, such as `AdaptiveNoise`.
        alpha: where $\alpha$ starts.
        beta: where $\beta$ starts.

    Raises:
        ValueError: in the call, shapes that do not fit.
    """

    def __init__(self, inner: nn.Module, transform: nn.Module, perturbation: nn.Module, *, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.inner = inner
        self.transform = transform
        self.perturbation = perturbation
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))
        self.beta = nn.Parameter(torch.full((1,), float(beta)))
        self._beta = float(beta)

    def forward(self, h: Tensor) -> Tensor:
        through, around, added = self.inner(h), self.transform(h), self.perturbation(h)
        _refuse_other_shape("AdditiveResidual", "the transform", around, through, "they must be alike")
        _refuse_other_shape("AdditiveResidual", "the perturbation", added, through, "they must be alike")
        return through + self.alpha.to(around.dtype) * around + self.beta.to(added.dtype) * added

    def anchor(self) -> Tensor:
        r"""Half the squared deviation of $\beta$ from its start, over the tolerance of the noise, where $P$ is an `AdaptiveNoise`:
        a strength of physical noise is no more the network's to choose than its physics. Otherwise 0."""
        if not isinstance(self.perturbation, AdaptiveNoise) or not self._beta:
            return torch.zeros_like(self.beta).squeeze(0)
        return ((self.beta.squeeze(0) / self._beta - 1) / self.perturbation.tolerance).square() / 2


def anchor(model: nn.Module) -> Tensor:
    """The sum of the anchors of all stochastic layers of a model, a scalar to be added to the loss; 0 where there are none."""
    parts = [module.anchor() for module in model.modules() if isinstance(module, AdaptiveNoise | AdditiveResidual)]
    return sum(parts, torch.zeros(()))


def _refuse_other_shape(layer: str, what: str, got: Tensor, through: Tensor, hint: str) -> None:
    if got.shape != through.shape:
        raise ValueError(f"{layer}: {what} gives {tuple(got.shape)} and the inner module {tuple(through.shape)}; {hint}")
