"""Networks of the studies: small enough for two cores, deep enough that analog errors add up."""

from torch import nn


def cnn(channels: int, size: int, classes: int) -> nn.Sequential:
    """A convolutional network with batch normalisation for square images.

    Args:
        channels: of the images.
        size: their height and width.
        classes: number of scores.
    """
    widths = (16, 32, 32) if size <= 8 else (16, 32, 64)
    layers: list[nn.Module] = []
    for depth, width in enumerate(widths):
        pool = [nn.MaxPool2d(2)] if depth < 2 and size >= 8 else []
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *pool]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))
