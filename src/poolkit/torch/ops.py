"""The operators that torch's dispatcher knows, with their fake (shape only) and vmap versions.

Five pieces with native kernels, from which `autograd` puts their gradients together:

    pool            values: the one that takes every reduction, on every device
    pool_positions  values, and one small code for where each was found (max and min)
    scatter         the adjoint of picking those positions
    spread          the adjoint of a sum or a mean
    indices         position codes as flat spatial positions

three for values that are activated while they are pooled,

    pool_behind          `pool_positions` with a monotone activation behind it; where ReLU ends the
                         gradient, the code is that of no position
    spread_activated     `spread`, and what comes back through the activation
    activation_backward  what comes back through an activation

two that are made of whole-array operations, for every reduction and every device,

    pool_backward   the gradient of `pool`
    locate          the flat spatial position of each value (max and min)

and one of exported graphs that are optimised:

    chain           a max pooling of its own result, all results joined in one pass

The gradients of `pool` and `chain`, should an exported graph call them, are in `dispatch`, which
knows the kind of a reduction. Windows and reductions travel as their recipes. The spatial axes are
the last `ndim` ones; any number may be in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _native as _kernels
from ..activations import as_activation
from ..composite import composite, composite_indices
from ..dtypes import DTYPES
from ..errors import PoolValueError
from ..plan import Plan, plan_for
from ..recipes import parts_of
from ..reductions import Activated, Reduction, as_reduction
from ..windows import Window, as_window
from .layout import as_laid_out, empty_like_layout, has_format, laid_out_like
from .plain import NAMES

__all__ = [
    "NAMES",
    "codes_dtype",
    "has_format",
    "laid_out_like",
    "native_of",
    "plan_of",
    "pool_on_cpu",
    "to_front",
]

# Text is read while a compiler traces, not by the compiled program.
torch.compiler.assume_constant_result(parts_of)

_library = torch.library.Library("poolkit", "DEF")
# Inductor turns convolutions into channels last, and would turn what lies between two of them back
# for an operator that does not say that it takes either.
_ANY_LAYOUT = torch.Tag.flexible_layout
_library.define(
    "pool(Tensor x, str window, str reduction, int ndim) -> Tensor", tags=(_ANY_LAYOUT,)
)
_library.define("pool_positions(Tensor x, str window, str reduction, int ndim) -> (Tensor, Tensor)")
_library.define("scatter(Tensor grad, Tensor positions, str window, SymInt[] spatial) -> Tensor")
_library.define("spread(Tensor grad, str window, str reduction, SymInt[] spatial) -> Tensor")
_library.define("indices(Tensor positions, str window, SymInt[] spatial) -> Tensor")
_library.define(
    "pool_backward(Tensor grad, Tensor x, str window, str reduction, int ndim) -> Tensor"
)
_library.define("pool_behind(Tensor x, str window, str reduction, int ndim) -> (Tensor, Tensor)")
_library.define(
    "spread_activated(Tensor grad, Tensor x, str window, str reduction, str activation, int ndim)"
    " -> Tensor"
)
_library.define("activation_backward(Tensor grad, Tensor x, str activation) -> Tensor")
_library.define("locate(Tensor x, str window, str reduction, int ndim) -> Tensor")
_library.define("chain(Tensor x, str window, int levels) -> Tensor")

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


def _parsed(window: str, reduction: str) -> tuple[Window, Reduction]:
    return as_window(window), as_reduction(reduction)


@lru_cache(maxsize=4096)
def _plan_of(window: str, reduction: str, spatial: tuple[int, ...], dtype: torch.dtype) -> Plan:
    return plan_for(*_parsed(window, reduction), tuple(int(n) for n in spatial), NAMES[dtype])


def plan_of(window: str, reduction: str, spatial: Sequence[int], dtype: torch.dtype) -> Plan:
    """The plan of two recipes."""
    return _plan_of(window, reduction, tuple(spatial), dtype)


def native_of(plan: Plan) -> Any:
    assert plan.native is not None, "dispatch routes only what has a kernel here"
    return plan.native


def codes_dtype(plan: Plan) -> torch.dtype:
    return (torch.uint8, torch.uint16, torch.uint32)[native_of(plan).position_bytes // 2]


@torch.library.impl(_library, "pool", "CPU")
def pool_on_cpu(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    plan = _plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    if plan.native is None:
        return _pool_composite(x, window, reduction, ndim)
    x, (outer, inner, behind) = as_laid_out(x, ndim)
    out = empty_like_layout(x, ndim, plan.output, _DTYPES[plan.result], behind)
    plan.native.forward(x.data_ptr(), out.data_ptr(), 0, outer, inner, torch.get_num_threads())
    return out


@torch.library.impl(_library, "pool", "CompositeExplicitAutograd")
def _pool_composite(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    plan = plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    return laid_out_like(x, composite(x, plan.axes, plan.reduction), ndim)


def chain_on_cpu(x: Tensor, window: str, levels: int) -> Tensor:
    """The chain in one pass over each plane of (N, C, H, W) or (C, H, W)."""
    plan = _plan_of(window, "Max()", x.shape[-2:], x.dtype)
    x = x.contiguous()
    *images, channels, height, width = x.shape
    out = x.new_empty((*images, (1 + levels) * channels, height, width))
    native_of(plan).chain(
        x.data_ptr(), out.data_ptr(), images[0] if images else 1, channels, levels,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


@torch.library.impl(_library, "chain", "CompositeExplicitAutograd")
def _chain(x: Tensor, window: str, levels: int) -> Tensor:
    if x.is_cpu and _plan_of(window, "Max()", x.shape[-2:], x.dtype).native is not None:
        return chain_on_cpu(x, window, levels)
    parts = [x]
    for _ in range(levels):
        parts.append(torch.ops.poolkit.pool.default(parts[-1], window, "Max()", 2))
    return torch.cat(parts, dim=-3)


@contextmanager
def _differentiating() -> Iterator[None]:
    """Autograd inside an operator, whoever calls it: compiled programs turn it off around them."""
    key, excluded = torch._C.DispatchKey, torch._C._dispatch_tls_local_exclude_set()
    for name in (key.AutogradFunctionality, key.AutogradOther, key.AutogradNestedTensor):
        excluded = excluded.remove(name)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


@torch.library.impl(_library, "pool_backward", "CompositeExplicitAutograd")
def _pool_backward(grad: Tensor, x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    plan = plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    with _differentiating():
        leaf = x.detach().requires_grad_()
        pooled = composite(leaf, plan.axes, plan.reduction)
        (gradient,) = torch.autograd.grad(pooled, leaf, grad)
    return laid_out_like(x, gradient, ndim)


def _check_seen(plan: Plan) -> None:
    """A window that lies wholly in the padding has a value (the identity) but no position."""
    if plan.has_empty_windows:
        raise PoolValueError(
            "a window lies wholly in the padding, so its value has no position",
            "Use less padding, or pool without gradient and positions",
        )


@torch.library.impl(_library, "locate", "CompositeExplicitAutograd")
def _locate(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    plan = plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    _check_seen(plan)
    return laid_out_like(x, composite_indices(x, plan.axes, plan.reduction), ndim)


@torch.library.impl(_library, "pool_positions", "CPU")
def _pool_positions(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
    plan = _plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    activated = isinstance(plan.reduction, Activated)
    return _with_codes(
        plan, native_of(plan).forward_ahead if activated else native_of(plan).forward, x
    )


@torch.library.impl(_library, "pool_behind", "CPU")
def _pool_behind(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
    plan = _plan_of(window, reduction, x.shape[x.ndim - ndim :], x.dtype)
    return _with_codes(plan, native_of(plan).forward, x)


def _with_codes(plan: Plan, forward: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    _check_seen(plan)
    ndim = len(plan.shape)
    x, (outer, inner, behind) = as_laid_out(x, ndim)
    out = empty_like_layout(x, ndim, plan.output, _DTYPES[plan.result], behind)
    codes = empty_like_layout(x, ndim, plan.output, codes_dtype(plan), behind)
    forward(x.data_ptr(), out.data_ptr(), codes.data_ptr(), outer, inner, torch.get_num_threads())
    return out, codes


def _plan_of_codes(window: str, spatial: Sequence[int], dtype: torch.dtype, codes: Tensor) -> Plan:
    """The plan whose codes are as wide as these: one code more may take a byte more."""
    plan = plan_of(window, "Max()", spatial, dtype)
    if native_of(plan).position_bytes == codes.dtype.itemsize:
        return plan
    return plan_of(window, "Activated('Max()', 'ReLU()')", spatial, dtype)


def _laid_out_alike(grad: Tensor, codes: Tensor, ndim: int) -> tuple[Tensor, Tensor, Any]:
    """Both tensors in the layout of the codes, which is that of the values they belong to."""
    codes, layout = as_laid_out(codes, ndim)
    if grad.stride() != codes.stride():
        grad = torch.empty_strided(
            codes.shape, codes.stride(), dtype=grad.dtype, device=grad.device
        ).copy_(grad)
    return grad, codes, layout


@torch.library.impl(_library, "scatter", "CPU")
def _scatter(grad: Tensor, positions: Tensor, window: str, spatial: Sequence[int]) -> Tensor:
    ndim = len(spatial)
    plan = _plan_of_codes(window, spatial, grad.dtype, positions)
    grad, positions, (outer, inner, behind) = _laid_out_alike(grad, positions, ndim)
    out = empty_like_layout(grad, ndim, plan.shape, grad.dtype, behind)
    native_of(plan).scatter(
        grad.data_ptr(),
        positions.data_ptr(),
        out.data_ptr(),
        outer,
        inner,
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(_library, "spread", "CPU")
def _spread(grad: Tensor, window: str, reduction: str, spatial: Sequence[int]) -> Tensor:
    ndim = len(spatial)
    plan = plan_of(window, reduction, spatial, grad.dtype)
    grad, (outer, inner, behind) = as_laid_out(grad, ndim)
    out = empty_like_layout(grad, ndim, plan.shape, grad.dtype, behind)
    if 0 in plan.output:  # no bins: there is nothing to add up
        return out.zero_()
    threads = torch.get_num_threads()
    if native_of(plan).spread(grad.data_ptr(), out.data_ptr(), outer, inner, threads):
        return out
    wanted = grad.dtype
    if plan.reduction.kernel is not None and plan.reduction.kernel.divides:
        divisors = plan.divisors
        # Division rounds once more in half types, so there it is done in float32.
        grad = grad.float() if grad.dtype.itemsize == 2 else grad
        by = divisors if isinstance(divisors, int) else torch.from_numpy(divisors).to(grad.dtype)
        grad = grad / by
        grad, _ = as_laid_out(grad, ndim)
    if grad.dtype != wanted:
        out = empty_like_layout(grad, ndim, plan.shape, grad.dtype, behind)
    plan.transposed(NAMES[grad.dtype]).forward(
        grad.data_ptr(), out.data_ptr(), 0, outer, inner, threads
    )
    return out.to(wanted)


@torch.library.impl(_library, "spread_activated", "CPU")
def _spread_activated(
    grad: Tensor, x: Tensor, window: str, reduction: str, activation: str, ndim: int
) -> Tensor:
    spread = _spread(grad, window, reduction, x.shape[x.ndim - ndim :])
    return _through_activation(spread, x, activation)


@torch.library.impl(_library, "activation_backward", "CPU")
def _activation_backward(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    return _through_activation(grad.clone(), x, activation)


def _through_activation(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """What of a gradient, whose memory is used again, comes back through the activation at x."""
    function = as_activation(activation)
    if grad.stride() != x.stride():
        x = torch.empty_strided(grad.shape, grad.stride(), dtype=x.dtype).copy_(x)
    _kernels.activation_gradient(
        function.kernel_name,
        NAMES[grad.dtype],
        function.parameter,
        grad.data_ptr(),
        x.data_ptr(),
        grad.numel(),
        torch.get_num_threads(),
    )
    return grad


@torch.library.impl(_library, "indices", "CPU")
def _indices(positions: Tensor, window: str, spatial: Sequence[int]) -> Tensor:
    ndim = len(spatial)
    plan = _plan_of_codes(window, spatial, torch.float32, positions)
    positions, (outer, inner, behind) = as_laid_out(positions, ndim)
    out = empty_like_layout(positions, ndim, plan.output, torch.int64, behind)
    native_of(plan).indices(
        positions.data_ptr(), out.data_ptr(), outer, inner, torch.get_num_threads()
    )
    return out


# --- shapes only -------------------------------------------------------------------------------


def _output(window: Window, x: Tensor, ndim: int) -> tuple[Any, ...]:
    return window.output_shape(x.shape[x.ndim - ndim :])


@torch.library.register_fake("poolkit::pool", lib=_library)
def _pool_fake(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    seen, reduced = _parsed(window, reduction)
    x, (_, _, behind) = as_laid_out(x, ndim)
    result = _DTYPES[reduced.result_dtype(DTYPES[NAMES[x.dtype]])]
    return empty_like_layout(x, ndim, _output(seen, x, ndim), result, behind)


@torch.library.register_fake("poolkit::chain", lib=_library)
def _chain_fake(x: Tensor, window: str, levels: int) -> Tensor:
    *images, channels, height, width = x.shape
    return x.new_empty((*images, (1 + levels) * channels, height, width))


def _code_bytes(window: Window, spatial: Sequence[Any], spare: int = 0) -> int:
    """Bytes of a position code: 1 for windows of up to 256 positions, 2 up to 65536, else 4; less
    the spare ones, which are no positions.

    Bounds come first, as they hold for symbolic sizes too; only where they do not decide are the
    spans made, of sizes that are then fixed.
    """
    least, most = (bound + spare for bound in window.taps_bound(spatial))
    if most <= 256:
        return 1
    if least > 256:
        return 2 if most <= 65536 else 4
    positions = 1
    for span in window.axes([int(size) for size in spatial]):
        positions *= max(span.taps, 1)
    positions += spare
    return 1 if positions <= 256 else 2 if positions <= 65536 else 4


@torch.library.register_fake("poolkit::pool_positions", lib=_library)
def _pool_positions_fake(
    x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[Tensor, Tensor]:
    out = _pool_fake(x, window, reduction, ndim)
    reduced = as_reduction(reduction)
    spare = int(isinstance(reduced, Activated) and reduced.ends_gradient)
    size = _code_bytes(as_window(window), x.shape[x.ndim - ndim :], spare)
    codes = (torch.uint8, torch.uint16, torch.uint32)[size // 2]
    return out, torch.empty_like(out, dtype=codes)


@torch.library.register_fake("poolkit::pool_behind", lib=_library)
def _pool_behind_fake(x: Tensor, window: str, reduction: str, ndim: int) -> tuple[Tensor, Tensor]:
    return _pool_positions_fake(x, window, reduction, ndim)


@torch.library.register_fake("poolkit::spread_activated", lib=_library)
def _spread_activated_fake(
    grad: Tensor, x: Tensor, window: str, reduction: str, activation: str, ndim: int
) -> Tensor:
    return _spread_fake(grad, window, reduction, x.shape[x.ndim - ndim :])


@torch.library.register_fake("poolkit::activation_backward", lib=_library)
def _activation_backward_fake(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    return torch.empty_like(grad)


@torch.library.register_fake("poolkit::pool_backward", lib=_library)
def _pool_backward_fake(grad: Tensor, x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    x, (_, _, behind) = as_laid_out(x, ndim)
    return empty_like_layout(x, ndim, tuple(x.shape[x.ndim - ndim :]), x.dtype, behind)


@torch.library.register_fake("poolkit::locate", lib=_library)
def _locate_fake(x: Tensor, window: str, reduction: str, ndim: int) -> Tensor:
    return torch.empty_like(_pool_fake(x, window, reduction, ndim), dtype=torch.int64)


@torch.library.register_fake("poolkit::scatter", lib=_library)
def _scatter_fake(grad: Tensor, positions: Tensor, window: str, spatial: Sequence[Any]) -> Tensor:
    ndim = len(spatial)
    positions, (_, _, behind) = as_laid_out(positions, ndim)
    return empty_like_layout(positions, ndim, tuple(spatial), grad.dtype, behind)


@torch.library.register_fake("poolkit::spread", lib=_library)
def _spread_fake(grad: Tensor, window: str, reduction: str, spatial: Sequence[Any]) -> Tensor:
    grad, (_, _, behind) = as_laid_out(grad, len(spatial))
    return empty_like_layout(grad, len(spatial), tuple(spatial), grad.dtype, behind)


@torch.library.register_fake("poolkit::indices", lib=_library)
def _indices_fake(positions: Tensor, window: str, spatial: Sequence[Any]) -> Tensor:
    positions, _ = as_laid_out(positions, len(spatial))
    return torch.empty_like(positions, dtype=torch.int64)


# --- vmap: any number of axes may be in front, so a batch axis goes there ------------------------


def to_front(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    if axis is None:
        return tensor.expand(size, *tensor.shape)
    return tensor.movedim(axis, 0)


@torch.library.register_vmap("poolkit::pool", lib=_library)
def _pool_vmap(
    info: Any, axes: Any, x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[Tensor, int]:
    x = to_front(x, axes[0], info.batch_size)
    return torch.ops.poolkit.pool.default(x, window, reduction, ndim), 0


@torch.library.register_vmap("poolkit::chain", lib=_library)
def _chain_vmap(info: Any, axes: Any, x: Tensor, window: str, levels: int) -> tuple[Tensor, int]:
    x = to_front(x, axes[0], info.batch_size)
    whole = torch.ops.poolkit.chain.default(x.reshape(-1, *x.shape[-3:]), window, levels)
    return whole.reshape(*x.shape[:-3], *whole.shape[-3:]), 0


@torch.library.register_vmap("poolkit::pool_positions", lib=_library)
def _pool_positions_vmap(
    info: Any, axes: Any, x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    x = to_front(x, axes[0], info.batch_size)
    return torch.ops.poolkit.pool_positions.default(x, window, reduction, ndim), (0, 0)


@torch.library.register_vmap("poolkit::scatter", lib=_library)
def _scatter_vmap(
    info: Any, axes: Any, grad: Tensor, positions: Tensor, window: str, spatial: Sequence[int]
) -> tuple[Tensor, int]:
    grad = to_front(grad, axes[0], info.batch_size)
    positions = to_front(positions, axes[1], info.batch_size)
    return torch.ops.poolkit.scatter.default(grad, positions, window, spatial), 0


@torch.library.register_vmap("poolkit::spread", lib=_library)
def _spread_vmap(
    info: Any, axes: Any, grad: Tensor, window: str, reduction: str, spatial: Sequence[int]
) -> tuple[Tensor, int]:
    grad = to_front(grad, axes[0], info.batch_size)
    return torch.ops.poolkit.spread.default(grad, window, reduction, spatial), 0


@torch.library.register_vmap("poolkit::indices", lib=_library)
def _indices_vmap(
    info: Any, axes: Any, positions: Tensor, window: str, spatial: Sequence[int]
) -> tuple[Tensor, int]:
    positions = to_front(positions, axes[0], info.batch_size)
    return torch.ops.poolkit.indices.default(positions, window, spatial), 0


@torch.library.register_vmap("poolkit::pool_behind", lib=_library)
def _pool_behind_vmap(
    info: Any, axes: Any, x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    x = to_front(x, axes[0], info.batch_size)
    return torch.ops.poolkit.pool_behind.default(x, window, reduction, ndim), (0, 0)


@torch.library.register_vmap("poolkit::spread_activated", lib=_library)
def _spread_activated_vmap(
    info: Any,
    axes: Any,
    grad: Tensor,
    x: Tensor,
    window: str,
    reduction: str,
    activation: str,
    ndim: int,
) -> tuple[Tensor, int]:
    grad = to_front(grad, axes[0], info.batch_size)
    x = to_front(x, axes[1], info.batch_size)
    run = torch.ops.poolkit.spread_activated.default
    return run(grad, x, window, reduction, activation, ndim), 0


@torch.library.register_vmap("poolkit::activation_backward", lib=_library)
def _activation_backward_vmap(
    info: Any, axes: Any, grad: Tensor, x: Tensor, activation: str
) -> tuple[Tensor, int]:
    grad = to_front(grad, axes[0], info.batch_size)
    x = to_front(x, axes[1], info.batch_size)
    return torch.ops.poolkit.activation_backward.default(grad, x, activation), 0


@torch.library.register_vmap("poolkit::pool_backward", lib=_library)
def _pool_backward_vmap(
    info: Any, axes: Any, grad: Tensor, x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[Tensor, int]:
    grad = to_front(grad, axes[0], info.batch_size)
    x = to_front(x, axes[1], info.batch_size)
    return torch.ops.poolkit.pool_backward.default(grad, x, window, reduction, ndim), 0


@torch.library.register_vmap("poolkit::locate", lib=_library)
def _locate_vmap(
    info: Any, axes: Any, x: Tensor, window: str, reduction: str, ndim: int
) -> tuple[Tensor, int]:
    x = to_front(x, axes[0], info.batch_size)
    return torch.ops.poolkit.locate.default(x, window, reduction, ndim), 0
