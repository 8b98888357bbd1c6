import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from galvanic.nn import calibrate_ranges, convert, reads, unfused
from galvanic.physics import DifferentialPair, Gaussian, Nonlinearity, Quantize, WireResistance
from galvanic.profile import Profile
from galvanic.ranges import Learned
from galvanic.studies.sharpness import ascent_direction, loss_along, random_direction, top_eigenvalue
from galvanic.train import cross_entropy


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3


class Quadratic(nn.Module):
    """Half of p' A p, whose Hessian is A."""

    def __init__(self, *eigenvalues: float) -> None:
        super().__init__()
        torch.manual_seed(2)
        q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64)).Q
        self.register_buffer("a", q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T)
        self.p = nn.Parameter(torch.randn(len(eigenvalues), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.p @ self.a @ self.p / 2


def itself(model: nn.Module, batch: object) -> Tensor:
    return model()


def dense_hessian(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """By torch's own double differentiation of the loss as a function of one vector."""
    names = [name for name, _ in model.named_parameters()]
    parts = [p.detach() for _, p in model.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in parts])
        given = {n: f.view_as(p) for n, f, p in zip(names, pieces, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, given, (batch[0],)), batch[1])

    return torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in parts]))


def test_the_top_eigenvalue_is_that_of_the_dense_hessian(net, batch):
    exact = torch.linalg.eigvalsh(dense_hessian(net, batch))
    found = top_eigenvalue(net, [batch], cross_entropy, tolerance=1e-8)
    assert found.value == pytest.approx(float(exact[-1]), rel=1e-10)
    assert found.converged
    assert found.products < len(exact)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 8])
def test_an_eigenvalue_that_has_not_converged_is_a_lower_bound_with_an_eigenvalue_within_its_residual(net, batch, iterations):
    exact = torch.linalg.eigvalsh(dense_hessian(net, batch))
    found = top_eigenvalue(net, [batch], cross_entropy, iterations=iterations, tolerance=1e-12)
    assert not found.converged
    assert found.products == iterations
    assert found.value <= float(exact[-1]) + 1e-12
    assert float((exact - found.value).abs().min()) <= found.residual + 1e-12


@pytest.mark.parametrize(
    ("eigenvalues", "top"),
    [
        ((1.0, -10.0, 3.0), 3.0),
        ((-1.0, -4.0), -1.0),
        ((5.0, -5.0, 0.0, 0.0), 5.0),
        ((2.0,), 2.0),
        ((7.0, 7.0, 7.0), 7.0),
        ((0.0, 0.0), 0.0),
    ],
)
def test_it_is_the_largest_one_and_not_the_largest_in_magnitude(eigenvalues, top):
    found = top_eigenvalue(Quadratic(*eigenvalues), [None], itself)
    assert found.value == pytest.approx(top, abs=1e-9)
    assert found.converged


def test_a_linear_loss_has_no_curvature(net, batch):
    linear = nn.Linear(4, 1).double()
    assert top_eigenvalue(linear, [batch], lambda m, b: m(b[0]).mean()).value == 0


def test_the_hessian_is_the_mean_over_the_batches(net, batch):
    x, y = batch
    parts = [(x[:6], y[:6]), (x[6:], y[6:])]
    whole, halves = (top_eigenvalue(net, b, cross_entropy, tolerance=1e-9).value for b in ([batch], iter(parts)))
    assert halves == pytest.approx(whole, rel=1e-9)


SMOOTH = Profile(
    name="smooth",
    input=(Nonlinearity(third=-0.1),),
    weight=(Gaussian(std=0.1, per="chip"),),
    output=(Nonlinearity(third=-0.1), Gaussian(std=0.5)),
    encoding=DifferentialPair(),
)


def test_a_model_on_a_chip_has_the_curvature_of_that_chip_without_noise_per_read(net, batch):
    found = []
    for chip in (0, 1):
        model = convert(net, SMOOTH, chip=chip)
        with reads(model, "off"), unfused():
            exact = torch.linalg.eigvalsh(dense_hessian(model, batch))
        found.append(top_eigenvalue(model, [batch], cross_entropy, tolerance=1e-8).value)
        assert found[-1] == pytest.approx(float(exact[-1]), rel=1e-9)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_converters_with_learned_ranges_have_second_derivatives_here(net, batch):
    """Their fused passes refuse them."""
    converters = {"input": (Quantize(bits=6),), "output": (Gaussian(std=0.02), Quantize(bits=6))}
    model = convert(net, Profile(name="p", **converters, input_range=Learned(), output_range=Learned()), chip=0)
    calibrate_ranges(model, [batch])
    found = top_eigenvalue(model, [batch], cross_entropy)
    assert found.converged
    assert found.value > 0


def test_attention_has_second_derivatives_here():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 3))
    batch = torch.randn(6, 3, 8), torch.arange(6) % 3
    digital = top_eigenvalue(model, [batch], cross_entropy, tolerance=1e-2)
    analog = top_eigenvalue(convert(model, Profile(name="p", output=(Gaussian(std=0.02),)), chip=0), [batch], cross_entropy, tolerance=1e-2)
    assert analog.value == pytest.approx(digital.value, rel=1e-3)


def test_physics_with_one_derivative_only_is_refused(net, batch):
    model = convert(net, Profile(name="p", encoding=DifferentialPair(), product=WireResistance(on_ohm=1e4, row_ohm=1.0)), chip=0)
    with pytest.raises(RuntimeError, match="second derivative of WireResistance is not there"):
        top_eigenvalue(model, [batch], cross_entropy)


def test_everything_leaves_the_model_and_the_global_stream_as_they_were(batch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    model = convert(net, SMOOTH, chip=0).train()
    cross_entropy(model, batch).backward()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    stream = torch.get_rng_state()
    top_eigenvalue(model, [batch], cross_entropy, iterations=3)
    for direction in (random_direction(model, 0), ascent_direction(model, [batch], cross_entropy)):
        loss_along(model, batch, cross_entropy, direction, [0.0, 1.0])
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert all(m.training for m in model.modules())
    assert {layer.reads for layer in model.modules() if hasattr(layer, "reads")} == {"fresh"}


def test_every_filter_of_a_random_direction_has_the_norm_of_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    direction = random_direction(model, 5)
    assert direction.keys() == {"0.weight", "3.weight"}
    for name, d in direction.items():
        w = dict(model.named_parameters())[name]
        assert torch.allclose(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
    again, other = random_direction(model, 5), random_direction(model, 6)
    assert torch.equal(direction["0.weight"], again["0.weight"])
    assert not torch.allclose(direction["0.weight"], other["0.weight"])


def test_a_direction_of_ascent_is_the_gradient_of_unit_length(net, batch):
    direction = ascent_direction(net, [batch], cross_entropy)
    cross_entropy(net, batch).backward()
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    for name, p in net.named_parameters():
        assert torch.allclose(direction[name], p.grad / norm)
    r = 1e-5
    low, high = loss_along(net, batch, cross_entropy, direction, [-r, r])
    assert (high["loss"] - low["loss"]) / (2 * r) == pytest.approx(float(norm), rel=1e-6)


def test_the_second_difference_along_a_direction_is_at_most_the_top_eigenvalue(net, batch):
    top = top_eigenvalue(net, [batch], cross_entropy).value
    for number in range(5):
        left, middle, right = loss_along(net, batch, cross_entropy, random_direction(net, number), [-1e-3, 0.0, 1e-3])
        curvature = (left["loss"] - 2 * middle["loss"] + right["loss"]) / right["distance"] ** 2
        assert curvature <= top + 1e-6


def test_the_loss_along_a_direction_is_that_of_the_moved_weights(net, batch):
    model = Quadratic(1.0, 2.0)
    d = torch.tensor([3.0, 4.0], dtype=torch.float64)
    rows = loss_along(model, None, itself, {"p": d}, [0.0, 0.5, -1.0])
    assert [(r["radius"], r["distance"]) for r in rows] == [(0.0, 0.0), (0.5, 2.5), (-1.0, -5.0)]
    for row in rows:
        moved = model.p.detach() + row["radius"] * d
        assert row["loss"] == pytest.approx(float(moved @ model.a @ moved / 2))


def test_an_analog_model_is_rewritten_at_every_radius(net, batch):
    model = convert(net, SMOOTH, chip=0)
    direction = random_direction(model, 0)
    for row in loss_along(model, batch, cross_entropy, direction, [0.0, 0.3]):
        moved = copy.deepcopy(net)
        for name, d in direction.items():
            moved.get_parameter(name).data += row["radius"] * d
        written = convert(moved, SMOOTH, chip=0).eval()
        with reads(written, "off"), torch.no_grad():
            assert row["loss"] == pytest.approx(float(cross_entropy(written, batch)), rel=1e-9)


def test_what_has_no_curvature_or_course_is_refused(net, batch):
    x, y = batch
    with pytest.raises(ValueError, match="batches are empty"):
        top_eigenvalue(net, [], cross_entropy)
    with pytest.raises(ValueError, match="batches are empty"):
        ascent_direction(net, [], cross_entropy)
    with pytest.raises(ValueError, match="second derivatives of the loss are not finite"):
        top_eigenvalue(net, [(x * math.nan, y)], cross_entropy)
    with pytest.raises(ValueError, match="norm nan"):
        ascent_direction(net, [(x * math.nan, y)], cross_entropy)
    with pytest.raises(ValueError, match="norm 0"):
        ascent_direction(net, [batch], lambda m, b: 0 * m(b[0]).sum())
    with pytest.raises(ValueError, match="a tensor of one number"):
        top_eigenvalue(net, [batch], lambda m, b: m(b[0]))
    with pytest.raises(ValueError, match="no trainable parameter"):
        top_eigenvalue(nn.Tanh(), [batch], cross_entropy)
    with pytest.raises(ValueError, match="iterations = 0"):
        top_eigenvalue(net, [batch], cross_entropy, iterations=0)
    ones = torch.ones(5, 4, dtype=torch.float64)
    for direction in ({"0.wait": ones}, {"0.weight": ones.T}, {"0.weight": ones * math.inf}):
        with pytest.raises(ValueError, match=r"the direction's '0\.w"):
            loss_along(net, batch, cross_entropy, direction, [0.1])
    for radii in ([], [math.nan]):
        with pytest.raises(ValueError, match="radii"):
            loss_along(net, batch, cross_entropy, {"0.weight": ones}, radii)
