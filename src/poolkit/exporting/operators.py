"""Windows as the attributes of ONNX's pooling operators, and poolings made of these operators.

They take float32 (and half types by way of it), one to three spatial axes and windows that begin at
even distances. Never `ceil_mode`: runtimes have disagreed about its shapes, while the padding that
says the same is understood by all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reductions import GeM, Lp, Max, Mean, Min, Reduction, SqrtN, Sum
from ..windows import Adaptive, Global, Sliding, Window

__all__ = ["OPSET", "pool_by_operator", "symbolic"]

# An AveragePool has dilations from 19 on; 20 is what torch's exporter writes.
OPSET = 20
OPERATORS = (Max, Min, Mean, Sum, SqrtN, Lp, GeM)


def symbolic(
    operator: str, inputs: Sequence[Tensor], shape: Any, dtype: torch.dtype, **attributes: Any
) -> Tensor:
    """One ONNX operator, as a node of the graph that torch traces."""
    return torch.onnx.ops.symbolic(
        operator, inputs, attributes, dtype=dtype, shape=shape, version=OPSET
    )


@dataclass(frozen=True)
class Box:
    """A window that begins at even distances.

    Attributes:
        kernel, stride, dilation: for each axis.
        pads: (before, behind) for each axis, as they count for a mean.
        overhang: how far the last window reaches over the padding, which never counts.
        output: the spatial shape of the result.
        always_sees: whether no window lies wholly in the padding.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    overhang: tuple[int, ...]
    output: tuple[Any, ...]
    always_sees: bool

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """The padding, and what hangs over it."""
        return tuple(
            (before, behind + over)
            for (before, behind), over in zip(self.pads, self.overhang, strict=True)
        )

    def fits(self, pads: Sequence[tuple[int, int]]) -> bool:
        """Whether ONNX Runtime takes these as an attribute: less than the kernel, whatever the
        dilation is."""
        return all(max(pair) < k for pair, k in zip(pads, self.kernel, strict=True))


def box_of(window: Window, spatial: Sequence[Any]) -> Box | None:
    """The window over a shape, whose sizes may be symbols, as a box; None if it is none."""
    fixed = all(type(size) is int for size in spatial)
    n = len(spatial)
    if isinstance(window, Adaptive) and fixed:
        bins = window.output_shape(spatial)
        if 0 in bins or any(size % b for size, b in zip(spatial, bins, strict=True)):
            return None
        kernel = tuple(size // b for size, b in zip(spatial, bins, strict=True))
        return Box(kernel, kernel, (1,) * n, ((0, 0),) * n, (0,) * n, bins, True)
    if not isinstance(window, Sliding) or (window.padding == "same" and not fixed):
        return None
    if window.ceil_mode and not fixed:
        return None
    kernel, stride, dilation = window.sizes(n)
    output = window.output_shape(spatial)
    pads = window.pads(n)
    if fixed:
        reach = [
            (o - 1) * s + (k - 1) * d + 1 - size
            for o, s, k, d, size in zip(output, stride, kernel, dilation, spatial, strict=True)
        ]
        if pads is None:
            pads = tuple((max(r, 0) // 2, max(r, 0) - max(r, 0) // 2) for r in reach)
        over = tuple(max(r - a - b, 0) for r, (a, b) in zip(reach, pads, strict=True))
    else:
        over = (0,) * n
    assert pads is not None
    sees = window.always_sees(spatial) or (
        fixed and all((span.count > 0).all() for span in window.axes(spatial))
    )
    return Box(kernel, stride, dilation, pads, over, output, sees)


def pool_by_operator(x: Tensor, window: Window, reduction: Reduction, ndim: int) -> Tensor | None:
    """The pooling as one of ONNX's operators, with a little arithmetic around it; None where they
    do not have it."""
    spatial = tuple(x.shape[x.ndim - ndim :])
    if ndim > 3 or type(reduction) not in OPERATORS:
        return None
    if x.dtype in (torch.float16, torch.bfloat16):
        pooled = pool_by_operator(x.float(), window, reduction, ndim)
        return None if pooled is None else pooled.to(x.dtype)
    if x.dtype is not torch.float32 and not (
        isinstance(reduction, Max) and x.dtype in (torch.int8, torch.uint8, torch.float64)
    ):
        return None
    if isinstance(window, Global):
        return _with_images(x, ndim, partial(_pool_all, reduction, ndim))
    box = box_of(window, spatial)
    return None if box is None else _with_images(x, ndim, partial(_pool_box, reduction, box))


def _with_images(x: Tensor, ndim: int, run: Callable[[Tensor], Tensor | None]) -> Tensor | None:
    """Operators take (N, C, *spatial); any other number of axes in front becomes two."""
    lead = x.ndim - ndim
    if lead == 2:
        return run(x)
    if lead < 2:
        pooled = run(x[(None,) * (2 - lead)])
        return None if pooled is None else pooled[(0,) * (2 - lead)]
    pooled = run(x.flatten(0, lead - 2))
    return None if pooled is None else pooled.unflatten(0, x.shape[: lead - 1])


def _pool_all(reduction: Reduction, ndim: int, x: Tensor) -> Tensor | None:
    over = tuple(range(2, 2 + ndim))
    shape = (*x.shape[:2], *(1,) * ndim)
    positions = math.prod(x.shape[2:])
    if isinstance(reduction, Max):
        if x.dtype is not torch.float32:
            return None
        return symbolic("GlobalMaxPool", (x,), shape, x.dtype)
    if isinstance(reduction, Min):
        return -symbolic("GlobalMaxPool", (-x,), shape, x.dtype)
    if isinstance(reduction, Mean) and reduction.divisor is None:
        return symbolic("GlobalAveragePool", (x,), shape, x.dtype)
    if isinstance(reduction, Mean):
        assert reduction.divisor is not None
        return x.sum(over, keepdim=True) / reduction.divisor
    if isinstance(reduction, Sum):
        return x.sum(over, keepdim=True)
    if isinstance(reduction, SqrtN):
        return x.sum(over, keepdim=True) / positions**0.5
    if isinstance(reduction, Lp):
        powers = x.abs().pow(reduction.p) if reduction.p != 1 else x.abs()
        total = powers.sum(over, keepdim=True)
        return total if reduction.p == 1 else total.pow(1 / reduction.p)
    assert isinstance(reduction, GeM)
    powers = x.clamp(min=reduction.eps).pow(reduction.p)
    return symbolic("GlobalAveragePool", (powers,), shape, x.dtype).pow(1 / reduction.p)


def _pool_box(reduction: Reduction, box: Box, x: Tensor) -> Tensor | None:
    if isinstance(reduction, Max):
        return _largest(x, box)
    if isinstance(reduction, Min):
        largest = _largest(-x, box)
        return None if largest is None else -largest
    if isinstance(reduction, Sum):
        return _mean_of_taps(x, box) * box.taps
    if isinstance(reduction, Mean):
        if reduction.divisor is not None:
            return _mean_of_taps(x, box) * (box.taps / reduction.divisor)
        return _mean(x, box, reduction.count_include_pad)
    if isinstance(reduction, SqrtN):
        if any(map(max, box.reach)):
            return None  # how many values there are differs
        return _mean_of_taps(x, box) * box.taps**0.5
    if isinstance(reduction, Lp):
        return _norm(x, box, reduction.p)
    assert isinstance(reduction, GeM)
    mean = _mean(x.clamp(min=reduction.eps).pow(reduction.p), box, False)
    return None if mean is None else mean.pow(1 / reduction.p)


def _operator(
    name: str, x: Tensor, box: Box, pads: Sequence[tuple[int, int]], **attributes: Any
) -> Tensor:
    attributes |= {"kernel_shape": box.kernel, "strides": box.stride}
    if any(map(any, pads)):
        attributes["pads"] = [a for a, _ in pads] + [b for _, b in pads]
    if any(d != 1 for d in box.dilation):
        attributes["dilations"] = box.dilation
    return symbolic(name, (x,), (*x.shape[:2], *box.output), x.dtype, **attributes)


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    if not any(map(any, pads)):
        return x
    return F.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


def _largest(x: Tensor, box: Box) -> Tensor | None:
    if box.fits(box.reach) and box.always_sees:
        return _operator("MaxPool", x, box, box.reach)
    # Of a window of nothing but -inf ONNX Runtime says that it has the lowest finite value.
    if not x.dtype.is_floating_point or not box.always_sees:
        return None
    none = ((0, 0),) * len(box.kernel)
    return _operator("MaxPool", _padded(x, box.reach, -torch.inf), box, none)


def _mean_of_taps(x: Tensor, box: Box) -> Tensor:
    """The sum of each window over the number of places in it, wherever they lie."""
    if box.fits(box.reach):
        counts = {"count_include_pad": 1} if any(map(any, box.reach)) else {}
        return _operator("AveragePool", x, box, box.reach, **counts)
    none = ((0, 0),) * len(box.kernel)
    return _operator("AveragePool", _padded(x, box.reach, 0.0), box, none)


def _mean(x: Tensor, box: Box, count_include_pad: bool) -> Tensor | None:
    if not any(box.overhang) and (count_include_pad or not any(map(any, box.pads))):
        return _mean_of_taps(x, box)
    # What must not count is padding of the operator, and what counts is put there before.
    padding, rest = ((0, 0),) * len(box.kernel), box.reach
    if count_include_pad:
        padding, rest = box.pads, tuple((0, over) for over in box.overhang)
    if not box.fits(rest) or not (box.always_sees or count_include_pad):
        return None
    return _operator("AveragePool", _padded(x, padding, 0.0), box, rest)


def _norm(x: Tensor, box: Box, p: float) -> Tensor:
    if p == 1:
        return _mean_of_taps(x.abs(), box) * box.taps
    if p == int(p) and p < 2**31 and box.fits(box.reach):
        return _operator("LpPool", x.abs(), box, box.reach, p=int(p))
    return (_mean_of_taps(x.abs().pow(p), box) * box.taps).pow(1 / p)
