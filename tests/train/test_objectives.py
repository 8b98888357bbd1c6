import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import nn

from galvanic.nn import Analog, analog_layers, convert, inspect, program, reads, to_digital
from galvanic.physics import Gaussian, Quantize
from galvanic.profile import Profile, load_profile
from galvanic.ranges import Fixed, Learned
from galvanic.train.objectives import Total
from galvanic.train.passes import digital_products, kept_statistics
from galvanic.train.robustness import JS, KL, MSE, Distillation, Divergence, HalfBatch, js, kl, mse
from galvanic.train.sharpness import SharpnessAware
from galvanic.train.steps import cross_entropy, steps
from galvanic.train.terms import (
    Alignment,
    OfSignals,
    Pass,
    ReadEnergy,
    SignalRange,
    Sparsity,
    Term,
    WeightPrecision,
    WeightRange,
    WriteRegularity,
    weights,
)

IDEAL = Profile(name="ideal")
STATIC = Profile(name="static", weight=(Gaussian(std=0.1, per="chip"),))
READS = Profile(name="reads", output=(Gaussian(std=0.1, per="read"),), output_range=Fixed(value=4.0))
RANGED = Profile(
    name="ranged",
    input=(Quantize(bits=4),),
    output=(Gaussian(std=0.02, per="read"), Quantize(bits=4)),
    weight=(Gaussian(std=0.05, per="chip"),),
    input_range=Fixed(value=1.5),
    output_range=Fixed(value=2.0),
    rows=16,
)
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(12) % 3


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *(middle or (nn.Tanh(),)), nn.Linear(8, 3)).double()


def on(profile: Profile, *middle: nn.Module) -> nn.Module:
    return convert(network(*middle), profile, chip=1)


def alone(term: Term, model: nn.Module, x: torch.Tensor = X, **given) -> torch.Tensor:
    """The loss of nothing but the term."""
    total = Total(lambda m, b: 0.0 * m(b[0]).sum(), hardware=(replace(term, strength=1.0),), **given)
    return total(model, (x, Y[: len(x)]))


def value(term: Term, model: nn.Module, x: torch.Tensor = X, **given) -> torch.Tensor:
    return alone(term, model, x, **given).detach()


def gradient(term: Term, model: nn.Module, x: torch.Tensor = X) -> dict[str, torch.Tensor]:
    model.zero_grad()
    alone(term, model, x).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def calls(model: nn.Module) -> list[tuple[int, ...]]:
    """A list that grows by the shape of the input with every call of the model."""
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)) and None)
    return seen


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "tokens": (lambda: nn.Linear(6, 4), (5, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (5, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1), (5, 2, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (5, 4, 6, 6)),
    "circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (5, 2, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1), (5, 4, 4, 4)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def layer_and_input(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    build, shape = LAYERS[kind]
    return build().double(), torch.randn(shape, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------- divergences


def scores(n: int = 7, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return tuple(3 * torch.randn(n, classes, generator=draw, dtype=torch.float64) for _ in range(2))


def test_divergences_are_those_of_scipy():
    a, b = scores()
    p, q = a.softmax(1).numpy(), b.softmax(1).numpy()
    assert float(kl(a, b)) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-12)
    assert float(js(a, b)) == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-12)
    assert float(mse(a, b)) == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-12)


@pytest.mark.parametrize("divergence", [kl, js, mse])
def test_divergences_have_the_gradients_of_finite_differences(divergence):
    a, b = scores(3, 4)
    assert torch.autograd.gradcheck(divergence, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("divergence", [kl, js])
def test_divergences_are_zero_for_equal_predictions_and_bounded_for_extreme_ones(divergence):
    a, _ = scores()
    assert float(divergence(a, a + 5)) == pytest.approx(0, abs=1e-14)  # a shift of all scores is no other prediction
    far = 1e4 * torch.eye(2, dtype=torch.float64)
    assert float(js(far, far.flip(0))) == pytest.approx(math.log(2))
    assert float(kl(far, far.flip(0))) == pytest.approx(1e4)


def test_classes_are_the_second_dimension_as_in_cross_entropy():
    a, b = (s.view(7, 5, 1).repeat(1, 1, 4) for s in scores())
    assert torch.allclose(kl(a, b), kl(*scores()))
    for wrong in (a[..., 0][0], a[:, :1]):
        with pytest.raises(ValueError, match=r"two classes or more, not \(.*MSE\(\) takes any"):
            kl(wrong, wrong)


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_precision_is_the_distance_to_the_levels_of_each_column(bits):
    model = network()
    top, expected = 2 ** (bits - 1) - 1, []
    for layer in (model[0], model[2]):
        w = layer.weight.detach().numpy()
        s = abs(w).max(1, keepdims=True)
        expected.append((((w / s * top).round() / top * s - w) ** 2).sum() / (w**2).sum())
    assert float(value(WeightPrecision(bits=bits), model)) == pytest.approx(sum(expected) / 2, rel=1e-12)
    grads = gradient(WeightPrecision(bits=bits), model)
    w = model[0].weight.detach()
    s = w.abs().amax(1, keepdim=True)
    assert torch.allclose(grads["0.weight"], (w - (w / s * top).round() / top * s) / w.square().sum())  # half of 2: a mean over two layers


def test_weight_precision_knows_no_unit_and_nothing_is_gained_on_the_grid():
    model = network()
    before = float(value(WeightPrecision(), model))
    with torch.no_grad():
        model[0].weight.mul_(1000)
    assert float(value(WeightPrecision(), model)) == pytest.approx(before, rel=1e-9)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            s = layer.weight.abs().amax(1, keepdim=True)
            layer.weight.copy_((layer.weight / s * 7).round() / 7 * s)
    assert float(value(WeightPrecision(bits=4), model)) == pytest.approx(0, abs=1e-25)


@every_layer
@pytest.mark.parametrize("term", [WeightPrecision(bits=3), WeightRange(limit=1.0)], ids=lambda t: t.name)
def test_terms_of_weights_are_the_same_before_and_after_conversion(kind, term):
    layer, x = layer_and_input(kind)
    digital = value(term, layer, x)
    assert float(digital) > 0
    assert torch.equal(value(term, convert(layer, IDEAL, chip=0), x), digital)


def test_weight_range_is_the_squared_excess_in_units_of_the_root_mean_square():
    layer = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, 5.0]]))
    rms = math.sqrt(28 / 4)
    expected = (5 / rms - 1.5) ** 2 / 4
    assert float(value(WeightRange(limit=1.5), layer, X[:, :4])) == pytest.approx(expected, rel=1e-12)
    grad = gradient(WeightRange(limit=1.5), layer, X[:, :4])["weight"]
    assert grad.tolist() == [[0, 0, 0, pytest.approx(2 * (5 / rms - 1.5) / rms / 4)]]
    assert float(value(WeightRange(limit=2.0), layer, X[:, :4])) == 0


@pytest.mark.parametrize("term", [WeightPrecision(), WeightRange(), WriteRegularity()], ids=lambda t: t.name)
def test_terms_of_weights_are_zero_for_weights_that_are(term):
    model = network()
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[2].weight)
    loss = alone(term, model, written=weights(model))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not model[0].weight.grad.any()


def test_write_regularity_is_the_relative_change_since_the_write():
    model = on(IDEAL)
    written = weights(model)
    assert float(value(WriteRegularity(), model, written=written)) == 0
    with torch.no_grad():
        for layer in analog_layers(model).values():
            layer.weight.mul_(1.1)
    assert float(value(WriteRegularity(), model, written=written)) == pytest.approx(0.01, rel=1e-9)


def test_write_regularity_asks_for_what_was_written():
    with pytest.raises(
        ValueError, match=r"^WriteRegularity: which weights were written\? Total\(\.\.\., written=weights\(model\)\) says it$"
    ):
        value(WriteRegularity(), network())
    with pytest.raises(ValueError, match=r"^WriteRegularity: layer '2' has a weight of shape \(3, 8\), and none was written$"):
        value(WriteRegularity(), network(), written={"0": network()[0].weight})
    with pytest.raises(ValueError, match=r"shape \(8, 6\), and one of shape \(3, 8\) was written$"):
        value(WriteRegularity(), network(), written={"0": network()[2].weight})


# ------------------------------------------------------------------------------------------------------------- signals


def test_signal_range_is_the_mean_square_of_what_lies_beyond():
    layer = nn.Linear(6, 4).double()
    profile = replace(RANGED, rows=3)  # two tiles
    term, analog = SignalRange(share=1.0), convert(layer, profile, chip=0)
    x, w = 2 * X, layer.weight.detach()
    cells = w / w.abs().amax(1, keepdim=True)
    inputs = (x.abs() / 1.5 - 1).clamp(min=0).square().mean()
    tiles = [(x[:, cut] / 1.5) @ cells[:, cut].T for cut in (slice(0, 3), slice(3, 6))]
    outputs = (torch.cat(tiles).abs() / 2 - 1).clamp(min=0).square().mean()
    assert inputs > 0
    assert outputs > 0
    assert float(value(term, analog, x)) == pytest.approx(float(inputs + outputs), rel=1e-12)
    assert float(value(term, analog, x / 100)) == 0


def test_signal_range_moves_signals_and_not_ranges():
    layer = convert(nn.Linear(6, 4).double(), replace(RANGED, input_range=Learned(), output_range=Learned()), chip=0)
    for side in ("input", "output"):
        layer.set_range(side, 0.1)
    x = X.clone().requires_grad_()
    SignalRange().of(layer, x, layer(x)).backward()
    assert x.grad.any()
    assert layer.weight.grad.any()
    assert float(layer.input_range.grad) == pytest.approx(0, abs=1e-9)
    assert layer.output_range.grad is None


def test_signal_range_needs_a_range():
    with pytest.raises(
        ValueError, match=r"^SignalRange: no analog layer that was called has a range that is fixed, calibrated or learned$"
    ):
        value(SignalRange(), on(IDEAL))


def test_sparsity_is_the_root_of_the_share_of_inputs_that_are_active():
    layer = convert(nn.Linear(16, 2).double(), IDEAL, chip=0)
    x = torch.zeros(3, 16, dtype=torch.float64)
    x[:, :4] = torch.tensor([-2.0, 2.0, 2.0, 2.0])
    assert float(value(Sparsity(share=1.0), layer, x)) == pytest.approx(0.5)
    assert float(value(Sparsity(share=1.0), layer, -7 * x)) == pytest.approx(0.5)
    assert float(value(Sparsity(share=1.0), layer, x + 9 * (x == 0) * 2 / 9)) == pytest.approx(1)
    silent = torch.zeros(3, 16, dtype=torch.float64, requires_grad=True)
    Sparsity().of(layer, silent, layer(silent)).backward()
    assert silent.grad.isfinite().all()


@every_layer
def test_read_energy_is_the_sum_over_all_cells(kind):
    layer, x = layer_and_input(kind)
    analog = convert(layer, replace(RANGED, rows=None), chip=0)
    u, g = (x / 1.5).clamp(-1, 1).square(), (analog.native(analog.cells(layer.weight) / analog.scale())).abs().detach()
    bare = to_digital(analog)
    bare.bias = None

    def product(inputs: torch.Tensor, weight: torch.Tensor) -> float:
        bare.weight = nn.Parameter(weight)
        return float(bare(inputs).sum().detach())

    expected = product(u, g) / product(torch.ones_like(u), torch.ones_like(g))
    assert 0 < expected < 1
    assert float(ReadEnergy(share=1.0).of(analog, x, analog(x)).detach()) == pytest.approx(expected, rel=1e-12)


@every_layer
def test_full_scale_inputs_and_weights_have_the_read_energy_one(kind):
    layer, x = layer_and_input(kind)
    nn.init.constant_(layer.weight, -3.0)
    for profile in (RANGED, IDEAL):  # a range, and none: then every vector fills its own
        analog = convert(layer, replace(profile, rows=None), chip=0)
        for full in (1.5, 150.0) if profile is RANGED else (0.01,):
            signal = torch.full_like(x, full)
            assert float(ReadEnergy().of(analog, signal, analog(signal)).detach()) == pytest.approx(1, rel=1e-12)


@every_layer
def test_alignment_is_the_squared_error_that_inspect_reports(kind):
    layer, x = layer_and_input(kind)
    analog = convert(layer, replace(RANGED, rows=None), chip=3)
    with reads(analog, "off"), torch.no_grad():
        error = inspect(analog, x)[0]["error"]
        assert float(value(Alignment(share=1.0), analog, x)) == pytest.approx(error**2, rel=1e-9)
    assert error > 0.01


@every_layer
def test_alignment_of_ideal_hardware_is_zero(kind):
    layer, x = layer_and_input(kind)
    assert float(value(Alignment(), convert(layer, IDEAL, chip=0), x)) == pytest.approx(0, abs=1e-25)


def test_a_share_of_the_batch_is_its_first_examples():
    model = on(RANGED)
    for term in (SignalRange(share=0.25), Sparsity(share=0.25), ReadEnergy(share=0.25)):
        with reads(model, "off"):
            assert torch.allclose(value(term, model), value(replace(term, share=1.0), model, X[:3]))


def test_an_input_without_a_batch_is_one_example():
    layer = convert(nn.Conv2d(2, 4, 3).double(), replace(RANGED, rows=None), chip=0)
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    for term in (SignalRange(), ReadEnergy()):
        assert torch.allclose(value(term, layer, x), value(term, layer, x[None]))


def test_signals_of_every_call_count():
    torch.manual_seed(0)
    model = convert(nn.LSTM(6, 4).double(), RANGED, chip=0)
    total = Total(lambda m, b: m(b[0])[0].square().mean(), hardware=(Sparsity(), ReadEnergy(), SignalRange(), Alignment()))
    total(model, (X.view(4, 3, 6), Y)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "term", [Sparsity(share=1.0), Alignment(share=1.0), SignalRange(share=1.0), ReadEnergy(share=1.0)], ids=lambda t: t.name
)
def test_terms_of_signals_have_the_gradients_of_finite_differences(term):
    """By the inputs: no yardstick depends on them where ranges are fixed, and a chip is a smooth function where nothing is rounded."""
    smooth = replace(STATIC, input=(Gaussian(std=0.0, per="chip"),), input_range=Fixed(value=1.5), output=(Gaussian(std=0.1, per="chip"),))
    layer = convert(nn.Linear(6, 4).double(), replace(smooth, output_range=Fixed(value=1.0)), chip=2)
    assert torch.autograd.gradcheck(lambda x: term.of(layer, x, layer(x)), (2 * X[:4].clone().requires_grad_(),))


@pytest.mark.parametrize("term", [SignalRange(), Sparsity(), ReadEnergy(), Alignment(), Divergence()], ids=lambda t: t.name)
def test_a_digital_model_is_refused_in_one_line(term):
    with pytest.raises(ValueError, match=f"^{term.name}: the model has no analog layer: convert\\(model, profile, chip=...\\) makes one$"):
        Total(hardware=(term,))(network(), (X, Y))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="no analog layer, no linear one and no convolution"):
        Total(hardware=(WeightPrecision(),))(nn.Tanh(), (X, Y % 6))


# ------------------------------------------------------------------------------------------------------------- robustness


@pytest.mark.parametrize("profile", [STATIC, READS], ids=lambda p: p.name)
@pytest.mark.parametrize("between", [KL(), JS(), MSE()], ids=lambda d: type(d).__name__)
def test_divergence_from_the_digital_prediction_is_what_it_says(profile, between):
    model = on(profile)
    with reads(model, "frozen"):
        total = Total(robustness=(Divergence(between=between),))
        total(model, (X, Y))
        expected = between(network()(X), model(X)).detach()
    assert float(expected) > 1e-6
    assert float(total.logs["Divergence"]) == pytest.approx(float(expected), rel=1e-9)


def test_each_reference_leaves_out_what_it_says():
    for reference, profile in (("digital", IDEAL), ("quiet", STATIC), ("noisy", STATIC)):
        assert float(value(Divergence(reference=reference), on(profile))) == pytest.approx(0, abs=1e-14)
    for reference, profile in (("digital", STATIC), ("digital", READS), ("quiet", READS), ("noisy", READS)):
        assert float(value(Divergence(reference=reference), on(profile))) > 1e-6


def test_many_draws_have_the_mean_of_one_and_less_spread():
    model = on(READS)
    torch.manual_seed(0)
    one, eight = (torch.stack([value(Divergence(draws=n), model) for _ in range(200)]) for n in (1, 8))
    error = math.sqrt(float(one.var() + eight.var()) / 200)
    assert abs(float(one.mean() - eight.mean())) < 4 * error
    assert float(eight.std()) < 0.6 * float(one.std())  # 1 / sqrt(8) = 0.35


def test_a_detached_reference_is_a_target():
    model, fixed = on(STATIC), network()(X).detach()
    model.zero_grad()
    kl(fixed, model(X)).backward()
    expected = model[0].weight.grad.clone()
    assert torch.allclose(gradient(Divergence(), model)["0.weight"], expected)
    model.zero_grad()
    with digital_products(model):
        clean = model(X)
    kl(clean, model(X)).backward()
    assert torch.allclose(gradient(Divergence(detached=False), model)["0.weight"], model[0].weight.grad)
    assert not torch.allclose(expected, gradient(Divergence(detached=False), model)["0.weight"])


def test_further_passes_are_as_many_as_said_and_leave_no_trace():
    model = on(READS, nn.BatchNorm1d(8), nn.ReLU()).train()
    seen, twin = calls(model), on(READS, nn.BatchNorm1d(8), nn.ReLU()).train()
    Total(robustness=(Divergence(draws=3),))(model, (X, Y))
    assert len(seen) == 4
    with reads(twin, "off"):
        twin(X)
    statistics = model[1].running_mean, twin[1].running_mean
    assert statistics[0].any()
    assert model[1].num_batches_tracked == 1
    assert model[1].track_running_stats
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert all(layer.reads == "fresh" for layer in analog_layers(model).values())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.InstanceNorm2d(3, track_running_stats=True)])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_kept_and_results_are_the_same(norm, training):
    x = torch.randn(4, 3, 5, 5)
    norm.train()(x + 1)
    norm.train(training)
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with kept_statistics(norm):
        y = norm(x)
    assert all(torch.equal(b, before[name]) for name, b in norm.named_buffers())
    assert torch.equal(norm(x), y)
    changed = any(not torch.equal(b, before[name]) for name, b in norm.named_buffers())
    assert changed is training  # and afterwards all is as it was


@every_layer
def test_digital_products_are_those_of_the_digital_layer(kind):
    layer, x = layer_and_input(kind)
    analog = convert(layer, replace(RANGED, rows=None), chip=0)
    with digital_products(analog):
        assert torch.equal(analog(x), layer(x))
    assert not torch.equal(analog(x), layer(x))


def test_half_batch_reads_the_same_inputs_twice_in_one_pass():
    model = on(READS)
    seen = calls(model)
    total = Total(robustness=(HalfBatch(),))
    total(model, (X, Y))
    assert seen == [(12, 6)]
    assert float(total.logs["HalfBatch"]) > 1e-6
    with reads(model, "off"):
        total(model, (X[:7], Y[:7]))
        assert seen[-1] == (6, 6)
        assert float(total.logs["HalfBatch"]) == 0
        assert torch.allclose(total.logs["task"], cross_entropy(model, (X[:3], Y[:3])))


def test_half_batch_does_not_see_what_a_chip_has_in_both_halves():
    assert float(value(HalfBatch(), on(STATIC))) == pytest.approx(0, abs=1e-14)


def test_robustness_refuses_what_is_no_batch():
    for term in (HalfBatch(), Divergence()):
        total = Total(lambda m, b: m(X).sum(), robustness=(term,))
        with pytest.raises(ValueError, match=rf"^{term.name}: a batch is \(inputs, targets\), both tensors; a dict came$"):
            total(on(READS), {"x": X})
    with pytest.raises(ValueError, match=r"^HalfBatch: a batch of 1 has no two halves$"):
        Total(robustness=(HalfBatch(),))(on(READS), (X[:1], Y[:1]))


def test_predictions_are_one_tensor():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ValueError, match=r"^HalfBatch: predictions are one tensor; the model gave a tuple$"):
        Total(lambda m, b: m(b[0])[0].sum(), robustness=(HalfBatch(),))(Pair(6, 3).double(), (X, Y))


# ------------------------------------------------------------------------------------------------------------- distillation


def test_distillation_is_shared_between_labels_and_teacher():
    model, teacher = network(), network(nn.ReLU())
    total = Total(distillation=Distillation(temperature=3.0, share=0.6), teacher=teacher)
    loss = total(model, (X, Y))
    own = model(X).detach()
    soft = F.kl_div((own / 3).log_softmax(1), (teacher(X).detach() / 3).softmax(1), reduction="batchmean")
    assert float(loss.detach()) == pytest.approx(float(0.4 * F.cross_entropy(own, Y) + 0.6 * 9 * soft), rel=1e-12)
    assert float(total.logs["Distillation"]) == pytest.approx(float(9 * soft), rel=1e-12)
    assert torch.equal(total.logs["task"], cross_entropy(model, (X, Y)))


def test_the_teacher_stays_what_it_was():
    teacher = network(nn.Dropout(0.9)).train()
    total = Total(distillation=Distillation(), teacher=teacher)
    model = network(nn.Dropout(0.9)).eval()
    assert float(total(model, (X, Y)).isfinite())
    assert float(total.logs["Distillation"]) == pytest.approx(0, abs=1e-14)  # its dropout is off
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        teacher[0].weight.zero_()  # what is trained on is not the teacher any more
    total(model, (X, Y)).backward()
    assert float(total.logs["Distillation"]) == pytest.approx(0, abs=1e-14)
    assert all(p.grad is None for p in [*teacher.parameters(), *total.teacher.parameters()])


def test_distillation_and_teacher_go_together():
    for given in ({"distillation": Distillation()}, {"teacher": network()}):
        with pytest.raises(ValueError, match=r"^Total: distillation and teacher go together"):
            Total(**given)
    with pytest.raises(ValueError, match=r"^Distillation: the teacher gives scores \(12, 6\), the model \(12, 3\)$"):
        Total(distillation=Distillation(), teacher=nn.Tanh())(network(), (X, Y))


# ------------------------------------------------------------------------------------------------------------- the total

EVERY = (
    WeightPrecision(),
    WeightRange(),
    SignalRange(),
    Sparsity(),
    ReadEnergy(),
    Alignment(),
    WriteRegularity(),
    Divergence(),
    HalfBatch(),
)
every_term = pytest.mark.parametrize("term", EVERY, ids=lambda t: t.name)


def test_the_total_is_the_sum_of_its_parts():
    model = on(RANGED)
    total = Total(
        hardware=EVERY[:7],
        robustness=EVERY[7:],
        lambda_h=0.3,
        lambda_r=0.7,
        distillation=Distillation(share=0.25),
        teacher=network(),
        written={name: 2 * w for name, w in weights(model).items()},
    )
    loss = total(model, (X, Y))
    logs = total.logs
    assert list(logs) == ["task", "Distillation", *(term.name for term in EVERY), "total"]
    expected = 0.75 * logs["task"] + 0.25 * logs["Distillation"]
    expected += 0.3 * sum(t.strength * logs[t.name] for t in EVERY[:7]) + 0.7 * sum(t.strength * logs[t.name] for t in EVERY[7:])
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(logs["total"], loss)
    assert not any(x.requires_grad for x in logs.values())


def test_without_terms_it_is_the_task_and_sets_no_hook():
    model, hooks = on(STATIC), []

    def task(m: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hooks.append([len(module._forward_hooks) for module in m.modules()])
        return cross_entropy(m, batch)

    assert torch.equal(Total(task)(model, (X, Y)), cross_entropy(model, (X, Y)))
    Total(task, hardware=(WeightPrecision(), WeightRange()))(model, (X, Y))
    Total(task, hardware=(Sparsity(), Alignment()))(model, (X, Y))
    assert hooks == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


@every_term
def test_no_hook_outlives_a_call_even_one_that_raises(term):
    def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        model(batch[0])
        raise KeyboardInterrupt

    for task in (cross_entropy, broken):
        model = on(RANGED)
        total = Total(task, hardware=(term,), written=weights(model))
        if task is broken:
            with pytest.raises(KeyboardInterrupt):
                total(model, (X, Y))
        else:
            total(model, (X, Y))
        assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("term", EVERY[:7], ids=lambda t: t.name)
def test_terms_of_hardware_need_no_further_pass(term):
    model = on(RANGED)
    seen = calls(model)
    total = Total(hardware=(term,), written=weights(model))
    total(model, (X, Y))
    assert len(seen) == 1


@every_term
def test_a_model_trains_under_every_term(term):
    torch.manual_seed(0)
    model = on(RANGED)
    total = Total(hardware=(replace(term, strength=0.1),), written=weights(model))
    losses = [float(step.loss) for step in steps(model, [(X, Y)] * 60, total, torch.optim.Adam(model.parameters(), 0.02))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("term", [WeightPrecision(), Sparsity(share=1.0), ReadEnergy(share=1.0)], ids=lambda t: t.name)
def test_training_on_a_term_alone_lowers_it(term):
    torch.manual_seed(0)
    model = on(RANGED)
    total = Total(lambda m, b: 0 * m(b[0]).sum(), hardware=(term,))
    done = [float(step.loss) for step in steps(model, [(X, Y)] * 40, total, torch.optim.Adam(model.parameters(), 0.01))]
    assert done[-1] < 0.95 * done[0]


def test_the_total_has_the_gradient_of_finite_differences():
    """On noiseless hardware whose function is smooth, with terms that hold no yardstick."""
    model, teacher = on(IDEAL), network(nn.Sigmoid())
    written = {name: w + 0.1 for name, w in weights(model).items()}
    terms = (Sparsity(share=1.0), WriteRegularity())
    rest = (Divergence(reference="noisy", detached=False, between=JS()), HalfBatch(between=MSE()))
    total = Total(hardware=terms, robustness=rest, distillation=Distillation(), teacher=teacher, written=written)

    names = [name.rpartition(".") for name, _ in model.named_parameters()]

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        for (layer, _, name), p in zip(names, parameters, strict=True):
            model.get_submodule(layer)._parameters[name] = p
        return total(model, (X[:4], Y[:4]))

    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in model.parameters()])


def test_terms_are_data():
    for term in (*EVERY, Distillation(), KL()):
        assert replace(term) == term
        assert hash(replace(term)) == hash(term)
    assert WeightPrecision(bits=3) != WeightPrecision(bits=4)
    assert {f.name for f in fields(Divergence())} == {"strength", "between", "draws", "reference", "detached"}
    for wrong in (
        lambda: WeightPrecision(bits=1),
        lambda: WeightRange(limit=0.0),
        lambda: Sparsity(strength=-1.0),
        lambda: Alignment(share=0.0),
        lambda: Divergence(reference="clean"),
        lambda: Divergence(draws=0),
        lambda: Distillation(share=1.5),
        lambda: Distillation(temperature=math.nan),
    ):
        with pytest.raises(ValueError, match=r"^\w+\.\w+ = "):
            wrong()


def test_what_is_no_term_is_refused():
    with pytest.raises(
        ValueError, match=r"^Total: hardware = WeightPrecision\(.*\): terms in a tuple, as in \(WeightPrecision\(bits=4\),\)$"
    ):
        Total(hardware=WeightPrecision())
    with pytest.raises(ValueError, match=r"^Total: robustness = "):
        Total(robustness=(HalfBatch,))
    with pytest.raises(ValueError, match=r"^Total: two terms WeightPrecision, which would be logged as one; every term once$"):
        Total(hardware=(WeightPrecision(bits=4), WeightPrecision(bits=2)))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^Total: lambda_h = .*: a finite number from 0 on$"):
            Total(lambda_h=wrong)


def test_a_term_of_ones_own_is_a_class():
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Quiet(OfSignals):
        def of(self, layer: Analog, x: torch.Tensor, y: torch.Tensor, *how: object) -> torch.Tensor:
            return y.square().mean()

    @dataclass(frozen=True, kw_only=True)
    class Confident(Term):
        def value(self, done: Pass) -> torch.Tensor:
            assert isinstance(done.model, nn.Module)
            return torch.zeros(())

    total = Total(hardware=(Quiet(share=1.0), Confident()))
    total(on(IDEAL), (X, Y))
    assert float(total.logs["Quiet"]) > 0


def test_terms_and_sharpness_work_together_on_a_shipped_profile():
    torch.manual_seed(0)
    model = convert(network(nn.BatchNorm1d(8), nn.ReLU()), replace(load_profile("hwa"), input_range=Fixed(value=3.0)), chip=None).train()
    total = Total(hardware=(WeightPrecision(), Sparsity()), robustness=(Divergence(), HalfBatch()))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = [float(s.loss) for s in steps(model, [(X, Y)] * 30, total, optimizer, gradient=SharpnessAware(radius=0.05))]
    assert sum(losses[-5:]) < sum(losses[:5])
    program(model, 3)
