# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Flags: each is raised where it should be, with its numbers, and nowhere else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import Calls, look
from torch import nn

import poolkit
from poolkit.inspection.flags import RULES
from poolkit.inspection.records import Flag


def flags(model, *inputs) -> dict[str, Flag]:
    """All flags of all layers, by kind."""
    return {flag.kind: flag for layer in look(model, *inputs) for flag in layer.flags}


def of_call(call, size: int = 8) -> dict[str, Flag]:
    torch.manual_seed(0)
    return flags(Calls(call), torch.randn(2, 3, size, size))


X8 = torch.rand(2, 3, 8, 8) + 0.1

#: What raises a flag, and what nearly does.
EXAMPLES = {
    "drops-border": (
        lambda x: F.max_pool2d(x, 3),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        "The windows do not tile the map: the last 2 of 8 rows and the last 2 of 8 columns are in "
        "none.",
    ),
    "overhang": (
        lambda x: F.max_pool2d(x, (3, 2), ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, ceil_mode=True),
        "ceil_mode: the last windows hang over the end by 1 of 3 rows, so their values are made "
        "from fewer inputs.",
    ),
    "counts-padding": (
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        "44 % of the averages are pulled towards zero: padding counts as values.",
    ),
    "sees-padding-only": (
        lambda x: poolkit.pool(x, poolkit.Sliding(2, padding=((2, 2), (0, 0)))),
        lambda x: poolkit.pool(x, poolkit.Sliding(2, padding=((1, 1), (0, 0)))),
        "8 of 24 windows see nothing but padding.",
    ),
    "gaps": (
        lambda x: F.max_pool2d(x, 1, 2),
        lambda x: F.max_pool2d(x, 2, 2),
        "The kernel of 1×1 is smaller than the stride of 2×2: 75 % of the input is never read.",
    ),
    "identity": (
        lambda x: F.max_pool2d(x, 1),
        lambda x: F.max_pool2d(x, (1, 2), 1),
        "Each output is its input: this pooling does nothing.",
    ),
    "not-exportable": (
        lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: F.adaptive_avg_pool2d(x, (2, None)),
        "Bins differ in size (8 rows into 3): ONNX has no pooling for them, so exporting fails, "
        "or unfolds it into gathers.",
    ),
    "int8": (
        lambda x: F.lp_pool2d(x, 3.0, 2),
        lambda x: F.max_pool2d(x, 2),
        "Lp(3.0) has no 8-bit kernel; it stays in floating point.",
    ),
    "relu-order": (
        lambda x: F.relu(F.avg_pool2d(x, 2)),
        lambda x: F.avg_pool2d(F.relu(x), 2),
        "relu runs after the average: positive and negative values cancel before it.",
    ),
    "relu-foldable": (
        lambda x: F.max_pool2d(F.relu(x), 2),
        lambda x: F.max_pool2d(F.elu(x), 2),
        "relu runs on all values before the maximum; behind it the result is the same, on 25 % "
        "of them.",
    ),
    "redundant": (
        lambda x: F.conv2d(F.max_pool2d(x, 3, 1, 1), torch.ones(2, 8, 1, 1), stride=2),
        lambda x: F.conv2d(F.max_pool2d(x, 3, 1, 1), torch.ones(2, 8, 2, 2), stride=2),
        "conv2d reads 25 % of these outputs and steps over the others.",
    ),
    "chain": (
        lambda x: F.max_pool2d(F.max_pool2d(x, 3, 1, 1), 2),
        lambda x: F.avg_pool2d(F.avg_pool2d(x, 3, 1), 2),
        "With max_pool2d behind it this is one pooling: Sliding((4, 4), stride=(2, 2), "
        "padding=((1, 1), (1, 1))).",
    ),
    "padding-wins": (
        lambda x: F.max_pool2d(F.pad(-x.abs() - 1, (0, 0, 1, 0)), 3, 3),
        lambda x: F.max_pool2d(F.pad(x.abs() + 1, (0, 0, 1, 0)), 3, 3),
        "pad pads with 0, which is the result of 33 % of the windows on this input.",
    ),
    "not-finite": (
        lambda x: F.max_pool2d(x / x.new_zeros(()), 2),
        lambda x: F.max_pool2d(x, 2),
        "100 % of the input is NaN or infinite, so nothing is measured.",
    ),
    "dead-channels": (
        lambda x: F.max_pool2d(x * (torch.arange(8) > 3).reshape(8, 1, 1), 2),
        lambda x: F.max_pool2d(x * (torch.arange(8) > 0).reshape(8, 1, 1), 2),
        "4 of 8 channels are constant on this input.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_flag_is_raised_with_its_numbers_and_not_by_its_neighbour(kind):
    raises, silent, text = EXAMPLES[kind]
    assert of_call(raises)[kind].text == text
    assert kind not in of_call(silent)


def test_every_rule_has_an_example():
    assert len(RULES) <= len(EXAMPLES)
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_a_sound_pooling_has_no_flag():
    assert of_call(lambda x: F.max_pool2d(x, 2).sigmoid()) == {}
    assert of_call(lambda x: F.avg_pool2d(F.silu(x), 2)) == {}
    assert of_call(lambda x: x.mean((2, 3))) == {}


def test_flags_come_gravest_first_and_say_what_to_do():
    (layer,) = look(Calls(lambda x: F.lp_pool2d(x, 3.0, 3)), X8)
    assert [flag.severity for flag in layer.flags] == ["wrong", "note"]
    assert all(flag.fix.endswith(".") for flag in layer.flags)


# ---------------------------------------------------------------- the fixes are right


def test_the_fix_of_a_chain_is_the_same():
    x = torch.randn(2, 3, 16, 16)
    window = poolkit.Sliding((4, 4), stride=(2, 2), padding=((1, 1), (1, 1)))
    assert torch.equal(
        F.max_pool2d(F.max_pool2d(x, 3, 1, 1), 2), poolkit.pool(x, window, poolkit.Max())
    )


@pytest.mark.parametrize(
    ("call", "window"),
    [
        (lambda x: F.avg_pool2d(F.avg_pool2d(x, 2), 2), "Sliding((4, 4), stride=(4, 4)"),
        (lambda x: F.avg_pool2d(x, 2).mean((2, 3)), "Global()"),
        (lambda x: F.adaptive_max_pool2d(F.max_pool2d(x, 3, 2, 1), 1), "Global()"),
    ],
)
def test_chains_of_means_and_of_whole_maps(call, window):
    found = of_call(call)["chain"]
    assert f"one pooling: {window}" in found.text


def test_a_chain_that_drops_a_border_is_not_one_with_the_whole_map():
    # The last of 9 rows is in no window, but in the whole map.
    assert "chain" not in of_call(lambda x: F.max_pool2d(x, 2).amax((2, 3)), size=9)


def test_a_chain_whose_middle_is_read_is_none():
    assert "chain" not in of_call(
        lambda x: torch.cat([y := F.max_pool2d(x, 3, 1, 1), F.max_pool2d(y, 3, 1, 1)], 1)
    )


def test_a_relu_that_others_read_stays_where_it_is():
    assert "relu-foldable" not in of_call(lambda x: F.max_pool2d(y := F.relu(x), 2).sum() + y.sum())


def test_relu_behind_a_maximum_is_foldable():
    found = of_call(lambda x: F.relu(F.max_pool2d(x, 2)))["relu-foldable"]
    assert found.fix == "Call poolkit.relu_max_pool2d, which does both in one pass."
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(poolkit.relu_max_pool2d(x, 2), F.relu(F.max_pool2d(x, 2)))


def test_a_view_between_two_layers_does_not_hide_them():
    found = of_call(lambda x: F.relu(F.max_pool2d(x, 2).flatten(1)))
    assert "relu-foldable" in found


def test_a_divisor_of_ones_own():
    found = of_call(lambda x: F.avg_pool2d(x, 2, divisor_override=3))["counts-padding"]
    assert found.text == "100 % of the averages are divided by 3, whatever they see."


def test_outliers_are_not_ready_for_int8():
    class Spiked(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 2)

    x = torch.rand(1, 4, 16, 16)
    assert "int8" not in flags(Spiked(), x)
    x[0, 0, 0, 0] = 100
    # Of 255 steps from 0 to 100 one is 0.39, and a typical average is 0.5.
    assert flags(Spiked(), x)["int8"].text.endswith("few large ones take the range.")


def test_a_strided_convolution_with_gaps():
    found = flags(nn.Sequential(nn.Conv2d(3, 4, 1, 2)), X8)["gaps"]
    assert found.fix == "Average with a window of the stride before it, and give it stride 1."
    assert flags(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), X8) == {}


def test_fractional_pooling_is_not_exportable():
    found = flags(nn.Sequential(nn.FractionalMaxPool2d(2, output_size=3)), X8)
    assert set(found) == {"not-exportable"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_refuses_what_is_flagged():
    """The claim itself: torch's exporter has no operator for bins that differ."""
    pytest.importorskip("onnx")
    with pytest.raises(torch.onnx.errors.SymbolicValueError):
        torch.onnx.export(
            nn.AdaptiveAvgPool2d((3, 4)), (X8,), "/dev/null", dynamo=False, verbose=False
        )
