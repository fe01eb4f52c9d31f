"""How a torch tensor lies in memory, and tensors that lie the same way."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Layout",
    "as_laid_out",
    "channels_behind",
    "empty_like_layout",
    "has_format",
    "laid_out_like",
]


class Layout(NamedTuple):
    """The sizes in front of and behind the spatial axes, in memory order.

    Attributes:
        outer: elements in front: batch and channels, or the batch alone for channels behind.
        inner: 1, or the channels.
        behind: whether the channels lie behind the spatial axes.
    """

    outer: int
    inner: int
    behind: bool


_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def has_format(x: Tensor, ndim: int) -> bool:
    """Whether torch has a memory format with the channels behind for this rank."""
    return x.ndim == ndim + 2 and ndim in _FORMATS


def _channels_behind(x: Tensor, ndim: int) -> bool:
    """Whether x is dense with its channels (the axis before the spatial ones) fastest."""
    if has_format(x, ndim):
        return x.is_contiguous(memory_format=_FORMATS[ndim])
    if x.ndim <= ndim:
        return False
    return x.movedim(-ndim - 1, -1).is_contiguous()


def _prefers_channels_behind(x: Tensor, ndim: int) -> bool:
    """For a tensor that is not dense: torch's own choice of the format to make it dense in."""
    if not has_format(x, ndim):
        return False
    strides = x.stride()
    if strides[1] == 0:
        return False
    smallest = 0
    for axis in (1, *range(x.ndim - 1, 1, -1), 0):
        size, stride = x.shape[axis], strides[axis]
        # Where the batch would not lie behind the rest the strides say nothing: channels first.
        if size == 0 or stride < smallest or (axis == 0 and smallest == strides[1]):
            return False
        smallest = stride * (size if size > 1 else 1)
    return True


def _layout(x: Tensor, ndim: int) -> tuple[bool, bool]:
    """Whether x is dense in one of the two layouts, and whether its channels lie behind."""
    if x.is_contiguous():
        # With one channel or one pixel both layouts are dense; torch then goes by the strides.
        both = has_format(x, ndim) and _channels_behind(x, ndim)
        return True, both and _prefers_channels_behind(x, ndim)
    if _channels_behind(x, ndim):
        return True, True
    return False, _prefers_channels_behind(x, ndim)


def channels_behind(x: Tensor, ndim: int) -> bool:
    """Whether what is made of x has its channels behind the spatial axes."""
    return _layout(x, ndim)[1]


def as_laid_out(x: Tensor, ndim: int) -> tuple[Tensor, Layout]:
    """x itself if it is dense in one of the two layouts, else a copy that is; and its layout."""
    dense, behind = _layout(x, ndim)
    if not dense:
        x = x.contiguous(memory_format=_FORMATS[ndim]) if behind else x.contiguous()
    lead = x.shape[: x.ndim - ndim]
    if behind:
        return x, Layout(math.prod(lead[:-1]), lead[-1], True)
    return x, Layout(math.prod(lead), 1, False)


def empty_like_layout(
    x: Tensor, ndim: int, spatial: tuple[int, ...], dtype: torch.dtype, behind: bool
) -> Tensor:
    """An uninitialised tensor with x's axes in front, `spatial`, and the given layout."""
    lead = x.shape[: x.ndim - ndim]
    if not behind:
        shape = (*lead, *spatial)
        return x.new_empty(shape) if dtype is x.dtype else x.new_empty(shape, dtype=dtype)
    if has_format(x, ndim):
        return torch.empty(
            (*lead, *spatial), dtype=dtype, device=x.device, memory_format=_FORMATS[ndim]
        )
    dense = torch.empty((*lead[:-1], *spatial, lead[-1]), dtype=dtype, device=x.device)
    return dense.movedim(-1, -ndim - 1)


def laid_out_like(x: Tensor, out: Tensor, ndim: int) -> Tensor:
    """`out` in the layout of `x`, of which it is the pooled version."""
    _, behind = _layout(x, ndim)
    wanted = empty_like_layout(x, ndim, tuple(out.shape[x.ndim - ndim :]), out.dtype, behind)
    if out.stride() == wanted.stride():
        return out
    return wanted.copy_(out)
