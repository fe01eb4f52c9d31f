"""Parts of an exported graph that a pooling can be computed by, and how others are written.

A subgraph is a few nodes that are replaced together, and its rewrites are functions that write
other nodes into a graph. Here is what those that look for them share.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from poolkit.inspection.downsampling import Pooled, downsampling_of
from poolkit.inspection.trace import TracedPooling
from poolkit.optimization.elementwise import operator_name
from poolkit.reductions import Max, Min, Reduction
from poolkit.torch import ops as _ops  # noqa: F401 - these define operators
from poolkit.torch import quantized as _quantized  # noqa: F401
from poolkit.torch.plain import NAMES
from poolkit.windows import Sliding, Window

#: Writes nodes behind the given ones into a graph, and returns those of the results.
Build = Callable[[fx.Graph, Sequence[fx.Node]], Sequence[fx.Node]]

POOLKITS = "is poolkit's already"
COMPUTED = "its window is computed from shapes"


@dataclass(frozen=True)
class Rewrite:
    """Another way to compute a subgraph; ``exact`` if it must give the same bits."""

    words: str
    build: Build
    exact: bool


@dataclass(frozen=True)
class Subgraph:
    """Nodes that are replaced together, in the order of the graph.

    Attributes:
        pooling: the first pooling among them.
        outputs: those whose values others read.
        reason: why there are no rewrites.
        input_names: what the first node read when the graph was looked at.
    """

    pooling: TracedPooling
    words: str
    nodes: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    rewrites: tuple[Rewrite, ...] = ()
    reason: str = ""
    input_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_names", tuple(node.name for node in self.inputs))

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """What the first node reads, and the others too; another subgraph may have replaced it."""
        return tuple(self.nodes[0].all_input_nodes)

    def build(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> Sequence[fx.Node]:
        """The subgraph as it is, in another graph."""
        known = dict(zip(self.inputs, inputs, strict=True))
        for node in self.nodes:
            known[node] = graph.node_copy(node, known.__getitem__)
        return [known[node] for node in self.outputs]


@dataclass(frozen=True)
class PoolingNode:
    """A pooling in a graph: a window and a reduction over the last ``axes`` axes.

    Attributes:
        nodes: the call and, if it gives more than values, what picks from its results.
        result: the node of the values.
        squeezes: whether the pooled axes go.
        reason: why it cannot be written in another way.
    """

    traced: TracedPooling
    node: fx.Node
    nodes: tuple[fx.Node, ...]
    result: fx.Node
    window: Window
    reduction: Reduction
    axes: int
    squeezes: bool
    reason: str

    @property
    def words(self) -> str:
        """``max, 3×3, stride 2``."""
        return self.traced.pooling.described()

    @property
    def is_extreme(self) -> bool:
        return type(self.reduction) in (Max, Min)

    @property
    def is_poolkits(self) -> bool:
        return operator_name(self.node) == "poolkit.pool"

    def put(
        self,
        graph: fx.Graph,
        x: fx.Node,
        window: Window | None = None,
        reduction: Reduction | None = None,
    ) -> fx.Node:
        """Writes poolkit's pooling of x."""
        recipes = (repr(window or self.window), repr(reduction or self.reduction))
        out = graph.call_function(torch.ops.poolkit.pool.default, (x, *recipes, self.axes))
        if self.squeezes:
            gone = list(range(-self.axes, 0))
            out = graph.call_function(torch.ops.aten.squeeze.dims, (out, gone))
        return out

    def as_it_is(self) -> Subgraph:
        return Subgraph(self.traced, self.words, self.nodes, (self.node,), reason=self.reason)


def read(traced: TracedPooling, node: fx.Node) -> PoolingNode:
    """What a node does that was seen to pool."""
    pooling, seen = traced.pooling, downsampling_of(traced.pooling)
    picks = [user for user in node.users if user.target is operator.getitem]
    values = [pick for pick in picks if pick.args[1] == 0]
    result = values[0] if len(values) == 1 else node
    reason = ""
    if any(not isinstance(x.meta.get("val"), torch.Tensor) for x in node.all_input_nodes):
        # The sizes that were seen are those of this example alone.
        reason, seen = COMPUTED, Pooled(Sliding(1), Max())
    elif not isinstance(seen, Pooled):
        reason, seen = "is no window times a reduction", Pooled(Sliding(1), Max())
    elif operator_name(node).startswith("poolkit.") and operator_name(node) != "poolkit.pool":
        reason = POOLKITS
    elif traced.input.dtype not in NAMES:
        reason = f"poolkit does not pool {str(traced.input.dtype).removeprefix('torch.')}"
    elif any(pick.users for pick in picks if pick is not result):
        reason = "its indices are used"
    elif picks and result is node:
        reason = "its results are picked more than once"
    elif pooling.operation == "logsumexp":
        reason = "poolkit's divides by the number of values, torch's does not"
    elif node.kwargs.get("dtype") is not None:
        reason = "it converts to another dtype on the way"
    elif pooling.is_reduction and not _reduces_the_last(traced):
        reason = "it reduces axes that are not the last ones"
    return PoolingNode(
        traced, node, (node, *picks), result, _shortest(seen.window), seen.reduction,
        pooling.spatial_rank, pooling.is_reduction and not pooling.arguments["keepdim"], reason,
    )  # fmt: skip


def _reduces_the_last(traced: TracedPooling) -> bool:
    dim, rank = traced.pooling.arguments["dim"], traced.input.ndim
    return tuple(dim) == tuple(range(rank - len(dim), rank))


def _shortest(window: Window) -> Window:
    """One number for all axes where they agree, as a person would write it."""
    if not isinstance(window, Sliding):
        return window
    sizes: dict[str, Any] = {}
    for name in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(window, name)
        if isinstance(value, tuple) and len(set(value)) == 1 and isinstance(value[0], int):
            sizes[name] = value[0]
    return replace(window, **sizes)


# --- memory that is written to --------------------------------------------------------------------


def is_in_place(node: fx.Node) -> bool:
    """Whether a node overwrites what it reads."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


#: What may give its input itself, in inference, and has a schema that does not say so.
_HAND_ON = {
    "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout",
    "aten.type_as",
}  # fmt: skip


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    return operator_name(node) in _HAND_ON or any(
        out.alias_info is not None for out in schema.returns
    )


def is_fresh(node: fx.Node) -> bool:
    """Whether a node gives memory that is new, and one other alone reads it."""
    if not operator_name(node) or len(node.users) != 1:
        return False
    return not _is_view(node) or is_fresh(node.all_input_nodes[0])


def is_overwritten(node: fx.Node) -> bool:
    """Whether something writes into the result of a node, or into a view of it."""
    return any(
        is_in_place(user) or (_is_view(user) and is_overwritten(user)) for user in node.users
    )
