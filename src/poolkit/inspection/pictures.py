"""Pictures of feature maps, as small palette PNGs."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import torch

from poolkit.errors import MissingExtraError

#: Pictures are enlarged to about this many pixels by repeating them, so that values stay visible.
_WIDTH = 128


@dataclass(frozen=True)
class FeatureMap:
    """One channel of the first sample, before and after a pooling, on one colour scale."""

    channel: int
    before: bytes
    after: bytes
    before_shape: tuple[int, int]
    after_shape: tuple[int, int]
    low: float
    high: float
    before_mean: float
    after_mean: float


def feature_maps(
    before: torch.Tensor, after: torch.Tensor, rank: int, count: int = 4
) -> list[FeatureMap]:
    """The ``count`` channels of the first sample that vary most, before and after a pooling.

    ``before`` is (batch, channels, *space) or (channels, *space) with ``rank`` spatial axes,
    ``after`` the same or without its spatial axes. 3-D maps are shown by their middle slice,
    1-D maps as a band. Returns nothing for maps that cannot be shown so.
    """
    if before.ndim not in (rank + 1, rank + 2) or not before.numel() or not after.numel():
        return []
    if after.ndim == before.ndim - rank:
        after = after.reshape(*after.shape, *[1] * rank)
    if after.ndim != before.ndim:
        return []
    planes, results = _planes(before, rank), _planes(after, rank)
    if planes is None or results is None or len(planes) != len(results):
        return []
    spread = planes.flatten(1).nan_to_num(posinf=0, neginf=0).var(1, correction=0)
    chosen = spread.argsort(descending=True, stable=True)[:count].tolist()
    return [_picture(channel, planes[channel], results[channel]) for channel in chosen]


def _planes(x: torch.Tensor, rank: int) -> torch.Tensor | None:
    """The first sample as (channels, H, W) in float64, or None."""
    x = x.detach().to(torch.float64)
    if x.ndim == rank + 2:
        x = x[0]
    if x.ndim != rank + 1:
        return None
    if rank == 3:
        return x[:, x.shape[1] // 2]
    return x[:, None] if rank == 1 else x


def _picture(channel: int, before: torch.Tensor, after: torch.Tensor) -> FeatureMap:
    band = before.shape[0] == 1
    finite = torch.cat([before.flatten(), after.flatten()])
    finite = finite[finite.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    return FeatureMap(
        channel=channel,
        before=png(before, low, high, band),
        after=png(after, low, high, band),
        before_shape=(before.shape[0], before.shape[1]),
        after_shape=(after.shape[0], after.shape[1]),
        low=low,
        high=high,
        before_mean=float(before.mean()),
        after_mean=float(after.mean()),
    )


def png(plane: torch.Tensor, low: float, high: float, band: bool = False) -> bytes:
    """A (H, W) map as a PNG, ``low`` darkest and ``high`` brightest; NaN is grey.

    A 1-D map (1, W) is a ``band``, four times as long as high whatever its length.
    """
    if band:
        plane = plane.repeat_interleave(4, 1).expand(plane.shape[1], -1)
    scale = 254 / (high - low) if high > low else 0.0
    index = ((plane - low) * scale).round().clamp(0, 254)
    index = torch.where(plane.isnan(), 255.0, index).to(torch.uint8)
    times = max(1, _WIDTH // max(index.shape))
    index = index.repeat_interleave(times, 0).repeat_interleave(times, 1).contiguous()
    return _encode((index.shape[1], index.shape[0]), index.numpy().tobytes())


def first_image(x: torch.Tensor) -> bytes | None:
    """The first sample of a (batch, 1 or 3, H, W) input as a PNG, or None if it is no image."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel() or not x.is_floating_point():
        return None
    image = x[0].detach().to(torch.float64).nan_to_num()
    low, high = float(image.min()), float(image.max())
    scale = 255 / (high - low) if high > low else 0.0
    pixels = ((image - low) * scale).round().to(torch.uint8).expand(3, -1, -1)
    size = (pixels.shape[2], pixels.shape[1])
    return _encode(size, pixels.permute(1, 2, 0).contiguous().numpy().tobytes(), "RGB")


def ramp() -> bytes:
    """The colour scale itself, as a PNG of 255 x 1 colours."""
    return _encode((255, 1), bytes(range(255)))


def _encode(size: tuple[int, int], pixels: bytes, mode: str = "P") -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "inspect") from None
    image = Image.frombytes(mode, size, pixels)
    if mode == "P":
        image.putpalette(palette())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


@cache
def palette() -> bytes:
    """255 colours from dark violet to light yellow, and grey for NaN, as RGB bytes.

    The line is straight in OKLab's lightness, so equal steps look equal, in grey print and to
    the colour-blind too; only the hue turns, from blue through green to yellow.
    """
    colours = []
    for step in range(255):
        t = step / 254
        lightness = 0.17 + 0.78 * t
        hue = (295 - 190 * t**1.15) * pi / 180
        chroma = 0.155
        rgb = _oklab_to_srgb(lightness, chroma * cos(hue), chroma * sin(hue))
        while min(rgb) < 0 or max(rgb) > 1:
            # Outside of what a screen shows: less colour, the same lightness.
            chroma -= 0.002
            rgb = _oklab_to_srgb(lightness, chroma * cos(hue), chroma * sin(hue))
        colours.append(bytes(round(255 * channel) for channel in rgb))
    return b"".join(colours) + bytes((128, 128, 128))


def _oklab_to_srgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """OKLab (Ottosson 2020) to sRGB in 0..1; values outside mean that no screen shows it."""
    cone_l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    cone_m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    cone_s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * cone_l - 3.3077115913 * cone_m + 0.2309699292 * cone_s,
        -1.2684380046 * cone_l + 2.6097574011 * cone_m - 0.3413193965 * cone_s,
        -0.0041960863 * cone_l - 0.7034186147 * cone_m + 1.7076147010 * cone_s,
    )
    red, green, blue = (
        12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear
    )
    return red, green, blue
