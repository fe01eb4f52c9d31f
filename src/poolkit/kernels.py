"""From a plan to a native call: addresses, sizes and a thread count."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native
from .dtypes import DTYPES, DType
from .errors import PoolTypeError, PoolValueError
from .reductions import Activated, Reduction, inner_of
from .windows import Spans

__all__ = ["NativeKernel", "info", "native_kernel", "num_threads", "set_num_threads", "use_isa"]

# OpenMP reserves a stack for each thread that it is asked for, whether there is a core or not.
MOST_THREADS = 1024

_threads: int | None = None


def num_threads() -> int:
    """Threads used on NumPy arrays: `set_num_threads`, else OMP_NUM_THREADS, else the cores that
    this process may use. On torch tensors ``torch.get_num_threads()`` decides."""
    global _threads
    if _threads is None:
        # A list has one entry for each level of nesting.
        setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if setting.isdigit() and int(setting) > 0:
            _threads = min(int(setting), MOST_THREADS)
        elif hasattr(os, "sched_getaffinity"):
            _threads = len(os.sched_getaffinity(0))
        else:
            _threads = os.cpu_count() or 1
    return _threads


def set_num_threads(threads: int) -> None:
    """Sets the threads used on NumPy arrays.

    A forked child starts with 1: the threads of its parent do not exist in it, and OpenMP would
    wait for them for ever.

    Raises:
        PoolValueError, PoolTypeError: for fewer than 1, more than 1024, or no integer.
    """
    global _threads
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise PoolTypeError(f"threads must be an integer, got {threads!r}", "Give 1 or more")
    if threads < 1:
        raise PoolValueError(f"threads must be at least 1, got {threads}", "Give a positive number")
    if threads > MOST_THREADS:
        raise PoolValueError(
            f"threads must be at most {MOST_THREADS}, got {threads}",
            "Give the number of cores or fewer",
        )
    _threads = threads


def _after_fork() -> None:
    global _threads
    _threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def use_isa(name: str) -> None:
    """Forces one of ``info()["available"]``: every instruction set gives the same bits.

    The environment variable POOLKIT_ISA does the same at start.

    Raises:
        PoolValueError: if this machine or this build does not have it.
    """
    if not isinstance(name, str) or not _native.use_isa(name):
        raise PoolValueError(
            f"the instruction set {name!r} is not available here",
            f"One of: {', '.join(_native.available_isas())}",
        )


def _check_forced_isa() -> None:
    """A POOLKIT_ISA that names nothing must not pass for having been obeyed."""
    name = os.environ.get("POOLKIT_ISA")
    if name:
        use_isa(name)


_check_forced_isa()


def info() -> dict[str, Any]:
    """The instruction set in use, those available, and the threads for NumPy arrays."""
    return {
        "isa": _native.isa(),
        "available": list(_native.available_isas()),
        "threads": num_threads(),
    }


class NativeKernel:
    """The compiled kernel of one plan.

    Addresses are those of contiguous arrays of shape (outer, *spatial, inner): `inner` is 1 for
    channels in front, and the channels for channels behind.
    """

    __slots__ = (
        "_plan",
        "chain",
        "forward",
        "forward_ahead",
        "indices",
        "position_bytes",
        "scatter",
        "spread",
    )

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        # forward(x, out, positions or 0, outer, inner, threads)
        self.forward = plan.forward
        # forward_ahead(the same): an activation in front of a max or min, not behind it
        self.forward_ahead = plan.forward_ahead
        # chain(x, out, images, channels, levels, threads)
        self.chain = plan.chain
        # indices(positions, out, outer, inner, threads): flat spatial positions, int64
        self.indices = plan.indices
        # scatter(grad_out, positions, grad_in, outer, inner, threads)
        self.scatter = plan.scatter
        # spread(grad_out, grad_in, outer, inner, threads): False where `Plan.transposed` is faster
        self.spread = plan.spread
        self.position_bytes: int = plan.position_bytes


def native_kernel(
    reduction: Reduction, axes: Sequence[Spans], dtype: DType, result: str
) -> NativeKernel | None:
    """The kernel of a reduction over these spans, or None where there is none."""
    kernel = reduction.kernel
    if kernel is None or not 1 <= len(axes) <= _native.MAX_AXES:
        return None
    activation, parameter, behind = "", 0.0, False
    if isinstance(reduction, Activated):
        function = reduction.function
        activation, parameter = function.kernel_name, function.parameter
        if not _native.has_activation(activation, dtype.name):
            return None
        # A window that sees nothing has nothing that could be activated.
        behind = reduction.behind and not any(bool((span.count == 0).any()) for span in axes)
    if kernel.divides and DTYPES[result].kind == "int":
        return None  # the kernels of integers have a sum, and a mean that is floating
    divisors = inner_of(reduction).divisors(axes) if kernel.divides else ()
    storage = "uint8" if dtype.kind == "bool" else dtype.name
    stored_result = "uint8" if result == "bool" else result
    if not _native.has_kernel(kernel.name, storage, stored_result):
        return None
    plan = _native_plan(
        kernel.name,
        storage,
        stored_result,
        kernel.exponent,
        kernel.second,
        axes,
        divisors,
        activation,
        parameter,
        behind,
    )
    return NativeKernel(plan)


def requantizing_kernel(
    reduction: Reduction,
    axes: Sequence[Spans],
    dtype: DType,
    scale: float,
    zero_point: int,
    out_scale: float,
    out_zero_point: int,
    rounding: str,
) -> NativeKernel | None:
    """The kernel of a sum or mean of quantized values, or None for too many axes. It adds up in
    32 bits, or in 16 where the largest window has room there: the caller sees to the former."""
    if not 1 <= len(axes) <= _native.MAX_AXES:
        return None
    positions = math.prod(max(span.taps, 1) for span in axes)
    name = "quantized_mean_of_few" if positions * 255 < 2**15 else "quantized_mean"
    divides = reduction.kernel is not None and reduction.kernel.divides
    divisors = reduction.divisors(axes) if divides else ()
    plan = _native_plan(name, dtype.name, dtype.name, float(zero_point), 0.0, axes, divisors)
    plan.requantize(scale, out_scale, out_zero_point, rounding)
    return NativeKernel(plan)


def _native_plan(
    name: str,
    dtype: str,
    result: str,
    exponent: float,
    second: float,
    axes: Sequence[Spans],
    divisors: Sequence[np.ndarray],
    activation: str = "",
    parameter: float = 0.0,
    behind: bool = False,
) -> Any:
    return _native.Plan(
        name,
        dtype,
        result,
        exponent,
        second,
        [span.size for span in axes],
        [np.ascontiguousarray(span.begin, dtype=np.int64) for span in axes],
        [np.ascontiguousarray(span.count, dtype=np.int64) for span in axes],
        [span.step for span in axes],
        [np.ascontiguousarray(d, dtype=np.int64) for d in divisors],
        activation,
        parameter,
        behind,
    )
