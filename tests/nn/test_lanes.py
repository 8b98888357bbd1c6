"""Several lanes, several passes: weights and inputs in digits, reference columns, devices in parallel, against plain loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvanic import calibrate_ranges, convert, describe, reads
from galvanic.physics import (
    BitSerial,
    BitSliced,
    DifferentialPair,
    Direct,
    GainOffset,
    Gaussian,
    OffsetColumn,
    Parallel,
    Quantize,
    SignSplit,
    Whole,
)
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, Dynamic, Fixed

DOUBLE = torch.float64
EXACT = {"rtol": 1e-11, "atol": 1e-11}

PAIR, OFFSET = DifferentialPair(g_min=0.1), OffsetColumn(g_min=0.1)
ENCODINGS = {
    "pair": PAIR,
    "offset": OFFSET,
    "parallel pairs": Parallel(of=PAIR, count=3),
    "parallel offset": Parallel(of=OFFSET, count=2),
    "3 slices of pairs": BitSliced(of=PAIR, bits=2, slices=3),
    "3 slices of offset": BitSliced(of=OFFSET, bits=2, slices=3),
    "2 slices of parallel pairs": BitSliced(of=Parallel(of=PAIR, count=2), bits=3, slices=2),
    "2 slices of parallel offset": BitSliced(of=Parallel(of=OFFSET, count=2), bits=3, slices=2),
    "parallel slices": Parallel(of=BitSliced(of=PAIR, bits=2, slices=2), count=2),
}
CODINGS = {
    "whole": Whole(),
    "1 bit a pass": BitSerial(bits=8),
    "2 bits a pass": BitSerial(bits=7, per_pass=2),
    "7 bits a pass": BitSerial(bits=8, per_pass=7),
    "by sign": SignSplit(),
}
LAYERS = {  # tiles of 6 rows
    "linear": (lambda: nn.Linear(10, 4), (5, 10)),
    "conv in groups": (lambda: nn.Conv2d(6, 4, (1, 2), padding=1, groups=2), (2, 6, 3, 4)),
    "linear, 1 tile": (lambda: nn.Linear(6, 1, bias=False), (5, 6)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5)),
}


def in_rows(kind, layer):
    """The digital weight as (groups, columns, rows of one column), rows of a channel together."""
    w = layer.weight.detach()
    if kind.startswith("linear"):
        return w[None]
    if kind == "conv in groups":
        return w.unflatten(0, (2, -1)).flatten(2)
    return w.unflatten(0, (2, -1)).transpose(1, 2).flatten(2)


def product(kind, layer, u, rows):
    """The digital product of inputs with a matrix (groups, columns, rows), columns at axis 1."""
    if kind.startswith("linear"):
        return F.linear(u, rows[0])
    if kind == "conv in groups":
        return F.conv2d(u, rows.unflatten(2, (3, 1, 2)).flatten(0, 1), padding=1, groups=2)
    return F.conv_transpose1d(u, rows.unflatten(2, (2, 3)).transpose(1, 2).flatten(0, 1), stride=2, groups=2)


KERNEL = {"linear": 1, "linear, 1 tile": 1, "conv in groups": 2, "transposed": 3}


def digits(x, bits, count):
    """Signed digits of magnitudes in [0, 1], most significant first, each over the largest digit, and their weights."""
    top = 2 ** (bits * count) - 1
    number = (x.abs().clamp(max=1) * top).round().long()
    parts = [x.sign() * ((number >> bits * (count - 1 - s)) & (2**bits - 1)) / (2**bits - 1) for s in range(count)]
    return parts, [2 ** (bits * (count - 1 - s)) * (2**bits - 1) / top for s in range(count)]


def slices_of(code, w):
    """What a code stores: [(coefficient, weight in [-1, 1])], and the code of one of them."""
    if isinstance(code, Parallel):
        return slices_of(code.of, w)  # noiseless devices in parallel are one
    if isinstance(code, BitSliced):
        parts, weights = digits(w, code.bits, code.slices)
        inner = slices_of(code.of, w)[1]
        return list(zip(weights, parts, strict=True)), inner
    return [(1.0, w)], code


def passes_of(coding, u):
    """[(coefficient, input)]."""
    if isinstance(coding, BitSerial):
        parts, weights = digits(u, coding.per_pass, (coding.bits - 1) // coding.per_pass)
        return list(zip(weights, parts, strict=True))
    if isinstance(coding, SignSplit):
        return [(1.0, u.clamp(min=0)), (-1.0, (-u).clamp(min=0))]
    return [(1.0, u)]


def adc(y, bits, r):
    n = 2 ** (bits - 1) - 1
    return (y / r).clamp(-1, 1).mul(n).round() / n * r


def naive(kind, layer, x, profile, *, bits, r_x, r_y):
    """Tile by tile, lane by lane, pass by pass."""
    w = in_rows(kind, layer)
    scale = w.abs().amax(2)
    stored, code = slices_of(profile.encoding, w / scale[..., None])
    kernel, channels = KERNEL[kind], w.shape[2] // KERNEL[kind]
    tiles = -(-channels // (6 // kernel))
    edges = [round(t * channels / tiles) * kernel for t in range(tiles + 1)]

    def converted(sent, matrix):
        y = product(kind, layer, sent, matrix)
        return y if bits is None else adc(y, bits, r_y)

    total = 0
    for (c_in, sent), (c_w, part), (a, b) in itertools.product(passes_of(profile.input_coding, x / r_x), stored, itertools.pairwise(edges)):
        here = torch.zeros_like(part)
        here[..., a:b] = 1  # the rows of this tile
        if isinstance(code, OffsetColumn):
            low, span = code.g_min, 1 - code.g_min
            g = (low + span * (1 + part) / 2) * here
            reference = (low + span / 2) * here
            y = (converted(sent, g) - converted(sent, reference)) * 2 / span
        else:
            y = converted(sent, part * here)
        total = total + c_in * c_w * y
    axes = [1] * (x.ndim - 2)
    y = total * scale.flatten().view(-1, *axes) * r_x
    return y if layer.bias is None else y + layer.bias.view(-1, *axes)


def made(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    return make().double(), torch.randn(shape, dtype=DOUBLE)


@pytest.mark.parametrize("bits", [None, 5], ids=["no converter", "5 bits"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_the_loop_over_tiles_lanes_and_passes(kind, encoding, coding, bits):
    layer, x = made(kind)
    output = () if bits is None else (Quantize(bits=bits),)
    profile = Profile(
        name="p",
        output=output,
        encoding=ENCODINGS[encoding],
        input_coding=CODINGS[coding],
        rows=6,
        input_range=Fixed(value=1.5),
        output_range=Fixed(value=1.75),
    )
    r_x = 1.5 if profile.converts("input") else 1.0
    expected = naive(kind, layer, x, profile, bits=bits, r_x=r_x, r_y=1.75)
    torch.testing.assert_close(convert(layer, profile, chip=0)(x), expected, **EXACT)


def bound(kind, layer, x, encoding, coding):
    """Largest error that rounding weights and inputs to their digits can make, per output."""
    w = in_rows(kind, layer)
    step_w = 0.5 / (2 ** (encoding.bits * encoding.slices) - 1) if isinstance(encoding, BitSliced) else 0.0
    step_x = 0.5 * 4 / (2 ** (coding.bits - 1) - 1) if isinstance(coding, BitSerial) else 0.0
    scale = w.abs().amax(2, keepdim=True).expand_as(w)
    return product(kind, layer, x.abs(), scale * step_w) + product(kind, layer, torch.full_like(x, step_x), w.abs() + scale * step_w)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", [n for n in ENCODINGS if n != "parallel slices"])
@pytest.mark.parametrize("kind", LAYERS)
def test_without_converters_the_product_is_the_digital_one_up_to_the_digits(kind, encoding, coding):
    layer, x = made(kind)
    profile = Profile(
        name="p", encoding=ENCODINGS[encoding], input_coding=CODINGS[coding], rows=6, input_range=Fixed(value=4.0), output_range=Dynamic()
    )
    error = (convert(layer, profile, chip=0)(x) - layer(x)).abs()
    assert (error <= bound(kind, layer, x, ENCODINGS[encoding], CODINGS[coding]) + 1e-12).all()


@pytest.mark.parametrize("kind", ["linear", "conv in groups", "transposed"])
def test_more_digits_are_closer_to_the_digital_product(kind):
    layer, x = made(kind)

    def error(slices, bits):
        profile = Profile(
            name="p", encoding=BitSliced(bits=2, slices=slices), input_coding=BitSerial(bits=bits), input_range=Fixed(value=4.0)
        )
        return (convert(layer, profile, chip=0)(x) - layer(x)).abs().max()

    errors = [error(slices, 2 * slices + 1) for slices in (1, 2, 4, 6)]
    for coarse, fine in itertools.pairwise(errors):
        assert fine < coarse / 2
    assert errors[-1] < 1e-2


# -- gradients --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_straight_through_where_nothing_clips(kind, encoding, coding):
    """To the input that of the digital layer with the stored weight; to the weight that of the stored input: coefficients add up to 1."""
    layer, x = made(kind)
    x = x.clamp(-1.4, 1.4)
    profile = Profile(
        name="p",
        output=(Quantize(bits=20),),
        encoding=ENCODINGS[encoding],
        input_coding=CODINGS[coding],
        rows=6,
        input_range=Fixed(value=1.5),
        output_range=Fixed(value=50.0),
    )
    model = convert(layer, profile, chip=0)

    def gradients(m, x):
        x = x.clone().requires_grad_()
        y = m(x)
        weights = torch.linspace(-1, 1, y.numel(), dtype=DOUBLE).view(y.shape)
        return torch.autograd.grad((y * weights).sum(), [x, *m.parameters()])

    sent = 1.5 * sum(c * part for c, part in passes_of(CODINGS[coding], x / 1.5))
    w = in_rows(kind, layer)
    scale = w.abs().amax(2, keepdim=True)
    held = scale * sum(c * part for c, part in slices_of(ENCODINGS[encoding], w / scale)[0])
    to_x = gradients(holding(kind, layer, held), x)[0]
    to_parameters = gradients(layer, sent)[1:]
    for found, expected in zip(gradients(model, x), (to_x, *to_parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def holding(kind, layer, rows):
    """The digital layer with another weight, given as (groups, columns, rows)."""
    make, _ = LAYERS[kind]
    other = make().double()
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        if kind.startswith("linear"):
            other.weight.copy_(rows[0])
        elif kind == "conv in groups":
            other.weight.copy_(rows.unflatten(2, (3, 1, 2)).flatten(0, 1))
        else:
            other.weight.copy_(rows.unflatten(2, (2, 3)).transpose(1, 2).flatten(0, 1))
    return other


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gradients_of_coarse_clipped_noisy_lanes_are_finite_and_reach_everything(encoding, coding):
    layer, x = made("conv in groups")
    profile = Profile(
        name="p",
        weight=(Gaussian(std=0.02), Gaussian(std=0.05, per="write")),
        output=(Gaussian(std=0.02), Quantize(bits=4)),
        encoding=ENCODINGS[encoding],
        input_coding=CODINGS[coding],
        rows=6,
        output_range=Fixed(value=1.0),
    )
    x.requires_grad_()
    model = convert(layer, profile, chip=0)
    for g in torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]):
        assert g.isfinite().all()
        assert g.any()


# -- the reference column ---------------------------------------------------------------------------------------------------------------


def correlation_of_errors(y):
    """Mean correlation of each two columns over the first axis."""
    c = torch.corrcoef(y.flatten(1).T)
    n = len(c)
    return ((c.sum() - c.trace()) / (n * (n - 1))).item()


@pytest.mark.parametrize("columns", [2, 6])
@pytest.mark.parametrize(("encoding", "expected"), [(OffsetColumn(), 0.5), (DifferentialPair(), 0.0), (Direct(), 0.0)])
def test_read_noise_of_the_reference_column_is_common_to_all_columns(encoding, expected, columns):
    """Each column has its own variance and that of the reference: a correlation of one half, known to about 1 / sqrt(n)."""
    n = 20_000
    profile = Profile(name="p", weight=(Gaussian(std=0.05),), encoding=encoding, weight_scale="layer")
    torch.manual_seed(0)
    model = convert(nn.Linear(5, columns, bias=False).double(), profile, chip=0)
    x = torch.randn(5, dtype=DOUBLE)
    with torch.no_grad():
        y = model(x.expand(n, 5))
    assert abs(correlation_of_errors(y) - expected) < 5 / n**0.5
    cells = {OffsetColumn: 2 * 4, DifferentialPair: 2, Direct: 1}[type(encoding)]  # an offset pair, doubled by 2 / (1 - g_min)
    variance = cells * 0.05**2 * x.square().sum() * model.scale().flatten()[0] ** 2
    assert ((y.var(0) / variance - 1).abs() < 5 * (2 / n) ** 0.5).all()
    assert ((y.mean(0) - F.linear(x, model.weight.detach())).abs() < 5 * (variance / n) ** 0.5).all()


def test_writing_errors_of_the_reference_column_are_common_to_all_columns_of_a_chip_and_differ_between_chips():
    profile = Profile(name="p", weight=(Gaussian(std=0.01, per="write"),), encoding=OffsetColumn(), output=(Quantize(step=2.0**-40),))
    layer, x = nn.Linear(5, 4, bias=False).double(), torch.ones(1, 5, dtype=DOUBLE)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        y = torch.cat([convert(layer, profile, chip=chip)(x) for chip in range(1000)])
    assert abs(correlation_of_errors(y) - 0.5) < 5 / 1000**0.5
    assert abs(y.var().item() / (2 * 4 * 5 * 0.01**2) - 1) < 0.2


def test_groups_of_a_convolution_have_reference_columns_of_their_own():
    n = 20_000
    profile = Profile(name="p", weight=(Gaussian(std=0.05),), encoding=OffsetColumn(), weight_scale="layer")
    torch.manual_seed(0)
    model = convert(nn.Conv1d(4, 4, 3, groups=2, bias=False).double(), profile, chip=0)
    with torch.no_grad():
        y = model(torch.randn(1, 4, 3, dtype=DOUBLE).expand(n, 4, 3)).squeeze(-1)
    c = torch.corrcoef(y.T)
    expected = torch.eye(4, dtype=DOUBLE) / 2 + torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) / 2
    assert (c - expected).abs().max() < 5 / n**0.5


# -- devices in parallel ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["read", "write"])
@pytest.mark.parametrize("of", [PAIR, OFFSET, BitSliced(of=PAIR, bits=2, slices=2)], ids=["pair", "offset", "slices"])
def test_the_spread_falls_by_the_root_of_the_devices_in_parallel(of, per):
    """No cell comes near zero, where its noise would be clipped. There are 2,400 results; those with one reference are not independent."""
    torch.manual_seed(0)
    layer = nn.Linear(300, 40, bias=False).double()
    x = torch.randn(60 if per == "read" else 1, 300, dtype=DOUBLE)

    def spread(encoding):
        profile = Profile(name="p", weight=(Gaussian(std=0.01, per=per),), encoding=encoding, output=(Quantize(step=2.0**-40),))
        still = Profile(name="s", encoding=encoding, output=(Quantize(step=2.0**-40),))
        chips = range(1 if per == "read" else 60)
        with torch.no_grad():
            exact = convert(layer, still, chip=0)(x)
            return torch.cat([convert(layer, profile, chip=chip)(x) - exact for chip in chips]).square().mean().sqrt().item()

    one = spread(of)
    for count in (4, 16):
        assert spread(Parallel(of=of, count=count)) == pytest.approx(one / count**0.5, rel=0.2)


# -- converters -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", [BitSliced(bits=2, slices=3), BitSliced(of=OffsetColumn(), bits=3, slices=2)], ids=["pairs", "offset"])
def test_amplifiers_differ_between_lanes_and_tiles_and_are_the_same_in_every_pass(encoding, coding):
    """Without input every converter shows its own offset; those of a lane are combined as its results are."""
    profile = Profile(
        name="p",
        output=(GainOffset(offset_std=0.1),),
        input_range=Fixed(value=1.0),
        output_range=Fixed(value=2.0),
        encoding=encoding,
        input_coding=CODINGS[coding],
        rows=6,
    )
    layer, x = made("linear")
    layer.bias = None
    model = convert(layer, profile, chip=0)
    drawn = model._draws["output", 0][1]  # (tiles x lanes, columns)
    assert drawn.shape == (2 * encoding.slices, 4 + encoding.extra_columns)
    assert len(set(drawn.flatten().tolist())) == drawn.numel()
    by_pass = [c for c, _ in passes_of(CODINGS[coding], torch.zeros(1))]
    total = 0
    for tile, lane in itertools.product(range(2), range(encoding.slices)):
        offsets = 0.2 * drawn[tile * encoding.slices + lane]
        if encoding.extra_columns:
            offsets = 2 * (offsets[:-1] - offsets[-1])
        weight = digits(torch.ones(1), encoding.bits, encoding.slices)[1][lane]
        total = total + sum(by_pass) * weight * offsets
    expected = total * model.scale().flatten()
    torch.testing.assert_close(model(torch.zeros_like(x)), expected.expand(5, 4), rtol=1e-9, atol=1e-9)


def test_every_lane_tile_and_pass_draws_read_noise_of_its_own():
    """The variances of all converters add up, each with the square of its coefficient; of n numbers a variance is known to sqrt(2 / n)."""
    encoding, coding, n = BitSliced(bits=2, slices=2), BitSerial(bits=3), 40_000
    profile = Profile(
        name="p",
        output=(Gaussian(std=0.1),),
        input_range=Fixed(value=1.0),
        output_range=Fixed(value=2.0),
        encoding=encoding,
        input_coding=coding,
        rows=6,
    )
    layer, _ = made("linear")
    torch.manual_seed(0)
    with torch.no_grad():
        y = convert(layer, profile, chip=0)(torch.zeros(n // 4, 10, dtype=DOUBLE)) - layer.bias
        y = y / layer.weight.abs().amax(1)
    one = torch.ones(1)
    of_lanes, of_passes = (sum(c**2 for c in digits(one, bits, 2)[1]) for bits in (2, 1))
    variance = 2 * of_lanes * of_passes * (0.1 * 2.0) ** 2  # of two tiles
    assert abs(y.var().item() / variance - 1) < 5 * (2 / n) ** 0.5


def test_a_fixed_range_keeps_its_digits_in_double_precision():
    layer, x = made("linear, 1 tile")
    profile = Profile(name="p", input=(Quantize(bits=5),), input_range=Fixed(value=1.7), rows=6)
    expected = F.linear(adc(x, 5, 1.7), layer.weight)
    torch.testing.assert_close(convert(layer, profile, chip=0)(x), expected, **EXACT)


@pytest.mark.parametrize("range_", [Fixed(value=4.0), Calibrated(), Calibrated(quantile=0.9), Dynamic()], ids=str)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("encoding", ["pair", "offset", "3 slices of pairs", "2 slices of parallel offset"])
def test_calibrated_ranges_cover_what_the_converters_see(encoding, coding, range_):
    """Of batches whose inputs are large and small. Where no input is clipped, the largest result is the range."""
    layer, x = made("linear")
    profile = Profile(
        name="p",
        output=(Quantize(bits=8),),
        encoding=ENCODINGS[encoding],
        input_coding=CODINGS[coding],
        rows=6,
        input_range=range_,
        output_range=Calibrated(),
    )
    model = convert(layer, profile, chip=0)
    batches = [x, 0.1 * x, x[:2] / 3]
    calibrate_ranges(model, batches)
    largest = 0.0
    for batch in batches:
        r = model.full_scale("input")
        if r is None:
            r = batch.abs().amax(1, keepdim=True) if profile.converts("input") else 1.0
        largest = max(largest, largest_result("linear", layer, batch / r, profile))
    ratio = model.output_range.item() / largest
    assert ratio >= 1 - 1e-9
    if not (isinstance(range_, Calibrated) and range_.quantile < 1):
        assert ratio == pytest.approx(1)


def largest_result(kind, layer, u, profile):
    """The largest current of any tile, lane and pass, and of the reference column."""
    w = in_rows(kind, layer)
    stored, code = slices_of(profile.encoding, w / w.abs().amax(2, keepdim=True))
    largest = 0.0
    for (_, sent), (_, part), cut in itertools.product(passes_of(profile.input_coding, u), stored, (slice(0, 5), slice(5, 10))):
        g = part
        if isinstance(code, OffsetColumn):
            g = code.g_min + (1 - code.g_min) * (1 + torch.cat([part, torch.zeros_like(part[:, :1])], 1)) / 2
        largest = max(largest, F.linear(sent[:, cut], g[0][:, cut]).abs().max().item())
    return largest


@pytest.mark.parametrize(
    ("encoding", "columns", "tiles"),
    [(DifferentialPair(), 4, 2), (OffsetColumn(), 4, 4), (OffsetColumn(), 5, 2), (Parallel(of=OffsetColumn(), count=3), 4, 4)],
    ids=["pair fits", "offset is one column too wide", "offset fits", "parallel offset"],
)
def test_description_counts_the_reference_column(encoding, columns, tiles):
    profile = Profile(name="p", encoding=encoding, rows=6, columns=columns)
    row = describe(convert(nn.Linear(10, 4), profile, chip=0))[0]
    assert (row["rows"], row["columns"], row["tiles"]) == (10, 4, tiles)
    assert row["utilisation"] == pytest.approx(40 / (tiles * 6 * columns))


def test_reads_that_are_off_are_the_same_every_time_with_lanes_and_passes():
    layer, x = made("transposed")
    profile = Profile(
        name="p",
        weight=(Gaussian(std=0.02),),
        output=(Gaussian(std=0.1), Quantize(bits=6)),
        output_range=Fixed(value=2.0),
        encoding=BitSliced(of=OFFSET, bits=2, slices=2),
        input_coding=BitSerial(bits=4),
        rows=6,
    )
    model = convert(layer, profile, chip=0)
    for mode, same in (("off", True), ("frozen", True), ("fresh", False)):
        with reads(model, mode):
            assert torch.equal(model(x), model(x)) == same
