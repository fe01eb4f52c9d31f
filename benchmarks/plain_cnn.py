"""A network without norms and without a pooling of the whole map, to compare poolings in.

    poolkit compare benchmarks/plain_cnn.py:plain_cnn --variants max,avg,max_blur,strided

Two convolutions, each with a pool of 2x2, and a linear layer that sees every position of the map.
"""

from __future__ import annotations

from torch import nn


def plain_cnn(width: float = 1.0) -> nn.Sequential:
    """For images of 1x32x32 and ten classes; 16 and 32 channels times `width`."""
    first, second = round(16 * width), round(32 * width)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 8 * 8, 10),
    )
