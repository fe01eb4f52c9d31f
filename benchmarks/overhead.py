"""What one call costs before it pools anything: poolkit against torch at tiny shapes.

At these shapes all do almost no arithmetic, so the time is that of the way in: Python, the
dispatcher, autograd's bookkeeping and the allocation of the output. Each call is measured as
torch.nn.functional, or the module of torch.nn, makes it, and as aten's own function, without their
Python, where there is one; in every mode that a user calls from. On one thread: aten divides even
these max poolings among threads, and then it is their waking that is measured.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import poolkit
import poolkit.nn
from poolkit.timing import Schedule, interleave, paired_ratios

ROUNDS = 101
SCHEDULE = Schedule(budget_s=0, min_rounds=ROUNDS, max_rounds=ROUNDS, sample_s=2e-3)

SMALL, LINE, PLANES = (1, 8, 8, 8), (1, 8, 64), (1, 64, 7, 7)
ATEN: dict[str, Callable[..., Any]] = {
    "max_pool2d": torch.max_pool2d,
    "max_pool1d": torch.max_pool1d,
    "avg_pool2d": torch._C._nn.avg_pool2d,
    "avg_pool1d": torch.avg_pool1d,
    "adaptive_avg_pool2d": torch._C._nn.adaptive_avg_pool2d,
    "adaptive_max_pool2d": torch._C._nn.adaptive_max_pool2d,
}


class Case(NamedTuple):
    """A function, or a module where the name is that of one, with its arguments."""

    name: str
    arguments: tuple[float, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))}) {self.shape}"

    @property
    def is_module(self) -> bool:
        return self.name[0].isupper()

    def calls(self, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
        if self.is_module:
            ours, theirs = (
                getattr(where, self.name)(*self.arguments) for where in (poolkit.nn, torch.nn)
            )
            return {"poolkit": partial(ours, x), "torch": partial(theirs, x)}
        pools = {"poolkit": getattr(poolkit, self.name), "torch": getattr(F, self.name)}
        if self.name in ATEN:
            pools["aten"] = ATEN[self.name]
        return {who: partial(pool, x, *self.arguments) for who, pool in pools.items()}


CASES = [
    Case("max_pool2d", (2,), SMALL),
    Case("max_pool2d", (3, 2, 1), SMALL),
    Case("avg_pool2d", (2,), SMALL),
    Case("max_pool1d", (2,), LINE),
    Case("avg_pool1d", (2,), LINE),
    Case("adaptive_avg_pool2d", (2,), SMALL),
    Case("adaptive_avg_pool2d", (1,), PLANES),
    Case("adaptive_max_pool2d", (2,), SMALL),
    Case("lp_pool2d", (2.0, 2), SMALL),
    Case("MaxPool2d", (2,), SMALL),
    Case("AvgPool2d", (2,), SMALL),
    Case("MaxPool1d", (2,), LINE),
    Case("AvgPool1d", (2,), LINE),
    Case("AdaptiveAvgPool2d", (2,), SMALL),
    Case("AdaptiveMaxPool2d", (2,), SMALL),
    Case("LPPool2d", (2.0, 2), SMALL),
]

MODES: dict[str, tuple[Callable[[], AbstractContextManager[object]], bool]] = {
    "recording a gradient": (torch.enable_grad, True),
    "no_grad": (torch.no_grad, True),
    "inference_mode": (torch.inference_mode, False),
}


def measure(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds per call of each, round by round."""
    found = interleave(list(calls.values()), SCHEDULE)
    return {who: samples.seconds for who, samples in zip(calls, found, strict=True)}


def main() -> None:
    torch.set_num_threads(1)
    print(f"microseconds per call, median of {ROUNDS} rounds, 1 thread; ratios are paired")
    print(f"{'':44}{'':22}{'poolkit':>9}{'torch':>8}{'aten':>8}{'/torch':>8}{'/aten':>8}")
    for case in CASES:
        for mode, (context, requires_grad) in MODES.items():
            x = torch.rand(case.shape).requires_grad_(requires_grad)
            with context():
                seconds = measure(case.calls(x))
            times = [f"{1e6 * statistics.median(found):.2f}" for found in seconds.values()]
            ratios = [
                f"{statistics.median(paired_ratios(seconds['poolkit'], found)):.2f}"
                for who, found in seconds.items()
                if who != "poolkit"
            ]
            if len(ratios) == 1:
                times, ratios = [*times, ""], [*ratios, ""]
            print(
                f"{case!s:44}{mode:22}{times[0]:>9}{times[1]:>8}{times[2]:>8}"
                f"{ratios[0]:>8}{ratios[1]:>8}"
            )


if __name__ == "__main__":
    main()
