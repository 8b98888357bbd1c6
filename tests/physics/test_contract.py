"""Laws that hold for every non-ideality. A new effect is a row of `CASES`."""

import copy
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import galvanic.physics as physics
from galvanic.nn import convert, reads
from galvanic.physics import (
    SAR,
    Activated,
    Additive,
    AreaMismatch,
    Compress,
    Context,
    Correlated,
    Crosstalk,
    DeadLine,
    Drift,
    Exponential,
    GainOffset,
    Gaussian,
    InversePower,
    LogLaw,
    LogNormalMismatch,
    Mismatch,
    Nonideality,
    Nonlinearity,
    Piecewise,
    Polynomial,
    Programming,
    Quantize,
    Ramp,
    RandomTelegraph,
    ReadNoise,
    Relaxation,
    Saturate,
    Shot,
    StuckAt,
    SupplyCoefficient,
    TemperatureCoefficient,
    Thermal,
    TimeVarying,
    Value,
    WriteVerify,
)
from galvanic.profile import Profile, parse_profile, to_toml
from galvanic.seeding import generator


def from_outside() -> type[Nonideality]:
    """The effect that docs/extending.md shows, as a module of its own: what a user may add meets the same laws."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    module = ModuleType("leak")
    sys.modules["leak"] = module  # so that it can be pickled
    exec(re.search(r"<!-- effect -->\n```python\n(.*?)```", page, re.DOTALL)[1], module.__dict__)
    return module.Leak


Leak = from_outside()


@dataclass(frozen=True)
class Case:
    """An effect, and the same one at zero strength."""

    effect: Nonideality
    zero: Nonideality
    derived: bool = True  # its gradient is the derivative of its formula, not a declared surrogate
    scaled: bool = True  # the noise level multiplies all of its randomness
    diagonal: bool = True  # every element is on its own
    within: float = 1e-12  # of the identity at zero strength; a converter's bits cannot be none


_log_law = LogLaw(slope=-0.0155, intercept=0.0244, low=0.049, high=0.1)
_cubic = Polynomial(coefficients=(0.012, 0.2, -0.1, 0.05), full_scale=1.5)
_spot = Piecewise(threshold=0.3, below=LogLaw(slope=-0.012, intercept=-0.006, low=0.009, high=0.04), above=_cubic)
_silent = Polynomial(coefficients=(0.0,))

CASES = {
    "gaussian": Case(Gaussian(std=0.1), Gaussian(std=0.0)),
    "gaussian relative": Case(Gaussian(std=0.1, relative=True), Gaussian(std=0.0, relative=True)),
    "thermal": Case(
        Thermal(resistance_ohm=1e6, bandwidth_Hz=1e6, full_scale_A=1e-9), Thermal(resistance_ohm=1e6, bandwidth_Hz=1e-30, full_scale_A=1e-3)
    ),
    "shot": Case(Shot(bandwidth_Hz=1e6, full_scale_A=1e-11, dark_A=1e-12), Shot(bandwidth_Hz=1e-30, full_scale_A=1e-3)),
    "shot without dark current": Case(Shot(bandwidth_Hz=1e6, full_scale_A=1e-11), Shot(bandwidth_Hz=1e-30, full_scale_A=1e-3)),
    "mismatch": Case(Mismatch(std=0.1), Mismatch(std=0.0)),
    "log-normal mismatch": Case(LogNormalMismatch(std=0.1), LogNormalMismatch(std=0.0)),
    "area mismatch": Case(AreaMismatch(a=0.1), AreaMismatch(a=0.0)),
    "stuck-at": Case(StuckAt(low_fraction=0.2, high_fraction=0.3, low=0.05, high=0.9), StuckAt()),
    "nonlinearity": Case(Nonlinearity(second=0.1, third=-0.2), Nonlinearity()),
    "saturate": Case(Saturate(limit=0.6), Saturate(limit=1e9)),
    "saturate asymmetric": Case(Saturate(low=-0.3, high=0.6), Saturate(low=-1e9, high=1e9)),
    "compress": Case(Compress(limit=0.8), Compress(limit=1e9)),
    "quantize": Case(Quantize(bits=4, full_scale=0.8), Quantize(step=2.0**-45), derived=False),
    "quantize unsigned": Case(Quantize(bits=3, signed=False), Quantize(step=2.0**-45, signed=False), derived=False),
    "quantize by step": Case(Quantize(step=2.0**-4, error_std=0.01), Quantize(step=2.0**-45), derived=False),
    "quantize stochastic": Case(Quantize(bits=4, stochastic=True, error_std=0.01), Quantize(step=2.0**-45), derived=False, scaled=False),
    "sar": Case(SAR(bits=5, capacitor_std=0.3, offset_std=0.01), SAR(bits=16), derived=False, within=1 / 65534),
    "sar unsigned": Case(SAR(bits=4, capacitor_std=0.3, signed=False, full_scale=0.9), SAR(bits=16), derived=False, within=1 / 65534),
    "ramp": Case(Ramp(bits=5, inl_std=0.05, offset_std=0.01), Ramp(bits=16), derived=False, within=1 / 65534),
    "ramp unsigned": Case(Ramp(bits=4, inl_std=0.05, signed=False, full_scale=0.9), Ramp(bits=16), derived=False, within=1 / 65534),
    "programming": Case(Programming(std=0.1), Programming(std=0.0)),
    "programming by curve": Case(Programming(std=_cubic), Programming(std=_silent)),
    "drift": Case(Drift(nu=0.06, nu_std=0.01), Drift(nu=0.0)),
    "drift by curve": Case(Drift(nu=_log_law, nu_std=_spot), Drift(nu=_silent, nu_std=_silent)),
    "read noise": Case(ReadNoise(q=0.01), ReadNoise(q=0.0)),
    "read noise by curve": Case(ReadNoise(q=InversePower(scale=0.0088, power=0.65, high=0.02)), ReadNoise(q=_silent)),
    "telegraph": Case(RandomTelegraph(amplitude=0.2, capture_s=2.0), RandomTelegraph(amplitude=0.0), derived=False),
    "telegraph by curve": Case(RandomTelegraph(amplitude=_spot, per="read"), RandomTelegraph(amplitude=_silent), derived=False),
    "relaxation": Case(Relaxation(shift=-0.01, shift_slope=-0.002, std=0.01, std_slope=0.003), Relaxation()),
    "relaxation by curve": Case(
        Relaxation(shift=_cubic, shift_slope=_cubic, std=_spot, std_slope=_spot),
        Relaxation(shift=_silent, shift_slope=_silent, std=_silent, std_slope=_silent),
    ),
    "write-verify": Case(
        WriteVerify(pulses=4, window=0.05, pulse_std=0.1, verify_std=0.02, set_gain=0.9, reset_gain=0.7),
        WriteVerify(pulses=4, window=0.0, pulse_std=0.0),
    ),
    "write-verify by curve": Case(
        WriteVerify(pulses=3, window=_spot, pulse_std=_cubic, verify_std=_spot),
        WriteVerify(pulses=3, window=_silent, pulse_std=_silent, verify_std=_silent),
    ),
    "gain and offset": Case(GainOffset(gain=0.02, offset=-0.01, gain_std=0.05, offset_std=0.03), GainOffset()),
    "gain and offset shared": Case(GainOffset(gain_std=0.05, offset_std=0.03, shared=True), GainOffset(shared=True)),
    "dead line": Case(DeadLine(fraction=0.4, value=0.1), DeadLine(fraction=0.0)),
    "crosstalk": Case(Crosstalk(kappa=(0.1, 0.05)), Crosstalk(kappa=0.0), diagonal=False),
    "crosstalk by curve": Case(
        Crosstalk(kappa=Exponential(scale=0.1, length=1.5)), Crosstalk(kappa=Exponential(scale=0.0, length=1.0)), diagonal=False
    ),
    "correlated": Case(Correlated(std=0.1, length=3.0), Correlated(std=0.0, length=1.0)),
    "correlated in time": Case(Correlated(std=0.1, length=3.0, along="time"), Correlated(std=0.0, length=1.0, along="time")),
    "time-varying": Case(
        TimeVarying(times_s=(0.0, 0.4, 1.0), mean=(0.1, -0.1, 0.2), std=(0.1, 0.0, 0.3)),
        TimeVarying(times_s=(0.0,), mean=(0.0,), std=(0.0,)),
    ),
    "temperature": Case(TemperatureCoefficient(gain_per_K=-0.002, offset_per_K=0.001), TemperatureCoefficient()),
    "supply": Case(SupplyCoefficient(gain_per_V=0.5, offset_per_V=-0.1), SupplyCoefficient()),
    "activated": Case(Activated(energy_eV=0.2), Activated(energy_eV=0.0)),
    "a user's effect": Case(Leak(tau_s=1e5, std=0.3), Leak(tau_s=1e30)),
}

every_effect = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

AT = Context(age_s=3600.0, temperature_K=320.0, time_s=0.5, supply_V=1.1, noise_level=0.9)
X = torch.tensor([[-0.83, -0.41, -0.03, 0.06], [0.22, 0.41, 0.71, 0.97]], dtype=torch.float64)  # away from the kinks of CASES


def draw(effect: Nonideality, shape: tuple[int, ...] = tuple(X.shape), dtype: torch.dtype = torch.float64, name: int = 0) -> Tensor:
    return effect.draw(shape, generator("contract", name), dtype=dtype)


def rebuilt(value: Any, number: Callable[[float], Any]) -> Any:
    """The same value, made with `dataclasses.replace`, after `number` was applied to every float in it."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple):
        return tuple(rebuilt(e, number) for e in value)
    if isinstance(value, Value):
        return replace(value, **{f.name: rebuilt(getattr(value, f.name), number) for f in fields(value)})
    return value


def below(base: type) -> set[type]:
    return {base}.union(*(below(cls) for cls in base.__subclasses__()))


def test_every_effect_of_the_library_is_public_and_stands_in_this_table():
    written = {cls for cls in below(Nonideality) if cls.__module__.startswith("galvanic.physics") and not cls.__abstractmethods__}
    public = {x for name in physics.__all__ if isinstance(x := getattr(physics, name), type) and issubclass(x, Nonideality)}
    assert written <= public
    assert {cls for cls in public if not cls.__abstractmethods__} == {type(c.effect) for c in CASES.values()} - {Leak}
    assert all(type(c.zero) is type(c.effect) for c in CASES.values())


@every_effect
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("number", [float, lambda v: torch.tensor(v, dtype=torch.float64)], ids=["number", "tensor"])
def test_shape_and_dtype_are_kept(case, dtype, number):
    x = X.to(dtype)
    at = rebuilt(AT, lambda v: torch.tensor(v, dtype=torch.float64))  # as an analog layer gives it
    effect = rebuilt(case.effect, number)
    for z in (None, draw(effect, dtype=dtype)):
        y = effect.apply(x, z, at)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert y.isfinite().all()


@every_effect
def test_without_a_draw_and_at_noise_level_zero_the_same_deterministic_part_is_left(case):
    if not case.scaled:
        pytest.skip("documented: stochastic rounding is not scaled")
    quiet = replace(AT, noise_level=0.0)
    torch.testing.assert_close(case.effect.apply(X, draw(case.effect), quiet), case.effect.apply(X, None, AT), rtol=0, atol=0)


@every_effect
def test_zero_strength_is_the_identity(case):
    torch.testing.assert_close(case.zero.apply(X, draw(case.zero), AT), X, rtol=0, atol=case.within)


@every_effect
def test_a_random_effect_has_a_clock_and_does_something_with_its_draw(case):
    used = not torch.equal(case.effect.apply(X, draw(case.effect), AT), case.effect.apply(X, None, AT))
    assert used == (case.effect.per is not None)


@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if isinstance(c.effect, Additive | Drift)], ids=lambda c: type(c.effect).__name__
)
def test_noise_and_drift_are_as_strong_on_negative_signals_as_on_positive_ones(case):
    z = draw(case.effect)
    mirrored = case.effect.apply(-X, -z if isinstance(case.effect, Additive) else z, AT)
    torch.testing.assert_close(mirrored, -case.effect.apply(X, z, AT), rtol=0, atol=0)


@every_effect
def test_a_number_and_a_float64_tensor_are_the_same_parameter_to_the_last_digits(case):
    z = draw(case.effect)
    as_tensors = rebuilt(case.effect, lambda v: torch.tensor(v, dtype=torch.float64))
    conditions = rebuilt(AT, lambda v: torch.tensor(v, dtype=torch.float64))
    torch.testing.assert_close(as_tensors.apply(X, z, conditions), case.effect.apply(X, z, AT), rtol=1e-12, atol=1e-14)


@every_effect
def test_gradients_to_signal_parameters_and_conditions_agree_with_finite_differences(case):
    if not case.derived:
        pytest.skip("a declared surrogate: tests/physics/test_converters.py")
    z, numbers = draw(case.effect), []
    rebuilt((case.effect, AT), lambda v: numbers.append(v) or v)

    def apply(x: Tensor, factors: Tensor) -> Tensor:  # every number times a factor of 1, so that all are of one size
        factor = iter(factors)
        effect, at = rebuilt((case.effect, AT), lambda v: v * next(factor))
        return effect.apply(x, z, at)

    ones = torch.ones(len(numbers), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (X.clone().requires_grad_(), ones), atol=1e-7)


@every_effect
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_signal_zero_no_gradient_is_nan(case, dtype):
    leaves = []

    def leaf(v: float) -> Tensor:
        leaves.append(torch.tensor(v, dtype=torch.float64, requires_grad=True))
        return leaves[-1]

    effect = rebuilt(case.effect, leaf)
    x = torch.zeros(X.shape, dtype=dtype, requires_grad=True)
    y = effect.apply(x, draw(effect, dtype=dtype), AT)
    for gradient in torch.autograd.grad(y.sum(), [x, *leaves], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every_effect
def test_the_same_generator_gives_the_same_draw_and_another_one_another(case):
    shape = (100, 7)
    assert torch.equal(draw(case.effect, shape), draw(case.effect, shape))
    assert not torch.equal(draw(case.effect, shape), draw(case.effect, shape, name=1))


@every_effect
def test_an_effect_is_a_frozen_value_that_compares_copies_and_pickles(case):
    effect = case.effect
    name = fields(effect)[-1].name
    with pytest.raises(FrozenInstanceError):
        setattr(effect, name, getattr(effect, name))
    assert effect != case.zero
    assert effect != "effect"
    for twin in (replace(effect), replace(effect, source="elsewhere"), copy.deepcopy(effect), pickle.loads(pickle.dumps(effect))):
        assert twin == effect
        assert hash(twin) == hash(effect)


@every_effect
def test_equality_and_hash_are_those_of_detached_values(case):
    learned = [rebuilt(case.effect, lambda v: torch.tensor(v, dtype=torch.float64, requires_grad=True)) for _ in range(2)]
    for effect in (replace(case.effect, per=learned[0].per), learned[1], copy.deepcopy(learned[0]), pickle.loads(pickle.dumps(learned[0]))):
        assert learned[0] == effect
        assert hash(learned[0]) == hash(effect)


@every_effect
def test_vmap_over_chips_and_over_signals_equals_the_loop(case):
    apply = case.effect.apply
    zs = torch.stack([draw(case.effect, name=k) for k in range(3)])
    xs = torch.stack([X, X / 2, -X])
    chips = torch.vmap(lambda z: apply(X, z, AT))(zs)
    torch.testing.assert_close(chips, torch.stack([apply(X, z, AT) for z in zs]), rtol=1e-14, atol=1e-14)
    both = torch.vmap(lambda x, z: apply(x, z, AT))(xs, zs)
    torch.testing.assert_close(both, torch.stack([apply(x, z, AT) for x, z in zip(xs, zs, strict=True)]), rtol=1e-14, atol=1e-14)


@every_effect
def test_the_jacobian_to_the_signal_is_the_same_forward_and_reverse_and_diagonal_but_for_coupled_lines(case):
    z = draw(case.effect)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.effect.apply(x, z, AT).sum(), x)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        matrix = jacobian(lambda x: case.effect.apply(x, z, AT))(X).reshape(X.numel(), X.numel())
        torch.testing.assert_close(matrix.sum(0), gradient.flatten(), rtol=1e-12, atol=1e-14)
        assert torch.equal(matrix, matrix.diag().diag()) == case.diagonal
    assert case.diagonal or case.effect.lines


@every_effect
def test_compiled_equals_eager_and_is_compiled_once_whatever_the_age(case):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    x, z = X.float(), draw(case.effect, dtype=torch.float32)

    def apply(age_s: Tensor) -> Tensor:
        return case.effect.apply(x, z, Context(age_s=age_s))

    compiled = torch.compile(apply, backend=counter, fullgraph=True)
    counts = []
    for age_s in (0.0, 60.0, 3e7):
        age = torch.tensor(age_s, dtype=torch.float64)
        torch.testing.assert_close(compiled(age), apply(age), rtol=0, atol=0)
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 3


@every_effect
def test_an_effect_rebuilt_with_a_learned_parameter_inside_a_compiled_function_equals_eager(case):
    torch.compiler.reset()
    names = [f.name for f in fields(case.effect) if isinstance(getattr(case.effect, f.name), float)]
    x, z = X.float(), draw(case.effect, dtype=torch.float32)

    def apply(*parameters: Tensor) -> Tensor:
        return replace(case.effect, **dict(zip(names, parameters, strict=True))).apply(x, z, Context())

    parameters = [torch.tensor(getattr(case.effect, name), dtype=torch.float64) for name in names]
    compiled = torch.compile(apply, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*parameters), apply(*parameters), rtol=0, atol=0)


@every_effect
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7), (3, 7, 1, 1)])
def test_a_draw_may_be_stacked_in_front_and_ends_in_the_shape_of_the_signal(case, shape):
    z = draw(case.effect, shape)
    assert z.shape[z.ndim - len(shape) :] == shape


@every_effect
@pytest.mark.parametrize("side", ["input", "weight", "output"])
def test_in_tiled_linear_and_grouped_convolution_layers_it_is_finite_trainable_and_the_same_on_the_same_chip(case, side):
    held = side == "weight" and case.effect.per == "read"
    if held and getattr(case.effect, "along", None) == "time":
        pytest.skip("refused: time is no axis of a weight")
    effect = replace(case.effect, per="snapshot") if held else case.effect
    profile = Profile(name="one effect", rows=9, encoding=physics.DifferentialPair(), **{side: (effect,)})
    for layer, shape in ((nn.Linear(12, 5), (7, 12)), (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6))):
        x = torch.randn(shape, generator=generator("contract"))
        outputs = []
        for _ in range(2):
            model = convert(layer, profile, chip=1)
            with reads(model, "off"):
                outputs.append(model(x))
            model(x).sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
        assert torch.equal(*outputs)
        assert outputs[0].isfinite().all()
        assert outputs[0].shape == layer(x).shape


@every_effect
def test_a_profile_with_it_survives_toml(case):
    profile = Profile(name="one effect", output=(case.effect,))
    assert parse_profile(to_toml(profile)) == profile
