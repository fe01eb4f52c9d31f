"""Bags of torch tensors: operators, and gradients that are bags themselves.

The gradient of a table is a sum over the bags that see each row, the gradient of the weights an
inner product, and each of these differentiates into the others, so no gathered row is kept. All
sums are in the order of the entries: the same bits for any number of threads. Transforms of
torch.func and forward mode are shown whole-array operations.

Four operators. On the CPU they are kernels; on other devices, and in dtypes without a kernel, they
are made of whole-array operations, which gather the rows.

    bag_pool       sums, maxima, minima and softmax-weighted means of rows
    bag_products   the inner product of each entry's row with its bag's
    bag_transpose  which bags see each row
    bag_scatter    the adjoint of picking a max or min
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..bags import Addresses
from ..errors import PoolValueError
from .autograd import apply
from .plain import NAMES, real_dtype

__all__ = ["pool_bags", "row_products", "softmax_of_entries"]

_library = torch.library.Library("poolkit", "FRAGMENT")
_library.define(
    "bag_pool(Tensor table, Tensor? index, Tensor begin, Tensor count, Tensor? weights, "
    "Tensor? divisors, str reduction, float parameter, bool places) -> (Tensor, Tensor)"
)
_library.define(
    "bag_products(Tensor table, Tensor? index, Tensor begin, Tensor count, Tensor own) -> Tensor"
)
_library.define(
    "bag_transpose(Tensor? index, Tensor begin, Tensor count, SymInt entries, SymInt rows)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "bag_scatter(Tensor grad, Tensor places, Tensor? index, Tensor begin, Tensor count, "
    "Tensor? weights, SymInt rows) -> Tensor"
)

_NAMES = {dtype: name for dtype, name in NAMES.items() if dtype.is_floating_point}
# Elements of gathered rows at a time, where rows are gathered.
GATHERED = 2**22


def pool_bags(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    reduction: str,
    *,
    weights: Tensor | None = None,
    divisors: Tensor | None = None,
    parameter: float = 1.0,
) -> Tensor:
    """(bags, width) from a table (rows, width), differentiable in the table, the weights and the
    divisors. What it is given has been checked.

    Args:
        index: the row of each entry (int64), or None where entry e is row e.
        begin, count: the entries of each bag (int64); `begin` does not descend.
        reduction: "sum" (divided by `divisors`, if there are any), "max" or "min" of the weighted
            rows, or "soft" with `parameter`, where weights say how often a row is seen.
        weights: one for each entry, divisors: one for each bag; of any floating dtype.
    """
    real = real_dtype(table.dtype)
    weights = None if weights is None else weights.to(real)
    divisors = None if divisors is None else divisors.to(real)
    if _transformed():
        _check(table, index, begin, count)
        return _in_whole_arrays(table, index, begin, count, weights, divisors, reduction, parameter)
    if reduction == "sum":
        out: Tensor = apply(BagSum, table, index, begin, count, weights, divisors)
    elif reduction == "soft":
        out = apply(BagSoft, table, index, begin, count, weights, parameter)
    else:
        out, _ = apply(BagPick, table, index, begin, count, weights, reduction)
    return out


def row_products(
    table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor, own: Tensor
) -> Tensor:
    """(entries): the inner product of each entry's row with its bag's row in `own`, in float32 or
    float64; 0 for entries of no bag."""
    if _transformed():
        _check(table, index, begin, count)
        return _bag_products_gathered(table, index, begin, count, own.to(table.dtype))
    products: Tensor = apply(BagProducts, table, index, begin, count, own.to(table.dtype))
    return products


def _transformed() -> bool:
    """Whether a transform of torch.func or forward mode looks on: the whole-array operations
    differentiate themselves in every way that these ask for."""
    return not is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def _in_whole_arrays(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    divisors: Tensor | None,
    reduction: str,
    parameter: float,
) -> Tensor:
    """`pool_bags` in operations that differentiate themselves."""
    if reduction in ("sum", "soft"):
        out, _ = _bag_pool_gathered(
            table, index, begin, count, weights, divisors, reduction, parameter, False
        )
        return out
    if not len(begin):
        return table.new_zeros((0, table.shape[1]))
    # The gradient goes to the first of equal values, so what is largest is found without one.
    _, places = _bag_pool_gathered(
        table.detach(), index, begin, count, None if weights is None else weights.detach(), None,
        reduction, parameter, True,
    )  # fmt: skip
    entry = _entry_of(places.long(), begin, count)
    picked = table.gather(0, entry if index is None else index[entry]).to(real_dtype(table.dtype))
    picked = picked if weights is None else picked * weights[entry]
    return torch.where(count[:, None] > 0, picked, 0.0).to(table.dtype)


def softmax_of_entries(
    scores: Tensor, begin: Tensor, count: Tensor, weights: Tensor | None = None
) -> Tensor:
    """(entries): the softmax over each bag of the scores of its entries, counted as often as
    `weights` say. Finite for any finite scores, and 0 for entries of no bag."""
    bag = _bag_of(begin, scores.shape[0])
    member = _is_member(begin, count, bag)
    bag = torch.where(member, bag, 0)
    top = pool_bags(scores.detach()[:, None], None, begin, count, "max")[:, 0]
    share = torch.where(member, (scores - top[bag]).exp(), 0.0)
    if weights is not None:
        share = share * weights.to(scores.dtype)
    total = pool_bags(share[:, None], None, begin, count, "sum")[:, 0]
    return torch.where(member, share / total[bag], 0.0)


def entries_of(index: Tensor | None, table: Tensor) -> Any:
    return table.shape[0] if index is None else index.shape[0]


def _bag_of(begin: Tensor, entries: Any) -> Tensor:
    """The bag of each entry, of those that are in one."""
    every = torch.arange(entries, device=begin.device)
    return torch.searchsorted(begin, every, right=True).sub(1).clamp(min=0)


def _is_member(begin: Tensor, count: Tensor, bag: Tensor) -> Tensor:
    """Whether each entry is in the bag that `_bag_of` says."""
    place = torch.arange(len(bag), device=begin.device) - begin[bag]
    return (place >= 0) & (place < count[bag])


# --- operators -----------------------------------------------------------------------------------


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _check(table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor) -> None:
    """A kernel looks at whatever memory it is told to. Compiled programs get here, too."""
    rows = table.shape[0]
    if index is not None and len(index):
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= rows:
            wrong = torch.nonzero((index < 0) | (index >= rows))[0]
            raise PoolValueError(
                f"entry {int(wrong)} names row {int(index[wrong])} of a table of {rows} rows",
                f"Rows are 0 to {rows - 1}" if rows else "Drop it: the table has no rows",
            )
    if len(begin):
        entries = entries_of(index, table)
        low, high = int(torch.minimum(begin, count).min()), int((begin + count).max())
        if low < 0 or high > entries:
            raise PoolValueError(
                f"bags reach from entry {low} to {high}, there are {entries}",
                "Offsets ascend from 0 to at most the number of entries",
            )


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


def _addresses(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None = None,
    divisors: Tensor | None = None,
) -> Addresses:
    return Addresses(
        table.data_ptr(), _address(index), begin.data_ptr(), count.data_ptr(), len(begin),
        table.shape[1], entries_of(index, table), _address(weights), _address(divisors),
    )  # fmt: skip


@torch.library.impl(_library, "bag_pool", "CPU")
def _bag_pool(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    divisors: Tensor | None,
    reduction: str,
    parameter: float,
    places: bool,
) -> tuple[Tensor, Tensor]:
    if table.dtype not in _NAMES:
        return _bag_pool_gathered(
            table, index, begin, count, weights, divisors, reduction, parameter, places
        )
    _check(table, index, begin, count)
    held = _contiguous(table, index, begin, count, weights, divisors)
    out = table.new_empty((len(begin), table.shape[1]))
    codes = _empty_places(out, places)
    _addresses(*held).pool(
        reduction, _NAMES[table.dtype], parameter, out.data_ptr(),
        codes.data_ptr() if places else 0, torch.get_num_threads(),
    )  # fmt: skip
    return out, codes


def _empty_places(out: Tensor, places: bool) -> Tensor:
    return out.new_empty(out.shape if places else (0,), dtype=torch.int32)


@torch.library.impl(_library, "bag_pool", "CompositeExplicitAutograd")
def _bag_pool_gathered(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    divisors: Tensor | None,
    reduction: str,
    parameter: float,
    places: bool,
) -> tuple[Tensor, Tensor]:
    rows, real = table if index is None else table[index], real_dtype(table.dtype)
    bag = _bag_of(begin, len(rows))
    member = _is_member(begin, count, bag)[:, None]
    shape = (len(begin), table.shape[1])
    rows = rows.to(real)
    if reduction == "soft":
        out = _soft(rows, bag, member, weights, parameter, shape)
        return out.to(table.dtype), _empty_places(table.new_empty(shape), False)
    if weights is not None:
        rows = rows * weights[:, None]
    if reduction == "sum":
        out = rows.new_zeros(shape).index_add(0, bag, torch.where(member, rows, 0.0))
        if divisors is not None:
            out = torch.where(count[:, None] > 0, out / divisors[:, None], 0.0)
        return out.to(table.dtype), _empty_places(table.new_empty(shape), False)
    largest = reduction == "max"
    nothing = float("-inf" if largest else "inf")
    kept = torch.where(member, rows, nothing)
    where = bag[:, None].expand_as(rows)
    out = rows.new_full(shape, nothing).scatter_reduce(
        0, where, kept, "amax" if largest else "amin"
    )
    place = torch.arange(len(rows), device=rows.device)[:, None] - begin[bag][:, None]
    at = out[bag]
    broken = rows != rows
    # The first of equal values, or the last NaN: those come first if they are counted backwards.
    found = torch.where(member & (broken | (rows == at)), place, torch.iinfo(torch.int64).max)
    first = found.new_zeros(shape).scatter_reduce(0, where, found, "amin", include_self=False)
    last = found.new_full(shape, -1).scatter_reduce(
        0, where, torch.where(member & broken, place, -1), "amax"
    )
    codes = torch.where(last >= 0, last, first)
    present = count[:, None] > 0
    return (
        torch.where(present, out, 0.0).to(table.dtype),
        torch.where(present, codes, 0).to(torch.int32),
    )


def _soft(
    rows: Tensor, bag: Tensor, member: Tensor, weights: Tensor | None, beta: float, shape: Any
) -> Tensor:
    """Σ w x e^(beta x) / Σ w e^(beta x) over the entries of each bag."""
    where = bag[:, None].expand_as(rows)
    kept = torch.where(member, rows.detach(), float("-inf"))
    top = rows.new_full(shape, float("-inf")).scatter_reduce(0, where, kept, "amax")
    top = torch.where(top.isinf() | top.isnan(), 0.0, top)
    apart = rows - top[bag]
    share = torch.where(member, (apart * beta).exp(), 0.0)
    if weights is not None:
        share = share * weights[:, None]
    total = rows.new_zeros(shape).index_add(0, bag, share)
    weighted = torch.where(share == 0, 0.0, share * apart)
    mean = top + rows.new_zeros(shape).index_add(0, bag, weighted) / total
    present = rows.new_zeros(shape[0]).index_add(0, bag, member[:, 0].to(rows.dtype)) > 0
    return torch.where(present[:, None], mean, 0.0)


@torch.library.register_fake("poolkit::bag_pool", lib=_library)
def _(
    table: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    divisors: Tensor | None,
    reduction: str,
    parameter: float,
    places: bool,
) -> tuple[Tensor, Tensor]:
    out = table.new_empty((begin.shape[0], table.shape[1]))
    return out, _empty_places(out, places)


@torch.library.impl(_library, "bag_products", "CPU")
def _bag_products(
    table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor, own: Tensor
) -> Tensor:
    if table.dtype not in _NAMES:
        return _bag_products_gathered(table, index, begin, count, own)
    _check(table, index, begin, count)
    table, index, begin, count, own = _contiguous(table, index, begin, count, own)
    out = table.new_zeros(entries_of(index, table), dtype=real_dtype(table.dtype))
    _addresses(table, index, begin, count).products(
        _NAMES[table.dtype], own.data_ptr(), out.data_ptr(), torch.get_num_threads()
    )
    return out


@torch.library.impl(_library, "bag_products", "CompositeExplicitAutograd")
def _bag_products_gathered(
    table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor, own: Tensor
) -> Tensor:
    rows, real = table if index is None else table[index], real_dtype(table.dtype)
    bag = _bag_of(begin, len(rows))
    products = (rows.to(real) * own[bag].to(real)).sum(1)
    return torch.where(_is_member(begin, count, bag), products, 0.0)


@torch.library.register_fake("poolkit::bag_products", lib=_library)
def _(table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor, own: Tensor) -> Tensor:
    return table.new_empty(entries_of(index, table), dtype=real_dtype(table.dtype))


@torch.library.impl(_library, "bag_transpose", "CPU")
def _bag_transpose(
    index: Tensor | None, begin: Tensor, count: Tensor, entries: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, begin, count = _contiguous(index, begin, count)
    begin_of, count_of = begin.new_empty(rows), begin.new_empty(rows)
    entry, bag = begin.new_zeros(entries), begin.new_zeros(entries)
    Addresses(
        0, _address(index), begin.data_ptr(), count.data_ptr(), len(begin), 0, entries
    ).transpose(rows, begin_of.data_ptr(), count_of.data_ptr(), entry.data_ptr(), bag.data_ptr())
    return begin_of, count_of, entry, bag


@torch.library.impl(_library, "bag_transpose", "CompositeExplicitAutograd")
def _bag_transpose_sorted(
    index: Tensor | None, begin: Tensor, count: Tensor, entries: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bag = _bag_of(begin, entries)
    row = torch.arange(entries, device=begin.device) if index is None else index
    row = torch.where(_is_member(begin, count, bag), row, rows)  # the others last
    entry = torch.sort(row, stable=True).indices
    count_of = torch.bincount(row, minlength=rows + 1)[:rows]
    return count_of.cumsum(0) - count_of, count_of, entry, bag[entry]


@torch.library.register_fake("poolkit::bag_transpose", lib=_library)
def _(
    index: Tensor | None, begin: Tensor, count: Tensor, entries: Any, rows: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        begin.new_empty(rows),
        begin.new_empty(rows),
        begin.new_empty(entries),
        begin.new_empty(entries),
    )


@torch.library.impl(_library, "bag_scatter", "CPU")
def _bag_scatter(
    grad: Tensor,
    places: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    rows: int,
) -> Tensor:
    real = real_dtype(grad.dtype)
    out = grad.new_zeros((rows, grad.shape[1]), dtype=real)
    held = _contiguous(grad.to(real), index, begin, count, weights)
    places = places.contiguous()
    _addresses(*held).scatter(
        _NAMES[real], places.data_ptr(), out.data_ptr(), torch.get_num_threads()
    )
    return out.to(grad.dtype)


@torch.library.impl(_library, "bag_scatter", "CompositeExplicitAutograd")
def _bag_scatter_whole(
    grad: Tensor,
    places: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    rows: int,
) -> Tensor:
    real = real_dtype(grad.dtype)
    if not len(begin):
        return grad.new_zeros((rows, grad.shape[1]))
    entry = _entry_of(places, begin, count)
    share = torch.where(count[:, None] > 0, grad.to(real), 0.0)
    if weights is not None:
        share = share * weights[entry]
    row = entry if index is None else index[entry]
    out = grad.new_zeros((rows, grad.shape[1]), dtype=real)
    return out.scatter_add(0, row, share).to(grad.dtype)


def _entry_of(places: Tensor, begin: Tensor, count: Tensor) -> Tensor:
    """The entry that each value is from; any one for bags without."""
    return torch.where(count[:, None] > 0, begin[:, None] + places, 0)


@torch.library.register_fake("poolkit::bag_scatter", lib=_library)
def _(
    grad: Tensor,
    places: Tensor,
    index: Tensor | None,
    begin: Tensor,
    count: Tensor,
    weights: Tensor | None,
    rows: Any,
) -> Tensor:
    return grad.new_empty((rows, grad.shape[1]))


# --- gradients -----------------------------------------------------------------------------------


class BagSum(torch.autograd.Function):
    """Sums of weighted rows, divided. Saves the weights, and the table if they have a gradient."""

    @staticmethod
    def forward(
        table: Tensor,
        index: Tensor | None,
        begin: Tensor,
        count: Tensor,
        weights: Tensor | None,
        divisors: Tensor | None,
    ) -> Tensor:
        out, _ = torch.ops.poolkit.bag_pool.default(
            table, index, begin, count, weights, divisors, "sum", 1.0, False
        )
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        table, index, begin, count, weights, divisors = inputs
        ctx.rows, ctx.entries = table.shape[0], entries_of(index, table)
        kept = table if weights is not None and ctx.needs_input_grad[4] else None
        result = output if divisors is not None and ctx.needs_input_grad[5] else None
        ctx.save_for_backward(kept, index, begin, count, weights, divisors, result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        table, index, begin, count, weights, divisors, result = ctx.saved_tensors
        by_table = by_weights = by_divisors = None
        real = real_dtype(grad.dtype)
        if divisors is not None:  # a bag without entries has a sum of weights that is 0
            divisors = torch.where(count > 0, divisors, 1.0)
        if ctx.needs_input_grad[0]:
            begin_of, count_of, entry, bag = torch.ops.poolkit.bag_transpose.default(
                index, begin, count, ctx.entries, ctx.rows
            )
            share = None if weights is None else weights[entry]
            if divisors is not None:
                share = (1.0 if share is None else share) / divisors[bag]
            by_table = apply(BagSum, grad, bag, begin_of, count_of, share, None)
        if ctx.needs_input_grad[4]:
            by_weights = apply(BagProducts, table, index, begin, count, grad)
            if divisors is not None:
                bag = _bag_of(begin, ctx.entries)
                member = _is_member(begin, count, bag)
                by_weights = torch.where(member, by_weights / divisors[bag], 0.0)
        if ctx.needs_input_grad[5]:
            by_divisors = -(grad.to(real) * result.to(real)).sum(1) / divisors
            by_divisors = torch.where(count > 0, by_divisors, 0.0)
        return by_table, None, None, None, by_weights, by_divisors


class BagProducts(torch.autograd.Function):
    """Inner products of entries with their bags' rows: both gradients are bags of weighted rows."""

    @staticmethod
    def forward(
        table: Tensor, index: Tensor | None, begin: Tensor, count: Tensor, own: Tensor
    ) -> Tensor:
        products: Tensor = torch.ops.poolkit.bag_products.default(table, index, begin, count, own)
        return products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        table, index, begin, count, own = ctx.saved_tensors
        by_table = by_own = None
        if ctx.needs_input_grad[0]:
            begin_of, count_of, entry, bag = torch.ops.poolkit.bag_transpose.default(
                index, begin, count, entries_of(index, table), table.shape[0]
            )
            by_table = apply(BagSum, own, bag, begin_of, count_of, grad[entry], None)
        if ctx.needs_input_grad[4]:
            by_own = apply(BagSum, table, index, begin, count, grad, None)
        return by_table, None, None, None, by_own


class BagPick(torch.autograd.Function):
    """Maxima and minima of weighted rows, and the entry of its bag that each is from."""

    @staticmethod
    def forward(
        table: Tensor,
        index: Tensor | None,
        begin: Tensor,
        count: Tensor,
        weights: Tensor | None,
        reduction: str,
    ) -> tuple[Tensor, Tensor]:
        # Places are int32, saved when something is to be learned from them.
        learns = table.requires_grad or (weights is not None and weights.requires_grad)
        out, places = torch.ops.poolkit.bag_pool.default(
            table, index, begin, count, weights, None, reduction, 1.0, learns
        )
        return out, places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        table, index, begin, count, weights, _ = inputs
        ctx.rows, ctx.entries = table.shape[0], entries_of(index, table)
        kept = table if weights is not None and ctx.needs_input_grad[4] else None
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(kept, index, begin, count, weights, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        table, index, begin, count, weights, places = ctx.saved_tensors
        by_table = by_weights = None
        if ctx.needs_input_grad[0]:
            scatter = (
                _bag_scatter_whole  # differentiates itself
                if torch.is_grad_enabled()
                else torch.ops.poolkit.bag_scatter.default
            )
            by_table = scatter(grad, places, index, begin, count, weights, ctx.rows)
        if ctx.needs_input_grad[4]:
            real = real_dtype(grad.dtype)
            entry = _entry_of(places, begin, count)
            row = entry if index is None else index[entry]
            picked = table.gather(0, row).to(real) * grad.to(real)
            picked = torch.where(count[:, None] > 0, picked, 0.0)
            by_weights = picked.new_zeros(ctx.entries)
            by_weights = by_weights.index_add(0, entry.flatten(), picked.flatten())
        return by_table, None, None, None, by_weights, None


class BagSoft(torch.autograd.Function):
    """Means weighted by a softmax of the values. The gradient gathers rows, so many at a time."""

    @staticmethod
    def forward(
        table: Tensor,
        index: Tensor | None,
        begin: Tensor,
        count: Tensor,
        weights: Tensor | None,
        parameter: float,
    ) -> Tensor:
        out, _ = torch.ops.poolkit.bag_pool.default(
            table, index, begin, count, weights, None, "soft", parameter, False
        )
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.parameter = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        table, index, begin, count, weights = ctx.saved_tensors
        real = real_dtype(table.dtype)
        by_table = table.new_zeros(table.shape, dtype=real)
        by_weights = None if weights is None else torch.zeros_like(weights)
        bag = _bag_of(begin, entries_of(index, table))
        member = torch.nonzero(_is_member(begin, count, bag)).flatten()
        bag = bag[member]
        step = max(1, GATHERED // max(table.shape[1], 1))
        edges = [0]  # of chunks of whole bags
        ends = count.cumsum(0)
        while edges[-1] < len(member):
            reached = torch.searchsorted(ends, edges[-1] + step, right=True)
            stop = int(ends[max(int(reached) - 1, 0)]) if len(ends) else 0
            if stop <= edges[-1]:  # one bag of more rows than that
                stop = int(ends[torch.searchsorted(ends, edges[-1], right=True)])
            edges.append(stop)
        for first, last in pairwise(edges):
            chosen = member[first:last]
            row = chosen if index is None else index[chosen]
            own = bag[first:last]
            low, high = int(own[0]), int(own[-1]) + 1
            with torch.enable_grad():
                leaf = table[row].to(real).requires_grad_()
                share = None if weights is None else weights[chosen].requires_grad_()
                every = torch.ones(len(row), 1, dtype=torch.bool, device=row.device)
                shape = (high - low, table.shape[1])
                pooled = _soft(leaf, own - low, every, share, ctx.parameter, shape)
                leaves = [leaf] if share is None else [leaf, share]
                found = torch.autograd.grad(pooled, leaves, grad[low:high].to(real))
            by_table.index_add_(0, row, found[0])
            if by_weights is not None:
                by_weights[chosen] = found[1]
        return by_table.to(table.dtype), None, None, None, by_weights, None
