"""What a case computes: its input, the right answer, and whether a peer's answer is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from poolkit.quantized import QParams

from .cases import ACTIVATED, LP, UNFOLDED, Case

Operation = Callable[[Tensor], Tensor]
# (output,), (gradient of the input,) of a backward pass, or both in training.
Answer = tuple[Tensor, ...]

# A power of two, so that float32 is exact and right answers differ at ties alone.
QPARAMS = QParams(0.125, zero_point=3)

# Values repeat only at this distance, which is beyond the reach of any window.
_PERIOD = 2**23


def make_input(case: Case) -> Tensor:
    """Values between -1 and 1 of which no two in one window are equal (except in narrow types).

    A window then has one largest value only, so gradients can be compared for equality without
    asking which of two equal values a library takes. The order is random: maximum kernels that
    branch would predict a regular one.
    """
    count = math.prod(case.shape)
    generator = torch.Generator().manual_seed(0)
    if case.dtype == "int8":
        x = torch.randint(-128, 128, case.shape, dtype=torch.int8, generator=generator)
    else:
        period = min(count, _PERIOD)
        half = 2 ** max(0, (period - 1).bit_length() - 1)  # a power of two: division is exact
        values = (torch.randperm(period, generator=generator) - half).float() / half
        x = values.repeat(-(-count // period))[:count].reshape(case.shape)
        x = x.to(getattr(torch, case.dtype))
    if case.op == "lp3":
        x = x.abs()  # torch takes odd powers of the values themselves, and roots of what comes out
    if case.layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def make_gradient(case: Case) -> Tensor:
    """Small integers, in the layout of the output: sums of them are exact in any order."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randint(-8, 9, case.output_shape, generator=generator)
    gradient = gradient.to(getattr(torch, case.dtype))
    if case.layout == "channels_last":
        return gradient.contiguous(memory_format=torch.channels_last)
    return gradient


def torch_operation(case: Case) -> Operation:
    """The case in torch's operators, each in the fastest spelling that torch eager has.

    Torch has no average of quantized values in plain tensors: it is that of the real ones.
    """
    if not case.quantized:
        return _torch_operation(case)
    average = _torch_operation(case)
    scale, zero = QPARAMS.scale, QPARAMS.zero_point

    def quantized(x: Tensor) -> Tensor:
        real = (x.float() - zero) * scale
        return ((average(real) / scale).round() + zero).clamp(-128, 127).to(torch.int8)

    return quantized


def _torch_operation(case: Case) -> Operation:
    rank = case.rank
    spatial_axes = tuple(range(2, 2 + rank))
    sliding = (case.kernel_size, case.stride, case.padding)
    if case.op == "max":
        return lambda x: getattr(F, f"max_pool{rank}d")(x, *sliding)
    if case.op == "min":
        return lambda x: -getattr(F, f"max_pool{rank}d")(-x, *sliding)
    if case.op == "avg":
        return lambda x: getattr(F, f"avg_pool{rank}d")(x, *sliding)
    if case.op in ACTIVATED:
        activation = getattr(torch, ACTIVATED[case.op])
        kind = case.op.removeprefix(f"{ACTIVATED[case.op]}_")
        return lambda x: getattr(F, f"{kind}_pool{rank}d")(activation(x), *sliding)
    if case.op in LP:
        powers = (LP[case.op], case.kernel_size, case.stride)
        return lambda x: getattr(F, f"lp_pool{rank}d")(x, *powers)
    if case.op in UNFOLDED:
        return lambda x: _unfolded(case, x)
    if case.op == "adaptive_avg":
        return lambda x: getattr(F, f"adaptive_avg_pool{rank}d")(x, case.output_size)
    if case.op == "global_avg":
        return lambda x: getattr(F, f"adaptive_avg_pool{rank}d")(x, 1)
    # adaptive_max_pool2d(x, 1) looks for indices too and is 3 times slower than this.
    return lambda x: x.amax(spatial_axes, keepdim=True)


def _unfolded(case: Case, x: Tensor) -> Tensor:
    """Every window written out, which is how torch reduces windows that it has no pooling for."""
    taps = math.prod(case.kernel_size)
    patches = F.unfold(x, case.kernel_size, stride=case.stride)
    patches = patches.unflatten(1, (case.shape[1], taps))
    if case.op == "median":
        reduced = patches.median(2).values
    elif case.op == "std":
        reduced = patches.std(2, correction=0)
    else:
        reduced = patches.logsumexp(2) - math.log(taps)
    return reduced.unflatten(-1, case.output_shape[2:])


def differentiated(
    operation: Operation, x: Tensor, case: Case, pack: Operation = lambda tensor: tensor
) -> Callable[[], Answer]:
    """One training step, or its backward pass alone; nothing is accumulated.

    pack: how a plain tensor becomes one that `operation` takes.
    """
    leaf = pack(x.detach().clone()).requires_grad_()
    gradient = pack(make_gradient(case))
    if case.mode == "backward":
        y = operation(leaf)
        return lambda: torch.autograd.grad(y, leaf, gradient, retain_graph=True)
    return lambda: _training_step(operation, leaf, gradient)


def _training_step(operation: Operation, leaf: Tensor, gradient: Tensor) -> Answer:
    y = operation(leaf)
    (dx,) = torch.autograd.grad(y, leaf, gradient)
    return y, dx


def right_answer(case: Case, x: Tensor) -> Answer:
    """Torch eager's answer in float32, rounded to the dtype of the case at the end."""
    operation = torch_operation(case)
    wide = x.float()
    if case.differentiated:
        return as_answer(differentiated(operation, wide, case)())
    return (operation(wide).to(x.dtype),)


def mistake(case: Case, got: Answer, want: Answer) -> str | None:
    """What is wrong with an answer: shape, dtype or values; None where it is right.

    Selected values must be equal bit for bit, computed ones as close as torch.testing asks for,
    quantized ones within a step: a tie may be rounded either way.
    """
    tolerance = 0.0 if case.exact else None  # None: what torch.testing holds right for the dtype
    steps = 1.0 if case.quantized else tolerance
    names = ("gradient",) if case.mode == "backward" else ("output", "gradient")
    if len(got) != len(want):
        return f"{len(got)} results where {len(want)} are due"
    for name, ours, theirs in zip(names, got, want, strict=False):
        try:
            torch.testing.assert_close(
                ours, theirs, rtol=0.0 if case.quantized else tolerance, atol=steps
            )
        except AssertionError as error:
            return f"{name}: {_first_facts(str(error))}"
    return None


def _first_facts(message: str) -> str:
    """The lines of torch.testing's report that say how much differs, in one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(lines[:3])


def as_answer(result: object) -> Answer:
    """The tensors of a result as a tuple without autograd history."""
    tensors = result if isinstance(result, tuple) else (cast(Tensor, result),)
    return tuple(tensor.detach() for tensor in tensors)
