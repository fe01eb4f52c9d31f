"""`WindowPool.asof` of one partition, as Spark runs it on its executors, or any other engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import PoolError, PoolValueError
from ..windows.durations import Calendar
from .columns import EventColumns, QueryColumns, check_widths, joined
from .definition import Definition
from .kernel import pool_events
from .results import Pooled
from .tables import Keys, arrow_of, keys_of, times_of

__all__ = ["PartitionPool"]

ROWS = 8192  # of one batch of results


class PartitionPool:
    """Pools the rows of one partition as they stream by, to the bits of `WindowPool.asof`.

    For engines that shuffle: they bring the events and queries of each key together, and call this
    on the rows of each partition. It can be pickled, and one serves any number of partitions. Rows
    are Arrow batches of any size, as `event_rows` and `query_rows` make them, with the columns

    - ``key`` and ``time``, of the event or the query;
    - ``event``: a struct of the columns `event_columns`, null in the row of a query;
    - ``query``: a struct of all columns of the queries, null in the row of an event.

    All rows of a key lie in one partition, behind each other and in the order of their times. Rows
    of one time may lie in any order, and so may keys. There is one row out for each query, in the
    order in which they came: the columns of `schema`, those of the queries and those of the
    specification.

    What is held at a time is `memory` bytes of rows and their results or, if these are more, the
    events of one key that its windows still reach, a few times; and the keys that have passed,
    about 100 bytes each, so that one that returns is refused.

    Args:
        spec: the definition.
        events, queries: Arrow tables of the columns that there are, for their types. They may be
            without rows, but vectors in lists of no fixed size need one event.
        memory: bytes.

    Raises:
        PoolValueError, PoolTypeError: for columns that are missing or do not fit, at once; for
            values that do not, and for rows in a wrong order, when they come.

    >>> import numpy as np, pyarrow as pa
    >>> from poolkit.events import Column, PartitionPool, WindowPool
    >>> spec = WindowPool("user", "ts", Column("x"), windows=["7d"], reduce=["mean"], empty="zero")
    >>> day = np.array(["2024-05-01", "2024-05-03", "2024-05-04"], "datetime64[s]")
    >>> events = pa.table({"user": [1, 1], "ts": day[:2], "x": [1.0, 3.0]})
    >>> queries = pa.table({"user": [1], "ts": day[2:], "label": ["bought"]})
    >>> pool = PartitionPool(spec, events, queries)
    >>> rows = pa.concat_tables([pool.event_rows(events), pool.query_rows(queries)])
    >>> rows = rows.sort_by([("key", "ascending"), ("time", "ascending")])  # the engine's part
    >>> [batch.select(["label", "mean_7d"]).to_pylist() for batch in pool(rows.to_batches())]
    [[{'label': 'bought', 'mean_7d': [2.0]}]]
    """

    def __init__(self, spec: Definition, events: Any, queries: Any, memory: int = 2**25) -> None:
        self.spec, self.memory = spec, memory
        none = np.zeros(0, np.int64)
        self._no_events = EventColumns.read(spec, events).take(none)
        asked = queries.slice(0, 0)
        pooled = pool_events(spec, self._no_events, QueryColumns.read(spec, asked))
        self._row_bytes = sum(c.itemsize * math.prod(c.shape[1:]) for c in pooled.values())
        self.schema = Pooled(pooled).to_arrow(asked).schema
        """Of the batches that come out."""
        rest = (name for name in spec.columns if name not in (spec.key, spec.time))
        self.event_columns: tuple[str, ...] = tuple(dict.fromkeys((spec.value.column, *rest)))
        """The columns of events in the struct ``event``."""
        self._event_type = _struct(events.select(self.event_columns))
        self._query_type = _struct(queries)
        reach = [length.longest(spec.unit) if isinstance(length, Calendar) else length
                 for _, length in spec.lengths]  # fmt: skip
        self._reach = None if None in reach else max(length for length in reach if length)

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The rows of a partition to Arrow batches of its results."""
        kept, held, size = self._no_events, [], 0
        order = _Order()
        for batch in batches:
            if not len(batch):
                continue
            held.append(batch)
            queries = len(batch) - batch.column("query").null_count
            size += batch.nbytes + queries * self._row_bytes
            # As much as is kept, so that what is kept of a key is not read again for each batch.
            if size >= max(self.memory, kept.nbytes):
                results, kept = self._pooled(kept, held, order)
                held, size = [], 0
                yield from results
        if held:
            yield from self._pooled(kept, held, order)[0]

    def event_rows(self, events: Any) -> Any:
        """Rows of these events, an Arrow table or batch with their columns."""
        return self._rows(events, "event", self.event_columns)

    def query_rows(self, queries: Any) -> Any:
        """Rows of these queries."""
        return self._rows(queries, "query", queries.schema.names)

    def _rows(self, table: Any, struct: str, names: Sequence[str]) -> Any:
        pa = arrow_of("rows")
        table = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        key = table.column(self.spec.key)
        if pa.types.is_integer(key.type):
            key = key.cast(pa.int64())
        time, aware = times_of(table.column(self.spec.time), self.spec.time, self.spec.unit)
        kinds = {"event": self._event_type, "query": self._query_type}
        columns = {
            name: table.select(names).to_struct_array() if name == struct
            else pa.nulls(len(table), kind)
            for name, kind in kinds.items()
        }  # fmt: skip
        clock = pa.timestamp(self.spec.unit, "UTC" if aware else None)
        return pa.table({"key": key, "time": pa.array(time, clock), **columns})

    def _pooled(
        self, kept: EventColumns, batches: list[Any], order: _Order
    ) -> tuple[list[Any], EventColumns]:
        """The results of some rows behind the events that are kept, and those to keep then."""
        pa = arrow_of("partitions")
        rows = pa.Table.from_batches(batches)
        try:
            events = self._events(kept, rows.filter(rows.column("event").is_valid()))
            asked = rows.filter(rows.column("query").is_valid())
            results: list[Any] = []
            if len(asked):
                columns = _columns(asked, "query")
                queries = QueryColumns.read(self.spec, {**columns, **self._places(asked)})
                pooled = Pooled(pool_events(self.spec, events, queries))
                results = pooled.to_arrow(pa.table(columns)).to_batches(max_chunksize=ROWS)
            order.follow(keys_of(rows.column("key"), "key"), self._times(rows))
            return results, self._reached(events, rows)
        except PoolError as error:
            raise error.during(f"{self.spec.context}, in {len(rows)} rows of a partition") from None

    def _places(self, rows: Any) -> dict[str, Any]:
        return {self.spec.key: rows.column("key"), self.spec.time: rows.column("time")}

    def _events(self, kept: EventColumns, rows: Any) -> EventColumns:
        """The events in these rows behind those that are kept."""
        if not len(rows):
            return kept
        table = {**_columns(rows, "event"), **self._places(rows)}
        events = EventColumns.read(self.spec, table)
        check_widths(self.spec, self._no_events, events)
        return joined([kept, events]) if len(kept) else events

    def _reached(self, events: EventColumns, rows: Any) -> EventColumns:
        """Those that later queries may see: they are of the last key, and not before it."""
        key = keys_of(rows.column("key").slice(len(rows) - 1), "key").of(events.keys)[0]
        seen = events.keys.codes == key
        if self._reach is not None:
            last = int(self._times(rows.slice(len(rows) - 1))[0])
            seen &= events.time >= max(last - self._reach, np.iinfo(np.int64).min)
        return events.take(np.flatnonzero(seen))

    def _times(self, rows: Any) -> np.ndarray:
        return times_of(rows.column("time"), "time", self.spec.unit)[0]


class _Order:
    """The order of a partition's rows, followed from one part of them to the next."""

    def __init__(self) -> None:
        self._passed: set[Any] = set()
        self._key: Any = None
        self._time = 0

    def follow(self, keys: Keys, time: np.ndarray) -> None:
        """Refuses rows of a key that has passed, or of a time that has."""
        begins = np.append(True, keys.codes[1:] != keys.codes[:-1])
        begun = keys.take(np.flatnonzero(begins)).values().tolist()
        back = np.flatnonzero(~begins[1:] & (time[1:] < time[:-1]))
        late = keys.take(back[:1]).values().tolist()
        if begun[0] == self._key:
            late = begun if time[0] < self._time else late
            begun = begun[1:]
        if late:
            raise PoolValueError(
                f"rows of the key {late[0]!r} are not in the order of their times",
                "Sort the rows of each key by time",
            )
        for key in begun:
            if key in self._passed:
                raise PoolValueError(
                    f"rows of the key {key!r} are not behind each other",
                    "Sort the rows of each partition by key and time",
                )
            self._passed.add(key)
            self._key = key
        self._time = int(time[-1])


def _struct(table: Any) -> Any:
    return arrow_of("rows").struct(list(table.schema))


def _columns(rows: Any, struct: str) -> dict[str, Any]:
    """The columns in one of structs."""
    column = rows.column(struct)
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    return dict(zip(names, column.flatten(), strict=True))
