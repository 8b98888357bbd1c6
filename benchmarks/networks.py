"""Networks whose speed is compared."""

from torch import Tensor, nn


def lenet() -> nn.Sequential:
    """The LeNet of the toolkits' examples, for images of 3 x 32 x 32: two convolutions of 16 and 32 channels, tanh, max pooling."""
    features = [nn.Conv2d(3, 16, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.Tanh(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(800, 128), nn.Tanh(), nn.Linear(128, 10))


def lenet5(width: int = 1) -> nn.Sequential:
    """LeNet-5 for images of 3 x 32 x 32, with ReLU and max pooling: so small that the overhead of every call counts."""
    features = [nn.Conv2d(3, 6 * width, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6 * width, 16 * width, 5), nn.ReLU(), nn.MaxPool2d(2)]
    scores = [nn.Linear(400 * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.Flatten(), *scores)


class Block(nn.Module):
    """Two convolutions and the signal around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.around = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.around(x)).relu()


def resnet18(width: int = 64) -> nn.Sequential:
    r"""ResNet-18 for images of 3 x 32 x 32: a 3 x 3 stem without pooling.

    Args:
        width: channels of the first stage; the others have 2, 4 and 8 times as many.

    Reference:
        He et al., Deep residual learning for image recognition, CVPR, 2016.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(4):
        outputs = width << stage
        layers += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
