"""The face detector as a service has it: exported once, loaded once, called by many threads.

`export_networks` swaps the poolings of the three networks for poolkit's and writes each as a
program of ``torch.export``, for any number of candidates. `FaceService` loads them and answers
requests. It checks every image first: what cannot be looked at is refused by name, in one line.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.export import Dim

from poolkit.errors import PoolTypeError, PoolValueError, describe, first_line
from poolkit.examples.detection import Face, Network, detect_each
from poolkit.examples.faces import CROP_SIZES, load
from poolkit.files import write_whole
from poolkit.optimization import OptimizeReport, ProgramModule, optimize

__all__ = ["FaceService", "export_networks"]

_LEAST = 14
"""Pixels along a side of what the program of P-Net takes. A tracer does not believe that a map of
one position, which comes of 12 pixels, is like larger ones."""


def export_networks(folder: Path, seconds: float = 0.4) -> list[OptimizeReport]:
    """Write P-Net, R-Net and O-Net, optimised, as ``.pt2`` files into ``folder``.

    Args:
        folder: where they go; it must exist.
        seconds: to spend on timing each layer, as `poolkit.optimize` takes it; 0 swaps every
            pooling that is equal.

    Raises:
        PoolValueError: the weights are not there, or the folder cannot be written to.
    """
    reports = []
    random = torch.Generator().manual_seed(0)
    for name, size in CROP_SIZES.items():
        model = load(name)
        axes: dict[int, Any] = {0: Dim("batch", max=1 << 20)}
        if name == "P-Net":  # over whole photographs, in every scale
            axes |= {
                axis: Dim(side, min=_LEAST, max=1 << 14)
                for axis, side in ((2, "height"), (3, "width"))
            }
            example = torch.rand(2, 3, 120, 160, generator=random) * 2 - 1
        else:
            example = torch.rand(64, 3, size, size, generator=random) * 2 - 1
        reports.append(optimize(model, example, seconds=seconds))
        program = torch.export.export(model, (example,), dynamic_shapes=(axes,))
        written = io.BytesIO()
        torch.export.save(program, written)
        write_whole(folder / f"{name}.pt2", written.getvalue())
    return reports


class FaceService:
    """Finds faces in batches of images; any number of threads may call it at once.

    The same request has the same answer, bit for bit, whoever else asks meanwhile: nothing is
    kept between calls.

    Args:
        folder: where `export_networks` has written.
        longest_side, most_images: limits of an image, in pixels, and of a request. Memory grows
            with both.

    Raises:
        PoolValueError: a file is missing or is no exported program.
    """

    def __init__(self, folder: Path, longest_side: int = 2048, most_images: int = 16) -> None:
        self.longest_side, self.most_images = longest_side, most_images
        self.networks = {name: _program(folder / f"{name}.pt2") for name in CROP_SIZES}
        self.networks["P-Net"] = _padded(self.networks["P-Net"])

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Find the faces in each image, best first.

        Args:
            images: arrays (H, W, 3) in RGB: uint8, or real numbers in 0..1.

        Raises:
            PoolTypeError: an image is no array, or of another dtype.
            PoolValueError: a shape, a size or a value that no photograph has; the message has the
                number of the image.
        """
        if not isinstance(images, Sequence):
            raise PoolTypeError(
                f"a request is a list of images, got {describe(images)}", "Put one into a list"
            )
        if len(images) > self.most_images:
            raise PoolValueError(
                f"a request has at most {self.most_images} images, got {len(images)}",
                "Ask several times",
            )
        pixels = [self._checked(image, number) for number, image in enumerate(images)]
        with torch.inference_mode():
            return detect_each(pixels, self.networks)

    def _checked(self, image: Any, number: int) -> torch.Tensor:
        """The image as (3, H, W) with values of 0 to 255."""
        which = f"image {number}"
        if not isinstance(image, np.ndarray):
            raise PoolTypeError(
                f"{which} is {describe(image)}, not a NumPy array", "Decode it before"
            )
        if image.ndim != 3 or image.shape[2] != 3:
            raise PoolValueError(
                f"{which} has shape {image.shape}, and (height, width, 3) is needed",
                "Convert it to RGB, channels last",
            )
        height, width, _ = image.shape
        if not height or not width:
            raise PoolValueError(f"{which} is empty: its shape is {image.shape}", "Leave it out")
        if max(height, width) > self.longest_side:
            raise PoolValueError(
                f"{which} is {width} x {height} pixels, more than {self.longest_side} along a side",
                "Make it smaller",
            )
        if image.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if image.dtype.kind != "f":
            raise PoolTypeError(
                f"{which} has dtype {image.dtype}", "Give uint8, or real numbers in 0..1"
            )
        if not np.isfinite(image).all():
            raise PoolValueError(f"{which} has NaN or infinite values", "Replace them before")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise PoolValueError(
                f"{which} has values from {low:g} to {high:g}, and real numbers must lie in 0..1",
                "Divide by the largest value that is possible, or give uint8",
            )
        return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)) * 255


def _padded(network: Network) -> Network:
    """P-Net for photographs of 12 pixels too: grey on the right and below, and cut off again."""

    def call(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        height, width = x.shape[2:]
        if min(height, width) >= _LEAST:
            return network(x)
        grown = F.pad(x, (0, max(0, _LEAST - width), 0, max(0, _LEAST - height)))
        rows, columns = ((side - 1) // 2 - 4 for side in (height, width))
        return tuple(out[..., :rows, :columns] for out in network(grown))

    return call


def _program(path: Path) -> Network:
    if not path.is_file():
        raise PoolValueError(f"there is no file {path}", "Write it with export_networks")
    try:
        return ProgramModule(torch.export.load(str(path)))
    except Exception as error:
        raise PoolValueError(
            f"{path} is not an exported program: {first_line(error)}",
            "Write it with export_networks",
        ) from error
