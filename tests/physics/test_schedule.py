from math import sqrt

import numpy as np
import pytest
import torch

from galvanic.physics import Context, TimeVarying
from galvanic.seeding import generator

TIMES, MEAN, STD = (0.0, 1.0, 3.0, 4.0), (0.2, -0.1, 0.3, 0.1), (0.05, 0.2, 0.1, 0.3)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_mean_and_spread_are_linear_between_the_times_and_constant_beyond_them(as_tensors):
    table = [torch.tensor(v, dtype=torch.float64) if as_tensors else v for v in (TIMES, MEAN, STD)]
    effect = TimeVarying(times_s=table[0], mean=table[1], std=table[2])
    x, z = torch.tensor([0.5, -0.5], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    for t in (0.0, 0.3, 1.0, 2.9, 3.7, 4.0, 100.0):
        mu, sigma = np.interp(t, TIMES, MEAN), np.interp(t, TIMES, STD)
        y = effect.apply(x, z, Context(time_s=t, noise_level=0.5))
        np.testing.assert_allclose(y, x + mu + 0.5 * sigma * z, rtol=0, atol=1e-14)
        np.testing.assert_allclose(effect.apply(x, None, Context(time_s=t)), x + mu, rtol=0, atol=1e-14)


def test_times_may_differ_from_vector_to_vector():
    t = torch.linspace(-1, 5, 40, dtype=torch.float64)
    effect = TimeVarying(times_s=TIMES, mean=MEAN, std=STD)
    np.testing.assert_allclose(effect.std_at(t), np.interp(t, TIMES, STD), rtol=0, atol=1e-14)


def test_a_grid_of_one_time_is_constant_noise():
    effect = TimeVarying(times_s=(2.0,), mean=(0.1,), std=(0.3,))
    assert [float(effect.mean_at(t)) for t in (0.0, 2.0, 5.0)] == [0.1] * 3


def test_maximum_likelihood_recovers_the_curves_from_measured_errors():
    n = 4000
    t = torch.linspace(0, 4, n, dtype=torch.float64)
    mu, sigma = (np.interp(t, TIMES, v) for v in (MEAN, STD))
    errors = torch.tensor(mu + sigma * np.random.default_rng(0).normal(size=n))
    mean = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    log_std = torch.full((4,), -2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mean, log_std], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        effect = TimeVarying(times_s=TIMES, mean=mean, std=log_std.exp())
        value = -torch.distributions.Normal(effect.mean_at(t), effect.std_at(t)).log_prob(errors).mean()
        value.backward()
        return value

    optimizer.step(loss)
    hats = np.stack([np.interp(t, TIMES, row) for row in np.eye(4)], -1)  # derivative of the interpolation to the values
    information = np.einsum("ti,tj,t->ij", hats, hats, sigma**-2)
    standard_error = np.sqrt(np.diag(np.linalg.inv(information)))
    assert (abs(mean.detach().numpy() - MEAN) < 4 * standard_error).all()
    assert (abs(log_std.detach().exp().numpy() - STD) < 4 * standard_error / sqrt(2)).all()


def test_the_noise_has_the_spread_of_its_time():
    effect = TimeVarying(times_s=TIMES, mean=MEAN, std=STD)
    x = torch.zeros(100_000)
    y = effect.apply(x, effect.draw(tuple(x.shape), generator("schedule")), Context(time_s=3.5))
    assert float(y.std()) == pytest.approx(0.2, rel=5 / sqrt(2 * 100_000))
    assert float(y.mean()) == pytest.approx(0.2, abs=5 * 0.2 / sqrt(100_000))


@pytest.mark.parametrize(
    ("times", "values", "message"),
    [
        ((0.0, 1.0), (0.1,), "2 times, 1 means, 1 stds; one of each for every time"),
        ((), (), "0 times, 0 means, 0 stds; one of each for every time, and one time or more"),
        ((0.0, 2.0, 2.0), (0.1, 0.1, 0.1), r"TimeVarying.times_s: 0, 2, 2 do not increase"),
    ],
)
def test_a_grid_that_is_none_is_refused(times, values, message):
    with pytest.raises(ValueError, match=message):
        TimeVarying(times_s=times, mean=values, std=values)
