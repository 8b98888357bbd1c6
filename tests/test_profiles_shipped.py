"""Laws of every shipped profile, and the published numbers that each was made from."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from galvanic import Conditions, age, at, calibrate_ranges, convert, load_profile, profile_names, program
from galvanic.nn import reads
from galvanic.physics import Context, Drift, Quantize, Relaxation
from galvanic.profile import Profile
from galvanic.ranges import Fixed

HOUR_S, DAY_S = 3600.0, 86400.0
N = 40_000  # devices, or reads, in a sample
FIVE_SIGMA_OF_A_SPREAD = 5 / sqrt(2 * N)

every_profile = pytest.mark.parametrize("name", profile_names())


def effects(profile: Profile) -> list:
    return [*profile.input, *profile.weight, *profile.output]


def mlp() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)), torch.randn(16, 20)


def cnn() -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)
    return nn.Sequential(*layers), torch.randn(8, 1, 8, 8)


# ------------------------------------------------------------------------------------------------------------------- laws


@every_profile
def test_every_effect_says_a_paper_or_that_it_is_assumed(name):
    paper = re.compile(r"et al\., .*\b(19|20)\d\d\b")
    vendor = re.compile(r"vendor's product page")
    for effect in effects(load_profile(name)):
        convention = name == "hwa"  # the setting of a benchmark, which is no claim about a device
        assert convention or effect.source.startswith("assumed: ") or paper.search(effect.source) or vendor.search(effect.source)
        if effect.source.startswith("verified: "):
            assert paper.search(effect.source) or vendor.search(effect.source)


@every_profile
@pytest.mark.parametrize("build", [mlp, cnn])
def test_a_network_works_when_written_is_finite_for_a_year_and_trains_on_a_new_chip(name, build):
    torch.manual_seed(0)
    model, x = build()
    digital = model(x)
    analog = calibrate_ranges(convert(model, load_profile(name), chip=3), [x])
    with torch.no_grad():
        fresh = analog(x)
        assert torch.corrcoef(torch.stack([fresh.flatten(), digital.flatten()]))[0, 1] > 0.5
        assert age(analog, 365 * DAY_S)(x).isfinite().all()
    program(analog)
    analog(x).square().mean().backward()
    for parameter in analog.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@every_profile
def test_another_chip_or_write_or_read_differs_where_the_profile_is_random_on_that_clock_and_only_there(name):
    torch.manual_seed(0)
    profile = load_profile(name)
    model, x = mlp()
    analog = calibrate_ranges(convert(model, profile, chip=0), [x])
    clocks = {effect.per for effect in effects(profile)} - {None}
    read, again = analog(x), analog(x)
    assert torch.equal(read, again) == ("read" not in clocks)
    with reads(analog, "off"):
        y = analog(x)
        assert torch.equal(program(analog, 0, write=1)(x), y) == (not clocks & {"write", "snapshot"})
        assert torch.equal(program(analog, 1, write=0)(x), y) == (not clocks & {"chip", "write", "snapshot"})


# ------------------------------------------------------------------------------------------------------------------- written devices


@dataclass(frozen=True)
class Published:
    """The spread of written devices that were asked for a value, both in the unit of the publication."""

    profile: str
    largest: float
    spread: Callable[[float], float]
    targets: tuple[float, ...]
    age_s: float = 0.0
    smallest: float = 0.0
    within: float = 0.0  # how far off a fit is, relative

    def __str__(self) -> str:
        return f"{self.profile} after {self.age_s:g} s"


def polynomial(*coefficients: float) -> Callable[[float], float]:
    """Lowest power first."""
    return np.polynomial.Polynomial(coefficients)


def of_fraction(largest: float, *coefficients: float) -> Callable[[float], float]:
    return lambda g: polynomial(*coefficients)(g / largest)


PUBLISHED = [
    # Joshi et al., Nat. Commun. 11, 2020; uS
    Published("pcm", 25.0, of_fraction(25.0, 0.26348, 1.9650, -1.1731), (5.0, 12.5, 25.0)),
    # HERMES, Le Gallo et al., Nat. Electron. 6, 2023; uS
    Published("pcm-hermes", 20.7, of_fraction(20.7, 0.16603222, 4.71806468, -8.48101252, 4.68961419), (8.0, 14.0, 20.7)),
    # Wan et al., Nature 608, 2022; uS: 1 s, 1 day, 2 days after the write
    Published("reram", 40.0, of_fraction(40.0, 0.348, 16.030, -43.853, 45.393, -16.815), (10.0, 20.0, 40.0)),
    Published("reram-wan", 40.0, of_fraction(40.0, 0.348, 16.030, -43.853, 45.393, -16.815), (10.0, 20.0, 40.0)),
    Published("reram-wan", 40.0, of_fraction(40.0, 0.701, 22.086, -50.773, 47.095, -16.458), (20.0, 30.0, 40.0), DAY_S - 1, within=0.021),
    Published(
        "reram-wan", 40.0, of_fraction(40.0, 0.782, 20.274, -43.507, 37.062, -11.934), (20.0, 30.0, 40.0), 2 * DAY_S - 1, within=0.021
    ),
    # Milo et al., IRPS, 2021; uS
    Published("reram-milo", 225.0, polynomial(4.782321, -0.009107), (80.0, 140.0, 225.0), smallest=50.0),
    # assumed
    Published("flash", 1.0, polynomial(0.01), (0.2, 1.0)),
    Published("mythic", 255.0, lambda g: 1.02, (51.0, 255.0)),
    Published("hwa", 1.0, polynomial(0.03), (0.5, 1.0)),
    Published("generic-4bit", 7.0, polynomial(0.56), (2.0, 7.0)),
]


def block(name: str, target: float) -> nn.Linear:
    """N weights of one value, beside the largest one of every column, on chip 0."""
    layer = nn.Linear(N // 40 + 1, 40, bias=False)
    with torch.no_grad():
        layer.weight[:] = target
        layer.weight[:, 0] = 1.0
    return convert(layer, load_profile(name), chip=0)


def devices(layer: nn.Linear) -> np.ndarray:
    """Conductances in units of the largest, of the positive half where they are pairs."""
    return layer.conductances(layer.scale(), Context(**layer.at))[0, 0, :, 1:].detach().double().flatten().numpy()


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_written_devices_spread_as_published_around_what_was_asked(case):
    profile = load_profile(case.profile)
    written = tuple(e for e in profile.weight if isinstance(e, Relaxation) or not e.after_write)  # no drift, no read noise yet
    for target in case.targets:
        layer = block(case.profile, (target - case.smallest) / (case.largest - case.smallest))
        layer = age(convert(layer, replace(profile, weight=written), chip=0), case.age_s)
        found = devices(layer) * case.largest
        found = found[(found > 0) & (found != case.largest)] if case.profile == "reram" else found  # without the stuck ones
        sigma = case.spread(target) * (1 + case.within)
        assert not profile.encoding.nonnegative or target > 4 * sigma, "devices at zero would be clipped"
        assert found.std() == pytest.approx(case.spread(target), rel=case.within + FIVE_SIGMA_OF_A_SPREAD)
        assert found.mean() == pytest.approx(target, abs=5 * sigma / sqrt(N))


def test_the_growth_of_reram_wan_is_the_least_squares_line_through_both_days_and_off_by_what_its_source_says():
    second, *days = (case.spread for case in PUBLISHED if case.profile == "reram-wan")
    g = np.linspace(0, 40, 401)
    e_folds = np.log([DAY_S, 2 * DAY_S])
    growth = np.stack([day(g) - second(g) for day in days])
    slope = e_folds @ growth / (e_folds @ e_folds)  # uS per e-fold
    (relaxation,) = load_profile("reram-wan").weight
    np.testing.assert_allclose(40 * relaxation.std_slope(torch.from_numpy(g / 40)).numpy(), slope, atol=1e-6)
    off = np.abs(growth - np.outer(e_folds, slope))
    relative = off / np.stack([day(g) for day in days])
    assert [round(off.max(), 3), round(relative[:, g >= 2].max(), 3), round(relative.max(), 3)] == [0.073, 0.021, 0.042]
    for part in ("up to 0.073 uS", "2.1 % above 0.05", "4.2 % below"):
        assert part in relaxation.source


def test_subthreshold_currents_are_programmed_to_seven_bits_of_themselves():
    for target in (0.1, 1.0):
        logs = np.log(devices(block("fpaa", target)) / target)
        assert logs.std() == pytest.approx(2**-7, rel=FIVE_SIGMA_OF_A_SPREAD)
        assert logs.mean() == pytest.approx(0, abs=5 * 2**-7 / sqrt(N))


def test_subthreshold_currents_follow_temperature_and_supply_as_assumed():
    layer = block("fpaa", 0.5)
    before = devices(layer)
    ratio = devices(at(layer, Conditions(temperature_K=310.0, supply_V=0.9))) / before
    np.testing.assert_allclose(ratio, 1.02 * 0.995, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- ageing

DRIFT = {
    # profile: (t0, mean exponent of a device at full conductance, its spread, read noise there after a day)
    "pcm": (20.0, 0.049, 0.008, 0.0088 * sqrt(log((DAY_S + 20.0 + 250e-9) / 500e-9))),
    "pcm-hermes": (
        300.0,
        0.0736 - 0.0126 - 0.0436,
        0.0073 + 0.0093 - 0.0118,
        (0.0123 + 0.0211 - 0.0280 + 0.0069) * sqrt(log((DAY_S + 300.0 + 512e-9) / 1024e-9)),
    ),
    "flash": (HOUR_S, 0.001, 0.0005, 0.0),
}


@pytest.mark.parametrize("name", DRIFT)
def test_after_a_day_a_device_at_full_conductance_has_the_mean_and_the_noise_that_were_published(name):
    t0_s, nu, nu_std, noise = DRIFT[name]
    e_folds = log(1 + DAY_S / t0_s)
    layer = block(name, 1.0)
    written = replace(load_profile(name), weight=load_profile(name).weight[:1])
    ratio = devices(age(layer, DAY_S)) / devices(convert(layer, written, chip=0))  # the same chip and write
    z = np.linspace(-8, 8, 4001)
    p = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    left = np.exp(-np.abs(nu + nu_std * z) * e_folds)  # exponents enter by magnitude
    mean = (p * left).sum()
    spread = sqrt((p * left**2).sum() * (1 + noise**2) - mean**2)
    assert ratio.mean() == pytest.approx(mean, abs=5 * spread / sqrt(N))
    assert ratio.std() == pytest.approx(spread, rel=0.005 + FIVE_SIGMA_OF_A_SPREAD)  # the noise follows the written value


# ------------------------------------------------------------------------------------------------------------------- reads


def outputs(name: str, target: float, x: float, **changes) -> np.ndarray:
    """10 N reads of a single cell of weight `target` beside an idle one of weight 1."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([target, 1.0])
    analog = convert(layer, replace(load_profile(name), **changes), chip=0)
    return analog(torch.tensor([[x, 0.0]]).repeat(10 * N, 1)).detach().double().flatten().numpy()


@pytest.mark.parametrize("name", ["sonos", "flash", "mythic"])
@pytest.mark.parametrize("current_nA", [100.0, 500.0, 3200.0])
def test_the_current_of_a_cell_fluctuates_as_published_for_sonos(name, current_nA):
    read = load_profile(name).weight[-1]
    found = 3200.0 * outputs(name, current_nA / 3200.0, 1.0, input=(), weight=(read,), output=())
    expected = 12.58 * (1 - np.exp(-current_nA / 215.4))  # Agrawal et al., IEDM, 2022; nA. The cell at zero is silent
    assert found.std() == pytest.approx(expected, rel=FIVE_SIGMA_OF_A_SPREAD / sqrt(10))
    assert found.mean() == pytest.approx(current_nA, abs=5 * expected / sqrt(10 * N))


def test_shot_noise_of_the_subthreshold_array_is_that_of_its_current():
    shot = load_profile("fpaa").output[:1]
    found = 1e-6 * outputs("fpaa", 0.25, 1.0, input=(), weight=(), output=shot, output_range=Fixed(value=1.0))
    assert found.std() == pytest.approx(sqrt(2 * 1.602176634e-19 * 0.25e-6 * 1e6), rel=FIVE_SIGMA_OF_A_SPREAD / sqrt(10))


def test_the_cell_of_reram_milo_bends_like_its_cubic():
    still = {"weight": (), "output": (), "input": (Quantize(step=2.0**-20),), "input_range": Fixed(value=0.5)}  # volts
    for v in (0.1, 0.3, 0.5):
        found = outputs("reram-milo", 1.0, v, **still)[0]
        assert found == pytest.approx(v - 0.25 * v**3, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------------- BrainScaleS-2


def bss2_codes(weights: list[int], inputs: list[int]) -> np.ndarray:
    """N output codes of one column, for integer weights (one of them 63) and inputs (one of them 31)."""
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor(weights) / 63
    analog = convert(layer, load_profile("bss2"), chip=0)
    analog.set_range("input", 31.0)
    y = analog(torch.tensor(inputs, dtype=torch.float32).repeat(N, 1)).detach().double().flatten().numpy()
    return y * (31 * 63) / 31 * 0.002  # a step of the product is worth 0.002 output codes


@pytest.mark.parametrize(("weights", "inputs"), [([63, 40], [31, 7]), ([63, -20], [2, 31]), ([63, -63, 10], [31, 20, 0])])
def test_bss2_gives_rounded_gain_times_the_integer_product_with_two_steps_of_noise(weights, inputs):
    codes = bss2_codes(weights, inputs)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    spread = sqrt(2 * (2.0**2 + 1 / 12))  # of the pass of the positive inputs, and of the pass without negative ones
    assert codes.std() == pytest.approx(spread, rel=FIVE_SIGMA_OF_A_SPREAD)
    assert codes.mean() == pytest.approx(0.002 * np.dot(weights, inputs), abs=5 * spread / sqrt(N))


def test_negative_inputs_of_bss2_are_read_in_a_pass_of_their_own():
    codes = bss2_codes([63, 50], [31, -31])
    assert codes.mean() == pytest.approx(0.002 * 31 * (63 - 50), abs=5 * sqrt(2 * (4 + 1 / 12)) / sqrt(N))


def test_outputs_of_bss2_end_at_minus_128_and_127():
    rows = 80  # 0.002 x 80 x 31 x 63 = 312 codes
    assert (bss2_codes([63] * rows, [31] * rows) <= 127 + 8 * 2).all()
    assert np.median(bss2_codes([63] * rows, [31] * rows)) == pytest.approx(127, abs=1)
    assert np.median(bss2_codes([63] + [-63] * rows, [0] + [31] * rows)) == pytest.approx(-128, abs=1)


# ------------------------------------------------------------------------------------------------------------------- docs

PAGE = (Path(__file__).parents[1] / "docs" / "profiles.md").read_text(encoding="utf-8")
ROWS = {m[1]: [cell.strip() for cell in m[2].split("|")] for m in re.finditer(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, re.MULTILINE)}


def test_the_page_has_a_row_for_every_profile_and_no_other():
    assert sorted(ROWS) == profile_names()


@every_profile
def test_a_row_has_the_tile_bits_and_drift_of_its_profile_and_says_what_is_verified_and_assumed(name):
    profile, (_, tile, converters, _, drift, verified, assumed) = load_profile(name), ROWS[name]
    assert tile == f"{profile.rows or 'any'} x {profile.columns or 'any'}"
    given = [next((e.bits for e in side if hasattr(e, "bits")), None) for side in (profile.input, profile.weight, profile.output)]
    assert converters == " / ".join("–" if bits is None else str(bits) for bits in given)
    assert (drift == "–") == (not any(isinstance(e, Drift | Relaxation) for e in profile.weight))
    assert (assumed == "–") == (not any("assumed" in e.source for e in effects(profile)))
    assert verified != "–" or not any(e.source.startswith("verified") for e in effects(profile))
