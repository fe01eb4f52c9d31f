"""Pooling of 8-bit integers that stand for real numbers: plain int8 and uint8 arrays of NumPy or
torch, with their `QParams` beside them.

>>> import numpy as np
>>> from poolkit import quantized
>>> qparams = quantized.QParams.from_range(0.0, 2.55, "uint8")
>>> q = quantized.quantize(np.array([[[0.2, 0.4, 1.0, 1.5]]]), qparams, "uint8")
>>> quantized.max_pool1d(q, 2), quantized.avg_pool1d(q, 2, qparams=qparams)
(array([[[ 40, 150]]], dtype=uint8), array([[[ 30, 125]]], dtype=uint8))
"""

from .functional import *  # noqa: F403
from .functional import __all__ as _named
from .params import QParams, dequantize, quantize
from .pooling import pool

__all__ = ["QParams", "dequantize", "pool", "quantize"]
__all__ += _named
