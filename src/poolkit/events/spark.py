"""Spark: events and queries in one frame, partitioned by key and sorted, to `PartitionPool`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

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
    pool = PartitionPool(spec, first, queries.limit(0).toArrow(), min(int(memory * SHARE), MOST))
    types = _types(queries, list(pool.schema)[len(queries.columns) :])
    schema, shared = _in_lists(pool.schema), session.sparkContext.broadcast(pool)

    def pooled(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in shared.value(batches):
            yield batch.cast(schema)

    return _rows(pool, events, queries).mapInArrow(pooled, types)


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


def _rows(pool: PartitionPool, events: DataFrame, queries: DataFrame) -> DataFrame:
    """The rows that `PartitionPool` takes: each key in one partition, in the order of time."""
    from pyspark.sql import functions as F

    def placed(frame: DataFrame, name: str, columns: Sequence[str]) -> DataFrame:
        struct = F.struct(*map(_column, columns)).alias(name)
        return frame.select(_key(frame, pool.spec.key), _time(frame, pool.spec.time), struct)

    logged = placed(events, "event", pool.event_columns)
    asked = placed(queries, "query", queries.columns)
    rows = logged.unionByName(asked, allowMissingColumns=True)
    return rows.repartition("key").sortWithinPartitions("key", "time")


def _key(frame: DataFrame, name: str) -> Column:
    from pyspark.sql.types import IntegralType, LongType, StringType

    column, kind = _column(name), frame.schema[name].dataType
    if isinstance(kind, IntegralType):
        column = column.cast(LongType())
    elif isinstance(kind, StringType):  # equal are equal bytes, whatever its collation
        column = column.cast(StringType())
    return column.alias("key")


def _time(frame: DataFrame, name: str) -> Column:
    from pyspark.sql.types import DateType, TimestampNTZType

    column = _column(name)
    if isinstance(frame.schema[name].dataType, DateType):
        column = column.cast(TimestampNTZType())
    return column.alias("time")


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
