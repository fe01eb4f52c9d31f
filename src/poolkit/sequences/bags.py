"""Bags of embeddings: rows of a table, pooled where they lie."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from ..errors import PoolError, PoolTypeError, PoolValueError, describe, dtype_name
from ..torch.bags import pool_bags, row_products, softmax_of_entries
from ..torch.plain import real_dtype
from .tokens import checked_mask

__all__ = ["EmbeddingBag", "embedding_bag"]

MODES = ("sum", "mean", "sqrt_n", "max", "soft", "attention")


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    mode: str = "mean",
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    query: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
) -> Tensor:
    """Rows of `weight` that each bag names, pooled without being gathered.

    Args:
        input: integers, the rows: (entries) with `offsets` or `lengths`, or (bags, entries), of
            which `lengths` or `mask` say which are there.
        weight: the table, (rows, dim), floating.
        offsets: (bags) where each bag begins, or (bags + 1) with `include_last_offset`.
        mode: "sum", "mean", "sqrt_n" (the sum over the root of the count), "max", "soft" (each
            feature weighted by a softmax over the bag of itself), or "attention" (rows weighted by
            a softmax of their inner product with `query`, over the root of dim).
        lengths: (bags) entries of each bag. mask: (bags, entries) true where there is one.
        per_sample_weights: in the shape of `input`, floating. Sums are of weighted rows, means
            divide by the sum of the weights, `sqrt_n` by the root of the sum of their squares, a
            max is one of weighted rows; for "soft" and "attention" they say how often a row is
            seen. They may be learned. Of weights whose sum is 0 there is no mean: NaN.
        padding_idx: entries that name this row are not there.
        scale_grad_by_freq: whether the gradient of a row is divided by how often it is named.
        sparse: whether the gradient of `weight` is a sparse tensor.
        query: (dim), for "attention".
        max_norm: rows that are named are scaled in place to at most this `norm_type`-norm first.

    Returns:
        (bags, dim) in the dtype of `weight`. Half types accumulate in float32. A bag without
        entries is 0. All sums are in the order of the entries: the gradient has the same bits for
        any number of threads.

    Raises:
        PoolValueError, PoolTypeError: for rows that the table does not have, and forms that
            contradict each other.

    >>> import torch, poolkit
    >>> table = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]])
    >>> words = torch.tensor([0, 1, 2, 2])
    >>> poolkit.embedding_bag(words, table, torch.tensor([0, 2]), "mean")
    tensor([[2., 2.],
            [5., 2.]])
    >>> poolkit.embedding_bag(words, table, lengths=torch.tensor([3, 1]), mode="max")
    tensor([[5., 4.],
            [5., 2.]])
    """
    try:
        _check_arguments(input, weight, mode, query, per_sample_weights)
        index, begin, count = _entries(input, offsets, lengths, mask, include_last_offset)
        entries = per_sample_weights
        entries = None if entries is None else entries.reshape(-1)
        kept = _there(input, count, lengths, mask)
        # A compiler may not ask how many there are; the kernel reads no others.
        if lengths is not None and is_compiling() and not (scale_grad_by_freq or sparse):
            kept = None
        if padding_idx is not None:
            there = index != padding_idx % max(weight.shape[0], 1)
            kept = there if kept is None else kept & there
        if kept is not None:
            index, begin, count, entries = _only(kept, index, begin, count, entries)
        if max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(weight, index, max_norm, norm_type)
        table = weight
        if scale_grad_by_freq and weight.requires_grad:
            often = torch.bincount(index, minlength=weight.shape[0])
            table = _DividedGradient.apply(table, often.clamp(min=1))
        if sparse:
            # The rows that are named, once each, have a sparse gradient; entries are of them.
            named, index = torch.unique(index, return_inverse=True)
            table = F.embedding(named, table, sparse=True)
        return _pooled(table, index, begin, count, mode, entries, query)
    except PoolError as error:
        raise error.during(f"bags of {describe(weight)} by {mode!r}") from None


def _pooled(
    table: Tensor,
    index: Tensor,
    begin: Tensor,
    count: Tensor,
    mode: str,
    weights: Tensor | None,
    query: Tensor | None,
) -> Tensor:
    if mode in ("max", "soft"):
        return pool_bags(table, index, begin, count, mode, weights=weights)
    if mode == "attention":
        assert query is not None
        own = (query / math.sqrt(table.shape[1])).expand(begin.shape[0], -1)
        scores = row_products(table, index, begin, count, own)
        weights = softmax_of_entries(scores, begin, count, weights)
        return pool_bags(table, index, begin, count, "sum", weights=weights)
    divisors = None
    if mode != "sum" and weights is None:
        divisors = count.clamp(min=1).to(real_dtype(table.dtype))
    elif mode != "sum" and weights is not None:
        powers = (weights if mode == "mean" else weights * weights).to(real_dtype(table.dtype))
        divisors = pool_bags(powers[:, None], None, begin, count, "sum")[:, 0]
    if mode == "sqrt_n" and divisors is not None:
        divisors = divisors.sqrt()
    return pool_bags(table, index, begin, count, "sum", weights=weights, divisors=divisors)


class _DividedGradient(torch.autograd.Function):
    """The identity, whose gradient is divided row by row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, by: Tensor) -> Tensor:
        ctx.save_for_backward(by)
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (by,) = ctx.saved_tensors
        if grad.is_sparse:
            grad = grad.coalesce()
            values = grad.values() / by[grad.indices()[0]][:, None]
            return torch.sparse_coo_tensor(
                grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
            ), None
        return grad / by[:, None], None


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise PoolValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}", "Choose one")


def _check_arguments(
    input: Tensor, weight: Tensor, mode: str, query: Tensor | None, weights: Tensor | None
) -> None:
    _check_mode(mode)
    if input.dtype not in (torch.int64, torch.int32):
        raise PoolTypeError(
            f"rows are named by int64 or int32, got {dtype_name(input)}", "Use input.long()"
        )
    if input.ndim not in (1, 2):
        raise PoolValueError(
            f"input must be (entries) or (bags, entries), got rank {input.ndim}",
            "Flatten it, and give offsets or lengths",
        )
    if weight.ndim != 2 or not weight.is_floating_point():
        raise PoolTypeError(
            f"the table must be floating (rows, dim), got {describe(weight)}", "Convert it"
        )
    if weights is not None:
        if weights.shape != input.shape:
            raise PoolValueError(
                f"per_sample_weights have shape {tuple(weights.shape)}, input {tuple(input.shape)}",
                "Give one for each entry",
            )
        if not weights.is_floating_point():
            raise PoolTypeError(
                f"per_sample_weights must be floating, got {dtype_name(weights)}", "Convert them"
            )
    if (query is None) == (mode == "attention"):
        raise PoolTypeError(
            "a query is for mode 'attention', which needs one", "Give query=(dim) with it alone"
        )
    if query is not None and query.shape != weight.shape[1:]:
        raise PoolValueError(
            f"the query has shape {tuple(query.shape)}, rows have {weight.shape[1]} features",
            "Give one number for each",
        )


def _entries(
    input: Tensor,
    offsets: Tensor | None,
    lengths: Tensor | None,
    mask: Tensor | None,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The index in one row, and where each bag begins and how many entries it has."""
    if sum(form is not None for form in (offsets, lengths, mask)) > 1:
        raise PoolTypeError("offsets, lengths and mask say the same", "Give one of them")
    index = input.reshape(-1).long()
    if input.ndim == 2:
        if offsets is not None:
            raise PoolTypeError("offsets are for an input of rank 1", "Drop them, or use lengths")
        bags, time = input.shape
        begin = torch.arange(bags, device=input.device) * time
        if lengths is None:
            return index, begin, torch.full_like(begin, time)
        lengths = _whole_numbers("lengths", lengths, bags).to(input.device)
        if not is_compiling() and bags and int(lengths.max()) > time:
            raise PoolValueError(
                f"a length of {int(lengths.max())} is more than the {time} entries of a bag",
                "Lengths count the entries that are there",
            )
        return index, begin, lengths
    if mask is not None:
        raise PoolTypeError("a mask is for an input of rank 2", "Use offsets or lengths")
    if lengths is not None:
        lengths = _whole_numbers("lengths", lengths, None).to(input.device)
        if not is_compiling() and int(lengths.sum()) != len(index):
            raise PoolValueError(
                f"lengths add up to {int(lengths.sum())}, there are {len(index)} entries",
                "Each entry is in one bag",
            )
        return index, lengths.cumsum(0) - lengths, lengths
    if offsets is None:
        raise PoolTypeError("an input of rank 1 does not say where bags end", "Give offsets")
    offsets = _whole_numbers("offsets", offsets, None).to(input.device)
    if not is_compiling():
        _check_offsets(offsets, len(index), include_last_offset)
    if include_last_offset:
        return index, offsets[:-1], offsets.diff()
    ends = torch.cat([offsets[1:], offsets.new_full((min(len(offsets), 1),), len(index))])
    return index, offsets, ends - offsets


def _whole_numbers(name: str, given: Tensor, bags: int | None) -> Tensor:
    given = torch.as_tensor(given)
    if given.dtype not in (torch.int64, torch.int32) or given.ndim != 1:
        raise PoolTypeError(
            f"{name} must be integers in one row, got {describe(given)}", "Convert them"
        )
    if bags is not None and len(given) != bags:
        raise PoolValueError(
            f"there are {len(given)} {name} for {bags} bags", "Give one for each bag"
        )
    if not is_compiling() and len(given) and int(given.min()) < 0:
        raise PoolValueError(
            f"{name} must not be negative, got {int(given.min())}",
            "A bag without entries has length 0",
        )
    return given.long()


def _check_offsets(offsets: Tensor, entries: int, include_last_offset: bool) -> None:
    if include_last_offset and not len(offsets):
        raise PoolValueError("offsets are empty", "The last offset is the number of entries")
    if len(offsets) and int(offsets[0]) != 0:
        raise PoolValueError(f"offsets start at {int(offsets[0])}", "The first bag begins at 0")
    falls = torch.nonzero(offsets.diff() < 0).flatten()
    if len(falls):
        at = int(falls[0])
        raise PoolValueError(
            f"offsets fall from {int(offsets[at])} to {int(offsets[at + 1])} at place {at + 1}",
            "Offsets ascend",
        )
    if len(offsets) and int(offsets[-1]) > entries:
        raise PoolValueError(
            f"offsets go up to {int(offsets[-1])}, there are {entries} entries",
            "No bag begins behind the last entry",
        )
    if include_last_offset and int(offsets[-1]) != entries:
        raise PoolValueError(
            f"the last offset is {int(offsets[-1])}, there are {entries} entries",
            "With include_last_offset the last offset is the number of entries",
        )


def _there(
    input: Tensor, count: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """Which of the entries, in one row, are there; None for all."""
    if mask is not None:
        found = checked_mask(mask, input)
        return None if found is None else found.reshape(-1)
    if lengths is None or input.ndim == 1:
        return None
    return (torch.arange(input.shape[1], device=count.device) < count[:, None]).reshape(-1)


def _only(
    kept: Tensor, index: Tensor, begin: Tensor, count: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The entries that are there, and the bags of them."""
    before = F.pad(kept.long().cumsum(0), (1, 0))
    first, last = before[begin], before[begin + count]
    return index[kept], first, last - first, None if weights is None else weights[kept]


class EmbeddingBag(nn.Module):
    """`embedding_bag` with its table: torch's module, and every mode with weights, lengths and
    masks; nothing is gathered.

    Args:
        num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
            include_last_offset, padding_idx, device, dtype: as for ``torch.nn.EmbeddingBag``. Modes
            are those of `embedding_bag`; "attention" has a learned query, which starts at 0: the
            mean.

    >>> import torch, poolkit
    >>> bags = poolkit.nn.EmbeddingBag(10, 4, mode="attention")
    >>> bags(torch.tensor([[1, 2, 0], [3, 0, 0]]), lengths=torch.tensor([2, 1])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_mode(mode)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.mode, self.sparse = scale_grad_by_freq, mode, sparse
        self.include_last_offset = include_last_offset
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise PoolValueError(
                    f"padding_idx {padding_idx} is no row of {num_embeddings}", "Give one that is"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        if _weight is None:
            self.weight = nn.Parameter(
                torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
            )
        else:
            if tuple(_weight.shape) != (num_embeddings, embedding_dim):
                raise PoolValueError(
                    f"_weight has shape {tuple(_weight.shape)}",
                    f"Give ({num_embeddings}, {embedding_dim})",
                )
            self.weight = nn.Parameter(_weight)
        self.query = (
            nn.Parameter(torch.zeros(embedding_dim, device=device, dtype=dtype))
            if mode == "attention"
            else None
        )
        if _weight is None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows from a normal distribution, the padding's 0."""
        nn.init.normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].fill_(0)

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, **options: Any) -> Any:
        """The module of a table that is there."""
        rows, width = embeddings.shape
        made = cls(rows, width, _weight=embeddings, **options)
        made.weight.requires_grad_(not freeze)
        return made

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return embedding_bag(
            input,
            self.weight,
            offsets,
            self.mode,
            lengths=lengths,
            mask=mask,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            query=self.query,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"]
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        return ", ".join(parts)
