"""What each pooling does to a history of films: `docs/recommenders.md`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import nn as pools
from ..core import pool
from ..examples.faces import package_folder
from ..recommenders.crossing import fm_interaction
from ..recommenders.interest import decayed_mean
from ..reductions import Soft
from ..windows import Segments
from .drawing import FAINT, Sheet
from .shares import gradient_shares

__all__ = ["pictures"]

LIKED = 4.0  # stars, of 5
DIM = 32
LONGEST = 20
HALF_LIFE = 30.0  # days
USER = 483  # who likes two kinds of films
TARGETS = ("Terminator, The", "Persuasion")


@dataclass(frozen=True)
class Likes:
    """The films that people gave four stars or more, by user and time.

    Attributes:
        user, item: int64 (likes); days: of the time, float64.
        titles: of the items, from 1.
    """

    user: np.ndarray
    item: np.ndarray
    days: np.ndarray
    titles: list[str]


def load() -> Likes:
    """MovieLens 100k, which comes with the recbole package."""
    folder = package_folder("recbole", "--no-deps recbole") / "dataset_example" / "ml-100k"
    with (folder / "ml-100k.inter").open(encoding="utf-8") as lines:
        next(lines)
        table = np.loadtxt(lines, dtype=np.float64)
    with (folder / "ml-100k.item").open(encoding="utf-8", newline="") as lines:
        named = {int(row[0]): row[1] for row in list(csv.reader(lines, delimiter="\t"))[1:]}
    titles = [named.get(item, "") for item in range(max(named) + 1)]
    user, item, _, seconds = table[table[:, 2] >= LIKED].T
    order = np.lexsort((item, seconds, user))
    return Likes(
        user[order].astype(np.int64), item[order].astype(np.int64), seconds[order] / 86400, titles
    )


def embeddings(likes: Likes) -> Tensor:
    """A unit vector for each film, (items, DIM): films are near that the same people like.

    The leading eigenvectors of the positive pointwise mutual information of films in the likes of
    one user, less where few users liked both.
    """
    liked = np.zeros((likes.user.max() + 1, len(likes.titles)))
    liked[likes.user, likes.item] = 1
    both = liked.T @ liked
    np.fill_diagonal(both, 0)
    each = both.sum(1)
    expected = np.outer(each, each) / both.sum()
    ratio = np.divide(both, expected, out=np.ones_like(both), where=both > 0)
    information = np.log(ratio).clip(0) * both / (both + 10)
    values, vectors = np.linalg.eigh(information)
    leading = vectors[:, -DIM:] * np.sqrt(values[-DIM:].clip(0))
    return F.normalize(torch.from_numpy(leading), dim=1).float()


class Interest(nn.Module):
    """Whether a film comes next: its product with the history that attends to it, and a bias."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.attention = pools.TargetAttention(table.shape[1], activation="relu", softmax=True)
        self.out = nn.Linear(table.shape[1], 1)
        self.bias = nn.Embedding(len(table), 1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        table: Tensor = self.table  # type: ignore[assignment]
        wanted = table[target]
        interest = self.attention(table[history], wanted, history > 0)
        logits: Tensor = (self.out(interest * wanted) + self.bias(target))[:, 0]
        return logits


def learned(likes: Likes, table: Tensor, epochs: int) -> Interest:
    """The attention of someone's earlier likes to the next one, against films drawn at random."""
    histories, targets = _next_likes(likes)
    torch.manual_seed(0)
    model = Interest(table)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(targets)).split(512):
            history = histories[batch].repeat(2, 1)
            others = torch.randint(1, len(table), batch.shape)
            logits = model(history, torch.cat([targets[batch], others]))
            truth = torch.arange(len(logits)) < len(batch)
            loss = F.binary_cross_entropy_with_logits(logits, truth.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def _next_likes(likes: Likes) -> tuple[Tensor, Tensor]:
    """Films, and the last ones that the same user had liked at a strictly earlier time: (likes,
    LONGEST) with zeros behind."""
    histories, targets = [], []
    starts = np.flatnonzero(np.diff(likes.user, prepend=-1, append=-1))
    for start, end in pairwise(starts):
        days = likes.days[start:end]
        for place, before in enumerate(np.searchsorted(days, days)):
            if before >= 3:
                seen = likes.item[start : start + before][-LONGEST:]
                histories.append(np.pad(seen, (0, LONGEST - len(seen))))
                targets.append(likes.item[start + place])
    return torch.from_numpy(np.stack(histories)), torch.from_numpy(np.stack(targets))


def pictures(quick: bool = False) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each picture; `quick` leaves the attention as it starts."""
    likes = load()
    table = embeddings(likes)
    model = learned(likes, table, 0 if quick else 2)
    yield "recommenders.png", history_of(likes, table, model, USER)


def history_of(likes: Likes, table: Tensor, model: Interest, user: int) -> bytes:
    """Films down, poolings across: the share of each film in the result."""
    films, days = likes.item[likes.user == user], likes.days[likes.user == user]
    ages = torch.from_numpy(days[-1] - days)[None].float()
    x = table[torch.from_numpy(films)][None]
    whole = Segments(lengths=[len(films)])
    columns = {
        "mean": gradient_shares(lambda x: x.mean(1), x, (0, 2)),
        f"decayed_mean\nhalf-life {HALF_LIFE:.0f} d": gradient_shares(
            lambda x: decayed_mean(x, ages, HALF_LIFE), x, (0, 2)
        ),
        "max": gradient_shares(lambda x: pool(x, whole, "max"), x, (0, 2)),
        "Soft(8)": gradient_shares(lambda x: pool(x, whole, Soft(8)), x, (0, 2)),
        "FM pairs": shares_of_pairs(x[0]),
    }
    numbers = {title: number for number, title in enumerate(likes.titles)}
    for target in TARGETS:
        wanted = table[numbers[target]][None]
        name = f"TargetAttention\nto {short(target, 18)}"
        columns[name] = attention_weights(model.attention, x, wanted)
    cell, left, top = (99, 24), 236, 48
    page = Sheet(left + cell[0] * len(columns) + 10, top + cell[1] * len(films) + 12)
    shares = torch.stack(list(columns.values()), 1).numpy()
    page.table(left, top, shares, cell, [""] * len(films), list(columns))
    page.text(left - 8, top - 12, "days ago", 10.5, ha="right", color=FAINT)
    for index, film in enumerate(films.tolist()):
        y = top + (index + 0.5) * cell[1]
        page.text(10, y, short(likes.titles[film], 28), 11)
        page.text(left - 8, y, f"{ages[0, index]:.0f}", 10.5, ha="right", color=FAINT)
    return page.png()


def attention_weights(attention: pools.TargetAttention, x: Tensor, target: Tensor) -> Tensor:
    """The weight of each event of a history (1, T, C): the softmax of what its network says."""
    scores: list[Tensor] = []
    hook = attention.unit.register_forward_hook(lambda *seen: scores.append(seen[2]))
    try:
        attention(x, target)
    finally:
        hook.remove()
    return scores[0].flatten().softmax(0)


def shares_of_pairs(fields: Tensor) -> Tensor:
    """Of ``Σ_{i<j} <x_i, x_j>`` half of the products that a field takes part in, as shares."""
    halves = fields * (fields.sum(0) - fields) / 2
    return halves.sum(1) / fm_interaction(fields)


def short(title: str, most: int) -> str:
    """A title with its article in front, cut where it is longer than `most`.

    >>> short("Empire Strikes Back, The", 30), short("Empire Strikes Back, The", 12)
    ('The Empire Strikes Back', 'The Empire...')
    """
    words, comma, article = title.rpartition(", ")
    if comma and article in ("The", "A", "An", "Das", "Il"):
        title = f"{article} {words}"
    return title if len(title) <= most else f"{title[: most - 2].rstrip()}..."
