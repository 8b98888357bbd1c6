"""A chip is a numbered draw: the same today and tomorrow, whatever stands around it. Time, compensation and evaluation."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from galvanic import (
    BatchNorm,
    ColumnDrift,
    GlobalDrift,
    age,
    at,
    calibrate_ranges,
    compensate,
    convert,
    evaluate,
    inspect,
    load_profile,
    program,
    reads,
)
from galvanic.nn import analog_layers, unfused
from galvanic.nn.convert import copied
from galvanic.physics import Conditions, Context, DifferentialPair, Drift, Gaussian, Mismatch, Programming, Quantize, ReadNoise, StuckAt
from galvanic.profile import Profile
from galvanic.ranges import Fixed

DAY_S = 86400.0
CLOCKS = Profile(
    name="clocks",
    input=(Mismatch(std=0.1),),
    weight=(Mismatch(std=0.1), Programming(std=0.05), Drift(nu=0.05, nu_std=0.02), ReadNoise(q=0.02)),
    output=(Gaussian(std=0.05, per="chip"),),
    output_range=Fixed(value=4.0),
    rows=10,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def placed(model, chip=0, profile=CLOCKS):
    return convert(model, profile, chip=chip)


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def weights(model):
    return [layer.conductances(layer.scale(), Context(**layer.at)).detach() for layer in analog_layers(model).values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_same_chip_gives_the_same_bits_in_any_order_of_calls():
    model = network()
    direct = age(placed(model, chip=7), 3 * DAY_S)
    wandering = placed(model, chip=1)
    for chip, write, seconds in ((3, 2, 5.0), (7, 1, DAY_S), (7, 0, 3600.0)):
        age(program(wandering, chip, write), seconds)
        wandering(X)
    age(program(wandering, 7), 3 * DAY_S)
    assert torch.equal(direct(X), wandering(X))


def test_the_same_chip_gives_the_same_bits_next_to_other_layers():
    model = network()
    wider = nn.Sequential(*model, nn.ReLU(), nn.Linear(3, 3))
    assert same(weights(placed(model, 7)), weights(placed(wider, 7))[:2])
    alone = convert(model, {"3": CLOCKS}, chip=7)
    assert torch.equal(weights(alone)[0], weights(placed(model, 7))[1])


def test_an_effect_added_to_the_profile_leaves_the_draws_of_the_others():
    from dataclasses import replace

    base = Profile(name="a", weight=(Programming(std=0.05),))
    more = replace(base, weight=(StuckAt(low_fraction=0.0), Programming(std=0.05), Mismatch(std=0.0)))
    layer = nn.Linear(9, 9)
    assert same(weights(placed(layer, 3, base)), weights(placed(layer, 3, more)))


def test_the_same_chip_has_the_same_devices_in_double_precision_after_moving_and_after_a_copy():
    model = network()
    single, double = placed(model, 7), placed(model.double(), 7)
    for a, b in zip(weights(single), weights(double), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    moved = placed(network(), 7).double().float()
    assert same(weights(moved), weights(single))
    assert same(weights(copy.deepcopy(single)), weights(single))


def test_chips_differ_and_layers_of_one_shape_differ():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].load_state_dict(model[0].state_dict())
    first, second = weights(placed(model, 1))
    assert not torch.equal(first, second)
    assert not same(weights(placed(model, 1)), weights(placed(model, 2)))


def draws(layer):
    return {key: z.clone() for key, z in layer._draws.items()}


def renewed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_rewriting_keeps_fabrication_and_renews_writing():
    model = placed(network(), 7)
    layer = model[3]
    before = draws(layer)
    program(model, 7, write=1)
    assert renewed(before, draws(layer)) == {("weight", 1), ("weight", 2), ("weight", 3)}
    program(model, 7, write=0)
    assert renewed(before, draws(layer)) == set()


def test_ageing_renews_slow_noise_alone_and_another_snapshot_is_another_draw():
    model = placed(network(), 7)
    layer = model[3]
    before = draws(layer)
    age(model, DAY_S)
    assert renewed(before, draws(layer)) == {("weight", 3)}
    after = draws(layer)
    age(model, DAY_S, snapshot=1)
    assert renewed(after, draws(layer)) == {("weight", 3)}
    age(model, DAY_S)
    assert renewed(after, draws(layer)) == set()


def test_an_anonymous_chip_is_new_each_time_and_follows_the_global_stream():
    model = placed(network(), None)
    first = weights(model)
    assert not same(first, weights(program(model)))
    torch.manual_seed(5)
    one = weights(program(model))
    torch.manual_seed(5)
    assert same(one, weights(program(model)))


def test_a_numbered_chip_does_not_touch_the_global_stream():
    model = network()
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    age(program(placed(model, 7), 8), DAY_S)
    assert torch.equal(torch.randn(4), expected)


def test_age_zero_means_no_drift_and_program_returns_to_it():
    drift = Profile(name="d", weight=(Drift(nu=0.1),))
    model = placed(nn.Linear(4, 4, bias=False), 0, drift)
    fresh = model(torch.eye(4))
    torch.testing.assert_close(fresh, model.weight.T)
    torch.testing.assert_close(age(model, 20.0)(torch.eye(4)), fresh * 2**-0.1)  # t0 = 20 s: (1 + 20 / 20)^-0.1
    assert torch.equal(program(model, 0)(torch.eye(4)), fresh)


def test_program_keeps_the_other_conditions():
    model = at(placed(network(), 0), Conditions(age_s=5.0, temperature_K=350.0, noise_level=2.0))
    program(model, 1)
    assert model[0].conditions == Conditions(temperature_K=350.0, noise_level=2.0)


def test_noise_level_scales_the_deviation_of_one_and_the_same_chip():
    profile = Profile(name="p", weight=(Programming(std=0.05),))
    model = placed(nn.Linear(6, 6), 3, profile)
    base = weights(at(model, Conditions(noise_level=0.0)))[0]
    one = weights(at(model, Conditions(noise_level=1.0)))[0] - base
    two = weights(at(model, Conditions(noise_level=2.0)))[0] - base
    torch.testing.assert_close(two, 2 * one, rtol=1e-4, atol=1e-6)
    assert one.std() > 0.03


def test_conductances_never_fall_below_zero_and_read_noise_included():
    profile = Profile(name="p", weight=(Programming(std=0.3), ReadNoise(q=0.5)), encoding=DifferentialPair())
    assert weights(age(placed(nn.Linear(30, 30), 0, profile), DAY_S))[0].min() == 0


def test_drift_depends_on_the_target_and_read_noise_on_the_written_value():
    seen = {}

    class Spy(Drift):
        def apply(self, x, z, at):
            seen.update(target=at.target, written=at.written, x=x)
            return x * 0.5

    class Late(Spy):
        def apply(self, x, z, at):
            seen["later"] = at.written
            return x

    profile = Profile(name="p", weight=(Programming(std=0.1), Spy(nu=0.1), Late(nu=0.1)))
    layer = placed(nn.Linear(4, 4), 0, profile)
    weights(layer)
    torch.testing.assert_close(seen["target"].squeeze(0), layer.cells(layer.weight) / layer.scale())
    assert torch.equal(seen["written"], seen["x"])
    assert not torch.equal(seen["written"], seen["target"])
    assert torch.equal(seen["later"], seen["written"])


def test_the_weight_is_kept_between_reads_and_renewed_when_anything_changes():
    model = placed(nn.Linear(4, 4), 0, load_profile("reram"))
    calibrate_ranges(model, [torch.randn(8, 4)])
    at_ = Context(**model.at)
    with torch.no_grad():
        kept = model.written(at_).lanes[0][0]
        assert model.written(at_).lanes[0][0] is kept
        model.weight.mul_(2)
        model.weight[0, 0] += 1
        changed = model.written(at_).lanes[0][0]
        assert changed is not kept
        program(model, 1)
        assert not torch.equal(model.written(at_).lanes[0][0], changed)
    assert model.written(at_).lanes[0][0].requires_grad


def test_kept_and_computed_weights_give_the_same_bits():
    model = placed(network(), 0, load_profile("pcm"))
    calibrate_ranges(model, [X])
    with reads(model, "off"):
        with torch.no_grad():
            kept = model(X), model(X)
        assert torch.equal(kept[0], kept[1])
        assert torch.equal(kept[0], model(X))


# -- compensation ---------------------------------------------------------------------------------------------------------------------


def drifting():
    profile = Profile(name="d", weight=(Drift(nu=0.06),), encoding=DifferentialPair())
    return placed(network(), 3, profile)


@pytest.mark.parametrize("compensation", [GlobalDrift(), ColumnDrift()])
def test_uniform_drift_is_undone_exactly(compensation):
    model = drifting()
    fresh = model(X)
    drifted = age(model, 30 * DAY_S)(X)
    assert (drifted - fresh).abs().max() > 0.05
    torch.testing.assert_close(compensate(model, compensation)(X), fresh, rtol=1e-4, atol=1e-5)


def test_the_gain_is_one_over_the_decay_and_program_forgets_it():
    model = age(drifting(), 1e6)
    compensate(model, GlobalDrift())
    assert float(model[0].gain) == pytest.approx((1 + 1e6 / 20) ** 0.06, rel=1e-4)
    assert compensate(model, ColumnDrift())[3].gain.shape == (3,)
    assert program(model, 3)[0].gain is None


def test_columns_that_drift_differently_are_undone_by_column_gains():
    profile = Profile(name="columns", weight=(Drift(nu=torch.tensor([[0.02], [0.06], [0.1]])),))
    model, x = placed(nn.Linear(6, 3), 0, profile), torch.randn(5, 6)
    fresh = model(x)
    age(model, 365 * DAY_S)
    torch.testing.assert_close(compensate(copy.deepcopy(model), ColumnDrift())(x), fresh, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(compensate(model, GlobalDrift())(x), fresh, atol=1e-2)


def test_compensation_reads_through_converters_and_noise():
    model = placed(network(), 3, load_profile("pcm"))
    calibrate_ranges(model, [X])
    age(model, 30 * DAY_S)
    torch.manual_seed(0)
    gains = [float(compensate(model, GlobalDrift(probes=16))[0].gain) for _ in range(2)]
    assert gains[0] != gains[1]  # read noise differs
    assert gains[0] == pytest.approx(gains[1], rel=0.05)


def test_measuring_the_gain_leaves_chip_conditions_and_draws():
    model = age(placed(network(), None), DAY_S)
    before = [draws(layer) for layer in analog_layers(model).values()]
    compensate(model, GlobalDrift())
    for layer, old in zip(analog_layers(model).values(), before, strict=True):
        assert renewed(old, draws(layer)) == set()
        assert layer.conditions.age_s == DAY_S


def test_batch_norm_statistics_are_those_of_the_noisy_chip():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)).eval()
    x = torch.randn(64, 6)
    analog = placed(model, 2, Profile(name="m", weight=(Mismatch(std=0.3),)))
    compensate(analog, BatchNorm(x.split(16)))
    z = analog[0](x)
    torch.testing.assert_close(analog[1].running_mean, z.mean(0).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(analog[1].running_var, torch.stack([b.var(0) for b in z.detach().split(16)]).mean(0), rtol=1e-4, atol=1e-5)
    assert analog[1].momentum == 0.1
    assert not analog[1].training
    assert torch.equal(model[1].running_mean, torch.zeros(5))


def test_batch_norm_compensation_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="no batch normalisation"):
        compensate(placed(nn.Linear(2, 2)), BatchNorm([torch.zeros(2, 2)]))
    with pytest.raises(ValueError, match="the batches are empty"):
        compensate(placed(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), BatchNorm([]))


# -- evaluation -----------------------------------------------------------------------------------------------------------------------


def test_evaluate_gives_a_row_for_every_chip_write_and_age_and_leaves_the_model():
    model = placed(network(), 5).train()
    before = model(X)
    rows = evaluate(model, lambda m: float(m(X).square().mean()), chips=[1, 2], writes=2, ages_s=[0.0, DAY_S], compensation=GlobalDrift())
    assert [(r["chip"], r["write"], r["age_s"]) for r in rows] == [(c, w, a) for c in (1, 2) for w in (0, 1) for a in (0.0, DAY_S)]
    assert {r["compensation"] for r in rows} == {"global-drift"}
    assert len({r["value"] for r in rows}) == len(rows)
    assert torch.equal(model(X), before)
    assert model.training
    assert rows == evaluate(
        model, lambda m: float(m(X).square().mean()), chips=[1, 2], writes=2, ages_s=[0.0, DAY_S], compensation=GlobalDrift()
    )


def test_evaluate_measures_in_evaluation_mode_under_the_conditions():
    model = placed(network(), 5)
    seen = []
    evaluate(
        model, lambda m: seen.append((m.training, m[0].conditions)) or 0.0, chips=[1], ages_s=[7.0], conditions=Conditions(noise_level=2.0)
    )
    assert seen == [(False, Conditions(age_s=7.0, noise_level=2.0))]


def test_a_model_without_analog_layers_is_refused():
    with pytest.raises(ValueError, match=r"convert\(model, profile, chip=\.\.\.\) makes one"):
        program(nn.Linear(2, 2), 0)


def test_inspect_finds_the_error_and_the_clipping_of_each_layer():
    layer = nn.Linear(2, 1, bias=True)
    nn.init.ones_(layer.weight)
    profile = Profile(
        name="p", input=(Quantize(bits=8),), output=(Quantize(bits=8),), input_range=Fixed(value=1.0), output_range=Fixed(value=1.0)
    )
    x = torch.tensor([[0.25, 0.25], [1.0, 2.0], [1.0, 0.0], [0.5, 0.0]])
    (row,) = inspect(convert(nn.Sequential(layer), profile, chip=0), x)
    assert row["layer"] == "0"
    assert (row["input_max"], row["input_range"], row["input_clipped"]) == (2.0, 1.0, 1 / 8)
    assert row["output_range"] == 1.0
    assert row["output_clipped"] == 1 / 4
    exact = torch.tensor([0.5, 3.0, 1.0, 0.5])
    found = torch.tensor([64 / 127, 1.0, 1.0, 64 / 127])  # 0.25 and 0.5 fall between the levels k / 127
    assert row["error"] == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-2)
    (row,) = inspect(convert(nn.Sequential(layer), load_profile("ideal"), chip=0), x)
    assert row["error"] == 0
    assert row["input_range"] is None


@pytest.mark.parametrize("name", ["pcm", "reram-milo", "flash"])
def test_a_large_matrix_written_in_pieces_is_the_one_written_at_once(name, monkeypatch):
    torch.manual_seed(0)
    for layer in (nn.Linear(6, 9), nn.Conv2d(4, 6, 3, groups=2)):
        analog = age(convert(layer, load_profile(name), chip=3), 1e4)
        with torch.no_grad():
            whole = analog._written(Context(**analog.at))
            monkeypatch.setattr("galvanic.nn.written._PIECE", 40)
            assert len(analog._pieces()) > 1
            parts = analog._written(Context(**analog.at))
            monkeypatch.undo()
        torch.testing.assert_close(parts.lanes[0], whole.lanes[0], rtol=1e-5, atol=1e-7)  # the last bit of a vectorised power may differ
        assert (whole.variances is None) == (parts.variances is None)
        torch.testing.assert_close(parts.variances, whole.variances, rtol=1e-5, atol=0)


def test_a_noise_level_that_wants_a_gradient_gets_the_one_of_the_effects_one_by_one():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(5, 6)
    for name in ("hwa", "pcm"):
        gradients = []
        for pass_ in (nullcontext, unfused):
            level = torch.tensor(0.7, requires_grad=True)
            model = at(calibrate_ranges(convert(layer, load_profile(name), chip=0), [x]), Conditions(noise_level=level))
            torch.manual_seed(1)
            with pass_():
                gradients.append(torch.autograd.grad(model(x).square().sum(), level)[0])
        assert gradients[0] != 0
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=0)


def test_a_copy_does_not_share_a_learned_parameter_of_physics_with_its_original():
    std = nn.Parameter(torch.tensor(0.1))
    model = convert(nn.Linear(3, 2), Profile(name="learned", weight=(Gaussian(std=std, per="write"),)), chip=0)
    (effect,) = copied(model).profile.weight
    assert effect.std is not std
    assert effect.std == std
    computed = convert(nn.Linear(3, 2), Profile(name="computed", weight=(Gaussian(std=std.exp(), per="write"),)), chip=0)
    assert evaluate(computed, lambda m: float(m(torch.ones(3)).sum()), chips=[1])
