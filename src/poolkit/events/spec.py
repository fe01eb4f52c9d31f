"""The definition of features over an event log: the same for batch and online."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PoolError, PoolTypeError, PoolValueError
from ..reductions import Reduction
from ..windows.durations import UNITS, Calendar, duration
from .columns import EventColumns, Keys, QueryColumns, arrow_of, keys_of, real_rows
from .kernel import pool_events
from .local import Progress, is_stored, pool_stored, read_stored
from .reductions import Attend, Decay, EventReduction, named

if TYPE_CHECKING:
    from .state import State, Verification

if TYPE_CHECKING:
    pass

__all__ = ["Column", "Lookup", "Pooled", "WindowPool"]


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
        ids = self.ids if hasattr(self.ids, "dtype") or hasattr(self.ids, "type") else (
            np.asarray(self.ids))  # fmt: skip
        return keys_of(ids, "ids")

    @cached_property
    def finite(self) -> np.ndarray:
        """Which rows are finite."""
        return np.isfinite(self.table).all(axis=1)


class Pooled(Mapping[str, np.ndarray]):
    """The columns that a `WindowPool` makes, one row for each query, in their order.

    A count is (queries) int64, a mask ``seen_*`` (queries) bool, every other column
    (queries, width) in the dtype of the values.
    """

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._columns[name]
        except KeyError:
            raise PoolValueError(
                f"there is no column {name!r}", f"There are: {', '.join(self._columns)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        shapes = (f"{name}: {c.dtype} {c.shape}" for name, c in self._columns.items())
        return f"Pooled({', '.join(shapes)})"

    def to_arrow(self) -> Any:
        """A pyarrow table: vectors are fixed-size lists."""
        pa = arrow_of("results")
        columns = {}
        for name, column in self._columns.items():
            if column.ndim == 1:
                columns[name] = pa.array(column)
            else:
                flat = pa.array(np.ascontiguousarray(column).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
        return pa.table(columns)


@dataclass(frozen=True, eq=False)
class WindowPool:
    """Features of the past: for each query (a key and a time), the events of that key in windows
    before that time, pooled.

    An event at ``ts`` is seen by a query at ``t`` when ``t - window <= ts < t`` and, with
    `known_at`, when it was known: ``known_at <= t``. So what happens at t, or was heard of later,
    never leaks into the features of t.

    Args:
        key, time: columns of events and of queries. Keys are integers or text. Times are timestamps
            or dates, all with a time zone or all without.
        value: `Column` or `Lookup`: the vector of an event.
        windows: durations before the query ("1h", "7d", a timedelta), `calendar` ones, or None for
            all history.
        reduce: "count", and reductions: the library's by name or object, `decay`, `last`, `attend`.
        tie: a column that orders events of one key and time; without, or where it is equal, events
            are ordered by value, then by weight. `last` depends on it, and the last bits of sums.
        known_at: a column of events: from when on each was known.
        weight: a column of events, of 0 or more. Sums are of weighted values, means and deviations
            divide by the sum of the weights (0 where that is 0), a max or min is one of weighted
            values, and counts do not look at it.
        closed: "left", which is the only rule: the event at t is not seen.
        empty: what a window without events gives: "zero+mask", zeros and a column of bools
            ``seen_*``; "zero"; "nan"; or "error".
        nonfinite: "raise" for values that are not finite, or "propagate".
        accumulate: "f64", or "exact": sums and means of exact sums, rounded once.
        unit: ticks of time: "us", "ns", "ms" or "s". Times that are no whole ticks are refused.

    Results are the same to the last bit for any order of the log, any other queries, any number of
    threads, and online. All equal events are counted; queries may repeat; a key without events
    sees nothing.

    Raises:
        PoolValueError, PoolTypeError: for a definition that contradicts itself.

    >>> import numpy as np
    >>> from poolkit.events import Column, WindowPool
    >>> spec = WindowPool(key="user", time="ts", value=Column("x"), windows=["7d", None],
    ...                   reduce=["count", "mean"])
    >>> days = np.array(["2024-05-01", "2024-05-09", "2024-05-10"], "datetime64[D]")
    >>> events = {"user": [1, 1, 1], "ts": days, "x": [1.0, 3.0, 8.0]}
    >>> out = spec.asof(events, {"user": [1, 2], "ts": days[[2, 2]]})
    >>> out["count_7d"], out["mean_all"].ravel(), out["seen_7d"]
    (array([1, 0]), array([2., 0.]), array([ True, False]))
    """

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
        if isinstance(self.windows, str) or isinstance(self.reduce, str):
            raise PoolTypeError("windows and reduce are lists", "Write ['7d'] and ['mean']")
        lengths = tuple(_window(window, self.unit) for window in self.windows)
        reductions = tuple(named(reduction) for reduction in self.reduce)
        if not lengths or not reductions:
            raise PoolValueError("there is no window or no reduction", "Give at least one of each")
        for what, names in (("windows", [n for n, _ in lengths]),
                            ("reductions", [n for n, _ in reductions])):  # fmt: skip
            if len(set(names)) < len(names):
                raise PoolValueError(f"two {what} have one name: {', '.join(names)}", "Drop one")
        for _, reduction in reductions:
            if isinstance(reduction, Decay):
                duration(reduction.half_life, "ns", "a half-life")
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "reductions", reductions)

    @property
    def targets(self) -> tuple[str, ...]:
        """Columns of the queries that attentions name."""
        names = (r.query for _, r in self.reductions if isinstance(r, Attend))
        return tuple(dict.fromkeys(names))

    def table_of(self, events: EventColumns) -> np.ndarray:
        """(rows, width): what `events` are rows of."""
        if isinstance(self.value, Lookup):
            return self.value.table
        assert events.values is not None
        return events.values

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of events that are read."""
        names = (self.key, self.time, self.tie, self.known_at, self.value.column, self.weight)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def asof(
        self,
        events: Any,
        queries: Any,
        *,
        engine: str = "local",
        memory: int = 2**30,
        progress: Progress | None = None,
    ) -> Pooled:
        """One row for each query, in their order.

        Args:
            events: columns `key`, `time` and those that the specification names: a dict of arrays,
                an Arrow table, a Polars or pandas frame, a DuckDB relation, or paths and globs of
                Parquet files. The last two are read by DuckDB, out of core where they are large.
            queries: columns `key` and `time`, and those that `attend` names; as events, but held in
                memory, as the results are.
            engine: "local", which is the only one here.
            memory: bytes that stored events may take, besides queries and results.
            progress: told what is done of stored events, how much, and of how much.

        Raises:
            PoolValueError, PoolTypeError: for columns that are missing or do not fit; naive times
                beside those of a time zone; values that are not finite; items without a row.
        """
        if engine != "local":
            raise PoolTypeError(f"there is no engine {engine!r}", "Write engine='local'")
        try:
            asked = QueryColumns.read(self, read_stored(queries) if is_stored(queries) else queries)
            if is_stored(events):
                return Pooled(pool_stored(self, events, asked, memory, progress))
            return Pooled(pool_events(self, EventColumns.read(self, events), asked))
        except PoolError as error:
            raise error.during(self._context()) from None

    def state(self, saved: bytes | str | os.PathLike[str] | None = None) -> State:
        """An empty `State`, or one that was saved: what `to_bytes` made, or the path of a file.

        Raises:
            PoolValueError: for a state that is corrupt, of another version or definition.
        """
        from .state import State

        if saved is None:
            return State(self)
        if not isinstance(saved, (bytes, bytearray, memoryview)):
            try:
                saved = Path(saved).read_bytes()
            except OSError as error:
                raise PoolValueError(f"cannot read {saved!s}: {error.strerror}") from None
        return State.of_bytes(self, bytes(saved))

    def verify(self, log: Any, served: Any) -> Verification:
        """Replays a log and compares: what should have been served?

        Args:
            log: events, as for `asof`. With `known_at`, late events are not held against a row that
                was served before they were known.
            served: a table of queries with columns of the results, all or some, as served.

        Returns:
            The largest difference and the number of rows that differ, for each column.
        """
        from .state import verified

        return verified(self, log, served)

    def _context(self) -> str:
        windows = ", ".join(name for name, _ in self.lengths)
        return f"events of {self.key!r} in windows {windows}"


def _window(window: Any, unit: str) -> tuple[str, int | Calendar | None]:
    if window is None or window == "all":
        return "all", None
    if isinstance(window, Calendar):
        return f"calendar_{window.text}", window
    ticks = duration(window, unit)
    if isinstance(window, str):
        return window, ticks
    if isinstance(window, timedelta):
        window = np.timedelta64(window)
    return str(window).replace(" ", "_"), ticks
