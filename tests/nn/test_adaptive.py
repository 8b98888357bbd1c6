"""Adaptive noise: what it adds, what it learns, what ties it to the measurement, and that real chips are what it stands for."""

import copy
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch import nn
from torch.func import functional_call, vmap

import galvanic
from galvanic import Conditions, convert, load_profile, profile_names, program, to_digital
from galvanic.nn import AdaptiveNoise, GatedResidual, anchor, simulate
from galvanic.physics import (
    SAR,
    Compress,
    Correlated,
    Crosstalk,
    DeadLine,
    Drift,
    GainOffset,
    Gaussian,
    LogNormalMismatch,
    Mismatch,
    Nonlinearity,
    Quantize,
    RandomTelegraph,
    Shot,
    StuckAt,
    Thermal,
)

AGED = Conditions(age_s=3600.0)
EFFECTS = {
    "thermal": Thermal(resistance_ohm=1e4, bandwidth_Hz=1e8, full_scale_A=1e-6),
    "shot": Shot(bandwidth_Hz=1e9, full_scale_A=1e-6),
    "gaussian": Gaussian(std=0.05),
    "relative": Gaussian(std=0.1, relative=True),
    "rounding": Quantize(bits=4, error_std=0.01),
    "mismatch": GainOffset(gain=0.01, gain_std=0.05, offset_std=0.02),
    "lognormal": LogNormalMismatch(std=0.1),
    "drift": Drift(nu=0.05, nu_std=0.01),
    "compression": Compress(limit=1.2),
    "polynomial": Nonlinearity(second=0.02, third=-0.1),
    "crosstalk": Crosstalk(kappa=0.02),
    "correlated": Correlated(std=0.02, length=2.0),
    "converter": SAR(bits=5, capacitor_std=0.02),
    "dead": DeadLine(fraction=0.2),
}
every_effect = pytest.mark.parametrize("effect", EFFECTS.values(), ids=EFFECTS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def off_centre(noise):
    """The noise with every learned number away from its start."""
    with torch.no_grad():
        for p in noise.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return noise


def drawn(noise, u, seed=0):
    torch.manual_seed(seed)
    return noise(u)


def test_it_is_the_weighted_sum_of_what_its_effects_add_in_units_of_full_scale():
    noise = off_centre(AdaptiveNoise((Gaussian(std=0.1), Compress(limit=0.9)))).double()
    u = torch.randn(6, 5, dtype=torch.float64)
    r = u.abs().amax(-1, keepdim=True)
    gaussian, compress = noise.physics()
    z = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = r * (noise.weights[0] * gaussian.std * z + noise.weights[1] * (compress.limit * torch.tanh(u / r / compress.limit) - u / r))
    torch.testing.assert_close(drawn(noise, u), expected)


@every_effect
def test_noise_grows_with_the_signal(effect):
    noise, u = AdaptiveNoise((effect,), conditions=AGED), torch.randn(3, 4, 5, 5)
    assert drawn(noise, u).any()
    torch.testing.assert_close(drawn(noise, 8 * u), 8 * drawn(noise, u))  # a power of two: exact, on either side of every rounding


@every_effect
def test_shape_and_dtype_are_the_signals(effect):
    noise = AdaptiveNoise((effect,), conditions=AGED)
    for shape in ((3, 6), (2, 3, 6), (2, 6, 4, 4), (2, 6, 3, 3, 3), (0, 6), (6,)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            added = noise(torch.randn(shape).to(dtype))
            assert (added.shape, added.dtype) == (shape, dtype)
            assert added.isfinite().all()


def test_a_silent_signal_gets_no_noise_and_nan_stays_nan():
    noise = AdaptiveNoise(EFFECTS.values())
    assert not noise(torch.zeros(2, 3, 4, 4)).any()
    u = torch.randn(2, 3)
    u[0, 0] = torch.nan
    added = noise(u)
    assert added[0].isnan().any()
    assert added[1].isfinite().all()


def test_noise_of_a_chip_is_drawn_once_a_channel_and_anew_at_every_call():
    noise = AdaptiveNoise((Mismatch(std=0.1),))
    u = torch.rand(4, 3, 5, 5) + 0.5
    gains = noise(u) / u
    torch.testing.assert_close(gains, gains[:1, :, :1, :1].expand_as(u))
    assert gains[0, :, 0, 0].unique().numel() == 3
    assert not torch.equal(noise(u), noise(u))
    tokens = torch.rand(2, 5, 3) + 0.5
    gains = noise(tokens) / tokens
    torch.testing.assert_close(gains, gains[:1, :1].expand_as(tokens))
    gains = AdaptiveNoise((Mismatch(std=0.1),), axis=1)(tokens) / tokens
    torch.testing.assert_close(gains, gains[:1, :, :1].expand_as(tokens))


def test_neighbours_are_channels():
    noise, u = AdaptiveNoise((Crosstalk(kappa=0.1),)), torch.zeros(1, 4, 3, 3)
    u[0, 1, 2, 0] = 1.0
    expected = torch.zeros_like(u)
    expected[0, [0, 2], 2, 0] = 0.1
    torch.testing.assert_close(noise(u), expected)


@pytest.mark.parametrize("name", [n for n in EFFECTS if n not in ("rounding", "converter", "dead")])
def test_gradients_to_signal_weight_and_physics_are_those_of_finite_differences(name):
    noise = off_centre(AdaptiveNoise((EFFECTS[name],), conditions=AGED)).double()
    u = torch.randn(3, 4, dtype=torch.float64)
    largest = u.abs() == u.abs().amax(-1, keepdim=True)
    full_scale = u.abs().amax(-1, keepdim=True)
    names = [n for n, _ in noise.named_parameters()]

    def added(v, *values):  # the largest of each vector is fixed, as the full scale is for the gradient
        v = torch.where(largest, v.detach().sign() * full_scale, v)
        return functional_call(noise, dict(zip(names, values, strict=True)), (v,))

    def fixed(*args):
        torch.manual_seed(1)
        return added(*args)

    torch.autograd.gradcheck(fixed, (u.requires_grad_(), *(p.detach().requires_grad_() for p in noise.parameters())))


def test_the_full_scale_is_detached():
    noise, u = AdaptiveNoise((Gaussian(std=0.1),)), torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise(u).sum(), u)
    torch.testing.assert_close(gradient, torch.zeros_like(u), atol=1e-6, rtol=0)


def test_learned_is_every_number_that_a_gradient_reaches_and_only_those():
    effects = (
        Gaussian(std=torch.tensor(0.1)),
        Quantize(bits=4),
        StuckAt(low_fraction=0.1),
        Correlated(std=0.1, length=2.0),
        DeadLine(fraction=0.1),
        RandomTelegraph(amplitude=0.1),
        Nonlinearity(third=-0.1),
        GainOffset(),
    )
    learned = [set(effect.measured) for effect in AdaptiveNoise(effects).effects]
    assert learned == [{"std"}, {"full_scale"}, {"high"}, {"std"}, set(), {"amplitude"}, {"third"}, set()]


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_learned_values_keep_their_sign_and_stay_within_the_span(far):
    noise = AdaptiveNoise((Gaussian(std=0.1), Nonlinearity(third=-0.1)), span=5.0)
    with torch.no_grad():
        for p in noise.parameters():
            p.fill_(far)
    factor = 5.0 if far > 0 else 0.2
    gaussian, curve = noise.physics()
    torch.testing.assert_close(torch.stack([*noise.weights, 10 * gaussian.std, -10 * curve.third]), torch.full((4,), factor))


def test_the_anchor_is_half_the_squared_log_ratio_over_the_tolerance():
    noise = AdaptiveNoise((Gaussian(std=0.1), Quantize(bits=4, error_std=0.02)), tolerance=0.2)
    assert noise.anchor() == 0
    off_centre(noise)
    gaussian, quantize = noise.physics()
    ratios = torch.stack([*noise.weights, gaussian.std / 0.1, quantize.full_scale, quantize.error_std / 0.02])
    torch.testing.assert_close(noise.anchor(), (ratios.log() / 0.2).square().sum() / 2)
    torch.testing.assert_close(anchor(nn.Sequential(noise, AdaptiveNoise(()), nn.Linear(2, 2), copy.deepcopy(noise))), 2 * noise.anchor())
    assert anchor(nn.Linear(2, 2)) == 0


def trained(loss_of, *, seed, start=0.3):
    """The noise level after training, over its start."""
    torch.manual_seed(seed)
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    noise = AdaptiveNoise((Gaussian(std=start),))
    inner = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), GatedResidual(inner, 16, noise=noise), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(net, nn.functional.cross_entropy(net(x), y)).backward()
        optimizer.step()
    return float((noise.weights[0] * noise.physics()[0].std).detach()) / start


@pytest.mark.parametrize("seed", [0, 1])
def test_under_plain_cross_entropy_the_level_collapses_and_with_the_anchor_it_stays(seed):
    assert trained(lambda net, loss: loss, seed=seed) < 1 / 3
    assert abs(trained(lambda net, loss: loss + anchor(net), seed=seed) - 1) < 0.1


def test_the_likelihood_is_that_of_a_normal_distribution():
    noise = off_centre(AdaptiveNoise((Gaussian(std=0.1), Gaussian(std=0.2, relative=True), Quantize(bits=4), Nonlinearity(third=-0.2))))
    noise = noise.double()
    u, e = torch.rand(50, dtype=torch.float64), 0.1 * torch.randn(50, dtype=torch.float64)
    w = noise.weights.detach()
    absolute, relative, quantize, curve = noise.physics()
    variance = (w[0] * absolute.std) ** 2 + (w[1] * relative.std * u) ** 2 + (w[2] * quantize.full_scale / 7) ** 2 / 12
    mean = w[3] * curve.third * u**3
    expected = -scipy.stats.norm.logpdf(e, mean.detach(), variance.detach().sqrt()).mean()
    torch.testing.assert_close(float(noise.likelihood(e, u).detach()), float(expected))


def test_the_likelihood_of_measured_errors_finds_their_level():
    noise = AdaptiveNoise((Gaussian(std=0.05),))
    errors = 0.12 * torch.randn(4000)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        noise.likelihood(errors).backward()
        optimizer.step()
    found = float((noise.weights[0] * noise.physics()[0].std).detach())
    assert abs(found / float(errors.square().mean().sqrt()) - 1) < 0.01


@pytest.mark.parametrize("name", ["gaussian", "relative", "thermal", "shot", "mismatch"])
def test_the_modelled_variance_is_that_of_the_noise(name):
    noise = off_centre(AdaptiveNoise((EFFECTS[name],)))
    u = torch.tensor([1.0, 0.5, -0.3])
    with torch.no_grad():
        added = vmap(noise, randomness="different")(u.expand(4000, 3))
        at_sample = [noise.likelihood(scale * (added - added.mean(0)) + added.mean(0), u.expand_as(added)) for scale in (0.9, 1.0, 1.1)]
        gaussian = (added.var(0).log() + 1 + torch.tensor(2 * torch.pi).log()).mean() / 2
    assert abs(at_sample[1] - gaussian) < 0.01  # of matching moments, the likelihood is the entropy
    assert at_sample[0] < at_sample[1] < at_sample[2]


def test_an_impossible_likelihood_is_refused():
    e = torch.randn(3)
    with pytest.raises(ValueError, match="no residual"):
        AdaptiveNoise((Gaussian(std=0.1),)).likelihood(e[:0])
    with pytest.raises(ValueError, match=r"residuals \(3,\) and signals \(2,\) differ"):
        AdaptiveNoise((Gaussian(std=0.1),)).likelihood(e, e[:2])
    with pytest.raises(ValueError, match="DeadLine is not Gaussian"):
        AdaptiveNoise((DeadLine(fraction=0.1),)).likelihood(e)
    for effects in ((), (Gaussian(std=0.1, relative=True),)):
        with pytest.raises(ValueError, match="no effect makes noise"):
            AdaptiveNoise(effects).likelihood(e)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_has_a_noise(name):
    noise = AdaptiveNoise.of(load_profile(name))
    assert noise(torch.randn(4, 8)).any() == (name != "ideal")
    assert anchor(noise) == 0


@pytest.mark.parametrize("age_s", [0.0, 86400.0])
@pytest.mark.parametrize("name", ["pcm", "pcm-hermes", "reram", "reram-wan", "generic-4bit", "flash"])
@torch.no_grad()
def test_what_stands_for_the_weights_is_what_chips_do_to_a_product(name, age_s):
    profile = replace(load_profile(name), input=(), output=())
    layer = nn.Linear(256, 256, bias=False)
    nn.init.normal_(layer.weight)
    x = torch.randn(100, 256)
    y = layer(x)
    u = y / y.abs().amax(-1, keepdim=True)

    def gain_and_std(errors):
        gain = (errors * u).sum() / (u.square().sum() * errors.shape[0])
        return gain, (errors - gain * u).std()

    analog = convert(layer, profile, chip=0)
    chips = torch.stack([(galvanic.age(program(analog, chip), age_s)(x) - y) / y.abs().amax(-1, keepdim=True) for chip in range(4)])
    noise = AdaptiveNoise.of(profile, conditions=Conditions(age_s=age_s))
    modelled = torch.stack([noise(u) for _ in range(4)])
    (real_gain, real_std), (gain, std) = gain_and_std(chips), gain_and_std(modelled)
    assert abs(gain - real_gain) < 0.01
    assert 0.9 < std / real_std < 1.1


def test_conditions_may_be_set_at_any_time():
    noise, u = AdaptiveNoise((Drift(nu=0.1),)), torch.randn(2, 3)
    assert not noise(u).any()
    noise.conditions = Conditions(age_s=20.0)
    torch.testing.assert_close(noise(u), u * (2**-0.1 - 1))


def test_what_is_not_simulated_adds_nothing_and_draws_nothing():
    model, u = nn.Sequential(AdaptiveNoise((Gaussian(std=0.1),))), torch.randn(2, 3)
    assert simulate(model, False) is model
    before = torch.get_rng_state()
    assert not model(u).any()
    assert torch.equal(torch.get_rng_state(), before)
    assert simulate(model, True)(u).any()


def test_convert_switches_it_off_in_the_copy_and_to_digital_on_again():
    noise = AdaptiveNoise((Gaussian(std=0.1),))
    model = nn.Sequential(nn.Linear(3, 3), noise)
    analog = convert(model, load_profile("ideal"), chip=0)
    assert noise.simulated
    assert not analog[1].simulated
    assert to_digital(analog)[1].simulated
    assert analog.state_dict().keys() == model.state_dict().keys()


def test_copies_and_checkpoints_keep_what_was_learned():
    noise = off_centre(AdaptiveNoise(EFFECTS.values(), conditions=AGED))
    other = AdaptiveNoise(EFFECTS.values(), conditions=AGED)
    other.load_state_dict(noise.state_dict())
    u = torch.randn(3, 4)
    assert torch.equal(drawn(other, u), drawn(noise, u))
    assert torch.equal(drawn(copy.deepcopy(noise), u), drawn(noise, u))


def test_vmap_draws_anew_for_every_copy():
    noise = AdaptiveNoise(EFFECTS.values(), conditions=AGED)
    u = torch.randn(3, 4)
    a, b = vmap(noise, randomness="different")(torch.stack([u, u]))
    assert not torch.equal(a, b)
    stacked = {name: torch.stack([p, p + 1]) for name, p in noise.named_parameters()}
    a, b = vmap(lambda p: functional_call(noise, p, (u,)), randomness="different")(stacked)
    assert not torch.equal(a, b)


def test_it_is_built_without_memory_and_without_gradients():
    with torch.device("meta"):
        assert all(p.is_meta for p in AdaptiveNoise.of(load_profile("pcm")).parameters())
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert AdaptiveNoise((Gaussian(std=0.1),)).effects[0].measured == {"std": 0.1}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"not 0\.1"):
        AdaptiveNoise((0.1,))
    for span in (1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"span = .*: a factor above 1"):
            AdaptiveNoise((), span=span)
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"tolerance = .*: a relative uncertainty above 0"):
            AdaptiveNoise((), tolerance=tolerance)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has no axis 4"):
        AdaptiveNoise((Gaussian(std=0.1),), axis=4)(torch.randn(2, 3))
