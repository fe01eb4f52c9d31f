"""Reductions of whole windows in a few plain operations of torch.

`composite` merges neighbours as a tree, so that memory stays small and every sum has an order. In a
graph that another program runs, or over an axis whose length is not known yet, one operation over
the last axis is what is wanted. Results are the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activations import ReLU
from ..arrays import arrays_of
from ..dtypes import DTYPES, dtype_of
from ..errors import PoolTypeError
from ..reductions import (
    Activated,
    BiInteraction,
    LogSumExp,
    Max,
    Median,
    Min,
    Place,
    Quantile,
    Reduction,
    Seen,
    Soft,
    Std,
    TopK,
)
from ..reductions.sums import Additive
from .plain import NAMES

__all__ = ["activate", "reduce_last"]

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


def reduce_last(x: Tensor, reduction: Reduction, seen: Tensor | None, counts: Seen) -> Tensor:
    """(..., positions) to (...), in the dtype that `poolkit.pool` gives.

    Args:
        seen: which positions are there; broadcasts against x. None if all are.
        counts: how many, as tensors that broadcast against the result.

    Raises:
        PoolTypeError: for a reduction that is not one of the library's.

    >>> import torch, poolkit
    >>> x = torch.tensor([[1.0, 3.0, 8.0]])
    >>> seen = torch.tensor([[True, True, False]])
    >>> reduce_last(x, poolkit.Mean(), seen, Seen(torch.tensor(2), torch.tensor(3)))
    tensor([1.3333])
    """
    if isinstance(reduction, Activated):
        if reduction.behind:
            return activate(reduce_last(x, reduction.inner, seen, counts), reduction)
        return reduce_last(activate(x, reduction), reduction.inner, seen, counts)
    dtype = dtype_of(x)
    working = reduction.working_dtype(dtype)
    values = x.to(_DTYPES[working])
    if DTYPES[working].size < 4 and DTYPES[working].kind == "int":
        values = values.int()  # few operators of other libraries take smaller integers
    result = _reduced(values, reduction, seen, counts)
    return result.to(_DTYPES[reduction.result_dtype(dtype)])


def activate(x: Tensor, reduction: Activated) -> Tensor:
    """The activation of an activated reduction, in the dtype of x."""
    if isinstance(reduction.function, ReLU):
        return x.relu()  # one operator, which others fuse; it may keep a -0.0
    return reduction.function.rounded(arrays_of(x), x)


def _where(seen: Tensor | None, x: Tensor, nothing: float) -> Tensor:
    return x if seen is None else torch.where(seen, x, nothing)


def _reduced(x: Tensor, reduction: Reduction, seen: Tensor | None, counts: Seen) -> Tensor:
    xp = arrays_of(x)
    if isinstance(reduction, Max | Min):
        nothing = reduction.identity(NAMES[x.dtype])[0]
        extreme = torch.amax if isinstance(reduction, Max) else torch.amin
        return extreme(_where(seen, x, nothing), -1)
    if isinstance(reduction, Additive):
        (lifted,) = reduction.lift(xp, x)
        return reduction.finish(xp, (_where(seen, lifted, 0).sum(-1),), counts)
    if isinstance(reduction, Quantile | Median):
        q = reduction.q if isinstance(reduction, Quantile) else 0.5
        return _quantile(x, q, seen, counts.inside)
    if isinstance(reduction, TopK):
        return _top(x, reduction.k, seen, counts.inside)
    if isinstance(reduction, Soft):
        share = _where(seen, x * reduction.beta, -torch.inf).softmax(-1)
        return (share * _where(seen, x, 0)).sum(-1)
    if isinstance(reduction, LogSumExp):
        total = _where(seen, x * reduction.r, -torch.inf).logsumexp(-1)
        return (total - counts.inside.to(x.dtype).log()) / reduction.r
    if isinstance(reduction, Std):
        return _deviation(x, reduction.correction, seen, counts.inside)
    if isinstance(reduction, BiInteraction):
        there = _where(seen, x, 0)
        return (there * (there.cumsum(-1) - there)).sum(-1)
    if isinstance(reduction, Place):
        return _at_place(x, reduction.last, seen)
    raise PoolTypeError(f"{reduction} has no form over whole windows", "Use one of the library's")


def _quantile(x: Tensor, q: float, seen: Tensor | None, count: Tensor) -> Tensor:
    ordered = _where(seen, x, torch.inf).sort(-1).values
    positions = x.shape[-1]
    if seen is None and isinstance(positions, int):
        first, weight = int((positions - 1) * q), (positions - 1) * q % 1
        lower = ordered[..., first]
        return lower if weight == 0 else lower + (ordered[..., first + 1] - lower) * weight
    rank = (count - 1).clamp(min=0).double() * q
    low = rank.floor()
    share = (rank - low).to(x.dtype)
    place = torch.arange(positions, device=x.device)

    def at(wanted: Tensor) -> Tensor:
        return torch.where(place == wanted[..., None], ordered, 0).sum(-1)

    # What is not there is infinite, and may not meet a share of 0.
    below, above = at(low), at(low + 1)
    mixed = torch.where(share > 0, below + (above - below) * share, below)
    return torch.where(count > 0, mixed, torch.nan)


def _top(x: Tensor, k: int, seen: Tensor | None, count: Tensor) -> Tensor:
    positions = x.shape[-1]
    if not isinstance(positions, int):
        ordered = _where(seen, x, -torch.inf).sort(-1, descending=True).values
        k = min(k, 2**31)
    else:
        k = min(k, positions)
        ordered = _where(seen, x, -torch.inf).topk(k, -1).values
        if seen is None:
            return ordered.mean(-1)
    taken = count.clamp(max=k)
    place = torch.arange(ordered.shape[-1], device=x.device)
    return torch.where(place < taken[..., None], ordered, 0).sum(-1) / taken


def _deviation(x: Tensor, correction: int, seen: Tensor | None, count: Tensor) -> Tensor:
    mean = _where(seen, x, 0).sum(-1, keepdim=True) / count[..., None]
    squares = _where(seen, (x - mean).square(), 0).sum(-1)
    free = (count - correction).to(x.dtype)
    return torch.where(free > 0, (squares / free).sqrt(), torch.nan)


def _at_place(x: Tensor, last: bool, seen: Tensor | None) -> Tensor:
    if seen is None:
        return x[..., -1] if last else x[..., 0]
    place = torch.arange(x.shape[-1], device=x.device)
    ranked = torch.where(seen, place if last else -place - 1, -x.shape[-1] - 1)
    taken = torch.where(place == ranked.argmax(-1)[..., None], x, 0).sum(-1)
    nothing = torch.nan if x.dtype.is_floating_point else 0
    return torch.where(seen.any(-1), taken, nothing)
