"""The partial inverse of max pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array, check_array
from .dtypes import dtype_name
from .errors import PoolError, PoolTypeError, PoolValueError, describe, first_line, is_torch_tensor
from .windows.base import check_entry, check_outputs, freeze, per_axis

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
    check_array(input)
    if input.ndim not in (ndim + 1, ndim + 2):
        raise PoolValueError(
            f"an input of rank {ndim + 1} or {ndim + 2} was expected, got rank {input.ndim}",
            "Add or remove axes",
        )
    if is_torch_tensor(indices) != is_torch_tensor(input) or not hasattr(indices, "shape"):
        raise PoolTypeError(
            f"values and indices must be of one kind, got {type(input).__name__} and "
            f"{type(indices).__name__}",
            "Pass both as the max pooling returned them",
        )
    if tuple(indices.shape) != tuple(input.shape):
        raise PoolValueError(
            f"indices have the shape {tuple(indices.shape)}, values {tuple(input.shape)}",
            "Pass both as the max pooling returned them",
        )
    if dtype_name(indices) != "int64":
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
    for axis, n in enumerate(default):
        check_outputs(n, axis)
    if output_size is None:
        if min(default) < 1:
            raise PoolValueError(
                f"the output would have the spatial shape {default}", "Check the padding"
            )
        return default
    sizes = freeze(output_size)
    if not isinstance(sizes, tuple):
        raise PoolTypeError(
            f"output_size must be a sequence of integers, got {output_size!r}",
            "Pass the spatial shape of the tensor that was pooled",
        )
    if len(sizes) not in (ndim, input.ndim):
        raise PoolValueError(
            f"output_size has {len(sizes)} entries for {ndim} spatial axes", "Give one each"
        )
    wanted = sizes[-ndim:]
    for n in wanted:
        check_entry("output_size", n, lambda size: size >= 1, "at least 1")
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

    # Aten's own operators have the gradient and run on every device.
    try:
        if ndim == 3:
            return torch.ops.aten.max_unpool3d(input, indices, list(size), [1] * 3, [0] * 3)
        if ndim == 2:
            return torch.ops.aten.max_unpool2d(input, indices, list(size))
        flat = torch.ops.aten.max_unpool2d(input.unsqueeze(-1), indices.unsqueeze(-1), [size[0], 1])
        return flat.squeeze(-1)
    except (RuntimeError, IndexError) as error:
        if "index" in str(error):
            raise _outside(size) from None
        if type(error) not in (RuntimeError, NotImplementedError):  # memory, or a compiler's own
            raise
        raise PoolTypeError(
            f"torch refused: {first_line(error)}", "Check dtype and device of both"
        ) from None


def _outside(size: tuple[int, ...]) -> PoolValueError:
    return PoolValueError(
        f"an index lies outside the output of spatial shape {size}",
        "Pass the indices as the max pooling returned them, and its input's shape",
    )


def _unpool_numpy(ndim: int, input: Array, indices: Array, size: tuple[int, ...]) -> Array:
    lead = input.shape[: input.ndim - ndim]
    positions = math.prod(size)
    flat = (*lead, math.prod(input.shape[len(lead) :]))  # not -1: the batch may be empty
    flat_values, flat_indices = input.reshape(flat), indices.reshape(flat)
    if flat_indices.size and (flat_indices.min() < 0 or flat_indices.max() >= positions):
        raise _outside(size)
    out = np.zeros((*lead, positions), dtype=input.dtype)
    np.put_along_axis(out, flat_indices, flat_values, axis=-1)
    return out.reshape((*lead, *size))
