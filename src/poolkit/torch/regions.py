"""Regions of torch tensors: operators, and their gradients.

On the CPU the operators are kernels, all deterministic for any number of threads:

    region_mean          values by a mean
    region_spread        its adjoint
    region_max           values by a maximum, and a code for which sample of its bin each one is
    region_scatter       the adjoint of picking those samples
    region_take          and the adjoint of that
    region_move          the gradient of an integral with respect to the boxes

A maximum saves its codes, a mean nothing but the boxes, and the integral the input, if the boxes
have a gradient. On other devices, under transforms of torch.func, and for second derivatives of an
integral, the same values are made of whole-array operations (`regions_composite`). These look at
the boxes, so a compiled program is cut there on other devices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..arrays import Array
from ..errors import is_torch_tensor
from ..recipes import build
from ..regions import Call, code_bytes, native_boxes
from ..windows.regions import Bins, place
from .autograd import apply
from .layout import as_laid_out, channels_behind
from .plain import NAMES, check
from .regions_composite import composite

__all__ = ["pool_regions"]

# Bins travel as their recipe, and the sizes of a map as (images, height, width, whether its
# channels lie behind).
_SIZES = "SymInt images, SymInt height, SymInt width, bool behind"
_library = torch.library.Library("poolkit", "FRAGMENT")
_library.define("region_mean(Tensor x, Tensor boxes, str bins) -> Tensor")
_library.define(f"region_spread(Tensor grad, Tensor boxes, str bins, {_SIZES}) -> Tensor")
_library.define("region_max(Tensor x, Tensor boxes, str bins) -> (Tensor, Tensor)")
_library.define(
    f"region_scatter(Tensor grad, Tensor codes, Tensor boxes, str bins, {_SIZES}) -> Tensor"
)
_library.define("region_take(Tensor x, Tensor codes, Tensor boxes, str bins) -> Tensor")
_library.define("region_move(Tensor x, Tensor grad, Tensor boxes, str bins) -> Tensor")

_ops: Any = torch.ops.poolkit
_uncompiled = torch.compiler.disable(composite)  # it looks at the boxes, which a compiler does not


def pool_regions(x: Tensor, boxes: Array, bins: Bins, mode: str) -> Tensor:
    """(K, C, rows, columns) by "mean" or "max", in the memory format of x, which has been checked.

    The gradient of an integral has a part for the boxes; samples and cells have none, as their
    number and place jump.
    """
    check(x)
    if not is_torch_tensor(boxes):
        boxes = torch.from_numpy(np.ascontiguousarray(boxes))
    boxes = boxes.to(x.device)
    if not (bins.rule == "integral" and boxes.is_floating_point()):
        boxes = boxes.detach()
    if _transformed():
        return composite(x, boxes, bins, mode)
    if x.device.type not in ("cpu", "meta"):
        return _laid_out(_uncompiled(x, boxes, bins, mode), channels_behind(x, 2))
    if mode == "max":
        pooled: Tensor = apply(_Max, x, boxes, repr(bins))[0]
    else:
        pooled = apply(_Mean, x, boxes, repr(bins))
    return pooled


def _transformed() -> bool:
    return not is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


# --- operators -----------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _read(bins: str) -> Bins:
    made: Bins = build(bins, {"Bins": Bins}, "grid of bins")
    return made


def _empty(like: Tensor, shape: Any, behind: bool, dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if behind else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _laid_out(x: Tensor, behind: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if behind else torch.contiguous_format)


def _output(x: Tensor, boxes: Tensor, bins: Bins, behind: bool) -> Tensor:
    return _empty(x, (boxes.shape[0], x.shape[1], bins.rows, bins.columns), behind)


def _run(
    step: str,
    boxes: Tensor,
    bins: Bins,
    shape: Any,
    behind: bool,
    *,
    out: Tensor,
    **arrays: Tensor,
) -> None:
    """One step of csrc/regions.h over maps of a shape."""
    dtype = NAMES[next(iter(arrays.values())).dtype]
    call = Call(place(native_boxes(boxes), bins, shape[0]), bins, tuple(shape), dtype, behind)
    addresses = {name: array.data_ptr() for name, array in arrays.items()}
    call.run(step, torch.get_num_threads(), out=out.data_ptr(), **addresses)


@torch.library.impl(_library, "region_mean", "CPU")
def _mean(x: Tensor, boxes: Tensor, bins: str) -> Tensor:
    x, (_, _, behind) = as_laid_out(x, 2)
    cut = _read(bins)
    out = _output(x, boxes, cut, behind)
    _run("average", boxes, cut, x.shape, behind, x=x, out=out)
    return out


def _codes_dtype(bins: Bins, x: Tensor) -> torch.dtype:
    return (torch.uint8, torch.uint16, torch.uint32)[code_bytes(bins, x.shape[2:]) // 2]


@torch.library.impl(_library, "region_max", "CPU")
def _max(x: Tensor, boxes: Tensor, bins: str) -> tuple[Tensor, Tensor]:
    x, (_, _, behind) = as_laid_out(x, 2)
    cut = _read(bins)
    out = _output(x, boxes, cut, behind)
    codes = _empty(out, out.shape, behind, _codes_dtype(cut, x))
    _run("pick", boxes, cut, x.shape, behind, x=x, codes=codes, out=out)
    return out, codes


@torch.library.impl(_library, "region_spread", "CPU")
def _spread(
    grad: Tensor, boxes: Tensor, bins: str, images: int, height: int, width: int, behind: bool
) -> Tensor:
    grad = _laid_out(grad, behind)
    out = _empty(grad, (images, grad.shape[1], height, width), behind)
    _run("spread", boxes, _read(bins), out.shape, behind, grad=grad, out=out)
    return out


@torch.library.impl(_library, "region_scatter", "CPU")
def _scatter(
    grad: Tensor,
    codes: Tensor,
    boxes: Tensor,
    bins: str,
    images: int,
    height: int,
    width: int,
    behind: bool,
) -> Tensor:
    grad, codes = _laid_out(grad, behind), _laid_out(codes, behind)
    out = _empty(grad, (images, grad.shape[1], height, width), behind)
    _run("scatter", boxes, _read(bins), out.shape, behind, grad=grad, codes=codes, out=out)
    return out


@torch.library.impl(_library, "region_take", "CPU")
def _take(x: Tensor, codes: Tensor, boxes: Tensor, bins: str) -> Tensor:
    x, (_, _, behind) = as_laid_out(x, 2)
    codes, cut = _laid_out(codes, behind), _read(bins)
    out = _output(x, boxes, cut, behind)
    _run("take", boxes, cut, x.shape, behind, x=x, codes=codes, out=out)
    return out


@torch.library.impl(_library, "region_move", "CPU")
def _move(x: Tensor, grad: Tensor, boxes: Tensor, bins: str) -> Tensor:
    x, (_, _, behind) = as_laid_out(x, 2)
    grad, cut = _laid_out(grad, behind), _read(bins)
    moved = torch.empty((boxes.shape[0], 4), dtype=torch.float64)
    _run("move", boxes, cut, x.shape, behind, x=x, grad=grad, out=moved)
    y1, x1, y2, x2 = (moved * cut.scale).unbind(1)
    return torch.stack([torch.zeros_like(x1), x1, y1, x2, y2], 1).to(boxes.dtype)


# --- shapes only ---------------------------------------------------------------------------------


@torch.library.register_fake("poolkit::region_mean", lib=_library)
def _mean_fake(x: Tensor, boxes: Tensor, bins: str) -> Tensor:
    x, (_, _, behind) = as_laid_out(x, 2)
    return _output(x, boxes, _read(bins), behind)


@torch.library.register_fake("poolkit::region_max", lib=_library)
def _max_fake(x: Tensor, boxes: Tensor, bins: str) -> tuple[Tensor, Tensor]:
    out = _mean_fake(x, boxes, bins)
    return out, torch.empty_like(out, dtype=_codes_dtype(_read(bins), x))


@torch.library.register_fake("poolkit::region_spread", lib=_library)
def _spread_fake(
    grad: Tensor, boxes: Tensor, bins: str, images: Any, height: Any, width: Any, behind: bool
) -> Tensor:
    return _empty(grad, (images, grad.shape[1], height, width), behind)


@torch.library.register_fake("poolkit::region_scatter", lib=_library)
def _scatter_fake(
    grad: Tensor,
    codes: Tensor,
    boxes: Tensor,
    bins: str,
    images: Any,
    height: Any,
    width: Any,
    behind: bool,
) -> Tensor:
    return _empty(grad, (images, grad.shape[1], height, width), behind)


@torch.library.register_fake("poolkit::region_take", lib=_library)
def _take_fake(x: Tensor, codes: Tensor, boxes: Tensor, bins: str) -> Tensor:
    return _mean_fake(x, boxes, bins)


@torch.library.register_fake("poolkit::region_move", lib=_library)
def _move_fake(x: Tensor, grad: Tensor, boxes: Tensor, bins: str) -> Tensor:
    return torch.empty(boxes.shape, dtype=boxes.dtype, device=boxes.device)


# --- gradients -----------------------------------------------------------------------------------

# A compiler takes no variable number of arguments where nothing has a gradient.


def _sizes(x: Tensor) -> tuple[Any, ...]:
    return x.shape[0], x.shape[2], x.shape[3], channels_behind(x, 2)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, boxes: Tensor, bins: str) -> Tensor:
        pooled: Tensor = _ops.region_mean.default(x, boxes, bins)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, boxes, ctx.bins = inputs
        ctx.sizes, ctx.moves = _sizes(x), ctx.needs_input_grad[1]
        ctx.save_for_backward(boxes, *([x] if ctx.moves else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        boxes, *saved = ctx.saved_tensors
        arguments = (grad, boxes, ctx.bins, *ctx.sizes)
        if not ctx.moves:
            if torch.is_grad_enabled():
                return apply(_Spread, *arguments), None, None
            return _ops.region_spread.default(*arguments), None, None
        (x,) = saved
        if torch.is_grad_enabled() and not is_compiling():  # the gradient will be differentiated
            wanted = [t for t, need in zip((x, boxes), ctx.needs_input_grad, strict=False) if need]
            pooled = composite(x, boxes, _read(ctx.bins), "mean")
            gradients = list(torch.autograd.grad(pooled, wanted, grad, create_graph=True))
            spread = gradients.pop(0) if ctx.needs_input_grad[0] else None
            return spread, gradients[0], None
        spread = _ops.region_spread.default(*arguments) if ctx.needs_input_grad[0] else None
        return spread, _ops.region_move.default(x, grad, boxes, ctx.bins), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_Mean`, with respect to the input alone."""

    @staticmethod
    def forward(
        grad: Tensor, boxes: Tensor, bins: str, images: int, height: int, width: int, behind: bool
    ) -> Tensor:
        spread: Tensor = _ops.region_spread.default(
            grad, boxes, bins, images, height, width, behind
        )
        return spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, boxes, ctx.bins, *_ = inputs
        ctx.save_for_backward(boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (boxes,) = ctx.saved_tensors
        return apply(_Mean, grad, boxes, ctx.bins), *(None,) * 6


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, boxes: Tensor, bins: str) -> tuple[Tensor, Tensor]:
        pooled: tuple[Tensor, Tensor] = _ops.region_max.default(x, boxes, bins)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, boxes, ctx.bins = inputs
        ctx.sizes = _sizes(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(boxes, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        boxes, codes = ctx.saved_tensors
        arguments = (grad, codes, boxes, ctx.bins, *ctx.sizes)
        if torch.is_grad_enabled():
            return apply(_Scatter, *arguments), None, None
        return _ops.region_scatter.default(*arguments), None, None


class _Scatter(torch.autograd.Function):
    """The adjoint of picking samples."""

    @staticmethod
    def forward(
        grad: Tensor,
        codes: Tensor,
        boxes: Tensor,
        bins: str,
        images: int,
        height: int,
        width: int,
        behind: bool,
    ) -> Tensor:
        scattered: Tensor = _ops.region_scatter.default(
            grad, codes, boxes, bins, images, height, width, behind
        )
        return scattered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, codes, boxes, ctx.bins, *_ = inputs
        ctx.save_for_backward(codes, boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        codes, boxes = ctx.saved_tensors
        return apply(_Take, grad, codes, boxes, ctx.bins), *(None,) * 7


class _Take(torch.autograd.Function):
    """And the adjoint of that."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, boxes: Tensor, bins: str) -> Tensor:
        taken: Tensor = _ops.region_take.default(x, codes, boxes, bins)
        return taken

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codes, boxes, ctx.bins = inputs
        ctx.sizes = _sizes(x)
        ctx.save_for_backward(codes, boxes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        codes, boxes = ctx.saved_tensors
        return apply(_Scatter, grad, codes, boxes, ctx.bins, *ctx.sizes), None, None, None
