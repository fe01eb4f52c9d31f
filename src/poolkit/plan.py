"""A plan: everything about a call that does not depend on the values, worked out once.

Plans are cached by (window, reduction, spatial shape, dtype). What is validated here is
not validated again on the way down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from .dtypes import DTYPES, DType
from .errors import PoolTypeError
from .kernels import NativeKernel, native_kernel
from .reductions import Reduction, Sum, inner_of
from .windows import Spans, Window

__all__ = ["Plan", "plan_for", "plan_of_spans"]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one grid of windows is pooled over inputs of one spatial shape and dtype.

    Attributes:
        axes: the spans along each axis.
        output: the spatial shape of the result.
        result: the result's dtype.
        native: the compiled kernel, or None.
        why: one sentence on why there is a kernel or none.
    """

    window: Window
    reduction: Reduction
    dtype: DType
    shape: tuple[int, ...]
    axes: tuple[Spans, ...]
    output: tuple[int, ...]
    result: str
    native: NativeKernel | None
    why: str
    _transposed_kernels: dict[str, NativeKernel] = field(default_factory=dict)

    @cached_property
    def _transposed_axes(self) -> tuple[Spans, ...]:
        return tuple(span.transposed() for span in self.axes)

    def transposed(self, dtype_name: str) -> NativeKernel:
        """The kernel of the gradient of a sum, from the output's shape back to the input's: a sum
        over the transposed window, in the gradient's dtype."""
        kernel = self._transposed_kernels.get(dtype_name)
        if kernel is None:
            dtype = DTYPES[dtype_name]
            kernel = native_kernel(Sum(), self._transposed_axes, dtype, dtype_name)
            if kernel is None:
                raise PoolTypeError(f"there is no gradient in {dtype_name}", "Use a floating dtype")
            self._transposed_kernels[dtype_name] = kernel
        return kernel

    @cached_property
    def has_empty_windows(self) -> bool:
        """Whether a window lies wholly in the padding."""
        return any(bool((span.count == 0).any()) for span in self.axes)

    @cached_property
    def divisors(self) -> np.ndarray | int:
        """What each output of a mean is divided by: one number if they all agree."""
        product = np.ones((), dtype=np.int64)
        for factor in inner_of(self.reduction).divisors(self.axes):
            product = product[..., None] * factor
        first = product.flat[0] if product.size else 1
        return int(first) if (product == first).all() else product


@lru_cache(maxsize=2048)
def plan_for(window: Window, reduction: Reduction, shape: tuple[int, ...], dtype_name: str) -> Plan:
    """The plan of a window that has a single grid.

    Raises:
        PoolError: if the window does not fit the shape, or the reduction the dtype.
    """
    return plan_of_spans(window, reduction, window.axes(shape), shape, dtype_name)


def plan_of_spans(
    window: Window,
    reduction: Reduction,
    axes: tuple[Spans, ...],
    shape: tuple[int, ...],
    dtype_name: str,
) -> Plan:
    """The plan of a window whose spans over this shape are known already; it is not kept."""
    dtype = DTYPES[dtype_name]
    if reduction.result_dtype(dtype) == "bool" and dtype.kind != "bool":
        raise PoolTypeError(f"{reduction} of {dtype.name} has no meaning")
    result = reduction.result_dtype(dtype)
    native = native_kernel(reduction, axes, dtype, result)
    if native is not None:
        why = f"{reduction} of {dtype.name} has a kernel"
    elif reduction.kernel is None:
        why = f"{reduction} has no kernel: its algebra runs in whole-array operations"
    else:
        why = f"{reduction} of {dtype.name} to {result} has no kernel"
    return Plan(
        window,
        reduction,
        dtype,
        shape,
        axes,
        tuple(len(span.begin) for span in axes),
        result,
        native,
        why,
    )
