"""The case table: what is measured, and what it is held to, read from ``cases.toml``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from poolkit.errors import PoolValueError

LP = {"lp2": 2.0, "lp3": 3.0}  # the norm of each
ACTIVATED = {"relu_max": "relu", "sigmoid_avg": "sigmoid"}  # torch's function of each
UNFOLDED = ("median", "std", "log_sum_exp")  # in torch by way of unfold
SLIDING = ("max", "min", "avg", *LP, *ACTIVATED, *UNFOLDED)
ADAPTIVE = ("adaptive_avg",)
GLOBAL = ("global_avg", "global_max")
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of each dtype
LAYOUTS = ("nchw", "channels_last")
MODES = ("forward", "training", "backward")
PEERS = ("eager", "compile", "onednn", "onnxruntime", "openvino", "jax", "copy")
BEST = "best"  # the fastest peer of a case
ONE_THREAD = "one thread"  # poolkit itself, on one thread where it now has two
# How a target may be stated: poolkit's time over another, or another's over poolkit's.
STATEMENTS = ("slower_at_most", "faster_at_least")


class CaseError(PoolValueError):
    """A row of the case table, or a choice of rows, that cannot be measured."""


@dataclass(frozen=True)
class Target:
    """A bound on a ratio of times.

    Attributes:
        against: a peer, `BEST`, `ONE_THREAD`, or the name of another case.
        wanted: the bound, and what is bounded: poolkit's time over that of `against` where
            `at_most`, else the time of `against` over poolkit's, at least.
    """

    against: str
    wanted: float
    at_most: bool


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
    allocation: bool = False
    targets: tuple[Target, ...] = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def differentiated(self) -> bool:
        return self.mode != "forward"

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
        """Bytes any implementation reads plus writes; a backward pass moves as many as a forward
        one, and training is both."""
        once = ITEMSIZE[self.dtype] * (math.prod(self.shape) + math.prod(self.output_shape))
        return 2 * once if self.mode == "training" else once


@dataclass(frozen=True)
class Table:
    """All rows, and what their geometric mean is held to."""

    cases: tuple[Case, ...]
    geometric_mean: tuple[Target, ...] = ()

    def named(self, name: str) -> Case | None:
        return next((case for case in self.cases if case.name == name), None)


def load_table(path: Path | None = None) -> Table:
    """Read a case table; the packaged one where no path is given.

    >>> load_table().named("max 5x5s1p2 sppf").shape
    (8, 256, 40, 40)
    """
    source = path if path is not None else files(__package__) / "cases.toml"
    content = tomllib.loads(source.read_text(encoding="utf-8"))
    defaults = content.get("defaults", {})
    cases = [_case(defaults, row) for row in content["case"]]
    names = [case.name for case in cases]
    for case in cases:
        if names.count(case.name) > 1:
            raise CaseError(f"case {case.name!r} is in the table twice")
        for target in case.targets:
            others = [other.name for other in cases if other != case and other.mode == case.mode]
            if target.against not in (*PEERS, BEST, ONE_THREAD, *others):
                raise CaseError(f"case {case.name!r}: a target against {target.against!r}")
    return Table(tuple(cases), _targets({}, content.get("geometric_mean", {})))


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


def _case(defaults: dict[str, Any], row: dict[str, Any]) -> Case:
    name = row.get("name", "without a name")
    known = {field.name for field in fields(Case)} - {"targets"} | set(STATEMENTS)
    if unknown := set(row) - known:
        raise CaseError(f"case {name!r}: unknown keys {sorted(unknown)}")
    for key in ("name", "op", "shape"):
        if key not in row:
            raise CaseError(f"case {name!r}: {key} is missing")
    targets = _targets(defaults, row)
    row = {key: value for key, value in {**defaults, **row}.items() if key not in STATEMENTS}
    rank = len(row["shape"]) - 2
    kernel_size = row.get("kernel_size", [])
    sizes = {
        "kernel_size": _per_axis(kernel_size, rank),
        "stride": _per_axis(row.get("stride", kernel_size), rank),
        "padding": _per_axis(row.get("padding", 0 if "kernel_size" in row else []), rank),
        "output_size": _per_axis(row.get("output_size", []), rank),
    }
    case = Case(**{**row, "shape": tuple(row["shape"]), **sizes, "targets": targets})
    _validate(case)
    return case


def _targets(defaults: dict[str, Any], row: dict[str, Any]) -> tuple[Target, ...]:
    """The targets of a row: its own, and those of the defaults that it does not restate."""
    return tuple(
        Target(against, float(wanted), statement == "slower_at_most")
        for statement in STATEMENTS
        for against, wanted in {**defaults.get(statement, {}), **row.get(statement, {})}.items()
    )


def _per_axis(value: int | list[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _validate(case: Case) -> None:
    def require(true: bool, fact: str) -> None:
        if not true:
            raise CaseError(f"case {case.name!r}: {fact}")

    require(case.op in SLIDING + ADAPTIVE + GLOBAL, f"unknown op {case.op!r}")
    require(case.dtype in ITEMSIZE, f"unknown dtype {case.dtype!r}")
    require(case.layout in LAYOUTS, f"unknown layout {case.layout!r}")
    require(case.mode in MODES, f"unknown mode {case.mode!r}")
    require(1 <= case.rank <= 3, f"shape {case.shape} has {case.rank} spatial sizes, not 1 to 3")
    require(min(case.shape) > 0, f"shape {case.shape} is empty")
    require(case.layout == "nchw" or case.rank == 2, "channels_last is for 2-D")
    require(case.dtype != "int8" or case.exact or case.quantized, f"{case.op} has no int8")
    require(not case.differentiated or case.dtype == "float32", "gradients are measured in float32")
    if case.op in SLIDING:
        for sizes in (case.kernel_size, case.stride, case.padding):
            require(len(sizes) == case.rank, f"{sizes} does not give one size per axis")
        require(min(case.kernel_size) > 0 and min(case.stride) > 0, "sizes must be positive")
        require(case.op not in LP or not any(case.padding), "torch's lp pooling has no padding")
    if case.op in UNFOLDED:
        require(case.rank == 2 and not any(case.padding), "torch unfolds planes, with zeros around")
        odd = case.op != "median" or math.prod(case.kernel_size) % 2 == 1
        require(odd, "torch's median of an even number is the lower one")
    plain = (case.op, case.layout, case.mode) == ("max", "nchw", "forward")
    require(not case.allocation or plain, "allocation is measured for a max, channels in front")
    if case.op in ADAPTIVE:
        require(len(case.output_size) == case.rank, "output_size gives one size per axis")
    require(min(case.output_shape) > 0, f"output {case.output_shape} is empty")
    require(all(target.wanted > 0 for target in case.targets), "a target ratio is positive")
