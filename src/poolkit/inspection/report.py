"""The report: what was found, and the ways to show it and write it down.

It knows the page, the terminal and the JSON, and none of them knows it: they draw ``Findings``.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.files import write_whole
from poolkit.inspection.diff import JSON_VERSION, ReportDiff, diff
from poolkit.inspection.records import Findings, as_data

if TYPE_CHECKING:
    from poolkit.inspection.board import Writer


class Report(Findings):
    """The poolings of one model on one input, in order of execution.

    ``print(report)`` shows the table, ``to_json()`` and ``to_html(path)`` write it down, and
    ``layers`` is there to be computed with: one :class:`LayerRecord` for each run of a pooling.
    """

    def __str__(self) -> str:
        """The table, as plain text."""
        from poolkit.inspection.terminal import as_text, lines

        return as_text(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data, with ``"version": 2`` first."""
        return {
            "version": JSON_VERSION,
            "model": self.model_name,
            "inputs": self.inputs,
            "threads": self.threads,
            "versions": self.versions,
            "model_ms": self.model_ms,
            "torch_share": self.torch_share,
            "poolkit_share": self.poolkit_share,
            "layers": [as_data(layer) for layer in self.layers],
            "accuracy": [vars(row) for row in self.accuracy] if self.accuracy else None,
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

    def diff(self, other: Report) -> ReportDiff:
        """What changed from this report to ``other``."""
        return diff(self.to_dict(), other.to_dict())

    def to_tensorboard(self, writer: Writer, step: int = 0) -> None:
        """Write figures, flags and pictures to a ``torch.utils.tensorboard.SummaryWriter``.

        Args:
            writer: anything with its ``add_scalar``, ``add_image`` and ``add_text``.
            step: the step of training at which the model was inspected.

        Raises:
            PoolTypeError: ``writer`` has no such methods.
        """
        from poolkit.inspection.board import write

        write(self, writer, step)

    def _repr_html_(self) -> str:
        """The page, for notebooks: in a frame of its own, so that neither styles the other."""
        from poolkit.inspection.page import render

        height = 760 if self.layers else 320
        return (
            f'<iframe srcdoc="{escape(render(self))}" sandbox="allow-scripts" width="100%" '
            f'height="{height}" title="Pooling of {escape(self.model_name)}, inspected"></iframe>'
        )
