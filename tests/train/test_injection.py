"""Noise of learned size on digital weights: what it draws, that cross-entropy switches it off, and that baking takes it away."""

import pytest
import torch
from torch import nn

from galvanic.nn import convert, resnet, to_digital
from galvanic.profile import load_profile
from galvanic.train import LSQ, ParametricNoise, cross_entropy, steps
from galvanic.train.injection import noise_coefficients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def prepared(start: float = 0.25) -> nn.Sequential:
    model = network()
    ParametricNoise(start=start).prepare(model)
    return model


def test_weights_are_disturbed_by_alpha_standard_deviations_anew_in_every_pass():
    model = nn.Sequential(nn.Linear(100, 100))
    plain = model[0].weight.detach().clone()
    ParametricNoise(start=0.5).prepare(model)
    torch.manual_seed(0)
    noise = torch.stack([(model[0].weight - plain).detach() for _ in range(20)]) / plain.std(correction=0)
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 * 0.5 / n**0.5
    assert abs(float(noise.std()) / 0.5 - 1) < 5 / (2 * n) ** 0.5
    pairs = torch.corrcoef(noise.flatten(1))[~torch.eye(20, dtype=torch.bool)]
    assert float(pairs.abs().max()) < 6 / 100  # 100 x 100 weights: correlations of chance have a standard deviation of 1 / 100


def test_the_gradient_of_alpha_is_that_of_the_loss_along_the_noise():
    """With the draw held, d/d alpha of sum(c w~) is std(w) sum(c epsilon), in double precision."""
    layer = nn.Linear(5, 4).double()
    w = layer.weight.detach().clone()
    ParametricNoise().prepare(layer)
    c = torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(1)
    (c * layer.weight).sum().backward()
    torch.manual_seed(1)
    epsilon = torch.randn(4, 5, dtype=torch.float64)
    found = layer.parametrizations.weight
    torch.testing.assert_close(found[0].alpha.grad.double(), (c * epsilon).sum().view(1) * w.std(correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.original.grad, c, rtol=0, atol=0)


def test_alpha_has_one_dimension_so_that_it_is_not_decayed():
    assert [p.ndim for name, p in prepared().named_parameters() if name.endswith("alpha")] == [1, 1]


def test_under_plain_cross_entropy_the_noise_switches_itself_off():
    """He et al. report coefficients of 0.002 to 0.009 after such a training that started at 0.25."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = (torch.randn(3, 1, 4, 4, generator=draw)[y] + torch.randn(90, 1, 4, 4, generator=draw) / 2).float()
    model = prepared()
    before = noise_coefficients(model)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in steps(model, [(x, y)] * 150, cross_entropy, optimizer):
        pass
    after = noise_coefficients(model)
    assert before == {"0": 0.25, "4": 0.25}
    assert all(after[name] < 0.25 / 4 for name in before)


def test_coefficients_are_told_by_layer_also_of_a_model_that_is_one():
    assert set(noise_coefficients(prepared())) == {"0", "4"}
    layer = nn.Linear(3, 2)
    assert noise_coefficients(layer) == {}
    ParametricNoise(start=0.5).prepare(layer)
    assert noise_coefficients(layer) == {"": 0.5}
    with torch.no_grad():
        layer.parametrizations.weight[0].alpha.fill_(-0.25)
    assert noise_coefficients(layer) == {"": 0.25}  # the sign says nothing


def test_baking_leaves_the_trained_weights_bit_for_bit_in_ordinary_layers():
    model = prepared()
    trained = {name: model[int(name)].parametrizations.weight.original.detach().clone() for name in ("0", "4")}
    x = torch.randn(2, 1, 4, 4)
    assert not torch.equal(model(x), model(x))
    ParametricNoise().bake(model)
    assert set(model.state_dict()) == set(network().state_dict())
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert all(torch.equal(model[int(name)].weight, w) for name, w in trained.items())
    model.eval()
    assert torch.equal(model(x), model(x))


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    ParametricNoise().prepare(model)
    ParametricNoise().bake(model)
    assert model[0].weight is model[1].weight or model[0].weight.data_ptr() == model[1].weight.data_ptr()


def test_baking_leaves_other_parametrisations_alone():
    model = network()
    LSQ(bits=4).prepare(model)
    ParametricNoise().bake(model)
    assert hasattr(model[0], "parametrizations")


def test_a_model_with_noise_goes_on_a_chip_and_comes_back():
    model = prepared()
    placed = convert(model, load_profile("ideal"), chip=0)
    assert noise_coefficients(placed) == noise_coefficients(to_digital(placed)) == {"0": 0.25, "4": 0.25}
    ParametricNoise().bake(placed)
    back = to_digital(placed)
    assert [type(m) for m in back] == [type(m) for m in network()]
    assert torch.equal(back[0].weight, model[0].parametrizations.weight.original)


def test_residual_networks_are_disturbed_throughout():
    model = resnet((1, 1), width=4)
    layers = {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    ParametricNoise().prepare(model)
    assert set(noise_coefficients(model)) == layers


@pytest.mark.parametrize("start", [0.0, -0.1, float("nan"), float("inf")])
def test_a_start_that_is_no_noise_is_refused(start):
    with pytest.raises(ValueError, match=r"^ParametricNoise\.start = "):
        ParametricNoise(start=start)


def test_what_cannot_be_disturbed_is_refused_before_anything_changes():
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        ParametricNoise().prepare(nn.Sequential(nn.ReLU()))
    lazy = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"^layer '1' is lazy and has no weight yet: call the model once"):
        ParametricNoise().prepare(lazy)
    assert noise_coefficients(lazy) == {}
    normed = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    for model in (normed, prepared()):
        before = noise_coefficients(model)
        with pytest.raises(ValueError, match=r"^layer '\d': its weight is parametrised already; bake or remove that first"):
            ParametricNoise().prepare(model)
        assert noise_coefficients(model) == before
