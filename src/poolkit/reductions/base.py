"""What a reduction is: how the values that a window sees become one. It knows algebra only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np

from ..arrays import Array, Arrays
from ..dtypes import DType
from ..errors import PoolTypeError, PoolValueError
from ..recipes import REGISTRIES, Recipe, made_of, parameters_of

if TYPE_CHECKING:
    from ..windows import Spans

__all__ = ["REDUCTIONS", "Kernel", "Reduction", "Seen", "State", "as_reduction", "register"]

State = tuple[Array, ...]
REDUCTIONS: dict[str, type[Reduction]] = {}
RECIPES: dict[str, type[Reduction]] = {}
REGISTRIES["reduction"] = RECIPES
"""All of them, and those that are made of others."""
R = TypeVar("R", bound="type[Reduction]")


def register(reduction: R) -> R:
    """Enters a reduction in the registry that tests, docs and recipes iterate over."""
    reduction.parameters = parameters_of(reduction)
    REDUCTIONS[reduction.__name__] = RECIPES[reduction.__name__] = reduction
    return reduction


@dataclass(frozen=True)
class Seen:
    """How many positions each window sees: arrays that broadcast against the result.

    Attributes:
        inside: positions inside the input.
        padded: positions when padding counts too.
    """

    inside: Array
    padded: Array


@dataclass(frozen=True)
class Kernel:
    """The native kernel of a reduction.

    Attributes:
        name: a row of ``csrc/registry.def``.
        kind: whose gradient the result has: one that is picked among the values, a sum of them
            (divided or not), a norm, one of these of activated values, or that of the whole-array
            operations, for a kernel that looks at whole windows.
        exponent: the p of a norm, or the parameter of a kernel that looks at whole windows.
        second: its other parameter.
        divides: whether the result is divided by the positions of each window.
    """

    name: str
    kind: Literal["pick", "sum", "norm", "activated", "whole"]
    exponent: float = 1.0
    second: float = 0.0
    divides: bool = False


class Reduction(Recipe, ABC):
    """Base of all reductions.

    A reduction that can be put together from parts gives `identity`, `lift`, `merge` and
    `finish`; `merge` is associative and keeps the order of its arguments. One that needs all
    values of a window at once (`whole_span`) gives `select` instead. Either is written once, for
    NumPy and torch; the gradient is torch's own autograd through these lines.
    """

    summary: ClassVar[str] = ""
    """The formula, for the table in the docs."""
    whole_span: ClassVar[bool] = False
    """Whether all values of a window are needed at once."""

    def result_dtype(self, dtype: DType) -> str:
        """The name of the result's dtype for an input of `dtype`."""
        return dtype.real

    def working_dtype(self, dtype: DType) -> str:
        """The name of the dtype in which `lift` and `merge` work."""
        return dtype.wide if dtype.kind == "float" else dtype.real

    @property
    def kernel(self) -> Kernel | None:
        """The native kernel that computes this, or None."""
        return None

    def prepare(self, xp: Arrays, x: Array) -> Array:
        """What is pooled instead of the input, in the input's dtype."""
        return x

    def divisors(self, axes: Sequence[Spans]) -> tuple[np.ndarray, ...]:
        """For a kernel that divides, what the sum of each output is divided by: the product of
        one factor (64-bit integers) for each of the axes."""
        raise NotImplementedError(f"{type(self).__name__} does not divide")

    def identity(self, dtype: str) -> tuple[float, ...]:
        """The state of a window that sees nothing, one number for each part of the state."""
        raise NotImplementedError(f"{type(self).__name__} needs the whole span")

    def lift(self, xp: Arrays, x: Array) -> State:
        """The state of a window that sees the one value `x`."""
        raise NotImplementedError(f"{type(self).__name__} needs the whole span")

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        """The state of a window that sees what `a` saw and then what `b` saw."""
        raise NotImplementedError(f"{type(self).__name__} needs the whole span")

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        """The result of a state."""
        raise NotImplementedError(f"{type(self).__name__} needs the whole span")

    def select(self, xp: Arrays, values: Array, seen: Array, count: Array) -> Array:
        """The result from all values at once.

        Args:
            values: (..., positions).
            seen: which of them are inside the input; broadcasts against `values`.
            count: how many are; broadcasts against the result.
        """
        raise NotImplementedError(f"{type(self).__name__} merges parts")


class Mergeable(Reduction):
    """A reduction that is put together from parts."""

    @abstractmethod
    def identity(self, dtype: str) -> tuple[float, ...]: ...
    @abstractmethod
    def lift(self, xp: Arrays, x: Array) -> State: ...
    @abstractmethod
    def merge(self, xp: Arrays, a: State, b: State) -> State: ...
    @abstractmethod
    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array: ...


def settle(reduction: Reduction, *names: str) -> None:
    """NumPy's scalars become Python's, so that the recipe can be read again."""
    for name in names:
        value = getattr(reduction, name)
        if isinstance(value, np.generic):
            object.__setattr__(reduction, name, value.item())


def check_number(name: str, value: object, low: float, wanted: str) -> None:
    """Refuses anything but a finite number above `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PoolTypeError(f"{name} must be a number, got {value!r}", f"Give a number {wanted}")
    if not (value > low and value < float("inf")):
        raise PoolValueError(
            f"{name} must be {wanted} and finite, got {value}", f"Give a number {wanted}"
        )


def check_flag(name: str, value: object) -> None:
    """Refuses anything but a truth value."""
    if not isinstance(value, (bool, int)):
        raise PoolTypeError(f"{name} must be a bool, got {value!r}", "Write True or False")


def root(xp: Arrays, x: Array, p: float) -> Array:
    """``x ** (1 / p)`` for x >= 0, with a gradient of 0 instead of infinity where x is 0."""
    positive = x > 0
    safe = xp.where(positive, x, 1.0)
    return xp.where(positive, xp.sqrt(safe) if p == 2 else xp.power(safe, 1.0 / p), x)


def as_reduction(reduction: Reduction | str) -> Reduction:
    """A reduction, its name, or its recipe.

    >>> as_reduction("mean"), as_reduction("Quantile(0.9)"), as_reduction("log_sum_exp")
    (Mean(), Quantile(0.9), LogSumExp())
    """
    if isinstance(reduction, Reduction):
        return reduction
    made: Reduction = made_of(reduction, "reduction", "poolkit.Max(), or its name: 'max'")
    return made
