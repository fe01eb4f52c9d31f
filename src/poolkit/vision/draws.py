"""Draws from a generator of the caller's, or torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import PoolTypeError

__all__ = ["check_generator", "device_of", "uniform"]


def device_of(generator: torch.Generator | None, device: torch.device) -> torch.device:
    """Where this generator draws; None, torch's own, does so on any `device`."""
    return device if generator is None else generator.device


def uniform(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Numbers from [0, 1), drawn where the generator is and then moved to `device`."""
    check_generator(generator)
    if generator is None:  # written apart, as a compiler of symbolic sizes takes no generator
        return torch.rand(shape, device=device, dtype=dtype)
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=dtype)
    return drawn.to(device)


def check_generator(generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise PoolTypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}",
            "Write torch.Generator().manual_seed(0)",
        )
