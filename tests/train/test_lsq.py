"""Training with quantised weights: the published gradient, and that the chip holds what was trained."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from galvanic.nn import analog_layers, convert, to_digital
from galvanic.physics import Quantize
from galvanic.profile import Profile
from galvanic.studies.datasets import load
from galvanic.train import cross_entropy, steps
from galvanic.train.lsq import LSQ, StraightThrough
from galvanic.train.rounding import MinMax, top_level

KINDS = [LSQ, StraightThrough]
SCALES = ["column", "layer"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
every_scale = pytest.mark.parametrize("scale", SCALES)

LAYERS = {
    "linear": (lambda: nn.Linear(9, 6), (5, 9)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (3, 4, 5, 5)),
}


def hardware(bits: int, scale: str = "column") -> Profile:
    return Profile(name="weights", weight=(Quantize(bits=bits),), weight_scale=scale)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, count: int, learning_rate: float = 1e-3, batch: int = 64) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(0)
    batches = (torch.randint(len(x), (batch,), generator=order) for _ in range(count))
    for _ in steps(model, ((x[chosen], y[chosen]) for chosen in batches), cross_entropy, optimizer):
        pass


# ------------------------------------------------------------------------------------------------------------------- the chip


@every_scale
@every_kind
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_chip_holds_what_is_trained_bit_for_bit_before_and_after_baking(layer, bits, kind, scale):
    build, shape = LAYERS[layer]
    model, x, method = build(), torch.randn(shape), kind(bits=bits, weight_scale=scale)
    method.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(5):  # away from where everything began
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    y = model(x)
    assert torch.equal(convert(model, hardware(bits, scale), chip=1)(x), y)
    method.bake(model)
    assert type(model) is type(build())
    assert torch.equal(model(x), y)
    chip = convert(model, hardware(bits, scale), chip=1)
    assert torch.equal(chip(x), y)
    v = chip.cells(chip.weight) / chip.scale() * top_level(bits)
    torch.testing.assert_close(v, v.round(), rtol=0, atol=1e-4)


@every_scale
@pytest.mark.parametrize("layer", LAYERS)
def test_the_full_scale_is_the_hardwares(layer, scale):
    model = LAYERS[layer][0]()
    chip = convert(model, hardware(3, scale), chip=0)
    nn.init.zeros_(chip.cells(chip.weight)[:, 1])
    w, expected = chip.weight.detach().clone(), chip.scale()
    StraightThrough(bits=3, weight_scale=scale).prepare(model)
    grid = model.parametrizations.weight[0]
    assert torch.equal(grid.full_scale(grid.cells(w)).expand_as(expected), expected)
    assert torch.equal(grid.native(grid.cells(w)), w)


@every_kind
def test_a_parametrised_chip_trains_as_the_parametrised_model_does(kind):
    digital, x, y = network(), torch.randn(40, 9), torch.randint(4, (40,))
    kind(bits=3).prepare(digital)
    chip = convert(digital, hardware(3), chip=0)
    for model in (digital, chip):
        cross_entropy(model, (x, y)).backward()
    for (name, a), (_, b) in zip(digital.named_parameters(), chip.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(m.parametrizations.weight.original.grad.abs().sum() > 0 for m in analog_layers(chip).values())
    train(chip, x, y, 20, 0.01)
    back = to_digital(chip)
    kind(bits=3).bake(back)
    assert torch.equal(back(x), chip(x))


@every_kind
def test_a_checkpoint_resumes_on_a_model_that_was_prepared_alike(kind):
    x, y = torch.randn(40, 9), torch.randint(4, (40,))
    trained, fresh = network(), network()
    kind(bits=2).prepare(trained)
    kind(bits=2).prepare(fresh)
    train(trained, x, y, 10, 0.01)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))
    chips = [convert(m, hardware(2), chip=0) for m in (network(), trained)]
    kind(bits=2).prepare(chips[0])
    chips[0].load_state_dict(trained.state_dict())  # a chip has the keys of its digital model
    assert torch.equal(chips[0](x), trained(x))
    for model in (fresh, trained):
        train(model, x, y, 10, 0.01)
    assert torch.equal(fresh(x), trained(x))


# ------------------------------------------------------------------------------------------------------------------- the gradients


def prepared_linear(bits: int, scale: str) -> tuple[nn.Linear, nn.Parameter]:
    layer = nn.Linear(30, 4, bias=False, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    LSQ(bits=bits, weight_scale=scale).prepare(layer)
    step = layer.parametrizations.weight[0].step
    with torch.no_grad():
        step.copy_(layer.parametrizations.weight.original.abs().mean() / top_level(bits))  # some weights are clipped, some are not
    return layer, step


@every_scale
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_gradients_are_the_published_ones(bits, scale):
    layer, step = prepared_linear(bits, scale)
    w, top = layer.parametrizations.weight.original.detach(), top_level(bits)
    g = torch.randn(4, 30, dtype=torch.float64)
    (layer.weight * g).sum().backward()
    v = w / step.detach().view(-1, 1)
    slope = torch.where(v <= -top, -float(top), torch.where(v >= top, float(top), v.round() - v))
    per_column = (slope * g).sum(1)
    count = 30 if scale == "column" else 120
    expected = (per_column if scale == "column" else per_column.sum(0, keepdim=True)) / (count * top) ** 0.5
    torch.testing.assert_close(step.grad, expected)
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, g * (v.abs() < top))
    assert 0.1 < (v.abs() < top).double().mean() < 0.9


@pytest.mark.parametrize("bits", [2, 4])
def test_the_step_gradient_is_the_finite_difference_of_what_rounding_leaves_fixed(bits):
    layer, step = prepared_linear(bits, "column")
    w, top = layer.parametrizations.weight.original.detach(), top_level(bits)
    s = step.detach().view(-1, 1)
    residual = (w / s).clamp(-top, top).round() - (w / s).clamp(-top, top)

    def surrogate(s):
        return (s * ((w / s).clamp(-top, top) + residual)).square().sum(1)

    layer.weight.square().sum().backward()
    h = 1e-7
    numeric = (surrogate(s + h) - surrogate(s - h)) / (2 * h)
    torch.testing.assert_close(step.grad * (30 * top) ** 0.5, numeric, rtol=1e-5, atol=1e-6)


def test_where_the_step_is_too_large_for_the_top_level_the_largest_weight_has_its_gradient():
    layer, step = prepared_linear(4, "column")
    with torch.no_grad():
        step.fill_(10.0)
    w = layer.parametrizations.weight.original
    assert torch.equal(layer.weight, MinMax().apply(_linear(w), hardware(4)).weight)
    g = torch.randn(4, 30, dtype=torch.float64)
    (layer.weight * g).sum().backward()
    assert step.grad.abs().max() == 0
    v = w.detach() / (w.detach().abs().amax(1, keepdim=True) / 7)
    largest = v.abs() == v.abs().amax(1, keepdim=True)
    through = ((v.round() - v) * g).sum(1) / 7 * v[largest].sign()
    torch.testing.assert_close(w.grad[largest], g[largest] + through)
    torch.testing.assert_close(w.grad[~largest], g[~largest])


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


def test_the_step_starts_at_twice_the_mean_magnitude_over_the_root_of_the_top_level():
    layer = nn.Linear(30, 4)
    nn.init.zeros_(layer.weight[1])
    w = layer.weight.detach().clone()
    LSQ(bits=4).prepare(layer)
    expected = 2 * w.abs().mean(1) / 7**0.5
    step = layer.parametrizations.weight[0].step
    torch.testing.assert_close(step[[0, 2, 3]], expected[[0, 2, 3]])
    assert step[1] > 0
    assert layer.weight[1].abs().max() == 0


@pytest.mark.parametrize("value", [0.0, -0.05])
def test_a_step_at_or_below_zero_does_no_harm(value):
    layer = nn.Linear(30, 4)
    LSQ(bits=3).prepare(layer)
    with torch.no_grad():
        layer.parametrizations.weight[0].step.fill_(value)
    layer(torch.randn(5, 30)).square().sum().backward()
    assert layer.weight.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    if value:
        same = layer.weight.detach().clone()
        with torch.no_grad():
            layer.parametrizations.weight[0].step.neg_()
        assert torch.equal(layer.weight, same)


@every_scale
def test_straight_through_rounds_as_the_chip_does_and_passes_the_whole_gradient(scale):
    model = nn.Linear(9, 6)
    expected = MinMax().apply(model, hardware(3, scale)).weight.detach()
    StraightThrough(bits=3, weight_scale=scale).prepare(model)
    g = torch.randn(6, 9)
    (model.weight * g).sum().backward()
    assert torch.equal(model.weight, expected)
    assert torch.equal(model.parametrizations.weight.original.grad, g)


# ------------------------------------------------------------------------------------------------------------------- ties, parts, mistakes


@every_kind
def test_tied_weights_stay_tied(kind):
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    x, method = torch.randn(8, 6), kind(bits=3)
    method.prepare(model)
    assert model[2].parametrizations.weight[0] is model[0].parametrizations.weight[0]
    train(model, x, torch.randint(6, (8,)), 5, 0.01)
    y = model(x)
    method.bake(model)
    assert model[2].weight is model[0].weight
    torch.testing.assert_close(model(x), y)


def test_parts_of_a_model_may_have_other_bits_and_recurrent_layers_stay_as_they_are():
    model = nn.ModuleDict({"first": nn.Linear(20, 8), "rest": nn.Sequential(nn.Linear(8, 8), nn.GRUCell(8, 4))})
    LSQ(bits=8).prepare(model["first"])
    LSQ(bits=2).prepare(model["rest"])
    assert not parametrize.is_parametrized(model["rest"][1])
    LSQ(bits=8).bake(model)
    assert all(row.unique().numel() <= 3 for row in model["rest"][0].weight)
    assert model["first"].weight.unique().numel() > 50
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


@every_kind
def test_mistakes_are_told_in_a_line(kind):
    method, broken, twice, lazy = kind(bits=3), network(), network(), nn.Sequential(nn.LazyLinear(3))
    broken[2].weight.data[1, 2] = float("inf")
    method.prepare(twice)
    for model, message in [
        (broken, r"layer '2': its weight holds NaN or infinity, for which there is no level"),
        (twice, r"layer '0': its weight is parametrised already; bake or remove that first"),
        (lazy, r"layer '0' is lazy and has no weight yet: call the model once, then prepare it"),
        (nn.LSTM(3, 3), r"the model has no linear or convolution layer whose weights could be quantised"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            method.prepare(model)
        assert "\n" not in str(caught.value)
    assert not parametrize.is_parametrized(broken[0])  # nothing was begun
    with pytest.raises(ValueError, match=r"no layer of the model is prepared for quantised training; prepare\(model\) comes before"):
        method.bake(network())
    twice[0].parametrizations.weight.original.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '0': its weight holds NaN"):
        method.bake(twice)


@every_kind
@pytest.mark.parametrize("changes", [{"bits": 1}, {"bits": 25}, {"bits": 3, "weight_scale": "row"}], ids=str)
def test_settings_out_of_range_are_refused(kind, changes):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\.(bits = (1|25)|weight_scale = 'row'): "):
        kind(**changes)


# ------------------------------------------------------------------------------------------------------------------- what it is for


def test_two_bit_weights_lose_digits_by_rounding_and_hardly_any_by_training():
    digits = load("digits")
    x, x_test = digits.x_train.flatten(1), digits.x_test.flatten(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        return (model(x_test).argmax(1) == digits.y_test).double().mean().item()

    train(model, x, digits.y_train, 400, 3e-3)
    rounded = MinMax().apply(model, hardware(2, "layer"))
    found = {"digital": accuracy(model), "rounded": accuracy(convert(rounded, hardware(2, "layer"), chip=0))}
    for kind in KINDS:
        trained, method = copy.deepcopy(model), kind(bits=2, weight_scale="layer")
        method.prepare(trained)
        train(trained, x, digits.y_train, 400)
        method.bake(trained)
        found[kind.__name__] = accuracy(convert(trained, hardware(2, "layer"), chip=0))
    assert found["digital"] > 0.95
    assert found["LSQ"] > found["digital"] - 0.025
    assert found["StraightThrough"] > found["digital"] - 0.04
    assert found["rounded"] < found["LSQ"] - 0.25
