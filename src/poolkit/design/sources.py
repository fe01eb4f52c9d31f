"""From the words on a command line to a model on paper and the sizes of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from poolkit.design.advising import advise
from poolkit.design.paper import is_size, on_paper, read_size
from poolkit.design.report import Advice
from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.inspection.sources import load_inputs, load_model

Progress = Callable[[str, int, int], None]


def advise_on(where: str | None, words: Sequence[str], progress: Progress | None = None) -> Advice:
    """The advice for the model that ``where`` names, on inputs of the sizes or files in ``words``.

    A network is built without memory for its weights where its factory allows it. Without a model
    it is the built-in example. Raises PoolError, in one line, for everything that goes wrong.
    """
    if where is None:
        if words:
            raise PoolValueError("--input needs a MODEL", "Name it as file.py:factory")
        from poolkit.examples.faces import FaceNetworks

        sizes = ["1x3x24x24", "1x3x48x48"]
        return advise(FaceNetworks(), sizes, name="MTCNN face networks", progress=progress)
    if where.endswith((".onnx", ".pt2")):
        raise PoolTypeError(
            f"{where} is a graph, whose layers cannot be exchanged",
            "Give the model that it was made from, as file.py:factory",
        )
    inputs = _inputs(words)
    name = Path(where.rpartition(":")[2]).name
    try:
        with on_paper():
            made = load_model(where)
        advice = _advise(where, *made, inputs, name, progress)
        if advice.paper == "shapes":
            return advice
    except PoolError:  # also what looks at the values of its weights
        pass
    return _advise(where, *load_model(where), inputs, name, progress)


def _advise(
    where: str, model: Any, example: Any, inputs: Any, name: str, progress: Progress | None
) -> Advice:
    given = inputs if inputs is not None else example
    if given is None:
        raise PoolValueError(
            f"{where} comes without an input size",
            "Give it with --input, as 1x3x224x224",
        )
    assert isinstance(model, nn.Module)
    return advise(model, given, name=name, progress=progress)


def _inputs(words: Sequence[str]) -> Any:
    """Tensors of these sizes, or those in these files; None for none."""
    if not words:
        return None
    sizes = [is_size(word) for word in words]
    if all(sizes):
        return tuple(read_size(word) for word in words)
    files = [Path(word) for word, size in zip(words, sizes, strict=True) if not size]
    if any(sizes):
        raise PoolValueError(
            "inputs are either sizes or files, not both", "Give each argument by its size"
        )
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise PoolValueError(
            f"{missing[0]} is neither a size nor a file", "Write a size as 1x3x224x224"
        )
    return load_inputs(files)
