# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Two reports compared, and a report in a notebook and in a TensorBoard log."""

from __future__ import annotations

import json
from html import unescape

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")

import numpy as np
from torch import nn

from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.inspection import Report, diff, inspect
from poolkit.inspection.diff import FIGURES, load
from poolkit.inspection.records import LayerRecord

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first
        if second is not None:
            self.second = second

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


def of(*modules: nn.Module, x: torch.Tensor = X, seconds: float = 0) -> Report:
    return inspect(Net(*modules), x, seconds=seconds, pictures=False)


def test_a_report_does_not_differ_from_itself():
    report = of(nn.MaxPool2d(2), nn.AvgPool2d(2))
    found = report.diff(report)
    assert (found.removed, found.added, found.changes, found.compared) == ([], [], [], 2)
    assert str(found).splitlines()[-1] == "2 layers in both, 0 of them changed; 0 gone, 0 new."


def test_what_changed_is_said_with_both_figures():
    found = of(nn.MaxPool2d(2)).diff(of(nn.AvgPool2d(3, 2, 1)))
    texts = {change.what: change.text for change in found.changes}
    assert texts["operation"] == "operation: max → average"
    assert texts["window"] == "window: 2×2 → 3×3, stride 2, padding 1"
    assert texts["share of the top input"] == "share of the top input: 1.000 → 0.111"
    assert texts["counts-padding"].startswith("now counts-padding: 23 % of the averages")
    assert "output" not in texts
    back = {c.text for c in of(nn.AvgPool2d(3, 2, 1)).diff(of(nn.MaxPool2d(2))).changes}
    assert "no longer counts-padding" in back


def test_layers_are_matched_by_name_not_by_number():
    found = of(nn.MaxPool2d(2)).diff(of(nn.MaxPool2d(2), nn.AvgPool2d(2)))
    assert (found.added, found.removed, found.compared) == (["second"], [], 1)
    found = of(nn.MaxPool2d(2), nn.AvgPool2d(2)).diff(of(nn.MaxPool2d(2)))
    assert (found.added, found.removed) == ([], ["second"])
    assert "- second is gone" in str(found)


def test_another_checkpoint_has_other_zeros_and_losses():
    before, after = of(nn.MaxPool2d(2)), of(nn.MaxPool2d(2), x=X * (X > 0.5))
    changed = {change.what: change for change in before.diff(after).changes}
    assert changed["zeros"].before == 0
    assert changed["zeros"].after == after.layers[0].zeros
    assert {change.kind for change in changed.values()} <= {"input", "loss"}


def test_times_differ_from_a_quarter_on_and_only_if_both_were_measured():
    report = of(nn.MaxPool2d(2)).to_dict()
    slower = json.loads(json.dumps(report))
    report["layers"][0]["torch_ms"] = 1.0
    for ms, differs in ((1.2, False), (1.3, True), (0.7, True), (None, False)):
        slower["layers"][0]["torch_ms"] = ms
        assert bool(diff(report, slower).changes) == differs
    slower["layers"][0]["torch_ms"] = 2.0
    assert diff(report, slower).changes[0].text == "time in torch: 1.00 ms → 2.00 ms"


def test_every_figure_is_one_of_a_layer():
    fields = set(LayerRecord.__dataclass_fields__)
    assert {figure.path[0] for figure in FIGURES} <= fields


def test_a_diff_as_json():
    found = of(nn.MaxPool2d(2)).diff(of(nn.AvgPool2d(2)))
    data = json.loads(found.to_json())
    assert data["version"] == 2
    assert data["changes"][0] == {
        "layer": "first", "kind": "structure", "what": "operation",
        "before": "max", "after": "average", "text": "operation: max → average",
    }  # fmt: skip


def test_reports_are_read_back(tmp_path):
    report = of(nn.MaxPool2d(2))
    path = tmp_path / "a.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert load(path) == json.loads(report.to_json())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, PoolValueError, "there is no file"),
        ("{", PoolValueError, "is not JSON"),
        ("[]", PoolTypeError, "is not a report. Write one with: poolkit inspect MODEL --json"),
        ('{"layers": [], "version": 1}', PoolValueError, "has version 1 of the report, not 2"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, error, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        load(path)


# ---------------------------------------------------------------- notebooks


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    report = inspect(Net(nn.MaxPool2d(2)), X, name='<a "name">', seconds=0)
    html = report._repr_html_()
    assert html.startswith('<iframe srcdoc="')
    assert html.count('"') == 2 * 5  # nothing of the page ends an attribute
    page = unescape(html.split('"')[1])
    assert page.startswith("<!doctype html>")
    assert "Content-Security-Policy" in page


# ---------------------------------------------------------------- TensorBoard


class Recorded:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars, self.images, self.texts = {}, {}, {}

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag] = (scalar_value, global_step)

    def add_image(self, tag, img_tensor, global_step, dataformats):
        assert dataformats == "HWC"
        self.images[tag] = img_tensor

    def add_text(self, tag, text_string, global_step):
        self.texts[tag] = text_string


def test_a_log_has_figures_flags_and_pictures():
    report = inspect(Net(nn.AvgPool2d(3, 2, 1)), X, seconds=0)
    writer = Recorded()
    report.to_tensorboard(writer, step=7)
    layer = report.layers[0]
    assert writer.scalars["pooling/first/aliasing"] == (layer.loss.aliasing, 7)
    assert writer.scalars["pooling/first/max/gradient_top"] == (1.0, 7)
    assert "pooling/first/torch_ms" not in writer.scalars
    assert writer.texts["pooling/first/flags"].startswith("- **wrong: counts-padding**")
    strip = writer.images["pooling/first/strip"]
    assert strip.dtype == np.uint8
    assert strip.shape == (layer.pictures.strip_size[1], layer.pictures.strip_size[0], 3)


def test_what_writes_no_log_is_refused():
    with pytest.raises(PoolTypeError, match="a list writes no TensorBoard log"):
        of(nn.MaxPool2d(2)).to_tensorboard([])


@pytest.mark.filterwarnings("ignore")  # of packages that it needs
def test_a_real_log_is_written_and_read(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    report = inspect(Net(nn.MaxPool2d(2)), X, seconds=0)
    with SummaryWriter(str(tmp_path)) as writer:
        report.to_tensorboard(writer, step=3)
    log = EventAccumulator(str(tmp_path)).Reload()
    event = log.Scalars("pooling/first/gradient_coverage")[0]
    assert (event.step, event.value) == (3, pytest.approx(0.25))
    assert {"pooling/first/strip", "pooling/first/gradient"} <= set(log.Tags()["images"])
