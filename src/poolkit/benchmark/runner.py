"""One case: every peer's answer is checked first, then those that are right are timed."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from poolkit.timing import Quartiles, Schedule, interleave, paired_ratios

from .answers import Answer, make_input, mistake, right_answer
from .calibration import change
from .cases import Case
from .peers import Call, Peer, UnsupportedError

# The rest lets the threads of the peer measured before go to sleep: they go on spinning for up to
# 10 ms after their last call (libgomp's do) and would take a core from the next one.
FULL = Schedule(budget_s=5.0, min_rounds=9, max_rounds=41, sample_s=1e-3, rest_s=0.015)
QUICK = Schedule(budget_s=2.0, min_rounds=5, max_rounds=15, sample_s=1e-3, rest_s=0.015)
# More than this between the copy's time early and late: the machine changed its speed meanwhile.
DRIFT_LIMIT = 0.2

Status = Literal["timed", "unsupported", "missing", "wrong", "failed"]


@dataclass
class Outcome:
    """What came of one peer on one case: times in seconds per call, or the reason for none."""

    status: Status
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    calls_per_sample: int = 0


@dataclass
class CaseResult:
    """One row of the report."""

    case: Case
    threads: int
    outcomes: dict[str, Outcome]
    # Poolkit on other cases, which this one has a target against, timed in the same rounds.
    others: dict[str, Outcome] = field(default_factory=dict)

    def time(self, peer: str = "poolkit") -> Quartiles | None:
        outcome = self.outcomes.get(peer)
        return Quartiles.of(outcome.seconds) if outcome and outcome.seconds else None

    def ratio(self, peer: str, baseline: str = "poolkit") -> Quartiles | None:
        """Time of `peer` over time of `baseline`, paired by round: above 1, baseline is faster."""
        timed = {**self.others, **self.outcomes}
        above, below = timed.get(peer), timed.get(baseline)
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

    def drift(self) -> float | None:
        """The copy's time in the last third of the rounds over that in the first, minus 1."""
        outcome = self.outcomes.get("copy")
        if not outcome or not outcome.seconds:
            return None
        return change(outcome.seconds)

    @property
    def disturbed(self) -> bool:
        """The machine was not the same at the end of this case as at its beginning."""
        drift = self.drift()
        return drift is not None and not 1 / (1 + DRIFT_LIMIT) <= 1 + drift <= 1 + DRIFT_LIMIT


def measure(
    case: Case, peers: Sequence[Peer], schedule: Schedule, threads: int, others: Sequence[Case] = ()
) -> CaseResult:
    """Check every peer's answer, then time those that are right, interleaved.

    others: the cases that this one has targets against, which poolkit runs in the same rounds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = [peer for peer in peers if peer.name == "poolkit"]
        prepared = _prepare(case, peers)
        compared = {other.name: _prepare(other, ours)["poolkit"] for other in others if ours}
        running = [
            (outcome, call)
            for outcome, call in (*prepared.values(), *compared.values())
            if call is not None
        ]
        with torch.inference_mode(not case.differentiated):
            timed = interleave([call for _, call in running], schedule)
        for (outcome, _), samples in zip(running, timed, strict=True):
            outcome.seconds = samples.seconds
            outcome.calls_per_sample = samples.calls_per_sample
    finally:
        torch.set_num_threads(before)
    return CaseResult(
        case,
        threads,
        {name: outcome for name, (outcome, _) in prepared.items()},
        {name: outcome for name, (outcome, _) in compared.items()},
    )


def _prepare(case: Case, peers: Sequence[Peer]) -> dict[str, tuple[Outcome, Call | None]]:
    """What each peer has to say to a case, and its call where the answer is right."""
    x = make_input(case)
    want = right_answer(case, x)
    # torch eager at its best: without autograd's bookkeeping where there is no backward.
    with torch.inference_mode(not case.differentiated):
        return {peer.name: _checked(peer, case, x, want) for peer in peers}


def _checked(peer: Peer, case: Case, x: Tensor, want: Answer) -> tuple[Outcome, Call | None]:
    """A call of the peer whose answer is right, or the reason for none."""
    try:
        call = peer.prepare(case, x)
        wrong = mistake(case, peer.answer(call()), want) if peer.computes else None
    except UnsupportedError as reason:
        return Outcome("unsupported", str(reason)), None
    # A peer may raise anything of its own; one that fails must not end the others.
    except Exception as error:
        return Outcome("failed", _first_line(error)), None
    return (Outcome("wrong", wrong), None) if wrong else (Outcome("timed"), call)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' ...')}"
