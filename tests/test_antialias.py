"""Blurs, and the phase that follows a shift."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

PADDED = {"reflect": "reflect", "replicate": "edge", "zeros": "constant", "circular": "wrap"}
COMPILED = pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler


def drawn(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def blurred(x: np.ndarray, sizes: Any, strides: Any, pads: Any, mode: str) -> np.ndarray:
    """By definition: continued by NumPy, each output a sum of its own."""
    x = np.pad(x, ((0, 0), (0, 0), *pads), mode=PADDED[mode])
    rows = [np.array([math.comb(k - 1, t) for t in range(k)]) / 2 ** (k - 1) for k in sizes]
    weights = np.outer(*rows)
    shape = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], sizes, strides, strict=True)]
    out = np.empty((*x.shape[:2], *shape))
    for i, j in np.ndindex(*shape):
        a, b = i * strides[0], j * strides[1]
        out[:, :, i, j] = (x[:, :, a : a + sizes[0], b : b + sizes[1]] * weights).sum((2, 3))
    return out


# --- blurs ----------------------------------------------------------------------------------------


def test_blur_by_hand() -> None:
    x = torch.tensor([[[16.0, 0.0, 0.0, 32.0]]])
    # [1 2 1] / 4 around places 0 and 2, whose reflected neighbours are 0 and 0.
    assert poolkit.blur_pool2d(x, (1, 3), (1, 2)).tolist() == [[[8, 8]]]
    # The same by other borders: 16 in front, nothing in front, 32 in front.
    for mode, first in (("replicate", 12), ("zeros", 8), ("circular", 16)):
        assert poolkit.blur_pool2d(x, (1, 3), (1, 2), padding_mode=mode).tolist() == [[[first, 8]]]
    # [1 1] / 2 of places (0, 1) and (2, 3): of an even size one position more lies behind.
    assert poolkit.blur_pool2d(x, (1, 2), (1, 2)).tolist() == [[[8, 16]]]
    # [1 3 3 1] / 8 begins one place before: (0 + 48 + 0 + 0) / 8, (0 + 0 + 96 + 0) / 8.
    assert poolkit.blur_pool2d(x, (1, 4), (1, 2), padding_mode="reflect").tolist() == [[[6, 12]]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, (3, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("mode", PADDED)
def test_blur_by_definition(size: Any, mode: str) -> None:
    x = drawn(2, 3, 9, 8)
    sizes = size if isinstance(size, tuple) else (size, size)
    same = [((k - 1) // 2, k // 2) for k in sizes]
    for strides in ((1, 1), (2, 2), (3, 1)):
        found = poolkit.blur_pool2d(x, size, strides, padding_mode=mode)
        assert found.shape[2:] == (-(-9 // strides[0]), -(-8 // strides[1]))
        want = blurred(x.numpy(), sizes, strides, same, mode)
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-12, atol=1e-12)
    pads = ((2, 0), (1, 3))
    found = poolkit.blur_pool2d(x, size, 2, pads, padding_mode=mode)
    np.testing.assert_allclose(
        found.numpy(), blurred(x.numpy(), sizes, (2, 2), pads, mode), rtol=1e-12, atol=1e-12
    )


def test_blur_at_its_limits() -> None:
    x = drawn(2, 3, 9, 8)
    assert torch.equal(poolkit.blur_pool2d(x, 1, 2), x[..., ::2, ::2])
    assert torch.equal(poolkit.blur_pool2d(x, 1, 1), x)
    torch.testing.assert_close(poolkit.blur_pool2d(x, 2, 2, "valid"), poolkit.avg_pool2d(x, 2))
    # A binomial filter is a mean of two, again and again.
    means = x
    for _ in range(4):
        means = poolkit.avg_pool2d(means, 2, 1)
    torch.testing.assert_close(poolkit.blur_pool2d(x, 5, 1, "valid"), means)
    flat = torch.full((1, 1, 9, 8), 3.0)
    for mode in ("reflect", "replicate", "circular"):
        assert (poolkit.blur_pool2d(flat, 7, 2, padding_mode=mode) == 3).all()


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.bfloat16, torch.float16],
    ids=str,
)
def test_any_dtype(dtype: Any) -> None:
    x = (drawn(2, 3, 9, 8) * 20).round().abs().to(dtype)
    real = dtype if dtype.is_floating_point else torch.float32
    for size in (1, 3, 4):
        found = poolkit.blur_pool2d(x, size)
        assert found.dtype == real
        # All sums are exact in float32.
        assert torch.equal(found, poolkit.blur_pool2d(x.double(), size).to(real))
        found = poolkit.blur_pool2d(x, size, 2, 3)
        assert torch.equal(found, poolkit.blur_pool2d(x.double(), size, 2, 3).to(real))
        found = poolkit.max_blur_pool2d(x, 2, blur_size=size)
        assert torch.equal(found, poolkit.max_blur_pool2d(x.double(), 2, blur_size=size).to(real))


@pytest.mark.parametrize("mode", PADDED)
def test_blur_gradients(mode: str) -> None:
    x = drawn(2, 2, 7, 6).requires_grad_()
    for arguments in ((3, 2), (4, 3), (1, 2), ((2, 5), (1, 3)), (3, 2, ((0, 2), (1, 1)))):
        assert torch.autograd.gradcheck(
            lambda x, a=arguments: poolkit.blur_pool2d(x, *a, padding_mode=mode), (x,)
        )
    assert torch.autograd.gradgradcheck(
        lambda x: poolkit.blur_pool2d(x, padding_mode=mode) ** 2,
        (x[:1, :1].detach().requires_grad_(),),
    )
    assert torch.autograd.gradcheck(
        lambda x: poolkit.max_blur_pool2d(x, 3, 2, 1, padding_mode=mode), (x,)
    )


@pytest.mark.parametrize("mode", PADDED)
def test_no_copy_is_kept_to_train_through_a_blur(mode: Any) -> None:
    x = torch.rand(1, 4, 32, 32, requires_grad=True)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        poolkit.blur_pool2d(x, padding_mode=mode)
    copies = [tensor for tensor in kept if tensor.data_ptr() != x.data_ptr()]
    assert sum(tensor.untyped_storage().nbytes() for tensor in copies) < 100  # the filter


def test_blur_of_one_axis() -> None:
    x = drawn(2, 3, 9)
    found = poolkit.blur_pool1d(x, 5, 2)
    want = blurred(x[:, :, None].numpy(), (1, 5), (1, 2), ((0, 0), (2, 2)), "reflect")[:, :, 0]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-12)
    assert torch.equal(poolkit.nn.BlurPool1d(5)(x[0]), found[0])
    assert poolkit.blur_pool1d(x, 4, 3, ((1, 0),)).shape == (2, 3, 3)
    assert poolkit.blur_pool1d(x, 1, 4).tolist() == x[..., ::4].tolist()


def test_max_blur() -> None:
    x = drawn(2, 3, 9, 8)
    for window in ((2, 2, 0), (3, 2, 1), (2, None, 0), ((3, 2), (1, 2), (1, 0))):
        plain = poolkit.max_pool2d(x, *window)
        # A blur of size 1 is a stride, and with it the max pooling itself.
        assert torch.equal(poolkit.max_blur_pool2d(x, *window, blur_size=1), plain)
        assert poolkit.max_blur_pool2d(x, *window).shape == plain.shape
    inner = poolkit.max_pool2d(x, 3, 1, 1)
    want = poolkit.blur_pool2d(inner, 5, 2, padding_mode="circular")
    found = poolkit.max_blur_pool2d(x, 3, 2, 1, blur_size=5, padding_mode="circular")
    assert torch.equal(found, want)


# --- the choice of a phase ------------------------------------------------------------------------


def test_phase_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 0.0]]])
    # Phases (0, 0): 1 2, (0, 1): 0 0, (1, 0): 0 0, (1, 1): 3 0; by squares 5, 0, 0, 9.
    pooled, phase = poolkit.aps_pool2d(x, return_phase=True)
    assert pooled.tolist() == [[[3, 0]]]
    assert phase == 3
    # By magnitudes 3, 0, 0, 3: the first of equal ones.
    pooled, phase = poolkit.aps_pool2d(x, norm=1, return_phase=True)
    assert pooled.tolist() == [[[1, 2]]]
    assert phase == 0
    assert poolkit.aps_pool2d(x, norm=math.inf).tolist() == [[[3, 0]]]
    assert poolkit.aps_pool2d(x, phase=torch.tensor(2)).tolist() == [[[0, 0]]]
    assert torch.equal(poolkit.aps_pool2d(x, stride=1), x)
    # Channels are chosen for together, images each for itself.
    images = torch.stack([x, x.roll(1, -1)]).expand(2, 5, 2, 4)
    assert poolkit.aps_pool2d(images, return_phase=True)[1].tolist() == [3, 2]


@pytest.mark.parametrize("front", ["none", "max", "blur"])
@pytest.mark.parametrize("stride", [2, 3, (3, 2)], ids=str)
def test_a_circular_shift_shifts_the_result(front: str, stride: Any) -> None:
    x = drawn(2, 3, 12, 6, dtype=torch.float32)
    options = {"kernel_size": 1} if front == "none" else {"kernel_size": 3, "front": front}
    rows, columns = stride if isinstance(stride, tuple) else (stride, stride)
    pool = poolkit.nn.APSPool2d(**options, stride=stride, return_phase=True)
    pooled, phase = pool(x)
    for a in range(12):
        for b in range(6):
            moved, moved_phase = pool(x.roll((a, b), (2, 3)))
            for n in range(2):
                i, j = int(phase[n]) // columns + a, int(phase[n]) % columns + b
                assert moved_phase[n] == i % rows * columns + j % columns
                expected = pooled[n].roll((i // rows, j // columns), (1, 2))
                # A convolution may add up in another order at other places.
                torch.testing.assert_close(moved[n], expected, rtol=1e-5, atol=1e-6)
                if front != "blur":
                    assert torch.equal(moved[n], expected)


def test_a_stride_alone_does_not_follow_shifts() -> None:  # the test above can fail
    x = drawn(1, 1, 8, 8)
    moved = poolkit.blur_pool2d(x.roll(1, 3), 1, 2)
    assert not any(torch.equal(moved, x[..., ::2, ::2].roll(s, 3)) for s in range(4))


def test_phases_of_other_sizes_dtypes_and_branches() -> None:
    x = drawn(2, 3, 7, 5)
    pooled = poolkit.aps_pool2d(x)
    assert pooled.shape == (2, 3, 4, 3)
    round_about = torch.cat([x, x[:, :, :1]], 2)
    round_about = torch.cat([round_about, round_about[..., :1]], 3)
    assert torch.equal(pooled, poolkit.aps_pool2d(round_about))
    assert poolkit.aps_pool2d(x[..., :1, :2], stride=5).shape == (2, 3, 1, 1)
    whole = (9 * x).round()
    for dtype in (torch.int64, torch.int8, torch.float16):
        found = poolkit.aps_pool2d(whole.to(dtype), 3)
        assert found.dtype == dtype
        assert torch.equal(found.double(), poolkit.aps_pool2d(whole, 3))
    assert poolkit.aps_pool2d(whole.int(), 3, front="blur").dtype == torch.float32
    y, phase = poolkit.aps_pool2d(x, return_phase=True)
    assert torch.equal(poolkit.aps_pool2d(2 * x, phase=phase), 2 * y)
    assert poolkit.aps_pool2d(x[0]).tolist() == y[0].tolist()
    leaf = drawn(2, 2, 6, 4).requires_grad_()
    for front in ("max", "blur"):
        assert torch.autograd.gradcheck(
            lambda x, f=front: poolkit.aps_pool2d(x, 3, front=f), (leaf,)
        )


# --- all of them ----------------------------------------------------------------------------------

MODULES = {
    "blur": lambda: poolkit.nn.BlurPool2d(3),
    "max_blur": lambda: poolkit.nn.MaxBlurPool2d(3, 2, 1),
    "aps": lambda: poolkit.nn.APSPool2d(3),
    "blurred aps": lambda: poolkit.nn.APSPool2d(3, front="blur"),
}


@COMPILED
@pytest.mark.parametrize("name", MODULES)
def test_formats_empty_batches_and_compilers(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 10, 8, dtype=torch.float32)
    want = module(x)
    behind = module(x.contiguous(memory_format=torch.channels_last))
    assert behind.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(behind, want)
    torch.testing.assert_close(module(x[0]), want[0])
    nothing = x[:0].clone().requires_grad_()
    pooled = module(nothing)
    assert pooled.shape == (0, 3, 5, 4)
    pooled.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), want)
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
    assert not list(module.state_dict())


def test_errors() -> None:
    nn, x = poolkit.nn, torch.rand(1, 3, 4, 4)
    refused: list[tuple[Any, str]] = [
        (
            lambda: poolkit.blur_pool2d(x[..., :1], 3),
            r"an axis of 1 cannot be continued by 1 as 'reflect', while pooling float32 "
            r"\(1, 3, 4, 1\) by blur_pool2d. Axis 1 needs 2 positions; use padding_mode='repl",
        ),
        (lambda: poolkit.blur_pool2d(x, 3, 2, 5, padding_mode="circular"), "continued by 5 as 'ci"),
        (lambda: poolkit.blur_pool2d(x, 8), "at most 7 positions here, got 8.*Blur twice"),
        (lambda: poolkit.blur_pool2d(x, 7, 1, "valid"), r"filter of \(7, 7\) does not fit"),
        (lambda: poolkit.blur_pool2d(x, 0), "kernel_size must be at least 1"),
        (lambda: poolkit.blur_pool2d(x, 3, 0), "stride must be at least 1"),
        (lambda: poolkit.blur_pool2d(x, 3, 2, "all"), "padding must be 'same', 'valid' or int"),
        (lambda: poolkit.blur_pool2d(x, 3, 2, (1, 2, 3)), "padding has 3 entries for 2 spatial"),
        (lambda: poolkit.blur_pool2d(x, padding_mode="edge"), "no padding mode 'edge'.*'reflect'"),
        (lambda: nn.BlurPool2d(3, padding_mode="edge"), "no padding mode 'edge'"),
        (lambda: nn.BlurPool1d(9), "at most 7"),
        (lambda: nn.MaxBlurPool2d(2, blur_size=9), "at most 7"),
        (lambda: nn.MaxBlurPool2d(0), "kernel_size must be at least 1"),
        (lambda: poolkit.blur_pool1d(x), r"rank 2 .* or 3 .* by blur_pool1d"),
        (lambda: poolkit.max_blur_pool2d(x, 9), "a window of 9 positions does not fit"),
        (lambda: poolkit.blur_pool2d(x.numpy()), "a torch tensor was expected, got ndarray"),
        (lambda: poolkit.blur_pool2d(x.cfloat()), "complex64 cannot be pooled"),
        (lambda: poolkit.aps_pool2d(x, norm=0), "norm must be above 0, got 0"),
        (lambda: poolkit.aps_pool2d(x, norm="2"), "norm must be a number"),
        (lambda: poolkit.aps_pool2d(x, front="mean"), "no filter 'mean'.*'max' or 'blur'"),
        (lambda: poolkit.aps_pool2d(x, phase=3), "phase must be an int64 tensor, got a int"),
        (
            lambda: poolkit.aps_pool2d(x, phase=torch.tensor([1, 2])),
            r"one phase for each of 1 images, got \(2,\)",
        ),
        (
            lambda: poolkit.aps_pool2d(x, phase=torch.tensor([4])),
            r"a stride of \(2, 2\) has the phases 0 to 3, got \[4\]",
        ),
        (lambda: nn.APSPool2d(9, front="blur"), "at most 7"),
    ]
    for call, message in refused:
        with pytest.raises(poolkit.PoolError, match=message):
            call()
