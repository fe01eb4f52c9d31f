# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The report of an inspection: pictures, JSON, page, table, and how files are written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

import torch.nn.functional as F
from models import Calls
from torch import nn

from poolkit.errors import MissingExtraError, PoolError, PoolValueError
from poolkit.files import write_whole
from poolkit.inspection import Report, inspect
from poolkit.inspection.page import render
from poolkit.inspection.pictures import feature_maps, palette, png

# ---------------------------------------------------------------- pictures


def test_channels_that_vary_most_come_first():
    before = torch.zeros(2, 3, 4, 4)
    before[0, 1] = torch.arange(16.0).reshape(4, 4)
    before[0, 2, 0, 0] = 1
    before[1, 0] = torch.randn(4, 4) * 100  # the second sample does not count
    maps = feature_maps(before, F.max_pool2d(before, 2), rank=2)
    assert [m.channel for m in maps] == [1, 2, 0]
    assert (maps[0].low, maps[0].high, maps[0].before_shape, maps[0].after_shape) == (
        0.0, 15.0, (4, 4), (2, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "rank", "shapes"),
    [
        ((2, 3, 8), (2, 3, 4), 1, ((1, 8), (1, 4))),
        ((2, 3, 8, 8), (2, 3), 2, ((8, 8), (1, 1))),
        ((2, 3, 4, 6, 8), (2, 3, 2, 3, 4), 3, ((6, 8), (3, 4))),
        ((3, 8, 8), (3, 4, 4), 2, ((8, 8), (4, 4))),
        ((2, 3, 8), (2, 3), 1, ((1, 8), (1, 1))),
        ((3, 8), (3, 4), 1, ((1, 8), (1, 4))),
    ],
)
def test_maps_of_every_rank_are_shown(before, after, rank, shapes):
    first, *_ = maps = feature_maps(torch.randn(before), torch.randn(after), rank)
    assert len(maps) == 3
    assert (first.before_shape, first.after_shape) == shapes
    assert first.before.startswith(b"\x89PNG")


def test_maps_that_do_not_match_are_not_shown():
    assert feature_maps(torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2), 2) == []
    assert feature_maps(torch.randn(0, 3, 4, 4), torch.randn(0, 3, 2, 2), 2) == []


def test_a_picture_is_enlarged_by_repeating_and_survives_nan():
    import io

    from PIL import Image

    plane = torch.tensor([[0.0, 1.0], [float("nan"), float("inf")]])
    image = Image.open(io.BytesIO(png(plane, 0.0, 1.0)))
    assert image.size == (128, 128)
    colours = image.convert("RGB")
    corners = [colours.getpixel(at) for at in ((0, 0), (127, 0), (0, 127), (127, 127))]
    scale = palette()
    assert corners == [
        tuple(scale[:3]), tuple(scale[254 * 3 : 255 * 3]), (128, 128, 128),
        tuple(scale[254 * 3 : 255 * 3]),
    ]  # fmt: skip


def test_the_colour_scale_gets_lighter_in_every_step():
    colours = palette()
    assert len(colours) == 256 * 3
    linear = [(c / 255 / 12.92) if c < 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colours]
    luminance = [
        0.2126 * linear[i] + 0.7152 * linear[i + 1] + 0.0722 * linear[i + 2]
        for i in range(0, 255 * 3, 3)
    ]
    # Rounding to bytes may turn one step into none, and no more.
    assert all(b > a * 0.99 for a, b in pairwise(luminance))
    assert all(b > a for a, b in pairwise(luminance[::8]))
    assert luminance[0] < 0.02 < 0.8 < luminance[-1]


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
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:image/|#)""", page)
    assert not re.search(r"\sstyle=", page)
    assert "url(" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy is not None
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    assert f"sha256-{digest}" in policy[1]


def test_page_escapes_names_and_describes_pictures(report):
    page = render(report)
    assert "<b>Net</b>" not in page
    assert "&lt;b&gt;Net&lt;/b&gt;" in page
    assert all('alt="' in tag for tag in re.findall(r"<img [^>]*>", page))
    assert re.search(r'alt="Channel \d before: 8 by 8, from [-\d.e]+ to [-\d.e]+, mean', page)
    assert "One value sees 4×4 of the 8×8 input" in page


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
