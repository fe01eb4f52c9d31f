"""The same work on a Ray cluster: any task on any machine, one journal here."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from poolkit.comparison.engine import Clock, describe, done_keys, outstanding
from poolkit.comparison.journal import Journal
from poolkit.comparison.study import Record, Study, Task
from poolkit.errors import MissingExtraError, PoolError, PoolValueError, first_line
from poolkit.inspection.inspector import Progress

#: Seconds to wait for a result before looking at what other processes have done.
_PATIENCE = 1.0


def work_on_ray(study: Study, journal: Journal, tell: Progress, address: str) -> list[Record]:
    """Do the tasks of a study on a cluster; returns all records.

    Models and data are sent along, a model's own file too; poolkit must be installed on every
    machine. Times are taken here, at the end, when nothing is trained: they are of one machine.

    Args:
        address: of a running cluster, ``"auto"``, or ``"local"`` to start one in this machine. A
            cluster that this process is connected to already is used, and left running.

    Raises:
        MissingExtraError: without Ray.
        PoolValueError: if there is no cluster at that address.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtraError("ray", "ray") from None

    own = not ray.is_initialized()
    if own:
        try:
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = first_line(error)
            raise PoolValueError(
                f"there is no Ray cluster at {address!r}: {text}", "Give its address, or local"
            ) from None
    try:
        return _work(ray, study, journal, tell)
    finally:
        if own:
            ray.shutdown()


def _work(ray: Any, study: Study, journal: Journal, tell: Progress) -> list[Record]:
    clock = Clock(study, tell)
    shipped = ray.put(_portable(ray, study))
    perform = ray.remote(num_cpus=study.threads, max_retries=3)(_perform)
    running: dict[Any, Task] = {}
    try:
        while True:
            records = journal.records()
            ready, left, total = outstanding(study, records)
            if not left:
                clock.say("done", 0, total)
                return records
            slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // study.threads)
            busy = set(running.values())
            for task in ready:
                if len(running) >= slots:
                    break
                if task in busy or not journal.claim(task.key):
                    continue
                if task.key in done_keys(journal.records()):
                    journal.release(task.key)
                elif task.kind == "costs":
                    journal.append(study.perform(task))
                    journal.release(task.key)
                else:
                    running[perform.remote(shipped, task)] = task
            clock.say(f"{len(running)} at a time", left, total)
            if not running:
                time.sleep(_PATIENCE)
                continue
            finished, _ = ray.wait(list(running), timeout=_PATIENCE)
            for reference in finished:
                task = running.pop(reference)
                try:
                    journal.append(ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, PoolError):
                        raise error.cause from None
                    raise PoolValueError(
                        f"{describe(task)} failed on the cluster: {error.cause}"
                    ) from error
                finally:
                    journal.release(task.key)
    finally:
        for reference, task in running.items():
            ray.cancel(reference, force=True)
            journal.release(task.key)


def _perform(study: Study, task: Task) -> Record:
    return study.perform(task)


def _portable(ray: Any, study: Study) -> Study:
    """A study whose model can be built where its file is not."""
    module = sys.modules.get(getattr(study.source.factory, "__module__", ""))
    if module is not None and not module.__name__.startswith("poolkit."):
        ray.cloudpickle.register_pickle_by_value(module)
    return study
