"""Whether two ways of training differ, from few seeds and many test items.

What is compared are matrices of one row for each seed and one column for each test item: 1 where
the model was right. Their difference varies for three reasons: the seed (``σs²``), the item
(``σi²``: another test set would have others) and both together (``σe²``). The mean of S seeds and
I items has the variance ``σs²/S + σi²/I + σe²/(SI)``. The spread over seeds on one test set knows
the first and the last, and takes the test set for the world; so items are resampled as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from typing import Any

import numpy as np

from poolkit.errors import MissingExtraError, PoolValueError

try:
    from scipy.optimize import brentq
    from scipy.special import nctdtr, ndtri, stdtr, stdtrit
except ModuleNotFoundError:
    raise MissingExtraError("scipy", "compare") from None

#: Test sets that are drawn. The ends of a 95 % interval then vary by a few thousandths of it.
RESAMPLES = 4000
#: How likely a difference of the size observed should be found, to say how many seeds that takes.
POWER = 0.8
#: A study of more seeds than this is no answer to how many it takes.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two ways of training, and how well it is known.

    Attributes:
        mean: over seeds and items.
        by_seed: (S,) the difference of each seed, over all items.
        resampled: (B,) the mean on other test sets, drawn from this one.
        item_variance: of the mean, for the choice of test items; seeds do not lower it.
    """

    mean: float
    by_seed: np.ndarray
    resampled: np.ndarray
    item_variance: float

    @cached_property
    def seed_deviation(self) -> float:
        """Standard deviation of the differences from seed to seed."""
        return float(np.std(self.by_seed, ddof=1))

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    def below(self, value: float) -> float:
        """The confidence that the true difference is below `value`: a number from 0 to 1.

        The mean of seeds varies as Student's t with S - 1 degrees of freedom, about what it is on
        each resampled test set.
        """
        distance = value - self.resampled
        error = self.seed_deviation / sqrt(self.seeds)
        if error == 0:
            return float(np.mean((distance > 0) + 0.5 * (distance == 0)))
        return float(np.mean(stdtr(self.seeds - 1, distance / error)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval of the difference, two-sided."""
        tail = (1 - confidence) / 2
        return self._quantile(tail), self._quantile(1 - tail)

    def _quantile(self, level: float) -> float:
        error = self.seed_deviation / sqrt(self.seeds)
        if error == 0:
            return float(np.quantile(self.resampled, level))
        # On no test set that was drawn the quantile lies further out than this.
        reach = abs(stdtrit(self.seeds - 1, level)) * error + 1e-12
        low, high = float(self.resampled.min()) - reach, float(self.resampled.max()) + reach
        return float(brentq(lambda value: self.below(value) - level, low, high, xtol=1e-9))

    @property
    def p_different(self) -> float:
        """p-value of "there is no difference", two-sided."""
        below = self.below(0.0)
        return min(1.0, 2 * min(below, 1 - below))

    def p_equivalent(self, margin: float) -> float:
        """p-value of "the difference is `margin` or more, either way": two one-sided tests.

        Source: Donald J. Schuirmann, "A comparison of the two one-sided tests procedure and the
        power approach for assessing the equivalence of average bioavailability", 1987.
        """
        return max(self.below(-margin), 1 - self.below(margin))


def paired_difference(
    correct: Any, baseline: Any, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compare two matrices (seeds, items) whose rows and columns belong together.

    The test items are resampled by their mean over seeds, pulled towards the mean of all by as
    much as of their spread is the noise of so few seeds: without that, the noise ``σe²`` would
    count twice (the reflated residuals of James R. Carpenter, Harvey Goldstein and Jon Rasbash, "A
    novel bootstrap procedure for assessing the relationship between class size and achievement",
    2003). `seed` is of the resampling.

    Raises:
        PoolValueError: for matrices of different or other shapes, or fewer than 2 seeds or items.

    >>> right, base = np.ones((3, 4)), np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    >>> paired_difference(right, base).by_seed
    array([0.25, 0.5 , 0.  ])
    """
    correct, baseline = np.asarray(correct, float), np.asarray(baseline, float)
    if correct.shape != baseline.shape or correct.ndim != 2:
        raise PoolValueError(
            f"paired results have one shape (seeds, items), got {correct.shape} and "
            f"{baseline.shape}",
            "Give the same seeds and items of both",
        )
    if min(correct.shape) < 2:
        raise PoolValueError(
            f"an interval needs 2 seeds and 2 items or more, got {correct.shape}",
            "Train with more seeds",
        )
    difference = correct - baseline
    seeds, items = difference.shape
    mean = float(difference.mean())
    of_item = difference.mean(0)
    spread = float(of_item.var(ddof=1))
    noise = _residual_variance(difference) / seeds
    share = max(0.0, 1 - noise / spread) if spread else 0.0
    # Most items have one of few patterns, so a resample is a draw of how many there are of each.
    values, counts = np.unique(of_item, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(items, counts / items, size=resamples)
    resampled = mean + sqrt(share) * (draws @ values / items - mean)
    return PairedDifference(mean, difference.mean(1), resampled, share * spread / items)


def _residual_variance(table: np.ndarray) -> float:
    """σe² of a two-way table: what neither its row nor its column explains."""
    rows, columns = table.shape
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((rows - 1) * (columns - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several questions, raised so that asking many of them finds nothing by chance.

    Source: Sture Holm, "A simple sequentially rejective multiple test procedure", 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_to_settle(
    difference: PairedDifference, margin: float, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """How many seeds would tell, if the truth is what was observed; None if no number would.

    The fewest with which, with probability `power`, either a difference of this mean is found or
    one beyond `margin` is ruled out. More seeds do not help where the number of test items is what
    limits. It is no more exact than the spread from seed to seed that it is computed from.

    >>> none = np.zeros(1)
    >>> seeds_to_settle(PairedDifference(1.0, np.array([0.0, 1.0, 2.0]), none, 0.0), 0.1)
    10
    """

    def found(seeds: int) -> bool:
        error = sqrt(difference.seed_deviation**2 / seeds + difference.item_variance)
        if error == 0:
            return True
        return (
            _power_of_difference(difference.mean / error, seeds, alpha) >= power
            or _power_of_equivalence(difference.mean / error, margin / error, seeds, alpha) >= power
        )

    return next((seeds for seeds in range(2, MOST_SEEDS + 1) if found(seeds)), None)


def _power_of_difference(shift: float, seeds: int, alpha: float) -> float:
    """Probability that a two-sided t-test finds a difference of `shift` standard errors."""
    freedom = seeds - 1
    critical = stdtrit(freedom, 1 - alpha / 2)
    found = 1 - nctdtr(freedom, abs(shift), critical)
    # SciPy has no value far out in the tails, where the normal distribution is as good.
    return float(found) if isfinite(found) else float(abs(shift) > critical - ndtri(1 - POWER))


def _power_of_equivalence(shift: float, margin: float, seeds: int, alpha: float) -> float:
    """Probability that two one-sided t-tests put it within `margin`, all in standard errors."""
    freedom = seeds - 1
    critical = stdtrit(freedom, 1 - alpha)
    upper = stdtr(freedom, margin - shift - critical)
    lower = stdtr(freedom, margin + shift - critical)
    return max(0.0, float(upper + lower - 1))
