"""Second-order pooling: what the products of two channels are on average, not the channels.

The outer products of the descriptors at all positions are one product of matrices, so nothing is
kept for each position but the input. Everything is computed in float32, or float64, without
autocast, and rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arrays import arrays_of
from ..errors import (
    PoolError,
    PoolTypeError,
    PoolValueError,
    checked_size,
    describe,
)
from ..functional import global_avg_pool2d
from ..reductions.base import root
from ..sequences.attentive import in_full_precision, widened
from .maps import checked_maps
from .registry import listed

__all__ = [
    "BilinearPool2d",
    "CompactBilinearPool2d",
    "CovariancePool2d",
    "bilinear_pool2d",
    "compact_bilinear_pool2d",
    "covariance_pool2d",
]

METHODS = ("tensor_sketch", "random_maclaurin")
# In float32 an eigenvalue that rounding made negative grows 2.25-fold in each iteration.
MOST_ITERATIONS = 15


def bilinear_pool2d(
    input: Tensor,
    other: Tensor | None = None,
    *,
    signed_sqrt: bool = True,
    normalize: bool = True,
    triangle: bool = False,
) -> Tensor:
    """The outer product of two descriptors, on average over all positions: ``B = Σ x yᵀ / (H W)``.

    Args:
        input: (N, C, H, W) or (C, H, W), floating.
        other: the second map, with the same positions and any number D of channels; by default the
            input itself.
        signed_sqrt: whether each entry becomes ``sign(b) sqrt(|b|)``. Its gradient at 0 is taken
            as 0.
        normalize: whether the result is then divided by its Euclidean norm. Zeros stay zeros.
        triangle: whether only the upper triangle of the symmetric matrix is returned, the entries
            beside its diagonal times ``sqrt(2)``: inner products stay those of the whole matrix.

    Returns:
        (N, C * D), or (N, C * (C + 1) / 2) for `triangle`; without N for an input without.

    Raises:
        PoolValueError, PoolTypeError: for shapes and dtypes that do not fit, maps without
            positions, and the triangle of a matrix that is not symmetric.

    Source: Tsung-Yu Lin, Aruni RoyChowdhury, Subhransu Maji, "Bilinear CNN Models for Fine-grained
    Visual Recognition", 2015.

    >>> x = torch.tensor([[[1.0, 3.0]], [[0.0, 2.0]]])  # two channels at two positions
    >>> bilinear_pool2d(x, signed_sqrt=False, normalize=False)
    tensor([5., 3., 3., 2.])
    """
    try:
        x = checked_maps(input)
        y = x if other is None else checked_maps(other)
        if x.shape[:-3] != y.shape[:-3] or x.shape[-2:] != y.shape[-2:]:
            raise PoolValueError(
                f"the maps have different positions: {tuple(x.shape)} and {tuple(y.shape)}",
                "Resize one: only the number of channels may differ",
            )
        if triangle and other is not None:
            raise PoolValueError("the product of two maps is not symmetric", "Drop triangle=True")
        with in_full_precision(x):
            matrix = _mean_product(_descriptors(x), _descriptors(y))
        out = matrix.flatten(-2)
        if signed_sqrt:
            out = signed_root(out)
        if normalize:
            out = unit(out, -1)
        if triangle:
            out = _upper(out, math.sqrt(2))
        return out.to(input.dtype)
    except PoolError as error:
        raise error.during(f"{describe(input)} by bilinear_pool2d") from None


def compact_bilinear_pool2d(
    input: Tensor,
    dimension: int = 8192,
    *,
    method: str = "tensor_sketch",
    seed: int | torch.Generator = 0,
    signed_sqrt: bool = True,
    normalize: bool = True,
) -> Tensor:
    """`bilinear_pool2d` in few dimensions: a random projection that keeps inner products.

    Two descriptors x and y become φ(x) and φ(y) with ``E <φ(x), φ(y)> = <x, y>²``, which is the
    inner product of their outer products; the result is the mean of φ over all positions.

    Args:
        input: (N, C, H, W) or (C, H, W), floating.
        dimension: of the result.
        method: "tensor_sketch" adds each channel, with a sign, to one of the `dimension` entries,
            twice, and convolves the two: ``φ(x) = IFFT(FFT(Ψ₁ x) · FFT(Ψ₂ x))``.
            "random_maclaurin" multiplies two projections by random signs:
            ``φ(x) = (W₁ x) · (W₂ x) / sqrt(dimension)``.
        seed: of the random hashes: a number, which gives the same ones each time, or a generator.
        signed_sqrt, normalize: as for `bilinear_pool2d`.

    Returns:
        (N, dimension); without N for an input without.

    Raises:
        PoolValueError, PoolTypeError: for shapes, dtypes and methods that do not exist.

    Source: Yang Gao, Oscar Beijbom, Ning Zhang, Trevor Darrell, "Compact Bilinear Pooling", 2016.

    >>> compact_bilinear_pool2d(torch.ones(2, 64, 7, 7), 512).shape
    torch.Size([2, 512])
    """
    try:
        x = checked_maps(input)
        buckets, signs = _hashes(x.shape[-3], dimension, method, seed)
        buckets, signs = buckets.to(x.device), signs.to(x.device)
        return _compact(x, dimension, buckets, signs, signed_sqrt, normalize)
    except PoolError as error:
        raise error.during(f"{describe(input)} by compact_bilinear_pool2d") from None


def covariance_pool2d(input: Tensor, iterations: int = 5, *, triangle: bool = True) -> Tensor:
    """The square root of the covariance matrix of the channels over all positions.

    ``Σ = mean of (x - μ)(x - μ)ᵀ`` is divided by its trace, so that the coupled iteration of
    Newton and Schulz converges: from ``Y = Σ / tr Σ`` and ``Z = 1`` on, ``T = (3 - Z Y) / 2``,
    ``Y ← Y T``, ``Z ← T Z``; the result is ``sqrt(tr Σ) Y``. Eigenvalues that are a small part of
    the trace come out too small after few iterations; the paper takes 5, and so do networks that
    are trained with it. Maps that are the same at all positions give zeros, but
    for rounding.

    Args:
        input: (N, C, H, W) or (C, H, W), floating.
        iterations: 1 to 15.
        triangle: whether the upper triangle is returned, row by row, or the whole matrix.

    Returns:
        (N, C * (C + 1) / 2), or (N, C * C); without N for an input without.

    Raises:
        PoolValueError, PoolTypeError: for shapes and dtypes that do not fit, maps without
            positions, and numbers of iterations out of range.

    Source: Peihua Li, Jiangtao Xie, Qilong Wang, Zilin Gao, "Towards Faster Training of Global
    Covariance Pooling Networks by Iterative Matrix Square Root Normalization", 2018.

    >>> x = torch.tensor([[[3.0, -3.0, 3.0, -3.0]], [[4.0, 4.0, -4.0, -4.0]]])
    >>> covariance_pool2d(x, iterations=10).round(decimals=4)  # the variances are 9 and 16
    tensor([3., 0., 4.])
    """
    try:
        x = checked_maps(input)
        _check_iterations(iterations)
        with in_full_precision(x):
            wide = widened(x)
            centred = _descriptors(wide - global_avg_pool2d(wide))
            matrix = _square_root(_mean_product(centred, centred), iterations)
        out = matrix.flatten(-2)
        return (_upper(out, 1.0) if triangle else out).to(input.dtype)
    except PoolError as error:
        raise error.during(f"{describe(input)} by covariance_pool2d") from None


@listed(
    "bilinear",
    kind="global",
    formula="Σ x xᵀ / n, signed square root, divided by its norm",
    gradient="all positions, by the other channels' values there",
    cost="C² products per position",
    paper="Lin, RoyChowdhury and Maji 2015",
)
class BilinearPool2d(nn.Module):
    """`poolkit.bilinear_pool2d` as a module.

    >>> import torch
    >>> BilinearPool2d(triangle=True)(torch.rand(2, 8, 7, 7)).shape
    torch.Size([2, 36])
    """

    def __init__(
        self, signed_sqrt: bool = True, normalize: bool = True, triangle: bool = False
    ) -> None:
        super().__init__()
        self.signed_sqrt, self.normalize, self.triangle = signed_sqrt, normalize, triangle

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        return bilinear_pool2d(
            input,
            other,
            signed_sqrt=self.signed_sqrt,
            normalize=self.normalize,
            triangle=self.triangle,
        )

    def extra_repr(self) -> str:
        return (
            f"signed_sqrt={self.signed_sqrt}, normalize={self.normalize}, triangle={self.triangle}"
        )


@listed(
    "compact_bilinear",
    kind="global",
    formula="mean of φ(x) with E <φ(x), φ(y)> = <x, y>²",
    gradient="all positions, through the sketch",
    cost="D log D per position, or C² and C² once",
    paper="Gao, Beijbom, Zhang and Darrell 2016",
    dimension=32,
)
class CompactBilinearPool2d(nn.Module):
    """`poolkit.compact_bilinear_pool2d` as a module; its hashes are part of its state.

    Args:
        channels: C of the input.
        dimension, method, seed, signed_sqrt, normalize: as for the function.

    Raises:
        PoolValueError, PoolTypeError: for sizes and methods that do not exist, and inputs of other
            channels.

    >>> import torch
    >>> CompactBilinearPool2d(64, dimension=512)(torch.rand(2, 64, 7, 7)).shape
    torch.Size([2, 512])
    """

    buckets: Tensor
    signs: Tensor

    def __init__(
        self,
        channels: int,
        dimension: int = 8192,
        method: str = "tensor_sketch",
        seed: int | torch.Generator = 0,
        signed_sqrt: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.dimension, self.method = channels, dimension, method
        self.signed_sqrt, self.normalize = signed_sqrt, normalize
        buckets, signs = _hashes(channels, dimension, method, seed)
        self.register_buffer("buckets", buckets)
        self.register_buffer("signs", signs)

    def forward(self, input: Tensor) -> Tensor:
        try:
            x = checked_maps(input, self.channels)
            return _compact(
                x, self.dimension, self.buckets, self.signs, self.signed_sqrt, self.normalize
            )
        except PoolError as error:
            raise error.during(f"{describe(input)} by CompactBilinearPool2d") from None

    def extra_repr(self) -> str:
        return f"{self.channels}, dimension={self.dimension}, method={self.method!r}"


@listed(
    "covariance",
    kind="global",
    formula="the square root of the channels' covariance, its upper triangle",
    gradient="all positions, through the iterations",
    cost="C² products per position, and 3 C³ for each iteration",
    paper="Li, Xie, Wang and Gao 2018",
)
class CovariancePool2d(nn.Module):
    """`poolkit.covariance_pool2d` as a module.

    >>> import torch
    >>> CovariancePool2d()(torch.rand(2, 8, 7, 7)).shape
    torch.Size([2, 36])
    """

    def __init__(self, iterations: int = 5, triangle: bool = True) -> None:
        super().__init__()
        _check_iterations(iterations)
        self.iterations, self.triangle = iterations, triangle

    def forward(self, input: Tensor) -> Tensor:
        return covariance_pool2d(input, self.iterations, triangle=self.triangle)

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, triangle={self.triangle}"


# --- maps, roots and norms -----------------------------------------------------------------------


def unit(x: Tensor, dim: int) -> Tensor:
    """`x` divided by its Euclidean norm, and 0, with a gradient of 0, where that is 0. Divided by
    its largest magnitude first, which neither overflows nor vanishes."""
    largest = x.detach().abs().amax(dim, keepdim=True)
    some = largest != 0
    scaled = x / torch.where(some, largest, 1.0)
    squares = scaled.square().sum(dim, keepdim=True)
    return torch.where(some, scaled * torch.where(some, squares, 1.0).rsqrt(), x * 0.0)


def signed_root(x: Tensor) -> Tensor:
    """sign(x) sqrt(|x|), with a gradient of 0 instead of infinity where x is 0."""
    zero = x == 0
    return torch.where(zero, x.detach(), x.sign() * torch.where(zero, 1.0, x).abs().sqrt())


def _descriptors(x: Tensor) -> Tensor:
    """(..., C, positions), in the dtype that products are summed in."""
    return widened(x).flatten(-2)


def _mean_product(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.transpose(-1, -2) / x.shape[-1]


def _upper(flat: Tensor, beside: float) -> Tensor:
    """The upper triangle of matrices that lie flat, what is beside the diagonal times `beside`."""
    size = math.isqrt(flat.shape[-1])
    row, column = torch.triu_indices(size, size, device=flat.device)
    upper = flat.index_select(-1, row * size + column)
    if beside == 1.0:
        return upper
    return torch.where(row == column, upper, upper * beside)


# --- sketches ------------------------------------------------------------------------------------


def _hashes(
    channels: int, dimension: int, method: str, seed: int | torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where each channel goes, (2, channels), and its signs; for random Maclaurin features nowhere,
    and signs (2, dimension, channels)."""
    checked_size("channels", channels)
    checked_size("dimension", dimension)
    if method not in METHODS:
        raise PoolValueError(
            f"there is no method called {method!r}", f"Known: {' and '.join(METHODS)}"
        )
    if not isinstance(seed, torch.Generator):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise PoolTypeError(
                f"seed must be an integer or a generator, got {seed!r}", "Write seed=0"
            )
        seed = torch.Generator().manual_seed(seed)
    sketch = method == "tensor_sketch"
    entries = channels if sketch else 0
    shape = (2, channels) if sketch else (2, dimension, channels)
    buckets = torch.randint(dimension, (2, entries), generator=seed, device=seed.device)
    signs = torch.randint(2, shape, generator=seed, device=seed.device)
    return buckets, (2 * signs - 1).float()


def _compact(
    x: Tensor,
    dimension: int,
    buckets: Tensor,
    signs: Tensor,
    signed_sqrt: bool,
    normalize: bool,
) -> Tensor:
    batch = x if x.ndim == 4 else x[None]
    with in_full_precision(x):
        descriptors = _descriptors(batch)
        signs = signs.to(descriptors.dtype)
        positions, channels = descriptors.shape[-1], descriptors.shape[-2]
        if signs.ndim == 3:
            by_positions = positions <= channels
            project = _maclaurin_of_positions if by_positions else _maclaurin_of_products
            out = project(descriptors, signs)
        else:
            # The sketch is linear in the outer product: what is fewer numbers, is sketched.
            by_positions = positions * dimension <= channels * channels
            sketch = _sketch_of_positions if by_positions else _sketch_of_products
            out = sketch(descriptors, dimension, buckets, signs)
    if signed_sqrt:
        out = signed_root(out)
    if normalize:
        out = unit(out, -1)
    return (out if x.ndim == 4 else out[0]).to(x.dtype)


def _sketch_of_positions(x: Tensor, dimension: int, buckets: Tensor, signs: Tensor) -> Tensor:
    batch, channels, positions = x.shape
    if batch == 0:  # of nothing there is no transform
        return x.sum((1, 2))[:, None].expand(0, dimension)
    rows = x.transpose(0, 1).reshape(channels, batch * positions)
    first, second = (
        torch.fft.rfft(
            x.new_zeros((dimension, batch * positions)).index_add(0, bucket, sign[:, None] * rows),
            dim=0,
        )
        for bucket, sign in zip(buckets, signs, strict=True)
    )
    spectrum = (first * second).reshape(-1, batch, positions).mean(-1)
    return torch.fft.irfft(spectrum, n=dimension, dim=0).transpose(0, 1)


def _sketch_of_products(x: Tensor, dimension: int, buckets: Tensor, signs: Tensor) -> Tensor:
    product = _mean_product(x, x) * (signs[0][:, None] * signs[1])
    place = ((buckets[0][:, None] + buckets[1]) % dimension).flatten()
    zeros = x.new_zeros((x.shape[0], dimension))
    return zeros.scatter_add(1, place.expand(x.shape[0], -1), product.flatten(1))


def _maclaurin_of_positions(x: Tensor, signs: Tensor) -> Tensor:
    return ((signs[0] @ x) * (signs[1] @ x)).mean(-1) / math.sqrt(signs.shape[1])


def _maclaurin_of_products(x: Tensor, signs: Tensor) -> Tensor:
    product = _mean_product(x, x)
    return ((signs[0] @ product) * signs[1]).sum(-1) / math.sqrt(signs.shape[1])


# --- the square root of a matrix -----------------------------------------------------------------


def _check_iterations(iterations: int) -> None:
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if not whole or not 1 <= iterations <= MOST_ITERATIONS:
        raise PoolValueError(
            f"iterations must be 1 to {MOST_ITERATIONS}, got {iterations!r}",
            "The paper takes 5; more let rounding errors grow",
        )


def _square_root(matrix: Tensor, iterations: int) -> Tensor:
    size = matrix.shape[-1]
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    one = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    y = matrix / torch.where(trace == 0, 1.0, trace)
    step = 1.5 * one - 0.5 * y
    y, z = y @ step, step
    for left in range(iterations - 1, 0, -1):
        step = 1.5 * one - 0.5 * (z @ y)
        y = y @ step
        if left > 1:  # z is not looked at again
            z = step @ z
    return y * root(arrays_of(trace), trace, 2)
