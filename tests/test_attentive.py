"""Attention within segments: the softmax, weighted means and deviations of ragged rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from poolkit import PoolTypeError, PoolValueError, Segments  # noqa: E402
from poolkit.sequences.attentive import (  # noqa: E402
    attentive_pool,
    attentive_stats,
    segment_softmax,
)

LENGTHS = [3, 0, 1, 6, 2]
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def ragged(dtype: torch.dtype, heads: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    parts = random(sum(LENGTHS), 4, dtype=dtype).split(LENGTHS)
    return list(parts), list(random(sum(LENGTHS), heads, seed=1, dtype=dtype).split(LENGTHS))


def padded(
    parts: list[torch.Tensor], left: bool = False, time: int = 9, holes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts in a batch, NaN where nothing is."""
    batch = torch.full((len(parts), time, *parts[0].shape[1:]), torch.nan, dtype=parts[0].dtype)
    mask = torch.zeros(len(parts), time, dtype=torch.bool)
    for s, part in enumerate(parts):
        n = len(part)
        if holes:
            at = torch.arange(n) + torch.arange(n) // 2
        else:
            at = torch.arange(time - n, time) if left else torch.arange(n)
        batch[s, at], mask[s, at] = part, True
    return batch, mask


def forms(parts: list[torch.Tensor], scores: list[torch.Tensor]) -> dict[str, tuple[Any, Any, Any]]:
    """The same rows and scores as (x, scores, segments), in every form."""
    x, e = torch.cat(parts), torch.cat(scores)
    ids = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(LENGTHS))
    mixed = torch.cat([torch.arange(s, len(x), 3) for s in (1, 0, 2)])
    for s in range(len(parts)):  # mixed segments, each with its rows in order
        places = torch.nonzero(ids[mixed] == s).flatten()
        mixed[places] = mixed[places].sort().values
    offsets = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    right, mask = padded(parts)
    left, mask_left = padded(parts, left=True)
    holes, mask_holes = padded(parts, time=10, holes=True)
    return {
        "offsets": (x, e, Segments(offsets=offsets)),
        "ids": (x, e, Segments(ids=ids)),
        "unsorted ids": (x[mixed], e[mixed], Segments(ids=ids[mixed])),
        "lengths": (right, padded(scores)[0], Segments(lengths=LENGTHS)),
        "left": (left, padded(scores, left=True)[0], Segments(mask=mask_left)),
        "holes": (holes, padded(scores, time=10, holes=True)[0], Segments(mask=mask_holes)),
        "nested": (
            torch.nested.nested_tensor(parts, layout=torch.jagged),
            torch.nested.nested_tensor(scores, layout=torch.jagged),
            None,
        ),
        "mask": (right, padded(scores)[0], mask),
        "mask of integers": (left, padded(scores, left=True)[0], mask_left.int()),
        "mask with holes": (holes, padded(scores, time=10, holes=True)[0], mask_holes),
    }


def oracle(
    parts: list[torch.Tensor], scores: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Segment by segment, head by head, in float64."""
    means, deviations = [], []
    for part, e in zip(parts, scores, strict=True):
        part, e = part.double(), e.double()
        for head in range(e.shape[1]):
            if not len(part):
                means.append(torch.zeros(4, dtype=torch.float64))
                deviations.append(means[-1])
                continue
            a = e[:, head].softmax(0)
            mean = sum(a[i] * part[i] for i in range(len(part)))
            square = sum(a[i] * (part[i] - mean) ** 2 for i in range(len(part)))
            means.append(mean)
            deviations.append(square.sqrt())
    shape = (len(parts), scores[0].shape[1], 4)
    return torch.stack(means).reshape(shape), torch.stack(deviations).reshape(shape)


def test_by_hand() -> None:
    # Weights 1/4 and 3/4: the scores are 0 and log 3. The mean of 2 and 6 is 0.5 + 4.5 = 5, the
    # variance 1/4 * 9 + 3/4 * 1 = 3.
    x = torch.tensor([[2.0], [6.0], [9.0]], dtype=torch.float64)
    scores = torch.tensor([0.0, 3.0, 7.0], dtype=torch.float64)
    scores[1] = scores[1].log()
    segments = Segments(offsets=[0, 2, 3])
    weights = segment_softmax(scores, segments)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64))
    mean, deviation = attentive_stats(x, scores, segments)
    torch.testing.assert_close(mean.flatten(), torch.tensor([5.0, 9.0]).double())
    torch.testing.assert_close(deviation.flatten(), torch.tensor([3.0, 0.0]).double().sqrt())


@pytest.mark.parametrize("heads", [1, 3])
def test_every_form(heads: int) -> None:
    parts, scores = ragged(torch.float32, heads)
    mean, deviation = oracle(parts, scores)
    exact: dict[str, Any] = {}
    for name, (x, e, segments) in forms(parts, scores).items():
        found = attentive_stats(x, e, segments)
        torch.testing.assert_close(found[0].double(), mean, rtol=1e-6, atol=1e-6, msg=name)
        torch.testing.assert_close(found[1].double(), deviation, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(attentive_pool(x, e, segments), found[0]), name
        if not name.startswith("mask"):  # ragged: the same bits
            exact.setdefault("mean", found[0])
            exact.setdefault("deviation", found[1])
            assert torch.equal(found[0], exact["mean"]), name
            assert torch.equal(found[1], exact["deviation"]), name


def test_weights_lie_where_the_scores_lie() -> None:
    parts, scores = ragged(torch.float64, 2)
    right = torch.cat([e.softmax(0) for e in scores])
    for name, (_, e, segments) in forms(parts, scores).items():
        weights = segment_softmax(e, segments)
        if name == "nested":
            torch.testing.assert_close(weights, right)
            continue
        assert weights.shape == e.shape
        absent = e.isnan().any(-1)
        assert (weights[absent] == 0).all(), name
        if name == "unsorted ids":
            torch.testing.assert_close(weights.sum(0), torch.full((2,), 4.0).double())
        else:
            torch.testing.assert_close(weights[~absent], right, msg=name)


def test_one_score_for_each_row_has_no_axis_of_heads() -> None:
    x, scores = random(5, 2, 3), random(5, seed=1)
    pooled = attentive_pool(x, scores, Segments(offsets=[0, 2, 5]))
    assert pooled.shape == (2, 2, 3)
    torch.testing.assert_close(pooled[0], torch.einsum("t,tab->ab", scores[:2].softmax(0), x[:2]))
    several = attentive_pool(x, scores[:, None], Segments(offsets=[0, 2, 5]))
    assert several.shape == (2, 1, 2, 3)
    assert torch.equal(several[:, 0], pooled)
    batch = attentive_pool(x[None], scores[None])
    assert batch.shape == (1, 2, 3)
    assert attentive_pool(x[None, :, 0, 0], scores[None]).shape == (1,)
    assert attentive_pool(x[:, 0, 0], scores, Segments(offsets=[0, 5])).shape == (1,)


@pytest.mark.parametrize("empty", ["zero", "nan", -2.0])
def test_segments_without_rows(empty: Any) -> None:
    x, scores = random(3, 2), random(3, seed=1)
    mean, deviation = attentive_stats(x, scores, Segments(offsets=[0, 0, 3], empty=empty))
    value = {"zero": 0.0, "nan": torch.nan}.get(empty, empty)
    right = torch.full((2,), value).double()
    torch.testing.assert_close(mean[0], right, equal_nan=True)
    torch.testing.assert_close(deviation[0], right, equal_nan=True)
    assert not mean[1].isnan().any()


def test_nothing_at_all() -> None:
    none = Segments(offsets=[0, 0])
    assert attentive_pool(torch.zeros(0, 2), torch.zeros(0), none).tolist() == [[0.0, 0.0]]
    assert attentive_pool(torch.zeros(0, 2), torch.zeros(0), Segments(offsets=[0])).shape == (0, 2)
    assert attentive_pool(torch.zeros(0, 3, 2), torch.zeros(0, 3)).shape == (0, 2)
    assert attentive_pool(torch.zeros(2, 0, 2), torch.zeros(2, 0)).tolist() == [[0, 0], [0, 0]]
    assert segment_softmax(torch.zeros(2, 0)).shape == (2, 0)
    mask = torch.tensor([[True, True], [False, False]])
    x = torch.full((2, 2, 1), torch.nan)
    x[0] = 3.0
    x.requires_grad_()
    scores = torch.zeros(2, 2, requires_grad=True)
    mean, deviation = attentive_stats(x, scores, mask)
    assert mean.flatten().tolist() == [3.0, 0.0]
    assert deviation.flatten().tolist() == [0.0, 0.0]
    (mean.sum() + deviation.sum()).backward()
    assert x.grad.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]
    assert scores.grad.flatten().tolist() == [0.0] * 4


@pytest.mark.parametrize("form", ["mask", "segments"])
def test_extreme_scores(form: str) -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    segments: Any = mask if form == "mask" else Segments(mask=mask)
    low = -torch.inf
    scores = torch.tensor([[3e38, -3e38], [low, 5.0], [low, low], [torch.nan, 0.0]])
    weights = segment_softmax(scores, segments)
    assert weights[:3].tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert weights[3].isnan().all()
    x = torch.tensor([1.0, 2.0]).expand(4, 2)[..., None]
    assert attentive_pool(x, scores, segments).flatten()[:3].tolist() == [1.0, 2.0, 0.0]
    x = torch.tensor([[torch.nan, 1.0], [4.0, 1.0]])[..., None]
    pooled = attentive_pool(x, torch.zeros(2, 2), mask[:2]).flatten()
    assert pooled.isnan().tolist() == [True, False]


def test_the_deviation_does_not_cancel() -> None:
    x = 10000 + torch.tensor([[[0.0], [1.0]]])
    _, deviation = attentive_stats(x, torch.zeros(1, 2))
    assert deviation.item() == 0.5
    same = torch.full((1, 3, 2), 0.1, requires_grad=True)
    scores = random(1, 3, dtype=torch.float32).requires_grad_()
    attentive_stats(same, scores, Segments(lengths=[3]))[1].sum().backward()
    assert same.grad.isfinite().all()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALF)
def test_half_types(dtype: torch.dtype) -> None:
    x, scores = random(2, 300, 3, dtype=dtype), random(2, 300, seed=1, dtype=dtype)
    mask = torch.ones(2, 300, dtype=torch.bool)
    right = attentive_stats(x.double(), scores.double(), mask)
    for segments in (mask, Segments(mask=mask)):
        for found, wanted in zip(attentive_stats(x, scores, segments), right, strict=True):
            assert found.dtype == dtype
            # Rounded once: half a step of the dtype, and what float32 leaves.
            step = torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-6
            assert ((found.double() - wanted).abs() <= step).all()
        assert segment_softmax(scores, segments).dtype == dtype


@pytest.mark.parametrize("form", ["offsets", "unsorted ids", "mask with holes"])
@pytest.mark.parametrize("heads", [1, 2])
def test_gradients(form: str, heads: int) -> None:
    parts, scores = ragged(torch.float64, heads)
    x, e, segments = forms(parts, scores)[form]
    absent = e.isnan().any(-1, keepdim=True)

    def run(x: Any, e: Any) -> Any:  # segments of one row have no deviation, and a kink there
        weights = segment_softmax(e, segments)
        mean, deviation = attentive_stats(x, e, segments)
        return weights, mean, deviation[3:]

    leaves = [torch.where(absent, 0, part).requires_grad_() for part in (x, e)]
    torch.autograd.gradcheck(run, leaves)
    torch.autograd.gradgradcheck(lambda x, e: run(x, e)[:2], leaves)


def test_padding_changes_a_few_ulp_at_most() -> None:
    parts, scores = ragged(torch.float32, 2)
    x, mask = padded(parts)
    e, _ = padded(scores)
    right = attentive_stats(x, e, mask)
    for time, left in [(12, False), (40, True)]:
        more, more_mask = padded(parts, time=time, left=left)
        found = attentive_stats(more, padded(scores, time=time, left=left)[0], more_mask)
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=5e-7)
        exact = attentive_stats(more, padded(scores, time=time, left=left)[0],
                                Segments(mask=more_mask))  # fmt: skip
        first = attentive_stats(x, e, Segments(mask=mask))
        assert torch.equal(exact[0], first[0])
        assert torch.equal(exact[1], first[1])


def test_compiled_and_autocast() -> None:
    x, scores = random(2, 5, 3, dtype=torch.float32), random(2, 5, dtype=torch.float32, seed=1)
    mask = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    compiled = torch.compile(attentive_stats, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, scores, mask), attentive_stats(x, scores, mask), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attentive_pool(x, scores, mask), compiled(x, scores, mask)[0])


def test_errors() -> None:
    x, scores = torch.zeros(5, 2), torch.zeros(5)
    segments = Segments(offsets=[0, 5])
    with pytest.raises(PoolValueError) as caught:
        attentive_pool(x, torch.zeros(4), segments)
    assert str(caught.value) == (
        "scores are (4,), the rows of x (5,), while pooling float32 (5, 2) by attentive_pool. "
        "Give one score for each row, or one for each row and head."
    )
    with pytest.raises(PoolValueError, match=r"offsets end at 5, there are 4 rows, .*segment_soft"):
        segment_softmax(torch.zeros(4), segments)
    with pytest.raises(PoolValueError, match=r"segment 0 has no rows.*by attentive_stats"):
        attentive_stats(x, scores, Segments(offsets=[0, 0, 5], empty="error"))
    with pytest.raises(PoolTypeError, match=r"x must be floating, got int64.*with \.float"):
        attentive_pool(x.long(), scores, segments)
    with pytest.raises(PoolTypeError, match="scores must be a torch tensor, got list"):
        segment_softmax([1.0], segments)  # type: ignore[arg-type]
    with pytest.raises(PoolValueError, match=r"\(batch, time, \*features\), got rank 1.*Segments"):
        segment_softmax(scores)
    with pytest.raises(PoolValueError, match=r"mask has shape \(5,\), what it is of \(5, 2\)"):
        attentive_pool(x[..., None], torch.zeros(5, 2), torch.ones(5, dtype=torch.bool))
    with pytest.raises(PoolTypeError, match=r"a mask holds bools, or 0 and 1, got torch\.float32"):
        attentive_pool(x[..., None], torch.zeros(5, 2), torch.ones(5, 2))
    with pytest.raises(PoolTypeError, match="segments are list"):
        attentive_pool(x, scores, [0, 5])  # type: ignore[arg-type]
    with pytest.raises(PoolValueError, match="scores of 0 heads"):
        attentive_pool(x, torch.zeros(5, 0), segments)
    with pytest.raises(PoolTypeError, match=r"have weights too.*add their logarithm"):
        attentive_pool(x, scores, Segments(offsets=[0, 5], weights=torch.ones(5)))
    nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
    with pytest.raises(PoolTypeError, match="a nested tensor has no mask"):
        attentive_pool(nested, scores, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(PoolValueError, match="for the rows of a nested tensor"):
        attentive_pool(nested, torch.zeros(4))
    assert attentive_pool(nested, scores).shape == (2, 2)


@pytest.mark.parametrize("form", ["mask", "segments"])
def test_scores_may_have_another_dtype(form: str) -> None:
    x, scores = torch.randn(2, 3, 4), torch.randn(2, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    given = mask if form == "mask" else Segments(mask=mask)
    want = attentive_pool(x.double(), scores.double(), given)
    assert attentive_pool(x.double(), scores, given).dtype is torch.float64
    for a, b in ((x.double(), scores), (x, scores.double()), (x, scores)):
        torch.testing.assert_close(attentive_pool(a, b, given).double(), want, atol=1e-6, rtol=0)
