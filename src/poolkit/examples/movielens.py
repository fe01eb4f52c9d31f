"""Does it matter how a history is pooled? Films that people liked, MovieLens 100k.

A small model says whether a user will give a film four stars or more, from the film (its number
and genres) and the films that the user rated before. Only the pooling of these changes: no history,
sum, mean, bi-interaction, target attention. Who the user is, age and occupation, was tried and left
out: most users of the test are new, and it did not help on the validation.

Ratings are split by time: the first 80 % train, the next 10 % choose the epoch, the last 10 % are
the test. A history holds only what has a strictly earlier timestamp: half of a user's ratings share
theirs with the one before, as films are rated by the page, whose order is not known. The histories
of the test grow with what its users rated before, as they would in use; no weight learns from it.

    python -m poolkit.examples.movielens

The ratings come with the recbole package, which is found but never imported.

Source: F. Maxwell Harper and Joseph A. Konstan, "The MovieLens datasets: history and context",
2015.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import poolkit
from poolkit.errors import PoolValueError

__all__ = [
    "POOLINGS",
    "Model",
    "Ratings",
    "auc",
    "auc_within",
    "histories",
    "interval",
    "load",
    "split_by_time",
]

POOLINGS = ("none", "sum", "mean", "bi-interaction", "target attention")
LIKED = 4  # stars, of 5
LONGEST = 50  # films of a history: the last ones
DIM, BATCH, EPOCHS = 16, 1024, 5

# --- the ratings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratings:
    """All ratings in the order of their time.

    Attributes:
        user, item, stars, time: int64 (ratings); users and items are numbered from 0.
        genres: bool (items, genres), whether a film is of a genre.
    """

    user: np.ndarray
    item: np.ndarray
    stars: np.ndarray
    time: np.ndarray
    genres: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def load(folder: Path | None = None) -> Ratings:
    """The ratings in `folder`, by default that of the recbole package.

    Raises:
        PoolValueError: with the command that installs them, if they are not there.
    """
    folder = _folder_of_recbole() if folder is None else folder
    table = _rows_of(folder / "ml-100k.inter")
    order = np.argsort([float(row["timestamp"]) for row in table], kind="stable")
    _, user = np.unique([row["user_id"] for row in table], return_inverse=True)
    items, item = np.unique([row["item_id"] for row in table], return_inverse=True)
    stars = np.array([float(row["rating"]) for row in table]).astype(np.int64)
    time = np.array([float(row["timestamp"]) for row in table]).astype(np.int64)
    genres = _genres(folder / "ml-100k.item", items)
    return Ratings(user[order], item[order], stars[order], time[order], genres)


def _folder_of_recbole() -> Path:
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise PoolValueError(
            "this example needs the ratings that come with the package recbole, which is not "
            "installed",
            "Install it with: pip install --no-deps recbole",
        )
    return Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"


def _rows_of(path: Path) -> list[dict[str, str]]:
    """A file of tabs whose first line names the columns as ``name:type``."""
    if not path.exists():
        raise PoolValueError(
            f"there is no {path.name} in {path.parent}",
            "Install it again with: pip install --no-deps recbole",
        )
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    names = [name.partition(":")[0] for name in first.split("\t")]
    return [dict(zip(names, line.split("\t"), strict=False)) for line in lines if line]


def _genres(path: Path, items: np.ndarray) -> np.ndarray:
    named = {row["item_id"]: row["class"].split() for row in _rows_of(path)}
    known = sorted({genre for genres in named.values() for genre in genres})
    return np.array([[genre in named[item] for genre in known] for item in items.tolist()])


def histories(ratings: Ratings, longest: int = LONGEST) -> tuple[np.ndarray, np.ndarray]:
    """For each rating, which ratings of the same user have a strictly earlier timestamp.

    Returns:
        The numbers of the last `longest` of them, int64 (ratings, longest) with zeros behind, and
        how many they are (ratings).
    """
    before = np.zeros((len(ratings), longest), dtype=np.int64)
    lengths = np.zeros(len(ratings), dtype=np.int64)
    by_user = np.argsort(ratings.user, kind="stable")  # and by time
    for mine in np.split(by_user, np.flatnonzero(np.diff(ratings.user[by_user])) + 1):
        time = ratings.time[mine]
        earlier = np.searchsorted(time, time, side="left")
        for rating, end in zip(mine, earlier, strict=True):
            seen = mine[max(end - longest, 0) : end]
            before[rating, : len(seen)] = seen
            lengths[rating] = len(seen)
    return before, lengths


def split_by_time(ratings: Ratings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of the first 80 % of the ratings, the next 10 % and the last: to train, to choose,
    to test. Ratings at the moment of a cut go behind it, so that no page is torn."""
    first, second = np.quantile(ratings.time, (0.8, 0.9))
    places = np.searchsorted(ratings.time, (first, second))
    train, validation, test = np.split(np.arange(len(ratings)), places)
    return train, validation, test


# --- how good is it ----------------------------------------------------------------------------


def auc(scores: np.ndarray, liked: np.ndarray) -> float:
    """The share of pairs, one liked and one not, that the scores have in the right order; equal
    scores count half. From the sum of the ranks of those liked (Mann and Whitney, 1947).

    >>> import numpy as np
    >>> float(auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.75
    """
    liked = np.asarray(liked, dtype=bool)
    positive = int(liked.sum())
    pairs = positive * (len(liked) - positive)
    if pairs == 0:
        raise PoolValueError("there is no pair of one liked and one not", "Give some of both")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[liked].sum() - positive * (positive + 1) / 2) / pairs)


def auc_within(scores: np.ndarray, liked: np.ndarray, user: np.ndarray) -> float:
    """`auc` among the ratings of each user, and the mean of these, weighted by their number. What
    says only how generous a user is has 0.5."""
    total = weight = 0.0
    order = np.argsort(user, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
        if 0 < liked[mine].sum() < len(mine):
            total += len(mine) * auc(scores[mine], liked[mine])
            weight += len(mine)
    return total / weight if weight else math.nan


# Of Student's distribution with 1, 2, ... degrees of freedom, at 97.5 %.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of the width of its 95 % confidence interval (NaN for one value).

    >>> interval([1.0, 3.0])
    (2.0, 12.706)
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan
    t = _STUDENT[min(n, len(_STUDENT) + 1) - 2]
    return mean, float(t * np.std(values, ddof=1) / math.sqrt(n))


# --- the model ---------------------------------------------------------------------------------


class Model(nn.Module):
    """The logit that a user likes a film, from the film's vector and the pooled history.

    An event of the history is a film with its stars: the film's vector, scaled and moved by what
    it was given. The pooled events go through a batch normalisation, as in He and Chua (2017): a
    sum over fifty films and a mean are then numbers of one size.

    Args:
        pooling: one of `POOLINGS`.
        genres: bool (films, genres).
    """

    def __init__(self, pooling: str, genres: Tensor, dim: int = DIM) -> None:
        super().__init__()
        self.pooling = pooling
        self.items = nn.Embedding(len(genres), dim)
        self.bias = nn.Embedding(len(genres), 1)
        self.genres = poolkit.nn.EmbeddingBag(genres.shape[1], dim, mode="mean")
        self.register_buffer("of_genre", genres)
        # In the middle of one and five stars an event says nothing.
        self.scale = nn.Parameter((torch.arange(6.0)[:, None] - 3).repeat(1, dim) / 2)
        self.shift = nn.Embedding(6, dim)
        for table in (self.items, self.bias, self.genres, self.shift):
            nn.init.normal_(table.weight, std=0.1)
        self.norm = nn.BatchNorm1d(dim)
        self.head = nn.Sequential(nn.Linear(3 * dim, 32), nn.ReLU(), nn.Linear(32, 1))
        self.pool: nn.Module | None = None  # the last, so that all other weights start alike
        if pooling == "bi-interaction":
            self.pool = poolkit.nn.BiInteractionPool()
        elif pooling == "target attention":
            self.pool = poolkit.nn.TargetAttention(dim)

    def forward(self, item: Tensor, seen: Tensor, lengths: Tensor) -> Tensor:
        """The films (N) and the events of the histories (N, time), of which lengths (N) are there,
        to (N)."""
        films = self.films()
        target = films[item]
        pooled = torch.zeros_like(target)
        if self.pooling != "none":
            # A row for each film with each number of stars, see `event`.
            events = (films[:, None] * self.scale + self.shift.weight).flatten(0, 1)
            pooled = self.norm(self.pooled(events, seen, target, lengths))
        told = torch.cat([target, pooled, target * pooled], 1)
        logit: Tensor = (self.head(told) + self.bias(item))[:, 0]
        return logit

    def films(self) -> Tensor:
        """(films, dim): each film's own vector and the mean of its genres'."""
        of_genre: Tensor = self.of_genre  # type: ignore[assignment]
        every = torch.arange(of_genre.shape[1]).expand_as(of_genre)
        genres: Tensor = self.genres(every, mask=of_genre)
        return self.items.weight + genres

    def pooled(self, events: Tensor, seen: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """(N, dim) from the rows (N, time) of the table of events."""
        if self.pool is None:
            return poolkit.embedding_bag(seen, events, mode=self.pooling, lengths=lengths)
        history = nn.functional.embedding(seen, events)
        if self.pooling == "bi-interaction":
            pairs: Tensor = self.pool(history, poolkit.Segments(lengths=lengths))
            return pairs
        attended: Tensor = self.pool(history, target, lengths=lengths)
        return attended


def event(item: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """The row of a film with its stars, 0 to 5, in the table of events."""
    return item * 6 + stars


@dataclass(frozen=True)
class Task:
    """The ratings as tensors, and which of them are for what.

    Attributes:
        ratings: in the order of their time; liked: bool (ratings).
        item: int64 (ratings).
        seen, lengths: int64 (ratings, longest) and (ratings), the events of the histories.
        train, validation, test: places of ratings.
    """

    ratings: Ratings
    item: Tensor
    seen: Tensor
    lengths: Tensor
    liked: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def task_of(ratings: Ratings, quick: bool = False) -> Task:
    """Split by time; `quick` takes a few ratings of each part."""
    train, validation, test = split_by_time(ratings)
    if quick:
        train, validation, test = train[-6000:], validation[:1000], test[:2000]
    before, lengths = histories(ratings)
    return Task(
        ratings,
        item=torch.from_numpy(ratings.item),
        seen=torch.from_numpy(event(ratings.item, ratings.stars)[before]),
        lengths=torch.from_numpy(lengths),
        liked=ratings.stars >= LIKED,
        train=train,
        validation=validation,
        test=test,
    )


def train(task: Task, pooling: str, seed: int, epochs: int) -> np.ndarray:
    """The scores of the test's ratings, by the epoch that is best on the validation's."""
    torch.manual_seed(seed)
    model = Model(pooling, torch.from_numpy(task.ratings.genres))
    wanted = torch.from_numpy(task.liked.astype(np.float32))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, weight_decay=1e-4)
    shuffle = torch.Generator().manual_seed(seed)

    def logits(chosen: Tensor) -> Tensor:
        lengths = task.lengths[chosen]
        seen = task.seen[chosen, : max(int(lengths.max()), 1)]
        found: Tensor = model(task.item[chosen], seen, lengths)
        return found

    def scores(chosen: np.ndarray) -> np.ndarray:
        model.eval()
        with torch.no_grad():
            parts = [logits(part) for part in torch.from_numpy(chosen).split(2000)]
        return torch.cat(parts).double().numpy()

    best, kept = 0.0, np.zeros(len(task.test))
    for _ in range(epochs):
        model.train()
        order = torch.from_numpy(task.train)[torch.randperm(len(task.train), generator=shuffle)]
        for chosen in order.split(BATCH):
            if len(chosen) == 1:  # has no deviation to normalise by
                continue
            loss = nn.functional.binary_cross_entropy_with_logits(logits(chosen), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reached = auc(scores(task.validation), task.liked[task.validation])
        if reached > best:
            best, kept = reached, scores(task.test)
    return kept


def baselines(task: Task) -> dict[str, np.ndarray]:
    """What needs no model: the film's mean in training, the user's mean in the history, and both.
    Means are drawn to the mean of all by five ratings, which is also what the unknown have."""
    ratings = task.ratings
    stars = ratings.stars.astype(np.float64)
    overall = stars[task.train].mean()
    films = len(ratings.genres)
    count = np.bincount(ratings.item[task.train], minlength=films)
    total = np.bincount(ratings.item[task.train], stars[task.train], minlength=films)
    film = ((total + 5 * overall) / (count + 5))[ratings.item[task.test]]
    lengths = task.lengths[task.test]
    given = (task.seen[task.test] % 6).double()[:, :, None]
    seen = poolkit.pool(given, poolkit.Segments(lengths=lengths), "sum")[:, 0].numpy()
    user = (seen + 5 * overall) / (lengths.numpy() + 5)
    return {
        "film's mean in training": film,
        "user's mean so far": user,
        "both, added": film + user,
    }


# --- the table ---------------------------------------------------------------------------------


def _told(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def lesson(found: dict[str, list[float]], within: dict[str, list[float]]) -> str:
    """What pooling changed, in a few sentences, from the AUCs of each pooling by seed."""
    history = {name: values for name, values in found.items() if name != "none"}
    best = max(history, key=lambda name: float(np.mean(history[name])))
    gain = [a - b for a, b in zip(history[best], found["none"], strict=True)]
    text = (
        f"Pooling the history by {best} moves the AUC from {np.mean(found['none']):.3f} without "
        f"one to {np.mean(history[best]):.3f} ({_told(gain, '+')})."
    )
    apart = float(np.mean(within[best]) - np.mean(within["none"]))
    text += (
        f" Among the ratings of one user it goes from {np.mean(within['none']):.3f} to "
        f"{np.mean(within[best]):.3f}"
    )
    if apart < float(np.mean(gain)) / 4:
        text += ": what the model takes from a history is mostly how generous its user is"
    text += "."
    level: list[str] = []
    behind: list[str] = []
    for name, values in history.items():
        if name == best:
            continue
        mean, half = interval([a - b for a, b in zip(history[best], values, strict=True)])
        (behind if mean > half else level).append(f"{name} ({mean:.4f})")
    if behind:
        text += f" Behind it, beyond the noise of the seeds: {', '.join(behind)}."
    if level:
        text += f" Not to be told from it by these seeds: {', '.join(level)}."
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.examples.movielens", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each pooling")
    parser.add_argument("--quick", action="store_true", help="few ratings, two seeds, one epoch")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    seeds, epochs = (min(options.seeds, 2), 1) if options.quick else (options.seeds, EPOCHS)
    task = task_of(load(), options.quick)
    liked, user = task.liked[task.test], task.ratings.user[task.test]
    known = np.isin(user, task.ratings.user[task.train]).mean()
    print(
        f"{len(task.train)} ratings to train, {len(task.validation)} to choose the epoch, "
        f"{len(task.test)} to test: {liked.mean():.1%} of these are liked, {known:.1%} by users "
        f"seen in training.\nAUC, and its mean within users; ± is the half width of the 95 % "
        f"interval over {seeds} seeds.\n"
    )
    print(f"{'':26}{'AUC':>18}{'within users':>20}{'less no history':>20}")
    for name, scores in baselines(task).items():
        print(f"{name:26}{auc(scores, liked):>18.4f}{auc_within(scores, liked, user):>20.4f}")
    found: dict[str, list[float]] = {}
    within: dict[str, list[float]] = {}
    for name in POOLINGS:
        runs = [train(task, name, seed, epochs) for seed in range(seeds)]
        found[name] = [auc(scores, liked) for scores in runs]
        within[name] = [auc_within(scores, liked, user) for scores in runs]
        more = [a - b for a, b in zip(found[name], found["none"], strict=True)]
        label = "no history" if name == "none" else name
        gained = "" if name == "none" else _told(more, "+")
        print(
            f"{label:26}{_told(found[name]):>18}{_told(within[name]):>20}{gained:>20}", flush=True
        )
    print("\n" + lesson(found, within))


if __name__ == "__main__":
    main()
