"""Torch's pooling modules: the same names, constructor arguments, repr and (empty) state.

One class for each operation does the work; the rank is in the thin classes' names.

>>> import torch, poolkit
>>> poolkit.nn.MaxPool2d(3, stride=2, padding=1)(torch.zeros(1, 8, 56, 56)).shape
torch.Size([1, 8, 28, 28])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .. import functional
from ..activations import Activation
from ..arrays import Array
from ..core import pool
from ..errors import MissingExtraError, PoolValueError
from ..reductions import Reduction, activated, as_reduction
from ..windows import Window, as_window

try:
    from torch import nn
    from torch.compiler import is_dynamo_compiling
except ModuleNotFoundError as error:
    raise MissingExtraError("torch", "torch") from error

# The shortcuts, which a compiler traces, and the gradients of operators in programs.
from ..torch import dispatch as _dispatch

__all__ = [
    "SPPF",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "GlobalAvgPool1d",
    "GlobalAvgPool2d",
    "GlobalAvgPool3d",
    "GlobalMaxPool1d",
    "GlobalMaxPool2d",
    "GlobalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "MinPool1d",
    "MinPool2d",
    "MinPool3d",
    "Pool",
    "ReLUMaxPool1d",
    "ReLUMaxPool2d",
    "ReLUMaxPool3d",
    "SigmoidAvgPool1d",
    "SigmoidAvgPool2d",
    "SigmoidAvgPool3d",
    "SumPool1d",
    "SumPool2d",
    "SumPool3d",
]

Size = int | Sequence[int]


class Pool(nn.Module):
    """Any window with any reduction, as a module.

    Args:
        window, reduction, ndim, activation: as for `poolkit.pool`.

    Shape: ``(N, C, *spatial)`` or ``(C, *spatial)`` to the same with the window's output shape.

    >>> import torch, poolkit
    >>> poolkit.nn.Pool(poolkit.Pyramid((4, 2, 1)), "max")(torch.zeros(1, 8, 13, 9)).shape
    torch.Size([1, 8, 21])
    """

    def __init__(
        self,
        window: Window | str,
        reduction: Reduction | str = "max",
        ndim: int | None = None,
        activation: Activation | str | None = None,
    ) -> None:
        super().__init__()
        self.window = as_window(window)
        self.reduction = activated(as_reduction(reduction), activation)
        self.ndim = ndim
        for made in (self.window, self.reduction):
            _dispatch.recipe_of(made)  # kept on them, for a compiler

    def forward(self, input: Array) -> Array:
        if is_dynamo_compiling():
            out = _dispatch.traced(input, self.window, self.reduction, self.ndim)
            if out is not None:
                return out
        return pool(input, self.window, self.reduction, ndim=self.ndim)

    def extra_repr(self) -> str:
        return f"{self.window}, {self.reduction}"


def _entries(value: Any, ndim: int) -> Any:
    """One entry for each axis, where torch's modules store it so."""
    return (value,) * ndim if isinstance(value, int) else value


class _Named(nn.Module):
    """A module that calls the function of its own name in `functional`."""

    function: ClassVar[Any]
    ndim: ClassVar[int]


class _SlidingSum(_Named):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride if stride is not None else kernel_size
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def forward(self, input: Array) -> Any:
        return type(self).function(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class _SlidingExtreme(_SlidingSum):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices

    def forward(self, input: Array) -> Any:
        return type(self).function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class _SlidingMean(_Named):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride if stride is not None else kernel_size
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Array) -> Array:
        return type(self).function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _SlidingNorm(_Named):
    def __init__(
        self,
        norm_type: float,
        kernel_size: Size,
        stride: Size | None = None,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.norm_type = norm_type
        self.kernel_size = kernel_size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def forward(self, input: Array) -> Array:
        return type(self).function(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, ceil_mode={self.ceil_mode}"
        )


class _AdaptiveMean(_Named):
    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Array) -> Array:
        return type(self).function(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AdaptiveExtreme(_Named):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices

    def forward(self, input: Array) -> Any:
        return type(self).function(input, self.output_size, self.return_indices)

    extra_repr = _AdaptiveMean.extra_repr


class _Global(_Named):
    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, input: Array) -> Array:
        return type(self).function(input, self.keepdim)

    def extra_repr(self) -> str:
        return f"keepdim={self.keepdim}"


class SPPF(nn.Module):
    """`poolkit.sppf` as a module: the pooling between the two convolutions of YOLO's SPPF block.

    >>> import torch, poolkit
    >>> block = torch.nn.Sequential(
    ...     torch.nn.Conv2d(16, 8, 1), poolkit.nn.SPPF(5), torch.nn.Conv2d(32, 16, 1)
    ... )
    >>> block(torch.zeros(1, 16, 20, 20)).shape
    torch.Size([1, 16, 20, 20])
    """

    def __init__(self, kernel_size: Size = 5, levels: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.levels = levels

    def forward(self, input: Array) -> Array:
        return functional.sppf(input, self.kernel_size, self.levels)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, levels={self.levels}"


class _Unpool(_Named):
    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        super().__init__()
        ndim = self.ndim
        self.kernel_size = _entries(kernel_size, ndim)
        self.stride = _entries(stride if stride is not None else kernel_size, ndim)
        self.padding = _entries(padding, ndim)

    def forward(
        self, input: Array, indices: Array, output_size: Sequence[int] | None = None
    ) -> Array:
        return type(self).function(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _Fractional(_Named):
    def __init__(
        self,
        kernel_size: Size,
        output_size: Size | None = None,
        output_ratio: Any = None,
        return_indices: bool = False,
        _random_samples: Array | None = None,
    ) -> None:
        super().__init__()
        if (output_size is None) == (output_ratio is None):
            raise PoolValueError(
                "exactly one of output_size and output_ratio is needed", "Give one of the two"
            )
        ndim = self.ndim
        self.kernel_size = _entries(kernel_size, ndim)
        self.output_size = _entries(output_size, ndim)
        ratios = (output_ratio,) * ndim if isinstance(output_ratio, float) else output_ratio
        self.output_ratio = ratios
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)

    def forward(self, input: Array) -> Any:
        return type(self).function(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
        )


def _thin(name: str, base: type[_Named], function: str) -> type[Any]:
    """The class `name`: `base`, bound to a function of one rank."""
    bound = getattr(functional, function)
    ndim = int(name[-2])
    documentation = (
        f"The module of `poolkit.{function}`; constructor and repr are those of "
        f"``torch.nn.{name}``."
        if hasattr(nn, name)
        else f"The module of `poolkit.{function}`."
    )
    members = {
        "function": staticmethod(bound),
        "ndim": ndim,
        "__doc__": documentation,
        "__module__": __name__,
    }
    return type(name, (base,), members)


MaxPool1d = _thin("MaxPool1d", _SlidingExtreme, "max_pool1d")
MaxPool2d = _thin("MaxPool2d", _SlidingExtreme, "max_pool2d")
MaxPool3d = _thin("MaxPool3d", _SlidingExtreme, "max_pool3d")
ReLUMaxPool1d = _thin("ReLUMaxPool1d", _SlidingExtreme, "relu_max_pool1d")
ReLUMaxPool2d = _thin("ReLUMaxPool2d", _SlidingExtreme, "relu_max_pool2d")
ReLUMaxPool3d = _thin("ReLUMaxPool3d", _SlidingExtreme, "relu_max_pool3d")
MinPool1d = _thin("MinPool1d", _SlidingExtreme, "min_pool1d")
MinPool2d = _thin("MinPool2d", _SlidingExtreme, "min_pool2d")
MinPool3d = _thin("MinPool3d", _SlidingExtreme, "min_pool3d")


class _SlidingMean1d(_SlidingMean):
    """One axis: torch's function has no divisor_override."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        stride = stride if stride is not None else kernel_size
        super().__init__(
            _entries(kernel_size, 1),
            _entries(stride, 1),
            _entries(padding, 1),
            ceil_mode,
            count_include_pad,
        )

    def forward(self, input: Array) -> Array:
        return type(self).function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


AvgPool1d = _thin("AvgPool1d", _SlidingMean1d, "avg_pool1d")
AvgPool2d = _thin("AvgPool2d", _SlidingMean, "avg_pool2d")
AvgPool3d = _thin("AvgPool3d", _SlidingMean, "avg_pool3d")
SigmoidAvgPool1d = _thin("SigmoidAvgPool1d", _SlidingMean1d, "sigmoid_avg_pool1d")
SigmoidAvgPool2d = _thin("SigmoidAvgPool2d", _SlidingMean, "sigmoid_avg_pool2d")
SigmoidAvgPool3d = _thin("SigmoidAvgPool3d", _SlidingMean, "sigmoid_avg_pool3d")
SumPool1d = _thin("SumPool1d", _SlidingSum, "sum_pool1d")
SumPool2d = _thin("SumPool2d", _SlidingSum, "sum_pool2d")
SumPool3d = _thin("SumPool3d", _SlidingSum, "sum_pool3d")
LPPool1d = _thin("LPPool1d", _SlidingNorm, "lp_pool1d")
LPPool2d = _thin("LPPool2d", _SlidingNorm, "lp_pool2d")
LPPool3d = _thin("LPPool3d", _SlidingNorm, "lp_pool3d")
AdaptiveMaxPool1d = _thin("AdaptiveMaxPool1d", _AdaptiveExtreme, "adaptive_max_pool1d")
AdaptiveMaxPool2d = _thin("AdaptiveMaxPool2d", _AdaptiveExtreme, "adaptive_max_pool2d")
AdaptiveMaxPool3d = _thin("AdaptiveMaxPool3d", _AdaptiveExtreme, "adaptive_max_pool3d")
AdaptiveAvgPool1d = _thin("AdaptiveAvgPool1d", _AdaptiveMean, "adaptive_avg_pool1d")
AdaptiveAvgPool2d = _thin("AdaptiveAvgPool2d", _AdaptiveMean, "adaptive_avg_pool2d")
AdaptiveAvgPool3d = _thin("AdaptiveAvgPool3d", _AdaptiveMean, "adaptive_avg_pool3d")
GlobalMaxPool1d = _thin("GlobalMaxPool1d", _Global, "global_max_pool1d")
GlobalMaxPool2d = _thin("GlobalMaxPool2d", _Global, "global_max_pool2d")
GlobalMaxPool3d = _thin("GlobalMaxPool3d", _Global, "global_max_pool3d")
GlobalAvgPool1d = _thin("GlobalAvgPool1d", _Global, "global_avg_pool1d")
GlobalAvgPool2d = _thin("GlobalAvgPool2d", _Global, "global_avg_pool2d")
GlobalAvgPool3d = _thin("GlobalAvgPool3d", _Global, "global_avg_pool3d")
MaxUnpool1d = _thin("MaxUnpool1d", _Unpool, "max_unpool1d")
MaxUnpool2d = _thin("MaxUnpool2d", _Unpool, "max_unpool2d")
MaxUnpool3d = _thin("MaxUnpool3d", _Unpool, "max_unpool3d")
FractionalMaxPool2d = _thin("FractionalMaxPool2d", _Fractional, "fractional_max_pool2d")
FractionalMaxPool3d = _thin("FractionalMaxPool3d", _Fractional, "fractional_max_pool3d")
