"""What scores are worth against labels, and what accuracies are worth against those of the digital network or of an upper bound."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from galvanic.physics.value import brief


def top_k(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of samples whose label is among the `k` largest scores. Of equal scores the first class counts as the larger, as in argmax.

    Args:
        scores: (n, classes), finite; logits or anything that rises with them.
        labels: (n,), whole numbers from 0 on.
        k: from 1 to the number of classes.

    Raises:
        ValueError: other shapes, no sample, scores that are not finite, labels or k out of range. Likewise below.
    """
    _check(scores, labels)
    classes = scores.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k = {k}: from 1 to {classes}, the number of classes")
    own = scores.gather(1, labels.long()[:, None])
    before = torch.arange(classes, device=scores.device) < labels[:, None]
    ahead = ((scores > own) | ((scores == own) & before)).sum(1)
    return float((ahead < k).double().mean())


def nll(scores: Tensor, labels: Tensor) -> float:
    r"""Mean negative log-likelihood in nats, $-\frac1n \sum_i \log \mathrm{softmax}(s_i)_{y_i}$.

    Args:
        scores: logits (n, classes).
        labels: (n,).
    """
    _check(scores, labels)
    return float(cross_entropy(scores.double(), labels.long()))


def expected_calibration_error(scores: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    r"""How far confidence is from accuracy, $\sum_m \frac{|B_m|}{n}\,|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$.

    The confidence of a sample is its largest probability; bin $B_m$ holds those in $((m-1)/M,\ m/M]$.

    Args:
        scores: logits (n, classes).
        labels: (n,).
        bins: $M$.

    Reference:
        Guo, Pleiss, Sun, Weinberger, On calibration of modern neural networks, ICML, 2017.
    """
    _check(scores, labels)
    if bins < 1:
        raise ValueError(f"bins = {bins}: one or more")
    confidence, predicted = scores.double().softmax(1).max(1)
    where = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    excess = confidence - (predicted == labels).double()  # its sum over a bin is |B| (conf - acc)
    return float(excess.new_zeros(bins).index_add(0, where, excess).abs().sum() / len(scores))


def drop(accuracy: float, digital: float) -> float:
    """What the hardware costs: digital minus analog accuracy."""
    _refuse_nonnumbers(accuracy=accuracy, digital=digital)
    return digital - accuracy


def retention(accuracy: float, digital: float) -> float:
    """What the hardware leaves: analog over digital accuracy; more than 1 where the hardware helps."""
    _refuse_nonnumbers(accuracy=accuracy, digital=digital)
    if digital == 0:
        raise ValueError("digital = 0: nothing could be retained")
    return accuracy / digital


def relative_auc(levels: Sequence[float], accuracy: Sequence[float], bound: Sequence[float] | float) -> float:
    r"""Relative area under the curve of accuracy over noise, $\mathrm{rAUC} = \int a\,d\sigma \big/ \int a_\mathrm{bound}\,d\sigma$.

    Areas are those of trapezoids. Two bounds are in use; say which one a number belongs to.

    * Matched, as published: at every level the accuracy of a model trained for just that level. It is a strong reference rather than a
      limit, since a method may beat it.
    * Digital: one number, the accuracy without noise. It needs no further training, and a fall with noise that nothing could prevent
      counts against the method.

    Args:
        levels: noise levels, ascending, two or more.
        accuracy: at every level.
        bound: at every level, or one number for all.

    Raises:
        ValueError: lengths that differ, fewer than two levels, levels that do not rise, negative or non-finite numbers, a bound of no area.

    Reference:
        Wang, Borras, Klein, Fröning, Variance-aware noisy training, ECML-PKDD, 2025.
    """
    x, y, b = _curve("levels", levels), _curve("accuracy", accuracy), _curve("bound", [bound] if isinstance(bound, int | float) else bound)
    b = b.expand_as(x) if isinstance(bound, int | float) else b
    if not len(x) == len(y) == len(b) or len(x) < 2:
        raise ValueError(f"{len(x)} levels, {len(y)} accuracies, {len(b)} of the bound: equally many, two or more")
    if (x.diff() <= 0).any():
        raise ValueError(f"levels = {brief(x.tolist())}: ascending, each once")
    if min(y.min(), b.min()) < 0 or b.max() == 0:
        raise ValueError("accuracy and bound: nowhere negative, and the bound somewhere above 0")
    return float(torch.trapezoid(y, x) / torch.trapezoid(b, x))


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or not scores.numel() or not scores.is_floating_point():
        raise ValueError(f"scores are {scores.dtype} {tuple(scores.shape)}: floating point, (n, classes), not empty")
    if labels.shape != scores.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: whole numbers, ({len(scores)},), as there are scores")
    if not scores.isfinite().all():
        raise ValueError(f"scores of sample {int((~scores.isfinite()).any(1).nonzero()[0])} are not finite")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}: from 0 to {scores.shape[1] - 1}, one a score")


def _refuse_nonnumbers(**given: float) -> None:
    for name, x in given.items():
        if not isfinite(x) or x < 0:
            raise ValueError(f"{name} = {x}: a finite number, 0 or more")


def _curve(name: str, values: Sequence[float]) -> Tensor:
    x = torch.as_tensor(values, dtype=torch.float64)
    if x.ndim != 1 or not x.isfinite().all():
        raise ValueError(f"{name} = {brief(values)}: a list of finite numbers")
    return x
