"""The columns that come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import PoolValueError
from .tables import arrow_of, as_table

__all__ = ["Pooled", "check_names"]


class Pooled(Mapping[str, np.ndarray]):
    """The columns that a `WindowPool` makes, one row for each query, in their order.

    A count is (queries) int64, a mask ``seen_*`` (queries) bool, every other column
    (queries, width) in the dtype of the values.
    """

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._columns[name]
        except KeyError:
            raise PoolValueError(
                f"there is no column {name!r}", f"There are: {', '.join(self._columns)}"
            ) from None

    def get(self, name: str, default: Any = None) -> Any:
        return self._columns.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        shapes = (f"{name}: {c.dtype} {c.shape}" for name, c in self._columns.items())
        return f"Pooled({', '.join(shapes)})"

    def to_arrow(self, queries: Any = None) -> Any:
        """A pyarrow table, behind the columns of that of the queries, which is any that `asof`
        takes but files: vectors are lists of a fixed size.

        Raises:
            PoolValueError: where a column of the queries has the name of one of these, or another
                number of rows.
        """
        pa = arrow_of("results")
        columns = {} if queries is None else dict(as_table(queries, "queries"))
        rows = len(next(iter(self._columns.values())))
        for name, column in columns.items():
            if len(column) != rows:
                raise PoolValueError(
                    f"{name} of queries has {len(column)} rows, the result {rows}",
                    "Give the queries that were pooled for",
                )
        check_names(columns, self._columns)
        for name, column in self._columns.items():
            if column.ndim == 1:
                columns[name] = pa.array(column)
            else:
                flat = pa.array(np.ascontiguousarray(column).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
        return pa.table(columns)


def check_names(queries: Iterable[str], results: Iterable[str]) -> None:
    """Refuses columns of queries that would stand beside results of the same name."""
    given = set(queries)
    for name in results:
        if name in given:
            raise PoolValueError(
                f"queries have a column {name!r}, and so has the result", "Rename or drop theirs"
            )
