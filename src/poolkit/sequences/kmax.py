"""The k largest values of a sequence, in the order in which they appear."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe, is_traced
from ..ragged import buckets
from ..windows import Segments

__all__ = ["KMaxPool1d", "dynamic_k", "k_max_pool1d"]


def k_max_pool1d(
    x: Tensor,
    k: int,
    segments: Segments | None = None,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    fill: float = 0.0,
) -> Tensor:
    """The k largest values of each channel, in the order in which they appear.

    Args:
        x: (N, C, L) or (C, L); with `segments` as for `poolkit.pool`: rows (rows, *features), or a
            padded batch (N, L, *features). Of a floating dtype.
        k: how many.
        segments: which rows make a sequence, in any form that `Segments` knows.
        mask: (N, L), or (L) for a single sequence, True (or 1) where there is a value.
        lengths: (N), values at the start of each sequence that are there. At most one of
            `segments`, `mask` and `lengths`.
        fill: what stands behind the values of a sequence that has less than k, and for all of one
            that has none, whatever `segments.empty` says.

    Returns:
        (N, C, k) or (C, k); with `segments` (segments, k, *features). Of equal values the first
        are taken, a NaN counts as the largest, and the gradient goes to what was taken.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes or dtypes that do not fit.

    Source: Kalchbrenner, Grefenstette and Blunsom, "A Convolutional Neural Network for Modelling
    Sentences" (2014).

    >>> import torch, poolkit
    >>> x = torch.tensor([[3.0, 9.0, 1.0, 5.0, 5.0]])
    >>> poolkit.k_max_pool1d(x, 3)
    tensor([[9., 5., 5.]])
    >>> poolkit.k_max_pool1d(x.T, 2, poolkit.Segments(offsets=[0, 1, 5]))[..., 0]
    tensor([[3., 0.],
            [9., 5.]])
    """
    try:
        _check(x, segments, mask, lengths)
        k = checked_size("k", k)
        fill = _checked_fill(fill)
        if segments is not None:
            return _of_segments(x, k, segments, fill)
        batch = x if x.ndim == 3 else x[None]
        there = _there(batch, mask, lengths)
        if there is not None:
            # In front, so that padding comes behind a value of -inf as well.
            order = (~there).to(torch.uint8).argsort(dim=1, stable=True)
            batch = batch.gather(2, order[:, None].expand_as(batch))
            there = there.sum(1)
        out = _in_front(batch, k, there, fill)
        return out if x.ndim == 3 else out[0]
    except PoolError as error:
        raise error.during(f"{describe(x)} by k_max_pool1d") from None


def dynamic_k(layer: int, layers: int, length: int, k_top: int = 4) -> int:
    """How many values layer `layer` of `layers` keeps of a sentence.

    ``max(k_top, ceil((layers - layer) / layers * length))``: evenly less with depth, and `k_top`
    at the last one.

    Args:
        layer: from 1.
        layers: how many layers of convolution and pooling there are.
        length: words of the sentence.
        k_top: what the last layer keeps, whatever the length.

    Raises:
        PoolValueError, PoolTypeError: for numbers that are not integers or out of range.

    Source: Kalchbrenner et al. (2014), equation for k of a layer.

    >>> dynamic_k(1, 3, 18, k_top=3), dynamic_k(2, 3, 18, k_top=3), dynamic_k(3, 3, 18, k_top=3)
    (12, 6, 3)
    """
    layers = checked_size("layers", layers)
    if checked_size("layer", layer) > layers:
        raise PoolValueError(f"layer {layer} is behind the last of {layers}", "Count from 1")
    length = checked_size("length", length, least=0)
    return max(checked_size("k_top", k_top), -(-(layers - layer) * length // layers))


class KMaxPool1d(nn.Module):
    """The k largest values of each channel, in the order in which they appear.

    Args:
        k, fill: as for `poolkit.k_max_pool1d`.

    Shape: (N, C, L) to (N, C, k), or (C, L) to (C, k); with an optional mask (N, L) or lengths (N).

    Source: Kalchbrenner et al., "A Convolutional Neural Network for Modelling Sentences" (2014).

    >>> import torch, poolkit
    >>> poolkit.nn.KMaxPool1d(2)(torch.tensor([[[3.0, 9.0, 1.0, 5.0]]]))
    tensor([[[9., 5.]]])
    """

    def __init__(self, k: int, fill: float = 0.0) -> None:
        super().__init__()
        self.k = checked_size("k", k)
        self.fill = _checked_fill(fill)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        return k_max_pool1d(x, self.k, mask=mask, lengths=lengths, fill=self.fill)

    def extra_repr(self) -> str:
        return f"k={self.k}, fill={self.fill}"


def _in_front(x: Tensor, k: int, count: Tensor | None, fill: float) -> Tensor:
    """k-max along the last axis of (N, C, L), whose rows have their first `count` (N) values."""
    length = x.shape[2]
    taken = min(k, length)
    key = x.detach()
    if count is not None:
        absent = torch.arange(length, device=x.device) >= count[:, None]
        key = key.masked_fill(absent[:, None], float("-inf"))
    # Stable, as topk is not: of equal values the first. Padding is behind all others.
    best = key.sort(dim=2, descending=True, stable=True).indices[..., :taken]
    places = best.sort(dim=2).values
    out = x.gather(2, places)
    if count is not None:
        out = out.masked_fill(places >= count[:, None, None], fill)
    if taken < k:
        out = torch.cat([out, out.new_full((*out.shape[:2], k - taken), fill)], 2)
    return out


def _of_segments(x: Tensor, k: int, segments: Segments, fill: float) -> Tensor:
    """In buckets of like lengths, see `poolkit.ragged.buckets`."""
    found = segments.rows_of(x)
    features = found.values.shape[1:]
    rows = found.values.reshape(found.values.shape[0], features.numel())
    if len(rows) == 0 or len(found.count) == 0:
        return rows.new_full((len(found.count), k, *features), fill)
    chunks, order = buckets(np.maximum(found.count, 1), rows.shape[1])
    parts = []
    for chosen in chunks:
        begin, count = found.begin[chosen], found.count[chosen]
        places = begin[:, None] + np.arange(max(int(count.max()), 1))
        last = np.maximum(begin + count, 1)[:, None] - 1
        index = torch.from_numpy(np.minimum(places, last)).to(rows.device)
        part = rows[index].transpose(1, 2)
        parts.append(_in_front(part, k, torch.from_numpy(count).to(rows.device), fill))
    place = torch.from_numpy(order).to(rows.device)
    out = torch.cat(parts)[place].transpose(1, 2)
    return out.reshape(len(found.count), k, *features)


def _there(x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """(N, L) bools, or None."""
    if mask is not None:
        return mask.reshape(x.shape[0], x.shape[2]).to(device=x.device, dtype=torch.bool)
    if lengths is not None:
        return torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None]
    return None


def _check(x: Any, segments: Any, mask: Any, lengths: Any) -> None:
    if not isinstance(x, Tensor):
        raise PoolTypeError(
            f"x must be a torch tensor, got {type(x).__name__}", "Use torch.as_tensor"
        )
    if not x.is_floating_point():
        raise PoolTypeError(f"x must be floating, got {x.dtype}", "Convert it with x.float()")
    forms = {"segments": segments, "mask": mask, "lengths": lengths}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise PoolTypeError(
            f"which values are there is said by {' and '.join(given)}", "Give one of them"
        )
    if segments is not None:
        if not isinstance(segments, Segments):
            raise PoolTypeError(
                f"segments must be a poolkit.Segments, got {type(segments).__name__}",
                "Name mask= or lengths= otherwise",
            )
        if segments.weights is not None:
            raise PoolTypeError("the k largest values have no weights", "Drop those of segments")
        return
    if x.is_nested or x.ndim not in (2, 3):
        got = "a nested tensor" if x.is_nested else f"rank {x.ndim}"
        raise PoolValueError(
            f"(N, C, L) or (C, L) was expected, got {got}",
            "Give Segments() for a nested tensor, or add and remove axes",
        )
    shape = (x.shape[0], x.shape[2]) if x.ndim == 3 else (x.shape[1],)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != shape or mask.is_floating_point():
            raise PoolValueError(
                f"the mask is {describe(mask)}, not bools of shape {tuple(shape)}",
                "Give one truth value for each position",
            )
    elif lengths is not None and (
        not isinstance(lengths, Tensor)
        or x.ndim != 3
        or lengths.shape != x.shape[:1]
        or lengths.is_floating_point()
    ):
        raise PoolValueError(
            f"the lengths are {describe(lengths)}, not integers, one for each row of a batch",
            "Give a tensor of integers (N) for an input (N, C, L)",
        )
    elif lengths is not None and not is_traced() and lengths.numel():
        shortest, longest = (int(n) for n in lengths.aminmax())
        if shortest < 0 or longest > x.shape[2]:
            raise PoolValueError(
                f"lengths lie between {shortest} and {longest}, positions are {x.shape[2]}",
                "A sequence has between none and all of them",
            )


def _checked_fill(fill: Any) -> float:
    if isinstance(fill, bool) or not isinstance(fill, (int, float)):
        raise PoolTypeError(f"fill must be a number, got {fill!r}", "Write fill=0.0")
    return float(fill)
