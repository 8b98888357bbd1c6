import numpy as np
import pytest
import torch

from galvanic.physics import Context, Nonlinearity


@pytest.mark.parametrize("amplitude", [0.1, 1.0])
@pytest.mark.parametrize(("second", "third"), [(0.01, 0.0), (0.0, -0.02), (0.005, 0.01)])
def test_a_sine_comes_out_with_the_stated_harmonics(amplitude, second, third):
    n = 256
    x = amplitude * torch.cos(2 * torch.pi * torch.arange(n, dtype=torch.float64) / n)
    y = Nonlinearity(second=second, third=third).apply(x, None, Context())
    lines = np.fft.rfft(y.numpy()).real / (n / 2)  # amplitudes of cosines; line 0 is twice the mean
    exact = [amplitude**2 * second, amplitude + 0.75 * third * amplitude**3, second * amplitude**2 / 2, third * amplitude**3 / 4]
    np.testing.assert_allclose(lines[:4], exact, atol=1e-14)
    np.testing.assert_allclose(lines[4:], 0, atol=1e-14)
    hd2, hd3 = lines[2:4] / lines[1]
    first_order = 2 * abs(third)  # what HD2 = a2 / 2, HD3 = a3 / 4 leave out, relative
    assert hd2 == pytest.approx(second * amplitude / 2, rel=first_order)
    assert hd3 == pytest.approx(third * amplitude**2 / 4, rel=first_order)
