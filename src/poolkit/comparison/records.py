"""What a comparison found: plain data, and verdicts in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

Outcome = Literal["baseline", "better", "worse", "equivalent", "inconclusive"]


@dataclass
class VariantRow:
    """One variant under one control. Accuracies and consistencies are shares from 0 to 1.

    Attributes:
        name, control: the variant as it was spelled, and what is equal to the baseline.
        width: of the model, as a multiple of its own, where a control asked for another.
        learning_rate: chosen on the validation split.
        at_edge: whether that is the lowest or highest there was to choose, so that a better one
            may lie beyond.
        accuracies: on the test split, one for each seed; `accuracy` is their mean.
        failed: how many of these trainings ended no better than naming the most frequent class.
        difference, interval: accuracy less the baseline's, paired by seed and item.
        p_different, p_equivalent: p-values, corrected for the number of variants (Holm).
        outcome: the verdict in a word.
        seeds_needed: with how many it would be settled, if it is not; None if no number would.
        consistency: how often an image is named alike at two places; None for no images.
        parameters, multiply_adds: of the model; the latter of one input, and of convolutions and
            matrix products only.
        training_bytes: what a step of training holds: kept for backward, gradients, momentum.
        inference_ms, inference_ratio: of a batch, by layout, and as a multiple of the baseline's.
    """

    name: str
    control: str
    width: float
    learning_rate: float
    at_edge: bool
    accuracy: float
    accuracies: list[float]
    outcome: Outcome
    failed: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_different: float | None = None
    p_equivalent: float | None = None
    seeds_needed: int | None = None
    consistency: float | None = None
    consistency_difference: float | None = None
    parameters: int = 0
    multiply_adds: int = 0
    training_bytes: int = 0
    inference_ms: dict[str, float] = field(default_factory=dict)
    inference_ratio: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name if self.control == "plain" else f"{self.name}, same {self.control}"


@dataclass
class Findings:
    """Which pooling is better in a model, on the data it was tried on, and at what cost.

    Attributes:
        rows: of all variants, the baseline's first.
        margin, confidence: shares from 0 to 1.
        timed_batch: inputs of which times were taken; 0 if none were.
        trained_seconds: of all trainings and timings, in all processes.
        chance: accuracy of naming the most frequent class.
        kept: poolings that no variant replaces.
    """

    model: str
    data: str
    rows: list[VariantRow]
    seeds: int
    test_items: int
    epochs: int
    batch_size: int
    learning_rates: list[float]
    margin: float
    confidence: float
    threads: int
    timed_batch: int
    trained_seconds: float
    chance: float
    kept: list[str]
    versions: dict[str, str]

    @property
    def baseline(self) -> VariantRow:
        return self.rows[0]

    def learned(self, row: VariantRow) -> bool:
        """Whether a variant or the baseline knows more than which class is the most frequent."""
        return max(row.accuracy, self.baseline.accuracy) > learned_from(
            self.chance, self.test_items
        )

    def verdict(self, row: VariantRow) -> str:
        """The verdict on a row, as a sentence."""
        if row.outcome == "baseline":
            return "what the others are compared with"
        assert row.difference is not None
        if not self.learned(row):
            return "inconclusive: neither learned to tell the classes apart; train for longer"
        points = f"{100 * row.difference:+.2f} points"
        margin = f"±{100 * self.margin:g} points"
        text = {
            "better": f"better than {self.baseline.name} by {points.lstrip('+')}",
            "worse": f"worse than {self.baseline.name} by {points.lstrip('-')}",
            "equivalent": f"equivalent to {self.baseline.name} within {margin}",
            "inconclusive": f"inconclusive: {points} may be chance",
        }[row.outcome]
        if row.outcome == "inconclusive":
            assert row.interval is not None
            if row.interval[0] > 0 or row.interval[1] < 0:
                text += f" in one of {len(self.rows) - 1}"
            needed = "no number of seeds would settle it, only more test items"
            if row.seeds_needed is not None:
                needed = f"about {row.seeds_needed} seeds would settle it"
            text += f", and may be more than {margin}; {needed}"
        return f"{text}, on this data only"


def learned_from(chance: float, items: int) -> float:
    """The accuracy above which a model knows more than which class is the most frequent."""
    return chance + 3 * sqrt(chance * (1 - chance) / items)
