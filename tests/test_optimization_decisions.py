# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Optimisation: when a replacement is equal, when it is better, and what happens when not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import X, network
from torch import nn

from poolkit.optimization import modules, optimize, trial
from poolkit.optimization.equality import compare_modules, compare_outputs
from poolkit.timing import Comparison, Samples


def statuses(report):
    return {layer.name: (layer.status, layer.reason) for layer in report.layers}


def clock(monkeypatch, ratio: float) -> None:
    """A clock that says what a test wants: tests of decisions do not depend on a machine."""

    def compare(before, after, seconds):
        before(), after()
        return Comparison((1e-3 * ratio,) * 15, (1e-3,) * 15)

    monkeypatch.setattr(trial, "compare", compare)
    monkeypatch.setattr(trial, "interleave", lambda calls, _: [Samples(1, [8e-3])])


def test_what_is_faster_is_swapped(monkeypatch):
    clock(monkeypatch, 2.0)
    model = network()
    report = optimize(model, X, seconds=1)
    assert statuses(report)["1"] == ("swapped", "equal and faster")
    assert report.layers[0].speedup == pytest.approx(2.0)
    assert report.speedup == pytest.approx(2.0)
    assert report.before_ms == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("ratio", "reason"),
    [(0.5, "equal, but slower here"), (1.0, "equal, but no faster beyond noise")],
)
def test_what_is_not_faster_is_kept(monkeypatch, ratio, reason):
    clock(monkeypatch, ratio)
    model = network()
    report = optimize(model, X, seconds=1)
    assert set(statuses(report).values()) == {("kept", reason)}
    assert type(model[1]) is nn.MaxPool2d
    assert report.before_ms is None


def test_all_swaps_go_if_the_whole_model_is_slower(monkeypatch):
    ratios = iter([2.0, 2.0, 2.0, 0.9])

    def compare(before, after, seconds):
        return Comparison((1e-3 * next(ratios),) * 15, (1e-3,) * 15)

    monkeypatch.setattr(trial, "compare", compare)
    model = network()
    report = optimize(model, X, seconds=1)
    assert set(statuses(report).values()) == {("kept", "the whole model came out slower")}
    assert report.note == "all swaps were taken back: the whole model came out slower"
    assert all(type(m).__module__.startswith("torch.") for m in model)


class Wrong(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(F.max_pool2d(x, 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y + 1e-7 * y.abs(), "outputs differ by "),
        (lambda y: y[..., :-1], "outputs are float32[2, 3, 10, 9] instead of float32[2, 3, 10"),
        (lambda y: y.double(), "outputs are float64"),
        (lambda y: (y, y), "outputs are 2 tensors instead of 1"),
        (lambda y: y.detach() + (y - y.detach()) * 3, "gradients differ by "),
    ],
)  # fmt: skip
def test_a_replacement_that_differs_is_kept_out(monkeypatch, change, reason):
    monkeypatch.setattr(modules, "replacement_for", lambda module: Wrong(change))
    model = nn.Sequential(nn.MaxPool2d(2))
    (layer,) = optimize(model, X, seconds=0).layers
    assert layer.status == "kept"
    assert layer.reason.startswith(reason)
    assert type(model[0]) is nn.MaxPool2d


def test_an_exception_half_way_leaves_the_model_as_it_was(monkeypatch):
    model = network().train()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(modules.Attempt, "_check_whole", fail)
    with pytest.raises(KeyboardInterrupt):
        optimize(model, X, seconds=0)
    assert all(type(m).__module__.startswith("torch.") for m in model)
    assert model.training


def test_a_model_with_random_numbers_is_compared_with_the_same_ones():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.FractionalMaxPool2d(2, output_size=5)

        def forward(self, x):
            return self.pool(x + torch.rand_like(x))

    state = torch.get_rng_state()
    report = optimize(Noisy(), X, seconds=0)
    assert report.layers[0].status in ("swapped", "skipped")
    assert report.layers[0].error in (0.0, None)
    assert report.layers[0].name == "pool"
    assert state.shape == torch.get_rng_state().shape


def test_equality_of_specials():
    a = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    assert compare_outputs(a, a.clone(), 0.0).problem == ""
    assert compare_outputs(a, a.abs(), 0.0).problem == "differ in the sign of a zero"
    b = torch.tensor([0.0, float("inf"), -0.0, 1.0])
    assert compare_outputs(a, b, 1e-3).problem.startswith("differ by inf")
    assert compare_outputs({"x": [a]}, {"x": [a]}, 0.0).error == 0.0


def test_gradients_to_the_wrong_place_are_seen():
    class Elsewhere(nn.Module):
        def forward(self, x):
            out = F.max_pool2d(x, 2)
            mean = F.avg_pool2d(x, 2)
            return out.detach() + (mean - mean.detach())

    found = compare_modules(nn.MaxPool2d(2), Elsewhere(), (X,), 1e-5, exact=True)
    assert found.problem.startswith("gradients differ by")


def test_noise_is_absolute_and_tolerance_relative():
    a, b = torch.tensor([1000.0]), torch.tensor([1010.0])
    assert compare_outputs(a, b, 1e-5, noise=1.0).problem == "differ by 10, more than 1"
    assert compare_outputs(a, b, 1e-5, noise=10.0).problem == ""
    assert compare_outputs(a, b, 1e-2).problem == ""
    # Small outputs are no excuse, nor are integers: a label is right or wrong.
    assert compare_outputs(a * 1e-9, a * 1.1e-9, 1e-2).problem.startswith("differ by")
    assert compare_outputs(a * 1e-9, a * 1.1e-9, 1e-2, scale=1.0).problem == ""
    labels = torch.tensor([1_000_000])
    assert compare_outputs(labels, labels + 1, 1e-2).problem == "differ by 1, more than 0"


def test_a_model_that_varies_is_held_to_no_more_than_that():
    class Varying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.calls = nn.MaxPool2d(2), 0

        def forward(self, x):
            self.calls += 1
            return self.pool(x) + 0.01 * (self.calls % 2)

    report = optimize(Varying(), X, seconds=0)
    assert report.layers[0].status == "swapped"
    assert report.error == pytest.approx(0.01, abs=1e-6)
