# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Models in files: exported programs and ONNX graphs."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import poolkit
import poolkit.nn
from poolkit.errors import MissingExtraError, PoolTypeError, PoolValueError
from poolkit.inspection import inspect

# ---------------------------------------------------------------- exported programs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4, 2)

    def forward(self, x, *, scale):
        x = F.avg_pool2d(self.stem(x) * scale, 2)
        return self.head(self.pool(x).mean((2, 3)))


X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SCALE = {"scale": torch.tensor(2.0)}


@pytest.fixture(scope="module")
def program():
    return torch.export.export(Net().eval(), (X,), SCALE)


SAME = (
    "id", "name", "operation", "words", "window", "in_shape", "out_shape", "receptive_field",
    "jump", "offset", "dropped", "misdivided", "source", "kind",
)  # fmt: skip


def test_an_exported_program_has_the_layers_of_its_model(program):
    torch.manual_seed(0)
    written = inspect(Net(), (X,), kwargs=SCALE, seconds=0, pictures=False).layers
    exported = inspect(program, seconds=0, pictures=False).layers
    assert len(exported) == 5
    for a, b in zip(written, exported, strict=True):
        assert [getattr(a, key) for key in SAME] == [getattr(b, key) for key in SAME]
        assert b.loss is not None


def test_neighbours_are_known_in_an_exported_program(program):
    layers = {layer.id: layer for layer in inspect(program, seconds=0, losses=False).layers}
    assert layers["stem.2"].producers == ["stem.1 (relu)"]
    assert layers["stem.2"].consumers == ["mul"]
    assert layers["stem.2"].flags[0].kind == "relu-foldable"


def test_a_saved_program_is_read_with_its_inputs(program, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(program, str(path))
    report = inspect(path, seconds=0.01, pictures=False)
    assert report.inputs == ["float32[2, 3, 32, 32]", "float32[]"]
    assert [layer.name for layer in report.layers] == ["stem.0", "stem.2", "", "pool", ""]
    assert report.model_ms is not None
    given = inspect(path, {"scale": SCALE["scale"], "x": X * 2}, seconds=0, losses=False)
    assert len(given.layers) == 5


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own lowering
def test_a_lowered_program_too(program):
    lowered = program.run_decompositions()
    layers = inspect(lowered, seconds=0, losses=False).layers
    assert [layer.operation for layer in layers][:2] == ["conv2d", "max_pool2d"]


def test_poolkits_operators_in_a_program():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), poolkit.nn.MaxPool2d(3, 2, dilation=2))
    x = torch.rand(1, 3, 80, 80)
    (layer,) = inspect(torch.export.export(model.eval(), (x,)), seconds=0).layers
    assert (layer.operation, layer.window) == ("max_pool2d", "3×3, stride 2, dilation 2")
    assert layer.out_shape == list(model(x).shape)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no.pt2", PoolValueError, "there is no file"),
        ("text.pt2", PoolValueError, "text.pt2 is not an exported program"),
        ("no.onnx", PoolValueError, "there is no file"),
        ("text.onnx", PoolValueError, "text.onnx is not an ONNX model"),
        ("net.pth", PoolValueError, "is neither an .onnx nor a .pt2 file"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_none(tmp_path, name, error, message):
    pytest.importorskip("onnxruntime")
    for text in ("text.pt2", "text.onnx"):
        (tmp_path / text).write_text("text")
    with pytest.raises(error, match=message):
        inspect(tmp_path / name, seconds=0)


def test_a_model_needs_inputs():
    with pytest.raises(PoolValueError, match="there are no inputs to run the model on"):
        inspect(nn.MaxPool2d(2), seconds=0)


# ---------------------------------------------------------------- ONNX

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from poolkit.inspection.onnx_graph import OnnxModel


def graph(*nodes, shape=(2, 3, 13, 11), constants=(), opset: int = 19) -> OnnxModel:
    """A model of nodes in a row, from ``x``; the last one makes ``y``."""
    made = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return OnnxModel(model)


def one(kind: str, shape=(2, 3, 13, 11), **attributes) -> OnnxModel:
    return graph(helper.make_node(kind, ["x"], ["y"], name="pool", **attributes), shape=shape)


NODES = {
    "max": one("MaxPool", kernel_shape=[3, 2], strides=[2, 1]),
    "max, default strides": one("MaxPool", kernel_shape=[3, 3]),
    "max, padded": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max, padded unevenly": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0]),
    "max, same upper": one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max, same lower": one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    "max, valid": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"),
    "max, ceil": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max, dilated": one("MaxPool", kernel_shape=[3, 3], dilations=[2, 1]),
    "max, one axis": one("MaxPool", (2, 3, 13), kernel_shape=[3], strides=[2]),
    "max, three axes": one("MaxPool", (1, 2, 5, 6, 7), kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
    "average": one("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "average, padded": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average, padding counted": one(
        "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "average, same upper": one("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "lp": one("LpPool", kernel_shape=[2, 2], strides=[2, 2], p=3),
    "global average": one("GlobalAveragePool"),
    "global max": one("GlobalMaxPool"),
    "global lp": one("GlobalLpPool", p=2),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_what_onnxruntime_computes(name):
    model = NODES[name]
    shape = [d.dim_value for d in model.model.graph.input[0].type.tensor_type.shape.dim]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (traced,) = model.trace(model.feeds((x,), {}))
    torch.testing.assert_close(traced.pooling.in_poolkit(x)(), traced.output)
    report = inspect(model, x, seconds=0)
    layer = report.layers[0]
    assert (layer.name, layer.kind, layer.id) == ("pool", "node", "pool")
    assert layer.loss is not None
    assert layer.pictures is not None


WEIGHT = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def network(opset: int = 19) -> OnnxModel:
    """Convolution, ReLU, padding, max, mean over space: with axes as this opset wants them."""
    axes = {"axes": [2, 3]} if opset < 18 else {}
    return graph(
        helper.make_node(
            "Conv", ["x", "w"], ["a"], name="/stem/Conv", strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["a"], ["b"], name="/stem/Relu"),
        helper.make_node("Pad", ["b", "pads"], ["c"], name="/Pad"),
        helper.make_node(
            "MaxPool", ["c"], ["d"], name="/pool/MaxPool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Identity", ["d"], ["e"]),
        helper.make_node(
            "ReduceMean", ["e", *(["axes"] if opset >= 18 else [])], ["y"], name="/ReduceMean",
            keepdims=0, **axes,
        ),
        constants=[
            ("w", WEIGHT), ("pads", torch.tensor([0, 0, 1, 0, 0, 0, 1, 0])),
            ("axes", torch.tensor([2, 3])),
        ],
        opset=opset,
    )  # fmt: skip


@pytest.mark.parametrize("opset", [13, 19])
def test_a_graph_is_followed_from_node_to_node(opset):
    x = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    stem, pool, mean = inspect(network(opset), x, seconds=0.01, pictures=False).layers
    assert [layer.name for layer in (stem, pool, mean)] == [
        "stem.Conv", "pool.MaxPool", "ReduceMean",
    ]  # fmt: skip
    assert (stem.kind, stem.window) == ("convolution", "3×3, stride 2, padding 1")
    assert (pool.producers, pool.consumers) == (["Pad (pad)"], ["ReduceMean (mean)"])
    assert (pool.receptive_field, pool.jump) == ([5, 5], [4, 4])
    assert (mean.out_shape, mean.whole_input, mean.consumers) == ([2, 4], True, ["output"])
    # After a ReLU nothing is below the zeros that are padded, but much is equal to them.
    assert "padding-wins" not in {flag.kind for flag in pool.flags}
    assert mean.torch_share is None  # of another runtime's time


def test_padding_that_wins_is_seen_in_a_graph():
    model = graph(
        helper.make_node("Pad", ["x", "pads"], ["a"], name="pad"),
        helper.make_node("MaxPool", ["a"], ["y"], name="pool", kernel_shape=[3, 3], strides=[3, 3]),
        constants=[("pads", torch.tensor([0, 0, 1, 0, 0, 0, 1, 1]))],
    )
    (layer,) = inspect(model, -torch.rand(2, 3, 13, 11) - 1, seconds=0, losses=False).layers
    flag = next(flag for flag in layer.flags if flag.kind == "padding-wins")
    # Of 5 rows and 4 columns of windows the first and last row see zeros, and the last column.
    assert flag.text.startswith("pad (pad) pads with 0, which is the result of 55 % of the windows")


def test_a_report_of_a_graph_says_who_ran_it():
    report = inspect(network(), {"x": torch.rand(2, 3, 13, 11)}, seconds=0.01, pictures=False)
    assert {"onnx", "onnxruntime"} <= set(report.versions)
    assert report.model_ms is not None
    assert report.inputs == ["float32[2, 3, 13, 11]"]


def test_a_file_and_arrays(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(network().model, str(path))
    report = inspect(str(path), torch.rand(2, 3, 13, 11).numpy(), seconds=0, losses=False)
    assert (report.model_name, len(report.layers)) == ("net.onnx", 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "has the inputs x, and 0 were given"),
        ((torch.zeros(1), torch.zeros(1)), "has the inputs x, and 2 were given"),
        ({"z": torch.zeros(1)}, "and 1 were given, among them z"),
        (torch.zeros(1, 5, 8, 8), r"the model raised on input float32\[1, 5, 8, 8\]"),
    ],
)
def test_wrong_inputs_of_a_graph(inputs, message):
    with pytest.raises(PoolValueError, match=message):
        inspect(network(), inputs, seconds=0)
    with pytest.raises(PoolTypeError, match="an input of an ONNX model is an array, got str"):
        inspect(network(), "x", seconds=0)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_say_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'poolkit\[onnx\]'"):
        inspect(Path("net.onnx"), X, seconds=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_and_its_export_lose_the_same(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True)
    ).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, (X,), str(path), dynamo=False)
    ours = inspect(model, X, seconds=0, pictures=False).layers
    theirs = inspect(path, X, seconds=0, pictures=False).layers
    for a, b in zip(ours, theirs, strict=True):
        for key in ("words", "receptive_field", "out_shape"):
            assert getattr(a, key) == getattr(b, key)
        assert a.loss.shift_error == pytest.approx(b.loss.shift_error, rel=1e-3)


OCR = find_spec("rapidocr_onnxruntime")


@pytest.mark.skipif(OCR is None, reason="needs rapidocr-onnxruntime (--no-deps)")
@pytest.mark.parametrize(
    ("name", "height", "poolings"),
    [("ch_ppocr_mobile_v2.0_cls_infer", 48, 11), ("ch_PP-OCRv4_rec_infer", 48, 3)],
)
def test_real_networks(name, height, poolings):
    where = Path(OCR.submodule_search_locations[0]) / "models" / f"{name}.onnx"
    report = inspect(where, torch.rand(1, 3, height, 192), seconds=0, losses=False, pictures=False)
    assert len(report.poolings) == poolings
    assert all(layer.note == "" for layer in report.poolings)


def test_inspecting_a_module_does_not_import_onnx():
    code = "import sys, poolkit; poolkit.inspect; assert not {'onnx'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
