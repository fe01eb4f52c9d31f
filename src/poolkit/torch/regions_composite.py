"""Regions of torch tensors in whole-array operations, which run on every device and differentiate
themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import PoolTypeError
from ..regions import native_boxes
from ..windows.regions import Bins, Placed, place
from .plain import real_dtype

__all__ = ["composite", "ramp"]

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
    real = real_dtype(x.dtype)
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
    return torch.cat(parts).to(x.dtype)


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
    weight = (ramp(b - cell) - ramp(a - cell)) * (count / extent[..., None])
    weight = torch.where(some[..., None] & (cell < size), weight, 0.0).to(real)
    low = cell.clamp(max=size - 1).long()
    seen = torch.full(low.shape[:2], low.shape[2], device=boxes.device)
    share = torch.ones_like(weight[..., 0])
    return Axis(low, low, weight, torch.zeros_like(weight), seen, share > 1, share)


def ramp(u: Tensor) -> Tensor:
    """The integral up to u of the hat function, which is 1 at 0, and 0 from -1 and 1 on."""
    left, right = (u + 1).clamp(0, 1), (1 - u).clamp(0, 1)
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
