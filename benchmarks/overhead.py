"""What one call costs before it pools anything: poolkit against aten at tiny shapes.

At these shapes both do almost no arithmetic, so the time is that of the way in: Python, the
dispatcher, autograd's bookkeeping and the allocation of the output. Each shape is measured in
every mode a user calls from: recording a gradient, in grad mode with nothing to record, under
no_grad, and under inference_mode.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

ROUNDS = 31
SCHEDULE = Schedule(budget_s=0, min_rounds=ROUNDS, max_rounds=ROUNDS, sample_s=2e-3)

Pool = Callable[[Tensor], Tensor]

CASES: dict[str, tuple[tuple[int, ...], dict[str, Pool]]] = {
    "max 2x2s2 (1,8,8,8)": (
        (1, 8, 8, 8),
        {
            "poolkit": lambda x: poolkit.max_pool2d(x, 2),
            "F": lambda x: F.max_pool2d(x, 2),
            "aten": lambda x: torch.max_pool2d(x, 2),
        },
    ),
    "max 3x3s2p1 (1,3,24,24)": (
        (1, 3, 24, 24),
        {
            "poolkit": lambda x: poolkit.max_pool2d(x, 3, 2, 1),
            "F": lambda x: F.max_pool2d(x, 3, 2, 1),
            "aten": lambda x: torch.max_pool2d(x, 3, 2, 1),
        },
    ),
    "avg 2x2s2 (1,8,8,8)": (
        (1, 8, 8, 8),
        {
            "poolkit": lambda x: poolkit.avg_pool2d(x, 2),
            "F": lambda x: F.avg_pool2d(x, 2),
            "aten": lambda x: torch._C._nn.avg_pool2d(x, 2),
        },
    ),
    "global avg (1,64,7,7)": (
        (1, 64, 7, 7),
        {
            "poolkit": lambda x: poolkit.global_avg_pool2d(x),
            "F": lambda x: F.adaptive_avg_pool2d(x, 1),
            "aten": lambda x: x.mean((2, 3), keepdim=True),
        },
    ),
}

MODES: dict[str, tuple[Callable[[], AbstractContextManager[object]], bool]] = {
    "recording a gradient": (torch.enable_grad, True),
    "grad mode": (torch.enable_grad, False),
    "no_grad": (torch.no_grad, False),
    "inference_mode": (torch.inference_mode, False),
}


def measure(x: Tensor, pools: dict[str, Pool]) -> dict[str, list[float]]:
    """Seconds per call of every pool, round by round."""
    found = interleave([partial(pool, x) for pool in pools.values()], SCHEDULE)
    return {name: samples.seconds for name, samples in zip(pools, found, strict=True)}


def paired_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(paired_ratios(above, below))


def main() -> None:
    threads = torch.get_num_threads()
    print(f"microseconds per call, median of {ROUNDS} rounds; {threads} threads; ratios are paired")
    print(f"{'':26}{'':22}{'poolkit':>9}{'F':>8}{'aten':>8}{'poolkit/F':>11}{'poolkit/aten':>14}")
    for case, (shape, pools) in CASES.items():
        for mode, (context, requires_grad) in MODES.items():
            x = torch.rand(shape).requires_grad_(requires_grad)
            with context():
                seconds = measure(x, pools)
            ours, functional, aten = (
                statistics.median(seconds[name]) * 1e6 for name in ("poolkit", "F", "aten")
            )
            against_functional = paired_ratio(seconds["poolkit"], seconds["F"])
            against_aten = paired_ratio(seconds["poolkit"], seconds["aten"])
            print(
                f"{case:26}{mode:22}{ours:9.2f}{functional:8.2f}{aten:8.2f}"
                f"{against_functional:11.2f}{against_aten:14.2f}"
            )


if __name__ == "__main__":
    main()
