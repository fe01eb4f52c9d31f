"""A key that is larger than memory is pooled in slices of time, to the bits of the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_events import REDUCE, WINDOWS, Case, cases

from poolkit import PoolValueError
from poolkit.events import Column, Lookup, WindowPool, attend, calendar, decay, last, slices
from poolkit.events.columns import EventColumns, QueryColumns

pa = pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
import pyarrow.parquet as pq  # noqa: E402
from test_event_engines import arrow, same  # noqa: E402

FOLDS = ["count", "sum", "mean", "max", "min", "std", decay("3s"), last(1), last(4)]


def sliced(
    spec: WindowPool,
    events: dict[str, Any],
    queries: dict[str, Any],
    limit: int,
    folder: Path,
    batch: int = 1000,
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The results, and of each call of the kernel how many events and summaries it had."""
    table = arrow(events).sort_by("ts")
    nothing = EventColumns.read(spec, table).take(np.zeros(0, np.int64))
    calls: list[tuple[int, int]] = []
    pool_events = slices.pool_events

    def watched(spec: Any, events: Any, queries: Any, summaries: Any) -> Any:
        calls.append((len(events), len(summaries)))
        return pool_events(spec, events, queries, summaries)

    asked = QueryColumns.read(spec, arrow(queries))
    out: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "pool_events", watched)
        found = slices.pool_slices(
            spec, table.to_batches(max_chunksize=batch), asked, nothing, limit, folder
        )
        for places, pooled in found:
            for name, column in pooled.items():
                shape = (len(asked), *column.shape[1:])
                out.setdefault(name, np.full(shape, -7, column.dtype))[places] = column
    return out, calls


@pytest.mark.parametrize("reduce", [FOLDS, REDUCE], ids=["sums", "with attention"])
@given(
    case=cases(),
    limit=st.integers(1, 24),
    windows=st.lists(st.sampled_from([*WINDOWS, calendar("1d", tz="Europe/Paris")]),
                     min_size=1, unique=True),
    exact=st.booleans(),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_slices(
    reduce: Any, case: Case, limit: int, windows: Any, exact: bool, tmp_path: Path
) -> None:
    """The oracle checks `asof` (test_events.py), which this is compared with to the bit."""
    zero = {name: np.zeros_like(table["user"]) for name, table in
            (("e", case.events), ("q", case.queries))}  # fmt: skip
    events, queries = {**case.events, "user": zero["e"]}, {**case.queries, "user": zero["q"]}
    spec = case.spec(reduce=reduce, windows=windows, accumulate="exact" if exact else "f64")
    got, _ = sliced(spec, events, queries, limit, tmp_path, batch=3)
    if len(zero["q"]):
        same(got, spec.asof(events, queries))


def one_user(events: int, late: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bursts of events, some of them at one time."""
    random = np.random.default_rng(8)
    ts = np.sort(random.integers(0, 20, events) ** 4 * 10 + random.integers(0, 300, events))
    known = ts + np.where(random.random(events) < 0.02, random.integers(0, 3000, events), 0)
    log = {"user": np.zeros(events, np.int64), "ts": ts.astype("datetime64[s]"),
           "known": (known if late else ts).astype("datetime64[s]"),
           "weight": random.random(events) * (random.random(events) < 0.9),
           "vector": random.standard_normal((events, 3)).astype(np.float32)}  # fmt: skip
    asked = {"user": np.zeros(300, np.int64),
             "ts": random.integers(0, ts[-1] + 999, 300).astype("datetime64[s]"),
             "target": random.standard_normal((300, 3)).astype(np.float32)}  # fmt: skip
    return log, asked


@pytest.mark.parametrize("late", [False, True], ids=["known", "known later"])
@pytest.mark.parametrize("windows", [[None], ["600s"], ["600s", "80000s", None]], ids=str)
def test_of_a_long_log_little_is_held(windows: Any, late: bool, tmp_path: Path) -> None:
    log, asked = one_user(9000, late)
    spec = WindowPool(
        "user", "ts", Column("vector"), windows, [*FOLDS, decay("90s"), last(50)],
        known_at="known", weight="weight",
    )  # fmt: skip
    want = spec.asof(log, asked)
    for limit in (100, 1000):
        got, calls = sliced(spec, log, asked, limit, tmp_path)
        same(got, want)
        assert len(calls) > 10
        # Those of one time, or behind a late one, come on top.
        assert max(events for events, _ in calls) < limit + (700 if late else 100)
        if None in windows:
            assert max(summaries for _, summaries in calls) > 0
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_of_what_nobody_asks_for_little_is_held(
    at: float, tmp_path: Path, monkeypatch: Any
) -> None:
    """All questions are of one time, as those of today are."""
    log, asked = one_user(9000)
    asked["ts"] = np.full(300, log["ts"][int(at * 8999)])
    spec = WindowPool("user", "ts", Column("vector"), ["600s", None], FOLDS)
    held, files, add = [], [], slices._Past.add

    def watched(past: Any, events: Any) -> None:
        add(past, events)
        held.append(sum(len(s.events) for s in past.slices if s.events is not None))
        files.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr(slices._Past, "add", watched)
    got, _ = sliced(spec, log, asked, 1000, tmp_path)
    same(got, spec.asof(log, asked))
    assert at == 0 or len(held) > 10
    assert max(held, default=0) < 1500
    assert max(files, default=0) < 4


def test_the_last_are_the_last_that_are_known(tmp_path: Path) -> None:
    """Half of some slices is hidden, so that the last reach further back."""
    time = np.arange(400)
    known = np.where((time > 300) & (time % 2 == 0), 10**6, time)
    log = {"user": time * 0, "ts": time.astype("datetime64[s]"), "x": time * 0.1,
           "known": known.astype("datetime64[s]")}  # fmt: skip
    asked = {"user": np.zeros(40, int), "ts": np.arange(370, 410).astype("datetime64[s]")}
    spec = WindowPool("user", "ts", Column("x"), [None], ["count", last(90)], known_at="known")
    got, calls = sliced(spec, log, asked, 40, tmp_path)
    same(got, spec.asof(log, asked))
    assert max(events for events, _ in calls) < 250


def test_a_reduction_that_looks_at_each_event_has_them_all(tmp_path: Path) -> None:
    log, asked = one_user(3000)
    for reduce in (["mean", "median"], ["mean", attend("target")]):
        spec = WindowPool("user", "ts", Column("vector"), ["600s", None], reduce)
        got, calls = sliced(spec, log, asked, 500, tmp_path)
        same(got, spec.asof(log, asked))
        assert max(events for events, _ in calls) > 2500
        assert max(summaries for _, summaries in calls) == 0


def test_sums_that_need_many_terms(tmp_path: Path) -> None:
    """Exact sums of a slice are carried to the bit, beyond the largest double and below 1."""
    random = np.random.default_rng(3)
    x = random.choice([1e308, -1e308, 1.7e308, 1.0, 1e-300, 5e-324, 2.0**970], 400)
    log = {"user": np.zeros(400, int), "ts": np.arange(400).astype("datetime64[s]"), "x": x}
    asked = {"user": np.zeros(90, int), "ts": np.arange(0, 450, 5).astype("datetime64[s]")}
    spec = WindowPool("user", "ts", Column("x"), ["50s", None], ["sum", "mean"],
                      accumulate="exact")  # fmt: skip
    got, calls = sliced(spec, log, asked, 40, tmp_path)
    same(got, spec.asof(log, asked))
    assert max(events for events, _ in calls) < 60


@pytest.mark.parametrize("keys", [int, str, str.encode])
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_files_with_two_large_users(unit: str, keys: Any, tmp_path: Path) -> None:
    log, asked = one_user(8000, late=True)
    random = np.random.default_rng(2)
    user = random.choice([0, 1, 2, 3], 8000, p=[0.6, 0.35, 0.04, 0.01])
    log = {**log, "ts": log["ts"].astype(f"datetime64[{unit}]"),
           "item": random.integers(0, 90, 8000), "user": [keys(str(u)) for u in user]}  # fmt: skip
    asked["user"] = [keys(str(u)) for u in random.integers(0, 5, 300)]
    asked["target"] = random.integers(0, 90, 300)
    del log["vector"]
    table = random.standard_normal((90, 4)).astype(np.float32)
    spec = WindowPool("user", "ts", Lookup("item", table), ["600s", None], FOLDS,
                      known_at="known", weight="weight", tie="item", unit=unit)  # fmt: skip
    pq.write_table(pa.table(log), tmp_path / "log.parquet", row_group_size=700)
    told: list[str] = []
    got = spec.asof(tmp_path / "log.parquet", asked, memory=200_000,
                    progress=lambda what, done, total: told.append(what))  # fmt: skip
    same(got, spec.asof(pa.table(log), asked))
    assert told[1].endswith("parts")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.parquet"]


def test_bad_values_of_a_large_user_are_refused(tmp_path: Path) -> None:
    log, asked = one_user(3000)
    log["vector"][2500, 1] = np.nan
    pq.write_table(arrow(log), tmp_path / "log.parquet")
    spec = WindowPool("user", "ts", Column("vector"), [None], ["mean"])
    for queries in (asked, {**asked, "user": np.ones(300, int)}):  # nobody need ask for it
        with pytest.raises(PoolValueError, match="vector has a value that is not finite"):
            spec.asof(tmp_path / "log.parquet", queries, memory=20_000)


@pytest.mark.slow
def test_memory_is_that_of_some_slices(tmp_path: Path) -> None:
    """100 MB of vectors of one user, made as they are asked for. In a process of its own, whose
    peak is known."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        import numpy as np
        import pyarrow as pa
        from poolkit import set_num_threads
        from poolkit.events import Column, WindowPool
        from poolkit.events.columns import EventColumns, QueryColumns
        from poolkit.events.slices import pool_slices

        def batch(begin, size):
            part = np.arange(begin, begin + size)
            vectors = pa.array(np.tile(part.astype(np.float32) % 8, (64, 1)).T.reshape(-1))
            return pa.record_batch({"u": part * 0, "t": part.astype("datetime64[s]"),
                                    "x": pa.FixedSizeListArray.from_arrays(vectors, 64)})

        def pooled(events):
            batches = (batch(begin, 8000) for begin in range(0, events, 8000))
            time = np.arange(0, events, 4000)
            asked = {"u": time * 0, "t": time.astype("datetime64[s]")}
            found = pool_slices(spec, batches, QueryColumns.read(spec, asked), nothing, 8000,
                                Path(sys.argv[1]))
            return sum(columns["count_all"].sum() for _, columns in found), time.sum()

        set_num_threads(1)
        spec = WindowPool("u", "t", Column("x"), ["1000s", "90000s", None],
                          ["count", "mean", "std"])
        nothing = EventColumns.read(spec, batch(0, 0))
        pooled(40_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counted, right = pooled(400_000)
        assert counted == right
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, *sys.flags.no_site * ["-S"], "-c", code, tmp_path],
                          capture_output=True, text=True, check=True)  # fmt: skip
    print(done.stdout)
    assert int(done.stdout) < 50_000  # kB
