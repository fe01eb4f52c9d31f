"""Activations pooled together with their input, on torch tensors: gradients, what is saved for
them, compilers and transforms, modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_activations import MADE, torch_function  # noqa: E402
from test_autograd import FORMATS, saved_bytes  # noqa: E402

import poolkit  # noqa: E402
from poolkit.torch import dispatch  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning"
    ),  # by torch's own compiler, when it traces any autograd.Function
    # Torch's own forward-mode rules are scripts, which torch itself now warns about.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
F = torch.nn.functional
WINDOW = poolkit.Sliding(3, stride=2, padding=1)
SEEN = [
    WINDOW,
    poolkit.Sliding(2),
    poolkit.Sliding((2, 3), stride=(1, 2), padding=((1, 0), (0, 1)), dilation=(2, 1)),
    poolkit.Adaptive((2, 3)),
    poolkit.Global(),
    poolkit.Pyramid((2, 1)),
]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny inputs of what is compared run the native kernels too, on one thread."""
    monkeypatch.setattr(dispatch, "TINY", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spread_out(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Values from -3 to 3 in any order, none near a kink, no two alike."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    return ((order.reshape(shape) + 0.4) * (6 / count) - 3).to(dtype)


@pytest.mark.parametrize("made", MADE, ids=str)
@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum", "Lp(2)", "median"])
def test_gradcheck(made: Any, reduction: str) -> None:
    for number, window in enumerate(SEEN):
        form = FORMATS[number % 2]
        x = spread_out(1, 2, 4, 5).contiguous(memory_format=form).requires_grad_()

        def run(x: torch.Tensor, window: Any = window) -> torch.Tensor:
            return poolkit.pool(x, window, reduction, activation=made)

        assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
        # A ReLU may leave a norm nothing but zeros, where it has no second derivative.
        if reduction != "Lp(2)" or not isinstance(made, poolkit.ReLU):
            assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True, atol=1e-4)


def both(made: Any, reduction: str, x: torch.Tensor, window: Any = WINDOW) -> list[Any]:
    """(result, gradient) of the one step and of the two, in which torch activates."""
    results = []
    for fused in (True, False):
        leaf = x.detach().clone().requires_grad_()
        if fused:
            y = poolkit.pool(leaf, window, reduction, activation=made)
        else:
            y = poolkit.pool(torch_function(made)(leaf), window, reduction)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        (gradient,) = torch.autograd.grad(y, leaf, grad)
        results.append((y.detach(), gradient))
    return results


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("made", MADE, ids=str)
def test_torch_agrees(made: Any, dtype: torch.dtype, form: torch.memory_format) -> None:
    # Every value fits half types and no two results are equal, so that positions agree too.
    x = (torch.randperm(180) * 2 - 160).reshape(1, 3, 10, 6).to(dtype) / 64
    x = x.contiguous(memory_format=form)
    for reduction in ("max", "min", "mean", "sum"):
        curved = not isinstance(made, (poolkit.ReLU, poolkit.LeakyReLU))
        if dtype.itemsize == 2 and reduction in ("max", "min") and made.monotone and curved:
            continue  # results that round to the same value have another first position
        (y, g), (want, want_g) = both(made, reduction, x)
        assert y.is_contiguous(memory_format=form)
        assert y.dtype is dtype
        torch.testing.assert_close(y, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(g, want_g, rtol=4 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel", [2, 3, (15, 17), 16, 17])
def test_relu_and_max_are_torch_s_bit_for_bit(
    kernel: Any, dtype: torch.dtype, form: torch.memory_format
) -> None:
    """The result and the gradient, which ends where nothing is above 0; NaN too. 255 and 256
    positions are the most that one byte holds with and without the code for that."""
    x = torch.randn(2, 3, 40, 38, generator=torch.Generator().manual_seed(0)) - 1
    x[0, 0] = -x[0, 0].abs()
    x[1, 1, 5, 5] = torch.nan
    x = x.to(dtype).contiguous(memory_format=form)
    got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = poolkit.relu_max_pool2d(got, kernel, stride=3, padding=1)
    z = F.max_pool2d(F.relu(want), kernel, stride=3, padding=1)
    torch.testing.assert_close(y, z, rtol=0, atol=0, equal_nan=True)
    grad = torch.randint(-3, 4, y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(grad)
    z.backward(grad)
    torch.testing.assert_close(got.grad, want.grad, rtol=0, atol=0, equal_nan=True)
    values, places = poolkit.relu_max_pool2d(x, kernel, 3, 1, return_indices=True)
    want_places = F.max_pool2d(F.relu(x), kernel, 3, 1, return_indices=True)[1]
    torch.testing.assert_close(values, z.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(places, want_places)


@pytest.mark.parametrize("made", MADE, ids=str)
def test_indices_are_those_of_the_activated_values(made: Any) -> None:
    x = spread_out(2, 3, 9, 8).requires_grad_()
    y, places = poolkit.pool_with_indices(x, WINDOW, "max", activation=made)
    values = torch_function(made)(x.detach())
    want, want_places = F.max_pool2d(values, 3, 2, 1, return_indices=True)
    torch.testing.assert_close(y, want)
    assert torch.equal(places, want_places)
    (g,) = torch.autograd.grad(y.sum(), x)
    (want_g,) = torch.autograd.grad(F.max_pool2d(torch_function(made)(x), 3, 2, 1).sum(), x)
    torch.testing.assert_close(g, want_g)
    slow = poolkit.pool_with_indices(x[None, None], "Sliding((1, 1, 3, 3), stride=(1, 1, 2, 2), "
                                     "padding=(0, 0, 1, 1))", "max", activation=made)  # fmt: skip
    torch.testing.assert_close(slow[0][0, 0], want)
    assert torch.equal(slow[1][0, 0] % 72, want_places)


def test_what_is_saved() -> None:
    x = torch.randn(2, 3, 64, 64)
    outputs = 2 * 3 * 32 * 32

    def saved(reduction: str, activation: Any, window: Any = WINDOW) -> int:
        return saved_bytes(
            lambda x: poolkit.pool(x, window, reduction, activation=activation), x.clone()
        )

    assert saved("max", "relu") == outputs
    assert saved("min", "relu") == outputs
    assert saved("max", "relu", poolkit.Sliding(16, 2, 7)) == 2 * outputs  # 256 positions and one
    assert saved("max", "sigmoid") == outputs * (4 + 1)
    assert saved("mean", "sigmoid") == x.numel() * 4
    assert saved("max", "gelu") == x.numel() * 4 + outputs
    two_steps = saved_bytes(lambda x: F.max_pool2d(F.relu(x), 3, 2, 1), x.clone())
    assert two_steps >= 2 * x.numel() * 4 + 8 * outputs


def test_the_largest_windows_without_a_spare_code() -> None:
    """65535, 65536 and 65537 positions: two bytes hold the first with the code for no position."""
    for size, each in ((65535, 2), (65536, 4), (65537, 4)):
        x = torch.randn(2, 3, size)
        x[0, 0] = -x[0, 0].abs()
        x[1, 2] = -5
        x[1, 2, -1] = 2
        x.requires_grad_()
        y = poolkit.pool(x, poolkit.Global(), "max", activation="relu", ndim=1)
        want = x.detach().clone().requires_grad_()
        torch.amax(F.relu(want), 2, keepdim=True).sum().backward()
        y.sum().backward()
        want.grad[0, 0] = 0  # amax shares a gradient among equals, of which none is above 0
        assert torch.equal(x.grad, want.grad)
        codes = torch.ops.poolkit.pool_behind(
            x.detach(), "Global()", "Activated('Max()', 'ReLU()')", 1
        )[1]
        assert codes.dtype.itemsize == each


@pytest.mark.parametrize("made", MADE, ids=str)
def test_gradients_of_nan_and_infinities(made: Any) -> None:
    special = [torch.nan, torch.inf, -torch.inf, 0.0, 1.0, -1.0]
    x = torch.tensor(special * 4).reshape(1, 1, 4, 6)
    for reduction in ("max", "mean"):
        if isinstance(made, poolkit.GELU):
            # Torch's float32 result is NaN at infinity, and so are derivatives.
            x = x.nan_to_num(2.0, 3.0, -3.0)
        (y, g), (want, want_g) = both(made, reduction, x, poolkit.Sliding(1))
        torch.testing.assert_close(y, want, equal_nan=True)
        if isinstance(made, poolkit.Hardswish):
            # Torch's derivative of a NaN is 1.
            assert torch.isnan(g[x.isnan()]).all()
            want_g[x.isnan()] = torch.nan
        torch.testing.assert_close(g, want_g, equal_nan=True)


# --- compilers and transforms ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "reduction"),
    [("relu", "max"), ("sigmoid", "mean"), ("GELU(approximate='tanh')", "max"),
     ("LeakyReLU(negative_slope=0.2)", "min"), ("silu", "median")],
)  # fmt: skip
def test_compile(made: str, reduction: str) -> None:
    torch.compiler.reset()  # or the parameters would count as recompilations of one function

    def run(x: torch.Tensor) -> torch.Tensor:
        return poolkit.pool(x, poolkit.Sliding(3, 2, 1), reduction, activation=made)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 11):
        x = spread_out(2, 3, size, 9, dtype=torch.float32)
        leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = compiled(leaf), run(again)
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        torch.testing.assert_close(leaf.grad, again.grad)


@pytest.mark.parametrize("made", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("reduction", ["max", "mean", "std"])
def test_transforms(made: str, reduction: str) -> None:
    func = torch.func
    x = spread_out(3, 2, 6, 6)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (
            poolkit.pool(x, poolkit.Sliding(2), reduction, ndim=2, activation=made).square().sum()
        )

    each = torch.stack([torch.autograd.functional.jacobian(loss, one) for one in x])
    torch.testing.assert_close(func.vmap(func.grad(loss))(x), each)
    torch.testing.assert_close(func.grad(lambda x: func.vmap(loss)(x).sum())(x), each)
    _, along = func.jvp(loss, (x[0],), (torch.ones_like(x[0]),))
    torch.testing.assert_close(along, each[0].sum())


@pytest.mark.parametrize("made", MADE, ids=str)
def test_meta_tensors_have_the_shape_and_layout(made: Any) -> None:
    x = torch.randn(2, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    for reduction in ("max", "mean", "median"):
        real = poolkit.pool(x, WINDOW, reduction, activation=made)
        meta = poolkit.pool(x.to("meta"), WINDOW, reduction, activation=made)
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_the_path_is_explained() -> None:
    x = torch.randn(1, 2, 32, 32)
    for reduction, path in (("max", "native"), ("Lp(2)", "native"), ("median", "native")):
        assert poolkit.explain(x, WINDOW, reduction, activation="gelu").path == path
    assert poolkit.explain(x, WINDOW, "max", activation="relu").position_bytes == 1
    x.requires_grad_()
    assert poolkit.explain(x, WINDOW, "Lp(2)", activation="gelu").path == "composite"
    beyond = poolkit.Sliding(2, padding=((2, 0), (0, 0)))
    assert poolkit.explain(x, beyond, "max", activation="relu").path == "composite"
    assert poolkit.explain(x.detach(), beyond, "max", activation="relu").path == "native"


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_functions_and_modules(rank: int) -> None:
    x = torch.randn(2, 3, *(9, 8, 7)[:rank])
    f, nn = poolkit, poolkit.nn
    relu_max, sigmoid_avg = (getattr(f, f"{n}_pool{rank}d") for n in ("relu_max", "sigmoid_avg"))
    largest, mean = getattr(F, f"max_pool{rank}d"), getattr(F, f"avg_pool{rank}d")
    assert torch.equal(relu_max(x, 3, 2, 1), largest(x.relu(), 3, 2, 1))
    torch.testing.assert_close(
        sigmoid_avg(x, 3, 2, 1, True, False), mean(x.sigmoid(), 3, 2, 1, True, False)
    )
    module = getattr(nn, f"ReLUMaxPool{rank}d")(3, 2, padding=1, return_indices=True)
    assert str(module) == str(getattr(torch.nn, f"MaxPool{rank}d")(3, 2, 1)).replace(
        "Max", "ReLUMax"
    )
    for a, b in zip(module(x), largest(x.relu(), 3, 2, 1, return_indices=True), strict=True):
        assert torch.equal(a, b)
    module = getattr(nn, f"SigmoidAvgPool{rank}d")(2, ceil_mode=True)
    assert str(module) == str(getattr(torch.nn, f"AvgPool{rank}d")(2, ceil_mode=True)).replace(
        "Avg", "SigmoidAvg"
    )
    torch.testing.assert_close(module(x), mean(x.sigmoid(), 2, ceil_mode=True))


def test_the_general_module() -> None:
    module = poolkit.nn.Pool(WINDOW, "mean", activation=poolkit.GELU(approximate="tanh"))
    x = torch.randn(1, 2, 9, 9)
    want = F.avg_pool2d(F.gelu(x, approximate="tanh"), 3, 2, 1)
    torch.testing.assert_close(module(x), want)
    assert "GELU(approximate=" in str(module)


def test_messages_name_what_was_asked_for() -> None:
    with pytest.raises(poolkit.PoolValueError) as caught:
        poolkit.relu_max_pool2d(torch.zeros(1, 1, 2, 2), 3)
    assert "Activated('Max()', 'ReLU()')" in str(caught.value)
    with pytest.raises(poolkit.PoolValueError, match="divisor must not be zero"):
        poolkit.sigmoid_avg_pool2d(torch.zeros(1, 1, 2, 2), 2, divisor_override=0)


def test_double_half_and_channels_last_gradients_share_the_layout_of_the_result() -> None:
    """A gradient that comes in another layout than the input is laid out again."""
    x = torch.randn(2, 3, 8, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    for made, reduction in (("sigmoid", "mean"), ("relu", "max"), ("silu", "max"), ("exp", "max")):
        y = poolkit.pool(x, poolkit.Sliding(2), reduction, activation=made)
        grad = torch.randn(y.shape)
        (g,) = torch.autograd.grad(y, x, grad)
        again = x.detach().contiguous().requires_grad_()
        z = poolkit.pool(again, poolkit.Sliding(2), reduction, activation=made)
        (want,) = torch.autograd.grad(z, again, grad)
        torch.testing.assert_close(g, want, rtol=0, atol=0)
