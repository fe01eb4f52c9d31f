"""Logs that are files or relations of DuckDB, read out of core.

DuckDB reads, drops what no query asks for and, where the log is larger than the memory it may take,
writes it again in parts by key, each of which is then sorted and pooled as any other table. Only a
key that is larger than a part is sorted by it, and pooled in slices of time. It does not aggregate.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, PoolTypeError, PoolValueError, first_line
from .columns import EventColumns, QueryColumns, check_widths
from .definition import Definition
from .kernel import pool_events
from .slices import pool_slices
from .tables import arrow_of, keys_of

__all__ = ["Progress", "is_stored", "pool_stored", "read_stored"]

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""

BATCH = 8192  # rows that DuckDB gives at a time
SMALLEST = 2**28  # bytes with which DuckDB can work
# Rows that DuckDB holds while it writes parts, by default: each thread, and each part.
FLUSHED, ROW_GROUP = 524_288, 122_880
HELD = 1 / 8  # of its memory, what either may fill
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


def _duckdb() -> Any:
    arrow_of("stored tables")
    try:
        import duckdb

        return duckdb
    except ModuleNotFoundError:
        raise MissingExtraError("duckdb", "events") from None


@contextmanager
def _told() -> Iterator[None]:
    """What DuckDB says, as the library says it."""
    duckdb = _duckdb()
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise PoolValueError(
            f"DuckDB has too little memory: {first_line(error)}", "Give more: memory="
        ) from None
    except duckdb.Error as error:
        raise PoolValueError(
            f"DuckDB cannot read a table: {first_line(error)}",
            "Check the files or the relation: all files have the same columns",
        ) from None
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


@_told()
def read_stored(given: Any) -> Any:
    """The whole of it as an Arrow table."""
    return _Store(given, None).relation.to_arrow_table()


@_told()
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
    if rows * row_bytes <= memory * SHARE:
        return pool_events(spec, EventColumns.read(spec, log.to_arrow_table()), queries)

    none = np.zeros(0, np.int64)
    nothing = EventColumns.read(spec, sample).take(none)  # of the log's types and width
    # What does not fit is refused now, not after the writing.
    columns = pool_events(spec, nothing, queries.take(none))
    whole = {
        name: np.empty((len(queries), *column.shape[1:]), column.dtype)
        for name, column in columns.items()
    }

    def put(places: np.ndarray, pooled: dict[str, np.ndarray]) -> None:
        for name, column in pooled.items():
            whole[name][places] = column

    room = max(int(memory * SHARE / row_bytes), 1)  # rows
    with tempfile.TemporaryDirectory(prefix="poolkit-") as folder:
        store.write_to(folder, row_bytes)
        parts = _Parts(store, log, spec.key, rows, room)
        asked = parts.of(queries)
        told(f"writing {rows} events in {len(parts)} parts", 0, 0)
        parts.write(queries, folder, row_bytes)
        for part in range(len(parts)):
            told("pooling", part, len(parts))
            # Read though nobody may ask for it, as bad values are refused anywhere.
            table = parts.read(part, folder)
            places = np.flatnonzero(asked == part)
            own = queries.take(places)
            if part >= parts.hashed:
                batches = table.order(_quoted(spec.time)).to_arrow_reader(min(room, BATCH))
                for some, pooled in pool_slices(spec, batches, own, nothing, room, Path(folder)):
                    put(places[some], pooled)
                continue
            found = nothing
            if table is not None:
                found = EventColumns.read(spec, table.to_arrow_table())
                check_widths(spec, nothing, found)
            if len(places):
                put(places, pool_events(spec, found, own))
        told("pooling", len(parts), len(parts))
    return whole


class _Parts:
    """How a log is parted: by the hashes of its keys, and each key that is larger than a part has
    one of its own, behind these."""

    def __init__(self, store: _Store, log: Any, key: str, rows: int, room: int) -> None:
        self.store, self.log, self.key = store, log, key
        self.column = "part"  # which no other has the name of; to DuckDB, case is nothing
        while self.column in map(str.lower, log.columns):
            self.column += "_"
        counted = log.aggregate(f"{_quoted(key)} AS k, count(*) AS n", _quoted(key))
        # Nulls are refused when they are read.
        large = counted.filter(f"n > {room} AND k IS NOT NULL").to_arrow_table()
        self.large = keys_of(large.column("k"), key).values().tolist()
        self.hashed = max(math.ceil((rows - sum(large.column("n").to_pylist())) / room), 1)

    def __len__(self) -> int:
        return self.hashed + len(self.large)

    def of(self, queries: QueryColumns) -> np.ndarray:
        """In which part the events of each query are."""
        pa = arrow_of("keys")
        keys = queries.keys
        values = np.unique(keys.codes).tolist() if keys.names is None else keys.names.tolist()
        table = pa.table({"k": values, "place": np.arange(len(values))})
        hashed = self.store.connection.from_arrow(table).project(
            f"place, {self._hash('k', queries)}"
        )
        place, part = (c.to_numpy().astype(np.int64) for c in hashed.to_arrow_table().columns)
        part = part[np.argsort(place)]
        places = {value: place for place, value in enumerate(values)}
        for own, value in enumerate(self.large, self.hashed):
            if value in places:
                part[places[value]] = own
        return part[np.searchsorted(values, keys.codes) if keys.names is None else keys.codes]

    def write(self, queries: QueryColumns, folder: str, row_bytes: float) -> None:
        """All parts; `queries` say what keys are."""
        duckdb = _duckdb()
        key = duckdb.SQLExpression(_quoted(self.key))
        part = duckdb.SQLExpression(self._hash(_quoted(self.key), queries))
        if self.large:
            cases = [
                (key == duckdb.ConstantExpression(value), duckdb.ConstantExpression(own))
                for own, value in enumerate(self.large, self.hashed)
            ]
            chosen = duckdb.CaseExpression(*cases[0])
            for case in cases[1:]:
                chosen = chosen.when(*case)
            part = chosen.otherwise(part)
        self.log.project(duckdb.StarExpression(), part.alias(self.column)).write_parquet(
            folder, partition_by=[self.column], compression="lz4",
            row_group_size=max(min(ROW_GROUP, self.store.held(row_bytes) // len(self)), 2048),
        )  # fmt: skip

    def read(self, part: int, folder: str) -> Any:
        """A relation, or None for a part without events."""
        files = sorted(map(str, Path(folder, f"{self.column}={part}").glob("*.parquet")))
        if not files:
            return None
        return self.store.connection.read_parquet(files, hive_partitioning=False)

    def _hash(self, column: str, queries: QueryColumns) -> str:
        kind = "BIGINT" if queries.keys.names is None else "VARCHAR"
        return f"(hash({column}::{kind}) % {self.hashed})::BIGINT"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Store:
    """A relation, and a connection of our own, whose memory is bounded."""

    def __init__(self, given: Any, memory: int | None) -> None:
        duckdb = _duckdb()
        options: dict[str, Any] = {}
        if memory is not None:
            memory = max(memory, SMALLEST)
            options["memory_limit"] = f"{memory // 2**20}MiB"
            # The order of a log says nothing, and keeping it would take memory.
            options["preserve_insertion_order"] = "false"
        self.memory = memory
        self.connection = duckdb.connect(config=options)
        self.connection.execute("SET enable_progress_bar = false")  # which would go to stdout
        if type(given).__name__ == "DuckDBPyRelation":
            self.relation: Any = given
            return
        paths = [given] if isinstance(given, (str, os.PathLike)) else list(given)
        self.relation = self._parquet([os.fspath(path) for path in paths])

    def held(self, row_bytes: float) -> int:
        """Rows that it may hold while it writes."""
        assert self.memory is not None
        return int(self.memory * HELD / row_bytes)

    def write_to(self, folder: str, row_bytes: float) -> None:
        """Lets DuckDB write parts, and what it has no memory for, to a folder."""
        quoted = folder.replace("'", "''")
        self.connection.execute(f"SET temp_directory = '{quoted}'")
        flushed = min(self.held(row_bytes) // 2, FLUSHED)
        self.connection.execute(f"SET partitioned_write_flush_threshold = {flushed}")

    def _parquet(self, paths: Sequence[str]) -> Any:
        duckdb = _duckdb()
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
