"""Every reduction with every window, dtype and layout, against the oracle."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from examples import REDUCTION_EXAMPLES, REDUCTIONS, SHAPES, WINDOW_EXAMPLES, WINDOWS
from oracle import (
    assert_agrees,
    expect,
    locate_by_oracle,
    numbers_of,
    pool_by_oracle,
    positions_of,
)

import poolkit
from poolkit.composite import composite, composite_indices
from poolkit.dtypes import DTYPES
from poolkit.plan import plan_for
from poolkit.reductions import Max, Mean, Min, Reduction, Sum, as_reduction
from poolkit.reference import reduce_reference
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window, as_window

NUMPY_DTYPES = [name for name in DTYPES if name != "bfloat16"]


def test_every_registered_class_has_examples() -> None:
    """What is registered, poolkit's own or not, is tested."""
    assert set(poolkit.reductions.REDUCTIONS.values()) == set(REDUCTION_EXAMPLES)
    assert set(poolkit.windows.WINDOWS.values()) == set(WINDOW_EXAMPLES)
    for kind, examples in REDUCTION_EXAMPLES.items():
        assert examples
        assert all(type(example) is kind for example in examples)


def values(axes: int, kind: str) -> np.ndarray:
    """Small whole numbers with many ties: exact in every dtype, and so are their sums."""
    low, high = {"signed": (-4, 5), "unsigned": (0, 8), "bool": (0, 2)}[kind]
    return np.random.default_rng(axes).integers(low, high, SHAPES[axes])


def kind_of(dtype: str) -> str:
    return "bool" if dtype == "bool" else "unsigned" if dtype.startswith("u") else "signed"


@cache
def answer(axes: int, window: Window, reduction: Reduction, kind: str) -> np.ndarray:
    x = values(axes, kind)
    return pool_by_oracle(x.astype(bool) if kind == "bool" else x, window, reduction)


def as_told(reduction: Reduction, dtype: str) -> Reduction:
    """The oracle is given whole numbers, which it takes for integers; "same" rounds only those."""
    if isinstance(reduction, Mean) and DTYPES[dtype].kind != "int":
        return dataclasses.replace(reduction, result="float")
    return reduction


def as_dtype(x: np.ndarray, dtype: str) -> Any:
    if dtype != "bfloat16":
        return x.astype(dtype)
    torch = pytest.importorskip("torch")
    return torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)


def to_last(x: Any) -> Any:
    """Channels behind."""
    return np.moveaxis(x, 1, -1) if isinstance(x, np.ndarray) else x.movedim(1, -1)


def to_first(x: Any) -> Any:
    return np.moveaxis(x, -1, 1) if isinstance(x, np.ndarray) else x.movedim(-1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
def test_agrees_with_the_oracle(axes: int, window: Window, dtype: str) -> None:
    """Channels in front and behind; through the native kernel where there is one, and through
    the composite path."""
    x = as_dtype(values(axes, kind_of(dtype)), dtype)
    for reduction in REDUCTIONS:
        want = answer(axes, window, as_told(reduction, dtype), kind_of(dtype))
        got = poolkit.pool(x, window, reduction)
        assert_agrees(got, want, reduction, dtype)
        last = poolkit.pool(to_last(x), window, reduction, channels_last=True, ndim=axes)
        assert_agrees(to_first(last), want, reduction, dtype)
        if not window.joined:
            plan = plan_for(window, reduction, SHAPES[axes][2:], dtype)
            if plan.native is not None:
                assert_agrees(composite(x, plan.axes, reduction), want, reduction, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
def test_positions_agree_with_the_oracle(axes: int, window: Window, dtype: str) -> None:
    x = values(axes, kind_of(dtype))
    if window.joined or plan_for(window, Max(), x.shape[2:], dtype).has_empty_windows:
        return  # refused: see test_errors.py
    for reduction in (Max(), Min()):
        want = locate_by_oracle(x, window, reduction)
        given = as_dtype(x, dtype)
        picked, found = poolkit.pool_with_indices(given, window, reduction)
        np.testing.assert_array_equal(numbers_of(found), want)
        assert_agrees(picked, answer(axes, window, reduction, kind_of(dtype)), reduction, dtype)
        _, behind = poolkit.pool_with_indices(
            to_last(given), window, reduction, channels_last=True, ndim=axes
        )
        np.testing.assert_array_equal(numbers_of(to_first(behind)), want)


# --- values of their own kind --------------------------------------------------------------------

SPECIAL = {
    "nan": [1, math.nan, 2, -math.nan],
    "infinities": [1, math.inf, 2, -math.inf],
    "minus infinity": [-math.inf, -math.inf, -math.inf, 3],
    "zeros": [-0.0, 0.0, 0.0, -0.0],
    "minus zeros": [-0.0],
    "zeros and a tie": [0.0, -0.0, -1.0, -1.0],
}


def special(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(len(kind))
    ordinary = rng.integers(-3, 4, shape).astype(np.float64)
    picked = rng.choice(np.array(SPECIAL[kind]), shape)
    return (
        picked
        if "zeros" in kind or "minus" in kind
        else np.where(rng.random(shape) < 0.2, picked, ordinary)
    )


@cache
def special_answer(kind: str, axes: int, window: Window, reduction: Reduction) -> np.ndarray:
    return pool_by_oracle(special(kind, SHAPES[axes]), window, reduction)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_values(kind: str, dtype: str) -> None:
    """NaN, infinities, signed zeros and ties, in every window of 1 and 2 axes."""
    for axes, window in WINDOWS:
        if axes > 2:
            continue
        x = as_dtype(special(kind, SHAPES[axes]), dtype)
        for reduction in REDUCTIONS:
            want = special_answer(kind, axes, window, reduction)
            assert_agrees(poolkit.pool(x, window, reduction), want, reduction, dtype)
            last = poolkit.pool(to_last(x), window, reduction, channels_last=True, ndim=axes)
            assert_agrees(to_first(last), want, reduction, dtype)
            if not window.joined:
                plan = plan_for(window, reduction, SHAPES[axes][2:], dtype)
                assert_agrees(composite(x, plan.axes, reduction), want, reduction, dtype)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "window", [Sliding(5, stride=1), Sliding(9, stride=2, padding=4), Global()], ids=str
)
def test_positions_of_special_values(kind: str, window: Window) -> None:
    """The first of equal values; the last NaN, as torch has it."""
    x = special(kind, (2, 2, 40))
    for reduction in (Max(), Min()):
        want = locate_by_oracle(x, window, reduction)
        for dtype in ("float64", "float32", "float16"):
            _, found = poolkit.pool_with_indices(x.astype(dtype), window, reduction)
            np.testing.assert_array_equal(found, want)
            spans = window.axes((40,))
            np.testing.assert_array_equal(
                composite_indices(x.astype(dtype), spans, reduction), want
            )


# --- every way through the kernels ---------------------------------------------------------------

# (spatial shape, channels behind or 1, window): what it exercises.
WALKS = {
    "stride 1, few taps": ((50,), 1, Sliding(5, stride=1, padding=2)),
    "stride 1, doubling": ((50,), 1, Sliding(6, stride=1, padding=3)),
    "stride 1, doubling, dilated": ((120,), 1, Sliding(11, stride=1, padding=7, dilation=3)),
    "stride 1, doubling, long": ((700,), 1, Sliding(200, stride=1, padding=20)),
    "stride 2, one tap": ((41,), 1, Sliding(1, stride=2)),
    "stride 2, two taps": ((81,), 1, Sliding(2, stride=2)),
    "stride 2, three taps": ((81,), 1, Sliding(3, stride=2, padding=1)),
    "stride 2, even taps": ((81,), 1, Sliding(6, stride=2, padding=2)),
    "stride 2, odd taps": ((82,), 1, Sliding(7, stride=2, padding=3)),
    "stride 2, dilated": ((82,), 1, Sliding(4, stride=2, dilation=2)),
    "stride 3": ((100,), 1, Sliding(4, stride=3, padding=1)),
    "long spans": ((300,), 1, Sliding(70, stride=5, padding=9)),
    "long dilated spans": ((300,), 1, Sliding(60, stride=5, dilation=4, padding=2)),
    "one span": ((333,), 1, Global()),
    "bins that overlap": ((101,), 1, Adaptive(13)),
    "more bins than positions": ((9,), 1, Adaptive(31)),
    "narrower than a vector": ((3,), 1, Sliding(2, stride=1)),
    "longer than one piece of a line": ((9000,), 1, Sliding(3, stride=2, padding=1)),
    "a line whose gradient is cut": ((33000,), 1, Sliding(3, stride=2, padding=1)),
    "a line of bins whose gradient is cut": ((17000,), 1, Adaptive(3001)),
    "a long line with positions, clipped": ((5000,), 1, Sliding(3, stride=1, padding=1)),
    "rows and columns": ((20, 40), 1, Sliding(3, stride=2, padding=1)),
    "rows kept in a ring": ((40, 20), 1, Sliding((9, 3), stride=(1, 2), padding=(4, 1))),
    "rows dilated": ((40, 20), 1, Sliding((3, 3), stride=1, padding=(6, 1), dilation=(5, 1))),
    "more rows than one chain": ((90, 9), 1, Sliding((70, 2), stride=(3, 1))),
    "bins of rows": ((37, 23), 1, Adaptive((5, 4))),
    "one row of bins": ((37, 23), 1, Adaptive((1, 4))),
    "bins of small planes": ((6, 5), 1, Adaptive((4, 3))),
    "bins of rows too long to be turned": ((4, 600), 1, Adaptive((3, 70))),
    "rows at stride 5, clipped": ((23, 41), 1, Sliding((3, 7), stride=(2, 5), padding=(1, 3))),
    "rows at stride 2, dilated": ((11, 30), 1, Sliding(3, stride=2, padding=1, dilation=2)),
    "rows of long windows": ((5, 130), 1, Sliding((2, 50), stride=(1, 40))),
    "a plane": ((37, 23), 1, Global()),
    "a leading axis that changes nothing": ((6, 30), 1, Sliding((1, 4), stride=1)),
    "volumes": ((9, 10, 21), 1, Sliding(3, stride=2, padding=1)),
    "volumes kept in rings": ((9, 10, 21), 1, Sliding((5, 4, 3), stride=1, padding=(2, 1, 1))),
    "bins of volumes": ((9, 10, 21), 1, Adaptive((2, 3, 4))),
    "three channels": ((20, 20), 3, Sliding(3, stride=2, padding=1)),
    "a vector of channels": ((11, 12), 16, Sliding(3, stride=2, padding=1)),
    "70 channels": ((11, 12), 70, Sliding(2)),
    "channels, overlapping": ((15, 12), 16, Sliding(5, stride=1, padding=2)),
    "channels, one axis, overlapping": ((60,), 16, Sliding(26, stride=3)),
    "channels, one axis after a trivial one": ((3, 60), 5, Sliding((1, 20), stride=1)),
    "channels, disjoint bins": ((32, 32), 16, Adaptive(4)),
    "channels, overlapping bins": ((33, 31), 16, Adaptive(4)),
    "channels, a plane": ((40, 40), 16, Global()),
    "channels in pieces": ((13,), 2500, Global()),
    "channels, volumes": ((7, 8, 9), 5, Sliding(3, stride=2, padding=1)),
    "over 256 positions": ((400,), 1, Sliding(300, stride=1)),
    "over 256 positions, strided": ((900,), 1, Sliding(300, stride=7)),
    "over 256 positions in a plane": ((40, 50), 1, Sliding((20, 15), stride=3)),
    "over 256 positions, channels": ((40, 30), 3, Sliding((20, 15), stride=4)),
    "over 256 positions, channels in pieces": ((300,), 1100, Global()),
    "over 65536 positions": ((70000,), 1, Global()),
    "over 65536 positions in a plane": ((270, 260), 1, Sliding((260, 255), stride=(3, 2))),
    "over 65536 positions, channels": ((270, 250), 3, Global()),
}


def walked(case: str, dtype: str, outer: int = 2) -> tuple[np.ndarray, Window, tuple[int, ...]]:
    shape, inner, window = WALKS[case]
    low, high = (0, 2) if dtype == "bool" else (0, 9) if dtype == "uint8" else (-9, 10)
    rng = np.random.default_rng(len(case))
    return rng.integers(low, high, (outer, *shape, inner)).astype(dtype), window, shape


def spot_check(
    x: np.ndarray, got: np.ndarray, window: Window, reduction: Reduction, outputs: int = 12
) -> None:
    """Some outputs by the oracle, the corners among them."""
    axes = positions_of(window, x.shape[1:-1])
    assert got.shape == (x.shape[0], *(len(axis) for axis in axes), x.shape[-1])
    rng = np.random.default_rng(0)
    chosen = [tuple(0 for _ in got.shape), tuple(n - 1 for n in got.shape)]
    chosen += [tuple(int(rng.integers(n)) for n in got.shape) for _ in range(outputs)]
    for index in chosen:
        seen = [axis[o] for axis, o in zip(axes, index[1:-1], strict=True)]
        inside = [[p for p, padding in axis if not padding] for axis in seen]
        block = x[index[0], ..., index[-1]][np.ix_(*inside)]
        padded = math.prod(len(axis) for axis in seen)
        options = {"count_include_pad": getattr(reduction, "count_include_pad", True)}
        want = reduce_reference(type(reduction).__name__, list(block.ravel()), padded, **options)
        held = expect(np.array([want], dtype=object), reduction, x.dtype.name)
        np.testing.assert_array_equal(got[index], held[0], str(index))


@pytest.mark.parametrize("case", WALKS)
@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_every_walk(case: str, dtype: str) -> None:
    """Sums and extremes of whole numbers are exact: the kernels, the composite path and the
    oracle agree in every bit, whatever the shape makes the kernels do."""
    x, window, shape = walked(case, dtype)
    behind = x.shape[-1] > 1
    given = x if behind else x[..., 0]
    for reduction in (Max(), Min(), Sum(), Mean(count_include_pad=False)):
        plan = plan_for(window, reduction, shape, dtype)
        assert plan.native is not None
        got = poolkit.pool(given, window, reduction, ndim=len(shape), channels_last=behind)
        got = got if behind else got[..., None]
        if dtype != "float16" or isinstance(reduction, (Max, Min)):  # the sum may overflow
            spot_check(x, got, window, reduction)
        if math.prod(s.taps for s in plan.axes) * got[0].size < 3_000_000:
            np.testing.assert_array_equal(
                got, composite(x, plan.axes, reduction, channels_last=True)
            )


@pytest.mark.parametrize("case", WALKS)
@pytest.mark.parametrize("dtype", ["float32", "int8", "int16", "float64", "float16"])
def test_positions_on_every_walk(case: str, dtype: str) -> None:
    """Positions point at the value, at its first place, for codes of 1, 2 and 4 bytes."""
    x, window, shape = walked(case, dtype)
    behind = x.shape[-1] > 1
    given = x if behind else x[..., 0]
    for reduction in (Max(), Min()):
        got, found = poolkit.pool_with_indices(
            given, window, reduction, ndim=len(shape), channels_last=behind
        )
        plain = poolkit.pool(given, window, reduction, ndim=len(shape), channels_last=behind)
        np.testing.assert_array_equal(got, plain)
        got, found = (a if behind else a[..., None] for a in (got, found))
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        at = found.reshape(x.shape[0], -1, x.shape[-1])
        np.testing.assert_array_equal(np.take_along_axis(flat, at, 1).reshape(got.shape), got)
        spans = window.axes(shape)
        if math.prod(s.taps for s in spans) * got[0].size < 1_000_000:
            want = composite_indices(x, spans, reduction, channels_last=True)
            np.testing.assert_array_equal(found, want)


# --- layouts in memory ---------------------------------------------------------------------------


def strided_views(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values, lying differently."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x
    raw = bytearray(x.nbytes + 1)
    offset = np.frombuffer(raw, dtype=x.dtype, count=x.size, offset=1).reshape(x.shape)
    offset[...] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "sliced": wide[..., ::2],
        "reversed": x[..., ::-1].copy()[..., ::-1],
        "transposed": x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
        "fortran": np.asfortranarray(x),
        "read-only": read_only,
        "unaligned": offset,
        "broadcast": np.broadcast_to(x[:1], x.shape) if (x == x[:1]).all() else x,
    }


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "int64", "uint8", "bool"])
def test_layouts_in_memory(reduction: Reduction, dtype: str) -> None:
    x = values(2, kind_of(dtype)).astype(dtype)
    x[1:] = x[:1]
    for window in (Sliding(3, stride=2, padding=1), Global(), Adaptive(3)):
        want = poolkit.pool(x, window, reduction)
        for name, view in strided_views(x).items():
            np.testing.assert_array_equal(poolkit.pool(view, window, reduction), want, name)
            last = poolkit.pool(to_last(view), window, reduction, ndim=2, channels_last=True)
            plain = poolkit.pool(to_last(x), window, reduction, ndim=2, channels_last=True)
            np.testing.assert_array_equal(last, plain, name)


def test_subclasses_of_arrays_are_arrays() -> None:
    class Named(np.ndarray):
        """An array with ways of its own, as a memory-mapped file or a matrix is."""

    x = values(2, "signed").astype(np.float32)
    for reduction in REDUCTIONS:
        got = poolkit.pool(x.view(Named), Sliding(2), reduction)
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, poolkit.pool(x, Sliding(2), reduction))


def test_the_input_is_not_written_to() -> None:
    x = values(2, "signed").astype(np.float32)
    before = x.copy()
    for _, window in [w for w in WINDOWS if w[0] == 2]:
        for reduction in REDUCTIONS:
            poolkit.pool(x, window, reduction)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("reduction", ["max", "mean", "median", "std"])
def test_any_number_of_axes_in_front(lead: tuple[int, ...], reduction: str) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (*lead, 6, 8)).astype(np.float32)
    got = poolkit.pool(x, Sliding((2, 2)), reduction)
    want = poolkit.pool(x.reshape(1, -1, 6, 8), Sliding(2), reduction)
    np.testing.assert_array_equal(got, want.reshape(*lead, 3, 4))


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("empty", [(0, 3, 6, 6), (2, 0, 6, 6), (0, 0, 6, 6)])
def test_empty_batches(reduction: Reduction, empty: tuple[int, ...]) -> None:
    """An empty batch gives an empty result of the right shape and dtype, on every window."""
    for dtype in NUMPY_DTYPES:
        x = np.zeros(empty, dtype=dtype)
        for window in (Sliding(3, padding=1), Adaptive(2), Adaptive(0), Global(), Pyramid((2, 1))):
            got = poolkit.pool(x, window, reduction)
            assert got.shape == (*empty[:2], *window.output_shape((6, 6)))
            assert got.dtype == reduction.result_dtype(DTYPES[dtype])
    if isinstance(reduction, (Max, Min)):
        picked, found = poolkit.pool_with_indices(np.zeros(empty), Sliding(3), reduction)
        assert picked.shape == found.shape == (*empty[:2], 2, 2)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_no_bins(reduction: Reduction) -> None:
    """An adaptive window of no bins has no outputs, as in torch."""
    x = np.ones((2, 3, 5, 5), dtype=np.float32)
    assert poolkit.pool(x, Adaptive((0, 2)), reduction).shape == (2, 3, 0, 2)
    if isinstance(reduction, (Max, Min)):
        found = poolkit.pool_with_indices(x, Adaptive((2, 0)), reduction)[1]
        assert found.shape == (2, 3, 2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_that_see_nothing(dtype: str) -> None:
    """A window in the padding: stated in the docs of each reduction, tested here."""
    x = as_dtype(np.ones((1, 1, 3)), dtype)
    window = Sliding(2, padding=((2, 0),))
    low, high = (-np.inf, np.inf) if DTYPES[dtype].kind == "float" else (0, 1)
    if DTYPES[dtype].kind == "int":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for reduction in REDUCTIONS:
        first = numbers_of(poolkit.pool(x, window, reduction))[0, 0, 0]
        name = type(reduction).__name__
        if name in ("Max", "Min"):
            assert first == (low if name == "Max" else high)
        elif (
            name in ("Sum", "SqrtN", "Lp", "BiInteraction")
            or (name == "Mean" and "False" not in str(reduction))
            or (name in ("First", "Last") and DTYPES[dtype].kind != "float")
        ):
            assert first == 0
        else:
            assert np.isnan(first)


# --- sums ----------------------------------------------------------------------------------------


def ulps(got: float, exact: float, dtype: Any = np.float32) -> float:
    return abs(float(got) - exact) / float(np.spacing(np.abs(dtype(exact))))


@pytest.mark.parametrize(
    "window",
    [
        Sliding(5000, stride=1),
        Sliding(5000, stride=7),
        Sliding(5000, stride=7, dilation=3),
        Sliding(5000, stride=1, dilation=3),
        Adaptive(3),
        Global(),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_are_pairwise(window: Window, channels_last: bool) -> None:
    """0.1 is the worst of inputs: every rounding errs to the same side. One chain of additions is
    off by hundreds of units in the last place; a tree of short chains is not."""
    x = np.full((1, 20000, 1 if not channels_last else 2), 0.1, dtype=np.float32)
    given = x if channels_last else x[..., 0]
    got = poolkit.pool(given, window, "sum", ndim=1, channels_last=channels_last).ravel()[0]
    n = int(window.axes((20000,))[0].count[0])
    assert ulps(got, math.fsum([float(np.float32(0.1))] * n)) <= 8


def test_one_chain_would_not_pass() -> None:
    chain = np.float32(0)
    for _ in range(5000):
        chain += np.float32(0.1)
    assert ulps(chain, math.fsum([float(np.float32(0.1))] * 5000)) > 100


def test_global_mean_of_ten_million_values() -> None:
    x = np.random.default_rng(0).random(10_000_000, dtype=np.float32) * 0.2
    x[::3] = 0.1
    exact = math.fsum(x.tolist()) / x.size
    assert ulps(poolkit.pool(x, Global(), "mean")[0], exact) <= 5


def test_half_types_accumulate_in_float32() -> None:
    torch = pytest.importorskip("torch")
    x = torch.rand(1, 1, 300, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = math.fsum(x.double().flatten().tolist()) / x.numel()
    for given in (x, x.expand(1, 3, 300, 300).to(memory_format=torch.channels_last)):
        got = poolkit.pool(given, Global(), "mean")[0, 0, 0, 0]
        assert abs(float(got) - exact) <= 2.0**-9 * 1.01  # half a unit in the last place at 0.5
    many = np.full((1, 1, 70000), 1.0, dtype=np.float16)  # float16 itself ends at 65504
    assert poolkit.pool(many, Global(), "mean")[0, 0, 0] == 1.0
    assert poolkit.pool(many, Global(), "sum")[0, 0, 0] == np.inf


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integer_sums_are_exact(dtype: str) -> None:
    high = np.iinfo(dtype).max
    x = np.full((1, 1, 1000), high if dtype != "int64" else 2**52 + 1, dtype=dtype)
    total = int(x[0, 0, 0]) * 1000
    assert poolkit.pool(x, Global(), "sum")[0, 0, 0] == total
    assert poolkit.pool(-x[..., :10] if dtype != "uint8" else x[..., :10], Sliding(10), "sum")[
        0, 0, 0
    ] == total // 100 * (-1 if dtype != "uint8" else 1)
    mean = poolkit.pool(x, Global(), "mean")
    assert mean.dtype == np.float32
    assert mean[0, 0, 0] == np.float32(total / 1000)
    same = poolkit.pool(x, Global(), Mean(result="same"))
    assert same.dtype == dtype
    assert same[0, 0, 0] == x[0, 0, 0]


def test_int64_sums_up_to_the_last_bit() -> None:
    x = np.array([[[2**62, 2**62 - 1, -(2**62), -(2**62)]]])
    np.testing.assert_array_equal(poolkit.pool(x, Sliding(2), "sum"), [[[2**63 - 1, -(2**63)]]])


def test_int64_sums_that_do_not_fit() -> None:
    """An error or a right result, never a wrapped one."""
    x = np.array([[[2**62, 2**62, 5, 6]]])
    with pytest.raises(poolkit.PoolValueError, match="does not fit 64 bits, while pooling int64"):
        poolkit.pool(x, Sliding(2), "sum")
    mean = poolkit.pool(x, Sliding(2), "mean")
    np.testing.assert_array_equal(mean, np.array([[[2.0**62, 5.5]]], dtype=np.float32))


def test_means_of_integers_round_half_to_even() -> None:
    x = np.array([[[1, 2, 2, 3, -1, -2, -2, -3, 7, 7]]], dtype=np.int8)
    got = poolkit.pool(x, Sliding(2), Mean(result="same"))
    np.testing.assert_array_equal(got, [[[2, 2, -2, -2, 7]]])
    negative = poolkit.pool(x, Sliding(2), Mean(divisor=-2, result="same"))
    np.testing.assert_array_equal(negative, -got)


def test_spread_of_large_integers() -> None:
    """Integers that float32 cannot tell apart."""
    x = 2**30 + np.array([[[0, 1, 2, 3]]], dtype=np.int32)
    got = poolkit.pool(x, Global(), "std")
    np.testing.assert_allclose(got, np.sqrt(1.25), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["LogSumExp", "Soft", "median", "TopK(1)"])
def test_extreme_values_stay_finite(reduction: str) -> None:
    large = float(np.finfo(np.float32).max)
    x = np.array([[[large, large, -large, large, -large]]], dtype=np.float32)
    got = poolkit.pool(x, Global(), reduction)[0, 0, 0]
    assert np.isfinite(got)
    assert -large <= got <= large


# --- the checkers can fail -----------------------------------------------------------------------


def test_the_comparison_finds_a_wrong_value() -> None:
    x, window = values(1, "signed"), Sliding(3)
    want = answer(1, window, Max(), "signed")
    wrong = poolkit.pool(x.astype(np.float32), window, Max())
    wrong[0, 0, 0] += 1
    with pytest.raises(AssertionError):
        assert_agrees(wrong, want, Max(), "float32")


def test_the_comparison_finds_a_wrong_sign_of_zero() -> None:
    want = np.array([[[-0.0]]], dtype=object)
    with pytest.raises(AssertionError):
        assert_agrees(np.array([[[0.0]]]), want, Max(), "float64")
    with pytest.raises(AssertionError):
        assert_agrees(np.array([[[-0.0]]]), want, Sum(), "float64")


def test_the_comparison_finds_a_wrong_dtype() -> None:
    want = np.array([[[1]]], dtype=object)
    with pytest.raises(AssertionError):
        assert_agrees(np.array([[[1]]], dtype=np.int32), want, Sum(), "int8")


def test_the_comparison_finds_a_small_error() -> None:
    want, wrong = np.array([[[1.0]]], dtype=object), np.array([[[1.0001]]], dtype=np.float32)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_agrees(wrong, want, as_reduction("std"), "float32")


def test_the_spot_check_finds_a_shifted_window() -> None:
    x, window, _ = walked("stride 3", "float32")
    got = poolkit.pool(x[..., 0], window, "max")[..., None]
    with pytest.raises(AssertionError):
        spot_check(x, np.roll(got, 1, axis=1), window, Max(), outputs=50)


def test_names_and_recipes_are_the_objects() -> None:
    x = values(2, "signed").astype(np.float32)
    for _, window in [w for w in WINDOWS if w[0] == 2]:
        for reduction in REDUCTIONS:
            np.testing.assert_array_equal(
                poolkit.pool(x, str(as_window(window)), str(reduction)),
                poolkit.pool(x, window, reduction),
            )
