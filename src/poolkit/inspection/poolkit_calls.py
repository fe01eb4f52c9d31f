"""poolkit's own calls and modules, under the names that torch has for them."""

from __future__ import annotations

from typing import Any

from torch import nn

import poolkit.nn
from poolkit.inspection.operations import SIGNATURES, Call, Pooling
from poolkit.reductions import Lp, Max, Mean, Reduction, as_reduction
from poolkit.windows import Adaptive, Global, Sliding, Window, as_window


def named(
    window: Window,
    reduction: Reduction,
    ndim: int,
    channels_last: bool = False,
    return_indices: bool = False,
) -> Pooling:
    """The pooling of a call of ``poolkit.pool``, as torch's function where there is an equal one.

    >>> named(Sliding(3, stride=2), Max(), 2).operation
    'max_pool2d'
    >>> named(Sliding(3, dilation=2), Mean(), 2).operation
    'pool'
    """
    found = None if channels_last else _in_torch(window, reduction)
    if found is None:
        given = {"window": window, "reduction": reduction, "ndim": ndim}
        return Pooling("pool", {**given, "channels_last": channels_last})
    stem, arguments = found
    if return_indices:
        arguments["return_indices"] = True
    return Pooling(f"{stem}{ndim}d", arguments)


def from_operator(call: Call) -> Pooling | None:
    """The pooling of a call of ``torch.ops.poolkit.pool``, as exported graphs have them."""
    if call.name not in ("pool", "pool_positions", "pool_behind") or len(call.args) != 4:
        return None
    _, window, reduction, ndim = call.args
    return named(as_window(window), as_reduction(reduction), ndim)


def _in_torch(window: Window, reduction: Reduction) -> tuple[str, dict[str, Any]] | None:
    """Stem and arguments of torch's function, or None."""
    if type(window) is Global and type(reduction) in (Max, Mean):
        return ("global_max_pool" if type(reduction) is Max else "global_avg_pool"), {}
    if type(window) is Adaptive and type(reduction) in (Max, Mean):
        stem = "adaptive_max_pool" if type(reduction) is Max else "adaptive_avg_pool"
        return stem, {"output_size": window.output_size}
    if type(window) is not Sliding or not _symmetric(window.padding):
        return None
    given = {"kernel_size": window.kernel_size, "stride": window.stride, "padding": window.padding}
    given = {key: value for key, value in given.items() if value is not None}
    given["ceil_mode"] = window.ceil_mode
    if type(reduction) is Max:
        return "max_pool", {**given, "dilation": window.dilation}
    if window.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        return None
    if type(reduction) is Mean:
        given["count_include_pad"] = reduction.count_include_pad
        if reduction.divisor is not None:
            given["divisor_override"] = reduction.divisor
        return "avg_pool", given
    if type(reduction) is Lp and window.padding in (0, "valid"):
        del given["padding"]
        return "lp_pool", {"norm_type": reduction.p, **given}
    return None


def _symmetric(padding: Any) -> bool:
    """Whether torch can say this padding: one number for both sides of an axis."""
    sides = padding if isinstance(padding, tuple) else (padding,)
    return all(isinstance(side, int) for side in sides)


def is_poolkits(module: nn.Module) -> bool:
    """Whether a module is one of ``poolkit.nn``."""
    return getattr(poolkit.nn, type(module).__name__, None) is type(module)


def from_poolkit(module: nn.Module) -> Pooling | None:
    """The pooling that a module of ``poolkit.nn`` does, read from its attributes."""
    if not is_poolkits(module):
        return None
    operation = function_name(type(module).__name__)
    if operation not in SIGNATURES:
        return None
    arguments = {
        name: getattr(module, name)
        for name in SIGNATURES[operation]
        if getattr(module, name, None) is not None
    }
    return Pooling(operation, arguments)


def function_name(class_name: str) -> str:
    """The function that a pooling class stands for.

    >>> function_name("AdaptiveAvgPool2d"), function_name("LPPool1d"), function_name("MaxUnpool3d")
    ('adaptive_avg_pool2d', 'lp_pool1d', 'max_unpool3d')
    """
    words = class_name.replace("LP", "Lp")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")
