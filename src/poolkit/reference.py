"""The oracle: slow, obvious, and sharing no code with what it checks.

It loops over outputs, lists the positions that each one sees straight from the definition, and
reduces the list in the plainest way. Tests compare every path of the library against it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = [
    "adaptive_positions",
    "locate_reference",
    "pool_reference",
    "reduce_reference",
    "requantize_reference",
    "sliding_positions",
]

Positions = list[list[tuple[int, bool]]]  # for each output: (position, is it padding)


def sliding_positions(
    size: int,
    kernel: int,
    stride: int,
    before: int,
    after: int,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> Positions:
    """What each output of a sliding window sees along one axis, padding included.

    Positions that hang over the padding (ceil_mode) are left out.
    """
    windows: Positions = []
    for start in itertools.count(-before, stride):
        last = start + (kernel - 1) * dilation
        complete = last < size + after
        begins_inside = start < size
        kept = (
            ceil_mode
            and begins_inside
            and start - stride + (kernel - 1) * dilation + 1 < (size + after)
        )
        if not complete and not kept:
            return windows
        window = [start + t * dilation for t in range(kernel)]
        windows.append([(p, not 0 <= p < size) for p in window if p < size + after])
    raise AssertionError("unreachable")


def adaptive_positions(size: int, bins: int) -> Positions:
    """What each of `bins` adaptive bins sees along one axis."""
    return [
        [(p, False) for p in range(math.floor(o * size / bins), math.ceil((o + 1) * size / bins))]
        for o in range(bins)
    ]


def pool_reference(
    x: np.ndarray, axes: Sequence[Positions], reduce: Callable[[list[Any], int], Any]
) -> np.ndarray:
    """Applies `reduce(values, positions including padding)` to every window on the last axes."""
    lead = x.shape[: x.ndim - len(axes)]
    out = np.empty((*lead, *(len(axis) for axis in axes)), dtype=object)
    for output in itertools.product(*(range(len(axis)) for axis in axes)):
        seen = list(itertools.product(*(axis[o] for axis, o in zip(axes, output, strict=True))))
        inside = [
            tuple(p for p, _ in position)
            for position in seen
            if not any(padding for _, padding in position)
        ]
        for index in np.ndindex(*lead):
            out[(*index, *output)] = reduce([x[index + p] for p in inside], len(seen))
    return out


def reduce_reference(name: str, values: list[Any], padded: int, **options: Any) -> Any:
    """One window, reduced from the definition in Python's own numbers.

    Args:
        name: a reduction's name.
        values: what the window sees, padding left out.
        padded: positions of the window, padding counted.
        options: the reduction's parameters, as in its constructor.
    """
    numbers = [v.item() if hasattr(v, "item") else v for v in values]
    n = len(numbers)
    if name in ("First", "Last"):
        return numbers[0 if name == "First" else -1] if numbers else None
    if any(v != v for v in numbers):
        return math.nan
    if name in ("Max", "Min"):
        return (max if name == "Max" else min)(numbers) if numbers else None
    if name == "Sum":
        return _exact_sum(numbers)
    if name == "SqrtN":
        return _exact_sum(numbers) / math.sqrt(max(n, 1))
    if name == "Mean":
        divisor = options.get("divisor") or (
            padded if options.get("count_include_pad", True) else n
        )
        if options.get("result") == "same" and all(isinstance(v, int) for v in numbers):
            return round(Fraction(sum(numbers), divisor)) if divisor else 0  # half to even
        return _exact_sum(numbers) / divisor if divisor else math.nan
    if name == "Lp":
        p = options["p"]
        return _exact_sum([abs(v) ** p for v in numbers]) ** (1 / p)
    if name == "BiInteraction":
        if any(math.isinf(v) for v in numbers):
            return math.nan
        return _exact_sum([a * b for a, b in itertools.combinations(numbers, 2)])
    if not numbers:
        return math.nan
    if name == "GeM":
        p, eps = options.get("p", 3.0), options.get("eps", 1e-6)
        return (_exact_sum([max(v, eps) ** p for v in numbers]) / n) ** (1 / p)
    if name == "LogSumExp":
        r, top = options.get("r", 1.0), max(numbers)
        if math.isinf(top):
            return top
        return top + math.log(_exact_sum([math.exp(r * (v - top)) for v in numbers]) / n) / r
    if name == "Soft":
        beta, top = options.get("beta", 1.0), max(numbers)
        if math.isinf(top):
            return top
        weights = [math.exp(beta * (v - top)) for v in numbers]
        weighted = [w * v for w, v in zip(weights, numbers, strict=True) if w]
        return _exact_sum(weighted) / _exact_sum(weights)
    if name == "Std":
        correction = options.get("correction", 0)
        if n <= correction or any(math.isinf(v) for v in numbers):
            return math.nan
        mean = _exact_sum(numbers) / n
        return math.sqrt(_exact_sum([(v - mean) ** 2 for v in numbers]) / (n - correction))
    if name in ("Median", "Quantile"):
        rank = (options["q"] if name == "Quantile" else 0.5) * (n - 1)
        ordered = sorted(numbers)
        low = math.floor(rank)
        if rank == low or ordered[low] == ordered[low + 1]:
            return ordered[low]
        share = Fraction(rank) - low
        if any(math.isinf(v) for v in ordered[low : low + 2]):
            return ordered[low] + ordered[low + 1]  # one infinity wins, two of them have no middle
        return float(Fraction(ordered[low]) * (1 - share) + Fraction(ordered[low + 1]) * share)
    if name == "TopK":
        largest = sorted(numbers)[-options["k"] :]
        return _exact_sum(largest) / len(largest)
    raise AssertionError(f"the oracle does not know {name}")


def activate_reference(name: str, x: float, **options: Any) -> float:
    """One value, activated from the definition in Python's own numbers.

    Args:
        name: an activation's name.
        x: the value.
        options: the activation's parameters, as in its constructor.
    """
    if x != x:
        return math.nan
    if name == "ReLU":
        return max(x, 0.0)
    if name == "LeakyReLU":
        return x if x > 0 else x * options.get("negative_slope", 0.01)
    if name == "Exp":
        return math.exp(x) if x < 709.78 else math.inf
    if name == "Tanh":
        return math.tanh(x)
    sigmoid = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    if name == "Sigmoid":
        return sigmoid
    if name == "SiLU":
        return x * sigmoid
    if name == "GELU" and options.get("approximate", "none") == "tanh":
        return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    if name == "GELU":
        return x * math.erfc(-x / math.sqrt(2)) / 2
    if name == "Hardswish":
        return x * min(max(x + 3, 0.0), 6.0) / 6
    raise AssertionError(f"the oracle does not know {name}")


def requantize_reference(
    total: Fraction, divisor: int, out_scale: float, out_zero_point: int, rounding: str, dtype: str
) -> int:
    """A real number, divided and quantized: `divisor` 0 gives the zero point."""
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    steps = total / divisor / Fraction(out_scale) if divisor else Fraction(0)
    sign = -1 if steps < 0 else 1
    rounded = {
        "half_even": lambda: round(steps),
        "half_away": lambda: sign * math.floor(abs(steps) + Fraction(1, 2)),
        "half_up": lambda: math.floor(steps + Fraction(1, 2)),
        "floor": lambda: math.floor(steps),
        "trunc": lambda: math.trunc(steps),
    }[rounding]()
    return min(max(rounded + out_zero_point, low), high)


def locate_reference(name: str, values: list[Any]) -> int | None:
    """Which of the values a max or min takes: the last NaN, else the first of equal ones."""
    numbers = [v.item() if hasattr(v, "item") else v for v in values]
    broken = [i for i, v in enumerate(numbers) if v != v]
    if broken:
        return broken[-1]
    return numbers.index((max if name == "Max" else min)(numbers)) if numbers else None


def _exact_sum(numbers: list[Any]) -> Any:
    if all(isinstance(v, (int, bool)) for v in numbers):
        return sum(numbers)
    try:
        return math.fsum(numbers)
    except (ValueError, OverflowError):  # infinities of both signs
        return sum(numbers)
