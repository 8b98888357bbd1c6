"""The whole loss: the task, what the hardware finds hard, and robustness, logged apart."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn import Analog
from galvanic.nn.convert import copied
from galvanic.physics.value import brief
from galvanic.train.robustness import Distillation
from galvanic.train.steps import Batch, Objective, cross_entropy
from galvanic.train.terms import OfScores, OfSignals, Pass, Term, asked_of


@dataclass(eq=False)
class Total:
    r"""An objective, $\mathcal{L} = \mathcal{L}_{task} + \lambda_h \sum_k s_k H_k + \lambda_r \sum_k s_k R_k$, with strengths $s$.

    Signals and predictions are seen by hooks in the task's own pass; where no term asks for them, no hook is set.

    >>> objective = Total(hardware=(WeightPrecision(bits=4),), robustness=(Divergence(),), lambda_h=0.1)            # doctest: +SKIP
    >>> for step in steps(model, loader, objective, optimizer):                                                   # doctest: +SKIP
    ...     print(objective.logs["WeightPrecision"])

    Args:
        task: calls the model once.
        hardware: the terms H.
        robustness: the terms R.
        lambda_h: $\lambda_h$.
        lambda_r: $\lambda_r$.
        distillation: shares the task with a teacher.
        teacher: who that is; it is copied, and neither trained nor put on another chip.
        written: the weights last written to the hardware, by layer, for `WriteRegularity`; set anew with every write.

    Attributes:
        logs: after a call, its 'task', every term by name (without strength), and the 'total', detached.

    Raises:
        ValueError: two terms of one name; a distillation without a teacher, or a teacher without a distillation; at the first call, a term
            that needs analog layers on a model without them.
    """

    task: Objective = cross_entropy
    hardware: tuple[Term, ...] = ()
    robustness: tuple[Term, ...] = ()
    lambda_h: float = 1.0
    lambda_r: float = 1.0
    distillation: Distillation | None = None
    teacher: nn.Module | None = None
    written: Mapping[str, Tensor] | None = None
    logs: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for side in ("hardware", "robustness"):
            terms = getattr(self, side)
            if not isinstance(terms, tuple | list) or not all(isinstance(term, Term) for term in terms):
                raise ValueError(f"Total: {side} = {brief(terms)}: terms in a tuple, as in (WeightPrecision(bits=4),)")
        for name, size in (("lambda_h", self.lambda_h), ("lambda_r", self.lambda_r)):
            if not isfinite(size) or size < 0:
                raise ValueError(f"Total: {name} = {size}: a finite number from 0 on")
        names = [term.name for term in self._terms()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"Total: two terms {twice}, which would be logged as one; every term once")
        if (self.distillation is None) != (self.teacher is None):
            raise ValueError("Total: distillation and teacher go together, Total(distillation=Distillation(), teacher=network)")
        self.teacher = None if self.teacher is None else copied(self.teacher).requires_grad_(False).eval()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        for term in self._terms():
            batch = term.batch(batch)
        wanted = self.distillation is not None or any(isinstance(term, OfScores) for term in self._terms())
        with _watched(model, self._terms(), scores=wanted) as (seen, scores):
            task = self.task(model, batch)
        done = Pass(model, batch, scores[-1] if scores else None, seen, self.written)
        logs, total = {"task": task}, task
        if self.distillation is not None and self.teacher is not None:
            logs["Distillation"] = self.distillation.value(done, self.teacher)
            total = torch.lerp(task, logs["Distillation"], self.distillation.share)
        for size, terms in ((self.lambda_h, self.hardware), (self.lambda_r, self.robustness)):
            for term in terms:
                logs[term.name] = term.value(done)
                total = total + size * term.strength * logs[term.name]
        self.logs = {name: value.detach() for name, value in (logs | {"total": total}).items()}
        return total

    def _terms(self) -> tuple[Term, ...]:
        return (*self.hardware, *self.robustness)


@contextmanager
def _watched(model: nn.Module, terms: tuple[Term, ...], *, scores: bool) -> Iterator[tuple[dict[str, list[Tensor]], list[Any]]]:
    """Within it, signal terms see every call of an analog layer, and the model's results are kept."""
    signal_terms = [term for term in terms if isinstance(term, OfSignals)]
    seen: dict[str, list[Tensor]] = {term.name: [] for term in signal_terms}
    results: list[Any] = []

    def look(layer: Analog, args: Any, kwargs: Any, y: Tensor) -> None:
        inputs = (*args, *kwargs.values())
        how = layer.how(*inputs)
        parts = {share: _first(share, layer, inputs[0], y) for share in {term.share for term in signal_terms}}  # cut once for all
        for term in signal_terms:
            if (value := term.of(layer, *parts[term.share], *how)) is not None:
                seen[term.name].append(value)

    layers = asked_of(model, signal_terms[0].name).values() if signal_terms else ()
    hooks = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
    if scores:
        hooks.append(model.register_forward_hook(lambda module, args, result: results.append(result)))
    try:
        yield seen, results
    finally:
        for hook in hooks:
            hook.remove()


def _first(share: float, layer: Analog, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The first examples of a batch; an input without a batch is one."""
    if share == 1 or x.ndim == 1 + layer.trailing:
        return x, y
    n = ceil(share * len(x))
    return x[:n], y[:n]
