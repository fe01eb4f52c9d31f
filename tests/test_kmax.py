"""k-max pooling: the largest k in their order, for every form of ragged data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from poolkit import PoolError, PoolTypeError, PoolValueError, Segments  # noqa: E402
from poolkit.sequences.kmax import KMaxPool1d, dynamic_k, k_max_pool1d  # noqa: E402


def slow(values: list[float], k: int, fill: float) -> list[float]:
    """By Python's sort, which is stable."""
    ranked = sorted(range(len(values)), key=lambda t: -values[t])[:k]
    return [values[t] for t in sorted(ranked)] + [fill] * (k - len(ranked))


def numbers(*shape: int, seed: int = 0) -> Any:
    """With many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_against_a_sort(k: int, fill: float) -> None:
    x = numbers(3, 4, 9)
    found = k_max_pool1d(x, k, fill=fill)
    assert found.shape == (3, 4, k)
    assert found.tolist() == [[slow(row, k, fill) for row in part] for part in x.tolist()]
    assert torch.equal(k_max_pool1d(x[0], k, fill=fill), found[0])
    mask = numbers(3, 9, seed=1) > -1
    spoilt = x.masked_fill(~mask[:, None], float("nan"))
    found = k_max_pool1d(spoilt, k, mask=mask, fill=fill)
    right = [
        [slow([v for v, there in zip(row, m, strict=True) if there], k, fill) for row in part]
        for part, m in zip(x.tolist(), mask.tolist(), strict=True)
    ]
    assert found.tolist() == right
    lengths = torch.tensor([0, 4, 9])
    found = k_max_pool1d(x, k, lengths=lengths, fill=fill)
    assert found.tolist() == [
        [slow(row[:n], k, fill) for row in part]
        for part, n in zip(x.tolist(), lengths.tolist(), strict=True)
    ]
    assert torch.equal(k_max_pool1d(x[1], k, mask=torch.arange(9) < 4, fill=fill), found[1])


def test_lengths_are_those_of_the_input() -> None:
    x = torch.zeros(2, 1, 4)
    for lengths in ([0, 5], [-1, 2]):
        with pytest.raises(PoolValueError, match=r"lengths lie between .*positions are 4"):
            k_max_pool1d(x, 2, lengths=torch.tensor(lengths))


def test_by_hand() -> None:
    # The three largest of 3 9 1 5 5 7 are 9, 7 and the first 5, in the order 9 5 7.
    x = torch.tensor([[3.0, 9, 1, 5, 5, 7]], requires_grad=True)
    found = k_max_pool1d(x, 3)
    assert found.tolist() == [[9, 5, 7]]
    (found * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[0, 1, 0, 2, 0, 3]]


def test_limits() -> None:
    inf = float("inf")
    x = torch.tensor([[-inf, 2.0, -inf, 1.0]])
    # Padding comes behind what is there, be it as small as can be.
    mask = torch.tensor([False, True, True, True])
    assert k_max_pool1d(x, 4, mask=mask, fill=7).tolist() == [[2, -inf, 1, 7]]
    assert k_max_pool1d(x, 3, mask=mask, fill=7).tolist() == [[2, -inf, 1]]
    x = torch.tensor([[1.0, float("nan"), inf, 0.0]])
    found = k_max_pool1d(x, 2)
    assert torch.isnan(found[0, 0])
    assert found[0, 1] == inf
    assert k_max_pool1d(torch.zeros(0, 3, 5), 2).shape == (0, 3, 2)
    assert k_max_pool1d(torch.zeros(2, 3, 0), 2, fill=1).tolist() == [[[1, 1]] * 3] * 2
    x = numbers(2, 3, 8)
    assert torch.equal(k_max_pool1d(x, 8), x)
    assert torch.equal(k_max_pool1d(x, 1)[..., 0], x.amax(2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("k", [1, 3, 40])
def test_every_ragged_form(k: int) -> None:
    lengths = np.array([3, 0, 1, 33, 7, 0, 2])
    parts = [numbers(n, 2, 2, seed=n) for n in lengths.tolist()]
    right = torch.tensor(
        [
            np.array(
                [[slow(part[:, i, j].tolist(), k, -9) for j in range(2)] for i in range(2)]
            ).transpose(2, 0, 1).tolist()
            for part in parts
        ]
    )  # fmt: skip
    rows = torch.cat(parts)
    ids = np.repeat(np.arange(7), lengths)
    padded, mask = torch.full((7, 40, 2, 2), 99.0), torch.zeros(7, 40, dtype=torch.bool)
    for s, part in enumerate(parts):
        padded[s, 40 - len(part) :], mask[s, 40 - len(part) :] = part, True
    forms = {
        "offsets": (rows, Segments(offsets=[0, *np.cumsum(lengths)])),
        "ids": (rows, Segments(ids=ids, num_segments=7)),
        "backwards": (torch.cat(parts[::-1]), Segments(ids=ids[::-1].copy(), num_segments=7)),
        "left padding": (padded, Segments(mask=mask)),
        "lengths": (torch.nn.utils.rnn.pad_sequence(parts, True), Segments(lengths=lengths)),
    }
    for name, (x, segments) in forms.items():
        found = k_max_pool1d(x, k, segments, fill=-9)
        assert found.shape == (7, k, 2, 2)
        assert torch.equal(found, right.float()), name
    nested = torch.nested.nested_tensor([p for p in parts if len(p)], layout=torch.jagged)
    assert torch.equal(k_max_pool1d(nested, k, Segments(), fill=-9), right[lengths > 0].float())
    nothing = k_max_pool1d(rows[:0], k, Segments(offsets=[0, 0]), fill=-9)
    assert torch.equal(nothing, torch.full((1, k, 2, 2), -9.0))
    assert k_max_pool1d(rows[:, 0, 0], k, forms["ids"][1]).shape == (7, k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: Any) -> None:
    x = numbers(2, 3, 8)
    found = k_max_pool1d(x.to(dtype), 3)
    assert found.dtype == dtype
    assert torch.equal(found.float(), k_max_pool1d(x, 3))
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(k_max_pool1d(turned, 3), k_max_pool1d(x, 3))


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.tensor([[True] * 7, [False, True, True, False, False, True, False]])
    for options in ({}, {"mask": mask}, {"lengths": torch.tensor([2, 7])}):
        assert torch.autograd.gradcheck(lambda x, o=options: k_max_pool1d(x, 4, **o), x)
    rows = x.detach().reshape(-1, 2).requires_grad_()
    segments = Segments(offsets=[0, 3, 3, 21])
    assert torch.autograd.gradcheck(lambda x: k_max_pool1d(x, 4, segments), rows)


def test_k_falls_with_the_layers() -> None:
    # The paper's example: 3 layers, a sentence of 18 words, at the top 3: 12, 6, 3.
    assert [dynamic_k(layer, 3, 18, 3) for layer in (1, 2, 3)] == [12, 6, 3]
    assert dynamic_k(1, 3, 10, 3) == 7  # 2 / 3 of 10, rounded up
    assert dynamic_k(1, 2, 0) == 4
    assert dynamic_k(1, 1, 10**18 + 1) == 4
    assert dynamic_k(1, 3, 10**18 + 2) == (2 * (10**18 + 2) + 2) // 3


def test_module() -> None:
    module = KMaxPool1d(3, fill=-1.0)
    assert repr(module) == "KMaxPool1d(k=3, fill=-1.0)"
    x, lengths = numbers(2, 4, 9), torch.tensor([2, 9])
    right = k_max_pool1d(x, 3, lengths=lengths, fill=-1)
    assert torch.equal(copy.deepcopy(module)(x, lengths=lengths), right)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, lengths=lengths), right)
    assert module.state_dict() == {}


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: k_max_pool1d(X, 0), "k must be at least 1, got 0, while pooling float32"),
        (lambda: k_max_pool1d(X, 2.0), "k must be an integer, got 2.0"),
        (lambda: k_max_pool1d(X.long(), 1), "x must be floating, got torch.int64"),
        (lambda: k_max_pool1d(X.numpy(), 1), "x must be a torch tensor, got ndarray"),
        (lambda: k_max_pool1d(X[0, 0], 1), r"\(N, C, L\) or \(C, L\) was expected, got rank 1"),
        (lambda: k_max_pool1d(X, 1, mask=X[..., 0].bool()), r"the mask is bool \(2, 3\), not"),
        (lambda: k_max_pool1d(X, 1, lengths=torch.ones(2)), "the lengths are float32"),
        (lambda: k_max_pool1d(X[0], 1, lengths=torch.tensor([1] * 3)), "the lengths are int64"),
        (
            lambda: k_max_pool1d(X, 1, Segments(lengths=[1, 1]), lengths=torch.tensor([1, 1])),
            "said by segments and lengths",
        ),
        (lambda: k_max_pool1d(X, 1, [0, 2]), "segments must be a poolkit.Segments, got list"),
        (lambda: k_max_pool1d(X, 1, Segments(lengths=[1])), "1 lengths for a batch of 2"),
        (lambda: k_max_pool1d(X, 1, fill="0"), "fill must be a number, got '0'"),
        (lambda: dynamic_k(4, 3, 10), "layer 4 is behind the last of 3"),
        (lambda: dynamic_k(1, 0, 10), "layers must be at least 1, got 0"),
        (lambda: KMaxPool1d(True), "k must be an integer, got True"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert isinstance(caught.value, (PoolValueError, PoolTypeError))
    assert caught.value.instead
