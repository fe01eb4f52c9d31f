"""Log-mean-exp and softmax means of windows, and their gradients in the input and in the sharpness.

The gradients are made from the input alone, place by place of the window, so that no memory grows
with it. GeM is the LogSumExp of logarithms, so both are one function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..arrays import Array, arrays_of
from ..core import pool
from ..dtypes import dtype_of
from ..errors import PoolTypeError, is_torch_tensor
from ..reductions import LogSumExp, Max, Soft, Sum
from ..torch.autograd import apply
from ..torch.plain import check
from ..windows import Window
from .learned import across_channels
from .taps import inside

__all__ = ["log_mean_exp", "soft"]

# A learned exponent or sharpness counts as this where it is less: log(mean) / k would cancel.
LEAST = 1e-3


def log_mean_exp(
    input: Array, k: float | Tensor, name: str, window: Window, eps: float | None
) -> Array:
    """The LogSumExp of the input, or with `eps` the GeM: the exponential of that of logarithms."""
    if not is_torch_tensor(input):
        if isinstance(k, Tensor):
            raise PoolTypeError(f"{name} is a tensor, the input is none", "Convert one of them")
        return _values(input, k, window, eps)
    check(input)
    if isinstance(k, Tensor):
        k = across_channels(name, k, input)
        k = k.to(torch.float64 if input.dtype is torch.float64 else torch.float32).clamp(min=LEAST)
    if _differentiates(input) or (isinstance(k, Tensor) and _differentiates(k)):
        pooled: Tensor = apply(_LogMeanExp, input, k, window, eps)
        return pooled
    return _values(input, k, window, eps)


def soft(input: Array, beta: float, window: Window) -> Array:
    """The softmax mean of each window: `Soft`, with a gradient that saves the input alone."""
    if is_torch_tensor(input) and _differentiates(check(input)):
        pooled: Tensor = apply(_Soft, input, beta, window)
        return pooled
    return pool(input, window, Soft(beta), ndim=2)


def _differentiates(x: Tensor) -> bool:
    """Whether a gradient is made here; a compiler and the transforms of torch.func take those of
    the operators they are shown."""
    if is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return torch.is_grad_enabled() and x.requires_grad


def _wide(x: Array, eps: float | None) -> Array:
    """What is summed: of half types and integers in float32, with `eps` the logarithms."""
    xp, reduction = arrays_of(x), LogSumExp()
    x = xp.cast(x, reduction.working_dtype(dtype_of(x)))
    return x if eps is None else xp.log(xp.at_least(x, eps))


def _values(x: Array, k: Any, window: Window, eps: float | None) -> Array:
    xp, u = arrays_of(x), _wide(x, eps)
    if isinstance(k, Tensor):
        level = pool(u * k, window, LogSumExp(), ndim=2) / k
        if eps is None:  # a product that overflows: the largest is all that counts
            level = torch.where(level.isinf(), pool(u, window, Max(), ndim=2), level)
    else:
        level = pool(u, window, LogSumExp(k), ndim=2)
    result = level if eps is None else xp.exp(level)
    return xp.cast(result, LogSumExp().result_dtype(dtype_of(x)))


def _below(u: Tensor, top: Tensor) -> Tensor:
    """How far u lies below the largest: finite, and 0 from an infinity to itself."""
    below = torch.where(u == top, 0.0, u - top)
    return below.clamp(min=torch.finfo(below.dtype).min)


def _sums(u: Tensor, k: Any, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """The largest of each window, Σ exp(k d) and Σ d exp(k d), with d = u - largest."""
    top = pool(u, window, Max(), ndim=2)
    total, moment = torch.zeros_like(top), torch.zeros_like(top)
    for seen, by in inside(window, tuple(u.shape[-2:])):
        below = _below(u[seen], top[by])
        part = (below * k).exp()
        shifted = part * below
        if by is ...:
            part, shifted = (pool(x, window, Sum(), ndim=2) for x in (part, shifted))
        total[by] += part
        moment[by] += shifted
    return top, total, moment


def _derived(pooled: Tensor, inputs: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradient as a function that may itself be differentiated."""
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    found = iter(torch.autograd.grad(pooled, wanted, grad, create_graph=True))
    return [next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]


class _LogMeanExp(torch.autograd.Function):
    """The level log(Σ exp(k u) / n) / k has the gradient w = exp(k d) / Σ exp(k d) in u, and in k
    (Σ w u - level) / k. What is needed is computed again, so that the input alone is saved."""

    @staticmethod
    def forward(x: Tensor, k: Any, window: Window, eps: float | None) -> Tensor:
        pooled: Tensor = _values(x, k, window, eps)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, k, ctx.window, ctx.eps = inputs
        ctx.k = None if isinstance(k, Tensor) else k
        ctx.save_for_backward(x, *((k,) if isinstance(k, Tensor) else ()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *learned = ctx.saved_tensors
        k, window = learned[0] if learned else ctx.k, ctx.window
        if torch.is_grad_enabled():  # the gradient will be differentiated
            return *_derived(_values(x, k, window, ctx.eps), (x, k), grad), None, None
        u = _wide(x, ctx.eps)
        top, total, moment = _sums(u, k, window)
        number = pool(u.new_ones((1, *u.shape[-2:])), window, Sum(), ndim=2)
        lower = (total / number).log() / k  # the level less the largest
        share = grad.to(u.dtype)
        if ctx.eps is not None:
            share = share * (top + lower).exp()
        grad_k = None
        if learned:
            grad_k = (share * (moment / total - lower)).sum_to_size(k.shape) / k
        share = share / total
        grad_u = torch.zeros_like(u)
        for seen, by in inside(window, tuple(u.shape[-2:])):
            grad_u[seen] += share[by] * (_below(u[seen], top[by]) * k).exp()
        if ctx.eps is not None:
            grad_u = torch.where(x >= ctx.eps, grad_u / x, 0.0)
        return grad_u.to(x.dtype), grad_k, None, None


class _Soft(torch.autograd.Function):
    """With the weights w of `_LogMeanExp`, y = Σ w x has the gradient w (1 + β (x - y))."""

    @staticmethod
    def forward(x: Tensor, beta: float, window: Window) -> Tensor:
        pooled: Tensor = pool(x, window, Soft(beta), ndim=2)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.beta, ctx.window = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        beta, window = ctx.beta, ctx.window
        if torch.is_grad_enabled():  # the gradient will be differentiated
            (gradient,) = _derived(pool(x, window, Soft(beta), ndim=2), (x,), grad)
            return gradient, None, None
        u = _wide(x, None)
        top, total, moment = _sums(u, beta, window)
        share, mean = grad.to(u.dtype) / total, moment / total
        grad_u = torch.zeros_like(u)
        least = torch.finfo(u.dtype).min  # a weight of 0 must not meet an infinity
        for seen, by in inside(window, tuple(u.shape[-2:])):
            below = _below(u[seen], top[by])
            weight = share[by] * (below * beta).exp()
            grad_u[seen] += weight * (1 + beta * (below - mean[by])).clamp(min=least)
        return grad_u.to(x.dtype), None, None
