"""What a tensor is before anyone pools it: one that can be pooled, one that is plain memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..dtypes import DTYPES, unknown_dtype
from ..errors import PoolTypeError

__all__ = ["NAMES", "check", "is_plain", "real_dtype"]

NAMES = {getattr(torch, name): name for name in DTYPES}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what values of a floating dtype are added up: float64 in itself, others in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(x: Tensor) -> Tensor:
    """`x`, if it is of a layout and a dtype that can be pooled."""
    if x.layout is not torch.strided:
        raise PoolTypeError(f"a tensor of layout {x.layout} cannot be pooled", "Use x.to_dense()")
    if x.is_quantized:
        raise PoolTypeError("a quantized tensor cannot be pooled", "Pool x.int_repr()")
    if x.dtype not in NAMES:
        raise unknown_dtype(x)
    return x


# What the dispatcher knows of a plain tensor of this machine's memory, made under inference_mode or
# not. Zero tensors without memory, negative views, and what a transform or functionalization has
# wrapped, are of the same type and say that they are on the CPU, but have other keys.
def _keys_of(x: Tensor) -> int:
    return torch._C._dispatch_keys(x).raw_repr()


with torch.inference_mode():
    _PLAIN = frozenset((_keys_of(torch.empty(0)),))
with torch.inference_mode(False):
    _PLAIN |= {_keys_of(torch.empty(0))}


def is_plain(x: Tensor) -> bool:
    """Whether x is a plain tensor of this machine's memory, and neither a compiler nor a tracer, a
    mode or a transform is about that must be shown operators."""
    return (
        type(x) is Tensor
        and not is_compiling()
        and _keys_of(x) in _PLAIN
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and not torch._C._are_functorch_transforms_active()
    )
