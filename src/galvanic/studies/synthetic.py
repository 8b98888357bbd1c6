"""Made tasks whose optimum is known under every level of noise: how far from it did training end?"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from galvanic import seeding
from galvanic.physics import Value
from galvanic.studies.published import Arrays


@dataclass(frozen=True, kw_only=True)
class Regression(Value):
    r"""Linear regression of a student $W$ without bias, whose inputs and weights are noisy in every read.

    $$L(W) = \frac{1}{m} \langle \|y - (W + \sigma_w E)(x + \sigma_x \epsilon)\|^2 \rangle$$

    The mean is taken over the samples and over the standard normal $E$ and $\epsilon$; this is `mse_loss` of infinitely many reads.
    With the second moments $C = \langle x x^T \rangle$ of the samples, it is exactly

    $$L(W) = \frac{1}{m} \langle \|y - W x\|^2 \rangle + \frac{\sigma_x^2}{m} \|W\|^2 + \sigma_w^2 (\mathrm{tr}\, C + n \sigma_x^2).$$

    Noise of the inputs is thus a ridge penalty, which moves the optimum; noise of the weights costs what no training gets back.

    Args:
        x: inputs (samples, n).
        y: targets (samples, m).

    Raises:
        ValueError: shapes that do not fit, no samples, or numbers that are not finite.

    Reference:
        Bishop, Training with noise is equivalent to Tikhonov regularization, Neural Computation 7, 1995.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        shapes = tuple(self.x.shape), tuple(self.y.shape)
        if self.x.ndim != 2 or self.y.ndim != 2 or len(self.x) != len(self.y) or 0 in (*shapes[0], *shapes[1]):
            raise ValueError(f"x and y have shapes {shapes[0]} and {shapes[1]}; expected (samples, n) and (samples, m), none of them 0")
        if not (self.x.isfinite().all() and self.y.isfinite().all()):
            raise ValueError("x or y holds NaN or infinity; expected finite numbers")

    def optimum(self, *, input_std: float = 0.0) -> Tensor:
        r"""The weight of least loss, $W = \langle y x^T \rangle (C + \sigma_x^2 I)^{-1}$, shape (m, n); weight noise does not move it.

        Where the samples leave it open, which they can do without noise only, it is the solution of smallest norm.

        Args:
            input_std: $\sigma_x$.
        """
        n = self.x.shape[1]
        moments = self.x.T @ self.x / len(self.x) + input_std**2 * torch.eye(n, dtype=self.x.dtype, device=self.x.device)
        return self.y.T @ self.x / len(self.x) @ torch.linalg.pinv(moments, hermitian=True)

    def loss(self, weight: Tensor, *, input_std: float = 0.0, weight_std: float = 0.0) -> Tensor:
        r"""The loss $L(W)$ of a student, 0-d.

        Args:
            weight: $W$, shape (m, n).
            input_std: $\sigma_x$.
            weight_std: $\sigma_w$.

        Raises:
            ValueError: the weight has another shape.
        """
        shape = (self.y.shape[1], self.x.shape[1])
        if tuple(weight.shape) != shape:
            raise ValueError(f"the weight has shape {tuple(weight.shape)}; expected {shape}")
        power = self.x.square().sum(1).mean() + self.x.shape[1] * input_std**2
        misfit = (self.y - self.x @ weight.T).square().mean()
        return misfit + input_std**2 * weight.square().sum() / len(weight) + weight_std**2 * power


def teacher(n: int, m: int, *, samples: int, condition: float = 10.0, number: int = 0) -> tuple[Regression, Tensor]:
    r"""A task $y = W^* x$ and its teacher $W^*$, shape (m, n), with entries drawn from $N(0, 1/n)$.

    The inputs are Gaussian; the variances along their (random) principal axes fall geometrically from 1 to 1 / condition.

    Args:
        n: inputs.
        m: outputs.
        samples: how many.
        condition: ratio of the largest variance to the smallest.
        number: of the task; the same one every time.

    >>> task, weight = teacher(4, 2, samples=100)
    >>> task.x.shape, task.y.shape, weight.shape
    (torch.Size([100, 4]), torch.Size([100, 2]), torch.Size([2, 4]))
    """
    g = seeding.generator("teacher", n, m, number)
    weight = torch.randn(m, n, generator=g) / math.sqrt(n)
    axes = torch.linalg.qr(torch.randn(n, n, generator=g)).Q
    scales = condition ** -torch.linspace(0, 0.5, n)
    x = torch.randn(samples, n, generator=g) * scales @ axes
    return Regression(x=x, y=x @ weight.T), weight


@dataclass(frozen=True, kw_only=True)
class Gaussians(Value):
    r"""Equally frequent classes of Gaussian images $x \sim N(\mu_k, \sigma^2 I)$ with means a distance $D$ apart, each from each.

    No classifier is more often right than the nearest mean, which is a linear one; this holds under additive noise of the images of
    any std $s$, too. With $K$ classes it is right in a share

    $$\int \phi(z)\, \Phi\!\left(z + \frac{D}{\sqrt{2 (\sigma^2 + s^2)}}\right)^{K-1} dz$$

    of the cases; of two classes, $\Phi(D / 2 \sqrt{\sigma^2 + s^2})$. The variance of all pixels is 1, their mean 0.

    Args:
        classes: $K$.
        side: height and width of the images, of one channel: side^2 pixels, at least one a class.
        separation: $D / \sigma$.

    Raises:
        ValueError: more classes than pixels.

    Reference:
        The integral is that of orthogonal signals: Proakis, Digital Communications, McGraw-Hill.

    >>> round(Gaussians().bayes_accuracy(), 4), round(Gaussians().bayes_accuracy(noise_std=1.0), 4)
    (0.9593, 0.7845)
    """

    classes: Annotated[int, Ge(2)] = 10
    side: Annotated[int, Ge(1)] = 8
    separation: Annotated[float, Gt(0)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes > self.side**2:
            raise ValueError(f"{self.classes} classes do not fit in {self.side} x {self.side} pixels; expected a pixel or more a class")

    @property
    def std(self) -> float:
        r"""$\sigma$; the spread of the means, $D^2 (K - 1) / 2 K$ in all, adds the rest of the variance."""
        between = self.separation**2 * (self.classes - 1) / (2 * self.classes * self.side**2)
        return 1 / math.sqrt(1 + between)

    @property
    def means(self) -> Tensor:
        r"""$\mu_k$, shape (classes, 1, side, side): the corners of a regular simplex around 0, turned at random."""
        g = seeding.generator("gaussians", self.classes, self.side, "means")
        corners = torch.linalg.qr(torch.randn(self.side**2, self.classes, generator=g, dtype=torch.float64)).Q.T
        corners = (corners - corners.mean(0)) * self.separation * self.std / math.sqrt(2)
        return corners.float().view(-1, 1, self.side, self.side)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, 1, side, side) and labels (n,); the classes take turns."""
        y = torch.arange(n) % self.classes
        return self.means[y] + self.std * torch.randn(n, 1, self.side, self.side, generator=generator), y

    def classify(self, images: Tensor) -> Tensor:
        """The best guess (n,) at the class of images (n, 1, side, side): the nearest mean, under every level of noise."""
        return torch.cdist(images.flatten(1), self.means.flatten(1).to(images)).argmin(1)

    def bayes_accuracy(self, *, noise_std: float = 0.0) -> float:
        r"""The accuracy that no classifier exceeds.

        Args:
            noise_std: $s$ of the noise added to each pixel.
        """
        apart = self.separation * self.std / math.sqrt(2 * (self.std**2 + noise_std**2))
        z = torch.linspace(-12, 12, 1001, dtype=torch.float64)  # the trapezoidal rule errs by less than rounding here
        right = (-(z**2) / 2 + (self.classes - 1) * torch.special.log_ndtr(z + apart)).exp() / math.sqrt(2 * math.pi)
        return torch.trapezoid(right, z).item()

    def arrays(self, *, train: int = 5000, test: int = 5000) -> Arrays:
        """The task as a data set, the same one every time. The scaling of `load` changes it by the error of the sampled variance, 0.1 %.

        Args:
            train: number of training images.
            test: number of test images.
        """
        (x_train, y_train), (x_test, y_test) = (
            self.draw(n, seeding.generator("gaussians", self.classes, self.side, split)) for n, split in ((train, "train"), (test, "test"))
        )
        best = f"no classifier is expected to exceed {100 * self.bayes_accuracy():.1f} %"
        note = f"made: {self.classes} Gaussian classes, on which {best}"
        return Arrays(x_train=x_train.numpy(), y_train=y_train.numpy(), x_test=x_test.numpy(), y_test=y_test.numpy(), note=note)
