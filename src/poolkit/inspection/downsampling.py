"""What a recorded operation does to a map, in poolkit's own words: a window and an operator.

The measures ask three things of it: where its windows lie, what it gives, and what it would give
at every position, before any is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

import poolkit
from poolkit.errors import PoolError
from poolkit.inspection.operations import REDUCTIONS, Pooling, spread
from poolkit.reductions import Lp, Max, Mean, Min, Reduction, inner_of
from poolkit.windows import Adaptive, Global, Sliding, Window


class Downsampling(Protocol):
    """An operator on (batch, channels, *space)."""

    @property
    def window(self) -> Window:
        """Which positions each output sees."""

    @property
    def channelwise(self) -> bool:
        """Whether each channel is made from itself alone."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives."""

    def densely(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives at every position where a whole window fits: with stride 1."""


@dataclass(frozen=True)
class Pooled:
    """A window times a reduction."""

    window: Window
    reduction: Reduction
    channelwise: bool = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _pool(x, self.window, self.reduction)

    def densely(self, x: torch.Tensor) -> torch.Tensor:
        return _pool(x, dense(self.window, tuple(x.shape[2:])), self.reduction)


@dataclass(frozen=True)
class Subsampled:
    """Plain subsampling: the value in the middle of each window, the first of two middles."""

    window: Window
    channelwise: bool = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for axis, centres in enumerate(centres_of(self.window, tuple(x.shape[2:])), 2):
            middle = np.floor(centres).clip(0, x.shape[axis] - 1).astype(np.int64)
            x = x.index_select(axis, torch.from_numpy(middle))
        return x

    def densely(self, x: torch.Tensor) -> torch.Tensor:
        return x


@dataclass(frozen=True)
class Convolved:
    """A convolution with its weights, without its bias; it mixes channels."""

    window: Sliding
    weight: torch.Tensor = field(repr=False)
    groups: int = 1
    channelwise: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        _, stride, dilation = self.window.sizes(x.ndim - 2)
        return self._run(self._padded(x), stride, dilation)

    def densely(self, x: torch.Tensor) -> torch.Tensor:
        kernel, _, dilation = self.window.sizes(x.ndim - 2)
        fits = zip(x.shape[2:], kernel, dilation, strict=True)
        if any(size <= (k - 1) * d for size, k, d in fits):
            x = self._padded(x)  # it lives off its padding
        return self._run(x, 1, dilation)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        pads = reversed(self.window.pads(x.ndim - 2) or ())
        return F.pad(x, [side for pair in pads for side in pair])

    def _run(self, x: torch.Tensor, stride: Any, dilation: Any) -> torch.Tensor:
        run = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        return run(x, self.weight.detach().to(x.dtype), None, stride, 0, dilation, self.groups)


def _pool(x: torch.Tensor, window: Window, reduction: Reduction) -> torch.Tensor:
    pooled: torch.Tensor = poolkit.pool(x, window, reduction, ndim=x.ndim - 2)
    return pooled


def yardsticks(window: Window) -> dict[str, Downsampling]:
    """What every layer is measured beside: the plain poolings with the same window."""
    return {
        "average": Pooled(window, Mean(count_include_pad=False)),
        "max": Pooled(window, Max()),
        "subsampling": Subsampled(window),
    }


def downsampling_of(pooling: Pooling) -> Downsampling | None:
    """The operator of a recorded call, or None for what is no window times a reduction.

    >>> downsampling_of(Pooling("adaptive_avg_pool2d", {"output_size": 2}))
    Pooled(window=Adaptive(2), reduction=Mean(), channelwise=True)
    """
    try:
        return _operator(pooling)
    except PoolError:  # as a norm of infinite order
        return None


def _operator(pooling: Pooling) -> Downsampling | None:
    given, n = pooling.arguments, pooling.spatial_rank
    if pooling.is_convolution:
        return Convolved(_sliding(given, n), given["weight"], given.get("groups", 1))
    if pooling.operation == "pool":
        window, reduction = given["window"], given["reduction"]
        return None if window.joined else Pooled(window, reduction)
    if pooling.is_reduction:
        return Pooled(Global(), getattr(poolkit, REDUCTIONS[pooling.operation])())
    stem = pooling.operation.rsplit("_", 1)[0]
    match stem:
        case "max":
            return None if "unpool" in pooling.operation else Pooled(_sliding(given, n), Max())
        case "avg":
            mean = Mean(given.get("count_include_pad", True), given.get("divisor_override"))
            return Pooled(_sliding(given, n), mean)
        case "lp":
            return Pooled(_sliding(given, n), Lp(given["norm_type"]))
        case "adaptive_max" | "adaptive_avg":
            size = given["output_size"]
            window = Adaptive(tuple(size) if isinstance(size, tuple | list) else size)
            return Pooled(window, Max() if stem == "adaptive_max" else Mean())
        case "global_max" | "global_avg":
            return Pooled(Global(), Max() if stem == "global_max" else Mean())
    return None


def _sliding(given: Any, n: int) -> Sliding:
    kernel = spread(given["kernel_size"], n)
    padding = given.get("padding") or 0
    return Sliding(
        kernel,
        stride=spread(given.get("stride") or kernel, n),
        padding=padding if isinstance(padding, str) else spread(padding, n),
        dilation=spread(given.get("dilation") or 1, n),
        ceil_mode=bool(given.get("ceil_mode", False)),
    )


def dense(window: Window, shape: tuple[int, ...]) -> Sliding:
    """The window moved by 1, without padding; of bins that differ, the largest."""
    if isinstance(window, Sliding):
        kernel, _, dilation = window.sizes(len(shape))
        fits = zip(shape, kernel, dilation, strict=True)
        # A window that is larger than the input and lives off its padding: what fits.
        kernel = tuple(min(k, (size - 1) // d + 1) for size, k, d in fits)
        return Sliding(kernel, stride=1, dilation=dilation)
    return Sliding(tuple(spans.taps for spans in window.axes(shape)), stride=1)


def centres_of(window: Window, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The input coordinate of the centre of each output, along each axis."""
    if isinstance(window, Sliding):
        fields = window.receptive_field(shape)
        counts = window.output_shape(shape)
        return [f.offset + f.jump * np.arange(n) for f, n in zip(fields, counts, strict=True)]
    return [s.begin + (s.count - 1) * s.step / 2 for s in window.axes(shape)]


def is_mean(reduction: Reduction) -> bool:
    return isinstance(inner_of(reduction), Mean)


def is_extreme(reduction: Reduction) -> bool:
    return isinstance(inner_of(reduction), Max | Min)


def dropped(window: Window, shape: tuple[int, ...]) -> list[int]:
    """How many positions along each axis no window sees.

    >>> dropped(Sliding(2), (7, 8)), dropped(Sliding(1, stride=2), (8, 8))
    ([1, 0], [4, 4])
    """
    lost = []
    for spans in window.axes(shape):
        position, seen = spans.positions()
        lost.append(spans.size - len(set(position[seen].tolist())))
    return lost


def misdivided(reduction: Reduction, window: Window, shape: tuple[int, ...]) -> float | None:
    """Share of a mean's outputs that are not divided by the number of values they see.

    >>> misdivided(Mean(), Sliding(3, stride=1, padding=1), (4, 4))
    0.75
    """
    mean = inner_of(reduction)
    if not isinstance(mean, Mean):
        return None
    axes = window.axes(shape)
    divisors = reduce(np.multiply.outer, mean.divisors(axes))
    counts = reduce(np.multiply.outer, [spans.count for spans in axes])
    return float((divisors != counts).mean()) if counts.size else None


def as_maps(pooling: Pooling, x: torch.Tensor, is_output: bool = False) -> torch.Tensor | None:
    """The input or output of a call as (batch, channels, *space), whatever axes it reduces.

    None if it has no such form, as the joined grids of a pyramid.

    >>> as_maps(Pooling("mean", {"dim": (1,), "keepdim": False}), torch.zeros(2, 7, 3)).shape
    torch.Size([2, 3, 7])
    """
    n = pooling.spatial_rank
    if pooling.is_reduction:
        dims = pooling.arguments["dim"]
        if is_output and not pooling.arguments["keepdim"]:
            x = x.reshape(*x.shape, *[1] * n)
        else:
            x = x.permute(*(axis for axis in range(x.ndim) if axis not in dims), *dims)
    elif pooling.arguments.get("channels_last"):
        x = x.movedim(-1, -n - 1)
    if pooling.operation == "pool" and is_output and pooling.arguments["window"].joined:
        return None
    if x.ndim < n or not 1 <= n <= 3:
        return None
    if x.ndim < n + 2:
        return x.reshape(*[1] * (n + 2 - x.ndim), *x.shape)
    return x.flatten(0, x.ndim - n - 2)
