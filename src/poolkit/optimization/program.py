"""An exported program as a module whose call costs little more than its operators."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.compiler import is_compiling
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from poolkit.errors import PoolValueError
from poolkit.inspection.exported import ExportedModel
from poolkit.optimization.capture import copy_of
from poolkit.torch.dispatch import pool_by_recipes

# That are kept as known: a service may see ever new ones.
_MOST_SHAPES = 1024


class ProgramModule(nn.Module):
    """What ``program.module()`` computes, for inference, without what that costs in each call.

    Inputs are checked as there, but once for all of the same shapes: to flatten them and to ask
    every guard takes 0.1 ms, which is half the time of a network of 24x24 pixels. Poolings call
    their kernels as poolkit's modules do: without the dispatcher where nobody looks, and those of
    small maps as torch's for torch.compile, which fuses them.

    Parameters and buffers are the program's own, under the names that they have in the model: a
    model's ``state_dict`` can be loaded, and as the weights of a program that was just exported are
    the model's, it changes them there too. A copy (``copy.deepcopy``, pickle, `torch.save`) has
    weights of its own. Dtype and device are those of the export, as the graph may name them.

    Args:
        program: an exported program, any.

    >>> import torch
    >>> from torch import nn
    >>> program = torch.export.export(nn.MaxPool1d(2), (torch.zeros(1, 4),))
    >>> ProgramModule(program)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
    tensor([[2., 4.]])
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        graph = _direct(program.module(check_guards=False), flat=True)
        checking = _direct(program.module())
        # Three times the same weights, so that whoever assigns them does for both graphs, which are
        # no submodules: names are then those of the model.
        for name, part in graph.named_modules():
            _share_weights(part, checking.get_submodule(name))
        _share_weights(graph, self)
        self._modules = graph._modules
        self._graph, self._checking = (graph,), (checking,)
        self._program, self._structure = program, program.call_spec.out_spec
        for part in self.modules():
            part.training = False
        self._known: set[tuple[Any, ...]] = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the program's, whose errors it has: ValueError, AssertionError or RuntimeError for
        inputs that it was not exported for."""
        (checking,) = self._checking
        if is_compiling():  # the guards are those of the compiled graph, and are asked once
            return checking.forward(*args, **kwargs)
        shapes = () if kwargs else _shapes(args)
        if shapes in self._known:
            (graph,) = self._graph
            return self._structured(graph.forward(*args))
        out = checking(*args, **kwargs)
        if shapes:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            self._known.add(shapes)
        return out

    def _structured(self, out: Any) -> Any:
        """The results as the model gives them. Most give a tensor, or a tuple of tensors."""
        structure = self._structure
        assert structure is not None, "torch.export notes it down"
        if structure.is_leaf():
            return out[0]
        if structure.type is tuple and structure.num_children == structure.num_leaves == len(out):
            return tuple(out)
        return pytree.tree_unflatten(out, structure)

    def train(self, mode: bool = True) -> ProgramModule:
        """A program has the mode that it was exported in.

        Raises:
            PoolValueError: ``mode`` is true.
        """
        if mode:
            raise PoolValueError(
                "an exported program has no training mode", "Train the model, then export it"
            )
        self.training = False
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """``to``, ``half``, ``cuda``, ``share_memory`` and their kin."""

        def applied(x: torch.Tensor) -> torch.Tensor:
            out = fn(x)
            for kind, old, new in (("dtype", x.dtype, out.dtype), ("device", x.device, out.device)):
                if old != new:
                    raise PoolValueError(
                        f"an exported program keeps its {kind}, which is {old}, not {new}",
                        f"Give the model that {kind}, then export or optimise it",
                    )
            return out

        return super()._apply(applied, recurse)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a ``.pt2`` file: the graphs of `torch.export` cannot be pickled."""
        stream = io.BytesIO()
        torch.export.save(self._with(self.state_dict(keep_vars=True)), stream)
        return _from_bytes, (stream.getvalue(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgramModule:
        return ProgramModule(self._with(copy.deepcopy(self.state_dict(keep_vars=True), memo)))

    def _with(self, weights: Mapping[str, torch.Tensor]) -> ExportedProgram:
        """The program with other weights than it was made with."""
        return copy_of(
            self._program, state_dict={name: weights[name] for name in self._program.state_dict}
        )


def load_program(path: str | Path) -> ProgramModule:
    """The program of a ``.pt2`` file, ready to run; poolkit's operators are known then.

    Raises:
        PoolValueError: there is no such file, or it is no exported program.

    >>> import tempfile, torch
    >>> from torch import nn
    >>> from poolkit.optimization import optimize
    >>> x = torch.randn(1, 3, 8, 8)
    >>> report = optimize(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), x, tier="graph", seconds=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = load_program(report.save(folder + "/net.pt2"))
    >>> torch.equal(net(x), nn.functional.max_pool2d(x, 2).relu())
    True
    """
    return ProgramModule(ExportedModel.load(Path(path)).program)


def _from_bytes(data: bytes) -> ProgramModule:
    return ProgramModule(torch.export.load(io.BytesIO(data)))


def _share_weights(module: nn.Module, other: nn.Module) -> None:
    other._parameters, other._buffers = module._parameters, module._buffers
    other._non_persistent_buffers_set = module._non_persistent_buffers_set


def _shapes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the checks look at of plain tensors; empty of anything else."""
    shapes: list[Any] = []
    for x in args:
        if type(x) is not torch.Tensor:
            return ()
        shapes += (x.shape, x.dtype, x.device)
    return tuple(shapes)


def _direct(module: nn.Module, flat: bool = False) -> nn.Module:
    """A graph that calls poolings without the dispatcher; ``flat`` if it takes tensors and gives
    tensors, whatever structure they come in."""
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        if node.target is torch.ops.poolkit.pool.default:
            node.target = pool_by_recipes
    if flat:
        module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    module.training = False
    return module
