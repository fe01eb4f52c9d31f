"""poolkit's operators in terms of ONNX's: what a trace records in their place.

An operator of the library is expressed by one of ONNX's pooling operators where these have it
(`operators`), and else in whole-array operations over the window's values (`torch/whole.py`), which
need the spatial sizes to be known. Whoever adds an operator to the dispatcher adds its expression
to `EXPRESSIONS`; one that has none is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..arrays import arrays_of
from ..composite import flat_positions, gather_windows, outer_product
from ..errors import PoolError, PoolValueError, describe
from ..reductions import Activated, Max, Reduction, Seen, as_reduction
from ..torch.plain import NAMES
from ..torch.whole import activate, reduce_last
from ..windows import Global, Window, as_window
from .operators import pool_by_operator

__all__ = ["EXPRESSIONS", "ExportedPooling", "Expressing", "express"]

EXPRESSIONS: dict[Any, Callable[..., Any]] = {}


def express(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters what stands for an operator of the dispatcher in an exported graph."""

    def enter(expression: Callable[..., Any]) -> Callable[..., Any]:
        EXPRESSIONS[operator] = expression
        return expression

    return enter


@dataclass(frozen=True)
class ExportedPooling:
    """One pooling of an exported model.

    Attributes:
        layer: the module's name, with its class.
        pooling: the window and the reduction.
    """

    layer: str
    pooling: str


class Expressing(TorchFunctionMode):
    """While a model is traced, records expressions in the place of poolkit's operators."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.found: list[ExportedPooling] = []

    @property
    def layer(self) -> str:
        """The module that runs, as messages name it."""
        if not self.stack:
            return "the model"
        module = self.stack[-1]
        name = self.names.get(id(module), "")
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        expression = EXPRESSIONS.get(func)
        if expression is None:
            return func(*args, **(kwargs or {}))
        recipes = [value for value in args if isinstance(value, str)]
        if len(recipes) > 1:  # one that has a window and a reduction
            self.found.append(ExportedPooling(self.layer, " with ".join(recipes)))
        try:
            return expression(*args, **(kwargs or {}))
        except PoolError as error:
            what = f"{describe(args[0])} with {' and '.join(recipes)} in {self.layer}"
            raise error.during(what) from None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Knows which module runs. The hooks are global, so the model's own are not touched."""
        modules = nn.modules.module
        handles = [
            modules.register_module_forward_pre_hook(lambda module, _: self.stack.append(module)),
            modules.register_module_forward_hook(lambda *_: self.stack.pop() and None),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@express(torch.ops.poolkit.pool.default)
def _pool(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    seen, reduced = as_window(window), as_reduction(reduction)
    if not isinstance(reduced, Activated):
        pooled = pool_by_operator(x, seen, reduced, ndim)
        return _pool_whole(x, seen, reduced, ndim) if pooled is None else pooled
    if reduced.behind:
        return activate(_pool(x, window, reduced.reduction, ndim), reduced)
    return _pool(activate(x, reduced), window, reduced.reduction, ndim)


def _pool_whole(x: Tensor, window: Window, reduction: Reduction, ndim: int) -> Tensor:
    spatial = tuple(x.shape[x.ndim - ndim :])
    if isinstance(window, Global):
        values = x.flatten(-ndim)
        count = x.new_full((), values.shape[-1], dtype=torch.int64)
        return reduce_last(values, reduction, None, Seen(count, count))[(..., *(None,) * ndim)]
    _check_known(spatial)
    axes = window.axes(spatial)
    values, seen = gather_windows(arrays_of(x), x, axes, 0)
    inside, padded = (
        torch.from_numpy(np.ascontiguousarray(outer_product(counts, 0)))
        for counts in ([span.count for span in axes], [span.padded for span in axes])
    )
    mask = None if seen.all() else torch.from_numpy(np.ascontiguousarray(seen))
    return reduce_last(values, reduction, mask, Seen(inside, padded))


def _check_known(spatial: tuple[Any, ...]) -> None:
    if not all(type(size) is int for size in spatial):
        raise PoolValueError(
            "only a window at even distances, or over everything, has no need to know the size",
            "Leave the spatial axes out of dynamic_shapes",
        )


@express(torch.ops.poolkit.pool_positions.default)
def _pool_positions(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
    """Positions in the place of their codes: `indices` then has nothing to do."""
    return _pool(x, window, reduction, ndim), _locate(x, window, reduction, ndim)


@express(torch.ops.poolkit.locate.default)
def _locate(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    reduced, spatial = as_reduction(reduction), tuple(x.shape[x.ndim - ndim :])
    if isinstance(reduced, Activated):
        x, reduced = activate(x, reduced), reduced.inner
    _check_known(spatial)
    axes = as_window(window).axes(spatial)
    values, seen = gather_windows(arrays_of(x), x, axes, 0)
    if not seen.all():
        nothing = reduced.identity(NAMES[x.dtype])[0]
        values = torch.where(torch.from_numpy(np.ascontiguousarray(seen)), values, nothing)
    best = values.argmax(-1) if isinstance(reduced, Max) else values.argmin(-1)
    # Of each window and each place in it, the flat position.
    table = flat_positions(axes)
    first = np.arange(0, table.size, table.shape[-1]).reshape(table.shape[:-1])
    return torch.from_numpy(table.flatten())[best + torch.from_numpy(first)]


@express(torch.ops.poolkit.indices.default)
def _indices(positions: Tensor, window: str, spatial: Any) -> Tensor:
    return positions


@express(torch.hypot)
def _hypot(a: Tensor, b: Tensor) -> Tensor:
    large, small = torch.maximum(a.abs(), b.abs()), torch.minimum(a.abs(), b.abs())
    ratio = torch.where(large > 0, small / large, 0)
    return large * (1 + ratio * ratio).sqrt()
