"""What is refused, and how the refusal reads: what is wrong, while pooling what, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import poolkit
from poolkit.errors import MissingExtraError, PoolError, PoolTypeError, PoolValueError
from poolkit.reductions import GeM, LogSumExp, Lp, Mean, Quantile, Soft, Std, TopK
from poolkit.windows import Adaptive, Global, Pyramid, Sliding

X = np.zeros((1, 2, 8, 8), dtype=np.float32)


def refusal(call: Callable[[], Any]) -> PoolError:
    with pytest.raises(PoolError) as caught:
        call()
    error = caught.value
    assert isinstance(error, (ValueError, TypeError)), "what NumPy and torch raise is caught too"
    assert error.instead, f"no remedy in: {error}"
    return error


def check_parts(error: PoolError, what: str, context: str, instead: str) -> None:
    """The three parts of a message, and nothing else."""
    assert re.search(what, error.what), error.what
    assert error.context == context
    assert re.search(instead, error.instead), error.instead
    where = f", while pooling {context}" if context else ""
    assert str(error) == f"{error.what}{where}. {error.instead.rstrip('.')}."


# --- parameters of windows and reductions --------------------------------------------------------

PARAMETERS = [
    (lambda: Sliding(0), PoolValueError, "kernel_size must be at least 1, got 0"),
    (lambda: Sliding(-3), PoolValueError, "kernel_size must be at least 1, got -3"),
    (lambda: Sliding(2.0), PoolTypeError, r"kernel_size must be an integer .* got 2\.0"),
    (lambda: Sliding(True), PoolTypeError, "kernel_size must be an integer .* got True"),
    (lambda: Sliding("3"), PoolTypeError, "kernel_size must be an integer .* got '3'"),
    (lambda: Sliding(None), PoolTypeError, "kernel_size must be an integer .* got None"),
    (lambda: Sliding(()), PoolValueError, "kernel_size has 0 entries"),
    (lambda: Sliding({3}), PoolTypeError, "kernel_size must be an integer"),
    (lambda: Sliding(np.array([3, 3])), PoolTypeError, "kernel_size must be an integer"),
    (lambda: Sliding(np.float32(3)), PoolTypeError, "kernel_size must be an integer"),
    (lambda: Sliding(math.nan), PoolTypeError, "kernel_size must be an integer .* got nan"),
    (lambda: Sliding((2, 0)), PoolValueError, "kernel_size must be at least 1, got 0"),
    (lambda: Sliding(2**62), PoolValueError, f"kernel_size must be at most {2**40}, got {2**62}"),
    (lambda: Sliding(2**90), PoolValueError, "kernel_size must be at most"),
    (lambda: Sliding(2**30, dilation=2**30), PoolValueError, "the reach of a window must be at m"),
    (lambda: Sliding(2, stride=0), PoolValueError, "stride must be at least 1, got 0"),
    (lambda: Sliding(2, stride=1.5), PoolTypeError, "stride must be an integer"),
    (lambda: Sliding(2, stride=2**63), PoolValueError, "stride must be at most"),
    (lambda: Sliding(2, dilation=0), PoolValueError, "dilation must be at least 1, got 0"),
    (lambda: Sliding(2, dilation=None), PoolTypeError, "dilation must be an integer"),
    (lambda: Sliding(2, padding=-1), PoolValueError, "padding must be at least 0, got -1"),
    (lambda: Sliding(2, padding=((0, -1),)), PoolValueError, "padding must be at least 0, got -1"),
    (lambda: Sliding(2, padding=0.5), PoolTypeError, r"padding must be an integer .* got 0\.5"),
    (lambda: Sliding(2, padding=()), PoolValueError, "padding has 0 entries"),
    (lambda: Sliding(2, padding=[]), PoolValueError, "padding has 0 entries"),
    (lambda: Sliding(2, padding=((1, 2, 3),)), PoolValueError, r"padding needs one \(before"),
    (lambda: Sliding((2, 2), padding=((1, 2), 3)), PoolValueError, r"padding needs one \(before"),
    (lambda: Sliding(2, padding="SAME"), PoolValueError, "padding must be 'valid', 'same' or "),
    (lambda: Sliding(2, padding=2**62), PoolValueError, "padding must be at most"),
    (lambda: Sliding(2, ceil_mode="yes"), PoolTypeError, "ceil_mode must be a bool, got 'yes'"),
    (lambda: Sliding((2, 2), stride=(1, 1, 1)), PoolValueError, "stride has 3 entries for 2 spat"),
    (lambda: Adaptive(-1), PoolValueError, "output_size must be at least 0, got -1"),
    (lambda: Adaptive(1.5), PoolTypeError, "output_size must be an integer"),
    (lambda: Adaptive(()), PoolValueError, "output_size is empty"),
    (lambda: Adaptive((2, "3")), PoolTypeError, "output_size must be an integer"),
    (lambda: Adaptive(2**62), PoolValueError, "output_size must be at most"),
    (lambda: Pyramid(3), PoolTypeError, "levels must be a sequence of output sizes, got 3"),
    (lambda: Pyramid(()), PoolTypeError, r"levels must be a sequence of output sizes, got \(\)"),
    (lambda: Pyramid((2, -1)), PoolValueError, "output_size must be at least 0, got -1"),
    (lambda: Lp(0), PoolValueError, "p must be above 0 and finite, got 0"),
    (lambda: Lp(-2), PoolValueError, "p must be above 0 and finite, got -2"),
    (lambda: Lp(math.inf), PoolValueError, "p must be above 0 and finite, got inf"),
    (lambda: Lp(math.nan), PoolValueError, "p must be above 0 and finite, got nan"),
    (lambda: Lp("2"), PoolTypeError, "p must be a number, got '2'"),
    (lambda: Lp(True), PoolTypeError, "p must be a number, got True"),
    (lambda: Lp(1j), PoolTypeError, "p must be a number, got 1j"),
    (lambda: GeM(p=0), PoolValueError, "p must be above 0 and finite, got 0"),
    (lambda: GeM(eps=-1e-3), PoolValueError, r"eps must be at least 0, got -0\.001"),
    (lambda: GeM(eps=math.nan), PoolValueError, "eps must be of at least 0 and finite, got nan"),
    (lambda: GeM(eps=math.inf), PoolValueError, "eps must be of at least 0 and finite, got inf"),
    (lambda: GeM(eps="0"), PoolTypeError, "eps must be a number, got '0'"),
    (lambda: LogSumExp(0), PoolValueError, "r must be above 0 and finite, got 0"),
    (lambda: LogSumExp(math.nan), PoolValueError, "r must be above 0 and finite, got nan"),
    (lambda: LogSumExp(None), PoolTypeError, "r must be a number, got None"),
    (lambda: Soft(-1), PoolValueError, "beta must be above 0 and finite, got -1"),
    (lambda: Soft(math.inf), PoolValueError, "beta must be above 0 and finite, got inf"),
    (lambda: Quantile(-0.1), PoolValueError, r"q must lie between 0 and 1, got -0\.1"),
    (lambda: Quantile(1.1), PoolValueError, r"q must lie between 0 and 1, got 1\.1"),
    (lambda: Quantile(math.nan), PoolValueError, "q must be between 0 and 1 and finite, got nan"),
    (lambda: Quantile("0.5"), PoolTypeError, "q must be a number, got '0.5'"),
    (lambda: TopK(0), PoolValueError, "k must be at least 1, got 0"),
    (lambda: TopK(1.0), PoolTypeError, r"k must be an integer, got 1\.0"),
    (lambda: TopK(True), PoolTypeError, "k must be an integer, got True"),
    (lambda: Std(correction=-1), PoolValueError, "correction must be at least 0, got -1"),
    (lambda: Std(correction=0.5), PoolTypeError, r"correction must be an integer, got 0\.5"),
    (lambda: Mean(divisor=0), PoolValueError, "divisor must not be zero"),
    (lambda: Mean(divisor=1.5), PoolTypeError, r"divisor must be an integer or None, got 1\.5"),
    (lambda: Mean(divisor=2**70), PoolValueError, r"divisor must lie between -2\*\*53 and 2\*\*53"),
    (lambda: Mean(result="int"), PoolValueError, "result must be 'float' or 'same', got 'int'"),
    (lambda: Mean(count_include_pad="no"), PoolTypeError, "count_include_pad must be a bool"),
    (lambda: Mean(count_include_pad=[]), PoolTypeError, "count_include_pad must be a bool"),
    (lambda: poolkit.set_num_threads(0), PoolValueError, "threads must be at least 1, got 0"),
    (
        lambda: poolkit.set_num_threads(2**40),
        PoolValueError,
        f"threads must be at most 1024, got {2**40}",
    ),
    (lambda: poolkit.set_num_threads(-1), PoolValueError, "threads must be at least 1, got -1"),
    (lambda: poolkit.set_num_threads(1.5), PoolTypeError, r"threads must be an integer, got 1\.5"),
    (lambda: poolkit.set_num_threads("2"), PoolTypeError, "threads must be an integer, got '2'"),
    (lambda: poolkit.use_isa(None), PoolValueError, "the instruction set None is not available"),
]


@pytest.mark.parametrize(("call", "kind", "what"), PARAMETERS, ids=[p[2] for p in PARAMETERS])
def test_parameters(call: Callable[[], Any], kind: type[PoolError], what: str) -> None:
    error = refusal(call)
    assert type(error) is kind
    check_parts(error, f"^{what}", "", ".")


# --- calls ---------------------------------------------------------------------------------------

F = "float32 (1, 2, 8, 8)"
CALLS = [
    # arrays
    (([1, 2], Sliding(2), "max"), {}, PoolTypeError, "expected, got list",
     "a list with Sliding(2) and Max()", "numpy.asarray"),
    ((3.0, Sliding(2), "max"), {}, PoolTypeError, "expected, got float",
     "a float with Sliding(2) and Max()", "numpy.asarray"),
    ((None, Sliding(2), "max"), {}, PoolTypeError, "expected, got NoneType",
     "a NoneType with Sliding(2) and Max()", "numpy.asarray"),
    ((np.ma.masked_array(X), Sliding(2), "max"), {}, PoolTypeError, "a masked array would be",
     f"{F} with Sliding(2) and Max()", r"x\.filled\(value\)"),
    ((X.astype(complex), Sliding(2), "mean"), {}, PoolTypeError, "dtype complex128 cannot be",
     "complex128 (1, 2, 8, 8) with Sliding(2) and Mean()", "Convert to one of float64, float32"),
    ((X.astype(object), Sliding(2), "mean"), {}, PoolTypeError, "dtype object cannot be pooled",
     "object (1, 2, 8, 8) with Sliding(2) and Mean()", "Convert to one of"),
    ((X.astype("U1"), Sliding(2), "max"), {}, PoolTypeError, "dtype <U1 cannot be pooled",
     "<U1 (1, 2, 8, 8) with Sliding(2) and Max()", "Convert to one of"),
    ((X.astype("M8[s]"), Global(), "max"), {}, PoolTypeError, "dtype datetime64.s. cannot be",
     "datetime64[s] (1, 2, 8, 8) with Global() and Max()", "Convert to one of"),
    ((X.astype(">f4"), Global(), "max"), {}, PoolTypeError, "dtype >f4 cannot be pooled",
     ">f4 (1, 2, 8, 8) with Global() and Max()", r'x\.astype\(x\.dtype\.newbyteorder\("="\)\)'),
    ((X.astype("uint32"), Global(), "max"), {}, PoolTypeError, "dtype uint32 cannot be pooled",
     "uint32 (1, 2, 8, 8) with Global() and Max()", "Convert to one of"),
    ((X.astype("longdouble"), Global(), "max"), {}, PoolTypeError, r"dtype \w+ cannot be pooled",
     f"{np.dtype('longdouble')} (1, 2, 8, 8) with Global() and Max()", "Convert to one of"),
    # shapes
    ((X, Sliding(9), "max"), {}, PoolValueError, "a window of 9 positions does not fit axis 0",
     f"{F} with Sliding(9) and Max()", "smaller kernel, more padding, or an adaptive window"),
    ((X, Sliding((2, 5), dilation=(1, 3)), "max"), {}, PoolValueError,
     r"a window of 13 positions does not fit axis 1 of spatial shape \(8, 8\) with padding \(0, 0",
     f"{F} with Sliding((2, 5), dilation=(1, 3)) and Max()", "smaller kernel"),
    ((X, Sliding(2**40), "max"), {}, PoolValueError, f"a window of {2**40} positions does not",
     f"{F} with Sliding({2**40}) and Max()", "smaller kernel"),
    ((X[..., :0], Sliding(1), "max"), {}, PoolValueError, r"shape \(8, 0\) has an axis without",
     "float32 (1, 2, 8, 0) with Sliding(1) and Max()", "Only the batch may be empty"),
    ((X[..., :0], Global(), "sum"), {}, PoolValueError, r"shape \(8, 0\) has an axis without",
     "float32 (1, 2, 8, 0) with Global() and Sum()", "Only the batch may be empty"),
    ((np.float32(1).reshape(()), Global(), "max"), {}, PoolValueError,
     "an input of rank 0 has no room for 1 spatial axis",
     "float32 () with Global() and Max()", "rank 1 or more"),
    ((X[0, 0], Sliding((2, 2, 2)), "max"), {}, PoolValueError, "rank 2 has no room for 3 spatial",
     "float32 (8, 8) with Sliding((2, 2, 2)) and Max()", "rank 3 or more"),
    ((X[0, 0], Sliding((2, 2)), "max"), {"channels_last": True}, PoolValueError,
     "an input of rank 2 has no room for 2 spatial axes and the channels behind them",
     "float32 (8, 8) with Sliding((2, 2)) and Max()", "rank 3 or more"),
    ((X, Sliding((2, 2)), "max"), {"ndim": 1}, PoolTypeError,
     "ndim=1 was asked for, the window has 2 axes",
     f"{F} with Sliding((2, 2)) and Max()", "Drop one"),
    ((X, Sliding(2), "max"), {"ndim": 0}, PoolTypeError, "ndim must be an integer of at least 1",
     f"{F} with Sliding(2) and Max()", "ndim=2"),
    ((X, Sliding(2), "max"), {"ndim": "2"}, PoolTypeError, "ndim must be an integer .* got '2'",
     f"{F} with Sliding(2) and Max()", "ndim=2"),
    ((X, Pyramid(((2, 2), (1, 1, 1))), "max"), {}, PoolTypeError, "has 3 axes, the input 2 spatia",
     f"{F} with Pyramid(((2, 2), (1, 1, 1))) and Max()", "Make them agree"),
    # windows and reductions
    ((X, 3, "max"), {}, PoolTypeError, "a window was expected, got int",
     f"{F} with 3 and max", r"poolkit\.Sliding\(2\) or poolkit\.Global\(\)"),
    ((X, "Slide(2)", "max"), {}, PoolValueError, "there is no window named 'Slide'",
     f"{F} with Slide(2) and max", "One of: Adaptive, Global, Pyramid, Sliding"),
    ((X, "Sliding(0)", "max"), {}, PoolValueError, "kernel_size must be at least 1, got 0",
     f"{F} with Sliding(0) and max", "positive size"),
    ((X, Sliding(2), "mode"), {}, PoolValueError, "there is no reduction named 'mode'",
     f"{F} with Sliding(2) and mode", "One of: Max, Min, Lp"),
    ((X, Sliding(2), max), {}, PoolTypeError, "a reduction was expected, got builtin_function",
     f"{F} with Sliding(2) and {max}", "its name: 'max'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "options", "kind", "what", "context", "instead"), CALLS, ids=[c[3] for c in CALLS]
)
def test_calls(
    args: tuple, options: dict, kind: type[PoolError], what: str, context: str, instead: str
) -> None:
    error = refusal(lambda: poolkit.pool(*args, **options))
    assert type(error) is kind
    if "One of" in instead:
        assert set(re.findall(r"\w+", instead)) <= set(re.findall(r"\w+", error.instead))
        instead = "One of"
    # How a window and a reduction given as text are written depends on where the reading failed.
    given = context.replace("and Max()", "and max").replace("and Mean()", "and mean")
    given = given.replace("and Sum()", "and sum")
    check_parts(error, what, given if error.context == given else context, instead)


@pytest.mark.parametrize(
    ("args", "options"), [(c[0], c[1]) for c in CALLS], ids=[c[3] for c in CALLS]
)
def test_the_other_entry_points_refuse_alike(args: tuple, options: dict) -> None:
    """`explain` and `pool_with_indices` say the same as `pool`."""
    message = str(refusal(lambda: poolkit.pool(*args, **options)))
    assert str(refusal(lambda: poolkit.explain(*args, **options))) == message
    if args[2] in ("max", max, "mode") and not isinstance(args[1], Pyramid):
        assert str(refusal(lambda: poolkit.pool_with_indices(*args, **options))) == message


# --- what was asked before changes nothing --------------------------------------------------------

SIZES = [
    ({"kernel_size": 3.0}, r"kernel_size must be an integer .* got 3\.0"),
    ({"kernel_size": np.float64(3)}, r"kernel_size must be an integer .* got"),
    ({"kernel_size": (3.0, 3)}, r"kernel_size must be an integer .* got 3\.0"),
    ({"kernel_size": np.array([3, 3])}, "kernel_size must be an integer .* got array"),
    ({"kernel_size": 3, "stride": True}, "stride must be an integer .* got True"),
    ({"kernel_size": 3, "padding": 1.0}, r"padding must be an integer .* got 1\.0"),
    ({"kernel_size": 3, "padding": np.array([1, 1])}, "padding must be an integer .* got array"),
    ({"kernel_size": 3, "ceil_mode": "no"}, "ceil_mode must be a bool, got 'no'"),
    ({"kernel_size": 3, "ceil_mode": 1.0}, r"ceil_mode must be a bool, got 1\.0"),
]


@pytest.mark.parametrize("size", [8, 80])
@pytest.mark.parametrize("torchs", [False, True])
@pytest.mark.parametrize(("options", "what"), SIZES, ids=[str(s[0]) for s in SIZES])
def test_equal_numbers_of_other_types_stay_refused(
    options: dict, what: str, torchs: bool, size: int
) -> None:
    x = np.zeros((1, 2, size, size), dtype=np.float32)
    if torchs:
        x = pytest.importorskip("torch").from_numpy(x)
    exact = {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True}
    for run in (poolkit.max_pool2d, poolkit.avg_pool2d):
        run(x, **exact)
        run(x, 3)
        error = refusal(lambda run=run: run(x, **options))
        assert re.search(what, error.what), error.what
        assert error.context.startswith(f"float32 (1, 2, {size}, {size}) with Sliding(kernel_size=")


def test_flags_are_not_converted() -> None:
    x = np.zeros((1, 2, 8, 8), dtype=np.float32)
    for wrong in ("no", None, 0.0):
        error = refusal(lambda wrong=wrong: poolkit.avg_pool2d(x, 2, count_include_pad=wrong))
        assert error.what == f"count_include_pad must be a bool, got {wrong!r}"
    assert repr(Mean(count_include_pad=0)) == "Mean(count_include_pad=False)"


@pytest.mark.parametrize("size", [8, 80])
def test_integers_of_numpy_and_torch_are_integers(size: int) -> None:
    torch = pytest.importorskip("torch")
    x = torch.rand(1, 2, size, size)
    want = poolkit.max_pool2d(x, 2)
    for two in (np.int8(2), np.array(2), torch.tensor(2), [torch.tensor(2), 2]):
        assert torch.equal(poolkit.max_pool2d(x, two), want)
        assert repr(Sliding(two)) in ("Sliding(2)", "Sliding((2, 2))")
    for wrong in (torch.tensor(2.0), torch.tensor(True), torch.tensor([2, 2])):
        error = refusal(lambda wrong=wrong: poolkit.max_pool2d(x, wrong))
        assert error.what.startswith(
            "kernel_size must be an integer or a tuple of them, got tensor"
        )


# --- sums that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("torchs", [False, True])
def test_a_sum_that_leaves_64_bits_is_refused_and_a_mean_is_right(torchs: bool) -> None:
    x: Any = np.array([[2**62, 2**62, -(2**62), 1]])
    if torchs:
        x = pytest.importorskip("torch").from_numpy(x)
    error = refusal(lambda: poolkit.pool(x, Sliding(2), "sum"))
    check_parts(
        error,
        "^a sum of int64 values does not fit 64 bits$",
        "int64 (1, 4) with Sliding(2) and Sum()",
        "^Convert the input to float64$",
    )
    refusal(lambda: poolkit.pool(x, Sliding(2), Mean(result="same")))
    assert poolkit.pool(x, Sliding(2), "mean").tolist() == [[2.0**62, -(2.0**61)]]
    assert poolkit.pool(x, Sliding(2, stride=2, padding=((2, 0),)), "max").tolist()[0][1] == 2**62
    # What wraps nowhere is exact.
    assert poolkit.pool(x[:, 1:], Sliding(3), "sum").tolist() == [[1]]


# --- unpooling and fractions ---------------------------------------------------------------------

V, P = np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2), dtype=np.int64)
UNPOOL = [
    (
        (V, [[1]], 2),
        {},
        PoolTypeError,
        "values and indices must be of one kind, got ndarray and list",
    ),
    (([[1]], P, 2), {}, PoolTypeError, "a NumPy array or a torch tensor was expected, got list"),
    (
        (V, P, 2),
        {"output_size": 4},
        PoolTypeError,
        "output_size must be a sequence of integers, got 4",
    ),
    (
        (V, P, 2),
        {"output_size": ("a", 4)},
        PoolTypeError,
        "output_size must be an integer or a tuple",
    ),
    (
        (V, P, 2),
        {"output_size": (4,)},
        PoolValueError,
        "output_size has 1 entries for 2 spatial axes",
    ),
    ((V, P, 2), {"padding": 2}, PoolValueError, "the output would have the spatial shape (0, 0)"),
    ((V, P, 2), {"stride": 2**39}, PoolValueError, "axis 0 of the output would have"),
    ((V, P.astype(np.int32), 2), {}, PoolTypeError, "indices must be int64, got int32"),
]


@pytest.mark.parametrize(("args", "options", "kind", "what"), UNPOOL, ids=[u[3] for u in UNPOOL])
def test_unpooling_refuses(args: tuple, options: dict, kind: type[PoolError], what: str) -> None:
    error = refusal(lambda: poolkit.max_unpool2d(*args, **options))
    assert type(error) is kind
    assert error.what.startswith(what)
    assert error.context.endswith(" back by max_unpool2d")


def test_unpooling_refuses_a_tensor_with_an_array() -> None:
    torch = pytest.importorskip("torch")
    error = refusal(lambda: poolkit.max_unpool2d(torch.from_numpy(V), P, 2))
    assert error.what == "values and indices must be of one kind, got Tensor and ndarray"


IMAGE = np.zeros((2, 3, 9, 9))
FRACTIONS = [
    ({"_random_samples": np.zeros((2, 3, 3))}, PoolValueError,
     r"_random_samples have the shape \(2, 3, 3\), not \(2, 3, 2\)"),
    ({"_random_samples": np.zeros((1, 3, 2))}, PoolValueError, "not .2, 3, 2."),
    ({"_random_samples": np.ones((2, 3, 2))}, PoolValueError, r"must lie in \[0, 1\)"),
    ({"_random_samples": np.full((2, 3, 2), -0.1)}, PoolValueError, r"must lie in \[0, 1\)"),
    ({"_random_samples": np.full((2, 3, 2), np.nan)}, PoolValueError, r"must lie in \[0, 1\)"),
    ({"_random_samples": np.zeros((2, 3, 2), int)}, PoolTypeError, "must be floating, got int64"),
    ({"_random_samples": [0.5]}, PoolTypeError, "must be of the input's kind, got list"),
    ({"output_size": None, "output_ratio": "a"}, PoolTypeError, "output_ratio must be a number"),
    ({"output_size": None, "output_ratio": 1.5}, PoolValueError, "output_ratio must lie between"),
]  # fmt: skip


@pytest.mark.parametrize("torchs", [False, True])
@pytest.mark.parametrize(("options", "kind", "what"), FRACTIONS, ids=[f[2] for f in FRACTIONS])
def test_fractions_refuse(options: dict, kind: type[PoolError], what: str, torchs: bool) -> None:
    options, x = {"output_size": 5, **options}, IMAGE
    if torchs:
        torch = pytest.importorskip("torch")
        x = torch.from_numpy(IMAGE)
        options = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()
        }
    error = refusal(lambda: poolkit.fractional_max_pool2d(x, 2, **options))
    assert type(error) is kind
    assert re.search(what, error.what), error.what
    assert error.context == "float64 (2, 3, 9, 9) by fractional_max_pool2d"


def test_an_empty_batch_is_pooled_by_fractions_and_back() -> None:
    empty = IMAGE[:0]
    values, places = poolkit.fractional_max_pool2d(empty, 2, 5, return_indices=True)
    assert values.shape == places.shape == (0, 3, 5, 5)
    assert poolkit.max_unpool2d(values, places, 2).shape == (0, 3, 10, 10)


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["max", "min"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_window_in_the_padding_has_no_position(reduction: str, channels_last: bool) -> None:
    window = Sliding(2, padding=((2, 0),))
    x = np.zeros((1, 8, 8), dtype=np.float32)
    error = refusal(
        lambda: poolkit.pool_with_indices(x, window, reduction, ndim=1, channels_last=channels_last)
    )
    name = reduction.capitalize()
    check_parts(
        error,
        "^a window lies wholly in the padding, so its value has no position$",
        f"float32 (1, 8, 8) with {window} and {name}()",
        "less padding, or pool",
    )
    # The value alone is stated: the least or greatest of the dtype.
    got = poolkit.pool(x, window, reduction, ndim=1, channels_last=channels_last)
    assert np.isinf(got).any()


def test_only_extremes_have_positions() -> None:
    error = refusal(lambda: poolkit.pool_with_indices(X, Sliding(2), "mean"))
    check_parts(
        error, "^only Max and Min have positions$", f"{F} with Sliding(2) and Mean()", "pool()"
    )


def test_pyramids_have_no_positions() -> None:
    error = refusal(lambda: poolkit.pool_with_indices(X, Pyramid((2, 1)), "max"))
    check_parts(
        error,
        "^the grids of a pyramid have no common positions$",
        f"{F} with Pyramid((2, 1)) and Max()",
        "Use one grid",
    )
    with pytest.raises(PoolTypeError, match="a pyramid has no single grid"):
        Pyramid((2, 1)).axes((4, 4))


# --- the family ----------------------------------------------------------------------------------


def test_every_error_is_of_the_family_and_of_pythons() -> None:
    assert issubclass(PoolValueError, (PoolError, ValueError))
    assert issubclass(PoolTypeError, (PoolError, TypeError))
    assert issubclass(MissingExtraError, (PoolError, ImportError))
    for kind in (PoolValueError, PoolTypeError, MissingExtraError):
        assert kind.__mro__.index(PoolError) > 0


def test_context_is_added_once() -> None:
    error = PoolValueError("a fact", "A remedy")
    assert str(error) == "a fact. A remedy."
    assert str(error.during("one thing")) == "a fact, while pooling one thing. A remedy."
    assert str(error.during("another")) == "a fact, while pooling one thing. A remedy."


def test_inner_frames_are_dropped() -> None:
    error = refusal(lambda: poolkit.pool(X, Sliding(9), "max"))
    assert error.__suppress_context__
    assert error.__cause__ is None


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert str(MissingExtraError("torch", "torch")) == (
        "this part of poolkit needs the package 'torch', which is not installed. "
        "Install it with: pip install 'poolkit[torch]'."
    )


def test_an_output_that_no_memory_holds() -> None:
    """Neither a crash nor garbage, and refused before any memory is asked for."""
    for window in (
        Sliding(1, stride=1, padding=2**39),
        Sliding(2, stride=1, padding=((2**39,) * 2,) * 2),
        Adaptive(2**40),
        Pyramid((2, 2**40)),
    ):
        error = refusal(lambda window=window: poolkit.pool(X, window, "max"))
        check_parts(
            error,
            rf"^axis 0 of the output would have \d+ positions, more than {2**31}$",
            f"{F} with {window} and Max()",
            "^Use less padding, fewer bins",
        )


def test_large_strides_and_padding_are_right() -> None:
    x = np.arange(5.0)[None, None]
    np.testing.assert_array_equal(poolkit.pool(x, Sliding(2, stride=2**40), "max"), [[[1]]])
    window = Sliding(2**20, stride=2**20, padding=2**19)
    assert poolkit.pool(x, window, "sum").tolist() == [[[10.0]]]
    wide = Sliding(2**30, stride=2**30, padding="same")
    assert poolkit.pool(x, wide, "max").tolist() == [[[4.0]]]


def test_the_message_check_can_fail() -> None:
    error = PoolValueError("a fact", "A remedy").during("a thing")
    check_parts(error, "^a fact$", "a thing", "^A remedy$")
    for what, context, instead in [
        ("a lie", "a thing", "A remedy"),
        ("a fact", "a place", "A remedy"),
        ("a fact", "a thing", "Another"),
    ]:
        with pytest.raises(AssertionError):
            check_parts(error, what, context, instead)
    with pytest.raises(AssertionError, match="no remedy"):
        refusal(lambda: (_ for _ in ()).throw(PoolValueError("a fact")))


def test_a_question_ends_as_it_is() -> None:
    assert (
        str(PoolValueError("there is no x", "Did you mean y?")) == "there is no x. Did you mean y?"
    )
    assert str(PoolValueError("there is no x", "Give y")) == "there is no x. Give y."
