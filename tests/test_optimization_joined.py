# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""The module tier joins activations to poolings: where a run proves that it may, and only there."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import X
from torch import nn

import poolkit
from poolkit.errors import PoolValueError
from poolkit.optimization import optimize, trial
from poolkit.optimization.equality import compare_outputs
from poolkit.timing import Comparison, Samples


def network(activation: nn.Module, pooling: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), activation, pooling, nn.Flatten())


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """Of the parameters, in float64."""
    model(X.double()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh(), nn.SiLU(),
    nn.GELU(), nn.Hardswish(inplace=True),
]  # fmt: skip
POOLINGS = [
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveMaxPool2d(3),
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=lambda pooling: type(pooling).__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_outputs_and_gradients_are_those_of_the_pair(activation, pooling):
    model = network(copy.deepcopy(activation), copy.deepcopy(pooling)).double()
    twin = copy.deepcopy(model)
    keys = list(model.state_dict())
    report = optimize(model, X.double(), seconds=0)
    (layer,) = report.layers
    assert (layer.name, layer.status) == ("2", "swapped")
    assert layer.before.startswith(
        f"torch {type(activation).__name__}, then {type(pooling).__name__}"
    )
    assert layer.after.startswith("poolkit Pool with Activated(")
    assert type(model[1]) is nn.Identity
    assert type(model[2]) is poolkit.nn.Pool
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]
    torch.testing.assert_close(model(X.double()), twin(X.double()))
    for found, expected in zip(gradients(model), gradients(twin), strict=True):
        torch.testing.assert_close(found, expected)


def test_restore_puts_both_back():
    model = network(nn.ReLU(), nn.MaxPool2d(2)).train()
    before = list(model)
    report = optimize(model, X, seconds=0)
    assert all(module.training for module in model.modules())
    model.eval()
    report.restore()
    assert all(a is b for a, b in zip(model, before, strict=True))
    assert not any(module.training for module in model.modules())
    optimize(model, X, seconds=0, dry_run=True)
    assert all(a is b for a, b in zip(model, before, strict=True))


def test_one_dimension():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2))
    report = optimize(model, torch.randn(2, 3, 20), seconds=0)
    assert type(model[2]) is poolkit.nn.Pool
    assert report.error == 0


class Calls(nn.Module):
    """A convolution, an activation and a pooling, and a forward that a test gives."""

    def __init__(self, call, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.call = call

    def forward(self, x):
        return self.call(self, self.conv(x))


def keeps(net, x):
    net.kept = net.relu(x)
    return net.pool(net.kept)


def used_again(net, x):
    y = net.relu(x)
    return net.pool(y) + y.mean()


def looked_at(net, x):
    y = net.relu(x)
    return net.pool(y) * (1 if y.detach().max() > 0 else 2)


def overwritten(net, x):
    y = net.relu(x)  # in place
    return net.pool(y) + x.mean()


def with_dropout(net, x):
    return net.pool(net.drop(net.relu(x)))


def seen_through_a_view(net, x):
    view = x.flatten(1)
    y = net.pool(net.relu(x))
    return (y, view.sum()) if net.training else y


def in_two_places(net, x):
    return net.relu(net.pool(net.relu(x)))


def sometimes(net, x):
    return net.pool(net.relu(x)) + net.pool(x)


REASONS = {
    "relu before it is not joined: it is called as a function (test_optimization_joined.py:": (
        lambda net, x: net.pool(F.relu(x)), {},
    ),
    "relu before it is not joined: its result is used elsewhere too": (used_again, {}),
    "relu before it is not joined: its result is used elsewhere too ": (looked_at, {}),
    "relu before it is not joined: its result is used elsewhere too  ": (
        overwritten, {"relu": nn.ReLU(inplace=True)},
    ),
    "relu before it is not joined: its result is used elsewhere too   ": (in_two_places, {}),
    "relu before it is not joined: it works in place, on memory that another tensor has too": (
        seen_through_a_view, {"relu": nn.ReLU(inplace=True)},
    ),
    "relu before it is not joined: its result is used elsewhere too     ": (
        lambda net, x: (lambda y: net.pool(y) + y.data.mean())(net.relu(x)), {},
    ),
    "relu before it is not joined: its result is used elsewhere too    ": (
        lambda net, x: (lambda y: (net.pool(y), y))(net.relu(x)), {},
    ),
    "relu before it is not joined: its result is kept after the run": (keeps, {}),
    "relu before it is not joined: not all that is pooled comes from it": (sometimes, {}),
    "relu before it is not joined: the pooling returns indices": (
        lambda net, x: net.pool(net.relu(x))[0], {"pool": nn.MaxPool2d(2, return_indices=True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_joined_says_why(reason):
    call, modules = REASONS[reason]
    model = Calls(call, **modules)
    report = optimize(model, X, seconds=0)
    layer = report.layers[0]
    assert layer.status == "swapped"
    assert reason.strip() in layer.reason
    assert type(model.relu) is nn.ReLU
    assert type(model.pool) is poolkit.nn.MaxPool2d


class Auxiliary(nn.Module):
    """A head of its own in training, as GoogLeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        return (self.pool(y), y.mean((2, 3))) if self.training else self.pool(y)


def test_the_same_must_hold_in_training():
    model = Auxiliary().eval()
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    report = optimize(model, X, seconds=0)
    assert "in training mode its result is used elsewhere too" in report.layers[0].reason
    assert type(model.relu) is nn.ReLU
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())


def hooked(net, x):
    y = net.relu(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: None)
    return net.pool(y)


def averaged(net, x):
    y = net.relu(x)
    if torch.is_grad_enabled():
        net.average = y.mean()
    return net.pool(y)


def explained(net, x):
    return net.pool(net.relu(x)) if net.training else hooked(net, x)


def averaged_in_training(net, x):
    return averaged(net, x) if net.training else net.pool(net.relu(x))


@pytest.mark.parametrize(
    ("call", "when"),
    [
        (hooked, "with gradients"),
        (averaged, "with gradients"),
        (explained, "with gradients"),
        (averaged_in_training, "in training mode"),
    ],
)
def test_the_same_must_hold_with_gradients(call, when):
    model = Calls(call)
    report = optimize(model, X, seconds=0)
    assert f"not joined: {when} its result is used elsewhere too" in report.layers[0].reason
    assert type(model.relu) is nn.ReLU


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_outputs_in_training_mode_are_compared():
    def call(net, x):
        y = net.relu(x)
        return (net.pool(y), net.head(y)) if net.training else net.pool(y)

    head = torch.jit.script(nn.Sequential(nn.Conv2d(4, 1, 1)))  # what it reads is not seen
    model = Calls(call, head=head)
    report = optimize(model, X, seconds=0)
    assert type(model.relu) is nn.ReLU
    assert "outputs in training mode differ by" in report.layers[0].reason


def test_a_caller_in_inference_mode():
    model = network(nn.ReLU(), nn.MaxPool2d(2))
    with torch.inference_mode():
        report = optimize(model, X + 1, seconds=0)
        assert torch.is_inference_mode_enabled()
    assert report.layers[0].after == "poolkit Pool with Activated('Max()', 'ReLU()')"


def test_a_model_that_does_not_run_in_training_mode():
    def call(net, x):
        if net.training:
            raise ValueError("there are no targets")
        return net.pool(net.relu(x))

    model = Calls(call)
    report = optimize(model, X, seconds=0)
    assert "the model does not run in training mode on this input" in report.layers[0].reason
    assert report.layers[0].status == "swapped"


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()], ids=repr)
def test_what_is_saved_for_the_backward_may_not_be_overwritten(activation):
    """Tanh joined to a max saves its result, which torch's pair does not; ReLU saves one byte."""
    model = Calls(lambda net, x: net.pool(net.relu(x)).mul_(2), relu=activation)
    report = optimize(model, X, seconds=0)
    model(X).sum().backward()
    joined = isinstance(activation, nn.ReLU)
    assert (type(model.relu) is nn.Identity) is joined
    assert (
        "the model could not be trained: it works in place" in report.layers[0].reason
    ) is not joined


def test_what_a_norm_saves_may_not_be_overwritten():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.LPPool2d(2, 2), nn.ReLU(inplace=True)
    )
    report = optimize(model, X, seconds=0)
    assert [layer.status for layer in report.layers] == ["swapped", "kept"]
    assert "the model could not be trained: it works in place" in report.layers[1].reason
    model(X).sum().backward()


def test_a_model_that_asks_its_activation_for_an_attribute():
    model = Calls(lambda net, x: net.pool(net.relu(x)) + float(net.relu.inplace))
    report = optimize(model, X, seconds=0)
    assert "could not be trained: the model raised on input" in report.layers[0].reason
    assert "'Identity' object has no attribute 'inplace'" in report.layers[0].reason
    assert type(model.relu) is nn.ReLU
    assert type(model.pool) is poolkit.nn.MaxPool2d


class Features:
    """Outputs of a class of their own, as detectors have them."""

    def __init__(self, *maps: torch.Tensor) -> None:
        self.maps, self.itself = {"all": maps}, self


@dataclass
class Maps:
    pooled: torch.Tensor
    features: torch.Tensor


@pytest.mark.parametrize("output", [Features, Maps, lambda *maps: iter(maps)])
def test_outputs_of_any_class_are_looked_into(output):
    model = Calls(lambda net, x: (lambda y: output(net.pool(y), y))(net.relu(x)))
    report = optimize(model, X, seconds=0)
    assert type(model.relu) is nn.ReLU
    if output in (Features, Maps):
        assert "its result is used elsewhere too" in report.layers[0].reason
        assert report.note == ""
    else:
        assert "returns a tuple_iterator, into which nothing can" in report.layers[0].reason
        assert report.note == "the model returns a tuple_iterator, whose values were not compared"


def test_outputs_of_any_class_are_compared():
    one, other = (Maps(torch.zeros(2), torch.full((2,), value)) for value in (1.0, 2.0))
    for wrap in (lambda x: x, lambda x: {"x": [Features(x.pooled, x.features)]}):
        assert compare_outputs(wrap(one), wrap(one), 0.0).problem == ""
        assert compare_outputs(wrap(one), wrap(other), 0.0).error == 1.0
    arrays = compare_outputs(np.zeros(2), np.ones(2), 0.0)
    assert (arrays.error, bool(arrays.problem)) == (1.0, True)


def test_what_stands_between_counts_as_a_use():
    """Dropout is nothing in eval mode, and something in training."""
    model = Calls(with_dropout, drop=nn.Dropout())
    optimize(model, X, seconds=0)
    assert type(model.relu) is nn.ReLU


def test_questions_about_the_shape_are_no_use():
    model = Calls(lambda net, x: (lambda y: net.pool(y).reshape(y.shape[0], -1))(net.relu(x)))
    optimize(model, X, seconds=0)
    assert type(model.relu) is nn.Identity


def test_hooks_are_not_lost():
    model = Calls(lambda net, x: net.pool(net.relu(x)))
    seen = []
    model.relu.register_forward_hook(lambda *_: seen.append(1))
    report = optimize(model, X, seconds=0)
    assert "not joined: it has hooks, which a new module would not have" in report.layers[0].reason
    seen.clear()
    model(X)
    assert seen == [1]


def test_a_filter_leaves_activations_out_too():
    model = Calls(lambda net, x: net.pool(net.relu(x)))
    report = optimize(model, X, seconds=0, filter_fn=lambda module, name: name != "relu")
    assert "relu before it is not joined: left out by filter_fn" in report.layers[0].reason
    assert type(model.relu) is nn.ReLU
    assert type(model.pool) is poolkit.nn.MaxPool2d


def test_a_pair_that_runs_twice_is_joined_once():
    model = Calls(lambda net, x: net.pool(net.relu(net.pool(net.relu(x)))))
    twin = copy.deepcopy(model)
    report = optimize(model, X, seconds=0)
    assert len(report.layers) == 1
    assert type(model.relu) is nn.Identity
    assert torch.equal(model(X), twin(X))


def test_a_shared_activation_is_not_taken_from_others():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), shared)
    report = optimize(model, X, seconds=0)
    assert "used elsewhere too" in report.layers[0].reason
    assert model[1] is model[4] is shared


def test_subclasses_are_other_activations():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    model = network(Doubled(), nn.MaxPool2d(2))
    optimize(model, X, seconds=0)
    assert type(model[1]) is Doubled


@pytest.mark.parametrize(
    ("speedups", "kind", "words"),
    [
        ((4.0, 2.0, 2.0), poolkit.nn.Pool, "poolkit Pool with Activated('Max()', 'ReLU()')"),
        ((2.0, 4.0, 2.0), poolkit.nn.MaxPool2d, "ReLU, then poolkit MaxPool2d"),
        ((0.5, 4.0, 2.0), poolkit.nn.MaxPool2d, "ReLU, then poolkit MaxPool2d"),
        ((0.5, 0.5, 2.0), nn.MaxPool2d, "torch ReLU, then MaxPool2d, 2×2"),
    ],
)
def test_the_faster_of_joined_and_apart_is_taken(monkeypatch, speedups, kind, words):
    left = list(speedups)

    def compare(before, after, seconds):
        before(), after()
        return Comparison((1e-3 * left.pop(0),) * 15, (1e-3,) * 15)

    monkeypatch.setattr(trial, "compare", compare)
    monkeypatch.setattr(trial, "interleave", lambda calls, _: [Samples(1, [8e-3])])
    model = network(nn.ReLU(inplace=True), nn.MaxPool2d(2))
    (layer,) = optimize(model, X, seconds=1).layers
    assert type(model[2]) is kind
    assert layer.after == words
    assert (type(model[1]) is nn.Identity) is (kind is poolkit.nn.Pool)


def test_the_share_of_the_model(monkeypatch):
    monkeypatch.setattr(trial, "compare", lambda *_: Comparison((4e-3,) * 15, (1e-3,) * 15))
    monkeypatch.setattr(trial, "interleave", lambda calls, _: [Samples(1, [1e-3])])
    report = optimize(Calls(lambda net, x: net.pool(x)), X, seconds=1)
    assert report.share == 1.0
    assert report.limit is None
    assert "the machine is too busy to say what their share is" in " ".join(str(report).split())
    report.model_ms = 16.0
    assert report.share == 0.25
    assert report.limit == pytest.approx(4 / 3)
    text = " ".join(str(report).split())
    assert "Timed alone, these layers take 25 % of the model's 16.0 ms" in text
    assert "if they cost nothing, it would be 1.33 times as fast" in text


def test_functions_have_their_share():
    class Functional(nn.Module):
        def forward(self, x):
            return F.max_pool2d(x, 2)

    report = optimize(Functional(), X, seconds=0.01)
    assert report.layers[0].status == "skipped"
    assert report.layers[0].before_ms > 0
    assert report.share > 0
    assert report.before_ms is None


# --- compiled, and distributed --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's
def test_an_optimised_model_compiles_to_one_graph():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    twin = copy.deepcopy(model)
    report = optimize(model, X, seconds=0)
    assert len(report.swapped) == 3
    torch._dynamo.reset()
    assert torch._dynamo.explain(model)(X).graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for one in (compiled, twin):
        one(X).square().sum().backward()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_distributed_models_are_refused(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network(nn.ReLU(), nn.MaxPool2d(2)))
        with pytest.raises(PoolValueError, match=r"wrapped in DistributedDataParallel, whose .*"):
            optimize(model, X)
        assert type(model.module[2]) is nn.MaxPool2d
        assert optimize(model.module, X, seconds=0).swapped
    finally:
        distributed.destroy_process_group()
