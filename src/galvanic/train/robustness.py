"""Terms of a loss that ask noisy predictions to agree, and a teacher's opinion of them."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from galvanic.nn import reads
from galvanic.physics import Value
from galvanic.train.passes import digital_products, kept_statistics
from galvanic.train.terms import OfScores, Pass, asked_of


def kl(p: Tensor, q: Tensor) -> Tensor:
    r"""Mean Kullback-Leibler divergence, $\sum_c p_c \log(p_c / q_c)$, of the distributions that class scores (n, classes, ...) mean."""
    _refuse_one_class(p)
    return _relative_entropy(p.log_softmax(1), q.log_softmax(1))


def js(p: Tensor, q: Tensor) -> Tensor:
    r"""Mean Jensen-Shannon divergence, $\frac12 KL(p \| m) + \frac12 KL(q \| m)$, $m = \frac12 (p + q)$: symmetric, at most $\log 2$."""
    _refuse_one_class(p)
    p, q = p.log_softmax(1), q.log_softmax(1)
    m = torch.logaddexp(p, q) - log(2)
    return (_relative_entropy(p, m) + _relative_entropy(q, m)) / 2


def mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean squared difference of scores."""
    return F.mse_loss(p, q)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def _refuse_one_class(scores: Tensor) -> None:
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise ValueError(
            f"a divergence is of class scores (n, classes, ...), two classes or more, not {tuple(scores.shape)}; MSE() takes any"
        )


@dataclass(frozen=True, kw_only=True)
class Distance(Value, ABC):
    """How far predictions are from others."""

    @abstractmethod
    def __call__(self, p: Tensor, q: Tensor) -> Tensor:
        """Of scores q from scores p."""


@dataclass(frozen=True, kw_only=True)
class KL(Distance):
    """The Kullback-Leibler divergence, `kl`."""

    def __call__(self, p: Tensor, q: Tensor) -> Tensor:
        return kl(p, q)


@dataclass(frozen=True, kw_only=True)
class JS(Distance):
    """The Jensen-Shannon divergence, `js`."""

    def __call__(self, p: Tensor, q: Tensor) -> Tensor:
        return js(p, q)


@dataclass(frozen=True, kw_only=True)
class MSE(Distance):
    """The mean squared difference of scores, `mse`: for regression, too; unlike the others it grows with the scores."""

    def __call__(self, p: Tensor, q: Tensor) -> Tensor:
        return mse(p, q)


@dataclass(frozen=True, kw_only=True)
class Divergence(OfScores):
    r"""The expected divergence of noisy predictions from clean ones, $E_\xi[D(f(x), f(x, \xi))]$.

    The task's own pass is the first noisy draw: with one draw there is one further pass, of the reference. All draws are reads of the chip
    the model sits on; another chip comes with the next step. None of the further passes updates the statistics of normalisation.

    Args:
        between: D, of the noisy prediction from the clean one.
        draws: noisy passes.
        reference: what is clean: the 'digital' product of the same weights; the same chip with 'quiet' reads, which leaves out all that is
            drawn per chip or write; or a further 'noisy' read, which is not clean either.
        detached: the reference is a target without a gradient. With one, the cheapest agreement is a clean prediction as vague as the noisy
            ones, and the step pays a second backward pass.

    Reference:
        Miyato et al., Virtual adversarial training, IEEE Trans. Pattern Anal. Mach. Intell. 41, 2019 (a detached clean target).
    """

    strength: Annotated[float, Ge(0)] = 0.3
    between: Distance = KL()
    draws: Annotated[int, Ge(1)] = 1
    reference: Literal["digital", "quiet", "noisy"] = "digital"
    detached: bool = True

    def value(self, done: Pass) -> Tensor:
        model, x = done.model, _inputs(done.batch, self.name)
        asked_of(model, self.name)  # a model without noise would agree with itself
        with kept_statistics(model):
            with self._clean(model), torch.no_grad() if self.detached else nullcontext():
                clean = _scores(model(x), self.name)
            noisy = [_scores(done.scores, self.name)] + [model(x) for _ in range(self.draws - 1)]
        return torch.stack([self.between(clean, scores) for scores in noisy]).mean()

    def _clean(self, model: nn.Module) -> AbstractContextManager[Any]:
        if self.reference == "digital":
            return digital_products(model)
        return reads(model, "off") if self.reference == "quiet" else nullcontext()


@dataclass(frozen=True, kw_only=True)
class HalfBatch(OfScores):
    r"""The divergence between two reads of the same inputs, in one pass: the second half of the batch becomes a copy of the first.

    The task is computed on both halves. A step costs what it did, and sees half as many examples. What is drawn per chip, write or snapshot
    is the same in both halves, and is not seen: on hardware whose errors are static, use `Divergence`.

    Args:
        between: of the second half from the first; both have gradients.

    Reference:
        Liang et al., R-Drop: regularized dropout for neural networks, NeurIPS, 2021 (two passes of dropout in one batch).
    """

    between: Distance = JS()

    def batch(self, batch: Any) -> Any:
        n = len(_inputs(batch, self.name))
        if n < 2:
            raise ValueError(f"HalfBatch: a batch of {n} has no two halves")
        return tuple(torch.cat([part[: n // 2]] * 2) for part in batch)

    def value(self, done: Pass) -> Tensor:
        one, other = _scores(done.scores, self.name).chunk(2)
        return self.between(one, other)


@dataclass(frozen=True, kw_only=True)
class Distillation(Value):
    r"""A loss shared between the task and a teacher, $(1 - \lambda)\,\mathrm{task} + \lambda T^2\,KL(\sigma(t / T) \| \sigma(s / T))$.

    s are the scores of the model, t those of the teacher.

    Args:
        temperature: $T$; its square keeps the size of the gradient.
        share: $\lambda$, the teacher's.

    Reference:
        Hinton et al., Distilling the knowledge in a neural network, arXiv 1503.02531, 2015;
        Zhou et al., Noisy machines: understanding noisy neural networks and enhancing robustness to analog hardware errors using
        distillation, arXiv 2001.04974, 2020.
    """

    temperature: Annotated[float, Gt(0)] = 4.0
    share: Annotated[float, Ge(0), Le(1)] = 0.7

    def value(self, done: Pass, teacher: nn.Module) -> Tensor:
        """The teacher's part, without its share."""
        with torch.no_grad():
            t = _scores(teacher(_inputs(done.batch, "Distillation")), "Distillation")
        s = _scores(done.scores, "Distillation")
        if s.shape != t.shape:
            raise ValueError(f"Distillation: the teacher gives scores {tuple(t.shape)}, the model {tuple(s.shape)}")
        return self.temperature**2 * kl(t / self.temperature, s / self.temperature)


def _inputs(batch: Any, name: str) -> Tensor:
    if not isinstance(batch, tuple | list) or not batch or not all(isinstance(part, Tensor) for part in batch):
        raise ValueError(f"{name}: a batch is (inputs, targets), both tensors; a {type(batch).__name__} came")
    return batch[0]


def _scores(scores: Any, name: str) -> Tensor:
    if not isinstance(scores, Tensor):
        raise ValueError(f"{name}: predictions are one tensor; the model gave a {type(scores).__name__}")
    return scores
