"""Quantization parameters, and arrays to and from 8 bits: ``real = scale * (q - zero_point)``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Arrays, arrays_of, check_array
from ..dtypes import dtype_name
from ..errors import PoolTypeError, PoolValueError, is_exported, is_torch_tensor
from ..reductions.base import check_number

__all__ = ["DTYPES", "ROUNDINGS", "QParams", "check_quantized", "dequantize", "quantize"]

# Lowest and highest value of each quantized type.
DTYPES = {"int8": (-128, 127), "uint8": (0, 255)}
ROUNDINGS = ("half_even", "half_away", "half_up", "floor", "trunc")


@dataclass(frozen=True)
class QParams:
    """How 8-bit integers stand for real numbers: ``real = scale * (q - zero_point)``, with one
    scale for the whole array (Jacob et al., "Quantization and training of neural networks for
    efficient integer-arithmetic-only inference", 2018).

    Args:
        scale: the real distance between neighbouring integers: finite, above 0.
        zero_point: the integer that stands for 0, inside the range of the array's dtype.

    Raises:
        PoolValueError, PoolTypeError: for anything else.

    >>> from poolkit.quantized import QParams
    >>> QParams(0.5, zero_point=3)
    QParams(scale=0.5, zero_point=3)
    """

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        for name in ("scale", "zero_point"):
            value = getattr(self, name)
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        check_number("scale", self.scale, 0, "above 0")
        object.__setattr__(self, "scale", float(self.scale))
        if isinstance(self.zero_point, bool) or not isinstance(self.zero_point, int):
            raise PoolTypeError(
                f"zero_point must be an integer, got {self.zero_point!r}", "Give an integer"
            )

    @classmethod
    def from_range(
        cls, low: float, high: float, dtype: str = "int8", *, symmetric: bool = False
    ) -> QParams:
        """The parameters under which `dtype` covers the real numbers from `low` to `high`.

        Args:
            low, high: finite; the range is widened to hold 0, which is always exact.
            dtype: "int8" or "uint8".
            symmetric: whether 0 lies in the middle, at 0 of int8 and 128 of uint8, with 127 steps
                to the larger of ``|low|`` and ``|high|``.

        >>> from poolkit.quantized import QParams
        >>> QParams.from_range(-0.5, 2.0, "uint8").zero_point
        51
        >>> QParams.from_range(-0.5, 2.54, symmetric=True)
        QParams(scale=0.02, zero_point=0)
        """
        lowest, highest = _range_of(dtype)
        low, high = float(low), float(high)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise PoolValueError(
                f"a range from {low} to {high} cannot be quantized",
                "Give two finite numbers, the lower one first",
            )
        low, high = min(low, 0.0), max(high, 0.0)
        smallest = float(np.finfo(np.float64).tiny)
        if low == high:
            return cls(1.0, (lowest + highest + 1) // 2 if symmetric else lowest)
        if symmetric:
            return cls(max(max(-low, high) / 127, smallest), (lowest + highest + 1) // 2)
        steps = highest - lowest
        scale = max(high / steps - low / steps, smallest)  # the difference might overflow
        return cls(scale, min(max(lowest + round(-low / scale), lowest), highest))

    @classmethod
    def from_array(cls, x: Array, dtype: str = "int8", *, symmetric: bool = False) -> QParams:
        """`from_range` of the smallest and the largest value of an array.

        >>> import numpy as np
        >>> from poolkit.quantized import QParams
        >>> QParams.from_array(np.array([0.0, 25.5]), "uint8")
        QParams(scale=0.1, zero_point=0)
        """
        check_array(x)
        if 0 in tuple(x.shape):
            raise PoolValueError("an array without elements has no range", "Use from_range")
        return cls.from_range(float(x.min()), float(x.max()), dtype, symmetric=symmetric)

    def check_fits(self, dtype: str) -> None:
        """Refuses a zero point that `dtype` does not have."""
        lowest, highest = _range_of(dtype)
        if not lowest <= self.zero_point <= highest:
            raise PoolValueError(
                f"zero_point {self.zero_point} is not a value of {dtype}",
                f"Give one between {lowest} and {highest}",
            )


def _range_of(dtype: Any) -> tuple[int, int]:
    try:
        return DTYPES[dtype]
    except (KeyError, TypeError):
        raise PoolTypeError(
            f"quantized values are int8 or uint8, not {dtype!r}", "Write 'int8' or 'uint8'"
        ) from None


def check_quantized(q: Any) -> str:
    """The name of the dtype of an array of quantized values.

    Raises:
        PoolTypeError: for anything but plain int8 and uint8 arrays.
    """
    check_array(q)
    if is_torch_tensor(q) and q.is_quantized:
        raise PoolTypeError(
            "a quantized tensor carries its parameters with it",
            "Pass q.int_repr() with QParams(q.q_scale(), q.q_zero_point())",
        )
    name = dtype_name(q)
    if name not in DTYPES:
        raise PoolTypeError(
            f"quantized values are int8 or uint8, not {name}",
            "Make them with poolkit.quantized.quantize, or pool real values with poolkit.pool",
        )
    return name


def check_qparams(name: str, qparams: Any, dtype: str) -> None:
    """Refuses anything but parameters that fit the dtype."""
    if not isinstance(qparams, QParams):
        raise PoolTypeError(
            f"{name} must be QParams, got {qparams!r}", "Write QParams(scale, zero_point)"
        )
    qparams.check_fits(dtype)


def check_rounding(rounding: Any) -> None:
    """Refuses what is no way of rounding."""
    if rounding not in ROUNDINGS:
        raise PoolValueError(
            f"there is no rounding {rounding!r}", f"Write one of {', '.join(ROUNDINGS)}"
        )


def quantize(
    x: Array, qparams: QParams, dtype: str = "int8", *, rounding: str = "half_even"
) -> Array:
    """Real numbers as 8-bit integers: ``clamp(round(x / scale) + zero_point)``.

    Args:
        x: a NumPy array or torch tensor of real numbers. A NaN becomes the zero point.
        qparams: the parameters.
        dtype: "int8" or "uint8".
        rounding: as for `pool`. The quotient is rounded to float64 before.

    Raises:
        PoolValueError, PoolTypeError: for parameters or a dtype that do not fit.

    >>> import numpy as np
    >>> from poolkit.quantized import QParams, quantize
    >>> quantize(np.array([-1.0, 0.0, 0.25, 999.0]), QParams(0.5, zero_point=10), "uint8")
    array([  8,  10,  10, 255], dtype=uint8)
    """
    check_array(x)
    _range_of(dtype)
    check_qparams("qparams", qparams, dtype)
    check_rounding(rounding)
    if is_torch_tensor(x) and is_exported():
        from ..torch.quantized import quantize_in_graph

        return quantize_in_graph(x, qparams, dtype, rounding)
    return quantized_values(x, qparams, dtype, rounding)


def quantized_values(x: Array, qparams: QParams, dtype: str, rounding: str) -> Array:
    """`quantize` past its checks."""
    lowest, highest = _range_of(dtype)
    xp = arrays_of(x)
    steps = xp.cast(x, "float64") / qparams.scale
    steps = xp.where(xp.isnan(steps), xp.fill(steps, 0.0), steps)
    # Clamped first: what is infinite has no rest.
    steps = xp.at_least(xp.at_most(steps, 512.25), -512.25)
    codes = _rounded(xp, steps, rounding) + float(qparams.zero_point)
    codes = xp.at_least(xp.at_most(codes, float(highest)), float(lowest))
    # By way of int64: a negative number has no uint8 to be cast to.
    return xp.cast(xp.cast(codes, "int64"), dtype)


def _rounded(xp: Arrays, x: Array, rounding: str) -> Array:
    even = xp.round(x)
    rest = x - even
    one = xp.fill(x, 1.0)
    none = xp.fill(x, 0.0)
    if rounding == "half_even":
        return even
    if rounding == "half_up":
        return even + xp.where(rest == 0.5, one, none)
    if rounding == "half_away":
        up = xp.where((rest == 0.5) & (x > 0), one, none)
        return even + up - xp.where((rest == -0.5) & (x < 0), one, none)
    floor = xp.floor(x)
    if rounding == "floor":
        return floor
    return xp.where((x < 0) & (floor != x), floor + 1.0, floor)


def dequantize(q: Array, qparams: QParams, dtype: str = "float32") -> Array:
    """8-bit integers as real numbers: ``scale * (q - zero_point)``, rounded once to `dtype`.

    Args:
        q: int8 or uint8.
        qparams: the parameters.
        dtype: a floating dtype of the array's library, by name.

    Raises:
        PoolValueError, PoolTypeError: for parameters or dtypes that do not fit.

    >>> import numpy as np
    >>> from poolkit.quantized import QParams, dequantize
    >>> dequantize(np.array([8, 10, 255], dtype=np.uint8), QParams(0.5, zero_point=10))
    array([ -1. ,   0. , 122.5], dtype=float32)
    """
    name = check_quantized(q)
    check_qparams("qparams", qparams, name)
    if dtype not in ("float32", "float64", "float16", "bfloat16"):
        raise PoolTypeError(f"{dtype!r} is no floating dtype", "Write 'float32'")
    if dtype == "bfloat16" and not is_torch_tensor(q):
        raise PoolTypeError("NumPy has no bfloat16", "Write 'float32'")
    if is_torch_tensor(q) and is_exported():
        from ..torch.quantized import dequantize_in_graph

        return dequantize_in_graph(q, qparams, dtype)
    return real_values(q, qparams, dtype)


def real_values(q: Array, qparams: QParams, dtype: str) -> Array:
    """`dequantize` past its checks."""
    xp = arrays_of(q)
    with np.errstate(over="ignore"):
        real = (xp.cast(q, "float64") - float(qparams.zero_point)) * qparams.scale
        return xp.cast(real, dtype)
