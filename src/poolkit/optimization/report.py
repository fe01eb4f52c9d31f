"""What an optimisation did, layer by layer, and how to take it back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from poolkit.optimization.sites import Swap

#: The version of the JSON; it changes when a key changes its meaning or goes.
JSON_VERSION = 1

#: ``swapped``: poolkit's module is in place. ``kept``: it was tried and torch's is better.
#: ``skipped``: it was not tried.
Status = Literal["swapped", "kept", "skipped"]


@dataclass
class LayerChange:
    """One pooling of the model: what was done, or why not.

    ``error`` is the largest difference of outputs and gradients, in absolute terms; times are
    medians in milliseconds over all the calls of the layer in one run of the model.
    """

    name: str
    before: str
    after: str
    status: Status
    reason: str
    error: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    speedup: float | None = None
    aliases: list[str] = field(default_factory=list)


@dataclass
class OptimizeReport:
    """Every pooling of a model with what was done; ``restore()`` takes all of it back.

    ``before_ms`` and ``after_ms`` are the whole model's, interleaved medians; None if nothing
    was swapped or nothing was timed. ``error`` is the largest difference of the model's outputs.
    """

    model_name: str
    layers: list[LayerChange]
    threads: int
    dry_run: bool = False
    before_ms: float | None = None
    after_ms: float | None = None
    speedup: float | None = None
    error: float | None = None
    note: str = ""
    swaps: Sequence[Swap] = field(default=(), repr=False)

    @property
    def swapped(self) -> list[LayerChange]:
        """The layers that poolkit runs now (in a dry run: would run)."""
        return [layer for layer in self.layers if layer.status == "swapped"]

    def restore(self) -> None:
        """Put torch's modules back in place. Calling it again changes nothing."""
        for swap in self.swaps:
            swap.undo()

    def __str__(self) -> str:
        """The table, as plain text."""
        from poolkit.inspection.terminal import as_text
        from poolkit.optimization.terminal import lines

        return as_text(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, with ``"version": 1`` first."""
        return {
            "version": JSON_VERSION,
            "model": self.model_name,
            "threads": self.threads,
            "dry_run": self.dry_run,
            "before_ms": self.before_ms,
            "after_ms": self.after_ms,
            "speedup": self.speedup,
            "error": _finite(self.error),
            "note": self.note,
            "layers": [{**asdict(layer), "error": _finite(layer.error)} for layer in self.layers],
        }

    def to_json(self) -> str:
        """The report as JSON. Figures not measured are null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: an error that has no size is null, and the reason says why."""
    return None if value is None or not isfinite(value) else value
