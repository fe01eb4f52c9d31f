"""Grey-scale morphology with a flat box: minima and maxima of stride 1 that keep the size.

What lies beyond the border is left out, so it changes nothing. A dilation sees the window of the
erosion reflected, so that the two are adjoint whatever the size, even ones included: opening an
image twice is opening it once, and ``opening(x) <= x <= closing(x)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..arrays import Array, check_array
from ..dtypes import dtype_of
from ..errors import PoolError, PoolValueError, describe, is_torch_tensor, is_traced
from ..functional import Size, max_pool2d, min_pool2d
from ..windows.base import freeze, per_axis
from .registry import listed

__all__ = [
    "Closing2d",
    "Dilation2d",
    "Erosion2d",
    "Opening2d",
    "bottom_hat2d",
    "closing2d",
    "dilation2d",
    "erosion2d",
    "morphological_gradient2d",
    "opening2d",
    "top_hat2d",
]

Pads = tuple[tuple[int, int], ...]
SOURCE = "Serra, Image analysis and mathematical morphology, 1982"


def _sizes(kernel_size: Any) -> tuple[int, ...]:
    return per_axis("kernel_size", freeze(kernel_size), 2, lambda k: k >= 1, "at least 1")


def _erode(x: Array, kernel_size: Size) -> Array:
    sizes = _sizes(kernel_size)
    pads: Pads = tuple((k // 2, (k - 1) // 2) for k in sizes)
    return min_pool2d(x, sizes, 1, pads)


def _dilate(x: Array, kernel_size: Size) -> Array:
    sizes = _sizes(kernel_size)
    pads: Pads = tuple(((k - 1) // 2, k // 2) for k in sizes)
    return max_pool2d(x, sizes, 1, pads)


def erosion2d(x: Array, kernel_size: Size = 3) -> Array:
    """The smallest value around each position: ``min x[i + d]``, d in the window.

    The window of k positions begins k // 2 before the position and ends (k - 1) // 2 behind it,
    as in ``scipy.ndimage.grey_erosion``. Of it, what lies in the image is seen.

    Args:
        x: a NumPy array or torch tensor, (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size: of the flat structuring element, a box; one integer, or one for each axis.

    Returns:
        What is like x in shape and dtype. A gradient goes to the first smallest value.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled.

    Source: Serra, "Image analysis and mathematical morphology" (1982).

    >>> import numpy as np, poolkit
    >>> poolkit.erosion2d(np.array([[[5, 1, 7, 8, 9]]]), (1, 3))
    array([[[1, 1, 1, 7, 8]]])
    """
    try:
        return _erode(x, kernel_size)
    except PoolError as error:
        raise error.during(f"{describe(x)} by erosion2d") from None


def dilation2d(x: Array, kernel_size: Size = 3) -> Array:
    """The largest value around each position: ``max x[i - d]``, d in the window of `erosion2d`.

    The window of k positions begins (k - 1) // 2 before the position and ends k // 2 behind it,
    as in ``scipy.ndimage.grey_dilation``. Of it, what lies in the image is seen.

    Args, Returns, Raises: as for `erosion2d`.

    Source: Serra, "Image analysis and mathematical morphology" (1982).

    >>> import numpy as np, poolkit
    >>> poolkit.dilation2d(np.array([[[5, 1, 7, 8, 9]]]), (1, 3))
    array([[[5, 7, 8, 9, 9]]])
    """
    try:
        return _dilate(x, kernel_size)
    except PoolError as error:
        raise error.during(f"{describe(x)} by dilation2d") from None


def opening2d(x: Array, kernel_size: Size = 3) -> Array:
    """Erosion, then dilation: what is bright and smaller than the window vanishes.

    ``opening(x) <= x``, and opening again changes nothing, to the bit.

    Args, Returns, Raises: as for `erosion2d`.

    Source: Serra, "Image analysis and mathematical morphology" (1982).

    >>> import numpy as np, poolkit
    >>> poolkit.opening2d(np.array([[[0, 9, 0, 5, 5, 5]]]), (1, 3))
    array([[[0, 0, 0, 5, 5, 5]]])
    """
    try:
        return _dilate(_erode(x, kernel_size), kernel_size)
    except PoolError as error:
        raise error.during(f"{describe(x)} by opening2d") from None


def closing2d(x: Array, kernel_size: Size = 3) -> Array:
    """Dilation, then erosion: what is dark and smaller than the window is filled.

    ``x <= closing(x)``, and closing again changes nothing, to the bit.

    Args, Returns, Raises: as for `erosion2d`.

    Source: Serra, "Image analysis and mathematical morphology" (1982).

    >>> import numpy as np, poolkit
    >>> poolkit.closing2d(np.array([[[5, 0, 5, 1, 1, 1]]]), (1, 3))
    array([[[5, 5, 5, 1, 1, 1]]])
    """
    try:
        return _erode(_dilate(x, kernel_size), kernel_size)
    except PoolError as error:
        raise error.during(f"{describe(x)} by closing2d") from None


def _apart(x: Array, kernel_size: Size, upper: Any, lower: Any) -> Array:
    """``upper(x) - lower(x)``, which is at least 0, in a dtype that holds it."""
    check_array(x)
    row = dtype_of(x)
    high, low = upper(x, kernel_size), lower(x, kernel_size)
    if row.kind == "bool":
        return high ^ low
    if row.kind == "int" and row.name != "uint8":  # 127 - -128 is no int8
        if is_torch_tensor(x):
            high, low = high.long(), low.long()
        else:
            high, low = high.astype("int64"), low.astype("int64")
    difference = high - low
    if row.name == "int64" and not is_traced() and bool((difference < 0).any()):
        raise PoolValueError(
            "a difference of int64 values does not fit 64 bits", "Convert the input to float64"
        )
    return difference


def _itself(x: Array, kernel_size: Size) -> Array:
    return x


def morphological_gradient2d(x: Array, kernel_size: Size = 3) -> Array:
    """Dilation less erosion: how far values differ around each position; large at edges.

    Args, Raises: as for `erosion2d`; also where a difference of int64 values does not fit.

    Returns:
        What is like x; of signed integers int64, of bool where the two differ.

    Source: Rivest, Soille and Beucher, "Morphological gradients" (1993).

    >>> import numpy as np, poolkit
    >>> poolkit.morphological_gradient2d(np.array([[[0, 0, 0, 5, 5]]]), (1, 3))
    array([[[0, 0, 5, 5, 0]]])
    """
    try:
        return _apart(x, kernel_size, _dilate, _erode)
    except PoolError as error:
        raise error.during(f"{describe(x)} by morphological_gradient2d") from None


def top_hat2d(x: Array, kernel_size: Size = 3) -> Array:
    """``x - opening(x)``: what is bright and smaller than the window.

    Args, Returns, Raises: as for `morphological_gradient2d`.

    Source: Meyer, "Contrast feature extraction" (1979).

    >>> import numpy as np, poolkit
    >>> poolkit.top_hat2d(np.array([[[0, 9, 0, 5, 5, 5]]]), (1, 3))
    array([[[0, 9, 0, 0, 0, 0]]])
    """
    try:
        return _apart(x, kernel_size, _itself, lambda x, k: _dilate(_erode(x, k), k))
    except PoolError as error:
        raise error.during(f"{describe(x)} by top_hat2d") from None


def bottom_hat2d(x: Array, kernel_size: Size = 3) -> Array:
    """``closing(x) - x``: what is dark and smaller than the window.

    Args, Returns, Raises: as for `morphological_gradient2d`.

    Source: Meyer, "Contrast feature extraction" (1979).

    >>> import numpy as np, poolkit
    >>> poolkit.bottom_hat2d(np.array([[[5, 0, 5, 1, 1, 1]]]), (1, 3))
    array([[[0, 5, 0, 0, 0, 0]]])
    """
    try:
        return _apart(x, kernel_size, lambda x, k: _erode(_dilate(x, k), k), _itself)
    except PoolError as error:
        raise error.during(f"{describe(x)} by bottom_hat2d") from None


class _Morphology(nn.Module):
    """A module that keeps the size of what it pools."""

    def __init__(self, kernel_size: Size = 3) -> None:
        super().__init__()
        _sizes(kernel_size)  # refuses what cannot be one
        self.kernel_size = kernel_size

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


@listed(
    "erosion",
    kind="map",
    formula="min x, of stride 1",
    gradient="the first smallest value",
    cost="as min, of stride 1",
    paper=SOURCE,
)
class Erosion2d(_Morphology):
    """`erosion2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.Erosion2d(3)(torch.rand(1, 8, 14, 14)).shape
    torch.Size([1, 8, 14, 14])
    """

    def forward(self, x: Tensor) -> Tensor:
        return erosion2d(x, self.kernel_size)


@listed(
    "dilation",
    kind="map",
    formula="max x, of stride 1",
    gradient="the first largest value",
    cost="as max, of stride 1",
    paper=SOURCE,
)
class Dilation2d(_Morphology):
    """`dilation2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.Dilation2d((1, 5))
    Dilation2d(kernel_size=(1, 5))
    """

    def forward(self, x: Tensor) -> Tensor:
        return dilation2d(x, self.kernel_size)


@listed(
    "opening",
    kind="map",
    formula="max of min x, of stride 1",
    gradient="the value that came through both",
    cost="as min and max, of stride 1",
    paper=SOURCE,
)
class Opening2d(_Morphology):
    """`opening2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.Opening2d()(torch.tensor([[[0.0, 9.0, 0.0]]]))
    tensor([[[0., 0., 0.]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return opening2d(x, self.kernel_size)


@listed(
    "closing",
    kind="map",
    formula="min of max x, of stride 1",
    gradient="the value that came through both",
    cost="as max and min, of stride 1",
    paper=SOURCE,
)
class Closing2d(_Morphology):
    """`closing2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.Closing2d()(torch.tensor([[[9.0, 0.0, 9.0]]]))
    tensor([[[9., 9., 9.]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return closing2d(x, self.kernel_size)
