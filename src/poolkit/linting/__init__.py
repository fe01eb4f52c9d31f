"""`poolkit.lint`: known traps of pooling, found before they cost an afternoon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, PoolTypeError, PoolValueError
from .traps import Finding, installed

__all__ = ["Finding", "lint"]


def lint(
    model: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> list[Finding]:
    """The known traps that a model steps into, and what to do about each.

    Args:
        model: a torch module, an exported program, or the path of an ONNX file.
        inputs: for a module, a tensor, or a tuple or list of the positional arguments of
            ``forward``: it is run once, in eval mode, and left as it was. An exported program has
            its own with it.
        kwargs: keyword arguments of ``forward``.
        versions: of the packages that will run the model, as ``{"onnxruntime": "1.20.1"}``; by
            default those that are installed. A trap that is mended there is not reported.

    Returns:
        A :class:`Finding` for each, in the order in which the poolings run; poolings of poolkit's
        own are among them only where a quantized model runs them in float. In an ONNX file what
        stands in a branch of an If or in the body of a Loop is found, too. In a model that
        torchao's PT2E flow has quantized those that are left in float come last.

    Raises:
        PoolTypeError, PoolValueError: ``model`` is none of these, the file cannot be read, the
            module raised on its inputs, or ``versions`` names another package.
        MissingExtraError: an ONNX file needs the packages of ``poolkit[onnx]``, a model that
            torchao has quantized those of ``poolkit[quantization]``.

    >>> import torch, poolkit
    >>> findings = poolkit.lint(torch.nn.AvgPool2d(2, divisor_override=3), torch.rand(1, 3, 8, 8))
    >>> print(findings[0].trap)
    divisor-lost
    """
    known = installed(versions)
    if isinstance(model, str | Path):
        try:
            from .graphs import lint_graph
        except ModuleNotFoundError:
            raise MissingExtraError("onnx", "onnx") from None
        return lint_graph(Path(model), known)
    import torch
    from torch.export import ExportedProgram

    from ..inspection.exported import ExportedModel
    from .models import lint_model

    if isinstance(model, ExportedProgram):
        model = ExportedModel(model)
        inputs = model.example_arguments if inputs is None else inputs
    if not isinstance(model, torch.nn.Module):
        raise PoolTypeError(
            "a torch module, an exported program or the path of an ONNX file was expected, got "
            f"{type(model).__name__}"
        )
    if inputs is None:
        raise PoolValueError("a module is looked at while it runs", "Give its inputs")
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return lint_model(model, args, dict(kwargs or {}), known)
