"""What a definition reads of events and queries, as plain columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import PoolTypeError, PoolValueError
from .definition import Definition, Lookup
from .tables import Keys, as_table, finder, keys_of, order_of, times_of, vectors_of, weights_of

__all__ = ["EventColumns", "QueryColumns", "check_clocks", "check_widths", "joined", "same_clock"]


@dataclass(frozen=True)
class EventColumns:
    """A log, in any order.

    Attributes:
        keys: of n events. time, known: (n) int64 ticks. tie: (n) of any dtype that has an order.
        row: (n) int64 rows of the table of a lookup. values: (n, width) vectors. weight: (n).
        aware: whether times have a time zone.
    """

    keys: Keys
    time: np.ndarray
    aware: bool
    tie: np.ndarray | None = None
    known: np.ndarray | None = None
    row: np.ndarray | None = None
    values: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def nbytes(self) -> int:
        """Bytes that the events take."""
        columns = [self.keys.codes, *(getattr(self, f.name) for f in fields(self))]
        return sum(column.nbytes for column in columns if isinstance(column, np.ndarray))

    def table(self, spec: Definition) -> np.ndarray:
        """(rows, width): what the events are rows of."""
        if isinstance(spec.value, Lookup):
            return spec.value.table
        assert self.values is not None
        return self.values

    def take(self, places: np.ndarray) -> EventColumns:
        """Some of the events."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        taken = {
            name: column[places] for name, column in columns.items()
            if isinstance(column, np.ndarray)
        }  # fmt: skip
        return replace(self, keys=self.keys.take(places), **taken)

    @classmethod
    def read(cls, spec: Definition, given: Any) -> EventColumns:
        """The columns that a specification asks for.

        Raises:
            PoolValueError, PoolTypeError: for columns that are missing, hold nulls or have a type
                that does not fit.
        """
        table = as_table(given, "events")
        column = finder(table, "events")
        time, aware = times_of(column(spec.time), spec.time, spec.unit)
        keys = keys_of(column(spec.key), spec.key)
        tie = None if spec.tie is None else order_of(column(spec.tie), spec.tie, spec.unit)
        known = None
        if spec.known_at is not None:
            known, known_aware = times_of(column(spec.known_at), spec.known_at, spec.unit)
            same_clock(aware, known_aware, f"{spec.time} of events", f"{spec.known_at} of events")
        weight = None if spec.weight is None else weights_of(column(spec.weight), spec.weight)
        row = values = None
        if isinstance(spec.value, Lookup):
            row = spec.value.rows_of(column(spec.value.column))
        else:
            values = vectors_of(column(spec.value.column), spec.value.column)
        if len({len(c) for c in (time, keys.codes, tie, known, row, values, weight)
                if c is not None}) > 1:  # fmt: skip
            raise PoolValueError("the columns of events have different lengths", "Check the table")
        events = cls(keys, time, aware, tie, known, row, values, weight)
        if isinstance(spec.value, Lookup) and spec.value.missing == "skip" and row is not None:
            present = np.flatnonzero(row >= 0)
            events = events if len(present) == len(row) else events.take(present)
        if spec.nonfinite == "raise":
            _refuse_nonfinite(spec, events)
        return events


@dataclass(frozen=True)
class QueryColumns:
    """Queries, in the order of their results: keys, times, and a target (n, width) for each column
    that an attention names."""

    keys: Keys
    time: np.ndarray
    aware: bool
    targets: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, places: np.ndarray) -> QueryColumns:
        """Some of the queries."""
        targets = {name: target[places] for name, target in self.targets.items()}
        return replace(self, keys=self.keys.take(places), time=self.time[places], targets=targets)

    @classmethod
    def read(cls, spec: Definition, given: Any) -> QueryColumns:
        """See `EventColumns.read`."""
        table = as_table(given, "queries")
        column = finder(table, "queries")
        time, aware = times_of(column(spec.time), spec.time, spec.unit)
        keys = keys_of(column(spec.key), spec.key)
        targets = {}
        for name in spec.targets:
            if isinstance(spec.value, Lookup):
                target = spec.value.table[spec.value.rows_of(column(name), name)]
            else:
                target = vectors_of(column(name), name)
            targets[name] = np.ascontiguousarray(target, dtype=np.float64)
            if spec.nonfinite == "raise" and not np.isfinite(targets[name]).all():
                raise PoolValueError(
                    f"{name} of queries holds values that are not finite", "Drop those queries"
                )
        if len({len(column) for column in (time, keys.codes, *targets.values())}) > 1:
            raise PoolValueError("the columns of queries have different lengths", "Check the table")
        return cls(keys, time, aware, targets)


def check_clocks(spec: Definition, events_aware: bool, queries_aware: bool) -> None:
    """Refuses naive times beside those of a time zone: nobody knows how far they are apart."""
    same_clock(events_aware, queries_aware, f"{spec.time} of events", f"{spec.time} of queries")


def check_widths(spec: Definition, events: EventColumns, others: EventColumns) -> None:
    """Refuses parts of a log whose vectors are not of one width."""
    if events.values is None or others.values is None:
        return
    width, other = events.values.shape[1], others.values.shape[1]
    if width != other:
        raise PoolValueError(
            f"{spec.value.column} holds vectors of {width} and of {other} numbers",
            "All must have the same width",
        )


def same_clock(aware: bool, other: bool, name: str, other_name: str) -> None:
    """See `check_clocks`."""
    if aware != other:
        with_zone, without = (name, other_name) if aware else (other_name, name)
        raise PoolTypeError(
            f"{with_zone} has a time zone, {without} has none",
            f"Give {without} its time zone, or convert both to UTC and drop it",
        )


def _refuse_nonfinite(spec: Definition, events: EventColumns) -> None:
    if isinstance(spec.value, Lookup) and events.row is not None:
        bad = ~spec.value.finite
        found = np.flatnonzero(bad[events.row]) if bad.any() else np.zeros(0, np.int64)
    else:
        assert events.values is not None
        found = np.flatnonzero(~np.isfinite(events.values).all(axis=1))
    if len(found):
        raise PoolValueError(
            f"{spec.value.column} has a value that is not finite in event {found[0]}, and in "
            f"{len(found)} of {len(events)}",
            "Drop them, or write nonfinite='propagate'",
        )


def joined(parts: Sequence[EventColumns]) -> EventColumns:
    """Logs behind each other, with the keys of the first's kind."""
    first = parts[0]
    if len(parts) == 1:
        return first
    columns: dict[str, Any] = {}
    for field in fields(first):
        if isinstance(getattr(first, field.name), np.ndarray):
            columns[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    if all(part.keys.names is first.keys.names for part in parts):
        codes = np.concatenate([part.keys.codes for part in parts])
        keys = replace(first.keys, codes=codes)
    else:
        values = np.concatenate([part.keys.values() for part in parts])
        names, codes = np.unique(values, return_inverse=True)
        keys = Keys(codes.astype(np.int64), names)
    return replace(first, keys=keys, **columns)
