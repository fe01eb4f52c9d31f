"""The optimisation itself: try each pooling module, keep what is equal and not slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.inspection.inspector import Progress, evaluating
from poolkit.inspection.trace import TracedPooling, run_model, trace
from poolkit.optimization.equality import (
    Difference,
    check_tolerance,
    compare_modules,
    compare_outputs,
    reproducible,
)
from poolkit.optimization.report import LayerChange, OptimizeReport
from poolkit.optimization.sites import (
    POOLING_CLASSES,
    Swap,
    reason_not_to_swap,
    replacement_for,
    sites_of,
    wrapper_name,
)
from poolkit.timing import check_seconds, compare

_AS_FUNCTION = "called as a function in forward; only modules can be swapped"
_NOT_RUN = "did not run on this input, so there is nothing to compare"


def optimize(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    dry_run: bool = False,
    seconds: float = 0.4,
    progress: Progress | None = None,
) -> OptimizeReport:
    """Swap the pooling modules of ``model`` for poolkit's, in place, where that is faster.

    Every pooling module that runs on the example is tried on the inputs that it really gets. It
    is swapped if outputs and gradients are equal and it is faster beyond noise; then the
    whole model is compared and timed with and without, and all swaps are taken back if it came
    out different or slower. Names, ``state_dict``, modes and the sharing of modules stay as they
    are; the model is never copied.

    Args:
        model: any module; not one wrapped for several devices (optimise the one inside).
        example_inputs: a tensor, or a tuple or list of the positional arguments of ``forward``.
        kwargs: keyword arguments of ``forward``.
        tolerance: largest difference allowed in averages, gradients and the model's outputs,
            relative to the largest value. Max and min must have the same bits regardless.
        filter_fn: called as ``filter_fn(module, name)``; a module is tried only if it is true.
        dry_run: report only; the model is left as it was.
        seconds: time to spend on timing each layer, and on the model; 0 times nothing and keeps
            every swap that is equal.
        progress: called with what is being done, how many layers are done, and of how many.

    Returns:
        An :class:`OptimizeReport`: each layer with what was done or why not, and ``restore()``.

    Raises:
        PoolTypeError: ``model`` is not a module.
        PoolValueError: the model is wrapped (DataParallel and the like), or raised on the inputs;
            ``tolerance`` or ``seconds`` is negative or not finite.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    >>> report = optimize(model, torch.zeros(1, 3, 10, 10), seconds=0)
    >>> report.layers[0].status, report.layers[0].error
    ('swapped', 0.0)
    """
    if not isinstance(model, nn.Module):
        raise PoolTypeError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    check_tolerance(tolerance)
    check_seconds(seconds)
    if wrapper := wrapper_name(model):
        raise PoolValueError(
            f"the model is wrapped in {wrapper}, whose modules cannot be swapped",
            "Optimise the module inside and wrap it again",
        )
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    attempt = _Attempt(model, args, kwargs, tolerance, seconds, progress or _silent)
    with evaluating(model):
        try:
            report = attempt.run(filter_fn)
        except BaseException:
            # Whatever went wrong, the model is as it was.
            attempt.undo_all()
            raise
        if dry_run:
            report.restore()
            report.dry_run = True
    for swap in report.swaps:
        # A replacement was not in the model yet when the modes were noted down.
        swap.replacement.training = swap.original.training
    return report


def _silent(what: str, done: int, total: int) -> None:
    pass


class _Attempt:
    """One optimisation under way: what was swapped so far, so that it can be undone."""

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        tolerance: float,
        seconds: float,
        progress: Progress,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.tolerance, self.seconds, self.progress = tolerance, seconds, progress
        self.swaps: dict[int, Swap] = {}  # by the row of the layer

    def run(self, filter_fn: Callable[[nn.Module, str], bool] | None) -> OptimizeReport:
        self.progress("running the model", 0, 0)
        found, _ = trace(self.model, self.args, self.kwargs)
        expected = reproducible(self._forward)
        # A model that answers differently every time is held to no more than that.
        noise = compare_outputs(expected, reproducible(self._forward), self.tolerance)
        layers = []
        groups = _by_layer(found)
        for index, calls in enumerate(groups):
            self.progress(calls[0].name or calls[0].pooling.operation, index, len(groups))
            layers.append(self._try(index, calls, filter_fn))
        layers += self._not_run(found)
        report = OptimizeReport(
            model_name=type(self.model).__name__,
            layers=layers,
            threads=torch.get_num_threads(),
            swaps=tuple(self.swaps.values()),
        )
        if self.swaps:
            self.progress("comparing the whole model", len(groups), len(groups))
            self._check_running(report)
            self._check_whole(report, expected, noise)
        self.progress("done", len(groups), len(groups))
        report.swaps = tuple(self.swaps.values())
        return report

    def undo_all(self) -> None:
        for swap in self.swaps.values():
            swap.undo()
        self.swaps.clear()

    def _forward(self) -> Any:
        return run_model(self.model, self.args, self.kwargs)

    def _try(
        self,
        index: int,
        calls: list[TracedPooling],
        filter_fn: Callable[[nn.Module, str], bool] | None,
    ) -> LayerChange:
        first, module = calls[0], calls[0].module
        before = f"{first.pooling.words()}, {first.pooling.window()}"
        row = LayerChange(first.name, before, before, "skipped", "", aliases=list(first.aliases))
        if module is None:
            row.reason = f"{_AS_FUNCTION} ({first.source})" if first.source else _AS_FUNCTION
            return row
        row.before = row.after = f"torch {type(module).__name__}, {first.pooling.window()}"
        row.reason = reason_not_to_swap(self.model, module)
        if not row.reason and filter_fn is not None and not filter_fn(module, first.name):
            row.reason = "left out by filter_fn"
        if row.reason:
            return row
        try:
            replacement = replacement_for(module)
        except PoolError as error:
            row.reason = _refusal(error)
            return row
        if replacement is None:
            row.reason = f"poolkit.nn has no {type(module).__name__}"
            return row
        if self._is_better(row, calls, module, replacement):
            swap = Swap(module, replacement, sites_of(self.model, module))
            self.swaps[index] = swap
            swap.apply()
            row.status, row.after = "swapped", f"poolkit {type(module).__name__}"
        else:
            row.status = "kept"
        return row

    def _is_better(
        self,
        row: LayerChange,
        calls: list[TracedPooling],
        module: nn.Module,
        replacement: nn.Module,
    ) -> bool:
        """Compare on the real inputs of the layer; the reason is written into ``row``."""
        exact = "max" in calls[0].pooling.operation
        arguments = [call.arguments for call in calls]
        found = Difference(0.0)
        for args in arguments:
            try:
                found = found.join(
                    compare_modules(module, replacement, args, self.tolerance, exact)
                )
            except PoolError as error:
                row.reason = _refusal(error)
                return False
        row.error = found.error
        if found.problem:
            row.reason = found.problem
            return False
        if self.seconds <= 0:
            row.reason = "equal; not timed"
            return True
        timing = compare(
            lambda: [module(*args) for args in arguments],
            lambda: [replacement(*args) for args in arguments],
            self.seconds,
        )
        row.before_ms, row.after_ms, row.speedup = timing.before_ms, timing.after_ms, timing.speedup
        slowest, fastest = timing.interval
        if slowest > 1:
            row.reason = "equal and faster"
        elif fastest < 1:
            row.reason = "equal, but slower here"
        else:
            row.reason = "equal, but no faster beyond noise"
        return slowest > 1

    def _not_run(self, found: list[TracedPooling]) -> list[LayerChange]:
        """The pooling modules that the example did not reach."""
        ran = {id(traced.module) for traced in found if traced.module is not None}
        ran |= {id(swap.replacement) for swap in self.swaps.values()}
        return [
            LayerChange(name, f"torch {type(module).__name__}", "", "skipped", _NOT_RUN)
            for name, module in self.model.named_modules()
            if type(module) in POOLING_CLASSES.values() and id(module) not in ran
        ]

    def _check_running(self, report: OptimizeReport) -> None:
        """Take back a swap that does not run: the model reaches the module some other way."""
        found, _ = trace(self.model, self.args, self.kwargs)
        running = {id(traced.module) for traced in found}
        for index, swap in list(self.swaps.items()):
            if id(swap.replacement) not in running:
                self._keep(report, index, "the model does not call it through its registered name")

    def _check_whole(self, report: OptimizeReport, expected: Any, noise: Difference) -> None:
        actual = reproducible(self._forward)
        found = compare_outputs(expected, actual, self.tolerance, noise=2 * noise.error)
        report.error = found.error
        if found.problem:
            self._keep_all(report, f"the model's outputs {found.problem}")
            return
        if self.seconds <= 0 or not self.swaps:
            return
        timing = compare(self._forward_with(False), self._forward_with(True), self.seconds)
        report.before_ms, report.after_ms = timing.before_ms, timing.after_ms
        report.speedup = timing.speedup
        if timing.interval[1] < 1:
            self._keep_all(report, "the whole model came out slower")

    def _forward_with(self, swapped: bool) -> Callable[[], Any]:
        """The model with or without the swaps, whichever it had before."""
        swaps = list(self.swaps.values())

        def call() -> Any:
            for swap in swaps:
                swap.apply() if swapped else swap.undo()
            try:
                return self._forward()
            finally:
                for swap in swaps:
                    swap.apply()

        return call

    def _keep_all(self, report: OptimizeReport, reason: str) -> None:
        for index in list(self.swaps):
            self._keep(report, index, reason)
        report.note = f"all swaps were taken back: {reason}"

    def _keep(self, report: OptimizeReport, index: int, reason: str) -> None:
        self.swaps.pop(index).undo()
        row = report.layers[index]
        row.status, row.after, row.reason = "kept", row.before, reason


def _refusal(error: PoolError) -> str:
    return f"poolkit cannot: {error}".rstrip(".")


def _by_layer(found: list[TracedPooling]) -> list[list[TracedPooling]]:
    """Group the calls of one module; a function call stands alone. In order of the first call."""
    groups: dict[int, list[TracedPooling]] = {}
    for position, traced in enumerate(found):
        key = -position - 1 if traced.module is None else id(traced.module)
        groups.setdefault(key, []).append(traced)
    return list(groups.values())
