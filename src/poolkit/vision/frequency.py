"""Pooling of frequencies: the low ones of the Fourier transform, or of Haar's wavelets."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import pool
from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..functional import Size
from ..reductions import Mean
from ..torch.layout import channels_behind
from ..windows import Sliding
from ..windows.base import freeze, per_axis
from .maps import batched, result_dtype, working_dtype
from .registry import listed

__all__ = [
    "SpectralPool2d",
    "WaveletPool2d",
    "haar_unpool2d",
    "spectral_pool2d",
    "wavelet_pool2d",
]


# --- Fourier --------------------------------------------------------------------------------------


def _check_scale(scale: Any) -> None:
    for entry in scale if isinstance(scale, (tuple, list)) else (scale,):
        if isinstance(entry, bool) or not isinstance(entry, (int, float)):
            raise PoolTypeError(
                f"scale must be a number or two of them, got {scale!r}", "Give one in (0, 1]"
            )
        if not 0 < entry <= 1:
            raise PoolValueError(f"scale must be above 0 and at most 1, got {scale}", "Try 0.5")
    if isinstance(scale, (tuple, list)) and len(scale) != 2:
        raise PoolValueError(
            f"scale has {len(scale)} entries for 2 spatial axes: {scale}", "Give one number, or 2"
        )


def _spectral_size(x: Tensor, output_size: Any, scale: Any) -> tuple[int, ...]:
    sizes = tuple(x.shape[-2:])
    if output_size is None:
        _check_scale(scale)
        scales = scale if isinstance(scale, (tuple, list)) else (scale, scale)
        return tuple(max(math.floor(n * s), 1) for n, s in zip(sizes, scales, strict=True))
    wanted = per_axis("output_size", freeze(output_size), 2, lambda m: m >= 1, "at least 1")
    if any(m > n for m, n in zip(wanted, sizes, strict=True)):
        raise PoolValueError(
            f"an output of {wanted} was asked for, of an input of {sizes}",
            "Frequencies can only be left out: give sizes up to the input's",
        )
    return wanted


def _cropped(x: Tensor, size: int, axis: int) -> Tensor:
    """`x` at `size` positions along an axis, without the frequencies that these cannot hold."""
    n = x.shape[axis]
    if size == n:
        return x
    spectrum = torch.fft.rfft(x, dim=axis).narrow(axis, 0, size // 2 + 1)
    if size % 2 == 0:
        # The highest frequency has the same samples as its mirror image, and they add up.
        low, high = spectrum.narrow(axis, 0, size // 2), spectrum.narrow(axis, size // 2, 1)
        spectrum = torch.cat([low, 2 * high], dim=axis)
    return torch.fft.irfft(spectrum, n=size, dim=axis) * (size / n)


def spectral_pool2d(
    x: Tensor, output_size: Size | None = None, *, scale: float | tuple[float, float] = 0.5
) -> Tensor:
    """The image at fewer positions, without the frequencies that these cannot hold.

    The discrete Fourier transform is cropped to its low frequencies and transformed back, scaled
    by the ratio of the sizes: the mean is kept, and of an image that has low frequencies only the
    result is that image, sampled. The same size gives x itself. Of an even number of outputs the
    highest frequency is its own mirror image; both halves are kept, so the result is real.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        output_size: (h, w), or one integer for both; at most the input's.
        scale: in place of it, in (0, 1], for both axes or each; sizes are rounded down, to no
            less than 1.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype, or float32 for integers.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled, and for
            an output that is larger than the input.

    Source: Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks"
    (2015).

    >>> import math, torch, poolkit
    >>> wave = torch.cos(2 * math.pi * torch.arange(8) / 8).expand(1, 8, 8)
    >>> torch.allclose(poolkit.spectral_pool2d(wave, 4), wave[:, ::2, ::2], atol=1e-6)
    True
    """
    try:
        maps, added = batched(x)
        size = _spectral_size(maps, output_size, scale)
        out = maps.to(working_dtype(maps))
        if 0 in maps.shape[:2]:  # of which there is no transform
            out = out[..., : size[0], : size[1]]
        else:
            # Along the rows last, which are then fewer and lie in one piece.
            out = _cropped(_cropped(out, size[0], 2), size[1], 3)
        out = out.to(result_dtype(maps))
        if channels_behind(maps, 2):
            out = out.contiguous(memory_format=torch.channels_last)
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by spectral_pool2d") from None


@listed(
    "spectral",
    kind="map",
    formula="F⁻¹ of the low frequencies of F x, F the discrete Fourier transform",
    gradient="to all values, by the same low-pass filter",
    cost="a Fourier transform along each axis, and back",
    paper="Rippel et al. 2015, Spectral representations for convolutional neural networks",
)
class SpectralPool2d(nn.Module):
    """`spectral_pool2d` as a module; by default to half the size.

    >>> import torch, poolkit
    >>> poolkit.nn.SpectralPool2d(5)(torch.rand(1, 8, 14, 14)).shape
    torch.Size([1, 8, 5, 5])
    >>> poolkit.nn.SpectralPool2d(scale=0.75)(torch.rand(1, 8, 16, 12)).shape
    torch.Size([1, 8, 12, 9])
    """

    def __init__(
        self, output_size: Size | None = None, *, scale: float | tuple[float, float] = 0.5
    ) -> None:
        super().__init__()
        if output_size is None:
            _check_scale(scale)
        else:
            per_axis("output_size", freeze(output_size), 2, lambda m: m >= 1, "at least 1")
        self.output_size = output_size
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return spectral_pool2d(x, self.output_size, scale=self.scale)

    def extra_repr(self) -> str:
        if self.output_size is None:
            return f"scale={self.scale}"
        return f"output_size={self.output_size}"


# --- Haar -----------------------------------------------------------------------------------------

Details = list[tuple[Tensor, Tensor, Tensor]]
Normalize = Literal["orthonormal", "mean"]


def _check_wavelet(levels: int, normalize: str) -> None:
    checked_size("levels", levels)
    if normalize not in ("orthonormal", "mean"):
        raise PoolValueError(
            f"there is no normalisation {normalize!r}", "Write 'orthonormal' or 'mean'"
        )


def _low(x: Tensor, gain: float) -> Tensor:
    """The low band: a mean of 2x2, times a power of two, which is exact."""
    # A last row that is seen alone has the mean that it would have if it were there twice.
    padding = tuple((0, n % 2) for n in x.shape[-2:])
    mean: Tensor = pool(x, Sliding(2, 2, padding), Mean(count_include_pad=False))
    return mean * gain if gain != 1 else mean


def _twice(x: Tensor) -> Tensor:
    """`x` with the last row and column repeated where their number is odd."""
    for axis in (-2, -1):
        if x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
    return x


def _corners(x: Tensor) -> tuple[Tensor, ...]:
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def _high(x: Tensor, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c, d = _corners(_twice(x))
    by = gain / 4
    rows, columns = (a - c, b - d), (a + c, b + d)
    horizontal, vertical = columns[0] - columns[1], rows[0] + rows[1]
    return horizontal * by, vertical * by, (rows[0] - rows[1]) * by


def wavelet_pool2d(
    x: Tensor,
    levels: int = 1,
    *,
    normalize: Normalize = "orthonormal",
    return_details: bool = False,
) -> Any:
    """The low band of Haar's wavelets: for each 2x2 ``(a + b + c + d) / 2``, level by level.

    Pooling by two levels of which the second is transformed back, as it was published, is the low
    band of one.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex. Where a size is odd, the last row
            or column is taken twice.
        levels: how often; each halves both sizes, rounded up.
        normalize: "orthonormal" (the energy of all bands is that of x), or "mean": the low band
            is the 2x2 mean, and the others are of the same scale.
        return_details: whether to return the high bands too.

    Returns:
        The low band, of x's dtype, or float32 for integers. With the details, (low, details): for
        each level, the finest first, the three bands ``(a - b + c - d) / 2`` (left less right),
        ``(a + b - c - d) / 2`` (upper less lower) and ``(a - b - c + d) / 2``; `haar_unpool2d`
        puts them together again.

    Raises:
        PoolValueError, PoolTypeError: for shapes and dtypes that cannot be pooled, fewer than one
            level, or another normalisation.

    Source: Williams and Li, "Wavelet pooling for convolutional neural networks" (2018); Haar,
    "Zur Theorie der orthogonalen Funktionensysteme" (1910).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    >>> low, details = poolkit.wavelet_pool2d(x, return_details=True)
    >>> low.item(), [band.item() for band in details[0]]
    (6.0, [-2.0, -3.0, 1.0])
    >>> poolkit.haar_unpool2d(low, details)
    tensor([[[1., 2.],
             [3., 6.]]])
    """
    try:
        maps, added = batched(x)
        _check_wavelet(levels, normalize)
        result, gain = result_dtype(maps), 2.0 if normalize == "orthonormal" else 1.0
        low = maps.to(working_dtype(maps)) if return_details or gain != 1 else maps
        if levels > 1:  # rounded once, not once for each level
            low = maps.to(working_dtype(maps))
        details: Details = []
        for _ in range(levels):
            if return_details:
                bands = [band.to(result) for band in _high(low, gain)]
                if added:
                    bands = [band[0] for band in bands]
                details.append((bands[0], bands[1], bands[2]))
            low = _low(low, gain)
        low = low.to(result)
        low = low[0] if added else low
        return (low, details) if return_details else low
    except PoolError as error:
        raise error.during(f"{describe(x)} by wavelet_pool2d") from None


def haar_unpool2d(
    low: Tensor,
    details: Details,
    output_size: tuple[int, int] | None = None,
    *,
    normalize: Normalize = "orthonormal",
) -> Tensor:
    """The image that `wavelet_pool2d` took apart, up to rounding.

    Args:
        low: the low band of the last level, (N, C, h, w) or (C, h, w), floating.
        details: the high bands of each level, the finest first, as `wavelet_pool2d` returns them.
        output_size: (H, W) of the image where one of them was odd; None is twice the finest
            bands' size.
        normalize: as they were made with.

    Raises:
        PoolValueError, PoolTypeError: for bands that do not fit each other or the output.

    >>> import torch, poolkit
    >>> x = torch.arange(15.0).reshape(1, 3, 5)
    >>> low, details = poolkit.wavelet_pool2d(x, 2, return_details=True)
    >>> torch.equal(poolkit.haar_unpool2d(low, details, (3, 5)), x)
    True
    """
    try:
        batched(low)
        _check_wavelet(1, normalize)
        if not low.dtype.is_floating_point:
            raise PoolTypeError(
                f"bands are of a floating dtype, got {describe(low)}", "Use low.float()"
            )
        result, working = low.dtype, working_dtype(low)
        by = 1 / 2 if normalize == "orthonormal" else 1.0
        sizes = [tuple(bands[0].shape[-2:]) for bands in details]
        if output_size is None:
            output_size = tuple(2 * n for n in (sizes or [low.shape[-2:]])[0])  # type: ignore[assignment]
        assert output_size is not None
        low = low.to(working)
        # Each level has the size of the next finer level's bands.
        for bands, size in zip(details[::-1], [output_size, *sizes][-2::-1], strict=True):
            if any(band.shape != low.shape for band in bands) or len(bands) != 3:
                raise PoolValueError(
                    f"a low band of {tuple(low.shape)} does not go with bands of "
                    f"{', '.join(str(tuple(band.shape)) for band in bands)}",
                    "Give three bands of its shape for each level, the finest level first",
                )
            low = _joined(low, [band.to(working) for band in bands], size, by)
        return low.to(result)
    except PoolError as error:
        raise error.during(f"{describe(low)} by haar_unpool2d") from None


def _joined(low: Tensor, bands: list[Tensor], size: tuple[int, ...], by: float) -> Tensor:
    horizontal, vertical, diagonal = bands
    doubled = tuple(2 * n for n in low.shape[-2:])
    if any(not n - 1 <= m <= n for m, n in zip(size, doubled, strict=True)):
        raise PoolValueError(
            f"bands of {tuple(low.shape[-2:])} make an image of {doubled}, or of one less, "
            f"not of {tuple(size)}",
            "Give the size of the image that was pooled",
        )
    upper, lower = low + vertical, low - vertical
    right, other = horizontal + diagonal, horizontal - diagonal
    rows = [
        torch.stack([upper + right, upper - right], dim=-1).flatten(-2),
        torch.stack([lower + other, lower - other], dim=-1).flatten(-2),
    ]
    image = torch.stack(rows, dim=-2).flatten(-3, -2) * by
    return image[..., : size[0], : size[1]]


@listed(
    "wavelet",
    kind="map",
    formula="(a + b + c + d) / 2 of each 2x2, or their mean; level by level",
    gradient="1/2, or 1/4, to each value",
    cost="as avg",
    paper="Williams and Li, Wavelet pooling for convolutional neural networks, 2018",
)
class WaveletPool2d(nn.Module):
    """`wavelet_pool2d` as a module, without the details.

    >>> import torch, poolkit
    >>> poolkit.nn.WaveletPool2d(levels=2)(torch.rand(1, 8, 14, 14)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, levels: int = 1, *, normalize: Normalize = "orthonormal") -> None:
        super().__init__()
        _check_wavelet(levels, normalize)
        self.levels = levels
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = wavelet_pool2d(x, self.levels, normalize=self.normalize)
        return pooled

    def extra_repr(self) -> str:
        return f"levels={self.levels}, normalize={self.normalize!r}"
