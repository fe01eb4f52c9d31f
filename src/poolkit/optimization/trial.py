"""Trying what could stand in a layer's place: proven equal first, then timed, then chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from poolkit.errors import PoolError, PoolValueError
from poolkit.inspection.inspector import Progress
from poolkit.inspection.trace import run_model, tensors_in
from poolkit.optimization.equality import Difference
from poolkit.optimization.records import Changes, LayerChange
from poolkit.timing import Call, Comparison, compare, interleave, within


@dataclass(frozen=True)
class Task:
    """What is to be optimised, and how: the same for all tiers."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tolerance: float
    seconds: float
    filter_fn: Callable[[nn.Module, str], bool] | None
    progress: Progress

    def forward(self) -> Any:
        """The outputs of the model.

        Raises:
            PoolError: it raised, or it writes to its inputs, which are to be the same in every run.
        """
        inputs = [x for x in tensors_in((self.args, dict(self.kwargs))) if not x.is_inference()]
        before = [x._version for x in inputs]
        outputs = run_model(self.model, self.args, self.kwargs)
        if [x._version for x in inputs] != before:
            raise PoolValueError(
                "the model writes to its inputs, so that no two runs are the same",
                "Let its first operation be one that is not in place",
            )
        return outputs

    def allows(self, module: nn.Module, name: str) -> bool:
        return self.filter_fn is None or bool(self.filter_fn(module, name))


@dataclass(frozen=True)
class Candidate:
    """Something that could stand in a layer's place.

    Attributes:
        words: what it is, for the report.
        prove: how far its results are from the layer's.
        run: all its calls of one run of the model.
    """

    words: str
    prove: Callable[[], Difference]
    run: Call


@dataclass(frozen=True)
class _Verdict:
    better: bool
    reason: str
    error: float | None = None
    timing: Comparison | None = None

    @property
    def speedup(self) -> float:
        return 0.0 if self.timing is None else self.timing.speedup

    @property
    def brief(self) -> str:
        return self.reason if self.timing is None else f"{self.speedup:.1f}×"


def choose(
    row: LayerChange, before: Call, candidates: Sequence[Candidate], seconds: float
) -> Candidate | None:
    """The fastest candidate that is equal, and faster than ``before`` beyond noise, or None.

    The figures and the reason are written into ``row``. Without time to measure it is the first
    that is equal, so the most promising ones come first, and the plainest last.
    """
    verdicts: list[tuple[Candidate, _Verdict]] = []
    for candidate in candidates:
        verdicts.append((candidate, _judge(before, candidate, seconds)))
        if verdicts[-1][1].better and seconds <= 0:
            break
    # Of none that is better, what is said of the plainest.
    best, verdict = max(reversed(verdicts), key=lambda pair: _rank(pair[1]))
    others = [f"{other.words}: {found.brief}" for other, found in verdicts if other is not best]
    row.status = "swapped" if verdict.better else "kept"
    row.reason = "; ".join([verdict.reason, *others])
    row.after = best.words if verdict.better else row.before
    row.error = verdict.error
    if verdict.timing is not None:
        row.before_ms, row.after_ms = verdict.timing.before_ms, verdict.timing.after_ms
        row.speedup = verdict.timing.speedup
    return best if verdict.better else None


def _judge(before: Call, candidate: Candidate, seconds: float) -> _Verdict:
    try:
        found = candidate.prove()
    except PoolError as error:
        return _Verdict(False, refusal(error))
    if found.problem:
        return _Verdict(False, found.problem, found.error)
    if seconds <= 0:
        return _Verdict(True, "equal; not timed", found.error)
    timing = compare(before, candidate.run, seconds)
    slowest, fastest = timing.interval
    if slowest > 1:
        return _Verdict(True, "equal and faster", found.error, timing)
    reason = "equal, but slower here" if fastest < 1 else "equal, but no faster beyond noise"
    return _Verdict(False, reason, found.error, timing)


def _rank(verdict: _Verdict) -> tuple[bool, float]:
    return verdict.better, verdict.speedup if verdict.better else 0.0


def refusal(error: PoolError) -> str:
    """Why poolkit does not take a layer, from what it raised."""
    return f"poolkit cannot: {error}".rstrip(".")


def alone(call: Call, seconds: float) -> float | None:
    """Milliseconds of a call that is compared with nothing; None without time to measure."""
    if seconds <= 0:
        return None
    with torch.no_grad():
        (samples,) = interleave([call], within(seconds / 4))
    return 1e3 * median(samples.seconds)


def is_slower(report: Changes, before: Call, after: Call, seconds: float) -> bool:
    """Whether the whole model came out slower; its times are written into ``report``."""
    timing = compare(before, after, seconds)
    report.model_ms = report.before_ms = timing.before_ms
    report.after_ms, report.speedup = timing.after_ms, timing.speedup
    return timing.interval[1] < 1
