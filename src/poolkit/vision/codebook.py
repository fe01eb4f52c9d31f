"""Pooling by a codebook: how the descriptors of an image differ from the words they are like."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import (
    PoolError,
    PoolTypeError,
    PoolValueError,
    checked_size,
    describe,
    is_torch_tensor,
)
from ..sequences.attentive import in_full_precision, widened
from .maps import checked_maps
from .registry import listed
from .second_order import unit

__all__ = ["NetVLAD"]

# Of the first and second word of a descriptor, how much heavier the first is after `init_from`.
RATIO = 100.0
# Elements of the matrix of distances that are held at a time.
HELD = 2**24


@listed(
    "netvlad",
    kind="global",
    formula="Σ a_k(x) (x - c_k) for each of K words, a = softmax(w x + b), normalised twice",
    parameters="2 K C + K",
    gradient="all positions, by their assignment and through it",
    cost="2 K C products per position",
    paper="Arandjelović, Gronat, Torii, Pajdla and Sivic 2016",
    clusters=4,
)
class NetVLAD(nn.Module):
    """A vector of locally aggregated descriptors whose words are learned.

    ``V_k = Σ a_k(x) (x - c_k)`` over all positions, where ``a(x) = softmax(w_k x + b_k)`` assigns
    each descriptor to words k; the columns V_k are divided by their norms, and all by the norm of
    all. It is computed as ``Σ a_k(x) x - c_k Σ a_k(x)``: no residual is ever held.

    Args:
        channels: C of the input, the size of a descriptor.
        clusters: the number K of words.
        alpha: how hard the assignment is at first: ``w = 2 α c``, ``b = -α |c|²`` makes a the
            softmax of ``-α |x - c|²``, which tends to the nearest word for large α. Afterwards w,
            b and c are learned apart.
        normalize_input: whether descriptors are divided by their norms first, as in the paper.

    Shape: (N, C, H, W) to (N, K * C), word after word; without N for an input without.

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, and inputs that do not fit.

    Source: Relja Arandjelović, Petr Gronat, Akihiko Torii, Tomas Pajdla, Josef Sivic, "NetVLAD:
    CNN Architecture for Weakly Supervised Place Recognition", 2016.

    >>> import torch
    >>> pool = NetVLAD(channels=2, clusters=2, normalize_input=False)
    >>> pool = pool.init_from(centroids=torch.tensor([[0.0, 0.0], [4.0, 4.0]]), alpha=50)
    >>> x = torch.tensor([[[1.0, 4.0]], [[0.0, 2.0]]])  # descriptors (1, 0) and (4, 2)
    >>> pool(x)  # the residuals are (1, 0) and (0, -2)
    tensor([ 0.7071,  0.0000,  0.0000, -0.7071], grad_fn=...)
    """

    def __init__(
        self,
        channels: int,
        clusters: int = 64,
        alpha: float = 100.0,
        normalize_input: bool = True,
    ) -> None:
        super().__init__()
        self.channels = checked_size("channels", channels)
        self.clusters = checked_size("clusters", clusters)
        self.normalize_input = normalize_input
        self.alpha = _checked_alpha(alpha)
        self.assign = nn.Conv2d(channels, clusters, 1)
        self.centroids = nn.Parameter(torch.empty(clusters, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random words, about as long as descriptors that were divided by their norms."""
        nn.init.normal_(self.centroids, std=self.channels**-0.5)
        self._assign_to_centroids(self.alpha)

    @torch.no_grad()
    def init_from(
        self,
        descriptors: Tensor | None = None,
        *,
        centroids: Tensor | None = None,
        alpha: float | None = None,
        iterations: int = 20,
        generator: torch.Generator | None = None,
    ) -> NetVLAD:
        """Sets the words, and assigns by the distance to them.

        Args:
            descriptors: (M, C), or maps (N, C, H, W), of which there should be many more than
                words. The words are their k-means clusters, begun as k-means++ does.
            centroids: (clusters, C), instead, from a clustering made elsewhere.
            alpha: how hard the assignment is. By default, with descriptors, such that the nearest
                word weighs on average 100 times as much as the next, as in the paper; else that of
                the constructor.
            iterations: of k-means, at most.
            generator: of random numbers for the first words.

        Returns:
            The module itself.

        Raises:
            PoolValueError, PoolTypeError: for neither or both, for shapes that do not fit, for
                values that are not finite, and for fewer descriptors than words.
        """
        try:
            if (descriptors is None) == (centroids is None):
                raise PoolTypeError(
                    "words come from descriptors or from centroids", "Give one of the two"
                )
            if descriptors is not None:
                rows = self._rows("descriptors", descriptors)
                words = _k_means(rows, self.clusters, iterations, generator)
                alpha = _alpha_of(rows, words) if alpha is None else _checked_alpha(alpha)
            else:
                assert centroids is not None
                words = self._rows("centroids", centroids)
                alpha = _checked_alpha(self.alpha if alpha is None else alpha)
                if len(words) != self.clusters:
                    raise PoolValueError(
                        f"there are {len(words)} centroids for {self.clusters} clusters",
                        f"Make the module with clusters={len(words)}",
                    )
            self.centroids.copy_(words)
            self._assign_to_centroids(alpha)
            return self
        except PoolError as error:
            given = centroids if descriptors is None else descriptors
            raise error.during(f"{describe(given)} by NetVLAD.init_from") from None

    def forward(self, input: Tensor) -> Tensor:
        try:
            maps = checked_maps(input, self.channels)
        except PoolError as error:
            raise error.during(f"{describe(input)} by NetVLAD") from None
        with in_full_precision(maps):
            x = widened(maps if maps.ndim == 4 else maps[None]).flatten(2)
            if self.normalize_input:
                x = unit(x, 1)
            weight, bias = self.assign.weight, self.assign.bias
            assert bias is not None
            scores = F.conv1d(x, weight.flatten(2).to(x.dtype), bias.to(x.dtype))
            shares = scores.softmax(1)
            sums = shares @ x.transpose(1, 2)
            vlad = sums - self.centroids.to(x.dtype) * shares.sum(-1)[..., None]
            out = unit(unit(vlad, 2).flatten(1), 1).to(maps.dtype)
        return out if maps.ndim == 4 else out[0]

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, clusters={self.clusters}, alpha={self.alpha:g}, "
            f"normalize_input={self.normalize_input}"
        )

    @torch.no_grad()
    def _assign_to_centroids(self, alpha: float) -> None:
        self.alpha = alpha
        words = self.centroids.detach()
        self.assign.weight.copy_((2 * alpha * words)[..., None, None])
        assert self.assign.bias is not None
        self.assign.bias.copy_(-alpha * words.square().sum(1))

    def _rows(self, name: str, x: Tensor) -> Tensor:
        if not is_torch_tensor(x) or not x.is_floating_point():
            raise PoolTypeError(f"{name} must be a floating tensor", "Use torch.as_tensor")
        if x.ndim not in (2, 4) or x.shape[1] != self.channels:
            raise PoolValueError(
                f"{name} of {self.channels} channels cannot be {tuple(x.shape)}",
                f"Give (..., {self.channels}) as rows, or maps (N, {self.channels}, H, W)",
            )
        rows = x if x.ndim == 2 else x.flatten(2).transpose(1, 2).reshape(-1, self.channels)
        rows = widened(rows.to(self.centroids.device))
        if not bool(rows.isfinite().all()):
            raise PoolValueError(f"{name} hold infinities or NaN", "Drop those rows")
        return unit(rows, 1) if self.normalize_input and name == "descriptors" else rows


def _checked_alpha(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise PoolTypeError(f"alpha must be a number, got {alpha!r}", "Write alpha=100")
    if not 0 < alpha < math.inf:
        raise PoolValueError(f"alpha must be positive and finite, got {alpha}", "Write alpha=100")
    return float(alpha)


def _k_means(
    rows: Tensor, clusters: int, iterations: int, generator: torch.Generator | None
) -> Tensor:
    if len(rows) < clusters:
        raise PoolValueError(
            f"{len(rows)} descriptors do not make {clusters} clusters", "Give more of them"
        )
    words = _spread_out(rows, clusters, generator)
    owner = rows.new_full((len(rows),), -1, dtype=torch.int64)
    for _ in range(iterations):
        before, owner = owner, _nearest(rows, words, 1)[1][:, 0]
        if torch.equal(owner, before):
            break
        sums = torch.zeros_like(words).index_add(0, owner, rows)
        count = torch.bincount(owner, minlength=clusters)[:, None]
        words = torch.where(count > 0, sums / count.clamp(min=1), words)
    return words


def _spread_out(rows: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    """The first words: each a row, likelier by its squared distance to those that were chosen."""
    odds = rows.new_ones(len(rows))
    chosen: list[Tensor] = []
    for _ in range(clusters):
        # Numbers are drawn on the generator's device, where the odds may not be.
        device = generator.device if generator is not None else odds.device
        total = odds.cumsum(0)
        if total[-1] == 0:  # fewer different rows than words
            total = torch.ones_like(odds).cumsum(0)
        drawn = torch.rand(1, generator=generator, device=device).to(total) * total[-1]
        at = torch.searchsorted(total, drawn, right=True).clamp(max=len(rows) - 1)
        chosen.append(rows[at])
        apart = (rows - chosen[-1]).square().sum(1)
        odds = apart if len(chosen) == 1 else torch.minimum(odds, apart)
    return torch.cat(chosen)


def _nearest(rows: Tensor, words: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The distances to the k nearest words, and which they are."""
    step = max(1, HELD // len(words))
    found = [
        torch.cdist(part, words).topk(k, dim=1, largest=False, sorted=True)
        for part in rows.split(step)
    ]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _alpha_of(rows: Tensor, words: Tensor) -> float:
    if len(words) == 1:
        return 1.0  # there is no other word, and any will do
    first, second = _nearest(rows, words, 2)[0].square().mean(0).tolist()
    if not second > first:
        raise PoolValueError(
            "every descriptor is as near to two words, so none weighs more",
            "Give alpha, fewer clusters or other descriptors",
        )
    return math.log(RATIO) / (second - first)
