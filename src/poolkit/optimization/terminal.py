"""The report of an optimisation as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from poolkit.inspection.terminal import plain_table
from poolkit.inspection.wording import human_ms
from poolkit.optimization.report import OptimizeReport

_STYLES = {"swapped": "bold green", "kept": "yellow", "skipped": "dim"}


def lines(report: OptimizeReport) -> Iterator[RenderableType]:
    """What to print of a report, piece by piece."""
    if not report.layers:
        yield Text(f"{report.model_name} has no pooling that runs on this input.")
        return
    table = plain_table("layer", "status")
    table.add_column("largest\nerror", justify="right", no_wrap=True)
    table.add_column("before\n→ after", justify="right", no_wrap=True)
    table.add_column("faster", justify="right", no_wrap=True)
    for layer in report.layers:
        name = Text(layer.name or "(model)", style="bold")
        for alias in layer.aliases:
            name.append(f"\nalso {alias}", "not bold dim")
        name.append(f"\n{layer.before}", "not bold")
        table.add_row(
            name,
            Text.assemble((layer.status, _STYLES[layer.status]), f"\n{layer.reason}"),
            "–" if layer.error is None else f"{layer.error:.2g}",
            Text(f"{human_ms(layer.before_ms)}\n→ {human_ms(layer.after_ms)}"),
            "–" if layer.speedup is None else f"{layer.speedup:.1f}×",
        )
    yield table
    yield Text("")
    verb = "would be swapped (dry run)" if report.dry_run else "swapped for poolkit's"
    yield Text(f"{len(report.swapped)} of {len(report.layers)} {verb}.")
    if report.before_ms is not None and report.speedup is not None:
        yield Text(
            f"Whole model: {human_ms(report.before_ms)} → {human_ms(report.after_ms)}, "
            f"{report.speedup:.2f} times as fast, {report.threads} "
            f"thread{'' if report.threads == 1 else 's'}; "
            f"largest error of its outputs {report.error:.2g}."
        )
    if report.note:
        yield Text(report.note[:1].upper() + report.note[1:] + ".")
