"""Every 2-D pooling by name: for the configuration of a model, and for the table in the docs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from ..errors import PoolTypeError, PoolValueError

__all__ = ["POOLS", "Listed", "create_pool2d", "listed", "pools2d"]

M = TypeVar("M", bound="type[nn.Module]")


@dataclass(frozen=True)
class Listed:
    """A 2-D pooling that models may name.

    Attributes:
        name: as a configuration spells it.
        module: the class; whatever depends on the number of channels has an argument `channels`.
        kind: "window": (N, C, H, W) to (N, C, h, w) by ``kernel_size, stride, padding``;
            "global": any (N, C, H, W) to one vector for each image; "map": all else.
        formula: what it computes, over the values x of a window.
        parameters: what it learns, and how many numbers that is.
        gradient: where the gradient of an output goes.
        cost: what it takes beside a maximum over the same window.
        paper: who described it first, or the standard.
        options: arguments for an example that needs more than `channels` and `kernel_size`.
    """

    name: str
    module: type[nn.Module]
    kind: Literal["window", "global", "map"]
    formula: str
    parameters: str
    gradient: str
    cost: str
    paper: str
    options: tuple[tuple[str, Any], ...] = ()


KINDS = ("window", "global", "map")
POOLS: dict[str, Listed] = {}


def listed(
    name: str,
    *,
    kind: Literal["window", "global", "map"],
    formula: str,
    gradient: str,
    cost: str,
    paper: str,
    parameters: str = "none",
    **options: Any,
) -> Callable[[M], M]:
    """Enters a module in the registry that `create_pool2d`, tests and docs iterate over."""

    def enter(module: M) -> M:
        if name in POOLS:
            raise PoolValueError(f"{name!r} is listed already", "Choose another name")
        POOLS[name] = Listed(
            name, module, kind, formula, parameters, gradient, cost, paper, tuple(options.items())
        )
        return module

    return enter


def pools2d(kind: str | None = None) -> list[str]:
    """The names that `create_pool2d` knows, of one kind ("window", "global", "map") or all.

    >>> import poolkit
    >>> "gem" in poolkit.nn.pools2d(), "gem" in poolkit.nn.pools2d("window")
    (True, False)
    """
    if kind not in (None, *KINDS):
        raise PoolValueError(f"there is no kind {kind!r}", f"Give one of {', '.join(KINDS)}")
    return sorted(name for name, entry in POOLS.items() if kind in (None, entry.kind))


def create_pool2d(name: str, **options: Any) -> nn.Module:
    """A 2-D pooling by its name, for the configuration of a model.

    Args:
        name: one of `pools2d()`.
        options: the module's own arguments. `channels` may always be given and is dropped where
            the module does not depend on it, and so are `kernel_size`, `stride` and `padding`
            where it has no window, so that one configuration fits all names. A window's module
            that lacks one of them, with which it would give another size, refuses it.

    Raises:
        PoolValueError: for a name that is not known.
        PoolTypeError: for an argument that the module does not have, or lacks.

    >>> import torch, poolkit
    >>> poolkit.nn.create_pool2d("max", kernel_size=2, channels=8)
    MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    >>> poolkit.nn.create_pool2d("gem", channels=8)(torch.rand(1, 8, 7, 7)).shape
    torch.Size([1, 8, 1, 1])
    """
    if name not in POOLS:
        near = [known for known, entry in POOLS.items() if entry.module.__name__ == name]
        near = near or difflib.get_close_matches(str(name).lower(), POOLS, n=3, cutoff=0.6)
        remedy = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(pools2d())}"
        raise PoolValueError(f"there is no pooling called {name!r}", remedy)
    module = POOLS[name].module
    known = inspect.signature(module).parameters
    shared = ["channels"]
    if POOLS[name].kind != "window":
        shared += ["kernel_size", "stride", "padding"]
    for option, value in options.items():
        neutral = option == "padding" and value == 0
        if option not in known and option not in shared and not neutral:
            raise PoolTypeError(
                f"{name} ({module.__name__}) has no argument {option!r}",
                f"It has {', '.join(known)}",
            )
    given = {option: value for option, value in options.items() if option in known}
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in given:
            raise PoolTypeError(f"{name} ({module.__name__}) needs {option}", f"Give {option}=...")
    return module(**given)
