"""The oracle itself, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from poolkit.reference import (
    adaptive_positions,
    locate_reference,
    pool_reference,
    reduce_reference,
    sliding_positions,
)


def inside(windows: list[list[tuple[int, bool]]]) -> list[list[int]]:
    return [[p for p, padding in window if not padding] for window in windows]


def test_sliding_windows() -> None:
    assert inside(sliding_positions(5, 3, 1, 0, 0)) == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert inside(sliding_positions(6, 2, 2, 0, 0)) == [[0, 1], [2, 3], [4, 5]]
    assert inside(sliding_positions(7, 2, 3, 0, 0)) == [[0, 1], [3, 4]]


def test_sliding_windows_dilated() -> None:
    assert inside(sliding_positions(6, 3, 1, 0, 0, dilation=2)) == [[0, 2, 4], [1, 3, 5]]


def test_sliding_windows_padded() -> None:
    windows = sliding_positions(3, 2, 1, 1, 2)
    assert windows == [
        [(-1, True), (0, False)],
        [(0, False), (1, False)],
        [(1, False), (2, False)],
        [(2, False), (3, True)],
        [(3, True), (4, True)],
    ]


def test_ceil_mode_keeps_a_window_that_hangs_over() -> None:
    assert inside(sliding_positions(5, 2, 2, 0, 0)) == [[0, 1], [2, 3]]
    assert inside(sliding_positions(5, 2, 2, 0, 0, ceil_mode=True)) == [[0, 1], [2, 3], [4]]


def test_ceil_mode_drops_a_window_that_begins_behind_the_input() -> None:
    # Size 4, stride 3 and padding 1: the third window would begin at 5.
    assert len(sliding_positions(4, 2, 3, 1, 1, ceil_mode=True)) == 2


def test_ceil_mode_counts_no_position_beyond_the_padding() -> None:
    last = sliding_positions(4, 3, 2, 0, 0, ceil_mode=True)[-1]
    assert last == [(2, False), (3, False)]


def test_adaptive_bins_overlap_where_the_size_does_not_divide() -> None:
    assert inside(adaptive_positions(5, 3)) == [[0, 1], [1, 2, 3], [3, 4]]
    assert inside(adaptive_positions(4, 2)) == [[0, 1], [2, 3]]
    assert inside(adaptive_positions(2, 4)) == [[0], [0], [1], [1]]


@pytest.mark.parametrize(
    ("name", "values", "padded", "options", "want"),
    [
        ("Max", [1, 3, 2], 3, {}, 3),
        ("Min", [1, 3, 2], 3, {}, 1),
        ("Max", [], 3, {}, None),
        ("Sum", [1, 3, 2], 3, {}, 6),
        ("Sum", [], 3, {}, 0),
        ("Sum", [math.inf, -math.inf], 2, {}, math.nan),
        ("Sum", [0.1] * 10, 10, {}, 1.0),
        ("Mean", [1, 3], 4, {}, 1.0),
        ("Mean", [1, 3], 4, {"count_include_pad": False}, 2.0),
        ("Mean", [1, 3], 4, {"divisor": 8}, 0.5),
        ("Mean", [], 0, {}, math.nan),
        ("Mean", [], 2, {}, 0.0),
        ("Mean", [], 2, {"count_include_pad": False}, math.nan),
        ("Mean", [1, 2], 2, {"result": "same"}, 2),
        ("Mean", [2, 3], 2, {"result": "same"}, 2),
        ("Mean", [-1, -2], 2, {"result": "same"}, -2),
        ("Mean", [1.0, 2.0], 2, {"result": "same"}, 1.5),
        ("Lp", [3, -4], 2, {"p": 2}, 5.0),
        ("Lp", [3, -4], 2, {"p": 1}, 7.0),
        ("Lp", [-2, -2], 2, {"p": 3}, 16 ** (1 / 3)),
        ("Lp", [], 2, {"p": 2}, 0.0),
        ("GeM", [1.0, 7.0], 2, {"p": 2.0, "eps": 0.0}, 5.0),
        ("GeM", [-5.0], 1, {"p": 1.0, "eps": 0.5}, 0.5),
        ("GeM", [], 1, {}, math.nan),
        ("LogSumExp", [0.0, math.log(3)], 2, {"r": 1.0}, math.log(2)),
        ("LogSumExp", [1000.0, 1000.0], 2, {"r": 2.0}, 1000.0),
        ("LogSumExp", [-math.inf, -math.inf], 2, {}, -math.inf),
        ("Soft", [0.0, math.log(3)], 2, {"beta": 1.0}, 0.75 * math.log(3)),
        ("Soft", [math.inf, 1.0], 2, {}, math.inf),
        ("Soft", [-math.inf, 1.0], 2, {}, 1.0),
        ("Std", [1, 3], 2, {}, 1.0),
        ("Std", [1, 3], 2, {"correction": 1}, math.sqrt(2)),
        ("Std", [1], 1, {"correction": 1}, math.nan),
        ("Std", [math.inf], 1, {}, math.nan),
        ("Median", [9, 1, 2], 3, {}, 2),
        ("Median", [9, 1, 2, 3], 4, {}, 2.5),
        ("Quantile", [4, 1, 3], 3, {"q": 0.75}, 3.5),
        ("Quantile", [4, 1, 3], 3, {"q": 0.0}, 1),
        ("Quantile", [-math.inf, 3], 2, {"q": 0.5}, -math.inf),
        ("Quantile", [-math.inf, math.inf], 2, {"q": 0.5}, math.nan),
        ("TopK", [1, 4, 2], 3, {"k": 2}, 3.0),
        ("TopK", [1, 4, 2], 3, {"k": 9}, 7 / 3),
        ("TopK", [], 3, {"k": 2}, math.nan),
    ],
)
def test_one_window(name: str, values: list, padded: int, options: dict, want: object) -> None:
    got = reduce_reference(name, values, padded, **options)
    if want is None:
        assert got is None
    else:
        assert got == pytest.approx(want, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize(
    "name", ["Max", "Min", "Sum", "Mean", "GeM", "LogSumExp", "Soft", "Std", "Median"]
)
def test_a_nan_propagates(name: str) -> None:
    assert math.isnan(reduce_reference(name, [1.0, math.nan, 2.0], 3))


def test_the_first_of_equals_keeps_its_sign() -> None:
    assert math.copysign(1, reduce_reference("Max", [-0.0, 0.0], 2)) == -1
    assert math.copysign(1, reduce_reference("Min", [0.0, -0.0], 2)) == 1


def test_places() -> None:
    assert locate_reference("Max", [1, 3, 3]) == 1
    assert locate_reference("Min", [3, 1, 1]) == 1
    assert locate_reference("Max", [math.nan, 5.0, math.nan, 6.0]) == 2
    assert locate_reference("Max", []) is None


def test_a_plane() -> None:
    x = np.arange(12).reshape(3, 4)
    axes = [sliding_positions(3, 2, 1, 0, 0), sliding_positions(4, 2, 2, 0, 0)]
    got = pool_reference(x, axes, lambda values, padded: sum(values))
    np.testing.assert_array_equal(got.astype(int), [[10, 18], [26, 34]])


def test_padding_is_counted_but_not_seen() -> None:
    x = np.array([[5.0]])
    axes = [sliding_positions(1, 3, 1, 1, 1)] * 2
    got = pool_reference(x, axes, lambda values, padded: (len(values), padded))
    assert got[0, 0] == (1, 9)


def test_it_finds_a_wrong_result() -> None:
    """A pooling that is off by one position, and one that is off in the last digit."""
    x = np.arange(6.0)
    axes = [sliding_positions(6, 2, 2, 0, 0)]
    want = pool_reference(x, axes, lambda values, padded: reduce_reference("Max", values, padded))
    right = x.reshape(3, 2).max(1)
    np.testing.assert_array_equal(want.astype(float), right)
    assert not np.array_equal(want.astype(float), np.roll(x, 1).reshape(3, 2).max(1))
    assert not np.array_equal(want.astype(float), np.nextafter(right, np.inf))


def test_an_unknown_reduction_is_not_passed_over() -> None:
    with pytest.raises(AssertionError, match="does not know Mode"):
        reduce_reference("Mode", [1], 1)
