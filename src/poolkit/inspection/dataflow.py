"""What a value deep in a network sees of the input: receptive fields, followed along the data.

Every tensor that a traced forward makes carries a :class:`View`: for each spatial axis how many
input positions one of its values sees and how many input positions lie between neighbours, and
which of its own axes those are. Convolutions and poolings widen the view, reshapes move it, and
where branches meet the wider one wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, prod
from typing import Any

import torch

from poolkit.inspection.operations import CONVOLUTIONS, TRANSPOSED, Call, Pooling, spread
from poolkit.windows import ReceptiveField


@dataclass(frozen=True)
class Axis:
    """One spatial axis: how long the network's input is along it, and what a value sees of it.

    ``whole`` is True once something has looked at all that was left of it, whatever ``sees`` says.
    ``unseen`` counts the positions before and behind that nothing from here on sees: padding widens
    what a value sees beyond what a call before has dropped, but nothing brings that back.
    """

    extent: int
    sees: ReceptiveField = field(default_factory=ReceptiveField)
    whole: bool = False
    unseen: tuple[int, int] = (0, 0)

    def through(
        self, kernel_size: float, stride: float = 1, dilation: float = 1, padding: float = 0
    ) -> Axis:
        """The axis after a window of ``kernel_size`` taps moved by ``stride``.

        >>> Axis(224).through(7, 2).through(3, 2).seen()
        11
        """
        return replace(self, sees=self.sees.through(kernel_size, stride, padding, dilation))

    def upsampled(self, taps: float, factor: float) -> Axis:
        """The axis with ``factor`` positions where one was, each made from ``taps`` of them."""
        sees = self.sees.through(taps, 1 / factor)
        # The first of them lies before the centre of what it came from.
        first = self.sees.offset + (1 / factor - 1) / 2 * self.sees.jump
        return replace(self, sees=replace(sees, offset=first))

    def everything(self) -> Axis:
        centre = (self.extent - 1) / 2
        return replace(self, sees=replace(self.sees, offset=centre), whole=True)

    def along(self, length: int) -> Axis:
        """The axis of a map of ``length`` positions, without what none of them sees.

        >>> Axis(7).through(2, 2).along(3).unseen, Axis(8).through(3, 2, padding=1).along(4).unseen
        ((0, 1), (0, 0))
        """
        if self.whole or not length:
            return self
        reach = (self.sees.size - 1) / 2
        first = self.sees.offset - reach
        last = self.sees.offset + (length - 1) * self.sees.jump + reach
        before, behind = ceil(round(first, 4)), self.extent - 1 - floor(round(last, 4))
        return replace(self, unseen=(max(self.unseen[0], before), max(self.unseen[1], behind)))

    def seen(self) -> int:
        """Input positions seen, never more than are left.

        >>> Axis(34).through(3, 2).along(16).everything().seen()
        33
        """
        left = self.extent - sum(self.unseen)
        # The jump after an upsampling is a fraction: what rounding left must not count as one.
        return left if self.whole else min(left, ceil(round(self.sees.size, 6)))


@dataclass(frozen=True)
class View:
    """The view of one tensor. ``dims`` are its spatial axes; fewer than ``axes`` once flattened.

    ``features`` is True once a convolution or a pooling has run: before that a mean over space
    is the preparation of an image, not a pooling.
    """

    axes: tuple[Axis, ...]
    dims: tuple[int, ...]
    features: bool = False

    def everything(self) -> View:
        return replace(self, axes=tuple(axis.everything() for axis in self.axes))

    def of(self, shape: Sequence[int]) -> View:
        """The view of a tensor of this shape, without what none of its positions sees."""
        if len(self.dims) != len(self.axes) or max(self.dims, default=0) >= len(shape):
            return self
        axes = (axis.along(shape[dim]) for axis, dim in zip(self.axes, self.dims, strict=True))
        return replace(self, axes=tuple(axes))


def of_input(x: torch.Tensor, rank: int | None = None) -> View | None:
    """The view of a model's input of shape (batch, channels, *space)."""
    rank = x.ndim - 2 if rank is None else rank
    if rank < 1 or x.ndim < rank:
        return None
    dims = tuple(range(x.ndim - rank, x.ndim))
    return View(tuple(Axis(x.shape[dim]) for dim in dims), dims)


def join(views: Iterable[View]) -> View | None:
    """Where branches meet: the wider view along each axis."""
    joined: View | None = None
    for view in views:
        if joined is None or len(view.axes) > len(joined.axes):
            joined = replace(view, features=view.features or (joined or view).features)
        elif len(view.axes) == len(joined.axes):
            axes = tuple(map(_wider, joined.axes, view.axes))
            # The tensor with more spatial axes of its own decides the layout: adding a bias
            # that was flattened must not lose where space is.
            dims = max(joined.dims, view.dims, key=len)
            joined = View(axes, dims, joined.features or view.features)
    return joined


def _wider(a: Axis, b: Axis) -> Axis:
    wider = a if a.sees.size >= b.sees.size else b
    jump = max(a.sees.jump, b.sees.jump)
    sees = ReceptiveField(wider.sees.size, jump, wider.sees.offset)
    unseen = min(a.unseen[0], b.unseen[0]), min(a.unseen[1], b.unseen[1])
    return Axis(max(a.extent, b.extent), sees, a.whole or b.whole, unseen)


_MIXES_EVERYTHING = {
    "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    "multi_head_attention_forward", "cumsum",
}  # fmt: skip
_TAPS = {"bilinear": 2, "linear": 2, "trilinear": 2, "bicubic": 4}
_NEAREST = "nearest"


def after_pooling(pooling: Pooling, view: View, x: torch.Tensor, out: torch.Tensor) -> View:
    """The view of the output ``out`` of ``pooling`` of ``x``."""
    return _pooled(pooling, view, x, out).of(out.shape)


def _pooled(pooling: Pooling, view: View, x: torch.Tensor, out: torch.Tensor) -> View:
    if pooling.is_reduction:
        reduced = pooling.arguments["dim"]
        kept = tuple(dim for dim in view.dims if dim not in reduced)
        whole = len(view.dims) < len(view.axes)  # flattened: one axis stands for all
        axes = tuple(
            axis.everything() if whole or dim in reduced else axis
            for axis, dim in zip(view.axes, view.dims * len(view.axes), strict=False)
        )
        if pooling.arguments["keepdim"]:
            return View(axes, view.dims, features=True)
        moved = tuple(dim - sum(r < dim for r in reduced) for dim in kept)
        return View(axes, moved, features=True)
    n = pooling.spatial_rank
    if len(view.axes) != n:
        view = of_input(x, n) or view
    if pooling.operation == "pool":
        return _after_window(pooling, view, x, out)
    given = pooling.arguments
    windowed: list[Axis] = []
    for index, axis in enumerate(view.axes):
        before = x.shape[x.ndim - n + index]
        after = out.shape[out.ndim - n + index] if out.ndim == x.ndim else 1
        if "unpool" in pooling.operation or after > before:
            windowed.append(axis.upsampled(1, max(after, 1) / before))
        elif "kernel_size" in given and "fractional" not in pooling.operation:
            kernel = spread(given["kernel_size"], n)[index]
            stride = spread(given.get("stride") or given["kernel_size"], n)[index]
            dilation = spread(given.get("dilation", 1), n)[index]
            padding = spread(given.get("padding", 0), n)[index]
            windowed.append(axis.through(kernel, stride, dilation, padding))
        elif after <= 1:
            windowed.append(axis.everything())
        else:
            kernel = spread(given["kernel_size"], n)[index] if "kernel_size" in given else 0
            spans = (-(-(i + 1) * before // after) - i * before // after for i in range(after))
            windowed.append(axis.through(kernel or max(spans), before / after))
    return View(tuple(windowed), tuple(range(out.ndim - n, out.ndim)), features=True)


def _after_window(pooling: Pooling, view: View, x: torch.Tensor, out: torch.Tensor) -> View:
    """The view after a window of poolkit's, which knows its receptive field itself."""
    window, n = pooling.arguments["window"], pooling.spatial_rank
    behind = int(pooling.arguments["channels_last"])
    shape = tuple(x.shape[x.ndim - n - behind : x.ndim - behind])
    fields = window.receptive_field(shape, [axis.sees for axis in view.axes])
    axes = tuple(replace(axis, sees=sees) for axis, sees in zip(view.axes, fields, strict=True))
    left = n if out.ndim == x.ndim else 1  # the grids of a pyramid are joined to one axis
    return View(axes, tuple(range(out.ndim - left - behind, out.ndim - behind)), features=True)


def after_call(call: Call, view: View, out: torch.Tensor) -> View | None:
    """The view of ``out``, which ``call`` made from tensors with ``view``.

    None for statistics of an input before any feature map is made from it: what an image is
    normalised by is not what a layer looks at.
    """
    after = _called(call, view, out)
    return None if after is None else after.of(out.shape)


def _called(call: Call, view: View, out: torch.Tensor) -> View | None:
    name, args, kwargs = call.name, call.args, call.kwargs
    x = next((a for a in args if isinstance(a, torch.Tensor)), None)
    if x is None:
        x = kwargs.get("input")
    if not isinstance(x, torch.Tensor):
        return replace(view, dims=view.dims if max(view.dims, default=0) < out.ndim else ())
    if name in CONVOLUTIONS or name in TRANSPOSED:
        return _after_convolution(call, view, x)
    if name in ("permute", "transpose", "swapaxes", "swapdims"):
        return replace(view, dims=_permuted(name, args, kwargs, view.dims, x.ndim))
    if name in ("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"):
        return replace(view, dims=_reshaped(view.dims, x.shape, out.shape))
    if name in _MIXES_EVERYTHING or (name == "linear" and x.ndim <= 2):
        view = view.everything()
    if name == "interpolate" or name.startswith("upsample"):
        mode = kwargs.get("mode", args[3] if len(args) > 3 else _NEAREST)
        words = name.split("_")[-1] if name.startswith("upsample") else mode
        view = replace(view, axes=tuple(_blurred(a, _taps(words)) for a in view.axes))
        return _rescaled(view, x.shape, out.shape, upsampled=True)
    return _rescaled(view, x.shape, out.shape)


def _blurred(axis: Axis, taps: int) -> Axis:
    return axis.through(taps, padding=(taps - 1) / 2)


def _taps(mode: str) -> int:
    """How many positions an interpolation reads along an axis: ``bilinear2d`` or ``bilinear``."""
    return _TAPS.get(mode.rstrip("123d"), 1)


def _after_convolution(call: Call, view: View, x: torch.Tensor) -> View:
    n = int(call.name[-2])
    if len(view.axes) != n:
        view = of_input(x, n) or view
    transposed = call.name in TRANSPOSED
    given = call.bound(*(TRANSPOSED if transposed else CONVOLUTIONS)[call.name])
    kernels = given["weight"].shape[2:]
    strides, dilations = (spread(given.get(key, 1), n) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        pads = tuple((k - 1) * d / 2 for k, d in zip(kernels, dilations, strict=True))
    else:
        pads = spread(0 if isinstance(padding, str) else padding, n)
    axes = []
    for axis, kernel, stride, dilation, pad in zip(
        view.axes, kernels, strides, dilations, pads, strict=True
    ):
        if transposed:
            # An output of a transposed convolution reads every stride-th tap, and the first one
            # lies as far before the first input as the padding cuts off of the kernel's half.
            reach = (kernel - 1) * dilation
            made = axis.through(ceil((reach + 1) / stride), 1 / stride)
            first = axis.sees.offset + (pad - reach / 2) / stride * axis.sees.jump
            axes.append(replace(made, sees=replace(made.sees, offset=first)))
        else:
            axes.append(axis.through(kernel, stride, dilation, pad))
    return View(tuple(axes), tuple(range(x.ndim - n, x.ndim)), features=True)


def _permuted(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], dims: tuple[int, ...], ndim: int
) -> tuple[int, ...]:
    if name == "permute":
        order = kwargs.get("dims", args[1] if len(args) == 2 else args[1:])
        order = [axis % ndim for axis in spread(order, 1)]
    else:
        a, b = (*args[1:], *(v for k, v in kwargs.items() if k != "input"))[:2]
        order = list(range(ndim))
        order[a], order[b] = order[b], order[a]
    return tuple(order.index(dim) for dim in dims)


def _reshaped(
    dims: tuple[int, ...], before: Sequence[int], after: Sequence[int]
) -> tuple[int, ...]:
    """Where the spatial axes are after a reshape: moved, merged into one, or lost."""
    if not dims:
        return ()
    if tuple(dims) == tuple(range(dims[0], dims[0] + len(dims))):
        first, beyond = dims[0], len(before) - dims[-1] - 1
        space, sizes = prod(before[d] for d in dims), tuple(before[d] for d in dims)
        stop = len(after) - beyond
        start = stop - len(dims)
        if beyond == 0 or tuple(after[stop:]) == tuple(before[dims[-1] + 1 :]):
            if start >= 0 and tuple(after[start:stop]) == sizes:
                return tuple(range(start, stop))
            if stop - 1 == first and tuple(after[:first]) == tuple(before[:first]):
                return (first,) if after[first] == space else ()
    return ()


def _rescaled(
    view: View, before: Sequence[int], after: Sequence[int], upsampled: bool = False
) -> View | None:
    """The view after a call that keeps the axes but may resize them, as a strided slice does."""
    if len(before) != len(after):
        return replace(view, dims=()) if view.features or len(after) > len(before) else None
    if len(view.dims) != len(view.axes):
        return view
    if max(view.dims) >= len(after):  # a number beside maps
        return replace(view, dims=())
    axes = []
    for axis, dim in zip(view.axes, view.dims, strict=True):
        if after[dim] == 1 < before[dim]:
            if not view.features:
                return None
            axes.append(axis.everything())
            continue
        ratio = before[dim] / max(after[dim], 1) if before[dim] else 1
        # A crop or a pad of a border changes the length a little and the jump not at all.
        resized = not 2 / 3 < ratio < 3 / 2
        if not resized:
            axes.append(axis)
        elif upsampled and ratio < 1:
            axes.append(axis.upsampled(1, 1 / whole_factor(ratio)))
        else:
            axes.append(axis.through(1, whole_factor(ratio)))
    return replace(view, axes=tuple(axes))


def whole_factor(ratio: float) -> float:
    """The whole factor nearest to ``ratio``, up or down.

    >>> whole_factor(25 / 13), whole_factor(13 / 27)
    (2, 0.5)
    """
    return round(ratio) if ratio >= 1 else 1 / round(1 / ratio)
