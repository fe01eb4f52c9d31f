# ruff: noqa: E402 - what these rooms need is skipped over before it is imported
"""What is lost: each measure against examples that were worked out by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from models import Calls, look
from torch import nn

import poolkit
from poolkit import Adaptive, Global, Max, Mean, Sliding, Soft
from poolkit.inspection import inspect
from poolkit.inspection.downsampling import (
    Convolved,
    Pooled,
    Subsampled,
    as_maps,
    dense,
    downsampling_of,
    dropped,
    misdivided,
)
from poolkit.inspection.measures import (
    SAMPLE,
    Upsampling,
    aliasing,
    gradient_coverage,
    losses,
    measure,
    power_spectrum,
    sample,
    shift_error,
    spectrum,
)
from poolkit.inspection.operations import SIGNATURES, Pooling

AVERAGE, MAXIMUM = Pooled(Sliding(2), Mean()), Pooled(Sliding(2), Max())
SUBSAMPLING = Subsampled(Sliding(2))
GLOBAL = Pooled(Global(), Mean())
DENSE_AVERAGE = Pooled(Sliding(3, stride=1), Mean())
ALL = {
    "average": AVERAGE, "max": MAXIMUM, "subsampling": SUBSAMPLING, "global": GLOBAL,
    "stride 1": DENSE_AVERAGE, "padded": Pooled(Sliding(3, stride=2, padding=1), Max()),
    "adaptive": Pooled(Adaptive(3), Mean()), "soft": Pooled(Sliding(2), Soft()),
}  # fmt: skip


def constant(size: int = 16) -> torch.Tensor:
    return torch.full((2, 3, size, size), 0.7, dtype=torch.float64)


def checkerboard(size: int = 16) -> torch.Tensor:
    row = torch.arange(size)
    return (1.0 - 2 * ((row[:, None] + row) % 2)).double().expand(2, 3, size, size).clone()


def noise(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(0)).double()


def smooth(size: int = 32) -> torch.Tensor:
    """One period of a cosine along both axes: every frequency far below any limit."""
    wave = torch.cos(2 * math.pi * (torch.arange(size) + 0.5) / size).double()
    return (wave[:, None] + wave).expand(1, 2, size, size).clone()


# ---------------------------------------------------------------- a constant tensor


@pytest.mark.parametrize("name", ALL)
def test_a_constant_loses_nothing(name):
    loss = losses(ALL[name], constant())
    assert (loss.reconstruction, loss.shift_error, loss.aliasing) == (1.0, 0.0, 0.0)


# ---------------------------------------------------------------- a checkerboard


def test_a_checkerboard_is_gone_and_each_pooling_says_so_in_its_way():
    x = checkerboard()
    # The average of every window is 0, the maximum 1, every fourth value 1.
    average, most, sparse = (losses(layer, x) for layer in (AVERAGE, MAXIMUM, SUBSAMPLING))
    assert average.reconstruction == most.reconstruction == sparse.reconstruction == 0
    assert (average.shift_error, most.shift_error) == (0.0, 0.0)
    # One to the side subsampling sees -1 everywhere where it saw 1: opposite, not only different.
    assert sparse.shift_error == 2.0
    assert (average.aliasing, most.aliasing) == (0.0, 0.0)
    assert sparse.aliasing > 0.99


# ---------------------------------------------------------------- reconstruction


def test_repeated_values_come_back_whole():
    y = noise(8)
    x = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for layer in (AVERAGE, MAXIMUM, SUBSAMPLING):
        assert losses(layer, x).reconstruction == pytest.approx(1.0, abs=1e-12)


def test_a_ramp_comes_back_by_interpolation():
    x = torch.arange(32.0, dtype=torch.float64).expand(4, 4, 32, 32).clone()
    # At the borders there is no neighbour to interpolate with.
    assert losses(SUBSAMPLING, x).reconstruction > 0.999


def test_of_noise_a_quarter_comes_back_from_an_average_and_from_a_subsample():
    # Four independent values and their mean: the best guess for each explains 1 / 4 of its
    # variance; a subsample is all of one of four and nothing of the others.
    x = noise(64)
    for layer in (AVERAGE, SUBSAMPLING):
        assert losses(layer, x).reconstruction == pytest.approx(0.25, abs=0.01)


def test_a_global_mean_says_nothing_about_where():
    x = noise()
    assert losses(GLOBAL, x).reconstruction == pytest.approx(0, abs=1e-12)


def test_the_fit_is_the_least_squares_solution():
    x = noise(12)
    y = AVERAGE(x)
    fit = Upsampling.fit(x, y, AVERAGE.window)
    best = (x - fit(y)).square().sum()
    for change in torch.randn(5, *fit.weights.shape, generator=torch.Generator().manual_seed(1)):
        other = Upsampling(
            fit.r2, fit.nearest, fit.phase, fit.weights + 1e-3 * change, fit.reaches, fit.level
        )  # fmt: skip
        assert (x - other(y)).square().sum() > best


def test_few_values_are_not_fitted_to_noise():
    x = noise(4)[:1, :1]
    assert Upsampling.fit(x, AVERAGE(x), AVERAGE.window).reaches == [(0, 0)]
    many = noise(16)
    assert len(Upsampling.fit(many, AVERAGE(many), AVERAGE.window).reaches) == 9


def test_maps_of_different_levels_are_none_the_worse():
    x = noise() + 100 * torch.arange(8).reshape(8, 1, 1)
    assert losses(MAXIMUM, x).reconstruction == pytest.approx(
        losses(MAXIMUM, noise()).reconstruction, abs=1e-9
    )


def test_subsampling_with_stride_1_is_the_input():
    loss = losses(Subsampled(Sliding(3, stride=1, padding=1)), noise())
    assert (loss.reconstruction, loss.gradient_coverage) == (pytest.approx(1), 1)


# ---------------------------------------------------------------- shift stability


@pytest.mark.parametrize("name", ["global", "stride 1"])
def test_what_is_shift_invariant_has_no_error(name):
    assert shift_error(ALL[name], noise()) == pytest.approx(0, abs=1e-7)


def test_of_noise_subsampling_is_unrelated_to_its_shift():
    # The expected value is the mean of two independent neighbours, of half the variance: the
    # difference has 1.5 times the variance, and the mean of both is 0.75.
    assert shift_error(SUBSAMPLING, noise(64)) == pytest.approx(math.sqrt(1.5 / 0.75), rel=0.02)


def test_smooth_maps_are_stable_and_more_so_when_averaged():
    errors = [shift_error(layer, smooth()) for layer in (AVERAGE, SUBSAMPLING)]
    assert errors[0] < errors[1] < 0.02


def test_padding_at_the_border_is_not_counted_as_a_shift():
    padded = Pooled(Sliding(3, stride=1, padding=1), Mean())
    assert shift_error(padded, noise()) == pytest.approx(0, abs=1e-7)


# ---------------------------------------------------------------- aliasing


@pytest.mark.parametrize(("cycles", "share"), [(3, 0.0), (13, 1.0)])
def test_a_wave_aliases_if_and_only_if_it_is_above_the_limit(cycles, share):
    # 32 positions and a stride of 2: the limit is at 8 cycles.
    place = torch.arange(32) + 0.5
    wave = torch.cos(2 * math.pi * cycles * place / 32).double().reshape(1, 1, 32)
    assert aliasing(SUBSAMPLING, wave) == pytest.approx(share, abs=1e-9)


def test_an_average_lets_less_alias_than_a_maximum_or_nothing():
    shares = [aliasing(layer, noise(32)) for layer in (AVERAGE, MAXIMUM, SUBSAMPLING)]
    assert shares[0] < shares[1] < shares[2]
    # White noise has its energy everywhere alike: of 32 frequencies of an axis, 0 to 31 / 64, the
    # first 17 are no higher than 1 / 4. The mean is left out.
    assert shares[2] == pytest.approx((32**2 - 17**2) / (32**2 - 1), abs=0.01)


def test_the_borders_of_a_small_map_are_no_edges():
    """Cut out of a large periodic field, whose spectrum is known, small maps have it still."""
    field = torch.randn(200, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    frequency = torch.fft.fftfreq(64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = torch.inf
    field = torch.fft.ifft2(torch.fft.fft2(field) / radius).real
    around = F.pad(field, (0, 1, 0, 1), mode="circular")
    power = torch.fft.fft2(F.avg_pool2d(around, 2, 1)).abs().square().mean((0, 1))
    above = (frequency.abs()[:, None] > 0.25) | (frequency.abs() > 0.25)
    true = float(power[above].sum() / power.sum())
    assert 0.01 < true < 0.05
    assert aliasing(AVERAGE, field[..., :9, :9]) == pytest.approx(true, abs=0.03)


def test_without_subsampling_nothing_aliases():
    assert aliasing(DENSE_AVERAGE, noise()) == 0


def test_the_spectrum_keeps_the_energy():
    x = noise()
    power, _ = power_spectrum(x)
    centred = x - x.mean((2, 3), keepdim=True)
    assert float(power.sum()) == pytest.approx(float(centred.square().mean()), rel=1e-12)


def test_the_radial_spectrum_of_a_wave_peaks_where_it_is():
    wave = torch.cos(2 * math.pi * 8 * (torch.arange(32) + 0.5) / 32).double()
    found = spectrum(SUBSAMPLING, wave.expand(1, 1, 32, 32).clone())
    assert found is not None
    peak = found.before.index(1)
    assert found.frequency[peak] == 8 / 32
    assert found.nyquist == 0.25
    assert max(found.before[:6] + found.before[9:]) < 1e-9
    assert spectrum(SUBSAMPLING, constant()) is None


# ---------------------------------------------------------------- gradients


def test_gradient_coverage_by_hand():
    x = noise()
    assert gradient_coverage(AVERAGE, x) == 1.0
    assert gradient_coverage(MAXIMUM, x) == 0.25
    assert gradient_coverage(SUBSAMPLING, x) == 0.25
    # 16 rows in windows of 3: the last row and column are in none.
    assert gradient_coverage(Pooled(Sliding(3), Mean()), x) == (15 / 16) ** 2


def test_the_share_of_the_top_input_by_hand():
    x = noise()
    assert losses(AVERAGE, x).gradient_top == pytest.approx(0.25)
    assert losses(MAXIMUM, x).gradient_top == 1.0
    assert losses(GLOBAL, x).gradient_top == pytest.approx(1 / 256)
    # Of two values 0 and log 3 a softmax mean weighs the larger by 3 / 4; its gradient also
    # counts how the weight changes, and is larger than that.
    pair = torch.tensor([0.0, math.log(3)], dtype=torch.float64).reshape(1, 1, 2)
    w, value = 0.75, math.log(3)
    larger, smaller = w + w * (1 - w) * value, (1 - w) - w * (1 - w) * value
    assert losses(Pooled(Sliding(2), Soft()), pair).gradient_top == pytest.approx(
        larger / (larger + smaller)
    )


def test_where_the_maximum_sits():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 1::2, 0::2] = 1
    measured = measure(MAXIMUM, x)
    assert measured is not None
    assert measured.places == [[0.0, 0.0], [1.0, 0.0]]
    # Of equal values the first is taken: a bias to the top left that flat maps have.
    flat = measure(MAXIMUM, torch.zeros(1, 1, 8, 8))
    assert flat is not None
    assert flat.places == [[1.0, 0.0], [0.0, 0.0]]


def test_places_of_windows_cut_short_do_not_count():
    x = noise()
    measured = measure(Pooled(Sliding(3, stride=2, padding=1), Mean()), x)
    assert measured is not None
    assert all(share == 0.111 for row in measured.places for share in row)


def test_places_of_large_windows_are_summed_in_cells():
    measured = measure(GLOBAL, noise(48))
    assert measured is not None
    assert len(measured.places) == len(measured.places[0]) == 16
    assert measured.places[0][0] == pytest.approx(9 / 48**2, rel=0.01)


# ---------------------------------------------------------------- what is measured


def test_the_yardsticks_of_a_plain_pooling_are_itself():
    x = noise()
    measured = measure(MAXIMUM, x)
    assert measured is not None
    assert measured.yardsticks["max"] == measured.loss
    assert measured.yardsticks["average"].gradient_top == pytest.approx(0.25)
    assert set(measured.yardsticks) == {"average", "max", "subsampling"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_measured(value):
    x = noise()
    x[0, 0, 0, 0] = value
    assert measure(AVERAGE, x) is None


def test_a_sample_is_spread_evenly_and_small():
    x = torch.arange(100.0).reshape(100, 1, 1, 1).expand(100, 64, 32, 32)
    taken = sample(x)
    assert taken.numel() <= SAMPLE
    assert taken.dtype == torch.float64
    assert sample(torch.zeros(1, 3, 400, 400)).shape == (1, 1, 400, 400)  # a map is never cut
    assert sample(torch.zeros(4, 64, 64, 64), whole_channels=True).shape == (1, 64, 64, 64)
    spread = sample(torch.arange(100.0).reshape(100, 1, 1, 1))
    assert spread.flatten().tolist() == [float(100 * i // 8) for i in range(8)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_other_dtypes_are_measured_too(dtype):
    x = (noise() * 10).to(dtype)
    measured = measure(MAXIMUM, x)
    assert measured is not None
    assert measured.loss.gradient_coverage is not None


# ---------------------------------------------------------------- from a call to an operator


@pytest.mark.parametrize("operation", sorted(SIGNATURES))
def test_every_operation_is_the_one_that_torch_runs_or_is_said_to_be_none(operation):
    n = int(operation[-2])
    given = {
        "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "norm_type": 2.0,
        "output_size": 2, "keepdim": True, "ceil_mode": True, "count_include_pad": False,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if key in SIGNATURES[operation]}
    pooling = Pooling(operation, given)
    layer = downsampling_of(pooling)
    if "fractional" in operation or "unpool" in operation:
        assert layer is None
        return
    x = torch.rand(2, 3, *[9] * n)
    assert layer is not None
    torch.testing.assert_close(layer(x), pooling.in_torch(x)())


def test_what_poolkit_has_no_word_for_is_none():
    given = {"norm_type": float("inf"), "kernel_size": 2}
    assert downsampling_of(Pooling("lp_pool2d", given)) is None


def test_a_convolution_is_what_torch_computes_without_bias():
    x, weight = torch.rand(2, 4, 9, 9), torch.rand(6, 2, 3, 3)
    given = {
        "weight": weight, "bias": torch.rand(6), "stride": (2, 1), "padding": (1, 0),
        "dilation": (1, 2), "groups": 2, "kernel_size": (3, 3),
    }  # fmt: skip
    layer = downsampling_of(Pooling("conv2d", given))
    assert isinstance(layer, Convolved)
    expected = F.conv2d(x, weight, None, (2, 1), (1, 0), (1, 2), 2)
    torch.testing.assert_close(layer(x), expected)
    dense_map = F.conv2d(x, weight, None, 1, 0, (1, 2), 2)
    torch.testing.assert_close(layer.densely(x), dense_map)


def test_maps_of_every_form():
    pool = Pooling("max_pool2d", {"kernel_size": 2})
    assert as_maps(pool, torch.zeros(3, 8, 8)).shape == (1, 3, 8, 8)
    over = Pooling("mean", {"dim": (1, 2), "keepdim": False})
    assert as_maps(over, torch.zeros(2, 8, 7, 3)).shape == (2, 3, 8, 7)
    video = Pooling("mean", {"dim": (3, 4), "keepdim": False})
    assert as_maps(video, torch.zeros(2, 5, 3, 8, 7)).shape == (10, 3, 8, 7)
    behind = Pooling("pool", {"ndim": 2, "channels_last": True})
    assert as_maps(behind, torch.zeros(2, 8, 7, 3)).shape == (2, 3, 8, 7)


def test_dense_windows():
    assert dense(Sliding(3, stride=2, padding=1, dilation=2), (9, 9)) == Sliding(
        (3, 3), stride=1, dilation=(2, 2)
    )
    assert dense(Sliding(5, padding=2), (3, 9)) == Sliding((3, 5), stride=1, dilation=(1, 1))
    assert dense(Adaptive(2), (5, 4)) == Sliding((3, 2), stride=1)


def test_dropped_and_misdivided_by_hand():
    assert dropped(Sliding(3, stride=3), (8, 9)) == [2, 0]
    assert dropped(Sliding(3, stride=2, ceil_mode=True), (8, 9)) == [0, 0]
    assert misdivided(Mean(), Sliding(3, stride=1, padding=1), (5, 5)) == pytest.approx(16 / 25)
    assert misdivided(Mean(count_include_pad=False), Sliding(3, padding=1), (6, 6)) == 0
    assert misdivided(Mean(divisor=5), Sliding(2), (4, 4)) == 1
    assert misdivided(Max(), Sliding(3, padding=1), (6, 6)) is None


# ---------------------------------------------------------------- records


def test_the_record_has_the_window_in_numbers():
    layer = inspect(
        Calls(lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), count_include_pad=False)),
        torch.randn(2, 3, 9, 8), seconds=0, pictures=False,
    ).layers[0]  # fmt: skip
    assert (layer.kernel_size, layer.stride, layer.dilation) == ([3, 2], [2, 2], [1, 1])
    assert layer.padding == [[1, 1], [0, 0]]
    assert (layer.ceil_mode, layer.count_include_pad) == (False, False)
    assert (layer.dropped, layer.misdivided) == (0, 0)
    assert layer.bytes_moved == 4 * 2 * 8 * (9 * 8 + 5 * 4)
    assert layer.loss is not None
    assert layer.loss.gradient_top == pytest.approx(1 / 6)


def test_zeros_and_dead_channels():
    class Half(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.relu(x), 2)

    x = torch.rand(2, 4, 8, 8) + 1
    x[:, 1] = -1
    x[:, :, :4] *= -1
    x[:, 1] = -1
    (layer,) = look(Half(), x)
    # Three channels are half zero, one is all zero and so says nothing.
    assert layer.zeros == (3 * 0.5 + 1) / 4
    assert (layer.dead_channels, layer.channels) == (1, 4)


def test_producers_and_consumers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)
            self.left, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.pool(F.relu(self.stem(x)))
            x = (self.left(x) + x).mean((2, 3))
            return self.head(x.flatten(1))

    stem, pool, mean = look(Net(), torch.randn(1, 3, 20, 20))
    assert (stem.producers, stem.consumers) == (["input"], ["relu"])
    assert pool.producers == ["relu"]
    assert pool.consumers == ["left (conv2d)", "add"]
    assert (mean.producers, mean.consumers) == (["add"], ["head (linear)"])
    assert [layer.kind for layer in (stem, pool, mean)] == ["convolution", "module", "reduction"]
    assert all(layer.source.startswith("test_inspection_measures.py:") for layer in (stem, pool))


def test_jump_and_offset():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
    )
    layers = look(model, torch.randn(1, 3, 64, 64))
    assert [layer.jump for layer in layers[:3]] == [[2, 2], [4, 4], [8, 8]]
    # Outputs 0 of a padded 7, stride 2, and of a padded 3, stride 2, are centred on input 0; a
    # window of 2 then reaches to the next, 4 positions on.
    assert [layer.offset for layer in layers] == [[0, 0], [0, 0], [2, 2], [31.5, 31.5]]


def test_runs_of_one_layer_are_counted_and_have_links_of_their_own():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return F.avg_pool2d(self.pool(self.pool(x)), 2)

    layers = look(Twice(), torch.randn(1, 3, 32, 32))
    assert [(layer.call, layer.calls, layer.id) for layer in layers] == [
        (1, 2, "pool"), (2, 2, "pool-2"), (1, 1, "avg_pool2d"),
    ]  # fmt: skip


def test_inputs_by_name():
    class Named(nn.Module):
        def forward(self, *, image, scale):
            return F.max_pool2d(image * scale, 2)

    inputs = {"image": torch.rand(1, 3, 8, 8), "scale": torch.tensor(2.0)}
    report = inspect(Named(), inputs, seconds=0, pictures=False)
    assert report.inputs == ["float32[1, 3, 8, 8]", "float32[]"]
    assert len(report.layers) == 1


def test_a_dict_as_one_argument():
    class Takes(nn.Module):
        def forward(self, batch):
            return F.max_pool2d(batch["image"], 2)

    (layer,) = look(Takes(), {"image": torch.rand(1, 3, 8, 8)})
    assert layer.in_shape == [1, 3, 8, 8]


def test_strided_convolutions_are_found_and_are_no_poolings():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 4, 2, 2),
    )  # fmt: skip
    report = inspect(model, torch.randn(1, 3, 21, 21), seconds=0.01, pictures=False)
    strided, pool = report.layers
    assert (strided.words, strided.window) == ("convolution", "3×3, stride 2")
    assert strided.kept == pytest.approx(100 / 441)
    assert strided.loss is not None
    assert strided.loss.reconstruction is None
    assert strided.torch_ms is not None
    assert strided.poolkit_ms is None
    assert report.torch_share == pool.torch_share
    assert [layer.name for layer in report.poolings] == ["2"]


def test_poolkits_optimizer_does_not_touch_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2))
    report = poolkit.optimize(model, torch.randn(1, 3, 21, 21), seconds=0)
    assert [layer.name for layer in report.layers] == ["1"]


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(0, 3, 8, 8),
        torch.full((1, 3, 8, 8), 1e200, dtype=torch.float64).bernoulli(0.5) * 1e200,
        torch.full((1, 3, 8, 8), float("-inf")),
        torch.ones(1, 1, 2, 2),
        torch.rand(3, 8, 8),
    ],
    ids=["empty batch", "huge values", "infinite", "one window", "no batch"],
)
def test_inputs_at_the_edge_give_a_whole_report(x):
    for module in (nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(1)):
        report = inspect(nn.Sequential(module), x, seconds=0)
        assert len(report.layers) == 1
        assert report.to_json()
        assert report._repr_html_()
