"""What it costs to pool and pool again: `sppf` against a call for each level.

The levels are stride-1 maxima of 5x5, as in YOLO's SPPF block, joined along the channels. Each is
measured as one call of poolkit's, as three calls and `torch.cat`, and as the same in torch, eager
and on mkldnn's reordered tensors; the limit is a copy that writes as many bytes.

    python benchmarks/chains.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

SHAPES = [(1, 256, 20, 20), (1, 128, 40, 40), (8, 256, 40, 40), (8, 512, 20, 20)]
SCHEDULE = Schedule(budget_s=6, min_rounds=7, max_rounds=101, sample_s=2e-3)


def by_levels(pool: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    parts = [x]
    for _ in range(3):
        parts.append(pool(parts[-1]))
    return torch.cat(parts, dim=1)


def with_mkldnn(x: torch.Tensor) -> torch.Tensor:
    parts = [x.to_mkldnn()]
    for _ in range(3):
        parts.append(torch.mkldnn_max_pool2d(parts[-1], 5, 1, 2))
    return torch.cat([part.to_dense() for part in parts], dim=1)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {poolkit.info()['isa']}; ms, and times over sppf\n")
    print(f"{'shape':>18} {'sppf':>8} {'levels':>14} {'torch':>14} {'mkldnn':>14} {'copy':>14}")
    for shape in SHAPES:
        x = torch.randn(shape)
        wide = torch.empty(shape[0], 4 * shape[1], *shape[2:])
        source = torch.randn_like(wide)
        calls: list[Callable[[], object]] = [
            lambda x=x: poolkit.sppf(x),
            lambda x=x: by_levels(lambda t: poolkit.max_pool2d(t, 5, 1, 2), x),
            lambda x=x: by_levels(lambda t: F.max_pool2d(t, 5, 1, 2), x),
            lambda x=x: with_mkldnn(x),
            lambda wide=wide, source=source: wide.copy_(source),
        ]
        with torch.inference_mode():
            assert torch.equal(calls[0](), calls[2]())
            times = [samples.seconds for samples in interleave(calls, SCHEDULE)]
        columns = [f"{1e3 * median(times[0]):8.3f}"]
        for other in times[1:]:
            ratio = median(paired_ratios(other, times[0]))
            columns.append(f"{1e3 * median(other):8.3f} {ratio:4.1f}x")
        print(f"{shape!s:>18} {' '.join(columns)}")


if __name__ == "__main__":
    main()
