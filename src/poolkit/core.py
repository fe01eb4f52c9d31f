"""pool(): validate once, plan (cached), dispatch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from . import kernels
from .activations import Activation
from .arrays import Array, arrays_of, check_array, check_numpy, checked_numpy
from .bags import pool_arrays
from .composite import beyond_64_bits, composite, composite_indices
from .dtypes import dtype_of
from .errors import PoolError, PoolTypeError, PoolValueError, is_torch_tensor, is_traced
from .plan import Plan, plan_for
from .ragged import pool_segments
from .reductions import (
    Activated,
    Max,
    Min,
    Reduction,
    activated,
    as_reduction,
    inner_of,
)
from .regions import pool_regions
from .windows import Regions, Segments, Spans, Window, as_window

__all__ = [
    "Explanation",
    "axes_of",
    "explain",
    "join_grids",
    "layout_of",
    "pool",
    "pool_with_indices",
    "runner_of",
    "spatial_shape",
]


def pool(
    x: Array,
    window: Window | str,
    reduction: Reduction | str = "max",
    *,
    ndim: int | None = None,
    channels_last: bool = False,
    activation: Activation | str | None = None,
) -> Array:
    """Any window with any reduction.

    Args:
        x: a NumPy array or torch tensor of any rank whose last axes are spatial; whatever is in
            front (batch, channels, ...) is kept. For `channels_last` one more axis follows the
            spatial ones. A torch tensor in torch's channels_last memory format needs nothing
            said: it is pooled in that layout, and the result has it too.
        window: which input positions each output position sees: a `Window` or its recipe.
        reduction: how they become one value: a `Reduction`, its name, or its recipe.
        ndim: the number of spatial axes. When the window's parameters do not fix it, the default
            is all axes but two, a batch and channels being in front, and at least one.
        channels_last: whether the channels are the last axis, behind the spatial ones, as in
            (N, H, W, C); the result has them there too.
        activation: applied to x as it is read: an `Activation`, its name, or its recipe. The
            result is that of ``pool(activation(x), ...)``, half types being rounded between the
            two, and the activated values are never stored.

    Returns:
        An array of the same kind, ``(..., *window.output_shape(spatial))``. The dtype is the
        input's for max and min, int64 for sums of integers, and floating for everything else.

    Raises:
        PoolValueError, PoolTypeError: what is wrong, with which shape, window and reduction, and
            what to do instead. Also where a sum of int64 values does not fit 64 bits, unless the
            values cannot be looked at: in a compiled program, or under a transform of torch.func.

    >>> import numpy as np, poolkit
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> poolkit.pool(x, poolkit.Sliding(2), "mean")[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    >>> poolkit.pool(x, poolkit.Pyramid((2, 1)), "max").shape
    (1, 1, 5)
    """
    try:
        runner = runner_of(x)
        window, reduction = as_window(window), as_reduction(reduction)
        reduction = activated(reduction, activation)
        if isinstance(window, Regions):
            axes_of(x, window, ndim, channels_last)
            return pool_regions(x, window, reduction, channels_last)
        if isinstance(window, Segments):
            _check_rows(ndim, channels_last)
            return pool_segments(x, window, reduction, runner)
        spatial_axes = axes_of(x, window, ndim, channels_last)
        return runner.pool(x, window, reduction, spatial_axes, channels_last)
    except PoolError as error:
        raise error.pooling(x, window, reduction) from None


def pool_with_indices(
    x: Array,
    window: Window | str,
    reduction: Reduction | str = "max",
    *,
    ndim: int | None = None,
    channels_last: bool = False,
    activation: Activation | str | None = None,
) -> tuple[Array, Array]:
    """`pool` by max or min, and where each value was found.

    Args: as for `pool`.

    Returns:
        The values, and for each the flat position in the spatial axes (int64): the first of equal
        values in row-major order, or the last NaN if there is one, as torch has it.

    Raises:
        PoolValueError, PoolTypeError: as `pool`, and for a reduction other than max and min, for
            a pyramid, and where a window lies wholly in the padding.

    >>> import numpy as np, poolkit
    >>> poolkit.pool_with_indices(np.array([[1, 7, 7, 2]]), poolkit.Sliding(4))
    (array([[7]]), array([[1]]))
    """
    try:
        runner = runner_of(x)
        window, reduction = as_window(window), as_reduction(reduction)
        reduction = activated(reduction, activation)
        if not isinstance(inner_of(reduction), (Max, Min)):
            raise PoolTypeError("only Max and Min have positions", "Use pool() instead")
        if window.joined:
            raise PoolTypeError("the grids of a pyramid have no common positions", "Use one grid")
        _refuse_no_grid(window)
        spatial_axes = axes_of(x, window, ndim, channels_last)
        return runner.pool_with_indices(x, window, reduction, spatial_axes, channels_last)
    except PoolError as error:
        raise error.pooling(x, window, reduction) from None


def _check_rows(ndim: int | None, channels_last: bool) -> None:
    if ndim not in (None, 1) or channels_last:
        raise PoolTypeError(
            "segments are of rows, and what is behind them are features",
            "Drop ndim and channels_last",
        )


def _refuse_no_grid(window: Window) -> None:
    if isinstance(window, (Segments, Regions)):
        raise PoolTypeError(
            f"{type(window).__name__} are no grid, whose positions or path could be told",
            "Use pool()",
        )


class _Numpy:
    """Who runs a call on NumPy arrays; on torch tensors it is `poolkit.torch.dispatch`."""

    check = staticmethod(checked_numpy)

    @staticmethod
    def runs_rows(rows: np.ndarray) -> bool:
        return True

    @staticmethod
    def run_rows(rows: np.ndarray, plan: Plan) -> np.ndarray:
        return _run_numpy(plan, rows, channels_last=True)

    @staticmethod
    def run_bags(
        rows: np.ndarray,
        spans: Spans,
        name: str,
        weights: np.ndarray | None,
        divisors: np.ndarray | None,
        parameter: float,
    ) -> np.ndarray:
        threads = kernels.num_threads()
        return pool_arrays(
            rows, spans.begin, spans.count, name, weights, divisors, parameter, threads
        )

    @staticmethod
    def pool(
        x: Array, window: Window, reduction: Reduction, axes: int, channels_last: bool
    ) -> np.ndarray:
        return _pool_numpy(x, window, reduction, axes, channels_last)

    @staticmethod
    def pool_with_indices(
        x: Array, window: Window, reduction: Reduction, axes: int, channels_last: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        return _pool_with_indices_numpy(x, window, reduction, axes, channels_last)


def _import_dispatch() -> Any:
    from .torch import dispatch

    return dispatch


_known_dispatch = cache(_import_dispatch)  # the statement takes 0.7 us each time


def runner_of(x: Array) -> Any:
    """What has `pool`, `pool_with_indices` and `run_rows` for this kind of array, past all
    validation but its own `check`."""
    if not is_torch_tensor(x):
        return _Numpy
    return _import_dispatch() if is_traced() else _known_dispatch()


def axes_of(x: Array, window: Window, ndim: int | None, channels_last: bool) -> int:
    """The number of spatial axes, from the argument, the window, or the rank."""
    check_array(x)
    rank = x.ndim
    if ndim is not None and (isinstance(ndim, bool) or not isinstance(ndim, int) or ndim < 1):
        raise PoolTypeError(f"ndim must be an integer of at least 1, got {ndim!r}", "Write ndim=2")
    fixed = window.ndim if window.ndim is not None else ndim
    if ndim is not None and fixed != ndim:
        raise PoolTypeError(f"ndim={ndim} was asked for, the window has {fixed} axes", "Drop one")
    axes = max(rank - 2, 1) if fixed is None else fixed
    needed = axes + int(bool(channels_last))
    if rank < needed:
        behind = " and the channels behind them" if channels_last else ""
        raise PoolValueError(
            f"an input of rank {rank} has no room for {axes} spatial "
            f"{'axis' if axes == 1 else 'axes'}{behind}",
            f"Pass an array of rank {needed} or more, or another ndim or window",
        )
    return axes


def spatial_shape(x: Array, axes: int, channels_last: bool) -> tuple[int, ...]:
    end = x.ndim - int(channels_last)
    return tuple(x.shape[end - axes : end])


def _plans(
    x: Array, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> list[Plan]:
    shape, dtype = spatial_shape(x, axes, channels_last), dtype_of(x)
    return [plan_for(grid, reduction, shape, dtype.name) for grid in window.grids()]


def _pool_numpy(
    x: Array, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> np.ndarray:
    x = checked_numpy(x)
    if isinstance(reduction, Activated) and not reduction.fused:
        reduction.result_dtype(dtype_of(x))  # refuses what is not floating
        with np.errstate(all="ignore"):
            x, reduction = reduction.first(x)
    results = []
    for plan in _plans(x, window, reduction, axes, channels_last):
        result = beyond_64_bits(x, plan, channels_last)
        if result is None and plan.native is None:
            result = composite(x, plan.axes, reduction, channels_last=channels_last)
        elif result is None:
            result = _run_numpy(plan, x, channels_last)
        results.append(result)
    return join_grids(results, axes, channels_last) if window.joined else results[0]


def layout_of(x: Array, plan: Plan, channels_last: bool) -> tuple[tuple[int, ...], int, int]:
    """The result's shape, and the sizes in front of and behind the spatial axes."""
    end = x.ndim - int(channels_last)
    lead, inner = tuple(x.shape[: end - len(plan.axes)]), tuple(x.shape[end:])
    return (*lead, *plan.output, *inner), math.prod(lead), math.prod(inner)


def _run_numpy(plan: Plan, x: np.ndarray, channels_last: bool) -> np.ndarray:
    shape, outer, inner = layout_of(x, plan, channels_last)
    out = np.empty(shape, dtype=plan.result)
    assert plan.native is not None
    plan.native.forward(x.ctypes.data, out.ctypes.data, 0, outer, inner, kernels.num_threads())
    return out


def _pool_with_indices_numpy(
    x: Array, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> tuple[np.ndarray, np.ndarray]:
    x = checked_numpy(x)
    (plan,) = _plans(x, window, reduction, axes, channels_last)
    if plan.has_empty_windows:
        raise PoolValueError(
            "a window lies wholly in the padding, so its value has no position",
            "Use less padding, or pool() without positions",
        )
    if plan.native is None:
        values = composite(x, plan.axes, reduction, channels_last=channels_last)
        return values, composite_indices(x, plan.axes, reduction, channels_last=channels_last)
    shape, outer, inner = layout_of(x, plan, channels_last)
    threads = kernels.num_threads()
    out = np.empty(shape, dtype=plan.result)
    positions = np.empty(shape, dtype=f"uint{8 * plan.native.position_bytes}")
    indices = np.empty(shape, dtype=np.int64)
    run = plan.native.forward_ahead if isinstance(reduction, Activated) else plan.native.forward
    run(x.ctypes.data, out.ctypes.data, positions.ctypes.data, outer, inner, threads)
    plan.native.indices(positions.ctypes.data, indices.ctypes.data, outer, inner, threads)
    return out, indices


def join_grids(results: list[Array], axes: int, channels_last: bool) -> Array:
    """The grids of a pyramid, flattened and concatenated."""
    flat = []
    for result in results:
        end = result.ndim - int(channels_last)
        lead, spatial, behind = result.shape[: end - axes], result.shape[end - axes : end], ()
        if channels_last:
            behind = result.shape[end:]
        # Not -1, which an empty batch leaves undetermined.
        flat.append(result.reshape((*lead, math.prod(spatial), *behind)))
    return arrays_of(flat[0]).join(flat, flat[0].ndim - 1 - int(channels_last))


@dataclass(frozen=True)
class Explanation:
    """Which path a call takes, and why.

    Attributes:
        path: "native", "aten" or "composite"; "mixed" for a pyramid whose grids differ.
        why: the reason, in one sentence; for each grid if they differ.
        output_shape, output_dtype: of the result.
        position_bytes: bytes saved per output to train through a max or min, else 0.
        isa, threads: what the native path uses.
    """

    path: str
    why: str
    output_shape: tuple[int, ...]
    output_dtype: str
    position_bytes: int
    isa: str
    threads: int

    def __str__(self) -> str:
        where = f" ({self.isa}, {self.threads} threads)" if self.path == "native" else ""
        return f"{self.path}{where}: {self.why}; gives {self.output_dtype} {self.output_shape}"


def explain(
    x: Array,
    window: Window | str,
    reduction: Reduction | str = "max",
    *,
    ndim: int | None = None,
    channels_last: bool = False,
    activation: Activation | str | None = None,
) -> Explanation:
    """Which path `pool` would take for these arguments, and why. Nothing is computed.

    >>> import numpy as np, poolkit
    >>> x = np.zeros((1, 8, 32, 32), dtype=np.float32)
    >>> poolkit.explain(x, poolkit.Sliding(2), "median").path
    'native'
    """
    try:
        window, reduction = as_window(window), as_reduction(reduction)
        reduction = activated(reduction, activation)
        _refuse_no_grid(window)
        axes = axes_of(x, window, ndim, channels_last)
        if not is_torch_tensor(x):
            check_numpy(x)
        if isinstance(reduction, Activated) and not reduction.fused:
            reduction.result_dtype(dtype_of(x))
            reduction = reduction.inner
        plans = _plans(x, window, reduction, axes, channels_last)
        shape, _, _ = layout_of(x, plans[0], channels_last)
        if window.joined:
            lead = x.ndim - axes - int(channels_last)
            spatial = spatial_shape(x, axes, channels_last)
            shape = (*x.shape[:lead], *window.output_shape(spatial), *x.shape[lead + axes :])
        threads = kernels.num_threads()
        if is_torch_tensor(x):
            from .torch import dispatch

            threads = dispatch.num_threads()
            routes = [dispatch.route(x, plan) for plan in plans]
        else:
            routes = [("native" if plan.native else "composite", plan.why) for plan in plans]
        path, why = routes[0]
        if any(taken != path for taken, _ in routes):
            path = "mixed"
            why = "; ".join(
                f"{plan.window} goes {taken}, as {reason}"
                for plan, (taken, reason) in zip(plans, routes, strict=True)
            )
        saved = max(
            _position_bytes(plan, taken) for plan, (taken, _) in zip(plans, routes, strict=True)
        )
        return Explanation(
            path, why, tuple(shape), plans[0].result, saved, kernels.info()["isa"], threads
        )
    except PoolError as error:
        raise error.pooling(x, window, reduction) from None


def _position_bytes(plan: Plan, path: str) -> int:
    if (
        not isinstance(inner_of(plan.reduction), (Max, Min))
        or plan.native is None
        or path == "composite"
    ):
        return 0
    return 8 if path == "aten" else plan.native.position_bytes
