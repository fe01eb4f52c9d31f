"""Poolings by rank, by vote and by learned place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

X = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]]])


def test_ranks_by_hand() -> None:
    # Ranks 4, 3, 2, 1: the mean of the top 3; weights 1/2, 1/4, 1/8, 1/16 unnormalised.
    assert poolkit.rank_pool2d(X, 2, mode="average", top=3).item() == pytest.approx(3)
    assert poolkit.rank_pool2d(X, 2, mode="weighted", alpha=0.5).item() == pytest.approx(
        4 / 2 + 3 / 4 + 2 / 8 + 1 / 16
    )
    assert poolkit.rank_pool2d(X, 2, mode="average", top=1).item() == 4
    assert poolkit.rank_pool2d(X, 2, mode="average", top=4).item() == 2.5


def test_ordinal() -> None:
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    pool = poolkit.nn.OrdinalPool2d(3, 3, 2, 1).double()
    mean = poolkit.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(pool(x), mean)
    with torch.no_grad():
        pool.weight.zero_()
        pool.weight[:, 0] = 200
    torch.testing.assert_close(pool(x), poolkit.max_pool2d(x, 3, 2, 1))
    # The weights are a softmax over ranks, the largest first.
    inside = poolkit.nn.OrdinalPool2d(None, 3).double()
    torch.nn.init.normal_(inside.weight)
    taps = x.unfold(2, 3, 3).unfold(3, 3, 3).flatten(-2).sort(-1, descending=True).values
    torch.testing.assert_close(inside(x), (taps * inside.weight.softmax(-1)[0]).sum(-1))
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(inside, {"weight": w}, (x,)),
        (leaf[:1, :1, :6, :6].detach().requires_grad_(), inside.weight),
    )


def test_stochastic_ranks() -> None:
    x = X.expand(4000, 1, 2, 2)
    draw = torch.Generator().manual_seed(0)
    found = poolkit.rank_pool2d(x, 2, mode="stochastic", alpha=0.5, training=True, generator=draw)
    share = [(found == value).double().mean().item() for value in (4, 3, 2, 1)]
    want = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16]) / (15 / 16)
    np.testing.assert_allclose(share, want, atol=0.03)
    again = poolkit.rank_pool2d(
        x, 2, mode="stochastic", alpha=0.5, training=True, generator=draw.manual_seed(0)
    )
    assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool], ids=str)
def test_mode(dtype: Any) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 2 if dtype == torch.bool else 4, (2, 3, 9, 9)).to(dtype)
    found = poolkit.mode_pool2d(x, 3, 3)
    taps = x.unfold(2, 3, 3).unfold(3, 3, 3).flatten(-2)
    assert found.dtype == dtype
    for at in np.ndindex(*found.shape):
        values, counts = taps[at].unique(return_counts=True)  # ascending
        assert found[at] == values[counts.argmax()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
def test_mode_compiles_whole() -> None:
    x = torch.rand(1, 2, 6, 6).round(decimals=1)
    compiled = torch.compile(
        lambda x: poolkit.mode_pool2d(x, 3), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), poolkit.mode_pool2d(x, 3))
    leaf = x.requires_grad_()
    assert torch.equal(compiled(leaf), poolkit.mode_pool2d(x, 3))


def test_leap() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    pool = poolkit.nn.LEAPPool2d(3, 2).double()
    torch.testing.assert_close(pool(x), poolkit.avg_pool2d(x, 2))
    torch.nn.init.normal_(next(pool.parameters()))
    pool(x.requires_grad_()).sum().backward()
    assert next(pool.parameters()).grad.abs().max() > 0


def test_errors() -> None:
    with pytest.raises(poolkit.PoolError, match="channels"):
        poolkit.nn.OrdinalPool2d(3, 2)(torch.rand(1, 2, 4, 4))
    with pytest.raises(poolkit.PoolError, match="alpha"):
        poolkit.rank_pool2d(X, 2, alpha=2.0)
    with pytest.raises(poolkit.PoolError, match="top"):
        poolkit.rank_pool2d(X, 2, mode="average", top=9)
