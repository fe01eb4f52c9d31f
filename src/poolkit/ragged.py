"""Pooling of segments: rows of any number, each a run of an array, to one row for each.

Every form of `Segments` has become rows by then, so the order in which values meet, and with it
every bit of the result, depends on the segments alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Array, arrays_of, check_array
from .composite import beyond_64_bits, composite
from .dtypes import DTYPES, dtype_of
from .errors import PoolTypeError, PoolValueError, is_torch_tensor
from .plan import plan_of_spans
from .reductions import Activated, Max, Mean, Min, Place, Reduction, Soft, SqrtN, Sum
from .windows import Segments, Spans

__all__ = ["buckets", "in_buckets", "pool_segments", "value_of_empty"]

# Elements that are gathered at a time where there is no kernel.
GATHERED = 2**24


def pool_segments(x: Array, segments: Segments, reduction: Reduction, runner: Any) -> Array:
    """See `poolkit.pool`. The runner has `check`, `runs_rows`, `run_rows` and `run_bags` for this
    kind of array."""
    nested = is_torch_tensor(x) and x.is_nested
    if not nested:
        check_array(x)
    found = segments.rows_of(x if nested else runner.check(x))
    values = runner.check(found.values) if nested else found.values
    begin, count = found.begin, found.count
    features = tuple(values.shape[1:])
    rows = values.reshape((values.shape[0], math.prod(features)))
    if isinstance(reduction, Activated) and (not reduction.fused or found.weights is not None):
        reduction.result_dtype(dtype_of(rows))  # refuses what is not floating
        rows, reduction = reduction.first(rows)

    def run(spans: Spans) -> Array:
        if found.weights is not None:
            return _pool_weighted(rows, spans, found.weights, reduction, runner)
        if isinstance(reduction, Place):
            return _take_place(rows, spans, reduction)
        if isinstance(reduction, SqrtN) and dtype_of(rows).kind == "float":
            roots = np.sqrt(spans.count.astype(np.float64))
            return runner.run_bags(rows, spans, "sum", None, roots, 1.0)
        return _pool_rows(rows, spans, segments, reduction, runner)

    present = count > 0
    some = Spans(len(rows), begin[present], count[present], 1, count[present])
    if present.all() and len(count):
        out = run(some)
    else:
        out = _among_empty(rows, some, present, segments, reduction, run)
    return out.reshape((len(count), *features))


def _take_place(rows: Array, spans: Spans, reduction: Place) -> Array:
    """First and last values are rows."""
    xp = arrays_of(rows)
    place = spans.begin + (spans.count - 1) * reduction.last
    return xp.take(rows, xp.index(place, rows), 0)


def _pool_weighted(
    rows: Array, spans: Spans, weights: Array, reduction: Reduction, runner: Any
) -> Array:
    """See the weights of `Segments`."""
    result = reduction.result_dtype(dtype_of(rows))
    name = {Sum: "sum", Mean: "sum", SqrtN: "sum", Max: "max", Min: "min", Soft: "soft"}.get(
        type(reduction)
    )
    if name is None:
        raise PoolTypeError(
            f"weights have no meaning for {reduction}",
            "Use Sum, Mean, SqrtN, Max, Min or Soft, or drop the weights",
        )
    if isinstance(reduction, Mean) and (reduction.divisor or reduction.result == "same"):
        raise PoolTypeError(
            f"{reduction} divides by something else than the weights", "Write Mean()"
        )
    if DTYPES[result].kind != "float":
        raise PoolTypeError(
            f"weights would make {result} of rows of integers", "Convert them to a floating dtype"
        )
    xp = arrays_of(rows)
    rows = xp.cast(rows, result)
    if is_torch_tensor(rows) != is_torch_tensor(weights):
        weights = _like(rows, weights)
    weights = xp.cast(weights, DTYPES[result].wide)
    divisors = None
    if isinstance(reduction, (Mean, SqrtN)):
        powers = weights if isinstance(reduction, Mean) else weights * weights
        divisors = runner.run_bags(powers[:, None], spans, "sum", None, None, 1.0)[:, 0]
        divisors = divisors if isinstance(reduction, Mean) else xp.sqrt(divisors)
    beta = float(reduction.beta) if isinstance(reduction, Soft) else 1.0
    with np.errstate(all="ignore"):
        return runner.run_bags(rows, spans, name, weights, divisors, beta)


def _like(rows: Array, weights: Array) -> Array:
    """The weights as the kind of array that the rows are."""
    if not is_torch_tensor(rows):
        return weights.detach().cpu().numpy()
    return arrays_of(rows).index(np.ascontiguousarray(weights), rows)


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
    run: Callable[[Spans], Array],
) -> Array:
    """The result where some segments, or all, have no rows."""
    result = reduction.result_dtype(dtype_of(rows))
    value = value_of_empty(segments, present, result)
    xp = arrays_of(rows)
    # One row more than there are results, from which the empty segments are taken.
    nothing = xp.cast(xp.fill(xp.index(np.zeros((1, rows.shape[1])), rows), value), result)
    pooled = [run(some)] if len(some.begin) else []
    places = np.where(present, np.cumsum(present) - 1, len(some.begin))
    return xp.take(xp.join([*pooled, nothing], 0), xp.index(places, rows), 0)


def value_of_empty(segments: Segments, present: np.ndarray, result: str) -> float:
    """What stands for a segment without rows, in the dtype `result`."""
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
    chunks, places = buckets(spans.count, rows.shape[1])
    parts = []
    for chosen in chunks:
        begin, count = spans.begin[chosen], spans.count[chosen]
        chunk = Spans(spans.size, begin, count, 1, count)
        parts.append(composite(rows, (chunk,), reduction, channels_last=True))
    return xp.take(xp.join(parts, 0), xp.index(places, rows), 0)


def buckets(count: np.ndarray, width: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Which segments are gathered together, by their numbers of rows (1 or more): those of nearly
    the same, with at most `GATHERED` elements or one segment each. And where each segment is in the
    joined results."""
    sizes = np.ceil(np.log2(count)).astype(np.int64)
    order = np.argsort(sizes, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return [order[start:end] for start, end in _chunks(sizes[order], width)], places


def _chunks(sizes: np.ndarray, width: int) -> list[tuple[int, int]]:
    """Ranges of one size each, and of at most `GATHERED` elements or one segment."""
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    ranges = []
    for first, last in pairwise(edges):
        step = max(1, GATHERED // max(width * 2 ** int(sizes[first]), 1))
        ranges += [(at, min(at + step, last)) for at in range(first, last, step)]
    return ranges
