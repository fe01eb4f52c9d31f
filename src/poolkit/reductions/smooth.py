"""Smooth stand-ins for the maximum: differentiable everywhere, and every value gets a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..arrays import Array, Arrays
from ..dtypes import dtype_name
from .base import Kernel, Mergeable, Seen, State, check_number, register, settle

__all__ = ["LogSumExp", "Soft"]


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
        settle(self, "r")
        check_number("r", self.r, 0.0, "above 0")

    @property
    def kernel(self) -> Kernel:
        return Kernel("log_sum_exp", "whole", exponent=float(self.r))

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
        count = xp.cast(seen.inside, dtype_name(top))
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
        settle(self, "beta")
        check_number("beta", self.beta, 0.0, "above 0")

    @property
    def kernel(self) -> Kernel:
        return Kernel("soft", "whole", exponent=float(self.beta))

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (-np.inf, 0, 0)

    # The values are added up relative to the largest, so that no sum overflows.
    def lift(self, xp: Arrays, x: Array) -> State:
        top = xp.constant(x)
        weight = own_weight(xp, x, top, self.beta)
        apart = x - top
        return (top, weight, weight * xp.where(apart == apart, apart, xp.fill(x, 0.0)))

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        top = larger(xp, a[0], b[0])
        (weight_a, total_a), (weight_b, total_b) = self.moved(xp, a, top), self.moved(xp, b, top)
        return (top, weight_a + weight_b, total_a + total_b)

    def moved(self, xp: Arrays, state: State, top: Array) -> State:
        """The weight and the total of a state, relative to `top`, which is no smaller."""
        scale = rescale(xp, state[0], top, self.beta)
        lower = xp.where(scale > 0, state[0] - top, xp.fill(top, 0.0))
        lower = xp.where(state[0] == top, xp.fill(top, 0.0), lower)
        return state[1] * scale, (state[2] + state[1] * lower) * scale

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        top, weight, total = state
        return top + total / weight
