"""What an inspection finds, as plain data: nothing here draws, writes or measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

LOOKED_FOR = (
    "pooling modules, pooling functions (torch.nn.functional, torch, torch.ops.aten, poolkit), "
    "mean, sum, max, min and logsumexp over the spatial axes of a feature map, and strided "
    "convolutions"
)

#: What a layer is measured beside, on the same tensor and with the same window.
YARDSTICKS = ("average", "max", "subsampling")

Severity = Literal["wrong", "waste", "note"]


@dataclass(frozen=True)
class Flag:
    """Something about a layer that deserves a look, and what to do about it.

    ``severity`` is ``wrong`` where values are lost or falsified, ``waste`` where the same result
    costs less, and ``note`` for what stands in the way of a later step.
    """

    kind: str
    severity: Severity
    text: str
    fix: str


@dataclass(frozen=True)
class Loss:
    """Four measures of what a layer loses. They disagree by nature; no sum of them means anything.

    :mod:`poolkit.inspection.measures` defines each. None is what has no such measure.

    Attributes:
        reconstruction: R² of the best linear upsampling of the output; 1 loses nothing.
        shift_error: difference between pooling a shifted input and shifting the pooled one,
            normalised, 0 to 2; 0 is stable.
        aliasing: share of the energy that lies above the new Nyquist limit when subsampled, 0..1.
        gradient_coverage: share of the inputs that get any gradient.
        gradient_top: share of an output's gradient that its best input gets, averaged.
    """

    reconstruction: float | None = None
    shift_error: float | None = None
    aliasing: float | None = None
    gradient_coverage: float | None = None
    gradient_top: float | None = None


#: The measures in order, each with its name for readers and whether more of it is better.
MEASURES: tuple[tuple[str, str, bool | None], ...] = (
    ("reconstruction", "reconstruction R²", True),
    ("shift_error", "shift error", False),
    ("aliasing", "aliasing", False),
    ("gradient_coverage", "gradient coverage", True),
    ("gradient_top", "share of the top input", None),
)


@dataclass(frozen=True)
class Spectrum:
    """Mean power at radial frequencies, in cycles per input position, before and after smoothing.

    ``before`` is the layer's input, ``after`` what it subsamples; both relative to the largest
    of ``before``. ``nyquist`` is the limit of the output: what lies above it aliases.
    """

    frequency: list[float]
    before: list[float]
    after: list[float]
    nyquist: float


@dataclass
class LayerPictures:
    """The pictures of one layer, as PNGs, with the numbers that describe them.

    Attributes:
        strip: a row for each of up to four channels; ``columns`` says what stands side by side.
            Before, after and brought back up have one scale, from ``low`` to ``high`` of the
            channel; the difference has half of that range to either side of 0.
        channels: for each row its channel and the range, mean and difference of its values.
        shape: height and width of the map shown; ``whole`` is the map's, of which it is the middle.
        gradient: how often each input position gets gradient, averaged over channels.
    """

    strip: bytes = field(repr=False)
    strip_size: tuple[int, int]
    columns: list[str]
    channels: list[ChannelRow]
    shape: tuple[int, int]
    whole: tuple[int, int]
    after_whole: tuple[int, int]
    gradient: bytes | None = field(default=None, repr=False)
    gradient_range: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class ChannelRow:
    """The numbers of one row of a strip: of the whole map of this channel, in the first sample.

    ``after_channel`` is another one only where channels are mixed: the row then shows the channels
    that vary most of each.
    """

    channel: int
    after_channel: int
    low: float
    high: float
    before_mean: float
    after_mean: float
    difference: float | None
    """Root mean square of what the way down and up again has changed; None without a way up."""


@dataclass
class LayerRecord:
    """One pooling that ran. Times are medians in milliseconds, shapes are of this run.

    Attributes:
        id: a stable name for links: of the module, or of the call and its place.
        name: qualified name of the module, or of the module in which the call stands.
        kind: ``module``, ``function``, ``reduction``, ``node`` (of an ONNX graph) or
            ``convolution``.
        operation: torch's name of the function, as ``max_pool2d``.
        words, window: the same for readers: ``max`` and ``3×3, stride 2``.
        aliases: other names of the same module, where it is shared.
        source: ``net.py:42``, the line that calls it.
        call, calls: which run of this layer it is, from 1, and of how many.
        kernel_size, stride, padding, dilation: for each axis; ``padding`` as (before, after);
            None where the window is not a sliding one.
        ceil_mode, count_include_pad: None where the operation has no such choice.
        producers, consumers: what makes the input, and what reads the output.
        kept: share of the values that are left, per channel: output / input positions.
        bytes_moved: bytes of the input and the output, each once: what a kernel must at least move.
        receptive_field: input positions seen along each axis, never more than there are.
        jump: input positions between neighbouring outputs; ``offset``: input coordinate of the
            centre of the first output.
        input_extent: how many there are; ``whole_input`` says whether all are seen.
        zeros: share of the input's values that are zero.
        dead_channels: channels whose values are all equal, of ``channels``.
        dropped: share of the input's positions that no window sees.
        misdivided: share of the outputs of a mean whose divisor is not the number of values seen.
        torch_share: time in torch as a share of the whole model's.
        torch_saved, poolkit_saved: bytes that the layer keeps alive for its backward.
        loss: what this layer loses, and ``yardsticks`` what others would with the same window.
        places: share of the gradient that each place of the window gets: where the maximum sits.
        note: why a figure is missing, or what else to know.
    """

    index: int
    id: str
    name: str
    kind: str
    operation: str
    words: str
    window: str
    arguments: dict[str, Any]
    source: str
    aliases: list[str]
    dtype: str
    layout: str
    in_shape: list[int]
    out_shape: list[int]
    kept: float
    receptive_field: list[int] | None
    input_extent: list[int] | None
    whole_input: bool
    call: int = 1
    calls: int = 1
    kernel_size: list[int] | None = None
    stride: list[int] | None = None
    padding: list[list[int]] | None = None
    dilation: list[int] | None = None
    ceil_mode: bool | None = None
    count_include_pad: bool | None = None
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    bytes_moved: int = 0
    jump: list[float] | None = None
    offset: list[float] | None = None
    zeros: float | None = None
    dead_channels: int | None = None
    channels: int | None = None
    dropped: float | None = None
    misdivided: float | None = None
    torch_ms: float | None = None
    poolkit_ms: float | None = None
    speedup: float | None = None
    torch_share: float | None = None
    poolkit_share: float | None = None
    torch_saved: int | None = None
    poolkit_saved: int | None = None
    loss: Loss | None = None
    yardsticks: dict[str, Loss] = field(default_factory=dict)
    places: list[list[float]] | None = None
    spectrum: Spectrum | None = None
    flags: list[Flag] = field(default_factory=list)
    note: str = ""
    pictures: LayerPictures | None = field(default=None, repr=False)

    @property
    def is_pooling(self) -> bool:
        """False for a strided convolution, which makes maps smaller but is no pooling."""
        return self.kind != "convolution"

    @property
    def likeness(self) -> tuple[Any, ...]:
        """What layers of identical blocks have in common."""
        return (self.words, self.window, self.dtype, self.layout, *self.in_shape, *self.out_shape)


@dataclass
class AccuracyRecord:
    """Share of labelled samples a network gets right, with each kind of pooling."""

    network: str
    torch: float
    poolkit: float
    averaged: float


@dataclass
class Photograph:
    """A photograph as JPEG with what was found in it, in pixels of the JPEG."""

    jpeg: bytes = field(repr=False)
    width: int
    height: int
    boxes: list[tuple[float, float, float, float]]
    landmarks: list[list[tuple[float, float]]]
    probabilities: list[float]
    caption: str


@dataclass
class Sample:
    """The first image of an input, to draw on it what a layer sees."""

    png: bytes = field(repr=False)
    height: int
    width: int


@dataclass
class Findings:
    """The poolings of one model on one input, in order of execution."""

    model_name: str
    inputs: list[str]
    layers: list[LayerRecord]
    model_ms: float | None
    threads: int
    versions: dict[str, str]
    accuracy: list[AccuracyRecord] | None = None
    photograph: Photograph | None = None
    samples: list[Sample] = field(default_factory=list)

    def sample_of(self, layer: LayerRecord) -> Sample | None:
        """The image that a layer looks at, if its input is one."""
        extent = layer.input_extent
        return next((s for s in self.samples if [s.height, s.width] == extent), None)

    @property
    def poolings(self) -> list[LayerRecord]:
        """The layers without the strided convolutions."""
        return [layer for layer in self.layers if layer.is_pooling]

    @property
    def flagged(self) -> list[LayerRecord]:
        return [layer for layer in self.layers if layer.flags]

    @property
    def torch_share(self) -> float | None:
        """Share of the model's time spent in the poolings, with torch's kernels."""
        return _total([layer.torch_share for layer in self.poolings])

    @property
    def poolkit_share(self) -> float | None:
        """The same with poolkit's kernels, as a share of the model's time with torch's."""
        return _total([layer.poolkit_share for layer in self.poolings])

    @property
    def saved(self) -> tuple[int, int]:
        """Bytes kept for backward by all layers measured in both: torch, poolkit."""
        both = [
            (layer.torch_saved, layer.poolkit_saved)
            for layer in self.layers
            if layer.torch_saved is not None and layer.poolkit_saved is not None
        ]
        return sum(t for t, _ in both), sum(p for _, p in both)


def as_data(layer: LayerRecord) -> dict[str, Any]:
    """Everything about a layer but its pictures."""
    return {f.name: _plain(getattr(layer, f.name)) for f in fields(layer) if f.name != "pictures"}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _total(shares: list[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) if known else None
