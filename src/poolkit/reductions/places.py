"""Reductions that take the value at one place of the window, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, Arrays
from ..dtypes import DType, dtype_of
from .base import Mergeable, Seen, State, register

__all__ = ["First", "Last", "Place"]


class Place(Mergeable):
    """The state is a value, and whether there is one."""

    last: ClassVar[bool]
    """Whether the last value is meant, not the first."""

    def result_dtype(self, dtype: DType) -> str:
        return dtype.name

    def working_dtype(self, dtype: DType) -> str:
        return dtype.name

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (0, 0)

    def lift(self, xp: Arrays, x: Array) -> State:
        return (x, xp.fill(x, 1))

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        kept, other = (b, a) if self.last else (a, b)
        there = kept[1] != 0
        return xp.where(there, kept[0], other[0]), xp.where(there, kept[1], other[1])

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        value, there = state
        if dtype_of(value).kind != "float":
            return value
        return xp.where(there != 0, value, xp.fill(value, float("nan")))


@register
@dataclass(frozen=True, repr=False)
class First(Place):
    """The first value in row-major order: a sequence's class token, a grid's upper left corner.

    Padding is not looked at. A window that sees nothing gives NaN, or 0 where the input is of
    integers.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[3.0, 1.0, 2.0, 5.0]]), poolkit.Sliding(2), "first")
    array([[3., 2.]])
    """

    last: ClassVar[bool] = False
    summary: ClassVar[str] = "x₁"


@register
@dataclass(frozen=True, repr=False)
class Last(Place):
    """The last value in row-major order: what a causal model has read everything at.

    Padding is not looked at. A window that sees nothing gives NaN, or 0 where the input is of
    integers.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[3.0, 1.0, 2.0, 5.0]]), poolkit.Sliding(2), "last")
    array([[1., 5.]])
    """

    last: ClassVar[bool] = True
    summary: ClassVar[str] = "xₙ"
