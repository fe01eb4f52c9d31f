"""What 8 and 4 bits cost: the parts of the example, and a quick run of all of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

import poolkit

pytest.importorskip("torchao")
pytest.importorskip("scipy")

# torch warns of calls of its own: when its compiler is imported, and when a graph is copied.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from poolkit.comparison.data import Split  # noqa: E402
from poolkit.examples import int8  # noqa: E402
from poolkit.examples.int8 import Row, SmallNetwork  # noqa: E402
from poolkit.timing import Quartiles  # noqa: E402

INSTALLED = all(find_spec(name) for name in ("mlxtend", "facenet_pytorch", "skimage"))


def bars(n: int) -> Split:
    """Images with a bar across or upright, in one of five places: ten classes."""
    draw = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 10
    images = 0.3 * torch.rand(n, 1, 32, 32, generator=draw)
    for image, label in zip(images, labels.tolist(), strict=True):
        at = 3 + 5 * (label % 5)
        (image[0] if label < 5 else image[0].T)[at : at + 4] += 0.5
    return Split(images, labels)


def test_training_with_rounding_learns_and_converts() -> None:
    data = bars(128)
    torch.manual_seed(0)
    started = int8.folded(int8.trained(SmallNetwork(), data, 2, 1e-2, 0))
    prepared = int8.while_training(started, data, 3, 4, 0)
    before = int8.answers(prepared, data.inputs)
    made = int8.converted(prepared)
    assert torch.equal(int8.answers(made, data.inputs), before)
    with torch.no_grad():
        loss = [
            torch.nn.functional.cross_entropy(model(data.inputs), data.labels).item()
            for model in (started, made)
        ]
    assert loss[1] < loss[0]
    assert int8.bytes_of(made) < int8.bytes_of(started) / 3.5


def test_folding() -> None:
    torch.manual_seed(0)
    model, x = SmallNetwork(), bars(20).inputs
    for _ in range(3):
        model(x)  # moves the statistics
    other = int8.folded(model)
    assert model.training
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in other.modules())
    with torch.no_grad():
        torch.testing.assert_close(other(x), model.eval()(x))


def test_float_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = int8.folded(SmallNetwork()), bars(64).inputs
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = int8.after_training(model, x, 8)
    assert isinstance(made, GraphModule)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=0, atol=0.02)
    # 12, 24 and 48 channels of 3x3 and a layer of 48 to 10, a scale and zero point for each.
    weights = 9 * (12 + 12 * 24 + 24 * 48) + 480
    assert int8.bytes_of(model) == 4 * (weights + 12 + 24 + 48 + 10)
    rest = (4 + 4 + 8) * (12 + 24 + 48 + 10)
    assert int8.bytes_of(made) == weights + rest
    assert int8.bytes_of(made, bits=4) == weights // 2 + rest


def test_rows() -> None:
    float_row = Row([np.ones(50, bool)] * 3, model=SmallNetwork())
    row = Row([np.arange(50) < 40] * 3, 8, time=Quartiles(0.4, 0.5, 0.6), changed=2)
    assert float_row.against(None) == (1.0, 1.0, 1.0)
    mean, low, high = row.against(float_row)
    assert mean == pytest.approx(-0.2)
    assert -0.35 < low < -0.1
    assert -0.15 < high < -0.05
    assert np.isnan(Row([np.ones(5, bool)]).against(None)[1:]).all()
    rows = {
        "float": float_row,
        "8 bits, after training": row,
        "8 bits, while training": float_row,
    }
    told = int8.table("Network", rows)
    assert "80.0 (" in told
    assert "-20.0 (-" in told
    assert "2 of 150" in told
    assert " 0.50 (0.40 to 0.60)" in told
    assert f" {int8.bytes_of(SmallNetwork()) / 1e3:.1f} " in told


def test_times_are_over_those_of_the_first() -> None:
    pytest.importorskip("torch._inductor")
    rows = {"float": Row(model=torch.nn.Linear(2, 2)), "other": Row(model=torch.nn.Linear(2, 2))}
    int8.measure_times(rows, torch.rand(4, 2), 0.01)
    assert rows["float"].time == Quartiles(1.0, 1.0, 1.0)
    assert rows["other"].time is not None
    assert rows["other"].time.median > 0


def test_lesson() -> None:
    rows = {
        "float": Row([np.ones(50, bool)] * 3),
        "8 bits, after training": Row([np.arange(50) < 40] * 3),
        "8 bits, while training": Row([np.ones(50, bool)] * 3),
    }
    assert "quantized after training -20.0" in int8.lesson({"Network": rows}, [8])
    assert "that is +20.0" in int8.lesson({"Network": rows}, [8])


def test_a_pooling_in_float_is_refused() -> None:
    class Lp(SmallNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.features.append(torch.nn.LPPool2d(2, 2))

    with pytest.raises(poolkit.PoolValueError, match=r"poolings in float: .*Lp norm"):
        int8.after_training(Lp(), bars(64).inputs, 8)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        int8.main(["--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="mlxtend, facenet-pytorch or scikit-image is missing")
def test_quick_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        int8.main(["--quick", "--fashion", str(tmp_path / "none"), "--bits", "8"])
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    for line in ("\nR-Net, 200 crops", "\nO-Net, 200 crops", "\nMNIST, 256 images to train"):
        assert line in told
    assert "Fashion-MNIST is left out: there is no Fashion-MNIST in" in told
    assert "MNIST, 8 bits: quantized after training" in told
