# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Models as ONNX files: every pooling is written, run by ONNX Runtime and by ONNX's own evaluator,
and compared with the model. `export_onnx` itself compares; that it can refuse is tested too."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from examples import REDUCTION_EXAMPLES, WINDOW_EXAMPLES
from torch import nn

import poolkit
import poolkit.nn
from poolkit.exporting import expressions
from poolkit.vision.registry import POOLS

REDUCTIONS = list(chain.from_iterable(REDUCTION_EXAMPLES.values()))
WINDOWS = [
    (ndim, window)
    for by_rank in WINDOW_EXAMPLES.values()
    for ndim, examples in by_rank.items()
    for window in examples
]
BOTH = {"onnxruntime", "reference"}


class Poolings(nn.Module):
    """One input, pooled in many ways."""

    def __init__(self, poolings: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(poolkit.nn.Pool(*pooling) for pooling in poolings)

    def forward(self, x: Any) -> Any:
        return [layer(x) for layer in self.layers]


def drawn(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def one_each(ndim: int) -> Any:
    return drawn(1, 2, *(11, 7, 6)[:ndim])


@pytest.mark.parametrize(("ndim", "window"), WINDOWS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_whole_windows_say_what_pool_says(ndim: int, window: Any, reduction: Any) -> None:
    x = one_each(ndim).double()
    for grid in window.grids():
        found = expressions._pool_whole(x, grid, reduction, ndim)
        torch.testing.assert_close(
            found, poolkit.pool(x, grid, reduction, ndim=ndim), equal_nan=True
        )


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_window_by_operators(ndim: int, tmp_path: Path) -> None:
    reductions = ["max", "mean", "Mean(count_include_pad=False)", "Lp(3)"]
    windows = [window for rank, window in WINDOWS if rank == ndim]
    model = Poolings([(w, r, ndim) for w in windows for r in reductions])
    report = poolkit.export_onnx(model, one_each(ndim), tmp_path / "model.onnx")
    assert {(check.engine, check.batch) for check in report.checks} == {
        (engine, batch) for engine in BOTH for batch in (1, 2)
    }
    assert {"AveragePool", "MaxPool", "LpPool", "GlobalMaxPool"} <= set(report.operators)
    assert len(session(report.path).get_outputs()) == len(windows) * len(reductions)


def test_every_reduction(tmp_path: Path) -> None:
    window = poolkit.Sliding(3, 2, ((1, 0), (0, 2)), ceil_mode=True)
    model = Poolings(
        [(window, r, 2) for r in REDUCTIONS] + [("Global()", r, 2) for r in REDUCTIONS]
    )
    report = poolkit.export_onnx(model, one_each(2), tmp_path / "model.onnx")
    assert len(report.poolings) == 2 * len(REDUCTIONS)
    assert {check.engine for check in report.checks} == BOTH


# --- the listed modules ------------------------------------------------------------------------

RANDOM = {"fractional_max"}


def listed(name: str) -> Any:
    torch.manual_seed(0)
    options = {"kernel_size": 2, **dict(POOLS[name].options)}
    return poolkit.nn.create_pool2d(name, channels=4, **options).eval()


class All(nn.Module):
    """Every listed module of one kind, on one input."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(listed, names))

    def forward(self, x: Any) -> Any:
        return [layer(x) for layer in self.layers]


@pytest.fixture(scope="module", params=["window", "global", "map"])
def exported(request: Any, tmp_path_factory: Any) -> Any:
    names = sorted(set(poolkit.nn.pools2d(request.param)) - RANDOM)
    path = tmp_path_factory.mktemp("listed") / "model.onnx"
    model = All(names)
    report = poolkit.export_onnx(model, torch.rand(2, 4, 12, 13), path)
    return names, model, report


def test_every_listed_pooling(exported: Any) -> None:
    """All in one file, which the export itself has run on two engines; here with another batch."""
    names, model, report = exported
    assert {check.engine for check in report.checks} == BOTH
    x = torch.rand(5, 4, 12, 13)
    found = session(report.path).run(None, {report.inputs[0]: x.numpy()})
    with torch.no_grad():
        wanted = model(x)
    assert len(names) == len(found) == len(wanted)
    for name, ours, theirs in zip(names, wanted, found, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_what_draws_is_refused(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), listed(name))
    with pytest.raises(poolkit.PoolValueError, match=r"layer '1' \(Frac.*draws random numbers"):
        poolkit.export_onnx(model, torch.rand(2, 4, 12, 12), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
