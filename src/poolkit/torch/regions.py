"""Regions of torch tensors: operators, and their gradients.

On the CPU the operators are kernels, all deterministic for any number of threads:

    region_mean          values by a mean
    region_spread        its adjoint
    region_max           values by a maximum, and a code for which sample of its bin each one is
    region_scatter       the adjoint of picking those samples
    region_take          and the adjoint of that
    region_move          the gradient of an integral with respect to the boxes

A maximum saves its codes, a mean nothing but the boxes, and the integral the input, if the boxes
have a gradient. On other devices, under transforms of torch.func, and for second derivatives of an
integral, the same values are made of whole-array operations, which differentiate themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..arrays import Array
from ..errors import PoolTypeError, is_torch_tensor
from ..regions import Call, code_bytes, native_boxes
from ..windows.regions import Bins, Placed, place
from .autograd import apply
from .layout import as_laid_out
from .plain import NAMES, check

__all__ = ["composite", "pool_regions"]

_BINS = "int rows, int columns, float scale, int ratio, bool aligned, str rule"
_SIZES = "SymInt images, SymInt height, SymInt width, bool behind"
_library = torch.library.Library("poolkit", "FRAGMENT")
_library.define(f"region_mean(Tensor x, Tensor boxes, {_BINS}) -> Tensor")
_library.define(f"region_spread(Tensor grad, Tensor boxes, {_SIZES}, {_BINS}) -> Tensor")
_library.define(f"region_max(Tensor x, Tensor boxes, {_BINS}) -> (Tensor, Tensor)")
_library.define(
    f"region_scatter(Tensor grad, Tensor codes, Tensor boxes, {_SIZES}, {_BINS}) -> Tensor"
)
_library.define(f"region_take(Tensor x, Tensor codes, Tensor boxes, {_BINS}) -> Tensor")
_library.define(f"region_move(Tensor x, Tensor grad, Tensor boxes, {_BINS}) -> Tensor")

_ops: Any = torch.ops.poolkit


def pool_regions(x: Tensor, boxes: Array, bins: Bins, mode: str) -> Tensor:
    """(K, C, rows, columns) by "mean" or "max", in the memory format of x, which has been checked.

    The gradient of an integral has a part for the boxes; samples and cells have none, as their
    number and place jump.
    """
    check(x)
    if not is_torch_tensor(boxes):
        boxes = torch.from_numpy(np.ascontiguousarray(boxes))
    boxes = boxes.to(x.device)
    if not (bins.rule == "integral" and boxes.is_floating_point()):
        boxes = boxes.detach()
    if x.device.type != "cpu" or _transformed():
        return _uncompiled(x, boxes, bins, mode)
    if mode == "max":
        pooled: Tensor = apply(_Max, x, boxes, *bins)[0]
    else:
        pooled = apply(_Mean, x, boxes, *bins)
    return pooled


def _transformed() -> bool:
    return not is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


# --- operators -----------------------------------------------------------------------------------


def _output(x: Tensor, boxes: Tensor, bins: Bins, behind: bool) -> Tensor:
    return _empty(x, (boxes.shape[0], x.shape[1], bins.rows, bins.columns), behind)


def _empty(like: Tensor, shape: Any, behind: bool, dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if behind else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _laid_out(x: Tensor, behind: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if behind else torch.contiguous_format)


def _call(x: Tensor, boxes: Tensor, bins: Bins, shape: Any, behind: bool) -> Call:
    placed = place(native_boxes(boxes), bins, shape[0])
    return Call(placed, bins, tuple(shape), NAMES[x.dtype], behind)


def _behind(x: Tensor) -> bool:
    """Whether the gradient of x is wanted with the channels behind the pixels."""
    return bool(x.stride(1) == 1 and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1)


@torch.library.impl(_library, "region_mean", "CPU")
def _mean(x: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    x, layout = as_laid_out(x, 2)
    out = _output(x, boxes, Bins(*bins), layout.behind)
    call = _call(x, boxes, Bins(*bins), x.shape, layout.behind)
    call.run("average", torch.get_num_threads(), x=x.data_ptr(), out=out.data_ptr())
    return out


def _codes_dtype(bins: Bins, x: Tensor) -> torch.dtype:
    return (torch.uint8, torch.uint16, torch.uint32)[code_bytes(bins, x.shape[2:]) // 2]


@torch.library.impl(_library, "region_max", "CPU")
def _max(x: Tensor, boxes: Tensor, *bins: Any) -> tuple[Tensor, Tensor]:
    x, layout = as_laid_out(x, 2)
    out = _output(x, boxes, Bins(*bins), layout.behind)
    codes = _empty(out, out.shape, layout.behind, _codes_dtype(Bins(*bins), x))
    call = _call(x, boxes, Bins(*bins), x.shape, layout.behind)
    threads = torch.get_num_threads()
    call.run("pick", threads, x=x.data_ptr(), out=out.data_ptr(), codes=codes.data_ptr())
    return out, codes


@torch.library.impl(_library, "region_spread", "CPU")
def _spread(
    grad: Tensor, boxes: Tensor, images: int, height: int, width: int, behind: bool, *bins: Any
) -> Tensor:
    grad = _laid_out(grad, behind)
    out = _empty(grad, (images, grad.shape[1], height, width), behind)
    call = _call(grad, boxes, Bins(*bins), out.shape, behind)
    call.run("spread", torch.get_num_threads(), grad=grad.data_ptr(), out=out.data_ptr())
    return out


@torch.library.impl(_library, "region_scatter", "CPU")
def _scatter(
    grad: Tensor,
    codes: Tensor,
    boxes: Tensor,
    images: int,
    height: int,
    width: int,
    behind: bool,
    *bins: Any,
) -> Tensor:
    grad, codes = _laid_out(grad, behind), _laid_out(codes, behind)
    out = _empty(grad, (images, grad.shape[1], height, width), behind)
    call = _call(grad, boxes, Bins(*bins), out.shape, behind)
    threads = torch.get_num_threads()
    call.run("scatter", threads, grad=grad.data_ptr(), codes=codes.data_ptr(), out=out.data_ptr())
    return out


@torch.library.impl(_library, "region_take", "CPU")
def _take(x: Tensor, codes: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    x, layout = as_laid_out(x, 2)
    codes = _laid_out(codes, layout.behind)
    out = _output(x, boxes, Bins(*bins), layout.behind)
    call = _call(x, boxes, Bins(*bins), x.shape, layout.behind)
    threads = torch.get_num_threads()
    call.run("take", threads, x=x.data_ptr(), codes=codes.data_ptr(), out=out.data_ptr())
    return out


@torch.library.impl(_library, "region_move", "CPU")
def _move(x: Tensor, grad: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    x, layout = as_laid_out(x, 2)
    grad = _laid_out(grad, layout.behind)
    moved = torch.empty((boxes.shape[0], 4), dtype=torch.float64)
    call = _call(x, boxes, Bins(*bins), x.shape, layout.behind)
    threads = torch.get_num_threads()
    call.run("move", threads, x=x.data_ptr(), grad=grad.data_ptr(), out=moved.data_ptr())
    y1, x1, y2, x2 = (moved * Bins(*bins).scale).unbind(1)
    return torch.stack([torch.zeros_like(x1), x1, y1, x2, y2], 1).to(boxes.dtype)


# --- shapes only ---------------------------------------------------------------------------------


@torch.library.register_fake("poolkit::region_mean", lib=_library)
def _mean_fake(x: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    x, layout = as_laid_out(x, 2)
    return _output(x, boxes, Bins(*bins), layout.behind)


@torch.library.register_fake("poolkit::region_max", lib=_library)
def _max_fake(x: Tensor, boxes: Tensor, *bins: Any) -> tuple[Tensor, Tensor]:
    out = _mean_fake(x, boxes, *bins)
    return out, torch.empty_like(out, dtype=_codes_dtype(Bins(*bins), x))


@torch.library.register_fake("poolkit::region_spread", lib=_library)
def _spread_fake(
    grad: Tensor, boxes: Tensor, images: Any, height: Any, width: Any, behind: bool, *bins: Any
) -> Tensor:
    return _empty(grad, (images, grad.shape[1], height, width), behind)


@torch.library.register_fake("poolkit::region_scatter", lib=_library)
def _scatter_fake(
    grad: Tensor,
    codes: Tensor,
    boxes: Tensor,
    images: Any,
    height: Any,
    width: Any,
    behind: bool,
    *bins: Any,
) -> Tensor:
    return _empty(grad, (images, grad.shape[1], height, width), behind)


@torch.library.register_fake("poolkit::region_take", lib=_library)
def _take_fake(x: Tensor, codes: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    return _mean_fake(x, boxes, *bins)


@torch.library.register_fake("poolkit::region_move", lib=_library)
def _move_fake(x: Tensor, grad: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
    return torch.empty(boxes.shape, dtype=boxes.dtype, device=boxes.device)


# --- gradients -----------------------------------------------------------------------------------

_NONE = (None,) * len(Bins._fields)


def _sizes(x: Tensor) -> tuple[Any, ...]:
    return x.shape[0], x.shape[2], x.shape[3], _behind(x)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
        pooled: Tensor = _ops.region_mean.default(x, boxes, *bins)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, boxes, *bins = inputs
        ctx.sizes, ctx.bins = _sizes(x), bins
        ctx.moves = ctx.needs_input_grad[1]
        ctx.save_for_backward(boxes, *([x] if ctx.moves else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        boxes, *saved = ctx.saved_tensors
        if not ctx.moves:
            if torch.is_grad_enabled():
                return apply(_Spread, grad, boxes, *ctx.sizes, *ctx.bins), None, *_NONE
            return _ops.region_spread.default(grad, boxes, *ctx.sizes, *ctx.bins), None, *_NONE
        (x,) = saved
        if torch.is_grad_enabled() and not is_compiling():  # the gradient will be differentiated
            wanted = [t for t, need in zip((x, boxes), ctx.needs_input_grad, strict=False) if need]
            pooled = composite(x, boxes, Bins(*ctx.bins), "mean")
            gradients = list(torch.autograd.grad(pooled, wanted, grad, create_graph=True))
            spread = gradients.pop(0) if ctx.needs_input_grad[0] else None
            return spread, gradients[0], *_NONE
        spread = None
        if ctx.needs_input_grad[0]:
            spread = _ops.region_spread.default(grad, boxes, *ctx.sizes, *ctx.bins)
        return spread, _ops.region_move.default(x, grad, boxes, *ctx.bins), *_NONE


class _Spread(torch.autograd.Function):
    """The adjoint of `_Mean`, with respect to the input alone."""

    @staticmethod
    def forward(grad: Tensor, boxes: Tensor, *rest: Any) -> Tensor:
        spread: Tensor = _ops.region_spread.default(grad, boxes, *rest)
        return spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, boxes, *rest = inputs
        ctx.bins = rest[4:]
        ctx.save_for_backward(boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (boxes,) = ctx.saved_tensors
        return apply(_Mean, grad, boxes, *ctx.bins), *(None,) * 5, *_NONE


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, boxes: Tensor, *bins: Any) -> tuple[Tensor, Tensor]:
        pooled: tuple[Tensor, Tensor] = _ops.region_max.default(x, boxes, *bins)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, boxes, *bins = inputs
        ctx.sizes, ctx.bins = _sizes(x), bins
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(boxes, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        boxes, codes = ctx.saved_tensors
        rest = (codes, boxes, *ctx.sizes, *ctx.bins)
        if torch.is_grad_enabled():
            return apply(_Scatter, grad, *rest), None, *_NONE
        return _ops.region_scatter.default(grad, *rest), None, *_NONE


class _Scatter(torch.autograd.Function):
    """The adjoint of picking samples."""

    @staticmethod
    def forward(grad: Tensor, codes: Tensor, boxes: Tensor, *rest: Any) -> Tensor:
        scattered: Tensor = _ops.region_scatter.default(grad, codes, boxes, *rest)
        return scattered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, codes, boxes, *rest = inputs
        ctx.bins = rest[4:]
        ctx.save_for_backward(codes, boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        codes, boxes = ctx.saved_tensors
        return apply(_Take, grad, codes, boxes, *ctx.bins), *(None,) * 6, *_NONE


class _Take(torch.autograd.Function):
    """And the adjoint of that."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, boxes: Tensor, *bins: Any) -> Tensor:
        taken: Tensor = _ops.region_take.default(x, codes, boxes, *bins)
        return taken

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codes, boxes, *bins = inputs
        ctx.sizes, ctx.bins = _sizes(x), bins
        ctx.save_for_backward(codes, boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        codes, boxes = ctx.saved_tensors
        rest = (codes, boxes, *ctx.sizes, *ctx.bins)
        return apply(_Scatter, grad, *rest), None, None, *_NONE


# --- in whole arrays, on every device -------------------------------------------------------------

# Elements of what is gathered at a time.
GATHERED = 2**24


class Axis(NamedTuple):
    """What bins see along one axis: samples, each between two cells.

    Attributes:
        low, high: (K, bins, samples) int64: the cells of each sample.
        below, above: (K, bins, samples): their weights.
        seen: (K, bins) int64: how many of the samples there are.
        outside: (K, bins): whether there are others, outside of the map.
        share: (K, bins): of one sample in the mean.
    """

    low: Tensor
    high: Tensor
    below: Tensor
    above: Tensor
    seen: Tensor
    outside: Tensor
    share: Tensor

    def of(self, boxes: slice) -> Axis:
        return Axis(*(part[boxes] for part in self))

    def at(self, sample: Tensor, along: int) -> list[tuple[Tensor, Tensor]]:
        """The cells of one sample of each bin with their weights; `sample` is (K, C, rows, columns)
        or spreads to it, and the bins lie along axis 2 or 3 of that."""
        boxes, bins = self.seen.shape
        box = torch.arange(boxes, device=sample.device)[:, None, None, None]
        bin_ = torch.arange(bins, device=sample.device).reshape((bins, 1) if along == 2 else bins)
        pairs = ((self.low, self.below), (self.high, self.above))
        return [(cell[box, bin_, sample], weight[box, bin_, sample]) for cell, weight in pairs]


def composite(x: Tensor, boxes: Tensor, bins: Bins, mode: str) -> Tensor:
    """`pool_regions` by indexing. Memory does not grow with the sizes of the boxes, but for the
    gradient of an integral with respect to them."""
    placed = place(_values(boxes), bins, x.shape[0])
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    axes = []
    for axis, count in enumerate((bins.rows, bins.columns)):
        size = x.shape[2 + axis]
        if bins.rule == "integral":
            axes.append(_integrals(placed, boxes, bins.scale, axis, count, size, real))
        else:
            axes.append(_samples(placed, bins, axis, count, size, x.device, real))
    image = torch.from_numpy(placed.image).to(x.device)
    step = max(1, GATHERED // max(x.shape[1] * bins.rows * max(x.shape[3], bins.columns), 1))
    pool, values = (_largest if mode == "max" else _average), x.to(real)
    parts = [values.flatten()[:0].reshape(0, x.shape[1], bins.rows, bins.columns)]
    for first in range(0, len(image), step):
        part = slice(first, first + step)
        parts.append(pool(values, image[part], axes[0].of(part), axes[1].of(part)))
    return _laid_out(torch.cat(parts).to(x.dtype), _behind(x))


_uncompiled = torch.compiler.disable(composite)  # it looks at the boxes, which a compiler does not


def _values(boxes: Tensor) -> np.ndarray:
    """`native_boxes`, also of what a transform of torch.func has wrapped."""
    inside = torch._C._functorch
    while inside.is_functorch_wrapped_tensor(boxes):
        if inside.is_batchedtensor(boxes):
            raise PoolTypeError("boxes are mapped over by vmap", "Map over the input alone")
        boxes = inside.get_unwrapped(boxes)
    with torch._C._DisableFuncTorch():
        return native_boxes(boxes)


def _samples(
    placed: Placed, bins: Bins, axis: int, count: int, size: int, device: Any, real: torch.dtype
) -> Axis:
    start, grid = placed.start[:, axis, None], placed.grid[:, axis, None]
    extent, number = placed.extent[:, axis, None], np.arange(count)[None]
    if bins.rule == "cells":
        first = np.clip(start + number * extent // count, 0, size)
        last = np.clip(start - (-(number + 1) * extent // count), 0, size)
        seen, grid = last - first, np.maximum(last - first, 1)
        at = first[..., None] + np.arange(max(int(seen.max(initial=0)), 1))
    else:
        at, seen = _on_map(start + number * extent, extent, grid, size)
    at = np.clip(at, 0, size - 1)
    low = np.minimum(at.astype(np.int64), max(size - 2, 0))
    high, beyond = np.minimum(low + 1, size - 1), at - low
    below, above = 1 - beyond, beyond
    outside = (seen < grid) & (bins.rule != "cells")
    if bins.rule == "corners":  # each corner on its own
        both = (*low.shape[:2], 2 * low.shape[2])
        low = high = np.stack([low, high], 3).reshape(both)
        below, above = np.stack([below, above], 3).reshape(both), np.zeros(low.shape)
        seen = 2 * seen

    def to(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

    share = 1 / np.maximum(grid, 1) + np.zeros(seen.shape)
    cells, weights = (
        (to(low, torch.int64), to(high, torch.int64)),
        (to(below, real), to(above, real)),
    )
    return Axis(*cells, *weights, to(seen, torch.int64), to(outside, torch.bool), to(share, real))


def _on_map(
    base: np.ndarray, extent: np.ndarray, grid: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of each bin that are on the map, one behind the other, and how many they are."""
    grid = grid + np.zeros(base.shape, np.int64)
    extent = extent + np.zeros(base.shape)
    step = extent / np.maximum(grid, 1)
    moving = np.abs(step) > 0
    by = np.where(moving, step, 1)
    with np.errstate(over="ignore"):
        ends = np.stack([(-1 - base) / by, (size - base) / by])
    first = np.where(moving, np.clip(np.floor(ends.min(0)) - 2, 0, grid), 0)
    last = np.where(moving, np.clip(np.ceil(ends.max(0)) + 2, 0, grid), grid)
    number = first[..., None] + np.arange(max(int((last - first).max(initial=0)), 1))
    at = base[..., None] + (number + 0.5) * extent[..., None] / np.maximum(grid, 1)[..., None]
    there = (at >= -1) & (at <= size) & (number < grid[..., None])
    order = np.argsort(~there, axis=2, kind="stable")
    return np.take_along_axis(np.where(there, at, 0), order, 2), there.sum(2)


def _integrals(
    placed: Placed,
    boxes: Tensor,
    scale: float,
    axis: int,
    count: int,
    size: int,
    real: torch.dtype,
) -> Axis:
    """The cells of each bin as samples with one weight, which is a function of the boxes."""
    wide = torch.float32 if boxes.device.type == "mps" else torch.float64
    begin, end = (boxes[:, side - axis, None].to(wide) * scale for side in (2, 4))
    some = end > begin
    extent = torch.where(some, end - begin, 1.0)
    number = torch.arange(count + 1, device=boxes.device)
    edges = (begin + number * extent / count)[..., None]
    a, b = edges[:, :-1], edges[:, 1:]
    length = int(placed.extent[:, axis].max(initial=0) / count)
    cell = a.detach().floor().clamp(0, size - 1)
    cell = cell + torch.arange(min(length + 3, size), device=boxes.device)
    weight = (_ramp(b - cell) - _ramp(a - cell)) * (count / extent[..., None])
    weight = torch.where(some[..., None] & (cell < size), weight, 0.0).to(real)
    low = cell.clamp(max=size - 1).long()
    seen = torch.full(low.shape[:2], low.shape[2], device=boxes.device)
    share = torch.ones_like(weight[..., 0])
    return Axis(low, low, weight, torch.zeros_like(weight), seen, share > 1, share)


def _ramp(u: Tensor) -> Tensor:
    """The integral up to u of the hat function, which is 1 at 0, and 0 from -1 and 1 on."""
    left = u.clamp(-1, 0) + 1
    right = 1 - u.clamp(0, 1)
    return torch.where(u < 0, left**2 / 2, 1 - right**2 / 2)


def _average(x: Tensor, image: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Rows first, as the kernels do."""
    channel = torch.arange(x.shape[1], device=x.device)[:, None]
    shape = (len(image), x.shape[1], rows.seen.shape[1], columns.seen.shape[1])
    lines = x.new_zeros((*shape[:3], x.shape[3]))
    for cell, weight in _taps(rows):
        taken = x[image[:, None, None], channel, cell[:, None]]
        lines = lines + _weighed(taken, weight[:, None, :, None])
    pooled = x.new_zeros(shape)
    for cell, weight in _taps(columns):
        taken = lines.gather(3, cell[:, None, None].expand(shape))
        pooled = pooled + _weighed(taken, weight[:, None, None])
    return pooled


def _taps(axis: Axis) -> list[tuple[Tensor, Tensor]]:
    """(K, bins) cells and weights whose sum is the mean."""
    taps = []
    for cells, weights in ((axis.low, axis.below), (axis.high, axis.above)):
        for t in range(cells.shape[2]):
            weight = torch.where(t < axis.seen, weights[..., t] * axis.share, 0.0)
            if weight.requires_grad or (weight != 0).any():
                taps.append((cells[..., t], weight))
    return taps


def _weighed(value: Tensor, weight: Tensor) -> Tensor:
    """What has no weight is not looked at: its NaN is none of ours."""
    return torch.where(weight != 0, value, 0.0) * weight


def _largest(x: Tensor, image: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Which samples are largest is found without a gradient, sample after sample."""
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]

    def values(down: Tensor, beside: Tensor) -> Tensor:
        total: Any = 0
        for y, below in rows.at(down, 2):
            for z, right in columns.at(beside, 3):
                total = total + _weighed(
                    x[image[:, None, None, None], channel, y, z], below * right
                )
        return total

    shape = (len(image), x.shape[1], rows.seen.shape[1], columns.seen.shape[1])
    down = image.new_zeros(shape)
    beside = image.new_zeros(shape)
    with torch.no_grad():
        best = x.new_full(shape, -torch.inf)
        for i in range(rows.low.shape[2]):
            for j in range(columns.low.shape[2]):
                there = (i < rows.seen)[:, None, :, None] & (j < columns.seen)[:, None, None]
                value = values(image.new_full((1,) * 4, i), image.new_full((1,) * 4, j))
                taken = there & ((value > best) | (value != value))
                best = torch.where(taken, value, best)
                down, beside = torch.where(taken, i, down), torch.where(taken, j, beside)
        some = (rows.seen > 0)[:, None, :, None] & (columns.seen > 0)[:, None, None]
        outside = rows.outside[:, None, :, None] | columns.outside[:, None, None]
        nothing = ~some | (outside & (best < 0))
    return torch.where(nothing, 0.0, values(down, beside))
