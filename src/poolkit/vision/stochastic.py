"""Pooling by chance, which regularises a network as dropout does: a value drawn by its size, rows
and columns drawn from a grid, and the draws of fractional max pooling from a generator.

Each takes a `torch.Generator`, from which alone its draws come, in an order that does not depend on
the memory format. Outside training nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from ..core import pool, pool_with_indices
from ..errors import PoolError, PoolTypeError, PoolValueError, describe, is_torch_tensor
from ..functional import Size, new_sliding, sliding
from ..reductions import Max, Mean, Sum
from ..windows import Sliding, Window
from ..windows.base import freeze, per_axis
from .draws import check_generator, device_of, uniform
from .maps import check_floating
from .placed import Windowed
from .registry import listed

__all__ = ["S3Pool2d", "StochasticPool2d", "fractional_samples", "s3_pool2d", "stochastic_pool2d"]


def stochastic_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A value of each window, drawn with a probability in proportion to it.

    In training x is drawn with probability x / Σ x, and has the gradient; else the result is the
    mean with these probabilities, Σ x² / Σ x. Negative values have probability 0, and a window
    without positive ones gives 0.

    The draw is the first to arrive in a race: the largest log x + g, with one Gumbel-distributed
    g for each position (Yellott 1977), so that it is a max pooling and no memory grows with the
    window. Windows that overlap share the g of what both see: each draws with the right
    probabilities, but not independently of the other. Windows that do not overlap are independent.

    Args:
        input: (N, C, H, W) or (C, H, W), a tensor of a floating dtype.
        kernel_size, stride, padding: as for `poolkit.Sliding`.
        training: whether to draw.
        generator: where the draws come from; None for torch's own.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Zeiler and Fergus, "Stochastic pooling for regularization of deep convolutional neural
    networks" (2013).

    >>> x = torch.tensor([[[1.0, 3.0, 0.0, -2.0]]])
    >>> stochastic_pool2d(x, (1, 2), training=False)  # (1 + 9) / (1 + 3)
    tensor([[[2.5000, 0.0000]]])
    >>> stochastic_pool2d(x, (1, 2), generator=torch.Generator().manual_seed(0))
    tensor([[[3., 0.]]])
    """
    try:
        check_floating(input, "draws are")
        window = sliding(input, "a draw", 2, kernel_size, stride, padding, 1, False)
        if training:
            return _drawn(input, window, generator)
        return _expected(input, window)
    except PoolError as error:
        raise error.during(f"{describe(input)} by stochastic_pool2d") from None


def s3_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = "same",
    grid_size: Size | None = None,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Max pooling of stride 1, of which rows and columns are then drawn at random.

    The rows are cut into strips of `grid_size`, and from each strip ``grid_size / stride`` rows are
    drawn, without putting back, and kept in their order; and columns likewise. The draw is one
    for all images and channels. Outside training the mean of ``stride x stride`` positions takes
    its place, which is an average pooling. Rows and columns that do not fill a strip are left out.

    Args:
        input: (N, C, H, W) or (C, H, W), a tensor of a floating dtype.
        kernel_size: positions of a window of the max.
        stride: how much smaller the result is; None is the kernel size.
        padding: of the max, as for `poolkit.Sliding`: "same" keeps the size, so that the result
            has ``H // grid_size * (grid_size / stride)`` rows.
        grid_size: rows of a strip and columns of one, a multiple of the stride; None is the
            stride: one row of each strip. The larger, the more the draws differ.
        training: whether to draw.
        generator: where the draws come from; None for torch's own.

    Raises:
        PoolError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Zhai, Wu, Kumar, Cheng, Lu, Zhang and Feris, "S3Pool: pooling with stochastic spatial
    sampling" (2017).

    >>> x = torch.arange(4.0).reshape(1, 1, 4)  # the max with the right neighbour: 1 2 3 3
    >>> s3_pool2d(x, (1, 2), training=False)
    tensor([[[1.5000, 3.0000]]])
    """
    try:
        check_floating(input, "draws are")
        window = _max_window(input, kernel_size, padding)
        step, grid = _grid(kernel_size, stride, grid_size)
        dense = pool(input, window, Max(), ndim=2)
        sizes = tuple(dense.shape[-2:])
        for size, g in zip(sizes, grid, strict=True):
            if size < g:
                raise PoolValueError(
                    f"a strip of {g} does not fit {size} positions",
                    "Use a smaller grid_size or stride, or more padding",
                )
        height, width = (size // g * g for size, g in zip(sizes, grid, strict=True))
        dense = dense[..., :height, :width]
        if not training:
            averaged: Tensor = pool(dense, Sliding(step), Mean(), ndim=2)
            return averaged
        rows = _places(height, grid[0], step[0], input.device, generator)
        columns = _places(width, grid[1], step[1], input.device, generator)
        return dense.index_select(-2, rows).index_select(-1, columns)
    except PoolError as error:
        raise error.during(f"{describe(input)} by s3_pool2d") from None


def fractional_samples(
    x_or_shape: Array | Sequence[int],
    ndim: int = 2,
    generator: Any = None,
    dtype: Any = None,
) -> Array:
    """The draws of `poolkit.fractional_max_pool2d` or 3d, from a generator.

    Args:
        x_or_shape: what will be pooled, (N, C, *spatial) or (C, *spatial), or its shape.
        ndim: the number of spatial axes.
        generator: a `torch.Generator`, or for NumPy arrays a `numpy.random.Generator`; None for
            torch's own or a fresh one of NumPy's.
        dtype: of the draws; None is that of the array, or of a shape torch's default.

    Returns:
        (N, C, ndim) numbers in [0, 1), for ``_random_samples``.

    Raises:
        PoolError: for shapes of another rank, and a generator of another kind than the array.

    Source: Graham, "Fractional max-pooling" (2014).

    >>> import poolkit
    >>> samples = fractional_samples((1, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    >>> x = torch.rand(1, 3, 9, 9)
    >>> poolkit.fractional_max_pool2d(x, 2, output_ratio=0.7, _random_samples=samples).shape
    torch.Size([1, 3, 6, 6])
    """
    shape = tuple(getattr(x_or_shape, "shape", x_or_shape))
    if len(shape) not in (ndim + 1, ndim + 2):
        raise PoolValueError(
            f"a shape of {ndim + 1} or {ndim + 2} axes was expected, got {shape}",
            "Give (N, C, *spatial) or (C, *spatial), or another ndim",
        )
    wanted = (shape[0] if len(shape) == ndim + 2 else 1, shape[-ndim - 1], ndim)
    if isinstance(x_or_shape, np.ndarray) or isinstance(generator, np.random.Generator):
        if is_torch_tensor(x_or_shape) or isinstance(generator, torch.Generator):
            raise PoolTypeError(
                f"a {type(generator).__name__} does not draw for a {type(x_or_shape).__name__}",
                "Use a torch.Generator for tensors, a numpy.random.Generator for arrays",
            )
        generator = np.random.default_rng() if generator is None else generator
        # In float64 and rounded down: a half type would round some draws to 1.
        draws = generator.random(wanted)
        return _rounded_down(draws, dtype or getattr(x_or_shape, "dtype", None) or "float64")
    if isinstance(x_or_shape, Tensor):
        dtype = x_or_shape.dtype if dtype is None else dtype
        device = x_or_shape.device
        return uniform(wanted, generator, device, dtype)
    device = torch.device("cpu") if generator is None else generator.device
    return uniform(wanted, generator, device, dtype or torch.get_default_dtype())


def _rounded_down(draws: np.ndarray, dtype: Any) -> np.ndarray:
    rounded = draws.astype(dtype)
    return np.minimum(
        rounded, np.nextafter(np.ones((), rounded.dtype), np.zeros((), rounded.dtype))
    )


class _Drawing(Windowed):
    """What draws in training, from a generator or torch's own."""

    def __init__(
        self, kernel_size: Size, stride: Size | None, padding: Any, generator: Any
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        check_generator(generator)
        self.generator = generator


@listed(
    "stochastic",
    kind="window",
    formula="training: x with probability x / Σ x; else Σ x² / Σ x; of max(x, 0)",
    gradient="training: the value drawn; else (2x - y) / Σ x",
    cost="a random number and two logarithms for each value, and a maximum",
    paper="Zeiler and Fergus 2013, Stochastic pooling for regularization of deep CNNs",
)
class StochasticPool2d(_Drawing):
    """`stochastic_pool2d` as a module: it draws in training, and takes the mean otherwise.

    Args:
        kernel_size, stride, padding, generator: as for `stochastic_pool2d`.

    Raises:
        PoolError: for sizes out of range.

    >>> StochasticPool2d((1, 2)).eval()(torch.tensor([[[1.0, 3.0]]]))
    tensor([[[2.5000]]])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, generator)
        new_sliding(2, kernel_size, stride, padding, 1, False)

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.training, self.generator
        )


@listed(
    "s3",
    kind="window",
    formula="max x at each position, then random rows and columns of each cell; else their mean",
    gradient="training: the first largest of each window drawn; else 1/n to that of each window",
    cost="a maximum of stride 1, and an average",
    paper="Zhai et al. 2017, S3Pool: pooling with stochastic spatial sampling",
)
class S3Pool2d(_Drawing):
    """`s3_pool2d` as a module: it draws in training, and averages otherwise.

    Args:
        kernel_size, stride, padding, grid_size, generator: as for `s3_pool2d`.

    Raises:
        PoolError: for sizes out of range, and a grid_size that is no multiple of the stride.

    >>> S3Pool2d(2)(torch.rand(1, 8, 12, 12)).shape
    torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = "same",
        grid_size: Size | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, generator)
        self.grid_size = grid_size if grid_size is not None else self.stride
        new_sliding(2, kernel_size, 1, padding, 1, False)
        _grid(kernel_size, stride, grid_size)

    def forward(self, input: Tensor) -> Tensor:
        return s3_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.grid_size,
            self.training,
            self.generator,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid_size={self.grid_size}"


# --- stochastic pooling --------------------------------------------------------------------------


def _drawn(input: Tensor, window: Window, generator: torch.Generator | None) -> Tensor:
    check_generator(generator)
    with torch.no_grad():
        x = input.float() if input.dtype.itemsize == 2 else input
        # -log of an exponentially distributed number is a Gumbel-distributed one.
        race = torch.empty(x.shape, dtype=x.dtype, device=device_of(generator, x.device))
        race.exponential_(generator=generator).clamp_(min=torch.finfo(x.dtype).tiny)
        score = x.relu().log() - race.log().to(x.device)
        _, places = pool_with_indices(score, window, Max(), ndim=2)
    # Where nothing is positive the place is any, and what lies there counts as 0.
    drawn = input.relu().flatten(-2).gather(-1, places.flatten(-2))
    return drawn.unflatten(-1, places.shape[-2:])


def _expected(input: Tensor, window: Window) -> Tensor:
    x = (input.float() if input.dtype.itemsize == 2 else input).relu()
    # Relative to the largest of the plane, so that no square overflows.
    top = x.detach().amax((-2, -1), keepdim=True)
    top = torch.where((top > 0) & top.isfinite(), top, 1.0)
    x = x / top
    total, squares = (pool(v, window, Sum(), ndim=2) for v in (x, x * x))
    nothing = total == 0
    mean = squares / torch.where(nothing, 1.0, total) * top
    return mean.to(input.dtype)


# --- S3 ------------------------------------------------------------------------------------------


def _max_window(input: Tensor, kernel_size: Any, padding: Any) -> Window:
    return sliding(input, Max(), 2, kernel_size, 1, padding, 1, False)


def _grid(kernel_size: Any, stride: Any, grid_size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride and the grid's size for each axis."""
    stride = kernel_size if stride is None else stride
    grid_size = stride if grid_size is None else grid_size
    step, grid = (
        per_axis(name, freeze(value), 2, lambda n: n >= 1, "at least 1")
        for name, value in (("stride", stride), ("grid_size", grid_size))
    )
    if any(g % s for g, s in zip(grid, step, strict=True)):
        raise PoolValueError(
            f"grid_size {grid_size} is no multiple of the stride {stride}",
            "Each strip gives grid_size / stride rows",
        )
    return step, grid


def _places(
    size: int, grid: int, step: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Of each strip of `grid` positions one in `step`, drawn without putting back, in order."""
    order = uniform((size // grid, grid), generator, device, torch.float32).argsort(-1)
    drawn = order[:, : grid // step].sort(-1).values
    begin = torch.arange(0, size, grid, device=device)
    return (begin[:, None] + drawn).flatten()
