"""The implementations that run in torch: poolkit, torch itself, oneDNN, and the copy limit.

A peer turns a case and its input into a call without arguments, or raises `UnsupportedError` with
the reason. Calls that return new tensors pay for the allocation, as they do for their users.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import torch
from torch import Tensor

import poolkit

from .answers import (
    QPARAMS,
    Answer,
    Operation,
    as_answer,
    differentiated,
    torch_operation,
)
from .cases import ACTIVATED, GLOBAL, LP, UNFOLDED, Case

Call = Callable[[], object]


class UnsupportedError(Exception):
    """The peer cannot run this case; the message says why."""


class Peer(ABC):
    """One implementation, running with a stated number of threads."""

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str]  # what one call does, for the legend of the report
    package: ClassVar[str] = "torch"
    computes: ClassVar[bool] = True  # False: there is no result to check

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def missing(cls) -> str | None:
        """Why the peer cannot run here at all; None where it can."""
        return None

    @classmethod
    def version(cls) -> str:
        try:
            return version(cls.package)
        except PackageNotFoundError:
            return "unknown"

    @abstractmethod
    def prepare(self, case: Case, x: Tensor) -> Call:
        """Everything that is done once: models built, inputs bound, buffers allocated."""

    def answer(self, result: object) -> Answer:
        """What a call returned, as dense torch tensors; not part of the time."""
        return as_answer(result)


def _call(operation: Operation, case: Case, x: Tensor) -> Call:
    return differentiated(operation, x, case) if case.differentiated else lambda: operation(x)


class Poolkit(Peer):
    name = "poolkit"
    title = "poolkit"
    note = "the function of the same name in poolkit; torch.get_num_threads() threads"
    package = "poolkit"

    def prepare(self, case: Case, x: Tensor) -> Call:
        return _call(poolkit_operation(case), case, x)


def poolkit_operation(case: Case) -> Operation:
    """The case as one call of poolkit's public function for it."""
    if case.op in UNFOLDED:
        window = poolkit.Sliding(case.kernel_size, stride=case.stride)
        return lambda x: poolkit.pool(x, window, case.op)
    kind = "lp" if case.op in LP else case.op
    function = getattr(poolkit, f"{kind}_pool{case.rank}d")
    if case.quantized:
        function = partial(getattr(poolkit.quantized, f"{kind}_pool{case.rank}d"), qparams=QPARAMS)
    if case.op in GLOBAL:
        return lambda x: function(x)
    if case.op == "adaptive_avg":
        return lambda x: function(x, case.output_size)
    if case.op in LP:
        return lambda x: function(x, LP[case.op], case.kernel_size, case.stride)
    return lambda x: function(x, case.kernel_size, case.stride, case.padding)


class TorchEager(Peer):
    name = "eager"
    title = "torch eager"
    note = (
        "torch.nn.functional, in inference mode where the case is forward only; an average of int8 "
        "is dequantized, pooled in float32 and quantized"
    )

    def prepare(self, case: Case, x: Tensor) -> Call:
        return _call(torch_operation(case), case, x)


class TorchCompile(Peer):
    name = "compile"
    title = "torch.compile"
    note = "the same through torch.compile(fullgraph=True, dynamic=False); compiled before timing"

    def prepare(self, case: Case, x: Tensor) -> Call:
        # All cases compile one and the same code object: without this they would count as
        # recompilations of one function and end in eager mode at the limit of 8.
        torch.compiler.reset()
        compiled = torch.compile(torch_operation(case), fullgraph=True, dynamic=False)
        # What the forward saved is used by every backward, so no backward may write into it.
        with torch._functorch.config.patch(donated_buffer=case.mode != "backward"):
            return _call(compiled, case, x)


class OneDNN(Peer):
    name = "onednn"
    title = "oneDNN"
    note = "torch's operator on mkldnn tensors; to_mkldnn() and to_dense() are not timed"

    @classmethod
    def missing(cls) -> str | None:
        return None if torch.backends.mkldnn.is_available() else "this torch has no oneDNN"

    @classmethod
    def version(cls) -> str:
        # oneDNN is a part of torch; its own version stands in the build configuration only.
        for line in torch.__config__.show().splitlines():
            if "MKL-DNN" in line or "oneDNN" in line:
                return line.strip(" -")
        return f"in torch {torch.__version__}"

    def prepare(self, case: Case, x: Tensor) -> Call:
        if case.quantized:
            raise UnsupportedError("torch has no average of int8 mkldnn tensors")
        supported = {
            "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
            "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }
        if case.dtype in supported and not supported[case.dtype]():
            raise UnsupportedError(f"oneDNN has no {case.dtype} with these instructions")
        if case.rank == 1:
            raise UnsupportedError("torch has no 1-D pooling of mkldnn tensors")
        if case.op == "min" or case.op in (*LP, *ACTIVATED, *UNFOLDED):
            raise UnsupportedError(f"oneDNN has no {case.op} pooling")
        if case.layout == "channels_last":
            raise UnsupportedError("to_mkldnn() reorders to NCHW: see the contiguous case")
        if case.op == "adaptive_avg" and any(
            size % out for size, out in zip(case.spatial, case.output_size, strict=True)
        ):
            raise UnsupportedError("oneDNN has no adaptive pooling into windows of different sizes")
        # The whole plane as one window: mkldnn tensors have no amax.
        operation = torch_operation(_whole_plane(case) if case.op == "global_max" else case)
        if not case.differentiated:
            packed = x.to_mkldnn()
            return lambda: operation(packed)
        return differentiated(operation, x, case, Tensor.to_mkldnn)

    def answer(self, result: object) -> Answer:
        return tuple(tensor.to_dense() for tensor in as_answer(result))


def _whole_plane(case: Case) -> Case:
    return Case(
        name=case.name,
        op="max",
        shape=case.shape,
        kernel_size=case.spatial,
        stride=case.spatial,
        padding=(0,) * case.rank,
        dtype=case.dtype,
    )


class Copy(Peer):
    name = "copy"
    title = "copy"
    note = (
        "tensor.copy_ between two allocated buffers of half the bytes the case reads and writes, "
        "so that the copy reads and writes as many: the practical limit of memory"
    )
    computes = False

    def prepare(self, case: Case, x: Tensor) -> Call:
        # Whole float32 values: torch copies those with vectors on all its threads.
        count = max(1, case.bytes_moved // 8)
        source, target = torch.ones(count), torch.zeros(count)
        return lambda: target.copy_(source)


TORCH_PEERS: tuple[type[Peer], ...] = (Poolkit, TorchEager, TorchCompile, OneDNN, Copy)
