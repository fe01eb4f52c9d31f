"""quantized.pool(): any window over 8-bit integers that stand for real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..arrays import Array, checked_numpy
from ..core import axes_of, join_grids, layout_of, runner_of, spatial_shape
from ..errors import PoolError, PoolTypeError, PoolValueError, is_torch_tensor
from ..reductions import Max, Mean, Min, Reduction, Sum, as_reduction
from ..windows import Window, as_window
from .params import QParams, check_qparams, check_quantized, check_rounding
from .requantization import Requantization, plan_quantized, requantize

__all__ = ["pool", "run"]


def pool(
    q: Array,
    window: Window | str,
    reduction: Reduction | str = "max",
    *,
    qparams: QParams | None = None,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
    channels_last: bool = False,
    ndim: int | None = None,
) -> Array:
    """Any window with a maximum, minimum, mean or sum of quantized values.

    Max and min pick stored values, so they are exact, keep the parameters, and need none. A mean
    is ``clamp(round(Σ (q - zero_point) * scale / (n * out_scale)) + out_zero_point)``, rounded once
    from the exact number; padding stands for 0, and `n` follows the rules of `poolkit.Mean`. A
    window that divides by 0 positions gives the zero point.

    Args:
        q: int8 or uint8, a NumPy array or torch tensor.
        window, channels_last, ndim: as for `poolkit.pool`.
        reduction: `Max`, `Min`, `Mean` or `Sum`, by name or recipe too.
        qparams: the parameters of `q`; needed for a mean or sum.
        out_qparams: those of the result; the same where they are not given.
        rounding: "half_even" (to the nearest integer, ties to the even one), "half_away" (ties
            away from zero), "half_up" (ties towards plus infinity), "floor", or "trunc"; of the
            result less its zero point.

    Returns:
        An array of the same kind, dtype and layout, ``(..., *window.output_shape(spatial))``.

    Raises:
        PoolValueError, PoolTypeError: what is wrong, and what to do instead.

    >>> import numpy as np, poolkit
    >>> q = np.array([[10, 11, 20, 30]], dtype=np.uint8)
    >>> poolkit.quantized.pool(q, poolkit.Sliding(2), "max")
    array([[11, 30]], dtype=uint8)
    >>> qparams = poolkit.quantized.QParams(0.1, zero_point=10)
    >>> poolkit.quantized.pool(q, poolkit.Sliding(2), "mean", qparams=qparams)
    array([[10, 25]], dtype=uint8)
    """
    try:
        check_quantized(q)
        window, reduction = as_window(window), as_reduction(reduction)
        axes = axes_of(q, window, ndim, channels_last)
        return run(q, window, reduction, axes, channels_last, qparams, out_qparams, rounding)
    except PoolError as error:
        raise error.pooling(q, window, reduction) from None


def run(
    q: Array,
    window: Window,
    reduction: Reduction,
    axes: int,
    channels_last: bool,
    qparams: QParams | None,
    out_qparams: QParams | None,
    rounding: str,
) -> Array:
    """`pool` past the validation of the array and of its shape."""
    dtype = check_quantized(q)
    if qparams is not None or isinstance(reduction, (Mean, Sum)):
        check_qparams("qparams", qparams, dtype)
    if out_qparams is not None:
        check_qparams("out_qparams", out_qparams, dtype)
    check_rounding(rounding)
    if isinstance(reduction, (Max, Min)):
        if out_qparams is not None and out_qparams != qparams:
            raise PoolValueError(
                f"{reduction} picks stored values, which keep their parameters",
                "Give the same out_qparams, or none",
            )
        return runner_of(q).pool(q, window, reduction, axes, channels_last)
    if not isinstance(reduction, (Mean, Sum)):
        raise PoolTypeError(
            f"{reduction} of quantized values has no meaning here",
            "Use Max, Min, Mean or Sum, or dequantize the values first",
        )
    assert qparams is not None
    wanted = qparams if out_qparams is None else out_qparams
    to = Requantization(
        qparams.scale, qparams.zero_point, wanted.scale, wanted.zero_point, rounding
    )
    if is_torch_tensor(q):
        from ..torch import quantized

        return quantized.pool(q, window, reduction, axes, channels_last, to)
    return _pool_numpy(q, window, reduction, axes, channels_last, to)


def _pool_numpy(
    q: Any, window: Window, reduction: Reduction, axes: int, channels_last: bool, to: Requantization
) -> np.ndarray:
    q = checked_numpy(q)
    shape = spatial_shape(q, axes, channels_last)
    results = []
    for grid in window.grids():
        quantized = plan_quantized(grid, reduction, shape, q.dtype.name, to)
        if quantized.native is None:
            total = runner_of(q).pool(q, grid, Sum(), axes, channels_last)
            results.append(requantize(total, quantized, channels_last))
            continue
        full, outer, inner = layout_of(q, quantized.plan, channels_last)
        out = np.empty(full, dtype=q.dtype)
        threads = kernels.num_threads()
        quantized.native.forward(q.ctypes.data, out.ctypes.data, 0, outer, inner, threads)
        results.append(out)
    return join_grids(results, axes, channels_last) if window.joined else results[0]
