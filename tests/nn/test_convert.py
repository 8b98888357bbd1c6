"""Conversion: what changes class, what stays, and that everything comes back."""

import copy

import pytest
import torch
from torch import nn

from galvanic import calibrate_ranges, convert, describe, evaluate, load_profile, profile_names, program, to_digital
from galvanic.nn import Analog, AnalogConv2d, AnalogLinear
from galvanic.physics import Quantize
from galvanic.profile import Profile


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(x + self.norm(self.b(torch.relu(self.a(x)))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(6, 6)
        self.alias = self.core

    def forward(self, x):
        return self.alias(torch.tanh(self.core(x)))


class First(nn.Module):
    def forward(self, both):
        return both[0]


NETWORKS = {
    "linear": (lambda: nn.Linear(5, 3), lambda: torch.randn(4, 5)),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), lambda: torch.randn(4, 5)),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)), lambda: torch.randn(2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), lambda: torch.randn(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), lambda: torch.randn(2, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), lambda: torch.randn(2, 4, 5, 5)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 3, 2, bidirectional=True), First()), lambda: torch.randn(5, 2, 4)),
    "gru cell": (lambda: nn.GRUCell(4, 3), lambda: torch.randn(2, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), lambda: torch.randn(2, 3, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), lambda: torch.randn(2, 2, 5, 5, 5)),
    "unbatched": (lambda: nn.Conv2d(4, 6, 3), lambda: torch.randn(4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), lambda: torch.randn(2, 4, 9, 9)),
    "groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same", padding_mode="reflect"), lambda: torch.randn(2, 4, 9, 9)),
    "circular": (lambda: nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular", bias=False), lambda: torch.randn(2, 4, 9)),
    "residual": (Residual, lambda: torch.randn(2, 4, 6, 6)),
    "tied": (Tied, lambda: torch.randint(0, 10, (4, 3))),
    "shared": (Shared, lambda: torch.randn(4, 6)),
    "list": (lambda: nn.Sequential(nn.ModuleList([nn.Linear(5, 5)])[0], nn.Dropout(0.5)), lambda: torch.randn(4, 5)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    torch.manual_seed(0)
    build, data = NETWORKS[request.param]
    return build().eval(), data()


def bits(model):
    return [t.clone() for t in model.state_dict().values()]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_ideal_profile_gives_the_bits_of_the_digital_network(case):
    model, x = case
    assert torch.equal(convert(model, load_profile("ideal"), chip=0)(x), model(x))


def test_effects_without_strength_leave_the_digital_network_to_1e_6(case):
    model, x = case
    model, x = model.double(), x.double() if x.is_floating_point() else x
    profile = Profile(name="fine", input=(Quantize(step=1e-12),), weight=(Quantize(step=1e-12),), output=(Quantize(step=1e-12),), rows=18)
    y = model(x)
    assert (convert(model, profile, chip=0)(x) - y).abs().max() <= 1e-6 * y.abs().max()


@pytest.mark.parametrize("name", profile_names())
def test_state_dict_keeps_the_digital_keys_and_loads_strictly_before_and_after(case, name):
    model, x = case
    before = bits(model)
    analog = convert(model, load_profile(name), chip=3)
    ranges = {k for k in analog.state_dict() if k.endswith(("input_range", "output_range"))}
    assert set(analog.state_dict()) - ranges == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert analog.state_dict()[key].shape == value.shape
    analog.load_state_dict(model.state_dict())
    back = to_digital(analog)
    back.load_state_dict(model.state_dict())
    assert equal(bits(back), before)
    assert equal(bits(model), before)
    assert torch.equal(back(x), model(x))
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]


def test_going_back_leaves_no_trace_in_the_layers(case):
    model, _ = case
    back = to_digital(convert(model, load_profile("hwa"), chip=0))
    for a, b in zip(model.modules(), back.modules(), strict=True):
        assert set(a.__dict__) == set(b.__dict__)
        assert set(a._buffers) == set(b._buffers)


def test_fixed_ranges_are_no_state_and_calibrated_ones_are():
    model = nn.Linear(4, 4)
    assert set(convert(model, load_profile("pcm"), chip=0).state_dict()) == {"weight", "bias", "input_range", "output_range"}
    assert set(convert(model, load_profile("hwa"), chip=0).state_dict()) == {"weight", "bias", "input_range"}
    assert set(dict(convert(model, load_profile("hwa"), chip=0).named_parameters())) == {"weight", "bias", "input_range"}


def test_tied_weights_stay_tied():
    analog = convert(Tied(), load_profile("pcm"), chip=0)
    assert isinstance(analog.head, AnalogLinear)
    assert analog.head.weight is analog.embed.weight


def test_a_module_used_twice_is_converted_once_and_stays_one():
    analog = convert(Shared(), load_profile("pcm"), chip=0)
    assert analog.core is analog.alias
    assert isinstance(analog.core, AnalogLinear)


def test_hooks_and_mode_survive():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    calls = []
    model[0].register_forward_hook(lambda *a: calls.append(1))
    analog = convert(model, load_profile("ideal"), chip=0)
    analog(torch.zeros(1, 2))
    assert calls == [1]
    assert not analog[0].training


def test_patterns_choose_layer_by_layer_and_the_first_match_decides():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    pcm, hwa = load_profile("pcm"), load_profile("hwa")
    analog = convert(model, {"1.1": None, "1.*": hwa, "0": pcm}, chip=0)
    rows = {r["layer"]: r for r in describe(analog)}
    assert analog[0].profile == pcm
    assert analog[1][0].profile == hwa
    assert type(analog[1][1]) is nn.Linear
    assert rows["1.1"]["where"] == "digital"
    assert rows["2"]["why"] == "no profile was chosen for it"


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"pattern 'featurs' matches no layer that could go on a chip; did you mean 'features'\?"):
        convert(nn.ModuleDict({"features": nn.Linear(2, 2)}), {"featurs": load_profile("pcm")}, chip=0)


def test_a_tile_smaller_than_a_kernel_column_is_refused_by_layer_and_numbers():
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match=r"^1: a kernel column takes 9 rows .* of profile 'small' have 8; use tiles of 9 rows"):
        convert(model, Profile(name="small", rows=8, weight=load_profile("pcm").weight), chip=0)


def test_describe_speaks_of_every_layer_with_parameters():
    model = nn.Sequential(
        nn.Conv2d(16, 64, 3, groups=2),
        nn.BatchNorm2d(64),
        nn.Linear(1000, 700),
        nn.LSTM(4, 4),
        nn.Embedding(3, 4),
        nn.ReLU(),
        nn.LazyLinear(3),
    )
    rows = describe(convert(model, load_profile("pcm"), chip=0))
    assert [r["layer"] for r in rows] == ["0", "1", "2", "3.ih_l0", "3.hh_l0", "4", "6"]
    conv, norm, linear, lstm, state, embedding, lazy = rows
    assert lazy["why"] == "it goes on the chip after its first call, when its shape is known"
    assert (conv["rows"], conv["columns"], conv["tiles"]) == (72, 32, 2)
    assert conv["utilisation"] == pytest.approx(2 * 72 * 32 / (2 * 512 * 512))
    assert (linear["rows"], linear["columns"], linear["tiles"]) == (1000, 700, 4)
    assert linear["utilisation"] == pytest.approx(1000 * 700 / (4 * 512 * 512))
    assert norm["why"].startswith("normalisation")
    assert (lstm["type"], lstm["where"], lstm["rows"], lstm["columns"], state["tiles"]) == ("LSTM", "analog", 4, 16, 1)
    assert embedding["why"] == "a look-up, not a product"
    assert sum(r["parameters"] for r in rows[:6]) == sum(p.numel() for m in model[:5] for p in m.parameters())


def test_a_subclass_is_not_taken_for_its_base_class():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x).square()

    (row,) = describe(convert(nn.Sequential(Odd(2, 2), nn.Linear(2, 2)), load_profile("pcm"), chip=0))[:1]
    assert row["where"] == "digital"
    assert "Odd changes what its base class does" in row["why"]


def test_the_feed_forward_layers_of_a_transformer_are_not_bypassed_in_evaluation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 3, 8)
    analog = convert(layer, {"linear1": load_profile("reram"), "linear2": load_profile("reram")}, chip=0)
    calibrate_ranges(analog, [x])
    rows = {r["layer"]: r for r in describe(analog)}
    assert {name for name, row in rows.items() if row["where"] == "analog"} == {"linear1", "linear2"}
    assert rows["self_attn"]["why"] == "no profile was chosen for it"
    with torch.no_grad():
        assert not torch.allclose(analog(x), layer(x), atol=1e-3)
        assert torch.allclose(to_digital(analog)(x), layer(x), atol=1e-6)
    assert to_digital(analog).activation_relu_or_gelu == layer.activation_relu_or_gelu


def test_a_parametrised_weight_stays_parametrised_on_the_chip_and_comes_back():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 3, 1))
    )
    model.eval()
    x = torch.randn(2, 5, 1)
    first = convert(model, load_profile("ideal"), chip=0)
    assert [r["where"] for r in describe(first)] == ["analog"] * 2
    assert sum(r["parameters"] for r in describe(first)) == sum(p.numel() for p in model.parameters())
    y = lambda m: m[1](m[0](x.squeeze(-1)).unsqueeze(-1))  # noqa: E731
    assert torch.equal(y(first), y(model))
    noisy = convert(model, load_profile("hwa"), chip=0)
    calibrate_ranges(noisy[0], [x.squeeze(-1)])
    noisy[0](x.squeeze(-1)).sum().backward()
    assert noisy[0].parametrizations.weight.original0.grad is not None
    assert torch.equal(y(to_digital(noisy)), y(model))
    assert type(to_digital(noisy)[0]) is type(model[0])
    first.load_state_dict(model.state_dict(), strict=True)


def test_a_lazy_layer_is_built_by_its_first_call_and_on_the_chip_from_then_on():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyConvTranspose1d(2, 3)), load_profile("generic-4bit"), chip=3)
    untouched, twin, x = to_digital(model), copy.deepcopy(model), torch.randn(2, 6, 5)
    for verb in (lambda: program(model, 4), lambda: calibrate_ranges(model, [x]), lambda: evaluate(model, float, chips=[1])):
        with pytest.raises(ValueError, match="layer 0 is lazy and has no weight yet: call the model once"):
            verb()
    for built in (model, twin):
        first = built(x)  # digital
        assert [type(m).__name__ for m in built] == ["AnalogLinear", "ReLU", "AnalogConvTranspose1d"]
        assert torch.equal(to_digital(built)(x), first)
        calibrate_ranges(built, [x])
        assert not torch.allclose(built(x), first)
        assert built[0].chip.number == 3
    assert untouched(x).shape == (2, 2, 6)
    assert not any(isinstance(m, Analog) for m in untouched.modules())


def test_a_converted_model_can_be_converted_anew():
    analog = convert(nn.Conv2d(1, 2, 3), load_profile("pcm"), chip=0)
    again = convert(analog, load_profile("hwa"), chip=1)
    assert isinstance(again, AnalogConv2d)
    assert again.profile.name == "hwa"
    assert analog.profile.name == "pcm"


def test_chip_is_demanded_and_shown():
    with pytest.raises(TypeError, match="chip"):
        convert(nn.Linear(2, 2), load_profile("pcm"))
    assert "profile='pcm', chip=7, write=0, age_s=0" in repr(convert(nn.Linear(2, 2), load_profile("pcm"), chip=7))
    assert "anonymous chip" in repr(convert(nn.Linear(2, 2), load_profile("pcm"), chip=None))


def test_the_state_dict_passes_torch_save_with_weights_only(tmp_path):
    analog = convert(nn.Linear(2, 2), load_profile("pcm"), chip=0)
    calibrate_ranges(analog, [torch.randn(8, 2)])
    torch.save(analog.state_dict(), tmp_path / "w.pt")
    other = convert(nn.Linear(2, 2), load_profile("pcm"), chip=0)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert equal(bits(other), bits(analog))


def test_isinstance_and_deepcopy_work_as_for_digital_layers():
    analog = convert(nn.Linear(2, 2), load_profile("pcm"), chip=0)
    twin = copy.deepcopy(analog)
    assert isinstance(twin, nn.Linear)
    assert isinstance(twin, Analog)
    assert torch.equal(twin.conductances(twin.scale(), _context(twin)), analog.conductances(analog.scale(), _context(analog)))


def _context(layer):
    from galvanic.physics import Context

    return Context(**layer.at)
