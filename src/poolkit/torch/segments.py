"""Segments of torch tensors: the native kernels with their gradients on the CPU, else whole-array
operations, which differentiate themselves.

A max or min saves the place of each value within its segment, sums and means nothing, and others
the input, whose gradient is that of the whole-array operations. In compiled programs, and where a
mode, a tracer or a transform of torch.func looks on, the whole-array operations run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..plan import Plan
from ..ragged import in_buckets
from ..windows import Spans
from ..windows.segments import laid_out
from .bags import pool_bags
from .ops import codes_dtype, native_of
from .plain import is_plain

__all__ = ["run_bags", "run_rows", "runs_rows"]


def runs_rows(rows: Tensor) -> bool:
    """Whether the kernels may run on these rows."""
    return is_plain(rows) and forward_ad._current_level < 0


def run_rows(rows: Tensor, plan: Plan) -> Tensor:
    """(segments, width) from (rows, width), by the kernel of the plan."""
    rows = rows.contiguous()
    if rows.requires_grad and torch.is_grad_enabled():
        kernel = plan.reduction.kernel
        kind = kernel.kind if kernel is not None else "whole"
        run: Any = {"pick": _PickRows, "sum": _SumRows}.get(kind, _WholeRows)
        return run.apply(rows, plan)
    return _forward(rows, plan)


def run_bags(
    rows: Tensor,
    spans: Spans,
    name: str,
    weights: Tensor | None,
    divisors: Tensor | np.ndarray | None,
    parameter: float,
) -> Tensor:
    """(segments, width) from (rows, width), weighted or divided by other numbers than counts."""

    def there(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(rows.device)

    if isinstance(divisors, np.ndarray):
        divisors = there(divisors)
    if weights is not None:
        weights = weights.to(rows.device)
    return pool_bags(
        rows, None, there(spans.begin), there(spans.count), name,
        weights=weights, divisors=divisors, parameter=parameter,
    )  # fmt: skip


def _forward(rows: Tensor, plan: Plan, codes: Tensor | None = None) -> Tensor:
    out = rows.new_empty((*plan.output, rows.shape[1]), dtype=getattr(torch, plan.result))
    at = 0 if codes is None else codes.data_ptr()
    threads = torch.get_num_threads()
    native_of(plan).forward(rows.data_ptr(), out.data_ptr(), at, 1, rows.shape[1], threads)
    return out


def _input_like(grad: Tensor, plan: Plan) -> Tensor:
    return grad.new_empty((*plan.shape, grad.shape[1]))


class _PickRows(torch.autograd.Function):
    """Max and min: values, and the place of each within its segment."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Plan) -> Tensor:
        shape = (*plan.output, rows.shape[1])
        codes = torch.empty(shape, dtype=codes_dtype(plan))
        out = _forward(rows, plan, codes)
        ctx.plan = plan
        ctx.save_for_backward(codes)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (codes,) = ctx.saved_tensors
        plan = ctx.plan
        if torch.is_grad_enabled():  # the gradient will be differentiated
            first = torch.from_numpy(np.ascontiguousarray(plan.axes[0].begin))[:, None]
            zeros = grad.new_zeros((*plan.shape, grad.shape[1]))
            return zeros.scatter(0, first + codes.long(), grad), None
        grad = grad.contiguous()
        out = _input_like(grad, plan)
        threads = torch.get_num_threads()
        native_of(plan).scatter(
            grad.data_ptr(), codes.data_ptr(), out.data_ptr(), 1, grad.shape[1], threads
        )
        return out, None


class _SumRows(torch.autograd.Function):
    """Sums and means: nothing is saved."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return _forward(rows, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan = ctx.plan
        if torch.is_grad_enabled():
            return _spread_rows(grad, plan), None
        grad = grad.contiguous()
        out = _input_like(grad, plan)
        threads = torch.get_num_threads()
        written = native_of(plan).spread(grad.data_ptr(), out.data_ptr(), 1, grad.shape[1], threads)
        assert written, "one segment sees a row, so it is written once"
        return out, None


def _spread_rows(grad: Tensor, plan: Plan) -> Tensor:
    """The adjoint of a sum or mean, by operations that differentiate themselves."""
    span = plan.axes[0]
    if plan.reduction.kernel is not None and plan.reduction.kernel.divides:
        by = torch.from_numpy(plan.reduction.divisors(plan.axes)[0]).to(grad.dtype)
        grad = grad / by[:, None]
    seer, places = laid_out(span.begin, span.count)
    zeros = grad.new_zeros((*plan.shape, grad.shape[1]))
    return zeros.index_put((torch.from_numpy(places),), grad[torch.from_numpy(seer)])


class _WholeRows(torch.autograd.Function):
    """All others: the kernel's values, and the gradient of the whole-array operations."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(rows)
        return _forward(rows, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        plan, twice = ctx.plan, torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = rows if twice else rows.detach().requires_grad_()
            pooled = in_buckets(leaf, plan.axes[0], plan.reduction)
            (gradient,) = torch.autograd.grad(pooled, leaf, grad, create_graph=twice)
        return gradient, None
