# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cyclopts")
Image = pytest.importorskip("PIL.Image")

from poolkit.__main__ import main

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.conv(x)).mean((2, 3))

def net():
    return Net()

class Twice(Net):
    def forward(self, x):
        return self.pool(self.pool(self.conv(x))).mean((2, 3))

def pooled_twice():
    return Twice()

def with_inputs():
    return Net(), torch.zeros(1, 3, 10, 10)

def two_inputs():
    return nn.Bilinear(2, 3, 4), [torch.zeros(5, 2), torch.zeros(5, 3)]

def no_pooling():
    return nn.Linear(2, 2), torch.zeros(1, 2)

def not_a_model():
    return 42

def broken():
    raise RuntimeError("no weights\\nhere")

ready = Net()
number = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NET)
    for name, size in (("a", (16, 12)), ("b", (16, 12)), ("c", (8, 8))):
        Image.new("RGB", size, (255, 0, 51)).save(f"{name}.png")
    yield
    sys.modules.pop("net", None)


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def fails(capsys, *arguments: object) -> str:
    """Run a command line that must fail, and return its one line."""
    before = sorted(Path().iterdir())
    assert run(*arguments) != 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("poolkit: ")
    assert captured.out == ""
    after = [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"]
    assert after == [path for path in before if path.name != "__pycache__"]
    return lines[0].removeprefix("poolkit: ")


def test_inspect_writes_table_page_and_json(capsys):
    status = run(
        "inspect", "net.py:net", "--input", "a.png", "b.png",
        "--output", "report.html", "--json", "report.json", "--seconds", 0,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert status == 0
    assert "float32[2, 3, 12, 16]" in out
    assert "max 2×2" in out
    assert "mean over space axes 2, 3" in out
    assert "Report: report.html" in out
    assert "data:image/png;base64," in Path("report.html").read_text(encoding="utf-8")
    data = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert data["model"] == "net"
    assert [layer["operation"] for layer in data["layers"]] == ["max_pool2d", "mean"]
    assert data["layers"][1]["source"].startswith("net.py:")


def test_two_reports_are_compared(capsys):
    for name, factory in (("a", "net"), ("b", "pooled_twice")):
        run(
            "inspect",
            f"net.py:{factory}",
            "--input",
            "a.png",
            "--json",
            f"{name}.json",
            "--seconds",
            0,
        )
    capsys.readouterr()
    assert run("inspect", "--diff", "a.json", "b.json", "--json", "diff.json") == 0
    out = capsys.readouterr().out
    assert "net → pooled_twice" in out
    assert "+ pool-2 is new" in out
    assert json.loads(Path("diff.json").read_text(encoding="utf-8"))["added"] == ["pool-2"]


def test_example_inputs_of_the_factory(capsys):
    assert run("inspect", "net.py:with_inputs", "--seconds", 0) == 0
    assert "float32[1, 3, 10, 10]" in capsys.readouterr().out


def test_a_model_in_the_place_of_a_factory(capsys):
    assert run("inspect", "net.py:ready", "--input", "a.png", "--seconds", 0) == 0


def test_a_module_path(capsys):
    assert run("inspect", "net:with_inputs", "--seconds", 0) == 0


def test_a_list_of_inputs_and_no_pooling(capsys):
    assert run("inspect", "net.py:two_inputs", "--seconds", 0) == 0
    out = capsys.readouterr().out
    assert "float32[5, 2], float32[5, 3]" in out
    assert "No pooling ran. Looked for: pooling modules" in " ".join(out.split())


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_tensors_are_taken_as_they_are(capsys, suffix):
    x = np.zeros((2, 3, 8, 8), dtype=np.float32)
    path = Path(f"x.{suffix}")
    if suffix == "pt":
        torch.save(torch.from_numpy(x), path)
    else:
        {"npy": np.save, "npz": np.savez}[suffix](path, x)
    assert run("inspect", "net.py:net", "--input", path, "--seconds", 0) == 0
    assert "float32[2, 3, 8, 8]" in capsys.readouterr().out


def test_several_tensors_are_several_arguments(capsys):
    np.savez("x.npz", a=np.zeros((5, 2), np.float32), b=np.zeros((5, 3), np.float32))
    assert run("inspect", "net.py:two_inputs", "--input", "x.npz", "--seconds", 0) == 0
    assert "float32[5, 2], float32[5, 3]" in capsys.readouterr().out


def test_images_are_scaled_to_one():
    from poolkit.inspection.sources import load_inputs

    (batch,) = load_inputs([Path("a.png"), Path("b.png")])
    assert batch.shape == (2, 3, 12, 16)
    assert batch[1, :, 3, 4].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_optimize_reports_each_layer(capsys):
    status = run("optimize", "net.py:with_inputs", "--seconds", 0, "--json", "report.json")
    out = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert "pool swapped" in out
    assert "equal; not timed" in out
    assert "called as a function in forward; only modules can be swapped" in out
    assert "1 of 2 swapped for poolkit's." in out
    assert json.loads(Path("report.json").read_text())["layers"][0]["status"] == "swapped"


def test_optimize_saves_a_program(capsys):
    assert run("optimize", "net.py:with_inputs", "--seconds", 0, "--save", "net.pt2") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 swapped for poolkit's." in out
    assert out.endswith("Program: net.pt2 (before torch.export.load, import poolkit.nn)")
    assert torch.export.load("net.pt2").module()(torch.zeros(3, 3, 10, 10)).shape == (3, 4)
    assert run("optimize", "net.pt2", "--seconds", 0) == 0
    assert "is poolkit's already" in " ".join(capsys.readouterr().out.split())


def test_optimize_of_the_graph_only_reported(capsys):
    options = ("--tier", "graph", "--fixed-batch", "--dry-run", "--json", "report.json")
    assert run("optimize", "net.py:with_inputs", "--seconds", 0, *options) == 0
    assert "2 of 2 would be swapped (dry run)." in capsys.readouterr().out
    assert json.loads(Path("report.json").read_text())["tier"] == "graph"
    assert not list(Path().glob("*.pt2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "none/net.pt2"), "cannot write none/net.pt2: there is no folder none"),
        (("--save", "net.pt2", "--tier", "module"), "--save writes the program of the graph tier"),
        (("--save", "net.pt2", "--dry-run"), "--save writes the program of the graph tier, and a"),
        (("--save", "net.onnx"), "a program is a .pt2 file, got net.onnx. Name it so"),
        (("--tier", "fx"), 'Invalid value "fx" for --tier'),
    ],
)
def test_optimize_refuses_before_the_work(capsys, options, message):
    assert fails(capsys, "optimize", "net.py:with_inputs", *options).startswith(message)
    assert not Path("net.pt2").exists()


def test_optimize_without_pooling(capsys):
    assert run("optimize", "net.py:no_pooling", "--seconds", 0) == 0
    assert "Linear has no pooling that runs on this input." in capsys.readouterr().out


def test_export_writes_a_file_that_lint_finds_nothing_in(capsys):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    assert run("export", "net.py:with_inputs", "--output", "net.onnx") == 0
    out = capsys.readouterr().out
    assert "Conv 1" in out
    assert "onnxruntime, batch of 2: differs by at most" in out
    assert run("lint", "net.onnx", "--onnxruntime", "1.16.0") == 0
    assert capsys.readouterr().out == "no known traps\n"
    assert "there is no folder" in fails(
        capsys, "export", "net.py:with_inputs", "--output", "none/net.onnx"
    )


def test_export_of_what_no_engine_here_runs(capsys):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    Path("net.py").write_text(
        NET + "def half():\n    return Net().bfloat16(), torch.zeros(1, 3, 9, 9).bfloat16()\n"
    )
    arguments = ("export", "net.py:half", "--output", "net.onnx")
    assert "--unchecked" in fails(capsys, *arguments)
    assert run(*arguments, "--unchecked") == 0
    assert capsys.readouterr().out.endswith("ONNX: net.onnx (not run by any engine)\n")


def test_onnx_files_are_only_read(capsys):
    Path("net.onnx").touch()
    for arguments in (("optimize",), ("export", "--output", "other.onnx")):
        message = fails(capsys, *arguments, "net.onnx", "--input", "a.png")
        assert message.startswith("net.onnx is an ONNX file, which is inspected and linted only")
    message = fails(capsys, "export", "net.py:with_inputs", "--output", "net.txt")
    assert message.startswith("a model is written to an .onnx file, got net.txt")


def test_lint_of_a_model(capsys):
    Path("net.py").write_text(
        NET
        + "def trap():\n    return nn.AvgPool2d(2, divisor_override=3), torch.zeros(1, 1, 4, 4)\n"
    )
    assert run("lint", "net.py:trap") == 1
    out = capsys.readouterr().out
    assert "drops divisor_override=3" in out
    assert out.endswith("1 finding\n")
    assert run("lint", "net.py:with_inputs") == 0
    assert capsys.readouterr().out == "no known traps\n"
    assert "there is no file none.onnx" in fails(capsys, "lint", "none.onnx")
    assert run("lint", "none.onnx") == 2
    capsys.readouterr()
    assert "Drop --input" in fails(capsys, "lint", "none.onnx", "--input", "a.png")


def test_info_names_versions(capsys):
    assert run("info") == 0
    out = capsys.readouterr().out
    assert {"python", "numpy", "torch", "isa"} <= {line.split()[0] for line in out.splitlines()}


ERRORS = {
    "no colon": (("net.py",), "MODEL is file.py:factory, package.module:factory, or an "),
    "no file": (("no.py:net",), "there is no file no.py"),
    "no module": (("nowhere:net",), "nowhere cannot be imported: No module named 'nowhere'"),
    "no factory": (("net.py:nett",), "net.py has no 'nett'; it has Net, net, Twice"),
    "not a function": (("net.py:number",), "net.py:number is a int, not a function"),
    "not a model": (("net.py:not_a_model",), "net.py:not_a_model returned int"),
    "factory raises": (("net.py:broken",), "net.py:broken raised: RuntimeError: no weights."),
    "syntax": (("bad.py:net",), "bad.py raised when loaded: SyntaxError"),
    "no inputs": (("net.py:net",), "net.py:net comes without example inputs. Give files with"),
    "no input file": (("net.py:net", "--input", "no.png"), "there is no file no.png"),
    "bad image": (("net.py:net", "--input", "net.py"), "net.py is not an image that can be read"),
    "sizes": (
        ("net.py:net", "--input", "a.png", "c.png"), "the images have different sizes: 16×12, 8×8",
    ),
    "mixed": (("net.py:net", "--input", "a.png", "x.npy"), "inputs are either images or tensors"),
    "bad tensor": (("net.py:net", "--input", "bad.npy"), "bad.npy cannot be read: "),
    "not tensors": (("net.py:net", "--input", "bad.pt"), "bad.pt holds str, not tensors"),
    "model raises": (
        ("net.py:net", "--input", "x.npy"),
        "the model raised on input float32[1, 5, 8, 8]: RuntimeError: Given groups=1",
    ),
    "no folder": (
        ("net.py:with_inputs", "--output", "no/r.html"),
        "cannot write no/r.html: there is no folder no",
    ),
    "a folder": (("net.py:with_inputs", "--json", "."), "cannot write .: it is a folder"),
    "no report": (("--diff", "a.json", "b.json"), "there is no file a.json"),
    "diff of a model": (
        ("net.py:net", "--diff", "a.json", "b.json"),
        "--diff compares two reports, without a MODEL, --input or --output.",
    ),
    "input without model": (("--input", "a.png"), "--input needs a MODEL"),
    "unknown option": (("--speed",), "Unknown option: --speed."),
    "too many": (("net.py:net", "other"), "Unused Tokens: ['other']."),
    "not a number": (("--seconds", "x"), "Invalid value for --seconds"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_one_line_and_no_file(capsys, name):
    arguments, message = ERRORS[name]
    Path("bad.py").write_text("def net(:\n")
    Path("bad.npy").write_text("no array")
    torch.save("text", "bad.pt")
    np.save("x.npy", np.zeros((1, 5, 8, 8), np.float32))
    assert fails(capsys, "inspect", *arguments).startswith(message)


def test_the_same_errors_for_optimize(capsys):
    assert fails(capsys, "optimize", "no.py:net").startswith("there is no file no.py")
    assert fails(capsys, "optimize", "net.py:net").startswith("net.py:net comes without")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("optimize", "--tolerance", -1),
            "tolerance must be a finite number of at least 0, got -1",
        ),
        (
            ("optimize", "--tolerance", "nan"),
            "tolerance must be a finite number of at least 0, got",
        ),
        (
            ("optimize", "--seconds", "nan"),
            "seconds must be a finite number of at least 0, got nan",
        ),
        (("inspect", "--seconds", "nan"), "seconds must be a finite number of at least 0, got nan"),
        (("inspect", "--seconds", "inf"), "seconds must be a finite number of at least 0, got inf"),
        (("inspect", "--seconds", -2), "seconds must be a finite number of at least 0, got -2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(capsys, arguments, message):
    command, *options = arguments
    assert fails(capsys, command, "net.py:with_inputs", *options).startswith(message)


def test_bench_help_names_every_option_and_its_unit(capsys):
    assert run("bench", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in ("--quick", "--json", "--markdown", "--threads", "--cases", "--peers"):
        assert option in text
    assert "2 seconds each" in text
    assert "milliseconds per call" in text
    assert "Numbers of threads" in text


def test_unknown_command(capsys):
    assert fails(capsys, "squeeze").startswith('Unknown command "squeeze".')


def test_interruption_and_bugs_are_one_line(capsys, monkeypatch):
    from poolkit import cli

    def raising(error):
        def call(*_, **__):
            raise error

        return call

    monkeypatch.setattr(cli, "_subject", raising(KeyboardInterrupt()))
    assert run("inspect") == 130
    assert capsys.readouterr().err == "poolkit: interrupted\n"
    monkeypatch.setattr(cli, "_subject", raising(ZeroDivisionError("x\ny")))
    assert fails(capsys, "inspect") == "ZeroDivisionError: x y (POOLKIT_TRACEBACK=1 shows where)"
    monkeypatch.setenv("POOLKIT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("inspect")


def test_help_does_not_import_torch():
    code = (
        "import sys; from poolkit.__main__ import main; main(['--help']); "
        "assert 'torch' not in sys.modules; print('quick')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("quick\n")
    assert "inspect" in done.stdout


def test_python_dash_m_fails_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "poolkit", "inspect", "no.py:net"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "poolkit: there is no file no.py.\n")


@pytest.mark.skipif(
    find_spec("facenet_pytorch") is None or find_spec("skimage") is None,
    reason="needs facenet-pytorch (--no-deps) and scikit-image",
)
def test_the_built_in_example(capsys):
    assert run("inspect", "--seconds", 0, "--output", "report.html") == 0
    out = capsys.readouterr().out
    names = ["rnet.pool1", "rnet.pool2", "onet.pool1", "onet.pool2", "onet.pool3"]
    positions = [out.index(name) for name in names]
    assert positions == sorted(positions)
    assert "13×13" in out
    page = Path("report.html").read_text(encoding="utf-8")
    assert "72.0 %" in page
    assert "1 face found by the three networks" in page
