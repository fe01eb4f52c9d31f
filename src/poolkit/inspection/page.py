"""The report as one HTML file: no network, no style or script but its own, all pictures inside.

The table reads without JavaScript; ``page.js`` adds sorting, filters, keys and large pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

from poolkit.inspection.pictures import colour_of, data_uri, ramp
from poolkit.inspection.records import (
    LOOKED_FOR,
    MEASURES,
    YARDSTICKS,
    Findings,
    LayerRecord,
    Loss,
    Spectrum,
)
from poolkit.inspection.wording import (
    human_bytes,
    human_count,
    human_measure,
    human_ms,
    human_shape,
    human_share,
)
from poolkit.pages import document

_HERE = Path(__file__).parent
#: The part of a spectrum that is drawn: six decades below the largest power.
_DECADES = 6


def render(report: Findings) -> str:
    """Return the page of ``report``. Needs Jinja2, and Pillow for the colour scale."""
    times = [t for layer in report.layers for t in (layer.torch_ms, layer.poolkit_ms) if t]
    return document(
        _HERE / "page.html.j2",
        [_HERE / "page.css"],
        {
            "bytes": human_bytes,
            "ms": human_ms,
            "shape": human_shape,
            "share": human_share,
            "number": lambda value: f"{value:.4g}",
            "measure": human_measure,
            "png": data_uri,
            "jpeg": lambda data: data_uri(data, "jpeg"),
            "colour": colour_of,
            "places": describe_places,
            "spectrum": Curves.of,
        },
        [_HERE / "page.js"],
        gauge=gauge,
        count=human_count,
        report=report,
        timed=bool(times),
        slowest=max(times, default=1.0),
        ramp=ramp(),
        differences=ramp(differences=True),
        looked_for=LOOKED_FOR,
        likeness=likeness(report.layers),
        charts=charts(report.layers),
        measures=MEASURES,
        yardsticks=YARDSTICKS,
    )


def likeness(layers: Sequence[LayerRecord]) -> list[tuple[int, int]]:
    """For each layer the number of its kind, and how many are of it: identical blocks.

    Only the first of a kind counts them, so that a table can show it for all.
    """
    kinds: dict[Any, int] = {}
    counts = Counter(layer.likeness for layer in layers)
    found = []
    for layer in layers:
        first = layer.likeness not in kinds
        number = kinds.setdefault(layer.likeness, len(kinds))
        found.append((number, counts[layer.likeness] if first else 0))
    return found


def gauge(layer: LayerRecord, measure: str) -> dict[str, float] | None:
    """Where a layer and its yardsticks lie on a line from 0 to 100, for one measure."""
    if layer.loss is None or (value := getattr(layer.loss, measure)) is None:
        return None
    most = 2.0 if measure == "shift_error" else 1.0
    marks = {
        name: round(100 * other / most, 1)
        for name, loss in layer.yardsticks.items()
        if (other := getattr(loss, measure)) is not None
    }
    return {"layer": round(100 * value / most, 1), **marks}


# ---------------------------------------------------------------- charts of the model


@dataclass(frozen=True)
class Bar:
    """One bar: of which layer, its height and that of the bar beside it, 0 to 1, and in words."""

    layer: LayerRecord
    height: float
    beside: float | None
    words: str


@dataclass(frozen=True)
class Chart:
    """One figure for all layers, in order. ``limit`` is what the full height stands for."""

    title: str
    limit: str
    bars: list[Bar]

    @property
    def summary(self) -> str:
        """The figures in words, for those who do not see the bars."""
        told = [bar.words for bar in self.bars[:12]]
        rest = len(self.bars) - len(told)
        return f"{self.title}: {'; '.join(told)}{f'; and {rest} more' if rest > 0 else ''}"


def charts(layers: Sequence[LayerRecord]) -> list[Chart]:
    """Time, share kept and each loss, layer by layer; those of which nothing is known are left
    out."""
    found = []
    slowest = max((t for x in layers for t in (x.torch_ms, x.poolkit_ms) if t), default=0.0)
    if slowest:
        bars = [
            Bar(
                layer,
                (layer.torch_ms or 0) / slowest,
                (layer.poolkit_ms or 0) / slowest,
                f"{_name(layer)} {human_ms(layer.torch_ms)}, poolkit {human_ms(layer.poolkit_ms)}",
            )
            for layer in layers
        ]
        found.append(Chart("Time in torch and in poolkit", human_ms(slowest), bars))
    kept = [
        Bar(layer, min(layer.kept, 1), None, f"{_name(layer)} {human_share(layer.kept)}")
        for layer in layers
    ]
    found.append(Chart("Share of the values kept", "100 %", kept))
    for key, title, _ in MEASURES[:4]:
        most = 2.0 if key == "shift_error" else 1.0
        values = [_value(layer.loss, key) for layer in layers]
        if any(value is not None for value in values):
            bars = [
                Bar(layer, (value or 0) / most, None, f"{_name(layer)} {human_measure(value)}")
                for layer, value in zip(layers, values, strict=True)
            ]
            found.append(Chart(title[0].upper() + title[1:], f"{most:g}", bars))
    return found


def _value(loss: Loss | None, key: str) -> float | None:
    value: float | None = None if loss is None else getattr(loss, key)
    return value


def _name(layer: LayerRecord) -> str:
    return layer.name or layer.operation


# ---------------------------------------------------------------- pictures of one layer


def describe_places(places: list[list[float]]) -> str:
    """A heat map in words: its largest cell, and what an even one would have."""
    rows, columns = len(places), len(places[0])
    most, row, column = max(
        (value, -r, -c) for r, line in enumerate(places) for c, value in enumerate(line)
    )
    return (
        f"{rows} by {columns} places; most often row {1 - row}, column {1 - column}, with "
        f"{human_share(most)} where even shares would be {human_share(1 / (rows * columns))}"
    )


@dataclass(frozen=True)
class Curves:
    """A spectrum as lines in a box of 240 by 100, and in words."""

    before: str
    after: str
    nyquist: float
    words: str

    @classmethod
    def of(cls, spectrum: Spectrum) -> Curves:
        above = sum(
            power
            for frequency, power in zip(spectrum.frequency, spectrum.after, strict=True)
            if frequency > spectrum.nyquist
        )
        share = above / (sum(spectrum.after) or 1)
        return cls(
            before=_line(spectrum.frequency, spectrum.before),
            after=_line(spectrum.frequency, spectrum.after),
            nyquist=round(480 * spectrum.nyquist, 1),
            words="Radial spectrum from 0 to 0.5 cycles per position, over "
            f"{_DECADES} decades; the new Nyquist limit is at {spectrum.nyquist:.3g}, and "
            f"{human_share(share)} of the mean power of what is subsampled lies above it",
        )


def _line(frequency: Sequence[float], power: Sequence[float]) -> str:
    points = []
    for f, value in zip(frequency, power, strict=True):
        depth = _DECADES if value <= 0 else min(max(-log10(value), 0), _DECADES)
        points.append(f"{480 * f:.0f} {100 * depth / _DECADES:.1f}")
    return "M" + "L".join(points)
