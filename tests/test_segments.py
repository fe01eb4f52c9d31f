"""Segments: every form of the same ragged data gives the same bits, and the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import poolkit
from poolkit import PoolError, PoolTypeError, PoolValueError, Segments
from poolkit.ragged import in_buckets
from poolkit.reductions import REDUCTIONS
from poolkit.windows import Spans

REDUCED = ["max", "min", "sum", "mean", "Lp(2)", "Lp(3.0)", "GeM(3)", "log_sum_exp", "soft", "std",
           "median", "Quantile(0.3)", "TopK(2)", "first", "last", "sqrt_n",
           "bi_interaction"]  # fmt: skip
LENGTHS = [3, 0, 1, 40, 7, 0, 2]


def ragged(
    dtype: str = "float32", lengths: list[int] = LENGTHS, width: int = 5
) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [(9 * random.standard_normal((n, width))).astype(dtype) for n in lengths]


def expected(parts: list[np.ndarray], reduction: str) -> np.ndarray:
    """Each part on its own, as one window along its rows."""
    pooled = [
        poolkit.pool(part, poolkit.Global(), reduction, ndim=1, channels_last=True)[0]
        for part in parts
        if len(part)
    ]
    rows = iter(pooled)
    nothing = np.zeros_like(pooled[0])
    return np.stack([next(rows) if len(part) else nothing for part in parts])


def forms(parts: list[np.ndarray]) -> dict[str, tuple[np.ndarray, Segments]]:
    """The same data in every form that NumPy has."""
    lengths = np.array([len(part) for part in parts])
    rows = np.concatenate(parts)
    width, most = rows.shape[1], int(lengths.max())
    ids = np.repeat(np.arange(len(parts)), lengths)
    mixed = np.random.default_rng(5).permutation(len(rows))
    mixed_ids = ids[mixed]
    for segment in range(len(parts)):  # mixed segments, each with its rows in order
        places = np.flatnonzero(mixed_ids == segment)
        mixed[places] = np.sort(mixed[places])
    right, left, holes = (np.full((len(parts), 2 * most, width), 77, rows.dtype) for _ in range(3))
    masks = [np.zeros((len(parts), 2 * most), bool) for _ in range(3)]
    for s, part in enumerate(parts):
        n = len(part)
        right[s, :n], masks[0][s, :n] = part, True
        left[s, 2 * most - n :], masks[1][s, 2 * most - n :] = part, True
        holes[s, 0 : 2 * n : 2], masks[2][s, 0 : 2 * n : 2] = part, True
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    number = len(parts)
    return {
        "offsets": (rows, Segments(offsets=offsets)),
        "ids": (rows, Segments(ids=ids, num_segments=number)),
        "unsorted ids": (rows[mixed], Segments(ids=mixed_ids, num_segments=number)),
        "lengths": (right, Segments(lengths=lengths)),
        "right padding": (right, Segments(mask=masks[0])),
        "left padding": (left, Segments(mask=masks[1].astype(int))),
        "holes": (holes, Segments(mask=masks[2])),
    }


@pytest.mark.parametrize("reduction", REDUCED)
def test_every_form_gives_the_same_bits(reduction: str) -> None:
    parts = ragged()
    found = {
        name: poolkit.pool(x, segments, reduction) for name, (x, segments) in forms(parts).items()
    }
    right = expected(parts, reduction)
    for name, result in found.items():
        assert result.dtype == right.dtype
        np.testing.assert_array_equal(result, found["offsets"], err_msg=name)
    np.testing.assert_allclose(found["offsets"], right, rtol=2e-6, atol=2e-6)


def test_all_reductions_are_tried() -> None:
    assert {name.partition("(")[0].lower().replace("_", "") for name in REDUCED} == {
        name.lower() for name in REDUCTIONS
    }


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("reduction", ["max", "sum", "mean", "median"])
def test_dtypes(dtype: str, reduction: str) -> None:
    parts = ragged(dtype)
    right = expected(parts, reduction)
    for name, (x, segments) in forms(parts).items():
        result = poolkit.pool(x, segments, reduction)
        assert result.dtype == right.dtype
        np.testing.assert_allclose(result, right, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("reduction", REDUCED)
def test_without_a_kernel_in_buckets(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [part for part in ragged("float64") if len(part)]
    lengths = np.array([len(part) for part in parts])
    rows = np.concatenate(parts)
    spans = Spans(len(rows), np.cumsum(lengths) - lengths, lengths, 1, lengths)
    monkeypatch.setattr("poolkit.ragged.GATHERED", 100)
    found = in_buckets(rows, spans, poolkit.reductions.as_reduction(reduction))
    np.testing.assert_allclose(found, expected(parts, reduction), rtol=1e-12)


def test_features_of_any_rank() -> None:
    x = np.arange(24.0).reshape(4, 2, 3)
    pooled = poolkit.pool(x, Segments(offsets=[0, 1, 4]), "mean")
    np.testing.assert_array_equal(pooled, [x[0], x[1:].mean(0)])
    assert poolkit.pool(x[:, 0, 0], Segments(offsets=[0, 1, 4]), "sum").tolist() == [0.0, 36.0]
    assert poolkit.pool(x[:, :0], Segments(offsets=[0, 1, 4])).shape == (2, 0, 3)


def test_empty_segments() -> None:
    x = np.array([[1.0], [5.0]])
    offsets = [0, 0, 2, 2]

    def pooled(empty: Any, x: np.ndarray = x) -> list[float]:
        return poolkit.pool(x, Segments(offsets=offsets, empty=empty), "max").ravel().tolist()

    assert pooled("zero") == [0, 5, 0]
    assert pooled(-1) == [-1, 5, -1]
    assert np.isnan(pooled("nan")).tolist() == [True, False, True]
    with pytest.raises(PoolValueError, match="segment 0 has no rows, and 2 of 3 have none"):
        pooled("error")
    assert pooled(7.0, x.astype(np.int32)) == [7, 5, 7]
    with pytest.raises(PoolValueError, match=r"cannot be 0\.5 in int32"):
        pooled(0.5, x.astype(np.int32))
    with pytest.raises(PoolValueError, match="cannot be nan in int32"):
        pooled("nan", x.astype(np.int32))
    nothing = poolkit.pool(np.zeros((0, 3), np.float32), Segments(offsets=[0, 0]), "mean")
    assert nothing.tolist() == [[0.0, 0.0, 0.0]]
    assert poolkit.pool(np.zeros((0, 3)), Segments(offsets=[0]), "mean").shape == (0, 3)
    assert poolkit.pool(np.zeros((0, 3)), Segments(ids=[], num_segments=2)).shape == (2, 3)


@pytest.mark.parametrize("length", [255, 256, 257, 70000])
def test_long_segments(length: int) -> None:
    random = np.random.default_rng(length)
    x = random.standard_normal((length + 3, 2)).astype(np.float32)
    segments = Segments(offsets=[0, 1, length + 1, length + 3])
    right = [x[:1], x[1 : length + 1], x[length + 1 :]]
    np.testing.assert_array_equal(
        poolkit.pool(x, segments, "max"), np.stack([part.max(0) for part in right])
    )
    mean = np.stack([part.mean(0, dtype=np.float64) for part in right])
    np.testing.assert_allclose(poolkit.pool(x, segments, "mean"), mean, rtol=1e-4, atol=1e-6)


ROWS = np.zeros((4, 2), np.float32)
BATCH = np.zeros((2, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segments(offsets=[0, 1], ids=[0]), "given by offsets and ids"),
        (lambda: Segments(offsets=[]), "offsets are empty"),
        (lambda: Segments(offsets=[1, 4]), "offsets start at 1"),
        (lambda: Segments(offsets=[0, 3, 2, 4]), "fall from 3 to 2 at place 2"),
        (lambda: Segments(offsets=[0.0, 4.0]), "must be integers in one row, got float64"),
        (lambda: Segments(offsets=[[0, 4]]), r"got int64 \(1, 2\)"),
        (lambda: Segments(lengths=[1, -2]), "lengths must not be negative, got -2 at place 1"),
        (lambda: Segments(ids=[0, -1]), "ids must not be negative"),
        (lambda: Segments(ids=[0, 3], num_segments=2), "ids go up to 3, num_segments is 2"),
        (lambda: Segments(offsets=[0, 4], num_segments=1), "num_segments is for ids"),
        (lambda: Segments(ids=[0], num_segments=True), "must be an integer of 0 or more"),
        (lambda: Segments(mask=[True]), r"a mask has the shape \(batch, time\)"),
        (lambda: Segments(mask=[[0.0, -1e9]]), "holds other values than 0 and 1"),
        (lambda: Segments(offsets=[0], empty="none"), "empty must be 'zero', 'nan', 'error'"),
        (lambda: poolkit.pool(ROWS, Segments(offsets=[0, 3])), "end at 3, there are 4 rows"),
        (lambda: poolkit.pool(ROWS, Segments(ids=[0, 1])), "2 ids for 4 rows"),
        (lambda: poolkit.pool(ROWS[:, 0], Segments(lengths=[1] * 4)), "padded batch"),
        (lambda: poolkit.pool(BATCH, Segments(lengths=[1])), "1 lengths for a batch of 2"),
        (lambda: poolkit.pool(BATCH, Segments(lengths=[1, 4])), "a length of 4 is more than"),
        (lambda: poolkit.pool(BATCH, Segments(mask=[[1, 0]])), r"mask has shape \(1, 2\)"),
        (lambda: poolkit.pool(ROWS, Segments()), "segments of nothing"),
        (lambda: poolkit.pool(ROWS, Segments(offsets=[0, 4]), channels_last=True), "features"),
        (lambda: poolkit.explain(ROWS, Segments(offsets=[0, 4])), "no grid"),
        (lambda: poolkit.pool_with_indices(ROWS, Segments(offsets=[0, 4])), "no grid"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as caught:
        make()
    assert isinstance(caught.value, (PoolValueError, PoolTypeError))
    assert caught.value.instead


# --- torch ---------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("reduction", REDUCED)
def test_torch_gives_what_numpy_gives(reduction: str) -> None:
    parts = ragged()
    right = torch.from_numpy(poolkit.pool(*forms(parts)["offsets"], reduction))
    for name, (x, segments) in forms(parts).items():
        found = poolkit.pool(torch.from_numpy(x), segments, reduction)
        assert torch.equal(found, right), name
    tensors = [torch.from_numpy(part) for part in parts if len(part)]
    kept = right[torch.tensor([len(part) > 0 for part in parts])]
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor(tensors, layout=layout)
        assert torch.equal(poolkit.pool(nested, Segments(), reduction), kept)


def test_segments_may_be_tensors() -> None:
    x = torch.randn(5, 3)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    found = poolkit.pool(x, Segments(offsets=offsets), "sum")
    torch.testing.assert_close(found, torch.stack([x[:2].sum(0), x[2:].sum(0)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [300, 5000])
def test_means_of_half_types_are_rounded_once(dtype: torch.dtype, length: int) -> None:
    x = (torch.rand(length, 4) + 1).to(dtype)
    found = poolkit.pool(x, Segments(offsets=[0, length]), "mean")
    assert found.dtype == dtype
    torch.testing.assert_close(found[0], x.double().mean(0).to(dtype), rtol=1e-2, atol=0)
    padded = torch.zeros(2, 3, 1, dtype=dtype)
    masked = poolkit.pool(padded, Segments(mask=torch.zeros(2, 3, dtype=torch.bool)), "mean")
    assert masked.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("reduction", [r for r in REDUCED if r not in ("median", "Quantile(0.3)")])
def test_gradients(reduction: str) -> None:
    parts = [part / 9 for part in ragged("float64", [3, 0, 1, 9, 2], 2)]
    for x, segments in forms(parts).values():
        leaf = torch.from_numpy(x).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, s=segments: poolkit.pool(x, s, reduction), leaf)


@pytest.mark.parametrize("reduction", ["max", "mean", "sum", "log_sum_exp"])
def test_gradients_of_gradients(reduction: str) -> None:
    rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    segments = Segments(offsets=[0, 4, 4, 6])
    assert torch.autograd.gradgradcheck(lambda x: poolkit.pool(x, segments, reduction), rows)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_whole_array_operations(
    reduction: str, dtype: torch.dtype
) -> None:
    count = np.random.default_rng(1).integers(1, 400, 50)
    begin = np.cumsum(count) - count
    rows = torch.randn(int(count.sum()), 19).to(dtype).requires_grad_()
    spans = Spans(len(rows), begin, count, 1, count)
    right = in_buckets(rows, spans, poolkit.reductions.as_reduction(reduction))
    found = poolkit.pool(rows, Segments(offsets=[*begin, len(rows)]), reduction)
    weights = torch.randn(right.shape).to(dtype)
    near = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, right, **near)
    (expected_grad,) = torch.autograd.grad(right, rows, weights)
    (grad,) = torch.autograd.grad(found, rows, weights)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch's forward mode
def test_transforms_and_saved_bytes() -> None:
    x = torch.randn(3, 4, 2)
    segments = Segments(lengths=[4, 2, 1])
    tangent = torch.func.jvp(lambda x: poolkit.pool(x, segments, "mean"), (x,), (x,))[1]
    torch.testing.assert_close(tangent, poolkit.pool(x, segments, "mean"))
    many = torch.func.vmap(lambda x: poolkit.pool(x, segments, "max"))(torch.stack([x, -x]))
    torch.testing.assert_close(many[1], poolkit.pool(-x, segments, "max"))
    saved: list[int] = []
    rows = torch.randn(1000, 8, requires_grad=True)

    def pack(tensor: Any) -> Any:
        saved.append(tensor.numel() * tensor.itemsize)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        poolkit.pool(rows, Segments(offsets=[0, 100, 350, 1000]), "mean")
        assert saved == []
        poolkit.pool(rows, Segments(offsets=[0, 100, 350, 600, 800, 1000]), "max")
    assert saved == [5 * 8]


@pytest.mark.parametrize("reduction", ["sum", "mean", "SqrtN()", "max", "min", "soft"])
def test_weighted_segments_under_transforms(reduction: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    segments = poolkit.Segments(offsets=[0, 2, 2, 5], weights=torch.rand(5) + 0.1)

    def run(x: Any) -> Any:
        return poolkit.pool(x, segments, reduction)

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(run(leaf).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: run(x).square().sum())(x), want)
    torch.testing.assert_close(torch.func.vmap(run)(torch.stack([x, -x]))[1], run(-x))
