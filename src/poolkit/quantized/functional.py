"""Torch's names on quantized values: thin ones for ``quantized.pool(q, window, reduction)``."""

from __future__ import annotations

from typing import Any

from .. import functional
from ..arrays import Array
from ..errors import PoolError
from ..functional import GLOBAL, MAX, MEAN, MIN, Size
from ..reductions import Reduction
from ..windows import Window
from .params import QParams, check_quantized
from .pooling import run

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "global_avg_pool1d",
    "global_avg_pool2d",
    "global_avg_pool3d",
    "global_max_pool1d",
    "global_max_pool2d",
    "global_max_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "min_pool1d",
    "min_pool2d",
    "min_pool3d",
]


def _run(
    ndim: int,
    q: Array,
    window: Window,
    reduction: Reduction,
    qparams: QParams | None = None,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    try:
        check_quantized(q)
        functional.check_rank(q, ndim)
        return run(q, window, reduction, ndim, False, qparams, out_qparams, rounding)
    except PoolError as error:
        raise error.pooling(q, window, reduction) from None


def max_pool2d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The largest value of each window: a stored value, with the parameters of the input.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`. Padding never
            wins: a window that lies in it alone gives the lowest value of the type.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.quantized.max_pool2d(np.arange(1, 17, dtype=np.int8).reshape(1, 4, 4), 2)
    array([[[ 6,  8],
            [14, 16]]], dtype=int8)
    """
    window = functional.sliding(q, MAX, 2, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(2, q, window, MAX)


def max_pool1d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`max_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = functional.sliding(q, MAX, 1, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(1, q, window, MAX)


def max_pool3d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = functional.sliding(q, MAX, 3, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(3, q, window, MAX)


def min_pool2d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The smallest value of each window: a stored value, with the parameters of the input.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`. Padding never
            wins: a window that lies in it alone gives the highest value of the type.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.quantized.min_pool2d(np.arange(1, 17, dtype=np.int8).reshape(1, 4, 4), 2)
    array([[[ 1,  3],
            [ 9, 11]]], dtype=int8)
    """
    window = functional.sliding(q, MIN, 2, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(2, q, window, MIN)


def min_pool1d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`min_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = functional.sliding(q, MIN, 1, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(1, q, window, MIN)


def min_pool3d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`min_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = functional.sliding(q, MIN, 3, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(3, q, window, MIN)


def avg_pool2d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """The mean of the real values of each window, as quantized values.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, ceil_mode: as for `poolkit.Sliding`. Padding stands for 0.
        count_include_pad, divisor_override: the divisor, by torch's rules.
        qparams, out_qparams, rounding: as for `poolkit.quantized.pool`.

    Raises:
        PoolError: for shapes, sizes, parameters and dtypes that cannot be pooled.

    >>> import numpy as np
    >>> from poolkit.quantized import QParams, avg_pool2d
    >>> q = np.array([[[10, 11], [12, 16]]], dtype=np.uint8)
    >>> avg_pool2d(q, 2, qparams=QParams(0.1, zero_point=10))
    array([[[12]]], dtype=uint8)
    >>> avg_pool2d(q, 2, qparams=QParams(0.1, zero_point=10), out_qparams=QParams(0.05))
    array([[[4]]], dtype=uint8)
    """
    window = functional.sliding(q, MEAN, 2, kernel_size, stride, padding, 1, ceil_mode)
    mean = functional.mean_of(q, window, count_include_pad, divisor_override)
    return _run(2, q, window, mean, qparams, out_qparams, rounding)


def avg_pool1d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = functional.sliding(q, MEAN, 1, kernel_size, stride, padding, 1, ceil_mode)
    mean = functional.mean_of(q, window, count_include_pad, None)
    return _run(1, q, window, mean, qparams, out_qparams, rounding)


def avg_pool3d(
    q: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = functional.sliding(q, MEAN, 3, kernel_size, stride, padding, 1, ceil_mode)
    mean = functional.mean_of(q, window, count_include_pad, divisor_override)
    return _run(3, q, window, mean, qparams, out_qparams, rounding)


def adaptive_max_pool2d(q: Array, output_size: Any) -> Array:
    """The largest value of each of `output_size` bins, with the parameters of the input.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        output_size: one integer, or one for each axis; None keeps an axis. See `Adaptive`.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.quantized.adaptive_max_pool2d(np.arange(9, dtype=np.int8).reshape(1, 3, 3), 2)
    array([[[4, 5],
            [7, 8]]], dtype=int8)
    """
    return _run(2, q, functional.adaptive(q, MAX, 2, output_size), MAX)


def adaptive_max_pool1d(q: Array, output_size: Any) -> Array:
    """`adaptive_max_pool2d` over one axis: (N, C, L) or (C, L)."""
    return _run(1, q, functional.adaptive(q, MAX, 1, output_size), MAX)


def adaptive_max_pool3d(q: Array, output_size: Any) -> Array:
    """`adaptive_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return _run(3, q, functional.adaptive(q, MAX, 3, output_size), MAX)


def adaptive_avg_pool2d(
    q: Array,
    output_size: Any,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """The mean of each of `output_size` bins.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        output_size: one integer, or one for each axis; None keeps an axis. See `Adaptive`.
        qparams, out_qparams, rounding: as for `poolkit.quantized.pool`.

    Raises:
        PoolError: for shapes, sizes, parameters and dtypes that cannot be pooled.

    >>> import numpy as np
    >>> from poolkit.quantized import QParams, adaptive_avg_pool2d
    >>> q = np.arange(9, dtype=np.int8).reshape(1, 3, 3)
    >>> adaptive_avg_pool2d(q, (1, None), qparams=QParams(0.1))
    array([[[3, 4, 5]]], dtype=int8)
    """
    window = functional.adaptive(q, MEAN, 2, output_size)
    return _run(2, q, window, MEAN, qparams, out_qparams, rounding)


def adaptive_avg_pool1d(
    q: Array,
    output_size: Any,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`adaptive_avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = functional.adaptive(q, MEAN, 1, output_size)
    return _run(1, q, window, MEAN, qparams, out_qparams, rounding)


def adaptive_avg_pool3d(
    q: Array,
    output_size: Any,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`adaptive_avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = functional.adaptive(q, MEAN, 3, output_size)
    return _run(3, q, window, MEAN, qparams, out_qparams, rounding)


def global_max_pool2d(q: Array, keepdim: bool = True) -> Array:
    """The largest value over all of the spatial axes, with the parameters of the input.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        keepdim: whether the spatial axes stay, each with one element.

    Raises:
        PoolError: for shapes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> q = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    >>> poolkit.quantized.global_max_pool2d(q, keepdim=False)
    array([15], dtype=uint8)
    """
    return functional.without_ones(_run(2, q, GLOBAL, MAX), 2, keepdim)


def global_max_pool1d(q: Array, keepdim: bool = True) -> Array:
    """`global_max_pool2d` over one axis: (N, C, L) or (C, L)."""
    return functional.without_ones(_run(1, q, GLOBAL, MAX), 1, keepdim)


def global_max_pool3d(q: Array, keepdim: bool = True) -> Array:
    """`global_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return functional.without_ones(_run(3, q, GLOBAL, MAX), 3, keepdim)


def global_avg_pool2d(
    q: Array,
    keepdim: bool = True,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """The mean over all of the spatial axes.

    Args:
        q: int8 or uint8, (N, C, H, W) or (C, H, W).
        keepdim: whether the spatial axes stay, each with one element.
        qparams, out_qparams, rounding: as for `poolkit.quantized.pool`.

    Raises:
        PoolError: for shapes, parameters and dtypes that cannot be pooled.

    >>> import numpy as np
    >>> from poolkit.quantized import QParams, global_avg_pool2d
    >>> q = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    >>> global_avg_pool2d(q, qparams=QParams(0.1), rounding="half_away")
    array([[[8]]], dtype=uint8)
    """
    pooled = _run(2, q, GLOBAL, MEAN, qparams, out_qparams, rounding)
    return functional.without_ones(pooled, 2, keepdim)


def global_avg_pool1d(
    q: Array,
    keepdim: bool = True,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`global_avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    pooled = _run(1, q, GLOBAL, MEAN, qparams, out_qparams, rounding)
    return functional.without_ones(pooled, 1, keepdim)


def global_avg_pool3d(
    q: Array,
    keepdim: bool = True,
    *,
    qparams: QParams,
    out_qparams: QParams | None = None,
    rounding: str = "half_even",
) -> Array:
    """`global_avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    pooled = _run(3, q, GLOBAL, MEAN, qparams, out_qparams, rounding)
    return functional.without_ones(pooled, 3, keepdim)
