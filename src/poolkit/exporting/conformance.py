"""The page of what ONNX's pooling operators do where: ``python -m poolkit.exporting.conformance``.

Each case is one operator with attributes that say the same in poolkit and in torch, on one drawn
input. It is run by ONNX Runtime and by ONNX's own evaluator, as they are, and by torch; what is
stated is the largest difference from poolkit's result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

import poolkit

from ..quantized import QParams, avg_pool2d
from .operators import OPSET

__all__ = ["CASES", "Case", "markdown_page"]

QUANTIZED = QParams(0.1, 20)


@dataclass(frozen=True)
class Case:
    """One operator with its attributes.

    Attributes:
        operator, attributes: of the ONNX node.
        poolkit, torch: functions of the input; torch's is None where it has no such pooling.
        note: the attribute that the case is about.
        size: of both spatial axes.
        dtype: of the input.
        ndim: how many spatial axes there are.
        fill: changes the input, in place.
        constants: the inputs behind the first.
    """

    operator: str
    note: str
    poolkit: Callable[[Any], Any]
    torch: Callable[[Any], Any] | None
    attributes: dict[str, Any] = field(default_factory=dict)
    size: int = 9
    dtype: str = "float32"
    ndim: int = 2
    fill: Callable[[Any], None] | None = None
    constants: tuple[Any, ...] = ()

    def input(self) -> np.ndarray:
        drawn = np.random.default_rng(0).standard_normal((1, 2, *(self.size,) * self.ndim))
        x = (drawn * 20 if self.dtype in ("int8", "uint8") else drawn).astype(self.dtype)
        if self.fill is not None:
            self.fill(x)
        return x


def _sliding(
    operator: str,
    note: str,
    kernel: int,
    stride: int,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    *,
    ceil: bool = False,
    dilation: int = 1,
    reduction: Any = "max",
    torch_pool: Callable[[Any], Any] | None = None,
    ndim: int = 2,
    **options: Any,
) -> Case:
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * ndim, "strides": [stride] * ndim}
    n = len(pads) // 2
    pads = pads if n == ndim else (pads[0],) * 2 * ndim
    if any(pads):
        attributes["pads"] = list(pads)
    if dilation > 1:
        attributes["dilations"] = [dilation] * ndim
    if ceil:
        attributes["ceil_mode"] = 1
    pairs = tuple(zip(pads[:ndim], pads[ndim:], strict=True))
    window = poolkit.Sliding(kernel, stride, pairs, dilation, ceil)
    attributes |= options.pop("more", {})
    return Case(
        operator,
        note,
        lambda x: poolkit.pool(x, window, reduction, ndim=ndim),
        torch_pool,
        attributes,
        ndim=ndim,
        **options,
    )


def _broken(x: Any) -> None:
    x[..., 4, 4] = np.nan


def _infinite(x: Any) -> None:
    x[...] = -np.inf


EVEN, SOME = (1, 1, 1, 1), (0, 1, 2, 1)  # begins of all axes, then ends
COUNTED, NOT_COUNTED = {"count_include_pad": 1}, {"count_include_pad": 0}
WITHOUT = poolkit.Mean(count_include_pad=False)


def _mean(count: bool, **options: Any) -> Callable[[Any], Any]:
    return lambda x: F.avg_pool2d(x, 3, 2, count_include_pad=count, **options)


def _largest(*options: Any, **more: Any) -> Callable[[Any], Any]:
    return lambda x: F.max_pool2d(x, *options, **more)


# Image, x1, y1, x2, y2: inside, beyond two sides, turned around, and of one point.
BOXES = np.array(
    [[0, 1.2, 2.1, 6.7, 7.9], [0, -3.5, 4.0, 5.0, 12.5], [0, 6.0, 6.0, 2.0, 3.0], [0, 4, 4, 4, 4]],
    dtype=np.float32,
)
GLOBAL: tuple[tuple[str, Any, Any], ...] = (
    ("GlobalMaxPool", "max", torch.amax),
    ("GlobalAveragePool", "mean", torch.mean),
    ("GlobalLpPool", "Lp(2)", None),
)
QLINEAR: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("count_include_pad=0", NOT_COUNTED, {"count_include_pad": False}),
    ("count_include_pad=1", COUNTED, {}),
    (
        "ceil_mode, count_include_pad=0",
        {"ceil_mode": 1, **NOT_COUNTED},
        {"count_include_pad": False, "ceil_mode": True},
    ),
    ("ceil_mode, count_include_pad=1", {"ceil_mode": 1, **COUNTED}, {"ceil_mode": True}),
)
CASES: list[Case] = [
    _sliding("MaxPool", "strides", 3, 2, torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "pads", 3, 2, EVEN, torch_pool=_largest(3, 2, 1)),
    _sliding("MaxPool", "pads, stride 1", 3, 1, EVEN, torch_pool=_largest(3, 1, 1)),
    _sliding("MaxPool", "pads, uneven", 3, 2, SOME),
    _sliding("MaxPool", "pads, uneven, stride 1", 3, 1, SOME),
    _sliding("MaxPool", "pads of the kernel's size", 3, 1, (3, 3, 3, 3)),
    _sliding("MaxPool", "dilations", 3, 2, dilation=2, torch_pool=_largest(3, 2, 0, 2)),
    _sliding("MaxPool", "ceil_mode", 2, 2, ceil=True, torch_pool=_largest(2, 2, ceil_mode=True)),
    _sliding("MaxPool", "ceil_mode, last window in the padding", 2, 3, (1, 1, 1, 1), ceil=True,
             size=10, torch_pool=_largest(2, 3, 1, ceil_mode=True)),
    _sliding("MaxPool", "one axis, pads, stride 1", 3, 1, (1, 1), ndim=1,
             torch_pool=lambda x: F.max_pool1d(x, 3, 1, 1)),
    _sliding("MaxPool", "three axes", 2, 2, (0,) * 6, ndim=3,
             torch_pool=lambda x: F.max_pool3d(x, 2, 2)),
    _sliding("MaxPool", "NaN", 3, 2, fill=_broken, torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "nothing but -inf", 3, 2, fill=_infinite, torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "nothing but -inf, one axis", 3, 2, (0, 0), ndim=1, fill=_infinite,
             torch_pool=lambda x: F.max_pool1d(x, 3, 2)),
    _sliding("MaxPool", "int8", 3, 2, dtype="int8", torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "uint8", 3, 2, dtype="uint8", torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "float64", 3, 2, dtype="float64", torch_pool=_largest(3, 2)),
    _sliding("MaxPool", "float16", 3, 2, dtype="float16", torch_pool=_largest(3, 2)),
    _sliding("AveragePool", "strides", 3, 2, reduction="mean", torch_pool=_mean(True)),
    _sliding("AveragePool", "count_include_pad=0", 3, 2, EVEN, reduction=WITHOUT,
             more=NOT_COUNTED, torch_pool=_mean(False, padding=1)),
    _sliding("AveragePool", "count_include_pad=1", 3, 2, EVEN, reduction="mean", more=COUNTED,
             torch_pool=_mean(True, padding=1)),
    _sliding("AveragePool", "pads, uneven", 3, 2, SOME, reduction=WITHOUT),
    _sliding("AveragePool", "dilations", 3, 2, dilation=2, reduction="mean"),
    _sliding("AveragePool", "ceil_mode, count_include_pad=0", 3, 2, EVEN, ceil=True, size=8,
             reduction=WITHOUT, torch_pool=_mean(False, padding=1, ceil_mode=True)),
    _sliding("AveragePool", "ceil_mode, count_include_pad=1", 3, 2, EVEN, ceil=True, size=8,
             reduction="mean", more=COUNTED,
             torch_pool=_mean(True, padding=1, ceil_mode=True)),
    _sliding("AveragePool", "NaN", 3, 2, fill=_broken, reduction="mean", torch_pool=_mean(True)),
    _sliding("AveragePool", "float64", 3, 2, reduction="mean", dtype="float64",
             torch_pool=_mean(True)),
    _sliding("AveragePool", "float16", 3, 2, reduction="mean", dtype="float16",
             torch_pool=_mean(True)),
    _sliding("LpPool", "p=1", 3, 2, reduction=poolkit.Lp(1), more={"p": 1},
             torch_pool=lambda x: F.lp_pool2d(x, 1.0, 3, 2)),
    _sliding("LpPool", "p=2", 3, 2, reduction=poolkit.Lp(2), more={"p": 2},
             torch_pool=lambda x: F.lp_pool2d(x, 2.0, 3, 2)),
    _sliding("LpPool", "p=3", 3, 2, reduction=poolkit.Lp(3), more={"p": 3},
             torch_pool=lambda x: F.lp_pool2d(x, 3.0, 3, 2)),
    _sliding("LpPool", "pads", 3, 2, EVEN, reduction=poolkit.Lp(2), more={"p": 2}),
    _sliding("LpPool", "dilations", 3, 2, dilation=2, reduction=poolkit.Lp(2), more={"p": 2}),
    _sliding("LpPool", "ceil_mode", 3, 2, ceil=True, size=8, reduction=poolkit.Lp(2),
             more={"p": 2}, torch_pool=lambda x: F.lp_pool2d(x, 2.0, 3, 2, ceil_mode=True)),
    *(
        Case(
            operator,
            f"{ndim} {'axis' if ndim == 1 else 'axes'}",
            partial(poolkit.pool, window="Global()", reduction=reduction, ndim=ndim),
            reduce and partial(reduce, dim=tuple(range(-ndim, 0)), keepdim=True),
            {"p": 2} if operator == "GlobalLpPool" else {},
            ndim=ndim,
        )
        for operator, reduction, reduce in GLOBAL
        for ndim in (1, 2, 3)
    ),
    *(
        Case(
            "QLinearAveragePool",
            note,
            partial(avg_pool2d, kernel_size=3, stride=2, padding=1, qparams=QUANTIZED, **options),
            None,
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], **attributes},
            size=8,
            dtype="uint8",
            constants=2 * (np.float32(QUANTIZED.scale), np.uint8(QUANTIZED.zero_point)),
        )
        for note, attributes, options in QLINEAR
    ),
    *(
        Case(
            "RoiAlign",
            f"mode={mode}, {mode_of_pixels}, sampling_ratio={ratio}",
            partial(poolkit.roi_align, boxes=BOXES, output_size=3, sampling_ratio=ratio,
                    aligned=aligned, reduction=reduction),
            None,
            {"mode": mode, "output_height": 3, "output_width": 3, "sampling_ratio": ratio,
             "coordinate_transformation_mode": mode_of_pixels},
            constants=(BOXES[:, 1:], BOXES[:, 0].astype(np.int64)),
        )
        for mode, reduction in (("avg", "mean"), ("max", "onnx_max"))
        for mode_of_pixels, aligned in (("half_pixel", True), ("output_half_pixel", False))
        for ratio in (0, 2)
    ),
    Case("MaxRoiPool", "pooled_shape", partial(poolkit.roi_pool, boxes=BOXES, output_size=3), None,
         {"pooled_shape": [3, 3]}, constants=(BOXES,)),
]  # fmt: skip


def _model(case: Case, x: np.ndarray) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    domain = "com.microsoft" if case.operator.startswith("QLinear") else ""
    constants = {f"constant_{place}": value for place, value in enumerate(case.constants)}
    node = helper.make_node(
        case.operator, ["x", *constants], ["y"], domain=domain, **case.attributes
    )
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _by_onnxruntime(case: Case, x: np.ndarray) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        _model(case, x).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def _by_reference(case: Case, x: np.ndarray) -> Any:
    from onnx.reference import ReferenceEvaluator

    return next(iter(ReferenceEvaluator(_model(case, x)).run(None, {"x": x})))


def _by_torch(case: Case, x: np.ndarray) -> Any:
    assert case.torch is not None
    return case.torch(torch.from_numpy(x)).numpy()


def _compared(run: Callable[[Case, np.ndarray], Any], case: Case) -> str:
    """What is different from poolkit's result, in few words."""
    x = case.input()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        wanted = case.poolkit(x)
        try:
            found = np.asarray(run(case, x))
        except Exception:
            return "unsupported"
    if found.shape != wanted.shape:
        return f"shape {found.shape[2:]}, not {wanted.shape[2:]}"
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if (np.isnan(a) != np.isnan(b)).any():
        return f"{np.isnan(a).sum()} NaN, not {np.isnan(b).sum()}"
    if (np.isinf(a) != np.isinf(b)).any():
        return "finite, not infinite"
    finite = np.isfinite(a)
    apart = np.abs(a[finite] - b[finite]).max(initial=0.0)
    largest = np.abs(b[finite]).max(initial=1.0)
    step = 8 * np.finfo(wanted.dtype).eps * largest if wanted.dtype.kind == "f" else 1
    return "equal" if apart <= step else f"differs by {apart:.2g}"


INTRODUCTION = """\
# ONNX's pooling operators, where they are run

What `python -m poolkit.exporting.conformance > docs/onnx.md` prints: each operator with the
attribute named, run by ONNX Runtime {onnxruntime}, by the reference evaluator of onnx {onnx} and by
torch {torch}, against poolkit. *Equal* is up to rounding (of 8-bit means up to one step);
*unsupported* is refused or raises; a dash is what has no counterpart.

`poolkit.export_onnx` stays with what ONNX Runtime does as poolkit does: it writes padding for
`ceil_mode`, `Pad` for padding as large as the kernel, and whole-array operations for what no
operator says. The evaluator that checks its files has a `MaxPool` and a `GlobalMaxPool` that are
mended. What becomes of a NaN is up to the runtime.
"""


def markdown_page() -> str:
    """What `docs/onnx.md` holds."""
    names = {package: version(package) for package in ("onnxruntime", "onnx")}
    names["torch"] = torch.__version__.partition("+")[0]
    lines = [
        INTRODUCTION.format(**names),
        "| operator | attribute | torch | ONNX Runtime | reference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        theirs = "–" if case.torch is None else _compared(_by_torch, case)
        quantized = case.operator.startswith("QLinear")  # of ONNX Runtime alone
        reference = "–" if quantized else _compared(_by_reference, case)
        cells = (
            f"`{case.operator}`",
            case.note,
            theirs,
            _compared(_by_onnxruntime, case),
            reference,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_page(), end="")
