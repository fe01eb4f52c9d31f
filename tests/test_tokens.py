"""Pooling of tokens: class tokens apart, masked ones without influence, and back again."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from poolkit import PoolError, PoolTypeError, PoolValueError  # noqa: E402
from poolkit.sequences.tokens import TokenPool, token_pool, token_unpool  # noqa: E402

REDUCED = ["mean", "max", "min", "sum"]


def slow(
    x: Any, kernel: int, stride: int, mask: Any, class_tokens: int, reduction: str
) -> tuple[Any, Any]:
    """Window by window, in float64."""
    batch, length, channels = x.shape
    starts = range(class_tokens, length, stride)
    out = torch.zeros(batch, class_tokens + len(starts), channels, dtype=torch.float64)
    there = torch.zeros(batch, class_tokens + len(starts), dtype=torch.bool)
    out[:, :class_tokens] = x[:, :class_tokens].double()
    there[:, :class_tokens] = mask[:, :class_tokens]
    for n in range(batch):
        for p, start in enumerate(starts, class_tokens):
            kept = [t for t in range(start, min(start + kernel, length)) if mask[n, t]]
            if kept:
                window = x[n, kept].double()
                out[n, p] = {
                    "mean": lambda w: w.mean(0),
                    "max": lambda w: w.amax(0),
                    "min": lambda w: w.amin(0),
                    "sum": lambda w: w.sum(0),
                }[reduction](window)
                there[n, p] = True
    return out, there


@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 2), (4, 4), (1, 3), (9, 2)])
@pytest.mark.parametrize("class_tokens", [0, 1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_one_by_one(
    reduction: str, kernel: int, stride: int, class_tokens: int, masked: bool
) -> None:
    torch.manual_seed(kernel)
    for length in (class_tokens, class_tokens + 1, 8, 13):
        x = torch.randn(2, length, 3)
        mask = torch.rand(2, length) < 0.5 if masked else torch.ones(2, length, dtype=torch.bool)
        right, there = slow(x, kernel, stride, mask, class_tokens, reduction)
        given = mask if masked else None
        found, found_there = token_pool(x, kernel, stride, given, class_tokens, reduction)
        torch.testing.assert_close(found, right.float())
        assert torch.equal(found_there, there) if masked else found_there is None


def test_by_hand() -> None:
    # After the class token 9: (1 + 3) / 2 = 2, (5 + 7) / 2 = 6, and 8 alone.
    x = torch.tensor([9.0, 1.0, 3.0, 5.0, 7.0, 8.0])[None, :, None]
    assert token_pool(x, 2, class_tokens=1)[0].flatten().tolist() == [9, 2, 6, 8]
    # Without 3 and 7 the means are 1 and 5; the last window has nothing.
    mask = torch.tensor([[1, 1, 0, 1, 0, 0]])
    pooled, there = token_pool(x, 2, mask=mask, class_tokens=1)
    assert pooled.flatten().tolist() == [9, 1, 5, 0]
    assert there is not None
    assert there.tolist() == [[True, True, True, False]]
    # Three tokens wide, two apart: (1 + 3 + 5) / 3, (5 + 7 + 8) / 3, 8.
    pooled = token_pool(x, 3, 2, class_tokens=1)[0]
    torch.testing.assert_close(pooled.flatten(), torch.tensor([9, 3, 20 / 3, 8]))
    # Back: t // 2, and the tokens from before on top.
    assert token_unpool(torch.tensor([[[9.0], [2], [6], [8]]]), 6, 2, 1).flatten().tolist() == [
        9, 2, 2, 6, 6, 8,
    ]  # fmt: skip
    residual = torch.ones(1, 6, 1)
    assert token_unpool(torch.tensor([[[9.0], [2], [6], [8]]]), 6, 2, 1, residual).sum() == 39


@pytest.mark.parametrize("class_tokens", [0, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_unpooling_is_the_adjoint_and_the_right_inverse(class_tokens: int, stride: int) -> None:
    torch.manual_seed(stride)
    for length in (class_tokens, 7, 12):
        x = torch.randint(-9, 9, (2, length, 4)).double()
        pooled = token_pool(x, stride, class_tokens=class_tokens, reduction="sum")[0]
        y = torch.randint(-9, 9, pooled.shape).double()
        back = token_unpool(y, length, stride, class_tokens)
        assert (pooled * y).sum() == (x * back).sum()  # whole numbers: exact
        for reduction in ("mean", "max"):
            again = token_pool(back, stride, class_tokens=class_tokens, reduction=reduction)[0]
            torch.testing.assert_close(again, y)


def test_padding_has_no_influence() -> None:
    x = torch.randn(1, 6, 2)
    mask = torch.tensor([[True, True, True, False, False, False]])
    spoilt = x.masked_fill(~mask[..., None], float("nan"))
    for reduction in REDUCED:
        found = token_pool(spoilt, 2, mask=mask, reduction=reduction)[0]
        assert torch.equal(found, token_pool(x, 2, mask=mask, reduction=reduction)[0])
        assert torch.isfinite(found).all()
        leaf = spoilt.clone().requires_grad_()
        token_pool(leaf, 2, mask=mask, reduction=reduction)[0].sum().backward()
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[:, 3:] == 0).all()
    x[0, 0, 0] = float("nan")  # but a NaN that is there is kept
    assert torch.isnan(token_pool(x, 2, mask=mask)[0][0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(dtype: Any) -> None:
    torch.manual_seed(0)
    x = (30000 + 30000 * torch.rand(2, 600, 3)).to(dtype)  # a sum of two overflows float16
    mask = torch.rand(2, 600) < 0.7
    for given in (None, mask):
        found, _ = token_pool(x, 300, mask=given)
        assert found.dtype == dtype
        full = mask if given is not None else torch.ones_like(mask)
        right = slow(x, 300, 300, full, 0, "mean")[0]
        torch.testing.assert_close(found, right.to(dtype), rtol=1e-3 if dtype == torch.float16 else
                                   8e-3, atol=0)  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCED)
def test_gradients(reduction: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 7) < 0.6
    for given in (None, mask):
        assert torch.autograd.gradcheck(
            lambda x, m=given: token_pool(x, 3, 2, m, 1, reduction)[0], x
        )
    assert torch.autograd.gradcheck(lambda x: token_unpool(x, 12, 2, 1, torch.ones(2, 12, 2)), x)


def test_module() -> None:
    module = TokenPool(3, 2, class_tokens=1, reduction="max")
    assert repr(module) == ("TokenPool(kernel_size=3, stride=2, class_tokens=1, reduction=Max())")
    x = torch.randn(2, 11, 4)
    found, there = copy.deepcopy(module)(x)
    assert there is None
    assert torch.equal(found, token_pool(x, 3, 2, None, 1, "max")[0])
    assert module.unpool(found, 11, residual=x).shape == x.shape
    assert module.state_dict() == {}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    mask = torch.rand(2, 11) < 0.5
    torch.testing.assert_close(compiled(x, mask)[0], module(x, mask)[0])
    assert module(x[:0], mask[:0])[0].shape == (0, 6, 4)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(module(turned)[0], found)
    # A part of projected tokens, as attention has it, is pooled to what its fast kernels take.
    assert TokenPool(2)(torch.randn(1, 8, 12).chunk(3, -1)[1])[0].is_contiguous()
    assert TokenPool(2, reduction="median")(x)[0].shape == (2, 6, 4)


X = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: token_pool(X[0], 2), r"tokens have the shape .*got rank 2, while pooling float32"),
        (lambda: token_pool(X.long(), 2), "tokens must be floating, got torch.int64"),
        (lambda: token_pool([1.0], 2), "tokens must be a torch tensor, got list"),
        (lambda: token_pool(X, 0), "kernel_size must be at least 1, got 0"),
        (lambda: token_pool(X, 2, 1.5), "stride must be an integer, got 1.5"),
        (lambda: token_pool(X, 2, class_tokens=5), "5 class tokens among 4 tokens"),
        (lambda: token_pool(X, 2, class_tokens=True), "class_tokens must be an integer"),
        (lambda: token_pool(X, 2, mask=X[..., 0].bool().T), r"the mask has shape \(4, 2\)"),
        (lambda: token_pool(X, 2, mask=X[..., 0]), "a mask holds bools, or 0 and 1, got torch.fl"),
        (lambda: token_pool(X, 2, mask=[[1] * 4] * 2), "a mask must be a torch tensor, got list"),
        (lambda: token_pool(X, 2, mask=X[..., 0].bool(), reduction="std"), "not pooled by Std"),
        (lambda: token_unpool(X, 9, 2), "9 tokens, .* were 5 after pooling by 2, not 4"),
        (lambda: token_unpool(X, 8, 2, residual=X), "the residual is float32"),
        (lambda: TokenPool(2, class_tokens=-1), "class_tokens must be at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert isinstance(caught.value, (PoolValueError, PoolTypeError))
    assert caught.value.instead
