"""Mixed, gated and tree pooling: values by hand, gates of 0 and 1, gradients."""

from __future__ import annotations

from typing import Any

import pytest

import poolkit
from poolkit import PoolError, PoolTypeError, PoolValueError

torch = pytest.importorskip("torch")

from poolkit.vision.mixed import (  # noqa: E402
    GatedPool2d,
    MixedPool2d,
    TreePool2d,
    mixed_pool2d,
)

PLACES: list[tuple[Any, Any, Any]] = [
    (2, None, 0),
    (3, 2, 1),
    ((2, 3), (1, 2), (0, 1)),
    (3, 2, "same"),
    (2, 2, ((0, 1), (1, 0))),
]


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def filled(module: Any, seed: int = 3) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return module.double()


def windows(x: Any, kernel_size: Any, stride: Any, padding: Any) -> list[Any]:
    """(output row, output column, the window's values with zeros in the padding), one by one."""
    window = poolkit.Sliding(kernel_size, stride, padding)
    (kh, kw), (sh, sw), _ = window.sizes(2)
    shape = tuple(x.shape[-2:])
    height, width = window.output_shape(shape)
    fields = window.receptive_field(shape)
    top, left = (int((field.size - 1) / 2 - field.offset) for field in fields)
    wide = torch.nn.functional.pad(x, (left, kw + sw, top, kh + sh))
    return [
        (i, j, wide[..., i * sh : i * sh + kh, j * sw : j * sw + kw])
        for i in range(height)
        for j in range(width)
    ]


def mean_and_max(x: Any, kernel_size: Any, stride: Any, padding: Any) -> tuple[Any, Any]:
    window = poolkit.Sliding(kernel_size, stride, padding)
    mean = poolkit.Mean(count_include_pad=False)
    return poolkit.pool(x, window, mean, ndim=2), poolkit.pool(x, window, "max", ndim=2)


# --- mixed ----------------------------------------------------------------------------------------


def test_mixed_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    # The max is 6, the mean 12/4 = 3: a quarter of 6 and three of 3 are 3.75.
    assert mixed_pool2d(x, 2, alpha=0.25).item() == 3.75
    # Padding is no value: the corner sees 1 alone.
    assert mixed_pool2d(x, 2, 2, 1, alpha=0.5)[0, 0, 0, 0] == 1
    # One share for each channel.
    pair = torch.cat([x, x], 1)
    assert mixed_pool2d(pair, 2, alpha=torch.tensor([0.0, 1.0])).flatten().tolist() == [3, 6]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_mixed_ends_and_between(place: tuple[Any, Any, Any]) -> None:
    x = drawn(2, 3, 7, 6)
    mean, most = mean_and_max(x, *place)
    for alpha, want in ((0, mean), (1, most)):
        assert torch.equal(mixed_pool2d(x, *place, alpha=alpha), want)
        assert torch.equal(mixed_pool2d(x, *place, alpha=torch.tensor(float(alpha))), want)
    torch.testing.assert_close(mixed_pool2d(x, *place, alpha=0.3), 0.3 * most + 0.7 * mean)
    x[0, 0, 0, 0] = torch.inf  # of which 0 times would be NaN
    mean, most = mean_and_max(x, *place)
    assert torch.equal(mixed_pool2d(x, *place, alpha=1), most)


def test_mixed_learns_its_share() -> None:
    x = drawn(1, 2, 5, 4).requires_grad_()
    for n in (1, 2):
        alpha = torch.full((n,), 0.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, a: mixed_pool2d(x, 3, 2, 1, a), (x, alpha))
    module = MixedPool2d(2, alpha=0.25, per_channel=True, channels=2)
    assert module.alpha.tolist() == [0.25, 0.25]
    module(drawn(1, 2, 5, 4, dtype=torch.float32)).sum().backward()
    # The gradient of the share is the max less the mean.
    mean, most = mean_and_max(drawn(1, 2, 5, 4, dtype=torch.float32), 2, None, 0)
    torch.testing.assert_close(module.alpha.grad, (most - mean).sum((0, 2, 3)))
    assert not list(MixedPool2d(2, learned=False).parameters())
    assert (
        repr(MixedPool2d(2)) == "MixedPool2d(kernel_size=2, stride=2, padding=0, alpha=1 learned)"
    )


# --- gated ----------------------------------------------------------------------------------------


def test_gated_by_hand() -> None:
    # 1 * 0.5 + 3 * (-0.5) = -1, whose sigmoid is 0.268941; the max is 3, the mean 2.
    module = GatedPool2d((1, 2))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[[[0.5, -0.5]]]]))
    found = module(torch.tensor([[[1.0, 3.0]]]))
    assert found.item() == pytest.approx(0.268941 * 3 + 0.731059 * 2, rel=1e-6)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_gates_of_0_and_1(place: tuple[Any, Any, Any]) -> None:
    x = drawn(2, 3, 7, 6)
    mean, most = mean_and_max(x, *place)
    module = GatedPool2d(*place, bias=True).double()
    for bias, want in ((-1000.0, mean), (1000.0, most), (0.0, (mean + most) / 2)):
        with torch.no_grad():
            module.bias.fill_(bias)
        torch.testing.assert_close(module(x), want, rtol=1e-15 if bias == 0 else 0, atol=1e-15)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_gated_against_loops(place: tuple[Any, Any, Any], per_channel: bool) -> None:
    x = drawn(2, 3, 7, 6)
    module = filled(GatedPool2d(*place, per_channel=per_channel, channels=3, bias=True))
    mean, most = mean_and_max(x, *place)
    found = module(x)
    for i, j, seen in windows(x, *place):
        gate = ((seen * module.weight[:, 0]).sum((-2, -1)) + module.bias).sigmoid()
        want = gate * most[:, :, i, j] + (1 - gate) * mean[:, :, i, j]
        torch.testing.assert_close(found[:, :, i, j], want)


# --- tree -----------------------------------------------------------------------------------------


def test_tree_by_hand() -> None:
    # Leaves: the first value (2) and the second (6); the gate's product is log 3: 3/4 and 1/4.
    module = TreePool2d((1, 2), levels=2).double()
    x = torch.tensor([[[2.0, 6.0]]], dtype=torch.float64)
    with torch.no_grad():
        module.leaves.copy_(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]))
        module.gates.copy_(torch.log(torch.tensor(3.0, dtype=torch.float64)) / 8)
    assert module(x).item() == pytest.approx(0.75 * 2 + 0.25 * 6, rel=1e-12)
    # One level is one linear filter.
    linear = TreePool2d((1, 2), levels=1).double()
    with torch.no_grad():
        linear.leaves.fill_(0.5)
    assert linear(x).item() == 4
    assert linear.gates.numel() == 0


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_tree_against_loops(place: tuple[Any, Any, Any], per_channel: bool) -> None:
    x = drawn(2, 3, 7, 6)
    module = filled(TreePool2d(*place, levels=3, per_channel=per_channel, channels=3))
    found = module(x)
    for i, j, seen in windows(x, *place):

        def product(filters: Any, seen: Any = seen) -> Any:
            return (seen * filters).sum((-2, -1))

        # Nodes 1 and 2 are below the root, with leaves 0, 1 and 2, 3.
        pairs = []
        for node, (left, right) in ((1, (0, 1)), (2, (2, 3))):
            gate = product(module.gates[node]).sigmoid()
            pairs.append(
                gate * product(module.leaves[left]) + (1 - gate) * product(module.leaves[right])
            )
        root = product(module.gates[0]).sigmoid()
        torch.testing.assert_close(found[:, :, i, j], root * pairs[0] + (1 - root) * pairs[1])


def test_a_tree_begins_near_the_average() -> None:
    torch.manual_seed(0)
    module = TreePool2d(2, levels=3)
    x = drawn(2, 3, 6, 6, dtype=torch.float32)
    torch.testing.assert_close(module(x), poolkit.avg_pool2d(x, 2), rtol=0, atol=0.5)
    assert len(set(module.leaves.flatten(1).sum(1).tolist())) == 4  # no two are alike


# --- all -----------------------------------------------------------------------------------------

MODULES = {
    "mixed": lambda: MixedPool2d(3, 2, 1, per_channel=True, channels=3),
    "gated": lambda: GatedPool2d(3, 2, 1, bias=True),
    "tree": lambda: TreePool2d(3, 2, 1, levels=3, per_channel=True, channels=3),
}


@pytest.mark.parametrize("name", MODULES)
def test_gradcheck(name: str) -> None:
    module = filled(MODULES[name]())
    names = [name for name, _ in module.named_parameters()]
    x = drawn(2, 3, 5, 4).requires_grad_()

    def run(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *module.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_half_types_are_rounded_once(name: str, dtype: Any) -> None:
    module = filled(MODULES[name]()).to(dtype)
    x = drawn(2, 3, 8, 8).to(dtype).requires_grad_()
    found = module(x)
    assert found.dtype == dtype
    found.sum().backward()
    assert x.grad.dtype == dtype
    want = module.double()(x.double())
    half_a_place = 0.51 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), want, rtol=half_a_place, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_layouts_ranks_and_empty_batches(name: str) -> None:
    module = filled(MODULES[name]()).float()
    x = drawn(2, 3, 7, 6, dtype=torch.float32)
    want = module(x)
    behind = module(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(behind, want)
    torch.testing.assert_close(module(x[0]), want[0])
    empty = x[:0].clone().requires_grad_()
    pooled = module(empty)
    assert pooled.shape == (0, *want.shape[1:])
    pooled.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_compile_and_autocast(name: str) -> None:
    module = filled(MODULES[name]()).float()
    x = drawn(2, 3, 7, 6, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    want = module(x)
    torch.testing.assert_close(compiled(x), want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x), want, rtol=0.05, atol=0.2)


def test_errors() -> None:
    x = torch.zeros(1, 3, 4, 4)

    def says(error: type[PoolError], text: str) -> Any:
        return pytest.raises(error, match=text)

    with says(
        PoolValueError, "alpha must lie between 0 and 1, got 2, while pooling .*mixed_pool2d"
    ):
        mixed_pool2d(x, 2, alpha=2)
    with says(PoolTypeError, "alpha must be a number, got True"):
        MixedPool2d(2, alpha=True)
    with says(PoolValueError, "alpha must be one number or one for each of 3 channels"):
        mixed_pool2d(x, 2, alpha=torch.zeros(2))
    with says(PoolTypeError, "a torch tensor was expected, got ndarray"):
        mixed_pool2d(x.numpy(), 2)
    with says(PoolTypeError, "a mixture is of a floating dtype.*x.float"):
        GatedPool2d(2)(x.int())
    with says(PoolValueError, "rank 2, while pooling .* by GatedPool2d"):
        GatedPool2d(2)(x[0, 0])
    with says(PoolValueError, "the input has 3 channels, the filters are for 5.*channels=3"):
        GatedPool2d(2, per_channel=True, channels=5)(x)
    with says(PoolValueError, "a filter for each channel needs their number"):
        TreePool2d(2, per_channel=True)
    with says(PoolValueError, "levels must be an integer from 1 to 10, got 0"):
        TreePool2d(2, levels=0)
    with says(PoolValueError, "does not fit axis 0"):
        TreePool2d(5)(x)
    with says(PoolValueError, "kernel_size must be at least 1"):
        MixedPool2d(0)
