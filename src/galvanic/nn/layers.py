"""Linear and convolution layers on chips. The native product does the work; a tile boundary divides the input channels."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from galvanic.nn.analog import Analog


def _even(size: int, most: int) -> list[slice]:
    """`size` things in as few consecutive parts of at most `most` as possible, of nearly equal size."""
    parts = -(-size // most)
    edges = [round(k * size / parts) for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


class AnalogLinear(Analog, nn.Linear):  # type: ignore[misc]
    """`torch.nn.Linear` on a chip: inputs are rows, outputs are columns."""

    def digital(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def contract(self, u: Tensor, w: Tensor, cut: slice | None) -> Tensor:
        return F.linear(u, w) if cut is None or cut == slice(0, self.in_features) else F.linear(u[..., cut], w[:, cut])

    def matrix(self) -> tuple[int, int, int]:
        return 1, self.in_features, self.out_features

    def cuts(self) -> list[slice]:
        return _even(self.in_features, self.profile.rows or self.in_features)


class _AnalogConv(Analog, nn.modules.conv._ConvNd):
    """A convolution on a chip: a kernel of one output channel is a column; groups are independent matrices."""

    def digital(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)

    def prepare(self, u: Tensor) -> Tensor:
        return u if self.padding_mode == "zeros" else F.pad(u, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def contract(self, u: Tensor, w: Tensor, cut: slice | None) -> Tensor:
        if cut is not None and cut != slice(0, self.weight.shape[1]):
            u, w = self._channels(u, cut), w[:, cut]
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.trailing - 1]
        padding = self.padding if self.padding_mode == "zeros" else 0
        return conv(u, w, None, self.stride, padding, self.dilation, self.groups)

    def _channels(self, u: Tensor, cut: slice) -> Tensor:
        """These input channels of every group."""
        axis = u.ndim - 1 - self.trailing
        grouped = u.unflatten(axis, (self.groups, -1))  # (..., groups, channels of a group, *space)
        return grouped.narrow(axis + 1, cut.start, cut.stop - cut.start).flatten(axis, axis + 1)

    def _kernel(self) -> int:
        return int(self.weight[0, 0].numel())

    def matrix(self) -> tuple[int, int, int]:
        return self.groups, self.weight.shape[1] * self._kernel(), self.out_channels // self.groups

    def cuts(self) -> list[slice]:
        rows = self.profile.rows or self.weight.shape[1] * self._kernel()
        if rows < self._kernel():
            raise ValueError(
                f"{self.name or 'the layer'}: a kernel column takes {self._kernel()} rows (kernel {tuple(self.kernel_size)}), tiles of "
                f"profile {self.profile.name!r} have {rows}; use tiles of {self._kernel()} rows or more, or leave this layer digital"
            )
        return _even(self.weight.shape[1], rows // self._kernel())


class AnalogConv1d(_AnalogConv, nn.Conv1d):
    """`torch.nn.Conv1d` on a chip."""

    trailing = 1


class AnalogConv2d(_AnalogConv, nn.Conv2d):
    """`torch.nn.Conv2d` on a chip."""

    trailing = 2


class AnalogConv3d(_AnalogConv, nn.Conv3d):
    """`torch.nn.Conv3d` on a chip."""

    trailing = 3


ANALOG_FORM: dict[type[nn.Module], type[Analog]] = {
    nn.Linear: AnalogLinear,
    nn.Conv1d: AnalogConv1d,
    nn.Conv2d: AnalogConv2d,
    nn.Conv3d: AnalogConv3d,
}
"""Digital class -> analog class. Subclasses are not taken: what they add would be lost in silence."""
