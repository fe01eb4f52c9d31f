"""From the words on a command line to a model and its inputs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from poolkit.errors import MissingExtraError, PoolError, PoolTypeError, PoolValueError
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.onnx_graph import OnnxModel

_TENSOR_FILES = {".npy", ".npz", ".pt", ".pth"}


def load_model(where: str) -> tuple[nn.Module | OnnxModel, tuple[Any, ...] | None]:
    """Build the model that ``file.py:factory`` or ``package.module:factory`` names, or read the
    ``.pt2`` or ``.onnx`` file, and the example inputs that it brings.

    The factory is called without arguments. It returns a module, or a module and its example
    inputs (a tensor, or a tuple or list of positional arguments); a module in the place of a
    factory is taken as it is. Raises PoolError, in one line, for everything that goes wrong.
    """
    if where.endswith(".pt2"):
        program = ExportedModel.load(Path(where))
        return program, program.example_arguments
    if where.endswith(".onnx"):
        return OnnxModel.load(Path(where)), None
    factory = load(where, forms=f"{FORMS}, or an .onnx or .pt2 file")
    return unpacked(factory if isinstance(factory, nn.Module) else call(where, factory), where)


def unpacked(made: Any, where: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    """The module that a factory returned, and its inputs if it returned some too."""
    inputs: Any = None
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise PoolTypeError(
            f"{where} returned {type(made).__name__}",
            "Return a torch.nn.Module, or a tuple (module, example_inputs)",
        )
    if inputs is not None and not isinstance(inputs, tuple):
        inputs = tuple(inputs) if isinstance(inputs, list) else (inputs,)
    return made, inputs


FORMS = "file.py:factory, package.module:factory"


def load(where: str, what: str = "MODEL", forms: str = FORMS) -> Any:
    """What ``file.py:name`` or ``package.module:name`` names, as it is.

    Raises PoolError, in one line, if there is no such file, module or name, or if it raises.
    """
    file_or_module, colon, name = where.rpartition(":")
    if not colon or not file_or_module or not name:
        raise PoolValueError(
            f"{what} is {forms}, got {where!r}",
            f"Name the function that returns the {what.lower()} after a colon",
        )
    source = _module(file_or_module)
    found: Any = source
    for part in name.split("."):
        if not hasattr(found, part):
            raise PoolValueError(f"{file_or_module} has no {name!r}{_suggestion(source)}")
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise PoolValueError(f"there is no file {name}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise PoolValueError(f"{name} cannot be loaded as Python")
        source = importlib.util.module_from_spec(spec)
        # As when Python runs the file: its neighbours can be imported, and classes in it pickled.
        sys.path.insert(0, str(path.resolve().parent))
        sys.modules.setdefault(path.stem, source)
        _run(name, lambda: spec.loader.exec_module(source))  # type: ignore[union-attr]
        return source
    sys.path.insert(0, str(Path.cwd()))
    return _run(name, lambda: importlib.import_module(name))


def _run(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        raise PoolValueError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise PoolValueError(f"{name} raised when loaded: {_one_line(error)}") from error


def call(where: str, factory: Any, **options: Any) -> Any:
    """What a factory returns; an exception of its becomes one line that names it."""
    if not callable(factory):
        raise PoolTypeError(f"{where} is a {type(factory).__name__}, not a function")
    try:
        return factory(**options)
    except PoolError:
        raise
    except Exception as error:
        raise PoolValueError(f"{where} raised: {_one_line(error)}") from error


def _suggestion(source: ModuleType) -> str:
    names = [
        name
        for name, value in vars(source).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == source.__name__
    ]
    return f"; it has {', '.join(names[:6])}" if names else ""


def load_inputs(paths: Sequence[Path]) -> tuple[Any, ...]:
    """Read the positional arguments of a model from files.

    Images become one float32 batch (n, 3, H, W) with values in 0..1, so all must have one size.
    ``.npy``, ``.npz`` and ``.pt`` hold tensors, which are taken as they are: each array, and each
    item of a tuple or list, is one argument, in order. Raises PoolError, in one line, for a file
    that is missing or cannot be read.
    """
    for path in paths:
        if not path.is_file():
            raise PoolValueError(f"there is no file {path}")
    tensors = [path for path in paths if path.suffix.lower() in _TENSOR_FILES]
    if tensors and len(tensors) < len(paths):
        raise PoolValueError(
            "inputs are either images or tensors, not both",
            "Save the images as a .npy of shape (batch, channels, height, width)",
        )
    if tensors:
        return tuple(value for path in paths for value in _read_tensors(path))
    return (_read_images(paths),)


def _read_tensors(path: Path) -> list[Any]:
    import numpy as np

    try:
        if path.suffix.lower() in (".pt", ".pth"):
            value = torch.load(path, weights_only=True, map_location="cpu")
            values = list(value) if isinstance(value, tuple | list) else [value]
        else:
            loaded = np.load(path, allow_pickle=False)
            arrays = [loaded[key] for key in loaded.files] if path.suffix == ".npz" else [loaded]
            values = [torch.from_numpy(array) for array in arrays]
    except Exception as error:
        raise PoolValueError(f"{path} cannot be read: {_one_line(error)}") from error
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values})) or "nothing"
        raise PoolTypeError(f"{path} holds {kinds}, not tensors")
    return values


def _read_images(paths: Sequence[Path]) -> torch.Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "inspect") from None
    import numpy as np

    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
        except Exception as error:
            raise PoolValueError(f"{path} is not an image that can be read") from error
    sizes = {f"{image.shape[1]}×{image.shape[0]}" for image in images}
    if len(sizes) > 1:
        raise PoolValueError(
            f"the images have different sizes: {', '.join(sorted(sizes))}",
            "Images are pooled as one batch: give images of one size",
        )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _one_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
