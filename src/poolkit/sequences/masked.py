"""Pooling of padded batches by a mask that is a tensor of a graph.

`Segments` reads its mask when it is made. What is exported has no values to read, so there the same
results are a few operations over the whole padded batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PoolValueError
from ..reductions import Reduction, Seen
from ..torch.whole import reduce_last

__all__ = ["attend_padded", "pick_padded", "pool_padded", "seen_of", "weigh_padded"]


def seen_of(tokens: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """(batch, time): which tokens are there."""
    if mask is not None:
        return mask != 0
    time = torch.arange(tokens.shape[1], device=tokens.device)
    if lengths is not None:
        return time < lengths[:, None]
    return (time >= 0).expand(tokens.shape[:2])


def pool_padded(tokens: Tensor, seen: Tensor, reduction: Reduction, empty: str | float) -> Tensor:
    """(batch, time, channels) to (batch, channels), as `pool` with `Segments` has it.

    Raises:
        PoolValueError: for empty="error", as nobody looks whether a sequence is empty.

    >>> import poolkit
    >>> tokens = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [0.0], [0.0]]])
    >>> pool_padded(tokens, torch.tensor([[1, 1, 0], [0, 0, 0]]) != 0, poolkit.Mean(), "zero")
    tensor([[2.],
            [0.]])
    """
    count = seen.sum(1)[:, None]
    pooled = reduce_last(tokens.movedim(1, -1), reduction, seen[:, None], Seen(count, count))
    return torch.where(count > 0, pooled, _value_of(empty))


def weigh_padded(tokens: Tensor, seen: Tensor, empty: str | float) -> Tensor:
    """The mean in which the tokens of a sequence count 1, 2, 3, ..."""
    weights = (seen.cumsum(1) * seen)[..., None].to(_wide(tokens))
    total = (weights * torch.where(seen[..., None], tokens, 0)).sum(1)
    mean = (total / weights.sum(1)).to(tokens.dtype)
    return torch.where(seen.any(1)[:, None], mean, _value_of(empty))


def pick_padded(tokens: Tensor, seen: Tensor, k: int, empty: str | float) -> Tensor:
    """The k largest values of each channel in their order, (batch, k * channels); 0 behind those of
    a sequence that has less than k.

    >>> pick_padded(torch.tensor([[[3.0], [9.0], [1.0], [5.0]]]), torch.ones(1, 4) != 0, 2, "zero")
    tensor([[9., 5.]])
    """
    values = torch.where(seen[:, None], tokens.movedim(1, -1), -torch.inf)
    # As many more as may be lacking, so that any length has k.
    values = torch.cat([values, values.new_full((*values.shape[:2], k), -torch.inf)], 2)
    top = values.topk(k, -1).indices
    count = seen.sum(1)[:, None, None]
    there = torch.arange(k, device=seen.device) < count
    place = torch.where(there, top, values.shape[2]).sort(-1).values
    at = place[..., None] == torch.arange(values.shape[2], device=seen.device)
    taken = torch.where(at, values[:, :, None], 0).sum(-1)
    return torch.where(count > 0, taken, _value_of(empty)).transpose(1, 2).flatten(1)


def attend_padded(tokens: Tensor, scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation under a softmax of the scores (batch, time); 0 for a
    sequence without tokens."""
    there = seen.any(1)[:, None]
    values = torch.where(seen[..., None], tokens, 0).to(_wide(tokens))
    shares = torch.where(seen, scores, -torch.inf).softmax(1).to(values.dtype)[..., None]
    mean = (shares * values).sum(1)
    spread = torch.where(seen[..., None], (values - mean[:, None]).square(), 0)
    deviation = (shares * spread).sum(1).sqrt()
    return tuple(torch.where(there, x, 0).to(tokens.dtype) for x in (mean, deviation))  # type: ignore[return-value]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


def _value_of(empty: str | float) -> float:
    if empty == "error":
        raise PoolValueError(
            "an exported graph cannot raise for a sequence without tokens",
            "Say what it is worth: empty='zero', 'nan' or a number",
        )
    return 0.0 if empty == "zero" else float(empty)
