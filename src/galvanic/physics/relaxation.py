"""Relaxation: filaments settle after they were written."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.curves import Curve, evaluate
from galvanic.physics.value import NonNegative, Positive, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class Relaxation(Nonideality):
    r"""Shift and spread of a written conductance that grow with log time, $g(t) = g_0 + \mu(t) + \sigma(t)\,z$ with

    $$ \mu(t) = m_0 + m_1 \ln(1 + t/t_0), \qquad \sigma(t) = s_0 + s_1 \ln(1 + t/t_0). $$

    A device keeps its $z$: one that has gone far goes farther. Of a signed weight the magnitude is shifted. With $s_0$ the spread at the
    first read is part of it; beside a `Programming` that was measured at $t_0$, $s_0$ is 0 (the two spreads then add in quadrature).

    Args:
        shift: $m_0$, a number or a curve of the target conductance, in units of full scale, as the three below.
        shift_slope: $m_1$, per e-fold of time.
        std: $s_0$.
        std_slope: $s_1$, per e-fold of time.
        t0_s: seconds between a write and its first possible read, where the age is 0.

    Reference:
        Wan et al., A compute-in-memory chip based on resistive random-access memory, Nature 608, 2022 (spread at 1 s, 1 day, 2 days).
    """

    shift: Scalar | Curve = 0.0
    shift_slope: Scalar | Curve = 0.0
    std: NonNegative | Curve = 0.0
    std_slope: Scalar | Curve = 0.0
    t0_s: Positive = 1.0
    per: Per = "write"
    after_write: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        target = x if at.target is None else at.target
        e_folds = as_tensor(at.age_s / self.t0_s).log1p()
        shift = evaluate(self.shift, target) + evaluate(self.shift_slope, target) * e_folds
        y = x + (1 - 2 * (target < 0).to(x.dtype)) * shift  # a device at zero moves, too: no sign()
        if z is None:
            return y
        return y + at.noise_level * (evaluate(self.std, target) + evaluate(self.std_slope, target) * e_folds) * z
