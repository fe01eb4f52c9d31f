"""Attention over fewer queries, keys or values: pooled before they meet."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..reductions import Max, Mean, Sum
from ..torch.plain import real_dtype
from .tokens import (
    check_tokens,
    checked_class_tokens,
    checked_mask,
    pool_grid,
    pool_mask,
)

__all__ = ["BlockMeanKV", "PooledAttention", "block_mean_attention"]

POOLED = {"query": "q", "kv": "kv", "qkv": "qkv"}
MODES = ("mean", "max", "conv")
# Elements of keys that are gathered at a time.
GATHERED = 2**22


class PooledAttention(nn.Module):
    """Self-attention whose queries, or keys and values, are pooled after their projection.

    Args:
        embed_dim: channels C of the tokens.
        num_heads: heads, each with embed_dim / num_heads channels.
        pool: "query" (as many outputs as pooled queries: Funnel-Transformer), "kv" (all outputs,
            over fewer keys) or "qkv" (both: MViT).
        stride: tokens between two windows; with ``ndim=2`` one integer or (vertical, horizontal).
        kernel_size: tokens in a window; None is the stride. A window that is larger than its
            stride starts (kernel_size - 1) // 2 before, as in MViT.
        mode: "mean", "max" or "conv": a depthwise convolution, the same for all heads and one
            each for queries, keys and values. It starts as the mean of a full window.
        class_tokens: how many tokens in front are never pooled.
        residual_pooling: add the (pooled) queries to what they attended to, before the output
            projection: MViTv2.
        ndim: 1 for a sequence, 2 for the tokens of an image in row-major order.
        bias: of the projections.
        dropout: of the attention weights, in training.

    Shape: tokens (N, T, C), an optional mask (N, T), True where a token is there, and for two axes
    ``grid=(H, W)`` with T = class_tokens + H * W. Returns the outputs (N, T', C) and their mask
    (None without one): T' is T, or where queries are pooled class_tokens plus
    ``ceil(size / stride)`` along each axis. Masked tokens are no keys and are not pooled; in mode
    "conv" they are zeros. A query without any key gets the output projection of zeros.

    The state dict is that of ``torch.nn.MultiheadAttention``, and with ``stride=1`` (and
    ``kernel_size=1``) the outputs are too.

    Raises:
        PoolValueError, PoolTypeError: for sizes, shapes or dtypes that do not fit.

    Sources: Dai et al., "Funnel-Transformer" (2020); Fan et al., "Multiscale Vision Transformers"
    (2021); Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and
    Detection" (2022).

    >>> import torch, poolkit
    >>> attention = poolkit.nn.PooledAttention(32, 4, pool="query", stride=2, class_tokens=1)
    >>> attention(torch.randn(2, 101, 32))[0].shape
    torch.Size([2, 51, 32])
    >>> attention = poolkit.nn.PooledAttention(32, 4, stride=2, kernel_size=3, mode="conv", ndim=2)
    >>> attention(torch.randn(2, 14 * 14, 32), grid=(14, 14))[0].shape
    torch.Size([2, 196, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pool: str = "kv",
        stride: int | Sequence[int] = 2,
        kernel_size: int | Sequence[int] | None = None,
        mode: str = "mean",
        class_tokens: int = 0,
        residual_pooling: bool = False,
        ndim: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim = checked_size("embed_dim", embed_dim)
        self.num_heads = checked_size("num_heads", num_heads)
        if embed_dim % num_heads:
            raise PoolValueError(
                f"{embed_dim} channels do not divide among {num_heads} heads",
                "Make embed_dim a multiple of num_heads",
            )
        _check_choice("pool", pool, tuple(POOLED))
        _check_choice("mode", mode, MODES)
        if ndim not in (1, 2):
            raise PoolValueError(f"ndim must be 1 or 2, got {ndim!r}", "Write one of them")
        self.pool, self.mode, self.ndim = pool, mode, ndim
        self.reduction = Max() if mode == "max" else Mean()
        self.stride = _per_axis("stride", stride, ndim)
        self.kernel_size = _per_axis(
            "kernel_size", stride if kernel_size is None else kernel_size, ndim
        )
        self.class_tokens = checked_size("class_tokens", class_tokens, least=0)
        self.residual_pooling = bool(residual_pooling)
        self.dropout = _checked_dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        if mode == "conv":
            shape = (embed_dim // num_heads, 1, *self.kernel_size)
            self.pool_weight = nn.ParameterDict(
                {name: nn.Parameter(torch.empty(shape)) for name in POOLED[pool]}
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        if self.mode == "conv":
            for weight in self.pool_weight.values():
                nn.init.constant_(weight, 1 / prod(self.kernel_size))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        try:
            sizes = self._sizes(x, grid)
            seen = checked_mask(mask, x)
            if seen is not None:  # not even a NaN counts there
                x = x.masked_fill(~seen[..., None], 0)
            projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            masks = [seen] * 3
            found = list(projected)
            for at, name in enumerate("qkv"):
                if name in POOLED[self.pool]:
                    found[at], masks[at] = self._pooled(name, projected[at], seen, sizes)
            query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in found)
            keys = masks[1]
            out = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                attn_mask=None if keys is None else keys[:, None, None, :],
                dropout_p=self.dropout if self.training else 0.0,
            ).transpose(1, 2)
            if self.residual_pooling:
                out = out + query
            return self.out_proj(out.flatten(-2)), masks[0]
        except PoolError as error:
            raise error.during(f"{describe(x)} by PooledAttention") from None

    def pooled_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of the outputs, for the next layer: as it is unless queries are pooled.

        >>> import poolkit
        >>> poolkit.nn.PooledAttention(8, 2, pool="qkv", stride=2, ndim=2).pooled_grid((14, 7))
        (7, 4)
        """
        if "q" not in POOLED[self.pool]:
            return tuple(grid)
        return tuple(-(-size // step) for size, step in zip(grid, self.stride, strict=True))

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, {self.num_heads}, pool={self.pool!r}, stride={self.stride}, "
            f"kernel_size={self.kernel_size}, mode={self.mode!r}, class_tokens={self.class_tokens}"
        )

    def _sizes(self, x: Tensor, grid: Any) -> tuple[int, ...]:
        check_tokens(x)
        if x.shape[2] != self.embed_dim:
            raise PoolValueError(
                f"tokens have {x.shape[2]} channels, not embed_dim={self.embed_dim}",
                "Give the number of channels as embed_dim",
            )
        rest = x.shape[1] - self.class_tokens
        if rest < 0:
            raise PoolValueError(
                f"there are {self.class_tokens} class tokens among {x.shape[1]} tokens",
                "Give fewer class_tokens",
            )
        if self.ndim == 1:
            if grid is not None:
                raise PoolTypeError("a sequence has no grid", "Make the module with ndim=2")
            return (rest,)
        if grid is None:
            raise PoolTypeError("tokens of an image need their grid", "Give grid=(H, W)")
        sizes = tuple(grid)
        if len(sizes) != 2 or prod(sizes) != rest:
            raise PoolValueError(
                f"a grid of {' x '.join(map(str, sizes))} does not hold {rest} tokens",
                f"Give (H, W) of the tokens behind {self.class_tokens} class tokens",
            )
        return sizes

    def _pooled(
        self, name: str, x: Tensor, mask: Tensor | None, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Queries, keys or values (N, T, C), pooled behind the class tokens, and their mask."""
        first = self.class_tokens
        rest, seen = x[:, first:], None if mask is None else mask[:, first:]
        before = tuple(
            (k - 1) // 2 if k > s else 0 for k, s in zip(self.kernel_size, self.stride, strict=True)
        )
        window = (sizes, self.kernel_size, self.stride, before)
        if self.mode == "conv":
            there = None
            if seen is not None:
                rest = rest.masked_fill(~seen[..., None], 0)
                there = pool_mask(seen, *window)
            pooled = self._convolved(rest, self.pool_weight[name], *window)
        else:
            pooled, there = pool_grid(rest, seen, *window, self.reduction)
        if first == 0:
            return pooled, there
        if mask is not None and there is not None:
            there = torch.cat([mask[:, :first], there], 1)
        return torch.cat([x[:, :first], pooled], 1), there

    def _convolved(
        self,
        x: Tensor,
        weight: Tensor,
        sizes: tuple[int, ...],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        before: tuple[int, ...],
    ) -> Tensor:
        batch, _, channels = x.shape
        if 0 in sizes:
            return x
        images = x.transpose(1, 2).reshape(batch, channels, *sizes)
        padding: list[int] = []
        for size, k, s, start in zip(sizes, kernel, stride, before, strict=True):
            padding = [start, max((-(-size // s) - 1) * s + k - start - size, 0), *padding]
        images = F.pad(images, padding)
        convolution = F.conv1d if self.ndim == 1 else F.conv2d
        shared = weight.repeat(self.num_heads, *[1] * (weight.ndim - 1))
        return convolution(images, shared, None, stride, groups=channels).flatten(2).transpose(1, 2)


def block_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_size: int,
    mask: Tensor | None = None,
    causal: bool = False,
    local: bool = True,
    dropout: float = 0.0,
    scale: float | None = None,
    class_tokens: int = 0,
) -> Tensor:
    """Attention that sees its own block of tokens in full, and each other one as a mean.

    Tokens are cut into blocks of `block_size`, the last being shorter where they do not come out
    even. A query attends to the tokens of its own block and to the mean key and mean value of each
    other block, whose logit is raised by log n for its n tokens, so that it weighs as much as they.
    Where the keys within each block are equal, this is full attention exactly.

    Args:
        query, key, value: (N, heads, T, D), of the same T.
        block_size: tokens in a block. sqrt(T) costs least: the time is that of
            T * (T / block_size + block_size) products of D, full attention's T * T.
        mask: (N, T), True (or 1) where a token is there; others are no keys and in no mean.
        causal: a query sees the means of the blocks before its own, and of its own block the
            tokens up to itself.
        local: whether the own block is seen in full. Otherwise it is a mean as the others.
        dropout: of the attention weights.
        scale: of the logits before log n is added; None is 1 / sqrt(D).
        class_tokens: how many tokens in front are in no block: all queries see them in full, and
            they see each other in full.

    Returns:
        (N, heads, T, D). A query that sees no token gets zeros.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes or dtypes that do not fit, and for
            ``causal`` without ``local``.

    Memory: without gradients that of the means and of a few million numbers; with them, up to
    T * (1 + T / block_size**2) keys and values are kept.

    Sources: memory-compressed attention of Liu et al., "Generating Wikipedia by Summarizing Long
    Sequences" (2018); the compressed branch of Yuan et al., "Native Sparse Attention" (2025).
    Both learn how to compress; the mean with log n, as in the proportional attention of Bolya et
    al. (2023), needs no training.

    >>> import torch, poolkit
    >>> x = torch.randn(1, 2, 6, 4).repeat_interleave(8, 2)
    >>> full = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> torch.allclose(poolkit.block_mean_attention(x, x, x, 8), full, atol=1e-6)
    True
    """
    try:
        seen = _checked_heads(query, key, value, mask)
        size = checked_size("block_size", block_size)
        dropout = _checked_dropout(dropout)
        if causal and not local:
            raise PoolTypeError(
                "a causal query cannot see its own block as a mean: that has tokens behind it",
                "Leave local=True",
            )
        first = checked_class_tokens(class_tokens, query.transpose(1, 2))
        if query.shape[2] == 0 or query.shape[0] == 0:
            return value.new_zeros(value.shape)
        if seen is not None:  # a weight of 0 would keep a NaN
            absent = ~seen[:, None, :, None]
            key, value = key.masked_fill(absent, 0), value.masked_fill(absent, 0)
        bias = key.new_zeros(key.shape[0], key.shape[2], dtype=_mask_dtype(key))
        if seen is not None:
            bias = bias.masked_fill(~seen, float("-inf"))
        tokens = _Keys(key, value, bias)
        far = tokens.part(0, first).join(_block_means(tokens.part(first), seen, first, size))
        if not local:
            return far.seen_by(query, dropout, scale)
        parts = []
        if first:
            front = query[:, :, :first]
            own = tokens.part(0, first)
            hidden = None if not causal else _behind(first, query.device)
            parts.append((own if causal else far).seen_by(front, dropout, scale, hidden))
        if first < query.shape[2]:
            near = tokens.part(first)
            behind = query[:, :, first:]
            parts.append(_far_and_near(behind, far, near, first, size, causal, dropout, scale))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]
    except PoolError as error:
        raise error.during(f"{describe(query)} by block_mean_attention") from None


class BlockMeanKV(nn.Module):
    """Attention over block means: `poolkit.block_mean_attention` as a module, without parameters,
    in the place of ``scaled_dot_product_attention``.

    Args:
        block_size, causal, local, class_tokens: as for `poolkit.block_mean_attention`.
        dropout: of the attention weights, in training.

    Shape: query, key and value (N, heads, T, D), and an optional mask (N, T), to (N, heads, T, D).

    Sources: Liu et al. (2018); Yuan et al., "Native Sparse Attention" (2025).

    >>> import torch, poolkit
    >>> x = torch.randn(2, 4, 1000, 16)
    >>> poolkit.nn.BlockMeanKV(32, causal=True)(x, x, x).shape
    torch.Size([2, 4, 1000, 16])
    """

    def __init__(
        self,
        block_size: int,
        causal: bool = False,
        local: bool = True,
        dropout: float = 0.0,
        class_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.block_size = checked_size("block_size", block_size)
        self.causal, self.local = bool(causal), bool(local)
        self.class_tokens = checked_size("class_tokens", class_tokens, least=0)
        self.dropout = _checked_dropout(dropout)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return block_mean_attention(
            query,
            key,
            value,
            self.block_size,
            mask,
            self.causal,
            self.local,
            dropout,
            class_tokens=self.class_tokens,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.block_size}, causal={self.causal}, local={self.local}, "
            f"class_tokens={self.class_tokens}"
        )


class _Keys(NamedTuple):
    """Keys and values (N, heads, S, D), and what is added to the logit of each (N, S)."""

    key: Tensor
    value: Tensor
    bias: Tensor

    def part(self, start: int, end: int | None = None) -> _Keys:
        return _Keys(
            self.key[:, :, start:end], self.value[:, :, start:end], self.bias[:, start:end]
        )

    def join(self, more: _Keys) -> _Keys:
        return _Keys(
            torch.cat([self.key, more.key], 2),
            torch.cat([self.value, more.value], 2),
            torch.cat([self.bias, more.bias], 1),
        )

    def seen_by(
        self, query: Tensor, dropout: float, scale: float | None, hidden: Tensor | None = None
    ) -> Tensor:
        """Attention, where `hidden` (queries, S) is False."""
        bias = self.bias[:, None, None]
        if hidden is not None:
            bias = bias.expand(-1, -1, len(hidden), -1).masked_fill(hidden, float("-inf"))
        return F.scaled_dot_product_attention(
            query, self.key, self.value, attn_mask=bias, dropout_p=dropout, scale=scale
        )


def _block_means(tokens: _Keys, mask: Tensor | None, first: int, size: int) -> _Keys:
    """The mean keys and values of the blocks of these tokens, and log n of each."""
    batch, heads, length, _ = tokens.key.shape
    grid = ((length,), (size,), (size,), (0,))
    there = None if mask is None else mask[:, first:]

    def mean(x: Tensor) -> Tensor:
        pooled, _ = pool_grid(x.transpose(1, 2).flatten(2), there, *grid, Mean())
        return pooled.unflatten(-1, (heads, x.shape[3])).transpose(1, 2)

    ones = tokens.bias.new_ones(batch, length, 1)
    count, _ = pool_grid(ones, there, *grid, Sum())
    return _Keys(mean(tokens.key), mean(tokens.value), count[..., 0].log())


def _far_and_near(
    query: Tensor,
    far: _Keys,
    near: _Keys,
    first: int,
    size: int,
    causal: bool,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """One softmax over class tokens, the means of other blocks and the tokens of the own one, for
    a few blocks of queries at a time."""
    batch, heads, length, depth = query.shape
    blocks = -(-length // size)
    none, extra = float("-inf"), blocks * size - length
    query, key, value = (F.pad(x, (0, 0, 0, extra)) for x in (query, near.key, near.value))
    near_bias = F.pad(near.bias, (0, extra), value=none)
    behind = _behind(size, query.device)
    every = torch.arange(blocks, device=query.device)
    step = max(1, GATHERED // (batch * heads * (blocks + size) * depth))
    parts = []
    for start in range(0, blocks, step):
        end = min(start + step, blocks)
        some, tokens = end - start, slice(start * size, end * size)

        def cut(x: Tensor, tokens: slice = tokens, some: int = some) -> Tensor:
            """(N, some, heads, size, D)."""
            return x[:, :, tokens].unflatten(2, (some, size)).transpose(1, 2)

        def joined(far: Tensor, x: Tensor, some: int = some) -> Tensor:
            far = far[:, None].expand(batch, some, *far.shape[1:])
            return torch.cat([far, x], 3).flatten(0, 1)

        own = every[start:end, None]
        hidden = F.pad(every >= own if causal else every == own, (first, 0))
        far_part = far.bias[:, None].masked_fill(hidden, none)[:, :, None]
        near_part = near_bias[:, tokens].unflatten(1, (some, size))[:, :, None]
        if causal:
            far_part = far_part.expand(-1, -1, size, -1)
            near_part = near_part.expand(-1, -1, size, -1).masked_fill(behind, none)
        out = F.scaled_dot_product_attention(
            cut(query).flatten(0, 1),
            joined(far.key, cut(key)),
            joined(far.value, cut(value)),
            attn_mask=torch.cat([far_part, near_part], 3).flatten(0, 1)[:, None],
            dropout_p=dropout,
            scale=scale,
        )
        parts.append(out.unflatten(0, (batch, some)).transpose(1, 2).flatten(2, 3))
    return torch.cat(parts, 2)[:, :, :length]


def _behind(size: int, device: torch.device) -> Tensor:
    """(size, size): whether a key is behind a query."""
    order = torch.arange(size, device=device)
    return order > order[:, None]


def _mask_dtype(x: Tensor) -> torch.dtype:
    """Of what is added to logits: log n has more digits than a half type, where that is allowed."""
    return real_dtype(x.dtype) if x.device.type == "cpu" else x.dtype


def _checked_heads(query: Any, key: Any, value: Any, mask: Any) -> Tensor | None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise PoolTypeError(
                f"{name} must be a torch tensor, got {type(x).__name__}", "Use torch.as_tensor"
            )
        if x.ndim != 4 or not x.is_floating_point():
            raise PoolValueError(
                f"{name} must be a floating tensor (batch, heads, tokens, channels), "
                f"got {describe(x)}",
                "Split the channels into heads: x.unflatten(-1, (heads, -1)).transpose(1, 2)",
            )
    if query.shape != key.shape or key.shape[:3] != value.shape[:3]:
        raise PoolValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} "
            "are not of the same tokens",
            "Blocks are those of self-attention; pool the keys of another sequence yourself",
        )
    return checked_mask(mask, query.transpose(1, 2))


def _checked_dropout(dropout: Any) -> float:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise PoolValueError(
            f"dropout must be a number from 0 to 1, got {dropout!r}", "Write dropout=0.0"
        )
    return float(dropout)


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PoolValueError(
            f"{name} must be one of {', '.join(known)}, got {value!r}", "Write one of them"
        )


def _per_axis(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    if len(entries) != ndim:
        raise PoolValueError(
            f"{name} has {len(entries)} entries for {ndim} axes", f"Give one integer, or {ndim}"
        )
    return tuple(checked_size(name, entry) for entry in entries)
