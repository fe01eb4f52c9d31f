"""torch.compile, torch.export, torch.func, autocast, opcheck, meta and fake tensors."""

from __future__ import annotations

import copy
import io
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import poolkit  # noqa: E402
import poolkit.nn  # noqa: E402
from poolkit.torch import dispatch  # noqa: E402

OPS = torch.ops.poolkit
FORMATS = [torch.contiguous_format, torch.channels_last]
REDUCTIONS = ["max", "min", "mean", "sum", "Lp(3.0)", "median", "std", "soft", "top_k(2)"]
# Torch's own forward-mode rules are scripts, which torch itself now warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning"
)  # by torch's own compiler, when it traces any autograd.Function
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def pooling(reduction: str, window: str = "Sliding(3, stride=2)") -> Callable[..., Any]:
    return lambda x: poolkit.pool(x, window, reduction)


@pytest.fixture(params=["chosen", "native"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As dispatch chooses (aten for a tiny max), and the native kernels by force."""
    if request.param == "native":
        monkeypatch.setattr(dispatch, "TINY", 0)
    return request.param


# --- torch.compile -------------------------------------------------------------------------------

COMPILED: dict[str, Callable[..., Any]] = {
    "max_pool2d": lambda x: poolkit.max_pool2d(x, 3, 2, 1),
    "indices": lambda x: poolkit.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "pool": lambda x: poolkit.pool(x, poolkit.Sliding(3), poolkit.Max()),
    "recipe": lambda x: poolkit.pool(x, "sliding(3, padding='same')", "mean"),
    "avg_pool2d": lambda x: poolkit.avg_pool2d(x, (3, 2), padding=1, count_include_pad=False),
    "median": lambda x: poolkit.pool(x, poolkit.Sliding(3, 2), "median"),
    "std": lambda x: poolkit.pool(x, poolkit.Global(), poolkit.Std()),
    "AvgPool2d": poolkit.nn.AvgPool2d(3, 2, 1),
    "LPPool2d": poolkit.nn.LPPool2d(2, 3),
    "AdaptiveMaxPool2d": poolkit.nn.AdaptiveMaxPool2d(5),
    "GlobalAvgPool2d": poolkit.nn.GlobalAvgPool2d(),
    "Pool": poolkit.nn.Pool(poolkit.Pyramid((3, 1)), "soft"),
    "two": lambda x: poolkit.pool(poolkit.pool(x, "Sliding(2)", "max"), "Global()", "gem"),
    "no bins of a max": lambda x: poolkit.adaptive_max_pool2d(x, (0, 3)),
    "no bins of a mean": lambda x: poolkit.adaptive_avg_pool2d(x, (0, 3)),
}


def value_and_gradient(run: Callable[..., Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = x.detach().requires_grad_()
    y = run(leaf)
    return y, torch.autograd.grad(y.square().sum(), leaf)[0]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name: str, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Means that go to aten differ in the last bit.
    monkeypatch.setattr(dispatch, "TINY", 0)
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dispatch, "FEW", 0)
    torch._dynamo.reset()
    run = COMPILED[name]
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for form in FORMATS:
        x = torch.randn(2, 4, 24, 26).contiguous(memory_format=form)
        assert torch.equal(compiled(x), run(x))
        for mine, eager in zip(
            value_and_gradient(compiled, x), value_and_gradient(run, x), strict=True
        ):
            torch.testing.assert_close(mine, eager)
        assert compiled(x).stride() == run(x).stride()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "window", ["padding=((2, 2), (2, 2))", "padding=((20, 20), (20, 20)), dilation=50"]
)
def test_compile_with_a_window_in_the_padding(window: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def run(x: torch.Tensor) -> torch.Tensor:
        pooled = poolkit.pool(x, f"Sliding(2, stride=1, {window})", "max")
        return torch.where(pooled.isinf(), 0.0, pooled)

    x = torch.randn(1, 3, 40, 45)
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for mine, eager in zip(
        value_and_gradient(compiled, x), value_and_gradient(run, x), strict=True
    ):
        assert torch.equal(mine, eager)


def count_graphs() -> tuple[Callable[..., Any], list[int]]:
    seen = [0]

    def backend(graph: Any, inputs: Any) -> Any:
        seen[0] += 1
        return graph.forward

    return backend, seen


@pytest.mark.parametrize("name", COMPILED)
def test_a_second_size_is_not_compiled_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "TINY", 0)
    torch._dynamo.reset()
    backend, graphs = count_graphs()
    compiled = torch.compile(COMPILED[name], fullgraph=True, backend=backend)
    for form, count in zip(FORMATS, (1, 2), strict=True):
        for size in ((3, 4, 20, 22), (2, 4, 31, 24), (5, 4, 18, 40)):
            x = torch.randn(size).contiguous(memory_format=form)
            for axis in (0, 2, 3):
                torch._dynamo.mark_dynamic(x, axis)
            torch.testing.assert_close(compiled(x), COMPILED[name](x))
        assert graphs == [count]


def test_the_count_of_graphs_can_fail() -> None:
    torch._dynamo.reset()
    backend, graphs = count_graphs()
    compiled = torch.compile(lambda x: x + x.shape[0], dynamic=False, backend=backend)
    for size in (3, 4):
        compiled(torch.zeros(size))
    assert graphs == [2]


def operators_in(run: Callable[..., Any], x: torch.Tensor, **options: Any) -> set[str]:
    """The namespaces of the operators in the one graph that a compiler is given; "" of torch's."""
    found: list[set[str]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        nodes = [node for part in parts for node in part.graph.nodes]
        targets = [node.target for node in nodes if node.op == "call_function"]
        found.append({getattr(target, "namespace", "") for target in targets})
        return graph.forward

    torch._dynamo.reset()
    torch.compile(run, fullgraph=True, backend=backend, **options)(x)
    (namespaces,) = found
    return namespaces


FUSED: dict[str, Callable[..., Any]] = {
    "max": lambda x: poolkit.max_pool2d(x, 3, 2, 1),
    "ceil_mode": lambda x: poolkit.max_pool2d(x, 3, 2, ceil_mode=True),
    "dilation": lambda x: poolkit.max_pool2d(x, 2, 1, dilation=3),
    "module": poolkit.nn.MaxPool2d(2),
    "adaptive max": poolkit.nn.AdaptiveMaxPool2d(5),
    "relu": poolkit.nn.Pool("Sliding(2)", "Activated('Max()', 'ReLU()')"),
    "mean": lambda x: poolkit.avg_pool2d(x, (3, 2), padding=1, count_include_pad=False),
    "silu": poolkit.nn.Pool("Sliding(2)", "Activated('Mean()', 'SiLU()')"),
    "global mean": poolkit.nn.GlobalAvgPool2d(),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_small_map_is_one_that_a_compiler_may_fuse(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "TINY", 0)
    run = FUSED[name]
    x = torch.randn(2, 4, 24, 26)
    assert operators_in(run, x) == {""}
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    special = x.clone()
    special[..., ::7] = torch.tensor([float("nan"), -0.0, float("inf"), 0.0])
    for form in FORMATS:
        for given in (x.contiguous(memory_format=form), special.contiguous(memory_format=form)):
            out, right = compiled(given), run(given)
            assert out.stride() == right.stride()
            torch.testing.assert_close(out, right, equal_nan=True)
            if name not in ("mean", "silu", "global mean"):
                torch.testing.assert_close(out, right, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(out.signbit(), right.signbit())


def test_what_a_compiler_is_not_given_to_fuse() -> None:
    small, large = torch.randn(1, 8, 20, 20), torch.randn(1, 64, 48, 48)
    assert large.numel() > dispatch.SMALL
    run = FUSED["max"]
    assert "poolkit" in operators_in(run, large)
    behind = large.contiguous(memory_format=torch.channels_last)
    assert "poolkit" not in operators_in(run, behind)
    assert "poolkit" not in operators_in(run, behind, dynamic=True)
    for given in (large, behind):
        assert "poolkit" not in operators_in(lambda x: poolkit.adaptive_avg_pool2d(x, 1), given)
    for more in (lambda x: poolkit.max_pool2d(x, 5), lambda x: poolkit.adaptive_max_pool2d(x, 3)):
        assert "poolkit" in operators_in(more, behind)  # ours is faster
    assert "poolkit" in operators_in(run, small, dynamic=True)  # its size would be a guard
    padded = poolkit.nn.Pool("Sliding(3, padding=2)", "max")
    assert "poolkit" in operators_in(padded, small)  # torch takes neither
    assert "poolkit" in operators_in(lambda x: poolkit.max_pool2d(x, 2), small.int())
    half = small.bfloat16()  # aten adds up in half
    assert "poolkit" in operators_in(lambda x: poolkit.avg_pool2d(x, 2), half)
    assert "poolkit" not in operators_in(run, half)
    for differentiated in FUSED.values():
        leaf = small.clone().requires_grad_()
        assert "poolkit" in operators_in(differentiated, leaf)
        with torch.no_grad():
            assert "poolkit" not in operators_in(differentiated, leaf)
    exported = torch.export.export(poolkit.nn.MaxPool2d(2), (small,), strict=True)
    assert any("poolkit" in str(node.target) for node in exported.graph.nodes)


CHANGED: dict[str, tuple[torch.nn.Module, dict[str, Any]]] = {
    "max": (
        poolkit.nn.MaxPool2d(2),
        {"ceil_mode": True, "stride": 1, "kernel_size": (3, 2), "padding": "same", "dilation": 2},
    ),
    "mean": (
        poolkit.nn.AvgPool2d(3, padding=1),
        {"stride": 1, "count_include_pad": False, "padding": 0, "divisor_override": 5},
    ),
    "bins": (poolkit.nn.AdaptiveAvgPool2d(1), {"output_size": (3, None)}),
    "recipes": (
        poolkit.nn.Pool("Sliding(2)", "max", 2, "relu"),
        {
            "window": poolkit.Sliding(3, padding=1),
            "reduction": poolkit.Activated("mean", "tanh"),
            "ndim": 1,
        },
    ),
    "picked bins": (poolkit.nn.AdaptiveMaxPool2d(2), {"output_size": (3, 1)}),
}


@pytest.mark.parametrize("small", [0, dispatch.SMALL])
@pytest.mark.parametrize("name", CHANGED)
def test_a_compiled_module_follows_its_attributes(
    name: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SMALL", small)
    torch._dynamo.reset()
    module, changes = CHANGED[name]
    module = copy.deepcopy(module)
    x = torch.randn(2, 3, 9, 10)
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))
    for attribute, value in changes.items():
        before = module(x)
        setattr(module, attribute, value)
        after = module(x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(compiled(x), after)


def test_a_compiled_function_follows_sizes_that_vary() -> None:
    torch._dynamo.reset()

    def run(x: torch.Tensor, size: int, bins: tuple[int, int]) -> Any:
        return poolkit.max_pool2d(x, (size, 2), 1), poolkit.adaptive_avg_pool2d(x, bins)

    x = torch.randn(2, 3, 9, 10)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for size, bins in ((2, (2, 3)), (3, (1, 4)), (4, (1, 4))):
        torch.testing.assert_close(compiled(x, size, bins), run(x, size, bins))


def guards_of(run: Callable[..., Any], x: torch.Tensor) -> int:
    """How many facts each call of the compiled function asks for."""
    found: list[int] = []

    def count(guards: Any) -> list[bool]:
        found.append(len(guards))
        return [True] * len(guards)

    torch._dynamo.reset()
    options = {"guard_filter_fn": count}
    torch.compile(run, fullgraph=True, dynamic=False, backend="eager", options=options)(x)
    (number,) = found
    return number


@pytest.mark.parametrize("side", [16, 130])
@pytest.mark.parametrize(
    ("name", "arguments"), [("MaxPool2d", (3, 2)), ("AvgPool2d", (2,)), ("AdaptiveAvgPool2d", (1,))]
)
def test_a_compiled_call_asks_for_little(name: str, arguments: Any, side: int) -> None:
    x = torch.randn(1, 8, side, side)
    ours, torchs = (getattr(nn, name)(*arguments) for nn in (poolkit.nn, torch.nn))
    assert guards_of(ours, x) < guards_of(torchs, x) + 50


def test_a_compiled_call_of_a_joined_activation_asks_for_little() -> None:
    joined = poolkit.nn.Pool("Sliding(3, stride=2)", "max", 2, "relu")
    torchs = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2))
    for side in (16, 130):
        x = torch.randn(1, 8, side, side)
        assert guards_of(joined, x) < guards_of(torchs, x) + 60


def test_a_window_that_does_not_fit_says_so_compiled_as_well() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: poolkit.max_pool2d(x, 9), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="a window of 9 positions does not fit axis 0"):
        compiled(torch.zeros(1, 1, 4, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_a_compiled_pooling_takes_the_layout_of_the_convolution_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(dispatch, "FEW", 0)
    torch._dynamo.reset()
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        poolkit.nn.MaxPool2d(3, 2, ceil_mode=True),
        torch.nn.Conv2d(16, 8, 3),
    ).requires_grad_(False)
    x = torch.randn(1, 3, 40, 40)
    out, (code,) = run_and_get_code(torch.compile(net, fullgraph=True, dynamic=False), x)
    torch.testing.assert_close(out, net(x))
    # The compiler runs convolutions channels last. A copy between one and the pooling, or behind
    # it, would be a buffer of its own.
    convolved, _ = re.findall(r"(buf\d+) = extern_kernels.convolution", code)
    assert re.findall(r"poolkit.pool.default\((buf\d+)", code) == [convolved]
    assert not re.findall(r"empty_strided_cpu\(\(1, 16,", code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 4, 16, 16)

    def run(x: torch.Tensor) -> torch.Tensor:
        return poolkit.max_pool2d((x * 2).relu(), 3, 2, 1) + poolkit.avg_pool2d(x, 3, 2, 1)

    compiled = torch.compile(run, fullgraph=True)
    for mine, eager in zip(
        value_and_gradient(compiled, x), value_and_gradient(run, x), strict=True
    ):
        torch.testing.assert_close(mine, eager)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_gradients_that_inductor_has_wrong() -> None:
    """Its own of a mean with `ceil_mode`, of several NaNs, and of padding and -inf alone."""
    torch._dynamo.reset()

    def run(x: torch.Tensor) -> torch.Tensor:
        pooled = poolkit.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        return pooled + poolkit.avg_pool2d(x, 3, 2, 1, ceil_mode=True)

    x = torch.randn(3, 1, 10, 10)
    x[1, 0, 2:4, 2:6] = torch.nan
    x[2] = -torch.inf
    compiled = torch.compile(run, fullgraph=True, dynamic=False)
    for mine, eager in zip(
        value_and_gradient(compiled, x), value_and_gradient(run, x), strict=True
    ):
        torch.testing.assert_close(mine, eager, equal_nan=True)


# --- torch.export --------------------------------------------------------------------------------

EXPORTED = [
    poolkit.nn.MaxPool2d(3, 2, 1),
    poolkit.nn.MaxPool2d(3, 2, ceil_mode=True),
    poolkit.nn.AvgPool2d(3),
    poolkit.nn.AdaptiveMaxPool2d(5, return_indices=True),
    poolkit.nn.Pool("Pyramid((2, 1))", "max"),
    poolkit.nn.Pool("Sliding(3)", "median"),
]


class Net(torch.nn.Module):
    def __init__(self, pooled: torch.nn.Module) -> None:
        super().__init__()
        self.pooled = pooled

    def forward(self, x: torch.Tensor) -> Any:
        return self.pooled(x)


def exported(net: torch.nn.Module, strict: bool) -> Any:
    dim = torch.export.Dim
    shapes = {"x": {0: dim("batch"), 2: dim("height", min=8, max=64), 3: dim.AUTO}}
    return torch.export.export(
        Net(net), (torch.randn(3, 4, 24, 24),), strict=strict, dynamic_shapes=shapes
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("module", EXPORTED, ids=str)
def test_export(module: torch.nn.Module, strict: bool) -> None:
    program = exported(module, strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(2, 4, 30, 26)
    mine, eager = loaded(x), module(x)
    if isinstance(eager, torch.Tensor):
        mine, eager = (mine,), (eager,)
    assert all(torch.equal(a, b) for a, b in zip(mine, eager, strict=True))


def test_a_saved_program_needs_only_the_operators(tmp_path: Any) -> None:
    torch.export.save(exported(poolkit.nn.MaxPool2d(2), False), tmp_path / "net.pt2")
    code = (
        "import sys, torch, poolkit.torch.ops\n"
        "net = torch.export.load(sys.argv[1]).module()\n"
        "assert 'poolkit.nn' not in sys.modules\n"
        "assert net(torch.ones(2, 4, 8, 8)).shape == (2, 4, 4, 4)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "net.pt2")], check=True)


# --- torch.func ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap(reduction: str, path: str) -> None:
    run, x = pooling(reduction), torch.randn(3, 2, 4, 9, 9)
    for axis in (0, 1):
        each = torch.stack([run(part) for part in x.unbind(axis)])
        torch.testing.assert_close(torch.func.vmap(run, in_dims=axis)(x), each)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_grad_of_vmap_and_vmap_of_grad(reduction: str, path: str) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return pooling(reduction)(x).square().sum()

    x = torch.randn(3, 2, 4, 9, 9)
    each = torch.stack([value_and_gradient(pooling(reduction), part)[1] for part in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), each)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(x), each)


@forward_mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_jacobians(reduction: str, path: str) -> None:
    run = pooling(reduction)
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(run, x)
    torch.testing.assert_close(torch.func.jacrev(run)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(run)(x), expected)
    _, along = torch.func.jvp(run, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(along, expected.sum((-4, -3, -2, -1)))


@forward_mode
def test_forward_mode_is_explained() -> None:
    x = torch.randn(1, 1, 64, 64)
    assert poolkit.explain(x, "Sliding(2)").path == "native"
    with torch.autograd.forward_ad.dual_level():
        assert poolkit.explain(x, "Sliding(2)").path == "composite"


# --- tiny tensors --------------------------------------------------------------------------------

SMALL: dict[str, Callable[..., Any]] = {
    "max_pool1d": lambda x: poolkit.max_pool1d(x.flatten(2), 2),
    "max_pool2d": lambda x: poolkit.max_pool2d(x, 3, 2, 1),
    "avg_pool1d": lambda x: poolkit.avg_pool1d(x.flatten(2), (2,), (2,), (0,)),
    "avg_pool2d": lambda x: poolkit.avg_pool2d(x, kernel_size=2, count_include_pad=False),
    "adaptive_max_pool2d": lambda x: poolkit.adaptive_max_pool2d(x, (3, 2)),
    "adaptive_avg_pool1d": lambda x: poolkit.adaptive_avg_pool1d(x.flatten(2), 3),
    "adaptive_avg_pool2d": lambda x: poolkit.adaptive_avg_pool2d(x, 3),
    "global_max_pool2d": poolkit.global_max_pool2d,
    "global_avg_pool1d": lambda x: poolkit.global_avg_pool1d(x.flatten(2)),
    "MaxPool2d": poolkit.nn.MaxPool2d(2),
    "AvgPool2d": poolkit.nn.AvgPool2d(3, 2, 1),
    "AdaptiveMaxPool2d": poolkit.nn.AdaptiveMaxPool2d(3),
}


class Operators(TorchDispatchMode):
    """The namespaces of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_tiny_tensors_are_left_to_aten(name: str, requires_grad: bool) -> None:
    single = name.startswith("global_avg")
    for size, namespaces in ((8, {"aten"}), (64, {"aten"} if single else {"aten", "poolkit"})):
        with Operators() as seen:
            SMALL[name](torch.randn(1, 8, size, size, requires_grad=requires_grad))
        assert seen.namespaces | {"aten"} == namespaces


@pytest.mark.filterwarnings("ignore")  # of the tracer, which is on its way out
def test_whoever_watches_is_shown_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes, tracers and profilers; where nobody watches it is not called, with the same result."""
    x = torch.randn(2, 8, 64, 64)
    right = torch.nn.functional.max_pool2d(x, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.testing.assert_close(poolkit.max_pool2d(x, 2), right)
    assert "poolkit::pool" in {event.key for event in profile.key_averages()}
    traced = torch.jit.trace(lambda x: poolkit.max_pool2d(x, 2), (x,))
    assert "poolkit::pool" in str(traced.graph)
    torch.testing.assert_close(torch.func.vmap(lambda x: poolkit.max_pool2d(x, 2))(x), right)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(poolkit.min_pool2d(negative, 2), -right)

    def refuse(*_: object) -> None:
        raise AssertionError("the operator was called")

    monkeypatch.setattr(dispatch.torch.ops.poolkit.pool, "default", refuse)
    torch.testing.assert_close(poolkit.max_pool2d(x, 2), right)
    for grad in (torch.no_grad(), torch.inference_mode()):
        with grad:
            pooled = poolkit.max_pool2d(x, 2)
        torch.testing.assert_close(pooled, right)
        assert pooled.is_inference() == isinstance(grad, torch.inference_mode)


class Functions(torch.overrides.TorchFunctionMode):
    """The functions and operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


WATCHED: dict[str, Callable[..., Any]] = {
    "shortest way": lambda x: poolkit.max_pool2d(x, 2),
    "pool": lambda x: poolkit.pool(x, "Sliding(2)", "Lp(2)"),
    "chain": lambda x: poolkit.sppf(x, 3),
}


@pytest.mark.parametrize("name", WATCHED)
def test_tensors_that_only_look_plain(name: str) -> None:
    """Zeros without memory, and wrapped ones: their type is Tensor, and they say `is_cpu`."""
    call = WATCHED[name]
    x = torch.randn(2, 8, 64, 64)
    right = call(x)
    nothing = torch._efficientzerotensor(x.shape)
    torch.testing.assert_close(call(nothing), torch.zeros_like(right))
    torch.testing.assert_close(call(torch._neg_view(-x)), right)
    torch._enable_functionalization(reapply_views=True)
    try:
        wrapped = call(torch._to_functional_tensor(x))
    finally:
        torch._disable_functionalization()
    torch.testing.assert_close(torch._from_functional_tensor(wrapped), right)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: call(x) + 0, pre_dispatch=True)(x)
    torch.testing.assert_close(graph(2 * x), call(2 * x))
    with Functions() as seen:
        call(x)
    assert any("poolkit.pool" in each for each in seen.names)


def test_gradients_in_batches_through_a_backward_that_pools() -> None:
    class Up(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return torch.nn.functional.interpolate(x, scale_factor=2)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return 4 * poolkit.avg_pool2d(grad, 2)

    leaf = torch.randn(2, 8, 24, 24, requires_grad=True)
    out = Up.apply(leaf)
    weights = torch.randn(3, *out.shape)
    batched = torch.autograd.grad(out, leaf, weights, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(out, leaf, w, retain_graph=True)[0] for w in weights]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_a_global_mean_is_atens_however_it_is_spelt() -> None:
    x = torch.randn(1, 64, 30, 30)
    right = torch.nn.functional.adaptive_avg_pool2d(x, 1)
    for bins in (1, (1,), (1, 1)):
        assert torch.equal(poolkit.adaptive_avg_pool2d(x, bins), right)
    assert torch.equal(poolkit.nn.AdaptiveAvgPool2d((1, 1))(x), right)


def test_a_kept_kernel_is_kept_for_exactly_its_arguments() -> None:
    """Of two calls whose arguments are equal in Python one may be refused, or pool differently."""
    x = torch.randn(2, 8, 40, 40)
    accepted = [
        lambda: poolkit.max_pool2d(x, 1, 1, 0, 1, True),
        lambda: poolkit.avg_pool2d(x, 3, 2, 1, True, True),
        lambda: poolkit.max_pool2d(x, (1, 1), 1),
        lambda: poolkit.adaptive_avg_pool2d(x, (1, 2)),
    ]
    refused = [
        lambda: poolkit.max_pool2d(x, True, 1, 0, 1, True),
        lambda: poolkit.max_pool2d(x, 1.0, 1, 0, 1, True),
        lambda: poolkit.max_pool2d(x, (1, True), 1),
        lambda: poolkit.adaptive_avg_pool2d(x, (True, 2)),
        lambda: poolkit.max_pool2d(x, 3, 1, 2),
        lambda: poolkit.max_pool2d(x, 41),
        lambda: poolkit.max_pool2d(x[0, 0], 2),
    ]
    for _ in range(2):
        for call in accepted:
            call()
        for call in refused:
            with pytest.raises(poolkit.PoolError):
                call()
    for pad in (True, False):
        right = torch.nn.functional.avg_pool2d(x, 3, 2, 1, True, pad)
        torch.testing.assert_close(poolkit.avg_pool2d(x, 3, 2, 1, True, pad), right)
    for dtype in (torch.int8, torch.int32, torch.bool, torch.float64, torch.bfloat16):
        found = poolkit.max_pool2d((8 * x).to(dtype), 2)
        assert found.dtype == dtype
        torch.testing.assert_close(found, poolkit.pool((8 * x).to(dtype), "Sliding(2)", "max"))


@forward_mode
def test_a_kept_kernel_is_not_used_where_more_is_asked() -> None:
    x = torch.randn(2, 8, 40, 40)
    plain = poolkit.max_pool2d(x, 2)
    leaf = x.clone().requires_grad_()
    assert poolkit.max_pool2d(leaf, 2).requires_grad
    with torch.no_grad():
        assert not poolkit.max_pool2d(leaf, 2).requires_grad
    behind = x.contiguous(memory_format=torch.channels_last)
    assert poolkit.max_pool2d(behind, 2).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(poolkit.max_pool2d(behind, 2), plain)
    torch.testing.assert_close(poolkit.max_pool2d(x.transpose(2, 3), 2), plain.transpose(2, 3))
    for shape in ((4, 1, 40, 40), (2, 4096, 1, 1)):
        for form in FORMATS:
            like = torch.randn(shape).to(memory_format=form)
            strides = torch.nn.functional.max_pool2d(like, 1).stride()
            assert poolkit.max_pool2d(like, 1).stride() == strides
    tangent = torch.func.jvp(lambda x: poolkit.max_pool2d(x, 2), (x,), (x,))[1]
    torch.testing.assert_close(tangent, plain)


@pytest.mark.parametrize("name", SMALL)
def test_tiny_tensors_are_not_looked_at_while_compiling(name: str) -> None:
    """Else aten's operators would be in the graph, and their size among its guards; but where it
    has but one result, aten's is there for any size."""
    torch._dynamo.reset()
    backend, graphs = count_graphs()
    compiled = torch.compile(SMALL[name], fullgraph=True, dynamic=True, backend=backend)
    for size in (8, 64):
        compiled(torch.randn(2, 4, size, size))
    assert graphs == [1]
    seen = operators_in(SMALL[name], torch.randn(2, 4, 8, 8), dynamic=True)
    assert ("poolkit" in seen) is not name.startswith("global")


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bins", [1, 3, (2, 5), (12, 1), (0, 3)], ids=str)
def test_a_tiny_adaptive_max_has_the_same_bits_from_aten(
    bins: Any,
    dtype: torch.dtype,
    form: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = torch.randint(0, 6, (2, 3, 8, 7), generator=torch.Generator().manual_seed(5))
    for values in ((0.0, -0.0, 1.0, 2.0, 2.5, -torch.inf), (0.0, 1.0, 2.0, 3.0, torch.nan, 4.0)):
        x = torch.tensor(values, dtype=dtype)[drawn].contiguous(memory_format=form)
        found = []
        for tiny in (0, dispatch.TINY):
            monkeypatch.setattr(dispatch, "TINY", tiny)
            leaf = x.clone().requires_grad_()
            y = poolkit.adaptive_max_pool2d(leaf, bins)
            weights = torch.arange(1.0, y.numel() + 1).reshape(y.shape).to(dtype)
            plain = poolkit.adaptive_max_pool2d(x, bins)
            found.append((y, plain, *torch.autograd.grad(y, leaf, weights)))
        for native, aten in zip(*found, strict=True):
            torch.testing.assert_close(native, aten, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(native.signbit() & ~native.isnan(), aten.signbit() & ~aten.isnan())
            assert native.stride() == aten.stride() or not native.numel()


TAKEN_BY_ATEN: list[Callable[..., Any]] = [
    lambda x, one: poolkit.max_pool2d(x, (2, one)),
    lambda x, one: poolkit.max_pool2d(x, 2, (2, one)),
    lambda x, one: poolkit.max_pool2d(x, 2, 2, (0, one)),
    lambda x, one: poolkit.max_pool2d(x, 2, 2, 0, one),
    lambda x, one: poolkit.avg_pool2d(x, (2, one)),
    lambda x, one: poolkit.avg_pool2d(x, one),
    lambda x, one: poolkit.adaptive_avg_pool2d(x, (2, one)),
    lambda x, one: poolkit.adaptive_max_pool2d(x, one),
    lambda x, one: poolkit.lp_pool2d(x, one, 2),
]


@pytest.mark.parametrize("call", range(len(TAKEN_BY_ATEN)))
@pytest.mark.parametrize("size", [8, 64])
def test_true_is_not_1(size: int, call: int) -> None:
    """Neither to aten, which takes it within a tuple, nor as a key of what is made once."""
    run = TAKEN_BY_ATEN[call]
    for x in (torch.randn(1, 8, size, size), torch.randn(1, 8, size, size).numpy()):
        run(x, 1)
        with pytest.raises(poolkit.PoolTypeError, match=r"must be .*, got True, while pooling"):
            run(x, True)
        run(x, 1)


def test_the_norm_of_2_is_not_that_of_2_0() -> None:
    """Both are right, and each keeps its recipe."""
    x = torch.zeros(1, 2, 4, 4, dtype=torch.complex64)
    for p in (2, 2.0, 2):
        with pytest.raises(poolkit.PoolTypeError, match=rf"Lp\({re.escape(str(p))}\)"):
            poolkit.lp_pool2d(x, p, 2)


@pytest.mark.parametrize("shape", [(8, 64), (2, 3, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_a_rank_that_aten_refuses_in_its_own_words_or_takes(
    name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"an input of rank 3 .* was expected"):
        getattr(poolkit, name)(torch.zeros(shape), 1)


# --- operators -----------------------------------------------------------------------------------


@forward_mode
@pytest.mark.parametrize(
    "run",
    [
        lambda x: OPS.pool(x, "Sliding(3, stride=2, padding=1)", "Max()", 2),
        lambda x: OPS.pool(x, "Sliding(2)", "Activated('Mean()', 'Sigmoid()')", 2),
        lambda x: OPS.pool(x, "Adaptive(2)", "Median()", 2),
        lambda x: OPS.chain(x, "Sliding(3, stride=1, padding=1)", 2),
    ],
)
def test_operators_have_gradients_in_both_directions(run: Callable[..., Any]) -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [2, 0])
def test_opcheck(batch: int, dtype: torch.dtype, form: torch.memory_format) -> None:
    x = torch.randn(batch, 3, 9, 8).to(dtype).contiguous(memory_format=form)
    window, spatial = "Sliding(3, stride=2, padding=1)", [9, 8]
    values, codes = OPS.pool_positions(x, window, "Max()", 2)
    calls = [
        (OPS.pool.default, (x, window, "Max()", 2)),
        (OPS.pool.default, (x, window, "Mean()", 2)),
        (OPS.pool.default, (x, "Adaptive(2)", "Median()", 2)),
        (OPS.pool_positions.default, (x, window, "Min()", 2)),
        (OPS.scatter.default, (values, codes, window, spatial)),
        (OPS.spread.default, (values, window, "Mean()", spatial)),
        (OPS.indices.default, (codes, window, spatial)),
        (OPS.pool.default, (x, window, "Activated('Mean()', 'GELU()')", 2)),
        (OPS.pool_positions.default, (x, window, "Activated('Max()', 'SiLU()')", 2)),
        (OPS.pool_behind.default, (x, window, "Activated('Max()', 'ReLU()')", 2)),
        (OPS.spread_activated.default, (values, x, window, "Mean()", "Sigmoid()", 2)),
        (OPS.activation_backward.default, (x, x, "Tanh()")),
        (OPS.pool_backward.default, (values, x, window, "Soft()", 2)),
        (OPS.locate.default, (x, window, "Max()", 2)),
        (OPS.chain.default, (x, "Sliding(5, stride=1, padding=2)", 3)),
    ]
    for op, arguments in calls:
        torch.library.opcheck(op, arguments)
    assert {op for op, _ in calls} == {
        getattr(OPS, name).default
        for name in (
            "pool",
            "pool_positions",
            "scatter",
            "spread",
            "indices",
            "pool_behind",
            "spread_activated",
            "activation_backward",
            "pool_backward",
            "locate",
            "chain",
        )
    }


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        ("Sliding(17, dilation=2)", (40, 40)),
        ("Sliding(16)", (20, 20)),
        ("Sliding(20, padding=10)", (12, 12)),
        ("Adaptive(3)", (50, 44)),
        ("Adaptive((2, 5))", (33, 40)),
        ("Global()", (300, 300)),
        ("Sliding(17, padding='same')", (9, 9)),
    ],
)
def test_the_fake_kernel_knows_the_size_of_a_code(window: str, shape: tuple[int, int]) -> None:
    x = torch.randn(1, 1, *shape)
    real = OPS.pool_positions(x, window, "Max()", 2)
    fake = OPS.pool_positions(x.to("meta"), window, "Max()", 2)
    assert [t.dtype for t in fake] == [t.dtype for t in real]


@pytest.mark.parametrize(
    ("name", "shape", "order"),
    [
        ("max_pool2d", (64, 64, 3), (2, 0, 1)),
        ("max_pool1d", (2, 2000, 3), (0, 2, 1)),
        ("avg_pool2d", (64, 64, 3), (2, 0, 1)),
        ("max_pool2d", (2, 64, 64, 3), (0, 3, 1, 2)),
        ("max_pool3d", (2, 20, 20, 20, 3), (0, 4, 1, 2, 3)),
    ],
)
def test_channels_stay_behind_where_torch_has_a_format_for_it(
    name: str, shape: tuple[int, ...], order: tuple[int, ...]
) -> None:
    x = torch.rand(shape).permute(order)
    mine, theirs = getattr(poolkit, name)(x, 2), getattr(torch.nn.functional, name)(x, 2)
    assert mine.stride() == theirs.stride()
    torch.testing.assert_close(mine, theirs)
    if "max" in name:
        values, places = getattr(poolkit, name)(x, 2, return_indices=True)
        assert values.stride() == places.stride() == theirs.stride()
    # Under a transform the batch is one axis more.
    if x.ndim > 4:
        return
    mapped = torch.vmap(lambda x: getattr(poolkit, name)(x, 2))(torch.stack([x, x + 1]))
    torch.testing.assert_close(mapped, torch.stack([theirs, theirs + 1]))


# --- tensors of other kinds ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_meta_and_fake_tensors_have_the_shape_and_layout(
    reduction: str, form: torch.memory_format
) -> None:
    x = torch.randn(2, 3, 9, 8).contiguous(memory_format=form)
    for window in ("Sliding(3, stride=2, padding=1)", "Adaptive(2)", "Global()", "Pyramid((2, 1))"):
        run = pooling(reduction, window)
        real = run(x)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = run(mode.from_tensor(x))
        for shown in (run(x.to("meta")), fake):
            assert (shown.shape, shown.dtype) == (real.shape, real.dtype)
            assert shown.stride() == real.stride()


def test_parameters_and_subclasses() -> None:
    class Mine(torch.Tensor):
        pass

    x = torch.randn(1, 2, 6, 6)
    for special in (torch.nn.Parameter(x), x.as_subclass(Mine)):
        for run in (poolkit.max_pool2d, poolkit.avg_pool2d):
            mine = run(special, 2).detach().as_subclass(torch.Tensor)
            torch.testing.assert_close(mine, run(x, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_dtype_alone(dtype: torch.dtype, path: str) -> None:
    """Torch's own pooling in three dimensions gives float32 here."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ndim in (1, 2, 3):
            x = torch.randn(1, 2, *(6,) * ndim).to(dtype)
            for kind in ("max", "avg", "sum"):
                assert getattr(poolkit, f"{kind}_pool{ndim}d")(x, 2).dtype == dtype


def test_other_devices_go_through_aten_or_the_composite_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 3, 64, 64)
    expected = {r: poolkit.pool(x, "Sliding(3, stride=2)", r) for r in REDUCTIONS}
    values, places = poolkit.pool_with_indices(x, "Adaptive(5)", "min")
    monkeypatch.setattr(dispatch, "_has_kernels", lambda x: False)
    paths = {}
    for reduction, native in expected.items():
        mine = poolkit.pool(x, "Sliding(3, stride=2)", reduction)
        torch.testing.assert_close(mine, native)
        paths[reduction] = poolkit.explain(x, "Sliding(3, stride=2)", reduction).path
    assert paths == {r: "aten" if r in ("max", "mean") else "composite" for r in REDUCTIONS}
    found = poolkit.pool_with_indices(x, "Adaptive(5)", "min")
    assert torch.equal(found[0], values)
    assert torch.equal(found[1], places)


def test_explain_says_what_runs() -> None:
    small, large = torch.randn(1, 2, 8, 8), torch.randn(1, 8, 64, 64)
    assert poolkit.explain(small, "Sliding(2)").path == "aten"
    assert poolkit.explain(small, "Sliding(2)", "mean").path == "aten"
    assert poolkit.explain(small, "Sliding(2)", "sum").path == "native"
    assert poolkit.explain(large, "Sliding(2)").path == "native"
    assert poolkit.explain(large, "Sliding(2)", "median").path == "native"
    assert poolkit.explain(large.int(), "Sliding(2)", "std").path == "composite"
    mixed = poolkit.explain(small, poolkit.Pyramid(((None, 2), 1)), "mean")
    assert mixed.path == "mixed"
    assert mixed.why == (
        "Adaptive((None, 2)) goes native, as Mean() of float32 has a kernel; "
        "Adaptive(1) goes aten, as under 1048576 elements the overhead of a call decides"
    )
    assert poolkit.explain(small, poolkit.Pyramid((2, 1)), "mean").path == "aten"
    assert poolkit.explain(large, poolkit.Pyramid((2, 1)), "max").position_bytes == 2


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(1, 2, 8, 8).to_sparse(), "layout torch.sparse_coo cannot be pooled"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.complex64), "dtype complex64 cannot be pooled"),
    ],
    ids=str,
)
def test_what_cannot_be_pooled(x: torch.Tensor, reason: str) -> None:
    for run in (poolkit.max_pool2d, poolkit.avg_pool2d):
        with pytest.raises(poolkit.PoolTypeError, match=f"{reason}, while pooling .*Sliding"):
            run(x, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_cannot_be_pooled(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.zeros(2, 8, 8), torch.zeros(3, 8, 8)], layout=layout)
    for run in (
        lambda: poolkit.max_pool2d(x, 2),
        lambda: poolkit.avg_pool2d(x, 2),
        lambda: poolkit.pool(x, "Sliding(2)", "max"),
        lambda: poolkit.explain(x, "Sliding(2)", "max"),
        lambda: poolkit.pool_with_indices(x, "Sliding(2)", "max"),
        lambda: poolkit.fractional_max_pool2d(x, 2, 2),
        lambda: poolkit.max_unpool2d(x, x, 2),
    ):
        with pytest.raises(poolkit.PoolTypeError) as caught:
            run()
        assert str(caught.value).startswith(
            "a nested tensor cannot be pooled, while pooling a nested tensor of float32 "
        )
        assert str(caught.value).endswith("Pool each of x.unbind().")
