"""The inference engines: ONNX Runtime and OpenVINO, each on a model of one node.

Both read the memory of the input tensor without a copy and write into an output buffer that is
allocated at the first call and used again, which is the fastest way each of them offers.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .answers import QPARAMS, Answer
from .cases import LP, UNFOLDED, Case
from .peers import Call, Peer, UnsupportedError

INSTALL = "pip install onnx onnxruntime openvino jax"


class Engine(Peer):
    """An inference engine: a package of its own, which may not be there."""

    needs: ClassVar[tuple[str, ...]]

    @classmethod
    def missing(cls) -> str | None:
        for package in cls.needs:
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                if error.name != package:
                    return f"{package} cannot be imported ({error})"
                return f"{package} is not installed: {INSTALL}"
            except ImportError as error:
                return f"{package} cannot be imported ({error})"
        return None

    def prepare(self, case: Case, x: Tensor) -> Call:
        if case.differentiated:
            raise UnsupportedError("an inference engine: no backward pass")
        return self.build(case, x)

    @abstractmethod
    def build(self, case: Case, x: Tensor) -> Call:
        """The forward case as a model, ready to run."""


class OnnxRuntime(Engine):
    name = "onnxruntime"
    title = "ONNX Runtime"
    note = "a model of one node through IOBinding; the output buffer is used again"
    package = "onnxruntime"
    needs = ("onnx", "onnxruntime")  # the first builds the model

    def build(self, case: Case, x: Tensor) -> Call:
        if case.layout == "channels_last":
            raise UnsupportedError("ONNX is NCHW: see the contiguous case")
        if case.dtype == "bfloat16":
            raise UnsupportedError("ONNX Runtime pools no bfloat16 on the CPU")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its threads otherwise spin for 50 ms after a call and take a core from whatever is
        # measured next. Its own times are the same with and without.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = onnx_model(case)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy()))
        binding.bind_output("y")

        def call() -> object:
            session.run_with_iobinding(binding)
            return binding

        return call

    def answer(self, result: Any) -> Answer:
        return (torch.from_numpy(result.get_outputs()[0].numpy()),)


def onnx_model(case: Case) -> bytes:
    """The case as an ONNX model from "x" to "y", of one node (three for min, two with an
    activation)."""
    from onnx import TensorProto, helper

    sliding: dict[str, Any] = {
        "kernel_shape": list(case.kernel_size),
        "strides": list(case.stride),
        "pads": [*case.padding, *case.padding],
    }
    nodes: dict[str, list[tuple[str, str, str, dict[str, Any]]]] = {
        "max": [("MaxPool", "x", "y", sliding)],
        "min": [("Neg", "x", "a", {}), ("MaxPool", "a", "b", sliding), ("Neg", "b", "y", {})],
        "avg": [("AveragePool", "x", "y", {**sliding, "count_include_pad": 1})],
        "relu_max": [("Relu", "x", "a", {}), ("MaxPool", "a", "y", sliding)],
        "sigmoid_avg": [
            ("Sigmoid", "x", "a", {}),
            ("AveragePool", "a", "y", {**sliding, "count_include_pad": 1}),
        ],
        **{op: [("LpPool", "x", "y", {**sliding, "p": int(p)})] for op, p in LP.items()},
        "global_avg": [("GlobalAveragePool", "x", "y", {})],
        "global_max": [("GlobalMaxPool", "x", "y", {})],
    }
    if case.dtype == "int8":  # GlobalMaxPool is for floating types; MaxPool is not
        whole = {"kernel_shape": list(case.spatial)}
        nodes["global_max"] = [("MaxPool", "x", "y", whole)]
    if case.op in UNFOLDED:
        raise UnsupportedError(f"ONNX has no {case.op} pooling")
    if case.op not in nodes:
        raise UnsupportedError("ONNX has no adaptive pooling into windows of different sizes")
    elements = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "int8": TensorProto.INT8,
    }
    element = elements[case.dtype]
    made = [helper.make_node(op, [a], [b], **options) for op, a, b, options in nodes[case.op]]
    constants = []
    if case.quantized:  # operators of ONNX Runtime's own, with the parameters of both ends
        ((op, a, b, options),) = nodes[case.op]
        if case.op == "global_avg":
            options = {"channels_last": 0}
        inputs = [a, "scale", "zero", "scale", "zero"]
        made = [helper.make_node(f"QLinear{op}", inputs, [b], domain="com.microsoft", **options)]
        constants = [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [QPARAMS.scale]),
            helper.make_tensor("zero", element, [], [QPARAMS.zero_point]),
        ]
    graph = helper.make_graph(
        made,
        "pooling",
        [helper.make_tensor_value_info("x", element, case.shape)],
        [helper.make_tensor_value_info("y", element, case.output_shape)],
        constants,
    )
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9)
    return model.SerializeToString()


class OpenVINO(Engine):
    name = "openvino"
    title = "OpenVINO"
    note = (
        "a model of one node, latency hint, input memory shared; the output is used again; "
        "channels_last declares NHWC at both ends of the model, which may cost it a reorder"
    )
    package = "openvino"
    needs = ("openvino",)
    _core: ClassVar[Any] = None

    def build(self, case: Case, x: Tensor) -> Call:
        import openvino

        if OpenVINO._core is None:
            OpenVINO._core = openvino.Core()
        own = {"bfloat16": "bf16", "float16": "f16"}.get(case.dtype, "f32")
        try:
            compiled = self._compiled(case, own)
        except RuntimeError:  # no such arithmetic with these instructions
            compiled = self._compiled(case, "f32")
        request = compiled.create_infer_request()
        request.set_input_tensor(_shared(case, x))

        def call() -> object:
            request.infer(share_outputs=True)
            return request, case

        return call

    def answer(self, result: Any) -> Answer:
        request, case = result
        array = request.get_output_tensor().data
        if case.dtype == "bfloat16":
            y = torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        else:
            y = torch.from_numpy(array)
        # With the layout channels_last the model's tensors are (N, H, W, C).
        return (y.permute(0, 3, 1, 2) if case.layout == "channels_last" else y,)

    def _compiled(self, case: Case, precision: str) -> Any:
        return OpenVINO._core.compile_model(
            openvino_model(case),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": precision,
            },
        )


def _shared(case: Case, x: Tensor) -> Any:
    """The memory of x as an OpenVINO tensor."""
    import openvino

    dense = x.permute(0, 2, 3, 1) if case.layout == "channels_last" else x
    if case.dtype == "bfloat16":
        bits = dense.view(torch.int16).numpy()
        return openvino.Tensor(bits, list(dense.shape), openvino.Type.bf16)
    return openvino.Tensor(dense.numpy(), shared_memory=True)


def openvino_model(case: Case) -> Any:
    """The case as an OpenVINO model of one node (three for min, two with an activation)."""
    import openvino
    from openvino import opset1, opset8, preprocess

    if case.op in LP:
        raise UnsupportedError("OpenVINO has no Lp pooling")
    if case.quantized:
        raise UnsupportedError("OpenVINO averages int8 inside quantized graphs only")
    if case.op in UNFOLDED:
        raise UnsupportedError(f"OpenVINO has no {case.op} pooling")
    types = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "i8"}
    x = opset1.parameter(list(case.shape), getattr(openvino.Type, types[case.dtype]))
    axes = list(range(2, 2 + case.rank))
    strides, pads, kernel = list(case.stride), list(case.padding), list(case.kernel_size)
    if case.op == "max":
        y = opset1.max_pool(x, strides, pads, pads, kernel, "floor")
    elif case.op == "min":
        negated = opset1.max_pool(opset1.negative(x), strides, pads, pads, kernel, "floor")
        y = opset1.negative(negated)
    elif case.op == "relu_max":
        y = opset1.max_pool(opset1.relu(x), strides, pads, pads, kernel, "floor")
    elif case.op == "sigmoid_avg":
        y = opset1.avg_pool(opset1.sigmoid(x), strides, pads, pads, kernel, exclude_pad=False)
    elif case.op == "avg":
        y = opset1.avg_pool(x, strides, pads, pads, kernel, exclude_pad=False)
    elif case.op == "adaptive_avg":
        y = opset8.adaptive_avg_pool(x, opset1.constant(case.output_size, openvino.Type.i64))
    elif case.op == "global_avg":
        y = opset1.reduce_mean(x, axes, keep_dims=True)
    else:
        y = opset1.reduce_max(x, axes, keep_dims=True)
    model = openvino.Model([y], [x])
    if case.layout == "channels_last":
        # Tells the plugin that memory is NHWC, so that it need not transpose.
        steps = preprocess.PrePostProcessor(model)
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        steps.output().model().set_layout(openvino.Layout("NCHW"))
        steps.output().tensor().set_layout(openvino.Layout("NHWC"))
        model = steps.build()
    return model
