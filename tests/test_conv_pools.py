# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Convolutions in place of pools, and strides moved into the convolution before."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

import poolkit
import poolkit.nn
from poolkit import PoolError, PoolTypeError, PoolValueError
from poolkit.vision.convolution import ConvPool2d, DepthwiseConvPool2d, move_stride


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_by_hand() -> None:
    """The mean of 1, 2, 5, 6 is 3.5, and so on. With the weights 1, 0, 0, -1 and the bias 10 it
    is 1 - 6 + 10 = 5 in every window, and the other channel, of -x, adds -1 + 6 = 5 more."""
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    for mode in ("full", "depthwise"):
        module = ConvPool2d(1, 2, mode=mode)
        assert module(x).tolist() == [[[[3.5, 5.5], [11.5, 13.5]]]]
    two = torch.cat([x, -x], 1)
    corner = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    full, own = ConvPool2d(2, 2), DepthwiseConvPool2d(2, 2)
    for module in (full, own):
        module.weight.data[:] = corner
        module.bias.data[:] = 10
    assert full(two)[0, 0].tolist() == [[10, 10], [10, 10]]
    assert own(two)[0, 0].tolist() == [[5, 5], [5, 5]]
    assert own(two)[0, 1].tolist() == [[15, 15], [15, 15]]


@pytest.mark.parametrize("mode", ["full", "depthwise"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(2, None, 0), (3, 2, 1), ((3, 2), (1, 2), (1, 0)), (3, None, 0)],
)
def test_starts_as_the_average(mode: Any, kernel_size: Any, stride: Any, padding: Any) -> None:
    x = maps(2, 4, 9, 8)
    module = ConvPool2d(4, kernel_size, stride, padding, mode)
    expected = poolkit.avg_pool2d(x, kernel_size, stride, padding)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[0]), expected[0])
    module(x).square().sum().backward()
    assert module.weight.grad.abs().min() > 0  # all of them learn, those at 0 too


def test_number_of_parameters() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in ConvPool2d(256, 2, **options).parameters())

    assert count() == 256**2 * 4 + 256 == 262400
    assert count(mode="depthwise") == 256 * 4 + 256 == 1280
    assert count(mode="depthwise", bias=False) == 1024


def test_random_start_is_that_of_a_convolution() -> None:
    torch.manual_seed(3)
    module = ConvPool2d(4, 3, 2, init="random")
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 4, 3, 2)
    assert torch.equal(module.weight, conv.weight)
    assert torch.equal(module(maps(1, 4, 7, 7)), conv(maps(1, 4, 7, 7)))
    assert repr(module) == (
        "ConvPool2d(channels=4, kernel_size=(3, 3), stride=(2, 2), padding=(0, 0), mode='full')"
    )


@pytest.mark.parametrize("mode", ["full", "depthwise"])
def test_gradients_dtypes_and_copies(mode: Any) -> None:
    module = ConvPool2d(3, 2, mode=mode, init="random")
    exact = copy.deepcopy(module).double()
    x = maps(2, 3, 5, 4)
    leaf = x.double().requires_grad_()
    assert torch.autograd.gradcheck(exact, leaf)
    expected = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)
    assert module(x[:0]).shape == (0, 3, 2, 2)
    other = ConvPool2d(3, 2, mode=mode)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)
    half = copy.deepcopy(module).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=5e-2, atol=5e-2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


# --- strides that move ---------------------------------------------------------------------------

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2),
    nn.AvgPool2d(5, 3, 2),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d((3, 1), (2, 1), (1, 0)),
    nn.MaxPool2d(2, 2, dilation=2),
    poolkit.nn.MinPool2d(3, 2, 1),
    poolkit.nn.Pool("Sliding(3, stride=2, padding=1)", "median"),
]
CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, 5, padding=2, stride=2, bias=False),
    nn.Conv2d(2, 2, 3, padding="same", dilation=2, groups=2),
    nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_moved_stride_gives_the_convolution_in_the_middle_of_each_window(
    pool: nn.Module, conv: nn.Conv2d
) -> None:
    moved = move_stride(conv, pool)
    assert all(a is not b for a, b in zip(moved.parameters(), conv.parameters(), strict=True))
    for size in ((24, 24), (25, 23), (26, 17), (12, 13)):
        x = maps(1, 2, *size)
        dense, pooled, got = conv(x), pool(conv(x)), moved(x)
        longer = [a - b for a, b in zip(got.shape[2:], pooled.shape[2:], strict=True)]
        even = pool in (POOLS[0],)
        assert all(extra in ((0, 1) if even else (0,)) for extra in longer)
        if conv.padding_mode != "zeros" and any(moved.padding[i] != 1 for i in (0, 1)):
            continue
        # The position of the convolution's map that each output is.
        first = [
            (own - new) // stride
            for own, new, stride in zip(pads_of(conv), moved.padding, conv.stride, strict=True)
        ]
        steps = [b // a for a, b in zip(conv.stride, moved.stride, strict=True)]
        torch.testing.assert_close(
            got[..., : pooled.shape[2], : pooled.shape[3]],
            dense[..., first[0] :: steps[0], first[1] :: steps[1]][
                ..., : pooled.shape[2], : pooled.shape[3]
            ],
        )


def pads_of(conv: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        return tuple((k - 1) * d // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return conv.padding


def test_moved_stride_by_hand() -> None:
    """The identity, and a pool of 3 by 2: positions 1, 3 and 5 are the middles of the windows."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data.zero_()
    conv.weight.data[0, 0, 1, 1] = 1
    x = torch.arange(7.0).expand(1, 1, 7, 7)
    moved = move_stride(conv, nn.MaxPool2d(3, 2))
    assert (moved.stride, moved.padding) == ((2, 2), (0, 0))
    assert moved(x)[0, 0, 0].tolist() == [1, 3, 5]
    assert (conv.stride, conv.padding) == ((1, 1), (1, 1))  # it is a copy that has changed


def test_an_output_of_another_size_is_told() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert move_stride(conv, nn.MaxPool2d(2), (32, 32)).stride == (2, 2)
    assert move_stride(conv, nn.MaxPool2d(2, ceil_mode=True), (33, 32)).stride == (2, 2)
    with pytest.raises(PoolValueError, match=r"of \(33, 32\) .* give \(16, 16\), .* \(17, 16\)"):
        move_stride(conv, nn.MaxPool2d(2), (33, 32))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: move_stride(nn.Linear(2, 2), nn.MaxPool2d(2)), PoolTypeError,
         "moved into a torch.nn.Conv2d, got Linear"),
        (lambda: move_stride(nn.Conv1d(2, 2, 3), nn.MaxPool1d(2)), PoolTypeError, "got Conv1d"),
        (lambda: move_stride(CONVOLUTIONS[0], nn.AdaptiveMaxPool2d(2)), PoolTypeError,
         "AdaptiveMaxPool2d has no 2-D window that slides"),
        (lambda: move_stride(CONVOLUTIONS[0], poolkit.nn.Pool("Global()")), PoolTypeError,
         "Pool has no 2-D window"),
        (lambda: move_stride(CONVOLUTIONS[0], nn.MaxPool2d(3, 1, 1)), PoolValueError,
         "stride 1: there is nothing to move"),
        (lambda: move_stride(nn.Conv2d(2, 2, 1), nn.MaxPool2d(3, 2)), PoolValueError,
         "lies 1 positions inside, and the convolution's padding of 0 .* padding of 1"),
        (lambda: move_stride(nn.Conv2d(2, 2, 2, padding="same"), nn.MaxPool2d(2)), PoolValueError,
         "pads its sides by different amounts"),
        (lambda: move_stride(CONVOLUTIONS[0], poolkit.nn.MaxPool2d(3, 2, "same")), PoolValueError,
         "depends on the size of its input"),
        (lambda: ConvPool2d(4, 2, mode="moved"), PoolValueError,
         r"no mode 'moved'. .* poolkit.nn.move_stride\(conv, pool\)"),
        (lambda: ConvPool2d(4, 2, init="ones"), PoolValueError, "init must be 'average'"),
        (lambda: ConvPool2d(0, 2), PoolValueError, "channels must be at least 1, got 0"),
        (lambda: ConvPool2d(4, 0), PoolValueError, "kernel_size must be at least 1, got 0"),
        (lambda: ConvPool2d(4, 3, 2, "same"), PoolValueError, "pads both sides alike"),
        (lambda: ConvPool2d(4, 2)(maps(1, 3, 4, 4)), PoolValueError,
         r"for 4 channels, the input has 3, while pooling float32 \(1, 3, 4, 4\) by ConvPool2d"),
        (lambda: ConvPool2d(4, 2)(maps(1, 4, 4, 4).long()), PoolTypeError,
         r"a floating dtype, while pooling int64 .* by ConvPool2d. Convert the input"),
        (lambda: DepthwiseConvPool2d(4, 5)(maps(1, 4, 4, 4)), PoolValueError,
         "a window of 5 positions does not fit axis 0 .* by DepthwiseConvPool2d"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, kind: type[PoolError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert caught.value.instead
