"""Which calls are poolings, and what each was asked to do.

A pooling is written in many ways in torch: a module, ``F.max_pool2d``, ``torch.max_pool2d``,
``torch.ops.aten``, or a reduction such as ``x.mean((2, 3))``. All of them become one
:class:`Pooling`: the operation's name and its arguments by name, which is enough to describe it
and to run it again in torch and in poolkit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from poolkit.errors import PoolValueError

_SLIDING_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_SLIDING_MEAN = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_FRACTIONAL = ("kernel_size", "output_size", "output_ratio", "return_indices", "_random_samples")

#: Every pooling function and the names of its arguments after ``input``, in torch's order.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "avg_pool1d": _SLIDING_MEAN,
    "avg_pool2d": (*_SLIDING_MEAN, "divisor_override"),
    "avg_pool3d": (*_SLIDING_MEAN, "divisor_override"),
    "fractional_max_pool2d": _FRACTIONAL,
    "fractional_max_pool3d": _FRACTIONAL,
}
for _n in (1, 2, 3):
    SIGNATURES[f"max_pool{_n}d"] = _SLIDING_MAX
    SIGNATURES[f"lp_pool{_n}d"] = ("norm_type", "kernel_size", "stride", "ceil_mode")
    SIGNATURES[f"adaptive_max_pool{_n}d"] = ("output_size", "return_indices")
    SIGNATURES[f"adaptive_avg_pool{_n}d"] = ("output_size",)
    SIGNATURES[f"max_unpool{_n}d"] = ("indices", "kernel_size", "stride", "padding", "output_size")
    # The two that torch does not have; they appear in models that were optimised.
    SIGNATURES[f"global_max_pool{_n}d"] = ("keepdim",)
    SIGNATURES[f"global_avg_pool{_n}d"] = ("keepdim",)

#: Reductions that pool when all the axes they reduce are spatial, as poolkit's reduction.
REDUCTIONS: dict[str, str] = {
    "mean": "Mean",
    "sum": "Sum",
    "amax": "Max",
    "amin": "Min",
    "max": "Max",
    "min": "Min",
    "logsumexp": "LogSumExp",
}

#: Convolutions and the names of their arguments after ``input``. Strided ones make maps smaller.
CONVOLUTIONS: dict[str, tuple[str, ...]] = {
    f"conv{n}d": ("weight", "bias", "stride", "padding", "dilation", "groups") for n in (1, 2, 3)
}
TRANSPOSED: dict[str, tuple[str, ...]] = {
    f"conv_transpose{n}d": (
        "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
    ) for n in (1, 2, 3)
}  # fmt: skip

_WORDS = {"avg": "average", "lp": "Lp", "max": "max"}


def _functions_by_identity() -> dict[Any, str]:
    """Map each torch function object to its pooling's name.

    By identity and not by ``__name__``: ``F.max_pool2d`` and ``F.adaptive_max_pool2d`` are both
    called ``boolean_dispatch.<locals>.fn``.
    """
    table: dict[Any, str] = {}
    for name in SIGNATURES:
        for variant in (name, f"{name}_with_indices"):
            for home in (F, torch, torch._C._nn):
                function = getattr(home, variant, None)
                if function is not None:
                    table[function] = name
    return table


_BY_IDENTITY = _functions_by_identity()


@dataclass(frozen=True)
class Pooling:
    """One pooling as it was called: an operation's name and its arguments by name.

    ``operation`` is a key of :data:`SIGNATURES`; or of :data:`REDUCTIONS`, and then ``arguments``
    holds ``dim`` (non-negative axes) and ``keepdim``; or it is ``pool``, with the arguments of
    ``poolkit.pool``; or one of :data:`CONVOLUTIONS`, with its ``kernel_size``.
    """

    operation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reduction(self) -> bool:
        return self.operation in REDUCTIONS

    @property
    def is_convolution(self) -> bool:
        return self.operation in CONVOLUTIONS

    @property
    def kind(self) -> str:
        """What a call of it is: ``convolution``, ``reduction`` or ``function``."""
        if self.is_convolution:
            return "convolution"
        return "reduction" if self.is_reduction else "function"

    @property
    def spatial_rank(self) -> int:
        """How many axes the window has: 2 for ``max_pool2d``."""
        if self.is_reduction:
            return len(self.arguments["dim"])
        if self.operation == "pool":
            return int(self.arguments["ndim"])
        return int(self.operation[-2])

    def described(self) -> str:
        """Reduction and window: ``max, 3×3, stride 2``."""
        return f"{self.words()}, {self.window()}"

    def words(self) -> str:
        """The reduction in words: ``max``, ``adaptive average``, ``mean over space``."""
        if self.is_reduction:
            return f"{self.operation.removeprefix('a') or self.operation} over space"
        if self.operation == "pool":
            return str(self.arguments["reduction"])
        if self.is_convolution:
            return "convolution"
        stem = self.operation.rsplit("_", 1)[0]
        if stem == "max":
            return "max unpool" if "unpool" in self.operation else "max"
        return " ".join(_WORDS.get(word, word) for word in stem.split("_"))

    def window(self) -> str:
        """The window in words, with the arguments that differ from torch's defaults.

        >>> Pooling("max_pool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}).window()
        '3×3, stride 2, ceil mode'
        >>> Pooling("mean", {"dim": (2, 3), "keepdim": False}).window()
        'axes 2, 3'
        >>> Pooling("adaptive_avg_pool2d", {"output_size": 7}).window()
        'to 7×7'
        """
        given, n = self.arguments, self.spatial_rank
        if self.operation == "pool":
            return str(given["window"])
        if self.is_reduction:
            return f"ax{'i' if n == 1 else 'e'}s {', '.join(map(str, given['dim']))}"
        if self.operation.startswith("global"):
            return "whole map"
        if "output_size" in given and "kernel_size" not in given:
            return f"to {_times(given['output_size'], n)}"
        parts = [_times(given["kernel_size"], n)]
        stride = given.get("stride")
        if spread(stride or given["kernel_size"], n) != spread(given["kernel_size"], n):
            parts.append(f"stride {_short(stride, n)}")
        if any(spread(given.get("padding") or 0, n)):
            parts.append(f"padding {_short(given['padding'], n)}")
        if set(spread(given.get("dilation") or 1, n)) != {1}:
            parts.append(f"dilation {_short(given['dilation'], n)}")
        if "norm_type" in given:
            parts.append(f"p={given['norm_type']:g}")
        if given.get("ceil_mode"):
            parts.append("ceil mode")
        if given.get("count_include_pad") is False:
            parts.append("padding not counted")
        if given.get("divisor_override"):
            parts.append(f"divisor {given['divisor_override']}")
        if given.get("groups", 1) != 1:
            parts.append(f"{given['groups']} groups")
        if given.get("return_indices"):
            parts.append("with indices")
        return ", ".join(parts)

    def in_torch(self, x: torch.Tensor) -> Callable[[], Any]:
        """A call that runs this pooling of ``x`` in torch. Raises PoolError where it has none."""
        given = dict(self.arguments)
        if self.operation == "pool":
            raise PoolValueError("torch has no such pooling")
        if self.is_reduction:
            reduce = getattr(torch, self.operation)
            dim = given["dim"][0] if self.operation in ("max", "min") else given["dim"]
            return lambda: reduce(x, dim, keepdim=given["keepdim"])
        if self.operation.startswith("global"):
            reduce = torch.mean if "avg" in self.operation else torch.amax
            axes = tuple(range(-self.spatial_rank, 0))
            return lambda: reduce(x, axes, keepdim=given.get("keepdim", True))
        function = getattr(F, self.operation)
        if self.is_convolution:
            del given["kernel_size"]
        return lambda: function(x, **given)

    def in_poolkit(self, x: torch.Tensor) -> Callable[[], Any]:
        """A call that runs this pooling of ``x`` in poolkit. Raises PoolError where it cannot."""
        import poolkit

        given = dict(self.arguments)
        if self.is_convolution:
            raise PoolValueError("a convolution is no pooling")
        if not self.is_reduction:
            function = getattr(poolkit, self.operation, None)
            if function is None:
                raise PoolValueError(f"there is no poolkit.{self.operation}")
            return lambda: function(x, **given)
        reduction = getattr(poolkit, REDUCTIONS[self.operation])()
        dims, window = given["dim"], poolkit.Global()
        kept = [axis for axis in range(x.ndim) if axis not in dims]
        shape = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
        if not given["keepdim"]:
            shape = [x.shape[axis] for axis in kept]

        def call() -> torch.Tensor:
            # A window pools trailing axes: bring the reduced ones there. Nothing is copied
            # where they are trailing already, which is the usual case.
            trailing = x.permute(*kept, *dims)
            result: torch.Tensor = poolkit.pool(trailing, window, reduction, ndim=len(dims))
            return result.reshape(shape)

        return call


def recognise(
    function: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    spatial_dims: Sequence[int] = (),
) -> Pooling | None:
    """Say which pooling a call of a torch function is, or None.

    ``spatial_dims`` are the axes of the first argument known to be spatial; a reduction is a
    pooling only if every axis it reduces is one of them, so batch statistics and losses are not.
    """
    name = _BY_IDENTITY.get(function) if _hashable(function) else None
    label = getattr(function, "__name__", "")
    if name is None and isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        namespace, _, label = str(function).partition(".")
        label = label.split(".")[0].lstrip("_").removesuffix("_with_indices")
        if namespace not in ("aten", "poolkit"):
            return None
        name = label if label in SIGNATURES else None
    if name is not None:
        return Pooling(name, _bind(SIGNATURES[name], args[1:], kwargs))
    if label in REDUCTIONS:
        return _recognise_reduction(label, args, kwargs, spatial_dims)
    if function is F.interpolate:
        return _recognise_area(args, kwargs)
    return None


def recognise_convolution(call: Call) -> Pooling | None:
    """The convolution that a call is, if it has a stride: it makes maps smaller as a pooling does.

    >>> x, weight = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3)
    >>> recognise_convolution(Call.of(F.conv2d, (x, weight), {"stride": 2})).window()
    '3×3, stride 2'
    """
    if call.name not in CONVOLUTIONS:
        return None
    given = _bind(CONVOLUTIONS[call.name], call.args[1:], call.kwargs)
    kernel = tuple(given["weight"].shape[2:])
    stride = spread(given.get("stride", 1), len(kernel))
    if max(stride) < 2 or isinstance(given.get("padding"), str):
        return None
    return Pooling(call.name, {**given, "kernel_size": kernel, "stride": stride})


@dataclass(frozen=True)
class Call:
    """A call of a torch function under one name, however it is written.

    ``torch.ops.aten.conv2d.default`` is ``conv2d``, and so is ``aten.convolution`` of a graph that
    was lowered, with the arguments in the order of ``F.conv2d``.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        name = getattr(function, "__name__", "")
        if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            name = str(function).split(".")[1]
        if name.lstrip("_") == "convolution" and len(args) >= 9:
            x, weight, bias, stride, padding, dilation, transposed, more, groups = args[:9]
            if transposed:
                name = f"conv_transpose{x.ndim - 2}d"
                return cls(name, (x, weight, bias, stride, padding, more, groups, dilation), {})
            name = f"conv{x.ndim - 2}d"
            return cls(name, (x, weight, bias, stride, padding, dilation, groups), {})
        return cls(name, tuple(args), kwargs)

    def bound(self, *names: str) -> dict[str, Any]:
        """The arguments after the first, by name."""
        return _bind(names, self.args[1:], self.kwargs)


def _recognise_reduction(
    label: str, args: Sequence[Any], kwargs: Mapping[str, Any], spatial_dims: Sequence[int]
) -> Pooling | None:
    if not args or not isinstance(args[0], torch.Tensor):
        return None
    given = _bind(("dim", "keepdim"), args[1:], kwargs)
    dim = given.get("dim", given.get("axis"))
    if isinstance(dim, int):
        dim = (dim,)
    # `torch.max(x, y)` is elementwise, and no `dim` is a reduction to a scalar: not poolings.
    if not isinstance(dim, tuple | list) or not dim:
        return None
    axes = tuple(sorted(axis % args[0].ndim for axis in dim))
    if not set(axes) <= set(spatial_dims):
        return None
    return Pooling(label, {"dim": axes, "keepdim": bool(given.get("keepdim", False))})


def _recognise_area(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pooling | None:
    """``F.interpolate(mode="area")`` is an adaptive average by another name."""
    given = _bind(("size", "scale_factor", "mode"), args[1:], kwargs)
    if given.get("mode") != "area" or not args:
        return None
    spatial = args[0].shape[2:]
    size = given.get("size")
    if size is None:
        scales = spread(given["scale_factor"], len(spatial))
        size = tuple(int(n * scale) for n, scale in zip(spatial, scales, strict=True))
    return Pooling(f"adaptive_avg_pool{len(spatial)}d", {"output_size": size})


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(zip(names, args, strict=False))
    given.update({key: value for key, value in kwargs.items() if key not in ("input", "out")})
    if given.get("stride", 0) in (None, [], ()):
        del given["stride"]
    return given


def _hashable(function: Any) -> bool:
    try:
        hash(function)
    except TypeError:
        return False
    return True


def spread(value: Any, n: int) -> tuple[Any, ...]:
    """One value per axis, as torch reads an int or a tuple of one."""
    if not isinstance(value, tuple | list | torch.Size):
        return (value,) * n
    return tuple(value) * n if len(value) == 1 else tuple(value)


def _times(value: Any, n: int) -> str:
    return "×".join("same" if v is None else str(v) for v in spread(value, n))


def _short(value: Any, n: int) -> str:
    values = spread(value, n)
    return str(values[0]) if len(set(values)) == 1 else _times(value, n)
