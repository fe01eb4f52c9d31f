"""Where maps get smaller, and what that does to the geometry of the input."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from torch import nn

from poolkit.design.records import Claim, Site
from poolkit.inspection.dataflow import View
from poolkit.inspection.downsampling import Pooled, as_maps, downsampling_of
from poolkit.inspection.flags import flags_on_paper
from poolkit.inspection.poolkit_calls import is_poolkits
from poolkit.inspection.trace import Run, Step, TracedPooling
from poolkit.inspection.wording import human_count, human_shape, human_share
from poolkit.reductions import Reduction
from poolkit.windows import Global, Sliding


@dataclass(frozen=True)
class Subject:
    """A site, and what it takes to build something else there.

    Attributes:
        site: without its alternatives.
        place: the name of the module that is changed.
        step: the call.
        traced: the same for a pooling or a convolution; None for a head.
        module: what stands there; None for a call in a forward.
        window, reduction: of a pooling that is both.
        repeated: whether the module ran before: what is changed is changed there too.
        part: whether the module is one of poolkit's that does more than this.
        lone: of a head, whether the layer before it runs nowhere else.
    """

    site: Site
    place: str
    step: Step
    traced: TracedPooling | None = None
    module: nn.Module | None = None
    window: Any = None
    reduction: Reduction | None = None
    repeated: bool = False
    part: bool = False
    lone: bool = False

    @property
    def name(self) -> str:
        """What readers know it by."""
        return self.site.name or self.site.source or "(model)"

    @property
    def space(self) -> tuple[int, ...]:
        """The sides of the map that goes in."""
        return tuple(self.site.in_shape[2:])


def subjects_of(run: Run, model: nn.Module) -> list[Subject]:
    """The sites of a model that ran, in order."""
    by_step = {id(traced.step): traced for traced in run.found}
    found: list[Subject] = []
    ran: set[int] = set()
    for step in run.steps:
        traced = by_step.get(id(step))
        subject = _pooling(traced, model, run, ran) if traced else _head(step, model, run)
        if subject is not None:
            found.append(subject)
            ran.add(id(subject.module))
    return found


def _pooling(traced: TracedPooling, model: nn.Module, run: Run, ran: set[int]) -> Subject | None:
    pooling, view = traced.pooling, traced.view
    layer = downsampling_of(pooling)
    maps, after = as_maps(pooling, traced.input), as_maps(pooling, traced.output, is_output=True)
    shapes = [traced.input.shape if maps is None else maps.shape,
              traced.output.shape if after is None else after.shape]  # fmt: skip
    window = layer.window if layer is not None else None
    if pooling.is_convolution:
        kind = "convolution"
    elif isinstance(window, Global) or (after is not None and max(after.shape[2:]) == 1):
        kind = "global"
    elif isinstance(window, Sliding):
        kind = "window"
    else:
        kind = "other" if window is None else "bins"
    site = Site(
        name=traced.name,
        kind=kind,
        operation=f"{pooling.words()} {pooling.window()}",
        source="" if traced.is_layer else traced.source,
        in_shape=list(shapes[0]),
        out_shape=list(shapes[1]),
        **_geometry(view),
    )
    site.claims.extend(_seen(site, view))
    if layer is not None and maps is not None:
        flags = flags_on_paper(pooling, traced.step, layer, maps)
        site.claims.extend(Claim(f"{flag.text} {flag.fix}") for flag in flags)
    module = _module(model, traced)
    repeated = module is not None and id(module) in ran
    operations = {other.pooling.operation for other in run.found if other.name == traced.name}
    part = (
        module is not None
        and is_poolkits(module)
        and (traced.module is None or len(operations) > 1)
    )
    if part:
        site.claims.append(Claim(f"It is a part of {type(module).__name__}, which stays whole."))
    elif repeated:
        site.claims.append(
            Claim("The same module as before: what is changed there is changed here too.")
        )
    return Subject(
        site, traced.name, traced.step, traced, module, window,
        layer.reduction if isinstance(layer, Pooled) else None, repeated, part,
    )  # fmt: skip


def _module(model: nn.Module, traced: TracedPooling) -> nn.Module | None:
    """The module that is this pooling, or the one of poolkit's that it is a part of."""
    if traced.module is not None:
        return traced.module
    named = model.get_submodule(traced.name) if traced.name else model
    return named if is_poolkits(named) else None


def _head(step: Step, model: nn.Module, run: Run) -> Subject | None:
    """A linear layer that reads all positions of a map, each by a weight of its own."""
    linear = model.get_submodule(step.name) if step.operation == "linear" else None
    if not isinstance(linear, nn.Linear) or len(step.producers) != 1:
        return None
    before = step.producers[0]
    if len(before.shape) < 3 or max(before.shape[2:]) == 1:
        return None
    if prod(before.shape[1:]) != linear.in_features:
        return None
    site = Site(
        name=step.name,
        kind="head",
        operation=f"linear layer over {human_shape(before.shape[1:])}, flattened",
        source="",
        in_shape=list(before.shape),
        out_shape=list(step.shape),
        **_geometry(before.view.everything() if before.view else None),
    )
    site.claims.append(
        Claim(
            f"It has a weight for each of {prod(before.shape[2:])} positions, "
            f"{linear.weight.numel():,} in all, and takes inputs of this size only."
        )
    )
    lone = sum(other.name == before.name for other in run.steps) == 1
    return Subject(site, step.name, step, None, linear, lone=lone)


def _geometry(view: View | None) -> dict[str, Any]:
    """What one value sees, how far its neighbour is, and what none of them sees."""
    if view is None:
        return dict.fromkeys(("sees", "extent", "jump", "unseen"))
    return {
        "sees": [axis.seen() for axis in view.axes],
        "extent": [axis.extent for axis in view.axes],
        "jump": [round(axis.sees.jump, 4) for axis in view.axes],
        "unseen": [list(axis.unseen) for axis in view.axes],
    }


def _seen(site: Site, view: View | None) -> list[Claim]:
    if view is None or site.sees is None or site.extent is None:
        return []
    claims = []
    beyond = [a for a in view.axes if not a.whole and a.sees.size > a.extent]
    if beyond:
        sizes = human_shape([ceil(round(axis.sees.size, 4)) for axis in view.axes])
        claims.append(
            Claim(
                f"Its windows reach over {sizes} input positions, more than there are "
                f"({human_shape(site.extent)}): what padding gives is in each value."
            )
        )
    if site.unseen and any(map(any, site.unseen)):
        shares = [sum(u) / n for u, n in zip(site.unseen, site.extent, strict=True)]
        ends = [
            f"the {end} {human_count(count, axis)}"
            for pair, axis in zip(site.unseen, _axes(len(site.unseen)), strict=True)
            for count, end in zip(pair, ("first", "last"), strict=True)
            if count
        ]
        lost = 1 - prod(1 - share for share in shares)
        claims.append(
            Claim(
                f"Nothing from here on sees {', '.join(ends)} of the input ({human_share(lost)})."
            )
        )
    return claims


def _axes(rank: int) -> tuple[str, ...]:
    """One of what lies along each axis of a map."""
    return {1: ("position",), 2: ("row", "column")}.get(rank, ("slice", "row", "column"))
