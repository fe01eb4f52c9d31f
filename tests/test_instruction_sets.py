"""The same bits on every instruction set, whatever the number of threads."""

from __future__ import annotations

import math
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
    BiInteraction,
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
from poolkit.windows import Adaptive, Global, Sliding, Window

pytestmark = pytest.mark.usefixtures("keep_settings")

ISAS = poolkit.info()["available"]
PLAIN = [Max(), Min(), Sum(), Mean(), Mean(count_include_pad=False), Lp(1), Lp(2), Lp(3)]
WHOLE = [Std(), BiInteraction(), LogSumExp(2.0), Soft(), GeM(2.5), Median(), Quantile(0.3), TopK(3)]
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


def scattered(plan: Any, grad: np.ndarray, codes: np.ndarray, threads: int = 1) -> np.ndarray:
    """The gradient of a max, into memory that is not zero."""
    outer, inner = grad.shape[0], grad.shape[-1]
    back = np.full((outer, *plan.shape, inner), 7, dtype=grad.dtype)
    plan.native.scatter(
        grad.ctypes.data, codes.ctypes.data, back.ctypes.data, outer, inner, threads
    )
    return back


def spread(plan: Any, grad: np.ndarray, threads: int = 1) -> np.ndarray | None:
    """The gradient of a sum or a mean, or None where that is left to the transposed window."""
    outer, inner = grad.shape[0], grad.shape[-1]
    back = np.full((outer, *plan.shape, inner), 7, dtype=grad.dtype)
    done = plan.native.spread(grad.ctypes.data, back.ctypes.data, outer, inner, threads)
    return back if done else None


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
            result.append(scattered(plan, grad, codes, threads).tobytes())
    elif isinstance(reduction, (Sum, Mean)) and DTYPES[dtype].kind == "float":
        grad = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)
        back = spread(plan, grad, threads)
        result.append(b"" if back is None else back.tobytes())
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


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((14, 14), Adaptive(5)),
        ((6, 5), Adaptive((4, 3))),
        ((14, 14), Sliding(7, stride=5)),
        ((7, 7), Sliding(3, stride=2, padding=1)),
        ((8, 12), Sliding(2)),
        ((9, 9), Sliding(7, stride=1, padding=3)),
        ((3, 6, 7), Adaptive((2, 3, 4))),
        ((3, 6, 7), Sliding(3, stride=2, padding=1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8"])
def test_small_planes_do_not_see_each_other(
    shape: tuple[int, ...], window: Window, dtype: str
) -> None:
    """Rows of several planes are reduced together, but for those with a NaN or a -0.0."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 100, (200, *shape, 1)).astype(dtype)
    if DTYPES[dtype].kind == "float":
        x[17, ..., 2, 3, 0] = np.nan
        x[23] = -0.0
    for reduction in (Max(), Sum(), Mean(), Mean(count_include_pad=False), Lp(2)):
        plan = plan_for(window, reduction, shape, dtype)
        if plan.native is None:
            continue
        for isa in ISAS:
            poolkit.use_isa(isa)
            each = [forward(plan, plane, 1, 1)[0] for plane in np.split(x, len(x))]
            for threads in (1, 3):
                whole, _ = forward(plan, x, len(x), 1, threads)
                assert bits(whole) == bits(np.concatenate(each)), (reduction, isa, threads)


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


# Around the lanes of every instruction set, and inputs behind the last window.
PLANES = [((n,), 1) for n in (5, 16, 17, 31, 70, 131)] + [((9, 35), 1), ((14, 14), 1)]
PLANES += [((6, 5, 18), 1), ((13,), 40), ((9, 10), 3), ((9, 10), 33)]
GRADIENTS = [
    Sliding(k, stride=s, padding=p, dilation=d, ceil_mode=c)
    for s in (1, 2, 3, 4, 5)
    for k, p, d, c in ((1, 0, 1, False), (2, 0, 1, True), (3, 1, 1, True), (4, 1, 1, False),
                       (5, 2, 1, False), (2, 1, 2, False), (3, 2, 3, True), (7, 3, 1, False))
] + [Adaptive(3), Adaptive(20), Global()]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_each_gradient_is_added_up_in_the_order_of_the_outputs(
    isa: str, dtype: str, plane: tuple[tuple[int, ...], int]
) -> None:
    """By adding them one by one, in float32 for half types: the same bits, -0.0 becomes 0.0."""
    poolkit.use_isa(isa)
    shape, inner = plane
    rng = np.random.default_rng(0)
    ran = 0
    for window in GRADIENTS:
        try:
            plan = plan_for(window, Max(), shape, dtype)
        except poolkit.PoolValueError:
            continue  # the window is larger than the plane
        if plan.has_empty_windows:
            continue
        x = rng.integers(-9, 10, (2, *shape, inner)).astype(dtype)
        out, codes = forward(plan, x, 2, inner, positions=True)
        indices = np.empty(codes.shape, dtype=np.int64)
        plan.native.indices(codes.ctypes.data, indices.ctypes.data, 2, inner, 1)
        grad = rng.standard_normal(out.shape).astype(dtype)
        grad[rng.random(grad.shape) < 0.1] = -0.0
        exact = np.zeros((2, math.prod(shape), inner), "float64" if dtype == "float64" else "f4")
        for slab in range(2):
            for c in range(inner):
                places = indices[slab, ..., c].ravel()
                np.add.at(exact[slab, :, c], places, grad[slab, ..., c].ravel().astype(exact.dtype))
        want = exact.reshape(x.shape).astype(dtype)
        for threads in (1, 3):
            got = scattered(plan, grad, codes, threads)
            assert got.tobytes() == want.tobytes(), (window, threads)
        ran += 1
    assert ran > 10


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_each_share_of_a_sum_goes_to_all_that_were_seen(
    isa: str, dtype: str, plane: tuple[tuple[int, ...], int]
) -> None:
    """Sums of whole numbers are exact; a mean's differ by the division and the order alone."""
    poolkit.use_isa(isa)
    shape, inner = plane
    rng = np.random.default_rng(0)
    ran = 0
    for window in GRADIENTS:
        for reduction in (Sum(), Mean(), Mean(count_include_pad=False), Mean(divisor=3)):
            try:
                plan = plan_for(window, reduction, shape, dtype)
            except poolkit.PoolValueError:
                continue  # the window is larger than the plane
            grad = rng.integers(-9, 10, (2, *plan.output, inner)).astype(dtype)
            got = spread(plan, grad)
            if got is None:
                assert max(span.taps for span in plan.axes) > 4
                continue
            shares = grad.astype("float64")
            if isinstance(reduction, Mean):
                with np.errstate(divide="ignore", invalid="ignore"):
                    shares = shares / np.asarray(plan.divisors, dtype="float64")[..., None]
            want = np.zeros((2, *shape, inner))
            for o in np.ndindex(plan.output):
                seen = tuple(
                    slice(span.begin[i], span.begin[i] + span.count[i] * span.step, span.step)
                    for span, i in zip(plan.axes, o, strict=True)
                )
                if all(span.count[i] for span, i in zip(plan.axes, o, strict=True)):
                    want[:, *seen] += shares[:, *o][:, *(None,) * len(shape)]
            if isinstance(reduction, Sum):
                np.testing.assert_array_equal(got.astype("float64"), want, str(window))
            else:
                units = 4 * float(np.finfo(dtype).eps)
                np.testing.assert_allclose(got.astype("float64"), want, rtol=units, atol=9 * units)
            again = spread(plan, grad, 3)
            assert again is not None
            assert again.tobytes() == got.tobytes(), window
            ran += 1
    assert ran > 30


@pytest.mark.parametrize("length", [16384, 16385, 40001])
@pytest.mark.parametrize("window", ["Sliding(3, stride=2, padding=1)", "Sliding(5, stride=1)",
                                    "Adaptive(7001)", "Sliding(6000, stride=3000)"])  # fmt: skip
def test_the_gradient_of_a_line_in_pieces(window: str, length: int) -> None:
    """Outputs that see two pieces give their share to one of them; threads change no bit."""
    x = np.random.default_rng(0).standard_normal((2, length, 1)).astype("float32").round(1)
    plan = plan_for(poolkit.windows.as_window(window), Max(), (length,), "float32")
    out, codes = forward(plan, x, 2, 1, positions=True)
    _, indices = poolkit.pool_with_indices(x[..., 0], window, "max")
    grad = np.random.default_rng(1).standard_normal(out.shape).astype("float32")
    want = np.zeros((2, length), dtype="float32")
    for line in range(2):
        np.add.at(want[line], indices[line], grad[line, :, 0])
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(scattered(plan, grad, codes, threads)[..., 0], want)


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
