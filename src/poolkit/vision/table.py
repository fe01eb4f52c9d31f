"""The table of all listed 2-D poolings, as Markdown: ``python -m poolkit.vision.table``."""

from __future__ import annotations

import poolkit.nn  # every room enters its own

from .registry import POOLS

__all__ = ["markdown_table"]

COLUMNS = ("name", "module", "formula", "learns", "gradient", "cost", "paper")
HEADINGS = {
    "window": "Over windows",
    "global": "Over all positions",
    "map": "Other maps",
}


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


def main() -> None:
    for kind, heading in HEADINGS.items():
        print(f"### {heading}\n\n{markdown_table(kind)}\n")
    assert poolkit.nn.pools2d() == sorted(POOLS)


if __name__ == "__main__":
    main()
