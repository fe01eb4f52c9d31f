"""What an optimisation did, as plain data: nothing here draws, writes, runs or measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: ``module`` swaps modules in place, ``graph`` rewrites an exported program.
Tier = Literal["module", "graph"]
TIERS: tuple[Tier, ...] = ("module", "graph")

#: ``swapped``: poolkit's pooling is in place. ``kept``: it was tried and torch's is better.
#: ``skipped``: it was not tried.
Status = Literal["swapped", "kept", "skipped"]


@dataclass
class LayerChange:
    """One pooling of the model: what was done, or why not.

    ``error`` is the largest difference of outputs (and of gradients, where modules were swapped),
    in absolute terms; times are medians in milliseconds over all the calls of the layer in one run
    of the model, with what is joined to it.
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
class Changes:
    """Every pooling of a model with what was done.

    Attributes:
        model_ms: milliseconds of one run before any change; None if nothing was timed.
        before_ms, after_ms, speedup: the whole model's, interleaved medians; None if nothing
            was timed, and in the module tier if nothing was swapped. Of the graph tier it is the
            model as it was given against the program, which is as exported if changes were taken
            back before: the note says so.
        error: the largest difference of the model's outputs.
        note: what else to know.
    """

    model_name: str
    layers: list[LayerChange]
    threads: int
    tier: Tier = "module"
    dry_run: bool = False
    model_ms: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    speedup: float | None = None
    error: float | None = None
    note: str = ""

    def add_note(self, note: str) -> None:
        self.note = f"{self.note}; {note}" if self.note else note

    @property
    def swapped(self) -> list[LayerChange]:
        """The layers that poolkit runs now (in a dry run: would run)."""
        return [layer for layer in self.layers if layer.status == "swapped"]

    @property
    def share(self) -> float | None:
        """The share of the model's time that its poolings took, with what can be joined to them."""
        if not self.model_ms:
            return None
        return sum(layer.before_ms or 0.0 for layer in self.layers) / self.model_ms

    @property
    def limit(self) -> float | None:
        """How many times as fast the model would be if its poolings cost nothing: Amdahl's law, by
        the times of layers alone, which in a small model are not quite those within it.

        >>> layer = LayerChange("pool", "", "", "kept", "", before_ms=2.0)
        >>> Changes("Net", [layer], threads=1, model_ms=10.0).limit
        1.25
        """
        share = self.share
        return None if share is None or share >= 1 else 1 / (1 - share)
