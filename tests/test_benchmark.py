"""The benchmark measures what it says, and notices a wrong answer. No test here asserts a time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from poolkit.benchmark import main, report, runner  # noqa: E402
from poolkit.benchmark.answers import (  # noqa: E402
    as_answer,
    make_input,
    mistake,
    right_answer,
    torch_operation,
    with_backward,
)
from poolkit.benchmark.cases import (  # noqa: E402
    ADAPTIVE,
    GLOBAL,
    SLIDING,
    Case,
    CaseError,
    load_cases,
    select,
)
from poolkit.benchmark.engines import Engine, OnnxRuntime, OpenVINO  # noqa: E402
from poolkit.benchmark.peers import (  # noqa: E402
    TORCH_PEERS,
    Call,
    Copy,
    Peer,
    TorchCompile,
    TorchEager,
    UnsupportedError,
)
from poolkit.timing import Quartiles, Schedule  # noqa: E402

CASES = load_cases()
PEERS = [*(peer for peer in TORCH_PEERS if peer not in (TorchCompile, Copy)), OnnxRuntime, OpenVINO]
BRISK = Schedule(budget_s=0, min_rounds=3, max_rounds=3, sample_s=1e-5)
SMALL = Case("small", "max", (1, 2, 6, 6), (2, 2), (2, 2), (0, 0), min_ratio_eager=1.0)


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
    assert {case.dtype for case in CASES} == {"float32", "bfloat16", "int8"}
    assert {case.op for case in CASES} == {*SLIDING, *ADAPTIVE, *GLOBAL}
    assert any(case.training for case in CASES)
    assert any(case.layout == "channels_last" for case in CASES)
    assert all(case.targets()["eager"] >= 1 for case in CASES)


def test_targets_are_held_against_what_they_name() -> None:
    # oneDNN has three: the two poolings of a network's stem, and that of its SPPF block.
    held = {case.shape + case.kernel_size: case for case in CASES if "onednn" in case.targets()}
    assert set(held) == {(32, 64, 112, 112, 2, 2), (32, 64, 112, 112, 3, 3), (8, 256, 40, 40, 5, 5)}
    for case in held.values():
        assert (case.op, case.dtype, case.layout) == ("max", "float32", "nchw")
        assert not case.training
        assert case.targets() == {"eager": 15.0, "onednn": 1.0}
    trained = [case.targets() for case in CASES if case.training]
    assert trained
    assert all(targets == {"eager": 1.0} for targets in trained)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_and_bytes_are_those_of_torch(case: Case) -> None:
    case = small(case)
    x = make_input(case)
    (y, *gradient) = right_answer(case, x)
    assert (x.shape, y.shape) == (case.shape, case.output_shape)
    assert y.dtype == x.dtype
    passes = 2 if gradient else 1
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
        ('op = "global_avg"\nshape = [1, 1, 4]\nmin_ratio_eager = 0', "target ratio is positive"),
        ('shape = [1, 1, 4]', "op is missing"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_by_name(tmp_path: Path, row: str, fact: str) -> None:
    table = tmp_path / "cases.toml"
    table.write_text(f'[[case]]\nname = "odd one"\n{row}\n', encoding="utf-8")
    with pytest.raises(CaseError, match="odd one") as caught:
        load_cases(table)
    assert fact in str(caught.value)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "cases.toml"
    row = '[[case]]\nname = "twin"\nop = "global_avg"\nshape = [1, 1, 4]\n'
    table.write_text(row * 2, encoding="utf-8")
    with pytest.raises(CaseError, match="'twin' is in the table twice"):
        load_cases(table)


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


@pytest.mark.slow  # starts a C++ compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own use of it
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_torch_compile_computes_the_case(mode: str) -> None:
    case = replace(SMALL, mode=mode)
    x = make_input(case)
    with torch.inference_mode(not case.training):
        call = TorchCompile(1).prepare(case, x)
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


def test_a_training_step_accumulates_nothing() -> None:
    case = replace(SMALL, mode="training")
    step = with_backward(torch_operation(case), make_input(case), case)
    first, second = step(), step()
    assert torch.equal(first[1], second[1])
    assert first[1].count_nonzero() > 0


# -- the runner --


def measured(*peers: type[Peer], case: Case = SMALL) -> runner.CaseResult:
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


def result_of(**milliseconds: list[float]) -> runner.CaseResult:
    outcomes = {
        name: runner.Outcome("timed", seconds=[value / 1e3 for value in values], calls_per_sample=1)
        for name, values in milliseconds.items()
    }
    return runner.CaseResult(SMALL, 1, outcomes)


def test_ratios_are_paired_within_a_round() -> None:
    # The machine is 10 times slower in the last round; the ratio of 4 is not moved by that.
    result = result_of(poolkit=[1, 1, 10], eager=[4, 4, 40])
    assert result.ratio("eager") == pytest.approx(Quartiles(4, 4, 4))
    assert result.ratio("onednn") is None


@pytest.mark.parametrize(
    ("eager", "verdict"),
    [([2, 2, 2, 2], "met"), ([0.5, 0.5, 0.5, 0.5], "missed"), ([0.9, 0.9, 0.9, 2], "within noise")],
)
def test_a_missed_target_is_marked(eager: list[float], verdict: str) -> None:
    (target,) = result_of(poolkit=[1, 1, 1, 1], eager=eager).targets()
    assert (target.against, target.wanted, target.verdict) == ("eager", 1.0, verdict)


@pytest.mark.parametrize(
    ("copy", "disturbed"),
    [([1, 1, 1, 1.1, 1.1, 1.1], False), ([1, 1, 1, 1, 1.3, 1.3], True), ([1.3, 1.3, 1, 1], True)],
)
def test_a_machine_that_changes_speed_is_noticed(copy: list[float], disturbed: bool) -> None:
    assert result_of(copy=copy).disturbed is disturbed


# -- the report --


def example_run() -> report.Run:
    peers = [TorchEager, Wrong, Copy]
    result = result_of(eager=[70.0, 71.0, 90.0], copy=[2.0, 2.0, 3.0])
    result.outcomes["wrong"] = runner.Outcome("wrong", "output: not equal")
    machine = {"cpu": "one", "usable_cores": 2, "date": "today", "os": "an", "load_average": 0.0}
    versions = dict.fromkeys(("eager", "wrong", "copy"), "1.0")
    return report.Run(machine, versions, runner.FULL, peers, [result])


def test_json_states_times_ratios_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    report.write_json(path, example_run())
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [path]  # the partial file is gone
    assert document["schema"] == report.JSON_SCHEMA
    (result,) = document["results"]
    assert result["threads"] == 1
    assert result["peers"]["eager"]["ms"] == {"low": 70.5, "median": 71.0, "high": 80.5}
    assert result["peers"]["wrong"] == {"status": "wrong", "reason": "output: not equal"}
    assert result["ratios"] == {"eager/poolkit": None, "poolkit/copy": None, "best/poolkit": None}
    assert result["best_peer"] == "eager"
    assert result["disturbed"] is True


def test_markdown_has_one_column_per_peer_and_says_what_was_wrong() -> None:
    text = report.as_markdown(example_run())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert {line.count("|") for line in table} == {len(report.header(example_run())) + 1}
    assert "| 71.0 ±7% | WRONG | 2.00 ±12% |" in table[2]
    assert "1 thread of 2, one" in text
    assert "wrong, wrong: output: not equal [small]" in text
    assert "distrust small +50%" in text


def test_a_busy_machine_is_remarked() -> None:
    run = example_run()
    assert not any("Busy" in line for line in report.remarks(run, 1))
    busy = replace(run, machine={**run.machine, "load_average": 1.5})
    assert any("load average was 1.5" in line for line in report.remarks(busy, 1))


def test_main_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "QUICK", BRISK)
    path = tmp_path / "bench.md"
    status = main(True, None, path, threads=[1], cases="tiny max 2x2s2 8x8", peers="eager,copy")
    assert status == 0
    printed = capsys.readouterr()
    assert "tiny max 2x2s2 8x8" in printed.out
    assert "torch eager" in printed.out
    assert "1 thread of" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"cases": "no such case"}, "nothing is called 'no such case'"),
        ({"peers": "numpy"}, "nothing is called 'numpy'; there is: poolkit, eager"),
        ({"threads": [0]}, "threads are counted from 1, not 0"),
    ],
)
def test_main_refuses_what_it_cannot_measure(
    options: dict[str, object], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(**options) == 2  # type: ignore[arg-type]
    assert fact in capsys.readouterr().err


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVINO], ids=lambda engine: engine.name)
def test_a_missing_engine_says_what_to_install(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = engine.needs[-1]
    for name in engine.needs[:-1]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package, None)
    reason = engine.missing()
    assert reason == f"{package} is not installed: pip install onnx onnxruntime openvino"


def test_a_wrong_answer_of_poolkit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from poolkit.benchmark import peers

    class WrongPoolkit(Wrong):
        name = "poolkit"
        title = "poolkit"

    monkeypatch.setattr(peers, "TORCH_PEERS", (WrongPoolkit, TorchEager, Copy))
    monkeypatch.setattr(runner, "QUICK", BRISK)
    assert main(True, threads=[1], cases="tiny max 2x2s2 8x8", peers="poolkit") == 1
    assert main(True, threads=[1], cases="tiny max 2x2s2 8x8", peers="eager") == 0
