"""The report of an optimisation: what was done, and the ways to show it, keep it and take it back.

It knows the terminal and the JSON, and neither knows it: they show ``Changes``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.errors import PoolValueError
from poolkit.files import write_whole
from poolkit.optimization.records import Changes
from poolkit.optimization.sites import Swap

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from poolkit.optimization.program import ProgramModule

#: The version of the JSON; it changes when a key changes its meaning or goes.
JSON_VERSION = 1


@dataclass
class OptimizeReport(Changes):
    """Every pooling of a model with what was done.

    ``print(report)`` shows the table, ``to_json()`` writes it down. Of the module tier,
    ``restore()`` takes all of it back; of the graph tier, ``program`` is the result, ``module()``
    runs and compiles it, and ``save(path)`` writes it. The program was captured in inference mode:
    it has gradients, but what dropout and batch normalisation do in training is not in it.
    """

    swaps: Sequence[Swap] = field(default=(), repr=False)
    program: ExportedProgram | None = field(default=None, repr=False)

    def restore(self) -> None:
        """Put torch's modules back in place. Calling it again changes nothing."""
        for swap in self.swaps:
            swap.undo()

    def module(self) -> ProgramModule:
        """The program of the graph tier, ready to run: as ``program.module()``, but 0.1 ms a call
        quicker, as the shapes of inputs are checked when they are first seen. Its weights are the
        model's.

        Raises:
            PoolValueError: there is no program.
        """
        from poolkit.optimization.program import ProgramModule

        return ProgramModule(self._program("run"))

    def save(self, path: str | Path) -> Path:
        """Write the program of the graph tier (``.pt2``), whole or not at all; returns the path.

        `poolkit.optimization.load_program` reads it, ready to run. To load it with
        `torch.export.load` import poolkit.nn first, which has the operators.

        Raises:
            PoolValueError: there is no program, or the file cannot be written.
        """
        import torch

        path, stream = Path(path), io.BytesIO()
        torch.export.save(self._program("save"), stream)
        write_whole(path, stream.getvalue())
        return path

    def _program(self, purpose: str) -> ExportedProgram:
        if self.program is None:
            raise PoolValueError(
                f"there is no program to {purpose}" + (" after a dry run" if self.dry_run else ""),
                "Optimise with tier='graph', and without dry_run",
            )
        return self.program

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
            "tier": self.tier,
            "threads": self.threads,
            "dry_run": self.dry_run,
            "model_ms": self.model_ms,
            "share": self.share,
            "limit": self.limit,
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
