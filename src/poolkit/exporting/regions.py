"""Regions in terms of ONNX's operators: RoiAlign and MaxRoiPool where these say the same, and
products with the weights of rows and columns for the means that they do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import PoolValueError
from ..recipes import build
from ..torch import regions as _regions  # noqa: F401 - defines the operators
from ..torch.regions_composite import ramp
from ..windows.regions import Bins
from .expressions import express
from .operators import symbolic

__all__: list[str] = []  # entered in the table of expressions


def _read(bins: str) -> Bins:
    made: Bins = build(bins, {"Bins": Bins}, "grid of bins")
    return made


@express(torch.ops.poolkit.region_mean.default)
def _mean(x: Tensor, boxes: Tensor, bins: str) -> Tensor:
    cut = _read(bins)
    if cut.rule == "samples":
        return _align(x, boxes, cut, "avg")
    weights = _cells if cut.rule == "cells" else _integrals
    rows, columns = (
        weights(boxes, cut, axis, number, x.shape[2 + axis])
        for axis, number in enumerate((cut.rows, cut.columns))
    )
    maps = x.to(rows.dtype)[boxes[:, 0].long()]
    return (rows[:, None] @ maps @ columns[:, None].transpose(2, 3)).to(x.dtype)


@express(torch.ops.poolkit.region_max.default)
def _max(x: Tensor, boxes: Tensor, bins: str) -> tuple[Tensor, Tensor]:
    """The codes are for a gradient, and there is none."""
    cut = _read(bins)
    if cut.rule == "samples":
        raise PoolValueError(
            "ONNX's RoiAlign has no maximum of samples, but one of the corners around them",
            'Use reduction="onnx_max", or "mean"',
        )
    if cut.rule == "corners":
        pooled = _align(x, boxes, cut, "max")
    else:
        shape = (boxes.shape[0], x.shape[1], cut.rows, cut.columns)
        given = {"pooled_shape": [cut.rows, cut.columns], "spatial_scale": cut.scale}
        inputs = (x.float(), boxes.float())
        pooled = symbolic("MaxRoiPool", inputs, shape, torch.float32, **given).to(x.dtype)
    return pooled, pooled


def _align(x: Tensor, boxes: Tensor, cut: Bins, mode: str) -> Tensor:
    shape = (boxes.shape[0], x.shape[1], cut.rows, cut.columns)
    inputs = (x.float(), boxes[:, 1:].float(), boxes[:, 0].long())
    aligned = symbolic(
        "RoiAlign",
        inputs,
        shape,
        torch.float32,
        mode=mode,
        output_height=cut.rows,
        output_width=cut.columns,
        sampling_ratio=max(cut.ratio, 0),
        spatial_scale=cut.scale,
        coordinate_transformation_mode="half_pixel" if cut.aligned else "output_half_pixel",
    )
    return aligned.to(x.dtype)


def _sides(boxes: Tensor, cut: Bins, axis: int) -> tuple[Tensor, Tensor]:
    """(K, 1): where boxes begin and end along an axis of the map."""
    begin, end = boxes[:, 2 - axis, None], boxes[:, 4 - axis, None]
    return begin * cut.scale, end * cut.scale


def _cells(boxes: Tensor, cut: Bins, axis: int, bins: int, size: Any) -> Tensor:
    """(K, bins, size): the share that a bin has of each cell; bins are cut in whole numbers."""
    begin, end = (_rounded(side).double() for side in _sides(boxes.float(), cut, axis))
    extent = (end - begin + 1).clamp(min=1)
    # Whole numbers below 2^53, whose quotients are rounded to no other whole number.
    number = torch.arange(bins)
    first = (begin + (number * extent / bins).floor()).clamp(0, size)
    last = (begin + ((number + 1) * extent / bins).ceil()).clamp(0, size)
    cell = torch.arange(size)
    seen = (cell >= first[..., None]) & (cell < last[..., None])
    return seen.float() / (last - first).clamp(min=1).float()[..., None]


def _rounded(x: Tensor) -> Tensor:
    """To whole numbers, halves away from 0."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0)


def _integrals(boxes: Tensor, cut: Bins, axis: int, bins: int, size: Any) -> Tensor:
    """(K, bins, size): the integral of each cell's hat function over a bin, by its length."""
    begin, end = _sides(boxes.double(), cut, axis)
    some = end > begin
    extent = torch.where(some, end - begin, 1.0)
    edges = (begin + torch.arange(bins + 1) * extent / bins)[..., None]
    cell = torch.arange(size)
    weights = (ramp(edges[:, 1:] - cell) - ramp(edges[:, :-1] - cell)) * bins / extent[..., None]
    return torch.where(some[..., None], weights, 0.0).float()
