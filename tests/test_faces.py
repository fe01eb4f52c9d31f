# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The built-in example, with its real weights and real photographs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from torch import nn

from poolkit.errors import PoolValueError
from poolkit.examples import detection, faces

real = pytest.mark.skipif(
    find_spec("facenet_pytorch") is None or find_spec("skimage") is None,
    reason="needs facenet-pytorch (--no-deps) and scikit-image",
)


@real
@pytest.mark.parametrize(("name", "right"), [("P-Net", 0.995), ("R-Net", 1.0), ("O-Net", 1.0)])
def test_accuracy_on_labelled_crops(name, right):
    assert faces.accuracy(faces.load(name), name) == pytest.approx(right)


@real
def test_poolkits_pools_answer_the_same_and_averages_do_not():
    rows = {row.network: row for row in faces.accuracies()}
    assert all(row.poolkit == row.torch for row in rows.values())
    assert rows["R-Net"].averaged == pytest.approx(0.72)


@real
def test_weights_fit_and_the_package_is_not_imported():
    import sys

    sizes = [sum(p.numel() for p in faces.load(name).parameters()) for name in faces.CROP_SIZES]
    assert sizes == [6_632, 100_178, 389_040]
    assert "facenet_pytorch" not in sys.modules


@real
def test_the_astronaut_is_found():
    (face,) = detection.detect(faces.photograph("astronaut"))
    left, top, right, bottom = face.box
    assert face.probability > 0.99
    # Her face lies around (222, 118); the eyes are above the mouth, left of right.
    assert left < 205 < 240 < right
    assert top < 95 < 145 < bottom
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_mouth[0] < right_mouth[0]
    assert all(left < x < right and top < y < bottom for x, y in face.landmarks)


@real
def test_no_face_in_a_cup_of_coffee():
    assert detection.detect(faces.photograph("coffee")) == []
    marked = detection.marked_photograph("coffee")
    assert marked.boxes == []
    assert marked.caption.startswith("Coffee: 0 faces found")


@real
def test_the_example_is_windows_with_a_face_first():
    model, (small, large) = detection.example(count=32)
    assert (small.shape, large.shape) == ((32, 3, 24, 24), (32, 3, 48, 48))
    with torch.no_grad():
        assert model(small, large)[1][0][0] > 0.99


@real
def test_an_unknown_photograph():
    with pytest.raises(PoolValueError, match="scikit-image ships no photograph named 'nobody'"):
        faces.photograph("nobody")


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(PoolValueError) as caught:
        faces.load("R-Net")
    assert "pip install --no-deps facenet-pytorch==2.6.0" in str(caught.value)


def test_windows_beyond_the_border_are_black():
    pixels = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    cut = detection.windows(pixels, torch.tensor([[-10.0, -10.0, 10.0, 10.0, 1.0]]), 4)
    assert cut.shape == (1, 3, 4, 4)
    assert torch.all(cut[0, :, :2, :] == -127.5 / 128)
    assert torch.all(cut[0, :, 2:, 2:] == 127.5 / 128)
    assert detection.windows(pixels, torch.zeros(0, 5), 4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    "box", [[30, 30, 40, 40], [-40, 3, -30, 13], [-10, -10, 30, 30], [5, 5, 5, 5], [19, 0, 20, 1]]
)
def test_windows_may_lie_anywhere(box):
    pixels = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    (cut,) = detection.windows(pixels, torch.tensor([[*box, 1.0]]), 4)
    left, top, right, bottom = box
    inside = max(0, min(20, right) - max(0, left)) * max(0, min(20, bottom) - max(0, top))
    share = inside / max(1, (right - left) * (bottom - top))
    assert float((cut * 128 + 127.5).mean() / 255) == pytest.approx(share, abs=0.02)


def test_suppression_keeps_the_best_of_what_overlaps():
    boxes = torch.tensor(
        [[0, 0, 10, 10, 0.5], [1, 0, 11, 10, 0.9], [20, 20, 30, 30, 0.7], [2, 2, 4, 4, 0.6]]
    )
    assert detection._kept(boxes, 0.5).tolist() == [1, 2, 3]
    assert detection._kept(boxes, 0.5, of_smaller=True).tolist() == [1, 2]


def test_of_very_many_boxes_the_best_are_looked_at():
    count = 50_000  # held against each other they would take 20 GB
    boxes = torch.zeros(count, 5)
    boxes[:, :2] = 10 * torch.arange(count)[:, None]
    boxes[:, 2:4] = boxes[:, :2] + 5
    boxes[:, 4] = torch.arange(count)
    kept = detection._kept(boxes, 0.5)
    assert kept.tolist() == list(range(count - 1, count - 1 - detection._MOST, -1))


def test_networks_pool_with_torch():
    pools = [m for m in faces.ONet().modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride, m.ceil_mode) for m in pools] == [
        (3, 2, True), (3, 2, True), (2, 2, True),
    ]  # fmt: skip
