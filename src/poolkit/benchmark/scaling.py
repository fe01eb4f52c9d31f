"""The time of one pooling from a thousand elements to a thousand million."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import poolkit
from poolkit.timing import Quartiles, Schedule, interleave

from .calibration import Calibrator
from .document import in_words

# Planes of 32 x 32, more and more of them: one is about a thousand elements.
SIDE = 32
# One for each half decade: 1, 3, 10, ... planes, to 1.024e9 elements.
PLANES = tuple(round(10 ** (half / 2)) for half in range(13))
QUICK_PLANES = tuple(count for count in PLANES if count <= 10_000)
# Torch eager takes seconds beyond this.
EAGER_MOST = 1.1e8
# Bytes of one point for each element: the input 4, an output 1, the copy's target 2.5, and room.
BYTES_PER_ELEMENT = 9

FULL = Schedule(budget_s=3.0, min_rounds=5, max_rounds=41, sample_s=1e-3, rest_s=0.015)
QUICK = Schedule(budget_s=0.5, min_rounds=3, max_rounds=11, sample_s=1e-3, rest_s=0.015)

SERIES = {
    "max": "poolkit max 2x2s2",
    "avg": "poolkit avg 2x2s2",
    "eager": "torch eager max 2x2s2",
    "copy": "copy of the bytes of either",
}


@dataclass(frozen=True)
class Point:
    """Milliseconds a call of each of `SERIES` on float32 inputs of one size; of what gave a wrong
    answer, none, but what is wrong with it."""

    elements: int
    threads: int
    ms: dict[str, Quartiles]
    wrong: dict[str, str] = field(default_factory=dict)

    def ns_per_element(self, series: str) -> float:
        return 1e6 * self.ms[series].median / self.elements


@dataclass(frozen=True)
class Scaling:
    """All points, and the sizes that were left out for want of memory."""

    points: Sequence[Point]
    left_out: Sequence[int]


def measure(
    planes: Sequence[int],
    threads: Sequence[int],
    schedule: Schedule,
    calibrator: Calibrator,
    tell: Callable[[str], None],
) -> Scaling:
    """Time each size, with each number of threads, as long as there is memory."""
    points, left_out = [], []
    before = torch.get_num_threads()
    try:
        for count in planes:
            elements = count * SIDE * SIDE
            if elements * BYTES_PER_ELEMENT > memory_left():
                left_out.append(elements)
                continue
            x = torch.rand(1, count, SIDE, SIDE)
            for number in threads:
                what = f"{elements} elements, {in_words(number)}"
                tell(what)
                calibrator.probe(what)
                torch.set_num_threads(number)
                points.append(_point(x, number, schedule))
            del x  # before the next one, three times as large, is made
    finally:
        torch.set_num_threads(before)
    return Scaling(points, left_out)


@torch.inference_mode()
def _point(x: Tensor, threads: int, schedule: Schedule) -> Point:
    moved = x.numel() + x.numel() // 4
    source, target = x.view(-1)[: moved // 2], torch.zeros(moved // 2)
    calls: dict[str, Callable[[], Tensor]] = {
        "max": lambda: poolkit.max_pool2d(x, 2),
        "avg": lambda: poolkit.avg_pool2d(x, 2),
        "copy": lambda: target.copy_(source),
    }
    if x.numel() <= EAGER_MOST:
        calls["eager"] = lambda: F.max_pool2d(x, 2)
    wrong = {}
    for name, right in (("max", F.max_pool2d), ("avg", F.avg_pool2d)):
        if found := _mistake(x, calls[name](), right):
            wrong[name] = found
            del calls[name]
    timed = interleave(list(calls.values()), schedule)
    ms = {
        name: Quartiles.of([1e3 * seconds for seconds in samples.seconds])
        for name, samples in zip(calls, timed, strict=True)
    }
    return Point(x.numel(), threads, ms, wrong)


def _mistake(x: Tensor, got: Tensor, torch_function: Callable[[Tensor, int], Tensor]) -> str | None:
    """What is wrong with the planes at either end: an offset that overflowed would show there."""
    for part in (slice(0, 64), slice(-64, None)):
        try:
            torch.testing.assert_close(got[:, part], torch_function(x[:, part], 2))
        except AssertionError as error:
            return str(error).partition("\n")[0]
    return None


def growth(points: Sequence[Point], series: str) -> float | None:
    """The exponent k of time ~ elements^k over the last two decades: 1 where the cost is linear.

    The slope of the straight line that fits the logarithms best; None for fewer than 3 points.
    """
    largest = max((point.elements for point in points), default=0)
    fitted = [p for p in points if series in p.ms and 110 * p.elements >= largest]
    if len(fitted) < 3:
        return None
    return statistics.linear_regression(
        [math.log(point.elements) for point in fitted],
        [math.log(point.ms[series].median) for point in fitted],
    ).slope


def memory_left() -> int:
    """Bytes that this process may still take: what the system has, and what its group may have."""
    system = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    left = [1024 * int(line.split()[1]) for line in system]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        left.append(int(limit[0]) - int(used[0]))
    return min(left, default=sys.maxsize)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
