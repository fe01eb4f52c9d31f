"""The window of every convolutional network: a box of a fixed size, moved by a stride."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PoolTypeError, PoolValueError
from .base import (
    ReceptiveField,
    Spans,
    Window,
    check_entry,
    check_outputs,
    check_shape,
    freeze,
    per_axis,
    register,
)

__all__ = ["Sliding"]

Ints = int | tuple[int, ...]


@register
@dataclass(frozen=True, repr=False)
class Sliding(Window):
    """A box of `kernel_size` positions, moved by `stride`.

    Args:
        kernel_size: positions per axis, one integer or one for each axis.
        stride: distance between neighbouring windows; None is the kernel size.
        padding: how far the first window starts before the input, and the last one may end behind
            it. One integer; one for each axis; one ``(before, after)`` pair for each axis;
            ``"valid"`` (none); or ``"same"``, after which the output has ``ceil(size / stride)``
            positions and an odd rest is padded behind (TensorFlow's SAME, ONNX's SAME_UPPER).
            Any amount is allowed. Padding is never a value: no reduction sees it.
        dilation: distance between neighbouring positions of one window.
        ceil_mode: whether a last window that hangs over the end is kept. As in torch, it must
            start inside the input or the padding before it.

    Raises:
        PoolValueError, PoolTypeError: for sizes that are not integers or are out of range.

    The output size follows Dumoulin and Visin, "A guide to convolution arithmetic for deep
    learning" (2016).

    >>> Sliding(3, stride=2, padding=1).output_shape((56, 56))
    (28, 28)
    >>> Sliding((3, 2), stride=1, padding="same").output_shape((5, 5))
    (5, 5)
    """

    kernel_size: Ints
    stride: Ints | None = None
    padding: Any = 0
    dilation: Ints = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "padding", "dilation"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        lengths = [
            len(value)
            for value in (self.kernel_size, self.stride, self.padding, self.dilation)
            if isinstance(value, tuple) and len(value) > 1
        ]
        if not isinstance(self.ceil_mode, (bool, int, np.bool_)):
            raise PoolTypeError(f"ceil_mode must be a bool, got {self.ceil_mode!r}", "Write True")
        object.__setattr__(self, "ceil_mode", bool(self.ceil_mode))
        if self._has_pairs():
            lengths.append(len(self.padding))
        ndim = lengths[0] if lengths else 1
        object.__setattr__(self, "_ndim", ndim if lengths else None)
        self.sizes(ndim)
        self.pads(ndim)

    @property
    def ndim(self) -> int | None:
        return self._ndim  # type: ignore[attr-defined]

    def _has_pairs(self) -> bool:
        """Whether the padding is written as (before, after) for each axis."""
        padding = self.padding
        return isinstance(padding, tuple) and len(padding) > 0 and isinstance(padding[0], tuple)

    def sizes(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride and dilation for each axis."""
        positive = "at least 1"
        kernel = per_axis("kernel_size", self.kernel_size, ndim, lambda k: k >= 1, positive)
        stride = kernel
        if self.stride is not None and not (isinstance(self.stride, tuple) and not self.stride):
            stride = per_axis("stride", self.stride, ndim, lambda s: s >= 1, positive)
        dilation = per_axis("dilation", self.dilation, ndim, lambda d: d >= 1, positive)
        for k, d in zip(kernel, dilation, strict=True):
            check_entry("the reach of a window", (k - 1) * d + 1, lambda r: r >= 1, positive)
        return kernel, stride, dilation

    def pads(self, ndim: int) -> tuple[tuple[int, int], ...] | None:
        """(before, after) for each axis; None for "same", which depends on the input."""
        if isinstance(self.padding, str):
            if self.padding == "same":
                return None
            if self.padding == "valid":
                return ((0, 0),) * ndim
            raise PoolValueError(
                f"padding must be 'valid', 'same' or integers, got {self.padding!r}",
                "Write one of them",
            )
        if self._has_pairs():
            pairs = self.padding
            if len(pairs) == 1:
                pairs = pairs * ndim
            if len(pairs) != ndim or any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
                raise PoolValueError(
                    f"padding needs one (before, after) pair for each of {ndim} axes, "
                    f"got {self.padding}",
                    "Write ((top, bottom), (left, right)) for two axes",
                )
            for entry in (side for pair in pairs for side in pair):
                check_entry("padding", entry, lambda p: p >= 0, "at least 0")
            return tuple(pairs)
        each = per_axis("padding", self.padding, ndim, lambda p: p >= 0, "at least 0")
        return tuple((p, p) for p in each)

    def _layout(self, shape: Sequence[Any]) -> list[tuple[Any, int, int, Any, int, Any]]:
        """(size, kernel, stride, pad before, dilation, outputs) for each axis."""
        ndim = len(shape)
        if self.ndim not in (None, ndim):
            raise PoolTypeError(
                f"{self} has {self.ndim} axes, the input {ndim} spatial ones", "Make them agree"
            )
        kernel, stride, dilation = self.sizes(ndim)
        pads = self.pads(ndim)
        rows = []
        for axis, size in enumerate(shape):
            k, s, d = kernel[axis], stride[axis], dilation[axis]
            reach = (k - 1) * d + 1
            if pads is None:
                outputs = (size + s - 1) // s
                total = max((outputs - 1) * s + reach - size, 0)
                before = total // 2
            else:
                before, after = pads[axis]
                room = size + before + after - reach
                if room < 0 and not (self.ceil_mode and room + s - 1 >= 0):
                    raise PoolValueError(
                        f"a window of {reach} positions does not fit axis {axis} of spatial shape "
                        f"{tuple(shape)} with padding {(before, after)}",
                        "Use a smaller kernel, more padding, or an adaptive window",
                    )
                outputs = (room + (s - 1 if self.ceil_mode else 0)) // s + 1
                # A window that would lie in the padding is dropped. Most cannot, whatever the size,
                # and then the size is not asked: a graph with free sizes would be tied to them.
                beyond = self.ceil_mode and after + s > reach
                if beyond and (outputs - 1) * s >= size + before:
                    outputs -= 1
            check_outputs(outputs, axis)
            rows.append((size, k, s, before, d, outputs))
        return rows

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row[-1] for row in self._layout(shape))

    def taps_bound(self, shape: Sequence[Any]) -> tuple[Any, Any]:
        return 0, math.prod(self.sizes(len(shape))[0])

    def always_sees(self, shape: Sequence[Any]) -> bool:
        # "same" pads by less than the reach of a window on either side.
        pads = self.pads(len(shape))
        kernel, _, dilation = self.sizes(len(shape))
        for axis, size in enumerate(shape):
            k, d = kernel[axis], dilation[axis]
            if pads is not None and max(pads[axis]) > (k - 1) * d:
                return False
            # What reaches over an end may have a gap as large as the whole input.
            if d > 1 and (pads is None or max(pads[axis]) > 0) and size < d:
                return False
        return True

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        check_shape(shape)
        pads = self.pads(len(shape))
        spans = []
        for axis, (size, k, s, before, d, outputs) in enumerate(self._layout(shape)):
            start = np.arange(outputs, dtype=np.int64) * s - before
            skipped = np.maximum(-(start // d), 0)  # taps before the first element, rounded up
            end = np.minimum(k, (size - 1 - start) // d + 1)
            count = np.maximum(end - skipped, 0)
            begin = np.where(count > 0, start + skipped * d, 0)
            # Padding counts as far as it was asked for; what hangs over it (ceil_mode) never does.
            after = max((outputs - 1) * s + (k - 1) * d + 1 - size - before, 0)
            limit = size + (pads[axis][1] if pads is not None else after)
            padded = np.minimum(k, (limit - 1 - start) // d + 1)
            spans.append(Spans(size, begin, count, d, np.maximum(padded, 0)))
        return tuple(spans)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        fields = before or [ReceptiveField()] * len(shape)
        return tuple(
            field.through(k, s, pad, d)
            for field, (_, k, s, pad, d, _) in zip(fields, self._layout(shape), strict=True)
        )
