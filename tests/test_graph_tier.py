# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The graph tier of optimisation: what is rewritten, what not and why, and that the result runs."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import Calls, X
from torch import nn

import poolkit
from poolkit.errors import PoolValueError
from poolkit.inspection import inspect
from poolkit.inspection.exported import ExportedModel
from poolkit.optimization import OptimizeReport, load_program, optimize, trial
from poolkit.timing import Comparison, Samples


def rewritten(model: nn.Module, *inputs: torch.Tensor, **options) -> OptimizeReport:
    """The report, once it is seen that the program answers as the model does."""
    inputs = inputs or (X,)
    report = optimize(model, inputs, tier="graph", seconds=options.pop("seconds", 0), **options)
    if report.program is not None:
        other = tuple(x.flip(-1) if x.ndim else x for x in inputs)
        programs = report.program.module(), report.module()
        for given in (inputs, other):
            expected = model.eval()(*given)
            for program in programs:
                check_equal(program(*given), expected)
    return report


def check_equal(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def operators(report: OptimizeReport) -> list[str]:
    """The operators of the program that are not the convolution's."""
    nodes = [node for node in report.program.graph.nodes if node.op == "call_function"]
    return [str(node.target).rpartition(".")[0] for node in nodes if "conv" not in str(node.target)]


def recipes(report: OptimizeReport) -> list[tuple[str, ...]]:
    """Window and reduction of poolkit's operators in the program."""
    return [
        tuple(arg for arg in node.args if isinstance(arg, str))
        for node in report.program.graph.nodes
        if str(node.target).startswith("poolkit.")
    ]


def clock(monkeypatch, *speedups: float) -> None:
    """A clock that says what a test wants, comparison by comparison; the last one stays."""
    left = list(speedups)

    def compare(before, after, seconds):
        before(), after()
        ratio = left.pop(0) if len(left) > 1 else left[0]
        return Comparison((1e-3 * ratio,) * 15, (1e-3,) * 15)

    monkeypatch.setattr(trial, "compare", compare)
    monkeypatch.setattr(trial, "interleave", lambda calls, _: [Samples(1, [8e-3])])


# --- every pooling --------------------------------------------------------------------------------

POOLINGS = {
    "max": (lambda x: F.max_pool2d(x, 3, 2, 1), ("Sliding(3, stride=2, padding=1)", "Max()")),
    "ceil": (
        lambda x: F.max_pool2d(x, (3, 2), ceil_mode=True),
        ("Sliding((3, 2), stride=(3, 2), ceil_mode=True)", "Max()"),
    ),
    "dilated": (
        lambda x: F.max_pool2d(x, 2, 1, 0, 3), ("Sliding(2, stride=1, dilation=3)", "Max()"),
    ),
    "average": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        ("Sliding(3, stride=2, padding=1)", "Mean(count_include_pad=False)"),
    ),
    "divisor": (
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        ("Sliding(2, stride=2)", "Mean(divisor=3)"),
    ),
    "adaptive average": (lambda x: F.adaptive_avg_pool2d(x, 7), ("Adaptive((7, 7))", "Mean()")),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, 3), ("Adaptive((3, 3))", "Max()")),
    "mean": (lambda x: x.mean((2, 3)), ("Global()", "Mean()")),
    "mean, kept": (lambda x: x.mean((-1, -2), keepdim=True), ("Global()", "Mean()")),
    "amax": (lambda x: x.amax((2, 3)), ("Global()", "Max()")),
    "amin": (lambda x: x.amin((2, 3)), ("Global()", "Min()")),
    "sum": (lambda x: x.sum((2, 3)), ("Global()", "Sum()")),
    "one axis": (lambda x: x.mean(3), ("Global()", "Mean()")),
    "max with unused indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0], ("Sliding(2, stride=2)", "Max()"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_is_rewritten(name):
    call, expected = POOLINGS[name]
    report = rewritten(Calls(call))
    assert [layer.status for layer in report.layers] == ["swapped"]
    assert recipes(report) == [expected]
    assert report.layers[0].error <= 1e-4  # a sum of 400 values
    assert report.error <= 1e-4


@pytest.mark.parametrize("axes", [1, 3])
def test_other_ranks(axes):
    conv, pool, mean = {
        1: (nn.Conv1d(3, 4, 3), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2)),
        3: (nn.Conv3d(3, 4, 3), nn.MaxPool3d(3, 2, 1), nn.AvgPool3d(2)),
    }[axes]
    x = torch.randn(2, 3, *(10,) * axes)
    report = rewritten(nn.Sequential(conv, pool, mean), x)
    assert [layer.status for layer in report.layers] == ["swapped", "swapped"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_layouts(dtype):
    model = Calls(lambda x: F.adaptive_avg_pool2d(F.max_pool2d(F.relu(x), 3, 2, 1), 2)).to(dtype)
    x = X.to(dtype).contiguous(memory_format=torch.channels_last)
    report = optimize(model, x, tier="graph", seconds=0)
    assert [layer.status for layer in report.layers] == ["swapped", "swapped"]


SKIPPED = {
    "its indices are used": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "it reduces axes that are not the last ones": lambda x: x.mean(2),
    "it converts to another dtype on the way": lambda x: x.mean((2, 3), dtype=torch.float64),
    "poolkit's divides by the number of values, torch's does not": lambda x: x.logsumexp((2, 3)),
    "is poolkit's already": lambda x: poolkit.avg_pool2d(x, 5),
    "is no window times a reduction": lambda x: F.max_unpool2d(
        *F.max_pool2d(x, 2, return_indices=True), 2
    ),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_is_skipped_says_why(reason):
    report = rewritten(Calls(SKIPPED[reason]))
    layer = report.layers[-1]
    assert (layer.status, layer.reason, layer.after) == ("skipped", reason, layer.before)
    assert not report.swapped


def test_filter_and_names():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), Calls(lambda x: x.amax((2, 3))))
    model[2].conv = nn.Conv2d(4, 4, 1)
    asked = []

    def only_modules(module, name):
        asked.append((type(module).__name__, name))
        return isinstance(module, nn.MaxPool2d)

    report = rewritten(model, filter_fn=only_modules)
    assert asked == [("MaxPool2d", "1"), ("Calls", "2")]
    first, second = report.layers
    assert (first.name, first.status) == ("1", "swapped")
    assert (second.status, second.reason) == ("skipped", "left out by filter_fn")
    assert second.before.startswith("max over space, axes 2, 3 (models.py:")


def test_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).train()
    modules = list(model)
    rewritten(model, dry_run=True)
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert all(module.training for module in model.modules())


class Counts(nn.Module):
    """How often it has run, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return self.pool(x)


@pytest.mark.parametrize(
    "look", [
        lambda model: optimize(model, X, seconds=0),
        lambda model: optimize(model, X, seconds=0, tier="graph"),
        lambda model: poolkit.lint(model, X),
    ], ids=["module", "graph", "lint"],
)  # fmt: skip
def test_buffers_stay_as_they_were(look):
    model = Counts()
    runs = model.runs
    look(model)
    assert model.runs is runs
    assert runs == 0


# --- activations ----------------------------------------------------------------------------------

ACTIVATIONS = {
    "ReLU()": F.relu,
    "LeakyReLU(negative_slope=0.2)": lambda x: F.leaky_relu(x, 0.2),
    "Sigmoid()": torch.sigmoid,
    "Tanh()": torch.tanh,
    "Exp()": torch.exp,
    "SiLU()": F.silu,
    "GELU(approximate='tanh')": lambda x: F.gelu(x, approximate="tanh"),
    "Hardswish()": F.hardswish,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_join_a_mean(activation):
    function = ACTIVATIONS[activation]
    report = rewritten(Calls(lambda x: F.avg_pool2d(function(x), 2)))
    ((_, reduction),) = recipes(report)
    assert reduction == repr(poolkit.Activated("Mean()", activation))
    assert len(operators(report)) == 1
    assert report.layers[0].after == f"poolkit average, 2×2, with {activation}"


@pytest.mark.parametrize("activation", list(ACTIVATIONS)[:5])
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_activations_that_never_fall_join_a_max(activation, first):
    function = ACTIVATIONS[activation]
    report = rewritten(
        Calls(
            (lambda x: F.max_pool2d(function(x), 3, 2))
            if first
            else (lambda x: function(F.max_pool2d(x, 3, 2)))
        )
    )
    assert recipes(report) == [
        ("Sliding(3, stride=2)", repr(poolkit.Activated("Max()", activation)))
    ]
    assert len(operators(report)) == 1


@pytest.mark.parametrize("activation", [*list(ACTIVATIONS)[5:], "LeakyReLU(negative_slope=-0.5)"])
def test_activations_that_fall_are_joined_but_never_passed(activation):
    function = ACTIVATIONS.get(activation, lambda x: F.leaky_relu(x, -0.5))
    report = rewritten(Calls(lambda x: torch.tanh(F.max_pool2d(function(x), 2))))
    assert operators(report) == ["poolkit.pool", "aten.tanh"]
    assert recipes(report)[0][1] == repr(poolkit.Activated("Max()", activation))


def test_a_max_moves_before_other_functions_that_never_fall():
    report = rewritten(Calls(lambda x: F.max_pool2d(F.relu6(x.clamp(min=-1)), 2)))
    assert operators(report) == ["poolkit.pool", "aten.clamp", "aten.relu6"]
    assert report.layers[0].after == "poolkit max, 2×2 → clamp → relu6"


def test_what_is_read_elsewhere_stays():
    def twice(x):
        y = F.relu(x)
        return F.max_pool2d(y, 2), y

    report = rewritten(Calls(twice))
    assert operators(report) == ["aten.relu", "poolkit.pool"]

    def chain(x):
        y = F.relu(x)
        return F.max_pool2d(torch.sigmoid(y), 2), y

    assert operators(rewritten(Calls(chain))) == ["aten.relu", "poolkit.pool"]


def test_in_place_activations():
    report = rewritten(Calls(lambda x: F.max_pool2d(F.relu(x, inplace=True), 2)))
    assert operators(report) == ["poolkit.pool"]

    def of_a_view(x):
        y = F.max_pool2d(x[:, :4].relu_(), 2)
        return y, x  # whose first half was changed

    assert "aten.relu_" in operators(rewritten(Calls(of_a_view)))

    def of_a_view_alone(x):
        return F.max_pool2d(F.dropout(x[:, :4], training=False).relu_(), 2)

    assert "aten.relu_" not in operators(rewritten(Calls(of_a_view_alone)))

    def of_the_input_itself(x):
        y = F.max_pool2d(F.dropout(x, training=False).relu_(), 2)
        return y, F.avg_pool2d(x, 2)  # which was changed

    report = rewritten(Calls(of_the_input_itself))
    assert [layer.status for layer in report.layers] == ["swapped"] * 2, report.layers

    def written_later(x):
        y = F.max_pool2d(F.relu(x), 2)
        x.add_(1)
        return y, x

    assert operators(rewritten(Calls(written_later)))[0] == "poolkit.pool"

    def written_before(x):
        y = torch.sigmoid(x)
        x.neg_()
        return F.max_pool2d(y, 2), x

    assert operators(rewritten(Calls(written_before)))[0] == "poolkit.pool"


def test_activations_of_poolkits_own_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), poolkit.nn.MaxPool2d(2))
    report = rewritten(model)
    assert operators(report) == ["poolkit.pool"]
    assert report.layers[0].after == "poolkit max, 2×2, with ReLU()"
    assert rewritten(nn.Sequential(nn.Conv2d(3, 4, 3), poolkit.nn.Pool(
        "Sliding(2)", "max", activation="relu"
    ))).layers[0].reason == "is poolkit's already"  # fmt: skip


# --- quantisation ---------------------------------------------------------------------------------


def q8(x, scale=0.05, zero_point=3):
    run = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return run(x, scale, zero_point, -128, 127, torch.int8)


def dq8(q, scale=0.05, zero_point=3):
    run = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return run(q, scale, zero_point, -128, 127, torch.int8)


@pytest.fixture
def decomposed():
    pytest.importorskip("torch.ao.quantization.fx._decomposed")


@pytest.mark.usefixtures("decomposed")
def test_a_max_moves_before_quantisation():
    report = rewritten(Calls(lambda x: F.max_pool2d(dq8(q8(F.relu(x))), 2)))
    assert operators(report) == [
        "poolkit.pool",
        "quantized_decomposed.quantize_per_tensor",
        "quantized_decomposed.dequantize_per_tensor",
    ]
    assert recipes(report)[0][1] == "Activated('Max()', 'ReLU()')"


@pytest.mark.usefixtures("decomposed")
@pytest.mark.parametrize(
    ("place", "dtype"), [(0, torch.float32), (1, torch.int8), (2, torch.float32)]
)
def test_the_place_that_is_fastest_is_taken(monkeypatch, place, dtype):
    """Before both, between them on 8 bits, or behind both: each gives the same bits."""
    clock(monkeypatch, *(4.0 if n == place else 2.0 for n in range(3)), 2.0)
    model = Calls(lambda x: F.max_pool2d(dq8(q8(x)), 3, 2, 1))
    report = rewritten(model, seconds=1)
    assert operators(report).index("poolkit.pool") == place
    (pool,) = (n for n in report.program.graph.nodes if "poolkit" in str(n.target))
    assert pool.meta["val"].dtype is dtype
    assert report.layers[0].error == 0
    assert report.layers[0].speedup == 4.0


@pytest.mark.usefixtures("decomposed")
def test_pairs_that_cancel_go():
    """What quantisers write: 8 bits, real, pooled, 8 bits again with the same parameters."""
    report = rewritten(Calls(lambda x: dq8(q8(F.max_pool2d(dq8(q8(x)), 2)))))
    assert operators(report) == [
        "poolkit.pool",
        "quantized_decomposed.quantize_per_tensor",
        "quantized_decomposed.dequantize_per_tensor",
    ]
    other = rewritten(Calls(lambda x: dq8(q8(F.max_pool2d(dq8(q8(x)), 2), 0.1), 0.1)))
    assert len(operators(other)) == 5


def test_poolkits_own_quantisation():
    from poolkit.quantized import QParams, dequantize, quantize

    qparams = QParams(0.05, 3)

    def call(x):
        q = quantize(x, qparams)
        pooled = F.max_pool2d(dequantize(q, qparams), 2)
        return dequantize(quantize(pooled, qparams), qparams)

    report = optimize(Calls(call), X, tier="graph", seconds=0)
    assert operators(report) == ["poolkit.pool", "poolkit.quantize", "poolkit.dequantize"]
    assert report.error == 0


# --- maxima of stride 1 ---------------------------------------------------------------------------


def grown(x, k=5):
    return F.max_pool2d(x, k, 1, k // 2)


def sppf(x):
    y = grown(x)
    z = grown(y)
    return torch.cat([x, y, z, grown(z)], 1)


def spp(x):
    return torch.cat([x, grown(x, 5), grown(x, 9), grown(x, 13)], dim=1)


@pytest.mark.parametrize("call", [sppf, spp])
@pytest.mark.parametrize("way", [0, 1, 2], ids=["one pass", "one from the other", "apart"])
def test_a_chain_is_joined_or_split_where_that_is_fastest(monkeypatch, call, way):
    clock(monkeypatch, *(4.0 if n == way else 2.0 for n in range(3)), 2.0)
    report = rewritten(Calls(call), seconds=1)
    (layer,) = report.layers
    assert layer.status == "swapped"
    assert layer.error == 0
    windows = [window for window, *_ in recipes(report)]
    if way == 0:
        assert operators(report) == ["poolkit.chain"]
    elif way == 1:
        assert windows == ["Sliding(5, stride=1, padding=2)"] * 3
    else:
        assert windows == [f"Sliding({k}, stride=1, padding={k // 2})" for k in (5, 9, 13)]
    assert layer.after.endswith(("in one pass", "one from the other", "each from the input")[way])


def test_chains_whose_parts_are_read_elsewhere_have_no_one_pass():
    def call(x):
        y = grown(x)
        return torch.cat([x, y, grown(y)], 1), y.mean((2, 3))

    report = rewritten(Calls(call))
    assert "poolkit.chain" not in operators(report)
    assert report.layers[0].after == "poolkit max of 5×5, 9×9, one from the other"


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.cat([grown(x, 9), grown(x, 5), x], 1),
        lambda x: torch.cat([x, grown(x, 3), grown(x, 9)], 1),
        lambda x: torch.cat([x, grown(x), grown(grown(x))], 2),
        lambda x: grown(x) + grown(grown(x)),
        lambda x: torch.cat([F.max_pool2d(x, (3, 5), 1, (1, 2)), grown(x)], 1),
        lambda x: F.max_pool2d(x, (3, 1), 1, (1, 0)) + F.max_pool2d(x, (1, 3), 1, (0, 1)),
    ],
)
def test_other_families(call):
    report = rewritten(Calls(call))
    assert [layer.status for layer in report.layers] == ["swapped"]
    assert "poolkit.chain" not in operators(report)


def test_a_chain_that_is_written_to_is_none():
    def call(x):
        y = grown(x)
        y.view(-1).mul_(2)
        return torch.cat([x, y, grown(y)], 1)

    report = rewritten(Calls(call))
    assert [layer.after for layer in report.layers] == ["poolkit max, 5×5, stride 1, padding 2"] * 2


def test_the_module_of_a_chain_is_one_pass_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), poolkit.nn.SPPF(5))
    assert operators(rewritten(model)) == ["poolkit.chain"]


def test_families_behind_each_other():
    report = rewritten(Calls(lambda x: sppf(F.max_pool2d(F.relu(sppf(x)), 2))))
    assert operators(report) == ["poolkit.chain", "poolkit.pool", "poolkit.chain"]


def test_the_levels_of_a_chain_are_seen():
    report = rewritten(Calls(sppf))
    layers = inspect(report.program, X, seconds=0, losses=False, pictures=False).layers
    assert [layer.words for layer in layers] == ["max"] * 3
    assert layers[-1].consumers == ["cat"]
    again = optimize(report.program, X, tier="graph", seconds=0)
    assert [(layer.status, layer.reason) for layer in again.layers] == [
        ("skipped", "is poolkit's already")
    ]


# --- decisions ------------------------------------------------------------------------------------


def head(x):
    return F.linear(x.mean((2, 3)).flatten(1), torch.ones(2, 8))


def test_what_is_slower_stays(monkeypatch):
    clock(monkeypatch, 0.5, 1.0)
    report = rewritten(Calls(head), seconds=1)
    (layer,) = report.layers
    assert (layer.status, layer.reason) == ("kept", "equal, but slower here")
    assert operators(report) == ["aten.mean", "aten.flatten", "aten.ones", "aten.linear"]
    assert (report.model_ms, report.after_ms, report.note) == (1.0, 1.0, "")
    assert report.share == pytest.approx(0.5)


def test_what_differs_stays(monkeypatch):
    from poolkit.optimization.subgraphs import PoolingNode

    put = PoolingNode.put

    def wrong(self, graph, x, **options):
        return put(self, graph, x, **{**options, "window": poolkit.Sliding(2, stride=2, padding=1)})

    monkeypatch.setattr(PoolingNode, "put", wrong)
    report = rewritten(Calls(lambda x: F.max_pool2d(x, 2)))
    assert report.layers[0].status == "kept"
    assert report.layers[0].reason.startswith("are float32[2, 8, 11, 11] instead of float32[2, 8, ")


def test_wrong_for_other_values_than_the_example_is_seen(monkeypatch):
    """ReLU of positive values does nothing, but it may not go."""
    from poolkit.optimization import commuting

    monkeypatch.setattr(commuting, "activation_in_graph", lambda node: None)
    monkeypatch.setattr(commuting, "_copied", lambda graph, nodes, x: x)

    class Positive(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.relu(x.abs() + 1), 2)

    report = optimize(Positive(), X, tier="graph", seconds=0)
    assert report.layers[0].status == "kept"
    assert report.layers[0].reason.startswith("differ by")


def test_all_goes_back_if_the_whole_is_slower(monkeypatch):
    clock(monkeypatch, 2.0, 2.0, 0.9, 1.0)
    report = rewritten(Calls(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2)), seconds=1)
    assert {layer.status for layer in report.layers} == {"kept"}
    assert report.note == "all changes were taken back: the whole program came out slower"
    assert operators(report) == ["aten.max_pool2d", "aten.avg_pool2d"]


def test_all_goes_back_if_the_model_itself_is_quicker(monkeypatch):
    clock(monkeypatch, 2.0, 1.0, 0.5)
    report = rewritten(Calls(lambda x: F.max_pool2d(x, 2)), seconds=1)
    (layer,) = report.layers
    reason = "the whole program came out slower than the model"
    assert (layer.status, layer.reason) == ("kept", reason)
    assert report.note == f"all changes were taken back: {reason}"
    assert (report.before_ms, report.after_ms, report.speedup) == (0.5, 1.0, 0.5)
    assert "0.50 times as fast" in str(report)
    assert operators(report) == ["aten.max_pool2d"]


def test_a_program_that_is_slower_as_exported_is_reported(monkeypatch):
    clock(monkeypatch, 0.5)
    report = rewritten(Calls(lambda x: F.max_pool2d(x, 2)), seconds=1)
    assert [layer.status for layer in report.layers] == ["kept"]
    assert report.note == "the program, as it was exported, is slower than the model"
    assert report.before_ms == 0.5
    exported = torch.export.export(Calls(lambda x: F.max_pool2d(x, 2)), (X,))
    report = optimize(exported, tier="graph", seconds=1)  # with nothing to be compared with
    assert (report.note, report.before_ms, report.model_ms) == ("", None, 8.0)


def test_real_times():
    report = rewritten(Calls(sppf), torch.randn(1, 3, 40, 40), seconds=0.02)
    (layer,) = report.layers
    assert layer.before_ms > 0
    assert report.share > 0
    assert "these layers " in str(report).lower()
    data = json.loads(report.to_json())
    assert data["tier"] == "graph"
    assert data["share"] == pytest.approx(report.share)


# --- the program ----------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.head = nn.Linear(32, 4)

    def forward(self, x, scale=1.0):
        return self.head(sppf(self.features(x)).mean((2, 3))) * scale


@pytest.fixture(scope="module")
def net() -> tuple[Net, OptimizeReport]:
    model = Net().eval()
    return model, optimize(model, X, tier="graph", seconds=0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_of_any_size(net, batch):
    model, report = net
    x = torch.randn(batch, 3, 20, 20)
    check_equal(report.program.module()(x), model(x))


def test_an_example_of_one():
    report = rewritten(Net(), X[:1])
    assert report.program.module()(X).shape == (2, 4)
    assert report.note == ""


def test_batches_of_any_size_of_any_number_of_inputs():
    class Several(nn.Module):
        def forward(self, *inputs, scale, **more):
            x = torch.cat(inputs, dim=1) * scale + more["shift"]
            return F.max_pool2d(F.max_pool2d(x, 5, 1, 2), 5, 1, 2)

    def given(batch):
        x = torch.randn(batch, 2, 8, 8)
        return (x, x + 1), {"shift": torch.randn(batch, 1, 1, 1), "scale": torch.tensor(2.0)}

    model, (inputs, kwargs) = Several(), given(2)
    report = optimize(model, inputs, tier="graph", seconds=0, kwargs=kwargs)
    assert report.note == ""
    assert "forward" not in vars(model)
    for batch in (1, 5):
        inputs, kwargs = given(batch)
        check_equal(report.module()(*inputs, **kwargs), model(*inputs, **kwargs))


def test_a_model_that_fixes_its_batch():
    report = rewritten(Calls(lambda x: F.max_pool2d(x, 2).reshape(2, -1)))
    assert report.note == "the program takes batches of this size only"
    assert [layer.status for layer in report.layers] == ["swapped"]
    one = Calls(lambda x: F.max_pool2d(x.view(x.shape[1:]), 2))
    squeezed = optimize(one, X[:1], tier="graph", seconds=0)
    assert squeezed.note.startswith("the program takes batches of this size only, as otherwise the")
    assert "tier=" not in squeezed.note
    fixed = rewritten(Net(), dynamic_batch=False)
    with pytest.raises(AssertionError):
        fixed.program.module()(torch.randn(5, 3, 20, 20))


def test_other_axes_may_vary():
    auto = torch.export.Dim.AUTO
    report = rewritten(Net(), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = torch.randn(3, 3, 31, 26)
    check_equal(report.program.module()(x), Net.forward(rewritten_model(report), x))


class Matched(nn.Module):
    """An input pooled to the size of a map, as pyramids of inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return F.adaptive_avg_pool2d(x.relu(), y.shape[2:]) + y


def test_windows_that_are_computed_from_shapes_stay():
    auto = torch.export.Dim.AUTO
    options = {"dynamic_shapes": ({0: auto, 2: auto, 3: auto},), "seconds": 0.001}
    report = rewritten(Matched(), **options)
    (layer,) = report.layers
    assert (layer.status, layer.reason) == ("skipped", "its window is computed from shapes")
    assert layer.before_ms > 0
    assert rewritten(Matched()).swapped


def rewritten_model(report: OptimizeReport) -> Net:
    model = Net().eval()
    model.load_state_dict(report.program.state_dict)
    return model


def test_keyword_arguments():
    model = Net().eval()
    scale = torch.tensor(2.0)
    report = optimize(model, X, kwargs={"scale": scale}, tier="graph", seconds=0)
    for program in (report.program.module(), report.module()):
        for _ in range(2):
            check_equal(program(X, scale=scale), model(X, scale=scale))


def test_a_module_of_the_program_checks_its_inputs(net):
    model, report = net
    program = report.module()
    for batch in (1, 2, 5, 1, 2, 5):  # the second time, what has been checked
        x = torch.randn(batch, 3, 20, 20)
        check_equal(program(x), model(x))
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"size\(\)\[2\] == 20"):
            program(torch.randn(2, 3, 21, 20))
        with pytest.raises(ValueError, match="same number and type of args"):
            program(X, X)
        with pytest.raises(RuntimeError, match="double"):
            program(X.double())
    check_equal(program(X), model(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y,
        lambda y: (y, y + 1),
        lambda y: [y],
        lambda y: (y, (y + 1, y)),
        lambda y: {"a": y, "b": (y, None)},
        lambda y: (y, 3),
    ],
)
def test_results_keep_their_structure(make):
    model = Calls(lambda x: make(F.max_pool2d(x, 2)))
    program = optimize(model, X, tier="graph", seconds=0).module()
    for _ in range(2):
        out, expected = program(X), model(X)
        assert type(out) is type(expected)
        check_equal(out, expected)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda program: pickle.loads(pickle.dumps(program)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_module_of_the_program_have_weights_of_their_own(net, way):
    model, report = net
    program = COPIES[way](report.module()).eval()
    assert not any(module.training for module in program.modules())
    check_equal(program(X), model(X))
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.zero_()
    for _ in range(2):  # in both of its graphs
        assert not program(X).any()
    assert not COPIES[way](program)(X).any()
    assert model(X).any()
    with pytest.raises(AssertionError, match=r"size\(\)\[2\] == 20"):
        program(torch.randn(2, 3, 21, 20))


def test_a_module_of_the_program_has_the_names_of_the_model(net):
    model, report = net
    program, other = copy.deepcopy(report.module()), Net().eval()
    assert [name for name, _ in program.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    program.load_state_dict(other.state_dict())
    for _ in range(2):
        check_equal(program(X), other(X))
    program.load_state_dict(model.state_dict(), assign=True)
    for x in (X, X[:1], X[:1]):  # a batch that is checked, and then known
        check_equal(program(x), model(x))
    check_equal(torch.func.functional_call(program, other.state_dict(), (X,)), other(X))
    other.load_state_dict(program.state_dict())
    check_equal(program(X), other(X))


def test_a_module_of_the_program_keeps_its_mode_dtype_and_device(net):
    model, report = net
    program = copy.deepcopy(report.module())
    with pytest.raises(PoolValueError, match="has no training mode"):
        program.train()
    with pytest.raises(PoolValueError, match=r"keeps its dtype, which is torch\.float32, not .*64"):
        nn.Sequential(program).double()
    with pytest.raises(PoolValueError, match=r"keeps its device, which is cpu, not meta.*optimise"):
        program.to("meta")
    check_equal(program.to("cpu", torch.float32).requires_grad_(False)(X), model(X))
    with pytest.raises(PoolValueError, match="no program to run after a dry run"):
        rewritten(Net(), dry_run=True).module()


def test_gradients_are_those_of_the_model(net, tmp_path):
    model, report = net
    loaded = load_program(report.save(tmp_path / "net.pt2"))
    x = X.clone().requires_grad_()
    names = [name for name, _ in model.named_parameters()]
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    for program in (loaded, torch.export.load(tmp_path / "net.pt2").module()):
        leaves = [x, *program.parameters()]
        assert len(leaves) == len(names) + 1
        for _ in range(2):
            check_equal(torch.autograd.grad(program(x).square().sum(), leaves), expected)


def test_saves_and_loads_in_another_process(net, tmp_path):
    model, report = net
    path = report.save(tmp_path / "net.pt2")
    x = X.clone().requires_grad_()
    out = model(x)
    gradient = torch.autograd.grad(out.square().sum(), x)[0]
    torch.save((x.detach(), out.detach(), gradient), tmp_path / "values.pt")
    code = (
        "import sys, torch, poolkit.nn\n"
        "program = torch.export.load(sys.argv[1])\n"
        "x, expected, gradient = torch.load(sys.argv[2])\n"
        "assert any('poolkit.chain' in str(node.target) for node in program.graph.nodes)\n"
        "out = program.module()(x.requires_grad_())\n"
        "torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)\n"
        "found = torch.autograd.grad(out.square().sum(), x)[0]\n"
        "torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-6)\n"
    )
    files = [str(path), str(tmp_path / "values.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)


def test_saved_programs_know_their_layers(net, tmp_path):
    _, report = net
    path = report.save(tmp_path / "net.pt2")
    layers = inspect(path, seconds=0, losses=False, pictures=False).layers
    assert layers[0].name == "features.3"
    assert layers[1].source.startswith("test_graph_tier.py:")


def test_saves_whole_or_not_at_all(net, tmp_path):
    _, report = net
    with pytest.raises(PoolValueError, match="there is no folder"):
        report.save(tmp_path / "none" / "net.pt2")
    nothing = rewritten(Net(), dry_run=True)
    assert nothing.program is None
    assert nothing.dry_run
    with pytest.raises(PoolValueError, match=r"after a dry run\. Optimise with tier='graph'"):
        nothing.save(tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_compiles_to_one_graph(net):
    model, report = net
    torch._dynamo.reset()
    for program in (report.program.module(), report.module()):
        torch._dynamo.reset()
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            check_equal(compiled(X), model(X))


def test_a_compiled_module_of_the_program_fuses_small_poolings():
    graphs = []

    def backend(graph, inputs):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph.forward

    model = Calls(lambda x: F.max_pool2d(F.relu(x), 2))
    for size in (20, 400):
        x = torch.randn(2, 3, size, size)
        program = rewritten(model, x, dynamic_batch=False).module()
        torch._dynamo.reset()
        compiled = torch.compile(program, fullgraph=True, backend=backend)
        with torch.no_grad():
            check_equal(compiled(x), model(x))
    assert ["poolkit" in graph for graph in graphs] == [False, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own imports
def test_compiles_with_inductor(net):
    model, report = net
    torch._dynamo.reset()
    compiled = torch.compile(report.module(), fullgraph=True)
    with torch.no_grad():
        check_equal(compiled(X), model(X))


def test_a_program_with_keyword_arguments():
    model, scale = Net().eval(), torch.tensor(2.0)
    program = torch.export.export(model, (X,), {"scale": scale})
    for given in ({}, {"kwargs": {"scale": scale}}, {"example_inputs": (X, scale)}):
        inputs = given.pop("example_inputs", X if given else None)
        report = optimize(program, inputs, tier="graph", seconds=0, **given)
        check_equal(report.program.module()(X, scale=scale), model(X, scale))
    with pytest.raises(PoolValueError, match="the program takes 2 inputs, got 1"):
        optimize(program, X, tier="graph")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        def small(x):
            return torch.cond(x.mean() > 0, self.pool, lambda x: F.avg_pool2d(x, 2), (x,))

        x = F.max_pool2d(x, 2)
        return torch.cond(x.sum() > 0, small, self.pool, (x,))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the tracer asks for
def test_graphs_within_the_graph_are_reported():
    """Whether they run or not; what is around them is rewritten."""

    def under_autocast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = F.max_pool2d(x, 2)
            y = y * y.flatten(2).mean(2)[..., None, None]  # a normalization
        return y.amax((2, 3))

    def looped(x):
        again = torch.tensor(0)
        run = torch._higher_order_ops.while_loop
        return run(lambda n, x: n < 2, lambda n, x: (n + 1, grown(x)), (again, F.avg_pool2d(x, 2)))

    for model, operator, within in (
        (Branches(), "cond", ["max", "average", "max"]),
        (Calls(under_autocast), "wrap_with_autocast", ["max"]),
        (Calls(looped), "while_loop", ["max"]),
    ):
        first, *others = rewritten(model).layers
        assert first.status == "swapped"
        reason = f"it stands in a graph within the graph ({operator}), where nothing is rewritten"
        assert {(layer.status, layer.reason) for layer in others} == {("skipped", reason)}
        assert [layer.before.split(",")[0] for layer in others] == within
        assert all(re.search(r"\((test_graph_tier|models)\.py:\d+\)$", o.before) for o in others)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of lowering
def test_a_program_can_be_optimised_too():
    model = Net().eval()
    program = torch.export.export(model, (X,))
    before = str(program.graph)
    report = optimize(program, tier="graph", seconds=0)
    assert str(program.graph) == before
    check_equal(report.program.module()(X), model(X))
    assert len(report.swapped) == 3
    lowered = program.run_decompositions()
    check_equal(optimize(lowered, X, tier="graph", seconds=0).program.module()(X), model(X))
    assert len(optimize(program.module(), X, tier="graph", seconds=0).swapped) == 3
    with pytest.raises(PoolValueError, match="no modules that could be swapped"):
        optimize(program)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_what_cannot_be_exported(capfd):
    def branches(x):
        return x.amax((2, 3)) if x.sum() > 0 else x

    with pytest.raises(PoolValueError, match=r"the model cannot be exported: .*tier='module'"):
        optimize(Calls(branches), X, tier="graph")
    assert capfd.readouterr() == ("", "")  # no graph of torch's
    scripted = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.MaxPool2d(2))))
    with pytest.raises(
        PoolValueError, match=r"exported: layer '1' is a ScriptModule.*made from; t"
    ):
        optimize(scripted, X, tier="graph")
    cannot_be_seen = "layer '1' is a ScriptModule, whose poolings cannot be seen"
    assert optimize(scripted, X, seconds=0).note == cannot_be_seen
    with pytest.raises(PoolValueError, match=cannot_be_seen):
        poolkit.lint(scripted, X)
    halves = Calls(lambda x: x.unflatten(2, (2, -1)).amax((2, 3)))
    height = ({2: torch.export.Dim("height", min=4)},)
    with pytest.raises(PoolValueError, match=r"exported: Not all values of height .*fewer axes"):
        optimize(halves, X, tier="graph", dynamic_shapes=height)


def test_a_tier_that_is_none():
    with pytest.raises(PoolValueError, match="tier must be one of 'module', 'graph', got 'fx'"):
        optimize(Net(), X, tier="fx")


def test_the_module_tier_has_no_program(tmp_path):
    report = optimize(nn.Sequential(nn.MaxPool2d(2)), X, seconds=0)
    with pytest.raises(PoolValueError, match=r"there is no program to save\. Optimise with"):
        report.save(tmp_path / "net.pt2")


def test_a_program_runs_no_further_than_it_is_looked_at() -> None:
    model = Calls(lambda x: F.max_pool2d(x.relu(), 2).sigmoid())
    watched = ExportedModel(torch.export.export(model, (X,)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        values = watched.values_of(["x", "relu"], (X,), {})
    assert torch.equal(values["x"], X)
    assert torch.equal(values["relu"], model.conv(X).relu())
    ran = {event.key for event in profile.key_averages()}
    assert "aten::relu" in ran
    assert "aten::sigmoid" not in ran
    assert torch.equal(watched(X)[0], model(X))
