"""What it costs on Spark to average the events of the past 7 and 30 days before each query.

Skewed users and their events over 90 days, in Parquet. An event names an item of a table of
vectors, which every way gets by a broadcast, or, with 0 items, has a vector of float32 itself.
Against a range join with vector_avg, and a cogroup with applyInPandas in which NumPy subtracts
prefix sums; beside them, what it costs alone to hand the events to Python. Results are made in full
and thrown away. Answers are compared first. Times are over poolkit's, in rounds, with their
quartiles. By default a user has as many events as in MovieLens 25M, of as many items.

    python benchmarks/spark.py
    python benchmarks/spark.py --users 20000 6500 2000 --items 60000 0
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from poolkit.events import Column, Lookup, WindowPool

DAYS = (7, 30)
DAY = 86_400_000_000  # microseconds
TARGETS = {"range join": 2.0, "applyInPandas": 5.0}


class Data:
    """A log and its queries as frames, and the table of items."""

    def __init__(
        self, session: SparkSession, folder: Path, users: int, items: int, given: argparse.Namespace
    ) -> None:
        rng = np.random.default_rng(0)
        self.session, self.items = session, items
        share = 1 / np.arange(1, users + 1) ** 0.8
        time = pa.timestamp("us", "UTC")
        log = {
            "user": rng.choice(users, given.events, p=share / share.sum()),
            "ts": pa.array(rng.integers(0, 90 * DAY, given.events), time),
        }
        if self.items:
            log["item"] = rng.integers(0, self.items, given.events)
            self.table = rng.standard_normal((self.items, given.width), dtype=np.float32)
            pq.write_table(
                pa.table({"item": np.arange(self.items), "vector": vectors(self.table)}),
                folder / "items.parquet",
            )
        else:
            values = rng.standard_normal((given.events, given.width), dtype=np.float32)
            log["vector"] = vectors(values)
        asked = {
            "q": np.arange(given.queries),
            "user": rng.integers(0, users, given.queries),
            "ts": pa.array(rng.integers(0, 90 * DAY, given.queries), time),
        }
        for name, table in (("log", log), ("asked", asked)):
            folder.joinpath(name).mkdir()
            table = pa.table(table)
            size = -(-len(table) // 8)
            for part in range(8):
                path = folder / name / f"{part}.parquet"
                pq.write_table(table.slice(part * size, size), path, compression="lz4")
        self.log = session.read.parquet(str(folder / "log"))
        self.asked = session.read.parquet(str(folder / "asked"))
        self.vectors = session.read.parquet(str(folder / "items.parquet")) if self.items else None


def vectors(rows: np.ndarray) -> Any:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, rows.reshape(-1))


def by_poolkit(data: Data) -> DataFrame:
    spec = WindowPool(
        key="user", time="ts", value=Lookup("item", data.table) if data.items else Column("vector"),
        windows=[f"{days}d" for days in DAYS], reduce=["mean"], empty="zero",
    )  # fmt: skip
    return spec.asof(data.log, data.asked, engine=data.session)


def by_range_join(data: Data) -> DataFrame:
    log, asked = data.log.alias("log"), data.asked.alias("asked")
    if data.vectors is not None:
        log = log.join(F.broadcast(data.vectors), "item").alias("log")
    since = f"asked.ts - INTERVAL {max(DAYS)} DAYS"
    seen = F.expr(f"asked.user = log.user AND log.ts < asked.ts AND log.ts >= {since}")
    means = [
        F.expr(
            f"vector_avg(vector) FILTER (WHERE log.ts >= asked.ts - INTERVAL {days} DAYS) "
            f"AS mean_{days}d"
        )
        for days in DAYS
    ]
    return asked.join(log, seen, "left").groupBy("q").agg(*means)


def by_pandas(data: Data) -> DataFrame:
    table = data.session.sparkContext.broadcast(data.table) if data.items else None
    days = DAYS

    def of_user(log: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
        log = log.sort_values("ts")
        if table is not None:
            rows = table.value[log["item"].to_numpy()]
        else:
            rows = np.stack(log["vector"]) if len(log) else np.zeros((0, 1), np.float32)
        sums = np.zeros((len(rows) + 1, rows.shape[1]))
        np.cumsum(rows, axis=0, dtype=np.float64, out=sums[1:])
        ts, until = log["ts"].to_numpy(), asked["ts"].to_numpy()
        end = np.searchsorted(ts, until)
        out = {"q": asked["q"]}
        for length in days:
            begin = np.searchsorted(ts, until - np.timedelta64(length, "D"))
            count = np.maximum(end - begin, 1)[:, None]
            means = ((sums[end] - sums[begin]) / count).astype(np.float32)
            out[f"mean_{length}d"] = pd.Series(list(means), dtype=object)
        return pd.DataFrame(out)

    schema = ", ".join(["q long", *(f"mean_{length}d array<float>" for length in DAYS)])
    grouped = data.log.groupBy("user").cogroup(data.asked.groupBy("user"))
    return grouped.applyInPandas(of_user, schema)


def by_handing_over(data: Data) -> DataFrame:
    """No answer, but what it costs at least that Python gets the events."""

    def keys(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch.select(["user"])

    return data.log.mapInArrow(keys, "user long")


class Cpu:
    """CPU seconds of what this process has started, also of workers that have ended meanwhile:
    Spark's daemon does not wait for them, so that they are in nobody's account."""

    def __init__(self) -> None:
        self.ticks: dict[tuple[int, str], int] = {}  # by process and its start

    def seconds(self) -> float:
        children: dict[int, list[int]] = {}
        running: dict[int, tuple[tuple[int, str], int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended now
            process = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(process)
            running[process] = (process, fields[19]), int(fields[11]) + int(fields[12])
        left = [os.getpid()]
        while left:
            for child in children.get(left.pop(), ()):
                left.append(child)
                name, ticks = running[child]
                self.ticks[name] = ticks
        return sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK")


WAYS: dict[str, Callable[[Data], DataFrame]] = {
    "poolkit": by_poolkit,
    "range join": by_range_join,
    "applyInPandas": by_pandas,
    "events to Python": by_handing_over,
}


def answer(frame: DataFrame, width: int) -> np.ndarray:
    """(queries, windows, width), in the order of the queries; zeros where nothing is seen."""
    table = frame.toArrow().sort_by("q")
    means = np.zeros((len(table), len(DAYS), width))
    for place, days in enumerate(DAYS):
        lists = table.column(f"mean_{days}d").combine_chunks()
        seen = pc.equal(pc.fill_null(pc.list_value_length(lists), 0), width)
        values = lists.filter(seen).flatten().to_numpy().reshape(-1, width)
        means[seen.to_numpy(zero_copy_only=False), place] = values
    return means


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, nargs="+", default=[6500])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, nargs="+", default=[60_000], help="0: vectors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2, help="rounds before them, without a clock")
    parser.add_argument("--ways", default=",".join(WAYS), help="names, with commas")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--partitions", type=int, default=8, help="of a shuffle")
    given = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # not the first in the path
    with tempfile.TemporaryDirectory() as folder:
        session = (
            SparkSession.builder.master(given.master)
            .config("spark.sql.shuffle.partitions", given.partitions)
            .config("spark.driver.memory", "4g")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.executorEnv.PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            .config("spark.local.dir", folder)
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("OFF")
        try:
            print(
                f"Spark {session.version}, {given.master}, {given.partitions} partitions; "
                f"{given.events} events, {given.queries} queries, vectors of {given.width}; "
                f"{given.rounds} rounds after {given.warm}, load {os.getloadavg()[0]:.1f}; asked: "
                + ", ".join(f"{name} {factor:g}x" for name, factor in TARGETS.items())
            )
            ways = {name: WAYS[name] for name in given.ways.split(",")}
            print_row("value", "events a user", "time", *ways)
            print_row(*["---"] * (len(ways) + 3))
            for items, users in product(given.items, given.users):
                here = Path(folder, f"{items}-{users}")
                here.mkdir()
                rows = measure(Data(session, here, users, items, given), ways, given)
                value = f"one of {items} items" if items else "a vector"
                for what, cells in rows.items():
                    each = f"{given.events / users:.0f}"
                    print_row(value, each, what, *cells)
        finally:
            session.stop()


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def measure(
    data: Data, ways: dict[str, Callable[[Data], DataFrame]], given: argparse.Namespace
) -> dict[str, list[str]]:
    """Wall and CPU time, and in each what is to be said of every way."""
    right = answer(by_poolkit(data), given.width)
    for name in ways.keys() & TARGETS.keys():
        np.testing.assert_allclose(
            answer(ways[name](data), given.width), right, rtol=1e-3, atol=1e-5, err_msg=name
        )
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    account = Cpu()
    for count in range(given.warm + given.rounds):
        for name in random.sample(list(ways), len(ways)):
            start, used = perf_counter(), account.seconds()
            ways[name](data).write.format("noop").mode("overwrite").save()
            if count >= given.warm:
                wall[name].append(perf_counter() - start)
                cpu[name].append(account.seconds() - used)
    return {"wall": compared(wall), "CPU": compared(cpu)}


def compared(seconds: dict[str, list[float]]) -> list[str]:
    cells = []
    for name, times in seconds.items():
        cell = f"{median(times):.2f} s"
        if name in TARGETS:
            paired = [t / own for t, own in zip(times, seconds["poolkit"], strict=True)]
            low, middle, high = quantiles(paired, n=4) if len(paired) > 1 else paired * 3
            missed = "" if middle >= TARGETS[name] else ", missed"
            cell += f": {middle:.1f}x ({low:.1f} to {high:.1f}){missed}"
        cells.append(cell)
    return cells


if __name__ == "__main__":
    main()
