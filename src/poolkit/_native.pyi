"""The compiled kernels; see csrc/bind.cpp. Addresses are those of contiguous arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_AXES: int

def isa() -> str: ...
def available_isas() -> list[str]: ...
def use_isa(name: str) -> bool: ...
def has_kernel(reduction: str, dtype: str, result: str) -> bool: ...
def has_activation(name: str, dtype: str) -> bool: ...
def activation_gradient(
    name: str, dtype: str, parameter: float, grad: int, x: int, n: int, threads: int, /
) -> None: ...
def pool_bags(
    reduction: str,
    dtype: str,
    parameter: float,
    table: int,
    other: int,
    index: int,
    begin: int,
    count: int,
    bags: int,
    width: int,
    entries: int,
    weights: int,
    divisors: int,
    out: int,
    codes: int,
    threads: int,
) -> None: ...
def scatter_bags(
    dtype: str,
    grad: int,
    codes: int,
    index: int,
    begin: int,
    count: int,
    bags: int,
    width: int,
    weights: int,
    out: int,
    threads: int,
) -> None: ...
def transpose_bags(
    index: int,
    begin: int,
    count: int,
    bags: int,
    rows: int,
    begin_of: int,
    count_of: int,
    entry: int,
    bag: int,
) -> None: ...
def pool_regions(
    step: str,
    dtype: str,
    rule: int,
    channels_last: bool,
    shape: Sequence[int],
    boxes: int,
    rows: int,
    columns: int,
    image: int,
    place: int,
    grid: int,
    x: int,
    grad: int,
    out: int,
    codes: int,
    code_bytes: int,
    nowhere: int,
    threads: int,
) -> None: ...

class EventSummary:
    @property
    def nbytes(self) -> int: ...

class EventLog:
    def __init__(
        self,
        events: int,
        key: int,
        time: int,
        tie: int,
        known: int,
        row: int,
        weight: int,
        table: int,
        width: int,
        wide: bool,
        keys: int,
        key_count: int,
        summaries: Sequence[EventSummary],
        threads: int,
        /,
    ) -> None: ...
    def summary(self, reductions: Sequence[tuple[str, float]], /) -> EventSummary: ...
    def pool(
        self,
        queries: int,
        key: int,
        time: int,
        views: Sequence[tuple[int, int, int]],
        jobs: Sequence[tuple[str, int, float, int, int]],
        threads: int,
        /,
    ) -> None: ...
    def visible(
        self,
        queries: int,
        key: int,
        time: int,
        view: tuple[int, int, int],
        offsets: int,
        rows: int,
        weights: int,
        threads: int,
        /,
    ) -> None: ...

class Plan:
    def __init__(
        self,
        reduction: str,
        dtype: str,
        result: str,
        exponent: float,
        second: float,
        sizes: Sequence[int],
        begins: Sequence[NDArray[np.int64]],
        counts: Sequence[NDArray[np.int64]],
        steps: Sequence[int],
        divisors: Sequence[NDArray[np.int64]],
        activation: str,
        parameter: float,
        behind: bool,
    ) -> None: ...
    @property
    def position_bytes(self) -> int: ...
    def forward(
        self, x: int, out: int, positions: int, outer: int, inner: int, threads: int, /
    ) -> None: ...
    def forward_ahead(
        self, x: int, out: int, positions: int, outer: int, inner: int, threads: int, /
    ) -> None: ...
    def scatter(
        self, grad: int, positions: int, out: int, outer: int, inner: int, threads: int, /
    ) -> None: ...
    def indices(
        self, positions: int, out: int, outer: int, inner: int, threads: int, /
    ) -> None: ...
