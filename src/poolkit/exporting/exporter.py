"""export_onnx(): trace, express, translate, check, write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxscript  # noqa: F401 - the exporter needs it, and its absence should be known at once
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import PoolError, PoolTypeError, PoolValueError, first_line
from ..files import check_writable, write_whole
from ..inspection.exported import ExportedModel
from ..inspection.inspector import evaluating
from ..inspection.trace import run_model, tensors_in
from ..optimization.capture import (
    batch_axes,
    named_arguments,
    of_two,
    quiet,
    refusal_of,
    traced,
)
from ..optimization.equality import check_tolerance, keeping_buffers
from .checking import Check, check_engines, run_checks
from .expressions import ExportedPooling, Expressing, refuse_drawing
from .operators import OPSET

__all__ = ["ExportReport", "export_onnx"]

MOST_BYTES = 2**31 - 1
"""What one protobuf message can hold."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        opset: the version of ONNX's operators.
        inputs, outputs: their names.
        operators: how many nodes there are of each ONNX operator.
        poolings: poolkit's poolings, in the order in which they run.
        checks: the runs that agreed with the model.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    poolings: tuple[ExportedPooling, ...]
    checks: tuple[Check, ...]


def export_onnx(
    model: nn.Module | ExportedProgram,
    inputs: Any,
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    engines: Sequence[str] | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write a model as ONNX, in standard operators only, and check that the file answers alike.

    poolkit's poolings become ONNX's pooling operators where these say the same, with padding in
    the place of ``ceil_mode``; all others are written out in whole-array operations, for which
    the spatial sizes must be known. The model is traced in eval mode, and left as it was.

    Args:
        model: any module, or an exported program, as that of `poolkit.optimize`.
        inputs: a tensor, or a tuple or list of the positional arguments of ``forward``: real ones,
            as the file is checked on them. None: those that an exported program has with it.
        path: the file. It is written when all checks have passed, under another name first.
        kwargs: keyword arguments of ``forward``.
        dynamic_batch: whether the first axis of all inputs may have any length in the file. A
            batch of one is traced as a batch of two, and both are checked.
        dynamic_shapes: which axes may vary, as `torch.export.export` takes it, instead.
        engines: what runs the file to check it: "onnxruntime", "reference" (ONNX's own evaluator,
            slow for large models), both, or none; by default those that are installed, of which
            the reference may lack an operator.
        tolerance: largest difference from the model's own outputs, relative to the largest value.
            Where the model quantizes, one step is allowed in any case.

    Returns:
        An :class:`ExportReport`.

    Raises:
        PoolTypeError: ``model`` is not a module.
        PoolValueError: the model cannot be traced, something in it cannot be expressed (the layer
            is named), an engine answers differently, or the file cannot be written. Then nothing
            is, and a file that was there stays.
        MissingExtraError: the packages of ``poolkit[onnx]`` are not installed.

    >>> import tempfile, torch, poolkit
    >>> model = torch.nn.Sequential(poolkit.nn.MaxPool2d(3, 2, 1), poolkit.nn.SoftPool2d(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = poolkit.export_onnx(model, torch.rand(2, 3, 16, 16), f"{folder}/model.onnx")
    >>> report.operators["MaxPool"], report.operators["Softmax"]
    (1, 1)
    >>> sorted({(check.engine, check.error < 1e-6) for check in report.checks})
    [('onnxruntime', True), ('reference', True)]
    """
    if isinstance(model, ExportedProgram):
        model = ExportedModel(model)
        inputs = model.example_arguments if inputs is None else inputs
    if not isinstance(model, nn.Module):
        raise PoolTypeError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    check_tolerance(tolerance)
    path = Path(path)
    check_writable(path)
    chosen = check_engines(engines)
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    # torch.export notes on the tensors which axes may vary, and heeds it in the next export.
    args, given = pytree.tree_map_only(
        torch.Tensor, torch.Tensor.detach, (args, dict(kwargs or {}))
    )
    with (
        keeping_buffers(model), evaluating(model), torch.no_grad(),
        named_arguments(model, given), quiet(),
    ):  # fmt: skip
        examples = [_example(model, args, given)]
        if dynamic_shapes is None and dynamic_batch:
            two = of_two(args), of_two(given)
            if two[0] is not args or two[1] is not given:
                args, given = two
                examples.append(_doubled_example(model, args, given))
            dynamic_shapes = batch_axes(model, args, given, torch.export.Dim.DYNAMIC)
        program, mode = _traced(model, args, given, dynamic_shapes)
        _check_expressible(program)
        proto = _translated(program, len(examples[0][1]))
    names = [value.name for value in proto.graph.input]
    data = _serialised(proto)
    try:
        checks = run_checks(
            data, names, examples, chosen, tolerance, mode.step, any_engine=engines is None
        )
    except PoolValueError as error:
        raise error.during(_pooling_layers(program, mode)) from None
    write_whole(path, data)
    return ExportReport(
        path=path,
        opset=next(entry.version for entry in proto.opset_import if entry.domain == ""),
        inputs=tuple(names),
        outputs=tuple(value.name for value in proto.graph.output),
        operators=dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
        poolings=tuple(mode.found),
        checks=checks,
    )


Example = tuple[list[torch.Tensor], list[torch.Tensor]]


def _example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """What goes in and what comes out."""
    outputs = run_model(model, args, kwargs)
    for value in pytree.tree_leaves(outputs):
        if not isinstance(value, torch.Tensor | None):
            raise PoolValueError(
                f"the model returns {type(value).__name__}, and an ONNX file returns tensors",
                "Return tensors alone, or in tuples, lists and dicts",
            )
    return list(tensors_in((args, kwargs))), list(tensors_in(outputs))


def _doubled_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    try:
        return _example(model, args, kwargs)
    except PoolError as error:
        raise PoolValueError(
            f"the model does not work for a batch of two: {str(error).rstrip('.')}",
            "Export it with dynamic_batch=False",
        ) from error


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[torch.export.ExportedProgram, Expressing]:
    mode = Expressing(model)
    try:
        with mode.layers.following(), mode:
            program = traced(model, args, kwargs, dynamic_shapes)
    except PoolError:
        raise
    except Exception as error:
        said, remedy = refusal_of(model, error)
        if "dynamic_shapes" in str(error) or "Constraints violated" in str(error):
            raise PoolValueError(
                f"the model does not work for a batch of any size: {said}",
                "Export it with dynamic_batch=False, or say in dynamic_shapes what may vary",
            ) from error
        if "numpy()" in said:
            remedy += (
                "; a window of segments is read when it is made, so use poolkit.nn.SequencePool or "
                "EmbeddingBag, which take masks, lengths and offsets"
            )
        raise PoolValueError(f"{mode.layers.current} cannot be traced: {said}", remedy) from error
    return program, mode


def _layer_of(node: Any) -> str:
    stack = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if entry[0]]
    if not stack:
        return "the model"
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f"layer {name!r} ({kind.rpartition('.')[2]})"


def _pooling_layers(program: torch.export.ExportedProgram, mode: Expressing) -> str:
    """Those of poolkit's poolings and of torch's, which a wrong answer is most likely about."""
    theirs = [_layer_of(node) for node in program.graph.nodes if "pool" in str(node.target)]
    found = dict.fromkeys([*(each.layer for each in mode.found), *theirs])
    return f"in {', '.join(found)}" if found else ""


def _is_random(node: Any) -> bool:
    """Whether a node draws numbers; neither dropout in eval mode nor attention without it does."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = _given(node, "dropout_p", "train", "training")
    return bool(given[0]) if given else True


def _given(node: Any, *names: str) -> list[Any]:
    """The arguments of these names that an operator has."""
    schema = getattr(node.target, "_schema", None)
    return [
        node.args[place]
        if place < len(node.args)
        else node.kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(schema.arguments if schema else ())
        if argument.name in names
    ]


def _check_expressible(program: torch.export.ExportedProgram) -> None:
    """Refuse what ONNX cannot repeat, and what torch's exporter writes wrongly without a word."""
    for node in program.graph.nodes:
        divisor = next(iter(_given(node, "divisor_override")), None)
        if divisor is not None:
            raise PoolValueError(
                f"{_layer_of(node)} divides by {divisor}, and torch's exporter drops a "
                f"divisor_override ({node.target})",
                "Use the module of that name in poolkit.nn",
            )
        if _is_random(node):
            refuse_drawing(_layer_of(node), str(node.target))


def _translated(program: torch.export.ExportedProgram, outputs: int) -> Any:
    names = ["output"] if outputs == 1 else [f"output_{place}" for place in range(outputs)]
    try:
        made = torch.onnx.export(program, output_names=names, opset_version=OPSET, verbose=False)
        assert made is not None
        made.rename_axes(_axis_names(made.model.graph.inputs))
        proto = made.model_proto
    except Exception as error:
        raise _refusal(program, error) from error
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise PoolValueError(
                f"{node.name} is an operator of {node.domain}, not a standard one",
                "Replace the layer, or leave it out of the file",
            )
    return proto


def _axis_names(inputs: Any) -> dict[Any, str]:
    """What to call the axes of any length that the tracer has numbered."""
    names: dict[Any, str] = {}
    for value in inputs:
        for axis, size in enumerate(value.shape or ()):
            number = str(getattr(size, "value", size))
            if re.fullmatch(r"s\d+", number) and number not in names:
                names[number] = f"{value.name}_{axis}" if names or axis else "batch"
    return names


def _refusal(program: torch.export.ExportedProgram, error: Exception) -> PoolValueError:
    """An error of the exporter, with the name of the layer that it is about."""
    found = re.search(r"Error when translating node %?_*(\w+)", str(error))
    # What the exporter translates is decomposed, so a name may be shorter there.
    alike = [node for node in program.graph.nodes if found is not None and found[1] in node.name]
    if alike:
        node = min(alike, key=lambda node: len(node.name))
        return PoolValueError(
            f"{_layer_of(node)} cannot be expressed: {node.target} has no translation to "
            "standard ONNX operators",
            "Replace the layer, or leave it out of the file",
        )
    cause = error.__cause__ or error
    return PoolValueError(f"the model cannot be translated: {first_line(cause).rstrip('.')}")


def _serialised(proto: Any) -> bytes:
    if proto.ByteSize() > MOST_BYTES:
        raise PoolValueError(
            f"the model has {proto.ByteSize()} bytes, one file holds {MOST_BYTES}",
            "Export parts of it",
        )
    data: bytes = proto.SerializeToString()
    return data
