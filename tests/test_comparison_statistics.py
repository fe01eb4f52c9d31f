# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Differences, intervals, verdicts: against SciPy, by hand, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

stats = pytest.importorskip("scipy.stats")

from poolkit.comparison.statistics import (
    PairedDifference,
    holm,
    paired_difference,
    seeds_to_settle,
)
from poolkit.errors import PoolValueError

BY_SEED = np.array([0.012, 0.004, 0.009, -0.001, 0.006])


def of_seeds(by_seed: np.ndarray, items: int = 40) -> PairedDifference:
    """A difference that is alike for all items."""
    table = np.repeat(by_seed[:, None], items, 1)
    return paired_difference(table, np.zeros_like(table))


def test_without_an_effect_of_items_it_is_the_paired_t_test():
    found, base = of_seeds(BY_SEED), np.zeros(5)
    theirs = stats.ttest_rel(BY_SEED, base)
    assert found.mean == pytest.approx(0.006)
    assert found.p_different == pytest.approx(theirs.pvalue, rel=1e-9)
    for confidence in (0.9, 0.95, 0.99):
        interval = theirs.confidence_interval(confidence)
        assert found.interval(confidence) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_the_paired_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(2) of 97.5 % is 4.3027.
    low, high = of_seeds(np.array([1.0, 2.0, 3.0])).interval(0.95)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.05])
def test_equivalence_is_two_one_sided_t_tests(margin):
    lower = stats.ttest_1samp(BY_SEED, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(BY_SEED, margin, alternative="less").pvalue
    assert of_seeds(BY_SEED).p_equivalent(margin) == pytest.approx(max(lower, upper), rel=1e-9)


def test_without_an_effect_of_seeds_it_is_the_bootstrap_of_items():
    of_item = np.random.default_rng(0).integers(-1, 2, 300).astype(float)
    table = np.repeat(of_item[None], 4, 0)
    found = paired_difference(table, np.zeros_like(table), resamples=20_000)
    theirs = stats.bootstrap(
        (of_item,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert found.interval(0.95) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert found.item_variance == pytest.approx(of_item.var(ddof=1) / 300)


def test_no_difference_at_all_is_equivalent_and_not_different():
    same = of_seeds(np.zeros(4))
    assert same.interval() == (0.0, 0.0)
    assert same.p_different == 1.0
    assert same.p_equivalent(0.001) == 0.0


def test_the_order_of_seeds_and_of_items_does_not_matter():
    rng = np.random.default_rng(3)
    right, base = (rng.random((2, 6, 80)) < 0.9).astype(float)
    found = paired_difference(right, base)
    seeds, items = rng.permutation(6), rng.permutation(80)
    moved = paired_difference(right[seeds][:, items], base[seeds][:, items])
    assert moved.interval() == pytest.approx(found.interval())
    swapped = paired_difference(base, right)
    assert swapped.mean == -found.mean
    assert swapped.item_variance == pytest.approx(found.item_variance)


def covered(seed_sd: float, item_sd: float, noise_sd: float) -> tuple[float, float]:
    """How often 95 % intervals hold the truth: ours, and Student's t over seeds alone."""
    rng, trials, seeds, items = np.random.default_rng(0), 250, 5, 200
    ours = students = 0
    for trial in range(trials):
        table = (
            rng.normal(0, seed_sd, (seeds, 1))
            + rng.normal(0, item_sd, items)
            + rng.normal(0, noise_sd, (seeds, items))
        )
        low, high = paired_difference(table, 0 * table, resamples=300, seed=trial).interval()
        ours += low <= 0 <= high
        interval = stats.ttest_1samp(table.mean(1), 0).confidence_interval(0.95)
        students += interval.low <= 0 <= interval.high
    return ours / trials, students / trials


def test_intervals_hold_the_truth_as_often_as_they_say():
    for spread in ((0.01, 0.05, 0.1), (0.03, 0.0, 0.1), (0.0, 0.1, 0.1)):
        ours, _ = covered(*spread)
        assert 0.925 <= ours <= 0.985, spread


def test_intervals_over_seeds_alone_would_not():
    ours, students = covered(0.0, 0.2, 0.1)
    assert ours >= 0.92
    assert students < 0.7


def test_holm_by_hand():
    # Sorted .005, .01, .03, .04 are multiplied by 4, 3, 2, 1, and never fall.
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert all(q <= len(p_values) * p for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def spread_of(mean: float, deviation: float = 1.0, items: float = 0.0) -> PairedDifference:
    """Five seeds of this mean and standard deviation."""
    shape = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    return PairedDifference(
        mean, mean + deviation * shape / shape.std(ddof=1), np.array([mean]), items
    )


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.8, 15), (0.5, 34), (2.0, 5)])
def test_seeds_needed_for_a_difference_are_those_of_the_tables(effect, seeds):
    """Paired t-test, two-sided 5 %, power 80 %."""
    assert seeds_to_settle(spread_of(effect), margin=1e-6) == seeds


def test_seeds_needed_have_the_power_they_promise():
    rng, alpha, margin = np.random.default_rng(0), 0.05, 1.0
    for mean in (0.0, 0.3):
        needed = seeds_to_settle(spread_of(mean), margin, alpha)
        assert needed is not None

        def power(seeds: int, mean: float = mean) -> float:
            drawn = rng.normal(mean, 1, (4000, seeds))
            error = drawn.std(1, ddof=1) / seeds**0.5
            lower = stats.t.sf((drawn.mean(1) + margin) / error, seeds - 1)
            upper = stats.t.cdf((drawn.mean(1) - margin) / error, seeds - 1)
            return float((np.maximum(lower, upper) <= alpha).mean())

        assert power(needed) > 0.78
        assert power(needed - 2) < 0.8


def test_more_seeds_do_not_help_where_test_items_are_too_few():
    assert seeds_to_settle(spread_of(0.3, items=1.0), margin=0.5) is None


@pytest.mark.parametrize(
    ("right", "base", "message"),
    [
        (np.ones((3, 4)), np.ones((3, 5)), "one shape (seeds, items), got (3, 4) and (3, 5)"),
        (np.ones(4), np.ones(4), "one shape (seeds, items)"),
        (np.ones((1, 4)), np.ones((1, 4)), "2 seeds and 2 items or more, got (1, 4)"),
    ],
)
def test_what_cannot_be_paired_is_refused(right, base, message):
    with pytest.raises(PoolValueError) as error:
        paired_difference(right, base)
    assert message in str(error.value)
