"""The pictures of a report, drawn by matplotlib, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .cases import Case
from .document import in_words
from .runner import CaseResult
from .scaling import SERIES, Point

TITLES = {
    "copy": "Time of poolkit over that of a copy of as many bytes",
    "time": "Time of a call against the elements of its input",
}
SHADES = ("#9dbfdd", "#1f4e79", "#0b1f33")  # one for each number of threads
TARGET = "#c0392b"
LOOKS = {  # colour and marker of each of SERIES
    "max": ("#1f4e79", "o"),
    "avg": ("#3f9b8f", "s"),
    "eager": ("#d98032", "^"),
    "copy": ("#777777", "x"),
}


def missing() -> str | None:
    """Why nothing can be drawn; None where it can."""
    return (
        None if find_spec("matplotlib") else "matplotlib is not installed: pip install matplotlib"
    )


def against_copy(results: Sequence[CaseResult], machine: str) -> str:
    """Horizontal bars, one for each case and number of threads, and a mark where a target is.

    The time of a tiny input is that of a call, which has nothing to do with its bytes: left out.
    """
    shown = {
        (result.case.name, result.threads): ratio.median
        for result in results
        if (ratio := result.ratio("poolkit", "copy")) and not result.case.name.startswith("tiny")
    }
    names = list(dict.fromkeys(name for name, _ in shown))
    threads = sorted({number for _, number in shown})
    thick = 0.8 / max(1, len(threads))
    figure = _figure(9.5, 1.5 + 0.22 * len(names) * max(1.0, 0.7 * len(threads)))
    axes = figure.subplots()
    for index, number in enumerate(threads):
        own = [(names.index(name), ratio) for (name, n), ratio in shown.items() if n == number]
        places = [place + thick * (index - (len(threads) - 1) / 2) for place, _ in own]
        bars = axes.barh(
            places, [ratio for _, ratio in own], 0.92 * thick,
            color=SHADES[index % len(SHADES)], label=in_words(number),
        )  # fmt: skip
        axes.bar_label(
            bars, [f"{ratio:.2f}" for _, ratio in own], padding=3, fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    targets = {result.case.name: _target(result.case) for result in results}
    held = [(names.index(name), targets[name]) for name in names if targets[name] is not None]
    axes.vlines(
        [target for _, target in held],
        [place - 0.45 for place, _ in held],
        [place + 0.45 for place, _ in held],
        color=TARGET, linewidth=2, label="target: at most",
    )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    most = 1.5 * max([2.0, *shown.values()])
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick < most]
    axes.set_xscale("log")
    axes.set_xlim(0.5, most)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("times the copy; 1 is the limit of memory")
    axes.set_title(f"{TITLES['copy']}\n{machine}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", fontsize=8)
    return _svg(figure)


def _target(case: Case) -> float | None:
    bounds = (t.wanted for t in case.targets if t.at_most and t.against == "copy")
    return next(bounds, None)


def against_elements(points: Sequence[Point], machine: str) -> str:
    """Time against elements, both logarithmic, a panel for each number of threads."""
    threads = sorted({point.threads for point in points})
    figure = _figure(1 + 4.5 * len(threads), 4.5)
    panels = figure.subplots(1, max(1, len(threads)), sharey=True, squeeze=False)[0]
    for number, axes in zip(threads, panels, strict=True):
        for series, (colour, marker) in LOOKS.items():
            own = [p for p in points if p.threads == number and series in p.ms]
            axes.plot(
                [point.elements for point in own],
                [point.ms[series].median for point in own],
                color=colour, marker=marker, markersize=4, linewidth=1.2, label=SERIES[series],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{in_words(number)}, {machine}", fontsize=10)
        axes.set_xlabel("elements of the input (float32)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds per call")
    panels[0].legend(fontsize=8)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    # Not pyplot, which would look for a screen and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    """The figure as text that is the same for the same figures, and in which words are words."""
    import matplotlib

    stream = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.hashsalt": "poolkit",
        "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    }
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
