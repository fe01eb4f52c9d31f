"""Traps in a model that torchao has quantized: each looks at one pooling of its graph."""

from __future__ import annotations

from itertools import chain

import torch
from torch.fx import GraphModule

from ..inspection.nodes import example_of, may_be_normalization
from ..quantized.pt2e.graphs import GraphPooling, poolings_of, poolings_within
from ..quantized.pt2e.lowering import is_quantized, obstacle_of
from .traps import Finding, Trap, trap

__all__ = ["QUANTIZED_TRAPS", "lint_quantized"]

QUANTIZED_TRAPS: dict[str, Trap] = {}


@trap(
    QUANTIZED_TRAPS,
    "torchao",
    remedy="Quantize with poolkit.quantized.pt2e.PoolingQuantizer and convert with "
    "poolkit.quantized.pt2e.convert; maxima, minima, means and sums have kernels on integers",
)
def left_in_float(pooling: GraphPooling) -> str | None:
    x = example_of(pooling.input)
    if x is None or not x.is_floating_point():
        return None
    if may_be_normalization(pooling.node, pooling.call):
        return None
    obstacle = obstacle_of(pooling)
    if not obstacle and pooling.node.target is torch.ops.aten.max_pool2d.default:
        return None  # torch's compiler puts it on integers
    why = obstacle or "nothing has put it on integers between its dequantize and its quantize"
    return f"it runs in float in a quantized model: {why}"


def lint_quantized(model: GraphModule) -> list[Finding]:
    """The findings of all poolings, in the order in which they run, those of graphs within the
    graph last; none where activations are not quantized."""
    if not is_quantized(model):
        return []
    found = (
        each.finding(pooling, pooling.name)
        for pooling in chain(poolings_of(model.graph), poolings_within(model))
        for each in QUANTIZED_TRAPS.values()
    )
    return [finding for finding in found if finding is not None]
