"""The module tier: try each pooling module, swap in place what is equal and faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import poolkit.nn
from poolkit.errors import PoolError, first_line
from poolkit.inspection.downsampling import Pooled, downsampling_of
from poolkit.inspection.inspector import evaluating
from poolkit.inspection.poolkit_calls import is_poolkits
from poolkit.inspection.trace import TracedPooling, trace, uncompiled
from poolkit.optimization.adjacency import Neighbour, in_training_mode, neighbours
from poolkit.optimization.elementwise import activation_of
from poolkit.optimization.equality import (
    Difference,
    compare_modules,
    compare_outputs,
    fixed_randomness,
    hidden_in,
    reproducible,
    values_in,
)
from poolkit.optimization.records import LayerChange
from poolkit.optimization.report import OptimizeReport
from poolkit.optimization.sites import (
    POOLING_CLASSES,
    Swap,
    reason_not_to_swap,
    replacement_for,
    scripted_part,
    sites_of,
)
from poolkit.optimization.trial import Candidate, Task, alone, choose, is_slower, refusal
from poolkit.reductions import Activated
from poolkit.timing import Call

_AS_FUNCTION = "called as a function in forward; only modules can be swapped"
_FILTERED = "left out by filter_fn"
_NOT_RUN = "did not run on this input, so there is nothing to compare"


def optimize_modules(task: Task, dry_run: bool) -> OptimizeReport:
    """See `poolkit.optimize`: its module tier."""
    attempt = Attempt(task)
    with _with_gradients(), evaluating(task.model):
        try:
            report = attempt.run()
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


def _with_gradients() -> AbstractContextManager[Any]:
    """Out of inference mode, where a caller may be, and where no gradients could be compared."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


@dataclass(frozen=True)
class _Joined:
    """A pooling and the activation before it in one, with what the activation gets."""

    reduction: Activated
    pooling: Swap
    activation: Swap
    inputs: list[tuple[torch.Tensor]]


class Attempt:
    """One optimisation under way: what was swapped so far, so that it can be undone."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model
        self.swaps: dict[int, tuple[Swap, ...]] = {}  # by the row of the layer

    def run(self) -> OptimizeReport:
        task = self.task
        task.progress("running the model", 0, 0)
        found, _ = trace(task.model, task.args, task.kwargs)
        before = neighbours(task)
        expected = reproducible(task.forward)
        # A model that answers differently every time is held to no more than that.
        noise = compare_outputs(expected, reproducible(task.forward), task.tolerance)
        report = OptimizeReport(
            model_name=type(self.model).__name__, layers=[], threads=torch.get_num_threads()
        )
        groups = _by_layer(found)
        for index, calls in enumerate(groups):
            task.progress(calls[0].name or calls[0].pooling.operation, index, len(groups))
            neighbour = before.get(id(calls[0].module)) if calls[0].module else None
            report.layers.append(self._try(index, calls, self._filtered(neighbour)))
        report.layers += self._not_run(found)
        task.progress("comparing the whole model", len(groups), len(groups))
        if self.swaps:
            self._check_running(report)
            self._check_training(report)
            self._check_whole(report, expected, noise)
        if report.model_ms is None and found:
            report.model_ms = alone(task.forward, task.seconds)
        if hidden := hidden_in(expected):
            report.add_note(f"the model returns a {hidden}, whose values were not compared")
        if scripted := scripted_part(self.model):
            report.add_note(f"{scripted} is a ScriptModule, whose poolings cannot be seen")
        task.progress("done", len(groups), len(groups))
        report.swaps = self._all_swaps()
        return report

    def undo_all(self) -> None:
        for swap in self._all_swaps():
            swap.undo()
        self.swaps.clear()

    def _all_swaps(self) -> tuple[Swap, ...]:
        return tuple(swap for swaps in self.swaps.values() for swap in swaps)

    def _try(
        self, index: int, calls: list[TracedPooling], neighbour: Neighbour | None
    ) -> LayerChange:
        first, module = calls[0], calls[0].module
        before = first.pooling.described()
        row = LayerChange(first.name, before, before, "skipped", "", aliases=list(first.aliases))
        if module is None:
            row.reason = f"{_AS_FUNCTION} ({first.source})" if first.source else _AS_FUNCTION
        else:
            self._try_module(index, row, calls, module, neighbour)
        if row.before_ms is None:
            row.before_ms = _time_of(calls, self.task.seconds)
        return row

    def _try_module(
        self,
        index: int,
        row: LayerChange,
        calls: list[TracedPooling],
        module: nn.Module,
        neighbour: Neighbour | None,
    ) -> None:
        name, window = type(module).__name__, calls[0].pooling.window()
        row.before = row.after = f"{_library_of(module)}{name}, {window}"
        row.reason = reason_not_to_swap(self.model, module)
        if not row.reason and not self.task.allows(module, row.name):
            row.reason = _FILTERED
        if row.reason:
            return
        try:
            replacement = replacement_for(module)
        except PoolError as error:
            row.reason = refusal(error)
            return
        if replacement is None:
            row.reason = f"poolkit.nn has no {name}"
            return
        plain = Swap(module, replacement, sites_of(self.model, module))
        joined = self._joined(calls, plain, neighbour)
        before, ways = self._ways(row, calls, plain, joined)
        chosen = choose(row, before, [candidate for candidate, _ in ways], self.task.seconds)
        if neighbour is not None and neighbour.reason:
            row.reason += f"; {neighbour.name} before it is not joined: {neighbour.reason}"
        for candidate, swaps in ways:
            if candidate is chosen:
                self.swaps[index] = swaps
                for swap in swaps:
                    swap.apply()

    def _ways(
        self, row: LayerChange, calls: list[TracedPooling], plain: Swap, joined: _Joined | None
    ) -> tuple[Call, list[tuple[Candidate, tuple[Swap, ...]]]]:
        """What runs now, and what could run instead; of a pair, what is tried is the pair."""
        module, replacement = plain.original, plain.replacement
        name, window = type(module).__name__, calls[0].pooling.window()
        arguments = [call.arguments for call in calls]
        proof = self._proof(module, replacement, arguments, "max" in calls[0].pooling.operation)
        if joined is None:
            run = _runs([replacement], arguments)
            way = Candidate(f"poolkit {name}", proof, run), (plain,)
            return _runs([module], arguments), [way]
        activation, fused = joined.activation.original, joined.pooling.replacement
        word = type(activation).__name__
        row.before = row.after = f"torch {word}, then {name}, {window}"
        pair = nn.Sequential(_out_of_place(activation), module)
        swaps = (joined.pooling, joined.activation)
        together = Candidate(
            f"poolkit Pool with {joined.reduction}",
            self._proof(pair, fused, joined.inputs, False, swaps),
            _runs([fused], joined.inputs),
        )
        apart = Candidate(
            f"{word}, then poolkit {name}", proof, _runs([activation, replacement], joined.inputs)
        )
        ways = [(together, swaps), (apart, (plain,))]
        return _runs([activation, module], joined.inputs), ways

    def _filtered(self, neighbour: Neighbour | None) -> Neighbour | None:
        if neighbour is None or neighbour.activation is None or neighbour.reason:
            return neighbour
        if self.task.allows(neighbour.activation, neighbour.name):
            return neighbour
        return replace(neighbour, reason=_FILTERED)

    def _joined(
        self, calls: list[TracedPooling], plain: Swap, neighbour: Neighbour | None
    ) -> _Joined | None:
        """The pooling with the activation before it, if there is a kernel of the two."""
        if neighbour is None or neighbour.reason or neighbour.activation is None:
            return None
        function = activation_of(neighbour.activation)
        pooled = downsampling_of(calls[0].pooling)
        if function is None or not isinstance(pooled, Pooled):
            return None
        reduction = Activated(repr(pooled.reduction), repr(function))
        if reduction.kernel is None:
            return None
        fused = poolkit.nn.Pool(pooled.window, reduction, calls[0].pooling.spatial_rank)
        sites = sites_of(self.model, neighbour.activation)
        return _Joined(
            reduction,
            Swap(plain.original, fused, plain.sites),
            Swap(neighbour.activation, nn.Identity(), sites),
            [(x,) for x in neighbour.inputs],
        )

    def _proof(
        self,
        original: nn.Module,
        replacement: nn.Module,
        arguments: Sequence[tuple[Any, ...]],
        exact: bool,
        swaps: Sequence[Swap] = (),
    ) -> Callable[[], Difference]:
        """Outputs and gradients on what the layer gets; and that the model can be trained with
        ``swaps`` as without: other things are saved for its backward, which it may overwrite, and
        in training mode it may read what in eval mode it does not."""

        def prove() -> Difference:
            found = Difference(0.0)
            for args in arguments:
                found = found.join(
                    compare_modules(original, replacement, args, self.task.tolerance, exact)
                )
            if swaps and not found.problem:
                return found.join(self._compare_training(swaps))
            return found

        return prove

    def _compare_training(self, swaps: Sequence[Swap]) -> Difference:
        """How far the model's outputs in training mode are from those with ``swaps``; nothing of a
        model that cannot be trained."""
        expected, obstacle = self._trained(())
        if obstacle:
            return Difference(0.0)
        outputs, obstacle = self._trained(swaps)
        if obstacle:
            return Difference(0.0, f"the model could not be trained: {obstacle}")
        tolerance = self.task.tolerance
        found = compare_outputs(expected, outputs, tolerance)
        if found.problem:  # a model may answer differently every time
            noise = compare_outputs(expected, self._trained(())[0], tolerance)
            found = compare_outputs(expected, outputs, tolerance, noise=2 * noise.error)
        return Difference(0.0, found.problem and f"outputs in training mode {found.problem}")

    def _trained(self, swaps: Sequence[Swap]) -> tuple[Any, str]:
        """The model's outputs in training mode, and why no backward through it runs; empty if one
        does."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for swap in swaps:
            swap.apply()
        try:
            with (
                in_training_mode(self.model), fixed_randomness(), torch.enable_grad(), uncompiled(),
            ):  # fmt: skip
                outputs = self.task.forward()
                sums = [x.sum() for x in values_in(outputs) if x.requires_grad]
                torch.autograd.grad(sums, parameters, allow_unused=True)
                return outputs, ""
        except (PoolError, RuntimeError, ValueError) as error:
            text = (first_line(error) or type(error).__name__).rstrip(".")
            return None, "it works in place" if "inplace operation" in text else text
        finally:
            for swap in swaps:
                swap.undo()

    def _not_run(self, found: list[TracedPooling]) -> list[LayerChange]:
        """The pooling modules that the example did not reach."""
        ran = {id(traced.module) for traced in found if traced.module is not None}
        ran |= {id(swap.replacement) for swap in self._all_swaps()}
        return [
            LayerChange(name, f"torch {type(module).__name__}", "", "skipped", _NOT_RUN)
            for name, module in self.model.named_modules()
            if type(module) in POOLING_CLASSES.values() and id(module) not in ran
        ]

    def _check_running(self, report: OptimizeReport) -> None:
        """Take back a swap that does not run: the model reaches the module some other way."""
        running: set[int] = set()

        def note(module: nn.Module, _: Any) -> None:
            running.add(id(module))

        handle = nn.modules.module.register_module_forward_pre_hook(note)
        try:
            with uncompiled():
                reproducible(self.task.forward)
        except PoolError as error:  # it asks torch's module for something that ours does not have
            self._keep_all(report, f"with poolkit's modules {error}".rstrip("."))
        finally:
            handle.remove()
        for index, swaps in list(self.swaps.items()):
            if any(id(swap.replacement) not in running for swap in swaps):
                self._keep(report, index, "the model does not call it through its registered name")

    def _check_training(self, report: OptimizeReport) -> None:
        """Take back a swap with which no backward runs: a norm saves its result, which the model
        may overwrite."""
        if not self._trained(())[1]:
            return
        for swap in self._all_swaps():
            swap.undo()
        untrainable = self._trained(())[1]
        for index, swaps in list(self.swaps.items()):
            for swap in swaps:
                swap.apply()
            if not untrainable and (obstacle := self._trained(())[1]):
                self._keep(report, index, f"the model could not be trained: {obstacle}")

    def _check_whole(self, report: OptimizeReport, expected: Any, noise: Difference) -> None:
        actual = reproducible(self.task.forward)
        found = compare_outputs(expected, actual, self.task.tolerance, noise=2 * noise.error)
        report.error = found.error
        if found.problem:
            self._keep_all(report, f"the model's outputs {found.problem}")
        elif self.task.seconds > 0 and self.swaps:
            before, after = self._forward_with(False), self._forward_with(True)
            if is_slower(report, before, after, self.task.seconds):
                self._keep_all(report, "the whole model came out slower")

    def _forward_with(self, swapped: bool) -> Callable[[], Any]:
        """The model with or without the swaps, whichever it had before."""
        swaps = self._all_swaps()

        def call() -> Any:
            for swap in swaps:
                swap.apply() if swapped else swap.undo()
            try:
                return self.task.forward()
            finally:
                for swap in swaps:
                    swap.apply()

        return call

    def _keep_all(self, report: OptimizeReport, reason: str) -> None:
        for index in list(self.swaps):
            self._keep(report, index, reason)
        report.note = f"all swaps were taken back: {reason}"

    def _keep(self, report: OptimizeReport, index: int, reason: str) -> None:
        for swap in self.swaps.pop(index):
            swap.undo()
        row = report.layers[index]
        row.status, row.after, row.reason = "kept", row.before, reason


def _library_of(module: nn.Module) -> str:
    """``"torch "`` or ``"poolkit "``; nothing for what is neither's."""
    if is_poolkits(module):
        return "poolkit "
    return "torch " if type(module) in POOLING_CLASSES.values() else ""


def _runs(modules: Sequence[nn.Module], arguments: Sequence[tuple[Any, ...]]) -> Call:
    """All calls of one run of the model, of one module, or of one behind the other."""
    first, *rest = modules
    if rest:  # the first may work in place
        arguments = [tuple(x.clone() for x in args) for args in arguments]

    def call() -> None:
        for args in arguments:
            out = first(*args)
            for module in rest:
                out = module(out)

    return call


def _out_of_place(activation: nn.Module) -> nn.Module:
    """The same activation, of values that are needed again."""
    if not getattr(activation, "inplace", False):
        return activation
    twin = copy.copy(activation)
    twin.inplace = False  # type: ignore[assignment]
    return twin


def _time_of(calls: list[TracedPooling], seconds: float) -> float | None:
    """Milliseconds of a layer that is left as it is."""
    module = calls[0].module
    try:
        if module is not None:
            return alone(_runs([module], [call.arguments for call in calls]), seconds)
        runs = [call.pooling.in_torch(call.input) for call in calls]
    except PoolError:  # poolkit's own, which torch does not have
        return None
    return alone(lambda: [run() for run in runs], seconds)


def _by_layer(found: list[TracedPooling]) -> list[list[TracedPooling]]:
    """Group the calls of one module; a function call stands alone. In order of the first call."""
    groups: dict[int, list[TracedPooling]] = {}
    for position, traced in enumerate(found):
        key = -position - 1 if traced.module is None else id(traced.module)
        groups.setdefault(key, []).append(traced)
    return list(groups.values())
