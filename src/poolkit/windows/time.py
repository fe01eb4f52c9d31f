"""Windows of time: what happened before a moment."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import PoolTypeError, PoolValueError
from .durations import UNITS, Calendar, duration, looked_back
from .segments import Rows, Segments, _taken
from .ticks import ticks_of

__all__ = ["TimeWindow"]


class TimeWindow(Segments):
    """The rows that happened in the time before each of some moments: ``t - length <= time < t``.

    What happens at t is not seen. With `keys`, a moment sees rows of its own key alone. Rows that
    happened at one time keep their order. For whole logs of events, with several windows and
    reductions at once, see `poolkit.events.WindowPool`.

    Args:
        length: a duration ("7d", "1h30m", a timedelta), a `poolkit.events.calendar` one, or None
            for all that was before.
        times: (rows) datetime64: when each row happened, in any order.
        at: (moments) datetime64.
        keys, at_keys: integers or text, for rows and for moments.
        empty, weights: as of `Segments`.

    x is (rows, *features), the result (moments, *features), with any reduction.

    >>> import numpy as np, poolkit
    >>> days = np.array(["2024-05-01", "2024-05-09", "2024-05-10"], "datetime64[D]")
    >>> week = poolkit.TimeWindow("7d", times=days, at=days)
    >>> poolkit.pool(np.array([[1.0], [3.0], [8.0]]), week, "max").ravel()
    array([0., 0., 3.])
    """

    def __init__(
        self,
        length: Any,
        *,
        times: Any,
        at: Any,
        keys: Any = None,
        at_keys: Any = None,
        empty: str | float = "zero",
        weights: Any = None,
    ) -> None:
        super().__init__(empty=empty, weights=weights)
        if (keys is None) != (at_keys is None):
            raise PoolTypeError("keys are of rows and of moments", "Give keys and at_keys, or none")
        self.length = length
        ticks, unit = _ticks(times, at)
        far = length if length is None or isinstance(length, Calendar) else duration(length, unit)
        own, asked = _codes(keys, at_keys, len(ticks[0]), len(ticks[1]))
        self.order = np.lexsort((ticks[0], own))
        begin = None if far is None else looked_back(ticks[1], far, unit)
        self.begin, self.count = _found(
            own[self.order], ticks[0][self.order], asked, ticks[1], begin
        )

    def __repr__(self) -> str:
        return f"TimeWindow({self.length!r}, times=<{len(self.order)}>, at=<{len(self.begin)}>)"

    def output_shape(self, shape: Any) -> tuple[Any, ...]:
        return (len(self.begin),)

    def rows_of(self, x: Array) -> Rows:
        if x.ndim < 1 or x.shape[0] != len(self.order):
            raise PoolValueError(
                f"there are {len(self.order)} times for an input of shape {tuple(x.shape)}",
                "Give one for each row",
            )
        weights = self._weights_of((x.shape[0],))
        return Rows(_taken(x, self.order), self.begin, self.count, _taken(weights, self.order))

    def _runs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return self.begin, self.count


def _ticks(times: Any, at: Any) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Both as 64-bit ticks of the finer of their units, of "s" to "ns", and that unit."""
    arrays = [np.asarray(times), np.asarray(at)]
    for name, array in zip(("times", "at"), arrays, strict=True):
        if array.dtype.kind != "M" or array.ndim != 1:
            raise PoolTypeError(
                f"{name} must be datetime64 in one row, got {array.dtype} {array.shape}",
                "Convert them: seconds since 1970, for instance, by astype('datetime64[s]')",
            )
    sources = {np.datetime_data(array.dtype)[0] for array in arrays}
    if sources & {"ps", "fs", "as"}:
        unit = "ns"
    else:
        unit = max(("s", *(sources & UNITS.keys())), key=UNITS.__getitem__)
    return (ticks_of(arrays[0], "times", unit), ticks_of(arrays[1], "at", unit)), unit


def _codes(keys: Any, at_keys: Any, rows: int, moments: int) -> tuple[np.ndarray, np.ndarray]:
    if keys is None:
        return np.zeros(rows, np.int64), np.zeros(moments, np.int64)
    own, asked = np.asarray(keys), np.asarray(at_keys)
    if own.shape != (rows,) or asked.shape != (moments,):
        raise PoolValueError(
            f"keys of shape {own.shape} and {asked.shape} for {rows} times and {moments} moments",
            "Give one for each",
        )
    integers = own.dtype.kind in "iu"
    if (
        rows
        and moments
        and (
            integers != (asked.dtype.kind in "iu")
            or (integers and np.result_type(own, asked).kind == "f")  # which would round them
        )
    ):
        raise PoolTypeError(f"keys are {own.dtype}, at_keys {asked.dtype}", "Convert one of them")
    codes = np.unique(np.concatenate([own, asked]), return_inverse=True)[1].astype(np.int64)
    return codes[:rows], codes[rows:]


def _found(
    own: np.ndarray, time: np.ndarray, asked: np.ndarray, at: np.ndarray, begin: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Begin and count of each window among rows sorted by (key, time)."""
    # Numbers of times, in place of times, so that a key and a time are one number to search for.
    distinct = np.unique(time)
    row = own * (len(distinct) + 1) + np.searchsorted(distinct, time)
    base = asked * (len(distinct) + 1)
    end = np.searchsorted(row, base + np.searchsorted(distinct, at))
    start = np.searchsorted(row, base if begin is None else base + np.searchsorted(distinct, begin))
    return start.astype(np.int64), (end - start).astype(np.int64)
