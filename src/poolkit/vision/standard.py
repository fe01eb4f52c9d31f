"""The modules of `poolkit.nn.standard`, entered in the registry under their short names."""

from __future__ import annotations

from ..nn import standard
from .registry import listed

__all__: list[str] = []  # nothing of its own

FIRST = "the first largest value"
EVENLY = "1/n to each value"

listed(
    "max",
    kind="window",
    formula="max x",
    gradient=FIRST,
    cost="one pass, one byte kept for each output",
    paper="Riesenhuber and Poggio 1999, Hierarchical models of object recognition in cortex",
)(standard.MaxPool2d)
listed(
    "avg",
    kind="window",
    formula="Σ x / n",
    gradient=EVENLY,
    cost="one pass, nothing kept",
    paper="LeCun et al. 1998, Gradient-based learning applied to document recognition",
)(standard.AvgPool2d)
listed(
    "min",
    kind="window",
    formula="min x",
    gradient="the first smallest value",
    cost="as max",
    paper="Serra 1982, Image analysis and mathematical morphology (erosion by a flat box)",
)(standard.MinPool2d)
listed(
    "sum",
    kind="window",
    formula="Σ x",
    gradient="1 to each value",
    cost="as avg",
    paper="ONNX LpPool with p = 1 of values of at least 0",
)(standard.SumPool2d)
listed(
    "lp",
    kind="window",
    formula="(Σ |x|^p)^(1/p)",
    gradient="sign(x) · (|x| / y)^(p-1)",
    cost="two powers for each value; input and output kept",
    paper="Sermanet et al. 2012, Convolutional neural networks applied to house numbers",
    norm_type=2,
)(standard.LPPool2d)
listed(
    "relu_max",
    kind="window",
    formula="max(0, max x)",
    gradient="the first largest value, where it is above 0",
    cost="as max, ReLU included",
    paper="Glorot et al. 2011, Deep sparse rectifier neural networks (the ReLU)",
)(standard.ReLUMaxPool2d)
listed(
    "sigmoid_avg",
    kind="window",
    formula="Σ σ(x) / n",
    gradient="σ(x)(1 - σ(x)) / n to each value",
    cost="a sigmoid for each value; the input kept",
    paper="LeCun et al. 1998, Gradient-based learning applied to document recognition",
)(standard.SigmoidAvgPool2d)
listed(
    "fractional_max",
    kind="map",
    formula="max x over windows at random places, so that the size shrinks by any factor",
    gradient=FIRST,
    cost="as max",
    paper="Graham 2014, Fractional max-pooling",
    output_ratio=0.5,
)(standard.FractionalMaxPool2d)
listed(
    "adaptive_max",
    kind="map",
    formula="max x of each of a given number of bins",
    gradient=FIRST,
    cost="as max",
    paper="He et al. 2014, Spatial pyramid pooling in deep convolutional networks (one level)",
    output_size=3,
)(standard.AdaptiveMaxPool2d)
listed(
    "adaptive_avg",
    kind="map",
    formula="Σ x / n of each of a given number of bins",
    gradient=EVENLY,
    cost="as avg",
    paper="He et al. 2014, Spatial pyramid pooling in deep convolutional networks (one level)",
    output_size=3,
)(standard.AdaptiveAvgPool2d)
listed(
    "global_max",
    kind="global",
    formula="max x over all positions",
    gradient=FIRST,
    cost="one pass",
    paper="Oquab et al. 2015, Is object localization for free?",
)(standard.GlobalMaxPool2d)
listed(
    "global_avg",
    kind="global",
    formula="Σ x / n over all positions",
    gradient=EVENLY,
    cost="one pass",
    paper="Lin et al. 2014, Network in network",
)(standard.GlobalAvgPool2d)
listed(
    "sppf",
    kind="map",
    formula="[x, max of 5x5, 9x9, 13x13] of stride 1",
    gradient="x itself; the first largest of each window",
    cost="three passes of 5x5, while a plane is in cache",
    paper="Jocher 2021, YOLOv5; the pyramid is He et al. 2014",
    kernel_size=5,
)(standard.SPPF)
