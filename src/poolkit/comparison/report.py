"""The comparison: what was found, and the ways to show it and write it down.

It knows the page, the terminal and the JSON, and none of them knows it: they draw ``Findings``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from poolkit.comparison.records import Findings, Outcome, VariantRow, learned_from
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


class Comparison(Findings):
    """Which pooling is better in a model, on the data it was tried on, and at what cost.

    ``print(comparison)`` shows the table, ``to_json()`` and ``to_html(path)`` write it down, and
    ``rows`` are there to be computed with; the first is the baseline.
    """

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
        row.failed = sum(own <= learned_from(chance, items) for own in row.accuracies)
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
