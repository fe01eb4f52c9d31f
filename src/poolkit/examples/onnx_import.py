"""An ONNX file as a torch module, for the operators of the PP-OCR networks.

Convolutions, batch norms and poolings become modules of torch, so that they can be swapped and
compiled; all else becomes calls of functions. Operators follow the ONNX specification, opsets 11
and 12. To look into any ONNX file, give it to ``poolkit inspect``, which converts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from poolkit.errors import MissingExtraError, PoolValueError

__all__ = ["from_onnx"]

Attributes = dict[str, Any]


def from_onnx(path: Path) -> fx.GraphModule:
    """Read a network from an ONNX file as a module in eval mode, with its weights.

    Raises:
        PoolValueError: the file has an operator that is not known here; it is named.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
    return _Import(onnx.load(str(path)), onnx).module()


class _Import:
    """A graph in the making: the values known so far, by their names in the file."""

    def __init__(self, model: Any, onnx: Any) -> None:
        self.model, self.onnx = model, onnx
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[str, fx.Node | Tensor | None] = {"": None}

    def module(self) -> fx.GraphModule:
        source = self.model.graph
        for constant in source.initializer:
            self.values[constant.name] = self._tensor(constant)
        for entry in source.input:
            if entry.name not in self.values:
                self.values[entry.name] = self.graph.placeholder(entry.name)
        for index, node in enumerate(source.node):
            self.values[node.output[0]] = self._value(node, index)
        outputs = tuple(self.values[entry.name] for entry in source.output)
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        return fx.GraphModule(self.root, self.graph).eval().requires_grad_(False)

    def _value(self, node: Any, index: int) -> fx.Node | Tensor:
        kind, name = node.op_type, f"{node.op_type.lower()}{index}"
        attributes = {a.name: self._attribute(a) for a in node.attribute}
        values = [self.values[name] for name in node.input]
        if kind == "Constant":
            constant: Tensor = attributes["value"]
            return constant
        if kind in _MODULES:
            self.root.add_module(name, _MODULES[kind](attributes, *values[1:]))
            return self.graph.call_module(name, (values[0],))
        if kind not in _FUNCTIONS:
            raise PoolValueError(
                f"{node.output[0]} is made by {kind}, which is not among the operators known here",
                f"They are {', '.join(sorted({*_MODULES, *_FUNCTIONS}))}",
            )
        function = _FUNCTIONS[kind]
        if all(isinstance(value, Tensor) for value in values):  # a bias reshaped, as a rule
            folded: Tensor = function(*map(_plain, values), **attributes)
            return folded
        arguments = tuple(self._argument(value, name) for value in values)
        return self.graph.call_function(function, arguments, attributes)

    def _argument(self, value: Any, name: str) -> Any:
        value = _plain(value)
        if not isinstance(value, Tensor):
            return value
        name = f"{name}_constant"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def _attribute(self, attribute: Any) -> Any:
        value = self.onnx.helper.get_attribute_value(attribute)
        if isinstance(value, self.onnx.TensorProto):
            return self._tensor(value)
        return value.decode() if isinstance(value, bytes) else value

    def _tensor(self, proto: Any) -> Tensor:
        return torch.from_numpy(self.onnx.numpy_helper.to_array(proto).copy())


def _plain(value: Any) -> Any:
    """Integers as lists, as torch takes sizes; a single number as itself."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.tolist()
    return value.item() if value.numel() == 1 else value


# --- modules: from the attributes, and the inputs behind the first, which are constants ----------


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Of rows and columns: all networks here are of images."""
    rows, columns = values
    return rows, columns


def _padding(attributes: Attributes) -> tuple[int, int]:
    pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if before != after or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise PoolValueError(f"padding must be the same on both sides, got pads {pads}")
    return _pair(before)


def _convolution(attributes: Attributes, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    groups = attributes["group"]
    made = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], _pair(weight.shape[2:]),
        _pair(attributes["strides"]), _padding(attributes), _pair(attributes["dilations"]),
        groups, bias is not None,
    )  # fmt: skip
    return _with_weights(made, weight=weight, bias=bias)


def _transposed(attributes: Attributes, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    groups = attributes["group"]
    made = nn.ConvTranspose2d(
        weight.shape[0], weight.shape[1] * groups, _pair(weight.shape[2:]),
        _pair(attributes["strides"]), _padding(attributes), groups=groups, bias=bias is not None,
    )  # fmt: skip
    return _with_weights(made, weight=weight, bias=bias)


def _batch_norm(
    attributes: Attributes, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> nn.Module:
    made = nn.BatchNorm2d(len(weight), attributes["epsilon"])
    return _with_weights(made, weight=weight, bias=bias, running_mean=mean, running_var=variance)


def _with_weights(module: nn.Module, **weights: Tensor | None) -> nn.Module:
    state = {name: value for name, value in weights.items() if value is not None}
    module.load_state_dict(state, strict=False)
    return module


def _max_pool(attributes: Attributes) -> nn.Module:
    return nn.MaxPool2d(
        _pair(attributes["kernel_shape"]), _pair(attributes["strides"]), _padding(attributes),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(attributes: Attributes) -> nn.Module:
    return nn.AvgPool2d(
        _pair(attributes["kernel_shape"]), _pair(attributes["strides"]), _padding(attributes),
        bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0)),
    )  # fmt: skip


def _resize(attributes: Attributes, region: Tensor | None, scales: Tensor) -> nn.Module:
    asked = tuple(
        attributes[key] for key in ("mode", "coordinate_transformation_mode", "nearest_mode")
    )
    if asked != ("nearest", "asymmetric", "floor"):
        raise PoolValueError(f"resizing is known by repeating pixels only, got {', '.join(asked)}")
    return nn.Upsample(scale_factor=tuple(scales[2:].tolist()))


_MODULES: dict[str, Callable[..., nn.Module]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "GlobalAveragePool": lambda attributes: nn.AdaptiveAvgPool2d(1),
    "MaxPool": _max_pool,
    "Resize": _resize,
}


# --- functions of the inputs and the attributes; shapes are lists of numbers ---------------------


def _concat(*values: Any, axis: int) -> Any:
    if isinstance(values[0], list):
        return [size for value in values for size in value]
    return torch.cat(values, axis)


def _slice(
    x: Any, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None
) -> Any:
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    parts = [slice(None)] * x.ndim
    for axis, *part in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        parts[axis] = slice(*part)
    return x[tuple(parts)]


def _reshape(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _mean(x: Tensor, axes: list[int], keepdims: int = 1) -> Tensor:
    return x.mean(axes, bool(keepdims))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Cast": lambda x, to: x,  # of shapes, which are plain numbers
    "Clip": torch.clamp,
    "Concat": _concat,
    "Div": torch.div,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "ReduceMean": _mean,
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Shape": lambda x: list(x.shape),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, axis: x.softmax(axis),
    "Sqrt": torch.sqrt,
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(perm),
}
