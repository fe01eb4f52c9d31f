"""A quantizer for torchao's PT2E flow that finds every pooling."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FakeQuantize,
    FakeQuantizeBase,
    HistogramObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig

from ...errors import PoolTypeError, PoolValueError
from .graphs import GraphPooling, make_trainable, poolings_of
from .training import IntegerRounding

__all__ = ["LAYOUTS", "PoolingQuantizer", "quantization_config"]

_aten = torch.ops.aten

#: What hands values on as they are, in another shape or order.
LAYOUTS = frozenset(
    (
        _aten.flatten.using_ints,
        _aten.view.default,
        _aten.reshape.default,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
    )
)
SHARING = ("none", "local", "all")
#: Of a scale. Sums of 256 values of 8 bits need 16 more, and float32 has 24.
DIGITS = 8


def quantization_config(bits: int = 8, *, qat: bool = False) -> QuantizationConfig:
    """How convolutions, linear layers and poolings are quantized with so many bits, for torchao's
    quantizers and `PoolingQuantizer`.

    Activations are uint8 from 0 to ``2**bits - 1`` with a zero point, weights int8 with one scale
    for each output channel and 0 in the middle: fewer than 8 bits are stored in 8, with a smaller
    range.

    Args:
        bits: from 2 to 8.
        qat: whether values are rounded while the model is trained (for ``prepare_qat_pt2e``); else
            they are looked at only (for ``prepare_pt2e``).

    Returns:
        torchao's configuration. Ranges of activations come from histograms, so that what is rare
        may saturate: give them a few batches by `calibrate`. Their scales have 8 binary digits:
        averages in float32, in training or of an ONNX file, then have ties where the integers have
        them. Ranges of weights are those of the weights as they are.

    Raises:
        PoolValueError: for other numbers of bits.

    >>> from poolkit.quantized import pt2e
    >>> config = pt2e.quantization_config(4, qat=True)
    >>> config.input_activation.quant_max, config.weight.quant_min
    (15, -8)
    """
    if not isinstance(bits, int) or bits not in range(2, 9):
        raise PoolValueError(f"bits must be from 2 to 8, got {bits!r}", "Use 8 or 4")
    half = 2 ** (bits - 1)
    of_activations = RangeObserver.with_args(eps=2**-12)
    of_weights = PerChannelMinMaxObserver.with_args(eps=2**-12)
    if qat:
        # Not the fused kind: it trains with a scale of its own that differs from that of the
        # conversion in the last bit, so that values change where there is no tie.
        of_activations = FakeQuantize.with_args(observer=RangeObserver, eps=2**-12)
        of_weights = FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-12
        )
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2 * half - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=of_activations,
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-half,
        quant_max=half - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=of_weights,
    )
    return QuantizationConfig(activation, activation, weight, None, is_qat=qat)


class RangeObserver(HistogramObserver):
    """torchao's observer, which chooses the range that rounds best, for the bits there are, with a
    scale of few binary digits.

    torchao's own takes all values of the dtype, so that of 4 bits in 8 it would never let a value
    saturate. And its scales have 24 digits: float32 then rounds each real value, and an average
    that lies between two integers comes out on either side. With `DIGITS` of them sums are exact.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dst_nbins = self.quant_max - self.quant_min + 1

    def _calculate_qparams(self, min_val: Tensor, max_val: Tensor) -> tuple[Tensor, Tensor]:
        scale, _ = super()._calculate_qparams(min_val, max_val)
        mantissa, exponent = torch.frexp(scale)
        # Upwards, so that no value saturates for it: by 0.4 % at most, or 0.3 % on average.
        scale = torch.ldexp((mantissa * 2**DIGITS).ceil(), exponent - DIGITS)
        zero_point = self.quant_min - torch.round(min_val.clamp(max=0) / scale).to(torch.int)
        return scale, zero_point.clamp(self.quant_min, self.quant_max)


class PoolingQuantizer(Quantizer):
    """Annotates the poolings of an exported graph, after another quantizer has had its turn.

    Each pooling that has a kernel on integers, a module or a function of torch's or poolkit's, or
    a reduction over the spatial axes, gets quantized values to read, whatever is in front of it,
    and gives quantized ones. A maximum or minimum shares its input's observer, as it only selects.
    What stands behind and only reshapes (``flatten``) keeps a pooling's parameters, so that
    nothing is rounded twice.

    Args:
        config: how values are quantized: torchao's default for a backend, or `quantization_config`.
        quantizer: the one for everything else, as ``X86InductorQuantizer().set_global(config)``;
            what it has excluded stays in float. None: poolings only.
        share_averages: which averages and sums share their input's observer, too: "local", all but
            those of one window over everything, whose range is much smaller; "all", or "none".

    Raises:
        PoolValueError, PoolTypeError: for activations that are not quantized as a whole, to 8-bit
            integers, with fixed parameters; and for other ways of sharing.

    >>> import torch
    >>> from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    >>> from poolkit.quantized import pt2e
    >>> x = torch.rand(1, 3, 8, 8)
    >>> exported = torch.export.export(torch.nn.MaxPool2d(2), (x,)).module()
    >>> quantizer = pt2e.PoolingQuantizer(pt2e.quantization_config())
    >>> prepared = prepare_pt2e(exported, quantizer)
    >>> _ = prepared(x)                                       # calibration
    >>> converted = pt2e.convert(prepared)
    poolings on 8-bit integers: 1 of 1
    >>> [str(node.target) for node in converted.graph.nodes if "pool" in node.name]
    ['poolkit.pool.default']
    """

    def __init__(
        self,
        config: QuantizationConfig,
        quantizer: Quantizer | None = None,
        *,
        share_averages: str = "local",
    ) -> None:
        super().__init__()
        if not isinstance(config, QuantizationConfig):
            raise PoolTypeError(
                f"config must be a QuantizationConfig of torchao, got {config!r}",
                "Use quantization_config()",
            )
        if share_averages not in SHARING:
            raise PoolValueError(
                f"there is no share_averages {share_averages!r}", f"Write one of {SHARING}"
            )
        self.read, self.given = (
            _checked(spec) for spec in (config.input_activation, config.output_activation)
        )
        self.is_qat = config.is_qat
        self.quantizer = quantizer
        self.share_averages = share_averages

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        if self.is_qat:
            make_trainable(model)
        return model if self.quantizer is None else self.quantizer.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        if self.quantizer is not None:
            with warnings.catch_warnings():
                # torchao's word for a pooling that it leaves out, to be annotated here.
                warnings.filterwarnings("ignore", "The input of maxpool2d is not quantized")
                self.quantizer.annotate(model)
        quantized = {
            pooling.value
            for pooling in poolings_of(model.graph)
            if not pooling.obstacle and self._annotate(pooling)
        }
        for node in model.graph.nodes:
            if node.target in LAYOUTS and node.args[0] in quantized and _annotation(node) is None:
                before = node.args[0]
                _annotate(node, {before: SharedQuantizationSpec(before)}, (before, node))
                quantized.add(node)
        return model

    def validate(self, model: GraphModule) -> None:
        if self.quantizer is not None:
            self.quantizer.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]
    ) -> None:
        observers = edge_or_node_to_obs_or_fq
        if self.quantizer is not None:
            self.quantizer.prepare_obs_or_fq_callback(model, observers)
        for pooling in poolings_of(model.graph):
            value = pooling.value
            rounds = None if pooling.obstacle or pooling.selects else observers.get(value)
            if isinstance(rounds, FakeQuantizeBase):
                exact = IntegerRounding(rounds)
                places = (value, *((value, user) for user in value.users))
                observers.update({at: exact for at in places if observers.get(at) is rounds})

    def _annotate(self, pooling: GraphPooling) -> bool:
        """Whether a pooling is to be quantized; if so it is annotated."""
        node, x = pooling.node, pooling.input
        theirs = _annotation(node)
        if theirs is not None and not theirs.input_qspec_map:
            return False
        read = self.read if theirs is None else theirs.input_qspec_map.get(x, self.read)
        given: Any = (x, node) if self._shares(pooling) else self.given
        if pooling.value is node:
            _annotate(node, {x: read}, given)
        else:
            _annotate(node, {x: read}, None)
            _annotate(pooling.value, {}, given)
        return True

    def _shares(self, pooling: GraphPooling) -> bool:
        if pooling.selects or self.share_averages == "all":
            return True
        return self.share_averages == "local" and not pooling.is_global


def _annotation(node: Node) -> QuantizationAnnotation | None:
    found = node.meta.get(Q_ANNOTATION_KEY)
    return found if found is not None and found._annotated else None


def _annotate(node: Node, read: dict[Node, Any], given: Any) -> None:
    """`given` is how the result is quantized, or whose observer it shares."""
    annotation = _annotation(node) or QuantizationAnnotation(_annotated=True)
    annotation.input_qspec_map = read
    annotation.output_qspec = SharedQuantizationSpec(given) if isinstance(given, tuple) else given
    node.meta[Q_ANNOTATION_KEY] = annotation


def _checked(spec: Any) -> QuantizationSpec:
    schemes = (torch.per_tensor_affine, torch.per_tensor_symmetric)
    if (
        not isinstance(spec, QuantizationSpec)
        or spec.is_dynamic
        or spec.qscheme not in schemes
        or spec.dtype not in (torch.int8, torch.uint8)
    ):
        raise PoolValueError(
            f"poolings of activations that are quantized by {spec!r} have no kernel",
            "Quantize activations to int8 or uint8, with one scale that is not dynamic",
        )
    return spec
