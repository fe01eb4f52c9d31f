"""Windows that are given the output's size: adaptive bins, the whole input, and pyramids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
    register,
)

__all__ = ["Adaptive", "Global", "Pyramid"]


@register
@dataclass(frozen=True, repr=False)
class Adaptive(Window):
    """As many bins as asked for, of nearly equal size, that cover the input.

    Bin ``o`` of ``n`` sees positions ``floor(o * size / n)`` up to ``ceil((o + 1) * size / n)``:
    neighbouring bins overlap where the size does not divide, and there may be more bins than
    positions, as in torch.

    Args:
        output_size: bins per axis: an integer, or one for each axis; None keeps the axis as it is.

    Raises:
        PoolValueError, PoolTypeError: for sizes that are negative or no integers.

    >>> Adaptive((7, None)).output_shape((20, 5))
    (7, 5)
    """

    output_size: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_size", freeze(self.output_size))
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,)
        if not sizes:
            raise PoolValueError("output_size is empty", "Give one size for each axis")
        for entry in sizes:
            if entry is not None:
                check_entry("output_size", entry, lambda n: n >= 0, "at least 0")

    @property
    def ndim(self) -> int | None:
        return len(self.output_size) if isinstance(self.output_size, tuple) else None

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        sizes = self.output_size
        if not isinstance(sizes, tuple):
            sizes = (sizes,) * len(shape)
        if len(sizes) != len(shape):
            raise PoolTypeError(
                f"{self} has {len(sizes)} axes, the input {len(shape)} spatial ones",
                "Make them agree",
            )
        for axis, bins in enumerate(sizes):
            if bins is not None:
                check_outputs(bins, axis)
        return tuple(
            size if bins is None else bins for bins, size in zip(sizes, shape, strict=True)
        )

    def taps_bound(self, shape: Sequence[Any]) -> tuple[Any, Any]:
        most: Any = 1
        for size, bins in zip(shape, self.output_shape(shape), strict=True):
            most = most * (size // max(bins, 1) + 2)
        return 0, most

    def always_sees(self, shape: Sequence[Any]) -> bool:
        return True

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        check_shape(shape)
        spans = []
        for bins, size in zip(self.output_shape(shape), shape, strict=True):
            o = np.arange(bins, dtype=np.int64)
            begin = o * size // max(bins, 1)
            count = -((o + 1) * -size // max(bins, 1)) - begin
            spans.append(Spans(size, begin, count, 1, count))
        return tuple(spans)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        fields = before or [ReceptiveField()] * len(shape)
        return tuple(
            # Bins differ by one position at most: the largest is stated, with the mean stride.
            field.through(spans.taps, spans.size / max(len(spans.begin), 1))
            for field, spans in zip(fields, self.axes(shape), strict=True)
        )


@register
@dataclass(frozen=True, repr=False)
class Global(Window):
    """One window that sees the whole input: the output has one position on every spatial axis.

    >>> Global().output_shape((7, 7))
    (1, 1)
    """

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return (1,) * len(shape)

    def taps_bound(self, shape: Sequence[Any]) -> tuple[Any, Any]:
        taps = math.prod(shape)
        return taps, taps

    def always_sees(self, shape: Sequence[Any]) -> bool:
        return True

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        return Adaptive(1).axes(shape)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        return Adaptive(1).receptive_field(shape, before)


@register
@dataclass(frozen=True, repr=False)
class Pyramid(Window):
    """Adaptive grids of several sizes on the same input, flattened and joined to one axis.

    The output length depends on the levels only, never on the input's size: spatial pyramid
    pooling (He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
    Recognition", 2014). The levels are parallel branches; a chain of adaptive poolings, each on
    the output of the one before, gives nothing that its last one alone would not.

    Args:
        levels: the `output_size` of each grid, in the order in which they are joined.

    >>> Pyramid((4, 2, 1)).output_shape((13, 9))
    (21,)
    """

    levels: Any
    joined: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", freeze(self.levels))
        if not isinstance(self.levels, tuple) or not self.levels:
            raise PoolTypeError(
                f"levels must be a sequence of output sizes, got {self.levels!r}",
                "Write for instance Pyramid((4, 2, 1))",
            )
        for level in self.levels:
            Adaptive(level)

    @property
    def ndim(self) -> int | None:
        return next((g.ndim for g in self.grids() if g.ndim is not None), None)

    def grids(self) -> tuple[Window, ...]:
        return tuple(Adaptive(level) for level in self.levels)

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        length: Any = 0
        for grid in self.grids():
            bins: Any = 1
            for size in grid.output_shape(shape):
                bins = bins * size
            length = length + bins
        return (length,)

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        raise PoolTypeError("a pyramid has no single grid", "Use the axes of each of its grids()")

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        coarsest = [grid.receptive_field(shape, before) for grid in self.grids()]
        return max(coarsest, key=lambda fields: sum(field.size for field in fields))
