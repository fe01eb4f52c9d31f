"""A reduction of activated values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..activations import Activation, as_activation
from ..arrays import Array, Arrays, arrays_of
from ..dtypes import DType
from ..errors import PoolTypeError, is_traced
from ..recipes import parameters_of
from .base import RECIPES, Kernel, Reduction, Seen, State, as_reduction
from .extremes import Max, Min

__all__ = ["Activated", "activated", "inner_of"]


FUSED = ("pick", "sum", "norm")  # the kernels that can pool activated values


@dataclass(frozen=True, repr=False)
class Activated(Reduction):
    """Reduces ``activation(x)``, in the dtype of x, without ever storing it.

    Args:
        reduction, activation: objects, names or recipes; kept as recipes.

    A monotone activation is moved behind a max or min: ``max(relu(x)) == relu(max(x))``.

    >>> import numpy as np, poolkit
    >>> poolkit.Activated("mean", "sigmoid")
    Activated('Mean()', 'Sigmoid()')
    >>> x = np.array([[-3.0, -1.0, 2.0, 1.0]])
    >>> poolkit.pool(x, poolkit.Sliding(2), poolkit.Activated("max", "relu"))
    array([[0., 2.]])
    """

    reduction: str
    activation: str
    summary: ClassVar[str] = "the reduction of a(x)"

    def __post_init__(self) -> None:
        inner, function = as_reduction(self.reduction), as_activation(self.activation)
        if isinstance(inner, Activated):
            raise PoolTypeError(
                f"{inner} has an activation already", "Apply the first one to the input yourself"
            )
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_function", function)
        object.__setattr__(self, "reduction", repr(inner))
        object.__setattr__(self, "activation", repr(function))

    @property
    def inner(self) -> Reduction:
        """The reduction, as an object."""
        return self._inner  # type: ignore[attr-defined]

    @property
    def function(self) -> Activation:
        """The activation, as an object."""
        return self._function  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"Activated({self.reduction!r}, {self.activation!r})"

    @property
    def behind(self) -> bool:
        """Whether the activation is applied to the result instead."""
        return self.function.monotone and isinstance(self.inner, (Max, Min))

    @property
    def fused(self) -> bool:
        """Whether the activation is a part of the pooling; else it is applied first."""
        return self.behind or self.kernel is not None

    def first(self, x: Array) -> tuple[Array, Reduction]:
        """The activation applied first: the activated values, in the dtype of x, and the reduction
        that is left to do."""
        return self.function.rounded(arrays_of(x), x), self.inner

    @property
    def ends_gradient(self) -> bool:
        """Whether the position codes of a native kernel have one for "no position": where the
        activation behind a max or min lets no gradient through."""
        return self.behind and self.function.ends_gradient

    @property
    def whole_span(self) -> bool:  # type: ignore[override]
        return self.inner.whole_span

    @property
    def kernel(self) -> Kernel | None:
        kernel = self.inner.kernel
        if kernel is None or kernel.kind not in FUSED or not self.function.kernel_name:
            return None
        return replace(kernel, kind="activated")

    def result_dtype(self, dtype: DType) -> str:
        if dtype.kind != "float":
            raise PoolTypeError(
                f"activations are of floating dtypes, got {dtype.name}",
                "Convert the input, or pool without an activation",
            )
        return self.inner.result_dtype(dtype)

    def working_dtype(self, dtype: DType) -> str:
        return self.inner.working_dtype(dtype)

    def prepare(self, xp: Arrays, x: Array) -> Array:
        return x if self.behind else self.function.rounded(xp, x)

    def identity(self, dtype: str) -> tuple[float, ...]:
        return self.inner.identity(dtype)

    def lift(self, xp: Arrays, x: Array) -> State:
        return self.inner.lift(xp, x)

    def merge(self, xp: Arrays, a: State, b: State) -> State:
        return self.inner.merge(xp, a, b)

    def finish(self, xp: Arrays, state: State, seen: Seen) -> Array:
        result = self.inner.finish(xp, state, seen)
        if not self.behind:
            return result
        # A window that sees nothing has nothing that could be activated.
        return xp.where(seen.inside > 0, self.function.rounded(xp, result), result)

    def select(self, xp: Arrays, values: Array, seen: Array, count: Array) -> Array:
        return self.inner.select(xp, values, seen, count)


Activated.parameters = parameters_of(Activated)
RECIPES["Activated"] = Activated
_made: dict[tuple[str, str], Activated] = {}


def activated(reduction: Reduction, activation: Activation | str | None) -> Reduction:
    """The reduction of activated values, made once; the reduction itself without an activation."""
    if activation is None:
        return reduction
    key = (repr(reduction), repr(as_activation(activation)))
    if is_traced():  # a compiler would guard on the contents of the dictionary
        return Activated(*key)
    made = _made.get(key)
    if made is None:
        made = Activated(*key)
        if len(_made) < 2048:
            _made[key] = made
    return made


def inner_of(reduction: Reduction) -> Reduction:
    """The reduction without its activation, if it has one."""
    return reduction.inner if isinstance(reduction, Activated) else reduction
