# ruff: noqa: E402 - what these models need is skipped over before it is imported
"""Models that the tests inspect and optimise."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from poolkit.inspection import LayerRecord, inspect


def look(model: nn.Module, *inputs: torch.Tensor) -> list[LayerRecord]:
    return inspect(model, inputs, seconds=0, losses=False, pictures=False).layers


class Calls(nn.Module):
    """A convolution, and then whatever a test wants to call."""

    def __init__(self, call) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.call = call

    def forward(self, x):
        return self.call(self.conv(x))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


X = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
