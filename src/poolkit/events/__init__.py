"""Event logs: what happened before a moment, pooled, with one definition for batch and online."""

from ..windows.durations import calendar
from .configuration import read_spec
from .reductions import attend, decay, last
from .spec import Column, Lookup, Pooled, WindowPool
from .state import Difference, State, Verification

__all__ = [
    "Column",
    "Difference",
    "Lookup",
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
