"""Reductions that know when an event happened, or for whom it is looked at."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import PoolTypeError, PoolValueError
from ..reductions import Max, Mean, Min, Reduction, Std, Sum, as_reduction
from ..windows.durations import duration, written

__all__ = ["Attend", "Count", "Decay", "EventReduction", "Last", "attend", "decay", "last", "named"]


class EventReduction:
    """Base of the reductions that only a log of events has."""

    kernel: ClassVar[str]
    name: str


@dataclass(frozen=True)
class Count(EventReduction):
    """How many events are seen, whatever their weights."""

    name: ClassVar[str] = "count"  # type: ignore[misc]


@dataclass(frozen=True)
class Decay(EventReduction):
    """See `decay`."""

    half_life: Any
    name: str
    kernel: ClassVar[str] = "decay"

    def __repr__(self) -> str:
        return f"decay({written(self.half_life)!r})"


@dataclass(frozen=True)
class Last(EventReduction):
    """See `last`."""

    events: int
    name: str
    kernel: ClassVar[str] = "mean"

    def __repr__(self) -> str:
        return f"last({self.events})"


@dataclass(frozen=True)
class Attend(EventReduction):
    """See `attend`."""

    query: str
    score: str
    name: str
    kernel: ClassVar[str] = "attend"

    def __repr__(self) -> str:
        return f"attend({self.query!r}, score={self.score!r})"


def decay(half_life: Any, name: str | None = None) -> Decay:
    """The mean in which what is older by `half_life` counts half: ``Σ w 2^(-age/h) x`` over the sum
    of ``w 2^(-age/h)``, where w is the event's weight.

    Args:
        half_life: a duration, such as "3d".
        name: of the result's columns; by default decay and the half-life.

    >>> decay("3d").name
    'decay_3d'
    """
    duration(half_life, "ns", "a half-life")
    return Decay(half_life, name or f"decay_{written(half_life)}")


def last(events: int, name: str | None = None) -> Last:
    """The mean of the last so many events that are seen.

    >>> last(50).name
    'last_50'
    """
    if isinstance(events, bool) or not isinstance(events, int) or not 1 <= events < 2**63:
        raise PoolValueError(f"last takes a number of events, got {events!r}", "Give 1 or more")
    return Last(events, name or f"last_{events}")


def attend(query: str, score: str = "dot", name: str | None = None) -> Attend:
    """The mean weighted by a softmax over how much each event has to do with a target:
    ``Σ w exp(s) x / Σ w exp(s)``, where the score s is that of the event's vector and the target's
    (target attention: Zhou et al., "Deep interest network for click-through rate prediction", 2018,
    with the softmax of Vaswani et al., "Attention is all you need", 2017).

    Args:
        query: the column of the queries that holds the target: an item where the events' values are
            looked up, else a vector.
        score: "dot", the inner product, or "scaled_dot", that over the root of the width.
        name: of the result's columns.
    """
    if score not in ("dot", "scaled_dot"):
        raise PoolValueError(f"score must be 'dot' or 'scaled_dot', got {score!r}", "Choose one")
    if not isinstance(query, str):
        raise PoolTypeError(f"attend takes the name of a column, got {query!r}", "Give a name")
    return Attend(query, score, name or "attend")


_NATIVE = {Sum: "sum", Mean: "mean", Max: "max", Min: "min", Std: "std"}


def kernel_of(reduction: EventReduction | Reduction) -> str | None:
    """The kernel of a reduction, or None for one that needs rows gathered."""
    if isinstance(reduction, EventReduction):
        return None if isinstance(reduction, Count) else reduction.kernel
    plain = reduction == type(reduction)() if type(reduction) in _NATIVE else False
    return _NATIVE[type(reduction)] if plain else None


def named(given: Any) -> tuple[str, EventReduction | Reduction]:
    """A reduction and the name of its columns. It may be given as text: "count", "mean",
    "decay('3d')", "Quantile(0.9)".

    >>> named("last(50)"), named("Quantile(0.9)")[0]
    (('last_50', last(50)), 'quantile_0_9')
    """
    if given == "count" or isinstance(given, Count):
        return "count", Count()
    if isinstance(given, str):
        made = _of_events(given)
        if made is not None:
            return made.name, made
    if isinstance(given, EventReduction):
        return given.name, given
    reduction = as_reduction(given)
    text = repr(reduction).removesuffix("()").lower()
    name = "".join(c if c.isalnum() else "_" for c in text).strip("_")
    return name, reduction


def _of_events(text: str) -> EventReduction | None:
    makers = {"decay": decay, "last": last, "attend": attend}
    name = text.partition("(")[0].strip()
    if name not in makers or "(" not in text:
        return None  # plain "last" is the library's
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        args = [ast.literal_eval(arg) for arg in call.args]
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        made: EventReduction = makers[name](*args, **options)  # type: ignore[operator]
    except (SyntaxError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, (PoolValueError, PoolTypeError)):
            raise
        raise PoolValueError(f"{text!r} is no reduction", "Write decay('3d') or last(50)") from None
    return made
