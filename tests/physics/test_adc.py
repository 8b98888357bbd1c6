from math import sqrt

import numpy as np
import pytest
import torch

from galvanic.physics import SAR, Context, Quantize, Ramp
from galvanic.physics.adc import Converter
from galvanic.seeding import generator

AT = Context()
KINDS = [SAR, Ramp]
every_kind = pytest.mark.parametrize("kind", KINDS)


def convert(effect: Converter, x: torch.Tensor, lines: int = 1, noise_level: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Results, and the draw of each line."""
    z = effect.draw((lines,), generator("adc"), dtype=torch.float64)
    return effect.apply(x, z, Context(noise_level=noise_level)), z.numpy()


@every_kind
@pytest.mark.parametrize("full_scale", [1.0, 0.7])
@pytest.mark.parametrize(("bits", "signed"), [(1, False), (2, True), (4, False), (5, True), (8, True), (10, False)])
def test_an_ideal_converter_is_quantize_to_the_last_bit(kind, bits, signed, full_scale):
    x = torch.linspace(-1.3, 1.3, 30_011, dtype=torch.float64)  # none of them halfway between two codes, but 0
    how = {"bits": bits, "signed": signed, "full_scale": full_scale}
    expected = Quantize(**how).apply(x, None, AT)
    assert torch.equal(kind(**how).apply(x, None, AT), expected)
    assert torch.equal(convert(kind(**how), x[:, None])[0][:, 0], expected)


@every_kind
def test_the_gradient_is_that_of_quantize(kind):
    def gradients(cls):
        x = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64, requires_grad=True)
        full_scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(cls(bits=4, full_scale=full_scale).apply(x, None, AT).sum(), [x, full_scale])

    for own, other in zip(gradients(kind), gradients(Quantize), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@every_kind
def test_an_offset_of_the_comparator_shifts_the_input(kind):
    x = torch.linspace(-1.2, 1.2, 1001, dtype=torch.float64)[:, None]
    y, z = convert(kind(bits=6, offset_std=0.05), x, lines=20, noise_level=2.0)
    assert torch.equal(y, Quantize(bits=6).apply(x + 2 * 0.05 * torch.from_numpy(z[0]), None, AT))


@every_kind
def test_one_signed_bit_is_refused(kind):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}.bits = 1: a signed converter with a level at zero needs 2 bits"):
        kind(bits=1)


# --------------------------------------------------------------------------------------------- successive approximation


def search(v: float, capacitors: np.ndarray) -> int:
    """The code of a magnitude in steps, as the logic of a converter finds it."""
    n, kept = len(capacitors), []
    for k in reversed(range(n)):
        tried = sum(capacitors[j] for j in [*kept, k])
        if v + 0.5 >= (2**n - 1) * tried / capacitors.sum():
            kept.append(k)
    return sum(2**k for k in kept)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("std", [0.02, 0.4])
def test_sar_codes_are_those_of_a_search_one_sample_at_a_time(signed, std):
    bits, lines = 6, 12
    x = torch.linspace(-1.1, 1.1, 397, dtype=torch.float64)[:, None].expand(-1, lines)
    y, z = convert(SAR(bits=bits, capacitor_std=std, signed=signed), x, lines)
    n = bits - signed
    top = 2**n - 1
    for line in range(lines):
        capacitors = np.array([2**k * (1 + std / sqrt(2**k) * z[1 + k, line]) for k in range(n)])
        v = np.clip(x[:, line].numpy() * top, -top if signed else 0, top)
        expected = [np.sign(a) * search(abs(a), capacitors) for a in v]
        np.testing.assert_allclose(y[:, line] * top, expected, rtol=0, atol=1e-9)


def widths(y: torch.Tensor, top: int, samples_per_step: int) -> np.ndarray:
    """Width of every code in steps, by the density of codes over an even sweep: (codes, lines)."""
    codes = (y * top).round().long().numpy()
    return np.stack([(codes == c).sum(0) for c in range(top + 1)]) / samples_per_step


def sweep(top: int, samples_per_step: int) -> torch.Tensor:
    steps = torch.arange(-(samples_per_step // 2), top * samples_per_step + samples_per_step // 2, dtype=torch.float64)
    return ((steps + 0.5) / samples_per_step / top)[:, None]


def test_the_differential_nonlinearity_of_the_middle_code_is_that_of_the_largest_capacitor_against_all_smaller():
    bits, std, lines = 7, 0.01, 2000
    top, middle = 2**bits - 1, 2 ** (bits - 1) - 1
    around = sweep(top, 200)[200 * (middle - 3) : 200 * (middle + 4)]
    y, _ = convert(SAR(bits=bits, capacitor_std=std, signed=False), around.expand(-1, lines), lines)
    dnl = widths(y, top, 200)[middle] - 1
    # C_6 - C_5 - ... - C_0 has variance std^2 (64 + 63); a sweep adds one count of 200
    assert dnl.std() == pytest.approx(std * sqrt(2**bits - 1), rel=5 / sqrt(2 * lines) + 0.01)
    assert dnl.mean() == pytest.approx(0, abs=5 * std * sqrt(2**bits - 1) / sqrt(lines))


def test_badly_matched_capacitors_lose_codes_and_well_matched_ones_none():
    top = 2**6 - 1
    for std, lost in ((0.01, False), (0.5, True)):
        y, _ = convert(SAR(bits=6, capacitor_std=std, signed=False), sweep(top, 40).expand(-1, 50), 50)
        assert bool((widths(y, top, 40) == 0).any()) == lost


# ---------------------------------------------------------------------------------------------------------------- ramp


def bridge(steps: np.ndarray) -> np.ndarray:
    """A Brownian bridge of standard deviation 1 in the middle, at codes 1 ... n."""
    n = len(steps)
    walk = np.cumsum(steps)
    return 2 / sqrt(n) * (walk - np.arange(1, n + 1) / n * walk[-1])


@pytest.mark.parametrize("inl_std", [0.02, 0.3])  # the second ramp falls back in places
def test_ramp_codes_are_those_of_a_counter_one_sample_at_a_time(inl_std):
    bits, lines, top = 6, 4, 31
    x = torch.linspace(-1.1, 1.1, 397, dtype=torch.float64)[:, None].expand(-1, lines)
    y, z = convert(Ramp(bits=bits, inl_std=inl_std), x, lines)
    crossing = np.arange(1, top + 1) - 0.5 + inl_std * top * bridge(z[1:, 0])
    for line in range(lines):
        for value, got in zip(x[:, line].tolist(), (y[:, line] * top).tolist(), strict=True):
            count = 0
            while count < top and crossing[count] <= min(abs(value), 1) * top:
                count += 1
            assert got == pytest.approx(np.sign(value) * count, abs=1e-9)


def test_the_integral_nonlinearity_is_a_bridge_over_chips():
    bits, std, chips = 6, 0.01, 600
    top = 2**bits - 1
    effect = Ramp(bits=bits, inl_std=std, signed=False)
    z = torch.stack([effect.draw((1,), generator("adc", chip), dtype=torch.float64) for chip in range(chips)])
    y = torch.vmap(lambda z: effect.apply(sweep(top, 100), z, AT))(z)[..., 0].T  # (samples, chips)
    inl = np.cumsum(widths(y, top, 100), 0)[:-1] - np.arange(1, top + 1)[:, None]
    assert abs(inl[-1]).max() < 0.011  # both ends are trimmed, to one count
    for code in (8, 32, 50):
        place = code / top
        assert inl[code - 1].std() == pytest.approx(std * top * 2 * sqrt(place * (1 - place)), rel=5 / sqrt(2 * chips) + 0.01)


def test_lines_share_the_ramp_and_not_the_comparator():
    z = Ramp(bits=5).draw((3, 8), generator("adc"))
    assert z.shape == (1 + 15, 3, 8)
    assert len(z[0].unique()) == 24
    assert len(z[1:].unique()) == 15
