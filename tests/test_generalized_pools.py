"""Between the average and the maximum, and by rank: values by hand, limits, learned exponents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import poolkit
from poolkit import PoolError, PoolTypeError, PoolValueError, Sliding

torch = pytest.importorskip("torch")

from poolkit.vision.generalized import (  # noqa: E402
    GeMPool2d,
    GlobalGeMPool2d,
    LSEPool2d,
    MedianPool2d,
    QuantilePool2d,
    SoftPool2d,
    StdPool2d,
    TopKPool2d,
    gem_pool2d,
    lse_pool2d,
    median_pool2d,
    quantile_pool2d,
    soft_pool2d,
    std_pool2d,
    top_k_pool2d,
)

X = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
PLACES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "padding": "same", "dilation": 2},
    {"kernel_size": 2, "stride": 2, "padding": ((0, 1), (1, 0))},
    {"kernel_size": None},
]
SMOOTH: dict[str, Callable[..., Any]] = {
    "soft": lambda x, **place: soft_pool2d(x, beta=1.5, **place),
    "gem": lambda x, **place: gem_pool2d(x, p=2.5, **place),
    "lse": lambda x, **place: lse_pool2d(x, r=2.5, **place),
}


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def window_of(place: dict[str, Any]) -> Any:
    return poolkit.Global() if place["kernel_size"] is None else Sliding(**place)


# --- values --------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # Σ x e^x / Σ e^x, (Σ x^3 / 4)^(1/3) = 25^(1/3), log of the mean of e^x, and ranks.
    e = [math.exp(v) for v in (1, 2, 3, 4)]
    soft = sum(v * w for v, w in zip((1, 2, 3, 4), e, strict=True)) / sum(e)
    assert soft_pool2d(X, 2).item() == pytest.approx(soft, rel=1e-12)
    assert gem_pool2d(X, 2, p=3.0).item() == pytest.approx(25 ** (1 / 3), rel=1e-12)
    assert lse_pool2d(X, 2).item() == pytest.approx(math.log(sum(e) / 4), rel=1e-12)
    assert median_pool2d(X, 2).item() == 2.5
    assert quantile_pool2d(X, 2, q=1.0).item() == 4
    assert quantile_pool2d(X, 2, q=0.25).item() == 1.75  # rank 0.75: between 1 and 2
    assert std_pool2d(X, 2).item() == pytest.approx(math.sqrt(1.25), rel=1e-12)
    assert std_pool2d(X, 2, correction=1).item() == pytest.approx(math.sqrt(5 / 3), rel=1e-12)
    assert top_k_pool2d(X, 2, k=2).item() == 3.5


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_against_loops(place: dict[str, Any]) -> None:
    x = drawn(2, 3, 7, 6) + 0.1
    window = window_of(place)
    found = {name: pool(x, **place) for name, pool in SMOOTH.items()}
    rows, columns = window.axes((7, 6))
    for i in range(len(rows.begin)):
        for j in range(len(columns.begin)):
            seen = x[:, :, rows.begin[i] :: rows.step, columns.begin[j] :: columns.step]
            values = seen[:, :, : rows.count[i], : columns.count[j]].flatten(2)
            weights = (1.5 * values).softmax(-1)
            wanted = {
                "soft": (weights * values).sum(-1),
                "gem": values.pow(2.5).mean(-1).pow(1 / 2.5),
                "lse": (2.5 * values).exp().mean(-1).log() / 2.5,
            }
            for name, want in wanted.items():
                torch.testing.assert_close(found[name][:, :, i, j], want, msg=name)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_short_forms_of_reductions(place: dict[str, Any]) -> None:
    x, window = drawn(2, 3, 7, 6, dtype=torch.float32), window_of(place)
    for function, options, reduction in (
        (soft_pool2d, {"beta": 2.0}, "Soft(2.0)"),
        (lse_pool2d, {"r": 2.0}, "LogSumExp(2.0)"),
        (median_pool2d, {}, "median"),
        (quantile_pool2d, {"q": 0.3}, "Quantile(0.3)"),
        (std_pool2d, {"correction": 1}, "Std(1)"),
        (top_k_pool2d, {"k": 2}, "TopK(2)"),
    ):
        want = poolkit.pool(x, window, reduction, ndim=2)
        # Of a single value there is no estimate of the deviation: NaN.
        same = np.testing.assert_array_equal
        same(function(x, **place, **options).numpy(), want.numpy())
        same(function(x.numpy(), **place, **options), want.numpy())
        same(function(x[0], **place, **options).numpy(), want[0].numpy())
    # GeM by logarithms, so equal but for rounding.
    want = poolkit.pool(x, window, "GeM(3.0)", ndim=2)
    torch.testing.assert_close(gem_pool2d(x, **place), want, rtol=3e-6, atol=0)
    np.testing.assert_allclose(gem_pool2d(x.numpy(), **place), want.numpy(), rtol=3e-6)


def test_lp_takes_absolute_values() -> None:
    x = torch.tensor([[[[-1.0, -2.0, 2.0]]]], dtype=torch.float64)
    # (1 + 8 + 8)^(1/3), not the root of -1 - 8 + 8.
    assert poolkit.lp_pool2d(x, 3.0, (1, 3)).item() == pytest.approx(17 ** (1 / 3))
    module = poolkit.nn.LPPool2d(3, (1, 3))
    assert torch.equal(module(x), module(-x))


# --- limits --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.125, 8), min_size=4, max_size=4), st.floats(1, 20))
def test_lie_between_average_and_maximum(values: list[float], sharpness: float) -> None:
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2)
    low, high = x.mean().item() - 1e-9, x.max().item() + 1e-9
    # As a mean of powers the norm lies there too; as it is, between the max and the sum.
    norm = poolkit.lp_pool2d(x, sharpness, 2).item()
    learned = torch.tensor(sharpness, dtype=torch.float64)
    for found in (
        soft_pool2d(x, 2, beta=sharpness).item(),
        gem_pool2d(x, 2, p=sharpness).item(),
        gem_pool2d(x, 2, p=learned).item(),
        lse_pool2d(x, 2, r=sharpness).item(),
        lse_pool2d(x, 2, r=learned).item(),
        norm / 4 ** (1 / sharpness),
    ):
        assert low <= found <= high
    assert high - 2e-9 <= norm <= x.sum().item() + 1e-9


def test_limits() -> None:
    x = drawn(2, 3, 6, 6) + 0.5
    mean, most = poolkit.avg_pool2d(x, 2), poolkit.max_pool2d(x, 2)
    torch.testing.assert_close(gem_pool2d(x, 2, p=1.0), mean)
    torch.testing.assert_close(gem_pool2d(x, 2, p=torch.ones(1)), mean)
    torch.testing.assert_close(gem_pool2d(x, 2, p=2000.0), most, rtol=1e-3, atol=0)
    torch.testing.assert_close(lse_pool2d(x, 2, r=1e-3), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse_pool2d(x, 2, r=5000.0), most, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(soft_pool2d(x, 2, beta=1e-6), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(soft_pool2d(x, 2, beta=5000.0), most, rtol=1e-3, atol=1e-3)
    assert torch.equal(top_k_pool2d(x, 2, k=1), most)
    torch.testing.assert_close(top_k_pool2d(x, 2, k=4), mean)
    assert torch.equal(quantile_pool2d(x, 2, q=0.0), poolkit.min_pool2d(x, 2))
    assert torch.equal(quantile_pool2d(x, 2, q=0.5), median_pool2d(x, 2))
    # What is not above 0 counts as eps.
    assert gem_pool2d(-x, 2, eps=1e-4).unique().numpy() == pytest.approx([1e-4])
    # A learned p may wander off; it counts as 0.001 then.
    torch.testing.assert_close(
        gem_pool2d(x, 2, p=torch.tensor(-1.0)), gem_pool2d(x, 2, p=1e-3), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("large", [1e20, 3e38])
def test_no_overflow(large: float) -> None:
    x = torch.tensor([[[[large, -large], [1.0, large]]]], requires_grad=True)
    for sharp in (1.0, 3.0, 50.0):
        p = torch.tensor([sharp], requires_grad=True)
        for pool in (
            lambda x, p=p: gem_pool2d(x, 2, p=p),
            lambda x, p=sharp: gem_pool2d(x, 2, p=p),
            lambda x, p=p: lse_pool2d(x, 2, r=p),
            lambda x, p=sharp: lse_pool2d(x, 2, r=p),
            lambda x, p=sharp: soft_pool2d(x, 2, beta=p),
        ):
            x.grad = p.grad = None
            found = pool(x)
            assert 0.49 * large < found.item() <= large * (1 + 1e-5)
            found.sum().backward()
            assert x.grad.isfinite().all()
            # The two that are largest have nearly all of the gradient, in equal shares.
            assert x.grad[0, 0, 0, 0] == pytest.approx(x.grad[0, 0, 1, 1].item())
            assert p.grad is None or p.grad.isfinite().all()
    low = torch.full((1, 1, 2, 2), -large)
    assert lse_pool2d(low, 2, r=torch.tensor(50.0)).item() == low[0, 0, 0, 0]
    # Nor does a power of small values vanish.
    assert gem_pool2d(torch.full((1, 1, 2, 2), 1e-5), 2, p=50.0).item() == pytest.approx(1e-5, 1e-5)


def test_nan_and_infinities() -> None:
    p = torch.tensor(2.0)
    pools = [*SMOOTH.values(), lambda x, **at: gem_pool2d(x, p=p, **at),
             lambda x, **at: lse_pool2d(x, r=p, **at)]  # fmt: skip
    for pool in pools:
        for bad in (math.nan, math.inf):
            x = torch.ones(1, 1, 2, 4)
            x[..., 0, 0] = bad
            found = pool(x, kernel_size=2)
            assert found[0, 0, 0, 0].item() == pytest.approx(bad, nan_ok=True)
            assert found[0, 0, 0, 1].item() == pytest.approx(1)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str, place: dict[str, Any]) -> None:
    x = drawn(1, 2, 5, 4).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SMOOTH[name](x, **place), (x,))


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("channels", [1, 2])
def test_gradcheck_of_what_is_learned(channels: int, place: dict[str, Any]) -> None:
    x = drawn(2, 2, 5, 4).add(0.1).requires_grad_()
    k = drawn(channels, seed=1).mul(3).add(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, k: gem_pool2d(x, p=k, **place), (x, k))
    assert torch.autograd.gradcheck(lambda x, k: lse_pool2d(x, r=k, **place), (x, k))


def test_second_derivatives() -> None:
    x = drawn(1, 2, 3, 3).add(0.1).requires_grad_()
    k = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradgradcheck
    assert check(lambda x, k: gem_pool2d(x, 2, 1, p=k), (x, k))
    assert check(lambda x, k: lse_pool2d(x, 2, 1, r=k), (x, k))
    assert check(lambda x: soft_pool2d(x, 2, 1), (x,))


def test_gradient_by_hand() -> None:
    # Of p = 2 over 1, 7: y = 5, dy/dx = x / (2 y); dy/dp = y/p (Σ x^2 log(x/y) / (2 y^2)).
    x = torch.tensor([[[1.0, 7.0]]], dtype=torch.float64, requires_grad=True)
    p = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    gem_pool2d(x, p=p).backward()
    assert x.grad.flatten().tolist() == pytest.approx([0.1, 0.7])
    slope = 5 / 2 * (math.log(1 / 5) + 49 * math.log(7 / 5)) / 50
    assert p.grad.item() == pytest.approx(slope)
    # Below eps there is no gradient.
    x = torch.tensor([[[-1.0, 7.0]]], requires_grad=True)
    gem_pool2d(x).backward()
    assert x.grad[0, 0, 0] == 0


@pytest.mark.parametrize("name", SMOOTH)
def test_the_input_alone_is_saved(name: str) -> None:
    x = drawn(1, 2, 9, 9).requires_grad_()
    kept = []

    def keep(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SMOOTH[name](x, kernel_size=5, stride=1)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


# --- dtypes and layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype: Any) -> None:
    half = drawn(2, 3, 8, 8).mul(9).to(dtype)
    precision = torch.finfo(dtype).eps
    p = torch.tensor([3.0])
    for pool in (*SMOOTH.values(), lambda x, **at: gem_pool2d(x, p=p, **at)):
        x, wide = half.clone().requires_grad_(), half.double().requires_grad_()
        found, want = pool(x, kernel_size=3, stride=2), pool(wide, kernel_size=3, stride=2)
        assert found.dtype == dtype
        # Rounded once: within half a unit in the last place, and a little for float32.
        torch.testing.assert_close(found.double(), want, rtol=0.502 * precision, atol=0)
        (gradient,) = torch.autograd.grad(found.float().square().sum(), x)
        (exact,) = torch.autograd.grad(want.square().sum(), wide)
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), exact, rtol=8 * precision, atol=8 * precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_values_of_each_dtype_are_finite(dtype: Any) -> None:
    x = torch.full((1, 1, 4, 4), 30000.0, dtype=dtype)
    x[..., 0, 0] = -30000.0
    for found in (
        soft_pool2d(x, 2),
        lse_pool2d(x, 2),
        gem_pool2d(x, 2, p=3.0),
        GeMPool2d(p=8.0)(x),
        LSEPool2d(2, r=4.0)(x),
    ):
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_memory_formats_and_empty_batches() -> None:
    x = drawn(2, 5, 7, 6, dtype=torch.float32)
    p = torch.full((5,), 3.0)
    pools = [*SMOOTH.values(), lambda x, **at: gem_pool2d(x, p=p, **at)]
    for pool in pools:
        front, behind = (
            x.clone(memory_format=layout).requires_grad_()
            for layout in (torch.contiguous_format, torch.channels_last)
        )
        a, b = pool(front, kernel_size=2), pool(behind, kernel_size=2)
        assert b.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a, b)
        a.square().sum().backward()
        b.square().sum().backward()
        torch.testing.assert_close(front.grad, behind.grad)
        none = x[:0].clone().requires_grad_()
        pool(none, kernel_size=2).sum().backward()
        assert none.grad.shape == none.shape


def test_integers_are_real_results() -> None:
    x = torch.tensor([[[[1, 7]]]])
    assert gem_pool2d(x, p=2).item() == pytest.approx(5)
    assert gem_pool2d(x.numpy(), p=2).dtype == np.float32


# --- modules --------------------------------------------------------------------------------------


def test_learned_exponents() -> None:
    x = drawn(2, 3, 5, 5).requires_grad_()
    for module in (
        GeMPool2d(per_channel=True, channels=3),
        GlobalGeMPool2d(p=4.0),
        GeMPool2d(2, p=2.0),
        LSEPool2d(2, r=2.0, learned=True),
    ):
        module.double()
        ((name, parameter),) = module.named_parameters()

        def run(x: Any, value: Any, module: Any = module, name: str = name) -> Any:
            return torch.func.functional_call(module, {name: value}, (x,))

        assert torch.autograd.gradcheck(run, (x, parameter))
    fixed = GeMPool2d(2, p=4.0, learned=False)
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed(x), gem_pool2d(x, 2, p=4.0))
    # One exponent for each channel: p = 1 is the mean of that channel.
    module = GeMPool2d(per_channel=True, channels=3).double()
    with torch.no_grad():
        module.p.copy_(torch.tensor([1.0, 2.0, 3.0]))
    found = module(x)
    assert found.shape == (2, 3, 1, 1)
    torch.testing.assert_close(found[:, 0, 0, 0], x[:, 0].mean((1, 2)))
    torch.testing.assert_close(found[:, 1, 0, 0], x[:, 1].square().mean((1, 2)).sqrt())


def test_the_exponent_is_found_again() -> None:
    x = drawn(8, 4, 6, 6, dtype=torch.float32)
    target = gem_pool2d(x, p=5.0)
    module = GeMPool2d()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        apart = 100 * (module(x) - target).square().sum()
        apart.backward()
        return apart

    optimizer.step(loss)
    assert module.p.item() == pytest.approx(5, abs=1e-2)


def test_names_of_modules() -> None:
    assert repr(GeMPool2d(2)) == (
        "GeMPool2d(kernel_size=2, stride=2, padding=0, p=1 learned, eps=1e-06)"
    )
    for made, function, options in (
        (SoftPool2d, soft_pool2d, {"beta": 2.0}),
        (MedianPool2d, median_pool2d, {}),
        (QuantilePool2d, quantile_pool2d, {"q": 0.3}),
        (StdPool2d, std_pool2d, {"correction": 1}),
        (TopKPool2d, top_k_pool2d, {"k": 2}),
    ):
        x = drawn(1, 2, 7, 7)
        assert torch.equal(made(3, 2, 1, **options)(x), function(x, 3, 2, 1, **options))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_and_autocast() -> None:
    x = drawn(2, 4, 6, 6, dtype=torch.float32).requires_grad_()
    for module in (SoftPool2d(2), GeMPool2d(), GeMPool2d(3, 2, 1), LSEPool2d(2, learned=True)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        found, want = compiled(x), module(x)
        torch.testing.assert_close(found, want)
        inputs = (x, *module.parameters())
        for a, b in zip(
            torch.autograd.grad(found.sum(), inputs),
            torch.autograd.grad(want.sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x.bfloat16()).dtype == torch.bfloat16


def test_errors() -> None:
    def says(error: type[PoolError], text: str) -> Any:
        return pytest.raises(error, match=text)

    with says(PoolValueError, "p for each channel needs their number. Give channels too"):
        GeMPool2d(per_channel=True)
    with says(PoolValueError, "r for each channel is a parameter. Give learned=True"):
        LSEPool2d(2, per_channel=True, channels=3)
    with says(PoolValueError, "channels must be at least 1, got 0"):
        GeMPool2d(per_channel=True, channels=0)
    with says(PoolValueError, "p must be above 0 and finite, got 0.0, while pooling float64"):
        gem_pool2d(X, 2, p=0.0)
    with says(PoolTypeError, "p must be a number, got '3'"):
        GeMPool2d(p="3")
    with says(PoolValueError, "eps must be above 0 and finite, got 0"):
        GeMPool2d(eps=0)
    with says(PoolValueError, "q must lie between 0 and 1, got 2"):
        QuantilePool2d(2, q=2.0)
    with says(PoolValueError, "kernel_size must be at least 1, got 0"):
        SoftPool2d(0)
    with says(PoolValueError, r"rank 1, while pooling float64 .2,. by gem_pool2d"):
        gem_pool2d(X[0, 0, 0], 2)
    with says(PoolValueError, r"p must be one number or one for each of 1 channels, got float32 "):
        gem_pool2d(X, 2, p=torch.ones(3))
    with says(PoolTypeError, "p is a tensor, the input is none"):
        gem_pool2d(X.numpy(), 2, p=torch.ones(1))
    with says(PoolValueError, "one window of all positions has no stride and no padding.*kernel"):
        soft_pool2d(X, None, stride=2)
    with says(PoolTypeError, "complex64 cannot be pooled"):
        soft_pool2d(X.to(torch.complex64).requires_grad_(), 2)


@pytest.mark.parametrize("make", [GlobalGeMPool2d, lambda: LSEPool2d(2, learned=True)])
def test_transforms_see_a_learned_exponent(make: Any) -> None:
    module = make()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.rand(4, 3, 6, 6)

    def loss(parameters: Any, one: Any) -> Any:
        return torch.func.functional_call(module, parameters, (one[None],)).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(len(x)):
        (want,) = torch.autograd.grad(
            loss(dict(module.named_parameters()), x[i]), module.parameters()
        )
        (name,) = parameters
        torch.testing.assert_close(of_each[name][i], want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.func.vmap(module)(x[:, None])[:, 0], module(x))
