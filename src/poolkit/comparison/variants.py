"""What a variant's name says: which pooling goes where in the model."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import poolkit.nn  # noqa: F401 - every room enters its poolings in the registry
from poolkit.errors import PoolValueError
from poolkit.vision.registry import POOLS

#: The stride goes into the convolution before the pool, and the pool away: no pooling of its own.
MOVED_STRIDE = "moved-stride"
#: The model with the poolings that it was built with.
ORIGINAL = "original"
_ALSO = {"strided": "conv", "depthwise": "conv_depthwise"}


@dataclass(frozen=True)
class Choice:
    """One pooling by its name in the registry, with options."""

    pool: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """What it takes the place of: a "window" that slides, or a "global" pooling.

        Maps that get smaller by other means, as by frequencies, stand in a window's place too.
        """
        whole = self.pool != MOVED_STRIDE and POOLS[self.pool].kind == "global"
        return "global" if whole else "window"


@dataclass(frozen=True)
class Variant:
    """What to put in the place of sliding windows and of global poolings.

    Attributes:
        name: as it was spelled, with single spaces.
        choices: one for each kind of pooling that it replaces; the others stay as the baseline
            has them.
    """

    name: str
    choices: tuple[Choice, ...]

    def over(self, baseline: Variant) -> Variant:
        """This variant, with the baseline's poolings where it names none of its own."""
        if self.name == ORIGINAL:
            return self
        own = {choice.kind for choice in self.choices}
        rest = tuple(choice for choice in baseline.choices if choice.kind not in own)
        return Variant(self.name, (*self.choices, *rest))


def split(text: str) -> list[str]:
    """The names of a list with commas, which may stand inside brackets too.

    >>> split("max, gem(p=3, learned=False),avg+attention")
    ['max', 'gem(p=3, learned=False)', 'avg+attention']
    """
    return _split(text, ",")


def read_variant(text: str) -> Variant:
    """The variant that a name such as ``gem(p=4)`` or ``blur+attention`` means.

    ``strided`` and ``depthwise`` are the registry's ``conv`` and ``conv_depthwise``. Two names
    joined by + replace both kinds of pooling at once.

    Raises:
        PoolValueError: for a name that is not known, with those that are; for options that are
            not literals; and for two poolings for the same places.

    >>> read_variant("gem(p=4)").choices
    (Choice(pool='gem', options=(('p', 4),)),)
    """
    name = " ".join(text.split())
    if name == ORIGINAL:
        return Variant(name, ())
    choices = tuple(_choice(part) for part in _split(name, "+"))
    kinds = [choice.kind for choice in choices]
    if len(set(kinds)) < len(kinds):
        raise PoolValueError(
            f"{name!r} names two poolings for the same places",
            "Join a sliding window and a global pooling, such as blur+attention",
        )
    return Variant(name, choices)


def known_names() -> list[str]:
    """All names that stand for a variant."""
    return sorted({*POOLS, *_ALSO, MOVED_STRIDE, ORIGINAL})


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``name`` or ``name(option=literal)``; names may have hyphens.

    >>> read_call("mnist-5k(train=500)")
    ('mnist-5k', {'train': 500})
    """
    name, bracket, rest = text.strip().partition("(")
    try:
        call = ast.parse(f"_({rest}" if bracket else "_()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not name.strip():
            raise ValueError
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise PoolValueError(
            f"{text!r} is not a name with options", "Write it as gem or gem(p=3)"
        ) from None
    return name.strip(), options


def _choice(text: str) -> Choice:
    spelled, options = read_call(text)
    name = _ALSO.get(spelled, spelled.replace("-", "_"))
    if spelled == MOVED_STRIDE:
        if options:
            raise PoolValueError(f"{MOVED_STRIDE} has no options, got {text!r}", "Leave them out")
        return Choice(MOVED_STRIDE)
    if name not in POOLS:
        raise PoolValueError(
            f"there is no variant called {spelled!r}", f"One of: {', '.join(known_names())}"
        )
    return Choice(name, tuple(sorted(options.items())))


def _split(text: str, separator: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
