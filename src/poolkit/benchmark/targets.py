"""What was asked for, what was measured, and by how much the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import mean
from typing import Literal

from poolkit.timing import Quartiles

from .cases import BEST, ONE_THREAD, Target
from .runner import CaseResult

Verdict = Literal["met", "within noise", "missed"]


@dataclass(frozen=True)
class TargetResult:
    """A target and the ratio that was measured against it; `subject` is a case, or all of them."""

    subject: str
    target: Target
    got: Quartiles

    @property
    def excess(self) -> float:
        """By what part poolkit's time is above the one asked for; negative: below it."""
        if self.target.at_most:
            return self.got.median / self.target.wanted - 1
        return self.target.wanted / self.got.median - 1

    @property
    def verdict(self) -> Verdict:
        """Met where the median is; within noise where only the better quartile is."""
        if self.excess <= 0:
            return "met"
        if self.target.at_most:
            reached = self.got.low <= self.target.wanted
        else:
            reached = self.got.high >= self.target.wanted
        return "within noise" if reached else "missed"

    def asked(self, titles: Mapping[str, str]) -> str:
        """The target as text; `titles` are those of the peers."""
        against = titles.get(self.target.against, self.target.against)
        if self.target.at_most:
            return f"at most {self.target.wanted:g}x the time of {against}"
        return f"at least {self.target.wanted:g}x as fast as {against}"


def results_of(result: CaseResult, alone: CaseResult | None) -> list[TargetResult]:
    """Every target of a case whose two sides were both timed.

    alone: the same case on one thread.
    """
    measured = [(target, _measured(result, target, alone)) for target in result.case.targets]
    return [TargetResult(result.case.name, target, got) for target, got in measured if got]


def unmeasured(result: CaseResult, alone: CaseResult | None) -> list[Target]:
    """The targets of a case that want a peer, or a number of threads, that did not run."""
    found = [held.target for held in results_of(result, alone)]
    due = [t for t in result.case.targets if t.against != ONE_THREAD or result.threads == 2]
    return [target for target in due if target not in found]


def _measured(result: CaseResult, target: Target, alone: CaseResult | None) -> Quartiles | None:
    if target.against == ONE_THREAD:
        return scaling(result, alone) if result.threads == 2 else None
    against = result.best_peer() if target.against == BEST else target.against
    if against is None:
        return None
    return result.ratio("poolkit", against) if target.at_most else result.ratio(against)


def scaling(result: CaseResult, alone: CaseResult | None) -> Quartiles | None:
    """Time on one thread over time on more. Not of paired rounds: the two were measured one after
    the other, so the range is the widest that the quartiles allow."""
    many, one = result.time(), alone.time() if alone is not None else None
    if many is None or one is None or result.threads == 1:
        return None
    return Quartiles(one.low / many.high, one.median / many.median, one.high / many.low)


def geometric_mean(results: Sequence[CaseResult]) -> float | None:
    """Of the time of the best peer over poolkit's, over all cases that have both."""
    ratios = [
        ratio.median
        for result in results
        if (best := result.best_peer()) and (ratio := result.ratio(best))
    ]
    return exp(mean(map(log, ratios))) if ratios else None


def summary(results: Sequence[TargetResult], titles: Mapping[str, str]) -> str:
    """How many are met, and which are not, in one line."""
    if not results:
        return "no target was measured"
    met = sum(result.verdict == "met" for result in results)
    parts = [f"{met} of {len(results)} targets met"]
    for verdict in ("missed", "within noise"):
        named = [
            f"{result.subject} ({result.asked(titles)}: {result.got.median:.3g}x, "
            f"{result.excess:.0%} too slow)"
            for result in results
            if result.verdict == verdict
        ]
        if named:
            parts.append(f"{verdict}: {', '.join(named)}")
    return "; ".join(parts)
