"""A strided convolution in place of a pool, and a stride moved into the convolution before it."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import PoolError, PoolTypeError, PoolValueError, checked_size, describe
from ..windows import Sliding
from .maps import checked_maps
from .registry import listed

__all__ = ["ConvPool2d", "DepthwiseConvPool2d", "move_stride"]

Size = int | tuple[int, int]


@listed(
    "conv",
    kind="window",
    formula="W x + b, W of all channels and positions of the window",
    parameters="C² k² + C",
    gradient="W: to all values of all channels",
    cost="C k² multiplications for each value",
    paper="Springenberg et al. 2015, Striving for simplicity",
)
class ConvPool2d(nn.Conv2d):
    """A convolution with a pool's kernel and stride in the pool's place.

    With C channels and k * k positions it learns ``C² k² + C`` numbers with ``mode="full"`` and
    ``C k² + C`` with ``mode="depthwise"``; without a bias C fewer. A 2x2 pool of 256 channels
    becomes 262400 numbers, or 1280. To spend none, move the stride into the convolution before:
    `move_stride`.

    Source: Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity: The All
    Convolutional Net", 2015.

    Args:
        channels: of the input and of the result.
        kernel_size, stride, padding: as for a pool: the stride is the kernel size if not given.
        mode: "full": each output sees all channels; "depthwise": its own.
        init: "average": starts as the average pool of the same window, padding included (other
            channels at 0, bias 0); "random": as a torch convolution starts.
        bias: whether a bias is added.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to the same with the window's output shape.

    Raises:
        PoolError: for sizes that are none, an unknown mode or init, and other channels.

    >>> import torch, poolkit
    >>> x = torch.rand(1, 8, 6, 6)
    >>> pool = ConvPool2d(8, 2, mode="depthwise")
    >>> torch.allclose(pool(x), poolkit.avg_pool2d(x, 2), atol=1e-6)
    True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        mode: Literal["full", "depthwise"] = "full",
        init: Literal["average", "random"] = "average",
        bias: bool = True,
    ) -> None:
        if mode not in ("full", "depthwise"):
            remedy = "Write mode='full' or mode='depthwise'"
            if str(mode) == "moved":
                remedy += (
                    ", or give the stride to the convolution before: "
                    "poolkit.nn.move_stride(conv, pool)"
                )
            raise PoolValueError(f"there is no mode {mode!r}", remedy)
        if init not in ("average", "random"):
            raise PoolValueError(
                f"init must be 'average' or 'random', got {init!r}", "Write one of them"
            )
        checked_size("channels", channels)
        window = Sliding(kernel_size, stride, padding)  # checks what it is given
        kernel, strides, _ = window.sizes(2)
        pads = window.pads(2)
        if pads is None or any(before != after for before, after in pads):
            raise PoolValueError(
                f"a convolution pads both sides alike, got padding={padding!r}",
                "Give one integer for each axis, and pad the input before where they differ",
            )
        self.channels = channels
        self.mode = mode
        self.init = init
        super().__init__(
            channels,
            channels,
            (kernel[0], kernel[1]),
            (strides[0], strides[1]),
            (pads[0][0], pads[1][0]),
            groups=channels if mode == "depthwise" else 1,
            bias=bias,
        )

    def reset_parameters(self) -> None:
        if self.init == "random":
            super().reset_parameters()
            return
        with torch.no_grad():
            self.weight.zero_()
            own = torch.arange(self.channels)
            inner = own if self.groups == 1 else 0
            self.weight[own, inner] = 1 / (self.kernel_size[0] * self.kernel_size[1])
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        try:
            checked_maps(input, self.channels)
            window = Sliding(self.kernel_size, self.stride, self.padding, self.dilation)
            window.output_shape(input.shape[-2:])
        except PoolError as error:
            raise error.during(f"{describe(input)} by {type(self).__name__}") from None
        return super().forward(input)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, mode={self.mode!r}"
        )


@listed(
    "conv_depthwise",
    kind="window",
    formula="Σ w x + b, w of each channel and position of the window",
    parameters="C k² + C",
    gradient="w: to all values of the window",
    cost="k² multiplications for each output",
    paper="Springenberg et al. 2015, Striving for simplicity; Chollet 2017, Xception",
)
class DepthwiseConvPool2d(ConvPool2d):
    """`ConvPool2d` with ``mode="depthwise"``, for configurations that name it.

    >>> sum(p.numel() for p in DepthwiseConvPool2d(256, 2).parameters())
    1280
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        init: Literal["average", "random"] = "average",
        bias: bool = True,
    ) -> None:
        super().__init__(channels, kernel_size, stride, padding, "depthwise", init, bias)


def window_of(pool: Any) -> Sliding | None:
    """The window of a pooling module, torch's or poolkit's; None for what has no sliding one."""
    if hasattr(pool, "window"):
        return pool.window if isinstance(pool.window, Sliding) else None
    if not hasattr(pool, "kernel_size") or not hasattr(pool, "stride"):
        return None
    return Sliding(
        pool.kernel_size,
        pool.stride,
        getattr(pool, "padding", 0),
        getattr(pool, "dilation", 1),
        getattr(pool, "ceil_mode", False),
    )


def move_stride(
    conv: nn.Conv2d, pool: nn.Module, input_size: tuple[int, int] | None = None
) -> nn.Conv2d:
    """A copy of `conv` that has the stride of the `pool` behind it, which is then dropped.

    The convolution is computed at one position of each of the pool's windows instead of all of
    them: the middle one, or the one before the middle of an even kernel. So what is behind it
    sees a map of the same size and the same jump, and no number is learned anew. What lies
    between the two, such as a norm and an activation, stays behind the convolution.

    The size stays because the convolution pads less: on each side by ``(reach - 1) / 2 -
    padding`` of the pool, and with ``ceil_mode`` by ``(stride - 1) / 2`` less than that. Where
    this is no whole number (a 2x2 pool, or a 3x3 one with ``ceil_mode``), it is rounded down, and
    the map comes out one position longer than the pool's for some sizes (odd ones for a 2x2
    pool): give `input_size` to be told.

    Source: Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity: The All
    Convolutional Net", 2015 (their Strided-CNN).

    Args:
        conv: the convolution; it is not changed, and its weights are copied.
        pool: the pooling behind it, torch's or poolkit's.
        input_size: (H, W) of the convolution's input, for which to check the size of the output.

    Raises:
        PoolTypeError: if `conv` is no 2-D convolution, or `pool` has no sliding window.
        PoolValueError: if the pool has no stride, if the convolution pads too little to reach the
            middle of the windows, or if the size would be another for `input_size`.

    >>> import torch, poolkit
    >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    >>> move_stride(conv, poolkit.nn.MaxPool2d(2))(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 8, 16, 16])
    """
    if not isinstance(conv, nn.Conv2d):
        raise PoolTypeError(
            f"a stride can be moved into a torch.nn.Conv2d, got {type(conv).__name__}",
            "Give the last convolution before the pool; norm and activation stay behind it",
        )
    try:
        window = window_of(pool)
    except PoolError as error:
        raise error.during(f"with {pool}") from None
    if window is None or window.ndim not in (None, 2):
        raise PoolTypeError(
            f"{type(pool).__name__} has no 2-D window that slides by a stride",
            "Give a pool with kernel_size and stride",
        )
    kernel, stride, dilation = window.sizes(2)
    pads = window.pads(2)
    if max(stride) == 1:
        raise PoolValueError(f"{pool} has stride 1: there is nothing to move", "Leave it in place")
    if pads is None:
        raise PoolValueError(
            f"the padding of {pool} depends on the size of its input", "Give it as integers"
        )
    own = _own_padding(conv)
    moved = copy.deepcopy(conv)
    strides, paddings = [], []
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        hangs = stride[axis] - 1 if window.ceil_mode else 0
        # In positions of the convolution's output, each of its stride of its input.
        cut = (reach - 1 - sum(pads[axis]) - hangs) // 2
        padding = own[axis] - cut * conv.stride[axis]
        if padding < 0:
            raise PoolValueError(
                f"the middle of the pool's windows lies {cut * conv.stride[axis]} positions "
                f"inside, and the convolution's padding of {own[axis]} can only be lowered to 0: "
                "the output would be longer",
                f"Give the pool a padding of {(reach - 1) // 2}, or the convolution one of "
                f"{cut * conv.stride[axis]}",
            )
        strides.append(conv.stride[axis] * stride[axis])
        paddings.append(padding)
    moved.stride = (strides[0], strides[1])
    moved.padding = (paddings[0], paddings[1])
    # What a convolution with another padding_mode pads by: (left, right, top, bottom).
    moved._reversed_padding_repeated_twice = [paddings[1]] * 2 + [paddings[0]] * 2
    if input_size is not None:
        before = _output(conv, own, input_size)
        wanted, got = window.output_shape(before), _output(moved, moved.padding, input_size)
        if wanted != got:
            raise PoolValueError(
                f"for an input of {tuple(input_size)} the convolution and the pool give "
                f"{wanted}, the convolution with the stride alone {got}",
                "Use input sizes that the strides divide, a pool with ceil_mode=True, or one "
                "with an odd kernel",
            )
    return moved


def _own_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(conv.padding, str):
        return conv.padding[0], conv.padding[1]
    if conv.padding == "valid":
        return 0, 0
    pads = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if any(total % 2 for total in pads):
        raise PoolValueError(
            f"a convolution with padding='same' and kernel_size={conv.kernel_size} pads its "
            "sides by different amounts, which none with a stride does",
            "Pad the input before it, with torch.nn.ZeroPad2d",
        )
    return pads[0] // 2, pads[1] // 2


def _output(conv: nn.Conv2d, padding: Any, size: tuple[int, int]) -> tuple[int, ...]:
    return Sliding(
        tuple(conv.kernel_size),
        tuple(conv.stride),
        tuple((pad, pad) for pad in padding),
        tuple(conv.dilation),
    ).output_shape(size)
