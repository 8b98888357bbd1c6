"""Phase-change and resistive memory against the published models; the constants stand here a second time, on purpose."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from galvanic.nn import age, convert
from galvanic.physics import Conditions, Context, Drift, LogLaw, Polynomial, Programming, ReadNoise
from galvanic.profile import load_profile

AGES_S = {"0": 0.0, "1 h": 3600.0, "1 day": 86400.0, "365 days": 365 * 86400.0}
WEIGHTS = (0.01, 0.1, 0.5, 1.0)


# ---------------------------------------------------------------------------- PCM: Joshi et al. 2020, Nandakumar et al. 2019, 25 uS


def sigma_programming(g):
    return (0.26348 + 1.9650 * g - 1.1731 * g**2) / 25


def mu_nu(g):
    return np.clip(-0.0155 * np.log(np.maximum(g, 1e-7)) + 0.0244, 0.049, 0.1)


def sigma_nu(g):
    return np.clip(-0.0125 * np.log(np.maximum(g, 1e-7)) - 0.0059, 0.008, 0.045)


def q_read(g):
    return np.minimum(0.0088 / np.maximum(g, 1e-12) ** 0.65, 0.2)


def growth(age_s):
    return sqrt(log((age_s + 20 + 250e-9) / (2 * 250e-9)))


def expectation(f, low=-9.0, high=9.0, nodes=48):
    """The part of E f(z), z standard normal, between two bounds (numbers or arrays): Gauss-Legendre along a new last axis."""
    u, w = np.polynomial.legendre.leggauss(nodes)
    low, high = np.clip(low, -9, 9)[..., None], np.clip(high, -9, 9)[..., None]
    z = low + (high - low) * (u + 1) / 2
    return (w * (high - low) / 2 * np.exp(-(z**2) / 2) / sqrt(2 * np.pi) * f(z)).sum(-1)


@cache
def moments(target, age_s):
    """E g^k of a device, g = max(0, g_d (1 + Q(g_p) s z3)), g_d = g_p (1 + t/t0)^-|nu|, g_p = max(0, target + sigma z1)."""
    result = []
    for k in (1, 2, 3, 4):
        kink = -mu_nu(target) / sigma_nu(target)  # of the absolute value
        fade = sum(
            expectation(lambda z, k=k: ((age_s + 20) / 20) ** (-k * np.abs(mu_nu(target) + sigma_nu(target) * z)), *ends)
            for ends in ((-9.0, kink), (kink, 9.0))
        )

        def written_and_read(z, k=k):
            g = target + sigma_programming(target) * z
            s = q_read(g) * growth(age_s)
            return g**k * expectation(lambda z3: (1 + s[..., None] * z3) ** k, -1 / s)

        edges = np.array([0.0, 0.044 ** (1 / 0.65), 0.05, np.inf])  # where the write, then Q is clipped; where Q still bends strongly
        ends = np.clip((edges - target) / sigma_programming(target), -9, 9)
        result.append(float(fade * sum(expectation(written_and_read, a, b) for a, b in pairwise(ends))))
    return np.array(result)


def central(m):
    """Mean, variance and fourth central moment."""
    mean = m[0]
    return mean, m[1] - mean**2, m[3] - 4 * mean * m[2] + 6 * mean**2 * m[1] - 3 * mean**4


def published(w, age_s):
    """Mean, standard deviation and kurtosis of the weight that a pair decodes to: one device asked for w, the other for nothing."""
    (m1, v1, f1), (m2, v2, f2) = (central(moments(target, age_s)) for target in (w, 0.0))
    return m1 - m2, sqrt(v1 + v2), (f1 + f2 + 6 * v1 * v2) / (v1 + v2) ** 2


N = 1_000_000


@pytest.fixture(scope="module")
def pcm_layer():
    """2 N devices at 0.01, N at 0.1, N / 2 at 0.5 and at 1; one at 1 ahead of every column, so that its digital scale is 1."""
    linear = nn.Linear(N + 1, 4, bias=False)
    with torch.no_grad():
        linear.weight[:] = torch.tensor([0.01, 0.01, 0.1, 0.5])[:, None]
        linear.weight[3, N // 2 :] = 1
        linear.weight[:, 0] = 1
    return convert(linear, replace(load_profile("pcm"), rows=None), chip=2024)


@pytest.mark.parametrize("age_s", AGES_S.values(), ids=AGES_S.keys())
def test_mean_and_spread_of_pcm_weights_in_a_layer_are_those_of_the_published_model(pcm_layer, age_s):
    with torch.no_grad():
        age(pcm_layer, age_s)
        written = pcm_layer.written(Context(**pcm_layer.at))
    decoded = written.lanes[0][0].squeeze(0)
    assert (written.scale == 1).all()
    for w in WEIGHTS:
        sample = decoded[pcm_layer.weight == w].double()
        mean, std, kurtosis = published(w, age_s)
        # N is such that the standard errors of both are below 0.2 %, so that 1 % is five of them even at w = 0.01 after a year
        assert std / mean / sqrt(len(sample)) < 0.002
        assert sqrt((kurtosis - 1) / (4 * len(sample))) < 0.002
        assert float(sample.mean()) == pytest.approx(mean, rel=0.01)
        assert float(sample.std()) == pytest.approx(std, rel=0.01)


def test_clipping_at_zero_is_no_detail_at_a_hundredth_of_full_scale():
    """The reference has it: without clips, the mean of a pair would be w at age 0."""
    assert published(0.01, 0.0)[0] < 0.75 * 0.01
    assert published(1.0, 0.0)[0] == pytest.approx(1.0, abs=0.006)


def test_the_reference_agrees_with_values_printed_by_the_published_implementation():
    assert 25 * sigma_programming(1.0) == pytest.approx(1.054, abs=2e-3)  # printed: of a sample
    assert [float(mu_nu(g)) for g in (1.0, 0.1)] == pytest.approx([0.0490, 0.0602], abs=2e-4)
    kink = -mu_nu(0.01) / sigma_nu(0.01)
    halves = [expectation(lambda z: np.abs(mu_nu(0.01) + sigma_nu(0.01) * z), *ends) for ends in ((-9.0, kink), (kink, 9.0))]
    assert float(sum(halves)) == pytest.approx(0.0964, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ every shipped curve

X = np.array([1e-9, 1e-3, 0.02, 0.09, 0.1, 0.159, 0.161, 0.3, 0.31, 0.7, 1.0])


def hermes(threshold, slope, intercept, low, high, *coefficients):
    line = np.clip(slope * np.log(np.maximum(X, 1e-7)) + intercept, low, high)
    return np.where(threshold > X, line, sum(c * X**k for k, c in enumerate(coefficients)))


CURVES = {
    ("pcm", Programming, "std"): sigma_programming(X),
    ("pcm", Drift, "nu"): mu_nu(X),
    ("pcm", Drift, "nu_std"): sigma_nu(X),
    ("pcm", ReadNoise, "q"): q_read(X),
    ("pcm-hermes", Programming, "std"): (0.16603222 + 4.71806468 * X - 8.48101252 * X**2 + 4.68961419 * X**3) / 20.7,
    ("pcm-hermes", Drift, "nu"): hermes(0.0945, -0.0387, -0.0182, 0.072, 0.13, 0.0736, -0.0126, -0.0436),
    ("pcm-hermes", Drift, "nu_std"): hermes(0.3055, -0.0117, -0.0057, 0.0091, 0.04, 0.0073, 0.0093, -0.0118),
    ("pcm-hermes", ReadNoise, "q"): hermes(0.16, -0.0117, -0.0069, 0.015, 0.04, 0.0123, 0.0211, -0.0280, 0.0069),
    ("reram", Programming, "std"): (0.348 + 16.030 * X - 43.853 * X**2 + 45.393 * X**3 - 16.815 * X**4) / 40,
}


def of(profile, kind):
    (effect,) = (e for e in load_profile(profile).weight if type(e) is kind)
    return effect


@pytest.mark.parametrize("key", CURVES, ids=lambda k: f"{k[0]}-{k[1].__name__}-{k[2]}")
def test_a_shipped_curve_is_the_published_one(key):
    profile, kind, name = key
    curve = getattr(of(profile, kind), name)
    np.testing.assert_allclose(curve(torch.from_numpy(X)), CURVES[key], rtol=1e-12)
    everywhere = curve(torch.linspace(0, 1.3 if name == "q" else 1.0, 1001))  # a written conductance can be above 1, a target cannot
    assert (everywhere.isfinite() & (everywhere >= 0)).all()


def test_shipped_times_are_the_published_ones():
    assert [of("pcm", k).t0_s for k in (Drift, ReadNoise)] == [20.0, 20.0]
    assert [of("pcm-hermes", k).t0_s for k in (Drift, ReadNoise)] == [300.0, 300.0]
    assert of("pcm", ReadNoise).t_read_s == 250e-9
    assert of("pcm-hermes", ReadNoise).t_read_s == 512e-9


def test_shipped_memories_program_then_drift_then_are_read_on_the_clocks_of_the_contract():
    for name in ("pcm", "pcm-hermes"):
        assert [(type(e), e.per) for e in load_profile(name).weight] == [(Programming, "write"), (Drift, "write"), (ReadNoise, "snapshot")]


# ------------------------------------------------------------------------------------------------------------------ the effects

G = torch.tensor([0.0, 0.01, 0.2, 0.9], dtype=torch.float64)
LINE = Polynomial(coefficients=(0.01, 0.05))


@pytest.mark.parametrize("z", [-12.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("age_s", [0.0, 100.0, 1e8])
def test_drift_is_a_power_law_of_the_age_with_the_absolute_exponent_of_the_target(age_s, z):
    target = torch.tensor([0.5, 0.02, 0.1, 0.7], dtype=torch.float64)
    effect = Drift(nu=LINE, nu_std=0.01, t0_s=30.0)
    g = effect.apply(G, torch.full_like(G, z), Context(age_s=age_s, target=target))
    nu = np.abs(0.01 + 0.05 * target.numpy() + 0.01 * z)
    np.testing.assert_allclose(g, G.numpy() * ((age_s + 30) / 30) ** -nu, rtol=1e-12)


def test_at_age_zero_nothing_has_drifted():
    assert torch.equal(Drift(nu=0.1, nu_std=0.1).apply(G, torch.randn(4, dtype=torch.float64), Context()), G)


def test_without_a_target_the_exponent_is_that_of_the_signal():
    at = Context(age_s=1e4)
    assert torch.equal(Drift(nu=LINE).apply(G, None, at), Drift(nu=LINE).apply(G, None, replace(at, target=G)))


@pytest.mark.parametrize("age_s", [0.0, 100.0, 1e8])
def test_read_noise_is_that_of_the_written_conductance_in_units_of_the_present_one(age_s):
    written = torch.tensor([0.5, 0.02, 0.1, 0.7], dtype=torch.float64)
    effect = ReadNoise(q=LINE, t_read_s=1e-6, t0_s=30.0)
    sigma = effect.sigma(G, Context(age_s=age_s, written=written, target=G))
    expected = G.numpy() * (0.01 + 0.05 * written.numpy()) * sqrt(log((age_s + 30 + 1e-6) / 2e-6))
    np.testing.assert_allclose(sigma, expected, rtol=1e-12)


def test_programming_noise_is_that_of_the_conductance_asked_for():
    effect = Programming(std=LINE)
    np.testing.assert_allclose(effect.apply(G, torch.full_like(G, 2.0), Context()), G + 2 * (0.01 + 0.05 * G), rtol=1e-12)


def test_the_noise_level_multiplies_the_spread_of_all_three_and_not_the_mean_drift():
    z, louder = torch.full_like(G, 0.5), Context(age_s=100.0, noise_level=3.0)
    for effect in (Programming(std=LINE), Drift(nu=0.06, nu_std=0.01), ReadNoise(q=LINE)):
        torch.testing.assert_close(effect.apply(G, z, louder), effect.apply(G, 3 * z, replace(louder, noise_level=1.0)), rtol=1e-12, atol=0)
        torch.testing.assert_close(effect.apply(G, None, louder), effect.apply(G, None, Context(age_s=100.0)), rtol=0, atol=0)


def test_the_age_counts_from_the_first_read_and_conditions_say_so():
    assert Conditions().age_s == 0
    fade = Drift(nu=LogLaw(slope=-0.0155, intercept=0.0244, low=0.049, high=0.1)).apply(torch.ones(1), None, Context(age_s=20.0))
    assert float(fade) == pytest.approx(2**-0.049, rel=1e-6)
