"""Gradients: each linear operator and its adjoint differentiate into each other.

Max and min save the position codes (one byte per output), sums and means save nothing, and
nothing saves the input; a norm is an exception, whose gradient is made of the input and the
result, and so are activated values, unless the activation is behind a max or min. Every backward
is itself differentiable. Tiny tensors, which `dispatch` leaves to aten, save what aten saves: the
input, and eight bytes per output of a max.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.compiler import is_compiling

from ..activations import as_activation
from ..arrays import Arrays, arrays_of
from ..composite import composite
from .ops import plan_of

__all__ = [
    "ActivatedPickPool",
    "ActivatedSumPool",
    "EndedPickPool",
    "LpPool",
    "MonotonePickPool",
    "PickPool",
    "SumPool",
    "WholePool",
    "apply",
    "apply_here",
]


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, without the 15 us in which it looks up its own signature when
    neither a compiler nor a transform of torch.func is about."""
    if is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return super(torch.autograd.Function, function).apply(*inputs)  # type: ignore[misc]


def apply_here(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)`` within an operator, where a transform of torch.func has been seen
    to already."""
    with enable_single_level_autograd_function():
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
        picked = grad.flatten(-n).gather(-1, places.clamp(min=0).flatten(-n))
        # Where an activation ended the gradient there is no place.
        picked = picked.unflatten(-1, places.shape[-n:]).masked_fill(places < 0, 0)
        return picked, None, None, None


def _through(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """What of a gradient comes back through an activation at x; differentiable."""
    if not torch.is_grad_enabled():
        return torch.ops.poolkit.activation_backward.default(grad, x, activation)
    slope = _widely(as_activation(activation).derivative, x)
    return (grad * slope).to(x.dtype)


def _widely(function: Callable[[Arrays, Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of x, of half types in float32."""
    x = x.float() if x.dtype.itemsize == 2 else x
    return function(arrays_of(x), x)


class ActivatedSumPool(torch.autograd.Function):
    """pool() of activated values by a sum or a mean; saves the input alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, window: str, reduction: str, inner: str, activation: str, ndim: int
    ) -> Tensor:
        return torch.ops.poolkit.pool.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.window, _, ctx.inner, ctx.activation, ctx.ndim = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            spatial = x.shape[x.ndim - ctx.ndim :]
            spread = apply(Spread, grad, ctx.window, ctx.inner, spatial)
            gradient = _through(spread, x, ctx.activation)
        else:
            gradient = torch.ops.poolkit.spread_activated.default(
                grad, x, ctx.window, ctx.inner, ctx.activation, ctx.ndim
            )
        return gradient, None, None, None, None, None


class ActivatedPickPool(torch.autograd.Function):
    """pool() of activated values by max or min, and the codes of their positions; saves the input
    and the codes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, window: str, reduction: str, activation: str, ndim: int
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.poolkit.pool_positions.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window, _, ctx.activation, ctx.ndim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        x, codes = ctx.saved_tensors
        run = _differentiable(Scatter, torch.ops.poolkit.scatter.default)
        scattered = run(grad, codes, ctx.window, x.shape[x.ndim - ctx.ndim :])
        return _through(scattered, x, ctx.activation), None, None, None, None


class EndedPickPool(torch.autograd.Function):
    """pool() by max or min with ReLU behind it: where the result is 0 the gradient ends, which is
    a position code of its own. Saves the codes, as `PickPool` does, and nothing of the ReLU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
        return torch.ops.poolkit.pool_behind.default(x, window, reduction, ndim)

    setup_context = staticmethod(PickPool.setup_context)
    backward = staticmethod(PickPool.backward)


class MonotonePickPool(torch.autograd.Function):
    """pool() by max or min with a monotone activation behind it, whose derivative is a function of
    the result. Saves the result and the codes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, window: str, reduction: str, activation: str, ndim: int
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.poolkit.pool_behind.default(x, window, reduction, ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window, _, ctx.activation, ndim = inputs
        ctx.spatial = x.shape[x.ndim - ndim :]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        y, codes = ctx.saved_tensors
        slope = _widely(as_activation(ctx.activation).derivative_from_result, y)
        run = _differentiable(Scatter, torch.ops.poolkit.scatter.default)
        gradient = run((grad * slope).to(y.dtype), codes, ctx.window, ctx.spatial)
        return gradient, None, None, None, None


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
