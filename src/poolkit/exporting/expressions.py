"""poolkit's operators in terms of ONNX's: what a trace records in their place.

An operator of the library is expressed by one of ONNX's pooling operators where these have it
(`operators`), and else in whole-array operations over the window's values (`torch/whole.py`), which
need the spatial sizes to be known. Whoever adds an operator to the dispatcher adds its expression
to `EXPRESSIONS`; one that has none is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..arrays import arrays_of
from ..composite import flat_positions, gather_windows, outer_product
from ..errors import PoolError, PoolValueError, describe
from ..inspection.running import LayerStack
from ..inspection.trace import tensors_in
from ..quantized.params import DTYPES
from ..reductions import Activated, Max, Reduction, Seen, as_reduction
from ..torch import bags as _bags  # noqa: F401 - these define operators
from ..torch import quantized as _quantized_operators  # noqa: F401
from ..torch import regions as _regions  # noqa: F401
from ..torch.plain import NAMES
from ..torch.whole import activate, reduce_last
from ..windows import Global, Window, as_window
from .operators import pool_by_operator, symbolic

__all__ = ["EXPRESSIONS", "ExportedPooling", "Expressing", "express", "refuse_drawing"]

EXPRESSIONS: dict[Any, Callable[..., Any]] = {}


def express(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters what stands for an operator of the dispatcher in an exported graph; one of another
    library, which may not be loaded, by its name."""

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


POOLING = {
    torch.ops.poolkit.pool.default,
    torch.ops.poolkit.pool_positions.default,
    torch.ops.poolkit.quantized_pool.default,
    torch.ops.poolkit.bag_pool.default,
    torch.ops.poolkit.region_mean.default,
    torch.ops.poolkit.region_max.default,
}
"""What is a pooling of its own; its arguments that are text say which."""
QUANTIZE_PER_TENSOR = "quantized_decomposed.quantize_per_tensor.default"
QUANTIZING = {
    torch.ops.poolkit.quantize.default: 1,
    torch.ops.poolkit.quantized_pool.default: 6,
    QUANTIZE_PER_TENSOR: 1,
}
"""Which argument of what rounds to 8 bits is the step."""


DRAWING = {
    torch.bernoulli,
    torch.multinomial,
    torch.rand,
    torch.rand_like,
    torch.randint,
    torch.randn,
    torch.randn_like,
    torch.randperm,
}
"""What draws whatever it is given; tracers may stumble over it before a graph is seen."""


def refuse_drawing(layer: str, what: str) -> NoReturn:
    raise PoolValueError(
        f"{layer} draws random numbers ({what}), which ONNX has no way to repeat",
        "Draw them outside and make them an input of the model, or use another layer",
    )


class Expressing(TorchFunctionMode):
    """While a model is traced, records expressions in the place of poolkit's operators.

    Attributes:
        found: what was pooled, in order.
        step: the largest distance between two quantized values; 0 if nothing is quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = LayerStack(model)
        self.found: list[ExportedPooling] = []
        self.step = 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in DRAWING:
            refuse_drawing(self.layers.current, func.__name__)
        operator = func if func in EXPRESSIONS else str(func)
        expression = EXPRESSIONS.get(operator)
        if expression is None:
            return _hand_on(func(*args, **(kwargs or {})), args)
        what = " with ".join(value for value in args if isinstance(value, str))
        if func in POOLING:
            self.found.append(ExportedPooling(self.layers.current, what))
        if operator in QUANTIZING:
            self.step = max(self.step, float(args[QUANTIZING[operator]]))
        try:
            return expression(*args, **(kwargs or {}))
        except PoolError as error:
            raise error.during(f"{describe(args[0])} by {what} in {self.layers.current}") from None


@express(torch.ops.poolkit.pool.default)
def _pool(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    known = _parameters_of(x)
    if known is not None:
        return _between(known, x, lambda real: _pool(real, window, reduction, ndim))
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


@express(torch.ops.poolkit.chain.default)
def _chain(x: Tensor, window: str, levels: int) -> Tensor:
    parts = [x]
    for _ in range(levels):
        parts.append(_pool(parts[-1], window, "Max()", 2))
    return torch.cat(parts, dim=-3)


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


@express(torch.sort)
@express(torch.Tensor.sort)
def _sort(
    x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> tuple[Tensor, Tensor]:
    """The exporter knows sorts that are not stable; it writes TopK, where of equal values the
    first is the first."""
    wide = x if x.dtype.itemsize >= 4 or x.is_floating_point() else x.to(torch.int32)
    values, places = torch.ops.aten.sort.default(wide, dim, descending)
    return torch.return_types.sort((values.to(x.dtype), places))


@express(torch.argsort)
@express(torch.Tensor.argsort)
def _argsort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    return _sort(x, dim, descending)[1]


@express(torch.ops.poolkit.bag_pool.default)
def _bag_pool(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    divisors: Tensor | None,
    reduction: str,
    parameter: float,
    places: bool,
) -> tuple[Tensor, Tensor]:
    """Of every bag and every entry, whether the one has the other: bags are few in one request."""
    rows = table if index is None else table[index]
    entry = torch.arange(rows.shape[0])
    member = (entry >= begin[:, None]) & (entry < (begin + count)[:, None])
    if reduction == "soft":
        logits = rows * parameter
        logits = logits if weights is None else logits + weights.log()[:, None]
        share = torch.where(member[..., None], logits, -torch.inf).softmax(1)
        out = (share * rows).sum(1)
    else:
        rows = rows if weights is None else rows * weights[:, None].to(rows.dtype)
        if reduction == "sum":
            out = member.to(rows.dtype) @ rows
            out = out if divisors is None else out / divisors[:, None].to(rows.dtype)
        else:
            nothing, extreme = (
                (-torch.inf, torch.amax) if reduction == "max" else (torch.inf, torch.amin)
            )
            out = extreme(torch.where(member[..., None], rows, nothing), 1)
    return torch.where(count[:, None] > 0, out, 0), count.new_empty((0,), dtype=torch.int32)


# --- quantized values ----------------------------------------------------------------------------


def _parameters(scale: float, zero_point: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=dtype)


def _parameters_of(q: Tensor) -> tuple[float, int] | None:
    """Scale and zero point of integers that were quantized in this graph."""
    return getattr(q, "_poolkit_parameters", None)


def _know(q: Any, parameters: tuple[float, int]) -> Any:
    q._poolkit_parameters = parameters
    return q


def _hand_on(result: Any, args: tuple[Any, ...]) -> Any:
    """What becomes of quantized integers in another shape or order has their parameters."""
    if isinstance(result, Tensor) and result.dtype in (torch.int8, torch.uint8):
        for known in filter(None, map(_parameters_of, tensors_in(args))):
            return _know(result, known)
    return result


def _between(
    parameters: tuple[float, int], q: Tensor, operation: Callable[[Tensor], Tensor]
) -> Tensor:
    """DequantizeLinear, what selects among real numbers, QuantizeLinear: which runtimes take for
    one operation on integers, and know those at both of its ends."""
    return _quantize(
        operation(_dequantize(q, *parameters)), *parameters, NAMES[q.dtype], "half_even"
    )


@express(torch.ops.poolkit.quantize.default)
def _quantize(x: Tensor, scale: float, zero_point: int, dtype: str, rounding: str) -> Tensor:
    if rounding != "half_even":
        raise PoolValueError(
            f"QuantizeLinear rounds half to even, not {rounding}", "Drop rounding="
        )
    kind: torch.dtype = getattr(torch, dtype)
    inputs = (x.float(), *_parameters(scale, zero_point, kind))
    made: Tensor = _know(symbolic("QuantizeLinear", inputs, x.shape, kind), (scale, zero_point))
    return made


@express(QUANTIZE_PER_TENSOR)
def _quantize_per_tensor(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """torchao's. Of fewer bits than the dtype has, real numbers are clipped: QuantizeLinear
    saturates at the ends of the dtype alone."""
    if (low, high) != DTYPES[NAMES[dtype]]:
        x = x.clamp((low - zero_point) * scale, (high - zero_point) * scale)
    return _quantize(x, scale, zero_point, NAMES[dtype], "half_even")


@express(torch.ops.aten.clamp.default)
def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    known = _parameters_of(x)
    if known is None:
        return torch.ops.aten.clamp.default(x, low, high)
    scale, zero_point = known
    ends = (None if end is None else (end - zero_point) * scale for end in (low, high))
    return _between(known, x, lambda real: real.clamp(*ends))


@express(torch.ops.poolkit.dequantize.default)
def _dequantize(q: Tensor, scale: float, zero_point: int, dtype: str = "float32") -> Tensor:
    inputs = (q, *_parameters(scale, zero_point, q.dtype))
    real = symbolic("DequantizeLinear", inputs, q.shape, torch.float32)
    return real.to(getattr(torch, dtype))


@express(torch.ops.poolkit.quantized_pool.default)
def _quantized_pool(
    q: Tensor,
    window: str,
    reduction: str,
    ndim: int,
    scale: float,
    zero_point: int,
    out_scale: float,
    out_zero_point: int,
    rounding: str,
) -> Tensor:
    """Dequantized, pooled and quantized again, which runtimes fuse into one operator on integers.

    In float32 a mean half way between two integers may come out on either side of it. It does not
    where scales have few binary digits, as those of `pt2e.quantization_config` have: then the
    sums, and so the ties, are exact. Fused, ONNX Runtime takes ties to the integer that is even
    with its zero point in it; QuantizeLinear, as the kernels, to the even number of steps.
    """
    pooled = _pool(_dequantize(q, scale, zero_point), window, reduction, ndim)
    return _quantize(pooled, out_scale, out_zero_point, NAMES[q.dtype], rounding)
