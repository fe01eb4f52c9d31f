"""A model as an exported program, for batches of any size where it allows them."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from poolkit.errors import PoolError, PoolValueError, first_line
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.trace import run_model
from poolkit.optimization.sites import scripted_part

_NOISY = (
    "torch.onnx", "torch._export.non_strict_utils", "torch.fx.experimental.symbolic_shapes",
    "onnx_ir",
)  # fmt: skip


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_batch: bool,
    dynamic_shapes: Any,
) -> tuple[ExportedProgram, str]:
    """The program, and why its batches have one size although any was asked for.

    Raises PoolValueError if the model cannot be exported.
    """
    if isinstance(model, ExportedModel):
        return copy_of(model.program), ""
    given = dict(kwargs)
    with named_arguments(model, given):
        if dynamic_shapes is not None or not dynamic_batch:
            return _exported(model, args, given, dynamic_shapes), ""
        two, two_given = of_two(args), of_two(given)
        try:
            program = _exported(model, two, two_given, batch_axes(model, two, two_given, Dim.AUTO))
            run_model(program.module(), args, given)
        except PoolError as error:
            return (
                _exported(model, args, given, None),
                f"the program takes batches of this size only, as otherwise {error.what}",
            )
        fixed = "" if program.range_constraints else "the program takes batches of this size only"
        return program, fixed


def copy_of(
    program: ExportedProgram, state_dict: dict[str, torch.Tensor] | None = None
) -> ExportedProgram:
    """A program with a graph of its own and the same weights, or those that are given."""
    graph = copy.deepcopy(program.graph)
    for node, twin in zip(program.graph.nodes, graph.nodes, strict=True):
        twin.name = node.name  # inputs named as Python's own functions get another name
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict if state_dict is None else state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    try:
        with torch.no_grad():
            return traced(model, args, kwargs, dynamic_shapes)
    except PoolError:
        raise
    except Exception as error:
        said, remedy = refusal_of(model, error)
        raise PoolValueError(
            f"the model cannot be exported: {said}", f"{remedy}; tier='module' takes any model"
        ) from error


def traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """`torch.export.export`, which prints the graph of a model that it refuses."""
    with quiet(), redirect_stderr(io.StringIO()):
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of what is missing, and specialised, and nobody asked for."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, _NOISY)}
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def refusal_of(model: nn.Module, error: Exception) -> tuple[str, str]:
    """What torch.export said of a model that it does not take, in a sentence, and what to do."""
    if scripted := scripted_part(model):
        return (
            f"{scripted} is a ScriptModule, which torch.export does not look into",
            "Use the module that it was made from",
        )
    # Of several lines the first is of no use: that constraints are violated.
    lines = [line.strip() for line in str(error).splitlines()]
    violated = [line.removeprefix("- ").split(". ")[0] for line in lines if line.startswith("- ")]
    if violated and "Constraints violated" in lines[0]:
        return violated[0].rstrip("."), "Let fewer axes vary, or only in steps that the model takes"
    said = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
    return said, "What is exported may not depend on values, nor call what torch does not know"


@contextmanager
def named_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a forward with ``**kwargs`` has parameters of their names: `torch.export` finds no
    shapes that vary behind the asterisks."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # nothing is known of its parameters
        signature = inspect.Signature()
    given = signature.parameters.values()
    named = [each for each in given if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(named) == len(given):
        yield
        return
    more = [name for name in kwargs if name not in signature.parameters]
    named += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    forward, own = model.forward, vars(model).get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    model.forward = call
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def of_two(values: Any) -> Any:
    """Batches of one repeated: of an axis of length 1 a tracer does not believe that it varies."""
    if isinstance(values, torch.Tensor):
        return torch.cat([values, values]) if values.ndim and values.shape[0] == 1 else values
    if isinstance(values, dict):
        made: Any = {key: of_two(value) for key, value in values.items()}
        return made if any(made[key] is not values[key] for key in values) else values
    if isinstance(values, tuple | list):
        parts = [of_two(value) for value in values]
        same = all(a is b for a, b in zip(parts, values, strict=True))
        return values if same else type(values)(parts)
    return values


def batch_axes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], length: Any
) -> Any:
    """``dynamic_shapes`` of `torch.export.export` in which the first axis of every tensor has a
    ``length`` of its own: the tracer finds out which of them must agree."""
    try:  # by parameter of forward, in their order: of ``*inputs`` a tuple
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        given = tuple(bound.arguments.values())
    except (TypeError, ValueError):  # nothing is known of its parameters
        given = (*args, *kwargs.values())

    def axes(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: length} if value.ndim else None
        if isinstance(value, dict):
            return {key: axes(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(map(axes, value))
        return None

    return tuple(map(axes, given))
