# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""benchmarks/models.py: what it measures, writes and goes on with, and its arithmetic."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from torch import nn

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def models():
    spec = spec_from_file_location("models_benchmark", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["models_benchmark"] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    module.MODELS["small"] = ("Small", small)
    return module


def small():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return model.eval().requires_grad_(False), (torch.rand(1, 3, 34, 34),)


@pytest.fixture
def run(models, monkeypatch):
    """Runs the program; torch's settings are put back."""
    threads = torch.get_num_threads()

    def call(*options):
        line = ["models.py", "--models", "small", "--seconds", "0.01", "--layer-seconds", "0"]
        monkeypatch.setattr(sys, "argv", [*line, "--threads", "1", *options])
        models.main()

    yield call
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


def test_every_case_is_measured_written_and_kept(run, models, tmp_path, capsys):
    kept, page = tmp_path / "models.json", tmp_path / "models.md"
    run("--no-compile", "--batches", "1,3", "--json", str(kept), "--output", str(page))
    first = json.loads(kept.read_text())
    found = [(case["run"], case["layout"], case["batch"]) for case in first["cases"]]
    assert found == [
        ("eager", layout, batch) for layout in ("NCHW", "channels last") for batch in (1, 3)
    ]
    for case in first["cases"]:
        assert case["rounds"] >= models.FEWEST_ROUNDS
        assert case["share"][1] > 0
        assert {made["error"] < 1e-5 for made in case["tiers"].values()} == {True}
        # torch keeps the whole input and eight bytes an output, poolkit one byte an output.
        batch = case["batch"]
        assert case["saved"] == [batch * (16 * 32 * 32 * 4 + 16 * 256 * 8), batch * 16 * 256]
        for tier in ("module", "graph"):
            statuses = [layer["status"] for layer in case["tiers"][tier]["layers"]]
            assert statuses == ["swapped", "swapped"]
    text = page.read_text()
    assert text.count("| eager |") == 4
    assert text.count("| swapped: equal; not timed |") == 16
    run("--no-compile", "--batches", "1,3,2", "--json", str(kept), "--output", str(page))
    second = json.loads(kept.read_text())
    assert [case for case in second["cases"] if case["batch"] != 2] == first["cases"]
    assert len(second["cases"]) == 6
    assert len(second["loads"]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"was measured on .*: name another file"):
        run("--threads", "2", "--json", str(kept))


def test_compiled_models_are_compared_with_each_other(run, tmp_path, capsys):
    kept = tmp_path / "models.json"
    run("--batches", "2", "--layouts", "NCHW", "--json", str(kept))
    cases = json.loads(kept.read_text())["cases"]
    assert [case["run"] for case in cases] == ["eager", "compiled"]
    for made in cases[1]["tiers"].values():
        assert made["error"] < 1e-5
        assert made["layers"] == []
    assert "# Whole models" in capsys.readouterr().out


def test_twins_share_their_weights_and_no_modules(models):
    model, (x,) = small()
    twin = models.twin(model)
    assert twin[0] is not model[0]
    assert twin[0].weight is model[0].weight
    twin[2] = nn.MaxPool2d(4)
    assert model[2].kernel_size == 2
    assert model(x).shape == (1, 16)


@pytest.mark.parametrize(("share", "bound"), [(0.0, 1.0), (0.5, 2.0), (0.75, 4.0), (1.2, 1000.0)])
def test_what_pooling_could_bring_at_most(models, share, bound):
    case = models.Case("small", "eager", "NCHW", 1, [1], 3, 1.0, 1.0, [share] * 3, [0, 0], {})
    assert case.bound == pytest.approx(bound)


def test_names_that_are_not_known(run):
    with pytest.raises(SystemExit, match="there is no model 'nothing'; there are pnet"):
        run("--models", "nothing")
    with pytest.raises(SystemExit, match="there is no layout 'NHWC'"):
        run("--layouts", "NHWC")


@pytest.mark.skipif(
    find_spec("facenet_pytorch") is None or find_spec("skimage") is None,
    reason="needs facenet-pytorch (--no-deps) and scikit-image",
)
def test_the_accuracy_of_networks_that_are_trained(models):
    section = models.accuracy_section({"rnet", "vgg16"})
    assert [row[0] for row in section.rows] == ["P-Net", "R-Net", "O-Net"]
    assert all(row[1] == row[2] for row in section.rows)
    assert models.accuracy_section({"vgg16"}) is None


def test_a_batch_in_each_layout(models):
    for layout, format in models.LAYOUTS.items():
        model, x = models.prepared("small", layout, 5)
        assert x.shape == (5, 3, 34, 34)
        assert x.is_contiguous(memory_format=format)
        assert model[0].weight.is_contiguous(memory_format=format)
    options = Namespace(seconds=0.0, rounds=3, layer_seconds=0.0)
    (case,) = models.measure("small", "NCHW", 2, ["eager"], options)
    assert case.rounds == 3
