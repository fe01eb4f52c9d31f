"""Windows of time over event logs, against plain Python; nothing shows but what is seen."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from event_oracle import reduced, visible
from hypothesis import example, given
from hypothesis import strategies as st

import poolkit
from poolkit import PoolTypeError, PoolValueError
from poolkit.events import (
    Column,
    Lookup,
    WindowPool,
    attend,
    calendar,
    decay,
    definition,
    last,
    tables,
)

TABLE = np.random.default_rng(0).integers(-6, 7, (7, 3)) / 4.0
WINDOWS = ["1s", "7s", None]
TICKS = {"1s": 1, "7s": 7, "all": None}
REDUCE = [
    "count", "sum", "mean", "max", "min", "std", decay("3s"), last(1), last(4),
    attend("target"), attend("target", score="scaled_dot", name="scaled"),
]  # fmt: skip
PARAMETER = {
    "decay_3s": ("decay", 3), "last_1": ("last", 1), "last_4": ("last", 4),
    "attend": ("attend", 1.0), "scaled": ("attend", 3**-0.5),
}  # fmt: skip


@dataclasses.dataclass
class Case:
    """A log and its queries, as tables and for the oracle."""

    events: dict[str, np.ndarray]
    queries: dict[str, np.ndarray]
    options: dict[str, Any]
    lookup: bool

    def spec(self, **options: Any) -> WindowPool:
        value = Lookup("item", table=TABLE) if self.lookup else Column("vector")
        options = {"windows": WINDOWS, "reduce": REDUCE, "unit": "s", **self.options, **options}
        return WindowPool(key="user", time="ts", value=value, **options)

    def logged(self) -> list[dict[str, Any]]:
        e, named = self.events, self.options
        return [
            {
                "key": int(e["user"][i]),
                "time": int(e["ts"][i].astype(int)),
                "tie": int(e["tie"][i]) if "tie" in named else 0,
                "known": int(e["known"][i].astype(int)) if "known_at" in named else None,
                "value": TABLE[e["item"][i]].tolist(),
                "order": int(e["item"][i]) if self.lookup else TABLE[e["item"][i]].tolist(),
                "weight": float(e["weight"][i]) if "weight" in named else 1.0,
            }
            for i in range(len(e["user"]))
        ]

    def asked(self) -> list[dict[str, Any]]:
        q = self.queries
        return [
            {"key": int(k), "time": int(t.astype(int)), "target": TABLE[item].tolist()}
            for k, t, item in zip(q["user"], q["ts"], q["item"], strict=True)
        ]


def columns(rows: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    array = np.array(rows, dtype=np.int64).reshape(len(rows), 6)
    return {
        "user": array[:, 0], "ts": array[:, 1].astype("datetime64[s]"), "item": array[:, 2],
        "vector": TABLE[array[:, 2]], "tie": array[:, 3],
        "known": (array[:, 1] + array[:, 4]).astype("datetime64[s]"), "weight": array[:, 5] / 2.0,
    }  # fmt: skip


@st.composite
def cases(draw: Any) -> Case:
    small = st.integers(-3, 14)  # so that events lie on the borders of windows, and share times
    event = st.tuples(st.integers(0, 2), small, st.integers(0, 6), st.integers(0, 3),
                      st.integers(0, 5), st.integers(0, 3))  # fmt: skip
    events = columns(draw(st.lists(event, max_size=40)))
    query = st.tuples(st.integers(0, 3), st.integers(-3, 16), st.integers(0, 6))
    asked = np.array(draw(st.lists(query, max_size=12)), dtype=np.int64).reshape(-1, 3)
    lookup = draw(st.booleans())
    queries = {"user": asked[:, 0], "ts": asked[:, 1].astype("datetime64[s]"), "item": asked[:, 2],
               "target": asked[:, 2] if lookup else TABLE[asked[:, 2]]}  # fmt: skip
    options = {name: column for name, column in
               (("tie", "tie"), ("known_at", "known"), ("weight", "weight"))
               if draw(st.booleans())}  # fmt: skip
    return Case(events, queries, options, lookup)


def expected(case: Case, window: str, name: str) -> np.ndarray:
    events = case.logged()
    reduction, parameter = PARAMETER.get(name, (name, None))
    rows = []
    for query in case.asked():
        row = reduced(visible(events, query, TICKS[window]), query, reduction, parameter)
        rows.append([0.0] * 3 if row is None else row)
    return np.array(rows)


@given(cases())
def test_every_window_and_reduction_against_the_oracle(case: Case) -> None:
    out = case.spec().asof(case.events, case.queries)
    for window in TICKS:
        counted = expected(case, window, "count")
        assert out[f"seen_{window}"].tolist() == (counted > 0).tolist()
        for name, _ in case.spec().reductions:
            want, got = expected(case, window, name), out[f"{name}_{window}"]
            if name in ("count", "sum", "max", "min"):  # quarters and halves: all steps are exact
                np.testing.assert_array_equal(got, want.reshape(got.shape), err_msg=name)
            else:
                np.testing.assert_allclose(
                    got, want.reshape(got.shape), rtol=1e-11, atol=1e-11, err_msg=name
                )


@given(cases(), st.randoms(use_true_random=False))
def test_order_of_the_log_and_company_of_a_query_do_not_show(case: Case, random: Any) -> None:
    spec = case.spec(reduce=["mean", "std", decay("3s"), last(4)])
    out = spec.asof(case.events, case.queries)
    order = list(range(len(case.events["user"])))
    random.shuffle(order)
    mixed = {name: column[order] for name, column in case.events.items()}
    for q in range(len(case.queries["user"])):
        alone = spec.asof(mixed, {name: c[q : q + 1] for name, c in case.queries.items()})
        for name in out:
            assert alone[name].tobytes() == out[name][q : q + 1].tobytes(), name


@given(cases())
def test_exact_sums_are_rounded_once(case: Case) -> None:
    scale = np.array([1e30, 1.0, 1e-30])
    events = {**case.events, "vector": case.events["vector"] * scale[case.events["item"] % 3, None]}
    case = dataclasses.replace(case, lookup=False, queries={**case.queries, "target": 0})
    spec = case.spec(reduce=["sum", "mean"], accumulate="exact")
    out = spec.asof(events, case.queries)
    logged = case.logged()
    for event, vector in zip(logged, events["vector"], strict=True):
        event["value"] = vector.tolist()
    for window, ticks in TICKS.items():
        for q, query in enumerate(case.asked()):
            seen = visible(logged, query, ticks)
            for name in ("sum", "mean"):
                want = reduced(seen, query, name) or [0.0] * 3
                assert out[f"{name}_{window}"][q].tolist() == want


def exact_sum(values: list[float]) -> float:
    x = np.array(values)[:, None]
    events = {"user": np.zeros(len(x), np.int64), "x": x,
              "ts": np.arange(len(x)).astype("datetime64[s]")}  # fmt: skip
    spec = WindowPool("user", "ts", Column("x"), [None], ["sum"], accumulate="exact")
    out = spec.asof(events, {"user": [0], "ts": np.array([len(x)], "datetime64[s]")})
    return float(out["sum_all"][0, 0])


LARGEST = float(np.finfo(np.float64).max)


@given(
    st.lists(
        st.sampled_from([LARGEST, 2.0**1023, 1e308, 2.0**970, 2.0**969, 1.0, 5e-324]).flatmap(
            lambda x: st.sampled_from([x, -x])
        ),
        min_size=1,
        max_size=80,
    )
)
@example([1e308] * 60)
@example([1e308, 1e308, -1e308])
@example([-LARGEST, -(2.0**970), 5e-324])  # rounds to the largest, but for the last to infinity
@example([LARGEST, 2.0**970, -5e-324])
def test_exact_sums_overflow_only_in_the_end(values: list[float]) -> None:
    total = sum(map(Fraction, values))
    try:
        want = float(total)
    except OverflowError:
        want = math.inf if total > 0 else -math.inf
    assert exact_sum(values) == want


def test_exact_sums_of_many_parts() -> None:
    """A part for every other bit: each new one is what is left of one so large that it merges with
    none."""
    bits = range(-1074, 970, 2)
    values = [x for bit in bits for x in (2.0 ** (bit + 53), 2.0**bit - 2.0 ** (bit + 53))]
    assert exact_sum(values) == math.fsum(2.0**bit for bit in bits)
    assert exact_sum([*values, -(2.0**968), -(2.0**966)]) == math.fsum(
        2.0**bit for bit in bits[:-2]
    )


@given(cases())
def test_any_reduction_of_the_library(case: Case) -> None:
    case = dataclasses.replace(
        case, options={k: v for k, v in case.options.items() if k != "weight"}
    )
    reductions = ["median", "Quantile(0.25)", "GeM(2)", "first", "Std(correction=1)"]
    out = case.spec(reduce=[*reductions]).asof(case.events, case.queries)
    for window, ticks in TICKS.items():
        for q, query in enumerate(case.asked()):
            rows = np.array([e["value"] for e in visible(case.logged(), query, ticks)])
            for reduction, name in zip(
                reductions, case.spec(reduce=reductions).reductions, strict=True
            ):
                got = out[f"{name[0]}_{window}"][q]
                want = np.zeros(3) if not len(rows) else poolkit.pool(
                    rows, poolkit.Global(), reduction, ndim=1, channels_last=True)[0]  # fmt: skip
                np.testing.assert_array_equal(got, want)


def skewed(events: int = 60_000, queries: int = 3000) -> tuple[dict[str, Any], dict[str, Any]]:
    """A log in which one user has a third of the events, and late ones."""
    random = np.random.default_rng(1)
    user = np.where(random.random(events) < 1 / 3, 0, random.integers(0, 500, events))
    ts = random.integers(0, 10**9, events)
    ts[: events // 2] //= 10**7  # half of them share their times with others
    late = np.where(random.random(events) < 0.1, random.integers(0, 10**8, events), 0)
    log = {"user": user, "ts": ts.astype("datetime64[us]"), "weight": random.random(events),
           "known": (ts + late).astype("datetime64[us]"),
           "vector": random.standard_normal((events, 5))}  # fmt: skip
    asked = {"user": np.where(random.random(queries) < 1 / 3, 0, random.integers(0, 510, queries)),
             "ts": random.integers(0, 11 * 10**8, queries).astype("datetime64[us]"),
             "target": random.standard_normal((queries, 5))}  # fmt: skip
    return log, asked


def wide_spec(**options: Any) -> WindowPool:
    return WindowPool("user", "ts", Column("vector"), ["1s", "100s", None], known_at="known",
                      weight="weight",
                      reduce=["count", "mean", "max", "std", decay("20s"), last(50)],
                      **options)  # fmt: skip


@pytest.mark.usefixtures("keep_settings")
def test_threads_do_not_change_bits() -> None:
    events, queries = skewed()
    spec = dataclasses.replace(wide_spec(), reduce=["mean", "std", decay("20s"), attend("target")])
    results = []
    for threads in (1, 2, 3, 7):
        poolkit.set_num_threads(threads)
        results.append(spec.asof(events, queries))
    for other in results[1:]:
        for name, column in other.items():
            assert column.tobytes() == results[0][name].tobytes(), name


def test_a_long_log_against_numpy() -> None:
    """Long enough that nodes of the trie are kept and met again."""
    events, queries = skewed()
    out = wide_spec().asof(events, queries)
    ts, known, at = (c.astype(np.int64) for c in (events["ts"], events["known"], queries["ts"]))
    for q in range(0, len(at), 37):
        seen = (events["user"] == queries["user"][q]) & (ts < at[q]) & (known <= at[q])
        for name, ticks in (("1s", 10**6), ("100s", 10**8), ("all", 2 * 10**9)):
            chosen = np.flatnonzero(seen & (ts >= at[q] - ticks))
            x, w = events["vector"][chosen], events["weight"][chosen][:, None]
            assert out[f"count_{name}"][q] == len(chosen)
            if not len(chosen):
                assert not out[f"mean_{name}"][q].any()
                continue
            mean = (x * w).sum(0) / w.sum()
            np.testing.assert_allclose(out[f"mean_{name}"][q], mean, rtol=1e-10, atol=1e-12)
            std = np.sqrt((w * (x - mean) ** 2).sum(0) / w.sum())
            np.testing.assert_allclose(out[f"std_{name}"][q], std, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(out[f"max_{name}"][q], (x * w).max(0))
            decayed = w * 2.0 ** -((at[q] - ts[chosen]) / 2e7)[:, None]
            if decayed.sum() > 1e-200:
                np.testing.assert_allclose(
                    out[f"decay_20s_{name}"][q],
                    (x * decayed).sum(0) / decayed.sum(),
                    rtol=1e-9,
                    atol=1e-12,
                )


@pytest.mark.parametrize("step", [1, 2, 7])
def test_events_that_are_not_known_yet(step: int) -> None:
    """They part the others into stretches, so many that these do not lie in memory at once. Among
    events of one time as well."""
    events, random = 1500, np.random.default_rng(4)
    known = np.where(np.arange(events) % 7 < step, 10**6, 0)
    log = {"user": np.zeros(events, np.int64), "vector": random.standard_normal((events, 2)),
           "ts": (np.arange(events) // 3 * 2).astype("datetime64[s]"),
           "known": known.astype("datetime64[s]")}  # fmt: skip
    asked = {"user": np.zeros(600, np.int64),
             "ts": random.integers(600, 1100, 600).astype("datetime64[s]")}  # fmt: skip
    reduce = ["count", "sum", "std", decay("20s"), last(100), "first"]
    spec = WindowPool("user", "ts", Column("vector"), ["50s", None], reduce, known_at="known")
    out = spec.asof(log, asked)
    without = {name: column[known == 0] for name, column in log.items()}
    for name, column in spec.asof(without, asked).items():
        assert out[name].tobytes() == column.tobytes(), name
    for q in range(0, 600, 37):
        alone = spec.asof(log, {name: column[q : q + 1] for name, column in asked.items()})
        for name, column in alone.items():
            assert out[name][q : q + 1].tobytes() == column.tobytes(), name


@pytest.mark.parametrize("weight", [None, "weight"])
@pytest.mark.parametrize("moments", [40, 400, 10**12])
def test_events_that_become_known_one_by_one(moments: int, weight: str | None) -> None:
    """So many queries that what they see is no longer listed; with times before 0, many events of
    one time, and some that are known before they happen."""
    random, events = np.random.default_rng(moments), 400
    ts = random.integers(-moments // 2, moments // 2, events)
    known = ts + random.integers(-moments // 4, moments, events)
    log = {"user": np.zeros(events, np.int64), "vector": random.standard_normal((events, 2)),
           "ts": ts.astype("datetime64[us]"), "known": known.astype("datetime64[us]"),
           "weight": random.integers(0, 4, events) / 2}  # fmt: skip
    at = np.linspace(0, moments, 40).astype(np.int64)
    queries = 4000  # of which all but a few are of the first moment, whose lists fill the room
    asked = {"user": np.zeros(queries, np.int64),
             "ts": np.concatenate([np.full(queries - len(at), at[0]), at]).astype("datetime64[us]"),
             "target": random.standard_normal((queries, 2))}  # fmt: skip
    reduce = ["count", "sum", "mean", "max", "min", "std", decay(f"{moments // 3}us"),
              last(1), last(20), attend("target")]  # fmt: skip
    spec = WindowPool("user", "ts", Column("vector"), [f"{moments // 3}us", None], reduce,
                      known_at="known", weight=weight)  # fmt: skip
    out = spec.asof(log, asked)
    for q in range(queries - len(at), queries):
        alone = spec.asof(log, {name: column[q : q + 1] for name, column in asked.items()})
        for name, column in alone.items():
            assert out[name][q : q + 1].tobytes() == column.tobytes(), (name, q)


def test_memory_where_one_event_is_not_known_yet() -> None:
    """Not the product of events and queries. In a process of its own, whose peak is known."""
    code = """if True:
        import resource
        import numpy as np
        from poolkit.events import Column, WindowPool

        zero, time = np.zeros(6000, np.int64), np.arange(6000)
        known = np.where(time == 0, 10**6, time).astype("datetime64[s]")
        events = {"u": zero, "t": time.astype("datetime64[s]"), "known": known, "x": time / 2}
        spec = WindowPool("u", "t", Column("x"), [None], ["sum"], known_at="known")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sums = spec.asof(events, events)["sum_all"].ravel()
        assert sums.tolist() == (time * (time - 1) / 4).tolist()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # kB; all the stretches would be 500 MB


def test_sums_do_not_cancel() -> None:
    """What a running sum would have lost when the large event left it."""
    ts = np.array([0, 10, 20], "datetime64[s]")
    events = {"user": [0, 0, 0], "ts": ts, "vector": np.array([1e30, 1.0, 2.0], np.float32)}
    spec = WindowPool("user", "ts", Column("vector"), ["15s"], ["sum", "std"])
    out = spec.asof(events, {"user": [0, 0], "ts": np.array([11, 21], "datetime64[s]")})
    assert out["sum_15s"].ravel().tolist() == [np.float32(1e30), 3.0]
    assert out["std_15s"][1, 0] == 0.5


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_what_weighs_nothing_hides_nothing(order: tuple[int, ...]) -> None:
    """However large it is, and however long after."""
    ts = np.array([0, 10**6, 2 * 10**6], "datetime64[s]")
    x, w = np.array([3.0, 3.0, 2e20]), np.array([1.0, 2.0, 0.0])
    events = {"user": [0] * 3, "ts": ts, "x": x[[*order]], "w": w[[*order]]}
    queries = {"user": [0, 0, 0], "ts": ts + np.timedelta64(1, "s"), "target": [[1.0]] * 3}
    reduce = ["sum", "mean", "std", decay("1s"), attend("target")]
    out = WindowPool("user", "ts", Column("x"), [None], reduce, weight="w").asof(events, queries)
    weight = np.cumsum(w[[*order]])[:, None]
    want = np.where(weight > 0, 3.0, 0.0)
    for name, values in {"mean": want, "decay_1s": want, "attend": want, "std": 0 * want,
                         "sum": 3 * weight}.items():  # fmt: skip
        np.testing.assert_array_equal(out[f"{name}_all"], values, err_msg=name)


def test_a_half_life_beside_a_short_unit() -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], [decay("500ms")], unit="s")
    events = {"user": [0, 0], "ts": np.array([0, 1], "datetime64[s]"), "x": [4.0, 9.0]}
    out = spec.asof(events, {"user": [0], "ts": np.array([10**6], "datetime64[s]")})
    assert out["decay_500ms_all"][0, 0] == (4 / 4 + 9) / (1 / 4 + 1)


# --- times -----------------------------------------------------------------------------------


def asked_at(times: Any, **options: Any) -> Any:
    spec = WindowPool("user", "ts", Column("x"), ["1d"], ["count"], **options)
    events = {
        "user": [0, 0],
        "ts": np.array(["2024-03-01", "2024-03-02"], "datetime64[D]"),
        "x": [1.0, 2.0],
    }
    return spec.asof(events, {"user": [0] * len(times), "ts": times})["count_1d"].tolist()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "D", "h"])
def test_units_of_numpy(unit: str) -> None:
    """The event at t is not seen, and the one at t - W is."""
    times = np.array(["2024-03-02", "2024-03-03", "2024-03-04"], f"datetime64[{unit}]")
    assert asked_at(times) == [1, 1, 0]


def test_a_tick_decides() -> None:
    times = np.array(["2024-03-03T00:00:00.000001", "2024-03-02T00:00:00.000001"], "datetime64[us]")
    assert asked_at(times) == [0, 2 - 1]
    with pytest.raises(PoolValueError, match=r"no whole s.*unit='us'"):
        asked_at(times, unit="s")


@pytest.mark.parametrize("unit", ["W", "h", "m", "500ms", "40us", "7s", "ps", "3fs"])
@pytest.mark.parametrize("ticks", ["us", "ns"])
def test_units_of_any_step(unit: str, ticks: str) -> None:
    """A step of a unit is seen a tick behind it, and not at it."""
    dtype = np.dtype(f"datetime64[{unit}]")
    step = 10**15 if unit in ("ps", "3fs") else 3  # whole microseconds
    times = np.array([step], np.int64).astype(dtype)
    at = times.astype(f"datetime64[{ticks}]")
    at = np.concatenate([at, at + 1])
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"], unit=ticks)
    out = spec.asof({"user": [0], "ts": times, "x": [1.0]}, {"user": [0, 0], "ts": at})
    assert out["count_all"].tolist() == [0, 1]
    assert poolkit.TimeWindow(None, times=times, at=at).count.tolist() == [0, 1]


@pytest.mark.parametrize(("unit", "begin"), [("M", "1969-06-01"), ("Y", "1969-01-01")])
def test_months_and_years(unit: str, begin: str) -> None:
    times = np.array(["1969-06"], f"datetime64[{unit}]")
    at = np.array([begin], "datetime64[s]") + np.array([0, 1])
    assert poolkit.TimeWindow(None, times=times, at=at).count.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("times", "unit", "message"),
    [
        (np.array([1], "datetime64[500ms]"), "s", "in ms that are no whole s.*unit='ms'"),
        (np.array([900], "datetime64[ps]"), "ns", r"no whole ns.*Round them to datetime64\[ns\]"),
        (np.array(["1600-01-01"], "datetime64[D]"), "ns", "do not fit 64 bits in ns"),
        (np.array([2**62], "datetime64[Y]"), "us", "do not fit 64 bits"),
    ],
)
def test_times_are_never_rounded(times: np.ndarray, unit: str, message: str) -> None:
    with pytest.raises(PoolValueError, match=message):
        asked_at(times, unit=unit)


@pytest.mark.parametrize("begin", [1_000_000, -1_000_000])
def test_nanoseconds_of_pandas(begin: int) -> None:
    pandas = pytest.importorskip("pandas")
    ticks = np.array([900, 899, 901]) + begin
    times = pandas.to_datetime(ticks, unit="ns", utc=True)
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"], unit="ns")
    events = {"user": [0], "ts": pandas.Series(times[:1]), "x": [1.0]}
    queries = {"user": [0] * 3, "ts": pandas.Series(times)}
    assert spec.asof(events, queries)["count_all"].tolist() == [0, 0, 1]
    coarse = dataclasses.replace(spec, unit="us")
    with pytest.raises(PoolValueError, match=r"no whole us.*unit='ns'"):
        coarse.asof(events, queries)
    with pytest.raises(PoolValueError, match="ts holds NaT"):
        spec.asof({**events, "ts": pandas.Series([pandas.NaT], dtype=object)}, queries)


def test_times_at_the_end_of_the_scale() -> None:
    """The window begins before any time there is."""
    times = np.array([np.iinfo(np.int64).min + 5], np.int64).astype("datetime64[us]")
    assert asked_at(times) == [0]


@pytest.mark.parametrize("weight", [None, "w"])
def test_ages_that_no_64_bits_hold(weight: str | None) -> None:
    """The first and last day that nanoseconds have: 585 years, which is more than 2^63 of them."""
    days = np.array(["1677-09-22", "2262-04-10", "2262-04-11"], "datetime64[ns]")
    spec = WindowPool("user", "ts", Column("x"), [None], [decay("100000d", name="decay")],
                      unit="ns", weight=weight)  # fmt: skip
    events = {"user": [0, 0], "ts": days[:2], "x": [1.0, 4.0], "w": [1.0, 1.0]}
    old = 0.5 ** (213_501 / 100_000)
    got = spec.asof(events, {"user": [0], "ts": days[2:]})["decay_all"]
    np.testing.assert_allclose(got, [[(old + 4) / (old + 1)]], rtol=1e-12)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.array([1, 2]), "which does not say what time it is"),
        (np.array(["2024-01-01", "NaT"], "datetime64[s]"), "NaT"),
        (np.array([2**62, 0]).astype("datetime64[s]"), "do not fit 64 bits in us"),
    ],
)
def test_times_that_are_none(times: np.ndarray, message: str) -> None:
    with pytest.raises(poolkit.PoolError, match=message):
        asked_at(times)


def test_calendar_windows_follow_the_clock() -> None:
    """30 March 2025 has 23 hours in Paris."""
    spec = WindowPool(
        "user", "ts", Column("x"), ["1d", calendar("1d", tz="Europe/Paris")], ["count"]
    )
    events = {"user": [0], "ts": np.array(["2025-03-29T12:30"], "datetime64[s]"), "x": [1.0]}
    noon = np.array(["2025-03-30T12:00"], "datetime64[s]")  # 14:00 there, and 13:30 the day before
    out = spec.asof(events, {"user": [0], "ts": noon})
    assert (out["count_1d"][0], out["count_calendar_1d"][0]) == (1, 0)


@pytest.mark.parametrize(
    ("length", "time", "begin"),
    [
        ("1mo", "2024-03-31T10:00", "2024-02-29T10:00"),
        ("1y", "2024-02-29T10:00", "2023-02-28T10:00"),
        ("2w", "2024-03-01T00:00", "2024-02-16T00:00"),
        ("1mo1d", "2024-01-01T00:00", "2023-11-30T00:00"),
    ],
)
def test_dates_of_the_calendar(length: str, time: str, begin: str) -> None:
    ticks = np.array([time], "datetime64[us]").astype(np.int64)
    found = calendar(length, tz="UTC").before(ticks, "us").astype("datetime64[us]")
    assert found[0] == np.datetime64(begin)


# --- what is refused -------------------------------------------------------------------------

GOOD = {"user": [0, 1], "ts": np.array([0, 1], "datetime64[s]"), "x": [1.0, 2.0], "w": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"x": [1.0, np.nan]}, {}, "not finite in event 1.*nonfinite='propagate'"),
        ({"w": [1.0, -1.0]}, {"weight": "w"}, "w is -1.0 in row 1"),
        ({"user": [0.5, 1.0]}, {}, "float64, which is no key"),
        ({"user": np.array(["a", 1], object)}, {}, "int, str, which are no keys"),
        ({"user": ["a", "b"]}, {}, "events is text.*|events are text, those of queries integers"),
        ({"user": [b"a", b"b"]}, {}, "events are bytes, those of queries integers"),
        ({"x": [1.0]}, {}, "different lengths"),
        ({}, {"weight": "dwell"}, "no column 'dwell'. They have|no column 'dwell'"),
        ({}, {"empty": "error"}, "query 0 sees no event"),
        ({"tie": [1.0, np.nan]}, {"tie": "tie"}, "NaN, which has no order"),
        ({"user": [[0, 5], [1, 6]]}, {}, r"user is an array of shape \(2, 2\)"),
        ({"ts": GOOD["ts"][:, None]}, {}, r"ts is an array of shape \(2, 1\)"),
        ({"tie": [[1, 2], [3, 4]]}, {"tie": "tie"}, r"tie is an array of shape \(2, 2\)"),
        ({"user": 3}, {}, r"user is an array of shape \(\)"),
        ({"x": np.ma.array([1.0, 9.0], mask=[0, 1])}, {}, "x of events has 1 nulls in 2 rows"),
    ],
)
def test_bad_events(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    spec = WindowPool("user", "ts", Column("x"), ["1s"], ["mean"], **options)
    with pytest.raises(poolkit.PoolError, match=message) as caught:
        spec.asof({**GOOD, **change}, {"user": [0], "ts": GOOD["ts"][:1]})
    assert "while pooling events of 'user' in windows 1s" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"closed": "right"}, "closed must be 'left'"),
        ({"windows": ["1mo"]}, "calendar"),
        ({"windows": ["0s"]}, "longer than nothing"),
        ({"windows": ["1s", None, "all"]}, "two windows have one name"),
        ({"windows": ["500ms"], "unit": "s"}, "no whole number of s"),
        ({"windows": []}, "no window"),
        ({"windows": "7d"}, "lists"),
        ({"windows": 5}, "lists"),
        ({"reduce": 5}, "lists"),
        ({"reduce": [attend("a"), attend("b")]}, "two reductions have one name.*name="),
        ({"reduce": [last(1, name="seen")]}, "have the name seen_1s.*name="),
        (
            {
                "windows": ["1d", calendar("1d", tz="UTC")],
                "reduce": ["mean", last(1, name="mean_calendar")],
            },
            "have the name mean_calendar_1d",
        ),
        ({"reduce": ["mean", "Mean()"]}, "two reductions have one name"),
        ({"reduce": ["average"]}, "no reduction named 'average'"),
        ({"reduce": ["last(0)"]}, "number of events"),
        ({"reduce": ["decay('soon')"]}, "half-life of 'soon'"),
        ({"empty": "none"}, "empty must be"),
        ({"accumulate": "f32"}, "accumulate must be 'f64' or 'exact'"),
        ({"value": "x"}, "a Column or a Lookup"),
        ({"value": Column(3)}, "value must be the name of a column, got 3"),
        ({"key": ["user", "site"]}, "key must be the name of a column.*Join several"),
        ({"time": None}, "time must be the name of a column"),
        ({"weight": ["w"]}, "weight must be the name of a column"),
        ({"reduce": [f"last({2**63})"]}, "number of events"),
    ],
)
def test_bad_specifications(options: dict[str, Any], message: str) -> None:
    with pytest.raises(poolkit.PoolError, match=message):
        WindowPool(
            **{"key": "user", "time": "ts", "value": Column("x"), "windows": ["1s"], **options}
        )


def test_lookup_by_ids() -> None:
    ts = np.arange(3).astype("datetime64[s]")
    queries = {"user": ["u"], "ts": np.array([9], "datetime64[s]")}
    events = {"user": ["u"] * 3, "ts": ts, "item": ["b", "c", "a"]}
    table = np.array([[1.0], [2.0]])
    skip = WindowPool("user", "ts", Lookup("item", table, ids=["a", "b"], missing="skip"), [None],
                      ["count", "sum"])  # fmt: skip
    out = skip.asof(events, queries)
    assert (out["count_all"][0], out["sum_all"][0, 0]) == (2, 3.0)
    strict = WindowPool("user", "ts", Lookup("item", table, ids=["a", "b"]), [None], ["sum"])
    with pytest.raises(PoolValueError, match=r"item is 'c' in row 1.*missing='skip'"):
        strict.asof(events, queries)
    with pytest.raises(PoolValueError, match="one id"):
        Lookup("item", table, ids=["a", "a"])
    by_row = WindowPool("user", "ts", Lookup("item", table), [None], ["count"])
    with pytest.raises(PoolTypeError, match="ids of its rows"):
        by_row.asof(events, queries)
    with pytest.raises(PoolTypeError, match=r"item is an array of shape \(3, 2\)"):
        by_row.asof({**events, "item": [[0, 1]] * 3}, queries)
    nothing: dict[str, Any] = {"user": [], "ts": [], "item": []}
    for spec in (skip, by_row):
        assert spec.asof(nothing, queries)["count_all"].tolist() == [0]


def test_ids_of_any_column() -> None:
    pa, polars = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    events = {"user": [0], "ts": GOOD["ts"][:1], "item": ["b"]}
    for ids in (["a", "b"], pa.array(["a", "b"]), polars.Series(["a", "b"])):
        spec = WindowPool("user", "ts", Lookup("item", np.eye(2), ids), [None], ["sum"])
        out = spec.asof(events, {"user": [0], "ts": GOOD["ts"][1:]})
        assert out["sum_all"].tolist() == [[0, 1]]
    with pytest.raises(PoolValueError, match="ids has 1 nulls in 2 rows"):
        Lookup("item", np.eye(2), pa.array(["a", None]))


def test_names_of_durations_and_what_has_none() -> None:
    spec = WindowPool("user", "ts", Column("x"), [timedelta(hours=36), np.timedelta64(90, "s")],
                      [decay(timedelta(days=3))], empty="zero")  # fmt: skip
    out = spec.asof(GOOD, {"user": [0], "ts": GOOD["ts"][:1]})
    assert list(out) == ["decay_3d_1d12h", "decay_3d_1m30s"]
    assert spec.reduce[0] == decay(timedelta(days=3))
    assert repr(spec.reduce[0]) == "decay('3d')"
    assert out.get("mean_all") is None


def test_targets_are_found_as_items_are(monkeypatch: Any) -> None:
    read = []
    monkeypatch.setattr(definition, "keys_of", lambda column, name: (
        read.append(name), tables.keys_of(column, name))[1])  # fmt: skip
    lookup = Lookup("item", np.eye(2), ids=["a", "b"], missing="skip")
    state = WindowPool("user", "ts", lookup, [None], [attend("to")]).state()
    state.update({"user": [0, 0], "ts": GOOD["ts"], "item": ["b", "c"]})
    out = state.query(0, np.datetime64(9, "s"), to="a")
    assert out["attend_all"].tolist() == [0, 1]
    assert read.count("ids") == 1  # a table of millions is not gone through for each query
    with pytest.raises(PoolValueError, match=r"to is 'c' in row 0.*Drop those queries"):
        state.query(0, np.datetime64(9, "s"), to="c")


@pytest.mark.parametrize("dtype", [None, object])
def test_bytes_are_no_text(dtype: Any) -> None:
    """They would never meet, and every window would be empty."""
    raw, text = np.array([b"a"], dtype), np.array(["a"], dtype)
    at = {"ts": GOOD["ts"][:1], "x": [1.0]}
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    with pytest.raises(PoolTypeError, match="keys of events are bytes, those of queries text"):
        spec.asof({"user": raw, **at}, {"user": text, **at})
    state = spec.state()
    state.update({"user": raw, **at})
    with pytest.raises(PoolTypeError, match="keys of events are bytes, those of queries text"):
        state.query("a", GOOD["ts"][1])
    assert state.query(b"a", GOOD["ts"][1])["count_all"] == 1
    lookup = Lookup("item", np.eye(1), ids=text, missing="skip")
    spec = WindowPool("user", "ts", lookup, [None], ["count"])
    with pytest.raises(PoolTypeError, match="keys of the table are text, those of item bytes"):
        spec.asof({"user": [0], "item": raw, **at}, {"user": [0], **at})


@pytest.mark.parametrize("dtype", ["S1", "U1", object])
def test_no_keys_have_a_type_that_says_it(dtype: Any) -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    events = {"user": np.zeros(0, dtype), "ts": GOOD["ts"][:0], "x": np.zeros(0)}
    queries = {"user": np.array(["a"]), "ts": GOOD["ts"][:1]}
    if dtype == "S1":
        with pytest.raises(PoolTypeError, match="events are bytes"):
            spec.asof(events, queries)
    else:
        assert spec.asof(events, queries)["count_all"].tolist() == [0]


def test_lists_of_nothing() -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    nothing: dict[str, Any] = {"user": [], "ts": [], "x": []}
    for keys in ([1], ["a"], [b"a"]):
        asked = {"user": keys, "ts": GOOD["ts"][:1]}
        assert spec.asof(nothing, asked)["count_all"].tolist() == [0]
        assert len(spec.asof({**asked, "x": [1.0]}, nothing)["count_all"]) == 0
    assert len(spec.asof(nothing, nothing)["count_all"]) == 0


def test_nan_goes_through_where_it_may() -> None:
    spec = WindowPool(
        "user", "ts", Column("x"), ["1s", None], ["max", "mean", "std"], nonfinite="propagate"
    )
    ts = np.arange(3).astype("datetime64[s]")
    out = spec.asof({"user": [0] * 3, "ts": ts, "x": [np.nan, 5.0, 3.0]},
                    {"user": [0], "ts": ts[2:]})  # fmt: skip
    assert out["max_1s"][0, 0] == 5
    assert all(np.isnan(out[f"{name}_all"][0, 0]) for name in ("max", "mean", "std"))


def test_empty_rules_and_no_events() -> None:
    nothing = {
        "user": np.zeros(0, np.int64),
        "ts": np.zeros(0, "datetime64[s]"),
        "x": np.zeros((0, 4)),
    }
    queries = {"user": [0, 0], "ts": GOOD["ts"]}
    for rule in ("zero", "nan", "zero+mask"):
        spec = WindowPool(
            "user", "ts", Column("x"), ["1s"], ["count", "mean", "median"], empty=rule
        )
        out = spec.asof(nothing, queries)
        assert ("seen_1s" in out) == (rule == "zero+mask")
        assert out["count_1s"].tolist() == [0, 0]
        for name in ("mean_1s", "median_1s"):
            assert out[name].shape == (2, 4)
            assert np.isnan(out[name]).all() == (rule == "nan")
    none = {"user": np.zeros(0, np.int64), "ts": np.zeros(0, "datetime64[s]")}
    assert spec.asof(nothing, none)["mean_1s"].shape == (0, 4)


# --- as a window of the library --------------------------------------------------------------


@given(cases())
def test_time_windows_of_pool_see_what_the_oracle_sees(case: Case) -> None:
    case = dataclasses.replace(case, options={})
    x = np.arange(len(case.events["user"]), dtype=np.float64)[:, None] + 1
    for name, ticks in TICKS.items():
        window = poolkit.TimeWindow(
            None if name == "all" else name, times=case.events["ts"], at=case.queries["ts"],
            keys=case.events["user"], at_keys=case.queries["user"],
        )  # fmt: skip
        logged = case.logged()
        for place, event in enumerate(logged):
            event["value"] = [place + 1.0]
        for reduction in ("sum", "max", "Quantile(0.5)"):
            got = poolkit.pool(x, window, reduction)
            for q, query in enumerate(case.asked()):
                seen = np.array([e["value"][0] for e in visible(logged, query, ticks)])
                right = {"sum": np.sum, "max": np.max, "Quantile(0.5)": np.median}[reduction]
                assert got[q, 0] == (right(seen) if len(seen) else 0)


def test_time_windows_have_gradients() -> None:
    """Each row collects what the windows that see it send back."""
    torch = pytest.importorskip("torch")
    times = np.array([0, 1, 2, 5], "datetime64[s]")
    window = poolkit.TimeWindow("3s", times=times[::-1].copy(), at=times + np.timedelta64(1, "s"))
    for reduction in ("sum", "mean", "max", "std"):
        x = torch.tensor([[4.0], [3.0], [2.5], [1.0]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, r=reduction: poolkit.pool(x, window, r), (x,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [1, 2]}, "times must be datetime64"),
        ({"keys": [1, 2]}, "keys and at_keys"),
        ({"keys": [1, 2], "at_keys": [1, 2]}, "keys of shape"),
        ({"keys": [1, 2], "at_keys": ["a"]}, "Convert one of them"),
        ({"keys": [2**53, 2**53 + 1], "at_keys": np.array([2**53], "u8")}, "int64, at_keys uint64"),
        ({"length": "2y"}, "no fixed duration"),
        ({"times": np.array([1, 2], "datetime64[ps]")}, "times holds .* no whole ns"),
        (
            {"times": np.array([-400, 0], "datetime64[Y]"), "at": np.array([0], "datetime64[ns]")},
            "times holds times that do not fit 64 bits in ns",
        ),
    ],
)
def test_bad_time_windows(change: dict[str, Any], message: str) -> None:
    given = {"length": "1s", "times": GOOD["ts"], "at": GOOD["ts"][:1], **change}
    with pytest.raises(poolkit.PoolError, match=message):
        poolkit.TimeWindow(**given)


def test_steps_of_time_windows() -> None:
    half = np.array([0, 1, 2, 3], "datetime64[500ms]")
    window = poolkit.TimeWindow("1s", times=half, at=np.array([4], "datetime64[500ms]"))
    assert window.count.tolist() == [2]


def test_rows_without_times() -> None:
    window = poolkit.TimeWindow("1s", times=GOOD["ts"], at=GOOD["ts"])
    with pytest.raises(PoolValueError, match=r"2 times for an input of shape \(3, 1\)"):
        poolkit.pool(np.zeros((3, 1)), window, "sum")
