"""The one exception family, and the one place where context is added to a message.

Inner code raises a short fact (``kernel_size must be at least 1, got 0``); the public entry point
adds once what was being pooled (`pooling`, `during`), so that every message reads: what is wrong,
while pooling which shape with which window and reduction, and what to do instead.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["MissingExtraError", "PoolError", "PoolTypeError", "PoolValueError"]


class PoolError(Exception):
    """Anything that poolkit refuses to do.

    Every instance is also a `ValueError` or a `TypeError` (or, for a package that is not
    installed, an `ImportError`), so that code written against torch or NumPy keeps catching it.

    Args:
        what: the fact, without a final full stop.
        instead: what to do about it.

    >>> import poolkit
    >>> poolkit.Sliding(0)
    Traceback (most recent call last):
    ...
    poolkit.errors.PoolValueError: kernel_size must be at least 1, got 0. Give a positive size.
    """

    def __init__(self, what: str, instead: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.instead = instead
        self.context = ""

    def __str__(self) -> str:
        where = f", while pooling {self.context}" if self.context else ""
        stop = "" if self.instead.endswith("?") else "."
        remedy = f" {self.instead.rstrip('.')}{stop}" if self.instead else ""
        return f"{self.what}{where}.{remedy}"

    def during(self, context: str) -> PoolError:
        """This error with its context filled in, unless an inner call has done so."""
        self.context = self.context or context
        return self

    def pooling(self, x: Any, window: object, reduction: object) -> PoolError:
        """`during` the pooling of `x`: for ``raise error.pooling(...) from None``, which drops the
        inner frames too."""
        return self.during(f"{describe(x)} with {window} and {reduction}")


class PoolValueError(PoolError, ValueError):
    """A value, a shape or a size that cannot be pooled."""


class PoolTypeError(PoolError, TypeError):
    """A type or a dtype that cannot be pooled."""


class MissingExtraError(PoolError, ImportError):
    """A part of poolkit needs a package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this part of poolkit needs the package '{package}', which is not installed",
            f"Install it with: pip install 'poolkit[{extra}]'",
        )


def checked_size(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PoolTypeError(f"{name} must be an integer, got {value!r}", f"Write {name}={least}")
    if value < least:
        raise PoolValueError(f"{name} must be at least {least}, got {value}", "Give a larger one")
    return value


def first_line(error: BaseException) -> str:
    """The first line of what another library says, which may have many; "" if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def describe(x: Any) -> str:
    """``float32 (1, 3, 8, 8)``: how an array is named in a message."""
    if is_torch_tensor(x) and x.is_nested:  # the strided kind has no shape
        return f"a nested tensor of {dtype_name(x)}"
    shape = getattr(x, "shape", None)
    if shape is None:
        return f"a {type(x).__name__}"
    return f"{dtype_name(x)} {tuple(shape)}"


def dtype_name(x: Any) -> str:
    """The name of an array's dtype, spelt alike for NumPy and torch."""
    return str(x.dtype).removeprefix("torch.")


def is_torch_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_traced() -> bool:
    """Whether torch's compiler is tracing this line, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def is_exported() -> bool:
    """Whether a graph for other programs is being made (by torch.export, from torch 2.7 on), found
    out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and getattr(torch.compiler, "is_exporting", bool)()
