"""Partitions that stream by give the bits of the whole log, whatever is held at a time."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_events import Case, cases, skewed

from poolkit import PoolError, PoolTypeError, PoolValueError
from poolkit.events import Column, Lookup, PartitionPool, WindowPool, attend, calendar, decay, last

pa = pytest.importorskip("pyarrow")
from test_event_engines import arrow, same, text  # noqa: E402

REDUCE = ["count", "sum", "max", "std", decay("3s"), last(2), attend("target")]
WINDOWS = ["1s", "7s", calendar("1d", tz="Europe/Paris")]


def partitions(pool: PartitionPool, events: Any, queries: Any, size: int = 1000) -> list[Any]:
    """A cluster in small: blocks by place, those of each sorted."""
    packed = [
        *pool.event_blocks(iter(events.to_batches(max_chunksize=size))),
        *pool.query_blocks(iter(queries.to_batches(max_chunksize=size))),
    ]
    blocks = pa.Table.from_batches(packed, pool.block_schema)
    order = [("bucket", "ascending"), ("time", "ascending")]
    return [
        blocks.filter(pa.compute.equal(blocks["place"], place)).sort_by(order)
        for place in pool.places
    ]


def pooled(
    spec: WindowPool, events: Any, queries: Any, size: int, packing: int, memory: int
) -> Any:
    """The results of the partitions, in the order of the queries."""
    queries = queries.append_column("place", pa.array(np.arange(len(queries))))
    pools = [
        pickle.loads(pickle.dumps(PartitionPool(spec, events, queries, [3, 7, 5], given)))
        for given in (packing, memory)
    ]
    batches = [
        batch
        for blocks in partitions(pools[0], events, queries, size)
        for batch in pools[1](iter(blocks.to_batches(max_chunksize=size)))
    ]
    assert all(batch.schema.equals(pools[1].schema) and len(batch) for batch in batches)
    out = pa.Table.from_batches(batches, pools[1].schema).sort_by("place")
    assert out.select(queries.column_names).equals(queries)
    return out.drop_columns(queries.column_names)


def same_bits(got: Any, want: Any) -> None:
    assert got.column_names == list(want)
    columns = {}
    for name, column in want.items():
        found = got.column(name).combine_chunks()
        found = found.flatten() if column.ndim == 2 else found
        columns[name] = found.to_numpy(zero_copy_only=False).reshape(column.shape)
    same(columns, want)


MEMORY = st.sampled_from([1, 300, 2**20])


@given(cases(), st.integers(1, 20), MEMORY, MEMORY, st.booleans(), st.booleans())
def test_any_batches_and_memory(
    case: Case, size: int, packing: int, memory: int, bounded: bool, named: bool
) -> None:
    spec = case.spec(reduce=REDUCE, windows=WINDOWS if bounded else [*WINDOWS, None])
    events, queries = (arrow(text(t) if named else t) for t in (case.events, case.queries))
    same_bits(pooled(spec, events, queries, size, packing, memory), spec.asof(events, queries))


SPEC = WindowPool("user", "ts", Column("vector"), ["100s", "900s"], known_at="known",
                  weight="weight", reduce=["count", "mean", decay("20s"), last(5)])  # fmt: skip


def test_of_a_key_with_many_events_those_are_held_that_windows_reach() -> None:
    seconds = np.arange(20_000).astype("datetime64[s]")
    events = pa.table({"user": np.zeros(20_000, int), "ts": seconds, "x": np.arange(20_000.0)})
    queries = events.select(["user", "ts"]).slice(0, 20_000).take(np.arange(7, 20_000, 70))
    spec = WindowPool("user", "ts", Column("x"), ["40s", "100s"], ["count", "sum"])
    held = []

    class Watched(PartitionPool):
        def _pooled(self, events: Any, queries: Any) -> Any:
            held.append(len(events))
            return super()._pooled(events, queries)

    pool = Watched(spec, events, queries, memory=2**12)
    (blocks,) = partitions(pool, events, queries, 50)
    out = pa.Table.from_batches(pool(blocks.to_batches())).sort_by("ts")
    assert out["count_100s"].to_pylist()[2:] == [100] * (len(queries) - 2)
    assert len(held) > 100
    assert max(held) < 500


def test_keys_are_spread_evenly_whatever_their_type() -> None:
    time = np.zeros(9000, "datetime64[s]")
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    for user in (np.arange(9000), np.arange(9000) << 40, np.arange(9000).astype(str)):
        events = pa.table({"user": user, "ts": time, "x": np.zeros(9000)})
        pool = PartitionPool(spec, events, events, range(10))
        counts = [
            sum(batch["count_all"].to_pylist() == [0] * len(batch) and len(batch)
                for batch in pool(blocks.to_batches()))
            for blocks in partitions(pool, events, events)
        ]  # fmt: skip
        assert sum(counts) == 9000
        assert max(counts) < 1000


def test_keys_of_other_types_meet() -> None:
    """Integers of any width, and texts in a dictionary or out of it."""
    time = np.arange(6).astype("datetime64[s]")
    spec = WindowPool("user", "ts", Column("x"), [None], ["sum"])
    text_keys = pa.array(list("abcabc"))
    for ours, theirs in [
        (np.array([1, 2, 3] * 2, np.int8), np.array([1, 2, 3] * 2, np.uint64)),
        (text_keys, text_keys.dictionary_encode()),
        (text_keys.dictionary_encode(), text_keys.cast(pa.large_string())),
    ]:
        events = pa.table({"user": ours, "ts": time, "x": np.arange(6.0)})
        queries = pa.table({"user": theirs, "ts": time + 9, "label": text_keys.dictionary_encode()})
        pool = PartitionPool(spec, events, queries, range(3))
        found = [b for p in partitions(pool, events, queries) for b in pool(p.to_batches())]
        out = pa.Table.from_batches(found).sort_by("ts")
        assert out["label"].to_pylist() == list("abcabc")
        assert out["sum_all"].to_pylist() == [[3.0], [5.0], [7.0]] * 2


def test_partitions_of_queries_alone_know_the_width() -> None:
    events, queries = map(arrow, skewed(100, 20))
    lists = events.column("vector").cast(pa.list_(pa.float64()))
    events = events.set_column(events.column_names.index("vector"), "vector", lists)
    pool = PartitionPool(SPEC, events.slice(0, 1), queries.slice(0, 0))
    (blocks,) = partitions(pool, events.slice(0, 0), queries)
    (batch,) = pool(blocks.to_batches())
    assert batch.schema.equals(pool.schema)
    assert np.array(batch["mean_100s"].to_pylist()).tolist() == np.zeros((20, 5)).tolist()
    assert list(pool([])) == []


def test_lookups_and_other_reductions() -> None:
    """An item that is missing, a table of float32, and a reduction that has no kernel."""
    events, queries = skewed(2000, 100)
    items = np.char.add("item ", np.arange(2000).astype(str))
    table = np.random.default_rng(2).standard_normal((1500, 4)).astype(np.float32)
    value = Lookup("item", table, ids=items[:1500], missing="skip")
    spec = WindowPool("user", "ts", value, ["100s", None], ["mean", "median"], accumulate="exact")
    log, asked = arrow({**events, "item": items}), arrow(queries)
    same_bits(pooled(spec, log, asked, 70, 2000, 1000), spec.asof(log, asked))


def test_times_in_other_units_and_zones() -> None:
    seconds = np.array([0, 5, 9])
    log = {
        "user": [1, 1, 1],
        "ts": pa.array(seconds, pa.timestamp("s", "Europe/Paris")),
        "x": seconds,
    }
    asked = {"user": [1, 1], "ts": pa.array([6000, 9000], pa.timestamp("ms", "UTC"))}
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["sum"], unit="ms")
    same_bits(pooled(spec, pa.table(log), pa.table(asked), 2, 1, 1), spec.asof(log, asked))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, PoolValueError, "events have no column 'x'"),
        ({"user": ["a", "a"]}, PoolTypeError, "events are text, those of queries integers"),
        ({"ts": pa.array([1, 2], pa.timestamp("s", "UTC"))}, PoolTypeError, "has a time zone"),
        ({"user": [0.5, 1.5]}, PoolTypeError, "user holds double, which is no key"),
        ({"x": pa.array([1, 2], pa.decimal128(9, 2))}, PoolTypeError, "x holds decimal.*float64"),
        ({"x": pa.array([[1], [2]], pa.list_(pa.decimal128(9, 2)))}, PoolTypeError, "decimal"),
    ],
)
def test_types_are_refused_at_once(change: dict[str, Any], error: Any, message: str) -> None:
    table = {"user": [1, 1], "ts": np.array([1, 2], "datetime64[s]"), "x": [1.0, 2.0], **change}
    events = pa.table({name: column for name, column in table.items() if column is not None})
    queries = pa.table({"user": [1], "ts": np.array([3], "datetime64[s]")})
    spec = WindowPool("user", "ts", Column("x"), ["5s"])
    for rows in (0, 2):
        with pytest.raises(error, match=message):
            PartitionPool(spec, events.slice(0, rows), queries)


def test_values_are_refused_when_they_come() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], empty="error")
    time = np.array([1, 2, 3], "datetime64[s]")
    events = pa.table({"user": [1, 1, 2], "ts": time, "x": [[1.0], [2.0, 3.0], [np.nan]]})
    queries = pa.table({"user": [1, 3, 2], "ts": time})
    pool = PartitionPool(spec, events.slice(0, 1), queries)
    for logged, asked, message in [
        ([1], [], "x holds vectors of 1 and of 2 numbers, while pooling events of 'user'"),
        ([2], [], r"x has a value that is not finite in event 0.*in 1 events and 0 queries of a p"),
        ([], [1], "query 0 sees no event in 5s"),
        ([0, 1], [], "vectors of 1 to 2 numbers"),
        ([0], [0], "query 0 sees no event"),
    ]:
        tables = (table.take(np.array(rows, int)) for table, rows in
                  ((events, logged), (queries, asked)))  # fmt: skip
        with pytest.raises(PoolError, match=message):
            [*pool(partitions(pool, *tables)[0].to_batches())]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("user", [1, None], "user of events has 1 nulls in 2 rows, while pooling events of 'user'"),
        ("ts", pa.array([1, None], pa.timestamp("s")), "ts of events has 1 nulls in 2 rows"),
        ("ts", pa.array([1, 2**62], pa.timestamp("s")), "while pooling events of 'user'"),
    ],
)
def test_keys_and_times_are_refused_where_they_are_packed(
    name: str, change: Any, message: str
) -> None:
    table = {"user": [1, 1], "ts": pa.array([1, 2], pa.timestamp("s")), "x": [1.0, 2.0]}
    spec = WindowPool("user", "ts", Column("x"), ["5s"])
    good, bad = pa.table(table), pa.table({**table, name: change})
    pool = PartitionPool(spec, good, good)
    with pytest.raises(PoolError, match=message):
        list(pool.event_blocks(bad.to_batches()))


def test_blocks_in_a_wrong_order_are_refused() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    for users in ([1, 1, 1], [1, 2, 3]):
        time = np.array([1, 2, 3], "datetime64[s]")
        table = pa.table({"user": users, "ts": time, "x": np.ones(3)})
        pool = PartitionPool(spec, table, table, memory=1)
        (blocks,) = partitions(pool, table.slice(0, 0), table, 1)
        assert len(blocks) == 3
        with pytest.raises(PoolValueError, match=r"not in their order.*by bucket and time"):
            list(pool(blocks.take([0, 2, 1]).to_batches()))


def test_nothing_gives_nothing() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    events = pa.table({"user": [1], "ts": np.array([3], "datetime64[s]"), "x": [1.0]})
    pool = PartitionPool(spec, events, events)
    (nothing,) = events.slice(0, 0).to_batches() or [pa.RecordBatch.from_pylist([], events.schema)]
    assert list(pool([])) == list(pool.event_blocks([nothing])) == []
    blocks = list(pool.query_blocks([nothing, *events.to_batches(), nothing]))
    assert sum(map(len, pool(blocks))) == 1
    assert list(pool(pool.event_blocks(events.to_batches()))) == []


def test_results_do_not_replace_columns_of_queries() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    events = pa.table({"user": [1], "ts": np.array([3], "datetime64[s]"), "x": [1.0]})
    with pytest.raises(PoolValueError, match="queries have a column 'count_5s', and so has"):
        PartitionPool(spec, events, events.append_column("count_5s", pa.array([1])))
    with pytest.raises(PoolValueError, match="a column is named ' bucket'"):
        PartitionPool(spec, events, events.append_column(" bucket", pa.array([1])))


@pytest.mark.parametrize("places", [(), [1.5], 3, ["a"]])
def test_places_that_are_none_are_refused(places: Any) -> None:
    events = pa.table({"user": [1], "ts": np.zeros(1, "datetime64[s]"), "x": [1.0]})
    spec = WindowPool("user", "ts", Column("x"), windows=["7d"], reduce=["mean"])
    with pytest.raises(PoolValueError, match="places must be whole numbers"):
        PartitionPool(spec, events, events.select(["user", "ts"]), places)
