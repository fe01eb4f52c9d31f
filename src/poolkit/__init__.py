"""poolkit: every way to turn many values into one.

Pooling is a window (which positions are seen) times a reduction (how they become one value)::

    poolkit.pool(x, poolkit.Sliding(3, stride=2, padding=1), poolkit.Max())

`poolkit.nn` has torch's modules, `inspect` shows what pools a model has, `advise` what others would
cost, `optimize` swaps them.
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
    BiInteraction,
    First,
    GeM,
    Last,
    LogSumExp,
    Lp,
    Max,
    Mean,
    Median,
    Min,
    Quantile,
    Reduction,
    Soft,
    SqrtN,
    Std,
    Sum,
    TopK,
)
from .windows import (
    Adaptive,
    Global,
    Pyramid,
    ReceptiveField,
    Regions,
    Segments,
    Sliding,
    TimeWindow,
    Window,
)

if TYPE_CHECKING:
    from . import events, nn
    from .comparison import compare
    from .design import advise
    from .exporting import export_onnx
    from .inspection import inspect
    from .linting import lint
    from .optimization import optimize

__version__ = "0.1.0"
__all__ = [
    "GELU",
    "Activated",
    "Activation",
    "Adaptive",
    "BiInteraction",
    "Exp",
    "First",
    "GeM",
    "Global",
    "Hardswish",
    "Last",
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
    "Regions",
    "Segments",
    "SiLU",
    "Sigmoid",
    "Sliding",
    "Soft",
    "SqrtN",
    "Std",
    "Sum",
    "Tanh",
    "TimeWindow",
    "TopK",
    "Window",
    "advise",
    "compare",
    "events",
    "explain",
    "export_onnx",
    "info",
    "inspect",
    "lint",
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
_LAZY: dict[str, tuple[str, str | None]] = {
    "nn": ("poolkit.nn", None),
    "advise": ("poolkit.design", "advise"),
    "compare": ("poolkit.comparison", "compare"),
    "events": ("poolkit.events", None),
    "export_onnx": ("poolkit.exporting", "export_onnx"),
    "inspect": ("poolkit.inspection", "inspect"),
    "lint": ("poolkit.linting", "lint"),
    "optimize": ("poolkit.optimization", "optimize"),
}
_EXTRAS = {"torch": "torch", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}
_ROOMS = {
    "recommenders.crossing": "bi_interaction fm_interaction",
    "recommenders.interest": "decayed_mean",
    "sequences.attentive": "attentive_pool attentive_stats segment_softmax",
    "sequences.bags": "embedding_bag",
    "sequences.kmax": "dynamic_k k_max_pool1d",
    "sequences.merging": "token_merge token_unmerge",
    "sequences.pooled_attention": "block_mean_attention",
    "sequences.tokens": "token_pool token_unpool",
    "vision.antialias": "aps_pool2d blur_pool1d blur_pool2d max_blur_pool2d",
    "vision.detail": "lip_pool2d",
    "vision.frequency": "haar_unpool2d spectral_pool2d wavelet_pool2d",
    "vision.generalized": "gem_pool2d lse_pool2d median_pool2d quantile_pool2d soft_pool2d "
    "std_pool2d top_k_pool2d",
    "vision.mixed": "mixed_pool2d",
    "vision.morphology": "bottom_hat2d closing2d dilation2d erosion2d morphological_gradient2d "
    "opening2d top_hat2d",
    "vision.multiscale": "spatial_pyramid_pool2d strip_pool2d",
    "vision.ordered": "mode_pool2d rank_pool2d",
    "vision.regions": "prroi_pool roi_align roi_pool",
    "vision.second_order": "bilinear_pool2d compact_bilinear_pool2d covariance_pool2d",
    "vision.stochastic": "fractional_samples s3_pool2d stochastic_pool2d",
}
_LAZY |= {
    name: (f"poolkit.{room}", name) for room, names in _ROOMS.items() for name in names.split()
}
__all__ += [name for names in _ROOMS.values() for name in names.split()]


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
        raise MissingExtraError(missing, _EXTRAS.get(missing, "inspect")) from None
    value = globals()[name] = getattr(loaded, attribute) if attribute else loaded
    return value
