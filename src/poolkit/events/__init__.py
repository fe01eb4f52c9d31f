"""Event logs: what happened before a moment, pooled, with one definition for batch and online."""

from ..windows.durations import calendar
from .reductions import attend, decay, last
from .spec import Column, Lookup, Pooled, WindowPool

__all__ = ["Column", "Lookup", "Pooled", "WindowPool", "attend", "calendar", "decay", "last"]
