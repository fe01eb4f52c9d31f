"""What it costs to pool segments of rows: against torch's own ways, forward and with the gradient.

A million rows of 64 features in a hundred thousand segments whose lengths are skewed, as bags and
sentences are: most have a few rows, a few have thousands. Times are over poolkit's; errors are the
largest against float64. The limit is a copy of as many bytes.

    python benchmarks/segments.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

ROWS, SEGMENTS, WIDTH = 1_000_000, 100_000, 64
SCHEDULE = Schedule(budget_s=8, min_rounds=3, max_rounds=21, sample_s=1e-2)


def skewed_lengths() -> Tensor:
    """Lengths of at least 1 that fall off as a power of the rank, and add up to `ROWS`."""
    share = 1.0 / torch.arange(1, SEGMENTS + 1, dtype=torch.float64) ** 0.8
    lengths = 1 + ((ROWS - SEGMENTS) * share / share.sum()).floor().long()
    lengths[0] += ROWS - lengths.sum()
    return lengths[torch.randperm(SEGMENTS, generator=torch.Generator().manual_seed(1))]


def ways(lengths: Tensor, reduction: str) -> dict[str, Callable[[Tensor], Tensor]]:
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.repeat_interleave(torch.arange(SEGMENTS), lengths)
    wide = ids[:, None].expand(-1, WIDTH)
    rows = torch.arange(ROWS)
    window = poolkit.Segments(offsets=offsets)
    scattered = {"max": "amax"}.get(reduction, reduction)

    def scatter(x: Tensor) -> Tensor:
        out = x.new_zeros(SEGMENTS, WIDTH)
        return out.scatter_reduce(0, wide, x, scattered, include_self=False)

    def index_add(x: Tensor) -> Tensor:
        total = x.new_zeros(SEGMENTS, WIDTH).index_add(0, ids, x)
        return total / lengths[:, None] if reduction == "mean" else total

    found: dict[str, Callable[[Tensor], Tensor]] = {
        "poolkit": lambda x: poolkit.pool(x, window, reduction),
        "segment_reduce": lambda x: torch.segment_reduce(x, reduction, offsets=offsets, axis=0),
        "scatter_reduce": scatter,
        "EmbeddingBag": lambda x: torch.nn.functional.embedding_bag(
            rows, x, offsets[:-1], mode=reduction
        ),
    }
    if reduction != "max":
        found["index_add"] = index_add
    return found


def main() -> None:
    lengths = skewed_lengths()
    x = torch.randn(ROWS, WIDTH)
    moved = torch.empty((ROWS + SEGMENTS) // 2, WIDTH)
    source = torch.randn_like(moved)
    weights = torch.randn(SEGMENTS, WIDTH)
    print(f"lengths from {lengths.min()} to {lengths.max()}, {poolkit.info()['isa']}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for reduction in ("sum", "mean", "max"):
            calls = ways(lengths, reduction)
            right = calls["segment_reduce"](x.double())
            errors = {name: (call(x) - right).abs().max().item() for name, call in calls.items()}
            assert max(errors.values()) < 0.1, errors
            leaf = x.clone().requires_grad_()

            def trained(call: Callable[[Tensor], Tensor], leaf: Tensor = leaf) -> Tensor:
                return torch.autograd.grad(call(leaf), leaf, weights)[0]

            forward: list[Callable[[], object]] = [lambda c=c: c(x) for c in calls.values()]
            both: list[Callable[[], object]] = [lambda c=c: trained(c) for c in calls.values()]
            for what, timed in (("forward", forward), ("with gradient", both)):
                timed = [*timed, lambda: moved.copy_(source)]
                times = [samples.seconds for samples in interleave(timed, SCHEDULE)]
                print(f"\n{threads} threads, {reduction}, {what}")
                for name, seconds in zip([*calls, "copy"], times, strict=True):
                    ratio = median(paired_ratios(seconds, times[0]))
                    error = f"{errors[name]:.1e}" if name in errors else ""
                    print(f"{name:>16} {1e3 * median(seconds):8.1f} ms {ratio:6.2f}x {error:>9}")


if __name__ == "__main__":
    main()
