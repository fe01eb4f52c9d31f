"""Run a model once and record every pooling in order of execution."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from poolkit.errors import PoolError, PoolValueError
from poolkit.inspection import dataflow
from poolkit.inspection.dataflow import View
from poolkit.inspection.operations import Pooling, recognise
from poolkit.inspection.poolkit_calls import from_poolkit, is_poolkits, named

_LIBRARIES = {Path(torch.__file__).parent, Path(__file__).parent.parent}
_EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass
class TracedPooling:
    """One pooling that ran, with the tensors that went in and came out (detached)."""

    pooling: Pooling
    name: str
    module: nn.Module | None
    aliases: tuple[str, ...]
    source: str
    view: View | None
    input: torch.Tensor
    output: torch.Tensor
    layout: str = "contiguous"

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments that the module got."""
        indices = self.pooling.arguments.get("indices")
        if indices is None:
            return (self.input,)
        size = self.pooling.arguments.get("output_size")
        return (self.input, indices) if size is None else (self.input, indices, size)


def trace(
    model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> tuple[list[TracedPooling], Any]:
    """Run ``model(*inputs, **kwargs)`` and return its poolings, in order, and its output.

    The model runs once, without gradients, in the mode it is in. Raises PoolError, with the
    shapes and the first line of the exception, if the model does.
    """
    recorder = _Recorder(model)
    for value in tensors_in((tuple(inputs), dict(kwargs or {}))):
        recorder.see_input(value)
    with torch.no_grad(), recorder.hooks(), recorder:
        output = run_model(model, inputs, kwargs)
    return recorder.found, output


def run_model(
    model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Call the model; an exception of the model becomes one line that names the shapes."""
    try:
        return model(*inputs, **(kwargs or {}))
    except PoolError:
        raise
    except Exception as error:
        shapes = ", ".join(
            describe_tensor(t) for t in tensors_in((tuple(inputs), dict(kwargs or {})))
        )
        text = next(iter(str(error).strip().splitlines()), "")
        raise PoolValueError(
            f"the model raised on input {shapes or 'without tensors'}: "
            f"{type(error).__name__}: {text}"
        ) from error


def describe_tensor(x: torch.Tensor) -> str:
    """``float32[1, 3, 24, 24]``."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


class _Recorder(TorchFunctionMode):
    """Sees every torch function that the model calls.

    While a call is handled the mode is off, so what ``F.max_pool2d`` calls in turn is not seen
    and nothing is counted twice. poolkit's own modules are recorded whole, from their hooks:
    which kernel they choose inside is not the model's business.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[TracedPooling] = []
        self.views: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.stack: list[nn.Module] = []
        self.names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(id(module), []).append(name)
        self.inside_poolkit = 0

    def see_input(self, x: torch.Tensor) -> None:
        view = dataflow.of_input(x)
        if view is not None:
            self.views[x] = view

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside_poolkit or not any(True for _ in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if "input" in kwargs:
            args = (kwargs["input"], *args)
            kwargs = {key: value for key, value in kwargs.items() if key != "input"}
        views = [v for t in tensors_in((args, kwargs)) if (v := self.views.get(t)) is not None]
        view = dataflow.join(views)
        dims = view.dims if view is not None and view.features else ()
        pooling = recognise(func, args, kwargs, dims)
        before = self._snapshot(args[0]) if pooling is not None else None
        out = func(*args, **kwargs)
        if pooling is not None and before is not None:
            self._record(pooling, args[0], before, out)
        elif view is not None:
            self._follow(getattr(func, "__name__", ""), args, kwargs, view, out)
        return out

    def _follow(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], view: View, out: Any
    ) -> None:
        for tensor in tensors_in(out):
            after = dataflow.after_call(name, args, kwargs, view, tensor)
            if after is not None:
                self.views[tensor] = after

    def _snapshot(self, x: torch.Tensor) -> torch.Tensor:
        # A copy, because a later in-place operation may overwrite the input; detach().clone()
        # keeps the memory layout, which decides how fast a pooling is.
        return x.detach().clone()

    def _record(self, pooling: Pooling, x: torch.Tensor, before: torch.Tensor, out: Any) -> None:
        first = next(tensors_in(out))
        view = self.views.get(x) or dataflow.of_input(x, pooling.spatial_rank)
        after = None if view is None else dataflow.after_pooling(pooling, view, before, first)
        if after is not None:
            for tensor in tensors_in(out):
                self.views[tensor] = after
        module = self.stack[-1] if self.stack else None
        names = self.names.get(id(module), [""]) if module is not None else [""]
        is_layer = module is not None and is_pooling_module(module)
        self.found.append(
            TracedPooling(
                pooling=pooling,
                name=names[0],
                module=module if is_layer else None,
                aliases=tuple(names[1:]) if is_layer else (),
                source="" if is_layer else _calling_line(),
                view=after,
                input=before,
                output=first.detach().clone(),
                layout=layout_of(before),
            )
        )

    def _poolkit_call(
        self,
        run: Callable[..., Any],
        return_indices: bool,
        x: torch.Tensor,
        window: Any,
        reduction: Any,
        ndim: int,
        channels_last: bool,
    ) -> Any:
        """A call of poolkit's, by name or as ``poolkit.pool``: all of them come through here."""
        if self.inside_poolkit:
            return run(x, window, reduction, ndim, channels_last)
        before = self._snapshot(x)
        self.inside_poolkit += 1
        try:
            out = run(x, window, reduction, ndim, channels_last)
        finally:
            self.inside_poolkit -= 1
        self._record(named(window, reduction, ndim, channels_last, return_indices), x, before, out)
        return out

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow which module runs, and poolkit's own calls.

        The hooks are global, so the model's own are not touched.
        """
        from poolkit import functional
        from poolkit.torch import dispatch

        shortcuts, chain = functional.shortcuts, dispatch.chain
        calls = {"pool": dispatch.pool, "pool_with_indices": dispatch.pool_with_indices}
        handles = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        ]
        for name, run in calls.items():
            setattr(dispatch, name, partial(self._poolkit_call, run, name != "pool"))
        # A chain in one pass would hide its levels.
        dispatch.chain = dispatch.chain_by_levels
        # Tiny tensors go straight to aten, past `dispatch`, and would be taken for torch's.
        functional.shortcuts = functional.Shortcuts(*[_no_shortcut] * len(shortcuts))
        try:
            yield
        finally:
            functional.shortcuts, dispatch.chain = shortcuts, chain
            for name, run in calls.items():
                setattr(dispatch, name, run)
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)
        # Called by keyword it hides its input from the hook; then its call of poolkit is seen.
        if self.inside_poolkit or (args and from_poolkit(module) is not None):
            self.inside_poolkit += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.stack or self.stack[-1] is not module:
            return  # the model itself failed half way; its exception is the message
        if self.inside_poolkit:
            self.inside_poolkit -= 1
            pooling = from_poolkit(module)
            if not self.inside_poolkit and pooling is not None and args and output is not None:
                self._record_module(pooling, args, output)
        elif not any(t in self.views for t in tensors_in(output)):
            # A module whose inside is not seen, as a scripted one: no wider than its input.
            view = dataflow.join(
                v for t in tensors_in(args) if (v := self.views.get(t)) is not None
            )
            if view is not None:
                self._follow("", args, {}, view, output)
        self.stack.pop()

    def _record_module(self, pooling: Pooling, args: Sequence[Any], output: Any) -> None:
        if "unpool" in pooling.operation and len(args) > 1:
            pooling = Pooling(pooling.operation, {"indices": args[1], **pooling.arguments})
        self._record(pooling, args[0], self._snapshot(args[0]), output)


def _no_shortcut(*arguments: Any) -> None:
    """Leave the call to the usual way."""


def is_pooling_module(module: nn.Module) -> bool:
    """Whether a module is a pooling layer: torch's, poolkit's, or a subclass of torch's."""
    return is_poolkits(module) or any(
        hasattr(nn, base.__name__) and "pool" in base.__name__.lower()
        for base in type(module).__mro__
    )


def layout_of(x: torch.Tensor) -> str:
    """How a tensor lies in memory: the other half of what a pooling costs."""
    if x.is_contiguous():
        return "contiguous"
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return "channels last"
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return "channels last"
    return "strided"


def _calling_line() -> str:
    """``net.py:42``: the nearest line that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _EXAMPLES in path.parents or not _LIBRARIES & set(path.parents):
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
