"""Training with torch's tools: optimizers, checkpointing, hooks, averages, pruning, ties, normed weights, loaders."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from galvanic import convert, load_profile, program, reads, to_digital
from galvanic.nn import Analog


def quiet(model, x):
    with torch.no_grad(), reads(model, "off"):
        return model(x)


def rewritten(model, x):
    """The outputs of a newly converted model with the same weights and ranges on the same chip."""
    layer = next(m for m in model.modules() if isinstance(m, Analog))
    other = convert(to_digital(model), layer.profile, chip=layer.chip.number)
    other.load_state_dict(model.state_dict())
    return quiet(other, x)


def step(model, x, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=10.0),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


def test_every_dense_optimizer_of_torch_stands_in_this_table():
    classes = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    not_dense = {"Optimizer", "SparseAdam", "Muon"}  # the base class; one for sparse gradients; one for matrices alone
    assert classes - not_dense == {name.split()[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_of_every_optimizer_changes_the_weights_and_the_chip_follows(profile, place, optimizer):
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    model = place(nn.Linear(5, 4), profile, x)
    weight, before = model.weight.detach().clone(), quiet(model, x)
    step(model, x, optimizer([p for p in model.parameters() if p.ndim]))
    assert not torch.equal(model.weight, weight)
    after = quiet(model, x)
    assert not torch.equal(after, before)
    assert torch.equal(after, rewritten(model, x))


def test_after_a_step_every_layer_holds_the_new_weights(analog):
    model, x = analog
    quiet(model, x)
    step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(quiet(model, x), rewritten(model, x))


def test_checkpointed_gradients_are_those_of_the_plain_ones_noise_included(analog):
    model, x = analog
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False, preserve_rng_state=True)):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(run(x.requires_grad_()).square().sum(), [x, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_forward_and_backward_hooks_fire_and_may_change_what_passes(analog):
    model, x = analog
    fired = []
    model.register_forward_pre_hook(lambda m, args: fired.append("pre") or (args[0] * 0,))
    model.register_forward_hook(lambda m, args, y: fired.append("forward") or y + 1)
    model.register_full_backward_hook(lambda m, gx, gy: fired.append("backward"))
    with reads(model, "off"):
        y = model(x.requires_grad_())
        still = to_digital(model)(x)
    y.sum().backward()
    assert fired == ["pre", "forward", "pre", "forward", "backward"]
    assert torch.isfinite(y).all()
    assert torch.equal(still[0], still[1])


def test_an_average_of_weights_is_on_the_chip_and_has_the_ranges(analog):
    model, x = analog
    average = AveragedModel(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    average.update_parameters(model)
    assert torch.equal(quiet(average, x), quiet(model, x))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    average.update_parameters(model)
    assert torch.equal(quiet(average.module, x), rewritten(average.module, x))
    assert {k.removeprefix("module.") for k in average.state_dict()} - {"n_averaged"} == set(model.state_dict())


@pytest.mark.parametrize("amount", [0.5])
def test_pruned_weights_stay_zero_under_training_and_the_chip_holds_the_mask(profile, place, amount):
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    model = place(nn.Linear(5, 4), profile, x)
    prune.l1_unstructured(model, "weight", amount)
    mask = model.weight_mask.bool()
    assert mask.sum() == 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        step(model, x, optimizer)
    y = quiet(model, x)
    prune.remove(model, "weight")
    assert (model.weight[~mask] == 0).all()
    assert torch.equal(quiet(model, x), y)
    assert torch.equal(to_digital(model).weight, model.weight)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_weights_stay_tied_through_conversion_training_and_back(profile):
    torch.manual_seed(0)
    x, digital = torch.arange(6), Tied()
    model = convert(digital, profile, chip=3)
    for side in {"input_range", "output_range"} & set(dict(model.head.named_buffers()) | dict(model.head.named_parameters())):
        model.head.set_range(side.split("_")[0], 2.0)
    before = model.embed.weight.detach().clone()
    step(model, x, torch.optim.Adam(model.parameters(), lr=0.1))
    assert not torch.equal(model.embed.weight, before)
    for stage in (model, copy.deepcopy(model), to_digital(model)):
        assert stage.head.weight is stage.embed.weight
        assert torch.equal(stage.head.weight, model.embed.weight)
    assert torch.equal(digital.embed.weight, before)


NORMS = {
    "weight norm by hook": nn.utils.weight_norm,
    "spectral norm by hook": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
normed = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
old = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


@pytest.mark.parametrize("norm", [NORMS[name] for name in ("weight norm", "spectral norm", "orthogonal")])
def test_a_normed_layer_is_converted_trained_and_brought_back(norm):
    torch.manual_seed(0)
    x, digital = torch.randn(8, 5), norm(nn.Linear(5, 4)).eval()
    model = convert(digital, load_profile("ideal"), chip=3)
    assert isinstance(model, Analog)
    assert torch.equal(model(x), digital(x))
    step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not torch.allclose(model(x), digital(x))
    assert torch.equal(to_digital(model)(x), model(x))


@old
def test_a_norm_by_hook_which_torch_cannot_copy_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"the model cannot be copied .* torch.nn.utils.parametrizations do not"):
        convert(nn.utils.weight_norm(nn.Linear(5, 4)), load_profile("ideal"), chip=3)


@old
@normed
def test_an_analog_layer_is_normed_and_the_chip_follows_its_weight(norm, place):
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    model = norm(place(nn.Linear(5, 4), load_profile("pcm"), x))
    before = quiet(model.eval(), x)
    step(model, x, torch.optim.SGD(model.parameters(), lr=0.5))
    after = quiet(model, x)
    assert not torch.equal(after, before)
    ranges = {name: value for name, value in model.state_dict().items() if name.endswith("_range")}
    plain = convert(nn.Linear(5, 4), load_profile("pcm"), chip=3)
    plain.load_state_dict({"weight": model.weight, "bias": model.bias, **ranges})
    torch.testing.assert_close(after, quiet(plain, x))


def test_a_loader_with_workers_feeds_an_analog_model(place):
    torch.manual_seed(0)
    x, y = torch.randn(16, 5), torch.randn(16, 4)
    model = place(nn.Linear(5, 4), load_profile("pcm"), x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = 0
    for inputs, targets in DataLoader(TensorDataset(x, y), batch_size=4, num_workers=2):
        program(model)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        seen += len(inputs)
    assert seen == 16
    assert torch.equal(quiet(program(model, 3), x), rewritten(model, x))
