"""Geometry: output shapes, spans, receptive fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from examples import SHAPES, WINDOWS
from hypothesis import given
from hypothesis import strategies as st
from oracle import positions_of

import poolkit
from poolkit.windows import (
    Adaptive,
    Global,
    Pyramid,
    ReceptiveField,
    Sliding,
    Spans,
    Window,
)

# --- output shapes by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "shape", "want"),
    [
        (Sliding(3, stride=2, padding=1), (56, 56), (28, 28)),
        (Sliding(3, stride=2, padding=1, ceil_mode=True), (56, 56), (29, 29)),
        (Sliding(2), (7, 7), (3, 3)),
        (Sliding(2, ceil_mode=True), (7, 7), (4, 4)),
        (Sliding(3, stride=2), (112, 111), (55, 55)),
        (Sliding(3, stride=1, dilation=2), (7,), (3,)),
        (Sliding(2, padding=((3, 4),)), (5,), (6,)),
        (Sliding((2, 3), stride=(1, 2), padding=(0, 1)), (4, 6), (3, 3)),
        (Sliding(2, stride=3, padding=1, ceil_mode=True), (4,), (2,)),
        (Sliding(3, padding="valid"), (8, 8), (2, 2)),
        (Sliding(3, stride=2, padding="same"), (5, 6), (3, 3)),
        (Sliding(5, stride=3, padding="same", dilation=2), (7,), (3,)),
        (Adaptive(7), (20, 5), (7, 7)),
        (Adaptive((7, None)), (20, 5), (7, 5)),
        (Adaptive(0), (20,), (0,)),
        (Global(), (7, 9, 2), (1, 1, 1)),
        (Pyramid((4, 2, 1)), (13, 9), (21,)),
        (Pyramid(((2, 3), 1)), (13, 9), (7,)),
        (Pyramid(((2, None),)), (13, 9), (18,)),
    ],
    ids=str,
)
def test_output_shape(window: Window, shape: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert window.output_shape(shape) == want
    x = np.zeros((2, 3, *shape), dtype=np.float32)
    assert poolkit.pool(x, window, "max").shape == (2, 3, *want)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "before", "after"),
    [
        # (ceil(size / stride) - 1) * stride + reach - size positions, an odd rest behind.
        (5, 3, 2, 1, 1, 1),
        (6, 3, 2, 1, 0, 1),
        (6, 2, 1, 1, 0, 1),
        (7, 4, 2, 1, 1, 2),
        (6, 3, 3, 1, 0, 0),
        (8, 2, 3, 1, 0, 0),
        (6, 3, 1, 2, 2, 2),
        (4, 1, 2, 1, 0, 0),
        (1, 5, 1, 1, 2, 2),
    ],
)
def test_same_pads_as_tensorflow_and_onnx(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int
) -> None:
    """TensorFlow's SAME, ONNX's SAME_UPPER."""
    window = Sliding(kernel, stride, "same", dilation)
    (spans,) = window.axes((size,))
    pairs = Sliding(kernel, stride, ((before, after),), dilation)
    (padded,) = pairs.axes((size,))
    for attribute in ("begin", "count", "padded"):
        np.testing.assert_array_equal(getattr(spans, attribute), getattr(padded, attribute))
    assert len(spans.begin) == -(-size // stride)


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 9),
    pad=st.integers(0, 4),
    dilation=st.integers(1, 3),
    ceil_mode=st.booleans(),
)
def test_sliding_windows_are_torchs(
    size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool
) -> None:
    torch = pytest.importorskip("torch")
    if pad > kernel // 2 or (kernel - 1) * dilation + 1 > size + 2 * pad:
        return
    x = torch.arange(float(size))[None]
    want = torch.nn.functional.max_pool1d(x, kernel, stride, pad, dilation, ceil_mode)
    window = Sliding(kernel, stride, pad, dilation, ceil_mode)
    assert window.output_shape((size,)) == tuple(want.shape[1:])


@given(size=st.integers(1, 60), bins=st.integers(0, 70))
def test_adaptive_bins_are_torchs(size: int, bins: int) -> None:
    torch = pytest.importorskip("torch")
    (spans,) = Adaptive(bins).axes((size,))
    if bins == 0:
        assert len(spans.begin) == 0
        return
    x = torch.arange(float(size), dtype=torch.float64)[None]
    last = torch.nn.functional.adaptive_max_pool1d(x, bins)[0].numpy()
    first = -torch.nn.functional.adaptive_max_pool1d(-x, bins)[0].numpy()
    np.testing.assert_array_equal(spans.begin, first)
    np.testing.assert_array_equal(spans.begin + spans.count - 1, last)


# --- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
def test_spans_are_the_oracles(axes: int, window: Window) -> None:
    shape = SHAPES[axes][2:]
    for grid in window.grids():
        for spans, wanted in zip(grid.axes(shape), positions_of(grid, shape), strict=True):
            assert len(spans.begin) == len(wanted)
            for begin, count, padded, window_seen in zip(
                spans.begin, spans.count, spans.padded, wanted, strict=True
            ):
                seen = [int(begin) + t * spans.step for t in range(int(count))]
                assert seen == [p for p, padding in window_seen if not padding]
                assert padded == len(window_seen)


@pytest.mark.parametrize(("axes", "window"), WINDOWS, ids=str)
def test_transposed_spans(axes: int, window: Window) -> None:
    """Output o sees input i exactly if the transpose's output i sees input o."""

    def pairs(spans: Spans) -> set[tuple[int, int]]:
        return {
            (o, int(spans.begin[o]) + t * spans.step)
            for o in range(len(spans.begin))
            for t in range(int(spans.count[o]))
        }

    for grid in window.grids():
        for spans in grid.axes(SHAPES[axes][2:]):
            back = spans.transposed()
            assert back.size == len(spans.begin)
            assert len(back.begin) == spans.size
            assert pairs(spans) == {(o, i) for i, o in pairs(back)}


def test_output_shapes_of_every_example() -> None:
    for axes, window in WINDOWS:
        shape = SHAPES[axes][2:]
        x = np.zeros(SHAPES[axes], dtype=np.float32)
        assert poolkit.pool(x, window, "sum").shape == (
            *SHAPES[axes][:2],
            *window.output_shape(shape),
        )


def test_shapes_and_sizes_may_be_symbols() -> None:
    """Shape arithmetic only: what a tracer puts in place of a size goes through."""

    class Size(int):
        """An integer of a class of its own, as a tracer's symbols are."""

    assert Sliding(3, stride=2, padding=1).output_shape((Size(56),)) == (28,)
    assert Adaptive((None, 2)).output_shape((Size(5), Size(9))) == (5, 2)


# --- receptive fields ----------------------------------------------------------------------------


def test_receptive_field_of_a_stem_by_hand() -> None:
    """ResNet: a 7x7 convolution of stride 2, then 3x3 pooling of stride 2."""
    stem = ReceptiveField().through(7, stride=2, padding=3)
    assert stem == ReceptiveField(7, 2, 0.0)
    pooled = Sliding(3, stride=2, padding=1).receptive_field((112, 112), (stem, stem))
    assert pooled == (ReceptiveField(11, 4, 0.0),) * 2


def test_receptive_field_of_a_chain_by_hand() -> None:
    """Two unpadded 2x2 poolings: the first output sees inputs 0 to 3, centred on 1.5."""
    (field,) = Sliding(2).receptive_field((16,))
    assert field == ReceptiveField(2, 2, 0.5)
    (field,) = Sliding(2).receptive_field((8,), (field,))
    assert field == ReceptiveField(4, 4, 1.5)


def test_receptive_field_of_bins() -> None:
    assert Adaptive(4).receptive_field((8, 12)) == (
        ReceptiveField(2, 2, 0.5),
        ReceptiveField(3, 3, 1.0),
    )
    assert Global().receptive_field((9,)) == (ReceptiveField(9, 9, 4.0),)
    assert Pyramid((3, 1)).receptive_field((9,)) == Global().receptive_field((9,))


layers = st.builds(
    Sliding,
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2))),
    st.integers(1, 2),
)


@given(chain=st.lists(layers, min_size=1, max_size=3))
def test_receptive_field_is_what_an_output_sees(chain: list[Sliding]) -> None:
    """Against the definition: the positions that reach an output through all layers."""
    size = 60
    seen = [{i} for i in range(size)]  # of each position of the layer, padding included
    fields: tuple[ReceptiveField, ...] | None = None
    offset = 0.0
    for window in chain:
        (spans,) = window.axes((size,))
        fields = window.receptive_field((size,), fields)
        seen = [
            set().union(*(seen[int(b) + t * spans.step] for t in range(int(c))))
            for b, c in zip(spans.begin, spans.count, strict=True)
        ]
        size = len(seen)
    assert fields is not None
    (field,) = fields
    middle = [o for o in range(1, size - 1) if len(seen[o]) and len(seen[o + 1])]
    # Far from the borders the padding is out of sight.
    inner = [o for o in middle if min(seen[o]) > 12 and max(seen[o + 1]) < 47]
    for o in inner:
        assert max(seen[o]) - min(seen[o]) + 1 == field.size
        assert min(seen[o + 1]) - min(seen[o]) == field.jump
        offset = (max(seen[o]) + min(seen[o])) / 2 - o * field.jump
        assert offset == field.offset


# --- what belongs to the parameters --------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "ndim"),
    [
        (Sliding(3), None),
        (Sliding((3,)), None),
        (Sliding((3, 3)), 2),
        (Sliding(3, stride=(1, 2, 1)), 3),
        (Sliding(3, padding=((0, 1), (1, 0))), 2),
        (Sliding(3, padding=((0, 1),)), 1),
        (Adaptive(3), None),
        (Adaptive((3, None)), 2),
        (Global(), None),
        (Pyramid((2, 1)), None),
        (Pyramid((2, (1, 3))), 2),
    ],
    ids=str,
)
def test_ndim(window: Window, ndim: int | None) -> None:
    assert window.ndim == ndim


def test_spatial_axes_come_from_the_rank_or_are_given() -> None:
    x = np.zeros((2, 3, 8, 8))
    assert poolkit.pool(x, Sliding(2)).shape == (2, 3, 4, 4)
    assert poolkit.pool(x, Sliding(2), ndim=1).shape == (2, 3, 8, 4)
    assert poolkit.pool(x, Sliding((2, 2, 2))).shape == (2, 1, 4, 4)
    assert poolkit.pool(x[0], Sliding((2, 2))).shape == (3, 4, 4)
    assert poolkit.pool(x[0, 0], Sliding(2)).shape == (8, 4)
    assert poolkit.pool(x[0, 0, 0], Sliding(2)).shape == (4,)


def test_a_window_of_the_users_own() -> None:
    """One class gives geometry, and everything else works: values, positions, the composite."""
    from dataclasses import dataclass

    @dataclass(frozen=True, repr=False)
    class Halves(Window):
        def output_shape(self, shape):
            return (2,) * len(shape)

        def axes(self, shape):
            spans = []
            for size in shape:
                begin = np.array([0, size // 2])
                count = np.array([size // 2, size - size // 2])
                spans.append(Spans(size, begin, count, 1, count))
            return tuple(spans)

        def receptive_field(self, shape, before=None):
            raise NotImplementedError

    x = np.arange(10.0).reshape(1, 1, 10)
    np.testing.assert_array_equal(poolkit.pool(x, Halves(), "max"), [[[4, 9]]])
    np.testing.assert_array_equal(poolkit.pool(x, Halves(), "median"), [[[2, 7]]])
    np.testing.assert_array_equal(poolkit.pool_with_indices(x, Halves())[1], [[[4, 9]]])


class EachOnItsOwn(Window):
    """Says nothing about its bounds."""

    def output_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(shape)

    def axes(self, shape: Sequence[int]) -> tuple[Spans, ...]:
        ones = [np.ones(size, dtype=np.int64) for size in shape]
        return tuple(Spans(len(one), np.arange(len(one)), one, 1, one) for one in ones)

    def receptive_field(
        self, shape: Sequence[int], before: Sequence[ReceptiveField] | None = None
    ) -> tuple[ReceptiveField, ...]:
        return tuple(before or [ReceptiveField()] * len(shape))


@pytest.mark.parametrize("shape", [(4,), (5, 4), (4, 9)])
@pytest.mark.parametrize(
    "window",
    [
        Global(),
        Adaptive(3),
        Adaptive(0),
        Adaptive(7),
        Sliding(2),
        Sliding(2, stride=1, padding=2),
        Sliding(2, stride=1, padding=1, dilation=5),
        Sliding(2, stride=1, padding=1, dilation=2),
        Sliding(2, stride=1, padding="same", dilation=5),
        Sliding(3, stride=2, padding=1, ceil_mode=True),
    ],
    ids=str,
)
def test_bounds_hold_without_the_spans(window: Window, shape: tuple[int, ...]) -> None:
    spans = window.axes(shape)
    taps = math.prod(max(span.taps, 1) for span in spans)
    least, most = window.taps_bound(shape)
    assert least <= taps <= max(most, 1)
    all_see = all(bool((span.count > 0).all()) for span in spans)
    assert all_see or not window.always_sees(shape)
    # For these sizes and windows the answer is exact.
    assert window.always_sees(shape) == all_see


def test_a_window_without_bounds_of_its_own_gets_those_of_its_spans() -> None:
    assert EachOnItsOwn().taps_bound((4, 5)) == (1, 1)
    assert EachOnItsOwn().always_sees((4, 5))


def test_the_span_check_can_fail() -> None:
    """One position too many is not passed over."""
    (right,) = Sliding(3, stride=2).axes((9,))
    wrong = Spans(right.size, right.begin, right.count - 1, right.step, right.padded)
    expected = positions_of(Sliding(3, stride=2), (9,))[0]
    seen = [list(range(int(b), int(b + c))) for b, c in zip(wrong.begin, wrong.count, strict=True)]
    assert seen != [[p for p, _ in o] for o in expected]
    assert list(itertools.chain(*seen)) != []
