"""Spark on a real cluster of several processes: the bits of the local engine, whoever dies."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poolkit import PoolError, PoolTypeError, PoolValueError
from poolkit.events import Column, Lookup, WindowPool, attend, calendar, decay, last

pyspark = pytest.importorskip("pyspark")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402
from pyspark.errors import PythonException  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402
from pyspark.sql.functions import spark_partition_id  # noqa: E402
from test_event_engines import arrow, text  # noqa: E402
from test_events import skewed  # noqa: E402

from poolkit.events.spark import _hashes, _places  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")

REDUCE = ["count", "sum", "mean", "max", "min", "std", decay("20s"), last(5), attend("target"),
          attend("target", score="scaled_dot", name="scaled")]  # fmt: skip


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A driver, a master, and two workers with an executor each, all of them on this machine."""
    if not shutil.which("java") and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java")
    home = tmp_path_factory.mktemp("spark")  # where workers write, beside what is installed
    for path in Path(pyspark.__file__).parent.iterdir():
        (home / path.name).symlink_to(path)
    python = os.environ.get("PYSPARK_PYTHON", sys.executable)  # not the first in the path
    environment = {
        "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": python,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # What runs for seconds is compiled quickly rather than well.
        machine = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        options = {
            "spark.driver.extraJavaOptions": machine,
            "spark.driver.host": "127.0.0.1",
            "spark.driver.memory": "512m",
            "spark.executor.extraJavaOptions": machine,
            "spark.executor.memory": "512m",
            "spark.executorEnv.PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "spark.local.dir": str(home / "scratch"),
            "spark.sql.shuffle.partitions": "5",
            "spark.task.maxFailures": "2",
            "spark.sql.adaptive.coalescePartitions.enabled": "false",
            "spark.sql.session.timeZone": "Asia/Tokyo",
            "spark.sql.timestampType": "TIMESTAMP_NTZ",  # of what has no zone
            "spark.sql.warehouse.dir": str(home / "warehouse"),
            "spark.ui.enabled": "false",
        }
        builder = SparkSession.builder.master("local-cluster[2,1,512]").appName("poolkit")
        for name, value in options.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


def same_bits(frame: Any, queries: Any, want: Any) -> None:
    """One row for each query, with all of its columns, and the bits of `want`."""
    got = frame.toArrow().sort_by("place")
    assert got.column_names == [*queries.column_names, *want]
    assert got["place"].to_pylist() == queries["place"].to_pylist()
    for name in queries.column_names:
        assert got[name].to_pylist() == queries[name].to_pylist(), name
    for name, column in want.items():
        found = got[name].combine_chunks()
        found = found.flatten() if column.ndim == 2 else found
        found = found.to_numpy(zero_copy_only=False)
        assert found.dtype == column.dtype
        assert found.tobytes() == column.tobytes(), name


def tables(events: int = 6000, queries: int = 500) -> tuple[dict[str, Any], dict[str, Any]]:
    """Events that share their times and values, late ones, users without any, repeated queries."""
    log, asked = skewed(events, queries)
    log = {**log, "tie": np.arange(events) % 3, "item": np.arange(events) % 40}
    log["vector"][1::4] = log["vector"][::4]
    asked = {
        name: np.concatenate([column, column[: queries // 10]]) for name, column in asked.items()
    }
    return log, {**asked, "place": np.arange(len(asked["user"])), "item": asked["user"] % 40}


def aware(table: Any, *names: str) -> Any:
    for name in names:
        place = table.column_names.index(name)
        instants = table.column(name).cast(pa.timestamp("us", "UTC"))
        table = table.set_column(place, name, instants)
    return table


def test_vectors_weights_ties_and_what_was_known(session: Any) -> None:
    log, asked = tables()
    asked["target"] = asked["target"].astype(np.float32)
    events = aware(arrow({**log, "vector": log["vector"].astype(np.float32)}), "ts", "known")
    queries = aware(arrow(asked), "ts")
    spec = WindowPool(
        "user", "ts", Column("vector"), ["1s", "100s", calendar("1mo", tz="Europe/Paris"), None],
        reduce=REDUCE, tie="tie", known_at="known", weight="weight",
    )  # fmt: skip
    frames = map(session.createDataFrame, (events, queries))
    same_bits(spec.asof(*frames, engine=session), queries, spec.asof(events, queries))


def test_lookups_text_and_exact_sums(session: Any, tmp_path: Path) -> None:
    """Of Parquet files, with times that have no zone."""
    log, asked = map(text, tables())
    names = np.char.add("item ", np.arange(40).astype(str))
    log["item"] = names[log["item"]]
    log["user"] = np.where(log["user"] == "user 1", "USER 0", log["user"])
    asked["item"] = names[asked["item"] % 30]
    del log["vector"], asked["target"]
    events, queries = arrow(log), arrow(asked)
    table = np.random.default_rng(3).standard_normal((30, 7)).astype(np.float32)
    value = Lookup("item", table, ids=names[:30], missing="skip")
    spec = WindowPool(
        "user", "ts", value, ["100s", None], ["count", "mean", attend("item"), last(3), "median"],
        accumulate="exact", unit="ns",
    )  # fmt: skip
    for start in (0, 2500):
        pq.write_table(events.slice(start, 2500), tmp_path / f"events-{start}.parquet")
    pq.write_table(queries, tmp_path / "queries.parquet")
    paths = [tmp_path / "events-0.parquet", str(tmp_path / "events-2*")]
    got = spec.asof(paths, tmp_path / "queries.parquet", engine=session)
    same_bits(got, queries, spec.asof(events.slice(0, 5000), queries))


@pytest.mark.parametrize("empty", ["zero", "nan"])
def test_numbers_and_dates(session: Any, empty: str) -> None:
    """Numbers are vectors of width 1; what is not finite goes on, where it may."""
    day = np.arange(40).astype("datetime64[D]")
    values = np.arange(40) / 7
    values[[5, 11]] = np.nan, np.inf
    log = {"user": (np.arange(40) % 4).astype(np.int16), "ts": day, "x": values}
    asked = {"user": np.arange(40) % 6, "ts": day[::-1].astype("datetime64[us]") + 1,
             "place": np.arange(40), "label": np.arange(40).astype(str)}  # fmt: skip
    spec = WindowPool("user", "ts", Column("x"), ["9d", None], ["sum", "max", "std", "median"],
                      empty=empty, nonfinite="propagate")  # fmt: skip
    events, queries = arrow(log), arrow(asked)
    frames = map(session.createDataFrame, (events, queries))
    same_bits(spec.asof(*frames, engine=session), queries, spec.asof(events, queries))


def test_no_events_no_queries(session: Any) -> None:
    events, queries = map(arrow, tables(60, 10))
    spec = WindowPool("user", "ts", Column("vector"), ["100s"], ["count", "mean"])
    frames = [session.createDataFrame(table) for table in (events, queries)]
    nobody = spec.asof(frames[0], frames[1].limit(0), engine=session)
    assert nobody.count() == 0
    want = spec.asof(events.slice(0, 0), queries)
    assert want["mean_100s"].shape == (11, 5)
    nothing = spec.asof(frames[0].limit(0), frames[1], engine=session).toArrow()
    assert nothing["mean_100s"].to_pylist() == [[0.0]] * 11  # no event says how wide
    assert nothing["seen_100s"].to_pylist() == [False] * 11


def test_equal_keys_are_equal_bytes(session: Any) -> None:
    """Also where a collation takes "a" and "A" for one, and would mix their events."""
    seconds = np.arange(12).astype("datetime64[s]")
    log = {"user": np.array(["a", "A", "ä"] * 4), "ts": seconds, "x": np.arange(12.0)}
    asked = {"user": log["user"], "ts": seconds + 1, "place": np.arange(12)}
    spec = WindowPool("user", "ts", Column("x"), [None], ["sum"])
    events, queries = arrow(log), arrow(asked)
    frames = [
        session.createDataFrame(table).selectExpr(
            "collate(user, 'UTF8_LCASE') AS user", "* EXCEPT (user)"
        )
        for table in (events, queries)
    ]
    same_bits(spec.asof(*frames, engine=session), queries, spec.asof(events, queries))


# --- several processes -------------------------------------------------------------------------


def executor() -> int:
    """The process of the executor that this worker belongs to."""
    pid = os.getpid()
    while Path(f"/proc/{pid}/comm").read_text().strip() != "java":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def log_and_queries(session: Any) -> tuple[WindowPool, Any, Any]:
    events, queries = map(arrow, tables(20_000, 3000))
    spec = WindowPool("user", "ts", Column("vector"), ["100s", None], ["count", "mean", last(3)])
    return spec, events, queries


def test_every_executor_has_its_part(session: Any) -> None:
    spec, events, queries = log_and_queries(session)
    out = spec.asof(*map(session.createDataFrame, (events, queries)), engine=session)

    def with_executor(batches: Any) -> Any:
        for batch in batches:
            yield pa.record_batch({"executor": np.full(len(batch), executor())})

    found = out.mapInArrow(with_executor, "executor long").toArrow()["executor"].to_numpy()
    assert len(found) == len(queries)
    assert len(np.unique(found)) == 2


def test_there_is_a_place_for_each_partition(session: Any) -> None:
    places = session.createDataFrame([(place,) for place in _places(session)], "place long")
    found = places.repartition("place").select(spark_partition_id().alias("part")).toArrow()
    assert sorted(found["part"].to_pylist()) == list(range(5))
    longs = np.array([0, 1, -1, 2**40 + 7, -(2**63)])
    frame = session.createDataFrame([(number,) for number in longs.tolist()], "number long")
    assert frame.selectExpr("hash(number)").toArrow()[0].to_pylist() == _hashes(longs).tolist()


def test_an_executor_that_is_killed_takes_nothing_with_it(session: Any, tmp_path: Path) -> None:
    spec, events, queries = log_and_queries(session)
    out = spec.asof(*map(session.createDataFrame, (events, queries)), engine=session)
    killed = tmp_path / "killed"

    def dying(batches: Any) -> Any:
        for batch in batches:
            yield batch
            try:
                killed.open("x").close()
            except FileExistsError:
                continue
            victim = executor()
            killed.write_text(str(victim))
            os.kill(victim, signal.SIGKILL)

    same_bits(out.mapInArrow(dying, out.schema), queries, spec.asof(events, queries))
    assert not Path("/proc", killed.read_text()).exists()


# --- errors --------------------------------------------------------------------------------------

SMALL = WindowPool("user", "ts", Column("x"), ["5s"], ["mean"])


@pytest.fixture(scope="module")
def frames(session: Any) -> tuple[Any, Any]:
    time = np.array([1, 2], "datetime64[s]")
    events = pa.table({"user": [1, 1], "ts": time, "x": [1.0, 2.0]})
    return session.createDataFrame(events), session.createDataFrame(events.drop_columns("x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": "x"}, "events have no column 'x', while pooling events of 'user' in windows 5s"),
        ({"x": "cast(x AS decimal(9, 2))"}, r"x holds decimal128\(9, 2\).*Cast it to float64"),
        ({"x": "array(cast(x AS decimal(9, 2)))"}, "x holds decimal"),
        (
            {"ts": "cast(ts AS timestamp_ltz)"},
            "ts of events has a time zone, ts of queries has none",
        ),
        ({"ts": "x"}, "ts holds double, which does not say what time it is"),
        ({"user": "cast(user AS string)"}, "keys of events are text, those of queries integers"),
        ({"user": "cast(user AS decimal(9, 0))"}, "user holds decimal.*which is no key"),
    ],
)
def test_types_are_refused_at_once(
    session: Any, frames: Any, change: dict[str, str], message: str
) -> None:
    events, queries = frames
    columns = [f"{name} AS {name}" for name in ("user", "ts", "x") if name not in change]
    columns = [c for c in columns if "y" not in change or "x" not in c]
    columns += [f"{value} AS {name}" for name, value in change.items()]
    with pytest.raises(PoolError, match=message):
        SMALL.asof(events.selectExpr(*columns), queries, engine=session)


def test_frames_that_do_not_fit(session: Any, frames: Any, tmp_path: Path) -> None:
    events, queries = frames
    names = queries.selectExpr("cast(user AS string) AS user", "ts")
    coded = events.selectExpr("cast(cast(user AS string) AS binary) AS user", "ts", "x")
    with pytest.raises(PoolTypeError, match="keys of events are bytes, those of queries text"):
        SMALL.asof(coded, names, engine=session)
    with pytest.raises(PoolValueError, match="queries have two columns of one name: user, ts, ts"):
        SMALL.asof(events, queries.select("user", "ts", "ts"), engine=session)
    with pytest.raises(PoolTypeError, match=r"events are no DataFrame of Spark: Table.*createData"):
        SMALL.asof(events.toArrow(), queries, engine=session)
    with pytest.raises(PoolValueError, match=r"cannot read queries: .*PATH_NOT_FOUND"):
        SMALL.asof(events, tmp_path / "none.parquet", engine=session)
    with pytest.raises(PoolTypeError, match=r"events are a DataFrame of Spark.*engine=session"):
        SMALL.asof(events, queries.toArrow())
    for engine in ("spark", SparkSession, None):
        with pytest.raises(
            PoolTypeError, match=r"there is no engine .*a classic session of Spark: pip"
        ):
            SMALL.asof(events, queries, engine=engine)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nullif(x, 2)", "x of events has 1 nulls in 2 rows, while pooling events of 'user'"),
        ("sqrt(1 - x)", "x has a value that is not finite"),
        ("if(x = 1, array(x), array(x, x))", "holds vectors of 1"),
    ],
)
def test_values_are_refused_when_spark_runs(
    session: Any, frames: Any, change: str, message: str
) -> None:
    events, queries = frames
    out = SMALL.asof(events.selectExpr("user", "ts", f"{change} AS x"), queries, engine=session)
    with pytest.raises(PythonException, match=message):
        out.count()
