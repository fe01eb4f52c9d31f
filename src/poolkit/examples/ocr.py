"""The PP-OCR networks with their trained weights, on lines of text that are drawn here.

PP-OCR (Du et al., *PP-OCR: A Practical Ultra Lightweight OCR System*, 2020; versions 2 and 4 of its
networks) finds lines of text in a picture, turns those that stand on their heads, and reads them.
Nearly all of its poolings are global averages, of squeeze-and-excitation. The files are read from
the package that ships them, which is not imported.

    poolkit inspect poolkit.examples.ocr:recogniser
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poolkit.examples.faces import package_folder
from poolkit.examples.networks import Example
from poolkit.examples.onnx_import import from_onnx

HEIGHT = 48
"""Of a line, in pixels."""

_FILES = {
    "detector": "ch_PP-OCRv4_det_infer.onnx",
    "recogniser": "ch_PP-OCRv4_rec_infer.onnx",
    "orientation": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}


def detector() -> Example:
    """Where text is. Input (N, 3, H, W), multiples of 32; output (N, 1, H, W): probabilities."""
    return load("detector"), (page(texts()[:6])[None],)


def recogniser() -> Example:
    """What a line says. Input (N, 3, 48, W); output (N, W / 8, 6625): probabilities of characters,
    of which the first is none."""
    return load("recogniser"), (line(texts()[0])[None],)


def orientation() -> Example:
    """Which way up a line is. Input (N, 3, 48, 192); output (N, 2): upright, upside down."""
    return load("orientation"), (line(texts()[0], 192)[None],)


def load(name: str) -> nn.Module:
    """``detector``, ``recogniser`` or ``orientation`` with its trained weights, in eval mode.

    Raises PoolError, with the command that installs it, if the package is not there.
    """
    return from_onnx(_path(name))


def _path(name: str) -> Path:
    folder = package_folder("rapidocr_onnxruntime", "--no-deps rapidocr-onnxruntime==1.4.4")
    return folder / "models" / _FILES[name]


def texts() -> list[str]:
    """What is drawn and read: the names of poolkit's modules."""
    import poolkit.nn

    return sorted(poolkit.nn.__all__)


def line(text: str, width: int = 320) -> Tensor:
    """A line of text, black on white, as the networks want it: (3, 48, width) in [-1, 1]."""
    return _drawn([text], width, HEIGHT, (4, 8))


def page(lines: Sequence[str], width: int = 640, height: int = 480) -> Tensor:
    """Lines of text below each other, 80 pixels apart: (3, height, width) in [-1, 1]."""
    return _drawn(lines, width, height, (40, 24))


def _drawn(lines: Sequence[str], width: int, height: int, corner: tuple[int, int]) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    left, top = corner
    for index, text in enumerate(lines):
        size = 30.0
        while ImageFont.load_default(size).getlength(text) > width - 2 * left:
            size -= 1
        draw.text((left, top + 80 * index), text, fill=0, font=ImageFont.load_default(size))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, height, width).float() / 127.5 - 1).expand(3, -1, -1).contiguous()


@cache
def characters() -> tuple[str, ...]:
    """What the outputs of the recogniser stand for; the first is no character."""
    import onnx

    model = onnx.load(str(_path("recogniser")))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return ("", *properties["character"].splitlines(), " ")


def read(probabilities: Tensor) -> list[str]:
    """The most likely text of each line: the best character at each place, those that go on and
    none left out (Graves et al., *Connectionist Temporal Classification*, 2006)."""
    names, best = characters(), probabilities.argmax(2)
    goes_on = torch.zeros_like(best, dtype=torch.bool)
    goes_on[:, 1:] = best[:, 1:] == best[:, :-1]
    return [
        "".join(names[place] for place in row[~again].tolist()).rstrip()
        for row, again in zip(best, goes_on, strict=True)
    ]


def _reads(model: nn.Module) -> float:
    found = _by_parts([line(text) for text in texts()], lambda x: read(model(x)))
    return _share([text == right for text, right in zip(found, texts(), strict=True)])


def _turns(model: nn.Module) -> float:
    upright = [line(text, 192) for text in texts()]
    turned = [x.flip(1, 2) for x in upright]
    found = _by_parts(upright + turned, lambda x: model(x).argmax(1).tolist())
    right = [0] * len(upright) + [1] * len(turned)
    return _share([one == other for one, other in zip(found, right, strict=True)])


def _finds(model: nn.Module) -> float:
    """Text at the beginning of each line, and none between lines."""
    pages = [page(texts()[start : start + 6]) for start in range(0, 24, 6)]
    middle = 42 + 80 * torch.arange(6)

    def right(x: Tensor) -> list[bool]:
        text = model(x)[:, 0] > 0.3
        on = text[:, middle, 50:100].any(2)
        between = text[:, middle[:-1] + 40].any(2)
        return [*on.flatten().tolist(), *(~between).flatten().tolist()]

    return _share(_by_parts(pages, right, 1))


def _by_parts(
    images: Sequence[Tensor], answers: Callable[[Tensor], list[Any]], size: int = 8
) -> list[Any]:
    """The answers for all images, a few at a time: memory stays in use that way."""
    parts = torch.stack(list(images)).split(size)
    return [answer for part in parts for answer in answers(part)]


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


_MEASURES: dict[str, Callable[[nn.Module], float]] = {
    "detector": _finds,
    "recogniser": _reads,
    "orientation": _turns,
}


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers with torch's poolings, and with poolkit's.

    Of the recogniser: lines without a mistake. Of the orientation: lines, upright and turned. Of
    the detector: lines that are found, and spaces between them that are not.
    """

    network: str
    torch: float
    poolkit: float


def accuracy(model: nn.Module, name: str) -> float:
    """Share of right answers of ``model``, in the place of one of the three networks."""
    with torch.no_grad():
        return _MEASURES[name](model)


def accuracies() -> list[Accuracy]:
    """Accuracy of the three networks with torch's poolings and with poolkit's in all places."""
    from poolkit.optimization import optimize

    factories: dict[str, Callable[[], Any]] = {
        "detector": detector,
        "recogniser": recogniser,
        "orientation": orientation,
    }
    rows = []
    for name, factory in factories.items():
        model, inputs = factory()
        before = accuracy(model, name)
        optimize(model, inputs, seconds=0)
        rows.append(Accuracy(name, before, accuracy(model, name)))
    return rows
