"""Power means: the norm of a window, and its generalised mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, Arrays
from ..dtypes import dtype_name
from ..errors import PoolTypeError, PoolValueError
from .base import Kernel, Seen, State, check_number, register, root, settle
from .sums import Additive

__all__ = ["GeM", "Lp"]


def check_exponent(p: float) -> None:
    """Refuses anything but a finite number above 0."""
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise PoolTypeError(f"p must be a number, got {p!r}", "Give a number above 0")
    if not (p > 0 and math.isfinite(p)):
        raise PoolValueError(
            f"p must be above 0 and finite, got {p}", "For an infinite p take the Max of |x|"
        )


@register
@dataclass(frozen=True, repr=False)
class Lp(Additive):
    """The p-norm ``(Σ |x|^p)^(1/p)`` (Sermanet, Chintala and LeCun, "Convolutional neural
    networks applied to house numbers digit classification", 2012).

    Args:
        p: the exponent, above 0.

    |x| is taken for every p, where torch's ``lp_pool`` leaves negative values out of odd powers.
    The gradient is 0 where the norm is 0. Integers give float32.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[3.0, -4.0]]), poolkit.Sliding(2), poolkit.Lp(2))
    array([[5.]])
    """

    p: float
    summary: ClassVar[str] = "(Σ |x|^p)^(1/p)"

    def __post_init__(self) -> None:
        settle(self, "p")
        check_exponent(self.p)

    @property
    def kernel(self) -> Kernel:
        name = "sum_abs" if self.p == 1 else "sum_square" if self.p == 2 else "sum_power"
        return Kernel(name, "norm", exponent=float(self.p))

    def lift(self, xp: Arrays, x: Array) -> State:
        if self.p == 1:
            return (xp.abs(x),)
        return (x * x if self.p == 2 else xp.power(xp.abs(x), self.p),)

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        return state[0] if self.p == 1 else root(xp, state[0], self.p)


@register
@dataclass(frozen=True, repr=False)
class GeM(Additive):
    """The generalised mean ``(Σ max(x, eps)^p / n)^(1/p)``: the mean for p = 1, towards the max
    for large p (Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human
    annotation", 2018).

    Args:
        p: the exponent, above 0.
        eps: smaller values are raised to this, as the root needs positive ones.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1.0, 7.0]]), poolkit.Global(), poolkit.GeM(2), ndim=1)
    array([[5.]])
    """

    p: float = 3.0
    eps: float = 1e-6
    summary: ClassVar[str] = "(Σ max(x, ε)^p / n)^(1/p)"

    def __post_init__(self) -> None:
        settle(self, "p", "eps")
        check_exponent(self.p)
        check_number("eps", self.eps, -1.0, "of at least 0")
        if self.eps < 0:
            raise PoolValueError(f"eps must be at least 0, got {self.eps}", "Give a small number")

    @property
    def kernel(self) -> Kernel:
        return Kernel("general_mean", "whole", exponent=float(self.p), second=float(self.eps))

    def lift(self, xp: Arrays, x: Array) -> State:
        return (xp.power(xp.at_least(x, self.eps), self.p),)

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        count = xp.cast(seen.inside, dtype_name(state[0]))
        return root(xp, state[0] / count, self.p)
