"""Timing two or more calls so that they can be compared.

Contenders run interleaved in one process, each once a round and in random order: a machine that
slows down half way slows all of them, and none always follows the same neighbour's warm cache. A
ratio is taken within each round, where both times saw the same machine, and the median of these
paired ratios is reported: never the ratio of two times from different moments.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from numbers import Real
from statistics import median, quantiles
from time import perf_counter, process_time, sleep
from typing import Any, Literal

import torch

from poolkit.errors import PoolValueError

Call = Callable[[], Any]

_CLOCKS = {"wall": perf_counter, "process": process_time}
_LONG_S = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long to measure: rounds until the budget is spent, but at least `min_rounds`.

    Attributes:
        budget_s: seconds for all rounds together.
        seed: of the order of the contenders in each round.
        sample_s: a sample is as many calls as take about this many seconds, so that neither the
            resolution of the clock nor the call of it counts.
        rest_s: seconds of pause before each sample; an untimed call ends the pause.
        clock: what tells the seconds: "wall", or "process", for calls of one thread on a machine
            that does other work, too.
    """

    budget_s: float
    min_rounds: int
    max_rounds: int
    seed: int = 0
    sample_s: float = 100e-6  # the clock and the call of it cost under 1 us
    rest_s: float = 0.0
    clock: Literal["wall", "process"] = "wall"


@dataclass
class Samples:
    """The times of one contender: seconds per call, one for each round."""

    calls_per_sample: int
    seconds: list[float] = field(default_factory=list)


def interleave(
    calls: Sequence[Call],
    schedule: Schedule,
    settled: Callable[[list[Samples]], bool] = lambda found: False,
) -> list[Samples]:
    """Time `calls`, each once a round; the samples are in the order of `calls`.

    Args:
        settled: whether the rounds of a budget that is spent are enough, although they are fewer
            than the schedule's.
    """
    clock = _CLOCKS[schedule.clock]
    found = [Samples(_warmed(call, schedule.sample_s, clock)) for call in calls]
    order = list(range(len(calls)))
    shuffle = random.Random(schedule.seed).shuffle
    began = perf_counter()
    for done in range(schedule.max_rounds):
        spent = perf_counter() - began > schedule.budget_s
        if spent and (done >= schedule.min_rounds or settled(found)):
            break
        shuffle(order)
        for index in order:
            if schedule.rest_s:
                sleep(schedule.rest_s)
                # Wakes this contender's threads and brings its data back into the caches.
                calls[index]()
            samples, call = found[index], calls[index]
            seconds = _seconds_per_call(call, samples.calls_per_sample, clock)
            if not samples.seconds and seconds * samples.calls_per_sample < schedule.sample_s / 2:
                samples.calls_per_sample = _calls_per_sample(call, schedule.sample_s, clock)
                seconds = _seconds_per_call(call, samples.calls_per_sample, clock)
            samples.seconds.append(seconds)
    return found


def _warmed(call: Call, sample_s: float, clock: Callable[[], float]) -> int:
    """Calls once, to plan, allocate and load, and says how many calls a sample takes. What takes
    long at first is not called again for that: the first sample shows whether it always does."""
    began = clock()
    call()
    _finish()
    return 1 if clock() - began > _LONG_S else _calls_per_sample(call, sample_s, clock)


def _calls_per_sample(call: Call, sample_s: float, clock: Callable[[], float]) -> int:
    """How many calls take `sample_s`, from doubling batches of them."""
    count = 1
    while True:
        seconds = _seconds_per_call(call, count, clock)
        if seconds * count >= sample_s / 2:
            return max(1, round(sample_s / seconds))
        count *= 2


def _seconds_per_call(call: Call, count: int, clock: Callable[[], float]) -> float:
    """Seconds per call over `count` calls, without garbage collection: whoever happens to run
    would pay for it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        _finish()
        began = clock()
        for _ in range(count):
            call()
        _finish()
        return (clock() - began) / count
    finally:
        if collecting:
            gc.enable()


def _finish() -> None:
    """Wait for what was started on a GPU, if any is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def paired_ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Time of one contender over that of another, round by round.

    >>> paired_ratios([4.0, 40.0], [1.0, 10.0])
    [4.0, 4.0]
    """
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Quartiles:
    """The median of a set of measurements and the range of its middle half."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """
        >>> Quartiles.of([5.0, 1.0, 3.0, 2.0, 4.0])
        Quartiles(low=2.0, median=3.0, high=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Comparison:
    """Paired samples of two calls, in seconds a call.

    >>> Comparison((2.0, 2.0, 4.0), (1.0, 1.0, 2.0)).speedup
    2.0
    """

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def before_ms(self) -> float:
        return 1e3 * median(self.before)

    @property
    def after_ms(self) -> float:
        return 1e3 * median(self.after)

    @property
    def speedup(self) -> float:
        """Median of before / after over the pairs; above 1 means that ``after`` is faster."""
        return median(paired_ratios(self.before, self.after))

    @property
    def undecided(self) -> bool:
        """Whether neither is faster beyond the noise."""
        low, high = self.interval
        return low <= 1 <= high

    def join(self, more: Comparison) -> Comparison:
        return Comparison(self.before + more.before, self.after + more.after)

    @property
    def interval(self) -> tuple[float, float]:
        """About 99 % interval of :attr:`speedup`, from order statistics of the pairs.

        It assumes nothing about the noise.

        >>> Comparison((1.0,) * 25, tuple(1 + i / 100 for i in range(25))).interval[1] < 1
        True
        """
        ratios = sorted(paired_ratios(self.before, self.after))
        n = len(ratios)
        low = max(0, int((n - 2.58 * sqrt(n)) / 2))
        return ratios[low], ratios[n - 1 - low]


def compare(before: Call, after: Call, seconds: float, patience: int = 3) -> Comparison:
    """Time two calls against each other for about ``seconds``, without gradients.

    As long as it is undecided which is faster, that is done again, up to ``patience`` times in
    all: a busy machine needs more samples than a quiet one. Calls so slow that the fewest rounds
    took longer than that are not repeated; and as these must all agree, there are no more of them
    once they do not, but three for a median.
    """

    def disagree(found: list[Samples]) -> bool:
        first, second = (tuple(samples.seconds) for samples in found)
        return len(first) >= 3 and Comparison(first, second).undecided

    found = Comparison((), ())
    began = perf_counter()
    for seed in range(patience):
        with torch.no_grad():
            first, second = interleave([before, after], within(seconds, seed), disagree)
        found = found.join(Comparison(tuple(first.seconds), tuple(second.seconds)))
        if not found.undecided or perf_counter() - began > patience * seconds:
            break
    return found


def within(seconds: float, seed: int = 0) -> Schedule:
    """The schedule of a measurement that may take about ``seconds``."""
    return Schedule(seconds, min_rounds=7, max_rounds=201, seed=seed)


def check_seconds(seconds: float) -> None:
    """Raise PoolValueError unless ``seconds`` is a time that can be waited for."""
    if not isinstance(seconds, Real) or not isfinite(seconds) or seconds < 0:
        raise PoolValueError(
            f"seconds must be a finite number of at least 0, got {seconds!r}",
            "Give the time to spend on measuring each layer, or 0 to time nothing",
        )
