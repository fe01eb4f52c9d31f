"""What a model costs, whatever it learned: numbers, memory and time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from poolkit.inspection.memory import saved_for_backward
from poolkit.timing import interleave, paired_ratios, within

T = TypeVar("T")

#: Images in the batch that is timed.
BATCH = 32
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Times:
    """Milliseconds of one batch at inference, by layout; ratios are to the baseline in it."""

    milliseconds: dict[str, float]
    ratios: dict[str, float]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, example: torch.Tensor) -> int:
    """Multiplications and additions of one input, of convolutions and matrix products.

    What a pooling adds up or compares itself is not counted, only what it multiplies by weights.
    """
    model.eval()
    with torch.no_grad():
        _, count = counted(lambda: model(example[:1]))
    model.train()
    return count


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and the multiplications by weights, each with its addition, in it."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, int(counter.get_total_flops()) // 2


def training_bytes(model: nn.Module, batch: torch.Tensor, labels: torch.Tensor) -> int:
    """What a training step holds at its peak: what backward needs, gradients and momentum.

    Exact and the same on every machine: the tensors are counted, not the process.
    """
    state = copy.deepcopy(model.state_dict())
    model.train()
    kept = saved_for_backward(lambda x: F.cross_entropy(model(x), labels), batch) or 0
    model.load_state_dict(state)
    return kept + 2 * sum(p.numel() * p.element_size() for p in model.parameters())


def in_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The model, with its weights in a layout."""
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def inference_times(
    models: Sequence[nn.Module], batch: torch.Tensor, seconds: float
) -> list[Times]:
    """Time all models in both layouts, interleaved; the first is the baseline of the ratios."""
    layouts = LAYOUTS if batch.ndim == 4 else {"contiguous": torch.contiguous_format}
    calls = []
    for model in models:
        model.eval()
        for layout in layouts.values():
            placed = in_layout(copy.deepcopy(model), layout)
            calls.append(partial(placed, batch.contiguous(memory_format=layout)))
    with torch.no_grad():
        samples = interleave(calls, within(seconds * len(calls)))
    found = []
    for index in range(len(models)):
        own = samples[index * len(layouts) : (index + 1) * len(layouts)]
        found.append(
            Times(
                {name: 1e3 * median(s.seconds) for name, s in zip(layouts, own, strict=True)},
                {
                    name: median(paired_ratios(s.seconds, base.seconds))
                    for name, s, base in zip(layouts, own, samples, strict=False)
                },
            )
        )
    return found
