import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from galvanic.physics import Context, Crosstalk, Exponential, InversePower
from galvanic.seeding import generator

AT = Context()


def signal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("crosstalk"), dtype=torch.float64)


@pytest.mark.parametrize("lines", [1, 2, 3, 8, 33])
@pytest.mark.parametrize(
    ("kappa", "of_distance"),
    [
        (0.1, lambda d: 0.1 * (d == 1)),
        ((0.1, -0.03, 0.02), lambda d: 0.1 * (d == 1) - 0.03 * (d == 2) + 0.02 * (d == 3)),
        (Exponential(scale=0.2167, length=1 / 0.1275), lambda d: 0.2167 * np.exp(-0.1275 * d)),
        (InversePower(scale=0.05, power=2.0, high=0.05), lambda d: 0.05 / d**2),
    ],
    ids=["nearest", "table", "exponential", "inverse square"],
)
def test_signals_are_multiplied_by_the_dense_coupling_matrix_with_nothing_beyond_the_edges(lines, kappa, of_distance):
    row = np.concatenate([[1.0], of_distance(np.arange(1.0, lines))])
    x = signal(4, 5, lines)
    y = Crosstalk(kappa=kappa).apply(x, None, AT)
    np.testing.assert_allclose(y, x.numpy() @ toeplitz(row), rtol=0, atol=1e-13)


def test_of_cells_the_rows_or_the_columns_are_coupled_and_the_devices_are_not():
    g = signal(2, 6, 9)
    at = Context(target=g)
    couple = [toeplitz([1.0, 0.2, 0.1, *[0.0] * (n - 3)]) for n in (6, 9)]
    by_columns = Crosstalk(kappa=(0.2, 0.1), along="columns").apply(g, None, at)
    by_rows = Crosstalk(kappa=(0.2, 0.1), along="rows").apply(g, None, at)
    np.testing.assert_allclose(by_columns, np.einsum("ij,djk->dik", couple[0], g), rtol=0, atol=1e-13)
    np.testing.assert_allclose(by_rows, np.einsum("dij,jk->dik", g, couple[1]), rtol=0, atol=1e-13)


def test_the_lines_of_a_signal_are_its_last_axis_whatever_they_are_called():
    x = signal(3, 4, 6)
    assert torch.equal(Crosstalk(kappa=0.2, along="columns").apply(x, None, AT), Crosstalk(kappa=0.2, along="rows").apply(x, None, AT))


def test_an_exponential_curve_falls_to_a_third_in_its_length():
    curve = Exponential(scale=0.3, length=4.0)
    torch.testing.assert_close(curve(torch.tensor([0.0, 4.0, 8.0])), 0.3 * torch.tensor([1.0, 1 / np.e, 1 / np.e**2]))
