"""What others have measured: a table of claims, each shown where a site makes it apply.

Only what was looked up is here, with the numbers as they were published. A claim without a number
is the paper's own summary.
"""

from __future__ import annotations

from poolkit.design.records import Claim

__all__ = ["EFFECTIVE_FIELD", "LITERATURE"]

#: The claim that goes with every receptive field.
EFFECTIVE_FIELD = "effective-field"


def _claim(text: str, setting: str, source: str) -> Claim:
    return Claim(text, "literature", setting, source)


#: Claims by the key that alternatives name.
LITERATURE: dict[str, Claim] = {
    "overlap-helps": _claim(
        "3x3 windows of stride 2 in place of 2x2 ones: top-1 error 0.4 points lower, top-5 error "
        "0.3 points lower",
        "AlexNet, ImageNet 2010",
        "Krizhevsky, Sutskever and Hinton 2012, ImageNet classification with deep convolutional "
        "neural networks, section 3.4",
    ),
    "blur": _claim(
        "A blur of 3x3 or 5x5 before every stride: ResNet-50 top-1 76.16 % to 76.83 % and 77.04 %, "
        "the same class for two shifted crops 89.20 % to 90.91 % and 91.31 %; VGG-16 71.59 % to "
        "72.20 % and 72.33 %",
        "ImageNet, trained from scratch",
        "Zhang 2019, Making convolutional networks shift-invariant again, and the tables of its "
        "code (adobe/antialiased-cnns)",
    ),
    "strided": _claim(
        "Error of max pooling 9.74 %, of the stride moved into the convolution before 10.19 %, of "
        "a strided convolution in each pool's place 9.08 %, of as many convolutions and the pools "
        "kept 9.31 %",
        "nine convolutions (model C), CIFAR-10 without augmentation",
        "Springenberg, Dosovitskiy, Brox and Riedmiller 2015, Striving for simplicity: the all "
        "convolutional net, table 3",
    ),
    "dilation": _claim(
        "Strides of the last two stages turned into dilation: top-1 error 24.0 % to 22.9 % "
        "(ResNet-50), 27.7 % to 24.8 % (ResNet-34), with gridding in the maps",
        "ImageNet, one crop",
        "Yu, Koltun and Funkhouser 2017, Dilated residual networks, and the table of its code "
        "(fyu/drn), DRN-A",
    ),
    "pyramid": _claim(
        "A pyramid before the first linear layer raised the accuracy of a variety of networks, and "
        "takes inputs of any size",
        "ImageNet 2012",
        "He, Zhang, Ren and Sun 2014, Spatial pyramid pooling in deep convolutional networks for "
        "visual recognition, abstract",
    ),
    "generalized": _claim(
        "Poolings that generalize maximum and average were not significantly better than these two",
        "VGG-16, Open Images v5",
        "Bieder, Sandkühler and Cattin 2021, Comparison of methods generalizing max- and "
        "average-pooling, abstract",
    ),
    "global-average": _claim(
        "A global average in place of linear layers is less prone to overfitting",
        "CIFAR-10 and CIFAR-100",
        "Lin, Chen and Yan 2014, Network in network, abstract",
    ),
    EFFECTIVE_FIELD: _claim(
        "The part of the receptive field that matters is about Gaussian, and only a fraction of "
        "what is reached in theory",
        "several architectures",
        "Luo, Li, Urtasun and Zemel 2016, Understanding the effective receptive field in deep "
        "convolutional neural networks, abstract",
    ),
}
