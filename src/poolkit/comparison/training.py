"""One model trained and tested: the same bits every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from poolkit.comparison.data import Split

#: Items in a batch without gradients.
_EVALUATED = 250
#: Shifts are up to this share of the side of an image, as 32 of 256 pixels.
_LARGEST_SHIFT = 1 / 8


@dataclass(frozen=True)
class Schedule:
    """Stochastic gradient descent with Nesterov momentum, a tenth warm-up and a cosine."""

    epochs: int
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def steps(self, items: int) -> int:
        return self.epochs * max(1, items // self.batch_size)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by.

        >>> [round(Schedule(1, 1).factor(step, 20), 2) for step in (0, 1, 2, 11, 20)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        warm = max(1, steps // 10)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    model: nn.Module,
    data: Split,
    rate: float,
    schedule: Schedule,
    seed: int,
    tell: Callable[[int], None],
) -> float:
    """Train on the whole schedule, and return the mean loss of the last epoch.

    The order of the items has a generator of its own, so it is the same for every model, whatever
    a model draws itself. `tell` gets the epochs done.
    """
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=schedule.momentum,
        nesterov=True,
        weight_decay=schedule.weight_decay,
    )
    steps = schedule.steps(len(data))
    planned = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: schedule.factor(s, steps))
    model.train()
    loss_sum = torch.zeros(())
    for epoch in range(schedule.epochs):
        loss_sum = torch.zeros(())
        shuffled = torch.randperm(len(data), generator=order)
        batches = shuffled.split(schedule.batch_size)[: steps // schedule.epochs]
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(as_trained(data.inputs[batch])), data.labels[batch])
            loss.backward()
            optimizer.step()
            planned.step()
            loss_sum += loss.detach()
        tell(epoch + 1)
    return float(loss_sum) / (steps // schedule.epochs)


def as_trained(inputs: torch.Tensor) -> torch.Tensor:
    """Images with the channels last, in which convolutions on a CPU are quicker."""
    if inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


@torch.no_grad()
def scores(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a model says of each input, (n, classes), in eval mode and without gradients."""
    model.eval()
    return torch.cat([model(as_trained(part)) for part in inputs.split(_EVALUATED)])


def shift_consistency(model: nn.Module, images: torch.Tensor) -> float | None:
    """How often a model names the same class for an image at two places; None for no images.

    Each image is moved twice by random whole pixels, up to an eighth of its side each way, with
    its border repeated behind it. The shifts are the same for all models.

    Source: Richard Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019.
    """
    if images.ndim != 4:
        return None
    generator = torch.Generator().manual_seed(0)
    first, second = (scores(model, _moved(images, generator)).argmax(1) for _ in range(2))
    return float((first == second).double().mean())


def _moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, channels, *sides = images.shape
    reach = [max(1, int(side * _LARGEST_SHIFT)) for side in sides]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    rows, columns = (
        torch.randint(0, 2 * most + 1, (count, 1), generator=generator) + torch.arange(side)
        for most, side in zip(reach, sides, strict=True)
    )
    item, channel = torch.arange(count), torch.arange(channels)
    return padded[
        item[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
