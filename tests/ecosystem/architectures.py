"""Small networks of every kind that users bring: name -> (builder, input builder)."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sum(nn.Module):
    """The sum of branches, a skip connection where one is the identity."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


class Concatenated(Sum):
    """Branches side by side, along the channels."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Apply(nn.Module):
    """A function of the outputs of layers, given when it is built."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.net = nn.ModuleDict(layers)

    def forward(self, *x):
        return self.run(self.net, *x)


def image(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def conv(n_in: int, n_out: int, kernel: int = 3, **how) -> nn.Sequential:
    """Convolution, normalisation, rectifier."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False, **how), nn.BatchNorm2d(n_out), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def vgg():
    return nn.Sequential(conv(3, 4), conv(4, 4), nn.MaxPool2d(2), conv(4, 6), nn.MaxPool2d(2), nn.Flatten(), mlp(24, 8, 3))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), mlp(16, 8, 3, activation=nn.Tanh)
    )


def resnet():
    block = Sum(nn.Sequential(conv(4, 4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Identity())
    down = Sum(nn.Sequential(conv(4, 8, stride=2), nn.Conv2d(8, 8, 3, padding=1)), nn.Conv2d(4, 8, 1, stride=2))
    return nn.Sequential(conv(3, 4), block, nn.ReLU(), down, head(8))


def bottleneck():
    return nn.Sequential(conv(3, 8), Sum(nn.Sequential(conv(8, 2, 1), conv(2, 2), nn.Conv2d(2, 8, 1)), nn.Identity()), head(8))


def resnext():
    return nn.Sequential(conv(3, 8), Sum(nn.Sequential(conv(8, 4, 1), conv(4, 4, groups=2), nn.Conv2d(4, 8, 1)), nn.Identity()), head(8))


def densenet():
    grow = [Concatenated(nn.Identity(), conv(channels, 2)) for channels in (3, 5, 7)]
    return nn.Sequential(*grow, nn.Conv2d(9, 4, 1), nn.AvgPool2d(2), head(4))


def inverted_residual():
    block = nn.Sequential(conv(4, 12, 1), conv(12, 12, groups=12), nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4))
    return nn.Sequential(conv(3, 4, stride=2), Sum(block, nn.Identity()), head(4))


def separable():
    return nn.Sequential(conv(3, 3, groups=3), conv(3, 6, 1), head(6))


def squeezenet():
    return nn.Sequential(conv(3, 4), conv(4, 2, 1), Concatenated(conv(2, 4, 1), conv(2, 4)), nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1))


def inception():
    pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(3, 2, 1))
    return nn.Sequential(Concatenated(conv(3, 2, 1), conv(3, 2), nn.Sequential(conv(3, 2, 1), conv(2, 2, 5)), pool), head(8))


def shufflenet():
    return nn.Sequential(conv(4, 8, 1, groups=2), nn.ChannelShuffle(2), conv(8, 8, groups=8), nn.Conv2d(8, 4, 1, groups=2), head(4))


def convnext():
    def run(net, x):
        y = net["norm"](net["depthwise"](x).movedim(1, -1))
        return x + net["out"](F.gelu(net["grow"](y))).movedim(-1, 1)

    block = Apply(run, depthwise=nn.Conv2d(3, 3, 7, padding=3, groups=3), norm=nn.LayerNorm(3), grow=nn.Linear(3, 12), out=nn.Linear(12, 3))
    return nn.Sequential(block, head(3))


def unet():
    def run(net, x):
        down = net["down"](x)
        return net["out"](torch.cat([down, net["up"](net["bottom"](F.max_pool2d(down, 2)))], 1))

    return Apply(run, down=conv(3, 4), bottom=conv(4, 6), up=nn.ConvTranspose2d(6, 4, 2, stride=2), out=nn.Conv2d(8, 2, 1))


def feature_pyramid():
    def run(net, x):
        fine = net["fine"](x)
        coarse = net["coarse"](fine)
        return net["smooth"](net["lateral"](fine) + F.interpolate(net["top"](coarse), scale_factor=2.0))

    layers = {"fine": conv(3, 4), "coarse": conv(4, 6, stride=2), "lateral": nn.Conv2d(4, 5, 1), "top": nn.Conv2d(6, 5, 1)}
    return Apply(run, **layers, smooth=nn.Conv2d(5, 2, 3, padding=1))


def squeeze_excite():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())
    return nn.Sequential(conv(3, 4), Apply(lambda net, x: x * net["gate"](x), gate=gate), head(4))


def autoencoder():
    code = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2, padding=1))
    return nn.Sequential(code, nn.ConvTranspose2d(2, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2))


def variational():
    def run(net, x):
        h = torch.relu(net["code"](x))
        return net["out"](net["mean"](h) + torch.exp(net["log_std"](h)) * torch.randn(len(x), 2))

    return Apply(run, code=nn.Linear(6, 5), mean=nn.Linear(5, 2), log_std=nn.Linear(5, 2), out=mlp(2, 5, 6))


def temporal():
    causal = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(4, 4, 3, dilation=2), nn.ReLU())
    return nn.Sequential(nn.Conv1d(2, 4, 1), Sum(causal, nn.Identity()), nn.Conv1d(4, 3, 1))


def wavenet():
    def run(net, x):
        x = net["in"](x)
        skips = []
        for d in (1, 2, 4):
            y = torch.tanh(net[f"filter{d}"](x)) * torch.sigmoid(net[f"gate{d}"](x))
            skips.append(net[f"skip{d}"](y))
            x = x + y
        return sum(skips)

    layers: dict[str, nn.Module] = {"in": nn.Conv1d(2, 4, 1)}
    for d in (1, 2, 4):
        layers |= {f"{kind}{d}": nn.Conv1d(4, 4, 3, dilation=d, padding="same") for kind in ("filter", "gate")}
        layers[f"skip{d}"] = nn.Conv1d(4, 3, 1)
    return Apply(run, **layers)


def volumetric():
    return nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(3, 2, 2), nn.Flatten(), nn.Linear(2, 3))


def siamese():
    return Apply(lambda net, x: net["twin"](x[:, :4]) - net["twin"](x[:, 4:]), twin=mlp(4, 6, 3))


def tied_autoencoder():
    def run(net, x):
        return net["out"](torch.tanh(net["embed"](x)))

    net = Apply(run, embed=nn.Embedding(7, 4), out=nn.Linear(4, 7, bias=False))
    net.net["out"].weight = net.net["embed"].weight
    return net


def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)


def transformer():
    def run(net, x):
        return net["out"](net["encoder"](net["embed"](x)))

    encoder = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)
    return Apply(run, embed=nn.Embedding(7, 8), encoder=encoder, out=nn.Linear(8, 7))


def vision_transformer():
    def run(net, x):
        return net["out"](net["encoder"](net["patch"](x).flatten(2).transpose(1, 2)).mean(1))

    return Apply(run, patch=nn.Conv2d(3, 8, 4, stride=4), encoder=encoder_layer(), out=nn.Linear(8, 3))


def mixer():
    tokens = Apply(lambda net, x: x + net["mix"](x.transpose(1, 2)).transpose(1, 2), mix=mlp(4, 6, 4, activation=nn.GELU))
    return nn.Sequential(tokens, nn.LayerNorm(5), Sum(nn.Identity(), mlp(5, 8, 5, activation=nn.GELU)), nn.Linear(5, 3))


def gated_mlp():
    def run(net, x):
        u, v = F.gelu(net["in"](x)).chunk(2, -1)
        return x + net["out"](u * net["space"](net["norm"](v).transpose(1, 2)).transpose(1, 2))

    return Apply(run, **{"in": nn.Linear(5, 12)}, norm=nn.LayerNorm(6), space=nn.Linear(4, 4), out=nn.Linear(6, 5))


def highway():
    def run(net, x):
        t = torch.sigmoid(net["gate"](x))
        return t * torch.relu(net["carry"](x)) + (1 - t) * x

    return nn.Sequential(*(Apply(run, gate=nn.Linear(6, 6), carry=nn.Linear(6, 6)) for _ in range(2)), nn.Linear(6, 3))


def recurrent(kind: type[nn.RNNBase]) -> Callable[[], nn.Module]:
    return lambda: Apply(lambda net, x: net["out"](net["core"](x)[0][:, -1]), core=kind(4, 5, batch_first=True), out=nn.Linear(5, 3))


def cell():
    def run(net, x):
        h = torch.zeros(len(x), 5)
        for step in x.unbind(1):
            h = torch.tanh(net["in"](step) + net["back"](h))
        return net["out"](h)

    return Apply(run, **{"in": nn.Linear(4, 5)}, back=nn.Linear(5, 5, bias=False), out=nn.Linear(5, 3))


def sequence_to_sequence():
    def run(net, x):
        _, h = net["encoder"](net["embed"](x))
        y, _ = net["decoder"](net["embed"](x.flip(1)), h)
        return net["out"](y)

    gru = {name: nn.GRU(4, 5, batch_first=True) for name in ("encoder", "decoder")}
    return Apply(run, embed=nn.Embedding(7, 4), **gru, out=nn.Linear(5, 7))


def bag_of_words():
    return nn.Sequential(nn.EmbeddingBag(7, 5), mlp(5, 6, 3))


def deep_sets():
    return Apply(lambda net, x: net["of_sum"](net["each"](x).sum(1)), each=mlp(4, 6, 5), of_sum=mlp(5, 6, 3))


def hypernetwork():
    """The weight of the last product is what another network says; its generator is on the chip, the product is not."""

    def run(net, x):
        made = net["maker"](x.mean(0)).view(3, 5)
        return F.linear(torch.relu(net["body"](x)), made)

    return Apply(run, maker=mlp(4, 6, 15), body=nn.Linear(4, 5))


def experts():
    def run(net, x):
        weights = torch.softmax(net["gate"](x), -1)
        return sum(weights[:, k : k + 1] * net[f"expert{k}"](x) for k in range(3))

    return Apply(run, gate=nn.Linear(5, 3), **{f"expert{k}": mlp(5, 6, 2) for k in range(3)})


def weight_normed():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)))


def words() -> Tensor:
    return torch.randint(0, 7, (2, 4))


def vector(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP": (lambda: mlp(5, 8, 6, 3), vector(4, 5)),
    "LeNet": (lenet, image(1, 12)),
    "VGG": (vgg, image()),
    "ResNet": (resnet, image()),
    "ResNet bottleneck": (bottleneck, image()),
    "ResNeXt": (resnext, image()),
    "DenseNet": (densenet, image()),
    "MobileNet depthwise": (separable, image()),
    "MobileNet inverted residual": (inverted_residual, image()),
    "SqueezeNet": (squeezenet, image()),
    "Inception": (inception, image()),
    "ShuffleNet": (shufflenet, image(4)),
    "ConvNeXt": (convnext, image()),
    "UNet": (unet, image()),
    "feature pyramid": (feature_pyramid, image()),
    "squeeze and excite": (squeeze_excite, image()),
    "autoencoder": (autoencoder, image()),
    "variational autoencoder": (variational, vector(4, 6)),
    "temporal convolution": (temporal, vector(2, 2, 7)),
    "WaveNet": (wavenet, vector(2, 2, 9)),
    "3d convolution": (volumetric, vector(2, 1, 4, 4, 4)),
    "siamese": (siamese, vector(3, 8)),
    "tied embedding": (tied_autoencoder, words),
    "transformer": (transformer, words),
    "vision transformer": (vision_transformer, image()),
    "MLP-Mixer": (mixer, vector(2, 4, 5)),
    "gMLP": (gated_mlp, vector(2, 4, 5)),
    "highway": (highway, vector(3, 6)),
    "RNN": (recurrent(nn.RNN), vector(2, 3, 4)),
    "LSTM": (recurrent(nn.LSTM), vector(2, 3, 4)),
    "GRU": (recurrent(nn.GRU), vector(2, 3, 4)),
    "recurrence by hand": (cell, vector(2, 3, 4)),
    "sequence to sequence": (sequence_to_sequence, words),
    "bag of words": (bag_of_words, words),
    "deep sets": (deep_sets, vector(2, 3, 4)),
    "hypernetwork": (hypernetwork, vector(3, 4)),
    "mixture of experts": (experts, vector(4, 5)),
    "weight-normed": (weight_normed, vector(4, 5)),
}
