# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Inspection: what is found, what it is called, what it sees, what the report says."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

import torch.nn.functional as F
from models import Calls, look
from torch import nn

import poolkit
import poolkit.nn
from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection import inspect
from poolkit.inspection.memory import saved_for_backward
from poolkit.inspection.trace import trace

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


def test_who_runs_a_model_is_not_its_source():
    """A model of torch's modules alone has no line of its own."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    (layer,) = look(model, torch.randn(1, 3, 8, 8))
    assert (layer.name, layer.source) == ("1", "")


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


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(
    ("module", "operation"),
    [
        (poolkit.nn.MaxPool1d(2), "max_pool1d"),
        (poolkit.nn.MaxPool2d(2), "max_pool2d"),
        (poolkit.nn.AvgPool1d(2), "avg_pool1d"),
        (poolkit.nn.AvgPool2d(2), "avg_pool2d"),
        (poolkit.nn.AdaptiveAvgPool2d(2), "adaptive_avg_pool2d"),
        (poolkit.nn.GlobalAvgPool1d(), "global_avg_pool1d"),
        (poolkit.nn.GlobalAvgPool2d(), "global_avg_pool2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_poolkits_modules_on_tiny_inputs_are_found_as_poolkits(module, operation, by_keyword):
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = module

        def forward(self, x):
            return self.pool(input=x) if by_keyword else self.pool(x)

    x = torch.randn(1, 2, *[8] * int(operation[-2]))
    (layer,) = look(Tiny(), x)
    assert (layer.name, layer.kind, layer.operation) == ("pool", "module", operation)
    assert layer.out_shape == list(module(x).shape)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_inspected_as_it_was_written():
    model = torch.compile(Calls(lambda x: F.max_pool2d(x, 2)))
    (layer,) = look(model, torch.randn(1, 3, 8, 8))
    assert layer.operation == "max_pool2d"


def test_the_levels_of_a_chain_are_found():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), poolkit.nn.SPPF(5, levels=3))
    layers = look(model, torch.rand(1, 3, 34, 34))
    assert [layer.operation for layer in layers] == ["max_pool2d"] * 3
    assert {layer.window for layer in layers} == {"5×5, stride 1, padding 2"}


def test_poolkits_calls_leave_no_trace_behind():
    from poolkit.torch import dispatch

    def ways():
        return (
            dispatch.pool,
            dispatch.pool_with_indices,
            dispatch.chain,
            poolkit.functional.shortcuts,
        )

    before = ways()
    look(Calls(lambda x: poolkit.max_pool2d(x, 2)), torch.randn(1, 3, 8, 8))
    assert ways() == before
    with pytest.raises(PoolValueError):
        look(Calls(lambda x: poolkit.max_pool2d(x, 0)), torch.randn(1, 3, 8, 8))
    assert ways() == before


def test_the_field_of_a_window_of_poolkits():
    layer = look(
        Calls(lambda x: poolkit.pool(x, poolkit.Sliding(3, dilation=2), poolkit.GeM())),
        torch.randn(1, 3, 20, 20),
    )[0]
    assert layer.receptive_field == [7, 7]


def test_share_kept():
    (layer,) = look(nn.Sequential(nn.MaxPool2d(2)), torch.zeros(1, 1, 56, 56))
    assert (layer.in_shape, layer.out_shape, layer.kept) == ([1, 1, 56, 56], [1, 1, 28, 28], 0.25)


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


@pytest.mark.parametrize(
    ("module", "saved"),
    [
        (nn.MaxPool2d(2), 8 * 64 * 4 + 8 * 16 * 8),  # the input, and an int64 for every output
        (nn.AvgPool2d(2), 8 * 64 * 4),
    ],
    ids=["max", "average"],
)
def test_what_both_run_by_aten_saves_the_same_bytes(module, saved):
    x = torch.randn(1, 8, 8, 8)
    (layer,) = look(nn.Sequential(module), x)
    assert (layer.torch_saved, layer.poolkit_saved) == (saved, saved)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1"])
def test_seconds_that_cannot_be_waited_for_are_refused(seconds):
    with pytest.raises(PoolValueError, match=r"seconds must be .* got .*, or 0 to time nothing"):
        inspect(nn.MaxPool2d(2), torch.rand(1, 1, 4, 4), seconds=seconds)
