"""The few array functions that a reduction's algebra may use, spelt alike for NumPy and torch.

A reduction is written once against `Arrays`, so the same lines are the NumPy result, the torch
result on any device and, through autograd, the gradient.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from .dtypes import dtype_of
from .errors import PoolTypeError, is_torch_tensor

__all__ = ["Array", "Arrays", "arrays_of", "check_array", "check_numpy", "checked_numpy"]

Array = Any  # a numpy.ndarray or a torch.Tensor
_ERF = np.frompyfunc(math.erf, 1, 1)


class Arrays(Protocol):
    """The vocabulary. `axis` is always the last one unless it is given; `rank` counts the sorted
    edges that are at most x."""

    def cast(self, x: Array, dtype: str) -> Array: ...
    def index(self, positions: np.ndarray, like: Array) -> Array: ...
    def take(self, x: Array, positions: Array, axis: int) -> Array: ...
    def fill(self, like: Array, value: float) -> Array: ...
    def join(self, parts: list[Array], axis: int) -> Array: ...
    def where(self, condition: Array, a: Array, b: Array | float) -> Array: ...
    def constant(self, x: Array) -> Array: ...
    def isnan(self, x: Array) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def sigmoid(self, x: Array) -> Array: ...
    def tanh(self, x: Array) -> Array: ...
    def erf(self, x: Array) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def power(self, x: Array, p: float) -> Array: ...
    def floor(self, x: Array) -> Array: ...
    def round(self, x: Array) -> Array: ...
    def at_least(self, x: Array, low: float) -> Array: ...
    def at_most(self, x: Array, high: float) -> Array: ...
    def sum(self, x: Array) -> Array: ...
    def any(self, x: Array) -> Array: ...
    def sort(self, x: Array) -> Array: ...
    def pick(self, x: Array, positions: Array) -> Array: ...
    def permute(self, x: Array, order: list[int]) -> Array: ...
    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array: ...
    def largest(self, x: Array) -> Array: ...
    def smallest(self, x: Array) -> Array: ...
    def bounds(self, x: Array) -> tuple[int, int]: ...
    def rank(self, x: Array, edges: np.ndarray) -> Array: ...


class NumpyArrays:
    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(dtype, copy=False)

    def index(self, positions: np.ndarray, like: Array) -> Array:
        return positions

    def take(self, x: Array, positions: Array, axis: int) -> Array:
        return np.take(x, positions, axis=axis)

    def fill(self, like: Array, value: float) -> Array:
        return np.full_like(like, value)

    def join(self, parts: list[Array], axis: int) -> Array:
        return np.concatenate(parts, axis=axis)

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        # A Python scalar is given the array's dtype first, or NumPy 1 would widen the result.
        return np.where(condition, a, np.asarray(b, dtype=a.dtype))

    def constant(self, x: Array) -> Array:
        return x

    def isnan(self, x: Array) -> Array:
        return x != x

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def log(self, x: Array) -> Array:
        return np.log(x)

    def sigmoid(self, x: Array) -> Array:
        small = np.exp(-np.abs(x))
        return np.where(x < 0, small, np.asarray(1, dtype=x.dtype)) / (1 + small)

    def tanh(self, x: Array) -> Array:
        return np.tanh(x)

    def erf(self, x: Array) -> Array:
        # NumPy has none, and this is the slow path: one call of the C library for each element.
        return np.asarray(_ERF(x), dtype=np.float64).astype(x.dtype)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def power(self, x: Array, p: float) -> Array:
        return np.power(x, np.asarray(p, dtype=x.dtype))

    def floor(self, x: Array) -> Array:
        return np.floor(x)

    def round(self, x: Array) -> Array:
        return np.rint(x)

    def at_least(self, x: Array, low: float) -> Array:
        return np.maximum(x, np.asarray(low, dtype=x.dtype))

    def at_most(self, x: Array, high: float) -> Array:
        return np.minimum(x, np.asarray(high, dtype=x.dtype))

    def sum(self, x: Array) -> Array:
        return x.sum(axis=-1)

    def any(self, x: Array) -> Array:
        return x.any(axis=-1)

    def sort(self, x: Array) -> Array:
        return np.sort(x, axis=-1)

    def pick(self, x: Array, positions: Array) -> Array:
        return np.take_along_axis(x, np.broadcast_to(positions, (*x.shape[:-1], 1)), axis=-1)[
            ..., 0
        ]

    def permute(self, x: Array, order: list[int]) -> Array:
        return x.transpose(order)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape)

    def largest(self, x: Array) -> Array:
        return x.max(axis=-1)

    def smallest(self, x: Array) -> Array:
        return x.min(axis=-1)

    def bounds(self, x: Array) -> tuple[int, int]:
        return int(x.min()), int(x.max())

    def rank(self, x: Array, edges: np.ndarray) -> Array:
        return np.searchsorted(edges, x, side="right")


class TorchArrays:
    def __init__(self) -> None:
        import torch

        self.torch = torch

    def cast(self, x: Array, dtype: str) -> Array:
        return x.to(getattr(self.torch, dtype))

    def index(self, positions: np.ndarray, like: Array) -> Array:
        return self.torch.from_numpy(positions).to(like.device)

    def take(self, x: Array, positions: Array, axis: int) -> Array:
        axis = axis % x.ndim
        picked = x.index_select(axis, positions.flatten())
        return picked.unflatten(axis, positions.shape)

    def fill(self, like: Array, value: float) -> Array:
        return self.torch.full_like(like, value)

    def join(self, parts: list[Array], axis: int) -> Array:
        return self.torch.cat(parts, dim=axis)

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return self.torch.where(condition, a, b)

    def constant(self, x: Array) -> Array:
        return x.detach()

    def isnan(self, x: Array) -> Array:
        return x != x

    def exp(self, x: Array) -> Array:
        return x.exp()

    def log(self, x: Array) -> Array:
        return x.log()

    def sigmoid(self, x: Array) -> Array:
        return x.sigmoid()

    def tanh(self, x: Array) -> Array:
        return x.tanh()

    def erf(self, x: Array) -> Array:
        return x.erf()

    def abs(self, x: Array) -> Array:
        return x.abs()

    def sqrt(self, x: Array) -> Array:
        return x.sqrt()

    def power(self, x: Array, p: float) -> Array:
        return x.pow(p)

    def floor(self, x: Array) -> Array:
        return x.floor()

    def round(self, x: Array) -> Array:
        return x.round()

    def at_least(self, x: Array, low: float) -> Array:
        return x.clamp(min=low)

    def at_most(self, x: Array, high: float) -> Array:
        return x.clamp(max=high)

    def sum(self, x: Array) -> Array:
        return x.sum(-1)

    def any(self, x: Array) -> Array:
        return x.any(-1)

    def sort(self, x: Array) -> Array:
        return x.sort(-1).values

    def pick(self, x: Array, positions: Array) -> Array:
        return x.gather(-1, positions.expand(*x.shape[:-1], 1)).squeeze(-1)

    def permute(self, x: Array, order: list[int]) -> Array:
        return x.permute(order)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.expand(shape)

    def largest(self, x: Array) -> Array:
        return x.amax(-1)

    def smallest(self, x: Array) -> Array:
        return x.amin(-1)

    def bounds(self, x: Array) -> tuple[int, int]:
        low, high = x.aminmax()
        return int(low), int(high)

    def rank(self, x: Array, edges: np.ndarray) -> Array:
        return self.torch.bucketize(x, self.index(edges, x), right=True)


_NUMPY = NumpyArrays()
_TORCH: TorchArrays | None = None


def arrays_of(x: Array) -> Arrays:
    """The vocabulary for the kind of array that `x` is."""
    global _TORCH
    if not is_torch_tensor(x):
        return _NUMPY
    if _TORCH is None:
        _TORCH = TorchArrays()
    return _TORCH


def check_array(x: Any) -> None:
    """Refuses what is no array at all, and nested tensors, which may have no shape to ask for."""
    if is_torch_tensor(x) and x.is_nested:
        raise PoolTypeError("a nested tensor cannot be pooled", "Pool each of x.unbind()")
    if getattr(x, "ndim", None) is None:
        raise PoolTypeError(
            f"a NumPy array or a torch tensor was expected, got {type(x).__name__}",
            "Convert it with numpy.asarray or torch.as_tensor",
        )


def check_numpy(x: Any) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise PoolTypeError(
            "a masked array would be pooled without its mask", "Fill it first: x.filled(value)"
        )
    if not isinstance(x, np.ndarray):
        raise PoolTypeError(
            f"a NumPy array or a torch tensor was expected, got {type(x).__name__}",
            "Convert it with numpy.asarray",
        )
    dtype_of(x)


def checked_numpy(x: Any) -> np.ndarray:
    check_numpy(x)
    x = np.asarray(x)  # a subclass may compute in ways of its own
    if x.flags.c_contiguous and x.flags.aligned:
        return x
    # Views of records or of bytes may lie between the addresses that their elements need.
    return np.require(x, requirements=["C", "A"])
