"""Online is offline: any batches, merges and saved states give the bits of the batch."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_events import Case, cases, skewed

import poolkit
from poolkit import PoolTypeError, PoolValueError
from poolkit.events import Column, Lookup, WindowPool, attend, decay, last
from poolkit.events.columns import QueryColumns

REDUCE = ["count", "mean", "std", "max", decay("3s"), last(4), attend("target"), "median"]


def rows(table: dict[str, np.ndarray], chosen: Any) -> dict[str, np.ndarray]:
    return {name: column[chosen] for name, column in table.items()}


def same(got: Any, want: Any) -> None:
    assert list(got) == list(want)
    for name, column in want.items():
        assert np.asarray(got[name]).tobytes() == np.asarray(column).tobytes(), name


def reductions(case: Case) -> list[Any]:
    """The median has no weights."""
    return [name for name in REDUCE if name != "median" or "weight" not in case.options]


@given(cases(), st.data())
def test_any_batches_merges_and_bytes_give_the_same_bits(case: Case, data: Any) -> None:
    spec = case.spec(reduce=reductions(case))
    size = len(case.events["user"])
    order = np.array(data.draw(st.permutations(range(size))), dtype=np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
    states = [spec.state(), spec.state()]
    for part in np.split(order, cuts):
        chosen = data.draw(st.integers(0, 1))
        states[chosen].update(rows(case.events, part))
        if data.draw(st.booleans()):
            states[chosen] = spec.state(states[chosen].to_bytes())
    states[0].merge(states[1])
    assert len(states[0]) == size
    want = spec.asof(case.events, case.queries)
    for state in (states[0], spec.state(states[0].to_bytes())):
        got = state.query(case.queries["user"], case.queries["ts"], target=case.queries["target"])
        same(got, want)
        for q in range(len(case.queries["user"])):
            one = rows(case.queries, q)
            alone = state.query(one["user"], one["ts"], target=one["target"])
            same(alone, {name: column[q] for name, column in want.items()})


@given(cases(), st.integers(0, 12))
def test_what_is_served_live_is_what_a_replay_gives(case: Case, now: int) -> None:
    """Late events are not held against a row that was served before they were known."""
    case = dataclasses.replace(case, options={**case.options, "known_at": "known"})
    spec = case.spec(reduce=reductions(case))
    state = spec.state()
    known = case.events["known"].astype(np.int64) <= now
    state.update(rows(case.events, known))
    at = np.full(len(case.queries["ts"]), now).astype("datetime64[s]")
    served = {**case.queries, "ts": at}
    served |= state.query(served["user"], at, target=served["target"])
    assert spec.verify(case.events, served).same


@given(cases(), st.integers(-3, 12))
def test_what_is_forgotten_is_not_asked_for(case: Case, before: int) -> None:
    spec = case.spec(reduce=reductions(case), windows=["1s", "7s"])
    state = spec.state()
    horizon = np.datetime64(before, "s")
    half = len(case.events["user"]) // 2
    state.update(rows(case.events, slice(half)))
    state.forget(horizon)
    state.update(rows(case.events, slice(half, None)))
    assert len(state) == (case.events["ts"] >= horizon).sum()
    state = spec.state(state.to_bytes())
    late = case.queries["ts"].astype(np.int64) - 7 >= before
    queries = rows(case.queries, late)
    got = state.query(queries["user"], queries["ts"], target=queries["target"])
    same(got, spec.asof(case.events, queries))
    if not late.all():
        with pytest.raises(PoolValueError, match="reaches back to events that were forgotten"):
            state.query(case.queries["user"], case.queries["ts"], target=case.queries["target"])


DAMAGED = r"no state of poolkit|corrupt"


def test_many_small_batches() -> None:
    """Several runs of a log, whole and read again."""
    events, queries = skewed(3000, 50)
    spec = WindowPool("user", "ts", Column("vector"), ["100s", None], ["count", "mean", last(3)],
                      known_at="known", weight="weight")  # fmt: skip
    state, want = spec.state(), spec.asof(events, queries)
    for part in np.array_split(np.random.default_rng(3).permutation(3000), 37):
        state.update(rows(events, part))
    assert len(state._runs) > 1
    for whole in (state, spec.state(state.to_bytes())):
        same(whole.query(queries["user"], queries["ts"]), want)


def test_a_query_of_text_keys_does_not_go_through_all_keys() -> None:
    events, queries = skewed(3000, 50)
    for table in (events, queries):
        table["user"] = np.char.add("ü", table["user"].astype(str)).astype(object)
    spec = WindowPool("user", "ts", Column("vector"), ["100s", None], ["count", "mean", last(3)])
    state, want = spec.state(), spec.asof(events, queries)
    for part in np.split(np.arange(3000), [1800, 2620]):
        state.update(rows(events, part))
    same(state.query(queries["user"], queries["ts"]), want)
    found = [run.keys.places for run in state._runs]
    assert len(found) == 3
    chosen = [7, 3, 7]
    asked = QueryColumns.read(spec, rows(queries, chosen))
    assert set(state._of(asked).keys.names) == set(queries["user"][chosen])
    same(state.query(queries["user"][chosen], queries["ts"][chosen]),
         {name: column[chosen] for name, column in want.items()})  # fmt: skip
    assert all(run.keys.places is places for run, places in zip(state._runs, found, strict=True))
    nobody = state.query(["ü", "x"], queries["ts"][:2])
    assert nobody["count_all"].tolist() == [0, 0]


def made(text: bool = False) -> tuple[WindowPool, Any, dict[str, Any]]:
    events, queries = skewed(500, 20)
    if text:
        events["user"] = np.char.add("ü", events["user"].astype(str)).astype(object)
    tie = np.char.add("e", np.arange(500).astype(str))
    events["tie"] = tie
    spec = WindowPool("user", "ts", Column("vector"), ["100s"], ["mean"], tie="tie",
                      known_at="known", weight="weight")  # fmt: skip
    state = spec.state()
    state.update(events)
    return spec, state, queries


@pytest.mark.parametrize("text", [False, True])
def test_every_damage_is_seen(text: bool) -> None:
    spec, state, _ = made(text)
    data = state.to_bytes()
    assert spec.state(data).to_bytes() == data
    random = np.random.default_rng(0)
    for place in [*range(40), *random.integers(0, len(data), 200).tolist(), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(PoolValueError, match=DAMAGED):
            spec.state(bytes(damaged))
    for size in (0, 10, 16, 17, 48, 100, len(data) - 1):
        with pytest.raises(PoolValueError, match=DAMAGED):
            spec.state(data[:size])


def test_states_of_others(tmp_path: Path) -> None:
    spec, state, queries = made()
    wider = dataclasses.replace(spec, windows=["1s", "100s"], reduce=["max"])
    read = wider.state(state.to_bytes())
    assert "max_1s" in read.query(queries["user"], queries["ts"])
    for change in ({"weight": None}, {"unit": "ns"}, {"value": Column("x")}):
        name = next(iter(change))
        other = dataclasses.replace(spec, **change)
        with pytest.raises(PoolValueError, match=f"another definition: {name} was"):
            other.state(state.to_bytes())
        with pytest.raises(PoolValueError, match="different definitions"):
            other.state().merge(state)
    table = np.ones((3, 1))
    first, second = (WindowPool("user", "ts", Lookup("item", table, ids=ids), [None])
                     for ids in (["a", "b", "c"], ["a", "c", "b"]))  # fmt: skip
    with pytest.raises(PoolValueError, match="ids was"):
        second.state(first.state().to_bytes())
    saved = WindowPool("user", "ts", Lookup("item", table), [None]).state()
    for other_table in (table.astype(np.float32), np.ones((3, 2)), np.array([[1.0], [1], [2]])):
        other = WindowPool("user", "ts", Lookup("item", other_table), [None])
        with pytest.raises(PoolValueError, match=r"table was 'float64 \(3, 1\) [0-9a-f]+', and is"):
            other.state(saved.to_bytes())
        with pytest.raises(PoolValueError, match="different definitions"):
            saved.merge(other.state())
    with pytest.raises(PoolTypeError, match="a State merges another, got b'state'"):
        saved.merge(b"state")  # type: ignore[arg-type]
    with pytest.raises(PoolTypeError, match="bytes or the path of a file, got 3"):
        spec.state(3)  # type: ignore[arg-type]
    equal = WindowPool("user", "ts", Lookup("item", table.copy()), [None])
    saved.merge(equal.state(saved.to_bytes()))
    state.save(tmp_path / "state")
    assert spec.state(tmp_path / "state").to_bytes() == state.to_bytes()
    with pytest.raises(PoolValueError, match="cannot read"):
        spec.state(tmp_path / "none")
    newer = bytearray(state.to_bytes()[:-32])
    newer[len(b"poolkit events\n")] = 2
    import hashlib

    with pytest.raises(PoolValueError, match="version 2, this poolkit reads 1"):
        spec.state(bytes(newer) + hashlib.sha256(newer).digest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": np.array([datetime(2024, 1, 1, tzinfo=UTC)])}, "no time zone in earlier"),
        ({"user": ["a"]}, "keys of another type"),
        ({"x": np.ones((1, 3))}, "vectors of 1 in earlier batches, now 3"),
        ({"x": np.ones(1, np.float32)}, "values in float64 in earlier"),
        ({"x": [np.inf]}, "not finite"),
    ],
)
def test_a_batch_of_another_kind_changes_nothing(change: dict[str, Any], message: str) -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    state = spec.state()
    good = {"user": [1], "ts": np.array([0], "datetime64[s]"), "x": [1.0]}
    state.update(good)
    with pytest.raises(poolkit.PoolError, match=message):
        state.update({**good, **change})
    assert state.query(1, np.datetime64(9, "s"))["count_all"] == 1


TIED = WindowPool("user", "ts", Column("x"), [None], ["count", last(1)], tie="tie")


def tied(ties: Any, x: Any) -> dict[str, Any]:
    return {"user": np.ones(len(x), int), "ts": np.zeros(len(x), "datetime64[s]"), "x": x,
            "tie": ties}  # fmt: skip


@pytest.mark.parametrize(
    "ties",
    [
        [Decimal(9), Decimal(10)], np.array([9, 10], object), np.array(["a", b"b"], object),
        np.array([9.5, "a"], object),
    ],
)  # fmt: skip
def test_ties_that_bytes_would_not_keep_are_refused(ties: Any) -> None:
    """As text, 10 is before 9."""
    events = tied(ties, [9.0, 10.0])
    with pytest.raises(PoolTypeError, match=r"tie holds objects of .*, which break no tie"):
        TIED.asof(events, events)
    with pytest.raises(PoolTypeError, match="break no tie"):
        TIED.state().update(events)


@pytest.mark.parametrize(
    "ties",
    [
        np.array([9, 10], np.uint64), np.array([9.0, 10.5], np.float32), np.array([False, True]),
        ["b", "ü"], np.array(["b", "ü"], object), [b"b", b"c"], np.array([b"b", b"\xff"], object),
        np.array([9, 10], "datetime64[ms]"), [datetime(2024, 1, 9), datetime(2024, 1, 10)],
    ],
)  # fmt: skip
def test_ties_survive_bytes(ties: Any) -> None:
    state = TIED.state()
    state.update(tied(ties, [9.0, 10.0]))
    state = TIED.state(state.to_bytes())
    state.update(tied(ties, [9.0, 10.0]))
    for read in (state, TIED.state(state.to_bytes())):
        out = read.query(1, np.datetime64(1, "s"))
        assert (out["count_all"], out["last_1_all"]) == (4, 10)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.array([2**53], np.int64), np.array([2**53 + 1], np.uint64), "held int64 in .* uint64"),
        ([1], [1.5], "held int64 in earlier batches, now float64"),
        (["a"], [b"b"], "held text in earlier batches, now bytes"),
        (["a"], [1], "held text in earlier batches, now int64"),
    ],
)
def test_ties_of_two_kinds_do_not_meet(first: Any, second: Any, message: str) -> None:
    state = TIED.state()
    state.update(tied(first, [1.0]))
    with pytest.raises(PoolTypeError, match=message):
        state.update(tied(second, [2.0]))
    assert len(state) == 1


def test_a_merge_that_is_refused_changes_nothing() -> None:
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    state, other, of_bytes = spec.state(), spec.state(), spec.state()
    log = {"ts": np.array([10, 90], "datetime64[s]"), "x": [1.0, 2.0]}
    state.update({**log, "user": [1, 1]})
    other.update({**log, "user": ["a", "a"]})
    of_bytes.update({**log, "user": [b"a", b"a"]})
    other.forget(np.datetime64(50, "s"))
    before = state.to_bytes()
    for receiver, giver in ((state, other), (of_bytes, other)):
        with pytest.raises(PoolTypeError, match="keys of another type"):
            receiver.merge(giver)
    assert state.to_bytes() == before
    assert len(of_bytes) == 2
    assert state.query(1, np.datetime64(99, "s"))["count_all"] == 2


def test_forget_has_the_clock_of_the_events() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["1h"], ["count"])
    time = datetime(2024, 1, 1, tzinfo=UTC)
    for ts, wrong, message in (
        (time, datetime(2024, 1, 2), "ts of events has a time zone, before has none"),
        (time.replace(tzinfo=None), time, "before has a time zone, ts of events has none"),
    ):
        state = spec.state()
        state.update({"user": [1], "ts": [ts], "x": [1.0]})
        with pytest.raises(PoolTypeError, match=message):
            state.forget(wrong)
        assert len(state) == 1
        state.forget(ts + timedelta(seconds=1))
        assert len(state) == 0


def test_times_of_a_query() -> None:
    spec = WindowPool("user", "ts", Column("x"), ["1d"], ["count"])
    state = spec.state()
    assert state.query("u", np.datetime64("2024-01-01"))["count_1d"] == 0  # nothing has come yet
    aware = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 1, tzinfo=UTC)]
    state.update({"user": ["u", "v"], "ts": aware, "x": [1.0, 2.0]})
    assert state.query("u", datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC))["count_1d"] == 1
    assert state.query("w", datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC))["seen_1d"] == np.False_
    with pytest.raises(PoolTypeError, match="has a time zone"):
        state.query("u", datetime(2024, 1, 1))
    with pytest.raises(PoolTypeError, match="in some rows alone"):
        state.query(["u", "u"], [aware[0], datetime(2024, 1, 1)])
    with pytest.raises(PoolTypeError, match="does not say what time"):
        state.query("u", "2024-01-01")
    with pytest.raises(PoolTypeError, match=r"ts is an array of shape \(1, 2\)"):
        state.query("u", aware)
    with pytest.raises(PoolTypeError, match=r"before is an array of shape \(1, 2\)"):
        state.forget(aware)


def test_verify_finds_a_leak() -> None:
    events, queries = skewed(3000, 100)
    spec = WindowPool("user", "ts", Column("vector"), ["100s"], ["count", "mean"])
    served = {**queries, **spec.asof(events, queries)}
    found = spec.verify(events, served)
    assert (found.same, found.largest, str(found)) == (
        True, 0.0, "100 rows, 3 columns: the same bits")  # fmt: skip
    served["mean_100s"] = served["mean_100s"].copy()
    served["mean_100s"][7, 2] += 0.5
    found = spec.verify(events, served)
    assert found.columns["mean_100s"].row == 7
    assert found.columns["mean_100s"].rows == 1
    assert found.largest == pytest.approx(0.5)
    assert "mean_100s: 1 rows, by up to 0.5 (row 7)" in str(found)
    with pytest.raises(PoolValueError, match="none of the columns"):
        spec.verify(events, queries)


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")
def test_a_checkpoint_survives_being_killed(tmp_path: Path) -> None:
    """Whenever the writer dies, the file is a whole state."""
    path = tmp_path / "state"
    code = f"""
    import numpy as np
    from poolkit.events import Column, WindowPool
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    state = spec.state()
    for step in range(10**6):
        state.update({{"user": np.arange(2000), "x": np.ones(2000),
                      "ts": np.full(2000, step).astype("datetime64[s]")}})
        state.save({str(path)!r})
        print(step, flush=True)
    """
    spec = WindowPool("user", "ts", Column("x"), [None], ["count"])
    for steps in (1, 4, 9):
        writer = subprocess.Popen(
            [sys.executable, *sys.flags.no_site * ["-S"], "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        for _ in range(steps):
            done = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        count = int(spec.state(path).query(5, np.datetime64(10**8, "s"))["count_all"])
        assert count >= done + 1
