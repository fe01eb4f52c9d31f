"""Poolings by rank, by vote and by learned place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

from poolkit.vision import taps  # noqa: E402
from poolkit.vision.ordered import comparators  # noqa: E402

X = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]]])
WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 5), (3, 2), (1, 2)), (7, 2, 3), (1, 1, 0)]
HALVES = [torch.bfloat16, torch.float16]
WARNED = pytest.mark.filterwarnings(  # of by torch's own compiler and forward mode
    "ignore:.*should not be instantiated", "ignore:`torch.jit:DeprecationWarning"
)


def drawn(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def pairs(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def windows(x: Any, kernel: Any, stride: Any, padding: Any) -> Iterator[tuple[int, int, Any]]:
    """The place of each output, and the values (N, C, n) that it sees, in row-major order."""
    (kh, kw), (sh, sw), (ph, pw) = pairs(kernel), pairs(stride), pairs(padding)
    height, width = x.shape[-2:]
    for i in range((height + 2 * ph - kh) // sh + 1):
        for j in range((width + 2 * pw - kw) // sw + 1):
            a, b = i * sh - ph, j * sw - pw
            yield i, j, x[:, :, max(a, 0) : a + kh, max(b, 0) : b + kw].flatten(2)


def small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "STRIPE", 300)


# --- sorting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 11, 12])
def test_network_sorts_all_that_is_zero_or_one(n: int) -> None:
    # A network that sorts those sorts everything (Knuth, section 5.3.4, theorem Z).
    lines = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    for i, j in comparators(n):
        low, high = np.minimum(lines[:, i], lines[:, j]), np.maximum(lines[:, i], lines[:, j])
        lines[:, i], lines[:, j] = low, high
    assert (np.diff(lines, axis=1) >= 0).all()


def test_that_check_can_fail() -> None:
    lines = (np.arange(8)[:, None] >> np.arange(3)) & 1
    assert not (np.diff(lines, axis=1) >= 0).all()


def test_large_networks_sort() -> None:
    for n in (25, 49):
        values = list(np.random.default_rng(0).permutation(n))
        for i, j in comparators(n):
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        assert values == list(range(n))


# --- ranks ----------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    # Ranks 4, 3, 2, 1: the mean of the top 3; weights 1/2, 1/4, 1/8, 1/16 as published.
    assert poolkit.rank_pool2d(X, 2, mode="average", top=3).item() == pytest.approx(3)
    found = poolkit.rank_pool2d(X, 2, mode="weighted", alpha=0.5).item()
    assert found == 4 / 2 + 3 / 4 + 2 / 8 + 1 / 16
    found = poolkit.rank_pool2d(X, 2, normalize=True).item()  # their sum is 15 / 16
    assert found == pytest.approx((4 / 2 + 3 / 4 + 2 / 8 + 1 / 16) * 16 / 15)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_ranks_at_their_limits(window: Any) -> None:
    x = drawn(2, 3, 9, 8)
    largest = poolkit.max_pool2d(x, *window)
    mean = poolkit.avg_pool2d(x, *window, count_include_pad=False)
    everything = int(np.prod(pairs(window[0])))
    assert torch.equal(poolkit.rank_pool2d(x, *window, mode="average", top=1), largest)
    torch.testing.assert_close(
        poolkit.rank_pool2d(x, *window, mode="average", top=everything), mean
    )
    assert torch.equal(poolkit.rank_pool2d(x, *window, alpha=1), largest)
    assert torch.equal(poolkit.rank_pool2d(x, *window, mode="stochastic", alpha=1), largest)
    ones = torch.ones_like(x)
    flat = poolkit.rank_pool2d(ones, *window, alpha=0.3, normalize=True)
    torch.testing.assert_close(flat, torch.ones_like(flat))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("stripes", ["one", "many"])
def test_ranks_of_all_windows(window: Any, stripes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if stripes == "many":
        small_stripes(monkeypatch)
    x = drawn(2, 3, 9, 8)
    pool = poolkit.nn.OrdinalPool2d(3, *window).double()
    torch.nn.init.normal_(pool.weight)
    found, ranked = pool(x), poolkit.rank_pool2d(x, *window, alpha=0.4)
    for i, j, values in windows(x, *window):
        values = values.sort(-1, descending=True).values
        n = values.shape[-1]
        weights = pool.weight[:, :n].softmax(-1)
        torch.testing.assert_close(found[:, :, i, j], (values * weights).sum(-1))
        powers = 0.4 * 0.6 ** torch.arange(n, dtype=x.dtype)
        torch.testing.assert_close(ranked[:, :, i, j], (values * powers).sum(-1))


def test_dilated_and_hanging_windows() -> None:
    x = drawn(1, 2, 9, 8)
    options = {"dilation": 2, "ceil_mode": True}
    found = poolkit.rank_pool2d(x, 3, 2, 1, mode="average", top=1, **options)
    assert torch.equal(found, poolkit.max_pool2d(x, 3, 2, 1, 2, True))
    found = poolkit.rank_pool2d(x, 3, 2, "same", mode="average", top=1)
    assert torch.equal(found, poolkit.max_pool2d(x, 3, 2, "same"))


def test_ordinal_is_mean_max_and_min() -> None:
    x = drawn(2, 3, 9, 9)
    pool = poolkit.nn.OrdinalPool2d(3, 3, 2, 1).double()
    mean = poolkit.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(pool(x), mean)
    with torch.no_grad():
        pool.weight[:, 0] = 2000
    assert torch.equal(pool(x), poolkit.max_pool2d(x, 3, 2, 1))
    whole = poolkit.nn.OrdinalPool2d(None, 3).double()
    with torch.no_grad():
        whole.weight[:, 8] = 2000
    assert torch.equal(whole(x), poolkit.min_pool2d(x, 3))
    torch.testing.assert_close(whole.weights().sum(-1), torch.ones(1, dtype=x.dtype))


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("stripes", ["one", "many"])
def test_ordinal_gradients(window: Any, stripes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if stripes == "many":
        small_stripes(monkeypatch)
    pool = poolkit.nn.OrdinalPool2d(2, *window).double()
    torch.nn.init.normal_(pool.weight)

    def run(x: Any, weight: Any) -> Any:
        return torch.func.functional_call(pool, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (drawn(2, 2, 4, 3).requires_grad_(), pool.weight))
    x = drawn(1, 2, 3, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(run, (x, pool.weight), fast_mode=True)


def test_equal_values_share_the_weights_of_their_ranks() -> None:
    x = torch.tensor([[[[0.0, 0.0], [0.0, 5.0]]]], requires_grad=True)
    poolkit.rank_pool2d(x, 2).sum().backward()
    # 5 has the first weight, the zeros the others, in whatever order.
    assert x.grad[0, 0, 1, 1] == 1 / 2
    assert sorted(x.grad.flatten().tolist()) == [1 / 16, 1 / 8, 1 / 4, 1 / 2]


def test_stochastic_ranks() -> None:
    x = X.expand(4000, 1, 2, 2)
    draw = torch.Generator().manual_seed(0)
    arguments = {"mode": "stochastic", "alpha": 0.5, "generator": draw}
    found = poolkit.rank_pool2d(x, 2, **arguments)
    share = [(found == value).double().mean().item() for value in (4, 3, 2, 1)]
    want = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16]) / (15 / 16)
    np.testing.assert_allclose(share, want, atol=0.03)
    draw.manual_seed(0)
    assert torch.equal(found, poolkit.rank_pool2d(x, 2, **arguments))
    # What is drawn has the gradient.
    leaf = X.clone().requires_grad_()
    value = poolkit.rank_pool2d(leaf, 2, **arguments)
    value.backward()
    assert torch.equal(leaf.grad, (value == X).float())
    # Windows over the border draw from what they see.
    at_border = poolkit.rank_pool2d(X.expand(500, 1, 2, 2), 2, 1, 1, mode="stochastic")
    assert (at_border[:, 0, 0, 0] == 4).all()
    # 4 and 1, with 1/2 and 1/4 of 3/4.
    assert (at_border[:, 0, 0, 1] == 4).double().mean().item() == pytest.approx(2 / 3, abs=0.1)
    draw.manual_seed(0)
    module = poolkit.nn.RankPool2d(2, **arguments)
    assert torch.equal(module(x), found)
    module = poolkit.nn.RankPool2d(2, mode="stochastic").eval()
    assert torch.equal(module(X), poolkit.rank_pool2d(X, 2, normalize=True))


# --- votes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool],
    ids=str,
)
def test_mode(window: Any, dtype: Any) -> None:
    x = (drawn(2, 3, 9, 8) * (0.5 if dtype == torch.bool else 1.5)).round().abs().to(dtype)
    found = poolkit.mode_pool2d(x, *window)
    assert found.dtype == dtype
    for i, j, values in windows(x, *window):
        for n in range(2):
            for c in range(3):
                seen, counts = values[n, c].unique(return_counts=True)  # ascending
                assert found[n, c, i, j] == seen[counts.argmax()]


def test_mode_of_the_largest_integers() -> None:
    most, least = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
    x = torch.tensor([[[most, most, least, most - 1]]])
    assert poolkit.mode_pool2d(x, (1, 4)).item() == most
    # What hangs over the border is no value: 1 against the largest, and the smaller one wins.
    assert poolkit.mode_pool2d(torch.tensor([[[1, most]]]), (1, 4), 1, (0, 2)).tolist() == [
        [[1, 1, 1]]
    ]


def test_mode_gradient_is_shared() -> None:
    x = torch.tensor([[[[7.0, 7.0], [1.0, 7.0]]]], dtype=torch.float64, requires_grad=True)
    poolkit.mode_pool2d(x, 2).backward()
    torch.testing.assert_close(x.grad, (x == 7).double() / 3)
    assert not poolkit.mode_pool2d(x.long(), 2).requires_grad


# --- weights by place -----------------------------------------------------------------------------


def test_leap() -> None:
    pool = poolkit.nn.LEAPPool2d(None, 2)
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert pool(X).item() == 4 * 1 + 1 * 2 + 3 * 3 + 2 * 4
    x = drawn(2, 3, 7, 6)
    for window in WINDOWS:
        mean = poolkit.avg_pool2d(x, *window)
        torch.testing.assert_close(poolkit.nn.LEAPPool2d(3, *window).double()(x), mean)
    wide = poolkit.nn.LEAPPool2d(3, 3, 2, 1).double()
    torch.nn.init.normal_(wide.weight)
    for i, j, values in windows(torch.nn.functional.pad(x, (1, 1, 1, 1)), 3, 2, 0):
        want = (values * wide.weight.flatten(1)).sum(-1)
        torch.testing.assert_close(wide(x)[:, :, i, j], want)

    def run(x: Any, weight: Any) -> Any:
        return torch.func.functional_call(wide, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x[:1].clone().requires_grad_(), wide.weight))


# --- all of them ----------------------------------------------------------------------------------

MODULES = {
    "ordinal": lambda: poolkit.nn.OrdinalPool2d(3, 2, 2, 1),
    "rank": lambda: poolkit.nn.RankPool2d(2, 2, 1),
    "mode": lambda: poolkit.nn.ModePool2d(2, 2, 1),
    "leap": lambda: poolkit.nn.LEAPPool2d(3, 2, 2, 1),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types(name: str, dtype: Any) -> None:
    module = MODULES[name]()
    x = drawn(2, 3, 9, 8).to(dtype)
    halves, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    found, want = module(halves), module.double()(wide)
    assert found.dtype == dtype
    # Rounded once: the nearest of the half type, but for sums that fall between two.
    torch.testing.assert_close(found, want.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    found.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(halves.grad.double(), wide.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", MODULES)
def test_formats_integers_nan_and_ranks_of_arrays(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 9, 8, dtype=torch.float32)
    want = module(x)
    behind = module(x.contiguous(memory_format=torch.channels_last))
    assert behind.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(behind, want)
    torch.testing.assert_close(module(x[0]), want[0])
    assert module(x[:0].requires_grad_()).shape == (0, 3, 5, 5)
    whole = (4 * x).round()
    for dtype in (torch.int32, torch.int8):
        found = module(whole.to(dtype))
        assert found.dtype == (dtype if name == "mode" else torch.float32)
        torch.testing.assert_close(found.float(), module(whole))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), want)
    x[0, 0, 4, 4] = torch.nan
    assert module(x)[0, 0].isnan().sum() == 1  # windows do not overlap
    assert module(x)[0, 1:].isfinite().all()


@WARNED
@pytest.mark.parametrize("name", MODULES)
def test_compiled_and_transformed(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 7, 7, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, want = compiled(one), module(other)
    torch.testing.assert_close(found, want)
    (found**2).sum().backward()
    (want**2).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    gradient = torch.func.grad(lambda x: (module(x) ** 2).sum())(x)
    torch.testing.assert_close(gradient, other.grad)
    _, derivative = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    (along,) = torch.autograd.grad(module(other).sum(), other)
    torch.testing.assert_close(derivative.sum(), along.sum())


def test_names_and_state() -> None:
    for name in MODULES:
        made = poolkit.nn.create_pool2d(name, channels=3, kernel_size=2, stride=2, padding=1)
        assert repr(made) == repr(MODULES[name]())
    weights = poolkit.nn.OrdinalPool2d(3, 3).state_dict()
    assert {key: tuple(value.shape) for key, value in weights.items()} == {"weight": (3, 9)}
    assert set(poolkit.nn.LEAPPool2d(None, 2).state_dict()) == {"weight"}


def test_errors() -> None:
    nn = poolkit.nn
    refused: list[tuple[Any, str]] = [
        (
            lambda: nn.OrdinalPool2d(3, 2)(torch.rand(1, 2, 4, 4)),
            r"weights are for 3 channels, the input has 2, while pooling float32 \(1, 2, 4, 4\) by "
            "OrdinalPool2d. Make them agree, or make the module with channels=None",
        ),
        (lambda: nn.LEAPPool2d(3, 2)(torch.rand(1, 2, 4, 4)), "the input has 2"),
        (lambda: nn.OrdinalPool2d(0, 2), "channels must be at least 1, got 0"),
        (lambda: nn.LEAPPool2d(2.5, 2), "channels must be an integer or None, got 2.5"),
        (lambda: nn.RankPool2d(0), "kernel_size must be at least 1, got 0"),
        (lambda: nn.ModePool2d(2, padding=2), "padding 2 is more than half of the window of 2"),
        (lambda: poolkit.rank_pool2d(X, 2, alpha=2.0), "alpha must be above 0 and at most 1"),
        (lambda: poolkit.rank_pool2d(X, 2, alpha="a"), "alpha must be a number, got 'a'"),
        (
            lambda: poolkit.rank_pool2d(X, 2, mode="average", top=9),
            r"mean of the top 9 was asked for, of windows of 4 values.*Give 1 \(the max\) to 4",
        ),
        (lambda: poolkit.rank_pool2d(X, 2, top=True), "top must be an integer or None"),
        (lambda: poolkit.rank_pool2d(X, 2, mode="mean"), "no mode 'mean'.*'average', 'weighted'"),
        (lambda: poolkit.mode_pool2d(X, 3), r"a window of 3 positions does not fit axis 0"),
        (lambda: poolkit.mode_pool2d(np.ones((1, 4, 4)), 2), "a torch tensor was expected, got nd"),
        (lambda: poolkit.mode_pool2d(torch.ones(4, 4), 2), "input of rank 3 .* or 4"),
        (lambda: poolkit.mode_pool2d(X.cfloat(), 2), "dtype complex64 cannot be pooled"),
        (
            lambda: poolkit.mode_pool2d(X, 1, 1, ((2, 0), (0, 0))),
            "a window lies wholly in the padding, where it has no values.*Use less padding",
        ),
    ]
    for call, message in refused:
        with pytest.raises(poolkit.PoolError, match=message):
            call()
