"""From which size on a pooling is worth an operator of its own under torch.compile.

Inductor fuses torch's pooling with what stands around it, here a ReLU and a product before, and
calls an operator of poolkit's from Python. What is printed is the time of each, in microseconds of
the process, and the first over the second: `SMALL` and `FEW` of `poolkit.torch.dispatch` are chosen
by it. It compiles 140 functions, which takes minutes.

    python benchmarks/compiled.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios
from poolkit.torch import dispatch

SHAPES = [
    (1, 32, 16, 16), (1, 32, 32, 32), (1, 64, 32, 32), (1, 64, 44, 44), (1, 64, 88, 88),
    (1, 64, 160, 160), (4, 64, 160, 160),
]  # fmt: skip
POOLINGS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...]]] = {
    "max 2x2": (F.max_pool2d, poolkit.max_pool2d, (2,)),
    "max 3x3, stride 2": (F.max_pool2d, poolkit.max_pool2d, (3, 2, 1)),
    "max 3x3, stride 1": (F.max_pool2d, poolkit.max_pool2d, (3, 1, 1)),
    "max 5x5, stride 1": (F.max_pool2d, poolkit.max_pool2d, (5, 1, 2)),
    "max, 7x7 bins": (F.adaptive_max_pool2d, poolkit.adaptive_max_pool2d, (7,)),
    "max of all": (F.adaptive_max_pool2d, poolkit.adaptive_max_pool2d, (1,)),
    "mean 2x2": (F.avg_pool2d, poolkit.avg_pool2d, (2,)),
    "mean 3x3, stride 1": (F.avg_pool2d, poolkit.avg_pool2d, (3, 1, 1)),
    "mean, 7x7 bins": (F.adaptive_avg_pool2d, poolkit.adaptive_avg_pool2d, (7,)),
    "mean of all": (F.adaptive_avg_pool2d, poolkit.adaptive_avg_pool2d, (1,)),
}
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
SCHEDULE = Schedule(budget_s=1, min_rounds=7, max_rounds=1001, sample_s=2e-3, clock="process")


def surrounded(
    pool: Callable[..., Tensor], arguments: tuple[int, ...], x: Tensor, weight: Tensor
) -> Tensor:
    return pool(x.relu() * weight, *arguments)


def main() -> None:
    torch.set_num_threads(1)  # others would count, too
    dispatch.SMALL = dispatch.FEW = 0
    print(f"one thread, {poolkit.info()['isa']}\n")
    print(f"{'pooling':18} {'layout':15} {'elements':>9} {'torch':>7} {'poolkit':>8} {'ratio':>6}")
    for name, (*pools, arguments) in POOLINGS.items():
        for layout, memory_format in LAYOUTS.items():
            for shape in SHAPES:
                x = torch.randn(shape).contiguous(memory_format=memory_format)
                weight = torch.randn(shape[1], 1, 1)
                torch._dynamo.reset()
                functions = [partial(surrounded, pool, arguments) for pool in pools]
                runs = [torch.compile(function, dynamic=False) for function in functions]
                with torch.no_grad():
                    torch.testing.assert_close(*(run(x, weight) for run in runs))
                    calls = [partial(run, x, weight) for run in runs]
                    theirs, ours = (found.seconds for found in interleave(calls, SCHEDULE))
                print(
                    f"{name:18} {layout:15} {x.numel():9} {1e6 * median(theirs):7.0f} "
                    f"{1e6 * median(ours):8.0f} {median(paired_ratios(theirs, ours)):6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
