"""What the nodes of an exported graph say of themselves, without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import torch
from torch.fx import GraphModule, Node

from poolkit.inspection.operations import Call, Pooling, recognise
from poolkit.inspection.poolkit_calls import from_operator

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = re.compile(r"/torch/|/poolkit/|<eval_with_key>")


def modules_of(node: Node) -> Iterator[tuple[str, str]]:
    """The name of each module that a node stands in, the innermost last, and its class."""
    for name, kind in (node.meta.get("nn_module_stack") or {}).values():
        yield name, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def place_of(node: Node) -> tuple[str, str, str]:
    """The module that a call stands in, that module's class, and the line: ``net.py:12``."""
    name, kind = next(reversed(list(modules_of(node))), ("", ""))
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    source = f"{PurePosixPath(own[-1][0]).name}:{own[-1][1]}" if own else ""
    return name, kind.rpartition(".")[2], source


def example_of(node: Node) -> torch.Tensor | None:
    """A tensor without memory that has the shape and dtype of a node's values. What observers,
    quantize and dequantize make has those of what they are made of."""
    while "val" not in node.meta and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    found = node.meta.get("val")
    return found if isinstance(found, torch.Tensor) else None


def pooling_of(node: Node) -> Pooling | None:
    """The pooling that a call is, or None.

    A mean, sum, maximum or minimum over axes is one if the axes are spatial: all from the third on.
    Of three axes either of the last two may be a sequence's, or the channels.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    x = example_of(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if x is None:
        return None
    args = (x, *node.args[1:])
    if node.target.namespace == "poolkit":
        return from_operator(Call.of(node.target, args, node.kwargs))
    spatial = range(2 if x.ndim > 3 else 1, x.ndim) if x.ndim > 2 else ()
    return recognise(node.target, args, node.kwargs, spatial)


def may_be_normalization(node: Node, pooling: Pooling) -> bool:
    """Whether a call is a reduction over one of three axes, which is as likely no pooling."""
    x = example_of(node.args[0]) if isinstance(node.args[0], Node) else None
    return pooling.is_reduction and x is not None and x.ndim == 3


def graphs_within(model: GraphModule) -> Iterator[tuple[Node, GraphModule]]:
    """The graphs that nodes of a graph run, and those within them, each with the node that runs it:
    the branches of ``torch.cond``, the body of a loop, what stands under autocast."""
    for node in model.graph.nodes:
        for read in node.all_input_nodes:
            part = _attribute(model, read)
            if isinstance(part, GraphModule):
                yield node, part
                yield from graphs_within(part)


def _attribute(model: GraphModule, node: Node) -> object:
    if node.op != "get_attr":
        return None
    found: object = model
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    return found
