"""The products of all pairs: by hand, at their limits, and where the usual form cancels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import poolkit
from poolkit.composite import composite
from poolkit.plan import plan_for
from poolkit.reductions import BiInteraction, as_reduction
from poolkit.reference import reduce_reference
from poolkit.windows import Global, Segments, Sliding

pytestmark = pytest.mark.usefixtures("keep_settings")

NATIVE = plan_for(Global(), BiInteraction(), (3,), "float32").native is not None


def pairs(values: np.ndarray) -> float:
    """All pairs, one by one, and rounded once."""
    return math.fsum(a * b for a, b in itertools.combinations(values.astype(np.float64), 2))


def test_by_hand() -> None:
    # 1*2 + 1*3 + 2*3 = 11, and (1 + 2 + 3)² - (1 + 4 + 9) is twice that.
    assert poolkit.pool(np.array([1.0, 2.0, 3.0]), Global(), "bi_interaction") == [11]
    # Windows of three: 11, 2*3 + 2*-4 + 3*-4 = -14, 3*-4 + 3*0 + -4*0 = -12.
    x = np.array([1.0, 2.0, 3.0, -4.0, 0.0])
    found = poolkit.pool(x, Sliding(3, stride=1), BiInteraction())
    np.testing.assert_array_equal(found, [11, -14, -12])
    # Padding adds nothing: of one value there is no pair, of none neither.
    found = poolkit.pool(x, Sliding(2, stride=2, padding=((3, 0),)), BiInteraction())
    np.testing.assert_array_equal(found, [0, 0, 6, 0])


def test_names() -> None:
    assert as_reduction("bi_interaction") == as_reduction("BiInteraction()") == BiInteraction()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 96, 200, 3000])
@pytest.mark.parametrize("features", [1, 3, 16, 70])
def test_agrees_with_all_pairs(dtype: str, count: int, features: int) -> None:
    """Chains of 32, trees of them, and one window in the lanes of a vector."""
    random = np.random.default_rng(count)
    x = (random.standard_normal((count, features)) / math.sqrt(count)).astype(dtype)
    found = poolkit.pool(x, Global(), BiInteraction(), ndim=1, channels_last=True)[0]
    assert found.dtype == x.dtype
    if count < 300:
        right = np.array([pairs(x[:, column]) for column in range(features)])
    else:
        wide = x.astype(np.longdouble)
        right = (0.5 * (wide.sum(0) ** 2 - (wide**2).sum(0))).astype(np.float64)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found, right, rtol=4 * eps, atol=16 * min(eps, 2.0**-23))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
def test_integers_give_floats(dtype: str) -> None:
    high = 2 if dtype == "bool" else 100 if dtype.endswith("8") else 30000
    x = np.random.default_rng(1).integers(0, high, (5, 40)).astype(dtype)
    found = poolkit.pool(x, Global(), BiInteraction(), ndim=1)[:, 0]
    assert found.dtype == np.float32
    right = [pairs(row) for row in x.astype(np.int64)]
    np.testing.assert_array_equal(found, np.array(right, dtype=np.float32))


@pytest.mark.parametrize("channels", [1, 40])
def test_does_not_cancel(channels: int) -> None:
    """One value ten million times as large as the others: of the square of the sum less the sum of
    the squares nothing is left."""
    line = np.array([1e7, 0.25, 0.5, -0.125], dtype=np.float32)
    x = np.repeat(line[:, None], channels, axis=1)
    exact = pairs(line)  # 1e7 * 0.625 + 0.25 * 0.5 - 0.25 * 0.125 - 0.5 * 0.125
    found = poolkit.pool(x, Global(), BiInteraction(), ndim=1, channels_last=True)[0]
    np.testing.assert_array_equal(found, np.float32(exact))
    usual = (x.sum(0) ** 2 - (x * x).sum(0)) / 2
    assert np.abs(usual - exact).min() > 1e5


def test_what_is_not_finite() -> None:
    for values in ([math.nan], [1.0, math.nan, 2.0], [math.inf], [math.inf, 0.0], [-math.inf, 3.0]):
        x = np.array(values)
        assert np.isnan(poolkit.pool(x, Global(), BiInteraction())).all()
        assert math.isnan(reduce_reference("BiInteraction", list(x), len(x)))
    # Finite values whose products are too large.
    x = np.full((1, 70), 1e30, dtype=np.float32)
    assert np.isposinf(poolkit.pool(x, Global(), BiInteraction(), ndim=1)).all()


def test_bags() -> None:
    x = np.arange(1.0, 8.0)[:, None] * [[1.0, -2.0]]
    # 1*2 = 2; nothing; 3 alone; 4*5 + 4*6 + 4*7 + 5*6 + 5*7 + 6*7 = 179. Twice the values: 4 times.
    found = poolkit.pool(x, Segments(offsets=[0, 2, 2, 3, 7]), BiInteraction())
    np.testing.assert_array_equal(found, [[2, 8], [0, 0], [0, 0], [179, 716]])
    shuffled = Segments(ids=[3, 0, 3, 2, 3, 0, 3])
    found = poolkit.pool(x[[3, 0, 4, 2, 5, 1, 6]], shuffled, BiInteraction())
    np.testing.assert_array_equal(found, [[2, 8], [0, 0], [0, 0], [179, 716]])


@pytest.mark.skipif(not NATIVE, reason="built without its kernel")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_kernel_has_the_same_bits_everywhere(dtype: str) -> None:
    """Also where sums overflow on the way, and for lines that do not fill the lanes."""
    random = np.random.default_rng(3)
    for count in (1, 5, 31, 33, 65, 100, 1000):
        for inner in (1, 3, 17, 64, 130):
            x = random.standard_normal((2, count, inner))
            if dtype == "float32" and count > 60:
                x[0] *= 2e37
            x = x.astype(dtype)
            plan = plan_for(Global(), BiInteraction(), (count,), dtype)
            results = []
            for isa in poolkit.info()["available"]:
                poolkit.use_isa(isa)
                out = np.empty((2, 1, inner), dtype=dtype)
                plan.native.forward(x.ctypes.data, out.ctypes.data, 0, 2, inner, 1)
                results.append(np.where(np.isnan(out), np.array(np.nan, dtype), out).tobytes())
            assert len(set(results)) == 1, (count, inner)


def test_torch_half_types_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = poolkit.pool(x, Global(), BiInteraction(), ndim=1, channels_last=True)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        found = poolkit.pool(half, Global(), BiInteraction(), ndim=1, channels_last=True)
        exact = poolkit.pool(half.double(), Global(), BiInteraction(), ndim=1, channels_last=True)
        assert found.dtype == dtype
        torch.testing.assert_close(found, exact.to(dtype), rtol=0, atol=1e-2)
        torch.testing.assert_close(found.double(), right, rtol=0.1, atol=0.1)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(
        poolkit.pool(x, Global(), BiInteraction(), ndim=1, channels_last=True).sum(), x
    )
    torch.testing.assert_close(grad, x.detach().sum(1, keepdim=True) - x.detach())
    for window in (Sliding(3, stride=2, padding=1), Segments(lengths=[9, 0, 4])):
        assert torch.autograd.gradcheck(
            lambda x, window=window: poolkit.pool(x, window, BiInteraction()), x, fast_mode=True
        )


def test_in_whole_arrays() -> None:
    """The path without a kernel says the same, and adds nothing to its own bits."""
    x = np.random.default_rng(5).standard_normal((4, 50, 6)).astype(np.float32)
    plan = plan_for(Sliding(7, stride=3), BiInteraction(), (50,), "float32")
    slow = composite(x, plan.axes, BiInteraction(), channels_last=True)
    found = poolkit.pool(x, Sliding(7, stride=3), BiInteraction(), channels_last=True)
    np.testing.assert_allclose(found, slow, rtol=2e-5, atol=2e-6)
