"""Feature crossing: the products of all pairs of fields, pooled in one pass.

Half of the square of the sum less the sum of squares is the usual way to add up all pairs, and
cancels where fields are alike. Here every value meets the sum of those before it (`BiInteraction`),
which does not, and reads the fields once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, describe, dtype_name
from ..reductions import BiInteraction
from ..torch.autograd import apply
from ..torch.plain import real_dtype
from ..windows import Global, Segments
from ..windows.segments import laid_out

__all__ = ["FM", "BiInteractionPool", "bi_interaction", "fm_interaction"]


def bi_interaction(
    x: Tensor, segments: Segments | None = None, *, weights: Tensor | None = None
) -> Tensor:
    """The sum of the products of all pairs, ``Σ_{i<j} x_i x_j``, feature by feature.

    Args:
        x: dense fields (..., fields, dim), or rows (rows, dim), or a padded batch, with `segments`.
        segments: which rows belong together: bags of features of any number.
        weights: the value of each field, (..., fields) or (rows), by which it is multiplied.

    Returns:
        (..., dim), or (segments, dim), in the dtype of x. Half types accumulate in float32. Fewer
        than two fields give 0.

    Raises:
        PoolValueError, PoolTypeError: for shapes that do not fit, and dtypes that are not floating.

    Source: Xiangnan He and Tat-Seng Chua, "Neural factorization machines for sparse predictive
    analytics", 2017.

    >>> import torch, poolkit
    >>> fields = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 1.0]])
    >>> poolkit.bi_interaction(fields)       # 1*3 + 1*5 + 3*5, 2*0 + 2*1 + 0*1
    tensor([23.,  2.])
    >>> poolkit.bi_interaction(fields, poolkit.Segments(offsets=[0, 2, 3]))
    tensor([[3., 0.],
            [0., 0.]])
    """
    try:
        _check(x, segments)
        if weights is not None:
            ahead = tuple(x.shape[:-1])
            if tuple(weights.shape) != ahead:
                raise PoolValueError(
                    f"weights have shape {tuple(weights.shape)}, fields {ahead}",
                    "Give one for each field",
                )
        if segments is None and x.shape[-2] == 0:
            return x.sum(-2)  # no field: 0
        # No backward may read segments while it is traced, and forward mode asks for none. Nested
        # tensors are no rows that could be counted.
        traced = segments is not None and is_compiling()
        if traced or x.is_nested or forward_ad._current_level >= 0:
            return _pooled(_weighted(x, weights), segments, BiInteraction()).to(x.dtype)
        pooled: Tensor = apply(_Pairs, x, weights, segments)
        return pooled
    except PoolError as error:
        raise error.during(f"{describe(x)} by bi_interaction") from None


def fm_interaction(
    x: Tensor, segments: Segments | None = None, *, weights: Tensor | None = None
) -> Tensor:
    """The second-order term of a factorization machine, ``Σ_{i<j} <x_i, x_j>``: `bi_interaction`
    summed over the features, (...) or (segments).

    Source: Steffen Rendle, "Factorization machines", 2010.

    >>> import torch, poolkit
    >>> poolkit.fm_interaction(torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 1.0]]))
    tensor(25.)
    """
    half = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize == 2
    pairs = bi_interaction(x.float() if half else x, segments, weights=weights)
    return pairs.sum(-1).to(x.dtype)  # rounded once


def _check(x: Any, segments: Segments | None) -> None:
    if not isinstance(x, Tensor):
        raise PoolTypeError(
            f"a torch tensor was expected, got {type(x).__name__}",
            "Use poolkit.pool(x, window, 'bi_interaction') for NumPy arrays",
        )
    if not x.is_floating_point():
        raise PoolTypeError(f"fields of {x.dtype} have no gradient", "Convert them to floating")
    if segments is None and x.ndim < 2:
        raise PoolValueError(
            f"fields must be (..., fields, dim), got rank {x.ndim}", "Add an axis of fields"
        )
    if segments is not None and not isinstance(segments, Segments):
        raise PoolTypeError(
            f"segments must be poolkit.Segments, got {type(segments).__name__}",
            "Write Segments(offsets=...)",
        )


def _pooled(x: Tensor, segments: Segments | None, reduction: Any) -> Tensor:
    """(..., dim) or (segments, dim), and with dense fields one window over them."""
    if segments is not None:
        over: Tensor = pool(x, segments, reduction)
        return over
    pooled: Tensor = pool(x, Global(), reduction, ndim=1, channels_last=True)
    return pooled[..., 0, :]


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """Half types are not rounded in between."""
    if weights is None:
        return x
    wide = real_dtype(x.dtype)
    return x.to(wide) * weights.to(wide)[..., None]


class _Pairs(torch.autograd.Function):
    """The gradient of x_i is the sum of the others: that of all less x_i. Saves the input alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weights: Tensor | None, segments: Segments | None) -> Tensor:
        return _pooled(_weighted(x, weights), segments, BiInteraction()).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weights, ctx.segments = inputs
        ctx.save_for_backward(x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weights = ctx.saved_tensors
        values = _weighted(x, weights)
        wide = real_dtype(x.dtype)
        if is_compiling():  # a backward may not look at the layout there
            total = values.sum(-2, dtype=wide)
        else:
            total = _pooled(values.to(wide), ctx.segments, "sum")
        outside = None
        if ctx.segments is None:
            others = _less(total[..., None, :], values, grad[..., None, :])
        else:
            segment, outside = _segment_of_rows(x, ctx.segments)
            others = _less(total[segment], values, grad[segment])
        if outside is not None:  # where x may be anything
            others = torch.where(outside[..., None], 0.0, others)
            x = torch.where(outside[..., None], 0.0, x)
        if weights is None:
            return others.to(x.dtype), None, None
        by_weights = (others * x).sum(-1).to(weights.dtype) if ctx.needs_input_grad[1] else None
        return (others * weights[..., None]).to(x.dtype), by_weights, None


def _less(total: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """``(total - x) * grad``, in one piece of memory unless it will be differentiated."""
    if torch.is_grad_enabled():
        return (total - x) * grad
    return (total - x).mul_(grad)


def _segment_of_rows(x: Tensor, segments: Segments) -> tuple[Tensor, Tensor | None]:
    """The segment of each row, and which rows are in none, if any."""
    lead = x.shape[: 2 if segments.dense else 1]
    every = torch.arange(lead.numel()).reshape(lead)
    found = segments.rows_of(every)
    owner, rows = laid_out(found.begin, found.count)
    segment = torch.from_numpy(owner)
    if segments.form == "offsets":
        return segment.to(x.device), None
    place = found.values.reshape(-1)[torch.from_numpy(rows)]
    outside = torch.ones(lead.numel(), dtype=torch.bool).index_fill(0, place, False)
    of_row = torch.zeros(lead.numel(), dtype=torch.long).index_put((place,), segment)
    return (
        of_row.reshape(lead).to(x.device),
        outside.reshape(lead).to(x.device) if len(place) < len(outside) else None,
    )


def _check_whole(values: Tensor) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype is torch.bool:
        raise PoolTypeError(
            f"values of fields are whole numbers, got {dtype_name(values)}", "Use fields.long()"
        )


class BiInteractionPool(nn.Module):
    """`bi_interaction` as a module: (N, fields, dim) to (N, dim).

    >>> import torch, poolkit
    >>> poolkit.nn.BiInteractionPool()(torch.ones(4, 6, 8)).shape
    torch.Size([4, 8])
    """

    def forward(
        self, x: Tensor, segments: Segments | None = None, *, weights: Tensor | None = None
    ) -> Tensor:
        return bi_interaction(x, segments, weights=weights)


class FM(nn.Module):
    """A factorization machine: ``w_0 + Σ w_i + Σ_{i<j} <v_i, v_j>`` over the values of the fields.

    Args:
        cardinalities: how many values each field has.
        dim: of the factors v.

    Attributes:
        linear, factors: the tables of all fields behind each other; bias: w_0.

    Shape: whole numbers (N, fields), each below its field's cardinality, to (N). With `segments`,
        bags of any number of features: (rows), numbered through all fields (a value and the
        `starts` of its field), to (segments). With `weights`, of the same shape, each feature has
        that value instead of 1.

    Source: Steffen Rendle, "Factorization machines", 2010.

    >>> import torch, poolkit
    >>> machine = poolkit.nn.FM([100, 20, 7], dim=4)
    >>> machine(torch.tensor([[3, 19, 0], [99, 0, 6]])).shape
    torch.Size([2])
    """

    def __init__(self, cardinalities: Sequence[int], dim: int) -> None:
        super().__init__()
        sizes = [int(size) for size in cardinalities]
        if not sizes or min(sizes) < 1:
            raise PoolValueError(
                f"cardinalities must be positive, got {sizes}", "Give one for each field"
            )
        self.cardinalities, self.dim = sizes, dim
        self.linear = nn.Embedding(sum(sizes), 1)
        self.factors = nn.Embedding(sum(sizes), dim)
        self.bias = nn.Parameter(torch.zeros(()))
        ends = torch.tensor(sizes).cumsum(0)
        self.register_buffer("starts", ends - ends.diff(prepend=torch.zeros(1, dtype=torch.long)))
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.factors.weight, std=dim**-0.5 / 10)

    def embed(self, fields: Tensor) -> Tensor:
        """The factors of each field's value, (N, fields, dim)."""
        rows: Tensor = self.factors(self._rows(fields))
        return rows

    def forward(
        self, fields: Tensor, segments: Segments | None = None, *, weights: Tensor | None = None
    ) -> Tensor:
        try:
            rows = self._rows(fields) if segments is None else self._features(fields)
        except PoolError as error:
            raise error.during(f"{describe(fields)} by FM") from None
        pairs = fm_interaction(self.factors(rows), segments, weights=weights)
        linear = _weighted(self.linear(rows), weights)
        alone = linear.sum((1, 2)) if segments is None else pool(linear, segments, "sum")[:, 0]
        out: Tensor = self.bias + alone.to(pairs.dtype) + pairs
        return out

    def _rows(self, fields: Tensor) -> Tensor:
        known = len(self.cardinalities)
        if fields.ndim != 2 or fields.shape[1] != known:
            raise PoolValueError(
                f"fields must be (N, {known}), got {tuple(fields.shape)}",
                "Give one whole number for each field",
            )
        _check_whole(fields)
        if not is_compiling() and fields.numel():
            sizes = torch.tensor(self.cardinalities, device=fields.device)
            wrong = torch.nonzero((fields < 0) | (fields >= sizes))
            if len(wrong):
                row, field = wrong[0].tolist()
                raise PoolValueError(
                    f"field {field} of row {row} is {int(fields[row, field])}",
                    f"It has {self.cardinalities[field]} values, from 0",
                )
        starts: Tensor = self.starts  # type: ignore[assignment]
        return fields.long() + starts

    def _features(self, features: Tensor) -> Tensor:
        known = sum(self.cardinalities)
        if features.ndim != 1:
            raise PoolValueError(
                f"the features of bags must be (rows), got {tuple(features.shape)}",
                "Give one whole number for each row of the segments",
            )
        _check_whole(features)
        if not is_compiling() and features.numel():
            low, high = features.aminmax()
            if low < 0 or high >= known:
                raise PoolValueError(
                    f"features go from {int(low)} to {int(high)}",
                    f"All fields together have {known} values, from 0",
                )
        return features.long()

    def extra_repr(self) -> str:
        return f"{len(self.cardinalities)} fields, dim={self.dim}"
