"""Residual layers: what they compute, that they learn, and that on a chip the chip makes the noise."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import vmap

from galvanic import convert, describe, load_profile, to_digital
from galvanic.nn import AdaptiveNoise, AdditiveResidual, GatedResidual, ResidualBlock, anchor, simulate
from galvanic.physics import GainOffset, Gaussian, Nonlinearity, Quantize
from galvanic.ranges import Dynamic


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def noise(axis=None):
    return AdaptiveNoise((Gaussian(std=0.05), GainOffset(gain_std=0.05), Quantize(bits=6), Nonlinearity(third=-0.05)), axis=axis)


class Tokens(nn.Module):
    """A layer that mixes tokens and features."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(7, 7)
        self.map = nn.Linear(6, 6)

    def forward(self, x):
        return self.map(self.mix(x.mT).mT)


LAYERS = {
    "linear": (lambda: GatedResidual(nn.Linear(6, 6), 6, noise=noise()), lambda: torch.randn(3, 6)),
    "tokens": (lambda: GatedResidual(Tokens(), 6, noise=noise()), lambda: torch.randn(3, 7, 6)),
    "image": (lambda: GatedResidual(nn.Conv2d(6, 6, 3, padding=1), 6, noise=noise()), lambda: torch.randn(2, 6, 5, 5)),
    "narrower": (
        lambda: GatedResidual(nn.Conv2d(6, 4, 3, 2, 1), 4, noise=noise(), shortcut=nn.Conv2d(6, 4, 1, 2)),
        lambda: torch.randn(2, 6, 6, 6),
    ),
    "sequence": (lambda: GatedResidual(nn.Conv1d(6, 6, 3, padding=1), 6, noise=noise(axis=1), axis=1), lambda: torch.randn(2, 6, 9)),
    "volume": (lambda: GatedResidual(nn.Conv3d(6, 6, 1), 6, noise=noise()), lambda: torch.randn(2, 6, 3, 3, 3)),
    "additive": (lambda: AdditiveResidual(nn.Linear(6, 6), nn.Linear(6, 6, bias=False), noise(), beta=0.5), lambda: torch.randn(3, 6)),
    "additive image": (lambda: AdditiveResidual(nn.Conv2d(6, 6, 3, padding=1), nn.Identity(), noise()), lambda: torch.randn(2, 6, 5, 5)),
    "gate alone": (lambda: GatedResidual(nn.Linear(6, 6), 6), lambda: torch.randn(3, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    build, data = LAYERS[request.param]
    return build(), data()


def drawn(layer, x, seed=0):
    torch.manual_seed(seed)
    return layer(x)


def test_a_plain_block_is_the_rectified_sum():
    inner, shortcut, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(5, 4)
    assert torch.equal(ResidualBlock(inner, shortcut)(x), torch.relu(inner(x) + shortcut(x)))
    square = nn.Linear(4, 4)
    assert torch.equal(ResidualBlock(square)(x), torch.relu(square(x) + x))


def test_a_gated_layer_mixes_channel_by_channel_and_adds_the_noise_of_the_mixture():
    inner, shortcut, x = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5)
    layer = GatedResidual(inner, 4, shortcut=shortcut, noise=noise(), gate=0.3)
    torch.testing.assert_close(layer.gate, torch.full((4,), 0.3))
    with torch.no_grad():
        layer.gate_logit.copy_(torch.tensor([-3.0, -1.0, 1.0, 3.0]))
    a = torch.sigmoid(torch.tensor([-3.0, -1.0, 1.0, 3.0])).view(4, 1, 1)
    u = a * shortcut(x) + (1 - a) * inner(x)
    torch.testing.assert_close(drawn(layer, x), u + drawn(layer.noise, u))


def test_the_gate_is_on_the_last_axis_of_tokens_and_on_the_second_of_sequences():
    x = torch.randn(2, 6, 6)
    for axis, shape in ((None, (6,)), (1, (6, 1))):
        layer = GatedResidual(nn.Linear(6, 6), 6, axis=axis)
        with torch.no_grad():
            layer.gate_logit.normal_()
        a = layer.gate.view(shape)
        torch.testing.assert_close(layer(x), a * x + (1 - a) * layer.inner(x))


def test_an_additive_layer_is_the_sum_of_its_three_terms():
    inner, transform, h = nn.Linear(4, 3), nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    perturbation = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    layer = AdditiveResidual(inner, transform, perturbation, alpha=0.7, beta=-0.2)
    torch.testing.assert_close(layer(h), inner(h) + 0.7 * transform(h) - 0.2 * perturbation(h))


def test_every_parameter_learns(case):
    layer, x = case
    target = drawn(layer, x).detach() + 1
    (layer(x) - target).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and p.grad.any(), name  # noqa: PT018


def test_gradients_are_those_of_finite_differences():
    smooth = AdaptiveNoise((GainOffset(gain=0.1, gain_std=0.05), Gaussian(std=0.1, relative=True)))
    for layer in (GatedResidual(nn.Linear(3, 3), 3, noise=smooth), AdditiveResidual(nn.Linear(3, 3), nn.Identity(), smooth)):
        layer, x = layer.double(), torch.randn(2, 3, dtype=torch.float64)
        names, values = zip(*layer.named_parameters(), strict=True)

        def fixed(*values, layer=layer, names=names, x=x):
            torch.manual_seed(1)
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        torch.autograd.gradcheck(fixed, tuple(p.detach().clone().requires_grad_() for p in values))


def test_on_ideal_hardware_a_layer_is_bit_for_bit_the_digital_one_without_simulated_noise(case):
    layer, x = case
    digital = copy.deepcopy(layer)
    analog = convert(nn.Sequential(layer), load_profile("ideal"), chip=0)
    simulate(digital, False)
    assert torch.equal(analog(x), digital(x))
    assert torch.equal(drawn(to_digital(analog), x), drawn(layer, x))
    assert "analog" in {row["where"] for row in describe(analog)}


def test_on_a_chip_the_keys_of_the_checkpoint_stay_and_no_noise_is_simulated(case):
    layer, _ = case
    profile = replace(load_profile("reram"), input_range=Dynamic(), output_range=Dynamic())
    analog = convert(layer, profile, chip=0)
    assert analog.state_dict().keys() == layer.state_dict().keys()
    assert not any(m.simulated for m in analog.modules() if isinstance(m, AdaptiveNoise))


def test_copies_and_strict_checkpoints_are_the_same_layer(case):
    layer, x = case
    assert torch.equal(drawn(copy.deepcopy(layer), x), drawn(layer, x))
    with torch.no_grad():
        other = copy.deepcopy(layer)
        for p in other.parameters():
            p.normal_()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(drawn(other, x), drawn(layer, x))


def test_every_precision_is_kept(case):
    layer, x = case
    for dtype in (torch.float64, torch.bfloat16):
        assert copy.deepcopy(layer).to(dtype)(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu"):
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("name", ["tokens", "narrower", "additive"])
def test_one_graph_gives_the_numbers_and_gradients_of_eager(name):
    layer, x = (make() for make in LAYERS[name])
    torch.compiler.reset()
    run = torch.compile(layer.double(), backend="aot_eager", fullgraph=True)
    outputs = [drawn(f, x.double()) for f in (run, layer)]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_vmap_draws_anew_for_every_copy(case):
    layer, x = case
    a, b = vmap(layer, randomness="different")(torch.stack([x, x]))
    assert torch.equal(a, b) == (isinstance(layer, GatedResidual) and layer.noise is None)
    simulate(layer, False)
    torch.testing.assert_close(vmap(layer, randomness="different")(torch.stack([x, 2 * x])), torch.stack([layer(x), layer(2 * x)]))


def test_the_anchor_holds_the_strength_of_physical_noise_too():
    layer = AdditiveResidual(nn.Linear(3, 3), nn.Identity(), AdaptiveNoise((Gaussian(std=0.1),), tolerance=0.2), beta=0.5)
    assert anchor(layer) == 0
    with torch.no_grad():
        layer.beta.fill_(0.4)
    torch.testing.assert_close(anchor(layer), torch.tensor(0.5))
    assert anchor(AdditiveResidual(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 3))) == 0


@pytest.mark.parametrize("gate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_gate_outside_of_its_interval_is_refused(gate):
    with pytest.raises(ValueError, match=r"gate = .*: a number between 0 and 1, both excluded"):
        GatedResidual(nn.Linear(3, 3), 3, gate=gate)


def test_shapes_that_do_not_fit_are_refused():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"the shortcut gives \(2, 3\) and the inner module \(2, 4\); give a shortcut"):
        GatedResidual(nn.Linear(3, 4), 4)(x)
    with pytest.raises(ValueError, match=r"channels = 5, but the inner module gives \(2, 3\), whose axis 1 has 3"):
        GatedResidual(nn.Linear(3, 3), 5)(x)
    with pytest.raises(ValueError, match=r"whose axis 2 has 9; axis= says where"):
        GatedResidual(nn.Conv1d(3, 3, 1), 3)(torch.randn(2, 3, 9))
    with pytest.raises(ValueError, match=r"the transform gives \(2, 3\)"):
        AdditiveResidual(nn.Linear(3, 4), nn.Identity(), nn.Linear(3, 4))(x)
    with pytest.raises(ValueError, match=r"the perturbation gives \(2, 3\)"):
        AdditiveResidual(nn.Linear(3, 4), nn.Linear(3, 4), AdaptiveNoise(()))(x)
