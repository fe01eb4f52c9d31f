"""Examples of every registered reduction and window, over which the tests iterate.

`test_oracle.py` fails when a registered class has none, so that nothing is added untested.
"""

from __future__ import annotations

from poolkit.reductions import (
    BiInteraction,
    First,
    GeM,
    Last,
    LogSumExp,
    Lp,
    Max,
    Mean,
    Median,
    Min,
    Quantile,
    Reduction,
    Soft,
    SqrtN,
    Std,
    Sum,
    TopK,
)
from poolkit.windows import Adaptive, Global, Pyramid, Sliding, Window

REDUCTION_EXAMPLES: dict[type[Reduction], list[Reduction]] = {
    Max: [Max()],
    Min: [Min()],
    Sum: [Sum()],
    Mean: [
        Mean(),
        Mean(count_include_pad=False),
        Mean(divisor=3),
        Mean(divisor=-2),
        Mean(result="same"),
    ],
    Lp: [Lp(1), Lp(2), Lp(3), Lp(1.5)],
    GeM: [GeM(), GeM(p=1), GeM(p=2.5, eps=0.5)],
    LogSumExp: [LogSumExp(), LogSumExp(r=3)],
    Soft: [Soft(), Soft(beta=0.25)],
    Std: [Std(), Std(correction=1)],
    BiInteraction: [BiInteraction()],
    SqrtN: [SqrtN()],
    First: [First()],
    Last: [Last()],
    Median: [Median()],
    Quantile: [Quantile(0), Quantile(0.3), Quantile(1)],
    TopK: [TopK(1), TopK(3)],
}

# For each number of spatial axes. Padding larger than the window leaves windows that see nothing.
WINDOW_EXAMPLES: dict[type[Window], dict[int, list[Window]]] = {
    Sliding: {
        1: [
            Sliding(1),
            Sliding(3),
            Sliding(4, stride=1),
            Sliding(7, stride=1, padding=3),
            Sliding(3, stride=2, padding=1),
            Sliding(5, stride=2, padding=((0, 3),), ceil_mode=True),
            Sliding(2, stride=3, padding=((4, 5),)),
            Sliding(3, stride=1, dilation=3),
            Sliding(3, stride=2, padding="same", dilation=2),
            Sliding(4, stride=3, padding="same"),
            Sliding(2, stride=5, ceil_mode=True),
        ],
        2: [
            Sliding(2),
            Sliding(3, stride=1, padding=1),
            Sliding((3, 2), stride=(2, 1), padding=((0, 1), (2, 0)), dilation=(1, 2)),
            Sliding((2, 3), padding="same", ceil_mode=True),
            Sliding(3, stride=2, padding="valid", ceil_mode=True),
            Sliding((1, 2), stride=(1, 2), padding=((3, 3), (0, 2))),
        ],
        3: [
            Sliding(2),
            Sliding((1, 3, 2), stride=1, padding=((0, 0), (1, 2), (0, 1))),
            Sliding((3, 1, 2), stride=2, padding="same", dilation=(1, 1, 2)),
        ],
        4: [Sliding((2, 1, 2, 1), stride=(1, 2, 2, 1), padding=((1, 0), (0, 0), (0, 1), (0, 0)))],
    },
    Adaptive: {
        1: [Adaptive(1), Adaptive(4), Adaptive(20), Adaptive(None)],
        2: [Adaptive(3), Adaptive((None, 2)), Adaptive((8, 4))],
        3: [Adaptive((2, None, 3))],
        4: [Adaptive((2, 1, 2, None))],
    },
    Global: {1: [Global()], 2: [Global()], 3: [Global()], 4: [Global()]},
    Pyramid: {
        1: [Pyramid((3, 1))],
        2: [Pyramid((4, 2, 1)), Pyramid(((2, 1), (None, 1)))],
        3: [Pyramid((2, 1))],
        4: [Pyramid((1, 2))],
    },
}

REDUCTIONS = [example for examples in REDUCTION_EXAMPLES.values() for example in examples]
WINDOWS = [
    (axes, example)
    for by_axes in WINDOW_EXAMPLES.values()
    for axes, examples in by_axes.items()
    for example in examples
]

# (batch, channels, *spatial): small, because the oracle is slow, and odd, so that bins overlap.
SHAPES = {1: (2, 3, 13), 2: (2, 2, 7, 6), 3: (1, 2, 5, 4, 4), 4: (1, 2, 3, 3, 4, 3)}
