"""What it costs to pool the events of the past 7 and 30 days before each query, to vectors of 64.

Skewed users and their events over 90 days; each event names an item of a table of 100 thousand
vectors of float32, and a query asks for one user at one moment. Against DuckDB's join and avg,
Polars' rolling windows, NumPy's prefix sums, and pandas' groupby of all pairs of a query and an
event that it sees. The log lies in memory as an Arrow table, ordered by time or not; sorting it,
looking items up and writing the results are part of each way. Answers are compared first. Times are
over poolkit's, in rounds, with their quartiles.

    python benchmarks/windows.py                  # 5 M events, 500 k queries
    python benchmarks/windows.py --scale 0.1      # a tenth of both
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

import poolkit
from poolkit.events import Lookup, WindowPool

EVENTS, USERS, QUERIES, ITEMS, WIDTH = 5_000_000, 50_000, 500_000, 100_000, 64
DAYS = (7, 30)
DAY = 86_400_000_000  # microseconds
Answer = dict[int, np.ndarray]


class Data:
    """A log, its queries and the table of items."""

    def __init__(self, scale: float, ordered: bool) -> None:
        rng = np.random.default_rng(0)
        events, users, queries = (int(n * scale) for n in (EVENTS, USERS, QUERIES))
        share = 1 / np.arange(1, users + 1) ** 0.8
        self.user = rng.choice(users, events, p=share / share.sum())
        self.ts = rng.integers(0, 90 * DAY, events)
        if ordered:
            self.ts.sort()
        self.item = rng.integers(0, ITEMS, events)
        self.table = rng.standard_normal((ITEMS, WIDTH), dtype=np.float32)
        self.asked_user = rng.integers(0, users, queries)
        self.asked_ts = rng.integers(0, 90 * DAY, queries)
        time = pa.timestamp("us")
        self.log = pa.table({"user": self.user, "ts": pa.array(self.ts, time), "item": self.item})
        self.asked = pa.table(
            {"q": np.arange(queries), "user": self.asked_user, "ts": pa.array(self.asked_ts, time)}
        )
        columns = {f"v{j}": np.ascontiguousarray(self.table[:, j]) for j in range(WIDTH)}
        self.items = pa.table({"item": np.arange(ITEMS), **columns})

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By user and time: one number for both, where each user begins, and the items."""
        order = np.lexsort((self.ts, self.user))
        return self.user[order] * (2 * 90 * DAY) + self.ts[order], self.item[order], order

    def ranges(self, place: np.ndarray, days: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the window of each query begins and ends in `place`."""
        base = self.asked_user * (2 * 90 * DAY)
        begin = np.searchsorted(place, base + np.maximum(self.asked_ts - days * DAY, 0))
        return begin, np.searchsorted(place, base + self.asked_ts)


def by_poolkit(data: Data) -> Answer:
    spec = WindowPool(
        key="user", time="ts", value=Lookup("item", table=data.table),
        windows=[f"{days}d" for days in DAYS], reduce=["mean"],
    )  # fmt: skip
    out = spec.asof(data.log, data.asked)
    return {days: out[f"mean_{days}d"] for days in DAYS}


def by_duckdb(data: Data) -> Answer:
    con = duckdb.connect(config={"threads": str(poolkit.num_threads())})
    for name, table in (("log", data.log), ("asked", data.asked), ("items", data.items)):
        con.register(name, table)
    means = ", ".join(f"avg(v{j}) AS v{j}" for j in range(WIDTH))
    answers = {}
    for days in DAYS:
        found = con.sql(
            f"SELECT q, {means} FROM asked JOIN log ON asked.user = log.user AND log.ts < asked.ts "
            f"AND log.ts >= asked.ts - INTERVAL {days} DAY JOIN items USING (item) GROUP BY q"
        ).to_arrow_table()
        answers[days] = np.zeros((len(data.asked), WIDTH), np.float32)
        answers[days][found.column("q").to_numpy()] = np.stack(
            [found.column(f"v{j}").to_numpy() for j in range(WIDTH)], axis=1
        )
    return answers


def by_polars(data: Data) -> Answer:
    """Queries are events without a vector, whose rolling window is the answer."""
    log = pl.from_arrow(data.log).join(pl.from_arrow(data.items), on="item", how="left")
    both = pl.concat([log.drop("item"), pl.from_arrow(data.asked)], how="diagonal")
    both = both.sort("user", "ts")
    answers = {}
    for days in DAYS:
        rolled = both.rolling("ts", period=f"{days}d", closed="left", group_by="user").agg(
            pl.col(f"v{j}").mean() for j in range(WIDTH)
        )
        rolled = rolled.with_columns(both["q"]).drop_nulls("q").sort("q").fill_null(0.0)
        answers[days] = rolled.select(f"v{j}" for j in range(WIDTH)).to_numpy()
    return answers


def by_prefix_sums(data: Data) -> Answer:
    """In float64: in float32 they lose all digits."""
    place, item, _ = data.sorted()
    sums = np.zeros((len(place) + 1, WIDTH))
    np.cumsum(data.table[item], axis=0, dtype=np.float64, out=sums[1:])
    answers = {}
    for days in DAYS:
        begin, end = data.ranges(place, days)
        total = sums[end] - sums[begin]
        answers[days] = (total / np.maximum(end - begin, 1)[:, None]).astype(np.float32)
    return answers


def by_pandas(data: Data) -> Answer:
    """Groups of (query, event) pairs, gathered and averaged."""
    place, item, _ = data.sorted()
    answers = {}
    for days in DAYS:
        begin, end = data.ranges(place, days)
        count = end - begin
        query = np.repeat(np.arange(len(count)), count)
        row = np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count)
        means = pd.DataFrame(data.table[item[row]]).groupby(query, sort=False).mean()
        answers[days] = np.zeros((len(count), WIDTH), np.float32)
        answers[days][means.index.to_numpy()] = means.to_numpy()
    return answers


WAYS: dict[str, Callable[[Data], Answer]] = {
    "poolkit": by_poolkit,
    "DuckDB join + avg": by_duckdb,
    "Polars rolling": by_polars,
    "NumPy prefix sums": by_prefix_sums,
    "pandas groupby": by_pandas,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="of events, users and queries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), help="names, with commas")
    given = parser.parse_args()
    chosen = {name: WAYS[name] for name in given.ways.split(",")}
    print(f"{poolkit.num_threads()} threads, scale {given.scale}, {given.rounds} rounds")
    for ordered in (True, False):
        data = Data(given.scale, ordered)
        right = by_prefix_sums(data)
        for name, way in chosen.items():
            for days, answer in way(data).items():
                np.testing.assert_allclose(answer, right[days], rtol=1e-3, atol=1e-5, err_msg=name)
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(given.rounds):
            for name in random.sample(list(chosen), len(chosen)):
                start = perf_counter()
                chosen[name](data)
                seconds[name].append(perf_counter() - start)
        print(f"\n{'ordered by time' if ordered else 'in no order'}")
        for name, times in seconds.items():
            paired = [t / own for t, own in zip(times, seconds["poolkit"], strict=True)]
            low, middle, high = quantiles(paired, n=4) if len(paired) > 1 else paired * 3
            print(f"{name:>18} {median(times):8.3f} s {middle:7.1f}x ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
