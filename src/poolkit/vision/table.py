"""The page of all listed 2-D poolings: ``python -m poolkit.vision.table > docs/pools.md``."""

from __future__ import annotations

from .. import nn as _nn  # noqa: F401 - every room enters its own
from .registry import POOLS

__all__ = ["markdown_page", "markdown_table"]

COLUMNS = ("name", "module", "formula", "learns", "gradient", "cost", "paper")
HEADINGS = {
    "window": "Over windows",
    "global": "Over all positions",
    "map": "Other maps",
}

INTRODUCTION = """\
# All 2-D poolings by name

`poolkit.nn.create_pool2d(name, channels=..., kernel_size=...)` makes each of these;
`poolkit.nn.pools2d()` lists them. This page is what `python -m poolkit.vision.table` prints.
"""


def markdown_table(kind: str) -> str:
    """The rows of one kind: "window", "global" or "map".

    >>> print(markdown_table("global").splitlines()[0])
    | name | module | formula | learns | gradient | cost | paper |
    """
    lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    for name, entry in sorted(POOLS.items()):
        if entry.kind != kind:
            continue
        cells = (
            f"`{name}`",
            f"`{entry.module.__name__}`",
            entry.formula,
            entry.parameters,
            entry.gradient,
            entry.cost,
            entry.paper,
        )
        lines.append(_row([cell.replace("|", "\\|") for cell in cells]))
    return "\n".join(lines)


def _row(cells: object) -> str:
    return f"| {' | '.join(cells)} |"  # type: ignore[arg-type]


def markdown_page() -> str:
    """What `docs/pools.md` holds."""
    tables = (f"### {heading}\n\n{markdown_table(kind)}\n" for kind, heading in HEADINGS.items())
    return "\n".join((INTRODUCTION, *tables))


if __name__ == "__main__":
    print(markdown_page(), end="")
