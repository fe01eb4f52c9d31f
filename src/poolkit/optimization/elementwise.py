"""Elementwise operations beside a pooling: which can be joined to it, and which a maximum may pass.

A function that never falls commutes with a maximum: ``max(f(x)) == f(max(x))``. What becomes of a
NaN among the values may differ where ``f`` rounds to 8 bits, which have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from poolkit.activations import (
    GELU,
    Activation,
    Exp,
    Hardswish,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from poolkit.errors import PoolError

#: Torch's modules that are activations of poolkit's.
_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: ReLU(),
    nn.LeakyReLU: lambda module: LeakyReLU(module.negative_slope),
    nn.Sigmoid: lambda module: Sigmoid(),
    nn.Tanh: lambda module: Tanh(),
    nn.SiLU: lambda module: SiLU(),
    nn.GELU: lambda module: GELU(module.approximate),
    nn.Hardswish: lambda module: Hardswish(),
}

#: The same of operators in a graph, and of functions: what makes one of the arguments after x.
_FUNCTIONS: dict[str, Callable[..., Activation]] = {
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "silu": SiLU,
    "gelu": GELU,
    "hardswish": Hardswish,
    "exp": Exp,
}

#: Other operators that never fall, whatever their arguments.
_MONOTONE = {
    "aten.relu6", "aten.hardtanh", "aten.hardsigmoid", "aten.clamp", "aten.clamp_min",
    "aten.clamp_max",
}  # fmt: skip
#: To 8 bits and back: they never fall either, as scales are positive, and round exactly alike.
QUANTIZE = {"quantized_decomposed.quantize_per_tensor", "poolkit.quantize"}
DEQUANTIZE = {"quantized_decomposed.dequantize_per_tensor", "poolkit.dequantize"}


def activation_of(module: nn.Module) -> Activation | None:
    """poolkit's activation of the same values as torch's module, if there is one.

    >>> activation_of(nn.LeakyReLU(0.2)), activation_of(nn.PReLU())
    (LeakyReLU(negative_slope=0.2), None)
    """
    make = _MODULES.get(type(module))
    return None if make is None else make(module)


def is_activation(name: str) -> bool:
    """Whether a function of torch by this name is one of poolkit's activations."""
    return name.rstrip("_") in _FUNCTIONS


def operator_name(node: fx.Node) -> str:
    """``aten.relu`` for ``torch.ops.aten.relu_.default``; nothing for what is no operator."""
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return ""
    namespace, name, _ = str(node.target).split(".")
    return f"{namespace}.{name.rstrip('_')}"


def activation_in_graph(node: fx.Node) -> Activation | None:
    """poolkit's activation of the same values as a node, if there is one."""
    namespace, _, name = operator_name(node).partition(".")
    if namespace != "aten" or name not in _FUNCTIONS:
        return None
    try:
        return _FUNCTIONS[name](*node.args[1:], **node.kwargs)
    except (TypeError, PoolError):  # an overload with other arguments
        return None


def is_monotone(node: fx.Node) -> bool:
    """Whether a node applies a function that never falls to its one tensor."""
    if len(node.all_input_nodes) != 1:
        return False
    activation = activation_in_graph(node)
    if activation is not None:
        return activation.monotone
    return operator_name(node) in _MONOTONE | QUANTIZE | DEQUANTIZE


def cancel(first: fx.Node, second: fx.Node) -> bool:
    """Whether two nodes, one after the other, leave every value as it is: out of 8 bits and back
    into the same."""
    if operator_name(first) not in DEQUANTIZE or operator_name(second) not in QUANTIZE:
        return False
    if operator_name(first).partition(".")[0] != operator_name(second).partition(".")[0]:
        return False
    if operator_name(first) == "poolkit.dequantize":
        x = first.all_input_nodes[0].meta["val"]
        return first.args[1:3] == second.args[1:3] and f"torch.{second.args[3]}" == str(x.dtype)
    return first.args[1:6] == second.args[1:6]
