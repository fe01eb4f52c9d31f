"""Poolings between the average and the maximum, and by rank: short names for reductions, and
modules whose sharpness is learned."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..arrays import Array
from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, describe
from ..functional import Size, check_rank, new_sliding, sliding
from ..reductions import GeM, LogSumExp, Median, Quantile, Reduction, Soft, Std, TopK
from ..windows import Global, Window
from .exponential import log_mean_exp, soft
from .learned import learnable, told_of
from .placed import Placed
from .registry import listed

__all__ = [
    "GeMPool2d",
    "GlobalGeMPool2d",
    "LSEPool2d",
    "MedianPool2d",
    "QuantilePool2d",
    "SoftPool2d",
    "StdPool2d",
    "TopKPool2d",
    "gem_pool2d",
    "lse_pool2d",
    "median_pool2d",
    "quantile_pool2d",
    "soft_pool2d",
    "std_pool2d",
    "top_k_pool2d",
]

PLACE = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def soft_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    beta: float = 1.0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The mean of each window, weighted by the softmax of its values: Σ x exp(β x) / Σ exp(β x).

    The largest value is subtracted first, so it is finite for every finite input.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        kernel_size: positions of a window; None for one window of all positions.
        stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        beta: the sharpness, above 0; towards the max for large values.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Stergiou, Poppe and Kalliatakis, "Refining activation downsampling with SoftPool"
    (2021).

    >>> import numpy as np
    >>> soft_pool2d(np.array([[[0.0, np.log(3.0)]]]), (1, 2)).round(4)  # 3/4 log 3
    array([[[0.824]]])
    """
    try:
        reduction = Soft(beta)
        window = _window(input, reduction, kernel_size, stride, padding, dilation, ceil_mode)
        return soft(input, float(beta), window)
    except PoolError as error:
        raise error.during(f"{describe(input)} by soft_pool2d") from None


def gem_pool2d(
    input: Array,
    kernel_size: Size | None = None,
    stride: Size | None = None,
    padding: Any = 0,
    p: float | Tensor = 3.0,
    eps: float = 1e-6,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The generalised mean of each window: (Σ max(x, ε)^p / n)^(1/p).

    For p = 1 it is the mean, for large p it tends to the max. Powers are taken relative to the
    largest value of each window, so that none overflows or vanishes.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        kernel_size: positions of a window; None for one window of all positions.
        stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        p: the exponent, above 0. A tensor, of one element or of one for each channel, has a
            gradient, and counts as 0.001 where it is less.
        eps: smaller values are raised to this, above 0.

    Raises:
        PoolError: for shapes, sizes, dtypes and exponents that cannot be pooled with.

    Source: Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation"
    (2018).

    >>> import numpy as np
    >>> gem_pool2d(np.array([[[1.0, 7.0]]]), p=2).round(6)
    array([[[5.]]])
    """
    try:
        _check_eps(eps)
        reduction = GeM(3.0 if isinstance(p, Tensor) else p)
        window = _window(input, reduction, kernel_size, stride, padding, dilation, ceil_mode)
        return log_mean_exp(input, p, "p", window, eps)
    except PoolError as error:
        raise error.during(f"{describe(input)} by gem_pool2d") from None


def lse_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    r: float | Tensor = 1.0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The logarithm of the mean exponential of each window: log(Σ exp(r x) / n) / r.

    For small r it tends to the mean, for large r to the max. The largest value is subtracted
    first, so it is finite for every finite input.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        kernel_size: positions of a window; None for one window of all positions.
        stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        r: the sharpness, above 0. A tensor, of one element or of one for each channel, has a
            gradient, and counts as 0.001 where it is less.

    Raises:
        PoolError: for shapes, sizes, dtypes and a sharpness that cannot be pooled with.

    Source: Pinheiro and Collobert, "From image-level to pixel-level labeling with convolutional
    networks" (2015).

    >>> import numpy as np
    >>> lse_pool2d(np.array([[[0.0, np.log(3.0)]]]), (1, 2)).round(4)  # log 2
    array([[[0.6931]]])
    """
    try:
        reduction = LogSumExp(1.0 if isinstance(r, Tensor) else r)
        window = _window(input, reduction, kernel_size, stride, padding, dilation, ceil_mode)
        return log_mean_exp(input, r, "r", window, None)
    except PoolError as error:
        raise error.during(f"{describe(input)} by lse_pool2d") from None


def median_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The middle value of each window, or the mean of the two middle ones.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        kernel_size: positions of a window; None for one window of all positions.
        stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Tukey, "Exploratory data analysis" (1977).

    >>> import numpy as np
    >>> median_pool2d(np.array([[[9.0, 1.0, 2.0]]]), (1, 3))
    array([[[2.]]])
    """
    at = kernel_size, stride, padding, dilation, ceil_mode
    return _pooled("median_pool2d", input, at, Median)


def quantile_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    q: float,
) -> Array:
    """The value of each window below which a share q of it lies.

    Args: as for `median_pool2d`, and
        q: from 0 (the min) by 0.5 (the median) to 1 (the max), interpolated between ranks.

    Raises:
        PoolError: for shapes, sizes, dtypes and shares that cannot be pooled with.

    Source: Hyndman and Fan, "Sample quantiles in statistical packages" (1996), definition 7.

    >>> import numpy as np
    >>> quantile_pool2d(np.array([[[4.0, 1.0, 3.0]]]), (1, 3), q=0.75)
    array([[[3.5]]])
    """
    at = kernel_size, stride, padding, dilation, ceil_mode
    return _pooled("quantile_pool2d", input, at, Quantile, q)


def std_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    correction: int = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Array:
    """The standard deviation of each window: sqrt(Σ (x - x̄)² / (n - c)).

    Args: as for `median_pool2d`, and
        correction: c, 1 for the estimate from a sample.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979).

    >>> import numpy as np
    >>> std_pool2d(np.array([[[1.0, 3.0, 5.0, 5.0]]]), (1, 2))
    array([[[1., 0.]]])
    """
    at = kernel_size, stride, padding, dilation, ceil_mode
    return _pooled("std_pool2d", input, at, Std, correction)


def top_k_pool2d(
    input: Array,
    kernel_size: Size | None,
    stride: Size | None = None,
    padding: Any = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    k: int,
) -> Array:
    """The mean of the k largest values of each window.

    Args: as for `median_pool2d`, and
        k: 1 for the max; a window that sees fewer values takes all of them.

    Raises:
        PoolError: for shapes, sizes, dtypes and numbers that cannot be pooled with.

    Source: Durand, Thome and Cord, "WELDON: weakly supervised learning of deep convolutional
    neural networks" (2016).

    >>> import numpy as np
    >>> top_k_pool2d(np.array([[[1.0, 4.0, 2.0]]]), (1, 3), k=2)
    array([[[3.]]])
    """
    at = kernel_size, stride, padding, dilation, ceil_mode
    return _pooled("top_k_pool2d", input, at, TopK, k)


# --- modules ------------------------------------------------------------------------------------


class _Short(Placed):
    """A module that calls its `function`. Its window is checked when it is made."""

    function: Any
    shown: tuple[str, ...] = ()
    """The options beside the window, which are the function's keywords too."""

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        if kernel_size is not None:
            new_sliding(2, kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, input: Array) -> Array:
        options = {name: getattr(self, name) for name in (*PLACE, *self.shown)}
        return type(self).function(input, **options)

    def extra_repr(self) -> str:
        place = "kernel_size=None" if self.kernel_size is None else super().extra_repr()
        return ", ".join(
            [place, *(f"{name}={told_of(getattr(self, name))}" for name in self.shown)]
        )


@listed(
    "soft",
    kind="window",
    formula="Σ x exp(β x) / Σ exp(β x)",
    gradient="softmax(β x) · (1 + β (x - y)): to all values, most to the largest",
    cost="one exponential for each value and window, one more in the gradient; input kept",
    paper="Stergiou et al. 2021, Refining activation downsampling with SoftPool",
)
class SoftPool2d(_Short):
    """`soft_pool2d` as a module.

    Args: as for `soft_pool2d`.

    >>> import torch
    >>> SoftPool2d(2)(torch.full((1, 1, 2, 2), 1e30))
    tensor([[[[1.0000e+30]]]])
    """

    function = staticmethod(soft_pool2d)
    shown = ("beta",)

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        beta: float = 1.0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.beta = Soft(beta).beta


@listed(
    "gem_window",
    kind="window",
    formula="(Σ max(x, ε)^p / n)^(1/p)",
    parameters="p: 1, or C with per_channel",
    gradient="(x / y)^(p-1) / n: to all values, most to the largest",
    cost="a logarithm and an exponential for each value and window, two in the gradient",
    paper="Radenovic et al. 2018, Fine-tuning CNN image retrieval with no human annotation",
)
class GeMPool2d(_Short):
    """`gem_pool2d` as a module, whose exponent is learned.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for `gem_pool2d`: without a
            kernel_size it pools all positions, to (N, C, 1, 1).
        p: the exponent, or what it is to begin with.
        learned: whether p is a parameter, of shape (1,).
        per_channel, channels: whether it has one number for each channel, and how many these are.
        eps: smaller values are raised to this, above 0.

    Raises:
        PoolError: for numbers out of range, and for per_channel without channels.

    >>> import torch
    >>> pool = GeMPool2d(per_channel=True, channels=8)
    >>> pool(torch.rand(2, 8, 7, 7)).shape, pool.p.shape
    (torch.Size([2, 8, 1, 1]), torch.Size([8]))
    >>> GeMPool2d(2, p=4.0, learned=False)
    GeMPool2d(kernel_size=2, stride=2, padding=0, p=4.0, eps=1e-06)
    """

    function = staticmethod(gem_pool2d)
    shown = ("p", "eps")

    def __init__(
        self,
        kernel_size: Size | None = None,
        stride: Size | None = None,
        padding: Any = 0,
        p: float = 3.0,
        learned: bool = True,
        per_channel: bool = False,
        channels: int | None = None,
        eps: float = 1e-6,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        _check_eps(eps)
        self.eps = float(eps)
        self.p = learnable("p", GeM(p, eps).p, learned, per_channel, channels)


@listed(
    "gem",
    kind="global",
    formula="(Σ max(x, ε)^p / n)^(1/p)",
    parameters="p: 1, or C with per_channel",
    gradient="(x / y)^(p-1) / n: to all values, most to the largest",
    cost="a logarithm and an exponential for each value, two in the gradient",
    paper="Radenovic et al. 2018, Fine-tuning CNN image retrieval with no human annotation",
)
class GlobalGeMPool2d(GeMPool2d):
    """`GeMPool2d` of all positions: (N, C, H, W) to (N, C, 1, 1).

    Args: as for `GeMPool2d`, without a window.

    >>> import torch
    >>> GlobalGeMPool2d()(torch.ones(2, 8, 7, 7)).shape
    torch.Size([2, 8, 1, 1])
    """

    def __init__(
        self,
        p: float = 3.0,
        learned: bool = True,
        per_channel: bool = False,
        channels: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(p=p, learned=learned, per_channel=per_channel, channels=channels, eps=eps)


@listed(
    "lse",
    kind="window",
    formula="log(Σ exp(r x) / n) / r",
    parameters="none; with learned r: 1, or C with per_channel",
    gradient="softmax(r x): to all values, most to the largest",
    cost="one exponential for each value and window, one more in the gradient",
    paper="Pinheiro and Collobert 2015, From image-level to pixel-level labeling with CNNs",
)
class LSEPool2d(_Short):
    """`lse_pool2d` as a module.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for `lse_pool2d`.
        r: the sharpness, or what it is to begin with.
        learned: whether r is a parameter, of shape (1,).
        per_channel, channels: whether it has one number for each channel, and how many these are.

    Raises:
        PoolError: for numbers out of range, and for per_channel without channels.

    >>> import torch
    >>> LSEPool2d(2, r=5.0)(torch.full((1, 1, 2, 2), 1000.0))
    tensor([[[[1000.]]]])
    """

    function = staticmethod(lse_pool2d)
    shown = ("r",)

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        r: float = 1.0,
        learned: bool = False,
        per_channel: bool = False,
        channels: int | None = None,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.r = learnable("r", LogSumExp(r).r, learned, per_channel, channels)


@listed(
    "median",
    kind="window",
    formula="value of rank (n - 1) / 2",
    gradient="the middle value, or half to each of the two",
    cost="a sorting network for each window; the gradient gathers the windows",
    paper="Tukey 1977, Exploratory data analysis",
)
class MedianPool2d(_Short):
    """`median_pool2d` as a module.

    Args: as for `median_pool2d`.

    >>> import torch
    >>> MedianPool2d(3, stride=1, padding=1)(torch.eye(3)[None]).sum()  # no position stands out
    tensor(1.)
    """

    function = staticmethod(median_pool2d)


@listed(
    "quantile",
    kind="window",
    formula="value of rank q (n - 1), between neighbours",
    gradient="the two values that it lies between, by distance",
    cost="as median",
    paper="Hyndman and Fan 1996, Sample quantiles in statistical packages",
    q=0.75,
)
class QuantilePool2d(_Short):
    """`quantile_pool2d` as a module.

    Args: as for `quantile_pool2d`.

    >>> import torch
    >>> QuantilePool2d((1, 3), q=0.75)(torch.tensor([[[4.0, 1.0, 3.0]]]))
    tensor([[[3.5000]]])
    """

    function = staticmethod(quantile_pool2d)
    shown = ("q",)

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        *,
        q: float,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.q = Quantile(q).q


@listed(
    "std",
    kind="window",
    formula="sqrt(Σ (x - x̄)² / (n - c))",
    gradient="(x - x̄) / (y (n - c)), and 0 where y is 0",
    cost="two passes over each window",
    paper="Chan et al. 1979, Updating formulae and a pairwise algorithm for sample variances",
)
class StdPool2d(_Short):
    """`std_pool2d` as a module.

    Args: as for `std_pool2d`.

    >>> import torch
    >>> StdPool2d((1, 2))(torch.tensor([[[1.0, 3.0, 5.0, 5.0]]]))
    tensor([[[1., 0.]]])
    """

    function = staticmethod(std_pool2d)
    shown = ("correction",)

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        correction: int = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.correction = Std(correction).correction


@listed(
    "top_k",
    kind="window",
    formula="mean of the k largest",
    gradient="1/k to each of the k largest",
    cost="as median",
    paper="Durand et al. 2016, WELDON: weakly supervised learning of deep CNNs",
    k=2,
)
class TopKPool2d(_Short):
    """`top_k_pool2d` as a module.

    Args: as for `top_k_pool2d`.

    >>> import torch
    >>> TopKPool2d((1, 3), k=2)(torch.tensor([[[1.0, 4.0, 2.0]]]))
    tensor([[[3.]]])
    """

    function = staticmethod(top_k_pool2d)
    shown = ("k",)

    def __init__(
        self,
        kernel_size: Size | None,
        stride: Size | None = None,
        padding: Any = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        *,
        k: int,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.k = TopK(k).k


# --- windows ------------------------------------------------------------------------------------


def _window(input: Array, reduction: Reduction, kernel_size: Any, *rest: Any) -> Window:
    check_rank(input, 2)
    if kernel_size is not None:
        return sliding(input, reduction, 2, kernel_size, *rest)
    stride, padding, *_ = rest
    if stride is not None or padding not in (0, (0, 0)):
        raise PoolValueError(
            "one window of all positions has no stride and no padding", "Give a kernel_size too"
        )
    return Global()


def _pooled(name: str, input: Array, place: Any, make: type[Reduction], *of: Any) -> Array:
    try:
        reduction = make(*of)
        return pool(input, _window(input, reduction, *place), reduction, ndim=2)
    except PoolError as error:
        raise error.during(f"{describe(input)} by {name}") from None


# --- checks -------------------------------------------------------------------------------------


def _check_eps(eps: float) -> None:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise PoolTypeError(f"eps must be a number, got {eps!r}", "Give a small one, above 0")
    if not 0 < eps < math.inf:  # which a compiler's symbol can be asked
        raise PoolValueError(
            f"eps must be above 0 and finite, got {eps}",
            "It stands for what has no logarithm, such as 1e-6",
        )
