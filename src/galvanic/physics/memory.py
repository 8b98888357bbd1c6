"""What happens to a conductance after it was asked for: programming error, drift, 1/f read noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from galvanic.physics.base import Additive, Context, Nonideality, Per
from galvanic.physics.curves import Curve, evaluate
from galvanic.physics.value import NonNegative, Positive, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class Programming(Additive):
    r"""Error of writing, $g = g_T + \sigma(g_T)\,z$.

    Args:
        std: $\sigma(g_T)$, a number or a curve, in units of full scale.

    Reference:
        Nandakumar et al., Phase-change memory models for deep learning training and inference, ICECS, 2019.
    """

    std: NonNegative | Curve
    per: Per = "write"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        return evaluate(self.std, x)


@dataclass(frozen=True, kw_only=True)
class Drift(Nonideality):
    r"""Power-law decay of a written conductance, $g(t) = g_0 (1 + t/t_0)^{-\nu}$ with $\nu = |\mu_\nu(g_T) + \sigma_\nu(g_T)\,z|$.

    Args:
        nu: mean exponent $\mu_\nu$, a number or a curve of the target conductance.
        nu_std: its spread over devices, $\sigma_\nu$.
        t0_s: seconds between a write and its first possible read, where the age is 0.

    Reference:
        Le Gallo et al., Collective structural relaxation in phase-change memory devices, Adv. Electron. Mater., 2018.
    """

    nu: Scalar | Curve
    nu_std: NonNegative | Curve = 0.0
    t0_s: Positive = 20.0
    per: Per = "write"
    after_write: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        target = x if at.target is None else at.target
        nu = as_tensor(evaluate(self.nu, target))
        if z is not None:
            nu = nu + at.noise_level * evaluate(self.nu_std, target) * z
        base = as_tensor(1 + at.age_s / self.t0_s).to(torch.promote_types(x.dtype, torch.float32))  # ONNX mixes no precisions
        return x * base ** -nu.abs()


@dataclass(frozen=True, kw_only=True)
class ReadNoise(Additive):
    r"""Low-frequency (1/f) noise of a conductance, $\sigma = g\,Q(g_w) \sqrt{\ln\frac{t + t_0 + t_r}{2 t_r}}$: it grows with log time.

    Args:
        q: $Q$, a number or a curve of the conductance just after programming $g_w$.
        t_read_s: duration of a read, $t_r$.
        t0_s: seconds between a write and its first possible read, at least one read.

    Raises:
        ValueError: a read that takes longer than `t0_s`.

    Reference:
        Joshi et al., Accurate deep neural network inference using computational phase-change memory, Nat. Commun. 11, 2020.
    """

    q: NonNegative | Curve
    t_read_s: Positive = 250e-9
    t0_s: Positive = 20.0
    per: Per = "snapshot"
    after_write: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.t0_s, Tensor) and not isinstance(self.t_read_s, Tensor) and self.t_read_s > self.t0_s:
            raise ValueError(f"ReadNoise.t_read_s = {self.t_read_s}: a read is no longer than t0_s = {self.t0_s}")

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        ratio = as_tensor((at.age_s + self.t0_s + self.t_read_s) / (2 * self.t_read_s))
        return x.abs() * evaluate(self.q, x if at.written is None else at.written) * ratio.log().sqrt()
