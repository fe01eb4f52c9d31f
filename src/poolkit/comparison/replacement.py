"""Find the poolings of a model, and put a variant's in their places."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from poolkit.comparison.variants import MOVED_STRIDE, ORIGINAL, Choice, Variant
from poolkit.errors import PoolError, PoolValueError
from poolkit.inspection.inspector import evaluating
from poolkit.inspection.poolkit_calls import is_poolkits
from poolkit.inspection.trace import TracedPooling, run_model, trace
from poolkit.optimization.equality import fixed_randomness
from poolkit.optimization.sites import (
    POOLING_CLASSES,
    Swap,
    reason_not_to_replace,
    sites_of,
)
from poolkit.vision.convolution import move_stride, window_of
from poolkit.vision.registry import POOLS, create_pool2d
from poolkit.vision.resolution import POINTWISE, LeafTracer

#: Functions that may stand between a convolution and the pool that gives it its stride.
_POINTWISE_CALLS = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "dropout", "dropout2d",
}  # fmt: skip


@dataclass
class Place:
    """A pooling module of the model, with the shapes that went in and came out, call by call."""

    name: str
    module: nn.Module
    kind: str
    inputs: list[torch.Size] = field(default_factory=list)
    outputs: list[torch.Size] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} ({type(self.module).__name__})"


def replace(model: nn.Module, variant: Variant, example: torch.Tensor, seed: int) -> None:
    """Put the poolings of a variant in the places of the model's, in place.

    Every other module stays, with its weights. Weights of the new poolings are drawn from `seed`
    by a generator of their own, so that no other random number changes.

    Raises:
        PoolValueError: with the place and the reason, if a pooling cannot be replaced: it is a
            function in a forward, has no window, or the new one has another shape.
    """
    if variant.name == ORIGINAL:
        return
    places, calls = find(model, example)
    for choice in variant.choices:
        chosen = [place for place in places if place.kind == choice.kind]
        called = [call for call in calls if _kind_of_call(call) == choice.kind]
        if called:
            first = called[0]
            raise PoolValueError(
                f"a {choice.kind} pooling is called as a function"
                + (f" ({first.source})" if first.source else ""),
                "Make it a module in the model's __init__: only modules can be replaced",
            )
        if not chosen:
            raise PoolValueError(
                f"the model has no {choice.kind} pooling for {variant.name!r} to replace",
                "Leave this variant out" if places else "Give a model with pooling modules",
            )
        for place in chosen:
            check_replaceable(model, place)
        try:
            replace_at(model, choice, chosen, seed)
        except PoolError as error:
            raise error.during(f"with the variant {variant.name!r}") from None
        _check_shapes(model, chosen, example, variant)


def replace_at(model: nn.Module, choice: Choice, places: Sequence[Place], seed: int) -> None:
    """Put one pooling in each of some places, in place. Raises PoolValueError where it cannot."""
    if choice.pool == MOVED_STRIDE:
        _move_strides(model, places)
        return
    with fixed_randomness(seed):
        for place in places:
            put(model, place.module, _made(choice, place))


def check_replaceable(model: nn.Module, place: Place) -> None:
    """Raise PoolValueError if another module in this place could change more than the pooling."""
    if reason := reason_not_to_replace(model, place.module):
        raise PoolValueError(f"{place} cannot be replaced: {reason}")


def find(model: nn.Module, example: torch.Tensor) -> tuple[list[Place], list[TracedPooling]]:
    """The pooling modules that run on an example, and the poolings that are called in a forward."""
    inside: set[int] = set()
    places = []
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind and id(module) not in inside:
            places.append(Place(name, module, kind))
            inside |= {id(part) for part in module.modules()}
    with evaluating(model), fixed_randomness(), _watched(places):
        found, _ = trace(model, (example,))
    ours = [place.name for place in places]
    calls = [
        call
        for call in found
        if call.module is None
        and not any(call.name == name or call.name.startswith(f"{name}.") for name in ours)
    ]
    return [place for place in places if place.outputs], calls


def _kind(module: nn.Module) -> str:
    """ "window", "global", "map" (neither), or nothing for what is no pooling.

    A window slides over images by more than 1; a global pooling leaves one position.
    """
    entry = next((entry for entry in POOLS.values() if entry.module is type(module)), None)
    base = next((name for name, cls in POOLING_CLASSES.items() if isinstance(module, cls)), "")
    if entry is None and not base and not is_poolkits(module):
        return ""
    if entry is not None and entry.kind == "global":
        return "global"
    name = base or type(module).__name__
    if name.startswith("Adaptive") and name.endswith("2d"):
        return "global" if getattr(module, "output_size", None) in (1, (1, 1)) else "map"
    if name.endswith(("1d", "3d")) or "Unpool" in name:
        return "map"
    window = window_of(module)
    return "window" if window is not None and max(window.sizes(2)[1]) > 1 else "map"


def _kind_of_call(call: TracedPooling) -> str:
    if call.input.ndim != 4:
        return ""
    left = call.output.shape[2:] if call.output.ndim == 4 else ()
    return "global" if all(side == 1 for side in left) else "window"


@contextmanager
def _watched(places: list[Place]) -> Iterator[None]:
    """Note the shapes that the modules see meanwhile."""

    def note(place: Place, args: Any, out: Any) -> None:
        if args and isinstance(args[0], torch.Tensor) and isinstance(out, torch.Tensor):
            place.inputs.append(args[0].shape)
            place.outputs.append(out.shape)

    handles = [
        place.module.register_forward_hook(lambda _, args, out, place=place: note(place, args, out))
        for place in places
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _made(choice: Choice, place: Place) -> nn.Module:
    """The new pooling for a place: its window, and what the module wants to know of the map."""
    shape = place.inputs[0]
    known = inspect.signature(POOLS[choice.pool].module).parameters
    options: dict[str, Any] = {"channels": shape[-3]}
    if choice.kind == "window":
        window = window_of(place.module)
        if window is None:
            raise PoolValueError(f"{place} has no sliding window", "Leave it out of the model")
        kernel, stride, dilation = window.sizes(2)
        options["stride"] = _one(stride)
        if POOLS[choice.pool].kind == "window":
            options |= {"kernel_size": _one(kernel), "padding": window.padding}
            if max(dilation) > 1:
                options["dilation"] = _one(dilation)
            if window.ceil_mode and "ceil_mode" in known:
                options["ceil_mode"] = True
    elif "input_size" in known:
        options["input_size"] = tuple(shape[-2:])
    new = create_pool2d(choice.pool, **(options | dict(choice.options)))
    if len(set(place.inputs)) > 1 and any(True for _ in new.parameters()):
        raise PoolValueError(
            f"{place} runs on maps of several shapes, and {choice.pool} learns for one",
            "Give each call a module of its own",
        )
    if choice.kind == "global" and len(place.outputs[0]) == 4:
        # Some give vectors; what is behind them gets maps of 1x1 as before.
        new = nn.Sequential(new, nn.Flatten(), nn.Unflatten(1, (-1, 1, 1)))
    return new


def _one(sizes: tuple[int, ...]) -> Any:
    return sizes[0] if len(set(sizes)) == 1 else sizes


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Hang a module wherever another one hangs."""
    Swap(old, new, sites_of(model, old)).apply()


def _move_strides(model: nn.Module, places: Sequence[Place]) -> None:
    """Give each pool's stride to the convolution before it, and take the pool away."""
    graph = graph_of(model)
    for place in places:
        for node in calls_of(model, graph, place.module):
            conv = convolution_before(model, node, place)
            calls = [other for other in graph.nodes if other.target == conv.target]
            if len(calls) > 1:
                raise PoolValueError(f"{conv.target} runs {len(calls)} times, before {place} once")
            before = model.get_submodule(str(conv.target))
            put(model, before, move_stride(before, place.module))  # type: ignore[arg-type]
        put(model, place.module, nn.Identity())


def graph_of(model: nn.Module) -> fx.Graph:
    """The order in which the layers run. Raises PoolValueError if it depends on values."""
    try:
        return LeafTracer().trace(model)
    except Exception as error:
        raise PoolValueError(
            "the order in which the modules run cannot be traced, so it is not known which "
            f"convolution is before which pool ({type(error).__name__})",
            f"Leave {MOVED_STRIDE} out",
        ) from None


def calls_of(model: nn.Module, graph: fx.Graph, module: nn.Module) -> list[fx.Node]:
    """Where a layer runs in the graph of its model."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_module" and model.get_submodule(node.target) is module
    ]


def convolution_before(model: nn.Module, node: fx.Node, place: Place) -> fx.Node:
    """The convolution whose result the pool sees, with nothing but pointwise steps between."""
    while True:
        (node,) = node.all_input_nodes[:1] or (None,)  # type: ignore[assignment]
        if node is None or node.op == "placeholder":
            raise PoolValueError(f"there is no convolution before {place} to move its stride into")
        if len(node.users) > 1:
            raise PoolValueError(f"what {place} pools is used elsewhere too, with stride 1")
        is_layer = node.op == "call_module"
        if is_layer and isinstance(model.get_submodule(str(node.target)), nn.Conv2d):
            return node
        if not is_pointwise(model, node):
            raise PoolValueError(
                f"between {place} and the convolution before it is {_what(model, node)}, which a "
                "stride changes"
            )


def is_pointwise(model: nn.Module, node: fx.Node) -> bool:
    """Whether a layer or a call makes each value from the one at its place alone, or its channel's
    statistics: what may stand on either side of a pool."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return type(module).__module__ in POINTWISE or isinstance(module, nn.Identity)
    return _what(model, node) in _POINTWISE_CALLS


def _what(model: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))


def _check_shapes(
    model: nn.Module, places: list[Place], example: torch.Tensor, variant: Variant
) -> None:
    """Refuse poolings that give what the modules behind them do not expect."""
    after = [Place(p.name, model.get_submodule(p.name), p.kind) for p in places]
    with evaluating(model), fixed_randomness(), torch.no_grad(), _watched(after):
        try:
            run_model(model, (example,))
            problem = ""
        except PoolError as error:
            problem = str(error)
    for old, new in zip(places, after, strict=True):
        if problem and not new.outputs:
            continue
        was, now = list(old.outputs[0]), list(new.outputs[0])
        if was != now:
            raise PoolValueError(
                f"{variant.name!r} gives {now} for {old}, which gave {was}",
                "Change the window or the size of the input, or leave this variant out",
            )
    if problem:
        raise PoolValueError(f"with the variant {variant.name!r} {problem}")
