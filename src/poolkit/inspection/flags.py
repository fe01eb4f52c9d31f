"""What deserves a look: each rule is a function from a layer to the flags that it raises.

Rules that say "the same" have computed it: both ways ran on the layer's own input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from poolkit import quantized
from poolkit.inspection.downsampling import (
    Downsampling,
    Pooled,
    downsampling_of,
    dropped,
    is_extreme,
    is_mean,
    misdivided,
)
from poolkit.inspection.measures import relative_error, sample
from poolkit.inspection.operations import Pooling
from poolkit.inspection.records import Flag
from poolkit.inspection.trace import Step
from poolkit.inspection.wording import human_count, human_share
from poolkit.reductions import Max, Mean, Sum, inner_of
from poolkit.windows import Adaptive, Global, Sliding, Window

_RELUS = {"relu", "relu6", "hardtanh", "threshold"}
_MANY_DEAD, _INT8_ERROR = 0.25, 0.1


@dataclass(frozen=True)
class Subject:
    """A layer as the rules see it: ``x`` is its input as (batch, channels, *space)."""

    pooling: Pooling
    step: Step
    layer: Downsampling
    x: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[2:])

    @property
    def window(self) -> Window:
        return self.layer.window

    @property
    def producer(self) -> Step | None:
        """What makes the input, where nothing else reads that."""
        one = self.step.producers[0] if len(self.step.producers) == 1 else None
        return one if one is not None and len(one.consumers) == 1 else None

    @property
    def consumer(self) -> Step | None:
        """What reads the output, where it is the only one and reads nothing else."""
        one = self.step.consumers[0] if len(self.step.consumers) == 1 else None
        return one if one is not None and len(one.producers) == 1 else None


Rule = Callable[[Subject], Iterator[Flag]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def flags_of(pooling: Pooling, step: Step, layer: Downsampling | None, x: Any) -> list[Flag]:
    """All flags of a layer, the gravest first."""
    if layer is None or x is None or not x.numel():
        return _gravest_first(_without_window(pooling))
    subject = Subject(pooling, step, layer, x)
    return _gravest_first(flag for each in RULES for flag in each(subject))


def flags_on_paper(pooling: Pooling, step: Step, layer: Downsampling, x: Any) -> list[Flag]:
    """Those flags that follow from shapes alone: ``x`` may be a tensor without values."""
    subject = Subject(pooling, step, layer, x)
    rules = (drops_border, overhangs, counts_padding, sees_nothing, leaves_gaps, redundant)
    return _gravest_first(flag for each in (*rules, does_nothing) for flag in each(subject))


def _gravest_first(flags: Iterable[Flag]) -> list[Flag]:
    order = ("wrong", "waste", "note")
    return sorted(flags, key=lambda flag: order.index(flag.severity))


# ---------------------------------------------------------------- borders


@rule
def drops_border(of: Subject) -> Iterator[Flag]:
    """Rows at the end of which no window is left."""
    lost = []
    n = len(of.shape)
    strides = of.window.sizes(n)[1] if isinstance(of.window, Sliding) else (1,) * n
    for axis, (spans, stride) in enumerate(zip(of.window.axes(of.shape), strides, strict=True)):
        # The gap behind a window that is shorter than its stride is another matter.
        reach = np.maximum((spans.count - 1) * spans.step + 1, stride)
        end = int((spans.begin + reach).max(initial=0))
        if 0 < end < spans.size:
            lost.append(f"the last {spans.size - end} of {spans.size} {_along(axis, of)}")
    if lost:
        yield Flag(
            "drops-border", "wrong",
            f"The windows do not tile the map: {' and '.join(lost)} are in none.",
            "Use ceil_mode=True, pad at the end, or feed a size that the stride divides.",
        )  # fmt: skip


@rule
def overhangs(of: Subject) -> Iterator[Flag]:
    """Windows that ceil_mode lets hang over the end."""
    if not isinstance(of.window, Sliding) or not of.window.ceil_mode:
        return
    n = len(of.shape)
    kernel, stride, dilation = of.window.sizes(n)
    pads, outputs = of.window.pads(n) or ((0, 0),) * n, of.window.output_shape(of.shape)
    hanging = []
    for axis, size in enumerate(of.shape):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        end = (outputs[axis] - 1) * stride[axis] - pads[axis][0] + reach
        if (over := end - size - pads[axis][1]) > 0:
            hanging.append((f"{over} of {reach} {_along(axis, of)}", over))
    if hanging:
        beyond, amounts = (list(values) for values in zip(*hanging, strict=True))
        yield Flag(
            "overhang", "note",
            f"ceil_mode: the last windows hang over the end by {' and '.join(beyond)}, so their "
            "values are made from fewer inputs.",
            "Where a runtime has no ceil_mode, pad the end by "
            f"{' and '.join(map(str, dict.fromkeys(amounts)))}; "
            "for other sizes of input the overhang differs.",
        )  # fmt: skip


@rule
def counts_padding(of: Subject) -> Iterator[Flag]:
    """Means that are divided by more, or less, than they see."""
    if not isinstance(of.layer, Pooled) or not is_mean(of.layer.reduction):
        return
    share = misdivided(of.layer.reduction, of.window, of.shape)
    mean = inner_of(of.layer.reduction)
    if share and isinstance(mean, Mean):
        if mean.divisor is not None:
            text = f"divided by {mean.divisor}, whatever they see"
        else:
            text = "pulled towards zero: padding counts as values"
        yield Flag(
            "counts-padding", "wrong",
            f"{human_share(share)} of the averages are {text}.",
            "Leave divisor_override out." if mean.divisor is not None
            else "Use count_include_pad=False.",
        )  # fmt: skip


@rule
def padding_wins(of: Subject) -> Iterator[Flag]:
    """Zeros padded before a maximum, which then are the maximum."""
    producer = of.step.producers[0] if len(of.step.producers) == 1 else None
    if producer is None or not isinstance(of.layer, Pooled) or not is_extreme(of.layer.reduction):
        return
    pads = producer.arguments.get("pad")
    if not producer.operation.endswith(("pad", "pad_nd")) or not pads:
        return
    if producer.arguments.get("mode", "constant") != "constant":
        return
    x = sample(of.x)
    inner = torch.zeros_like(x, dtype=torch.bool)
    inside = [slice(None)] * x.ndim
    for axis, (low, high) in enumerate(zip(pads[::2], pads[1::2], strict=False)):
        size = x.shape[-1 - axis]
        inside[x.ndim - 1 - axis] = slice(max(low, 0), size - max(high, 0))
    inner[tuple(inside)] = True
    lowest = isinstance(inner_of(of.layer.reduction), Max)
    without = torch.where(inner, x, -torch.inf if lowest else torch.inf)
    won = float((of.layer(x) != of.layer(without)).double().mean())
    if won > 0:
        yield Flag(
            "padding-wins", "wrong",
            f"{producer.label} pads with {producer.arguments.get('value') or 0:g}, which is the "
            f"result of {human_share(won)} of the windows on this input.",
            "Pad inside the pooling (padding=...): there padding is never a value.",
        )  # fmt: skip


@rule
def sees_nothing(of: Subject) -> Iterator[Flag]:
    """Windows that lie in the padding altogether."""
    seeing = prod(int((spans.count > 0).sum()) for spans in of.window.axes(of.shape))
    windows = prod(len(spans.count) for spans in of.window.axes(of.shape))
    if windows and seeing < windows:
        yield Flag(
            "sees-padding-only", "wrong",
            f"{windows - seeing} of {human_count(windows, 'window')} see nothing but padding.",
            "Pad by at most half of the kernel.",
        )  # fmt: skip


@rule
def leaves_gaps(of: Subject) -> Iterator[Flag]:
    """A stride that is longer than the window."""
    if isinstance(of.window, Sliding):
        share = _read(of.window, len(of.shape))
        if share < 1:
            kernel, stride, _ = of.window.sizes(len(of.shape))
            lost = 1 - prod(
                1 - gone / size
                for gone, size in zip(dropped(of.window, of.shape), of.shape, strict=True)
            )
            yield Flag(
                "gaps", "wrong",
                f"The kernel of {_times(kernel)} is smaller than the stride of {_times(stride)}: "
                f"{human_share(lost)} of the input is never read.",
                "Average with a window of the stride before it, and give it stride 1."
                if of.pooling.is_convolution else "Use a kernel of at least the stride.",
            )  # fmt: skip


# ---------------------------------------------------------------- neighbours


@rule
def order_of_relu(of: Subject) -> Iterator[Flag]:
    """ReLU on the wrong side, or on the dear one."""
    if not isinstance(of.layer, Pooled):
        return
    before, after = of.producer, of.consumer
    if is_mean(of.layer.reduction) and after is not None and after.operation in _RELUS:
        yield Flag(
            "relu-order", "note",
            f"{after.label} runs after the average: positive and negative values cancel before it.",
            "Put ReLU before the average if that is not meant; the model must be trained so.",
        )  # fmt: skip
    if type(of.layer.reduction) is not Max or not isinstance(of.window, Sliding):
        return
    fused = f"poolkit.relu_max_pool{len(of.shape)}d"
    if before is not None and before.operation == "relu":
        yield Flag(
            "relu-foldable", "waste",
            f"{before.label} runs on all values before the maximum; behind it the result is the "
            f"same, on {human_share(_kept(of))} of them.",
            f"Swap the two, or call {fused}, which does both in one pass.",
        )  # fmt: skip
    if after is not None and after.operation == "relu":
        yield Flag(
            "relu-foldable", "waste", f"{after.label} is a pass of its own over the maxima.",
            f"Call {fused}, which does both in one pass.",
        )  # fmt: skip


@rule
def redundant(of: Subject) -> Iterator[Flag]:
    """Outputs that the only reader steps over."""
    reader = of.consumer
    if reader is None or len(of.step.consumers) != 1:
        return
    window = _window_of(reader)
    if not isinstance(window, Sliding) or (share := _read(window, len(of.shape))) == 1:
        return
    yield Flag(
        "redundant", "waste",
        f"{reader.label} reads {human_share(share)} of these outputs and steps over the others.",
        "Give its stride to this layer, and stride 1 to it: the same values, and none in vain.",
    )  # fmt: skip


@rule
def chained(of: Subject) -> Iterator[Flag]:
    """Two poolings in a row that are one."""
    reader = of.consumer
    if reader is None or reader.pooling is None or not isinstance(of.layer, Pooled):
        return
    second = downsampling_of(reader.pooling)
    if not isinstance(second, Pooled) or second.reduction != of.layer.reduction:
        return
    window = _joined(of.window, second.window, of.layer.reduction, len(of.shape))
    if window is None or (isinstance(window, Global) and any(dropped(of.window, of.shape))):
        return
    x = sample(of.x)
    two, one = second(of.layer(x)), Pooled(window, of.layer.reduction)(x)
    if two.shape == one.shape and relative_error(two, one) < 1e-9:
        yield Flag(
            "chain", "waste",
            f"With {reader.label} behind it this is one pooling: {window}.",
            "Use that one; nothing else reads what lies between.",
        )  # fmt: skip


@rule
def does_nothing(of: Subject) -> Iterator[Flag]:
    """A window of one position at every position."""
    if isinstance(of.layer, Pooled) and (
        is_mean(of.layer.reduction) or is_extreme(of.layer.reduction)
    ):
        axes = of.window.axes(of.shape)
        if all(len(s.begin) == s.size and s.taps == 1 and s.begin[0] == 0 for s in axes):
            yield Flag(
                "identity", "waste", "Each output is its input: this pooling does nothing.",
                "Leave it out, or let it run on larger maps only.",
            )  # fmt: skip


# ---------------------------------------------------------------- what comes later


@rule
def not_exportable(of: Subject) -> Iterator[Flag]:
    """Bins that no kernel and stride describe."""
    if not isinstance(of.window, Adaptive):
        return
    uneven = [
        f"{size} {_along(axis, of)} into {bins}"
        for axis, (size, bins) in enumerate(
            zip(of.shape, of.window.output_shape(of.shape), strict=True)
        )
        if bins and size % bins
    ]
    if uneven:
        yield Flag(
            "not-exportable", "note",
            f"Bins differ in size ({', '.join(uneven)}): ONNX has no pooling for them, so "
            "exporting fails, or unfolds it into gathers.",
            "Feed a multiple of the output size, or use a fixed kernel and stride.",
        )  # fmt: skip


@rule
def not_ready_for_int8(of: Subject) -> Iterator[Flag]:
    """Reductions without 8-bit kernels, and inputs that 8 bits do not hold."""
    if not isinstance(of.layer, Pooled) or not of.x.is_floating_point():
        return
    reduction = of.layer.reduction
    if not (is_extreme(reduction) or is_mean(reduction)) or isinstance(reduction, Sum):
        yield Flag(
            "int8", "note", f"{reduction} has no 8-bit kernel; it stays in floating point.",
            "Use max or mean, or leave this layer out of quantization.",
        )  # fmt: skip
        return
    x = sample(of.x)
    if reduction != inner_of(reduction) or not x.isfinite().all() or not x.any():
        return
    qparams = quantized.QParams.from_array(x)
    codes = quantized.quantize(x, qparams)
    pooled = quantized.pool(codes, of.window, reduction, qparams=qparams, ndim=len(of.shape))
    y = of.layer(x)
    error = (quantized.dequantize(pooled, qparams).double() - y).abs()[y != 0]
    # Medians: a few large values must not hide what becomes of all others.
    typical = float(error.median() / y[y != 0].abs().median()) if len(error) else 0.0
    if typical > _INT8_ERROR:
        yield Flag(
            "int8", "note",
            f"With one scale for the tensor, int8 results are off by {human_share(typical)} of a "
            "typical value: few large ones take the range.",
            "Clip the range when calibrating, or use a scale for each channel.",
        )  # fmt: skip


@rule
def looks_at_nothing(of: Subject) -> Iterator[Flag]:
    """Channels without information, and values that are no numbers."""
    if not of.x.is_complex() and not of.x.isfinite().all():
        yield Flag(
            "not-finite", "wrong",
            f"{human_share(float((~of.x.isfinite()).double().mean()))} of the input is NaN or "
            "infinite, so nothing is measured.",
            "Look for what makes them before this layer.",
        )  # fmt: skip
        return
    dead, channels = dead_channels(of.x), of.x.shape[1]
    if channels > 3 and dead >= _MANY_DEAD * channels:
        yield Flag(
            "dead-channels", "note",
            f"{dead} of {channels} channels are constant on this input.",
            "Prune them if they are so on other inputs too.",
        )  # fmt: skip


def _without_window(pooling: Pooling) -> Iterator[Flag]:
    if "fractional" in pooling.operation:
        yield Flag(
            "not-exportable", "note", "ONNX has no fractional pooling: exporting fails.",
            "Use a fixed kernel and stride.",
        )  # fmt: skip


# ---------------------------------------------------------------- what the rules share


def dead_channels(x: torch.Tensor) -> int:
    """Channels of (batch, channels, *space) whose values are all equal."""
    rows = x.transpose(0, 1).flatten(1)
    return int((rows == rows[:, :1]).all(1).sum())


def _along(axis: int, of: Subject) -> str:
    names = {1: ("positions",), 2: ("rows", "columns"), 3: ("slices", "rows", "columns")}
    return names[len(of.shape)][axis]


def _times(values: tuple[int, ...]) -> str:
    return "×".join(map(str, values))


def _kept(of: Subject) -> float:
    return prod(of.window.output_shape(of.shape)) / prod(of.shape)


def _read(window: Sliding, n: int) -> float:
    """Share of the positions that a window of a long axis sees, by its taps and strides.

    >>> _read(Sliding(1, stride=2), 2), _read(Sliding(3, stride=2), 2)
    (0.25, 1.0)
    """
    kernel, stride, dilation = window.sizes(n)
    share = 1.0
    for k, s, d in zip(kernel, stride, dilation, strict=True):
        share *= len({tap * d % s for tap in range(k)}) / s
    return share


def _window_of(step: Step) -> Window | None:
    if step.pooling is not None:
        layer = downsampling_of(step.pooling)
        return None if layer is None else layer.window
    weight = step.arguments.get("weight")
    if weight is None or isinstance(step.arguments.get("padding"), str):
        return None
    kernel = tuple(weight.shape[2:])
    stride, dilation = (step.arguments.get(key) or 1 for key in ("stride", "dilation"))
    return Sliding(kernel, stride=_whole(stride), dilation=_whole(dilation))


def _whole(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _joined(first: Window, second: Window, reduction: Any, n: int) -> Window | None:
    """The one window that two in a row might be; whether they are depends on the borders."""
    if not (is_extreme(reduction) or is_mean(reduction) or isinstance(reduction, Sum)):
        return None
    if not isinstance(first, Sliding):
        return None
    kernel, stride, dilation = first.sizes(n)
    if any(d > 1 for d in dilation) or (not is_extreme(reduction) and kernel != stride):
        return None
    if isinstance(second, Global) or (isinstance(second, Adaptive) and second.output_size == 1):
        return Global()
    if not isinstance(second, Sliding) or first.pads(n) is None or second.pads(n) is None:
        return None
    above, step, gaps = second.sizes(n)
    if any(d > 1 for d in gaps):
        return None
    pads = zip(first.pads(n) or (), second.pads(n) or (), stride, strict=True)
    return Sliding(
        tuple(k + (a - 1) * s for k, a, s in zip(kernel, above, stride, strict=True)),
        stride=tuple(s * t for s, t in zip(stride, step, strict=True)),
        padding=tuple((p[0] + q[0] * s, p[1] + q[1] * s) for p, q, s in pads),
        ceil_mode=second.ceil_mode,
    )
