"""Windows and reductions as text, and back."""

from __future__ import annotations

import numpy as np
import pytest
from examples import REDUCTIONS, WINDOWS

import poolkit
from poolkit.reductions import GeM, Lp, Quantile, Reduction, Soft, Std, TopK, as_reduction
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window, as_window


@pytest.mark.parametrize("window", [window for _, window in WINDOWS], ids=str)
def test_windows_round_trip(window: Window) -> None:
    assert as_window(repr(window)) == window
    assert hash(as_window(repr(window))) == hash(window)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_reductions_round_trip(reduction: Reduction) -> None:
    assert as_reduction(repr(reduction)) == reduction
    assert hash(as_reduction(repr(reduction))) == hash(reduction)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Sliding(2), "Sliding(2)"),
        (Sliding([3, 3], stride=2, padding=[1, 1]), "Sliding((3, 3), stride=2, padding=(1, 1))"),
        (Sliding(3, padding="same"), "Sliding(3, padding='same')"),
        (Sliding(3, padding=[[0, 1]]), "Sliding(3, padding=((0, 1),))"),
        (Adaptive([7, None]), "Adaptive((7, None))"),
        (Global(), "Global()"),
        (Pyramid([4, 2, 1]), "Pyramid((4, 2, 1))"),
        (GeM(), "GeM()"),
        (GeM(p=4), "GeM(p=4)"),
        (Lp(2), "Lp(2)"),
        (Std(correction=1), "Std(correction=1)"),
    ],
)
def test_what_a_recipe_looks_like(made: object, text: str) -> None:
    assert repr(made) == text == str(made)


@pytest.mark.parametrize("text", ["max", "Max", "MAX", " max ", "Max()"])
def test_names_are_found_in_any_case(text: str) -> None:
    assert as_reduction(text) == poolkit.Max()


@pytest.mark.parametrize("text", ["log_sum_exp", "LogSumExp", "logsumexp", "Log_Sum_Exp(r=1.0)"])
def test_underscores_do_not_matter(text: str) -> None:
    assert as_reduction(text) == poolkit.LogSumExp()


def test_numbers_of_numpy_are_numbers() -> None:
    """A size out of an array's shape, a share out of an array: the recipe can still be read."""
    made = Sliding(np.int64(3), stride=(np.int32(2), 1), padding=np.array(1))
    assert made == Sliding(3, stride=(2, 1), padding=1)
    assert as_window(repr(made)) == made
    assert repr(Adaptive((np.int64(2), None))) == "Adaptive((2, None))"
    for reduction, text in [
        (Quantile(np.float32(0.5)), "Quantile(0.5)"),
        (Lp(np.float64(3.0)), "Lp(3.0)"),
        (TopK(np.int64(2)), "TopK(2)"),
        (Soft(np.float16(2)), "Soft(beta=2.0)"),
        (poolkit.Mean(divisor=np.int8(3)), "Mean(divisor=3)"),
    ]:
        assert repr(reduction) == text
        assert as_reduction(repr(reduction)) == reduction


def test_lists_and_tuples_are_the_same_window() -> None:
    assert Sliding([3, 2], stride=[1, 2]) == Sliding((3, 2), stride=(1, 2))
    assert Sliding(3) != Sliding(3, stride=1)


@pytest.mark.parametrize(
    "text",
    ["", "max(", "3", "'max'", "max + 1", "max; min", "poolkit.Max()", "Lp(x)", "Lp(**{'p': 2})",
     "Lp(__import__('os'))", "[max]", "Lp({[]: 1})", "lambda: 1", "Lp(" + "(" * 300, "\0"],
)  # fmt: skip
def test_text_that_is_no_recipe(text: str) -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"is not a reduction\. Write a name or"):
        as_reduction(text)


def test_names_that_are_not_registered() -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"reduction named 'mode'\. One of: Max, Min"):
        as_reduction("mode")
    with pytest.raises(poolkit.PoolValueError, match=r"no window named 'Max'. One of: Adaptive"):
        as_window("Max()")


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"'Lp\(\)' does not fit Lp: .*missing 1"):
        as_reduction("Lp()")
    with pytest.raises(poolkit.PoolValueError, match=r"'Max\(3\)' does not fit Max"):
        as_reduction("Max(3)")
    with pytest.raises(poolkit.PoolValueError, match=r"does not fit Sliding: .*unexpected"):
        as_window("Sliding(3, strides=2)")


def test_a_refusal_by_the_constructor_stays_as_it_is() -> None:
    with pytest.raises(poolkit.PoolTypeError, match=r"^kernel_size must be an integer"):
        as_window("Sliding(2.5)")
    with pytest.raises(poolkit.PoolValueError, match=r"^k must be at least 1, got 0"):
        as_reduction("TopK(0)")


@pytest.mark.parametrize("wrong", [None, 3, max, ["max"], object()])
def test_what_is_neither_object_nor_text(wrong: object) -> None:
    with pytest.raises(poolkit.PoolTypeError, match="a reduction was expected, got"):
        as_reduction(wrong)
    with pytest.raises(poolkit.PoolTypeError, match="a window was expected, got"):
        as_window(wrong)
