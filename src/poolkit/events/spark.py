"""Spark: blocks of events and queries in one frame, partitioned and sorted, to `PartitionPool`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PoolTypeError, PoolValueError, first_line
from .definition import Definition
from .local import is_stored
from .partitions import PartitionPool
from .tables import arrow_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = ["is_session", "pool_frames"]

# Rows are copied a few times while they are pooled, and more of them at once are not faster.
SHARE, MOST = 1 / 16, 2**25
BLOCK = "place long, bucket long, time long, asked boolean, block binary"


def is_session(given: object) -> bool:
    """Whether this is a session of Spark, found out without importing it."""
    sql = sys.modules.get("pyspark.sql")
    return sql is not None and isinstance(given, sql.SparkSession)


def pool_frames(
    spec: Definition, session: SparkSession, events: Any, queries: Any, memory: int
) -> DataFrame:
    """See `WindowPool.asof`. Types are checked at once, values when Spark runs."""
    events, queries = _frame(session, events, "events"), _frame(session, queries, "queries")
    if len(set(queries.columns)) < len(queries.columns):
        raise PoolValueError(
            f"queries have two columns of one name: {', '.join(queries.columns)}", "Drop one"
        )
    read = [_column(name) for name in spec.columns if name in events.columns]
    # An array of Spark has no width: the first event says it.
    arrays = [name for name, kind in events.dtypes if kind.startswith("array")]
    first = events.select(*read).limit(int(spec.value.column in arrays)).toArrow()
    pool = PartitionPool(
        spec, first, queries.limit(0).toArrow(), _places(session), min(int(memory * SHARE), MOST)
    )
    types = _types(queries, list(pool.schema)[len(queries.columns) :])
    schema, shared = _in_lists(pool.schema), session.sparkContext.broadcast(pool)

    def packed_events(batches: Iterator[Any]) -> Iterator[Any]:
        return shared.value.event_blocks(batches)

    def packed_queries(batches: Iterator[Any]) -> Iterator[Any]:
        return shared.value.query_blocks(batches)

    def pooled(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in shared.value(batches):
            yield batch.cast(schema)

    blocks = events.select(*read).mapInArrow(packed_events, BLOCK)
    blocks = blocks.union(queries.mapInArrow(packed_queries, BLOCK))
    # Without a number, so that Spark puts small partitions together.
    blocks = blocks.repartition("place").sortWithinPartitions("bucket", "time")
    return blocks.mapInArrow(pooled, types)


def _places(session: SparkSession) -> list[int]:
    """Numbers that Spark sends to partitions of their own, one to each that it makes."""
    name = "spark.sql.shuffle.partitions"
    number = session.conf.get(
        "spark.sql.adaptive.coalescePartitions.initialPartitionNum", session.conf.get(name)
    )
    count = int(number) if str(number).isdecimal() else 200  # Spark's default
    partitions = _hashes(np.arange(32 * count)) % count
    return np.unique(partitions, return_index=True)[1].tolist()


def _hashes(longs: np.ndarray) -> np.ndarray:
    """(n) int64: as Spark partitions by them, by MurmurHash3 (Appleby, 2008) of 32 bits and seed
    42. Asking Spark would cost a job."""
    words = longs.astype("<i8").view("<u4").reshape(-1, 2).T
    hashed = np.full(len(longs), 42, np.uint32)
    for word in words:
        word = _rotated(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        hashed = _rotated(hashed ^ word, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    hashed ^= np.uint32(8)  # bytes
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        hashed = (hashed ^ (hashed >> np.uint32(shift))) * np.uint32(factor)
    return hashed.view(np.int32).astype(np.int64)


def _rotated(words: np.ndarray, bits: int) -> np.ndarray:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def _frame(session: SparkSession, given: Any, what: str) -> DataFrame:
    from pyspark.errors import AnalysisException
    from pyspark.sql import DataFrame

    if is_stored(given) and type(given).__name__ != "DuckDBPyRelation":
        paths = [given] if isinstance(given, (str, os.PathLike)) else given
        try:
            return session.read.parquet(*map(os.fspath, paths))
        except AnalysisException as error:
            raise PoolValueError(
                f"cannot read {what}: {first_line(error)}",
                "Give paths or globs of Parquet files",
            ) from None
    if not isinstance(given, DataFrame):
        raise PoolTypeError(
            f"{what} are no DataFrame of Spark: {type(given).__name__}",
            "Write session.createDataFrame(table), or give paths of Parquet files",
        )
    return given


def _column(name: str) -> Column:
    """The column of just this name."""
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")


def _in_lists(schema: Any) -> Any:
    """A schema of Arrow without lists of a fixed size, which Spark does not take."""
    pa = arrow_of("results")
    return pa.schema(
        field.with_type(pa.list_(field.type.value_type)) if _is_vector(field) else field
        for field in schema
    )


def _is_vector(field: Any) -> bool:
    return bool(arrow_of("results").types.is_fixed_size_list(field.type))


def _types(queries: DataFrame, results: Any) -> StructType:
    """Those of the queries' columns, and of the results behind them as of Arrow."""
    from pyspark.sql import types

    numbers = {
        "int64": types.LongType(), "bool": types.BooleanType(),
        "float": types.FloatType(), "double": types.DoubleType(),
    }  # fmt: skip
    whole = types.StructType(list(queries.schema))
    for field in results:
        vector = _is_vector(field)
        number = numbers[str(field.type.value_type if vector else field.type)]
        whole.add(field.name, types.ArrayType(number, containsNull=False) if vector else number)
    return whole
