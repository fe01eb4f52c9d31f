"""What comes in: feature maps that can be pooled, and in which dtypes that is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dtypes import DTYPES
from ..errors import PoolTypeError, PoolValueError, is_torch_tensor
from ..functional import check_rank
from ..torch.plain import NAMES, check

__all__ = ["batched", "check_floating", "checked_maps", "result_dtype", "working_dtype"]


def check_maps(x: Any) -> None:
    """Refuses all but tensors that can be pooled, (N, C, H, W) or (C, H, W)."""
    if not is_torch_tensor(x):
        raise PoolTypeError(
            f"a torch tensor was expected, got {type(x).__name__}",
            "Convert it with torch.as_tensor",
        )
    check(x)
    check_rank(x, 2)


def check_floating(x: Any, what: str) -> None:
    """The same, and of a floating dtype."""
    check_maps(x)
    if not x.is_floating_point():
        raise PoolTypeError(f"{what} of a floating dtype", "Convert the input: x.float()")


def checked_maps(x: Any, channels: int | None = None) -> Tensor:
    """`x`, if it is that and has as many channels as the parameters of a module are for."""
    check_floating(x, "maps are")
    maps: Tensor = x
    if channels is not None and maps.shape[-3] != channels:
        raise PoolValueError(
            f"the module is for {channels} channels, the input has {maps.shape[-3]}",
            f"Make it with channels={maps.shape[-3]}",
        )
    return maps


def batched(x: Any) -> tuple[Tensor, bool]:
    """`x` with a batch in front, and whether that had to be added."""
    check_maps(x)
    return (x, False) if x.ndim == 4 else (x[None], True)


def working_dtype(x: Tensor) -> torch.dtype:
    """In what a weighted sum of these values is computed."""
    row = DTYPES[NAMES[x.dtype]]
    return getattr(torch, row.wide if row.kind == "float" else row.real)


def result_dtype(x: Tensor) -> torch.dtype:
    """What a weighted sum of these values becomes."""
    return x.dtype if x.dtype.is_floating_point else torch.float32
