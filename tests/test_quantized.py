"""Pooling of quantized values: against exact fractions, between paths, and other runtimes."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from examples import SHAPES, WINDOWS
from hypothesis import given
from hypothesis import strategies as st
from oracle import positions_of
from test_oracle import WALKS

import poolkit
from poolkit import quantized
from poolkit.dtypes import DTYPES
from poolkit.plan import plan_for
from poolkit.quantized import QParams
from poolkit.quantized.params import ROUNDINGS
from poolkit.quantized.requantization import Requantization, plan_quantized, requantize
from poolkit.reductions import Mean, Reduction, Sum
from poolkit.reference import pool_reference, requantize_reference
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window

QUANTIZED = ["int8", "uint8"]
ISAS = poolkit.info()["available"]
MEANS: list[Reduction] = [
    Mean(),
    Mean(count_include_pad=False),
    Mean(divisor=6),
    Mean(divisor=-2),
    Sum(),
]
# The same parameters; scales a power of two apart; ones with ties; ones without; far apart.
SCALES = [(0.1, 0.1), (0.25, 0.5), (3.0, 2.0), (0.3, 0.1), (0.1, 0.0713), (1e-3, 7.0), (9.0, 1e-4)]


def codes(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    low, high = quantized.params.DTYPES[dtype]
    return np.random.default_rng(sum(shape)).integers(low, high + 1, shape).astype(dtype)


def zero_points(dtype: str) -> tuple[int, int]:
    return (-17, 9) if dtype == "int8" else (111, 3)


# --- against exact fractions ----------------------------------------------------------------------


@cache
def seen(axes: int, window: Window, dtype: str) -> np.ndarray:
    """(sum, positions inside, positions with the padding) of each window of the codes."""

    def counted(values: list[Any], padded: int) -> tuple[int, int, int]:
        return sum(int(v) for v in values), len(values), padded

    return pool_reference(
        codes(SHAPES[axes], dtype), positions_of(window, SHAPES[axes][2:]), counted
    )


def by_oracle(
    axes: int, window: Window, reduction: Reduction, dtype: str, to: Requantization
) -> np.ndarray:
    if window.joined:
        grids = [by_oracle(axes, grid, reduction, dtype, to) for grid in window.grids()]
        return np.concatenate([grid.reshape(*grid.shape[:2], -1) for grid in grids], axis=2)
    windows = seen(axes, window, dtype)
    flat = []
    for total, inside, padded in windows.ravel():
        divisor = 1
        if isinstance(reduction, Mean):
            divisor = reduction.divisor or (padded if reduction.count_include_pad else inside)
        real = (total - inside * to.zero_point) * Fraction(to.scale)
        flat.append(
            requantize_reference(real, divisor, to.out_scale, to.out_zero_point, to.rounding, dtype)
        )
    return np.array(flat).astype(dtype).reshape(windows.shape)


@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_against_exact_fractions(axes: int, window: Window, dtype: str) -> None:
    """Every rounding, divisor and pair of scales, in both layouts."""
    q, (zero, out_zero) = codes(SHAPES[axes], dtype), zero_points(dtype)
    behind = np.moveaxis(q, 1, -1)
    every = list(itertools.product(MEANS, ROUNDINGS, SCALES))
    for place, (reduction, rounding, (scale, out_scale)) in enumerate(every):
        if (place + axes) % 3:  # a third of them for each window
            continue
        to = Requantization(scale, zero, out_scale, out_zero, rounding)
        want = by_oracle(axes, window, reduction, dtype, to)
        options: dict[str, Any] = {
            "qparams": QParams(scale, zero),
            "out_qparams": QParams(out_scale, out_zero),
            "rounding": rounding,
            "ndim": axes,
        }
        got = quantized.pool(q, window, reduction, **options)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want, f"{reduction} {to}")
        got = quantized.pool(behind, window, reduction, channels_last=True, **options)
        np.testing.assert_array_equal(np.moveaxis(got, -1, 1), want, f"{reduction} {to}")


def test_the_reference_rounds_as_it_says() -> None:
    def rounded(value: float, rounding: str) -> int:
        return requantize_reference(Fraction(value), 1, 1.0, 0, rounding, "int8")

    table = {
        "half_even": [-2, -2, 0, 0, 2, 2],
        "half_away": [-3, -2, -1, 1, 2, 3],
        "half_up": [-2, -1, 0, 1, 2, 3],
        "floor": [-3, -2, -1, 0, 1, 2],
        "trunc": [-2, -1, 0, 0, 1, 2],
    }
    for rounding, want in table.items():
        assert [rounded(v, rounding) for v in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)] == want
    assert requantize_reference(Fraction(900), 3, 1.0, 5, "floor", "int8") == 127
    assert requantize_reference(Fraction(-9), 3, 1.0, 1, "floor", "uint8") == 0
    assert requantize_reference(Fraction(-9), 0, 1.0, 1, "floor", "uint8") == 1


scales = st.one_of(
    st.floats(0.001, 10),
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 0.0078125, 1 / 3]),
    st.sampled_from([5e-324, 2.0**-1040, 1e-300, 1e-30, 1e30, 1e300, 1.7e308]),
)


@given(
    values=st.lists(st.integers(-128, 127), min_size=1, max_size=40),
    scale=scales,
    out_scale=scales,
    zero=st.integers(-128, 127),
    out_zero=st.integers(-128, 127),
    rounding=st.sampled_from(ROUNDINGS),
    divisor=st.one_of(
        st.none(),
        st.integers(1, 40),
        st.integers(-40, -1),
        st.sampled_from([2**31 + 1, 2**53, -(2**53)]),
    ),
    times=st.integers(1, 5),
)
def test_any_numbers(
    values: list[int],
    scale: float,
    out_scale: float,
    zero: int,
    out_zero: int,
    rounding: str,
    divisor: int | None,
    times: int,
) -> None:
    """Scales of any size, ties and all but ties: the result is that of the exact number, for sums
    in 16 bits and in 32, and by whole arrays."""
    to = Requantization(scale, zero, out_scale, out_zero, rounding)
    for row in (values, values * times, values * (1 + 129 // len(values))):
        q = np.array([row], dtype=np.int8)
        real = sum(v - zero for v in row) * Fraction(scale)
        n = divisor if divisor is not None else len(row)
        want = requantize_reference(real, n, out_scale, out_zero, rounding, "int8")
        plan = plan_quantized(Global(), Mean(divisor=divisor), q.shape[1:], "int8", to)
        assert plan.native is not None
        out = np.zeros((1, 1), dtype=np.int8)
        plan.native.forward(q.ctypes.data, out.ctypes.data, 0, 1, 1, 1)
        assert out.item() == want
        assert requantize(poolkit.pool(q, Global(), "sum", ndim=1), plan).item() == want


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("positions", [2, 3, 4, 5, 6, 7, 9, 12, 25, 49, 64, 125, 128, 129, 300])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 1.5])
def test_every_sum_of_a_window(rounding: str, positions: int, ratio: float) -> None:
    """All sums that windows of a size can have, so that no tie is left out."""
    reached = np.arange(-128 * positions, 127 * positions + 1, max(positions // 16, 1))
    low = reached // positions
    rest = reached - low * positions
    q = low[:, None] + (np.arange(positions) < rest[:, None])
    assert (q.sum(axis=1) == reached).all()
    got = quantized.pool(
        q.astype(np.int8), Global(), "mean", qparams=QParams(0.1 * ratio, 0),
        out_qparams=QParams(0.1, 1), rounding=rounding, ndim=1,
    )  # fmt: skip
    unit = Fraction(0.1 * ratio)
    want = [
        requantize_reference(int(total) * unit, positions, 0.1, 1, rounding, "int8")
        for total in reached
    ]
    np.testing.assert_array_equal(got[:, 0], want)


# --- between paths --------------------------------------------------------------------------------


def run_walk(case: str, reduction: Reduction, dtype: str, to: Requantization, threads: int) -> Any:
    shape, inner, window = WALKS[case]
    plan = plan_quantized(window, reduction, shape, dtype, to)
    q = codes((3, *shape, inner), dtype)
    out = np.empty((3, *plan.plan.output, inner), dtype=dtype)
    assert plan.native is not None
    plan.native.forward(q.ctypes.data, out.ctypes.data, 0, 3, inner, threads)
    return q, plan, out


@pytest.mark.usefixtures("keep_settings")
@pytest.mark.parametrize("case", WALKS)
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_every_walk(case: str, dtype: str) -> None:
    """Whatever the shape makes the kernels do, on every instruction set and any number of threads,
    the result is that of whole arrays."""
    zero, out_zero = zero_points(dtype)
    for reduction, (scale, out_scale), rounding in (
        (Mean(), (0.1, 0.1), "half_even"),
        (Mean(count_include_pad=False), (0.1, 0.1), "half_away"),
        (Mean(), (0.3, 0.1), "half_even"),
        (Mean(), (0.1, 0.0123), "floor"),
    ):
        to = Requantization(scale, zero, out_scale, out_zero, rounding)
        q, plan, want = run_walk(case, reduction, dtype, to, 1)
        native = plan_for(plan.plan.window, Sum(), plan.plan.shape, dtype).native
        assert native is not None
        total = np.empty(want.shape, dtype=np.int64)
        native.forward(q.ctypes.data, total.ctypes.data, 0, 3, want.shape[-1], 1)
        np.testing.assert_array_equal(requantize(total, plan, channels_last=True), want)
        for isa in ISAS:
            poolkit.use_isa(isa)
            for threads in (1, 3):
                _, _, out = run_walk(case, reduction, dtype, to, threads)
                np.testing.assert_array_equal(out, want, f"{isa} {threads}")


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("positions", [127, 128, 129, 8_421_503, 8_421_507])
def test_no_sum_overflows(dtype: str, positions: int) -> None:
    """The largest sums of both signs, at the sizes where 16 and 32 bits end."""
    low, high = quantized.params.DTYPES[dtype]
    for value, zero in ((low, high), (high, low)):
        q = np.full((1, positions), value, dtype=dtype)
        qparams = QParams(0.1, zero)
        got = quantized.pool(q, Global(), "mean", qparams=qparams, ndim=1)
        assert got.item() == value
        behind = quantized.pool(
            q[..., None], Global(), "mean", qparams=qparams, ndim=1, channels_last=True
        )
        assert behind.item() == value


def test_native_kernels_are_used() -> None:
    to = Requantization(0.1, 0, 0.1, 0, "half_even")
    for shape in ((20,), (9, 9), (5, 6, 7)):
        assert plan_quantized(Sliding(2), Mean(), shape, "int8", to).native is not None
    assert plan_quantized(Sliding(2), Mean(), (4, 4, 4, 4), "int8", to).native is None
    assert plan_quantized(Global(), Mean(), (2**31 // 255 + 1,), "int8", to).native is None


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize(
    "window", [Sliding(3, 2, ceil_mode=True), Adaptive((3, 5)), Global(), Pyramid((3, 1))], ids=str
)
def test_a_constant_map_stays_constant(dtype: str, window: Window) -> None:
    for value in quantized.params.DTYPES[dtype]:
        q = np.full((1, 2, 6, 8), value, dtype=dtype)
        got = quantized.pool(q, window, "mean", qparams=QParams(0.3, 7))
        assert (got == value).all()


def test_padding_stands_for_zero() -> None:
    q = np.full((1, 1, 2, 2), 50, dtype=np.uint8)
    counted = quantized.avg_pool2d(q, 2, 2, 1, qparams=QParams(1.0, 10))
    np.testing.assert_array_equal(counted, np.full((1, 1, 2, 2), 20))  # (40 + 0 + 0 + 0) / 4
    own = quantized.avg_pool2d(q, 2, 2, 1, count_include_pad=False, qparams=QParams(1.0, 10))
    np.testing.assert_array_equal(own, np.full((1, 1, 2, 2), 50))
    nothing = quantized.pool(
        q, Sliding(2, padding=((2, 2), (2, 2))), Mean(False), qparams=QParams(1.0, 10)
    )
    assert nothing[0, 0, 0, 0] == 10


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_max_and_min_are_exact(dtype: str) -> None:
    """Stored values; padding never wins."""
    low, high = quantized.params.DTYPES[dtype]
    for axes, shape in ((1, (2, 3, 13)), (2, (2, 3, 9, 8)), (3, (2, 3, 5, 6, 7))):
        q = codes(shape, dtype)
        for kind in ("max", "min"):
            sliding = getattr(quantized, f"{kind}_pool{axes}d")
            plain = getattr(poolkit, f"{kind}_pool{axes}d")
            for arguments in ((2,), (3, 2, 1), (3, 1, 1, 2), (2, 2, 0, 1, True)):
                np.testing.assert_array_equal(sliding(q, *arguments), plain(q, *arguments))
            extreme = low if kind == "max" else high
            worst = np.full(shape, extreme, dtype=dtype)
            assert (sliding(worst, 3, 2, 1) == extreme).all()
            outside = quantized.pool(worst, Sliding(2, padding=((3, 3),) * axes), kind)
            assert (outside == extreme).all()
        for name in ("adaptive_max", "global_max"):
            sizes = (3,) if name == "adaptive_max" else ()
            ours = getattr(quantized, f"{name}_pool{axes}d")(q, *sizes)
            np.testing.assert_array_equal(ours, getattr(poolkit, f"{name}_pool{axes}d")(q, *sizes))
            assert ours.dtype == dtype
    flat = quantized.global_max_pool2d(codes((2, 3, 4, 4), dtype), keepdim=False)
    assert flat.shape == (2, 3)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_names_are_short_for_pool(axes: int, dtype: str) -> None:
    q = codes(SHAPES[axes], dtype)
    options: dict[str, Any] = {
        "qparams": QParams(0.1, zero_points(dtype)[0]),
        "out_qparams": QParams(0.07, zero_points(dtype)[1]),
        "rounding": "half_up",
    }
    average = getattr(quantized, f"avg_pool{axes}d")
    adaptive = getattr(quantized, f"adaptive_avg_pool{axes}d")
    whole = getattr(quantized, f"global_avg_pool{axes}d")
    for made, window, reduction in (
        (average(q, 3, 2, 1, **options), Sliding(3, 2, 1), Mean()),
        (average(q, 2, count_include_pad=False, **options), Sliding(2), Mean(False)),
        (average(q, 2, ceil_mode=True, **options), Sliding(2, ceil_mode=True), Mean()),
        (adaptive(q, 3, **options), Adaptive(3), Mean()),
        (whole(q, **options), Global(), Mean()),
    ):
        want = quantized.pool(q, window, reduction, ndim=axes, **options)
        np.testing.assert_array_equal(made, want)
    assert whole(q, keepdim=False, **options).shape == q.shape[:2]
    if axes > 1:
        divided = average(q, 2, divisor_override=3, **options)
        want = quantized.pool(q, Sliding(2), Mean(divisor=3), ndim=axes, **options)
        np.testing.assert_array_equal(divided, want)


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize(("scale", "out_scale"), SCALES)
def test_close_to_a_pooling_of_real_values(dtype: str, scale: float, out_scale: float) -> None:
    """Dequantize, pool in floating point, quantize: one step apart at most, and only at ties."""
    zero, out_zero = zero_points(dtype)
    q = codes((2, 5, 20, 21), dtype)
    qparams, out_qparams = QParams(scale, zero), QParams(out_scale, out_zero)
    real = poolkit.avg_pool2d(quantized.dequantize(q, qparams), 3, 2, 1)
    by_float = quantized.quantize(real, out_qparams, dtype)
    ours = quantized.avg_pool2d(q, 3, 2, 1, qparams=qparams, out_qparams=out_qparams)
    steps = poolkit.avg_pool2d(quantized.dequantize(q, qparams, "float64"), 3, 2, 1) / out_scale
    assert_close_but_at_ties(ours, by_float, steps)


def assert_close_but_at_ties(ours: np.ndarray, theirs: np.ndarray, steps: np.ndarray) -> None:
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    tie = np.abs(np.abs(steps - np.rint(steps)) - 0.5) < 1e-4
    assert (apart <= 1).all()
    assert (tie | (apart == 0)).all()


def test_that_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_close_but_at_ties(np.array([3]), np.array([4]), np.array([3.4]))
    assert_close_but_at_ties(np.array([3]), np.array([4]), np.array([3.5]))


# --- other runtimes -------------------------------------------------------------------------------


def run_onnx(
    op: str, q: np.ndarray, parameters: tuple[QParams, QParams] | None, **attributes: Any
) -> np.ndarray:
    """One operator of ONNX Runtime: of its own domain with parameters, of ONNX without."""
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    helper, proto = onnx.helper, onnx.TensorProto
    element = {"int8": proto.INT8, "uint8": proto.UINT8}[q.dtype.name]
    inputs, constants = ["x"], []
    for place, qparams in enumerate(parameters or ()):
        inputs += [f"scale{place}", f"zero{place}"]
        constants += [
            helper.make_tensor(inputs[-2], proto.FLOAT, [], [qparams.scale]),
            helper.make_tensor(inputs[-1], element, [], [qparams.zero_point]),
        ]
    domain = "com.microsoft" if parameters else ""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain, **attributes)],
        "pooling",
        [helper.make_tensor_value_info("x", element, q.shape)],
        [helper.make_tensor_value_info("y", element, None)],
        constants,
    )
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": q})
    return y


def float32(scale: float) -> float:
    return float(np.float32(scale))


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize(("scale", "out_scale"), SCALES[:5])
@pytest.mark.parametrize("include", [True, False])
def test_against_the_average_of_onnx_runtime(
    dtype: str, scale: float, out_scale: float, include: bool
) -> None:
    zero, out_zero = zero_points(dtype)
    q = codes((2, 3, 13, 14), dtype)
    qparams, out_qparams = QParams(float32(scale), zero), QParams(float32(out_scale), out_zero)
    theirs = run_onnx(
        "QLinearAveragePool", q, (qparams, out_qparams), kernel_shape=[3, 3], strides=[2, 2],
        pads=[1, 1, 1, 1], count_include_pad=int(include),
    )  # fmt: skip
    options: dict[str, Any] = {"count_include_pad": include}
    ours = quantized.avg_pool2d(q, 3, 2, 1, qparams=qparams, out_qparams=out_qparams, **options)
    real = quantized.dequantize(q, qparams, "float64")
    steps = poolkit.avg_pool2d(real, 3, 2, 1, **options) / out_qparams.scale
    assert_close_but_at_ties(ours, theirs, steps)

    theirs = run_onnx("QLinearGlobalAveragePool", q, (qparams, out_qparams), channels_last=0)
    ours = quantized.global_avg_pool2d(q, qparams=qparams, out_qparams=out_qparams)
    steps = real.mean(axis=(2, 3), keepdims=True) / out_qparams.scale
    assert_close_but_at_ties(ours, theirs, steps)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_against_the_maximum_of_onnx_runtime(dtype: str) -> None:
    q = codes((2, 3, 13, 14), dtype)
    theirs = run_onnx(
        "MaxPool", q, None, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1
    )
    np.testing.assert_array_equal(quantized.max_pool2d(q, 3, 2, 1, ceil_mode=True), theirs)


def test_where_onnx_runtime_is_wrong() -> None:
    """What hangs over the end in ceil_mode is no position: a constant map stays constant. ONNX
    Runtime divides by the whole window. (Should this fail, it was mended: say so in the docs.)"""
    q = np.full((1, 1, 4, 4), 10, dtype=np.uint8)
    one = QParams(1.0, 0)
    ours = quantized.avg_pool2d(q, 3, 2, ceil_mode=True, qparams=one)
    np.testing.assert_array_equal(ours, np.full((1, 1, 2, 2), 10))
    theirs = run_onnx(
        "QLinearAveragePool", q, (one, one), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
        count_include_pad=1,
    )  # fmt: skip
    np.testing.assert_array_equal(theirs[0, 0], [[10, 7], [7, 4]])  # 40 / 9 in the corner


# --- parameters, and to and from real numbers -----------------------------------------------------


@given(
    low=st.floats(-1e30, 1e30),
    high=st.floats(-1e30, 1e30),
    dtype=st.sampled_from(QUANTIZED),
    symmetric=st.booleans(),
)
def test_parameters_of_a_range(low: float, high: float, dtype: str, symmetric: bool) -> None:
    """0 is exact, and both ends are within half a step of a value."""
    low, high = min(low, high), max(low, high)
    qparams = QParams.from_range(low, high, dtype, symmetric=symmetric)
    ends = np.array([min(low, 0.0), 0.0, max(high, 0.0)])
    q = quantized.quantize(ends, qparams, dtype)
    back = quantized.dequantize(q, qparams, "float64")
    assert back[1] == 0
    assert (np.abs(back - ends) <= 0.5001 * qparams.scale).all()
    if symmetric:
        assert qparams.zero_point == (0 if dtype == "int8" else 128)


def test_parameters_of_unusual_ranges() -> None:
    assert QParams.from_range(0.0, 0.0, "uint8") == QParams(1.0, 0)
    assert QParams.from_range(0.0, 0.0, "int8", symmetric=True) == QParams(1.0, 0)
    assert math.isfinite(QParams.from_range(-1.7e308, 1.7e308).scale)
    assert QParams.from_range(0.0, 5e-324).scale > 0
    assert QParams.from_range(2.0, 4.0, "uint8") == QParams(4 / 255, 0)
    x = np.array([[-1.0, 3.0]], dtype=np.float32)
    assert QParams.from_array(x) == QParams.from_range(-1.0, 3.0)
    assert QParams(np.float32(0.1), np.int8(-3)) == QParams(float32(0.1), -3)
    assert QParams(2) == QParams(2.0, 0)


@given(
    x=st.floats(-300, 300),
    scale=st.sampled_from([0.5, 1.0, 2.0, 0.1]),
    zero=st.integers(0, 127),
    dtype=st.sampled_from(QUANTIZED),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_quantize_against_the_reference(
    x: float, scale: float, zero: int, dtype: str, rounding: str
) -> None:
    steps = Fraction(x / scale)  # one division, rounded to float64, as the docs say
    want = requantize_reference(steps, 1, 1.0, zero, rounding, dtype)
    got = quantized.quantize(np.array(x), QParams(scale, zero), dtype, rounding=rounding)
    assert got.item() == want


def test_quantize_of_ties_and_of_what_is_no_number() -> None:
    x = np.array([-2.5, -0.5, 0.5, 1.5, np.nan, np.inf, -np.inf, 1e300])
    for rounding, want in (
        ("half_even", [-2, 0, 0, 2]),
        ("half_away", [-3, -1, 1, 2]),
        ("half_up", [-2, 0, 1, 2]),
        ("floor", [-3, -1, 0, 1]),
        ("trunc", [-2, 0, 0, 1]),
    ):
        got = quantized.quantize(x, QParams(1.0, 0), rounding=rounding)
        assert got.dtype == np.int8
        assert got.tolist() == [*want, 0, 127, -128, 127]
    assert quantized.quantize(np.array([np.nan]), QParams(1.0, 7), "uint8").item() == 7


def test_there_and_back() -> None:
    for dtype in QUANTIZED:
        low, high = quantized.params.DTYPES[dtype]
        q = np.arange(low, high + 1).astype(dtype)
        for name in ("float32", "float64"):
            qparams = QParams(0.1, 5)
            real = quantized.dequantize(q, qparams, name)
            assert real.dtype == name
            want = [float((int(v) - 5) * 0.1) for v in q]
            np.testing.assert_array_equal(real, np.array(want).astype(name))
            np.testing.assert_array_equal(quantized.quantize(real, qparams, dtype), q)


# --- torch ----------------------------------------------------------------------------------------


QP = QParams(0.1, 3)
TO: dict[str, Any] = {"qparams": QP, "out_qparams": QParams(0.0625, 9)}


@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_torch_has_the_bits_of_numpy(axes: int, window: Window, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    q = codes(SHAPES[axes], dtype)
    for reduction in (Mean(), Mean(count_include_pad=False), Sum(), "max"):
        options = {} if reduction == "max" else TO
        want = quantized.pool(q, window, reduction, ndim=axes, **options)
        got = quantized.pool(torch.from_numpy(q), window, reduction, ndim=axes, **options)
        assert str(got.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(got.numpy(), want)
        behind = torch.from_numpy(np.moveaxis(q, 1, -1).copy())
        got = quantized.pool(behind, window, reduction, ndim=axes, channels_last=True, **options)
        np.testing.assert_array_equal(np.moveaxis(got.numpy(), -1, 1), want)
        strange = torch.from_numpy(q).transpose(0, -1).contiguous().transpose(0, -1)
        got = quantized.pool(strange, window, reduction, ndim=axes, **options)
        np.testing.assert_array_equal(got.numpy(), want)


def test_torch_memory_formats() -> None:
    torch = pytest.importorskip("torch")
    for axes, memory_format in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        q = torch.from_numpy(codes((2, 5, *(9,) * axes), "int8"))
        behind = q.contiguous(memory_format=memory_format)
        got = quantized.pool(behind, Sliding(3, 2, 1), "mean", ndim=axes, **TO)
        assert got.is_contiguous(memory_format=memory_format)
        assert torch.equal(got, quantized.pool(q, Sliding(3, 2, 1), "mean", ndim=axes, **TO))


def test_torch_compile_and_export() -> None:
    torch = pytest.importorskip("torch")

    def model(q: Any) -> Any:
        pooled = quantized.avg_pool2d(q, 3, 2, 1, qparams=QP)
        pooled = quantized.max_pool2d(pooled, 2)
        return quantized.global_avg_pool2d(pooled, **TO), quantized.pool(
            q, Pyramid((2, 1)), "mean", **TO
        )

    class Model(torch.nn.Module):
        def forward(self, q: Any) -> Any:
            return model(q)

    q = torch.from_numpy(codes((2, 3, 17, 18), "uint8"))
    want = model(q)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Model(), (q,), strict=False).module()
    for got in (compiled(q), exported(q)):
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
    behind = q.contiguous(memory_format=torch.channels_last)
    assert torch.equal(compiled(behind)[0], want[0])


def test_torch_operator_is_well_formed() -> None:
    torch = pytest.importorskip("torch")
    q = torch.from_numpy(codes((2, 3, 7, 8), "int8"))
    run = torch.ops.poolkit.quantized_pool.default
    quantized.pool(q, Sliding(2), "mean", **TO)  # registers it
    arguments = ("Sliding(3, stride=2, padding=1)", "Mean()", 2, 0.1, 3, 0.0625, 9, "half_even")
    for laid_out in (q, q.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(run, (laid_out, *arguments))
    fake = run(q.to("meta"), *arguments)
    assert fake.shape == (2, 3, 4, 4)
    assert fake.dtype == torch.int8
    stacked = torch.stack([q, q.flip(0)], dim=1)
    mapped = torch.vmap(lambda one: quantized.pool(one, Sliding(2), "mean", ndim=2, **TO), 1)(
        stacked
    )
    assert torch.equal(mapped[0], quantized.pool(q, Sliding(2), "mean", **TO))
    assert torch.equal(mapped[1], quantized.pool(q.flip(0), Sliding(2), "mean", **TO))


def test_torch_to_and_from_real_numbers() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32) * 9
    x[0, :3] = np.nan, np.inf, -np.inf
    for dtype in QUANTIZED:
        for rounding in ROUNDINGS:
            want = quantized.quantize(x, QP, dtype, rounding=rounding)
            got = quantized.quantize(torch.from_numpy(x), QP, dtype, rounding=rounding)
            np.testing.assert_array_equal(got.numpy(), want)
        for name in ("float32", "float64", "float16"):
            real = quantized.dequantize(torch.from_numpy(want), QP, name)
            np.testing.assert_array_equal(real.numpy(), quantized.dequantize(want, QP, name))
        assert quantized.dequantize(got, QP, "bfloat16").dtype == torch.bfloat16
    assert QParams.from_array(torch.tensor([-1.0, 3.0])) == QParams.from_range(-1.0, 3.0)


@pytest.mark.filterwarnings("ignore")  # torch says that its quantized tensors will go
def test_a_quantized_tensor_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    made = torch.quantize_per_tensor(x, 0.1, 3, torch.qint8)
    with pytest.raises(poolkit.PoolTypeError) as caught:
        quantized.avg_pool2d(made, 2, qparams=QP)
    assert "a quantized tensor carries its parameters with it" in str(caught.value)
    assert "Pass q.int_repr() with QParams(q.q_scale(), q.q_zero_point())." in str(caught.value)
    for call in (quantized.max_pool2d, lambda q, k: quantized.pool(q, Sliding(k))):
        with pytest.raises(poolkit.PoolTypeError, match=r"int_repr"):
            call(made, 2)
    qparams = QParams(made.q_scale(), made.q_zero_point())
    pooled = quantized.avg_pool2d(made.int_repr(), 2, qparams=qparams)
    theirs = torch.nn.functional.avg_pool2d(made, 2).int_repr()
    assert (pooled.int() - theirs.int()).abs().max() <= 1


# --- errors ---------------------------------------------------------------------------------------

Q = np.zeros((1, 1, 4, 4), dtype=np.int8)
WHERE = "while pooling int8 (1, 1, 4, 4) with Sliding(2) and Mean()."


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: quantized.avg_pool2d(Q.astype("f4"), 2, qparams=QP),
            poolkit.PoolTypeError,
            "quantized values are int8 or uint8, not float32, while pooling float32 (1, 1, 4, 4) "
            "with Sliding(2) and Mean(). Make them with poolkit.quantized.quantize, or pool real "
            "values with poolkit.pool.",
        ),
        (
            lambda: quantized.max_pool2d(Q.astype("i2"), 2),
            poolkit.PoolTypeError,
            "quantized values are int8 or uint8, not int16, while pooling int16 (1, 1, 4, 4) with "
            "Sliding(2) and Max(). Make them with poolkit.quantized.quantize, or pool real values "
            "with poolkit.pool.",
        ),
        (
            lambda: quantized.pool(Q, Sliding(2), "mean"),
            poolkit.PoolTypeError,
            f"qparams must be QParams, got None, {WHERE} Write QParams(scale, zero_point).",
        ),
        (
            lambda: quantized.avg_pool2d(Q, 2, qparams=QP, out_qparams=0.1),
            poolkit.PoolTypeError,
            f"out_qparams must be QParams, got 0.1, {WHERE} Write QParams(scale, zero_point).",
        ),
        (
            lambda: quantized.avg_pool2d(Q, 2, qparams=QParams(0.1, 128)),
            poolkit.PoolValueError,
            f"zero_point 128 is not a value of int8, {WHERE} Give one between -128 and 127.",
        ),
        (
            lambda: quantized.avg_pool2d(Q.view("u1"), 2, qparams=QP, out_qparams=QParams(1, -1)),
            poolkit.PoolValueError,
            "zero_point -1 is not a value of uint8, while pooling uint8 (1, 1, 4, 4) with "
            "Sliding(2) and Mean(). Give one between 0 and 255.",
        ),
        (
            lambda: quantized.avg_pool2d(Q, 2, qparams=QP, rounding="up"),
            poolkit.PoolValueError,
            f"there is no rounding 'up', {WHERE} Write one of half_even, half_away, half_up, "
            "floor, trunc.",
        ),
        (
            lambda: quantized.pool(Q, Sliding(2), "max", qparams=QP, out_qparams=QParams(1.0)),
            poolkit.PoolValueError,
            "Max() picks stored values, which keep their parameters, while pooling int8 "
            "(1, 1, 4, 4) with Sliding(2) and Max(). Give the same out_qparams, or none.",
        ),
        (
            lambda: quantized.pool(Q, Sliding(2), "median", qparams=QP),
            poolkit.PoolTypeError,
            "Median() of quantized values has no meaning here, while pooling int8 (1, 1, 4, 4) "
            "with Sliding(2) and Median(). Use Max, Min, Mean or Sum, or dequantize the values "
            "first.",
        ),
        (
            lambda: quantized.avg_pool2d(Q, 9, qparams=QP),
            poolkit.PoolValueError,
            "a window of 9 positions does not fit axis 0 of spatial shape (4, 4) with padding "
            "(0, 0), while pooling int8 (1, 1, 4, 4) with Sliding(9) and Mean(). Use a smaller "
            "kernel, more padding, or an adaptive window.",
        ),
        (
            lambda: QParams(0.0),
            poolkit.PoolValueError,
            "scale must be above 0 and finite, got 0.0. Give a number above 0.",
        ),
        (
            lambda: QParams(math.nan),
            poolkit.PoolValueError,
            "scale must be above 0 and finite, got nan. Give a number above 0.",
        ),
        (
            lambda: QParams("1"),
            poolkit.PoolTypeError,
            "scale must be a number, got '1'. Give a number above 0.",
        ),
        (
            lambda: QParams(0.1, 1.0),
            poolkit.PoolTypeError,
            "zero_point must be an integer, got 1.0. Give an integer.",
        ),
        (
            lambda: QParams.from_range(1.0, 0.0),
            poolkit.PoolValueError,
            "a range from 1.0 to 0.0 cannot be quantized. Give two finite numbers, the lower one "
            "first.",
        ),
        (
            lambda: QParams.from_array(np.array([np.nan, 1.0])),
            poolkit.PoolValueError,
            "a range from nan to nan cannot be quantized. Give two finite numbers, the lower one "
            "first.",
        ),
        (
            lambda: QParams.from_array(np.zeros((0,))),
            poolkit.PoolValueError,
            "an array without elements has no range. Use from_range.",
        ),
        (
            lambda: quantized.quantize(np.zeros(3), QP, "int16"),
            poolkit.PoolTypeError,
            "quantized values are int8 or uint8, not 'int16'. Write 'int8' or 'uint8'.",
        ),
        (
            lambda: quantized.dequantize(Q, QP, "int32"),
            poolkit.PoolTypeError,
            "'int32' is no floating dtype. Write 'float32'.",
        ),
        (
            lambda: quantized.dequantize(Q, QP, "bfloat16"),
            poolkit.PoolTypeError,
            "NumPy has no bfloat16. Write 'float32'.",
        ),
    ],
)  # fmt: skip
def test_messages(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


def test_the_dtypes_are_those_of_the_table() -> None:
    for name, (low, high) in quantized.params.DTYPES.items():
        assert DTYPES[name].size == 1
        assert (low, high) == (np.iinfo(name).min, np.iinfo(name).max)
