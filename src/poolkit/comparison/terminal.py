"""The comparison as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from poolkit.comparison.costs import LAYOUTS
from poolkit.comparison.records import Findings, VariantRow
from poolkit.inspection.terminal import plain_table
from poolkit.inspection.wording import human_bytes

_STYLES = {
    "baseline": "dim", "better": "bold green", "worse": "bold red", "equivalent": "cyan",
    "inconclusive": "yellow",
}  # fmt: skip


def lines(found: Findings, width: int = 120) -> Iterator[RenderableType]:
    """What to print of a comparison, piece by piece."""
    yield Text.assemble((found.model, "bold"), f" on {found.data}")
    rates = ", ".join(f"{rate:g}" for rate in found.learning_rates)
    yield Text(
        f"{found.seeds} seeds, {counted(found.epochs, 'epoch')}, batches of {found.batch_size}; "
        f"learning rates {rates} tried on the validation split.\n"
    )
    yield _table(found)
    yield Text("")
    for row in found.rows[1:]:
        yield Text.assemble((row.label, "bold"), f": {found.verdict(row)}.")
    yield Text("")
    yield Text(_notes(found), style="dim")


def _table(found: Findings) -> RenderableType:
    table = plain_table("variant")
    for name in (
        "accuracy\n%", f"difference, points\n{found.confidence:.0%} interval", "shifts\nagree, %",
        "parameters", "multiply-\nadds", "to train", "inference\ncontig., ch. last",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict, on\nthis data only")
    for row in found.rows:
        table.add_row(
            Text(row.label, style="bold"),
            f"{100 * row.accuracy:.2f}",
            _difference(row),
            _consistency(row),
            f"{row.parameters:,}",
            human_number(row.multiply_adds),
            human_bytes(row.training_bytes),
            _times(row),
            Text(row.outcome, style=_STYLES[row.outcome]),
        )
    return table


def _difference(row: VariantRow) -> str:
    if row.difference is None or row.interval is None:
        return "–"
    low, high = (100 * end for end in row.interval)
    return f"{100 * row.difference:+.2f} ({low:+.2f} to {high:+.2f})"


def _consistency(row: VariantRow) -> str:
    if row.consistency is None:
        return "–"
    text = f"{100 * row.consistency:.1f}"
    if row.consistency_difference is not None:
        text += f" ({100 * row.consistency_difference:+.1f})"
    return text


def _times(row: VariantRow) -> str:
    if not row.inference_ms:
        return "–"
    if row.outcome == "baseline":
        return ", ".join(
            f"{row.inference_ms[name]:.2f} ms" for name in LAYOUTS if name in row.inference_ms
        )
    return ", ".join(
        f"{row.inference_ratio[name]:.2f}×" for name in LAYOUTS if name in row.inference_ratio
    )


def _notes(found: Findings) -> str:
    name = found.baseline.name
    notes = [
        f"Differences are to {name}, paired by seed and test item; intervals are for other seeds "
        "and other test items of this data, verdicts corrected for "
        f"{counted(len(found.rows) - 1, 'variant')}. A difference within "
        f"±{100 * found.margin:g} points does not matter.",
    ]
    if found.timed_batch:
        notes.append(
            f"Times are of {counted(found.timed_batch, 'input')} on "
            f"{counted(found.threads, 'thread')}, as multiples of {name}'s."
        )
    if found.kept:
        notes.append(f"Left as they are: {', '.join(found.kept)}.")
    if any(row.width != 1 for row in found.rows):
        widths = ", ".join(f"{row.label} {row.width:.2f}" for row in found.rows if row.width != 1)
        notes.append(f"Widths: {widths}.")
    if failed := failures(found):
        notes.append(f"{failed}.")
    if edge := [row.label for row in found.rows if row.at_edge]:
        notes.append(
            f"The best learning rate was the lowest or highest tried for {', '.join(edge)}: a "
            "better one may lie beyond."
        )
    return " ".join(notes)


def failures(found: Findings) -> str:
    """Which trainings failed, in words: a mean with one of them tells of its learning rate."""
    failed = [f"{row.failed} of {row.label}" for row in found.rows if row.failed]
    if not failed:
        return ""
    return (
        f"Of {found.seeds} trainings each, these learned nothing: {', '.join(failed)}. Give lower "
        "learning rates: one that is good for one seed may be too high for another"
    )


def human_number(count: int) -> str:
    """A number for readers, in powers of 1000.

    >>> human_number(950), human_number(2_433_344), human_number(41_000_000)
    ('950', '2.43 M', '41.0 M')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"
    return str(count)


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "seed"), counted(5, "seed")
    ('1 seed', '5 seeds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
