"""The memory that a pooling keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def saved_for_backward(call: Callable[[torch.Tensor], Any], x: torch.Tensor) -> int | None:
    """Bytes that a call of ``x`` keeps alive until its backward, or None where it has none.

    Exact: each storage that autograd saves is counted once, whole. Counted is what this call
    asks to keep; where another layer keeps the same tensor, the memory is shared.
    """
    if not (x.is_floating_point() or x.is_complex()):
        return None
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        # The storage itself is held, so that its address cannot be given to the next one.
        storages[storage.data_ptr()] = storage
        return saved

    leaf = x.detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = call(leaf)
    first = out[0] if isinstance(out, tuple) else out
    if not isinstance(first, torch.Tensor) or not first.requires_grad:
        return None
    return sum(storage.nbytes() for storage in storages.values())
