"""Run a model once and record every pooling in order of execution."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

import poolkit
from poolkit import functional
from poolkit.errors import PoolError, PoolValueError, first_line
from poolkit.inspection import dataflow
from poolkit.inspection.dataflow import View
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.operations import (
    CONVOLUTIONS,
    Call,
    Pooling,
    recognise,
    recognise_convolution,
)
from poolkit.inspection.poolkit_calls import from_operator, from_poolkit, is_poolkits, named
from poolkit.torch import dispatch
from poolkit.windows import as_window

_LIBRARIES = tuple(f"{Path(home).parent}{os.sep}" for home in (torch.__file__, poolkit.__file__))
_EXAMPLES = f"{Path(poolkit.__file__).parent / 'examples'}{os.sep}"


#: Calls that hand values on as they are: the next call reads what the one before has made.
_HANDS_ON = {
    "flatten", "view", "reshape", "unflatten", "permute", "transpose", "swapaxes", "swapdims",
    "movedim", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "alias", "lift_fresh_copy",
    "to", "_to_copy", "type", "float", "double", "half", "bfloat16", "requires_grad_", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "identity",
}  # fmt: skip
#: Arguments that the flags look at, of calls that are no poolings.
_LOOKED_AT = {"pad": ("pad", "mode", "value"), "constant_pad_nd": ("pad", "value"), **CONVOLUTIONS}


@dataclass(eq=False)
class Step:
    """One call of the model, with the calls that it reads from and that read from it.

    ``arguments`` are those of a pooling, of a convolution and of a padding. ``shape`` and ``view``
    are those of the first tensor that it gives.
    """

    name: str
    operation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pooling: Pooling | None = None
    producers: list[Step] = field(default_factory=list)
    consumers: list[Step] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    view: View | None = None

    @property
    def label(self) -> str:
        """``features.0 (conv2d)``."""
        return f"{self.name} ({self.operation})" if self.name else self.operation

    def reads(self, producers: Sequence[Step]) -> Step:
        """This step, joined to those that made its inputs."""
        for producer in dict.fromkeys(producers):
            self.producers.append(producer)
            producer.consumers.append(self)
        return self


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
    step: Step = field(default_factory=lambda: Step("", ""))
    kind: str = "function"
    is_layer: bool = False  # whether ``name`` names nothing but this
    by_poolkit: bool = False
    node: str = ""  # of an exported graph

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments that the module got."""
        indices = self.pooling.arguments.get("indices")
        if indices is None:
            return (self.input,)
        size = self.pooling.arguments.get("output_size")
        return (self.input, indices) if size is None else (self.input, indices, size)


class Run(NamedTuple):
    """What a model did: its poolings, its output, and all of its calls, each in order.

    ``made`` counts the bytes of every tensor that a call made, once: not those of views, nor of
    what was changed in place.
    """

    found: list[TracedPooling]
    output: Any
    steps: list[Step]
    made: int


def trace(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    convolutions: bool = False,
    of_inputs: bool = False,
    found: list[TracedPooling] | None = None,
) -> tuple[list[TracedPooling], Any]:
    """Run ``model(*inputs, **kwargs)`` and return its poolings, in order, and its output.

    As `follow`, for those who ask for no more.
    """
    return follow(
        model, inputs, kwargs, convolutions=convolutions, of_inputs=of_inputs, found=found
    )[:2]


def follow(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    convolutions: bool = False,
    of_inputs: bool = False,
    found: list[TracedPooling] | None = None,
) -> Run:
    """Run ``model(*inputs, **kwargs)`` and return what it did.

    With ``convolutions``, those that have a stride are among its poolings; with ``of_inputs``,
    reductions over the space of the inputs themselves, as if these were maps of features. The
    model runs once, without gradients, in the mode it is in. Raises PoolError, with the shapes and
    the first line of the exception, if the model does; the poolings that ran before are in
    ``found`` even then.
    """
    recorder = _Recorder(model, convolutions, [] if found is None else found)
    for value in tensors_in((tuple(inputs), dict(kwargs or {}))):
        recorder.see_input(value, of_inputs)
    with torch.no_grad(), uncompiled(), recorder.hooks(), recorder:
        output = run_model(model, inputs, kwargs)
    recorder.see_output(output)
    return Run(recorder.found, output, recorder.order, recorder.made)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what torch.compile has made runs as it was written: a compiler would trace whoever
    watches the model, and hide the model from them."""
    with torch.compiler.set_stance("force_eager"):
        yield


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
        text = first_line(error).rstrip(".")
        raise PoolValueError(
            f"the model raised on input {shapes or 'without tensors'}: "
            f"{type(error).__name__}: {text}"
        ) from error


def describe_tensor(x: torch.Tensor) -> str:
    """``float32[1, 3, 24, 24]``."""
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


class Place(NamedTuple):
    """Where a call stands: names of the module, the module itself, or the class, the line and the
    node that an exported graph knows of it."""

    names: list[str]
    module: nn.Module | None
    class_name: str
    source: str
    node: str = ""


class _Recorder(TorchFunctionMode):
    """Sees every torch function that the model calls.

    While a call is handled the mode is off, so what ``F.max_pool2d`` calls in turn is not seen
    and nothing is counted twice. poolkit's own modules are recorded whole, from their hooks:
    which kernel they choose inside is not the model's business.
    """

    def __init__(self, model: nn.Module, convolutions: bool, found: list[TracedPooling]) -> None:
        super().__init__()
        self.model = model
        self.convolutions = convolutions
        self.found = found
        self.order: list[Step] = []
        self.made = 0
        self.views: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.steps: WeakIdKeyDictionary = WeakIdKeyDictionary()  # which made each tensor
        self.stack: list[nn.Module] = []
        self.names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(id(module), []).append(name)
        self.inside_poolkit = 0

    def see_input(self, x: torch.Tensor, features: bool) -> None:
        self.steps[x] = Step("", "input")
        view = dataflow.of_input(x)
        if view is not None:
            self.views[x] = replace(view, features=features)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside_poolkit or not any(True for _ in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if func is torch.ops.poolkit.chain.default:
            with self:  # its levels are seen, and what joins them
                return dispatch.chain_by_levels(args[0], as_window(args[1]), args[2])
        if "input" in kwargs:
            args = (kwargs["input"], *args)
            kwargs = {key: value for key, value in kwargs.items() if key != "input"}
        views = [v for t in tensors_in((args, kwargs)) if (v := self.views.get(t)) is not None]
        view = dataflow.join(views)
        dims = view.dims if view is not None and view.features else ()
        call = Call.of(func, args, kwargs)
        pooling = from_operator(call) or recognise(func, args, kwargs, dims)
        if pooling is None and self.convolutions:
            pooling = recognise_convolution(call)
        before = self._snapshot(call.args[0]) if pooling is not None else None
        made_by = self._producers(call.args, call.kwargs)
        held = {_storage(t) for t in tensors_in((args, kwargs))}
        out = func(*args, **kwargs)
        self._count(out, held)
        if pooling is not None and before is not None:
            self._record(pooling, call.args[0], before, out)
        else:
            self._link(call, made_by, out)
            if view is not None:
                self._follow(call, view, out)
        return out

    def _follow(self, call: Call, view: View, out: Any) -> None:
        for tensor in tensors_in(out):
            after = dataflow.after_call(call, view, tensor)
            if after is not None:
                self.views[tensor] = after
                step = self.steps.get(tensor)
                if step is not None and call.name not in _HANDS_ON:
                    step.view = step.view or after

    def _count(self, out: Any, held: set[int]) -> None:
        """Add what a call made to ``made``, where its arguments hold none of it."""
        made = {_storage(t): t.nbytes for t in tensors_in(out)}
        self.made += sum(size for storage, size in made.items() if storage not in held)

    def _producers(self, *values: Any) -> list[Step]:
        return [step for t in tensors_in(values) if (step := self.steps.get(t)) is not None]

    def _link(self, call: Call, made_by: list[Step], out: Any) -> None:
        """Note which call made ``out``, and from what."""
        results = list(tensors_in(out))
        if not results or not made_by:
            return  # a question about a shape, or something about a parameter
        if call.name in _HANDS_ON:
            step = made_by[0]
        else:
            names = _LOOKED_AT.get(call.name)
            given = call.bound(*names) if names else {}
            step = Step(self._place().names[0], call.name.rstrip("_"), given).reads(made_by)
            step.shape = tuple(results[0].shape)
            self.order.append(step)
        for tensor in results:
            self.steps[tensor] = step

    def _place(self) -> Place:
        """Where in the model the call stands that runs now."""
        if isinstance(self.model, ExportedModel) and self.model.running is not None:
            name, class_name, source = self.model.place()
            return Place([name], None, class_name, source, self.model.running.name)
        module = self.stack[-1] if self.stack else None
        names = self.names.get(id(module), [""]) if module is not None else [""]
        return Place(names, module, "", "")

    def see_output(self, output: Any) -> None:
        made_by = self._producers(output)
        if made_by:
            Step("", "output").reads(made_by)

    def _snapshot(self, x: torch.Tensor) -> torch.Tensor:
        # A copy, because a later in-place operation may overwrite the input; detach().clone()
        # keeps the memory layout, which decides how fast a pooling is.
        return x.detach().clone()

    def _record(
        self,
        pooling: Pooling,
        x: torch.Tensor,
        before: torch.Tensor,
        out: Any,
        by_poolkit: bool = False,
    ) -> None:
        first = next(tensors_in(out))
        view = self.views.get(x) or dataflow.of_input(x, pooling.spatial_rank)
        after = None if view is None else dataflow.after_pooling(pooling, view, before, first)
        names, module, class_name, source, node = self._place()
        step = Step(names[0], pooling.operation, pooling.arguments, pooling)
        step.reads(self._producers(x))
        step.shape, step.view = tuple(first.shape), after
        self.order.append(step)
        for tensor in tensors_in(out):
            self.steps[tensor] = step
            if after is not None:
                self.views[tensor] = after
        is_layer = module is not None and is_layer_of(module, pooling)
        word = "conv" if pooling.is_convolution else "pool"
        named = is_layer or word in class_name.lower()
        kind = "module" if named and not pooling.is_convolution else pooling.kind
        self.found.append(
            TracedPooling(
                pooling=pooling,
                name=names[0],
                module=module if is_layer else None,
                aliases=tuple(names[1:]) if is_layer else (),
                source=source or calling_line(),
                view=after,
                input=before,
                output=first.detach().clone(),
                layout=layout_of(before),
                step=step,
                kind=kind,
                is_layer=named,
                by_poolkit=by_poolkit,
                node=node,
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
        with self._looking_away():
            before = self._snapshot(x)
            out = run(x, window, reduction, ndim, channels_last)
            self._count(out, {_storage(x)})
            pooling = named(window, reduction, ndim, channels_last, return_indices)
            self._record(pooling, x, before, out, True)
        return out

    @contextmanager
    def _looking_away(self) -> Iterator[None]:
        """Inside, calls are not the model's: poolkit's own, and copies that are made here."""
        self.inside_poolkit += 1
        try:
            yield
        finally:
            self.inside_poolkit -= 1

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow which module runs, and poolkit's own calls.

        The hooks are global, so the model's own are not touched.
        """
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
            call = Call(type(module).__name__, tuple(args), {})
            self._link(call, self._producers(args), output)
            if view is not None:
                self._follow(call, view, output)
        self.stack.pop()

    def _record_module(self, pooling: Pooling, args: Sequence[Any], output: Any) -> None:
        if "unpool" in pooling.operation and len(args) > 1:
            pooling = Pooling(pooling.operation, {"indices": args[1], **pooling.arguments})
        with self._looking_away():
            self._count(output, {_storage(t) for t in tensors_in(args)})
            self._record(pooling, args[0], self._snapshot(args[0]), output, True)


def _storage(x: torch.Tensor) -> int:
    """What tells the memory of a tensor from that of others while both are alive."""
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # as sparse ones, which have none of their own
        return id(x)


def _no_shortcut(*arguments: Any) -> None:
    """Leave the call to the usual way."""


def is_layer_of(module: nn.Module, pooling: Pooling) -> bool:
    """Whether a module is nothing but the pooling, or the convolution, that it was seen to run."""
    if pooling.is_convolution:
        return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return is_pooling_module(module)


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


def calling_line() -> str:
    """``net.py:42``: the nearest line of the model that is neither torch's nor ours. Empty if it
    has none, as it is made of torch's modules alone: who runs it is no part of it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not run_model.__code__:
        path = frame.f_code.co_filename
        if path.startswith(_EXAMPLES) or not path.startswith(_LIBRARIES):
            return f"{Path(path).name}:{frame.f_lineno}"
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
