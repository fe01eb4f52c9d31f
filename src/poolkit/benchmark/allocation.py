"""What the memory of an output costs, apart from what is computed into it.

The system hands out memory as pages of zeros, each made when it is first written to. Whether a new
tensor pays for that depends on what its allocator has left over from older ones. Here the same
pooling writes into one output again and again, into pages that nobody has touched, and into a new
tensor of torch's.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import poolkit
from poolkit.plan import plan_for
from poolkit.timing import Quartiles, Schedule, interleave, paired_ratios

from .answers import make_input
from .cases import ITEMSIZE, Case
from .peers import Copy, poolkit_operation

PAGE = 4096


def available() -> bool:
    """Whether this system lets the size of pages be asked for, as Linux does."""
    return hasattr(mmap, "MADV_HUGEPAGE")


@dataclass(frozen=True)
class Allocation:
    """Milliseconds a call of one case with one number of threads, by where the output comes from;
    the keys are those of `ROWS`."""

    case: str
    threads: int
    output_bytes: int
    ms: dict[str, Quartiles]
    fresh_over_again: Quartiles  # paired by round

    def sentence(self) -> str:
        again, fresh = self.ms["again"].median, self.ms["fresh"].median
        return (
            f"{self.case}, {self.output_bytes / 1e6:.1f} MB of output: pooled into fresh pages in "
            f"{self.fresh_over_again.median:.2f} times the time of pooling into the same output "
            f"again; the pages cost {fresh - again:.2f} ms, the pooling {again:.2f} ms."
        )


ROWS = {
    "again": "pooled into the same output again",
    "new": "pooled into a new tensor each call, as users get it",
    "fresh": "pooled into fresh pages, given back after each call",
    "huge": "fresh pages alone, 2 MB each where the system has them: one byte of each 4 KB written",
    "small": "fresh pages alone, 4 KB each",
    "copy": "copy of the bytes of the case, into the same memory again",
}


def measure(case: Case, threads: int, schedule: Schedule) -> Allocation:
    """Time a maximum, channels in front, into outputs from different places."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kept = torch.zeros(case.output_shape, dtype=getattr(torch, case.dtype))
        calls = _calls(case, threads, kept)
        with torch.inference_mode():
            timed = dict(zip(calls, interleave(list(calls.values()), schedule), strict=True))
    finally:
        torch.set_num_threads(before)
    ratios = paired_ratios(timed["fresh"].seconds, timed["again"].seconds)
    return Allocation(
        case.name,
        threads,
        _output_bytes(case),
        {name: Quartiles.of([1e3 * s for s in samples.seconds]) for name, samples in timed.items()},
        Quartiles.of(ratios),
    )


def _output_bytes(case: Case) -> int:
    return ITEMSIZE[case.dtype] * math.prod(case.output_shape)


def _calls(case: Case, threads: int, kept: Tensor) -> dict[str, Callable[[], object]]:
    x = make_input(case)
    window = poolkit.Sliding(case.kernel_size, stride=case.stride, padding=case.padding)
    native = plan_for(window, poolkit.Max(), case.spatial, case.dtype).native
    assert native is not None, "every dtype of the table has a maximum"
    outer = math.prod(case.shape[:2])
    size = _output_bytes(case)
    operation = poolkit_operation(case)

    def pool_into(address: int) -> None:
        native.forward(x.data_ptr(), address, 0, outer, 1, threads)

    def fresh() -> None:
        with _fresh_memory(size) as memory:
            pool_into(np.frombuffer(memory, np.uint8).ctypes.data)

    def touch(advice: int) -> None:
        with _fresh_memory(size) as memory:
            memory.madvise(advice)
            np.frombuffer(memory, np.uint8)[::PAGE] = 1

    return {
        "again": lambda: pool_into(kept.data_ptr()),
        "new": lambda: operation(x),
        "fresh": fresh,
        "huge": lambda: touch(mmap.MADV_HUGEPAGE),
        "small": lambda: touch(mmap.MADV_NOHUGEPAGE),
        "copy": Copy(threads).prepare(case, x),
    }


def _fresh_memory(size: int) -> mmap.mmap:
    """Pages of zeros that the system has yet to make."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
