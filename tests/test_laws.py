"""What must hold for any input: laws over window x reduction x dtype x layout."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from examples import REDUCTIONS
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import poolkit
from poolkit.arrays import arrays_of
from poolkit.reductions import (
    GeM,
    LogSumExp,
    Lp,
    Max,
    Mean,
    Min,
    Quantile,
    Reduction,
    Seen,
    Soft,
    Sum,
    TopK,
)
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window

FLOATS = ["float64", "float32", "float16"]
MERGEABLE = [reduction for reduction in REDUCTIONS if not reduction.whole_span]

sizes = st.integers(1, 12)


@st.composite
def slidings(draw: st.DrawFn, axes: int, padded: bool = True) -> Sliding:
    """Any sliding window; kernels on both sides of what the kernels do in other ways."""
    each = lambda low, high: st.tuples(*[st.integers(low, high)] * axes)  # noqa: E731
    pads = st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * axes)
    return Sliding(
        draw(each(1, 9)),
        stride=draw(each(1, 4)),
        padding=draw(pads) if padded else 0,
        dilation=draw(each(1, 3)),
        ceil_mode=draw(st.booleans()),
    )


def windows(axes: int) -> st.SearchStrategy[Window]:
    bins = st.tuples(*[st.one_of(st.none(), st.integers(1, 6))] * axes)
    return st.one_of(
        slidings(axes),
        st.builds(Adaptive, bins),
        st.builds(Global),
        st.builds(Pyramid, st.lists(bins, min_size=1, max_size=3)),
    )


@st.composite
def arrays(draw: st.DrawFn, axes: int, dtype: str = "float32", whole: bool = True) -> np.ndarray:
    """(batch, channels, *spatial). Whole numbers: their sums are exact in any order."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 5)))
    shape += tuple(draw(st.integers(1, 20)) for _ in range(axes))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    low, high = (0, 2) if dtype == "bool" else (0, 9) if dtype == "uint8" else (-9, 10)
    x = rng.integers(low, high, shape).astype(dtype)
    return x if whole else (x * rng.random(shape)).astype(dtype)


@st.composite
def cases(
    draw: st.DrawFn, dtype: str | None = None, whole: bool = True
) -> tuple[np.ndarray, Window, int]:
    """An input, a window that fits it, and the number of spatial axes."""
    axes = draw(st.integers(1, 3))
    name = dtype or draw(st.sampled_from([*FLOATS, "int8", "uint8", "int32", "int64", "bool"]))
    x, window = draw(arrays(axes, name, whole)), draw(windows(axes))
    try:
        window.output_shape(x.shape[2:])
    except poolkit.PoolValueError:
        assume(False)
    return x, window, axes


any_reduction = st.sampled_from(REDUCTIONS)


def tolerance(dtype: Any) -> float:
    return 16 * float(np.finfo(dtype).eps)


def assert_close(got: np.ndarray, want: np.ndarray, scale: float = 10.0) -> None:
    """Equal for integers and NaN; else within a few units in the last place of `scale`."""
    assert got.dtype == want.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    eps = tolerance(got.dtype)
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=eps, atol=eps * scale
    )


# --- the algebra ---------------------------------------------------------------------------------


def state_of(reduction: Reduction, x: np.ndarray) -> tuple[np.ndarray, ...]:
    return reduction.lift(arrays_of(x), x)


def finished(reduction: Reduction, state: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    seen = Seen(np.array(count), np.array(count))
    with np.errstate(all="ignore"):
        return reduction.finish(arrays_of(state[0]), state, seen)


def bracketed(reduction: Reduction, numbers: list[int], rng: Random) -> tuple[np.ndarray, ...]:
    """A sequence merged in brackets placed at random, with the identity here and there."""
    xp = arrays_of(np.zeros(1))
    if len(numbers) == 1:
        state = state_of(reduction, np.array(float(numbers[0])))
    else:
        cut = rng.randint(1, len(numbers) - 1)
        first = bracketed(reduction, numbers[:cut], rng)
        with np.errstate(all="ignore"):
            state = reduction.merge(xp, first, bracketed(reduction, numbers[cut:], rng))
    nothing = tuple(np.array(float(n)) for n in reduction.identity("float64"))
    with np.errstate(all="ignore"):
        if rng.random() < 0.2:
            state = reduction.merge(xp, nothing, state)
        if rng.random() < 0.2:
            state = reduction.merge(xp, state, nothing)
    return state


def check_merge(reduction: Reduction, numbers: list[int], rng: Random) -> None:
    chain = state_of(reduction, np.array(float(numbers[0])))
    for number in numbers[1:]:
        one = state_of(reduction, np.array(float(number)))
        chain = reduction.merge(arrays_of(one[0]), chain, one)
    n = len(numbers)
    assert_close(
        finished(reduction, bracketed(reduction, numbers, rng), n), finished(reduction, chain, n)
    )


@pytest.mark.parametrize("reduction", MERGEABLE, ids=str)
@given(numbers=st.lists(st.integers(-8, 8), min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_parts_merge_to_the_whole(reduction: Reduction, numbers: list[int], seed: int) -> None:
    """Any way to put brackets around a sequence gives the same: `merge` is associative, and
    `identity` changes nothing wherever it stands."""
    check_merge(reduction, numbers, Random(seed))


@pytest.mark.parametrize("reduction", MERGEABLE, ids=str)
@given(number=st.integers(-8, 8))
def test_seeing_a_value_twice_changes_no_pick(reduction: Reduction, number: int) -> None:
    xp, state = arrays_of(np.zeros(1)), state_of(reduction, np.array(float(number)))
    twice = reduction.merge(xp, state, state)
    if reduction.kernel is not None and reduction.kernel.kind == "pick":
        assert all(np.array_equal(a, b) for a, b in zip(twice, state, strict=True))


# --- windows -------------------------------------------------------------------------------------


@given(case=cases(), reduction=any_reduction)
def test_the_shape_is_the_windows(case: Any, reduction: Reduction) -> None:
    x, window, axes = case
    got = poolkit.pool(x, window, reduction, ndim=axes)
    assert got.shape == (*x.shape[:2], *window.output_shape(x.shape[2:]))


@given(case=cases(), reduction=any_reduction)
def test_channels_last_is_a_matter_of_layout(case: Any, reduction: Reduction) -> None:
    x, window, axes = case
    first = poolkit.pool(x, window, reduction, ndim=axes)
    behind = np.moveaxis(x, 1, -1)
    last = poolkit.pool(behind, window, reduction, ndim=axes, channels_last=True)
    assert_close(np.moveaxis(last, -1, 1), first)


@given(case=cases(whole=False), reduction=any_reduction, data=st.data())
def test_channels_do_not_see_each_other(case: Any, reduction: Reduction, data: Any) -> None:
    """A permutation of channels, and a single one of them: the same bits."""
    x, window, axes = case
    whole = poolkit.pool(x, window, reduction, ndim=axes)
    order = data.draw(st.permutations(range(x.shape[1])))
    permuted = poolkit.pool(x[:, order], window, reduction, ndim=axes)
    np.testing.assert_array_equal(permuted, whole[:, order])
    one = data.draw(st.integers(0, x.shape[1] - 1))
    np.testing.assert_array_equal(
        poolkit.pool(x[:, one : one + 1], window, reduction, ndim=axes), whole[:, one : one + 1]
    )


@given(x=arrays(1), kernel=st.integers(1, 9), shift=st.integers(0, 9), reduction=any_reduction)
def test_shifted_inputs_give_shifted_outputs(
    x: np.ndarray, kernel: int, shift: int, reduction: Reduction
) -> None:
    assume(x.shape[-1] - shift >= kernel)
    window = Sliding(kernel, stride=1)
    whole = poolkit.pool(x, window, reduction)
    assert_close(poolkit.pool(x[..., shift:], window, reduction), whole[..., shift:])


@given(x=arrays(2), reduction=any_reduction)
def test_global_is_one_bin_and_one_window(x: np.ndarray, reduction: Reduction) -> None:
    got = poolkit.pool(x, Global(), reduction)
    assert_close(poolkit.pool(x, Adaptive(1), reduction), got)
    assert_close(poolkit.pool(x, Sliding(x.shape[2:]), reduction), got)


@given(x=arrays(2), reduction=any_reduction, levels=st.lists(st.integers(1, 5), min_size=1))
def test_a_pyramid_is_its_levels_joined(
    x: np.ndarray, reduction: Reduction, levels: list[int]
) -> None:
    flat = [
        poolkit.pool(x, Adaptive(level), reduction).reshape(*x.shape[:2], -1) for level in levels
    ]
    np.testing.assert_array_equal(
        poolkit.pool(x, Pyramid(levels), reduction), np.concatenate(flat, axis=2)
    )


@given(x=arrays(1), bins=st.integers(1, 6), reduction=any_reduction)
def test_bins_that_divide_are_windows(x: np.ndarray, bins: int, reduction: Reduction) -> None:
    x = np.repeat(x, bins, axis=-1)
    size = x.shape[-1] // bins
    assert_close(
        poolkit.pool(x, Adaptive(bins), reduction), poolkit.pool(x, Sliding(size), reduction)
    )


@given(
    x=arrays(1),
    inner=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    outer=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    reduction=st.sampled_from([Max(), Min()]),
)
def test_windows_on_windows(x: np.ndarray, inner: Any, outer: Any, reduction: Reduction) -> None:
    """Where overlaps do not matter two windows are one, whose size is the receptive field."""
    (k1, s1), (k2, s2) = inner, outer
    assume(s1 <= k1)  # or there are gaps
    both = Sliding(k1 + (k2 - 1) * s1, stride=s1 * s2)
    first, second = Sliding(k1, stride=s1), Sliding(k2, stride=s2)
    assume(x.shape[-1] >= both.kernel_size)
    got = poolkit.pool(poolkit.pool(x, first, reduction), second, reduction)
    np.testing.assert_array_equal(got, poolkit.pool(x, both, reduction))
    middle = first.output_shape(x.shape[2:])
    (field,) = second.receptive_field(middle, first.receptive_field(x.shape[2:]))
    assert (field.size, field.jump) == (both.kernel_size, both.stride)


@given(x=arrays(1), kernel=st.integers(1, 4), stride=st.integers(1, 3), step=st.integers(1, 4),
       reduction=any_reduction)  # fmt: skip
def test_a_dilated_window_sees_every_nth(
    x: np.ndarray, kernel: int, stride: int, step: int, reduction: Reduction
) -> None:
    assume(x.shape[-1] >= (kernel - 1) * step + 1)
    got = poolkit.pool(x, Sliding(kernel, stride * step, dilation=step), reduction)
    thinned = poolkit.pool(x[..., ::step], Sliding(kernel, stride), reduction)
    assert_close(got, thinned)


@given(x=arrays(2), window=slidings(2))
def test_padding_is_as_if_the_neutral_value_stood_there(x: np.ndarray, window: Sliding) -> None:
    assume(not window.ceil_mode)
    try:
        window.output_shape(x.shape[2:])
    except poolkit.PoolValueError:
        assume(False)
    pads = ((0, 0), (0, 0), *window.padding)
    bare = Sliding(window.kernel_size, window.stride, 0, window.dilation)
    for reduction, neutral in (
        (Max(), -math.inf), (Min(), math.inf), (Sum(), 0), (Mean(), 0), (Lp(2), 0),
    ):  # fmt: skip
        padded = np.pad(x, pads, constant_values=neutral)
        assert_close(poolkit.pool(x, window, reduction), poolkit.pool(padded, bare, reduction))


@given(case=cases(whole=False), reduction=any_reduction)
def test_a_batch_is_its_samples(case: Any, reduction: Reduction) -> None:
    x, window, axes = case
    each = [poolkit.pool(sample, window, reduction, ndim=axes) for sample in x]
    np.testing.assert_array_equal(poolkit.pool(x, window, reduction, ndim=axes), np.stack(each))


# --- reductions ----------------------------------------------------------------------------------


@given(case=cases(whole=False), data=st.data())
def test_max_and_min_are_monotone(case: Any, data: Any) -> None:
    x, window, axes = case
    assume(x.dtype.kind == "f")
    more = x + data.draw(hnp.arrays(x.dtype, x.shape, elements=st.integers(0, 3)))
    for reduction in (Max(), Min()):
        low = poolkit.pool(x, window, reduction, ndim=axes)
        assert (low <= poolkit.pool(more, window, reduction, ndim=axes)).all()


@given(case=cases(whole=False))
def test_min_is_the_mirror_of_max(case: Any) -> None:
    """In every bit, the sign of zero too."""
    x, window, axes = case
    assume(x.dtype.kind == "f")
    got = poolkit.pool(x, window, "min", ndim=axes)
    mirrored = -poolkit.pool(-x, window, "max", ndim=axes)
    np.testing.assert_array_equal(got, mirrored)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(mirrored))


@given(case=cases(whole=False), negative=st.booleans())
def test_positions_point_at_the_values(case: Any, negative: bool) -> None:
    x, window, axes = case
    assume(not window.joined)
    assume(all((span.count > 0).all() for span in window.axes(x.shape[2:])))
    picked, found = poolkit.pool_with_indices(x, window, "min" if negative else "max", ndim=axes)
    flat, at = x.reshape(*x.shape[:2], -1), found.reshape(*x.shape[:2], -1)
    np.testing.assert_array_equal(np.take_along_axis(flat, at, -1).reshape(picked.shape), picked)


def between(x: np.ndarray, window: Window, axes: int, middle: Reduction) -> None:
    """Within the window's least and greatest value, but for rounding."""
    got = poolkit.pool(x, window, middle, ndim=axes).astype(np.float64)
    low = poolkit.pool(x, window, "min", ndim=axes).astype(np.float64)
    high = poolkit.pool(x, window, "max", ndim=axes).astype(np.float64)
    seen = ~np.isnan(got)
    room = 10 * tolerance(np.float32 if x.dtype.kind != "f" else x.dtype)
    assert (got[seen] >= low[seen] - room).all()
    assert (got[seen] <= high[seen] + room).all()


@pytest.mark.parametrize(
    "middle",
    [Mean(count_include_pad=False), poolkit.Median(), Quantile(0.3), TopK(2), LogSumExp(), Soft()],
    ids=str,
)
@given(case=cases(whole=False))
def test_means_lie_between_min_and_max(middle: Reduction, case: Any) -> None:
    between(*case, middle)


@pytest.mark.parametrize("smooth", [LogSumExp(0.5), LogSumExp(4), Soft(0.5), Soft(4)], ids=str)
@given(case=cases("float32", whole=False))
def test_smooth_maxima_lie_between_mean_and_max(smooth: Reduction, case: Any) -> None:
    x, window, axes = case
    got = poolkit.pool(x, window, smooth, ndim=axes)
    mean = poolkit.pool(x, window, Mean(count_include_pad=False), ndim=axes)
    seen = ~np.isnan(got)
    assert (got[seen] >= mean[seen] - 1e-4).all()
    assert (got[seen] <= poolkit.pool(x, window, "max", ndim=axes)[seen] + 1e-4).all()


@given(case=cases("float64", whole=False), p=st.sampled_from([1, 1.5, 2, 3]), c=st.integers(-3, 3))
def test_norms_scale(case: Any, p: float, c: int) -> None:
    x, window, axes = case
    assert_close(
        poolkit.pool(c * x, window, Lp(p), ndim=axes),
        abs(c) * poolkit.pool(x, window, Lp(p), ndim=axes),
        scale=1000,
    )


@given(case=cases("float64", whole=False))
def test_the_spread_ignores_a_shift_and_scales(case: Any) -> None:
    x, window, axes = case
    spread = poolkit.pool(x, window, "std", ndim=axes)
    assert_close(poolkit.pool(x + 64, window, "std", ndim=axes), spread, scale=1000)
    assert_close(poolkit.pool(-2 * x, window, "std", ndim=axes), 2 * spread, scale=1000)
    assert (spread[~np.isnan(spread)] >= 0).all()


@given(case=cases("float32"))
def test_families_meet_at_their_ends(case: Any) -> None:
    x, window, axes = case

    def by(reduction: Reduction, values: np.ndarray = x) -> np.ndarray:
        return poolkit.pool(values, window, reduction, ndim=axes)

    nothing = np.isnan(by(Quantile(0.5)))  # windows in the padding
    mean = by(Mean(count_include_pad=False))
    positive = by(Mean(count_include_pad=False), np.maximum(x, np.float32(0.25)))
    for got, want in [
        (by(Quantile(0)), by(Min())),
        (by(Quantile(1)), by(Max())),
        (by(Quantile(0.5)), by(poolkit.Median())),
        (by(TopK(1)), by(Max())),
        (by(TopK(10**6)), mean),
        (by(GeM(p=1, eps=0.25)), positive),
        (by(Mean(divisor=1)), by(Sum())),
        (by(Lp(1)), by(Sum(), np.abs(x))),
    ]:
        assert_close(np.where(nothing, 0, got), np.where(nothing, 0, want), scale=100)


@given(case=cases("float32", whole=False))
def test_sharper_is_larger(case: Any) -> None:
    """Generalised means grow with their exponent, smooth maxima with their sharpness."""
    x, window, axes = case
    x = np.abs(x) + np.float32(0.5)
    for family in (GeM, LogSumExp, Soft):
        softer, sharper = (poolkit.pool(x, window, family(k), ndim=axes) for k in (1.0, 3.0))
        seen = ~np.isnan(softer)
        assert (sharper[seen] >= softer[seen] - 1e-4).all()


@given(case=cases())
def test_merged_halves_are_the_whole_window(case: Any) -> None:
    """Extremes and sums of two halves of the input give those of the input."""
    x, _, axes = case
    assume(x.shape[-1] >= 2)
    cut = x.shape[-1] // 2
    for reduction, join in ((Max(), np.maximum), (Min(), np.minimum), (Sum(), np.add)):
        whole, first, second = (
            poolkit.pool(part, Global(), reduction, ndim=axes)
            for part in (x, x[..., :cut], x[..., cut:])
        )
        np.testing.assert_array_equal(join(first, second), whole)


def test_the_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_close(np.float32([1.0]), np.float32([1.001]))
    with pytest.raises(AssertionError):
        assert_close(np.float32([1.0]), np.float64([1.0]))
    with pytest.raises(AssertionError):
        assert_close(np.array([1]), np.array([2]))


def test_a_broken_reduction_breaks_the_laws() -> None:
    """Subtraction is not associative; the merge law says so."""

    class Difference(Sum):
        def merge(self, xp: Any, a: Any, b: Any) -> Any:
            return (a[0] - b[0],)

    def check_often() -> None:
        for seed in range(20):
            check_merge(Difference(), [1, 2, 3], Random(seed))

    with pytest.raises(AssertionError):
        check_often()
