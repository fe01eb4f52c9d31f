"""The inspection itself: trace once, then measure each pooling on its real input."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from poolkit.errors import PoolTypeError
from poolkit.inspection.layers import pictures_of, record_of
from poolkit.inspection.pictures import first_image, side_for
from poolkit.inspection.records import LayerRecord, Sample
from poolkit.inspection.report import Report
from poolkit.inspection.trace import TracedPooling, describe_tensor, run_model, tensors_in, trace
from poolkit.timing import check_seconds, interleave, within

#: Called as ``progress(what, done, total)``.
Progress = Callable[[str, int, int], None]


def inspect(
    model: nn.Module,
    inputs: Any,
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
    execution, each as often as it runs. The model runs in eval mode without gradients, and is
    left as it was.

    Args:
        model: any module.
        inputs: a tensor, or a tuple or list of the positional arguments of ``forward``; a dict is
            its keyword arguments (write ``(dict,)`` for one argument that is a dict).
        kwargs: more keyword arguments of ``forward``.
        name: what to call the model; its class by default.
        seconds: time to spend on timing each layer, and on the model; 0 times nothing.
        losses: whether to measure what each layer loses (tens of milliseconds a layer).
        pictures: whether to keep pictures of feature maps for the HTML report (needs Pillow).
        progress: called with what is being done, how many layers are done, and of how many.

    Returns:
        A :class:`Report`; its ``layers`` are empty if no pooling ran.

    Raises:
        PoolTypeError: ``model`` is not a module.
        PoolValueError: ``seconds`` is negative or not finite.
        PoolError: the model raised on the inputs; the message has their shapes.

    >>> import torch
    >>> from torch import nn
    >>> report = inspect(nn.AvgPool2d(2), torch.ones(1, 3, 56, 56), seconds=0)
    >>> report.layers[0].words, report.layers[0].kept
    ('average', 0.25)
    """
    if not isinstance(model, nn.Module):
        raise PoolTypeError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    check_seconds(seconds)
    # What torch.compile made of a model cannot be watched; the model itself can.
    model = getattr(model, "_orig_mod", model)
    arguments, keywords = arguments_of(inputs, kwargs)
    tell = progress or (lambda what, done, total: None)
    with evaluating(model):
        tell("running the model", 0, 0)
        found, _ = trace(model, arguments, keywords, convolutions=True)
        times = _model_times(model, arguments, keywords, seconds / 2)
        layers = records_of(found, seconds, losses, pictures, tell)
        # Before and after the layers: their share is of the machine as it was in between.
        times += _model_times(model, arguments, keywords, seconds / 2)
    model_ms = 1e3 * median(times) if times else None
    for layer in layers:
        layer.torch_share, layer.poolkit_share = (
            ms / model_ms if ms is not None and model_ms else None
            for ms in (layer.torch_ms, layer.poolkit_ms)
        )
    tell("done", len(found), len(found))
    tensors = list(tensors_in((arguments, keywords)))
    return Report(
        model_name=name or type(model).__name__,
        inputs=[describe_tensor(x) for x in tensors],
        layers=layers,
        model_ms=model_ms,
        threads=torch.get_num_threads(),
        versions=versions(),
        samples=samples_of(tensors) if pictures and layers else [],
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


def _model_times(
    model: nn.Module, arguments: tuple[Any, ...], kwargs: Mapping[str, Any], seconds: float
) -> list[float]:
    if seconds <= 0:
        return []
    with torch.no_grad():
        (times,) = interleave([lambda: run_model(model, arguments, kwargs)], within(seconds))
    return times.seconds


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; after it every module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
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
