"""Mixtures of max and average pooling, in proportions that are given, learned, or answer to the
window, and trees of learned linear poolings (Lee, Gallagher and Tu, "Generalizing pooling functions
in convolutional neural networks: mixed, gated, and tree", 2016).

What a gate or a leaf sees of a window is its inner product with a filter: a depthwise convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, describe
from ..functional import Size, new_sliding, sliding
from ..reductions import Max, Mean
from ..windows import Sliding
from .learned import across_channels, learnable, told_of
from .maps import check_floating
from .placed import Windowed
from .registry import listed

__all__ = ["GatedPool2d", "MixedPool2d", "TreePool2d", "mixed_pool2d"]

PAPER = "Lee et al. 2016, Generalizing pooling functions in convolutional neural networks"
MAX, MEAN = Max(), Mean(count_include_pad=False)


def mixed_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    alpha: float | Tensor = 0.5,
) -> Tensor:
    """A mixture of the largest value and the mean of each window: α max + (1 - α) mean.

    Args:
        input: (N, C, H, W) or (C, H, W), a tensor of a floating dtype.
        kernel_size, stride, padding: as for `poolkit.Sliding`. Padding is never a value, and does
            not count in the mean.
        alpha: the share of the max, from 0 to 1; a tensor, of one element or of one for each
            channel, has a gradient, and is not looked at.

    Returns:
        The mixtures, in the input's dtype; with an alpha of 0 or 1 exactly the mean or the max.

    Raises:
        PoolError: for shapes, sizes, dtypes and shares that cannot be pooled with.

    Source: Lee, Gallagher and Tu, "Generalizing pooling functions in convolutional neural
    networks: mixed, gated, and tree" (2016).

    >>> mixed_pool2d(torch.tensor([[[1.0, 7.0]]]), (1, 2), alpha=0.25)  # 7/4 + 3/4 * 4
    tensor([[[4.7500]]])
    """
    try:
        share = _share(alpha) if not isinstance(alpha, Tensor) else alpha
        x, window = _entering(input, kernel_size, stride, padding)
        if isinstance(share, Tensor):
            share = across_channels("alpha", share, input).to(x.dtype)
        return _mixed(x, window, share).to(input.dtype)
    except PoolError as error:
        raise error.during(f"{describe(input)} by mixed_pool2d") from None


class _Mixture(Windowed):
    """What has a sliding window, checked when it is made, and perhaps a filter that large."""

    def __init__(self, kernel_size: Size, stride: Size | None, padding: Any) -> None:
        super().__init__(kernel_size, stride, padding)
        self._kernel = new_sliding(2, kernel_size, stride, padding, 1, False).sizes(2)[0]


@listed(
    "mixed",
    kind="window",
    formula="α max x + (1 - α) Σ x / n",
    parameters="α: 1, or C with per_channel",
    gradient="(1 - α)/n to each value, and α more to the first largest",
    cost="a maximum and an average",
    paper=PAPER,
)
class MixedPool2d(_Mixture):
    """`mixed_pool2d` as a module, whose proportion is learned.

    Args:
        kernel_size, stride, padding: as for `mixed_pool2d`.
        alpha: the share of the max, or what it is to begin with.
        learned: whether alpha is a parameter, of shape (1,). Nothing keeps it between 0 and 1.
        per_channel, channels: whether it has one number for each channel, and how many these are.

    Raises:
        PoolError: for numbers out of range, and for per_channel without channels.

    >>> pool = MixedPool2d(2, per_channel=True, channels=8)
    >>> pool(torch.rand(2, 8, 6, 6)).shape, pool.alpha.shape
    (torch.Size([2, 8, 3, 3]), torch.Size([8]))
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        alpha: float = 0.5,
        learned: bool = True,
        per_channel: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.alpha = learnable("alpha", _share(alpha), learned, per_channel, channels)

    def forward(self, input: Tensor) -> Tensor:
        return mixed_pool2d(input, self.kernel_size, self.stride, self.padding, self.alpha)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={told_of(self.alpha)}"


@listed(
    "gated",
    kind="window",
    formula="g max x + (1 - g) Σ x / n, g = sigmoid(Σ w x)",
    parameters="w: k², or C k² with per_channel",
    gradient="as mixed, and through the gate g (1 - g) (max - mean) w to all values",
    cost="a maximum, an average and a depthwise convolution",
    paper=PAPER,
)
class GatedPool2d(_Mixture):
    """A mixture of max and mean whose proportion answers to the window: the gate is the sigmoid of
    its inner product with a learned filter.

    Args:
        kernel_size, stride, padding: as for `mixed_pool2d`; to the filter padding is 0.
        per_channel, channels: whether each channel has a filter of its own, and how many these
            are; else all channels share one.
        bias: whether a number is added to each inner product, which the paper does not.

    The filters are zeros to begin with, so that the gates are 1/2.

    Raises:
        PoolError: for sizes out of range, and for per_channel without channels.

    Source: Lee, Gallagher and Tu (2016), see `mixed_pool2d`.

    >>> GatedPool2d((1, 2))(torch.tensor([[[1.0, 7.0]]])).item()  # half of 7 and half of 4
    5.5
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        per_channel: bool = False,
        channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        filters = _filters(per_channel, channels)
        self.weight = nn.Parameter(torch.zeros(filters, 1, *self._kernel))
        self.bias = nn.Parameter(torch.zeros(filters)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        try:
            x, window = _entering(input, self.kernel_size, self.stride, self.padding)
            products = _products(x, window, self.weight, self.bias)[..., 0, :, :]
            return _mixed(x, window, products.sigmoid().to(x.dtype)).to(input.dtype)
        except PoolError as error:
            raise error.during(f"{describe(input)} by GatedPool2d") from None


@listed(
    "tree",
    kind="window",
    formula="f = Σ v x in a leaf, g f_left + (1 - g) f_right above, g = sigmoid(Σ w x)",
    parameters="v and w: (2^levels - 1) k², times C with per_channel",
    gradient="to all values, by the filters of the leaves and through the gates",
    cost="a depthwise convolution of 2^levels - 1 filters",
    paper=PAPER,
)
class TreePool2d(_Mixture):
    """A binary tree of learned poolings: a leaf is the inner product of the window with a filter,
    a node above mixes its two children by a gate as that of `GatedPool2d`.

    Args:
        kernel_size, stride, padding: as for `mixed_pool2d`; to the filters padding is 0.
        levels: of the tree, with ``2^(levels - 1)`` leaves: 1 is one linear filter.
        per_channel, channels: whether each channel has a tree of its own, and how many these are;
            else all channels share one.

    ``leaves`` (leaves, filters, kh, kw) are averages to begin with, with a little noise to tell
    them apart; ``gates`` (leaves - 1, filters, kh, kw) are zeros, the root first, then each level
    from left to right.

    Raises:
        PoolError: for sizes out of range, and for per_channel without channels.

    Source: Lee, Gallagher and Tu (2016), see `mixed_pool2d`.

    >>> TreePool2d(2, levels=3)
    TreePool2d(kernel_size=2, stride=2, padding=0, levels=3)
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        levels: int = 2,
        per_channel: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= 10:
            raise PoolValueError(
                f"levels must be an integer from 1 to 10, got {levels!r}",
                "Each level doubles the leaves: write 2 or 3",
            )
        self.levels = levels
        filters, leaves = _filters(per_channel, channels), 2 ** (levels - 1)
        self.leaves = nn.Parameter(torch.empty(leaves, filters, *self._kernel))
        self.gates = nn.Parameter(torch.empty(leaves - 1, filters, *self._kernel))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        mean = 1 / math.prod(self._kernel)
        nn.init.normal_(self.leaves, mean, mean / 10)
        if self.levels > 1:  # torch warns of filling nothing
            nn.init.zeros_(self.gates)

    def forward(self, input: Tensor) -> Tensor:
        try:
            x, window = _entering(input, self.kernel_size, self.stride, self.padding)
            filters = torch.cat((self.gates, self.leaves)).transpose(0, 1)
            nodes = list(_products(x, window, filters, None).unbind(-3))
            # As a heap: the children of node n are 2n + 1 and 2n + 2.
            for node in reversed(range(len(self.gates))):
                gate = nodes[node].sigmoid()
                nodes[node] = gate * nodes[2 * node + 1] + (1 - gate) * nodes[2 * node + 2]
            return nodes[0].to(input.dtype)
        except PoolError as error:
            raise error.during(f"{describe(input)} by TreePool2d") from None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, levels={self.levels}"


def _entering(input: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[Tensor, Sliding]:
    """The input, of half types in float32, so that the mixture is rounded once; and its window."""
    check_floating(input, "a mixture is")
    window = sliding(input, "a mixture", 2, kernel_size, stride, padding, 1, False)
    assert isinstance(window, Sliding)
    return input.float() if input.dtype.itemsize == 2 else input, window


def _mixed(x: Tensor, window: Sliding, share: float | Tensor) -> Tensor:
    # With a share of 0 the other one, which may be infinite, does not come in at all.
    if isinstance(share, float) and share in (0.0, 1.0):
        only: Tensor = pool(x, window, MAX if share else MEAN, ndim=2)
        return only
    largest, mean = (pool(x, window, by, ndim=2) for by in (MAX, MEAN))
    mixed: Tensor = share * largest + (1 - share) * mean
    return mixed


def _products(x: Tensor, window: Sliding, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The inner products of each window with filters: (..., C, F, h, w).

    Args:
        filters: (C, F, kh, kw), or (1, F, kh, kw) for all channels alike.
        bias: (C,) or (1,), with one filter for each channel.
    """
    channels = x.shape[-3]
    groups, each, *kernel = filters.shape
    if groups not in (1, channels):
        raise PoolValueError(
            f"the input has {channels} channels, the filters are for {groups}",
            f"Make the module with channels={channels}",
        )
    weight = filters.expand(channels, each, *kernel).reshape(channels * each, 1, *kernel)
    if bias is not None:
        bias = bias.expand(channels).to(x.dtype)
    window.output_shape(tuple(x.shape[-2:]))  # refuses an input that is too small
    _, stride, _ = window.sizes(2)
    pads = window.pads(2)
    if pads is not None and all(before == after for before, after in pads):
        padding = tuple(before for before, _ in pads)
    else:
        x, padding = _padded(x, window), (0, 0)
    batch = x if x.ndim == 4 else x[None]
    found = F.conv2d(batch, weight.to(x.dtype), bias, stride, padding, groups=channels)
    # Not -1 for the channels: the batch may be empty.
    found = found.reshape(*batch.shape[:1], channels, each, *found.shape[-2:])
    return found if x.ndim == 4 else found[0]


def _padded(x: Tensor, window: Sliding) -> Tensor:
    """With zeros, as far as windows reach, by amounts that may differ between sides."""
    spatial = tuple(x.shape[-2:])
    kernel, stride, _ = window.sizes(2)
    pads = []
    for axis, (size, outputs) in enumerate(zip(spatial, window.output_shape(spatial), strict=True)):
        field = window.receptive_field(spatial)[axis]
        before = round((field.size - 1) / 2 - field.offset)
        reach = (outputs - 1) * stride[axis] + kernel[axis]
        pads.append((before, max(reach - size - before, 0)))
    return F.pad(x, (*pads[1], *pads[0]))


def _filters(per_channel: bool, channels: Any) -> int:
    made = learnable("a filter", 0.0, True, per_channel, channels)
    assert isinstance(made, nn.Parameter)
    return len(made)


def _share(alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise PoolTypeError(f"alpha must be a number, got {alpha!r}", "Give one from 0 to 1")
    if not 0 <= alpha <= 1:
        raise PoolValueError(
            f"alpha must lie between 0 and 1, got {alpha}", "It is the share of the max"
        )
    return float(alpha)
