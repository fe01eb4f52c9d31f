"""`WindowPool.asof` of a log in partitions, as Spark runs it on its executors, or any other engine.

Engines pay for each row that they move, so what is moved are blocks of rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import PoolError, PoolValueError
from ..windows.durations import Calendar
from .columns import EventColumns, QueryColumns, check_widths
from .definition import Definition
from .kernel import pool_events
from .results import Pooled
from .tables import Keys, arrow_of, finder, keys_of, times_of, vectors_of

__all__ = ["PartitionPool"]

ROWS = 8192  # of one batch of results
BUCKETS = 2**16  # of keys, in the order of which rows come
BLOCKS = 2**10  # of what is packed at a time: with more, less of them overlaps, but each costs

BUCKET = " bucket"  # the column of a block's rows that says theirs

Mark = tuple[int, int]
"""A bucket and a time: rows are ordered by them."""


class PartitionPool:
    """Pools a log in partitions, to the bits of `WindowPool.asof`.

    For engines that shuffle. Where rows lie, `event_blocks` and `query_blocks` pack them: a block
    has the rows of some keys. The engine brings the blocks of each ``place`` together, sorts them
    by ``bucket`` and ``time``, and calls this on those of each partition, which pools them as they
    stream by. Rows and blocks are Arrow batches of any size. There is one row out for each query,
    in any order: the columns of `schema`, those of the queries and those of the specification.

    It can be pickled, and one serves any number of partitions. What is held of these is `memory`
    bytes of rows and their results, and the blocks that overlap: about a thousandth of the log. Of
    a key with more events, those are held that its windows still reach, a few times.

    Args:
        spec: the definition.
        events, queries: Arrow tables of the columns that there are, for their types. They may be
            without rows, but vectors in lists of no fixed size need one event.
        places: whole numbers by which the engine tells where blocks go, about as many as there are
            partitions. Keys are spread over them by their hash.
        memory: bytes, for packing too.

    Raises:
        PoolValueError, PoolTypeError: for columns that are missing or do not fit, at once; for
            values that do not, and for blocks in a wrong order, when they come.

    >>> import numpy as np, pyarrow as pa
    >>> from poolkit.events import Column, PartitionPool, WindowPool
    >>> spec = WindowPool("user", "ts", Column("x"), windows=["7d"], reduce=["mean"], empty="zero")
    >>> day = np.array(["2024-05-01", "2024-05-03", "2024-05-04"], "datetime64[s]")
    >>> events = pa.table({"user": [1, 1], "ts": day[:2], "x": [1.0, 3.0]})
    >>> queries = pa.table({"user": [1], "ts": day[2:], "label": ["bought"]})
    >>> pool = PartitionPool(spec, events, queries)
    >>> blocks = [*pool.event_blocks(events.to_batches()), *pool.query_blocks(queries.to_batches())]
    >>> order = [("bucket", "ascending"), ("time", "ascending")]
    >>> partition = pa.Table.from_batches(blocks).sort_by(order)  # the engine's part
    >>> [batch.select(["label", "mean_7d"]).to_pylist() for batch in pool(partition.to_batches())]
    [[{'label': 'bought', 'mean_7d': [2.0]}]]
    """

    def __init__(
        self,
        spec: Definition,
        events: Any,
        queries: Any,
        places: Sequence[int] = (0,),
        memory: int = 2**25,
    ) -> None:
        self.spec, self.memory = spec, memory
        self.places = np.asarray(places)
        if self.places.ndim != 1 or not self.places.size or self.places.dtype.kind not in "iu":
            raise PoolValueError(
                f"places must be whole numbers, got {places!r}", "Give range(number of partitions)"
            )
        self.places = self.places.astype(np.int64)
        none = np.zeros(0, np.int64)
        self._no_events = EventColumns.read(spec, events).take(none)
        asked = queries.slice(0, 0).cast(_plain(queries.schema))
        pooled = pool_events(spec, self._no_events, QueryColumns.read(spec, asked))
        self._row_bytes = sum(c.itemsize * math.prod(c.shape[1:]) for c in pooled.values())
        self.schema = Pooled(pooled).to_arrow(asked).schema
        """Of the batches that come out."""
        pa = arrow_of("blocks")
        numbers = {name: pa.int64() for name in ("place", "bucket", "time")}
        self.block_schema = pa.schema({**numbers, "asked": pa.bool_(), "block": pa.binary()})
        """Of blocks."""
        self._events = _with_bucket(self._of_width(events.select(spec.columns).slice(0, 0)).schema)
        self._queries = _with_bucket(queries.schema)
        reach = [length.longest(spec.unit) if isinstance(length, Calendar) else length
                 for _, length in spec.lengths]  # fmt: skip
        self._reach = None if None in reach else max(length for length in reach if length)

    def event_blocks(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Packs events into batches of blocks, which have the columns

        - ``place``: one of `places`;
        - ``bucket`` and ``time``: none of its rows comes before these;
        - ``asked``: whether they are queries;
        - ``block``: the rows, in bytes.
        """
        return self._packed(batches, self._events, asked=False)

    def query_blocks(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Packs queries."""
        return self._packed(batches, self._queries, asked=True)

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The blocks of a partition to Arrow batches of its results."""
        pa = arrow_of("partitions")
        held = [self._events.empty_table(), self._queries.empty_table()]
        size, most, mark = 0, self.memory, (0, np.iinfo(np.int64).min)
        came: list[list[Any]] = [[], []]  # of events and of queries, since
        for bucket, time, asked, block in _blocks(batches):
            if (bucket, time) < mark:
                raise PoolValueError(
                    "the blocks of a partition are not in their order",
                    "Sort the blocks of each partition by bucket and time",
                )
            mark = bucket, time
            if size >= most:
                events, queries = map(_joined, held, came)
                yield from self._pooled(self._before(events, mark), self._before(queries, mark))
                held = [self._since(events, self._reached(mark)), self._since(queries, mark)]
                came, size = [[], []], 0
                # As much as is held, so that this is not read again for each block.
                most = max(self.memory, sum(rows.nbytes for rows in held))
            rows = pa.ipc.read_record_batch(block, self._queries if asked else self._events)
            came[asked].append(rows)
            size += rows.nbytes + asked * len(rows) * self._row_bytes
        yield from self._pooled(*map(_joined, held, came))

    def _packed(self, batches: Iterable[Any], schema: Any, asked: bool) -> Iterator[Any]:
        held, size = [], 0
        for batch in batches:
            held.append(batch.select(schema.names[1:]))
            size += held[-1].nbytes
            if size >= self.memory:
                yield self._block(held, schema, asked)
                held, size = [], 0
        if size:
            yield self._block(held, schema, asked)

    def _block(self, batches: list[Any], schema: Any, asked: bool) -> Any:
        """A batch of blocks of these rows."""
        pa = arrow_of("blocks")
        rows = pa.Table.from_batches(batches).combine_chunks()
        table = dict(zip(rows.column_names, rows.columns, strict=True))
        column = finder(table, "queries" if asked else "events")
        try:
            rows = rows if asked else self._of_width(rows)
            bucket = _buckets(keys_of(column(self.spec.key), self.spec.key))
            time, _ = times_of(column(self.spec.time), self.spec.time, self.spec.unit)
        except PoolError as error:
            raise error.during(self.spec.context) from None
        order = _order(bucket, time)
        bucket, time = bucket[order].astype(np.int64), time[order]
        ordered = [pa.array(bucket), *rows.take(pa.array(order)).columns]
        (whole,) = pa.table(ordered, schema.names).cast(schema).combine_chunks().to_batches()
        place = bucket * len(self.places) // BUCKETS
        most = max(len(rows) * self.memory // (BLOCKS * whole.nbytes), 1)
        # A block ends where a place does, or is full.
        begins = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
        ends = np.append(begins[1:], len(rows))
        begins = np.concatenate(
            [np.arange(*run, most) for run in zip(begins, ends, strict=True)], dtype=np.int64
        )
        sizes = np.diff(begins, append=len(rows))
        bytes_ = pa.BufferOutputStream()
        lengths = [bytes_.write(whole.slice(*run).serialize())
                   for run in zip(begins.tolist(), sizes.tolist(), strict=True)]  # fmt: skip
        offsets = pa.py_buffer(np.cumsum([0, *lengths], dtype=np.int32))
        blocks = pa.Array.from_buffers(pa.binary(), len(begins), [None, offsets, bytes_.getvalue()])
        numbers = self.places[place[begins]], bucket[begins], np.minimum.reduceat(time, begins)
        arrays = [*map(pa.array, numbers), pa.array(np.full(len(begins), asked)), blocks]
        return pa.record_batch(arrays, self.block_schema)

    def _of_width(self, events: Any) -> Any:
        """The events, their vectors in lists of a fixed size: Arrow takes these much faster."""
        name, pa = self.spec.value.column, arrow_of("events")
        column = events.column(name)
        if not pa.types.is_nested(column.type):
            return events
        if len(events):
            values = replace(self._no_events, values=vectors_of(column, name))
            check_widths(self.spec, self._no_events, values)
        flat, width = column.combine_chunks().flatten(), self._no_events.table(self.spec).shape[1]
        fixed = pa.FixedSizeListArray.from_arrays(flat, width)
        return events.set_column(events.column_names.index(name), name, fixed)

    def _pooled(self, events: Any, queries: Any) -> Iterator[Any]:
        """The results of these queries, of which all events have come."""
        try:
            log = self._no_events
            if len(events):
                log = EventColumns.read(self.spec, events)
                check_widths(self.spec, self._no_events, log)
            if len(queries):
                queries = queries.drop_columns([BUCKET])
                asked = QueryColumns.read(self.spec, queries)
                pooled = Pooled(pool_events(self.spec, log, asked))
                results = pooled.to_arrow(queries).combine_chunks()
                yield from results.to_batches(max_chunksize=ROWS)
        except PoolError as error:
            rows = f"{len(events)} events and {len(queries)} queries of a partition"
            raise error.during(f"{self.spec.context}, in {rows}") from None

    def _before(self, rows: Any, mark: Mark) -> Any:
        return rows.filter(arrow_of("rows").array(~self._is_since(rows, mark)))

    def _since(self, rows: Any, mark: Mark) -> Any:
        rows = rows.filter(arrow_of("rows").array(self._is_since(rows, mark)))
        return rows.combine_chunks()  # of which most have no rows now

    def _is_since(self, rows: Any, mark: Mark) -> np.ndarray:
        bucket = rows.column(BUCKET).to_numpy()
        time, _ = times_of(rows.column(self.spec.time), self.spec.time, self.spec.unit)
        return (bucket > mark[0]) | ((bucket == mark[0]) & (time >= mark[1]))

    def _reached(self, mark: Mark) -> Mark:
        """From where on events are seen by queries that are not before a mark."""
        least = np.iinfo(np.int64).min
        return mark[0], least if self._reach is None else max(mark[1] - self._reach, least)


def _buckets(keys: Keys) -> np.ndarray:
    """(n) uint16: a hash of each key, by the finaliser of SplitMix64 (Steele et al., "Fast
    splittable pseudorandom number generators", 2014)."""
    if keys.names is None:
        code = keys.codes.astype(np.uint64)
    else:
        names = (n.encode() if isinstance(n, str) else n for n in keys.names.tolist())
        code = np.fromiter(map(zlib.crc32, names), np.uint64, len(keys.names))[keys.codes]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        code = (code ^ (code >> np.uint64(shift))) * np.uint64(factor)
    return (code >> np.uint64(48)).astype(np.uint16)


def _order(bucket: np.ndarray, time: np.ndarray) -> np.ndarray:
    """That of buckets and, in each, of times to 16 bits: NumPy sorts such numbers by radix."""
    least = int(time.min())
    shift = max((int(time.max()) - least).bit_length() - 16, 0)
    past = time.astype(np.uint64) - np.uint64(least % 2**64)
    order = np.argsort((past >> np.uint64(shift)).astype(np.uint16), kind="stable")
    return order[np.argsort(bucket[order], kind="stable")]


def _blocks(batches: Iterable[Any]) -> Iterator[tuple[int, int, bool, Any]]:
    """The bucket and time of each block, whether it is of queries, and its bytes."""
    for batch in batches:
        numbers = (batch.column(name).to_pylist() for name in ("bucket", "time", "asked"))
        bytes_ = (block.as_buffer() for block in batch.column("block"))
        yield from zip(*numbers, bytes_, strict=True)


def _plain(schema: Any) -> Any:
    """A schema without dictionaries, which each block would have in full."""
    pa = arrow_of("rows")
    return pa.schema(
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in schema
    )


def _with_bucket(schema: Any) -> Any:
    pa = arrow_of("rows")
    if BUCKET in schema.names:
        raise PoolValueError(f"a column is named {BUCKET!r}, as one of blocks is", "Rename it")
    return pa.schema([pa.field(BUCKET, pa.int64()), *_plain(schema)])


def _joined(held: Any, came: list[Any]) -> Any:
    pa = arrow_of("rows")
    return pa.concat_tables([held, pa.Table.from_batches(came, held.schema)])
