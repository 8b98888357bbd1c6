"""A training loop as a generator: logging, schedules and early stop are the body of the caller's own loop."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn import Analog, program

Batch = Any
Objective = Callable[[nn.Module, Batch], Tensor]
"""Loss of a model on a batch."""
Gradient = Callable[[nn.Module, Batch, Objective], Tensor]
"""Fills the gradients of the model, and returns the loss."""


class NonFinite(ArithmeticError):
    """Training met NaN or infinity; the message names the batch, the parameter or the layer where it began."""


@dataclass(frozen=True)
class Step:
    """One step of training, just done.

    Args:
        index: its number.
        loss: detached.
        batch: what it was done on.
    """

    index: int
    loss: Tensor
    batch: Batch


def backprop(model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
    """The gradient by backpropagation through the model."""
    loss = objective(model, batch)
    loss.backward()
    return loss.detach()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of class scores (n, classes) against labels (n,)."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def steps(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    gradient: Gradient = backprop,
    chips: Iterable[int] | None = None,
    first: int = 0,
) -> Iterator[Step]:
    """Train a model, step by step; an analog model sits on another chip in each.

    >>> for step in steps(model, loader, cross_entropy, optimizer):                                               # doctest: +SKIP
    ...     print(step.index, float(step.loss))

    Args:
        model: digital or analog; its mode (train, eval) is the caller's.
        batches: of what the objective takes.
        objective: the loss.
        optimizer: any of torch's, over the model's parameters.
        gradient: where the gradient comes from.
        chips: numbers of the chips to train on, in turn; None for a fresh anonymous chip each step.
        first: number of the first step, where a training goes on.

    Raises:
        ValueError: there is no batch; an empty list of chips, or chips for a digital model.
        NonFinite: before the weights are touched by it.
    """
    chips = None if chips is None else tuple(chips)
    if chips == ():
        raise ValueError("steps: chips is empty; None trains on fresh anonymous chips")
    analog = any(isinstance(m, Analog) for m in model.modules())
    if chips and not analog:
        raise ValueError("steps: chips are given, but the model has no analog layer; convert(model, profile, chip=...) makes one")
    index = first - 1
    for index, batch in enumerate(batches, first):
        if analog:
            program(model, chips[index % len(chips)] if chips else None, write=index // len(chips) if chips else 0)
        optimizer.zero_grad()
        loss = gradient(model, batch, objective)
        _stop_unless_finite(model, batch, loss, index)
        optimizer.step()
        yield Step(index, loss, batch)
    if index < first:
        raise ValueError("steps: the batches are empty")


def _stop_unless_finite(model: nn.Module, batch: Batch, loss: Tensor, index: int) -> None:
    gradients = [g for _, g in _gradients(model)]
    largest = torch._foreach_norm(gradients, math.inf) if gradients else ()  # not the root of the sum of squares, which may overflow
    if not bool(torch.stack([loss.reshape(()), *largest]).isfinite().all()):
        raise NonFinite(f"step {index}: {_first_non_finite(model, batch, loss)}")


def _gradients(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What there is of gradients, by parameter; of a sparse one, the values that it holds."""
    found = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None and p.grad.numel()]
    return [(name, g._values() if g.is_sparse else g) for name, g in found]


@torch.no_grad()
def _first_non_finite(model: nn.Module, batch: Batch, loss: Tensor) -> str:
    """Where it began: in the batch, a parameter, the output of a layer, the loss, or a gradient."""
    tensors = [t for t in (batch if isinstance(batch, tuple | list) else [batch]) if isinstance(t, Tensor)]
    for place, tensor in enumerate(tensors):
        if not tensor.isfinite().all():
            where = (~tensor.isfinite()).nonzero()[0].tolist()
            return f"the batch holds {tensor[tuple(where)].item()} (tensor {place}, index {where})"
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name} is not finite"
    layer = _first_bad_layer(model, tensors[0]) if tensors else None
    if layer is not None:
        return f"the output of layer {layer} is not finite"
    if not loss.isfinite():
        return "the loss is not finite, every layer's output is"
    bad = [name for name, g in _gradients(model) if not g.isfinite().all()]
    return f"the gradient of {bad[-1]} is not finite"  # backpropagation came there first


def _first_bad_layer(model: nn.Module, x: Tensor) -> str | None:
    bad: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def look(module: nn.Module, inputs: Any, y: Any, name: str = name) -> None:
            if isinstance(y, Tensor) and not y.isfinite().all():
                bad.append(f"{name or 'model'} ({type(module).__name__})")

        hooks.append(module.register_forward_hook(look))
    try:
        model(x)
    except Exception:  # the objective may call the model in another way; the search is a courtesy
        return bad[0] if bad else None
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else None
