"""A pooling applied to its own result, again and again, all results kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import kernels
from .arrays import Array, check_array, checked_numpy
from .core import pool, runner_of
from .dtypes import dtype_of
from .errors import (
    PoolError,
    PoolValueError,
    checked_size,
    describe,
    is_torch_tensor,
)
from .plan import plan_for
from .reductions import Max
from .windows import Sliding

__all__ = ["sppf"]


def sppf(input: Array, kernel_size: Any, levels: int) -> Array:
    """See `poolkit.sppf`."""
    try:
        window = _window(kernel_size)
        checked_size("levels", levels)
        check_array(input)
        if input.ndim not in (3, 4):
            raise PoolValueError(
                f"an input of rank 3 or 4 was expected, got rank {input.ndim}",
                "Pass (C, H, W) or (N, C, H, W)",
            )
        if is_torch_tensor(input):
            chained: Array = runner_of(input).chain(input, window, levels)
            return chained
        return _chain_numpy(input, window, levels)
    except PoolError as error:
        raise error.during(f"{describe(input)} by sppf") from None


def _window(kernel_size: Any) -> Sliding:
    size = Sliding(kernel_size, stride=1).kernel_size  # checks what it is given
    kernel = size if isinstance(size, tuple) else (size, size)
    if any(k % 2 == 0 for k in kernel):
        raise PoolValueError(
            f"a window of {kernel_size} has no middle, so the results would not lie above each "
            "other",
            "Use odd sizes, such as 5",
        )
    return Sliding(kernel, stride=1, padding=tuple(k // 2 for k in kernel))


def _chain_numpy(input: Any, window: Sliding, levels: int) -> np.ndarray:
    x = checked_numpy(input)
    *images, channels, height, width = x.shape
    plan = plan_for(window, Max(), (height, width), dtype_of(x).name)
    if plan.native is None:
        parts = [x]
        for _ in range(levels):
            parts.append(pool(parts[-1], window, Max()))
        return np.concatenate(parts, axis=-3)
    out = np.empty((*images, (1 + levels) * channels, height, width), dtype=x.dtype)
    plan.native.chain(
        x.ctypes.data, out.ctypes.data, images[0] if images else 1, channels, levels,
        kernels.num_threads(),
    )  # fmt: skip
    return out
