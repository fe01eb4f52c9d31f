"""Who runs a call on a torch tensor: the native kernel, aten, or the composite path.

In this order: the native kernel on CPU tensors; aten where it does the same and is as good (tiny
inputs, where the overhead of a call decides; plain max and average on other devices); else the
composite path, which runs everywhere and differentiates itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..composite import composite, composite_indices
from ..core import _join
from ..dtypes import DTYPES
from ..errors import PoolTypeError, PoolValueError
from ..plan import Plan, plan_for
from ..reductions import Lp, Max, Mean, Min, Reduction
from ..windows import Adaptive, Global, Sliding, Window
from . import ops
from .autograd import LpPool, PickPool, SumPool

__all__ = ["pool", "pool_with_indices", "route"]

# Below this many elements aten's overhead per call, smaller than ours, decides. Measured by
# benchmarks/overhead.py.
TINY = 8192


def _check(x: Tensor) -> None:
    if x.layout != torch.strided:
        raise PoolTypeError(f"a tensor of layout {x.layout} cannot be pooled", "Use x.to_dense()")
    if x.is_quantized:
        raise PoolTypeError("a quantized tensor cannot be pooled", "Pool x.int_repr()")
    if ops.name_of(x.dtype) not in DTYPES:
        raise PoolTypeError(
            f"dtype {ops.name_of(x.dtype)} cannot be pooled",
            f"Convert to one of {', '.join(DTYPES)}",
        )


def _runs_native(x: Tensor, plan: Plan) -> bool:
    return (
        plan.native is not None
        and x.device.type in ("cpu", "meta")
        # Forward-mode differentiation goes through the composite path.
        and forward_ad._current_level < 0
    )


def _aten_arguments(window: Window, axes: int) -> tuple[Any, ...] | None:
    """(kernel, stride, padding, dilation, ceil_mode) if aten has this sliding window."""
    if not isinstance(window, Sliding):
        return None
    pads = window._pads(axes)
    kernel, stride, dilation = window._sizes(axes)
    if pads is None or any(a != b for a, b in pads):
        return None
    for (pad, _), k, d in zip(pads, kernel, dilation, strict=True):
        if pad > ((k - 1) * d + 1) // 2 or (d > 1 and pad > k // 2):
            return None
    return kernel, stride, tuple(a for a, _ in pads), dilation, window.ceil_mode


_MAX = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_MEAN = {1: torch.ops.aten.avg_pool1d, 2: torch.ops.aten.avg_pool2d, 3: torch.ops.aten.avg_pool3d}
_ADAPTIVE_MEAN = {
    1: torch.ops.aten.adaptive_avg_pool1d,
    2: torch.ops.aten.adaptive_avg_pool2d,
    3: torch.ops.aten.adaptive_avg_pool3d,
}


def _aten(window: Window, reduction: Reduction, axes: int) -> Any:
    """A function of x that aten computes by the same rules, or None."""
    if isinstance(reduction, Mean) and reduction.result == "float":
        if isinstance(window, (Adaptive, Global)) and reduction.divisor is None:
            size = window.output_shape((1,) * axes) if isinstance(window, Global) else None
            if size is None:
                sizes = window.output_size if isinstance(window, Adaptive) else ()
                size = sizes if isinstance(sizes, tuple) else (sizes,) * axes
            if None in size:
                return None
            adaptive = _ADAPTIVE_MEAN[axes]
            return lambda x: adaptive(x, size)
        arguments = _aten_arguments(window, axes)
        if arguments is None or any(d != 1 for d in arguments[3]):
            return None
        kernel, stride, padding, _, ceil_mode = arguments
        mean, rest = _MEAN[axes], (ceil_mode, reduction.count_include_pad)
        if axes == 1:
            return None if reduction.divisor else lambda x: mean(x, kernel, stride, padding, *rest)
        divisor = reduction.divisor
        return lambda x: mean(x, kernel, stride, padding, *rest, divisor)
    if isinstance(reduction, Max):
        arguments = _aten_arguments(window, axes)
        if arguments is not None:
            largest = _MAX[axes]
            return lambda x: largest(x, *arguments)
    return None


_aten_cache: dict[tuple[Window, Reduction, int], Any] = {}


def _aten_for(x: Tensor, window: Window, reduction: Reduction, axes: int) -> Any:
    """The same, if aten takes this tensor: floating, with a batch or channels in front."""
    if axes > 3 or not axes + 1 <= x.ndim <= axes + 2 or not x.dtype.is_floating_point:
        return None
    key = (window, reduction, axes)
    try:
        return _aten_cache[key]
    except KeyError:
        function = _aten_cache[key] = _aten(window, reduction, axes)
        return function


def route(x: Tensor, window: Window, reduction: Reduction, plan: Plan) -> tuple[str, str, int]:
    """(path, why, threads) of `pool` for these arguments."""
    threads = torch.get_num_threads()
    axes = len(plan.shape)
    if _runs_native(x, plan):
        if x.numel() < TINY and _aten_for(x, window, reduction, axes):
            return "aten", f"under {TINY} elements the overhead of a call decides", threads
        return "native", plan.why, threads
    if x.device.type not in ("cpu", "meta") and _aten_for(x, window, reduction, axes):
        return "aten", f"on {x.device.type} torch's own operator is as good", threads
    if plan.native is not None:
        return "composite", f"there is no kernel for {x.device.type} here", threads
    return "composite", plan.why, threads


def pool(
    x: Tensor, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> Tensor:
    """See `poolkit.pool`."""
    if channels_last:
        x = x.movedim(-1, -axes - 1)
    if window.joined:
        results = [_pool_one(x, grid, reduction, axes) for grid in window.grids()]
        out = _join(results, axes, False)
        return out.movedim(-2, -1) if channels_last else out
    out = _pool_one(x, window, reduction, axes)
    return out.movedim(-axes - 1, -1) if channels_last else out


def _pool_one(x: Tensor, window: Window, reduction: Reduction, axes: int) -> Tensor:
    _check(x)
    if x.device.type in ("cpu", "meta") and forward_ad._current_level < 0:
        if reduction.kernel is not None and axes <= 3:
            if x.numel() < TINY and x.numel():
                function = _aten_for(x, window, reduction, axes)
                if function is not None:
                    window.output_shape(x.shape[x.ndim - axes :])
                    return function(x)
            if not isinstance(reduction, Mean) or reduction.result == "float":
                return _native(x, window, reduction, axes)
    elif x.device.type not in ("cpu", "meta"):
        function = _aten_for(x, window, reduction, axes)
        if function is not None:
            return function(x)
    spatial = tuple(int(n) for n in x.shape[x.ndim - axes :])
    plan = plan_for(window, reduction, spatial, ops.name_of(x.dtype))
    return composite(x, plan.axes, reduction)


def _native(x: Tensor, window: Window, reduction: Reduction, axes: int) -> Tensor:
    recipe = repr(window)
    window.output_shape(x.shape[x.ndim - axes :])
    if x.requires_grad and torch.is_grad_enabled():
        if isinstance(reduction, (Max, Min)):
            _check_positions(x, window, axes)
            return PickPool.apply(x, recipe, repr(reduction), axes)[0]
        if isinstance(reduction, Lp):
            return LpPool.apply(x, recipe, float(reduction.p), axes)
        return SumPool.apply(x, recipe, repr(reduction), axes)
    if isinstance(reduction, Lp) and not x.dtype.is_floating_point:
        x = x.float()
    return torch.ops.poolkit.pool(x, recipe, repr(reduction), axes)


def _check_positions(x: Tensor, window: Window, axes: int) -> None:
    """A window that lies wholly in the padding has a value (the identity) but no position."""
    if isinstance(window, Sliding) and _aten_arguments(window, axes) is None:
        spatial = tuple(int(n) for n in x.shape[x.ndim - axes :])
        if any((span.count == 0).any() for span in window.axes(spatial)):
            raise PoolValueError(
                "a window lies wholly in the padding, so its value has no position",
                "Use less padding, or pool without gradient and positions",
            )


def pool_with_indices(
    x: Tensor, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """See `poolkit.pool_with_indices`."""
    _check(x)
    if channels_last:
        x = x.movedim(-1, -axes - 1)
    _check_positions(x, window, axes)
    window.output_shape(x.shape[x.ndim - axes :])
    if x.device.type in ("cpu", "meta") and forward_ad._current_level < 0 and axes <= 3:
        spatial = x.shape[x.ndim - axes :]
        values, codes = PickPool.apply(x, repr(window), repr(reduction), axes)
        indices = torch.ops.poolkit.indices(codes, repr(window), spatial)
    else:
        spatial = tuple(int(n) for n in x.shape[x.ndim - axes :])
        plan = plan_for(window, reduction, spatial, ops.name_of(x.dtype))
        indices = composite_indices(x, plan.axes, reduction)
        values = composite(x, plan.axes, reduction)
    if channels_last:
        values, indices = values.movedim(-axes - 1, -1), indices.movedim(-axes - 1, -1)
    return values, indices
