"""The report of an optimisation as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from poolkit.inspection.terminal import plain_table
from poolkit.inspection.wording import human_count, human_ms, human_share
from poolkit.optimization.records import Changes

_STYLES = {"swapped": "bold green", "kept": "yellow", "skipped": "dim"}


def lines(report: Changes) -> Iterator[RenderableType]:
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
        if layer.status == "swapped":
            name.append(f"\nnow {layer.after}", "not bold")
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
    if report.share is not None:
        yield Text(_share(report))
    if report.before_ms is not None and report.speedup is not None:
        whole = "Whole model" if report.tier == "module" else "Whole model, to exported program"
        yield Text(
            f"{whole}: {human_ms(report.before_ms)} → {human_ms(report.after_ms)}, "
            f"{report.speedup:.2f} times as fast, {human_count(report.threads, 'thread')}"
            + ("." if report.error is None else f"; largest error {report.error:.2g}.")
        )
    if report.note:
        yield Text(report.note[:1].upper() + report.note[1:] + ".")


def _share(report: Changes) -> str:
    """How much there was to gain."""
    if report.limit is None:
        return (
            "These layers alone took longer than the whole model: the machine is too busy to say "
            "what their share is."
        )
    return (
        f"Timed alone, these layers take {human_share(report.share)} of the model's "
        f"{human_ms(report.model_ms)}: if they cost nothing, it would be {report.limit:.2f} times "
        "as fast."
    )
