"""Between the average and the maximum: values by hand, limits, learned exponents."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import poolkit

torch = pytest.importorskip("torch")

X = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)


def test_by_hand() -> None:
    # Σ x e^x / Σ e^x, (Σ x^3 / 4)^(1/3) = 25^(1/3), log of the mean of e^x, and ranks.
    e = [math.exp(v) for v in (1, 2, 3, 4)]
    soft = sum(v * w for v, w in zip((1, 2, 3, 4), e, strict=True)) / sum(e)
    assert poolkit.soft_pool2d(X, 2).item() == pytest.approx(soft)
    assert poolkit.gem_pool2d(X, 2, p=3.0).item() == pytest.approx(25 ** (1 / 3))
    assert poolkit.lse_pool2d(X, 2).item() == pytest.approx(math.log(sum(e) / 4))
    assert poolkit.median_pool2d(X, 2).item() == 2.5
    assert poolkit.quantile_pool2d(X, 2, q=1.0).item() == 4
    assert poolkit.std_pool2d(X, 2).item() == pytest.approx(math.sqrt(1.25))
    assert poolkit.top_k_pool2d(X, 2, k=2).item() == 3.5


@given(st.lists(st.floats(0.125, 8), min_size=4, max_size=4))
def test_lie_between_average_and_maximum(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2)
    low, high = x.mean().item() - 1e-9, x.max().item() + 1e-9
    normalized = poolkit.lp_pool2d(x, 3.0, 2).item() / 4 ** (1 / 3)
    for found in (
        poolkit.soft_pool2d(x, 2).item(),
        poolkit.gem_pool2d(x, 2, p=2.5).item(),
        poolkit.lse_pool2d(x, 2, r=1.5).item(),
        normalized,
    ):
        assert low <= found <= high


def test_limits() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64) + 0.5
    mean, most = poolkit.avg_pool2d(x, 2), poolkit.max_pool2d(x, 2)
    torch.testing.assert_close(poolkit.gem_pool2d(x, 2, p=1.0), mean)
    torch.testing.assert_close(poolkit.gem_pool2d(x, 2, p=2000.0), most, rtol=1e-3, atol=0)
    torch.testing.assert_close(poolkit.lse_pool2d(x, 2, r=1e-3), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(poolkit.lse_pool2d(x, 2, r=5000.0), most, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(poolkit.soft_pool2d(x, 2, beta=1e-6), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_values_are_finite(dtype: Any) -> None:
    x = torch.full((1, 1, 4, 4), 30000.0, dtype=dtype)
    x[..., 0, 0] = -30000.0
    for found in (
        poolkit.soft_pool2d(x, 2),
        poolkit.lse_pool2d(x, 2),
        poolkit.gem_pool2d(x, 2, p=3.0),
        poolkit.nn.GeMPool2d(p=8.0)(x),
        poolkit.nn.LSEPool2d(2, r=4.0)(x),
    ):
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_learned_exponents() -> None:
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    for module in (
        poolkit.nn.GeMPool2d(per_channel=True, channels=3),
        poolkit.nn.GeMPool2d(2, p=2.0),
        poolkit.nn.LSEPool2d(2, r=2.0, learned=True),
    ):
        module.double()
        name, parameter = next(iter(module.named_parameters()))

        def run(x: Any, value: Any, module: Any = module, name: str = name) -> Any:
            return torch.func.functional_call(module, {name: value}, (x,))

        assert torch.autograd.gradcheck(run, (x, parameter))
    fixed = poolkit.nn.GeMPool2d(2, p=4.0, learned=False)
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed(x), poolkit.gem_pool2d(x, 2, p=4.0))
    # One exponent for each channel: p = 1 is the mean of that channel.
    module = poolkit.nn.GeMPool2d(per_channel=True, channels=3).double()
    with torch.no_grad():
        module.p.copy_(torch.tensor([1.0, 2.0, 3.0]))
    found = module(x)
    torch.testing.assert_close(found[:, 0, 0, 0], x[:, 0].mean((1, 2)))
    torch.testing.assert_close(found[:, 1, 0, 0], x[:, 1].square().mean((1, 2)).sqrt())


def test_errors() -> None:
    with pytest.raises(poolkit.PoolError, match="channels"):
        poolkit.nn.GeMPool2d(per_channel=True)
    with pytest.raises(poolkit.PoolError, match=r"p must be .*above 0"):
        poolkit.gem_pool2d(X, 2, p=0.0)
    with pytest.raises(poolkit.PoolError, match="gem_pool2d"):
        poolkit.gem_pool2d(X[0, 0, 0], 2)
