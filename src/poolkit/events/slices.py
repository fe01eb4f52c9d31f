"""One key with more events than memory takes, in slices of time.

A query sees the slice that it is asked in and those in which its windows begin event by event, and
of what lies between the nodes of the trie by which the kernel adds up. So no bit shows that there
are slices.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _native
from ..windows.durations import looked_back
from .columns import EventColumns, QueryColumns, check_widths, joined
from .definition import Definition
from .kernel import lists_events, pool_events, summary_of
from .reductions import Last
from .tables import Keys, arrow_of

__all__ = ["pool_slices"]


def pool_slices(
    spec: Definition,
    batches: Iterable[Any],
    queries: QueryColumns,
    nothing: EventColumns,
    limit: int,
    folder: Path,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """`pool_events` of the events of one key: the places of some queries, and their results.

    Args:
        batches: Arrow batches of events, in the order of their times.
        nothing: no events, of the same columns.
        limit: of the events that lie in memory at a time. More do where more are of one time, or
            the last so many, or behind one that was not known in time; and where a reduction looks
            at each of them.
        folder: for slices that may be needed again.
    """
    order = np.argsort(queries.time, kind="stable")
    queries = replace(queries.take(order), keys=Keys(np.zeros(len(order), np.int64)))
    past = _Past(spec, queries, replace(nothing, keys=Keys(np.zeros(0, np.int64))), limit, folder)
    asked = 0
    # Where the windows of some queries begin there are, with them, two slices for each window.
    size = max(limit // (2 + 2 * len(past.begins)), 1)
    for events in _slices(spec, batches, nothing, size):
        until = int(np.searchsorted(queries.time, events.time[-1], side="right"))
        for first, end, results in past.pooled(asked, until, events):
            yield order[first:end], results
        asked = until
        if asked < len(queries):
            past.add(events)
    for first, end, results in past.pooled(asked, len(queries), past.nothing):
        yield order[first:end], results
    for held in past.slices:
        held.path.unlink()


def _slices(
    spec: Definition, batches: Iterable[Any], nothing: EventColumns, size: int
) -> Iterator[EventColumns]:
    """Batches as logs of about so many events. Those of one time are in one."""
    pa = arrow_of("events")
    held: list[EventColumns] = []
    for batch in batches:
        events = EventColumns.read(spec, pa.Table.from_batches([batch]))
        check_widths(spec, nothing, events)
        if not len(events):
            continue
        held.append(replace(events, keys=Keys(np.zeros(len(events), np.int64))))
        if sum(map(len, held)) < size or held[0].time[0] == events.time[-1]:
            continue
        whole = joined(held)
        rest = int(np.searchsorted(whole.time, whole.time[-1]))  # of a time that may go on
        yield from _cut(whole, rest, size)
        held = [whole.take(np.arange(rest, len(whole)))]
    if held:
        whole = joined(held)
        yield from _cut(whole, len(whole), size)


def _cut(events: EventColumns, until: int, size: int) -> Iterator[EventColumns]:
    begin = 0
    while begin < until:
        end = min(begin + size, until)
        if end < until:
            before = int(np.searchsorted(events.time, events.time[end]))
            behind = int(np.searchsorted(events.time, events.time[end], side="right"))
            end = before if before > begin else behind
        yield events.take(np.arange(begin, end))
        begin = end


@dataclass(eq=False)
class _Slice:
    path: Path
    first: int
    last: int
    size: int
    known: int | None  # when the last of its events is; None: all are at once
    summary: _native.EventSummary | None
    events: EventColumns | None

    def read(self) -> EventColumns:
        if self.events is None:
            with self.path.open("rb") as stream:
                self.events = pickle.load(stream)
        return self.events


class _Past:
    """What later queries may see of the slices so far."""

    def __init__(
        self, spec: Definition, queries: QueryColumns, nothing: EventColumns, limit: int,
        folder: Path,
    ) -> None:  # fmt: skip
        self.spec, self.queries, self.nothing = spec, queries, nothing
        self.limit, self.folder = limit, folder
        self.lists = lists_events(spec)
        self.last = max((r.events for _, r in spec.reductions if isinstance(r, Last)), default=0)
        self.unbounded = any(length is None for _, length in spec.lengths)
        self.begins = [
            looked_back(queries.time, length, spec.unit)
            for _, length in spec.lengths
            if length is not None
        ]
        # Before all windows but those of all history, from each query on.
        self.earliest = np.full(len(queries), np.iinfo(np.int64).max)
        for begin in self.begins:
            self.earliest = np.minimum(self.earliest, begin)
        self.earliest = np.minimum.accumulate(self.earliest[::-1])[::-1]
        self.slices: list[_Slice] = []  # in the order of their times
        self.before: _native.EventSummary | None = None  # what lies in front of them
        self.added = 0

    def add(self, events: EventColumns) -> None:
        """The next slice."""
        self.added += 1
        path = self.folder / f"{self.added}.pickle"
        path.write_bytes(pickle.dumps(events, protocol=5))
        summary = None if self.lists else summary_of(self.spec, events)
        known = None if events.known is None else int(events.known.max())
        first, last = int(events.time[0]), int(events.time[-1])
        self.slices.append(_Slice(path, first, last, len(events), known, summary, events))

    def pooled(
        self, first: int, end: int, events: EventColumns
    ) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """The results of queries [first, end), some at a time: which, and their results. `events`
        are those behind the slices so far, up to the last of these queries."""
        if first == end:  # nobody asks for what lies here, be it a whole log
            for held in self.slices:
                held.events = None
            if first < len(self.queries):
                self._pass(first)
            return
        self._pass(first)
        wanted = self._wanted(first, end)
        size = sum(held.size for held in wanted)
        alone = sum(held.size for held in self._wanted(first, first + 1))
        middle = self._middle(first, end)
        if size + len(events) > self.limit and 2 * alone < size and first < middle < end:
            yield from self.pooled(first, middle, events)
            yield from self.pooled(middle, end, events)
            return
        for held in self.slices:
            held.events = held.events if held in wanted else None
        parts = [part for part in (*(held.read() for held in wanted), events) if len(part)]
        summaries = [self.before, *(s.summary for s in self._seen(first) if s not in wanted)]
        results = pool_events(
            self.spec, joined(parts) if parts else self.nothing,
            self.queries.take(np.arange(first, end)),
            [summary for summary in summaries if summary is not None],
        )  # fmt: skip
        yield first, end, results

    def _middle(self, first: int, end: int) -> int:
        """Where to part queries [first, end), which must not part those of one time."""
        times = self.queries.time[first:end]
        left, right = (
            int(np.searchsorted(times, times[len(times) // 2], side=side)) + first
            for side in ("left", "right")
        )
        return left if left > first else right

    def _pass(self, first: int) -> None:
        """Sums up, or forgets, the slices before all that queries from `first` on see in part."""
        wanted = self._wanted(first, first + 1)
        while self.slices and self.slices[0].last < self.earliest[first]:
            if self.slices[0] in wanted:
                return
            passed = self.slices.pop(0)
            passed.path.unlink()
            if self.unbounded:
                summaries = [s for s in (self.before, passed.summary) if s is not None]
                self.before = summary_of(self.spec, self.nothing, summaries)

    def _seen(self, first: int) -> list[_Slice]:
        """The slices of which some query from `first` on sees anything."""
        if self.unbounded:
            return self.slices
        return [held for held in self.slices if self.earliest[first] <= held.last]

    def _wanted(self, first: int, end: int) -> list[_Slice]:
        """The slices of which queries [first, end) need single events."""
        reach = [(begin[first:end].min(), begin[first:end].max()) for begin in self.begins]
        time, missing, wanted = self.queries.time[first], self.last, []
        for held in reversed(self._seen(first)):
            late = held.known is not None and held.known > time
            begun = any(low <= held.last and held.first < high for low, high in reach)
            if late or begun or self.lists or missing > 0:
                wanted.append(held)
            missing -= 0 if late else held.size
        return wanted[::-1]
