"""Pooling of frequencies, against SciPy, by definition, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import signal

import poolkit

torch = pytest.importorskip("torch")


def drawn(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


# --- Fourier --------------------------------------------------------------------------------------


def test_spectrum_by_hand() -> None:
    # To one position: only the mean is left. To two of four: the mean and the alternating part,
    # (8 0 0 0) = 2 + 4 cos(pi i / 2) + 2 (-1)^i, of which cos(pi i / 2) is kept, as it alternates
    # in two samples: 2 + 4, 2 - 4.
    x = torch.tensor([[[8.0, 0.0, 0.0, 0.0]]])
    torch.testing.assert_close(poolkit.spectral_pool2d(x, 1), torch.tensor([[[2.0]]]))
    torch.testing.assert_close(poolkit.spectral_pool2d(x, (1, 2)), torch.tensor([[[6.0, -2.0]]]))


@pytest.mark.parametrize("shape", [(12, 12), (13, 9), (8, 5), (1, 6)], ids=str)
def test_as_scipy_resamples(shape: Any) -> None:
    x = drawn(2, 3, *shape)
    for height in {1, 2, shape[0] // 2, shape[0] - 1, shape[0]} - {0}:
        for width in (1, 2, 4, 5):
            if height > shape[0] or width > shape[1]:
                continue
            want = signal.resample(signal.resample(x.numpy(), height, axis=2), width, axis=3)
            found = poolkit.spectral_pool2d(x, (height, width))
            np.testing.assert_allclose(found.numpy(), want, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)))


def test_a_crop_of_the_whole_spectrum() -> None:
    # An odd output has no highest frequency, so the published crop of the centre needs no care.
    x = drawn(2, 3, 12, 9)
    spectrum = np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(2, 3))
    kept = spectrum[:, :, 6 - 3 : 6 + 4, 4 - 2 : 4 + 3]
    want = np.fft.ifft2(np.fft.ifftshift(kept, axes=(2, 3))) * (7 * 5) / (12 * 9)
    assert np.abs(want.imag).max() < 1e-12
    found = poolkit.spectral_pool2d(x, (7, 5))
    np.testing.assert_allclose(found.numpy(), want.real, rtol=1e-9, atol=1e-12)


def test_band_limited_images_are_sampled() -> None:
    def image(height: int, width: int) -> Any:
        i = torch.arange(height, dtype=torch.float64)[:, None] / height * 2 * math.pi
        j = torch.arange(width, dtype=torch.float64) / width * 2 * math.pi
        waves = 1 + (i + 0.3).cos() * (2 * j - 1).sin() + 3 * (2 * i + j).cos()
        return (waves + (3 * i).cos())[None]  # 3: the highest of 6 rows

    for size in ((6, 5), (7, 6), (12, 5), (24, 16)):
        found = poolkit.spectral_pool2d(image(24, 16), size)
        torch.testing.assert_close(found, image(*size), rtol=1e-9, atol=1e-9)


def test_same_size_scales_and_gradients() -> None:
    x = drawn(2, 3, 9, 8)
    assert torch.equal(poolkit.spectral_pool2d(x, (9, 8)), x)
    assert torch.equal(poolkit.spectral_pool2d(x, scale=1.0), x)
    assert poolkit.spectral_pool2d(x).shape == (2, 3, 4, 4)
    assert poolkit.spectral_pool2d(x, scale=(0.01, 0.5)).shape == (2, 3, 1, 4)
    twice = poolkit.spectral_pool2d(poolkit.spectral_pool2d(x, 7), 5)
    torch.testing.assert_close(twice, poolkit.spectral_pool2d(x, 5))
    leaf = drawn(1, 2, 6, 5).requires_grad_()
    for size in (3, 4, (1, 2), (6, 4)):
        assert torch.autograd.gradcheck(lambda x, s=size: poolkit.spectral_pool2d(x, s), (leaf,))
    assert torch.autograd.gradgradcheck(lambda x: poolkit.spectral_pool2d(x, 3) ** 2, (leaf,))
    # Adjoint: <P x, y> = <x, P' y>.
    y = drawn(2, 3, 4, 5)
    x.requires_grad_()
    pooled = poolkit.spectral_pool2d(x, (4, 5))
    (back,) = torch.autograd.grad(pooled, x, y)
    torch.testing.assert_close((pooled * y).sum(), (x * back).sum())


# --- Haar -----------------------------------------------------------------------------------------


def test_wavelets_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    low, details = poolkit.wavelet_pool2d(x, return_details=True)
    # (1 + 2 + 3 + 6) / 2; left less right, upper less lower, and the diagonals, halved.
    assert low.item() == 6
    assert [band.item() for band in details[0]] == [-2, -3, 1]
    low, details = poolkit.wavelet_pool2d(x, normalize="mean", return_details=True)
    assert low.item() == 3
    assert [band.item() for band in details[0]] == [-1, -1.5, 0.5]


@pytest.mark.parametrize("shape", [(8, 8), (13, 9), (1, 6), (5, 1)], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("normalize", ["orthonormal", "mean"])
def test_there_and_back(shape: Any, levels: int, normalize: Any) -> None:
    x = (9 * drawn(2, 3, *shape)).round()
    options = {"normalize": normalize}
    low, details = poolkit.wavelet_pool2d(x, levels, return_details=True, **options)
    assert len(details) == levels
    assert torch.equal(low, poolkit.wavelet_pool2d(x, levels, **options))
    # Integers are halved exactly, so nothing is lost at all.
    assert torch.equal(poolkit.haar_unpool2d(low, details, shape, **options), x)
    for image, bands in ((x[0], [tuple(band[0] for band in level) for level in details]),):
        assert torch.equal(poolkit.haar_unpool2d(low[0], bands, shape, **options), image)
    real = drawn(2, 3, *shape, dtype=torch.float32)
    low, details = poolkit.wavelet_pool2d(real, levels, return_details=True, **options)
    torch.testing.assert_close(poolkit.haar_unpool2d(low, details, shape, **options), real)


def test_low_band_is_the_mean_and_energy_is_kept() -> None:
    x = drawn(2, 3, 8, 12)
    assert torch.equal(poolkit.wavelet_pool2d(x, normalize="mean"), poolkit.avg_pool2d(x, 2))
    torch.testing.assert_close(
        poolkit.wavelet_pool2d(x, 2, normalize="mean"), poolkit.avg_pool2d(x, 4)
    )
    torch.testing.assert_close(poolkit.wavelet_pool2d(x), poolkit.sum_pool2d(x, 2) / 2)
    low, details = poolkit.wavelet_pool2d(x, 2, return_details=True)
    energy = (low**2).sum() + sum((band**2).sum() for bands in details for band in bands)
    torch.testing.assert_close(energy, (x**2).sum())
    # As published: two levels, and the second back.
    assert torch.allclose(poolkit.haar_unpool2d(low, details[1:]), poolkit.wavelet_pool2d(x))
    assert torch.equal(poolkit.haar_unpool2d(x, []), x)
    leaf = drawn(1, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: poolkit.wavelet_pool2d(x, 2), (leaf,))

    def all_bands(x: Any) -> Any:
        low, details = poolkit.wavelet_pool2d(x, 2, return_details=True)
        return low, *details[0], *details[1]

    assert torch.autograd.gradcheck(all_bands, (leaf,))
    bands = [drawn(1, 2, 3, 2).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(
        lambda low, *bands: poolkit.haar_unpool2d(low, [bands], (5, 4)), tuple(bands)
    )


# --- all of them ----------------------------------------------------------------------------------

MODULES = {
    "spectral": lambda: poolkit.nn.SpectralPool2d((5, 4)),
    "wavelet": lambda: poolkit.nn.WaveletPool2d(2),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
@pytest.mark.parametrize("name", MODULES)
def test_dtypes_formats_and_nan(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 11, 8)
    want = module(x)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        found = module(half)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, module(half.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6
        )
    whole = (20 * x).round()
    for dtype in (torch.int64, torch.int8):
        found = module(whole.to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, module(whole).float(), rtol=1e-5, atol=1e-5)
    assert module(x > 0).dtype == torch.float32
    behind = module(x.contiguous(memory_format=torch.channels_last))
    assert behind.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(behind, want)
    torch.testing.assert_close(module(x[0]), want[0])
    assert module(x[:0].requires_grad_()).shape == (0, *want.shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x.float()), module(x.float()))
    holes = x.clone()
    holes[0, 0, 4, 4] = torch.nan
    assert module(holes)[0, 0].isnan().any()
    assert module(holes)[1].isfinite().all()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = compiled(one)
    torch.testing.assert_close(found, want)
    (found**2).sum().backward()
    (module(other) ** 2).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_errors() -> None:
    nn, x = poolkit.nn, torch.rand(1, 3, 4, 4)
    low, details = poolkit.wavelet_pool2d(x, return_details=True)
    refused: list[tuple[Any, str]] = [
        (
            lambda: poolkit.spectral_pool2d(x, 5),
            r"an output of \(5, 5\) was asked for, of an input of \(4, 4\), while pooling float32 "
            r"\(1, 3, 4, 4\) by spectral_pool2d. Frequencies can only be left out",
        ),
        (lambda: poolkit.spectral_pool2d(x, 0), "output_size must be at least 1"),
        (lambda: poolkit.spectral_pool2d(x, scale=1.5), "above 0 and at most 1, got 1.5"),
        (lambda: poolkit.spectral_pool2d(x, scale="a"), "scale must be a number or two of them"),
        (lambda: nn.SpectralPool2d(scale=(0.5, 0.5, 0.5)), "scale has 3 entries for 2"),
        (lambda: nn.SpectralPool2d(2.5), "output_size must be an integer"),
        (lambda: poolkit.spectral_pool2d(np.ones((1, 4, 4))), "a torch tensor was expected"),
        (lambda: poolkit.wavelet_pool2d(x, 0), "levels must be at least 1, got 0"),
        (lambda: nn.WaveletPool2d(1.5), "levels must be an integer, got 1.5"),
        (lambda: poolkit.wavelet_pool2d(x, normalize="sum"), "normalisation 'sum'.*'orthonormal'"),
        (
            lambda: poolkit.haar_unpool2d(low[..., :1], details),
            r"a low band of \(1, 3, 2, 1\) does not go with bands of \(1, 3, 2, 2\), .* by "
            "haar_unpool2d. Give three bands of its shape",
        ),
        (lambda: poolkit.haar_unpool2d(low, [details[0][:2]]), "does not go with bands"),
        (
            lambda: poolkit.haar_unpool2d(low, details, (4, 2)),
            r"bands of \(2, 2\) make an image of \(4, 4\), or of one less, not of \(4, 2\)",
        ),
        (lambda: poolkit.haar_unpool2d(low.long(), details), "of a floating dtype, got int64"),
    ]
    for call, message in refused:
        with pytest.raises(poolkit.PoolError, match=message):
            call()
