"""Who runs a case of `operator_cases`: poolkit, torch, ONNX Runtime, ONNX's evaluator, the oracle.

poolkit and torch are asked for what the attributes say, and may refuse; both pad as the standard
lays down for `auto_pad`. The oracle is `poolkit.reference` for windows and plain loops for the
inverse of a maximum; for boxes it is poolkit in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

import poolkit

from .. import quantized
from ..reference import pool_reference, reduce_reference, sliding_positions
from .operator_cases import DOMAIN, QPARAMS, Case
from .operators import OPSET

__all__ = ["IN_NEWEST", "NEWEST", "RUNS", "expected"]

NEWEST = 22
"""In which ONNX last changed its poolings: they take bfloat16."""
Run = Callable[[Case, np.ndarray], Any]


@dataclass(frozen=True)
class Geometry:
    """The window of a case."""

    case: Case
    spatial: tuple[int, ...]

    def _each(self, name: str) -> tuple[int, ...]:
        return tuple(self.case.attributes.get(name, (1,) * len(self.spatial)))

    @property
    def kernel(self) -> tuple[int, ...]:
        return self._each("kernel_shape")

    @property
    def strides(self) -> tuple[int, ...]:
        return self._each("strides")

    @property
    def dilations(self) -> tuple[int, ...]:
        return self._each("dilations")

    @property
    def ceil(self) -> bool:
        return bool(self.case.attributes.get("ceil_mode"))

    @cached_property
    def pads(self) -> tuple[tuple[int, int], ...]:
        given, auto = self.case.attributes.get("pads"), self.case.attributes.get("auto_pad", "")
        n = len(self.spatial)
        if given is not None:
            return tuple(zip(given[:n], given[n:], strict=True))
        if not auto.startswith("SAME"):
            return ((0, 0),) * n
        pairs = []
        for size, k, s, d in zip(
            self.spatial, self.kernel, self.strides, self.dilations, strict=True
        ):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pairs.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return tuple(pairs)

    @property
    def even_pads(self) -> tuple[Any, ...]:
        """One number for each axis; pairs where both sides are not the same."""
        if all(before == behind for before, behind in self.pads):
            return tuple(before for before, _ in self.pads)
        return self.pads

    @property
    def window(self) -> Any:
        return poolkit.Sliding(self.kernel, self.strides, self.pads, self.dilations, self.ceil)


def _geometry(case: Case, x: Any) -> Geometry:
    spatial = x.shape[1:-1] if case.channels_last else x.shape[2:]
    return Geometry(case, tuple(spatial))


def _counts(case: Case) -> bool:
    return bool(case.attributes.get("count_include_pad"))


def _is_global(case: Case) -> bool:
    return "Global" in case.operator


# --- poolkit -------------------------------------------------------------------------------------


def _by_poolkit(case: Case, x: np.ndarray) -> np.ndarray:
    if case.dtype == "bfloat16":
        found = _poolkit(case, torch.from_numpy(x).bfloat16())
        return np.asarray(found.float())
    return np.asarray(_poolkit(case, x))


def _poolkit(case: Case, x: Any) -> Any:
    given = case.attributes
    if case.operator == "RoiAlign":
        return _roi_align(case, x)
    if case.operator == "MaxRoiPool":
        (boxes,) = case.constants
        return poolkit.roi_pool(
            x, _alike(boxes, x), given["pooled_shape"], given.get("spatial_scale", 1.0)
        )
    window = poolkit.Global() if _is_global(case) else _geometry(case, x).window
    if case.operator == "MaxUnpool":
        return _unpooled(poolkit, case, x)
    layout: dict[str, Any] = {"ndim": case.ndim, "channels_last": case.channels_last}
    if case.output:
        order: dict[str, Any] = {"storage_order": 1} if given.get("storage_order") else {}
        return _in_all(x, poolkit.pool_with_indices(x, window, **layout, **order)[1])
    if case.operator.startswith("QLinear"):
        reduction = poolkit.Mean(count_include_pad=_counts(case))
        return quantized.pool(x, window, reduction, qparams=QPARAMS, **layout)
    return poolkit.pool(x, window, _reduction(case), **layout)


def _reduction(case: Case) -> Any:
    if "Lp" in case.operator:
        return poolkit.Lp(case.attributes["p"])
    if "Max" in case.operator:
        return poolkit.Max()
    return poolkit.Mean(count_include_pad=_counts(case))


def _roi_align(case: Case, x: Any) -> Any:
    given, (boxes, images) = case.attributes, case.constants
    return poolkit.roi_align(
        x,
        _alike(np.concatenate([images[:, None], boxes], 1).astype(boxes.dtype), x),
        (given["output_height"], given["output_width"]),
        given.get("spatial_scale", 1.0),
        given.get("sampling_ratio", 0),
        given.get("coordinate_transformation_mode", "half_pixel") == "half_pixel",
        "mean" if given.get("mode", "avg") == "avg" else "onnx_max",
    )


def _alike(values: np.ndarray, x: Any) -> Any:
    """Boxes of the type of the maps."""
    return torch.from_numpy(values).to(x) if isinstance(x, torch.Tensor) else values.astype(x.dtype)


def _unpooled(library: Any, case: Case, x: Any) -> Any:
    """By ``max_unpool{n}d``, whose indices are those of one plane; the output size is needed for
    these, and is what ONNX would infer."""
    indices, *rest = case.constants
    geometry = _geometry(case, x)
    size = _unpooled_size(geometry) if not rest else tuple(map(int, rest[0][2:]))
    planes = np.arange(2).reshape(1, 2, *(1,) * case.ndim) * math.prod(size)
    within: Any = indices - planes
    within = torch.from_numpy(within) if isinstance(x, torch.Tensor) else within
    unpool = getattr(library, f"max_unpool{case.ndim}d")
    return unpool(x, within, geometry.kernel, geometry.strides, geometry.even_pads, size)


def _unpooled_size(geometry: Geometry) -> tuple[int, ...]:
    return tuple(
        (size - 1) * s + k - sum(pair)
        for size, k, s, pair in zip(
            geometry.spatial, geometry.kernel, geometry.strides, geometry.pads, strict=True
        )
    )


def _in_all(x: Any, indices: Any) -> Any:
    """Positions in a plane as positions in the whole input."""
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    return np.asarray(indices) + planes * math.prod(x.shape[2:])


# --- torch ---------------------------------------------------------------------------------------


def _by_torch(case: Case, x: np.ndarray) -> Any:
    given = torch.from_numpy(x)
    if case.dtype == "bfloat16":
        return np.asarray(_torch(case, given.bfloat16()).float())
    return np.asarray(_torch(case, given))


def _torch(case: Case, x: torch.Tensor) -> Any:
    if _is_global(case):
        over = tuple(range(2, x.ndim))
        if case.operator == "GlobalLpPool":
            return torch.linalg.vector_norm(x, case.attributes["p"], over, keepdim=True)
        if case.operator == "GlobalMaxPool":
            return x.amax(over, keepdim=True)
        if case.operator == "GlobalAveragePool":
            return x.mean(over, keepdim=True)
        over = tuple(range(1, x.ndim - 1)) if case.channels_last else over
        return _stored(_torch_quantized(x).mean(over, keepdim=True))
    if case.operator == "MaxUnpool":
        return _unpooled(F, case, x)
    if "Roi" in case.operator:
        return getattr(F, {"RoiAlign": "roi_align", "MaxRoiPool": "roi_pool"}[case.operator])(x)
    geometry = _geometry(case, x)
    options: dict[str, Any] = {
        "kernel_size": geometry.kernel if case.ndim > 1 else geometry.kernel[0],
        "stride": geometry.strides,
        "ceil_mode": geometry.ceil,
    }
    if any(map(any, geometry.pads)):
        options["padding"] = geometry.even_pads
    if any(d > 1 for d in geometry.dilations):
        options["dilation"] = geometry.dilations
    if case.output:
        order = {"storage_order": 1} if case.attributes.get("storage_order") else {}
        largest = getattr(F, f"max_pool{case.ndim}d")
        return _in_all(x, largest(x, return_indices=True, **options, **order)[1])
    if "Average" in case.operator:
        options["count_include_pad"] = _counts(case)
    if case.operator == "LpPool":
        options["norm_type"] = float(case.attributes["p"])
    kind = {"MaxPool": "max", "NhwcMaxPool": "max", "LpPool": "lp"}.get(case.operator, "avg")
    pool = getattr(F, f"{kind}_pool{case.ndim}d")
    if case.channels_last:
        x = x.movedim(-1, 1)
    if case.operator.startswith("QLinear"):
        pooled = _stored(pool(_torch_quantized(x), **options))
    else:
        pooled = pool(x, **options)
    return pooled.movedim(1, -1) if case.channels_last else pooled


def _torch_quantized(q: torch.Tensor) -> torch.Tensor:
    """A quantized tensor of torch's own of the same integers."""
    kind = {torch.int8: torch.qint8, torch.uint8: torch.quint8}[q.dtype]
    real = (q.double() - QPARAMS.zero_point) * QPARAMS.scale
    return torch.quantize_per_tensor(real.float(), QPARAMS.scale, QPARAMS.zero_point, kind)


def _stored(q: torch.Tensor) -> torch.Tensor:
    return q.int_repr()


# --- ONNX ----------------------------------------------------------------------------------------


def _model(case: Case, x: np.ndarray, opset: int) -> Any:
    """A file of one node; NumPy has no bfloat16, so that is made of float32 around the node."""
    half = case.dtype == "bfloat16"
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    inside = TensorProto.BFLOAT16 if half else kind
    constants = {
        f"constant_{place}": _as_declared(case, place) for place in range(len(case.constants))
    }
    outputs = ["values", "indices"][: case.output + 1]
    nodes = [
        helper.make_node(
            case.operator, ["given", *constants], outputs, domain=case.domain, **case.attributes
        )
    ]
    nodes.insert(0, helper.make_node("Cast", ["x"], ["given"], to=inside))
    last = outputs[-1]
    result = TensorProto.INT64 if case.output else kind
    nodes.append(helper.make_node("Cast", [last], ["y"], to=result))
    made = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", result, None)],
        list(constants.values()),
    )
    opsets = [helper.make_opsetid("", NEWEST if half else opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _as_declared(case: Case, place: int) -> Any:
    """A constant; boxes are of the type of the maps."""
    name, value = f"constant_{place}", case.constants[place]
    if "Roi" not in case.operator or value.dtype != np.float32:
        return numpy_helper.from_array(value, name)
    if case.dtype == "bfloat16":
        return helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, value.flatten())
    return numpy_helper.from_array(value.astype(case.dtype), name)


def _by_onnxruntime(case: Case, x: np.ndarray, opset: int = OPSET) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        _model(case, x, opset).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def _by_evaluator(case: Case, x: np.ndarray) -> Any:
    from onnx.reference import ReferenceEvaluator

    return next(iter(ReferenceEvaluator(_model(case, x, OPSET)).run(None, {"x": x})))


RUNS: dict[str, Run] = {
    "poolkit": _by_poolkit,
    "torch": _by_torch,
    "ONNX Runtime": _by_onnxruntime,
    "reference": _by_evaluator,
}
IN_NEWEST: dict[str, Run] = {"ONNX Runtime": partial(_by_onnxruntime, opset=NEWEST)}
"""Where the version of the operators makes a difference."""


# --- the oracle ----------------------------------------------------------------------------------


def expected(case: Case, x: np.ndarray) -> np.ndarray:
    """What the standard says, in float64 or in whole numbers."""
    if "Roi" in case.operator:
        return np.asarray(_poolkit(_wide(case), x.astype("float64")))
    if case.operator == "MaxUnpool":
        return _unpooled_by_loop(case, x)
    if case.channels_last:
        x = np.moveaxis(x, -1, 1)
    if _is_global(case):
        axes = [sliding_positions(size, size, 1, 0, 0) for size in x.shape[2:]]
    else:
        geometry = _geometry(case, np.moveaxis(x, 1, -1) if case.channels_last else x)
        axes = [
            sliding_positions(size, k, s, *pair, d, geometry.ceil)
            for size, k, s, pair, d in zip(
                geometry.spatial, geometry.kernel, geometry.strides, geometry.pads,
                geometry.dilations, strict=True,
            )
        ]  # fmt: skip
    if case.output:
        return _located(case, x, axes)
    if case.operator.startswith("QLinear"):
        real = (x.astype("float64") - QPARAMS.zero_point) * QPARAMS.scale
        mean = _pooled(case, real, axes)
        found = np.rint(mean / QPARAMS.scale) + QPARAMS.zero_point
        low, high = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
        pooled = found.clip(low, high)
    else:
        pooled = _pooled(case, x.astype("float64"), axes)
    return np.moveaxis(pooled, 1, -1) if case.channels_last else pooled


def _wide(case: Case) -> Case:
    wide = tuple(c.astype("float64") if c.dtype == np.float32 else c for c in case.constants)
    return Case(case.operator, case.note, case.attributes, constants=wide)


def _pooled(case: Case, x: np.ndarray, axes: Any) -> np.ndarray:
    reduction = _reduction(case)
    options = {"Lp": {"p": getattr(reduction, "p", 2)}, "Max": {}}.get(
        type(reduction).__name__, {"count_include_pad": _counts(case)}
    )

    def reduce(values: list[Any], padded: int) -> Any:
        found = reduce_reference(type(reduction).__name__, values, padded, **options)
        return -math.inf if found is None else found

    return pool_reference(x, axes, reduce).astype("float64")


def _located(case: Case, x: np.ndarray, axes: Any) -> np.ndarray:
    """Positions in the whole input, row by row or (storage_order=1) column by column."""
    places = np.arange(x.size).reshape(x.shape)
    found = pool_reference(
        places, axes, lambda seen, _: max(seen, key=lambda place: (x.flat[place], -place))
    ).astype("int64")
    if not case.attributes.get("storage_order"):
        return found
    planes = x.shape[:2]
    table = np.stack(
        [np.arange(places[plane].size).reshape(places[plane].shape, order="F") + places[plane].min()
         for plane in itertools.product(*map(range, planes))]
    )  # fmt: skip
    return np.asarray(table.flatten()[found])


def _unpooled_by_loop(case: Case, x: np.ndarray) -> np.ndarray:
    indices, *rest = case.constants
    size = tuple(rest[0]) if rest else (*x.shape[:2], *_unpooled_size(_geometry(case, x)))
    out = np.zeros(size)
    for value, place in zip(x.flat, indices.flat, strict=True):
        out.flat[place] = value
    return out
