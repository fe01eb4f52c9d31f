"""What do 8 and 4 bits cost a network with poolings, and what does training with them save?

The face networks R-Net and O-Net are quantized after training: calibrated on windows of
photographs that their cascade proposes, tested on 200 labelled crops. A small network with a
maximum, an average and a global average is trained on digits (MNIST) and on clothes
(Fashion-MNIST), then trained a little longer from the same weights and in the same order: in float,
and with values rounded to 8 and to 4 bits (quantization-aware training). What was trained in float
is also quantized afterwards, to as many bits. Its batch normalizations go into the convolutions in
between. All poolings run on integers.

    python -m poolkit.examples.int8

Source: Benoit Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", 2018.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_eval

import poolkit.nn
from poolkit.comparison.data import Data, Split, load_data
from poolkit.comparison.statistics import paired_difference
from poolkit.errors import PoolValueError
from poolkit.examples import detection, faces
from poolkit.quantized import pt2e
from poolkit.timing import Quartiles, interleave, paired_ratios, within

__all__ = [
    "Row",
    "SmallNetwork",
    "after_training",
    "bytes_of",
    "converted",
    "folded",
    "main",
    "measure_times",
    "trained",
    "while_training",
]

_Model = TypeVar("_Model", bound=nn.Module)

BITS = (8, 4)
EPOCHS, BATCH, RATE = 8, 64, 5e-3
CALIBRATION = 256  # images
WINDOWS = 96  # of photographs, of which each seed calibrates the face networks on a half
TIMED, SECONDS = 32, 60.0  # items in a batch, and how long one network is measured


class SmallNetwork(nn.Module):
    """Images (batch, 1, 32, 32) to the logits of ten classes (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(1, 12), poolkit.nn.MaxPool2d(2),
            _block(12, 24), poolkit.nn.AvgPool2d(2),
            _block(24, 48),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return logits


def _block(read: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(read, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())


def folded(model: SmallNetwork) -> SmallNetwork:
    """A copy, in eval mode, whose batch normalizations have gone into the convolutions."""
    model = copy.deepcopy(model).eval()
    for block in model.features:
        if isinstance(block, nn.Sequential):
            conv, norm, _ = block
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            block[0], block[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return model


# --- training and quantization -----------------------------------------------------------------


def trained(model: _Model, data: Split, epochs: int, rate: float, seed: int) -> _Model:
    """The model, trained on the data in an order that the seed decides."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * len(_batches(len(data), seed))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for chosen in _batches(len(data), seed + 1000 * epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs[chosen]), data.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model


def _batches(n: int, seed: int) -> list[Tensor]:
    """The places of whole batches, in an order that the seed decides."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return list(order[: n - n % BATCH].split(BATCH))


def _exported(model: nn.Module, x: Tensor) -> GraphModule:
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    assert isinstance(exported, GraphModule)
    return exported


def _quantizer(bits: int, qat: bool) -> pt2e.PoolingQuantizer:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    config = pt2e.quantization_config(bits, qat=qat)
    return pt2e.PoolingQuantizer(config, X86InductorQuantizer().set_global(config))


def after_training(model: nn.Module, calibration: Tensor, bits: int) -> GraphModule:
    """The trained model, quantized with ranges that a few inputs show."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    model = copy.deepcopy(model).eval()
    prepared = prepare_pt2e(_exported(model, calibration), _quantizer(bits, qat=False))
    pt2e.calibrate(prepared, calibration.split(BATCH))
    return converted(prepared)


def while_training(model: nn.Module, data: Split, epochs: int, bits: int, seed: int) -> GraphModule:
    """The model, trained on with values rounded to so many bits, ready for `converted`."""
    from torchao.quantization.pt2e import (
        disable_observer,
        move_exported_model_to_eval,
        move_exported_model_to_train,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    model = copy.deepcopy(model).train()
    exported = _exported(model, data.inputs[:BATCH])
    prepared = prepare_qat_pt2e(exported, _quantizer(bits, qat=True))
    move_exported_model_to_train(prepared)
    pt2e.calibrate(prepared, data.inputs[:CALIBRATION].split(BATCH))
    trained(prepared, data, epochs, RATE / 5, seed)
    move_exported_model_to_eval(prepared)
    prepared.apply(disable_observer)
    return prepared


def converted(prepared: GraphModule) -> GraphModule:
    """A prepared model as one of integers.

    Raises:
        PoolValueError: if a pooling stayed in float.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    made: GraphModule = convert_pt2e(prepared)
    left = [f"{each.name}: {each.obstacle}" for each in pt2e.lower(made) if not each.is_integer]
    if left:
        raise PoolValueError(f"poolings in float: {'; '.join(left)}")
    return made


# --- what is measured --------------------------------------------------------------------------


@dataclass
class Row:
    """One way of making one network.

    Attributes:
        right: for each seed, which test items were right.
        bits: of its weights, 32 in float.
        model: that of the last seed.
        time: over that of the network in float, both compiled.
        changed: how many answers the conversion to integers changed, over all seeds.
    """

    right: list[np.ndarray] = field(default_factory=list)
    bits: int = 32
    model: nn.Module | None = None
    time: Quartiles | None = None
    changed: int | None = None

    def note(self, model: nn.Module, right: np.ndarray) -> None:
        """The model of another seed."""
        self.model = model
        self.right.append(right)

    def against(self, other: Row | None) -> tuple[float, float, float]:
        """The share of right answers, or by how much it is above another's; and the ends of its
        95 % interval. NaN for these where there is one seed."""
        mine = np.array(self.right, dtype=float)
        theirs = np.zeros_like(mine) if other is None else np.array(other.right, dtype=float)
        if len(mine) < 2:
            return float((mine - theirs).mean()), np.nan, np.nan
        difference = paired_difference(mine, theirs)
        low, high = difference.interval()
        least = 0.0 if other is None else -1.0
        return difference.mean, max(low, least), min(high, 1.0)


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """The class of each image."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in inputs.split(500)])


def bytes_of(model: nn.Module, bits: int = 8) -> int:
    """What the tensors take that a model, or its graph, reads, if weights of integers take so many
    bits. They are stored in 8."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if isinstance(model, GraphModule):
        read = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
        tensors = {name: tensor for name, tensor in tensors.items() if name in read}
    return sum(
        -(-tensor.numel() * bits // 8) if tensor.dtype is torch.int8 else tensor.nbytes
        for tensor in tensors.values()
    )


def measure_times(rows: dict[str, Row], x: Tensor, seconds: float) -> None:
    """Of each row its model's time over that of the first, all compiled, in paired rounds: the
    processor's, which other work on the machine does not change much."""
    from torch._inductor import config

    with torch.no_grad(), config.patch(freezing=True):
        compiled = [torch.compile(row.model) for row in rows.values() if row.model is not None]
        calls = [lambda each=each: each(x) for each in compiled]
        found = interleave(calls, replace(within(seconds), clock="process"))
    for row, samples in zip(rows.values(), found, strict=True):
        row.time = Quartiles.of(paired_ratios(samples.seconds, found[0].seconds))


def small_networks(data: Data, seeds: int, bits: Sequence[int], epochs: int) -> dict[str, Row]:
    """Each way of making the small network."""
    rows: dict[str, Row] = {"float": Row()}
    for seed in range(seeds):
        torch.manual_seed(seed)
        started = folded(trained(SmallNetwork(), data.train, epochs, RATE, seed))
        full = trained(copy.deepcopy(started), data.train, epochs, RATE / 5, seed)
        rows["float"].note(full, _right(full, data.test))
        for n in bits:
            row = rows.setdefault(f"{n} bits, after training", Row(bits=n))
            after = after_training(full, data.train.inputs[:CALIBRATION], n)
            row.note(after, _right(after, data.test))
            row = rows.setdefault(f"{n} bits, while training", Row(bits=n, changed=0))
            prepared = while_training(started, data.train, epochs, n, seed)
            before = answers(prepared, data.test.inputs)
            made = converted(prepared)
            row.note(made, _right(made, data.test))
            assert row.changed is not None
            row.changed += int((answers(made, data.test.inputs) != before).sum())
    return rows


def _right(model: nn.Module, test: Split) -> np.ndarray:
    found: np.ndarray = (answers(model, test.inputs) == test.labels).numpy()
    return found


def face_network(name: str, seeds: int, bits: Sequence[int], windows: Tensor) -> dict[str, Row]:
    """A face network as it is, and quantized by half of the windows, which the seed draws."""
    crops, is_face = faces.crops_for(name)
    model = faces.load(name)
    rows = {"float": Row([_faces_found(model, crops, is_face)] * seeds, model=model)}
    for n in bits:
        row = rows.setdefault(f"{n} bits, after training", Row(bits=n))
        for seed in range(seeds):
            order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
            made = after_training(model, windows[order[: len(windows) // 2]], n)
            row.note(made, _faces_found(made, crops, is_face))
    return rows


def _faces_found(model: nn.Module, crops: Tensor, is_face: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: Tensor = (model(crops)[0] > 0.5) == is_face
    return found.numpy()


# --- the table ---------------------------------------------------------------------------------


def _percent(value: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = (100 * part for part in value)
    told = f"{mean:{sign}.1f}"
    return told if np.isnan(low) else f"{told} ({low:{sign}.1f} to {high:{sign}.1f})"


HEADINGS = (
    f"{'':26}{'right':>21}{'less float':>23}{'kB':>8}{'packed':>8}{'time':>20}{'changed':>12}"
)


def table(name: str, rows: dict[str, Row]) -> str:
    """The rows of one network, as lines of text under `HEADINGS`."""
    lines = [f"\n{name}"]
    for label, row in rows.items():
        less = "" if label == "float" else _percent(row.against(rows["float"]), "+")
        changed = "" if row.changed is None else f"{row.changed} of {np.size(row.right)}"
        stored, packed = (
            "" if row.model is None else f"{bytes_of(row.model, n) / 1e3:.1f}"
            for n in (8, row.bits)
        )
        time = ""
        if row.time is not None:
            time = f"{row.time.median:.2f} ({row.time.low:.2f} to {row.time.high:.2f})"
        told = f"  {label:24}{_percent(row.against(None)):>21}{less:>23}"
        lines.append(f"{told}{stored:>8}{packed:>8}{time:>20}{changed:>12}".rstrip())
    return "\n".join(lines)


def lesson(found: dict[str, dict[str, Row]], bits: Sequence[int]) -> str:
    """What training with rounded values saves, in sentences."""
    lines = []
    for name, rows in found.items():
        for n in bits:
            after, during = (rows[f"{n} bits, {when} training"] for when in ("after", "while"))
            lost, kept = after.against(rows["float"]), during.against(rows["float"])
            gain = during.against(after)
            lines.append(
                f"{name}, {n} bits: quantized after training {_percent(lost, '+')} points from "
                f"float, trained with {n} bits {_percent(kept, '+')}; that is "
                f"{_percent(gain, '+')} for the training."
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.examples.int8", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each network")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="2 to 8, several")
    parser.add_argument("--fashion", metavar="FOLDER", help="where Fashion-MNIST lies")
    parser.add_argument("--no-time", action="store_true", help="compile nothing, time nothing")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch, two seeds")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    seeds, epochs = (min(options.seeds, 2), 1) if options.quick else (options.seeds, EPOCHS)
    bits, timed = options.bits, not (options.no_time or options.quick)
    torch.set_num_threads(1)
    print(
        f"Right answers in %, over {seeds} seeds, and less those of float: with 95 % intervals\n"
        "that know of seeds and of test items. kB: of the weights, their scales and zero points,\n"
        "as they are stored, 4 bits in 8; packed: if 4 bits took 4. Time: of the processor, for\n"
        f"the compiled network and {TIMED} items, one thread, over that of float: the median and\n"
        "middle half of paired rounds. Changed: answers that the conversion to integers changed."
    )
    print(f"\n{HEADINGS}")
    _, windows = detection.example(WINDOWS // 4 if options.quick else WINDOWS)
    for name, shown in zip(("R-Net", "O-Net"), windows, strict=True):
        rows = face_network(name, seeds, bits, shown)
        if timed:
            measure_times(rows, shown[:TIMED], SECONDS)
        print(table(f"{name}, 200 crops", rows), flush=True)
    print("\nNo error in 200 crops is a rate of up to 1.5 %, at 95 %.")
    sizes = "train=256, validation=10, test=200" if options.quick else "train=2000, test=4000"
    folder = f"folder={options.fashion!r}, " if options.fashion else ""
    found: dict[str, dict[str, Row]] = {}
    digits = "mnist-5k(train=256, test=200)" if options.quick else "mnist-5k"
    for name, where in (("MNIST", digits), ("Fashion-MNIST", f"fashion-mnist({folder}{sizes})")):
        try:
            data = load_data(where)
        except PoolValueError as error:
            print(f"\n{name} is left out: {error}")
            continue
        found[name] = small_networks(data, seeds, bits, epochs)
        if timed:
            measure_times(found[name], data.test.inputs[:TIMED], SECONDS)
        told = f"{name}, {len(data.train)} images to train, {len(data.test)} to test"
        print(table(told, found[name]), flush=True)
    print("\n" + lesson(found, bits))


if __name__ == "__main__":
    main()
