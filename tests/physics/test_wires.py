"""Wires against nodal analysis and closed forms written here."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from galvanic.physics import (
    Kirchhoff,
    NonlinearCrossbar,
    Polynomial,
    PolynomialCell,
    SinhCell,
    WireResistance,
    WireResistanceApproximate,
)
from galvanic.profile import Profile, parse_profile, to_toml

WIRES = WireResistance(on_ohm=1e4, row_ohm=20.0, column_ohm=7.0, driver_ohm=50.0, sense_ohm=30.0)
BOTH = replace(WIRES, two_sided_rows=True, two_sided_columns=True)
KINDS = {
    "one-sided": WIRES,
    "two-sided rows": replace(WIRES, two_sided_rows=True),
    "two-sided columns": replace(WIRES, two_sided_columns=True),
    "two-sided": BOTH,
}
every_kind = pytest.mark.parametrize("wires", KINDS.values(), ids=KINDS.keys())
shapes = pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 7), (7, 4), (12, 12)], ids=str)


def cells(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(g < 0.1, 0.0, g)  # some cells are off


def nodal(w: WireResistance, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """The conductances between all 2 x columns x rows nodes of the wires, in siemens, those from the drivers, and the sensed nodes."""
    columns, rows = g.shape
    r = np.arange(rows * columns).reshape(rows, columns)
    c = r + rows * columns
    y, driven = np.zeros((2 * r.size, 2 * r.size)), np.zeros((2 * r.size, rows))

    def join(a: np.ndarray, b: np.ndarray, ohm: float) -> None:
        for m, n in zip(a.ravel(), b.ravel(), strict=True):
            y[[m, n], [m, n]] += 1 / ohm
            y[[m, n], [n, m]] -= 1 / ohm

    join(r[:, :-1], r[:, 1:], w.row_ohm)
    join(c[:-1], c[1:], w.column_ohm)
    for end in (r[:, 0], r[:, -1]) if w.two_sided_rows else (r[:, 0],):
        y[end, end] += 1 / w.driver_ohm
        driven[end, np.arange(rows)] += 1 / w.driver_ohm
    sensed = [(j, n) for end in ((c[-1], c[0]) if w.two_sided_columns else (c[-1],)) for j, n in enumerate(end)]
    for _, n in sensed:
        y[n, n] += 1 / w.sense_ohm
    return y, driven, sensed


def solved(w: WireResistance, g: torch.Tensor) -> torch.Tensor:
    """The effective matrix by a dense solution of all nodes for every unit input."""
    columns, rows = g.shape
    y, driven, sensed = nodal(w, g.numpy())
    for m, conductance in enumerate(g.numpy().T.ravel() / w.on_ohm):
        n = m + g.numel()
        y[[m, n], [m, n]] += conductance
        y[[m, n], [n, m]] -= conductance
    v = np.linalg.solve(y, driven)
    result = np.zeros((columns, rows))
    for j, n in sensed:
        result[j] += v[n] / w.sense_ohm * w.on_ohm
    return torch.from_numpy(result)


@every_kind
@shapes
def test_the_effective_matrix_is_that_of_nodal_analysis(wires, shape):
    g = cells(*shape)
    (m,) = wires.matrices(g)
    expected = solved(wires, g)
    assert (m - expected).abs().max() < 1e-10 * expected.abs().max()


def test_it_still_is_where_most_of_the_voltage_is_lost():
    heavy, g = replace(BOTH, on_ohm=10.0), cells(9, 6)
    expected = solved(heavy, g)
    assert expected.max() < 0.1 * g.max()
    torch.testing.assert_close(heavy.matrices(g)[0], expected, rtol=1e-9, atol=1e-13)


def test_many_tiles_at_once_are_each_on_its_own_and_keep_their_dtype():
    g = cells(2, 3, 5, 4)
    (m,) = WIRES.matrices(g)
    for tile, alone in zip(m.flatten(0, 1), g.flatten(0, 1), strict=True):
        torch.testing.assert_close(tile, WIRES.matrices(alone)[0], rtol=1e-14, atol=1e-14)
    (short,) = WIRES.matrices(g.float())
    assert short.dtype == torch.float32
    torch.testing.assert_close(short.double(), m, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [WireResistance, WireResistanceApproximate])
def test_one_cell_is_in_series_with_its_wires(kind):
    g = torch.tensor([[0.3]], dtype=torch.float64)
    for both, share in ((False, 1.0), (True, 0.5)):
        wires = kind(on_ohm=1e4, driver_ohm=50.0, sense_ohm=30.0, row_ohm=1.0, two_sided_rows=both, two_sided_columns=both)
        torch.testing.assert_close(wires.matrices(g)[0], 1 / (1 / g + share * 80.0 / 1e4), rtol=1e-9, atol=0)


def test_one_row_is_a_ladder():
    g = cells(6, 1) + 0.1
    r, d = WIRES.row_ohm / WIRES.on_ohm, WIRES.driver_ohm / WIRES.on_ohm
    s = WIRES.sense_ohm / WIRES.on_ohm
    to_ground = 1 / (1 / g[:, 0] + s)  # each cell has a column and an amplifier of its own
    ahead = torch.zeros(())  # the admittance of all that follows
    seen = []
    for k in reversed(range(6)):
        seen.append(to_ground[k] + ahead)
        ahead = seen[-1] / (1 + (r if k else d) * seen[-1])
    v, currents = torch.ones(()), []
    for k, admittance in enumerate(reversed(seen)):
        v = v / (1 + (r if k else d) * admittance)
        currents.append(v * to_ground[k])
    torch.testing.assert_close(WIRES.matrices(g)[0][:, 0], torch.stack(currents), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", [WireResistance, WireResistanceApproximate])
def test_without_resistance_nothing_changes(kind):
    g = cells(5, 4)
    assert kind(on_ohm=1e5, two_sided_rows=True).matrices(g)[0] is g or torch.equal(kind(on_ohm=1e5).matrices(g)[0], g)
    learned = kind(on_ohm=1e5, row_ohm=torch.tensor(0.0), driver_ohm=torch.tensor(0.0), two_sided_rows=True, two_sided_columns=True)
    torch.testing.assert_close(learned.matrices(g)[0], g, rtol=1e-10, atol=0)


@pytest.mark.parametrize("absent", ["row_ohm", "column_ohm", "driver_ohm", "sense_ohm"])
@pytest.mark.parametrize("both", [False, True])
def test_a_resistance_of_zero_is_the_limit_of_a_small_one(absent, both):
    wires, g = replace(WIRES, two_sided_rows=both, two_sided_columns=both), cells(5, 4)
    small = solved(replace(wires, **{absent: 1e-4}), g)
    torch.testing.assert_close(replace(wires, **{absent: 0.0}).matrices(g)[0], small, rtol=1e-6, atol=0)
    assert not torch.allclose(wires.matrices(g)[0], small, rtol=1e-4)


def test_driven_and_sensed_from_both_sides_a_tile_looks_the_same_from_either():
    g = cells(6, 5)
    (m,) = BOTH.matrices(g)
    torch.testing.assert_close(BOTH.matrices(g.flip(0, 1))[0], m.flip(0, 1), rtol=1e-10, atol=0)
    (one_sided,) = WIRES.matrices(g)
    assert not torch.allclose(WIRES.matrices(g.flip(0, 1))[0], one_sided.flip(0, 1), rtol=1e-3)
    assert (m >= one_sided).all()
    assert m.sum() > 1.01 * one_sided.sum()


def test_the_first_column_is_next_to_the_drivers_and_the_last_row_next_to_the_amplifiers():
    (m,) = WIRES.matrices(torch.ones(6, 5, dtype=torch.float64))
    assert (m.diff(dim=0) < 0).all()
    assert (m.diff(dim=1) > 0).all()


def test_driving_the_columns_and_sensing_the_rows_is_the_transposed_matrix():
    g = cells(7, 4)
    swapped = WireResistance(on_ohm=1e4, row_ohm=7.0, column_ohm=20.0, driver_ohm=30.0, sense_ohm=50.0, two_sided_columns=True)
    mirrored = swapped.matrices(g.mT.flip(0, 1))[0].mT.flip(0, 1)
    torch.testing.assert_close(replace(WIRES, two_sided_rows=True).matrices(g)[0], mirrored, rtol=1e-13, atol=0)


@every_kind
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3)], ids=str)
def test_gradients_to_conductances_and_resistances_agree_with_finite_differences(wires, shape):
    names = ("on_ohm", "row_ohm", "column_ohm", "driver_ohm", "sense_ohm")

    def matrix(g: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
        ohms = {name: getattr(wires, name) * x.exp() for name, x in zip(names, logs, strict=True)}
        return replace(wires, **ohms).matrices(g)[0]

    logs = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix, ((cells(*shape) + 0.01).requires_grad_(), logs), atol=1e-8)


def test_the_gradient_of_a_cell_that_is_off_is_that_of_one_that_is_almost_off():
    g = cells(5, 4)
    g[1, 2] = g[4, 0] = 0.0
    weight = cells(5, 4, seed=1)
    found = [
        torch.autograd.grad((WIRES.matrices(x)[0] * weight).sum(), x)[0] for x in (g.requires_grad_(), (g.detach() + 1e-9).requires_grad_())
    ]
    torch.testing.assert_close(*found, rtol=1e-7, atol=0)


def test_a_second_derivative_is_refused_where_it_would_be_wrong():
    g = cells(3, 3).requires_grad_()
    (first,) = torch.autograd.grad(WIRES.matrices(g)[0].square().sum(), g, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative of WireResistance is not there; WireResistanceApproximate has one"):
        first.sum().backward()
    nonlinear = NonlinearCrossbar(wires=WIRES, cell=SinhCell(kappa=2.0))
    g = cells(1, 3, 3).requires_grad_()
    (first,) = torch.autograd.grad(nonlinear.currents(torch.ones(3, dtype=torch.float64), g).square().sum(), g, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative of NonlinearCrossbar"):
        first.sum().backward()


@pytest.mark.parametrize("kind", [WireResistance, WireResistanceApproximate])
def test_vmap_over_tiles_and_over_resistances_equals_the_loop(kind):
    wires, gs = kind(**{f: getattr(WIRES, f) for f in ("on_ohm", "row_ohm", "column_ohm", "driver_ohm", "sense_ohm")}), cells(3, 5, 4)
    ohms = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)

    def matrix(g: torch.Tensor, ohm: torch.Tensor | float) -> torch.Tensor:
        return replace(wires, row_ohm=ohm).matrices(g)[0]

    def slope(g: torch.Tensor, ohm: torch.Tensor | float) -> torch.Tensor:
        return torch.func.grad(lambda g: matrix(g, ohm).square().sum())(g)

    for f in (matrix, slope):
        looped = torch.stack([f(g, ohm) for g, ohm in zip(gs, ohms, strict=True)])
        torch.testing.assert_close(torch.vmap(f)(gs, ohms), looped, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(torch.vmap(lambda g, f=f: f(g, 10.0))(gs)[1], looped[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", [WireResistance, WireResistanceApproximate])
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_equals_eager_without_a_graph_break(kind, grad):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    wires, g, u = kind(on_ohm=1e4, row_ohm=20.0, column_ohm=7.0, two_sided_rows=True), cells(5, 4), cells(3, 4, seed=1)

    def product(g: torch.Tensor) -> torch.Tensor:
        return u @ wires.matrices(g)[0].mT

    compiled = torch.compile(product, backend=counter, fullgraph=True)
    a, b = (g.clone().requires_grad_(grad) for _ in range(2))
    ya, yb = compiled(a), product(b)
    torch.testing.assert_close(ya, yb, rtol=1e-14, atol=0)
    assert counter.frame_count == 1
    if grad:
        ya.square().sum().backward()
        yb.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize("value", [-0.3, float("nan")])
def test_a_crossbar_refuses_what_is_no_conductance_and_says_what_would_do(value):
    g = cells(3, 3)
    g[1, 2] = value
    with pytest.raises(ValueError, match=rf"no conductance of {value}; encode signed weights, e.g. with DifferentialPair\(\)"):
        WIRES.matrices(g)


@pytest.mark.parametrize(("size", "most"), [(32, 3e-6), (64, 5e-5), (128, 7e-4)])
def test_the_approximation_is_as_close_as_its_docstring_says(size, most):
    ohms = {"on_ohm": 1e5, "row_ohm": 1.0, "column_ohm": 1.0, "driver_ohm": 1.0, "sense_ohm": 1.0}
    g = 0.01 + 0.99 * torch.rand(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, near = WireResistance(**ohms).matrices(g)[0], WireResistanceApproximate(**ohms).matrices(g)[0]
    error, neglect = ((x - exact).norm() / exact.norm() for x in (near, g))
    assert error < most
    assert error < 0.02 * neglect


@every_kind
def test_the_error_of_the_approximation_is_of_second_order_in_the_resistances(wires):
    g, errors = cells(6, 5), []
    for on_ohm in (1e6, 1e7):
        ohms = {f: getattr(wires, f) for f in (x.name for x in fields(wires))} | {"on_ohm": on_ohm}
        near = WireResistanceApproximate(**ohms).matrices(g)[0]
        errors.append((near - WireResistance(**ohms).matrices(g)[0]).norm())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_the_approximation_has_first_and_second_derivatives():
    wires = WireResistanceApproximate(on_ohm=1e3, row_ohm=20.0, column_ohm=7.0, two_sided_rows=True)
    g = (cells(3, 4) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: wires.matrices(g)[0], (g,))
    assert torch.autograd.gradgradcheck(lambda g: wires.matrices(g)[0], (g,))


SINH = NonlinearCrossbar(wires=replace(BOTH, on_ohm=500.0), cell=SinhCell(kappa=2.5))
CUBIC = NonlinearCrossbar(
    wires=replace(WIRES, on_ohm=500.0), cell=PolynomialCell(coefficients=(1.0, Polynomial(coefficients=(0.1, 0.05)), -0.2))
)
INPUTS = 2 * cells(3, 4, seed=2) - 1


@pytest.mark.parametrize(
    ("crossbar", "law"),
    [(SINH, lambda g, v: g * np.sinh(2.5 * v) / np.sinh(2.5)), (CUBIC, lambda g, v: g * (v + (0.1 + 0.05 * g) * v**2 - 0.2 * v**3))],
    ids=["sinh", "cubic"],
)
def test_a_non_linear_crossbar_is_what_a_general_solver_finds_for_all_its_nodes(crossbar, law):
    g = cells(2, 3, 4)
    found = crossbar.currents(INPUTS, g)  # (devices, vectors, columns)
    assert not torch.allclose(found, torch.einsum("dcr,br->dbc", crossbar.wires.matrices(g)[0], INPUTS), rtol=0.01)
    for device, tile in enumerate(g.numpy()):
        y, driven, sensed = nodal(crossbar.wires, tile)
        half = tile.size
        for b, u in enumerate(INPUTS.numpy()):

            def kirchhoff(v: np.ndarray, y=y, driven=driven, tile=tile, u=u, half=half) -> np.ndarray:
                cell = law(tile.T.ravel(), v[:half] - v[half:]) / crossbar.wires.on_ohm
                return (y @ v - driven @ u + np.concatenate([cell, -cell])) * crossbar.wires.on_ohm

            root = scipy.optimize.root(kirchhoff, np.zeros(2 * half), tol=1e-13)
            expected = np.zeros(tile.shape[0])
            for j, n in sensed:
                expected[j] += root.x[n] / crossbar.wires.sense_ohm * crossbar.wires.on_ohm
            np.testing.assert_allclose(found[device, b].numpy(), expected, rtol=1e-8, atol=1e-9)


@every_kind
@pytest.mark.parametrize("cell", [Kirchhoff(), SinhCell(kappa=0.0)], ids=["Kirchhoff", "sinh"])
def test_with_linear_cells_it_is_the_effective_matrix(wires, cell):
    g, u = cells(2, 5, 4), INPUTS.reshape(3, 1, 4)
    y = NonlinearCrossbar(wires=wires, cell=cell).currents(u, g)
    torch.testing.assert_close(y, torch.einsum("dcr,abr->dabc", wires.matrices(g)[0], u), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [SINH.cell, CUBIC.cell], ids=["sinh", "cubic"])
def test_without_resistance_it_is_the_sum_of_plain_products(cell):
    g = cells(2, 5, 4)
    y = NonlinearCrossbar(wires=WireResistance(on_ohm=1.0), cell=cell).currents(INPUTS, g)
    expected = sum(torch.einsum("dcr,br->dbc", m, f) for m, f in zip(cell.matrices(g), cell.inputs(INPUTS), strict=True))
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-14)


def test_gradients_through_the_solution_agree_with_finite_differences():
    def currents(u: torch.Tensor, g: torch.Tensor, kappa: torch.Tensor, ohm: torch.Tensor) -> torch.Tensor:
        return replace(SINH, wires=replace(SINH.wires, row_ohm=ohm), cell=SinhCell(kappa=kappa)).currents(u, g)

    kappa, ohm = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.5, 20.0))
    leaves = (INPUTS.clone().requires_grad_(), (cells(2, 3, 4) + 0.01).requires_grad_(), kappa, ohm)
    assert torch.autograd.gradcheck(currents, leaves, atol=1e-7)


def test_vmap_over_chips_and_over_vectors_equals_the_loop():
    gs = cells(3, 2, 3, 4)

    def slope(g: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda g: SINH.currents(INPUTS, g).square().sum())(g)

    for f in (lambda g: SINH.currents(INPUTS, g), slope):
        torch.testing.assert_close(torch.vmap(f)(gs), torch.stack([f(g) for g in gs]), rtol=1e-9, atol=1e-11)
    by_vector = torch.vmap(lambda u: SINH.currents(u, gs[0]), out_dims=1)(INPUTS)
    torch.testing.assert_close(by_vector, SINH.currents(INPUTS, gs[0]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kappa", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("on_ohm", [10.0, 1e4])
def test_newton_converges_from_light_wires_and_weak_cells_to_heavy_wires_and_strong_ones(kappa, on_ohm):
    wires = WireResistance(on_ohm=on_ohm, row_ohm=5.0, column_ohm=5.0, driver_ohm=5.0)
    y = NonlinearCrossbar(wires=wires, cell=SinhCell(kappa=kappa)).currents(2 * cells(5, 24) - 1, cells(1, 20, 24))
    assert y.isfinite().all()


def test_a_silent_vector_gives_no_current_and_no_nan():
    g = cells(1, 3, 4).requires_grad_()
    u = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = SINH.currents(u, g)
    assert torch.equal(y, torch.zeros_like(y))
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), [u, g]))


def test_single_precision_in_is_single_precision_out():
    g = cells(2, 3, 4)
    y = SINH.currents(INPUTS.float(), g.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), SINH.currents(INPUTS, g), rtol=1e-6, atol=1e-6)


def test_within_a_compiled_function_the_solution_is_a_graph_break_and_the_same():
    torch.compiler.reset()
    g = cells(1, 3, 4)

    def f(u: torch.Tensor) -> torch.Tensor:
        return 2 * SINH.currents(u + 0.0, g)

    torch.testing.assert_close(torch.compile(f, backend="aot_eager")(INPUTS), f(INPUTS), rtol=1e-14, atol=0)


def test_a_cell_whose_current_falls_with_its_voltage_is_refused():
    falling = replace(CUBIC, cell=PolynomialCell(coefficients=(1.0, 0.0, -0.5)))
    with pytest.raises(ValueError, match=r"falls with its voltage at -?0\.\d+ of full scale; it has to rise"):
        falling.currents(torch.ones(4, dtype=torch.float64), cells(1, 3, 4))


def test_newton_says_how_much_is_left_when_it_does_not_converge():
    with pytest.raises(RuntimeError, match="50 Newton steps left nan of full scale unexplained"):
        SINH.currents(torch.full((4,), torch.nan, dtype=torch.float64), cells(1, 3, 4))


def test_a_cell_with_wires_of_its_own_is_refused():
    with pytest.raises(ValueError, match="cell is WireResistance, which has wires of its own"):
        NonlinearCrossbar(wires=WIRES, cell=WIRES)


@pytest.mark.parametrize("product", [BOTH, WireResistanceApproximate(on_ohm=1e5, row_ohm=1.0), SINH], ids=lambda p: type(p).__name__)
def test_a_profile_with_wires_survives_toml(product):
    profile = Profile(name="wires", product=product)
    assert parse_profile(to_toml(profile)) == profile
