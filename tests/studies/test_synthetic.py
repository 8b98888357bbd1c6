import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.nn.functional import mse_loss

from galvanic.seeding import generator
from galvanic.studies.datasets import load
from galvanic.studies.synthetic import Gaussians, Regression, teacher

TASK, TEACHER = teacher(6, 3, samples=200)
LEVELS = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.5, 0.3)]  # of inputs, of weights
levels = pytest.mark.parametrize(("input_std", "weight_std"), LEVELS)


# ------------------------------------------------------------------------------------------------------------------ regression


@levels
def test_the_loss_is_the_mean_of_many_noisy_reads(input_std, weight_std):
    torch.manual_seed(0)
    weight, reads = torch.randn(3, 6), 4000
    e, epsilon = torch.randn(reads, 3, 6), torch.randn(reads, 200, 6)
    y = (TASK.x + input_std * epsilon) @ (weight + weight_std * e).mT
    losses = (y - TASK.y).square().mean((1, 2))
    error = 5 * losses.std() / math.sqrt(reads) + 1e-5
    assert abs(losses.mean() - TASK.loss(weight, input_std=input_std, weight_std=weight_std)) < error


@levels
def test_the_loss_is_least_at_the_optimum(input_std, weight_std):
    task = Regression(x=TASK.x.double(), y=TASK.y.double() + torch.randn(200, 3, generator=generator("misfit"), dtype=torch.float64))
    best = task.optimum(input_std=input_std).requires_grad_()
    loss = task.loss(best, input_std=input_std, weight_std=weight_std)
    (slope,) = torch.autograd.grad(loss, best)
    assert slope.abs().max() < 1e-12
    for step in torch.randn(20, 3, 6, generator=generator("steps"), dtype=torch.float64):
        assert task.loss(best + 0.01 * step, input_std=input_std, weight_std=weight_std) > loss


def test_the_optimum_under_input_noise_is_ridge_regression():
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha=200 * 0.5**2, fit_intercept=False).fit(TASK.x.double(), TASK.y.double())
    np.testing.assert_allclose(TASK.optimum(input_std=0.5), ridge.coef_, atol=1e-5)


def test_without_input_noise_the_optimum_is_the_teacher_and_weight_noise_costs_its_part_in_full():
    torch.testing.assert_close(TASK.optimum(), TEACHER, atol=1e-4, rtol=0)
    torch.testing.assert_close(TASK.loss(TEACHER), torch.tensor(0.0), atol=1e-10, rtol=0)
    power = torch.trace(TASK.x.T @ TASK.x / 200)
    torch.testing.assert_close(TASK.loss(TEACHER, weight_std=0.3), 0.09 * power)


def test_samples_too_few_to_fix_the_weight_give_that_of_smallest_norm():
    few = Regression(x=TASK.x[:4].double(), y=TASK.y[:4].double())
    smallest = torch.linalg.lstsq(few.x, few.y, driver="gelsd").solution.T
    torch.testing.assert_close(few.optimum(), smallest)
    torch.testing.assert_close(few.optimum(input_std=1e-4), smallest, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("input_std", "weight_std"), LEVELS[1:])
def test_training_under_noise_ends_at_the_optimum_of_that_noise(input_std, weight_std):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(3, 6))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        x = TASK.x.repeat(4, 1)
        w = weight + weight_std * torch.randn(800, 3, 6)  # another one for each sample
        y = torch.einsum("smn,sn->sm", w, x + input_std * torch.randn_like(x))
        mse_loss(y, TASK.y.repeat(4, 1)).backward()
        optimizer.step()
        schedule.step()
    noise = {"input_std": input_std, "weight_std": weight_std}
    start, end, best = (TASK.loss(w, **noise) for w in (torch.zeros(3, 6), weight.detach(), TASK.optimum(input_std=input_std)))
    assert 0 <= end - best < 0.002 * (start - best)
    if input_std:  # and the optimum without noise is clearly another
        assert TASK.loss(TEACHER, **noise) - best > 10 * (end - best)


def test_the_inputs_have_the_spectrum_that_was_asked_for():
    task, _ = teacher(5, 2, samples=20_000, condition=100.0)
    variances = torch.linalg.eigvalsh(task.x.T @ task.x / 20_000)
    torch.testing.assert_close(variances.flip(0), torch.logspace(0, -2, 5), rtol=5 * math.sqrt(2 / 20_000), atol=0)


def test_a_number_gives_the_same_task_every_time_and_another_number_another():
    assert teacher(6, 3, samples=200)[0] == TASK
    assert teacher(6, 3, samples=200, number=1)[0] != TASK


@pytest.mark.parametrize(
    ("x", "y", "shapes"),
    [
        ((5, 2), (4, 1), "(5, 2) and (4, 1)"),
        ((5,), (5, 1), "(5,) and (5, 1)"),
        ((5, 2), (5,), "(5, 2) and (5,)"),
        ((0, 2), (0, 1), "(0, 2) and (0, 1)"),
        ((5, 0), (5, 1), "(5, 0) and (5, 1)"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x, y, shapes):
    said = f"x and y have shapes {shapes}; expected (samples, n) and (samples, m), none of them 0"
    with pytest.raises(ValueError, match=re.escape(said)):
        Regression(x=torch.zeros(x), y=torch.zeros(y))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"^x or y holds NaN or infinity; expected finite numbers$"):
        Regression(x=torch.zeros(5, 2), y=torch.full((5, 1), value))


@pytest.mark.parametrize("shape", [(6, 3), (6,), (1, 6)])
def test_a_weight_of_another_shape_has_no_loss(shape):
    with pytest.raises(ValueError, match=re.escape(f"the weight has shape {shape}; expected (3, 6)")):
        TASK.loss(torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------------------- gaussians


TWO = Gaussians(classes=2, side=2, separation=2.0)
EVERY = [
    Gaussians(),
    TWO,
    Gaussians(classes=16, side=4),
    Gaussians(classes=100, side=16, separation=8.0),
]
every_task = pytest.mark.parametrize("task", EVERY, ids=lambda t: f"{t.classes}-classes")


@every_task
def test_the_means_are_equally_far_apart_around_zero(task):
    means = task.means.flatten(1)
    distances = torch.pdist(means)
    torch.testing.assert_close(distances, torch.full_like(distances, task.separation * task.std), rtol=1e-5, atol=0)
    torch.testing.assert_close(means.sum(0), torch.zeros(task.side**2), rtol=0, atol=1e-5)


@every_task
def test_the_variance_of_all_pixels_is_one(task):
    torch.testing.assert_close(task.means.square().sum() / task.classes / task.side**2 + task.std**2, torch.tensor(1.0))


@every_task
@pytest.mark.parametrize("noise_std", [0.0, 0.5, 2.0])
def test_the_nearest_mean_is_as_often_right_as_bayes(task, noise_std):
    torch.manual_seed(0)
    n = 20_000
    x, y = task.draw(n)
    x = x + noise_std * torch.randn_like(x)
    bayes = task.bayes_accuracy(noise_std=noise_std)
    assert abs((task.classify(x) == y).double().mean() - bayes) < 4 * math.sqrt(bayes * (1 - bayes) / n)


@pytest.mark.parametrize("noise_std", [0.0, 0.5, 2.0, 1e6])
def test_of_two_classes_bayes_has_a_closed_form(noise_std):
    distance = (TWO.means[0] - TWO.means[1]).double().norm().item()
    assert TWO.bayes_accuracy(noise_std=noise_std) == pytest.approx(norm.cdf(distance / 2 / math.hypot(TWO.std, noise_std)), abs=1e-7)


@every_task
@pytest.mark.parametrize("noise_std", [0.0, 0.5, 2.0])
def test_of_many_classes_bayes_agrees_with_adaptive_quadrature(task, noise_std):
    apart = task.separation * task.std / math.sqrt(2) / math.hypot(task.std, noise_std)
    expected = quad(lambda z: norm.pdf(z) * norm.cdf(z + apart) ** (task.classes - 1), -12, 12, epsabs=1e-13)[0]
    assert task.bayes_accuracy(noise_std=noise_std) == pytest.approx(expected, abs=1e-12)


def test_much_noise_leaves_a_guess_and_much_distance_certainty():
    assert Gaussians().bayes_accuracy(noise_std=1e9) == pytest.approx(0.1, abs=1e-7)
    assert Gaussians(separation=1e3).bayes_accuracy() == pytest.approx(1.0, abs=1e-12)


def trained(x: torch.Tensor, y: torch.Tensor, noise_std: float) -> torch.nn.Module:
    """A linear classifier after 200 steps on all images, under fresh noise in each."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x + noise_std * torch.randn_like(x)), y).backward()
        optimizer.step()
    return model


def test_a_linear_network_trained_under_noise_comes_near_bayes_and_not_above_it():
    data, accuracy = load("gaussians"), {}
    bayes = {std: Gaussians().bayes_accuracy(noise_std=std) for std in (0.0, 1.0)}
    for trained_std in bayes:
        model = trained(data.x_train, data.y_train, trained_std)
        for std in bayes:
            x = data.x_test + std * torch.randn_like(data.x_test)
            accuracy[trained_std, std] = (model(x).argmax(1) == data.y_test).double().mean().item()
    error = {std: math.sqrt(p * (1 - p) / len(data.y_test)) for std, p in bayes.items()}
    assert all(right < bayes[std] + 4 * error[std] for (_, std), right in accuracy.items())
    assert all(accuracy[std, std] > bayes[std] - 0.03 for std in bayes)


def test_the_task_is_the_same_every_time_and_training_and_test_differ():
    arrays, again = Gaussians().arrays(train=50, test=50), Gaussians().arrays(train=50, test=50)
    assert np.array_equal(arrays.x_train, again.x_train)
    assert np.array_equal(arrays.y_train, arrays.y_test)
    assert not np.array_equal(arrays.x_train, arrays.x_test)
    assert np.bincount(arrays.y_train).tolist() == [5] * 10


def test_scaling_by_the_sample_moves_the_task_by_little():
    raw, scaled = torch.from_numpy(Gaussians().arrays().x_test), load("gaussians").x_test
    assert (raw - scaled).abs().max() < 0.005 * raw.abs().max()


def test_no_images_are_drawn_where_none_are_asked_for():
    x, y = Gaussians().draw(0)
    assert (x.shape, y.shape, Gaussians().classify(x).shape) == ((0, 1, 8, 8), (0,), (0,))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"side": 3}, "10 classes do not fit in 3 x 3 pixels; expected a pixel or more a class"),
        ({"classes": 1}, "classes"),
        ({"separation": 0.0}, "separation"),
        ({"separation": math.nan}, "separation"),
    ],
)
def test_impossible_tasks_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Gaussians(**fields)
