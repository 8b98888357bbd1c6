"""Writing by pulses, each followed by a look at what it did."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.curves import Curve, evaluate
from galvanic.physics.value import NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class WriteVerify(Nonideality):
    r"""Program-and-verify: pulses until a read of the conductance $g$ is close enough to the target $g_T$, or none are left.

    From the erased device the first pulse leads to $g = a_+ g_T + \sigma_p\,\zeta_1$. Then, as long as the verifying read
    $m_k = g + \sigma_v\,\xi_k$ is off by more than the window $w$, there is another pulse,

    $$ g \leftarrow g + a_\pm\,(g_T - m_k) + \sigma_p\,\zeta_{k+1}, $$

    with $a_+$ where the conductance must rise (SET) and $a_-$ where it must fall (RESET). A device that was accepted is left alone; the
    last pulse is not verified. Of a signed weight it is the magnitude that is written. The two gains are all there is to the asymmetry of
    writing; gains below 1 approach the target from below, and without randomness stop at the edge of the window.

    Args:
        pulses: most pulses a device gets.
        window: $w$, largest error that is accepted, a number or a curve of the target, in units of full scale.
        pulse_std: $\sigma_p$, error of a pulse, a number or a curve of the target.
        verify_std: $\sigma_v$, error of a verifying read, likewise.
        set_gain: $a_+$, share of a wanted increase that a pulse brings; 1 is exact.
        reset_gain: $a_-$, share of a wanted decrease.
    """

    pulses: Annotated[int, Ge(1)]
    window: NonNegative | Curve
    pulse_std: NonNegative | Curve
    verify_std: NonNegative | Curve = 0.0
    set_gain: Positive = 1.0
    reset_gain: Positive = 1.0
    per: Per = "write"

    @property
    def stacked(self) -> int:
        """2 pulses - 1: the first pulse, then in turn a verifying read and the next pulse."""
        return 2 * self.pulses - 1

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        target = x.abs()
        window, pulse_std, verify_std = (evaluate(p, x) for p in (self.window, self.pulse_std, self.verify_std))
        z = x.new_zeros((self.stacked, *[1] * x.ndim)) if z is None else at.noise_level * z
        g = self.set_gain * target + pulse_std * z[0]
        wrong = torch.ones_like(x, dtype=torch.bool)
        for k in range(1, 2 * self.pulses - 1, 2):
            wanted = target - (g + verify_std * z[k])
            wrong = wrong & (wanted.abs() > window)
            pulse = self.set_gain * wanted.clamp(min=0) + self.reset_gain * wanted.clamp(max=0) + pulse_std * z[k + 1]
            g = torch.where(wrong, g + pulse, g)
        return torch.where(x < 0, -g, g)
