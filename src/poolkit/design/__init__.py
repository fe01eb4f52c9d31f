"""A network's poolings on paper: what each does to the input's geometry, and what others cost.

>>> import torch
>>> from torch import nn
>>> from poolkit.design import advise
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
>>> advice = advise(model, torch.Size([1, 3, 32, 32]))
>>> [(site.name, site.sees, site.jump) for site in advice.sites]
[('2', [4, 4], [2, 2])]
"""

from poolkit.design.advising import advise
from poolkit.design.records import Alternative, Claim, Draft, Site
from poolkit.design.report import Advice

__all__ = ["Advice", "Alternative", "Claim", "Draft", "Site", "advise"]
