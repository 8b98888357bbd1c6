from dataclasses import replace

import numpy as np
import pytest
import torch

from galvanic.physics import InversePower, Kirchhoff, Polynomial, PolynomialCell, SinhCell
from galvanic.profile import Profile, parse_profile, to_toml

CURVE = Polynomial(coefficients=(0.3, -0.2, 0.1))
CELLS = {
    "sinh": (SinhCell(kappa=1.7), lambda g, u: g * np.sinh(1.7 * u) / np.sinh(1.7)),
    "nearly linear": (SinhCell(kappa=1e-3), lambda g, u: g * np.sinh(1e-3 * u) / np.sinh(1e-3)),
    "cubic": (PolynomialCell(coefficients=(1.0, 0.0, -0.25)), lambda g, u: g * (u - 0.25 * u**3)),
    "by curve": (
        PolynomialCell(coefficients=(1.0, CURVE, -0.1, Polynomial(coefficients=(0.0, 0.5)))),
        lambda g, u: g * (u + (0.3 - 0.2 * g + 0.1 * g**2) * u**2 - 0.1 * u**3 + 0.5 * g * u**4),
    ),
    "curves alone": (PolynomialCell(coefficients=(CURVE,)), lambda g, u: g * (0.3 - 0.2 * g + 0.1 * g**2) * u),
}
every_cell = pytest.mark.parametrize(("cell", "law"), CELLS.values(), ids=CELLS.keys())

G = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
U = 2 * torch.rand(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def currents(cell, u, g):
    return sum(torch.einsum("dcr,br->dbc", m, f) for m, f in zip(cell.matrices(g), cell.inputs(u), strict=True))


@every_cell
def test_a_tile_sums_the_currents_of_its_cells(cell, law):
    expected = law(G[:, None].numpy(), U[:, None].numpy()).sum(-1)
    np.testing.assert_allclose(currents(cell, U, G).numpy(), expected, rtol=1e-12, atol=1e-14)


@every_cell
def test_matrices_and_inputs_keep_shape_and_dtype_of_any_cells(cell, law):
    for dtype in (torch.float32, torch.bfloat16):
        g, u = G.to(dtype)[0, 0], U.to(dtype)
        assert all((m.shape, m.dtype) == (g.shape, dtype) for m in cell.matrices(g))
        assert all((f.shape, f.dtype) == (u.shape, dtype) for f in cell.inputs(u))


@every_cell
def test_gradients_agree_with_finite_differences(cell, law):
    assert torch.autograd.gradcheck(lambda u, g: currents(cell, u, g), (U.clone().requires_grad_(), G.clone().requires_grad_()))


@every_cell
def test_compiled_and_vmapped_equal_eager(cell, law):
    torch.compiler.reset()
    compiled = torch.compile(lambda u: currents(cell, u, G), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(U), currents(cell, U, G), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.vmap(lambda g: currents(cell, U, g[None])[0])(G), currents(cell, U, G), rtol=1e-13, atol=1e-14)


def test_a_sinh_cell_carries_its_conductance_at_full_scale_and_less_than_its_share_below():
    (f,) = SinhCell(kappa=3.0).inputs(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(f[[0, 2, 4]], torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), rtol=1e-14, atol=0)
    assert 0 < f[3] < 0.5
    assert f[1] == -f[3]


def test_a_sinh_cell_with_kappa_zero_is_kirchhoff_and_its_gradient_there_is_right():
    kappa = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y = currents(SinhCell(kappa=kappa), U, G)
    torch.testing.assert_close(y, currents(Kirchhoff(), U, G), rtol=1e-14, atol=1e-15)
    y.sum().backward()
    assert kappa.grad == 0  # it is even in kappa
    near = [currents(SinhCell(kappa=k), U, G) for k in (0.00999, 0.01001)]  # either side of where the series ends
    torch.testing.assert_close(*near, rtol=1e-5, atol=1e-6)


def test_the_learned_parameters_of_cells_get_the_gradient_of_finite_differences():
    def f(kappa, c3):
        cubic = PolynomialCell(coefficients=(1.0, CURVE, c3))
        return currents(SinhCell(kappa=kappa), U, G) + currents(cubic, U, G)

    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.3, -0.2)]
    assert torch.autograd.gradcheck(f, leaves)


def test_constant_coefficients_cost_no_product_and_every_curve_costs_one():
    assert len(PolynomialCell(coefficients=(1.0, 0.1, -0.25, 0.0, 0.1)).matrices(G)) == 1
    assert len(PolynomialCell(coefficients=(1.0, CURVE, CURVE)).matrices(G)) == 3
    assert PolynomialCell(coefficients=(1.0, 0.1)).matrices(G)[0] is G


def test_a_coefficient_that_depends_on_the_conductance_takes_its_magnitude():
    cell = PolynomialCell(coefficients=(InversePower(scale=0.1, power=0.5, high=0.5),))
    torch.testing.assert_close(cell.matrices(-G)[0], -cell.matrices(G)[0], rtol=0, atol=0)


def test_a_polynomial_without_coefficients_is_refused():
    with pytest.raises(ValueError, match=r"coefficients is empty; \(1\.0,\) is Kirchhoff's law"):
        PolynomialCell(coefficients=())


@pytest.mark.parametrize("cell", [SinhCell(kappa=2.0), PolynomialCell(coefficients=(1.0, 0.0, -0.25))], ids=["sinh", "cubic"])
def test_a_profile_with_a_cell_survives_toml(cell):
    profile = replace(Profile(name="cells"), product=cell)
    assert parse_profile(to_toml(profile)) == profile
