"""Models on paper: tensors that have a shape and a dtype, and no memory.

Tensors of torch's meta device run a forward in milliseconds, whatever its size. A forward that
looks at values cannot run on them. It runs in memory, on the values that there are: which branch
it takes, and how much a mask keeps, depends on them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from poolkit.comparison.costs import counted, parameters
from poolkit.design.records import Draft
from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.inspection.dataflow import View
from poolkit.inspection.inspector import evaluating
from poolkit.inspection.trace import Run, Step, follow, tensors_in
from poolkit.optimization.equality import fixed_randomness

_BATCH_NORM = torch.ops.aten.native_batch_norm.default
_SIZE = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")


def on_paper() -> torch.device:
    """Inside, tensors that are made have no memory: a network is built in no time."""
    return torch.device("meta")


@dataclass(frozen=True)
class Paper:
    """Where drafts of one model run, all on the same inputs.

    Attributes:
        args, kwargs: of ``forward``.
        device: "meta", where tensors have no memory, and only their shape and dtype matter; or
            "cpu", where weights, buffers and given tensors are as they are.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    device: str = "meta"

    @classmethod
    def that_runs(cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Paper:
        """Without memory if the model runs so, else with values. Raises PoolError if on neither,
        or if a weight has no value."""
        paper = cls(args, kwargs)
        try:
            paper.run(paper.copy(model))
        except PoolError:
            if any(tensor.is_meta for tensor in _tensors_of(model)):
                raise
            paper = cls(args, kwargs, "cpu")
            paper.run(paper.copy(model))
        return paper

    @property
    def kind(self) -> Literal["shapes", "values", "random"]:
        """What it runs on, as `Findings.paper` has it."""
        if self.device == "meta":
            return "shapes"
        sizes = any(x.is_meta for x in tensors_in((self.args, dict(self.kwargs))))
        return "random" if sizes else "values"

    def open(self) -> torch.device:
        """Inside, tensors that are made are of this paper's kind."""
        return torch.device(self.device)

    def copy(self, model: nn.Module) -> nn.Module:
        """The same model, of its class, mode and names; on paper without the values of weights."""
        with self.open():
            memo: dict[int, Any] = {
                id(tensor): self._weight(tensor)
                for tensor in _tensors_of(model)
                if not nn.parameter.is_lazy(tensor)
            }
            try:
                return copy.deepcopy(model, memo)
            except Exception as error:
                text = next(iter(str(error).strip().splitlines()), "")
                raise PoolValueError(
                    f"{type(model).__name__} cannot be copied: {type(error).__name__}: {text}",
                    "What is tried on paper is a copy, so copy.deepcopy(model) has to work",
                ) from None

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of ``forward``, the same each time; a size becomes numbers where it must."""
        random = torch.Generator().manual_seed(0)

        def argument(x: torch.Tensor) -> torch.Tensor:
            if self.device == "meta" or not x.is_meta:
                return self._own(x)
            if x.dtype.is_floating_point:
                numbers = torch.rand(x.shape, generator=random, device=self.device)
                return numbers.to(x.dtype)
            return torch.ones(x.shape, dtype=x.dtype, device=self.device)

        return pytree.tree_map_only(torch.Tensor, argument, (self.args, dict(self.kwargs)))

    def _weight(self, weight: torch.Tensor) -> torch.Tensor:
        new = self._own(weight)
        if isinstance(weight, nn.Parameter):
            return nn.Parameter(new, requires_grad=weight.requires_grad)
        return new

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of this paper's that may be changed."""
        if self.device == "meta":
            return torch.empty(x.shape, dtype=x.dtype, device="meta")
        return x.detach().to(self.device, copy=True)

    def positional(self) -> tuple[Any, ...]:
        """The arguments of ``forward``, where none has to be named. Raises PoolValueError else."""
        args, kwargs = self.arguments()
        if kwargs:
            raise PoolValueError(
                f"the model is called with {', '.join(kwargs)} by name",
                "Let forward take its arguments by position",
            )
        return args

    def run(self, model: nn.Module) -> tuple[Run, int]:
        """What a copy does, and its multiply-adds. It runs in eval mode."""
        with self.open(), evaluating(model), fixed_randomness(), torch.no_grad():
            args, kwargs = self.arguments()

            def watched() -> Run:
                with _Shortcut():
                    return follow(model, args, kwargs, convolutions=True)

            return counted(watched)

    def draft(self, model: nn.Module) -> tuple[Draft, Run]:
        """What a copy costs, and what its last map sees."""
        run, multiply_adds = self.run(model)
        step, view = _last_map(run) or (None, None)
        return (
            Draft(
                parameters=parameters(model),
                multiply_adds=multiply_adds,
                activations=run.made,
                outputs=[list(x.shape) for x in tensors_in(run.output)],
                last_map=[step.shape[dim] for dim in view.dims] if step and view else None,
                sees=[axis.seen() for axis in view.axes] if view else None,
                jump=[round(axis.sees.jump, 4) for axis in view.axes] if view else None,
            ),
            run,
        )


class _Shortcut(TorchDispatchMode):
    """Batch norms of tensors without memory, of which torch works out each step: half of the time
    of a network that has them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _BATCH_NORM and args[0].is_meta and not args[5]:  # by running statistics
            nothing = args[0].new_empty(0)
            return torch.empty_like(args[0]), nothing, nothing
        return func(*args, **(kwargs or {}))


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))


def _last_map(run: Run) -> tuple[Step, View] | None:
    """The last map that has more than one position, and what its values see; before bins, which
    see whatever the size asks for."""
    maps = (
        (step, step.view)
        for step in reversed(run.steps)
        if step.view is not None
        and step.view.features
        and not step.operation.startswith("adaptive")
        and step.view.dims
        and len(step.view.dims) == len(step.view.axes)
        and max(step.shape[dim] for dim in step.view.dims) > 1
    )
    return next(maps, None)


def sized(inputs: Any) -> Any:
    """Inputs with a tensor in the place of each `torch.Size` and each text such as 1x3x224x224.

    A tuple of integers alone is a size, too.

    >>> sized("2x8:int64").dtype, sized([torch.Size([1, 3, 8, 8])])[0].shape
    (torch.int64, torch.Size([1, 3, 8, 8]))
    """
    if isinstance(inputs, tuple | list) and inputs and all(type(side) is int for side in inputs):
        return torch.empty(inputs, device="meta")
    return _sized(inputs)


def _sized(inputs: Any) -> Any:
    if isinstance(inputs, torch.Size):
        return torch.empty(inputs, device="meta")
    if isinstance(inputs, str):
        return read_size(inputs)
    if isinstance(inputs, tuple | list):
        return type(inputs)([_sized(value) for value in inputs])
    if isinstance(inputs, dict):
        return {key: _sized(value) for key, value in inputs.items()}
    return inputs


def is_size(text: str) -> bool:
    """Whether a word says a size: digits with x between them, and a dtype behind a colon.

    >>> is_size("1x3x224x224"), is_size("1x128:int64"), is_size("x.npy")
    (True, True, False)
    """
    return _SIZE.fullmatch(text) is not None


def read_size(text: str) -> torch.Tensor:
    """A float32 tensor of a size such as 1x3x224x224, or of the dtype in 1x128:int64."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise PoolValueError(
            f"{text!r} is not a size", "Write it as 1x3x224x224, or 1x128:int64 for another dtype"
        )
    sides = [int(side) for side in found[1].split("x")]
    dtype = getattr(torch, found[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise PoolTypeError(f"there is no dtype {found[2]!r}", "Write it as float32 or int64")
    if not all(sides):
        raise PoolValueError(f"{text!r} has a side of 0", "Give sides of at least 1")
    return torch.empty(sides, dtype=dtype, device="meta")
