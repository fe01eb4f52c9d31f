"""The comparison as one HTML file: no script, no network, plots and style inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poolkit.comparison.costs import LAYOUTS
from poolkit.comparison.records import Findings, VariantRow
from poolkit.comparison.terminal import counted, failures, human_number
from poolkit.inspection.wording import human_bytes
from poolkit.pages import document

_HERE = Path(__file__).parent
#: What all pages look like.
_STYLE = _HERE.parent / "inspection" / "page.css"

#: Of the plot, in pixels: the axis, a row, room for figures at the right, and above the rows. Names
#: get as much room as the longest needs.
_AXIS, _ROW, _RIGHT, _TOP, _LETTER = 560, 34, 170, 26, 7.6


@dataclass(frozen=True)
class Mark:
    """A row of a plot, in pixels."""

    row: VariantRow
    y: float
    low: float
    mean: float
    high: float
    seeds: list[float]


@dataclass(frozen=True)
class Plot:
    """Intervals on one axis of percentage points."""

    marks: list[Mark]
    ticks: list[tuple[float, str]]
    zero: float
    margin: tuple[float, float]
    width: int
    height: int
    left: int
    right: int


def render(found: Findings) -> str:
    """Return the page of a comparison. Needs Jinja2."""
    return document(
        _HERE / "page.html.j2",
        [_STYLE, _HERE / "page.css"],
        {
            "bytes": human_bytes,
            "count": human_number,
            "percent": lambda share: f"{100 * share:.2f}",
            "counted": counted,
            "points": lambda share: f"{100 * share:+.2f}",
            "px": lambda value: f"{value:.1f}",
        },
        found=found,
        plot=interval_plot(found),
        failures=failures(found),
        layouts=[name for name in LAYOUTS if name in found.baseline.inference_ms],
    )


def interval_plot(found: Findings) -> Plot:
    """Where the differences, their intervals and those of single seeds are drawn."""
    base = found.baseline.accuracies
    by_seed = {
        row.label: [own - other for own, other in zip(row.accuracies, base, strict=True)]
        for row in found.rows[1:]
    }
    ends = [-2 * found.margin, 2 * found.margin]
    for row in found.rows[1:]:
        ends += [*(row.interval or ()), *by_seed[row.label]]
    step = _step(100 * (max(ends) - min(ends)))
    first, last = math.floor(100 * min(ends) / step), math.ceil(100 * max(ends) / step)
    left = round(30 + _LETTER * max(len(label) for label in by_seed))
    x = _scale(first * step / 100, last * step / 100, left)
    marks = []
    for index, row in enumerate(found.rows[1:]):
        assert row.interval is not None
        assert row.difference is not None
        y = _TOP + _ROW * (index + 0.5)
        low, high = row.interval
        seeds = [x(value) for value in by_seed[row.label]]
        marks.append(Mark(row, y, x(low), x(row.difference), x(high), seeds))
    return Plot(
        marks=marks,
        ticks=[(x(n * step / 100), f"{n * step:+g}" if n else "0") for n in range(first, last + 1)],
        zero=x(0.0),
        margin=(x(-found.margin), x(found.margin)),
        width=left + _AXIS + _RIGHT,
        height=_TOP + _ROW * len(marks) + 8,
        left=left,
        right=left + _AXIS,
    )


def _scale(low: float, high: float, left: int) -> Callable[[float], float]:
    """From a value to its place on the axis."""
    return lambda value: left + _AXIS * (value - low) / (high - low)


def _step(span: float) -> float:
    """A round distance between ticks, of which 4 to 10 fit into `span`.

    >>> _step(3.1), _step(24), _step(0.7)
    (0.5, 5.0, 0.1)
    """
    size: float = 10.0 ** math.floor(math.log10(span / 4))
    return next(size * by for by in (5, 2, 1) if span / (size * by) >= 4)
