"""Reductions that need all values of a window: their kernels, on every walk, against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from oracle import EPS
from test_oracle import WALKS

import poolkit
from poolkit.composite import composite
from poolkit.plan import plan_for
from poolkit.reductions import (
    REDUCTIONS,
    BiInteraction,
    GeM,
    LogSumExp,
    Median,
    Quantile,
    Reduction,
    Soft,
    Std,
    TopK,
)
from poolkit.windows import Adaptive, Global, Sliding, Window

WHOLE = [
    Std(),
    Std(correction=1),
    BiInteraction(),
    LogSumExp(2.0),
    Soft(0.5),
    GeM(),
    GeM(p=1.7),
    GeM(p=2, eps=0.25),
    Median(),
    Quantile(0.3),
    TopK(4),
]
# What the walks of the other kernels leave out here.
MORE = {
    "rows of strides 3 and 4": ((9, 90), 1, Sliding((2, 3), stride=(1, 4), padding=(0, 1))),
    "stride 3, two taps": ((70,), 1, Sliding(2, stride=3)),
    "large windows, stride 1": ((30, 40), 1, Sliding(11, stride=1, padding=5)),
    "large windows, stride 2": ((30, 40), 1, Sliding(9, stride=2, padding=4)),
    "few large windows": ((20, 20), 1, Sliding(18, stride=1)),
    "3 x 3, dilated": ((20, 60), 1, Sliding(3, stride=1, padding=2, dilation=2)),
    "5 x 5": ((12, 70), 1, Sliding(5, stride=1, padding=2)),
    "several blocks": ((2, 2500), 1, Sliding((2, 3), stride=1, padding=(0, 1))),
    "three channels, large windows": ((15, 17), 3, Sliding(11, stride=2, padding=5)),
    "300 channels": ((3, 4), 300, Sliding(3, stride=1, padding=1)),
}
CASES = {**{name: walk for name, walk in WALKS.items() if "65536" not in name}, **MORE}


def run(x: np.ndarray, window: Window, reduction: Reduction) -> np.ndarray:
    """(batch, *spatial, channels) through the native kernel."""
    plan = plan_for(window, reduction, x.shape[1:-1], x.dtype.name)
    assert plan.native is not None
    out = np.full((x.shape[0], *plan.output, x.shape[-1]), 7, dtype=plan.result)
    plan.native.forward(x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[-1], 1)
    return out


def in_float64(x: np.ndarray, window: Window, reduction: Reduction) -> np.ndarray:
    axes = plan_for(window, reduction, x.shape[1:-1], "float64").axes
    result: np.ndarray = composite(x.astype(np.float64), axes, reduction, channels_last=True)
    return result


def test_every_one_is_here() -> None:
    declared = {
        kind
        for kind in REDUCTIONS.values()
        if any(type(r) is kind and r.kernel and r.kernel.kind == "whole" for r in WHOLE)
    }
    assert declared == {type(reduction) for reduction in WHOLE}
    assert len(declared) == 8


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_agrees_with_float64(case: str, dtype: str) -> None:
    shape, inner, window = CASES[case]
    x = np.random.default_rng(len(case)).standard_normal((2, *shape, inner)).astype(dtype)
    eps = EPS[dtype]
    for reduction in WHOLE:
        want = in_float64(x, window, reduction)
        got = run(x, window, reduction).astype(np.float64)
        np.testing.assert_allclose(
            got,
            want,
            rtol=8 * eps,
            # Sums of products are as wrong as their largest terms allow.
            atol=16 * min(eps, 2.0**-22) * (300 if isinstance(reduction, BiInteraction) else 1),
            err_msg=str(reduction),
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
def test_ranks_of_integers(case: str, dtype: str) -> None:
    """Compared as what they are, and only the two that are chosen become floats."""
    shape, inner, window = CASES[case]
    low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    rng = np.random.default_rng(len(case))
    x = rng.integers(low, high, (2, *shape, inner), dtype=np.int64, endpoint=dtype != "bool")
    x = x.astype(dtype)
    axes = plan_for(window, Median(), shape, dtype).axes
    for reduction in (Median(), Quantile(0.3)):
        want = composite(x, axes, reduction, channels_last=True)
        np.testing.assert_array_equal(run(x, window, reduction), want)


@pytest.mark.parametrize("case", CASES)
def test_a_nan_and_infinities_go_where_they_are_seen(case: str) -> None:
    shape, inner, window = CASES[case]
    rng = np.random.default_rng(len(case))
    x = rng.standard_normal((2, *shape, inner)).astype(np.float32)
    x[rng.random(x.shape) < 0.004] = np.nan
    x[rng.random(x.shape) < 0.02] = np.inf
    x[rng.random(x.shape) < 0.02] = -np.inf
    for reduction in WHOLE:
        want = in_float64(x, window, reduction)
        got = run(x, window, reduction)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=str(reduction))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "window", [Sliding(3, stride=1, padding=1), Sliding(11, stride=2), Global(), Adaptive(3)]
)
@pytest.mark.parametrize("channels", [1, 16])
def test_deviations_do_not_cancel(window: Window, dtype: str, channels: int) -> None:
    """A large offset leaves the deviations that the values have after it was added."""
    noise = np.random.default_rng(0).standard_normal((1, 33, 40, channels))
    x = (1e6 + noise).astype(dtype)
    want = in_float64(x.astype(np.float64) - 1e6, window, Std())
    np.testing.assert_allclose(run(x, window, Std()), want, rtol=8 * EPS[dtype])


def test_the_first_value_may_be_far_away() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4000, 1)).astype(np.float32)
    x[0, 0] = 1e4
    want = in_float64(x, Global(), Std())
    np.testing.assert_allclose(run(x, Global(), Std()), want, rtol=1e-6)


def test_large_and_equal_values() -> None:
    for value in (3e38, -3e38, 1000.0, 1e-40):
        x = np.full((1, 70, 1), value, dtype=np.float32)
        for window in (Sliding(9, stride=1), Global()):
            for reduction in (LogSumExp(3), Soft(2), Median(), Quantile(0.9)):
                np.testing.assert_array_equal(run(x, window, reduction), np.float32(value))
            np.testing.assert_array_equal(run(x, window, Std()), 0)


def test_zeros_of_both_signs_give_the_positive_one() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((1, 20, 90, 1)) < 0.5, 0.0, -0.0).astype(np.float32)
    for window in (Sliding(3, stride=1, padding=1), Sliding(2), Sliding(11), Global()):
        assert not np.signbit(run(x, window, Median())).any()


# --- logarithms and powers: errors in units in the last place ------------------------------------


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got.astype(np.longdouble) - want) / np.spacing(np.abs(got))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logarithms_are_within_one_unit(dtype: str) -> None:
    """k zeros among n values, the others -infinity: the result is log(k / n)."""
    n = 1500
    k = np.arange(1, n + 1)
    x = np.where(np.arange(n) < k[:, None], 0.0, -np.inf).astype(dtype)[..., None]
    got = run(x, Global(), LogSumExp())[:, 0, 0]
    share = (k / n).astype(dtype) if dtype == "float64" else k.astype(dtype) / np.float32(n)
    want = np.log(share.astype(np.longdouble))
    assert ulps(got[:-1], want[:-1]) < 1.0
    assert got[-1] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.3, 1.5, 2.5, 7.25, 20.0])
def test_powers_are_within_their_bound(dtype: str, p: float) -> None:
    """Of one value the general mean is the p-th root of its p-th power: each is off by at most
    1.5 ULP + |log(power)| / 32 ULP, and the root divides the first error by p."""
    most = (80 if dtype == "float32" else 600) / max(p, 1)
    logs = np.linspace(-most, most, 20001)
    x = np.exp(logs).astype(dtype)[None, :, None]
    got = run(x, Sliding(1), GeM(p, eps=0.0))
    # A power may end next to a power of two, where a unit is half as large.
    bound = 2 * (1.5 + p * most / 32) / p + 1.5 + most / 32
    assert ulps(got, x.astype(np.longdouble)) < bound


@pytest.mark.parametrize("p", [0.5, 1.5, 2.5, 6.0])
def test_powers_of_norms(p: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1000, 1))
    for dtype, tolerance in (("float32", 5e-7), ("float64", 2e-15)):
        got = run(x.astype(dtype), Sliding(3, stride=2), poolkit.Lp(p))
        want = in_float64(x.astype(dtype), Sliding(3, stride=2), poolkit.Lp(p))
        np.testing.assert_allclose(got, want, rtol=tolerance)
    least = 1e-40 if p < 1 else 1e-4  # subnormal, but its power must not vanish
    special = np.array([0.0, np.inf, np.nan, 1.0, least])[None, :, None].astype(np.float32)
    got = run(special, Sliding(1), GeM(p, eps=0.0))[0, :, 0]
    np.testing.assert_allclose(got, special[0, :, 0], rtol=1e-5)


# --- torch: forward by the kernel, backward by the lines of the reduction ------------------------


@pytest.mark.parametrize("reduction", WHOLE, ids=str)
def test_training_saves_the_input_and_no_more(reduction: Reduction) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 3, 30, 31, dtype=torch.float64, requires_grad=True)
    saved: list[Any] = []

    def keep(tensor: Any) -> Any:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = poolkit.pool(x, Sliding(3, 2, 1), reduction)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]
    assert poolkit.explain(x, Sliding(3, 2, 1), reduction).path == "native"
    with torch.no_grad():
        assert torch.equal(poolkit.pool(x, Sliding(3, 2, 1), reduction), y)

    plan = plan_for(Sliding(3, 2, 1), reduction, (30, 31), "float64")
    grad = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, grad, create_graph=True)
    (want,) = torch.autograd.grad(composite(x, plan.axes, reduction), x, grad, create_graph=True)
    torch.testing.assert_close(got, want)
    if got.requires_grad:
        along = torch.randn_like(x)
        (twice,) = torch.autograd.grad(got, x, along, allow_unused=True, retain_graph=True)
        (want_twice,) = torch.autograd.grad(want, x, along, allow_unused=True)
        assert (twice is None) == (want_twice is None)
        if twice is not None:
            torch.testing.assert_close(twice, want_twice)


@pytest.mark.parametrize("reduction", ["median", "std", "log_sum_exp", "soft", "ge_m", "top_k(2)"])
def test_layouts_of_torch(reduction: str) -> None:
    torch = pytest.importorskip("torch")
    if "_k" in reduction or "ge_m" in reduction:
        reduction = "TopK(2)" if "_k" in reduction else "GeM()"
    x = torch.randn(2, 20, 9, 9)
    behind = x.contiguous(memory_format=torch.channels_last)
    got = poolkit.pool(behind, Sliding(3, 2, 1), reduction)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, poolkit.pool(x, Sliding(3, 2, 1), reduction))
    half = poolkit.pool(x.bfloat16(), Sliding(3, 2, 1), reduction)
    assert half.dtype is torch.bfloat16
    wide = poolkit.pool(x.bfloat16().float(), Sliding(3, 2, 1), reduction)
    assert torch.equal(half, wide.bfloat16())


def test_explain() -> None:
    x = np.zeros((1, 1, 8, 8))
    assert poolkit.explain(x, Sliding(3), "std").path == "native"
    told = poolkit.explain(x.astype(np.int32), Sliding(3), "std")
    assert told.path == "composite"
    assert told.why == "Std() of int32 to float32 has no kernel"
    assert poolkit.explain(x.astype(np.int32), Sliding(3), "median").path == "native"
    assert math.prod(poolkit.explain(x, Sliding(3), "std").output_shape) == 4
