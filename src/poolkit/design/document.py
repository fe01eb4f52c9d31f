"""The page of `poolkit advise`: ``python -m poolkit.design.document > docs/design.md``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poolkit.design.advising import advise
from poolkit.design.literature import LITERATURE

__all__ = ["detector", "page", "plain"]


def plain() -> nn.Sequential:
    """A network in the manner of VGG: blocks of convolutions, a 2x2 maximum, a flattened head."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(128 * 8 * 8, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, both with a stride."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Detector(nn.Module):
    """A stem and a stage as in a residual network, and the chain of maxima of a YOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, 2)
        self.stage = Residual(32, 64)
        self.chain = nn.MaxPool2d(5, 1, 2)
        self.head = nn.Conv2d(256, 18, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.pool(torch.relu(self.stem(x))))
        levels = [x]
        for _ in range(3):
            levels.append(self.chain(levels[-1]))
        maps: Tensor = self.head(torch.cat(levels, 1))
        return maps


def detector() -> nn.Module:
    """A detector: a strided stem, a residual stage, the chain of maxima of a YOLO."""
    return Detector()


_EXAMPLES = ((plain, "1x3x64x64"), (detector, "1x3x160x160"))

_INTRODUCTION = """\
# Designing on paper

`poolkit advise` says what a model's poolings, strided convolutions and flattened heads do to its
input, and what others in their places would cost. It needs no data and no weights, only a size: the
model and each altered copy of it run on tensors that have a shape and no memory.

```console
$ poolkit advise package.module:factory --input 1x3x224x224 --json advice.json
```

A model that looks at values cannot: it runs in memory, with its own weights and buffers, on the
tensors it is given, or on random numbers of the size. It takes the branches that these values make
it take, and the first lines say so.

In Python, `poolkit.advise(model, "1x3x224x224")` has the same in `sites`:

```python
>>> import poolkit
>>> from torch import nn
>>> convolution, head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 15 * 15, 4)
>>> model = nn.Sequential(convolution, nn.MaxPool2d(2), nn.Flatten(), head)
>>> advice = poolkit.advise(model, "1x3x33x33")
>>> pool, head = advice.sites
>>> pool.sees, pool.jump, pool.unseen
([4, 4], [2, 2], [[0, 1], [0, 1]])
>>> {row.name: row.draft.parameters - advice.draft.parameters for row in head.alternatives}
{'global average': -7168, 'global max': -7168, 'pyramid 4×4, 2×2, 1×1': -6528}

```

What it says:

- **sees** is the receptive field: how many positions of the input one value depends on, never more
  than there are. **stride** is how many positions of the input lie between neighbours.
- What **nothing sees**: rows and columns of the input that no window reaches, from there on.
- **instead**: each row is the model with one change, really built. Its figures are differences of
  the whole model: numbers that are learned; multiply-adds of convolutions and matrix products;
  bytes of all tensors that a forward makes, each once. What cannot be built comes with the reason.
- Whatever stands above the literature is **arithmetic**: it holds for this model and this input.
  The numbered claims are **literature**: measured by others, on their models and data. `poolkit
  compare` measures yours.

This page is what `python -m poolkit.design.document` prints.
"""


def page() -> str:
    """What `docs/design.md` holds."""
    parts = [_INTRODUCTION]
    for factory, size in _EXAMPLES:
        name = factory.__name__
        text = str(advise(factory(), size, name=name)).partition("\nLiterature;")[0].rstrip()
        heading = (factory.__doc__ or "").strip(". ")
        parts.append(
            f"## {heading}\n\n```console\n"
            f"$ poolkit advise poolkit.design.document:{name} --input {size}\n{text}\n```\n"
        )
    claims = (f"- {claim.text} ({claim.setting}). {claim.source}." for claim in LITERATURE.values())
    parts.append("## The literature it knows\n\n" + "\n".join(claims) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
