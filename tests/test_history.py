"""The example of histories: what is seen, who is a candidate, and what a leak does."""

from __future__ import annotations

import numpy as np
import pytest

import poolkit

pytest.importorskip("torch")
pytest.importorskip("scipy")
for name in ("cyclopts", "rich"):
    pytest.importorskip(name)

from poolkit.examples import history, movielens  # noqa: E402
from poolkit.examples.movielens import Ratings  # noqa: E402

INSTALLED = movielens.find_spec("recbole") is not None


def log(rows: list[tuple[int, int, int]], films: int) -> Ratings:
    """Of (user, film, time), in the order of their time."""
    user, item, time = np.array(sorted(rows, key=lambda row: row[2])).T
    return Ratings(user, item, np.full(len(user), 4), time, np.ones((films, 1), dtype=bool))


def drawn(users: int = 60, films: int = 40, seed: int = 0) -> Ratings:
    """Users who like one half of the films, and rate up to three in one second."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        mine = rng.permutation(films // 2)[:15] + films // 2 * (user % 2)
        seconds = np.sort(rng.integers(0, 40 * history.DAY, 9))
        rows += [
            (user, int(film), int(t)) for film, t in zip(mine, rng.choice(seconds, 15), strict=True)
        ]
    return log(rows, films)


SMALL = log([(0, 3, 10), (0, 1, 20), (0, 2, 20), (1, 2, 20), (0, 0, 30), (0, 4, 90)], films=6)


def seen(ratings: Ratings, leak: str) -> list[list[int]]:
    """Which ratings of its user each rating sees, by the library itself: vectors are one-hot."""
    films = np.eye(len(ratings.genres), dtype=np.float32)
    every = np.arange(len(ratings))
    ((_, pooled, any_),) = history.interests(ratings, every, films, [("mean", "all")], leak)
    assert (any_ == pooled.any(axis=1)).all()
    return [np.flatnonzero(row).tolist() for row in pooled]


def test_what_each_leak_sees() -> None:
    assert seen(SMALL, "none") == [[], [3], [3], [], [1, 2, 3], [0, 1, 2, 3]]
    assert seen(SMALL, "same second") == [[], [3], [1, 3], [], [1, 2, 3], [0, 1, 2, 3]]
    at_t = [[3], [1, 2, 3], [1, 2, 3], [2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert seen(SMALL, "event at t") == at_t
    whole = [0, 1, 2, 3, 4]
    assert seen(SMALL, "random split") == [whole, whole, whole, [2], whole, whole]


def test_no_question_sees_its_own_event_or_second() -> None:
    ratings = drawn()
    rows = np.arange(len(ratings))
    table = np.eye(40, dtype=np.float32)
    keys = [("mean", "all"), ("last_5", "7d"), ("decay_1d", "all"), ("attend_1_3.0", "all")]
    same = (ratings.user[:, None] == ratings.user) & (ratings.time[:, None] == ratings.time)
    place, other = np.nonzero(same)
    assert len(place) > len(rows)  # there are ties
    for _, pooled, _ in history.interests(ratings, rows, table, keys):
        assert (pooled[place, ratings.item[other]] == 0).all()
    for _, pooled, _ in history.interests(ratings, rows, table, keys, "event at t"):
        assert (pooled[rows, ratings.item] > 0).all()


def test_candidates() -> None:
    candidates = history.unrated(SMALL, np.array([1, 4]))
    assert candidates.tolist() == [
        [True, True, False, False, True, True],  # film 2 of that second is no mistake
        [True, False, False, False, True, True],
    ]
    ever = history.unrated(SMALL, np.array([1]), ever=True)
    assert ever.tolist() == [[False, True, False, False, False, True]]


def test_ranks_and_means() -> None:
    scores = np.array([[5.0, 4.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    candidates = np.array([[False, True, True, True], [True, True, True, False]])
    assert history.rank_of(scores, candidates, np.array([2, 0])).tolist() == [2.5, 2.0]
    found = history.measured(np.array([1.0, 15.0, 30.0]), np.array([4, 4, 2]))
    assert found.recall10.tolist() == [0.0, 0.5]  # by user: 2, then 4
    assert found.recall20.tolist() == [0.0, 1.0]
    assert found.by_question == pytest.approx(1 / 3)
    assert found.mrr.tolist() == pytest.approx([1 / 30, (1 + 1 / 15) / 2])


def test_vectors_are_those_of_the_known_ratings() -> None:
    ratings = drawn(users=80, films=50)
    known = np.flatnonzero(ratings.time < 20 * history.DAY)
    table = history.film_vectors(ratings, known)
    rated = np.zeros((80, 50))
    rated[ratings.user[known], ratings.item[known]] = 1
    _, _, right = np.linalg.svd(rated)
    right = right[: history.DIM].T
    want = right @ right.T * 50 / history.DIM  # up to a rotation
    np.testing.assert_allclose(table @ table.T, want, atol=1e-5)
    changed = Ratings(
        ratings.user, np.where(ratings.time < 20 * history.DAY, ratings.item, 0),
        ratings.stars, ratings.time, ratings.genres,
    )  # fmt: skip
    np.testing.assert_array_equal(history.film_vectors(changed, known), table)
    draws = [history.film_vectors(ratings, known, np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] @ draws[0].T - draws[2] @ draws[2].T).max() > 0.01


def test_popularity_is_of_earlier_days() -> None:
    day = history.DAY
    ratings = log([(0, 0, 5), (1, 0, day + 1), (2, 1, day + 2), (3, 0, 9 * day)], films=2)
    asked = np.arange(4)
    assert history.popularity(ratings, asked, "all").tolist() == [[0, 0], [1, 0], [1, 0], [2, 1]]
    assert history.popularity(ratings, asked, "7d").tolist() == [[0, 0], [1, 0], [1, 0], [0, 0]]


def runs_of(ratings: Ratings) -> tuple[dict[str, float], np.ndarray]:
    """The recall@10 of the mean with each leak, and the places of the questions."""
    train, _, test = movielens.split_by_time(ratings)
    keys = [("mean", "all"), ("last_1", "all")]
    popular = history.popularity(ratings, test, "30d")
    given = (keys, popular, history.unrated(ratings, test))
    table = history.film_vectors(ratings, train)
    found = {
        leak: history.answers(ratings, test, table, *given, leak) for leak in history.LEAKS[:3]
    }
    draw = np.random.default_rng(0)
    random = history.at_random(ratings, test, *given, len(train), draw, folds=4)
    found |= zip(history.LEAKS[3:], random, strict=True)
    return {leak: (1 / ranks[keys[1]]).mean() for leak, ranks in found.items()}, test


def test_seeing_the_event_adds_what_is_not_there() -> None:
    ratings = drawn(users=100)
    reached, test = runs_of(ratings)
    assert ratings.time[test].min() > np.quantile(ratings.time, 0.89)
    assert reached["event at t"] > reached["none"] + 0.1
    # Where nothing can be learned from what came just before, the other leaks have nothing to add.
    assert abs(reached["same second"] - reached["none"]) < 0.1


def test_what_stands_in_where_nothing_is_seen() -> None:
    """For the hour all history, and for that what is popular: here film 5."""
    table = np.eye(6, dtype=np.float32)
    popular = np.tile(np.array([0, 0, 0, 0, 0, 1], np.float32), (2, 1))
    asked, every = np.array([0, 5]), np.ones((2, 6), dtype=bool)
    keys = [("mean", "all"), ("last_1", "1s")]
    ranks = history.answers(SMALL, asked, table, keys, popular, every)
    # Film 3 at 10: all but film 5 score alike. Film 4 at 90: behind films 0 to 3, before film 5 by
    # half. The second before sees nothing, so it ranks as all history does.
    assert ranks[keys[0]].tolist() == ranks[keys[1]].tolist() == [4.0, 5.5]


def test_split_by_time() -> None:
    ratings = drawn()
    parts = movielens.split_by_time(ratings)
    assert np.concatenate(parts).tolist() == list(range(len(ratings)))
    ends = [(ratings.time[part].min(), ratings.time[part].max()) for part in parts]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]


def run_of(*recall: float) -> list[history.Measures]:
    values = np.array(recall)
    return [history.Measures(values, values, values, 0.5)] * 2


def test_table_and_lesson_are_of_the_figures() -> None:
    mean, short = ("mean", "all"), ("decay_3m", "1h")
    right = {
        ("popularity", "30d"): run_of(0.0, 0.2, 0.1, 0.1),
        mean: run_of(0.0, 0.2, 0.2, 0.2),
        short: run_of(0.2, 0.4, 0.4, 0.4),
    }
    leaks = {
        "event at t": {mean: run_of(0.5, 0.7, 0.7, 0.7), short: run_of(0.6, 0.8, 0.8, 0.8)},
        "random split": {mean: run_of(0.1, 0.3, 0.4, 0.4), short: run_of(0.1, 0.3, 0.3, 0.3)},
    }
    rows = history.rows_of(right, leaks)
    assert [row[:2] for row in rows] == [
        ["popularity", "30d"], ["mean", "all"], ["decay, half-life 3m", "1h"],
    ]  # fmt: skip
    assert rows[0][7:] == ["", ""]
    assert rows[1][2].startswith("15.0 (")
    assert rows[1][6] == ""
    assert rows[2][3:7] == ["35.0", "0.350", "50.0", "+20.0 (+20.0 to +20.0)"]
    assert rows[1][7] == "+50.0 (+50.0 to +50.0)"
    assert rows[2][7] == "+40.0 (+40.0 to +40.0)"
    told = history.lesson(right, leaks)
    assert "The best here is decay, half-life 3m over 1h: recall@10 35.0 %" in told
    assert "Better than it, beyond the interval: decay, half-life 3m over 1h." in told
    assert "Event at t would have added +40.0 points (decay, half-life 3m over 1h)" in told
    assert "Random split would have added -10.0 points" in told
    assert told.count("It would have put") == 1
    assert "It would have put mean over all history first." in told


def test_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        history.main(["--seeds", "1"])
    assert "--seeds must be at least 2" in capsys.readouterr().err
    monkeypatch.setattr(movielens, "find_spec", lambda name: None)
    with pytest.raises(poolkit.PoolValueError, match="pip install --no-deps recbole"):
        history.main(["--quick"])


@pytest.mark.skipif(not INSTALLED, reason="recbole is not installed")
def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    history.main(["--quick"])
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    head, rows = rows[0], rows[2:]
    assert rows[0][0] == "| popularity"
    assert {row[0] for row in rows} >= {"| last film", "| mean"}
    assert [row[1] for row in rows if row[0] == "| mean"] == list(history.WINDOWS)
    for kind in ("decay", "last 1", "attention"):
        assert any(row[0].startswith(f"| {kind}") for row in rows), kind
    leak = head.index("falsely added: event at t")
    assert all(float(row[leak].split()[0]) > 5 for row in rows[1:])
    assert "The best here is" in printed
