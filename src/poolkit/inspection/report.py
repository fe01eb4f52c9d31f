"""What an inspection found: plain data, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from poolkit.files import write_whole
from poolkit.inspection.pictures import FeatureMap

#: The version of the JSON; it changes when a key changes its meaning or goes.
JSON_VERSION = 1

LOOKED_FOR = (
    "pooling modules, pooling functions (torch.nn.functional, torch, torch.ops.aten, poolkit), "
    "and mean, sum, max, min and logsumexp over the spatial axes of a feature map"
)


@dataclass
class LayerRecord:
    """One pooling that ran. Times are medians in milliseconds, shapes are of the first run.

    Attributes:
        name: qualified name of the module, or of the module in which the call stands.
        kind: ``module``, ``function`` or ``reduction``.
        operation: torch's name of the function, as ``max_pool2d``.
        words, window: the same for readers: ``max`` and ``3×3, stride 2``.
        aliases: other names of the same module, where it is shared.
        source: ``net.py:42`` of a function or a reduction.
        kept: share of the values that are left, per channel: output / input positions.
        receptive_field: input positions seen along each axis, never more than there are.
        input_extent: how many there are; ``whole_input`` says whether all are seen.
        torch_share: time in torch as a share of the whole model's.
        torch_saved, poolkit_saved: bytes that the layer keeps alive for its backward.
        note: why a figure is missing, or what else to know.
    """

    index: int
    name: str
    kind: str
    operation: str
    words: str
    window: str
    arguments: dict[str, Any]
    source: str
    aliases: list[str]
    dtype: str
    layout: str
    in_shape: list[int]
    out_shape: list[int]
    kept: float
    receptive_field: list[int] | None
    input_extent: list[int] | None
    whole_input: bool
    torch_ms: float | None = None
    poolkit_ms: float | None = None
    speedup: float | None = None
    torch_share: float | None = None
    poolkit_share: float | None = None
    torch_saved: int | None = None
    poolkit_saved: int | None = None
    note: str = ""
    pictures: list[FeatureMap] = field(default_factory=list, repr=False)


@dataclass
class AccuracyRecord:
    """Share of labelled samples a network gets right, with each kind of pooling."""

    network: str
    torch: float
    poolkit: float
    averaged: float


@dataclass
class Photograph:
    """A photograph as JPEG with what was found in it, in pixels of the JPEG."""

    jpeg: bytes = field(repr=False)
    width: int
    height: int
    boxes: list[tuple[float, float, float, float]]
    landmarks: list[list[tuple[float, float]]]
    probabilities: list[float]
    caption: str


@dataclass
class Sample:
    """The first image of an input, to draw on it what a layer sees."""

    png: bytes = field(repr=False)
    height: int
    width: int


@dataclass
class Report:
    """The poolings of one model on one input, in order of execution.

    ``print(report)`` shows the table, ``to_json()`` and ``to_html(path)`` write it down, and
    ``layers`` is there to be computed with.
    """

    model_name: str
    inputs: list[str]
    layers: list[LayerRecord]
    model_ms: float | None
    threads: int
    versions: dict[str, str]
    accuracy: list[AccuracyRecord] | None = None
    photograph: Photograph | None = None
    samples: list[Sample] = field(default_factory=list)

    def sample_of(self, layer: LayerRecord) -> Sample | None:
        """The image that a layer looks at, if its input is one."""
        extent = layer.input_extent
        return next((s for s in self.samples if [s.height, s.width] == extent), None)

    @property
    def torch_share(self) -> float | None:
        """Share of the model's time spent in these poolings, with torch's kernels."""
        return _total([layer.torch_share for layer in self.layers])

    @property
    def poolkit_share(self) -> float | None:
        """The same with poolkit's kernels, as a share of the model's time with torch's."""
        return _total([layer.poolkit_share for layer in self.layers])

    @property
    def saved(self) -> tuple[int, int]:
        """Bytes kept for backward by all layers measured in both: torch, poolkit."""
        both = [
            (layer.torch_saved, layer.poolkit_saved)
            for layer in self.layers
            if layer.torch_saved is not None and layer.poolkit_saved is not None
        ]
        return sum(t for t, _ in both), sum(p for _, p in both)

    def __str__(self) -> str:
        """The table, as plain text."""
        from poolkit.inspection.terminal import as_text, lines

        return as_text(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data, with ``"version": 1`` first."""
        layers = []
        for layer in self.layers:
            row = asdict(layer)
            del row["pictures"]
            layers.append(row)
        return {
            "version": JSON_VERSION,
            "model": self.model_name,
            "inputs": self.inputs,
            "threads": self.threads,
            "versions": self.versions,
            "model_ms": self.model_ms,
            "torch_share": self.torch_share,
            "poolkit_share": self.poolkit_share,
            "layers": layers,
            "accuracy": [asdict(row) for row in self.accuracy] if self.accuracy else None,
        }

    def to_json(self) -> str:
        """The report as JSON. Figures not measured are null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, whole or not at all, and return its path."""
        from poolkit.inspection.page import render

        path = Path(path)
        write_whole(path, render(self))
        return path


def _total(shares: list[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


def human_bytes(count: int | None) -> str:
    """Bytes for readers, in powers of 1024.

    >>> human_bytes(0), human_bytes(1536), human_bytes(5 * 2**20), human_bytes(None)
    ('0 B', '1.5 KiB', '5.0 MiB', '–')
    """
    if count is None:
        return "–"
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def human_ms(milliseconds: float | None) -> str:
    """A duration for readers, to three figures.

    >>> human_ms(0.01234), human_ms(1.5), human_ms(123.4), human_ms(None)
    ('12.3 µs', '1.50 ms', '123 ms', '–')
    """
    if milliseconds is None:
        return "–"
    value, unit = (milliseconds * 1e3, "µs") if milliseconds < 1 else (milliseconds, "ms")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def human_share(share: float | None) -> str:
    """A share for readers.

    >>> human_share(0.25), human_share(0.0004), human_share(0.063), human_share(None)
    ('25 %', '0.04 %', '6.3 %', '–')
    """
    if share is None:
        return "–"
    percent = 100 * share
    digits = 0 if percent >= 9.95 or percent == 0 else 1 if percent >= 0.95 else 2
    return f"{percent:.{digits}f} %"


def human_shape(shape: list[int]) -> str:
    """``1×64×56×56``."""
    return "×".join(map(str, shape)) if shape else "scalar"
