"""Windows and reductions as text: a `repr` that is a call, and back.

``Sliding(3, stride=2)`` is what a person reads in a message, what an exported graph stores, and
what a configuration file holds; all three are the same string.
"""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from .errors import PoolError, PoolTypeError, PoolValueError, is_traced

__all__ = ["REGISTRIES", "Recipe", "build", "made_of", "parts_of", "read"]


class Recipe:
    """Base of the frozen dataclasses that are written and read as a call."""

    parameters: ClassVar[tuple[tuple[str, bool, Any], ...] | None] = None
    """(name, whether it must be given, default) of each field, once the class is registered."""

    def __repr__(self) -> str:
        arguments = []
        # A compiler that traces this line finds constants here, and cannot follow `fields`.
        parameters = self.parameters if self.parameters is not None else parameters_of(type(self))
        for place, (name, needed, default) in enumerate(parameters):
            value = getattr(self, name)
            if not needed and value == default:
                continue
            positional = place == 0 and needed
            arguments.append(repr(value) if positional else f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"

    def parts(self) -> tuple[str, tuple[Any, ...]]:
        """The class's name, and the values of its parameters in order."""
        made = type(self)
        return made.__name__, tuple(getattr(self, name) for name, _, _ in parameters_of(made))


def parameters_of(made: type) -> tuple[tuple[str, bool, Any], ...]:
    """`Recipe.parameters` of a dataclass."""
    return tuple(
        (field.name, field.default is MISSING, None if field.default is MISSING else field.default)
        for field in fields(made)
    )


def build(text: str, registry: dict[str, type], kind: str) -> Any:
    """The object that a recipe names: ``"gem"``, ``"GeM"`` or ``"GeM(p=4)"``.

    Only literals are read; nothing is executed.

    Raises:
        PoolValueError: for text that is not a call, or a name that is not registered.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            node = ast.Call(func=node, args=[], keywords=[])
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        name = node.func.id
        args = [ast.literal_eval(arg) for arg in node.args]
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
        options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise PoolValueError(
            f"{text!r} is not a {kind}", f"Write a name or a call, such as {example(registry)!r}"
        ) from None
    by_lower = {key.lower().replace("_", ""): made for key, made in registry.items()}
    made = by_lower.get(name.lower().replace("_", ""))
    if made is None:
        raise PoolValueError(f"there is no {kind} named {name!r}", f"One of: {', '.join(registry)}")
    try:
        return made(*args, **options)
    except TypeError as error:
        if isinstance(error, PoolError):
            raise
        raise PoolValueError(f"{text!r} does not fit {made.__name__}: {error}") from None


REGISTRIES: dict[str, dict[str, type]] = {}
"""By kind (window, reduction, activation) what can be named in a recipe."""

_read: dict[tuple[str, str], Any] = {}


def read(text: str, kind: str) -> Any:
    """`build`, once for each text."""
    made = _read.get((kind, text))
    if made is None:
        made = build(text, REGISTRIES[kind], kind)
        if len(_read) < 2048:
            _read[kind, text] = made
    return made


def parts_of(text: str, kind: str) -> tuple[str, tuple[Any, ...]]:
    """What `read` makes, as the class's name and the values of its parameters."""
    parts: tuple[str, tuple[Any, ...]] = read(text, kind).parts()
    return parts


def made_of(given: Any, kind: str, such_as: str) -> Any:
    """What a recipe names.

    Raises:
        PoolTypeError: for anything but text; `such_as` is what to pass instead.
    """
    if not isinstance(given, str):
        wanted = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        raise PoolTypeError(
            f"{wanted} was expected, got {type(given).__name__}", f"Pass {wanted} such as {such_as}"
        )
    if is_traced():  # the parts are constants; the object is not
        name, values = parts_of(given, kind)
        return REGISTRIES[kind][name](*values)
    return read(given, kind)


def example(registry: dict[str, type]) -> str:
    """A name to show in a message."""
    return next(iter(registry)).lower() if registry else ""
