# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Inspection: what is found, what it is called, what it sees, what the report says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

import torch.nn.functional as F
from torch import nn

import poolkit
import poolkit.nn
from poolkit.errors import MissingExtraError, PoolError, PoolTypeError, PoolValueError
from poolkit.inspection import LayerRecord, Report, inspect, measure
from poolkit.inspection.dataflow import Axis
from poolkit.inspection.files import write_whole
from poolkit.inspection.measure import Comparison, interleave, saved_for_backward
from poolkit.inspection.page import render
from poolkit.inspection.pictures import feature_maps, palette, png
from poolkit.inspection.trace import trace


def look(model: nn.Module, *inputs: torch.Tensor) -> list[LayerRecord]:
    return inspect(model, inputs, seconds=0, pictures=False).layers


class Calls(nn.Module):
    """A convolution, and then whatever a test wants to call."""

    def __init__(self, call) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.call = call

    def forward(self, x):
        return self.call(self.conv(x))


WAYS = {
    "F.max_pool2d": (lambda x: F.max_pool2d(x, 2), "max_pool2d", "2×2"),
    "with indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d", "2×2, with indices",
    ),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, 2, 1), "max_pool2d", "2×2, stride 1"),
    "aten": (lambda x: torch.ops.aten.max_pool2d(x, 2), "max_pool2d", "2×2"),
    "aten overload": (
        lambda x: torch.ops.aten.avg_pool2d.default(x, [2, 2]), "avg_pool2d", "2×2",
    ),
    "input by name": (lambda x: F.max_pool2d(input=x, kernel_size=2), "max_pool2d", "2×2"),
    "average": (
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False, divisor_override=4),
        "avg_pool2d", "3×3, stride 1, padding 1, padding not counted, divisor 4",
    ),
    "dilated": (
        lambda x: F.max_pool2d(x, (3, 2), dilation=(2, 1)), "max_pool2d", "3×2, dilation 2×1",
    ),
    "lp": (lambda x: F.lp_pool2d(x, 3.0, 2), "lp_pool2d", "2×2, p=3"),
    "adaptive average": (
        lambda x: F.adaptive_avg_pool2d(x, (1, None)), "adaptive_avg_pool2d", "to 1×same",
    ),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, 3), "adaptive_max_pool2d", "to 3×3"),
    "area": (
        lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
        "adaptive_avg_pool2d", "to 4×4",
    ),
    "mean": (lambda x: x.mean((2, 3)), "mean", "axes 2, 3"),
    "mean of negative axes": (lambda x: x.mean(dim=[-1, -2]), "mean", "axes 2, 3"),
    "torch.mean": (lambda x: torch.mean(x, (2, 3), keepdim=True), "mean", "axes 2, 3"),
    "amax": (lambda x: torch.amax(x, dim=(2, 3)), "amax", "axes 2, 3"),
    "flattened": (lambda x: x.flatten(2).mean(-1), "mean", "axis 2"),
    "viewed": (lambda x: x.view(len(x), 8, -1).max(dim=2)[0], "max", "axis 2"),
    "channels behind": (lambda x: x.permute(0, 2, 3, 1).sum((1, 2)), "sum", "axes 1, 2"),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).mean(1), "mean", "axis 1"),
    "after a relu and a sum": (lambda x: (F.relu(x) + 1).mean((2, 3)), "mean", "axes 2, 3"),
    "a strip": (lambda x: x.mean(3, keepdim=True), "mean", "axis 3"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_pooling_is_found_once(way):
    call, operation, window = WAYS[way]
    (layer,) = look(Calls(call), torch.randn(2, 3, 8, 8))
    assert (layer.operation, layer.window) == (operation, window)
    assert layer.kind == (
        "reduction" if operation in ("mean", "amax", "max", "sum") else "function"
    )
    assert re.fullmatch(r"test_inspection\.py:\d+", layer.source)
    assert layer.out_shape == list(call(torch.randn(2, 8, 8, 8)).shape)


NOT_POOLING = {
    "over the batch": lambda x: x.mean(0),
    "over channels": lambda x: x.mean(1),
    "batch statistics": lambda x: x.mean((0, 2, 3)),
    "everything": lambda x: x.mean(),
    "two tensors": lambda x: torch.max(x, x + 1),
    "after a flatten of all": lambda x: x.flatten(1).mean(1),
    "bilinear": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "no reduction": F.relu,
}


@pytest.mark.parametrize("way", NOT_POOLING)
def test_what_does_not_pool_is_not_found(way):
    assert look(Calls(NOT_POOLING[way]), torch.randn(2, 3, 8, 8)) == []


def test_normalising_an_image_is_neither_a_pooling_nor_a_view():
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))

        def forward(self, x):
            return self.net((x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True))

    (layer,) = look(Normalised(), torch.randn(1, 3, 16, 16))
    assert (layer.name, layer.receptive_field) == ("net.1", [4, 4])


MODULES = {
    nn.MaxPool1d(3): (1, "max", "3"),
    nn.MaxPool2d(3, 2, ceil_mode=True): (2, "max", "3×3, stride 2, ceil mode"),
    nn.MaxPool3d(2): (3, "max", "2×2×2"),
    nn.AvgPool1d(2): (1, "average", "2"),
    nn.AvgPool2d((2, 3)): (2, "average", "2×3"),
    nn.AvgPool3d(2, 1): (3, "average", "2×2×2, stride 1"),
    nn.LPPool1d(2, 3): (1, "Lp", "3, p=2"),
    nn.LPPool2d(2, 3): (2, "Lp", "3×3, p=2"),
    nn.AdaptiveAvgPool1d(2): (1, "adaptive average", "to 2"),
    nn.AdaptiveAvgPool2d(1): (2, "adaptive average", "to 1×1"),
    nn.AdaptiveAvgPool3d((1, 2, None)): (3, "adaptive average", "to 1×2×same"),
    nn.AdaptiveMaxPool2d(4): (2, "adaptive max", "to 4×4"),
    nn.FractionalMaxPool2d(2, output_size=3): (2, "fractional max", "2×2"),
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module))
def test_every_module_of_torch_is_found_once_and_described(module):
    rank, words, window = MODULES[module]
    (layer,) = look(nn.Sequential(module), torch.randn(2, 3, *[8] * rank))
    assert (layer.kind, layer.name, layer.words, layer.window) == ("module", "0", words, window)


def test_unpooling_is_found_with_its_indices():
    class Unpooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x):
            return self.up(*self.down(x))

    down, up = look(Unpooled(), torch.randn(1, 2, 8, 8))
    assert (down.words, up.words, up.kept) == ("max", "max unpool", 4.0)
    assert up.arguments["indices"] == "int64[1, 2, 4, 4]"


def test_order_of_execution_repeats_and_shared_modules():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.AdaptiveAvgPool2d(1)
            self.pool = nn.MaxPool2d(2)
            self.alias = self.pool

        def forward(self, x):
            return self.last(F.avg_pool2d(self.alias(self.pool(x)), 2))

    layers = look(Twice(), torch.randn(1, 3, 32, 32))
    assert [layer.name for layer in layers] == ["pool", "pool", "", "last"]
    assert [layer.in_shape[-1] for layer in layers] == [32, 16, 8, 4]
    assert layers[0].aliases == ["alias"]
    assert [layer.index for layer in layers] == [0, 1, 2, 3]


def test_poolkits_own_modules_are_found_once():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), poolkit.nn.MaxPool2d(2), poolkit.nn.AdaptiveAvgPool2d(1)
    )
    layers = look(model, torch.randn(1, 3, 10, 10))
    assert [(layer.name, layer.operation) for layer in layers] == [
        ("1", "max_pool2d"), ("2", "adaptive_avg_pool2d"),
    ]  # fmt: skip


POOLKITS = {
    "by torch's name": (
        lambda x: poolkit.max_pool2d(x, 3, 2, 1), "max_pool2d", "3×3, stride 2, padding 1",
    ),
    "with indices": (
        lambda x: poolkit.max_pool2d(x, 2, return_indices=True)[0],
        "max_pool2d", "2×2, with indices",
    ),
    "average": (
        lambda x: poolkit.avg_pool2d(x, 2, count_include_pad=False),
        "avg_pool2d", "2×2, padding not counted",
    ),
    "adaptive": (
        lambda x: poolkit.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d", "to 2×2",
    ),
    "global": (lambda x: poolkit.global_avg_pool2d(x), "global_avg_pool2d", "whole map"),
    "lp": (lambda x: poolkit.lp_pool2d(x, 2, 2), "lp_pool2d", "2×2, p=2"),
    "pool": (
        lambda x: poolkit.pool(x, poolkit.Sliding(3), poolkit.GeM()), "pool", "Sliding(3)",
    ),
    "dilated average": (
        lambda x: poolkit.pool(x, poolkit.Sliding(2, dilation=2), "mean"),
        "pool", "Sliding(2, dilation=2)",
    ),
    "pyramid": (
        lambda x: poolkit.pool(x, poolkit.Pyramid((2, 1)), "max"), "pool", "Pyramid((2, 1))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", POOLKITS)
def test_poolkits_functions_are_found_once(way):
    call, operation, window = POOLKITS[way]
    (layer,) = inspect(Calls(call), torch.randn(2, 3, 8, 8), seconds=0).layers
    assert (layer.operation, layer.window, layer.kind) == (operation, window, "function")
    assert layer.source.startswith("test_inspection.py:")
    assert layer.poolkit_saved is not None
    assert (layer.torch_saved is None) == (operation == "pool")
    assert layer.note == ("not in torch: torch has no such pooling." if operation == "pool" else "")


def test_poolkits_modules_called_by_keyword_are_found():
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.other = poolkit.nn.MaxPool2d(2), nn.AvgPool2d(2)

        def forward(self, x):
            return self.other(input=self.pool(input=x))

    layers = look(ByKeyword(), torch.randn(1, 3, 8, 8))
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("pool", "module"), ("other", "module"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_inspected_as_it_was_written():
    model = torch.compile(Calls(lambda x: F.max_pool2d(x, 2)))
    (layer,) = look(model, torch.randn(1, 3, 8, 8))
    assert layer.operation == "max_pool2d"


def test_poolkits_calls_leave_no_trace_behind():
    from poolkit.torch import dispatch

    before = dispatch.pool, dispatch.pool_with_indices
    look(Calls(lambda x: poolkit.max_pool2d(x, 2)), torch.randn(1, 3, 8, 8))
    assert (dispatch.pool, dispatch.pool_with_indices) == before


def test_the_field_of_a_window_of_poolkits():
    layer = look(
        Calls(lambda x: poolkit.pool(x, poolkit.Sliding(3, dilation=2), poolkit.GeM())),
        torch.randn(1, 3, 20, 20),
    )[0]
    assert layer.receptive_field == [7, 7]


def test_share_kept():
    (layer,) = look(nn.Sequential(nn.MaxPool2d(2)), torch.zeros(1, 1, 56, 56))
    assert (layer.in_shape, layer.out_shape, layer.kept) == ([1, 1, 56, 56], [1, 1, 28, 28], 0.25)


# ---------------------------------------------------------------- receptive fields


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


def test_a_field_is_never_larger_than_the_input():
    model = nn.Sequential(nn.Conv2d(3, 4, 9, padding=4), nn.MaxPool2d(8))
    (layer,) = look(model, torch.randn(1, 3, 12, 12))
    assert (layer.receptive_field, layer.whole_input) == ([12, 12], True)
    assert Axis(224).through(7, 2).through(3, 2).seen() == 11
    assert Axis(9).through(7, 2).through(3, 2).seen() == 9


# ---------------------------------------------------------------- the model is left alone


def test_the_model_keeps_its_mode_its_hooks_and_its_statistics():
    norm = nn.BatchNorm2d(4).eval()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.MaxPool2d(2)).train()
    norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, torch.randn(2, 3, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not nn.modules.module._global_forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_in_place_operation_does_not_change_what_is_measured():
    model = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(inplace=True))
    found, _ = trace(model.eval(), (-torch.ones(1, 1, 4, 4),))
    assert torch.equal(found[0].output, -torch.ones(1, 1, 2, 2))


def test_layout_is_kept():
    model = nn.Sequential(nn.MaxPool2d(2))
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    (layer,) = look(model, x)
    assert layer.layout == "channels last"


# ---------------------------------------------------------------- errors


def test_a_model_that_raises_is_named_with_shapes():
    with pytest.raises(PoolValueError) as caught:
        look(nn.Conv2d(3, 4, 3), torch.zeros(1, 2, 5, 5))
    assert str(caught.value).startswith(
        "the model raised on input float32[1, 2, 5, 5]: RuntimeError: Given groups=1"
    )
    assert "\n" not in str(caught.value)
    assert not nn.modules.module._global_forward_hooks


def test_not_a_model():
    with pytest.raises(PoolTypeError, match=r"a model is a torch\.nn\.Module, got function"):
        inspect(lambda x: x, torch.zeros(1))


# ---------------------------------------------------------------- measuring


def test_saved_bytes_are_exact():
    x = torch.randn(2, 3, 8, 8)
    # torch keeps the whole input and an int64 index for every output.
    expected = x.numel() * 4 + 2 * 3 * 4 * 4 * 8
    assert saved_for_backward(lambda leaf: F.max_pool2d(leaf, 2), x) == expected
    assert saved_for_backward(lambda leaf: leaf.mean((2, 3)), x) == 0
    # One storage counts once, whichever views of it are kept.
    assert saved_for_backward(lambda leaf: leaf[..., :4] * leaf[..., 4:], x) == x.numel() * 4
    assert saved_for_backward(lambda leaf: leaf.amax(0), torch.ones(2, dtype=torch.int32)) is None
    assert saved_for_backward(lambda leaf: leaf.detach(), x) is None


def test_poolkit_saves_less():
    (layer,) = look(nn.Sequential(nn.MaxPool2d(2)), torch.randn(2, 8, 64, 64))
    assert layer.torch_saved is not None
    assert layer.poolkit_saved is not None
    # One byte an output at most, against eight and the input; small change for alignment.
    assert layer.poolkit_saved <= 2 * 8 * 32 * 32 + 64 < layer.torch_saved


def test_interleaved_samples_are_paired():
    order = []
    samples = interleave([lambda: order.append("a"), lambda: order.append("b")], seconds=0.0)
    assert len(samples[0]) == len(samples[1]) >= 7
    assert set(order) == {"a", "b"}


def test_a_comparison_knows_noise_from_difference():
    noise = Comparison((1.0, 1.2) * 20, (1.2, 1.0) * 20)
    assert noise.interval[0] < 1 < noise.interval[1]
    assert noise.undecided
    faster = Comparison((2.0, 2.4) * 20, (1.2, 1.0) * 20)
    assert faster.interval[0] > 1
    assert not faster.undecided
    assert Comparison((1e-3,) * 9, (2e-3,) * 9).before_ms == 1.0


@pytest.mark.parametrize(("ratio", "looks"), [(1.0, 3), (2.0, 1)])
def test_an_undecided_comparison_looks_again(monkeypatch, ratio, looks):
    taken = []

    def samples(calls, seconds):
        taken.append(seconds)
        return [[ratio] * 15, [1.0] * 15]

    monkeypatch.setattr(measure, "interleave", samples)
    found = measure.compare(lambda: None, lambda: None, 0.5)
    assert (len(taken), len(found.before)) == (looks, 15 * looks)


# ---------------------------------------------------------------- pictures


def test_channels_that_vary_most_come_first():
    before = torch.zeros(2, 3, 4, 4)
    before[0, 1] = torch.arange(16.0).reshape(4, 4)
    before[0, 2, 0, 0] = 1
    before[1, 0] = torch.randn(4, 4) * 100  # the second sample does not count
    maps = feature_maps(before, F.max_pool2d(before, 2), rank=2)
    assert [m.channel for m in maps] == [1, 2, 0]
    assert (maps[0].low, maps[0].high, maps[0].before_shape, maps[0].after_shape) == (
        0.0, 15.0, (4, 4), (2, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "rank", "shapes"),
    [
        ((2, 3, 8), (2, 3, 4), 1, ((1, 8), (1, 4))),
        ((2, 3, 8, 8), (2, 3), 2, ((8, 8), (1, 1))),
        ((2, 3, 4, 6, 8), (2, 3, 2, 3, 4), 3, ((6, 8), (3, 4))),
        ((3, 8, 8), (3, 4, 4), 2, ((8, 8), (4, 4))),
        ((2, 3, 8), (2, 3), 1, ((1, 8), (1, 1))),
        ((3, 8), (3, 4), 1, ((1, 8), (1, 4))),
    ],
)
def test_maps_of_every_rank_are_shown(before, after, rank, shapes):
    first, *_ = maps = feature_maps(torch.randn(before), torch.randn(after), rank)
    assert len(maps) == 3
    assert (first.before_shape, first.after_shape) == shapes
    assert first.before.startswith(b"\x89PNG")


def test_maps_that_do_not_match_are_not_shown():
    assert feature_maps(torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2), 2) == []
    assert feature_maps(torch.randn(0, 3, 4, 4), torch.randn(0, 3, 2, 2), 2) == []


def test_a_picture_is_enlarged_by_repeating_and_survives_nan():
    import io

    from PIL import Image

    plane = torch.tensor([[0.0, 1.0], [float("nan"), float("inf")]])
    image = Image.open(io.BytesIO(png(plane, 0.0, 1.0)))
    assert image.size == (128, 128)
    colours = image.convert("RGB")
    corners = [colours.getpixel(at) for at in ((0, 0), (127, 0), (0, 127), (127, 127))]
    scale = palette()
    assert corners == [
        tuple(scale[:3]), tuple(scale[254 * 3 : 255 * 3]), (128, 128, 128),
        tuple(scale[254 * 3 : 255 * 3]),
    ]  # fmt: skip


def test_the_colour_scale_gets_lighter_in_every_step():
    colours = palette()
    assert len(colours) == 256 * 3
    linear = [(c / 255 / 12.92) if c < 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colours]
    luminance = [
        0.2126 * linear[i] + 0.7152 * linear[i + 1] + 0.0722 * linear[i + 2]
        for i in range(0, 255 * 3, 3)
    ]
    # Rounding to bytes may turn one step into none, and no more.
    assert all(b > a * 0.99 for a, b in pairwise(luminance))
    assert all(b > a for a, b in pairwise(luminance[::8]))
    assert luminance[0] < 0.02 < 0.8 < luminance[-1]


# ---------------------------------------------------------------- the report


@pytest.fixture
def report() -> Report:
    torch.manual_seed(0)
    model = Calls(lambda x: F.max_pool2d(x, 2).mean((2, 3)))
    return inspect(model, torch.rand(2, 3, 8, 8), name="<b>Net</b>", seconds=0.01)


def test_json_is_versioned_and_complete(report):
    data = json.loads(report.to_json())
    assert data["version"] == 1
    assert data["model"] == "<b>Net</b>"
    assert data["inputs"] == ["float32[2, 3, 8, 8]"]
    assert [layer["operation"] for layer in data["layers"]] == ["max_pool2d", "mean"]
    assert data["layers"][0]["torch_saved"] == 2 * 8 * 64 * 4 + 2 * 8 * 16 * 8
    assert "pictures" not in data["layers"][0]
    assert data["torch_share"] == pytest.approx(sum(x["torch_share"] for x in data["layers"]))


def test_json_has_no_infinity():
    model = nn.Sequential(nn.LPPool2d(float("inf"), 2))
    data = json.loads(inspect(model, torch.rand(1, 1, 4, 4), seconds=0).to_json())
    assert data["layers"][0]["arguments"]["norm_type"] == "inf"


def test_page_is_self_contained(report):
    page = render(report)
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:image/|#)""", page)
    assert not re.search(r"\sstyle=", page)
    assert "url(" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy is not None
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    assert f"sha256-{digest}" in policy[1]


def test_page_escapes_names_and_describes_pictures(report):
    page = render(report)
    assert "<b>Net</b>" not in page
    assert "&lt;b&gt;Net&lt;/b&gt;" in page
    assert all('alt="' in tag for tag in re.findall(r"<img [^>]*>", page))
    assert re.search(r'alt="Channel \d before: 8 by 8, from [-\d.e]+ to [-\d.e]+, mean', page)
    assert "One value sees 4×4 of the 8×8 input" in page


def test_page_without_pooling_says_what_was_looked_for():
    report = inspect(nn.Linear(2, 2), torch.zeros(1, 2), seconds=0)
    page = render(report)
    assert "No pooling ran" in page
    assert "mean, sum, max, min and logsumexp over the spatial axes" in page
    assert json.loads(report.to_json())["layers"] == []


def test_print_shows_the_table(report):
    text = str(report)
    assert "max 2×2" in text
    assert "mean over space axes 2, 3" in text
    assert "When training it keeps" in text
    assert "\x1b" not in text
    assert "PNG" not in repr(report)


@pytest.mark.parametrize(("package", "name"), [("jinja2", "jinja2"), ("PIL", "pillow")])
def test_missing_packages_say_what_to_install(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        render(inspect(nn.MaxPool2d(2), torch.rand(1, 1, 4, 4), seconds=0))
    assert str(caught.value) == (
        f"this part of poolkit needs the package '{name}', which is not installed. "
        "Install it with: pip install 'poolkit[inspect]'."
    )


def test_html_is_written_whole_or_not_at_all(report, tmp_path):
    target = tmp_path / "report.html"
    assert report.to_html(target) == target
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_writing_fails_with_a_reason_and_leaves_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(PoolValueError, match="it is a folder"):
        write_whole(tmp_path, "x")
    with pytest.raises(PoolValueError, match="there is no folder"):
        write_whole(tmp_path / "nowhere" / "report.html", "x")
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(PoolError, match=r"cannot write .*report\.html: No space left on device"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_progress_counts_up_to_the_end():
    seen = []
    model = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2))
    inspect(model, torch.zeros(1, 1, 8, 8), seconds=0, progress=lambda *args: seen.append(args))
    assert seen == [("running the model", 0, 0), ("0", 0, 2), ("1", 1, 2), ("done", 2, 2)]
