"""What poolkit brings to whole models, and how much of each model is pooling at all.

Each model is timed as torch has it and as both tiers of `poolkit.optimize` leave it, eager and
compiled by torch.compile, channels first and last, for each batch size: interleaved, in random
order, with gradients off. A ratio is taken within a round, and its median and the middle half of
its values are shown. All of the model's poolings alone, in torch, on the inputs that they get in
it, take part in the rounds too: their share of the model's time is what pooling could bring at
most, by Amdahl's law, if it cost nothing.

Every measurement takes about `--seconds`, but three rounds at least; `--json` keeps what is
measured, and a run with the same file goes on where it stopped.

    python benchmarks/models.py --json models.json --output docs/models.md
    python benchmarks/models.py --models vgg16,yolo --batches 1 --no-compile
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import poolkit
from poolkit.benchmark.document import Section, as_markdown, in_words
from poolkit.benchmark.machine import describe_machine
from poolkit.benchmark.tables import three_digits
from poolkit.errors import PoolError
from poolkit.examples import faces, networks, ocr
from poolkit.files import check_writable, write_whole
from poolkit.inspection.memory import saved_for_backward
from poolkit.inspection.trace import TracedPooling, tensors_in, trace
from poolkit.optimization import OptimizeReport
from poolkit.optimization.equality import compare_outputs
from poolkit.optimization.records import TIERS, Tier
from poolkit.timing import Quartiles, Schedule, interleave, paired_ratios

LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
RUNS = ("eager", "compiled")
FEWEST_ROUNDS = 3
DISTURBED = 0.2  # of a ratio: where the middle half of the rounds spans more, it says little


def face_network(name: str, *size: int) -> Callable[[], networks.Example]:
    random = torch.Generator().manual_seed(0)
    return lambda: (faces.load(name), (torch.rand(1, 3, *size, generator=random) * 2 - 1,))


MODELS: dict[str, tuple[str, Callable[[], networks.Example]]] = {
    "pnet": ("P-Net (MTCNN)", face_network("P-Net", 240, 320)),
    "rnet": ("R-Net (MTCNN)", face_network("R-Net", 24, 24)),
    "onet": ("O-Net (MTCNN)", face_network("O-Net", 48, 48)),
    "vgg16": ("VGG-16", networks.vgg16),
    "resnet50": ("ResNet-50", networks.resnet50),
    "squeezenet": ("SqueezeNet 1.1", networks.squeezenet),
    "googlenet": ("GoogLeNet", networks.googlenet),
    "yolo": ("YOLOv5s backbone with SPPF", networks.yolo),
    "unet": ("U-Net with unpooling", networks.unet),
    "ocr-detector": ("PP-OCRv4 detector", ocr.detector),
    "ocr-recogniser": ("PP-OCRv4 recogniser", ocr.recogniser),
    "ocr-orientation": ("PP-OCRv2 orientation", ocr.orientation),
}


@dataclass
class Optimised:
    """What one tier makes of a model. ``ratio`` is torch's time over its time, as quartiles over
    the rounds; ``error`` the largest difference of the outputs, relative to the largest output;
    ``layers`` what was done, once for all ways to run it."""

    ms: float
    ratio: list[float]
    error: float
    layers: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Case:
    """One model, one way to run it, one layout and one batch size.

    Times are milliseconds, medians; ``share`` is the time of the poolings alone over the model's,
    as quartiles over the rounds. ``saved`` is the bytes that the poolings keep for their backward,
    in torch and in poolkit; ``tiers`` has an `Optimised` each.
    """

    model: str
    run: str
    layout: str
    batch: int
    shape: list[int]
    rounds: int
    torch_ms: float
    poolings_ms: float
    share: list[float]
    saved: list[int]
    tiers: dict[str, Optimised]

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.model, self.run, self.layout, self.batch

    @property
    def bound(self) -> float:
        """How many times as fast the model would be if its poolings took no time."""
        return 1 / (1 - min(self.share[1], 0.999))


def prepared(name: str, layout: str, batch: int) -> tuple[nn.Module, Tensor]:
    """The model and a batch of real or random images."""
    model, (x,) = MODELS[name][1]()
    format = LAYOUTS[layout]
    return (
        model.to(memory_format=format),
        x.expand(batch, -1, -1, -1).contiguous(memory_format=format),
    )


def twin(model: nn.Module) -> nn.Module:
    """A model of its own on the same weights, so that both have them at the same place."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def optimised(
    model: nn.Module, x: Tensor, tier: Tier, seconds: float
) -> tuple[nn.Module, OptimizeReport]:
    """What a tier makes of a model, which stays as it was."""
    if tier == "module":
        ours = twin(model)
        return ours, poolkit.optimize(ours, x, seconds=seconds)
    report = poolkit.optimize(model, x, tier=tier, seconds=seconds, dynamic_batch=False)
    return report.module(), report


def saved(found: list[TracedPooling]) -> list[int]:
    """Bytes that the poolings keep for backward, in torch and in poolkit."""

    def total(ours: bool) -> int:
        sizes = []
        for traced in found:
            pooling = traced.pooling

            def call(x: Tensor, pooling: Any = pooling) -> Any:
                return (pooling.in_poolkit(x) if ours else pooling.in_torch(x))()

            sizes.append(saved_for_backward(call, traced.input) or 0)
        return sum(sizes)

    return [total(False), total(True)]


def measure(
    name: str, layout: str, batch: int, runs: list[str], options: argparse.Namespace
) -> Iterator[Case]:
    """Optimise a model once, then time it each way."""
    model, x = prepared(name, layout, batch)
    made = {tier: optimised(model, x, tier, options.layer_seconds) for tier in TIERS}
    found, _ = trace(model, (x,))
    calls = [traced.pooling.in_torch(traced.input) for traced in found]
    bytes_saved = saved(found)

    def poolings() -> list[Any]:
        return [call() for call in calls]

    for run in runs:
        torch._dynamo.reset()
        contenders = [poolings, model, *(ours for ours, _ in made.values())]
        if run == "compiled":
            contenders = [torch.compile(call, dynamic=False) for call in contenders]
        alone, *models = contenders
        expected, *answers = [call(x) for call in models]
        scale = max(float(out.abs().max()) for out in tensors_in(expected))
        schedule = Schedule(options.seconds, FEWEST_ROUNDS, options.rounds, sample_s=1e-3)
        samples = interleave([alone, *(partial(call, x) for call in models)], schedule)
        within, theirs, *ours = [found.seconds for found in samples]
        tiers = {
            tier: Optimised(
                1e3 * median(seconds),
                spread(theirs, seconds),
                compare_outputs(expected, answer, tolerance=1).error / scale,
                [asdict(layer) for layer in report.layers] if run == runs[0] else [],
            )
            for (tier, (_, report)), seconds, answer in zip(
                made.items(), ours, answers, strict=True
            )
        }
        yield Case(
            name, run, layout, batch, list(x.shape), len(theirs), 1e3 * median(theirs),
            1e3 * median(within), spread(within, theirs), bytes_saved, tiers,
        )  # fmt: skip


def spread(above: list[float], below: list[float]) -> list[float]:
    """The quartiles of paired ratios."""
    found = Quartiles.of(paired_ratios(above, below))
    return [found.low, found.median, found.high]


# --- parts of a run ------------------------------------------------------------------------------


def facts_now(threads: int) -> dict[str, Any]:
    machine = describe_machine({})
    known = ("cpu", "usable_cores", "poolkit_isa")
    return {key: machine[key] for key in known} | {"threads": threads, "torch": torch.__version__}


class Record:
    """The cases of a file, measured before and now; written anew after each.

    ``loads`` are the load averages when its runs began.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.cases: dict[tuple[Any, ...], Case] = {}
        self.loads: list[float] = []
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            if known["facts"] != facts:
                sys.exit(f"{path} was measured on {known['facts']}, not {facts}: name another file")
            self.loads = known["loads"]
            for entry in known["cases"]:
                tiers = {tier: Optimised(**made) for tier, made in entry.pop("tiers").items()}
                self.add(Case(**entry, tiers=tiers))

    def add(self, case: Case) -> None:
        self.cases[case.key] = case

    def write(self) -> None:
        if self.path is not None:
            data = {"facts": self.facts, "loads": self.loads}
            data |= {"cases": [asdict(case) for case in self.ordered()]}
            write_whole(self.path, json.dumps(data, indent=1) + "\n")

    def ordered(self) -> list[Case]:
        order = [list(MODELS), RUNS, list(LAYOUTS)]

        def place(case: Case) -> tuple[int, ...]:
            names = case.model, case.run, case.layout
            return *(line.index(n) for line, n in zip(order, names, strict=True)), case.batch

        return sorted(self.cases.values(), key=place)


# --- the document --------------------------------------------------------------------------------

COLUMNS = [
    "", "layout", "batch", "torch, ms", "pooling", "at most",
    *(title for tier in TIERS for title in (f"{tier} tier, ms", "times as fast")),
    "saved for backward, MB", "largest difference",
]  # fmt: skip


def row(case: Case) -> list[str]:
    return [
        case.run,
        case.layout,
        str(case.batch),
        three_digits(case.torch_ms),
        f"{case.share[1]:.1%}",
        f"{case.bound:.2f}",
        *(cell for tier in TIERS for cell in cells(case.tiers[tier])),
        " → ".join(three_digits(size / 1e6) if size else "0" for size in case.saved),
        f"{max(made.error for made in case.tiers.values()):.1g}",
    ]


def cells(made: Optimised) -> list[str]:
    low, middle, high = made.ratio
    disturbed = high - low > DISTURBED * middle
    faster = f"{middle:.2f}, disturbed" if disturbed else f"**{middle:.2f}**"
    return [three_digits(made.ms), f"{faster} ({low:.2f} to {high:.2f})"]


def layer_rows(case: Case) -> Iterator[list[str]]:
    for tier, made in case.tiers.items():
        for layer in made.layers:
            yield [
                f"{case.layout}, {case.batch}",
                tier,
                f"`{layer['name']}`",
                layer["before"],
                layer["after"],
                "–" if layer["error"] is None else f"{layer['error']:.1g}",
                *(
                    "–" if layer[key] is None else three_digits(layer[key])
                    for key in ("before_ms", "after_ms")
                ),
                f"{layer['status']}: {layer['reason']}",
            ]


LAYER_COLUMNS = [
    "layout, batch", "tier", "layer", "before", "after", "largest error", "ms before", "ms after",
    "why",
]  # fmt: skip


def sections(cases: list[Case]) -> Iterator[Section]:
    for name, (title, _) in MODELS.items():
        mine = [case for case in cases if case.model == name]
        if not mine:
            continue
        poolings = max(len(case.tiers["module"].layers) for case in mine)
        shape = " x ".join(["N", *map(str, mine[0].shape[1:])])
        yield Section(
            f"{title}, {shape}",
            COLUMNS,
            [row(case) for case in mine],
            lines=[f"Layers that pool: {poolings}."] if poolings else [],
        )


def accuracy_section(names: set[str]) -> Section | None:
    """Of those of the models whose weights are trained; None if there are none."""
    found: list[faces.Accuracy | ocr.Accuracy] = []
    if names & {"pnet", "rnet", "onet"}:
        found += faces.accuracies()
    if any(name.startswith("ocr") for name in names):
        found += ocr.accuracies()
    if not found:
        return None
    rows = [[row.network, f"{row.torch:.1%}", f"{row.poolkit:.1%}"] for row in found]
    return Section(
        "Accuracy with trained weights",
        ["network", "torch", "poolkit"],
        rows,
        lines=[
            "P-Net, R-Net, O-Net: of 200 labelled crops, faces or not. Detector, recogniser, "
            "orientation: of lines of text that are drawn, found, read without a mistake, or told "
            "from upside down. With poolkit's poolings in all places.",
        ],
    )


HOW_TO_READ = [
    "**times as fast** is torch's time over poolkit's in the same round: the median, and the "
    "middle half of the rounds; disturbed, and to be measured again, where that spans more than "
    f"{DISTURBED:.0%}. All have the same weights. The module tier swaps modules, the graph tier "
    "is an exported program; compiled, each is compiled.",
    "**pooling** is the time of all poolings of the model, alone, in torch, over that of the "
    "model; compiled, both are. **at most** is what follows from it by Amdahl's law: how many "
    "times as fast the model would be if pooling were free. More than that is noise, or what "
    "stands beside a pooling and was joined to it.",
    "**saved for backward** is what the poolings keep, in torch and with poolkit's in all places: "
    "an input that the layer in front keeps as well is counted, so not all of it may come free.",
    "**largest difference** is that of either tier, relative to the largest output. Compiled "
    "models are compared with each other; a compiler that fuses differently rounds differently.",
    "poolkit was chosen for a layer where it was equal and faster in eager mode, by "
    "`poolkit.optimize`, for each layout and batch size anew; the compiled model is compiled from "
    "what came out. The changes, layer by layer, are at the end.",
]


def document(record: Record, accuracy: Section | None) -> str:
    """The page, with the command that makes it."""
    cases, facts = record.ordered(), record.facts
    parts = [
        "# Whole models\n\n"
        "What `poolkit.optimize` brings to networks that are used, and how much of them is pooling "
        f"at all. Written by\n\n```console\n$ python benchmarks/models.py --threads "
        f"{facts['threads']} --json models.json --output docs/models.md\n```\n\n"
        f"on {in_words(facts['threads'])} of {facts['usable_cores']} cores of an {facts['cpu']} "
        f"({facts['poolkit_isa']}), torch {facts['torch']}, float32. The load average was "
        f"{', '.join(f'{load:.1f}' for load in record.loads)} when it began, once for each part.",
        "\n".join(f"- {line}" for line in HOW_TO_READ),
        *([as_markdown(accuracy)] if accuracy else []),
        *map(as_markdown, sections(cases)),
        "## Changes, layer by layer",
    ]
    for name, (title, _) in MODELS.items():
        rows = [line for case in cases if case.model == name for line in layer_rows(case)]
        if rows:
            parts.append("#" + as_markdown(Section(title, LAYER_COLUMNS, rows)))
    return "\n\n".join(parts) + "\n"


def chosen(words: str, known: list[str], what: str) -> list[str]:
    names = [word for word in words.split(",") if word]
    for name in names:
        if name not in known:
            sys.exit(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return names or known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--layouts", default="", help="NCHW, channels last; default: both")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=20, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=101, help="at most, for each measurement")
    parser.add_argument("--layer-seconds", type=float, default=0.2, help="as optimize has it")
    parser.add_argument("--json", type=Path, help="keeps what is measured; read first")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown to this file")
    options = parser.parse_args()
    for path in (options.json, options.output):
        if path is not None:
            check_writable(path)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", module="torch")
    record = Record(options.json, facts_now(options.threads))
    runs = RUNS[:1] if options.no_compile else RUNS
    asked = product(
        chosen(options.models, list(MODELS), "model"),
        chosen(options.layouts, list(LAYOUTS), "layout"),
        map(int, options.batches.split(",")),
    )
    began = False
    for name, layout, batch in asked:
        missing = [run for run in runs if (name, run, layout, batch) not in record.cases]
        if not missing:
            continue
        if not began:
            record.loads.append(os.getloadavg()[0])
            began = True
        try:
            for case in measure(name, layout, batch, missing, options):
                record.add(case)
                record.write()
                print(f"{name:16} {' | '.join(row(case))}", file=sys.stderr, flush=True)
        except PoolError as error:  # weights that are not installed
            print(f"{name} is left out: {error}", file=sys.stderr)
    page = document(record, accuracy_section({case.model for case in record.ordered()}))
    if options.output is not None:
        write_whole(options.output, page)
    else:
        print(page)


if __name__ == "__main__":
    main()
