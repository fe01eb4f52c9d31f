"""Torch's pooling modules under their own names, and the family beyond them.

>>> import torch, poolkit
>>> poolkit.nn.MaxPool2d(3, stride=2, padding=1)(torch.zeros(1, 8, 56, 56)).shape
torch.Size([1, 8, 28, 28])
>>> poolkit.nn.create_pool2d("gem", channels=8)(torch.rand(1, 8, 7, 7)).shape
torch.Size([1, 8, 1, 1])
"""

# isort: off
from .standard import *  # noqa: F403
from .standard import __all__ as _standard  # first: the rooms below build on it

from ..recommenders.crossing import FM, BiInteractionPool
from ..recommenders.interest import Dice, TargetAttention
from ..sequences.bags import EmbeddingBag
from ..sequences.kmax import KMaxPool1d
from ..sequences.merging import TokenMerge
from ..sequences.pooled_attention import BlockMeanKV, PooledAttention
from ..sequences.pooling import SequencePool
from ..sequences.tokens import TokenPool
from ..vision import standard as _listed  # enters the standard ones in the registry
from ..vision.antialias import APSPool2d, BlurPool1d, BlurPool2d, MaxBlurPool2d
from ..vision.attention import (
    PMA,
    AttentionPool2d,
    AttentiveStatsPool,
    GatedAttentionPool,
    MAPPool2d,
    SimPool2d,
)
from ..vision.codebook import NetVLAD
from ..vision.convolution import ConvPool2d, DepthwiseConvPool2d, move_stride
from ..vision.detail import DetailPreservingPool2d, ImportanceLogit, LocalImportancePool2d
from ..vision.frequency import SpectralPool2d, WaveletPool2d
from ..vision.generalized import (
    GeMPool2d,
    GlobalGeMPool2d,
    LSEPool2d,
    MedianPool2d,
    QuantilePool2d,
    SoftPool2d,
    StdPool2d,
    TopKPool2d,
)
from ..vision.mixed import GatedPool2d, MixedPool2d, TreePool2d
from ..vision.morphology import Closing2d, Dilation2d, Erosion2d, Opening2d
from ..vision.multiscale import ASPP, SPP, PyramidPool2d, StripPool2d
from ..vision.ordered import LEAPPool2d, ModePool2d, OrdinalPool2d, RankPool2d
from ..vision.regions import PrRoIPool, RoIAlign, RoIPool
from ..vision.registry import create_pool2d, pools2d
from ..vision.resolution import keep_resolution
from ..vision.second_order import BilinearPool2d, CompactBilinearPool2d, CovariancePool2d
from ..vision.stochastic import S3Pool2d, StochasticPool2d

# isort: on

__all__ = [
    "ASPP",
    "FM",
    "PMA",
    "SPP",
    "APSPool2d",
    "AttentionPool2d",
    "AttentiveStatsPool",
    "BiInteractionPool",
    "BilinearPool2d",
    "BlockMeanKV",
    "BlurPool1d",
    "BlurPool2d",
    "Closing2d",
    "CompactBilinearPool2d",
    "ConvPool2d",
    "CovariancePool2d",
    "DepthwiseConvPool2d",
    "DetailPreservingPool2d",
    "Dice",
    "Dilation2d",
    "EmbeddingBag",
    "Erosion2d",
    "GatedAttentionPool",
    "GatedPool2d",
    "GeMPool2d",
    "GlobalGeMPool2d",
    "ImportanceLogit",
    "KMaxPool1d",
    "LEAPPool2d",
    "LSEPool2d",
    "LocalImportancePool2d",
    "MAPPool2d",
    "MaxBlurPool2d",
    "MedianPool2d",
    "MixedPool2d",
    "ModePool2d",
    "NetVLAD",
    "Opening2d",
    "OrdinalPool2d",
    "PooledAttention",
    "PrRoIPool",
    "PyramidPool2d",
    "QuantilePool2d",
    "RankPool2d",
    "RoIAlign",
    "RoIPool",
    "S3Pool2d",
    "SequencePool",
    "SimPool2d",
    "SoftPool2d",
    "SpectralPool2d",
    "StdPool2d",
    "StochasticPool2d",
    "StripPool2d",
    "TargetAttention",
    "TokenMerge",
    "TokenPool",
    "TopKPool2d",
    "TreePool2d",
    "WaveletPool2d",
    "create_pool2d",
    "keep_resolution",
    "move_stride",
    "pools2d",
]
__all__ += _standard
del _listed
