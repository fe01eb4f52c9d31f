"""ONNX's pooling operators, attribute by attribute: one small node each, with its drawn input.

A case is a node and nothing more: `operator_runs` reads from its attributes what poolkit, torch and
the oracle would be asked for. Kernels have 3 positions along each axis and strides 2, where a case
does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..quantized import QParams

__all__ = ["CASES", "DOMAIN", "QPARAMS", "Case"]

DOMAIN = "com.microsoft"
FLOATS = ("float16", "bfloat16", "float64")
INTEGERS = ("int8", "uint8")
QPARAMS = QParams(0.1, 20)


@dataclass(frozen=True)
class Case:
    """One operator with its attributes.

    Attributes:
        operator, attributes: of the node.
        note: what the case is about.
        size: of each spatial axis.
        ndim: how many spatial axes there are.
        dtype: of the values.
        fill: changes the input, in place.
        constants: the inputs behind the first.
        output: which output is looked at.
    """

    operator: str
    note: str
    attributes: dict[str, Any] = field(default_factory=dict)
    size: int = 9
    ndim: int = 2
    dtype: str = "float32"
    fill: Callable[[np.ndarray], None] | None = None
    constants: tuple[np.ndarray, ...] = ()
    output: int = 0

    @property
    def domain(self) -> str:
        return DOMAIN if self.operator.startswith(("QLinear", "Nhwc")) else ""

    @property
    def channels_last(self) -> bool:
        return self.operator.startswith("Nhwc") or bool(self.attributes.get("channels_last"))

    def input(self) -> np.ndarray:
        """In `dtype`, but what is to be bfloat16 is float32, of which NumPy knows."""
        drawn = np.random.default_rng(0).standard_normal((1, 2, *(self.size,) * self.ndim))
        if self.dtype in INTEGERS:
            drawn = drawn * 20 + 60 * (self.dtype == "uint8")
        x = drawn.astype("float32" if self.dtype == "bfloat16" else self.dtype)
        if self.fill is not None:
            self.fill(x)
        return np.moveaxis(x, 1, -1).copy() if self.channels_last else x


def _broken(x: np.ndarray) -> None:
    x[..., 4, 4] = np.nan


def _infinite(x: np.ndarray) -> None:
    x[...] = -np.inf


def _sliding(
    operator: str, note: str, kernel: int = 3, stride: int = 2, *, ndim: int = 2, **given: Any
) -> Case:
    """Whatever is no field of a case is an attribute of the node."""
    fields = {name: given.pop(name) for name in tuple(given) if name in Case.__dataclass_fields__}
    box = {"kernel_shape": [kernel] * ndim, "strides": [stride] * ndim}
    return Case(operator, note, box | given, ndim=ndim, **fields)


EVEN, UNEVEN = [1, 1, 1, 1], [0, 1, 2, 1]  # before all axes, then behind


def _attributes(operator: str, **always: Any) -> Iterator[Case]:
    """What all sliding operators have."""

    def case(note: str, kernel: int = 3, stride: int = 2, **given: Any) -> Case:
        return _sliding(operator, note, kernel, stride, **always, **given)

    for axes, words in ((1, "one axis"), (2, "two axes"), (3, "three axes")):
        yield case(words, ndim=axes)
    yield case("one axis, pads, strides=1", 3, 1, ndim=1, pads=[1, 1])
    yield case("kernel_shape, strides uneven", kernel_shape=[3, 2], strides=[1, 3])
    yield case("pads", pads=EVEN)
    yield case("pads, strides=1", 3, 1, pads=EVEN)
    yield case("pads uneven", pads=UNEVEN)
    yield case("pads uneven, strides=1", 3, 1, pads=UNEVEN)
    if "dtype" not in always:  # there is no integer for a window of padding
        yield case("pads of the kernel's size", 3, 1, pads=[3, 3, 3, 3])
    for size in (9, 10):  # of 9 both sides get 1, of 10 one of them
        for side in ("SAME_UPPER", "SAME_LOWER"):
            yield case(f"auto_pad={side}, size {size}", auto_pad=side, size=size)
    yield case("auto_pad=VALID", auto_pad="VALID", size=10)
    yield case("auto_pad=NOTSET, pads", auto_pad="NOTSET", pads=EVEN)
    yield case("ceil_mode", 2, 2, ceil_mode=1)
    yield case("ceil_mode, pads", ceil_mode=1, pads=EVEN, size=8)
    yield case("ceil_mode, a window in the padding", 2, 3, ceil_mode=1, pads=EVEN, size=10)


def _dilated(operator: str, **always: Any) -> Iterator[Case]:
    yield _sliding(operator, "dilations", dilations=[2, 2], **always)
    yield _sliding(operator, "dilations, pads, ceil_mode", dilations=[2, 2], pads=EVEN,
                   ceil_mode=1, size=10, **always)  # fmt: skip
    yield _sliding(operator, "dilations, auto_pad=SAME_UPPER", dilations=[2, 2], size=10,
                   auto_pad="SAME_UPPER", **always)  # fmt: skip


def _indices() -> Iterator[Case]:
    """The second output of a MaxPool."""
    for axes, words in ((1, "one axis"), (2, "two axes"), (3, "three axes")):
        yield _sliding("MaxPool", f"Indices, {words}", output=1, ndim=axes)
    for note, given in (
        ("pads", {"pads": EVEN}),
        ("dilations", {"dilations": [2, 2]}),
        ("ceil_mode", {"ceil_mode": 1, "size": 8}),
        ("auto_pad=SAME_LOWER", {"auto_pad": "SAME_LOWER", "size": 10}),
        ("storage_order=0", {"storage_order": 0}),
        ("storage_order=1", {"storage_order": 1}),
    ):
        yield _sliding("MaxPool", f"Indices, {note}", output=1, **given)


def _typed(operator: str, dtypes: tuple[str, ...], **given: Any) -> Iterator[Case]:
    for dtype in dtypes:
        yield _sliding(operator, dtype, dtype=dtype, **given)


def _counted(operator: str, **always: Any) -> Iterator[Case]:
    """What means of a window have on top."""
    for count in (0, 1):
        for note, given in (
            ("pads", {"pads": EVEN}),
            ("pads uneven", {"pads": UNEVEN}),
            ("ceil_mode, pads", {"pads": EVEN, "ceil_mode": 1, "size": 8}),
            ("auto_pad=SAME_UPPER", {"auto_pad": "SAME_UPPER", "size": 10}),
        ):
            yield _sliding(operator, f"count_include_pad={count}, {note}",
                           count_include_pad=count, **given, **always)  # fmt: skip


def _global(operator: str, **attributes: Any) -> Iterator[Case]:
    for axes, words in ((1, "one axis"), (2, "two axes"), (3, "three axes")):
        yield Case(operator, words, attributes, ndim=axes)
    for dtype in FLOATS:
        yield Case(operator, dtype, attributes, dtype=dtype)


def _quantized(dtype: str) -> tuple[np.ndarray, ...]:
    """Scales and zero points, of the input and of the output."""
    point = QPARAMS.zero_point
    return 2 * (np.asarray(QPARAMS.scale, "float32"), np.asarray(point, dtype))


def _unpooling() -> Iterator[Case]:
    def case(
        note: str, kernel: int = 2, stride: int = 2, ndim: int = 2, out: int = 8, **given: Any
    ) -> Case:
        """Of 4 maxima along each axis, which a pooling of `out` positions has found."""
        shape = given.pop("output_shape", None)
        pad = given.get("pads", [0])[0]
        # Of each window the first position; the padding has none.
        first = [max(place * stride - pad, 0) for place in range(4)]
        plane = np.zeros(1, "int64")
        for _ in range(ndim):
            plane = np.add.outer(plane * out, first)
        planes = np.arange(2).reshape(2, *(1,) * ndim) * out**ndim
        constants = ((plane + planes)[None] if ndim else plane).reshape(1, 2, *(4,) * ndim)
        extra = () if shape is None else (np.array(shape, "int64"),)
        return _sliding("MaxUnpool", note, kernel, stride, ndim=ndim, size=4,
                        constants=(constants, *extra), **given)  # fmt: skip

    for axes, words in ((1, "one axis"), (2, "two axes"), (3, "three axes")):
        yield case(words, ndim=axes)
    yield case("strides=1", 2, 1, out=5)
    yield case("strides above the kernel", 2, 3, out=11)
    yield case("pads", 3, 2, out=7, pads=EVEN)
    yield case("output_shape", output_shape=[1, 2, 9, 9], out=9)
    yield case("output_shape, pads", 3, 2, output_shape=[1, 2, 8, 8], out=8, pads=EVEN)
    for dtype in FLOATS:
        yield case(dtype, dtype=dtype)


# Image, x1, y1, x2, y2: inside, beyond two sides, turned around, and of one point.
BOXES = np.array(
    [
        [0, 1.25, 2.125, 6.75, 7.875],
        [0, -3.5, 4.0, 5.0, 12.5],
        [0, 6.0, 6.0, 2.0, 3.0],
        [0, 4.0, 4.0, 4.0, 4.0],
    ],
    dtype=np.float32,
)  # numbers of all types


def _aligned() -> Iterator[Case]:
    def case(
        note: str, dtype: str = "float32", rows: int = 3, columns: int = 3, **given: Any
    ) -> Case:
        attributes = {"output_height": rows, "output_width": columns, **given}
        return Case("RoiAlign", note, attributes, dtype=dtype,
                    constants=(BOXES[:, 1:], BOXES[:, 0].astype("int64")))  # fmt: skip

    for mode in ("avg", "max"):
        for pixels in ("half_pixel", "output_half_pixel"):
            for ratio in (0, 1, 2):
                yield case(f"mode={mode}, {pixels}, sampling_ratio={ratio}", mode=mode,
                           coordinate_transformation_mode=pixels, sampling_ratio=ratio)  # fmt: skip
    yield case("no attribute", rows=1, columns=1)
    yield case("output_height, output_width", rows=2, columns=4)
    yield case("spatial_scale", spatial_scale=0.5)
    for dtype in FLOATS:
        yield case(dtype, dtype)


def _boxed() -> Iterator[Case]:
    given = {"pooled_shape": [3, 3]}
    yield Case("MaxRoiPool", "pooled_shape", given, constants=(BOXES,))
    yield Case("MaxRoiPool", "pooled_shape uneven", {"pooled_shape": [2, 4]}, constants=(BOXES,))
    yield Case("MaxRoiPool", "spatial_scale", given | {"spatial_scale": 0.5}, constants=(BOXES,))
    for dtype in FLOATS:
        yield Case("MaxRoiPool", dtype, given, dtype=dtype, constants=(BOXES,))


CASES: tuple[Case, ...] = (
    *_attributes("MaxPool"),
    *_dilated("MaxPool"),
    _sliding("MaxPool", "NaN", fill=_broken),
    _sliding("MaxPool", "nothing but -inf", fill=_infinite),
    _sliding("MaxPool", "nothing but -inf, one axis", fill=_infinite, ndim=1),
    *_typed("MaxPool", (*FLOATS, *INTEGERS)),
    *_indices(),
    *_attributes("AveragePool"),
    *_dilated("AveragePool"),
    *_counted("AveragePool"),
    _sliding("AveragePool", "NaN", fill=_broken),
    *_typed("AveragePool", FLOATS),
    *_attributes("LpPool", p=2),
    *_dilated("LpPool", p=2),
    *(_sliding("LpPool", f"p={p}", p=p) for p in (1, 3, 4)),
    *_typed("LpPool", FLOATS, p=2),
    *_global("GlobalMaxPool"),
    *_global("GlobalAveragePool"),
    *_global("GlobalLpPool", p=2),
    *(Case("GlobalLpPool", f"p={p}", {"p": p}) for p in (1, 3)),
    *_unpooling(),
    *_aligned(),
    *_boxed(),
    *_attributes("QLinearAveragePool", dtype="uint8", constants=_quantized("uint8")),
    *_counted("QLinearAveragePool", dtype="uint8", constants=_quantized("uint8")),
    *(
        _sliding("QLinearAveragePool", f"channels_last={last}, {dtype}", channels_last=last,
                 dtype=dtype, constants=_quantized(dtype))
        for last in (0, 1)
        for dtype in INTEGERS
    ),
    *(
        Case("QLinearGlobalAveragePool", f"channels_last={last}, {dtype}{words}",
             {"channels_last": last}, dtype=dtype, ndim=axes, constants=_quantized(dtype))
        for axes, words in ((2, ""), (1, ", one axis"), (3, ", three axes"))
        for last in (0, 1)
        for dtype in (INTEGERS if axes == 2 else ("uint8",))
    ),
    *_attributes("NhwcMaxPool", dtype="uint8"),
    *_dilated("NhwcMaxPool", dtype="uint8"),
    _sliding("NhwcMaxPool", "int8", dtype="int8"),
)  # fmt: skip
