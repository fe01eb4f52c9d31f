"""Find faces in a photograph with the three networks: proposals, refinement, output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from poolkit.examples.faces import CROP_SIZES, FaceNetworks, load, normalise, photograph
from poolkit.inspection.records import Photograph

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
_STRIDE, _CELL = 2, 12  # P-Net looks at 12x12 pixels, every 2
_AT_ONCE = 16  # windows, so that memory does not grow with their number
_MOST = 1000  # boxes that are held against each other: of noise there may be any number

Network = Callable[[torch.Tensor], Any]


@dataclass(frozen=True)
class Face:
    """A face in a photograph, in pixels: the box, five landmarks, and how sure O-Net is."""

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    probability: float


def proposals(
    pixels: torch.Tensor,
    smallest: int = 40,
    threshold: float = 0.6,
    network: Network | None = None,
) -> torch.Tensor:
    """Windows that P-Net takes for a face, best first, as (n, 5): left, top, right, bottom, score.

    ``pixels`` is uint8 (3, H, W). The photograph is looked at in every scale from ``smallest``
    pixels a face up to the whole, each 0.709 (half the area) of the one before.
    """
    network, image = network or load("P-Net"), normalise(pixels)[None]
    found, scale = [torch.zeros(0, 5)], _CELL / smallest
    while min(image.shape[2:]) * scale >= _CELL:
        size = [max(_CELL, round(side * scale)) for side in image.shape[2:]]
        with torch.no_grad():
            probability, offset = network(F.interpolate(image, size, mode="area"))
        row, column = (probability[0] > threshold).nonzero(as_tuple=True)
        corner = torch.stack([column, row], 1) * _STRIDE / scale
        box = torch.cat([corner, corner + _CELL / scale], 1)
        box = _moved(box, offset[0, :, row, column].T)
        found.append(_separate(torch.cat([box, probability[0, row, column, None]], 1), 0.5))
        scale *= 0.709
    return _separate(torch.cat(found), 0.7)


def windows(pixels: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Cut square windows around ``boxes`` (n, 4+) and resize them: (n, 3, size, size) in [-1, 1].

    Beyond the border of the photograph there is black.
    """
    cut = []
    for left, top, right, bottom in _squared(boxes).round().int().tolist():
        window = torch.zeros(1, 3, max(1, bottom - top), max(1, right - left))
        inside = pixels[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        row, column = max(0, -top), max(0, -left)
        height, width = inside.shape[1:]
        window[0, :, row : row + height, column : column + width] = inside
        cut.append(F.interpolate(window, (size, size), mode="area")[0])
    return normalise(torch.stack(cut)) if cut else torch.zeros(0, 3, size, size)


def detect(pixels: torch.Tensor) -> list[Face]:
    """Find the faces in a photograph, uint8 (3, H, W), best first."""
    return detect_each([pixels], {name: load(name) for name in CROP_SIZES})[0]


def detect_each(
    photographs: Sequence[torch.Tensor], networks: Mapping[str, Network]
) -> list[list[Face]]:
    """Find the faces in each photograph, best first.

    ``networks`` are P-Net, R-Net and O-Net by name. The candidates of all photographs go through
    R-Net and through O-Net together, in batches.
    """
    none: list[list[Face]] = [[] for _ in photographs]
    boxes = [proposals(pixels, network=networks["P-Net"]) for pixels in photographs]
    if not any(map(len, boxes)):
        return none
    answers = _answers(networks["R-Net"], photographs, boxes, CROP_SIZES["R-Net"])
    boxes = [_refined(found, *answer) for found, answer in zip(boxes, answers, strict=True)]
    if not any(map(len, boxes)):
        return none
    answers = _answers(networks["O-Net"], photographs, boxes, CROP_SIZES["O-Net"])
    return [_faces(found, *answer) for found, answer in zip(boxes, answers, strict=True)]


def _answers(
    network: Network,
    photographs: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    size: int,
) -> list[tuple[torch.Tensor, ...]]:
    """What a network says of the boxes of each photograph."""
    cut = [windows(pixels, found, size) for pixels, found in zip(photographs, boxes, strict=True)]
    with torch.no_grad():
        parts = [network(part) for part in torch.cat(cut).split(_AT_ONCE)]
    outputs = [torch.cat(part) for part in zip(*parts, strict=True)]
    return list(zip(*(out.split([len(part) for part in cut]) for out in outputs), strict=True))


def _refined(boxes: torch.Tensor, probability: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    sure = probability > 0.7
    boxes = _moved(_squared(boxes[sure]), offset[sure])
    return _separate(torch.cat([boxes, probability[sure, None]], 1), 0.7)


def _faces(
    boxes: torch.Tensor, probability: torch.Tensor, offset: torch.Tensor, points: torch.Tensor
) -> list[Face]:
    square, sure = _squared(boxes), probability > 0.7
    width = (square[:, 2:3] - square[:, :1]).expand(-1, 5)
    marks = torch.stack(
        [square[:, :1] + points[:, :5] * width, square[:, 1:2] + points[:, 5:] * width], 2
    )
    boxes = torch.cat([_moved(square, offset), probability[:, None]], 1)[sure]
    keep = _kept(boxes, 0.6, of_smaller=True)
    return [
        Face(tuple(box[:4].tolist()), tuple(map(tuple, mark.tolist())), float(box[4]))
        for box, mark in zip(boxes[keep], marks[sure][keep], strict=True)
    ]


def example(count: int = 128) -> tuple[FaceNetworks, tuple[torch.Tensor, torch.Tensor]]:
    """The built-in model and its input: ``count`` candidate windows out of real photographs.

    They are what P-Net proposes on the photographs, the surest first, so the first window shows
    a face.
    """
    small, large, score = [], [], []
    for name in PHOTOGRAPHS:
        pixels = photograph(name)
        boxes = proposals(pixels)
        small.append(windows(pixels, boxes, 24))
        large.append(windows(pixels, boxes, 48))
        score.append(boxes[:, 4])
    model = FaceNetworks()
    first, second = torch.cat(small), torch.cat(large)
    with torch.no_grad():
        surest = model(first, second)[1][0].argsort(descending=True, stable=True)[:count]
    return model, (first[surest].contiguous(), second[surest].contiguous())


def _squared(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (n, 4) grown to squares around the same centre."""
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


def _moved(boxes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Boxes moved by a network's offsets, which are in units of the box's own size."""
    size = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
    return boxes[:, :4] + offsets * size


def _separate(boxes: torch.Tensor, overlap: float) -> torch.Tensor:
    return boxes[_kept(boxes, overlap)]


def _kept(boxes: torch.Tensor, overlap: float, of_smaller: bool = False) -> torch.Tensor:
    """Greedy non-maximum suppression: indices of the boxes kept, best first.

    A box goes if it shares more than ``overlap`` of the union (or of the smaller of the two)
    with a better one. Only the best are looked at, as each is held against each.
    """
    order = boxes[:, 4].argsort(descending=True, stable=True)[:_MOST]
    corners = boxes[order]
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:4], corners[None, :, 2:4])
    shared = (high - low).clamp(min=0).prod(2)
    smaller = torch.minimum(area[:, None], area[None])
    whole = smaller if of_smaller else area[:, None] + area[None] - shared
    close = shared > overlap * whole
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~close[index, index + 1 :]
    return order[alive]


def marked_photograph(name: str = "astronaut") -> Photograph:
    """A photograph with the faces found in it, for a report."""
    import io

    from PIL import Image

    pixels = photograph(name)
    faces = detect(pixels)
    _, height, width = pixels.shape
    stream = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels.permute(1, 2, 0).numpy().tobytes()).save(
        stream, "JPEG", quality=82
    )
    count = f"{len(faces)} face{'' if len(faces) == 1 else 's'}"
    return Photograph(
        jpeg=stream.getvalue(),
        width=width,
        height=height,
        boxes=[face.box for face in faces],
        landmarks=[list(face.landmarks) for face in faces],
        probabilities=[face.probability for face in faces],
        caption=f"{name.capitalize()}: {count} found by the three networks, with O-Net’s certainty",
    )
