"""Gradients: of every reduction over every window, twice; what is saved for them; their bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import poolkit  # noqa: E402
from poolkit.reductions import REDUCTIONS  # noqa: E402
from poolkit.torch import dispatch  # noqa: E402
from poolkit.windows import WINDOWS  # noqa: E402

ARGUMENTS: dict[str, tuple[Any, ...]] = {"Lp": (3.0,), "Quantile": (0.3,), "TopK": (2,)}
MADE = [REDUCTIONS[name](*ARGUMENTS.get(name, ())) for name in REDUCTIONS]
SEEN = [
    poolkit.Sliding(2),
    poolkit.Sliding(3, stride=2, padding=1, ceil_mode=True),
    poolkit.Sliding((2, 3), stride=(1, 2), padding=((1, 0), (0, 1)), dilation=(2, 1)),
    poolkit.Adaptive((2, 3)),
    poolkit.Global(),
    poolkit.Pyramid((2, 1)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny inputs too run the native kernels, on one thread unless a test says otherwise."""
    monkeypatch.setattr(dispatch, "TINY", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def apart(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Positive values, each at least 0.1 from the others: no ties, no kinks nearby."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    return (order.reshape(shape).to(dtype) + 1) / 10


def test_every_window_and_reduction_is_checked() -> None:
    assert {type(window).__name__ for window in SEEN} == set(WINDOWS)
    assert {type(reduction).__name__ for reduction in MADE} == set(REDUCTIONS)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("window", SEEN, ids=str)
@pytest.mark.parametrize("reduction", MADE, ids=str)
def test_gradcheck(reduction: Any, window: Any, form: torch.memory_format) -> None:
    if isinstance(reduction, poolkit.Std):
        reduction = poolkit.Std(correction=0)
    x = apart(1, 2, 4, 5).contiguous(memory_format=form).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        return poolkit.pool(x, window, reduction)

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True, atol=1e-4)


def test_gradcheck_can_fail() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return poolkit.avg_pool2d(x, 2) + 0.1 * poolkit.max_pool2d(x.detach(), 2)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(wrong, (apart(1, 1, 4, 4).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum", "Lp(2)"])
def test_gradcheck_in_one_and_three_dimensions(reduction: str, ndim: int) -> None:
    x = apart(2, 2, *(5, 3, 4)[:ndim]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: poolkit.pool(x, poolkit.Sliding(3, 2, 1), reduction), (x,), fast_mode=True
    )


def saved_bytes(run: Any, x: torch.Tensor) -> int:
    total = 0

    def pack(saved: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += saved.numel() * saved.element_size()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run(x.requires_grad_())
    return total


@pytest.mark.parametrize(
    ("window", "each"),
    [
        (poolkit.Sliding(3, 2, 1), 1),
        (poolkit.Sliding(16), 1),  # 256 positions: the most that one byte holds
        (poolkit.Sliding(17), 2),
        (poolkit.Adaptive(2), 2),
        (poolkit.Adaptive(7), 1),
        (poolkit.Global(), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_saved_for_max_is_a_byte_or_two_an_output(
    window: Any, each: int, form: torch.memory_format
) -> None:
    x = torch.randn(2, 3, 52, 52).contiguous(memory_format=form)
    outputs = poolkit.pool(x, window, "max").numel()
    for reduction in ("max", "min"):
        assert saved_bytes(lambda x, r=reduction: poolkit.pool(x, window, r), x) == each * outputs
    assert poolkit.explain(x, window, "max").position_bytes == each


def test_saved_for_averages_and_sums_is_nothing() -> None:
    x = torch.randn(2, 3, 52, 52)
    for window in SEEN:
        for reduction in ("mean", "sum"):
            assert saved_bytes(lambda x, w=window, r=reduction: poolkit.pool(x, w, r), x) == 0


def test_the_count_of_saved_bytes_can_fail() -> None:
    x = torch.randn(2, 3, 52, 52)
    theirs = saved_bytes(lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1), x)
    assert theirs == 4 * x.numel() + 8 * x.numel() // 4  # the input, and 8-byte indices


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "Lp(2.0)"])
def test_backward_has_the_same_bits_on_any_number_of_threads(
    reduction: str, form: torch.memory_format
) -> None:
    x = torch.randn(1, 32, 64, 64).contiguous(memory_format=form).requires_grad_()
    found = []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        y = poolkit.pool(x, poolkit.Sliding(3, 1, 1), reduction)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        found.append(torch.autograd.grad(y, x, weights)[0])
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
def test_gradients_are_those_of_float64_rounded_once(reduction: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 12, 12).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    grads = []
    for leaf in (x, exact):
        y = poolkit.pool(leaf, poolkit.Sliding(3, 1, 1), reduction)
        weights = (torch.arange(y.numel()) % 5 - 2).reshape(y.shape).to(y.dtype)
        grads.append(torch.autograd.grad(y, leaf, weights)[0])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "Lp(2)", "Lp(3)"])
def test_sums_are_within_four_units_in_the_last_place(reduction: str, dtype: torch.dtype) -> None:
    """Of values of one sign, over windows of up to 4096 positions."""
    x = torch.rand(2, 2, 64, 64).to(dtype)
    for window in (poolkit.Sliding(3, 2, 1), poolkit.Sliding(32), poolkit.Global()):
        mine = poolkit.pool(x, window, reduction).double()
        exact = poolkit.pool(x.double(), window, reduction)
        units = 4 if dtype != torch.float64 else 0
        torch.testing.assert_close(mine, exact, rtol=units * torch.finfo(dtype).eps, atol=0)


def test_ties_and_nans_get_the_gradient_as_in_torch() -> None:
    nan = float("nan")
    x = torch.tensor([[[[1.0, 1.0, nan, 0.0], [1.0, 0.0, nan, 2.0]]]], requires_grad=True)
    for pool in (poolkit.max_pool2d, torch.nn.functional.max_pool2d):
        (grad,) = torch.autograd.grad(pool(x, 2).sum(), x)
        assert grad.tolist() == [[[[1, 0, 0, 0], [0, 0, 1, 0]]]]


def test_a_small_max_has_the_same_bits_from_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 13, 11).mul(2).round()
    for arguments in ((3, 2, 1), (3, 1, 1), (5, 3, 2)):
        found = []
        for tiny in (0, 1 << 20):
            monkeypatch.setattr(dispatch, "TINY", tiny)
            leaf = x.detach().requires_grad_()
            y = poolkit.max_pool2d(leaf, *arguments)
            weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
            found.append((y, *torch.autograd.grad(y, leaf, weights)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "run",
    [
        lambda x: poolkit.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda x: poolkit.avg_pool1d(x[0], 3, 2),
        lambda x: poolkit.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: poolkit.global_avg_pool2d(x),
    ],
)
def test_a_small_mean_agrees_with_aten(
    run: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for tiny in (0, 1 << 20):
        monkeypatch.setattr(dispatch, "TINY", tiny)
        leaf = torch.linspace(-1, 1, 2 * 3 * 13 * 11).reshape(2, 3, 13, 11).requires_grad_()
        y = run(leaf)
        found.append((y, *torch.autograd.grad(y.square().sum(), leaf)))
    for native, aten in zip(*found, strict=True):
        torch.testing.assert_close(native, aten, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize(
    "window",
    [
        poolkit.Sliding(2, 2, padding=((2, 0), (0, 0))),
        poolkit.Sliding(1, 1, padding=((2, 2), (2, 2))),
        poolkit.Sliding(2, 1, padding=((1, 1),) * 2, dilation=5),
    ],
    ids=str,
)
def test_a_window_in_the_padding_gets_no_gradient(window: poolkit.Sliding, size: int) -> None:
    x = torch.randn(1, 3, size, size)
    plain = poolkit.pool(x, window, "max")
    assert bool(torch.isneginf(plain).any()) is (size == 4 or window.dilation == 1)
    leaf = x.clone().requires_grad_()
    pooled = poolkit.pool(leaf, window, "max")
    assert torch.equal(pooled, plain)
    seen = torch.isfinite(pooled)
    (gradient,) = torch.autograd.grad(pooled[seen].sum(), leaf)
    # Each window that sees something gives 1 to the value that it picked.
    assert gradient.sum() == seen.sum()
    assert bool((gradient[gradient > 0] == gradient[gradient > 0].round()).all())
    if window.kernel_size == 1:
        assert torch.equal(gradient, torch.ones_like(x))
    assert torch.equal(torch.vmap(lambda x: poolkit.pool(x, window, "max"))(x), plain)
    if not seen.all():
        assert poolkit.explain(leaf, window).path == "composite"
        for asked in (x, leaf):
            with pytest.raises(poolkit.PoolValueError, match="has no position, while pooling fl"):
                poolkit.pool_with_indices(asked, window, "max")


@pytest.mark.parametrize("bins", [(0, 3), (3, 0), 0])
@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("size", [8, 60])
def test_no_bins_have_a_gradient_of_zeros(kind: str, bins: Any, size: int) -> None:
    pool = getattr(poolkit, f"adaptive_{kind}_pool2d")
    x = torch.randn(1, 2, size, size, requires_grad=True)
    pooled = pool(x, bins)
    assert pooled.shape == (1, 2, *((bins,) * 2 if bins == 0 else bins))
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))
