"""The online side of a definition: events as they come, and the same bits as the batch."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PoolError, PoolTypeError, PoolValueError
from ..files import write_whole
from ..windows.durations import looked_back
from .columns import EventColumns, QueryColumns, joined, same_clock
from .definition import Definition, Lookup
from .kernel import pool_events
from .results import Pooled
from .tables import Keys, Table, times_of, vectors_of

__all__ = ["Difference", "State", "Verification", "compared"]

MAGIC = b"poolkit events\n"
VERSION = 1
DIGEST = 32  # bytes of the checksum at the end


class State:
    """What a `WindowPool` knows of the events so far; made by its `state()`.

    Events may come late, in any order and in any batches: what a query gets depends on the events
    alone, so it has the bits that `asof` gives for the whole log. Events are kept as they are,
    sorted by key in runs that double in size, until `forget` drops them.

    >>> import numpy as np
    >>> from poolkit.events import Column, WindowPool
    >>> spec = WindowPool(key="user", time="ts", value=Column("x"), windows=["7d"], reduce=["mean"])
    >>> state = spec.state()
    >>> day = np.array(["2024-05-01", "2024-05-03"], "datetime64[s]")
    >>> state.update({"user": [1, 1], "ts": day, "x": [1.0, 3.0]})
    >>> state.query(1, np.datetime64("2024-05-04"))["mean_7d"]
    array([2.])
    """

    def __init__(self, spec: Definition) -> None:
        self.spec = spec
        self._runs: list[EventColumns] = []
        self._horizon: int | None = None

    def __len__(self) -> int:
        """How many events are kept."""
        return sum(map(len, self._runs))

    def update(self, events: Any) -> None:
        """Adds events: a table as `WindowPool.asof` takes it. All or, if any is refused, none."""
        try:
            self._add(EventColumns.read(self.spec, events))
        except PoolError as error:
            raise error.during(f"an update of events of {self.spec.key!r}") from None

    def query(self, key: Any, time: Any, **targets: Any) -> Pooled:
        """What `asof` gives for a key and a time, without the axis of the queries; or with it, for
        sequences of keys and times. `targets` are the columns that `attend` names.

        Raises:
            PoolValueError: where a window reaches back to events that were forgotten.
        """
        single = isinstance(key, (str, bytes)) or np.ndim(key) == 0
        table = {self.spec.key: key, self.spec.time: time, **targets}
        if single:
            table = {name: _alone(value) for name, value in table.items()}
        try:
            queries = QueryColumns.read(self.spec, table)
            self._check_horizon(queries)
            out = pool_events(self.spec, self._of(queries), queries)
        except PoolError as error:
            raise error.during(f"a query of events of {self.spec.key!r}") from None
        return Pooled({name: column[0] for name, column in out.items()} if single else out)

    def merge(self, other: State) -> None:
        """Adds the events of another state of the same definition; those that both have count
        twice. All or, if any is refused, none."""
        if not isinstance(other, State):
            raise PoolTypeError(f"a State merges another, got {other!r}")
        if _identity(other.spec) != _identity(self.spec):
            raise PoolValueError(
                "the states are of different definitions", "Merge states of one WindowPool"
            )
        for run in other._runs:
            self._check(run)
        if other._horizon is not None:
            self._forget(other._horizon)
        for run in other._runs:
            self._add(run)

    def forget(self, before: Any) -> None:
        """Drops the events before a time. Queries whose windows begin earlier are refused from then
        on, and late events from there left out.

        Args:
            before: a datetime64 or a datetime, with a time zone where events have one.
        """
        time, aware = times_of(np.asarray([before]), "before", self.spec.unit)
        if self._runs:
            same_clock(aware, self._runs[0].aware, "before", f"{self.spec.time} of events")
        self._forget(int(time[0]))

    def _forget(self, horizon: int) -> None:
        self._horizon = horizon if self._horizon is None else max(horizon, self._horizon)
        kept = [run.take(np.flatnonzero(run.time >= self._horizon)) for run in self._runs]
        self._runs = [run for run in kept if len(run)]

    def to_bytes(self) -> bytes:
        """The state with a version and a checksum, for `WindowPool.state`. Definitions that differ
        in windows and reductions alone may read each other's."""
        out = io.BytesIO()
        out.write(MAGIC + VERSION.to_bytes(2, "little"))
        whole = _by_key(joined(self._runs)) if self._runs else None
        header = {
            "definition": _identity(self.spec), "horizon": self._horizon,
            "aware": whole.aware if whole else None,
            "names": None if whole is None else _kind(whole.keys.names),
        }  # fmt: skip
        arrays = _arrays(whole) if whole else {}
        header["arrays"] = {
            name: [_kind(array) or array.dtype.newbyteorder("<").str, list(array.shape)]
            for name, array in arrays.items()
        }
        text = json.dumps(header).encode()
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            data = _packed(array)
            out.write(len(data).to_bytes(8, "little") + data)
        payload = out.getvalue()
        return payload + hashlib.sha256(payload).digest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_bytes` to a file, whole or not at all."""
        write_whole(Path(path), self.to_bytes())

    @classmethod
    def of_bytes(cls, spec: Definition, data: bytes) -> State:
        """See `WindowPool.state`."""
        if not data.startswith(MAGIC):
            raise PoolValueError("this is no state of poolkit.events", "Give what to_bytes made")
        version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
        payload, digest = data[:-DIGEST], data[-DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            raise PoolValueError(
                "the state is corrupt: its checksum is another", "Restore it from a copy"
            )
        if version != VERSION:
            raise PoolValueError(
                f"the state has version {version}, this poolkit reads {VERSION}",
                "Read it with the poolkit that wrote it, or replay the log",
            )
        stream = io.BytesIO(payload[len(MAGIC) + 2 :])
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        if header["definition"] != _identity(spec):
            raise PoolValueError(
                "the state is of another definition: " + _first_change(header, spec),
                "Only windows and reductions may differ",
            )
        state = cls(spec)
        state._horizon = header["horizon"]
        if header["names"] is None and header["aware"] is None:
            return state
        arrays = {}
        for name, (kind, shape) in header["arrays"].items():
            data = stream.read(int.from_bytes(stream.read(8), "little"))
            arrays[name] = _unpacked(data, kind, shape)
        keys = Keys(arrays.pop("codes"), arrays.pop("names", None))
        state._runs = [EventColumns(keys=keys, aware=header["aware"], **arrays)]
        return state

    def _add(self, events: EventColumns) -> None:
        if self._horizon is not None:
            events = events.take(np.flatnonzero(events.time >= self._horizon))
        if not len(events):
            return
        self._check(events)
        runs = [*self._runs, _by_key(events)]
        # As many runs as a binary number has digits: each event is moved log n times in all.
        while len(runs) > 1 and len(runs[-2]) <= 2 * len(runs[-1]):
            runs[-2:] = [_by_key(joined(runs[-2:]))]
        self._runs = runs

    def _check(self, events: EventColumns) -> None:
        if self._runs:
            _check_kind(self.spec, self._runs[0], events)

    def _of(self, queries: QueryColumns) -> EventColumns:
        """The events of the keys that are asked for, under the codes of the queries: what a query
        costs does not depend on the keys that it does not ask for."""
        asked = np.unique(queries.keys.codes)
        keys, parts = replace(queries.keys, codes=asked), []
        for run in self._runs:
            codes = keys.of(run.keys)
            begin = np.searchsorted(run.keys.codes, codes)
            count = np.searchsorted(run.keys.codes, codes, side="right") - begin
            shift = np.repeat(begin - (np.cumsum(count) - count), count)
            part = run.take(shift + np.arange(len(shift)))
            parts.append(replace(part, keys=replace(keys, codes=np.repeat(asked, count))))
        return joined(parts) if parts else _nothing(self.spec, queries)

    def _check_horizon(self, queries: QueryColumns) -> None:
        if self._horizon is None or not len(queries):
            return
        for name, length in self.spec.lengths:
            begin = -math.inf
            if length is not None:
                begin = looked_back(queries.time, length, self.spec.unit).min()
            if begin < self._horizon:
                raise PoolValueError(
                    f"the window {name} reaches back to events that were forgotten",
                    "Forget less, or ask for a later time",
                )


def _alone(value: Any) -> Any:
    """A sequence of one."""
    return [value] if np.ndim(value) == 0 else np.asarray(value)[None]


def _by_key(events: EventColumns) -> EventColumns:
    return events.take(np.argsort(events.keys.codes, kind="stable"))


def _check_kind(spec: Definition, ours: EventColumns, theirs: EventColumns) -> None:
    """Refuses a batch that cannot lie beside the others."""
    if ours.aware != theirs.aware:
        raise PoolTypeError(
            f"{spec.time} had {'a' if ours.aware else 'no'} time zone in earlier batches",
            "Convert this batch",
        )
    kinds = {events.keys.kind for events in (ours, theirs)} - {None}
    if len(kinds) > 1:
        raise PoolTypeError(f"{spec.key} had keys of another type", "Convert this batch")
    if ours.values is not None and theirs.values is not None:
        for what, a, b in (("vectors of", ours.values.shape[1], theirs.values.shape[1]),
                           ("values in", ours.values.dtype, theirs.values.dtype)):  # fmt: skip
            if a != b:
                raise PoolValueError(
                    f"{spec.value.column} had {what} {a} in earlier batches, now {b}", "Convert it"
                )
    ties = [events.tie for events in (ours, theirs) if events.tie is not None]
    # Integers with and without a sign would meet as float64, which merges neighbours.
    if len({_kind(tie) or tie.dtype.kind for tie in ties}) > 1:
        was, now = (_kind(tie) or tie.dtype for tie in ties)
        raise PoolTypeError(
            f"{spec.tie} held {was} in earlier batches, now {now}", "Convert this batch"
        )


def _nothing(spec: Definition, queries: QueryColumns) -> EventColumns:
    names = None if queries.keys.names is None else queries.keys.names[:0]
    none = np.zeros(0, np.int64)
    lookup = isinstance(spec.value, Lookup)
    width = next((target.shape[1] for target in queries.targets.values()), 1)
    return EventColumns(
        Keys(none, names), none, queries.aware, row=none if lookup else None,
        values=None if lookup else np.zeros((0, width)),
    )  # fmt: skip


# --- as bytes --------------------------------------------------------------------------------


def _identity(spec: Definition) -> dict[str, Any]:
    """What must be the same for events to mean the same."""
    identity = {name: getattr(spec, name) for name in ("key", "time", "tie", "known_at", "weight",
                                                       "unit")}  # fmt: skip
    identity["value"] = spec.value.column
    if isinstance(spec.value, Lookup):
        identity |= spec.value.identity
    return identity


def _first_change(header: dict[str, Any], spec: Definition) -> str:
    ours, theirs = _identity(spec), header["definition"]
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            return f"{name} was {theirs.get(name)!r}, and is {ours.get(name)!r}"
    return "it differs"


def _arrays(events: EventColumns) -> dict[str, np.ndarray]:
    arrays = {"codes": events.keys.codes}
    if events.keys.names is not None:
        arrays["names"] = events.keys.names
    for field in fields(events):
        value = getattr(events, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
    return arrays


def _kind(array: np.ndarray | None) -> str | None:
    """ "text" or "bytes" for what has no fixed size, else None."""
    if array is None or array.dtype.kind not in "OUS":
        return None
    return "bytes" if len(array) and isinstance(array[0], bytes) else "text"


def _packed(array: np.ndarray) -> bytes:
    if array.dtype.kind not in "OUS":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = [v if isinstance(v, bytes) else str(v).encode("utf-8", "surrogatepass")
             for v in array.tolist()]  # fmt: skip
    lengths = np.array([len(part) for part in parts], dtype="<i8")
    return lengths.tobytes() + b"".join(parts)


def _unpacked(data: bytes, kind: str, shape: list[int]) -> np.ndarray:
    if kind not in ("text", "bytes"):
        stored = np.frombuffer(data, dtype=kind).reshape(shape)
        return stored.astype(stored.dtype.newbyteorder("="))
    lengths = np.frombuffer(data[: 8 * shape[0]], dtype="<i8")
    ends = 8 * shape[0] + np.cumsum(lengths)
    parts = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    values = parts if kind == "bytes" else [p.decode("utf-8", "surrogatepass") for p in parts]
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


# --- replay ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How one column that was served differs from what the log gives.

    Attributes:
        largest: the largest absolute difference; infinite where only one is finite.
        row: where it is, or None where all bits are the same.
        rows: how many rows differ.
    """

    largest: float
    row: int | None
    rows: int


@dataclass(frozen=True)
class Verification:
    """What `WindowPool.verify` found, for each column that was served."""

    columns: dict[str, Difference]
    rows: int

    @property
    def same(self) -> bool:
        """Whether every value was the right one, to the last bit."""
        return all(column.rows == 0 for column in self.columns.values())

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max((column.largest for column in self.columns.values()), default=0.0)

    def __str__(self) -> str:
        if self.same:
            return f"{self.rows} rows, {len(self.columns)} columns: the same bits"
        lines = [f"{self.rows} rows, {len(self.columns)} columns; those that differ:"]
        lines += [
            f"  {name}: {d.rows} rows, by up to {d.largest:.3g} (row {d.row})"
            for name, d in self.columns.items() if d.rows
        ]  # fmt: skip
        return "\n".join(lines)


def compared(served: Table, right: Pooled) -> Verification:
    """See `WindowPool.verify`."""
    shared = [name for name in right if name in served]
    if not shared:
        raise PoolValueError(
            "the served rows have none of the columns of the specification",
            f"These are: {', '.join(right)}",
        )
    columns = {}
    for name in shared:
        want = right[name]
        got = vectors_of(served[name], name) if want.ndim == 2 else np.asarray(served[name])
        if got.shape != want.shape:
            raise PoolValueError(f"{name} was served as {got.shape}, and is {want.shape}")
        columns[name] = _difference(got, want)
    return Verification(columns, len(next(iter(right.values()))))


def _difference(got: np.ndarray, want: np.ndarray) -> Difference:
    equal = (got == want) | (np.isnan(got) & np.isnan(want) if want.dtype.kind == "f" else False)
    rows = ~(equal.all(axis=1) if equal.ndim == 2 else equal)
    if not rows.any():
        return Difference(0.0, None, 0)
    with np.errstate(invalid="ignore"):
        apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
    apart = np.where(equal, 0.0, np.where(np.isnan(apart), np.inf, apart))
    by_row = apart.reshape(len(want), -1).max(axis=1)
    return Difference(float(by_row.max()), int(by_row.argmax()), int(rows.sum()))
