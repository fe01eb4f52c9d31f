"""What each pooling does to a photograph: `docs/vision.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import nn as pools
from ..errors import PoolValueError
from ..examples import faces
from ..vision import regions
from ..vision.registry import POOLS
from .drawing import FAINT, INK, MONO, Sheet, as_heat, as_pixels
from .shares import as_many_as, gradient_shares

__all__ = ["IDEAS", "ideas", "pictures"]

# The ideas, in the order of the page, and a colour for each. What is listed but not here is drawn
# too, under "Others".
IDEAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Means and extremes": (
        "#1f4e79", ("avg", "max", "min", "sum", "lp", "relu_max", "sigmoid_avg"),
    ),
    "Between mean and max": ("#3f9b8f", ("gem_window", "lse", "soft", "mixed", "gated", "tree")),
    "By rank": ("#d98032", ("median", "quantile", "top_k", "rank", "ordinal", "mode")),
    "Contrast and importance": ("#8a4f9e", ("std", "dpp", "lip")),
    "By chance": ("#b23a48", ("stochastic", "s3", "fractional_max")),
    "By place, and convolutions": ("#5b7f2b", ("leap", "conv_depthwise", "conv")),
    "Against aliasing": ("#2a86c9", ("max_blur", "blur", "aps")),
    "By frequency": ("#7a6a1f", ("spectral", "wavelet")),
    "Morphology": ("#555f69", ("erosion", "dilation", "opening", "closing")),
    "Bins and several scales": (
        "#a0522d", ("adaptive_avg", "adaptive_max", "sppf", "psp", "strip", "aspp"),
    ),
    "Whole maps": ("#1f4e79", ("global_avg", "global_max", "gem", "spp")),
    "Attention": (
        "#8a4f9e", ("attention", "map", "simpool", "abmil", "attentive_stats"),
    ),
    "Second order and codebooks": (
        "#5b7f2b", ("bilinear", "compact_bilinear", "covariance", "netvlad"),
    ),
}  # fmt: skip
OTHERS = ("Others", "#777777")

PHOTOGRAPH = 144  # pixels of a side; those of a panel
WINDOW = 6
PATCH, PLACE = 48, (0.33, 0.42)  # what the gradients are of: an eye of the astronaut
BOX, BINS = (44.4, 24.7, 99.3, 79.4), 12  # around her face: x1, y1, x2, y2
GREY = (222, 226, 230)
# What shows more on a photograph than the arguments of the registry's examples.
OPTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"k": 6},
    "lse": {"r": 10.0},
    "soft": {"beta": 5.0},
    "blur": {"kernel_size": 7, "stride": WINDOW},
    "aps": {"stride": WINDOW},
    "spectral": {"scale": 1 / WINDOW},
    "wavelet": {"levels": 3, "normalize": "mean"},
    "fractional_max": {"output_ratio": 1 / WINDOW},
}
HEADS: dict[str, dict[str, Any]] = {
    "attention": {"input_size": 10},
    "compact_bilinear": {"dimension": 512},
    "netvlad": {"clusters": 8, "alpha": 10.0},
}
DRAWS = ("stochastic", "s3")  # only in training
AVERAGED = ("psp", "strip", "aspp")  # their convolutions start at random, which shows nothing


def pictures(path: Path | None = None, quick: bool = False) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each picture.

    Args:
        path: a photograph in the place of the astronaut.
        quick: leave the heads nearly as they start.
    """
    photograph = astronaut() if path is None else opened(path)
    yield "vision-windows.png", pooled("window", photograph)
    yield "vision-maps.png", pooled("map", photograph)
    yield "vision-gradients.png", gradients(photograph)
    yield "vision-regions.png", boxed(photograph)
    yield "vision-heads.png", heads(2 if quick else 60)


def astronaut() -> Tensor:
    """The photograph (3, PHOTOGRAPH, PHOTOGRAPH) in 0..1, of scikit-image."""
    pixels = faces.photograph("astronaut")[:, : 2 * PHOTOGRAPH, 80 : 80 + 2 * PHOTOGRAPH]
    return F.avg_pool2d(pixels / 255, 2)


def opened(path: Path) -> Tensor:
    """The middle of a photograph, of the same size."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (PHOTOGRAPH, PHOTOGRAPH))
    except (OSError, UnidentifiedImageError) as error:
        raise PoolValueError(f"cannot read {path} as an image", "Give a PNG or JPEG") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255


def ideas(*kinds: str) -> Iterator[tuple[str, str, str]]:
    """(idea, colour, name) of each listed pooling of some kinds."""
    placed = {name for _, names in IDEAS.values() for name in names}
    rest = tuple(name for name in sorted(POOLS) if name not in placed)
    for idea, (colour, names) in {**IDEAS, OTHERS[0]: (OTHERS[1], rest)}.items():
        for name in names:
            if POOLS[name].kind in kinds:
                yield idea, colour, name


def made(name: str, x: Tensor) -> nn.Module:
    """A pooling of x as it starts, or with means for convolutions; always with the same seed."""
    torch.manual_seed(0)
    options = {"kernel_size": WINDOW, **(OPTIONS.get(name) or dict(POOLS[name].options))}
    if name.startswith("adaptive"):
        options["output_size"] = x.shape[-1] // WINDOW
    module = pools.create_pool2d(name, channels=x.shape[1], **options)
    if name in AVERAGED:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.constant_(part.weight, 1 / part.weight[0].numel())
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
    return module.requires_grad_(False).train(name in DRAWS)


def pooled(kind: str, photograph: Tensor) -> bytes:
    """A sheet of the photograph (3, H, W) by every pooling of a kind.

    What leaves the range of the photograph, or most of it empty, is stretched to its own.
    """
    size = f"{photograph.shape[1]} x {photograph.shape[2]}"
    panels = [("", INK, "the photograph", size, as_pixels(photograph.numpy()))]
    x = photograph[None]
    mean = made("avg", x)(x)[0]
    for idea, colour, name in ideas(kind):
        module = made(name, x)
        found = module(x)[0]
        found = found[-1:] if len(found) % 3 else found[-3:]
        low, high = float(found.min()), float(found.max())
        own = low < -0.02 or high > 1.02 or high - low < 0.6
        note = "own scale" if own else ""
        if name in AVERAGED:
            note = "convolutions as means"
        elif any(True for _ in module.parameters()):
            as_mean = found.shape == mean.shape and float((found - mean).abs().max()) < 0.03
            note = "starts as the mean" if as_mean else "as it starts"
        pixels = as_pixels(found.numpy(), *((low, high) if own else (0.0, 1.0)))
        panels.append((idea, colour, name, note, pixels))
    return sheet(panels, 6, PHOTOGRAPH)


def gradients(photograph: Tensor) -> bytes:
    """A sheet of what one output sees: the share that each position has in its gradient.

    Around the output, as much of the input as has a share, 12, 24 or 48 positions wide. What is
    outside of the window, where there is one, is grey.
    """
    x = photograph.mean(0).expand(1, 4, -1, -1).contiguous()
    height, width = x.shape[-2:]
    top, left = (int(part * n) - PATCH // 2 for part, n in zip(PLACE, (height, width), strict=True))
    x = x[..., top : top + PATCH, left : left + PATCH]
    panels = []
    for idea, colour, name in ideas("window", "map"):
        module = made(name, x)
        shares = gradient_shares(partial(_one_output, module), x)
        strided = module(x).shape[-1] < PATCH
        middle = PATCH // 2 + strided * WINDOW // 2
        for side in (12, 24, PATCH):
            begin = min(middle - side // 2, PATCH - side)
            seen = shares[begin : begin + side, begin : begin + side]
            if seen.sum() > 0.999:
                break
        pixels = as_heat(seen.numpy())
        if POOLS[name].kind == "window":
            window = slice(middle - begin - WINDOW // 2, middle - begin + WINDOW // 2)
            outside = np.ones(seen.shape, bool)
            outside[window, window] = False
            pixels[outside & (seen.numpy() == 0)] = GREY
        note = f"worth {as_many_as(shares):.3g}"
        panels.append((idea, colour, name, note, pixels))
    return sheet(panels, 8, 96)


def _one_output(module: nn.Module, x: Tensor) -> Tensor:
    """The result in the middle of the map, of the first channel where each has its own."""
    found = module(x)
    middle: Tensor = found[..., found.shape[-2] // 2, found.shape[-1] // 2]
    return middle[:, :1] if found.shape[1] == x.shape[1] else middle


def boxed(photograph: Tensor) -> bytes:
    """A sheet of what the poolings of regions make of one box, and what one of its bins sees."""
    x = photograph[None]
    box = torch.tensor([[0.0, *BOX]])
    left, top, right, bottom = (round(corner) for corner in BOX)
    marked = as_pixels(photograph.numpy())
    for edge in (np.s_[[top, bottom], left : right + 1], np.s_[top : bottom + 1, [left, right]]):
        marked[edge] = (255, 200, 0)
    panels = [("", INK, "the photograph", "and the box", marked)]
    looks = [("", INK, "the box", "", as_pixels(photograph[:, top:bottom, left:right].numpy()))]
    for name in (name for name in regions.__all__ if isinstance(getattr(regions, name), type)):
        module = getattr(regions, name)(BINS)
        found = module(x, box)[0]
        panels.append(
            ("Pooled", "#1f4e79", name, f"{BINS} x {BINS} bins", as_pixels(found.numpy()))
        )
        shares = gradient_shares(partial(_one_bin, module, box), x)
        column, row = (left + right) // 2 - 3, (top + bottom) // 2 - 3
        seen = shares[row : row + 12, column : column + 12]
        note = f"worth {as_many_as(shares):.3g}"
        looks.append(("What one bin sees", "#3f9b8f", name, note, as_heat(seen.numpy())))
    return sheet([*panels, *looks], len(panels), PHOTOGRAPH)


def _one_bin(module: nn.Module, box: Tensor, x: Tensor) -> Tensor:
    found: Tensor = module(x, box)[0, 0, BINS // 2, BINS // 2]
    return found


def heads(steps: int) -> bytes:
    """A sheet of where heads look: the share of each position in the gradient of what they say.

    Each pooling over all positions, and a linear layer behind it, learns to tell 100 faces from 100
    other crops, by the maps of the first layers of a face network, and then sees the astronaut.
    """
    crops, is_face = faces.labelled_crops()
    maps = features(crops)
    face = astronaut()[:, 14:98, 28:112].mean(0)[None, None]
    side = 112
    shown = F.interpolate(face, (2 * side, 2 * side), mode="bicubic", antialias=True)
    panels = [("", INK, "the face", "grey, 48 x 48", as_pixels(shown[0, 0].numpy()))]
    seen = features(face)
    for idea, colour, name in ideas("global"):
        torch.manual_seed(0)
        options = HEADS.get(name) or dict(POOLS[name].options)
        pooling = pools.create_pool2d(name, channels=maps.shape[1], **options)
        head = nn.Sequential(pooling, nn.Flatten(), nn.LazyLinear(1))
        head(maps[:2])
        learn(head, maps, is_face, steps)
        shares = gradient_shares(head, seen)
        note = f"worth {as_many_as(shares):.3g}"
        panels.append((idea, colour, name, note, as_heat(shares.numpy())))
    return sheet(panels, 7, side)


def features(crops: Tensor) -> Tensor:
    """Grey crops (N, 1, H, W) in 0..1 as maps (N, 64, 10, 10) of O-Net."""
    resized = F.interpolate(crops, (48, 48), mode="bilinear", antialias=True)
    x = faces.normalise(255 * resized.expand(-1, 3, -1, -1))
    net: Any = faces.load("O-Net")
    with torch.no_grad():
        x = net.pool1(net.prelu1(net.conv1(x)))
        found: Tensor = net.pool2(net.prelu2(net.conv2(x)))
    return found


def learn(head: nn.Module, maps: Tensor, is_face: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(head(maps)[:, 0], is_face.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval().requires_grad_(False)


def sheet(
    panels: Sequence[tuple[str, str, str, str, np.ndarray]], columns: int, side: int
) -> bytes:
    """Panels (idea, colour, name, note, pixels) in rows; an idea is named where it begins, or in
    the next row if it has more panels there."""
    gap, head, foot = 8, 24, 34
    rows = -(-len(panels) // columns)
    page = Sheet(columns * (side + gap) + gap, rows * (head + side + foot) + gap)
    all_ideas = [panel[0] for panel in panels]
    for index, (idea, colour, name, note, pixels) in enumerate(panels):
        row, column = divmod(index, columns)
        x, y = gap + column * (side + gap), gap + row * (head + side + foot)
        if idea:
            page.box(x, y + head - 5, side + gap * (column < columns - 1), 3, colour)
        first = all_ideas.index(idea)
        here = columns - first % columns
        if here == 1 < all_ideas.count(idea):
            first += 1
        if index == first:
            page.text(x, y + 9, idea, 11.5, color=colour, weight="bold")
        page.image(x, y + head, pixels, side)
        page.text(x, y + head + side + 10, name, min(12, side / 9), weight="bold", family=MONO)
        page.text(x, y + head + side + 23, note, 10, color=FAINT)
    return page.png()
