"""What a window is: which input positions each output position sees. It knows geometry only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..errors import PoolTypeError, PoolValueError, dtype_name, is_torch_tensor, is_traced
from ..recipes import REGISTRIES, Recipe, made_of, parameters_of

__all__ = ["WINDOWS", "ReceptiveField", "Spans", "Window", "as_window", "register"]

# No machine holds an axis as long as this; beyond it 64-bit positions would overflow.
LARGEST = 2**40
# Nor does any hold the result of more windows along one axis; their spans alone would fill it.
MOST_OUTPUTS = 2**31

WINDOWS: dict[str, type[Window]] = {}
REGISTRIES["window"] = WINDOWS
W = TypeVar("W", bound="type[Window]")


def register(window: W) -> W:
    """Enters a window class in the registry that tests, docs and recipes iterate over."""
    window.parameters = parameters_of(window)
    WINDOWS[window.__name__] = window
    return window


@dataclass(frozen=True)
class Spans:
    """One axis of a window, over an input of a known size.

    Output ``o`` sees the positions ``begin[o] + t * step`` for ``t`` in ``range(count[o])``; all
    of them lie inside the input. An output whose window lies in the padding has a count of 0.

    Attributes:
        size: input positions along the axis.
        begin, count: one 64-bit integer for each output position.
        step: distance between neighbouring positions of one window (the dilation).
        padded: positions of each window when padding counts, which is what a mean with
            ``count_include_pad`` divides by.
    """

    size: int
    begin: np.ndarray
    count: np.ndarray
    step: int
    padded: np.ndarray

    @property
    def taps(self) -> int:
        """The most positions that any window sees along this axis."""
        return int(self.count.max(initial=0))

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Input position of each (output, tap), and whether the window has that tap."""
        tap = np.arange(max(self.taps, 1))
        seen = tap < self.count[:, None]
        return np.where(seen, self.begin[:, None] + tap * self.step, 0), seen

    def transposed(self) -> Spans:
        """Which outputs see each input: the geometry of the gradient.

        The outputs that see an input position form an arithmetic progression whenever those of
        the window itself do, so the gradient of a sum is a sum over this.
        """
        outputs = len(self.begin)
        position, seen = self.positions()
        seer = np.broadcast_to(np.arange(outputs)[:, None], seen.shape)[seen]
        position = position[seen]
        order = np.lexsort((seer, position))
        position, seer = position[order], seer[order]
        if not len(seer):  # no output, or none that sees anything
            nothing = np.zeros(self.size, dtype=np.int64)
            return Spans(outputs, nothing, nothing, 1, nothing)
        count = np.bincount(position, minlength=self.size)
        first = np.cumsum(count) - count
        begin = np.where(count > 0, seer[np.minimum(first, max(len(seer) - 1, 0))], 0)
        steps = np.unique(np.diff(seer)[np.diff(position) == 0])
        if len(steps) > 1:
            raise PoolValueError("this window has no regular transpose")  # no built-in one
        step = int(steps[0]) if len(steps) else 1
        return Spans(outputs, begin.astype(np.int64), count.astype(np.int64), step, count)


@dataclass(frozen=True)
class ReceptiveField:
    """What one position sees of the network's input, along one axis.

    Attributes:
        size: input positions seen.
        jump: input positions between neighbouring outputs.
        offset: input coordinate of the centre of the first output (0 is the first input's centre).

    >>> field = ReceptiveField().through(kernel_size=7, stride=2, padding=3)
    >>> field.through(kernel_size=3, stride=2, padding=1)
    ReceptiveField(size=11, jump=4, offset=0.0)
    """

    size: float = 1
    jump: float = 1
    offset: float = 0.0

    def through(
        self, kernel_size: float, stride: float = 1, padding: float = 0, dilation: float = 1
    ) -> ReceptiveField:
        """The field after one more layer (convolution or pooling) on top of this one."""
        reach = (kernel_size - 1) * dilation
        return replace(
            self,
            size=self.size + reach * self.jump,
            jump=self.jump * stride,
            offset=self.offset + (reach / 2 - padding) * self.jump,
        )


class Window(Recipe, ABC):
    """Base of all windows.

    A subclass gives `axes`, `output_shape` and `receptive_field`; nothing else in the library
    needs to know that it exists.
    """

    joined: ClassVar[bool] = False
    """Whether `grids` are flattened and concatenated into one axis."""

    @property
    def ndim(self) -> int | None:
        """The number of spatial axes when the parameters fix it, else None."""
        return None

    def grids(self) -> tuple[Window, ...]:
        """The windows whose outputs make up this one's, each with one output per position."""
        return (self,)

    @abstractmethod
    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        """The spans along each axis of an input with spatial shape `shape`.

        Raises:
            PoolValueError: if the window does not fit the shape.
        """

    @abstractmethod
    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The spatial shape of the output for an input of spatial shape `shape`."""

    @abstractmethod
    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        """What an output sees along each axis, stacked on the fields `before` (of the input)."""

    # The next two are asked of shapes whose sizes may be a compiler's symbols. A window that
    # answers without its spans is compiled once for all sizes.

    def taps_bound(self, shape: Sequence[Any]) -> tuple[Any, Any]:
        """The least and the most positions that the largest window may have over an input of
        spatial shape `shape`."""
        taps = math.prod(max(span.taps, 1) for span in self.axes([int(size) for size in shape]))
        return taps, taps

    def always_sees(self, shape: Sequence[Any]) -> bool:
        """Whether every window sees at least one position of an input of spatial shape `shape`;
        False where that is not certain."""
        return all((span.count > 0).all() for span in self.axes([int(size) for size in shape]))


def per_axis(
    name: str, value: Any, ndim: int, valid: Callable[[Any], bool], wanted: str
) -> tuple[Any, ...]:
    """`value` as one integer for each axis: an int is repeated, a sequence must have the length."""
    if isinstance(value, (tuple, list)):
        values = tuple(value) * ndim if len(value) == 1 else tuple(value)
    else:
        values = (value,) * ndim
    if len(values) != ndim:
        raise PoolValueError(
            f"{name} has {len(values)} entries for {ndim} spatial axes: {value}",
            f"Give one integer, or {ndim}",
        )
    for entry in values:
        check_entry(name, entry, valid, wanted)
    return values


def check_entry(name: str, entry: Any, valid: Callable[[Any], bool], wanted: str) -> None:
    """Refuses anything but an integer that `valid` accepts."""
    # What is not an int by now (see `freeze`) may still be a compiler's symbol for one.
    if (
        isinstance(entry, (bool, np.bool_, float, str, np.ndarray))
        or is_torch_tensor(entry)
        or not (isinstance(entry, int) or hasattr(entry, "__index__"))
    ):
        raise PoolTypeError(
            f"{name} must be an integer or a tuple of them, got {entry!r}", "Give integers"
        )
    if not valid(entry):
        raise PoolValueError(f"{name} must be {wanted}, got {entry}", f"Give a {_kind(wanted)}")
    if entry > LARGEST:
        raise PoolValueError(f"{name} must be at most {LARGEST}, got {entry}", "Give a smaller one")


def _kind(wanted: str) -> str:
    return "positive size" if wanted.startswith("at least 1") else "size of 0 or more"


def check_outputs(outputs: Any, axis: int) -> None:
    """Refuses more windows along an axis than any memory holds the results of."""
    if is_traced() or not isinstance(outputs, int):
        return  # a compiler's symbol must not be bounded by this
    if outputs > MOST_OUTPUTS:
        raise PoolValueError(
            f"axis {axis} of the output would have {outputs} positions, more than {MOST_OUTPUTS}",
            "Use less padding, fewer bins, or a larger stride",
        )


def freeze(value: Any) -> Any:
    """Lists become tuples, all the way down, and integers of NumPy and torch Python's, so that a
    window can be a dictionary key and its recipe be read again."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    if isinstance(value, np.integer) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iu"
    ):
        return int(value)
    if is_torch_tensor(value) and value.ndim == 0 and dtype_name(value).lstrip("u")[:3] == "int":
        return int(value)
    return value


def check_shape(shape: Sequence[int]) -> None:
    """Refuses a spatial axis with nothing on it."""
    if any(size < 1 for size in shape):
        raise PoolValueError(
            f"the spatial shape {tuple(shape)} has an axis without elements",
            "Only the batch may be empty: check the layer before, whose output has vanished",
        )


def as_window(window: Window | str) -> Window:
    """A window, or the recipe of one.

    >>> as_window("Sliding(3, stride=2)")
    Sliding(3, stride=2)
    """
    if isinstance(window, Window):
        return window
    made: Window = made_of(window, "window", "poolkit.Sliding(2) or poolkit.Global()")
    return made
