"""Windows: which input positions each output position sees."""

from .adaptive import Adaptive, Global, Pyramid
from .base import WINDOWS, ReceptiveField, Spans, Window, as_window
from .regions import Regions
from .segments import Segments
from .sliding import Sliding
from .time import TimeWindow

__all__ = [
    "WINDOWS",
    "Adaptive",
    "Global",
    "Pyramid",
    "ReceptiveField",
    "Regions",
    "Segments",
    "Sliding",
    "Spans",
    "TimeWindow",
    "Window",
    "as_window",
]
