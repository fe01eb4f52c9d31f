"""Reductions by rank: they need all values of a window at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..arrays import Array, Arrays
from ..dtypes import dtype_name
from ..errors import PoolValueError, checked_size
from .base import Kernel, Reduction, check_number, register, settle

__all__ = ["Median", "Quantile", "TopK"]


class Ranked(Reduction):
    whole_span: ClassVar[bool] = True

    def ranked(self, xp: Arrays, values: Array, seen: Array, unseen: float) -> tuple[Array, Array]:
        """The values in ascending order, unseen positions as `unseen`, and where a NaN is seen."""
        broken = xp.any(xp.isnan(values) & seen)
        return xp.sort(xp.where(seen & ~xp.isnan(values), values, unseen)), broken


@register
@dataclass(frozen=True, repr=False)
class Quantile(Ranked):
    """The value below which a share `q` of the window lies, interpolated linearly between ranks
    (definition 7 of Hyndman and Fan, "Sample quantiles in statistical packages", 1996).

    Args:
        q: from 0 (the min) to 1 (the max).

    A NaN propagates; a window that sees nothing gives NaN.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[4.0, 1.0, 3.0]]), poolkit.Sliding(3), poolkit.Quantile(0.75))
    array([[3.5]])
    """

    q: float
    summary: ClassVar[str] = "value of rank q (n - 1)"

    def __post_init__(self) -> None:
        settle(self, "q")
        check_number("q", self.q, -np.finfo(float).max, "between 0 and 1")
        if not 0 <= self.q <= 1:
            raise PoolValueError(f"q must lie between 0 and 1, got {self.q}", "0.5 is the median")

    @property
    def kernel(self) -> Kernel:
        return Kernel("quantile", "whole", exponent=float(self.q))

    def select(self, xp: Arrays, values: Array, seen: Array, count: Array) -> Array:
        ordered, broken = self.ranked(xp, values, seen, np.inf)
        rank = xp.at_least(xp.cast(count, "float64") - 1.0, 0.0) * self.q
        low = xp.floor(rank)
        weight = xp.cast(rank - low, dtype_name(values))
        below = xp.cast(low, "int64")
        above = xp.cast(xp.at_most(low + 1, float(values.shape[-1] - 1)), "int64")
        a, b = xp.pick(ordered, below[..., None]), xp.pick(ordered, above[..., None])
        apart = b - a
        # Values so far apart that their distance overflows, and infinities, are weighted instead.
        near = xp.abs(apart) < np.inf
        between = xp.where(near, a + apart * weight, a * (1 - weight) + b * weight)
        # A weight of 0 must not meet the infinity that stands for an unseen position.
        mixed = xp.where((weight > 0) & (a != b), between, a)
        return xp.where(broken | (count == 0), xp.fill(mixed, float("nan")), mixed)


@register
@dataclass(frozen=True, repr=False)
class Median(Ranked):
    """The middle value, or the mean of the two middle ones: `Quantile` (0.5).

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[9.0, 1.0, 2.0, 3.0]]), poolkit.Sliding(4), "median")
    array([[2.5]])
    """

    summary: ClassVar[str] = "value of rank (n - 1) / 2"

    @property
    def kernel(self) -> Kernel:
        return Kernel("quantile", "whole", exponent=0.5)

    def select(self, xp: Arrays, values: Array, seen: Array, count: Array) -> Array:
        return Quantile(0.5).select(xp, values, seen, count)


@register
@dataclass(frozen=True, repr=False)
class TopK(Ranked):
    """The mean of the k largest values: the max for k = 1, the mean for k = n (Durand et al.,
    "WELDON: weakly supervised learning of deep convolutional neural networks", 2016).

    Args:
        k: how many; a window that sees fewer takes all of them.

    A NaN propagates; a window that sees nothing gives NaN.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1.0, 4.0, 2.0]]), poolkit.Sliding(3), poolkit.TopK(2))
    array([[3.]])
    """

    k: int
    summary: ClassVar[str] = "mean of the k largest"

    def __post_init__(self) -> None:
        settle(self, "k")
        checked_size("k", self.k)

    @property
    def kernel(self) -> Kernel:
        return Kernel("top_k", "whole", exponent=float(min(self.k, 2**53)))

    def select(self, xp: Arrays, values: Array, seen: Array, count: Array) -> Array:
        ordered, broken = self.ranked(xp, values, seen, -np.inf)
        size = values.shape[-1]
        k = min(self.k, size)
        largest = ordered[..., size - k :]
        taken = xp.at_most(count, k)
        # Ascending order: the last `taken` of the k are values, those before are unseen.
        is_value = xp.index(np.arange(k), values) >= k - taken[..., None]
        total = xp.sum(xp.where(is_value, largest, xp.fill(largest, 0.0)))
        mean = total / xp.cast(taken, dtype_name(values))
        return xp.where(broken, xp.fill(mean, float("nan")), mean)
