"""The definition of features over an event log: the same for batch and online."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ..errors import PoolError, PoolTypeError, PoolValueError
from .columns import EventColumns, QueryColumns
from .definition import Definition
from .kernel import pool_events
from .local import Progress, is_stored, pool_stored, read_stored
from .results import Pooled
from .spark import is_session, pool_frames
from .state import State, Verification, compared
from .tables import as_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["WindowPool"]


@dataclass(frozen=True, eq=False)
class WindowPool(Definition):
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
        tie: a column that orders events of one key and time: numbers, times or text. Without, or
            where it is equal, events are ordered by value (those of a `Lookup` by their row), then
            by weight. `last` depends on it, and the last bits of sums.
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

    @overload
    def asof(
        self, events: Any, queries: Any, *, engine: Literal["local"] = "local",
        memory: int = 2**30, progress: Progress | None = None,
    ) -> Pooled: ...  # fmt: skip

    @overload
    def asof(
        self, events: Any, queries: Any, *, engine: SparkSession, memory: int = 2**30,
    ) -> DataFrame: ...  # fmt: skip

    def asof(
        self,
        events: Any,
        queries: Any,
        *,
        engine: str | SparkSession = "local",
        memory: int = 2**30,
        progress: Progress | None = None,
    ) -> Pooled | DataFrame:
        """One row for each query, in their order.

        Args:
            events: columns `key`, `time` and those that the specification names: a dict of arrays,
                an Arrow table, a frame of Polars (a lazy one too) or pandas, a DuckDB relation, or
                paths and globs of Parquet files. The last two are read by DuckDB, out of core where
                they are large.
            queries: columns `key` and `time`, and those that `attend` names; as events, but held in
                memory, as the results are.
            engine: "local", or a classic session of Spark 4: then events and queries are DataFrames
                of its, or paths of Parquet files that it reads. The result is a DataFrame of all
                columns of the queries and those of the specification, vectors as arrays, with one
                row for each query. Rows of a DataFrame have no order: give queries a column that
                says which is which. Types are checked at once, values when Spark runs.
            memory: bytes that stored events may take, besides queries and results; with Spark, that
                a worker may take for rows, besides one key's.
            progress: told what is done of stored events, how much, and of how much; not by Spark.

        Raises:
            PoolValueError, PoolTypeError: for columns that are missing or do not fit; naive times
                beside those of a time zone; values that are not finite; items without a row.
        """
        try:
            if not memory > 0:
                raise PoolValueError(f"memory must be above 0, got {memory}", "Give bytes")
            if engine != "local":
                return self._asof_in(engine, events, queries, memory)
            asked = QueryColumns.read(self, read_stored(queries) if is_stored(queries) else queries)
            if is_stored(events):
                return Pooled(pool_stored(self, events, asked, memory, progress))
            return Pooled(pool_events(self, EventColumns.read(self, events), asked))
        except PoolError as error:
            raise error.during(self.context) from None

    def _asof_in(self, session: Any, events: Any, queries: Any, memory: int) -> DataFrame:
        if not is_session(session):
            raise PoolTypeError(
                f"there is no engine {session!r}",
                "Write engine='local', or give a classic session of Spark: "
                "pip install 'poolkit[spark]'",
            )
        return pool_frames(self, session, events, queries, memory)

    def state(self, saved: bytes | str | os.PathLike[str] | None = None) -> State:
        """An empty `State`, or one that was saved: what `to_bytes` made, or the path of a file.

        Raises:
            PoolValueError: for a state that is corrupt, of another version or definition.
            PoolTypeError: for what is neither bytes nor a path.
        """
        if saved is None:
            return State(self)
        if not isinstance(saved, (bytes, bytearray, memoryview)):
            try:
                saved = Path(saved).read_bytes()
            except OSError as error:
                raise PoolValueError(f"cannot read {saved!s}: {error.strerror}") from None
            except TypeError:
                raise PoolTypeError(
                    f"a state is bytes or the path of a file, got {saved!r}",
                    "Give what to_bytes made, or where save wrote",
                ) from None
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
        table = as_table(read_stored(served) if is_stored(served) else served, "served rows")
        return compared(table, self.asof(log, table))
