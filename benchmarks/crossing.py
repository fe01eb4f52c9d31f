"""What it costs to cross fields: bi-interaction in one pass, against half of the square of the sum
less the sum of the squares in torch's own operations, forward and with the gradient.

Dense fields as a click model has them, 4096 rows of 26 fields of 64 features, and a hundred
thousand bags of one to nineteen rows of 64. Times are over poolkit's; errors are the largest
against float64, over the largest value. The limit is a copy of as many bytes.

    python benchmarks/crossing.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

BATCH, FIELDS, BAGS, WIDTH = 4096, 26, 100_000, 64
SCHEDULE = Schedule(budget_s=6, min_rounds=3, max_rounds=21, sample_s=1e-2)

Call = Callable[[Tensor], Tensor]


def two_passes(x: Tensor) -> Tensor:
    return 0.5 * (x.sum(1).square() - x.square().sum(1))


def dense() -> tuple[Tensor, dict[str, Call]]:
    x = torch.randn(BATCH, FIELDS, WIDTH, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Call] = {
        "poolkit": poolkit.bi_interaction,
        "two passes": two_passes,
    }
    return x, calls


def jagged() -> tuple[Tensor, dict[str, Call]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (BAGS,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.repeat_interleave(torch.arange(BAGS), lengths)
    x = torch.randn(len(ids), WIDTH, generator=generator)
    window = poolkit.Segments(offsets=offsets)

    def index_add(x: Tensor) -> Tensor:
        zeros = x.new_zeros(BAGS, WIDTH)
        return 0.5 * (zeros.index_add(0, ids, x).square() - zeros.index_add(0, ids, x.square()))

    def segment_reduce(x: Tensor) -> Tensor:
        total = torch.segment_reduce(x, "sum", offsets=offsets, axis=0)
        squares = torch.segment_reduce(x.square(), "sum", offsets=offsets, axis=0)
        return 0.5 * (total.square() - squares)

    calls: dict[str, Call] = {
        "poolkit": lambda x: poolkit.bi_interaction(x, window),
        "index_add": index_add,
        "segment_reduce": segment_reduce,
    }
    return x, calls


def main() -> None:
    print(poolkit.info()["isa"])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in (dense, jagged):
            x, calls = case()
            wide = x.double()
            right = list(calls.values())[1](wide)
            largest = right.abs().max().item()
            del wide
            errors = {
                name: (call(x) - right).abs().max().item() / largest for name, call in calls.items()
            }
            assert max(errors.values()) < 1e-5, errors
            weights = torch.randn_like(right, dtype=torch.float32)
            leaf = x.clone().requires_grad_()
            half = x.flatten()[: (x.numel() + weights.numel()) // 2]
            moved = torch.empty_like(half)

            def trained(call: Call, leaf: Tensor = leaf, weights: Tensor = weights) -> Tensor:
                return torch.autograd.grad(call(leaf), leaf, weights)[0]

            forward: list[Callable[[], object]] = [lambda c=c, x=x: c(x) for c in calls.values()]
            both: list[Callable[[], object]] = [lambda c=c, t=trained: t(c) for c in calls.values()]
            for what, timed in (("forward", forward), ("with gradient", both)):
                timed = [*timed, lambda moved=moved, half=half: moved.copy_(half)]
                times = [samples.seconds for samples in interleave(timed, SCHEDULE)]
                print(f"\n{threads} threads, {case.__name__} {tuple(x.shape)}, {what}")
                for name, seconds in zip([*calls, "copy"], times, strict=True):
                    ratio = median(paired_ratios(seconds, times[0]))
                    error = f"{errors[name]:.1e}" if name in errors else ""
                    print(f"{name:>16} {1e3 * median(seconds):8.2f} ms {ratio:6.2f}x {error:>9}")


if __name__ == "__main__":
    main()
