"""Fewer tokens by merging those that are alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..torch.plain import real_dtype
from .tokens import check_tokens, checked_class_tokens, checked_mask

__all__ = ["MergedTokens", "TokenMerge", "token_merge", "token_unmerge"]

# Similarities that are held at a time.
SIMILARITIES = 2**22


class MergedTokens(NamedTuple):
    """What `token_merge` returns.

    Attributes:
        tokens: (N, T - r, C), in the order of the tokens they stand for, padding behind.
        sizes: (N, T - r), float32: how many tokens each stands for, 0 for padding.
        source: (N, T), int64: into which of `tokens` each token went, -1 for padding.
        mask: (N, T - r), True where there is a token; None where no mask was given.
    """

    tokens: Tensor
    sizes: Tensor
    source: Tensor
    mask: Tensor | None

    def attention_bias(self) -> Tensor:
        """log(sizes), (N, 1, 1, T - r): added to the logits of attention, it counts a merged token
        as often as there are tokens in it ("proportional attention"), and padding not at all. For
        ``scaled_dot_product_attention(query, key, value, attn_mask=merged.attention_bias())``."""
        return self.sizes.log()[:, None, None, :]


def token_merge(
    x: Tensor,
    r: int,
    metric: Tensor | None = None,
    sizes: Tensor | None = None,
    class_tokens: int = 1,
    mask: Tensor | None = None,
) -> MergedTokens:
    """Merges r pairs of similar tokens, by bipartite soft matching.

    Behind the class tokens, the 1st, 3rd, 5th ... token is in set A and the others in set B. Each
    token of A is matched with the token of B whose metric has the largest cosine with its own;
    the r best matches are merged: the token of B becomes the mean of all that came together in
    it, each weighted by its size, and takes the sum of their sizes. So the sum of size * token
    is kept.

    Args:
        x: tokens (N, T, C), of a floating dtype.
        r: pairs to merge, at most half of the tokens behind the class tokens: more merges half.
        metric: (N, T, D), what is compared; the paper takes the keys of the attention before,
            averaged over the heads. None compares x itself.
        sizes: (N, T), tokens that each one stands for: those of an earlier merge. None is 1 each.
        class_tokens: how many tokens in front are kept out of it.
        mask: (N, T), True (or 1) where a token is there. Sets A and B count the tokens that are
            there only, so the padding and its side do not matter. A row with n of them merges
            min(r, n // 2) pairs and gives up padding for the rest.

    Returns:
        A `MergedTokens`. Of equal similarities the first counts, in A and in B. The gradient goes
        through the means, not through the matching.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes or dtypes that do not fit.

    Time is that of T² / 4 * D multiplications; the similarities are never held all together.

    Source: Bolya, Fu, Dai, Zhang, Feichtenhofer and Hoffman, "Token Merging: Your ViT But Faster"
    (2023).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 4.0], [-3.0, 0.0]]])
    >>> merged = poolkit.token_merge(x, 1, class_tokens=0)
    >>> merged.tokens.tolist(), merged.sizes.tolist()
    ([[[1.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]], [[1.0, 2.0, 1.0]])
    >>> merged.source.tolist()
    [[0, 1, 1, 2]]
    """
    try:
        check_tokens(x)
        r = checked_size("r", r, least=0)
        first = checked_class_tokens(class_tokens, x)
        seen = checked_mask(mask, x)
        compared = _checked_metric(metric, x)
        weights = _checked_sizes(sizes, x, seen)
        if seen is not None:
            x = x.masked_fill(~seen[..., None], 0)
            compared = compared.masked_fill(~seen[..., None], 0)
        r = min(r, (x.shape[1] - first) // 2)
        target = _targets(compared.detach(), seen, first, r)
        return _merged(x, weights, target, seen, r)
    except PoolError as error:
        raise error.during(f"{describe(x)} by token_merge") from None


def token_unmerge(tokens: Tensor, source: Tensor) -> Tensor:
    """Back to the full length: every token that went into a merged one becomes a copy of it.

    Args:
        tokens: merged tokens (N, T', C), or anything computed from them one for one.
        source: (N, T), `MergedTokens.source`. After two merges it is
            ``second.source.gather(1, first.source)`` where there is no padding; unmerging twice
            says the same.

    Returns:
        (N, T, C); padding is zeros.

    Raises:
        PoolValueError, PoolTypeError: for tokens and sources that do not belong together.

    Source: Bolya and Hoffman, "Token Merging for Fast Stable Diffusion" (2023).

    >>> import torch, poolkit
    >>> poolkit.token_unmerge(torch.tensor([[[5.0], [7.0]]]), torch.tensor([[0, 1, 1]])).flatten()
    tensor([5., 7., 7.])
    """
    try:
        check_tokens(tokens)
        if not isinstance(source, Tensor) or source.dtype != torch.int64 or source.ndim != 2:
            raise PoolTypeError(
                f"the source must be an int64 tensor (batch, tokens), got {describe(source)}",
                "Give the source that token_merge returned",
            )
        if source.shape[0] != tokens.shape[0]:
            raise PoolValueError(
                f"the source has {source.shape[0]} rows, the tokens {tokens.shape[0]}",
                "Give the source that token_merge returned with these tokens",
            )
        absent = source[..., None] < 0
        taken = _gather(tokens, source.clamp(min=0))
        return taken.masked_fill(absent, 0)
    except PoolError as error:
        raise error.during(f"{describe(tokens)} by token_unmerge") from None


class TokenMerge(nn.Module):
    """Merges r pairs of similar tokens, keeps count of sizes, and copies them back.

    Args:
        r, class_tokens: as for `poolkit.token_merge`.

    Shape: tokens (N, T, C) to `MergedTokens`, whose `attention_bias()` makes the next attention
    count a merged token as often as there are tokens in it.

    Source: Bolya et al., "Token Merging: Your ViT But Faster" (2023).

    >>> import torch, poolkit
    >>> merge = poolkit.nn.TokenMerge(4)
    >>> x = torch.randn(2, 17, 8)
    >>> once = merge(x)
    >>> twice = merge(once.tokens, sizes=once.sizes)
    >>> twice.tokens.shape, twice.sizes.sum(1).tolist()
    (torch.Size([2, 9, 8]), [17.0, 17.0])
    >>> merge.unmerge(merge.unmerge(twice.tokens, twice.source), once.source).shape
    torch.Size([2, 17, 8])
    """

    def __init__(self, r: int, class_tokens: int = 1) -> None:
        super().__init__()
        self.r = checked_size("r", r, least=0)
        self.class_tokens = checked_size("class_tokens", class_tokens, least=0)

    def forward(
        self,
        x: Tensor,
        metric: Tensor | None = None,
        sizes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> MergedTokens:
        return token_merge(x, self.r, metric, sizes, self.class_tokens, mask)

    unmerge = staticmethod(token_unmerge)

    def extra_repr(self) -> str:
        return f"r={self.r}, class_tokens={self.class_tokens}"


def _targets(metric: Tensor, mask: Tensor | None, first: int, r: int) -> Tensor:
    """(N, T): where each token goes, itself unless it is merged."""
    batch, length, _ = metric.shape
    stays = torch.arange(length, device=metric.device).expand(batch, length)
    if r == 0 or batch == 0:
        return stays
    # The tokens that are there in front, so that every other place is a set, whatever the padding.
    order = stays[:, first:]
    if mask is not None:
        order = first + (~mask[:, first:]).to(torch.uint8).argsort(dim=1, stable=True)
    places_a, places_b = order[:, ::2], order[:, 1::2]
    wide = metric.to(real_dtype(metric.dtype))
    unit = F.normalize(wide, dim=-1)
    a, b = _gather(unit, places_a), _gather(unit, places_b)
    absent_b = None if mask is None else ~mask.gather(1, places_b)
    best, match = _best_matches(a, b, absent_b)
    if mask is not None:
        best = best.masked_fill(~mask.gather(1, places_a), float("-inf"))
    ranks = best.argsort(dim=1, descending=True, stable=True)[:, :r]
    merged = places_a.gather(1, ranks)
    into = places_b.gather(1, match.gather(1, ranks))
    if mask is not None:
        pairs = mask[:, first:].sum(1, keepdim=True) // 2
        refused = torch.arange(r, device=metric.device) >= pairs
        into = torch.where(refused, merged, into)
    return stays.scatter(1, merged, into)


def _best_matches(a: Tensor, b: Tensor, absent: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each row of a the largest product with a row of b, and the first place that has it."""
    step = max(1, SIMILARITIES // max(b.shape[0] * b.shape[1], 1))
    across = b.transpose(1, 2)
    parts = []
    # Of a batch of any size, in a graph, nobody knows how many parts there are.
    for part in a.split(step, 1) if type(step) is int else (a,):
        scores = part @ across
        if absent is not None:
            scores = scores.masked_fill(absent[:, None], float("-inf"))
        parts.append(scores.max(-1))
    return torch.cat([p.values for p in parts], 1), torch.cat([p.indices for p in parts], 1)


def _merged(
    x: Tensor, weights: Tensor, target: Tensor, mask: Tensor | None, r: int
) -> MergedTokens:
    length = x.shape[1]
    gone = target != torch.arange(length, device=x.device)
    # Kept tokens in their order, then padding, then those that were merged away.
    rank = 2 * gone.to(torch.uint8)
    if mask is not None:
        rank = rank + (~mask).to(torch.uint8)
    order = rank.argsort(dim=1, stable=True)
    place = order.argsort(dim=1)
    kept, leaving = order[:, : length - r], order[:, length - r :]
    source = place.gather(1, target)
    wide = weights.to(real_dtype(x.dtype))
    sizes = wide.gather(1, kept)
    tokens = _gather(x, kept)
    if r:
        # Of a row that merges fewer than r, padding leaves as well: it weighs nothing.
        weight = wide.gather(1, leaving) * gone.gather(1, leaving)
        into = source.gather(1, leaving).clamp(max=length - r - 1)
        total = sizes.scatter_add(1, into, weight)
        moved = _gather(x, leaving).to(wide.dtype) * weight[..., None]
        sums = (tokens.to(wide.dtype) * sizes[..., None]).scatter_add(
            1, into[..., None].expand_as(moved), moved
        )
        grown = total != sizes
        mean = sums / total.where(grown, 1)[..., None]
        tokens = torch.where(grown[..., None], mean.to(x.dtype), tokens)
        sizes = total
    there = None
    if mask is not None:
        source = source.masked_fill(~mask, -1)
        there = mask.gather(1, kept)
    return MergedTokens(tokens, sizes.to(torch.float32), source, there)


def _gather(x: Tensor, places: Tensor) -> Tensor:
    """x (N, T, C) at places (N, S)."""
    return x.gather(1, places[..., None].expand(*places.shape, x.shape[-1]))


def _checked_metric(metric: Tensor | None, x: Tensor) -> Tensor:
    if metric is None:
        return x
    check_tokens(metric, "metrics")
    if metric.shape[:2] != x.shape[:2]:
        raise PoolValueError(
            f"the metric has shape {tuple(metric.shape)}, the tokens {tuple(x.shape)}",
            "Give one vector for each token",
        )
    return metric


def _checked_sizes(sizes: Tensor | None, x: Tensor, mask: Tensor | None) -> Tensor:
    """Sizes in float32 at least, 0 for padding."""
    if sizes is None:
        ones = x.new_ones(x.shape[:2], dtype=torch.float32)
        return ones if mask is None else ones * mask
    if not isinstance(sizes, Tensor) or sizes.shape != x.shape[:2]:
        raise PoolValueError(
            f"the sizes are {describe(sizes)}, the tokens {tuple(x.shape[:2])}",
            "Give one number for each token, as token_merge returns them",
        )
    wide = sizes.detach().to(device=x.device, dtype=torch.float32)
    return wide if mask is None else wide.masked_fill(~mask, 0)
