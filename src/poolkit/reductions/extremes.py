"""The largest and the smallest value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..arrays import Array, Arrays
from ..dtypes import DTYPES, DType
from .base import Kernel, Mergeable, Seen, State, register

__all__ = ["Max", "Min"]


class Extreme(Mergeable):
    """Keeps the first of equal values; a NaN beats everything."""

    def result_dtype(self, dtype: DType) -> str:
        return dtype.name

    def working_dtype(self, dtype: DType) -> str:
        return "uint8" if dtype.kind == "bool" else dtype.name

    def beats(self, a: Array, b: Array) -> Array:
        """Whether `b`, which comes later, replaces `a`."""
        raise NotImplementedError

    def lift(self, xp: Arrays, x: Array) -> State:
        return (x,)

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        # x != x is a NaN, and costs nothing for integers.
        return (xp.where(self.beats(a[0], b[0]) | (b[0] != b[0]), b[0], a[0]),)

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        return state[0]


@register
@dataclass(frozen=True, repr=False)
class Max(Extreme):
    """The largest value. A NaN propagates; of equal values the first in row-major order is taken,
    by the gradient too. A window that sees nothing gives the dtype's lowest value.

    >>> import poolkit, numpy as np
    >>> x = np.arange(1, 17.0).reshape(4, 4)
    >>> poolkit.pool(x, poolkit.Sliding((2, 2)), poolkit.Max())
    array([[ 6.,  8.],
           [14., 16.]])
    """

    summary: ClassVar[str] = "max x"

    @property
    def kernel(self) -> Kernel:
        return Kernel("max", "pick")

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (-np.inf if DTYPES[dtype].kind == "float" else np.iinfo(dtype).min,)

    def beats(self, a: Array, b: Array) -> Array:
        return b > a


@register
@dataclass(frozen=True, repr=False)
class Min(Extreme):
    """The smallest value, by the same rules as `Max`.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[3, 1, 2, 5]]), poolkit.Sliding(2), "min")
    array([[1, 2]])
    """

    summary: ClassVar[str] = "min x"

    @property
    def kernel(self) -> Kernel:
        return Kernel("min", "pick")

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (np.inf if DTYPES[dtype].kind == "float" else np.iinfo(dtype).max,)

    def beats(self, a: Array, b: Array) -> Array:
        return b < a
