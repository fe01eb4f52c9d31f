"""The report as a table for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from poolkit.errors import MissingExtraError

try:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    raise MissingExtraError("rich", "inspect") from None

from poolkit.inspection.records import (
    LOOKED_FOR,
    MEASURES,
    YARDSTICKS,
    Findings,
    LayerRecord,
)
from poolkit.inspection.wording import (
    human_bytes,
    human_measure,
    human_ms,
    human_shape,
    human_share,
)

#: Below this many columns the operation goes under the layer's name.
_WIDE = 104


def lines(report: Findings, width: int = 120) -> Iterator[RenderableType]:
    """What to print of a report on a terminal of ``width`` columns, piece by piece."""
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    yield Text.assemble((report.model_name, "bold"), f"  {', '.join(report.inputs)}  {threads}\n")
    if not report.layers:
        yield Text(f"No pooling ran. Looked for: {LOOKED_FOR}.")
        return
    yield _table(report, width >= _WIDE)
    yield Text("")
    if any(layer.loss for layer in report.layers):
        yield _losses(report)
        yield Text("")
    if report.flagged:
        yield from _flags(report)
        yield Text("")
    yield from _summary(report)
    if report.accuracy:
        yield Text("")
        yield _accuracy(report)


def as_text(pieces: Iterable[RenderableType], width: int = 120) -> str:
    """What a terminal of ``width`` columns would show, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        for piece in pieces:
            console.print(piece)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def plain_table(*left: str) -> Table:
    """A table without lines, whose columns ``left`` are aligned to the left."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold")
    return table


def _table(report: Findings, wide: bool) -> Table:
    table = plain_table(*(("layer", "operation") if wide else ("layer",)))
    table.add_column("in\n→ out", no_wrap=True)
    table.add_column("kept\nsees", justify="right", no_wrap=True)
    table.add_column("torch\n→ poolkit", justify="right", no_wrap=True)
    table.add_column("faster", justify="right", no_wrap=True)
    table.add_column("of\nmodel", justify="right", no_wrap=True)
    table.add_column("saved for\nbackward", justify="right", no_wrap=True)
    for layer in report.layers:
        named, operation = _named(layer), f"{layer.words} {layer.window}"
        first = [named, Text(operation)] if wide else [Text("\n").join([named, Text(operation)])]
        table.add_row(*first, *_figures(layer), end_section=True)
    return table


def _named(layer: LayerRecord) -> Text:
    text = Text(layer.name or "(model)", style="bold")
    for remark in (layer.source, *(f"also {alias}" for alias in layer.aliases), layer.note):
        if remark:
            text.append(f"\n{remark}", "not bold dim")
    return text


def _figures(layer: LayerRecord) -> list[RenderableType]:
    sees = "–"
    if layer.receptive_field:
        sees = "all" if layer.whole_input else human_shape(layer.receptive_field)
    speed = f"{layer.speedup:.1f}×" if layer.speedup is not None else "–"
    fast = layer.speedup is not None and layer.speedup > 1.05
    return [
        _pair(human_shape(layer.in_shape), human_shape(layer.out_shape)),
        Text(f"{human_share(layer.kept)}\n{sees}"),
        _pair(human_ms(layer.torch_ms), human_ms(layer.poolkit_ms)),
        Text(speed, style="bold green" if fast else ""),
        _pair(human_share(layer.torch_share), human_share(layer.poolkit_share)),
        _pair(human_bytes(layer.torch_saved), human_bytes(layer.poolkit_saved)),
    ]


def _pair(before: str, after: str) -> Text:
    return Text(f"{before}\n→ {after}")


def _summary(report: Findings) -> Iterator[Text]:
    if report.torch_share is not None:
        yield Text(
            f"Pooling takes {human_share(report.torch_share)} of the model's "
            f"{human_ms(report.model_ms)} in torch; with poolkit it would take "
            f"{human_share(report.poolkit_share)} of that."
        )
    torch_saved, poolkit_saved = report.saved
    if torch_saved:
        yield Text(
            f"When training it keeps {human_bytes(torch_saved)} for backward in torch, "
            f"{human_bytes(poolkit_saved)} in poolkit."
        )


def _losses(report: Findings) -> Table:
    """What is lost, each layer beside average, max and subsampling with the same window."""
    table = plain_table("what is lost")
    for _, title, _ in MEASURES:
        table.add_column(title.replace(" ", "\n", 1), justify="right", no_wrap=True)
    table.add_column(f"beside it, with the same window: {', '.join(YARDSTICKS)}", style="dim")
    for layer in report.layers:
        if layer.loss is not None:
            table.add_row(
                Text(layer.name or "(model)", style="bold"),
                *(human_measure(getattr(layer.loss, key)) for key, _, _ in MEASURES),
                _beside(layer),
            )
    return table


def _beside(layer: LayerRecord) -> str:
    """The first three measures of the yardsticks: ``R² .91 .60 .72``."""
    told = []
    for key, word in (("reconstruction", "R²"), ("shift_error", "shift"), ("aliasing", "alias")):
        values = [getattr(layer.yardsticks[name], key) for name in YARDSTICKS]
        told.append(f"{word} {' '.join('–' if v is None else f'{v:.2f}' for v in values)}")
    return "   ".join(told)


_STYLES = {"wrong": "bold red", "waste": "yellow", "note": "blue"}


def _flags(report: Findings) -> Iterator[Text]:
    for layer in report.flagged:
        for flag in layer.flags:
            yield Text.assemble(
                (layer.name or "(model)", "bold"), "  ", (flag.severity, _STYLES[flag.severity]),
                f"  {flag.text} ", (flag.fix, "italic"),
            )  # fmt: skip


def _accuracy(report: Findings) -> Table:
    table = plain_table("accuracy on 200 crops")
    for name in ("max, torch", "max, poolkit", "average instead"):
        table.add_column(name, justify="right")
    for row in report.accuracy or ():
        table.add_row(
            row.network, *(f"{100 * x:.1f} %" for x in (row.torch, row.poolkit, row.averaged))
        )
    return table
