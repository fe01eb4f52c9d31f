"""What it costs to pool bags of embeddings: against torch's EmbeddingBag, and rows gathered first.

A million entries in a hundred thousand bags of skewed lengths, of a table of a hundred thousand
rows of 64 features; forward, and with the gradient of the table. Times are over poolkit's. Peak
memory is what a call holds beyond its inputs, by torch's profiler.

    python benchmarks/bags.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from segments import ROWS, SEGMENTS, WIDTH, skewed_lengths
from torch import Tensor
from torch.nn import functional as F

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

TABLE = 100_000
SCHEDULE = Schedule(budget_s=8, min_rounds=3, max_rounds=15, sample_s=1e-2)
Call = Callable[[Tensor, "Tensor | None"], Tensor]


def ways(index: Tensor, lengths: Tensor, mode: str) -> dict[str, Call]:
    offsets = lengths.cumsum(0) - lengths
    segments = poolkit.Segments(offsets=torch.cat([offsets, torch.tensor([ROWS])]))

    def gathered(table: Tensor, weights: Tensor | None) -> Tensor:
        rows = table[index] if weights is None else table[index] * weights[:, None]
        pooled: Tensor = poolkit.pool(rows, segments, mode)
        return pooled

    return {
        "poolkit": lambda table, weights: poolkit.embedding_bag(
            index, table, offsets, mode, per_sample_weights=weights
        ),
        "EmbeddingBag": lambda table, weights: F.embedding_bag(
            index, table, offsets, mode=mode, per_sample_weights=weights
        ),
        "rows gathered": gathered,
    }


def peak(call: Callable[[], object]) -> float:
    """MB held at once by what a call allocates."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 1e6


def main() -> None:
    lengths = skewed_lengths()
    index = torch.randint(TABLE, (ROWS,), generator=torch.Generator().manual_seed(2))
    table = torch.randn(TABLE, WIDTH)
    scale, grad = torch.rand(ROWS), torch.randn(SEGMENTS, WIDTH)
    print(f"lengths from {lengths.min()} to {lengths.max()}, {poolkit.info()['isa']}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for mode, weights in (("sum", None), ("mean", None), ("max", None), ("sum", scale)):
            calls = ways(index, lengths, mode)
            leaf = table.clone().requires_grad_()

            def trained(
                call: Call, leaf: Tensor = leaf, weights: Tensor | None = weights
            ) -> Tensor:
                return torch.autograd.grad(call(leaf, weights), leaf, grad)[0]

            right = trained(calls["EmbeddingBag"], leaf)
            for call in calls.values():
                torch.testing.assert_close(trained(call), right, rtol=1e-4, atol=1e-4)
            forward = [lambda c=c, w=weights: c(table, w) for c in calls.values()]
            both = [lambda c=c: trained(c) for c in calls.values()]
            for what, timed in (("forward", forward), ("with gradient", both)):
                times = [samples.seconds for samples in interleave(timed, SCHEDULE)]
                label = mode if weights is None else f"weighted {mode}"
                print(f"\n{threads} threads, {label}, {what}")
                for name, run, seconds in zip(calls, timed, times, strict=True):
                    ratio = median(paired_ratios(seconds, times[0]))
                    held = peak(run)
                    print(
                        f"{name:>16} {1e3 * median(seconds):8.1f} ms {ratio:6.2f}x {held:7.0f} MB"
                    )


if __name__ == "__main__":
    main()
