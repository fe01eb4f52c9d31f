"""Where models come from, and how wide they are."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from poolkit.comparison.replacement import replace
from poolkit.comparison.variants import ORIGINAL, Variant
from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection.sources import call, load, unpacked
from poolkit.optimization.equality import fixed_randomness

#: What is held equal between a variant and the baseline. ``plain``: everything but the pooling.
#: The others make the variant's model narrower or wider until it has as much of one as the
#: baseline's: it then differs in more than the pooling, but not in size.
Control = Literal["plain", "parameters", "multiply-adds"]
CONTROLS: tuple[Control, ...] = get_args(Control)

#: Widths that are tried to meet a control.
_NARROWEST, _WIDEST = 0.25, 4.0

Factory = Callable[..., Any]


def vgg(width: float = 1.0, channels: int = 1, classes: int = 10) -> nn.Sequential:
    """A small network in the manner of VGG: three stages of two convolutions and a pool.

    8, 16 and 32 channels times `width`, with batch norms; a global average and a linear layer
    behind them. For images whose sides are divisible by 8.

    Source: Karen Simonyan and Andrew Zisserman, "Very Deep Convolutional Networks for Large-Scale
    Image Recognition", 2015.

    >>> vgg()(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for base in (8, 16, 32):
        out = max(1, round(base * width))
        for _ in range(2):
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


@dataclass(frozen=True)
class Source:
    """A factory of models, called anew for each one.

    Attributes:
        name: for readers.
        factory: returns a module, or a module and its inputs; with a parameter `width` if the
            controls of size are to be met.
        options: that it is always called with.
    """

    name: str
    factory: Factory
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def has_width(self) -> bool:
        return "width" in inspect.signature(self.factory).parameters

    def build(
        self, variant: Variant, example: torch.Tensor, seed: int, width: float = 1.0
    ) -> nn.Module:
        """A model with the poolings of a variant; the same seed gives the same shared weights."""
        if width != 1.0 and not self.has_width:
            raise PoolValueError(
                f"{self.name} has no argument width, so its size cannot be that of the baseline",
                "Give it one, 1 by default, or leave this control out",
            )
        options = dict(self.options) | ({} if width == 1.0 else {"width": width})
        with fixed_randomness(seed):
            made = call(self.name, self.factory, **options)
            model, _ = unpacked(made, self.name)
            # Layers that are lazy take their sizes, and their weights, from the first input.
            if any(nn.parameter.is_lazy(p) for p in model.parameters()):
                with torch.no_grad():
                    model(example)
        replace(model, variant, example, seed)
        return model.train()

    def digest(self, example: torch.Tensor) -> str:
        """What tells this model from all others: its modules, and the weights of seed 0."""
        model = self.build(Variant(ORIGINAL, ()), example, 0)
        found = hashlib.sha256(repr(model).encode())
        for name, value in model.state_dict().items():
            found.update(name.encode())
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def model_source(given: str | Factory | None, channels: int, classes: int) -> Source:
    """The `Source` that a command line or a program names; None is `vgg`.

    Raises:
        PoolTypeError: for a module in the place of a factory, whose weights would be trained on.
    """
    if given is None or given == "vgg":
        return Source("vgg", vgg, (("channels", channels), ("classes", classes)))
    factory = load(given) if isinstance(given, str) else given
    if isinstance(factory, nn.Module) or not callable(factory):
        raise PoolTypeError(
            f"a comparison trains from scratch and needs a factory, got {type(factory).__name__}",
            "Give a function that returns a new model each time",
        )
    name = (
        given.rpartition(":")[2]
        if isinstance(given, str)
        else getattr(factory, "__name__", type(factory).__name__)
    )
    return Source(name, factory)


def matched_width(measure: Callable[[float], int], wanted: int) -> float:
    """The width at which a model measures closest to `wanted`, found by bisection.

    >>> round(matched_width(lambda width: round(100 * width) ** 2, 2500), 2)
    0.5
    """
    tried: dict[float, int] = {}

    def distance(width: float) -> int:
        if width not in tried:
            tried[width] = measure(width)
        return tried[width] - wanted

    if distance(1.0) == 0:
        return 1.0
    low, high = (_NARROWEST, 1.0) if distance(1.0) > 0 else (1.0, _WIDEST)
    if distance(low) > 0 or distance(high) < 0:
        raise PoolValueError(
            f"no width from {_NARROWEST} to {_WIDEST} gives the baseline's size of {wanted}",
            "Leave this control out",
        )
    while high - low > 1 / 256:
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < 0 else (low, middle)
    return min(tried, key=lambda width: (abs(tried[width] - wanted), abs(width - 1)))
