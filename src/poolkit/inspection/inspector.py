"""The inspection itself: trace once, then measure each pooling on its real input."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.layers import pictures_of, record_of
from poolkit.inspection.onnx_graph import OnnxModel
from poolkit.inspection.pictures import first_image, side_for
from poolkit.inspection.records import LayerRecord, Sample
from poolkit.inspection.report import Report
from poolkit.inspection.trace import TracedPooling, describe_tensor, run_model, tensors_in, trace
from poolkit.timing import check_seconds, interleave, within

#: Called as ``progress(what, done, total)``.
Progress = Callable[[str, int, int], None]


def inspect(
    model: nn.Module | ExportedProgram | OnnxModel | str | Path,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    name: str = "",
    seconds: float = 0.4,
    losses: bool = True,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Find every pooling that ``model`` runs on ``inputs`` and measure each on its real input.

    Found are modules, functions, reductions over space and strided convolutions, in order of
    execution, each as often as it runs. A module runs in eval mode without gradients, and is left
    as it was.

    Args:
        model: any module; an exported program, or the ``.pt2`` file of one; an ``.onnx`` file,
            which onnxruntime runs.
        inputs: a tensor, or a tuple or list of the positional arguments of ``forward``; a dict is
            its keyword arguments (write ``(dict,)`` for one argument that is a dict). An exported
            program has its example inputs with it.
        kwargs: more keyword arguments of ``forward``.
        name: what to call the model; its class, or file, by default.
        seconds: time to spend on timing each layer, and on the model; 0 times nothing.
        losses: whether to measure what each layer loses (tens of milliseconds a layer).
        pictures: whether to keep pictures of feature maps for the HTML report (needs Pillow).
        progress: called with what is being done, how many layers are done, and of how many.

    Returns:
        A :class:`Report`; its ``layers`` are empty if no pooling ran.

    Raises:
        PoolTypeError: ``model`` is none of these.
        PoolValueError: ``seconds`` is negative or not finite; there are no inputs; a file cannot
            be read.
        PoolError: the model raised on the inputs; the message has their shapes.
        MissingExtraError: onnx or onnxruntime is not installed, for an ``.onnx`` file.

    >>> import torch
    >>> from torch import nn
    >>> report = inspect(nn.AvgPool2d(2), torch.ones(1, 3, 56, 56), seconds=0)
    >>> report.layers[0].words, report.layers[0].kept
    ('average', 0.25)
    """
    check_seconds(seconds)
    model = read_model(model)
    arguments, keywords = arguments_of(inputs, kwargs)
    if inputs is None and not keywords:
        arguments = example_of(model)
    if isinstance(model, OnnxModel):
        arguments, keywords = pytree.tree_map_only(
            np.ndarray, torch.from_numpy, (arguments, keywords)
        )
    tell = progress or (lambda what, done, total: None)
    with running(model, arguments, keywords) as (trace_once, run):
        tell("running the model", 0, 0)
        found = trace_once()
        times = _model_times(run, seconds / 2)
        layers = records_of(found, seconds, losses, pictures, tell)
        # Before and after the layers: their share is of the machine as it was in between.
        times += _model_times(run, seconds / 2)
    model_ms = 1e3 * median(times) if times else None
    if not isinstance(model, OnnxModel):  # another runtime's time is no whole of torch's parts
        for layer in layers:
            layer.torch_share, layer.poolkit_share = (
                ms / model_ms if ms is not None and model_ms else None
                for ms in (layer.torch_ms, layer.poolkit_ms)
            )
    tell("done", len(found), len(found))
    tensors = list(tensors_in((arguments, keywords)))
    return Report(
        model_name=name or (model.where if isinstance(model, OnnxModel) else type(model).__name__),
        inputs=[describe_tensor(x) for x in tensors],
        layers=layers,
        model_ms=model_ms,
        threads=torch.get_num_threads(),
        versions=versions() | (model.versions if isinstance(model, OnnxModel) else {}),
        samples=samples_of(tensors) if pictures and layers else [],
    )


def read_model(model: Any) -> nn.Module | OnnxModel:
    """The model itself, from what may stand for it."""
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".pt2":
            return ExportedModel.load(path)
        if path.suffix == ".onnx":
            return OnnxModel.load(path)
        raise PoolValueError(
            f"{model} is neither an .onnx nor a .pt2 file", "Give the module itself, or such a file"
        )
    if isinstance(model, ExportedProgram):
        return ExportedModel(model)
    if isinstance(model, OnnxModel):
        return model
    if not isinstance(model, nn.Module):
        raise PoolTypeError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    # What torch.compile made of a model cannot be watched; the model itself can.
    original: nn.Module = getattr(model, "_orig_mod", model)
    return original


def example_of(model: nn.Module | OnnxModel) -> tuple[Any, ...]:
    """The inputs that a model brings with it. Raises PoolValueError if it brings none."""
    example = model.example_arguments if isinstance(model, ExportedModel) else None
    if example is None:
        raise PoolValueError("there are no inputs to run the model on", "Give inputs")
    return example


@contextmanager
def running(
    model: nn.Module | OnnxModel, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Iterator[tuple[Callable[[], list[TracedPooling]], Callable[[], Any]]]:
    """Two calls: one that traces the model on these inputs, and one that only runs it."""
    if isinstance(model, OnnxModel):
        feeds = model.feeds(arguments, keywords)
        yield (lambda: model.trace(feeds)), model.runner(feeds)
        return
    module = model
    with evaluating(module):
        yield (
            (lambda: trace(module, arguments, keywords, convolutions=True)[0]),
            (lambda: run_model(module, arguments, keywords)),
        )


def arguments_of(
    inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of ``forward``.

    >>> arguments_of({"x": 1}), arguments_of([1, 2]), arguments_of(1, {"y": 2})
    (((), {'x': 1}), ((1, 2), {}), ((1,), {'y': 2}))
    """
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(kwargs or {})}
    if inputs is None:
        return (), dict(kwargs or {})
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), dict(kwargs or {})


def records_of(
    found: list[TracedPooling], seconds: float, losses: bool, pictures: bool, tell: Progress
) -> list[LayerRecord]:
    """The record of each pooling that ran, in order."""
    runs = Counter(map(_which, found))
    ran: Counter[Any] = Counter()
    layers: list[LayerRecord] = []
    for index, traced in enumerate(found):
        tell(traced.name or traced.pooling.operation, index, len(found))
        which = _which(traced)
        ran[which] += 1
        row = record_of(index, traced, ran[which], runs[which], seconds, losses)
        if row.id in (other.id for other in layers):  # names that only punctuation tells apart
            row.id += f"-{index}"
        if pictures:
            row.pictures = pictures_of(traced, side_for(len(found)))
        layers.append(row)
    return layers


def _which(traced: TracedPooling) -> Any:
    """What makes two runs runs of one layer: the module, or the name and kind of the call."""
    return (
        traced.name,
        traced.pooling.operation if traced.module is None else id(traced.module),
    )


def samples_of(tensors: list[torch.Tensor]) -> list[Sample]:
    """The first image of each input that is one."""
    pictures = ((x, first_image(x)) for x in tensors)
    return [Sample(png, x.shape[-2], x.shape[-1]) for x, png in pictures if png is not None]


def _model_times(run: Callable[[], Any], seconds: float) -> list[float]:
    if seconds <= 0:
        return []
    with torch.no_grad():
        (times,) = interleave([run], within(seconds))
    return times.seconds


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; after it every module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    try:
        try:
            model.eval()
        except NotImplementedError:  # of a graph that was exported: it has one mode only
            for module, _ in before:
                module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def versions() -> dict[str, str]:
    """Versions of what was measured, and on what."""
    import poolkit

    return {
        "poolkit": poolkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
