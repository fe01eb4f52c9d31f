"""Which pooling is better in a model, on its data, with what certainty and at what cost."""

from poolkit.comparison.comparing import compare
from poolkit.comparison.data import Data, Split, load_data
from poolkit.comparison.models import vgg
from poolkit.comparison.records import VariantRow
from poolkit.comparison.report import Comparison

__all__ = ["Comparison", "Data", "Split", "VariantRow", "compare", "load_data", "vgg"]
