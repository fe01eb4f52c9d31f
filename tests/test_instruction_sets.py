"""The same bits on every instruction set, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from test_oracle import WALKS

import poolkit
from poolkit.dtypes import DTYPES
from poolkit.plan import plan_for
from poolkit.reductions import (
    GeM,
    LogSumExp,
    Lp,
    Max,
    Mean,
    Median,
    Min,
    Quantile,
    Reduction,
    Soft,
    Std,
    Sum,
    TopK,
)

pytestmark = pytest.mark.usefixtures("keep_settings")

ISAS = poolkit.info()["available"]
PLAIN = [Max(), Min(), Sum(), Mean(), Mean(count_include_pad=False), Lp(1), Lp(2), Lp(3)]
WHOLE = [Std(), LogSumExp(2.0), Soft(), GeM(2.5), Median(), Quantile(0.3), TopK(3)]
NATIVE = [*PLAIN, Lp(1.5), *WHOLE]
# The largest walks add nothing here and are slow on the baseline.
CASES = [case for case in WALKS if "65536" not in case]


def noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers whose sums depend on the order of additions, with NaN, infinities and zeros."""
    rng = np.random.default_rng(sum(shape))
    if DTYPES[dtype].kind != "float":
        low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if dtype == "int64":
            low, high = -(2**40), 2**40
        return rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.01] = np.nan
    x[rng.random(shape) < 0.005] = np.inf
    x[rng.random(shape) < 0.1] = -0.0
    x[rng.random(shape) < 0.1] = 0.0
    return x.astype(dtype)


def bits(x: np.ndarray) -> bytes:
    """The bytes, every NaN made the same one: only its presence is promised."""
    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), np.array(np.nan, dtype=x.dtype), x)
    return x.tobytes()


def forward(
    plan: Any, x: np.ndarray, outer: int, inner: int, threads: int = 1, positions: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    shape = (outer, *plan.output, inner)
    out = np.empty(shape, dtype=plan.result)
    codes = None
    if positions:
        codes = np.empty(shape, dtype=f"uint{8 * plan.native.position_bytes}")
    address = 0 if codes is None else codes.ctypes.data
    plan.native.forward(x.ctypes.data, out.ctypes.data, address, outer, inner, threads)
    return out, codes


def everything(case: str, dtype: str, reduction: Reduction, threads: int = 1) -> list[bytes]:
    """The bits of the values, and of a max or min the positions, indices and gradient."""
    shape, inner, window = WALKS[case]
    outer = 3
    x = noise((outer, *shape, inner), dtype)
    plan = plan_for(window, reduction, shape, dtype)
    if plan.native is None:
        assert DTYPES[dtype].kind != "float", "integers alone lack some"
        return []
    out, _ = forward(plan, x, outer, inner, threads)
    result = [bits(out)]
    if isinstance(reduction, (Max, Min)):
        values, codes = forward(plan, x, outer, inner, threads, positions=True)
        assert codes is not None
        indices = np.empty(codes.shape, dtype=np.int64)
        plan.native.indices(codes.ctypes.data, indices.ctypes.data, outer, inner, threads)
        result += [bits(values), codes.tobytes(), indices.tobytes()]
        if DTYPES[dtype].kind == "float":
            grad = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)
            back = np.full(x.shape, 7, dtype=dtype)
            plan.native.scatter(
                grad.ctypes.data, codes.ctypes.data, back.ctypes.data, outer, inner, threads
            )
            result.append(back.tobytes())
    return result


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_same_bits(case: str, dtype: str) -> None:
    for reduction in NATIVE:
        results = {}
        for isa in ISAS:
            poolkit.use_isa(isa)
            results[isa] = everything(case, dtype, reduction)
        for isa in ISAS[1:]:
            assert results[isa] == results[ISAS[0]], (reduction, isa)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_same_bits_with_any_number_of_threads(case: str, dtype: str) -> None:
    for reduction in (Max(), Sum(), Mean(), Lp(2), Std(), Median()):
        one = everything(case, dtype, reduction)
        for threads in (2, 3, 7):
            assert everything(case, dtype, reduction, threads) == one, (reduction, threads)


@pytest.mark.parametrize("case", ["rows and columns", "70 channels", "one span", "bins of rows"])
def test_same_bits_of_bfloat16(case: str) -> None:
    torch = pytest.importorskip("torch")
    shape, inner, window = WALKS[case]
    x = torch.from_numpy(noise((3, *shape, inner), "float32")).to(torch.bfloat16)
    for reduction in NATIVE:
        plan = plan_for(window, reduction, shape, "bfloat16")
        results = set()
        for isa in ISAS:
            poolkit.use_isa(isa)
            out = torch.empty((3, *plan.output, inner), dtype=torch.bfloat16)
            plan.native.forward(x.data_ptr(), out.data_ptr(), 0, 3, inner, 1)
            results.add(bits(out.float().numpy()))
        assert len(results) == 1, reduction


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", ["Sliding(4, stride=2)", "Sliding(5, stride=2, padding=2)",
                                    "Sliding(3, stride=1)", "Sliding(6, stride=2)"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_gradient_reaches_every_position(isa: str, window: str, dtype: str) -> None:
    """Windows that overlap by vectors that overlap: every share of the gradient arrives."""
    poolkit.use_isa(isa)
    plan = plan_for(poolkit.windows.as_window(window), Max(), (70,), dtype)
    x = np.random.default_rng(0).permutation(70 * 3).reshape(3, 70, 1).astype(dtype)
    out, codes = forward(plan, x, 3, 1, positions=True)
    _, indices = poolkit.pool_with_indices(x[..., 0], window, "max")
    grad = np.arange(1, out.size + 1).reshape(out.shape).astype(dtype)
    got = np.full(x.shape, 7, dtype=dtype)
    plan.native.scatter(grad.ctypes.data, codes.ctypes.data, got.ctypes.data, 3, 1, 1)
    want = np.zeros((3, 70))
    for row in range(3):
        np.add.at(want[row], indices[row], grad[row, :, 0].astype(np.float64))
    np.testing.assert_array_equal(got[..., 0].astype(np.float64), want)


def test_the_comparison_can_fail() -> None:
    """A different order of additions, and a zero of the other sign, are different bits."""
    x = noise((1000,), "float32")
    x = x[np.isfinite(x)]
    assert bits(np.add.accumulate(x)[-1:]) != bits(np.add.accumulate(x[::-1].copy())[-1:])
    assert bits(np.float32([0.0])) != bits(np.float32([-0.0]))
    assert bits(np.float32([np.nan])) == bits(-np.float32([np.nan]))


# --- choosing one --------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_one_can_be_forced(isa: str) -> None:
    poolkit.use_isa(isa)
    assert poolkit.info()["isa"] == isa
    ran = run("import poolkit; print(poolkit.info()['isa'])", POOLKIT_ISA=isa)
    assert ran.stdout.strip() == isa, ran.stderr


def test_the_baseline_is_always_there() -> None:
    assert ISAS[-1] == "baseline"


def test_one_that_is_not_there() -> None:
    with pytest.raises(poolkit.PoolValueError) as caught:
        poolkit.use_isa("sse9")
    message = str(caught.value)
    assert message == (
        f"the instruction set 'sse9' is not available here. One of: {', '.join(ISAS)}."
    )
    assert poolkit.info()["isa"] in ISAS


def test_one_that_is_not_there_in_the_environment() -> None:
    """A misspelt name must not pass for having been obeyed."""
    ran = run("import poolkit", POOLKIT_ISA="sse9")
    assert ran.returncode != 0
    assert "the instruction set 'sse9' is not available here. One of: " in ran.stderr
    assert run("import poolkit", POOLKIT_ISA="").returncode == 0
