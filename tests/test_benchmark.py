"""The benchmark measures what it says, and notices a wrong answer. No test here asserts a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

import poolkit  # noqa: E402
from poolkit.benchmark import allocation, main, plots, report, runner, scaling, targets  # noqa: E402
from poolkit.benchmark.answers import (  # noqa: E402
    as_answer,
    differentiated,
    make_input,
    mistake,
    right_answer,
    torch_operation,
)
from poolkit.benchmark.calibration import Calibration, Calibrator, Probe  # noqa: E402
from poolkit.benchmark.cases import (  # noqa: E402
    ADAPTIVE,
    BEST,
    GLOBAL,
    ITEMSIZE,
    ONE_THREAD,
    SLIDING,
    Case,
    CaseError,
    Target,
    load_table,
    select,
)
from poolkit.benchmark.cases import PEERS as PEER_NAMES  # noqa: E402
from poolkit.benchmark.engines import Engine, OnnxRuntime, OpenVINO  # noqa: E402
from poolkit.benchmark.instruction_sets import SWITCHES, limited_to  # noqa: E402
from poolkit.benchmark.peers import (  # noqa: E402
    TORCH_PEERS,
    Call,
    Copy,
    Peer,
    Poolkit,
    TorchCompile,
    TorchEager,
    UnsupportedError,
)
from poolkit.benchmark.runner import CaseResult  # noqa: E402
from poolkit.benchmark.targets import TargetResult  # noqa: E402
from poolkit.benchmark.xla import Jax  # noqa: E402
from poolkit.errors import PoolValueError  # noqa: E402
from poolkit.timing import Quartiles, Schedule  # noqa: E402

CASES = load_table().cases
# JAX, which warns of every fork after it, is measured in a process of its own.
PEERS = [*(peer for peer in TORCH_PEERS if peer not in (TorchCompile, Copy)), OnnxRuntime, OpenVINO]
BRISK = Schedule(budget_s=0, min_rounds=3, max_rounds=3, sample_s=1e-5)
SMALL = Case(
    "small", "max", (1, 2, 6, 6), (2, 2), (2, 2), (0, 0), targets=(Target("eager", 1.0, False),)
)


def small(case: Case) -> Case:
    """The same case on a shape that takes microseconds."""
    batch, channels, *spatial = case.shape
    shape = (min(batch, 2), min(channels, 3), *(min(size, 17) for size in spatial))
    return replace(case, shape=shape)


class Wrong(TorchEager):
    """A peer whose last value is off by a little."""

    name = "wrong"
    title = "wrong"

    def prepare(self, case: Case, x: torch.Tensor) -> Call:
        right = torch_operation(case)(x)
        right.view(-1)[-1] += 0.01
        return lambda: right


class Broken(TorchEager):
    name = "broken"
    title = "broken"

    def prepare(self, case: Case, x: torch.Tensor) -> Call:
        raise RuntimeError("no kernel\nand more")


# -- the table --


def test_the_table_covers_what_the_report_promises() -> None:
    assert {case.rank for case in CASES} == {1, 2, 3}
    assert {case.dtype for case in CASES} == set(ITEMSIZE)
    assert {case.op for case in CASES} == {*SLIDING, *ADAPTIVE, *GLOBAL}
    assert {case.mode for case in CASES} == {"forward", "training", "backward"}
    assert any(case.layout == "channels_last" for case in CASES)
    assert any(case.allocation for case in CASES)


def wanted(case: Case) -> dict[str, float]:
    return {target.against: target.wanted for target in case.targets}


def test_every_case_is_to_be_ahead_of_its_best_peer_and_their_mean_by_half() -> None:
    assert all(wanted(case)[BEST] >= 1 for case in CASES)
    assert load_table().geometric_mean == (Target(BEST, 1.5, at_most=False),)


@pytest.mark.parametrize(
    ("name", "against", "bound"),
    [
        ("max 2x2s2 stem", "copy", 1.25),
        ("max 5x5s1p2 sppf", "onednn", 0.5),
        ("max 5x5s1p2 sppf", "copy", 2.5),
        ("max 5x5s1p2 sppf", ONE_THREAD, 1.7),
        ("max 13x13s1p6 sppf", "max 5x5s1p2 sppf", 1.3),
        ("max 3x3s2p1 bfloat16", "max 3x3s2p1 stem", 0.65),
        ("max 2x2s2 float16", "max 2x2s2 stem", 0.65),
        ("max 2x2s2 int8", "max 2x2s2 stem", 0.4),
        ("train max 3x3s2p1", "eager", 10),
        ("train max 3x3s2p1 channels last", "eager", 3),
        ("backward avg 2x2s2", "copy", 1.5),
        ("sigmoid avg 2x2s2 stem", "compile", 2),
    ],
)
def test_targets_are_held_against_what_they_name(name: str, against: str, bound: float) -> None:
    case = load_table().named(name)
    assert case is not None
    (target,) = (target for target in case.targets if target.against == against)
    assert target.wanted == bound
    # At most as slow as a copy or another case, at least as fast as a peer; oneDNN's is stated
    # as the time that may be taken.
    slower = against in ("copy", "onednn") or load_table().named(against) is not None
    assert target.at_most is slower


def test_a_target_against_another_case_differs_from_it_in_one_thing() -> None:
    for case in CASES:
        for target in case.targets:
            other = load_table().named(target.against)
            if other is None:
                continue
            assert (case.op, case.layout, case.shape) == (other.op, other.layout, other.shape)
            assert (case.dtype == other.dtype) != (case.kernel_size == other.kernel_size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_and_bytes_are_those_of_torch(case: Case) -> None:
    case = small(case)
    x = make_input(case)
    (y, *gradient) = right_answer(case, x)
    assert x.shape == case.shape
    assert y.dtype == x.dtype
    passes = 2 if case.mode == "training" else 1
    if case.mode == "backward":
        assert (y.shape, gradient) == (case.shape, [])
        y = y.new_empty(case.output_shape)
    assert y.shape == case.output_shape
    assert case.bytes_moved == passes * (x.nbytes + y.nbytes)
    if case.layout == "channels_last":
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_no_two_float_inputs_in_reach_of_a_window_are_equal() -> None:
    x = make_input(SMALL)
    assert x.unique().numel() == x.numel()
    assert x.abs().max() <= 1


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ('op = "max"\nshape = [1, 1, 4]\nkernel_size = 0', "sizes must be positive"),
        ('op = "max"\nshape = [1, 1, 4]\nkernel_size = 5', "output (1, 1, 0) is empty"),
        ('op = "max"\nshape = [1, 1]\nkernel_size = 2', "0 spatial sizes"),
        ('op = "max"\nshape = [1, 1, 4, 4]\nkernel_size = [2]', "one size per axis"),
        ('op = "mode"\nshape = [1, 1, 4]', "unknown op 'mode'"),
        ('op = "max"\nshape = [1, 1, 4]\nkernel = 2', "unknown keys ['kernel']"),
        (
            'op = "global_avg"\nshape = [1, 1, 4]\nfaster_at_least = { eager = 0 }',
            "target ratio is positive",
        ),
        (
            'op = "global_avg"\nshape = [1, 1, 4]\nslower_at_most = { numpy = 1 }',
            "a target against 'numpy'",
        ),
        (
            'op = "max"\nshape = [1, 1, 4]\nkernel_size = 2\nmode = "backward"\ndtype = "int8"',
            "gradients are measured in float32",
        ),
        (
            'op = "avg"\nshape = [1, 1, 4]\nkernel_size = 2\nallocation = true',
            "allocation is measured for a max",
        ),
        ('shape = [1, 1, 4]', "op is missing"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_by_name(tmp_path: Path, row: str, fact: str) -> None:
    table = tmp_path / "cases.toml"
    table.write_text(f'[[case]]\nname = "odd one"\n{row}\n', encoding="utf-8")
    with pytest.raises(CaseError, match="odd one") as caught:
        load_table(table)
    assert fact in str(caught.value)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "cases.toml"
    row = '[[case]]\nname = "twin"\nop = "global_avg"\nshape = [1, 1, 4]\n'
    table.write_text(row * 2, encoding="utf-8")
    with pytest.raises(CaseError, match="'twin' is in the table twice"):
        load_table(table)


def test_a_row_adds_to_the_targets_of_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(
        "[defaults]\nfaster_at_least = { best = 1, eager = 2 }\n"
        '[[case]]\nname = "one"\nop = "global_avg"\nshape = [1, 1, 4]\n'
        "faster_at_least = { eager = 3 }\nslower_at_most = { copy = 2.5 }\n",
        encoding="utf-8",
    )
    (case,) = load_table(path).cases
    assert case.targets == (
        Target("copy", 2.5, True), Target("best", 1, False), Target("eager", 3, False)
    )  # fmt: skip


def test_select_takes_names_words_and_patterns() -> None:
    names = ["max stem", "max", "avg stem"]
    assert select(names, None) == names
    assert select(names, "max") == ["max"]
    assert select(names, "stem") == ["max stem", "avg stem"]
    assert select(names, "a*, max") == ["max", "avg stem"]
    with pytest.raises(CaseError, match="nothing is called 'min'"):
        select(names, "min")


# -- answers --


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_peer_computes_the_case(case: Case, peer: type[Peer]) -> None:
    if reason := peer.missing():
        pytest.skip(reason)
    case = small(case)
    x = make_input(case)
    runs = peer(1)
    try:
        call = runs.prepare(case, x)
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    try:
        first, again = runs.answer(call()), runs.answer(call())
    except RuntimeError as error:
        if peer is TorchEager and case.dtype == "int8" and case.layout == "channels_last":
            pytest.skip(f"torch's own limit: {str(error)[:60]}")
        raise
    want = right_answer(case, x)
    assert mistake(case, first, want) is None
    assert mistake(case, again, want) is None  # a second call finds its input unharmed


JAX_ON_ALL_CASES = """
from dataclasses import replace
from poolkit.benchmark.answers import make_input, mistake, right_answer
from poolkit.benchmark.cases import load_table
from poolkit.benchmark.peers import UnsupportedError
from poolkit.benchmark.xla import Jax
for case in load_table().cases:
    batch, channels, *spatial = case.shape
    shape = (min(batch, 2), min(channels, 3), *(min(size, 17) for size in spatial))
    case = replace(case, shape=shape)
    x = make_input(case)
    for threads in (1, 2):  # the second is another client
        peer = Jax(threads)
        try:
            call = peer.prepare(case, x)
        except UnsupportedError as reason:
            print(reason)
            break
        for _ in range(2):
            wrong = mistake(case, peer.answer(call()), right_answer(case, x))
            assert wrong is None, (case.name, wrong)
print("checked")
"""


@pytest.mark.skipif(find_spec("jax") is None, reason="needs jax")
def test_jax_computes_the_cases() -> None:
    done = subprocess.run(
        [sys.executable, "-c", JAX_ON_ALL_CASES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *reasons, last = done.stdout.splitlines()
    assert last == "checked"
    assert set(reasons) == {
        "JAX has no adaptive pooling into windows of different sizes",
        "JAX has no median pooling",
        "JAX has no std pooling",
        "JAX has no log_sum_exp pooling",
    }


def test_the_names_of_peers_are_those_that_targets_may_have() -> None:
    every = [*TORCH_PEERS, OnnxRuntime, OpenVINO, Jax]
    assert sorted(peer.name for peer in every) == sorted(("poolkit", *PEER_NAMES))


@pytest.mark.slow  # starts a C++ compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own use of it
@pytest.mark.parametrize("mode", ["forward", "training", "backward"])
def test_torch_compile_computes_the_case(mode: str) -> None:
    case = replace(SMALL, mode=mode)
    x = make_input(case)
    with torch.inference_mode(not case.differentiated):
        call = TorchCompile(1).prepare(case, x)
        for _ in range(2):
            assert mistake(case, as_answer(call()), right_answer(case, x)) is None


def test_the_copy_moves_the_bytes_of_the_case() -> None:
    case = replace(SMALL, mode="training")
    copied = Copy(1).prepare(case, make_input(case))()
    assert isinstance(copied, torch.Tensor)
    assert 2 * copied.nbytes == case.bytes_moved  # read once and written once
    assert bool((copied == 1).all())


def test_a_mistake_is_noticed_in_values_shape_dtype_and_gradient() -> None:
    x = make_input(SMALL)
    (want,) = right_answer(SMALL, x)
    nudged = want.clone()
    nudged[0, 0, 0, 0] = torch.nextafter(nudged[0, 0, 0, 0], torch.tensor(9.0))
    assert mistake(SMALL, (want.clone(),), (want,)) is None
    assert "not equal" in (mistake(SMALL, (nudged,), (want,)) or "")
    assert mistake(replace(SMALL, op="avg"), (nudged,), (want,)) is None  # one ulp of a sum
    assert "output" in (mistake(replace(SMALL, op="avg"), (want + 1e-3,), (want,)) or "")
    assert "shape" in (mistake(SMALL, (want[..., :2],), (want,)) or "")
    assert "dtype" in (mistake(SMALL, (want.double(),), (want,)) or "")
    assert mistake(SMALL, (want, want), (want,)) == "2 results where 1 are due"
    training = replace(SMALL, mode="training")
    y, dx = right_answer(training, x)
    assert "gradient" in (mistake(training, (y, dx.roll(1)), (y, dx)) or "")
    backward = replace(SMALL, mode="backward")
    assert torch.equal(right_answer(backward, x)[0], dx)
    assert "gradient" in (mistake(backward, (dx.roll(1),), (dx,)) or "")


@pytest.mark.parametrize("mode", ["training", "backward"])
def test_a_step_accumulates_nothing(mode: str) -> None:
    case = replace(SMALL, mode=mode)
    step = differentiated(torch_operation(case), make_input(case), case)
    first, second = step(), step()
    assert torch.equal(first[-1], second[-1])
    assert first[-1].count_nonzero() > 0


# -- the runner --


def measured(*peers: type[Peer], case: Case = SMALL) -> CaseResult:
    return runner.measure(case, [peer(1) for peer in peers], BRISK, threads=1)


def test_every_right_peer_is_timed_once_a_round_and_a_wrong_one_never() -> None:
    result = measured(TorchEager, Wrong, Broken, Copy)
    assert {name: outcome.status for name, outcome in result.outcomes.items()} == {
        "eager": "timed",
        "wrong": "wrong",
        "broken": "failed",
        "copy": "timed",
    }
    assert [len(outcome.seconds) for outcome in result.outcomes.values()] == [3, 0, 0, 3]
    assert "not equal" in result.outcomes["wrong"].reason
    assert result.outcomes["broken"].reason == "RuntimeError: no kernel"
    assert result.best_peer() == "eager"


def test_the_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    runner.measure(SMALL, [TorchEager(1)], BRISK, threads=before + 1)
    assert torch.get_num_threads() == before


def test_other_cases_are_timed_in_the_same_rounds() -> None:
    other = replace(SMALL, name="other", kernel_size=(3, 3))
    peers = [Poolkit(1), Copy(1)]
    result = runner.measure(SMALL, peers, BRISK, threads=1, others=[other])
    assert list(result.outcomes) == ["poolkit", "copy"]
    assert [len(outcome.seconds) for outcome in result.others.values()] == [3]
    assert result.ratio("poolkit", "other") is not None
    assert result.best_peer() is None
    assert runner.measure(SMALL, [Copy(1)], BRISK, threads=1, others=[other]).others == {}


def result_of(case: Case = SMALL, threads: int = 1, **milliseconds: list[float]) -> CaseResult:
    outcomes = {
        name: runner.Outcome("timed", seconds=[value / 1e3 for value in values], calls_per_sample=1)
        for name, values in milliseconds.items()
    }
    return CaseResult(case, threads, outcomes)


def test_ratios_are_paired_within_a_round() -> None:
    # The machine is 10 times slower in the last round; the ratio of 4 is not moved by that.
    result = result_of(poolkit=[1, 1, 10], eager=[4, 4, 40])
    assert result.ratio("eager") == pytest.approx(Quartiles(4, 4, 4))
    assert result.ratio("onednn") is None


@pytest.mark.parametrize(
    ("copy", "disturbed"),
    [([1, 1, 1, 1.1, 1.1, 1.1], False), ([1, 1, 1, 1, 1.3, 1.3], True), ([1.3, 1.3, 1, 1], True)],
)
def test_a_machine_that_changes_speed_is_noticed(copy: list[float], disturbed: bool) -> None:
    assert result_of(copy=copy).disturbed is disturbed


# -- targets --


def held(*bounds: Target) -> Case:
    return replace(SMALL, targets=bounds)


@pytest.mark.parametrize(
    ("eager", "verdict", "excess"),
    [
        ([2, 2, 2, 2], "met", -0.5),
        ([0.5, 0.5, 0.5, 0.5], "missed", 1.0),
        ([0.8, 0.8, 0.8, 2], "within noise", 0.25),
    ],
)
def test_a_target_is_met_or_missed_by_so_much(
    eager: list[float], verdict: str, excess: float
) -> None:
    (found,) = targets.results_of(result_of(poolkit=[1, 1, 1, 1], eager=eager), None)
    assert (found.target, found.verdict) == (SMALL.targets[0], verdict)
    assert found.excess == pytest.approx(excess)


@pytest.mark.parametrize(
    ("poolkit_ms", "verdict", "excess"),
    [
        ([1, 1, 1, 1], "met", -0.2),
        ([2, 2, 2, 2], "missed", 0.6),
        ([1, 1, 2, 2], "within noise", 0.2),
    ],
)
def test_a_bound_on_poolkits_time_is_one_from_above(
    poolkit_ms: list[float], verdict: str, excess: float
) -> None:
    case = held(Target("copy", 1.25, at_most=True))
    (found,) = targets.results_of(result_of(case, poolkit=poolkit_ms, copy=[1, 1, 1, 1]), None)
    assert found.verdict == verdict
    assert found.excess == pytest.approx(excess)


def test_the_best_peer_is_the_fastest_but_for_the_copy() -> None:
    case = held(Target(BEST, 1.0, at_most=False))
    timed = result_of(case, poolkit=[2], eager=[8], onednn=[3], copy=[1])
    (found,) = targets.results_of(timed, None)
    assert found.got.median == pytest.approx(1.5)
    assert targets.results_of(result_of(case, poolkit=[2], copy=[1]), None) == []
    both = [timed, result_of(case, poolkit=[1], eager=[6]), result_of(case, poolkit=[1])]
    assert targets.geometric_mean(both) == pytest.approx(3.0)
    assert targets.geometric_mean(both[2:]) is None


def test_two_threads_are_held_against_one() -> None:
    case = held(Target(ONE_THREAD, 1.7, at_most=False))
    one, two = result_of(case, 1, poolkit=[3.0]), result_of(case, 2, poolkit=[2.0])
    (found,) = targets.results_of(two, one)
    assert found.got.median == pytest.approx(1.5)
    assert found.verdict == "missed"
    assert targets.results_of(two, None) == targets.results_of(one, one) == []
    assert targets.unmeasured(two, None) == list(case.targets)
    assert targets.unmeasured(two, one) == targets.unmeasured(one, one) == []
    assert targets.results_of(replace(two, threads=4), one) == []


def test_another_case_is_a_thing_to_be_held_against() -> None:
    timed = result_of(held(Target("wide", 0.5, at_most=True)), poolkit=[1])
    assert targets.results_of(timed, None) == []
    timed.others["wide"] = runner.Outcome("timed", seconds=[4e-3])
    (found,) = targets.results_of(timed, None)
    assert found.got.median == pytest.approx(0.25)


def test_the_summary_counts_and_names() -> None:
    met = TargetResult("a", Target("copy", 1.25, True), Quartiles(1, 1, 1))
    missed = TargetResult("b", Target("eager", 15, False), Quartiles(12, 12, 12))
    noisy = TargetResult("c", Target("copy", 1.25, True), Quartiles(1.2, 1.5, 2))
    assert targets.summary([met, missed, noisy], {"eager": "torch eager"}) == (
        "1 of 3 targets met; missed: b (at least 15x as fast as torch eager: 12x, 25% too slow); "
        "within noise: c (at most 1.25x the time of copy: 1.5x, 20% too slow)"
    )
    assert targets.summary([met], {}) == "1 of 1 targets met"
    assert targets.summary([], {}) == "no target was measured"


# -- the machine --


def test_a_probe_times_fixed_work() -> None:
    calibrator = Calibrator()
    calibrator.probe("this")
    (probe,) = calibrator.found.probes
    assert probe.before == "this"
    assert min(probe.loop_ms, probe.copy_ms) > 0


def calibrated(*loop_ms: float, stolen: float | None = None) -> Calibration:
    probes = [Probe(f"case {number}", ms, 10.0) for number, ms in enumerate(loop_ms)]
    return Calibration(probes, stolen)


def test_a_steady_machine_is_said_to_be_one() -> None:
    steady = calibrated(5.0, 5.0, 5.1, stolen=0.001)
    (line,) = steady.remarks()
    assert "a fixed loop took 5.00 to 5.10 ms (from the first third to the last +2.0%)" in line
    assert "a fixed copy 10.00 to 10.00 ms (+0.0%); 0.1% of processor time stolen" in line
    assert steady.steady
    assert Calibration().remarks() == []


@pytest.mark.parametrize(
    ("found", "fact"),
    [
        (calibrated(5, 5, 5.5), "Throttled: the fixed loop became slower by 10.0%"),
        (calibrated(5.5, 5, 5), "Unsteady: the fixed loop became faster by 9.1%"),
        (calibrated(5, 8, 5), "Unsteady: the fixed loop took 1.60 times as long as it mostly did "
                              "before case 1"),
        (calibrated(5, 5, stolen=0.05), "Stolen: the host gave 5.0% of the time"),
    ],
)  # fmt: skip
def test_drift_and_theft_are_said(found: Calibration, fact: str) -> None:
    _, line = found.remarks()
    assert line.startswith(fact)
    assert not found.steady


@pytest.mark.skipif(not allocation.available(), reason="needs Linux's advice on pages")
def test_allocation_is_measured_apart() -> None:
    case = replace(SMALL, shape=(1, 2, 64, 64), allocation=True)
    before = torch.get_num_threads()
    found = allocation.measure(case, 1, BRISK)
    assert torch.get_num_threads() == before
    assert list(found.ms) == list(allocation.ROWS)
    assert found.output_bytes == 4 * 2 * 32 * 32
    assert "0.0 MB of output: pooled into fresh pages in" in found.sentence()


@pytest.mark.skipif(not allocation.available(), reason="needs Linux's advice on pages")
def test_what_is_pooled_into_an_output_is_right() -> None:
    case = replace(SMALL, allocation=True)
    kept = torch.full(case.output_shape, 9.0)
    allocation._calls(case, 1, kept)["again"]()
    assert mistake(case, (kept,), right_answer(case, make_input(case))) is None


def test_forcing_an_instruction_set_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POOLKIT_ISA", raising=False)
    before = poolkit.info()["isa"]
    with limited_to("baseline") as told:
        assert poolkit.info()["isa"] == "baseline"
        assert told == {}  # torch has been loaded: it would not listen
    assert poolkit.info()["isa"] == before
    monkeypatch.setenv("POOLKIT_ISA", "baseline")
    with limited_to(None):
        assert poolkit.info()["isa"] == "baseline"
    with pytest.raises(PoolValueError, match="'mmx' is not available"), limited_to("mmx"):
        pass
    assert poolkit.info()["isa"] == before


@pytest.mark.skipif("avx2" not in poolkit.info()["available"], reason="needs AVX2")
def test_peers_are_limited_where_they_can_be() -> None:
    code = (
        "from poolkit.benchmark.instruction_sets import limited_to\n"
        "with limited_to('avx2') as told:\n"
        "    import torch\n"
        "    print(torch.backends.cpu.get_cpu_capability(), *sorted(told))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES["avx2"]}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["AVX2", *sorted(SWITCHES["avx2"])]


# -- more and more elements --


def few_points() -> scaling.Scaling:
    return scaling.measure((1, 2, 3), (1, 2), BRISK, Calibrator(), lambda what: None)


def test_every_size_is_timed_with_every_number_of_threads() -> None:
    found = few_points()
    sizes = [(point.elements, point.threads) for point in found.points]
    assert sizes == [(1024 * n, threads) for n in (1, 2, 3) for threads in (1, 2)]
    assert all(set(point.ms) == set(scaling.SERIES) for point in found.points)
    assert found.left_out == []


def test_sizes_go_from_a_thousand_to_a_thousand_million() -> None:
    sizes = [1024 * count for count in scaling.PLANES]
    assert (sizes[0], sizes[-1], len(sizes)) == (1024, 1_024_000_000, 13)


def test_what_does_not_fit_in_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "memory_left", lambda: 2000 * scaling.BYTES_PER_ELEMENT)
    found = scaling.measure((1, 2), (1,), BRISK, Calibrator(), lambda what: None)
    assert [point.elements for point in found.points] == [1024]
    assert found.left_out == [2048]


def test_memory_left_is_some_and_not_all() -> None:
    assert 0 < scaling.memory_left() <= sys.maxsize


def test_growth_is_the_exponent() -> None:
    def point(elements: int, ms: float) -> scaling.Point:
        return scaling.Point(elements, 1, {"max": Quartiles(ms, ms, ms)})

    linear = [point(10**n, 10**n / 1e6) for n in range(3, 8)]
    square = [point(10**n, 10.0 ** (2 * n)) for n in range(3, 8)]
    assert scaling.growth(linear, "max") == pytest.approx(1)
    assert scaling.growth(square, "max") == pytest.approx(2)
    assert scaling.growth(linear[:2], "max") is None
    assert scaling.growth(linear, "eager") is None


def test_a_wrong_sum_of_many_elements_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_at_the_end(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
        out = torch.nn.functional.avg_pool2d(x, kernel_size)
        out[:, -1] += 1
        return out

    assert not scaling_run().wrong()
    monkeypatch.setattr("poolkit.avg_pool2d", wrong_at_the_end)
    found = scaling.measure((200,), (1,), BRISK, Calibrator(), lambda what: None)
    (point,) = found.points
    assert set(point.wrong) == {"avg"}
    assert set(point.ms) == {"max", "eager", "copy"}
    run = report.ScalingRun("poolkit bench --scaling", MACHINE, calibrated(5.0, 5.0), BRISK, found)
    assert run.wrong()
    (section,) = run.sections()
    assert "WRONG" in section.rows[0]
    assert "WRONG: poolkit avg 2x2s2 of 2.048e+05 elements" in section.lines[-1]


# -- the report --

MACHINE = {
    "cpu": "one", "usable_cores": 2, "date": "today", "os": "an", "load_average": 0.0,
    "poolkit_isa": "avx2", "torch_isa": "AVX2", "last_cache": "1K", "peers_limited_by": {"A": "b"},
}  # fmt: skip


def example_run() -> report.CaseRun:
    peers = [Poolkit, TorchEager, Wrong, Copy]
    case = held(Target("copy", 1.25, True), Target("eager", 3.0, False))
    results = []
    for threads in (1, 2):
        ours = [20.0 / threads] * 3
        result = result_of(
            case, threads, poolkit=ours, eager=[70.0, 71.0, 90.0], copy=[20.0, 20.0, 30.0]
        )
        result.outcomes["wrong"] = runner.Outcome("wrong", "output: not equal")
        results.append(result)
    ms = dict.fromkeys(allocation.ROWS, Quartiles(1, 1, 1)) | {"fresh": Quartiles(3, 3, 3)}
    return report.CaseRun(
        command="poolkit bench --threads 1,2",
        machine=MACHINE,
        calibration=calibrated(5.0, 5.0),
        schedule=runner.FULL,
        versions=dict.fromkeys(("poolkit", "eager", "wrong", "copy"), "1.0"),
        peers=peers,
        results=results,
        allocations=[allocation.Allocation("small", 1, 2_000_000, ms, Quartiles(3, 3, 3))],
        mean_targets=load_table().geometric_mean,
    )


def scaling_run() -> report.ScalingRun:
    return report.ScalingRun(
        "poolkit bench --scaling", MACHINE, calibrated(5.0, 5.0), BRISK, few_points()
    )


def test_json_states_times_ratios_targets_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    report.write_json(path, example_run())
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [path]  # the partial file is gone
    assert document["schema"] == report.JSON_SCHEMA
    assert document["machine"]["poolkit_isa"] == "avx2"
    assert document["command"] == "poolkit bench --threads 1,2"
    assert document["calibration"]["steady"] is True
    assert len(document["calibration"]["probes"]) == 2
    one, two = document["results"]
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["peers"]["eager"]["ms"] == {"low": 70.5, "median": 71.0, "high": 80.5}
    assert one["peers"]["wrong"] == {"status": "wrong", "reason": "output: not equal"}
    assert one["ratios"]["one thread/poolkit"] is None
    assert two["ratios"]["one thread/poolkit"] == {"low": 2.0, "median": 2.0, "high": 2.0}
    assert one["best_peer"] == "eager"
    assert one["disturbed"] is True
    (copy, eager) = one["targets"]
    assert (copy["against"], copy["at_most"], copy["verdict"]) == ("copy", 1.25, "met")
    assert (eager["at_least"], eager["got"]["median"], eager["excess"]) == (3.0, 3.55, -0.1549)
    summary = document["summary"][1]
    assert (summary["threads"], summary["geometric_mean"]) == (2, 7.1)
    assert (summary["targets"], summary["met"], summary["missed"]) == (3, 3, [])
    assert document["allocation"][0]["fresh_over_again"]["median"] == 3


def tables_of(text: str) -> dict[str, list[str]]:
    """The lines of each table, by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append(line)
    return found


def test_markdown_has_a_table_for_each_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "there is no pencil")
    path = tmp_path / "bench.md"
    report.write_markdown(path, example_run())
    text = path.read_text(encoding="utf-8")
    tables = tables_of(text)
    assert list(tables) == [
        "1 thread of 2, one", "2 threads of 2, one", "Targets, 1 thread", "Targets, 2 threads",
        "Allocation, apart",
    ]  # fmt: skip
    for lines in tables.values():
        assert len({line.count("|") for line in lines}) == 1
    assert "vs 1 thread" not in tables["1 thread of 2, one"][0]
    assert "vs 1 thread" in tables["2 threads of 2, one"][0]
    assert "| 71.0 ±7% | WRONG | 20.0 ±12% |" in tables["1 thread of 2, one"][2]
    assert "| 2.00x | 2 of 2 met |" in tables["2 threads of 2, one"][2]
    assert len(tables["Targets, 1 thread"]) == 2 + 3
    assert (
        "| met | small | at least 3x as fast as torch eager | 3.55x | 15% to spare |"
        in tables["Targets, 1 thread"]
    )
    assert "Measured by `poolkit bench --threads 1,2` on today: one, 2 cores" in text
    assert "poolkit avx2, torch AVX2, the other peers limited by A=b" in text
    assert "2 threads: 7.10x as fast as the best peer of each case in the geometric mean" in text
    assert "wrong, wrong: output: not equal [small]" in text
    assert "distrust small on 1 thread +50%, small on 2 threads +50%" in text
    assert "2.0 MB of output: pooled into fresh pages in 3.00 times the time" in text
    assert "Calibration, 2 times during the run" in text
    assert "Without plots: there is no pencil." in text


def test_a_missed_target_is_marked_wherever_it_is_named() -> None:
    run = example_run()
    for result in run.results:
        result.outcomes["poolkit"].seconds = [0.04] * 3
        del result.outcomes["wrong"]
    cases, *_ = run.sections()
    assert cases.rows[0][-1] == "0 of 2 met; missed: copy; missed: torch eager"
    assert cases.styles == ["red"]
    section = run.sections()[2]
    assert section.rows[0] == [
        "MISSED", "small", "at most 1.25x the time of copy", "2.00x", "60% too slow"
    ]  # fmt: skip
    assert "1 of 3 targets met; missed: small (at most 1.25x" in run.summary()[0]


def test_targets_that_were_not_measured_are_named() -> None:
    run = example_run()
    for result in run.results:
        del result.outcomes["eager"]
    assert "not measured: small (against torch eager)" in run.summary()[0]


@pytest.mark.skipif(plots.missing() is not None, reason="needs matplotlib")
@pytest.mark.parametrize("make", [example_run, scaling_run])
def test_plots_are_drawn_beside_the_markdown(
    tmp_path: Path, make: Callable[[], report.Run]
) -> None:
    run = make()
    path = tmp_path / "bench.md"
    report.write_markdown(path, run)
    (picture,) = (tmp_path / "images").iterdir()
    text = picture.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert f"](images/{picture.name})" in path.read_text(encoding="utf-8")
    report.write_markdown(path, run)
    assert picture.read_text(encoding="utf-8") == text  # the same figures, the same picture


def test_the_report_of_scaling_states_time_per_element() -> None:
    run = scaling_run()
    document = run.as_json()
    assert len(document["points"]) == 6
    assert document["points"][0]["ns_per_element"]["max"] > 0
    assert document["growth"]["1 thread"]["max"] is not None
    section, _ = run.sections()
    assert [row[0] for row in section.rows] == ["1024", "2048", "3072"]
    assert "1 is linear" in section.lines[0]


def test_a_busy_machine_is_remarked() -> None:
    run = example_run()
    assert not any("Busy" in line for line in run.noise())
    busy = replace(run, machine={**run.machine, "load_average": 1.5})
    assert any("load average was 1.5" in line for line in busy.noise())


def test_main_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "QUICK", BRISK)
    path = tmp_path / "bench.md"
    status = main(True, None, path, threads=[1, 2], cases="tiny max 2x2s2 8x8", peers="eager,copy")
    assert status == 0
    printed = capsys.readouterr()
    assert "tiny max 2x2s2 8x8" in printed.out
    assert "torch eager" in printed.out
    text = path.read_text(encoding="utf-8")
    assert "1 thread of" in text
    assert "2 threads of" in text
    assert "poolkit bench --quick --cases 'tiny max 2x2s2 8x8' --peers eager,copy" in text


def test_main_measures_scaling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "QUICK", BRISK)
    monkeypatch.setattr(scaling, "QUICK_PLANES", (1, 3))
    path = tmp_path / "scaling.json"
    assert main(quick=True, json=path, threads=[1], scaling=True) == 0
    assert "Time against elements, 1 thread" in capsys.readouterr().out
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [point["elements"] for point in document["points"]] == [1024, 3072]


def test_main_states_the_instruction_set_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "QUICK", BRISK)
    path = tmp_path / "bench.json"
    main(True, path, threads=[1], cases="tiny max 2x2s2 8x8", peers="poolkit", isa="baseline")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["machine"]["poolkit_isa"] == "baseline"
    assert "--isa baseline" in document["command"]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--cases", "no such case"], "nothing is called 'no such case'"),
        (["--peers", "numpy"], "nothing is called 'numpy'; there is: poolkit, eager"),
        (["--threads", "0"], "threads are counted from 1, not 0"),
        (["--threads", "1,two"], "threads must be numbers, got '1,two'. Give them as 1,2."),
        (["--isa", "mmx"], "the instruction set 'mmx' is not available here. One of: "),
    ],
)
def test_what_cannot_be_measured_is_an_error_in_one_line(
    options: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = pytest.importorskip("poolkit.cli")
    assert cli.run(["bench", *options]) == 1
    assert capsys.readouterr().err.startswith(f"poolkit: {fact}")


@pytest.mark.parametrize("given", [["--threads", "1,2"], ["--threads", "1", "2"]])
def test_threads_are_given_with_commas_or_spaces(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = pytest.importorskip("poolkit.cli")
    asked: dict[str, object] = {}
    monkeypatch.setattr("poolkit.benchmark.main", lambda **options: asked.update(options) or 0)
    assert cli.run(["bench", *given, "--scaling", "--isa", "avx2"]) == 0
    assert (asked["threads"], asked["scaling"], asked["isa"]) == ([1, 2], True, "avx2")


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVINO, Jax], ids=lambda engine: engine.name)
def test_a_missing_engine_says_what_to_install(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = engine.needs[-1]
    for name in engine.needs[:-1]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package, None)
    reason = engine.missing()
    assert reason == f"{package} is not installed: pip install onnx onnxruntime openvino jax"


def test_a_missing_engine_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "QUICK", BRISK)
    monkeypatch.setitem(sys.modules, "jax", None)
    path = tmp_path / "bench.json"
    assert main(True, path, threads=[1], cases="tiny max 2x2s2 8x8", peers="jax,copy") == 0
    (result,) = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert result["peers"]["jax"]["status"] == "missing"
    assert result["peers"]["copy"]["status"] == "timed"


def test_a_wrong_answer_of_poolkit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from poolkit.benchmark import peers

    class WrongPoolkit(Wrong):
        name = "poolkit"
        title = "poolkit"

    monkeypatch.setattr(peers, "TORCH_PEERS", (WrongPoolkit, TorchEager, Copy))
    monkeypatch.setattr(runner, "QUICK", BRISK)
    assert main(True, threads=[1], cases="tiny max 2x2s2 8x8", peers="poolkit") == 1
    assert main(True, threads=[1], cases="tiny max 2x2s2 8x8", peers="eager") == 0
