"""Whether a replacement answers as the original does: outputs, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from numbers import Number, Real
from typing import Any

import numpy as np
import torch
from torch import nn

from poolkit.errors import PoolValueError
from poolkit.inspection.trace import tensors_in

#: What holds no values but its own.
_WHOLE = (
    torch.Tensor, np.ndarray, Number, str, bytes, type(None), type, nn.Module, torch.dtype,
    torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How far two results are apart; ``problem`` is empty if they are close enough."""

    error: float
    problem: str = ""

    def join(self, other: Difference) -> Difference:
        return Difference(max(self.error, other.error), self.problem or other.problem)


def check_tolerance(tolerance: float) -> None:
    """Raise PoolValueError unless ``tolerance`` is one that a difference can be held to."""
    if not isinstance(tolerance, Real) or not isfinite(tolerance) or tolerance < 0:
        raise PoolValueError(
            f"tolerance must be a finite number of at least 0, got {tolerance!r}",
            "Give the largest relative difference allowed, as 1e-5, or 0 to ask for the same bits",
        )


def compare_modules(
    original: nn.Module,
    replacement: nn.Module,
    args: tuple[Any, ...],
    tolerance: float,
    exact: bool,
) -> Difference:
    """Compare outputs and gradients of two modules on the same arguments.

    ``exact`` asks for the same bits of the outputs, as max and min can and must give. Gradients
    are compared within ``tolerance``: where windows overlap they are sums.
    """
    theirs, ours = _with_gradient(original, args), _with_gradient(replacement, args)
    allowed = 0.0 if exact else tolerance
    found = compare_outputs(theirs[0], ours[0], allowed, scale=largest_in(args[0]))
    if found.problem:
        return Difference(found.error, f"outputs {found.problem}")
    gradient = compare_outputs(theirs[1], ours[1], tolerance)
    if gradient.problem:
        return Difference(gradient.error, f"gradients {gradient.problem}")
    return found.join(gradient)


def compare_outputs(
    expected: Any, actual: Any, tolerance: float, noise: float = 0.0, scale: float = 0.0
) -> Difference:
    """Compare what models return; ``tolerance`` is relative to the largest value, 0 asks for bits.

    ``noise`` is a difference that is allowed in any case, in absolute terms, and ``scale`` a value
    that counts among those expected: what was added up may be larger than its sum. Integers are to
    be the same.
    """
    first, second = list(values_in(expected)), list(values_in(actual))
    if len(first) != len(second):
        return Difference(float("inf"), f"are {len(second)} tensors instead of {len(first)}")
    worst = Difference(0.0)
    for a, b in zip(first, second, strict=True):
        worst = worst.join(_compare(a, b, tolerance, noise, scale))
    return worst


def leaves_in(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """All that a model returns, out of containers and objects, which may hold each other.

    >>> list(leaves_in({"boxes": [1, (2, None)]}))
    [1, 2, None]
    """
    seen = set() if seen is None else seen
    parts = _parts_of(value)
    if parts is None:
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for part in parts:
            yield from leaves_in(part, seen)


def _parts_of(value: Any) -> Iterable[Any] | None:
    """What a container or an object holds; None of what is no such thing."""
    if isinstance(value, _WHOLE):
        return None
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, tuple | list):
        return value
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    attributes = getattr(value, "__dict__", None)
    return attributes.values() if attributes else None


def hidden_in(outputs: Any) -> str:
    """The type of the first of them into which nothing can look, as an iterator; or empty."""
    leaves = (leaf for leaf in leaves_in(outputs) if not isinstance(leaf, _WHOLE))
    return next((type(leaf).__name__ for leaf in leaves), "")


def values_in(outputs: Any) -> Iterator[torch.Tensor]:
    """The tensors among what a model returns, and its arrays as tensors."""
    for leaf in leaves_in(outputs):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            yield torch.tensor(leaf)


def largest_in(values: Any) -> float:
    """The largest finite magnitude among nested tensors."""
    found = (x.detach().abs() for x in values_in(values) if x.dtype is not torch.bool)
    return max((float(x[x.isfinite()].max()) for x in found if x.isfinite().any()), default=0.0)


def _compare(
    a: torch.Tensor, b: torch.Tensor, tolerance: float, noise: float, scale: float
) -> Difference:
    if a.shape != b.shape or a.dtype != b.dtype:
        was, now = (f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (a, b))
        return Difference(float("inf"), f"are {now} instead of {was}")
    if not a.numel():
        return Difference(0.0)
    x, y = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    # NaN against NaN and inf against inf are equal, and their difference is NaN.
    same = (x == y) | (x.isnan() & y.isnan())
    error = float(torch.where(same, 0.0, (x - y).abs()).nan_to_num(nan=float("inf")).max())
    if not (a.is_floating_point() or a.is_complex()):
        tolerance = 0.0
    elif tolerance:
        # Half types: a sum in another order may round to the neighbouring value.
        tolerance = max(tolerance, 2 * torch.finfo(a.dtype).eps)
    allowed = max(noise, tolerance * max(scale, largest_in(x)))
    if error > allowed:
        return Difference(error, f"differ by {error:.3g}, more than {allowed:.3g}")
    if tolerance == 0 and a.is_floating_point() and not _same_sign_of_zero(a, b):
        return Difference(error, "differ in the sign of a zero")
    return Difference(error)


def _same_sign_of_zero(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.signbit() & (a == 0), b.signbit() & (b == 0))


def _with_gradient(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, Any]:
    x = args[0].detach()
    with fixed_randomness():
        if not x.is_floating_point():
            return module(*args), ()
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.enable_grad():
            out = module(leaf, *args[1:])
        first = next(tensors_in(out))
        if not first.requires_grad:
            return out, ()
        # Different weights for different outputs: with ones, gradients that go to the wrong
        # place within a window could still add up.
        weights = torch.linspace(0.5, 1.5, first.numel(), dtype=first.dtype, device=first.device)
        (gradient,) = torch.autograd.grad(first, leaf, weights.reshape(first.shape))
    return out, gradient


@contextmanager
def fixed_randomness(seed: int = 0) -> Iterator[None]:
    """The same random numbers inside every time; the caller's generators are left as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: that seeds devices that are not in use yet, later, and notes the
        # stack for each of them, which takes milliseconds.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def reproducible(call: Callable[[], Any]) -> Any:
    """Run ``call`` with the same random numbers every time, without gradients."""
    with fixed_randomness(), torch.no_grad():
        return call()


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """After it the buffers, of which some count and average what runs, are as they were."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                owner[name] = buffer if torch.equal(buffer, value) else buffer.copy_(value)
