"""Smooth stand-ins for the maximum: differentiable everywhere, and every value gets a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..arrays import Array, Arrays
from ..errors import PoolValueError
from .base import Mergeable, Seen, State, register

__all__ = ["LogSumExp", "Soft"]


def check_sharpness(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise PoolValueError(f"{name} must be above 0 and finite, got {value}", "Give 1 or more")


def rescale(xp: Arrays, top: Array, highest: Array, sharpness: float) -> Array:
    """``exp(sharpness * (top - highest))``, which is 1 where both are the same infinity."""
    same = top == highest
    return xp.exp(xp.where(same, xp.fill(top, 0.0), top - highest) * sharpness)


def own_weight(xp: Arrays, x: Array, top: Array, sharpness: float) -> Array:
    """``exp(sharpness * (x - top))`` where `top` is `x` without its gradient: 1, with a slope."""
    apart = x - top
    return xp.exp(xp.where(apart == apart, apart, xp.fill(apart, 0.0)) * sharpness)


def larger(xp: Arrays, a: Array, b: Array) -> Array:
    return xp.where((b > a) | (b != b), b, a)


@register
@dataclass(frozen=True, repr=False)
class LogSumExp(Mergeable):
    """``log(Σ exp(r x) / n) / r``: between the mean (small r) and the max (large r) (Pinheiro and
    Collobert, "From image-level to pixel-level labeling with convolutional networks", 2015).

    Args:
        r: the sharpness, above 0.

    Finite for every finite input: the largest value is subtracted first.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1000.0, 1000.0]]), poolkit.Sliding(2), poolkit.LogSumExp(2))
    array([[1000.]])
    """

    r: float = 1.0
    summary: ClassVar[str] = "log(Σ exp(r x) / n) / r"

    def __post_init__(self) -> None:
        check_sharpness("r", self.r)

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (-np.inf, 0)

    def lift(self, xp: Arrays, x: Array) -> State:
        # The subtracted maximum is a constant to the gradient: the result does not depend on it,
        # and ties then share the gradient as they should.
        top = xp.constant(x)
        return (top, own_weight(xp, x, top, self.r))

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        top = larger(xp, a[0], b[0])
        return (
            top,
            a[1] * rescale(xp, a[0], top, self.r) + b[1] * rescale(xp, b[0], top, self.r),
        )

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        top, total = state
        count = xp.cast(seen.inside, str(top.dtype).removeprefix("torch."))
        return top + xp.log(total / count) / self.r


@register
@dataclass(frozen=True, repr=False)
class Soft(Mergeable):
    """The softmax-weighted mean ``Σ x exp(beta x) / Σ exp(beta x)`` (Stergiou, Poppe and
    Kalliatakis, "Refining activation downsampling with SoftPool", 2021).

    Args:
        beta: the sharpness, above 0; towards the max for large values.

    Finite for every finite input: the largest value is subtracted first.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[2.0, 2.0]]), poolkit.Sliding(2), poolkit.Soft())
    array([[2.]])
    """

    beta: float = 1.0
    summary: ClassVar[str] = "Σ x exp(β x) / Σ exp(β x)"

    def __post_init__(self) -> None:
        check_sharpness("beta", self.beta)

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (-np.inf, 0, 0)

    def lift(self, xp: Arrays, x: Array) -> State:
        top = xp.constant(x)
        weight = own_weight(xp, x, top, self.beta)
        # A value of -inf has weight 0, and 0 * -inf would be NaN.
        return (top, weight, weight * xp.where(x == -np.inf, xp.fill(x, 0.0), x))

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        top = larger(xp, a[0], b[0])
        scale_a = rescale(xp, a[0], top, self.beta)
        scale_b = rescale(xp, b[0], top, self.beta)
        return (top, a[1] * scale_a + b[1] * scale_b, a[2] * scale_a + b[2] * scale_b)

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        top, weight, total = state
        return xp.where((top == -np.inf) & (weight > 0), top, total / weight)
