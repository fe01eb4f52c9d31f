"""What pooling of regions costs: against a composite of torch's grid_sample, and ONNX Runtime's
RoiAlign where that is installed; and what more threads bring.

A thousand boxes on a feature map (2, 256, 50, 68), as a detector has them, 7x7 bins with 2x2
samples each. Calls are interleaved; times are medians, ratios those of neighbouring calls. A result
is 50 MB, the samples that grid_sample leaves between are four times that, and the process holds
less than 1.5 GB at any time.

    python benchmarks/regions.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios

BOXES, SHAPE, SIZE, RATIO, SCALE = 1000, (2, 256, 50, 68), 7, 2, 1 / 16
ALIGNED: dict[str, Any] = {
    "output_size": SIZE,
    "spatial_scale": SCALE,
    "sampling_ratio": RATIO,
    "aligned": True,
}
SCHEDULE = Schedule(budget_s=6, min_rounds=3, max_rounds=15, sample_s=1e-2)
Calls = dict[str, Callable[[], Any]]


def some_boxes() -> Tensor:
    """Of 32 to 512 units of an image of 800 x 1088, evenly on a logarithmic scale."""
    random = torch.Generator().manual_seed(1)
    size = 32 * 16 ** torch.rand(BOXES, 2, generator=random)
    room = torch.tensor([SHAPE[3] / SCALE, SHAPE[2] / SCALE])
    first = torch.rand(BOXES, 2, generator=random) * (room - size).clamp(min=0)
    image = torch.randint(0, SHAPE[0], (BOXES, 1), generator=random)
    return torch.cat([image, first, torch.minimum(first + size, room)], 1)


def by_grid_sample(x: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign (aligned) as it is put together from torch's operators, for boxes on the map: all
    samples of the boxes of an image as one grid, then their means."""
    points = SIZE * RATIO
    out = x.new_empty((len(boxes), x.shape[1], SIZE, SIZE))
    for image in range(x.shape[0]):
        chosen = (boxes[:, 0] == image).nonzero()[:, 0]
        start, end = boxes[chosen, 1:3] * SCALE - 0.5, boxes[chosen, 3:5] * SCALE - 0.5
        steps = (torch.arange(points) + 0.5) / points
        at = start[:, None] + steps[:, None] * (end - start)[:, None]  # (L, points, 2)
        at = (at + 0.5) * 2 / torch.tensor([x.shape[3], x.shape[2]]) - 1
        across = at[:, None, :, 0].expand(-1, points, -1)
        grid = torch.stack([across, at[:, :, None, 1].expand(-1, -1, points)], 3)
        grid = grid.reshape(1, len(chosen) * points, points, 2)
        samples = torch.nn.functional.grid_sample(
            x[image : image + 1], grid, padding_mode="border", align_corners=False
        )
        bins = torch.nn.functional.avg_pool2d(samples, RATIO)[0]
        split = bins.reshape(x.shape[1], len(chosen), SIZE, SIZE)
        out = out.index_copy(0, chosen, split.transpose(0, 1))
    return out


def by_onnxruntime(x: Tensor, boxes: Tensor, threads: int) -> Callable[[], Tensor] | None:
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper
    except ModuleNotFoundError:
        return None
    node = helper.make_node(
        "RoiAlign",
        ["x", "rois", "images"],
        ["y"],
        mode="avg",
        output_height=SIZE,
        output_width=SIZE,
        sampling_ratio=RATIO,
        spatial_scale=SCALE,
        coordinate_transformation_mode="half_pixel",
    )
    real = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", real, SHAPE),
        helper.make_tensor_value_info("rois", real, [BOXES, 4]),
        helper.make_tensor_value_info("images", TensorProto.INT64, [BOXES]),
    ]
    outputs = [helper.make_tensor_value_info("y", real, [BOXES, SHAPE[1], SIZE, SIZE])]
    graph = helper.make_graph([node], "regions", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait busily for their next call would take the time of the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {
        "x": x.numpy(),
        "rois": boxes[:, 1:].contiguous().numpy(),
        "images": boxes[:, 0].long().numpy(),
    }
    return lambda: torch.from_numpy(session.run(None, given)[0])


def forward_calls(x: Tensor, boxes: Tensor, threads: int) -> Calls:
    behind, half = x.contiguous(memory_format=torch.channels_last), x.bfloat16()
    calls: Calls = {
        "poolkit": lambda: poolkit.roi_align(x, boxes, **ALIGNED),
        "channels last": lambda: poolkit.roi_align(behind, boxes, **ALIGNED),
        "grid_sample": lambda: by_grid_sample(x, boxes),
    }
    runtime = by_onnxruntime(x, boxes, threads)
    if runtime is not None:
        calls["onnxruntime"] = runtime
    right = calls["poolkit"]()
    for call in calls.values():
        torch.testing.assert_close(call(), right, rtol=0, atol=1e-4)
    return calls | {
        "bfloat16": lambda: poolkit.roi_align(half, boxes, **ALIGNED),
        "max of samples": lambda: poolkit.roi_align(x, boxes, **ALIGNED, reduction="max"),
        "roi_pool": lambda: poolkit.roi_pool(x, boxes, SIZE, SCALE),
        "prroi_pool": lambda: poolkit.prroi_pool(x, boxes, SIZE, SCALE),
    }


def trained_calls(x: Tensor, boxes: Tensor) -> Calls:
    weights = torch.randn(BOXES, SHAPE[1], SIZE, SIZE)
    leaf, moved = x.clone().requires_grad_(), boxes.clone().requires_grad_()
    behind = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weights_behind = weights.contiguous(memory_format=torch.channels_last)

    def trained(call: Callable[[], Tensor], *wanted: Tensor) -> Callable[[], Any]:
        at = weights_behind if wanted[0] is behind else weights
        return lambda: torch.autograd.grad(call(), wanted, at)

    return {
        "poolkit": trained(lambda: poolkit.roi_align(leaf, boxes, **ALIGNED), leaf),
        "channels last": trained(lambda: poolkit.roi_align(behind, boxes, **ALIGNED), behind),
        "grid_sample": trained(lambda: by_grid_sample(leaf, boxes), leaf),
        "roi_pool": trained(lambda: poolkit.roi_pool(leaf, boxes, SIZE, SCALE), leaf),
        "prroi_pool": trained(lambda: poolkit.prroi_pool(leaf, moved, SIZE, SCALE), leaf, moved),
    }


def counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def scaled_calls(call: Callable[[], Any], most: int) -> Calls:
    def on(threads: int) -> Callable[[], Any]:
        def run() -> Any:
            torch.set_num_threads(threads)
            return call()

        return run

    counts = sorted({1, 2, most} | {2**k for k in range(most.bit_length())})
    return {counted(n): on(n) for n in counts if n <= most}


def report(title: str, calls: Calls) -> None:
    print(f"\n{title}")
    times = [samples.seconds for samples in interleave(list(calls.values()), SCHEDULE)]
    for name, seconds in zip(calls, times, strict=True):
        ratio = median(paired_ratios(seconds, times[0]))
        print(f"{name:>16} {1e3 * median(seconds):8.1f} ms {ratio:6.2f}x")


def main() -> None:
    x, boxes = torch.randn(SHAPE), some_boxes()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{BOXES} boxes on {SHAPE}, {SIZE}x{SIZE} bins, {RATIO}x{RATIO} samples, float32, "
        f"{poolkit.info()['isa']}"
    )
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        report(f"{counted(threads)}, forward", forward_calls(x, boxes, threads))
        report(f"{counted(threads)}, with gradient", trained_calls(x, boxes))
    report(
        "roi_align over threads, forward",
        scaled_calls(lambda: poolkit.roi_align(x, boxes, **ALIGNED), cores),
    )
    report(
        "roi_align over threads, with gradient",
        scaled_calls(trained_calls(x, boxes)["poolkit"], cores),
    )


if __name__ == "__main__":
    main()
