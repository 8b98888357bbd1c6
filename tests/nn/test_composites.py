"""Recurrent layers, attention and transposed convolutions on chips, against torch's own."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from galvanic import calibrate_ranges, convert, describe, load_profile, program, reads, to_digital
from galvanic.nn import analog_layers
from galvanic.nn.written import Stored
from galvanic.physics import DifferentialPair, Gaussian, Quantize
from galvanic.profile import Profile
from galvanic.ranges import Dynamic, Fixed

# every part of the signal path, at a strength that changes nothing beyond rounding
QUIET = Profile(
    name="quiet",
    input=(Quantize(step=2.0**-45),),
    weight=(Gaussian(std=0.0, per="write"),),
    output=(Gaussian(std=0.0), Quantize(step=2.0**-45)),
    encoding=DifferentialPair(),
    rows=4,
    columns=4,
    input_range=Fixed(value=4.0),
    output_range=Dynamic(),
)


def on_chip(model, profile=QUIET):
    return convert(model.double(), profile, chip=0)


def assert_same(analog, digital):
    if isinstance(digital, tuple):
        for a, d in zip(analog, digital, strict=True):
            assert_same(a, d)
    elif digital is not None:
        torch.testing.assert_close(analog, digital, rtol=1e-9, atol=1e-9)


RECURRENT = [
    (kind, {"num_layers": layers, "bidirectional": two, "batch_first": first, "bias": bias})
    for kind, layers, two, first, bias in itertools.product((nn.RNN, nn.LSTM, nn.GRU), (1, 2), (False, True), (False, True), (False, True))
] + [(nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}), (nn.RNN, {"nonlinearity": "relu"})]


@pytest.mark.parametrize(("kind", "options"), RECURRENT, ids=lambda v: getattr(v, "__name__", None) or "-".join(map(str, v.values())))
def test_a_recurrent_layer_without_strength_is_torchs_own_for_sequences_states_and_packed_sequences(kind, options):
    torch.manual_seed(0)
    digital = kind(5, 6, **options).double()
    analog = on_chip(digital)
    x = torch.randn(4, 3, 5).double()
    directions = digital.num_layers * (1 + digital.bidirectional)
    batch = 4 if digital.batch_first else 3
    h = torch.randn(directions, batch, digital.proj_size or 6).double()
    state = (h, torch.randn(directions, batch, 6).double()) if kind is nn.LSTM else h
    assert_same(analog(x), digital(x))
    assert_same(analog(x, state), digital(x, state))
    alone = x[0] if digital.batch_first else x[:, 0]
    assert_same(analog(alone), digital(alone))
    packed = pack_sequence([torch.randn(n, 5).double() for n in (2, 4, 1)], enforce_sorted=False)
    h = torch.randn(directions, 3, digital.proj_size or 6).double()
    state = (h, torch.randn(directions, 3, 6).double()) if kind is nn.LSTM else h
    (y, last), (y_digital, last_digital) = analog(packed, state), digital(packed, state)
    assert_same(pad_packed_sequence(y), pad_packed_sequence(y_digital))
    assert_same(last, last_digital)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_without_strength_is_torchs_own(kind):
    torch.manual_seed(0)
    digital = kind(5, 6).double()
    analog = on_chip(digital)
    x, h = torch.randn(3, 5).double(), torch.randn(3, 6).double()
    state = (h, h + 1) if kind is nn.LSTMCell else h
    assert_same(analog(x), digital(x))
    assert_same(analog(x, state), digital(x, state))
    assert_same(analog(x[0]), digital(x[0]))


ATTENTION = [
    {"batch_first": True},
    {"batch_first": False, "bias": False},
    {"batch_first": True, "kdim": 5, "vdim": 7},
    {"batch_first": True, "add_bias_kv": True},
    {"batch_first": False, "add_zero_attn": True, "add_bias_kv": True},
]


@pytest.mark.parametrize("options", ATTENTION, ids=str)
@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both", "float"])
def test_attention_without_strength_is_torchs_own(options, need, masks):
    torch.manual_seed(0)
    digital = nn.MultiheadAttention(8, 2, **options).double()
    analog = on_chip(digital)
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 5, options.get("kdim", 8)), torch.randn(3, 5, options.get("vdim", 8))
    if not options["batch_first"]:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    q, k, v = q.double(), k.double(), v.double()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.ones(4, 5, dtype=torch.bool).triu(1)
    given = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "both": {"key_padding_mask": padding, "attn_mask": causal.expand(6, 4, 5)},
        "float": {"attn_mask": torch.randn(4, 5).double()},
    }[masks]
    assert_same(analog(q, k, v, need_weights=need, **given), digital(q, k, v, need_weights=need, **given))
    if need:
        each = {"average_attn_weights": False, **given}
        assert_same(analog(q, k, v, **each), digital(q, k, v, **each))
    if masks == "none" and options["batch_first"]:
        assert_same(analog(q[0], k[0], v[0]), digital(q[0], k[0], v[0]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose3d(4, 2, 2, dilation=2),
    ],
    ids=str,
)
def test_a_transposed_convolution_is_the_sum_of_digitised_ones_over_its_channels(layer):
    torch.manual_seed(0)
    layer = layer.double()
    kernel, channels = layer.weight[0, 0].numel(), 4 // layer.groups
    profile = Profile(name="t", output=(Quantize(bits=6),), rows=kernel * max(1, channels // 2), output_range=Fixed(value=3.0))
    analog = convert(layer, profile, chip=0)
    x = torch.randn(2, 4, *[5] * (layer.weight.ndim - 2)).double()
    w = layer.weight.detach().unflatten(0, (layer.groups, channels))  # (groups, channels, columns, *kernel)
    scale = w.abs().amax(dim=(1, *range(3, w.ndim)), keepdim=True)
    total = 0
    for part in torch.arange(channels).split(max(1, channels // 2)):
        masked = torch.zeros_like(w)
        masked[:, part] = (w / scale)[:, part]
        exact = convert(layer, load_profile("ideal"), chip=0).digital(x, masked.flatten(0, 1), *([layer.output_padding]))
        exact = exact - layer.bias.view(-1, *[1] * (x.ndim - 2))
        total = total + (exact / 3.0 * 31).clamp(-31, 31).round() / 31 * 3.0
    expected = total * scale.flatten().view(-1, *[1] * (x.ndim - 2)) + layer.bias.view(-1, *[1] * (x.ndim - 2))
    torch.testing.assert_close(analog(x), expected, rtol=1e-12, atol=1e-12)
    size = [s + 1 for s in layer(x).shape[2:]] if layer.stride[0] > 1 and layer.output_padding[0] == 0 else list(layer(x).shape[2:])
    assert analog(x, output_size=size).shape == layer(x, output_size=size).shape


def test_a_transformer_with_decoder_runs_on_a_chip_trains_and_comes_back():
    torch.manual_seed(0)
    digital = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    analog = convert(digital, load_profile("pcm"), chip=0)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    for layer in analog_layers(analog).values():  # ranges of a model with two inputs: as they come
        for side in ("input", "output"):
            layer.set_range(side, 4.0)
    names = {r["layer"] for r in describe(analog) if r["where"] == "analog"}
    assert {f"decoder.layers.0.multihead_attn.{k}_projection" for k in ("q", "k", "v", "out")} <= names
    y = analog(source, target)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in analog.parameters())
    assert not torch.allclose(y, digital(source, target))
    assert torch.equal(to_digital(analog)(source, target), digital(source, target))


def test_every_matrix_of_a_recurrent_layer_has_devices_and_ranges_of_its_own_and_follows_the_weight():
    torch.manual_seed(0)
    model = nn.LSTM(4, 4)
    analog = convert(model, load_profile("pcm"), chip=5)
    x = torch.randn(6, 2, 4)
    calibrate_ranges(analog, [x])
    layers = analog_layers(analog)
    assert list(layers) == ["ih_l0", "hh_l0"]
    assert set(analog.state_dict()) == set(model.state_dict()) | {f"{n}.{s}_range" for n in layers for s in ("input", "output")}
    a, b = (layer._draws["weight", 0] for layer in layers.values())
    assert not torch.equal(a, b)
    with reads(analog, "off"), torch.no_grad():
        before = analog(x)[0]
        assert torch.equal(analog(x)[0], before)
        analog.weight_hh_l0.mul_(0.5)
        changed = analog(x)[0]
        assert not torch.equal(changed, before)
        assert not torch.equal(program(analog, chip=6)(x)[0], changed)
        assert torch.equal(program(analog, chip=5)(x)[0], changed)
    moved = analog.double()
    assert {layer._draws["weight", 0].dtype for layer in analog_layers(moved).values()} == {torch.float64}
    assert moved(x.double())[0].dtype == torch.float64


@torch.no_grad()
def test_attention_that_is_read_again_is_not_written_again(monkeypatch):
    torch.manual_seed(0)
    analog = convert(nn.MultiheadAttention(8, 2, batch_first=True), QUIET, chip=0).float()
    written = []
    real = Stored._written
    monkeypatch.setattr(Stored, "_written", lambda self, at: written.append(self) or real(self, at))
    x = torch.randn(2, 3, 8)
    first = analog(x, x, x)[0]
    assert torch.equal(analog(x, x, x)[0], first)
    assert len(written) == 4
    analog.in_proj_weight[0].mul_(3)  # a row of the queries alone
    assert not torch.equal(analog(x, x, x)[0], first)
    assert len(written) == 5
