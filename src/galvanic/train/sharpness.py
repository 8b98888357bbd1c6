"""Sharpness-aware minimisation: the gradient at the worst point nearby."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from galvanic.physics import Value
from galvanic.physics.value import brief
from galvanic.train.passes import kept_statistics
from galvanic.train.steps import Batch, Gradient, Objective, backprop

Radius = Callable[[nn.Module], float]
"""The radius at this step, of the model."""


@dataclass(frozen=True, kw_only=True)
class SharpnessAware(Value):
    r"""The gradient at the worst point nearby, to first order, $\nabla L(v + \epsilon)$, $\epsilon = \rho\, g / \|g\|$, $g = \nabla L(v)$.

    The norm is over all trainable parameters together. The adaptive form measures each parameter by its size,
    $\epsilon = \rho\, v^2 g / \| |v|\, g \|$ (products by element). Parameters that are frozen or get no gradient stay; without any
    gradient the second pass is at $v$. $v$ comes back bit for bit, also from a pass that raises; running statistics are updated by the
    first pass only. The gradient is added to what is there already, as backpropagation does; the loss returned is L(v). It costs two steps.

    As parameters may be controls of a device (currents, phases) and `source` may read a device, this is sharpness-aware training, too.

    Args:
        radius: $\rho$; a function of the model where it changes from step to step.
        adaptive: whether it is the adaptive form, for which radii are some ten times larger.
        source: gives both gradients.
        same_draws: both passes see the same draws of the global streams (noise per read, dropout): else the second gradient is taken at a
            point that is the worst for other noise, and the two differ where $\epsilon$ is zero.

    Raises:
        ValueError: a sparse gradient, a radius that is negative or no number.

    Reference:
        Foret et al., Sharpness-aware minimization for efficiently improving generalization, ICLR, 2021; Kwon et al., ASAM: adaptive
        sharpness-aware minimization for scale-invariant learning of deep neural networks, ICML, 2021; Xu et al., Nat. Commun. 17, 2026
        (on controls).
    """

    radius: Annotated[float, Ge(0)] | Radius = 0.05
    adaptive: bool = False
    source: Gradient = backprop
    same_draws: bool = True

    def __call__(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        radius = self._radius_of(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        given = {name: p.grad for name, p in trainable.items()}
        try:
            _set_gradients(trainable, {})
            with _same_draws(trainable) if self.same_draws else nullcontext():
                loss = self.source(model, batch, objective)
            moved = {name: p for name, p in trainable.items() if p.grad is not None}
            before = {name: p.detach().clone() for name, p in moved.items()}
            slopes = {name: _dense(name, p.grad) for name, p in moved.items()}
        finally:
            _set_gradients(trainable, given)
        try:
            self._ascend(moved, slopes, radius)
            with kept_statistics(model):
                self.source(model, batch, objective)
        finally:
            with torch.no_grad():
                for name, p in moved.items():
                    p.copy_(before[name])
        return loss

    def _radius_of(self, model: nn.Module) -> float:
        if not callable(self.radius):
            return self.radius
        radius = self.radius(model)
        if not isinstance(radius, float | int) or not 0 <= radius < float("inf"):
            raise ValueError(f"SharpnessAware: its radius gives {brief(radius)}; a finite number from 0 on")
        return radius

    @torch.no_grad()
    def _ascend(self, parameters: dict[str, nn.Parameter], slopes: dict[str, Tensor], radius: float) -> None:
        measured = [g * parameters[name].abs() if self.adaptive else g for name, g in slopes.items()]
        norm = _norm(measured)
        if not torch.finfo(torch.float32).tiny < norm < float("inf"):  # there is no direction; NaN is for the second pass to show again
            return
        for name, p in parameters.items():
            if self.adaptive:
                p.addcmul_(p.square(), slopes[name], value=radius / norm)
            else:
                p.add_(slopes[name], alpha=radius / norm)


def _norm(tensors: list[Tensor]) -> float:
    """Of all together; squares of half precision would overflow."""
    parts = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack([part.to(parts[0]) for part in parts]))) if parts else 0.0


def _dense(name: str, gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise ValueError(f"SharpnessAware: the gradient of {name} is sparse; Embedding(..., sparse=False) gives a dense one")
    return gradient


def _set_gradients(parameters: dict[str, nn.Parameter], gradients: dict[str, Any]) -> None:
    for name, p in parameters.items():
        p.grad = gradients.get(name)


def _same_draws(parameters: dict[str, nn.Parameter]) -> AbstractContextManager[Any]:
    """After it, the global streams stand where they stood before."""
    accelerators = {p.device for p in parameters.values()} - {torch.device("cpu")}
    if not accelerators:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[d.index for d in accelerators], device_type=next(iter(accelerators)).type)
