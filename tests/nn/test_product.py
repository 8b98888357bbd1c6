"""The signal path against naive simulations written here."""

import itertools

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn

from galvanic import calibrate_ranges, convert, load_profile, program, reads
from galvanic.physics import DifferentialPair, Gaussian, Quantize
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, Dynamic, Fixed, Learned, MinimumError


def quantised(x, bits):
    n = 2 ** (bits - 1) - 1
    return (x.clamp(-1, 1) * n).round() / n


def naive_linear(x, weight, bias, *, rows, bits, r_y):
    """Tile by tile, vector by vector: dynamic inputs, fixed outputs."""
    scale = weight.abs().amax(1)
    tiles = -(-weight.shape[1] // rows)
    edges = [round(k * weight.shape[1] / tiles) for k in range(tiles + 1)]
    out = []
    for v in x:
        r = v.abs().max()
        u = quantised(v / r, bits)
        y = sum(quantised((weight / scale[:, None])[:, a:b] @ u[a:b] / r_y, bits) * r_y for a, b in itertools.pairwise(edges))
        out.append(y * scale * r + bias)
    return torch.stack(out)


COARSE = Profile(name="coarse", input=(Quantize(bits=5),), output=(Quantize(bits=5),), rows=4, output_range=Fixed(value=3.0))


def test_a_tiled_linear_layer_is_the_naive_simulation():
    torch.manual_seed(0)
    layer, x = nn.Linear(10, 6).double(), torch.randn(7, 10).double()
    expected = naive_linear(x, layer.weight, layer.bias, rows=4, bits=5, r_y=3.0)
    torch.testing.assert_close(convert(layer, COARSE, chip=0)(x), expected, rtol=1e-12, atol=1e-12)


CONVS = [
    nn.Conv1d(6, 4, 3, padding=1),
    nn.Conv1d(6, 4, 3, padding=2, dilation=2, stride=2, bias=False),
    nn.Conv2d(6, 4, 3, padding="same"),
    nn.Conv2d(6, 4, (3, 1), padding=(1, 0), padding_mode="replicate"),
    nn.Conv2d(6, 4, 3, groups=2, padding=1, padding_mode="circular"),
    nn.Conv2d(6, 6, 3, groups=6, padding=1, stride=2),
    nn.Conv3d(6, 4, 2, dilation=2, padding="same", padding_mode="reflect"),
]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_tiled_convolution_is_the_sum_of_digitised_convolutions_over_its_channels(conv):
    torch.manual_seed(0)
    conv = conv.double()
    k = conv.weight[0, 0].numel()
    profile = Profile(
        name="c",
        input=(Quantize(bits=5),),
        output=(Quantize(bits=5),),
        rows=2 * k,
        input_range=Fixed(value=2.0),
        output_range=Fixed(value=3.0),
    )
    x = torch.randn(2, 6, *[7] * (conv.weight.ndim - 2)).double()
    scale = conv.weight.abs().flatten(1).amax(1).view(-1, *[1] * (conv.weight.ndim - 1))
    u = quantised(x / 2.0, 5)
    channels = conv.weight.shape[1]
    tiles = -(-channels // 2)
    edges = [round(t * channels / tiles) for t in range(tiles + 1)]
    total = 0
    for a, b in itertools.pairwise(edges):  # the same layer with all other channels' weights at zero
        masked = torch.zeros_like(conv.weight)
        masked[:, a:b] = (conv.weight / scale)[:, a:b]
        total = total + quantised(conv._conv_forward(u, masked, None) / 3.0, 5) * 3.0
    expected = total * scale.view(-1, *[1] * (conv.weight.ndim - 2)) * 2.0
    if conv.bias is not None:
        expected = expected + conv.bias.view(-1, *[1] * (conv.weight.ndim - 2))
    torch.testing.assert_close(convert(conv, profile, chip=0)(x), expected, rtol=1e-12, atol=1e-12)


def test_a_convolution_is_the_linear_layer_of_its_patches():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3).double()
    linear = nn.Linear(27, 5).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    profile = Profile(
        name="p", input=(Quantize(bits=6),), output=(Quantize(bits=6),), input_range=Fixed(value=2.0), output_range=Fixed(value=4.0)
    )
    x = torch.randn(2, 3, 6, 6).double()
    patches = F.unfold(x, 3).transpose(1, 2)  # (batch, positions, 27)
    y = convert(linear, profile, chip=0)(patches).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(convert(conv, profile, chip=0)(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("encoding", [DifferentialPair(), DifferentialPair(g_min=0.2)])
def test_lumped_read_noise_of_cells_has_the_moments_of_the_naive_simulation(encoding):
    """Mean and variance of the output over reads against noise drawn for every cell. With n draws a variance is known to sqrt(2 / n)."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 4, bias=False).double()
    profile = Profile(name="cells", weight=(Gaussian(std=0.05),), encoding=encoding, rows=5)
    analog = convert(layer, profile, chip=0)
    n = 40_000
    x = torch.randn(12).double()
    with torch.no_grad():
        y = analog(x.expand(n, 12))
        scale = layer.weight.abs().amax(1, keepdim=True)
        g = encoding.encode(layer.weight / scale)
        naive = torch.einsum("nij,j->ni", encoding.decode(g.unsqueeze(1) + 0.05 * torch.randn(2, n, 4, 12).double()) * scale, x)
    tolerance = 5 * (2 * 2 / n) ** 0.5  # both variances are estimates
    assert (y.var(0) / naive.var(0) - 1).abs().max() < tolerance
    assert (y.mean(0) - layer(x)).abs().max() < 5 * (naive.var(0).max() / n).sqrt()


def test_lumped_read_noise_is_wrong_where_clipping_at_zero_matters_and_says_so():
    """The shortcut leaves out the clamp: at w = 0 the naive pair rectifies its noise, whose variance then is 1/2 - 1/(2 pi) each."""
    n = 20_000
    z = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
    rectified = (0.05 * z).clamp(min=0)
    naive = (rectified[0] - rectified[1]).var()
    assert float(naive / (2 * 0.05**2)) == pytest.approx(0.5 - 0.5 / torch.pi, rel=0.05)
    assert "negligible" in (Profile.__doc__ or "")


def test_lumped_read_noise_of_a_convolution_grows_with_the_energy_of_the_patch():
    conv = nn.Conv1d(1, 1, 3, bias=False)
    analog = convert(conv, Profile(name="cells", weight=(Gaussian(std=0.1),)), chip=0)
    x = torch.zeros(20_000, 1, 6)
    x[:, :, 3:] = 1.0
    with torch.no_grad():
        std = analog(x).std(0).squeeze()
    expected = 0.1 * conv.weight.detach().abs().max() * torch.tensor([0, 1, 2, 3]).sqrt()
    assert (std - expected).abs().max() < 5 * expected.max() / (2 * 20_000) ** 0.5


def test_the_scale_is_per_column_or_per_layer_and_follows_the_weight():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]))
    column = convert(layer, Profile(name="c", weight=(Quantize(bits=8),)), chip=0)
    per_layer = convert(layer, Profile(name="l", weight=(Quantize(bits=8),), weight_scale="layer"), chip=0)
    assert column.scale().flatten().tolist() == [2.0, 2.0]  # a column of zeros has the scale of the layer
    assert per_layer.scale().flatten().tolist() == [2.0, 2.0]
    with torch.no_grad():
        assert column(torch.ones(3)).tolist() == pytest.approx([-1.0, 0.0], abs=0.02)
        column.weight.mul_(3)
        assert column(torch.ones(3)).tolist() == pytest.approx([-3.0, 0.0], abs=0.06)


def test_gradients_of_weights_and_inputs_are_those_of_the_digital_layer_where_nothing_disturbs():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(5, 6, dtype=torch.double, requires_grad=True)
    profile = Profile(
        name="fine",
        input=(Quantize(bits=24),),
        weight=(Quantize(bits=24),),
        output=(Quantize(bits=24),),
        output_range=Fixed(value=20.0),
        encoding=DifferentialPair(),
    )
    analog = convert(layer, profile, chip=0)
    for model in (layer, analog):
        model.zero_grad()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias])
    found = torch.autograd.grad(analog(x).square().sum(), [x, analog.weight, analog.bias])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_zero_weight_on_a_differential_pair_can_be_learned():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    analog = convert(layer, load_profile("pcm"), chip=0)
    calibrate_ranges(analog, [torch.ones(4, 2)])
    analog(torch.ones(1, 2)).sum().backward()
    assert analog.weight.grad.abs().min() > 0.1


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_converters_of_a_chip_differ_by_column_and_tile(tiles):
    """An effect that stacks two draws, per chip: every column of every tile has its own fixed error."""
    profile = Profile(name="adc", output=(Quantize(bits=8, error_std=0.1, per="chip"),), output_range=Fixed(value=2.0), rows=8 // tiles)
    for layer, x in ((nn.Linear(8, 3, bias=False), torch.zeros(5, 8)), (nn.Conv1d(8, 3, 1, bias=False), torch.zeros(5, 8, 6))):
        analog = convert(layer, profile, chip=0)
        errors = analog(x) / (2.0 * analog.scale().reshape(-1, *[1] * (x.ndim - 2)))
        expected = 0.1 * sum(analog._draws["output", 0][1, tile] for tile in range(tiles))
        torch.testing.assert_close(errors, expected.expand_as(errors))
        assert len(set(errors[0].flatten().tolist())) == 3


# -- ranges ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_", [Calibrated(), MinimumError(), Learned()])
def test_a_range_from_data_must_be_calibrated_before_use(range_):
    analog = convert(nn.Sequential(nn.Linear(2, 2)), Profile(name="p", input=(Quantize(bits=8),), input_range=range_), chip=0)
    with pytest.raises(RuntimeError, match=r"^0: its input range is not calibrated yet; run calibrate_ranges"):
        analog(torch.ones(1, 2))
    calibrate_ranges(analog, [torch.ones(1, 2)])
    assert analog(torch.ones(1, 2)).isfinite().all()


def test_calibrated_ranges_span_the_largest_signal_and_do_not_depend_on_the_chip():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), torch.randn(50, 6)
    chips = [calibrate_ranges(convert(layer, load_profile("pcm"), chip=c), x.split(10)) for c in (0, 1)]
    assert chips[0].input_range == x.abs().max()
    w = layer.weight.detach()
    cells = (x / x.abs().max()) @ (w / w.abs().amax(1, keepdim=True)).T
    assert float(chips[0].output_range) == pytest.approx(float(cells.abs().max()), rel=1e-6)
    assert chips[0].output_range == chips[1].output_range


def test_calibration_returns_every_module_to_its_mode_and_refuses_no_data_and_nan():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    analog = convert(model, load_profile("pcm"), chip=0)
    analog[1].eval()
    with pytest.raises(ValueError, match="batches are empty"):
        calibrate_ranges(analog, [])
    with pytest.raises(ValueError, match="signal of 0 is not finite"):
        calibrate_ranges(analog, [torch.full((3, 2), float("nan"))])
    assert (analog.training, analog[0].training, analog[1].training) == (True, True, False)
    assert analog[0].observer is None


def test_a_learned_range_gets_the_gradient_of_learned_step_sizes_and_moves_to_the_data():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    analog = convert(layer, Profile(name="p", input=(Quantize(bits=4),), input_range=Learned()), chip=0)
    analog.set_range("input", 10.0)
    x = torch.rand(256, 4) * 2 - 1
    optimizer = torch.optim.Adam([analog.input_range], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (analog(x) - x).square().mean().backward()
        optimizer.step()
    assert 0.8 < analog.input_range.item() < 1.2


def test_dynamic_ranges_are_found_per_vector_and_per_image():
    profile = Profile(name="d", input=(Quantize(bits=4),), input_range=Dynamic())
    linear = convert(nn.Linear(3, 2, bias=False), profile, chip=0)
    conv = convert(nn.Conv1d(3, 2, 1, bias=False), profile, chip=0)
    for layer, x in ((linear, torch.randn(5, 3)), (conv, torch.randn(5, 3, 4))):
        together, apart = layer(x), torch.cat([layer(v) for v in x.split(1)])
        torch.testing.assert_close(together, apart)
        torch.testing.assert_close(layer(x * 100), together * 100)


# -- reads ----------------------------------------------------------------------------------------------------------------------------


def noisy():
    torch.manual_seed(0)
    profile = Profile(name="n", weight=(Gaussian(std=0.01),), output=(Gaussian(std=0.1),), output_range=Fixed(value=2.0), rows=2)
    return convert(nn.Linear(4, 3), profile, chip=0), torch.randn(6, 4)


def test_reads_are_fresh_by_default_in_training_and_evaluation_alike():
    model, x = noisy()
    for mode in (True, False):
        model.train(mode)
        assert not torch.equal(model(x), model(x))
    assert not torch.equal(*model(x[:1].expand(2, 4)))


def test_frozen_reads_keep_one_draw_and_end_with_their_block():
    model, x = noisy()
    with reads(model, "frozen"):
        first = model(x)
        assert torch.equal(model(x), first)
        assert not torch.equal(model(x[:3]), first[:3])
    assert not torch.equal(model(x), first)
    with reads(model, "frozen"):
        assert not torch.equal(model(x), first)


def test_reads_that_are_off_leave_what_is_fixed_on_the_chip():
    model, x = noisy()
    with reads(model, "off"):
        assert torch.equal(model(x), model(x))
        program(model, 1)
        torch.testing.assert_close(model(x), nn.functional.linear(x, model.weight, model.bias))
    with pytest.raises(ValueError, match="reads are 'fresh', 'frozen' or 'off', not 'on'"), reads(model, "on"):
        pass


def test_a_seed_reproduces_every_read():
    model, x = noisy()
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), first)


# -- what torch expects ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_pass_through(dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
    analog = convert(model, load_profile("pcm"), chip=0)
    x = torch.randn(2, 1, 4, 4, dtype=dtype)
    assert calibrate_ranges(analog, [x])(x).dtype == dtype
    assert analog.to(torch.float32)(x.float()).dtype == torch.float32


def test_compiles_to_one_graph_that_serves_every_chip_and_age():
    from galvanic import age

    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), load_profile("pcm"), chip=0)
    x = torch.randn(2, 1, 4, 4)
    calibrate_ranges(model, [x])
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    graphs = set()
    for chip in (0, 1, None):
        for seconds in (0.0, 3600.0):
            age(program(model, chip), seconds)
            with reads(model, "off"):
                torch.testing.assert_close(compiled(x), model(x))
            graphs.add(counter.frame_count)
    assert len(graphs) == 1  # what the first call compiled serves all


def test_jacrev_agrees_with_autograd():
    layer = convert(nn.Linear(3, 2), load_profile("pcm"), chip=0)
    calibrate_ranges(layer, [torch.randn(9, 3)])
    x = torch.randn(3)
    with reads(layer, "off"):
        jacobian = torch.func.jacrev(layer)(x)
        torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(layer, x))
