"""Means and sums of quantized values on torch tensors: one operator, with its fake version.

Its result has 8 bits, so it has no gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..composite import composite
from ..core import join_grids
from ..quantized.params import QParams, quantized_values, real_values
from ..quantized.requantization import QuantizedPlan, Requantization, plan_quantized, requantize
from ..reductions import Reduction, Sum, as_reduction
from ..windows import Window, as_window
from .dispatch import in_format
from .layout import as_laid_out, empty_like_layout, laid_out_like
from .ops import NAMES, plan_of, to_front
from .plain import check

__all__ = ["dequantize_in_graph", "pool", "quantize_in_graph"]

_library = torch.library.Library("poolkit", "FRAGMENT")
# To and from real numbers, as operators of exported graphs only: elsewhere they are plain
# operations, which a compiler fuses.
_library.define(
    "quantize(Tensor x, float scale, int zero_point, str dtype, str rounding) -> Tensor"
)
_library.define("dequantize(Tensor q, float scale, int zero_point, str dtype) -> Tensor")
_library.define(
    "quantized_pool(Tensor q, str window, str reduction, int ndim, float scale, int zero_point, "
    "float out_scale, int out_zero_point, str rounding) -> Tensor"
)


def pool(
    q: Tensor,
    window: Window,
    reduction: Reduction,
    axes: int,
    channels_last: bool,
    to: Requantization,
) -> Tensor:
    """See `poolkit.quantized.pool`."""
    check(q)
    if channels_last:
        q = q.movedim(-1, -axes - 1)
    run = torch.ops.poolkit.quantized_pool.default
    results = [run(q, repr(grid), repr(reduction), axes, *to) for grid in window.grids()]
    if window.joined:
        out = join_grids(results, axes, False)
        return out.movedim(-2, -1) if channels_last else out
    (out,) = results
    return out.movedim(-axes - 1, -1) if channels_last else in_format(out, axes)


@lru_cache(maxsize=4096)
def _plan_of(
    window: str, reduction: str, spatial: tuple[int, ...], dtype: torch.dtype, to: Requantization
) -> QuantizedPlan:
    shape = tuple(int(size) for size in spatial)
    return plan_quantized(as_window(window), as_reduction(reduction), shape, NAMES[dtype], to)


@torch.library.impl(_library, "quantized_pool", "CPU")
def _pool(q: Tensor, window: str, reduction: str, ndim: int, *to: Any) -> Tensor:
    spatial = tuple(q.shape[q.ndim - ndim :])
    quantized = _plan_of(window, reduction, spatial, q.dtype, Requantization(*to))
    if quantized.native is None:
        return _pool_composite(q, window, reduction, ndim, *to)
    q, (outer, inner, behind) = as_laid_out(q, ndim)
    out = empty_like_layout(q, ndim, quantized.plan.output, q.dtype, behind)
    quantized.native.forward(q.data_ptr(), out.data_ptr(), 0, outer, inner, torch.get_num_threads())
    return out


@torch.library.impl(_library, "quantized_pool", "CompositeExplicitAutograd")
def _pool_composite(q: Tensor, window: str, reduction: str, ndim: int, *to: Any) -> Tensor:
    spatial = tuple(q.shape[q.ndim - ndim :])
    quantized = _plan_of(window, reduction, spatial, q.dtype, Requantization(*to))
    if q.is_cpu and plan_of(window, "Sum()", spatial, q.dtype).native is not None:
        total = torch.ops.poolkit.pool.default(q, window, "Sum()", ndim)
    else:
        total = composite(q, quantized.plan.axes, Sum())
    return laid_out_like(q, requantize(total, quantized), ndim)


@torch.library.register_fake("poolkit::quantized_pool", lib=_library)
def _pool_fake(q: Tensor, window: str, reduction: str, ndim: int, *to: Any) -> Tensor:
    q, (_, _, behind) = as_laid_out(q, ndim)
    output = as_window(window).output_shape(q.shape[q.ndim - ndim :])
    return empty_like_layout(q, ndim, output, q.dtype, behind)


@torch.library.register_vmap("poolkit::quantized_pool", lib=_library)
def _pool_vmap(
    info: Any, axes: Any, q: Tensor, window: str, reduction: str, ndim: int, *to: Any
) -> tuple[Tensor, int]:
    q = to_front(q, axes[0], info.batch_size)
    return torch.ops.poolkit.quantized_pool.default(q, window, reduction, ndim, *to), 0


def quantize_in_graph(x: Tensor, qparams: QParams, dtype: str, rounding: str) -> Tensor:
    """See `poolkit.quantized.quantize`."""
    run = torch.ops.poolkit.quantize.default
    return run(x, qparams.scale, qparams.zero_point, dtype, rounding)


def dequantize_in_graph(q: Tensor, qparams: QParams, dtype: str) -> Tensor:
    """See `poolkit.quantized.dequantize`."""
    return torch.ops.poolkit.dequantize.default(q, qparams.scale, qparams.zero_point, dtype)


@torch.library.impl(_library, "quantize", "CompositeExplicitAutograd")
def _quantize(x: Tensor, scale: float, zero_point: int, dtype: str, rounding: str) -> Tensor:
    return quantized_values(x, QParams(scale, zero_point), dtype, rounding)


@torch.library.register_fake("poolkit::quantize", lib=_library)
def _quantize_fake(x: Tensor, scale: float, zero_point: int, dtype: str, rounding: str) -> Tensor:
    return torch.empty_like(x, dtype=getattr(torch, dtype))


@torch.library.impl(_library, "dequantize", "CompositeExplicitAutograd")
def _dequantize(q: Tensor, scale: float, zero_point: int, dtype: str) -> Tensor:
    return real_values(q, QParams(scale, zero_point), dtype)


@torch.library.register_fake("poolkit::dequantize", lib=_library)
def _dequantize_fake(q: Tensor, scale: float, zero_point: int, dtype: str) -> Tensor:
    return torch.empty_like(q, dtype=getattr(torch, dtype))
