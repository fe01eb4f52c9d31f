"""JAX on the CPU: `lax.reduce_window`, compiled by XLA."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .answers import QPARAMS, Answer, make_gradient
from .cases import ADAPTIVE, LP, UNFOLDED, Case
from .engines import Engine
from .peers import Call, UnsupportedError

# XLA's CPU client reads its number of threads here, once, when it is made.
_THREADS = "PJRT_NPROC"


class Jax(Engine):
    name = "jax"
    title = "JAX"
    note = (
        "lax.reduce_window under jax.jit, on the memory of the input; channels_last are arrays "
        "(N, H, W, C); an average of int8 as in torch eager"
    )
    package = "jax"
    needs = ("jax",)
    _client_threads: ClassVar[int | None] = None

    def prepare(self, case: Case, x: Tensor) -> Call:
        """As `Engine.prepare`, but JAX differentiates too."""
        return self.build(case, x)

    def build(self, case: Case, x: Tensor) -> Call:
        operation = jax_operation(case)
        self._start_client()
        import jax

        array = _shared(case, x)
        if not case.differentiated:
            pooled = jax.jit(operation)
            return lambda: (case, jax.block_until_ready((pooled(array),)))
        gradient = _shared(case, make_gradient(case))
        if case.mode == "backward":
            _, pull = jax.jit(lambda x: jax.vjp(operation, x))(array)
            backward = jax.jit(lambda pull, gradient: pull(gradient))
            return lambda: (case, jax.block_until_ready(backward(pull, gradient)))

        def step(x: Any, gradient: Any) -> Any:
            y, pull = jax.vjp(operation, x)
            return y, *pull(gradient)

        train = jax.jit(step)
        return lambda: (case, jax.block_until_ready(train(array, gradient)))

    def answer(self, result: Any) -> Answer:
        case, arrays = result
        tensors = [torch.from_dlpack(array) for array in arrays]
        if case.layout == "channels_last":
            tensors = [tensor.permute(0, 3, 1, 2) for tensor in tensors]
        return tuple(tensors)

    def _start_client(self) -> None:
        """A client of the right number of threads; arrays of an older one are gone after it."""
        if Jax._client_threads == self.threads:
            return
        os.environ[_THREADS] = str(self.threads)
        import jax.extend

        if not os.environ.get("JAX_PLATFORMS"):
            jax.config.update("jax_platforms", "cpu")
        jax.extend.backend.clear_backends()
        Jax._client_threads = self.threads


def _shared(case: Case, x: Tensor) -> Any:
    """The memory of x as a JAX array, dense in the order of its axes."""
    import jax

    return jax.dlpack.from_dlpack(x.permute(0, 2, 3, 1) if case.layout == "channels_last" else x)


def jax_operation(case: Case) -> Callable[[Any], Any]:
    """The case in JAX's operations, on arrays with the channels where the layout has them."""
    if case.op in ADAPTIVE:
        raise UnsupportedError("JAX has no adaptive pooling into windows of different sizes")
    if case.op in UNFOLDED:
        raise UnsupportedError(f"JAX has no {case.op} pooling")
    if not case.quantized:
        return lambda x: _pooled(case, x)
    scale, zero = QPARAMS.scale, QPARAMS.zero_point

    def quantized(x: Any) -> Any:
        import jax.numpy as jnp

        average = _pooled(case, (x.astype(jnp.float32) - zero) * scale)
        return (jnp.round(average / scale) + zero).clip(-128, 127).astype(jnp.int8)

    return quantized


def _pooled(case: Case, x: Any) -> Any:
    import jax
    import jax.numpy as jnp
    from jax import lax

    first = 1 if case.layout == "channels_last" else 2
    axes = tuple(range(first, first + case.rank))
    if case.op == "global_avg":
        return jnp.mean(x, axes, keepdims=True)
    if case.op == "global_max":
        return jnp.max(x, axes, keepdims=True)

    def windows(x: Any, empty: float, combine: Any) -> Any:
        def sizes(spatial: tuple[Any, ...], other: Any) -> list[Any]:
            return [*[other] * first, *spatial, *[other] * (2 - first)]

        kernel, strides = sizes(case.kernel_size, 1), sizes(case.stride, 1)
        padding = sizes(tuple((size, size) for size in case.padding), (0, 0))
        return lax.reduce_window(x, x.dtype.type(empty), combine, kernel, strides, padding)

    def total(x: Any) -> Any:
        return windows(x.astype(jnp.float32), 0, lax.add)  # half types are added up in float32

    def mean(x: Any) -> Any:
        return (total(x) / math.prod(case.kernel_size)).astype(x.dtype)

    whole = jnp.issubdtype(x.dtype, jnp.integer)
    lowest, highest = (
        (jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max) if whole else (-jnp.inf, jnp.inf)
    )
    if case.op == "max":
        return windows(x, lowest, lax.max)
    if case.op == "min":
        return windows(x, highest, lax.min)
    if case.op == "avg":
        return mean(x)
    if case.op == "relu_max":
        return windows(jax.nn.relu(x), lowest, lax.max)
    if case.op == "sigmoid_avg":
        return mean(jax.nn.sigmoid(x))
    norm = LP[case.op]
    return total(jnp.abs(x) ** norm) ** (1 / norm)
