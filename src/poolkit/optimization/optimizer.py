"""optimize(): checks what it is given, and hands it to a tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.inspector import Progress, arguments_of, example_of
from poolkit.optimization.equality import check_tolerance, keeping_buffers
from poolkit.optimization.graph import optimize_graph
from poolkit.optimization.modules import optimize_modules
from poolkit.optimization.records import TIERS, Tier
from poolkit.optimization.report import OptimizeReport
from poolkit.optimization.sites import wrapper_name
from poolkit.optimization.trial import Task
from poolkit.timing import check_seconds


def optimize(
    model: nn.Module | ExportedProgram,
    example_inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    tier: Tier = "module",
    tolerance: float = 1e-5,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    dry_run: bool = False,
    seconds: float = 0.4,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    progress: Progress | None = None,
) -> OptimizeReport:
    """Pool by poolkit in ``model`` where that is equal and faster, and say what was done.

    The module tier swaps pooling modules in place, for training and inference. Every pooling
    module that runs on the example is tried on the inputs that it really gets, together with the
    activation right before it where the example proves that nothing else reads the value between.
    It is swapped if outputs and gradients are equal and it is faster beyond noise; then the
    whole model is compared and timed with and without, and all swaps are taken back if it came
    out different or slower. Names, ``state_dict``, modes and the sharing of modules stay as they
    are; the model is never copied. An activation that was joined is an ``nn.Identity``.

    The graph tier is for inference: `torch.export` captures the model, which stays as it is, and
    the exported graph is rewritten, functions and reductions over space too. Activations are
    joined to poolings, a maximum moves before a monotone function (a quantisation, say), and
    chains of maxima with stride 1 (SPPF) are computed one from the other, each from the input, or
    in one pass, whichever is fastest here. What stands in a graph within the graph (a branch of
    ``torch.cond``, the body of a loop) is reported, and stays. The result is ``report.program``,
    which ``report.module()`` runs. It is compared and timed against the same program as exported,
    and against the model itself; if it came out different or slower, ``report.program`` is the
    model as exported, with nothing of poolkit's in it, and ``report.note`` says why.

    Args:
        model: any module; not one wrapped for several devices (optimise the one inside). For the
            graph tier an exported program too.
        example_inputs: a tensor, or a tuple or list of the positional arguments of ``forward``. An
            exported program has its own with it.
        kwargs: keyword arguments of ``forward``.
        tier: "module" or "graph".
        tolerance: largest difference allowed in averages, activations, gradients and the model's
            outputs, relative to the largest value. Max and min must have the same bits regardless.
        filter_fn: called as ``filter_fn(module, name)``, in the graph tier with the module in which
            the pooling is called; a pooling is tried only if it is true, and the activation before
            it is joined only if it is true of that too.
        dry_run: report only; the model is left as it was, and there is no program.
        seconds: time to spend on timing each layer, and on the model; 0 times nothing and keeps
            every change that is equal.
        dynamic_batch: of the graph tier: whether the first axis of all inputs may have any length
            in the program, where the model allows it.
        dynamic_shapes: of the graph tier: which axes may vary, as `torch.export.export` takes it,
            instead.
        progress: called with what is being done, how many layers are done, and of how many.

    Returns:
        An :class:`OptimizeReport`: each layer with what was done or why not, ``restore()`` of the
        module tier, and ``program``, ``module()`` and ``save(path)`` of the graph tier.

    Raises:
        PoolTypeError: ``model`` is not a module.
        PoolValueError: the model is wrapped (DataParallel and the like), raised on the inputs,
            writes to them, or cannot be exported; ``tier`` is none; ``tolerance`` or ``seconds``
            is negative or not finite.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> x = torch.zeros(1, 3, 10, 10)
    >>> report = optimize(model, x, tier="graph", seconds=0)
    >>> report.layers[0].status, report.layers[0].after
    ('swapped', 'poolkit max, 2×2, with ReLU()')
    >>> torch.equal(report.module()(x), model(x))
    True
    >>> optimize(model, x, seconds=0).layers[0].before
    'torch ReLU, then MaxPool2d, 2×2'
    """
    if isinstance(model, ExportedProgram):
        model = ExportedModel(model)
    if not isinstance(model, nn.Module):
        raise PoolTypeError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    if tier not in TIERS:
        raise PoolValueError(
            f"tier must be one of {', '.join(map(repr, TIERS))}, got {tier!r}", "Write one of them"
        )
    check_tolerance(tolerance)
    check_seconds(seconds)
    if wrapper := wrapper_name(model):
        raise PoolValueError(
            f"the model is wrapped in {wrapper}, whose modules cannot be swapped",
            "Optimise the module inside and wrap it again",
        )
    if isinstance(model, ExportedModel) and tier != "graph":
        raise PoolValueError(
            "an exported program has no modules that could be swapped", "Use tier='graph'"
        )
    args, given = arguments_of(example_inputs, kwargs)
    if example_inputs is None and not given:
        args = example_of(model)
    if isinstance(model, ExportedModel):
        args, given = model.as_exported(args, given)
    with torch.inference_mode(False):  # the caller's stay, and copies may have gradients
        args, given = pytree.tree_map_only(torch.Tensor, _copied, (args, given))
    task = Task(model, args, given, tolerance, seconds, filter_fn, progress or _silent)
    with keeping_buffers(model):
        if tier == "graph":
            return optimize_graph(task, dry_run, dynamic_batch, dynamic_shapes)
        return optimize_modules(task, dry_run)


def _copied(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def _silent(what: str, done: int, total: int) -> None:
    pass
