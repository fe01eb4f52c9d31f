"""Reductions: how the values that a window sees become one."""

from .activated import Activated, activated, inner_of
from .base import REDUCTIONS, Kernel, Reduction, Seen, as_reduction
from .extremes import Max, Min
from .norms import GeM, Lp
from .order import Median, Quantile, TopK
from .smooth import LogSumExp, Soft
from .spread import Std
from .sums import Mean, Sum

__all__ = [
    "REDUCTIONS",
    "Activated",
    "GeM",
    "Kernel",
    "LogSumExp",
    "Lp",
    "Max",
    "Mean",
    "Median",
    "Min",
    "Quantile",
    "Reduction",
    "Seen",
    "Soft",
    "Std",
    "Sum",
    "TopK",
    "activated",
    "as_reduction",
    "inner_of",
]
