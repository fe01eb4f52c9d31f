"""Quantized graphs: every pooling is found, runs on integers, and gives what training saw."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import poolkit
import poolkit.nn

pytest.importorskip("torchao")

# torch warns of calls of its own: when its compiler is imported, and when a graph is copied.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
]

from torchao.quantization.pt2e import (  # noqa: E402
    FakeQuantize,
    MovingAverageMinMaxObserver,
    disable_observer,
    move_exported_model_to_eval,
)
from torchao.quantization.pt2e.quantize_pt2e import (  # noqa: E402
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec  # noqa: E402

from poolkit.exporting.checking import ENGINES  # noqa: E402
from poolkit.quantized import pt2e  # noqa: E402
from poolkit.quantized.pt2e.graphs import end_training, poolings_of  # noqa: E402

Pool = Callable[[Tensor], Tensor]

#: Poolings that share the observer of their input, of (2, 3, 9, 10).
MAXIMA: dict[str, Pool] = {
    "module": nn.MaxPool2d(3, 2, ceil_mode=True),
    "function": lambda x: F.max_pool2d(x, 2),
    "unused indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive module": nn.AdaptiveMaxPool2d(4),
    "adaptive function": lambda x: F.adaptive_max_pool2d(x, (3, None)),
    "amax": lambda x: x.amax((2, 3)),
    "amin of columns": lambda x: x.amin(2, keepdim=True),
    "max values": lambda x: x.max(3).values,
    "our module": poolkit.nn.MaxPool2d(3, 2, 1),
    "our function, dilated": lambda x: poolkit.max_pool2d(x, 3, 1, dilation=2),
    "our minimum": lambda x: poolkit.min_pool2d(x, 2),
    "our adaptive": poolkit.nn.AdaptiveMaxPool2d(4),
    "our global": lambda x: poolkit.global_max_pool2d(x),
    "padded on one side": lambda x: poolkit.max_pool2d(x, 2, padding=((0, 1), (1, 0))),
    "padded, last window cut": lambda x: poolkit.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "one axis": lambda x: F.max_pool1d(x, 2),
    "three axes": lambda x: F.max_pool3d(x, 2),
    "three axes, adaptive": lambda x: F.adaptive_max_pool3d(x, 2),
    "one axis, adaptive": lambda x: F.adaptive_max_pool1d(x, 3),
}
#: Averages of windows that see a part.
AVERAGES: dict[str, Pool] = {
    "module": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "function": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive module": nn.AdaptiveAvgPool2d(4),
    "our module": poolkit.nn.AvgPool2d(3, 2, 1),
    "our adaptive": lambda x: poolkit.adaptive_avg_pool2d(x, 3),
    "our sum": lambda x: poolkit.sum_pool2d(x, 2),
    "our window": lambda x: poolkit.pool(x, poolkit.Sliding(3, padding="same"), "mean"),
    "our columns": lambda x: poolkit.adaptive_avg_pool2d(x, (4, None)),
    "padding counts, last window cut": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "padding does not, last window cut": nn.AvgPool2d(
        3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "padded on one side": lambda x: poolkit.avg_pool2d(x, 2, padding=((0, 1), (1, 0))),
    "padded on one side, not counted": lambda x: poolkit.avg_pool2d(
        x, (2, 4), 2, padding=((0, 1), (2, 1)), ceil_mode=True, count_include_pad=False
    ),
    "one axis": lambda x: F.avg_pool1d(x, 2),
    "three axes": lambda x: F.avg_pool3d(x, 2),
    "one axis, adaptive": lambda x: F.adaptive_avg_pool1d(x, 3),
}
#: Averages of everything, whose range is smaller.
GLOBALS: dict[str, Pool] = {
    "adaptive module": nn.AdaptiveAvgPool2d(1),
    "adaptive function": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "mean": lambda x: x.mean((2, 3)),
    "mean, from behind": lambda x: x.mean((-1, -2), keepdim=True),
    "mean of columns": lambda x: x.mean(2),
    "mean of columns, kept": lambda x: x.mean(2, keepdim=True),
    "sum": lambda x: x.sum((2, 3)),
    "our function": lambda x: poolkit.global_avg_pool2d(x),
    "our module": poolkit.nn.GlobalAvgPool2d(),
    "our window": lambda x: poolkit.pool(x, poolkit.Global(), "mean"),
    "whole window": lambda x: F.avg_pool2d(x, (9, 10)),
}
ALL = {
    f"{group}: {name}": pool
    for group, pools in (("max", MAXIMA), ("average", AVERAGES), ("global", GLOBALS))
    for name, pool in pools.items()
}


class Gallery(nn.Module):
    """A pooling of each kind, each behind an activation of its own."""

    def __init__(self, pools: dict[str, Pool]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pools = pools
        self.inner = nn.ModuleList(pool for pool in pools.values() if isinstance(pool, nn.Module))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        activations = (torch.relu, torch.tanh)
        return {
            # Of three axes, where the pooling is one of a line.
            name: pool(activations[place % 2](y[:, 0] if "one axis" in name else y))
            for place, (name, pool) in enumerate(self.pools.items())
        }


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 9, 10, generator=torch.Generator().manual_seed(3))


def exported(model: nn.Module, x: Tensor, any_batch: bool = False) -> fx.GraphModule:
    shapes = ({0: torch.export.Dim("batch", min=2)},) if any_batch else None
    graph = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    assert isinstance(graph, fx.GraphModule)
    return graph


def prepared(
    model: nn.Module,
    x: Tensor,
    bits: int = 8,
    dtype: Any = None,
    qat: bool = False,
    any_batch: bool = False,
    **options: Any,
) -> fx.GraphModule:
    """The model with observers, which have seen `x`."""
    config = pt2e.quantization_config(bits, qat=qat)
    spec = config.input_activation
    if dtype is torch.int8:
        half = 2 ** (bits - 1)
        spec = dataclasses.replace(spec, dtype=dtype, quant_min=-half, quant_max=half - 1)
    if qat:  # histograms take long, and no test here is of the ranges
        ranges = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2**-12)
        spec = dataclasses.replace(spec, observer_or_fake_quant_ctr=ranges)
    config = dataclasses.replace(config, input_activation=spec, output_activation=spec)
    prepare = prepare_qat_pt2e if qat else prepare_pt2e
    graph = prepare(exported(model, x, any_batch), pt2e.PoolingQuantizer(config, **options))
    graph(x)
    graph.apply(disable_observer)
    return graph


def observers(graph: fx.GraphModule) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """For each pooling, what observes its input and its result."""
    for pooling in poolings_of(graph.graph):
        before = pooling.input
        (after,) = pooling.value.users
        assert before.op == after.op == "call_module", f"{pooling.name} is not observed"
        yield pooling.name, graph.get_submodule(before.target), graph.get_submodule(after.target)


# --- annotation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "sharing", "shares"),
    [
        (MAXIMA, "none", True),
        (AVERAGES, "local", True),
        (AVERAGES, "none", False),
        (GLOBALS, "local", False),
        (GLOBALS, "all", True),
    ],
    ids=["maxima", "averages", "averages apart", "global averages", "global averages joined"],
)
@pytest.mark.parametrize("qat", [False, True], ids=["after", "while"])
def test_every_pooling_is_observed(
    pools: dict[str, Pool], sharing: str, shares: bool, qat: bool
) -> None:
    graph = prepared(Gallery(pools), images(), qat=qat, share_averages=sharing)
    found = list(observers(graph))
    assert len(found) == len(pools)
    for name, before, after in found:
        rounds = qat and pools is not MAXIMA
        assert isinstance(after, pt2e.IntegerRounding) == rounds, name
        assert (before is (after.fake_quantize if rounds else after)) == shares, name


class Net(nn.Module):
    """Convolutions, and poolings as people write them between them."""

    def __init__(self, relu: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 5)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.pool(self.relu(self.first(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def with_x86(config: Any, *excluded: str) -> pt2e.PoolingQuantizer:
    return pt2e.PoolingQuantizer(config, x86(config, *excluded))


def x86(config: Any, *excluded: str) -> Any:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    quantizer = X86InductorQuantizer().set_global(config)
    for name in excluded:
        quantizer.set_module_name_qconfig(name, None)
    return quantizer


def pooling_targets(graph: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if "pool" in str(node.target)]


def test_relu_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    """torchao alone leaves a pooling behind torch.relu in float, without a word in the end."""
    config, x = pt2e.quantization_config(), images()
    with pytest.warns(UserWarning, match="not quantized, skip annotate maxpool2d"):
        alone = prepare_pt2e(exported(Net(), x), x86(config))
    alone(x)
    assert [found.obstacle for found in pt2e.lower(convert_pt2e(alone))] == [
        "its input is not quantized"
    ] * 2
    graph = prepare_pt2e(exported(Net(), x), with_x86(config))
    graph(x)
    converted = pt2e.convert(graph)
    assert pooling_targets(converted) == [
        "poolkit.pool.default", "poolkit.quantized_pool.default"
    ]  # fmt: skip
    assert capsys.readouterr().out == "poolings on 8-bit integers: 2 of 2\n"


def test_example_of_the_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a model in float to two files, which answer as it does."""
    ort = pytest.importorskip("onnxruntime")
    page = Path(__file__).parents[1] / "docs" / "int8.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 20
    names: dict[str, Any] = {"model": Net().eval(), "batches": [images(), images(3)]}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert capsys.readouterr().out == "poolings on 8-bit integers: 2 of 2\n"
    x = images(5)
    with torch.no_grad():
        expected = names["quantized"](x)
    assert torch.equal(torch.export.load("model.pt2").module()(x), expected)
    (found,) = ort.InferenceSession("model.onnx").run(None, {"x": x.numpy()})
    # Not the same bits: its convolutions add up integers.
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=0.02)


def test_nothing_is_rounded_twice() -> None:
    """From the first pooling on, integers reach the next layer as they are, through a flatten."""
    config, x = pt2e.quantization_config(), images()
    graph = prepare_pt2e(exported(Net(torch.tanh), x), with_x86(config))
    graph(x)
    converted = pt2e.convert(graph, report=None)
    flatten = next(node for node in converted.graph.nodes if "flatten" in str(node.target))
    assert str(flatten.args[0].target) == "poolkit.quantized_pool.default"
    assert {str(user.target) for user in flatten.users} == {
        "quantized_decomposed.dequantize_per_tensor.default"
    }
    pool = next(node for node in converted.graph.nodes if node.name.startswith("pool"))
    (dequantize,) = pool.users
    assert str(next(iter(dequantize.users)).target) == "aten.conv2d.default"


def test_what_is_excluded_stays() -> None:
    config, x = pt2e.quantization_config(), images()
    graph = prepare_pt2e(exported(Net(F.relu), x), with_x86(config, "pool"))
    graph(x)
    told: list[str] = []
    pt2e.convert(graph, report=told.append)
    assert told == [
        "poolings on 8-bit integers: 1 of 2\nin float: pool (max, 2×2): its input is not quantized"
    ]


def branch(pool: Pool) -> Pool:
    return lambda x: torch.cond(x.sum() > 0, lambda x: pool(x), lambda x: x + 1, (x,))


FLOAT: dict[str, tuple[Pool, str]] = {
    "branch": (
        branch(lambda x: F.max_pool2d(x, 3, 1, 1)),
        "it stands in a graph within the graph (cond)",
    ),
    "lp": (lambda x: F.lp_pool2d(x, 2, 2), "its input is a power, as in an Lp norm"),
    "indices": (
        lambda x: torch.stack([y.float() for y in F.max_pool2d(x, 2, return_indices=True)]),
        "the places that it returns are used",
    ),
    "indices alone": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1].float(),
        "the places that it returns are used",
    ),
    "gem": (lambda x: poolkit.pool(x, "Global()", "GeM(3.0)"), "GeM() has no kernel on integers"),
    "fractional": (
        lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
        "fractional_max_pool2d has no kernel on integers",
    ),
    "of three axes": (
        lambda x: x[0].mean(-1),
        "mean over axis 2 of three may be no pooling, but a normalization",
    ),
    "another dtype": (
        lambda x: x.mean((2, 3), dtype=torch.float64),
        "its result has another dtype than its input",
    ),
    "boxes": (
        lambda x: poolkit.roi_align(x, torch.tensor([[0.0, 0, 0, 4, 4]]), 2),
        "poolkit.region_mean has no kernel on integers",
    ),
    "deviation": (lambda x: x.std((2, 3)), "std over space has no kernel on integers"),
    "median": (lambda x: x.median(-1).values, "median over space has no kernel on integers"),
    "norm": (
        lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
        "linalg_vector_norm over space has no kernel on integers",
    ),
    "soft": (poolkit.nn.SoftPool2d(2), "Soft() has no kernel on integers"),
    "blur": (poolkit.nn.BlurPool2d(3), "(BlurPool2d): it is made of other operations"),
    "integers": (
        lambda x: F.max_pool2d((x * 100).to(torch.int32), 2).float(),
        "its input is int32",
    ),
}


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_in_float(name: str) -> None:
    pool, why = FLOAT[name]
    told: list[str] = []
    model, x = Gallery({name: pool}), images()
    graph = prepared(model, x)
    before = graph(x)[name]
    converted = pt2e.convert(graph, report=told.append)
    first, second = told[0].splitlines()
    assert first == "poolings on 8-bit integers: 0 of 1"
    assert second.startswith("in float: ")
    assert why in second
    if name != "fractional":  # which draws its windows
        torch.testing.assert_close(converted(x)[name], before)


def test_report_of_a_whole_model() -> None:
    """A module that is called twice, poolings that are joined, other ranks, another layout."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
            self.soft, self.learned = poolkit.nn.SoftPool2d(2), poolkit.nn.DepthwiseConvPool2d(4, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = torch.relu(self.conv(x))
            once = self.pool(x)
            joined = torch.cat([once, F.avg_pool2d(x, 2), self.soft(x)], 1)
            lines = F.max_pool1d(x.flatten(2), 2), F.avg_pool3d(x[:, None], 2)
            return [self.pool(once), joined, x.mean((2, 3)), self.learned(x), *lines]

    for layout in (torch.contiguous_format, torch.channels_last):
        x = images().contiguous(memory_format=layout)
        model = Whole().eval().to(memory_format=layout)
        graph = prepare_pt2e(exported(model, x), with_x86(pt2e.quantization_config()))
        pt2e.calibrate(graph, [x])
        told: list[str] = []
        converted = pt2e.convert(copy.deepcopy(graph), report=told.append)
        assert told == [
            "poolings on 8-bit integers: 6 of 8\n"
            "in float: soft (Soft(), Sliding(2, stride=2)): Soft() has no kernel on integers\n"
            "in float: learned (DepthwiseConvPool2d): it is made of other operations, which "
            "nothing has quantized"
        ]
        with torch.no_grad():
            answers = zip(converted(x), graph(x), strict=True)
        for ours, theirs in answers:
            assert float((ours - theirs).abs().max()) < 0.03 * float(theirs.abs().max())


def test_no_pooling_is_taken_for_one() -> None:
    """Statistics over channels or the batch, and attention's softmax."""

    class Statistics(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.std(1, keepdim=True) + x.flatten(2).std(-1)[..., None, None]
            return x.mean(1).sum() + x.sum((0, 2, 3)).max() + centred.softmax(-1).mean() + x.max()

    assert not list(poolings_of(exported(Statistics(), images()).graph))


def test_input_that_is_dynamic_or_by_channel() -> None:
    ops = torch.ops.quantized_decomposed

    class Around(nn.Module):
        def __init__(self, quantize: Any, dequantize: Any, *params: Any) -> None:
            super().__init__()
            self.quantize, self.dequantize, self.params = quantize, dequantize, params

        def forward(self, x: Tensor) -> Tensor:
            params = (*self.params, -128, 127, torch.int8)
            y = F.max_pool2d(self.dequantize(self.quantize(x, *params), *params), 2)
            return self.quantize(y, *params)

    by_channel = (ops.quantize_per_channel.default, ops.dequantize_per_channel.default)
    dynamic = (ops.quantize_per_tensor.tensor, ops.dequantize_per_tensor.tensor)
    static = (ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default)
    ones, zeros = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    for model, why in (
        (Around(*by_channel, ones, zeros, 1), "its input is quantized by channel"),
        (Around(*dynamic, ones[0], zeros[0]), "its input is quantized dynamically"),
        (Around(*static, 0.5, 0), ""),
    ):
        graph = exported(model, images())
        before = graph(images())
        (found,) = pt2e.lower(graph)
        assert found.obstacle == why
        assert found.is_integer == (not why)
        assert torch.equal(graph(images()), before)


def test_result_with_other_parameters() -> None:
    class Around(nn.Module):
        def __init__(self, pool: Pool, scale: float, dtype: torch.dtype) -> None:
            super().__init__()
            self.pool, self.scale, self.dtype = pool, scale, dtype

        def forward(self, x: Tensor) -> Tensor:
            ops = torch.ops.quantized_decomposed
            q = ops.quantize_per_tensor(x, 0.02, 3, -128, 127, torch.int8)
            y = self.pool(ops.dequantize_per_tensor(q, 0.02, 3, -128, 127, torch.int8))
            low = torch.iinfo(self.dtype).min
            return ops.quantize_per_tensor(y, self.scale, 3, low, low + 255, self.dtype)

    other, dtype = "with other parameters than its input", "to another dtype than its input"
    for pool, scale, kind, why in (
        (nn.MaxPool2d(2), 0.03, torch.int8, other),
        (nn.AvgPool2d(2), 0.03, torch.int8, ""),
        (nn.AvgPool2d(2), 0.02, torch.uint8, dtype),
    ):
        graph = exported(Around(pool, scale, kind), images())
        (found,) = pt2e.lower(graph)
        assert found.obstacle == (f"its result is quantized {why}" if why else "")


def test_window_in_the_padding() -> None:
    """A window that sees padding alone has the lowest value of the range, not of the dtype."""

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ops, params = torch.ops.quantized_decomposed, (0.5, 0, -8, 7, torch.int8)
            y = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *params), *params)
            y = poolkit.max_pool2d(y, 2, padding=((0, 0), (0, 3)))
            return ops.quantize_per_tensor(y, *params)

    graph = exported(Padded(), images())
    before = graph(images())
    assert (before[..., -1] == -8).all()
    (found,) = pt2e.lower(graph)
    assert found.is_integer
    assert torch.equal(graph(images()), before)


# --- numbers -----------------------------------------------------------------------------------

#: In steps: float32 cannot say on which side of a tie a value lies that is so close to it.
TIE = 2e-4


class Recorder(fx.Interpreter):
    """Keeps what each node gives."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def compare_layers(graph: fx.GraphModule, model: Gallery, x: Tensor) -> tuple[int, int]:
    """Every pooling of the fake-quantized graph against that of its integer form: how many values
    have the parameters of their input, and how many of these are ties that were rounded to the
    other side. Fails for any other difference.
    """
    record = Recorder(graph)
    fake = record.run(x)
    told: list[str] = []
    integers = pt2e.convert(copy.deepcopy(graph), report=told.append)(x)
    assert told == [f"poolings on 8-bit integers: {len(model.pools)} of {len(model.pools)}"]
    values = ties = 0
    for pooling, (name, pool), (_, before, observer) in zip(
        poolings_of(graph.graph), model.pools.items(), observers(graph), strict=True
    ):
        scale, zero = (float(part) for part in observer.calculate_qparams())
        low, high = observer.quant_min, observer.quant_max
        # In float64, of the very values that were pooled: far more exact than a tie is close.
        steps = pool(record.values[pooling.input].double()) / scale + zero
        mine, theirs = (torch.round(out[name].double() / scale + zero) for out in (integers, fake))
        assert low <= int(mine.min()), name
        assert int(mine.max()) <= high, name
        assert mine.shape == theirs.shape, name
        tied = ((steps - steps.floor() - 0.5).abs() < TIE) & (steps > low - 1) & (steps < high + 1)
        assert torch.equal(mine[~tied], theirs[~tied]), name
        assert torch.equal(mine[~tied], steps.round().clamp(low, high)[~tied]), name
        if pooling.selects:
            assert torch.equal(mine, theirs), name
        assert int((mine - theirs).abs().max()) <= 1, name
        if getattr(observer, "fake_quantize", observer) is before:
            values += mine.numel()
            ties += int((mine != theirs).sum())
    return values, ties


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_equal_training(bits: int, dtype: torch.dtype) -> None:
    model, x = Gallery(ALL), images()
    graph = prepared(model, x, bits, dtype, qat=True)
    move_exported_model_to_eval(graph)
    values, ties = compare_layers(graph, model, x)
    assert values > 2500
    assert ties == 0
    # What was not seen before saturates alike.
    assert compare_layers(graph, model, 3 * x)[1] == 0


def test_ties_of_other_fake_quantization() -> None:
    """torchao's own takes what float32 makes of a tie: a step to the other side, and no more."""
    model, x = Gallery(AVERAGES), images()
    graph = prepared(model, x, 4, qat=True)
    move_exported_model_to_eval(graph)
    assert compare_layers(graph, model, x)[1] == 0
    for name, module in list(graph.named_children()):
        if isinstance(module, pt2e.IntegerRounding):
            setattr(graph, name, module.fake_quantize)
    values, ties = compare_layers(graph, model, x)
    assert 0 < ties < values / 5


@pytest.mark.parametrize("sharing", ["none", "all"])
def test_integers_equal_training_with_other_observers(sharing: str) -> None:
    model, x = Gallery({**AVERAGES, **{f"global {k}": v for k, v in GLOBALS.items()}}), images()
    graph = prepared(model, x, 8, qat=True, share_averages=sharing)
    move_exported_model_to_eval(graph)
    values, ties = compare_layers(graph, model, 2 * x)
    assert (values > 0) == (sharing == "all")
    assert ties == 0


class Bare(nn.Module):
    """Nothing but poolings."""

    def __init__(self, pools: dict[str, Pool]) -> None:
        super().__init__()
        self.pools = pools
        self.inner = nn.ModuleList(pool for pool in pools.values() if isinstance(pool, nn.Module))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [pool(x[:, 0] if "one axis" in name else x) for name, pool in self.pools.items()]


SOME = {
    name: ALL[name]
    for name in (
        "max: module", "max: amin of columns", "max: our minimum", "max: our adaptive",
        "max: padded on one side", "max: padded, last window cut", "average: function",
        "average: padding counts, last window cut", "average: padding does not, last window cut",
        "average: padded on one side", "average: padded on one side, not counted",
        "average: our adaptive", "average: our sum", "global: mean",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("pools", "bits", "dtype"),
    [
        (SOME, 8, torch.int8),
        (SOME, 4, torch.uint8),
        pytest.param(ALL, 8, torch.uint8, marks=pytest.mark.slow),
    ],
    ids=["int8", "4 bits", "all"],
)
def test_onnx_has_the_same_integers(
    pools: dict[str, Pool], bits: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Each pooling stands between DequantizeLinear and QuantizeLinear, and gives the same bits in
    both engines at another batch than it was written with."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")

    graph = prepared(Bare(pools), images(), bits, dtype, any_batch=True)
    converted = pt2e.convert(graph, report=None)
    report = poolkit.export_onnx(converted, images(), tmp_path / "model.onnx", engines=())
    made = onnx.load(report.path).graph
    makers = {name: node for node in made.node for name in node.output}
    for node in made.node:
        if "Pool" not in node.op_type:
            continue
        before = makers[node.input[0]]
        while before.op_type in ("Pad", "Neg", "Unsqueeze", "Reshape"):
            before = makers[before.input[0]]
        assert before.op_type == "DequantizeLinear", node
    source = next(n for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target))
    _, scale, zero, low, high, _ = source.args
    draw = torch.Generator().manual_seed(5)
    x = (torch.randint(low, high + 1, (5, 3, 9, 10), generator=draw) - zero) * scale
    expected = converted(x)
    session = ort.InferenceSession(str(report.path), unfused(ort))
    for run in (partial(session.run, None), ENGINES["reference"][1](report.path.read_bytes())):
        found = run({made.input[0].name: x.numpy()})
        for name, theirs, ours in zip(pools, found, expected, strict=True):
            assert torch.equal(torch.from_numpy(theirs), ours), name


def unfused(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


@pytest.mark.parametrize("zero_point", [0, 124, 125])
def test_averages_that_onnx_runtime_fuses(zero_point: int, tmp_path: Path) -> None:
    """Its own operator on integers has the same bits where the zero point is even; else it takes
    ties, and nothing else, to the other side."""
    ort = pytest.importorskip("onnxruntime")
    from poolkit.quantized import QParams, avg_pool2d, dequantize, max_pool2d, quantize

    qparams = QParams(1.25 / 64, zero_point)

    class Average(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = max_pool2d(quantize(x, qparams, "uint8"), 2, 1)
            return dequantize(avg_pool2d(q, 2, qparams=qparams), qparams)

    draw = torch.Generator().manual_seed(5)
    steps = torch.randint(0, 256, (2, 3, 21, 21), generator=draw) - zero_point
    x = steps * qparams.scale
    report = poolkit.export_onnx(Average(), x, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    found = ort.InferenceSession(str(report.path), options).run(None, {"x": x.numpy()})[0]
    operators = {node.op_type for node in load_onnx(tmp_path / "fused.onnx")}
    assert {"MaxPool", "QLinearAveragePool"} <= operators
    exact = F.avg_pool2d(F.max_pool2d(steps.double(), 2, 1), 2)
    apart = (torch.from_numpy(found) / qparams.scale - exact.round()).round()
    assert (exact.round() == Average()(x) / qparams.scale).all()
    assert bool(apart.any()) == (zero_point % 2 == 1)
    assert (apart[exact % 1 != 0.5] == 0).all()
    assert float(apart.abs().max()) <= 1


def load_onnx(path: Path) -> Any:
    import onnx

    return onnx.load(path).graph.node


def test_the_comparison_can_fail() -> None:
    model, x = Gallery({"average": nn.AvgPool2d(2)}), images()
    graph = prepared(model, x, qat=True)
    wrong = Gallery({"average": nn.AvgPool2d(2, divisor_override=5)})
    with pytest.raises(AssertionError, match="average"):
        compare_layers(graph, wrong, x)


def test_whole_network_after_training_with_it() -> None:
    """All layers together: conversion changes hardly a value, and those by rounding alone."""
    torch.manual_seed(0)
    config, x = pt2e.quantization_config(8, qat=True), images(16)
    model = Net(F.relu).train()
    graph = prepare_qat_pt2e(exported(model, x), with_x86(config))
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(graph(x), torch.arange(16) % 5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    move_exported_model_to_eval(graph)
    graph.apply(disable_observer)
    with torch.no_grad():
        fake = graph(x)
        integers = pt2e.convert(graph, report=None)(x)
    assert float((integers - fake).abs().max()) < 0.02 * float(fake.abs().max())


class Drops(nn.Module):
    """Other in training mode, in every way that torch's own flow forgets or leaves to its users."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
        self.norm = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout2d(), nn.Dropout())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.pool(x)).flatten(2)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5 if self.training else 0.0)


def test_graphs_are_made_ready_for_inference() -> None:
    model, x = Drops().train(), images(8)
    graph = torch.export.export(model, (x,)).module()
    graph(x)  # counts, and keeps statistics
    end_training(graph)
    state = copy.deepcopy(graph.state_dict())
    model.load_state_dict(state)
    torch.testing.assert_close(graph(x), model.eval()(x))
    for name, value in graph.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_what_was_exported_for_training_is_converted_for_inference() -> None:
    config, x = pt2e.quantization_config(), images(8)
    model = Drops().train()
    model.norm[0] = nn.Identity()  # beside which torchao takes 20 s
    graph = prepare_pt2e(torch.export.export(model, (x,)).module(), with_x86(config))
    pt2e.calibrate(graph, [x])
    integers = pt2e.convert(graph, report=None)
    assert torch.equal(integers(x), integers(x))
    torch.testing.assert_close(integers(x), model.eval()(x), rtol=0, atol=0.05)


# --- gradients ---------------------------------------------------------------------------------

DIFFERENTIABLE = [
    "max: module", "max: adaptive module", "max: our module", "max: our minimum",
    "average: module", "average: our module", "average: divisor", "average: our sum",
    "global: mean", "global: our function", "global: adaptive module",
]  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_straight_through(name: str, bits: int) -> None:
    """The gradient is that of the pooling at the rounded values; what saturates has none."""

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = ALL[name]

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)

    graph = prepared(Only(), images(), bits, qat=True)
    ((_, before, after),) = observers(graph)
    x = (1.5 * images()).requires_grad_()  # beyond the range that was seen
    y = graph(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(y, x, weights)

    def rounded(values: Tensor, observer: nn.Module) -> tuple[Tensor, Tensor]:
        """The values on the grid, and which of them are within its range."""
        scale, zero = observer.calculate_qparams()
        low, high = observer.quant_min, observer.quant_max
        # To four places first: float32 knows no more of a tie.
        codes = (values.double() / scale).round(decimals=4).round() + zero
        inside = (codes >= low) & (codes <= high)
        return ((codes.clamp(low, high) - zero) * scale).float(), inside

    read, inside = rounded(x.detach(), before)
    read.requires_grad_()
    pooled = ALL[name](read)
    given, kept = rounded(pooled.detach(), after)
    torch.testing.assert_close(y, given)
    (expected,) = torch.autograd.grad(pooled, read, weights * kept)
    torch.testing.assert_close(found, expected * inside)
    assert 0 < int(inside.sum()) < inside.numel()
    assert float(found.abs().max()) > 0


def test_calibration() -> None:
    """It rounds nothing; then ranges of activations stay, and those of weights follow."""
    config, x = pt2e.quantization_config(4, qat=True), images(4)
    graph = prepare_qat_pt2e(exported(Net(F.relu).eval(), x), with_x86(config))
    move_exported_model_to_eval(graph)
    float_model = Net(F.relu).eval()
    float_model.load_state_dict(
        {name: value for name, value in graph.state_dict().items() if name in dict(
            float_model.named_parameters())}
    )  # fmt: skip
    seen: list[Tensor] = []
    hook = graph.register_forward_hook(lambda module, given, out: seen.append(out))
    pt2e.calibrate(graph, [x, (2 * x,)])
    hook.remove()
    torch.testing.assert_close(seen[0], float_model(x))
    torch.testing.assert_close(seen[1], float_model(2 * x))
    assert not torch.allclose(graph(x), seen[0])  # rounded to 4 bits
    activations = [(before, after) for _, before, after in observers(graph)]
    scales = [float(before.calculate_qparams()[0]) for before, _ in activations]
    weight = next(
        module
        for module in graph.modules()
        if isinstance(module, FakeQuantize) and module.qscheme == torch.per_channel_symmetric
    )
    before = weight.calculate_qparams()[0].clone()
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(2)
    graph(10 * x)
    assert [float(before.calculate_qparams()[0]) for before, _ in activations] == scales
    torch.testing.assert_close(weight.calculate_qparams()[0], 2 * before)


# --- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_configuration(bits: int) -> None:
    for qat in (False, True):
        config = pt2e.quantization_config(bits, qat=qat)
        assert config.is_qat == qat
        assert (config.input_activation.quant_min, config.input_activation.quant_max) == (
            0,
            2**bits - 1,
        )
        assert (config.weight.quant_min, config.weight.quant_max) == (
            -(2 ** (bits - 1)),
            2 ** (bits - 1) - 1,
        )


def observing(bits: int) -> tuple[Any, Any]:
    """How activations are quantized, and a new observer of them."""
    spec = pt2e.quantization_config(bits).input_activation
    return spec, spec.observer_or_fake_quant_ctr.with_args(
        dtype=spec.dtype,
        quant_min=spec.quant_min,
        quant_max=spec.quant_max,
        qscheme=spec.qscheme,
    )()


def test_few_bits_saturate() -> None:
    """What is rare does not take the few steps there are: the range of 4 bits is the narrower."""
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    errors, ranges = {}, {}
    for bits in (8, 4):
        spec, observer = observing(bits)
        observer(x)
        scale, zero = observer.calculate_qparams()
        ranges[bits] = float(scale) * (2**bits - 1)
        made = torch.fake_quantize_per_tensor_affine(
            x, float(scale), int(zero), spec.quant_min, spec.quant_max
        )
        errors[bits] = float((made - x).square().mean())
    assert ranges[4] < 0.9 * ranges[8]
    step = float(x.max() - x.min()) / 15
    assert errors[4] < 0.9 * step**2 / 12  # of rounding alone, over the whole range


def test_scales_have_few_digits() -> None:
    """8 binary ones, so that sums in float32 are exact; and the range is none the smaller."""
    for bits, low, high in ((8, -1.3, 2.9), (8, 0.0, 0.7), (4, -0.3, 7.7), (4, -5.0, -1.0)):
        spec, observer = observing(bits)
        scale, zero = observer._calculate_qparams(torch.tensor(low), torch.tensor(high))
        mantissa, _ = torch.frexp(scale)
        assert float(mantissa) * 256 == round(float(mantissa) * 256)
        whole = (max(high, 0) - min(low, 0)) / (2**bits - 1)
        assert whole <= float(scale) <= 1.008 * whole
        ends = [(end - int(zero)) * float(scale) for end in (spec.quant_min, spec.quant_max)]
        assert ends[0] <= min(low, 0) + 0.5 * float(scale)
        assert ends[1] >= max(high, 0) - 0.5 * float(scale)


def test_averages_of_fused_fake_quantization_are_wrapped() -> None:
    """torchao's default for training shares its scale with the rounding of averages, too."""
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        get_default_x86_inductor_quantization_config,
    )

    config, x = get_default_x86_inductor_quantization_config(is_qat=True), images()
    graph = prepare_qat_pt2e(exported(Gallery(AVERAGES), x), pt2e.PoolingQuantizer(config))
    graph(x)
    for name, before, after in observers(graph):
        assert after.fake_quantize is before, name
        assert torch.equal(after.calculate_qparams()[0], before.calculate_qparams()[0]), name


def test_errors() -> None:
    with pytest.raises(poolkit.PoolValueError, match="bits must be from 2 to 8, got 9"):
        pt2e.quantization_config(9)
    config = pt2e.quantization_config()
    with pytest.raises(poolkit.PoolTypeError, match="must be a QuantizationConfig of torchao"):
        pt2e.PoolingQuantizer(8)  # type: ignore[arg-type]
    with pytest.raises(poolkit.PoolValueError, match="there is no share_averages 'some'"):
        pt2e.PoolingQuantizer(config, share_averages="some")
    for changed in (
        {"is_dynamic": True},
        {"dtype": torch.int16},
        {"qscheme": torch.per_channel_affine},
    ):
        spec: QuantizationSpec = dataclasses.replace(config.input_activation, **changed)
        with pytest.raises(poolkit.PoolValueError, match="with one scale that is not dynamic"):
            pt2e.PoolingQuantizer(dataclasses.replace(config, input_activation=spec))
    with pytest.raises(poolkit.PoolTypeError, match="a prepared model is a GraphModule, got Net"):
        pt2e.convert(Net())  # type: ignore[arg-type]
    plain = exported(nn.MaxPool2d(2), images())
    with pytest.raises(poolkit.PoolTypeError, match="Prepare it with"):
        pt2e.convert(plain)


def test_calibration_on_nothing() -> None:
    """Ranges would be those that nobody has found; and what fails leaves the model rounding."""
    graph = prepared(Gallery({"mean": nn.AvgPool2d(2)}), images(), qat=True)
    with pytest.raises(poolkit.PoolValueError, match="there are no batches"):
        pt2e.calibrate(graph, iter(()))
    with pytest.raises(poolkit.PoolValueError, match="the model raised on input float32"):
        pt2e.calibrate(graph, [[images()], [images(), torch.arange(2)]])
    rounding = [m for m in graph.modules() if isinstance(m, FakeQuantize)]
    assert rounding
    assert all(int(module.fake_quant_enabled) for module in rounding)


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "poolkit.quantized.pt2e")
    with pytest.raises(poolkit.MissingExtraError, match=r"pip install 'poolkit\[quantization\]'"):
        importlib.import_module("poolkit.quantized.pt2e")


def test_training_of_what_has_no_gradient_is_refused() -> None:
    """In a graph, poolkit's operators are bare: their gradients stay with the modules."""
    x = images()
    for pool in (
        lambda x: poolkit.relu_max_pool2d(x, 2),
        branch(lambda x: poolkit.max_pool2d(x, 3, 1, 1)),
    ):
        with pytest.raises(poolkit.PoolValueError, match="has no gradient in an exported graph"):
            prepared(Gallery({"refused": pool}), x, qat=True)
    graph = prepared(
        Gallery({"max": poolkit.nn.MaxPool2d(2), "mean": poolkit.nn.AvgPool2d(2)}), x, qat=True
    )
    sum(y.sum() for y in graph(x).values()).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in graph.parameters())


def test_sizes_that_vary() -> None:
    config, x = pt2e.quantization_config(), images()
    sizes = {2: torch.export.Dim("height", min=6), 3: torch.export.Dim("width", min=6)}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1))
    graph = torch.export.export(model, (x,), dynamic_shapes=(sizes,)).module()
    graph = prepare_pt2e(graph, with_x86(config))
    graph(x)
    before = graph(images()[..., :7])
    converted = pt2e.convert(graph, report=None)
    assert len(pooling_targets(converted)) == 2
    torch.testing.assert_close(converted(images()[..., :7]), before, rtol=0, atol=0.03)


def test_lowered_graphs_export_and_take_any_batch() -> None:
    config, x = pt2e.quantization_config(), images(4)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    graph = torch.export.export(Net(F.relu), (x,), dynamic_shapes=shapes).module()
    graph = prepare_pt2e(graph, with_x86(config))
    graph(x)
    converted = pt2e.convert(graph, report=None)
    again = torch.export.export(converted, (x,), dynamic_shapes=shapes).module()
    assert torch.equal(again(images(7)), converted(images(7)))
    assert "poolkit.pool.default" in pooling_targets(again)
