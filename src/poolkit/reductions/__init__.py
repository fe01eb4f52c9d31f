"""Reductions: how the values that a window sees become one."""

from .activated import Activated, activated, inner_of
from .base import REDUCTIONS, Kernel, Reduction, Seen, as_reduction
from .extremes import Max, Min
from .interactions import BiInteraction
from .norms import GeM, Lp
from .order import Median, Quantile, TopK
from .places import First, Last, Place
from .smooth import LogSumExp, Soft
from .spread import Std
from .sums import Mean, SqrtN, Sum

__all__ = [
    "REDUCTIONS",
    "Activated",
    "BiInteraction",
    "First",
    "GeM",
    "Kernel",
    "Last",
    "LogSumExp",
    "Lp",
    "Max",
    "Mean",
    "Median",
    "Min",
    "Place",
    "Quantile",
    "Reduction",
    "Seen",
    "Soft",
    "SqrtN",
    "Std",
    "Sum",
    "TopK",
    "activated",
    "as_reduction",
    "inner_of",
]
