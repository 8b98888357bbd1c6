"""Linear and convolution layers on chips. The native product does the work; a tile boundary divides the input channels."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvanic.nn.analog import Analog
from galvanic.nn.attention import AnalogMultiheadAttention
from galvanic.nn.projection import Composite, Matrix, Transposed
from galvanic.nn.recurrent import AnalogGRU, AnalogGRUCell, AnalogLSTM, AnalogLSTMCell, AnalogRNN, AnalogRNNCell


class AnalogLinear(Matrix, nn.Linear):  # type: ignore[misc]
    """`torch.nn.Linear` on a chip: inputs are rows, outputs are columns."""

    def layout(self) -> tuple[int, ...]:
        return 1, self.out_features, self.in_features


class _AnalogConv(Analog, nn.modules.conv._ConvNd):
    """A convolution on a chip: a kernel of one output channel is a column; groups are independent matrices."""

    def layout(self) -> tuple[int, ...]:
        return self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel_size

    def cells(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.groups, -1))

    def native(self, cells: Tensor) -> Tensor:
        return cells.flatten(0, 1)

    def digital(self, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return self._conv_forward(x, weight, self.bias)

    def prepare(self, u: Tensor) -> Tensor:
        return u if self.padding_mode == "zeros" else F.pad(u, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def contract(self, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return self._convolve(u, weight, self.groups)

    def onto(self, g: Tensor, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        if isinstance(self.padding, str):
            return super().onto(g, u, weight)
        padding = self.padding if self.padding_mode == "zeros" else (0,) * self.trailing
        form = (self.stride, padding, self.dilation, False, (0,) * self.trailing, self.groups, (False, True, False))
        _, along, _ = torch.ops.aten.convolution_backward(g.to(u.dtype), u, weight, None, *form)  # smaller than the signal would be
        return torch.dot(along.reshape(-1), weight.reshape(-1))

    def _convolve(self, u: Tensor, weight: Tensor, groups: int) -> Tensor:
        padding = self.padding if self.padding_mode == "zeros" else 0
        return _CONV[self.trailing](u, weight, None, self.stride, padding, self.dilation, groups)

    def patches(self, u: Tensor, *how: Any) -> Tensor:
        """By a convolution with every kernel that has a single one."""
        kernel, channels = prod(self.kernel_size), u.shape[u.ndim - 1 - self.trailing]
        ones = (
            torch.eye(kernel, dtype=u.dtype, device=u.device)
            .view(kernel, 1, *self.kernel_size)
            .repeat(channels, *[1] * (1 + self.trailing))
        )
        y = self._convolve(u, ones, channels)  # (..., channels x kernel, *space)
        return y.movedim(y.ndim - 1 - self.trailing, -1).unflatten(-1, (self.groups, -1))


_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class AnalogConv1d(_AnalogConv, nn.Conv1d):
    """`torch.nn.Conv1d` on a chip."""

    trailing = 1


class AnalogConv2d(_AnalogConv, nn.Conv2d):
    """`torch.nn.Conv2d` on a chip."""

    trailing = 2


class AnalogConv3d(_AnalogConv, nn.Conv3d):
    """`torch.nn.Conv3d` on a chip."""

    trailing = 3


class _AnalogConvTranspose(Analog, nn.modules.conv._ConvTransposeNd):
    """A transposed convolution on a chip: the convolution of its input with zeros inserted; a column is the kernel of an output channel."""

    def layout(self) -> tuple[int, ...]:
        return self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel_size

    def cells(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2)

    def native(self, cells: Tensor) -> Tensor:
        return cells.transpose(1, 2).flatten(0, 1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size)

    def how(self, x: Tensor, *given: Any) -> tuple[Any, ...]:
        form: Any = (self.stride, self.padding, self.kernel_size, self.trailing, self.dilation)
        return (self._output_padding(x, given[0] if given else None, *form),)

    def patches(self, u: Tensor, *how: Any) -> Tensor:
        kernel, channels = prod(self.kernel_size), u.shape[u.ndim - 1 - self.trailing]
        ones = (
            torch.eye(kernel, dtype=u.dtype, device=u.device)
            .view(1, kernel, *self.kernel_size)
            .repeat(channels, *[1] * (1 + self.trailing))
        )
        transposed = _CONV_TRANSPOSE[self.trailing]
        y = transposed(u, ones, None, self.stride, self.padding, how[0] if how else 0, channels, self.dilation)
        return y.movedim(y.ndim - 1 - self.trailing, -1).unflatten(-1, (self.groups, -1))

    def digital(self, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return self._spread(x, weight, self.bias, *how)

    def contract(self, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return self._spread(u, weight, None, *how)

    def _spread(self, u: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Any = 0) -> Tensor:
        transposed = _CONV_TRANSPOSE[self.trailing]
        return transposed(u, weight, bias, self.stride, self.padding, output_padding, self.groups, self.dilation)


_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class AnalogConvTranspose1d(_AnalogConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` on a chip."""

    trailing = 1


class AnalogConvTranspose2d(_AnalogConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on a chip."""

    trailing = 2


class AnalogConvTranspose3d(_AnalogConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` on a chip."""

    trailing = 3


ANALOG_FORM: dict[type[nn.Module], type[Analog] | type[Composite]] = {
    nn.Linear: AnalogLinear,
    nn.Conv1d: AnalogConv1d,
    nn.Conv2d: AnalogConv2d,
    nn.Conv3d: AnalogConv3d,
    nn.ConvTranspose1d: AnalogConvTranspose1d,
    nn.ConvTranspose2d: AnalogConvTranspose2d,
    nn.ConvTranspose3d: AnalogConvTranspose3d,
    nn.RNN: AnalogRNN,
    nn.LSTM: AnalogLSTM,
    nn.GRU: AnalogGRU,
    nn.RNNCell: AnalogRNNCell,
    nn.LSTMCell: AnalogLSTMCell,
    nn.GRUCell: AnalogGRUCell,
    nn.MultiheadAttention: AnalogMultiheadAttention,
}
"""Digital class -> analog class. Subclasses are not taken: what they add would be lost in silence."""

_BY_NAME: dict[str, type[Analog]] = {"transformers.pytorch_utils.Conv1D": Transposed}


def analog_form(kind: type[nn.Module]) -> type[Analog] | type[Composite] | None:
    """The analog class of a digital one; classes of libraries that are not imported here are known by name."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind not in ANALOG_FORM and name in _BY_NAME:
        ANALOG_FORM[kind] = type(f"Analog{kind.__name__}", (_BY_NAME[name], kind), {})
    return ANALOG_FORM.get(kind)
