"""Maxima of stride 1 that see one tensor through windows of several sizes: SPPF and SPP.

A maximum of maxima is one through a larger window, borders included, so each can be computed from
the one before or from the input; and where all are concatenated, in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import fx

from poolkit.optimization.elementwise import operator_name
from poolkit.optimization.subgraphs import Build, PoolingNode, Rewrite, Subgraph, is_overwritten
from poolkit.reductions import Max
from poolkit.windows import Sliding

Size = tuple[int, ...]


def families_in(poolings: Sequence[PoolingNode]) -> list[Subgraph]:
    """The families of two members and more."""
    seen: dict[fx.Node, tuple[fx.Node, Size]] = {}  # which tensor each sees, and how much of it
    members: dict[tuple[fx.Node, int], list[PoolingNode]] = {}
    for pooling in poolings:
        kernel = _size_keeping_kernel(pooling)
        if kernel is None:
            continue
        x = pooling.node.all_input_nodes[0]
        root, size = seen.get(x, (x, (1,) * pooling.axes))
        if len(size) != pooling.axes:
            root, size = x, (1,) * pooling.axes
        seen[pooling.node] = root, tuple(a + b - 1 for a, b in zip(size, kernel, strict=True))
        members.setdefault((root, pooling.axes), []).append(pooling)
    return [
        _Family(root, own, {member.node: seen[member.node][1] for member in own}).subgraph()
        for (root, _), own in members.items()
        if len(own) > 1 and not any(map(is_overwritten, (root, *(m.node for m in own))))
    ]


def _size_keeping_kernel(pooling: PoolingNode) -> Size | None:
    """The window of a maximum whose result lies above its input, place by place."""
    window = pooling.window
    if pooling.reason or type(window) is not Sliding or type(pooling.reduction) is not Max:
        return None
    kernel, stride, dilation = window.sizes(pooling.axes)
    if {*stride, *dilation} != {1} or any(k % 2 == 0 for k in kernel):
        return None
    keeps = window.pads(pooling.axes) == tuple((k // 2, k // 2) for k in kernel)
    return kernel if keeps and pooling.result is pooling.node else None


class _Family:
    def __init__(
        self, root: fx.Node, members: Sequence[PoolingNode], sizes: Mapping[fx.Node, Size]
    ) -> None:
        self.root, self.members, self.sizes = root, members, sizes
        self.first, self.steps = members[0], sorted(set(sizes.values()))
        self.joint = self._concatenation()

    def subgraph(self) -> Subgraph:
        nodes = tuple(member.node for member in self.members)
        outputs = nodes if self.joint is None else (self.joint,)
        windows = "; ".join(member.traced.pooling.window() for member in self.members)
        return Subgraph(
            pooling=self.first.traced,
            words=f"{len(nodes)} max ({windows}){'' if self.joint is None else ', concatenated'}",
            nodes=nodes if self.joint is None else (*nodes, self.joint),
            outputs=outputs,
            rewrites=tuple(self._rewrites()),
        )

    def _rewrites(self) -> list[Rewrite]:
        words = f"poolkit max of {', '.join('×'.join(map(str, size)) for size in self.steps)}"
        ways: list[tuple[str, Build]] = []
        if self._is_chain():
            ways.append(("in one pass", self._in_one_pass))
        if all(
            a <= b for one, other in pairwise(self.steps) for a, b in zip(one, other, strict=True)
        ):
            ways.append(("one from the other", self._in_a_row))
        ways.append(("each from the input", self._apart))
        return [Rewrite(f"{words}, {way}", build, True) for way, build in ways]

    def _in_one_pass(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> Sequence[fx.Node]:
        arguments = (inputs[0], repr(_window(self.steps[0])), len(self.steps))
        return [graph.call_function(torch.ops.poolkit.chain.default, arguments)]

    def _in_a_row(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> Sequence[fx.Node]:
        made, (x, *_) = {}, inputs
        for before, size in pairwise([(1,) * self.first.axes, *self.steps]):
            kernel = tuple(b - a + 1 for a, b in zip(before, size, strict=True))
            made[size] = x = self.first.put(graph, x, _window(kernel))
        return self._finished(graph, inputs[0], made)

    def _apart(self, graph: fx.Graph, inputs: Sequence[fx.Node]) -> Sequence[fx.Node]:
        made = {size: self.first.put(graph, inputs[0], _window(size)) for size in self.steps}
        return self._finished(graph, inputs[0], made)

    def _finished(
        self, graph: fx.Graph, x: fx.Node, made: Mapping[Size, fx.Node]
    ) -> Sequence[fx.Node]:
        values = {node: made[size] for node, size in self.sizes.items()}
        if self.joint is None:
            return [values[member.node] for member in self.members]
        # Asked now: another subgraph may have replaced what it was.
        values[self.first.node.all_input_nodes[0]] = x
        return [graph.node_copy(self.joint, values.__getitem__)]

    def _concatenation(self) -> fx.Node | None:
        """The one node that reads them, if it joins them and nothing else but the input."""
        users = {user for node in self.sizes for user in node.users if user not in self.sizes}
        if len(users) != 1:
            return None
        (user,) = users
        ours = operator_name(user) == "aten.cat" and {*user.all_input_nodes} <= {
            self.root,
            *self.sizes,
        }
        return user if ours else None

    def _is_chain(self) -> bool:
        """Whether it is what `poolkit.sppf` gives: the input and the levels, along the channels."""
        if self.joint is None or self.first.axes != 2:
            return False
        rank, parts = self.root.meta["val"].ndim, list(self.joint.args[0])  # type: ignore[arg-type]
        dim = self.joint.args[1] if len(self.joint.args) > 1 else self.joint.kwargs.get("dim", 0)
        if rank not in (3, 4) or dim not in (rank - 3, -3) or parts[0] is not self.root:
            return False
        levels = [tuple(1 + n * (k - 1) for k in self.steps[0]) for n in range(1, len(parts))]
        return [self.sizes.get(part) for part in parts[1:]] == levels == self.steps


def _window(kernel: Size) -> Sliding:
    if len(set(kernel)) == 1:
        return Sliding(kernel[0], stride=1, padding=kernel[0] // 2)
    return Sliding(kernel, stride=1, padding=tuple(k // 2 for k in kernel))
