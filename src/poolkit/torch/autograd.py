"""Gradients: each linear operator and its adjoint differentiate into each other.

Max and min save the position codes (one byte per output), sums and means save nothing, and
nothing saves the input; a norm is the exception, whose gradient is made of the input and the
result. Every backward is itself differentiable. Tiny tensors, which `dispatch` leaves to aten, save
what aten saves: the input, and eight bytes per output of a max.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..composite import composite
from .ops import plan_of

__all__ = ["LpPool", "PickPool", "SumPool", "WholePool", "apply"]


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, without the 15 us in which it looks up its own signature when
    neither a compiler nor a transform of torch.func is about."""
    if is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return super(torch.autograd.Function, function).apply(*inputs)  # type: ignore[misc]


def _differentiable(function: type[torch.autograd.Function], op: Any) -> Any:
    """Within a backward: the operator alone, unless its gradient will be asked for."""
    return partial(apply, function) if torch.is_grad_enabled() else op


class SumPool(torch.autograd.Function):
    """pool() by a sum or a mean."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
        return torch.ops.poolkit.pool.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.window, ctx.reduction, ctx.ndim = inputs
        ctx.spatial = x.shape[x.ndim - ctx.ndim :]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        run = _differentiable(Spread, torch.ops.poolkit.spread.default)
        return run(grad, ctx.window, ctx.reduction, ctx.spatial), None, None, None


class Spread(torch.autograd.Function):
    """The adjoint of `SumPool`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, window: str, reduction: str, spatial: Any) -> Tensor:
        return torch.ops.poolkit.spread.default(grad, window, reduction, spatial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.window, ctx.reduction, spatial = inputs
        ctx.ndim = len(spatial)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return apply(SumPool, grad, ctx.window, ctx.reduction, ctx.ndim), None, None, None


class PickPool(torch.autograd.Function):
    """pool() by max or min: values, and the codes of their positions."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
        return torch.ops.poolkit.pool_positions.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window, _, ndim = inputs
        ctx.spatial = x.shape[x.ndim - ndim :]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        (codes,) = ctx.saved_tensors
        run = _differentiable(Scatter, torch.ops.poolkit.scatter.default)
        return run(grad, codes, ctx.window, ctx.spatial), None, None, None


class Scatter(torch.autograd.Function):
    """The adjoint of picking positions."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, codes: Tensor, window: str, spatial: Any) -> Tensor:
        return torch.ops.poolkit.scatter.default(grad, codes, window, spatial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, codes, ctx.window, ctx.spatial = inputs
        ctx.save_for_backward(codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (codes,) = ctx.saved_tensors
        places = torch.ops.poolkit.indices.default(codes, ctx.window, ctx.spatial)
        n = len(ctx.spatial)
        picked = grad.flatten(-n).gather(-1, places.flatten(-n))
        return picked.unflatten(-1, places.shape[-n:]), None, None, None


class LpPool(torch.autograd.Function):
    """pool() by a norm."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: str, reduction: str, exponent: float, ndim: int) -> Tensor:
        return torch.ops.poolkit.pool.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.window, _, ctx.p, ctx.ndim = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, norm = ctx.saved_tensors
        p, spatial = ctx.p, x.shape[x.ndim - ctx.ndim :]
        dtype = x.dtype
        if dtype.itemsize == 2:  # powers overflow half types
            x, norm, grad = x.float(), norm.float(), grad.float()
        # d norm / d x = sign(x) |x|^(p-1) norm^(1-p), and 0 where the norm is 0.
        positive = norm > 0
        scaled = grad * torch.where(positive, torch.where(positive, norm, 1.0).pow(1 - p), 0.0)
        spread = apply(Spread, scaled, ctx.window, "Sum()", spatial)
        slope = x.sign() if p == 1 else x if p == 2 else x.sign() * x.abs().pow(p - 1)
        return (slope * spread).to(dtype), None, None, None, None


class WholePool(torch.autograd.Function):
    """pool() by a reduction whose gradient is that of its own lines, over whole arrays: forward by
    a kernel, or where a compiler must see one operator. It saves the input alone.
    """

    @staticmethod
    def forward(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
        return torch.ops.poolkit.pool.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.window, ctx.reduction, ctx.ndim = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() and not is_compiling():  # the gradient will be differentiated
            plan = plan_of(ctx.window, ctx.reduction, x.shape[x.ndim - ctx.ndim :], x.dtype)
            pooled = composite(x, plan.axes, plan.reduction)
            (gradient,) = torch.autograd.grad(pooled, x, grad, create_graph=True)
        else:
            gradient = torch.ops.poolkit.pool_backward.default(
                grad, x, ctx.window, ctx.reduction, ctx.ndim
            )
        return gradient, None, None, None
