"""Torch's names, and their kin, on NumPy arrays and torch tensors alike.

Each function is a short name for ``pool(x, window, reduction)``. Signatures, shapes, indices and
dtypes are those of ``torch.nn.functional``, with three differences, in which torch is wrong or
has no answer: `lp_pool*` takes |x| for every norm and does not scale up windows that hang over
the end; an average of integers is floating; ``padding`` may also be ``"same"`` or one
``(before, after)`` pair for each axis, of any amount, on every operator that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from . import chains, fractional, unpool
from .arrays import Array, check_array
from .core import runner_of
from .errors import PoolError, PoolValueError, is_torch_tensor, is_traced
from .reductions import Activated, Lp, Max, Mean, Min, Reduction, Sum, activated
from .windows import Adaptive, Global, Sliding, Window

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "global_avg_pool1d",
    "global_avg_pool2d",
    "global_avg_pool3d",
    "global_max_pool1d",
    "global_max_pool2d",
    "global_max_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "min_pool1d",
    "min_pool2d",
    "min_pool3d",
    "relu_max_pool1d",
    "relu_max_pool2d",
    "relu_max_pool3d",
    "sigmoid_avg_pool1d",
    "sigmoid_avg_pool2d",
    "sigmoid_avg_pool3d",
    "sppf",
    "sum_pool1d",
    "sum_pool2d",
    "sum_pool3d",
]

Size = int | Sequence[int]
MAX, MIN, SUM, MEAN = Max(), Min(), Sum(), Mean()
RELU_MAX, SIGMOID_MEAN = Activated("Max()", "ReLU()"), Activated("Mean()", "Sigmoid()")
GLOBAL = Global()

FLAT = frozenset((int, float, bool, str, type(None)))  # as keys told apart by their type

T = TypeVar("T")
_made: dict[tuple[Any, ...], Any] = {}


def sliding(
    input: Array,
    reduction: Any,
    ndim: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Window:
    """The window of these arguments. The input and reduction are for messages."""
    try:
        return made_once(new_sliding, ndim, kernel_size, stride, padding, dilation, ceil_mode)
    except PoolError as error:
        asked = f"kernel_size={kernel_size}, stride={stride}, padding={padding}"
        if not (type(dilation) is int and dilation == 1):
            asked += f", dilation={dilation}"
        if not isinstance(ceil_mode, bool):
            asked += f", ceil_mode={ceil_mode!r}"
        raise error.pooling(input, f"Sliding({asked})", reduction) from None


def made_once(make: Callable[..., T], *arguments: Any) -> T:
    """``make(*arguments)``, kept: its recipe, which plans are found by, takes 3 us to write."""
    if is_traced():  # a compiler would guard on the contents of the dictionary
        return make(*arguments)
    kinds = tuple(map(type, arguments))  # as keys of a dictionary True and 1.0 pass for 1
    if not FLAT.issuperset(kinds):
        deep = (value for value, kind in zip(arguments, kinds, strict=True) if kind not in FLAT)
        if not are_exact(*deep):
            return make(*arguments)
    key = (make, arguments, kinds)
    made = _made.get(key)
    if made is None:
        made = make(*arguments)
        if len(_made) < 4096:
            _made[key] = made
    return made


def are_exact(*values: Any) -> bool:
    """Whether these are Python's own integers, text, None, or tuples of them."""
    for value in values:
        if type(value) is tuple:
            for entry in value:
                if type(entry) is not int and not are_exact(entry):
                    return False
        elif type(value) is not int and type(value) is not str and value is not None:
            return False
    return True


def new_sliding(
    ndim: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Sliding:
    window = Sliding(kernel_size, stride, padding, dilation, ceil_mode)
    if window.ndim not in (None, ndim):
        raise PoolValueError(
            f"{window} has {window.ndim} axes, this function pools {ndim}",
            f"Give one integer, or {ndim}",
        )
    _check_torch_padding(window, ndim)
    return window


def _check_torch_padding(window: Sliding, ndim: int) -> None:
    """Torch's rule for padding in torch's form; pairs and "same" may be of any amount."""
    padding = window.padding
    pads = padding if isinstance(padding, tuple) else (padding,)
    if isinstance(padding, str) or any(isinstance(pad, tuple) for pad in pads):
        return
    kernel, _, dilation = window.sizes(ndim)
    for axis, (k, d) in enumerate(zip(kernel, dilation, strict=True)):
        pad, reach = pads[axis % len(pads)], (k - 1) * d + 1
        if pad > reach // 2:
            raise PoolValueError(
                f"padding {pad} is more than half of the window of {reach} positions",
                f"Padding by the same amount on both sides goes up to {reach // 2}, as in torch; "
                f"write {((pad, pad),) * ndim} if a window may lie in the padding",
            )


def check_rank(input: Array, ndim: int) -> None:
    check_array(input)
    rank = input.ndim
    if rank == ndim + 2 or rank == ndim + 1:
        if 0 in input.shape[rank - ndim - 1 :]:
            raise PoolValueError(
                f"the shape {tuple(input.shape)} has an axis without elements",
                "Only the batch may be empty",
            )
        return
    if rank < ndim or is_torch_tensor(input):
        raise PoolValueError(
            f"an input of rank {ndim + 1} (channels first) or {ndim + 2} (a batch first) was "
            f"expected, got rank {rank}",
            "Add or remove axes, or use poolkit.pool, which takes any number in front",
        )


def _run(
    ndim: int, input: Array, window: Window, reduction: Reduction, return_indices: bool = False
) -> Any:
    try:
        check_rank(input, ndim)
        runner = runner_of(input)
        run = runner.pool_with_indices if return_indices else runner.pool
        return run(input, window, reduction, ndim, False)
    except PoolError as error:
        raise error.pooling(input, window, reduction) from None


def _none(*arguments: Any) -> Any:
    return None


class Shortcuts(NamedTuple):
    """What torch offers for tiny tensors, where the overhead of a call decides: by function, what
    takes an input and the arguments that are sizes or flags, and returns None for all it leaves.
    See ``poolkit.torch.dispatch``, which fills it in."""

    max_pool1d: Callable[..., Any] = _none
    max_pool2d: Callable[..., Any] = _none
    avg_pool1d: Callable[..., Any] = _none
    avg_pool2d: Callable[..., Any] = _none
    adaptive_max_pool2d: Callable[..., Any] = _none
    adaptive_avg_pool1d: Callable[..., Any] = _none
    adaptive_avg_pool2d: Callable[..., Any] = _none


shortcuts = Shortcuts()


def max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window, by torch's rules.

    To train through it, one byte is saved for each output (two or four for windows of more than
    256 positions). Tensors of fewer than 4096 elements are left to torch, which saves the input
    and eight bytes for each output.

    Args:
        input: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        return_indices: whether to return the flat position of each value too (int64).

    Returns:
        The values in the input's dtype, or (values, indices).

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> x = np.arange(1, 17.0).reshape(1, 4, 4)
    >>> poolkit.max_pool2d(x, 2)
    array([[[ 6.,  8.],
            [14., 16.]]])
    """
    # A dilated window may lie wholly in the padding, which aten does not see.
    if not return_indices and type(dilation) is int and dilation == 1:
        pooled = shortcuts.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
        if pooled is not None:
            return pooled
    window = sliding(input, MAX, 2, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(2, input, window, MAX, return_indices)


def max_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`max_pool2d` over one axis: (N, C, L) or (C, L)."""
    if not return_indices and type(dilation) is int and dilation == 1:
        pooled = shortcuts.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode)
        if pooled is not None:
            return pooled
    window = sliding(input, MAX, 1, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(1, input, window, MAX, return_indices)


def max_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = sliding(input, MAX, 3, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(3, input, window, MAX, return_indices)


def min_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The smallest value of each window, by torch's rules.

    Args:
        input: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        return_indices: whether to return the flat position of each value too (int64).

    Returns:
        The values in the input's dtype, or (values, indices).

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.min_pool2d(np.arange(1, 17).reshape(1, 4, 4), 2)
    array([[[ 1,  3],
            [ 9, 11]]])
    """
    window = sliding(input, MIN, 2, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(2, input, window, MIN, return_indices)


def min_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`min_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = sliding(input, MIN, 1, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(1, input, window, MIN, return_indices)


def min_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`min_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = sliding(input, MIN, 3, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(3, input, window, MIN, return_indices)


def relu_max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """``max_pool2d(relu(input), ...)`` in one pass: ReLU of the largest value of each window.

    To train through it, one byte is saved for each output (two for windows of more than 255
    positions, four for more than 65535), and neither the activation nor a mask of it.

    Args:
        input: (N, C, H, W) or (C, H, W), of a floating dtype.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        return_indices: whether to return the flat position of each value too (int64). Where
            nothing in a window is above 0, that is its first position.

    Returns:
        The values in the input's dtype, or (values, indices).

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> x = np.array([[[-1.0, 2.0, -3.0, -4.0]]])
    >>> poolkit.relu_max_pool2d(x, (1, 2))
    array([[[2., 0.]]])
    """
    return _relu_max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def relu_max_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`relu_max_pool2d` over one axis: (N, C, L) or (C, L)."""
    return _relu_max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def relu_max_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`relu_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return _relu_max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _relu_max(
    ndim: int,
    input: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    window = sliding(input, RELU_MAX, ndim, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(ndim, input, window, RELU_MAX, return_indices)


def avg_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window, by torch's rules.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, ceil_mode: as for `poolkit.Sliding`.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divides every sum by this instead.

    Returns:
        The means, in the input's dtype; float32 for integers.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> x = np.arange(1, 17.0).reshape(1, 4, 4)
    >>> poolkit.avg_pool2d(x, 2)
    array([[[ 3.5,  5.5],
            [11.5, 13.5]]])
    """
    if divisor_override is None:
        pooled = shortcuts.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad
        )
        if pooled is not None:
            return pooled
    window = sliding(input, MEAN, 2, kernel_size, stride, padding, 1, ceil_mode)
    return _run(2, input, window, mean_of(input, window, count_include_pad, divisor_override))


def avg_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """`avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    pooled = shortcuts.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if pooled is not None:
        return pooled
    window = sliding(input, MEAN, 1, kernel_size, stride, padding, 1, ceil_mode)
    return _run(1, input, window, mean_of(input, window, count_include_pad, None))


def avg_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = sliding(input, MEAN, 3, kernel_size, stride, padding, 1, ceil_mode)
    return _run(3, input, window, mean_of(input, window, count_include_pad, divisor_override))


def sigmoid_avg_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """``avg_pool2d(sigmoid(input), ...)`` in one pass; padding counts as 0, not as sigmoid(0).

    To train through it, the input alone is saved.

    Args:
        input: (N, C, H, W) or (C, H, W), of a floating dtype.
        kernel_size, stride, padding, ceil_mode: as for `poolkit.Sliding`.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divides every sum by this instead.

    Returns:
        The means, in the input's dtype.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.sigmoid_avg_pool2d(np.zeros((1, 4, 4)), 2)
    array([[[0.5, 0.5],
            [0.5, 0.5]]])
    """
    return _sigmoid_mean(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def sigmoid_avg_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """`sigmoid_avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    return _sigmoid_mean(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def sigmoid_avg_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`sigmoid_avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return _sigmoid_mean(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _sigmoid_mean(
    ndim: int,
    input: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Array:
    window = sliding(input, SIGMOID_MEAN, ndim, kernel_size, stride, padding, 1, ceil_mode)
    mean = mean_of(input, window, count_include_pad, divisor)
    reduction = SIGMOID_MEAN if mean is MEAN else activated(mean, "Sigmoid()")
    return _run(ndim, input, window, reduction)


def mean_of(
    input: Array, window: Window, count_include_pad: bool, divisor: int | None
) -> Reduction:
    if count_include_pad is True and divisor is None:
        return MEAN
    return _reduction_of(input, window, Mean, count_include_pad, divisor)


def _reduction_of(
    input: Array, window: Window, kind: type[Reduction], *arguments: Any
) -> Reduction:
    """A reduction with parameters. The input and window are for messages."""
    try:
        return made_once(kind, *arguments)
    except PoolError as error:
        asked = f"{kind.__name__}({', '.join(map(str, arguments))})"
        raise error.pooling(input, window, asked) from None


def sum_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The sum of each window.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Returns:
        The sums, in the input's dtype; int64 for integers and bools.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.sum_pool2d(np.ones((1, 4, 4), dtype=np.int8), 2)
    array([[[4, 4],
            [4, 4]]])
    """
    window = sliding(input, SUM, 2, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(2, input, window, SUM)


def sum_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`sum_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = sliding(input, SUM, 1, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(1, input, window, SUM)


def sum_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """`sum_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = sliding(input, SUM, 3, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(3, input, window, SUM)


def lp_pool2d(
    input: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Array:
    """The p-norm of each window, ``(Σ |x|^p)^(1/p)``. To train through it, the input and the
    output are saved.

    Args:
        input: (N, C, H, W) or (C, H, W).
        norm_type: the p, above 0.
        kernel_size, stride, ceil_mode: as for `poolkit.Sliding`.

    Returns:
        The norms, in the input's dtype; float32 for integers.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.lp_pool2d(np.array([[[3.0, 0.0], [0.0, -4.0]]]), 2, 2)
    array([[[5.]]])
    """
    window = sliding(input, f"Lp({norm_type})", 2, kernel_size, stride, 0, 1, ceil_mode)
    return _run(2, input, window, _reduction_of(input, window, Lp, norm_type))


def lp_pool1d(
    input: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Array:
    """`lp_pool2d` over one axis: (N, C, L) or (C, L)."""
    window = sliding(input, f"Lp({norm_type})", 1, kernel_size, stride, 0, 1, ceil_mode)
    return _run(1, input, window, _reduction_of(input, window, Lp, norm_type))


def lp_pool3d(
    input: Array,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Array:
    """`lp_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    window = sliding(input, f"Lp({norm_type})", 3, kernel_size, stride, 0, 1, ceil_mode)
    return _run(3, input, window, _reduction_of(input, window, Lp, norm_type))


def adaptive(input: Array, reduction: Reduction, ndim: int, output_size: Any) -> Window:
    """The window of these arguments. The input and reduction are for messages."""
    try:
        return made_once(new_adaptive, ndim, output_size)
    except PoolError as error:
        asked = f"Adaptive({output_size})"
        raise error.pooling(input, asked, reduction) from None


def new_adaptive(ndim: int, output_size: Any) -> Adaptive:
    window = Adaptive(output_size)
    if window.ndim == 1:
        window = Adaptive(window.output_size * ndim)
    if window.ndim not in (None, ndim):
        raise PoolValueError(
            f"{window} has {window.ndim} axes, this function pools {ndim}",
            f"Give one integer, or {ndim}",
        )
    return window


def adaptive_max_pool2d(input: Array, output_size: Any, return_indices: bool = False) -> Any:
    """The largest value of each of `output_size` bins.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: one integer, or one for each axis; None keeps an axis. See `Adaptive`.
        return_indices: whether to return the flat position of each value too (int64).

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.adaptive_max_pool2d(np.arange(9).reshape(1, 3, 3), 2)
    array([[[4, 5],
            [7, 8]]])
    """
    if not return_indices:
        pooled = shortcuts.adaptive_max_pool2d(input, output_size)
        if pooled is not None:
            return pooled
    return _run(2, input, adaptive(input, MAX, 2, output_size), MAX, return_indices)


def adaptive_max_pool1d(input: Array, output_size: Any, return_indices: bool = False) -> Any:
    """`adaptive_max_pool2d` over one axis: (N, C, L) or (C, L)."""
    return _run(1, input, adaptive(input, MAX, 1, output_size), MAX, return_indices)


def adaptive_max_pool3d(input: Array, output_size: Any, return_indices: bool = False) -> Any:
    """`adaptive_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return _run(3, input, adaptive(input, MAX, 3, output_size), MAX, return_indices)


def adaptive_avg_pool2d(input: Array, output_size: Any) -> Array:
    """The mean of each of `output_size` bins.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: one integer, or one for each axis; None keeps an axis. See `Adaptive`.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.adaptive_avg_pool2d(np.arange(9.0).reshape(1, 3, 3), (1, None))
    array([[[3., 4., 5.]]])
    """
    pooled = shortcuts.adaptive_avg_pool2d(input, output_size)
    if pooled is not None:
        return pooled
    return _run(2, input, adaptive(input, MEAN, 2, output_size), MEAN)


def adaptive_avg_pool1d(input: Array, output_size: Any) -> Array:
    """`adaptive_avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    pooled = shortcuts.adaptive_avg_pool1d(input, output_size)
    if pooled is not None:
        return pooled
    return _run(1, input, adaptive(input, MEAN, 1, output_size), MEAN)


def adaptive_avg_pool3d(input: Array, output_size: Any) -> Array:
    """`adaptive_avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return _run(3, input, adaptive(input, MEAN, 3, output_size), MEAN)


def global_max_pool2d(input: Array, keepdim: bool = True) -> Array:
    """The largest value over all of the spatial axes.

    Args:
        input: (N, C, H, W) or (C, H, W).
        keepdim: whether the spatial axes stay, each with one element.

    Raises:
        PoolError: for shapes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.global_max_pool2d(np.arange(1, 17.0).reshape(1, 4, 4), keepdim=False)
    array([16.])
    """
    if keepdim:
        pooled = shortcuts.adaptive_max_pool2d(input, 1)
        if pooled is not None:
            return pooled
    return without_ones(_run(2, input, GLOBAL, MAX), 2, keepdim)


def global_max_pool1d(input: Array, keepdim: bool = True) -> Array:
    """`global_max_pool2d` over one axis: (N, C, L) or (C, L)."""
    return without_ones(_run(1, input, GLOBAL, MAX), 1, keepdim)


def global_max_pool3d(input: Array, keepdim: bool = True) -> Array:
    """`global_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return without_ones(_run(3, input, GLOBAL, MAX), 3, keepdim)


def global_avg_pool2d(input: Array, keepdim: bool = True) -> Array:
    """The mean over all of the spatial axes.

    Args:
        input: (N, C, H, W) or (C, H, W).
        keepdim: whether the spatial axes stay, each with one element.

    Raises:
        PoolError: for shapes and dtypes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.global_avg_pool2d(np.arange(1, 17.0).reshape(1, 4, 4))
    array([[[8.5]]])
    """
    if keepdim:
        pooled = shortcuts.adaptive_avg_pool2d(input, 1)
        if pooled is not None:
            return pooled
    return without_ones(_run(2, input, GLOBAL, MEAN), 2, keepdim)


def global_avg_pool1d(input: Array, keepdim: bool = True) -> Array:
    """`global_avg_pool2d` over one axis: (N, C, L) or (C, L)."""
    if keepdim:
        pooled = shortcuts.adaptive_avg_pool1d(input, 1)
        if pooled is not None:
            return pooled
    return without_ones(_run(1, input, GLOBAL, MEAN), 1, keepdim)


def global_avg_pool3d(input: Array, keepdim: bool = True) -> Array:
    """`global_avg_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return without_ones(_run(3, input, GLOBAL, MEAN), 3, keepdim)


def without_ones(pooled: Array, ndim: int, keepdim: bool) -> Array:
    return pooled if keepdim else pooled.reshape(tuple(pooled.shape)[: pooled.ndim - ndim])


def sppf(input: Array, kernel_size: Size = 5, levels: int = 3) -> Array:
    """The pooling of a spatial pyramid, fast: max pooling of stride 1, and again of its result.

    The input and all results are joined along the channels. Two windows of 5 see what one of 9
    sees, and three what one of 13 sees, so this is a spatial pyramid of windows 5, 9 and 13
    without one. On the CPU a plane goes through all levels while it is in cache, unless a
    gradient is asked for or channels lie behind.

    Source: Jocher, YOLOv5 (2021), the block SPPF between its two convolutions; the pyramid is
    that of He, Zhang, Ren and Sun, arXiv:1406.4729.

    Args:
        input: (N, C, H, W) or (C, H, W), of any dtype that `max_pool2d` takes.
        kernel_size: odd, one number or one for each axis.
        levels: how often it is pooled.

    Returns:
        (N, (1 + levels) * C, H, W), of the same dtype.

    Raises:
        PoolError: for even sizes, no levels, and other ranks.

    >>> import numpy as np, poolkit
    >>> x = np.random.default_rng(0).normal(size=(1, 8, 20, 20)).astype("float32")
    >>> joined = poolkit.sppf(x)
    >>> joined.shape
    (1, 32, 20, 20)
    >>> bool((joined[:, 24:] == poolkit.max_pool2d(x, 13, stride=1, padding=6)).all())
    True
    """
    return chains.sppf(input, kernel_size, levels)


def max_unpool2d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Array:
    """The partial inverse of `max_pool2d`: puts each value where its index says, zeros elsewhere.

    Args:
        input: values, as `max_pool2d` returns them.
        indices: their positions (int64), of the same shape.
        kernel_size, stride, padding: of the pooling that is undone.
        output_size: the spatial shape of the result where several sizes pool to the input's.

    Raises:
        PoolError: for shapes that do not fit and indices outside the output.

    >>> import numpy as np, poolkit
    >>> values, where = poolkit.max_pool2d(np.array([[[1, 2], [4, 3]]]), 2, return_indices=True)
    >>> poolkit.max_unpool2d(values, where, 2)
    array([[[0, 0],
            [4, 0]]])
    """
    return unpool.max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool1d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Array:
    """`max_unpool2d` over one axis: (N, C, L) or (C, L)."""
    return unpool.max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Array:
    """`max_unpool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return unpool.max_unpool(3, input, indices, kernel_size, stride, padding, output_size)


def fractional_max_pool2d(
    input: Array,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
) -> Any:
    """The largest value of windows at pseudo-random places, so that the output may be any
    fraction of the input's size (Graham, "Fractional max-pooling", 2014).

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size: positions of each window.
        output_size, output_ratio: the spatial shape of the result, or its share of the input's
            (between 0 and 1): give one of the two.
        return_indices: whether to return the flat position of each value too (int64).
        _random_samples: numbers in [0, 1), (N, C, 2), in place of random ones.

    Raises:
        PoolError: for shapes and sizes that cannot be pooled.

    >>> import numpy as np, poolkit
    >>> poolkit.fractional_max_pool2d(np.zeros((1, 3, 9, 9)), 2, output_ratio=0.7).shape
    (1, 3, 6, 6)
    """
    return fractional.fractional_max_pool(
        2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


def fractional_max_pool3d(
    input: Array,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
) -> Any:
    """`fractional_max_pool2d` over three axes: (N, C, D, H, W) or (C, D, H, W)."""
    return fractional.fractional_max_pool(
        3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )
