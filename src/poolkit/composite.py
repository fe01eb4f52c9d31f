"""The path that always works: gather what each window sees, and apply the reduction's algebra.

Written in whole-array operations of NumPy or torch, so it runs on every device, and torch's
autograd differentiates it as often as asked. Axes are merged one after the other, so memory grows
with the window along one axis, not with its volume; only a reduction that needs the whole span at
once pays for the volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .arrays import Array, Arrays, arrays_of
from .dtypes import DType, dtype_of
from .errors import PoolValueError
from .reductions import Activated, Max, Reduction, Seen, Sum
from .windows import Spans

if TYPE_CHECKING:
    from .plan import Plan

__all__ = [
    "beyond_64_bits",
    "composite",
    "composite_indices",
    "flat_positions",
    "gather_windows",
    "outer_product",
]


def composite(
    x: Array, axes: Sequence[Spans], reduction: Reduction, *, channels_last: bool = False
) -> Array:
    """Pools the last axes of `x` (those before the last one for `channels_last`)."""
    xp = arrays_of(x)
    dtype = dtype_of(x)
    with np.errstate(all="ignore"):  # infinities and empty windows have a stated result
        return _composite(xp, x, dtype, axes, reduction, channels_last)


def _composite(
    xp: Arrays,
    x: Array,
    dtype: DType,
    axes: Sequence[Spans],
    reduction: Reduction,
    channels_last: bool,
) -> Array:
    working = reduction.working_dtype(dtype)
    x = xp.cast(reduction.prepare(xp, x), working)
    trailing = int(channels_last)
    inside = outer_product([span.count for span in axes], trailing)
    if reduction.whole_span:
        values, seen = gather_windows(xp, x, axes, trailing)
        result = reduction.select(xp, values, xp.index(seen, x), xp.index(inside, x))
    else:
        state = reduction.lift(xp, x)
        identity = reduction.identity(working)
        # The last axis first: what is merged is then in row-major order, in which the first of
        # equal values wins.
        for place in reversed(range(len(axes))):
            axis = x.ndim - trailing - len(axes) + place
            state = _merge_axis(xp, state, identity, axes[place], axis, reduction)
        padded = outer_product([span.padded for span in axes], trailing)
        result = reduction.finish(xp, state, Seen(xp.index(inside, x), xp.index(padded, x)))
    return xp.cast(result, reduction.result_dtype(dtype))


def outer_product(counts: Sequence[np.ndarray], trailing: int) -> np.ndarray:
    """Positions seen by each output: the product over the axes."""
    product = np.ones((), dtype=np.int64)
    for count in counts:
        product = product[..., None] * count
    return product.reshape(product.shape + (1,) * trailing)


def _merge_axis(
    xp: Arrays,
    state: tuple[Array, ...],
    identity: tuple[float, ...],
    span: Spans,
    axis: int,
    reduction: Reduction,
) -> tuple[Array, ...]:
    """Merges along one axis as a tree over neighbours: logarithmic depth, and order is kept."""
    positions, seen = span.positions()
    after = (1,) * (state[0].ndim - axis - 1)
    mask = xp.index(seen.reshape(seen.shape + after), state[0])
    index = xp.index(positions, state[0])
    taps = []
    for part, nothing in zip(state, identity, strict=True):
        taken = xp.take(part, index, axis)
        taps.append(taken if seen.all() else xp.where(mask, taken, nothing))
    ahead = (slice(None),) * (axis + 1)
    while (count := taps[0].shape[axis + 1]) > 1:
        even, odd = (*ahead, slice(0, count - 1, 2)), (*ahead, slice(1, count, 2))
        merged = reduction.merge(xp, tuple(t[even] for t in taps), tuple(t[odd] for t in taps))
        if count % 2:
            last = (*ahead, slice(count - 1, count))
            merged = tuple(
                xp.join([m, t[last]], axis + 1) for m, t in zip(merged, taps, strict=True)
            )
        taps = list(merged)
    return tuple(t[(*ahead, 0)] for t in taps)


def gather_windows(
    xp: Arrays, x: Array, axes: Sequence[Spans], trailing: int
) -> tuple[Array, np.ndarray]:
    """All values of each window on one last axis, and which of them are inside the input."""
    lead = x.ndim - trailing - len(axes)
    seen = np.ones((), dtype=bool)
    for place, span in enumerate(axes):
        positions, valid = span.positions()
        # Each axis already gathered has become two.
        x = xp.take(x, xp.index(positions, x), lead + 2 * place)
        seen = seen[..., None, None] & valid
    n = len(axes)
    outputs = list(range(lead, lead + 2 * n, 2))
    taps = list(range(lead + 1, lead + 2 * n, 2))
    x = xp.permute(x, [*range(lead), *outputs, *range(lead + 2 * n, x.ndim), *taps])
    size = math.prod(x.shape[x.ndim - n :])
    x = x.reshape((*x.shape[: x.ndim - n], size))
    seen = seen.transpose([*range(0, 2 * n, 2), *range(1, 2 * n, 2)])
    return x, seen.reshape(seen.shape[:n] + (1,) * trailing + (size,))


def composite_indices(
    x: Array, axes: Sequence[Spans], reduction: Reduction, *, channels_last: bool = False
) -> Array:
    """Flat spatial position (int64) of the extreme of each window: the first of equal values, and
    the last NaN if there is one, as torch has it."""
    xp = arrays_of(x)
    if isinstance(reduction, Activated):  # positions are those of the activated values
        with np.errstate(all="ignore"):
            x, reduction = reduction.first(xp.constant(x))
    working = reduction.working_dtype(dtype_of(x))
    trailing = int(channels_last)
    values, seen = gather_windows(xp, xp.cast(xp.constant(x), working), axes, trailing)
    mask = xp.index(seen, x)
    values = xp.where(mask, values, reduction.identity(working)[0])
    place = xp.index(np.arange(seen.shape[-1]), x)
    nan = (values != values) & mask
    last_nan = xp.largest(xp.where(nan, place, xp.fill(place, -1)))
    extreme = reduction.lift(xp, values)[0]
    best = xp.largest(extreme) if isinstance(reduction, Max) else xp.smallest(extreme)
    is_best = (values == best[..., None]) & mask
    # A window whose values all equal the identity still points at its first position inside.
    first = xp.smallest(xp.where(is_best, place, xp.fill(place, seen.shape[-1] - 1)))
    tap = xp.where(last_nan >= 0, last_nan, first)
    flat = flat_positions(axes)
    flat = flat.reshape(flat.shape[: len(axes)] + (1,) * trailing + (seen.shape[-1],))
    table = xp.broadcast(xp.index(flat, x), values.shape)
    return xp.pick(table, tap[..., None])


def flat_positions(axes: Sequence[Spans]) -> np.ndarray:
    """(*outputs, places): the flat spatial position of each place in each window, in the order of
    `gather_windows`; 0 along an axis where a window has no such place."""
    flat = np.zeros((), dtype=np.int64)
    for span in axes:
        positions, _ = span.positions()
        flat = flat[..., None, None] * span.size + positions
    n = len(axes)
    flat = flat.transpose([*range(0, 2 * n, 2), *range(1, 2 * n, 2)])
    return np.ascontiguousarray(flat.reshape(*flat.shape[:n], -1))


def beyond_64_bits(x: Array, plan: Plan, channels_last: bool = False) -> Array | None:
    """The result by way of float64 where a sum of int64 values leaves their 64 bits on the way;
    None where none does.

    This looks at the values, so nobody asks while a compiler traces, of tensors without values,
    or under a transform of torch.func: there such a sum wraps.

    Raises:
        PoolValueError: if the result is such a sum.
    """
    kernel = plan.reduction.kernel
    if plan.dtype.name != "int64" or kernel is None or kernel.kind != "sum" or 0 in x.shape:
        return None
    xp = arrays_of(x)
    low, high = xp.bounds(x)
    if max(high, -low) * math.prod(max(span.taps, 1) for span in plan.axes) < 2**63:
        return None
    # A sum that wraps is off by 2**64; the floating one by next to nothing beside that.
    wide = xp.cast(x, "float64")
    wrapped = composite(x, plan.axes, Sum(), channels_last=channels_last)
    rounded = composite(wide, plan.axes, Sum(), channels_last=channels_last)
    if not bool((xp.abs(xp.cast(wrapped, "float64") - rounded) > 2.0**62).any()):
        return None
    if plan.result == "int64":
        raise PoolValueError(
            "a sum of int64 values does not fit 64 bits", "Convert the input to float64"
        )
    result = composite(wide, plan.axes, plan.reduction, channels_last=channels_last)
    return xp.cast(result, plan.result)
