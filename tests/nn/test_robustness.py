"""What once went wrong, and calls that are wrong: one line each, and nothing half done."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from galvanic import (
    BatchNorm,
    ColumnDrift,
    Conditions,
    GlobalDrift,
    age,
    at,
    calibrate_ranges,
    compensate,
    convert,
    evaluate,
    load_profile,
    program,
    reads,
)
from galvanic.nn import Chip
from galvanic.physics import Drift, Gaussian, Quantize
from galvanic.profile import Profile
from galvanic.ranges import Dynamic, Fixed, Learned
from galvanic.train import cross_entropy, steps

NOISY = Profile(name="noisy", weight=(Gaussian(std=0.1, per="chip"),))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


X = torch.randn(32, 16, generator=torch.Generator().manual_seed(2))


def test_weights_changed_by_a_fused_optimizer_are_seen_without_gradients_too():
    model = convert(mlp(), NOISY, chip=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        model(X)
    model(X).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(X), copy.deepcopy(model)(X))
    torch.testing.assert_close(model(X).detach(), model.eval()(X).detach())
    with torch.no_grad():
        kept = model(X)
    torch.testing.assert_close(kept, model(X).detach())


def test_weights_changed_through_data_are_seen():
    model = convert(nn.Linear(16, 4), NOISY, chip=0)
    with torch.no_grad():
        before = model(X)
        model.weight.data.mul_(2)
        assert not torch.allclose(model(X), before)


def test_a_profile_parameter_that_changes_in_place_is_seen():
    std = torch.tensor(0.1)
    model = convert(nn.Linear(16, 4), Profile(name="fit", weight=(Gaussian(std=std, per="chip"),)), chip=0)
    with torch.no_grad():
        before = model(X)
        std.fill_(1.0)
        assert not torch.allclose(model(X), before)


def test_functional_calls_with_parameters_do_not_see_each_others_weights():
    model = convert(nn.Linear(16, 4, bias=False), NOISY, chip=0)
    with torch.no_grad():
        outputs = [torch.func.functional_call(model, {"weight": nn.Parameter(torch.full((4, 16), float(k)))}, (X,)) for k in (1, 2, 3)]
    for k, y in zip((1, 2, 3), outputs, strict=True):
        torch.testing.assert_close(y, outputs[0] * k, rtol=1e-4, atol=1e-4)


def test_the_sample_of_a_signal_does_not_lock_onto_columns():
    """A stride that divides the width would see two columns of 32, which are silent here."""
    x = torch.rand(64, 16, 32, 32)
    x[..., ::16] = 0
    layer = convert(nn.Conv2d(16, 2, 1), Profile(name="l", input=(Quantize(bits=8),), input_range=Learned(quantile=0.9)), chip=0)
    calibrate_ranges(layer, [x])
    assert layer.input_range.item() == pytest.approx(float(torch.quantile(x.flatten()[:1_000_000], 0.9)), abs=0.02)


def test_a_gain_too_small_to_be_heard_through_the_converter_is_left_at_one():
    layer = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        layer.weight[1] = 1e-3 * layer.weight[1]
    profile = Profile(name="d", weight=(Drift(nu=0.06),), output=(Quantize(bits=6),), output_range=Fixed(value=8.0), weight_scale="layer")
    model = age(convert(layer, profile, chip=0), 1e6)
    compensate(model, ColumnDrift())
    assert model.gain[0].item() == pytest.approx((1 + 1e6 / 20) ** 0.06, rel=0.1)
    assert model.gain[1].item() == 1
    compensate(model, GlobalDrift())
    assert model.gain.item() == pytest.approx((1 + 1e6 / 20) ** 0.06, rel=0.1)


@pytest.mark.parametrize("name", ["pcm", "pcm-hermes", "reram", "generic-4bit"])
def test_at_age_zero_there_is_no_drift_to_undo(name):
    model = calibrate_ranges(convert(mlp(), load_profile(name), chip=0), [X])
    with reads(model, "off"):
        before = model(X)
        assert torch.equal(compensate(model, GlobalDrift())(X), before)


def test_a_numbered_chip_keeps_its_devices_through_half_precision_and_the_meta_device():
    model = convert(mlp(), NOISY, chip=0)
    draws = model[0]._draws["weight", 0].clone()
    model.bfloat16().float()
    assert torch.equal(model[0]._draws["weight", 0], draws)
    there = convert(mlp().to("meta"), NOISY, chip=0).to_empty(device="cpu")
    assert torch.equal(there[0]._draws["weight", 0], draws)
    anonymous = convert(mlp().to("meta"), NOISY, chip=None).to_empty(device="cpu")
    assert 0.5 < anonymous[0]._draws["weight", 0].std() < 1.5


def test_silence_in_half_precision_is_finite():
    profile = Profile(name="h", input=(Quantize(bits=8),), output=(Quantize(bits=8),), weight=(Gaussian(std=0.01),), output_range=Dynamic())
    x = torch.zeros(2, 16, dtype=torch.float16, requires_grad=True)
    y = convert(nn.Linear(16, 4), profile, chip=0).half()(x)
    y.float().square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_autocast_gives_the_dtype_of_the_digital_layer():
    model = calibrate_ranges(convert(mlp(), load_profile("pcm"), chip=0), [X])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X).dtype == mlp()(X).dtype == torch.bfloat16


def test_a_failed_recalibration_leaves_the_statistics():
    model = convert(nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)), NOISY, chip=0)
    model[1].running_mean.fill_(3.0)
    for batches in ([], [X, "no tensor"][1:]):
        with pytest.raises(ValueError, match=r"empty"):
            compensate(model, BatchNorm(batches))
    assert model[1].running_mean.tolist() == [3.0] * 8
    rows = evaluate(model, lambda m: float(m(X).mean()), chips=[0, 1], compensation=BatchNorm(iter([X])))
    assert len(rows) == 2


def test_placing_a_chip_in_inference_mode_leaves_it_trainable():
    model = calibrate_ranges(convert(mlp(), load_profile("pcm"), chip=0), [X])
    with torch.inference_mode():
        age(model, 3.0)
        model(X)
    model(X).sum().backward()
    assert model[0].weight.grad.isfinite().all()


def test_temperature_does_not_reshuffle_the_noise_of_a_chip():
    model = calibrate_ranges(convert(mlp(), load_profile("pcm"), chip=0), [X])
    with reads(model, "off"):
        cold = at(model, Conditions(age_s=10.0, temperature_K=300.0))(X)
        assert torch.equal(at(model, Conditions(age_s=10.0, temperature_K=350.0))(X), cold)


def test_an_averaged_model_made_before_calibration_knows_its_ranges():
    model = convert(mlp(), load_profile("pcm"), chip=0)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    calibrate_ranges(model, [X])
    average.update_parameters(model)
    assert average(X).isfinite().all()


def test_a_failed_placement_changes_nothing():
    model = convert(nn.Linear(16, 4), NOISY, chip=3)
    with pytest.raises(ValueError, match=r"conditions are a Conditions"):
        at(model, "hot")
    assert model.conditions == Conditions()
    uncalibrated = age(convert(mlp(), load_profile("pcm"), chip=0), 3600.0)
    with pytest.raises(RuntimeError, match="not calibrated yet"):
        compensate(uncalibrated, GlobalDrift())
    assert {layer.conditions.age_s for layer in (uncalibrated[0], uncalibrated[2])} == {3600.0}


@pytest.mark.parametrize("chip", [1.0, True, "1", float("nan"), -1])
def test_a_chip_is_a_whole_number(chip):
    with pytest.raises(ValueError, match=r"^chip = .*: a whole number from 0 on, or None$"):
        convert(mlp(), NOISY, chip=chip)


def test_integers_of_numpy_are_whole_numbers():
    assert Chip(np.int64(3)) == Chip(3)
    x = convert(nn.Linear(16, 4), NOISY, chip=np.int64(3))(X)
    assert torch.equal(convert(nn.Linear(16, 4), NOISY, chip=3).chip.number * torch.ones(1), torch.tensor([3.0]))
    assert x.shape == (32, 4)
    assert [r["chip"] for r in evaluate(convert(mlp(), NOISY, chip=0), lambda m: 0.0, chips=np.arange(2))] == [0, 1]


MISTAKES = {
    "a name for a profile": (lambda m: convert(m, "pcm", chip=0), r"a profile is a Profile, not 'pcm'; load_profile\(name\) gives one"),
    "no profile": (lambda m: convert(m, None, chip=0), "no profile was given"),
    "a name in a pattern": (lambda m: convert(m, {"*": "pcm"}, chip=0), "a profile is a Profile, not 'pcm'"),
    "a pattern that decides nothing": (
        lambda m: convert(m, {"*": NOISY, "2": None}, chip=0),
        "pattern '2' decides no layer: earlier patterns",
    ),
    "nothing to convert": (
        lambda m: convert(nn.ReLU(), NOISY, chip=0),
        r"no layer that could go on a chip; describe\(model\)",
    ),
    "a negative write": (lambda m: program(convert(m, NOISY, chip=0), 0, write=-1), "write = -1: a whole number from 0 on"),
    "a negative age": (lambda m: age(convert(m, NOISY, chip=0), -1.0), "Conditions.age_s = -1.0"),
    "a negative age in a tensor": (
        lambda m: age(convert(m, NOISY, chip=0), torch.tensor(-5.0)),
        "Conditions.age_s = .*one finite number, 0 or more",
    ),
    "an age that is no number": (lambda m: age(convert(m, NOISY, chip=0), torch.tensor(float("nan"))), "one finite number"),
    "several ages": (lambda m: age(convert(m, NOISY, chip=0), torch.tensor([1.0, 2.0])), "one finite number"),
    "no chips": (
        lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: 0.0, chips=[]),
        r"evaluate: chips = \[\]: one number or more in a list",
    ),
    "one chip": (lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: 0.0, chips=5), "evaluate: chips = 5"),
    "a chip without number": (lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: 0.0, chips=[None]), "evaluate: chips"),
    "no writes": (
        lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: 0.0, chips=[1], writes=0),
        "writes = 0: each chip is written once",
    ),
    "a metric without number": (
        lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: None, chips=[1]),
        "the metric gives None, not one number",
    ),
    "a metric of many": (lambda m: evaluate(convert(m, NOISY, chip=0), lambda m: X, chips=[1]), "the metric gives .*, not one number"),
    "a name for a compensation": (lambda m: compensate(convert(m, NOISY, chip=0), "global-drift"), "a compensation is a GlobalDrift"),
    "a class for a compensation": (lambda m: compensate(convert(m, NOISY, chip=0), GlobalDrift), "a compensation is a GlobalDrift"),
    "no probes": (lambda m: GlobalDrift(probes=0), "GlobalDrift.probes = 0: one input vector or more"),
    "batches of text": (lambda m: calibrate_ranges(convert(m, NOISY, chip=0), ["no tensor"]), "a batch is a tensor of inputs or a tuple"),
    "empty tuples": (lambda m: calibrate_ranges(convert(m, NOISY, chip=0), [()]), "a batch is a tensor of inputs or a tuple"),
    "an empty batch": (lambda m: calibrate_ranges(convert(m, NOISY, chip=0), [X[:0]]), "is not empty"),
    "chips for a digital model": (
        lambda m: next(steps(m, [(X, torch.zeros(32, dtype=torch.long))], cross_entropy, torch.optim.SGD(m.parameters(), 0.1), chips=[1])),
        "the model has no analog layer",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line(mistake):
    call, answer = MISTAKES[mistake]
    with pytest.raises(ValueError, match=answer) as caught:
        call(mlp())
    assert "\n" not in str(caught.value)


def test_the_chips_of_training_may_be_any_collection():
    model = convert(mlp(), NOISY, chip=0)
    batches = [(X, torch.zeros(32, dtype=torch.long))] * 3
    seen = [
        model[0].chip.number for _ in steps(model, batches, cross_entropy, torch.optim.SGD(model.parameters(), 0.1), chips=np.arange(5, 7))
    ]
    assert seen == [5, 6, 5]
