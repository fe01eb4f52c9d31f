"""What it costs to pool the events of the past 7 and 30 days before each query, to vectors of 64.

Skewed users and their events over 90 days; each event names an item of a table of 100 thousand
vectors of float32, and a query asks for one user at one moment. Against DuckDB's join and avg,
Polars' rolling windows and its join and mean, NumPy's prefix sums, and pandas' groupby of all pairs
of a query and an event that it sees. The log lies in memory as an Arrow table, ordered by time or
not; sorting it, looking items up and writing the results are part of each way. Pairs are made for
50 thousand queries at a time, which is as fast and fits memory. Answers are compared first. Ratios
are of times within one round; what is slow takes part in fewer rounds.

    python benchmarks/windows.py                  # 5 M events, 500 k queries: about 20 minutes
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
from poolkit.benchmark.document import Section, as_markdown
from poolkit.events import Lookup, WindowPool

EVENTS, USERS, QUERIES, ITEMS, WIDTH = 5_000_000, 50_000, 500_000, 100_000, 64
DAYS = (7, 30)
DAY = 86_400_000_000  # microseconds
PAIRED = 50_000  # queries whose pairs are made at a time
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


def by_polars_join(data: Data) -> Answer:
    """All pairs of a query and an event of its user, filtered by time, grouped and averaged."""
    log, items = pl.from_arrow(data.log).lazy(), pl.from_arrow(data.items).lazy()
    asked = pl.from_arrow(data.asked)
    answers = {}
    for days in DAYS:
        answers[days] = np.zeros((len(asked), WIDTH), np.float32)
        for part in asked.iter_slices(PAIRED):
            pairs = (
                part.lazy()
                .join(log, on="user", suffix="_event")
                .filter(
                    pl.col("ts_event") < pl.col("ts"),
                    pl.col("ts_event") >= pl.col("ts") - pl.duration(days=days),
                )
            )
            means = [pl.col(f"v{j}").mean() for j in range(WIDTH)]
            found = pairs.join(items, on="item").group_by("q").agg(means).collect()
            answers[days][found["q"].to_numpy()] = found.drop("q").to_numpy()
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
        begins, ends = data.ranges(place, days)
        answers[days] = np.zeros((len(begins), WIDTH), np.float32)
        for first in range(0, len(begins), PAIRED):
            begin, end = begins[first : first + PAIRED], ends[first : first + PAIRED]
            count = end - begin
            query = np.repeat(np.arange(len(count)), count)
            row = np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count)
            means = pd.DataFrame(data.table[item[row]]).groupby(query, sort=False).mean()
            answers[days][first + means.index.to_numpy()] = means.to_numpy()
    return answers


WAYS: dict[str, Callable[[Data], Answer]] = {
    "poolkit": by_poolkit,
    "DuckDB join + avg": by_duckdb,
    "Polars rolling": by_polars,
    "Polars join + mean": by_polars_join,
    "NumPy prefix sums": by_prefix_sums,
    "pandas groupby": by_pandas,
}
# How many times as fast as a way poolkit should be: on a log ordered by time, and in no order.
TARGETS = {name: (1.0, 1.0) for name in WAYS if name != "poolkit"} | {
    "DuckDB join + avg": (10.0, 3.0)
}


def checked(data: Data, ways: dict[str, Callable[[Data], Answer]]) -> dict[str, float]:
    """The seconds of one call of each way, all of which gave the same."""
    right = by_prefix_sums(data)
    seconds = {}
    for name, way in ways.items():
        start = perf_counter()
        answers = way(data)
        seconds[name] = perf_counter() - start
        for days, answer in answers.items():
            np.testing.assert_allclose(answer, right[days], rtol=1e-3, atol=1e-5, err_msg=name)
    return seconds


def measured(
    data: Data, ways: dict[str, Callable[[Data], Answer]], rounds: int, budget: float
) -> dict[str, list[tuple[float, float]]]:
    """Pairs of a way's seconds and poolkit's of the same round, for each way."""
    first = checked(data, ways)
    times = {name: min(rounds, max(1, int(budget / first[name]))) for name in ways}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for done in range(rounds):
        part = [name for name in ways if name == "poolkit" or done < times[name]]
        seconds = {}
        for name in random.sample(part, len(part)):
            start = perf_counter()
            ways[name](data)
            seconds[name] = perf_counter() - start
        for name in part:
            found[name].append((seconds[name], seconds["poolkit"]))
    return found


def row(name: str, pairs: list[tuple[float, float]], target: float | None) -> list[str]:
    seconds = f"{median(own for own, _ in pairs):.3f}"
    if target is None:
        return [name, seconds, "", "", str(len(pairs)), ""]
    ratios = [own / ours for own, ours in pairs]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    verdict = f"{target:g}x: " + ("met" if middle >= target else "MISSED")
    return [name, seconds, f"{middle:.2f}x", f"{low:.2f} to {high:.2f}", str(len(pairs)), verdict]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="of events, users and queries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--budget", type=float, default=60.0,
        help="seconds for the rounds of one way; a slow one has fewer, and at least one",
    )  # fmt: skip
    parser.add_argument("--ways", default=",".join(WAYS), help="names, with commas")
    given = parser.parse_args()
    unknown = set(given.ways.split(",")) - set(WAYS)
    if unknown or given.rounds < 1 or given.scale <= 0:
        parser.error(f"--ways are of {', '.join(WAYS)}; --rounds and --scale above 0")
    chosen = {"poolkit": by_poolkit, **{name: WAYS[name] for name in given.ways.split(",")}}
    print(
        f"poolkit and DuckDB on {poolkit.num_threads()} threads, Polars on {pl.thread_pool_size()},"
        f" NumPy and pandas on one; {int(EVENTS * given.scale)} events of "
        f"{int(USERS * given.scale)} users, {int(QUERIES * given.scale)} queries.\n"
    )
    for ordered in (True, False):
        found = measured(Data(given.scale, ordered), chosen, given.rounds, given.budget)
        rows = [
            row(name, pairs, TARGETS[name][not ordered] if name in TARGETS else None)
            for name, pairs in found.items()
        ]
        columns = ["way", "seconds", "over poolkit's", "quartiles", "rounds", "target"]
        title = "A log ordered by time" if ordered else "A log in no order"
        print(as_markdown(Section(title, columns, rows)) + "\n", flush=True)


if __name__ == "__main__":
    main()
