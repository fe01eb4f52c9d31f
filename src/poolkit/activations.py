"""Activations: elementwise functions pooled together with what they are applied to.

Each is written once in the vocabulary of `arrays`; the kernels of those that have one are in
``csrc/activations.h``. Names and defaults are torch's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np

from .arrays import Array, Arrays
from .errors import PoolTypeError, PoolValueError
from .recipes import REGISTRIES, Recipe, made_of, parameters_of

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "Activation",
    "Exp",
    "Hardswish",
    "LeakyReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "as_activation",
]

ACTIVATIONS: dict[str, type[Activation]] = {}
REGISTRIES["activation"] = ACTIVATIONS
A = TypeVar("A", bound="type[Activation]")


def register(activation: A) -> A:
    """Enters an activation in the registry that tests, docs and recipes iterate over."""
    activation.parameters = parameters_of(activation)
    ACTIVATIONS[activation.__name__] = activation
    return activation


class Activation(Recipe, ABC):
    """Base of all activations. Half types are computed in float32 and rounded once, as in torch.

    A new one gives `apply` and `derivative`, and is correct everywhere; a struct in
    ``csrc/activations.h`` and a row in ``csrc/registry.def`` make it fast.
    """

    kernel: ClassVar[str] = ""
    """A row of ``csrc/registry.def``, or "" where there is none."""

    @property
    def kernel_name(self) -> str:
        return self.kernel

    @property
    def parameter(self) -> float:
        """The number that the kernel takes."""
        return 0.0

    @property
    def monotone(self) -> bool:
        """Whether it never falls: then the largest value may be taken first."""
        return False

    @property
    def ends_gradient(self) -> bool:
        """Whether no gradient comes back where the result is not above 0."""
        return False

    @abstractmethod
    def apply(self, xp: Arrays, x: Array) -> Array:
        """The function, of float32 or float64; torch's autograd differentiates these lines."""

    @abstractmethod
    def derivative(self, xp: Arrays, x: Array) -> Array:
        """Its derivative at x."""

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        """The same, from the function's value: for those that are monotone."""
        raise NotImplementedError(f"{type(self).__name__} is not monotone")

    def rounded(self, xp: Arrays, x: Array) -> Array:
        """`apply` to any floating dtype, in the input's dtype."""
        name = str(x.dtype).removeprefix("torch.")
        if name in ("float16", "bfloat16"):
            return xp.cast(self.apply(xp, xp.cast(x, "float32")), name)
        return self.apply(xp, x)


@register
@dataclass(frozen=True, repr=False)
class ReLU(Activation):
    """``max(x, 0)``. A NaN stays; no result is -0.0, where torch keeps one."""

    kernel: ClassVar[str] = "relu"

    @property
    def monotone(self) -> bool:
        return True

    @property
    def ends_gradient(self) -> bool:
        return True

    def apply(self, xp: Arrays, x: Array) -> Array:
        return xp.where(x <= 0, xp.fill(x, 0.0), x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        return xp.where(x <= 0, xp.fill(x, 0.0), 1.0)

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        return self.derivative(xp, y)


@register
@dataclass(frozen=True, repr=False)
class LeakyReLU(Activation):
    """``x`` where it is above 0, else ``negative_slope * x``.

    Args:
        negative_slope: any finite number; with one below 0 the function is not monotone.
    """

    negative_slope: float = 0.01
    kernel: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        slope = self.negative_slope
        if isinstance(slope, np.generic):
            slope = slope.item()
            object.__setattr__(self, "negative_slope", slope)
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise PoolTypeError(f"negative_slope must be a number, got {slope!r}", "Write 0.01")
        if not math.isfinite(slope):
            raise PoolValueError(f"negative_slope must be finite, got {slope}", "Write 0.01")

    @property
    def parameter(self) -> float:
        return float(self.negative_slope)

    @property
    def monotone(self) -> bool:
        # With 0, results of -0.0 and 0.0 are equal but not the same.
        return self.negative_slope > 0

    def apply(self, xp: Arrays, x: Array) -> Array:
        return xp.where(x > 0, x, x * self.negative_slope)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        return xp.where(x > 0, xp.fill(x, 1.0), self.negative_slope)

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        return self.derivative(xp, y)


@register
@dataclass(frozen=True, repr=False)
class Exp(Activation):
    """``exp(x)``."""

    kernel: ClassVar[str] = "exp"

    @property
    def monotone(self) -> bool:
        return True

    def apply(self, xp: Arrays, x: Array) -> Array:
        return xp.exp(x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        return xp.exp(x)

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        return y


@register
@dataclass(frozen=True, repr=False)
class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``."""

    kernel: ClassVar[str] = "sigmoid"

    @property
    def monotone(self) -> bool:
        return True

    def apply(self, xp: Arrays, x: Array) -> Array:
        return xp.sigmoid(x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        return self.derivative_from_result(xp, xp.sigmoid(x))

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        return y * (1.0 - y)


@register
@dataclass(frozen=True, repr=False)
class Tanh(Activation):
    """The hyperbolic tangent."""

    kernel: ClassVar[str] = "tanh"

    @property
    def monotone(self) -> bool:
        return True

    def apply(self, xp: Arrays, x: Array) -> Array:
        return xp.tanh(x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        return self.derivative_from_result(xp, xp.tanh(x))

    def derivative_from_result(self, xp: Arrays, y: Array) -> Array:
        return 1.0 - y * y


@register
@dataclass(frozen=True, repr=False)
class SiLU(Activation):
    """``x * sigmoid(x)``, also called swish (Elfwing et al. 2017, arXiv:1702.03118)."""

    kernel: ClassVar[str] = "silu"

    def apply(self, xp: Arrays, x: Array) -> Array:
        return x * xp.sigmoid(x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        y = xp.sigmoid(x)
        return y * (1.0 + x * (1.0 - y))


@register
@dataclass(frozen=True, repr=False)
class GELU(Activation):
    """``x`` times the probability that a normal number is below it (Hendrycks and Gimpel 2016,
    arXiv:1606.08415).

    Args:
        approximate: "none" for the error function, "tanh" for the paper's approximation.
    """

    approximate: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise PoolValueError(
                f"approximate must be 'none' or 'tanh', got {self.approximate!r}",
                "Write one of them",
            )

    @property
    def kernel_name(self) -> str:
        return "gelu" if self.approximate == "none" else "gelu_tanh"

    def _share(self, xp: Arrays, x: Array) -> Array:
        if self.approximate == "none":
            return 0.5 * (1.0 + xp.erf(x * math.sqrt(0.5)))
        return xp.sigmoid(math.sqrt(8.0 / math.pi) * (x + 0.044715 * x * x * x))

    def apply(self, xp: Arrays, x: Array) -> Array:
        return x * self._share(xp, x)

    def derivative(self, xp: Arrays, x: Array) -> Array:
        share = self._share(xp, x)
        if self.approximate == "none":
            return share + x * xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
        slope = math.sqrt(8.0 / math.pi) * (1.0 + 3.0 * 0.044715 * x * x)
        return share + x * share * (1.0 - share) * slope


@register
@dataclass(frozen=True, repr=False)
class Hardswish(Activation):
    """``x * min(max(x + 3, 0), 6) / 6`` (Howard et al. 2019, arXiv:1905.02244)."""

    kernel: ClassVar[str] = "hardswish"

    def apply(self, xp: Arrays, x: Array) -> Array:
        share = x + 3.0
        share = xp.where(share <= 0, xp.fill(x, 0.0), share)  # flat at both kinks, as torch's is
        return x * xp.where(share >= 6, xp.fill(x, 6.0), share) / 6.0

    def derivative(self, xp: Arrays, x: Array) -> Array:
        middle = xp.where(x >= 3, xp.fill(x, 1.0), x / 3.0 + 0.5)
        return xp.where(x <= -3, xp.fill(x, 0.0), middle)


def as_activation(activation: Activation | str) -> Activation:
    """An activation, its name, or its recipe.

    >>> as_activation("relu"), as_activation("LeakyReLU(negative_slope=0.2)")
    (ReLU(), LeakyReLU(negative_slope=0.2))
    """
    if isinstance(activation, Activation):
        return activation
    made: Activation = made_of(activation, "activation", "poolkit.ReLU(), or its name: 'relu'")
    return made
