"""Pooling that small shifts of the image do not upset: blurs, and the choice of a phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ..errors import PoolError, PoolTypeError, PoolValueError, describe, is_traced
from ..functional import Size, max_pool2d, new_sliding
from ..sequences.attentive import in_full_precision
from ..torch.autograd import apply
from ..torch.layout import channels_behind
from ..windows.base import freeze, per_axis
from .maps import batched, result_dtype, working_dtype
from .placed import Windowed
from .registry import listed

__all__ = [
    "APSPool2d",
    "BlurPool1d",
    "BlurPool2d",
    "MaxBlurPool2d",
    "aps_pool2d",
    "blur_pool1d",
    "blur_pool2d",
    "max_blur_pool2d",
]

PaddingMode = Literal["reflect", "replicate", "zeros", "circular"]
MODES = ("reflect", "replicate", "zeros", "circular")
Pads = tuple[tuple[int, int], ...]


# --- blurs ----------------------------------------------------------------------------------------


class _Filter(torch.autograd.Function):
    """A depthwise convolution with one fixed filter, to train through which the filter alone is
    saved: autograd's own keeps its input, here a padded copy."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, None, stride, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(weight)
        ctx.spatial = x.shape[-2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        # Rows behind the last window, which no output sees.
        rest = tuple(
            n - ((m - 1) * s + k)
            for n, m, s, k in zip(
                ctx.spatial, grad.shape[-2:], ctx.stride, weight.shape[-2:], strict=True
            )
        )
        spread = F.conv_transpose2d(grad, weight, None, ctx.stride, 0, rest, groups=weight.shape[0])
        return spread, None, None


def _binomial(sizes: Sequence[int], like: Tensor) -> Tensor:
    """The outer product of two rows of Pascal's triangle, of sum 1: exact in every dtype."""
    rows = [[math.comb(k - 1, t) / 2 ** (k - 1) for t in range(k)] for k in sizes]
    weights = [[a * b for b in rows[1]] for a in rows[0]]
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def _extended(x: Tensor, pads: Pads, mode: str) -> Tensor:
    """`x` continued beyond its border."""
    for axis, (size, pad) in enumerate(zip(x.shape[-2:], pads, strict=True)):
        most = {"reflect": size - 1, "circular": size}.get(mode, math.inf)
        if max(pad) > most:
            raise PoolValueError(
                f"an axis of {size} cannot be continued by {max(pad)} as {mode!r}",
                f"Axis {axis} needs {max(pad) + int(mode == 'reflect')} positions; use "
                "padding_mode='replicate', or a smaller filter",
            )
    sides = (*pads[1], *pads[0])
    if not any(sides):
        return x
    if mode == "zeros" or 0 in x.shape[:2]:  # other modes refuse to continue no image
        return F.pad(x, sides)
    return F.pad(x, sides, mode=mode)


def _blur(x: Tensor, sizes: Sequence[int], stride: Sequence[int], pads: Pads, mode: str) -> Tensor:
    if x.shape[1] == 0:
        raise PoolValueError("the input has no channels", "Only the batch may be empty")
    working, result = working_dtype(x), result_dtype(x)
    if all(k == 1 for k in sizes):
        return _extended(x.to(result), pads, mode)[..., :: stride[0], :: stride[1]]
    channels = x.shape[1]
    padded = _extended(x.to(working), pads, mode)
    room = [n - k for n, k in zip(padded.shape[-2:], sizes, strict=True)]
    if min(room) < 0:
        raise PoolValueError(
            f"a filter of {tuple(sizes)} does not fit an input of {tuple(x.shape[-2:])} with "
            f"padding {pads}",
            "Use a smaller filter, or padding='same'",
        )
    weight = _binomial(sizes, padded).expand(channels, 1, -1, -1)
    # Autocast would round to a half type in between.
    with in_full_precision(x):
        if forward_ad._current_level >= 0:
            out = F.conv2d(padded, weight, None, tuple(stride), groups=channels)
        else:
            out = apply(_Filter, padded, weight, tuple(stride))
    out = out.to(result)
    return out.contiguous(memory_format=torch.channels_last) if channels_behind(x, 2) else out


def _check_mode(mode: Any) -> None:
    if mode not in MODES:
        raise PoolValueError(
            f"there is no padding mode {mode!r}", f"Write one of {', '.join(map(repr, MODES))}"
        )


def _geometry(
    kernel_size: Any, stride: Any, padding: Any, ndim: int
) -> tuple[tuple[int, ...], tuple[int, ...], Pads]:
    """Sizes, strides and (before, after) for each axis."""
    sizes = per_axis("kernel_size", freeze(kernel_size), ndim, lambda k: k >= 1, "at least 1")
    if max(sizes) > 7:
        raise PoolValueError(
            f"a binomial filter has at most 7 positions here, got {max(sizes)}",
            "Blur twice: filters of m and n positions make one of m + n - 1",
        )
    strides = per_axis("stride", freeze(stride), ndim, lambda s: s >= 1, "at least 1")
    if isinstance(padding, str):
        if padding == "same":
            return sizes, strides, tuple(((k - 1) // 2, k // 2) for k in sizes)
        if padding == "valid":
            return sizes, strides, ((0, 0),) * ndim
        raise PoolValueError(
            f"padding must be 'same', 'valid' or integers, got {padding!r}", "Write one of them"
        )
    padding = freeze(padding)
    entries = padding if isinstance(padding, tuple) else (padding,) * ndim
    if len(entries) != ndim:
        raise PoolValueError(
            f"padding has {len(entries)} entries for {ndim} spatial axes: {padding}",
            "Give one integer, one for each axis, or one (before, after) pair for each",
        )
    return (
        sizes,
        strides,
        tuple(per_axis("padding", entry, 2, lambda p: p >= 0, "at least 0") for entry in entries),
    )


def blur_pool2d(
    x: Tensor,
    kernel_size: Size = 3,
    stride: Size = 2,
    padding: Any = "same",
    *,
    padding_mode: PaddingMode = "reflect",
) -> Tensor:
    """A binomial blur, of which every `stride`-th value is kept.

    The filter of k positions is a row of Pascal's triangle, ``comb(k - 1, t) / 2^(k - 1)``, along
    each axis: [1], [1, 1] / 2, [1, 2, 1] / 4, ... A size of 1 is a stride alone, a size of 2 the
    mean of two.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size: 1 to 7, for both axes or each.
        stride: likewise.
        padding: "same": (k - 1) // 2 before and k // 2 behind, so that there are
            ``ceil(size / stride)`` outputs; "valid": none; or integers, as for `poolkit.Sliding`.
        padding_mode: what lies there: "reflect" (the border not repeated), "replicate" (the
            border), "zeros", or "circular".

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype, or float32 for integers. Half types are added up
        in float32.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled, another
            mode, or an axis that is too short to be reflected.

    Source: Zhang, "Making convolutional networks shift-invariant again" (2019).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[0, 0, 4, 0, 0, 8]]])
    >>> poolkit.blur_pool2d(x, (1, 3), (1, 2))  # (0 + 0 + 0) / 4, (0 + 8 + 0) / 4, (0 + 0 + 8) / 4
    tensor([[[0., 2., 2.]]])
    """
    # One 3x3 convolution of stride 2 takes 0.4 ms for (4, 64, 56, 56), two of one axis 0.8, two
    # means of 2x2 1.3 (and 5x5: 0.5, 1.0 and 3.4), one thread.
    try:
        maps, added = batched(x)
        _check_mode(padding_mode)
        out = _blur(maps, *_geometry(kernel_size, stride, padding, 2), padding_mode)
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by blur_pool2d") from None


def blur_pool1d(
    x: Tensor,
    kernel_size: Size = 3,
    stride: Size = 2,
    padding: Any = "same",
    *,
    padding_mode: PaddingMode = "reflect",
) -> Tensor:
    """`blur_pool2d` over one axis: (N, C, L) or (C, L).

    >>> import torch, poolkit
    >>> poolkit.blur_pool1d(torch.tensor([[0.0, 0.0, 4.0, 0.0, 0.0, 8.0]]))
    tensor([[0., 2., 2.]])
    """
    try:
        if not isinstance(x, Tensor) or not 2 <= x.ndim <= 3:
            raise PoolValueError(
                "an input of rank 2 (channels first) or 3 (a batch first) was expected",
                "Add or remove axes, or use blur_pool2d",
            )
        maps, _ = batched(x[..., None, :] if x.ndim == 3 else x[None, :, None])
        _check_mode(padding_mode)
        (size,), (step,), (pad,) = _geometry(kernel_size, stride, padding, 1)
        out = _blur(maps, (1, size), (1, step), ((0, 0), pad), padding_mode)[..., 0, :]
        return out[0] if x.ndim == 2 else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by blur_pool1d") from None


def max_blur_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    *,
    blur_size: Size = 3,
    padding_mode: PaddingMode = "reflect",
) -> Tensor:
    """A max pooling that is blurred before values are dropped: its maxima of stride 1, then
    `blur_pool2d`.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size, padding: of the maxima, as for `poolkit.max_pool2d`.
        stride: of the blur; None is `kernel_size`. The output has the size of that of
            ``max_pool2d(x, kernel_size, stride, padding)``.
        blur_size: 1 to 7; 1 is the max pooling itself.
        padding_mode: as for `blur_pool2d`.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype, or float32 for integers.

    Raises:
        PoolValueError, PoolTypeError: as `blur_pool2d` and `poolkit.max_pool2d`.

    Source: Zhang, "Making convolutional networks shift-invariant again" (2019).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[0.0, 0.0, 4.0, 0.0, 0.0]]])
    >>> # Maxima 0 4 4 0, blurred (4 + 0 + 4) / 4 and (4 + 8 + 0) / 4.
    >>> poolkit.max_blur_pool2d(x, (1, 2), blur_size=(1, 3))
    tensor([[[2., 3.]]])
    """
    try:
        maps, added = batched(x)
        _check_mode(padding_mode)
        step = kernel_size if stride is None else stride
        geometry = _geometry(blur_size, step, "same", 2)
        out = _blur(max_pool2d(maps, kernel_size, 1, padding), *geometry, padding_mode)
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by max_blur_pool2d") from None


class _Blur(Windowed):
    ndim: ClassVar[int]

    def __init__(
        self,
        kernel_size: Size = 3,
        stride: Size = 2,
        padding: Any = "same",
        *,
        padding_mode: PaddingMode = "reflect",
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        _check_mode(padding_mode)
        _geometry(kernel_size, stride, padding, self.ndim)
        self.padding_mode = padding_mode

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, padding_mode={self.padding_mode!r}"


class BlurPool1d(_Blur):
    """`blur_pool1d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.BlurPool1d(5)(torch.rand(1, 8, 15)).shape
    torch.Size([1, 8, 8])
    """

    ndim = 1

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool1d(
            x, self.kernel_size, self.stride, self.padding, padding_mode=self.padding_mode
        )


@listed(
    "blur",
    kind="map",
    formula="Σ b x, b binomial: [1, 2, 1] / 4 along each axis",
    gradient="b to each value",
    cost="a depthwise convolution",
    paper="Zhang, Making convolutional networks shift-invariant again, 2019",
)
class BlurPool2d(_Blur):
    """`blur_pool2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.BlurPool2d()(torch.rand(1, 8, 15, 14)).shape
    torch.Size([1, 8, 8, 7])
    """

    ndim = 2

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool2d(
            x, self.kernel_size, self.stride, self.padding, padding_mode=self.padding_mode
        )


@listed(
    "max_blur",
    kind="window",
    formula="Σ b m, m the maxima of stride 1, b binomial",
    gradient="b to each maximum, and there to the first largest value",
    cost="a max of stride 1, and a depthwise convolution",
    paper="Zhang, Making convolutional networks shift-invariant again, 2019",
)
class MaxBlurPool2d(Windowed):
    """`max_blur_pool2d` as a module, in the place of a max pooling of the same arguments.

    >>> import torch, poolkit
    >>> poolkit.nn.MaxBlurPool2d(3, stride=2, padding=1)(torch.rand(1, 8, 15, 14)).shape
    torch.Size([1, 8, 8, 7])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        blur_size: Size = 3,
        padding_mode: PaddingMode = "reflect",
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        _check_mode(padding_mode)
        new_sliding(2, kernel_size, 1, padding, 1, False)  # refuses what cannot be one
        _geometry(blur_size, self.stride, "same", 2)
        self.blur_size = blur_size
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        return max_blur_pool2d(
            x, self.kernel_size, self.stride, self.padding, blur_size=self.blur_size,
            padding_mode=self.padding_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, blur_size={self.blur_size}, "
            f"padding_mode={self.padding_mode!r}"
        )


# --- the choice of a phase ------------------------------------------------------------------------

Front = Literal["max", "blur"]


def _check_aps(norm: Any, front: Any) -> None:
    if isinstance(norm, bool) or not isinstance(norm, (int, float)):
        raise PoolTypeError(f"norm must be a number, got {norm!r}", "Give 2, 1 or math.inf")
    if not norm > 0:
        raise PoolValueError(f"norm must be above 0, got {norm}", "Give 2, 1 or math.inf")
    if front not in ("max", "blur"):
        raise PoolValueError(f"there is no filter {front!r}", "Write 'max' or 'blur'")


def _phases(x: Tensor, strides: Sequence[int]) -> Tensor:
    """(N, C, h, rows of a phase, w, columns of a phase), a view where the strides divide x."""
    pads: Pads = tuple((0, -n % s) for n, s in zip(x.shape[-2:], strides, strict=True))
    if any(pad for _, pad in pads):
        # By rows that begin it again, more than once where it is shorter than the stride.
        for axis, (_, pad) in zip((2, 3), pads, strict=True):
            places = torch.arange(x.shape[axis] + pad, device=x.device) % x.shape[axis]
            x = x.index_select(axis, places)
    return x.unflatten(3, (-1, strides[1])).unflatten(2, (-1, strides[0]))


def _largest_phase(parts: Tensor, norm: float) -> Tensor:
    """The index of the phase of largest norm for each image, the first of equal ones."""
    # In float64: the same values in another order, as a shift leaves them, must not differ in
    # their sum by what another phase is larger by.
    norms = [
        torch.linalg.vector_norm(parts[:, :, :, i, :, j].double(), norm, dim=(1, 2, 3))
        for i in range(parts.shape[3])
        for j in range(parts.shape[5])
    ]
    return torch.stack(norms, dim=1).argmax(1)


def aps_pool2d(
    x: Tensor,
    kernel_size: Size = 1,
    stride: Size = 2,
    *,
    front: Front = "max",
    norm: float = 2.0,
    phase: Tensor | None = None,
    return_phase: bool = False,
) -> Any:
    """A stride that begins where the most is: of the ``stride * stride`` ways to take every
    `stride`-th row and column, for each image the one of largest norm over all channels.

    A circular shift of x shifts the result, and changes nothing else, where the strides divide
    the height and width. Of equal norms the first in row-major order is taken. A gradient goes to
    the values that are taken.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex. A size that the stride does not
            divide is continued from its begin.
        kernel_size: of a filter of stride 1 in front, whose border is circular; 1 is none.
        stride: one integer, or one for each axis.
        front: that filter: "max", or "blur" (see `blur_pool2d`).
        norm: the p of the norm, above 0; ``math.inf`` is the largest magnitude.
        phase: one index for each image, in place of the norms: what `return_phase` gave, so that
            a second branch of a network is taken at the same positions.
        return_phase: whether to return the indices too: ``row * stride + column`` (int64), (N,),
            or () for an x without N.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype (float32 for integers behind a blur), or that and
        the phase.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled, and a
            phase that is none of this stride.

    Source: Chaman and Dokmanić, "Truly shift-invariant convolutional neural networks" (2021).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[1.0, 5.0, 2.0, 6.0]]])
    >>> poolkit.aps_pool2d(x, stride=(1, 2), return_phase=True)
    (tensor([[[5., 6.]]]), tensor(1))
    """
    try:
        maps, added = batched(x)
        _check_aps(norm, front)
        sizes = per_axis("kernel_size", freeze(kernel_size), 2, lambda k: k >= 1, "at least 1")
        strides = per_axis("stride", freeze(stride), 2, lambda s: s >= 1, "at least 1")
        pads: Pads = tuple(((k - 1) // 2, k // 2) for k in sizes)
        behind = channels_behind(maps, 2)
        if front == "blur":
            _geometry(sizes, 1, 0, 2)
            maps = _blur(maps, sizes, (1, 1), pads, "circular")
        elif any(k > 1 for k in sizes):
            maps = max_pool2d(_extended(maps, pads, "circular"), sizes, 1)
        parts = _phases(maps, strides)
        if phase is None:
            with torch.no_grad():
                phase = _largest_phase(parts, float(norm))
        else:
            phase = _checked_phase(phase, maps.shape[0], strides, added)
        images = torch.arange(maps.shape[0], device=maps.device)
        out = parts[images, :, :, phase // strides[1], :, phase % strides[1]]
        if behind:
            out = out.contiguous(memory_format=torch.channels_last)
        out, phase = (out[0], phase[0]) if added else (out, phase)
        return (out, phase) if return_phase else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by aps_pool2d") from None


def _checked_phase(phase: Any, images: int, strides: Sequence[int], added: bool) -> Tensor:
    if not isinstance(phase, Tensor) or phase.dtype is not torch.int64:
        raise PoolTypeError(
            f"phase must be an int64 tensor, got {describe(phase)}",
            "Pass on what return_phase=True gave",
        )
    phase = phase[None] if added and phase.ndim == 0 else phase
    if phase.shape != (images,):
        raise PoolValueError(
            f"there must be one phase for each of {images} images, got {tuple(phase.shape)}",
            "Pass on what return_phase=True gave",
        )
    most = math.prod(strides)
    if not is_traced() and images and not 0 <= int(phase.min()) <= int(phase.max()) < most:
        raise PoolValueError(
            f"a stride of {tuple(strides)} has the phases 0 to {most - 1}, got "
            f"{phase.unique().tolist()}",
            "Pass on what return_phase=True gave, with the same stride",
        )
    return phase


@listed(
    "aps",
    kind="map",
    formula="x[i::s, j::s], (i, j) of largest norm over all channels",
    gradient="1 to each value that is taken",
    cost="a norm of all values",
    paper="Chaman and Dokmanić, Truly shift-invariant convolutional neural networks, 2021",
)
class APSPool2d(nn.Module):
    """`aps_pool2d` as a module.

    >>> import torch, poolkit
    >>> pool = poolkit.nn.APSPool2d(3, front="blur", return_phase=True)
    >>> x = torch.rand(2, 8, 14, 14)
    >>> y, phase = pool(x)
    >>> shortcut, _ = pool(x, phase)  # at the same positions
    >>> torch.equal(y, shortcut)
    True
    """

    def __init__(
        self,
        kernel_size: Size = 1,
        stride: Size = 2,
        *,
        front: Front = "max",
        norm: float = 2.0,
        return_phase: bool = False,
    ) -> None:
        super().__init__()
        _check_aps(norm, front)
        new_sliding(2, kernel_size, stride, 0, 1, False)  # refuses what cannot be one
        if front == "blur":
            _geometry(kernel_size, stride, 0, 2)
        self.kernel_size = kernel_size
        self.stride = stride
        self.front = front
        self.norm = norm
        self.return_phase = return_phase

    def forward(self, x: Tensor, phase: Tensor | None = None) -> Any:
        return aps_pool2d(
            x, self.kernel_size, self.stride, front=self.front, norm=self.norm, phase=phase,
            return_phase=self.return_phase,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, front={self.front!r}, "
            f"norm={self.norm}"
        )
