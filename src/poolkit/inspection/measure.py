"""Time and memory of a pooling, measured so that two implementations can be compared.

Contenders run interleaved in one process: a machine that slows down half way slows both. Every
sample of one has a partner of the other taken just before or after, and it is the ratio of
partners that is judged, with an interval that needs no assumption about the noise.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from statistics import median
from time import perf_counter
from typing import Any

import torch

#: A sample is repeated until it lasts this long: the clock and the call of it cost under 1 us.
SAMPLE_SECONDS = 100e-6
MIN_ROUNDS = 7
MAX_ROUNDS = 201


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
    def ratios(self) -> list[float]:
        return sorted(b / a for b, a in zip(self.before, self.after, strict=True))

    @property
    def speedup(self) -> float:
        """Median of before / after over the pairs; above 1 means that ``after`` is faster."""
        return median(self.ratios)

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

        >>> Comparison((1.0,) * 25, tuple(1 + i / 100 for i in range(25))).interval[1] < 1
        True
        """
        ratios = self.ratios
        n = len(ratios)
        low = max(0, int((n - 2.58 * sqrt(n)) / 2))
        return ratios[low], ratios[n - 1 - low]


def interleave(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Time ``calls`` in turns for about ``seconds`` and return the seconds a call of each sample.

    Odd rounds run backwards, so none of them always follows the same neighbour's warm cache.
    """
    repeats = []
    for call in calls:
        call()  # the first call plans, allocates and loads
        start = perf_counter()
        call()
        repeats.append(max(1, min(1000, int(SAMPLE_SECONDS / max(perf_counter() - start, 1e-7)))))
    samples: list[list[float]] = [[] for _ in calls]
    deadline = perf_counter() + seconds
    with _collector_paused():
        for round_number in range(MAX_ROUNDS):
            if round_number >= MIN_ROUNDS and perf_counter() > deadline:
                break
            order = range(len(calls)) if round_number % 2 else range(len(calls) - 1, -1, -1)
            for index in order:
                call, count = calls[index], repeats[index]
                start = perf_counter()
                for _ in range(count):
                    call()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                samples[index].append((perf_counter() - start) / count)
    return samples


def compare(
    before: Callable[[], Any], after: Callable[[], Any], seconds: float, patience: int = 3
) -> Comparison:
    """Time two calls against each other for about ``seconds``, without gradients.

    As long as it is undecided which is faster, that is done again, up to ``patience`` times in
    all: a busy machine needs more samples than a quiet one.
    """
    found = Comparison((), ())
    for _ in range(patience):
        with torch.no_grad():
            first, second = interleave([before, after], seconds)
        found = found.join(Comparison(tuple(first), tuple(second)))
        if not found.undecided:
            break
    return found


def saved_for_backward(call: Callable[[torch.Tensor], Any], x: torch.Tensor) -> int | None:
    """Bytes that a call of ``x`` keeps alive until its backward, or None where it has none.

    Exact: each storage that autograd saves is counted once, whole. Counted is what this call
    asks to keep; where another layer keeps the same tensor, the memory is shared.
    """
    if not (x.is_floating_point() or x.is_complex()):
        return None
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        # The storage itself is held, so that its address cannot be given to the next one.
        storages[storage.data_ptr()] = storage
        return saved

    leaf = x.detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = call(leaf)
    first = out[0] if isinstance(out, tuple) else out
    if not isinstance(first, torch.Tensor) or not first.requires_grad:
        return None
    return sum(storage.nbytes() for storage in storages.values())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection inside a sample: it would land on whoever happens to run."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
