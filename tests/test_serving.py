# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The example service: what it answers and refuses, and the benchmark that asks it from threads."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")
if find_spec("facenet_pytorch") is None or find_spec("skimage") is None:
    pytest.skip("needs facenet-pytorch (--no-deps) and scikit-image", allow_module_level=True)

from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.examples import detection, faces
from poolkit.examples.service import FaceService, export_networks

RESIDENT = r"resident +([\d.]+) MiB at first, ([\d.]+) MiB at last, of (\d+) MiB of address space"
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    reports = export_networks(folder, seconds=0)
    assert [len(report.swapped) for report in reports] == [1, 2, 3]
    return folder


@pytest.fixture(scope="module")
def service(folder):
    return FaceService(folder)


def image(name):
    return faces.photograph(name).permute(1, 2, 0).numpy()


def test_the_exported_networks_find_what_the_networks_find(service):
    found = service([image("coffee"), image("astronaut"), np.zeros((12, 13, 3), np.float32)])
    assert [len(one) for one in found] == [0, 1, 0]
    (expected,) = detection.detect(faces.photograph("astronaut"))
    np.testing.assert_allclose(found[1][0].box, expected.box, atol=1e-2)
    assert found[1][0].probability == pytest.approx(expected.probability, abs=1e-4)
    assert service([]) == []


def test_programs_pool_with_poolkit(folder):
    program = torch.export.load(str(folder / "O-Net.pt2"))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("poolkit" in target for target in targets) == 3
    assert not any("max_pool" in target for target in targets)


def test_real_numbers_are_as_good_as_bytes(service):
    pixels = image("astronaut")
    assert service([pixels]) == service([pixels.astype(np.float32) / 255])


def script():
    spec = spec_from_file_location("serving", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["serving"] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    return module


def test_bad_images_are_refused_by_name(service):
    kinds = script().bad_images()
    assert {"NaN", "empty", "huge", "four channels"} <= set(kinds)
    fine = np.zeros((40, 40, 3), np.uint8)
    for kind, (bad, message) in kinds.items():
        with pytest.raises(PoolError) as caught:
            service([fine, bad])
        assert "image 1 " in str(caught.value), kind
        assert message in str(caught.value), kind


def test_a_request_is_a_list_of_so_many(service):
    with pytest.raises(PoolTypeError, match="a request is a list of images, got uint8"):
        service(image("coffee"))
    with pytest.raises(PoolValueError, match="at most 16 images, got 17"):
        service([np.zeros((40, 40, 3), np.uint8)] * 17)


def test_files_that_are_missing_or_damaged(folder, tmp_path):
    with pytest.raises(PoolValueError, match=r"there is no file .*P-Net\.pt2\. Write it with"):
        FaceService(tmp_path)
    (tmp_path / "P-Net.pt2").write_bytes(b"nothing")
    with pytest.raises(PoolValueError, match="is not an exported program"):
        FaceService(tmp_path)


def run(*options):
    return subprocess.run(
        [sys.executable, *sys.flags.no_site * ["-S"], str(SCRIPT), "--threads", "2", *options],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_three_seconds_of_serving():
    ran = run(
        "--seconds", "3", "--tuning", "0", "--drift", "0.9", "--warm-up", "2", "--memory", "3000"
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "errors          0" in ran.stdout
    assert "largest difference from one thread alone  0\n" in ran.stdout
    first, last, limit = map(float, re.search(RESIDENT, ran.stdout).groups())
    assert limit == 3000
    tenths = re.search(r"in tenths +(.+)", ran.stdout)[1].split(", ")
    readings = [first, last, *map(float, tenths)]
    # A process that has loaded torch, and no more than it may have.
    assert all(50 < reading < limit for reading in readings)
    drift = [float(share) for share in re.findall(r"([-+][\d.]+)%", ran.stdout)]
    assert len(drift) == 3
    assert drift[0] >= 0 >= drift[1]  # the highest and the lowest, against the first


def test_the_warm_up_ends_when_all_is_asked_and_the_memory_stands_still():
    serving = script()
    tallies = [serving.Tally(), serving.Tally(asked=set(range(serving.REQUESTS)))]
    still = [100.0] * serving.STEADY
    assert not serving.is_warm(tallies, still)
    tallies[0].asked = set(range(serving.REQUESTS))
    assert serving.is_warm(tallies, still)
    assert serving.is_warm(tallies, [50.0, *still])
    assert not serving.is_warm(tallies, still[1:])
    assert not serving.is_warm(tallies, [*still, 101.0])


def test_the_benchmark_fails_where_an_answer_differs(capsys):
    serving = script()
    tally = serving.Tally(images=3, seconds=[0.1, 0.2])
    assert serving.report([tally], [100.0, 101.0], 1, 3072, 0.02, 1.0) == 0
    assert serving.report([tally], [100.0, 103.0], 1, 3072, 0.02, 1.0) == 1
    assert "BEYOND the limit of 2.0%: highest" in capsys.readouterr().out
    tally.difference = serving.difference([[]], [[detection.Face((0, 0, 1, 1), (), 1.0)]])
    assert serving.report([tally], [100.0, 100.0], 1, 3072, 0.02, 1.0) == 1
    tally.difference, tally.errors = 0.0, ["empty: was not refused"]
    assert serving.report([tally], [100.0, 100.0], 1, 3072, 0.02, 1.0) == 1
    assert "ERROR empty: was not refused" in capsys.readouterr().out
