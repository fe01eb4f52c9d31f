"""The command line: inspect, advise, compare, optimize, export, lint, window, bench, gallery, info.

Nothing here imports torch before a command needs it, so ``poolkit --help`` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from poolkit.errors import MissingExtraError, PoolError, PoolValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.inspection import Report
    from poolkit.linting import Finding

app = App(
    name="poolkit",
    help="Pooling, inspected and made fast. Without a MODEL, commands run on the built-in "
    "example: two face networks with real weights on real photographs.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

_Inputs = Annotated[
    list[Path] | None,
    Parameter(name="--input", consume_multiple=True, negative="", help="Images of one size (a "
              "float batch in 0..1), or .npy, .npz or .pt files with the arguments of forward."),
]  # fmt: skip
_Model = Annotated[
    str | None,
    Parameter(help="file.py:factory or package.module:factory. The factory returns a "
              "torch.nn.Module, or a tuple (module, example_inputs). Also a .pt2 file of "
              "torch.export; and to inspect, an .onnx file."),
]  # fmt: skip
_Json = Annotated[Path | None, Parameter(name="--json", help="Write the report as JSON too.")]
_Seconds = Annotated[
    float,
    Parameter(help="Seconds to spend on timing each layer, and on the model; 0 times nothing."),
]


@app.command
def inspect(
    model: _Model = None,
    *,
    input: _Inputs = None,
    output: Annotated[Path | None, Parameter(help="Write the report as one HTML file.")] = None,
    json: _Json = None,
    seconds: _Seconds = 0.4,
    diff: Annotated[
        tuple[Path, Path] | None,
        Parameter(
            negative="",
            help="Instead of a model, two reports written with --json: say what changed from the "
            "first to the second.",
        ),
    ] = None,
) -> int:
    """Find every pooling that a model runs, and say what each costs and what it loses."""
    _check_targets(output, json)
    if diff is not None:
        if model is not None or input or output is not None:
            raise PoolValueError(
                "--diff compares two reports, without a MODEL, --input or --output"
            )
        return _diff(*diff, json)
    network, inputs, name = _subject(model, input, or_onnx=True)
    from poolkit.files import write_whole
    from poolkit.inspection import inspect as run_inspection
    from poolkit.inspection.terminal import lines

    with _progress("inspecting") as progress:
        report = run_inspection(
            network, inputs, name=name, seconds=seconds, progress=progress,
            pictures=output is not None,
        )  # fmt: skip
        if model is None:
            progress("accuracy on labelled crops", len(report.layers), len(report.layers))
            _add_lesson(report)
    console = _console()
    for line in lines(report, console.width):
        console.print(line)
    if output is not None:
        report.to_html(output)
        _say_written(console, "Report", output)
    if json is not None:
        write_whole(json, report.to_json())
        _say_written(console, "JSON", json)
    return 0


def _diff(before: Path, after: Path, json: Path | None) -> int:
    from poolkit.files import write_whole
    from poolkit.inspection.diff import diff, load

    found = diff(load(before), load(after))
    console = _console()
    console.print(str(found), markup=False, soft_wrap=True)
    if json is not None:
        write_whole(json, found.to_json())
        _say_written(console, "JSON", json)
    return 0


@app.command
def advise(
    model: Annotated[
        str | None,
        Parameter(
            help="file.py:factory or package.module:factory. The factory returns a "
            "torch.nn.Module, or a tuple (module, example_inputs)."
        ),
    ] = None,
    *,
    input: Annotated[
        list[str] | None,
        Parameter(
            name="--input", consume_multiple=True, negative="",
            help="The size of each argument of forward, as 1x3x224x224, or 1x128:int64 for "
            "another dtype than float32; or files, of which the size counts, and the values "
            "only if the model looks at them.",
        ),
    ] = None,
    json: _Json = None,
) -> int:  # fmt: skip
    """Say what a model's poolings do to its input, and what others in their places would cost.

    Needs no data and no weights, only a size: alternatives are built and counted without values,
    unless the model looks at them.
    """
    _check_targets(json)
    from poolkit.design.sources import advise_on
    from poolkit.design.terminal import lines
    from poolkit.files import write_whole

    with _progress("advising") as progress:
        found = advise_on(model, input or [], progress)
    console = _console()
    for line in lines(found, console.width):
        console.print(line)
    if json is not None:
        write_whole(json, found.to_json())
        _say_written(console, "JSON", json)
    return 0


@app.command
def optimize(
    model: _Model = None,
    *,
    input: _Inputs = None,
    json: _Json = None,
    tolerance: Annotated[
        float,
        Parameter(
            help="Largest difference of averages, gradients and the model's outputs, as a "
            "fraction of the largest value; max and min must have the same bits."
        ),
    ] = 1e-5,
    seconds: _Seconds = 0.4,
    tier: Annotated[
        Literal["module", "graph"] | None,
        Parameter(
            help="module swaps modules; graph rewrites an exported program, functions too, for "
            "inference. Default: graph with --save and of a .pt2 file, else module."
        ),
    ] = None,
    save: Annotated[
        Path | None, Parameter(help="Write the program of the graph tier to this .pt2 file.")
    ] = None,
    fixed_batch: Annotated[
        bool, Parameter(negative="", help="Let the program take batches of this size only.")
    ] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Say what would be done, and do nothing.")
    ] = False,
) -> int:
    """Pool by poolkit in a model where that is equal and faster, and report each layer.

    With --save the result is a file. What the module tier does is only reported: in a program,
    call poolkit.optimize(model, example_inputs).
    """
    _check_targets(json, save)
    if save is not None and (dry_run or tier == "module"):
        raise PoolValueError(
            "--save writes the program of the graph tier, and a dry run has none"
            if dry_run
            else "--save writes the program of the graph tier",
            f"Drop --save or {'--dry-run' if dry_run else '--tier module'}",
        )
    if save is not None and save.suffix != ".pt2":
        raise PoolValueError(f"a program is a .pt2 file, got {save}", "Name it so")
    if tier is None:
        is_program = model is not None and model.endswith(".pt2")
        tier = "graph" if save is not None or is_program else "module"
    network, inputs, _ = _subject(model, input)
    from poolkit.files import write_whole
    from poolkit.optimization import optimize as run_optimization
    from poolkit.optimization.terminal import lines

    with _progress("optimizing") as progress:
        report = run_optimization(
            network, inputs, tier=tier, tolerance=tolerance, seconds=seconds, dry_run=dry_run,
            dynamic_batch=not fixed_batch, progress=progress,
        )  # fmt: skip
    console = _console()
    for line in lines(report):
        console.print(line)
    if save is not None:
        report.save(save)
        _say_written(console, "Program", save, "before torch.export.load, import poolkit.nn")
    if json is not None:
        write_whole(json, report.to_json())
        _say_written(console, "JSON", json)
    return 0


@app.command
def compare(
    model: Annotated[
        str | None,
        Parameter(
            help="file.py:factory or package.module:factory of a new torch.nn.Module. Default: "
            "vgg, a small network that is built in."
        ),
    ] = None,
    *,
    data: Annotated[
        str,
        Parameter(
            help="mnist-5k, fashion-mnist, either with options as 'fashion-mnist(train=6000)', or "
            "file.py:factory of (train, validation, test), each (inputs, labels)."
        ),
    ] = "mnist-5k",
    variants: Annotated[
        str,
        Parameter(
            help="Poolings by name, comma-separated, with options as 'gem(p=3)'; also "
            "moved-stride, strided, depthwise and original."
        ),
    ] = "max,avg,soft,strided",
    seeds: Annotated[int, Parameter(help="Models that are trained of each variant.")] = 5,
    baseline: Annotated[
        str | None, Parameter(help="What the others are compared with. Default: the first.")
    ] = None,
    controls: Annotated[
        str,
        Parameter(
            help="What is equal to the baseline, comma-separated: plain (all but the pooling), "
            "parameters, multiply-adds (by the width of the model)."
        ),
    ] = "plain",
    epochs: Annotated[
        int | None, Parameter(help="Of each training. Default: 10, or what the budget allows.")
    ] = None,
    budget: Annotated[
        float | None,
        Parameter(help="Minutes for all trainings in one process; the epochs follow from it."),
    ] = None,
    learning_rates: Annotated[
        str, Parameter(help="To choose from on the validation split, comma-separated.")
    ] = "0.02,0.05,0.1,0.2,0.4",
    batch_size: Annotated[int, Parameter(help="Of each step of training.")] = 64,
    margin: Annotated[
        float, Parameter(help="Percentage points of accuracy that do not matter.")
    ] = 0.5,
    confidence: Annotated[float, Parameter(help="Of intervals and verdicts.")] = 0.95,
    study: Annotated[
        Path,
        Parameter(
            help="File of finished runs. The same command goes on where it stopped; two at a time "
            "share the work; seeds, variants and learning rates can be added."
        ),
    ] = Path("compare.jsonl"),
    output: Annotated[Path | None, Parameter(help="Write the report as one HTML file.")] = None,
    json: _Json = None,
    seconds: Annotated[
        float, Parameter(help="Seconds to spend on timing each variant in each layout; 0 for none.")
    ] = 0.4,
    threads: Annotated[int, Parameter(help="Of each training.")] = 1,
    ray: Annotated[
        str | None,
        Parameter(help="Address of a Ray cluster to train on; local starts one on this machine."),
    ] = None,
) -> int:
    """Train a model with each of several poolings, and say which is better, and what it costs."""
    _check_targets(output, json)
    from poolkit.comparison import compare as run_comparison
    from poolkit.comparison.terminal import lines
    from poolkit.files import write_whole

    with _progress("comparing", logged=True) as progress:
        found = run_comparison(
            model, data, variants, seeds, baseline=baseline,
            controls=_words(controls),
            epochs=epochs, budget=budget, learning_rates=_numbers(learning_rates),
            batch_size=batch_size, margin=margin, confidence=confidence, study=study,
            seconds=seconds, threads=threads, ray=ray, progress=progress,
        )  # fmt: skip
    console = _console(160)
    for line in lines(found, console.width):
        console.print(line)
    if output is not None:
        found.to_html(output)
        _say_written(console, "Report", output)
    if json is not None:
        write_whole(json, found.to_json())
        _say_written(console, "JSON", json)
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise PoolValueError(
            f"learning rates must be numbers, got {text!r}", "Give them as 0.02,0.05"
        ) from None


@app.command
def export(
    model: _Model = None,
    *,
    output: Annotated[Path, Parameter(help="The ONNX file to write.")],
    input: _Inputs = None,
    fixed_batch: Annotated[
        bool, Parameter(negative="", help="Let the file take batches of this size only.")
    ] = False,
    tolerance: Annotated[
        float,
        Parameter(
            help="Largest difference between the model's outputs and the file's, as a fraction of "
            "the largest value."
        ),
    ] = 1e-4,
    unchecked: Annotated[
        bool,
        Parameter(
            negative="",
            help="Write the file without running it: for dtypes that the engines here do not have.",
        ),
    ] = False,
) -> int:
    """Write a model as ONNX in standard operators, and check that the file answers as it does."""
    if output.suffix != ".onnx":
        raise PoolValueError(f"a model is written to an .onnx file, got {output}", "Name it so")
    _check_targets(output)
    network, inputs, _ = _subject(model, input)
    from poolkit import export_onnx

    report = export_onnx(
        network, inputs, output, dynamic_batch=not fixed_batch, tolerance=tolerance,
        engines=() if unchecked else None,
    )  # fmt: skip
    console = _console()
    counts = ", ".join(f"{name} {count}" for name, count in report.operators.items())
    console.print(
        f"{len(report.poolings)} poolings of poolkit; opset {report.opset}: {counts}", markup=False
    )
    for check in report.checks:
        line = f"{check.engine}, batch of {check.batch}: differs by at most {check.error:.2g}"
        console.print(line, markup=False)
    _say_written(console, "ONNX", output, "" if report.checks else "not run by any engine")
    return 0


@app.command
def lint(
    model: Annotated[
        str,
        Parameter(help="An ONNX file, or a model as file.py:factory or package.module:factory."),
    ],
    *,
    input: _Inputs = None,
    onnxruntime: Annotated[
        str | None,
        Parameter(
            help="The version of ONNX Runtime that will run the model, as 1.20.1. Default: the "
            "one that is installed."
        ),
    ] = None,
) -> int:
    """Find known traps of pooling in a model or an ONNX file, and say what to do.

    The exit status is 1 if there are any, 0 if there are none, and 2 if the model could not be
    looked at.
    """
    from poolkit.inspection.wording import human_count

    try:
        findings = _traps_in(model, input, onnxruntime)
    except PoolError as error:
        _show(error)
        return _fail(str(error), 2)
    console = _console()
    for finding in findings:
        console.print(str(finding), soft_wrap=True, markup=False)
    console.print(human_count(len(findings), "finding") if findings else "no known traps")
    return 1 if findings else 0


def _traps_in(model: str, paths: list[Path] | None, onnxruntime: str | None) -> list[Finding]:
    from poolkit import lint as find_traps

    versions = {} if onnxruntime is None else {"onnxruntime": onnxruntime}
    if not model.endswith(".onnx"):
        network, inputs, _ = _subject(model, paths)
        return find_traps(network, inputs, versions=versions)
    if paths:
        raise PoolValueError("an ONNX file is looked at without inputs", "Drop --input")
    return find_traps(model, versions=versions)


@app.command
def bench(
    *,
    quick: Annotated[
        bool,
        Parameter(
            negative="",
            help="Fewer cases, 2 seconds each instead of 5, and without "
            "torch.compile unless --peers names it.",
        ),
    ] = False,
    json: Annotated[
        Path | None,
        Parameter(help="Write the figures as JSON to this file: milliseconds per call, ratios."),
    ] = None,
    markdown: Annotated[
        Path | None,
        Parameter(
            help="Write the tables as Markdown to this file: milliseconds per call, ratios; and "
            "the plots (with matplotlib) to the folder images beside it."
        ),
    ] = None,
    threads: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Numbers of threads, as 1,2: a table for each, and how far the work scales. "
            "Default: torch's own number.",
        ),
    ] = None,
    cases: Annotated[
        str | None,
        Parameter(
            help="Names of cases or shell patterns, comma-separated; a word matches inside "
            "a name, as stem. Default: all."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        Parameter(
            help="The same for what is measured: poolkit, eager, compile, onednn, "
            "onnxruntime, openvino, jax, copy. Default: all that are installed."
        ),
    ] = None,
    isa: Annotated[
        str | None,
        Parameter(
            help="An instruction set, as avx2: of poolkit, and of all peers that let it be "
            "chosen. Default: POOLKIT_ISA, or the best one here."
        ),
    ] = None,
    scaling: Annotated[
        bool,
        Parameter(
            negative="",
            help="Instead of the cases, one pooling of a thousand to a thousand million "
            "elements, as far as there is memory; to ten million with --quick.",
        ),
    ] = False,
) -> int:
    """Measure poolkit against its peers and against the copy of the same bytes.

    All targets are printed, met or missed. The exit status is 1 if an answer of poolkit is wrong,
    and 0 whatever the times are.
    """
    _check_targets(json, markdown)
    from poolkit.benchmark import main

    return main(
        quick=quick,
        json=json,
        markdown=markdown,
        threads=_thread_counts(threads),
        cases=cases,
        peers=peers,
        isa=isa,
        scaling=scaling,
    )


@app.command
def gallery(
    *pages: Annotated[
        str, Parameter(help="vision, sequences, recommenders, events. Default: all.")
    ],
    output: Annotated[Path, Parameter(help="The folder of the pictures.")] = Path(),
    photograph: Annotated[
        Path | None, Parameter(help="An image to pool instead of the astronaut.")
    ] = None,
    sentence: Annotated[
        str | None, Parameter(help="A sentence to pool instead of the storm's.")
    ] = None,
    quick: Annotated[
        bool, Parameter(negative="", help="Learn for a moment only; what learns shows little then.")
    ] = False,
) -> int:
    """Draw what every pooling does to one photograph, sentence and history, and windows of time."""
    from poolkit.gallery import PAGES, draw

    for path in draw(pages or PAGES, output, photograph=photograph, sentence=sentence, quick=quick):
        print(f"{path} ({path.stat().st_size // 1000} kB)")
    return 0


@app.command
def window(
    spec: Annotated[Path, Parameter(help="A TOML file: see poolkit.events.read_spec.")],
    *,
    events: Annotated[
        list[str], Parameter(consume_multiple=True, negative="", help="Parquet files, or globs.")
    ],
    queries: Annotated[
        list[str], Parameter(consume_multiple=True, negative="", help="Parquet files, or globs.")
    ],
    output: Annotated[Path, Parameter(help="The Parquet file to write, whole or not at all.")],
    memory: Annotated[float, Parameter(help="Gigabytes that events may take at a time.")] = 1.0,
) -> int:
    """Pool the events before each query: its columns, in their order, and those of the spec."""
    _check_targets(output)
    _check_apart(output, [str(spec), *events, *queries])
    from poolkit.events.configuration import read_spec
    from poolkit.events.local import read_stored
    from poolkit.events.results import check_names
    from poolkit.files import whole

    definition = read_spec(spec)
    if not 0 < memory < 2**20:
        raise PoolValueError(f"memory must be above 0, got {memory}", "Give gigabytes")
    asked = read_stored(queries)
    check_names(asked.column_names, definition.results)
    with _terminated_as_interrupted(), _progress("windows") as progress:
        pooled = definition.asof(events, asked, memory=int(memory * 2**30), progress=progress)
    out = pooled.to_arrow(asked)
    import pyarrow.parquet as pq

    with whole(output) as temporary:
        pq.write_table(out, temporary)
    _console().print(f"{out.num_rows} rows, {len(pooled)} columns: {output}", soft_wrap=True)
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM is a KeyboardInterrupt: temporary files, which may be large, are removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _thread_counts(given: list[str] | None) -> list[int] | None:
    """Numbers with commas or spaces between them."""
    if given is None:
        return None
    words = ",".join(given).split(",")
    try:
        return [int(word) for word in words]
    except ValueError:
        raise PoolValueError(
            f"threads must be numbers, got {' '.join(given)!r}", "Give them as 1,2"
        ) from None


@app.command
def info() -> int:
    """Say which versions are installed and which instruction set is in use."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from poolkit import kernels

    rows: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("poolkit", "numpy", "torch"):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    rows |= kernels.info()
    for key, value in rows.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        print(f"{key:12} {text}")
    return 0


def run(arguments: list[str] | None = None) -> int:
    """Run a command line; every failure becomes one line on stderr and a non-zero status.

    With POOLKIT_TRACEBACK set to anything, an error shows where it comes from.
    """
    try:
        status = app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        return _fail(str(error), 2)
    except PoolError as error:
        _show(error)
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone, as `head` does. What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _show(error)
        if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "rich"):
            return _fail(str(MissingExtraError(error.name, "inspect")), 1)
        return _fail(f"{type(error).__name__}: {error} (POOLKIT_TRACEBACK=1 shows where)", 1)
    return status if isinstance(status, int) else 0


def _show(error: Exception) -> None:
    """With POOLKIT_TRACEBACK set, where it comes from."""
    if os.environ.get("POOLKIT_TRACEBACK"):
        raise error


def _fail(message: str, status: int) -> int:
    print(f"poolkit: {' '.join(message.split())}", file=sys.stderr)
    return status


def _check_targets(*paths: Path | None) -> None:
    """Refuse a file that cannot be written before the work, not after it."""
    from poolkit.files import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)


def _check_apart(output: Path, read: list[str]) -> None:
    """Refuse to write over what is read: a file, what a glob matches, or all in a folder."""
    from glob import glob

    if not output.exists():
        return
    for given in read:
        for path in map(Path, glob(given, recursive=True)):
            if path.resolve() in (output.resolve(), *output.resolve().parents):
                raise PoolValueError(f"{output} is read as {given}", "Name another output")


def _subject(
    where: str | None, paths: list[Path] | None, or_onnx: bool = False
) -> tuple[Any, tuple[Any, ...], str]:
    """The model, its inputs and its name."""
    if where is None:
        if paths:
            raise PoolValueError("--input needs a MODEL", "Name it as file.py:factory")
        from poolkit.examples.detection import example

        network, example_inputs = example()
        return network, example_inputs, "MTCNN face networks"
    if where.endswith(".onnx") and not or_onnx:
        raise PoolValueError(
            f"{where} is an ONNX file, which is inspected and linted only",
            "Give the model that it was written from, as file.py:factory",
        )
    from poolkit.inspection.sources import load_inputs, load_model

    model, inputs = load_model(where)
    if paths:
        inputs = load_inputs(paths)
    if inputs is None:
        raise PoolValueError(
            f"{where} comes without example inputs",
            "Give files with --input, or return (module, example_inputs) from the factory",
        )
    return model, inputs, Path(where.rpartition(":")[2]).name


def _add_lesson(report: Report) -> None:
    from poolkit.examples.detection import marked_photograph
    from poolkit.examples.faces import accuracies
    from poolkit.inspection import AccuracyRecord

    report.accuracy = [
        AccuracyRecord(row.network, row.torch, row.poolkit, row.averaged) for row in accuracies()
    ]
    report.photograph = marked_photograph()


def _console(width: int = 120) -> Console:
    """Standard output; a pipe or a log file has no width of its own, so tables get room."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=width, highlight=False)


def _say_written(console: Console, what: str, path: Path, note: str = "") -> None:
    """In one line, however narrow the terminal, so that the path can be copied."""
    line = f"{what}: {path} ({note})" if note else f"{what}: {path}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress(what: str, logged: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, gone when the work is done.

    Where there is no terminal there is none, or one line for each piece done if `logged`.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[layer]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None, layer="")

        before = -1

        def tell(layer: str, done: int, total: int) -> None:
            nonlocal before
            bar.update(task, completed=done, total=total or None, layer=layer)
            if logged and not console.is_terminal and total and done > before:
                print(f"{done}/{total} {layer}", file=sys.stderr, flush=True)
                before = done

        yield tell
