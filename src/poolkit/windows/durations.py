"""How far back a window of time reaches: a fixed duration, or one of the calendar."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from ..errors import PoolTypeError, PoolValueError

__all__ = ["UNITS", "Calendar", "calendar", "duration", "looked_back", "written"]

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks of a second in each unit of time."""

_NANOSECONDS = {
    "ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
    "d": 86400 * 10**9, "w": 7 * 86400 * 10**9,
}  # fmt: skip
_EARLIEST = np.iinfo(np.int64).min


def duration(length: object, unit: str, name: str = "a window") -> int:
    """A fixed duration in ticks of `unit`: "7d", "1h30m", a timedelta or a timedelta64.

    >>> duration("1h30m", "s"), duration(timedelta(days=7), "ms")
    (5400, 604800000)

    Raises:
        PoolValueError, PoolTypeError: for anything else, for 0 or less, and for a duration that is
            no whole number of ticks.
    """
    nanoseconds = _nanoseconds(length, name)
    if nanoseconds <= 0:
        raise PoolValueError(f"{name} must be longer than nothing, got {length}", "Give a duration")
    ticks, rest = divmod(nanoseconds * UNITS[unit], 10**9)
    if rest:
        raise PoolValueError(
            f"{name} of {length} is no whole number of {unit}", "Use a finer unit of time"
        )
    if ticks >= 2**63:
        raise PoolValueError(f"{name} of {length} is too long", "Use None for all history")
    return ticks


def written(length: object, name: str = "a window") -> str:
    """A fixed duration as text, such as a name has; text as it stands.

    >>> written(timedelta(hours=36)), written("36h")
    ('1d12h', '36h')
    """
    if isinstance(length, str):
        return length
    rest, text = _nanoseconds(length, name), ""
    for step in ("d", "h", "m", "s", "ms", "us", "ns"):
        count, rest = divmod(rest, _NANOSECONDS[step])
        text += f"{count}{step}" if count else ""
    return text


def _nanoseconds(length: object, name: str) -> int:
    if isinstance(length, timedelta):
        return (length // timedelta(microseconds=1)) * 1000
    if isinstance(length, np.timedelta64):
        step, count = np.datetime_data(length.dtype)
        if step in _NANOSECONDS or step in ("D", "W"):
            return int(length.astype(np.int64)) * count * _NANOSECONDS[step.lower()]
    if isinstance(length, str):
        if re.fullmatch(r"(\d+(ns|us|ms|[smhdw]))+", length):
            parts = re.findall(r"(\d+)(ns|us|ms|[smhdw])", length)
            return sum(int(number) * _NANOSECONDS[step] for number, step in parts)
        raise PoolValueError(
            f"{name} of {length!r} is no fixed duration",
            "Write numbers with w, d, h, m, s, ms, us or ns, as '7d' or '1h30m'; months and years "
            "are poolkit.events.calendar('1mo', tz=...)",
        )
    raise PoolTypeError(f"{name} must be a duration, got {length!r}", "Write '7d', for instance")


@dataclass(frozen=True)
class Calendar:
    """See `calendar`."""

    months: int
    days: int
    text: str
    zone: str

    def __repr__(self) -> str:
        return f"calendar({self.text!r}, tz={self.zone!r})"

    def before(self, times: np.ndarray, unit: str) -> np.ndarray:
        """The beginning of the window of each time, in ticks of `unit` since 1970 in UTC."""
        # Only the time at which a window begins needs the calendar, and many queries share theirs.
        second = UNITS[unit]
        distinct, places = np.unique(times // second, return_inverse=True)
        begun = [self._before(int(time)) for time in distinct.tolist()]
        return np.array(begun, dtype=np.int64)[places] * second + times % second

    def longest(self, unit: str) -> int:
        """Ticks that the window never reaches beyond, whatever its months and clock."""
        return (31 * self.months + self.days + 1) * 86400 * UNITS[unit]

    def _before(self, seconds: int) -> int:
        from zoneinfo import ZoneInfo

        zone = ZoneInfo(self.zone)
        try:
            local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone)
            month = local.year * 12 + local.month - 1 - self.months
            year, month = divmod(month, 12)
            first = datetime(year, month + 1, 1)
            last = (datetime(year + (month == 11), (month + 1) % 12 + 1, 1) - first).days
            wall = local.replace(tzinfo=None, year=year, month=month + 1, day=min(local.day, last))
            begun = (wall - timedelta(days=self.days)).replace(tzinfo=zone, fold=local.fold)
            return (begun - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
        except (ValueError, OverflowError):
            raise PoolValueError(
                f"{self} before {seconds} s after 1970 is no date of the calendar",
                "Use times of the years 1 to 9999, or a fixed duration",
            ) from None


def calendar(length: str, tz: str) -> Calendar:
    """A window of days, weeks, months or years as a wall clock counts them, so that a day may have
    23 or 25 hours: it begins at the same time of day, so many dates earlier.

    Args:
        length: "7d", "2w", "1mo", "1y", or several in one.
        tz: the time zone of the clock, such as "Europe/Paris". Naive times are taken for UTC.

    A date that a month does not have becomes its last. A time of day that the clock skipped or
    repeated is the one that the offset before the change gives.

    >>> day = calendar("1d", tz="Europe/Paris").before(np.array([1743332400]), "s")  # 30 March 2025
    >>> (1743332400 - day) / 3600                      # 13:00 in summer time, the day of the change
    array([23.])
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # it loads much that others do not need

    steps = {"d": (0, 1), "w": (0, 7), "mo": (1, 0), "y": (12, 0)}
    if not isinstance(length, str) or not re.fullmatch(r"(\d+(mo|[dwy]))+", length):
        raise PoolValueError(
            f"{length!r} is no duration of the calendar", "Write '7d', '2w', '1mo' or '1y'"
        )
    months = days = 0
    for number, step in re.findall(r"(\d+)(mo|[dwy])", length):
        months += int(number) * steps[step][0]
        days += int(number) * steps[step][1]
    if months + days == 0:
        raise PoolValueError(f"a window must be longer than nothing, got {length}", "Give a length")
    try:
        ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise PoolValueError(f"there is no time zone {tz!r}", "Write 'Europe/Paris'") from None
    return Calendar(months, days, length, tz)


def looked_back(times: np.ndarray, length: int | Calendar, unit: str) -> np.ndarray:
    """Where the window of each time begins: `length` ticks earlier, or by the calendar."""
    if isinstance(length, Calendar):
        return length.before(times, unit)
    return np.where(times < _EARLIEST + length, _EARLIEST, times - length)
