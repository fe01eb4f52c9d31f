"""From the tokens of each sequence to one vector: the pooling of a sentence encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import pool
from ..errors import (
    PoolError,
    PoolTypeError,
    PoolValueError,
    checked_size,
    describe,
    dtype_name,
    is_exported,
)
from ..ragged import value_of_empty
from ..reductions import Reduction, as_reduction
from ..torch.bags import row_products
from ..windows import Segments
from ..windows.segments import laid_out
from .attentive import attentive_pool, attentive_stats, without_absent
from .kmax import k_max_pool1d
from .masked import attend_padded, pick_padded, pool_padded, seen_of, weigh_padded

__all__ = ["SequencePool"]

# The names that sentence encoders use, and ours.
REDUCTIONS = {
    "cls": "First",
    "lasttoken": "Last",
    "mean_sqrt_len": "SqrtN",
    "mean_sqrt_len_tokens": "SqrtN",
}
LEARNED = ("query", "attentive_stats")
OTHERS = ("weighted_mean", "weightedmean", "k_max", *LEARNED)


class SequencePool(nn.Module):
    """One vector for each sequence, from the tokens that are there.

    Args:
        mode: how, or several ways whose results are joined:

            - a reduction of the library, as its name, recipe or object: "mean", "max", "min",
              "sum", "std", "log_sum_exp", "soft", "TopK(3)", ... ;
            - "cls" or "first", and "lasttoken" or "last": one of the tokens;
            - "mean_sqrt_len": the sum over the root of the length;
            - "weighted_mean": later tokens count more, 1, 2, 3, ... from a sequence's first token
              on (Muennighoff, "SGPT: GPT sentence embeddings for semantic search", 2022);
            - "k_max": the k largest values of each feature in their order (Kalchbrenner et al.,
              "A convolutional neural network for modelling sentences", 2014);
            - "query": weighted by a softmax of the inner product with a learned query (Lin et al.,
              "A structured self-attentive sentence embedding", 2017);
            - "attentive_stats": the mean and the standard deviation under such weights (Okabe et
              al., "Attentive statistics pooling for deep speaker embedding", 2018).
        channels: features of a token; needed for the learned modes.
        k: for "k_max".
        empty: the result of a sequence without tokens: "zero", "nan", a number, or "error".

    Shape: tokens (batch, time, channels) with a mask (batch, time) or lengths (batch), nested
        tensors, or rows (rows, channels) with `segments`, to (batch, features). Padding may be on
        either side and its values do not matter, NaN among them; nor does it matter with what else
        a sequence is batched: the result has the same bits. Half types accumulate in float32.

    A mapping with ``token_embeddings`` and ``attention_mask``, which is what sentence-transformers
    hands from module to module, is returned with ``sentence_embedding`` added.

    >>> import torch, poolkit
    >>> tokens = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [0.0], [0.0]]])
    >>> mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    >>> poolkit.nn.SequencePool("mean")(tokens, mask)
    tensor([[2.],
            [5.]])
    >>> poolkit.nn.SequencePool(("max", "weighted_mean"))(tokens, mask)
    tensor([[3.0000, 2.3333],
            [5.0000, 5.0000]])
    """

    def __init__(
        self,
        mode: str | Reduction | Sequence[str | Reduction] = "mean",
        channels: int | None = None,
        *,
        k: int = 1,
        empty: str | float = "zero",
    ) -> None:
        super().__init__()
        modes = [mode] if isinstance(mode, (str, Reduction)) else list(mode)
        if not modes:
            raise PoolValueError("there is no mode", "Give at least one, such as 'mean'")
        self.modes = [_checked_mode(each) for each in modes]
        self.channels, self.k, self.empty = channels, checked_size("k", k), empty
        Segments(empty=empty)  # checks the rule
        learned = [each for each in self.modes if each in LEARNED]
        if learned and (not isinstance(channels, int) or channels < 1):
            raise PoolTypeError(
                f"{learned[0]} learns a query, whose size is not known", "Give channels=..."
            )
        # 0 is the mean, from which it learns.
        self.queries = nn.ParameterDict({name: torch.zeros(channels or 1) for name in learned})

    def forward(
        self,
        tokens: Any,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Any:
        if isinstance(tokens, Mapping):
            features = dict(tokens)
            features["sentence_embedding"] = self(
                features["token_embeddings"], features.get("attention_mask")
            )
            return features
        try:
            if is_exported():
                return self._exported(tokens, mask, lengths, segments)
            window = self._window(tokens, mask, lengths, segments)
            return torch.cat([self._pooled(tokens, window, mode) for mode in self.modes], -1)
        except PoolError as error:
            raise error.during(f"{describe(tokens)} by SequencePool({self.extra_repr()})") from None

    def _exported(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
        segments: Segments | None,
    ) -> Tensor:
        """The same of a padded batch, in operations that do not look at the mask."""
        if segments is not None or tokens.is_nested:
            raise PoolValueError(
                "only padded batches can be exported", "Give (batch, time, channels) with a mask"
            )
        seen = seen_of(tokens, mask, lengths)
        return torch.cat([self._pooled_padded(tokens, seen, mode) for mode in self.modes], -1)

    def _pooled_padded(self, tokens: Tensor, seen: Tensor, mode: str | Reduction) -> Tensor:
        if isinstance(mode, Reduction):
            return pool_padded(tokens, seen, mode, self.empty)
        if mode == "weighted_mean":
            return weigh_padded(tokens, seen, self.empty)
        if mode == "k_max":
            return pick_padded(tokens, seen, self.k, self.empty)
        query = self.queries[mode]
        scores = (tokens.to(query.dtype) @ query) / math.sqrt(len(query))
        mean, deviation = attend_padded(tokens, scores, seen)
        return mean if mode == "query" else torch.cat([mean, deviation], -1)

    def _window(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
        segments: Segments | None,
    ) -> Segments:
        if sum(form is not None for form in (mask, lengths, segments)) > 1:
            raise PoolTypeError("mask, lengths and segments say the same", "Give one of them")
        if segments is not None:
            return segments
        if mask is not None:
            return Segments(mask=mask, empty=self.empty)
        if lengths is not None:
            return Segments(lengths=lengths, empty=self.empty)
        if tokens.is_nested:
            return Segments(empty=self.empty)
        if tokens.ndim != 3:
            raise PoolValueError(
                f"tokens must be (batch, time, channels), got rank {tokens.ndim}",
                "Give segments for rows",
            )
        return Segments(lengths=[tokens.shape[1]] * tokens.shape[0], empty=self.empty)

    def _pooled(self, tokens: Tensor, window: Segments, mode: str | Reduction) -> Tensor:
        if isinstance(mode, Reduction):
            pooled: Tensor = pool(tokens, window, mode)
            return pooled
        if window.weights is not None:
            raise PoolTypeError(
                f"{mode} weighs rows itself, and the segments have weights too", "Drop those"
            )
        if mode == "k_max":
            return _k_largest(tokens, self.k, window)
        if mode == "weighted_mean":
            return _weighted_by_place(tokens, window)
        if tokens.is_nested:
            tokens, window = _flattened(tokens, window)
        tokens = without_absent(tokens, window)
        scores = _scores(tokens, self.queries[mode])
        if mode == "query":
            return attentive_pool(tokens, scores, window)
        return torch.cat(attentive_stats(tokens, scores, window), -1)

    def extra_repr(self) -> str:
        names = ", ".join(repr(mode) for mode in self.modes)
        return names if "k_max" not in self.modes else f"{names}, k={self.k}"


def _k_largest(tokens: Tensor, k: int, window: Segments) -> Tensor:
    pooled = k_max_pool1d(tokens, k, window).flatten(1)
    present = window.rows_of(tokens).count > 0
    if present.all():
        return pooled
    value = value_of_empty(window, present, dtype_name(pooled))
    absent = torch.from_numpy(~present).to(pooled.device)
    return pooled.masked_fill(absent[:, None], value)


def _weighted_by_place(tokens: Tensor, window: Segments) -> Tensor:
    """The mean of each sequence with the weights 1, 2, 3, ..."""
    found = window.rows_of(tokens)
    values, count = found.values, found.count
    _, rows = laid_out(found.begin, count)
    offsets = np.concatenate([[0], count.cumsum()])
    places = np.arange(len(rows)) - np.repeat(offsets[:-1], count) + 1.0
    if not np.array_equal(rows, np.arange(len(values))):
        values = values[torch.from_numpy(rows).to(values.device)]
    ragged = Segments(offsets=offsets, weights=places, empty=window.empty)
    pooled: Tensor = pool(values, ragged, "mean")
    return pooled


def _scores(tokens: Tensor, query: Tensor) -> Tensor:
    """The inner product of each token with the query, over sqrt(channels): one sum for each, of the
    same bits whatever stands beside it, which a product of matrices does not promise."""
    if tokens.shape[-1] != len(query):
        raise PoolValueError(
            f"tokens have {tokens.shape[-1]} channels, the query has {len(query)}",
            f"Make the module with channels={tokens.shape[-1]}",
        )
    lead = tokens.shape[:-1]
    rows = tokens.reshape(lead.numel(), len(query)).to(query.dtype)
    begin = torch.zeros(1, dtype=torch.int64, device=rows.device)
    own = (query / math.sqrt(len(query)))[None]
    return row_products(rows, None, begin, begin + rows.shape[0], own).reshape(lead)


def _flattened(tokens: Tensor, window: Segments) -> tuple[Tensor, Segments]:
    """A nested tensor as rows and offsets."""
    found = window.rows_of(tokens)
    _, rows = laid_out(found.begin, found.count)
    offsets = np.concatenate([[0], found.count.cumsum()])
    return found.values[torch.from_numpy(rows).to(found.values.device)], Segments(
        offsets=offsets, empty=window.empty
    )


def _checked_mode(mode: Any) -> str | Reduction:
    if isinstance(mode, str) and mode in OTHERS:
        return "weighted_mean" if mode == "weightedmean" else mode
    if isinstance(mode, str):
        mode = REDUCTIONS.get(mode, mode)
    return as_reduction(mode)
