"""From quantize and dequantize around poolings to poolings of integers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from ...errors import PoolTypeError
from ...inspection.nodes import modules_of
from ...inspection.operations import spread
from ...reductions import Mean
from ..params import DTYPES
from .graphs import GraphPooling, end_training, poolings_of, poolings_within
from .quantizer import LAYOUTS

__all__ = ["LoweredPooling", "convert", "lower"]

_MODULE = re.compile(r"poolkit\..*Pool(\dd)?")
_library = torch.ops.quantized_decomposed
_DEQUANTIZE = _library.dequantize_per_tensor.default
_QUANTIZE = _library.quantize_per_tensor.default
_BY_CHANNEL = _library.dequantize_per_channel.default
_DYNAMIC = _library.dequantize_per_tensor.tensor


@dataclass(frozen=True)
class LoweredPooling:
    """What became of a pooling.

    Attributes:
        name: where it stands in the model, and what it does.
        obstacle: why it stayed in float; "" if it runs on integers.
    """

    name: str
    obstacle: str = ""

    @property
    def is_integer(self) -> bool:
        return not self.obstacle


@dataclass(frozen=True)
class _Params:
    """The parameters of a quantize or dequantize in a graph."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @classmethod
    def of(cls, node: Node) -> _Params:
        return cls(*node.args[1:6])  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_narrow(self) -> bool:
        """Whether the dtype has values that are not in the range: of fewer bits, for example."""
        return (self.low, self.high) != DTYPES[self.name]


def convert(
    prepared: GraphModule, *, report: Callable[[str], object] | None = print
) -> GraphModule:
    """``convert_pt2e``, then `lower`: the quantized model with its poolings on integers.

    Args:
        prepared: of ``prepare_pt2e`` and calibrated, or of ``prepare_qat_pt2e`` and trained.
        report: is called with the text that says how many poolings run on integers, and for each
            that stayed in float why; None: nothing is said.

    Returns:
        The model, for inference only, in whatever mode it was exported: dropout and batch
        normalisation do what they do in eval mode. A pooling of integers has no gradient.

    Raises:
        PoolTypeError: ``prepared`` is not prepared.

    See `PoolingQuantizer` for an example.
    """
    if not isinstance(prepared, GraphModule):
        raise PoolTypeError(
            f"a prepared model is a GraphModule, got {type(prepared).__name__}",
            "Prepare it with prepare_pt2e or prepare_qat_pt2e",
        )
    try:
        converted: GraphModule = convert_pt2e(prepared)
    except AssertionError as error:
        raise PoolTypeError(
            f"torchao does not convert this graph: {error}",
            "Prepare it with prepare_pt2e or prepare_qat_pt2e",
        ) from error
    end_training(converted)
    lowered = lower(converted)
    if report is not None:
        report(describe(lowered))
    return converted


def describe(poolings: Sequence[LoweredPooling]) -> str:
    """The report of `convert`.

    >>> found = [LoweredPooling("a (max, 2×2)"), LoweredPooling("b (Lp, 2×2)", "no such kernel")]
    >>> print(describe(found))
    poolings on 8-bit integers: 1 of 2
    in float: b (Lp, 2×2): no such kernel
    """
    integers = sum(pooling.is_integer for pooling in poolings)
    lines = [f"poolings on 8-bit integers: {integers} of {len(poolings)}"]
    lines += [f"in float: {p.name}: {p.obstacle}" for p in poolings if not p.is_integer]
    return "\n".join(lines)


def lower(model: GraphModule) -> list[LoweredPooling]:
    """Replace, in a model that ``convert_pt2e`` has made, each pooling between a dequantize and a
    quantize by one of the integers.

    Maxima and minima compare the integers. Means and sums add them up, and round the exact result
    once. What only reshapes stays on integers, too.

    Args:
        model: is changed in place.

    Returns:
        What became of each pooling, in the order in which they run; then what stayed in float: the
        poolings of graphs within the graph (the branches of ``torch.cond``), and the modules of
        poolkit that pool by other operations than a window and a reduction.
    """
    done = []
    seen: set[str] = set()
    for pooling in list(poolings_of(model.graph)):
        seen.update(name for name, _ in modules_of(pooling.node))
        obstacle = obstacle_of(pooling)
        if not obstacle:
            for user in list(pooling.value.users):
                _replace(user, pooling)
        done.append(LoweredPooling(pooling.name, obstacle))
    for pooling in poolings_within(model):
        seen.update(name for name, _ in modules_of(pooling.node))
        done.append(LoweredPooling(pooling.name, pooling.obstacle))
    done += _composed(model.graph, seen)
    for node in list(model.graph.nodes):
        if node.target in LAYOUTS and _keeps_params(node):
            _replace_layout(node)
    model.graph.eliminate_dead_code()
    model.graph.lint()
    model.recompile()
    return done


def _composed(graph: Graph, seen: set[str]) -> list[LoweredPooling]:
    """poolkit's modules in which no pooling was seen, but those of quantized weights alone."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for name, kind in modules_of(node):
            if name not in seen and _MODULE.fullmatch(kind):
                found.setdefault(name, kind.rpartition(".")[2])
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, Node) and weight.target in (_DEQUANTIZE, _BY_CHANNEL):
            seen = seen | {name for name, _ in modules_of(node)}
    return [
        LoweredPooling(
            f"{name or 'the model'} ({kind})",
            "it is made of other operations, which nothing has quantized",
        )
        for name, kind in found.items()
        if name not in seen
    ]


def is_quantized(model: GraphModule) -> bool:
    """Whether values are quantized while a graph runs, and not weights alone."""
    return any(node.target is _QUANTIZE for node in model.graph.nodes)


def obstacle_of(pooling: GraphPooling) -> str:
    """Why a pooling of a converted graph cannot run on integers; "" if it can."""
    if pooling.obstacle:
        return pooling.obstacle
    source = pooling.input.target
    if source is _BY_CHANNEL:
        return "its input is quantized by channel"
    if source is _DYNAMIC:
        return "its input is quantized dynamically"
    if source is not _DEQUANTIZE:
        return "its input is not quantized"
    before = _Params.of(pooling.input)
    if before.name not in DTYPES:
        return f"its input is quantized to {before.name}"
    users = list(pooling.value.users)
    if not users or any(user.target is not _QUANTIZE for user in users):
        return "its result is not quantized"
    after = [_Params.of(user) for user in users]
    if pooling.selects and any(params != before for params in after):
        return "its result is quantized with other parameters than its input"
    if any(params.dtype != before.dtype for params in after):
        return "its result is quantized to another dtype than its input"
    return ""


def _replace(quantize: Node, pooling: GraphPooling) -> None:
    """The pooling and the quantize behind it, by a pooling of integers."""
    graph = quantize.graph
    before, after = _Params.of(pooling.input), _Params.of(quantize)
    ours, aten = torch.ops.poolkit, torch.ops.aten

    def call(function: Any, *args: Any) -> Node:
        return graph.call_function(function, args)

    with graph.inserting_before(quantize):
        q = pooling.input.args[0]
        n, axes = pooling.call.spatial_rank, pooling.axes
        dims = pooling.call.arguments["dim"] if pooling.call.is_reduction else range(axes - n, axes)
        order = [axis for axis in range(axes) if axis not in dims] + list(dims)
        trailing = order == list(range(axes))
        if not trailing:
            q = call(aten.permute.default, q, order)
        recipes = (repr(pooling.window), repr(pooling.reduction), n)
        if pooling.selects:
            out = call(ours.pool.default, q, *recipes)
        else:
            to = (before.scale, before.zero_point, after.scale, after.zero_point, "half_even")
            out = call(ours.quantized_pool.default, q, *recipes, *to)
        if after.is_narrow and _may_leave(pooling, before == after):
            out = call(aten.clamp.default, out, after.low, after.high)
        if pooling.call.is_reduction and not pooling.call.arguments["keepdim"]:
            out = call(aten.squeeze.dims, out, list(range(axes - n, axes)))
        elif not trailing:
            out = call(aten.permute.default, out, [order.index(axis) for axis in range(axes)])
    out.meta = dict(quantize.meta)
    quantize.replace_all_uses_with(out)
    graph.erase_node(quantize)


def _may_leave(pooling: GraphPooling, same: bool) -> bool:
    """Whether a result may lie outside of the range of the values that were pooled."""
    if pooling.selects:
        # A window that lies in the padding alone gives the lowest value of the dtype.
        return any(spread(getattr(pooling.window, "padding", 0), 1))
    mean = pooling.reduction
    return not (same and isinstance(mean, Mean) and mean.divisor is None)


def _keeps_params(node: Node) -> bool:
    """Whether a node stands between a dequantize and quantizes of the same parameters."""
    source = node.args[0]
    if not isinstance(source, Node) or source.target is not _DEQUANTIZE or not node.users:
        return False
    params = _Params.of(source)
    return all(user.target is _QUANTIZE and _Params.of(user) == params for user in node.users)


def _replace_layout(node: Node) -> None:
    source, *how = node.args
    assert isinstance(source, Node)
    for quantize in list(node.users):
        with node.graph.inserting_before(quantize):
            moved = node.graph.call_function(node.target, (source.args[0], *how), node.kwargs)  # type: ignore[arg-type]
        moved.meta = dict(quantize.meta)
        quantize.replace_all_uses_with(moved)
        node.graph.erase_node(quantize)
