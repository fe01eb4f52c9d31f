"""Attention over pooled tokens: exact where nothing is pooled, and never a look ahead."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from poolkit import PoolError, PoolTypeError, PoolValueError  # noqa: E402
from poolkit.sequences.pooled_attention import (  # noqa: E402
    BlockMeanKV,
    PooledAttention,
    block_mean_attention,
)
from poolkit.sequences.tokens import token_pool  # noqa: E402

POOLS, MODES = ["query", "kv", "qkv"], ["mean", "max", "conv"]


def tokens(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- PooledAttention -----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_stride_one_is_torchs_attention(pool: str, mode: str, grid: Any) -> None:
    theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True).eval()
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours = PooledAttention(24, 4, pool, 1, mode=mode, ndim=2 if grid else 1).eval()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("pool_weight") for key in missing.missing_keys)
    x = tokens(2, 12, 24)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    torch.testing.assert_close(ours(x, grid=grid)[0], theirs(x, x, x)[0], rtol=1e-5, atol=1e-6)
    found, there = ours(x, mask, grid)
    assert torch.equal(there, mask)
    right = theirs(x, x, x, key_padding_mask=~mask)[0]
    torch.testing.assert_close(found[mask], right[mask], rtol=1e-5, atol=1e-6)


def identity_attention(heads: int, channels: int, **options: Any) -> PooledAttention:
    """Without projections."""
    module = PooledAttention(channels, heads, bias=False, **options)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(channels).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(channels))
    return module


def test_by_hand() -> None:
    # Keys and values 0, 2 and 4, 4 pool to 1 and 4. The query 0 weighs both alike: 2.5.
    # The query 4 has the logits 4 and 16: (1 + 4 e^12) / (1 + e^12).
    x = torch.tensor([0.0, 2.0, 4.0, 4.0])[None, :, None]
    out = identity_attention(1, 1, pool="kv", stride=2)(x)[0].flatten()
    assert out[0] == 2.5
    assert out[2].item() == pytest.approx((1 + 4 * math.exp(12)) / (1 + math.exp(12)))
    # The pooled query 1 over all tokens, and itself on top: e^0, e^2, e^4 twice.
    out = identity_attention(1, 1, pool="query", stride=2, residual_pooling=True)(x)[0].flatten()
    weights = [1, math.exp(2), math.exp(4), math.exp(4)]
    right = sum(w * v for w, v in zip(weights, (0, 2, 4, 4), strict=True)) / sum(weights)
    assert out.shape == (2,)
    assert out[0].item() == pytest.approx(1 + right)


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("pool", POOLS)
def test_is_attention_over_pooled_tokens(pool: str, mode: str) -> None:
    x, mask = tokens(2, 11, 8, seed=3), tokens(2, 11) > -0.5
    mask[:, 0] = True
    found, there = identity_attention(
        2, 8, pool=pool, stride=3, mode=mode, class_tokens=1
    )(x, mask)  # fmt: skip
    small, small_mask = token_pool(x, 3, mask=mask, class_tokens=1, reduction=mode)
    query, queries = (x, mask) if pool == "kv" else (small, small_mask)
    key, keys = (x, mask) if pool == "query" else (small, small_mask)
    split = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (query, key)]
    logits = (split[0] @ split[1].transpose(-1, -2)) / 2
    weights = logits.masked_fill(~keys[:, None, None], float("-inf")).softmax(-1)
    right = (weights @ split[1]).transpose(1, 2).flatten(2)
    assert torch.equal(there, queries)
    torch.testing.assert_close(found[there], right[there], rtol=1e-5, atol=1e-6)


def test_grids_and_windows_of_mvit() -> None:
    # Three wide and two apart, one before: the mean of what is there of 3 x 3, as avg_pool2d.
    x = tokens(1, 1 + 5 * 7, 4)
    module = identity_attention(2, 4, pool="qkv", stride=2, kernel_size=3, class_tokens=1, ndim=2)
    image = x[:, 1:].transpose(1, 2).reshape(1, 4, 5, 7)
    small = F.avg_pool2d(image, 3, 2, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    small = torch.cat([x[:, :1], small], 1)
    split = small.unflatten(-1, (2, 2)).transpose(1, 2)
    right = F.scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2)
    assert module.pooled_grid((5, 7)) == (3, 4)
    torch.testing.assert_close(module(x, grid=(5, 7))[0], right)
    # As a convolution with zeros outside, the same for both heads.
    module = identity_attention(
        2, 4, pool="qkv", stride=2, kernel_size=3, mode="conv", class_tokens=1, ndim=2
    )
    weights = tokens(3, 2, 1, 3, 3)
    for name, weight in zip("qkv", weights, strict=True):
        module.pool_weight[name].data.copy_(weight)
    split = []
    for weight in weights:
        small = F.conv2d(image, weight.repeat(2, 1, 1, 1), None, 2, 1, groups=4)
        small = torch.cat([x[:, :1], small.flatten(2).transpose(1, 2)], 1)
        split.append(small.unflatten(-1, (2, 2)).transpose(1, 2))
    right = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x, grid=(5, 7))[0], right)


def test_convolution_starts_as_the_mean() -> None:
    x = tokens(2, 12, 8)
    mean, conv = PooledAttention(8, 2, stride=3), PooledAttention(8, 2, stride=3, mode="conv")
    conv.load_state_dict(mean.state_dict(), strict=False)
    torch.testing.assert_close(conv(x)[0], mean(x)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pool", POOLS)
def test_masked_tokens_and_rows_without_any(pool: str, mode: str) -> None:
    module = PooledAttention(8, 2, pool, 2, mode=mode, residual_pooling=True)
    mask = torch.tensor([[True] * 5 + [False] * 4, [False] * 9])
    x = tokens(2, 9, 8).masked_fill(~mask[..., None], float("nan")).requires_grad_()
    found, there = module(x, mask)
    assert torch.isfinite(found).all()
    found.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    if mode != "conv":  # shorter by what is not there: the same
        alone = module(x[:1, :5])[0]
        torch.testing.assert_close(found[:1][there[:1]], alone[0], rtol=1e-5, atol=1e-6)
    assert module(x[:0], mask[:0])[0].shape[0] == 0


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_attention(mode: str) -> None:
    module = PooledAttention(4, 2, "qkv", 2, 3, mode, 1, residual_pooling=True).double()
    x = tokens(2, 6, 4).double().requires_grad_()
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    assert torch.autograd.gradcheck(lambda x: module(x, mask)[0], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: Any) -> None:
    module = PooledAttention(8, 2, "qkv", 2, class_tokens=1)
    x, mask = tokens(2, 9, 8), tokens(2, 9) > 0
    right = module(x, mask)[0]
    found = copy.deepcopy(module).to(dtype)(x.to(dtype), mask)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), right, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, mask)[0].dtype == torch.bfloat16
    q = tokens(2, 2, 9, 8).to(dtype)
    right = block_mean_attention(*[q.double()] * 3, 4, mask, True)
    found = block_mean_attention(q, q, q, 4, mask, True)
    torch.testing.assert_close(found.double(), right, rtol=0.05, atol=0.05)


def test_module_survives_saving_and_compiling() -> None:
    module = PooledAttention(8, 2, "qkv", (2, 1), 3, "conv", 1, True, ndim=2, dropout=0.5).eval()
    x, mask = tokens(2, 13, 8), tokens(2, 13) > 0
    right = module(x, mask, (3, 4))[0]
    other = PooledAttention(8, 2, "qkv", (2, 1), 3, "conv", 1, True, ndim=2).eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x, mask, (3, 4))[0], right)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask, (3, 4))[0], right)
    assert not torch.equal(module.train()(x, mask, (3, 4))[0], right)
    assert "pool='qkv', stride=(2, 1), kernel_size=(3, 3), mode='conv'" in repr(module)


# --- Block means ---------------------------------------------------------------------------------


def slow_blocks(
    q: Any, k: Any, v: Any, size: int, mask: Any, causal: bool, local: bool, first: int
) -> Any:
    """Query by query, each token a key of its own: those of other blocks replaced by their mean."""
    out = torch.zeros_like(v)
    batch, _, length, depth = q.shape
    for n in range(batch):
        for t in range(length):
            keys, values = [], []
            for u in range(length):
                if not mask[n, u] or (causal and u > t):
                    continue
                block_of_t, block_of_u = ((w - first) // size if w >= first else -1 for w in (t, u))
                if u < first or (local and block_of_u == block_of_t):
                    keys.append(k[n, :, u])
                    values.append(v[n, :, u])
                else:
                    start = first + block_of_u * size
                    block = [w for w in range(start, min(start + size, length)) if mask[n, w]]
                    keys.append(k[n, :, block].mean(1))
                    values.append(v[n, :, block].mean(1))
            if keys:
                weights = (torch.stack(keys, 1) @ q[n, :, t, :, None]) / math.sqrt(depth)
                out[n, :, t] = (weights.softmax(1) * torch.stack(values, 1)).sum(1)
    return out


@pytest.mark.parametrize(("causal", "local"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("size", [1, 3, 4, 20])
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("gathered", [1, 2**22])
def test_blocks_query_by_query(
    causal: bool, local: bool, size: int, first: int, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit.sequences.pooled_attention.GATHERED", gathered)
    q, k, v = tokens(3, 2, 2, 13, 4, seed=size).double().unbind()
    for mask in (torch.ones(2, 13, dtype=torch.bool), tokens(2, 13, seed=5) > 0):
        right = slow_blocks(q, k, v, size, mask, causal, local, first)
        options = {"causal": causal, "local": local, "class_tokens": first}
        found = block_mean_attention(q, k, v, size, mask, **options)
        torch.testing.assert_close(found, right)
        if mask.all():
            again = block_mean_attention(q, k, v, size, None, **options)
            torch.testing.assert_close(again, found)


def test_blocks_by_hand() -> None:
    # Blocks (0, ln 3), (ln 2, ln 2): the first query is 0, so all keys weigh alike: its own two
    # tokens and twice the mean of the other block, and the values say 1, 2 and (5 + 7) / 2 twice.
    k = torch.tensor([0, math.log(3), math.log(2), math.log(2)])[None, None, :, None]
    v = torch.tensor([1.0, 2.0, 5.0, 7.0])[None, None, :, None]
    q = torch.tensor([0.0, 1.0, 1.0, 1.0])[None, None, :, None]
    out = block_mean_attention(q, k, v, 2).flatten()
    assert out[0].item() == pytest.approx((1 + 2 + 6 + 6) / 4)
    # The second is 1: e^k is 1 and 3 in its block, 2 for each of the two others.
    assert out[1].item() == pytest.approx((1 * 1 + 3 * 2 + 4 * 6) / 8)
    # Causal: the first sees itself alone, the third the mean of the first block, e^(ln 3 / 2) of
    # two tokens, and itself.
    out = block_mean_attention(q, k, v, 2, causal=True).flatten()
    assert out[0] == 1
    far = 2 * math.sqrt(3)
    assert out[2].item() == pytest.approx((far * 1.5 + 2 * 5) / (far + 2))


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("length", [32, 29])
def test_equal_keys_in_blocks_are_full_attention(local: bool, length: int) -> None:
    k = tokens(2, 3, 4, 8).repeat_interleave(8, 2)[:, :, :length].double()
    q, v = tokens(2, 2, 3, length, 8, seed=1).double().unbind()
    found = block_mean_attention(q, k, v, 8, local=local)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("size", [1, 16, 40])
def test_blocks_of_one_token_or_of_all_are_full_attention(size: int) -> None:
    q, k, v = tokens(3, 2, 3, 16, 8).unbind()
    for causal in (False, True):
        right = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        found = block_mean_attention(q, k, v, size, causal=causal)
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 4, 32])
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_of_the_future_is_seen(size: int, first: int, masked: bool) -> None:
    q = tokens(1, 2, 14, 4).double().requires_grad_()
    mask = tokens(1, 14, seed=2) > -0.5 if masked else None
    out = block_mean_attention(q, q, q, size, mask, causal=True, class_tokens=first)
    for t in range(14):
        (grad,) = torch.autograd.grad(out[:, :, t].sum(), q, retain_graph=True)
        assert (grad[:, :, t + 1 :] == 0).all()
    # Values far behind may be anything finite: what comes before has the same bits.
    changed = q.detach().clone()
    changed[:, :, 9:] *= 1e6
    again = block_mean_attention(*[changed] * 3, size, mask, causal=True, class_tokens=first)
    assert torch.equal(again[:, :, :9], out[:, :, :9])


def test_block_module() -> None:
    q, k, v = tokens(3, 2, 3, 16, 8).unbind()
    mask = tokens(2, 16) > 0
    module = BlockMeanKV(4, causal=True)
    assert repr(module) == "BlockMeanKV(4, causal=True, local=True, class_tokens=0)"
    right = block_mean_attention(q, k, v, 4, mask, True)
    assert torch.equal(module(q, k, v, mask), right)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, mask), right)
    assert module(q[:0], k[:0], v[:0]).shape == (0, 3, 16, 8)
    assert module(q[:, :, :0], k[:, :, :0], v[:, :, :0]).shape == (2, 3, 0, 8)
    all_apart = BlockMeanKV(4, causal=True, class_tokens=16)(q, k, v)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(all_apart, full, rtol=1e-5, atol=1e-6)
    spoilt = [x.masked_fill(~mask[:, None, :, None], float("nan")) for x in (k, v)]
    assert torch.equal(module(q, *spoilt, mask), right)
    assert (module(q, k, v, mask & False) == 0).all()
    dropped = BlockMeanKV(4, dropout=0.9)
    assert not torch.equal(dropped(q, k, v), dropped(q, k, v))
    assert torch.equal(dropped.eval()(q, k, v), BlockMeanKV(4)(q, k, v))


@pytest.mark.parametrize(("causal", "local"), [(False, True), (True, True), (False, False)])
def test_gradients_of_blocks(causal: bool, local: bool) -> None:
    q, k, v = (x.requires_grad_() for x in tokens(3, 2, 1, 5, 2).double().unbind())
    mask = torch.tensor([[True] * 5, [False, True, True, False, False]])
    assert torch.autograd.gradcheck(
        lambda q, k, v: block_mean_attention(q, k, v, 2, mask, causal, local), (q, k, v)
    )


X, Q = torch.zeros(2, 4, 8), torch.zeros(2, 2, 4, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PooledAttention(8, 3), "8 channels do not divide among 3 heads"),
        (lambda: PooledAttention(8, 2, "keys"), "pool must be one of query, kv, qkv, got 'keys'"),
        (lambda: PooledAttention(8, 2, mode="avg"), "mode must be one of mean, max, conv"),
        (lambda: PooledAttention(8, 2, ndim=3), "ndim must be 1 or 2, got 3"),
        (lambda: PooledAttention(8, 2, stride=(2, 2)), "stride has 2 entries for 1 axes"),
        (lambda: PooledAttention(8, 2, stride=0), "stride must be at least 1, got 0"),
        (lambda: PooledAttention(8, 2, dropout=2), "dropout must be a number from 0 to 1, got 2"),
        (lambda: PooledAttention(8, 2, class_tokens=5)(X), "5 class tokens among 4 tokens"),
        (lambda: PooledAttention(4, 2)(X), r"8 channels, not embed_dim=4, while pooling float32"),
        (lambda: PooledAttention(8, 2)(X, grid=(2, 2)), "a sequence has no grid"),
        (lambda: PooledAttention(8, 2, ndim=2)(X), "need their grid"),
        (lambda: PooledAttention(8, 2, ndim=2)(X, grid=(3, 2)), "grid of 3 x 2 does not hold 4"),
        (lambda: PooledAttention(8, 2)(X, X[:1, :, 0].bool()), r"the mask has shape \(1, 4\)"),
        (lambda: block_mean_attention(Q, Q, Q, 0), "block_size must be at least 1, got 0"),
        (lambda: block_mean_attention(Q, Q[:, :, :3], Q, 2), "are not of the same tokens"),
        (lambda: block_mean_attention(Q[0], Q, Q, 2), "query must be a floating tensor"),
        (lambda: block_mean_attention(Q, Q, [1], 2), "value must be a torch tensor, got list"),
        (lambda: block_mean_attention(Q, Q, Q, 2, causal=True, local=False), "own block as a mean"),
        (lambda: block_mean_attention(Q, Q, Q, 2, X[:, :, 0]), "a mask holds bools"),
        (lambda: block_mean_attention(Q, Q, Q, 2, class_tokens=5), "5 class tokens among 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert isinstance(caught.value, (PoolValueError, PoolTypeError))
    assert caught.value.instead
