"""Regions of interest: what a detector takes from its feature map for each box.

Three ways to cut a box into bins, each more exact than the one before: rounded to cells, sampled,
and integrated. All are `poolkit.Regions`, pooled; the names and arguments are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..arrays import Array
from ..errors import PoolError, PoolValueError, describe
from ..reductions import Max, Mean
from ..regions import pool_regions
from ..windows.regions import Regions, Rule

__all__ = ["PrRoIPool", "RoIAlign", "RoIPool", "prroi_pool", "roi_align", "roi_pool"]

Size = int | Sequence[int]

# What a reduction of RoIAlign sees, and how it is pooled.
ALIGNED: dict[str, tuple[Rule, Mean | Max]] = {
    "mean": ("samples", Mean()),
    "max": ("samples", Max()),
    "onnx_max": ("corners", Max()),
}


def roi_pool(input: Array, boxes: Any, output_size: Size, spatial_scale: float = 1.0) -> Array:
    """The largest value of each bin of each box, after rounding the box to whole cells.

    Box corners are rounded, halves away from 0, and the last cell belongs to the box. Of n cells
    bin b of B sees ``floor(b n / B)`` up to ``ceil((b + 1) n / B)``, in whole numbers, and those on
    the map. A bin without cells is 0. The gradient goes to the largest, whose place is saved in 1,
    2 or 4 bytes, as maps are large; the boxes have none.

    Source: Girshick, "Fast R-CNN", 2015.

    Args:
        input: (N, C, H, W), a NumPy array or a tensor of any floating dtype and memory format.
        boxes: (K, 5) of image number, x1, y1, x2, y2, or for each image its (L, 4).
        output_size: bins along y and x, or one number for both.
        spatial_scale: cells of the map for each unit of the boxes, such as 1 / 16.

    Returns:
        (K, C, *output_size), in the dtype and memory format of the input. A NaN propagates.

    Raises:
        PoolValueError, PoolTypeError: see `poolkit.Regions`.

    >>> import torch, poolkit
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> roi_pool(x, torch.tensor([[0, 0.0, 1.0, 2.0, 2.0]]), (1, 2))[0, 0]
    tensor([[ 9., 10.]])
    """
    try:
        regions = Regions(boxes, output_size, spatial_scale=spatial_scale, rule="cells")
        return pool_regions(input, regions, Max())
    except PoolError as error:
        raise error.during(f"{describe(input)} by roi_pool") from None


def roi_align(
    input: Array,
    boxes: Any,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    reduction: str = "mean",
) -> Array:
    """Bilinear samples at a grid of points in each bin of each box, and their mean.

    Nothing is rounded. Samples more than one cell outside of the map are 0 and count; up to there
    the border is repeated. The time that a box takes does not grow with what lies outside, and
    cells that many samples see are read once.

    Source: He, Gkioxari, Dollár and Girshick, "Mask R-CNN", 2017; the half cell of `aligned` is
    Detectron2's. The standard is ONNX's RoiAlign, whose "half_pixel" is ``aligned=True`` and
    whose "output_half_pixel" is ``aligned=False``.

    Args:
        input, boxes, output_size, spatial_scale: as for `roi_pool`.
        sampling_ratio: samples of a bin along each axis; by default one for each cell that the bin
            is long, rounded up.
        aligned: whether the centre of the first cell is at 0.5, as pixels have it, not at 0. A box
            is then as small as it says, and else at least one cell wide and high.
        reduction: "mean"; "max" of the samples; or "onnx_max", what ONNX has for mode="max": the
            largest product of one of the four cells around a sample and its weight there.

    Returns:
        (K, C, *output_size), in the dtype and memory format of the input. The boxes have no
        gradient: see `prroi_pool`.

    Raises:
        PoolValueError, PoolTypeError: see `poolkit.Regions`.

    >>> import torch, poolkit
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> roi_align(x, [torch.tensor([[1.0, 1.0, 3.0, 3.0]])], 2, aligned=True)[0, 0]
    tensor([[ 5.,  6.],
            [ 9., 10.]])
    """
    try:
        if reduction not in ALIGNED:
            raise PoolValueError(
                f"there is no reduction {reduction!r}", f"One of: {', '.join(ALIGNED)}"
            )
        rule, reduced = ALIGNED[reduction]
        regions = Regions(
            boxes,
            output_size,
            spatial_scale=spatial_scale,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            rule=rule,
        )
        return pool_regions(input, regions, reduced)
    except PoolError as error:
        raise error.during(f"{describe(input)} by roi_align") from None


def prroi_pool(input: Array, boxes: Any, output_size: Size, spatial_scale: float = 1.0) -> Array:
    """The exact mean of the bilinear interpolation over each bin of each box.

    ``∫∫ f(x, y) dx dy / area``, with f the map interpolated between its cells, whose centres lie at
    whole coordinates, and 0 outside. It has no number of samples, and moves smoothly with the box,
    so boxes that are tensors with a gradient get theirs: of a mean from a to b it is
    ``(f(b) - mean) / (b - a)`` for b, and ``(mean - f(a)) / (b - a)`` for a.

    Source: Jiang, Luo, Mao, Xiao and Jiang, "Acquisition of Localization Confidence for Accurate
    Object Detection", 2018 (precise RoI pooling).

    Args:
        input, boxes, output_size, spatial_scale: as for `roi_pool`. Half types of boxes are as
            coarse here as anywhere.

    Returns:
        (K, C, *output_size), in the dtype and memory format of the input. A box without area gives
        0, and no gradient.

    Raises:
        PoolValueError, PoolTypeError: see `poolkit.Regions`.

    >>> import torch, poolkit
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> box = torch.tensor([[0, 1.0, 1.0, 2.0, 2.0]], requires_grad=True)
    >>> pooled = prroi_pool(x, box, 1)
    >>> pooled.item()
    7.5
    >>> torch.autograd.grad(pooled.sum(), box)[0]
    tensor([[0.0000, 0.5000, 2.0000, 0.5000, 2.0000]])
    """
    try:
        regions = Regions(boxes, output_size, spatial_scale=spatial_scale, rule="integral")
        return pool_regions(input, regions, Mean())
    except PoolError as error:
        raise error.during(f"{describe(input)} by prroi_pool") from None


class _RegionPool(nn.Module):
    """What the three modules have in common."""

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class RoIPool(_RegionPool):
    """`roi_pool` as a module.

    Args:
        output_size, spatial_scale: as for `roi_pool`.

    Shape: (N, C, H, W) and boxes to (K, C, *output_size).

    >>> import torch, poolkit
    >>> RoIPool(7, 1 / 16)(torch.zeros(2, 8, 50, 68), torch.tensor([[1, 0, 0, 64, 64]])).shape
    torch.Size([1, 8, 7, 7])
    """

    def forward(self, input: Tensor, boxes: Any) -> Tensor:
        return roi_pool(input, boxes, self.output_size, self.spatial_scale)


class RoIAlign(_RegionPool):
    """`roi_align` as a module.

    Args:
        output_size, spatial_scale, sampling_ratio, aligned, reduction: as for `roi_align`.

    Shape: (N, C, H, W) and boxes to (K, C, *output_size).

    >>> import torch, poolkit
    >>> pool = RoIAlign(7, 1 / 16, sampling_ratio=2, aligned=True)
    >>> pool(torch.zeros(2, 8, 50, 68), torch.tensor([[1, 0, 0, 64, 64]])).shape
    torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.reduction = reduction

    def forward(self, input: Tensor, boxes: Any) -> Tensor:
        return roi_align(
            input,
            boxes,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            self.reduction,
        )

    def extra_repr(self) -> str:
        reduction = "" if self.reduction == "mean" else f", reduction={self.reduction!r}"
        return (
            f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, "
            f"aligned={self.aligned}{reduction}"
        )


class PrRoIPool(_RegionPool):
    """`prroi_pool` as a module.

    Args:
        output_size, spatial_scale: as for `prroi_pool`.

    Shape: (N, C, H, W) and boxes to (K, C, *output_size).

    >>> import torch, poolkit
    >>> PrRoIPool((3, 5))(torch.zeros(2, 8, 50, 68), torch.tensor([[1, 0.5, 0.0, 3.5, 4.0]])).shape
    torch.Size([1, 8, 3, 5])
    """

    def forward(self, input: Tensor, boxes: Any) -> Tensor:
        return prroi_pool(input, boxes, self.output_size, self.spatial_scale)
