"""Four measures of what a pooling loses, on the layer's real input.

Each looks at another side of it, and they disagree by nature: an average of 2x2 reconstructs well
and blurs, a maximum keeps peaks and aliases, subsampling passes all gradient to a quarter of the
inputs. There is no one number, so none is made of them; each is instead measured beside average,
maximum and plain subsampling with the same window on the same tensor.

Similarities of representations (CKA) and estimates of mutual information are left out: both are
high or low here for reasons that have nothing to do with the pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil, isfinite, prod
from typing import NamedTuple

import numpy as np
import torch

from poolkit.inspection.downsampling import Downsampling, centres_of, yardsticks
from poolkit.inspection.records import Loss, Spectrum
from poolkit.windows import Spans, Window

#: Values of a layer's input that are measured; maps are never cut, so one may be larger.
SAMPLE = 2**14
_MOST_PHASES, _MOST_SHIFTS, _MOST_PLACES = 64, 3, 16
_EQUATIONS = 20  # at least so many for each unknown, or the fit is to noise


class Measured(NamedTuple):
    """All that is measured of one layer."""

    loss: Loss
    yardsticks: dict[str, Loss]
    places: list[list[float]] | None
    spectrum: Spectrum | None


def measure(layer: Downsampling, x: torch.Tensor) -> Measured | None:
    """All measures of ``layer`` on ``x`` (batch, channels, *space), and of the yardsticks.

    Returns None for what cannot be measured: no values, or some that are not finite.
    """
    if not x.numel() or x.is_complex() or not x.isfinite().all():
        return None
    x = sample(x, whole_channels=not layer.channelwise)
    places = None
    if layer.channelwise:
        places = _shares(layer, x)
    others = {
        name: losses(other, x) if other != layer else None
        for name, other in yardsticks(layer.window).items()
    }
    own = losses(layer, x, places)
    return Measured(
        own,
        {name: loss or own for name, loss in others.items()},
        None if places is None else _rows(places.by_place),
        spectrum(layer, x),
    )


def losses(layer: Downsampling, x: torch.Tensor, shares: Shares | None = None) -> Loss:
    """The measures of one operator on ``x``, float64 (batch, channels, *space)."""
    if shares is None and layer.channelwise:
        shares = _shares(layer, x)
    y = layer(x)
    fit = None
    if layer.channelwise:
        fit = Upsampling.fit(x, y, layer.window).r2
    return Loss(
        reconstruction=_finite(fit),
        shift_error=_finite(shift_error(layer, x)),
        aliasing=_finite(aliasing(layer, x)),
        gradient_coverage=gradient_coverage(layer, x),
        gradient_top=None if shares is None else _finite(shares.top),
    )


def _finite(value: float | None) -> float | None:
    """None for what overflowed on the way."""
    return value if value is None or isfinite(value) else None


def sample(x: torch.Tensor, whole_channels: bool = False) -> torch.Tensor:
    """Samples and channels evenly spaced, as float64, of about :data:`SAMPLE` values in all."""
    area = max(1, prod(x.shape[2:]))
    channels = x.shape[1] if whole_channels else min(x.shape[1], max(1, SAMPLE // area))
    batch = min(x.shape[0], max(1, SAMPLE // (area * channels)), 8)
    x = x[_evenly(x.shape[0], batch)]
    if channels < x.shape[1]:
        x = x[:, _evenly(x.shape[1], channels)]
    return x.detach().to(torch.float64).contiguous()


def _evenly(size: int, count: int) -> torch.Tensor:
    return torch.arange(count) * size // max(count, 1)


# ---------------------------------------------------------------- reconstruction


@dataclass(frozen=True)
class Upsampling:
    """The best linear way back up, and how much of the input it explains.

    Each input position is predicted from the output whose centre is nearest and its neighbours
    (3 along each axis; in three dimensions without diagonals), with weights that depend only on
    where it lies relative to that centre: a transposed convolution, fitted by least squares to this
    very tensor, as the orthogonal projection in Unser, "Sampling - 50 years after Shannon" (2000).
    The mean of each map is taken as known, so that only what is spatial counts. Where there are
    many such places (a global pooling) or few values, only the nearest output counts, in the end
    with one weight for all. ``r2`` is 1 - residual / variance within the maps: 1 where nothing is
    lost, 0 where the mean of each map says as much. Constant maps lose nothing.
    """

    r2: float
    nearest: list[torch.Tensor]
    phase: torch.Tensor
    weights: torch.Tensor
    reaches: list[tuple[int, ...]]
    level: torch.Tensor

    @classmethod
    def fit(cls, x: torch.Tensor, y: torch.Tensor, window: Window) -> Upsampling:
        """From ``y``, the output of ``window``, back to ``x``: both (batch, channels, *space).

        >>> from poolkit import Sliding
        >>> y = torch.arange(16.0).reshape(1, 1, 16)
        >>> round(Upsampling.fit(y.repeat_interleave(2, 2), y, Sliding(2)).r2, 3)
        1.0
        """
        shape, n = tuple(x.shape[2:]), x.ndim - 2
        nearest = nearest_outputs(window, shape)
        phase, phases = _phases(window, shape, nearest)
        reaches = [r for r in product((-1, 0, 1), repeat=n) if n < 3 or sum(map(abs, r)) < 2]
        rows = x.numel() / max(phases, 1)
        if phases > _MOST_PHASES or rows < _EQUATIONS * len(reaches):
            reaches = [(0,) * n]
            if rows < _EQUATIONS:
                phase, phases = torch.zeros_like(phase), 1
        spatial = tuple(range(2, x.ndim))
        level = x.mean(spatial, keepdim=True)
        flat = cls(1.0, nearest, phase, torch.zeros(phases, len(reaches)).to(x), reaches, level)
        detail = x - level
        variance = float(detail.square().sum())
        if variance <= 1e-24 * float(x.square().sum()):
            return flat
        weights = flat._least_squares(y, detail.flatten(2))
        fitted = replace(flat, weights=weights)
        return replace(fitted, r2=1 - float((x - fitted(y)).square().sum()) / variance)

    def _least_squares(self, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        columns = [*self._columns(y), target]
        # The moments of every position, then summed over the positions of one phase.
        phases, size = len(self.weights), len(columns)
        moments = torch.zeros(phases, size, size, dtype=target.dtype)
        for part in torch.arange(target.shape[2]).split(2048):
            table = torch.stack([c[..., part].flatten(0, 1) for c in columns], 2).transpose(0, 1)
            moments.index_add_(0, self.phase[part], table.transpose(1, 2) @ table)
        inverse = torch.linalg.pinv(moments[:, :-1, :-1], rtol=1e-12, hermitian=True)
        return (inverse @ moments[:, :-1, -1:])[..., 0]

    def __call__(self, y: torch.Tensor) -> torch.Tensor:
        """``y`` brought back up to the input's shape."""
        weights = self.weights[self.phase]
        up = torch.zeros((), dtype=y.dtype)
        for index, column in enumerate(self._columns(y)):
            up = up + weights[:, index] * column
        return up.unflatten(2, [len(near) for near in self.nearest]) + self.level

    def _columns(self, y: torch.Tensor) -> list[torch.Tensor]:
        """For each position the outputs at ``reaches`` from the nearest, less the mean of their
        map; borders repeat."""
        y = y - y.mean(tuple(range(2, y.ndim)), keepdim=True)
        found = []
        for reach in self.reaches:
            column = y
            for axis, (near, step) in enumerate(zip(self.nearest, reach, strict=True), 2):
                column = column.index_select(axis, (near + step).clamp(0, y.shape[axis] - 1))
            found.append(column.flatten(2))
        return found


def nearest_outputs(window: Window, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """For each position along each axis the output whose centre is nearest; of two, the first."""
    found = []
    for size, centres in zip(shape, centres_of(window, shape), strict=True):
        position = np.arange(size)
        right = np.searchsorted(centres, position).clip(0, len(centres) - 1)
        left = (right - 1).clip(0)
        closer = np.abs(position - centres[left]) <= np.abs(position - centres[right])
        found.append(torch.from_numpy(np.where(closer, left, right)))
    return found


def _phases(
    window: Window, shape: tuple[int, ...], nearest: list[torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Where each position of the flattened map lies relative to its nearest centre, as a number,
    and how many such places there are."""
    phase, phases = np.zeros(1, dtype=np.int64), 1
    for size, centres, near in zip(shape, centres_of(window, shape), nearest, strict=True):
        gap = float(np.diff(centres).max()) / 2 if len(centres) > 1 else size
        # Beyond the outermost centres places are further away than any between two: one for all.
        away = np.round(2 * (np.arange(size) - centres[near.numpy()]).clip(-gap, gap))
        places, along = np.unique(away, return_inverse=True)
        phase = (phase[:, None] * len(places) + along).reshape(-1)
        phases *= len(places)
    return torch.from_numpy(phase), phases


# ---------------------------------------------------------------- shift stability


def shift_error(layer: Downsampling, x: torch.Tensor) -> float:
    """How far pooling a shifted input is from shifting the pooled one.

    The input is shifted by d positions along one axis, the output by d / jump between its
    neighbours (linearly), and the two are compared where no border plays a part: root mean square
    of the difference over that of both. 0 is stable, sqrt(2) is unrelated, 2 is opposite. Shifts
    of up to one output, along each axis, are averaged. After Zhang, "Making Convolutional
    Networks Shift-Invariant Again" (2019), and Azulay and Weiss, "Why do deep convolutional
    networks generalize so poorly to small image transformations?" (2019).

    >>> from poolkit.inspection.downsampling import Pooled, Subsampled
    >>> from poolkit import Max, Sliding
    >>> x = torch.tensor([1.0, -1.0] * 8).reshape(1, 1, 16)  # a checkerboard of one axis
    >>> shift_error(Subsampled(Sliding(2)), x), shift_error(Pooled(Sliding(2), Max()), x)
    (2.0, 0.0)
    """
    shape = tuple(x.shape[2:])
    axes, fields = layer.window.axes(shape), layer.window.receptive_field(shape)
    still = layer(x)
    errors = []
    for axis, (spans, seen) in enumerate(zip(axes, fields, strict=True)):
        outputs = len(spans.begin)
        if spans.size < 2 or not outputs:
            continue
        for shift in _shifts(seen.jump, spans.size):
            moved = layer(x.roll(-shift, axis + 2))
            # The output moves by whole outputs and a rest, between neighbours.
            whole, rest = divmod(shift / seen.jump, 1)
            here = still.roll(-int(whole), axis + 2)
            expected = here if rest == 0 else (1 - rest) * here + rest * here.roll(-1, axis + 2)
            inside = torch.from_numpy(_inside(spans, shift, ceil(shift / seen.jump)))
            if inside.any():
                moved = moved.index_select(axis + 2, inside.nonzero()[:, 0])
                expected = expected.index_select(axis + 2, inside.nonzero()[:, 0])
            errors.append(relative_error(moved, expected))
    return sum(errors) / len(errors) if errors else 0.0


def _shifts(jump: float, size: int) -> list[int]:
    most = min(max(ceil(jump) - 1, 1), size - 1)
    count = min(most, _MOST_SHIFTS)
    return sorted({1 + index * (most - 1) // max(count - 1, 1) for index in range(count)})


def _inside(spans: Spans, shift: int, behind: int) -> np.ndarray:
    """Outputs that see whole windows, shifted and not, and have neighbours to be moved to."""
    whole = spans.count == spans.taps
    inside = whole & (spans.begin + (spans.count - 1) * spans.step + shift < spans.size)
    after = np.roll(whole, -behind)
    after[len(after) - behind :] = False
    return inside & after


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference over that of both; 0 where only rounding differs."""
    energy = float(a.square().mean() + b.square().mean()) / 2
    difference = float((a - b).square().mean())
    return 0.0 if difference <= 1e-24 * energy else (difference / energy) ** 0.5


# ---------------------------------------------------------------- aliasing


def aliasing(layer: Downsampling, x: torch.Tensor) -> float:
    """Share of the energy above the new Nyquist limit in what the layer subsamples.

    A pooling is a dense one, with stride 1, of which every jump-th value is kept. Frequencies of
    the dense result above 1 / (2 jump) along any axis come back as others that were not there
    (Shannon 1949; Zhang 2019 for poolings). The mean of a map does not count, and maps are
    continued by their mirror image, so that their borders are no edges (the cosine transform of
    Ahmed, Natarajan and Rao, 1974): of small maps most of a Fourier spectrum is those edges.

    >>> from poolkit.inspection.downsampling import Pooled, Subsampled
    >>> from poolkit import Mean, Sliding
    >>> x = torch.tensor([1.0, -1.0] * 8).reshape(1, 1, 16)
    >>> aliasing(Subsampled(Sliding(2)), x) > 0.95, aliasing(Pooled(Sliding(2), Mean()), x)
    (True, 0.0)
    """
    power, frequencies = power_spectrum(layer.densely(x))
    jumps = [seen.jump for seen in layer.window.receptive_field(tuple(x.shape[2:]))]
    above = torch.zeros(power.shape, dtype=torch.bool)
    for axis, (frequency, jump) in enumerate(zip(frequencies, jumps, strict=True)):
        beyond = frequency.abs() > 0.5 / jump + 1e-9
        above |= _along(axis, power.ndim, beyond)
    total = float(power.sum())
    if total <= 1e-20 * float(x.square().mean()):
        return 0.0
    return min(1.0, float(power[above].sum()) / total)


def power_spectrum(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean power of (batch, channels, *space) at each frequency, and the frequencies by axis.

    Of each map without its mean, continued by its mirror image. Frequencies are in cycles per
    position, -0.5 to 0.5.
    """
    dims = tuple(range(2, x.ndim))
    x = x - x.mean(dims, keepdim=True)
    for axis in dims:
        x = torch.cat([x, x.flip(axis)], axis)
    power = torch.fft.fftn(x, dim=dims).abs().square().mean((0, 1)) / prod(x.shape[2:]) ** 2
    return power, [torch.fft.fftfreq(size, dtype=x.dtype) for size in x.shape[2:]]


def _along(axis: int, ndim: int, values: torch.Tensor) -> torch.Tensor:
    """One value for each position of an axis, to be broadcast over the others."""
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def spectrum(layer: Downsampling, x: torch.Tensor, rings: int = 24) -> Spectrum | None:
    """The radial spectra of the input and of what the layer subsamples, for a picture: the mean
    power in rings of equal width, at most ``rings`` of them. None for constant maps."""
    size = max(x.shape[2:])
    width = ceil(size / (2 * rings)) / size
    before, after = (_radial(maps, width) for maps in (x, layer.densely(x)))
    largest = float(before.max(initial=0))
    if largest <= 1e-20 * float(x.square().mean()):
        return None
    jumps = [seen.jump for seen in layer.window.receptive_field(tuple(x.shape[2:]))]
    return Spectrum(
        frequency=[round((ring + 1) * width, 4) for ring in range(len(before))],
        before=[_significant(v / largest) for v in before.tolist()],
        after=[_significant(v / largest) for v in after.tolist()],
        nyquist=0.5 / max(jumps),
    )


def _radial(x: torch.Tensor, width: float) -> np.ndarray:
    """The mean power in rings around ``width``, twice it and so on, up to half a cycle."""
    power, frequencies = power_spectrum(x)
    squares = torch.zeros((), dtype=x.dtype)
    for axis, frequency in enumerate(frequencies):
        squares = squares + _along(axis, power.ndim, frequency.square())
    ring = (squares.expand(power.shape).sqrt().flatten() / width).round().long()
    rings = max(1, int(0.5 / width))
    inside = (ring >= 1) & (ring <= rings)
    index, values = (ring[inside] - 1).numpy(), power.flatten()[inside].numpy()
    total, count = np.bincount(index, values, rings), np.bincount(index, minlength=rings)
    met = np.flatnonzero(count)
    if not len(met):
        return np.zeros(rings)
    # A short map may have no frequency in some ring.
    interpolated: np.ndarray = np.interp(np.arange(rings), met, total[met] / count[met])
    return interpolated


def _significant(value: float) -> float:
    return float(f"{value:.3g}")


# ---------------------------------------------------------------- gradients


def gradient_of(layer: Downsampling, x: torch.Tensor) -> torch.Tensor:
    """The gradient of the sum of all outputs, in the input's shape."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        out = layer(leaf)
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
    return gradient


def gradient_coverage(layer: Downsampling, x: torch.Tensor) -> float:
    """Share of the inputs that get any gradient when every output gets the same.

    1 for averages whose windows tile, 1 / 4 for subsampling by 2 in two dimensions. For max it
    depends on the tensor: of equal values the first gets all (Boureau, Ponce and LeCun, "A
    Theoretical Analysis of Feature Pooling in Visual Recognition", 2010, on sum against max).

    >>> from poolkit.inspection.downsampling import Pooled
    >>> from poolkit import Max, Sliding
    >>> gradient_coverage(Pooled(Sliding(2), Max()), torch.rand(1, 1, 8, 8))
    0.25
    """
    return float((gradient_of(layer, x) != 0).double().mean())


class Shares(NamedTuple):
    """How the gradient of one output is shared among the inputs that it sees."""

    top: float | None
    by_place: torch.Tensor


def _shares(layer: Downsampling, x: torch.Tensor) -> Shares:
    """The share of an output's gradient that its best input gets, and each place in the window.

    1 for max, 1 / 4 for a mean of 2x2. Outputs whose windows do not overlap are looked at, so
    that each input has one. Windows without gradient do not count.
    """
    shape, n = tuple(x.shape[2:]), x.ndim - 2
    axes = layer.window.axes(shape)
    chosen = [_apart(spans) for spans in axes]
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        out = layer(leaf)
        for axis, index in enumerate(chosen):
            out = out.index_select(axis + 2, torch.from_numpy(index))
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
    shares = gradient.abs()
    taps = []
    for axis, (spans, index) in enumerate(zip(axes, chosen, strict=True)):
        position, seen = (torch.from_numpy(each[index]) for each in spans.positions())
        shares = shares.index_select(2 * axis + 2, position.flatten())
        shares = shares.unflatten(2 * axis + 2, position.shape)
        behind = shares.ndim - 2 * axis - 4
        shares = shares * seen.reshape(*seen.shape, *[1] * behind)
        taps.append(2 * axis + 3)
    # (batch, channels, outputs 1, taps 1, outputs 2, taps 2, ...) to windows x places.
    order = [axis for axis in range(shares.ndim) if axis not in taps] + taps
    sizes = [shares.shape[axis] for axis in taps]
    windows = shares.permute(order).reshape(-1, prod(sizes))
    total = windows.sum(1, keepdim=True)
    windows = windows[total[:, 0] > 0] / total[total > 0][:, None]
    if not len(windows):
        return Shares(None, torch.zeros(sizes))
    return Shares(float(windows.amax(1).mean()), windows.mean(0).reshape(sizes if n else [1]))


def _apart(spans: Spans) -> np.ndarray:
    """Every so many outputs that no two of them see the same position."""
    chosen, free = [], 0
    # Only whole windows, if there are any: of one cut short no place is where it seems.
    least = max(spans.taps, 1)
    for index, (begin, count) in enumerate(zip(spans.begin, spans.count, strict=True)):
        if count >= least and begin >= free:
            chosen.append(index)
            free = begin + (count - 1) * spans.step + 1
    return np.array(chosen, dtype=np.int64)


def _rows(places: torch.Tensor) -> list[list[float]] | None:
    """Shares by place as rows for a picture: of at most 16x16 cells, each a sum of places."""
    if places.ndim == 3:
        places = places.sum(0)
    places = places.reshape(-1, places.shape[-1]) if places.ndim == 2 else places[None]
    if not places.numel() or not float(places.sum()):
        return None
    for axis in (0, 1):
        size = places.shape[axis]
        cells = min(size, _MOST_PLACES)
        index = torch.arange(size) * cells // size
        summed = torch.zeros([cells if a == axis else s for a, s in enumerate(places.shape)])
        places = summed.to(places.dtype).index_add_(axis, index, places)
    return [[_significant(value) for value in row] for row in places.tolist()]
