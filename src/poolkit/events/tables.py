"""Tables in any form, and their columns as plain arrays: keys, times, vectors, weights.

A dict of NumPy arrays needs NumPy alone. Whatever else can give Arrow columns (tables and batches
of pyarrow, Polars and pandas frames, DuckDB relations) goes through pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import MissingExtraError, PoolTypeError, PoolValueError
from ..windows.ticks import ticks_in, ticks_of

__all__ = [
    "Keys",
    "arrow_of",
    "as_table",
    "check_flat",
    "check_nulls",
    "finder",
    "item_at",
    "keys_of",
    "numbers_of",
    "order_of",
    "real_rows",
    "tie_codes",
    "times_of",
    "vectors_of",
    "weights_of",
]

Table = Mapping[str, Any]


def as_table(given: Any, what: str) -> Table:
    """Columns by name: arrays of NumPy or of Arrow."""
    if isinstance(given, Mapping):
        return {
            str(name): column
            if _is_arrow(column) or np.ma.isMaskedArray(column)
            else np.asarray(column)
            for name, column in given.items()
        }
    if type(given).__name__ == "LazyFrame":  # of Polars
        given = given.collect()
    if type(given).__module__.startswith("pyspark."):
        raise PoolTypeError(
            f"{what} are a DataFrame of Spark",
            "Pool them there, by asof(..., engine=session), or give their toArrow()",
        )
    if not hasattr(given, "__arrow_c_stream__") and not hasattr(given, "__arrow_c_array__"):
        raise PoolTypeError(
            f"{what} are no table: {type(given).__name__}",
            "Give a dict of arrays, an Arrow table, a Polars or pandas frame, a DuckDB relation, "
            "or the path of Parquet files",
        )
    pandas = type(given).__module__.partition(".")[0] == "pandas"
    table = given if pandas else arrow_of(what).table(given)
    names = [str(name) for name in (table.columns if pandas else table.column_names)]
    if len(set(names)) < len(names):
        raise PoolValueError(
            f"{what} have two columns of one name: {', '.join(names)}", "Rename or drop one"
        )
    return _of_pandas(table, what) if pandas else dict(zip(names, table.columns, strict=True))


def _of_pandas(frame: Any, what: str) -> Table:
    """Its columns, with NaN for NaN where pandas itself gives Arrow nulls."""
    pa = arrow_of(what)
    table = pa.table(frame)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name, column in frame.items():
        kind = columns[str(name)].type
        kind = kind.value_type if pa.types.is_list(kind) else kind
        if pa.types.is_floating(kind) and isinstance(column.dtype, np.dtype):
            with suppress(pa.ArrowException):  # pandas.NA, which is a null
                columns[str(name)] = pa.array(column.to_numpy(), from_pandas=False)
    return columns


def arrow_of(what: str) -> Any:
    """pyarrow, which is imported when it is needed first."""
    try:
        import pyarrow

        return pyarrow
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "events") from None


def _is_arrow(column: Any) -> bool:
    return type(column).__module__.partition(".")[0] == "pyarrow"


@dataclass(frozen=True)
class Keys:
    """Keys as 64-bit integers: themselves, or places in `names`.

    Attributes:
        kind: "integers", "text" or "bytes"; None where no key says which.
    """

    codes: np.ndarray
    names: np.ndarray | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.names is None:
            object.__setattr__(self, "kind", "integers")
        elif len(self.names):
            kind = "bytes" if isinstance(self.names[0], bytes) else "text"
            object.__setattr__(self, "kind", kind)

    def values(self) -> np.ndarray:
        return self.codes if self.names is None else self.names[self.codes]

    @cached_property
    def places(self) -> dict[Any, int]:
        """Where each of `names` is. Kept, as the runs of a state are asked again and again."""
        names = () if self.names is None else self.names.tolist()
        return {name: place for place, name in enumerate(names)}

    def of(self, events: Keys, whose: str = "events", ours: str = "queries") -> np.ndarray:
        """These keys in the codes of `events`; a key that it does not have is no code of its."""
        if self.kind != events.kind and self.kind and events.kind:
            raise PoolTypeError(
                f"the keys of {whose} are {events.kind}, those of {ours} {self.kind}",
                "Convert one of them",
            )
        if self.names is None or events.names is None:
            return self.codes
        known = [events.places.get(name, -1) for name in self.names.tolist()]
        return np.array(known, dtype=np.int64)[self.codes] if known else self.codes

    def take(self, places: np.ndarray) -> Keys:
        return replace(self, codes=self.codes[places])


def finder(table: Table, what: str) -> Callable[[str], Any]:
    """Gives the columns of `what` by name, without nulls."""

    def find(name: str) -> Any:
        if name not in table:
            raise PoolValueError(
                f"{what} have no column {name!r}", f"They have: {', '.join(map(str, table))}"
            )
        column = table[name]
        check_nulls(column, f"{name} of {what}")
        return column if _is_arrow(column) else np.asarray(column)

    return find


def check_nulls(column: Any, name: str) -> None:
    """Refuses nulls of Arrow, and what a mask hides."""
    nulls = column.null_count if _is_arrow(column) else int(np.ma.getmask(column).sum())
    if nulls:
        raise PoolValueError(f"{name} has {nulls} nulls in {len(column)} rows", "Drop or fill them")


def check_flat(column: np.ndarray, name: str) -> None:
    """Refuses all but one value for each row."""
    if column.ndim != 1:
        raise PoolTypeError(
            f"{name} is an array of shape {column.shape}", "Give one value for each row"
        )


def keys_of(column: Any, name: str) -> Keys:
    """Integers, text or bytes."""
    if _is_arrow(column):
        pa = arrow_of("keys")
        import pyarrow.compute as pc

        if not pa.types.is_integer(column.type):
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_nested(kind):
                raise PoolTypeError(f"{name} holds {kind}, which is no key", "Use integers or text")
            if not pa.types.is_dictionary(column.type):
                column = pc.dictionary_encode(column)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            if isinstance(column, pa.ChunkedArray):  # of no chunks or of several dictionaries
                column = column.unify_dictionaries().chunk(0)
            names = np.array(column.dictionary.to_pylist() or [], dtype=object)
            _check_names(names, name)
            if len(set(names.tolist())) < len(names):  # a dictionary may hold a value twice
                return keys_of(column.dictionary_decode(), name)
            codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            if pa.types.is_null(kind):
                return Keys(codes, names)
            return Keys(codes, names, "bytes" if "binary" in str(kind) else "text")
        column = column.to_numpy()
    check_flat(column, name)
    if not len(column) and column.dtype == np.float64:  # what NumPy makes of []
        return Keys(np.zeros(0, np.int64), np.zeros(0, object))
    if column.dtype.kind in "iu":
        if column.dtype == np.uint64 and len(column) and column.max() > np.iinfo(np.int64).max:
            raise PoolValueError(f"{name} holds keys beyond 2**63 - 1", "Convert them to text")
        return Keys(np.ascontiguousarray(column, dtype=np.int64))
    if column.dtype.kind not in "OUS":
        raise PoolTypeError(f"{name} holds {column.dtype}, which is no key", "Use integers or text")
    _check_names(column if column.dtype.kind == "O" else column[:0], name)
    names, codes = np.unique(column, return_inverse=True)
    kind = {"S": "bytes", "U": "text"}.get(column.dtype.kind)
    return Keys(codes.astype(np.int64), names.astype(object), kind)


def _check_names(names: np.ndarray, name: str) -> None:
    kinds = {type(value) for value in names.tolist()}
    if not (kinds <= {str} or kinds <= {bytes}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise PoolTypeError(f"{name} holds {found}, which are no keys", "Use integers or text")


def times_of(column: Any, name: str, unit: str) -> tuple[np.ndarray, bool]:
    """Ticks of `unit` since 1970, and whether the times have a time zone."""
    if _is_arrow(column):
        pa = arrow_of("times")
        kind = column.type
        aware = pa.types.is_timestamp(kind) and kind.tz is not None
        if pa.types.is_timestamp(kind):
            source = kind.unit
            ticks = column.cast(pa.int64()).to_numpy()
        elif pa.types.is_date32(kind):
            source, ticks = "D", column.cast(pa.int32()).to_numpy().astype(np.int64)
        elif pa.types.is_date64(kind):
            source, ticks = "ms", column.cast(pa.int64()).to_numpy()
        else:
            raise _no_time(name, kind)
        return ticks_in(ticks, source, name, unit), aware
    check_flat(column, name)
    if column.dtype.kind != "M":
        if not len(column) and column.dtype == np.float64:  # what NumPy makes of []
            return np.zeros(0, np.int64), False
        if column.dtype.kind == "O" and all(isinstance(t, date) for t in column.tolist()):
            return _of_datetimes(column.tolist(), name, unit)
        raise _no_time(name, column.dtype)
    return ticks_of(column, name, unit), False


def _of_datetimes(times: list[date], name: str, unit: str) -> tuple[np.ndarray, bool]:
    if any(t != t for t in times):  # NaT of pandas
        raise PoolValueError(f"{name} holds NaT", "Drop those rows")
    whole = [t if isinstance(t, datetime) else datetime(t.year, t.month, t.day) for t in times]
    aware = {t.tzinfo is not None for t in whole}
    if len(aware) > 1:
        raise PoolTypeError(f"{name} has a time zone in some rows alone", "Give all one, or none")
    epoch = datetime(1970, 1, 1, tzinfo=UTC if True in aware else None)
    micro = timedelta(microseconds=1)
    # A Timestamp of pandas is a datetime with nanoseconds.
    rest = np.array([getattr(t, "nanosecond", 0) for t in whole], dtype=np.int64)
    ticks = np.array([(t - epoch) // micro for t in whole], dtype=np.int64)
    if not rest.any():
        return ticks_in(ticks, "us", name, unit), True in aware
    ticks = ticks_in(ticks, "us", name, "ns") + rest
    return ticks_in(ticks, "ns", name, unit), True in aware


def _no_time(name: str, kind: Any) -> PoolTypeError:
    return PoolTypeError(
        f"{name} holds {kind}, which does not say what time it is",
        "Convert it to timestamps: seconds since 1970, for instance, by astype('datetime64[s]')",
    )


def order_of(column: Any, name: str, unit: str) -> np.ndarray:
    """A column by which ties are broken."""
    if _is_arrow(column):
        column = column.to_numpy() if len(column) else np.zeros(0, np.int64)
    check_flat(column, name)
    if column.dtype.kind == "f" and np.isnan(column).any():
        raise PoolValueError(f"{name} holds NaN, which has no order", "Fill them")
    kinds = {type(tie) for tie in column.tolist()} if column.dtype.kind == "O" else set()
    if column.dtype.kind == "M" or (kinds and all(issubclass(kind, date) for kind in kinds)):
        return times_of(column, name, "ns")[0]
    if not any(all(issubclass(kind, whole) for kind in kinds) for whole in (str, bytes)):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise PoolTypeError(
            f"{name} holds objects of {found}, which break no tie",
            "Convert them to one type of number, to times or to text",
        )
    if column.dtype.kind not in "iubfOUS":
        raise PoolTypeError(f"{name} holds {column.dtype}, which has no order", "Use numbers")
    return column


def tie_codes(tie: np.ndarray) -> np.ndarray:
    """64-bit integers of the same order."""
    if tie.dtype.kind in "ib" or (tie.dtype.kind == "u" and tie.dtype.itemsize < 8):
        return np.ascontiguousarray(tie, dtype=np.int64)
    return np.unique(tie, return_inverse=True)[1].astype(np.int64)


def weights_of(column: Any, name: str) -> np.ndarray:
    """Finite numbers of 0 or more, in float64."""
    column = numbers_of(column, name)
    if column.ndim != 1 or column.dtype.kind not in "iubf":
        raise PoolTypeError(f"{name} holds {column.dtype} {column.shape}", "Weights are numbers")
    weight = np.ascontiguousarray(column, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(bad):
        raise PoolValueError(
            f"{name} is {weight[bad[0]]} in row {bad[0]}: {len(bad)} weights are negative or not "
            "finite",
            "Drop those events, or give them a weight of 0",
        )
    return weight


def item_at(column: Any, place: int) -> Any:
    """One value of a column, as Python has it."""
    value = column[place]
    return value.as_py() if hasattr(value, "as_py") else value.item() if hasattr(
        value, "item") else value  # fmt: skip


def vectors_of(column: Any, name: str) -> np.ndarray:
    """(n, width) in float32 or float64; numbers are vectors of width 1."""
    if _is_arrow(column):
        pa = arrow_of("vectors")
        kind = column.type
        check_nulls(column, name)
        if (
            pa.types.is_fixed_size_list(kind)
            or pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
        ):
            chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            if isinstance(chunk, pa.ChunkedArray):
                chunk = chunk.chunk(0) if chunk.num_chunks else pa.array([], kind)
            flat = chunk.flatten()
            if flat.null_count:
                raise PoolValueError(f"{name} holds vectors with nulls", "Drop or fill them")
            width = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
            if width < 0:
                import pyarrow.compute as pc

                lengths = np.unique(pc.list_value_length(chunk).to_numpy(zero_copy_only=False))
                if len(lengths) > 1:
                    raise PoolValueError(
                        f"{name} holds vectors of {lengths[0]} to {lengths[-1]} numbers",
                        "All must have the same width",
                    )
                width = int(lengths[0]) if len(lengths) else 1
            column = numbers_of(flat, name).reshape(len(chunk), width)
        else:
            column = numbers_of(column, name)
    return real_rows(column, name)


def real_rows(array: np.ndarray, name: str) -> np.ndarray:
    """(n, width), contiguous, in float32 or float64."""
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.dtype.kind not in "iubf":
        raise PoolTypeError(
            f"{name} must be numbers (rows, width), got {array.dtype} {array.shape}",
            "Give a two-dimensional array",
        )
    wide = array.dtype == np.float64 or array.dtype.kind != "f"
    return np.ascontiguousarray(array, dtype=np.float64 if wide else np.float32)


def numbers_of(column: Any, name: str) -> np.ndarray:
    """The values of a column, which may turn out to be no numbers."""
    if not _is_arrow(column):
        return np.asarray(column)
    if arrow_of("numbers").types.is_decimal(column.type):
        raise PoolTypeError(f"{name} holds {column.type}", "Cast it to float64")
    array: np.ndarray = column.to_numpy(zero_copy_only=False) if hasattr(
        column, "offset") else column.to_numpy()  # fmt: skip
    return array
