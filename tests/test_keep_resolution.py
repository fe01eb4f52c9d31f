# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""keep_resolution: the values of the strided model where aligned, and what each of them sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import poolkit
import poolkit.nn
from poolkit import PoolError, PoolTypeError, PoolValueError, ReceptiveField
from poolkit.vision.convolution import ConvPool2d
from poolkit.vision.multiscale import ASPP, SPP, PyramidPool2d
from poolkit.vision.resolution import keep_resolution


def whole_numbers(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of -2 to 2 in float64: sums of small integers are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).double()
    return model.double().eval()


def image(*size: int, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-9, 10, (2, channels, *size), generator=generator).double()


def conv(*args: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, *args, **options)


def aligned(model: nn.Module, x: torch.Tensor, by: Any, **options: Any) -> nn.Module:
    """Asserts that every by-th value of the dense model is the model's, and as many as it has."""
    dense = keep_resolution(model, **options)
    expected, found = model(x), dense(x)
    steps = (by,) * (x.ndim - 2) if isinstance(by, int) else by
    index = (..., *(slice(None, None, step) for step in steps))
    assert torch.equal(found[index], expected)
    return dense


POOLS: dict[str, Callable[..., nn.Module]] = {
    "max": nn.MaxPool2d,
    "avg": nn.AvgPool2d,
    "avg without padding": lambda *a, **k: nn.AvgPool2d(*a, **k, count_include_pad=False),
    "avg by 8": lambda *a, **k: nn.AvgPool2d(*a, **k, divisor_override=8),
    "poolkit max": poolkit.nn.MaxPool2d,
    "poolkit avg": poolkit.nn.AvgPool2d,
    "min": poolkit.nn.MinPool2d,
    "sum": poolkit.nn.SumPool2d,
    "relu max": poolkit.nn.ReLUMaxPool2d,
    "any": lambda k, s=None, p=0, **o: poolkit.nn.Pool(
        poolkit.Sliding(k, s, p, **o), "Mean(count_include_pad=False)"
    ),
}
SIZES = [(24, 24), (25, 23), (22, 19), (27, 18), (13, 30)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", [(2,), (3, 2, 1), (3, 2), (2, 2, 1), (3, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("kind", POOLS)
def test_two_pools_in_a_row_at_the_borders_too(
    kind: str, window: tuple[int, ...], ceil_mode: bool
) -> None:
    pools = [POOLS[kind](*window, ceil_mode=ceil_mode) for _ in range(2)]
    model = nn.Sequential(
        conv(3, padding=1), pools[0], conv(3, padding=1), pools[1], conv(3, padding=1)
    )
    whole_numbers(model)
    stride = window[1] if len(window) > 1 else 2
    if kind in ("avg", "poolkit avg") and ceil_mode and window == (3, 2, 1):
        with pytest.raises(PoolValueError, match=r"1 \(AvgPool2d\) with ceil_mode counts"):
            keep_resolution(model)
        return
    for size in SIZES:
        x = image(*size)
        if kind in ("max", "min", "poolkit max", "relu max", "sum", "avg by 8"):
            aligned(model, x, stride**2)
            continue
        # Thirds are rounded, and sums of them in another order differ in their last bits.
        found = keep_resolution(model)(x)[..., :: stride**2, :: stride**2]
        torch.testing.assert_close(found, model(x), rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kind", ["avg", "poolkit avg", "any", "avg without padding"])
def test_averages_are_exact_where_they_can_be(kind: str, ceil_mode: bool) -> None:
    model = nn.Sequential(*(POOLS[kind](2, ceil_mode=ceil_mode) for _ in range(2)))
    aligned(model, image(24, 21), 4)
    pool = POOLS[kind](3, 2, 0 if ceil_mode else 1, ceil_mode=ceil_mode)
    for size in SIZES:
        aligned(pool, image(*size), 2)


def test_by_hand() -> None:
    """0 to 7, maxima of 2 by 2: 1, 3, 5, 7, then of two of these: 3, 7. Densely: 1, 2, ..., 7, and
    then of what lies 2 apart: 3, 4, 5, 6, 7."""
    model = nn.Sequential(nn.MaxPool1d(2), nn.MaxPool1d(2))
    x = torch.arange(8.0).reshape(1, 1, 8)
    dense = keep_resolution(model)
    assert model(x).tolist() == [[[3, 7]]]
    assert dense[0](x).tolist() == [[[1, 2, 3, 4, 5, 6, 7]]]
    assert dense(x).tolist() == [[[3, 4, 5, 6, 7]]]
    assert (dense[1].stride, dense[1].dilation) == (1, 2)
    assert model[0].stride == 2  # a copy has changed


def test_one_axis_and_three() -> None:
    line = nn.Sequential(nn.Conv1d(2, 2, 3), nn.AvgPool1d(2), nn.Conv1d(2, 2, 3, padding=1))
    aligned(whole_numbers(line), image(31), 2)
    aligned(nn.Sequential(nn.AvgPool1d(2, ceil_mode=True), nn.MaxPool1d(3, 2, 1)), image(31), 4)
    space = nn.Sequential(nn.MaxPool3d(2), nn.Conv3d(2, 2, 3, padding=1), nn.MaxPool3d(3, 2, 1))
    aligned(whole_numbers(space), image(13, 12, 11), 4)
    tall = nn.Sequential(nn.MaxPool2d((2, 1)), conv(3, padding=1), nn.AvgPool2d((1, 4)), conv(2))
    aligned(whole_numbers(tall), image(12, 24), (2, 4))


def test_a_model_that_is_a_pool() -> None:
    dense = keep_resolution(nn.MaxPool2d(3, 2, 1))
    assert repr(dense) == repr(nn.MaxPool2d(3, 1, 1))
    aligned(nn.LPPool2d(2, 2), image(9, 9).abs(), 2)
    lp = nn.Sequential(poolkit.nn.LPPool2d(1, 2, ceil_mode=True), poolkit.nn.LPPool2d(1, 2))
    aligned(lp, image(9, 11), 4)


# --- receptive fields ----------------------------------------------------------------------------


def field_of(model: nn.Sequential) -> ReceptiveField:
    field = ReceptiveField()
    for layer in model:
        if isinstance(layer, poolkit.nn.Pool):
            (kernel, _), (stride, _), (dilation, _) = layer.window.sizes(2)
            pad = layer.window.pads(2)[0][0]
            field = field.through(kernel, stride, pad, dilation)
        elif hasattr(layer, "kernel_size"):
            sizes = (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
            field = field.through(*(s[0] if isinstance(s, tuple) else s for s in sizes))
    return field


def seen(model: nn.Module, x: torch.Tensor, row: int, column: int) -> set[tuple[int, ...]]:
    """The positions of the input that have a gradient of one output."""
    x = x.clone().requires_grad_()
    model(x)[0, :, row, column].sum().backward()
    return {tuple(place) for place in x.grad[0].abs().sum(0).nonzero().tolist()}


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_the_same_receptive_field(padding: int, ceil_mode: bool) -> None:
    model = nn.Sequential(
        conv(3, padding=padding),
        nn.AvgPool2d(3, 2, padding, ceil_mode, count_include_pad=False),
        conv(3, padding=padding, dilation=2),
        nn.AvgPool2d(2),
        conv(3, padding=padding),
    )
    for parameter in model.parameters():  # no gradient is 0 by chance
        nn.init.ones_(parameter)
    dense = keep_resolution(model)
    before, after = field_of(model), field_of(dense)
    # 1 + 2 + 2 + 2*2*2 + 1*2 + 2*4 = 23 positions, 4 apart or 1.
    assert before.size == after.size == 23
    assert (before.jump, after.jump) == (4, 1)
    assert before.offset == after.offset
    model, dense, x = model.double(), dense.double(), torch.rand(1, 2, 41, 38).double()
    rows, columns = model(x).shape[2:]
    for row, column in ((0, 0), (1, 2), (rows - 1, columns - 1)):
        assert seen(model, x, row, column) == seen(dense, x, 4 * row, 4 * column)


# --- networks ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two branches of one stride, which meet."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, 1, 1)
        self.short = nn.Conv2d(2, 2, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.short(x))


class Excited(nn.Module):
    """A gate from the mean of the whole map, which goes with a map of any resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return x * (self.gate(self.mean(x)) + x.mean((2, 3), keepdim=True)).sigmoid()


def residual_network() -> nn.Sequential:
    model = nn.Sequential(
        conv(7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1), Residual(), Residual(2), Residual(2)
    )
    whole_numbers(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0  # 1 / sqrt(1 + eps) is no whole number
    return model


@pytest.mark.parametrize("how", ["traced", "run"])
def test_a_residual_network(how: str) -> None:
    model, x = residual_network(), image(70, 61)
    example = {} if how == "traced" else {"example": x}
    dense = aligned(model, x, 2, **example)  # the pool only: the strides of convolutions stay
    assert dense[3].first.stride == (2, 2)
    assert dense[3].first.dilation == dense[4].second.dilation == (2, 2)
    dense = aligned(model, x, 16, convolutions=True, **example)
    assert dense[0].stride == (1, 1)
    assert dense[4].second.dilation == (16, 16)
    assert model.state_dict().keys() == dense.state_dict().keys()


def test_only_the_last_strides_as_in_a_segmentation_network() -> None:
    model, x = residual_network(), image(70, 61)
    dense = aligned(
        model, x, 2, convolutions=True, filter_fn=lambda module, name: name.startswith("4.")
    )
    assert dense[1].stride == 2
    assert dense[4].first.dilation == (1, 1)
    assert dense[4].second.dilation == (2, 2)
    # The strides of a convolution and of a pool that stay behind one that goes.
    late = whole_numbers(
        nn.Sequential(nn.MaxPool2d(2), conv(3, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True))
    )
    for size in SIZES:
        aligned(late, image(*size), 2, filter_fn=lambda module, name: name == "0")


def test_gates_branches_and_pyramids() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.MaxPool2d(2), Excited(), PyramidPool2d(2, (1, 2)), ASPP(4, 2, (1, 2)), nn.ZeroPad2d(1)
    ).eval()
    for options in ({}, {"example": torch.rand(1, 2, 16, 16)}):
        dense = keep_resolution(model, **options)
        assert dense(torch.rand(2, 2, 16, 16)).shape == (2, 2, 19, 19)  # 15 and twice 2
        assert dense[3].branches[1][0].dilation == (4, 4)
        assert dense[3].branches[1][0].padding == (4, 4)
    padded = nn.Sequential(nn.MaxPool2d(2), nn.ConstantPad2d((1, 2, 0, 3), 7.0), conv(3))
    aligned(whole_numbers(padded), image(13, 14), 2)


class Depends(nn.Module):
    """A forward that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.a = nn.MaxPool2d(2), conv(3)

    def forward(self, x, scale=None):
        x = self.pool(x)
        if x.sum() > -1e9 and scale is not None:
            x = x * scale
        return torch.cat([self.a(x), self.a(x)], 1)


def test_an_example_where_tracing_fails() -> None:
    model, x = whole_numbers(Depends()), image(12, 12)
    with pytest.raises(PoolValueError, match=r"modules of Depends run cannot be traced.*example"):
        keep_resolution(model)
    model.train()
    dense = aligned(model, x, 2, example=(x, torch.ones(1, 1)))
    assert model.training
    assert dense.training
    assert not dense.a._forward_hooks
    assert not dense.pool._forward_hooks


def test_in_place_and_modes() -> None:
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), conv(3)).train()
    weight = model[1].weight
    assert keep_resolution(model, inplace=True) is model
    assert model[1].weight is weight
    assert repr(model[0]) == "Pool(Sliding(2, stride=1, padding=((0, 1), (0, 1))), Max())"
    assert model[0].training
    untouched = nn.Sequential(conv(3), nn.MaxPool2d(3, 1, 1), nn.Flatten(), nn.Linear(8, 2))
    assert repr(keep_resolution(untouched)) == repr(untouched)
    refused = nn.Sequential(nn.MaxPool2d(2), conv(3), nn.PixelShuffle(1))
    before = repr(refused)
    with pytest.raises(PoolValueError):
        keep_resolution(refused, inplace=True)
    assert repr(refused) == before


def test_convolutions_as_pools_and_what_follows_bins() -> None:
    model = nn.Sequential(ConvPool2d(2, 2, init="random"), conv(3), nn.Conv2d(2, 2, 3, 2))
    dense = aligned(whole_numbers(model), image(15, 16), 2)
    assert dense[0].stride == (1, 1)
    assert dense[2].stride == (2, 2)
    head = nn.Sequential(
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), conv(3), nn.MaxPool2d(2), nn.Flatten()
    )
    assert keep_resolution(head)[2].dilation == (1, 1)
    for pooled in (SPP((2, 1)), poolkit.nn.Pool("Pyramid((2, 1))"), nn.AdaptiveMaxPool2d(1)):
        length = pooled(torch.rand(1, 2, 5, 5)).numel()
        head = nn.Sequential(nn.MaxPool2d(2), pooled, nn.Flatten(), nn.Linear(length, 3))
        assert keep_resolution(head)(torch.rand(1, 2, 16, 16)).shape == (1, 3)
    tokens = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(2), nn.LayerNorm(49))
    assert keep_resolution(tokens)[0].stride == 1


class Forward(nn.Module):
    """Some modules and what a test does with them."""

    def __init__(self, call: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.call = call

    def forward(self, x):
        return self.call(x, *self.parts)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), conv(3)

    def forward(self, x):
        return self.pool(self.conv(self.pool(x)))


class SoftPool2d(nn.MaxPool2d):
    """Stands for a pooling of poolkit that is not a window times a reduction."""


SoftPool2d.__module__ = "poolkit.vision.elsewhere"
POOL = nn.MaxPool2d(2)
REFUSED: list[tuple[nn.Module, str]] = [
    (nn.Sequential(POOL, nn.Flatten(), nn.ReLU(), nn.Linear(50, 2)),
     r"3 \(Linear\) depends on the number of positions, .* Put an adaptive pooling before it"),
    (Forward(lambda x, pool, last: last(pool(x).flatten(1)), POOL, nn.Linear(50, 2)),
     r"parts.1 \(Linear\) depends on the number"),
    (Forward(lambda x, pool, last: last(pool(x).view(x.size(0), -1)), POOL, nn.Linear(50, 2)),
     r"parts.1 \(Linear\) depends on the number"),
    (Forward(lambda x, pool: torch.flatten(pool(x), 1) @ torch.ones(50, 2), POOL),
     "the call of .*matmul.* depends on the number"),
    (nn.Sequential(POOL, nn.LayerNorm((2, 5, 5))), r"1 \(LayerNorm\) depends on the number"),
    (Forward(lambda x, pool: pool(x) + x[:, :, ::2, ::2], POOL),
     r"maps of different resolution meet at the call of .*add.*: strides of 2 .* of 1 before"),
    (Twice(), r"pool \(MaxPool2d\) runs several times, behind strides of 1 and of 2"),
    (Forward(lambda x: F.max_pool2d(x, 2)), "max_pool2d is called as a function, whose stride"),
    (Forward(lambda x, pool: F.max_pool2d(pool(x), 3, 1, 1), POOL), "max_pool2d is called as a"),
    (Forward(lambda x, pool: F.pad(pool(x), (1, 1)), POOL),
     "pad is called as a function on a map before which strides of 2 were removed"),
    (Forward(lambda x, pool: F.interpolate(pool(x), scale_factor=2.0), POOL), "called as a func"),
    (Forward(lambda x, pool: pool(x)[:, :, 1:], POOL), "positions .* are taken of a map"),
    (nn.Sequential(POOL, nn.Upsample(scale_factor=2)), r"1 \(Upsample\) has no dilated form"),
    (nn.Sequential(POOL, nn.ConvTranspose2d(2, 2, 2, 2)), r"1 \(ConvTranspose2d\) has no dilated"),
    (nn.Sequential(POOL, nn.FractionalMaxPool2d(2, 3)), r"\(FractionalMaxPool2d\) has no dilated"),
    (nn.Sequential(POOL, nn.ReflectionPad2d(1)), r"1 \(ReflectionPad2d\) has no dilated form"),
    (nn.Sequential(POOL, poolkit.nn.SPPF(3)), r"1 \(SPPF\) has no dilated form"),
    (nn.Sequential(POOL, conv(3, padding=1, padding_mode="reflect")),
     r"1 \(Conv2d\) pads by padding_mode='reflect'"),
    (nn.Sequential(POOL, conv(2, padding="same")), "'same' and an even kernel pads its sides"),
    (nn.Sequential(POOL, nn.Conv3d(2, 2, 1)), "has 3 spatial axes, and strides were removed from"),
    (nn.Sequential(POOL, nn.LPPool2d(3, 2)), r"1 \(LPPool2d\) is torch's, which takes norms by"),
    (nn.MaxPool2d(2, return_indices=True), "MaxPool2d returns positions, .* leave the unpooling"),
    (poolkit.nn.MaxPool2d(3, 2, "same"), "the padding='same' of MaxPool2d depends on the size"),
    (nn.AvgPool2d(3, 2, 1, True), "AvgPool2d with ceil_mode counts its padding and not what"),
    (SoftPool2d(2), "the stride of SoftPool2d cannot be removed. Use poolkit.nn.Pool"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["traced", "run"])
@pytest.mark.parametrize(("model", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_dense_is_refused(model: nn.Module, message: str, how: str) -> None:
    shape = (1, 2, 10, 10)
    try:
        model(torch.rand(shape))
    except Exception:
        if how == "run":
            pytest.skip("it does not run as it is")
    options = {} if how == "traced" else {"example": torch.rand(shape)}
    with pytest.raises(PoolValueError, match=message) as caught:
        keep_resolution(model, **options)
    assert caught.value.instead


def test_no_model_is_refused() -> None:
    with pytest.raises(PoolTypeError, match=r"a model is a torch\.nn\.Module, got function"):
        keep_resolution(F.relu)
    assert issubclass(PoolTypeError, PoolError)


def test_gradients_of_the_aligned_values_are_the_same() -> None:
    model = nn.Sequential(conv(3), nn.MaxPool2d(2), conv(3, padding=1), nn.AvgPool2d(2)).double()
    dense = keep_resolution(model)
    x = torch.rand(1, 2, 15, 14, dtype=torch.float64)
    grads = []
    for each, step in ((model, 1), (dense, 4)):
        leaf = x.clone().requires_grad_()
        each(leaf)[..., ::step, ::step].square().sum().backward()
        grads.append((leaf.grad, [p.grad for p in each.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])
    half = copy.deepcopy(dense).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).double(), dense(x), rtol=0.1, atol=0.1)
