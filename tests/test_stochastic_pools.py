"""Pooling by chance: frequencies of the draws, what they expect, and their generators."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

import poolkit
from poolkit import PoolError, PoolTypeError, PoolValueError

torch = pytest.importorskip("torch")

from poolkit.vision.stochastic import (  # noqa: E402
    S3Pool2d,
    StochasticPool2d,
    fractional_samples,
    s3_pool2d,
    stochastic_pool2d,
)


def seeded(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def chi_square(counts: Any, expected: Any) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


# --- stochastic -----------------------------------------------------------------------------------


def test_stochastic_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0], [-2.0, 4.0]]]])
    # Outside training (1 + 9 + 16) / (1 + 3 + 4) = 3.25; what is negative does not count.
    assert stochastic_pool2d(x, 2, training=False).item() == 3.25
    draws = {stochastic_pool2d(x, 2, generator=seeded(seed)).item() for seed in range(40)}
    assert draws == {1.0, 3.0, 4.0}
    # Nothing positive gives 0, in training and outside.
    for training in (True, False):
        assert stochastic_pool2d(-x.abs(), 2, training=training).item() == 0
        assert stochastic_pool2d(torch.zeros(1, 2, 2), 2, training=training).item() == 0


def test_stochastic_frequencies() -> None:
    # 20000 windows of 1, 2, 3, 4 and -5: chances 0.1, 0.2, 0.3, 0.4 and none. Three degrees of
    # freedom: a fair draw exceeds 16.27 once in a thousand, and the seed is fixed.
    n = 20000
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, -5.0]).repeat(n).reshape(1, 1, n, 5)
    found = stochastic_pool2d(x, (1, 5), generator=seeded()).flatten()
    counts = np.bincount(found.int().numpy(), minlength=5)
    assert counts[0] == 0
    assert counts.sum() == n
    assert chi_square(counts[1:], n * np.array([0.1, 0.2, 0.3, 0.4])) < 16.27
    # Windows that do not overlap are independent: neighbours agree as often as two dice do.
    pairs = found.reshape(-1, 2).int().numpy()
    joint = np.zeros((4, 4))
    np.add.at(joint, (pairs[:, 0] - 1, pairs[:, 1] - 1), 1)
    chances = np.array([0.1, 0.2, 0.3, 0.4])
    assert chi_square(joint, n / 2 * np.outer(chances, chances)) < 37.7  # 15 degrees
    # The test can fail: these are no even draws.
    assert chi_square(counts[1:], np.full(4, n / 4)) > 1000


def test_stochastic_frequencies_of_windows_that_overlap() -> None:
    # Windows (1, 2) and (2, 5) of the same row: each draws as it should, though not apart.
    n = 20000
    x = torch.tensor([1.0, 2.0, 5.0]).repeat(n).reshape(1, 1, n, 3)
    found = stochastic_pool2d(x, (1, 2), (1, 1), generator=seeded(1))[0, 0].int().numpy()
    for place, (low, high) in enumerate(((1, 2), (2, 5))):
        counts = np.array([(found[:, place] == value).sum() for value in (low, high)])
        share = np.array([low, high]) / (low + high)
        assert chi_square(counts, n * share) < 10.83  # one degree
    both = np.mean((found[:, 0] == 2) & (found[:, 1] == 2))
    assert abs(both - 2 / 3 * 2 / 7) > 0.01


def test_stochastic_expects_what_it_gives_outside_training() -> None:
    x = drawn(1, 1, 4, 4).abs()
    many = x.expand(4000, 3, 4, 4)
    mean = stochastic_pool2d(many, 3, 1, 1, generator=seeded()).mean((0, 1), keepdim=True)
    torch.testing.assert_close(
        mean, stochastic_pool2d(x, 3, 1, 1, training=False), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("place", [(2, None, 0), (3, 2, 1), (2, 2, ((0, 1), (1, 0)))], ids=str)
def test_stochastic_gradcheck(place: Any) -> None:
    x = drawn(1, 2, 5, 6).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x: stochastic_pool2d(x, *place, training=False), (x,))
    assert check(lambda x: stochastic_pool2d(x, *place, generator=seeded(4)), (x,))
    # Where nothing is positive there is no gradient.
    dead = (-x.detach().abs()).requires_grad_()
    for training in (True, False):
        stochastic_pool2d(dead, 2, training=training, generator=seeded()).sum().backward()
    assert not dead.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stochastic_of_large_and_small_values(dtype: Any) -> None:
    for size in (torch.finfo(dtype).max / 4, torch.finfo(dtype).tiny * 4):
        x = torch.tensor([[[1.0, 3.0, 0.0]]], dtype=dtype) * size
        assert stochastic_pool2d(x, (1, 3), training=False).item() == pytest.approx(
            2.5 * size, rel=1e-5
        )
        found = stochastic_pool2d(x.expand(400, 1, 3), (1, 3), generator=seeded())
        # Three of four are the larger, give or take four standard deviations of 0.0217.
        assert abs((found == 3 * size).double().mean().item() - 0.75) < 0.09
        assert ((found == size) | (found == 3 * size)).all()
    broken = torch.tensor([[[1.0, math.nan]]])
    for training in (True, False):
        assert stochastic_pool2d(broken, (1, 2), training=training).isnan().all()


# --- S3 -------------------------------------------------------------------------------------------


def test_s3_by_hand() -> None:
    x = torch.tensor([[[[1.0, 5.0, 2.0, 0.0], [0.0, 3.0, 4.0, 7.0]]]])
    # Max over (row, next row) x (column, next column), beyond the edge nothing:
    #   5 5 7 7
    #   3 4 7 7     cells of 2 x 2: {5, 5, 3, 4} and {7, 7, 7, 7}
    assert s3_pool2d(x, 2, training=False).flatten().tolist() == [4.25, 7]
    draws = {s3_pool2d(x, 2, generator=seeded(seed))[0, 0, 0, 0].item() for seed in range(60)}
    assert draws == {3, 4, 5}


def test_s3_draws_rows_and_columns() -> None:
    x = torch.arange(48.0).reshape(1, 1, 6, 8).expand(2, 3, 6, 8)
    # A window of one position is no max, so what comes out are rows and columns of x.
    for seed in range(20):
        found = s3_pool2d(x, 1, 2, generator=seeded(seed))
        assert found.shape == (2, 3, 3, 4)
        assert (found == found[:1, :1]).all()  # one draw for all images and channels
        rows, columns = found[0, 0, :, 0] // 8, found[0, 0, 0] % 8
        assert (rows // 2).tolist() == [0, 1, 2]
        assert (columns // 2).tolist() == [0, 1, 2, 3]
        assert torch.equal(found[0, 0], rows[:, None] * 8 + columns)
        # Two of four in each strip, in order.
        wide = s3_pool2d(x, 1, 2, grid_size=(6, 4), generator=seeded(seed))[0, 0]
        assert wide.shape == (3, 4)
        rows, columns = wide[:, 0] // 8, wide[0] % 8
        assert (rows.diff() > 0).all()
        assert (columns.diff() > 0).all()
        assert (columns // 4).tolist() == [0, 0, 1, 1]


def test_s3_frequencies() -> None:
    x = torch.arange(4.0).reshape(1, 4, 1)
    counts = np.zeros(4)
    generator = seeded()
    for _ in range(4000):
        (value,) = s3_pool2d(x, 1, (4, 1), generator=generator).flatten().tolist()
        counts[int(value)] += 1
    assert chi_square(counts, np.full(4, 1000.0)) < 16.27  # three degrees


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1, "grid_size": 2, "padding": 0},
    ],
    ids=str,
)
def test_s3_is_an_average_of_maxima(options: dict[str, Any]) -> None:
    x = drawn(2, 3, 7, 9).requires_grad_()
    dense = poolkit.pool(
        x, poolkit.Sliding(options["kernel_size"], 1, options.get("padding", "same")), "max", ndim=2
    )
    step = options.get("stride", options["kernel_size"])
    grid = options.get("grid_size", step)
    height, width = (n // grid * grid for n in dense.shape[-2:])
    want = torch.nn.functional.avg_pool2d(dense[..., :height, :width], step)
    torch.testing.assert_close(s3_pool2d(x, **options, training=False), want)
    assert s3_pool2d(x, **options).shape == want.shape
    check = torch.autograd.gradcheck
    assert check(lambda x: s3_pool2d(x, **options, training=False), (x,))
    assert check(lambda x: s3_pool2d(x, **options, generator=seeded(2)), (x,))


# --- fractional -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional_samples_give_the_same_regions(ndim: int) -> None:
    pool = {2: poolkit.fractional_max_pool2d, 3: poolkit.fractional_max_pool3d}[ndim]
    x = drawn(2, 3, *(11, 9, 10)[:ndim])

    def regions(seed: int) -> Any:
        samples = fractional_samples(x, ndim, seeded(seed))
        assert samples.shape == (2, 3, ndim)
        assert samples.dtype == x.dtype
        return pool(x, 2, output_ratio=0.7, return_indices=True, _random_samples=samples)

    once, again, other = regions(0), regions(0), regions(1)
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[1], other[1])
    # One generator that goes on draws others.
    generator = seeded()
    first, second = (fractional_samples(x, ndim, generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_fractional_samples_of_shapes_and_arrays() -> None:
    assert fractional_samples((4, 9, 9), generator=seeded()).shape == (1, 4, 2)
    assert fractional_samples((2, 4, 9, 9), dtype=torch.float64).dtype == torch.float64
    half = fractional_samples(torch.zeros(1, 1, 9, 9, dtype=torch.float16))
    assert half.dtype == torch.float16
    x = np.random.default_rng(0).random((2, 3, 9, 9)).astype("float32")
    once, again = (fractional_samples(x, generator=np.random.default_rng(7)) for _ in range(2))
    assert once.dtype == np.float32
    np.testing.assert_array_equal(once, again)
    a, b = (
        poolkit.fractional_max_pool2d(x, 2, output_size=5, _random_samples=samples)
        for samples in (once, again)
    )
    np.testing.assert_array_equal(a, b)
    # Rounding to a narrow dtype never gives 1, which would be out of range.
    narrow = fractional_samples(
        np.empty((1, 100000, 1, 1), dtype="float16"), generator=np.random.default_rng(0)
    )
    assert narrow.max() < 1


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [StochasticPool2d, S3Pool2d])
def test_modules(made: Any) -> None:
    x = drawn(2, 3, 8, 8, dtype=torch.float32).abs()
    module = made(2, generator=seeded())
    function = stochastic_pool2d if made is StochasticPool2d else s3_pool2d
    twin = copy.deepcopy(module)  # with a generator of its own, at the same place
    first = module(x)
    assert torch.equal(first, function(x, 2, generator=seeded()))
    assert torch.equal(twin(x), first)
    assert not torch.equal(module(x), first)
    module.eval()
    assert torch.equal(module(x), module(x))
    assert torch.equal(module(x), function(x, 2, training=False))
    assert not module.state_dict()
    # Torch's own generator, where none is given.
    torch.manual_seed(5)
    once = made(2)(x)
    torch.manual_seed(5)
    assert torch.equal(made(2)(x), once)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("function", [stochastic_pool2d, s3_pool2d])
def test_layouts_dtypes_and_empty_batches(function: Any, training: bool) -> None:
    x = drawn(2, 3, 8, 8, dtype=torch.float32)

    def run(x: Any) -> Any:
        return function(x, 2, training=training, generator=seeded(3))

    want = run(x)
    torch.testing.assert_close(run(x.contiguous(memory_format=torch.channels_last)), want)
    assert run(x[0]).shape == want.shape[1:]
    empty = x[:0].clone().requires_grad_()
    pooled = run(empty)
    assert pooled.shape == (0, *want.shape[1:])
    pooled.sum().backward()
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        found = run(half)
        assert found.dtype == dtype
        # Drawn in float32, so that the values are those that a wide input draws.
        torch.testing.assert_close(
            found.float(), run(half.float()), rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("made", [StochasticPool2d, S3Pool2d])
def test_compile(made: Any) -> None:
    x = drawn(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    for module in (made(2).eval(), made(2)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        found = compiled(x)
        assert found.shape == (2, 3, 4, 4)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.isfinite().all()
        if not module.training:
            torch.testing.assert_close(found, module(x))


def test_errors() -> None:
    x = torch.zeros(1, 3, 4, 4)

    def says(error: type[PoolError], text: str) -> Any:
        return pytest.raises(error, match=text)

    for function in (stochastic_pool2d, s3_pool2d):
        name = function.__name__
        with says(PoolTypeError, f"a torch tensor was expected, got ndarray.* by {name}"):
            function(x.numpy(), 2)
        with says(PoolTypeError, f"draws are of a floating dtype, while .* by {name}.*x.float"):
            function(x.int(), 2)
        with says(PoolValueError, f"rank 2, while pooling float32 .4, 4. by {name}"):
            function(x[0, 0], 2)
        with says(PoolTypeError, "generator must be a torch.Generator or None, got int"):
            function(x, 2, generator=3)
    with says(PoolTypeError, "generator must be a torch.Generator or None, got Generator"):
        StochasticPool2d(2, generator=np.random.default_rng())
    with says(PoolValueError, "grid_size 3 is no multiple of the stride 2"):
        S3Pool2d(2, grid_size=3)
    with says(PoolValueError, "a strip of 6 does not fit 4 positions.*smaller grid_size"):
        s3_pool2d(x, 2, grid_size=6)
    with says(PoolValueError, "kernel_size must be at least 1"):
        StochasticPool2d(0)
    with says(PoolValueError, "a shape of 3 or 4 axes was expected, got .5, 5."):
        fractional_samples((5, 5))
    with says(PoolTypeError, "a Generator does not draw for a ndarray"):
        fractional_samples(np.zeros((1, 1, 9, 9)), generator=seeded())
