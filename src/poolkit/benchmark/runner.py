"""One case: every peer's answer is checked first, then those that are right are timed."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from poolkit.timing import Quartiles, Schedule, interleave, paired_ratios

from .answers import make_input, mistake, right_answer
from .cases import Case
from .peers import Call, Peer, UnsupportedError

# The rest lets the threads of the peer measured before go to sleep: they go on spinning for up to
# 10 ms after their last call (libgomp's do) and would take a core from the next one.
FULL = Schedule(budget_s=5.0, min_rounds=9, max_rounds=41, sample_s=1e-3, rest_s=0.015)
QUICK = Schedule(budget_s=2.0, min_rounds=5, max_rounds=15, sample_s=1e-3, rest_s=0.015)
# More than this between the copy's time early and late: the machine changed its speed meanwhile.
DRIFT_LIMIT = 0.2

Status = Literal["timed", "unsupported", "missing", "wrong", "failed"]
Verdict = Literal["met", "missed", "within noise"]


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
        return Quartiles.of(paired_ratios(above.seconds, below.seconds))

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


def measure(case: Case, peers: Sequence[Peer], schedule: Schedule, threads: int) -> CaseResult:
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
            timed = interleave(list(calls.values()), schedule)
            for name, samples in zip(calls, timed, strict=True):
                outcomes[name].seconds = samples.seconds
                outcomes[name].calls_per_sample = samples.calls_per_sample
    finally:
        torch.set_num_threads(before)
    return CaseResult(case, threads, outcomes)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' ...')}"
