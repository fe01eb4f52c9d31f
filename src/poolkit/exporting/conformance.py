"""The page of what ONNX's pooling operators do where, and of what poolkit's poolings become:
``python -m poolkit.exporting.conformance``.

Every cell is what one run of one case gave, beside what the oracle says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from ..errors import PoolError
from .checking import ENGINES
from .layers import Exported, export_layers
from .operator_cases import CASES, Case
from .operator_runs import IN_NEWEST, NEWEST, RUNS, Run, expected
from .operators import OPSET

__all__ = ["cells", "markdown_page", "operators_page"]

EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def cells(case: Case, runs: Mapping[str, Run] = RUNS) -> dict[str, str]:
    """By who ran it what is different from what the standard says, in few words."""
    x = case.input()
    if case.dtype == "bfloat16":
        x = torch.from_numpy(x).bfloat16().float().numpy()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        wanted = expected(case, x)
        return {name: _compared(case, x, wanted, run) for name, run in runs.items()}


def _compared(case: Case, x: np.ndarray, wanted: np.ndarray, run: Run) -> str:
    try:
        found = np.asarray(run(case, x))
    except Exception:
        return "unsupported"
    if found.shape != wanted.shape:
        of_windows = slice(1, -1) if case.channels_last else slice(2, None)
        return f"shape {found.shape[of_windows]}, not {wanted.shape[of_windows]}"
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if (np.isnan(a) != np.isnan(b)).any():
        return f"{np.isnan(a).sum()} NaN, not {np.isnan(b).sum()}"
    if (np.isinf(a) != np.isinf(b)).any():
        return "finite, not infinite"
    finite = np.isfinite(a)
    apart = np.abs(a[finite] - b[finite]).max(initial=0.0)
    if case.output:
        return "equal" if not apart else f"{(a != b).sum()} of {a.size} others"
    step = 8 * EPSILONS.get(case.dtype, 0) * np.abs(b[finite]).max(initial=1.0)
    if case.operator.startswith("QLinear"):
        step = 1
    return "equal" if apart <= step else f"differs by {apart:.2g}"


INTRODUCTION = """\
# ONNX's pooling operators, where they are run

What `python -m poolkit.exporting.conformance > docs/onnx.md` prints: each operator with the
attribute named, run by poolkit, by torch {torch}, by ONNX Runtime {onnxruntime} and by the
reference evaluator of onnx {onnx}, beside what the standard says: for windows
`poolkit.reference`, which loops, for boxes poolkit in float64. *Equal* is up to rounding (of 8-bit
means up to one step); *unsupported* is refused or raises, or has no counterpart. Kernels have 3
positions along an axis and strides 2, where no other is named. Indices count in the whole input in
ONNX and in a plane in poolkit and torch, and are moved before they are compared.

`poolkit.export_onnx` stays with what ONNX Runtime does as poolkit does: it writes padding for
`ceil_mode` and `auto_pad`, `Pad` for padding as large as the kernel, and whole-array operations for
what no operator says. The evaluator that checks its files has a `MaxPool` and a `GlobalMaxPool`
that are mended. What becomes of a NaN is up to the runtime.

Operators are those of opset {opset}, which the exporter writes; bfloat16 is of opset {newest}.
{in_newest}

"""


LAYERS_INTRODUCTION = """
## poolkit's poolings as ONNX files

Each of poolkit's poolings was exported by `poolkit.export_onnx` with any number of examples, and
the file run by both engines on one example and on two: the largest difference from the module,
where 0 is the same values. Beside it stand ONNX's own pooling operators that are in the file; where
there is none the pooling is written out in other standard operators. What is refused leaves no
file.

"""


def markdown_page(layers: Mapping[str, Exported | PoolError] | None = None) -> str:
    """What `docs/onnx.md` holds; `layers` is what `export_layers` found."""
    table = markdown_table(LAYERS_HEAD, layer_rows(export_layers() if layers is None else layers))
    return operators_page() + LAYERS_INTRODUCTION + table


def operators_page() -> str:
    """The first part, which takes seconds."""
    names = {package: version(package) for package in ("onnxruntime", "onnx")}
    rows, elsewhere = [], dict[str, dict[str, None]]()
    for case in CASES:
        found = cells(case)
        rows.append((f"`{case.operator}`", case.note, *found.values()))
        for there in cells(case, IN_NEWEST).values():
            if there != found["ONNX Runtime"]:
                elsewhere.setdefault(there, {})[case.operator] = None
    introduction = INTRODUCTION.format(
        **names,
        torch=torch.__version__.partition("+")[0],
        opset=OPSET,
        newest=NEWEST,
        in_newest=_in_newest(elsewhere),
    )
    return introduction + markdown_table(("operator", "attribute", *RUNS), rows)


LAYERS_HEAD = ("pooling", "ONNX's", "ONNX Runtime", "reference")


def layer_rows(layers: Mapping[str, Exported | PoolError]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in layers.items():
        if isinstance(found, PoolError):
            why = str(found).partition(". ")[0].partition(", while")[0]
            rows.append((f"`{name}`", "refused", why, ""))
            continue
        operators = ", ".join(f"`{each}`" for each in found.operators) or "–"
        errors = (_below(found.errors.get(engine)) for engine in ENGINES)
        rows.append((f"`{name}`", operators, *errors))
    return rows


def _below(error: float | None) -> str:
    """The next power of ten, as the digits are those of one machine."""
    if error is None:
        return "lacks an operator"
    return "0" if not error else f"below 1e{math.floor(math.log10(error)) + 1}"


def _in_newest(elsewhere: Mapping[str, Mapping[str, None]]) -> str:
    """What ONNX Runtime says there, of which operators."""
    found = "; ".join(
        f"{', '.join(f'`{name}`' for name in operators)}: {there}"
        for there, operators in elsewhere.items()
    )
    if not found:
        return f"In opset {NEWEST} ONNX Runtime does the same."
    return (
        f"In opset {NEWEST} ONNX Runtime says something else\n"
        f"of {found}; all its other cells are the same."
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(markdown_page(), end="")
