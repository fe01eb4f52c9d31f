# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Models as ONNX files: every pooling is written, run by ONNX Runtime and by ONNX's own evaluator,
and compared with the model. `export_onnx` itself compares; that it can refuse is tested too."""

from __future__ import annotations

import re
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
from poolkit.exporting.operator_runs import RUNS
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


def test_stable_sorts(tmp_path: Path) -> None:
    """Of equal values the first, as both engines have it."""

    class Model(nn.Module):
        def forward(self, x: Any, mask: Any) -> Any:
            down = x.sort(dim=1, descending=True, stable=True)
            order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
            return down.values, down.indices, order, torch.sort(x, dim=0, stable=True).indices

    x = torch.tensor([[2.0, 1.0, 2.0, 1.0, 3.0, 2.0]])
    mask = torch.tensor([[False, True, False, True, True, False]])
    report = poolkit.export_onnx(Model(), (x, mask), tmp_path / "model.onnx")
    assert {(check.engine, check.batch) for check in report.checks} == {
        (engine, batch) for engine in BOTH for batch in (1, 2)
    }


def test_models_of_any_number_of_inputs(tmp_path: Path) -> None:
    """What torch's exporter wants to know of an axis has the form of the parameters."""

    class Model(nn.Module):
        def forward(self, *maps: Any, last: Any, **more: Any) -> Any:
            return [poolkit.max_pool2d(x, 2) for x in (*maps, last, *more.values())]

    x = drawn(1, 2, 8, 6)
    report = poolkit.export_onnx(
        Model(), (x, x + 1), tmp_path / "model.onnx", kwargs={"last": x + 2, "mask": x + 3}
    )
    assert report.inputs[-2:] == ("last", "mask")
    assert {check.batch for check in report.checks} == {1, 2}
    assert all(check.errors == (0.0, 0.0, 0.0, 0.0) for check in report.checks)


def test_the_chain_of_optimised_graphs(tmp_path: Path) -> None:
    class Chain(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.ops.poolkit.chain.default(x, "Sliding(5, stride=1, padding=2)", 3)

    report = poolkit.export_onnx(Chain(), one_each(2), tmp_path / "model.onnx")
    assert report.operators == {"Concat": 1, "MaxPool": 3}


def test_a_program_that_was_optimised(tmp_path: Path) -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval(),
        drawn(1, 3, 9, 9),
    )
    program = poolkit.optimize(model, x, tier="graph", seconds=0).program
    report = poolkit.export_onnx(program, None, tmp_path / "model.onnx")
    assert report.operators == {"Conv": 1, "MaxPool": 1, "Relu": 1}
    assert {check.batch for check in report.checks} == {2}  # those that it was captured with


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "bool"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    names = ["max", "min", "sum", "mean"]
    names += ["median", "Soft()"] if "float" in dtype else []
    poolings = [(w, r, 2) for w in ("Sliding(3, stride=2, padding=1)", "Global()") for r in names]
    x = (drawn(1, 2, 7, 6) * 20).to(getattr(torch, dtype))
    report = poolkit.export_onnx(Poolings(poolings), x, tmp_path / "model.onnx")
    assert {check.engine for check in report.checks} == BOTH


@pytest.mark.parametrize("shape", [(7, 6), (3, 7, 6), (2, 3, 4, 7, 6)], ids=str)
def test_any_number_of_axes_in_front(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = Poolings([("Sliding(2)", "mean", 2), ("Global()", "max", 2), ("Sliding(3)", "std", 2)])
    dynamic = len(shape) > 3
    poolkit.export_onnx(model, drawn(*shape), tmp_path / "model.onnx", dynamic_batch=dynamic)


def test_sizes_may_vary_where_no_window_needs_them(tmp_path: Path) -> None:
    model = Poolings(
        [("Sliding(3, stride=2, padding=1)", "max", 2), ("Sliding(2)", "mean", 2)]
        + [("Global()", r, 2) for r in ("mean", "Soft()", "std", "log_sum_exp")]
    )
    size = {name: torch.export.Dim(name, min=4, max=64) for name in ("height", "width")}
    shapes = {"x": {2: size["height"], 3: size["width"]}}
    report = poolkit.export_onnx(
        model, drawn(1, 2, 8, 10), tmp_path / "model.onnx", dynamic_shapes=shapes
    )
    x = drawn(1, 2, 13, 7)
    found = session(report.path).run(None, {"x": x.numpy()})
    for ours, theirs in zip(model(x), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours)
    with pytest.raises(
        poolkit.PoolValueError, match=r"in layer 'layers.0' \(Pool\).*spatial axes out"
    ):
        poolkit.export_onnx(
            Poolings([("Adaptive(3)", "max", 2)]), drawn(1, 2, 8, 10),
            tmp_path / "no.onnx", dynamic_shapes=shapes,
        )  # fmt: skip


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "gelu", "hardswish", "leaky_relu"])
def test_activations(activation: str, tmp_path: Path) -> None:
    model = Poolings([("Sliding(2)", r, 2, activation) for r in ("max", "mean")])
    report = poolkit.export_onnx(model, drawn(1, 2, 8, 6), tmp_path / "model.onnx")
    assert report.operators["MaxPool"] == report.operators["AveragePool"] == 1
    assert activation != "relu" or report.operators["Relu"] == 2


def test_positions_and_unpooling(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            values, indices = poolkit.max_pool2d(x, 2, return_indices=True)
            return values, indices, poolkit.max_unpool2d(values, indices, 2)

    report = poolkit.export_onnx(Model(), drawn(1, 2, 8, 6), tmp_path / "model.onnx")
    assert {check.error for check in report.checks} == {0.0}


def test_sequences_of_any_number_and_length(tmp_path: Path) -> None:
    modes = ("mean", "max", "cls", "lasttoken", "std", "TopK(2)", "median", "soft",
             "mean_sqrt_len", "weighted_mean", "k_max", "query", "attentive_stats")  # fmt: skip
    pool = poolkit.nn.SequencePool(modes, channels=5, k=4)
    for query in pool.queries.values():
        nn.init.normal_(query)
    tokens = drawn(4, 7, 5)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0, 0], [0] * 7])
    tokens[1, 0] = torch.nan  # padding is not looked at
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    report = poolkit.export_onnx(
        pool, (tokens, mask), tmp_path / "model.onnx", dynamic_shapes=(axes, axes)
    )
    tokens, mask = drawn(2, 9, 5), torch.tensor([[1] * 9, [1, 1] + [0] * 7])
    feeds = dict(zip(report.inputs, (tokens.numpy(), mask.numpy()), strict=True))
    found = session(report.path).run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(found[0]), pool(tokens, mask), rtol=1e-4, atol=1e-5)


def test_lengths_and_no_mask(tmp_path: Path) -> None:
    pool, tokens = poolkit.nn.SequencePool(("max", "mean")), drawn(3, 7, 5)
    poolkit.export_onnx(pool, tokens, tmp_path / "all.onnx")
    poolkit.export_onnx(
        pool, tokens, tmp_path / "some.onnx", kwargs={"lengths": torch.tensor([7, 1, 3])}
    )
    refused = poolkit.nn.SequencePool(empty="error")
    with pytest.raises(poolkit.PoolValueError, match="cannot raise"):
        poolkit.export_onnx(refused, tokens, tmp_path / "no.onnx")


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "soft"])
def test_bags(mode: str, tmp_path: Path) -> None:
    bags = poolkit.nn.EmbeddingBag(20, 6, mode=mode)
    index, offsets = torch.tensor([3, 4, 5, 1, 2, 19]), torch.tensor([0, 2, 2])
    report = poolkit.export_onnx(
        bags, index, tmp_path / "model.onnx", kwargs={"offsets": offsets}, dynamic_batch=False
    )
    assert {check.engine for check in report.checks} == BOTH


class Regions(nn.Module):
    """All that can be expressed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                poolkit.nn.RoIPool((3, 4), 0.5),
                poolkit.nn.RoIAlign(3, 0.5, 2, True),
                poolkit.nn.RoIAlign(3, 0.5),
                poolkit.nn.RoIAlign((2, 3), reduction="onnx_max"),
                poolkit.nn.PrRoIPool((3, 5), 0.5),
            ]
        )

    def forward(self, x: Any, boxes: Any) -> Any:
        cells = poolkit.Regions(boxes, 3, rule="cells", spatial_scale=0.7)
        return [*(layer(x, boxes) for layer in self.layers), poolkit.pool(x, cells, "mean")]


def boxes_of(images: int, number: int) -> Any:
    generator = torch.Generator().manual_seed(number)
    corners = torch.rand(number, 4, generator=generator) * 24 - 4
    corners[:, 2:] = corners[:, :2] + corners[:, 2:].abs()
    image = torch.randint(0, images, (number, 1), generator=generator)
    return torch.cat([image.float(), corners], 1)


def test_regions(tmp_path: Path) -> None:
    """ONNX's own evaluator has no MaxRoiPool, and is passed over where nobody asks for it."""
    model, path = Regions(), tmp_path / "model.onnx"
    report = poolkit.export_onnx(model, (drawn(2, 3, 17, 20), boxes_of(2, 6)), path)
    assert {check.engine for check in report.checks} == {"onnxruntime"}
    assert report.operators["RoiAlign"] == 3
    assert report.operators["MaxRoiPool"] == 1
    assert report.poolings[0].layer == "layer 'layers.0' (RoIPool)"
    runs, x = session(path), drawn(3, 3, 17, 20)
    for number in range(1, 20):
        boxes = boxes_of(3, number)
        found = runs.run(None, {"x": x.numpy(), "boxes": boxes.numpy()})
        for ours, theirs in zip(model(x, boxes), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)
    given = drawn(2, 3, 17, 20), boxes_of(2, 6)
    with pytest.raises(poolkit.PoolValueError, match="reference lacks an operator"):
        poolkit.export_onnx(model, given, path, engines="reference")
    with pytest.raises(
        poolkit.PoolValueError, match=r'maximum of samples.*Use reduction="onnx_max"'
    ):
        poolkit.export_onnx(poolkit.nn.RoIAlign(3, reduction="max"), given, path)
    report = poolkit.export_onnx(poolkit.nn.PrRoIPool(3), given, path)
    assert {check.engine for check in report.checks} == BOTH


def test_boxes_in_a_list_fix_the_batch(tmp_path: Path) -> None:
    pool, x, boxes = poolkit.nn.RoIAlign(3), drawn(1, 3, 9, 9), [boxes_of(1, 4)[:, 1:]]
    with pytest.raises(poolkit.PoolValueError, match=r"batch of two.*dynamic_batch=False"):
        poolkit.export_onnx(pool, (x, boxes), tmp_path / "model.onnx")
    poolkit.export_onnx(pool, (x, boxes), tmp_path / "model.onnx", dynamic_batch=False)


def test_axes_have_names(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    poolkit.export_onnx(poolkit.nn.PrRoIPool(3), (drawn(2, 3, 9, 9), boxes_of(2, 4)), path)
    graph = onnx.load(path).graph
    sizes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.output)
    }
    assert sizes == {"input": "batch", "boxes": "boxes_0", "output": "boxes_0"}


def test_quantized_pools_lie_between_q_and_dq(tmp_path: Path) -> None:
    from poolkit.quantized import QParams, adaptive_avg_pool2d, avg_pool2d, dequantize, quantize
    from poolkit.quantized import max_pool2d as largest

    a, b = QParams.from_range(-1, 4, "uint8"), QParams.from_range(0, 3, "uint8")

    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            q = largest(quantize(x, a, "uint8"), 3, 2, 1)
            mean = avg_pool2d(q, 2, qparams=a, out_qparams=b)
            return dequantize(mean, b), adaptive_avg_pool2d(q, 3, qparams=a)

    report = poolkit.export_onnx(Model(), torch.rand(1, 3, 17, 16) * 3, tmp_path / "model.onnx")
    nodes = onnx.load(report.path).graph.node
    names = [node.op_type for node in nodes]
    between = ["QuantizeLinear", "DequantizeLinear"]
    assert names[:7] == [*between, "MaxPool", *between, "AveragePool", "QuantizeLinear"]
    assert max(check.error for check in report.checks) <= 1  # one step

    class Floor(nn.Module):
        def forward(self, x: Any) -> Any:
            return quantize(x, a, "uint8", rounding="floor")

    with pytest.raises(poolkit.PoolValueError, match="rounds half to even, not floor"):
        poolkit.export_onnx(Floor(), torch.rand(2, 3), tmp_path / "no.onnx")


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_difference_is_noticed_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("before")
    operator = torch.ops.poolkit.pool.default
    right = expressions.EXPRESSIONS[operator]
    monkeypatch.setitem(expressions.EXPRESSIONS, operator, lambda x, *rest: right(x + 0.01, *rest))
    model = nn.Sequential(poolkit.nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2))
    with pytest.raises(
        poolkit.PoolValueError, match=r"output 0 in onnxruntime: values differ by"
    ) as caught:
        poolkit.export_onnx(model, drawn(2, 3, 8, 8), path)
    assert "pooling in layer '0' (MaxPool2d), layer '2' (AvgPool2d)" in str(caught.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    report = poolkit.export_onnx(poolkit.nn.MaxPool2d(2), drawn(2, 3, 8, 8), path, engines=())
    assert report.checks == ()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("engines", [None, ()], ids=["checked", "unchecked"])
def test_torch_s_divisor_is_refused_as_its_exporter_drops_it(
    ndim: int, engines: Any, tmp_path: Path
) -> None:
    x, name = drawn(2, 3, *(8,) * ndim), f"AvgPool{ndim}d"
    ours = getattr(poolkit.nn, name)(2, divisor_override=3)
    theirs = getattr(nn, name)(2, divisor_override=3)
    poolkit.export_onnx(ours, x, tmp_path / "ours.onnx", engines=engines)
    message = rf"layer '1' \({name}\) divides by 3, and torch's exporter drops .*poolkit\.nn"
    with pytest.raises(poolkit.PoolValueError, match=message):
        poolkit.export_onnx(
            nn.Sequential(nn.ReLU(), theirs), x, tmp_path / "theirs.onnx", engines=engines
        )
    assert not (tmp_path / "theirs.onnx").exists()


def test_the_layer_that_cannot_be_expressed_is_named(tmp_path: Path) -> None:
    class Looks(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.special.bessel_j0(x)

    class Counts(nn.Module):
        def forward(self, x: Any) -> Any:
            return {"x": x, "axes": x.ndim}

    x = drawn(2, 3, 8, 8)
    volumes = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.AdaptiveAvgPool3d((None, 2, 2)))
    for layer, message in (
        (Looks(), r"layer '1' \(Looks\) cannot be traced"),
        (Odd(), r"layer '1' \(Odd\) cannot be expressed: .*bessel_j0"),
        (volumes, r"layer '1\.1' \(AdaptiveAvgPool3d\) cannot be expressed"),
        (Counts(), "the model returns int, and an ONNX file returns tensors"),
    ):
        model = nn.Sequential(poolkit.nn.MaxPool2d(2), layer)
        with pytest.raises(poolkit.PoolValueError, match=message):
            poolkit.export_onnx(model, x, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    """What torch.export notes on them would make the next export fail as the first one did."""
    x, model = drawn(3, 9, 9), nn.Sequential(nn.Unflatten(0, (1, 3)), poolkit.nn.MaxPool2d(2))
    with pytest.raises(poolkit.PoolValueError, match="dynamic_batch=False"):
        poolkit.export_onnx(model, x, tmp_path / "model.onnx", engines=())
    poolkit.export_onnx(model, x, tmp_path / "model.onnx", engines=(), dynamic_batch=False)


def test_modes_and_hooks_are_left_as_they_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(), poolkit.nn.MaxPool2d(2)).train()
    poolkit.export_onnx(model, drawn(1, 2, 4, 4), tmp_path / "model.onnx", engines="reference")
    assert all(module.training for module in model.modules())
    assert not nn.modules.module._global_forward_pre_hooks


def test_arguments(tmp_path: Path) -> None:
    x = drawn(1, 2, 4, 4)
    with pytest.raises(poolkit.PoolTypeError, match=r"a model is a torch\.nn\.Module"):
        poolkit.export_onnx(lambda x: x, x, tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(poolkit.PoolValueError, match="there is no engine 'tensorrt'"):
        poolkit.export_onnx(nn.ReLU(), x, tmp_path / "m.onnx", engines=["tensorrt"])
    with pytest.raises(poolkit.PoolValueError, match="there is no folder"):
        poolkit.export_onnx(nn.ReLU(), x, tmp_path / "none" / "m.onnx")
    with pytest.raises(poolkit.PoolValueError, match="tolerance must be"):
        poolkit.export_onnx(nn.ReLU(), x, tmp_path / "m.onnx", tolerance=-1)


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


# --- the page in the docs ------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "onnx.md"
AGAIN = "run python -m poolkit.exporting.conformance > docs/onnx.md"


def rows_of(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]


def test_operators_in_the_docs_are_fresh() -> None:
    """To the letter with the versions that they were made with; else with the same rows."""
    from poolkit.exporting.conformance import operators_page

    page = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    made = operators_page()
    used = [torch.__version__.partition("+")[0], onnx.__version__, onnxruntime.__version__]
    if all(version in page for version in used):
        assert page == made, AGAIN
    assert [row[:2] for row in rows_of(page)] == [row[:2] for row in rows_of(made)], AGAIN


@pytest.mark.slow
def test_layers_in_the_docs_are_fresh() -> None:
    """But for the digits of rounding, which are those of one machine."""
    from poolkit.exporting.conformance import layer_rows
    from poolkit.exporting.layers import export_layers

    def without_digits(rows: Any) -> list[list[str]]:
        return [[re.sub(r"^(0|below 1e-[5-9])$", "rounding", cell) for cell in row]
                for row in rows]  # fmt: skip

    page = PAGE.read_text(encoding="utf-8").partition("\n## ")[2]
    made = [[cell for cell in row if cell] for row in layer_rows(export_layers())]
    assert without_digits(rows_of(page)) == without_digits(made), AGAIN


def test_every_pooling_is_in_the_docs() -> None:
    from poolkit.exporting.layers import LAYERS

    names = [layer.name for layer in LAYERS]
    assert len(set(names)) == len(names)
    registered = {entry.module for entry in POOLS.values()}
    modules = {
        name
        for name in poolkit.nn.__all__
        if isinstance(getattr(poolkit.nn, name), type)
        and getattr(poolkit.nn, name) not in registered
    }
    assert {f'create_pool2d("{name}")' for name in POOLS} | modules <= set(names)
    page = PAGE.read_text(encoding="utf-8").partition("\n## ")[2]
    assert [row[0].strip("`") for row in rows_of(page)] == names, AGAIN


def test_every_attribute_and_type_of_onnx_has_a_case() -> None:
    """Of all pooling operators in the newest opset, and of ONNX Runtime's own."""
    from poolkit.exporting.operator_cases import CASES

    schemas = [s for s in onnx.defs.get_all_schemas() if "Pool" in s.name or s.name == "RoiAlign"]
    schemas += [s for s in onnx.defs.get_all_schemas() if s.name == "MaxUnpool"]
    assert len(schemas) == 9
    wanted = {(s.name, attribute) for s in schemas for attribute in s.attributes}
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    for schema in runtime.get_all_operator_schema():
        if schema.domain == "com.microsoft" and "Pool" in schema.name:
            wanted |= {(schema.name, attribute) for attribute in schema.attributes}
    assert {name for name, _ in wanted} >= {"QLinearAveragePool", "QLinearGlobalAveragePool"}
    assert wanted <= {(case.operator, attribute) for case in CASES for attribute in case.attributes}
    types = {
        (s.name, kind.removeprefix("tensor(").removesuffix(")"))
        for s in schemas
        for constraint in s.type_constraints
        if constraint.type_param_str in ("T", "T1")
        for kind in constraint.allowed_type_strs
    }
    named = {"float32": "float", "float64": "double"}
    assert types <= {(case.operator, named.get(case.dtype, case.dtype)) for case in CASES}
    ranks = {(case.operator, case.ndim) for case in CASES}
    over_space = {s.name for s in schemas if "Roi" not in s.name}
    assert {(name, ndim) for name in over_space for ndim in (1, 2, 3)} <= ranks


def test_poolkit_does_what_the_standard_says() -> None:
    from poolkit.exporting.conformance import cells
    from poolkit.exporting.operator_cases import CASES

    others = {
        (case.operator, case.note): found
        for case in CASES
        if (found := cells(case, {"poolkit": RUNS["poolkit"]})["poolkit"]) != "equal"
    }
    assert others == {("MaxPool", "Indices, storage_order=1"): "unsupported"}


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda x: x + 0.01, "differs by 0.01"),
        (lambda x: x[..., :-1], "shape (4, 3), not (4, 4)"),
        (lambda x: np.where(x == x.max(), np.nan, x), "1 NaN, not 0"),
        (lambda x: 1 / 0, "unsupported"),
        (lambda x: x, "equal"),
    ],
)
def test_a_cell_can_say_each_of_its_words(alter: Any, said: str) -> None:
    from poolkit.exporting.conformance import cells
    from poolkit.exporting.operator_cases import CASES

    case = next(c for c in CASES if (c.operator, c.note) == ("AveragePool", "two axes"))
    run = RUNS["poolkit"]
    assert cells(case, {"it": lambda case, x: alter(run(case, x))})["it"].startswith(said)
