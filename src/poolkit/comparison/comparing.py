"""`compare`: from what was asked for to what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from poolkit.comparison.data import Data, Split, as_data, load_data
from poolkit.comparison.engine import check_terms, settle_terms, work
from poolkit.comparison.journal import Journal
from poolkit.comparison.models import CONTROLS, Factory, model_source
from poolkit.comparison.report import Comparison, summarize
from poolkit.comparison.study import Record, Study, make_arms
from poolkit.comparison.training import Schedule, scores, train
from poolkit.comparison.variants import Variant, read_variant, split
from poolkit.errors import PoolValueError
from poolkit.inspection.inspector import Progress, versions
from poolkit.timing import check_seconds

EPOCHS = 10
RATES = (0.02, 0.05, 0.1, 0.2, 0.4)
#: Items in an epoch that is timed for a budget.
_PROBED = 512


def compare(
    model: Factory | str | None = None,
    data: Data | Any = "mnist-5k",
    variants: Sequence[str] | str = ("max", "avg"),
    seeds: int = 5,
    *,
    baseline: str | None = None,
    controls: Sequence[str] = ("plain",),
    epochs: int | None = None,
    budget: float | None = None,
    learning_rates: Sequence[float] = RATES,
    batch_size: int = 64,
    margin: float = 0.5,
    confidence: float = 0.95,
    study: str | Path | None = None,
    seconds: float = 0.4,
    threads: int = 1,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train a model with each of several poolings from scratch, and say which is better.

    For each variant and seed the same shared weights start from the same values, and see the same
    data in the same order as often. The learning rate is chosen once for each variant, by a model
    of its own, on the validation split. The test split is used for nothing but the result.

    Args:
        model: a function that returns a new model, ``file.py:factory``, or ``"vgg"``, a small
            network that is built in. The function has an argument `width` if `controls` are to be
            met.
        data: ``(train, validation, test)``, each a pair of inputs and labels, ``(train, test)``,
            a name (see `load_data`), or ``file.py:factory``.
        variants: names of `poolkit.nn.pools2d` with options, as ``"gem(p=3)"``. A window replaces
            all sliding windows of the model, a global pooling all that end a map; ``+`` joins two.
            Also ``"moved-stride"``, ``"original"``, ``"strided"`` and ``"depthwise"``.
        seeds: models for each variant, 2 or more.
        baseline: the variant that the others are compared with; the first if not given. What a
            variant does not name is as it is in the baseline.
        controls: what is held equal: ``"plain"``, ``"parameters"``, ``"multiply-adds"``.
        epochs: of each training; 10 if no budget is given.
        budget: minutes of one process for all trainings, from which the epochs follow, the same
            for all variants.
        learning_rates: to choose from.
        margin: a difference of fewer percentage points does not matter.
        confidence: of intervals, and of the verdicts all together.
        study: a file for finished runs: a second call with it goes on where the first stopped,
            several processes may work on it, and seeds, variants and rates can be added. Without
            it nothing is kept.
        seconds: for timing each variant in each layout; 0 times nothing.
        threads: of each training; the bits of the results depend on it.
        ray: address of a Ray cluster to train on, or ``"local"`` for one in this machine.
        progress: called with what is being done, how many tasks are done, and of how many.

    Returns:
        A `Comparison`: accuracies, differences with intervals, costs and verdicts.

    Raises:
        PoolValueError, PoolTypeError: for names, data or sizes that do not fit, before anything is
            trained; for a `study` of other settings; for a budget of less than an epoch.
        MissingExtraError: without SciPy, or without Ray where `ray` is given.

    >>> import torch, poolkit
    >>> images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 2
    >>> splits = [(images[i::3], labels[i::3]) for i in range(3)]
    >>> found = poolkit.compare(None, splits, ["max", "avg"], seeds=2, epochs=1, seconds=0)
    >>> [row.name for row in found.rows], found.rows[0].parameters
    (['max', 'avg'], 18218)
    """
    _check(seeds, controls, epochs, budget, learning_rates, batch_size, margin, confidence, threads)
    check_seconds(seconds)
    names = split(variants) if isinstance(variants, str) else list(variants)
    first, others = _variants(names, baseline)
    data = load_data(data) if isinstance(data, str) else as_data(data)
    channels = data.train.inputs.shape[1] if data.train.inputs.ndim > 1 else 1
    source = model_source(model, channels, data.classes)
    tell = progress or (lambda what, done, total: None)
    tell("measuring the variants", 0, 0)
    arms = make_arms(source, data, others, first, controls, batch_size)
    wanted: dict[str, Any] = {
        "model": f"{source.name} {source.digest(data.train.inputs[:2])}",
        "data": f"{data} {data.digest()}",
        "baseline": first.name,
        "batch_size": batch_size,
        "threads": threads,
        "torch": torch.__version__,
        "budget": budget,
    }

    def made(epochs: int) -> Study:
        schedule = Schedule(epochs, min(batch_size, len(data.train)))
        return Study(source, data, arms, schedule, tuple(learning_rates), seeds, seconds, threads)

    def terms() -> Record:
        planned = epochs or (EPOCHS if budget is None else _epochs_for(budget, made(1), tell))
        return {"kind": "study", "version": 1, **wanted, "epochs": planned, **versions()}

    with (
        tempfile.TemporaryDirectory() as scratch,
        Journal(Path(study) if study else Path(scratch, "study.jsonl")) as journal,
    ):
        settled = settle_terms(journal, terms)
        if budget is None:
            wanted["epochs"] = epochs or EPOCHS
        check_terms(journal, settled, wanted)
        ready = made(settled["epochs"])
        if ray is None:
            records = work(ready, journal, tell)
        else:
            from poolkit.comparison.cluster import work_on_ray

            records = work_on_ray(ready, journal, tell, ray)
    return summarize(ready, records, margin / 100, confidence)


def _variants(names: list[str], baseline: str | None) -> tuple[Variant, list[Variant]]:
    """The baseline, and the others in their order, each once."""
    if not names:
        raise PoolValueError("there is no variant to compare", "Give names such as max,avg,gem")
    first = read_variant(baseline if baseline is not None else names[0])
    others: dict[str, Variant] = {}
    for variant in map(read_variant, names):
        if variant.name != first.name:
            others[variant.name] = variant
    if not others:
        raise PoolValueError(
            f"there is nothing to compare {first.name!r} with", "Give two variants or more"
        )
    return first, list(others.values())


def _epochs_for(budget: float, study: Study, tell: Progress) -> int:
    """How many epochs of all trainings, and their tests, fit into so many minutes.

    From the second of two short epochs of each arm: the first plans and allocates.
    """
    data = study.data.train
    part = Split(data.inputs[:_PROBED], data.labels[:_PROBED])
    tested = 3 * len(study.data.test)  # as they are, and twice shifted
    epoch_s = tests_s = 0.0
    for index, arm in enumerate(study.arms):
        tell(f"timing an epoch of {arm.name}", index, len(study.arms))
        model = study.source.build(arm.variant, data.inputs[:2], 0, arm.width)
        for _ in range(2):
            began = perf_counter()
            train(model, part, min(study.rates), study.schedule, 0, lambda epoch: None)
            trained = perf_counter()
            scores(model, part.inputs)
            scored = perf_counter()
        models = len(study.rates) + study.seeds
        epoch_s += models * (trained - began) * len(data) / len(part)
        tests_s += study.seeds * (scored - trained) * tested / len(part)
    epochs = int((60 * budget - tests_s) / epoch_s)
    if epochs < 1:
        raise PoolValueError(
            f"{budget:g} minutes are too few: one epoch of all trainings takes "
            f"{(epoch_s + tests_s) / 60:.1f}",
            "Give more, or fewer variants, seeds or training items",
        )
    return epochs


def _check(
    seeds: int,
    controls: Sequence[str],
    epochs: int | None,
    budget: float | None,
    rates: Sequence[float],
    batch_size: int,
    margin: float,
    confidence: float,
    threads: int,
) -> None:
    if seeds < 2:
        raise PoolValueError(
            f"a comparison needs 2 seeds or more, got {seeds}",
            "One training says nothing about the next",
        )
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise PoolValueError(
            f"there is no control {unknown[0]!r}", f"Give some of {', '.join(CONTROLS)}"
        )
    if not controls:
        raise PoolValueError("no control was given", f"Give some of {', '.join(CONTROLS)}")
    if epochs is not None and budget is not None:
        raise PoolValueError("epochs and budget say the same thing twice", "Give one of them")
    for name, value, least in (
        ("epochs", epochs, 1), ("batch_size", batch_size, 1), ("threads", threads, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise PoolValueError(f"{name} must be at least {least}, got {value}")
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise PoolValueError(
            f"learning rates are positive numbers, got {list(rates)}", "Give some, as 0.02,0.05"
        )
    if budget is not None and not 0 < budget < float("inf"):
        raise PoolValueError(f"budget is a number of minutes above 0, got {budget}")
    if not 0 < margin < 100 or not 0.5 < confidence < 1:
        raise PoolValueError(
            f"margin is in percentage points and confidence from 0.5 to 1, got {margin} and "
            f"{confidence}",
            "Give margin=0.5 and confidence=0.95, or numbers like these",
        )
