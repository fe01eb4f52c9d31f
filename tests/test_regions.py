"""Regions of interest: by hand, against ONNX and slow oracles, and where boxes are strange."""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import poolkit  # noqa: E402
from poolkit import PoolError, PoolTypeError, PoolValueError, prroi_pool, roi_align, roi_pool  # noqa: E402  # noqa: E402
from poolkit.nn import PrRoIPool, RoIAlign, RoIPool  # noqa: E402
from poolkit.reductions import Max, Mean  # noqa: E402
from poolkit.regions import code_bytes, pool_regions  # noqa: E402
from poolkit.torch.regions_composite import composite  # noqa: E402
from poolkit.windows.regions import Regions  # noqa: E402

WAYS = [
    ("samples", "mean"),
    ("samples", "max"),
    ("corners", "max"),
    ("cells", "max"),
    ("cells", "mean"),
    ("integral", "mean"),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
REDUCED = {"mean": Mean(), "max": Max()}


def some_boxes(count: int, images: int = 2, size: float = 30.0, seed: int = 0) -> Any:
    """In the map, beyond it, tiny, and some turned around."""
    random = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 2, generator=random) * size - 6
    second = first + torch.rand(count, 2, generator=random) * size * 0.7 - 2
    image = torch.randint(0, images, (count, 1), generator=random).float()
    return torch.cat([image, first, second], 1)


def some_maps(shape: tuple[int, ...] = (2, 5, 13, 17), dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def pooled(x: Any, boxes: Any, size: Any, rule: Any, mode: str, **options: Any) -> Any:
    return pool_regions(x, Regions(boxes, size, rule=rule, **options), REDUCED[mode])


# --- by hand -------------------------------------------------------------------------------------


def test_roi_pool_by_hand() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    # x from round(0.4) = 0 to round(2.5) = 3, y from 1 to 1: one row of four cells, 4 5 6 7. Of
    # three bins the cells are floor(0), floor(4/3), floor(8/3) up to ceil(4/3), ceil(8/3), 4.
    found = roi_pool(x, np.array([[0, 0.4, 1.0, 2.5, 1.4]]), (1, 3))
    assert found.tolist() == [[[[5.0, 6.0, 7.0]]]]
    # A quarter of the size: x from round(0.5) = 1 to round(1.5) = 2, and the same along y.
    assert roi_pool(x, np.array([[0, 2.0, 2.0, 6.0, 6.0]]), 1, 0.25).item() == 10.0
    # x from 3 to 6, of which cell 3 is on the map: the second bin sees none.
    assert roi_pool(x, np.array([[0, 3.0, 0.0, 6.0, 0.0]]), (1, 2)).ravel().tolist() == [3.0, 0.0]
    # Turned around it is one cell large.
    assert roi_pool(x, np.array([[0, 3.0, 2.0, 1.0, 0.0]]), 1).item() == 11.0


def test_roi_align_by_hand() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)  # 4 y + x wherever it is interpolated
    box = np.array([[0, 1.0, 0.0, 3.0, 2.0]])
    # Two bins of 1 x 2 with two samples each way: their means are those of the middles, which are
    # x = 1.5 and 2.5 at y = 1.
    assert roi_align(x, box, (1, 2), sampling_ratio=2).ravel().tolist() == [5.5, 6.5]
    # Half a cell less: x = 1 and 2 at y = 0.5.
    found = roi_align(x, box, (1, 2), sampling_ratio=2, aligned=True)
    # Samples at y = -0.5 + 0.5 = 0 and 1, the middle is still 0.5.
    assert found.ravel().tolist() == [3.0, 4.0]
    # The largest sample of each bin: y = 1.5 and x = 1.75, 2.75.
    found = roi_align(x, box, (1, 2), sampling_ratio=2, reduction="max")
    assert found.ravel().tolist() == [7.75, 8.75]
    # One sample at (1, 1.5): half of 5 and of 6, the others without weight. The larger is 3.
    box = np.array([[0, 1.0, 0.5, 2.0, 1.5]])
    assert roi_align(x, box, 1, sampling_ratio=1, reduction="onnx_max").item() == 3.0
    assert roi_align(x, box, 1, sampling_ratio=1, reduction="max").item() == 5.5


def test_prroi_pool_by_hand() -> None:
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1.0  # the product of two hats
    # From 0 to 2 each hat has the area 1, of an area of 4.
    assert prroi_pool(x, np.array([[0, 0.0, 0.0, 2.0, 2.0]]), 1).item() == 0.25
    # From 0 to 0.5 a hat has 0.5^2 / 2 = 0.125, over 0.5 a quarter; from 0.5 to 1 three quarters.
    found = prroi_pool(x, np.array([[0, 0.0, 0.5, 1.0, 1.0]]), (1, 2))
    np.testing.assert_allclose(found.ravel(), [0.25 * 0.75, 0.75 * 0.75], rtol=1e-15)
    # Beyond the map: the border's hat falls from 1 at 2 to 0 at 3.
    x[0, 0] = 1.0
    found = prroi_pool(x, np.array([[0, 2.0, 0.0, 4.0, 2.0]]), 1)
    assert found.item() == 0.25  # an area of 1/2 times 2, over 4


# --- limits --------------------------------------------------------------------------------------


def test_the_integral_of_a_square_between_four_cells_is_their_mean() -> None:
    x = some_maps((1, 3, 6, 7)).numpy()
    for left, top in product(range(6), range(5)):
        found = prroi_pool(x, np.array([[0.0, left, top, left + 1, top + 1]]), 1)[0, :, 0, 0]
        mean = x[0, :, top : top + 2, left : left + 2].mean((1, 2))
        np.testing.assert_allclose(found, mean, rtol=1e-14, atol=1e-15)


def test_small_boxes_become_the_interpolation_at_a_point() -> None:
    x = some_maps((1, 3, 6, 7))
    y, z = 2.3, 4.6
    weights = torch.outer(torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])).double()
    right = (x[0, :, 2:4, 4:6] * weights).sum((1, 2))
    box = torch.tensor([[0, z, y, z, y]], dtype=torch.float64)
    box += torch.tensor([0, -1e-7, -1e-7, 1e-7, 1e-7], dtype=torch.float64)
    integral = prroi_pool(x, box, 1)[0, :, 0, 0]
    shifted = box + torch.tensor([0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    sampled = roi_align(x, shifted, 1, sampling_ratio=3, aligned=True)[0, :, 0, 0]
    torch.testing.assert_close(integral, right, rtol=0, atol=1e-6)
    torch.testing.assert_close(sampled, right, rtol=0, atol=1e-6)


def test_aligned_is_half_a_cell_less() -> None:
    x = some_maps()
    boxes = some_boxes(20).double()
    boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 1)  # below, the sizes are different
    half = torch.tensor([0, 1.0, 1.0, 1.0, 1.0]) / 2
    for ratio in (-1, 2):
        aligned = roi_align(x, boxes, 3, 0.5, ratio, aligned=True)
        by_hand = roi_align(x, boxes * torch.tensor([1, 0.5, 0.5, 0.5, 0.5]) - half, 3, 1.0, ratio)
        wide = (boxes[:, 3:] - boxes[:, 1:3] >= 2).all(1)
        torch.testing.assert_close(aligned[wide], by_hand[wide])


def test_one_bin_for_each_cell_is_the_map() -> None:
    x = some_maps((1, 3, 6, 7))
    whole = torch.tensor([[0, 0.0, 0.0, 7.0, 6.0]])
    assert torch.equal(roi_align(x, whole, (6, 7), aligned=True), x)
    cells = whole - torch.tensor([0, 0, 0, 1.0, 1.0])
    assert torch.equal(roi_pool(x, cells, (6, 7)), x)
    # And fewer bins are the windows of an average and a maximum: two rows of seven.
    windows = x.reshape(1, 3, 3, 14)
    means = roi_align(x, whole, (3, 1), aligned=True)[..., 0]
    torch.testing.assert_close(means, windows.mean(3), rtol=1e-14, atol=1e-15)
    assert torch.equal(roi_pool(x, cells, (3, 1))[..., 0], windows.amax(3))


# --- against others ------------------------------------------------------------------------------


def onnx_model(size: tuple[int, int], scale: float, ratio: int, aligned: bool, mode: str) -> Any:
    from onnx import TensorProto, helper

    node = helper.make_node(
        "RoiAlign",
        ["x", "rois", "images"],
        ["y"],
        mode=mode,
        output_height=size[0],
        output_width=size[1],
        sampling_ratio=max(ratio, 0),
        spatial_scale=scale,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    real = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "regions",
        [
            helper.make_tensor_value_info("x", real, ["n", "c", "h", "w"]),
            helper.make_tensor_value_info("rois", real, ["k", 4]),
            helper.make_tensor_value_info("images", TensorProto.INT64, ["k"]),
        ],
        [helper.make_tensor_value_info("y", real, ["k", "c", *size])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("mode", "reduction"), [("avg", "mean"), ("max", "onnx_max")])
@pytest.mark.parametrize(("ratio", "scale"), [(-1, 0.5), (2, 1.0), (3, 0.25)])
def test_onnx_agrees(aligned: bool, mode: str, reduction: str, ratio: int, scale: float) -> None:
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    x = some_maps((2, 3, 13, 17), torch.float32)
    boxes = some_boxes(12, size=60.0)
    if aligned:  # what a box turned around means is not said there
        boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 0.1)
    model = onnx_model((3, 4), scale, ratio, aligned, mode)
    given = {
        "x": x.numpy(),
        "rois": boxes[:, 1:].numpy(),
        "images": boxes[:, 0].long().numpy(),
    }
    (right,) = ReferenceEvaluator(model).run(None, given)
    found = roi_align(x, boxes, (3, 4), scale, ratio, aligned, reduction)
    np.testing.assert_allclose(found.numpy(), right, rtol=1e-5, atol=1e-5)


def test_onnxruntime_agrees() -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    x, boxes = some_maps((2, 20, 13, 17), torch.float32), some_boxes(40)
    for aligned, (mode, reduction) in product(
        (False, True), (("avg", "mean"), ("max", "onnx_max"))
    ):
        if aligned:
            boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 0.1)
        model = onnx_model((7, 7), 0.5, -1, aligned, mode)
        session = runtime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        given = {
            "x": x.numpy(),
            "rois": boxes[:, 1:].numpy(),
            "images": boxes[:, 0].long().numpy(),
        }
        (right,) = session.run(None, given)
        found = roi_align(x, boxes, 7, 0.5, -1, aligned, reduction)
        np.testing.assert_allclose(found.numpy(), right, rtol=1e-5, atol=1e-5)


def slow_roi_pool(x: np.ndarray, box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    image, *corners = box
    x1, y1, x2, y2 = (math.floor(abs(v) + 0.5) * (1 if v >= 0 else -1) for v in corners)
    high, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    out = np.zeros((x.shape[1], rows, columns))
    for i, j in product(range(rows), range(columns)):
        cells = [
            (y1 + y, x1 + x_)
            for y in range(high)
            for x_ in range(wide)
            if i * high // rows <= y < -(-(i + 1) * high // rows)
            and j * wide // columns <= x_ < -(-(j + 1) * wide // columns)
            and 0 <= y1 + y < x.shape[2]
            and 0 <= x1 + x_ < x.shape[3]
        ]
        for c in range(x.shape[1]):
            out[c, i, j] = max((x[int(image), c, y, x_] for y, x_ in cells), default=0.0)
    return out


def test_roi_pool_against_a_slow_oracle() -> None:
    x, boxes = some_maps().numpy(), some_boxes(20).double().numpy()
    right = np.stack([slow_roi_pool(x, box, 3, 5) for box in boxes])
    np.testing.assert_array_equal(roi_pool(x, boxes, (3, 5)), right)


def slow_integral(x: np.ndarray, box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """By the midpoint rule, with many points."""
    points = 400
    image, x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return np.zeros((x.shape[1], rows, columns))

    def hats(begin: float, end: float, bins: int, size: int) -> np.ndarray:
        at = begin + (np.arange(bins * points) + 0.5) * (end - begin) / (bins * points)
        hat = np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0)
        return hat.reshape(bins, points, size).mean(1)

    down, beside = hats(y1, y2, rows, x.shape[2]), hats(x1, x2, columns, x.shape[3])
    return np.einsum("iy,cyx,jx->cij", down, x[int(image)], beside)


def test_prroi_pool_against_numerical_integration() -> None:
    x, boxes = some_maps().numpy(), some_boxes(20).double().numpy()
    right = np.stack([slow_integral(x, box, 2, 3) for box in boxes])
    np.testing.assert_allclose(prroi_pool(x, boxes, (2, 3)), right, atol=2e-5)


def test_many_samples_become_the_integral() -> None:
    x = some_maps()
    boxes = torch.tensor([[0, 2.2, 3.1, 11.7, 9.4], [1, 0.5, 0.5, 15.5, 11.5]])
    sampled = roi_align(x, boxes, 3, sampling_ratio=200)
    torch.testing.assert_close(sampled, prroi_pool(x, boxes, 3), atol=2e-4, rtol=0)


# --- the same however it is run ------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "mode"), WAYS)
@pytest.mark.parametrize("shape", [(2, 5, 13, 17), (2, 33, 7, 20), (2, 16, 1, 1), (2, 3, 1, 9)])
def test_kernels_and_whole_arrays_agree(rule: Any, mode: str, shape: tuple[int, ...]) -> None:
    x, boxes = some_maps(shape), some_boxes(23, size=20.0)
    for aligned, ratio, size in [(False, -1, (7, 7)), (True, 2, (1, 3)), (True, -1, (20, 33))]:
        options: dict[str, Any] = {"sampling_ratio": ratio, "aligned": aligned}
        bins = Regions(boxes, size, rule=rule, **options).bins
        right = composite(x, boxes, bins, mode)
        found = pooled(x, boxes, size, rule, mode, **options)
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rule", "mode"), WAYS)
def test_formats_dtypes_and_kinds_of_array(rule: Any, mode: str) -> None:
    boxes = some_boxes(31)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = some_maps((2, 21, 13, 17), dtype)
        plain = pooled(x, boxes, (5, 6), rule, mode)
        behind = pooled(x.to(memory_format=torch.channels_last), boxes, (5, 6), rule, mode)
        assert plain.dtype == dtype
        assert plain.is_contiguous()
        assert behind.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(plain, behind)
        right = pooled(x.double(), boxes, (5, 6), rule, mode)
        torch.testing.assert_close(plain, right.to(dtype), rtol=2 * torch.finfo(dtype).eps,
                                   atol=1e-6)  # fmt: skip
        if dtype is torch.bfloat16:
            continue
        array = pooled(x.numpy(), boxes.numpy(), (5, 6), rule, mode)
        np.testing.assert_array_equal(array, plain.numpy())
        window = Regions(boxes.numpy(), (5, 6), rule=rule)
        rows = pool_regions(x.numpy().transpose(0, 2, 3, 1), window, REDUCED[mode], True)
        np.testing.assert_array_equal(rows, plain.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("rule", "mode"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threads_and_instruction_sets_change_no_bit(
    rule: Any, mode: str, dtype: Any, keep_settings: None
) -> None:
    boxes = some_boxes(60).requires_grad_()
    threads = torch.get_num_threads()
    found = []
    try:
        for isa, n, layout in product(poolkit.info()["available"], (1, 2, 3), FORMATS):
            poolkit.use_isa(isa)
            torch.set_num_threads(n)
            x = some_maps((2, 37, 13, 17), dtype).contiguous(memory_format=layout)
            x.requires_grad_()
            out = pooled(x, boxes, 4, rule, mode)
            weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype)
            wanted = (x, boxes) if rule == "integral" else (x,)
            found.append((out, *torch.autograd.grad(out, wanted, weights)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_a_list_of_boxes() -> None:
    x = some_maps()
    boxes = some_boxes(9)
    parts = [boxes[boxes[:, 0] == n][:, 1:] for n in range(2)]
    ordered = torch.cat([boxes[boxes[:, 0] == n] for n in range(2)])
    for call in (roi_pool, roi_align, prroi_pool):
        assert torch.equal(call(x, parts, 3), call(x, ordered, 3))
        np.testing.assert_array_equal(
            call(x.numpy(), [part.numpy() for part in parts], 3), call(x, ordered, 3).numpy()
        )
    # Numbers of images beyond what bfloat16 counts to.
    many = some_maps((300, 1, 4, 4))
    halves = [torch.tensor([[0.0, 0.0, 3.0, 3.0]], dtype=torch.bfloat16)] * 300
    right = prroi_pool(many, [box.double() for box in halves], 1)
    assert torch.equal(prroi_pool(many, halves, 1), right)


def test_as_a_window() -> None:
    x, boxes = some_maps(), some_boxes(9)
    window = poolkit.Regions(boxes, 3, spatial_scale=0.5, sampling_ratio=2, aligned=True)
    assert repr(window) == (
        "Regions(<9 boxes>, (3, 3), spatial_scale=0.5, sampling_ratio=2, aligned=True)"
    )
    found = poolkit.pool(x, window, "mean")
    assert torch.equal(found, roi_align(x, boxes, 3, 0.5, 2, True))
    rows = poolkit.pool(x.movedim(1, 3), window, "mean", channels_last=True)
    assert torch.equal(rows.movedim(3, 1), found)
    with pytest.raises(PoolTypeError, match=r"regions have no Sum\(\), while pooling float64 "):
        poolkit.pool(x, window, "sum")
    with pytest.raises(PoolTypeError, match="no spans"):
        window.axes((4, 4))
    with pytest.raises(PoolTypeError):
        poolkit.pool_with_indices(x, window)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "mode"), WAYS)
@pytest.mark.parametrize("layout", FORMATS)
def test_gradients(rule: Any, mode: str, layout: Any) -> None:
    x = some_maps((2, 2, 5, 6)).contiguous(memory_format=layout).requires_grad_()
    boxes = some_boxes(5, size=8.0).double()

    def call(x: Any) -> Any:
        return pooled(x, boxes, (2, 3), rule, mode, sampling_ratio=2)

    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))
    gradient = torch.autograd.grad(call(x).square().sum(), x)[0]
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("rule", "mode"), WAYS)
def test_gradients_of_whole_arrays(rule: Any, mode: str) -> None:
    boxes = some_boxes(30)
    for ratio in (-1, 2):
        x = some_maps((2, 19, 13, 17)).requires_grad_()
        bins = Regions(boxes, (4, 5), rule=rule, sampling_ratio=ratio).bins
        out = pooled(x, boxes, (4, 5), rule, mode, sampling_ratio=ratio)
        weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)
        found = torch.autograd.grad(out, x, weights)[0]
        right = torch.autograd.grad(composite(x, boxes, bins, mode), x, weights)[0]
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", FORMATS)
def test_gradients_of_boxes(layout: Any) -> None:
    x = some_maps((2, 3, 5, 6)).contiguous(memory_format=layout).requires_grad_()
    boxes = torch.tensor(
        [
            [0, 0.3, 0.6, 3.7, 4.1],
            [1, -1.6, 2.2, 2.5, 7.3],  # partly outside
            [0, 2.1, 2.3, 2.4, 2.7],  # within one cell
            [1, 9.0, 9.0, 12.0, 12.0],  # outside
            [0, 3.0, 3.0, 1.0, 4.0],  # without area
        ],
        dtype=torch.float64,
    )
    coordinates = boxes[:, 1:].clone().requires_grad_()

    def call(x: Any, coordinates: Any) -> Any:
        return prroi_pool(x, torch.cat([boxes[:, :1], coordinates], 1), (2, 3), 0.9)

    assert torch.autograd.gradcheck(call, (x, coordinates))
    if layout is torch.contiguous_format:  # by whole arrays, which have no layout
        assert torch.autograd.gradgradcheck(call, (x, coordinates))
    # A box alone, when the map needs no gradient.
    (moved,) = torch.autograd.grad(call(x.detach(), coordinates).sum(), coordinates)
    assert not moved[3:].any()
    assert moved[:3].all()


def test_boxes_of_whole_cells_have_a_gradient() -> None:
    # At a corner of the interpolation the integral is still smooth.
    x = some_maps((1, 2, 5, 6))
    boxes = torch.tensor([[0, 1.0, 1.0, 4.0, 3.0]], dtype=torch.float64, requires_grad=True)
    out = prroi_pool(x, boxes, (2, 3))
    weights = torch.linspace(1, 2, out.numel(), dtype=torch.float64).reshape(out.shape)
    (found,) = torch.autograd.grad(out, boxes, weights)
    bins = Regions(boxes, (2, 3), rule="integral").bins
    whole = composite(x, boxes, bins, "mean")
    torch.testing.assert_close(torch.autograd.grad(whole, boxes, weights)[0], found)
    for column in range(1, 5):
        step = torch.zeros_like(boxes)
        step[0, column] = 1e-6
        ahead, back = (prroi_pool(x, (boxes + s).detach(), (2, 3)) for s in (step, -step))
        numerical = ((ahead - back) * weights).sum() / 2e-6
        torch.testing.assert_close(found[0, column], numerical, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rule", "mode"), WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_small_types_round_once(rule: Any, mode: str, dtype: Any) -> None:
    x = some_maps((1, 18, 13, 17), dtype)
    boxes = some_boxes(40, images=1)  # many add up in one cell
    wide = x.double().requires_grad_()
    x.requires_grad_()
    out = pooled(x, boxes, 3, rule, mode)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype)
    (found,) = torch.autograd.grad(out, x, weights)
    (right,) = torch.autograd.grad(pooled(wide, boxes, 3, rule, mode), wide, weights.double())
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, right.to(dtype), rtol=2 * eps, atol=1e-5)


def test_a_maximum_saves_small_codes() -> None:
    def saved(x: Any, **options: Any) -> list[Any]:
        found: list[Any] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
            options.pop("call", roi_pool)(x.requires_grad_(), some_boxes(4), 2, **options)
        return [t.dtype for t in found if t.ndim == 4]

    assert saved(torch.rand(2, 3, 15, 16)) == [torch.uint8]
    assert saved(torch.rand(2, 3, 50, 68)) == [torch.uint16]
    largest = {"reduction": "max", "call": roi_align}
    assert saved(torch.rand(2, 3, 50, 68), sampling_ratio=2, **largest) == [torch.uint8]
    assert saved(torch.rand(2, 3, 50, 68), call=roi_align) == []


def test_the_first_of_equal_samples_has_the_gradient() -> None:
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    boxes = torch.tensor([[0, 0.0, 0.0, 3.0, 3.0]])
    (gradient,) = torch.autograd.grad(roi_pool(x, boxes, 1).sum(), x)
    assert gradient.flatten().nonzero().tolist() == [[0]]
    # Zeros on the map before the zeros outside of it.
    zeros = torch.zeros(1, 1, 4, 4, requires_grad=True)
    boxes = torch.tensor([[0, -9.0, -9.0, 1.0, 1.0]])
    out = roi_align(zeros, boxes, 1, sampling_ratio=4, reduction="max")
    assert torch.autograd.grad(out.sum(), zeros)[0].sum() == 1


# --- strange boxes -------------------------------------------------------------------------------


def refusal(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(PoolError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_boxes_that_are_refused() -> None:
    x = np.zeros((2, 3, 8, 9), np.float32)
    boxes = np.array([[0, 0.0, 0.0, 4.0, 4.0], [1, 1.0, 1.0, 2.0, 2.0]])
    wrong = boxes.copy()
    wrong[1, 3] = np.nan
    assert refusal(roi_align, x, wrong, 2) == (
        "box 1 is not finite: (1, 1, 1, nan, 2), while pooling float32 (2, 3, 8, 9) by roi_align. "
        "Drop it first."
    )
    wrong[1, 3] = -np.inf
    assert refusal(prroi_pool, x, wrong, 2).startswith("box 1 is not finite: (1, 1, 1, -inf, 2)")
    for image in (2, -1, 0.5):
        wrong = boxes.copy()
        wrong[1, 0] = image
        assert refusal(roi_pool, x, wrong, 2) == (
            f"box 1 is of image {image:g}, of 2 images, while pooling float32 (2, 3, 8, 9) by "
            "roi_pool. Images are numbered from 0 to 1."
        )
    assert "there are none" in refusal(roi_pool, x[:0], boxes, 2)
    wrong = boxes.astype(np.float32)
    wrong[0, 4] = 1e30
    assert refusal(roi_align, x, wrong, 2, 2.0).startswith(
        "box 0 lies 2e+30 cells away, more than 2.14748e+09, while pooling"
    )
    wrong[0, 4] = 3e38
    assert refusal(roi_align, x, wrong, 2, 2.0).startswith("box 0 lies inf cells away")
    # Torch tensors, too, also in a backward and for a list.
    tensor = torch.from_numpy(x)
    assert "box 1 is of image 7" in refusal(roi_align, tensor, torch.tensor([[0] * 5, [7] * 5]), 2)
    assert "boxes of 1 images, and 2 images" in refusal(roi_align, tensor, [boxes[:, 1:]], 2)


def test_forms_that_are_refused() -> None:
    x = np.zeros((2, 3, 8, 9), np.float32)
    boxes = np.zeros((1, 5))
    assert refusal(roi_align, x, boxes[:, 1:], 2).startswith(
        "boxes have the shape (1, 4), while pooling float32 (2, 3, 8, 9) by roi_align. Give "
        "(K, 5), image, x1, y1, x2, y2, or a list of (L, 4) for each image."
    )
    assert refusal(roi_align, x, [boxes, boxes], 2).startswith("boxes[0] have the shape (1, 5)")
    assert "got list" in refusal(roi_align, x, [[0, 0, 1, 1]], 2)
    assert "got str" in refusal(roi_align, x, "boxes", 2)
    assert "boxes are complex128" in refusal(roi_align, x, boxes.astype(complex), 2)
    assert "boxes are bool" in refusal(roi_align, x, boxes > 0, 2)
    assert "got rank 3" in refusal(roi_align, x[0], boxes, 2)
    assert "an axis without elements" in refusal(roi_align, x[:, :, :0], boxes, 2)
    assert "an axis without elements" in refusal(prroi_pool, x[..., :0], boxes, 2)
    assert "Convert x to float32" in refusal(roi_align, x.astype(np.int32), boxes, 2)
    assert "output_size must be at least 1" in refusal(roi_align, x, boxes, 0)
    assert "output_size must be at least 1 and at most" in refusal(roi_align, x, boxes, 2**20)
    assert "output_size has 3 entries" in refusal(roi_align, x, boxes, (1, 2, 3))
    assert "sampling_ratio must be at most 4096" in refusal(roi_align, x, boxes, 2, 1.0, 5000)
    assert "sampling_ratio must be an integer" in refusal(roi_align, x, boxes, 2, 1.0, 2.5)
    for scale in (0.0, -1.0, math.inf, math.nan):
        assert "spatial_scale must be finite" in refusal(roi_pool, x, boxes, 2, scale)
    assert "spatial_scale must be a number" in refusal(roi_pool, x, boxes, 2, "1/16")
    assert "One of: mean, max, onnx_max" in refusal(roi_align, x, boxes, 2, reduction="sum")
    with pytest.raises(PoolValueError, match="there is no rule 'exact'"):
        Regions(boxes, 2, rule="exact")  # type: ignore[arg-type]
    with pytest.raises(PoolTypeError, match="an integral has a mean and no maximum"):
        pooled(x, boxes, 2, "integral", "max")
    with pytest.raises(PoolTypeError, match="the mean of corners is that of the samples"):
        pooled(x, boxes, 2, "corners", "mean")
    with pytest.raises(PoolTypeError, match="a NumPy array or a torch tensor was expected"):
        roi_align([1.0], boxes, 2)
    assert "cannot be remembered" in refusal(code_bytes, Regions(boxes, 2).bins, (2**17, 2**17))


@pytest.mark.parametrize(("rule", "mode"), WAYS)
def test_no_boxes_images_or_channels(rule: Any, mode: str) -> None:
    for layout in FORMATS:
        x = some_maps((2, 3, 5, 6)).contiguous(memory_format=layout).requires_grad_()
        out = pooled(x, torch.zeros(0, 5), (2, 3), rule, mode)
        assert out.shape == (0, 3, 2, 3)
        assert not torch.autograd.grad(out.sum(), x)[0].any()
        assert pooled(x, [torch.zeros(0, 4)] * 2, 4, rule, mode).shape == (0, 3, 4, 4)
        assert pooled(x[:0], torch.zeros(0, 5), 4, rule, mode).shape == (0, 3, 4, 4)
        assert pooled(x[:, :0], some_boxes(3), 4, rule, mode).shape == (3, 0, 4, 4)
        bins = Regions(torch.zeros(0, 5), 2, rule=rule).bins
        assert composite(x, torch.zeros(0, 5), bins, mode).shape == (0, 3, 2, 2)
    assert pooled(np.zeros((0, 3, 5, 6)), [], 4, rule, mode).shape == (0, 3, 4, 4)


def test_sizes_that_vanish_or_turn_around() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    point = np.array([[0, 2.0, 1.0, 2.0, 1.0]])
    # One cell wide and high: from (2, 1) to (3, 2), its middle is (2.5, 1.5).
    assert roi_align(x, point, 1, sampling_ratio=1).item() == 4 * 1.5 + 2.5
    assert roi_align(x, point, 1).item() == 4 * 1.5 + 2.5
    # Aligned it has no samples, or all of them at (1.5, 0.5).
    assert roi_align(x, point, 1, aligned=True).item() == 0.0
    assert roi_align(x, point, 1, aligned=True, reduction="max").item() == 0.0
    assert roi_align(x, point, 1, sampling_ratio=3, aligned=True).item() == 4 * 0.5 + 1.5
    assert prroi_pool(x, point, 1).item() == 0.0
    around = np.array([[0, 3.0, 1.0, 1.0, 3.0]])
    assert roi_align(x, around, 2, aligned=True).ravel().tolist() == [0.0] * 4
    turned = roi_align(x, around, 2, sampling_ratio=2, aligned=True)
    straight = roi_align(x, around[:, [0, 3, 2, 1, 4]], 2, sampling_ratio=2, aligned=True)
    np.testing.assert_allclose(turned, straight[..., ::-1], rtol=1e-15)
    assert prroi_pool(x, around, 1).item() == 0.0
    # So small that both ends of a bin are one number: the value there.
    tiny = np.array([[0, 1.0, 1.0, 1.0 + 2e-16, 1.0 + 2e-16]])
    np.testing.assert_allclose(prroi_pool(x, tiny, 3), np.full((1, 1, 3, 3), 5.0), rtol=1e-15)


def test_border_is_repeated_up_to_one_cell() -> None:
    x = np.full((1, 1, 3, 3), 2.0)
    for left, right in ((-1.0, 2.0), (-1.01, 0.0)):
        box = np.array([[0, left - 0.5, 0.5, left + 0.5, 1.5]])
        assert roi_align(x, box, 1, sampling_ratio=1).item() == right
    for left, right in ((3.0, 2.0), (3.01, 0.0)):
        box = np.array([[0, left - 0.5, 0.5, left + 0.5, 1.5]])
        assert roi_align(x, box, 1, sampling_ratio=1).item() == right


@pytest.mark.parametrize(("rule", "mode"), WAYS)
def test_huge_boxes_take_no_memory(rule: Any, mode: str) -> None:
    # A thousand million cells, of which the map has 13 x 17: all samples would not fit anywhere.
    x = some_maps()
    boxes = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [1, -2.0, 3.0, 2e9, 2e9]])
    out = pooled(x, boxes, 3, rule, mode)
    bins = Regions(boxes, 3, rule=rule).bins
    torch.testing.assert_close(out, composite(x, boxes, bins, mode))
    if mode == "max":
        assert (out[0, :, 1, 1] == x[0].amax((1, 2))).all() or rule != "cells"
    else:
        assert out.abs().max() < 1e-3 or rule == "cells"
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pooled(leaf, boxes, 3, rule, mode).sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("rule", "mode"), WAYS)
@pytest.mark.parametrize("way", ["kernel", "whole arrays"])
def test_a_nan_is_seen_by_its_own_bins_alone(rule: Any, mode: str, way: str) -> None:
    x = some_maps((1, 2, 8, 8))
    x[0, 0, 2, 2] = math.nan
    x[0, 1, 7, 7] = math.inf
    boxes = torch.tensor([[0, 1.25, 1.25, 3.25, 3.25], [0, 4.25, 4.25, 6.0, 6.0]])
    if way == "kernel":
        out = pooled(x, boxes, 1, rule, mode, sampling_ratio=2)
    else:
        bins = Regions(boxes, 1, rule=rule, sampling_ratio=2).bins
        out = composite(x, boxes, bins, mode)
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()
    # Samples that lie on cells give their neighbours no weight; corners are seen all the same.
    assert out[1].isfinite().all() or rule == "corners"


# --- where it runs -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
@pytest.mark.parametrize(
    "call",
    [
        lambda x, boxes: roi_align(x, boxes, 3, 0.5, 2),
        lambda x, boxes: roi_align(x, boxes, 3, reduction="max"),
        lambda x, boxes: roi_pool(x, boxes, (2, 3)),
        lambda x, boxes: prroi_pool(x, boxes, 3),
    ],
)
def test_compiled(call: Any) -> None:
    x = some_maps().float().requires_grad_()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for count in (9, 5):
        boxes = some_boxes(count).requires_grad_()
        out, right = compiled(x, boxes), call(x, boxes)
        assert torch.equal(out, right)
        grads = torch.autograd.grad(out.square().sum(), [x, boxes], allow_unused=True)
        rights = torch.autograd.grad(right.square().sum(), [x, boxes], allow_unused=True)
        for one, two in zip(grads, rights, strict=True):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)


def test_the_operators_say_what_they_do() -> None:
    x, boxes = some_maps((2, 3, 6, 7)).float(), some_boxes(5).float()
    bins, cells, integral = (
        repr(Regions(boxes, (2, 3), sampling_ratio=2, rule=rule).bins)
        for rule in ("samples", "cells", "integral")
    )
    ops = torch.ops.poolkit
    for layout in FORMATS:
        x = x.contiguous(memory_format=layout)
        out, codes = ops.region_max(x, boxes, cells)
        sizes = (2, 6, 7, layout is torch.channels_last)
        for op, args in [
            (ops.region_mean, (x, boxes, bins)),
            (ops.region_spread, (out, boxes, bins, *sizes)),
            (ops.region_max, (x, boxes, cells)),
            (ops.region_scatter, (out, codes, boxes, cells, *sizes)),
            (ops.region_take, (x, codes, boxes, cells)),
            (ops.region_move, (x, out, boxes, integral)),
        ]:
            torch.library.opcheck(op.default, args)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
def test_lists_of_boxes_are_compiled_and_modules_exported() -> None:
    x, boxes = some_maps().float(), [some_boxes(n)[:, 1:] for n in (3, 5)]
    compiled = torch.compile(lambda x, boxes: roi_align(x, boxes, 3), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    assert torch.equal(compiled(x, boxes), roi_align(x, boxes, 3))
    for module in (RoIPool(3), RoIAlign((2, 3), 0.5, 2, True), PrRoIPool(2)):
        batch = {0: torch.export.Dim("boxes", min=2)}
        program = torch.export.export(
            module, (x, some_boxes(9)), dynamic_shapes={"input": None, "boxes": batch}
        )
        for count in (9, 4):
            given = some_boxes(count)
            assert torch.equal(program.module()(x, given), module(x, given))


def test_meta_tensors_have_the_shape_and_layout() -> None:
    for layout, (rule, mode) in product(FORMATS, WAYS):
        x, boxes = some_maps().contiguous(memory_format=layout), some_boxes(9)
        real = pooled(x, boxes, (2, 3), rule, mode)
        meta = pooled(x.to("meta"), boxes, (2, 3), rule, mode)
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch's forward mode
def test_transforms_and_views() -> None:
    x, boxes = some_maps().requires_grad_(), some_boxes(9)

    def call(x: Any) -> Any:
        return prroi_pool(x, boxes, 3).square().sum()

    torch.testing.assert_close(torch.func.grad(call)(x), torch.autograd.grad(call(x), x)[0])
    with pytest.raises(PoolTypeError, match="boxes are mapped over by vmap"):
        torch.func.vmap(lambda boxes: roi_align(x, boxes, 3))(boxes[None])
    batch = torch.func.vmap(lambda x: roi_align(x, boxes, 3))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batch[1], 2 * roi_align(x, boxes, 3))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(roi_align(dual, boxes, 3)).tangent
    torch.testing.assert_close(tangent, roi_align(torch.ones_like(x), boxes, 3).detach())
    view = torch.cat([x, x], 3)[..., ::2]
    assert torch.equal(roi_pool(view, boxes, 3), roi_pool(view.contiguous(), boxes, 3))
    with torch.no_grad():
        assert not roi_pool(x, boxes, 3).requires_grad


def test_modules() -> None:
    x, boxes = some_maps(), some_boxes(9)
    for module, right in [
        (RoIPool(3, 0.5), roi_pool(x, boxes, 3, 0.5)),
        (RoIAlign(3, 0.5, 2, True), roi_align(x, boxes, 3, 0.5, 2, True)),
        (RoIAlign(3, reduction="max"), roi_align(x, boxes, 3, reduction="max")),
        (PrRoIPool((2, 3)), prroi_pool(x, boxes, (2, 3))),
    ]:
        assert torch.equal(copy.deepcopy(module)(x, boxes), right)
        assert not module.state_dict()
    assert repr(RoIAlign(7, 0.5)) == (
        "RoIAlign(output_size=7, spatial_scale=0.5, sampling_ratio=-1, aligned=False)"
    )
    assert repr(PrRoIPool(7)) == "PrRoIPool(output_size=7, spatial_scale=1.0)"
