"""How often the intervals of `poolkit compare` hold the truth, beside two simpler ways.

    python benchmarks/intervals.py

Studies are simulated whose true difference is zero: right answers differ by the seed, by the test
item, and by both together. Printed is the share of studies whose 95 % interval holds zero, and how
wide it is beside ours.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_1samp

from poolkit.comparison.statistics import paired_difference

STUDIES, ITEMS, RESAMPLES = 400, 500, 400
#: Standard deviations of seeds, of items, and of one model on one item.
SPREADS = {
    "noise alone": (0.0, 0.0, 0.2),
    "seeds": (0.03, 0.0, 0.2),
    "items": (0.0, 0.2, 0.2),
    "both": (0.005, 0.1, 0.2),
}


def ours(table: np.ndarray, seed: int) -> tuple[float, float]:
    return paired_difference(table, 0 * table, resamples=RESAMPLES, seed=seed).interval()


def over_seeds(table: np.ndarray, seed: int) -> tuple[float, float]:
    """Student's t: the test set is the world."""
    found = ttest_1samp(table.mean(1), 0).confidence_interval(0.95)
    return float(found.low), float(found.high)


def both_resampled(table: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentiles of means over seeds and items that are both drawn with replacement."""
    rng = np.random.default_rng(seed)
    seeds, items = table.shape
    of_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    of_items = rng.multinomial(items, [1 / items] * items, RESAMPLES) / items
    means = np.einsum("bs,si,bi->b", of_seeds, table, of_items, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    ways = (ours, over_seeds, both_resampled)
    print("| varies by | seeds | " + " | ".join(way.__name__ for way in ways) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in ways) + " |")
    for name, (by_seed, by_item, by_both) in SPREADS.items():
        for seeds in (3, 5, 10):
            rng = np.random.default_rng(0)
            held, width = np.zeros(len(ways)), np.zeros(len(ways))
            for study in range(STUDIES):
                table = rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_item, ITEMS)
                table = table + rng.normal(0, by_both, (seeds, ITEMS))
                for index, way in enumerate(ways):
                    low, high = way(table, study)
                    held[index] += low <= 0 <= high
                    width[index] += high - low
            cells = (
                f"{100 * h / STUDIES:.1f} %, {w / width[0]:.2f}"
                for h, w in zip(held, width, strict=True)
            )
            print(f"| {name} | {seeds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
