"""The work on a study: whatever is not done and nobody else is doing, one task after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from poolkit.comparison.journal import Journal
from poolkit.comparison.study import Record, Study, Task
from poolkit.errors import PoolValueError
from poolkit.inspection.inspector import Progress

#: Seconds between two looks at what the others have done, when they do all that is left.
_PATIENCE = 0.5


def settle_terms(journal: Journal, terms: Callable[[], Record]) -> Record:
    """The first record of a journal: what the study is. `terms` are asked for if there is none.

    Of processes that start together, one writes it and the others read it.
    """
    records = journal.records()
    first = records[0] if records else journal.begin(terms())
    if first["kind"] != "study":
        raise PoolValueError(f"{journal.path} does not begin as a study", "Name another file")
    return first


def check_terms(journal: Journal, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise PoolValueError if a journal is of another study, with what differs."""
    differing = [
        f"{name} {found.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise PoolValueError(
            f"{journal.path} is of another study: {'; '.join(differing)}",
            "Give the same options, or another file with --study",
        )


class Clock:
    """How far a study is, and how long it will take at the pace since this process came."""

    def __init__(self, study: Study, tell: Progress) -> None:
        self.study, self.tell = study, tell
        self.began = time.monotonic()
        self.at_first: int | None = None

    def say(self, what: str, left: int, total: int, share: float = 0.0) -> None:
        """`share` is what is done of the task in hand."""
        done = total - left
        if self.at_first is None:
            self.at_first = done
        gained = done - self.at_first + share
        if gained > 0.2:
            pace = (time.monotonic() - self.began) / gained
            what += f"; {_in_words(pace * (left - share))} left"
        self.tell(what, done, total)

    def of(self, task: Task, left: int, total: int) -> Callable[[int], None]:
        """What a task is to call with the epochs that are done."""
        epochs = self.study.schedule.epochs
        return lambda done: self.say(describe(task), left, total, done / epochs)


def work(study: Study, journal: Journal, tell: Progress) -> list[Record]:
    """Do the tasks of a study until all are done, here or by others; returns all records."""
    clock = Clock(study, tell)
    while True:
        records = journal.records()
        ready, left, total = outstanding(study, records)
        if not left:
            clock.say("done", 0, total)
            return records
        mine = next((task for task in ready if journal.claim(task.key)), None)
        if mine is None:
            clock.say("others are at what is left", left, total)
            time.sleep(_PATIENCE)
            continue
        try:
            # Someone may have finished it between the look at the records and the claim.
            if mine.key not in done_keys(journal.records()):
                clock.say(describe(mine), left, total)
                journal.append(study.perform(mine, clock.of(mine, left, total)))
        finally:
            journal.release(mine.key)


def outstanding(study: Study, records: list[Record]) -> tuple[list[Task], int, int]:
    """The tasks that can be done now, how many are not done at all, and how many there are."""
    done = done_keys(records)
    tasks = study.tasks(records)
    left = [task for task in tasks if task.key not in done]
    ready = [task for task in left if task.kind != "run" or task.rate is not None]
    if any(task.kind != "costs" for task in ready):
        # Times come last, when no training of this process's takes the machine.
        ready = [task for task in ready if task.kind != "costs"]
    return ready, len(left), len(tasks)


def done_keys(records: list[Record]) -> set[str]:
    return {Task.of(record).key for record in records if record["kind"] != "study"}


def describe(task: Task) -> str:
    if task.kind == "costs":
        return "timing"
    return f"{task.arm}, " + (
        f"rate {task.rate:g}" if task.kind == "tuning" else f"seed {task.seed}"
    )


def _in_words(seconds: float) -> str:
    """
    >>> _in_words(40), _in_words(200), _in_words(8000)
    ('40 s', '3 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
