"""Traps in a model of torch: each looks at one pooling of torch's own, as it really ran."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from ..errors import PoolError, PoolValueError
from ..inspection.inspector import evaluating
from ..inspection.operations import spread
from ..inspection.running import LayerStack
from ..inspection.trace import TracedPooling, trace
from ..optimization.equality import keeping_buffers
from ..optimization.sites import scripted_part
from .traps import Finding, Trap, begins_behind, trap

__all__ = ["MODEL_TRAPS", "lint_model"]

MODEL_TRAPS: dict[str, Trap] = {}
HALVES = (torch.float16, torch.bfloat16)
EXPORT = "Use the module of that name in poolkit.nn, and poolkit.export_onnx"


@trap(MODEL_TRAPS, "torch", remedy=EXPORT)
def divisor_lost(call: TracedPooling) -> str | None:
    divisor = call.pooling.arguments.get("divisor_override")
    if divisor is None:
        return None
    return f"torch's ONNX exporter drops divisor_override={divisor} without a word"


@trap(MODEL_TRAPS, "torch", remedy=EXPORT)
def bins_that_do_not_divide(call: TracedPooling) -> str | None:
    bins, sizes = _bins(call)
    whole = all(not b or size % b == 0 for size, b in zip(sizes, bins, strict=True))
    if whole or _averages_volumes(call):
        return None
    how = (
        "refuses to write it"
        if "max" in call.pooling.operation
        else "writes a gather for each place of a bin"
    )
    return f"bins {bins} do not divide {sizes}, and torch's ONNX exporter {how}"


@trap(MODEL_TRAPS, "torch", remedy=EXPORT)
def adaptive_average_of_volumes(call: TracedPooling) -> str | None:
    bins, _ = _bins(call)
    if not _averages_volumes(call) or set(bins) == {1}:
        return None
    return f"torch's ONNX exporter refuses to write averages over {bins} bins of a volume"


def _averages_volumes(call: TracedPooling) -> bool:
    return call.pooling.operation == "adaptive_avg_pool3d"


def _bins(call: TracedPooling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many bins an adaptive pooling has along each axis, and the sizes; nothing of others."""
    given, n = call.pooling.arguments, call.pooling.spatial_rank
    if not call.pooling.operation.startswith("adaptive") or "output_size" not in given:
        return (), ()
    sizes = tuple(call.input.shape[-n:])
    bins = spread(given["output_size"], n)
    return tuple(size if b is None else b for size, b in zip(sizes, bins, strict=True)), sizes


@trap(MODEL_TRAPS, "torch", remedy="Use poolkit.nn's LPPool, which takes |x|")
def odd_norm_of_negative_values(call: TracedPooling) -> str | None:
    p = call.pooling.arguments.get("norm_type")
    if p is None or float(p) % 2 == 0 or call.input.numel() == 0 or call.input.min() >= 0:
        return None
    return f"torch adds up x^{p:g} without |x|, so negative values cancel, or give NaN"


@trap(MODEL_TRAPS, "torch", remedy="Use poolkit.nn's LPPool, which adds up in float32")
def norm_in_half_precision(call: TracedPooling) -> str | None:
    if "norm_type" not in call.pooling.arguments or call.input.dtype not in HALVES:
        return None
    return f"torch keeps the sum of the powers in {_name(call)}, which rounds it or overflows"


@trap(
    MODEL_TRAPS,
    "torch",
    mended="2.13",  # the first that was looked at; it adds up in float32
    remedy="Use poolkit.nn's, which adds up in float32",
)
def mean_in_half_precision(call: TracedPooling) -> str | None:
    if call.input.dtype not in HALVES or not _is_mean(call) or _positions(call) <= 256:
        return None
    return f"the sum of {_positions(call)} values may be kept in {_name(call)}"


@trap(
    MODEL_TRAPS,
    "onnxruntime",
    mended="1.21.0",
    remedy="Update ONNX Runtime, or use poolkit.export_onnx, which writes padding instead",
)
def ceil_mode_shape(call: TracedPooling) -> str | None:
    given = call.pooling.arguments
    if not given.get("ceil_mode"):
        return None
    n = call.pooling.spatial_rank
    kernel = spread(given["kernel_size"], n)
    rows = zip(
        call.input.shape[-n:],
        kernel,
        spread(given.get("stride") or kernel, n),
        spread(given.get("dilation") or 1, n),
        spread(given.get("padding") or 0, n),
        strict=True,
    )
    for axis, (size, k, stride, dilation, pad) in enumerate(rows):
        if begins_behind(size, k, stride, dilation, pad, pad):
            return (
                f"the last window along spatial axis {axis} would begin in the padding: torch "
                "leaves it out, ONNX Runtime before 1.21 does not"
            )
    return None


def _name(call: TracedPooling) -> str:
    return str(call.input.dtype).removeprefix("torch.")


def _is_mean(call: TracedPooling) -> bool:
    return "avg" in call.pooling.operation or call.pooling.operation == "mean"


def _positions(call: TracedPooling) -> int:
    return max(call.input.numel() // max(call.output.numel(), 1), 1)


# What torch says of it, as the model does not get further.
_RAISES = "std::numeric_limits<integer_t>::max()"
INT8 = Trap(
    "int8-channels-last",
    "torch",
    None,
    "Use poolkit.nn's MaxPool, or make the input contiguous",
    lambda message: (
        "torch counts the positions of a channels-last plane in the dtype of its values, and "
        "raises where it has more than 127; what would run behind it has not been looked at"
        if _RAISES in message
        else None
    ),
)
MODEL_TRAPS[INT8.name] = INT8


def lint_model(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], versions: dict[str, str]
) -> list[Finding]:
    """The findings of torch's own poolings, in the order in which they run; of a quantized graph
    then all that are left in float."""
    if scripted := scripted_part(model):
        raise PoolValueError(
            f"{scripted} is a ScriptModule, whose poolings cannot be seen",
            "Look at the module that it was made from",
        )
    layers = LayerStack(model)
    calls: list[TracedPooling] = []
    last: Finding | None = None
    try:
        with keeping_buffers(model), evaluating(model), layers.following():
            trace(model, args, kwargs, of_inputs=True, found=calls)
    except PoolError as error:
        last = INT8.finding(str(error.__cause__ or error), layers.current)
        if last is None:
            raise
    traps = [each for each in MODEL_TRAPS.values() if each is not INT8 and each.exists_in(versions)]
    found = (
        each.finding(call, _layer(call)) for call in calls if not call.by_poolkit for each in traps
    )
    return [finding for finding in (*found, last, *_left_in_float(model)) if finding is not None]


def _left_in_float(model: torch.nn.Module) -> list[Finding]:
    if not isinstance(model, GraphModule):
        return []
    if not any("quantized_decomposed" in str(node.target) for node in model.graph.nodes):
        return []
    from .quantized import lint_quantized

    return lint_quantized(model)


def _layer(call: TracedPooling) -> str:
    layer = f"layer {call.name!r}" if call.name else "the model"
    if call.module is not None:
        return f"{layer} ({type(call.module).__name__})"
    return f"{layer} ({call.pooling.operation}, {call.source})"
