"""The fused converter against its composable twin, the effects one by one."""

import itertools

import pytest
import torch
from torch import nn

from galvanic import age, calibrate_ranges, convert, reads
from galvanic.nn import fused, unfused
from galvanic.physics import Context, DifferentialPair, Drift, Gaussian, OffsetColumn, Programming, Quantize, ReadNoise
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, Dynamic, Fixed, Learned

DOUBLE = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}
PCM = {
    "weight": (Programming(std=0.05), Drift(nu=0.05, nu_std=0.01), ReadNoise(q=0.01)),
    "encoding": DifferentialPair(),
}
NOISY = (Gaussian(std=0.05), Quantize(bits=5))


def profile(**parts):
    return Profile(
        **{"name": "p", "input": (Quantize(bits=5),), "input_range": Fixed(value=1.5), "output_range": Fixed(value=1.2), "rows": 16} | parts
    )


PROFILES = {
    "learned input, noise per write": profile(input_range=Learned(quantile=0.9), weight=(Gaussian(std=0.03, per="write"),), output=NOISY),
    "fixed input, pcm, gaussian cells": profile(**PCM | {"weight": (*PCM["weight"], Gaussian(std=0.02))}, output=NOISY),
    "calibrated input, quantised output": profile(
        input_range=Calibrated(quantile=0.9), output=(Quantize(bits=4),), output_range=Calibrated(quantile=0.8)
    ),
    "full scales that are no range": profile(
        input=(Quantize(bits=4, full_scale=0.7),), output=(Gaussian(std=0.1), Quantize(bits=4, full_scale=1.3))
    ),
    "unsigned input": profile(input=(Quantize(bits=4, signed=False),), input_range=Learned(quantile=0.9), output=(Quantize(bits=6),)),
    "unsigned output": profile(output=(Gaussian(std=0.1), Quantize(bits=4, signed=False)), **PCM),
    "two's complement, learned": profile(
        input=(Quantize(bits=4, twos_complement=True),),
        output=(Quantize(bits=4, twos_complement=True),),
        input_range=Learned(quantile=0.8),
        **PCM,
    ),
    "dynamic input": profile(input_range=Dynamic(), output=NOISY, weight=(Gaussian(std=0.03, per="write"),)),
    "no input converter": profile(input=(), output=NOISY),
    "no output converter, learned input": profile(input_range=Learned(quantile=0.9), weight=(Gaussian(std=0.03, per="write"),)),
    "learned on both sides": profile(input_range=Learned(quantile=0.9), output_range=Learned(quantile=0.9), output=NOISY),
    "offset column, learned input": profile(input_range=Learned(quantile=0.9), output=(Quantize(bits=6),), encoding=OffsetColumn()),
}

LAYERS = {  # a tile has 16 rows
    "linear": (lambda: nn.Linear(14, 5), (7, 14)),
    "linear, 3 tiles, sequences": (lambda: nn.Linear(40, 5, bias=False), (3, 4, 40)),
    "conv, 3 tiles": (lambda: nn.Conv2d(6, 4, (2, 3), padding=1), (3, 6, 5, 4)),
    "conv in groups, 2 tiles": (lambda: nn.Conv2d(6, 4, (2, 3), padding=1, groups=2, padding_mode="circular"), (3, 6, 5, 4)),
    "transposed, 3 tiles": (lambda: nn.ConvTranspose2d(5, 4, (2, 3), stride=2, bias=False), (2, 5, 3, 4)),
    "transposed in groups, 2 tiles": (lambda: nn.ConvTranspose2d(6, 4, (2, 3), groups=2, output_padding=0), (2, 6, 3, 4)),
}
TILES = {"linear": 1, "linear, 3 tiles, sequences": 3, "conv, 3 tiles": 3, "conv in groups, 2 tiles": 2}


def on_chip(layer, p, *, chip=3):
    """A layer on a chip, and inputs of which its converters clip some on both sides."""
    torch.manual_seed(1)
    make, shape = LAYERS[layer]
    x = torch.randn(shape, dtype=DOUBLE)
    return calibrate_ranges(convert(make().double(), p, chip=chip), [x]), x


def as_twin(monkeypatch):
    monkeypatch.setattr("galvanic.nn.fused.possible", lambda x: False)


def answers(model, x, wants_x, **how):
    """Output and gradients; the layout of the input is kept."""
    x = x.detach().requires_grad_(wants_x)
    wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
    torch.manual_seed(5)
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y.detach(), torch.autograd.grad((y * weights).sum() + y.square().sum(), wanted, **how), wanted


def gradients_of_gradients(model, x, wants_x):
    """The gradients, and those of the sum of their squares."""
    _, first, wanted = answers(model, x, wants_x, create_graph=True)
    return first, torch.autograd.grad(sum(g.square().sum() for g in first), wanted)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, tuple):
            assert_same(a, b)
        elif a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wants_x", [True, False], ids=["to inputs", "not to inputs"])
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("layer", LAYERS)
def test_outputs_and_gradients_are_those_of_the_effects_one_by_one(layer, name, wants_x, monkeypatch):
    model, x = on_chip(layer, PROFILES[name])
    fast = answers(model, x, wants_x)
    as_twin(monkeypatch)
    twin = answers(model, x, wants_x)
    torch.testing.assert_close(fast[0], twin[0], **EXACT)
    assert_same(fast[1], twin[1])


@pytest.mark.parametrize("wants_x", [True, False], ids=["to inputs", "not to inputs"])
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("layer", ["linear", "conv in groups, 2 tiles"])
def test_gradients_of_gradients_are_those_of_the_effects_one_by_one(layer, name, wants_x, monkeypatch):
    model, x = on_chip(layer, PROFILES[name])
    try:
        first, second = gradients_of_gradients(model, x, wants_x)
    except RuntimeError:  # what the fused pass has thrown away is said, not guessed
        with pytest.raises(RuntimeError, match=r"learned input range: run the forward pass within galvanic.nn.unfused\(\)"):
            gradients_of_gradients(model, x, wants_x)
        with unfused():
            first, second = gradients_of_gradients(model, x, wants_x)
    assert_same(first, answers(model, x, wants_x)[1])
    as_twin(monkeypatch)
    assert_same(second, gradients_of_gradients(model, x, wants_x)[1])


def test_the_cases_above_take_the_fused_pass_wherever_they_can(monkeypatch):
    """Otherwise they would compare the twin with itself."""
    calls = []
    for name in ("enter", "leave", "along_range"):
        real = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    taken = {}
    for case, p in PROFILES.items():
        model, x = on_chip("conv, 3 tiles", p)
        calls.clear()
        model(x)
        taken[case] = set(calls)
    assert {c for c in taken if "enter" not in taken[c]} == {"dynamic input", "no input converter"}
    composed = {"no output converter, learned input", "learned on both sides", "offset column, learned input"}
    assert {c for c in taken if "leave" not in taken[c]} == composed
    assert {c for c in taken if "along_range" in taken[c]} == {c for c, p in PROFILES.items() if isinstance(p.input_range, Learned)}


@pytest.mark.parametrize("layer", TILES)
def test_the_layers_above_have_as_many_tiles_as_they_say(layer):
    assert len(on_chip(layer, PROFILES["no input converter"])[0].cuts()) == TILES[layer]


@pytest.mark.parametrize("layer", ["linear", "conv, 3 tiles"])
def test_the_cases_above_clip_on_both_sides(layer):
    model, x = on_chip(layer, profile(output=(Quantize(bits=5),)))
    with torch.no_grad():
        u = model.prepare(x / 1.5)
        assert u.min() < -1 < 1 < u.max()
        written = model.written(Context(**model.at))
        tiles = [lanes[0][0] for lanes in model.in_cells(model.results(u.clamp(-1, 1), written), written)]
        assert min(y.min() for y in tiles) < -1.2 < 1.2 < max(y.max() for y in tiles)


# -- reads, gain ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["linear", "conv in groups, 2 tiles", "transposed, 3 tiles"])
@pytest.mark.parametrize("mode", ["off", "frozen", "fresh"])
def test_reads_of_every_mode_are_those_of_the_twin(layer, mode, monkeypatch):
    model, x = on_chip(layer, PROFILES["fixed input, pcm, gaussian cells"])

    def read():
        torch.manual_seed(7)
        with torch.no_grad(), reads(model, mode):
            return model(x), model(x)

    fast = read()
    as_twin(monkeypatch)
    assert_same(fast, read())
    assert torch.equal(*fast) == (mode != "fresh")


@pytest.mark.parametrize(
    "name", ["learned input, noise per write", "fixed input, pcm, gaussian cells", "no output converter, learned input"]
)
@pytest.mark.parametrize("layer", ["linear, 3 tiles, sequences", "conv in groups, 2 tiles"])
@pytest.mark.parametrize("columns", [False, True], ids=["one gain", "a gain a column"])
def test_the_gain_of_a_drift_compensation_is_applied_as_in_the_twin(name, layer, columns, monkeypatch):
    model, x = on_chip(layer, PROFILES[name])
    plain = answers(model, x, True)
    n = len(model.scale().flatten())
    model.gain = torch.linspace(1.1, 1.9, n, dtype=DOUBLE) if columns else torch.tensor(1.5, dtype=DOUBLE)
    fast = answers(model, x, True)
    assert not torch.allclose(fast[0], plain[0])
    as_twin(monkeypatch)
    assert_same(fast[:2], answers(model, x, True)[:2])


def test_an_aged_chip_reads_as_in_the_twin(monkeypatch):
    model, x = on_chip("conv, 3 tiles", PROFILES["fixed input, pcm, gaussian cells"])
    fresh = answers(model, x, True)
    aged = answers(age(model, 1e6), x, True)
    assert not torch.allclose(aged[0], fresh[0])
    as_twin(monkeypatch)
    assert_same(aged[:2], answers(model, x, True)[:2])


# -- blocks -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, 96, 160])
@pytest.mark.parametrize("batch", [52, 64])
def test_noise_drawn_by_blocks_is_noise_drawn_at_once(block, batch, monkeypatch):
    torch.manual_seed(0)
    model = convert(nn.Linear(9, 5).double(), profile(output=NOISY, input_range=Learned()), chip=0)
    x = torch.randn(batch, 9, dtype=DOUBLE)
    calibrate_ranges(model, [x])
    whole = answers(model, x, True)
    monkeypatch.setattr(fused, "_BLOCK", block)
    assert len(fused._blocks(torch.empty(batch, 5, 1))) == {16: 4, 96: 4, 160: 2}[block]
    assert_same(answers(model, x, True)[:2], whole[:2])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_signal_in_blocks_is_the_signal_in_one_piece_where_nothing_is_drawn(layer, monkeypatch):
    model, x = on_chip(layer, PROFILES["two's complement, learned"])
    whole = answers(model, x, True)[:2], answers(model, x, False)[:2]
    monkeypatch.setattr(fused, "_BLOCK", 16)
    assert_same((answers(model, x, True)[:2], answers(model, x, False)[:2]), whole)


@pytest.mark.parametrize("layer", ["linear, 3 tiles, sequences", "conv, 3 tiles"])
def test_noise_of_several_tiles_drawn_by_blocks_has_the_moments_of_the_twin(layer, monkeypatch):
    """Blocks take the tiles in turn, so the draws are others; of n Gaussian numbers a variance is known to sqrt(2 / n)."""
    fine = profile(output=(Gaussian(std=0.05), Quantize(bits=16)), output_range=Fixed(value=50.0), input=())
    torch.manual_seed(1)
    make, shape = LAYERS[layer]
    x = torch.randn(400, *shape[1:], dtype=DOUBLE)
    model = convert(make().double(), fine, chip=0)
    monkeypatch.setattr(fused, "_BLOCK", 64)
    with torch.no_grad():
        errors = (model(x) - model.digital(x, model.weight)) / model._broadcast(model.scale().flatten())
    n, variance = errors.numel(), len(model.cuts()) * (0.05 * 50.0) ** 2
    assert abs(errors.var().item() / variance - 1) < 5 * (2 / n) ** 0.5
    assert abs(errors.mean().item()) < 5 * (variance / n) ** 0.5


# -- memory -----------------------------------------------------------------------------------------------------------------------------


def saved(model, x):
    """Bytes of the different storages that a forward pass keeps, apart from inputs and parameters."""
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    return sum(kept.values()), y


@pytest.mark.parametrize("rows", [None, 16], ids=["1 tile", "2 tiles"])
@pytest.mark.parametrize("learned", [True, False])
def test_what_is_kept_of_the_output_is_a_byte_an_element_and_tile(rows, learned, monkeypatch):
    torch.manual_seed(0)
    p = profile(input_range=Learned() if learned else Fixed(value=1.0), output=NOISY, rows=rows)
    model = convert(nn.Linear(32, 512), p, chip=0)
    x = torch.randn(64, 32)
    if learned:
        calibrate_ranges(model, [x])
    bytes_kept, y = saved(model, x)
    bytes_entered = x.numel() * 4
    small = (model.weight.numel() + 4 * 512) * 4
    masks = len(model.cuts()) * y.numel()
    codes = y.numel() if learned else 0
    assert bytes_kept < bytes_entered + small + masks + codes + 1024
    as_twin(monkeypatch)
    assert saved(model, x)[0] > bytes_kept + 3 * y.numel()


# -- what a layer of torch takes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_an_activation_in_place_after_the_layer_gives_the_gradients_of_one_that_copies(layer):
    model, x = on_chip(layer, PROFILES["learned input, noise per write"])

    def gradients(activation):
        torch.manual_seed(3)
        return torch.autograd.grad(activation(model(x)).square().sum(), list(model.parameters()))

    assert_same(gradients(torch.relu_), gradients(torch.relu))


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_input_without_a_batch_is_a_batch_of_one(layer, name):
    model, x = on_chip(layer, PROFILES[name])
    with reads(model, "off"):
        alone, batch = answers(model, x[0], True), answers(model, x[:1], True)
    torch.testing.assert_close(alone[0], batch[0][0], **EXACT)
    torch.testing.assert_close(alone[1][0], batch[1][0][0], **EXACT)
    assert_same(alone[1][1:], batch[1][1:])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_empty_batch_gives_an_empty_output_and_gradients_of_zero(layer, name):
    model, x = on_chip(layer, PROFILES[name])
    for wants_x in (True, False):
        y, first, _ = answers(model, x[:0], wants_x)
        assert y.shape == model.digital(x[:0], model.weight).shape
        assert all(not g.any() for g in first)


def strided(x):
    """The same numbers in other places of memory."""
    yield "gaps", torch.stack([x, -x], -1)[..., 0]
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    yield "reversed axes", x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    if x.ndim == 4:
        yield "channels last", x.contiguous(memory_format=torch.channels_last)
    yield "a narrow part", torch.cat([x, x], 1)[:, : x.shape[1]]


@pytest.mark.parametrize("name", ["learned input, noise per write", "unsigned input", "two's complement, learned", "no input converter"])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_input_in_any_layout_is_the_contiguous_one(layer, name):
    model, x = on_chip(layer, PROFILES[name])
    with reads(model, "off"):
        for wants_x in (True, False):
            expected = answers(model, x, wants_x)
            for layout, view in strided(x):
                assert torch.equal(view, x), layout
                assert not view.is_contiguous(), layout
                found = answers(model, view, wants_x)
                torch.testing.assert_close(found[0], expected[0], **EXACT)
                assert_same(found[1], expected[1])
        expanded = x[:1].expand_as(x)
        assert_same(answers(model, expanded, False)[:2], answers(model, expanded.contiguous(), False)[:2])


@pytest.mark.parametrize("channels", [3, 4, 5, 7])
@pytest.mark.parametrize("kernel", [1, (2, 3)], ids=str)
def test_a_channels_last_image_may_be_cut_into_tiles_of_one_and_more_channels(channels, kernel, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 4, kernel).double()
    x = torch.randn(2, channels, 5, 4, dtype=DOUBLE).contiguous(memory_format=torch.channels_last)
    models = [convert(conv, profile(rows=most * conv.weight[0, 0].numel(), output=NOISY), chip=0) for most in range(1, channels)]
    fast = [answers(m, x, True)[:2] for m in models]
    as_twin(monkeypatch)
    for model, found in zip(models, fast, strict=True):
        assert_same(found, answers(model, x, True)[:2])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_not_a_number_stays_so_and_spoils_no_other_vector(layer, name):
    model, x = on_chip(layer, PROFILES[name])
    broken = x.clone()
    broken[1, ...] = float("nan")
    with reads(model, "off"), torch.no_grad():
        y, clean = model(broken), model(x)
    assert y[1].isnan().all() if "transposed" not in layer else y[1].isnan().any()
    rest = [k for k in range(len(x)) if k != 1]
    torch.testing.assert_close(y[rest], clean[rest], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_single_precision_is_the_twin_but_for_a_code_at_a_tie(dtype, monkeypatch):
    """A product that is rounded otherwise may meet the other side of a code's edge: at most by one code."""
    model, x = on_chip("conv, 3 tiles", PROFILES["learned input, noise per write"])
    model, x = model.to(dtype), x.to(dtype)
    torch.manual_seed(0)
    fast = model(x)
    as_twin(monkeypatch)
    torch.manual_seed(0)
    off = (fast - model(x)).abs() > 100 * torch.finfo(dtype).eps
    assert off.double().mean() < 0.01


def converters():
    kinds = [{"bits": 3}, {"bits": 3, "signed": False}, {"bits": 3, "twos_complement": True}]
    return [Quantize(**kind, full_scale=full) for kind, full in itertools.product(kinds, (1.0, 0.7))]


@pytest.mark.parametrize("by", converters(), ids=lambda q: f"{q.levels()}-{q.full_scale}")
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_signal_at_the_ends_of_the_codes_or_at_zero_passes_the_gradient_of_the_twin(side, by, monkeypatch):
    """Half a unit in the last place beyond or before an end decides nothing: the range is a power of two."""
    p = Profile(name="e", input_range=Fixed(value=2.0), output_range=Fixed(value=2.0), **{side: (by,)})
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    model = convert(layer, p, chip=0)
    low, high = (code * float(by.size()) * 2.0 for code in by.levels())
    x = torch.tensor([[0.0], [low], [high], [low - 0.08], [high + 0.08], [low - 0.5], [high + 0.5], [high / 2 + 0.01]], dtype=DOUBLE)
    if by.full_scale != 1.0:
        x = x[[0, 3, 4, 5, 6, 7]]  # an end that is no binary fraction is met or missed by rounding
    fast = answers(model, x, True)
    as_twin(monkeypatch)
    assert_same(fast[:2], answers(model, x, True)[:2])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("by", [q for q in converters() if q.full_scale == 1.0], ids=lambda q: str(q.levels()))
def test_the_largest_signal_passes_its_gradient_whatever_the_calibrated_range(by, dtype):
    """It is the end of the range exactly, of every range."""
    converter, (low, high) = fused.converter((by,)), by.levels()
    for r in torch.linspace(0.1, 3.0, 400, dtype=dtype).split(1):
        ends = [r * code / converter.top for code in (low, high) if code]
        x = torch.cat(ends).requires_grad_()
        (g,) = torch.autograd.grad(fused.enter(x, r, converter).sum(), x)
        torch.testing.assert_close(g, (1 / r).expand_as(x), rtol=1e-6, atol=0)
