"""Wires, non-linear cells and neighbouring lines in layers, tile by tile, and the noise of cells, against plain loops."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvanic import age, convert, program
from galvanic.nn import written
from galvanic.physics import (
    Context,
    Correlated,
    Crosstalk,
    DifferentialPair,
    Direct,
    Gaussian,
    NonlinearCrossbar,
    Parallel,
    Polynomial,
    PolynomialCell,
    Quantize,
    Shot,
    SinhCell,
    WireResistance,
    WireResistanceApproximate,
)
from galvanic.profile import Profile
from galvanic.ranges import Fixed

DOUBLE = torch.float64
EXACT = {"rtol": 1e-10, "atol": 1e-10}
WIRES = WireResistance(on_ohm=1000.0, row_ohm=20.0, column_ohm=10.0, driver_ohm=30.0, sense_ohm=5.0)
SINH = SinhCell(kappa=2.0)
CUBIC = PolynomialCell(coefficients=(0.8, 0.0, 0.2))
CURVED = PolynomialCell(coefficients=(Polynomial(coefficients=(0.6, 0.4)), 0.0, Polynomial(coefficients=(0.4, -0.3))))

LAYERS = {  # tiles of 6 rows and 3 columns
    "linear": (lambda: nn.Linear(10, 4), (5, 10)),
    "conv in groups": (lambda: nn.Conv2d(6, 8, (1, 2), padding=1, groups=2), (2, 6, 3, 3)),
    "conv, strided": (lambda: nn.Conv1d(4, 4, 3, stride=2, dilation=2, padding=2, bias=False), (2, 4, 7)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 4)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 8, (1, 2), groups=2, bias=False), (2, 4, 2, 3)),
}


def made(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    return make().double(), torch.randn(shape, dtype=DOUBLE)


def columns_of(layer):
    """The digital weight, (groups, columns, channels, kernel)."""
    if isinstance(layer, nn.Linear):
        return layer.weight[None, :, :, None]
    w = layer.weight.unflatten(0, (layer.groups, -1))
    return (w.transpose(1, 2) if layer.transposed else w).flatten(3)


def vectors_of(layer, x):
    """What the rows of every group see, (batch, positions, groups, channels, kernel), and the shape of an output."""
    if isinstance(layer, nn.Linear):
        return x[:, None, None, :, None], (layer.out_features,)
    kernel = layer.weight[0, 0].numel()
    spread = torch.eye(kernel, dtype=DOUBLE).view(kernel, 1, *layer.kernel_size)
    single = []
    for c in range(x.shape[1]):
        u = x[:, c : c + 1]
        conv = {(3, False): F.conv1d, (4, False): F.conv2d, (3, True): F.conv_transpose1d, (4, True): F.conv_transpose2d}
        f = conv[x.ndim, layer.transposed]
        if layer.transposed:
            single.append(f(u, spread.transpose(0, 1), None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation))
        else:
            single.append(f(u, spread, None, layer.stride, layer.padding, layer.dilation))
    space = single[0].shape[2:]
    patches = torch.stack(single, 1).flatten(3)  # (batch, channels, kernel, positions)
    return patches.movedim(-1, 1).unflatten(2, (layer.groups, -1)), (layer.out_channels, *space)


def halves(size, most):
    """As few even parts as possible."""
    parts = -(-size // most)
    edges = [round(k * size / parts) for k in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def tiled(layer, x, encode, currents, *, r_x, rows=6, columns=3, convert_result=lambda y: y):
    """The layer as a loop over groups and physical tiles, whose `currents(u, g)` are given for vectors (n, rows) and cells
    (devices, columns, rows) and come back as (devices, n, columns)."""
    w = columns_of(layer).detach()
    scale = w.abs().amax((2, 3), keepdim=True)
    g = encode(w / scale)  # (devices, groups, columns, channels, kernel)
    u, shape = vectors_of(layer, x / r_x)
    kernel = w.shape[3]
    y = torch.zeros(*u.shape[:2], *w.shape[:2], dtype=DOUBLE)
    for group in range(w.shape[0]):
        for channels, outputs in itertools.product(halves(w.shape[2], rows // kernel), halves(w.shape[1], columns)):
            tile = g[:, group, outputs, channels].flatten(2)
            vectors = u[:, :, group, channels].flatten(2).flatten(0, 1)
            result = convert_result(decode(currents(vectors, tile)))
            y[:, :, group, outputs] += result.unflatten(0, u.shape[:2])
    y = y.flatten(2) * scale.flatten() * r_x
    y = y if layer.bias is None else y + layer.bias.detach()
    return y.movedim(1, -1).reshape(len(x), *shape)


def decode(currents):
    """Of a pair of devices with g_min = 0.1, or of one."""
    return currents[0] if len(currents) == 1 else (currents[0] - currents[1]) / 0.9


def pair(w):
    parts = torch.stack([w.clamp(min=0), (-w).clamp(min=0)])
    return 0.1 + 0.9 * parts


def profile(product, **parts):
    return Profile(
        **{
            "name": "p",
            "product": product,
            "encoding": DifferentialPair(g_min=0.1),
            "rows": 6,
            "columns": 3,
            "input_range": Fixed(value=2.0),
        }
        | parts
    )


def linear_wires(product):
    return lambda u, g: u @ product.matrices(g)[0].mT


# -- linear cells on wires --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wires",
    [
        WIRES,
        replace(WIRES, two_sided_rows=True, two_sided_columns=True),
        WireResistanceApproximate(on_ohm=1000.0, row_ohm=20.0, column_ohm=10.0, driver_ohm=3.0),
    ],
    ids=["exact", "two-sided", "approximate"],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_wires_are_those_of_each_physical_tile(kind, wires):
    layer, x = made(kind)
    model = convert(layer, profile(wires), chip=0)
    expected = tiled(layer, x, pair, linear_wires(wires), r_x=1.0)
    torch.testing.assert_close(model(x), expected, **EXACT)
    assert (model(x) - layer(x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", LAYERS)
def test_the_currents_of_tiles_with_wires_are_digitised_before_they_are_added(kind):
    """Columns of one tile share no converter, so cutting them only changes the wires."""
    layer, x = made(kind)
    model = convert(layer, profile(WIRES, output=(Quantize(bits=6),), output_range=Fixed(value=1.5)), chip=0)
    expected = tiled(
        layer, x, pair, linear_wires(WIRES), r_x=1.0, convert_result=lambda y: (y / 1.5).clamp(-1, 1).mul(31).round() / 31 * 1.5
    )
    torch.testing.assert_close(model(x), expected, **EXACT)


def test_wires_are_solved_once_a_write_without_gradients_and_anew_when_anything_changes(monkeypatch):
    layer, x = made("linear")
    solved = []
    real = WireResistance.matrices
    monkeypatch.setattr(WireResistance, "matrices", lambda self, g: solved.append(g.shape) or real(self, g))
    model = convert(layer, profile(WIRES, weight=(Gaussian(std=0.01, per="write"),)), chip=0)

    def solutions():
        solved.clear()
        first = model(x)
        assert torch.equal(model(x), first)
        return len(solved)

    tiles = 2 * 2
    with torch.no_grad():
        assert solutions() == tiles
        assert solutions() == 0
        for change in (lambda: program(model, 1), lambda: program(model, 1, write=1), lambda: age(model, 10.0)):
            change()
            assert solutions() == tiles
            assert solutions() == 0
        model.weight.mul_(0.5)
        assert solutions() == tiles
    assert solutions() == 2 * tiles  # a gradient needs the solution of its own pass
    assert all(shape == (2, 2, 5) for shape in solved)


def slope_along(f, tensor, direction, epsilon=1e-5):
    """The derivative of a number along a direction, by central differences."""
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            tensor.add_(direction, alpha=sign * epsilon)
            values.append(f())
            tensor.sub_(direction, alpha=sign * epsilon)
    return (values[0] - values[1]) / (2 * epsilon)


PRODUCTS = {
    "wires": WIRES,
    "approximate wires": WireResistanceApproximate(on_ohm=1000.0, row_ohm=20.0, driver_ohm=30.0),
    "sinh": SINH,
    "curved polynomial": CURVED,
    "circuit": NonlinearCrossbar(wires=WIRES, cell=SINH),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kind", ["linear", "conv in groups", "transposed"])
def test_gradients_through_a_product_agree_with_finite_differences(kind, name):
    """The scale of a column is its largest weight, through which no gradient goes: the weights that make it are held."""
    layer, x = made(kind)
    x = x[:1]
    model = convert(layer, profile(PRODUCTS[name]), chip=0)
    weights = torch.linspace(-1, 1, model(x).numel(), dtype=DOUBLE)

    def loss():
        return (model(x).flatten() * weights).sum()

    x.requires_grad_()
    to_x, to_weight = torch.autograd.grad(loss(), [x, model.weight])
    x = x.detach()
    w = model.cells(model.weight.detach())
    free = model.native((w.abs() < w.abs().amax(tuple(range(2, w.ndim)), keepdim=True)).to(w))
    for _ in range(3):
        for tensor, gradient, mask in ((x, to_x, 1), (model.weight.data, to_weight, free)):
            direction = torch.randn_like(tensor) * mask
            torch.testing.assert_close((gradient * direction).sum(), slope_along(loss, tensor, direction), rtol=1e-6, atol=1e-6)


# -- non-linear cells -------------------------------------------------------------------------------------------------------------------


def sinh_current(u, g):
    return g * torch.sinh(2.0 * u) / torch.sinh(torch.tensor(2.0, dtype=DOUBLE))


def cubic_current(u, g):
    return g * (0.8 * u + 0.2 * u**3)


def curved_current(u, g):
    return g * ((0.6 + 0.4 * g) * u + (0.4 - 0.3 * g) * u**3)


def cell_by_cell(current):
    return lambda u, g: current(u[None, :, None], g[:, None]).sum(-1)


CELLS = {"sinh": (SINH, sinh_current), "cubic": (CUBIC, cubic_current), "curved": (CURVED, curved_current)}


@pytest.mark.parametrize("digitised", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_of_curved_cells_adds_up_the_current_of_every_cell(kind, cell, digitised):
    layer, x = made(kind)
    product, current = CELLS[cell]
    output = {"output": (Quantize(bits=6),), "output_range": Fixed(value=1.5)} if digitised else {}
    model = convert(layer, profile(product, **output), chip=0)
    adc = (lambda y: (y / 1.5).clamp(-1, 1).mul(31).round() / 31 * 1.5) if digitised else (lambda y: y)
    expected = tiled(layer, x, pair, cell_by_cell(current), r_x=2.0, convert_result=adc)
    torch.testing.assert_close(model(x), expected, **EXACT)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_crossbar_of_curved_cells_on_wires_is_solved_for_every_vector_of_every_tile(kind):
    layer, x = made(kind)
    x = x[:, ..., :3] if x.ndim > 2 else x
    circuit = NonlinearCrossbar(wires=WIRES, cell=SINH)

    def one_by_one(u, g):
        return torch.cat([circuit.currents(v[None], g) for v in u], 1)

    model = convert(layer, profile(circuit), chip=0)
    with torch.no_grad():
        torch.testing.assert_close(model(x), tiled(layer, x, pair, one_by_one, r_x=2.0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_crossbar_of_straight_cells_is_the_linear_map_of_its_wires(kind):
    layer, x = made(kind)
    straight = NonlinearCrossbar(wires=WIRES, cell=PolynomialCell(coefficients=(1.0,)))
    with torch.no_grad():
        expected = convert(layer, profile(WIRES), chip=0)(x)
        torch.testing.assert_close(convert(layer, profile(straight), chip=0)(x), expected, rtol=1e-8, atol=1e-8)


# -- neighbours -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("kind", LAYERS)
def test_crosstalk_between_cells_ends_at_the_border_of_a_tile(kind, along):
    layer, x = made(kind)

    def coupled(g):
        axis = -1 if along == "rows" else -2
        g = g.movedim(axis, 0)
        y = g.clone()
        for i in range(len(g)):
            y[i] += 0.1 * (g[i - 1] if i > 0 else 0) + 0.1 * (g[i + 1] if i + 1 < len(g) else 0)
        return y.movedim(0, axis)

    p = profile(PRODUCTS["sinh"], weight=(Crosstalk(kappa=0.1, along=along),))
    expected = tiled(layer, x, pair, lambda u, g: cell_by_cell(sinh_current)(u, coupled(g)), r_x=2.0)
    torch.testing.assert_close(convert(layer, p, chip=0)(x), expected, **EXACT)


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("kind", LAYERS)
def test_crosstalk_of_tiles_that_hold_the_whole_matrix_has_no_inner_border(kind, along):
    layer, x = made(kind)
    whole = Profile(name="p", weight=(Crosstalk(kappa=0.1, along=along),))
    w = columns_of(layer).detach()
    scale = w.abs().amax((2, 3), keepdim=True)
    g = (w / scale).flatten(2)
    n = g.shape[2 if along == "rows" else 1]
    band = torch.eye(n, dtype=DOUBLE) + 0.1 * (torch.eye(n + 1, dtype=DOUBLE)[:-1, 1:] + torch.eye(n + 1, dtype=DOUBLE)[1:, :-1])
    g = (g @ band if along == "rows" else band @ g).view_as(w) * scale
    model = convert(layer, whole, chip=0)
    stored = model.written(Context(**model.at))
    torch.testing.assert_close((stored.lanes[0][0] * stored.scale).view_as(w), g, **EXACT)
    assert (model(x) - layer(x)).abs().max() > 1e-3


@pytest.mark.parametrize(("along", "length"), [("rows", 3.0), ("columns", 3.0)])
def test_correlated_writing_errors_follow_the_distance_within_a_tile(along, length):
    """Of n chips a correlation is known to 1 / sqrt(n). Nothing is said across borders: a profile draws them in one piece or not."""
    n = 4000
    p = Profile(name="p", weight=(Correlated(std=0.1, length=length, along=along, per="write"),), encoding=Direct())
    layer = nn.Linear(4, 4, bias=False).double()
    model = convert(layer, p, chip=None)
    at = Context(**model.at)
    torch.manual_seed(0)
    drawn = torch.stack([program(model).conductances(model.scale(), at)[0, 0].detach() for _ in range(n)])
    errors = (drawn - (layer.weight / layer.weight.abs().amax(1, keepdim=True)).detach()) / 0.1
    assert (errors.var(0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    c = torch.corrcoef(errors.flatten(1).T).view(4, 4, 4, 4)
    place = torch.arange(4, dtype=DOUBLE)
    fall = torch.exp(-(place[:, None] - place).abs() / length)
    apart = torch.eye(4, dtype=DOUBLE)
    expected = torch.einsum("ac,bd->abcd", *((apart, fall) if along == "rows" else (fall, apart)))
    assert (c - expected).abs().max() < 5 / n**0.5


@pytest.mark.parametrize(
    ("kind", "along", "one", "other"),
    [
        ("linear", "rows", (0, 0, 4, 0), (0, 0, 5, 0)),
        ("linear", "columns", (0, 1, 0, 0), (0, 2, 0, 0)),
        ("transposed", "rows", (0, 0, 1, 2), (0, 0, 2, 0)),
        ("transposed", "columns", (0, 2, 0, 0), (0, 3, 0, 0)),
        ("conv in groups", "columns", (0, 1, 0, 0), (0, 2, 0, 0)),
        ("conv in groups", "columns", (0, 3, 0, 0), (1, 0, 0, 0)),
    ],
    ids=["rows of a linear layer", "its columns", "rows of a transposed convolution", "its columns", "columns of a group", "two groups"],
)
def test_errors_of_neighbours_in_different_tiles_are_not_correlated(kind, along, one, other):
    """Tiles are different arrays: of two cells (group, column, channel, kernel) beside a border each has errors of its own."""
    n = 1000
    p = profile(SINH, weight=(Correlated(std=0.1, length=20.0, along=along, per="chip"),), encoding=Direct())
    layer, _ = made(kind)
    model = convert(layer, p, chip=None)
    at = Context(**model.at)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [program(model).conductances(model.scale(), at)[0] for _ in range(n)]
    drawn = torch.stack([g.reshape(*g.shape[:3], -1) for g in drawn])
    pairs = torch.stack([drawn[:, *one], drawn[:, *other]])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 5 / n**0.5


# -- noise of cells -----------------------------------------------------------------------------------------------------------------------

ONE_CHANNEL = {
    "linear": lambda: (nn.Linear(7, 3, bias=False), (7,)),
    "one input channel": lambda: (nn.Conv2d(1, 4, 3, bias=False), (1, 4, 4)),
    "one channel a group": lambda: (nn.Conv2d(3, 6, 2, groups=3, bias=False), (3, 3, 3)),
    "groups": lambda: (nn.Conv1d(4, 6, 3, groups=2, bias=False), (4, 5)),
    "transposed": lambda: (nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2, bias=False), (4, 3)),
}


@pytest.mark.parametrize("rows", [None, 9], ids=["1 tile", "tiles"])
@pytest.mark.parametrize("encoding", [Direct(), DifferentialPair(g_min=0.1), Parallel(of=DifferentialPair(g_min=0.1), count=2)], ids=str)
@pytest.mark.parametrize("kind", ONE_CHANNEL)
def test_noise_of_cells_that_are_alike_is_the_full_sum_over_every_cell(kind, encoding, rows, monkeypatch):
    """One number for all cells, or the same number given cell by cell: the same output for the same seed."""
    torch.manual_seed(0)
    layer, shape = ONE_CHANNEL[kind]()
    model = convert(layer.double(), Profile(name="p", weight=(Gaussian(std=2.0**-5),), encoding=encoding, rows=rows), chip=0)
    x = torch.randn(6, *shape, dtype=DOUBLE)
    torch.manual_seed(1)
    alike = model(x)
    real = Gaussian.sigma
    monkeypatch.setattr(Gaussian, "sigma", lambda self, g, at: real(self, g, at) * torch.ones_like(g))
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), alike, **EXACT)
    assert not torch.allclose(alike, layer(x))


STATES = {
    "relative": (Gaussian(std=0.2, relative=True), lambda g: 0.2 * g.abs()),
    "shot": (
        Shot(bandwidth_Hz=1e9, full_scale_A=1e-7, dark_A=2e-8),
        lambda g: (2 * 1.602176634e-19 * 1e9 * (g.abs() * 1e-7 + 2e-8)).sqrt() / 1e-7,
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ONE_CHANNEL)
def test_noise_that_depends_on_the_state_has_the_moments_of_noise_drawn_for_every_cell(kind, state):
    """Against draws for every cell and vector; of n numbers a variance is known to sqrt(2 / n), and both are estimates."""
    n = 6000
    torch.manual_seed(0)
    layer, shape = ONE_CHANNEL[kind]()
    layer = layer.double()
    effect, sigma = STATES[state]
    model = convert(layer, Profile(name="p", weight=(effect,), encoding=DifferentialPair(g_min=0.1)), chip=0)
    x = torch.randn(1, *shape, dtype=DOUBLE)
    w = model.cells(layer.weight.detach())
    scale = model.scale()
    g = pair(w / scale)
    with torch.no_grad():
        y = model(x.expand(n, *shape))
        exact = layer(x)
        naive = []
        for _ in range(n // 4):
            noisy = g + sigma(g) * torch.randn_like(g)
            naive.append(model.digital(x, model.native((noisy[0] - noisy[1]) / 0.9 * scale)))
        naive = torch.cat(naive)
    tolerance = 5 * (2 / n + 2 / len(naive)) ** 0.5
    ratio = y.var(0) / naive.var(0)
    assert (ratio - 1).abs().max() < tolerance
    assert ((y.mean(0) - exact).abs() < 5 * (y.var(0) / n).sqrt()).all()


def test_noise_of_curved_cells_is_that_of_their_currents():
    """A cell's current is proportional to its conductance, so its noise is shaped as its input is."""
    n = 20_000
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False).double()
    x = torch.randn(5, dtype=DOUBLE).clamp(-2, 2)
    model = convert(layer, profile(SINH, weight=(Gaussian(std=0.02),), rows=None, columns=None), chip=0)
    with torch.no_grad():
        y = model(x.expand(n, 5))
    per_cell = sinh_current(x / 2, torch.ones(5, dtype=DOUBLE)).square().sum()
    expected = 2 * (0.02 / 0.9) ** 2 * per_cell * (2.0 * model.scale().flatten()) ** 2
    assert (y.var(0) / expected - 1).abs().max() < 5 * (2 / n) ** 0.5


def test_read_noise_of_cells_keeps_the_digits_of_its_deviation_in_double_precision():
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    model = convert(layer, Profile(name="p", weight=(Gaussian(std=0.03),)), chip=0)
    torch.manual_seed(0)
    y = model(torch.ones(1, 1, dtype=DOUBLE))
    torch.manual_seed(0)
    torch.testing.assert_close(y, 1 + 0.03 * torch.randn(1, 1, dtype=DOUBLE), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("product", [CURVED, WIRES, NonlinearCrossbar(wires=WIRES, cell=SINH)], ids=lambda p: type(p).__name__)
def test_read_noise_of_cells_that_would_be_lost_or_wrong_is_refused(product):
    """Where a result is not a plain sum of conductances times inputs, the noise of a cell is more than a term of that sum."""
    with pytest.raises(ValueError, match=f"^weight effect Gaussian has per='read', which a {type(product).__name__} cannot"):
        profile(product, weight=(Gaussian(std=0.05),))


def test_a_matrix_with_wires_or_neighbours_is_never_written_in_pieces(monkeypatch):
    layer, x = made("linear")
    for parts in ({"product": WIRES}, {"product": SINH, "weight": (Crosstalk(kappa=0.1, along="columns"),)}):
        model = convert(layer, profile(**parts), chip=0)
        with torch.no_grad():
            expected = model(x)
            monkeypatch.setattr(written, "_PIECE", 1)
            torch.testing.assert_close(convert(layer, profile(**parts), chip=0)(x), expected, rtol=0, atol=0)
