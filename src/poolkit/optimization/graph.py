"""The graph tier: an exported program, whose poolings are rewritten where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from poolkit.errors import PoolError
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.inspector import evaluating
from poolkit.inspection.nodes import (
    graphs_within,
    may_be_normalization,
    place_of,
    pooling_of,
)
from poolkit.inspection.trace import TracedPooling, run_model, tensors_in, trace
from poolkit.optimization.capture import capture, copy_of, of_two
from poolkit.optimization.commuting import subgraph_of
from poolkit.optimization.elementwise import operator_name
from poolkit.optimization.equality import Difference, compare_outputs, largest_in, reproducible
from poolkit.optimization.families import families_in
from poolkit.optimization.program import ProgramModule
from poolkit.optimization.records import LayerChange
from poolkit.optimization.report import OptimizeReport
from poolkit.optimization.subgraphs import Build, Rewrite, Subgraph, is_in_place, read
from poolkit.optimization.trial import Candidate, Task, alone, choose, is_slower
from poolkit.timing import Call


def optimize_graph(
    task: Task, dry_run: bool, dynamic_batch: bool, dynamic_shapes: Any
) -> OptimizeReport:
    """See `poolkit.optimize`: its graph tier."""
    with evaluating(task.model), torch.no_grad():
        return _GraphTier(task, dynamic_batch, dynamic_shapes).run(dry_run)


class _GraphTier:
    def __init__(self, task: Task, dynamic_batch: bool, dynamic_shapes: Any) -> None:
        self.task, self.wanted = task, (dynamic_batch, dynamic_shapes)

    def run(self, dry_run: bool) -> OptimizeReport:
        task = self.task
        task.progress("exporting the model", 0, 0)
        expected = reproducible(task.forward)
        noise = compare_outputs(expected, reproducible(task.forward), task.tolerance)
        untouched, note = capture(task.model, task.args, task.kwargs, *self.wanted)
        program = copy_of(untouched)
        original, watched = ProgramModule(untouched), ExportedModel(untouched)
        found, _ = trace(watched, task.args, task.kwargs)
        report = OptimizeReport(
            model_name=type(task.model).__name__,
            layers=[],
            threads=torch.get_num_threads(),
            tier="graph",
            note=note,
        )
        subgraphs = _subgraphs(program.graph, found)
        changed = False
        for index, subgraph in enumerate(subgraphs):
            task.progress(subgraph.pooling.name or subgraph.words, index, len(subgraphs))
            row, rewrite = self._try(subgraph, watched)
            report.layers.append(row)
            if rewrite is not None:
                _apply(program, subgraph, rewrite)
                changed = True
        report.layers += _rows_within(program.graph_module)
        task.progress("comparing the whole model", len(subgraphs), len(subgraphs))
        if changed:
            after = ProgramModule(program)
            changed = self._holds(report, after, original, expected, noise)
        if subgraphs and task.seconds > 0:
            # Of an exported program, itself, which `_holds` has timed: what watches it runs it node
            # by node.
            model = original if isinstance(task.model, ExportedModel) else task.model
            before, now = self._call(model), self._call(after if changed else original)
            if model is not original and is_slower(report, before, now, task.seconds):
                if changed:
                    self._keep_all(report, "the whole program came out slower than the model")
                else:
                    report.add_note("the program, as it was exported, is slower than the model")
                changed = False
            if report.model_ms is None:
                report.model_ms = alone(before, task.seconds)
        if not changed:
            program = untouched
        task.progress("done", len(subgraphs), len(subgraphs))
        report.dry_run = dry_run
        report.program = None if dry_run else program
        return report

    def _try(
        self, subgraph: Subgraph, watched: ExportedModel
    ) -> tuple[LayerChange, Rewrite | None]:
        """What is done with a subgraph, and what is written in its place."""
        traced = subgraph.pooling
        source = "" if traced.is_layer else traced.source
        row = _skipped(traced.name, subgraph.words, source, subgraph.reason)
        values = watched.values_of(subgraph.input_names, self.task.args, self.task.kwargs)
        inputs = [values[name] for name in subgraph.input_names]
        original = _callable(subgraph.build, inputs)
        if not row.reason and not self.task.allows(_module(self.task.model, row.name), row.name):
            row.reason = "left out by filter_fn"
        made = {} if row.reason else {rewrite.words: rewrite for rewrite in subgraph.rewrites}
        candidates = [self._candidate(rewrite, original, inputs) for rewrite in made.values()]
        chosen = None
        if candidates:
            chosen = choose(row, _run(original, inputs), candidates, self.task.seconds)
        if row.before_ms is None:
            row.before_ms = alone(_run(original, inputs), self.task.seconds)
        return row, None if chosen is None else made[chosen.words]

    def _candidate(
        self, rewrite: Rewrite, original: fx.GraphModule, inputs: Sequence[torch.Tensor]
    ) -> Candidate:
        module = _callable(rewrite.build, inputs)

        def prove() -> Difference:
            found = Difference(0.0)
            for values in [inputs, *_varied(inputs)]:
                scale = largest_in(values)
                expected = reproducible(_run(original, values))
                actual = reproducible(_run(module, values))
                tolerance = 0.0 if rewrite.exact else self.task.tolerance
                found = found.join(compare_outputs(expected, actual, tolerance, scale=scale))
            return found

        return Candidate(rewrite.words, prove, _run(module, inputs))

    def _holds(
        self,
        report: OptimizeReport,
        after: torch.nn.Module,
        original: torch.nn.Module,
        expected: Any,
        noise: Difference,
    ) -> bool:
        """Whether the program answers as the model does, and is not slower than as exported."""
        task = self.task
        given = (task.args, dict(task.kwargs))
        found = self._compare(expected, after, given, noise)
        for args, kwargs in [*_varied(given), _of_another_batch(given)]:
            if found.problem:
                break
            try:
                wanted = reproducible(partial(run_model, task.model, args, kwargs))
                found = found.join(self._compare(wanted, after, (args, kwargs), noise))
            except PoolError:  # one of them takes nothing but what it was given
                continue
        report.error = found.error
        if found.problem:
            self._keep_all(report, f"the model's outputs {found.problem}")
            return False
        if task.seconds > 0 and is_slower(
            report, self._call(original), self._call(after), task.seconds
        ):
            self._keep_all(report, "the whole program came out slower")
            return False
        return True

    def _call(self, module: torch.nn.Module) -> Call:
        return partial(module, *self.task.args, **self.task.kwargs)

    def _compare(
        self, expected: Any, after: torch.nn.Module, given: Any, noise: Difference
    ) -> Difference:
        args, kwargs = given
        actual = reproducible(partial(run_model, after, args, kwargs))
        return compare_outputs(expected, actual, self.task.tolerance, noise=2 * noise.error)

    def _keep_all(self, report: OptimizeReport, reason: str) -> None:
        for row in report.swapped:
            row.status, row.after, row.reason = "kept", row.before, reason
        report.add_note(f"all changes were taken back: {reason}")


def _subgraphs(graph: fx.Graph, found: Sequence[TracedPooling]) -> list[Subgraph]:
    """The subgraphs of all poolings that ran, in their order. No node is in two of them."""
    nodes = {node.name: node for node in graph.nodes}
    # What ran in a graph within the graph was seen as the node that runs it, which is no operator.
    poolings = [
        read(traced, nodes[traced.node]) for traced in found if operator_name(nodes[traced.node])
    ]
    families = {subgraph.nodes[0]: subgraph for subgraph in families_in(poolings)}
    claimed = {node for subgraph in families.values() for node in subgraph.nodes}
    subgraphs = []
    for pooling in poolings:
        subgraph = families.get(pooling.node)
        if subgraph is None and pooling.node in claimed:
            continue
        if subgraph is None:
            subgraph = pooling.as_it_is() if pooling.reason else subgraph_of(pooling, claimed)
            claimed.update(subgraph.nodes)
        subgraphs.append(subgraph)
    return subgraphs


def _rows_within(model: fx.GraphModule) -> list[LayerChange]:
    """A row for each pooling in the graphs that nodes of the graph run, whether it ran or not."""
    rows = []
    for runs, part in graphs_within(model):
        reason = (
            f"it stands in a graph within the graph ({runs.target}), where nothing is rewritten"
        )
        for node in part.graph.nodes:
            pooling = pooling_of(node)
            if pooling is None or may_be_normalization(node, pooling):
                continue
            name, kind, source = place_of(node)
            source = "" if "pool" in kind.lower() else source or place_of(runs)[2]
            name = name or place_of(runs)[0]
            rows.append(_skipped(name, pooling.described(), source, reason))
    return rows


def _skipped(name: str, words: str, source: str, reason: str) -> LayerChange:
    before = f"{words} ({source})" if source else words
    return LayerChange(name, before, before, "skipped", reason)


def _module(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module in which a call stands, as the exported graph names it."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return model


def _callable(build: Build, inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """A subgraph or a rewrite by itself, as a module of its inputs."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{place}") for place in range(len(inputs))]
    graph.output(tuple(build(graph, nodes)))
    return fx.GraphModule(torch.nn.Module(), graph)


def _run(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Call:
    values = [x.clone() for x in inputs] if _writes(module.graph) else list(inputs)
    return lambda: module(*values)


def _writes(graph: fx.Graph) -> bool:
    """Whether something in it overwrites its input."""
    return any(map(is_in_place, graph.nodes))


def _varied(given: Any) -> list[Any]:
    """The same tensors with other values: noise as large as they are, and the other sign; of
    integers another order."""

    def noisy(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return _like(x, x.flip(-1) if x.ndim else x)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return _like(x, x + noise.to(x) * x.float().std(correction=0).to(x.dtype))

    def negated(x: torch.Tensor) -> torch.Tensor:
        return _like(x, -x if x.is_floating_point() else x)

    return [pytree.tree_map_only(torch.Tensor, change, given) for change in (noisy, negated)]


def _like(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """In the memory format of x, as it decides how a pooling walks."""
    return torch.empty_like(x).copy_(values)


def _of_another_batch(given: Any) -> Any:
    """Two samples in the place of one, or one in the place of several."""
    two = of_two(given)
    if two is not given:
        return two
    return pytree.tree_map_only(torch.Tensor, lambda x: x[:1] if x.ndim else x, given)


def _apply(program: ExportedProgram, subgraph: Subgraph, rewrite: Rewrite) -> None:
    """Write a rewrite into the program, in the place of the subgraph."""
    graph = program.graph
    replacement = _callable(rewrite.build, subgraph.inputs).graph  # type: ignore[arg-type]
    placeholders = [node for node in replacement.nodes if node.op == "placeholder"]
    copies: dict[fx.Node, fx.Node] = dict(zip(placeholders, subgraph.inputs, strict=True))
    # In front of all: what is read is then as it was when the first of them read it.
    with graph.inserting_before(subgraph.nodes[0]):
        results = graph.graph_copy(replacement, copies)
    for node in replacement.nodes:
        if node.op == "call_function":
            _describe(copies[node], subgraph)
    for old, new in zip(subgraph.outputs, results, strict=True):
        old.replace_all_uses_with(new)
        program.graph_signature.replace_all_uses(old.name, new.name)
    for node in reversed(subgraph.nodes):
        graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()


def _describe(node: fx.Node, subgraph: Subgraph) -> None:
    """Tell a new node its shape, and where in the model the old ones stood."""
    arguments = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    args, kwargs = arguments
    fake = next(tensors_in(args)).fake_mode  # type: ignore[attr-defined]
    (pooling,) = (other for other in subgraph.nodes if other.name == subgraph.pooling.node)
    kept = ("nn_module_stack", "stack_trace")
    node.meta = {key: pooling.meta[key] for key in kept if key in pooling.meta}
    with fake:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
