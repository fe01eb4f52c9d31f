"""Programs that ``torch.export`` has written (``.pt2``), run call by call."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from poolkit.errors import PoolValueError
from poolkit.inspection.nodes import place_of


class ExportedModel(nn.Module):
    """An exported program as a module: which call runs, and where it was written, can be asked.

    The graph knows for each call the module that it stood in and the line of the model, and both
    survive saving and loading.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.program = program
        graph = program.module()
        # Not as a submodule: an exported graph refuses to change its mode.
        self._graph = (graph,)
        self.running: fx.Node | None = None
        self.watched: dict[str, Any] = {}
        self.awaited: set[str] = set()
        self._order = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        self.example = None if program.example_inputs is None else program.example_inputs

    @classmethod
    def load(cls, path: Path) -> ExportedModel:
        """Read a ``.pt2`` file. Raises PoolValueError if it is none."""
        if not path.is_file():
            raise PoolValueError(f"there is no file {path}")
        try:
            zipfile.ZipFile(path).close()  # of what is none torch logs a traceback
            return cls(torch.export.load(str(path)))
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise PoolValueError(
                f"{path} is not an exported program: {text}", "Write one with torch.export.save"
            ) from error

    @property
    def example_arguments(self) -> tuple[Any, ...] | None:
        """The inputs that the program was exported with, as positional arguments."""
        if self.example is None:
            return None
        args, kwargs = self.example
        return (*args, *self._ordered(kwargs).values())

    def as_exported(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as the program itself takes them: by position and by name as it was exported.

        Raises PoolValueError if there are more or fewer than it has.
        """
        flat = pytree.tree_leaves((args, self._ordered(kwargs)))
        spec = self.program.call_spec.in_spec
        if spec is None or len(flat) != spec.num_leaves:
            raise PoolValueError(
                f"the program takes {getattr(spec, 'num_leaves', 'no')} inputs, got {len(flat)}",
                "Give those that it was exported with",
            )
        positional, named = pytree.tree_unflatten(flat, spec)
        return positional, named

    def _ordered(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments in the order in which the graph takes them."""
        names = [name for name in self._order if name in kwargs]
        return {name: kwargs[name] for name in (*names, *(k for k in kwargs if k not in names))}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(args, kwargs)

    def _run(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        flat = pytree.tree_leaves((args, self._ordered(kwargs)))
        try:
            return _Interpreter(self).run(*flat, enable_io_processing=False)
        finally:
            self.running = None
            self.watched = {}

    def values_of(
        self, names: Iterable[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the nodes of these names give on these arguments: copies, as they leave the node.
        The program runs no further than to the last of them."""
        watched: dict[str, Any] = dict.fromkeys(names)
        self.watched, self.awaited = watched, set(watched)
        with suppress(_AllSeenError):
            self._run(tuple(args), kwargs)
        return {name: value for name, value in watched.items() if value is not None}

    @property
    def graph(self) -> fx.GraphModule:
        return self._graph[0]

    def place(self) -> tuple[str, str, str]:
        """Of the call that runs: the module it stands in, that module's class, and the line."""
        return ("", "", "") if self.running is None else place_of(self.running)


class _AllSeenError(Exception):
    """Every node that is awaited has run."""


class _Interpreter(fx.Interpreter):
    def __init__(self, model: ExportedModel) -> None:
        super().__init__(model.graph)
        self.model = model
        self.extra_traceback = False  # an error is told by whoever runs a program

    def run_node(self, n: fx.Node) -> Any:
        self.model.running = n
        value = super().run_node(n)
        # An input that is named as a function of Python's has another name in this graph.
        name = str(n.target) if n.op == "placeholder" else n.name
        if name in self.model.watched:
            # A size that is computed from shapes is a number.
            kept = value.detach().clone() if isinstance(value, torch.Tensor) else value
            self.model.watched[name] = kept
            self.model.awaited.discard(name)
            if not self.model.awaited:
                raise _AllSeenError
        return value
