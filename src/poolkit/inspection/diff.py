"""What changed between two reports: of two models, or of two checkpoints of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection.records import MEASURES
from poolkit.inspection.wording import (
    human_bytes,
    human_count,
    human_measure,
    human_ms,
    human_shape,
    human_share,
)

#: The version of the JSON of reports; it changes when a key changes its meaning or goes.
JSON_VERSION = 2

Kind = Literal["structure", "cost", "loss", "input", "flag"]


@dataclass(frozen=True)
class Figure:
    """A figure of a layer: from which difference on two are different, and how it is told.

    ``least`` is an absolute difference, ``ratio`` a relative one, for times, which are never the
    same twice.
    """

    kind: Kind
    path: tuple[str, ...]
    words: str
    tell: Any = str
    least: float = 0.0
    ratio: float = 0.0


def _list(value: Any) -> str:
    return ", ".join(value) if value else "nothing"


FIGURES = (
    Figure("structure", ("words",), "operation"),
    Figure("structure", ("window",), "window"),
    Figure("structure", ("in_shape",), "input", human_shape),
    Figure("structure", ("out_shape",), "output", human_shape),
    Figure("structure", ("dtype",), "dtype"),
    Figure("structure", ("layout",), "layout"),
    Figure("structure", ("producers",), "made by", _list),
    Figure("structure", ("consumers",), "read by", _list),
    Figure("structure", ("receptive_field",), "receptive field", human_shape),
    Figure("cost", ("torch_ms",), "time in torch", human_ms, ratio=0.25),
    Figure("cost", ("poolkit_ms",), "time in poolkit", human_ms, ratio=0.25),
    Figure("cost", ("bytes_moved",), "moved", human_bytes),
    Figure("cost", ("torch_saved",), "saved in torch", human_bytes),
    Figure("cost", ("poolkit_saved",), "saved in poolkit", human_bytes),
    *(
        Figure("loss", ("loss", key), title, human_measure, least=0.01)
        for key, title, _ in MEASURES
    ),
    Figure("input", ("zeros",), "zeros", human_share, least=0.01),
    Figure("input", ("dead_channels",), "dead channels"),
    Figure("input", ("dropped",), "dropped at the border", human_share, least=1e-9),
    Figure("input", ("misdivided",), "mis-divided", human_share, least=1e-9),
)


@dataclass(frozen=True)
class Change:
    """One figure of one layer that is another one now; values as in the JSON."""

    layer: str
    kind: Kind
    what: str
    before: Any
    after: Any
    text: str


@dataclass(frozen=True)
class ReportDiff:
    """The differences of two reports. ``print(diff)`` tells them.

    Attributes:
        before, after: the names of the models.
        removed, added: ids of layers that only one of them has.
        changes: of layers that both have, in the order of ``after``.
        compared: how many layers both have.
    """

    before: str
    after: str
    removed: list[str]
    added: list[str]
    changes: list[Change]
    compared: int

    def __str__(self) -> str:
        lines = [f"{self.before} → {self.after}"]
        lines += [f"- {name} is gone" for name in self.removed]
        lines += [f"+ {name} is new" for name in self.added]
        last = None
        for change in self.changes:
            if change.layer != last:
                lines.append(change.layer)
                last = change.layer
            lines.append(f"  {change.text}")
        touched = len({change.layer for change in self.changes})
        lines.append(
            f"{human_count(self.compared, 'layer')} in both, {touched} of them changed; "
            f"{len(self.removed)} gone, {len(self.added)} new."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {"version": JSON_VERSION, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> ReportDiff:
    """Compare two reports, as ``report.to_dict()`` or a JSON file has them.

    Layers are matched by their id: the name of the module, or of the call and its place. Times
    count as different from a quarter on, measures of loss from 0.01 on.

    >>> import torch
    >>> from torch import nn
    >>> from poolkit.inspection import inspect
    >>> x = torch.rand(1, 3, 8, 8)
    >>> first = inspect(nn.Sequential(nn.MaxPool2d(2)), x, seconds=0, losses=False)
    >>> second = inspect(nn.Sequential(nn.AvgPool2d(2)), x, seconds=0, losses=False)
    >>> print(diff(first.to_dict(), second.to_dict()))
    Sequential → Sequential
    0
      operation: max → average
      saved in torch: 1.1 KiB → 768 B
      saved in poolkit: 1.1 KiB → 768 B
    1 layer in both, 1 of them changed; 0 gone, 0 new.
    """
    old, new = ({layer["id"]: layer for layer in report["layers"]} for report in (before, after))
    both = [name for name in new if name in old]
    return ReportDiff(
        before=before["model"],
        after=after["model"],
        removed=[name for name in old if name not in new],
        added=[name for name in new if name not in old],
        changes=[change for name in both for change in _changes(old[name], new[name])],
        compared=len(both),
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for figure in FIGURES:
        a, b = _at(old, figure.path), _at(new, figure.path)
        if _differ(a, b, figure):
            told = (figure.tell(value) if value is not None else "–" for value in (a, b))
            text = f"{figure.words}: {' → '.join(told)}"
            yield Change(new["id"], figure.kind, figure.words, a, b, text)
    flags = [{flag["kind"]: flag for flag in layer["flags"]} for layer in (old, new)]
    for kind in flags[0].keys() - flags[1].keys():
        yield Change(new["id"], "flag", kind, flags[0][kind], None, f"no longer {kind}")
    for kind in flags[1].keys() - flags[0].keys():
        text = f"now {kind}: {flags[1][kind]['text']}"
        yield Change(new["id"], "flag", kind, None, flags[1][kind], text)


def _at(layer: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = layer
    for key in path:
        value = None if value is None else value.get(key)
    return value


def _differ(a: Any, b: Any, figure: Figure) -> bool:
    if a is None or b is None:
        # What only one report has measured is no change.
        return figure.kind == "structure" and a != b
    if figure.ratio:
        return bool(max(a, b) > (1 + figure.ratio) * min(a, b))
    return bool(abs(a - b) >= figure.least) if figure.least else bool(a != b)


def load(path: Path) -> dict[str, Any]:
    """Read the JSON of a report.

    Raises:
        PoolValueError: there is no such file, it is no JSON, or of another version.
        PoolTypeError: it is the JSON of something else.
    """
    if not path.is_file():
        raise PoolValueError(f"there is no file {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PoolValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise PoolTypeError(
            f"{path} is not a report", "Write one with: poolkit inspect MODEL --json FILE"
        )
    if data.get("version") != JSON_VERSION:
        raise PoolValueError(
            f"{path} has version {data.get('version')} of the report, not {JSON_VERSION}",
            "Write it again with this version of poolkit",
        )
    return data
