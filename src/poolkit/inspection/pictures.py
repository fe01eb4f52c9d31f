"""Pictures of feature maps, as small palette PNGs."""

from __future__ import annotations

import io
from base64 import b64encode
from functools import cache
from math import cos, isqrt, pi, sin

import numpy as np
import torch

from poolkit.errors import MissingExtraError
from poolkit.inspection.downsampling import Downsampling
from poolkit.inspection.measures import SAMPLE, Upsampling, gradient_of, nearest_outputs, sample
from poolkit.inspection.records import ChannelRow, LayerPictures

CHANNELS = 4
#: Bytes that the pictures of a whole report may take, about, so that its page stays below 5 MB.
_BUDGET = 2_000_000
_SMALLEST, _LARGEST = 16, 112
#: Maps smaller than this are enlarged by repeating, so that gaps between them stay narrow.
_ENLARGED = 32
#: The palette: a scale for values, one for differences, and two colours by themselves.
VALUES, DIFFERENCES, NOT_A_NUMBER, NOTHING = 128, 101, 229, 230


def side_for(layers: int) -> int:
    """The largest side of a map in a report of so many layers.

    >>> side_for(5), side_for(50), side_for(200)
    (112, 57, 28)
    """
    # A layer has four channels, shown four times; what comes after pooling is made of few values.
    return max(_SMALLEST, min(_LARGEST, isqrt(_BUDGET // (12 * max(layers, 1)))))


def layer_pictures(
    x: torch.Tensor, after: torch.Tensor, layer: Downsampling | None, side: int = _LARGEST
) -> LayerPictures | None:
    """The pictures of one layer: ``x`` is its input and ``after`` its output, both (batch,
    channels, *space) with the same number of axes.

    Shown are the channels of the first sample that vary most; of two equal ones the first. Maps
    larger than ``side`` are cut to their middle, 3-D ones shown by their middle slice, 1-D ones as
    a band. None for what has nothing to show.
    """
    if not x.numel() or not after.numel() or x.is_complex():
        return None
    x, after = x[:1].detach().to(torch.float64), after[:1].detach().to(torch.float64)
    chosen = _varied(x)
    same = layer is not None and layer.channelwise and after.shape[1] == x.shape[1]
    before = x[:, chosen]
    made = chosen if same else _varied(after)
    results = after[:, made]
    near = _places_of(layer, before, results)
    up = None
    if same and layer is not None and x.isfinite().all() and after.isfinite().all():
        up = _brought_back(x, after, layer, chosen)
    planes = [_plane(before, side), _plane(_spread(results, near), side)]
    if up is not None:
        planes += [_plane(up, side), _plane(before - up, side)]
    rows, numbers = [], []
    for index, (channel, after_channel) in enumerate(zip(chosen, made, strict=False)):
        row = [plane[index] for plane in planes]
        low, high = _range(row[:2])
        numbers.append(
            ChannelRow(
                channel=channel,
                after_channel=after_channel,
                low=low,
                high=high,
                before_mean=float(before[0, index].mean()),
                after_mean=float(results[0, index].mean()),
                difference=None
                if up is None
                else float((before - up)[0, index].square().mean().sqrt()),
            )
        )
        rows.append(
            [_values(plane, low, high) for plane in row[:3]]
            + [_differences(plane, (high - low) / 2) for plane in row[3:]]
        )
    strip = _joined(rows)
    shape = (planes[0].shape[1], planes[0].shape[2])
    return LayerPictures(
        strip=_encode(strip),
        strip_size=(strip.shape[1], strip.shape[0]),
        columns=["before", "after", "brought back up", "difference"][: len(planes)],
        channels=numbers,
        shape=shape,
        whole=_height_and_width(x),
        after_whole=_height_and_width(after),
    )


def gradient_picture(
    layer: Downsampling, x: torch.Tensor, side: int = _LARGEST
) -> tuple[bytes, tuple[float, float]] | None:
    """How much gradient each input position gets, averaged over samples and channels: the PNG,
    and the least and the most."""
    if not x.numel() or x.is_complex() or not x.isfinite().all():
        return None
    gradient = gradient_of(layer, sample(x, whole_channels=not layer.channelwise)).abs()
    plane = _plane(gradient.mean((0, 1), keepdim=True), side)[0]
    most = float(plane.max())
    return _encode(_enlarged(_values(plane, 0.0, most))), (float(plane.min()), most)


def _brought_back(
    x: torch.Tensor, after: torch.Tensor, layer: Downsampling, chosen: list[int]
) -> torch.Tensor:
    """The chosen channels of ``after``, back up by what is best for them and as many others as
    are measured."""
    others = [channel for channel in range(x.shape[1]) if channel not in chosen]
    room = max(0, SAMPLE // max(1, x[0, 0].numel()) - len(chosen))
    channels = chosen + others[:: max(1, -(-len(others) // room))] if room else chosen
    x, after = x[:, channels], after[:, channels]
    return Upsampling.fit(x, after, layer.window)(after)[:, : len(chosen)]


def _varied(x: torch.Tensor) -> list[int]:
    """The channels that vary most, in the first sample."""
    spread = x[0].flatten(1).nan_to_num(posinf=0, neginf=0).var(1, correction=0)
    chosen: list[int] = spread.argsort(descending=True, stable=True)[:CHANNELS].tolist()
    return chosen


def _places_of(
    layer: Downsampling | None, x: torch.Tensor, after: torch.Tensor
) -> list[torch.Tensor]:
    """For each position along each axis the output that is shown there."""
    if layer is not None:
        return nearest_outputs(layer.window, tuple(x.shape[2:]))
    sizes = zip(x.shape[2:], after.shape[2:], strict=True)
    return [torch.arange(size) * outputs // size for size, outputs in sizes]


def _spread(after: torch.Tensor, near: list[torch.Tensor]) -> torch.Tensor:
    """The output at the size of the input: each value where its window is nearest."""
    for axis, index in enumerate(near, 2):
        after = after.index_select(axis, index)
    return after


def _plane(x: torch.Tensor, side: int) -> torch.Tensor:
    """(1, channels, *space) as (channels, H, W): a slice, a band, or the middle of a map."""
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.ndim == 3:
        x = x[:, :, None].expand(-1, -1, max(1, x.shape[2] // 4), -1)
    for axis in (2, 3):
        size = x.shape[axis]
        if size > side:
            x = x.narrow(axis, (size - side) // 2, side)
    return x[0]


def _height_and_width(x: torch.Tensor) -> tuple[int, int]:
    return (x.shape[-2] if x.ndim > 3 else 1, x.shape[-1])


def _range(planes: list[torch.Tensor]) -> tuple[float, float]:
    values = torch.cat([plane.flatten() for plane in planes])
    values = values[values.isfinite()]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def _values(plane: torch.Tensor, low: float, high: float) -> np.ndarray:
    """Colours of values, ``low`` darkest and ``high`` brightest."""
    scale = (VALUES - 1) / (high - low) if high > low else 0.0
    return _indices((plane - low) * scale, plane, 0, VALUES)


def _differences(plane: torch.Tensor, most: float) -> np.ndarray:
    """Colours of differences from ``-most`` to ``most``, with 0 in the middle."""
    half = DIFFERENCES // 2
    steps = plane * (half / most) if most > 0 else plane * 0
    return _indices(steps + half, plane, VALUES, DIFFERENCES)


def _indices(steps: torch.Tensor, plane: torch.Tensor, first: int, count: int) -> np.ndarray:
    index = steps.round().clamp(0, count - 1) + first
    index = torch.where(plane.isnan(), float(NOT_A_NUMBER), index)
    return index.to(torch.uint8).numpy()


def _enlarged(tile: np.ndarray) -> np.ndarray:
    times = max(1, _ENLARGED // max(tile.shape))
    return tile.repeat(times, 0).repeat(times, 1)


def _joined(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Tiles side by side and one below the other, with gaps between them."""
    tiles = [[_enlarged(tile) for tile in row] for row in rows]
    height, width = tiles[0][0].shape
    gap = max(1, width // 24)
    shape = (
        len(tiles) * (height + gap) - gap,
        len(tiles[0]) * (width + gap) - gap,
    )
    joined = np.full(shape, NOTHING, dtype=np.uint8)
    for r, row in enumerate(tiles):
        for c, tile in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            joined[top : top + height, left : left + width] = tile
    return joined


def first_image(x: torch.Tensor) -> bytes | None:
    """The first sample of a (batch, 1 or 3, H, W) input as a PNG, or None if it is no image."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel() or not x.is_floating_point():
        return None
    image = x[0].detach().to(torch.float64).nan_to_num()
    low, high = float(image.min()), float(image.max())
    scale = 255 / (high - low) if high > low else 0.0
    pixels = ((image - low) * scale).round().to(torch.uint8).expand(3, -1, -1)
    return _encode(pixels.permute(1, 2, 0).contiguous().numpy())


def ramp(differences: bool = False) -> bytes:
    """A colour scale itself, as a PNG one pixel high."""
    first, count = (VALUES, DIFFERENCES) if differences else (0, VALUES)
    return _encode(np.arange(first, first + count, dtype=np.uint8)[None])


def _encode(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W) indices into the palette, or of (H, W, 3) colours."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "inspect") from None
    options = {}
    if pixels.ndim == 3:
        image = Image.fromarray(np.ascontiguousarray(pixels))
    else:
        # A palette costs 3 bytes a colour in every picture: those in use, and no more.
        used, index = np.unique(pixels, return_inverse=True)
        colours = np.frombuffer(palette(), dtype=np.uint8).reshape(-1, 3)[used]
        image = Image.frombytes("P", pixels.shape[::-1], index.astype(np.uint8).tobytes())
        image.putpalette(colours.tobytes())
        if NOTHING in used:
            options["transparency"] = int(np.searchsorted(used, NOTHING))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, **options)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


@cache
def palette() -> bytes:
    """Colours of values, of differences, of NaN and of nothing, as RGB bytes.

    Values go from dark violet to light yellow along a line that is straight in OKLab's lightness,
    so equal steps look equal, in grey print and to the colour-blind too; only the hue turns, from
    blue through green to yellow. Differences go from blue through near white to orange, as dark at
    both ends: a pair that all common kinds of colour blindness tell apart.
    """
    colours = []
    for step in range(VALUES):
        t = step / (VALUES - 1)
        colours.append(_colour(0.17 + 0.78 * t, 0.155, 295 - 190 * t**1.15))
    half = DIFFERENCES // 2
    for step in range(-half, half + 1):
        t = abs(step) / half
        colours.append(_colour(0.96 - 0.5 * t, 0.15 * t, 255 if step < 0 else 60))
    return b"".join(colours) + bytes((128, 128, 128)) + bytes(3)


def colour_of(share: float) -> str:
    """The colour of a value between 0 and 1, as ``#rrggbb``.

    >>> colour_of(0) < colour_of(1)
    True
    """
    index = round(min(max(share, 0.0), 1.0) * (VALUES - 1))
    return "#" + palette()[3 * index : 3 * index + 3].hex()


def _colour(lightness: float, chroma: float, hue: float) -> bytes:
    """A colour of OKLCh; with less chroma where no screen shows so much of it."""
    angle = hue * pi / 180
    rgb = _oklab_to_srgb(lightness, chroma * cos(angle), chroma * sin(angle))
    while min(rgb) < 0 or max(rgb) > 1:
        chroma -= 0.002
        rgb = _oklab_to_srgb(lightness, chroma * cos(angle), chroma * sin(angle))
    return bytes(round(255 * channel) for channel in rgb)


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
