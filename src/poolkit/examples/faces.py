"""Three small face networks with real weights: the built-in example.

P-Net, R-Net and O-Net are the cascade of Zhang et al., *Joint Face Detection and Alignment using
Multi-task Cascaded Convolutional Networks* (2016). The weights are read from the package that
ships them, which is found but never imported: it pins an old torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from poolkit.errors import PoolValueError

CROP_SIZES = {"P-Net": 12, "R-Net": 24, "O-Net": 48}


class PNet(nn.Module):
    """Proposals: a fully convolutional detector of 12x12 faces, one position every 2 pixels.

    Input (batch, 3, H, W) with values in [-1, 1]; returns the probability of a face
    (batch, H', W') and the box offsets (batch, 4, H', W').
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return self.conv4_1(x).softmax(dim=1)[:, 1], self.conv4_2(x)


class RNet(nn.Module):
    """Refinement: input (batch, 3, 24, 24); returns probability (batch,) and box (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_columns_first(x)))
        return self.dense5_1(x).softmax(dim=1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Output: input (batch, 3, 48, 48); returns probability, box and landmarks (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_columns_first(x)))
        return self.dense6_1(x).softmax(dim=1)[:, 1], self.dense6_2(x), self.dense6_3(x)


def _columns_first(x: torch.Tensor) -> torch.Tensor:
    """Flatten (batch, channels, H, W) with W outermost: the order the weights were trained in."""
    return x.permute(0, 3, 2, 1).flatten(1)


class FaceNetworks(nn.Module):
    """R-Net and O-Net on the same candidate windows, as the cascade runs them.

    Input: windows (n, 3, 24, 24) and (n, 3, 48, 48); output: probabilities of a face of both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rnet, self.onet = load("R-Net"), load("O-Net")

    def forward(self, small: torch.Tensor, large: torch.Tensor) -> tuple[Any, Any]:
        return self.rnet(small), self.onet(large)


_NETWORKS: dict[str, tuple[type[nn.Module], str]] = {
    "P-Net": (PNet, "pnet.pt"),
    "R-Net": (RNet, "rnet.pt"),
    "O-Net": (ONet, "onet.pt"),
}


def load(name: str) -> nn.Module:
    """Return ``P-Net``, ``R-Net`` or ``O-Net`` with its trained weights, in eval mode.

    Raises PoolError, with the command that installs them, if the weights are not there.
    """
    network, file_name = _NETWORKS[name]
    path = package_folder("facenet_pytorch", "--no-deps facenet-pytorch==2.6.0") / "data"
    weights = torch.load(path / file_name, weights_only=True, map_location="cpu")
    model = network()
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def package_folder(package: str, requirement: str) -> Path:
    """Where a package lies that is not imported, or PoolValueError with the pip requirement."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PoolValueError(
            f"the built-in example needs {package}, which is not installed: "
            f"pip install {requirement}"
        )
    return Path(spec.submodule_search_locations[0])


def photograph(name: str) -> torch.Tensor:
    """Return a photograph from scikit-image as uint8 (3, H, W): ``astronaut``, ``coffee``, ..."""
    from PIL import Image

    folder = package_folder("skimage", "scikit-image") / "data"
    path = next((p for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.exists()), None)
    if path is None:
        raise PoolValueError(f"scikit-image ships no photograph named {name!r}")
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.reshape(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 as the networks want them: float32 in [-1, 1]."""
    return (pixels.float() - 127.5) / 128


@cache
def labelled_crops() -> tuple[torch.Tensor, torch.Tensor]:
    """The 200 labelled crops of scikit-image: grey (200, 1, 25, 25) in 0..1, and is-a-face."""
    import numpy as np

    folder = package_folder("skimage", "scikit-image") / "data"
    crops = torch.from_numpy(np.load(folder / "lfw_subset.npy").astype("float32"))[:, None]
    return crops, torch.arange(200) < 100


@dataclass(frozen=True)
class Accuracy:
    """How many of the 200 labelled crops a network gets right, with each kind of pooling.

    ``averaged`` is the lesson: the same weights with average in place of max pooling.
    """

    network: str
    torch: float
    poolkit: float
    averaged: float


def crops_for(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled crops as one of the networks wants them, (200, 3, size, size), and is-a-face."""
    crops, is_face = labelled_crops()
    size = CROP_SIZES[name]
    resized = F.interpolate(crops, (size, size), mode="bilinear", antialias=True)
    return normalise(resized.expand(-1, 3, -1, -1) * 255), is_face


def accuracy(model: nn.Module, name: str) -> float:
    """Share of the labelled crops that ``model``, one of the three networks, classifies right."""
    x, is_face = crops_for(name)
    with torch.no_grad():
        probability = model(x)[0].reshape(len(x), -1)[:, 0]
    return float(((probability > 0.5) == is_face).float().mean())


def accuracies() -> list[Accuracy]:
    """Accuracy of the three networks with torch's pools, with poolkit's, and with averages."""
    import poolkit.nn

    rows = []
    for name in _NETWORKS:
        plain = accuracy(load(name), name)
        ours = accuracy(_with_pools(load(name), poolkit.nn.MaxPool2d), name)
        averaged = accuracy(_with_pools(load(name), nn.AvgPool2d), name)
        rows.append(Accuracy(name, plain, ours, averaged))
    return rows


def _with_pools(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    for name, module in list(model.named_children()):
        if isinstance(module, nn.MaxPool2d):
            pool = kind(module.kernel_size, module.stride, ceil_mode=module.ceil_mode)
            setattr(model, name, pool)
    return model
