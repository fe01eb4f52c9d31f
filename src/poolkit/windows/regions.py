"""Regions of feature maps: the bins of boxes, as detectors pool them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..arrays import Array, check_array
from ..errors import PoolTypeError, PoolValueError, dtype_name, is_torch_tensor
from ..recipes import Recipe, parameters_of
from .base import ReceptiveField, Spans, Window, check_entry, freeze, per_axis

__all__ = ["RULES", "Bins", "Placed", "Regions", "place"]

RULES = ("samples", "corners", "cells", "integral")
# Coordinates stay exact well beyond any map, and whole numbers within 64 bits.
FARTHEST = 2.0**31
MOST_BINS = 2**16
MOST_SAMPLES = 2**12

Rule = Literal["samples", "corners", "cells", "integral"]


@dataclass(frozen=True, repr=False)
class Bins(Recipe):
    """How boxes are cut into bins, and what these see: all of `Regions` but the boxes."""

    rows: int
    columns: int
    scale: float = 1.0
    ratio: int = -1
    aligned: bool = False
    rule: str = "samples"


Bins.parameters = parameters_of(Bins)


class Regions(Window):
    """Boxes over a feature map, each cut into a grid of bins: the regions of interest of a
    detector.

    A window like any other, but for where its outputs lie: ``pool(x, Regions(boxes, 7), "mean")``
    takes maps (N, C, H, W) to (boxes, C, 7, 7). What a bin sees is one of four things:

    ============  ======================================  ======  ================================
    rule          a bin sees                              pooled  known as
    ============  ======================================  ======  ================================
    "samples"     bilinear interpolations at a grid of    mean,   RoIAlign
                  points                                  max
    "corners"     the four values of each of these, each  max     RoIAlign with mode="max" in ONNX
                  times its weight
    "cells"       whole cells, after rounding             mean,   RoIPool
                                                          max
    "integral"    the bilinear interpolation, everywhere  mean    PrRoIPool
    ============  ======================================  ======  ================================

    A box is (x1, y1, x2, y2), in the coordinates of an image of which the map is `spatial_scale`
    times as large. It may be partly or wholly outside of the map:

    - "samples" more than one cell outside are 0 and count in the mean; up to there the border is
      repeated. A box is at least one cell wide and high, also one that is turned around, unless
      `aligned`: then one of no width has no samples and gives 0, if their number goes by its size,
      and one turned around is sampled from right to left, if the number is given.
    - "cells" outside are not seen; a bin without any is 0. A box is at least one cell large.
    - Outside is 0 for the "integral". A box without area gives 0.

    Args:
        boxes: (K, 5) with the number of the image in front, or for each image its (L, 4). Any
            floating dtype or integers. "samples", "corners" and "cells" are placed in float64 if
            they are that or integers, else in float32, as in other libraries.
        output_size: bins along y and x, or one number for both.
        spatial_scale: cells of the map for each unit of the boxes.
        sampling_ratio: samples of a bin along each axis; 0 or less for one for each cell that it
            is long, rounded up.
        aligned: whether the centre of the first cell is at 0.5, as pixels have it, not at 0.
        rule: see above.

    Raises:
        PoolValueError, PoolTypeError: for boxes of other shapes or dtypes, and sizes below 1; with
            `pool`, for a box that is not finite, or of an image that is not there.

    >>> import numpy as np, poolkit
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0, 1.0, 1.0, 3.0, 3.0]])
    >>> poolkit.pool(x, Regions(boxes, 1, sampling_ratio=1, aligned=True), "mean").item()
    7.5
    >>> poolkit.pool(x, Regions(boxes, 1, rule="cells"), "max").item()
    15.0
    """

    def __init__(
        self,
        boxes: Any,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        rule: Rule = "samples",
    ) -> None:
        if rule not in RULES:
            raise PoolValueError(f"there is no rule {rule!r}", f"One of: {', '.join(RULES)}")
        rows, columns = per_axis(
            "output_size", freeze(output_size), 2, lambda n: 1 <= n <= MOST_BINS, _WANTED
        )
        self.boxes, self.images = _joined(boxes)
        self.bins = Bins(
            int(rows),
            int(columns),
            _checked_scale(spatial_scale),
            _checked_ratio(sampling_ratio),
            bool(aligned),
            rule,
        )

    def __repr__(self) -> str:
        bins = self.bins
        options = [f"rule={bins.rule!r}"] if bins.rule != "samples" else []
        options += [f"spatial_scale={bins.scale:g}"] if bins.scale != 1 else []
        options += [f"sampling_ratio={bins.ratio}"] if bins.ratio > 0 else []
        options += ["aligned=True"] if bins.aligned else []
        grid = (bins.rows, bins.columns)
        shown = ", ".join([f"<{self.boxes.shape[0]} boxes>", f"{grid}", *options])
        return f"Regions({shown})"

    @property
    def ndim(self) -> int:
        return 2

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        raise PoolTypeError("the bins of boxes are no spans along an axis", "Use pool()")

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return (self.bins.rows, self.bins.columns)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        raise PoolTypeError("boxes have no stride", "Ask a sliding window")


# --- where boxes lie -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Boxes in cells of a map, in float64.

    Attributes:
        image: (K) int64.
        start: (K, 2): the y and x where a box begins.
        extent: (K, 2): the height and width of a bin of samples, else of the whole box.
        grid: (K, 2) int64: samples of each bin along y and x; 0 without samples.
    """

    image: np.ndarray
    start: np.ndarray
    extent: np.ndarray
    grid: np.ndarray


def place(boxes: np.ndarray, bins: Bins, images: int) -> Placed:
    """Where boxes lie on a map.

    Args:
        boxes: (K, 5) in float32 or float64.
        images: how many there are.

    Raises:
        PoolValueError: for the first box that is not finite, too far away, or of no image.
    """
    with np.errstate(over="ignore"):
        scaled = boxes[:, 1:].astype(_precision(boxes, bins.rule)) * bins.scale
    _check(boxes, scaled, images)
    image = boxes[:, 0].astype(np.int64)
    none = np.zeros((len(boxes), 2), np.int64)
    if bins.rule == "integral":
        start, end = scaled[:, 1::-1], scaled[:, 3:1:-1]
        return _placed(image, start, np.maximum(end - start, 0), none)
    if bins.rule == "cells":
        rounded = _rounded(scaled)
        start, end = rounded[:, 1::-1], rounded[:, 3:1:-1]
        return _placed(image, start, np.maximum(end - start + 1, 1), none)
    if bins.aligned:
        scaled = scaled - scaled.dtype.type(0.5)
    start, extent = scaled[:, 1::-1], scaled[:, 3:1:-1] - scaled[:, 1::-1]
    if not bins.aligned:
        extent = np.maximum(extent, 1)
    extent = extent / np.array([bins.rows, bins.columns], extent.dtype)
    grid = none + bins.ratio if bins.ratio > 0 else np.ceil(np.maximum(extent, 0)).astype(np.int64)
    return _placed(image, start, extent, grid)


def _placed(image: np.ndarray, start: np.ndarray, extent: np.ndarray, grid: np.ndarray) -> Placed:
    return Placed(
        np.ascontiguousarray(image),
        np.ascontiguousarray(start, np.float64),
        np.ascontiguousarray(extent, np.float64),
        np.ascontiguousarray(grid),
    )


def _precision(boxes: np.ndarray, rule: str) -> type[np.floating]:
    """How many samples a bin has, and to which cell a border is rounded, is decided in the dtype in
    which others decide it; nothing is decided by an integral."""
    return np.float32 if boxes.dtype == np.float32 and rule != "integral" else np.float64


def _rounded(x: np.ndarray) -> np.ndarray:
    """To whole numbers, halves away from 0, in float64."""
    whole = np.trunc(x)
    return whole.astype(np.float64) + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0)


def _check(boxes: np.ndarray, scaled: np.ndarray, images: int) -> None:
    finite = np.isfinite(boxes).all(1)
    near = np.abs(np.where(finite[:, None], scaled, 0)).max(1, initial=0) <= FARTHEST
    image = np.where(finite, boxes[:, 0], 0)
    there = (image >= 0) & (image < images) & (np.trunc(image) == image)
    wrong = np.flatnonzero(~(finite & near & there))
    if not len(wrong):
        return
    k = int(wrong[0])
    if not finite[k]:
        numbers = ", ".join(f"{number:g}" for number in boxes[k])
        raise PoolValueError(f"box {k} is not finite: ({numbers})", "Drop it first")
    if not there[k]:
        raise PoolValueError(
            f"box {k} is of image {boxes[k, 0]:g}, of {images} images",
            f"Images are numbered from 0{f' to {images - 1}' if images else ', there are none'}",
        )
    raise PoolValueError(
        f"box {k} lies {np.abs(scaled[k]).max():g} cells away, more than {FARTHEST:g}",
        "Clip boxes to the image",
    )


# --- what is given -------------------------------------------------------------------------------


def _joined(boxes: Any) -> tuple[Array, int | None]:
    """(K, 5) with the image in front, and the number of images if it is known."""
    if isinstance(boxes, (list, tuple)):
        for image, part in enumerate(boxes):
            _check_boxes(part, 4, f"boxes[{image}]")
        return _with_images(list(boxes)), len(boxes)
    _check_boxes(boxes, 5, "boxes")
    return boxes, None


def _check_boxes(boxes: Any, width: int, name: str) -> None:
    form = "(L, 4), x1, y1, x2, y2" if width == 4 else "(K, 5), image, x1, y1, x2, y2"
    other = "" if width == 4 else ", or a list of (L, 4) for each image"
    try:
        check_array(boxes)
    except PoolTypeError:
        raise PoolTypeError(
            f"{name} must be an array of the form {form}, got {type(boxes).__name__}",
            f"Give {form}{other}",
        ) from None
    if boxes.ndim != 2 or boxes.shape[1] != width:
        raise PoolValueError(f"{name} have the shape {tuple(boxes.shape)}", f"Give {form}{other}")
    kind = dtype_name(boxes)
    if not kind.lstrip("bu").startswith(("float", "int")) or kind == "bool":
        raise PoolTypeError(f"{name} are {kind}", "Give floats or integers")


def _with_images(parts: list[Array]) -> Array:
    """Their number goes in front in a dtype that counts far enough."""
    if any(is_torch_tensor(part) for part in parts):
        import torch

        tensors = [torch.as_tensor(part) for part in parts]
        tensors = [part.float() if part.dtype.itemsize < 4 else part for part in tensors]
        return torch.cat(
            [torch.cat([t.new_full((t.shape[0], 1), n), t], 1) for n, t in enumerate(tensors)]
        )
    arrays = [part if part.dtype.itemsize > 2 else part.astype(np.float32) for part in parts]
    rows = [np.zeros((0, 5), np.float32)]
    for image, array in enumerate(arrays):
        rows.append(np.concatenate([np.full((len(array), 1), image, array.dtype), array], 1))
    return np.concatenate(rows)


_WANTED = f"at least 1 and at most {MOST_BINS}"


def _checked_scale(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)):
        raise PoolTypeError(f"spatial_scale must be a number, got {scale!r}", "Give 1 / 16, say")
    if not (math.isfinite(scale) and scale > 0):
        raise PoolValueError(
            f"spatial_scale must be finite and more than 0, got {scale}", "Give 1 / 16, say"
        )
    return float(scale)


def _checked_ratio(ratio: Any) -> int:
    check_entry(
        "sampling_ratio", freeze(ratio), lambda n: n <= MOST_SAMPLES, f"at most {MOST_SAMPLES}"
    )
    return max(int(ratio), -1)
