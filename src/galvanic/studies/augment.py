"""Augmentation of image batches: the shifts, reflections and holes by which a training set is made to seem larger."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import pad

from galvanic.physics import Value


@dataclass(frozen=True, kw_only=True)
class Augmentation(Value, ABC):
    """A random change of each image by itself that leaves its class alone."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """New images (n, channels, height, width), of the same dtype and device; `images` are left as they are.

        Args:
            images: (n, channels, height, width), of any dtype.
            generator: where the draws come from; None for the global stream. Its device need not be that of the images: the same CPU
                generator changes them in the same way everywhere.
        """


def augment(images: Tensor, augmentations: Iterable[Augmentation], generator: torch.Generator | None = None) -> Tensor:
    """The images (n, channels, height, width) after each of the augmentations, in turn.

    Raises:
        ValueError: the images have another number of dimensions.

    >>> batch = augment(torch.randn(8, 3, 32, 32), (Crop(), Flip()), torch.Generator().manual_seed(0))
    >>> batch.shape
    torch.Size([8, 3, 32, 32])
    """
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, channels, height, width)")
    for augmentation in augmentations:
        images = augmentation(images, generator)
    return images


@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """A window of the old size, at random in the image with a margin of zeros: a shift by up to the margin, each shift as likely.

    Zero is the mean colour of scaled images.

    Args:
        padding: width of the margin, in pixels.

    Reference:
        He, Zhang, Ren, Sun, Deep residual learning for image recognition, CVPR, 2016 (4 pixels, with reflections, for CIFAR-10).
    """

    padding: Annotated[int, Ge(0)] = 4

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, _, height, width = images.shape
        windows = pad(images, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: (n, c, top, left, height, width)
        top, left = (_integers(2 * self.padding + 1, n, generator, images.device) for _ in range(2))
        return windows[torch.arange(n, device=images.device), :, top, left]


@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Left and right are exchanged in every other image, at random."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flipped = _integers(2, len(images), generator, images.device).bool()
        return torch.where(flipped[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """A square of zeros around a random pixel; it may reach over the border.

    Args:
        size: height and width of the square, in pixels.

    Reference:
        DeVries, Taylor, Improved regularization of convolutional neural networks with cutout, arXiv:1708.04552, 2017.
    """

    size: Annotated[int, Gt(0)]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, _, height, width = images.shape
        rows, columns = (self._covered(length, _integers(length, n, generator, images.device)) for length in (height, width))
        return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)

    def _covered(self, length: int, centre: Tensor) -> Tensor:
        """Which of `length` pixels the square covers along one axis, (n, length)."""
        offset = torch.arange(length, device=centre.device) - (centre[:, None] - self.size // 2)
        return (offset >= 0) & (offset < self.size)


def _integers(below: int, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers 0 ... below - 1, drawn where the generator is, then moved."""
    return torch.randint(below, (n,), generator=generator, device=device if generator is None else generator.device).to(device)
