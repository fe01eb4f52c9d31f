"""Merging of similar tokens: pairs from the paper's matching, sizes tracked, sums kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from poolkit import PoolError, PoolTypeError, PoolValueError  # noqa: E402
from poolkit.sequences.merging import TokenMerge, token_merge, token_unmerge  # noqa: E402


def tokens(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(x: Any, r: int, metric: Any, sizes: list[float], class_tokens: int) -> tuple[Any, Any]:
    """One row without padding, pair by pair: its groups of tokens in order, and what they are."""
    length = len(x)
    rest = list(range(class_tokens, length))
    a, b = rest[::2], rest[1::2]
    edges = []
    for i in a:
        cosines = [float(F.cosine_similarity(metric[i], metric[j], dim=0)) for j in b]
        if cosines:
            edges.append((-max(cosines), i, b[cosines.index(max(cosines))]))
    groups = {t: [t] for t in range(length)}
    for _, i, j in sorted(edges)[: min(r, len(rest) // 2)]:
        groups[j].append(i)
        del groups[i]
    out = []
    for t in sorted(groups):
        weights = torch.tensor([sizes[u] for u in groups[t]], dtype=x.dtype)
        values = torch.stack([x[u] for u in groups[t]])
        out.append((weights[:, None] * values).sum(0) / weights.sum())
    return [groups[t] for t in sorted(groups)], torch.stack(out)


@pytest.mark.parametrize("class_tokens", [0, 1, 2])
@pytest.mark.parametrize("length", [2, 3, 9, 16])
@pytest.mark.parametrize("r", [0, 1, 4, 100])
def test_pair_by_pair(class_tokens: int, length: int, r: int) -> None:
    x, metric = tokens(2, length, 3).double(), tokens(2, length, 5, seed=1).double()
    sizes = torch.randint(1, 5, (2, length)).float()
    found = token_merge(x, r, metric, sizes, class_tokens)
    merged = min(r, (length - class_tokens) // 2)
    assert found.tokens.shape == (2, length - merged, 3)
    assert found.mask is None
    for n in range(2):
        groups, right = slow(x[n], r, metric[n], sizes[n].tolist(), class_tokens)
        torch.testing.assert_close(found.tokens[n], right)
        assert found.sizes[n].tolist() == [sum(sizes[n, u].item() for u in g) for g in groups]
        source = found.source[n].tolist()
        assert all(source[u] == place for place, group in enumerate(groups) for u in group)
        assert source[:class_tokens] == list(range(class_tokens))


def test_by_hand() -> None:
    # A: (1, 0), (0, 1), (2, 2); B: (3, 0), (1, 1). Cosines: (1, 0) with (3, 0) is 1, (2, 2) with
    # (1, 1) is 1, (0, 1) with (1, 1) is 0.71. Two pairs merge: the first and the last.
    x = torch.tensor([[[1.0, 0], [3, 0], [0, 1], [1, 1], [2, 2]]])
    found = token_merge(x, 2, class_tokens=0)
    assert found.tokens.tolist() == [[[2, 0], [0, 1], [1.5, 1.5]]]
    assert found.sizes.tolist() == [[2, 1, 2]]
    assert found.source.tolist() == [[0, 0, 1, 2, 2]]
    # (2, 0) of two and (1.5, 1.5) of two have the cosine 0.71, (0, 1) and either at most that; A is
    # the first and the last, B the second: (1.5, 1.5) goes there, (2 * 1.5 + 0) / 3 and 4 / 3.
    again = token_merge(found.tokens, 1, sizes=found.sizes, class_tokens=0)
    torch.testing.assert_close(again.tokens, torch.tensor([[[2, 0], [1, 4 / 3]]]))
    assert again.sizes.tolist() == [[2, 3]]
    back = token_unmerge(token_unmerge(again.tokens, again.source), found.source)
    assert torch.equal(back[0], again.tokens[0, [0, 0, 1, 1, 1]])


def test_equal_tokens_merge_in_order() -> None:
    # All alike: every token of A goes to the first of B, and the first of A go first.
    found = token_merge(torch.ones(1, 9, 2), 2)
    assert found.source.tolist() == [[0, 1, 1, 1, 2, 3, 4, 5, 6]]
    assert torch.equal(found.tokens, torch.ones(1, 7, 2))
    assert torch.equal(token_merge(torch.ones(1, 9, 2), 2).source, found.source)


@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_kept_and_what_is_not_merged_has_its_bits(masked: bool) -> None:
    x = tokens(3, 41, 6)
    mask = tokens(3, 41, seed=4) > -0.5 if masked else None
    merge = TokenMerge(8)
    state: Any = None
    total = x.sum(1) if mask is None else (x * mask[..., None]).sum(1)
    for _ in range(3):
        before = x if state is None else state.tokens
        state = merge(
            before,
            sizes=None if state is None else state.sizes,
            mask=mask if state is None else state.mask,
        )
        torch.testing.assert_close((state.tokens * state.sizes[..., None]).sum(1), total,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
        for n in range(3):
            source = state.source[n]
            alone = (source[:, None] == source).sum(1) == 1
            alone &= source >= 0
            assert torch.equal(state.tokens[n, source[alone]], before[n, alone])
    assert state.tokens.shape == (3, 41 - 24, 6)
    there = 41.0 if mask is None else mask.sum(1).float()
    assert (state.sizes.sum(1) == there).all()


@pytest.mark.parametrize("left", [False, True])
def test_padding_never_merges_and_its_side_does_not_matter(left: bool) -> None:
    lengths = [0, 1, 2, 7, 12]
    alone = [tokens(1, n, 4, seed=n) for n in lengths]
    x = torch.full((5, 12, 4), float("nan"))
    mask = torch.zeros(5, 12, dtype=torch.bool)
    for n, part in enumerate(alone):
        where = slice(12 - lengths[n], 12) if left else slice(0, lengths[n])
        x[n, where], mask[n, where] = part[0], True
    found = token_merge(x, 3, class_tokens=0, mask=mask)
    assert found.tokens.shape == (5, 9, 4)
    assert torch.isfinite(found.tokens).all()
    for n, part in enumerate(alone):
        right = token_merge(part, 3, class_tokens=0)
        kept = right.tokens.shape[1]
        torch.testing.assert_close(found.tokens[n, :kept], right.tokens[0])
        assert found.mask[n].tolist() == [True] * kept + [False] * (9 - kept)
        assert found.sizes[n].tolist() == right.sizes[0].tolist() + [0.0] * (9 - kept)
        assert found.source[n][mask[n]].tolist() == right.source[0].tolist()
        assert (found.source[n][~mask[n]] == -1).all()
    back = token_unmerge(found.tokens, found.source)
    assert back.shape == x.shape
    assert (back[~mask] == 0).all()


def test_proportional_attention_counts_what_was_merged() -> None:
    # Pairs of equal tokens merge exactly; with log(size) attention cannot tell.
    x = tokens(2, 6, 8).repeat_interleave(2, 1)
    x = torch.cat([tokens(2, 1, 8, seed=2), x], 1)
    merged = token_merge(x, 6)
    assert merged.sizes.tolist() == [[1.0] + [2.0] * 6] * 2
    query = x[:, None]
    few = merged.tokens[:, None]
    full = F.scaled_dot_product_attention(query, query, query)
    found = F.scaled_dot_product_attention(query, few, few, attn_mask=merged.attention_bias())
    torch.testing.assert_close(found, full, rtol=1e-5, atol=1e-6)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 3:] = False
    merged = token_merge(x, 2, mask=mask)
    few = merged.tokens[:, None]
    found = F.scaled_dot_product_attention(query, few, few, attn_mask=merged.attention_bias())
    seen = mask[:, None, None]
    full = F.scaled_dot_product_attention(query, query, query, attn_mask=seen)
    torch.testing.assert_close(found, full, rtol=1e-5, atol=1e-6)


def test_similarities_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = tokens(2, 33, 4), tokens(2, 33) > 0
    right = token_merge(x, 9, mask=mask)
    monkeypatch.setattr("poolkit.sequences.merging.SIMILARITIES", 70)
    found = token_merge(x, 9, mask=mask)
    torch.testing.assert_close(found.tokens, right.tokens)
    assert torch.equal(found.source, right.source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: Any) -> None:
    x = (20000 * tokens(2, 20, 4).clamp(-3, 3)).to(dtype)  # sums overflow float16
    right, found = token_merge(x.double(), 8), token_merge(x, 8)
    assert found.tokens.dtype == dtype
    assert found.sizes.dtype == torch.float32
    assert torch.equal(found.source, right.source)
    torch.testing.assert_close(found.tokens, right.tokens.to(dtype), rtol=8e-3, atol=1)


def test_gradients() -> None:
    x = tokens(2, 9, 3).double().requires_grad_()
    metric, mask = tokens(2, 9, 3, seed=1), tokens(2, 9) > -0.5
    for given in (None, mask):
        assert torch.autograd.gradcheck(
            lambda x, m=given: token_merge(x, 3, metric, mask=m).tokens, x
        )
        merged = token_merge(x, 3, metric, mask=given)
        assert not merged.sizes.requires_grad
        assert torch.autograd.gradcheck(lambda t, s=merged.source: token_unmerge(t, s),
                                        merged.tokens.detach().requires_grad_())  # fmt: skip


def test_module() -> None:
    module = TokenMerge(3, class_tokens=0)
    assert repr(module) == "TokenMerge(r=3, class_tokens=0)"
    x, mask = tokens(2, 9, 4), tokens(2, 9) > 0
    right = module(x, mask=mask)
    assert torch.equal(copy.deepcopy(module)(x, mask=mask).tokens, right.tokens)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask).tokens, right.tokens)
    assert module.unmerge(right.tokens, right.source).shape == x.shape
    assert module(x[:0]).tokens.shape == (0, 6, 4)
    assert module(x[:, :0]).tokens.shape == (2, 0, 4)
    assert torch.equal(TokenMerge(0)(x).tokens, x)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(module(turned).tokens, module(x).tokens)


X = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: token_merge(X[0], 1), "got rank 2, while pooling float32 .* by token_merge"),
        (lambda: token_merge(X, -1), "r must be at least 0, got -1"),
        (lambda: token_merge(X, 0.5), "r must be an integer, got 0.5"),
        (lambda: token_merge(X, 1, X[:1]), r"the metric has shape \(1, 4, 3\)"),
        (lambda: token_merge(X, 1, X.int()), "metrics must be floating"),
        (lambda: token_merge(X, 1, sizes=X), "the sizes are float32"),
        (lambda: token_merge(X, 1, class_tokens=9), "9 class tokens among 4 tokens"),
        (lambda: token_merge(X, 1, mask=X[0].bool()), r"the mask has shape \(4, 3\)"),
        (lambda: token_unmerge(X, X[..., 0]), "the source must be an int64 tensor"),
        (lambda: token_unmerge(X, X[:1, :, 0].long()), "the source has 1 rows, the tokens 2"),
        (lambda: TokenMerge("4"), "r must be an integer, got '4'"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert isinstance(caught.value, (PoolValueError, PoolTypeError))
    assert caught.value.instead
