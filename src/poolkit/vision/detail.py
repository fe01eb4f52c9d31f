"""Weighted means whose weights say what matters: distance from the neighbourhood (DPP), or what a
network has learned (LIP).

Both are computed a stripe of outputs at a time, place by place within the window (see
`taps.in_stripes`), and again for a gradient, so that memory does not grow with the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PoolError, PoolTypeError, PoolValueError, describe
from ..functional import Size, new_sliding, sliding
from .learned import check_channels, check_channels_of
from .maps import batched, check_floating, result_dtype, working_dtype
from .placed import Placed
from .registry import listed
from .taps import Taps, in_stripes

__all__ = ["DetailPreservingPool2d", "ImportanceLogit", "LocalImportancePool2d", "lip_pool2d"]


# --- local importance -----------------------------------------------------------------------------


def _largest_of(views: Sequence[Tensor]) -> Tensor:
    return reduce(torch.maximum, [view.detach() for view in views])


def _by_importance(views: list[list[Tensor]], *_: Any) -> Tensor:
    values, logits = views
    top = _largest_of(logits)
    shares = [torch.exp(logit - top) for logit in logits]
    total = reduce(torch.add, shares)
    # Each share is divided on its own: a sum of large values could overflow.
    return reduce(
        torch.add, [value * (share / total) for value, share in zip(values, shares, strict=True)]
    )


def lip_pool2d(
    x: Tensor,
    logit: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Any = 0,
    *,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window, weighted by importance: ``Σ x exp(logit) / Σ exp(logit)``.

    Equal logits give the mean, ``logit = x`` gives SoftPool (`poolkit.Soft`). Finite for all
    finite x and logits: the largest logit of a window is subtracted first. A logit of -inf leaves
    its value out; where all of a window are, they count as equal. Padding is left out, too.

    Args:
        x: (N, C, H, W) or (C, H, W), of any dtype but complex.
        logit: what broadcasts to x's shape: a map for each channel, or one for all (channels 1).
            Of a floating dtype.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.

    Returns:
        (N, C, h, w) or (C, h, w), of x's dtype, or float32 for integers.

    Raises:
        PoolValueError, PoolTypeError: for shapes, sizes and dtypes that cannot be pooled, and for
            logits that do not fit x.

    Source: Gao, Wang and Wu, "LIP: local importance-based pooling" (2019).

    >>> import torch, poolkit
    >>> x = torch.tensor([[[1.0, 5.0]]])
    >>> poolkit.lip_pool2d(x, torch.tensor([[[0.0, 3.0]]]).log(), (1, 2))  # weights 0 and 3
    tensor([[[5.]]])
    >>> poolkit.lip_pool2d(x, torch.tensor([[[1.0, 3.0]]]).log(), (1, 2))  # (1 + 3 * 5) / 4
    tensor([[[4.]]])
    """
    try:
        maps, added = batched(x)
        window = sliding(x, "LIP", 2, kernel_size, stride, padding, dilation, ceil_mode)
        taps = Taps.of(window, maps.shape[-2:])
        logits = _logits_of(maps, logit)
        # Infinite logits would be subtracted from each other; the padding's are below all others.
        working = torch.promote_types(working_dtype(maps), working_dtype(logits))
        limit = torch.finfo(logits.dtype).max
        logits = logits.clamp(-limit, limit)
        out = in_stripes(
            _by_importance, taps,
            [taps.padded(maps, 0), taps.padded(logits, -math.inf)],
            working=working, result=result_dtype(maps), live=10 * taps.places,
        )  # fmt: skip
        return out[0] if added else out
    except PoolError as error:
        raise error.during(f"{describe(x)} by lip_pool2d") from None


def _logits_of(x: Tensor, logit: Any) -> Tensor:
    if not isinstance(logit, Tensor):
        raise PoolTypeError(
            f"logit must be a torch tensor, got {type(logit).__name__}",
            "Convert it with torch.as_tensor",
        )
    if not logit.dtype.is_floating_point:
        raise PoolTypeError(
            f"logit must be of a floating dtype, got {describe(logit)}", "Use logit.float()"
        )
    # Not the height and width: logits of another size were made for another map.
    fits = 3 <= logit.ndim <= 4 and logit.shape[-2:] == x.shape[-2:]
    lead = logit.shape[:-2] if logit.ndim == 4 else (1, *logit.shape[:-2])
    if not fits or any(a not in (1, b) for a, b in zip(lead, x.shape[:2], strict=True)):
        raise PoolValueError(
            f"the logits {tuple(logit.shape)} do not fit the input {tuple(x.shape)}",
            "Give one map of the input's height and width for each channel, or one for all",
        )
    return (logit if logit.ndim == 4 else logit[None]).expand(x.shape)


class ImportanceLogit(nn.Module):
    """The logits of local importance pooling: a small network of its input, and a gate.

    ``gate * sigmoid(norm(conv(x)))``: a 3x3 convolution, or with `hidden` a bottleneck of 1x1 to
    `hidden` channels, 3x3, and 1x1 back; normalised over each image's map. The last convolution
    begins with zeros, so that all logits are equal and the pooling begins as the mean.

    Args:
        channels: of the input, and of the logits.
        hidden: the channels of the bottleneck; None for a single convolution.
        gate: what logits are bounded by; the largest weight of a window is at most ``exp(gate)``
            times the smallest.

    Raises:
        PoolValueError: for a map of a single position, which cannot be normalised.

    Source: Gao, Wang and Wu, "LIP: local importance-based pooling" (2019).
    """

    def __init__(self, channels: int, hidden: int | None = None, gate: float = 12.0) -> None:
        super().__init__()
        if channels is None:
            raise PoolTypeError("the logits need the number of channels", "Give channels too")
        check_channels(channels)
        self.gate = gate
        last: nn.Conv2d
        if hidden is None:
            last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            layers: list[nn.Module] = [last]
        else:
            check_channels(hidden)
            last = nn.Conv2d(hidden, channels, 1, bias=False)
            layers = [
                nn.Conv2d(channels, hidden, 1, bias=False),
                nn.InstanceNorm2d(hidden, affine=True),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
                nn.InstanceNorm2d(hidden, affine=True),
                nn.ReLU(),
                last,
            ]
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, nn.InstanceNorm2d(channels, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        check_floating(x, "maps that make logits are")
        if x.shape[-1] * x.shape[-2] == 1:
            raise PoolValueError(
                "a map of a single position cannot be normalised to make its logits",
                "Leave such a map as it is, or give a logit module of your own",
            )
        if x.shape[0] == 0:
            return torch.zeros_like(x)  # nor can no image at all
        logits: Tensor = self.gate * self.layers(x).sigmoid()
        return logits


@listed(
    "lip",
    kind="window",
    formula="Σ x exp(g(x)) / Σ exp(g(x)), g a small network",
    parameters="g: by default a 3x3 convolution and a normalisation, 9 C² + 2 C",
    gradient="to each value by its weight, and through the weights",
    cost="g, and an exponential for each place in the window",
    paper="Gao, Wang and Wu, LIP: local importance-based pooling, 2019",
)
class LocalImportancePool2d(Placed):
    """`lip_pool2d` with logits that a network makes of the input.

    Args:
        channels: of the input; only the default `logit` needs it.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`.
        logit: a module that makes logits (see `lip_pool2d`) of the input; None is
            ``ImportanceLogit(channels)``, with which the pooling begins as the mean.

    Shape: (N, C, H, W) to (N, C, h, w), or both without N.

    Raises:
        PoolValueError, PoolTypeError: as `lip_pool2d`, and for another number of channels.

    Source: Gao, Wang and Wu, "LIP: local importance-based pooling" (2019).

    >>> import torch, poolkit
    >>> pool = poolkit.nn.LocalImportancePool2d(8, 3, stride=2, padding=1)
    >>> pool(torch.rand(1, 8, 14, 14)).shape
    torch.Size([1, 8, 7, 7])
    >>> soft = poolkit.nn.LocalImportancePool2d(None, 2, logit=torch.nn.Identity())
    >>> x = torch.rand(1, 8, 4, 4)
    >>> torch.allclose(soft(x), poolkit.pool(x, poolkit.Sliding(2), "soft"))
    True
    """

    def __init__(
        self,
        channels: int | None,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        logit: nn.Module | None = None,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        new_sliding(2, *self.place)  # refuses what cannot be one
        if logit is None and channels is None:
            raise PoolTypeError(
                "the logits need the number of channels", "Give channels, or a logit module"
            )
        check_channels(channels)
        if logit is None:
            assert channels is not None
            logit = ImportanceLogit(channels)
        if not isinstance(logit, nn.Module):
            raise PoolTypeError(
                f"logit must be a torch.nn.Module, got {type(logit).__name__}",
                "Give a module, such as torch.nn.Conv2d(channels, channels, 1)",
            )
        self.channels = channels
        self.logit = logit

    def forward(self, x: Tensor) -> Tensor:
        try:
            maps, added = batched(x)
            check_channels_of(maps, self.channels)
            out = lip_pool2d(
                maps, self.logit(maps), self.kernel_size, self.stride, self.padding,
                dilation=self.dilation, ceil_mode=self.ceil_mode,
            )  # fmt: skip
            return out[0] if added else out
        except PoolError as error:
            raise error.during(f"{describe(x)} by LocalImportancePool2d") from None


# --- detail preserving ----------------------------------------------------------------------------


class _Detail:
    """Σ x w / Σ w with ``w = alpha + rho(x - mean)``, of views of x (and of what is inside, where
    a window reaches beyond it), log alpha, lambda and (if `filtered`) the weights of the mean.

    Weights are made from their logarithms, relative to the largest: no power over- or underflows.
    """

    def __init__(self, symmetric: bool, epsilon: float, filtered: bool) -> None:
        self.symmetric, self.epsilon, self.filtered = symmetric, epsilon, filtered

    def __call__(
        self, views: list[list[Tensor]], _: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Tensor:
        values, inside = views[0], views[1] if len(views) > 1 else None
        log_alpha, power = (p[None, :, None, None] for p in parameters[:2])
        if self.filtered:
            weights = parameters[2]
            mean = reduce(
                torch.add,
                [weights[None, :, t, None, None] * value for t, value in enumerate(values)],
            )
        else:
            count = len(values) if inside is None else reduce(torch.add, inside)
            mean = reduce(torch.add, [value / count for value in values])
        # Of halves, as the difference of two large values could overflow.
        mean, two = mean / 2, math.log(2)
        epsilon = torch.full((), self.epsilon / 2, dtype=mean.dtype, device=mean.device)
        logs = []
        for t, value in enumerate(values):
            apart = value / 2 - mean
            apart = apart if self.symmetric else apart.relu()
            log = power * (torch.hypot(apart, epsilon).log() + two)
            logs.append(log if inside is None else torch.where(inside[t] > 0, log, -math.inf))
        top = torch.maximum(_largest_of(logs), log_alpha.detach())
        base = torch.exp(log_alpha - top)
        shares = [torch.exp(log - top) + base for log in logs]
        if inside is not None:
            shares = [share * here for share, here in zip(shares, inside, strict=True)]
        total = reduce(torch.add, shares)
        return reduce(
            torch.add, [v * (share / total) for v, share in zip(values, shares, strict=True)]
        )


@listed(
    "dpp",
    kind="window",
    formula="Σ x w / Σ w, w = α + (√((x - x̄)² + ε²))^λ; asymmetric: max(0, x - x̄)",
    parameters="α and λ for each channel; the full variant: the weights of x̄",
    gradient="to each value by its weight, and through the weights",
    cost="a logarithm and an exponential for each place in the window",
    paper="Saeedan, Weber, Goesele and Roth, Detail-preserving pooling in deep networks, 2018",
)
class DetailPreservingPool2d(Placed):
    """The mean of a window, in which values weigh the more the further they are from it.

    ``Σ x w / Σ w`` with ``w = alpha + rho(x - m)``, where m is the mean of the window (or what is
    learned instead) and ``rho(d) = sqrt(d^2 + epsilon^2) ^ lambda``, of ``max(0, d)`` for the
    asymmetric form, which favours what is larger. A lambda towards 0, or a large alpha, is the
    mean; a large lambda and a small alpha the value furthest from the mean, or the max in the
    asymmetric form.

    Args:
        channels: how many channels have an alpha and a lambda of their own; None for one for all.
        kernel_size, stride, padding, dilation, ceil_mode: as for `poolkit.Sliding`. Padding is
            left out of both means.
        symmetric: whether smaller values count as details, too.
        full: whether m is ``Σ f x`` with a learned f for each place (and channel), which begins
            as the mean (padding being 0); else (lite) it is the mean.
        alpha, power: alpha and lambda at first, above 0.
        epsilon: keeps rho differentiable at 0, above 0.

    Shape: (N, C, H, W) to (N, C, h, w), or both without N.

    Attributes:
        log_alpha, log_power: (channels or 1,), whose exponentials are alpha and lambda.
        filter: for the full form, (channels or 1, height * width).

    Raises:
        PoolValueError, PoolTypeError: for what cannot be pooled, or another number of channels.

    Source: Saeedan, Weber, Goesele and Roth, "Detail-preserving pooling in deep networks" (2018).

    >>> import torch, poolkit
    >>> pool = poolkit.nn.DetailPreservingPool2d(8, 2)
    >>> pool(torch.rand(1, 8, 14, 14)).shape
    torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        channels: int | None,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Any = 0,
        *,
        symmetric: bool = True,
        full: bool = False,
        alpha: float = 1.0,
        power: float = 1.0,
        epsilon: float = 1e-3,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        sets = check_channels(channels)
        window = new_sliding(2, *self.place)
        for name, value in (("alpha", alpha), ("power", power), ("epsilon", epsilon)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise PoolTypeError(f"{name} must be a number, got {value!r}", "Give one above 0")
            if not 0 < value < math.inf:
                raise PoolValueError(f"{name} must be above 0 and finite, got {value}", "Try 1.0")
        self.channels = channels
        self.symmetric = symmetric
        self.epsilon = epsilon
        self.log_alpha = nn.Parameter(torch.full((sets,), math.log(alpha)))
        self.log_power = nn.Parameter(torch.full((sets,), math.log(power)))
        places = math.prod(window.sizes(2)[0])
        self.filter = nn.Parameter(torch.full((sets, places), 1 / places)) if full else None

    def forward(self, x: Tensor) -> Tensor:
        try:
            maps, added = batched(x)
            check_channels_of(maps, self.channels)
            window = sliding(x, "DPP", 2, *self.place)
            taps = Taps.of(window, maps.shape[-2:])
            seen = [taps.padded(maps, 0)]
            working = working_dtype(maps)
            if taps.is_padded:
                inside = torch.ones((1, 1, *maps.shape[-2:]), dtype=working, device=maps.device)
                seen.append(taps.padded(inside, 0))
            # Before they are rounded to a half type, which has no large powers.
            parameters = [self.log_alpha.to(working), self.log_power.to(working).exp()]
            if self.filter is not None:
                parameters.append(self.filter)
            compute = _Detail(self.symmetric, self.epsilon, self.filter is not None)
            out = in_stripes(
                compute, taps, seen, (), parameters,
                working=working, result=result_dtype(maps), live=24 * taps.places,
            )  # fmt: skip
            return out[0] if added else out
        except PoolError as error:
            raise error.during(f"{describe(x)} by DetailPreservingPool2d") from None

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, {super().extra_repr()}, symmetric={self.symmetric}, "
            f"full={self.filter is not None}"
        )
