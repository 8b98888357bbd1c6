import numpy as np
import pytest
import torch

from galvanic.physics import Context, Quantize
from galvanic.ranges import Calibrated, Dynamic, Fixed, FromData, Learned, MinimumError, Range
from galvanic.seeding import generator

SAMPLES = {
    "uniform": torch.rand(5000, generator=generator("ranges")),
    "half-normal": torch.randn(5000, generator=generator("ranges")).abs(),
    "heavy tail": torch.randn(5000, generator=generator("ranges")).abs() ** 4,
    "one value": torch.full((10,), 0.3),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def converter(bits: int):
    return lambda x: Quantize(bits=bits).apply(x, None, Context())


def quantised(x: np.ndarray, bits: int, scale: float) -> np.ndarray:
    """A signed converter of that full scale, on magnitudes."""
    most = 2 ** (bits - 1) - 1
    return np.minimum(np.round(x / scale * most), most) / most * scale


@every_sample
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_minimum_error_is_the_best_of_its_eighty_candidates_by_brute_force(sample, bits):
    x = sample.double()
    candidates = float(x.max()) * np.arange(1, 81) / 80
    errors = np.array([np.mean((quantised(x.numpy(), bits, s) - x.numpy()) ** 2) for s in candidates])
    chosen = float(MinimumError().choose(x, converter(bits)))
    assert np.abs(candidates / chosen - 1).min() < 1e-12
    assert errors[np.abs(candidates - chosen).argmin()] == pytest.approx(errors.min(), rel=1e-9, abs=1e-30)


@every_sample
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_minimum_error_is_near_the_best_of_all_full_scales_and_never_worse_than_the_largest_value(sample, bits):
    x = sample.double()

    def error(scale: float) -> float:
        return float(np.mean((quantised(x.numpy(), bits, scale) - x.numpy()) ** 2))

    chosen = error(float(MinimumError().choose(x, converter(bits))))
    assert chosen <= error(float(x.max())) + 1e-15
    fine = min(error(s) for s in np.linspace(0.01, 1.2, 400) * float(x.max()))
    assert chosen <= 1.1 * fine + 1e-15  # the grid of 80 is that fine


@pytest.mark.parametrize("choose", [Calibrated, Learned])
@pytest.mark.parametrize("quantile", [0.5, 0.99, 1.0])
@every_sample
def test_a_calibrated_and_a_learned_range_begin_at_the_quantile_of_the_magnitudes(choose, quantile, sample):
    chosen = choose(quantile=quantile).choose(sample, converter(4))
    assert float(chosen) == pytest.approx(np.quantile(sample.double().numpy(), quantile), rel=1e-5)


@every_sample
def test_a_calibrated_range_is_the_largest_magnitude_by_default(sample):
    assert Calibrated().choose(sample, converter(4)) == sample.max()


@pytest.mark.parametrize("range_", [Calibrated(), MinimumError(), Learned()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_silent_signal_gives_a_range_of_zero_not_nan_and_the_dtype_is_kept(range_, dtype):
    chosen = range_.choose(torch.zeros(100, dtype=dtype), converter(4))
    assert (float(chosen), chosen.shape, chosen.dtype) == (0.0, (), dtype)


def test_which_ranges_come_from_data():
    assert not any(isinstance(r, FromData) for r in (Dynamic(), Fixed(value=1.0)))
    assert all(isinstance(r, FromData) and isinstance(r, Range) for r in (Calibrated(), MinimumError(), Learned()))


def test_ranges_are_values():
    assert Dynamic() == Dynamic()
    assert Calibrated() != Learned(quantile=1.0)
    assert hash(Fixed(value=2.0)) == hash(Fixed(value=2.0))
    assert Fixed(value=2.0) != Fixed(value=3.0)


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (lambda: Fixed(value=0.0), "Fixed.value = 0.0: "),
        (lambda: Fixed(value=float("inf")), "Fixed.value = inf: "),
        (lambda: Fixed(value="1"), "Fixed.value = '1': "),
        (lambda: Calibrated(quantile=0.0), "Calibrated.quantile = 0.0: "),
        (lambda: Calibrated(quantile=1.01), "Calibrated.quantile = 1.01: "),
        (lambda: Learned(quantile=-0.5), "Learned.quantile = -0.5: "),
        (lambda: Learned(quantile=float("nan")), "Learned.quantile = nan: "),
    ],
)
def test_a_range_that_cannot_be_is_refused_by_name_and_value(make, start):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
