"""From columns to native calls: one sort of the log, then every window and reduction at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .. import _native
from ..core import pool
from ..errors import PoolValueError
from ..kernels import num_threads
from ..ragged import GATHERED
from ..reductions import Reduction
from ..windows import Segments
from ..windows.durations import UNITS, duration, looked_back
from .columns import EventColumns, QueryColumns, check_clocks
from .definition import Definition
from .reductions import Attend, Count, Decay, EventReduction, Last, kernel_of
from .tables import tie_codes

__all__ = ["lists_events", "pool_events", "summary_of"]

Summaries = Sequence[_native.EventSummary]


def pool_events(
    spec: Definition, events: EventColumns, queries: QueryColumns, summaries: Summaries = ()
) -> dict[str, np.ndarray]:
    """The columns of `WindowPool.asof`. Their bits depend on what each query sees alone.

    Args:
        summaries: of further events, in the order of their times, where all queries ask for one
            key. They are known to all queries, have no time in common with others, and lie wholly
            inside or outside of what a query sees.
    """
    check_clocks(spec, events.aware, queries.aware)
    table = events.table(spec)
    width = table.shape[1]
    for name, target in queries.targets.items():
        if len(target) and target.shape[1] != width:
            raise PoolValueError(
                f"{name} of queries has vectors of {target.shape[1]}, the events of {width}",
                "A target is compared with each event: they have one width",
            )
    call = _Call(spec, events, queries, table, summaries)
    begins = [
        None if length is None else looked_back(queries.time, length, spec.unit)
        for _, length in spec.lengths
    ]
    views: list[tuple[np.ndarray | None, int, np.ndarray]] = []
    jobs: list[tuple[str, int, float, int, int]] = []
    results: dict[str, np.ndarray] = {}
    gathered: list[tuple[str, int, Reduction]] = []

    def view(begin: np.ndarray | None, last: int) -> int:
        views.append((begin, last, np.empty(len(queries), np.int64)))
        return len(views) - 1

    for (window, _), begin in zip(spec.lengths, begins, strict=True):
        whole = view(begin, 0)
        results[f"seen_{window}"] = views[whole][2]
        for name, reduction in spec.reductions:
            column = f"{name}_{window}"
            kernel = _kernel(spec, reduction)
            if isinstance(reduction, Count):
                results[column] = views[whole][2]
                continue
            if kernel is None:
                assert isinstance(reduction, Reduction)
                gathered.append((column, whole, reduction))
                results[column] = views[whole][2]  # its place; the values follow
                continue
            seen = view(begin, reduction.events) if isinstance(reduction, Last) else whole
            out = results[column] = np.empty((len(queries), width), table.dtype)
            jobs.append((kernel, seen, *_parameter(spec, reduction, width, queries), _at(out)))
    call.run(views, jobs)
    for column, seen, reduction in gathered:
        results[column] = call.gather(views[seen], reduction)
    return _with_rule(spec, results)


def summary_of(
    spec: Definition, events: EventColumns, summaries: Summaries = ()
) -> _native.EventSummary:
    """What `pool_events` takes for the events of one key, and those that `summaries` stand for."""
    one = events.keys.codes[:1] if len(events) else np.zeros(1, np.int64)
    nobody = QueryColumns(replace(events.keys, codes=one), one, events.aware, {})
    call = _Call(spec, events, nobody, events.table(spec), summaries)
    reductions = [
        (kernel, _half_life(spec, reduction))
        for _, reduction in spec.reductions
        if (kernel := _kernel(spec, reduction)) and kernel != "attend"
    ]
    # A mean has the states of a sum.
    folded = [(kernel.replace("mean", "sum"), parameter) for kernel, parameter in reductions]
    return call.log.summary(list(dict.fromkeys(folded)))


def lists_events(spec: Definition) -> bool:
    """Whether some reduction looks at each event that a query sees: no summary will do."""
    return any(
        _kernel(spec, reduction) in (None, "attend") and not isinstance(reduction, Count)
        for _, reduction in spec.reductions
    )


def _kernel(spec: Definition, reduction: EventReduction | Reduction) -> str | None:
    """What the native code calls a reduction, or None for one that it does not have."""
    kernel = kernel_of(reduction)
    return f"exact {kernel}" if spec.accumulate == "exact" and kernel in ("sum", "mean") else kernel


def _half_life(spec: Definition, reduction: EventReduction | Reduction) -> float:
    """Of a decay, in ticks; else 0."""
    if not isinstance(reduction, Decay):
        return 0.0
    # In nanoseconds first: a half-life need not be a whole number of ticks.
    nanoseconds = duration(reduction.half_life, "ns", "a half-life")
    return nanoseconds / (10**9 // UNITS[spec.unit])


def _parameter(
    spec: Definition, reduction: EventReduction | Reduction, width: int, queries: QueryColumns
) -> tuple[float, int]:
    """The parameter of a kernel, and the address of its other operand."""
    if isinstance(reduction, Attend):
        factor = 1.0 if reduction.score == "dot" else 1 / math.sqrt(width)
        return factor, _at(queries.targets[reduction.query])
    return _half_life(spec, reduction), 0


def _with_rule(spec: Definition, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns, with what stands for a window that sees nothing."""
    out: dict[str, np.ndarray] = {}
    for window, _ in spec.lengths:
        count = results.pop(f"seen_{window}")
        empty = count == 0
        if spec.empty == "error" and empty.any():
            first = int(np.flatnonzero(empty)[0])
            raise PoolValueError(
                f"query {first} sees no event in {window}, and {int(empty.sum())} of {len(empty)} "
                "see none",
                "Say what they are worth: empty='zero+mask', 'zero' or 'nan'",
            )
        for name, reduction in spec.reductions:
            column = out[f"{name}_{window}"] = results[f"{name}_{window}"]
            if spec.empty == "nan" and not isinstance(reduction, Count):
                column[empty] = np.nan
        if spec.empty == "zero+mask":
            out[f"seen_{window}"] = ~empty
    return out


def _at(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


class _Call:
    """The sorted log of one call, and what it refers to, which must stay alive."""

    def __init__(
        self, spec: Definition, events: EventColumns, queries: QueryColumns, table: np.ndarray,
        summaries: Summaries,
    ) -> None:  # fmt: skip
        self.summaries = list(summaries)
        self.queries, self.table, self.weighted = queries, table, events.weight is not None
        self.key = np.ascontiguousarray(queries.keys.of(events.keys))
        self.time = np.ascontiguousarray(queries.time)
        tie = None if events.tie is None else tie_codes(events.tie)
        held = [events.keys.codes, events.time, tie, events.known, events.row, events.weight]
        held = [None if column is None else np.ascontiguousarray(column) for column in held]
        self.threads = num_threads()
        key, time, tie_at, known, row, weight = map(_at, held)
        self.log = _native.EventLog(
            len(events), key, time, tie_at, known, row, weight, _at(table), table.shape[1],
            bool(table.dtype == np.float64), _at(self.key), len(self.key), self.summaries,
            self.threads,
        )  # fmt: skip

    def run(
        self,
        views: list[tuple[np.ndarray | None, int, np.ndarray]],
        jobs: list[tuple[str, int, float, int, int]],
    ) -> None:
        seen = [(_at(begin), last, _at(count)) for begin, last, count in views]
        self.log.pool(len(self.key), _at(self.key), _at(self.time), seen, jobs, self.threads)

    def gather(
        self, view: tuple[np.ndarray | None, int, np.ndarray], reduction: Reduction
    ) -> np.ndarray:
        """A reduction that has no kernel here: the rows that are seen, as segments."""
        begin, last, count = view
        parts = []
        for first, end in _chunks(count, self.table.shape[1]):
            offsets = np.concatenate([[0], np.cumsum(count[first:end])])
            rows = np.empty(offsets[-1], np.int64)
            weights = np.empty(offsets[-1]) if self.weighted else None
            part = None if begin is None else np.ascontiguousarray(begin[first:end])
            self.log.visible(
                end - first, _at(self.key[first:end]), _at(self.time[first:end]),
                (_at(part), last, 0), _at(offsets), _at(rows), _at(weights), self.threads,
            )  # fmt: skip
            segments = Segments(offsets=offsets, weights=weights)
            parts.append(pool(self.table[rows], segments, reduction))
        return np.concatenate(parts)


def _chunks(count: np.ndarray, width: int) -> Iterator[tuple[int, int]]:
    """Runs of queries that see at most `GATHERED` numbers, or of one."""
    ends = np.cumsum(count) * max(width, 1)
    first = 0
    while first < max(len(count), 1):
        done = ends[first - 1] if first else 0
        end = int(np.searchsorted(ends, done + GATHERED, side="right"))
        end = min(max(end, first + 1), len(count))
        yield first, end
        first = max(end, first + 1)
