"""The poolings of a graph that `torch.export` has made, as windows times reductions."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ...core import runner_of
from ...errors import PoolValueError, dtype_name
from ...inspection.downsampling import Pooled, downsampling_of
from ...inspection.nodes import (
    example_of,
    graphs_within,
    may_be_normalization,
    modules_of,
    pooling_of,
)
from ...inspection.operations import Call, Pooling
from ...inspection.poolkit_calls import from_operator
from ...reductions import Max, Mean, Min, Reduction, Sum, as_reduction
from ...torch import ops, quantized  # noqa: F401  register the operators
from ...windows import Window, as_window

__all__ = ["GraphPooling", "end_training", "make_trainable", "poolings_of", "poolings_within"]

#: Reductions that have a kernel on quantized values.
INTEGER_REDUCTIONS = (Max, Min, Mean, Sum)
_OURS = (torch.ops.poolkit.pool.default, torch.ops.poolkit.pool_positions.default)
#: torch's other reductions, which are poolings if their axes are spatial.
_OTHER_REDUCTIONS = frozenset(
    ("std", "var", "prod", "median", "nanmedian", "mode", "kthvalue", "topk", "linalg_vector_norm")
)
#: By the name of an operator's argument, what it is in inference.
_IN_INFERENCE: dict[str, Any] = {"train": False, "training": False, "dropout_p": 0.0}
_POWERS = (torch.ops.aten.pow.Tensor_Scalar, torch.ops.aten.square.default)


@dataclass(frozen=True, eq=False)
class GraphPooling:
    """One pooling in a graph.

    Attributes:
        name: where it stands in the model, and what it does: ``features.pool (max, 2×2)``.
        node: the call.
        value: what was pooled: the call itself, or what is taken out of the tuple that it returns.
        call: the operation and its arguments.
        pooled: its window and reduction, or None where it is something else.
        obstacle: why it has no kernel on integers; "" if it has one.
    """

    name: str
    node: Node
    value: Node
    call: Pooling
    pooled: Pooled | None
    obstacle: str = ""

    @property
    def input(self) -> Node:
        x = self.node.args[0]
        assert isinstance(x, Node)
        return x

    @property
    def axes(self) -> int:
        """How many axes its input has."""
        example = example_of(self.input)
        assert example is not None
        return example.ndim

    @property
    def window(self) -> Window:
        assert self.pooled is not None
        return self.pooled.window

    @property
    def reduction(self) -> Reduction:
        assert self.pooled is not None
        return self.pooled.reduction

    @property
    def selects(self) -> bool:
        """Whether every result is one of the values seen."""
        return self.pooled is not None and isinstance(self.reduction, Max | Min)

    @property
    def is_global(self) -> bool:
        """Whether one window sees everything."""
        if self.call.is_reduction:
            return True
        sizes = self.value.meta["val"].shape[-self.call.spatial_rank :]
        return all(isinstance(size, int) and size == 1 for size in sizes)


def poolings_of(graph: Graph) -> Iterator[GraphPooling]:
    """The poolings of an exported graph, in the order in which they run; not those of graphs that
    it runs, which are `poolings_within`."""
    for node in graph.nodes:
        call = _recognised(node)
        value = None if call is None else _value_of(node) or _placing(node, call)
        if call is None or value is None:
            continue
        known = call.operation != "pool" or "ndim" in call.arguments
        found = downsampling_of(call) if known else None
        pooled = found if isinstance(found, Pooled) else None
        does = call.described() if known else str(node.target)
        name = f"{_place_of(node)} ({does})"
        yield GraphPooling(name, node, value, call, pooled, _obstacle(node, call, pooled))


def poolings_within(model: GraphModule) -> Iterator[GraphPooling]:
    """The poolings of the graphs that nodes of a graph run: branches, loops. Nothing quantizes
    what stands there."""
    for node, part in graphs_within(model):
        for pooling in poolings_of(part.graph):
            obstacle = pooling.obstacle or f"it stands in a graph within the graph ({node.target})"
            yield replace(pooling, obstacle=obstacle)


def _place_of(node: Node) -> str:
    """The module that a call stands in; where that is the model, its name in the graph."""
    names = [name for name, _ in modules_of(node)]
    return names[-1] if names and names[-1] else node.name


def trainable_pool(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    """``torch.ops.poolkit.pool`` with a gradient, which the operator itself has none of."""
    pooled: Tensor = runner_of(x).pool(x, as_window(window), as_reduction(reduction), ndim, False)
    return pooled


def make_trainable(model: GraphModule) -> None:
    """Replace poolkit's operators, as an export leaves them, by calls that have a gradient.

    Raises:
        PoolValueError: for one that cannot be: training would leave out what is in front of it.
    """
    graph = model.graph
    for node in list(graph.nodes):
        if node.target not in _OURS or any(_taken(user) and user.users for user in node.users):
            continue
        with graph.inserting_before(node):
            call = graph.call_function(trainable_pool, node.args)
        value = _value_of(node) or node
        call.meta = dict(value.meta)
        value.replace_all_uses_with(call)
    graph.eliminate_dead_code()
    model.recompile()
    parts = [part.graph.nodes for _, part in graphs_within(model)]
    for node in chain(graph.nodes, *parts):
        if getattr(node.target, "namespace", "") == "poolkit":
            raise PoolValueError(
                f"{node.target} has no gradient in an exported graph, so that it cannot be trained",
                "Quantize the model after training, or use another pooling there",
            )


def end_training(model: GraphModule) -> None:
    """Make a graph that was exported for training one for inference: nothing is dropped, batches
    are normalised by the statistics that were kept, and nobody counts them any more."""
    for node in list(model.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        for place, argument in enumerate(schema.arguments if schema else ()):
            if argument.name in _IN_INFERENCE and place < len(node.args):
                node.update_arg(place, _IN_INFERENCE[argument.name])
            elif argument.name in _IN_INFERENCE and argument.name in node.kwargs:
                node.update_kwarg(argument.name, _IN_INFERENCE[argument.name])
        if node.target is torch.ops.aten.add_.Tensor and not node.users:
            counter = str(node.args[0].target)
            if node.args[0].op == "get_attr" and counter.endswith("num_batches_tracked"):
                model.graph.erase_node(node)
    model.recompile()


def _recognised(node: Node) -> Pooling | None:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    x = example_of(node.args[0])
    if x is None:
        return None
    call = Call.of(node.target, (x, *node.args[1:]), node.kwargs)
    if node.target is trainable_pool:
        return from_operator(Call("pool", call.args, {}))
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    found = pooling_of(node)
    if node.target.namespace == "poolkit":
        return found or _other_of_ours(call)
    return found or _other_reduction(node, call, x)


def _other_of_ours(call: Call) -> Pooling | None:
    """A pooling of poolkit's that is no window times a reduction, by its name alone."""
    if "quantized" not in call.name and ("pool" in call.name or call.name.startswith("region_m")):
        return Pooling("pool", {"reduction": f"poolkit.{call.name}"})
    return None


def _other_reduction(node: Node, call: Call, x: Tensor) -> Pooling | None:
    """One of torch's that has no kernel on integers, by its name alone."""
    if call.name not in _OTHER_REDUCTIONS or x.ndim < 4:
        return None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    dims = call.bound(*names[1:]).get("dim", -1)
    dims = dims if isinstance(dims, list | tuple) else [dims]
    if not dims or any(dim is None or dim % x.ndim < 2 for dim in dims):
        return None
    return Pooling("pool", {"reduction": f"{call.name} over space"})


def _value_of(node: Node) -> Node | None:
    """Where the pooled values are; None if nobody asks for them."""
    if isinstance(node.meta.get("val"), Tensor):
        return node
    return next((user for user in node.users if _taken(user) == 0), None)


def _placing(node: Node, call: Pooling) -> Node | None:
    """A pooling of which the places alone are asked for; of axes that is no pooling."""
    used = any(_taken(user) == 1 and user.users for user in node.users)
    return node if used and not call.is_reduction else None


def _taken(node: Node) -> Any:
    return node.args[1] if node.target is operator.getitem else None


def _obstacle(node: Node, call: Pooling, pooled: Pooled | None) -> str:
    source = node.args[0]
    assert isinstance(source, Node)
    x, given = example_of(source), call.arguments
    assert x is not None
    if pooled is None:
        name = call.words() if call.operation == "pool" else call.operation
        return f"{name} has no kernel on integers"
    if type(pooled.reduction) not in INTEGER_REDUCTIONS:
        return f"{pooled.reduction} has no kernel on integers"
    if may_be_normalization(node, call):
        axes = ", ".join(map(str, given["dim"]))
        return (
            f"{call.operation} over axis {axes} of three may be no pooling, but a normalization; "
            "write a pooling module"
        )
    if any(_taken(user) and user.users for user in node.users):
        return "the places that it returns are used"
    if source.target in _POWERS and source.args[1:] != (0.5,):
        return "its input is a power, as in an Lp norm, which has no kernel on integers"
    if not x.is_floating_point():
        return f"its input is {dtype_name(x)}"
    result = _value_of(node)
    given_dtype = None if result is None else result.meta["val"].dtype
    return "" if given_dtype == x.dtype else "its result has another dtype than its input"
