"""What stands beside a pooling in a graph: activations join it, a maximum moves past the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from torch import fx

from poolkit.optimization.elementwise import (
    DEQUANTIZE,
    QUANTIZE,
    activation_in_graph,
    cancel,
    is_monotone,
    operator_name,
)
from poolkit.optimization.subgraphs import (
    POOLKITS,
    PoolingNode,
    Rewrite,
    Subgraph,
    is_fresh,
    is_in_place,
)
from poolkit.reductions import Activated, Reduction


def subgraph_of(pooling: PoolingNode, claimed: set[fx.Node]) -> Subgraph:
    """A pooling with the elementwise operations around it that nothing else reads from."""
    moves = pooling.is_extreme and not _falls(pooling.node.all_input_nodes[0])
    before = _before(pooling, moves, claimed)
    after = _after(pooling, claimed) if moves else []
    rewrites = _moved(pooling, before, after) if moves else _joined(pooling, before)
    return Subgraph(
        pooling=pooling.traced,
        words=_chain(before, pooling.words, after),
        nodes=(*before, *pooling.nodes, *after),
        outputs=(after[-1] if after else pooling.result,),
        rewrites=tuple(rewrites),
        reason="" if rewrites else POOLKITS,
    )


def _falls(node: fx.Node) -> bool:
    """Whether it is an activation that no maximum may pass."""
    activation = activation_in_graph(node)
    return activation is not None and not activation.monotone


def _before(pooling: PoolingNode, moves: bool, claimed: set[fx.Node]) -> list[fx.Node]:
    """What is applied to the input, in order: one activation at most of what cannot move."""
    nodes: list[fx.Node] = []
    node = pooling.node.all_input_nodes[0]
    fits = is_monotone if moves else partial(_joins, pooling)
    while node not in claimed and len(node.users) == 1 and fits(node):
        source = node.all_input_nodes[0]
        # What overwrites its input changes it for all who read it, under whatever name.
        if is_in_place(node) and not is_fresh(source):
            break
        nodes.insert(0, node)
        if not moves:
            break
        node = source
    return nodes


def _joins(pooling: PoolingNode, node: fx.Node) -> bool:
    """Whether there is a kernel of the pooling of activated values."""
    activation = activation_in_graph(node)
    if activation is None or isinstance(pooling.reduction, Activated):
        return False
    return Activated(repr(pooling.reduction), repr(activation)).kernel is not None


def _after(pooling: PoolingNode, claimed: set[fx.Node]) -> list[fx.Node]:
    """What is applied to the result, in order."""
    nodes: list[fx.Node] = []
    node = pooling.result
    while len(node.users) == 1:
        (node,) = node.users
        if node in claimed or not is_monotone(node):
            break
        nodes.append(node)
    return nodes


def _joined(pooling: PoolingNode, before: Sequence[fx.Node]) -> list[Rewrite]:
    """The activation in the pooling; and the two one after the other."""
    rewrites = []
    if before:
        activation = activation_in_graph(before[0])
        reduction = Activated(repr(pooling.reduction), repr(activation))
        words = f"poolkit {pooling.words}, with {activation}"
        rewrites.append(_rewrite(pooling, (), reduction, (), words, False))
    if not pooling.is_poolkits:
        words = _chain(before, f"poolkit {pooling.words}", ())
        exact = pooling.is_extreme
        rewrites.append(_rewrite(pooling, before, pooling.reduction, (), words, exact))
    return rewrites


def _moved(
    pooling: PoolingNode, before: Sequence[fx.Node], after: Sequence[fx.Node]
) -> list[Rewrite]:
    """The maximum at every place of the chain: the one furthest to the front first."""
    rewrites = []
    for place in range(len(before) + 1):
        first, passed = before[:place], before[place:]
        left = _without_pairs([*passed, *after])
        if not passed and len(left) == len(after) and pooling.is_poolkits:
            continue  # that is what is there
        # What the maximum reads: a node, or the input of the whole chain.
        x = (before[place] if passed else pooling.node).all_input_nodes[0]
        activation = activation_in_graph(left[0]) if left else None
        reduction, words = pooling.reduction, f"poolkit {pooling.words}"
        exact = all(operator_name(node) in QUANTIZE | DEQUANTIZE for node in passed)
        if activation is not None and x.meta["val"].is_floating_point():
            reduction = Activated(repr(reduction), repr(activation))
            words, left, exact = f"{words}, with {activation}", left[1:], False
        words = _chain(first, words, left)
        rewrites.append(_rewrite(pooling, first, reduction, left, words, exact))
    return rewrites


def _without_pairs(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Without neighbours that cancel each other."""
    left: list[fx.Node] = []
    for node in nodes:
        if left and cancel(left[-1], node):
            left.pop()
        else:
            left.append(node)
    return left


def _rewrite(
    pooling: PoolingNode,
    first: Sequence[fx.Node],
    reduction: Reduction,
    left: Sequence[fx.Node],
    words: str,
    exact: bool,
) -> Rewrite:
    def build(graph: fx.Graph, inputs: Sequence[fx.Node]) -> list[fx.Node]:
        pooled = pooling.put(graph, _copied(graph, first, inputs[0]), reduction=reduction)
        return [_copied(graph, left, pooled)]

    return Rewrite(words, build, exact)


def _copied(graph: fx.Graph, nodes: Iterable[fx.Node], x: fx.Node) -> fx.Node:
    """The operations of some nodes, one behind the other."""
    for node in nodes:
        x = graph.create_node("call_function", node.target, (x, *node.args[1:]), dict(node.kwargs))
    return x


def _chain(before: Iterable[fx.Node], words: str, after: Iterable[fx.Node]) -> str:
    return " → ".join([*map(_word, before), words, *map(_word, after)])


def _word(node: fx.Node) -> str:
    return operator_name(node).rpartition(".")[2]
