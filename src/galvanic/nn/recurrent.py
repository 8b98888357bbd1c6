"""Recurrent layers on chips: one array for the input and one for the state of every layer and direction; gates are digital."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from galvanic.nn.projection import Composite, Projection

State = tuple[Tensor, ...]
"""h, or h and c."""


def _gates(module: nn.Module, x: Tensor, h: Tensor, state: State) -> State:
    """The new state from the products of input and state, biases included."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (x + h).chunk(4, -1)
        c = f.sigmoid() * state[1].to(x.dtype) + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if isinstance(module, nn.GRU | nn.GRUCell):
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
        z, n = (xz + hz).sigmoid(), (xn + (xr + hr).sigmoid() * hn).tanh()
        return ((1 - z) * n + z * state[0],)
    return (F.relu(x + h) if module.nonlinearity == "relu" else (x + h).tanh(),)


class _AnalogRecurrent(Composite, nn.RNNBase):
    """A recurrent layer on a chip. The inputs of all times are multiplied at once, the states one after another."""

    def matrices(self) -> Iterator[tuple[str, nn.Module, str, str | None, slice | None]]:
        for suffix in self._suffixes():
            for kind in ("ih", "hh", "hr") if self.proj_size else ("ih", "hh"):
                bias = f"bias_{kind}{suffix}" if self.bias and kind != "hr" else None
                yield f"{kind}{suffix}", self, f"weight_{kind}{suffix}", bias, None

    def _suffixes(self) -> list[str]:
        return [f"_l{k}{d}" for k in range(self.num_layers) for d in ([""] + ["_reverse"] * self.bidirectional)]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self.bare():
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes.tolist()
            y, state = self._run(input.data, sizes, self._first_state(input.data, sizes[0], hx, input.sorted_indices))
            state = tuple(s if input.unsorted_indices is None else s.index_select(1, input.unsorted_indices) for s in state)
            return PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices), self._given(state)
        if input.dim() not in (2, 3):
            raise RuntimeError(
                f"{type(self).__name__}: an input of {input.dim()} dimensions came; (time, batch, features) or (time, features)"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(int(not self.batch_first))
        x = x.transpose(0, 1) if self.batch_first else x  # (time, batch, features)
        if not batched and hx is not None:
            hx = tuple(s.unsqueeze(1) for s in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        times, batch = x.shape[:2]
        y, state = self._run(x.flatten(0, 1), [batch] * times, self._first_state(x, batch, hx, None))
        y = y.unflatten(0, (times, batch))
        y = y.transpose(0, 1) if self.batch_first else y
        if not batched:
            y, state = y.squeeze(int(not self.batch_first)), tuple(s.squeeze(1) for s in state)
        return y, self._given(state)

    def _given(self, state: State) -> Any:
        return state if isinstance(self, nn.LSTM) else state[0]

    def _first_state(self, x: Tensor, batch: int, hx: Any, order: Tensor | None) -> State:
        """States of every layer and direction, (layers x directions, batch, size), in the order of the packed sequence."""
        sizes = [self.proj_size or self.hidden_size] + [self.hidden_size] * isinstance(self, nn.LSTM)
        count = len(self._suffixes())
        if hx is None:
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        given: State = hx if isinstance(hx, tuple) else (hx,)
        for s, size in zip(given, sizes, strict=True):
            if s.shape != (count, batch, size):
                raise RuntimeError(f"{type(self).__name__}: a state of shape {tuple(s.shape)} came, {(count, batch, size)} was expected")
        return given if order is None else tuple(s.index_select(1, order) for s in given)

    def _run(self, x: Tensor, sizes: Sequence[int], first: State) -> tuple[Tensor, State]:
        """Outputs (steps, features) of all layers for such inputs, and the last states; `sizes` are the batches of each time."""
        last: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in range(1 + self.bidirectional):
                index = layer * (1 + self.bidirectional) + reverse
                y, state = self._direction(x, sizes, tuple(s[index] for s in first), self._suffixes()[index], bool(reverse))
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1)
            if self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(s) for s in zip(*last, strict=True))

    def _direction(self, x: Tensor, sizes: Sequence[int], state: State, suffix: str, reverse: bool) -> tuple[Tensor, State]:
        products = self._modules[f"ih{suffix}"](x).split(list(sizes))  # type: ignore[misc]
        hh, hr = self._modules[f"hh{suffix}"], self._modules.get(f"hr{suffix}")
        held = [m for m in (hh, hr) if isinstance(m, Projection)] if torch.is_grad_enabled() and not torch.compiler.is_compiling() else []
        try:
            for m in held:
                m.hold(True)  # one write for all times, and not one for each
            return self._steps(products, state, hh, hr, reverse)
        finally:
            for m in held:
                m.hold(False)

    def _steps(
        self, products: Sequence[Tensor], state: State, hh: nn.Module | None, hr: nn.Module | None, reverse: bool
    ) -> tuple[Tensor, State]:
        outputs: list[Tensor] = []
        for product in reversed(products) if reverse else products:
            running = tuple(s[: len(product)] for s in state)
            new = _gates(self, product, hh(running[0]), running)  # type: ignore[misc]
            new = new if hr is None else (hr(new[0]), *new[1:])
            outputs.append(new[0])
            state = tuple(torch.cat([n, s[len(n) :]]) if len(n) < len(s) else n for n, s in zip(new, state, strict=True))
        return torch.cat(outputs[::-1] if reverse else outputs), state


class AnalogRNN(_AnalogRecurrent, nn.RNN):
    """`torch.nn.RNN` on a chip."""


class AnalogLSTM(_AnalogRecurrent, nn.LSTM):
    """`torch.nn.LSTM` on a chip."""


class AnalogGRU(_AnalogRecurrent, nn.GRU):
    """`torch.nn.GRU` on a chip."""


class _AnalogCell(Composite, nn.RNNCellBase):
    """One step of a recurrent layer on a chip."""

    def matrices(self) -> Iterator[tuple[str, nn.Module, str, str | None, slice | None]]:
        for kind in ("ih", "hh"):
            yield kind, self, f"weight_{kind}", f"bias_{kind}" if self.bias else None, None

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        if self.bare():
            return super().forward(input, hx)
        long = isinstance(self, nn.LSTMCell)
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        state: State = ((zeros, zeros) if long else (zeros,)) if hx is None else hx if long else (hx,)
        for s in state:
            if s.shape != (*input.shape[:-1], self.hidden_size):
                raise RuntimeError(
                    f"{type(self).__name__}: a state of shape {tuple(s.shape)} came for an input of shape {tuple(input.shape)}"
                )
        ih, hh = self._modules["ih"], self._modules["hh"]
        new = _gates(self, ih(input), hh(state[0]), state)  # type: ignore[misc]
        return new if long else new[0]


class AnalogRNNCell(_AnalogCell, nn.RNNCell):
    """`torch.nn.RNNCell` on a chip."""


class AnalogLSTMCell(_AnalogCell, nn.LSTMCell):
    """`torch.nn.LSTMCell` on a chip."""


class AnalogGRUCell(_AnalogCell, nn.GRUCell):
    """`torch.nn.GRUCell` on a chip."""
