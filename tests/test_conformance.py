"""Every pooling entry of torch's own operator and module databases, run through poolkit.

Values, indices, gradients, dtypes and memory formats are compared, on each path that may run a
call; every error input must raise an error of ours. The known differences are asserted as such.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import poolkit  # noqa: E402
import poolkit.nn  # noqa: E402
from poolkit.torch import dispatch  # noqa: E402

# Entries that are no operator that anyone calls by name: the gradient is compared as a gradient.
NOT_CALLED = {"max_pool2d_with_indices_backward"}
OPERATORS = [op for op in op_db if "pool" in op.name and op.name not in NOT_CALLED]
MODULES = [entry for entry in module_db if "Pool" in entry.name]
EXACT = re.compile("max", re.IGNORECASE)  # a maximum is a value of the input
SEED = 42  # to which the entries of torch set what they draw themselves
AMBIGUOUS = "ambiguous"
PATHS = ("chosen", "native", "composite")


def in_range(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Torch draws samples outside the range that they are documented to have."""
    samples = kwargs.get("_random_samples")
    if samples is None or bool(((samples >= 0) & (samples < 1)).all()):
        return kwargs
    return {**kwargs, "_random_samples": torch.rand_like(samples)}


def seed() -> None:
    """`torch.manual_seed` of the CPU alone: for each device that may come later it writes down the
    whole stack, which takes ten times as long as a sample."""
    torch.default_generator.manual_seed(SEED)


def samples_of(op: Any, dtype: torch.dtype) -> list[Any]:
    seed()
    return list(op.sample_inputs("cpu", dtype, set_seed=False))


def ours(op: Any) -> Callable[..., Any]:
    return getattr(poolkit, op.name.removeprefix("nn.functional."))


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who runs: what dispatch chooses (aten, for the tiny samples), or one path by force."""
    if request.param != "chosen":
        monkeypatch.setattr(dispatch, "TINY", 0)
    if request.param == "composite":
        monkeypatch.setattr(dispatch, "_has_kernels", lambda x: False)
        monkeypatch.setattr(dispatch, "_aten_takes", lambda x, axes: False)
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The samples are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layouts(x: torch.Tensor, spatial: int) -> Iterator[torch.Tensor]:
    """The tensor as it is, with channels behind, and as a view with gaps."""
    yield x
    if spatial > 1 and x.ndim == spatial + 2:
        yield x.contiguous(
            memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        )
    gaps = torch.empty((*x.shape, 2), dtype=x.dtype)
    gaps[..., 0] = x
    yield gaps[..., 0]


def tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def assert_same(mine: Any, theirs: Any, exact: bool, x: torch.Tensor | None = None) -> None:
    """Values and indices agree, to the bit if `exact`, else to 8 units in the last place of the
    largest; they lie
    in memory as torch's do, or as `x` where torch forgets it (3-D averages). Gradients, for which
    no `x` is given, may lie as they like."""
    for a, b in zip(tensors(mine), tensors(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if exact:
            assert torch.equal(a, b)
        elif a.numel():  # of the largest value, as a sum may cancel
            tolerance = 8 * torch.finfo(a.dtype).eps * max(b.abs().max().item(), 1)
            torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)
        if x is not None and AMBIGUOUS not in (layout_of(a), layout_of(b)):
            assert layout_of(a) in (layout_of(b), layout_of(x) if a.ndim == 5 else None)


def layout_of(x: torch.Tensor) -> str:
    if x.ndim not in (4, 5) or not x.numel() or 1 in x.shape[1:]:
        return AMBIGUOUS  # with one channel or pixel both layouts are the same
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return "channels behind" if x.is_contiguous(memory_format=form) else "channels in front"


def gradients(run: Callable[..., Any], x: torch.Tensor) -> tuple[Any, tuple[torch.Tensor, ...]]:
    leaf = x.detach().requires_grad_()
    seed()
    result = run(leaf)
    values = tensors(result)[0]
    # Small integers: sums of them are exact in any order and dtype.
    weights = torch.arange(values.numel(), dtype=torch.float32).reshape(values.shape) % 7 - 3
    return result, torch.autograd.grad(values, leaf, weights.to(values.dtype))


def test_every_pooling_entry_is_run() -> None:
    named = {op.name.removeprefix("nn.functional.") for op in OPERATORS}
    assert named >= {f"{family}_pool{n}d" for family in ("max", "avg") for n in (1, 2, 3)} | {
        f"adaptive_{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)
    }
    assert all(hasattr(poolkit, name) for name in named)
    assert all(hasattr(poolkit.nn, entry.name.removeprefix("nn.")) for entry in MODULES)


def test_the_comparison_can_fail() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert_same((x, x.long()), (x.clone(), x.long()), True, x)
    off = torch.nextafter(x, torch.tensor(9.0))
    for wrong in (off, x.double(), x[0], x + 1):
        with pytest.raises(AssertionError):
            assert_same(wrong, x, True)
    wide = torch.zeros(2, 3, 4, 4)
    with pytest.raises(AssertionError):
        assert_same(wide.contiguous(memory_format=torch.channels_last), wide, True, wide)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: f"{op.name}{op.variant_test_name}")
def test_samples(op: Any, path: str) -> None:
    exact = bool(EXACT.search(op.name))
    samples = samples_of(op, torch.float32)
    # Torch has a thousand samples that differ in little: there the paths take turns.
    step = len(PATHS) if len(samples) > 100 else 1
    for sample in samples[PATHS.index(path) % step :: step]:
        sample.kwargs = in_range(sample.kwargs)
        for x in layouts(sample.input, int(op.name[-2])):

            def run(function: Callable[..., Any], x: torch.Tensor = x, s: Any = sample) -> Any:
                seed()
                return function(x, *s.args, **s.kwargs)

            assert_same(run(ours(op)), run(op.op), exact, x)
            if x.numel():
                mine, grad = gradients(lambda x: run(ours(op), x), x)
                theirs, expected = gradients(lambda x: run(op.op, x), x)
                assert_same(mine, theirs, exact, x)
                assert_same(grad, expected, exact)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: f"{op.name}{op.variant_test_name}")
def test_samples_of_other_dtypes(op: Any, path: str) -> None:
    exact = bool(EXACT.search(op.name))
    for dtype in sorted(op.dtypes - {torch.float32}, key=str):
        if "avg" in op.name and not dtype.is_floating_point:
            continue  # test_an_average_of_integers_is_floating
        samples = samples_of(op, dtype)
        for sample in samples[:: max(len(samples) // 6, 1)]:
            sample.kwargs = in_range(sample.kwargs)
            for x in layouts(sample.input, int(op.name[-2])):
                seed()
                mine = ours(op)(x, *sample.args, **sample.kwargs)
                seed()
                # Aten counts positions in the dtype of the values: int8 takes 127 of them.
                narrow = dtype.itemsize < 4 and not dtype.is_floating_point
                theirs = op.op(x.long() if narrow else x, *sample.args, **sample.kwargs)
                if narrow:
                    theirs = (tensors(theirs)[0].to(dtype), *tensors(theirs)[1:])
                assert_same(mine, theirs, exact, x)


@pytest.mark.parametrize(
    "op", [op for op in OPERATORS if op.error_inputs_func], ids=lambda op: op.name
)
def test_error_inputs(op: Any) -> None:
    count = 0
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(poolkit.PoolError) as caught:
            ours(op)(sample.input, *sample.args, **sample.kwargs)
        assert_message(str(caught.value))
        count += 1
    assert count


def assert_message(message: str) -> None:
    """What is wrong, while pooling which shape with what, and what to do instead."""
    assert re.fullmatch(
        r"(?s).+, while pooling \w+ (\(.*?\)|\w+) (with .+ and \w+\(.*\)|(back )?by \w+)"
        r"\. .+\.",
        message,
    ), message


def test_the_message_check_can_fail() -> None:
    good = "x is 0, while pooling float32 (1, 2) with Sliding(2) and Max(). Give 1."
    assert_message(good)
    for bad in ("x is 0. Give 1.", good.removesuffix(" Give 1."), good.replace(" with ", " ")):
        with pytest.raises(AssertionError):
            assert_message(bad)


def call(module: Any, rest: Any, kwargs: dict[str, Any], x: torch.Tensor) -> Any:
    return module(x, *rest, **kwargs)


@pytest.mark.parametrize("entry", MODULES, ids=lambda entry: entry.name)
def test_modules(entry: Any, path: str) -> None:
    name = entry.name.removeprefix("nn.")
    # torch's samples of the fractional modules hold random numbers in float64
    dtype = torch.float64 if "Fractional" in name else torch.float32
    inputs = entry.module_inputs_func(
        entry, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    for sample in inputs:
        made = [
            getattr(where, name)(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            for where in (poolkit.nn, torch.nn)
        ]
        assert repr(made[0]) == repr(made[1])
        assert made[0].state_dict().keys() == made[1].state_dict().keys()
        (first, *rest), kwargs = sample.forward_input.args, sample.forward_input.kwargs
        # Where torch is right about norms: values of one sign, windows that do not hang over.
        first = first.abs() if "LP" in name else first
        for x in layouts(first, int(name[-2])):
            mine, theirs = (
                gradients(functools.partial(call, module, rest, kwargs), x) for module in made
            )
            assert_same(mine[0], theirs[0], "Max" in name, x)
            assert_same(mine[1], theirs[1], "Max" in name)


@pytest.mark.parametrize("entry", [e for e in MODULES if e.module_error_inputs_func])
def test_module_error_inputs(entry: Any) -> None:
    errors = entry.module_error_inputs_func(
        entry, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    for error in errors:
        made, given = error.module_error_input, error.module_error_input.forward_input
        module = getattr(poolkit.nn, entry.name.removeprefix("nn."))(
            *made.constructor_input.args, **made.constructor_input.kwargs
        )
        with pytest.raises(poolkit.PoolError) as caught:
            module(*given.args, **given.kwargs)
        assert_message(str(caught.value))


# --- where poolkit differs, on purpose -----------------------------------------------------------


def test_an_average_of_integers_is_floating(path: str) -> None:
    x = torch.tensor([[[1, 2, 4, 9]]])
    assert torch.nn.functional.avg_pool1d(x, 2).tolist() == [[[1, 6]]]
    mine = poolkit.avg_pool1d(x, 2)
    assert mine.dtype == torch.float32
    assert mine.tolist() == [[[1.5, 6.5]]]
    whole = poolkit.pool(x, "Sliding(2)", poolkit.Mean(result="same"), ndim=1)
    assert whole.dtype == x.dtype
    assert whole.tolist() == [[[2, 6]]]  # half to even


def test_a_norm_takes_absolute_values(path: str) -> None:
    x = torch.tensor([[[-3.0, 3.0, -4.0, -4.0]]])
    torch.testing.assert_close(
        poolkit.lp_pool1d(x, 3, 2), torch.tensor([[[54.0, 128.0]]]).pow(1 / 3)
    )
    # sign(s) * relu(|s|) ** (1 / 3) of the sum s of signed powers
    theirs = torch.nn.functional.lp_pool1d(x, 3, 2)[0, 0]
    assert theirs[0] == 0
    assert not theirs[1] > 0


def test_a_norm_does_not_scale_up_what_hangs_over(path: str) -> None:
    x = torch.tensor([[[3.0, 4.0, 5.0]]])
    assert poolkit.lp_pool1d(x, 2, 2, ceil_mode=True).tolist() == [[[5.0, 5.0]]]
    scaled = torch.nn.functional.lp_pool1d(x, 2, 2, ceil_mode=True)
    torch.testing.assert_close(scaled[0, 0, 1], torch.tensor(50.0).sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Of 81 windows each gives 1/81: rounded once it is 1, in the half type it is not."""
    x = torch.zeros(1, 1, 128, 128, dtype=dtype, requires_grad=True)
    for pool, right in ((poolkit.avg_pool2d, True), (torch.nn.functional.avg_pool2d, False)):
        y = pool(x, 9, 1, 4)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert (grad[0, 0, 64, 64].item() == 1.0) is right
