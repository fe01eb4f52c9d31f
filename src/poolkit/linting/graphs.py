"""Traps in an ONNX file: each looks at one pooling node of its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from ..errors import PoolValueError
from .traps import Finding, Trap, begins_behind, trap

__all__ = ["GRAPH_TRAPS", "PoolingNode", "lint_graph"]

GRAPH_TRAPS: dict[str, Trap] = {}
SLIDING = ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "NhwcMaxPool")
ON_INTEGERS = ("QLinear", "Nhwc")
"""How the names begin of ONNX Runtime's own operators on integers."""
POOLINGS = (
    *SLIDING,
    "GlobalMaxPool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "QLinearGlobalAveragePool",
)
FUSED = ("MaxPool", "AveragePool", "GlobalAveragePool")
"""What ONNX Runtime runs on integers, where both sides are quantized."""
INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
QUANTIZES = ("QuantizeLinear", "QLinear")
"""How the names begin of operators that make integers; of ONNX Runtime's own no type is known."""
PADDING = "Write the same window with explicit padding, as poolkit.export_onnx does"


@dataclass(frozen=True)
class PoolingNode:
    """A pooling node and what is around it.

    Attributes:
        operator, attributes: of the node.
        opset: the version of the operators of its domain.
        spatial: the sizes of its input's spatial axes; None for one that is not known.
        producer: the operator that made its input, or "".
        consumers: the operators that take its output.
        integers: whether its input is known to hold integers.
        quantized: whether the graph dequantizes anything.
    """

    operator: str
    attributes: dict[str, Any]
    opset: int
    spatial: tuple[int | None, ...] = ()
    producer: str = ""
    consumers: tuple[str, ...] = ()
    integers: bool = False
    quantized: bool = False

    def _each(self, name: str) -> list[int]:
        given: list[int] = self.attributes.get(name) or [1] * len(self.attributes["kernel_shape"])
        return given

    @property
    def is_same(self) -> bool:
        """Whether its padding is found by `auto_pad`, which leaves ceil_mode nothing to do."""
        return bool(self.attributes.get("auto_pad", b"").startswith(b"SAME"))

    @property
    def dilated(self) -> bool:
        pairs = zip(self._each("kernel_shape"), self._each("dilations"), strict=True)
        return any(k > 1 and d > 1 for k, d in pairs)

    def lone_window(self) -> bool:
        """Whether in ceil_mode a last window begins behind the input; True if that is unknown."""
        if not self.attributes.get("ceil_mode") or self.is_same:
            return False
        kernel, strides = self._each("kernel_shape"), self._each("strides")
        n = len(kernel)
        pads = self.attributes.get("pads") or [0] * 2 * n
        sizes: Sequence[int | None] = self.spatial or (None,) * n
        for size, k, stride, dilation, before, behind in zip(
            sizes, kernel, strides, self._each("dilations"), pads[:n], pads[n:], strict=True
        ):
            if size is None:
                return bool(before or behind or stride > k)
            if begins_behind(size, k, stride, dilation, before, behind):
                return True
        return False

    @property
    def between(self) -> bool:
        """Whether its input is dequantized, and its output quantized."""
        return self.producer == "DequantizeLinear" and set(self.consumers) == {"QuantizeLinear"}

    def counts_padding(self) -> bool:
        return bool(self.attributes.get("count_include_pad"))


@trap(GRAPH_TRAPS, "onnxruntime", mended="1.21.0", remedy=f"Update ONNX Runtime. {PADDING}")
def ceil_mode_shape(node: PoolingNode) -> str | None:
    if not node.lone_window():
        return None
    return (
        "with ceil_mode=1 a window that begins in the padding is left out by the standard, and "
        "kept by ONNX Runtime before 1.21"
    )


@trap(GRAPH_TRAPS, "onnxruntime", mended="1.29.0", remedy=f"Update ONNX Runtime. {PADDING}")
def ceil_mode_average(node: PoolingNode) -> str | None:
    if node.operator != "AveragePool" or node.opset >= 19:
        return None
    if not (node.attributes.get("ceil_mode") and node.counts_padding()):
        return None
    return (
        "with ceil_mode=1 and count_include_pad=1, before opset 19, ONNX Runtime before 1.29 "
        "divides by places that are not even padding"
    )


@trap(GRAPH_TRAPS, "onnxruntime", remedy=PADDING)
def quantized_ceil_mode_average(node: PoolingNode) -> str | None:
    fused = node.operator == "AveragePool" and node.between
    if node.operator != "QLinearAveragePool" and not fused:
        return None
    if not (node.attributes.get("ceil_mode") and node.counts_padding()):
        return None
    return (
        "with ceil_mode=1 and count_include_pad=1 QLinearAveragePool, which ONNX Runtime makes of "
        "an AveragePool between DequantizeLinear and QuantizeLinear, divides by places that are "
        "not even padding"
    )


@trap(GRAPH_TRAPS, "onnxruntime", remedy=PADDING)
def same_padding_forgets_dilations(node: PoolingNode) -> str | None:
    if node.operator not in SLIDING or not node.is_same or not node.dilated:
        return None
    auto = node.attributes["auto_pad"].decode()
    return (
        f"with auto_pad={auto} the standard gives ceil(size / stride) positions, and ONNX Runtime "
        "pads as if there were no dilations, and gives fewer"
    )


@trap(
    GRAPH_TRAPS,
    "onnxruntime",
    remedy="Put it between a DequantizeLinear and a QuantizeLinear, as MaxPool, AveragePool or "
    "GlobalAveragePool: these have kernels on integers",
)
def left_in_float(node: PoolingNode) -> str | None:
    if not node.quantized or node.integers or node.operator.startswith(ON_INTEGERS):
        return None
    if node.operator in FUSED and node.between:
        return None
    # A maximum may change places with the conversion in front of it.
    if node.operator == "MaxPool" and node.producer == "DequantizeLinear":
        return None
    return f"{node.operator} runs in float in a quantized graph, with a conversion on its way"


def lint_graph(path: Path, versions: dict[str, str]) -> list[Finding]:
    """The findings of all pooling nodes, in the order of the file: of the branches of an If, the
    bodies of Loop and Scan and the model's own functions too.

    Raises:
        PoolValueError: the file is missing or is no ONNX model.
    """
    model = _read(path)
    traps = [each for each in GRAPH_TRAPS.values() if each.exists_in(versions)]
    found = (each.finding(node, layer) for layer, node in _pooling_nodes(model) for each in traps)
    return [finding for finding in found if finding is not None]


def _read(path: Path) -> Any:
    """The model, without the weights that lie in other files: nothing here looks at them."""
    if path.is_dir():
        raise PoolValueError(f"{path} is a folder", "Give the .onnx file in it")
    if not path.is_file():
        raise PoolValueError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise PoolValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise _no_model(path) from error
    if not model.opset_import or not model.graph.output:  # an empty file is an empty message
        raise _no_model(path)
    return model


def _no_model(path: Path) -> PoolValueError:
    return PoolValueError(
        f"{path} is not an ONNX model",
        "An ONNX file is written by poolkit.export_onnx or torch.onnx.export; a .pt2 program is "
        "looked at as a module",
    )


def _pooling_nodes(model: Any) -> Iterator[tuple[str, PoolingNode]]:
    """All of a model, with where they are, in the order of the file."""
    model = _with_shapes(_inlined(model))
    bodies = (model.graph, *model.functions)
    quantized = any(node.op_type == "DequantizeLinear" for body in bodies for node in _all(body))
    yield from _Body(model.graph, "", _opsets(model), quantized).poolings()
    for function in model.functions:
        where = f" in function {function.name!r}"
        yield from _Body(function, where, _opsets(function), quantized).poolings()


class _Body:
    """The nodes of a graph, of a function, or of a graph that is a node's attribute, which may read
    what the graphs around it have."""

    def __init__(
        self, body: Any, where: str, opsets: dict[str, int], quantized: bool,
        outer: _Body | None = None,
    ) -> None:  # fmt: skip
        self.nodes, self.where, self.opsets, self.quantized = body.node, where, opsets, quantized
        self.within = list(_all(body))
        values = (*body.input, *body.value_info, *body.output)
        typed = [v for v in values if not isinstance(v, str)]  # those of a function are names
        self.shapes: dict[str, list[int | None]] = {} if outer is None else dict(outer.shapes)
        self.shapes |= {
            value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim]
            for value in typed
            if value.type.tensor_type.HasField("shape")
        }
        self.integers: set[str] = set() if outer is None else set(outer.integers)
        self.integers |= {v.name for v in typed if v.type.tensor_type.elem_type in INTEGERS}
        self.producers = {name: node.op_type for node in self.nodes for name in node.output}
        self.integers |= {name for name, op in self.producers.items() if op.startswith(QUANTIZES)}

    def poolings(self) -> Iterator[tuple[str, PoolingNode]]:
        for place, node in enumerate(self.nodes):
            words = f"node {node.name or place!r} ({node.op_type}){self.where}"
            if node.op_type in POOLINGS and not any(a.ref_attr_name for a in node.attribute):
                yield words, self._pooling(node)
            for name, graph in _graphs_of(node):
                where = f" in {name} of {words}"
                inner = _Body(graph, where, self.opsets, self.quantized, self)
                yield from inner.poolings()

    def _pooling(self, node: Any) -> PoolingNode:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        behind = node.op_type.startswith("Nhwc") or attributes.get("channels_last")
        shape = self.shapes.get(node.input[0], [])
        return PoolingNode(
            node.op_type,
            attributes,
            self.opsets.get(node.domain, 1),
            tuple(shape[1:-1] if behind else shape[2:]),
            self.producers.get(node.input[0], ""),
            tuple(other.op_type for other in self.within if node.output[0] in other.input),
            node.input[0] in self.integers,
            self.quantized,
        )


def _all(body: Any) -> Iterator[Any]:
    """Its nodes, and those of the graphs within."""
    for node in body.node:
        yield node
        for _, graph in _graphs_of(node):
            yield from _all(graph)


def _graphs_of(node: Any) -> Iterator[tuple[str, Any]]:
    """The branches of an If, the body of a Loop or a Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g


def _opsets(model: Any) -> dict[str, int]:
    return {entry.domain: entry.version for entry in model.opset_import}


def _inlined(model: Any) -> Any:
    """The model with its functions where they are called: their shapes and attributes are known
    there. Those of another opset than the model's stay functions."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _with_shapes(model: Any) -> Any:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # operators of other domains; what is known without them is enough
        return model
