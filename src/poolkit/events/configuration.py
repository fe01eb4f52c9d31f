"""A specification as a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PoolTypeError, PoolValueError
from ..windows.durations import calendar
from .definition import Column, Lookup
from .local import read_stored
from .spec import WindowPool
from .tables import vectors_of

__all__ = ["read_spec"]


def read_spec(path: Path) -> WindowPool:
    """The `WindowPool` that a file describes: its arguments by name, and tables for the rest::

        key = "user"
        time = "ts"
        windows = ["7d", {calendar = "1mo", tz = "Europe/Paris"}, "all"]
        reduce = ["count", "mean", "decay('3d')", "last(50)", "attend('candidate')"]

        [value]                      # or: column = "vector"
        lookup = "item"
        table = "items.npy"          # beside this file; or Parquet, with
        ids = "item"                 # its column of items
        vector = "embedding"         # and that of vectors

    Raises:
        PoolValueError, PoolTypeError: for a file that cannot be read or does not fit.
    """
    try:
        with path.open("rb") as stream:
            given = tomllib.load(stream)
    except OSError as error:
        raise PoolValueError(f"cannot read {path}: {error.strerror}", "Check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PoolValueError(f"{path} is not TOML: {error}") from None
    value = given.pop("value", None)
    if not isinstance(value, dict):
        raise PoolValueError(f"{path} has no [value]", "Write column = or lookup = and table =")
    given["value"] = _value(value, path.parent)
    windows = given.get("windows", [])
    if isinstance(windows, list):
        windows = [_window(window) for window in windows]
    given["windows"] = windows
    try:
        return WindowPool(**given)
    except TypeError as error:
        if isinstance(error, PoolTypeError):
            raise
        wrong = str(error).removeprefix("WindowPool.__init__() ")
        raise PoolValueError(f"{path} does not fit WindowPool: {wrong}") from None


def _window(window: Any) -> Any:
    if not isinstance(window, dict):
        return window
    if set(window) != {"calendar", "tz"}:
        raise PoolValueError(
            f"{window} is no window", "Write {calendar = '7d', tz = 'Europe/Paris'}"
        )
    return calendar(window["calendar"], tz=window["tz"])


def _value(value: dict[str, Any], folder: Path) -> Column | Lookup:
    for name, given in value.items():
        if not isinstance(given, str):
            raise PoolTypeError(f"{name} of [value] is {given!r}, which is no text", "Quote it")
    if set(value) == {"column"}:
        return Column(value["column"])
    if not {"lookup", "table"} <= set(value) <= {"lookup", "table", "ids", "vector", "missing"}:
        raise PoolValueError(
            f"[value] has {', '.join(value)}",
            "It has column, or lookup and table, with ids, vector and missing",
        )
    path, missing = folder / value["table"], value.get("missing", "raise")
    if path.suffix == ".npy":
        try:
            table = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise PoolValueError(f"cannot read {path}: {error}", "Write it by numpy.save") from None
        return Lookup(value["lookup"], table, missing=missing)
    stored = read_stored(path)
    names = [value.get("ids", value["lookup"]), value.get("vector", "vector")]
    for name in names:
        if name not in stored.column_names:
            raise PoolValueError(
                f"{path} has no column {name!r}", f"It has: {', '.join(stored.column_names)}"
            )
    vectors = vectors_of(stored.column(names[1]), names[1])
    return Lookup(value["lookup"], vectors, ids=stored.column(names[0]), missing=missing)
