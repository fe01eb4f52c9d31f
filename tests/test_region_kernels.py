"""The kernels of regions on random boxes over random maps: each against its adjoint, as for any
linear map, and nothing left unwritten. NumPy alone, so that the sanitizers run it too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from poolkit.regions import Call, code_bytes, native_boxes
from poolkit.windows.regions import Bins, Regions, place

STEPS = [
    ("samples", "average"),
    ("cells", "average"),
    ("integral", "average"),
    ("samples", "pick"),
    ("corners", "pick"),
    ("cells", "pick"),
]
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-2}


def random_boxes(random: Any, images: int) -> np.ndarray:
    """From far within a cell to far beyond any map, some turned around, some of whole cells."""
    count, scale = random.integers(0, 12), random.choice([0.01, 1, 10, 100, 1e6])
    first = random.uniform(-scale, scale, (count, 2)) + random.uniform(0, 20, 2)
    second = first + random.uniform(-0.2, 1, (count, 2)) * scale
    if random.random() < 0.4:
        first, second = np.round(first), np.round(second)
    image = random.integers(0, images, (count, 1))
    dtype = random.choice(["float32", "float64"])
    return np.concatenate([image, first, second], 1).astype(dtype)


def random_bins(random: Any, rule: Any) -> Bins:
    size = tuple(random.integers(1, 40, 2)) if random.random() < 0.8 else (random.integers(400), 1)
    return Regions(
        np.zeros((0, 5)),
        tuple(max(int(n), 1) for n in size),
        rule=rule,
        sampling_ratio=int(random.choice([-1, 1, 2, 3, 7, 50])),
        aligned=bool(random.integers(2)),
        spatial_scale=float(random.choice([1, 0.5, 1 / 16])),
    ).bins


class Case:
    """A random call, and arrays for it; results begin as NaN."""

    def __init__(self, seed: int, rule: str) -> None:
        self.random = random = np.random.default_rng(seed)
        images, channels, height, width = (int(random.integers(1, n)) for n in (4, 40, 30, 40))
        self.dtype = str(random.choice(list(TOLERANCE)))
        self.bins = random_bins(random, rule)
        self.boxes = random_boxes(random, images)
        self.behind = bool(random.integers(2))
        self.map, self.grid = (height, width), (self.bins.rows, self.bins.columns)
        placed = place(native_boxes(self.boxes), self.bins, images)
        shape = (images, channels, height, width)
        self.call = Call(placed, self.bins, shape, self.dtype, self.behind)
        self.x = self.drawn(images, self.map)
        self.grad = self.drawn(len(self.boxes), self.grid)

    def shape(self, items: int, grid: tuple[int, int]) -> tuple[int, ...]:
        channels = self.call.shape[1]
        return (items, *grid, channels) if self.behind else (items, channels, *grid)

    def drawn(self, items: int, grid: tuple[int, int]) -> np.ndarray:
        return self.random.standard_normal(self.shape(items, grid)).astype(self.dtype)

    def run(self, step: str, out: np.ndarray, **arrays: np.ndarray) -> np.ndarray:
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        self.call.run(step, int(self.random.integers(1, 4)), out=out.ctypes.data, **addresses)
        assert np.isfinite(out).all()
        return out

    def pooled(self, step: str, **arrays: np.ndarray) -> np.ndarray:
        out = np.full(self.shape(len(self.boxes), self.grid), np.nan, self.dtype)
        return self.run(step, out, **arrays)

    def gradient(self, step: str, **arrays: np.ndarray) -> np.ndarray:
        out = np.full(self.shape(self.call.shape[0], self.map), np.nan, self.dtype)
        return self.run(step, out, **arrays)

    def check_adjoint(self, out: np.ndarray, back: np.ndarray) -> None:
        """<out, grad> and <x, back> are one number."""
        one, other = (a.astype("float64") * b for a, b in ((out, self.grad), (self.x, back)))
        size = np.abs(one).sum() + np.abs(other).sum()
        assert abs(one.sum() - other.sum()) <= TOLERANCE[self.dtype] * (size + 1e-3)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("rule", "step"), STEPS)
def test_random_boxes(rule: str, step: str, seed: int) -> None:
    case = Case(seed, rule)
    if step == "average":
        out, back = case.pooled("average", x=case.x), case.gradient("spread", grad=case.grad)
        if rule == "integral":
            moved = np.full((len(case.boxes), 4), np.nan)
            case.run("move", moved, x=case.x, grad=case.grad)
    else:
        size = code_bytes(case.bins, case.map)
        codes = np.zeros(case.grad.shape, f"uint{8 * size}")
        out = case.pooled("pick", x=case.x, codes=codes)
        back = case.gradient("scatter", grad=case.grad, codes=codes)
        taken = case.pooled("take", x=case.x, codes=codes)
        np.testing.assert_allclose(taken, out, rtol=0, atol=TOLERANCE[case.dtype])
        strange = case.random.integers(0, 256**size, codes.shape).astype(codes.dtype)
        case.gradient("scatter", grad=case.grad, codes=strange)  # of other boxes: no crash
        case.pooled("take", x=case.x, codes=strange)
    case.check_adjoint(out, back)
