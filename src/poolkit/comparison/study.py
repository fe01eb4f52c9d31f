"""What there is to do in a comparison, and doing one piece of it."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from poolkit.comparison import costs
from poolkit.comparison.data import Data, Split
from poolkit.comparison.models import CONTROLS, Control, Source, matched_width
from poolkit.comparison.replacement import find
from poolkit.comparison.training import Schedule, as_trained, scores, shift_consistency, train
from poolkit.comparison.variants import ORIGINAL, Variant
from poolkit.errors import PoolError
from poolkit.optimization.equality import fixed_randomness

Record = dict[str, Any]
#: The seed of the models on which learning rates are tuned; those compared are counted from 1.
TUNING_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A variant under a control, as wide as the control asks for."""

    variant: Variant
    control: Control
    width: float
    parameters: int
    multiply_adds: int
    training_bytes: int

    @property
    def name(self) -> str:
        return (
            self.variant.name
            if self.control == "plain"
            else f"{self.variant.name} at same {self.control}"
        )


@dataclass(frozen=True)
class Task:
    """One line of the journal that is to be written.

    ``tuning``: train at a rate and validate. ``run``: train from a seed and test. ``costs``: time
    all arms.
    """

    kind: Literal["tuning", "run", "costs"]
    arm: str = ""
    rate: float | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        return "|".join(map(str, (self.kind, self.arm, self.rate, self.seed)))

    @classmethod
    def of(cls, record: Record) -> Task:
        return cls(record["kind"], record["arm"], record.get("rate"), record.get("seed"))


@dataclass(frozen=True)
class Study:
    """All that is needed to do any task; it can be pickled and sent to another machine.

    Attributes:
        arms: the baseline of each control comes before its variants.
        rates: learning rates to choose from.
        seeds: how many models of each arm are compared.
        seconds: for timing, of each arm in each layout.
        threads: of every training, whose bits depend on it.
    """

    source: Source
    data: Data
    arms: tuple[Arm, ...]
    schedule: Schedule
    rates: tuple[float, ...]
    seeds: int
    seconds: float
    threads: int

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def kept(self) -> list[str]:
        """The poolings of the model that no variant replaces, as pyramids and other ranks."""
        example = self.data.train.inputs[:2]
        places, _ = find(self.source.build(Variant(ORIGINAL, ()), example, TUNING_SEED), example)
        return [str(place) for place in places if place.kind == "map"]

    @property
    def timing(self) -> Task:
        """The times of these arms; with another arm they are taken anew, side by side."""
        names = "\n".join(arm.name for arm in self.arms)
        return Task("costs", hashlib.sha256(f"{names}\n{self.seconds}".encode()).hexdigest()[:16])

    def tasks(self, records: Sequence[Record]) -> list[Task]:
        """All tasks, the arms in turn, so that what is there first is there for all."""
        tasks = [Task("tuning", arm.name, rate) for rate in self.rates for arm in self.arms]
        chosen = {arm.name: self.rate(arm.name, records) for arm in self.arms}
        tasks += [
            Task("run", arm.name, chosen[arm.name], seed)
            for seed in range(1, self.seeds + 1)
            for arm in self.arms
        ]
        return [*tasks, *([self.timing] if self.seconds else [])]

    def rate(self, arm: str, records: Iterable[Record]) -> float | None:
        """The learning rate that was best on the validation split; None before all were tried.

        Of equal accuracies the lower loss decides, and then the lower rate.
        """
        found = {
            record["rate"]: (-record["accuracy"], _or_infinity(record["loss"]), record["rate"])
            for record in records
            if record["kind"] == "tuning" and record["arm"] == arm
        }
        if not set(self.rates) <= set(found):
            return None
        return min(self.rates, key=lambda rate: found[rate])

    def perform(self, task: Task, tell: Callable[[int], None] = lambda epochs: None) -> Record:
        """Do a task, and return its record."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        began = perf_counter()
        try:
            if task.kind == "costs":
                record = self._costs()
            elif task.kind == "tuning":
                record = self._tuning(task, tell)
            else:
                record = self._run(task, tell)
        except PoolError as error:
            raise error.during(f"in the {task.kind} of {task.arm}") from None
        finally:
            torch.set_num_threads(threads)
        done = {"kind": task.kind, "arm": task.arm, "rate": task.rate, "seed": task.seed}
        by = f"{platform.node()}:{os.getpid()}"
        return done | record | {"seconds": round(perf_counter() - began, 3), "by": by}

    def _trained(
        self, task: Task, seed: int, tell: Callable[[int], None]
    ) -> tuple[torch.nn.Module, float]:
        assert task.rate is not None
        arm = self.arm(task.arm)
        model = self.source.build(arm.variant, self.data.train.inputs[:2], seed, arm.width)
        if self.data.train.inputs.ndim == 4:
            model = costs.in_layout(model, torch.channels_last)
        with fixed_randomness(seed):  # of what a model draws itself, as for dropout
            return model, train(model, self.data.train, task.rate, self.schedule, seed, tell)

    def _tuning(self, task: Task, tell: Callable[[int], None]) -> Record:
        model, _ = self._trained(task, TUNING_SEED, tell)
        correct, loss = _answers(model, self.data.validation)
        return {"accuracy": float(correct.mean()), "loss": _finite(loss)}

    def _run(self, task: Task, tell: Callable[[int], None]) -> Record:
        assert task.seed is not None
        model, train_loss = self._trained(task, task.seed, tell)
        correct, _ = _answers(model, self.data.test)
        return {
            "accuracy": float(correct.mean()),
            "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
            "consistency": shift_consistency(model, self.data.test.inputs),
            "train_loss": _finite(train_loss),
        }

    def _costs(self) -> Record:
        models = [
            self.source.build(arm.variant, self.data.train.inputs[:2], TUNING_SEED, arm.width)
            for arm in self.arms
        ]
        batch = self.data.test.inputs[: costs.BATCH]
        found = costs.inference_times(models, batch, self.seconds)
        return {
            "threads": self.threads,
            "batch": len(batch),
            "arms": {arm.name: asdict(t) for arm, t in zip(self.arms, found, strict=True)},
        }


def correct_of(record: Record, items: int) -> np.ndarray:
    """(items,) which test items a run got right."""
    packed = np.frombuffer(base64.b64decode(record["correct"]), np.uint8)
    return np.unpackbits(packed, count=items).astype(bool)


def make_arms(
    source: Source,
    data: Data,
    variants: Sequence[Variant],
    baseline: Variant,
    controls: Sequence[str],
    batch_size: int,
) -> tuple[Arm, ...]:
    """The arms of a study, measured; where a variant meets a control by itself, it is plain.

    Raises:
        PoolError: for a variant that does not fit the model, before anything is trained.
    """
    example, labels = data.train.inputs[:2], data.train.labels

    def built(variant: Variant, width: float = 1.0) -> torch.nn.Module:
        return source.build(variant, example, TUNING_SEED, width)

    def measured(variant: Variant, control: Control, width: float = 1.0) -> Arm:
        model, batch = built(variant, width), as_trained(data.train.inputs[:batch_size])
        return Arm(
            variant,
            control,
            width,
            costs.parameters(model),
            costs.multiply_adds(model, example),
            costs.training_bytes(model, batch, labels[:batch_size]),
        )

    sizes: dict[Control, Callable[[torch.nn.Module], int]] = {
        "parameters": costs.parameters,
        "multiply-adds": lambda model: costs.multiply_adds(model, example),
    }
    first, *others = (measured(v.over(baseline), "plain") for v in (baseline, *variants))
    arms = [first]
    for control in CONTROLS:
        if control not in controls:
            continue
        for arm in others:
            size = sizes.get(control)
            if size is None or size(built(arm.variant)) == size(built(first.variant)):
                arms += [arm] if arm not in arms else []
                continue
            width = matched_width(
                lambda width, arm=arm, size=size: size(built(arm.variant, width)),  # type: ignore[misc]
                size(built(first.variant)),
            )
            arms.append(measured(arm.variant, control, width))
    return tuple(arms)


def _answers(model: torch.nn.Module, split: Split) -> tuple[np.ndarray, float]:
    """Which items a model gets right, and its mean loss."""
    said = scores(model, split.inputs)
    correct = (said.argmax(1) == split.labels).numpy()
    return correct, float(F.cross_entropy(said, split.labels))


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: a loss that ran away is null."""
    return value if math.isfinite(value) else None


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
