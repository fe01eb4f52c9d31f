"""What is known to go wrong: a trap is a name, whose fault it is, and until which version."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import PoolValueError

__all__ = ["Finding", "Trap", "begins_behind", "installed", "trap"]

#: Whose versions decide.
PACKAGES = ("torch", "onnxruntime", "torchao")


@dataclass(frozen=True)
class Finding:
    """One trap that a model steps into.

    Attributes:
        trap: its name.
        layer: where, as "layer 'features.3' (AvgPool2d)".
        what: what happens.
        remedy: what to do.
    """

    trap: str
    layer: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.what}. {self.remedy}. [{self.trap}]"


@dataclass(frozen=True)
class Trap:
    """A known fault.

    Attributes:
        name: as findings have it.
        package: whose fault it is.
        mended: the first version without it, or None.
        remedy: what to do.
        look: what happens to a call or a node, in one sentence; None if nothing does.
    """

    name: str
    package: str
    mended: str | None
    remedy: str
    look: Callable[[Any], str | None]

    def exists_in(self, versions: Mapping[str, str]) -> bool:
        """Whether the package, in the version that is used, still has it."""
        if self.mended is None:
            return True
        used = versions.get(self.package)
        return used is not None and _numbers(used) < _numbers(self.mended)

    def finding(self, subject: Any, layer: str) -> Finding | None:
        what = self.look(subject)
        return None if what is None else Finding(self.name, layer, what, self.remedy)


def trap(
    traps: dict[str, Trap], package: str, *, remedy: str, mended: str | None = None
) -> Callable[[Callable[[Any], str | None]], Callable[[Any], str | None]]:
    """Enters a function in a table of traps, by its name."""

    def enter(look: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        name = look.__name__.replace("_", "-")
        traps[name] = Trap(name, package, mended, remedy, look)
        return look

    return enter


def begins_behind(
    size: int, kernel: int, stride: int, dilation: int, before: int, behind: int
) -> bool:
    """Whether along an axis the last window of ceil_mode begins behind the input; then torch and
    ONNX leave it out."""
    windows = math.ceil((size + before + behind - (kernel - 1) * dilation - 1) / stride) + 1
    return (windows - 1) * stride >= size + before


def installed(versions: Mapping[str, str] | None = None) -> dict[str, str]:
    """The versions that count: those given, else those installed.

    Raises:
        PoolValueError: for a package of which no trap is known, and for what begins with no number.
    """
    found = dict(versions or {})
    for package, given in found.items():
        if package not in PACKAGES:
            raise PoolValueError(
                f"no trap of {package!r} is known", f"One of: {', '.join(PACKAGES)}"
            )
        if not _numbers(str(given)):
            raise PoolValueError(f"{given!r} is no version of {package}", "Write one as 1.20.1")
        found[package] = str(given)
    for package in PACKAGES:
        if package not in found:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
