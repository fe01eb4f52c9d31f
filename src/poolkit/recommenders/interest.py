"""What a user's history says about a target: behaviour, pooled with the target in view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..errors import PoolError, PoolTypeError, PoolValueError, describe
from ..sequences.tokens import checked_mask
from ..torch.plain import real_dtype

__all__ = ["Dice", "TargetAttention", "decayed_mean"]


def decayed_mean(
    x: Tensor, ages: Tensor, half_life: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """The mean of a history in which what is old counts less: ``Σ 2^(-age/h) x / Σ 2^(-age/h)``.

    Args:
        x: (N, time, dim), floating.
        ages: (N, time), of 0 or more, in the unit of `half_life`.
        half_life: after which an event counts half; above 0. May be a tensor that is learned.
        mask: (N, time) true where there is an event.

    Returns:
        (N, dim); 0 where there is no event. Weights are taken relative to the youngest event, so
        that an old history does not vanish.

    Raises:
        PoolValueError, PoolTypeError: for shapes that do not fit.

    >>> import torch, poolkit
    >>> x, ages = torch.tensor([[[1.0], [4.0]]]), torch.tensor([[7.0, 0.0]])
    >>> poolkit.decayed_mean(x, ages, half_life=7.0)       # (1/2 + 4) / (1/2 + 1)
    tensor([[3.]])
    """
    try:
        if x.ndim != 3 or not x.is_floating_point():
            raise PoolTypeError("a history must be floating (N, time, dim)", "Add or drop axes")
        mask = _events(mask, x)
        if tuple(ages.shape) != tuple(x.shape[:2]):
            raise PoolValueError(
                f"ages have shape {tuple(ages.shape)}, the history {tuple(x.shape[:2])}",
                "Give one for each event",
            )
        if not torch.is_tensor(half_life) and not half_life > 0:
            raise PoolValueError(f"half_life must be above 0, got {half_life}", "Give a time")
        if x.shape[1] == 0:  # of no events there is no youngest
            return x.sum(1)
        wide = real_dtype(x.dtype)
        ages = ages.to(wide)
        youngest = ages.masked_fill(~mask, float("inf")).amin(1, keepdim=True)
        weights = torch.exp2(-(torch.where(mask, ages - youngest, 0.0)) / half_life)
        weights = torch.where(mask, weights, 0.0)
        total = weights.sum(1, keepdim=True)
        pooled = _weigh(_without_padding(x, mask), weights)
        return (pooled / torch.where(total == 0, 1.0, total)).to(x.dtype)
    except PoolError as error:
        raise error.during(f"{describe(x)} by decayed_mean") from None


def _events(mask: Tensor | None, x: Tensor) -> Tensor:
    """Where there is an event, (N, time)."""
    there = checked_mask(mask, x)
    return x.new_ones(x.shape[:2], dtype=torch.bool) if there is None else there


def _without_padding(x: Tensor, mask: Tensor) -> Tensor:
    """Zeros where there is no event: padding may hold anything."""
    return torch.where(mask[..., None], x, 0.0)


def _weigh(x: Tensor, weights: Tensor) -> Tensor:
    """(N, ..., dim) from (N, time, dim) by weights (N, ..., time), in the dtype of the weights."""
    return torch.einsum("n...t,ntd->n...d", weights, x.to(weights.dtype))


class Dice(nn.Module):
    """``p x + (1 - p) a x`` with ``p = sigmoid`` of x, normalised over the batch; a is learned for
    each feature, from 0 (Zhou et al., 2018). The last axis is that of the features."""

    def __init__(self, channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.training and flat.shape[0] < 2:  # a single row has no deviation
            p = torch.sigmoid(flat)
        else:
            p = torch.sigmoid(self.norm(flat))
        return (p * flat + (1 - p) * self.alpha * flat).reshape(x.shape)


class TargetAttention(nn.Module):
    """A history, weighted by what it has to do with the target.

    Each event k meets the target q in a small network over ``[q, k, q - k, q * k]``, whose result
    is the event's weight. Weights are not normalised, as in the paper: a history that is all about
    the target gives a larger vector than one that is not. With `softmax` they are.

    Args:
        channels: features of events and targets.
        hidden: widths of the network's layers.
        activation: "dice", "relu" or "sigmoid".
        softmax: whether the weights of a history add up to 1.

    Shape: history (N, time, channels); target (N, channels), or candidates (N, m, channels); mask
        (N, time) or lengths (N), to (N, channels) or (N, m, channels). 0 without events.

    Source: Guorui Zhou et al., "Deep interest network for click-through rate prediction", 2018.

    >>> import torch, poolkit
    >>> attention = poolkit.nn.TargetAttention(8)
    >>> attention(torch.rand(2, 5, 8), torch.rand(2, 8), lengths=torch.tensor([5, 0])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (36,),
        activation: str = "dice",
        softmax: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("dice", "relu", "sigmoid"):
            raise PoolValueError(
                f"activation must be dice, relu or sigmoid, got {activation!r}", "Choose one"
            )
        self.channels, self.softmax = channels, softmax
        layers: list[nn.Module] = []
        width = 4 * channels
        for size in hidden:
            layers.append(nn.Linear(width, size))
            layers.append(
                Dice(size)
                if activation == "dice"
                else nn.ReLU()
                if activation == "relu"
                else nn.Sigmoid()
            )
            width = size
        self.unit = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(
        self,
        history: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        whole = mask is None and lengths is None
        try:
            mask = self._checked(history, target, mask, lengths)
        except PoolError as error:
            raise error.during(f"{describe(history)} by TargetAttention") from None
        several = target.ndim == 3
        targets = target if several else target[:, None]
        nothing = float("-inf") if self.softmax else 0.0
        history = _without_padding(history, mask)
        if whole or (is_compiling() and not self._normalises()):
            scores = self._scores(history[:, :, None], targets[:, None])
            weights = torch.where(mask[..., None], scores, nothing).transpose(1, 2)
        else:
            # The network sees events alone, so that what it normalises over has no padding.
            row, time = torch.nonzero(mask, as_tuple=True)
            scores = self._scores(history[row, time][:, None], targets[row])
            table = scores.new_full((*mask.shape, targets.shape[1]), nothing)
            weights = table.index_put((row, time), scores).transpose(1, 2)  # (N, m, time)
        weights = weights.to(real_dtype(weights.dtype))
        if self.softmax:
            top = weights.detach().amax(2, keepdim=True) if weights.shape[2] else 0.0
            weights = (weights - torch.where(torch.as_tensor(top).isinf(), 0.0, top)).exp()
            total = weights.sum(2, keepdim=True)
            weights = weights / torch.where(total == 0, 1.0, total)
        pooled = _weigh(history, weights).to(history.dtype)
        return pooled if several else pooled[:, 0]

    def _scores(self, keys: Tensor, queries: Tensor) -> Tensor:
        """(..., m) from keys (..., 1, channels) and queries (..., m, channels)."""
        keys, queries = torch.broadcast_tensors(keys, queries)
        met = torch.cat([queries, keys, queries - keys, queries * keys], -1)
        scores: Tensor = self.unit(met)[..., 0]
        return scores

    def _normalises(self) -> bool:
        return self.training and any(isinstance(part, Dice) for part in self.unit)

    def _checked(
        self, history: Tensor, target: Tensor, mask: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        if history.ndim != 3 or history.shape[2] != self.channels:
            raise PoolValueError(
                f"a history must be (N, time, {self.channels})", "Check the channels"
            )
        if (
            target.ndim not in (2, 3)
            or target.shape[0] != history.shape[0]
            or target.shape[-1] != self.channels
        ):
            raise PoolValueError(
                f"the target has shape {tuple(target.shape)}",
                f"Give ({history.shape[0]}, {self.channels}), or candidates in between",
            )
        if mask is not None and lengths is not None:
            raise PoolTypeError("mask and lengths say the same", "Give one of them")
        if lengths is not None:
            if tuple(lengths.shape) != tuple(history.shape[:1]):
                raise PoolValueError(
                    f"lengths have shape {tuple(lengths.shape)}", "Give one for each history"
                )
            mask = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
        return _events(mask, history)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, softmax={self.softmax}"
