"""From a pooling that ran to its record: what it is, what it costs, what it loses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite, prod
from statistics import median
from typing import Any

import torch

from poolkit.errors import PoolError, first_line
from poolkit.inspection.downsampling import (
    Downsampling,
    Pooled,
    as_maps,
    downsampling_of,
    dropped,
    misdivided,
)
from poolkit.inspection.flags import dead_channels, flags_of
from poolkit.inspection.measures import measure
from poolkit.inspection.memory import saved_for_backward
from poolkit.inspection.operations import Pooling
from poolkit.inspection.pictures import gradient_picture, layer_pictures
from poolkit.inspection.records import LayerPictures, LayerRecord
from poolkit.inspection.trace import TracedPooling, describe_tensor
from poolkit.reductions import Mean, inner_of
from poolkit.timing import compare, interleave, within
from poolkit.windows import Sliding


def record_of(
    index: int, traced: TracedPooling, call: int, calls: int, seconds: float, losses: bool
) -> LayerRecord:
    """The record of one pooling, timed for ``seconds`` and, if ``losses``, measured."""
    pooling, x, out, view = traced.pooling, traced.input, traced.output, traced.view
    row = LayerRecord(
        index=index,
        id=_slug(traced, call),
        name=traced.name,
        kind=traced.kind,
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
        kept=_kept(pooling, x, out),
        receptive_field=[axis.seen() for axis in view.axes] if view else None,
        input_extent=[axis.extent for axis in view.axes] if view else None,
        whole_input=view is not None and all(a.seen() == a.extent for a in view.axes),
        call=call,
        calls=calls,
        producers=[step.label for step in traced.step.producers],
        consumers=[step.label for step in traced.step.consumers],
        bytes_moved=x.nbytes + out.nbytes,
        jump=[round(axis.sees.jump, 4) for axis in view.axes] if view else None,
        offset=[round(axis.sees.offset, 4) for axis in view.axes] if view else None,
        zeros=float((x == 0).double().mean()) if x.numel() else None,
    )
    layer, maps = downsampling_of(pooling), as_maps(pooling, x)
    if maps is not None and maps.numel():
        row.dead_channels, row.channels = dead_channels(maps), maps.shape[1]
        if layer is not None:
            _describe_window(row, layer, tuple(maps.shape[2:]))
            measured = measure(layer, maps) if losses else None
            if measured is not None:
                row.loss, row.yardsticks, row.places, row.spectrum = measured
    row.flags = flags_of(pooling, traced.step, layer, maps)
    _time(row, traced, seconds)
    return row


def pictures_of(traced: TracedPooling, side: int) -> LayerPictures | None:
    """The pictures of one pooling, of maps up to ``side``."""
    pooling = traced.pooling
    layer, x = downsampling_of(pooling), as_maps(pooling, traced.input)
    after = as_maps(pooling, traced.output, is_output=True)
    if x is None or after is None or after.ndim != x.ndim:
        return None
    found = layer_pictures(x, after, layer, side)
    if found is not None and layer is not None:
        gradient = gradient_picture(layer, x, side)
        if gradient is not None:
            found.gradient, found.gradient_range = gradient
    return found


def _describe_window(row: LayerRecord, layer: Downsampling, shape: tuple[int, ...]) -> None:
    n, window = len(shape), layer.window
    if isinstance(window, Sliding):
        row.kernel_size, row.stride, row.dilation = map(list, window.sizes(n))
        pads = window.pads(n)
        row.padding = None if pads is None else [list(pair) for pair in pads]
        row.ceil_mode = window.ceil_mode
    lost = dropped(window, shape)
    row.dropped = 1 - prod(1 - gone / size for gone, size in zip(lost, shape, strict=True))
    if isinstance(layer, Pooled):
        mean = inner_of(layer.reduction)
        row.misdivided = misdivided(layer.reduction, window, shape)
        row.count_include_pad = mean.count_include_pad if isinstance(mean, Mean) else None


def _kept(pooling: Pooling, x: torch.Tensor, out: torch.Tensor) -> float:
    if not x.numel():
        return 1.0
    if pooling.is_convolution:  # whose channels are other ones
        return prod(out.shape[-pooling.spatial_rank :]) / prod(x.shape[-pooling.spatial_rank :])
    return out.numel() / x.numel()


def _slug(traced: TracedPooling, call: int) -> str:
    """A name for links that stays when other layers come and go: not the layer's number."""
    words = traced.name if traced.is_layer else f"{traced.name}-{traced.step.operation}"
    return re.sub(r"[^\w.]+", "-", words).strip("-") + (f"-{call}" if call > 1 else "")


def _time(row: LayerRecord, traced: TracedPooling, seconds: float) -> None:
    pooling, x = traced.pooling, traced.input
    if pooling.is_convolution:
        try:
            row.torch_saved = saved_for_backward(lambda leaf: pooling.in_torch(leaf)(), x)
            row.torch_ms = _milliseconds(pooling.in_torch(x), seconds)
        except Exception as error:  # a padding that differs from side to side
            row.note = f"not in torch: {first_line(error)}"
        return
    try:
        ours = pooling.in_poolkit(x)
        ours()
    except PoolError as error:
        row.note = f"not in poolkit: {first_line(error)}"
        return
    row.poolkit_saved = saved_for_backward(lambda leaf: pooling.in_poolkit(leaf)(), x)
    try:
        theirs = pooling.in_torch(x)
        theirs()
        row.torch_saved = saved_for_backward(lambda leaf: pooling.in_torch(leaf)(), x)
    except Exception as error:  # what poolkit can do and torch cannot, as dilated averages
        row.note = f"not in torch: {first_line(error)}"
        row.poolkit_ms = _milliseconds(ours, seconds)
        return
    if seconds <= 0:
        return
    timing = compare(theirs, ours, seconds)
    row.torch_ms, row.poolkit_ms = timing.before_ms, timing.after_ms
    row.speedup = timing.speedup


def _milliseconds(call: Any, seconds: float) -> float | None:
    if seconds <= 0:
        return None
    with torch.no_grad():
        (times,) = interleave([call], within(seconds))
    return 1e3 * median(times.seconds)


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
