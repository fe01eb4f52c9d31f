"""Attention within segments: the softmax of scores, and the weighted means and deviations of rows.

Three functions, for the same ragged data in every form: rows with `Segments`, or a padded batch
with a mask. What is not there has the weight 0 and is never read, so the result does not depend on
what the padding holds, a NaN included. Half types are summed in float32 and rounded once.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
from torch import Tensor

from ..arrays import arrays_of
from ..errors import PoolError, PoolTypeError, PoolValueError, describe, is_torch_tensor
from ..ragged import value_of_empty
from ..reductions.base import root
from ..torch.plain import real_dtype
from ..windows import Segments
from ..windows.segments import laid_out
from .tokens import checked_mask

__all__ = [
    "attentive_pool",
    "attentive_stats",
    "in_full_precision",
    "segment_softmax",
    "widened",
    "without_absent",
]


def segment_softmax(scores: Tensor, segments: Segments | Tensor | None = None) -> Tensor:
    """The softmax over the rows of each segment: ``exp(e_i) / Σ exp(e_j)``, largest subtracted.

    Args:
        scores: (rows,) or (rows, heads), each head on its own; for a padded batch (batch, time) or
            (batch, time, heads). Floating.
        segments: which rows belong together: `Segments`, or for a padded batch a mask
            (batch, time), true where a row is there, or nothing if all are.

    Returns:
        Weights in the shape and dtype of `scores`; of a nested tensor, those of its rows. They are
        0 where nothing is there, and where every score of a segment is -inf.

    Raises:
        PoolValueError, PoolTypeError: for shapes that do not fit, and dtypes that have no softmax.

    >>> import torch, poolkit
    >>> scores = torch.tensor([0.0, 0.0, 5.0, 1000.0, 1000.0])
    >>> segment_softmax(scores, poolkit.Segments(offsets=[0, 2, 3, 5]))
    tensor([0.5000, 0.5000, 1.0000, 0.5000, 0.5000])
    """
    try:
        _check("scores", scores)
        layout = _layout(scores, segments)
        weights = _softmax(layout, _heads(layout, scores, scores))
        return layout.restore(weights, scores).to(scores.dtype)
    except PoolError as error:
        raise error.during(f"{describe(scores)} by segment_softmax") from None


def attentive_pool(x: Tensor, scores: Tensor, segments: Segments | Tensor | None = None) -> Tensor:
    """The mean of the rows of each segment, weighted by the softmax of their scores.

    Args:
        x: (rows, *features), or a padded batch (batch, time, *features), or a nested tensor.
        scores: one for each row, (rows,) or (batch, time); or (rows, heads), (batch, time, heads),
            where each head makes a mean of its own.
        segments: as for `segment_softmax`.

    Returns:
        (segments, *features), or (segments, heads, *features), in the dtype of x. Zeros for a
        segment without rows, or what `Segments` says in `empty`, and where every score is -inf.

    Raises:
        PoolValueError, PoolTypeError: for shapes that do not fit, and dtypes without a mean.

    >>> import torch, poolkit
    >>> x, scores = torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0.0, 0.0, 2.0])
    >>> attentive_pool(x, scores, poolkit.Segments(offsets=[0, 2, 2, 3])).flatten()
    tensor([2., 0., 7.])
    """
    try:
        layout, weights = _weights(x, scores, segments)
        mean = layout.weigh(weights, layout.rows(x))
        return _shaped(layout, mean, x, scores)
    except PoolError as error:
        raise error.during(f"{describe(x)} by attentive_pool") from None


def attentive_stats(
    x: Tensor, scores: Tensor, segments: Segments | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted mean ``μ = Σ a_i x_i`` of each segment, and ``σ = sqrt(Σ a_i (x_i - μ)²)``.

    The deviation is taken about the mean, where ``Σ a x² - μ²`` would cancel; its gradient is 0
    where it is 0.

    Args: as for `attentive_pool`.

    Returns:
        Mean and deviation, each as `attentive_pool` returns its mean.

    Raises:
        PoolValueError, PoolTypeError: as `attentive_pool`.

    Source: Koji Okabe, Takafumi Koshinaka, Koichi Shinoda, "Attentive Statistics Pooling for Deep
    Speaker Embedding", 2018.

    >>> import torch
    >>> mean, deviation = attentive_stats(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2))
    >>> mean, deviation
    (tensor([[2.]]), tensor([[1.]]))
    """
    try:
        layout, weights = _weights(x, scores, segments)
        rows = layout.rows(x)
        mean = layout.weigh(weights, rows)
        squares = [
            layout.weigh(weights[..., head : head + 1], (rows - layout.spread(about)).square())
            for head, about in enumerate(mean.unbind(1))
        ]
        deviation = root(arrays_of(mean), torch.cat(squares, 1), 2)
        return _shaped(layout, mean, x, scores), _shaped(layout, deviation, x, scores)
    except PoolError as error:
        raise error.during(f"{describe(x)} by attentive_stats") from None


def without_absent(x: Tensor, segments: Segments | Tensor | None) -> Tensor:
    """`x` with zeros in the rows that are not there: what scores are made of, as the gradient of a
    function of NaN would be NaN even where nothing depends on it."""
    _check("x", x)
    layout = _layout(x, segments)
    absent = layout.absent
    if absent is None or x.is_nested:
        return x
    return x.masked_fill(absent.reshape(*absent.shape, *[1] * (x.ndim - absent.ndim)), 0.0)


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype that its sums are taken in: float32 for half types."""
    return x.to(real_dtype(x.dtype))


def in_full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Without autocast, which would round what a product is summed from to half types."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


class _Padded:
    """A batch (batch, time) whose rows all have a place; what is not there counts nothing."""

    lead = 2

    def __init__(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim < 2:
            raise PoolValueError(
                f"a batch has the shape (batch, time, *features), got rank {x.ndim}",
                "Say with Segments which rows belong together",
            )
        present = checked_mask(mask, x)
        self.absent = None if present is None else ~present

    def rows(self, x: Tensor, absent: float = 0.0) -> Tensor:
        rows = widened(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))
        return rows if self.absent is None else rows.masked_fill(self.absent[..., None], absent)

    def largest(self, values: Tensor) -> Tensor:
        # Of no rows there is no largest, and -inf is what no row would have said.
        return values.amax(1) if values.shape[1] else values.new_zeros(values.shape[::2])

    def sum(self, values: Tensor) -> Tensor:
        return values.sum(1)

    def spread(self, sums: Tensor) -> Tensor:
        return sums[:, None]

    def weigh(self, weights: Tensor, rows: Tensor) -> Tensor:
        wide = torch.promote_types(weights.dtype, rows.dtype)
        with in_full_precision(rows):
            return weights.transpose(1, 2).to(wide) @ rows.to(wide)

    def restore(self, weights: Tensor, scores: Tensor) -> Tensor:
        return weights.reshape(scores.shape)

    def finish(self, sums: Tensor) -> Tensor:
        return sums


class _Ragged:
    """Rows, and the segment of each: those that are there, one segment after the other."""

    def __init__(self, x: Tensor, segments: Segments) -> None:
        if segments.weights is not None:
            raise PoolTypeError(
                "the weights of rows come from their scores, and the segments have weights too",
                "Drop those, and add their logarithm to the scores",
            )
        self.segments = segments
        self.lead = 2 if segments.dense and not x.is_nested else 1
        if x.is_nested:
            found = segments.rows_of(x)
            shape = found.values.shape[:1]
            source = np.arange(len(found.values))
        else:  # the numbers of the rows go through the same steps as the rows
            shape = x.shape[: self.lead]
            found = segments.rows_of(torch.arange(math.prod(shape)).reshape(shape))
            source = found.values.numpy()
        begin, count = found.begin, found.count
        owner, rows = laid_out(begin, count)
        places = source[rows]
        self.present = count > 0
        self.shape, self.size = shape, math.prod(shape)
        whole = len(places) == self.size and bool((places == np.arange(self.size)).all())
        self.places = None if whole else torch.from_numpy(places).to(x.device)
        self.owner = torch.from_numpy(owner).to(x.device)

    @property
    def absent(self) -> Tensor | None:
        if self.places is None or len(self.places) == self.size:
            return None
        every = torch.ones(self.size, dtype=torch.bool, device=self.places.device)
        return every.index_fill(0, self.places, False).reshape(self.shape)

    def rows(self, x: Tensor, absent: float = 0.0) -> Tensor:
        if x.is_nested:
            rows = Segments().rows_of(x).values
            rows = rows.reshape(self.size, math.prod(rows.shape[1:]))
        else:
            rows = x.reshape(self.size, math.prod(x.shape[self.lead :]))
        return widened(rows if self.places is None else rows.index_select(0, self.places))

    def largest(self, values: Tensor) -> Tensor:
        lowest = values.new_full((len(self.present), values.shape[1]), -math.inf)
        return lowest.scatter_reduce(0, self.owner[:, None].expand_as(values), values, "amax")

    def sum(self, values: Tensor) -> Tensor:
        zeros = values.new_zeros((len(self.present), values.shape[1]))
        return zeros.index_add(0, self.owner, values)

    def spread(self, sums: Tensor) -> Tensor:
        return sums.index_select(0, self.owner)

    def weigh(self, weights: Tensor, rows: Tensor) -> Tensor:
        # One head at a time: no product of rows, heads and features.
        return torch.stack([self.sum(weight[:, None] * rows) for weight in weights.unbind(1)], 1)

    def restore(self, weights: Tensor, scores: Tensor) -> Tensor:
        if self.places is not None:
            zeros = weights.new_zeros((self.size, weights.shape[1]))
            weights = zeros.index_copy(0, self.places, weights)
        return weights if scores.is_nested else weights.reshape(scores.shape)

    def finish(self, sums: Tensor) -> Tensor:
        if self.present.all():
            return sums
        dtype = str(sums.dtype).removeprefix("torch.")
        value = value_of_empty(self.segments, self.present, dtype)
        absent = torch.from_numpy(~self.present).to(sums.device)
        return sums.masked_fill(absent.reshape(-1, *[1] * (sums.ndim - 1)), value)


def _layout(x: Tensor, segments: Segments | Tensor | None) -> _Padded | _Ragged:
    if isinstance(segments, Segments):
        return _Ragged(x, segments)
    if x.is_nested and segments is None:
        return _Ragged(x, Segments())
    if segments is not None and not isinstance(segments, Tensor):
        raise PoolTypeError(
            f"segments are {type(segments).__name__}", "Give poolkit.Segments or a mask as a tensor"
        )
    if x.is_nested:
        raise PoolTypeError("a nested tensor has no mask", "It says itself where its parts end")
    return _Padded(x, segments)


def _weights(
    x: Tensor, scores: Tensor, segments: Segments | Tensor | None
) -> tuple[_Padded | _Ragged, Tensor]:
    _check("x", x)
    _check("scores", scores)
    layout = _layout(x, segments)
    return layout, _softmax(layout, _heads(layout, scores, x))


def _heads(layout: _Padded | _Ragged, scores: Tensor, x: Tensor) -> Tensor:
    """The scores as (..., heads), those of rows that are not there being -inf."""
    if not scores.is_nested and not x.is_nested:
        lead = layout.lead
        if scores.shape[:lead] != x.shape[:lead] or scores.ndim > lead + 1:
            raise PoolValueError(
                f"scores are {tuple(scores.shape)}, the rows of x {tuple(x.shape[:lead])}",
                "Give one score for each row, or one for each row and head",
            )
    elif not scores.is_nested and (
        scores.ndim not in (1, 2) or len(scores) != layout.owner.shape[0]  # type: ignore[union-attr]
    ):
        raise PoolValueError(
            f"scores are {tuple(scores.shape)}, for the rows of a nested tensor",
            "Give a nested tensor of scores, or (rows,), or (rows, heads)",
        )
    return layout.rows(scores, -math.inf)


def _softmax(layout: _Padded | _Ragged, scores: Tensor) -> Tensor:
    if scores.shape[-1] == 0:
        raise PoolValueError("there are scores of 0 heads", "Give one or more")
    top = layout.largest(scores.detach())
    # All -inf: nothing is subtracted, so that the weights are 0, not NaN.
    top = torch.where(top == -math.inf, 0.0, top)
    powers = (scores - layout.spread(top)).exp()
    total = layout.sum(powers)
    return powers / layout.spread(torch.where(total == 0, 1.0, total))


def _shaped(layout: _Padded | _Ragged, sums: Tensor, x: Tensor, scores: Tensor) -> Tensor:
    """(segments, heads, width) as it is returned."""
    nested = x.is_nested
    features = Segments().rows_of(x).values.shape[1:] if nested else x.shape[layout.lead :]
    if scores.is_nested:
        single = Segments().rows_of(scores).values.ndim == 1
    else:
        single = scores.ndim == layout.lead
    heads = () if single else (sums.shape[1],)
    return layout.finish(sums.to(x.dtype).reshape(sums.shape[0], *heads, *features))


def _check(name: str, x: Tensor) -> None:
    if not is_torch_tensor(x):
        raise PoolTypeError(
            f"{name} must be a torch tensor, got {type(x).__name__}",
            "Convert it with torch.as_tensor",
        )
    if not x.is_floating_point():
        raise PoolTypeError(
            f"{name} must be floating, got {str(x.dtype).removeprefix('torch.')}",
            "Convert it with .float()",
        )
