"""Whether the machine stayed as fast as it was: fixed work, timed again and again during a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

# A loop over integers depends on the clock alone; a copy that no cache holds, on the memory too.
# One thread does both, and the fastest of a few counts.
LOOP = 400_000
COPY_BYTES = 64 << 20
REPEATS = 3
# What is said to be unsteady: a change from the first third of the probes to the last, as when a
# processor gets hot; one slow probe among others, as when a neighbour wakes up; and time that the
# host gave to others.
LOOP_CHANGE = 0.05
COPY_CHANGE = 0.10
SPREAD = 0.25
STOLEN = 0.01


@dataclass(frozen=True)
class Probe:
    """One look at the machine."""

    before: str  # what was measured next
    loop_ms: float
    copy_ms: float


@dataclass
class Calibration:
    """The probes of a run in their order, and the share of processor time that the host took."""

    probes: list[Probe] = field(default_factory=list)
    stolen: float | None = None

    def remarks(self) -> list[str]:
        """What the probes found: always a line of figures, and one for each thing that is not
        steady."""
        if not self.probes:
            return []
        loop = [probe.loop_ms for probe in self.probes]
        copy = [probe.copy_ms for probe in self.probes]
        stolen = "" if self.stolen is None else f"; {self.stolen:.1%} of processor time stolen"
        lines = [
            f"Calibration, {len(self.probes)} times during the run: a fixed loop took "
            f"{min(loop):.2f} to {max(loop):.2f} ms (from the first third to the last "
            f"{change(loop):+.1%}), a fixed copy {min(copy):.2f} to {max(copy):.2f} ms "
            f"({change(copy):+.1%}){stolen}."
        ]
        lines += self._unsteady("loop", loop, LOOP_CHANGE) + self._unsteady(
            "copy", copy, COPY_CHANGE
        )
        if self.stolen is not None and self.stolen > STOLEN:
            lines.append(f"Stolen: the host gave {self.stolen:.1%} of the time to other machines.")
        return lines

    def _unsteady(self, name: str, times: Sequence[float], most: float) -> list[str]:
        lines = []
        moved, slowest, usual = change(times), max(times), median(times)
        if abs(moved) > most:
            became = "Throttled: the fixed {} became slower"
            if moved < 0:
                became = "Unsteady: the fixed {} became faster"
            lines.append(
                f"{became.format(name)} by {abs(moved):.1%} during the run. Ratios are taken "
                "within a round and stand; compare no times of different rows."
            )
        if slowest > (1 + SPREAD) * usual:
            before = self.probes[times.index(slowest)].before
            lines.append(
                f"Unsteady: the fixed {name} took {slowest / usual:.2f} times as long as it mostly "
                f"did before {before}."
            )
        return lines

    @property
    def steady(self) -> bool:
        return len(self.remarks()) <= 1


class Calibrator:
    """Takes the probes of a run."""

    def __init__(self) -> None:
        self.found = Calibration()
        self._source = np.ones(COPY_BYTES, np.uint8)
        self._target = np.ones(COPY_BYTES, np.uint8)
        self._began = _processor_time()

    def probe(self, before: str) -> None:
        """Time the fixed work now, which takes less than a tenth of a second."""
        loop = min(_milliseconds(lambda: sum(range(LOOP))) for _ in range(REPEATS))
        copy = min(
            _milliseconds(lambda: np.copyto(self._target, self._source)) for _ in range(REPEATS)
        )
        self.found.probes.append(Probe(before, loop, copy))
        now = _processor_time()
        if self._began is not None and now is not None and now[1] > self._began[1]:
            self.found.stolen = (now[0] - self._began[0]) / (now[1] - self._began[1])


def change(times: Sequence[float]) -> float:
    """The median of the last third over that of the first, minus 1.

    >>> change([1.0, 1.0, 9.0, 1.0, 1.5, 1.5])
    0.5
    """
    third = max(1, len(times) // 3)
    return median(times[-third:]) / median(times[:third]) - 1


def _milliseconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return 1e3 * (perf_counter() - began)


def _processor_time() -> tuple[int, int] | None:
    """Ticks of all cores: stolen by the host, and in all. None where the system does not say."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    ticks = [int(field) for field in first.split()[1:9]]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None
