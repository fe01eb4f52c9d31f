"""The case table: what is measured, read from ``cases.toml`` and checked row by row."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

LP = {"lp2": 2.0, "lp3": 3.0}  # the norm of each
ACTIVATED = {"relu_max": "relu", "sigmoid_avg": "sigmoid"}  # torch's function of each
UNFOLDED = ("median", "std", "log_sum_exp")  # in torch by way of unfold
SLIDING = ("max", "min", "avg", *LP, *ACTIVATED, *UNFOLDED)
ADAPTIVE = ("adaptive_avg",)
GLOBAL = ("global_avg", "global_max")
DTYPES = ("float32", "bfloat16", "int8")
LAYOUTS = ("nchw", "channels_last")
MODES = ("forward", "training")


class CaseError(ValueError):
    """A row of the case table that cannot be measured."""


@dataclass(frozen=True)
class Case:
    """One row: an operator on one shape, dtype and layout, and the targets it is held to."""

    name: str
    op: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    dtype: str = "float32"
    layout: str = "nchw"
    mode: str = "forward"
    quick: bool = False
    min_ratio_eager: float | None = None
    min_ratio_compile: float | None = None
    min_ratio_onednn: float | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @property
    def exact(self) -> bool:
        """What selects a value gives right answers that are equal bit for bit."""
        return self.op in ("max", "min", "global_max", "relu_max", "median")

    @property
    def quantized(self) -> bool:
        """An average of 8-bit integers that stand for real numbers (see `answers.QPARAMS`)."""
        return self.dtype == "int8" and self.op in ("avg", "adaptive_avg", "global_avg")

    @property
    def output_shape(self) -> tuple[int, ...]:
        if self.op in GLOBAL:
            sizes = (1,) * self.rank
        elif self.op in ADAPTIVE:
            sizes = self.output_size
        else:
            sizes = tuple(
                (size + 2 * padding - kernel) // stride + 1
                for size, kernel, stride, padding in zip(
                    self.spatial, self.kernel_size, self.stride, self.padding, strict=True
                )
            )
        return (*self.shape[:2], *sizes)

    @property
    def bytes_moved(self) -> int:
        """Bytes any implementation reads plus writes; a backward pass moves them once more."""
        itemsize = {"float32": 4, "bfloat16": 2, "int8": 1}[self.dtype]
        once = itemsize * (math.prod(self.shape) + math.prod(self.output_shape))
        return 2 * once if self.training else once

    def targets(self) -> dict[str, float]:
        """Peer name -> how many times the time of poolkit that peer must take, at least."""
        stated = {
            "eager": self.min_ratio_eager,
            "compile": self.min_ratio_compile,
            "onednn": self.min_ratio_onednn,
        }
        return {peer: ratio for peer, ratio in stated.items() if ratio is not None}


def load_cases(path: Path | None = None) -> list[Case]:
    """Read a case table; the packaged one where no path is given.

    >>> [case.name for case in load_cases() if case.targets()["eager"] > 10]
    ['max 2x2s2 stem', 'max 3x3s2p1 stem', 'max 5x5s1p2 sppf']
    """
    source = path if path is not None else files(__package__) / "cases.toml"
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    cases = [_case({**table.get("defaults", {}), **row}) for row in table["case"]]
    names = [case.name for case in cases]
    for name in names:
        if names.count(name) > 1:
            raise CaseError(f"case {name!r} is in the table twice")
    return cases


def select(names: Sequence[str], patterns: str | None) -> list[str]:
    """The names that match any of the comma-separated shell patterns; a bare word matches inside.

    >>> select(["max 2x2s2 stem", "avg 2x2s2 stem", "tiny max"], "max*,tiny")
    ['max 2x2s2 stem', 'tiny max']
    """
    if patterns is None:
        return list(names)
    chosen = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        shell = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
        matching = {name for name in names if name == pattern} or {
            name for name in names if fnmatchcase(name, shell)
        }
        if not pattern or not matching:
            raise CaseError(f"nothing is called {pattern!r}; there is: {', '.join(names)}")
        chosen |= matching
    return [name for name in names if name in chosen]


def _case(row: dict[str, Any]) -> Case:
    name = row.get("name", "without a name")
    unknown = set(row) - {field.name for field in fields(Case)}
    if unknown:
        raise CaseError(f"case {name!r}: unknown keys {sorted(unknown)}")
    for key in ("name", "op", "shape"):
        if key not in row:
            raise CaseError(f"case {name!r}: {key} is missing")
    rank = len(row["shape"]) - 2
    kernel_size = row.get("kernel_size", [])
    sizes = {
        "kernel_size": _per_axis(kernel_size, rank),
        "stride": _per_axis(row.get("stride", kernel_size), rank),
        "padding": _per_axis(row.get("padding", 0 if "kernel_size" in row else []), rank),
        "output_size": _per_axis(row.get("output_size", []), rank),
    }
    case = Case(**{**row, "shape": tuple(row["shape"]), **sizes})
    _validate(case)
    return case


def _per_axis(value: int | list[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _validate(case: Case) -> None:
    def require(true: bool, fact: str) -> None:
        if not true:
            raise CaseError(f"case {case.name!r}: {fact}")

    require(case.op in SLIDING + ADAPTIVE + GLOBAL, f"unknown op {case.op!r}")
    require(case.dtype in DTYPES, f"unknown dtype {case.dtype!r}")
    require(case.layout in LAYOUTS, f"unknown layout {case.layout!r}")
    require(case.mode in MODES, f"unknown mode {case.mode!r}")
    require(1 <= case.rank <= 3, f"shape {case.shape} has {case.rank} spatial sizes, not 1 to 3")
    require(min(case.shape) > 0, f"shape {case.shape} is empty")
    require(case.layout == "nchw" or case.rank == 2, "channels_last is for 2-D")
    require(case.dtype != "int8" or case.exact or case.quantized, f"{case.op} has no int8")
    require(not case.training or case.dtype == "float32", "training is measured in float32")
    if case.op in SLIDING:
        for sizes in (case.kernel_size, case.stride, case.padding):
            require(len(sizes) == case.rank, f"{sizes} does not give one size per axis")
        require(min(case.kernel_size) > 0 and min(case.stride) > 0, "sizes must be positive")
        require(case.op not in LP or not any(case.padding), "torch's lp pooling has no padding")
    if case.op in UNFOLDED:
        require(case.rank == 2 and not any(case.padding), "torch unfolds planes, with zeros around")
        odd = case.op != "median" or math.prod(case.kernel_size) % 2 == 1
        require(odd, "torch's median of an even number is the lower one")
    if case.op in ADAPTIVE:
        require(len(case.output_size) == case.rank, "output_size gives one size per axis")
    require(min(case.output_shape) > 0, f"output {case.output_shape} is empty")
    require(all(ratio > 0 for ratio in case.targets().values()), "a target ratio is positive")
