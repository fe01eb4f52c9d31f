"""The table of element types: what each accumulates in and what each reduction of it gives.

A new dtype is one row here; it is fast with one more row in ``csrc/registry.def``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import PoolTypeError, dtype_name

__all__ = ["DTYPES", "DType", "dtype_name", "dtype_of", "unknown_dtype"]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: the name that NumPy and torch share ("bfloat16" exists in torch only).
        kind: "float", "int" or "bool".
        size: bytes per element.
        wide: the dtype in which sums are accumulated.
        real: the dtype of a result that is not a value of the input (a mean, a norm).
    """

    name: str
    kind: str
    size: int
    wide: str
    real: str


DTYPES = {
    row.name: row
    for row in (
        DType("float64", "float", 8, "float64", "float64"),
        DType("float32", "float", 4, "float32", "float32"),
        DType("bfloat16", "float", 2, "float32", "bfloat16"),
        DType("float16", "float", 2, "float32", "float16"),
        DType("int64", "int", 8, "int64", "float32"),
        DType("int32", "int", 4, "int64", "float32"),
        DType("int16", "int", 2, "int64", "float32"),
        DType("int8", "int", 1, "int64", "float32"),
        DType("uint8", "int", 1, "int64", "float32"),
        DType("bool", "bool", 1, "int64", "float32"),
    )
}


def dtype_of(x: Any) -> DType:
    """The row of an array's dtype.

    Raises:
        PoolTypeError: for a dtype that no pooling is defined on (complex, strings, objects, ...).
    """
    try:
        return DTYPES[dtype_name(x)]
    except KeyError:
        raise unknown_dtype(x) from None


def unknown_dtype(x: Any) -> PoolTypeError:
    """The refusal of a dtype that is not in the table."""
    remedy = f"Convert to one of {', '.join(DTYPES)}"
    if getattr(x.dtype, "isnative", True) is False and x.dtype.newbyteorder("=").name in DTYPES:
        remedy = 'Swap its bytes first: x.astype(x.dtype.newbyteorder("="))'
    return PoolTypeError(f"dtype {dtype_name(x)} cannot be pooled", remedy)
