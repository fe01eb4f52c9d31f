"""Find every pooling that a model really runs, and say what each costs and what it loses.

>>> import torch
>>> from torch import nn
>>> from poolkit.inspection import inspect
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
>>> report = inspect(model, torch.zeros(1, 3, 10, 10), seconds=0)
>>> [(layer.name, layer.window, layer.out_shape) for layer in report.layers]
[('1', '2×2', [1, 4, 4, 4])]
"""

from poolkit.inspection.diff import ReportDiff, diff
from poolkit.inspection.inspector import inspect
from poolkit.inspection.records import AccuracyRecord, Flag, LayerRecord, Loss, Photograph
from poolkit.inspection.report import Report

__all__ = [
    "AccuracyRecord",
    "Flag",
    "LayerRecord",
    "Loss",
    "Photograph",
    "Report",
    "ReportDiff",
    "diff",
    "inspect",
]
