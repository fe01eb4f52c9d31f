"""Pooling of segments: rows of any number, each a run of an array, to one row for each.

Every form of `Segments` has become rows by then, so the order in which values meet, and with it
every bit of the result, depends on the segments alone.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Array, arrays_of, check_array
from .composite import beyond_64_bits, composite
from .dtypes import DTYPES, dtype_of
from .errors import PoolValueError, is_torch_tensor
from .plan import plan_of_spans
from .reductions import Activated, Reduction
from .windows import Segments, Spans

__all__ = ["in_buckets", "pool_segments"]

# Elements that are gathered at a time where there is no kernel.
GATHERED = 2**24


def pool_segments(x: Array, segments: Segments, reduction: Reduction, runner: Any) -> Array:
    """See `poolkit.pool`. The runner has `check`, `runs_rows` and `run_rows` for this kind of
    array."""
    nested = is_torch_tensor(x) and x.is_nested
    if not nested:
        check_array(x)
    found = segments.rows_of(x if nested else runner.check(x))
    values = runner.check(found.values) if nested else found.values
    begin, count = found.begin, found.count
    features = tuple(values.shape[1:])
    rows = values.reshape((values.shape[0], math.prod(features)))
    if isinstance(reduction, Activated) and not reduction.fused:
        reduction.result_dtype(dtype_of(rows))  # refuses what is not floating
        rows, reduction = reduction.first(rows)
    present = count > 0
    some = Spans(len(rows), begin[present], count[present], 1, count[present])
    if present.all() and len(count):
        out = _pool_rows(rows, some, segments, reduction, runner)
    else:
        out = _among_empty(rows, some, present, segments, reduction, runner)
    return out.reshape((len(count), *features))


def _pool_rows(
    rows: Array, spans: Spans, segments: Segments, reduction: Reduction, runner: Any
) -> Array:
    """(segments, width) from (rows, width): every segment has rows. The plan is not kept, as no two
    batches are alike."""
    if not runner.runs_rows(rows):
        return in_buckets(rows, spans, reduction)
    plan = plan_of_spans(segments, reduction, (spans,), (spans.size,), dtype_of(rows).name)
    exact = beyond_64_bits(rows, plan, channels_last=True)
    if exact is not None:
        return exact
    if plan.native is None:
        return in_buckets(rows, spans, reduction)
    return runner.run_rows(rows, plan)


def _among_empty(
    rows: Array,
    some: Spans,
    present: np.ndarray,
    segments: Segments,
    reduction: Reduction,
    runner: Any,
) -> Array:
    """The result where some segments, or all, have no rows."""
    result = reduction.result_dtype(dtype_of(rows))
    value = _value_of_empty(segments, present, result)
    xp = arrays_of(rows)
    # One row more than there are results, from which the empty segments are taken.
    nothing = xp.cast(xp.fill(xp.index(np.zeros((1, rows.shape[1])), rows), value), result)
    pooled = [_pool_rows(rows, some, segments, reduction, runner)] if len(some.begin) else []
    places = np.where(present, np.cumsum(present) - 1, len(some.begin))
    return xp.take(xp.join([*pooled, nothing], 0), xp.index(places, rows), 0)


def _value_of_empty(segments: Segments, present: np.ndarray, result: str) -> float:
    rule = segments.empty
    if rule == "error" and len(present):
        first = int(np.flatnonzero(~present)[0])
        raise PoolValueError(
            f"segment {first} has no rows, and {int((~present).sum())} of {len(present)} have none",
            "Drop them, or say what they are worth: empty='zero', 'nan' or a number",
        )
    if rule in ("zero", "error"):
        return 0.0
    value = float("nan") if rule == "nan" else float(rule)
    if DTYPES[result].kind != "float" and not value.is_integer():
        raise PoolValueError(
            f"a segment without rows cannot be {value} in {result}",
            "Give a whole number, or convert the input to a floating dtype",
        )
    return value


def in_buckets(rows: Array, spans: Spans, reduction: Reduction) -> Array:
    """Without a kernel, on every device, differentiable: segments of nearly the same length are
    gathered together, so that at most half of what is gathered is padding."""
    xp = arrays_of(rows)
    sizes = np.ceil(np.log2(spans.count)).astype(np.int64)
    order = np.argsort(sizes, kind="stable")
    parts = []
    for start, end in _chunks(sizes[order], rows.shape[1]):
        chosen = order[start:end]
        begin, count = spans.begin[chosen], spans.count[chosen]
        chunk = Spans(spans.size, begin, count, 1, count)
        parts.append(composite(rows, (chunk,), reduction, channels_last=True))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return xp.take(xp.join(parts, 0), xp.index(places, rows), 0)


def _chunks(sizes: np.ndarray, width: int) -> list[tuple[int, int]]:
    """Ranges of one size each, and of at most `GATHERED` elements or one segment."""
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    ranges = []
    for first, last in pairwise(edges):
        step = max(1, GATHERED // max(width * 2 ** int(sizes[first]), 1))
        ranges += [(at, min(at + step, last)) for at in range(first, last, step)]
    return ranges
