"""Several scales at once: pyramids of grids, strips, and convolutions of several rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import functional
from ..arrays import Array
from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..reductions import Reduction
from ..windows import Adaptive, Pyramid
from .maps import checked_maps
from .registry import listed

__all__ = ["ASPP", "SPP", "PyramidPool2d", "StripPool2d", "spatial_pyramid_pool2d", "strip_pool2d"]

Norm = Callable[[int], nn.Module] | None
Activate = Callable[[], nn.Module] | None

ROWS, COLUMNS = Adaptive((None, 1)), Adaptive((1, None))


def spatial_pyramid_pool2d(
    input: Array, levels: Sequence[Any] = (4, 2, 1), reduction: Reduction | str = "max"
) -> Array:
    """Adaptive grids of several sizes on the same input, flattened to one vector for each image.

    Its length is ``C * Σ level²``, whatever the size of the input, so that a linear layer may
    follow. The values of a channel lie together: those of the first level by rows, then those of
    the next. The input may be smaller than a level, whose bins then see a position several times.

    Source: He, Zhang, Ren and Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for
    Visual Recognition", 2014.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        levels: the grids: an integer, or one for each axis.
        reduction: how the values of a bin become one.

    Returns:
        (N, C * Σ level²) or (C * Σ level²,), in the dtype that the reduction gives.

    Raises:
        PoolError: for other ranks, and for levels that are no sizes.

    >>> import torch, poolkit
    >>> spatial_pyramid_pool2d(torch.rand(2, 8, 13, 9)).shape
    torch.Size([2, 168])
    >>> spatial_pyramid_pool2d(torch.rand(2, 8, 3, 50)).shape
    torch.Size([2, 168])
    """
    try:
        functional.check_rank(input, 2)
        window = Pyramid(levels)
        pooled = pool(input, window, reduction, ndim=2)
    except PoolError as error:
        raise error.during(f"{describe(input)} by spatial_pyramid_pool2d") from None
    *images, channels, bins = pooled.shape
    return pooled.reshape((*images, channels * bins))


@listed(
    "spp",
    kind="global",
    formula="max of each bin of grids 4x4, 2x2 and 1x1, joined",
    gradient="the first largest of each bin",
    cost="one pass for each level",
    paper="He et al. 2014, Spatial pyramid pooling in deep convolutional networks",
)
class SPP(nn.Module):
    """`spatial_pyramid_pool2d` as a module.

    Args:
        levels, reduction: as for `spatial_pyramid_pool2d`.

    Shape: ``(N, C, H, W)`` to ``(N, C * Σ level²)``, for any H and W.

    >>> import torch
    >>> head = nn.Sequential(SPP((4, 2, 1)), nn.Linear(8 * 21, 10))
    >>> head(torch.rand(2, 8, 13, 9)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, levels: Sequence[Any] = (4, 2, 1), reduction: Reduction | str = "max"
    ) -> None:
        super().__init__()
        self.levels = Pyramid(levels).levels
        self.reduction = reduction

    def forward(self, input: Array) -> Array:
        return spatial_pyramid_pool2d(input, self.levels, self.reduction)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, reduction={self.reduction!r}"


def strip_pool2d(input: Array, reduction: Reduction | str = "mean") -> tuple[Array, Array]:
    """Each row as one value, and each column: windows that are long and one position narrow.

    Source: Hou, Zhang, Cheng and Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene
    Parsing", 2020.

    Args:
        input: (N, C, H, W) or (C, H, W), a NumPy array or a tensor.
        reduction: how the values of a strip become one.

    Returns:
        (N, C, H, 1), the rows, and (N, C, 1, W), the columns.

    Raises:
        PoolError: for other ranks.

    >>> import numpy as np, poolkit
    >>> rows, columns = strip_pool2d(np.array([[[1.0, 3.0], [5.0, 7.0]]]))
    >>> rows.ravel().tolist(), columns.ravel().tolist()
    ([2.0, 6.0], [3.0, 5.0])
    """
    try:
        functional.check_rank(input, 2)
        return pool(input, ROWS, reduction), pool(input, COLUMNS, reduction)
    except PoolError as error:
        raise error.during(f"{describe(input)} by strip_pool2d") from None


def _unit(
    channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 1,
    rate: int = 1,
    norm: Norm = None,
    activation: Activate = None,
) -> nn.Sequential:
    """A convolution that keeps the size, its norm (which has the bias then) and its activation."""
    for name, made in (("norm", norm), ("activation", activation)):
        if made is not None and not callable(made):
            raise PoolTypeError(
                f"{name} must be a class or a function that makes a module, got {made!r}",
                "Write for instance norm=torch.nn.BatchNorm2d and activation=torch.nn.ReLU",
            )
    pair = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (pair[0] // 2 * rate, pair[1] // 2 * rate)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, pair, padding=padding, dilation=rate, bias=norm is None)
    ]
    layers += [norm(out_channels)] if norm is not None else []
    layers += [activation()] if activation is not None else []
    return nn.Sequential(*layers)


def _check_norm(unit: nn.Module, values: int, where: str) -> None:
    """Refuses to train a batch norm on one value for each channel, which it would make 0."""
    if values == 1 and any(isinstance(m, _BatchNorm) and m.training for m in unit.modules()):
        raise PoolValueError(
            f"batch norm cannot be trained on {where} of a single image: one value for each "
            "channel has no spread",
            "Train with two images or more, call eval() on the norm, or give another one, such "
            "as norm=lambda channels: torch.nn.GroupNorm(1, channels)",
        )


@listed(
    "psp",
    kind="map",
    formula="[x, up(conv(mean of 1x1 bins)), ... 2x2, 3x3, 6x6]",
    parameters="4 convolutions 1x1 of C to C/4 with norms: C² + 2C",
    gradient="x itself; each bin's evenly among its values",
    cost="four adaptive means, small convolutions, four upsamplings",
    paper="Zhao et al. 2017, Pyramid scene parsing network",
)
class PyramidPool2d(nn.Module):
    """The pyramid of a scene parsing network: means of grids of several sizes beside the input.

    Each grid goes through a 1x1 convolution, norm and activation, is stretched to the input's
    size (bilinear, ``align_corners=False``) and joined to the input along the channels.

    Training with batch norm needs two images or more, as the level of one bin has a single value
    for each channel and image: a batch of one is refused. In eval mode any batch will do.

    Source: Zhao, Shi, Qi, Wang and Jia, "Pyramid Scene Parsing Network", 2017.

    Args:
        channels: of the input.
        levels: the grids: an integer, or one for each axis.
        out_channels: of each level; None is ``channels // len(levels)``.
        norm: what makes the norm of so many channels, or None for a bias instead.
        activation: what makes the activation, or None.

    Shape: ``(N, C, H, W)`` to ``(N, C + len(levels) * out_channels, H, W)``.

    Raises:
        PoolError: for other ranks or channels, and for batch norm in training on one image.

    >>> import torch
    >>> PyramidPool2d(8)(torch.rand(2, 8, 13, 9)).shape
    torch.Size([2, 16, 13, 9])
    """

    def __init__(
        self,
        channels: int,
        levels: Sequence[Any] = (1, 2, 3, 6),
        out_channels: int | None = None,
        norm: Norm = nn.BatchNorm2d,
        activation: Activate = nn.ReLU,
    ) -> None:
        super().__init__()
        self.channels = checked_size("channels", channels)
        self.levels = Pyramid(levels).levels
        each = max(channels // len(self.levels), 1) if out_channels is None else out_channels
        self.out_channels = channels + len(self.levels) * each
        self.branches = nn.ModuleList(
            _unit(channels, each, norm=norm, activation=activation) for _ in self.levels
        )

    def forward(self, input: Tensor) -> Tensor:
        try:
            checked_maps(input, self.channels)
            if input.ndim == 3:
                batch: Tensor = self._branches(input[None])
                return batch[0]
            return self._branches(input)
        except PoolError as error:
            raise error.during(f"{describe(input)} by PyramidPool2d") from None

    def _branches(self, input: Tensor) -> Tensor:
        joined = [input]
        for level, branch in zip(self.levels, self.branches, strict=True):
            bins = functional.adaptive_avg_pool2d(input, level)
            values = bins.shape[0] * bins.shape[2] * bins.shape[3]
            _check_norm(branch, values, f"the level {level}")
            joined.append(
                F.interpolate(
                    branch(bins), size=input.shape[2:], mode="bilinear", align_corners=False
                )
            )
        return torch.cat(joined, 1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, levels={self.levels}"


@listed(
    "strip",
    kind="map",
    formula="x · σ(conv(conv(mean of rows) + conv(mean of columns)))",
    parameters="two convolutions of 3 and one of 1, C to C: 7C² + 3C",
    gradient="x by its gate; the gate's along its row and its column",
    cost="two means over lines, and a 1x1 convolution of the map",
    paper="Hou et al. 2020, Strip pooling",
)
class StripPool2d(nn.Module):
    """A gate for each position, from the means of its row and of its column.

    ``x * sigmoid(fuse(a(rows) + b(columns)))``: a and b are convolutions along the strip, fuse is
    one of 1x1 on their broadcast sum. A long thin object is seen along all of its length, and
    nothing beside it.

    Source: Hou, Zhang, Cheng and Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene
    Parsing", 2020.

    Args:
        channels: of the input.
        strip_kernel: positions of the convolutions along the strips, odd.
        norm: what makes the norm behind them, or None for a bias instead.

    Shape: ``(N, C, H, W)`` to the same.

    Raises:
        PoolError: for an even strip_kernel, and for other ranks or channels.

    >>> import torch
    >>> StripPool2d(8)(torch.rand(2, 8, 13, 9)).shape
    torch.Size([2, 8, 13, 9])
    """

    def __init__(self, channels: int, strip_kernel: int = 3, norm: Norm = None) -> None:
        super().__init__()
        if strip_kernel < 1 or strip_kernel % 2 == 0:
            raise PoolValueError(
                f"strip_kernel must be odd, got {strip_kernel}", "Write for instance strip_kernel=3"
            )
        self.channels = checked_size("channels", channels)
        self.strip_kernel = strip_kernel
        self.rows = _unit(channels, channels, (strip_kernel, 1), norm=norm)
        self.columns = _unit(channels, channels, (1, strip_kernel), norm=norm)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        try:
            checked_maps(input, self.channels)
            x = input if input.ndim == 4 else input[None]
            rows, columns = strip_pool2d(x)
            _check_norm(self.rows, rows.shape[0] * rows.shape[2], "the strip")
            _check_norm(self.columns, columns.shape[0] * columns.shape[3], "the strip")
            gated: Tensor = x * self.fuse(self.rows(rows) + self.columns(columns)).sigmoid()
            return gated if input.ndim == 4 else gated[0]
        except PoolError as error:
            raise error.during(f"{describe(input)} by StripPool2d") from None

    def extra_repr(self) -> str:
        return f"channels={self.channels}, strip_kernel={self.strip_kernel}"


@listed(
    "aspp",
    kind="map",
    formula="conv[conv(x), conv of rates 6, 12, 18(x), conv(mean(x))]",
    parameters="1x1, three 3x3, image and 1x1 of all five, C to C: 34C² + 12C",
    gradient="all taps of all rates; the image's evenly among all",
    cost="33 C² multiplications at each position, and 5C channels kept",
    paper="Chen et al. 2017, Rethinking atrous convolution",
)
class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several rates, and the whole image's mean.

    A 1x1 convolution, one 3x3 for each rate, and the global mean through a 1x1 convolution and
    spread over the map, each with norm and activation; all of them are joined and go through
    another 1x1 convolution.

    Training with batch norm needs two images or more: of a single one the branch of the mean has
    one value for each channel, and a batch of one is refused. In eval mode any batch will do.

    Source: Chen, Papandreou, Kokkinos, Murphy and Yuille, "DeepLab", 2018 (the rates); Chen,
    Papandreou, Schroff and Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation",
    2017 (the image's mean).

    Args:
        channels: of the input.
        out_channels: of each branch and of the result; None is `channels`. DeepLab has 256.
        rates: the dilations of the 3x3 convolutions.
        norm: what makes the norm of so many channels, or None for a bias instead.
        activation: what makes the activation, or None.

    Shape: ``(N, C, H, W)`` to ``(N, out_channels, H, W)``.

    Raises:
        PoolError: for other ranks or channels, and for batch norm in training on one image.

    >>> import torch
    >>> ASPP(8, 4, rates=(1, 2))(torch.rand(2, 8, 13, 9)).shape
    torch.Size([2, 4, 13, 9])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        rates: Sequence[int] = (6, 12, 18),
        norm: Norm = nn.BatchNorm2d,
        activation: Activate = nn.ReLU,
    ) -> None:
        super().__init__()
        if any(isinstance(rate, bool) or not isinstance(rate, int) or rate < 1 for rate in rates):
            raise PoolValueError(
                f"rates must be integers of at least 1, got {tuple(rates)}", "Write (6, 12, 18)"
            )
        self.channels = checked_size("channels", channels)
        self.out_channels = out = channels if out_channels is None else out_channels
        self.rates = tuple(rates)
        self.point = _unit(channels, out, norm=norm, activation=activation)
        self.branches = nn.ModuleList(
            _unit(channels, out, 3, rate, norm, activation) for rate in self.rates
        )
        self.image = _unit(channels, out, norm=norm, activation=activation)
        self.project = _unit((2 + len(self.rates)) * out, out, norm=norm, activation=activation)

    def forward(self, input: Tensor) -> Tensor:
        try:
            checked_maps(input, self.channels)
            x = input if input.ndim == 4 else input[None]
            _check_norm(self.image, x.shape[0], "the mean")
            _check_norm(self.project, x.shape[0] * x.shape[2] * x.shape[3], "a map of 1x1")
            mean = self.image(functional.global_avg_pool2d(x))
            parts = [self.point(x), *(branch(x) for branch in self.branches)]
            parts.append(mean.expand(-1, -1, *x.shape[2:]))
            result: Tensor = self.project(torch.cat(parts, 1))
            return result if input.ndim == 4 else result[0]
        except PoolError as error:
            raise error.during(f"{describe(input)} by ASPP") from None

    def extra_repr(self) -> str:
        return f"channels={self.channels}, out_channels={self.out_channels}, rates={self.rates}"
