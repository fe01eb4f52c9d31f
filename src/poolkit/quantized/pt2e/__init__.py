"""Quantized models by torchao's PT2E flow, after training or while training, with their poolings
on integers.

    exported = torch.export.export(model, inputs).module()
    config = pt2e.quantization_config(bits=8)
    rest = X86InductorQuantizer().set_global(config)         # convolutions and linear layers
    prepared = prepare_pt2e(exported, pt2e.PoolingQuantizer(config, rest))
    pt2e.calibrate(prepared, batches)
    quantized = pt2e.convert(prepared)

torchao quantizes convolutions and linear layers, places observers and writes quantize and
dequantize; here is what it leaves in float without a word: poolings. To train with rounded
values, use ``quantization_config(bits, qat=True)`` and ``prepare_qat_pt2e``, and train between
`calibrate` and `convert`.
"""

from ...errors import MissingExtraError

try:
    import torchao  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("torchao", "quantization") from None

from .lowering import LoweredPooling, convert, lower
from .quantizer import PoolingQuantizer, quantization_config
from .training import IntegerRounding, calibrate

__all__ = [
    "IntegerRounding",
    "LoweredPooling",
    "PoolingQuantizer",
    "calibrate",
    "convert",
    "lower",
    "quantization_config",
]
