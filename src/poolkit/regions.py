"""Pooling of regions: the bins of boxes over feature maps, by the kernels or, for tensors, by
`poolkit.torch.regions`, which has their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _native, kernels
from .arrays import Array, check_array, checked_numpy
from .dtypes import dtype_of
from .errors import PoolTypeError, PoolValueError, describe, is_torch_tensor
from .reductions import Max, Mean, Reduction
from .windows.base import check_shape
from .windows.regions import RULES, Bins, Placed, Regions, place

__all__ = ["Call", "code_bytes", "native_boxes", "pool_regions"]


def pool_regions(
    x: Array, regions: Regions, reduction: Reduction, channels_last: bool = False
) -> Array:
    """See `poolkit.pool` and `Regions`: (N, C, H, W) to (boxes, C, rows, columns).

    Raises:
        PoolValueError, PoolTypeError: for other ranks and dtypes, a map without cells, boxes that
            are wrong, and a rule that this reduction does not go with.
    """
    check_array(x)
    mode = _mode(regions.bins.rule, reduction)
    if x.ndim != 4:
        raise PoolValueError(
            f"regions are of maps {'(N, H, W, C)' if channels_last else '(N, C, H, W)'}, "
            f"got rank {x.ndim}",
            "Add a batch in front: x[None]",
        )
    if dtype_of(x).kind != "float":
        raise PoolTypeError(
            f"boxes between the cells of {describe(x)} have no values", "Convert x to float32"
        )
    check_shape(x.shape[1:3] if channels_last else x.shape[2:])
    if regions.images is not None and regions.images != x.shape[0]:
        raise PoolValueError(
            f"there are boxes of {regions.images} images, and {x.shape[0]} images",
            "Give one (L, 4) for each image; L may be 0",
        )
    if is_torch_tensor(x):
        from .torch import regions as on_tensors

        if channels_last:
            pooled = on_tensors.pool_regions(x.movedim(3, 1), regions.boxes, regions.bins, mode)
            return pooled.movedim(1, 3)
        return on_tensors.pool_regions(x, regions.boxes, regions.bins, mode)
    return _pool_numpy(checked_numpy(x), regions, mode, channels_last)


def _mode(rule: str, reduction: Reduction) -> str:
    if isinstance(reduction, Max):
        mode = "max"
    elif isinstance(reduction, Mean) and not reduction.divisor and reduction.result == "float":
        mode = "mean"
    else:
        raise PoolTypeError(f"regions have no {reduction}", "Use Mean() or Max()")
    if (rule, mode) == ("integral", "max"):
        raise PoolTypeError("an integral has a mean and no maximum", 'Use rule="samples"')
    if (rule, mode) == ("corners", "mean"):
        raise PoolTypeError(
            "the mean of corners is that of the samples between them", 'Use rule="samples"'
        )
    return mode


@dataclass(frozen=True)
class Call:
    """What the kernels are told about boxes over maps. All arrays of channels lie alike.

    Attributes:
        shape: of the maps, (N, C, H, W), whichever way they lie in memory.
        channels_last: whether the channels lie behind the pixels.
    """

    placed: Placed
    bins: Bins
    shape: tuple[int, int, int, int]
    dtype: str
    channels_last: bool

    def run(
        self,
        step: str,
        threads: int,
        *,
        out: int,
        x: int = 0,
        grad: int = 0,
        codes: int = 0,
    ) -> None:
        """One step of csrc/regions.h on the addresses of contiguous arrays."""
        placed, bins = self.placed, self.bins
        places = np.concatenate([placed.start, placed.extent], 1)
        size = code_bytes(bins, self.shape[2:]) if codes else 1
        _native.pool_regions(
            step, self.dtype, RULES.index(bins.rule), self.channels_last, list(self.shape),
            len(placed.image), bins.rows, bins.columns, placed.image.ctypes.data,
            places.ctypes.data, placed.grid.ctypes.data, x, grad, out, codes, size,
            256**size - 1, threads,
        )  # fmt: skip


def code_bytes(bins: Bins, spatial: Any) -> int:
    """Bytes of what is saved for each output of a maximum: which of the samples of its bin it is.
    It goes by the sizes alone, which a compiler knows, not by the boxes."""
    samples = 1
    for size in spatial:
        if bins.rule == "cells":
            samples = samples * size
        else:  # half a cell apart at least, unless their number is given
            most = bins.ratio if bins.ratio > 0 else 2 * size + 3
            samples = samples * most * (2 if bins.rule == "corners" else 1)
    if samples < 2**8:
        return 1
    if samples < 2**16:
        return 2
    if samples < 2**32:
        return 4
    raise PoolValueError(
        f"a bin may have {samples} samples, of which the largest cannot be remembered",
        "Give a sampling_ratio, or smaller maps",
    )


def native_boxes(boxes: Array) -> np.ndarray:
    """Boxes as an array of float32, or of float64 if they are that or integers."""
    if is_torch_tensor(boxes):
        boxes = boxes.detach().cpu()
        boxes = boxes.float() if boxes.dtype.itemsize == 2 else boxes
        boxes = boxes.numpy()
    small = boxes.dtype.kind == "f" and boxes.dtype.itemsize <= 4
    return np.ascontiguousarray(boxes, np.float32 if small else np.float64)


def _pool_numpy(x: np.ndarray, regions: Regions, mode: str, channels_last: bool) -> np.ndarray:
    bins = regions.bins
    images, *shape = x.shape
    channels, spatial = (shape[2], shape[:2]) if channels_last else (shape[0], shape[1:])
    placed = place(native_boxes(regions.boxes), bins, images)
    call = Call(placed, bins, (images, channels, *spatial), dtype_of(x).name, channels_last)
    grid = (bins.rows, bins.columns)
    lead = len(placed.image)
    out = np.empty((lead, *grid, channels) if channels_last else (lead, channels, *grid), x.dtype)
    step = "pick" if mode == "max" else "average"
    call.run(step, kernels.num_threads(), x=x.ctypes.data, out=out.ctypes.data)
    return out
