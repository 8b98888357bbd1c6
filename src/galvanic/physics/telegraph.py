"""Random telegraph noise: one trap that is full or empty."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.curves import Curve, evaluate
from galvanic.physics.faults import _quantile
from galvanic.physics.value import NonNegative, Positive, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class RandomTelegraph(Nonideality):
    r"""Two-state noise of a trap that takes a share of the current away while it is full, $y = x\,(1 + \lambda A\,(p - b))$.

    $b \in \{0, 1\}$ is the state of the trap, full with probability $p = \tau_e / (\tau_c + \tau_e)$, and $\lambda$ the noise level. The
    mean is kept: `x` is what is measured over a long time; an empty trap lies above it, a full one below. The standard deviation is
    $\lambda A \sqrt{p (1 - p)}\,|x|$.

    The gradient to the two times is 0, since whether a trap is full is a jump.

    Args:
        amplitude: $A$, relative to the signal, a number or a curve of the conductance just after programming.
        capture_s: $\tau_c$, mean time a trap stays empty.
        emission_s: $\tau_e$, mean time it stays full.
        per: snapshot for a trap slower than one evaluation, which holds its state; read for a fast one.

    Reference:
        Machlup, Noise in semiconductors: spectrum of a two-parameter random signal, J. Appl. Phys. 25, 1954.
    """

    amplitude: NonNegative | Curve
    capture_s: Positive = 1.0
    emission_s: Positive = 1.0
    per: Per = "snapshot"
    after_write: ClassVar[bool] = True

    def occupancy(self) -> Scalar:
        """$p$, the share of time a trap is full."""
        return self.emission_s / (self.capture_s + self.emission_s)

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        if z is None:
            return x
        p = as_tensor(self.occupancy()).detach()
        excess = p - (z < _quantile(p)).to(x.dtype)
        return x + x * at.noise_level * evaluate(self.amplitude, x if at.written is None else at.written) * excess
