"""Morphology: its laws, and SciPy's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import poolkit

torch = pytest.importorskip("torch")

SIZES = [1, 2, 3, 4, 5, (1, 3), (4, 1), (2, 5), (3, 8)]
SCIPY = {
    "erosion2d": ndimage.grey_erosion,
    "dilation2d": ndimage.grey_dilation,
    "opening2d": ndimage.grey_opening,
    "closing2d": ndimage.grey_closing,
    "morphological_gradient2d": ndimage.morphological_gradient,
    "top_hat2d": ndimage.white_tophat,
    "bottom_hat2d": ndimage.black_tophat,
}


def drawn(*shape: int) -> Any:
    return np.random.default_rng(4).integers(-9, 9, shape).astype(np.float64)


def test_by_hand() -> None:
    x = np.array([[[0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 5]]])
    # 3x3 maxima: the 9 reaches one position each way, and the 5 its two neighbours' windows.
    assert poolkit.dilation2d(x, 3).tolist() == [[[9, 9, 9, 0], [9, 9, 9, 5], [9, 9, 9, 5]]]
    assert poolkit.erosion2d(x, 3).tolist() == [[[0] * 4] * 3]
    # An even window sees one position more in front when it erodes, and behind when it dilates.
    row = np.array([[[1, 2, 3, 4]]])
    assert poolkit.erosion2d(row, (1, 2)).tolist() == [[[1, 1, 2, 3]]]
    assert poolkit.dilation2d(row, (1, 2)).tolist() == [[[2, 3, 4, 4]]]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SCIPY)
def test_as_scipy(name: str, size: Any) -> None:
    x = drawn(2, 3, 11, 9)
    sizes = size if isinstance(size, tuple) else (size, size)
    # Reflected values are values of the window itself, so SciPy's border is neutral too.
    want = np.stack([[SCIPY[name](image, size=sizes) for image in images] for images in x])
    found = getattr(poolkit, name)(x, size)
    np.testing.assert_array_equal(found, want)
    tensor = getattr(poolkit, name)(torch.from_numpy(x), size)
    np.testing.assert_array_equal(tensor.numpy(), want)


@pytest.mark.parametrize("size", [*SIZES, 30], ids=str)
def test_laws(size: Any) -> None:
    x, y = drawn(2, 3, 11, 9), drawn(2, 3, 11, 9)[::-1]
    opened, closed = poolkit.opening2d(x, size), poolkit.closing2d(x, size)
    np.testing.assert_array_equal(poolkit.opening2d(opened, size), opened)
    np.testing.assert_array_equal(poolkit.closing2d(closed, size), closed)
    assert (poolkit.erosion2d(x, size) <= opened).all()
    assert (opened <= x).all()
    assert (x <= closed).all()
    assert (closed <= poolkit.dilation2d(x, size)).all()
    # Opening is closing of what is dark instead of bright, with the window reflected.
    turned = -poolkit.closing2d(-x[..., ::-1, ::-1], size)[..., ::-1, ::-1]
    np.testing.assert_array_equal(turned, opened)
    turned = -poolkit.dilation2d(-x[..., ::-1, ::-1], size)[..., ::-1, ::-1]
    np.testing.assert_array_equal(turned, poolkit.erosion2d(x, size))
    # Adjoint: a dilation stays below y where the image stays below its erosion.
    below = poolkit.dilation2d(x, size) <= y
    assert below.all() == (x <= poolkit.erosion2d(y, size)).all()
    lower = np.minimum(x, poolkit.erosion2d(y, size))
    assert (poolkit.dilation2d(lower, size) <= y).all()
    # Both hats and the gradient are at least 0.
    for name in ("top_hat2d", "bottom_hat2d", "morphological_gradient2d"):
        assert (getattr(poolkit, name)(x, size) >= 0).all()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8], ids=str
)
def test_dtypes_and_formats(dtype: Any) -> None:
    x = torch.from_numpy(drawn(2, 3, 7, 6) + 10).to(dtype)
    for name in SCIPY:
        run = getattr(poolkit, name)
        want = run(x.double(), 3)
        found = run(x, 3)
        assert torch.equal(found.double(), want)
        behind = run(x.contiguous(memory_format=torch.channels_last), 3)
        assert torch.equal(behind, found)
        assert behind.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(run(x[0], 3), found[0])
        assert run(x[:0], 3).shape == (0, 3, 7, 6)


def test_differences_of_integers_do_not_wrap() -> None:
    x = torch.tensor([[[-128, 127]]], dtype=torch.int8)
    assert poolkit.morphological_gradient2d(x, 3).tolist() == [[[255, 255]]]
    assert poolkit.morphological_gradient2d(x.numpy(), 3).tolist() == [[[255, 255]]]
    flags = torch.tensor([[[False, False, False, True]]])
    assert poolkit.morphological_gradient2d(flags, 3).tolist() == [[[False, False, True, True]]]
    assert poolkit.top_hat2d(flags, 3).tolist() == [[[False, False, False, True]]]
    ends = torch.tensor([[[-(2**63), 2**63 - 1]]])
    with pytest.raises(poolkit.PoolValueError, match="int64 values does not fit 64 bits, while"):
        poolkit.morphological_gradient2d(ends, 3)


@pytest.mark.parametrize("name", ["erosion2d", "dilation2d", "opening2d", "closing2d"])
@pytest.mark.parametrize("size", [2, 3], ids=str)
def test_gradients_and_nan(name: str, size: int) -> None:
    run = getattr(poolkit, name)
    x = torch.rand(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: run(x, size), (x,))
    holes = torch.zeros(1, 1, 9, 9)
    holes[..., 4, 4] = torch.nan
    reach = size if name in ("erosion2d", "dilation2d") else 2 * size - 1
    assert run(holes, size).isnan().sum() == reach**2


def test_modules() -> None:
    x = torch.rand(2, 3, 7, 6)
    for name in ("erosion", "dilation", "opening", "closing"):
        module = poolkit.nn.create_pool2d(name, channels=3, kernel_size=(3, 2))
        assert repr(module) == f"{name.capitalize()}2d(kernel_size=(3, 2))"
        assert torch.equal(module(x), getattr(poolkit, f"{name}2d")(x, (3, 2)))
    compiled = torch.compile(poolkit.nn.Opening2d(3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), poolkit.opening2d(x, 3))


def test_errors() -> None:
    refused: list[tuple[Any, str]] = [
        (
            lambda: poolkit.erosion2d(np.ones((1, 4, 4)), 0),
            r"must be at least 1, got 0, while pooling float64 \(1, 4, 4\) by erosion2d",
        ),
        (lambda: poolkit.closing2d(np.ones((1, 4, 4)), (1, 2, 3)), "has 3 entries for 2 spatial"),
        (lambda: poolkit.nn.Opening2d(1.5), "kernel_size must be an integer.*got 1.5"),
        (lambda: poolkit.top_hat2d([1], 3), "array or a torch tensor was expected, got list"),
        (lambda: poolkit.dilation2d(torch.ones(4, 4), 3), "input of rank 3"),
        (lambda: poolkit.bottom_hat2d(np.ones((1, 4, 4), complex)), "complex128 cannot be pooled"),
    ]
    for call, message in refused:
        with pytest.raises(poolkit.PoolError, match=message):
            call()
