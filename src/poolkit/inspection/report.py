"""The report: what was found, and the ways to show it and write it down.

It knows the page, the terminal and the JSON, and none of them knows it: they draw ``Findings``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from poolkit.files import write_whole
from poolkit.inspection.records import Findings, as_data

#: The version of the JSON; it changes when a key changes its meaning or goes.
JSON_VERSION = 2


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
