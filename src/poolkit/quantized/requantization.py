"""From sums of quantized values to quantized means: what does not depend on the values, and the
path in whole-array operations for where there is no kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..arrays import Array, arrays_of
from ..composite import outer_product
from ..dtypes import DTYPES as ELEMENTS
from ..kernels import NativeKernel, requantizing_kernel
from ..plan import Plan, plan_for
from ..reductions import Reduction
from ..windows import Window
from .params import DTYPES

__all__ = ["QuantizedPlan", "Requantization", "plan_quantized", "requantize"]

# Sums of fewer values than this fit 32 bits, whatever the values and the zero point.
MOST_POSITIONS = 2**31 // 255


class Requantization(NamedTuple):
    """The parameters of the input and of the result, and how is rounded between them."""

    scale: float
    zero_point: int
    out_scale: float
    out_zero_point: int
    rounding: str


@dataclass(frozen=True, eq=False)
class QuantizedPlan:
    """How one grid of windows is pooled over quantized values.

    Attributes:
        plan: the geometry and the divisors.
        native: the compiled kernel, or None for windows of too many positions or axes.
    """

    plan: Plan
    to: Requantization
    native: NativeKernel | None


@lru_cache(maxsize=2048)
def plan_quantized(
    window: Window, reduction: Reduction, shape: tuple[int, ...], dtype: str, to: Requantization
) -> QuantizedPlan:
    """The plan of a window that has a single grid.

    Raises:
        PoolError: if the window does not fit the shape.
    """
    plan = plan_for(window, reduction, shape, dtype)
    native = None
    if math.prod(max(span.taps, 1) for span in plan.axes) < MOST_POSITIONS:
        native = requantizing_kernel(reduction, plan.axes, ELEMENTS[dtype], *to)
    return QuantizedPlan(plan, to, native)


def requantize(total: Array, quantized: QuantizedPlan, channels_last: bool = False) -> Array:
    """The result from the sums (int64) of the stored values: exact, as that of the kernels is."""
    plan, to = quantized.plan, quantized.to
    xp = arrays_of(total)
    trailing = int(channels_last)
    inside = outer_product([span.count for span in plan.axes], trailing)
    centred = total - xp.index(inside * to.zero_point, total)
    kernel = plan.reduction.kernel
    divisors = np.asarray(plan.divisors if kernel is not None and kernel.divides else 1)
    low, _ = DTYPES[plan.dtype.name]
    result = xp.fill(centred, to.out_zero_point)  # that of a divisor of 0
    for divisor in np.unique(divisors):
        if divisor == 0:
            continue
        edges = _edges(to, abs(int(divisor)), plan.dtype.name)
        codes = xp.rank(centred if divisor > 0 else -centred, edges) + low
        if divisors.ndim == 0:
            result = codes
        else:
            here = (divisors == divisor).reshape(divisors.shape + (1,) * trailing)
            result = xp.where(xp.index(here, total), codes, result)
    return xp.cast(result, plan.dtype.name)


@lru_cache(maxsize=256)
def _edges(to: Requantization, divisor: int, dtype: str) -> np.ndarray:
    """The smallest sum that gives each value of the type but its lowest."""
    low, high = DTYPES[dtype]
    unit = Fraction(to.scale) / (Fraction(to.out_scale) * divisor)
    edges = []
    for code in range(low + 1, high + 1):
        steps = code - to.out_zero_point
        if to.rounding == "floor":
            edge, included = Fraction(steps), True
        elif to.rounding == "trunc":
            edge, included = Fraction(steps - (steps <= 0)), steps > 0
        else:
            edge = Fraction(2 * steps - 1, 2)
            # Whether what lies halfway between this value and the one below rounds up.
            included = {
                "half_even": steps % 2 == 0,
                "half_away": steps > 0,
                "half_up": True,
            }[to.rounding]
        sums = edge / unit
        first = math.ceil(sums) if included else math.floor(sums) + 1
        edges.append(min(max(first, -(2**62)), 2**62))
    return np.array(edges, dtype=np.int64)
