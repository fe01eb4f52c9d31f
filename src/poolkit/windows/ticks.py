"""Times as whole ticks of a unit since 1970, exactly or not at all."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..errors import PoolValueError
from .durations import UNITS

__all__ = ["ticks_in", "ticks_of"]

_ATTOSECONDS = {
    "W": 7 * 86400 * 10**18, "D": 86400 * 10**18, "h": 3600 * 10**18, "m": 60 * 10**18,
    "s": 10**18, "ms": 10**15, "us": 10**12, "ns": 10**9, "ps": 10**6, "fs": 10**3, "as": 1,
}  # fmt: skip


def ticks_of(times: np.ndarray, name: str, unit: str) -> np.ndarray:
    """datetime64 of any unit, in ticks of `unit`: see `ticks_in`.

    >>> ticks_of(np.array([3], "datetime64[500ms]"), "ts", "ms")
    array([1500])

    Raises:
        PoolValueError: for NaT, and as of `ticks_in`.
    """
    if np.isnat(times).any():
        raise PoolValueError(f"{name} holds NaT", "Drop those rows")
    source, count = np.datetime_data(times.dtype)
    if source in ("Y", "M"):  # which have no fixed length
        days = times.astype("datetime64[D]")
        if (days.astype(times.dtype) != times).any():
            raise _too_far(name, "D")
        times, source, count = days, "D", 1
    return ticks_in(times.astype(np.int64), source, name, unit, count)


def ticks_in(ticks: np.ndarray, source: str, name: str, unit: str, count: int = 1) -> np.ndarray:
    """Times of `count` units of `source` each, in ticks of `unit`.

    Raises:
        PoolValueError: for times that are no whole ticks, or that do not fit 64 bits.
    """
    ticks = np.ascontiguousarray(ticks, dtype=np.int64)
    up, down = Fraction(count * _ATTOSECONDS[source], _ATTOSECONDS[unit]).as_integer_ratio()
    if down > 1:
        ticks, rest = np.divmod(ticks, down)
        if rest.any():
            raise PoolValueError(
                f"{name} holds times in {source} that are no whole {unit}",
                f"Write unit={source!r} in the specification" if source in UNITS
                else f"Round them to datetime64[{unit}]",
            )  # fmt: skip
    limit = (2**63 - 1) // up
    if up > 1 and len(ticks) and (ticks.max() > limit or ticks.min() < -limit):
        raise _too_far(name, unit)
    return ticks * up if up > 1 and limit else ticks


def _too_far(name: str, unit: str) -> PoolValueError:
    return PoolValueError(
        f"{name} holds times that do not fit 64 bits in {unit}", "Use a coarser unit"
    )
