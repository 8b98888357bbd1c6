import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import analog_layers, calibrate_ranges, convert, reads
from galvanic.physics import Conditions
from galvanic.profile import load_profile
from galvanic.train import NonFinite, Step, backprop, cross_entropy, steps

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
NAN, INF = math.nan, math.inf


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *(middle or (nn.ReLU(),)), nn.Linear(8, 2))


def on_chips(profile: str = "pcm") -> nn.Module:
    return calibrate_ranges(convert(network(), load_profile(profile), chip=None), [X])


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a | b)


# ------------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("model", [network, on_chips, lambda: on_chips("hwa")], ids=["digital", "pcm", "hwa"])
def test_a_model_learns(model):
    model = model()
    losses = [float(step.loss) for step in steps(model, [(X, Y)] * 60, cross_entropy, sgd(model, 0.5))]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_step_says_what_was_done():
    model, batches = network(), [(X[:4], Y[:4]), (X[4:], Y[4:])]
    before = state(model)
    loop = steps(model, iter(batches), cross_entropy, sgd(model))
    first = next(loop)
    assert isinstance(first, Step)
    assert (first.index, first.loss.requires_grad) == (0, False)
    assert first.batch is batches[0]
    clean = network()
    clean.load_state_dict(before)
    assert torch.equal(first.loss, cross_entropy(clean, batches[0]).detach())
    assert not equal(before, state(model))  # just done, not about to be
    assert [step.index for step in loop] == [1]


def test_digital_steps_are_those_of_the_plain_loop():
    model, plain = network(), network()
    list(steps(model, [(X, Y)] * 5, cross_entropy, torch.optim.Adam(model.parameters())))
    optimizer = torch.optim.Adam(plain.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(plain, (X, Y)).backward()
        optimizer.step()
    assert equal(state(model), state(plain))


def test_the_mode_stays_the_callers():
    for mode in (True, False):
        model = network(nn.Dropout(), nn.BatchNorm1d(8)).train(mode)
        next(steps(model, [(X, Y)], cross_entropy, sgd(model)))
        assert all(module.training is mode for module in model.modules())


def written_weights(model: nn.Module) -> list[torch.Tensor]:
    """What the chips of this step compute of the same weights: their outputs without noise of reads."""
    with reads(model, "off"), torch.no_grad():
        return [layer(torch.eye(layer.weight.shape[1])) for layer in analog_layers(model).values()]


def test_every_step_is_on_a_fresh_anonymous_chip():
    model = on_chips()
    seen = []
    for _ in steps(model, [(X, Y)] * 4, cross_entropy, sgd(model, 0.0)):
        assert all(layer.chip.number is None for layer in analog_layers(model).values())
        seen.append(written_weights(model)[0])
    assert len({tuple(w.flatten().tolist()) for w in seen}) == 4


def test_given_chips_are_taken_in_turn_and_written_anew_each_time():
    model = on_chips()
    seen = []
    for _ in steps(model, [(X, Y)] * 5, cross_entropy, sgd(model, 0.0), chips=[3, 8]):
        seen.append({(layer.chip.number, layer.chip.write) for layer in analog_layers(model).values()})
    assert seen == [{(3, 0)}, {(8, 0)}, {(3, 1)}, {(8, 1)}, {(3, 2)}]


def test_a_training_that_goes_on_counts_on():
    model = on_chips()
    seen = [(step.index, model[0].chip) for step in steps(model, [(X, Y)] * 3, cross_entropy, sgd(model, 0.0), chips=[3, 8], first=3)]
    assert [(index, chip.number, chip.write) for index, chip in seen] == [(3, 8, 1), (4, 3, 2), (5, 8, 2)]
    with pytest.raises(ValueError, match="the batches are empty"):
        list(steps(model, [], cross_entropy, sgd(model), first=3))


def test_given_chips_repeat_the_training_to_the_bit():
    def trained(chips: list[int]) -> dict[str, torch.Tensor]:
        profile = replace(load_profile("pcm"), output=())  # no noise of reads
        model = calibrate_ranges(convert(network(), profile, chip=None), [X])
        list(steps(model, [(X, Y)] * 4, cross_entropy, sgd(model), chips=chips))
        return state(model)

    assert equal(trained([1, 2]), trained([1, 2]))
    assert not equal(trained([1, 2]), trained([1, 3]))


def test_no_chips_at_all_are_refused():
    model = on_chips()
    with pytest.raises(ValueError, match="chips is empty; None"):
        next(steps(model, [(X, Y)], cross_entropy, sgd(model), chips=[]))


def test_a_step_begins_at_age_zero_and_keeps_the_other_conditions():
    model = on_chips()
    for layer in analog_layers(model).values():
        layer.place(layer.chip, Conditions(age_s=1e6, temperature_K=350.0, noise_level=0.5))
    next(steps(model, [(X, Y)], cross_entropy, sgd(model)))
    assert all(layer.conditions == Conditions(temperature_K=350.0, noise_level=0.5) for layer in analog_layers(model).values())


def test_a_gradient_of_ones_own_is_called_with_everything_and_used():
    model = network()
    before, calls = state(model), []

    def ones(model, batch, objective):
        calls.append((batch, objective))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return torch.tensor(7.0)

    batch = (X, Y)
    (step,) = steps(model, [batch], cross_entropy, sgd(model, 0.25), gradient=ones)
    assert calls == [(batch, cross_entropy)]
    assert float(step.loss) == 7.0
    assert all(torch.equal(state(model)[name], before[name] - 0.25) for name in before)


def test_gradients_do_not_add_up_over_steps():
    model = network()
    norms = [float(model[0].weight.grad.norm()) for _ in steps(model, [(X, Y)] * 3, cross_entropy, sgd(model, 0.0))]
    assert norms == [norms[0]] * 3


def test_backprop_returns_the_loss_and_fills_the_gradients():
    model = network()
    loss = backprop(model, (X, Y), cross_entropy)
    assert not loss.requires_grad
    expected = torch.autograd.grad(cross_entropy(model, (X, Y)), list(model.parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_no_batches_are_refused():
    model = network()
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="the batches are empty"):
            list(steps(model, nothing, cross_entropy, sgd(model)))


# ------------------------------------------------------------------------------------------------------------------- not finite


class Times(nn.Module):
    """A layer that multiplies by a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class BadGradient(nn.Module):
    """Finite forwards, infinite backwards."""

    def forward(self, x):
        return x + (x * 0).abs().sqrt().nan_to_num() if x.requires_grad else x


def bad_batch(place: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = X.clone()
    x[place, 3] = value
    return x, Y


def with_bad_parameter() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[2].bias[1] = NAN
    return model


def stopped(model: nn.Module, batches: list, *, objective=cross_entropy, **options) -> str:
    """The message with which training stops; the weights are those of the step before."""
    kept = state(model)
    with pytest.raises(NonFinite) as caught:  # noqa: PT012
        for _ in steps(model, batches, objective, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), **options):
            kept = state(model)
    parameters = {name for name, _ in model.named_parameters()}
    now = state(model)
    assert all(torch.equal(kept[name].nan_to_num(9), now[name].nan_to_num(9)) for name in parameters)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_bad_batch_stops_training_in_its_step_and_is_named(value):
    good = (X, Y)
    message = stopped(network(), [good, good, bad_batch(5, value), good])
    assert message == f"step 2: the batch holds {value} (tensor 0, index [5, 3])"


def test_a_bad_target_is_named_as_well():
    y = torch.randn(12, 2)
    y[4, 1] = NAN
    message = stopped(network(), [(X, y)], objective=lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    assert message == "step 0: the batch holds nan (tensor 1, index [4, 1])"


def test_a_batch_that_is_one_tensor_is_looked_at():
    message = stopped(network(), [bad_batch(1, NAN)[0]], objective=lambda model, batch: model(batch).mean())
    assert message == "step 0: the batch holds nan (tensor 0, index [1, 3])"


def test_a_bad_parameter_is_named():
    assert stopped(with_bad_parameter(), [(X, Y)]) == "step 0: parameter 2.bias is not finite"


def test_the_first_layer_with_a_bad_output_is_named():
    model = network(nn.Sequential(nn.ReLU(), Times(1e38), Times(1e38)))
    assert stopped(model, [(X, Y)]) == "step 0: the output of layer 1.2 (Times) is not finite"


def test_a_bad_analog_layer_is_named():
    model = convert(network(Times(INF)), replace(load_profile("pcm"), output=(), input=()), chip=None)
    assert "step 0: the output of layer 1 (Times) is not finite" in stopped(model, [(X, Y)])


def test_a_bad_gradient_is_named():
    def spoil(model, batch, objective):
        loss = backprop(model, batch, objective)
        model[2].weight.grad[0, 0] = NAN
        return loss

    assert stopped(network(), [(X, Y)], gradient=spoil) == "step 0: the gradient of 2.weight is not finite"


def test_a_bad_gradient_of_backpropagation_is_named_where_it_began():
    """The square root at zero: finite forwards, infinite backwards; what lies before it gets the NaN."""
    model = network()

    def objective(model, batch):
        return model[2](model[0](batch[0]) + (model[0](batch[0]) * 0).abs().sqrt()).mean()

    assert stopped(model, [(X, Y)], objective=objective) == "step 0: the gradient of 0.bias is not finite"


def test_a_bad_loss_of_finite_outputs_is_said_to_be_just_that():
    message = stopped(network(), [(X, Y)], objective=lambda model, batch: model(batch[0]).mean() * 1e30 * 1e30)
    assert message == "step 0: the loss is not finite, every layer's output is"


def test_the_search_looks_at_models_that_take_a_batch_in_another_way():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(Times(INF))

        def forward(self, x, y):
            return self.inner(x + y)

    message = stopped(Pair(), [(X, X)], objective=lambda model, batch: model(*batch).mean())
    assert message.startswith("step 0: ")


def test_large_but_finite_gradients_are_no_reason_to_stop():
    """Their norm overflows float32, they do not."""
    model = network()
    (step,) = steps(model, [(X * 1e25, Y)], lambda model, batch: model(batch[0]).mean(), sgd(model, 1e-30))
    assert step.loss.isfinite()


def test_sparse_and_empty_gradients_are_looked_at():
    def sparse() -> nn.Module:
        model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
        model.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
        return model

    x = torch.randint(0, 5, (12, 2), generator=torch.Generator().manual_seed(0))

    def with_nothing(model, batch):
        return cross_entropy(model, batch) + model.nothing.sum()

    model = sparse()
    assert len(list(steps(model, [(x, Y)], with_nothing, sgd(model)))) == 1

    def spoil(model, batch, objective):
        loss = backprop(model, batch, objective)
        model[0].weight.grad._values()[0, 0] = NAN
        return loss

    model = sparse()
    before = state(model)
    with pytest.raises(NonFinite, match=r"step 0: the gradient of 0\.weight is not finite"):
        list(steps(model, [(x, Y)], cross_entropy, sgd(model), gradient=spoil))
    assert equal(before, state(model))


def test_a_step_without_any_gradient_is_a_step():
    model = network()
    (step,) = steps(model, [(X, Y)], cross_entropy, sgd(model), gradient=lambda model, batch, objective: torch.tensor([2.0]))
    assert step.loss.tolist() == [2.0]
