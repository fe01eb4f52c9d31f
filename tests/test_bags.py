"""Bags: rows of a table that an index names, pooled where they lie, with all their gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")
F = torch.nn.functional

from poolkit.torch import bags as operators  # noqa: E402

MODES = ["sum", "mean", "sqrt_n", "max", "soft", "attention"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUGH = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}
COUNT = torch.tensor([0, 3, 0, 70, 1, 100, 26, 0])
BEGIN = COUNT.cumsum(0) - COUNT


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows_of(width: int, entries: int = 200, rows: int = 50) -> tuple[Any, Any, Any]:
    index = torch.randint(rows, (entries,), generator=torch.Generator().manual_seed(1))
    return drawn(rows, width), index, drawn(entries, seed=2).abs()


def slow(table: Any, index: Any, offsets: Any, mode: str, weights: Any, query: Any) -> Any:
    """Each bag from the definition, in float64."""
    out = torch.zeros(len(offsets), table.shape[1], dtype=torch.float64)
    ends = [*offsets[1:].tolist(), len(index)]
    for bag, (first, last) in enumerate(zip(offsets.tolist(), ends, strict=True)):
        x = table[index[first:last]].double()
        if not len(x):
            continue
        w = torch.ones(len(x), 1).double() if weights is None else weights[first:last, None]
        if mode == "sum":
            out[bag] = (w * x).sum(0)
        elif mode == "mean":
            out[bag] = (w * x).sum(0) / w.sum()
        elif mode == "sqrt_n":
            out[bag] = (w * x).sum(0) / w.square().sum().sqrt()
        elif mode == "max":
            out[bag] = (w * x).amax(0)
        else:
            scores = x if mode == "soft" else (x @ query)[:, None] / table.shape[1] ** 0.5
            share = w * scores.exp()
            out[bag] = (share * x).sum(0) / share.sum(0)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_against_the_definition(mode: str, weighted: bool) -> None:
    for width in (1, 5, 16, 70):
        table, index, weights = rows_of(width)
        query = drawn(width, seed=3) if mode == "attention" else None
        given = weights if weighted else None
        want = slow(table, index, BEGIN, mode, given, query)
        for dtype in DTYPES:
            found = poolkit.embedding_bag(
                index, table.to(dtype), BEGIN, mode, per_sample_weights=given,
                query=None if query is None else query.to(dtype),
            )  # fmt: skip
            assert found.dtype == dtype
            scale = 30 if dtype in (torch.bfloat16, torch.float16) else 10
            error = (found.double() - want).abs().max()
            assert error <= scale * ROUGH[dtype] * max(1.0, want.abs().max())


def test_by_hand() -> None:
    # Rows (1, 2), (3, -4), (5, 6); bags {0, 2} and {1, 1, 0}.
    table = torch.tensor([[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]])
    index, offsets = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0, 2])

    def pooled(mode: str, **options: Any) -> list[list[float]]:
        return poolkit.embedding_bag(index, table, offsets, mode, **options).tolist()

    assert pooled("sum") == [[6, 8], [7, -6]]
    assert pooled("mean") == [[3, 4], [pytest.approx(7 / 3), -2]]
    assert pooled("max") == [[5, 6], [3, 2]]
    # Weights 1, 3 | 2, 0, 2: (1 + 15, 2 + 18), (6 + 2, -8 + 4); divided by 4 and 4.
    weights = torch.tensor([1.0, 3.0, 2.0, 0.0, 2.0])
    assert pooled("sum", per_sample_weights=weights) == [[16, 20], [8, -4]]
    assert pooled("mean", per_sample_weights=weights) == [[4, 5], [2, -1]]
    assert pooled("max", per_sample_weights=weights) == [[15, 18], [6, 4]]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
@pytest.mark.parametrize("sparse", [False, True])
def test_as_torch(mode: str, padding_idx: int | None, sparse: bool) -> None:
    table, index, weights = rows_of(9)
    mine, theirs = table.clone().requires_grad_(), table.clone().requires_grad_()
    given = weights if mode == "sum" else None
    found = poolkit.embedding_bag(
        index, mine, BEGIN, mode, per_sample_weights=given, padding_idx=padding_idx, sparse=sparse
    )
    want = F.embedding_bag(
        index, theirs, BEGIN, mode=mode, per_sample_weights=given, padding_idx=padding_idx
    )
    torch.testing.assert_close(found, want)
    grad = drawn(*found.shape, seed=9)
    found.backward(grad)
    want.backward(grad)
    assert mine.grad.is_sparse == sparse
    torch.testing.assert_close(mine.grad.to_dense() if sparse else mine.grad, theirs.grad)


def test_gradient_by_frequency() -> None:
    # As torch's Embedding has it: row 0 is named three times, and its gradient is divided by 3.
    # (torch's EmbeddingBag divides the others by 3 too.)
    index, offsets = torch.tensor([0, 0, 1, 2, 0]), torch.tensor([0, 3])
    for sparse in (False, True):
        table = torch.ones(4, 2, requires_grad=True)
        poolkit.embedding_bag(
            index, table, offsets, "sum", scale_grad_by_freq=True, sparse=sparse
        ).sum().backward()
        assert table.grad.to_dense().tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]


def test_every_form_gives_the_same_bits() -> None:
    table, index, weights = rows_of(20)
    table = table.float()
    lengths, most = COUNT, int(COUNT.max())
    padded, mask = torch.full((8, most), 7), torch.zeros(8, most, dtype=torch.bool)
    spread = torch.zeros(8, most, dtype=torch.float64)
    left, left_mask = padded.clone(), mask.clone()
    for bag, (first, n) in enumerate(zip(BEGIN.tolist(), lengths.tolist(), strict=True)):
        padded[bag, :n], mask[bag, :n] = index[first : first + n], True
        spread[bag, :n] = weights[first : first + n]
        left[bag, most - n :], left_mask[bag, most - n :] = index[first : first + n], True
    segments = poolkit.Segments(offsets=[0, *lengths.cumsum(0).tolist()])
    for mode in ("sum", "mean", "sqrt_n", "max", "soft"):
        found = poolkit.embedding_bag(index, table, BEGIN, mode)
        for other in (
            poolkit.embedding_bag(index, table, lengths=lengths, mode=mode),
            poolkit.embedding_bag(padded, table, lengths=lengths, mode=mode),
            poolkit.embedding_bag(padded, table, mask=mask, mode=mode),
            poolkit.embedding_bag(left, table, mask=left_mask, mode=mode),
            poolkit.embedding_bag(
                index, table, torch.cat([BEGIN, torch.tensor([200])]), mode,
                include_last_offset=True,
            ),
            poolkit.pool(table[index], segments, mode),  # the same rows, gathered
        ):  # fmt: skip
            assert torch.equal(found, other), mode
        found = poolkit.embedding_bag(index, table, BEGIN, mode, per_sample_weights=weights)
        other = poolkit.embedding_bag(
            padded, table, mask=mask, mode=mode, per_sample_weights=spread
        )
        assert torch.equal(found, other), mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(mode: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "GATHERED", 5)  # several chunks
    table, query = drawn(6, 4).requires_grad_(), drawn(4, seed=3).requires_grad_()
    index, lengths = torch.tensor([0, 5, 2, 2, 1, 0, 3, 2]), torch.tensor([3, 0, 4, 1])
    weights = (drawn(8, seed=4).abs() + 0.1).requires_grad_()

    def pooled(table: Any, weights: Any, query: Any) -> Any:
        return poolkit.embedding_bag(
            index, table, lengths=lengths, mode=mode,
            per_sample_weights=weights if weighted else None,
            query=query if mode == "attention" else None,
        )  # fmt: skip

    assert torch.autograd.gradcheck(pooled, (table, weights, query))
    if mode != "soft":
        assert torch.autograd.gradgradcheck(pooled, (table, weights, query))


def test_operators_agree_with_whole_array_operations() -> None:
    for dtype in DTYPES:
        for width in (1, 3, 16, 17, 64, 70):
            table, index, weights = rows_of(width)
            table = table.to(dtype)
            weights = weights.to(operators.real_dtype(dtype))
            divisors = COUNT.clamp(min=1).to(weights.dtype)
            for reduction in ("sum", "max", "min", "soft"):
                for given in (None, weights):
                    arguments = (
                        table, index, BEGIN, COUNT, given,
                        divisors if reduction == "sum" else None, reduction, 1.0,
                        reduction in ("max", "min"),
                    )  # fmt: skip
                    found, places = torch.ops.poolkit.bag_pool(*arguments)
                    want, want_places = operators._bag_pool_gathered(*arguments)
                    torch.testing.assert_close(found, want, rtol=1e-2, atol=4 * ROUGH[dtype])
                    assert torch.equal(places, want_places)
            own = drawn(8, width, seed=5).to(dtype)
            torch.testing.assert_close(
                torch.ops.poolkit.bag_products(table, index, BEGIN, COUNT, own),
                operators._bag_products_gathered(table, index, BEGIN, COUNT, own),
                rtol=1e-5, atol=1e-4,
            )  # fmt: skip
    for found, want in zip(
        torch.ops.poolkit.bag_transpose(index, BEGIN, COUNT, 200, 50),
        operators._bag_transpose_sorted(index, BEGIN, COUNT, 200, 50),
        strict=True,
    ):
        assert torch.equal(found, want)
    places = torch.ops.poolkit.bag_pool(table, index, BEGIN, COUNT, None, None, "max", 1.0, True)[1]
    scatter = (drawn(8, 70), places, index, BEGIN, COUNT, weights.double(), 50)
    torch.testing.assert_close(
        torch.ops.poolkit.bag_scatter(*scatter), operators._bag_scatter_whole(*scatter)
    )


def test_nan_and_ties() -> None:
    nan = float("nan")
    table = torch.tensor([[1.0, 2.0], [nan, 2.0], [0.5, nan], [nan, 1.0]])
    index = torch.tensor([0, 1, 3, 2, 0, 0])
    table.requires_grad_()
    pooled = poolkit.embedding_bag(index, table, torch.tensor([0, 3]), "max")
    assert pooled.isnan().tolist() == [[True, False], [False, True]]
    pooled.sum().backward()
    # The last NaN of (1, nan, nan) is row 3; the first of (2, 2, 1) is row 0.
    assert table.grad.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]


def test_same_bits_on_every_instruction_set(keep_settings: None) -> None:
    table, index, weights = rows_of(70)
    query = drawn(70, seed=3).float()
    found: dict[str, list[Any]] = {}
    for isa in poolkit.info()["available"]:
        poolkit.use_isa(isa)
        for mode in MODES:
            leaf = table.float().requires_grad_()
            scale = weights.clone().requires_grad_()
            out = poolkit.embedding_bag(
                index, leaf, BEGIN, mode, per_sample_weights=scale,
                query=query if mode == "attention" else None,
            )  # fmt: skip
            out.square().sum().backward()
            found.setdefault(mode, []).append((out, leaf.grad, scale.grad))
    for mode, results in found.items():
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b), mode


def test_same_bits_for_any_number_of_threads() -> None:
    table, index, _ = rows_of(33, 60000, 5000)
    offsets = torch.arange(0, 60000, 7)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for mode in ("sum", "max"):
                leaf = table.float().requires_grad_()
                out = poolkit.embedding_bag(index, leaf, offsets, mode)
                out.square().sum().backward()
                found.append((mode, out.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for mode, out, grad in found[2:]:
        first = next(entry for entry in found if entry[0] == mode)
        assert torch.equal(out, first[1])
        assert torch.equal(grad, first[2])


@pytest.mark.parametrize("garbage", [0, -1, 99])
def test_entries_behind_the_lengths_do_not_count(garbage: int) -> None:
    """Neither for the frequency of a row, nor for its norm, nor for its sparse gradient."""
    words = torch.tensor([[1, garbage, garbage], [1, 2, garbage]])
    lengths, flat, offsets = torch.tensor([1, 2]), torch.tensor([1, 1, 2]), torch.tensor([0, 1])
    start = torch.arange(10.0).reshape(5, 2)
    for options in ({"scale_grad_by_freq": True}, {"sparse": True}, {"max_norm": 2.0}):
        found = []
        for given in ({"input": words, "lengths": lengths}, {"input": flat, "offsets": offsets}):
            table = start.clone().requires_grad_()
            pooled = poolkit.embedding_bag(weight=table, mode="sum", **given, **options)
            pooled.sum().backward()
            gradient = table.grad.to_dense() if table.grad.is_sparse else table.grad
            found.append((pooled.detach(), gradient, table.detach()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert torch.equal(found[0][2][[0, 3, 4]], start[[0, 3, 4]])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrt_n", "max", "soft", "attention"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch itself
def test_transforms(mode: str, weighted: bool) -> None:
    """torch.func sees the same values and gradients, and maps over tables."""
    torch.manual_seed(0)
    words, offsets = torch.tensor([0, 1, 2, 2, 5]), torch.tensor([0, 2, 2])
    table, query = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    weights = torch.rand(5, dtype=torch.float64) if weighted else None

    def run(table: Any) -> Any:
        return poolkit.embedding_bag(
            words, table, offsets, mode, per_sample_weights=weights,
            query=query if mode == "attention" else None,
        )  # fmt: skip

    leaf = table.clone().requires_grad_()
    (want,) = torch.autograd.grad(run(leaf).square().sum(), leaf)
    assert want.abs().max() > 0
    torch.testing.assert_close(torch.func.grad(lambda t: run(t).square().sum())(table), want)
    torch.testing.assert_close(
        torch.func.vmap(run)(torch.stack([table, -table])), torch.stack([run(table), run(-table)])
    )
    _, moved = torch.func.jvp(lambda t: run(t).square().sum(), (table,), (table,))
    torch.testing.assert_close(moved, (want * table).sum())
    with pytest.raises(PoolValue, match="names row -1"):
        torch.func.vmap(lambda t: poolkit.embedding_bag(-words[1:2], t, offsets[:1]))(table[None])


def test_an_additive_mask_is_refused() -> None:
    with pytest.raises(PoolType, match="a mask holds bools, or 0 and 1"):
        poolkit.embedding_bag(FLAT[None], torch.ones(9, 2), mask=torch.zeros(1, len(FLAT)))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
def test_compiled_whole() -> None:
    table, index, weights = rows_of(8)
    table.requires_grad_()

    def run(table: Any, index: Any, offsets: Any, weights: Any) -> Any:
        return poolkit.embedding_bag(index, table, offsets, "mean", per_sample_weights=weights)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = compiled(table, index, BEGIN, weights)
    want = run(table, index, BEGIN, weights)
    torch.testing.assert_close(found, want)
    (by_table,) = torch.autograd.grad(found.square().sum(), table)
    (wanted,) = torch.autograd.grad(want.square().sum(), table)
    torch.testing.assert_close(by_table, wanted)
    with pytest.raises(PoolValue, match="names row 50 of a table of 50 rows"):
        compiled(table, torch.full((200,), 50), BEGIN, weights)


def test_module() -> None:
    for mode in MODES:
        module = poolkit.nn.EmbeddingBag(10, 4, mode=mode, padding_idx=-10)
        assert module.weight[0].abs().max() == 0
        twin = poolkit.nn.EmbeddingBag(10, 4, mode=mode, padding_idx=0)
        twin.load_state_dict(module.state_dict())
        words, lengths = torch.tensor([[1, 2, 3], [4, 9, 9]]), torch.tensor([3, 1])
        for other in (twin, copy.deepcopy(module)):
            assert torch.equal(module(words, lengths=lengths), other(words, lengths=lengths))
        module(words, lengths=lengths).sum().backward()
        assert module.weight.grad[9].abs().max() == 0
    assert repr(module) == "EmbeddingBag(10, 4, mode='attention', padding_idx=0)"
    # A query of 0 is the mean.
    mean = poolkit.nn.EmbeddingBag.from_pretrained(module.weight.detach(), padding_idx=0)
    torch.testing.assert_close(module(words, lengths=lengths), mean(words, lengths=lengths))
    short = poolkit.nn.EmbeddingBag(10, 4, mode="sum", max_norm=0.5)
    short(words)
    assert short.weight[1:5].norm(dim=1).max() <= 0.5 + 1e-6
    assert torch.nn.EmbeddingBag(10, 4, mode="sum").state_dict().keys() == short.state_dict().keys()


def test_nothing() -> None:
    table = torch.ones(3, 2, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    for mode in ("sum", "mean", "max", "soft"):
        out = poolkit.embedding_bag(empty, table, torch.zeros(2, dtype=torch.long), mode)
        assert out.tolist() == [[0, 0], [0, 0]]
        out.sum().backward()
        assert poolkit.embedding_bag(empty, table, empty, mode).shape == (0, 2)
    assert table.grad.tolist() == [[0, 0]] * 3


PoolValue, PoolType = poolkit.PoolValueError, poolkit.PoolTypeError
TABLE, FLAT = torch.ones(3, 2), torch.tensor([0, 1, 2])
ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"offsets": FLAT[:1], "mode": "median"}, PoolValue, "mode must be one of sum, mean"),
    ({"offsets": FLAT[:1], "input": FLAT + 1}, PoolValue, "entry 2 names row 3 of a table of 3"),
    ({"offsets": FLAT[:1], "input": FLAT.float()}, PoolType, "named by int64 or int32, got float"),
    ({}, PoolType, "does not say where bags end"),
    ({"offsets": FLAT[:1], "lengths": FLAT}, PoolType, "say the same"),
    ({"offsets": FLAT + 1}, PoolValue, "offsets start at 1"),
    ({"offsets": torch.tensor([0, 2, 1])}, PoolValue, "offsets fall from 2 to 1 at place 2"),
    ({"offsets": torch.tensor([0, 4])}, PoolValue, "offsets go up to 4, there are 3 entries"),
    (
        {"offsets": torch.tensor([0, 2]), "include_last_offset": True},
        PoolValue,
        "the last offset is 2, there are 3 entries",
    ),
    ({"lengths": torch.tensor([1, 1])}, PoolValue, "lengths add up to 2, there are 3 entries"),
    ({"lengths": torch.tensor([4, -1])}, PoolValue, "lengths must not be negative, got -1"),
    ({"input": FLAT[None], "lengths": torch.tensor([4])}, PoolValue, "a length of 4 is more than"),
    ({"input": FLAT[None], "mask": FLAT > 0}, PoolValue, r"the mask has shape \(3,\)"),
    ({"mask": FLAT > 0}, PoolType, "a mask is for an input of rank 2"),
    (
        {"offsets": FLAT[:1], "per_sample_weights": torch.ones(2)},
        PoolValue,
        r"per_sample_weights have shape \(2,\), input \(3,\)",
    ),
    ({"offsets": FLAT[:1], "mode": "attention"}, PoolType, "which needs one"),
    ({"offsets": FLAT[:1], "query": torch.ones(2)}, PoolType, "a query is for mode 'attention'"),
    ({"offsets": FLAT[:1], "weight": FLAT}, PoolType, r"must be floating \(rows, dim\)"),
    ({"input": FLAT[None, None]}, PoolValue, r"must be \(entries\) or \(bags, entries\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ERRORS)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        poolkit.embedding_bag(**{"input": FLAT, "weight": TABLE, **arguments})
    assert "while pooling bags of" in str(caught.value)


def test_products_look_at_the_index() -> None:
    """Attention asks for the products of rows before any other kernel sees the index."""
    with pytest.raises(PoolValue, match="entry 1 names row 3 of a table of 3 rows"):
        poolkit.embedding_bag(
            torch.tensor([0, 3]), TABLE, FLAT[:1], "attention", query=torch.ones(2)
        )


def test_errors_of_the_module() -> None:
    with pytest.raises(PoolValue, match="mode must be one of"):
        poolkit.nn.EmbeddingBag(3, 2, mode="x")
    with pytest.raises(PoolValue, match="padding_idx 3 is no row of 3"):
        poolkit.nn.EmbeddingBag(3, 2, padding_idx=3)
    with pytest.raises(PoolValue, match=r"_weight has shape \(3, 3\)"):
        poolkit.nn.EmbeddingBag(3, 2, _weight=torch.ones(3, 3))


def test_numpy_and_torch_segments_have_the_same_bits() -> None:
    rows = drawn(30, 5).float()
    weights = drawn(30, seed=1).abs()
    offsets = np.array([0, 3, 3, 15, 30])
    for reduction in ("sum", "mean", "sqrt_n", "max", "min", "soft"):
        segments = poolkit.Segments(offsets=offsets, weights=weights)
        found = poolkit.pool(rows, segments, reduction)
        other = poolkit.pool(
            rows.numpy(), poolkit.Segments(offsets=offsets, weights=weights.numpy()), reduction
        )
        np.testing.assert_array_equal(found.numpy(), other)
