"""Sum, mean, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ..arrays import Array, Arrays
from ..dtypes import DType, dtype_name, dtype_of
from ..errors import PoolTypeError, PoolValueError
from .base import Kernel, Mergeable, Seen, State, check_flag, register, settle

if TYPE_CHECKING:
    from ..windows import Spans

__all__ = ["Mean", "SqrtN", "Sum"]


class Additive(Mergeable):
    """States that add."""

    def identity(self, dtype: str) -> tuple[float, ...]:
        return (0,)

    def lift(self, xp: Arrays, x: Array) -> State:
        return (x,)

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        return (a[0] + b[0],)


@register
@dataclass(frozen=True, repr=False)
class Sum(Additive):
    """The sum. Integers and bools give int64; half types accumulate in float32. Padding adds
    nothing, a window that sees nothing gives 0, and no sum is -0.0.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[True, True, False, True]]), poolkit.Sliding(2), "sum")
    array([[2, 1]])
    """

    summary: ClassVar[str] = "Σ x"

    @property
    def kernel(self) -> Kernel:
        return Kernel("sum", "sum")

    def result_dtype(self, dtype: DType) -> str:
        return dtype.name if dtype.kind == "float" else "int64"

    def working_dtype(self, dtype: DType) -> str:
        return dtype.wide

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        return state[0] + 0  # -0.0 + 0 is 0.0


@register
@dataclass(frozen=True, repr=False)
class Mean(Additive):
    """The arithmetic mean.

    Args:
        count_include_pad: whether positions in the padding count in the divisor (torch's
            default). What hangs over the padding in ceil_mode never counts.
        divisor: divides every sum by this instead (torch's ``divisor_override``).
        result: "float" gives float32 for integers; "same" rounds to the integer dtype of the
            input, half to even.

    A window that divides by 0 positions gives NaN, or 0 where the result is an integer.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1, 2, 3, 5]]), poolkit.Sliding(2), "mean")
    array([[1.5, 4. ]], dtype=float32)
    """

    count_include_pad: bool = True
    divisor: int | None = None
    result: Literal["float", "same"] = "float"
    summary: ClassVar[str] = "Σ x / n"

    def __post_init__(self) -> None:
        settle(self, "count_include_pad", "divisor")
        check_flag("count_include_pad", self.count_include_pad)
        object.__setattr__(self, "count_include_pad", bool(self.count_include_pad))
        if self.divisor is not None and (
            isinstance(self.divisor, bool) or not isinstance(self.divisor, int)
        ):
            raise PoolTypeError(
                f"divisor must be an integer or None, got {self.divisor!r}",
                "Divide the sum yourself by anything else",
            )
        if self.divisor == 0:
            raise PoolValueError("divisor must not be zero", "Give another number, or None")
        if self.divisor is not None and abs(self.divisor) > 2**53:
            raise PoolValueError(
                f"divisor must lie between -2**53 and 2**53, got {self.divisor}",
                "Divide the sum yourself by anything else",
            )
        if self.result not in ("float", "same"):
            raise PoolValueError(
                f"result must be 'float' or 'same', got {self.result!r}", "Write one of them"
            )

    @property
    def kernel(self) -> Kernel:
        return Kernel("sum", "sum", divides=True)

    def divisors(self, axes: Sequence[Spans]) -> tuple[np.ndarray, ...]:
        if self.divisor is None:
            return tuple(span.padded if self.count_include_pad else span.count for span in axes)
        ones = [np.ones(len(span.begin), dtype=np.int64) for span in axes]
        return (ones[0] * int(self.divisor), *ones[1:])

    def result_dtype(self, dtype: DType) -> str:
        return dtype.name if self.result == "same" and dtype.kind == "int" else dtype.real

    def working_dtype(self, dtype: DType) -> str:
        # "same" is about integers, which a bool is not.
        return "float64" if dtype.kind == "bool" else dtype.wide

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        total = state[0]
        if dtype_of(total).kind == "int":
            if self.result == "same":
                return self.rounded(xp, total, seen)
            total = xp.cast(total, "float64")
        if self.divisor is not None:
            mean = total / self.divisor
        else:
            mean = total / xp.cast(
                seen.padded if self.count_include_pad else seen.inside, dtype_name(total)
            )
        return mean + 0.0

    def rounded(self, xp: Arrays, total: Array, seen: Seen) -> Array:
        """The mean of integers as an integer, exact for any of 64 bits."""
        if self.divisor is not None:
            n, total = abs(self.divisor), total if self.divisor > 0 else -total
        else:
            n = seen.padded if self.count_include_pad else seen.inside
            n = n + (n == 0)  # such a window has the sum 0
        low = total // n
        twice = 2 * (total - low * n)
        return low + ((twice > n) | ((twice == n) & (low % 2 == 1)))


@register
@dataclass(frozen=True, repr=False)
class SqrtN(Additive):
    """The sum divided by the square root of the number of values: between a sum, which grows with
    the length, and a mean, in which long windows lie close together ("sqrtn" of embedding
    combiners, "mean_sqrt_len" of sentence encoders; Reimers and Gurevych, "Sentence-BERT", 2019).

    Padding never counts, and a window that sees nothing gives 0.

    >>> import poolkit, numpy as np
    >>> poolkit.pool(np.array([[1.0, 2.0, 3.0, 2.0]]), poolkit.Sliding(4), "sqrt_n")
    array([[4.]])
    """

    summary: ClassVar[str] = "Σ x / sqrt(n)"

    def working_dtype(self, dtype: DType) -> str:
        return "float64" if dtype.kind == "bool" else dtype.wide

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        total = state[0]
        if dtype_of(total).kind == "int":
            total = xp.cast(total, "float64")
        count = xp.at_least(xp.cast(seen.inside, dtype_name(total)), 1.0)
        return total / xp.sqrt(count) + 0.0
