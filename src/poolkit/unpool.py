"""The partial inverse of max pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array
from .errors import PoolError, PoolTypeError, PoolValueError, describe, is_torch_tensor
from .windows.base import freeze, per_axis

__all__ = ["max_unpool"]


def max_unpool(
    ndim: int,
    input: Array,
    indices: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Sequence[int] | None,
) -> Array:
    """See `poolkit.max_unpool2d`."""
    try:
        size = _output_size(ndim, input, indices, kernel_size, stride, padding, output_size)
        if is_torch_tensor(input):
            return _unpool_torch(ndim, input, indices, size)
        return _unpool_numpy(ndim, input, indices, size)
    except PoolError as error:
        raise error.during(f"{describe(input)} back by max_unpool{ndim}d") from None


def _output_size(
    ndim: int,
    input: Array,
    indices: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Sequence[int] | None,
) -> tuple[int, ...]:
    """The spatial shape of the result."""
    if getattr(input, "ndim", None) not in (ndim + 1, ndim + 2):
        raise PoolValueError(
            f"an input of rank {ndim + 1} or {ndim + 2} was expected", "Add or remove axes"
        )
    if tuple(indices.shape) != tuple(input.shape):
        raise PoolValueError(
            f"indices have the shape {tuple(indices.shape)}, values {tuple(input.shape)}",
            "Pass both as the max pooling returned them",
        )
    if str(indices.dtype).removeprefix("torch.") != "int64":
        raise PoolTypeError(f"indices must be int64, got {indices.dtype}", "Convert them")
    if 0 in tuple(input.shape)[input.ndim - ndim - 1 :]:
        raise PoolValueError("only the batch may be empty", "Check the layer before")
    kernel = per_axis("kernel_size", freeze(kernel_size), ndim, lambda k: k >= 1, "at least 1")
    steps = kernel
    if stride is not None and freeze(stride) != ():
        steps = per_axis("stride", freeze(stride), ndim, lambda s: s >= 1, "at least 1")
    pads = per_axis("padding", freeze(padding), ndim, lambda p: p >= 0, "at least 0")
    shape = tuple(input.shape)[input.ndim - ndim :]
    default = tuple(
        (n - 1) * s + k - 2 * p for n, s, k, p in zip(shape, steps, kernel, pads, strict=True)
    )
    if output_size is None:
        return default
    wanted = tuple(int(n) for n in output_size)[-ndim:]
    if len(output_size) not in (ndim, input.ndim):
        raise PoolValueError(
            f"output_size has {len(output_size)} entries for {ndim} spatial axes", "Give one each"
        )
    for n, usual, s in zip(wanted, default, steps, strict=True):
        if not usual - s < n < usual + s:
            raise PoolValueError(
                f"output_size {wanted} does not pool to the input: an axis of {n} lies outside "
                f"{usual - s + 1} to {usual + s - 1}",
                "Pass the spatial shape of the tensor that was pooled",
            )
    return wanted


def _unpool_torch(ndim: int, input: Array, indices: Array, size: tuple[int, ...]) -> Array:
    import torch

    if min(size) < 1:
        raise PoolValueError(f"the output would have the spatial shape {size}", "Check the padding")
    # Aten's own operators have the gradient and run on every device.
    try:
        if ndim == 3:
            return torch.ops.aten.max_unpool3d(input, indices, list(size), [1] * 3, [0] * 3)
        if ndim == 2:
            return torch.ops.aten.max_unpool2d(input, indices, list(size))
        flat = torch.ops.aten.max_unpool2d(input.unsqueeze(-1), indices.unsqueeze(-1), [size[0], 1])
        return flat.squeeze(-1)
    except (RuntimeError, IndexError) as error:
        if "index" not in str(error):
            raise
        raise _outside(size) from None


def _outside(size: tuple[int, ...]) -> PoolValueError:
    return PoolValueError(
        f"an index lies outside the output of spatial shape {size}",
        "Pass the indices as the max pooling returned them, and its input's shape",
    )


def _unpool_numpy(ndim: int, input: Array, indices: Array, size: tuple[int, ...]) -> Array:
    lead = input.shape[: input.ndim - ndim]
    positions = math.prod(size)
    flat_values = input.reshape((*lead, -1))
    flat_indices = indices.reshape((*lead, -1))
    if flat_indices.size and (flat_indices.min() < 0 or flat_indices.max() >= positions):
        raise _outside(size)
    out = np.zeros((*lead, positions), dtype=input.dtype)
    np.put_along_axis(out, flat_indices, flat_values, axis=-1)
    return out.reshape((*lead, *size))
