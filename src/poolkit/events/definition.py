"""What a definition of features over an event log says, and knows of its tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import PoolTypeError, PoolValueError
from ..reductions import Reduction
from ..windows.durations import UNITS, Calendar, duration, written
from .reductions import Attend, Decay, EventReduction, named
from .tables import Keys, check_flat, check_nulls, item_at, keys_of, numbers_of, real_rows

__all__ = ["Column", "Definition", "Lookup"]


@dataclass(frozen=True)
class Column:
    """The value of an event is in a column: vectors of one width, or numbers."""

    column: str


@dataclass(frozen=True, eq=False)
class Lookup:
    """The value of an event is the row of a table that a column names. Only the names are moved and
    sorted; rows are read where they lie.

    Args:
        column: the events' column of items.
        table: (rows, width) of numbers; float32 and float64 are not copied.
        ids: the item of each row, integers or text; None: the column holds the numbers of rows.
        missing: "raise" for an item that the table does not have, or "skip", which leaves such
            events out: they are not counted either.
    """

    column: str
    table: np.ndarray
    ids: Any = None
    missing: str = "raise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", real_rows(np.asarray(self.table), "the table"))
        if self.missing not in ("raise", "skip"):
            raise PoolValueError(f"missing must be 'raise' or 'skip', got {self.missing!r}")
        if self.ids is not None:
            if len(self.ids) != len(self.table):
                raise PoolValueError(
                    f"there are {len(self.ids)} ids for a table of {len(self.table)} rows",
                    "Give one for each row",
                )
            if len(np.unique(self.keys.codes)) != len(self.ids):
                raise PoolValueError("two rows of the table have one id", "Ids must be unique")

    @cached_property
    def keys(self) -> Keys:
        """The ids as keys."""
        ids = self.ids if hasattr(self.ids, "type") else np.asarray(self.ids)
        check_nulls(ids, "ids")
        return keys_of(ids, "ids")

    @cached_property
    def finite(self) -> np.ndarray:
        """Which rows are finite."""
        return np.isfinite(self.table).all(axis=1)

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """What tells it from other tables: their types, shapes and digests."""
        rows = hashlib.sha256(self.table.reshape(-1).data).hexdigest()
        ids = None
        if self.ids is not None:
            named = json.dumps(self.keys.values().tolist(), default=repr)
            ids = hashlib.sha256(named.encode()).hexdigest()
        return {"table": f"{self.table.dtype} {self.table.shape} {rows}", "ids": ids}

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.keys.codes, kind="stable")
        return order, self.keys.codes[order]

    def rows_of(self, column: Any, target: str | None = None) -> np.ndarray:
        """Where each item is in the table; -1 for one that is not, if it may be skipped. `target`
        is the name of a column of queries, of which none may."""
        size, name = len(self.table), target or self.column
        if self.ids is None:
            row = numbers_of(column, name)
            check_flat(row, name)
            if row.dtype.kind not in "iu" and len(row):
                raise PoolTypeError(
                    f"{name} holds {row.dtype}, the rows of the table are integers",
                    "Give Lookup the ids of its rows: Lookup(..., ids=...)",
                )
            row = row.astype(np.int64)
            missing = (row < 0) | (row >= size)
        else:
            items, ids = keys_of(column, name), self.keys
            codes = items.of(ids, "the table", name)
            order, known = self._order
            at = np.minimum(np.searchsorted(known, codes), max(len(known) - 1, 0))
            missing = known[at] != codes if len(known) else np.ones(len(codes), bool)
            row = order[at] if len(known) else codes
        if missing.any():
            if target or self.missing == "raise":
                first = int(np.flatnonzero(missing)[0])
                raise PoolValueError(
                    f"{name} is {item_at(column, first)!r} in row {first}, which the table of "
                    f"{size} rows does not have: {int(missing.sum())} of {len(missing)} are "
                    "missing",
                    "Drop those queries"
                    if target
                    else "Add them, or write Lookup(..., missing='skip') to leave such events out",
                )
            row = np.where(missing, -1, row)
        return np.ascontiguousarray(row, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Definition:
    """The fields of a `WindowPool`, checked, and what follows from them."""

    key: str
    time: str
    value: Column | Lookup
    windows: Sequence[Any]
    reduce: Sequence[Any] = ("mean",)
    tie: str | None = None
    known_at: str | None = None
    weight: str | None = None
    closed: str = "left"
    empty: str = "zero+mask"
    nonfinite: str = "raise"
    accumulate: str = "f64"
    unit: str = "us"
    lengths: tuple[tuple[str, int | Calendar | None], ...] = field(init=False, repr=False)
    """The windows: their names, and how far back they reach."""
    reductions: tuple[tuple[str, EventReduction | Reduction], ...] = field(init=False, repr=False)
    """The reductions, by the names of their columns."""

    def __post_init__(self) -> None:
        if self.closed != "left":
            raise PoolValueError(
                f"closed must be 'left', got {self.closed!r}",
                "A window that saw the event at t would tell the answer; add a tick to t instead",
            )
        for name, value, choices in (
            ("empty", self.empty, ("zero+mask", "zero", "nan", "error")),
            ("nonfinite", self.nonfinite, ("raise", "propagate")),
            ("accumulate", self.accumulate, ("f64", "exact")),
            ("unit", self.unit, tuple(UNITS)),
        ):
            if value not in choices:
                raise PoolValueError(
                    f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}"
                )
        if not isinstance(self.value, (Column, Lookup)):
            raise PoolTypeError(
                f"value must be a Column or a Lookup, got {self.value!r}",
                "Write Column('vector') or Lookup('item', table=embeddings)",
            )
        for name in ("key", "time", "value", "tie", "known_at", "weight"):
            column = self.value.column if name == "value" else getattr(self, name)
            optional = name in ("tie", "known_at", "weight")
            if not isinstance(column, str) and not (optional and column is None):
                raise PoolTypeError(
                    f"{name} must be the name of a column, got {column!r}",
                    "Join several columns into one",
                )
        if any(isinstance(given, (str, Mapping)) or not isinstance(given, Iterable)
               for given in (self.windows, self.reduce)):  # fmt: skip
            raise PoolTypeError("windows and reduce are lists", "Write ['7d'] and ['mean']")
        lengths = tuple(_window(window, self.unit) for window in self.windows)
        reductions = tuple(named(reduction) for reduction in self.reduce)
        if not lengths or not reductions:
            raise PoolValueError("there is no window or no reduction", "Give at least one of each")
        windows, names = [n for n, _ in lengths], [n for n, _ in reductions]
        if len(set(windows)) < len(windows):
            raise PoolValueError(f"two windows have one name: {', '.join(windows)}", "Drop one")
        if len(set(names)) < len(names):
            raise PoolValueError(
                f"two reductions have one name: {', '.join(names)}",
                "Drop one, or give it another: last(1, name='newest')",
            )
        columns = [f"{name}_{window}" for window in windows for name in ("seen", *names)]
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise PoolValueError(
                f"two columns of results have the name {twice[0]}",
                "Give the reduction another: last(1, name='newest')",
            )
        for _, reduction in reductions:
            if isinstance(reduction, Decay):
                duration(reduction.half_life, "ns", "a half-life")
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "reductions", reductions)

    @property
    def results(self) -> tuple[str, ...]:
        """The columns that come out."""
        masked = ("seen",) if self.empty == "zero+mask" else ()
        names = [name for name, _ in self.reductions]
        return tuple(f"{name}_{window}" for window, _ in self.lengths for name in (*names, *masked))

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns of the queries that attentions name."""
        names = (r.query for _, r in self.reductions if isinstance(r, Attend))
        return tuple(dict.fromkeys(names))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of events that are read."""
        names = (self.key, self.time, self.tie, self.known_at, self.value.column, self.weight)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def context(self) -> str:
        """What an error was made during."""
        windows = ", ".join(name for name, _ in self.lengths)
        return f"events of {self.key!r} in windows {windows}"


def _window(window: Any, unit: str) -> tuple[str, int | Calendar | None]:
    if window is None or window == "all":
        return "all", None
    if isinstance(window, Calendar):
        return f"calendar_{window.text}", window
    ticks = duration(window, unit)
    return written(window), ticks
