"""Fewer tokens between two layers, and back: pooling along a sequence that spares class tokens."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..reductions import Max, Mean, Min, Reduction, Sum, as_reduction
from ..torch.plain import real_dtype
from ..windows import Sliding

__all__ = ["TokenPool", "token_pool", "token_unpool"]

# A name is read by Python's parser otherwise, which no compiler traces.
NAMED: dict[Any, Reduction] = {"mean": Mean(), "max": Max(), "min": Min(), "sum": Sum()}


def token_pool(
    x: Tensor,
    kernel_size: int,
    stride: int | None = None,
    mask: Tensor | None = None,
    class_tokens: int = 0,
    reduction: Reduction | str = "mean",
) -> tuple[Tensor, Tensor | None]:
    """Every `stride` tokens become one; class tokens stay as they are.

    Behind the class tokens, pooled token p is the reduction of the tokens p * stride up to
    p * stride + kernel_size that are there. No token is lost at the end: T tokens give
    ``ceil(T / stride)``, the last window being shorter where they do not come out even.

    Args:
        x: tokens (N, T, C), of a floating dtype.
        kernel_size: tokens in one window.
        stride: tokens between the starts of two windows; None is the kernel size.
        mask: (N, T), True (or 1) where a token is there. What is not there has no influence on
            the result, not even as NaN. A window with none gives zeros.
        class_tokens: how many tokens in front are kept apart.
        reduction: any one, as for `poolkit.pool`; with a mask "mean", "max", "min" or "sum".

    Returns:
        The tokens (N, class_tokens + ceil((T - class_tokens) / stride), C), and which of them
        there are: True where a window has at least one token. None without a mask.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes or dtypes that do not fit.

    The pooling between the blocks of Dai, Lai, Yang and Le, "Funnel-Transformer: Filtering out
    Sequential Redundancy for Efficient Language Processing" (2020), which keeps the class token
    apart as well.

    >>> import torch, poolkit
    >>> x = torch.tensor([[[9.0], [1.0], [3.0], [5.0]]])
    >>> poolkit.nn.TokenPool(2, class_tokens=1)(x)[0].flatten()
    tensor([9., 2., 5.])
    """
    try:
        check_tokens(x)
        size, step = checked_size("kernel_size", kernel_size), _checked_stride(stride, kernel_size)
        first = checked_class_tokens(class_tokens, x)
        seen = checked_mask(mask, x)
        if not isinstance(reduction, Reduction):
            reduction = NAMED[reduction] if reduction in tuple(NAMED) else as_reduction(reduction)
        rest = None if seen is None else seen[:, first:]
        length = (x.shape[1] - first,)
        pooled, there = pool_grid(x[:, first:], rest, length, (size,), (step,), (0,), reduction)
        if first:
            pooled = torch.cat([x[:, :first], pooled], 1)
            there = (
                None if seen is None or there is None else torch.cat([seen[:, :first], there], 1)
            )
        return pooled, there
    except PoolError as error:
        raise error.during(f"{describe(x)} by token_pool") from None


def token_unpool(
    pooled: Tensor,
    length: int,
    stride: int,
    class_tokens: int = 0,
    residual: Tensor | None = None,
) -> Tensor:
    """Back to `length` tokens: each pooled token is repeated `stride` times.

    Behind the class tokens, token t is pooled token t // stride. Where the windows were tiles
    (kernel_size = stride) this is the adjoint of `token_pool` with "sum", to the bit, and
    `token_pool` with "mean" or "max" of the result gives the pooled tokens again.

    Args:
        pooled: tokens (N, class_tokens + ceil((length - class_tokens) / stride), C).
        length: tokens of the result, class tokens counted.
        stride: that of the pooling.
        class_tokens: how many tokens in front are kept as they are.
        residual: (N, length, C) is added: the tokens before the pooling, as in the decoder of the
            Funnel-Transformer, which gives back what pooling took from each.

    Raises:
        PoolValueError, PoolTypeError: for shapes and sizes that do not fit.

    Source: Dai et al., "Funnel-Transformer" (2020).

    >>> import torch, poolkit
    >>> pooled = torch.tensor([[[9.0], [2.0], [5.0]]])
    >>> poolkit.token_unpool(pooled, 4, 2, class_tokens=1).flatten()
    tensor([9., 2., 2., 5.])
    """
    try:
        check_tokens(pooled)
        step = checked_size("stride", stride)
        length = checked_size("length", length, least=0)
        first = checked_class_tokens(class_tokens, pooled)
        wanted = first + -(-(length - first) // step)
        if length < first or pooled.shape[1] != wanted:
            raise PoolValueError(
                f"{length} tokens, {first} of them class tokens, were {max(wanted, first)} after "
                f"pooling by {step}, not {pooled.shape[1]}",
                "Give the length, stride and class_tokens of the pooling",
            )
        rest = pooled[:, first:]
        batch, count, channels = rest.shape
        spread = rest[:, :, None].expand(batch, count, step, channels)
        out = spread.reshape(batch, count * step, channels)[:, : length - first]
        if first:
            out = torch.cat([pooled[:, :first], out], 1)
        if residual is None:
            return out
        if not isinstance(residual, Tensor) or residual.shape != out.shape:
            raise PoolValueError(
                f"the residual is {describe(residual)}, the tokens are {tuple(out.shape)}",
                "Give the tokens from before the pooling",
            )
        return out + residual
    except PoolError as error:
        raise error.during(f"{describe(pooled)} by token_unpool") from None


class TokenPool(nn.Module):
    """Pools tokens along the sequence, and repeats them again.

    Args:
        kernel_size, stride, class_tokens, reduction: as for `poolkit.token_pool`.

    Shape: tokens (N, T, C) and an optional mask (N, T) to the pooled tokens and their mask.

    Source: Dai et al., "Funnel-Transformer" (2020).

    >>> import torch, poolkit
    >>> pool = poolkit.nn.TokenPool(2)
    >>> mask = torch.tensor([[True, True, True, False, False]])
    >>> pooled, there = pool(torch.ones(1, 5, 8), mask)
    >>> pooled.shape, there.tolist(), pool.unpool(pooled, 5).shape
    (torch.Size([1, 3, 8]), [[True, True, False]], torch.Size([1, 5, 8]))
    """

    def __init__(
        self,
        kernel_size: int,
        stride: int | None = None,
        class_tokens: int = 0,
        reduction: Reduction | str = "mean",
    ) -> None:
        super().__init__()
        self.kernel_size = checked_size("kernel_size", kernel_size)
        self.stride = _checked_stride(stride, kernel_size)
        self.class_tokens = checked_size("class_tokens", class_tokens, least=0)
        self.reduction = as_reduction(reduction)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return token_pool(x, self.kernel_size, self.stride, mask, self.class_tokens, self.reduction)

    def unpool(self, pooled: Tensor, length: int, residual: Tensor | None = None) -> Tensor:
        """`token_unpool` with the sizes of this pooling."""
        return token_unpool(pooled, length, self.stride, self.class_tokens, residual)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, "
            f"class_tokens={self.class_tokens}, reduction={self.reduction}"
        )


def pool_grid(
    x: Tensor,
    mask: Tensor | None,
    grid: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    before: tuple[int, ...],
    reduction: Reduction,
) -> tuple[Tensor, Tensor | None]:
    """Tokens (N, T, C) that lie on a grid, pooled to ``ceil(size / stride)`` along each axis.

    The first window starts `before` the grid; what lies outside is no token.
    """
    window, outputs = _window(grid, kernel, stride, before)
    batch, count = x.shape[0], prod(outputs)
    if count == 0:
        empty = x.new_zeros(batch, 0, x.shape[2])
        return empty, None if mask is None else mask.new_zeros(batch, 0)

    def reduced(values: Tensor, by: Reduction) -> Tensor:
        # In one piece, so that the result is: attention over other strides goes without its kernel.
        values = values.contiguous().view(batch, *grid, values.shape[-1])
        found: Tensor = pool(values, window, by, ndim=len(grid), channels_last=True)
        return found.reshape(batch, count, values.shape[-1])

    if mask is None:
        if isinstance(reduction, Mean) and reduction.divisor is None:
            reduction = Mean(count_include_pad=False)
        return reduced(x, reduction), None
    absent = ~mask[..., None]
    there = pool_mask(mask, grid, kernel, stride, before)
    if isinstance(reduction, (Max, Min)):
        worst = float("-inf") if isinstance(reduction, Max) else float("inf")
        pooled = reduced(x.masked_fill(absent, worst), reduction)
        return pooled.masked_fill(~there[..., None], 0), there
    if isinstance(reduction, Sum):
        return reduced(x.masked_fill(absent, 0), reduction), there
    if isinstance(reduction, Mean) and reduction.divisor is None:
        # Half types are summed and divided in float32, so that they are rounded once.
        wide = x.masked_fill(absent, 0).to(real_dtype(x.dtype))
        seen = reduced(mask[..., None], Sum()).clamp(min=1)
        return (reduced(wide, Sum()) / seen).to(x.dtype), there
    raise PoolTypeError(
        f"tokens with a mask are not pooled by {reduction}", 'Use "mean", "max", "min" or "sum"'
    )


def pool_mask(
    mask: Tensor,
    grid: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    before: tuple[int, ...],
) -> Tensor:
    """The mask that `pool_grid` returns: whether a window has any token."""
    window, outputs = _window(grid, kernel, stride, before)
    if prod(outputs) == 0:
        return mask.new_zeros(mask.shape[0], 0)
    there: Tensor = pool(mask.reshape(-1, *grid), window, Max(), ndim=len(grid))
    return there.reshape(mask.shape[0], prod(outputs))


def _window(
    grid: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    before: tuple[int, ...],
) -> tuple[Sliding, list[int]]:
    """The window of `pool_grid` and the sizes it leaves."""
    axes = list(zip(grid, kernel, stride, before, strict=True))
    outputs = [-(-length // step) for length, _, step, _ in axes]
    padding = tuple(
        (start, max((out - 1) * step + size - start - length, 0))
        for (length, size, step, start), out in zip(axes, outputs, strict=True)
    )
    return Sliding(kernel, stride, padding), outputs


def check_tokens(x: Any, name: str = "tokens") -> None:
    """Refuse what is not a batch of tokens of a floating dtype."""
    if not isinstance(x, Tensor):
        raise PoolTypeError(
            f"{name} must be a torch tensor, got {type(x).__name__}", "Use torch.as_tensor"
        )
    if x.is_nested or x.ndim != 3:
        got = "a nested tensor" if x.is_nested else f"rank {x.ndim}"
        raise PoolValueError(
            f"{name} have the shape (batch, tokens, channels), got {got}",
            "Add a batch of one with x[None], or pad a nested tensor and give a mask",
        )
    if not x.is_floating_point():
        raise PoolTypeError(f"{name} must be floating, got {x.dtype}", "Convert with x.float()")


def checked_mask(mask: Any, x: Tensor) -> Tensor | None:
    """The mask of tokens, events or entries as bools (N, T) on their device, or None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise PoolTypeError(
            f"a mask must be a torch tensor, got {type(mask).__name__}", "Use torch.as_tensor"
        )
    if mask.shape != x.shape[:2]:
        raise PoolValueError(
            f"the mask has shape {tuple(mask.shape)}, what it is of {tuple(x.shape[:2])}",
            "Give one truth value for each place",
        )
    if mask.is_floating_point() or mask.is_complex():
        raise PoolTypeError(
            f"a mask holds bools, or 0 and 1, got {mask.dtype}",
            "Give mask.bool(), or mask == 0 for an additive one",
        )
    return mask.to(device=x.device, dtype=torch.bool)


def checked_class_tokens(class_tokens: Any, x: Tensor) -> int:
    count = checked_size("class_tokens", class_tokens, least=0)
    if count > x.shape[1]:
        raise PoolValueError(
            f"there are {count} class tokens among {x.shape[1]} tokens", "Give fewer class_tokens"
        )
    return count


def _checked_stride(stride: Any, kernel_size: int) -> int:
    return kernel_size if stride is None else checked_size("stride", stride)
