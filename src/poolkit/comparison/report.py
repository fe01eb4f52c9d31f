"""What a comparison found: plain data, verdicts in words, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np

from poolkit.comparison.statistics import (
    PairedDifference,
    holm,
    paired_difference,
    seeds_to_settle,
)
from poolkit.comparison.study import Arm, Record, Study, Task, correct_of
from poolkit.files import write_whole

#: The version of the JSON; it changes when a key changes its meaning or goes.
JSON_VERSION = 1

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
class Comparison:
    """Which pooling is better in a model, on the data it was tried on, and at what cost.

    ``print(comparison)`` shows the table, ``to_json()`` and ``to_html(path)`` write it down, and
    ``rows`` are there to be computed with; the first is the baseline.

    Attributes:
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
        return max(row.accuracy, self.baseline.accuracy) > _learned_from(
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

    def __str__(self) -> str:
        """The table, as plain text."""
        from poolkit.comparison.terminal import lines
        from poolkit.inspection.terminal import as_text

        return as_text(lines(self, 160), 160)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, with ``"version": 1`` first."""
        rows = [asdict(row) | {"verdict": self.verdict(row)} for row in self.rows]
        return {"version": JSON_VERSION, **asdict(self), "rows": rows}

    def to_json(self) -> str:
        """The comparison as JSON. Figures that there are none of are null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, whole or not at all, and return its path."""
        from poolkit.comparison.page import render

        path = Path(path)
        write_whole(path, render(self))
        return path


def summarize(
    study: Study, records: Sequence[Record], margin: float, confidence: float
) -> Comparison:
    """The comparison that the records of a finished study make; `margin` is a share."""
    by_key = {Task.of(record).key: record for record in records[1:]}
    rates = {arm.name: study.rate(arm.name, records) for arm in study.arms}
    runs = {
        arm.name: [
            by_key[Task("run", arm.name, rates[arm.name], seed).key]
            for seed in range(1, study.seeds + 1)
        ]
        for arm in study.arms
    }
    untimed: Record = {"batch": 0, "arms": {}}
    times = by_key[study.timing.key] if study.seconds else untimed
    items = len(study.data.test)
    base, *others = study.arms
    correct = {
        name: np.array([correct_of(run, items) for run in own]) for name, own in runs.items()
    }
    rows = [
        _row(study, arm, rates[arm.name], runs[arm.name], times["arms"].get(arm.name))
        for arm in study.arms
    ]
    rows[0].outcome = "baseline"
    differences = [paired_difference(correct[arm.name], correct[base.name]) for arm in others]
    alpha = 1 - confidence
    different = holm([found.p_different for found in differences])
    equivalent = holm([found.p_equivalent(margin) for found in differences])
    for row, found, p_different, p_equivalent in zip(
        rows[1:], differences, different, equivalent, strict=True
    ):
        row.difference = found.mean
        row.interval = found.interval(confidence)
        row.p_different, row.p_equivalent = p_different, p_equivalent
        row.outcome = _outcome(found, p_different, p_equivalent, alpha)
        if row.outcome == "inconclusive":
            row.seeds_needed = seeds_to_settle(found, margin, alpha / len(others))
        if row.consistency is not None and rows[0].consistency is not None:
            row.consistency_difference = row.consistency - rows[0].consistency
    chance = float(study.data.test.labels.bincount().max()) / items
    for row in rows:
        row.failed = sum(own <= _learned_from(chance, items) for own in row.accuracies)
    comparison = Comparison(
        model=study.source.name,
        data=str(study.data),
        rows=rows,
        seeds=study.seeds,
        test_items=items,
        epochs=study.schedule.epochs,
        batch_size=study.schedule.batch_size,
        learning_rates=list(study.rates),
        margin=margin,
        confidence=confidence,
        threads=study.threads,
        timed_batch=times["batch"],
        trained_seconds=sum(record.get("seconds", 0) for record in records),
        chance=chance,
        kept=study.kept(),
        versions={key: records[0][key] for key in ("poolkit", "torch", "python", "machine")},
    )
    for row in rows[1:]:
        if not comparison.learned(row):
            row.outcome, row.seeds_needed = "inconclusive", None
    return comparison


def _row(study: Study, arm: Arm, rate: float | None, runs: list[Record], times: Any) -> VariantRow:
    assert rate is not None
    accuracies = [run["accuracy"] for run in runs]
    consistencies = [run["consistency"] for run in runs if run["consistency"] is not None]
    return VariantRow(
        name=arm.variant.name,
        control=arm.control,
        width=arm.width,
        learning_rate=rate,
        at_edge=len(study.rates) > 1 and rate in (min(study.rates), max(study.rates)),
        accuracy=float(np.mean(accuracies)),
        accuracies=accuracies,
        outcome="inconclusive",
        consistency=float(np.mean(consistencies)) if consistencies else None,
        parameters=arm.parameters,
        multiply_adds=arm.multiply_adds,
        training_bytes=arm.training_bytes,
        inference_ms=times["milliseconds"] if times else {},
        inference_ratio=times["ratios"] if times else {},
    )


def _learned_from(chance: float, items: int) -> float:
    """The accuracy above which a model knows more than which class is the most frequent."""
    return chance + 3 * sqrt(chance * (1 - chance) / items)


def _outcome(
    found: PairedDifference, p_different: float, p_equivalent: float, alpha: float
) -> Outcome:
    """Equivalent goes first: a difference that is real but smaller than the margin is none that
    matters."""
    if p_equivalent <= alpha:
        return "equivalent"
    if p_different <= alpha:
        return "better" if found.mean > 0 else "worse"
    return "inconclusive"
