"""The shape of the loss around trained weights: its largest curvature, and its course along a direction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from galvanic.nn import Analog, reads, unfused
from galvanic.nn.convert import copied
from galvanic.physics.value import brief
from galvanic.seeding import generator
from galvanic.train.steps import Batch, Objective

Direction = Mapping[str, Tensor]
"""A step of every parameter that is moved, by name."""


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """The largest eigenvalue of a Hessian as it was found.

    Args:
        value: never above the true one but for rounding.
        residual: an eigenvalue lies within this distance of it.
        products: Hessian-vector products that it took.
        converged: whether the residual is below the tolerance.
    """

    value: float
    residual: float
    products: int
    converged: bool


def top_eigenvalue(
    model: nn.Module, batches: Iterable[Batch], objective: Objective, *, iterations: int = 100, tolerance: float = 1e-3
) -> Eigenvalue:
    r"""The largest eigenvalue $\lambda_\mathrm{max}$ of the Hessian of the loss to all trainable parameters: the sharpness of a minimum.

    Largest in algebraic order: a strong negative curvature does not count. It is the largest Ritz value of Lanczos' iteration with full
    orthogonalisation, whose every step is one exact Hessian-vector product by double backward, as in power iteration; it is never below
    what power iteration has after as many products, and needs no care for signs. The vectors of all steps are kept.

    An analog model stays on its chip; noise per read is off, and straight-through derivatives stand for those of rounding.
    $\lambda_\mathrm{max}$ depends on how the weights are scaled: compare networks of one architecture and normalisation.

    Args:
        model: left as it is; a copy is run in evaluation mode.
        batches: the loss is the mean of the objective over them, each counting the same.
        objective: the loss of a batch.
        iterations: most Hessian-vector products.
        tolerance: of the residual, relative to the largest eigenvalue in magnitude.

    Raises:
        ValueError: no batch, no trainable parameter, a loss that is no number, derivatives that are not finite.
        RuntimeError: something in the model has no second derivative (`WireResistance`, `NonlinearCrossbar`).

    Reference:
        Lanczos, An iteration method for the solution of the eigenvalue problem of linear differential and integral operators, J. Res.
        Natl. Bur. Stand. 45, 1950. Pearlmutter, Fast exact multiplication by the Hessian, Neural Comput. 6, 1994.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations}: one or more")
    batches = list(batches)
    if not batches:
        raise ValueError("top_eigenvalue: the batches are empty")
    with _still(model) as still:
        parameters = list(_moved(still).values())
        size = sum(p.numel() for p in parameters)
        v = torch.randn(size, generator=generator("galvanic", "sharpness"), dtype=torch.float64).to(parameters[0])
        basis = [v / v.norm()]
        diagonal: list[float] = []
        beside: list[float] = []
        while True:
            w = _hessian_times(basis[-1], parameters, still, batches, objective)
            diagonal.append(float(w @ basis[-1]))
            for b in [*basis, *basis]:  # twice: once leaves what rounding brought in
                w = w - (w @ b) * b
            rest = float(w.norm())
            values, vectors = eigh_tridiagonal(diagonal, beside)
            residual = rest * abs(float(vectors[-1, -1]))
            converged = len(basis) == size or bool(residual <= tolerance * max(abs(values[0]), abs(values[-1])))
            if converged or len(basis) == iterations:
                return Eigenvalue(value=float(values[-1]), residual=residual, products=len(basis), converged=converged)
            beside.append(rest)
            basis.append(w / rest)


def random_direction(model: nn.Module, number: int) -> dict[str, Tensor]:
    r"""A random direction in which every filter has the norm of the filter it moves, $d_i \leftarrow d_i\,\|w_i\| / \|d_i\|$.

    A filter is what belongs to one element of the first dimension of a weight; biases and other vectors are not moved. A radius of 0.1
    is then 10 % of every filter.

    Args:
        model: whose trainable parameters are to be moved.
        number: of the direction; the same one is the same direction every time.

    Reference:
        Li, Xu, Taylor, Studer, Goldstein, Visualizing the loss landscape of neural nets, NeurIPS, 2018.
    """
    direction = {}
    for name, w in _moved(model).items():
        if w.ndim > 1:
            d = torch.randn(w.shape, generator=generator("galvanic", "direction", number, name), dtype=torch.float64).to(w)
            dims = tuple(range(1, w.ndim))
            norms = w.detach().square().sum(dims, keepdim=True).sqrt() / d.square().sum(dims, keepdim=True).sqrt()
            direction[name] = d * norms
    return direction


def ascent_direction(model: nn.Module, batches: Iterable[Batch], objective: Objective) -> dict[str, Tensor]:
    r"""The direction in which the loss rises fastest, $\nabla L / \|\nabla L\|_2$ over all parameters jointly.

    A radius along it is the $\rho$ of sharpness-aware minimisation.

    Args:
        model: left as it is; as in `top_eigenvalue`.
        batches: likewise.
        objective: likewise.

    Raises:
        ValueError: as in `top_eigenvalue`; a gradient of zero.

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur, Sharpness-aware minimization for efficiently improving generalization, ICLR, 2021.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("ascent_direction: the batches are empty")
    with _still(model) as still:
        moved = _moved(still)
        gradients = [torch.zeros_like(p) for p in moved.values()]
        for batch in batches:
            parts = torch.autograd.grad(_loss(still, batch, objective), list(moved.values()), materialize_grads=True)
            gradients = [g + part for g, part in zip(gradients, parts, strict=True)]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    if not norm.isfinite() or norm == 0:
        raise ValueError(f"ascent_direction: the gradient has norm {float(norm)}, which gives no direction")
    return {name: g / norm for name, g in zip(moved, gradients, strict=True)}


@torch.no_grad()
def loss_along(
    model: nn.Module, batch: Batch, objective: Objective, direction: Direction, radii: Sequence[float]
) -> list[dict[str, float]]:
    r"""A row for every radius $r$: the loss at $\theta + r\,d$, with keys radius, distance ($r \|d\|_2$) and loss.

    Args:
        model: left as it is; as in `top_eigenvalue`.
        batch: what the objective takes.
        objective: the loss.
        direction: $d$; parameters without a step stay.
        radii: of either sign.

    Raises:
        ValueError: no radius, or one that is not finite; a step of no parameter, of another shape, or not finite.
    """
    if not len(radii) or not all(isfinite(r) for r in radii):
        raise ValueError(f"radii = {brief(radii)}: one finite number or more")
    rows = []
    with _still(model) as still:
        parameters = dict(still.named_parameters())
        for name, d in direction.items():
            if name not in parameters or d.shape != parameters[name].shape or not d.isfinite().all():
                raise ValueError(f"the direction's {name!r} {tuple(d.shape)}: a finite step of a parameter, of its shape")
        start = {name: parameters[name].clone() for name in direction}
        length = sum(float(d.double().square().sum()) for d in direction.values()) ** 0.5
        for r in radii:
            for name, d in direction.items():
                parameters[name].copy_(start[name] + r * d)
            rows.append({"radius": float(r), "distance": float(r * length), "loss": float(_loss(still, batch, objective))})
    return rows


@contextmanager
def _still(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in evaluation mode, without noise per read, and open to second derivatives while it lasts."""
    still = copied(model).eval()
    with ExitStack() as stack:
        stack.enter_context(unfused())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels of attention have a first derivative only
        if any(isinstance(m, Analog) for m in still.modules()):
            stack.enter_context(reads(still, "off"))
        yield still


def _moved(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no trainable parameter")
    return parameters


def _loss(model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
    loss: Any = objective(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"the objective gives {brief(loss)}: a tensor of one number")
    return loss.squeeze()


def _hessian_times(v: Tensor, parameters: list[nn.Parameter], model: nn.Module, batches: list[Batch], objective: Objective) -> Tensor:
    """H v of the mean loss over the batches, by differentiating the gradient's product with v."""
    total = torch.zeros_like(v)
    for batch in batches:
        gradient = torch.autograd.grad(_loss(model, batch, objective), parameters, create_graph=True, materialize_grads=True)
        along = torch.cat([g.flatten() for g in gradient]) @ v
        if along.requires_grad:  # else the loss is linear in the parameters
            second = torch.autograd.grad(along, parameters, materialize_grads=True)
            total += torch.cat([h.flatten() for h in second])
    if not total.isfinite().all():
        raise ValueError("the second derivatives of the loss are not finite; is there a NaN in the data or in the weights?")
    return total / len(batches)
