"""What RoIAlign costs: against ONNX Runtime's, and against a composite of torch's grid_sample.

A thousand boxes on a feature map (2, 256, 50, 68), as a detector has them, 7x7 bins with 2x2
samples each. Calls are interleaved; times are medians, ratios those of neighbouring calls.

    python benchmarks/regions.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import Tensor

import poolkit
from poolkit.timing import Schedule, interleave, paired_ratios
from poolkit.vision.regions import prroi_pool, roi_align, roi_pool

BOXES, SHAPE, SIZE, RATIO, SCALE = 1000, (2, 256, 50, 68), 7, 2, 1 / 16
ALIGNED: dict[str, Any] = {
    "output_size": SIZE,
    "spatial_scale": SCALE,
    "sampling_ratio": RATIO,
    "aligned": True,
}
SCHEDULE = Schedule(budget_s=6, min_rounds=3, max_rounds=15, sample_s=1e-2)


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


def onnx_session(threads: int) -> ort.InferenceSession:
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
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def forward_calls(x: Tensor, boxes: Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    session = onnx_session(threads)
    given = {
        "x": x.numpy(),
        "rois": np.ascontiguousarray(boxes[:, 1:].numpy()),
        "images": boxes[:, 0].long().numpy(),
    }
    behind, half = x.contiguous(memory_format=torch.channels_last), x.bfloat16()
    return {
        "poolkit": lambda: roi_align(x, boxes, **ALIGNED),
        "poolkit, channels last": lambda: roi_align(behind, boxes, **ALIGNED),
        "poolkit, bfloat16": lambda: roi_align(half, boxes, **ALIGNED),
        "onnxruntime": lambda: torch.from_numpy(session.run(None, given)[0]),
        "grid_sample": lambda: by_grid_sample(x, boxes),
        "poolkit max": lambda: roi_align(x, boxes, **ALIGNED, reduction="max"),
        "poolkit roi_pool": lambda: roi_pool(x, boxes, SIZE, SCALE),
        "poolkit prroi_pool": lambda: prroi_pool(x, boxes, SIZE, SCALE),
    }


def trained_calls(x: Tensor, boxes: Tensor) -> dict[str, Callable[[], Any]]:
    leaf, weights = x.clone().requires_grad_(), torch.randn(BOXES, SHAPE[1], SIZE, SIZE)
    behind = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    moved = boxes.clone().requires_grad_()

    weights_behind = weights.contiguous(memory_format=torch.channels_last)

    def trained(call: Callable[[], Tensor], *wanted: Tensor) -> Callable[[], Any]:
        at = weights_behind if wanted[0] is behind else weights
        return lambda: torch.autograd.grad(call(), wanted, at)

    return {
        "poolkit": trained(lambda: roi_align(leaf, boxes, **ALIGNED), leaf),
        "poolkit, channels last": trained(lambda: roi_align(behind, boxes, **ALIGNED), behind),
        "grid_sample": trained(lambda: by_grid_sample(leaf, boxes), leaf),
        "poolkit roi_pool": trained(lambda: roi_pool(leaf, boxes, SIZE, SCALE), leaf),
        "poolkit prroi_pool": trained(lambda: prroi_pool(leaf, moved, SIZE, SCALE), leaf, moved),
    }


def main() -> None:
    x, boxes = torch.randn(SHAPE), some_boxes()
    print(f"{BOXES} boxes on {SHAPE}, {SIZE}x{SIZE} bins, {RATIO}x{RATIO} samples, float32, "
          f"{poolkit.info()['isa']}")  # fmt: skip
    for threads in (1, 2):
        torch.set_num_threads(threads)
        calls = forward_calls(x, boxes, threads)
        right = calls["poolkit"]()
        for name in ("poolkit, channels last", "onnxruntime", "grid_sample"):
            error = (calls[name]() - right).abs().max().item()
            assert error < 1e-4, (name, error)
        for what, timed in (("forward", calls), ("with gradient", trained_calls(x, boxes))):
            times = [samples.seconds for samples in interleave(list(timed.values()), SCHEDULE)]
            print(f"\n{threads} thread{'s' * (threads > 1)}, {what}")
            for name, seconds in zip(timed, times, strict=True):
                ratio = median(paired_ratios(seconds, times[0]))
                print(f"{name:>24} {1e3 * median(seconds):8.1f} ms {ratio:6.2f}x")


if __name__ == "__main__":
    main()
