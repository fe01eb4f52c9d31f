"""Attention pooling: one vector, or a few, that say themselves what they look at.

All but `AttentionPool2d`, which knows places, take maps (N, C, H, W) and tokens (N, T, C) alike.
Their masks are true where a token is there; the others count nothing, whatever they hold, and of
no tokens the result is zeros.

`AttentionPool2d`, `MAPPool2d` and `SimPool2d` run torch's attention, which on the CPU has first
derivatives in reverse alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import pool
from ..errors import (
    PoolError,
    PoolTypeError,
    PoolValueError,
    checked_size,
    describe,
    is_torch_tensor,
)
from ..functional import Size, global_avg_pool2d
from ..sequences.attentive import (
    attentive_pool,
    attentive_stats,
    in_full_precision,
    segment_softmax,
    widened,
    without_absent,
)
from ..windows import Global, Segments
from .maps import checked_maps
from .registry import listed

__all__ = [
    "PMA",
    "AttentionPool2d",
    "AttentiveStatsPool",
    "GatedAttentionPool",
    "MAPPool2d",
    "SimPool2d",
]


@listed(
    "attention",
    kind="global",
    formula="attention over the positions and their mean, which asks; positions are learned",
    parameters="4 (C² + C) + C (1 + H W)",
    gradient="all positions, by their attention and through it",
    cost="2 C² products per position",
    paper="Radford et al. 2021 (CLIP)",
)
class AttentionPool2d(nn.Module):
    """Attention over all positions, asked by their mean: what pools the ResNets of CLIP.

    The mean and the descriptors are C-dimensional tokens, to which learned positions are added;
    the mean is the only query of a multi-head attention over all of them.

    Args:
        channels: C of the input.
        input_size: height and width of the maps for which the positions are learned. For maps of
            another size they are interpolated bicubically.
        heads: of the attention, a divisor of `channels`; by default so that each has 64 channels
            or more.
        output_channels: of the result; by default `channels`.

    Shape: (N, C, H, W) to (N, output_channels); without N for an input without. The parameters
        have the names, shapes and order of CLIP's.

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, heads that do not divide the channels,
            and inputs that do not fit.

    Source: Alec Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", 2021.

    >>> pool = AttentionPool2d(64, input_size=7, output_channels=32)
    >>> pool(torch.rand(2, 64, 7, 7)).shape, pool(torch.rand(2, 64, 9, 5)).shape
    (torch.Size([2, 32]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        channels: int,
        input_size: Size = 7,
        heads: int | None = None,
        output_channels: int | None = None,
    ) -> None:
        super().__init__()
        size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(size) != 2:
            raise PoolValueError(f"input_size has 2 axes, got {input_size!r}", "Give (H, W)")
        self.channels, self.output_channels = channels, output_channels or channels
        _check_sizes(channels=channels, input_height=size[0], input_width=size[1])
        _check_sizes(output_channels=self.output_channels)
        self.input_size = (int(size[0]), int(size[1]))
        self.heads = _checked_heads(heads, channels)
        positions = 1 + self.input_size[0] * self.input_size[1]
        self.positional_embedding = nn.Parameter(torch.randn(positions, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, self.output_channels)

    def forward(self, input: Tensor) -> Tensor:
        try:
            maps = checked_maps(input, self.channels)
            _check_dtypes(maps, self.q_proj.weight)
        except PoolError as error:
            raise error.during(f"{describe(input)} by AttentionPool2d") from None
        batch = maps if maps.ndim == 4 else maps[None]
        mean = global_avg_pool2d(batch, keepdim=False)
        tokens = torch.cat([mean[:, None], batch.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + self._positions(batch.shape[2], batch.shape[3]).to(tokens.dtype)
        asked = _attention(
            self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens), self.heads
        )
        out: Tensor = self.c_proj(asked[:, 0])
        return out if maps.ndim == 4 else out[0]

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == self.input_size:
            return self.positional_embedding
        learned = widened(self.positional_embedding)
        grid = learned[1:].T.reshape(1, self.channels, *self.input_size)
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([learned[:1], grid[0].flatten(1).T])

    def extra_repr(self) -> str:
        return f"{self.channels}, input_size={self.input_size}, heads={self.heads}"


class PMA(nn.Module):
    """Pooling by multi-head attention: k learned seeds look at a set, and become its k vectors.

    ``PMA(Z) = MAB(S, rFF(Z))`` with ``MAB(S, Z) = LayerNorm(H + rFF(H))``,
    ``H = LayerNorm(S + Multihead(S, Z, Z))``; rFF is a linear map, ReLU and a linear map. The
    result does not depend on the order of the tokens.

    Args:
        channels: C, features of a token.
        seeds: k.
        heads: of the attention, a divisor of `channels`; by default so that each has 64 channels
            or more.

    Shape: (N, T, C) with a mask (N, T), or (N, C, H, W) with a mask (N, H, W) or none, to
        (N, k, C).

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, heads that do not divide the channels,
            and inputs and masks that do not fit.

    Source: Juho Lee, Yoonho Lee, Jungtaek Kim, Adam Kosiorek, Seungjin Choi, Yee Whye Teh, "Set
    Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks", 2019.

    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> pooled = PMA(16, seeds=4)(torch.rand(2, 3, 16), mask)
    >>> pooled.shape, pooled[1].any()
    (torch.Size([2, 4, 16]), tensor(False))
    """

    def __init__(self, channels: int, seeds: int = 1, heads: int | None = None) -> None:
        super().__init__()
        _check_sizes(channels=channels, seeds=seeds)
        self.channels, self.heads = channels, _checked_heads(heads, channels)
        self.seeds = nn.Parameter(nn.init.xavier_uniform_(torch.empty(seeds, channels)))
        self.encode = _feed_forward(channels, channels, nn.ReLU())
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = _feed_forward(channels, channels, nn.ReLU())
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens, mask, alone = _tokens_of(self, input, mask)
        seeds = self.seeds.expand(tokens.shape[0], -1, -1)
        keys, values = self.key_value(self.encode(tokens)).chunk(2, -1)
        asked = _attention(self.query(seeds), keys, values, self.heads, mask)
        hidden = self.norm(seeds + self.project(asked))
        return _zeros_of(self.norm_out(hidden + self.feed_forward(hidden)), alone)

    def extra_repr(self) -> str:
        return f"{self.channels}, seeds={self.seeds.shape[0]}, heads={self.heads}"


@listed(
    "map",
    kind="global",
    formula="y + MLP(LayerNorm(y)), y the attention of a learned query over the positions",
    parameters="12 C² + 12 C, with an MLP of 4 C",
    gradient="all positions, by their attention and through it",
    cost="2 C² products per position",
    paper="Lee et al. 2019; Zhai, Kolesnikov, Houlsby and Beyer 2022",
)
class MAPPool2d(nn.Module):
    """The head of vision transformers without a class token: a learned query, and an MLP.

    ``y = Multihead(q, X, X)`` with a learned q, and the result is ``y + MLP(LayerNorm(y))``, with
    one hidden layer and GELU.

    Args:
        channels: C of the input.
        heads: of the attention, a divisor of `channels`; by default so that each has 64 channels
            or more.
        hidden: of the MLP; by default 4 C.

    Shape: (N, C, H, W) with a mask (N, H, W) or none, or tokens (N, T, C) with a mask (N, T), to
        (N, C).

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, heads that do not divide the channels,
            and inputs and masks that do not fit.

    Source: Xiaohua Zhai, Alexander Kolesnikov, Neil Houlsby, Lucas Beyer, "Scaling Vision
    Transformers", 2022; after Lee et al., see `PMA`.

    >>> MAPPool2d(16)(torch.rand(2, 16, 7, 7)).shape
    torch.Size([2, 16])
    """

    def __init__(self, channels: int, heads: int | None = None, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * channels if hidden is None else hidden
        _check_sizes(channels=channels, hidden=hidden)
        self.channels, self.heads = channels, _checked_heads(heads, channels)
        self.probe = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, channels)))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = _feed_forward(channels, hidden, nn.GELU())

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens, mask, alone = _tokens_of(self, input, mask)
        query = self.query(self.probe).expand(tokens.shape[0], 1, -1)
        keys, values = self.key_value(tokens).chunk(2, -1)
        asked = self.project(_attention(query, keys, values, self.heads, mask)[:, 0])
        return _zeros_of(asked + self.mlp(self.norm(asked)), alone)

    def extra_repr(self) -> str:
        return f"{self.channels}, heads={self.heads}"


@listed(
    "simpool",
    kind="global",
    formula="(Σ a (x - min)^γ)^(1/γ), a the attention that the mean pays to x",
    parameters="2 C² + 2 C",
    gradient="all positions, by their attention and through it",
    cost="C² products per position",
    paper="Psomas, Kakogeorgiou, Karantzalos and Avrithis 2023",
)
class SimPool2d(nn.Module):
    """A generalised mean under the attention that the average of an image pays to its positions.

    With the average u of all positions, and ``Y = LayerNorm(X)``: ``a = softmax(W_k Y · W_q u /
    sqrt(C))``, ``V = Y - min Y`` over the whole image, and the result is ``(Σ a V^γ)^(1/γ)``.

    Args:
        channels: C of the input.
        gamma: γ above 0: 1 for the mean, larger for more of the largest. The paper takes 2 for
            convolutional networks and 1.25 for transformers.
        eps: is added to V, so that its powers have a gradient, above 0.

    Shape: (N, C, H, W) or tokens (N, T, C), to (N, C).

    Raises:
        PoolValueError, PoolTypeError: for sizes and exponents that are not positive, and inputs
            that do not fit.

    Source: Bill Psomas, Ioannis Kakogeorgiou, Konstantinos Karantzalos, Yannis Avrithis, "Keep It
    SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?", 2023.

    >>> SimPool2d(16)(torch.rand(2, 16, 7, 7)).shape
    torch.Size([2, 16])
    """

    def __init__(self, channels: int, gamma: float = 2.0, eps: float = 1e-6) -> None:
        super().__init__()
        _check_sizes(channels=channels)
        for name, number in (("gamma", gamma), ("eps", eps)):
            if not 0 < number < float("inf"):
                raise PoolValueError(
                    f"{name} must be positive and finite, got {number}", f"Give {name} above 0"
                )
        self.channels, self.gamma, self.eps = channels, float(gamma), float(eps)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        tokens, _, alone = _tokens_of(self, input, None)
        if alone is not None:
            raise PoolValueError("there are no tokens to pool", "Give at least one").during(
                f"{describe(input)} by SimPool2d"
            )
        mean = pool(tokens, Global(), "mean", ndim=1, channels_last=True)
        normed = self.norm(tokens)
        query, keys = self.query(mean), self.key(normed)
        with in_full_precision(tokens):
            values = widened(normed)
            values = values - values.amin((1, 2), keepdim=True) + self.eps
            powers = _attention(widened(query), widened(keys), values.pow(self.gamma), 1)
            return powers[:, 0].pow(1 / self.gamma).to(normed.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, gamma={self.gamma:g}"


class _Scored(nn.Module):
    """Pools instances by the softmax of a score of each."""

    channels: int

    def _score(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _scored(
        self, input: Tensor, segments: Segments | Tensor | None
    ) -> tuple[Tensor, Tensor, Segments | Tensor | None]:
        """Instances, a score for each, and which belong together."""
        _check_tensor(input)
        x = input
        if not x.is_nested:
            if x.ndim == 4:
                x, segments = _as_tokens(x, segments)
            elif x.ndim == 2 and not isinstance(segments, Segments):
                if segments is not None:
                    raise PoolTypeError("one bag has no mask", "Give its instances only")
                x = x[None]
            elif x.ndim not in (2, 3):
                raise PoolValueError(
                    f"instances have rank 2 to 4, got rank {x.ndim}",
                    "Give (N, C, H, W), (N, T, C), or rows (instances, C)",
                )
        _check_channels(x, self.channels)
        _check_dtypes(x, next(self.parameters()))
        x = without_absent(x, segments)
        return x, self._score(x).squeeze(-1), segments

    @staticmethod
    def _is_one_bag(input: Tensor, segments: Segments | Tensor | None) -> bool:
        return not input.is_nested and input.ndim == 2 and segments is None


@listed(
    "abmil",
    kind="global",
    formula="Σ a x, a = softmax(w (tanh(V x) · sigmoid(U x)))",
    parameters="2 H C + H, with H hidden units",
    gradient="all positions, by their weight and through it",
    cost="2 H C products per position",
    paper="Ilse, Tomczak and Welling 2018",
    hidden=16,
)
class GatedAttentionPool(_Scored):
    """The mean of the instances of a bag, weighted by a small network: ABMIL.

    ``z = Σ a_i x_i`` with ``a = softmax(w (tanh(V x) · sigmoid(U x)))``, or, without the gate,
    ``softmax(w tanh(V x))``. The weights say which instances made a bag positive.

    Args:
        channels: C, features of an instance.
        hidden: rows of V and U.
        gated: whether there is a U.

    Shape: bags in any form, to (bags, C):

        - rows (instances, C) with `Segments` of offsets or ids; one bag without any, to (C);
        - (N, T, C) with a mask (N, T), or `Segments` of lengths or a mask, or none;
        - a nested tensor;
        - maps (N, C, H, W), whose positions are instances, with a mask (N, H, W) or none.

        With ``return_weights=True`` also the weight of each instance, in the shape that a feature
        of the instances has; 0 for those that are not there.

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, and inputs and segments that do not fit.

    Source: Maximilian Ilse, Jakub Tomczak, Max Welling, "Attention-based Deep Multiple Instance
    Learning", 2018.

    >>> import poolkit
    >>> pool = GatedAttentionPool(16)
    >>> instances = torch.rand(10, 16)
    >>> bags, weights = pool(instances, poolkit.Segments(offsets=[0, 7, 10]), return_weights=True)
    >>> bags.shape, weights[:7].sum().round(decimals=4).item()
    (torch.Size([2, 16]), 1.0)
    """

    def __init__(self, channels: int, hidden: int = 128, gated: bool = True) -> None:
        super().__init__()
        _check_sizes(channels=channels, hidden=hidden)
        self.channels, self.gated = channels, bool(gated)
        self.attend = nn.Linear(channels, hidden, bias=False)
        self.gate = nn.Linear(channels, hidden, bias=False) if gated else None
        self.weigh = nn.Linear(hidden, 1, bias=False)

    def forward(
        self,
        input: Tensor,
        segments: Segments | Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Any:
        try:
            x, scores, layout = self._scored(input, segments)
            bags = attentive_pool(x, scores, layout)
            weights = segment_softmax(scores, layout) if return_weights else None
        except PoolError as error:
            raise error.during(f"{describe(input)} by GatedAttentionPool") from None
        if self._is_one_bag(input, segments):
            bags, weights = bags[0], None if weights is None else weights[0]
        if weights is None:
            return bags
        maps = not input.is_nested and input.ndim == 4
        return bags, weights.reshape(len(input), *input.shape[2:]) if maps else weights

    def _score(self, x: Tensor) -> Tensor:
        hidden = self.attend(x).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(x).sigmoid()
        scores: Tensor = self.weigh(hidden)
        return scores

    def extra_repr(self) -> str:
        return f"{self.channels}, gated={self.gated}"


@listed(
    "attentive_stats",
    kind="global",
    formula="Σ a x and sqrt(Σ a (x - μ)²), a = softmax(v tanh(W x + b))",
    parameters="H C + 2 H, with H hidden units",
    gradient="all positions, by their weight and through it",
    cost="H C products per position",
    paper="Okabe, Koshinaka and Shinoda 2018",
    hidden=16,
)
class AttentiveStatsPool(_Scored):
    """The mean and the standard deviation of the frames of an utterance, weighted by a network.

    ``μ = Σ a_i x_i`` and ``σ = sqrt(Σ a_i (x_i - μ)²)``, joined, with ``a = softmax(v tanh(W x +
    b))``.

    Args:
        channels: C, features of a frame.
        hidden: rows of W.

    Shape: as for `GatedAttentionPool`, to (N, 2 C).

    Raises:
        PoolValueError, PoolTypeError: for sizes below 1, and inputs and segments that do not fit.

    Source: Koji Okabe, Takafumi Koshinaka, Koichi Shinoda, "Attentive Statistics Pooling for Deep
    Speaker Embedding", 2018.

    >>> mask = torch.tensor([[True, True, False]])
    >>> AttentiveStatsPool(24)(torch.rand(1, 3, 24), mask).shape
    torch.Size([1, 48])
    """

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        _check_sizes(channels=channels, hidden=hidden)
        self.channels = channels
        self.attend = nn.Linear(channels, hidden)
        # A bias behind it would be the same for all, and the softmax does not see it.
        self.weigh = nn.Linear(hidden, 1, bias=False)

    def forward(self, input: Tensor, segments: Segments | Tensor | None = None) -> Tensor:
        try:
            x, scores, layout = self._scored(input, segments)
            out = torch.cat(attentive_stats(x, scores, layout), -1)
        except PoolError as error:
            raise error.during(f"{describe(input)} by AttentiveStatsPool") from None
        return out[0] if self._is_one_bag(input, segments) else out

    def _score(self, x: Tensor) -> Tensor:
        scores: Tensor = self.weigh(self.attend(x).tanh())
        return scores

    def extra_repr(self) -> str:
        return f"{self.channels}"


# --- attention -----------------------------------------------------------------------------------


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """(N, queries, C) of the heads' channels side by side; a mask has some token in each row."""
    query, keys, values = (
        part.unflatten(-1, (heads, part.shape[-1] // heads)).transpose(1, 2)
        for part in (query, keys, values)
    )
    seen = None if mask is None else mask[:, None, None, :]
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    return out.transpose(1, 2).flatten(2)


def _feed_forward(channels: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), activation, nn.Linear(hidden, channels))


def _tokens_of(
    module: PMA | MAPPool2d | SimPool2d, input: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Tokens (N, T, C), zero where the mask says nothing; a mask that leaves a token in each row,
    or None; and for which rows there were none, or None."""
    try:
        _check_tensor(input)
        x = input
        if x.is_nested or x.ndim not in (3, 4):
            got = "a nested tensor" if x.is_nested else f"rank {x.ndim}"
            raise PoolValueError(
                f"maps have rank 4 and tokens rank 3, got {got}",
                "Give (N, C, H, W), or (N, T, C) with a mask",
            )
        if mask is not None and not is_torch_tensor(mask):
            raise PoolTypeError(
                f"a mask is a tensor, got {type(mask).__name__}", "Give torch.tensor(mask)"
            )
        if x.ndim == 4:
            x, mask = _as_tokens(x, mask)
        _check_channels(x, module.channels)
        _check_dtypes(x, next(module.parameters()))
        x = without_absent(x, mask)
        if x.shape[1] == 0:  # one that is not there stands for all
            x = x.new_zeros((x.shape[0], 1, x.shape[2]))
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask is None:
            return x, None, None
        mask = mask.to(device=x.device, dtype=torch.bool)
        alone = ~mask.any(1)
        return x, mask | alone[:, None], alone
    except PoolError as error:
        raise error.during(f"{describe(input)} by {type(module).__name__}") from None


def _zeros_of(out: Tensor, alone: Tensor | None) -> Tensor:
    return out if alone is None else out.masked_fill(alone[(..., *[None] * (out.ndim - 1))], 0.0)


# --- what fits -----------------------------------------------------------------------------------


def _as_tokens(x: Tensor, mask: Segments | Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Maps as tokens, and their mask (N, H, W) as one of those."""
    if isinstance(mask, Segments):
        raise PoolTypeError("segments are of rows or tokens, not of maps", "Give a mask (N, H, W)")
    if mask is not None:
        if mask.shape != (x.shape[0], *x.shape[2:]):
            raise PoolValueError(
                f"the mask has shape {tuple(mask.shape)}, the maps {tuple(x.shape)}",
                "Give one truth value for each position: (N, H, W)",
            )
        mask = mask.flatten(1)
    return x.flatten(2).transpose(1, 2), mask


def _check_tensor(x: Any) -> None:
    if not is_torch_tensor(x):
        raise PoolTypeError(
            f"a torch tensor was expected, got {type(x).__name__}", "Convert it: torch.as_tensor"
        )


def _check_channels(x: Tensor, channels: int) -> None:
    if x.shape[-1] != channels:
        raise PoolValueError(
            f"the module is for {channels} channels, the input has {x.shape[-1]}",
            f"Make it with channels={x.shape[-1]}; channels come second in maps, last in tokens",
        )


def _check_dtypes(x: Tensor, parameter: Tensor) -> None:
    kind = x.device.type
    if x.dtype == parameter.dtype or not x.is_floating_point():  # the latter is said elsewhere
        return
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return
    of_x, of_module = (str(part.dtype).removeprefix("torch.") for part in (x, parameter))
    raise PoolTypeError(
        f"the input is {of_x}, the module {of_module}",
        "Convert one of them, or use torch.autocast",
    )


def _check_sizes(**sizes: Any) -> None:
    for name, size in sizes.items():
        checked_size(name, size)


def _checked_heads(heads: int | None, channels: int) -> int:
    if heads is None:
        return max(n for n in range(1, max(channels // 64, 1) + 1) if channels % n == 0)
    _check_sizes(heads=heads)
    if channels % heads:
        raise PoolValueError(
            f"{channels} channels do not make {heads} heads", "Give a divisor of the channels"
        )
    return heads
