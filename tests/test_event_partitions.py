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


def partitions(pool: PartitionPool, events: Any, queries: Any, parts: int) -> list[Any]:
    """A cluster in small: rows by key, each partition sorted."""
    rows = pa.concat_tables([pool.event_rows(events), pool.query_rows(queries)])
    part = np.array([hash(key) % parts for key in rows.column("key").to_pylist()], dtype=int)
    order = [("key", "ascending"), ("time", "ascending")]
    return [rows.filter(pa.array(part == p)).sort_by(order) for p in range(parts)]


def pooled(spec: WindowPool, events: Any, queries: Any, size: int, memory: int, parts: int) -> Any:
    """The results of the partitions, in the order of the queries."""
    queries = queries.append_column("place", pa.array(np.arange(len(queries))))
    pool = pickle.loads(pickle.dumps(PartitionPool(spec, events, queries, memory)))
    batches = [
        batch
        for rows in partitions(pool, events, queries, parts)
        for batch in pool(iter(rows.to_batches(max_chunksize=size)))
    ]
    assert all(batch.schema.equals(pool.schema) for batch in batches)
    out = pa.Table.from_batches(batches, pool.schema).sort_by("place")
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


@given(cases(), st.integers(1, 20), st.sampled_from([1, 300, 2**20]), st.booleans(), st.booleans())
def test_any_batches_and_memory(
    case: Case, size: int, memory: int, bounded: bool, named: bool
) -> None:
    spec = case.spec(reduce=REDUCE, windows=WINDOWS if bounded else [*WINDOWS, None])
    events, queries = (arrow(text(t) if named else t) for t in (case.events, case.queries))
    same_bits(pooled(spec, events, queries, size, memory, 2), spec.asof(events, queries))


SPEC = WindowPool("user", "ts", Column("vector"), ["100s", "900s"], known_at="known",
                  weight="weight", reduce=["count", "mean", decay("20s"), last(5)])  # fmt: skip


def test_of_a_key_with_many_events_those_are_held_that_windows_reach() -> None:
    seconds = np.arange(20_000).astype("datetime64[s]")
    events = pa.table({"user": np.zeros(20_000, int), "ts": seconds, "x": np.arange(20_000.0)})
    queries = events.select(["user", "ts"]).slice(0, 20_000).take(np.arange(7, 20_000, 70))
    spec = WindowPool("user", "ts", Column("x"), ["40s", "100s"], ["count", "sum"])
    kept = []

    class Watched(PartitionPool):
        def _reached(self, events: Any, rows: Any) -> Any:
            kept.append(super()._reached(events, rows))
            return kept[-1]

    pool = Watched(spec, events, queries, memory=1000)
    rows = partitions(pool, events, queries, 1)[0].to_batches(max_chunksize=50)
    out = pa.Table.from_batches(pool(rows))
    assert out["count_100s"].to_pylist()[2:] == [100] * (len(queries) - 2)
    assert len(kept) > 100
    assert max(map(len, kept)) == 101


def test_partitions_of_queries_alone_know_the_width() -> None:
    events, queries = map(arrow, skewed(100, 20))
    lists = events.column("vector").cast(pa.list_(pa.float64()))
    events = events.set_column(events.column_names.index("vector"), "vector", lists)
    pool = PartitionPool(SPEC, events.slice(0, 1), queries.slice(0, 0))
    rows = pool.query_rows(queries).sort_by([("key", "ascending"), ("time", "ascending")])
    (batch,) = pool(rows.to_batches())
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
    same_bits(pooled(spec, log, asked, 70, 1000, 3), spec.asof(log, asked))


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
    pool = PartitionPool(spec, events.slice(0, 1), queries, memory=1)
    rows = [pool.event_rows(events), pool.query_rows(queries)]
    for parts, message in [
        ([rows[0].slice(1, 1)], r"x holds vectors of 1 and of 2 numbers.*in 1 rows of a partition"),
        ([rows[0].slice(2)], "x has a value that is not finite"),
        ([rows[1].slice(1, 1)], "query 0 sees no event in 5s"),
        ([rows[0].slice(0, 2).take([1, 0])], "vectors of 1 to 2 numbers"),
        ([rows[0].take([0]), rows[1].take([0])], None),
    ]:
        batches = pa.concat_tables(parts).combine_chunks().to_batches()
        if message is None:
            with pytest.raises(PoolError, match="query 0 sees no event"):
                list(pool(batches))
            continue
        with pytest.raises(PoolError, match=message):
            list(pool(batches))


@pytest.mark.parametrize("memory", [1, 2**25], ids=["a row at a time", "at once"])
@pytest.mark.parametrize("keys", [int, str, str.encode])
@pytest.mark.parametrize(
    ("users", "times", "message"),
    [
        ("122", [3, 2, 1], r"key b?'?2'? are not in the order of their times"),
        ("11", [100, 50], "not in the order of their times"),
        ("1222", [9, 1, 5, 4], "not in the order of their times"),
        ("121", [1, 1, 1], r"key b?'?1'? are not behind each other"),
        ("12231", [1, 1, 2, 1, 2], "not behind each other"),
        ("2213", [1, 1, 9, 0], None),
    ],
)
def test_rows_in_a_wrong_order_are_refused(
    users: str, times: list[int], message: str | None, keys: Any, memory: int
) -> None:
    """Queries and events alternate, and nothing is missed where a part of the rows ends."""
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    user, ts = [keys(user) for user in users], np.array(times, "datetime64[s]")
    table = pa.table({"user": user, "ts": ts, "x": np.ones(len(times))})
    pool = PartitionPool(spec, table, table.select(["user", "ts"]), memory)
    rows = [
        (pool.event_rows(row) if place % 2 else pool.query_rows(row.select(["user", "ts"])))
        for place in range(len(times))
        for row in [table.slice(place, 1)]
    ]
    batches = pa.concat_tables(rows).to_batches(max_chunksize=1)
    if message is None:
        assert pa.Table.from_batches(pool(batches))["count_5s"].to_pylist() == [0, 0]
        return
    with pytest.raises(PoolValueError, match=message):
        list(pool(batches))


def test_batches_without_rows_are_passed_over() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    events = pa.table({"user": [1], "ts": np.array([3], "datetime64[s]"), "x": [1.0]})
    pool = PartitionPool(spec, events, events.select(["user", "ts"]))
    (batch,) = pool.query_rows(events.select(["user", "ts"])).to_batches()
    assert list(pool([batch.slice(0, 0)])) == []
    assert len(list(pool([batch.slice(0, 0), batch, batch.slice(0, 0)]))) == 1


def test_results_do_not_replace_columns_of_queries() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["5s"], ["count"])
    events = pa.table({"user": [1], "ts": np.array([3], "datetime64[s]"), "x": [1.0]})
    with pytest.raises(PoolValueError, match="queries have a column 'count_5s', and so has"):
        PartitionPool(spec, events, events.append_column("count_5s", pa.array([1])))
