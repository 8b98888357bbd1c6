"""Parametric noise injection: noise on digital weights whose size is learned."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from galvanic.physics import Value


@dataclass(frozen=True, kw_only=True)
class ParametricNoise(Value):
    r"""Weights $\tilde w = w + \alpha\,\mathrm{std}(w)\,\epsilon$, one learned $\alpha$ a layer, $\epsilon$ drawn anew in every pass.

    Nothing but the loss decides about $\alpha$. Under plain cross-entropy, without adversarial examples, it switches itself off.

    Args:
        start: $\alpha$ at the beginning.

    Reference:
        He et al., Parametric noise injection: trainable randomness to improve deep neural network robustness against adversarial attack,
        CVPR, 2019.
    """

    start: Annotated[float, Gt(0)] = 0.25

    def prepare(self, model: nn.Module) -> None:
        """Disturb the weights of linear and convolution layers from now on, in place; make the optimizer afterwards.

        Raises:
            ValueError: there is no such layer; a weight that is not there yet (lazy), or parametrised already.
        """
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
        if not layers:
            raise ValueError("ParametricNoise: the model has no linear or convolution layer")
        for name, layer in layers.items():
            if isinstance(layer.weight, nn.parameter.UninitializedParameter):
                raise ValueError(f"layer {name!r} is lazy and has no weight yet: call the model once, then prepare it")
            if parametrize.is_parametrized(layer, "weight"):
                raise ValueError(f"layer {name!r}: its weight is parametrised already; bake or remove that first")
        for layer in layers.values():
            parametrize.register_parametrization(layer, "weight", _Disturbed(self.start))

    def bake(self, model: nn.Module) -> None:
        """Leave the weights as they were trained, without noise, in place."""
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                noise = module.parametrizations.weight[0]  # type: ignore[index, union-attr]
                if isinstance(noise, _Disturbed):
                    noise.quiet = True
                    parametrize.remove_parametrizations(module, "weight")


class _Disturbed(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([start]))  # one dimension: no weight decay
        self.quiet = False

    def forward(self, w: Tensor) -> Tensor:
        return w if self.quiet else w + self.alpha * w.detach().std(correction=0) * torch.randn_like(w)


def noise_coefficients(model: nn.Module) -> dict[str, float]:
    r"""The learned $|\alpha|$ by layer; the sign of noise says nothing."""
    return {
        name.removesuffix("parametrizations.weight.0").removesuffix("."): abs(float(m.alpha.detach()))
        for name, m in model.named_modules()
        if isinstance(m, _Disturbed)
    }
