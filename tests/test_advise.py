# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Designing on paper: numbers worked out by hand, and against models that were really built."""

from __future__ import annotations

import json
import sys
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cyclopts")

import torch.nn.functional as F
from torch import nn

import poolkit
import poolkit.nn
from poolkit.__main__ import main
from poolkit.design import Advice, Alternative, Site, advise
from poolkit.design.alternatives import proposals
from poolkit.design.document import detector, page
from poolkit.design.literature import LITERATURE
from poolkit.design.paper import Paper, on_paper, sized
from poolkit.design.sites import subjects_of
from poolkit.errors import PoolError, PoolTypeError, PoolValueError


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@cache
def small_advice() -> Advice:
    return advise(small(), "1x3x8x8")


@cache
def detector_advice() -> Advice:
    return advise(detector(), "1x3x160x160")


def flat() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 5)
    )


def site(advice: Advice, name: str) -> Site:
    return next(found for found in advice.sites if found.name == name)


def rows(found: Site) -> dict[str, Alternative]:
    return {row.name: row for row in found.alternatives}


def differences(advice: Advice, name: str) -> dict[str, tuple[int, int, int]]:
    """Of parameters, multiply-adds and bytes of activations."""
    was = advice.draft
    return {
        row.name: (
            row.draft.parameters - was.parameters,
            row.draft.multiply_adds - was.multiply_adds,
            row.draft.activations - was.activations,
        )
        for row in site(advice, name).alternatives
        if row.draft is not None
    }


# --- by hand -------------------------------------------------------------------------------------


def test_what_a_model_costs():
    draft = small_advice().draft
    assert draft.parameters == (8 * 27 + 8) + (16 * 72 + 16) + (16 * 4 + 4)
    assert draft.multiply_adds == 64 * 8 * 27 + 16 * 16 * 72 + 16 * 4
    # conv, relu, pool, conv, relu, mean, linear; flattening makes nothing
    values = 8 * 64 + 8 * 64 + 8 * 16 + 16 * 16 + 16 * 16 + 16 + 4
    assert draft.activations == 4 * values
    assert draft.outputs == [[1, 4]]
    # 3, then 3 + 1, then 4 + 2 * 2
    assert (draft.last_map, draft.sees, draft.jump) == ([4, 4], [8, 8], [2, 2])


def test_a_batch_counts_as_often_as_it_is_large():
    one, two = (advise(small(), f"{batch}x3x8x8").draft for batch in (1, 2))
    assert two.multiply_adds == 2 * one.multiply_adds
    assert two.activations == 2 * one.activations


def test_in_place_and_views_make_no_activations():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten())
    assert advise(model, "1x1x4x4").draft.activations == 4 * (2 * 16 + 2 * 4)


def test_alternatives_of_a_window():
    assert differences(small_advice(), "2") == {
        "average": (0, 0, 0),
        # the maximum at stride 1, 7x7, and its mirrored border, 9x9
        "max, blurred": (0, 8 * 9 * 16, 4 * 8 * (49 + 81)),
        "strided convolution": (64 * 4 + 8, 16 * 64 * 4, 0),
        "depthwise convolution": (8 * 4 + 8, 16 * 8 * 4, 0),
        # the first convolution and ReLU at 16 positions, not 64, and no pool
        "moved stride": (0, -48 * 8 * 27, -4 * 8 * (48 + 48 + 16)),
        "overlapping 3×3": (0, 0, 0),
        # pool, convolution and ReLU at 7x7
        "stride 1, dilation behind": (0, 33 * 16 * 72, 4 * 33 * (8 + 16 + 16)),
        # the image is pooled; convolution and ReLU run at 16 positions, not 64
        "earlier": (0, -48 * 8 * 27, 4 * (3 * 16 - 8 * (48 + 48 + 16))),
        # the second convolution and ReLU run at 64 positions, not 16, and are pooled
        "later": (0, 48 * 16 * 72, 4 * (16 * (48 + 48 + 16) - 8 * 16)),
    }


def test_alternatives_of_a_global_pooling():
    found = differences(small_advice(), "5")
    assert found["max"] == (0, 0, 0)
    assert found["GeM"][:2] == (1, 0)
    assert found["pyramid 4×4, 2×2, 1×1"][:2] == (16 * 20 * 4, 16 * 20 * 4)
    assert found["flattened"] == (16 * 15 * 4, 16 * 15 * 4, -4 * 16)


def test_alternatives_of_a_flattened_head():
    advice = advise(flat(), "1x1x8x8")
    head = site(advice, "3")
    assert (head.kind, head.in_shape, head.out_shape) == ("head", [1, 4, 4, 4], [1, 5])
    found = differences(advice, "3")
    assert found["global average"] == (-5 * 4 * 15, -5 * 4 * 15, 4 * 4)
    assert found["global max"][:2] == (-5 * 4 * 15, -5 * 4 * 15)
    assert found["pyramid 4×4, 2×2, 1×1"][:2] == (5 * 4 * 5, 5 * 4 * 5)
    assert head.claims[0].text == (
        "It has a weight for each of 16 positions, 320 in all, and takes inputs of this size only."
    )
    # What is flattened keeps its size, so that the head can stay.
    dense = rows(site(advice, "1"))["stride 1, dilation behind"]
    assert "averaged to 4×4 before 3" in dense.changes
    assert found_difference(advice, dense) == (0, 0)


def found_difference(advice: Advice, row: Alternative) -> tuple[int, int]:
    assert row.draft is not None, row.problem
    return (
        row.draft.parameters - advice.draft.parameters,
        row.draft.multiply_adds - advice.draft.multiply_adds,
    )


def test_alternatives_of_strided_convolutions():
    advice = detector_advice()
    stem = differences(advice, "stem")
    assert stem["stride 1, then a blur"][:2] == (
        0, 3 * 6400 * 32 * 147 + 6400 * 32 * 9,
    )  # fmt: skip
    assert stem["stride 1, then max"][:2] == (0, 3 * 6400 * 32 * 147)
    assert stem["average, then stride 1"] == (0, 0, 4 * 3 * 6400)
    # Both branches lose their stride, or maps of two sizes would meet.
    first, shortcut = (site(advice, f"stage.{name}") for name in ("first", "shortcut"))
    name = "stride 1, dilation behind"
    assert rows(first)[name].draft == rows(shortcut)[name].draft is not None
    assert "together with stage.shortcut" in rows(first)[name].changes
    assert any("74 % of the input is never read" in claim.text for claim in shortcut.claims)


def test_a_module_that_runs_three_times_is_changed_once():
    chain = [found for found in detector_advice().sites if found.name == "chain"]
    assert [found.sees for found in chain] == [[67, 67], [99, 99], [131, 131]]
    assert [bool(found.alternatives) for found in chain] == [True, False, False]
    assert "left out" in rows(chain[0])


def test_a_layer_that_runs_elsewhere_too_is_not_given_bins():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.act = (
                nn.Conv2d(1, 4, 3, padding=1),
                nn.MaxPool2d(2),
                nn.ReLU(),
            )
            self.head = nn.Linear(4 * 16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.pool(self.act(self.conv(x)))).flatten(1))

    dense = rows(site(advise(Shared(), "1x1x8x8"), "pool"))["stride 1, dilation behind"]
    assert "head (Linear) depends on the number of positions" in dense.problem


def test_networks_beside_each_other_are_left_alone():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = flat(), flat()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(x), self.two(x)

    dense = rows(site(advise(Two(), "1x1x8x8"), "two.1"))["stride 1, dilation behind"]
    assert dense.changes.endswith("; averaged to 4×4 before two.3, which stays")


def test_branches_that_meet_lose_their_strides_together():
    class Reduction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(2, 3, 3, 2, 1), nn.MaxPool2d(3, 2, 1)
            self.last = nn.Conv2d(5, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cat([self.conv(x), self.pool(x)], 1))

    advice = advise(Reduction(), "1x2x16x16")
    dense = rows(site(advice, "pool"))["stride 1, dilation behind"]
    assert dense.changes.endswith("; together with conv")
    # 16x16 positions instead of 8x8, in both convolutions
    assert found_difference(advice, dense) == (0, 192 * (3 * 2 * 9 + 4 * 5 * 9))


# --- against models that were really built -------------------------------------------------------


def really(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Parameters and multiply-adds of a model that runs on numbers, layer by layer."""
    products = 0

    def count(layer: nn.Module, args: object, out: torch.Tensor) -> None:
        nonlocal products
        products += out.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    model(x)
    return sum(p.numel() for p in model.parameters()), products


BUILT = {
    "average": lambda m: (*m[:2], nn.AvgPool2d(2), *m[3:]),
    "strided convolution": lambda m: (*m[:2], nn.Conv2d(8, 8, 2, 2), *m[3:]),
    "depthwise convolution": lambda m: (*m[:2], nn.Conv2d(8, 8, 2, 2, groups=8), *m[3:]),
    "moved stride": lambda m: (nn.Conv2d(3, 8, 3, 2, 1), m[1], *m[3:]),
    "overlapping 3×3": lambda m: (*m[:2], nn.MaxPool2d(3, 2, 1), *m[3:]),
    "stride 1, dilation behind": lambda m: (
        *m[:2], nn.MaxPool2d(2, 1), nn.Conv2d(8, 16, 3, padding=2, dilation=2), *m[4:],
    ),
    "earlier": lambda m: (m[2], m[0], m[1], *m[3:]),
    "later": lambda m: (*m[:2], m[3], m[4], m[2], *m[5:]),
    "max": lambda m: (*m[:5], nn.AdaptiveMaxPool2d(1), *m[6:]),
    "pyramid 4×4, 2×2, 1×1": lambda m: (*m[:5], poolkit.nn.SPP(), nn.Linear(16 * 21, 4)),
    "flattened": lambda m: (*m[:5], nn.Flatten(), nn.Linear(16 * 16, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_what_is_counted_on_paper_is_what_a_model_does(name):
    advice = small_advice()
    row = (rows(site(advice, "2")) | rows(site(advice, "5")))[name]
    model = nn.Sequential(*BUILT[name](list(small())))
    assert (row.draft.parameters, row.draft.multiply_adds) == really(model, torch.rand(1, 3, 8, 8))


# --- geometry ------------------------------------------------------------------------------------


class Ones(nn.Module):
    """Convolutions, poolings and a branch, with weights of 1: every path has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, (7, 5), stride=2, padding=1)
        self.pool = nn.AvgPool2d(3, 2)
        self.wide = nn.Conv2d(1, 1, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(1, 1, 1)
        self.last = nn.AvgPool2d(2)
        self.all = nn.AdaptiveAvgPool2d(1)
        for weight in self.parameters():
            nn.init.ones_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        return self.all(self.last(self.wide(x) + self.narrow(x)))


@pytest.mark.parametrize("size", [(64, 64), (61, 50)])
def test_receptive_fields_and_what_nothing_sees_are_those_of_gradients(size):
    model = Ones()
    advice = advise(model, torch.Size((1, 1, *size)))
    assert [found.name for found in advice.sites] == ["stem", "pool", "last", "all"]
    outputs: dict[str, torch.Tensor] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: out}))
    x = torch.zeros(1, 1, *size, requires_grad=True)
    model(x)
    for found in advice.sites:
        out = outputs[found.name]
        # A value in the middle, whose field lies inside the input.
        middle = out[0, 0, out.shape[2] // 2, out.shape[3] // 2]
        (one,) = torch.autograd.grad(middle, x, retain_graph=True)
        (all_of_them,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        for axis in (0, 1):
            seen = one[0, 0].sum(1 - axis).nonzero().flatten()
            assert found.sees[axis] == int(seen[-1] - seen[0]) + 1
            ever = all_of_them[0, 0].sum(1 - axis).nonzero().flatten()
            assert found.unseen[axis] == [int(ever[0]), size[axis] - 1 - int(ever[-1])]
        assert found.extent == list(size)


@pytest.mark.parametrize(
    "whole",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.flatten(2).amax(2),
        lambda x: poolkit.pool(x, poolkit.Global(), "mean").flatten(1),
        lambda x: F.avg_pool2d(x, 16).flatten(1),
    ],
    ids=["adaptive", "mean", "flattened", "poolkit", "one window"],
)
def test_what_sees_all_sees_no_row_that_was_dropped(whole):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return whole(self.conv(x))

    advice = advise(Whole(), "1x1x34x33")
    found = advice.sites[-1]
    assert (found.extent, found.sees, found.unseen) == ([34, 33], [33, 33], [[0, 1], [0, 0]])
    assert "sees 33×33 of the input's 34×33 (97 % × 100 % of a side)" in str(advice)
    assert "Nothing from here on sees the last 1 row of the input" in str(advice)


def test_a_flattened_head_sees_no_row_that_was_dropped():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 5))
    head = advise(model, "1x1x9x9").sites[-1]
    assert (head.kind, head.sees, head.unseen) == ("head", [8, 8], [[0, 1], [0, 1]])


def test_rows_that_are_dropped_add_up():
    # 15 rows: 7 windows leave the last row, 3 of 7 the last of 2, which are 3 rows of the input
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.MaxPool2d(2))
    first, second = advise(model, "1x1x15x16").sites
    assert first.unseen == [[0, 1], [0, 0]]
    assert second.unseen == [[0, 3], [0, 0]]
    assert first.jump == [2, 2]
    assert second.jump == [4, 4]
    texts = [claim.text for claim in second.claims]
    assert "Nothing from here on sees the last 3 rows of the input (20 %)." in texts
    assert any("the last 1 of 7 rows are in none" in text for text in texts)
    kept = rows(second)["ceil mode"]
    assert kept.draft.outputs == [[1, 1, 4, 4]]
    assert kept.changes == ("nothing is dropped; gives 4×4, not 3×4; the model returns 1×1×4×4")


def test_a_field_larger_than_the_input_is_all_of_it():
    layers = [nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)] * 3
    last = advise(nn.Sequential(*layers), "1x1x16x16").sites[-1]
    # 3, 4, 8, 10, 18, 22
    assert last.sees == last.extent == [16, 16]
    assert last.claims[0].text == (
        "Its windows reach over 22×22 input positions, more than there are (16×16): what padding "
        "gives is in each value."
    )


def test_dilation_keeps_what_a_value_sees():
    advice = advise(small(), "1x3x64x64")
    dense = rows(site(advice, "2"))["stride 1, dilation behind"].draft
    assert dense.sees == advice.draft.sees
    assert (dense.jump, advice.draft.jump) == ([1, 1], [2, 2])


# --- what it takes -------------------------------------------------------------------------------


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.max_pool2d(F.relu(self.conv(x)), 2).mean((2, 3)))


class Modules(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def test_poolings_that_are_calls_have_the_alternatives_of_modules():
    calls, modules = (advise(model, "1x3x8x8") for model in (Calls(), Modules()))
    assert calls.draft == modules.draft
    for call, module in zip(calls.sites, modules.sites, strict=True):
        assert call.source.startswith("test_advise.py:")
        assert module.source == ""
        built = {name: row.draft for name, row in rows(call).items()}
        assert built == {name: row.draft for name, row in rows(module).items()}
        assert any(draft is not None for draft in built.values())


class Looks(Calls):
    """It looks at values, so it neither runs without them nor can be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 1 if float(x.sum()) > 5 else x)


def test_a_model_that_looks_at_values_runs_on_some():
    advice = advise(Looks(), "1x3x8x8")
    assert advice.paper == "random"
    assert advice.draft.multiply_adds == advise(Calls(), "1x3x8x8").draft.multiply_adds
    problems = {row.problem for row in advice.sites[0].alternatives}
    assert any("it is a call in a forward (test_advise.py:" in problem for problem in problems)
    assert "on fixed random inputs from 0 to 1" in str(advice)
    assert advise(Looks(), "1x3x8x8").to_dict() == advice.to_dict()


class Pools(nn.Module):
    """It pools what is not zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.pool(x) if x.abs().sum() > 0 else x


@pytest.mark.parametrize(
    ("inputs", "paper", "pooled"),
    [
        ("1x3x16x16", "random", True),
        (torch.ones(1, 3, 16, 16), "values", True),
        (torch.zeros(1, 3, 16, 16), "values", False),
    ],
    ids=["size", "ones", "zeros"],
)
def test_a_branch_is_taken_as_the_values_have_it(inputs, paper, pooled):
    advice = advise(Pools(), inputs)
    assert (advice.paper, [found.name for found in advice.sites]) == (paper, ["pool"] * pooled)
    assert advice.draft.outputs == [[1, 8, 8, 8] if pooled else [1, 8, 16, 16]]
    text = " ".join(str(advice).split())
    said = text.index("Branches that depend on values were taken as these have it.")
    assert ("on the inputs that were given" in text) == (paper == "values")
    assert ("Nothing makes a map smaller" in text[said:]) == (not pooled)
    if pooled:
        assert rows(advice.sites[0])["average"].draft.outputs == [[1, 8, 8, 8]]


class Masked(nn.Module):
    """It keeps the channels that a buffer names, counts its runs, and changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)
        self.register_buffer("keep", torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool())
        self.register_buffer("runs", torch.zeros(1))
        self.head = nn.Linear(4 * 9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        x *= 2
        return self.head(self.pool(self.conv(x))[:, self.keep].flatten(1))


def test_buffers_keep_their_values_and_nothing_is_changed():
    model, x = Masked(), torch.ones(1, 3, 8, 8)
    weight = model.conv.weight.clone()
    for inputs, paper in ((x, "values"), ("1x3x8x8", "random")):
        advice = advise(model, inputs)
        assert (advice.paper, advice.draft.outputs) == (paper, [[1, 2]])
        assert rows(advice.sites[0])["average"].draft.outputs == [[1, 2]]
    assert (float(model.runs), float(x.sum())) == (0, 192)
    assert torch.equal(model.conv.weight, weight)


def test_a_model_without_memory_that_looks_at_values_says_so():
    with on_paper():
        model = Masked()
    with pytest.raises(PoolValueError, match=r"the model raised on input float32\[1, 3, 8, 8\]"):
        advise(model, "1x3x8x8")


def test_tensors_that_are_attributes_are_on_paper_too():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.shift = nn.MaxPool2d(2), torch.ones(1, 3, 8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(x + self.shift + torch.arange(8))

    assert advise(Shifted(), "1x3x8x8").paper == "shapes"


def test_nothing_is_changed():
    model = small().train()
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(
        keep_vars=True).items()}  # fmt: skip
    layers = list(model)
    advise(model, torch.rand(1, 3, 8, 8))
    assert list(model) == layers
    assert all(layer.training for layer in model.modules())
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


def test_networks_larger_than_memory():
    with on_paper():
        model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.MaxPool2d(2), nn.Flatten(),
                              nn.Linear(64 * 255 * 255, 100_000))  # fmt: skip
    advice = advise(model, "1x3x512x512")
    assert advice.draft.parameters == 64 * 27 + 64 + 100_000 * (64 * 255 * 255 + 1)
    assert differences(advice, "3")["global average"][0] == -100_000 * 64 * (255 * 255 - 1)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank):
    conv, pool = getattr(nn, f"Conv{rank}d"), getattr(nn, f"MaxPool{rank}d")
    model = nn.Sequential(conv(2, 4, 3, padding=1), pool(2), conv(4, 4, 3, padding=1))
    advice = advise(model, "x".join(["1", "2", *["8"] * rank]))
    found = differences(advice, "1")
    assert found["average"][:2] == (0, 0)
    # 7 positions along each axis instead of 4
    more = (7**rank - 4**rank) * 16 * 3**rank
    row = rows(advice.sites[0])["stride 1, dilation behind"]
    assert row.problem == ""
    assert found["stride 1, dilation behind"][:2] == (0, more)


def test_inputs_are_sizes_tensors_tuples_and_dicts():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.pool = nn.Embedding(7, 4), nn.MaxPool2d(2)

        def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.pool(image).sum() + self.words(words).sum()

    expected = advise(Two(), (torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, dtype=torch.int64)))
    assert expected.inputs == ["float32[1, 4, 8, 8]", "int64[1, 3]"]
    for given in (
        ["1x4x8x8", "1x3:int64"],
        (torch.Size([1, 4, 8, 8]), "1x3:int64"),
        {"image": "1x4x8x8", "words": "1x3:int64"},
    ):
        assert advise(Two(), given).to_dict() == expected.to_dict()
    assert sized("2x3").is_meta
    assert small_advice().to_dict() == advise(small(), (1, 3, 8, 8)).to_dict()


def test_parts_of_poolkits_modules_are_shown_and_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), poolkit.nn.MaxBlurPool2d(2))
    parts = [found for found in advise(model, "1x1x16x16").sites if found.name == "1"]
    assert parts[-1].out_shape == [1, 2, 7, 7]
    assert not any(found.alternatives for found in parts)
    whole = advise(nn.Sequential(poolkit.nn.AvgPool2d(2)), "1x1x8x8").sites[0]
    assert rows(whole)["max"].draft is not None


# --- what is wrong -------------------------------------------------------------------------------


def test_a_model_without_pooling_says_so():
    advice = advise(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), "1x1x8x8")
    assert advice.sites == []
    assert advice.literature == {}
    assert "Nothing makes a map smaller: no pooling" in str(advice)


class Locked(nn.MaxPool2d):
    def __init__(self) -> None:
        super().__init__(2)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (42, "1x1x8x8", PoolTypeError, "alternatives are built from a torch.nn.Module, got int"),
        (small(), None, PoolValueError, "there is no input size. Give inputs"),
        (small(), "8 by 8", PoolValueError, "'8 by 8' is not a size. Write it as 1x3x224x224"),
        (small(), "1x3x8x0", PoolValueError, "'1x3x8x0' has a side of 0"),
        (small(), "1x3x8x8:float12", PoolTypeError, "there is no dtype 'float12'"),
        (small(), "1x5x8x8", PoolValueError, "the model raised on input float32[1, 5, 8, 8]"),
        (small(), "1x3x1x1", PoolValueError, "the model raised on input float32[1, 3, 1, 1]"),
        (torch.jit.ScriptModule(), "1x1x8x8", PoolTypeError, "got ScriptModule"),
        (Locked(), "1x1x8x8", PoolValueError, "Locked cannot be copied"),
    ],
)
def test_errors(model, inputs, error, message):
    with pytest.raises(error) as raised:
        advise(model, inputs)
    assert isinstance(raised.value, PoolError)
    assert message in str(raised.value)


def test_pools_that_return_positions_and_unpooling():
    class There(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.back(*self.pool(x))

    pool, back = advise(There(), "1x1x8x8").sites
    assert rows(pool)["average"].problem.startswith("it returns positions too")
    assert (back.kind, back.alternatives) == ("other", [])


def test_what_has_to_change_with_an_alternative_is_said():
    row = rows(site(advise(flat(), "1x1x9x9"), "1"))["ceil mode"]
    assert row.changes == "nothing is dropped; gives 5×5, not 4×4; 3 reads 100 values, not 64"
    assert row.draft.parameters == 4 * 9 + 4 + 5 * 100 + 5


def test_what_is_returned_may_differ_in_the_size_of_maps_alone():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 4, 1), nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(self.conv(x)).flatten(1)

    row = rows(site(advise(Summed(), "1x1x9x9"), "pool"))["ceil mode"]
    assert row.problem == "the model would return [[1, 100]] instead of [[1, 64]]."


def test_what_cannot_be_built_says_why():
    class Own(nn.MaxPool2d):
        pass

    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), Own(2))
    found = rows(advise(model, "1x1x8x8").sites[0])
    assert "Own is a class of its own over MaxPool2d" in found["average"].problem
    assert found["average"].draft is None
    assert found["average"].literature == ()
    alone = advise(nn.MaxPool2d(2), "1x1x8x8").sites[0]
    assert "the model is this pooling itself" in rows(alone)["average"].problem


# --- claims --------------------------------------------------------------------------------------


def test_claims_say_what_they_rest_on():
    advice = advise(small(), "1x3x9x9")
    claims = [claim for found in advice.sites for claim in found.claims]
    assert claims
    assert {claim.basis for claim in claims} == {"arithmetic"}
    cited = {key for found in advice.sites for row in found.alternatives for key in row.literature}
    assert cited <= set(advice.literature)
    assert {claim.basis for claim in advice.literature.values()} == {"literature"}
    assert "Literature; not measured on your model or data" in str(advice)


@pytest.mark.parametrize("key", LITERATURE)
def test_claims_of_others_name_setting_and_source(key):
    claim = LITERATURE[key]
    assert claim.basis == "literature"
    assert claim.setting
    assert any(str(year) in claim.source for year in range(1990, 2027))


def test_every_claim_that_is_named_exists_and_is_used():
    named: set[str] = set()
    for model, size in ((small(), "1x3x8x8"), (flat(), "1x1x8x8"), (detector(), "1x3x64x64")):
        paper = Paper((sized(size),), {})
        draft = paper.copy(model)
        found = subjects_of(paper.run(draft)[0], draft)
        named |= {key for s in found for p in proposals(s, found) for key in p.literature}
    assert named <= set(LITERATURE)
    assert set(LITERATURE) - named == {"effective-field"}


# --- written down --------------------------------------------------------------------------------


def test_json_has_a_version_and_everything():
    advice = small_advice()
    data = json.loads(advice.to_json())
    assert list(data) == [
        "version", "model", "inputs", "draft", "sites", "literature", "paper",
    ]  # fmt: skip
    assert data["version"] == 1
    assert data == json.loads(json.dumps(advice.to_dict()))
    assert set(data["sites"][0]) == {
        "name", "kind", "operation", "source", "in_shape", "out_shape", "sees", "extent", "jump",
        "unseen", "claims", "alternatives",
    }  # fmt: skip
    assert set(data["sites"][0]["alternatives"][0]) == {
        "name", "changes", "draft", "problem", "literature",
    }  # fmt: skip
    assert set(data["draft"]) == {
        "parameters", "multiply_adds", "activations", "outputs", "last_map", "sees", "jump",
    }  # fmt: skip


def test_the_page_is_fresh():
    written = Path(__file__).parent.parent / "docs" / "design.md"
    fresh = written.read_text(encoding="utf-8") == page()
    assert fresh, "run python -m poolkit.design.document > docs/design.md"


def test_progress_is_told():
    told = []
    advise(flat(), "1x1x8x8", progress=lambda *args: told.append(args))
    assert told[0] == ("1: average", 0, told[-1][2])
    assert told[-1][:2] == ("done", told[-1][2])


# --- on the command line -------------------------------------------------------------------------

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))

def with_inputs():
    return net(), torch.zeros(1, 3, 10, 10)

def looks_while_it_is_built():
    width = int(torch.ones(4).sum())
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.MaxPool2d(2))

class Looks(nn.MaxPool2d):
    def forward(self, x):
        return super().forward(x) if x.sum() > 400 else x

def looks():
    return nn.Sequential(Looks(2)), torch.full((1, 3, 12, 12), 2.0)

def plain():
    return nn.Conv2d(3, 4, 3)

def broken():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NET)
    torch.save(torch.zeros(1, 3, 12, 12), "x.pt")
    yield
    sys.modules.pop("net", None)


@pytest.mark.usefixtures("_folder")
def test_the_command_prints_and_writes(capsys):
    assert main(["advise", "net.py:net", "--input", "1x3x11x11", "--json", "a.json"]) == 0
    out = capsys.readouterr().out
    assert "net  float32[1, 3, 11, 11]" in out
    assert "sees 4×4 of the input's 11×11 (36 % of a side); stride 2" in out
    assert "JSON: a.json" in out
    assert json.loads(Path("a.json").read_text())["sites"][0]["unseen"] == [[0, 1], [0, 1]]
    for arguments, size in (
        (["net.py:with_inputs"], 10),
        (["net.py:with_inputs", "--input", "1x3x14x14"], 14),
        (["net.py:net", "--input", "x.pt"], 12),
        (["net.py:looks_while_it_is_built", "--input", "1x3x9x9"], 9),
    ):
        assert main(["advise", *arguments]) == 0
        assert f"float32[1, 3, {size}, {size}]" in capsys.readouterr().out
    for size, pooled in (([], True), (["--input", "1x3x12x12"], False)):
        assert main(["advise", "net.py:looks", *size]) == 0
        out = capsys.readouterr().out
        assert "The model does not run without values" in out
        assert ("Nothing makes a map smaller" in out) == (not pooled)
    assert main(["advise", "net.py:plain", "--input", "1x3x9x9"]) == 0
    assert "Nothing makes a map smaller" in capsys.readouterr().out


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.py:net"], "net.py:net comes without an input size. Give it with --input"),
        (["net.py:net", "--input", "y.pt"], "y.pt is neither a size nor a file"),
        (["net.py:net", "--input", "1x3x8x8", "x.pt"], "either sizes or files, not both"),
        (["net.py:net", "--input", "1x3x8x8:word"], "there is no dtype 'word'"),
        (["net.py:net", "--input", "1x3x2x2"], "the model raised on input float32[1, 3, 2, 2]"),
        (["net.py:broken", "--input", "1x3x8x8"], "net.py:broken raised: RuntimeError: no weights"),
        (["net.py:nothing", "--input", "1x3x8x8"], "net.py has no 'nothing'"),
        (["net.onnx", "--input", "1x3x8x8"], "is a graph, whose layers cannot be exchanged"),
        (["--input", "1x3x8x8"], "--input needs a MODEL"),
        (["net.py:net", "--input", "1x3x8x8", "--json", "no/a.json"], "there is no folder no"),
    ],
)
def test_the_command_fails_in_one_line(capsys, arguments, message):
    assert main(["advise", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.skipif(find_spec("facenet_pytorch") is None, reason="the example's weights")
def test_without_a_model_it_is_the_example(capsys):
    assert main(["advise"]) == 0
    assert "MTCNN face networks  float32[1, 3, 24, 24]" in capsys.readouterr().out
