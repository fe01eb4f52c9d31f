"""Local importance and detail-preserving pooling."""

from __future__ import annotations

from typing import Any

import pytest

import poolkit

torch = pytest.importorskip("torch")

from poolkit.vision import taps  # noqa: E402

WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 5), (3, 2), (1, 2)), (1, 1, 0)]


def drawn(*shape: int, seed: int = 2) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# --- local importance -----------------------------------------------------------------------------


def test_importance_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 10.0]]], dtype=torch.float64)
    logit = torch.tensor([[[1.0, 1.0], [4.0, 2.0]]], dtype=torch.float64).log()
    # Weights 1, 1, 4, 2 of 8: (1 + 2 + 12 + 20) / 8.
    torch.testing.assert_close(
        poolkit.lip_pool2d(x, logit, 2), torch.tensor([[[35 / 8]]], dtype=x.dtype)
    )


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equal_logits_are_the_mean_and_x_is_soft(window: Any) -> None:
    x = drawn(2, 3, 9, 8)
    mean = poolkit.avg_pool2d(x, *window, count_include_pad=False)
    torch.testing.assert_close(poolkit.lip_pool2d(x, torch.zeros_like(x), *window), mean)
    one_map = torch.full((9, 8), 7.0, dtype=x.dtype)
    torch.testing.assert_close(poolkit.lip_pool2d(x, one_map[None], *window), mean)
    soft = poolkit.pool(x, poolkit.Sliding(*window), "soft")
    torch.testing.assert_close(poolkit.lip_pool2d(x, x, *window), soft)
    largest = poolkit.max_pool2d(x, *window)
    torch.testing.assert_close(poolkit.lip_pool2d(x, 1e4 * x, *window), largest)


@pytest.mark.parametrize("stripes", ["one", "many"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)], ids=str)
def test_importance_gradients(window: Any, stripes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if stripes == "many":
        monkeypatch.setattr(taps, "STRIPE", 600)

    def run(x: Any, logit: Any) -> Any:
        return poolkit.lip_pool2d(x, logit, *window)

    inputs = drawn(2, 2, 4, 3).requires_grad_(), drawn(2, 2, 4, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    shared = inputs[0], drawn(2, 1, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(run, shared)
    few = drawn(1, 2, 3, 2).requires_grad_(), drawn(1, 2, 3, 2, seed=3).requires_grad_()
    assert torch.autograd.gradgradcheck(run, few)


def test_importance_at_its_limits() -> None:
    most = torch.finfo(torch.float32).max
    x = torch.tensor([[[most, most, -most, 1.0]]])
    for logits in ([0.0, 0, 0, 0], [most, most, -most, -most], [-most, -most, -most, -most]):
        logit = torch.tensor([[logits]], requires_grad=True)
        pooled = poolkit.lip_pool2d(x, logit, (1, 4))
        assert pooled.isfinite().all()
    infinite = torch.tensor([[[torch.inf, 0.0, -torch.inf, torch.inf]]])
    values = torch.tensor([[[2.0, 100.0, 100.0, 4.0]]])
    assert poolkit.lip_pool2d(values, infinite, (1, 4)).item() == 3
    none = torch.full_like(values, -torch.inf)
    assert poolkit.lip_pool2d(values, none, (1, 4)).item() == pytest.approx(206 / 4)
    # The padding is left out beside the smallest of logits, too.
    low = torch.full((1, 3, 3), -most)
    ones = poolkit.lip_pool2d(torch.ones(1, 3, 3), low, 3, 1, 1)
    torch.testing.assert_close(ones, torch.ones(1, 3, 3))
    holes = torch.zeros(1, 1, 4, 4)
    holes[..., 0, 0] = torch.nan
    for arguments in ((holes, torch.zeros_like(holes)), (torch.zeros_like(holes), holes)):
        assert poolkit.lip_pool2d(*arguments, 2).isnan().flatten().tolist() == [True] + [False] * 3


def test_importance_of_a_module() -> None:
    x = drawn(2, 8, 9, 8)
    for hidden in (None, 4):
        logit = poolkit.nn.ImportanceLogit(8, hidden)
        pool = poolkit.nn.LocalImportancePool2d(8, 3, 2, 1, logit=logit).double()
        # All logits are equal at first.
        mean = poolkit.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        torch.testing.assert_close(pool(x), mean)
        for parameter in pool.parameters():
            torch.nn.init.normal_(parameter)
        leaf = x.clone().requires_grad_()
        pool(leaf).sum().backward()
        assert leaf.grad.isfinite().all()
        assert all(p.grad.abs().max() > 0 for p in pool.parameters())
        logits = logit(x)
        assert logits.min() >= 0
        assert logits.max() <= 12
        torch.testing.assert_close(pool(x[0]), pool(x)[0])
    default = poolkit.nn.LocalImportancePool2d(8, 2)
    assert sum(p.numel() for p in default.parameters()) == 9 * 8 * 8 + 2 * 8
    own = poolkit.nn.LocalImportancePool2d(None, 2, logit=torch.nn.Conv2d(3, 1, 1))
    assert own(torch.rand(1, 3, 6, 6)).shape == (1, 3, 3, 3)


# --- detail preserving ----------------------------------------------------------------------------


def by_definition(values: Any, alpha: float, power: float, epsilon: float, symmetric: bool) -> Any:
    """Of the values (..., n) of one window, as in the paper."""
    apart = values - values.mean(-1, keepdim=True)
    if not symmetric:
        apart = apart.clamp(min=0)
    weights = alpha + (apart**2 + epsilon**2).sqrt() ** power
    return (values * weights).sum(-1) / weights.sum(-1)


def test_detail_by_hand() -> None:
    x = torch.tensor([[[[0.0, 0.0], [0.0, 4.0]]]], dtype=torch.float64)
    # The mean is 1, so |x - 1| is 1, 1, 1, 3; with alpha 1: 4 * 4 / (2 + 2 + 2 + 4).
    pool = poolkit.nn.DetailPreservingPool2d(1, 2, epsilon=1e-9).double()
    assert pool(x).item() == pytest.approx(1.6)
    # Asymmetric 0, 0, 0, 3: 4 * 4 / (1 + 1 + 1 + 4).
    pool = poolkit.nn.DetailPreservingPool2d(1, 2, symmetric=False, epsilon=1e-9).double()
    assert pool(x).item() == pytest.approx(16 / 7)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_detail_of_all_windows(window: Any, symmetric: bool) -> None:
    x = drawn(2, 3, 9, 8)
    settings = {"alpha": 0.3, "power": 1.7, "epsilon": 0.01, "symmetric": symmetric}
    found = poolkit.nn.DetailPreservingPool2d(None, *window, **settings).double()(x)
    (kh, kw), (sh, sw), (ph, pw) = (v if isinstance(v, tuple) else (v, v) for v in window)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            a, b = i * sh - ph, j * sw - pw
            values = x[:, :, max(a, 0) : a + kh, max(b, 0) : b + kw].flatten(2)
            torch.testing.assert_close(
                found[:, :, i, j], by_definition(values, 0.3, 1.7, 0.01, symmetric),
                rtol=1e-5, atol=1e-6,  # alpha and lambda are kept as float32 logarithms
            )  # fmt: skip


def test_detail_at_its_limits() -> None:
    x = drawn(2, 3, 9, 8)
    mean = poolkit.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    make = poolkit.nn.DetailPreservingPool2d
    for settings in ({"power": 1e-12}, {"alpha": 1e12}):
        torch.testing.assert_close(make(3, 3, 2, 1, **settings).double()(x), mean)
    # Distances of more than 1, whose powers outgrow alpha.
    sharp = make(3, 2, symmetric=False, alpha=1e-30, power=1e5).double()(100 * x)
    torch.testing.assert_close(sharp, poolkit.max_pool2d(100 * x, 2))
    furthest = make(1, (1, 3), alpha=1e-30, power=1e4)(torch.tensor([[[0.0, 4.0, 5.0]]]))
    assert furthest.item() == 0  # the mean is 3
    most = torch.finfo(torch.float32).max
    wild = torch.tensor([[[most, -most, 0.0, most]]])
    assert make(1, (1, 4), power=3)(wild).isfinite().all()
    flat = torch.full((1, 4, 4), 3.0)
    torch.testing.assert_close(make(1, 2, alpha=1e-30, power=50)(flat), flat[:, :2, :2])
    # The full form begins as the lite one.
    torch.testing.assert_close(make(3, 2, full=True)(x.float()), make(3, 2)(x.float()))
    holes = torch.zeros(1, 1, 4, 4)
    holes[..., 0, 0] = torch.nan
    assert make(1, 2)(holes).isnan().flatten().tolist() == [True] + [False] * 3


@pytest.mark.parametrize(
    ("stripes", "symmetric", "full"),
    [("one", True, False), ("one", False, True), ("many", True, True)],
)
def test_detail_gradients(
    stripes: str, symmetric: bool, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stripes == "many":
        monkeypatch.setattr(taps, "STRIPE", 600)
    pool = poolkit.nn.DetailPreservingPool2d(
        2, 3, 2, 1, symmetric=symmetric, full=full, alpha=0.3, power=1.5, epsilon=0.1
    ).double()
    names = [name for name, _ in pool.named_parameters()]

    def run(x: Any, *parameters: Any) -> Any:
        return torch.func.functional_call(pool, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (drawn(2, 2, 4, 3).requires_grad_(), *pool.parameters()))
    if stripes == "one":
        few = drawn(1, 2, 3, 2).requires_grad_()
        assert torch.autograd.gradgradcheck(run, (few, *pool.parameters()))


# --- all of them ----------------------------------------------------------------------------------

MODULES = {
    "lip": lambda: poolkit.nn.LocalImportancePool2d(3, 2, 2, 1, logit=torch.nn.Identity()),
    "dpp": lambda: poolkit.nn.DetailPreservingPool2d(3, 2, 2, 1),
    "full dpp": lambda: poolkit.nn.DetailPreservingPool2d(3, 2, 2, 1, symmetric=False, full=True),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(name: str, dtype: Any) -> None:
    module, x = MODULES[name](), drawn(2, 3, 9, 8).to(dtype)
    halves, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    found, want = module(halves), module.double()(wide)
    assert found.dtype == dtype
    torch.testing.assert_close(found, want.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    found.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(halves.grad.double(), wide.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", MODULES)
def test_formats_and_autocast(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 9, 8).float()
    want = module(x)
    behind = module(x.contiguous(memory_format=torch.channels_last))
    assert behind.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(behind, want)
    assert module(x[:0].requires_grad_()).shape == (0, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), want)


def test_integers() -> None:
    x = torch.tensor([[[1, 2], [3, 10]]])
    pooled = poolkit.lip_pool2d(x, torch.zeros(1, 2, 2), 2)
    assert pooled.dtype == torch.float32
    assert pooled.item() == 4
    assert poolkit.nn.DetailPreservingPool2d(1, 2)(x).dtype == torch.float32


@pytest.mark.parametrize("name", MODULES)
def test_compiled_and_transformed(name: str) -> None:
    module, x = MODULES[name](), drawn(2, 3, 7, 7).float()
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
    torch.testing.assert_close(torch.func.vmap(module)(x[None])[0], want)


def test_errors() -> None:
    nn, x = poolkit.nn, torch.rand(1, 3, 4, 4)
    refused: list[tuple[Any, str]] = [
        (
            lambda: poolkit.lip_pool2d(x, x[..., :2], 2),
            r"the logits \(1, 3, 4, 2\) do not fit the input \(1, 3, 4, 4\), while pooling float32 "
            r"\(1, 3, 4, 4\) by lip_pool2d. Give one map of the input's height and width",
        ),
        (lambda: poolkit.lip_pool2d(x, x.expand(2, -1, -1, -1), 2), "do not fit"),
        (lambda: poolkit.lip_pool2d(x, x[0, 0], 2), "do not fit"),
        (lambda: poolkit.lip_pool2d(x, 1.0, 2), "logit must be a torch tensor, got float"),
        (lambda: poolkit.lip_pool2d(x, x.long(), 2), "must be of a floating dtype, got int64"),
        (lambda: nn.LocalImportancePool2d(None, 2), "the logits need the number of channels"),
        (lambda: nn.LocalImportancePool2d(3, 2, logit=abs), "logit must be a torch.nn.Module"),
        (lambda: nn.LocalImportancePool2d(4, 2)(x), "for 4 channels, the input has 3"),
        (lambda: nn.LocalImportancePool2d(3, 2)(x.long()), "maps that make logits are of a float"),
        (
            lambda: nn.LocalImportancePool2d(3, 1)(x[..., :1, :1]),
            "a map of a single position cannot be normalised",
        ),
        (lambda: nn.DetailPreservingPool2d(4, 2)(x), "for 4 channels, the input has 3"),
        (lambda: nn.DetailPreservingPool2d(3, 2, alpha=0), "alpha must be above 0 and finite"),
        (lambda: nn.DetailPreservingPool2d(3, 2, power=None), "power must be a number, got None"),
        (lambda: nn.DetailPreservingPool2d(3, 5)(x), "a window of 5 positions does not fit"),
    ]
    for call, message in refused:
        with pytest.raises(poolkit.PoolError, match=message):
            call()
