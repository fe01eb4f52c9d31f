"""ONNX files: which nodes pool, and the tensors that onnxruntime gives them.

Operators follow the ONNX specification, opsets 7 and later. Nothing is converted: onnxruntime runs
the graph as it is, with its intermediate results as outputs, and each node that pools becomes the
same record as a call of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from poolkit.errors import MissingExtraError, PoolTypeError, PoolValueError, first_line
from poolkit.inspection import dataflow
from poolkit.inspection.dataflow import View
from poolkit.inspection.operations import Call, Pooling
from poolkit.inspection.poolkit_calls import named
from poolkit.inspection.trace import Step, TracedPooling, layout_of
from poolkit.reductions import Lp, Max, Mean, Reduction
from poolkit.windows import Global, Sliding

if TYPE_CHECKING:
    import onnx

_HANDS_ON = {
    "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Dropout",
}  # fmt: skip
_REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin",
    "ReduceLogSumExp": "logsumexp",
}  # fmt: skip
_IN_TORCH = {"Gemm": "linear", "MatMul": "matmul", "Clip": "hardtanh", "Transpose": "permute"}


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx") from None
    return onnx, onnxruntime


class OnnxModel:
    """An ONNX graph that can be run and traced.

    Args:
        model: the ``onnx.ModelProto``.
        where: what to call it in messages.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """

    def __init__(self, model: onnx.ModelProto, where: str = "the ONNX model") -> None:
        self.onnx, self.runtime = _packages()
        self.model, self.where = model, where
        constants = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in constants]
        self._session: Any = None

    @classmethod
    def load(cls, path: Path) -> OnnxModel:
        """Read an ``.onnx`` file. Raises PoolValueError if it is none."""
        onnx, _ = _packages()
        if not path.is_file():
            raise PoolValueError(f"there is no file {path}")
        try:
            return cls(onnx.load(str(path)), path.name)
        except Exception as error:
            raise PoolValueError(f"{path} is not an ONNX model: {_first_line(error)}") from error

    @property
    def versions(self) -> dict[str, str]:
        return {"onnx": self.onnx.__version__, "onnxruntime": self.runtime.__version__}

    def feeds(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs by name, from tensors or arrays in order and by name.

        Raises:
            PoolValueError: inputs are missing, or there is none of that name.
        """
        values = dict(zip(self.inputs, args, strict=False)) | dict(kwargs)
        unknown = [name for name in values if name not in self.inputs]
        missing = [name for name in self.inputs if name not in values]
        if unknown or missing or len(args) > len(self.inputs):
            given = len(args) + len(kwargs)
            raise PoolValueError(
                f"{self.where} has the inputs {', '.join(self.inputs)}, and {given} were given"
                + (f", among them {', '.join(unknown)}" if unknown else ""),
                "Give them in this order, or a dict by name",
            )
        return {name: _as_array(value) for name, value in values.items()}

    def runner(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """A call that runs the model as onnxruntime makes it fast, on torch's number of threads."""
        if self._session is None:
            self._session = self._start(self.model.SerializeToString(), optimised=True)
        return lambda: self._run(self._session, None, feeds)

    def _start(self, serialised: bytes, optimised: bool) -> Any:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if not optimised:  # nodes are to stay what they are
            level = self.runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        try:
            return self.runtime.InferenceSession(
                serialised, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise PoolValueError(
                f"onnxruntime does not run {self.where}: {_first_line(error)}"
            ) from error

    def _run(self, session: Any, names: list[str] | None, feeds: Mapping[str, np.ndarray]) -> Any:
        try:
            return session.run(names, feeds)
        except Exception as error:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in feeds.values())
            raise PoolValueError(
                f"the model raised on input {shapes}: {_first_line(error)}"
            ) from error

    def trace(self, feeds: Mapping[str, np.ndarray]) -> list[TracedPooling]:
        """Run the model once and return its poolings and strided convolutions, in order."""
        watched = self.onnx.ModelProto()
        watched.CopyFrom(self.model)
        known = {value.name for value in watched.graph.output}
        made = [name for node in watched.graph.node for name in node.output if name]
        for name in dict.fromkeys(made):
            if name not in known:
                watched.graph.output.append(self.onnx.ValueInfoProto(name=name))
        session = self._start(watched.SerializeToString(), optimised=False)
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, self._run(session, names, feeds), strict=True))
        values = {
            tensor.name: self.onnx.numpy_helper.to_array(tensor)
            for tensor in self.model.graph.initializer
        }
        return _Walk(self, values | dict(feeds) | results, feeds).found


class _Walk:
    """Goes through the nodes in order and follows, as a trace does, who made what from what."""

    def __init__(
        self, model: OnnxModel, arrays: Mapping[str, Any], feeds: Mapping[str, Any]
    ) -> None:
        self.helper = model.onnx.helper
        self.arrays = arrays
        self.tensors: dict[str, torch.Tensor] = {}
        self.views: dict[str, View] = {}
        self.steps: dict[str, Step] = {}
        self.found: list[TracedPooling] = []
        for name in feeds:
            self.steps[name] = Step("", "input")
            view = dataflow.of_input(self.tensor(name))
            if view is not None:
                self.views[name] = view
        for node in model.model.graph.node:
            if node.input and node.output and self.is_tensor(node.output[0]):
                self._visit(node)
        outputs = [self.steps[o.name] for o in model.model.graph.output if o.name in self.steps]
        if outputs:
            Step("", "output").reads(outputs)

    def is_tensor(self, name: str) -> bool:
        return isinstance(self.arrays.get(name), np.ndarray)

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            array = np.ascontiguousarray(self.arrays[name])
            # onnxruntime may hand out memory that must not be written to.
            self.tensors[name] = torch.from_numpy(array if array.flags.writeable else array.copy())
        return self.tensors[name]

    def _visit(self, node: Any) -> None:
        given = {a.name: self.helper.get_attribute_value(a) for a in node.attribute}
        names = [name for name in node.input if name]
        view = dataflow.join(self.views[name] for name in names if name in self.views)
        made_by = [self.steps[name] for name in names if name in self.steps]
        first, out = names[0] if names else "", self.tensor(node.output[0])
        pooling = self._pooling(node, given, view) if self.is_tensor(first) else None
        step: Step | None
        if pooling is not None:
            step = Step(_name(node), pooling.operation, pooling.arguments, pooling).reads(made_by)
            x = self.tensor(first)
            view = view or dataflow.of_input(x, pooling.spatial_rank)
            after = None if view is None else dataflow.after_pooling(pooling, view, x, out)
            self.found.append(
                TracedPooling(
                    pooling=pooling,
                    name=_name(node),
                    module=None,
                    aliases=(),
                    source=f"node {node.op_type}",
                    view=after,
                    input=x,
                    output=out,
                    layout=layout_of(x),
                    step=step,
                    kind="convolution" if pooling.is_convolution else "node",
                    is_layer=True,
                )
            )
        else:
            call = self._call(node, given) if self.is_tensor(first) else None
            step = self._step(node, given, call, made_by)
            after = None if view is None or call is None else dataflow.after_call(call, view, out)
        for name in node.output:
            if step is not None:
                self.steps[name] = step
            if after is not None:
                self.views[name] = after

    def _step(
        self, node: Any, given: Mapping[str, Any], call: Call | None, made_by: list[Step]
    ) -> Step | None:
        if not made_by:
            return None  # what is made of constants alone
        if node.op_type in _HANDS_ON:
            return made_by[0]
        operation = call.name if call is not None else node.op_type.lower()
        arguments: Mapping[str, Any] = {}
        if node.op_type == "Pad":
            arguments = self._padding(node, given)
        elif node.op_type == "Conv" and call is not None:
            arguments = call.bound("weight", "bias", "stride", "padding", "dilation", "groups")
        return Step(_name(node), operation, arguments).reads(made_by)

    def _padding(self, node: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of torch's pad: from the last axis to the first, (before, after) each."""
        pads = list(given.get("pads", ()) or self._constant(node, 1))
        n = len(pads) // 2
        value = float(given.get("value", 0.0))
        if len(node.input) > 2 and self.is_tensor(node.input[2]):
            value = float(self.arrays[node.input[2]].reshape(-1)[0])
        turned = [int(side) for axis in reversed(range(n)) for side in (pads[axis], pads[axis + n])]
        return {"pad": turned, "mode": _text(given.get("mode", "constant")), "value": value}

    def _constant(self, node: Any, index: int) -> list[int]:
        """The integers of an input that older opsets had as an attribute."""
        if len(node.input) <= index or not self.is_tensor(node.input[index]):
            return []
        return [int(value) for value in self.arrays[node.input[index]].reshape(-1)]

    def _call(self, node: Any, given: Mapping[str, Any]) -> Call:
        """The call of torch that moves space as the node does."""
        x, kind = self.tensor(node.input[0]), node.op_type
        if kind in ("Conv", "ConvTranspose") and self.is_tensor(node.input[1]):
            convolution = self._convolution(node, given)
            stem = "conv" if kind == "Conv" else "conv_transpose"
            plain = {k: v for k, v in convolution.items() if k != "kernel_size"}
            pads = plain["padding"]
            plain["padding"] = tuple(p[0] if isinstance(p, tuple) else p for p in pads)
            return Call(f"{stem}{x.ndim - 2}d", (x,), plain)
        if kind == "Transpose":
            order = list(given.get("perm", ())) or list(reversed(range(x.ndim)))
            return Call("permute", (x, order), {})
        if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            return Call("reshape", (x,), {})
        if kind in ("Resize", "Upsample"):
            mode = {"linear": "bilinear", "cubic": "bicubic"}.get(_text(given.get("mode", "")))
            return Call("interpolate", (x,), {"mode": mode or "nearest"})
        return Call(_IN_TORCH.get(kind, kind.lower()), (x,), {})

    def _pooling(self, node: Any, given: Mapping[str, Any], view: View | None) -> Pooling | None:
        x, kind = self.tensor(node.input[0]), node.op_type
        n = x.ndim - 2
        if kind in _REDUCTIONS:
            return self._reduction(node, given, view, x)
        if not 1 <= n <= 3:
            return None
        if kind == "Conv" and self.is_tensor(node.input[1]):
            convolution = self._convolution(node, given)
            strided = max(convolution["stride"]) > 1
            return Pooling(f"conv{n}d", convolution) if strided else None
        reduction = _reduction_of(kind, given)
        if reduction is None:
            return None
        if kind.startswith("Global"):
            return named(Global(), reduction, n)
        return named(_window(given, tuple(x.shape[2:])), reduction, n)

    def _reduction(
        self, node: Any, given: Mapping[str, Any], view: View | None, x: torch.Tensor
    ) -> Pooling | None:
        axes = list(given.get("axes", ())) or self._constant(node, 1)
        dims = tuple(sorted(int(axis) % x.ndim for axis in axes))
        if view is None or not view.features or not dims or not set(dims) <= set(view.dims):
            return None
        keep = bool(given.get("keepdims", 1))
        return Pooling(_REDUCTIONS[node.op_type], {"dim": dims, "keepdim": keep})

    def _convolution(self, node: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        weight = self.tensor(node.input[1])
        n = weight.ndim - 2
        bias = self.tensor(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kernel = tuple(weight.shape[2:])
        shape = tuple(self.tensor(node.input[0]).shape[2:])
        window = _window({**given, "kernel_shape": kernel}, shape)
        padding = window.padding
        if isinstance(padding, str):
            padding = _same(shape, window, lower=False)
        return {
            "weight": weight,
            "bias": bias,
            "stride": window.sizes(n)[1],
            "padding": padding if isinstance(padding, tuple) else (padding,) * n,
            "dilation": window.sizes(n)[2],
            "groups": int(given.get("group", 1)),
            "kernel_size": kernel,
        }


def _reduction_of(kind: str, given: Mapping[str, Any]) -> Reduction | None:
    """The reduction of a node that pools, or None."""
    match kind.removeprefix("Global"):
        case "MaxPool":
            return Max()
        case "AveragePool":
            # In a global pooling nothing is padded.
            return Mean(count_include_pad=bool(given.get("count_include_pad", kind[0] == "G")))
        case "LpPool":
            return Lp(float(given.get("p", 2)))
    return None


def _window(given: Mapping[str, Any], shape: tuple[int, ...]) -> Sliding:
    """The window of a node with ``kernel_shape``, ``strides``, ``pads`` and the like.

    >>> _window({"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1]}, (8, 8))
    Sliding((3, 3), stride=(2, 2), padding=((1, 1), (0, 1)), dilation=(1, 1))
    """
    kernel = tuple(map(int, given["kernel_shape"]))
    n = len(kernel)
    stride = tuple(map(int, given.get("strides", ()) or (1,) * n))
    dilation = tuple(map(int, given.get("dilations", ()) or (1,) * n))
    ceil_mode, auto = bool(given.get("ceil_mode", 0)), _text(given.get("auto_pad", "NOTSET"))
    plain = Sliding(kernel, stride, "same" if "SAME" in auto else 0, dilation, ceil_mode)
    if auto == "SAME_LOWER":
        return Sliding(kernel, stride, _same(shape, plain, lower=True), dilation, ceil_mode)
    pads = list(map(int, given.get("pads", ()) or (0,) * 2 * n))
    if auto != "NOTSET" or not any(pads):
        return plain
    pairs = tuple((pads[axis], pads[axis + n]) for axis in range(n))
    # torch's way to say it, where both sides are alike.
    alike = tuple(before for before, _ in pairs)
    padding: Any = alike if all(a == b for a, b in pairs) else pairs
    return Sliding(kernel, stride, padding, dilation, ceil_mode)


def _same(shape: tuple[int, ...], window: Sliding, lower: bool) -> tuple[tuple[int, int], ...]:
    """The padding that SAME stands for: an odd rest is behind, or before if ``lower``."""
    pairs = []
    for size, k, s, d in zip(shape, *window.sizes(len(shape)), strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((more, less) if lower else (less, more))
    return tuple(pairs)


def _name(node: Any) -> str:
    """The node's own name, or that of what it makes; exporters put the module's path in it."""
    return (node.name or node.output[0]).strip("/").replace("/", ".")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise PoolTypeError(f"an input of an ONNX model is an array, got {type(value).__name__}")
    return value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
