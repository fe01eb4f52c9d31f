"""Bags: rows of a table that an index names, weighted or not, pooled without being gathered.

A bag is a run of entries, and each entry names a row: a sentence as words of an embedding table, a
user as the items clicked, a segment as its own rows (no index). This is how weighted segments and
embedding bags reach the kernels; `poolkit.torch.bags` has their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _native
from .arrays import Array
from .dtypes import dtype_name

__all__ = ["Addresses", "pool_arrays"]


@dataclass(frozen=True)
class Addresses:
    """Where the parts of a call lie: addresses of contiguous arrays, 0 for what is not there.

    Attributes:
        table: (rows, width). index: (entries) int64, or 0 where entry e is row e.
        begin, count: (bags) int64: the entries of each bag.
        weights: (entries), divisors: (bags), in float32 or, for a table of float64, float64.
    """

    table: int
    index: int
    begin: int
    count: int
    bags: int
    width: int
    entries: int
    weights: int = 0
    divisors: int = 0

    def pool(
        self, reduction: str, dtype: str, parameter: float, out: int, places: int, threads: int
    ) -> None:
        """(bags, width) by "sum", "max", "min" or "soft"; `places` (int32) says for a max or min
        which entry of its bag each value is from. Bags without entries become zeros."""
        _native.pool_bags(
            reduction, dtype, parameter, self.table, 0, self.index, self.begin, self.count,
            self.bags, self.width, self.entries, self.weights, self.divisors, out, places, threads,
        )  # fmt: skip

    def products(self, dtype: str, own: int, out: int, threads: int) -> None:
        """(entries): the inner product of each entry's row with its bag's row in `own`."""
        _native.pool_bags(
            "products", dtype, 0.0, self.table, own, self.index, self.begin, self.count,
            self.bags, self.width, self.entries, 0, 0, out, 0, threads,
        )  # fmt: skip

    def scatter(self, dtype: str, places: int, out: int, threads: int) -> None:
        """Adds the gradient of a max or min, which is the table here, to the rows at `out`."""
        _native.scatter_bags(
            dtype, self.table, places, self.index, self.begin, self.count, self.bags, self.width,
            self.weights, out, threads,
        )  # fmt: skip

    def transpose(self, rows: int, begin_of: int, count_of: int, entry: int, bag: int) -> None:
        """Which bags see each row: row r by the entries ``entry[begin_of[r]:][:count_of[r]]``, and
        these are of the bags ``bag[...]``."""
        _native.transpose_bags(
            self.index, self.begin, self.count, self.bags, rows, begin_of, count_of, entry, bag
        )


def pool_arrays(
    rows: np.ndarray,
    begin: np.ndarray,
    count: np.ndarray,
    reduction: str,
    weights: Array | None,
    divisors: np.ndarray | None,
    parameter: float,
    threads: int,
) -> np.ndarray:
    """Bags without an index, of NumPy arrays."""
    dtype = dtype_name(rows)
    real = np.float64 if dtype == "float64" else np.float32
    held = [
        np.ascontiguousarray(begin, np.int64),
        np.ascontiguousarray(count, np.int64),
        None if weights is None else np.ascontiguousarray(weights, real),
        None if divisors is None else np.ascontiguousarray(divisors, real),
    ]
    at = [0 if array is None else array.ctypes.data for array in held]
    out = np.empty((len(begin), rows.shape[1]), rows.dtype)
    where = Addresses(
        rows.ctypes.data, 0, at[0], at[1], len(begin), rows.shape[1], len(rows), at[2], at[3]
    )
    where.pool(reduction, dtype, parameter, out.ctypes.data, 0, threads)
    return out
