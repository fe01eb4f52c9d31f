"""Which film comes next? A user's past in windows of time, MovieLens 100k, and what a leak adds.

Each rating of the test is a question: which film does this user rate at this moment t? The films
that the user rated before t are pooled by `poolkit.events.WindowPool` into one vector, and all
films that the user has not rated are ranked by their product with it. Only the window and the
reduction change: means, decays, the last n, attention to the last few. Films' vectors are those of
PureSVD, learned from the ratings of the training period alone, so that the mean of all history is
PureSVD itself, and stands in where a window sees nothing. Where there is no history at all, films
are ranked by how often they were rated before that day.

Ratings are split by time: from the first 80 % the vectors are learned, the next 10 % choose
windows, half-lives, numbers of events and sharpness, the last 10 % are the test.

Half of a user's ratings share their second with the one before, as films are rated by the page. At
t nothing of that second is seen, and the other films of that second, right answers as well, are
neither candidates nor mistakes. What such rules are worth is measured. The same questions are
answered by four that break one:

- same second: what stands before a rating in the log is seen, though it has the same second;
- event at t: the rating itself is seen, with its second;
- random vectors: learned from as many ratings drawn from all, whenever they were given;
- random split: these vectors, and all that is known of the user, whenever it happened, as where
  a random tenth of the ratings is the test and nobody looks at the time.

    python -m poolkit.examples.history

The ratings come with the recbole package, which is found but never imported. Intervals need scipy.

Sources: Paolo Cremonesi, Yehuda Koren and Roberto Turrin, "Performance of recommender algorithms on
top-N recommendation tasks", 2010 (PureSVD); Qiao Liu, Yifu Zeng, Refuoe Mokhosi and Haibin Zhang,
"STAMP: short-term attention/memory priority model for session-based recommendation", 2018
(attention to what came last); F. Maxwell Harper and Joseph A. Konstan, "The MovieLens datasets:
history and context", 2015.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poolkit.benchmark.document import Section, as_markdown
from poolkit.comparison.statistics import PairedDifference, paired_difference
from poolkit.events import Column, Lookup, WindowPool, attend, decay, last

from .movielens import Ratings, load, split_by_time

__all__ = [
    "LEAKS", "Measures", "answers", "film_vectors", "interests", "lesson", "measured", "moments",
    "popularity", "rank_of", "unrated",
]  # fmt: skip

DIM = 32
WINDOWS = ("all", "30d", "7d", "1d", "1h")
HALF_LIVES = ("1m", "3m", "10m", "1h", "1d", "7d", "30d")
LAST = (1, 3, 5, 10, 20, 50)
ATTENDED = (1, 5)  # of how many last films attention asks for the mean
SHARPNESS = (0.3, 1.0, 3.0, 10.0)
DAY = 86_400  # seconds

Key = tuple[str, str]
"""A reduction and a window: the two halves of the name of a `WindowPool`'s column."""
REFERENCE: Key = ("mean", "all")

# --- what is seen ------------------------------------------------------------------------------

LEAKS = ("none", "same second", "event at t", "random vectors", "random split")


def moments(ratings: Ratings, leak: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """When each rating happened, and when it asks: datetime64[us] (ratings), twice.

    Ratings see what is strictly earlier than they ask. With "same second", those of one user and
    one second are numbered in ticks as they lie in the log, as the rows of a table would be. With
    "event at t" a rating asks a tick later, with "random split" a tick after the last one of its
    user.
    """
    time = ratings.time.astype("datetime64[s]").astype("datetime64[us]")
    tick = np.timedelta64(1, "us")
    if leak == "event at t":
        return time, time + tick
    if leak == "random split":
        _, end = np.unique(ratings.user[::-1], return_index=True)  # sorted by time: the last
        return time, time[::-1][end][ratings.user] + tick
    if leak == "same second":
        order = np.lexsort((ratings.time, ratings.user))  # stable: ties as in the log
        new = np.diff(ratings.user[order], prepend=-1) | np.diff(ratings.time[order], prepend=-1)
        row = np.arange(len(ratings))
        place = np.empty_like(row)
        place[order] = row - np.maximum.accumulate(np.where(new != 0, row, 0))
        time = time + place * tick
    return time, time


def unrated(ratings: Ratings, asked: np.ndarray, ever: bool = False) -> np.ndarray:
    """The candidates of each question, bool (asked, films): what its user has not rated up to that
    second, or not `ever`; and the film itself."""
    candidates = np.ones((len(asked), len(ratings.genres)), dtype=bool)
    for user in np.unique(ratings.user[asked]):
        mine = np.flatnonzero(ratings.user == user)
        rows = np.flatnonzero(ratings.user[asked] == user)
        rated = ever | (ratings.time[mine] <= ratings.time[asked[rows], None])
        row, place = np.nonzero(rated)
        candidates[rows[row], ratings.item[mine[place]]] = False
    candidates[np.arange(len(asked)), ratings.item[asked]] = True
    return candidates


# --- who answers -------------------------------------------------------------------------------


def film_vectors(
    ratings: Ratings, known: np.ndarray, draw: np.random.Generator | None = None
) -> np.ndarray:
    """The right singular vectors of users by films, for what is known: float32 (films, DIM).

    Args:
        known: places of the ratings to learn from.
        draw: draws the users with replacement; without, each is taken once.
    """
    from scipy.linalg import eigh

    _, user = np.unique(ratings.user[known], return_inverse=True)
    users = int(user.max()) + 1
    rated = np.zeros((users, len(ratings.genres)))
    rated[user, ratings.item[known]] = 1
    if draw is not None:
        rated *= np.sqrt(draw.multinomial(users, np.full(users, 1 / users)))[:, None]
    _, left = eigh(rated @ rated.T, subset_by_index=[users - DIM, users - 1])
    right = rated.T @ left
    right /= np.linalg.norm(right, axis=0)
    # A root mean square of 1, so that the sharpness of attention is a number of usual size.
    return (right * np.sqrt(len(right) / DIM)).astype(np.float32)


def interests(
    ratings: Ratings,
    asked: np.ndarray,
    table: np.ndarray,
    keys: Sequence[Key],
    leak: str = "none",
    known: np.ndarray | slice = slice(None),
) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
    """Each key, what it makes of the films before each question, (asked, DIM), and whether it saw
    any, bool (asked). `known` are the ratings that there are to be seen."""
    happened, asks = moments(ratings, leak)
    # The order within a second is not known; by number of the film it is at least always the same.
    columns = {"user": ratings.user, "time": happened, "film": ratings.item}
    events = {name: column[known] for name, column in columns.items()}
    events["vector"] = table[events["film"]]
    queries = {"user": ratings.user[asked], "time": asks[asked]}

    def pooled(reduce: Sequence[object], windows: Sequence[str]) -> Mapping[str, np.ndarray]:
        spec = WindowPool(
            key="user", time="time", tie="film", value=Column("vector"), windows=windows,
            reduce=reduce,
        )  # fmt: skip
        return spec.asof(events, queries)

    recent = pooled([last(films) for films in ATTENDED], ["all"])
    names = list(dict.fromkeys(name for name, _ in keys))
    for name in names:
        if name.startswith("attend"):
            _, films, sharpness = name.split("_")
            queries[name] = float(sharpness) * recent[f"last_{films}_all"]
    windows = list(dict.fromkeys(window for _, window in keys))
    out = pooled([_reduction(name) for name in names], windows)
    for name, window in keys:
        yield (name, window), out[f"{name}_{window}"], out[f"seen_{window}"]


def _reduction(name: str) -> object:
    kind, _, rest = name.partition("_")
    if kind == "decay":
        return decay(rest)
    if kind == "last":
        return last(int(rest))
    return attend(name, name=name) if kind == "attend" else kind


def popularity(ratings: Ratings, asked: np.ndarray, window: str) -> np.ndarray:
    """How often each film was rated in a window that ends with the day before each question,
    (asked, films): the same pooling, with films for users."""
    films = np.arange(len(ratings.genres))
    days, place = np.unique(ratings.time[asked] // DAY, return_inverse=True)
    spec = WindowPool(
        key="film", time="time", value=Lookup("film", np.zeros((len(films), 1))),
        windows=[window], reduce=["count"],
    )  # fmt: skip
    out = spec.asof(
        {"film": ratings.item, "time": ratings.time.astype("datetime64[s]")},
        {
            "film": np.tile(films, len(days)),
            "time": np.repeat(days, len(films)).astype("datetime64[D]"),
        },
    )
    return out[f"count_{window}"].reshape(len(days), len(films))[place].astype(np.float32)


def answers(
    ratings: Ratings,
    asked: np.ndarray,
    table: np.ndarray,
    keys: Sequence[Key],
    popular: np.ndarray,
    candidates: np.ndarray,
    leak: str = "none",
    known: np.ndarray | slice = slice(None),
) -> dict[Key, np.ndarray]:
    """The rank of the right film among the candidates, float64 (asked), for each key. `REFERENCE`
    is one of them: it stands in where another sees nothing, and `popular` where it sees nothing."""
    pooled = {
        key: (interest, seen)
        for key, interest, seen in interests(ratings, asked, table, keys, leak, known)
    }
    whole, anything = pooled[REFERENCE]
    found = {}
    for key, (interest, seen) in pooled.items():
        scores = np.where(seen[:, None], interest, whole) @ table.T
        scores = np.where(anything[:, None], scores, popular)
        found[key] = rank_of(scores, candidates, ratings.item[asked])
    return found


def rank_of(scores: np.ndarray, candidates: np.ndarray, film: np.ndarray) -> np.ndarray:
    """The rank of a film in each row of scores, from 1, among the candidates of the row. Others of
    the same score stand before it and behind it by halves.

    >>> candidates = np.array([[True, True, True, False]])
    >>> rank_of(np.array([[3.0, 1.0, 1.0, 9.0]]), candidates, np.array([1]))
    array([2.5])
    """
    own = np.take_along_axis(scores, film[:, None], 1)
    above = np.count_nonzero((scores > own) & candidates, axis=1)
    equal = np.count_nonzero((scores == own) & candidates, axis=1) - 1
    return 1 + above + equal / 2


# --- how good is it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    """How good ranks are.

    Attributes:
        recall10, recall20: how often the film is among the first ten or twenty, (users): the means
            within each user.
        mrr: of its reciprocal rank, likewise.
        by_question: recall@10 of all questions alike, however many of them a user asks.
    """

    recall10: np.ndarray
    recall20: np.ndarray
    mrr: np.ndarray
    by_question: float


def measured(ranks: np.ndarray, user: np.ndarray) -> Measures:
    """
    >>> found = measured(np.array([1.0, 20.0, 11.0]), np.array([7, 7, 9]))
    >>> found.recall10, round(found.by_question, 3)
    (array([0.5, 0. ]), 0.333)
    """
    _, place, count = np.unique(user, return_inverse=True, return_counts=True)
    within = [np.bincount(place, v) / count for v in (ranks <= 10, ranks <= 20, 1 / ranks)]
    return Measures(within[0], within[1], within[2], float(np.mean(ranks <= 10)))


def _chosen(recall: Mapping[Key, float], kind: str) -> Key:
    return max((key for key in recall if key[0].startswith(kind)), key=recall.__getitem__)


def chosen(
    ratings: Ratings, train: np.ndarray, validation: np.ndarray
) -> tuple[str, dict[str, Key]]:
    """The window of popularity, and the best key of each kind, by recall@10 on the validation."""
    user, film = ratings.user[validation], ratings.item[validation]
    candidates = unrated(ratings, validation)
    popular = {window: popularity(ratings, validation, window) for window in WINDOWS}
    recall = {
        window: measured(rank_of(scores, candidates, film), user).recall10.mean()
        for window, scores in popular.items()
    }
    best = max(recall, key=recall.__getitem__)
    names = ["mean", *(f"decay_{h}" for h in HALF_LIVES), *(f"last_{n}" for n in LAST)]
    names += [f"attend_{films}_{sharpness}" for films in ATTENDED for sharpness in SHARPNESS]
    keys = [(name, window) for name in names for window in WINDOWS]
    table = film_vectors(ratings, train)
    ranks = answers(ratings, validation, table, keys, popular[best], candidates)
    reached = {key: float(measured(r, user).recall10.mean()) for key, r in ranks.items()}
    return best, {kind: _chosen(reached, kind) for kind in ("mean", "decay", "last", "attend")}


def at_random(
    ratings: Ratings,
    asked: np.ndarray,
    keys: Sequence[Key],
    popular: np.ndarray,
    candidates: np.ndarray,
    size: int,
    draw: np.random.Generator,
    folds: int = 10,
) -> tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]]:
    """As `answers`, with random vectors and with a random split. One of so many parts of all
    ratings is held out at a time, and its questions are answered by vectors of `size` others, or
    of all others if there are fewer."""
    order = draw.permutation(len(ratings))
    unknown = unrated(ratings, asked, ever=True)
    vectors, split = ({key: np.zeros(len(asked)) for key in keys} for _ in range(2))
    for held in np.array_split(order, folds):
        rows = np.flatnonzero(np.isin(asked, held))
        rest = np.setdiff1d(order, held)
        table = film_vectors(ratings, draw.permutation(rest)[:size], draw)
        given = (ratings, asked[rows], table, keys, popular[rows])
        seen = answers(*given, candidates[rows])
        whole = answers(*given, unknown[rows], "random split", rest)
        for key in keys:
            vectors[key][rows], split[key][rows] = seen[key], whole[key]
    return vectors, split


# --- the table ---------------------------------------------------------------------------------

Runs = dict[Key, list[Measures]]
"""What each seed measured, for each key."""


def _apart(runs: Sequence[Measures], others: Sequence[Measures] | None) -> PairedDifference:
    """Recall@10 less that of others, over seeds and users."""
    recall = np.stack([run.recall10 for run in runs])
    base = np.zeros_like(recall) if others is None else np.stack([o.recall10 for o in others])
    return paired_difference(recall, base)


def _told(found: PairedDifference, sign: str = "") -> str:
    """In per cent, or in points of it, with the interval of 95 %."""
    low, high = found.interval()
    return f"{100 * found.mean:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def _label(key: Key) -> str:
    kind, _, rest = key[0].partition("_")
    if kind == "decay":
        return f"decay, half-life {rest}"
    if kind == "last":
        return "last film" if rest == "1" else f"last {rest}"
    if kind == "attend":
        films, _, sharpness = rest.partition("_")
        asked = "the last film" if films == "1" else f"the mean of the last {films}"
        return f"attention to {asked}, times {float(sharpness):g}"
    return kind


def _named(key: Key) -> str:
    return f"{_label(key)} over {'all history' if key[1] == 'all' else key[1]}"


def rows_of(right: Runs, leaks: Mapping[str, Runs]) -> list[list[str]]:
    """The table: a row for each key, with what each leak adds to it."""
    rows = []
    for key, runs in right.items():
        recall20, mrr, alike = (
            float(np.mean([getattr(run, name) for run in runs]))
            for name in ("recall20", "mrr", "by_question")
        )
        less = "" if key == REFERENCE else _told(_apart(runs, right[REFERENCE]), "+")
        added = [
            _told(_apart(leak[key], runs), "+") if key in leak else "" for leak in leaks.values()
        ]
        recall10 = _told(_apart(runs, None))
        means = [f"{100 * recall20:.1f}", f"{mrr:.3f}", f"{100 * alike:.1f}"]
        rows.append([_label(key), key[1], recall10, *means, less, *added])
    return rows


def lesson(right: Runs, leaks: Mapping[str, Runs]) -> str:
    """What was found, in a few sentences."""
    pooled = {key: runs for key, runs in right.items() if key[0] != "popularity"}
    recall = {key: float(np.mean([run.recall10 for run in runs])) for key, runs in right.items()}
    best = max(pooled, key=recall.__getitem__)

    text = (
        f"The best here is {_named(best)}: recall@10 {100 * recall[best]:.1f} % where "
        f"{_named(REFERENCE)} has {100 * recall[REFERENCE]:.1f} %"
    )
    if best != REFERENCE:
        text += f", {_told(_apart(right[best], right[REFERENCE]), '+')} points"
    text += "."
    better: list[str] = []
    worse: list[str] = []
    level: list[str] = []
    for key in pooled:
        if key != REFERENCE:
            low, high = _apart(right[key], right[REFERENCE]).interval()
            (better if low > 0 else worse if high < 0 else level).append(_named(key))
    parts = [
        f" {what}: {'; '.join(keys)}."
        for what, keys in (
            ("Better than it, beyond the interval", better),
            ("Worse", worse),
            ("Not to be told apart", level),
        )
        if keys
    ]
    text += "".join(parts)
    for name, runs in leaks.items():
        added = {key: _apart(runs[key], right[key]).mean for key in runs}
        most, least = (f(added, key=added.__getitem__) for f in (max, min))
        text += (
            f"\n\n{name[0].upper()}{name[1:]} would have added {100 * added[least]:+.1f} points "
            f"({_named(least)}) to {100 * added[most]:+.1f} ({_named(most)})."
        )
        crowned = max(runs, key=lambda key: float(np.mean([run.recall10 for run in runs[key]])))
        if crowned != best:
            text += f" It would have put {_named(crowned)} first."
    return text


def told(ratings: Ratings, parts: Sequence[np.ndarray], seeds: int, best: Mapping[str, Key]) -> str:
    """What the table is about."""
    train, validation, test = parts
    user, time = ratings.user[test], ratings.time[test]
    shared = sum(
        np.count_nonzero((ratings.user == u) & (ratings.time == t)) > 1
        for u, t in zip(user, time, strict=True)
    )
    new = ~np.isin(user, ratings.user[train])
    return (
        f"{len(train)} ratings to learn from, {len(validation)} of "
        f"{len(np.unique(ratings.user[validation]))} users to choose by, {len(test)} of "
        f"{len(np.unique(user))} users to test: {new.mean():.0%} by users who are new, "
        f"{shared / len(test):.0%} share their second with another.\n"
        f"Chosen on the validation: {'; '.join(map(_named, best.values()))}.\n"
        "Recall in per cent; each user counts once, or each question alike where it says so. In "
        f"brackets the 95 % interval over {seeds} seeds, which are draws of the users to learn "
        "from, and over the users of the test. Differences are in points of recall@10, paired.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.examples.history", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=5, help="draws of the users to learn from")
    parser.add_argument("--quick", action="store_true", help="few questions, two seeds")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, as intervals are over seeds and users")
    ratings = load()
    train, validation, test = split_by_time(ratings)
    seeds = options.seeds
    if options.quick:
        validation, test, seeds = validation[::20], test[::10], 2
    folds = 3 if options.quick else 10
    window, best = chosen(ratings, train, validation)

    keys = [("last_1", "all"), *(("mean", w) for w in WINDOWS)]
    keys = list(dict.fromkeys([*keys, *best.values()]))
    user, candidates = ratings.user[test], unrated(ratings, test)
    popular = popularity(ratings, test, window)
    by_popularity = measured(rank_of(popular, candidates, ratings.item[test]), user)
    right: Runs = {("popularity", window): [by_popularity] * seeds, **{key: [] for key in keys}}
    leaks: dict[str, Runs] = {name: {key: [] for key in keys} for name in LEAKS[1:]}
    for seed in range(seeds):
        table = film_vectors(ratings, train, np.random.default_rng(seed))
        given = (keys, popular, candidates)
        found = {leak: answers(ratings, test, table, *given, leak) for leak in LEAKS[:3]}
        draw = np.random.default_rng(seed)
        random = at_random(ratings, test, *given, len(train), draw, folds)
        found |= zip(LEAKS[3:], random, strict=True)
        for key in keys:
            right[key].append(measured(found["none"][key], user))
            for name, runs in leaks.items():
                runs[key].append(measured(found[name][key], user))

    print(told(ratings, (train, validation, test), seeds, best))
    columns = [
        "reduction", "window", "recall@10", "recall@20", "MRR", "recall@10 by question",
        "less mean of all",
        *(f"falsely added: {name}" for name in leaks),
    ]  # fmt: skip
    print(as_markdown(Section("Which film comes next?", columns, rows_of(right, leaks))))
    print(f"\n{lesson(right, leaks)}")


if __name__ == "__main__":
    main()
