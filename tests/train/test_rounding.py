"""Post-training quantisation: what the chip then holds is what was meant, and learned rounding serves the outputs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import analog_layers, convert, to_digital
from galvanic.physics import BitSliced, DifferentialPair, Gaussian, OffsetColumn, Parallel, Quantize
from galvanic.profile import Profile, load_profile
from galvanic.train.lsq import LSQ
from galvanic.train.rounding import AdaRound, LeastSquares, MinMax, on_grid, stretched_sigmoid, top_level, weight_bits

LOCAL = [MinMax(), LeastSquares()]
QUICK = AdaRound(steps=30, batch=8)
METHODS = [*LOCAL, QUICK]
by_name = lambda method: type(method).__name__  # noqa: E731

LAYERS = {
    "linear": (lambda: nn.Linear(9, 6), (5, 9)),
    "sequence": (lambda: nn.Linear(9, 6, bias=False), (2, 3, 9)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (3, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1), (3, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 4, 2), (2, 2, 3, 3, 3)),
}


def weights_only(bits: int = 3, **changes) -> Profile:
    return Profile(name="weights", **{"weight": (Quantize(bits=bits),)} | changes)


HARDWARE = {
    "column": weights_only(),
    "layer": weights_only(weight_scale="layer"),
    "power of two": weights_only(power_of_two_scales=True),
    "power of two, layer": weights_only(power_of_two_scales=True, weight_scale="layer"),
    "pair": weights_only(encoding=DifferentialPair()),
    "unsigned pair": weights_only(weight=(Quantize(bits=2, signed=False),), encoding=DifferentialPair()),
    "two bits": weights_only(2),
    "tiles": weights_only(rows=27),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 7), nn.ReLU(inplace=True), nn.Linear(7, 4))


# ------------------------------------------------------------------------------------------------------------------- the levels


def test_the_bits_of_the_weights_are_those_of_the_profiles():
    assert {name: weight_bits(load_profile(name)) for name in ("generic-4bit", "bss2", "mythic", "pcm")} == {
        "generic-4bit": 4,
        "bss2": 7,
        "mythic": 9,  # 255 levels a cell, and a pair of cells has the sign
        "pcm": None,
    }
    assert weight_bits(weights_only(5, weight=(Gaussian(std=0.1, per="chip"), Quantize(bits=5), Quantize(bits=2)))) == 5
    assert weight_bits(weights_only(5, encoding=Parallel(of=DifferentialPair(), count=2))) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": (Quantize(step=0.1),)},
        {"weight": (Quantize(bits=4, twos_complement=True),)},
        {"weight": (Quantize(bits=4, full_scale=0.5),)},
        {"weight": (Quantize(bits=4, signed=False),)},
        {"encoding": DifferentialPair(g_min=0.1)},
        {"encoding": OffsetColumn()},
        {"encoding": BitSliced(bits=2, slices=2)},
    ],
    ids=str,
)
def test_other_levels_are_refused(changes):
    with pytest.raises(ValueError, match="profile 'weights': its weights are not rounded to the levels k / "):
        weight_bits(weights_only(**changes))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_on_grid_takes_the_nearest_of_the_levels(bits):
    w, scale = torch.randn(50, 1, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    levels = scale * torch.arange(-top_level(bits), top_level(bits) + 1) / top_level(bits)
    nearest = levels[(w - levels).abs().argmin(1)]
    torch.testing.assert_close(on_grid(w, scale, bits).squeeze(1), nearest, rtol=1e-12, atol=0)


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match=r"bits = 1: a weight with a sign and a zero needs 2 or more"):
        on_grid(torch.ones(2), torch.tensor(1.0), 1)


# ------------------------------------------------------------------------------------------------------------------- laws of every method


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_the_chip_holds_the_rounded_weights_bit_for_bit(method, kind, hardware):
    build, shape = LAYERS[kind]
    model, x = build(), torch.randn(shape)
    rounded = method.apply(model, HARDWARE[hardware], [x])
    chip = convert(rounded, HARDWARE[hardware], chip=5)
    (layer,) = analog_layers(chip).values()
    cells = layer.cells(layer.weight)
    v = cells / layer.scale() * top_level(weight_bits(HARDWARE[hardware]))
    torch.testing.assert_close(v, v.round(), rtol=0, atol=1e-5)
    assert torch.equal(chip(x), rounded(x))
    again = MinMax().apply(rounded, HARDWARE[hardware])
    assert torch.equal(again.weight, rounded.weight)
    assert not torch.equal(rounded.weight, model.weight)


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_only_weights_change_and_only_in_the_copy(method):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rounded = method.apply(model, load_profile("generic-4bit"), [torch.randn(8, 1, 4, 4), (torch.randn(4, 1, 4, 4), None)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {k for k, v in rounded.state_dict().items() if not torch.equal(v, before[k])} == {"0.weight", "4.weight"}
    assert [m.training for m in rounded.modules()] == [m.training for m in model.modules()]
    assert all(p.requires_grad and type(p) is nn.Parameter for p in rounded.parameters())


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_neither_the_global_stream_nor_a_conversion_changes_the_result(method):
    model, x = network(), torch.randn(6, 9)
    state = torch.get_rng_state()
    first = method.apply(model, weights_only(), [x])
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    second = method.apply(convert(model, load_profile("pcm"), chip=1), weights_only(), iter([x]))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_every_layer_has_the_bits_of_its_own_profile(method):
    model, x = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 7), nn.Linear(7, 4)), torch.randn(6, 9)
    rounded = method.apply(model, {"0": weights_only(8), "2": None, "*": weights_only(2)}, [x])
    assert rounded[0].weight.unique().numel() > 20
    assert all(row.unique().numel() <= 3 for row in rounded[1].weight)
    assert torch.equal(rounded[2].weight, model[2].weight)


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_columns_of_zeros_stay_zeros(method):
    model = nn.Linear(9, 6)
    nn.init.zeros_(model.weight[1:3])
    rounded = method.apply(model, weights_only(), [torch.randn(8, 9)])
    assert rounded.weight[1:3].abs().max() == 0
    assert rounded.weight.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_tied_weights_stay_tied_and_recurrent_layers_stay_as_they_are(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.cell = nn.Linear(6, 6), nn.Linear(6, 6), nn.GRUCell(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(self.cell(x))))

    model, x = Net(), torch.randn(4, 6)
    rounded = method.apply(model, weights_only(), [x])
    assert rounded.second.weight is rounded.first.weight
    assert torch.equal(rounded.cell.weight_ih, model.cell.weight_ih)
    first = analog_layers(convert(rounded, weights_only(), chip=0))["first"]
    v = first.weight / first.scale().squeeze(0) * 3
    torch.testing.assert_close(v, v.round(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_the_precision_is_kept(method, dtype):
    model, x = network().to(dtype), torch.randn(6, 9, dtype=dtype)
    rounded = method.apply(model, weights_only(), [x])
    assert {p.dtype for p in rounded.parameters()} == {dtype}
    assert torch.equal(convert(rounded, weights_only(), chip=2)(x), rounded(x))


# ------------------------------------------------------------------------------------------------------------------- each method


def test_min_max_is_what_the_chip_does_anyway():
    model, x = network(), torch.randn(6, 9)
    assert torch.equal(MinMax().apply(model, weights_only())(x), convert(model, weights_only(), chip=0)(x))


@pytest.mark.parametrize("scale", ["column", "layer"])
def test_the_least_squared_error_is_that_of_a_search_by_hand(scale):
    model, bits = nn.Linear(40, 3), 3
    rounded = LeastSquares().apply(model, weights_only(bits, weight_scale=scale))
    w, rounded_w = model.weight.detach(), rounded.weight.detach()
    for part, chosen in zip(w, rounded_w, strict=True) if scale == "column" else [(w, rounded_w)]:
        errors = []
        for share in torch.arange(1, 81) / 80:
            s = part.abs().max() * share / 3
            errors.append((((part / s).round().clamp(-3, 3) * s - part) ** 2).sum())
        assert (chosen - part).square().sum() == pytest.approx(float(min(errors)), rel=1e-4)
        assert min(errors) < 0.9 * errors[-1]  # there was something to gain over the largest weight


def test_the_stretched_sigmoid_reaches_both_ends_and_is_its_formula():
    v = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = (1.2 / (1 + (-v).exp()) - 0.1).clip(0, 1)
    torch.testing.assert_close(stretched_sigmoid(v), expected)
    assert (stretched_sigmoid(v).min(), stretched_sigmoid(v).max()) == (0, 1)


def correlated(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    mix = torch.randn(12, 48, generator=torch.Generator().manual_seed(1))
    return (torch.randn(n, 12) @ mix / 4 + 0.1 * torch.randn(n, 48)).to(dtype)


@pytest.mark.parametrize("bits", [2, 4])
def test_learned_rounding_serves_held_out_outputs_better_and_moves_no_weight_by_a_level(bits):
    model, x, held_out = nn.Linear(48, 16), correlated(256), correlated(1000)
    profile = weights_only(bits)
    nearest = LeastSquares().apply(model, profile)
    learned = AdaRound(steps=300).apply(model, profile, [x])
    errors = [(m(held_out) - model(held_out)).square().mean() for m in (learned, nearest)]
    assert errors[0] < 0.75 * errors[1]
    scale = nearest.weight.abs().amax(1, keepdim=True)
    step = scale / top_level(bits)
    assert torch.equal(learned.weight.abs().amax(1, keepdim=True), scale)
    assert ((learned.weight - model.weight.clamp(-scale, scale)).abs() < step * 1.0001).all()
    assert not torch.equal(learned.weight, nearest.weight)


def test_without_steps_to_speak_of_rounding_is_to_nearest():
    model, x = nn.Linear(9, 6), torch.randn(6, 9)
    barely = AdaRound(steps=1, learning_rate=1e-9).apply(model, weights_only(), [x])
    torch.testing.assert_close(barely.weight, LeastSquares().apply(model, weights_only()).weight, rtol=1e-6, atol=0)


def test_a_later_layer_makes_up_for_the_errors_of_earlier_ones():
    """The second layer sees the rounded first one: its target is the digital output, not its own product."""
    model = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 16))
    x, held_out = correlated(512), correlated(1000)
    coarse, fine, method = weights_only(2), weights_only(4), AdaRound(steps=300)
    both = method.apply(model, {"0": coarse, "2": fine}, [x])
    alone = to_digital(both)
    with torch.no_grad():
        alone[2].weight.copy_(method.apply(model, {"0": None, "2": fine}, [x])[2].weight)
    errors = [(m(held_out) - model(held_out)).square().mean() for m in (both, alone)]
    assert errors[0] < 0.9 * errors[1]


def test_a_layer_that_the_inputs_do_not_reach_is_rounded_to_nearest():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.used = nn.Linear(9, 4), nn.Linear(9, 4)

        def forward(self, x):
            return self.used(x)

    model = Net()
    rounded = QUICK.apply(model, weights_only(), [torch.randn(6, 9)])
    assert torch.equal(rounded.idle.weight, LeastSquares().apply(model, weights_only()).idle.weight)


def test_a_layer_may_be_called_often_with_other_shapes_and_further_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(3, 3, 3, stride=2)

        def forward(self, x):
            return self.up(self.up(x, output_size=[12]), [26])

    model, x = Net(), torch.randn(4, 3, 5)
    rounded = QUICK.apply(model, weights_only(), [x, x[0]])  # the second without a batch
    assert torch.equal(convert(rounded, weights_only(), chip=0)(x), rounded(x))


# ------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_mistakes_are_told_in_a_line(method):
    x, profile = torch.randn(4, 9), weights_only()
    broken, prepared = network(), network()
    broken[2].weight.data[1, 2] = float("nan")
    LSQ(bits=3).prepare(prepared)
    for model, hardware, message in [
        (broken, profile, r"layer '2': its weight holds NaN or infinity, for which there is no level"),
        (prepared, profile, r"layer '0': its weight is computed by a parametrisation; bake or remove that first"),
        (network(), load_profile("pcm"), r"the profile does not quantise weights: there is no Quantize among its weight effects"),
        (network(), load_profile("northpole"), r"profile 'northpole': its weights are not rounded to the levels"),
        (nn.LSTM(9, 3), profile, r"the model has no linear or convolution layer whose weights could be rounded"),
        (nn.ReLU(), profile, r"the model has no layer that could go on a chip"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            method.apply(model, hardware, [x])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "AdaRound: the batches are empty"),
        ([torch.empty(0, 9)], "a batch is a tensor of inputs"),
        ([torch.full((2, 9), float("nan"))], r"AdaRound: the inputs of layer '0' are not finite; is there a NaN in the data\?"),
    ],
)
def test_learned_rounding_needs_inputs(batches, message):
    with pytest.raises(ValueError, match=message):
        QUICK.apply(network(), weights_only(), batches)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"warm_up": 1.5}, {"beta": (20.0, 0.5)}], ids=str)
def test_settings_out_of_range_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"^AdaRound\.{name} = "):
        replace(QUICK, **changes)
