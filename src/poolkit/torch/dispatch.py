"""Who runs a call on a torch tensor: the native kernel, aten, or the composite path.

In this order: the native kernel on CPU tensors; aten where it does the same and is as good (tiny
inputs, where the overhead of a call decides; plain max and average on other devices); else the
composite path, which runs everywhere and differentiates itself. What aten runs saves for its
gradient what aten saves: for a max the input and eight bytes per output, where a native one saves
a code of one byte (two or four for windows of more than 256 positions).

A compiler traces the same lines with three differences: no cache is read or written, as it would
guard on its contents; the composite path is one operator instead of many; and in inference aten
runs up to `SMALL`, and for maps of any size where a result is one or sees `FEW` positions in
channels last: torch.compile fuses it with what stands around, but cannot look into an operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling, is_exporting

from .. import functional
from ..arrays import arrays_of
from ..composite import beyond_64_bits, composite
from ..core import join_grids
from ..dtypes import DTYPES
from ..errors import PoolError, PoolTypeError
from ..plan import Plan
from ..reductions import Activated, Max, Mean, Min, Reduction, as_reduction, inner_of
from ..windows import Adaptive, Global, Sliding, Window, as_window
from . import ops
from .autograd import (
    ActivatedPickPool,
    ActivatedSumPool,
    EndedPickPool,
    LpPool,
    MonotonePickPool,
    PickPool,
    SumPool,
    WholePool,
    apply,
    apply_here,
)
from .plain import check, is_plain
from .segments import run_bags, run_rows, runs_rows

__all__ = [
    "chain",
    "check",
    "in_format",
    "num_threads",
    "pool",
    "pool_with_indices",
    "route",
    "run_bags",
    "run_rows",
    "runs_rows",
]

# Below this many elements a max or a mean goes to aten, whose overhead per call is smaller than
# ours: 3 us against 15 at 512 elements in NCHW, and 12 against 16 at 4608, while at 8192 it is 21
# against 16 (window 3, stride 2, one thread). Forward and backward together cross at about 40000
# for a max and 24000 for a mean, but there aten saves the input and 8-byte indices, so the same
# limit holds for training. In one and two dimensions only: in three, autocast makes aten's result
# float32. A mean of so few elements has aten's bits, which may differ from ours in the last place.
TINY = 4096
# Aten's global mean costs less to call, up to so many times as many elements: on two threads 14
# against 25 us for (1, 2048, 7, 7), 63 against 60 for 8 of them, and 208 against 170 for 32.
TINY_GLOBAL = 256
# Below this many elements a max or a mean that torch.compile sees is aten's. Inductor makes one
# loop of it and of what stands before and behind, while an operator is a call from Python with a
# loop on either side: 40 us more. ReLU, product, pooling, in time of the process on one thread of a
# busy machine, aten's over ours, for 8192, 32768, 123904, 495616 and 1638400 elements: channels
# last, in which Inductor runs whatever has a convolution, 0.19, 0.44, 0.52, 0.56, 0.65 (max,
# window 3, stride 2) and 0.38, 0.42, 0.45, 0.77, 0.85 (mean, 2x2); channels first, where its max
# takes an element at a time, 0.69, 0.85, 1.72, 2.57, 2.14 and 0.44, 0.49, 0.61, 0.53, 1.14
# (`python benchmarks/compiled.py`). Most poolings have a convolution about, so the limit is above
# where the max changes over in channels first, which is between 32768 and 123904.
SMALL = 1 << 17
# Windows of up to so many positions are aten's there at any size in what surely lies in channels
# last: up to 6553600 elements 0.81 to 0.92 (max, 3x3 and 2x2), 0.82 to 0.90 (mean). Larger windows,
# and bins, are ours: 1.2 to 1.5. A single result is aten's however the input lies: 0.60 to 0.63 in
# channels last, 0.32 to 0.99 in channels first.
FEW = 9

# Its answer for tensors is made at the first call. Made under a compiler it would be traced again.
arrays_of(torch.empty(0))


# --- what does not depend on the tensor --------------------------------------------------------


class Call(NamedTuple):
    """A window and a reduction over a number of axes.

    Attributes:
        seen, reduced: their recipes, as the operators take them.
        kind: whose gradient it has: that of its kernel, or of the "composite" path.
        kind_within: the same of the reduction without its activation.
        exponent: the p of a norm.
        aten: a function of x that aten computes by the same rules, or None.
        aten_picks: the same with indices.
        tiny: times TINY, the elements below which aten runs on the CPU too.
    """

    window: Window
    reduction: Reduction
    axes: int
    seen: str
    reduced: str
    kind: str
    kind_within: str
    exponent: float
    aten: Callable[[Tensor], Tensor] | None
    aten_picks: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    tiny: int


def _call(window: Window, reduction: Reduction, axes: int) -> Call:
    kernel = reduction.kernel if axes <= 3 else None
    within = inner_of(reduction).kernel
    kind = kernel.kind if kernel is not None else "composite"
    return Call(
        window,
        reduction,
        axes,
        repr(window),
        repr(reduction),
        kind,
        within.kind if within is not None else "composite",
        within.exponent if within is not None else 1.0,
        _aten(window, reduction, axes) if axes <= 3 else None,
        _aten_picks(window, reduction, axes) if axes <= 3 else None,
        TINY_GLOBAL if kind == "sum" and _aten_bins(window, axes) == (1,) * axes else 1,
    )


# By recipe: the hash of a string is computed once, that of a window each time.
@lru_cache(maxsize=4096)
def _call_of(window: str, reduction: str, axes: int) -> Call:
    return _call(as_window(window), as_reduction(reduction), axes)


def recipe_of(made: Any) -> str:
    """`repr`, kept on the object."""
    try:
        return made._recipe
    except AttributeError:
        object.__setattr__(made, "_recipe", repr(made))
        return made._recipe


def _known(window: Window, reduction: Reduction, axes: int) -> Call:
    if is_compiling():
        return _call(window, reduction, axes)
    return _call_of(recipe_of(window), recipe_of(reduction), axes)


# --- aten --------------------------------------------------------------------------------------

_MAX = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_PICKS = {
    1: torch.ops.aten.max_pool1d_with_indices,
    2: torch.ops.aten.max_pool2d_with_indices,
    3: torch.ops.aten.max_pool3d_with_indices,
}
_MEAN: dict[int, Callable[..., Tensor]] = {
    1: torch.avg_pool1d,
    2: torch._C._nn.avg_pool2d,
    3: torch._C._nn.avg_pool3d,
}
_ADAPTIVE_MEAN = {
    1: torch.adaptive_avg_pool1d,
    2: torch._C._nn.adaptive_avg_pool2d,
    3: torch._C._nn.adaptive_avg_pool3d,
}
_ADAPTIVE_PICKS: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: torch.adaptive_max_pool1d,
    2: torch._C._nn.adaptive_max_pool2d,
    3: torch._C._nn.adaptive_max_pool3d,
}


def _values_of(picks: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    return lambda x, output_size: picks(x, output_size)[0]


_ADAPTIVE_MAX = {axes: _values_of(picks) for axes, picks in _ADAPTIVE_PICKS.items()}
_ATEN: dict[str, Mapping[int, Callable[..., Tensor]]] = {
    "max": _MAX,
    "mean": _MEAN,
    "adaptive max": _ADAPTIVE_MAX,
    "adaptive mean": _ADAPTIVE_MEAN,
}
# Aten adds half types up in themselves, and divides integers as integers.
_FLOATS = frozenset((torch.float32, torch.float64))
_HALVES = frozenset((torch.bfloat16, torch.float16))


def _aten_arguments(window: Window, axes: int) -> tuple[Any, ...] | None:
    """(kernel, stride, padding, dilation, ceil_mode) if aten has this sliding window."""
    if not isinstance(window, Sliding):
        return None
    pads = window.pads(axes)
    kernel, stride, dilation = window.sizes(axes)
    if pads is None or any(a != b for a, b in pads):
        return None
    for (pad, _), k, d in zip(pads, kernel, dilation, strict=True):
        if pad > ((k - 1) * d + 1) // 2 or (d > 1 and pad > k // 2):
            return None
    return kernel, stride, tuple(a for a, _ in pads), dilation, window.ceil_mode


def _aten_bins(window: Window, axes: int) -> tuple[int, ...] | None:
    """The bins along each axis if aten has this adaptive window: there are no gradients of none."""
    if isinstance(window, Global):
        return (1,) * axes
    if not isinstance(window, Adaptive):
        return None
    sizes = window.output_size
    bins = sizes if isinstance(sizes, tuple) else (sizes,) * axes
    return None if None in bins or 0 in bins else bins


def _aten(window: Window, reduction: Reduction, axes: int) -> Any:
    """A function of x that aten computes by the same rules, or None."""
    if isinstance(reduction, Activated):
        pooled = _aten(window, reduction.inner, axes)
        return None if pooled is None else lambda x: pooled(reduction.first(x)[0])
    name, arguments = _aten_call(window, reduction, axes)
    if not name:
        return None
    function = _ATEN[name][axes]
    return lambda x: function(x, *arguments)


def _aten_call(window: Window, reduction: Reduction, axes: int) -> tuple[str, tuple[Any, ...]]:
    """The name of aten's function and what it takes behind x; nothing where there is none."""
    bins = _aten_bins(window, axes)
    if isinstance(reduction, Mean) and reduction.result == "float":
        if bins is not None and reduction.divisor is None:
            return "adaptive mean", (bins,)
        arguments = _aten_arguments(window, axes)
        if arguments is not None and all(d == 1 for d in arguments[3]):
            kernel, stride, padding, _, ceil_mode = arguments
            given = (kernel, stride, padding, ceil_mode, reduction.count_include_pad)
            if axes > 1:
                return "mean", (*given, reduction.divisor)
            if not reduction.divisor:
                return "mean", given
    elif isinstance(reduction, Max):
        if bins is not None:
            return "adaptive max", (bins,)
        arguments = _aten_arguments(window, axes)
        if arguments is not None:
            return "max", arguments
    return "", ()


def _aten_picks(window: Window, reduction: Reduction, axes: int) -> Any:
    if not isinstance(reduction, Max):
        return None
    bins = _aten_bins(window, axes)
    if bins is not None:
        adaptive = _ADAPTIVE_PICKS[axes]
        return lambda x: adaptive(x, bins)
    arguments = _aten_arguments(window, axes)
    if arguments is None:
        return None
    picks = _PICKS[axes]
    return lambda x: picks(x, *arguments)


def _aten_takes(x: Tensor, axes: int) -> bool:
    return axes + 1 <= x.ndim <= axes + 2 and x.dtype.is_floating_point


def _is_tiny(x: Tensor, call: Call) -> bool:
    """Whether the overhead of a call decides, and aten takes the tensor.

    Symbolic sizes are not asked, only plain tensors.
    """
    if type(x) is not Tensor or is_compiling() or call.kind == "activated":
        return False
    return 0 < x.numel() < call.tiny * TINY and _aten_does_the_same(x, call)


def _fuses(x: Tensor, call: Call) -> bool:
    """Whether a compiler does better that may fuse the pooling.

    An exported graph keeps the operator, as nobody knows what will run it. So does a graph for any
    size: to ask a size that may vary would tie the graph to it. And so does what has a gradient:
    Inductor's is wrong for a mean with `ceil_mode`, picks another of several NaNs, and does not run
    for a max over padding and -inf alone. Of -0.0 and 0.0 its max may be either.
    """
    if not is_dynamo_compiling() or is_exporting() or not _aten_does_the_same(x, call):
        return False
    least = _least(call.window, call.axes)
    return least is not None and _surely_fuses(x, least, _of_any_size(call.window, call.axes))


def _surely_fuses(x: Tensor, least: tuple[int, ...], of_any_size: str) -> bool:
    """Whether x surely has elements, so many along its last axes, and no gradient; and is smaller
    than `SMALL`, or fused at any size."""
    if x.requires_grad and torch.is_grad_enabled():
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes 0.3 s

    if not statically_known_true(x.numel() > 0):
        return False
    fuses = of_any_size == "all" or statically_known_true(x.numel() < SMALL)
    if not fuses and of_any_size == "channels last" and x.ndim == 4:
        behind = statically_known_true(x.stride(1) == 1)
        fuses = behind and statically_known_true(x.shape[1] > 1)
    if not fuses:
        return False
    for axis, size in enumerate(least, start=x.ndim - len(least)):
        if not statically_known_true(x.shape[axis] >= size):
            return False
    return True


def _of_any_size(window: Window, axes: int) -> Literal["all", "channels last", "none"]:
    """With which maps of any size Inductor is as good."""
    if isinstance(window, Sliding):
        return "channels last" if math.prod(window.sizes(axes)[0]) <= FEW else "none"
    return "all" if FEW > 0 and _aten_bins(window, axes) == (1,) * axes else "none"


def _least(window: Window, axes: int) -> tuple[int, ...] | None:
    """The smallest map that the window fits, and each window sees something of; None if there may
    be none. The operator says what does not fit."""
    if not isinstance(window, Sliding):
        return (1,) * axes
    kernel, _, dilation = window.sizes(axes)
    pads = window.pads(axes)
    if pads is None:
        return None
    least = tuple(
        max((k - 1) * d + 1 - before - after, d if d > 1 and max(before, after) > 0 else 1)
        for k, d, (before, after) in zip(kernel, dilation, pads, strict=True)
    )
    return least if window.always_sees(least) else None


def _aten_does_the_same(x: Tensor, call: Call) -> bool:
    return (
        call.aten is not None
        and forward_ad._current_level < 0
        and _aten_does_with(x.dtype, x.ndim, x.requires_grad, call.kind, call.axes)
    )


def _aten_does_with(
    dtype: torch.dtype, ndim: int, requires_grad: bool, kind: str, axes: int
) -> bool:
    """Half types go native when they are added up: aten does that in the half type, in the gradient
    of a max too."""
    if axes > 2 or not axes + 1 <= ndim <= axes + 2:
        return False
    if dtype in _HALVES:
        return kind == "pick" and not requires_grad
    return dtype in _FLOATS


# --- the shortest ways ---------------------------------------------------------------------------

# They return None for all that they leave to the usual way, which has the messages too. Tiny
# tensors go to aten, where it does the same: it would take True for 1 within a tuple. Other tensors
# that lie plainly in memory go to the kernel that is kept for just these arguments, in 4 us instead
# of 12. Written out, and with a fixed number of arguments, as the time is that of Python: to look
# at the type, the size and the dtype takes 0.25 us, an eighth of what aten's mean takes, and
# another call, or a tuple of arguments, 0.05 to 0.1. An exporter's tensors are no plain ones, so
# that only Dynamo has to be asked for: it is shown a way of its own.


class Ready(NamedTuple):
    """A native call for one shape, dtype and set of arguments: of the result's shape, over `outer`
    planes."""

    forward: Callable[..., None]
    shape: tuple[int, ...]
    outer: int

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.shape)
        self.forward(x.data_ptr(), out.data_ptr(), 0, self.outer, 1, torch.get_num_threads())
        return out


def _ready(
    window: Window, reduction: Reduction, axes: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Ready | None:
    """None where more than a kernel is needed, or where strides say how the channels lie."""
    *lead, channels = shape[: len(shape) - axes]
    spatial = shape[len(shape) - axes :]
    if len(lead) > 1 or channels == 1 or spatial == (1,) * axes or dtype is torch.int64:
        return None
    plan = ops.plan_of(repr(window), repr(reduction), spatial, dtype)
    if plan.native is None or plan.result != ops.NAMES[dtype]:
        return None
    outer = channels * (lead[0] if lead else 1)
    return Ready(plan.native.forward, (*lead, channels, *plan.output), outer)


def _runs_at_once(x: Tensor) -> bool:
    """Whether a kernel may be given x as it lies, with nothing around it."""
    return _is_unwatched(x) and x.is_contiguous() and _runs_native(x) and not _differentiates(x)


def _tell(
    make: Callable[..., tuple[Window, Reduction]], axes: int
) -> Callable[..., tuple[Any, ...] | None]:
    """What Dynamo is told of a call, all of it constant, by a dtype, a rank, requires_grad and the
    arguments of `make`: the recipes, aten's function by name and what it takes behind x, `_least`,
    which is None where aten does not do the same, and `_of_any_size`. Of an activated reduction
    aten is asked for what is behind the activation. None for what is left to the usual way."""

    @torch.compiler.assume_constant_result
    def told(
        dtype: torch.dtype, ndim: int, requires_grad: bool, *arguments: Any
    ) -> tuple[Any, ...] | None:
        if dtype not in _FLOATS | _HALVES or not axes + 1 <= ndim <= axes + 2:
            return None
        try:
            window, reduction = make(*arguments)
        except PoolError:
            return None
        kind = reduction.kernel.kind if reduction.kernel is not None else "composite"
        name, given = _aten_call(window, inner_of(reduction), axes)
        same = name != "" and _aten_does_with(dtype, ndim, requires_grad, kind, axes)
        least = _least(window, axes) if same else None
        return repr(window), repr(reduction), name, given, least, _of_any_size(window, axes)

    return told


def _traced(
    x: Tensor,
    pool: Callable[..., Tensor] | None,
    told: Any,
    axes: int,
    *arguments: Any,
    activated: Activated | None = None,
) -> Tensor | None:
    """What Dynamo is shown. Few lines, as every call of the compiled program looks again at
    whatever they read, each global, class and attribute: 71 of them, where the usual way has 191
    and torch's module 35, so that the call of a tiny max takes 2 us more than torch's, not 12."""
    if not isinstance(x, Tensor) or not x.is_cpu or x.layout is not torch.strided:
        return None
    if is_exporting() or forward_ad._current_level >= 0 or 0 in x.shape[-axes - 1 :]:
        return None
    numbers = []
    for value in arguments:
        if type(value) is not bool:
            if not functional.are_exact(value):
                return None
            value = _as_constant(value)
        numbers.append(value)
    known = told(x.dtype, x.ndim, x.requires_grad, *numbers)
    if known is None:
        return None
    seen, reduced, name, given, least, of_any_size = known
    if least is not None and _surely_fuses(x, least, of_any_size):
        values = x if activated is None else activated.first(x)[0]
        out = (_ATEN[name][axes] if pool is None else pool)(values, *given)
    elif x.requires_grad and torch.is_grad_enabled():
        return None
    else:
        out = torch.ops.poolkit.pool.default(x, seen, reduced, axes)
    return out if x.ndim == 4 else out.contiguous()  # as `in_format` has it


def traced(x: Any, window: Window, reduction: Reduction, axes: int | None) -> Tensor | None:
    """What Dynamo is shown of a window and a reduction that a module keeps, as `_traced`: every
    call compares their recipes, which `recipe_of` has written on them, and not what they are made
    of (87 guards for a max of ReLU, where the usual way has 229). None for what is left to that."""
    seen, reduced = getattr(window, "_recipe", None), getattr(reduction, "_recipe", None)
    if type(axes) is not int or axes not in _TOLD or seen is None or reduced is None:
        return None
    activated = reduction if type(reduction) is Activated else None
    return _traced(x, None, _TOLD[axes], axes, seen, reduced, activated=activated)


def _as_constant(value: Any) -> Any:
    """Of a number that may vary, or a tuple of such, what it is now."""
    if type(value) is int:
        return operator.index(value)
    return tuple(map(_as_constant, value)) if type(value) is tuple else value


def _sliding_shortcut(
    pool: Callable[..., Tensor],
    axes: int,
    make: Callable[..., tuple[Window, Reduction]],
    halves: bool,
) -> Callable[..., Tensor | None]:
    """By aten's `pool`, or the kernel of what `make` makes of the same arguments: those of a window
    and two more.

    Args:
        halves: whether aten does the same for half types, as long as no gradient is asked for.
    """

    @lru_cache(maxsize=1024, typed=True)
    def ready(*arguments: Any) -> Ready | None:
        *given, shape, dtype = arguments
        return _ready(*make(*given), axes, shape, dtype)

    told = _tell(make, axes)

    def pooled(
        x: Any, kernel_size: Any, stride: Any, padding: Any, fourth: Any, fifth: Any
    ) -> Tensor | None:
        if is_dynamo_compiling():
            return _traced(x, pool, told, axes, kernel_size, stride, padding, fourth, fifth)
        try:
            if type(x) is Tensor and (
                (
                    type(kernel_size) is type(padding) is int
                    and (stride is None or type(stride) is int)
                )
                or functional.are_exact(kernel_size, stride, padding)
            ):
                n = x.numel()
                if n >= TINY:
                    if _runs_at_once(x):
                        at_once = ready(
                            kernel_size, stride, padding, fourth, fifth, x.shape, x.dtype
                        )
                        if at_once is not None:
                            return at_once(x)
                elif n > 0 and (
                    x.dtype in _FLOATS or (halves and x.dtype in _HALVES and not x.requires_grad)
                ):
                    return pool(x, kernel_size, stride, padding, fourth, fifth)
        except Exception:
            pass
        return None

    return pooled


def _adaptive_shortcut(
    pool: Callable[..., Tensor], axes: int, reduction: Reduction, halves: bool, one: int = 1
) -> Callable[..., Tensor | None]:
    """The same for a number of bins.

    Args:
        one: times TINY, the elements below which aten is the quicker for a single bin.
    """

    single = frozenset((1, (1,), (1,) * axes))

    @lru_cache(maxsize=1024, typed=True)
    def ready(output_size: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Ready | None:
        return _ready(functional.new_adaptive(axes, output_size), reduction, axes, shape, dtype)

    told = _tell(lambda size: (functional.new_adaptive(axes, size), reduction), axes)

    def pooled(x: Any, output_size: Any) -> Tensor | None:
        if is_dynamo_compiling():
            return _traced(x, pool, told, axes, output_size)
        try:
            if (
                type(x) is Tensor
                and axes + 1 <= x.ndim <= axes + 2  # aten's mean in one bin takes any rank
                and (
                    output_size > 0
                    if type(output_size) is int
                    else functional.are_exact(output_size) and 0 not in output_size
                )
            ):
                n = x.numel()
                if n >= (one * TINY if output_size in single else TINY):
                    if _runs_at_once(x):
                        at_once = ready(output_size, x.shape, x.dtype)
                        if at_once is not None:
                            return at_once(x)
                elif n > 0 and (
                    x.dtype in _FLOATS or (halves and x.dtype in _HALVES and not x.requires_grad)
                ):
                    return pool(x, output_size)
        except Exception:
            pass
        return None

    return pooled


def _max(axes: int) -> Callable[..., tuple[Window, Reduction]]:
    return lambda *window: (functional.new_sliding(axes, *window), Max())


def _mean(axes: int) -> Callable[..., tuple[Window, Reduction]]:
    def make(
        kernel_size: Any, stride: Any, padding: Any, ceil_mode: Any, count_include_pad: Any
    ) -> tuple[Window, Reduction]:
        window = functional.new_sliding(axes, kernel_size, stride, padding, 1, ceil_mode)
        return window, Mean(count_include_pad=count_include_pad)

    return make


functional.shortcuts = functional.Shortcuts(
    max_pool1d=_sliding_shortcut(_MAX[1], 1, _max(1), halves=True),
    max_pool2d=_sliding_shortcut(_MAX[2], 2, _max(2), halves=True),
    avg_pool1d=_sliding_shortcut(_MEAN[1], 1, _mean(1), halves=False),
    avg_pool2d=_sliding_shortcut(_MEAN[2], 2, _mean(2), halves=False),
    adaptive_max_pool2d=_adaptive_shortcut(_ADAPTIVE_MAX[2], 2, Max(), halves=True),
    adaptive_avg_pool1d=_adaptive_shortcut(
        _ADAPTIVE_MEAN[1], 1, Mean(), halves=False, one=TINY_GLOBAL
    ),
    adaptive_avg_pool2d=_adaptive_shortcut(
        _ADAPTIVE_MEAN[2], 2, Mean(), halves=False, one=TINY_GLOBAL
    ),
)


def _read(axes: int) -> Callable[..., tuple[Window, Reduction]]:
    """From recipes, those that `_traced` may give to the operator as they are."""

    def make(seen: str, reduced: str) -> tuple[Window, Reduction]:
        window, reduction = as_window(seen), as_reduction(reduced)
        known = isinstance(window, Sliding | Adaptive | Global) and window.ndim in (None, axes)
        fused, kernel = reduction.kernel, inner_of(reduction).kernel
        if not known or not fused or not kernel or kernel.kind not in ("pick", "sum"):
            raise PoolTypeError("it goes the usual way")
        return window, reduction

    return make


_TOLD = {axes: _tell(_read(axes), axes) for axes in (1, 2)}


# --- running ------------------------------------------------------------------------------------


def _check_activation(x: Tensor, reduction: Reduction) -> None:
    if isinstance(reduction, Activated):
        reduction.result_dtype(DTYPES[ops.NAMES[x.dtype]])  # refuses what is not floating


def _has_kernels(x: Tensor) -> bool:
    """Whether the native kernels run where this tensor lives (or would, if it had values)."""
    return x.is_cpu or x.is_meta


def _runs_native(x: Tensor) -> bool:
    # Forward-mode differentiation goes through the composite path.
    return _has_kernels(x) and forward_ad._current_level < 0


def num_threads() -> int:
    """Threads used on torch tensors."""
    return torch.get_num_threads()


def route(x: Tensor, plan: Plan) -> tuple[str, str]:
    """(path, why) of `pool` for one grid of windows."""
    axes = len(plan.shape)
    call = _known(plan.window, plan.reduction, axes)
    has_aten = call.aten is not None and _aten_takes(x, axes)
    device = x.device.type
    if _has_kernels(x) and forward_ad._current_level >= 0:
        return "composite", "forward-mode derivatives come from whole-array operations"
    if _has_kernels(x) and plan.native is not None:
        if _is_tiny(x, call) and not plan.has_empty_windows:
            return "aten", f"under {call.tiny * TINY} elements the overhead of a call decides"
        picks = isinstance(inner_of(plan.reduction), (Max, Min))
        if picks and _differentiates(x) and plan.has_empty_windows:
            return "composite", "a window wholly in the padding has no position for the gradient"
        if call.kind == "activated" and _differentiates(x) and call.kind_within == "norm":
            return (
                "composite",
                "an activated norm has no kernel of its gradient",
            )
        return "native", plan.why
    if not _has_kernels(x) and has_aten:
        return "aten", f"on {device} torch's own operator is as good"
    if plan.native is not None:
        return "composite", f"there is no kernel for {device} here"
    return "composite", plan.why


def pool(x: Tensor, window: Window, reduction: Reduction, axes: int, channels_last: bool) -> Tensor:
    """See `poolkit.pool`."""
    check(x)
    _check_activation(x, reduction)
    if channels_last:
        x = x.movedim(-1, -axes - 1)
    if window.joined:
        grids = [_pool(x, _known(grid, reduction, axes)) for grid in window.grids()]
        out = join_grids(grids, axes, False)
        return out.movedim(-2, -1) if channels_last else out
    out = _pool(x, _known(window, reduction, axes))
    return out.movedim(-axes - 1, -1) if channels_last else in_format(out, axes)


def in_format(out: Tensor, axes: int) -> Tensor:
    """Channels stay behind in the ranks in which torch has a memory format for it; in others the
    result is contiguous, as torch's is."""
    return out if ops.has_format(out, axes) else out.contiguous()


def _pool(x: Tensor, call: Call) -> Tensor:
    reduction, axes, seen, reduced = call.reduction, call.axes, call.seen, call.reduced
    kind, aten = call.kind, call.aten
    if x.dtype is torch.int64 and not (_is_opaque(x) or _is_transformed()):
        exact = beyond_64_bits(x, ops.plan_of(seen, reduced, x.shape[x.ndim - axes :], x.dtype))
        if exact is not None:
            return _laid_out_like(x, exact, axes)
    if kind == "composite" and isinstance(reduction, Activated) and not reduction.fused:
        x, reduction = reduction.first(x)
        return _pool(x, _known(call.window, reduction, axes))
    if not _runs_native(x):
        if aten is not None and _aten_takes(x, axes) and not _has_kernels(x):
            return aten(x)
        return _composite(x, call)
    if kind == "composite":
        return _composite(x, call)
    if aten is not None and _fuses(x, call):
        return aten(x)
    if aten is not None and _is_tiny(x, call):
        # The plan has the errors, too.
        plan = ops.plan_of(seen, reduced, x.shape[x.ndim - axes :], x.dtype)
        if not plan.has_empty_windows:
            return aten(x)
    if kind == "norm" and not x.dtype.is_floating_point:
        x = x.float()
    elif kind == "whole":
        # Integers may have no kernel; transforms of torch.func differentiate what they see.
        if not _is_opaque(x):
            plan = ops.plan_of(seen, reduced, x.shape[x.ndim - axes :], x.dtype)
            if plan.native is None or (_is_transformed() and _differentiates(x)):
                return _composite(x, call)
        if _differentiates(x):
            return apply(WholePool, x, seen, reduced, axes)
    elif _differentiates(x):
        out = _derivable(x, call)
        return _composite(x, call) if out is None else out
    return _run(x, call)


def _derivable(x: Tensor, call: Call, apply: Callable[..., Any] = apply) -> Tensor | None:
    """By a kernel whose gradient has a kernel; None where there is none."""
    seen, reduced, axes, reduction = call.seen, call.reduced, call.axes, call.reduction
    kind = call.kind_within if isinstance(reduction, Activated) else call.kind
    if kind == "pick" and _may_lack_positions(x, call):
        return None
    if isinstance(reduction, Activated):
        if kind == "sum":
            within = reduction.reduction, reduction.activation
            return apply(ActivatedSumPool, x, seen, reduced, *within, axes)
        if kind != "pick":
            return None
        if reduction.ends_gradient:
            return apply(EndedPickPool, x, seen, reduced, axes)[0]
        run = MonotonePickPool if reduction.behind else ActivatedPickPool
        return apply(run, x, seen, reduced, reduction.activation, axes)[0]
    if kind == "pick":
        return apply(PickPool, x, seen, reduced, axes)[0]
    if kind == "norm":
        return apply(LpPool, x, seen, reduced, call.exponent, axes)
    return apply(SumPool, x, seen, reduced, axes) if kind == "sum" else None


def _run(x: Tensor, call: Call) -> Tensor:
    """The operator; its kernel alone where nobody would see the operator: 8 us instead of 11."""
    run = ops.pool_on_cpu if _is_unwatched(x) else torch.ops.poolkit.pool.default
    return run(x, call.seen, call.reduced, call.axes)


def pool_by_recipes(x: Tensor, window: str, reduction: str, axes: int) -> Tensor:
    """What ``torch.ops.poolkit.pool`` computes, by the shortest way there is to it."""
    if is_compiling():
        if axes in _TOLD and not reduction.startswith("Activated"):
            out = _traced(x, None, _TOLD[axes], axes, window, reduction)
            if out is not None:
                return out
        call = _call(as_window(window), as_reduction(reduction), axes)
        if _fuses(x, call):
            assert call.aten is not None
            return call.aten(x)
    elif not _differentiates(x) and _is_unwatched(x):
        return ops.pool_on_cpu(x, window, reduction, axes)
    return torch.ops.poolkit.pool.default(x, window, reduction, axes)


_library = torch.library.Library("poolkit", "FRAGMENT")

# Of operators that a graph calls. The functions of `autograd` call them too, without a gradient.


@torch.library.impl(_library, "pool", "Autograd")
def _pool_with_gradient(x: Tensor, window: str, reduction: str, axes: int) -> Tensor:
    if _carries_tangents(x):
        return _composite(x, _call(as_window(window), as_reduction(reduction), axes))
    if x.requires_grad and torch.is_grad_enabled():
        call = _call(as_window(window), as_reduction(reduction), axes)
        known = call.kind != "composite" and _runs_native(x)
        out = _derivable(x, call, apply_here) if known else None
        return apply_here(WholePool, x, window, reduction, axes) if out is None else out
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.poolkit.pool.default(x, window, reduction, axes)


@torch.library.impl(_library, "chain", "Autograd")
def _chain_with_gradient(x: Tensor, window: str, levels: int) -> Tensor:
    if _carries_tangents(x) or (x.requires_grad and torch.is_grad_enabled()):
        return _by_levels(x, levels, lambda part: _pool_with_gradient(part, window, "Max()", 2))
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.poolkit.chain.default(x, window, levels)


def _carries_tangents(x: Tensor) -> bool:
    """Whether forward differentiation is about, of which the kernels know nothing."""
    return forward_ad._current_level >= 0 and x.dtype.is_floating_point and not _is_opaque(x)


def _is_unwatched(x: Tensor) -> bool:
    """`is_plain`, and no `torch.profiler.profile` is about, which would show an operator."""
    return is_plain(x) and not torch.autograd._profiler_enabled()


def chain(x: Tensor, window: Window, levels: int) -> Tensor:
    """See `poolkit.sppf`. One pass where nothing is traced or differentiated; else, and where
    channels lie behind, each level is a call."""
    check(x)
    if _runs_at_once(x):
        plan = ops.plan_of(repr(window), "Max()", x.shape[-2:], x.dtype)
        if plan.native is not None:
            return ops.chain_on_cpu(x, repr(window), levels)
    return chain_by_levels(x, window, levels)


def chain_by_levels(x: Tensor, window: Window, levels: int) -> Tensor:
    return _by_levels(x, levels, lambda part: pool(part, window, Max(), 2, False))


def _by_levels(x: Tensor, levels: int, once: Callable[[Tensor], Tensor]) -> Tensor:
    parts = [x]
    for _ in range(levels):
        parts.append(once(parts[-1]))
    return torch.cat(parts, dim=-3)


def _differentiates(x: Tensor) -> bool:
    """Whether a gradient may be asked for: within torch.func the tensor itself may not know."""
    if x.requires_grad:
        return torch.is_grad_enabled()
    return _is_transformed() and x.dtype.is_floating_point


def _is_transformed() -> bool:
    """Whether a transform of torch.func is about, under which a tensor may have no values."""
    return not is_compiling() and torch._C._are_functorch_transforms_active()


def _may_lack_positions(x: Tensor, call: Call) -> bool:
    """Whether a window may lie wholly in the padding: it has a value, but no position to save."""
    spatial = x.shape[x.ndim - call.axes :]
    if _is_opaque(x):  # the sizes may be symbols
        return not call.window.always_sees(spatial)
    return ops.plan_of(call.seen, call.reduced, spatial, x.dtype).has_empty_windows


def _is_opaque(x: Tensor) -> bool:
    """Whether the composite path must be one operator: without values there is only a shape."""
    return is_compiling() or x.is_meta or isinstance(x, FakeTensor | FunctionalTensor)


def _composite(x: Tensor, call: Call) -> Tensor:
    if _is_opaque(x):
        if x.requires_grad and torch.is_grad_enabled():
            return apply(WholePool, x, call.seen, call.reduced, call.axes)
        return torch.ops.poolkit.pool.default(x, call.seen, call.reduced, call.axes)
    plan = ops.plan_of(call.seen, call.reduced, x.shape[x.ndim - call.axes :], x.dtype)
    return _laid_out_like(x, composite(x, plan.axes, call.reduction), call.axes)


def _laid_out_like(x: Tensor, out: Tensor, axes: int) -> Tensor:
    """As the native kernels leave it; within torch.func a tensor has no layout of its own."""
    if _is_transformed():
        return out
    return ops.laid_out_like(x, out, axes)


def pool_with_indices(
    x: Tensor, window: Window, reduction: Reduction, axes: int, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """See `poolkit.pool_with_indices`."""
    check(x)
    _check_activation(x, reduction)
    if channels_last:
        x = x.movedim(-1, -axes - 1)
    native = _runs_native(x) and axes <= 3
    if isinstance(reduction, Activated) and not (native and reduction.kernel is not None):
        x, reduction = reduction.first(x)
    call = _known(window, reduction, axes)
    if native:
        if _differentiates(x) and isinstance(reduction, Activated):
            arguments = (call.seen, call.reduced, reduction.activation, axes)
            values, codes = apply(ActivatedPickPool, x, *arguments)
        elif _differentiates(x):
            values, codes = apply(PickPool, x, call.seen, call.reduced, axes)
        else:
            run = torch.ops.poolkit.pool_positions.default
            values, codes = run(x, call.seen, call.reduced, axes)
        spatial = x.shape[x.ndim - axes :]
        indices = torch.ops.poolkit.indices.default(codes, call.seen, spatial)
    elif call.aten_picks and _aten_takes(x, axes) and not _has_kernels(x):
        values, indices = call.aten_picks(x)
    else:
        indices = torch.ops.poolkit.locate.default(x.detach(), call.seen, call.reduced, axes)
        flat = x.flatten(-axes).gather(-1, indices.flatten(-axes))
        values = _laid_out_like(x, flat.unflatten(-1, indices.shape[-axes:]), axes)
    if channels_last:
        return values.movedim(-axes - 1, -1), indices.movedim(-axes - 1, -1)
    return in_format(values, axes), in_format(indices, axes)
