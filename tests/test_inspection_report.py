# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The report of an inspection: pictures, JSON, page, table, and how files are written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

import numpy as np
import torch.nn.functional as F
from models import Calls
from PIL import Image
from torch import nn

from poolkit import Global, Max, Mean, Sliding
from poolkit.errors import MissingExtraError, PoolError, PoolValueError
from poolkit.files import write_whole
from poolkit.inspection import Report, inspect
from poolkit.inspection.downsampling import Convolved, Pooled
from poolkit.inspection.layers import pictures_of
from poolkit.inspection.page import describe_places, likeness, render
from poolkit.inspection.pictures import (
    DIFFERENCES,
    VALUES,
    gradient_picture,
    layer_pictures,
    palette,
    side_for,
)
from poolkit.inspection.records import Flag
from poolkit.inspection.trace import trace

# ---------------------------------------------------------------- pictures

POOL = Pooled(Sliding(2), Max())


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def shown(before: torch.Tensor, layer=POOL, side: int = 112):
    return layer_pictures(before, layer(before), layer, side)


def test_channels_that_vary_most_come_first():
    before = torch.zeros(2, 3, 4, 4)
    before[0, 1] = torch.arange(16.0).reshape(4, 4)
    before[0, 2, 0, 0] = 1
    before[1, 0] = torch.randn(4, 4) * 100  # the second sample does not count
    pictures = shown(before)
    assert [row.channel for row in pictures.channels] == [1, 2, 0]
    row = pictures.channels[0]
    # Maxima of 2x2: 5, 7, 13, 15.
    assert (row.low, row.high, row.before_mean, row.after_mean) == (0, 15, 7.5, 10)
    assert (pictures.whole, pictures.after_whole) == ((4, 4), (2, 2))


def test_a_strip_shows_what_there_is():
    before = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    pictures = shown(before.reshape(1, 1, 4, 4), Pooled(Sliding(2), Mean()))
    image = pixels(pictures.strip)
    assert image.shape == (32, 4 * 32 + 3, 4)
    scale = palette()
    colours = [tuple(scale[3 * i : 3 * i + 3]) for i in (0, 42, 85, 127)]  # thirds of 127
    # Blocks of equal values come through an average, and back up, as they are.
    for column in range(3):
        tile = image[:, 33 * column : 33 * column + 32, :3]
        corners = [tuple(tile[y, x]) for y, x in ((0, 0), (0, 31), (31, 0), (31, 31))]
        assert corners == colours
    middle = 3 * (VALUES + DIFFERENCES // 2)
    assert (image[:, -32:, :3] == list(scale[middle : middle + 3])).all()
    assert (image[:, 32, 3] == 0).all()  # between two tiles there is nothing


@pytest.mark.parametrize(
    ("shape", "window", "whole", "after"),
    [
        ((2, 3, 16), Sliding(2), (1, 16), (1, 8)),
        ((2, 3, 8, 8), Global(), (8, 8), (1, 1)),
        ((2, 3, 4, 6, 8), Sliding(2), (6, 8), (3, 4)),
        ((1, 3, 8, 8), Sliding(3, stride=2, padding=1), (8, 8), (4, 4)),
    ],
)
def test_maps_of_every_rank_are_shown(shape, window, whole, after):
    pictures = shown(torch.randn(shape), Pooled(window, Max()))
    assert (len(pictures.channels), pictures.whole, pictures.after_whole) == (3, whole, after)
    assert pictures.strip_size == Image.open(io.BytesIO(pictures.strip)).size


def test_large_maps_are_cut_to_their_middle():
    before = torch.zeros(1, 1, 40, 60)
    before[..., 18:22, 28:32] = torch.rand(4, 4) + 1
    pictures = shown(before, side=4)
    assert (pictures.shape, pictures.whole) == ((4, 4), (40, 60))
    assert len(np.unique(pixels(pictures.strip)[:, :32].reshape(-1, 4), axis=0)) > 10


def test_a_layer_that_mixes_channels_has_no_way_back_up():
    weight = torch.randn(5, 3, 3, 3)
    layer = Convolved(Sliding((3, 3), stride=2), weight)
    pictures = shown(torch.randn(1, 3, 9, 9), layer)
    assert pictures.columns == ["before", "after"]
    assert all(row.difference is None for row in pictures.channels)


def test_what_has_nothing_to_show():
    assert shown(torch.zeros(1, 3, 4, 4)[:0]) is None
    assert shown(torch.zeros(1, 3, 4, 4)) is not None


def test_a_picture_survives_what_is_no_number():
    plane = torch.tensor([[0.0, 1.0], [float("nan"), float("inf")]]).reshape(1, 1, 2, 2)
    pictures = shown(plane)
    assert pictures.columns == ["before", "after"]
    colours = pixels(pictures.strip)[..., :3]
    scale = palette()
    corners = [tuple(colours[at]) for at in ((0, 0), (0, 31), (31, 0), (31, 31))]
    bright = tuple(scale[3 * (VALUES - 1) : 3 * VALUES])
    assert corners == [tuple(scale[:3]), bright, (128, 128, 128), bright]


def test_the_gradient_picture_by_hand():
    x = torch.zeros(1, 1, 4, 4)
    x[..., 1::2, 1::2] = 1
    png, (low, high) = gradient_picture(POOL, x)
    assert (low, high) == (0, 1)
    image = pixels(png)[4::8, 4::8, :3]
    bright = list(palette()[3 * (VALUES - 1) : 3 * VALUES])
    assert [[bool((image[y, x] == bright).all()) for x in range(4)] for y in range(4)] == [
        [False] * 4, [False, True] * 2, [False] * 4, [False, True] * 2,
    ]  # fmt: skip
    # Of 3x3 windows at stride 2 the middle of a neighbourhood is seen by four.
    _, (low, high) = gradient_picture(Pooled(Sliding(3, stride=2), Mean()), torch.rand(1, 1, 9, 9))
    assert (low, high) == (pytest.approx(1 / 9), pytest.approx(4 / 9))


def _luminance(colours: bytes) -> list[float]:
    linear = [(c / 255 / 12.92) if c < 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colours]
    return [
        0.2126 * linear[i] + 0.7152 * linear[i + 1] + 0.0722 * linear[i + 2]
        for i in range(0, len(colours), 3)
    ]


def test_the_scale_of_values_gets_lighter_in_every_step():
    assert len(palette()) == 3 * (VALUES + DIFFERENCES + 2)
    luminance = _luminance(palette()[: 3 * VALUES])
    # Rounding to bytes may turn one step into none, and no more.
    assert all(b > a * 0.99 for a, b in pairwise(luminance))
    assert all(b > a for a, b in pairwise(luminance[::8]))
    assert luminance[0] < 0.02 < 0.8 < luminance[-1]


def test_the_scale_of_differences_is_as_dark_at_both_ends():
    colours = palette()[3 * VALUES : 3 * (VALUES + DIFFERENCES)]
    luminance = _luminance(colours)
    half = DIFFERENCES // 2
    assert max(luminance) == luminance[half] > 0.85
    for step in range(1, half + 1):
        assert luminance[half - step] == pytest.approx(luminance[half + step], rel=0.25)
    # Blue against orange: what those who see no red, or no green, tell apart too.
    assert colours[2] > colours[0]
    assert colours[-1] < colours[-3]


# ---------------------------------------------------------------- the report


@pytest.fixture
def report() -> Report:
    torch.manual_seed(0)
    model = Calls(lambda x: F.max_pool2d(x, 2).mean((2, 3)))
    return inspect(model, torch.rand(2, 3, 8, 8), name="<b>Net</b>", seconds=0.01)


def test_json_is_versioned_and_complete(report):
    data = json.loads(report.to_json())
    assert data["version"] == 2
    assert data["model"] == "<b>Net</b>"
    assert data["inputs"] == ["float32[2, 3, 8, 8]"]
    assert [layer["operation"] for layer in data["layers"]] == ["max_pool2d", "mean"]
    assert data["layers"][0]["torch_saved"] == 2 * 8 * 64 * 4 + 2 * 8 * 16 * 8
    assert "pictures" not in data["layers"][0]
    assert data["torch_share"] == pytest.approx(sum(x["torch_share"] for x in data["layers"]))


def test_json_has_no_infinity():
    model = nn.Sequential(nn.LPPool2d(float("inf"), 2))
    data = json.loads(inspect(model, torch.rand(1, 1, 4, 4), seconds=0).to_json())
    assert data["layers"][0]["arguments"]["norm_type"] == "inf"


def test_page_is_self_contained(report):
    page = render(report)
    assert page.count("<script") == page.count("<style") == 1
    assert not re.search(r"""(?:src|href)=["'](?!data:image/|#)""", page)
    assert not re.search(r"\s(?:style|on\w+)=", page)
    assert "url(" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_page_escapes_names_and_describes_pictures(report):
    page = render(report)
    assert "<b>Net</b>" not in page
    assert "&lt;b&gt;Net&lt;/b&gt;" in page
    assert all('alt="' in tag for tag in re.findall(r"<img [^>]*>", page))
    assert re.search(
        r'alt="Before, after, brought back up, difference: channel \d from [-\d.e]+ to [-\d.e]+, '
        r"mean [-\d.e]+ before and [-\d.e]+ after, difference [-\d.e]+ \(root mean square\);",
        page,
    )
    assert "One value sees 4×4 of the 8×8 input" in page
    assert re.search(r'aria-label="2 by 2 places; most often row \d, column \d, with \d+ %', page)
    assert "the new Nyquist limit is at 0.25" in page


def test_page_has_a_link_for_each_layer_that_does_not_depend_on_its_number(report):
    page = render(report)
    ids = re.findall(r'<article class="layer" id="([^"]+)"', page)
    assert ids == ["layer-max_pool2d", "layer-mean"]
    assert all(f'href="#{name}"' in page for name in ids)


def test_a_heat_map_in_words():
    assert describe_places([[0.1, 0.2], [0.3, 0.4]]) == (
        "2 by 2 places; most often row 2, column 2, with 40 % where even shares would be 25 %"
    )


def test_identical_blocks_are_counted_where_they_first_appear():
    model = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2))
    layers = inspect(model, torch.rand(1, 1, 8, 8), seconds=0, losses=False).layers
    assert likeness(layers) == [(0, 2), (0, 0), (1, 1)]


class Deep(nn.Module):
    """Many poolings, on maps of noise: what compresses worst."""

    def __init__(self, poolings: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(poolings))

    def forward(self, x):
        return [pool(x) for pool in self.pools]


def test_200_poolings_are_found():
    report = inspect(Deep(200), torch.rand(1, 4, 56, 56), seconds=0, losses=False, pictures=False)
    assert [layer.name for layer in report.layers] == [f"pools.{n}" for n in range(200)]


def test_a_page_of_200_layers_is_below_5_megabytes():
    deep, x = Deep(3), torch.rand(1, 4, 56, 56)
    report = inspect(deep, x, seconds=0.01)
    found, _ = trace(deep, (x,))
    for layer, traced in zip(report.layers, found, strict=True):
        layer.pictures = pictures_of(traced, side_for(200))
        layer.flags = [Flag("overhang", "wrong", "A sentence. " * 8, "And a fix. " * 5)]
    report.layers = [
        replace(report.layers[n % 3], index=n, name=f"stages.{n}.pool", id=f"stages.{n}.pool")
        for n in range(200)
    ]
    page = render(report)
    assert page.count("<article") == 200
    assert page.count('<figure class="strip') == 200
    assert len(page.encode()) < 5_000_000


def test_pictures_are_larger_where_there_are_few():
    assert side_for(1) == side_for(10) == 112
    assert [side_for(n) for n in (50, 100, 200, 1000)] == [57, 40, 28, 16]


def test_page_without_pooling_says_what_was_looked_for():
    report = inspect(nn.Linear(2, 2), torch.zeros(1, 2), seconds=0)
    page = render(report)
    assert "No pooling ran" in page
    assert "mean, sum, max, min and logsumexp over the spatial axes" in page
    assert json.loads(report.to_json())["layers"] == []


def test_print_shows_the_table(report):
    text = str(report)
    assert "max 2×2" in text
    assert "mean over space axes 2, 3" in text
    assert "When training it keeps" in text
    assert "what is lost" in text
    assert re.search(r"R² [.\d]+ [.\d]+ [.\d]+ +shift", text)


def test_print_shows_the_flags():
    text = str(inspect(nn.AvgPool2d(3, 1, 1), torch.rand(1, 1, 4, 4), seconds=0, pictures=False))
    assert "(model)  wrong  75 % of the averages are pulled towards zero" in text
    assert "Use count_include_pad=False." in text


def test_print_ends_as_before(report):
    text = str(report)
    assert "\x1b" not in text
    assert "PNG" not in repr(report)


@pytest.mark.parametrize(("package", "name"), [("jinja2", "jinja2"), ("PIL", "pillow")])
def test_missing_packages_say_what_to_install(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        render(inspect(nn.MaxPool2d(2), torch.rand(1, 1, 4, 4), seconds=0))
    assert str(caught.value) == (
        f"this part of poolkit needs the package '{name}', which is not installed. "
        "Install it with: pip install 'poolkit[inspect]'."
    )


def test_html_is_written_whole_or_not_at_all(report, tmp_path):
    target = tmp_path / "report.html"
    assert report.to_html(target) == target
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_writing_fails_with_a_reason_and_leaves_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(PoolValueError, match="it is a folder"):
        write_whole(tmp_path, "x")
    with pytest.raises(PoolValueError, match="there is no folder"):
        write_whole(tmp_path / "nowhere" / "report.html", "x")
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(PoolError, match=r"cannot write .*report\.html: No space left on device"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_progress_counts_up_to_the_end():
    seen = []
    model = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2))
    inspect(model, torch.zeros(1, 1, 8, 8), seconds=0, progress=lambda *args: seen.append(args))
    assert seen == [("running the model", 0, 0), ("0", 0, 2), ("1", 1, 2), ("done", 2, 2)]
