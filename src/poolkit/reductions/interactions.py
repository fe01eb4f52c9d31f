"""How the values of a window meet in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, Arrays
from ..dtypes import DType
from .base import Kernel, Mergeable, Seen, State, register

__all__ = ["BiInteraction"]


@register
@dataclass(frozen=True, repr=False)
class BiInteraction(Mergeable):
    """The sum of the products of all pairs, ``Σ_{i<j} x_i x_j``, feature by feature: the
    bi-interaction pooling of He and Chua, "Neural factorization machines for sparse predictive
    analytics", 2017, and what a factorization machine crosses (Rendle, "Factorization machines",
    2010).

    It is half of the square of the sum less the sum of the squares, which cancels where one value
    is much larger than the others. Here every value is multiplied by the sum of those before it,
    in one pass, and parts are merged by ``e = e_a + e_b + s_a s_b``, s being their sums. A window
    with no value or one gives 0; one that sees an infinity gives NaN. Integers give a float.

    >>> import poolkit, numpy as np
    >>> x = np.array([[1.0, 2.0, 3.0, 10.0]])
    >>> poolkit.pool(x, poolkit.Sliding(3, stride=1), "bi_interaction")  # 1*2 + 1*3 + 2*3 = 11
    array([[11., 56.]])
    """

    summary: ClassVar[str] = "Σ_{i<j} xᵢ xⱼ"

    @property
    def kernel(self) -> Kernel:
        return Kernel("bi_interaction", "whole")

    def working_dtype(self, dtype: DType) -> str:
        # Products of two integers of 16 bits have more than the 24 of float32.
        return "float64" if dtype.kind == "int" and dtype.size > 1 else super().working_dtype(dtype)

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (0, 0)

    def lift(self, xp: Arrays, x: Array) -> State:
        # An infinity is NaN from the start: times the 0 of a part without values it would become
        # one in some orders of merging and not in others.
        return (x, x - x)

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        return (a[0] + b[0], (a[1] + b[1]) + a[0] * b[0])

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        return state[1]
