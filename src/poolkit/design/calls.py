"""Poolings that a forward calls as functions become modules, so that others can replace them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from poolkit.comparison.replacement import graph_of
from poolkit.design.paper import Paper
from poolkit.design.records import Draft
from poolkit.design.sites import Subject, subjects_of
from poolkit.errors import PoolError
from poolkit.inspection.operations import recognise
from poolkit.inspection.poolkit_calls import function_name
from poolkit.optimization.sites import POOLING_CLASSES

_CLASSES = {function_name(name): cls for name, cls in POOLING_CLASSES.items()}
_OVER_SPACE: dict[Any, type[nn.Module]] = {
    "mean": nn.AdaptiveAvgPool2d, torch.mean: nn.AdaptiveAvgPool2d,
    "amax": nn.AdaptiveMaxPool2d, torch.amax: nn.AdaptiveMaxPool2d,
}  # fmt: skip


def calls_as_modules(paper: Paper, model: nn.Module) -> tuple[nn.Module, list[Subject], Draft]:
    """A copy in which every pooling that can be is a module, its sites, and what it costs.

    Where the forward cannot be traced the copy stays as it is, and so do the calls.
    """
    draft, run = paper.draft(model)
    found = subjects_of(run, model)
    if all(subject.module is not None for subject in found):
        return model, found, draft
    try:
        rewritten = _rewritten(model)
        again_draft, run = paper.draft(rewritten)
        again = subjects_of(run, rewritten)
    except PoolError:
        return model, found, draft
    if [s.site.out_shape for s in again] != [s.site.out_shape for s in found]:
        return model, found, draft
    # Readers know them by the names and the lines of their own model.
    known = [replace(new, site=old.site) for new, old in zip(again, found, strict=True)]
    return rewritten, known, again_draft


def _rewritten(model: nn.Module) -> fx.GraphModule:
    graph = graph_of(model)
    module = fx.GraphModule(model, graph)
    for number, node in enumerate(list(graph.nodes)):
        pool = _module_for(node)
        if pool is None:
            continue
        name = f"pooling_{number}"
        module.add_submodule(name, pool)
        with graph.inserting_after(node):
            new = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    module.recompile()
    return module


def _module_for(node: fx.Node) -> nn.Module | None:
    """The module that does what a call does, if that is a pooling."""
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    if node.target in _OVER_SPACE:
        return _over_space(_OVER_SPACE[node.target], node.args, node.kwargs)
    if node.op == "call_method" or node.target is F.interpolate:
        return None
    pooling = recognise(node.target, node.args, node.kwargs)
    cls = _CLASSES.get(pooling.operation) if pooling is not None else None
    if pooling is None or cls is None or pooling.arguments.get("return_indices"):
        return None
    return cls(**pooling.arguments)


def _over_space(
    cls: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> nn.Module | None:
    """``x.mean((2, 3))``, of maps: whether they are is seen when the model runs again."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if not isinstance(dim, tuple | list) or sorted(d % 4 for d in dim) != [2, 3]:
        return None
    return cls(1) if keepdim else nn.Sequential(cls(1), nn.Flatten(1))
