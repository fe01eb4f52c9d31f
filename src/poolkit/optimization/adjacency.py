"""Which activation modules stand right before a pooling, and nowhere else: proven on a run.

Joining the two is allowed only where the value between them goes nowhere else. A run shows who
reads it: each function of torch that takes it counts as a use, as does the model's output; and
whoever keeps it shows in that it is still alive after the run. A model may do other things with
gradients on (a hook on the value, as Grad-CAM sets it) and when it is trained (an auxiliary head),
so the same must be seen there.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from poolkit.errors import PoolError
from poolkit.inspection.trace import calling_line, tensors_in, uncompiled
from poolkit.optimization.elementwise import activation_of, is_activation
from poolkit.optimization.equality import (
    fixed_randomness,
    hidden_in,
    keeping_buffers,
    values_in,
)
from poolkit.optimization.sites import POOLING_CLASSES, reason_not_to_move
from poolkit.optimization.trial import Task

#: Questions about a tensor that do not look at its values.
_QUESTIONS = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "stride", "element_size",
    "is_contiguous", "is_floating_point", "is_complex", "storage_offset", "get_device", "__len__",
    "__hash__",
}  # fmt: skip


@dataclass(eq=False)
class _Value:
    """What an activation made, and who read it.

    ``aliased`` says whether another tensor had the memory that the activation overwrote.
    """

    activation: nn.Module | None  # None: a function of this name
    name: str
    source: str
    input: torch.Tensor | None
    alive: weakref.ref[torch.Tensor]
    aliased: bool = False
    readers: list[nn.Module | None] = field(default_factory=list)


@dataclass(frozen=True)
class Neighbour:
    """The activation before a pooling.

    ``inputs`` are its inputs, call by call; ``reason`` says why the two cannot be joined.
    """

    name: str
    activation: nn.Module | None = None
    inputs: tuple[torch.Tensor, ...] = ()
    reason: str = ""


def neighbours(task: Task) -> dict[int, Neighbour]:
    """The activation before each pooling module that has one, by the ``id`` of the module."""
    found = _seen(task, gradients=False)
    others = (
        ("with gradients", nullcontext()),
        ("in training mode", in_training_mode(task.model)),
    )
    for when, mode in others:
        if all(neighbour.reason for neighbour in found.values()):
            break
        try:
            with mode, fixed_randomness():
                seen = _seen(task, gradients=True)
        except (PoolError, NotImplementedError):  # the latter of a part that was exported
            reason = f"the model does not run {when} on this input, where the same must hold"
            seen = {key: replace(neighbour, reason=reason) for key, neighbour in found.items()}
            when = ""
        found = {
            key: neighbour if neighbour.reason else _in_both(neighbour, seen.get(key), when)
            for key, neighbour in found.items()
        }
    return found


def _in_both(neighbour: Neighbour, other: Neighbour | None, when: str) -> Neighbour:
    if other is None or other.activation is not neighbour.activation:
        return replace(neighbour, reason=f"{when} something else is pooled")
    if other.reason:
        return replace(neighbour, reason=f"{when} {other.reason}".lstrip())
    return neighbour


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside; after it modes and buffers are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    with keeping_buffers(model):
        try:
            model.train()
            yield
        finally:
            for module, training in modes:
                module.training = training


def _seen(task: Task, gradients: bool) -> dict[int, Neighbour]:
    """What one run in the mode that the model is in shows."""
    watch = _Watch()
    with torch.set_grad_enabled(gradients), uncompiled(), watch.hooks(), watch:
        watch.read_outputs(task.forward())
    watch.made.clear()
    if any(value.alive() is not None for value in watch.values):
        gc.collect()
    names = {id(module): name for name, module in task.model.named_modules()}
    found = {
        key: _neighbour(task.model, module, before, watch.values, names)
        for key, (module, before) in watch.pooled.items()
        if any(value is not None for value in before)
    }
    if watch.hidden:
        reason = f"the model returns a {watch.hidden}, into which nothing can look"
        found = {key: replace(one, reason=one.reason or reason) for key, one in found.items()}
    return found


def _neighbour(
    model: nn.Module,
    pooling: nn.Module,
    before: Sequence[_Value | None],
    values: Sequence[_Value],
    names: dict[int, str],
) -> Neighbour:
    first = next(value for value in before if value is not None)
    activation = first.activation
    if activation is None:
        where = f" ({first.source})" if first.source else ""
        return Neighbour(first.name, reason=f"it is called as a function{where}")
    name = names.get(id(activation), first.name)
    own = [value for value in values if value.activation is activation]
    reason = ""
    if any(value is None or value.activation is not activation for value in before):
        reason = "not all that is pooled comes from it"
    elif getattr(pooling, "return_indices", False):
        reason = "the pooling returns indices"
    elif any(value.readers != [pooling] for value in own):
        reason = "its result is used elsewhere too"
    elif any(value.alive() is not None for value in own):
        reason = "its result is kept after the run"
    elif any(value.aliased for value in own):
        reason = "it works in place, on memory that another tensor has too"
    else:
        reason = reason_not_to_move(model, activation)
    inputs = tuple(value.input for value in own if value.input is not None)
    return Neighbour(name, activation, inputs, reason)


class _Watch(TorchFunctionMode):
    """Sees which module reads what an activation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[_Value] = []
        self.hidden = ""  # what the model returns that cannot be read
        self.made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.pooled: dict[int, tuple[nn.Module, list[_Value | None]]] = {}
        self.tensors: dict[int, list[weakref.ref[torch.Tensor]]] = {}  # by address
        self.stack: list[tuple[nn.Module, torch.Tensor | None, bool]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        # Some attributes are tensors, such as `data`: whoever asks for them can read the values.
        if name not in _QUESTIONS or any(True for _ in tensors_in(out)):
            for tensor in tensors_in((args, kwargs)):
                self.read(tensor, self.stack[-1][0] if self.stack else None)
        for tensor in tensors_in(out):
            if address := _address(tensor):
                self.tensors.setdefault(address, []).append(weakref.ref(tensor))
        if isinstance(out, torch.Tensor) and is_activation(name):
            self._make(None, name.rstrip("_"), None, out)
        return out

    def read(self, tensor: torch.Tensor, reader: nn.Module | None) -> None:
        value = self.made.get(tensor)
        if value is not None:
            value.readers.append(reader)

    def read_outputs(self, output: Any) -> None:
        """Nothing may hold the outputs after it: with them lives what their gradients need."""
        for tensor in values_in(output):
            self.read(tensor, None)
        self.hidden = hidden_in(output)

    def _make(
        self,
        activation: nn.Module | None,
        name: str,
        x: torch.Tensor | None,
        out: torch.Tensor,
        aliased: bool = False,
    ) -> None:
        value = _Value(activation, name, calling_line(), x, weakref.ref(out), aliased)
        self.values.append(value)
        self.made[out] = value

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """The hooks are global, so the model's own are not touched."""
        modules = nn.modules.module
        handles = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        x = next(tensors_in(args), None)
        before, aliased = None, False
        if x is not None and activation_of(module) is not None:
            before = x.detach().clone()  # it may be overwritten in place
            others = (other() for other in self.tensors.get(_address(x), ()))
            aliased = getattr(module, "inplace", False) and any(
                other is not None and other is not x for other in others
            )
        if x is not None and type(module) in POOLING_CLASSES.values():
            self.pooled.setdefault(id(module), (module, []))[1].append(self.made.get(x))
        self.stack.append((module, before, aliased))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.stack or self.stack[-1][0] is not module:
            return  # the model itself failed half way
        _, before, aliased = self.stack.pop()
        if before is not None and isinstance(output, torch.Tensor):
            self._make(module, type(module).__name__, before, output, aliased)


def _address(x: torch.Tensor) -> int:
    """Where the memory of a tensor begins; 0 of one that has none."""
    return x.untyped_storage().data_ptr() if x.layout is torch.strided else 0
