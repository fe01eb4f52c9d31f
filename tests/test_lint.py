# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Every trap has a minimal reproduction here, on what is installed. Where a version has mended it,
the reproduction says so, and lint is silent for that version and speaks for the one before."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import poolkit
import poolkit.nn
from poolkit import linting
from poolkit.linting.graphs import GRAPH_TRAPS
from poolkit.linting.models import MODEL_TRAPS
from poolkit.linting.traps import Trap, _numbers

KINDS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
# torch warns of calls of its own: when its compiler is imported, and when a graph is copied.
TORCHAO_WARNS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
OLD = {"torch": "2.6.0", "onnxruntime": "1.20.1"}
INSTALLED = _numbers(onnxruntime.__version__)


def drawn(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


REPRODUCED: set[tuple[str, str]] = set()


def reproduces(room: str, name: str) -> Any:
    """Marks a test that shows a trap of a room of `poolkit.linting`."""
    REPRODUCED.add((room, name))
    return lambda test: test


def traps(subject: Any, *inputs: Any, **options: Any) -> list[str]:
    return [finding.trap for finding in poolkit.lint(subject, *inputs, **options)]


def graph(x: np.ndarray, nodes: list[Any], constants: dict[str, Any], opset: int) -> Any:
    """A model from "x" to "y"."""
    kind = KINDS[x.dtype.name]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def one_node(x: np.ndarray, operator: str, opset: int = 19, **attributes: Any) -> Any:
    return graph(x, [helper.make_node(operator, ["x"], ["y"], **attributes)], {}, opset)


def run(model: Any, x: np.ndarray, name: str = "x") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: x})[0]


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def exported(model: Any, x: Any) -> Any:
    """By torch's own exporter."""
    pytest.importorskip("onnxscript")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(model.eval(), (x,), verbose=False, dynamo=True).model_proto


# --- in models of torch --------------------------------------------------------------------------


@reproduces("models", "divisor-lost")
def test_divisor_lost() -> None:
    model, x = nn.AvgPool2d(2, divisor_override=3), drawn(1, 3, 8, 8)
    made = exported(model, x)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(found, F.avg_pool2d(x, 2).numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(found - model(x).numpy()).max() > 0.01
    assert traps(nn.Sequential(model), x) == ["divisor-lost"]
    assert traps(poolkit.nn.AvgPool2d(2, divisor_override=3), x) == []
    assert traps(nn.AvgPool2d(2), x) == []


@reproduces("models", "bins-that-do-not-divide")
def test_bins_that_do_not_divide() -> None:
    x = drawn(1, 3, 10, 8)
    with pytest.raises(Exception, match="export"):
        exported(nn.AdaptiveMaxPool2d(3), x)
    nodes = exported(nn.AdaptiveAvgPool2d(3), x).graph.node
    assert sum(node.op_type == "Gather" for node in nodes) > 3
    for model in (nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d((5, 3))):
        assert traps(model, x) == ["bins-that-do-not-divide"]
    assert traps(nn.AdaptiveAvgPool2d((5, None)), x) == []
    assert traps(poolkit.nn.AdaptiveMaxPool2d(3), x) == []


@reproduces("models", "adaptive-average-of-volumes")
def test_adaptive_average_of_volumes(tmp_path: Path) -> None:
    x = drawn(1, 2, 4, 6, 6)
    for bins in (2, (None, 1, 1), 5):
        model = nn.AdaptiveAvgPool3d(bins)
        with pytest.raises(Exception, match="export"):
            exported(model, x)
        assert traps(model, x) == ["adaptive-average-of-volumes"]
    assert traps(nn.AdaptiveAvgPool3d(1), x) == []
    assert {node.op_type for node in exported(nn.AdaptiveAvgPool3d(1), x).graph.node} == {
        "ReduceMean"
    }
    assert traps(poolkit.nn.AdaptiveAvgPool3d(2), x) == []


@reproduces("models", "odd-norm-of-negative-values")
def test_odd_norm_of_negative_values() -> None:
    x = torch.tensor([[[[-3.0, -1.0], [2.0, 1.0]]]])
    assert F.lp_pool2d(x, 3.0, 2).isnan().all()
    torch.testing.assert_close(
        poolkit.lp_pool2d(x, 3.0, 2), (x.abs() ** 3).sum().pow(1 / 3)[None, None, None, None]
    )
    assert traps(nn.LPPool2d(3, 2), x) == ["odd-norm-of-negative-values"]
    assert traps(nn.LPPool2d(3, 2), x.abs()) == []
    assert traps(nn.LPPool2d(2, 2), x) == []


@reproduces("models", "norm-in-half-precision")
def test_norm_in_half_precision() -> None:
    x = torch.ones(1, 1, 256, 256, dtype=torch.float16) * 2
    assert F.lp_pool2d(x, 2.0, 256).isinf().all()
    assert poolkit.lp_pool2d(x, 2.0, 256).item() == 512
    assert traps(nn.LPPool2d(2, 256), x) == ["norm-in-half-precision"]
    assert traps(nn.LPPool2d(2, 256), x.float()) == []


@reproduces("models", "mean-in-half-precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mean_in_half_precision_is_mended(dtype: Any) -> None:
    x = torch.ones(1, 1, 256, 256, dtype=dtype)  # added up in bfloat16, ones stay at 256
    if _numbers(torch.__version__) >= (2, 13):
        assert F.avg_pool2d(x, 256).item() == F.adaptive_avg_pool2d(x, 1).item() == 1
        assert traps(nn.AvgPool2d(256), x) == []
    assert traps(nn.AvgPool2d(256), x, versions={"torch": "2.6.0"}) == ["mean-in-half-precision"]
    assert traps(nn.AvgPool2d(2), x, versions={"torch": "2.6.0"}) == []


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_mean_in_half_precision_of_the_input_itself(ndim: int) -> None:
    """No layer has made maps of it: it is a pooling all the same."""

    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.bfloat16().mean(tuple(range(2, 2 + ndim)))

    x, old = torch.ones(1, 2, *(4 ** (6 // ndim),) * ndim), {"torch": "2.6.0"}
    (finding,) = poolkit.lint(Model(), x, versions=old)
    assert finding.trap == "mean-in-half-precision"
    assert finding.layer.startswith("the model (mean, test_lint.py:")
    assert traps(Model(), x) == ([] if _numbers(torch.__version__) >= (2, 13) else [finding.trap])


@reproduces("models", "int8-channels-last")
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_int8_channels_last(dtype: Any) -> None:
    x = (drawn(1, 8, 12, 12) * 20).to(dtype).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="numeric_limits"):
        F.max_pool2d(x, 2)
    assert torch.equal(poolkit.max_pool2d(x, 2), F.max_pool2d(x.contiguous(), 2))
    (finding,) = poolkit.lint(nn.Sequential(nn.Identity(), nn.MaxPool2d(2)), x)
    assert finding.trap == "int8-channels-last"
    assert finding.layer == "layer '1' (MaxPool2d)"
    assert traps(nn.MaxPool2d(2), x.contiguous()) == []
    assert (
        traps(nn.MaxPool2d(2), x[..., :8, :8].contiguous(memory_format=torch.channels_last)) == []
    )


def test_int8_channels_last_hides_nothing_that_ran_before() -> None:
    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            F.avg_pool2d(x, 2, divisor_override=3)
            return F.max_pool2d(x.to(torch.int8, memory_format=torch.channels_last), 2)

    found = poolkit.lint(Model(), drawn(1, 3, 16, 16))
    assert [each.trap for each in found] == ["divisor-lost", "int8-channels-last"]
    assert "behind it has not been looked at" in found[-1].what


@reproduces("models", "ceil-mode-shape")
def test_ceil_mode_of_a_model() -> None:
    x, old = drawn(1, 1, 9, 9), {"onnxruntime": "1.20.1"}
    model = nn.MaxPool2d(2, 3, 1, ceil_mode=True)
    assert model(x).shape[-1] == 4
    assert traps(nn.MaxPool2d(2, 3, 0, ceil_mode=True), drawn(1, 1, 6, 6), versions=old) == [
        "ceil-mode-shape"
    ]
    assert traps(nn.MaxPool2d(3, 2, ceil_mode=True), x, versions=old) == []
    assert traps(nn.MaxPool2d(2, 3, 0, ceil_mode=True), drawn(1, 1, 6, 6)) == []


def test_functions_are_seen_and_named() -> None:
    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.avg_pool2d(x, 2, divisor_override=3)

    (finding,) = poolkit.lint(Model(), drawn(1, 3, 8, 8))
    assert finding.layer.startswith("the model (avg_pool2d, test_lint.py:")
    assert str(finding).endswith("[divisor-lost]")


# --- in models that torchao has quantized --------------------------------------------------------


class Convolutions(nn.Module):
    """Two maxima, an average of poolkit's and one of torch's, a mean, and a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.pool = poolkit.nn.AvgPool2d(2)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(torch.relu(self.first(x)), 2)
        x = F.avg_pool2d(self.pool(x), 2)
        x = self.last(x).mean((2, 3))[:, None]
        return x / x.square().mean(-1, keepdim=True)


def quantized(by_poolkit: bool) -> tuple[Any, Any]:
    """The model as ``convert_pt2e`` leaves it, with its input."""
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    from poolkit.quantized import pt2e

    config = pt2e.quantization_config(8)
    quantizer = X86InductorQuantizer().set_global(config)
    if by_poolkit:
        quantizer = pt2e.PoolingQuantizer(config, quantizer)
    x = drawn(2, 3, 32, 32)
    prepared = prepare_pt2e(torch.export.export(Convolutions().eval(), (x,)).module(), quantizer)
    pt2e.calibrate(prepared, [x])
    return convert_pt2e(prepared), x


@reproduces("quantized", "left-in-float")
@TORCHAO_WARNS
def test_left_in_float_by_torchao() -> None:
    model, x = quantized(by_poolkit=False)
    before = model.code
    found = poolkit.lint(model, x)
    assert {each.trap for each in found} == {"left-in-float"}
    assert [each.layer.partition(" ")[0] for each in found] == [
        "max_pool2d", "pool", "avg_pool2d", "mean",
    ]  # fmt: skip
    assert all("in float in a quantized model: its input is not quantized" in f.what for f in found)
    assert model.code == before


@TORCHAO_WARNS
def test_left_in_float_until_it_is_lowered() -> None:
    from poolkit.quantized import pt2e

    model, x = quantized(by_poolkit=True)
    layers = [each.layer.partition(" ")[0] for each in poolkit.lint(model, x)]
    assert layers == ["pool", "avg_pool2d", "mean"]  # torch's compiler looks after the maximum
    assert sum(each.is_integer for each in pt2e.lower(model)) == 4
    assert poolkit.lint(model, x) == []


# --- in ONNX files -------------------------------------------------------------------------------

LONE = {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}


@reproduces("graphs", "ceil-mode-shape")
def test_ceil_mode_shape_is_mended(tmp_path: Path) -> None:
    x = drawn(1, 1, 6, 6).numpy()  # a third window would begin at 6, behind the end
    model = one_node(x, "MaxPool", **LONE)
    assert poolkit.max_pool2d(x, 2, 3, ceil_mode=True).shape == (1, 1, 2, 2)
    if INSTALLED >= (1, 21):
        assert run(model, x).shape == (1, 1, 2, 2)
        assert traps(saved(model, tmp_path)) == []
    else:
        assert run(model, x).shape == (1, 1, 3, 3)
    assert traps(saved(model, tmp_path), versions=OLD) == ["ceil-mode-shape"]
    assert traps(saved(model, tmp_path), versions={"onnxruntime": "1.21.0"}) == []
    harmless = one_node(x, "MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    assert traps(saved(harmless, tmp_path), versions=OLD) == []


def test_ceil_mode_shape_where_channels_are_behind(tmp_path: Path) -> None:
    """A window of the first spatial axis, whose size is not that of the second or the channels."""
    for size, found in ((6, ["ceil-mode-shape"]), (5, [])):
        x = np.zeros((1, size, 5, 3), "uint8")
        node = helper.make_node("NhwcMaxPool", ["x"], ["y"], domain="com.microsoft", **LONE)
        model = graph(x, [node], {}, 19)
        assert run(model, x).shape == (1, 2, 2, 3)
        assert traps(saved(model, tmp_path), versions=OLD) == found


@reproduces("graphs", "ceil-mode-average")
def test_ceil_mode_average_is_mended(tmp_path: Path) -> None:
    x = np.full((1, 1, 6, 6), 60, "float32")
    given = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    model = one_node(x, "AveragePool", 12, **given)
    want = poolkit.avg_pool2d(x, 3, 2, ceil_mode=True)
    assert (run(model, x) == want).all() == (INSTALLED >= (1, 29))
    path = saved(model, tmp_path)
    assert traps(path, versions={"onnxruntime": "1.28.0"}) == ["ceil-mode-average"]
    assert traps(path, versions={"onnxruntime": "1.29.0"}) == []
    assert traps(saved(one_node(x, "AveragePool", 19, **given), tmp_path)) == []


@reproduces("graphs", "quantized-ceil-mode-average")
def test_quantized_ceil_mode_average(tmp_path: Path) -> None:
    x = np.full((1, 1, 6, 6), 60, "uint8")
    given = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}

    def model(**attributes: Any) -> Any:
        node = helper.make_node(
            "QLinearAveragePool", list("xszsz"), ["y"], domain="com.microsoft", **attributes
        )
        return graph(x, [node], {"s": np.float32(1), "z": np.uint8(0)}, 19)

    assert (poolkit.avg_pool2d(x.astype("f"), 3, 2, ceil_mode=True) == 60).all()
    assert run(model(**given), x)[0, 0, -1].tolist() == [40, 40, 27]
    assert traps(saved(model(**given), tmp_path)) == ["quantized-ceil-mode-average"]
    right = model(**given | {"count_include_pad": 0})
    assert (run(right, x) == 60).all()
    assert traps(saved(right, tmp_path)) == []


@reproduces("graphs", "same-padding-forgets-dilations")
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
def test_same_padding_forgets_dilations(operator: str, tmp_path: Path) -> None:
    x = drawn(1, 1, 10, 10).numpy()
    given: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    model = one_node(x, operator, dilations=[2, 2], **given)
    window = poolkit.Sliding(3, 2, "same", dilation=2)
    assert window.output_shape((10, 10)) == (5, 5)
    assert run(model, x).shape == (1, 1, 4, 4)
    path = saved(model, tmp_path)
    assert traps(path) == ["same-padding-forgets-dilations"]
    assert run(one_node(x, operator, **given), x).shape == (1, 1, 5, 5)
    assert traps(saved(one_node(x, operator, **given), tmp_path)) == []
    assert traps(saved(one_node(x, operator, ceil_mode=1, **given), tmp_path)) == []
    # As it is written by export_onnx.
    pytest.importorskip("onnxscript")
    ours = poolkit.nn.Pool(window, {"M": "max", "A": "mean", "L": "Lp(2)"}[operator[0]], 2)
    poolkit.export_onnx(ours, torch.from_numpy(x), path)
    assert run(onnx.load(path), x, "input").shape == (1, 1, 5, 5)
    assert traps(path) == []


def between_q_and_dq(x: np.ndarray, operator: str, **attributes: Any) -> Any:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(operator, ["d"], ["p"], "pool", **attributes),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    return graph(x, nodes, {"s": np.float32(1), "z": np.uint8(0)}, 19)


def optimized(path: Path) -> list[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_quantized_ceil_mode_average_of_a_float_operator(tmp_path: Path) -> None:
    x = np.full((1, 1, 6, 6), 60, "float32")
    given = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    model = between_q_and_dq(x, "AveragePool", **given)
    assert run(model, x)[0, 0, -1].tolist() == [40, 40, 27]
    assert traps(saved(model, tmp_path)) == ["quantized-ceil-mode-average"]


@reproduces("graphs", "left-in-float")
@pytest.mark.parametrize("operator", ["LpPool", "GlobalMaxPool", "AveragePool", "MaxPool"])
def test_left_in_float(operator: str, tmp_path: Path) -> None:
    x = np.full((1, 2, 6, 6), 7, "float32")
    given = {} if operator[0] == "G" else {"kernel_shape": [2, 2], "strides": [2, 2]}
    path = saved(between_q_and_dq(x, operator, **given), tmp_path)
    names = optimized(path)
    if operator in ("LpPool", "GlobalMaxPool"):
        assert names[names.index(operator) - 1] == "DequantizeLinear"
        assert traps(path) == ["left-in-float"]
    else:
        assert "DequantizeLinear" not in names[:-1]
        assert traps(path) == []


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
def test_left_in_float_where_one_side_is_not_quantized(operator: str, tmp_path: Path) -> None:
    x = np.full((1, 2, 6, 6), 7, "float32")
    model = between_q_and_dq(x, operator, kernel_shape=[2, 2])
    del model.graph.node[3:]
    model.graph.node[2].output[0] = "y"
    path = saved(model, tmp_path)
    if operator == "AveragePool":
        assert optimized(path)[-1] == operator
        assert traps(path) == ["left-in-float"]
    else:  # a maximum changes places with the conversion
        assert optimized(path)[-2:] == ["MaxPool", "DequantizeLinear"]
        assert traps(path) == []


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_left_in_float_is_nothing_that_pools_integers(domain: str, tmp_path: Path) -> None:
    """Of ONNX Runtime's own operators no type is known, only their names."""
    x = np.full((1, 2, 6, 6), 7, "uint8")
    first = helper.make_node("Identity", ["x"], ["i"])
    if domain:
        first = helper.make_node("QLinearLeakyRelu", list("xszsz"), ["i"], domain=domain)
    nodes = [
        first,
        helper.make_node("MaxPool", ["i"], ["m"], kernel_shape=[2, 2]),
        helper.make_node("DequantizeLinear", ["m", "s", "z"], ["f"]),
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["y"]),
    ]
    model = graph(x, nodes, {"s": np.float32(1), "z": np.uint8(0)}, 19)
    assert (run(model, x) == 7).all()
    assert traps(saved(model, tmp_path)) == []


# --- around them ---------------------------------------------------------------------------------


def test_every_trap_is_reproduced() -> None:
    """Whatever table of traps a room has: one that is added without a reproduction fails here."""
    known = set()
    for room in pkgutil.iter_modules(linting.__path__):
        if room.name == "quantized" and not importlib.util.find_spec("torchao"):
            known |= {each for each in REPRODUCED if each[0] == "quantized"}
            continue
        for table in vars(importlib.import_module(f"poolkit.linting.{room.name}")).values():
            if isinstance(table, dict) and any(isinstance(each, Trap) for each in table.values()):
                known |= {(room.name, name) for name in table}
                assert all(each.remedy for each in table.values())
                packages = {each.package for each in table.values()}
                assert packages <= {"torch", "torchao", "onnxruntime"}
    assert known == REPRODUCED
    assert len({room for room, _ in known}) == 3


def test_all_traps_at_once(tmp_path: Path) -> None:
    """In one model, and in one file: no trap hides another."""

    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            F.avg_pool2d(x, 2, divisor_override=3)
            F.adaptive_avg_pool2d(x, 5)
            F.adaptive_avg_pool3d(x.unflatten(1, (1, 3)), 3)
            F.lp_pool2d(x, 3.0, 2)
            F.lp_pool2d(x.half(), 2.0, 2)
            F.avg_pool2d(x.bfloat16(), 17)
            F.max_pool2d(x, 2, 3, ceil_mode=True)
            return F.max_pool2d(x.to(torch.int8, memory_format=torch.channels_last), 2)

    found = traps(Model(), drawn(1, 3, 18, 18), versions=OLD)
    assert set(found) == set(MODEL_TRAPS)
    x = np.full((1, 1, 6, 6), 7, "float32")
    given = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    made = between_q_and_dq(x, "AveragePool", **given)
    made.graph.node.insert(0, helper.make_node("MaxPool", ["x"], ["lone"], **LONE))
    given = {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_LOWER"}
    made.graph.node.insert(0, helper.make_node("MaxPool", ["x"], ["same"], **given))
    made.opset_import[0].version = 18
    assert set(traps(saved(made, tmp_path), versions=OLD)) == set(GRAPH_TRAPS)


def test_what_poolkit_exports_has_no_trap(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = nn.Sequential(
        poolkit.nn.MaxPool2d(2, 3, ceil_mode=True), poolkit.nn.AvgPool2d(2, 3, 1, ceil_mode=True)
    )
    path = tmp_path / "model.onnx"
    poolkit.export_onnx(model, drawn(1, 2, 21, 20), path)
    assert traps(path, versions={"onnxruntime": "1.16.0"}) == []


def test_what_poolkit_exports_on_integers_has_no_trap(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from poolkit.quantized import QParams, avg_pool2d, dequantize, max_pool2d, quantize

    params = QParams.from_range(-4, 4, "uint8")

    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            largest = max_pool2d(quantize(x, params, "uint8"), 3, 2, 1)
            return dequantize(avg_pool2d(largest, 2, qparams=params), params)

    path = tmp_path / "model.onnx"
    poolkit.export_onnx(Model(), drawn(2, 3, 16, 16), path)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators[:4] == ["QuantizeLinear", "DequantizeLinear", "MaxPool", "QuantizeLinear"]
    assert traps(path) == []


def lone(reads: str, gives: str, **attributes: Any) -> Any:
    return helper.make_node("MaxPool", [reads], [gives], name="pool", **attributes)


def test_what_stands_in_a_loop_in_a_branch_is_found(tmp_path: Path) -> None:
    """With the shapes and integers of the graphs around it."""
    x = np.full((1, 1, 6, 6), 7, "float32")

    def body(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
        values = [
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in given]
            for given in (inputs, outputs)
        ]
        return helper.make_graph(nodes, name, *values)

    number, truth, result = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
    looped = body(
        "looped",
        [lone("x", "seen", **LONE), helper.make_node("Identity", ["c"], ["again"])],
        [("n", number, ()), ("c", truth, ())],
        [("again", truth, ()), ("seen", result, (None,) * 4)],
    )
    loop = helper.make_node("Loop", ["one", "yes"], ["all"], name="often", body=looped)
    floated = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"]),
        helper.make_node("GlobalMaxPool", ["f"], ["most"]),
    ]
    out = (None,) * 5
    then = body("then", [loop], [], [("all", result, out)])
    otherwise = body(
        "otherwise",
        [*floated, helper.make_node("Unsqueeze", ["most", "first"], ["w"]), lone("q", "p", **LONE)],
        [],
        [("w", result, out)],
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(
            "If", ["yes"], ["y"], name="choice", then_branch=then, else_branch=otherwise
        ),
    ]
    constants = {
        "s": np.float32(1), "z": np.uint8(0), "yes": np.bool_(True), "one": np.int64(1),
        "first": np.array([0]),
    }  # fmt: skip
    path = saved(graph(x, nodes, constants, 19), tmp_path)
    assert (run(onnx.load(path), x) == 7).all()
    found = {(each.trap, each.layer) for each in poolkit.lint(path, versions=OLD)}
    choice = "branch of node 'choice' (If)"
    in_loop = f"node 'pool' (MaxPool) in body of node 'often' (Loop) in then_{choice}"
    assert found == {
        ("ceil-mode-shape", in_loop),
        ("left-in-float", in_loop),
        ("left-in-float", f"node 1 (GlobalMaxPool) in else_{choice}"),
        ("ceil-mode-shape", f"node 'pool' (MaxPool) in else_{choice}"),
    }


@pytest.mark.parametrize("opset", [19, 18])
def test_what_stands_in_a_function_is_found(opset: int, tmp_path: Path) -> None:
    """With the shapes and attributes of each call; of another opset, once and without them."""
    x = np.ones((1, 1, 6, 6), "float32")
    made = lone("a", "b", **LONE)
    function = helper.make_function(
        "own", "Pooled", ["a"], ["b"], [made], [helper.make_opsetid("", opset)]
    )
    calls = [helper.make_node("Pooled", ["x"], [y], domain="own") for y in ("unused", "y")]
    model = graph(x, calls, {}, 19)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    path = saved(model, tmp_path)
    assert run(onnx.load(path), x).shape == (1, 1, 2, 2)
    layers = [finding.layer for finding in poolkit.lint(path, versions=OLD)]
    if opset == 18:
        assert layers == ["node 'pool' (MaxPool) in function 'Pooled'"]
    else:
        assert layers == ["node 'pool__1' (MaxPool)", "node 'pool__2' (MaxPool)"]


def test_weights_in_another_file_are_not_needed(tmp_path: Path) -> None:
    x = np.ones((1, 1, 6, 6), "float32")
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], **LONE),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(
        graph(x, nodes, {"w": np.ones((1, 1, 6, 6), "float32")}, 19), path,
        save_as_external_data=True, location="weights", size_threshold=0,
    )  # fmt: skip
    (tmp_path / "weights").unlink()
    assert traps(path, versions={"onnxruntime": "1.20.1"}) == ["ceil-mode-shape"]


def test_a_program_brings_its_inputs() -> None:
    model = nn.AvgPool2d(2, divisor_override=3)
    assert traps(torch.export.export(model, (drawn(1, 1, 4, 4),))) == ["divisor-lost"]


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(poolkit.PoolValueError, match="there is no file"):
        poolkit.lint(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(poolkit.PoolValueError, match="is not an ONNX model"):
        poolkit.lint(str(tmp_path / "text.onnx"))
    (tmp_path / "empty.onnx").touch()  # protobuf reads it as a message without fields
    with pytest.raises(poolkit.PoolValueError, match=r"is not an ONNX model.*export_onnx"):
        poolkit.lint(tmp_path / "empty.onnx")
    with pytest.raises(poolkit.PoolValueError, match="is a folder"):
        poolkit.lint(tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.pt2")
    with pytest.raises(poolkit.PoolValueError, match=r"is not an ONNX model.*\.pt2 program"):
        poolkit.lint(tmp_path / "model.pt2")
    whole = one_node(np.ones((1, 1, 6, 6), "float32"), "MaxPool", **LONE).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[:-9])
    with pytest.raises(poolkit.PoolValueError, match="is not an ONNX model"):
        poolkit.lint(tmp_path / "cut.onnx")
    with pytest.raises(poolkit.PoolTypeError, match="got int"):
        poolkit.lint(3)
    with pytest.raises(poolkit.PoolValueError, match="Give its inputs"):
        poolkit.lint(nn.ReLU())
    with pytest.raises(poolkit.PoolValueError, match="is no version of torch"):
        poolkit.lint(nn.ReLU(), drawn(1), versions={"torch": "new"})
    with pytest.raises(poolkit.PoolValueError, match="no trap of 'onnxruntim' is known"):
        poolkit.lint(nn.ReLU(), drawn(1), versions={"onnxruntim": "1.20"})
    with pytest.raises(poolkit.PoolValueError, match="the model raised"):
        poolkit.lint(nn.MaxPool2d(9), drawn(1, 1, 2, 2))
