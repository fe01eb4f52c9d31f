"""Activations pooled together with their input: against the oracle, against the activation and
the pooling one after the other, and against torch; their accuracy, gradients and errors."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from examples import REDUCTIONS
from oracle import EPS, expect, numbers_of, pool_by_oracle
from test_instruction_sets import CASES, bits, noise
from test_oracle import WALKS

import poolkit
from poolkit.activations import ACTIVATIONS, Activation, as_activation
from poolkit.dtypes import DTYPES
from poolkit.plan import plan_for
from poolkit.recipes import parameters_of, read
from poolkit.reductions import Lp, Max, Mean, Min, Reduction, Sum, as_reduction
from poolkit.reference import activate_reference
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window

MADE: list[Activation] = [
    poolkit.ReLU(),
    poolkit.LeakyReLU(),
    poolkit.LeakyReLU(negative_slope=-0.5),
    poolkit.Exp(),
    poolkit.Sigmoid(),
    poolkit.Tanh(),
    poolkit.SiLU(),
    poolkit.GELU(),
    poolkit.GELU(approximate="tanh"),
    poolkit.Hardswish(),
]
NATIVE = [Max(), Min(), Sum(), Mean(count_include_pad=False), Lp(2)]
FLOATS = [name for name, row in DTYPES.items() if row.kind == "float"]
NUMPY_FLOATS = [name for name in FLOATS if name != "bfloat16"]


def test_every_activation_is_here() -> None:
    assert {type(made).__name__ for made in MADE} == set(ACTIVATIONS)


def parameters(made: Activation) -> dict[str, Any]:
    return {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}


def alone(x: np.ndarray, activation: Activation) -> np.ndarray:
    """The activated values: a window of one position, seen by a reduction that does nothing."""
    line = np.ascontiguousarray(x).reshape(-1, 1)
    return poolkit.pool(line, Global(), "max", ndim=1, activation=activation).reshape(x.shape)


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("made", MADE, ids=str)
def test_recipes_round_trip(made: Activation) -> None:
    assert as_activation(repr(made)) == made == read(repr(made), "activation")
    whole = poolkit.Activated("Quantile(0.3)", made)
    assert as_reduction(repr(whole)) == whole
    assert hash(as_reduction(repr(whole))) == hash(whole)
    assert repr(whole) == f"Activated('Quantile(0.3)', {str(made)!r})"


def test_names_objects_and_recipes_are_the_same() -> None:
    x = np.linspace(-3, 3, 24).reshape(1, 1, 4, 6)
    made = [poolkit.LeakyReLU(), "leaky_relu", "LeakyReLU", "LeakyReLU(negative_slope=0.01)"]
    results = [poolkit.pool(x, Sliding(2), "mean", activation=one) for one in made]
    results.append(poolkit.pool(x, Sliding(2), "Activated('mean', 'leaky_relu')"))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert repr(poolkit.LeakyReLU(np.float32(0.5))) == "LeakyReLU(negative_slope=0.5)"
    np.testing.assert_array_equal(
        poolkit.pool(x, Sliding(2), "mean", activation=None), poolkit.pool(x, Sliding(2), "mean")
    )


def test_what_is_refused() -> None:
    x = np.zeros((1, 1, 4, 4), dtype=np.float32)
    with pytest.raises(poolkit.PoolValueError, match=r"no activation named 'softsign', while pool.*"
                       r"float32 \(1, 1, 4, 4\).*One of: ReLU, LeakyReLU"):  # fmt: skip
        poolkit.pool(x, Sliding(2), "max", activation="softsign")
    with pytest.raises(poolkit.PoolTypeError, match=r"an activation was expected, got int.*'relu'"):
        poolkit.pool(x, Sliding(2), "max", activation=3)
    with pytest.raises(poolkit.PoolTypeError, match="an activation was expected, got function"):
        poolkit.pool_with_indices(x, Sliding(2), "max", activation=lambda x: x)
    with pytest.raises(poolkit.PoolTypeError, match=r"only Max and Min have positions"):
        poolkit.pool_with_indices(x, Sliding(2), "mean", activation="relu")
    with pytest.raises(poolkit.PoolTypeError, match=r"has an activation already"):
        poolkit.pool(x, Sliding(2), "Activated('max', 'relu')", activation="relu")
    with pytest.raises(poolkit.PoolValueError, match=r"approximate must be 'none' or 'tanh'"):
        poolkit.GELU(approximate="erf")  # type: ignore[arg-type]
    with pytest.raises(poolkit.PoolTypeError, match=r"negative_slope must be a number, got True"):
        poolkit.LeakyReLU(True)
    with pytest.raises(poolkit.PoolValueError, match=r"negative_slope must be finite, got inf"):
        poolkit.LeakyReLU(float("inf"))
    with pytest.raises(poolkit.PoolValueError, match=r"'ReLU\(1\)' does not fit ReLU"):
        poolkit.pool(x, Sliding(2), "max", activation="ReLU(1)")


@pytest.mark.parametrize("dtype", [name for name, row in DTYPES.items() if row.kind != "float"])
@pytest.mark.parametrize("reduction", ["max", "mean", "median"])
def test_what_is_not_floating_is_refused(dtype: str, reduction: str) -> None:
    x = np.zeros((1, 1, 4, 4), dtype=dtype)
    message = f"activations are of floating dtypes, got {dtype}, while pooling {dtype} "
    with pytest.raises(poolkit.PoolTypeError, match=message):
        poolkit.pool(x, Sliding(2), reduction, activation="relu")
    torch = pytest.importorskip("torch")
    with pytest.raises(poolkit.PoolTypeError, match=message):
        poolkit.pool(torch.from_numpy(x), Sliding(2), reduction, activation="relu")


def test_an_array_may_lie_anyhow() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 10)).astype("float32")
    want = poolkit.relu_max_pool2d(x, 2)
    np.testing.assert_array_equal(poolkit.relu_max_pool2d(x[:, :, ::-1][:, :, ::-1], 2), want)
    behind = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    got = poolkit.pool(behind, Sliding(2), "max", channels_last=True, activation="relu")
    np.testing.assert_array_equal(got.transpose(0, 3, 1, 2), want)
    x.flags.writeable = False
    np.testing.assert_array_equal(poolkit.relu_max_pool2d(x, 2), want)


# --- against the oracle ----------------------------------------------------------------------

WINDOWS: list[tuple[tuple[int, ...], Window]] = [
    ((13,), Sliding(3, stride=2, padding=1)),
    ((13,), Adaptive(4)),
    ((7, 6), Sliding((3, 2), stride=(2, 1), padding=((0, 1), (2, 0)), dilation=(1, 2))),
    ((7, 6), Sliding(2, stride=2, padding=((3, 0), (0, 0)))),  # windows that see nothing
    ((7, 6), Global()),
    ((7, 6), Pyramid((2, 1))),
    ((3, 4, 4), Sliding(2, stride=1)),
    ((2, 3, 3, 4), Sliding(2, stride=1)),  # more axes than the kernels have
]


@pytest.mark.parametrize("dtype", NUMPY_FLOATS)
@pytest.mark.parametrize("made", MADE, ids=str)
def test_the_oracle_agrees(made: Activation, dtype: str) -> None:
    rng = np.random.default_rng(5)
    reductions = [r for r in REDUCTIONS if r != Mean(result="same")]
    for number, (shape, window) in enumerate(WINDOWS):
        x = (rng.standard_normal((1, 2, *shape)) * 2).astype(dtype)
        flat = [activate_reference(type(made).__name__, v.item(), **parameters(made))
                for v in x.ravel()]  # fmt: skip
        activated = np.array(flat).reshape(x.shape).astype(dtype)
        for reduction in reductions[number % 2 :: 2]:
            got = poolkit.pool(x, window, reduction, activation=made, ndim=len(shape))
            held = expect(pool_by_oracle(activated, window, reduction), reduction, dtype)
            # An activated value that is rounded the other way moves the result as much.
            np.testing.assert_allclose(
                numbers_of(got), held, rtol=32 * EPS[dtype], atol=32 * EPS[dtype],
                err_msg=f"{window} {reduction}",
            )  # fmt: skip


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_oracle_is_torch_s_function(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.linspace(-8, 8, 200, dtype=torch.float64)
    want = torch_function(ACTIVATIONS[name]())(x)
    got = torch.tensor([activate_reference(name, v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


# --- against the two steps -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", NUMPY_FLOATS)
def test_every_walk_is_the_two_steps(case: str, dtype: str) -> None:
    """Bit for bit: the kernels see the activated values, wherever the stripes begin and end."""
    shape, inner, window = WALKS[case]
    x = noise((3, *shape, inner), dtype)
    for made, reduction in zip(itertools.cycle(MADE), NATIVE * 2, strict=False):
        plan = plan_for(window, poolkit.Activated(reduction, made), shape, dtype)
        assert plan.native is not None
        values = alone(x, made)
        got = poolkit.pool(
            x, window, reduction, ndim=len(shape), channels_last=True, activation=made
        )
        want = poolkit.pool(values, window, reduction, ndim=len(shape), channels_last=True)
        if plan.reduction.behind and dtype != "float16":  # type: ignore[attr-defined]
            # Neighbouring results of a sigmoid may be out of order by the last bit.
            np.testing.assert_allclose(got, want, rtol=2 * EPS[dtype], err_msg=str(made))
        else:
            np.testing.assert_array_equal(got, want, err_msg=f"{made} {reduction}")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_stripes_of_large_inputs(threads: int, keep_settings: None) -> None:
    """Many stripes, that begin and end within planes, with as many threads as there are."""
    poolkit.set_num_threads(threads)
    x = np.random.default_rng(1).standard_normal((2, 3, 300, 301)).astype("float32")
    behind = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    values, values_behind = alone(x, poolkit.SiLU()), alone(behind, poolkit.SiLU())
    windows = [Sliding(3, 2, 1), Sliding(7, 1, 3), Sliding(2), Adaptive(5), Global()]
    windows += [Sliding((1, 3), stride=1), Sliding(40, stride=(50, 1)), Sliding(1, 4)]
    for window in windows:
        for reduction in (Max(), Mean(), Min()):
            got = poolkit.pool(x, window, reduction, activation="silu")
            np.testing.assert_array_equal(got, poolkit.pool(values, window, reduction))
            got = poolkit.pool(behind, window, reduction, channels_last=True, activation="silu")
            want = poolkit.pool(values_behind, window, reduction, channels_last=True)
            np.testing.assert_array_equal(got, want)


def test_relu_and_max_are_the_two_steps_exactly() -> None:
    for case, dtype in itertools.product(CASES, NUMPY_FLOATS):
        shape, inner, window = WALKS[case]
        x = noise((2, *shape, inner), dtype)
        got = poolkit.pool(x, window, ndim=len(shape), channels_last=True, activation="relu")
        zero = np.zeros((), dtype=dtype)
        clipped = np.where(x <= 0, zero, x)
        want = poolkit.pool(clipped, window, ndim=len(shape), channels_last=True)
        assert bits(got) == bits(want), case


def test_windows_that_see_nothing_are_not_activated() -> None:
    x = np.full((1, 1, 4), -1.0)
    window = Sliding(2, padding=((2, 0),))
    got = poolkit.pool(x, window, "max", activation="relu")
    np.testing.assert_array_equal(got, [[[-np.inf, 0, 0]]])
    np.testing.assert_array_equal(
        poolkit.pool(x, window, "sum", activation="exp"), [[[0, 2 / np.e, 2 / np.e]]]
    )
    assert plan_for(window, poolkit.Activated("max", "relu"), (4,), "float64").native is not None


@pytest.mark.parametrize("made", MADE, ids=str)
@pytest.mark.parametrize("dtype", NUMPY_FLOATS)
def test_nan_infinities_and_zeros(made: Activation, dtype: str) -> None:
    """Natively and on the composite path, they are what torch makes of them."""
    torch = pytest.importorskip("torch")
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, -1e-7, 6e4, -6e4], dtype=dtype)
    native = alone(x, made)
    slow = poolkit.pool(x[:, None], Global(), "median", ndim=1, activation=made)[:, 0]
    want = torch_function(made)(torch.from_numpy(x))
    if made == poolkit.GELU() and dtype == "float32":
        want[1] = torch.inf  # torch's float32 function has a NaN there, its others have not
    for got in (native, slow):
        torch.testing.assert_close(torch.from_numpy(got), want, equal_nan=True)
    zeros = (x == 0) | (np.abs(x) < 1e-3) & (np.array(native) == 0)
    signs = np.signbit(want.numpy())
    if isinstance(made, poolkit.ReLU):
        signs[:] = False  # no result is -0.0
    np.testing.assert_array_equal(np.signbit(native)[zeros], signs[zeros])


# --- accuracy --------------------------------------------------------------------------------


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """How far float32 results are from exact ones, in steps of float32 at the exact result."""
    with np.errstate(over="ignore"):
        step = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / step


def all_floats(step: int) -> np.ndarray:
    """Every so many of the finite float32 numbers, of both signs."""
    positive = np.arange(0, 0x7F800000, step, dtype=np.uint32)
    return np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32)


def test_exponentials_are_within_two_of_the_rounded_result() -> None:
    """Over the whole range: subnormal results, 0 and infinity too."""
    x = all_floats(997)
    edges = np.float32([88.722836, 88.72284, -87.33655, -103.27893, -103.97208, -103.97209])
    x = np.concatenate([x, edges, np.linspace(-105, 89, 400_001).astype(np.float32)])
    got = alone(x, poolkit.Exp())
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.exp(x.astype(np.float64)).astype(np.float32)
    places = np.abs(got.view(np.int32).astype(np.int64) - rounded.view(np.int32))
    assert places.max() <= 1  # 2 are promised
    assert (rounded == 0).any()
    assert np.isinf(rounded).any()
    assert (np.abs(rounded) < 1e-38).any()


BOUNDS = [  # activation, range, ULP in the result
    (poolkit.Sigmoid(), (-103, 40), 3),
    (poolkit.Tanh(), (-12, 12), 2),
    (poolkit.SiLU(), (-87, 40), 3),
    (poolkit.GELU(), (-12.9, 12), 8),
    (poolkit.GELU(approximate="tanh"), (-1, 12), 8),
    (poolkit.Hardswish(), (-4, 4), 2),
    (poolkit.Exp(), (-103, 88.7), 1.1),
]


@pytest.mark.parametrize(("made", "ends", "bound"), BOUNDS, ids=[str(b[0]) for b in BOUNDS])
def test_accuracy_of_float32(made: Activation, ends: tuple[float, float], bound: float) -> None:
    x = all_floats(9973)
    x = x[(x >= ends[0]) & (x <= ends[1])]
    x = np.concatenate([x, np.linspace(*ends, 50_000).astype(np.float32)])
    name = type(made).__name__
    exact = np.array([activate_reference(name, v, **parameters(made)) for v in x.tolist()])
    if name == "Hardswish":  # near -3 the sum x + 3 is exact, and near 0 nothing cancels
        x, exact = x[np.abs(exact) > 1e-30], exact[np.abs(exact) > 1e-30]
    assert ulps(alone(x, made), exact).max() <= bound


def test_accuracy_of_gelu_s_approximation_below_zero() -> None:
    """Its argument is rounded, which costs as many ULP as it is large; torch's cancels."""
    made = poolkit.GELU(approximate="tanh")
    x = np.linspace(-9, -1, 30_000).astype(np.float32)
    mpmath = pytest.importorskip("mpmath")
    wide = x[::50]
    exact = []
    for v in wide.tolist():
        u = mpmath.sqrt(mpmath.mpf(2) / mpmath.pi) * (
            v + mpmath.mpf("0.044715") * mpmath.mpf(v) ** 3
        )
        exact.append(float(v / (1 + mpmath.exp(-2 * u))))
    argument = 1.6 * (np.abs(wide) + 0.044715 * np.abs(wide) ** 3)
    assert (ulps(alone(wide, made), np.array(exact)) <= 8 + 3 * argument).all()


@pytest.mark.parametrize(("made", "ends", "bound"), BOUNDS, ids=[str(b[0]) for b in BOUNDS])
def test_accuracy_of_float64(made: Activation, ends: tuple[float, float], bound: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    x = np.concatenate([np.linspace(*ends, 2001), np.geomspace(1e-300, 1, 200)])

    def exact(v: float) -> Any:
        v = mpmath.mpf(v)
        if isinstance(made, poolkit.Tanh):
            return mpmath.tanh(v)
        if isinstance(made, poolkit.Exp):
            return mpmath.exp(v)
        if isinstance(made, poolkit.Hardswish):
            return v * min(max(v + 3, 0), 6) / 6
        if made == poolkit.GELU():
            return v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2
        share = v
        if isinstance(made, poolkit.GELU):
            share = mpmath.sqrt(8 / mpmath.pi) * (v + mpmath.mpf(0.044715) * v**3)
        return (1 if isinstance(made, poolkit.Sigmoid) else v) / (1 + mpmath.exp(-share))

    got = alone(x, made)
    for v, y in zip(x.tolist(), got.tolist(), strict=True):
        want = exact(v)
        step = mpmath.mpf(float(np.spacing(abs(float(want)))))
        assert abs(mpmath.mpf(y) - want) <= bound * step, v


def test_sigmoid_has_results_where_the_exponential_overflows() -> None:
    x = np.float32([-100, -103, 100, 1000, -1000])
    got = alone(x, poolkit.Sigmoid())
    np.testing.assert_array_equal(got, np.float32([np.exp(-100.0), np.exp(-103.0), 1, 1, 0]))


def test_the_count_of_ulps_can_fail() -> None:
    exact = np.array([1.0, 2.0**-140])
    np.testing.assert_allclose(ulps(np.float32([1 + 2.0**-22, 2.0**-139]), exact), [2, 512])


# --- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY_FLOATS)
def test_every_instruction_set_has_the_same_bits(dtype: str, keep_settings: None) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal(4000) * 3, rng.uniform(-110, 110, 4000),
                        noise((997,), "float64")]).astype(dtype)  # fmt: skip
    x = x[: x.size // 8 * 8].reshape(8, -1)
    grad = rng.standard_normal(x.shape).astype(dtype)
    cases: list[tuple[Window, Reduction]] = [(Sliding(3, 2, 1), Max()), (Sliding(3, 2, 1), Mean()),
                                             (Global(), Sum())]  # fmt: skip
    for made in MADE:
        results = {}
        for isa in poolkit.info()["available"]:
            poolkit.use_isa(isa)
            found = [bits(poolkit.pool(x, w, r, ndim=1, activation=made)) for w, r in cases]
            values, places = poolkit.pool_with_indices(x, Sliding(3, 2, 1), ndim=1, activation=made)
            found += [bits(values), places.tobytes()]
            back = grad.copy()
            poolkit._native.activation_gradient(
                made.kernel_name, dtype, made.parameter, back.ctypes.data, x.ctypes.data, x.size, 1
            )
            results[isa] = [*found, bits(back)]
        first, *others = results.values()
        for other in others:
            assert other == first, made


# --- torch -----------------------------------------------------------------------------------


def torch_function(made: Activation) -> Any:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    options = parameters(made)
    functions = {
        "ReLU": f.relu,
        "LeakyReLU": lambda x: f.leaky_relu(x, **options),
        "Exp": torch.exp,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "SiLU": f.silu,
        "GELU": lambda x: f.gelu(x, **options),
        "Hardswish": f.hardswish,
    }
    return functions[type(made).__name__]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_names_and_defaults_are_torch_s(name: str) -> None:
    torch = pytest.importorskip("torch")
    if name == "Exp":
        return  # a function, not a module
    module = getattr(torch.nn, name)()
    for parameter, needed, default in parameters_of(ACTIVATIONS[name]):
        assert not needed
        assert getattr(module, parameter) == default
