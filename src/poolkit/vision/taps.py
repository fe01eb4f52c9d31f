"""The values of a window, place by place: one strided view of the input for each (`Taps`), a stripe
of outputs at a time (`in_stripes`), so that memory does not grow with the window, and nothing but
the input is kept to train through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import functional as F

from ..errors import PoolValueError, is_traced
from ..torch.autograd import apply
from ..torch.layout import channels_behind
from ..windows import Global, Sliding, Window

__all__ = ["Taps", "in_stripes", "inside"]

# Live numbers in one stripe: 32 MB of float32, whatever the input. With a quarter of it the calls
# cost twice as much as the work.
STRIPE = 2**23


@dataclass(frozen=True)
class Taps:
    """A sliding window over two axes of known size, as one strided view for each place in it.

    Attributes:
        kernel, stride, dilation: of the window, for each axis.
        before, after: how many positions are missing in front of and behind the input.
        outputs: windows along each axis.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    outputs: tuple[int, ...]

    @staticmethod
    def of(window: Window, shape: Sequence[int]) -> Taps:
        """Raises PoolValueError where a window would see nothing."""
        assert isinstance(window, Sliding)
        outputs = window.output_shape(shape)
        if not window.always_sees(shape) and (
            is_traced() or any((span.count == 0).any() for span in window.axes(shape))
        ):
            raise PoolValueError(
                "a window lies wholly in the padding, where it has no values", "Use less padding"
            )
        kernel, stride, dilation = window.sizes(2)
        given, pads = window.pads(2), []
        for axis, (size, o) in enumerate(zip(shape, outputs, strict=True)):
            reach = (o - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            before = max(reach - size, 0) // 2 if given is None else given[axis][0]
            pads.append((before, max(reach - size - before, 0)))
        befores, afters = zip(*pads, strict=True)
        return Taps(kernel, stride, dilation, befores, afters, tuple(outputs))

    @property
    def places(self) -> int:
        return math.prod(self.kernel)

    @property
    def is_padded(self) -> bool:
        return any(self.before) or any(self.after)

    def padded(self, x: Tensor, value: float | int | bool) -> Tensor:
        """`x` with `value` where the windows reach beyond it."""
        if not self.is_padded:
            return x
        sides = (self.before[1], self.after[1], self.before[0], self.after[0])
        if x.dtype.is_floating_point:
            return F.pad(x, sides, value=value)
        height, width = x.shape[-2:]  # F.pad takes its value through a float
        top, left = self.before
        shape = (*x.shape[:-2], height + top + self.after[0], width + left + self.after[1])
        out = x.new_full(shape, value)
        out[..., top : top + height, left : left + width] = x
        return out

    def rows(self, first: int, last: int) -> slice:
        """The rows of a padded input that the output rows `first` to `last` (excluded) see."""
        reach = (self.kernel[0] - 1) * self.dilation[0] + 1
        return slice(first * self.stride[0], (last - 1) * self.stride[0] + reach)

    def views(self, x: Tensor) -> list[Tensor]:
        """For each place in the window, in row-major order, what is there for every output."""
        axes = []
        for axis, size in enumerate(x.shape[-2:]):
            k, s, d = self.kernel[axis], self.stride[axis], self.dilation[axis]
            last = (size - (k - 1) * d - 1) // s * s + 1
            axes.append([slice(t * d, t * d + last, s) for t in range(k)])
        return [x[..., i, j] for i in axes[0] for j in axes[1]]

    def seen(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """How many values each window has (1, 1, h, w), for an input of spatial shape `shape`."""
        counts = []
        for axis, size in enumerate(shape):
            k, s, d = self.kernel[axis], self.stride[axis], self.dilation[axis]
            first = torch.arange(self.outputs[axis], device=device) * s - self.before[axis]
            place = first[:, None] + torch.arange(k, device=device) * d
            counts.append(((place >= 0) & (place < size)).sum(1))
        return (counts[0][:, None] * counts[1])[None, None]


Compute = Callable[[list[list[Tensor]], Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Stripes:
    """A pooling that is computed a stripe of outputs at a time.

    Attributes:
        taps: its window.
        compute: from the views of each map, the maps of the output's size, and the parameters, to
            the outputs, in operations that differentiate themselves.
        working, result: the dtypes in which it computes, and of the result.
        live: numbers that `compute` holds for each output while it is differentiated.
        maps, laid: how many of its tensors are maps of the (padded) input's size, and of the
            output's; the others are parameters.
    """

    taps: Taps
    compute: Compute
    working: torch.dtype
    result: torch.dtype
    live: int
    maps: int
    laid: int

    def views(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Those of (parts of) the maps."""
        return [self.taps.views(map.to(self.working)) for map in tensors[: self.maps]]

    def of(self, tensors: Sequence[Tensor], views: list[list[Tensor]] | None = None) -> Tensor:
        """The result for these (parts of) tensors, in the working dtype."""
        end = self.maps + self.laid
        parameters = [parameter.to(self.working) for parameter in tensors[end:]]
        return self.compute(views or self.views(tensors), tensors[self.maps : end], parameters)

    def parts(self, tensors: Sequence[Tensor]) -> Iterator[tuple[list[Any], tuple[slice, slice]]]:
        """For each stripe, where its part of each tensor is (axes 0 and 2; None for parameters),
        and where its outputs are."""
        images, channels = tensors[0].shape[:2]
        height, width = self.taps.outputs
        row, most = max(channels * width, 1), STRIPE // self.live
        rows = min(height, max(most // row, 1))
        step = max(most // (row * rows), 1) if rows == height else 1
        for n in range(0, images, step):
            these = slice(n, min(n + step, images))
            for top in range(0, height, rows):
                ends = (top, min(top + rows, height))
                where: list[Any] = []
                for place, tensor in enumerate(tensors):
                    lies = self.taps.rows(*ends) if place < self.maps else slice(*ends)
                    all_ = slice(None) if len(tensor) == 1 else these
                    where.append((all_, lies) if place < self.maps + self.laid else None)
                yield where, (these, slice(*ends))


def part_of(tensor: Tensor, where: tuple[slice, slice] | None) -> Tensor:
    return tensor if where is None else tensor[where[0], :, where[1]]


def in_stripes(
    compute: Compute,
    taps: Taps,
    maps: Sequence[Tensor],
    laid: Sequence[Tensor] = (),
    parameters: Sequence[Tensor] = (),
    *,
    working: torch.dtype,
    result: torch.dtype,
    live: int,
) -> Tensor:
    """`compute` over all outputs, see `Stripes`. For a gradient each stripe is computed again.

    A compiler gets it in one piece, which it fuses, and so do transforms of torch.func and
    forward-mode differentiation.
    """
    stripes = Stripes(taps, compute, working, result, live, len(maps), len(laid))
    tensors = (*maps, *laid, *parameters)
    if (
        is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return stripes.of(tensors).to(result)
    out: Tensor = apply(_InStripes, stripes, *tensors)
    return out


class _InStripes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stripes: Stripes, *tensors: Tensor) -> Tensor:
        ctx.stripes = stripes
        ctx.save_for_backward(*tensors)
        x = tensors[0]
        out = torch.empty(
            (*x.shape[:2], *stripes.taps.outputs),
            dtype=stripes.result,
            device=x.device,
            memory_format=torch.channels_last if channels_behind(x, 2) else torch.contiguous_format,
        )
        for where, place in stripes.parts(tensors):
            parts = [part_of(t, w) for t, w in zip(tensors, where, strict=True)]
            out[place[0], :, place[1]] = stripes.of(parts)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        stripes, tensors = ctx.stripes, ctx.saved_tensors
        wanted = [place for place in range(len(tensors)) if ctx.needs_input_grad[place + 1]]
        gradients: list[Tensor | None] = [None] * len(tensors)
        if torch.is_grad_enabled():  # the gradient will be differentiated
            leaves = [tensors[place] for place in wanted]
            out = stripes.of(tensors).to(stripes.result)
            found = torch.autograd.grad(out, leaves, grad, create_graph=True, allow_unused=True)
            for place, gradient in zip(wanted, found, strict=True):
                gradients[place] = gradient
            return None, *gradients
        # Where windows overlap, half types are added up in the working dtype too.
        sums = {p: torch.zeros_like(tensors[p], dtype=stripes.working) for p in wanted}
        for where, place in stripes.parts(tensors):
            parts = [part_of(t, w).detach() for t, w in zip(tensors, where, strict=True)]
            views, leaves, targets = stripes.views(parts), [], []
            for p in wanted:
                target = part_of(sums[p], where[p])
                if p < stripes.maps:  # each view a leaf, or autograd fills a map for each of them
                    views[p] = [view.detach().requires_grad_() for view in views[p]]
                    leaves += views[p]
                    targets += stripes.taps.views(target)
                else:
                    parts[p] = parts[p].to(stripes.working).requires_grad_()
                    leaves.append(parts[p])
                    targets.append(target)
            with torch.enable_grad():
                given = grad[place[0], :, place[1]].to(stripes.working)
                found = torch.autograd.grad(stripes.of(parts, views), leaves, given)
            for target, gradient in zip(targets, found, strict=True):
                target.add_(gradient)
        for p in wanted:
            gradients[p] = sums[p].to(tensors[p].dtype)
        return None, *gradients


def inside(window: Window, shape: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    """For each place in a window: where in the input it lies, and in which outputs. The one place
    of a global window is the whole plane, which broadcasts."""
    if isinstance(window, Global):
        yield ..., ...
        return
    assert isinstance(window, Sliding)
    kernel, stride, dilation = window.sizes(2)
    fields = window.receptive_field(shape)
    axes = []
    for axis, (size, out) in enumerate(zip(shape, window.output_shape(shape), strict=True)):
        before = round((fields[axis].size - 1) / 2 - fields[axis].offset)  # the padding
        s, places = stride[axis], []
        for tap in range(kernel[axis]):
            at = tap * dilation[axis] - before
            first = max(-(at // s), 0)  # the first output whose tap lies inside
            last = min((size - 1 - at) // s, out - 1)
            if last >= first:
                begin = first * s + at
                places.append((slice(begin, last * s + at + 1, s), slice(first, last + 1)))
        axes.append(places)
    for row, rows in axes[0]:
        for column, columns in axes[1]:
            yield (..., row, column), (..., rows, columns)
