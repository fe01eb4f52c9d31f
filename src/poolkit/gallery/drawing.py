"""Sheets of labelled panels and tables, pixel by pixel, as small PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import PoolValueError

__all__ = ["FAINT", "INK", "MONO", "Sheet", "as_heat", "as_pixels", "check_matplotlib"]

# Sheets are drawn on white, so that they read the same on a dark page, and twice as large as they
# are shown, for screens with small pixels.
SCALE = 2
INK, FAINT, PAPER = "#1b2733", "#62707d", "#ffffff"
FONT, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # which come with matplotlib


def check_matplotlib() -> None:
    """Raises PoolValueError where nothing can be drawn."""
    if find_spec("matplotlib") is None:
        raise PoolValueError("the gallery needs matplotlib", "Run pip install matplotlib")


class Sheet:
    """A page of pictures and words. Places and sizes are in the pixels of a plain screen, from the
    upper left corner.

    Attributes:
        names: what was written in `MONO`: the names of what is shown, which the file keeps as its
            description, so that a test can tell what it lacks.
    """

    def __init__(self, width: float, height: float) -> None:
        # Not pyplot, which would look for a screen and keep every figure.
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.names: list[str] = []
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100 * SCALE, facecolor=PAPER)

    def image(self, x: float, y: float, pixels: np.ndarray, side: int) -> None:
        """Draws uint8 (H, W, 3), no larger than the side of a square: each pixel is enlarged by the
        whole number that fills it best."""
        times = SCALE * side // max(pixels.shape[:2])
        large = pixels.repeat(times, 0).repeat(times, 1)
        left, below = SCALE * x, SCALE * (self.height - y) - large.shape[0]
        self.figure.figimage(large, round(left), round(below), origin="upper")

    def box(self, x: float, y: float, width: float, height: float, colour: Any) -> None:
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        across, along = width / self.width, height / self.height
        self.figure.add_artist(
            Rectangle(corner, across, along, transform=self.figure.transFigure, color=colour, lw=0)
        )

    def line(self, points: Sequence[tuple[float, float]], colour: Any, width: float) -> None:
        from matplotlib.lines import Line2D

        x, y = np.array(points, dtype=np.float64).T
        self.figure.add_artist(
            Line2D(
                x / self.width, 1 - y / self.height, transform=self.figure.transFigure,
                color=colour, lw=0.72 * width, solid_joinstyle="round",
            )
        )  # fmt: skip

    def text(self, x: float, y: float, words: str, size: float = 12, **options: Any) -> None:
        """Writes at the height of the letters' middle; `size` is in pixels."""
        options = {"color": INK, "va": "center", "family": FONT, **options}
        if options["family"] == MONO:
            self.names.append(words)
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, words, fontsize=0.72 * size, **options)

    def table(
        self,
        x: float,
        y: float,
        shares: np.ndarray,
        cell: tuple[int, int],
        rows: Sequence[str],
        columns: Sequence[str],
        slant: float = 0.0,
    ) -> None:
        """Shares (rows, columns) as coloured cells with percent in them. The names of the rows end
        at x, those of the columns stand on y, and lean by `slant` degrees."""
        across, along = cell
        for index, name in enumerate(columns):
            middle = x + (index + 0.5) * across
            place = {"ha": "left", "va": "bottom", "rotation": slant, "rotation_mode": "anchor"}
            if not slant:
                place = {"ha": "center", "va": "bottom"}
            self.text(middle + (3 if slant else 0), y - 5, name, 11, **place)
        for index, name in enumerate(rows):
            self.text(x - 8, y + (index + 0.5) * along, name, 11.5, ha="right", family=MONO)
        for (row, column), share in np.ndenumerate(shares):
            colour = as_heat(np.array([[share]]), 1.0, "YlGnBu", 2)[0, 0] / 255
            left, top = x + column * across, y + row * along
            self.box(left + 0.5, top + 0.5, across - 1, along - 1, colour)
            words = f"{100 * share:.0f}"
            ink = INK if colour @ (0.3, 0.6, 0.1) > 0.55 else PAPER
            if words != "0":
                self.text(left + across / 2, top + along / 2, words, 10, ha="center", color=ink)

    def png(self) -> bytes:
        """The sheet as a file, the same for the same figures."""
        stream = io.BytesIO()
        words = {"Software": None, "Description": "\n".join(self.names)}
        self.figure.savefig(stream, format="png", metadata=words, pil_kwargs={"optimize": True})
        return stream.getvalue()


def as_pixels(plane: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """(H, W) or (3, H, W) as uint8 (H, W, 3), `low` black and `high` white."""
    colours = np.broadcast_to(plane, (3, *plane.shape[-2:])).transpose(1, 2, 0)
    scaled = (colours - low) / (high - low if high > low else 1.0)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def as_heat(
    shares: np.ndarray, most: float | None = None, colours: str = "magma", root: float = 3.0
) -> np.ndarray:
    """(H, W) of 0 or more as uint8 (H, W, 3). The colour goes with a root of the share, and the
    smallest share can be told from none."""
    from matplotlib import colormaps

    top = shares.max() if most is None else most
    strength = (shares / (top if top > 0 else 1.0)).clip(0, 1) ** (1 / root)
    strength = np.where(shares > 0, 0.1 + 0.9 * strength, 0.0)
    return (255 * colormaps[colours](strength)[..., :3]).round().astype(np.uint8)
