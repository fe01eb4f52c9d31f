"""Values by their order: weighted ranks, the most frequent value; and weights by place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ..errors import PoolError, PoolTypeError, PoolValueError, describe
from ..functional import Size, made_once, new_sliding, sliding
from ..sequences.attentive import in_full_precision
from ..torch.autograd import apply
from .draws import check_generator, uniform
from .learned import check_channels, check_channels_of
from .maps import batched, result_dtype, working_dtype
from .placed import Placed
from .registry import listed
from .taps import Taps, in_stripes

__all__ = [
    "LEAPPool2d",
    "ModePool2d",
    "OrdinalPool2d",
    "RankPool2d",
    "mode_pool2d",
    "rank_pool2d",
]


# --- sorting --------------------------------------------------------------------------------------


def comparators(n: int) -> tuple[tuple[int, int], ...]:
    """The places to compare and exchange, in this order, that sort `n` values."""
    return made_once(_merge_exchange, n)


def _merge_exchange(n: int) -> tuple[tuple[int, int], ...]:
    """Batcher's network (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M)."""
    pairs = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top
    while p:
        q, r, d = top, 0, p
        while d:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)


def sorted_taps(views: Sequence[Tensor]) -> list[Tensor]:
    """The taps in ascending order, output by output. A NaN goes everywhere. Of equal values each
    has the gradient of one of their places.

    26 exchanges for 3x3, each of 0.4 ns for an output; torch.sort takes 110 ns for one.
    """
    watched = torch.is_grad_enabled() and views[0].dtype.is_floating_point
    if not watched or forward_ad._current_level >= 0:
        return _exchanged(views)[0]
    return list(apply(_Sorted, *views))


def _exchanged(views: Sequence[Tensor], watched: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """The taps in ascending order, and (if `watched`) for each exchange, whether it was one."""
    taps, exchanges = list(views), []
    for i, j in comparators(len(taps)):
        a, b = taps[i], taps[j]
        if watched:
            exchanges.append(a > b)
        taps[i], taps[j] = torch.minimum(a, b), torch.maximum(a, b)
    return taps, exchanges


class _Sorted(torch.autograd.Function):
    """The network, whose gradient is the network backwards: two selections for each exchange,
    where those of a minimum and a maximum take twelve operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*views: Tensor) -> tuple[Tensor, ...]:
        taps, _ = _exchanged(views)
        # Of a single tap: an input may not be returned as it is.
        return tuple(taps) if len(taps) > 1 else (taps[0].clone(),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            _, exchanges = _exchanged(ctx.saved_tensors, watched=True)
        given = list(grads)
        for i, j in reversed(comparators(len(given))):
            exchanged = exchanges.pop()
            low, high = given[i], given[j]
            given[i], given[j] = (
                torch.where(exchanged, high, low),
                torch.where(exchanged, low, high),
            )
        return tuple(given)


# --- ranks ----------------------------------------------------------------------------------------


def by_rank(views: list[list[Tensor]], laid: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the sorted values.

    Args:
        laid: how many values each window has, where some have fewer.
        tables: weights (channels or 1, ranks), the largest value first; with `laid`, those of
            windows with n values (channels or 1, n, ranks).
    """
    (table,) = tables
    ranked = sorted_taps(views[0])[::-1]
    total: Tensor | None = None
    for rank, value in enumerate(ranked):
        if laid:
            weight = table[:, laid[0][0, 0], rank][None]
            value = torch.where(laid[0] > rank, value, 0.0)
        else:
            weight = table[None, :, rank, None, None]
        total = weight * value if total is None else torch.addcmul(total, weight, value)
    assert total is not None
    return total


def of_rank(views: list[list[Tensor]], laid: Sequence[Tensor], _: Sequence[Tensor]) -> Tensor:
    """The value of the rank that is asked for, output by output."""
    ranked = sorted_taps(views[0])[::-1]
    picked = ranked[0]
    for rank, value in enumerate(ranked[1:], 1):
        picked = torch.where(laid[0] == rank, value, picked)
    return picked


def _live(places: int) -> int:
    """Of a sorting network: its values, and a byte for each exchange while it is undone."""
    return len(comparators(places)) // 4 + 8 * places


def _ranked(x: Tensor, taps: Taps, table: Callable[[int], Tensor], draw: Any = None) -> Tensor:
    """Windows whose sorted values are weighted by, or drawn with, ``table(n)`` (sets, ranks), for
    a window with n values."""
    padded, laid = taps.padded(x, -math.inf if x.dtype.is_floating_point else _least(x)), []
    if taps.is_padded:
        laid = [taps.seen(x.shape[-2:], x.device)]
        # No window has 0 values.
        weights = torch.stack([table(max(n, 1)) for n in range(taps.places + 1)], 1)
    else:
        weights = table(taps.places)
    options: dict[str, Any] = {"working": working_dtype(x), "result": result_dtype(x)}
    options["live"] = _live(taps.places)
    if draw is None:
        return in_stripes(by_rank, taps, [padded], laid, [weights], **options)
    # A draw below the first threshold is rank 0, below the second rank 1, ...
    thresholds = weights.cumsum(-1)
    rank = torch.zeros_like(draw, dtype=torch.uint8)
    for r in range(taps.places - 1):
        if laid:
            rank += (draw >= thresholds[0, laid[0], r]) & (laid[0] > r + 1)
        else:
            rank += draw >= thresholds[0, r]
    return in_stripes(of_rank, taps, [padded], [rank], **options)


def _least(x: Tensor) -> int | bool:
    return False if x.dtype is torch.bool else int(torch.iinfo(x.dtype).min)


def _largest(x: Tensor) -> float | int | bool:
    if x.dtype.is_floating_point:
        return math.inf
    return True if x.dtype is torch.bool else int(torch.iinfo(x.dtype).max)


RankMode = Literal["average", "weighted", "stochastic"]


def rank_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    *,
    mode: RankMode = "weighted",
    top: int | None = None,
    alpha: float = 0.5,
    normalize: bool = False,
    training: bool = True,
    generator: torch.Generator | None = None,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """A window's values sorted, the largest first, and weighted by their rank r = 1, 2, ...

    "average": the mean of the `top` largest. "weighted": ``Σ alpha (1 - alpha)^(r - 1) x_r``.
    "stochastic": one of the values, drawn with those weights; outside training their mean with
    those weights, which is what is expected of the draw.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`. A window that
            hangs over the border has fewer ranks.
        mode: see above.
        top: for "average", how many; None is half of the window, rounded up. 1 is the max, all of
            them the mean.
        alpha: in (0, 1]; 1 is the max.
        normalize: for "weighted", whether the weights are scaled to a sum of 1. As published they
            sum to ``1 - (1 - alpha)^n`` for n values.
        training: for "stochastic", whether to draw.
        generator: for "stochastic", where the draws come from.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype, or float32 for integers.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled, an
            unknown mode, a `top` beyond the window, an `alpha` out of range.

    Source: Shi, Ye and Wu, "Rank-based pooling for deep convolutional neural networks" (2016).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])
    >>> poolkit.rank_pool2d(x, 2, mode="average", top=2)
    tensor([[[3.5000]]])
    >>> poolkit.rank_pool2d(x, 2)  # 4 / 2 + 3 / 4 + 2 / 8 + 1 / 16
    tensor([[[3.0625]]])
    """
    try:
        if mode not in ("average", "weighted", "stochastic"):
            raise PoolValueError(
                f"there is no mode {mode!r}", "Write 'average', 'weighted' or 'stochastic'"
            )
        _check_alpha(alpha)
        maps, added = batched(x)
        window = sliding(x, mode, 2, kernel_size, stride, padding, dilation, ceil_mode)
        taps = Taps.of(window, maps.shape[-2:])
        _check_top(top, taps.places)
        most = top if top is not None else (taps.places + 1) // 2
        working = working_dtype(maps)
        rank = torch.arange(taps.places, dtype=working, device=maps.device)

        def table(n: int) -> Tensor:
            if mode == "average":
                return ((rank < min(most, n)).to(working) / min(most, n))[None]
            # 0 ** 0 is 1, so that alpha = 1 leaves the first.
            weights = torch.where(rank < n, alpha * (1 - alpha) ** rank, 0.0)
            return (weights / weights.sum() if normalize or mode == "stochastic" else weights)[None]

        draw = None
        if mode == "stochastic" and training:
            shape = (*maps.shape[:2], *taps.outputs)
            draw = uniform(shape, generator, maps.device, working)
        out = _ranked(maps, taps, table, draw)
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by rank_pool2d") from None


def _check_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise PoolTypeError(f"alpha must be a number, got {alpha!r}", "Give one in (0, 1]")
    if not 0 < alpha <= 1:
        raise PoolValueError(f"alpha must be above 0 and at most 1, got {alpha}", "Try 0.5")


def _check_top(top: int | None, places: int) -> None:
    if top is None:
        return
    if isinstance(top, bool) or not isinstance(top, int):
        raise PoolTypeError(f"top must be an integer or None, got {top!r}", "Give a count")
    if not 1 <= top <= places:
        raise PoolValueError(
            f"the mean of the top {top} was asked for, of windows of {places} values",
            f"Give 1 (the max) to {places} (the mean)",
        )


@listed(
    "rank",
    kind="window",
    formula="Σ a (1 - a)^(r - 1) x₍ᵣ₎, x₍₁₎ the largest; or the mean of the top t; or a draw",
    gradient="to each value by the weight of its rank",
    cost="n (log n)² / 2 exchanges for n values, and the same again to train",
    paper="Shi, Ye and Wu, Rank-based pooling for deep convolutional neural networks, 2016",
)
class RankPool2d(Placed):
    """`rank_pool2d` as a module; "stochastic" draws in training, and takes the mean otherwise.

    Args: as for `rank_pool2d`.

    >>> import torch, poolkit
    >>> poolkit.nn.RankPool2d(3, stride=2, mode="average", top=4)(torch.rand(2, 8, 9, 9)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        mode: RankMode = "weighted",
        top: int | None = None,
        alpha: float = 0.5,
        normalize: bool = False,
        generator: torch.Generator | None = None,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        new_sliding(2, *self.place)  # refuses what cannot be one
        _check_alpha(alpha)
        check_generator(generator)
        self.generator = generator
        self.mode = mode
        self.top = top
        self.alpha = alpha
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        return rank_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            mode=self.mode,
            top=self.top,
            alpha=self.alpha,
            normalize=self.normalize,
            training=self.training,
            generator=self.generator,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        settings = f"{super().extra_repr()}, mode={self.mode!r}"
        if self.mode == "average":
            return f"{settings}, top={self.top}"
        return f"{settings}, alpha={self.alpha}, normalize={self.normalize}"


@listed(
    "ordinal",
    kind="window",
    formula="Σ wᵣ x₍ᵣ₎, x₍₁₎ the largest, w = softmax(v)",
    parameters="v: one number for each rank, and for each channel if wanted",
    gradient="to each value by the weight of its rank",
    cost="n (log n)² / 2 exchanges for n values, and the same again to train",
    paper="Deliège, Istasse, Kumar, De Vleeschouwer and Van Droogenbroeck, Ordinal pooling, 2019",
)
class OrdinalPool2d(Placed):
    """A window's values sorted, the largest first, and weighted by what is learned for each rank:
    ``Σ w_r x_(r)`` with ``w = softmax(weight)``.

    It begins as the mean, and has the max, the min, the median and all between them within reach.
    A window that hangs over the border has fewer values, and the softmax is over as many ranks.

    Args:
        channels: how many channels have weights of their own; None for one set for all, which
            then fits any number of channels.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Shape: (N, C, H, W) to (N, C, h, w), or both without N.

    Attributes:
        weight: (channels or 1, ranks), before the softmax; all 0 at first.

    Raises:
        PoolValueError, PoolTypeError: for what cannot be pooled, or another number of channels.

    Source: Deliège, Istasse, Kumar, De Vleeschouwer and Van Droogenbroeck, "Ordinal pooling"
    (2019).

    >>> import torch, poolkit
    >>> pool = poolkit.nn.OrdinalPool2d(None, 2)
    >>> pool(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])).item()  # the mean, at first
    2.5
    >>> _ = pool.weight.data[:, 0].fill_(100)  # all weight on the first rank
    >>> pool(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]])).item()
    4.0
    """

    def __init__(
        self,
        channels: int | None,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        sets = check_channels(channels)
        window = new_sliding(2, *self.place)
        self.channels = channels
        self.weight = nn.Parameter(torch.zeros(sets, math.prod(window.sizes(2)[0])))

    def weights(self) -> Tensor:
        """What each rank of a whole window weighs (channels or 1, ranks), the largest value's
        first; they sum to 1."""
        return self.weight.softmax(-1)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        try:
            maps, added = batched(x)
            check_channels_of(maps, self.channels)
            window = sliding(x, "ranks", 2, *self.place)
            taps = Taps.of(window, maps.shape[-2:])
            weight = self.weight.to(working_dtype(maps))

            def table(n: int) -> Tensor:
                return F.pad(weight[:, :n].softmax(-1), (0, taps.places - n))

            out = _ranked(maps, taps, table)
            return out[0] if added else out
        except PoolError as error:
            raise error.during(f"{describe(x)} by OrdinalPool2d") from None

    def extra_repr(self) -> str:
        return f"channels={self.channels}, {super().extra_repr()}"


# --- the most frequent value ----------------------------------------------------------------------


def _mode(views: list[list[Tensor]], laid: Sequence[Tensor], _: Sequence[Tensor]) -> Tensor:
    taps = views[0]
    with torch.no_grad():
        # In ascending order equal values are neighbours, and the first of the longest runs is the
        # smallest. What lies in the padding comes last.
        values = sorted_taps([tap.detach() for tap in taps])
        counter = torch.uint8 if len(taps) < 256 else torch.int32
        best, run = values[0], torch.ones_like(values[0], dtype=counter)
        longest = run
        for rank, (before, value) in enumerate(pairwise(values), 1):
            run = torch.where(value == before, run + 1, 1).to(counter)
            longer = run > longest
            if laid:
                longer &= laid[0] > rank
            best, longest = torch.where(longer, value, best), torch.where(longer, run, longest)
    if not best.dtype.is_floating_point or not (
        torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    ):
        return best
    # The largest of what equals it: the same value, whose gradient equal values share.
    equal = [torch.where(tap == best, tap, -math.inf) for tap in taps]
    return torch.where(best == best, torch.stack(equal).amax(0), best)


def mode_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    *,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The most frequent value of each window; of equally frequent ones the smallest.

    It is what scales maps of labels down. A NaN in a window is its result. For floating values the
    gradient goes to the values that equal the result, in equal parts.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled.

    >>> import torch, poolkit
    >>> labels = torch.tensor([[[7, 7, 1, 2], [3, 7, 2, 1]]])
    >>> poolkit.mode_pool2d(labels, 2)
    tensor([[[7, 1]]])
    """
    try:
        maps, added = batched(x)
        window = sliding(x, "Mode()", 2, kernel_size, stride, padding, dilation, ceil_mode)
        taps = Taps.of(window, maps.shape[-2:])
        laid = [taps.seen(maps.shape[-2:], maps.device)] if taps.is_padded else []
        out = in_stripes(
            _mode, taps, [taps.padded(maps, _largest(maps))], laid,
            working=maps.dtype, result=maps.dtype, live=3 * taps.places,
        )  # fmt: skip
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by mode_pool2d") from None


@listed(
    "mode",
    kind="window",
    formula="the most frequent x, the smallest of several",
    gradient="to the values that equal the result, in equal parts",
    cost="n (log n)² / 2 exchanges for n values",
    paper="the statistical mode; for maps of labels",
)
class ModePool2d(Placed):
    """`mode_pool2d` as a module.

    >>> import torch, poolkit
    >>> poolkit.nn.ModePool2d(2)(torch.tensor([[[True, False], [True, True]]]))
    tensor([[[True]]])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        new_sliding(2, *self.place)  # refuses what cannot be one

    def forward(self, x: Tensor) -> Tensor:
        return mode_pool2d(
            x, self.kernel_size, self.stride, self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip


# --- weights by place -----------------------------------------------------------------------------


@listed(
    "leap",
    kind="window",
    formula="Σ wᵢ xᵢ, i the place in the window",
    parameters="w: one number for each place, and for each channel if wanted",
    gradient="to each value by the weight of its place",
    cost="a depthwise convolution",
    paper="Sun, Song, Jiang, Pan and Pang, Learning pooling for convolutional neural network, 2017",
)
class LEAPPool2d(Placed):
    """What is learned for each place in the window weighs the value there: ``Σ w_i x_i``.

    It is a depthwise convolution that begins as the mean. Padding counts as zeros, as in a
    convolution (an average pooling with ``count_include_pad``), so the weights mean the same
    everywhere.

    Args:
        channels: how many channels have weights of their own; None for one set for all.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Shape: (N, C, H, W) to (N, C, h, w), or both without N.

    Attributes:
        weight: (channels or 1, 1, height, width), all ``1 / (height * width)`` at first.

    Raises:
        PoolValueError, PoolTypeError: for what cannot be pooled, or another number of channels.

    Source: Sun, Song, Jiang, Pan and Pang, "Learning pooling for convolutional neural network"
    (2017).

    >>> import torch, poolkit
    >>> pool = poolkit.nn.LEAPPool2d(8, 2)
    >>> x = torch.rand(1, 8, 4, 4)
    >>> torch.allclose(pool(x), poolkit.avg_pool2d(x, 2))
    True
    """

    def __init__(
        self,
        channels: int | None,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        sets = check_channels(channels)
        window = new_sliding(2, *self.place)
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(sets, 1, *window.sizes(2)[0]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 1 / self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        try:
            maps, added = batched(x)
            check_channels_of(maps, self.channels)
            window = sliding(x, "weights", 2, *self.place)
            taps = Taps.of(window, maps.shape[-2:])
            working, channels = working_dtype(maps), maps.shape[1]
            weight = self.weight.to(working).expand(channels, -1, -1, -1)
            # Convolutions of half types may be added up in them, and autocast makes them half.
            with in_full_precision(maps):
                padded = taps.padded(maps.to(working), 0.0)
                out = F.conv2d(padded, weight, None, taps.stride, 0, taps.dilation, channels)
            out = out.to(result_dtype(maps))
            return out[0] if added else out
        except PoolError as error:
            raise error.during(f"{describe(x)} by LEAPPool2d") from None

    def extra_repr(self) -> str:
        return f"channels={self.channels}, {super().extra_repr()}"
