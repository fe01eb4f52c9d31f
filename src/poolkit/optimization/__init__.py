"""Pool by poolkit in a model where that is proven and faster: its modules, or its exported graph.

>>> import torch
>>> from torch import nn
>>> from poolkit.optimization import optimize
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, stride=2))
>>> report = optimize(model, torch.zeros(1, 3, 12, 12), seconds=0)
>>> [(layer.name, layer.status) for layer in report.layers]
[('1', 'swapped')]
>>> report.restore()
>>> type(model[1]) is nn.MaxPool2d
True
"""

from poolkit.optimization.optimizer import optimize
from poolkit.optimization.program import ProgramModule, load_program
from poolkit.optimization.records import LayerChange
from poolkit.optimization.report import OptimizeReport

__all__ = ["LayerChange", "OptimizeReport", "ProgramModule", "load_program", "optimize"]
