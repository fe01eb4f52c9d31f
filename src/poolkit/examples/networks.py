"""Networks that are known by their pooling, written from their papers, with random weights.

Each function takes no arguments and returns the network, in eval mode, with an example input, as
the command line takes a model:

    poolkit inspect poolkit.examples.networks:vgg16
    poolkit optimize poolkit.examples.networks:googlenet

The weights are the same every time. They do for times; for accuracy there are `faces` and `ocr`,
whose networks are trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 1000

Example = tuple[nn.Module, tuple[Tensor]]


def vgg16() -> Example:
    """VGG-16: Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image
    Recognition* (2015), configuration D. Input (N, 3, 224, 224), output (N, 1000).

    >>> sum(isinstance(module, nn.MaxPool2d) for module in vgg16()[0].modules())
    5
    """
    return _example(VGG16, 224)


def resnet50() -> Example:
    """ResNet-50: He et al., *Deep Residual Learning for Image Recognition* (2016), with the stride
    in the 3x3 convolution, as Goyal et al., *Accurate, Large Minibatch SGD* (2017), have it. Input
    (N, 3, 224, 224), output (N, 1000)."""
    return _example(ResNet50, 224)


def squeezenet() -> Example:
    """SqueezeNet 1.1: Iandola et al., *SqueezeNet: AlexNet-level accuracy with 50x fewer
    parameters* (2016), and the authors' version that pools earlier. Input (N, 3, 224, 224), output
    (N, 1000)."""
    return _example(SqueezeNet, 224)


def googlenet() -> Example:
    """GoogLeNet: Szegedy et al., *Going Deeper with Convolutions* (2015), without the two auxiliary
    classifiers, which only train it. Input (N, 3, 224, 224), output (N, 1000)."""
    return _example(GoogLeNet, 224)


def yolo() -> Example:
    """The small backbone of YOLOv5: the cross-stage partial stages of Wang et al., *CSPNet* (2020),
    and SPPF, the spatial pyramid of He et al. (2015) as three 5x5 maxima in a row. Input (N, 3,
    640, 640); output: maps at strides 8, 16 and 32."""
    return _example(YoloBackbone, 640)


def unet() -> Example:
    """U-Net: Ronneberger et al., *U-Net* (2015), that unpools to where the maxima were, as
    Badrinarayanan et al., *SegNet* (2017), do. Input (N, 3, 256, 256), output (N, 2, 256, 256)."""
    return _example(UNet, 256)


def _example(network: Callable[[], nn.Module], size: int) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network().eval().requires_grad_(False), (torch.rand(1, 3, size, size),)


class VGG16(nn.Sequential):
    """Thirteen 3x3 convolutions in five blocks, a 2x2 maximum behind each block, three layers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
        for features in (512 * 7 * 7, 4096):
            layers += [nn.Linear(features, 4096), nn.ReLU(), nn.Dropout()]
        super().__init__(*layers, nn.Linear(4096, CLASSES))


def convolution(
    channels: int, width: int, size: int, stride: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """A convolution that keeps the size for stride 1, a batch norm, and an activation (ReLU)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(width),
        activation or nn.ReLU(),
    )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(channels, width, 1),
            convolution(width, width, 3, stride),
            convolution(width, 4 * width, 1, activation=nn.Identity()),
        )
        self.shortcut = (
            nn.Identity()
            if channels == 4 * width
            else convolution(channels, 4 * width, 1, stride, nn.Identity())
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResNet50(nn.Sequential):
    """A 7x7 stem, a 3x3 maximum, sixteen bottlenecks in four stages, and a global average."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        channels = 64
        for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            for index in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
                channels = 4 * width
        super().__init__(
            convolution(3, 64, 7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, CLASSES),
        )


class Fire(nn.Module):
    """Channels squeezed by a 1x1 convolution, and expanded by 1x1 and 3x3 ones side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


class SqueezeNet(nn.Sequential):
    """Eight fire modules with 3x3 maxima before the first, the third and the fifth."""

    def __init__(self) -> None:
        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        super().__init__(
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(),
            Fire(64, 16, 64), Fire(128, 16, 64), pool(),
            Fire(128, 32, 128), Fire(256, 32, 128), pool(),
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
            nn.Dropout(), nn.Conv2d(512, CLASSES, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


class Inception(nn.Module):
    """Four branches side by side: 1x1, 1x1 and 3x3 (twice), and a 3x3 maximum and 1x1.

    The second 3x3 is 5x5 in the paper. Implementations have come to batch norm and to 3x3.
    """

    def __init__(
        self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                convolution(channels, one, 1),
                nn.Sequential(convolution(channels, three[0], 1), convolution(*three, 3)),
                nn.Sequential(convolution(channels, five[0], 1), convolution(*five, 3)),
                nn.Sequential(
                    nn.MaxPool2d(3, stride=1, padding=1), convolution(channels, pooled, 1)
                ),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Sequential):
    """Nine inceptions, each with a 3x3 maximum of stride 1, and four maxima between them."""

    def __init__(self) -> None:
        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        super().__init__(
            convolution(3, 64, 7, stride=2), pool(),
            convolution(64, 64, 1), convolution(64, 192, 3), pool(),
            Inception(192, 64, (96, 128), (16, 32), 32),
            Inception(256, 128, (128, 192), (32, 96), 64), pool(),
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128), nn.MaxPool2d(2, ceil_mode=True),
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, CLASSES),
        )  # fmt: skip


def _smooth(channels: int, width: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    """A convolution and SiLU, as YOLO has it."""
    return convolution(channels, width, size, stride, nn.SiLU())


class Residual(nn.Module):
    """A 1x1 and a 3x3 convolution beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_smooth(width, width), _smooth(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class PartialStage(nn.Module):
    """Half of the channels go through residuals, half past them (CSP)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.through = nn.Sequential(
            _smooth(width, width // 2), *(Residual(width // 2) for _ in range(depth))
        )
        self.past = _smooth(width, width // 2)
        self.join = _smooth(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.through(x), self.past(x)], 1))


class SPPF(nn.Module):
    """Maxima of 5x5, 9x9 and 13x13 beside the map itself, by one 5x5 pooling that runs thrice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = _smooth(width, width // 2)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = _smooth(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        once = self.pool(x)
        twice = self.pool(once)
        return self.join(torch.cat([x, once, twice, self.pool(twice)], 1))


class YoloBackbone(nn.Module):
    """A stem and four stages, each half as large as the one before; SPPF behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 6, stride=2, padding=2, bias=False), nn.BatchNorm2d(32), nn.SiLU()
        )
        self.stages = nn.ModuleList(
            nn.Sequential(_smooth(width // 2, width, 3, stride=2), PartialStage(width, depth))
            for width, depth in ((64, 1), (128, 2), (256, 3), (512, 1))
        )
        self.pyramid = SPPF(512)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1], maps[2], self.pyramid(maps[3])


class UNet(nn.Module):
    """Four steps down by 2x2 maxima and four up by unpooling, joined at each size."""

    def __init__(self, width: int = 32, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            self._block(channels, width)
            for channels, width in zip([3, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.narrow = nn.ModuleList(convolution(2 * width, width, 1) for width in widths[:-1])
        self.up = nn.ModuleList(self._block(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _block(channels: int, width: int) -> nn.Sequential:
        return nn.Sequential(convolution(channels, width, 3), convolution(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down[:-1]:
            x = block(x)
            pooled, indices = self.pool(x)
            kept.append((x, indices))
            x = pooled
        x = self.down[-1](x)
        for narrow, block, (beside, indices) in zip(
            reversed(self.narrow), reversed(self.up), reversed(kept), strict=True
        ):
            x = self.unpool(narrow(x), indices)
            x = block(torch.cat([beside, x], 1))
        return self.head(x)
