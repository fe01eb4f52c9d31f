"""What could stand at a site instead: each is a name, what it changes, and how to build it.

A proposal gets a copy of the model, alters it and returns it; or it raises PoolError, and the
reason is what is reported. What it costs is then counted, not estimated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from torch import fx, nn

from poolkit import nn as pools
from poolkit.comparison.replacement import (
    Place,
    calls_of,
    check_replaceable,
    convolution_before,
    graph_of,
    is_pointwise,
    put,
    replace_at,
)
from poolkit.comparison.variants import MOVED_STRIDE, Choice
from poolkit.design.paper import Paper
from poolkit.design.sites import Subject
from poolkit.errors import PoolValueError
from poolkit.inspection.downsampling import dropped
from poolkit.inspection.trace import Step
from poolkit.inspection.wording import human_shape
from poolkit.reductions import Max, Mean, inner_of
from poolkit.vision.registry import POOLS
from poolkit.vision.resolution import keep_resolution
from poolkit.windows import Sliding

Build = Callable[[nn.Module, Paper], nn.Module]


@dataclass(frozen=True)
class Proposal:
    """Something else at one site.

    Attributes:
        name, changes, literature: as in the `Alternative` that it becomes.
        build: called with a copy of the model and the paper that it is on; returns the altered
            copy.
        denser: whether all that is behind gets larger, the output too; else linear layers get as
            many inputs as they then see.
    """

    name: str
    changes: str
    build: Build
    literature: tuple[str, ...] = ()
    denser: bool = False


def proposals(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    """What to try at a site; ``others`` are all sites of the model."""
    kinds = {
        "window": _for_window, "convolution": _for_convolution, "global": _for_global,
        "bins": _for_bins, "head": _for_head,
    }  # fmt: skip
    if subject.site.kind in kinds and not subject.part and not subject.repeated:
        yield from kinds[subject.site.kind](subject, others)


# --- windows -------------------------------------------------------------------------------------


def _for_window(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    window, n = subject.window, len(subject.space)
    kernel, stride, _ = window.sizes(n)
    assert subject.reduction is not None
    is_max, is_mean = (isinstance(inner_of(subject.reduction), kind) for kind in (Max, Mean))
    if not is_mean:
        yield _reduced(subject, "average", Mean(count_include_pad=False), "avg")
    if not is_max:
        yield _reduced(subject, "max", Max(), "max")
    if n == 2:
        blur = "max_blur" if is_max else "blur"
        if max(stride) > 1:
            yield _named(subject, "max, blurred" if is_max else "blur", blur, "blur")
        yield _named(subject, "strided convolution", "conv", "strided")
        yield _named(subject, "depthwise convolution", "conv_depthwise")
    if max(stride) == 1:
        yield Proposal("left out", "every value stays by itself", partial(_left_out, subject))
        return
    if n == 2:
        yield Proposal(
            "moved stride",
            f"the convolution before it has it, and runs at 1 of {prod(stride)} positions; the "
            "pool is gone",
            partial(_replaced, subject, Choice(MOVED_STRIDE)), ("strided",),
        )  # fmt: skip
    yield from _overlapping(subject, kernel, stride)
    yield from _in_ceil_mode(subject)
    yield _dense(subject, stride, others)
    if n == 2:
        yield Proposal(
            "earlier", f"before the convolution before it, which runs on 1/{prod(stride)} of the "
            "positions", partial(_moved, subject, before=True),
        )  # fmt: skip
        yield Proposal(
            "later", f"behind the convolution behind it, which runs on {prod(stride)} times the "
            "positions", partial(_moved, subject, before=False),
        )  # fmt: skip


def _reduced(subject: Subject, name: str, reduction: Any, listed: str) -> Proposal:
    return Proposal(
        name, f"gradient: {POOLS[listed].gradient}",
        partial(_pooled, subject, subject.window, reduction),
    )  # fmt: skip


def _named(subject: Subject, name: str, pool: str, *literature: str) -> Proposal:
    entry = POOLS[pool]
    learns = "" if entry.parameters == "none" else f"learns {entry.parameters}; "
    return Proposal(
        name, f"{learns}gradient: {entry.gradient}",
        partial(_replaced, subject, Choice(pool)), literature,
    )  # fmt: skip


def _overlapping(
    subject: Subject, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> Iterator[Proposal]:
    """Windows that share positions, in place of those that tile; or the other way round."""
    if kernel == stride:
        sizes = tuple(2 * s - 1 for s in stride)
        window = Sliding(_one(sizes), _one(stride), _one([s - 1 for s in stride]))
    elif all(k > s for k, s in zip(kernel, stride, strict=True)):
        window = Sliding(_one(stride), ceil_mode=True)
    else:
        return
    then, now = (_windows_per_position(w, subject.space) for w in (window, subject.window))
    name = "overlapping" if kernel == stride else "tiling"
    yield Proposal(
        f"{name} {human_shape(window.sizes(len(kernel))[0])}",
        f"windows for each position: {then:.3g} instead of {now:.3g}",
        partial(_pooled, subject, window, subject.reduction),
        ("overlap-helps",) if (kernel, stride) in (((2, 2), (2, 2)), ((3, 3), (2, 2))) else (),
    )


def _windows_per_position(window: Sliding, space: tuple[int, ...]) -> float:
    return prod(int(s.count.sum()) / s.size for s in window.axes(space))


def _in_ceil_mode(subject: Subject) -> Iterator[Proposal]:
    window = subject.window
    ceil = Sliding(
        window.kernel_size, window.stride, window.padding, window.dilation, ceil_mode=True
    )
    outputs = ceil.output_shape(subject.space)
    if any(dropped(window, subject.space)) and outputs != window.output_shape(subject.space):
        yield Proposal(
            "ceil mode", "nothing is dropped",
            partial(_pooled, subject, ceil, subject.reduction),
        )  # fmt: skip


def _dense(subject: Subject, stride: Sequence[int], others: Sequence[Subject]) -> Proposal:
    """The stride turned into dilation, and those of the branches that it meets again."""
    behind = _behind(subject.step)
    also = [other.place for other in others if _meets(subject, other, behind)]
    heads = [other for other in others if other.site.kind == "head" and other.step in behind]
    changes = (
        f"maps behind it are about {prod(stride)} times as large; each value sees as much as before"
    )
    if also:
        changes += f"; together with {', '.join(also)}"
    for head in heads:
        changes += f"; averaged to {human_shape(head.space)} before {head.place}, which stays"
    return Proposal(
        "stride 1, dilation behind", changes,
        partial(_undo_strides, [subject.place, *also], heads),
        ("dilation",), denser=True,
    )  # fmt: skip


def _behind(step: Step) -> set[Step]:
    """All calls that read what a call has made, or what was made from it."""
    found: set[Step] = set()
    waiting = [step]
    while waiting:
        news = {reader for reader in waiting.pop().consumers if reader.operation != "output"}
        waiting.extend(news - found)
        found |= news
    return found


def _meets(subject: Subject, other: Subject, behind: set[Step]) -> bool:
    """Whether a site stands beside another, in a branch that joins the other's."""
    same = (other.space, other.site.out_shape[2:]) == (subject.space, subject.site.out_shape[2:])
    if not same or other.place == subject.place or other.site.kind not in ("window", "convolution"):
        return False
    after = _behind(other.step)
    return other.step not in behind and subject.step not in after and not behind.isdisjoint(after)


# --- strided convolutions ------------------------------------------------------------------------


def _for_convolution(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    n = len(subject.space)
    stride = subject.window.sizes(n)[1] if subject.window is not None else (1,) * n
    if n == 2:
        size = _one(stride)
        yield Proposal(
            "stride 1, then a blur", "a low pass before the stride; the convolution runs on "
            f"{prod(stride)} times the positions",
            partial(_dense_then, subject, lambda: pools.BlurPool2d(3, size)), ("blur",),
        )  # fmt: skip
        yield Proposal(
            "stride 1, then max", "the stride is a pool's; the convolution runs on "
            f"{prod(stride)} times the positions",
            partial(_dense_then, subject, lambda: nn.MaxPool2d(size, ceil_mode=True)),
            ("strided",),
        )  # fmt: skip
        yield Proposal(
            "average, then stride 1", "every position is read, by the average",
            partial(_averaged_first, subject, size),
        )  # fmt: skip
    yield _dense(subject, stride, others)


# --- global poolings, bins and heads -------------------------------------------------------------


def _for_global(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    if len(subject.space) != 2:
        return
    reduction = inner_of(subject.reduction) if subject.reduction is not None else None
    if not isinstance(reduction, Mean):
        yield _named(subject, "average", "global_avg", "global-average")
    if not isinstance(reduction, Max):
        yield _named(subject, "max", "global_max")
    yield _named(subject, "GeM", "gem", "generalized")
    yield Proposal(
        "pyramid 4×4, 2×2, 1×1", "21 values for each channel instead of 1",
        partial(_replaced, subject, Choice("spp")), ("pyramid",),
    )  # fmt: skip
    if max(subject.space) > 1:
        yield Proposal(
            "flattened", f"{prod(subject.space)} values for each channel instead of 1; inputs of "
            "this size only", partial(_left_out, subject),
        )  # fmt: skip


def _for_bins(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    if subject.reduction is None:
        return
    if isinstance(inner_of(subject.reduction), Mean):
        yield _reduced(subject, "max", Max(), "max")
    else:
        yield _reduced(subject, "average", Mean(), "avg")


def _for_head(subject: Subject, others: Sequence[Subject]) -> Iterator[Proposal]:
    channels, *space = subject.site.in_shape[1:]
    if len(space) != 2:
        return
    for name, pool, bins, literature in (
        ("global average", "global_avg", 1, ("global-average",)),
        ("global max", "global_max", 1, ()),
        ("pyramid 4×4, 2×2, 1×1", "spp", 21, ("pyramid",)),
    ):
        yield Proposal(
            name, f"{bins} value{'s' * (bins > 1)} for each of {channels} channels instead of "
            f"{prod(space)}; inputs of any size",
            partial(_pooled_head, subject, pool, bins), literature,
        )  # fmt: skip


# --- building ------------------------------------------------------------------------------------


def _place(subject: Subject, model: nn.Module) -> Place:
    """The module of a copy that stands at the site. Raises PoolValueError if there is none."""
    if subject.module is None:
        where = f" ({subject.site.source})" if subject.site.source else ""
        raise PoolValueError(f"it is a call in a forward{where}", "Make it a module")
    kind = "global" if subject.site.kind == "global" else "window"
    place = Place(subject.place, model.get_submodule(subject.place), kind)
    if subject.traced is not None:
        place.inputs.append(subject.traced.input.shape)
        place.outputs.append(subject.traced.output.shape)
    if getattr(place.module, "return_indices", False):
        raise PoolValueError("it returns positions too, which no other pooling has")
    if subject.site.kind not in ("convolution", "head"):
        check_replaceable(model, place)
    return place


def _replaced(subject: Subject, choice: Choice, model: nn.Module, paper: Paper) -> nn.Module:
    replace_at(model, choice, [_place(subject, model)], 0)
    return model


def _pooled(
    subject: Subject, window: Any, reduction: Any, model: nn.Module, paper: Paper
) -> nn.Module:
    new = pools.Pool(window, reduction, ndim=len(subject.space))
    put(model, _place(subject, model).module, new)
    return model


def _left_out(subject: Subject, model: nn.Module, paper: Paper) -> nn.Module:
    put(model, _place(subject, model).module, nn.Identity())
    return model


def _undo_strides(
    names: Sequence[str], heads: Sequence[Subject], model: nn.Module, paper: Paper
) -> nn.Module:
    for head in heads:
        # What is flattened must not grow: bins as many as there were positions go before it.
        where = head.step.producers[0].name
        before = model.get_submodule(where)
        if head.lone and not any(True for _ in before.children()):
            put(model, before, nn.Sequential(before, nn.AdaptiveAvgPool2d(head.space)))
            names = [f"{name}.0" if name == where else name for name in names]
    return keep_resolution(
        model,
        paper.positional(),
        convolutions=True,
        filter_fn=lambda _, name: name in names,
        inplace=True,
    )


def _convolution(subject: Subject, model: nn.Module) -> nn.Conv2d:
    conv = _place(subject, model).module
    if not isinstance(conv, nn.Conv2d):
        raise PoolValueError(f"{subject.place} is a {type(conv).__name__}, not a Conv2d")
    return conv


def _dense_then(
    subject: Subject, pool: Callable[[], nn.Module], model: nn.Module, paper: Paper
) -> nn.Module:
    conv = _convolution(subject, model)
    put(model, conv, nn.Sequential(_with_stride_one(conv), pool()))
    return model


def _averaged_first(subject: Subject, size: Any, model: nn.Module, paper: Paper) -> nn.Module:
    conv = _convolution(subject, model)
    average = nn.AvgPool2d(size, ceil_mode=True, count_include_pad=False)
    put(model, conv, nn.Sequential(average, _with_stride_one(conv)))
    return model


def _with_stride_one(conv: nn.Conv2d) -> nn.Conv2d:
    dense = copy.copy(conv)
    dense.stride = (1, 1)
    return dense


def _moved(subject: Subject, model: nn.Module, paper: Paper, before: bool) -> nn.Module:
    """The pool before the convolution before it, or behind the one behind it and what is pointwise
    there."""
    place = _place(subject, model)
    graph = graph_of(model)
    calls = calls_of(model, graph, place.module)
    if len(calls) != 1:
        raise PoolValueError(f"{place} runs {len(calls)} times")
    if before:
        target = convolution_before(model, calls[0], place)
    else:
        target = _end_of_block_behind(model, calls[0], place)
    neighbour = model.get_submodule(str(target.target))
    if len(calls_of(model, graph, neighbour)) != 1:
        raise PoolValueError(f"{target.target} runs several times, {place} once")
    pair = (place.module, neighbour) if before else (neighbour, place.module)
    put(model, place.module, nn.Identity())
    put(model, neighbour, nn.Sequential(*pair))
    return model


def _end_of_block_behind(model: nn.Module, node: fx.Node, place: Place) -> fx.Node:
    """The last layer of the convolution behind a pool: norm and activation are part of it."""
    found: fx.Node | None = None
    while len(node.users) == 1:
        (node,) = node.users
        is_layer = node.op == "call_module"
        if found is None and is_layer:
            layer = model.get_submodule(str(node.target))
            if isinstance(layer, nn.Conv2d):
                found = node
                continue
        if not is_pointwise(model, node) or (is_layer and _is_linear(model, node)):
            break
        if found is not None:
            if not is_layer:
                break
            found = node
    if found is None:
        raise PoolValueError(
            f"there is no convolution behind {place} that reads it alone, with nothing but "
            "pointwise layers between"
        )
    return found


def _is_linear(model: nn.Module, node: fx.Node) -> bool:
    return isinstance(model.get_submodule(str(node.target)), nn.Linear)


def _pooled_head(
    subject: Subject, pool: str, bins: int, model: nn.Module, paper: Paper
) -> nn.Module:
    linear = model.get_submodule(subject.place)
    channels, *space = subject.site.in_shape[1:]
    assert isinstance(linear, nn.Linear)
    put(
        model,
        linear,
        nn.Sequential(
            nn.Unflatten(1, (channels, *space)),
            POOLS[pool].module(),
            nn.Flatten(),
            nn.Linear(channels * bins, linear.out_features, linear.bias is not None),
        ),
    )
    return model


@contextmanager
def fitted_heads(model: nn.Module) -> Iterator[dict[str, tuple[int, int]]]:
    """Inside, a linear layer that sees another number of inputs than it has gets as many.

    Gives the names of these, with the number before and after.
    """
    fitted: dict[str, tuple[int, int]] = {}

    def fit(name: str, linear: nn.Module, args: Any) -> None:
        assert isinstance(linear, nn.Linear)
        width = args[0].shape[-1]
        if width != linear.in_features:
            fitted[name] = (linear.in_features, width)
            linear.in_features = width
            dtype = linear.weight.dtype
            linear.weight = nn.Linear(width, linear.out_features, dtype=dtype).weight

    hooks = [
        module.register_forward_pre_hook(partial(fit, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield fitted
    finally:
        for hook in hooks:
            hook.remove()


def _one(sizes: Sequence[int]) -> Any:
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)
