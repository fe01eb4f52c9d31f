# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Pyramids, strips and rates: exact small examples, sizes of every kind, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import poolkit
from poolkit import PoolError
from poolkit.vision.multiscale import (
    ASPP,
    SPP,
    PyramidPool2d,
    StripPool2d,
    spatial_pyramid_pool2d,
    strip_pool2d,
)

PLAIN: dict[str, Any] = {"norm": None, "activation": None}
MODULES = {
    "psp": lambda: PyramidPool2d(4, (1, 2, 3)),
    "psp without norm": lambda: PyramidPool2d(4, (1, (2, 3)), 2, **PLAIN),
    "strip": lambda: StripPool2d(4),
    "strip with norm": lambda: StripPool2d(4, 5, norm=nn.BatchNorm2d),
    "aspp": lambda: ASPP(4, 3, rates=(1, 2, 3)),
    "aspp without norm": lambda: ASPP(4, rates=(2,), **PLAIN),
    "spp": lambda: SPP(),
    "spp of means": lambda: SPP((3, (1, 2)), "mean"),
}


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODULES[name]()


# --- spatial pyramid pooling ---------------------------------------------------------------------


def test_spp_by_hand() -> None:
    """1 to 16 as 4x4: quarters have the maxima 6, 8, 14, 16 and the means (1+2+5+6)/4 = 3.5, ..."""
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    assert spatial_pyramid_pool2d(x, (2, 1)).tolist() == [[6, 8, 14, 16, 16]]
    assert spatial_pyramid_pool2d(x, (2, 1), "mean").tolist() == [[3.5, 5.5, 11.5, 13.5, 8.5]]
    assert spatial_pyramid_pool2d(x).tolist() == [[*range(1, 17), 6, 8, 14, 16, 16]]
    two = torch.stack([x[0, 0], -x[0, 0]])  # the values of a channel lie together
    assert spatial_pyramid_pool2d(two, (2, 1)).tolist() == [
        *(6, 8, 14, 16, 16),
        *(-1, -3, -9, -11, -1),
    ]


@pytest.mark.parametrize("size", [(13, 9), (4, 4), (3, 50), (2, 2), (1, 1), (224, 160), (7, 7)])
@pytest.mark.parametrize("reduction", ["max", "mean", "median"])
def test_spp_has_one_length_for_all_sizes(size: tuple[int, int], reduction: str) -> None:
    x = maps(2, 3, *size)
    vector = spatial_pyramid_pool2d(x, reduction=reduction)
    assert vector.shape == (2, 3 * 21)
    if reduction == "median":
        return
    adaptive = F.adaptive_max_pool2d if reduction == "max" else F.adaptive_avg_pool2d
    expected = torch.cat([adaptive(x, level).flatten(2) for level in (4, 2, 1)], 2).flatten(1)
    torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)


def test_spp_takes_arrays_images_and_nothing() -> None:
    x = maps(2, 3, 6, 5)
    expected = spatial_pyramid_pool2d(x)
    assert np.array_equal(spatial_pyramid_pool2d(x.numpy()), expected.numpy())
    assert torch.equal(spatial_pyramid_pool2d(x[1]), expected[1])
    assert spatial_pyramid_pool2d(x[:0]).shape == (0, 63)
    assert spatial_pyramid_pool2d(x, [(1, 4), 2]).shape == (2, 3 * 8)
    assert repr(SPP([2, 1], "mean")) == "SPP(levels=(2, 1), reduction='mean')"


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(20, 20), (5, 7), (1, 3)])
def test_sppf_is_a_pyramid_of_windows(
    size: tuple[int, int], dtype: torch.dtype, kernel_size: int
) -> None:
    """Windows of 5, 9 and 13 side by side, as in the block that SPPF took the place of."""
    x = maps(2, 3, *size, dtype=dtype)
    windows = [kernel_size + level * (kernel_size - 1) for level in range(3)]
    if kernel_size == 5:
        assert windows == [5, 9, 13]
    side_by_side = torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in windows)], 1)
    assert torch.equal(poolkit.sppf(x, kernel_size), side_by_side)
    assert torch.equal(poolkit.nn.SPPF(kernel_size)(x), side_by_side)


# --- strips --------------------------------------------------------------------------------------


def test_strips_by_hand() -> None:
    """Rows (1+3)/2 = 2 and (5+7)/2 = 6, columns (1+5)/2 = 3 and (3+7)/2 = 5."""
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    rows, columns = strip_pool2d(x)
    assert rows.tolist() == [[[[2.0], [6.0]]]]
    assert columns.tolist() == [[[[3.0, 5.0]]]]
    rows, columns = strip_pool2d(x.numpy(), "max")
    assert rows.ravel().tolist() == [3, 7]
    assert columns.ravel().tolist() == [5, 7]
    module = StripPool2d(1)
    for name, parameter in module.named_parameters():
        nn.init.zeros_(parameter)
        if name.endswith("weight"):  # the middle tap alone
            parameter.data.view(-1)[parameter.numel() // 2] = 1
    # The sums of both are 2+3, 2+5, 6+3, 6+5.
    gate = torch.tensor([[[[5.0, 7.0], [9.0, 11.0]]]]).sigmoid()
    torch.testing.assert_close(module(x), x * gate)
    nn.init.zeros_(module.fuse.weight)
    nn.init.constant_(module.fuse.bias, -200.0)
    assert module(x).abs().max() == 0  # gate 0
    nn.init.constant_(module.fuse.bias, 200.0)
    assert torch.equal(module(x), x)  # gate 1


# --- pyramid with upsampling, and rates ----------------------------------------------------------


def test_psp_by_hand() -> None:
    """One level of one bin, weight 1: the mean of 1, 3, 5, 7 is 4, everywhere."""
    module = PyramidPool2d(1, (1,), **PLAIN)
    nn.init.ones_(module.branches[0][0].weight)
    nn.init.zeros_(module.branches[0][0].bias)
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert module(x).tolist() == [[[[1, 3], [5, 7]], [[4, 4], [4, 4]]]]


def test_psp_is_what_torch_computes() -> None:
    module = made("psp").train()
    x = maps(2, 4, 13, 9)
    expected, other = [x], copy.deepcopy(module)
    for level, branch in zip((1, 2, 3), other.branches, strict=True):
        y = branch(F.adaptive_avg_pool2d(x, level))
        expected.append(F.interpolate(y, (13, 9), mode="bilinear", align_corners=False))
    torch.testing.assert_close(module(x), torch.cat(expected, 1))
    assert PyramidPool2d(2048).out_channels == 4096
    assert sum(p.numel() for p in PyramidPool2d(64).parameters()) == 64**2 + 2 * 64


def test_aspp_is_what_torch_computes() -> None:
    module = made("aspp").train()
    x = maps(2, 4, 9, 8)
    other = copy.deepcopy(module)
    parts = [other.point(x), *(branch(x) for branch in other.branches)]
    for branch, rate in zip(module.branches, (1, 2, 3), strict=True):
        assert branch[0].dilation == branch[0].padding == (rate, rate)
    parts.append(other.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, 9, 8))
    torch.testing.assert_close(module(x), other.project(torch.cat(parts, 1)))
    assert sum(p.numel() for p in ASPP(16).parameters()) == 34 * 16**2 + 12 * 16
    assert sum(p.numel() for p in StripPool2d(16).parameters()) == 7 * 16**2 + 3 * 16


@pytest.mark.parametrize("name", ["psp", "aspp"])
def test_batch_norm_of_one_image(name: str) -> None:
    """Refused in training, where the mean of an image is a single value; fine in eval mode, with
    another norm, and with none."""
    module, x = made(name), maps(1, 4, 6, 6)
    with pytest.raises(PoolError, match=r"batch norm cannot be trained on .* of a single image"):
        module(x)
    assert module.eval()(x).shape[2:] == (6, 6)
    kind = type(module)
    assert kind(4, norm=None)(x).shape[2:] == (6, 6)
    grouped = kind(4, out_channels=4, norm=lambda channels: nn.GroupNorm(1, channels))
    assert grouped(x).shape[2:] == (6, 6)


def test_batch_norm_of_a_strip_of_one_position() -> None:
    with pytest.raises(PoolError, match=r"trained on the strip of a single image.*by StripPool2d"):
        made("strip with norm")(maps(1, 4, 1, 6))


# --- what holds for all of them ------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_gradients(name: str) -> None:
    module = made(name).double().eval()
    x = maps(2, 4, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)


@pytest.mark.parametrize("name", MODULES)
def test_layouts_dtypes_and_images(name: str) -> None:
    module = made(name).eval()
    x = maps(2, 4, 7, 6)
    expected = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(module(x[0]), expected[0])
    assert module(x[:0]).shape == (0, *expected.shape[1:])
    for dtype, near in ((torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        half = copy.deepcopy(module).to(dtype)(x.to(dtype))
        exact = copy.deepcopy(module).to(dtype).double()(x.to(dtype).double())
        assert half.dtype == dtype
        torch.testing.assert_close(half.double(), exact, rtol=near, atol=near)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert module(x).isfinite().all()
    other = made(name).eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)
    x[0, 0, 0, 0] = float("nan")
    assert module(x).isnan().any()


@pytest.mark.parametrize("name", ["psp", "strip", "aspp", "spp"])
def test_compiled_in_one_graph(name: str) -> None:
    module = made(name).eval()
    x = maps(2, 4, 7, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spatial_pyramid_pool2d(maps(3, 3)), r"rank 3 .* or 4 .* got rank 2, while pool.*"
         r"float32 \(3, 3\) by spatial_pyramid_pool2d"),
        (lambda: spatial_pyramid_pool2d(maps(1, 1, 3, 0)), "axis without elements"),
        (lambda: spatial_pyramid_pool2d(maps(1, 1, 3, 3), 2), "levels must be a sequence"),
        (lambda: SPP((2, -1)), "output_size must be at least 0, got -1"),
        (lambda: spatial_pyramid_pool2d(maps(1, 1, 3, 3), (2,), "maxx"), "no reduction named"),
        (lambda: strip_pool2d(maps(2, 2)), "got rank 2, while pooling float32 .* by strip_pool2d"),
        (lambda: StripPool2d(4, 2), "strip_kernel must be odd, got 2"),
        (lambda: StripPool2d(4)(maps(1, 3, 5, 5)), r"the module is for 4 channels, the input has "
         r"3, while pooling float32 \(1, 3, 5, 5\) by StripPool2d. Make it with channels=3"),
        (lambda: PyramidPool2d(4)(maps(1, 3, 5, 5)), "by PyramidPool2d. Make it"),
        (lambda: PyramidPool2d(4)(maps(1, 4, 5, 5).long()), "floating dtype.* by PyramidPool2d"),
        (lambda: ASPP(4)(maps(1, 4, 5, 5).long()), "maps are of a floating dtype, while.* by ASPP"),
        (lambda: ASPP(True), "channels must be an integer, got True"),
        (lambda: PyramidPool2d(4, norm="batch"), "norm must be a class or a function"),
        (lambda: ASPP(4, activation=nn.ReLU(), norm=3), "norm must be a class or a function"),
        (lambda: ASPP(4)(maps(2, 5, 5)), "by ASPP. Make it with channels=2"),
        (lambda: ASPP(4, rates=(0,)), r"rates must be integers of at least 1, got \(0,\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert caught.value.instead
