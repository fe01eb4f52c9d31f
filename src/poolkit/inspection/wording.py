"""Figures for readers: bytes, durations, shares and shapes."""

from __future__ import annotations

from collections.abc import Sequence


def human_bytes(count: int | None) -> str:
    """Bytes for readers, in powers of 1024.

    >>> human_bytes(0), human_bytes(1536), human_bytes(5 * 2**20), human_bytes(None)
    ('0 B', '1.5 KiB', '5.0 MiB', '–')
    """
    if count is None:
        return "–"
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def human_ms(milliseconds: float | None) -> str:
    """A duration for readers, to three figures.

    >>> human_ms(0.01234), human_ms(1.5), human_ms(123.4), human_ms(None)
    ('12.3 µs', '1.50 ms', '123 ms', '–')
    """
    if milliseconds is None:
        return "–"
    value, unit = (milliseconds * 1e3, "µs") if milliseconds < 1 else (milliseconds, "ms")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def human_share(share: float | None) -> str:
    """A share for readers.

    >>> human_share(0.25), human_share(0.0004), human_share(0.063), human_share(None)
    ('25 %', '0.04 %', '6.3 %', '–')
    """
    if share is None:
        return "–"
    percent = 100 * share
    digits = 0 if percent >= 9.95 or percent == 0 else 1 if percent >= 0.95 else 2
    return f"{percent:.{digits}f} %"


def human_shape(shape: Sequence[int]) -> str:
    """``1×64×56×56``."""
    return "×".join(map(str, shape)) if shape else "scalar"


def human_count(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> human_count(1, "layer"), human_count(3, "layer"), human_count(2, "axis", "axes")
    ('1 layer', '3 layers', '2 axes')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def human_measure(value: float | None) -> str:
    """A measure of what is lost, to three places.

    >>> human_measure(0.12345), human_measure(1.0), human_measure(None)
    ('0.123', '1.000', '–')
    """
    return "–" if value is None else f"{value:.3f}"
