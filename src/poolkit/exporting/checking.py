"""Whether a file answers as the model did: ONNX Runtime and ONNX's own evaluator run it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import MissingExtraError, PoolTypeError, PoolValueError
from ..optimization.equality import compare_outputs

__all__ = ["ENGINES", "Check", "check_engines", "run_checks"]

Run = Callable[[dict[str, np.ndarray]], list[Any]]


@dataclass(frozen=True)
class Check:
    """One run of an exported model.

    Attributes:
        engine: "onnxruntime" or "reference".
        batch: the number of examples.
        errors: of each output the largest difference from the model's own.
    """

    engine: str
    batch: int
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The largest of all."""
        return max(self.errors, default=0.0)


def _onnxruntime(data: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _reference(data: bytes) -> Run:
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops import op_max_pool

    class MaxPool(op_max_pool.MaxPool):
        """With its loops for strides and dilations always: those for neither take padding for
        (top, bottom, left, right), and fail in one dimension and in three (onnx 1.23)."""

        def _run(self, x: Any, **attributes: Any) -> Any:  # type: ignore[override]
            return self._max_pool(x, **attributes)

    class GlobalMaxPool(OpRun):
        """Over the spatial axes: the evaluator's own takes others, where there are not two."""

        def _run(self, x: Any) -> Any:
            return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    evaluator = ReferenceEvaluator(onnx.load_from_string(data), new_ops=[MaxPool, GlobalMaxPool])

    def run(feeds: dict[str, np.ndarray]) -> list[Any]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return list(evaluator.run(None, feeds))

    return run


ENGINES: dict[str, tuple[str, Callable[[bytes], Run]]] = {
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "reference": ("onnx", _reference),
}
"""By name the package that is needed, and what makes a function of the inputs from a file."""


def check_engines(engines: Sequence[str] | None) -> list[str]:
    """The engines to run; without a choice those that are installed.

    Raises:
        PoolValueError: for an engine that is not known.
        MissingExtraError: for one whose package is not installed.
    """
    if engines is None:
        return [name for name, (package, _) in ENGINES.items() if importlib.util.find_spec(package)]
    if isinstance(engines, str):
        engines = [engines]
    for name in engines:
        if name not in ENGINES:
            raise PoolValueError(f"there is no engine {name!r}", f"One of: {', '.join(ENGINES)}")
        if importlib.util.find_spec(ENGINES[name][0]) is None:
            raise MissingExtraError(ENGINES[name][0], "onnx")
    return list(engines)


def run_checks(
    data: bytes,
    names: Sequence[str],
    examples: Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]],
    engines: Sequence[str],
    tolerance: float,
    step: float = 0.0,
    *,
    any_engine: bool = False,
) -> tuple[Check, ...]:
    """Run a model on every example, which is its inputs and the outputs that are expected.

    They may differ by `tolerance`, relative to the largest value, and by one quantization step: 1
    of integers of 8 bits, `step` of real numbers. Where one engine is enough (`any_engine`), those
    that have not all operators are passed over.

    Raises:
        PoolValueError: an engine cannot run the model, or answers differently.
    """
    checks = []
    for engine in engines:
        try:
            run = ENGINES[engine][1](data)
        except NotImplementedError as error:
            if any_engine and engine != engines[0]:
                continue
            raise PoolValueError(f"{engine} lacks an operator: {_short(error)}") from error
        except Exception as error:
            raise PoolValueError(
                f"{engine} cannot load the model: {_short(error)}",
                "Convert the model to float32 if that is about a dtype, or write it unchecked: "
                "engines=() or --unchecked",
            ) from error
        for inputs, expected in examples:
            feeds = {name: _array(x) for name, x in zip(names, inputs, strict=True)}
            try:
                found = run(feeds)
            except Exception as error:
                raise PoolValueError(f"{engine} cannot run the model: {_short(error)}") from error
            errors = []
            for place, (wanted, value) in enumerate(zip(expected, found, strict=True)):
                noise = step if wanted.is_floating_point() else float(step > 0)
                actual = torch.from_numpy(np.array(value))
                difference = compare_outputs(wanted, actual, tolerance, noise)
                if difference.problem:
                    raise PoolValueError(
                        f"output {place} in {engine}: values {difference.problem}",
                        "Give a larger tolerance if that is rounding, or export parts of the model "
                        "to see which one it is",
                    )
                errors.append(difference.error)
            batch = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
            checks.append(Check(engine, batch, tuple(errors)))
    return tuple(checks)


def _array(x: torch.Tensor) -> np.ndarray:
    if x.dtype is torch.bfloat16:
        raise PoolTypeError(
            "NumPy, from which engines take their inputs, has no bfloat16",
            "Convert to it within the model, or give engines=() to check nothing",
        )
    array: np.ndarray = x.detach().cpu().numpy()
    return array


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
