"""The inspection itself: trace once, then measure each pooling on its real input."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import nn

from poolkit.errors import PoolError, PoolTypeError
from poolkit.inspection.memory import saved_for_backward
from poolkit.inspection.operations import Pooling
from poolkit.inspection.pictures import feature_maps, first_image
from poolkit.inspection.report import LayerRecord, Report, Sample
from poolkit.inspection.trace import (
    TracedPooling,
    describe_tensor,
    run_model,
    tensors_in,
    trace,
)
from poolkit.timing import check_seconds, compare, interleave, within

#: Called as ``progress(what, done, total)``.
Progress = Callable[[str, int, int], None]


def inspect(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    name: str = "",
    seconds: float = 0.4,
    pictures: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Find every pooling that ``model`` runs on ``inputs`` and measure each on its real input.

    Found are modules, functions and reductions over space, in order of execution, each as often
    as it runs. The model runs in eval mode without gradients, and is left as it was.

    Args:
        model: any module.
        inputs: a tensor, or a tuple or list of the positional arguments of ``forward``.
        kwargs: keyword arguments of ``forward``.
        name: what to call the model; its class by default.
        seconds: time to spend on timing each layer, and on the model; 0 times nothing.
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
    arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    tell = progress or (lambda what, done, total: None)
    with evaluating(model):
        tell("running the model", 0, 0)
        found, _ = trace(model, arguments, kwargs)
        times = _model_times(model, arguments, kwargs, seconds / 2)
        layers = []
        for index, traced in enumerate(found):
            tell(traced.name or traced.pooling.operation, index, len(found))
            layers.append(_record(index, traced, seconds, pictures))
        # Before and after the layers: their share is of the machine as it was in between.
        times += _model_times(model, arguments, kwargs, seconds / 2)
        model_ms = 1e3 * median(times) if times else None
        for layer in layers:
            layer.torch_share, layer.poolkit_share = (
                ms / model_ms if ms is not None and model_ms else None
                for ms in (layer.torch_ms, layer.poolkit_ms)
            )
    tell("done", len(found), len(found))
    return Report(
        model_name=name or type(model).__name__,
        inputs=[describe_tensor(x) for x in tensors_in((arguments, dict(kwargs or {})))],
        layers=layers,
        model_ms=model_ms,
        threads=torch.get_num_threads(),
        versions=versions(),
        samples=[
            sample
            for x in tensors_in(arguments)
            if pictures and layers and (sample := _sample(x)) is not None
        ],
    )


def _model_times(
    model: nn.Module, arguments: tuple[Any, ...], kwargs: Mapping[str, Any] | None, seconds: float
) -> list[float]:
    if seconds <= 0:
        return []
    with torch.no_grad():
        (times,) = interleave([lambda: run_model(model, arguments, kwargs)], within(seconds))
    return times.seconds


def _record(index: int, traced: TracedPooling, seconds: float, pictures: bool) -> LayerRecord:
    pooling, x, out = traced.pooling, traced.input, traced.output
    row = LayerRecord(
        index=index,
        name=traced.name,
        kind="module"
        if traced.module is not None
        else "reduction"
        if pooling.is_reduction
        else "function",
        operation=pooling.operation,
        words=pooling.words(),
        window=pooling.window(),
        arguments={key: _plain(value) for key, value in pooling.arguments.items()},
        source=traced.source,
        aliases=list(traced.aliases),
        dtype=str(x.dtype).removeprefix("torch."),
        layout=traced.layout,
        in_shape=list(x.shape),
        out_shape=list(out.shape),
        kept=out.numel() / x.numel() if x.numel() else 1.0,
        receptive_field=[axis.seen() for axis in traced.view.axes] if traced.view else None,
        input_extent=[axis.extent for axis in traced.view.axes] if traced.view else None,
        whole_input=traced.view is not None
        and all(axis.seen() == axis.extent for axis in traced.view.axes),
    )
    _measure(row, traced, seconds)
    if pictures:
        row.pictures = feature_maps(*_channels_first(pooling, x, out), pooling.spatial_rank)
    return row


def _channels_first(
    pooling: Pooling, x: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output with the spatial axes behind: a reduction may be over any."""
    if pooling.arguments.get("channels_last"):
        return x.movedim(-1, -pooling.spatial_rank - 1), out.movedim(-1, -pooling.spatial_rank - 1)
    if not pooling.is_reduction:
        return x, out
    dims = pooling.arguments["dim"]
    kept = [axis for axis in range(x.ndim) if axis not in dims]
    if pooling.arguments["keepdim"]:
        out = out.permute(*kept, *dims)
    return x.permute(*kept, *dims), out


def _sample(x: torch.Tensor) -> Sample | None:
    image = first_image(x)
    return None if image is None else Sample(image, x.shape[-2], x.shape[-1])


def _measure(row: LayerRecord, traced: TracedPooling, seconds: float) -> None:
    pooling, x = traced.pooling, traced.input
    try:
        ours = pooling.in_poolkit(x)
        ours()
    except PoolError as error:
        row.note = f"not in poolkit: {next(iter(str(error).splitlines()), '')}"
        return
    row.poolkit_saved = saved_for_backward(lambda leaf: pooling.in_poolkit(leaf)(), x)
    try:
        theirs = pooling.in_torch(x)
        theirs()
        row.torch_saved = saved_for_backward(lambda leaf: pooling.in_torch(leaf)(), x)
    except Exception as error:  # what poolkit can do and torch cannot, as dilated averages
        row.note = f"not in torch: {next(iter(str(error).splitlines()), '')}"
        if seconds > 0:
            with torch.no_grad():
                (times,) = interleave([ours], within(seconds))
            row.poolkit_ms = 1e3 * median(times.seconds)
        return
    if seconds <= 0:
        return
    timing = compare(theirs, ours, seconds)
    row.torch_ms, row.poolkit_ms = timing.before_ms, timing.after_ms
    row.speedup = timing.speedup


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


def _plain(value: Any) -> Any:
    """An argument as JSON can hold it."""
    if isinstance(value, torch.Tensor):
        return describe_tensor(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    return str(value)  # a window or a reduction as its recipe, and what JSON has no word for
