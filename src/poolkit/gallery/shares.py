"""How much of a result came from where: the gradient, as shares that add up to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["as_many_as", "gradient_shares"]


def gradient_shares(
    call: Callable[[Tensor], Tensor], x: Tensor, over: tuple[int, ...] = (0, 1)
) -> Tensor:
    """The size of the gradient of the sum of ``call(x)``, summed over the axes `over`, as shares.

    >>> import poolkit
    >>> x = torch.tensor([[[1.0, 5.0, 2.0]]])
    >>> gradient_shares(lambda x: poolkit.avg_pool1d(x, 3), x).tolist()
    [0.3333..., 0.3333..., 0.3333...]
    >>> gradient_shares(lambda x: poolkit.max_pool1d(x, 3), x).tolist()
    [0.0, 1.0, 0.0]
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(call(x).sum(), x)
    size = gradient.abs().sum(over, dtype=torch.float64)
    return size / size.sum()


def as_many_as(shares: Tensor) -> float:
    """As many values with equal shares would be as unequal: ``1 / Σ share²``.

    >>> as_many_as(torch.tensor([0.25, 0.25, 0.25, 0.25])), as_many_as(torch.tensor([1.0, 0.0]))
    (4.0, 1.0)
    """
    return float(1 / shares.square().sum())
