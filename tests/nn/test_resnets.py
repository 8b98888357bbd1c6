"""Residual networks, and what becomes of any of them when its blocks are stochastic."""

import copy

import pytest
import torch
from torch import nn

from galvanic import convert, load_profile
from galvanic.nn import AdaptiveNoise, GatedResidual, ResidualBlock, anchor, resnet, simulate, stochastic
from galvanic.physics import Gaussian


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normed(inputs, outputs, kernel, stride=1, conv=nn.Conv2d, norm=nn.BatchNorm2d):
    return conv(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm(outputs)


class BasicBlock(nn.Module):
    """With the parts and the forward of torchvision's."""

    def __init__(self, inputs, outputs, stride=1) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(inputs, outputs, 3, stride)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = normed(outputs, outputs, 3)
        self.downsample = None if inputs == outputs and stride == 1 else nn.Sequential(*normed(inputs, outputs, 1, stride))
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """With the parts and the forward of torchvision's."""

    def __init__(self, inputs, outputs, stride=1) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1, self.bn1 = normed(inputs, width, 1)
        self.conv2, self.bn2 = normed(width, width, 3, stride)
        self.conv3, self.bn3 = normed(width, outputs, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if inputs == outputs and stride == 1 else nn.Sequential(*normed(inputs, outputs, 1, stride))

    def forward(self, x):
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Gate(nn.Module):
    """Channel attention by a one-dimensional convolution, which has one channel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(*x.shape[:2], 1, 1)


class TimmBlock(nn.Module):
    """With the parts and the forward of timm's basic block."""

    def __init__(self, inputs, outputs, stride=1) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(inputs, outputs, 3)
        self.drop_block, self.act1, self.aa = nn.Identity(), nn.SiLU(), nn.AvgPool2d(stride)
        self.conv2, self.bn2 = normed(outputs, outputs, 3)
        self.se, self.act2, self.drop_path = Gate(), nn.SiLU(), None
        self.downsample = None if inputs == outputs and stride == 1 else nn.Sequential(*normed(inputs, outputs, 1, stride))

    def forward(self, x):
        y = self.bn2(self.conv2(self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))))
        return self.act2(self.se(y) + (x if self.downsample is None else self.downsample(x)))


class Functional(nn.Module):
    """Without a module for its rectifiers, and with a shortcut that is called so; of sequences."""

    def __init__(self, inputs, outputs, stride=1) -> None:
        super().__init__()
        self.conv1, self.bn1 = normed(inputs, outputs, 3, stride, nn.Conv1d, nn.BatchNorm1d)
        self.conv2, self.bn2 = normed(outputs, outputs, 3, 1, nn.Conv1d, nn.BatchNorm1d)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential() if same else nn.Sequential(*normed(inputs, outputs, 1, stride, nn.Conv1d, nn.BatchNorm1d))

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Preactivated(BasicBlock):
    def forward(self, x):
        y = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class Plain(nn.Module):
    def __init__(self, inputs, outputs, stride=1) -> None:
        super().__init__()
        around = None if inputs == outputs and stride == 1 else nn.Sequential(*normed(inputs, outputs, 1, stride))
        self.block = ResidualBlock(nn.Sequential(*normed(inputs, outputs, 3, stride), nn.ReLU(), *normed(outputs, outputs, 3)), around)

    def forward(self, x):
        return self.block(x)


KINDS = (BasicBlock, Bottleneck, TimmBlock, Functional, Plain)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def case(request):
    """A network of two blocks with trained statistics, and its inputs."""
    kind = request.param
    model = nn.Sequential(kind(4, 4), nn.Sequential(kind(4, 8, 2)))
    x = torch.randn(3, 4, *[8] * (1 if kind is Functional else 2))
    for _ in range(20):
        model(x + torch.randn_like(x))
    return model.eval(), x


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 11_173_962),
        ({"stages": (3, 4, 6, 3), "bottleneck": True}, 23_520_842),
        (
            {"stages": (3, 3, 3), "width": 16, "classes": 10},
            272_474,
        ),  # 269,722 of the ResNet-20 with shortcuts by padding, and two of 1 x 1
    ],
)
def test_networks_have_the_parameters_of_the_published_ones(settings, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in resnet(**settings).parameters()) == parameters


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_network_gives_scores_and_halves_the_image_from_stage_to_stage(bottleneck):
    net = resnet((1, 2, 1), width=4, bottleneck=bottleneck, classes=7, channels=1)
    x = torch.randn(2, 1, 12, 12)
    sizes = []
    for layer in net:
        x = layer(x)
        sizes += [x.shape[1:]] if isinstance(layer, ResidualBlock) else []
    wide = 4 if bottleneck else 1
    assert sizes == [(4 * wide, 12, 12), (8 * wide, 6, 6), (8 * wide, 6, 6), (16 * wide, 3, 3)]
    assert x.shape == (2, 7)


@pytest.mark.parametrize("wrong", [{"stages": ()}, {"stages": (1, 0)}, {"width": 0}, {"classes": 0}, {"channels": -1}])
def test_a_network_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"resnet: stages = .*: 1 or more"):
        resnet(**wrong)


def gates(model):
    return [m for m in model.modules() if isinstance(m, GatedResidual)]


@torch.no_grad()
def test_a_stochastic_block_mixes_what_the_block_added(case):
    """With the gate a, the block is the rectified a S(x) + (1 - a) F(x): at 1/2 half of the plain sum, where the rectifier allows it."""
    model, x = case
    found = stochastic(model)
    assert len(gates(found)) == 2
    first, plain = found[0], model[0]
    if any(isinstance(m, nn.SiLU) for m in plain.modules()):
        first, plain = copy.deepcopy(first), copy.deepcopy(plain)
        (first[1] if isinstance(first, nn.Sequential) else first).inplace = False
        plain.act2 = first[1] = nn.ReLU()
    torch.testing.assert_close(first(x), plain(x) / 2)


@torch.no_grad()
def test_a_closed_gate_leaves_one_side_of_the_sum(case):
    model, x = case
    for gate in (1e-9, 1 - 1e-7):
        layer = gates(stochastic(model, gate=gate))[0]
        side = layer.inner(x) if gate < 0.5 else x if layer.shortcut is None else layer.shortcut(x)
        torch.testing.assert_close(layer(x), side, rtol=1e-4, atol=1e-4)


def test_all_weights_are_kept_and_the_network_is_untouched(case):
    model, x = case
    before = copy.deepcopy(model.state_dict())
    expected = model(x)
    found = stochastic(model, load_profile("pcm"))
    assert found(x).shape == expected.shape
    assert torch.equal(model(x), expected)
    values = list(found.state_dict().values())
    for t in before.values():
        assert any(t.shape == v.shape and torch.equal(t, v) for v in values)
    assert not {t.data_ptr() for t in model.state_dict().values()} & {t.data_ptr() for t in values}
    extra = sum(p.numel() for p in found.parameters()) - sum(p.numel() for p in model.parameters())
    assert extra == sum(layer.gate_logit.numel() + sum(p.numel() for p in layer.noise.parameters()) for layer in gates(found))


def test_every_block_has_noise_of_its_own_from_a_profile_effects_or_another_noise(case):
    model, x = case
    for noise in (load_profile("reram"), (Gaussian(std=0.1),), AdaptiveNoise((Gaussian(std=0.1),), tolerance=0.3)):
        found = stochastic(model, noise)
        first, second = (layer.noise for layer in gates(found))
        assert first is not second
        assert first.axis == -(x.ndim - 1)
        assert not torch.equal(found(x), found(x))
    assert first.tolerance == 0.3
    assert anchor(found) == 0


def test_training_mode_and_precision_are_those_of_the_model(case):
    model, x = case
    found = stochastic(model.double(), load_profile("pcm"))
    assert not any(m.training for m in found.modules())
    assert {p.dtype for p in found.parameters()} == {torch.float64}
    assert found(x.double()).dtype == torch.float64
    assert all(m.training for m in stochastic(model.train()).modules())
    for m in model.modules():
        m.training = not isinstance(m, nn.modules.batchnorm._BatchNorm)
    assert all(m.training != isinstance(m, nn.modules.batchnorm._BatchNorm) for m in stochastic(model).modules())


def test_on_ideal_hardware_it_is_bit_for_bit_the_digital_network_without_simulated_noise(case):
    model, x = case
    found = stochastic(model, load_profile("pcm"))
    assert torch.equal(convert(found, load_profile("ideal"), chip=0)(x), simulate(found, False)(x))


def test_one_graph_gives_the_numbers_of_eager():
    found = stochastic(BasicBlock(4, 8, 2), load_profile("pcm")).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.compiler.reset()
    run = torch.compile(found, backend="aot_eager", fullgraph=True)
    outputs = []
    for f in (run, found):
        torch.manual_seed(0)
        outputs.append(f(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_it_trains():
    net = stochastic(resnet((1, 1), width=4), load_profile("generic-4bit"))
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y) + anchor(net)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None for p in net.parameters())


def test_a_block_alone_and_a_shared_one_are_swapped():
    block = BasicBlock(4, 4)
    assert len(gates(stochastic(block))) == 1
    found = stochastic(nn.Sequential(block, nn.ReLU(), block))
    assert isinstance(found[0][0], GatedResidual)
    assert found[0] is found[2]


def test_what_is_no_residual_network_is_refused():
    with pytest.raises(ValueError, match="has no residual block"):
        stochastic(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    with pytest.raises(ValueError, match="Preactivated 1 has the parts of a residual block, but does not add them up as one"):
        stochastic(nn.Sequential(nn.ReLU(), Preactivated(4, 4)))
    with pytest.raises(ValueError, match="block 0 has no linear or convolution layer to tell its channels"):
        stochastic(nn.Sequential(ResidualBlock(nn.Tanh())))
    with pytest.raises(ValueError, match="the model is on a chip; make it stochastic first"):
        stochastic(convert(BasicBlock(4, 4), load_profile("ideal"), chip=0))
