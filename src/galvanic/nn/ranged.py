"""A layer whose converters have a full scale: where it is kept, and that a digital checkpoint has none."""

from typing import Any

import torch
from torch import Tensor, nn

from galvanic.profile import Profile
from galvanic.ranges import Dynamic, Fixed, Learned, Range


def smallest(x: Tensor) -> float:
    """What a silent vector, which has no largest magnitude to divide by, is divided by."""
    return torch.finfo(x.dtype).tiny


class Ranged(nn.Module):
    """A layer with an `input_range` and an `output_range`: buffers, parameters where they are learned, absent where they are not needed."""

    weight: Tensor
    profile: Profile
    name: str

    def _install_ranges(self) -> None:
        for side in ("input", "output"):
            self._install_range(side)

    def _install_range(self, side: str) -> None:
        """The attribute `input_range` or `output_range`: absent where the side needs none or its range is dynamic."""
        range_: Range = getattr(self.profile, f"{side}_range")
        name = f"{side}_range"
        if not self.profile.converts(side) or isinstance(range_, Dynamic):
            return
        if isinstance(range_, Fixed):
            self.register_buffer(name, self.weight.new_tensor([range_.value]).detach(), persistent=False)
        elif isinstance(range_, Learned):
            self.register_parameter(name, nn.Parameter(self.weight.new_tensor([float("nan")]).detach()))
        else:
            self.register_buffer(name, self.weight.new_tensor([float("nan")]).detach())
        self.set_range(side, range_.value if isinstance(range_, Fixed) else None)

    def set_range(self, side: str, value: Tensor | float | None) -> None:
        """Fill a range; None leaves it to be calibrated. A Python flag says that it is ready: reading the tensor would break a graph."""
        if value is not None:
            with torch.no_grad():
                getattr(self, f"{side}_range").copy_(torch.as_tensor(value, dtype=torch.float64))
        setattr(self, f"_{side}_ready", value is not None)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for side in ("input", "output"):
            range_ = getattr(self.profile, f"{side}_range")
            if isinstance(range_, Fixed) and self.stored_range(side) is not None:
                self.set_range(side, range_.value)  # no checkpoint has it: a model built without memory would lose it
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A digital checkpoint has no ranges: those of the layer stay."""
        for side in ("input", "output"):
            name = f"{side}_range"
            own = self._parameters.get(name, None if name in self._non_persistent_buffers_set else self._buffers.get(name))
            if own is not None and prefix + name not in state_dict:
                state_dict[prefix + name] = own.detach().clone()
            elif own is not None:
                setattr(self, f"_{side}_ready", bool(state_dict[prefix + name].isfinite()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def full_scale(self, side: str) -> Tensor | None:
        """The range of a side where it is one number; None where it is found per vector, or not needed.

        Raises:
            RuntimeError: it is to be calibrated and has not been.
        """
        r = self.stored_range(side)
        return None if r is None else r.clamp(min=smallest(r)).squeeze(0)  # 0-d, which leaves the precision of a signal alone

    def stored_range(self, side: str) -> Tensor | None:
        """The full scale as it is stored, (1,) since sharding knows no scalars; a learned one may be too small to divide by."""
        r: Tensor | None = getattr(self, f"{side}_range", None)
        if r is not None and not getattr(self, f"_{side}_ready") and not self._filled(side, r):
            raise RuntimeError(
                f"{self.name or 'the layer'}: its {side} range is not calibrated yet; run calibrate_ranges(model, batches), load a "
                f"checkpoint that has it, or give the profile {side}_range=Dynamic()"
            )
        return r

    def _filled(self, side: str, r: Tensor) -> bool:
        """Whether someone else set the range (an average of models, a functional call); not asked within a graph."""
        if torch.compiler.is_compiling() or r.is_meta or not bool(r.detach().isfinite()):
            return False
        setattr(self, f"_{side}_ready", True)
        return True
