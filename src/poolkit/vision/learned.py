"""Numbers that a module learns: one for all channels, or one for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PoolTypeError, PoolValueError, describe

__all__ = ["across_channels", "check_channels", "check_channels_of", "learnable", "told_of"]


def learnable(
    name: str, value: float, learned: bool, per_channel: bool, channels: int | None
) -> float | nn.Parameter:
    """A number of a module, or the parameter that begins with it: (1,), or (channels,)."""
    if per_channel and not learned:
        raise PoolValueError(f"{name} for each channel is a parameter", "Give learned=True")
    if per_channel and channels is None:
        raise PoolValueError(f"{name} for each channel needs their number", "Give channels too")
    if not learned:
        return value
    numbers = check_channels(channels if per_channel else None)
    return nn.Parameter(torch.full((numbers,), float(value)))


def told_of(value: Any) -> Any:
    """An option, or how many numbers of it are learned."""
    return f"{value.numel()} learned" if isinstance(value, nn.Parameter) else value


def across_channels(name: str, value: Tensor, input: Tensor) -> Tensor:
    """One number, or one for each channel, as (1, 1, 1) or (C, 1, 1)."""
    channels = input.shape[-3]
    if not value.is_floating_point() or value.numel() not in (1, channels) or value.ndim > 1:
        raise PoolValueError(
            f"{name} must be one number or one for each of {channels} channels, got "
            f"{describe(value)}",
            f"Give a number, or a floating tensor of shape ({channels},)",
        )
    return value.reshape(-1, 1, 1)


def check_channels(channels: int | None) -> int:
    """How many sets of weights that is."""
    if channels is None:
        return 1
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise PoolTypeError(
            f"channels must be an integer or None, got {channels!r}",
            "Give the number of channels, or None for one set of weights for all of them",
        )
    if channels < 1:
        raise PoolValueError(f"channels must be at least 1, got {channels}", "Give their number")
    return channels


def check_channels_of(x: Tensor, channels: int | None) -> None:
    if channels is not None and x.shape[1] != channels:
        raise PoolValueError(
            f"the weights are for {channels} channels, the input has {x.shape[1]}",
            "Make them agree, or make the module with channels=None, whose weights fit any number",
        )
