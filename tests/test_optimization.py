# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Optimisation: what is swapped, what is not and why, and that it can be taken back."""

from __future__ import annotations

import json
import warnings

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import X, network
from torch import nn

import poolkit.nn
from poolkit.errors import PoolTypeError, PoolValueError
from poolkit.optimization import OptimizeReport, optimize
from poolkit.optimization.sites import POOLING_CLASSES, constructor_arguments, replacement_for


def by_name(report: OptimizeReport) -> dict[str, tuple[str, str]]:
    return {layer.name: (layer.status, layer.reason) for layer in report.layers}


def test_swaps_in_place_with_equal_outputs():
    model = network()
    expected, keys = model(X), list(model.state_dict())
    report = optimize(model, X, seconds=0)
    assert [layer.status for layer in report.layers] == ["swapped"] * 3
    assert [layer.name for layer in report.layers] == ["1", "2", "3"]
    assert type(model[1]) is poolkit.nn.MaxPool2d
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3", "4", "5"]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)
    assert report.layers[0].error == pytest.approx(0, abs=1e-6)
    assert report.error is not None
    assert report.layers[0].before == "torch MaxPool2d, 3×3, stride 2, ceil mode"
    assert report.layers[0].after == "poolkit MaxPool2d"


def test_restore_puts_the_same_objects_back():
    model = network()
    before = list(model)
    report = optimize(model, X, seconds=0)
    report.restore()
    assert all(a is b for a, b in zip(before, model, strict=True))
    report.restore()
    assert all(a is b for a, b in zip(before, model, strict=True))


def test_restore_leaves_what_someone_else_put_there():
    model = network()
    report = optimize(model, X, seconds=0)
    model[1] = theirs = nn.Identity()
    report.restore()
    assert model[1] is theirs
    assert type(model[2]) is nn.AvgPool2d


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept_by_the_model_and_by_the_new_modules(training):
    model = network().train(training)
    model[2].train(not training)
    report = optimize(model, X, seconds=0)
    assert [m.training for m in model] == [training, training, not training] + [training] * 3
    model.train(not training)
    report.restore()
    assert model[1].training is (not training)


def test_a_shared_module_is_replaced_by_one_module_under_every_name():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)
            self.inner = nn.ModuleDict({"again": self.pool})

        def forward(self, x):
            return self.inner["again"](self.pool(x))

    model = Shared()
    original = model.pool
    report = optimize(model, X, seconds=0)
    (layer,) = report.layers
    assert (layer.name, layer.aliases, layer.status) == ("pool", ["inner.again"], "swapped")
    assert model.pool is model.inner["again"]
    assert type(model.pool) is poolkit.nn.MaxPool2d
    report.restore()
    assert model.pool is model.inner["again"] is original


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Using `torch.compile")
def test_parts_that_are_compiled_are_seen():
    part, pooling = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), nn.MaxPool2d(1)
    part.compile(backend="eager")
    model = nn.Sequential(torch.compile(pooling, backend="eager"), part)
    with torch.no_grad():
        expected = model(X)
        first, second = optimize(model, X, seconds=0).layers
        assert "inside OptimizedModule" in first.reason
        assert (second.name, second.status) == ("1.1", "swapped")
        assert torch.equal(model(X), expected)


@pytest.mark.parametrize("tier", ["module", "graph"])
def test_a_model_that_writes_to_its_inputs_is_refused(tier):
    x = torch.randn(1, 3, 8, 8)
    before = x.clone()
    with pytest.raises(PoolValueError, match="writes to its inputs"):
        optimize(nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)), x, tier=tier, seconds=0)
    assert torch.equal(x, before)


def test_functions_and_reductions_are_reported():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.max_pool2d(self.conv(x), 2).mean((2, 3))

    report = optimize(Functional(), X, seconds=0)
    assert [layer.status for layer in report.layers] == ["skipped", "skipped"]
    assert all(
        layer.reason.startswith("called as a function in forward; only modules can be swapped (")
        for layer in report.layers
    )
    assert not report.swapped


class Doubled(nn.MaxPool2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_is_skipped():
    model = nn.Sequential(Doubled(2))
    (layer,) = optimize(model, X, seconds=0).layers
    assert layer.status == "skipped"
    assert layer.reason == (
        "Doubled is a class of its own over MaxPool2d and may do more than MaxPool2d"
    )
    assert type(model[0]) is Doubled


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_state_dict_pre_hook(lambda *_: None),
        lambda m: m.register_state_dict_post_hook(lambda *_: None),
        lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
        lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
    ],
    ids=["forward", "pre-forward", "backward", "pre-save", "save", "pre-load", "load"],
)
def test_a_module_with_hooks_is_skipped(register):
    model = network()
    register(model[1])
    statuses = by_name(optimize(model, X, seconds=0))
    assert statuses["1"] == ("skipped", "it has hooks, which a new module would not have")
    assert statuses["2"][0] == "swapped"


@pytest.mark.parametrize(
    "add",
    [
        lambda m: m.register_buffer("own", torch.ones(1)),
        lambda m: m.register_parameter("own", nn.Parameter(torch.ones(1))),
        lambda m: m.add_module("own", nn.Linear(1, 1)),
    ],
    ids=["buffer", "parameter", "module"],
)
def test_what_was_added_to_a_module_stays_in_the_state_dict(add):
    model = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2))
    add(model[0])
    add(model[1])
    keys = list(model.state_dict())
    first, second = optimize(model, X, seconds=0).layers
    assert (first.status, first.reason) == (
        "skipped", "it has 'own' of its own, which a new module would not have",
    )  # fmt: skip
    assert "1 before it is not joined: it has 'own' of its own" in second.reason
    assert list(model.state_dict()) == keys


def test_samples_that_a_pooling_was_made_with_are_its_own():
    samples = torch.rand(2, 3, 2)
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5, _random_samples=samples))
    (layer,) = optimize(model, X, seconds=0).layers
    assert layer.status == "swapped"
    assert list(model.state_dict()) == ["0._random_samples"]


def test_a_patched_forward_is_skipped():
    model = network()
    model[1].forward = lambda x: F.max_pool2d(x, 2)
    assert by_name(optimize(model, X, seconds=0))["1"] == (
        "skipped", "its forward was replaced on the object",
    )  # fmt: skip


def test_the_model_that_is_a_pooling_itself_is_skipped():
    (layer,) = optimize(nn.MaxPool2d(2), X, seconds=0).layers
    assert layer.reason.startswith("the model is this pooling itself")


def test_a_module_that_is_not_registered_is_skipped():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pools = [nn.MaxPool2d(2)]

        def forward(self, x):
            return self.pools[0](x)

    (layer,) = optimize(Hidden(), X, seconds=0).layers
    assert layer.reason.startswith("it is not registered as a sub-module")


def test_a_swap_that_would_not_run_is_taken_back():
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)
            self.shortcut = [self.pool]

        def forward(self, x):
            return self.shortcut[0](x)

    model = Bypassed()
    (layer, *_) = optimize(model, X, seconds=0).layers
    assert (layer.status, layer.reason) == (
        "kept", "the model does not call it through its registered name",
    )  # fmt: skip
    assert type(model.pool) is nn.MaxPool2d


class Scaled(nn.Module):
    """It asks its pooling for something that was put there."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.pool.gain = 2.0

    def forward(self, x):
        return self.pool(self.relu(x + 0)) * self.pool.gain


def test_a_swap_with_which_the_model_does_not_run_is_taken_back():
    model = Scaled()
    expected = model(X)
    report = optimize(model, X, seconds=0)
    (layer,) = report.layers
    assert layer.status == "kept"
    assert layer.reason.startswith("with poolkit's modules the model raised on input float32[2, 3")
    assert "has no attribute 'gain'" in layer.reason
    assert report.note == f"all swaps were taken back: {layer.reason}"
    assert (type(model.relu), type(model.pool)) == (nn.ReLU, nn.MaxPool2d)
    assert torch.equal(model(X), expected)


def test_a_module_that_did_not_run_is_reported():
    model = network()
    model.add_module("spare", nn.Identity())
    model.spare.pool = nn.MaxPool2d(2)
    assert by_name(optimize(model, X, seconds=0))["spare.pool"] == (
        "skipped", "did not run on this input, so there is nothing to compare",
    )  # fmt: skip


def test_optimising_twice_finds_nothing_left():
    model = network()
    optimize(model, X, seconds=0)
    second = optimize(model, X, seconds=0)
    assert {layer.reason for layer in second.layers} == {"is poolkit's already"}
    assert all(layer.before.startswith("poolkit ") for layer in second.layers)


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(model, X)


def compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, scripted, compiled])
def test_wrapped_models_are_refused(wrap):
    model = wrap(network())
    with pytest.raises(PoolValueError, match=r"whose modules cannot be swapped.*wrap it again"):
        optimize(model, X)


def test_a_wrapper_inside_is_skipped():
    class Distributed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.DataParallel(nn.Sequential(nn.MaxPool2d(2)))

        def forward(self, x):
            return self.inner(x)

    (layer,) = optimize(Distributed(), X, seconds=0).layers
    assert "inside DataParallel" in layer.reason


def test_not_a_model():
    with pytest.raises(PoolTypeError, match=r"a model is a torch\.nn\.Module, got list"):
        optimize([], X)


@pytest.mark.parametrize("name", ["tolerance", "seconds"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1"])
def test_numbers_that_make_no_sense_are_refused(name, value):
    model = network()
    with pytest.raises(PoolValueError, match=rf"{name} must be .* got .*\. Give the "):
        optimize(model, X, **{name: value})
    assert type(model[1]) is nn.MaxPool2d


def test_filter_and_dry_run():
    model = network()
    report = optimize(model, X, seconds=0, dry_run=True, filter_fn=lambda m, name: name != "1")
    assert by_name(report)["1"] == ("skipped", "left out by filter_fn")
    assert [layer.name for layer in report.swapped] == ["2", "3"]
    assert report.dry_run
    assert all(type(m).__module__.startswith("torch.") for m in model)


def test_a_model_that_cannot_be_copied_is_optimised(monkeypatch):
    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    model = Uncopied(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    assert optimize(model, X, seconds=0).layers[0].status == "swapped"


ARGUMENTS = {
    "MaxPool": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True},
    "AvgPool": {"kernel_size": 2, "stride": 1, "padding": 1, "count_include_pad": False},
    "LPPool": {"norm_type": 2, "kernel_size": 2, "ceil_mode": True},
    "AdaptiveMaxPool": {"output_size": 3, "return_indices": True},
    "AdaptiveAvgPool": {"output_size": 3},
    "FractionalMaxPool": {"kernel_size": 2, "output_ratio": 0.5},
    "MaxUnpool": {"kernel_size": 2, "stride": 2},
}


@pytest.mark.parametrize("name", POOLING_CLASSES)
def test_every_class_of_torch_is_rebuilt_with_its_arguments(name):
    given = ARGUMENTS[name.removesuffix("d")[:-1]]
    module = POOLING_CLASSES[name](**given).eval()
    assert (
        given.items()
        <= {
            key: value[0] if isinstance(value, tuple) else value
            for key, value in constructor_arguments(module).items()
        }.items()
    )
    replacement = replacement_for(module)
    assert replacement is not None
    assert type(replacement).__name__ == name
    assert type(replacement).__module__.startswith("poolkit.")
    assert not replacement.training


def test_json():
    data = json.loads(optimize(network(), X, seconds=0).to_json())
    assert (data["version"], data["model"]) == (1, "Sequential")
    assert [layer["status"] for layer in data["layers"]] == ["swapped"] * 3
    assert "swaps" not in data


def test_json_of_an_error_without_a_size():
    model = nn.Sequential(nn.LPPool2d(3, 2))  # NaN in torch for negative sums, never in poolkit
    report = optimize(model, X, seconds=0)
    assert report.layers[0].status == "kept"
    assert report.layers[0].error == float("inf")
    assert json.loads(report.to_json())["layers"][0]["error"] is None


def test_what_poolkit_refuses_is_skipped():
    model = nn.Sequential(nn.LPPool2d(float("inf"), 2))
    (layer,) = optimize(model, X, seconds=0).layers
    assert layer.status == "kept"
    assert layer.reason.startswith("poolkit cannot: p must be above 0 and finite, got inf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_swapped(dtype):
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2))
    report = optimize(model, torch.randn(2, 8, 30, 30, dtype=dtype), seconds=0)
    assert [layer.status for layer in report.layers] == ["swapped", "swapped"]


def test_print_shows_the_table():
    text = str(optimize(network(), X, seconds=0))
    assert "torch MaxPool2d, 3×3, stride 2, ceil mode" in text
    assert "3 of 3 swapped for poolkit's." in text
