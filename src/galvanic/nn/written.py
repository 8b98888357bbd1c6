"""A layer whose weight was written to devices: what they hold now."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from galvanic.nn.placed import Placed
from galvanic.physics import Additive, Context
from galvanic.physics.value import tensors_in

Written = tuple[Tensor, Tensor | None, Tensor | None]
"""Effective weight over its digital scale; its variance at every read, or None; the scale, or None."""


class Stored(Placed):
    """A layer whose weight is held by devices."""

    def _install_weight(self) -> None:
        self._kept: tuple[int, Tensor, Written] | None = None
        self._fixed = not tensors_in(self.profile)  # a parameter that is a tensor may change at any time

    def written(self, at: Context) -> Written:
        """The effective weight over its digital scale, its variance at every read, and the scale, (n_out, 1, ...).

        The variance is None without read noise of cells; the scale is None where nothing asks for one. Kept between reads under `no_grad`
        until the write, the conditions or the weight change; the weight is compared by value, since fused optimizers and writes to
        ``weight.data`` leave its version as it was.
        """
        if not self.profile.weight and not self.profile.output:
            return self.weight, None, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(self.weight) is not nn.Parameter or not self._fixed:
            return self._written(at)
        if self._kept is None or self._kept[0] != self._stamp or not torch.equal(self._kept[1], self.weight):
            self._kept = (self._stamp, self.weight.detach().clone(), self._written(at))
        return self._kept[2]

    def _written(self, at: Context) -> Written:
        scale = self.scale()
        g = self.conductances(scale, at)
        noisy = [e for e in self.profile.weight if isinstance(e, Additive) and e.per == "read"]
        variance = None
        if noisy:
            squares = sum((at.noise_level * torch.as_tensor(e.sigma(g, at))).to(g).square() for e in noisy)
            variance = self.profile.encoding.decode_variance(torch.as_tensor(squares).expand_as(g))
        return self.profile.encoding.decode(self.profile.product.matrices(g)[0]), variance, scale

    def scale(self) -> Tensor:
        """The digital scale, from the largest magnitude of each output column or of the layer; a column of zeros has scale 1."""
        dims = list(range(self.weight.ndim))[1 if self.profile.weight_scale == "column" else 0 :]
        top = self.weight.detach().abs().amax(dim=dims, keepdim=True)
        return torch.where(top > 0, top, 1.0).expand(self.weight.shape[0], *top.shape[1:])

    def conductances(self, scale: Tensor, at: Context) -> Tensor:
        r"""The conductances now, (devices, \*shape of weight), in units of the largest; noise per read is not in them."""
        target = self.profile.encoding.encode(self.weight / scale)
        g, context = target, replace(at, target=target, written=target)
        for index, effect in enumerate(self.profile.weight):
            if effect.per == "read":
                continue
            g = effect.apply(g, self._randomness("weight", index, effect, g), context)
            if self.profile.encoding.nonnegative:
                g = g.clamp(min=0)
            if not effect.after_write:
                context = replace(context, written=g)
        return g
