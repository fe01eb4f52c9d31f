"""From windows and reductions to the oracle, and how its answer is compared with another."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from poolkit.dtypes import DTYPES
from poolkit.reductions import First, Last, Lp, Max, Mean, Min, Reduction, Sum
from poolkit.reference import (
    Positions,
    adaptive_positions,
    locate_reference,
    pool_reference,
    reduce_reference,
    sliding_positions,
)
from poolkit.windows import Adaptive, Global, Sliding, Window

EXACT = (
    Max,
    Min,
    Sum,
    Mean,
    First,
    Last,
)  # compared with ==, on inputs for which every step is exact
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def positions_of(window: Window, shape: tuple[int, ...]) -> list[Positions]:
    """What each output sees along each axis, read off the window's parameters."""
    axes = len(shape)

    def each(value: Any) -> list[Any]:
        return list(value) if isinstance(value, tuple) else [value] * axes

    if isinstance(window, Global):
        return [adaptive_positions(size, 1) for size in shape]
    if isinstance(window, Adaptive):
        bins = [b or size for b, size in zip(each(window.output_size), shape, strict=True)]
        return [adaptive_positions(size, b) for size, b in zip(shape, bins, strict=True)]
    assert isinstance(window, Sliding)
    kernels, dilations = each(window.kernel_size), each(window.dilation)
    strides = each(window.stride or window.kernel_size)
    result = []
    for axis, (size, k, s, d) in enumerate(zip(shape, kernels, strides, dilations, strict=True)):
        if window.padding == "same":
            outputs = math.ceil(size / s)
            total = max((outputs - 1) * s + (k - 1) * d + 1 - size, 0)
            before, after = total // 2, total - total // 2
            result.append(sliding_positions(size, k, s, before, after, d)[:outputs])
            continue
        pad = 0 if window.padding == "valid" else each(window.padding)[axis]
        before, after = pad if isinstance(pad, tuple) else (pad, pad)
        result.append(sliding_positions(size, k, s, before, after, d, window.ceil_mode))
    return result


def parameters(reduction: Reduction) -> dict[str, Any]:
    return {f.name: getattr(reduction, f.name) for f in dataclasses.fields(reduction)}


def pool_by_oracle(x: np.ndarray, window: Window, reduction: Reduction) -> np.ndarray:
    """The oracle's answer (of dtype object) for a batch and channels in front."""
    name, options = type(reduction).__name__, parameters(reduction)
    shape = x.shape[2:]
    if window.joined:
        grids = [pool_by_oracle(x, grid, reduction) for grid in window.grids()]
        return np.concatenate([g.reshape(*g.shape[:2], -1) for g in grids], axis=2)
    return pool_reference(
        x,
        positions_of(window, shape),
        lambda values, padded: reduce_reference(name, values, padded, **options),
    )


def locate_by_oracle(x: np.ndarray, window: Window, reduction: Reduction) -> np.ndarray:
    """Where each value of a max or min is, flat in the spatial axes."""
    name, shape = type(reduction).__name__, x.shape[2:]
    axes = positions_of(window, shape)
    out = np.empty((*x.shape[:2], *(len(axis) for axis in axes)), dtype=np.int64)
    for output in itertools.product(*(range(len(axis)) for axis in axes)):
        seen = itertools.product(*(axis[o] for axis, o in zip(axes, output, strict=True)))
        inside = [tuple(p for p, _ in s) for s in seen if not any(pad for _, pad in s)]
        for lead in np.ndindex(*x.shape[:2]):
            at = locate_reference(name, [x[lead + position] for position in inside])
            assert at is not None, "a window in the padding has no position"
            out[(*lead, *output)] = np.ravel_multi_index(inside[at], shape)
    return out


def lowest_and_highest(dtype: str) -> tuple[Any, Any]:
    if DTYPES[dtype].kind == "float":
        return -math.inf, math.inf
    if dtype == "bool":
        return False, True
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def expect(oracle: np.ndarray, reduction: Reduction, dtype: str) -> np.ndarray:
    """The oracle's numbers as the result's dtype holds them, in float64 or int64."""
    result = reduction.result_dtype(DTYPES[dtype])
    empty = lowest_and_highest(dtype)[0 if isinstance(reduction, Max) else 1]
    if isinstance(reduction, (First, Last)):
        empty = math.nan if DTYPES[result].kind == "float" else 0
    flat = [empty if value is None else value for value in oracle.ravel()]
    if DTYPES[result].kind != "float":
        return np.array(flat, dtype=np.int64).reshape(oracle.shape)
    wide = np.array(flat, dtype=np.float64).reshape(oracle.shape)
    if result == "bfloat16":
        import torch

        return torch.from_numpy(wide).to(torch.bfloat16).double().numpy()
    with np.errstate(over="ignore"):
        return wide.astype(result).astype(np.float64)


def numbers_of(result: Any) -> np.ndarray:
    """A result, of NumPy or torch, in float64 or int64."""
    if not isinstance(result, np.ndarray):
        result = (result.double() if result.is_floating_point() else result).numpy()
    return result.astype(np.float64 if result.dtype.kind == "f" else np.int64)


def assert_agrees(
    result: Any, oracle: np.ndarray, reduction: Reduction, dtype: str, scale: float = 8.0
) -> None:
    """A result against the oracle's: exactly where every step is exact, else within a few units
    in the last place of values up to `scale`."""
    got, want = numbers_of(result), expect(oracle, reduction, dtype)
    name = str(result.dtype).removeprefix("torch.")
    assert name == reduction.result_dtype(DTYPES[dtype])
    assert got.shape == want.shape
    if isinstance(reduction, EXACT):
        np.testing.assert_array_equal(got, want)
    else:
        eps = EPS[name]
        # Half types hold the result only; the work is done in float32.
        np.testing.assert_allclose(got, want, rtol=4 * eps, atol=4 * scale * min(eps, 2.0**-20))
    if got.dtype == np.float64:
        zero = (got == 0) & (want == 0)
        if isinstance(reduction, (Max, Min)):
            signs = np.signbit(want)
        elif isinstance(reduction, (Sum, Mean, Lp)):
            signs = np.zeros_like(zero)  # no sum is -0.0
        else:
            return
        np.testing.assert_array_equal(np.signbit(got)[zero], signs[zero])
