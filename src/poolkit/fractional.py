"""Max pooling by a fraction: windows at pseudo-random places, other ones for each plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from .arrays import Array, check_array
from .dtypes import dtype_name, dtype_of
from .errors import (
    PoolError,
    PoolTypeError,
    PoolValueError,
    describe,
    first_line,
    is_torch_tensor,
    is_traced,
)
from .windows.base import freeze, per_axis

__all__ = ["fractional_max_pool"]


def fractional_max_pool(
    ndim: int,
    input: Array,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Array | None,
) -> Any:
    """See `poolkit.fractional_max_pool2d`."""
    try:
        check_array(input)
        if input.ndim not in (ndim + 1, ndim + 2):
            raise PoolValueError(
                f"an input of rank {ndim + 1} or {ndim + 2} was expected, got rank {input.ndim}",
                "Add or remove axes",
            )
        if dtype_of(input).kind != "float":
            raise PoolTypeError("fractional pooling takes floating inputs", "Convert the input")
        kernel = per_axis("kernel_size", freeze(kernel_size), ndim, lambda k: k >= 1, "at least 1")
        shape = tuple(input.shape)[input.ndim - ndim :]
        size = _size(ndim, shape, output_size, output_ratio)
        for n, k, out in zip(shape, kernel, size, strict=True):
            if out < 1 or out + k - 1 > n:
                raise PoolValueError(
                    f"{out} windows of {k} do not fit {n} positions",
                    "output_size + kernel_size - 1 may be as large as the input",
                )
        if samples is not None:
            samples = _checked_samples(ndim, input, samples)
        if is_torch_tensor(input):
            values, indices = _torch(ndim, input, kernel, size, samples)
        else:
            values, indices = _numpy(ndim, input, kernel, size, samples)
        return (values, indices) if return_indices else values
    except PoolError as error:
        raise error.during(f"{describe(input)} by fractional_max_pool{ndim}d") from None


def _size(ndim: int, shape: Sequence[int], output_size: Any, output_ratio: Any) -> tuple[int, ...]:
    if (output_size is None) == (output_ratio is None):
        raise PoolValueError(
            "exactly one of output_size and output_ratio is needed", "Give one of the two"
        )
    if output_size is not None:
        return per_axis("output_size", freeze(output_size), ndim, lambda n: n >= 1, "at least 1")
    ratios = freeze(output_ratio)
    ratios = ratios if isinstance(ratios, tuple) else (ratios,) * ndim
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, Real):
            raise PoolTypeError(
                f"output_ratio must be a number or one for each axis, got {output_ratio!r}",
                "Give shares of the input's size",
            )
    if len(ratios) != ndim or not all(0 < ratio < 1 for ratio in ratios):
        raise PoolValueError(
            f"output_ratio must lie between 0 and 1 on each of {ndim} axes, got {output_ratio}",
            "Give shares of the input's size",
        )
    return tuple(int(n * ratio) for n, ratio in zip(shape, ratios, strict=True))


def _checked_samples(ndim: int, input: Array, samples: Any) -> Array:
    """The samples as (batch, channels, axes); a single image has a batch of 1, and more samples
    than needed are left over, as in torch."""
    if is_torch_tensor(samples) != is_torch_tensor(input) or not hasattr(samples, "shape"):
        raise PoolTypeError(
            f"_random_samples must be of the input's kind, got {type(samples).__name__}",
            "Convert them with numpy.asarray or torch.as_tensor",
        )
    if dtype_of(samples).kind != "float":
        raise PoolTypeError(
            f"_random_samples must be floating, got {dtype_name(samples)}", "Convert them"
        )
    batch = input.shape[0] if input.ndim == ndim + 2 else 1
    wanted = (batch, input.shape[-ndim - 1], ndim)
    given = tuple(samples.shape)
    if len(given) != 3 or given[1:] != wanted[1:] or given[0] < batch:
        raise PoolValueError(
            f"_random_samples have the shape {given}, not {wanted}",
            "Give one number for each axis of each plane",
        )
    # In a compiled program there are no values to look at.
    if not is_traced() and not bool(((samples >= 0) & (samples < 1)).all()):
        raise PoolValueError("_random_samples must lie in [0, 1)", "Draw them with rand()")
    return samples[:batch]


def _torch(
    ndim: int, input: Array, kernel: tuple[int, ...], size: tuple[int, ...], samples: Array | None
) -> tuple[Array, Array]:
    """Aten's operator: it draws, pools and differentiates on every device."""
    import torch

    if samples is None:
        batch = input.shape[0] if input.ndim == ndim + 2 else 1
        samples = torch.rand(
            batch, input.shape[-ndim - 1], ndim, dtype=input.dtype, device=input.device
        )
    pool = getattr(torch.ops.aten, f"fractional_max_pool{ndim}d")
    try:
        values, indices = pool(input, list(kernel), list(size), samples)
    except RuntimeError as error:
        raise PoolValueError(
            f"torch refused: {first_line(error)}", "Check the input and _random_samples"
        ) from None
    return values, indices


def _numpy(
    ndim: int, input: np.ndarray, kernel: tuple[int, ...], size: tuple[int, ...], samples: Any
) -> tuple[np.ndarray, np.ndarray]:
    lead = input.shape[: input.ndim - ndim]
    shape = input.shape[input.ndim - ndim :]
    drawn = np.random.default_rng().random((*lead, ndim)) if samples is None else samples
    drawn = drawn.reshape((*lead, ndim))
    if ndim == 2:  # torch's order of the samples: columns first
        drawn = drawn[..., ::-1]
    flat = np.zeros((*lead, *(1,) * (2 * ndim)), dtype=np.int64)
    for axis in range(ndim):
        starts = _starts(drawn[..., axis], shape[axis], kernel[axis], size[axis])
        seen = starts[..., None] + np.arange(kernel[axis])
        # (..., outputs of every axis, taps of every axis)
        where = [*lead, *(1,) * (2 * ndim)]
        where[len(lead) + axis], where[len(lead) + ndim + axis] = size[axis], kernel[axis]
        flat = flat * shape[axis] + seen.reshape(where)
    # Not -1 for the rest: the batch may be empty.
    flat = flat.reshape((*lead, *size, math.prod(kernel)))
    planes = input.reshape((*lead, math.prod(shape)))
    where_seen = flat.reshape((*lead, math.prod(flat.shape[len(lead) :])))
    seen_values = np.take_along_axis(planes, where_seen, axis=-1).reshape(flat.shape)
    best = np.argmax(seen_values, axis=-1)[..., None]  # the first of equals, and NaN, as torch
    values = np.take_along_axis(seen_values, best, axis=-1)[..., 0]
    return values, np.take_along_axis(flat, best, axis=-1)[..., 0]


def _starts(sample: np.ndarray, inputs: int, kernel: int, outputs: int) -> np.ndarray:
    """Where the windows along one axis start: (..., outputs)."""
    last = np.full((*sample.shape, 1), inputs - kernel, dtype=np.int64)
    if outputs == 1:
        return last
    alpha = np.asarray((inputs - kernel) / (outputs - 1), dtype=sample.dtype)
    steps = np.arange(outputs - 1)
    offset = (sample * alpha).astype(np.int64)
    starts = ((steps + sample[..., None]) * alpha).astype(np.int64) - offset[..., None]
    return np.concatenate([starts, last], axis=-1)
