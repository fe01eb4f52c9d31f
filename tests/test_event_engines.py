"""Tables in every form, files out of core, and the command: the same bits as of NumPy arrays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_events import skewed

import poolkit
from poolkit import PoolTypeError, PoolValueError
from poolkit.events import Column, Lookup, WindowPool, attend, decay, last, read_spec

pa = pytest.importorskip("pyarrow")
duckdb = pytest.importorskip("duckdb")
import pyarrow.parquet as pq  # noqa: E402

SPEC = WindowPool(
    "user", "ts", Column("vector"), ["100s", None], known_at="known", weight="weight",
    reduce=["count", "mean", "std", decay("20s"), last(5), attend("target")],
)  # fmt: skip


def arrow(table: dict[str, Any]) -> Any:
    return pa.table({
        name: pa.FixedSizeListArray.from_arrays(pa.array(c.reshape(-1)), c.shape[1])
        if c.ndim == 2 else pa.array(c)
        for name, c in table.items()
    })  # fmt: skip


def text(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "user": np.char.add("user ", table["user"].astype(str))}


@pytest.fixture(scope="module")
def tables() -> tuple[dict[str, Any], dict[str, Any]]:
    return skewed(6000, 400)


@pytest.fixture(scope="module")
def want(tables: Any) -> Any:
    return SPEC.asof(*tables)


def same(got: Any, want: Any) -> None:
    assert list(got) == list(want)
    for name, column in want.items():
        assert got[name].dtype == column.dtype
        assert got[name].tobytes() == column.tobytes(), name


def test_arrow_polars_pandas_and_relations(tables: Any, want: Any) -> None:
    events, queries = map(arrow, tables)
    same(SPEC.asof(events, queries), want)
    same(SPEC.asof(events.to_batches()[0], queries), want)
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    same(SPEC.asof(polars.from_arrow(events), polars.from_arrow(queries)), want)
    lazy = [polars.from_arrow(table).lazy() for table in (events, queries)]
    same(SPEC.asof(*lazy), want)
    frame = pandas.DataFrame({n: list(c) if c.ndim == 2 else c for n, c in tables[0].items()})
    same(SPEC.asof(frame, queries), want)
    connection = duckdb.connect()
    same(SPEC.asof(connection.from_arrow(events), connection.from_arrow(queries)), want)


@pytest.mark.parametrize("keys", [dict, text], ids=["integers", "text"])
@pytest.mark.parametrize("memory", [2**30, 2**20], ids=["at once", "in parts"])
def test_files(tables: Any, want: Any, keys: Any, memory: int, tmp_path: Path) -> None:
    events, queries = (arrow(keys(table)) for table in tables)
    for start in range(0, len(events), 2500):
        pq.write_table(events.slice(start, 2500), tmp_path / f"events-{start}.parquet")
    pq.write_table(queries, tmp_path / "queries.parquet")
    told: list[tuple[str, int, int]] = []
    got = SPEC.asof(
        tmp_path / "events-*.parquet", str(tmp_path / "queries.parquet"), memory=memory,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    same(got, want)
    assert (told[-1][0] == "pooling") == (memory == 2**20)
    files = sorted(tmp_path.glob("events-*.parquet"))
    same(SPEC.asof(files, queries, memory=memory), want)
    relation = duckdb.read_parquet([str(file) for file in files])
    same(SPEC.asof(relation, queries, memory=memory), want)
    nobody = queries.slice(0, 0)
    assert SPEC.asof(files, nobody, memory=memory)["mean_all"].shape == (0, 5)


PARTS = [3000, 10_000, 50_000, 2**30]  # bytes: many parts of the log, few, or all at once


def stored(path: Path, vectors: Any, users: Any = None) -> Path:
    """A log of vectors in lists of no fixed size."""
    size = len(vectors)
    user = np.arange(size) % 7 if users is None else users
    ts = np.arange(size).astype("datetime64[s]")
    pq.write_table(pa.table({"user": user, "ts": ts, "x": vectors}), path / "log.parquet")
    return path / "log.parquet"


@pytest.mark.parametrize("memory", PARTS)
@pytest.mark.parametrize("asked", [[8, 9, 10], [8, 0, 9, 3], range(-20, 20)])
def test_lists_in_parts_without_events(asked: Any, memory: int, tmp_path: Path) -> None:
    """Some queries, or all, are of parts in which nothing happened."""
    vectors = np.random.default_rng(4).standard_normal((700, 3))
    log = stored(tmp_path, list(vectors))
    spec = WindowPool("user", "ts", Column("x"), ["90s", None], ["count", "mean", attend("like")])
    size = len(asked)
    queries = {"user": np.array(asked), "ts": np.full(size, 600).astype("datetime64[s]"),
               "like": vectors[:size]}  # fmt: skip
    same(spec.asof(log, queries, memory=memory), spec.asof(pq.read_table(log), queries))


@pytest.mark.parametrize("memory", PARTS)
def test_bad_vectors_in_any_part_are_refused(memory: int, tmp_path: Path) -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], ["mean"])
    queries = {"user": [0, 6], "ts": np.array([9999, 9999], "datetime64[s]")}
    user = np.repeat(np.arange(7), 200)
    vectors = [[1.0, 2.0, 3.0]] * 1200 + [[7.0]] * 200
    with pytest.raises(PoolValueError, match=r"x holds vectors of \d (and of|to) \d numbers"):
        spec.asof(stored(tmp_path, vectors, user), queries, memory=memory)
    values = np.where(user == 5, np.nan, 1.0)  # nobody asks for this user
    with pytest.raises(PoolValueError, match="x has a value that is not finite"):
        spec.asof(stored(tmp_path, values, user), queries, memory=memory)


def counted(events: Any, queries: Any, **options: Any) -> list[int]:
    spec = WindowPool("user", "ts", Column("x"), ["1d"], ["count"], **options)
    size = len(events)
    log = pa.table({"user": pa.array([0] * size), "ts": events, "x": pa.array([1.0] * size)})
    asked = pa.table({"user": pa.array([0] * len(queries)), "ts": queries})
    found: list[int] = spec.asof(log, asked)["count_1d"].tolist()
    return found


DAY = 86400


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("other", ["s", "ms", "us", "ns"])
def test_units_of_arrow(unit: str, other: str) -> None:
    ticks, others = 10 ** (3 * ["s", "ms", "us", "ns"].index(unit)), 10 ** (
        3 * ["s", "ms", "us", "ns"].index(other))  # fmt: skip
    events = pa.array([0, DAY * ticks], pa.timestamp(unit))
    queries = pa.array([DAY * others, DAY * others + 1], pa.timestamp(other))
    assert counted(events, queries, unit="ns") == [1, 1]


def test_dates_and_zones_of_arrow() -> None:
    dates = pa.array([0, 1], pa.date32())
    assert counted(dates, pa.array([DAY], pa.timestamp("s"))) == [1]
    assert counted(pa.array([0, DAY * 1000], pa.date64()), dates) == [0, 1]
    paris, utc = pa.timestamp("s", "Europe/Paris"), pa.timestamp("us", "UTC")
    assert counted(pa.array([0], paris), pa.array([DAY * 10**6], utc)) == [1]  # instants
    with pytest.raises(PoolTypeError, match=r"ts of events has a time zone, ts of queries has"):
        counted(pa.array([0], paris), pa.array([1], pa.timestamp("s")))
    with pytest.raises(PoolTypeError, match="does not say what time it is"):
        counted(pa.array([0]), dates)
    with pytest.raises(PoolValueError, match="ts of events has 1 nulls in 2 rows"):
        counted(pa.array([0, None], pa.timestamp("s")), dates)
    with pytest.raises(PoolValueError, match=r"no whole us.*unit='ns'"):
        counted(pa.array([1], pa.timestamp("ns")), dates)


def test_keys_that_do_not_meet(tables: Any, tmp_path: Path) -> None:
    events, queries = arrow(tables[0]), arrow(text(tables[1]))
    with pytest.raises(PoolTypeError, match="events are integers, those of queries text"):
        SPEC.asof(events, queries)
    pq.write_table(arrow(text(tables[0])), tmp_path / "e.parquet")
    for memory in (2**20, 2**30):
        with pytest.raises(PoolTypeError, match="events are text, those of queries integers"):
            SPEC.asof(tmp_path / "e.parquet", tables[1], memory=memory)
    place = events.schema.get_field_index("user")
    for kind in (pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())):
        raw = arrow(text(tables[0]))
        raw = raw.set_column(place, "user", raw.column("user").cast(pa.binary()).cast(kind))
        for log in (raw, raw.slice(0, 0)):
            with pytest.raises(PoolTypeError, match="events are bytes, those of queries text"):
                SPEC.asof(log, queries)
        pq.write_table(raw, tmp_path / "b.parquet")
        for memory in (2**20, 2**30):
            with pytest.raises(PoolTypeError, match="events are bytes, those of queries text"):
                SPEC.asof(tmp_path / "b.parquet", queries, memory=memory)


def test_columns_of_one_name() -> None:
    ts = pa.array([0, 1], pa.timestamp("s"))
    twice = pa.table([pa.array([0, 0]), ts, pa.array([1.0, 2.0]), pa.array([3.0, 4.0])],
                     names=["user", "ts", "x", "x"])  # fmt: skip
    spec = WindowPool("user", "ts", Column("x"), [None], ["sum"])
    queries = twice.select([0, 1])
    with pytest.raises(PoolValueError, match="events have two columns of one name: user, ts, x, x"):
        spec.asof(twice, queries)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[0, 1, 2.0]], columns=["user", "user", "x"])
    with pytest.raises(PoolValueError, match="events have two columns of one name"):
        spec.asof(frame, queries)


def test_a_dictionary_that_holds_a_value_twice() -> None:
    users = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["a", "a", "b"]))
    log = pa.table({"user": users, "ts": pa.array([1, 2, 3], pa.timestamp("s")), "x": [1.0] * 3})
    queries = {"user": ["a", "b"], "ts": np.array([5, 5], "datetime64[s]")}
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    assert spec.asof(log, queries)["count_all"].tolist() == [2, 1]


def test_nan_of_pandas_is_no_null() -> None:
    pandas = pytest.importorskip("pandas")
    ts = np.array([1, 2], "datetime64[s]")
    vectors = [np.array([1.0, np.nan]), np.array([1.0, 2.0])]
    log = pandas.DataFrame({"user": [0, 1], "ts": ts, "x": [np.nan, 2.0], "v": vectors})
    queries = {"user": [0, 1], "ts": ts + 5}
    for name, want in (("x", [[np.nan], [2.0]]), ("v", [[1.0, np.nan], [1.0, 2.0]])):
        spec = WindowPool("user", "ts", Column(name), [None], ["mean"], nonfinite="propagate")
        np.testing.assert_array_equal(spec.asof(log, queries)["mean_all"], want)
        spec = WindowPool("user", "ts", Column(name), [None], ["mean"])
        with pytest.raises(PoolValueError, match=r"not finite in event 0.*nonfinite='propagate'"):
            spec.asof(log, queries)
    for missing in (
        pandas.array([pandas.NA, 2.0], "Float64"),
        pandas.Series([pandas.NA, 2.0], dtype=object),
        pandas.Series([pandas.NA, vectors[1]], dtype=object),
    ):
        log["x"] = missing
        with pytest.raises(PoolValueError, match="x of events has 1 nulls"):
            WindowPool("user", "ts", Column("x"), [None], ["mean"]).asof(log, queries)


def test_nulls_that_were_served() -> None:
    log = {"user": [0], "ts": np.array([1], "datetime64[s]"), "x": [1.0]}
    spec = WindowPool("user", "ts", Column("x"), [None], ["mean"])
    asked = {"user": pa.array([0, 1]), "ts": pa.array([3, 3], pa.timestamp("s"))}
    for kind in (pa.list_(pa.float64(), 1), pa.list_(pa.float64())):
        served = pa.table({**asked, "mean_all": pa.array([[1.0], None], kind)})
        with pytest.raises(PoolValueError, match="mean_all has 1 nulls in 2 rows"):
            spec.verify(log, served)


def test_results_behind_any_queries() -> None:
    polars = pytest.importorskip("polars")
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"], empty="zero")
    asked = {"user": np.array([1, 2]), "ts": np.arange(2).astype("datetime64[s]")}
    table = pa.table(asked)
    out = spec.asof({**asked, "x": [1.0, 2.0]}, asked)
    for queries in (asked, table, table.to_pandas(), polars.from_arrow(table)):
        assert out.to_arrow(queries).to_pydict() == {**table.to_pydict(), "count_all": [0, 0]}
    with pytest.raises(PoolValueError, match="user of queries has 1 rows, the result 2"):
        out.to_arrow(table.slice(1))
    for memory in (0, -5):
        with pytest.raises(PoolValueError, match="memory must be above 0"):
            spec.asof({**asked, "x": [1.0, 2.0]}, asked, memory=memory)


def test_files_of_other_columns(tables: Any, tmp_path: Path) -> None:
    events = arrow(tables[0])
    pq.write_table(events, tmp_path / "a.parquet")
    texts = events.set_column(0, "user", [["x"] * len(events)])
    for other, message in ((events.drop_columns(["vector"]), "vector"), (texts, "'x'")):
        pq.write_table(other, tmp_path / "b.parquet")
        for memory in (2**20, 2**30):
            with pytest.raises(PoolValueError, match=f"DuckDB cannot read a table.*{message}"):
                SPEC.asof(tmp_path / "*.parquet", tables[1], memory=memory)


def test_an_interrupt_is_one_within_duckdb() -> None:
    endless = duckdb.sql("SELECT range AS user, TIMESTAMP '2024-01-01' AS ts, 1.0::DOUBLE AS x "
                         "FROM range(1000000000000)")  # fmt: skip
    spec = WindowPool("user", "ts", Column("x"), [None], ["mean"])
    asked = {"user": [1], "ts": np.array(["2024-01-02"], "datetime64[s]")}
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            spec.asof(endless, asked)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("key", ["part", "PART_", "poolkit_part"])
def test_any_name_of_a_column(key: str, tmp_path: Path) -> None:
    events = {key: np.arange(900) % 7, "Part": np.arange(900.0),
              "ts": np.arange(900).astype("datetime64[s]")}  # fmt: skip
    if key == "part":
        events["x"] = events.pop("Part")
    spec = WindowPool(key, "ts", Column("x" if key == "part" else "Part"), [None], ["sum"])
    asked = {key: np.arange(8), "ts": np.full(8, 800).astype("datetime64[s]")}
    pq.write_table(pa.table(events), tmp_path / "log.parquet")
    same(spec.asof(tmp_path / "log.parquet", asked, memory=5000), spec.asof(events, asked))


def test_files_that_are_none(tables: Any, tmp_path: Path) -> None:
    with pytest.raises(PoolValueError, match="cannot read"):
        SPEC.asof(tmp_path / "none*.parquet", tables[1])
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(poolkit.PoolError, match="no Parquet files"):
        SPEC.asof(tables[0], tmp_path / "x.parquet")
    with pytest.raises(PoolTypeError, match=r"are no table: int.*Polars"):
        SPEC.asof(3, tables[1])


# --- the command -------------------------------------------------------------------------------

TOML = """
key = "user"
time = "ts"
windows = ["1s", "100s", {calendar = "1mo", tz = "Europe/Paris"}, "all"]
reduce = ["count", "mean", "decay('20s')", "last(5)", "attend('candidate')"]

[value]
lookup = "item"
table = "items.parquet"
ids = "item"
vector = "embedding"
"""


def test_the_command_and_its_specification(
    tables: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cyclopts")
    from poolkit.cli import run

    random = np.random.default_rng(5)
    names = np.char.add("item ", np.arange(40).astype(str))
    embeddings = random.standard_normal((40, 5)).astype(np.float32)
    pq.write_table(arrow({"item": names, "embedding": embeddings}), tmp_path / "items.parquet")
    events, queries = ({k: t[k] for k in ("user", "ts")} for t in tables)
    events["item"] = names[random.integers(0, 40, len(events["user"]))]
    queries["candidate"] = names[random.integers(0, 40, len(queries["user"]))]
    for name, table in (("e", events), ("q", queries)):
        pq.write_table(arrow(table), tmp_path / f"{name}.parquet")
    (tmp_path / "spec.toml").write_text(TOML)
    spec = read_spec(tmp_path / "spec.toml")
    assert isinstance(spec.value, Lookup)
    want = spec.asof(events, queries)
    assert spec.results == tuple(want)

    output = tmp_path / "out.parquet"
    given = ["window", tmp_path / "spec.toml", "--events", tmp_path / "e.parquet", "--queries",
             tmp_path / "q.parquet", "--output", output]  # fmt: skip
    assert run([*map(str, given), "--memory", str(2**-12)]) == 0
    found = pq.read_table(output)
    assert found.column_names == ["user", "ts", "candidate", *want]
    for name, column in want.items():
        flat = found.column(name).combine_chunks()
        flat = flat.flatten() if column.ndim == 2 else flat
        assert flat.to_numpy(zero_copy_only=False).tobytes() == column.tobytes()

    before = output.read_bytes()
    pq.write_table(arrow({**queries, "seen_all": np.ones(400)}), tmp_path / "q.parquet")
    monkeypatch.setattr(WindowPool, "asof", None)  # is not reached
    assert run(list(map(str, given))) == 1
    assert "queries have a column 'seen_all', and so has the result" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "q.parquet").write_text("broken")
    assert run(list(map(str, given))) == 1
    assert "no Parquet files" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "e.parquet", "items.parquet", "out.parquet", "q.parquet", "spec.toml",
    ]  # fmt: skip


def test_the_command_does_not_write_over_what_it_reads(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("cyclopts")
    from poolkit.cli import run

    names = ["e.parquet", "q.parquet", "spec.toml"]
    for name in names:
        (tmp_path / name).write_text("precious")
    asked = tmp_path / "q.parquet"
    for name in names:
        for events in ("e.parquet", "*.parquet", "**", "."):
            given = ["window", tmp_path / "spec.toml", "--events", tmp_path / events,
                     "--queries", asked, "--output", tmp_path / "." / name]  # fmt: skip
            assert run(list(map(str, given))) == 1
            assert f"{name} is read as" in capsys.readouterr().err
            assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('key = "user"', "", "does not fit WindowPool.*'key'"),
        ("[value]", "[values]", "no .value."),
        ('lookup = "item"', "", "It has column, or lookup and table"),
        ("reduce =", "reduces =", "reduces"),
        ("{calendar", "{kalender", "is no window"),
        ("key =", "key", "is not TOML"),
        ("items.parquet", "none.npy", "cannot read"),
        ("items.parquet", "empty.npy", "cannot read"),
        ("last(5)", "last(", "is no reduction"),
        ("reduce = [", "empty = 5\nreduce = [", "empty must be"),
        ('"items.parquet"', "5", "table of .value. is 5, which is no text"),
    ],
)
def test_bad_files(before: str, after: str, message: str, tmp_path: Path) -> None:
    pq.write_table(
        arrow({"item": np.arange(2), "embedding": np.eye(2)}), tmp_path / "items.parquet"
    )
    (tmp_path / "empty.npy").touch()
    assert before in TOML
    (tmp_path / "spec.toml").write_text(TOML.replace(before, after))
    with pytest.raises(poolkit.PoolError, match=message):
        read_spec(tmp_path / "spec.toml")


@pytest.mark.parametrize("windows", ["5", '"7d"', '{calendar = "7d", tz = "UTC"}'])
def test_windows_that_are_no_list(windows: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(f'key = "u"\ntime = "ts"\nwindows = {windows}\n[value]\ncolumn = "x"\n')
    with pytest.raises(PoolTypeError, match="windows and reduce are lists"):
        read_spec(path)


def test_a_specification_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_bytes(TOML.replace("item", "\xe9").encode("latin-1"))
    with pytest.raises(PoolValueError, match=r"is not TOML.*utf-8"):
        read_spec(tmp_path / "spec.toml")


def test_a_command_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    rows = 1_000_000
    times = np.arange(rows).astype("datetime64[s]")
    log = {"user": np.arange(rows) % 999, "ts": times, "x": np.ones(rows)}
    pq.write_table(arrow(log), tmp_path / "e.parquet")
    pq.write_table(arrow({name: log[name][:9] for name in ("user", "ts")}), tmp_path / "q.parquet")
    (tmp_path / "spec.toml").write_text(
        'key = "user"\ntime = "ts"\nunit = "s"\nwindows = ["all"]\nreduce = ["mean"]\n'
        '[value]\ncolumn = "x"\n'
    )
    (tmp_path / "parts").mkdir()
    command = subprocess.Popen(
        [sys.executable, "-m", "poolkit", "window", "spec.toml", "--events", "e.parquet",
         "--queries", "q.parquet", "--output", "out.parquet", "--memory", "0.0005"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path / "parts")},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((tmp_path / "parts").glob("poolkit-*/*")):
        assert command.poll() is None
        time.sleep(0.01)
    command.terminate()
    _, said = command.communicate()
    assert (command.returncode, said) == (130, "poolkit: interrupted\n")
    assert not list((tmp_path / "parts").iterdir())
    assert not (tmp_path / "out.parquet").exists()
