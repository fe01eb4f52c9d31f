# ruff: noqa: E402 - what this room needs is skipped over before it is imported
"""Timing: who runs when, and what is made of the samples. No test here asserts a time."""

from __future__ import annotations

import gc

import pytest

torch = pytest.importorskip("torch")

from poolkit import timing
from poolkit.timing import Comparison, Samples, Schedule

ONCE = Schedule(budget_s=0, min_rounds=20, max_rounds=20, sample_s=0)


def test_interleaved_samples_are_paired():
    ran = []
    calls = [lambda: ran.append("a"), lambda: ran.append("b")]
    first, second = timing.interleave(calls, timing.within(0))
    assert len(first.seconds) == len(second.seconds) == 7
    assert set(ran) == {"a", "b"}


def test_a_comparison_knows_noise_from_difference():
    noise = Comparison((1.0, 1.2) * 20, (1.2, 1.0) * 20)
    assert noise.interval[0] < 1 < noise.interval[1]
    assert noise.undecided
    faster = Comparison((2.0, 2.4) * 20, (1.2, 1.0) * 20)
    assert faster.interval[0] > 1
    assert not faster.undecided
    assert Comparison((1e-3,) * 9, (2e-3,) * 9).before_ms == 1.0


@pytest.mark.parametrize(("ratio", "took", "looks"), [(1.0, 0.5, 3), (2.0, 0.5, 1), (1.0, 9, 1)])
def test_an_undecided_comparison_looks_again_unless_it_takes_long(monkeypatch, ratio, took, looks):
    taken = []

    def samples(calls, schedule, settled):
        taken.append(schedule)
        return [Samples(1, [ratio] * 15), Samples(1, [1.0] * 15)]

    monkeypatch.setattr(timing, "interleave", samples)
    monkeypatch.setattr(timing, "perf_counter", lambda: took * len(taken))
    found = timing.compare(lambda: None, lambda: None, 0.5)
    assert (len(taken), len(found.before)) == (looks, 15 * looks)
    assert len({schedule.seed for schedule in taken}) == looks


def test_slow_calls_are_compared_until_they_disagree(monkeypatch):
    now = 0.0
    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    monkeypatch.setitem(timing._CLOCKS, "wall", lambda: now)

    def taking(*seconds):
        left = iter(seconds)

        def call():
            nonlocal now
            now += next(left, 1.0)

        return call

    # One call of each to warm up, then the rounds.
    for after, rounds in ((taking(), 3), (taking(*[2.0] * 9), 7), (taking(*[2.0] * 5), 5)):
        found = timing.compare(taking(), after, 0.1)
        assert len(found.before) == len(found.after) == rounds


def test_a_first_call_that_takes_long_does_not_say_how_many_make_a_sample(monkeypatch):
    clock = [0.0]
    monkeypatch.setitem(timing._CLOCKS, "wall", lambda: clock[0])
    left = iter([60.0])

    def compiles():
        clock[0] += next(left, 1e-6)

    schedule = Schedule(budget_s=0, min_rounds=3, max_rounds=3, sample_s=1e-3)
    (samples,) = timing.interleave([compiles], schedule)
    assert samples.calls_per_sample == 1000
    assert samples.seconds == pytest.approx([1e-6] * 3)


def test_every_round_has_everyone_once_in_changing_order():
    ran = []
    timing.interleave([lambda name=name: ran.append(name) for name in "abc"], ONCE)
    rounds = ["".join(ran[-60:][start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 3


def test_a_rest_ends_with_an_untimed_call(monkeypatch):
    ran = []
    monkeypatch.setattr(timing, "sleep", lambda seconds: ran.append(seconds))
    schedule = Schedule(budget_s=0, min_rounds=2, max_rounds=2, sample_s=0, rest_s=0.5)
    (samples,) = timing.interleave([lambda: ran.append("call")], schedule)
    assert ran[-6:] == [0.5, "call", "call"] * 2
    assert (samples.calls_per_sample, len(samples.seconds)) == (1, 2)


def test_the_budget_ends_the_rounds_and_the_smallest_number_does_not(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setitem(timing._CLOCKS, "wall", timing.perf_counter)
    few = Schedule(budget_s=0, min_rounds=3, max_rounds=50, sample_s=1)
    many = Schedule(budget_s=1e9, min_rounds=3, max_rounds=50, sample_s=1)
    assert len(timing.interleave([lambda: None], few)[0].seconds) == 3
    assert len(timing.interleave([lambda: None], many)[0].seconds) == 50


def test_nothing_is_collected_within_a_sample():
    enabled = []
    timing.interleave([lambda: enabled.append(gc.isenabled())], ONCE)
    assert enabled[0] is True  # the call that warms up
    assert not any(enabled[1:])
    assert gc.isenabled()
