"""What windows of time see of a real user's log: `docs/events.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..events import Column, WindowPool, decay, last
from ..examples.movielens import load
from .drawing import FAINT, INK, MONO, Sheet, as_heat

__all__ = ["pictures"]

USER = 810  # who came back again and again, and rated several films in one second
MOMENTS = ("1997-12-09T22:50:29", "1998-04-07T23:33:28")
WINDOWS = ("1h", "7d", "30d", "all")
HALF_LIFE, LAST = "7d", 10
SESSION = 3600  # seconds of quiet that end one
MOST = 1 / LAST  # the largest share that is drawn
CELL, GAP = (12, 20), 7  # of an event; between sessions
LEFT, RIGHT, TOP = 128, 64, 148
BLOCK = 34 + 6 * CELL[1]  # of a moment: its heading and its rows
NEVER, BEFORE, AT, MOMENT = "#ccd3da", "#e9edf0", "#ffffff", "#c8402f"


@dataclass(frozen=True)
class Timeline:
    """The log of one user, and where each event is drawn.

    Attributes:
        time: datetime64[s] (events), in order.
        left: the left edges of the events' columns (events), sessions apart.
        sessions, seconds: runs (first, end) of events that belong together, and of those that share
            their second.
    """

    time: np.ndarray
    left: np.ndarray
    sessions: list[tuple[int, int]]
    seconds: list[tuple[int, int]]

    @property
    def right(self) -> int:
        return int(self.left[-1]) + CELL[0]

    def place(self, time: np.ndarray | np.datetime64) -> np.ndarray:
        """On the axis of time, which is as wide as the columns."""
        span = (self.time[-1] - self.time[0]) / np.timedelta64(1, "s")
        share = (time - self.time[0]) / np.timedelta64(1, "s") / span
        return np.asarray(LEFT + 6 + share * (self.right - LEFT - 12))


def timeline(time: np.ndarray) -> Timeline:
    """Of times in seconds, in any order."""
    time = np.sort(time)
    session = np.cumsum(np.diff(time, prepend=time[0]) > SESSION)
    left = LEFT + np.arange(len(time)) * CELL[0] + session * GAP
    return Timeline(
        time.astype("datetime64[s]"), left, _runs(session),
        [run for run in _runs(time) if run[1] - run[0] > 1],
    )  # fmt: skip


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    runs, first = [], 0
    for _, members in groupby(values.tolist()):
        end = first + len(list(members))
        runs.append((first, end))
        first = end
    return runs


def shares_of(time: np.ndarray, moment: np.datetime64) -> dict[str, tuple[np.ndarray, int]]:
    """The share of each event in what a moment sees, by the names of the columns, and how many it
    sees: vectors of an event alone are one-hot, so what is pooled are the shares."""
    spec = WindowPool(
        key="user", time="time", value=Column("vector"), windows=WINDOWS,
        reduce=["mean", decay(HALF_LIFE), last(LAST)],
    )  # fmt: skip
    same = np.zeros(len(time), np.int64)
    out = spec.asof(
        {"user": same, "time": time, "vector": np.eye(len(time))},
        {"user": [0], "time": np.array([moment])},
    )
    names = [f"mean_{window}" for window in WINDOWS]
    names += [f"decay_{HALF_LIFE}_all", f"last_{LAST}_all"]
    return {name: (out[name][0], int(np.count_nonzero(out[name]))) for name in names}


def pictures() -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each picture."""
    ratings = load()
    yield "events.png", windows_of(timeline(ratings.time[ratings.user == USER]))


def windows_of(line: Timeline) -> bytes:
    """Events across, windows and reductions down, for each moment; above, when they happened."""
    moments = [np.datetime64(moment) for moment in MOMENTS]
    height = TOP + len(moments) * BLOCK + 92
    page = Sheet(line.right + RIGHT, height)
    _axis(page, line, moments)
    for index, moment in enumerate(moments):
        _moment(page, line, moment, index + 1, TOP + index * BLOCK)
    bottom = TOP + len(moments) * BLOCK + 4
    days = line.time.astype("datetime64[D]")
    for first, _ in line.sessions:
        if first and days[first] == days[first - 1]:
            continue
        day = days[first].item()
        page.text(
            line.left[first] + CELL[0] / 2 + 3, bottom, f"{day:%-d %b}", 10, color=FAINT,
            ha="right", va="top", rotation=55, rotation_mode="anchor",
        )  # fmt: skip
    _legend(page, height - 20)
    return page.png()


def _axis(page: Sheet, line: Timeline, moments: list[np.datetime64]) -> None:
    """The months, and a thread from when each event happened to its column."""
    axis, columns = 46, TOP - 12
    page.box(LEFT, axis, line.right - LEFT, 1.5, FAINT)
    page.text(LEFT - 8, axis, "when", 11, ha="right", color=FAINT)
    page.text(LEFT - 8, columns - 4, f"{len(line.time)} events", 11, ha="right", color=FAINT)
    months = np.arange(
        line.time[0].astype("datetime64[M]") + 1, line.time[-1].astype("datetime64[M]") + 1
    )
    for month in months:
        x = float(line.place(month.astype("datetime64[s]")))
        page.box(x, axis - 6, 1.5, 6, FAINT)
        name = f"{month.item():%b %Y}" if month == months[0] else f"{month.item():%b}"
        page.text(x + 5, axis - 10, name, 11, color=FAINT)
    for when, left in zip(line.place(line.time), line.left, strict=True):
        page.line([(when, axis + 2), (when, axis + 14), (left + CELL[0] / 2, columns - 16),
                   (left + CELL[0] / 2, columns)], "#93a1ae", 0.7)  # fmt: skip
    for index, moment in enumerate(moments):
        x = float(line.place(moment))
        page.box(x - 1.25, axis - 24, 2.5, 26, MOMENT)
        page.text(x, axis - 33, f"t{'₁₂₃'[index]}", 13, ha="center", color=MOMENT)
    for first, end in line.seconds:
        page.box(line.left[first] + 1, columns + 2, line.left[end - 1] + CELL[0] - 2
                 - line.left[first], 2.5, INK)  # fmt: skip


def _moment(page: Sheet, line: Timeline, moment: np.datetime64, number: int, top: int) -> None:
    heading = f"{moment.item():%-d %B %Y, %H:%M:%S}"
    page.text(LEFT, top + 12, f"t{'₁₂₃'[number - 1]}", 13, color=MOMENT)
    page.text(LEFT + 18, top + 12, heading, 11.5, color=MOMENT)
    page.text(line.right + 8, top + 12, "seen", 11, color=FAINT)
    rows = shares_of(line.time, moment)
    for index, (name, (shares, seen)) in enumerate(rows.items()):
        y = top + 26 + index * CELL[1]
        page.text(LEFT - 8, y + CELL[1] / 2, name, 11.5, ha="right", family=MONO)
        page.text(line.right + 8, y + CELL[1] / 2, str(seen), 11.5)
        colours = _colours(shares)
        for time, left, share, colour in zip(line.time, line.left, shares, colours, strict=True):
            _event(page, left, y, "seen" if share else _when(time, moment), colour)


def _colours(shares: np.ndarray) -> np.ndarray:
    return as_heat(shares[None], MOST, "YlGnBu", 2.0)[0] / 255


def _when(time: np.datetime64, moment: np.datetime64) -> str:
    return "before" if time < moment else "at t" if time == moment else "later"


def _event(page: Sheet, left: float, top: float, kind: str, colour: object = None) -> None:
    across, along = CELL[0] - 1.5, CELL[1] - 3
    if kind == "later":
        page.box(left + CELL[0] / 2 - 1.5, top + CELL[1] / 2 - 2, 2, 2, NEVER)
        return
    if kind == "at t":
        page.box(left, top, across, along, MOMENT)
        left, top, across, along = left + 1.5, top + 1.5, across - 3, along - 3
    page.box(left, top, across, along, {"before": BEFORE, "at t": AT}.get(kind, colour))


def _legend(page: Sheet, y: float) -> None:
    x = float(LEFT)
    shares = np.array([0.001, 0.01, 0.05, 0.1])
    for share, colour in zip(shares, _colours(shares), strict=True):
        _event(page, x, y - CELL[1] / 2, "seen", colour)
        page.text(x + 16, y - 1, f"{share:.1%}".replace(".0", ""), 11, color=FAINT)
        x += 52
    page.text(x - 2, y - 1, "of the pooled vector", 11, color=FAINT)
    x += 140
    for kind, words in (
        ("before", "not in the window"), ("at t", "at t: not seen"), ("later", "later"),
    ):  # fmt: skip
        _event(page, x, y - CELL[1] / 2, kind)
        page.text(x + 18, y - 1, words, 11, color=FAINT)
        x += 42 + 6.2 * len(words)
    page.box(x, y - 2, 26, 2.5, INK)
    page.text(x + 32, y - 1, "one second", 11, color=FAINT)
