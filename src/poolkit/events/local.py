"""Logs that are files or relations of DuckDB, read out of core.

DuckDB reads, drops what no query asks for and, where the log is larger than the memory it may take,
writes it again in parts by key, each of which is then sorted and pooled as any other table. It does
not aggregate.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, PoolTypeError, PoolValueError, first_line
from .columns import EventColumns, QueryColumns, check_widths
from .definition import Definition
from .kernel import pool_events
from .tables import arrow_of

__all__ = ["Progress", "is_stored", "pool_stored", "read_stored"]

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""

SMALLEST = 2**28  # bytes with which DuckDB can work
SAMPLED = 1000  # rows by which the memory of a row is estimated
# Of the memory asked for, what a part of the log may take: sorting takes as much again.
SHARE = 1 / 4


def is_stored(given: Any) -> bool:
    """Whether this is paths of Parquet files or a relation of DuckDB."""
    if isinstance(given, (str, os.PathLike)):
        return True
    if isinstance(given, (list, tuple)):
        return len(given) > 0 and all(isinstance(path, (str, os.PathLike)) for path in given)
    return type(given).__name__ == "DuckDBPyRelation"


def read_stored(given: Any) -> Any:
    """The whole of it as an Arrow table."""
    return _Store(given, None).relation.to_arrow_table()


def pool_stored(
    spec: Definition,
    events: Any,
    queries: QueryColumns,
    memory: int,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """`pool_events` of a log of any size, `memory` bytes at a time."""
    told = progress or (lambda what, done, total: None)
    store = _Store(events, memory)
    relation = store.relation
    missing = [name for name in spec.columns if name not in relation.columns]
    if missing:
        raise PoolValueError(
            f"events have no column {missing[0]!r}", f"They have: {', '.join(relation.columns)}"
        )
    log = relation.project(", ".join(map(_quoted, spec.columns)))
    told("reading", 0, 0)
    rows = relation.aggregate("count(*)").fetchall()[0][0]
    sample = log.limit(SAMPLED).to_arrow_table()
    row_bytes = sample.nbytes / max(sample.num_rows, 1)
    parts = int(np.ceil(rows * row_bytes / (memory * SHARE)))
    if parts <= 1:
        return pool_events(spec, EventColumns.read(spec, log.to_arrow_table()), queries)

    none = np.zeros(0, np.int64)
    nothing = EventColumns.read(spec, sample).take(none)  # of the log's types and width
    # What does not fit is refused now, not after the writing.
    columns = pool_events(spec, nothing, queries.take(none))
    whole = {
        name: np.empty((len(queries), *column.shape[1:]), column.dtype)
        for name, column in columns.items()
    }
    with tempfile.TemporaryDirectory(prefix="poolkit-") as folder:
        key = f"hash({_quoted(spec.key)}::{'BIGINT' if queries.keys.names is None else 'VARCHAR'})"
        asked = _parts_of(store, queries, parts)
        told(f"writing {rows} events in {parts} parts", 0, 0)
        log.project(f"*, {key} % {parts} AS poolkit_part").write_parquet(
            folder, partition_by=["poolkit_part"], compression="lz4"
        )
        for part in range(parts):
            told("pooling", part, parts)
            files = sorted(map(str, Path(folder, f"poolkit_part={part}").glob("*.parquet")))
            events = nothing
            if files:  # read though nobody may ask for them, as bad values are refused anywhere
                table = store.connection.read_parquet(files, hive_partitioning=False)
                events = EventColumns.read(spec, table.to_arrow_table())
                check_widths(spec, nothing, events)
            places = np.flatnonzero(asked == part)
            if len(places):
                pooled = pool_events(spec, events, queries.take(places))
                for name, column in pooled.items():
                    whole[name][places] = column
        told("pooling", parts, parts)
    return whole


def _parts_of(store: _Store, queries: QueryColumns, parts: int) -> np.ndarray:
    """In which part the events of each query are."""
    pa = arrow_of("keys")
    keys = queries.keys
    values = pa.array(np.unique(keys.codes) if keys.names is None else keys.names.tolist())
    distinct = pa.table({"k": values, "place": np.arange(len(values))})
    kind = "BIGINT" if keys.names is None else "VARCHAR"
    found = store.connection.from_arrow(distinct).project(f"place, hash(k::{kind}) % {parts} AS p")
    place, part = (column.to_numpy().astype(np.int64) for column in found.to_arrow_table().columns)
    part = part[np.argsort(place)]
    places = np.searchsorted(values.to_numpy(), keys.codes) if keys.names is None else keys.codes
    return part[places]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Store:
    """A relation, and a connection of our own, whose memory is bounded."""

    def __init__(self, given: Any, memory: int | None) -> None:
        arrow_of("stored tables")
        try:
            import duckdb
        except ModuleNotFoundError:
            raise MissingExtraError("duckdb", "events") from None
        options: dict[str, Any] = {}
        if memory is not None:
            options["memory_limit"] = f"{max(memory, SMALLEST) // 2**20}MiB"
            # The order of a log says nothing, and keeping it would take memory.
            options["preserve_insertion_order"] = "false"
        self.connection = duckdb.connect(config=options)
        if type(given).__name__ == "DuckDBPyRelation":
            self.relation: Any = given
            return
        paths = [given] if isinstance(given, (str, os.PathLike)) else list(given)
        self.relation = self._parquet([os.fspath(path) for path in paths])

    def _parquet(self, paths: Sequence[str]) -> Any:
        import duckdb

        try:
            return self.connection.read_parquet(list(paths))
        except duckdb.IOException as error:
            raise PoolValueError(
                f"cannot read {', '.join(paths)}: {first_line(error)}",
                "Give paths or globs of Parquet files",
            ) from None
        except duckdb.Error as error:
            raise PoolTypeError(
                f"{', '.join(paths)} are no Parquet files of one kind: {first_line(error)}"
            ) from None
