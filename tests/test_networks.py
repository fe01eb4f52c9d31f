# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Example networks: the parameters that their papers count, and the same answers when optimised;
ONNX files as modules, against ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from torch import nn

import poolkit
from poolkit.errors import PoolValueError
from poolkit.examples import networks, ocr
from poolkit.examples.onnx_import import from_onnx

trained = pytest.mark.skipif(
    find_spec("rapidocr_onnxruntime") is None or find_spec("onnxruntime") is None,
    reason="needs rapidocr-onnxruntime (--no-deps) and onnxruntime",
)


@pytest.mark.parametrize(
    ("network", "parameters", "poolings"),
    [
        (networks.VGG16, 138_357_544, 5),
        (networks.ResNet50, 25_557_032, 2),
        (networks.SqueezeNet, 1_235_496, 4),
        (networks.GoogLeNet, 6_624_904, 14),
        (networks.YoloBackbone, 4_171_456, 1),
        (networks.UNet, 7_241_314, 2),
    ],
)
def test_parameters_and_poolings(network, parameters, poolings):
    with torch.device("meta"):
        model = network()
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    assert sum("Pool" in type(m).__name__ or "Unpool" in type(m).__name__
               for m in model.modules()) == poolings  # fmt: skip


@pytest.mark.parametrize(
    ("network", "size", "shapes"),
    [
        (networks.VGG16, 224, [(2, 1000)]),
        (networks.ResNet50, 224, [(2, 1000)]),
        (networks.SqueezeNet, 224, [(2, 1000)]),
        (networks.GoogLeNet, 224, [(2, 1000)]),
        (networks.YoloBackbone, 640, [(2, 128, 80, 80), (2, 256, 40, 40), (2, 512, 20, 20)]),
        (networks.UNet, 256, [(2, 2, 256, 256)]),
    ],
)
def test_shapes(network, size, shapes):
    with torch.device("meta"):
        model, x = network().eval(), torch.empty(2, 3, size, size)
        out = model(x)
    out = out if isinstance(out, tuple) else (out,)
    assert [tuple(part.shape) for part in out] == shapes


def test_weights_are_the_same_every_time():
    state = torch.get_rng_state()
    (first, (x,)), (second, (same,)) = networks.squeezenet(), networks.squeezenet()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, same)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not first.training


@pytest.mark.parametrize(
    ("factory", "size", "swapped"),
    [(networks.googlenet, 64, 14), (networks.yolo, 64, 1), (networks.unet, 32, 2)],
)
def test_optimised_networks_answer_the_same(factory, size, swapped):
    model, (x,) = factory()
    x = x[..., :size, :size]
    with torch.no_grad():
        before = model(x)
        report = poolkit.optimize(model, x, seconds=0)
        after = model(x)
    assert len(report.swapped) == swapped
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


# --- ONNX files ----------------------------------------------------------------------------------


@trained
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("detector", (2, 3, 64, 96)),
        ("recogniser", (2, 3, 48, 160)),
        ("orientation", (3, 3, 48, 192)),
    ],
)
def test_ppocr_answers_as_in_onnx_runtime(name, shape):
    import onnxruntime

    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        out = ocr.load(name)(x)
    session = onnxruntime.InferenceSession(ocr._path(name), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(out, torch.from_numpy(expected), rtol=1e-3, atol=1e-5)


@trained
def test_ppocr_reads_turns_and_finds_text():
    rows = {row.network: row for row in ocr.accuracies()}
    assert rows["recogniser"].torch > 0.7
    assert rows["orientation"].torch > 0.9
    assert rows["detector"].torch > 0.9
    assert all(row.poolkit == row.torch for row in rows.values())


@trained
def test_examples_run():
    for factory in (ocr.detector, ocr.recogniser, ocr.orientation):
        model, (x,) = factory()
        assert not model.training
        assert x.shape[:2] == (1, 3)
        assert x.min() == -1
        assert x.max() == 1


def graph_of(*nodes, constants=()):
    """An ONNX model of one input (1, 3, 8, 8) as a file's bytes."""
    helper = pytest.importorskip("onnx").helper
    floats = 1
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info("x", floats, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", floats, None)], list(constants),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    return model.SerializeToString()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def test_poolings_become_modules(tmp_path):
    helper = pytest.importorskip("onnx").helper
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], strides=[2, 2],
                         pads=[1, 1, 1, 1], ceil_mode=1),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("GlobalAveragePool", ["b"], ["y"]),
    ]  # fmt: skip
    model = from_onnx(written(tmp_path, graph_of(*nodes)))
    x = torch.arange(192.0).reshape(1, 3, 8, 8)
    expected = nn.Sequential(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
    )
    assert torch.equal(model(x), expected(x))
    kinds = [type(module) for module in model.children()]
    assert kinds == [nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d]


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        ("Elu", {}, "y is made by Elu, which is not among the operators known here"),
        (
            "MaxPool",
            {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 0, 1, 1]},
            "padding must be the same on both sides, got pads (0, 0, 1, 1)",
        ),
    ],
)
def test_what_is_not_known_is_named(tmp_path, operator, attributes, message):
    helper = pytest.importorskip("onnx").helper
    data = graph_of(helper.make_node(operator, ["x"], ["y"], **attributes))
    with pytest.raises(PoolValueError) as caught:
        from_onnx(written(tmp_path, data))
    assert message in str(caught.value)


def test_missing_networks_say_what_to_install(monkeypatch):
    from poolkit.examples import faces

    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(PoolValueError) as caught:
        ocr.load("detector")
    assert "pip install --no-deps rapidocr-onnxruntime==1.4.4" in str(caught.value)
