"""How far the values of a window lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, Arrays
from ..dtypes import DType
from ..errors import PoolTypeError, PoolValueError
from .base import Kernel, Mergeable, Seen, State, register, root, settle

__all__ = ["Std"]


@register
@dataclass(frozen=True, repr=False)
class Std(Mergeable):
    """The standard deviation ``sqrt(Σ (x - mean)² / (n - correction))``.

    Args:
        correction: 0 for that of the values themselves (the default), 1 for the estimate of that
            of the population they were drawn from. A window with no more values gives NaN.

    The parts are merged about their means (Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979), so nothing cancels. The gradient
    is 0 where the deviation is 0.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1.0, 3.0, 5.0, 5.0]]), poolkit.Sliding(2), "std")
    array([[1., 0.]])
    """

    correction: int = 0
    summary: ClassVar[str] = "sqrt(Σ (x - x̄)² / (n - c))"

    def __post_init__(self) -> None:
        settle(self, "correction")
        if isinstance(self.correction, bool) or not isinstance(self.correction, int):
            raise PoolTypeError(
                f"correction must be an integer, got {self.correction!r}", "Give 0 or 1"
            )
        if self.correction < 0:
            raise PoolValueError(
                f"correction must be at least 0, got {self.correction}", "Give 0 or 1"
            )

    @property
    def kernel(self) -> Kernel:
        return Kernel("std", "whole", exponent=float(min(self.correction, 2**53)))

    def working_dtype(self, dtype: DType) -> str:
        # In float32 neighbouring integers of more than 24 bits are the same number.
        return "float64" if dtype.kind == "int" and dtype.size > 2 else super().working_dtype(dtype)

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (0, 0, 0)

    def lift(self, xp: Arrays, x: Array) -> State:
        return (xp.fill(x, 1.0), x, x - x)  # an infinity has no deviation: NaN

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        count = a[0] + b[0]
        share = b[0] / xp.at_least(count, 1.0)
        apart = b[1] - a[1]
        return (count, a[1] + apart * share, a[2] + b[2] + apart * (apart * (a[0] * share)))

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        count, _, squares = state
        free = count - self.correction
        variance = squares / xp.at_least(free, 1.0)
        deviation = root(xp, variance, 2)
        return xp.where(free > 0, deviation, xp.fill(deviation, float("nan")))
