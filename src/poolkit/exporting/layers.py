"""An example of every pooling that models are made of, to be exported.

The second table of `docs/onnx.md` says of each what `export_onnx` said or raised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import poolkit
import poolkit.nn

from ..errors import PoolError
from ..inspection.trace import tensors_in
from ..vision.registry import POOLS
from .exporter import export_onnx

__all__ = ["LAYERS", "Exported", "Layer", "export_layers"]


@dataclass(frozen=True)
class Layer:
    """One pooling.

    Attributes:
        name: of a module of `poolkit.nn`, of a pooling that ``create_pool2d`` knows, or of a
            function.
        make: the module, its weights not drawn yet.
        inputs: of ``forward``.
        fixed_batch: whether the batch is part of what the file says.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    fixed_batch: bool = False


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


# Batches of one, of which `export_onnx` makes batches of two as well.
MAPS = {1: _drawn(1, 4, 13), 2: _drawn(1, 4, 12, 13), 3: _drawn(1, 4, 6, 7, 8)}
TOKENS, TARGET = _drawn(1, 9, 8), _drawn(1, 8)
MASK = torch.tensor([[True] * 5 + [False] * 2 + [True] * 2])
FIELDS = torch.tensor([[0, 3, 6]])
BOXES = torch.tensor([[0, 1.2, 2.1, 6.7, 7.9], [0, -3.5, 4.0, 5.0, 12.5], [0, 6.0, 6.0, 2.0, 3.0]])


def _registered() -> Iterator[Layer]:
    for name, entry in POOLS.items():
        options = {"kernel_size": 2, **dict(entry.options)}
        make = partial(poolkit.nn.create_pool2d, name, channels=4, **options)
        yield Layer(f'create_pool2d("{name}")', make, (MAPS[2],))


def _of_ranks() -> Iterator[Layer]:
    """torch's names in one dimension and in three; those in two are registered."""
    windows: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("MaxPool", "MinPool", "SumPool", "ReLUMaxPool"), (3, 2, 1)),
        **dict.fromkeys(("AvgPool", "SigmoidAvgPool"), (3, 2, 1, True)),
        "LPPool": (3, 3, 2, True),
        **dict.fromkeys(("GlobalMaxPool", "GlobalAvgPool"), ()),
        **dict.fromkeys(("AdaptiveMaxPool", "AdaptiveAvgPool"), (4,)),
    }
    for name, given in windows.items():
        for ndim in (1, 3):
            module = getattr(poolkit.nn, f"{name}{ndim}d")
            yield Layer(f"{name}{ndim}d", partial(module, *given), (MAPS[ndim],))
    for ndim in MAPS:
        module = getattr(poolkit.nn, f"MaxUnpool{ndim}d")
        pooled = poolkit.pool_with_indices(_drawn(1, 2, *(8,) * ndim), "Sliding(2)", ndim=ndim)
        yield Layer(f"MaxUnpool{ndim}d", partial(module, 2), pooled)


def _modules() -> Iterator[Layer]:
    def layer(make: Callable[[], nn.Module], *inputs: Tensor) -> Layer:
        return Layer(type(make()).__name__, make, inputs)

    made = poolkit.nn
    yield layer(lambda: made.Pool("Adaptive(5)", "Soft()", 2), MAPS[2])
    yield layer(lambda: made.BlurPool1d(4), MAPS[1])
    yield layer(lambda: made.FractionalMaxPool3d(2, output_ratio=0.5), MAPS[3].clone())
    yield layer(lambda: made.ImportanceLogit(4), MAPS[2])
    yield layer(lambda: made.RoIPool(3), MAPS[2], BOXES.clone())
    yield layer(lambda: made.RoIAlign(3), MAPS[2], BOXES)
    yield layer(lambda: made.PrRoIPool(3), MAPS[2], BOXES)
    modes = ("mean", "max", "cls", "std", "median", "soft", "attentive_stats")
    yield layer(lambda: made.SequencePool(modes, channels=8), TOKENS, MASK)
    yield layer(lambda: made.PMA(8, 2), TOKENS, MASK)
    yield layer(lambda: made.KMaxPool1d(3), MAPS[1])
    yield layer(lambda: made.TokenPool(2, class_tokens=1), TOKENS, MASK)
    yield layer(lambda: made.TokenMerge(2), TOKENS)
    yield layer(lambda: made.PooledAttention(8, 2), TOKENS)
    yield layer(lambda: made.BlockMeanKV(3), *(_drawn(1, 2, 9, 8),) * 3)
    yield layer(lambda: made.EmbeddingBag(9, 4), FIELDS)
    yield layer(lambda: made.TargetAttention(8), TOKENS, TARGET, MASK)
    yield layer(lambda: made.Dice(8), TARGET)
    yield layer(lambda: made.BiInteractionPool(), TOKENS)
    yield layer(lambda: made.FM((3, 4, 5), 4), torch.tensor([[0, 3, 4]]))


def _functions() -> Iterator[Layer]:
    """What no module is made of."""

    def layer(
        name: str, function: Callable[..., Any], *inputs: Tensor, fixed: bool = False
    ) -> Layer:
        return Layer(name, lambda: Function(function), inputs, fixed)

    kit: Any = poolkit
    rows, weights = TOKENS.flatten(0, 1), TOKENS[..., 0].exp()
    for name in ("bottom_hat2d", "top_hat2d", "morphological_gradient2d"):
        yield layer(name, getattr(kit, name), MAPS[2])
    yield layer("fm_interaction", kit.fm_interaction, TOKENS)
    yield layer("decayed_mean", lambda x, ages: kit.decayed_mean(x, ages, 2.0), TOKENS, weights)
    yield layer("token_merge, token_unmerge", _merged_and_back, TOKENS)
    yield layer("token_unpool", lambda x: kit.token_unpool(x, 18, 2), TOKENS)
    yield layer("wavelet_pool2d, haar_unpool2d", _waves_and_back, MAPS[2][..., :12])
    yield layer("Pyramid", lambda x: kit.pool(x, kit.Pyramid((4, 2, 1)), "mean", ndim=2), MAPS[2])
    segments = kit.Segments(offsets=[0, 4, 4, 9])
    yield layer("Segments, as constants", lambda x: kit.pool(x, segments, "std"), rows, fixed=True)
    yield layer("Segments, from inputs", lambda x, m: kit.pool(x, kit.Segments(mask=m), "mean"),
                TOKENS.clone(), MASK)  # fmt: skip
    days = np.arange(9).astype("datetime64[D]")
    week = kit.TimeWindow("3d", times=days, at=days)
    yield layer("TimeWindow", lambda x: kit.pool(x, week, "mean"), rows.clone(), fixed=True)
    yield layer("quantized.avg_pool2d", _pooled_in_8_bits, MAPS[2])
    yield layer("quantized.max_pool2d", _largest_in_8_bits, MAPS[2])


def _merged_and_back(x: Tensor) -> Tensor:
    merged = poolkit.token_merge(x, 2)
    return poolkit.token_unmerge(merged.tokens, merged.source)


def _waves_and_back(x: Tensor) -> Tensor:
    return poolkit.haar_unpool2d(*poolkit.wavelet_pool2d(x, return_details=True))


QPARAMS = poolkit.quantized.QParams.from_range(-4, 4, "uint8")


def _pooled_in_8_bits(x: Tensor) -> Any:
    q = poolkit.quantized.quantize(x, QPARAMS, "uint8")
    pooled = poolkit.quantized.avg_pool2d(q, 3, 2, 1, qparams=QPARAMS)
    return poolkit.quantized.dequantize(pooled, QPARAMS)


def _largest_in_8_bits(x: Tensor) -> Any:
    return poolkit.quantized.max_pool2d(poolkit.quantized.quantize(x, QPARAMS, "uint8"), 3, 2, 1)


LAYERS: tuple[Layer, ...] = (*_registered(), *_of_ranks(), *_modules(), *_functions())


class Beside(nn.Module):
    """Layers that take the same inputs."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(layer.make().eval() for layer in layers)
        with torch.no_grad():  # what begins with zeros would hide what it does
            for weight in self.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)

    def forward(self, *inputs: Tensor) -> Any:
        return [layer(*inputs) for layer in self.layers]


@dataclass(frozen=True)
class Exported:
    """What became of a layer in a file.

    Attributes:
        operators: ONNX's pooling operators in it.
        errors: by engine the largest difference, of a batch of one and of two.
    """

    operators: tuple[str, ...]
    errors: dict[str, float]


def export_layers(layers: Sequence[Layer] = LAYERS) -> dict[str, Exported | PoolError]:
    """By name what `export_onnx` wrote of each layer, or why it refused.

    Layers that take the same inputs are written to one file, which takes less time.

    Raises:
        AssertionError: a file was left behind by a refusal.
    """
    alike: dict[Any, list[Layer]] = {}
    for layer in layers:
        alike.setdefault((*map(id, layer.inputs), layer.fixed_batch), []).append(layer)
    found: dict[str, Exported | PoolError] = {}
    for group in alike.values():
        found.update(_exported(group))
    return {layer.name: found[layer.name] for layer in layers}


def _exported(layers: Sequence[Layer]) -> dict[str, Exported | PoolError]:
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "layers.onnx", Beside(layers)
        try:
            report = export_onnx(
                model, layers[0].inputs, path, dynamic_batch=not layers[0].fixed_batch
            )
        except PoolError as error:
            if list(Path(folder).iterdir()):
                raise AssertionError("a model was refused, and a file left") from error
            if len(layers) == 1:
                return {layers[0].name: error}
            half = len(layers) // 2
            return _exported(layers[:half]) | _exported(layers[half:])
        graph = onnx.load(path).graph
    sizes = [len(list(tensors_in(outputs))) for outputs in model(*layers[0].inputs)]
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    found: dict[str, Exported | PoolError] = {}
    for layer, end, size in zip(layers, ends, sizes, strict=True):
        mine = slice(end - size, end)
        errors = {check.engine: 0.0 for check in report.checks}
        for check in report.checks:
            errors[check.engine] = max(errors[check.engine], *check.errors[mine])
        found[layer.name] = Exported(_poolings_of(graph, report.outputs[mine]), errors)
    return found


def _poolings_of(graph: Any, outputs: Sequence[str]) -> tuple[str, ...]:
    """ONNX's pooling operators on the way to some outputs."""
    wanted, found = set(outputs), set()
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            if "Pool" in node.op_type or "Roi" in node.op_type:
                found.add(node.op_type)
    return tuple(sorted(found))
