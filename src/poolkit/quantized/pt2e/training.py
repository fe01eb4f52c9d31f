"""Training with values that are rounded as the integers will be."""

from __future__ import annotations

from collections.abc import Iterable
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import (
    FakeQuantizeBase,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
)
from torchao.quantization.pt2e.utils import is_per_channel

from ...errors import PoolValueError
from ...inspection.trace import run_model

__all__ = ["IntegerRounding", "calibrate"]


class IntegerRounding(FakeQuantizeBase):
    """The fake quantization behind an average, with ties where the integers have them.

    A quarter of all 2x2 averages of integers lie halfway between two. In float32 they come out a
    little above or below, always on the same side for the same scale, so that a network learns
    with averages that are larger, or smaller, than those that it will get. Here what float32 cannot
    tell from a tie is a tie, and goes to the even neighbour, without regard to the zero point.
    Gradients pass straight through, but for what saturates.

    Args:
        fake_quantize: torchao's, which observes, and has the parameters; it may be shared.
    """

    def __init__(self, fake_quantize: Any) -> None:
        super().__init__()
        self.fake_quantize = fake_quantize
        for name in ("dtype", "qscheme", "is_dynamic", "quant_min", "quant_max"):
            setattr(self, name, getattr(fake_quantize, name))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.fake_quantize.calculate_qparams()
        return found

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = self.fake_quantize(x)
        if self.fake_quantize.fake_quant_enabled[0] != 1:
            return rounded
        with torch.no_grad():
            scale, zero_point = self.fake_quantize.scale, self.fake_quantize.zero_point
            low, high = self.quant_min - zero_point, self.quant_max - zero_point
            steps = (x / scale).clamp(low - 1, high + 1)
            # To so many binary places that the error of a mean is lost: beside a number that is
            # large enough, float32 has no more.
            places = 20 - log2(self.quant_max - self.quant_min + 1)
            large = 1.5 * 2 ** (23 - places)
            exact = (steps + large - large).round().clamp(low, high) * scale
        return rounded + (exact - rounded).detach()


def calibrate(prepared: nn.Module, batches: Iterable[Any]) -> None:
    """Find the ranges of the values of a prepared model.

    One that is prepared for training rounds nothing meanwhile; afterwards it does, and the ranges
    of activations stay as they are, while those of weights follow the training.

    Args:
        prepared: of ``prepare_pt2e`` or ``prepare_qat_pt2e``.
        batches: inputs, each a tensor, or a tuple or list of the model's arguments.

    Raises:
        PoolValueError: there are no batches, or the model raised on one.
    """
    count = 0
    prepared.apply(disable_fake_quant)
    try:
        with torch.no_grad():
            for batch in batches:
                run_model(prepared, batch if isinstance(batch, tuple | list) else (batch,))
                count += 1
    finally:
        prepared.apply(enable_fake_quant)
    if not count:
        raise PoolValueError(
            "there are no batches to find ranges on", "Give a few; a generator gives its own once"
        )
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase) and not is_per_channel(module.qscheme):
            disable_observer(module)
