"""Event logs: what happened before a moment, pooled, with one definition for batch and online."""

from ..windows.durations import calendar
from .configuration import read_spec
from .definition import Column, Lookup
from .partitions import PartitionPool
from .reductions import attend, decay, last
from .results import Pooled
from .spec import WindowPool
from .state import Difference, State, Verification

__all__ = [
    "Column",
    "Difference",
    "Lookup",
    "PartitionPool",
    "Pooled",
    "State",
    "Verification",
    "WindowPool",
    "attend",
    "calendar",
    "decay",
    "last",
    "read_spec",
]
