"""The pictures of the docs: what each pooling does to one photograph, sentence and history,
and what windows of time see of a log.

    poolkit gallery --output docs/images
    poolkit gallery vision --photograph mine.jpg

A picture shows a result, or the share that each input has in its gradient, for everything that is
listed; a new pooling appears without a new line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import PoolValueError
from ..files import write_whole

__all__ = ["PAGES", "draw"]

PAGES = ("vision", "sequences", "recommenders", "events")


def draw(
    pages: Sequence[str] = PAGES,
    output: Path = Path(),
    *,
    photograph: Path | None = None,
    sentence: str | None = None,
    quick: bool = False,
) -> Iterator[Path]:
    """Draws the pictures of some pages, and yields the path of each when it is written.

    Args:
        pages: names of `PAGES`.
        output: the folder.
        photograph: an image in the place of the astronaut.
        sentence: words in the place of the storm's.
        quick: let nothing learn for longer than a moment: what is learned shows little then.

    Raises:
        PoolValueError: for an unknown page, a folder that is not there, an input that cannot be
            used, and with the command that installs it, for a package that is missing.
    """
    from . import drawing, events, recommenders, sequences, vision

    unknown = [page for page in pages if page not in PAGES]
    if unknown:
        raise PoolValueError(f"there is no page {unknown[0]!r}", f"Known: {', '.join(PAGES)}")
    if not output.is_dir():
        raise PoolValueError(f"there is no folder {output}", "Make it, or name another")
    drawing.check_matplotlib()
    drawn = {
        "vision": lambda: vision.pictures(photograph, quick),
        "sequences": lambda: sequences.pictures(sentence or sequences.SENTENCE),
        "recommenders": lambda: recommenders.pictures(quick),
        "events": events.pictures,
    }
    for page in pages:
        for name, data in drawn[page]():
            write_whole(output / name, data)
            yield output / name
