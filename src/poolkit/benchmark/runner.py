"""Timing: every peer once per round, in random order, so that noise falls on all of them alike.

The machine's speed drifts while a benchmark runs. A ratio is therefore taken within each round,
where both times saw the same machine, and the median of these paired ratios is reported: never
the ratio of two times from different moments.
"""

from __future__ import annotations

import gc
import random
import statistics
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from .answers import make_input, mistake, right_answer
from .cases import Case
from .peers import Call, Peer, UnsupportedError

# A sample is as many calls as take this long, so that the clock's resolution does not matter.
SAMPLE_S = 1e-3
# The pause before each sample. The threads of the peer measured before go on spinning for up to
# 10 ms after their last call (libgomp's do) and would take a core from the next one.
REST_S = 0.015
# More than this between the copy's time early and late: the machine changed its speed meanwhile.
DRIFT_LIMIT = 0.2

Status = Literal["timed", "unsupported", "missing", "wrong", "failed"]
Verdict = Literal["met", "missed", "within noise"]


@dataclass(frozen=True)
class Settings:
    """How long to measure: rounds until the budget is spent, but at least `min_rounds`."""

    budget_s: float = 5.0
    min_rounds: int = 9
    max_rounds: int = 41
    seed: int = 0
    sample_s: float = SAMPLE_S
    rest_s: float = REST_S


QUICK = Settings(budget_s=2.0, min_rounds=5, max_rounds=15)


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
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass
class Outcome:
    """What came of one peer on one case: times in seconds per call, or the reason for none."""

    status: Status
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    calls_per_sample: int = 0


@dataclass(frozen=True)
class TargetResult:
    """A stated target and the paired ratio that was measured against it."""

    against: str
    wanted: float
    got: Quartiles

    @property
    def verdict(self) -> Verdict:
        if self.got.median >= self.wanted:
            return "met"
        return "within noise" if self.got.high >= self.wanted else "missed"


@dataclass
class CaseResult:
    """One row of the report."""

    case: Case
    threads: int
    outcomes: dict[str, Outcome]

    def time(self, peer: str) -> Quartiles | None:
        outcome = self.outcomes.get(peer)
        return Quartiles.of(outcome.seconds) if outcome and outcome.seconds else None

    def ratio(self, peer: str, baseline: str = "poolkit") -> Quartiles | None:
        """Time of `peer` over time of `baseline`, paired by round: above 1, baseline is faster."""
        above, below = self.outcomes.get(peer), self.outcomes.get(baseline)
        if not above or not below or not above.seconds or not below.seconds:
            return None
        pairs = zip(above.seconds, below.seconds, strict=True)
        return Quartiles.of([theirs / ours for theirs, ours in pairs])

    def best_peer(self) -> str | None:
        """The fastest implementation other than poolkit; the copy computes nothing."""
        times = {
            peer: statistics.median(outcome.seconds)
            for peer, outcome in self.outcomes.items()
            if outcome.seconds and peer not in ("poolkit", "copy")
        }
        return min(times, key=lambda peer: times[peer]) if times else None

    def targets(self) -> list[TargetResult]:
        """Every stated target whose two sides were both timed."""
        measured = {peer: self.ratio(peer) for peer in self.case.targets()}
        return [
            TargetResult(peer, self.case.targets()[peer], ratio)
            for peer, ratio in measured.items()
            if ratio is not None
        ]

    def drift(self) -> float | None:
        """The copy's time in the last third of the rounds over that in the first, minus 1."""
        outcome = self.outcomes.get("copy")
        if not outcome or not outcome.seconds:
            return None
        third = max(1, len(outcome.seconds) // 3)
        first, last = outcome.seconds[:third], outcome.seconds[-third:]
        return statistics.median(last) / statistics.median(first) - 1

    @property
    def disturbed(self) -> bool:
        """The machine was not the same at the end of this case as at its beginning."""
        drift = self.drift()
        return drift is not None and not 1 / (1 + DRIFT_LIMIT) <= 1 + drift <= 1 + DRIFT_LIMIT


def measure(case: Case, peers: Sequence[Peer], settings: Settings, threads: int) -> CaseResult:
    """Check every peer's answer, then time those that are right, interleaved."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = make_input(case)
        want = right_answer(case, x)
        outcomes: dict[str, Outcome] = {}
        calls: dict[str, Call] = {}
        # torch eager at its best: without autograd's bookkeeping where there is no backward.
        with torch.inference_mode(not case.training):
            for peer in peers:
                outcomes[peer.name] = Outcome("timed")
                try:
                    call = peer.prepare(case, x)
                    wrong = mistake(case, peer.answer(call()), want) if peer.computes else None
                except UnsupportedError as reason:
                    outcomes[peer.name] = Outcome("unsupported", str(reason))
                # A peer may raise anything of its own; one that fails must not end the others.
                except Exception as error:
                    outcomes[peer.name] = Outcome("failed", _first_line(error))
                else:
                    if wrong:
                        outcomes[peer.name] = Outcome("wrong", wrong)
                    else:
                        calls[peer.name] = call
            del want
            _time_rounds(calls, outcomes, settings)
    finally:
        torch.set_num_threads(before)
    return CaseResult(case, threads, outcomes)


def _time_rounds(calls: dict[str, Call], outcomes: dict[str, Outcome], settings: Settings) -> None:
    for name, call in calls.items():
        outcomes[name].calls_per_sample = _calls_per_sample(call, settings.sample_s)
    order = list(calls)
    shuffle = random.Random(settings.seed).shuffle
    began = time.perf_counter()
    for done in range(settings.max_rounds):
        if done >= settings.min_rounds and time.perf_counter() - began > settings.budget_s:
            break
        shuffle(order)
        for name in order:
            time.sleep(settings.rest_s)
            seconds = _sample(calls[name], outcomes[name].calls_per_sample)
            outcomes[name].seconds.append(seconds)


def _calls_per_sample(call: Call, sample_s: float) -> int:
    """How many calls take `sample_s`, from doubling batches of them; this also warms up."""
    count = 1
    while True:
        seconds = _sample(call, count)
        if seconds * count >= sample_s / 2:
            return max(1, round(sample_s / seconds))
        count *= 2


def _sample(call: Call, count: int) -> float:
    """Seconds per call, over `count` calls after one untimed call.

    The untimed call wakes the peer's threads and brings back its own data into the caches.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        call()
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) / count
    finally:
        if collecting:
            gc.enable()


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' ...')}"
