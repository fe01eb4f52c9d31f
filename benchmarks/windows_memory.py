"""The memory that pooling a log takes which does not fit into it: 100 million events, 64 features.

DuckDB makes the log, in Parquet: a thousandth of the users has a tenth of the events. Each event
names an item of a table of 100 thousand vectors. The peak is that of a process of its own, which
holds the table, the queries and their results.

    python benchmarks/windows_memory.py
    python benchmarks/windows_memory.py --events 10000000 --memory 0.25
    python benchmarks/windows_memory.py --events 10000000 --memory 0.0625 --users 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import duckdb
import numpy as np

QUERIES, ITEMS, WIDTH = 500_000, 100_000, 64
LOG = """
    SELECT (hash(i, 2) % CASE WHEN hash(i) % 10 = 0 THEN {few} ELSE {users} END)::BIGINT
               AS user,
           TIMESTAMP '2024-01-01' + INTERVAL (hash(i, 3) % 7776000) SECOND AS ts,
           (hash(i, 4) % {items})::BIGINT AS item
    FROM range({events}) r(i)
"""
ASKED = """
    SELECT (hash(i, 5) % {users})::BIGINT AS user,
           TIMESTAMP '2024-01-01' + INTERVAL (hash(i, 6) % 7776000) SECOND AS ts
    FROM range({queries}) r(i)
"""


def pooled(folder: Path, memory: int) -> None:
    """In a process of its own."""
    import resource

    from poolkit.events import Lookup, WindowPool

    table = np.random.default_rng(0).standard_normal((ITEMS, WIDTH), dtype=np.float32)
    spec = WindowPool("user", "ts", Lookup("item", table), ["7d", "30d"], ["count", "mean"])
    start = perf_counter()
    out = spec.asof(folder / "log.parquet", folder / "asked.parquet", memory=memory)
    found = {
        "seconds": perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": sum(column.nbytes for column in out.values()),
        "seen": int(out["count_30d"].sum()),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--memory", type=float, default=1.0, help="gigabytes, as of asof")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pool:
        pooled(given.pool, int(given.memory * 2**30))
        return
    with tempfile.TemporaryDirectory() as folder:
        con = duckdb.connect(config={"memory_limit": "2GB", "preserve_insertion_order": "false"})
        for name, query in (("log", LOG), ("asked", ASKED)):
            made = query.format(
                events=given.events, queries=QUERIES, items=ITEMS, users=given.users,
                few=max(given.users // 1000, 1),
            )  # fmt: skip
            con.sql(made).write_parquet(f"{folder}/{name}.parquet")
        line = [sys.executable, *sys.flags.no_site * ["-S"], __file__, "--pool", folder,
                "--memory", str(given.memory)]  # fmt: skip
        ran = subprocess.run(line, capture_output=True, text=True, check=True)
        found = json.loads(ran.stdout)
        size = Path(folder, "log.parquet").stat().st_size
        print(
            f"{given.events} events in {size / 2**20:.0f} MiB of Parquet, {QUERIES} queries\n"
            f"that see {found['seen']} in 30 days: {found['seconds']:.1f} s, peak "
            f"{found['peak'] / 2**30:.2f} GiB, of which results {found['results'] / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
