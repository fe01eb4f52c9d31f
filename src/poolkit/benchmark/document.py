"""A report as sections of tables and lines: for a terminal, drawn by rich, or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Section:
    """A heading and what stands below it.

    Attributes:
        columns, rows: the table, if there is one, as text cells.
        styles: of the rows on a terminal, as rich names them; none where it is empty.
        left: how many columns, from the first, are words and not figures.
        lines: remarks, one sentence or more each.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    styles: Sequence[str] = ()
    left: int = 1
    lines: Sequence[str] = field(default_factory=list)


def in_words(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"


def as_markdown(section: Section) -> str:
    """
    >>> print(as_markdown(Section("Times", ["case", "ms"], [["max", "1.2"]], lines=["Quiet."])))
    ## Times
    <BLANKLINE>
    | case | ms |
    | --- | --- |
    | max | 1.2 |
    <BLANKLINE>
    - Quiet.
    """
    parts = [f"## {section.title}"]
    if section.rows:
        table = [section.columns, ["---"] * len(section.columns), *section.rows]
        parts.append("\n".join("| " + " | ".join(c or " " for c in row) + " |" for row in table))
    if section.lines:
        parts.append("\n".join(f"- {line}" for line in section.lines))
    return "\n\n".join(parts)


def print_sections(sections: Sequence[Section]) -> None:
    """On the terminal; as Markdown where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print("\n\n".join(map(as_markdown, sections)))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 240  # in a file or a pipe: nothing is gained by breaking lines at 80
    for section in sections:
        if section.rows:
            table = Table(title=section.title)
            for index, name in enumerate(section.columns):
                table.add_column(name, justify="left" if index < section.left else "right")
            for index, row in enumerate(section.rows):
                table.add_row(
                    *map(Text, row), style=section.styles[index] if section.styles else ""
                )
            console.print(table)
        else:
            console.print(Text(section.title), style="bold")
        for line in section.lines:
            console.print(Text(f"- {line}"))
