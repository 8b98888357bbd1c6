"""The digital profiles compute what integer hardware does, bit by bit: NumPy's int64 arithmetic is the reference."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from galvanic import Conditions, age, at, calibrate_ranges, convert, load_profile
from galvanic.nn import analog_layers, fused
from galvanic.physics import Context


@dataclass(frozen=True)
class Format:
    """Bits of inputs, weights and accumulator; None: the accumulator never rounds."""

    input: int
    weight: int
    accumulator: int | None


FORMATS = {"integer-8bit": Format(8, 8, 16), "northpole": Format(8, 4, None)}


def power_of_two_above(x: np.ndarray) -> np.ndarray:
    """The smallest power of two that is not below x; 1 for 0."""
    mantissa, exponent = np.frexp(x)
    return np.where(x > 0, np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent)), 1.0)


def integers(x: np.ndarray, full_scale: np.ndarray | float, bits: int) -> np.ndarray:
    """Two's complement: 2^(bits - 1) codes to a full scale, a tie to the even one, saturated."""
    half = 2 ** (bits - 1)
    return np.clip(np.rint(x.astype(np.float64) * half / full_scale), -half, half - 1).astype(np.int64)


def patches(q: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """(batch, channels, height, width) -> (batch, height, width, channels, kernel, kernel) as the kernel meets them."""
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = layer.padding, layer.stride, layer.dilation, layer.kernel_size
    q = np.pad(q, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(q, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    return windows.transpose(0, 2, 3, 1, 4, 5)


def sums(q_x: np.ndarray, q_w: np.ndarray, layer: nn.Module, cut: slice) -> np.ndarray:
    """Exact sums of products over the input channels of one tile, of the layer's output shape."""
    if isinstance(layer, nn.Linear):
        return q_x[..., cut] @ q_w[:, cut].T
    columns, channels = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    found = []
    for group in range(layer.groups):
        part = patches(q_x[:, group * channels : (group + 1) * channels][:, cut], layer)
        found.append(np.einsum("bhwcij,ocij->bohw", part, q_w[group * columns : (group + 1) * columns][:, cut]))
    return np.concatenate(found, 1)


@dataclass
class Seen:
    """How often the reference met what makes integers hard."""

    clipped: int = 0
    ties: int = 0
    saturated: int = 0


def column_scale(layer: nn.Module) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    return power_of_two_above(np.abs(weight).reshape(len(weight), -1).max(1))


def against_output(columns: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A value per column against the layer's output."""
    return columns.reshape(-1, 1, 1) if isinstance(layer, nn.Conv2d) else columns


def reference(layer: nn.Module, x: np.ndarray, form: Format, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """The integers before the last shift, and what one of them is worth, of one layer, from its float weight and ranges."""
    weight, scale, r_x = layer.weight.detach().numpy(), column_scale(layer), float(layer.input_range)
    q_x = integers(x, r_x, form.input)
    q_w = integers(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)), form.weight)
    seen.clipped += int((np.abs(x) > r_x).sum())
    unit = 2.0 ** -(form.input - 1 + form.weight - 1)  # a product of codes, in cells
    parts = [sums(q_x, q_w, layer, cut) for cut in layer.cuts()]
    if form.accumulator is not None:
        half = 2 ** (form.accumulator - 1)
        shift = float(layer.output_range) / half / unit
        rounded = [np.rint(part / shift) for part in parts]
        seen.ties += sum(int((part % shift == shift / 2).sum()) for part in parts)
        seen.saturated += sum(int(((code < -half) | (code > half - 1)).sum()) for code in rounded)
        parts, unit = [np.clip(code, -half, half - 1).astype(np.int64) for code in rounded], unit * shift
    return sum(parts), against_output(unit * scale * r_x, layer)


NETWORKS = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 10)),
        (32, 40),
    ),
    "three tiles": (lambda: nn.Sequential(nn.Linear(2500, 64), nn.ReLU(), nn.Linear(64, 5)), (16, 2500)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, dilation=2, groups=2, bias=False),
            nn.ReLU(),
            nn.Conv2d(12, 6, (3, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 16, 10),
        ),
        (4, 3, 12, 12),
    ),
    "convolution on two tiles": (lambda: nn.Sequential(nn.Conv2d(130, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2)), (2, 130, 5, 5)),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_format = pytest.mark.parametrize("name", FORMATS)


def converted(network: str, name: str) -> tuple[nn.Sequential, torch.Tensor]:
    """A network on the profile, calibrated on weaker signals than it will meet, and inputs."""
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model, x = build(), torch.randn(shape)
    return calibrate_ranges(convert(model, load_profile(name), chip=0), [0.4 * x]), x


@every_format
@every_network
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("passes", ["fused", "one by one"])
def test_a_network_is_bit_equal_to_integer_arithmetic_layer_by_layer(network, name, grad, passes, monkeypatch):
    if passes == "one by one":  # as on an accelerator
        monkeypatch.setattr(fused, "possible", lambda x: False)
    model, x = converted(network, name)
    signal, seen = x.numpy(), Seen()
    with torch.set_grad_enabled(grad):
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Linear | nn.Conv2d):
                codes, unit = reference(layer, signal, FORMATS[name], seen)
                signal = (codes * unit).astype(np.float32)
                if layer.bias is not None:
                    signal = signal + against_output(layer.bias.detach().numpy(), layer)
            else:
                signal = layer(torch.from_numpy(signal)).numpy()
            assert x.dtype == torch.float32
            np.testing.assert_array_equal(x.detach().numpy(), signal, strict=True)
    assert seen.clipped  # inputs beyond the range took part
    if FORMATS[name].accumulator is not None:
        assert seen.saturated  # and full accumulators
        assert seen.ties  # and sums half-way between two codes


@every_format
@every_network
def test_without_bias_the_integers_themselves_come_back(network, name):
    model, x = converted(network, name)
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bare = copy.deepcopy(layer)
            bare.bias = None
            codes, unit = reference(bare, x.detach().numpy(), FORMATS[name], Seen())
            found = bare(x).detach().numpy() / unit
            np.testing.assert_array_equal(found, codes)
            assert len(np.unique(codes)) > 20
        x = layer(x)


@every_format
@every_network
def test_scales_and_ranges_are_the_next_powers_of_two(network, name):
    model, _ = converted(network, name)
    for layer in analog_layers(model).values():
        np.testing.assert_array_equal(layer.scale().flatten().numpy(), column_scale(layer))
        for side in ("input_range", "output_range"):
            if (r := getattr(layer, side, None)) is not None:
                assert np.frexp(float(r))[0] == 0.5


@pytest.mark.parametrize(("name", "rows"), [("integer-8bit", 1024), ("northpole", 16384)])
def test_the_longest_sum_of_the_largest_codes_is_exact_in_single_precision(name, rows):
    form = FORMATS[name]
    draw = np.random.default_rng(0)
    top_x, top_w = 2 ** (form.input - 1), 2 ** (form.weight - 1)
    q_x = draw.choice([-top_x, top_x - 1], (6, rows))
    q_w = draw.choice([-top_w, top_w - 1], (5, rows))
    q_w[0], q_w[1], q_x[0], q_x[1] = -top_w, top_w - 1, -top_x, top_x - 1
    layer = nn.Linear(rows, 5, bias=False)
    layer.weight.data = torch.from_numpy(q_w / top_w).float()
    layer.weight.data[1] = (top_w - 0.75) / top_w  # beyond the largest code, and its scale is one as well
    analog = convert(layer, load_profile(name), chip=0)
    analog.set_range("input", 1.0)
    [[[currents]]] = analog.results(torch.from_numpy(q_x / top_x).float(), analog.written(Context()))
    np.testing.assert_array_equal(currents.detach().numpy().astype(np.float64) * top_x * top_w, q_x @ q_w.T)
    assert np.abs(q_x @ q_w.T).max() == 2**24


@every_format
def test_no_chip_age_noise_or_temperature_changes_a_bit(name):
    model, x = converted("perceptron", name)
    y = model(x)
    other = calibrate_ranges(convert(model, load_profile(name), chip=7), [0.4 * x])
    assert torch.equal(other(x), y)
    assert torch.equal(age(other, 1e8)(x), y)
    assert torch.equal(at(other, Conditions(temperature_K=400.0, supply_V=0.5, noise_level=3.0))(x), y)
