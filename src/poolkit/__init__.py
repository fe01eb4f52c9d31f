"""poolkit: every way to turn many values into one.

Pooling is a window (which positions are seen) times a reduction (how they become one value)::

    poolkit.pool(x, poolkit.Sliding(3, stride=2, padding=1), poolkit.Max())

`poolkit.nn` has torch's modules, `inspect` shows what pools a model has, `optimize` swaps them.
"""

from typing import TYPE_CHECKING, Any

from . import quantized
from .activations import (
    GELU,
    Activation,
    Exp,
    Hardswish,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from .core import explain, pool, pool_with_indices
from .errors import MissingExtraError, PoolError, PoolTypeError, PoolValueError
from .functional import *  # noqa: F403
from .functional import __all__ as _named
from .kernels import info, num_threads, set_num_threads, use_isa
from .reductions import (
    Activated,
    GeM,
    LogSumExp,
    Lp,
    Max,
    Mean,
    Median,
    Min,
    Quantile,
    Reduction,
    Soft,
    Std,
    Sum,
    TopK,
)
from .windows import Adaptive, Global, Pyramid, ReceptiveField, Segments, Sliding, Window

if TYPE_CHECKING:
    from . import nn
    from .inspection import inspect
    from .optimization import optimize

__version__ = "0.1.0"
__all__ = [
    "GELU",
    "Activated",
    "Activation",
    "Adaptive",
    "Exp",
    "GeM",
    "Global",
    "Hardswish",
    "LeakyReLU",
    "LogSumExp",
    "Lp",
    "Max",
    "Mean",
    "Median",
    "Min",
    "MissingExtraError",
    "PoolError",
    "PoolTypeError",
    "PoolValueError",
    "Pyramid",
    "Quantile",
    "ReLU",
    "ReceptiveField",
    "Reduction",
    "Segments",
    "SiLU",
    "Sigmoid",
    "Sliding",
    "Soft",
    "Std",
    "Sum",
    "Tanh",
    "TopK",
    "Window",
    "explain",
    "info",
    "inspect",
    "nn",
    "num_threads",
    "optimize",
    "pool",
    "pool_with_indices",
    "quantized",
    "set_num_threads",
    "use_isa",
]
__all__ += _named

# What needs torch is imported when it is first asked for: importing poolkit stays quick.
_LAZY = {
    "nn": ("poolkit.nn", None),
    "inspect": ("poolkit.inspection", "inspect"),
    "optimize": ("poolkit.optimization", "optimize"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'poolkit' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("poolkit"):
            raise
        missing = error.name.partition(".")[0]
        raise MissingExtraError(missing, "torch" if missing == "torch" else "inspect") from None
    value = globals()[name] = getattr(loaded, attribute) if attribute else loaded
    return value
