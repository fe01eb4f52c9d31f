# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""What a value sees of the input, against the input positions that its gradient touches."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import Calls, look
from torch import nn

from poolkit.inspection.dataflow import Axis


def _seen_by_gradient(model: nn.Module, x: torch.Tensor) -> list[int]:
    """The oracle: the input positions with a gradient of one output value in the middle.

    Averages in place of max, and weights of one: no gradient is zero by chance.
    """
    x = x.double().requires_grad_()
    out = model.double()(x)
    middle = tuple(size // 2 for size in out.shape[2:])
    out[(0, 0, *middle)].backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    return [int(axis.max() - axis.min() + 1) for axis in touched.T]


def _positive(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1)
        self.narrow = nn.Conv2d(2, 2, 1)
        self.wide = nn.Conv2d(2, 2, 7, padding=3)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x):
        x = self.stem(x)
        return self.pool(self.narrow(x) + self.wide(x))


class Joined(Branches):
    def forward(self, x):
        x = self.stem(x)
        return self.pool(torch.cat([self.wide(x), self.narrow(x)], 1))


NETWORKS = {
    "convolutions": nn.Sequential(
        nn.Conv2d(2, 2, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(2, 2, 3), nn.AvgPool2d(2)
    ),
    "dilation": nn.Sequential(nn.Conv2d(2, 2, 3, dilation=(1, 4)), nn.AvgPool2d((3, 2), 1)),
    "one axis": nn.Sequential(nn.Conv1d(2, 2, 5, 3), nn.AvgPool1d(4, 2)),
    "three axes": nn.Sequential(nn.Conv3d(2, 2, (1, 3, 2), (1, 2, 1)), nn.AvgPool3d(2)),
    "a branch and a sum": Branches(),
    "a branch and a concatenation": Joined(),
    "nearest upsampling": nn.Sequential(
        nn.Conv2d(2, 2, 3, 2, 1), nn.Upsample(scale_factor=2), nn.AvgPool2d(3, 1)
    ),
    "transposed": nn.Sequential(nn.ConvTranspose2d(2, 2, 2, 2), nn.AvgPool2d(3, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_field_is_what_the_gradient_touches(name):
    model = NETWORKS[name]
    rank = 1 if name == "one axis" else 3 if name == "three axes" else 2
    x = torch.rand(1, 2, *[64 if rank < 3 else 24] * rank)
    layer = look(model, x)[-1]
    assert layer.receptive_field == _seen_by_gradient(_positive(model), x)
    assert not layer.whole_input


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.mean((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.flatten(2).amax(-1),
        lambda x: F.avg_pool2d(x * x.mean((2, 3), keepdim=True).sigmoid(), 2),
    ],
    ids=["mean", "adaptive", "flattened", "gated by a mean"],
)
def test_what_sees_everything_says_so(call):
    layer = look(Calls(call), torch.randn(1, 3, 20, 20))[-1]
    assert layer.whole_input
    assert layer.receptive_field == layer.input_extent == [20, 20]


def test_what_sees_everything_sees_no_row_that_was_dropped():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1))
    layer = look(model, torch.randn(1, 3, 34, 33))[-1]
    assert (layer.receptive_field, layer.whole_input) == ([33, 33], False)


def test_a_field_is_never_larger_than_the_input():
    model = nn.Sequential(nn.Conv2d(3, 4, 9, padding=4), nn.MaxPool2d(8))
    (layer,) = look(model, torch.randn(1, 3, 12, 12))
    assert (layer.receptive_field, layer.whole_input) == ([12, 12], True)
    assert Axis(224).through(7, 2).through(3, 2).seen() == 11
    assert Axis(9).through(7, 2).through(3, 2).seen() == 9
