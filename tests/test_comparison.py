# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Whole studies: what they find, that they go on where they stopped, and how they are shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("cyclopts")

import poolkit
from poolkit.__main__ import main
from poolkit.comparison import journal as journal_room
from poolkit.comparison import study as study_room
from poolkit.comparison.comparing import compare
from poolkit.comparison.engine import _in_words
from poolkit.comparison.journal import Journal
from poolkit.comparison.study import Study
from poolkit.errors import PoolError, PoolValueError

NET = """
import os, signal, sys, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        # A process that is to die does so in the middle of a training.
        study = Path("study.jsonl")
        if "DIE_AFTER" in os.environ and self.training and study.exists():
            if study.read_bytes().count(b"\\n") > int(os.environ["DIE_AFTER"]):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def net(width=1.0):
    channels = round(8 * width)
    return Net(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2),
    )

def data():
    # Processes that are to work together wait for each other.
    if "TOGETHER" in os.environ:
        Path(f"here-{os.getpid()}").touch()
        end = time.monotonic() + 400
        while len(list(Path().glob("here-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    # Dark and bright images, in noise.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(216) % 2
    images = 2 * torch.rand(216, 1, 8, 8, generator=generator) * torch.rand(
        216, 1, 1, 1, generator=generator
    ) + labels[:, None, None, None]
    return [(images[a:b], labels[a:b]) for a, b in ((0, 96), (96, 136), (136, 216))]

def unlearnable():
    (x, y), *rest = data()
    return [(torch.zeros_like(x), y) for x, y in ((x, y), *rest)]
"""


def asked(study: str = "study.jsonl", seconds: float = 0) -> list[object]:
    return [
        "compare", "net.py:net", "--data", "net.py:data", "--variants", "max,avg,strided",
        "--seeds", 2, "--epochs", 2, "--batch-size", 16, "--learning-rates", "0.05,0.2",
        "--seconds", seconds, "--study", study,
    ]  # fmt: skip


TASKS = 3 * 2 + 3 * 2


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NET)
    yield
    sys.modules.pop("net", None)


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(["-S"] if sys.flags.no_site else []), "-m", "poolkit",
         *map(str, arguments)],
        env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def tiny(**options):
    """A study in this process, on the model and data of the file."""
    given = {
        "variants": ["max", "avg"], "seeds": 2, "epochs": 1, "batch_size": 16,
        "learning_rates": [0.1], "seconds": 0,
    }  # fmt: skip
    return compare("net.py:net", "net.py:data", **(given | options))


def lines(path: str = "study.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def finished(path: str = "study.jsonl") -> list[str]:
    return [f"{r['kind']} {r['arm']} {r['rate']} {r['seed']}" for r in lines(path)[1:]]


# --- crashes and company -------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_study_that_is_killed_goes_on_and_ends_with_the_same_table(capsys):
    assert run(*asked("other.jsonl")) == 0
    undisturbed = capsys.readouterr().out
    assert "on this data only" in undisturbed

    killed = started(*asked(), DIE_AFTER="4")
    killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL
    before = Path("study.jsonl").read_bytes()
    assert len(finished()) == 4
    # And a line of which the power went off half way.
    Path("study.jsonl").write_bytes(before + b'{"kind": "run", "arm": "ma')

    assert run(*asked()) == 0
    assert capsys.readouterr().out == undisturbed
    assert Path("study.jsonl").read_bytes().startswith(before)
    assert len(set(finished())) == len(finished()) == TASKS
    assert finished("other.jsonl") == finished()


def test_two_processes_share_a_study(capsys):
    both = [started(*asked(), TOGETHER="1") for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(set(finished())) == len(finished()) == TASKS
    assert len({record["by"] for record in lines()[1:]}) == 2
    # Nothing is left to do, and it is the table of one process alone.
    assert run(*asked()) == 0
    assert capsys.readouterr().out == outputs[0][0]
    assert run(*asked("alone.jsonl")) == 0
    assert capsys.readouterr().out == outputs[0][0]


def test_the_same_seed_has_the_same_bits():
    first, second = tiny(study="a.jsonl"), tiny(study="b.jsonl")
    assert first.rows[0].accuracies == second.rows[0].accuracies
    for a, b in zip(lines("a.jsonl"), lines("b.jsonl"), strict=True):
        for record in (a, b):
            record.pop("seconds", None)
        assert a == b


def test_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny()
    assert torch.equal(torch.rand(3), expected)


def test_seeds_and_variants_can_be_added(monkeypatch):
    done = []
    perform = Study.perform
    monkeypatch.setattr(
        Study, "perform", lambda self, task, tell: done.append(task) or perform(self, task, tell)
    )
    tiny(study="study.jsonl")
    assert len(done) == 2 + 4
    done.clear()
    found = tiny(study="study.jsonl", seeds=3, variants="max,avg,min")
    assert sorted((task.kind, task.arm, task.seed or 0) for task in done) == [
        ("run", "avg", 3), ("run", "max", 3), ("run", "min", 1), ("run", "min", 2),
        ("run", "min", 3), ("tuning", "min", 0),
    ]  # fmt: skip
    assert [row.name for row in found.rows] == ["max", "avg", "min"]
    done.clear()
    assert tiny(study="study.jsonl").seeds == 2
    assert done == []
    # A rate that is added is tried, and if it is the best, models are trained at it.
    found = tiny(study="study.jsonl", learning_rates=[0.1, 0.3])
    assert [(task.kind, task.arm, task.rate) for task in done[:2]] == [
        ("tuning", "max", 0.3), ("tuning", "avg", 0.3),
    ]  # fmt: skip
    assert {(task.arm, task.rate) for task in done[2:]} == {
        (row.name, row.learning_rate) for row in found.rows if row.learning_rate == 0.3
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2}, "study.jsonl is of another study: epochs 1, not 2. Give the same options"),
        ({"batch_size": 8}, "batch_size 16, not 8"),
        ({"baseline": "avg"}, "baseline 'max', not 'avg'"),
        ({"budget": 5.0, "epochs": None}, "budget None, not 5.0"),
    ],
)
def test_a_study_of_other_settings_is_refused(options, message):
    tiny(study="study.jsonl")
    before = Path("study.jsonl").read_bytes()
    with pytest.raises(PoolValueError) as error:
        tiny(study="study.jsonl", **options)
    assert message in str(error.value)
    assert Path("study.jsonl").read_bytes() == before


def test_a_study_of_another_model_or_other_data_is_refused():
    tiny(study="study.jsonl")
    Path("net.py").write_text(NET.replace("8 * width", "9 * width"))
    sys.modules.pop("net")
    with pytest.raises(PoolValueError, match="another study: model 'net "):
        tiny(study="study.jsonl")
    Path("net.py").write_text(NET.replace("manual_seed(0)", "manual_seed(1)"))
    sys.modules.pop("net")
    with pytest.raises(PoolValueError, match="another study: data "):
        tiny(study="study.jsonl")


def test_a_file_of_something_else_is_refused_and_left_alone():
    Path("study.jsonl").write_text("my notes\n")
    with pytest.raises(PoolValueError, match=r"line 1 of study.jsonl is no record of a study"):
        tiny(study="study.jsonl")
    assert Path("study.jsonl").read_text() == "my notes\n"


def test_claims_hold_between_processes_and_end_with_them():
    code = """
        import importlib.util, sys
        from pathlib import Path
        # The module alone: without torch a process starts quickly.
        spec = importlib.util.spec_from_file_location("journal", sys.argv[1])
        journal = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(journal)
        print(journal.Journal(Path("study.jsonl")).claim("it"), flush=True)
        sys.stdin.readline()
    """

    def other() -> subprocess.Popen[str]:
        flags = ["-S"] if sys.flags.no_site else []
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", textwrap.dedent(code), journal_room.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.said = process.stdout.readline().strip()  # type: ignore[attr-defined]
        return process

    with Journal(Path("study.jsonl")) as journal:
        holder = other()
        assert holder.said == "True"
        assert not journal.claim("it")
        assert journal.claim("another")
        holder.kill()
        holder.communicate(timeout=60)
        assert journal.claim("it")
        refused = other()
        assert refused.said == "False"
        refused.communicate("\n", timeout=60)


@pytest.mark.parametrize("left", [b"", b'{"kind": "run"', b"x" * 9000])
def test_a_line_that_is_not_whole_is_cut_off_by_the_next(left):
    with Journal(Path("study.jsonl")) as journal:
        first = journal.begin({"kind": "study"})
        assert journal.begin({"kind": "other"}) == first
        with Path("study.jsonl").open("ab") as stream:
            stream.write(left)
        assert journal.records() == [{"kind": "study"}]
        journal.append({"kind": "run", "n": 1})
        assert journal.records() == [{"kind": "study"}, {"kind": "run", "n": 1}]


# --- what is found -------------------------------------------------------------------------------


def test_tuning_takes_the_best_rate_and_sees_no_test_item(monkeypatch):
    seen = []
    answers = study_room._answers

    def watched(model, split):
        seen.append(len(split))
        return answers(model, split)

    monkeypatch.setattr(study_room, "_answers", watched)
    found = tiny(learning_rates=[1e-6, 0.1], epochs=2, study="study.jsonl")
    assert seen == [40] * 4 + [80] * 4
    assert [row.learning_rate for row in found.rows] == [0.1, 0.1]
    assert [row.at_edge for row in found.rows] == [True, True]
    tuned = [record for record in lines() if record["kind"] == "tuning"]
    assert {record["rate"] for record in tuned} == {1e-6, 0.1}


def test_figures_are_those_of_the_runs():
    found = tiny(study="study.jsonl", seeds=3, seconds=0.001, epochs=3)
    runs = {(r["arm"], r["seed"]): r["accuracy"] for r in lines() if r["kind"] == "run"}
    max_, avg = found.rows
    assert (max_.failed, avg.failed) == (0, 0)
    assert avg.accuracies == [runs["avg", seed] for seed in (1, 2, 3)]
    paired = [a - b for a, b in zip(avg.accuracies, max_.accuracies, strict=True)]
    assert avg.difference == pytest.approx(sum(paired) / 3)
    assert avg.interval[0] <= avg.difference <= avg.interval[1]
    assert (max_.outcome, max_.difference) == ("baseline", None)
    assert max_.parameters == 8 * 9 + 8 + 8 * 2 + 2
    assert max_.multiply_adds == 64 * 8 * 9 + 8 * 2
    assert set(avg.inference_ms) == {"contiguous", "channels_last"}
    assert json.loads(found.to_json())["rows"][1]["verdict"].endswith("on this data only")


def test_controls_change_the_width_where_it_is_needed():
    found = tiny(
        variants="max,avg,strided,moved-stride",
        controls=["plain", "parameters", "multiply-adds"],
        baseline="max",
    )
    labels = [row.label for row in found.rows]
    assert labels == [
        "max", "avg", "strided", "moved-stride", "strided, same parameters",
        "strided, same multiply-adds", "moved-stride, same multiply-adds",
    ]  # fmt: skip
    by_label = dict(zip(labels, found.rows, strict=True))
    assert by_label["strided"].parameters > 3 * found.baseline.parameters
    matched = by_label["strided, same parameters"]
    assert matched.width < 1
    # Channels are whole: 4 of them with their strided convolution have 118, 3 have 77.
    assert (found.baseline.parameters, matched.parameters) == (98, 118)
    wider = by_label["moved-stride, same multiply-adds"]
    assert wider.width > 1
    assert wider.multiply_adds == pytest.approx(found.baseline.multiply_adds, rel=0.2)
    only = tiny(variants="max,avg,strided", controls=["parameters"])
    assert [row.label for row in only.rows] == ["max", "avg", "strided, same parameters"]


def test_a_control_needs_a_width():
    narrow = lambda: torch.nn.Sequential(  # noqa: E731
        torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 2)
    )
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    with pytest.raises(PoolValueError, match="has no argument width, so its size cannot be that"):
        compare(narrow, [(images, labels)] * 3, "max,strided", 2, controls=["parameters"])


def test_nothing_learned_is_no_equivalence():
    found = compare(
        "net.py:net", "net.py:unlearnable", ["max", "avg"], 2, epochs=1, learning_rates=[0.01],
        seconds=0,
    )  # fmt: skip
    row = found.rows[1]
    assert row.difference == 0
    assert row.outcome == "inconclusive"
    assert "neither learned to tell the classes apart" in found.verdict(row)
    assert [row.failed for row in found.rows] == [2, 2]
    assert "Of 2 trainings each, these learned nothing: 2 of max, 2 of avg." in str(found)
    assert "these learned nothing" in found.to_html("page.html").read_text(encoding="utf-8")


def test_verdicts_say_what_was_found():
    found = tiny(epochs=3)
    row = found.rows[1]
    row.difference, row.accuracy = 0.0123, 1.0
    for outcome, said in {
        "better": "better than max by 1.23 points",
        "worse": "worse than max by",
        "equivalent": "equivalent to max within ±0.5 points",
        "inconclusive": "no number of seeds would settle it, only more test items",
    }.items():
        row.outcome = outcome
        assert said in found.verdict(row)
        assert found.verdict(row).endswith(", on this data only")
    row.seeds_needed = 12
    assert "about 12 seeds would settle it" in found.verdict(row)


def test_a_budget_becomes_epochs_once_for_all():
    found = tiny(epochs=None, budget=0.05, study="study.jsonl")
    assert found.epochs >= 1
    assert tiny(epochs=None, budget=0.05, study="study.jsonl").epochs == found.epochs
    with pytest.raises(PoolValueError, match="minutes are too few: one epoch of all trainings"):
        tiny(epochs=None, budget=1e-9)


def test_progress_says_how_much_time_is_left():
    told = []
    tiny(seeds=3, progress=lambda what, done, total: told.append((what, done, total)))
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    assert told[-1][1:] == (8, 8)
    assert any(re.search(r"avg, seed \d; \d+ s left", what) for what, _, _ in told)
    assert _in_words(7900) == "2 h 12 min"


# --- how it is shown -----------------------------------------------------------------------------


def test_command_writes_table_page_and_json(capsys):
    status = run(
        *asked(seconds=0.001), "--controls", "plain,parameters",
        "--output", "report.html", "--json", "report.json",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert status == 0, captured.err
    for text in ("variant", "max", "avg", "strided", "on this data only", "Report: report.html"):
        assert text in captured.out
    assert "16/16" in captured.err or "s left" in captured.err
    data = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert data["version"] == 1
    assert len(data["rows"]) == 4
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count('<circle class="mean') == 3
    assert page.count('<circle class="seed') == 6
    assert not re.search(r"https?://|<script|url\(|@import", page)


def test_the_page_escapes_names():
    found = tiny(epochs=3)
    found.model = "<script>alert(1)</script>"
    page = found.to_html(Path("page.html")).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_it_is_there_as_a_function():
    assert poolkit.compare is compare


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--variants", "max,maxx"),
            "there is no variant called 'maxx'. One of: abmil, adaptive_avg",
        ),
        (("--variants", "max"), "there is nothing to compare 'max' with. Give two variants"),
        (("--variants", ""), "there is no variant to compare. Give names"),
        (("--seeds", 1), "a comparison needs 2 seeds or more, got 1"),
        (("--controls", "width"), "there is no control 'width'. Give some of plain, parameters"),
        (("--epochs", 0), "epochs must be at least 1, got 0"),
        (("--epochs", 1, "--budget", 1), "epochs and budget say the same thing twice"),
        (("--budget", -1), "budget is a number of minutes above 0"),
        (("--learning-rates", "x"), "learning rates must be numbers, got 'x'"),
        (("--learning-rates", "-1"), "learning rates are positive numbers"),
        (("--margin", 0), "margin is in percentage points"),
        (("--data", "mnist"), "there is no data called 'mnist'"),
        (("--study", "no/s.jsonl"), "cannot write no/s.jsonl: there is no folder no"),
        (("--output", "no/s.html"), "cannot write no/s.html: there is no folder no"),
        (("--variants", "max,bilinear"), "'bilinear' gives [2, 64, 1, 1] for 3 (AdaptiveAvg"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained(capsys, arguments, message):
    before = sorted(path.name for path in Path().iterdir())
    data = () if "--data" in arguments else ("--data", "net.py:data")
    assert run("compare", "net.py:net", *data, *arguments) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"poolkit: {message}")
    after = sorted(path.name for path in Path().iterdir() if path.name != "__pycache__")
    assert after == before


# --- a cluster -----------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray (poolkit[ray])")
@pytest.mark.filterwarnings("ignore")
def test_a_study_on_a_real_ray_cluster_ends_with_the_same_table(capsys):
    assert run(*asked("alone.jsonl")) == 0
    alone = capsys.readouterr().out
    assert run(*asked(), "--ray", "local") == 0
    assert capsys.readouterr().out == alone
    assert len(set(finished())) == len(finished()) == TASKS
    assert str(os.getpid()) not in {record["by"].rpartition(":")[2] for record in lines()[1:]}


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(PoolError, match=r"pip install 'poolkit\[ray\]'"):
        tiny(ray="local")
