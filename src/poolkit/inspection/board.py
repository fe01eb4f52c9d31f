"""A report as scalars and pictures of a TensorBoard log."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Protocol

import numpy as np

from poolkit.errors import PoolTypeError
from poolkit.inspection.records import Findings


class Writer(Protocol):
    """What is asked of a ``torch.utils.tensorboard.SummaryWriter``, or of one like it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...

    def add_image(
        self, tag: str, img_tensor: np.ndarray, global_step: int, dataformats: str
    ) -> object: ...

    def add_text(self, tag: str, text_string: str, global_step: int) -> object: ...


def write(report: Findings, writer: Writer, step: int) -> None:
    """Write the figures, flags and pictures of every layer under ``pooling/<layer>/``."""
    if not all(hasattr(writer, name) for name in ("add_scalar", "add_image", "add_text")):
        raise PoolTypeError(
            f"a {type(writer).__name__} writes no TensorBoard log",
            "Give a torch.utils.tensorboard.SummaryWriter",
        )
    for layer in report.layers:
        under = f"pooling/{layer.id}"
        figures = {
            "zeros": layer.zeros,
            "dead_channels": layer.dead_channels,
            "kept": layer.kept,
            "torch_ms": layer.torch_ms,
            "poolkit_ms": layer.poolkit_ms,
            "torch_share": layer.torch_share,
            **(asdict(layer.loss) if layer.loss else {}),
        }
        for name, value in figures.items():
            if value is not None:
                writer.add_scalar(f"{under}/{name}", float(value), step)
        for name, loss in layer.yardsticks.items():
            for measure, value in asdict(loss).items():
                if value is not None:
                    writer.add_scalar(f"{under}/{name}/{measure}", float(value), step)
        if layer.flags:
            text = "\n".join(f"- **{f.severity}: {f.kind}** {f.text} {f.fix}" for f in layer.flags)
            writer.add_text(f"{under}/flags", text, step)
        if layer.pictures is not None:
            writer.add_image(
                f"{under}/strip", _pixels(layer.pictures.strip), step, dataformats="HWC"
            )
            if layer.pictures.gradient is not None:
                picture = _pixels(layer.pictures.gradient)
                writer.add_image(f"{under}/gradient", picture, step, dataformats="HWC")


def _pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) bytes; what is transparent is white."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
