"""The reports of both kinds of runs: as JSON, as Markdown with plots, and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poolkit.files import write_whole
from poolkit.timing import Quartiles, Schedule

from . import plots, tables
from .allocation import Allocation
from .calibration import Calibration
from .cases import BEST, ONE_THREAD, Target
from .document import Section, as_markdown, in_words, print_sections
from .peers import Peer
from .runner import CaseResult, Outcome
from .scaling import SERIES, Scaling, growth
from .targets import TargetResult, geometric_mean, results_of, scaling, summary, unmeasured

JSON_SCHEMA = 2
# Above this load average before the start, times say more about the other programs.
BUSY_LOAD = 0.7


@dataclass(frozen=True)
class Run:
    """What every run states: the command that made it, the machine, and how steady that was."""

    command: str
    machine: Mapping[str, object]
    calibration: Calibration
    schedule: Schedule

    def heading(self) -> dict[str, Any]:
        """The part of the JSON that both kinds have."""
        return {
            "schema": JSON_SCHEMA,
            "command": self.command,
            "machine": dict(self.machine),
            "settings": asdict(self.schedule),
            "calibration": {**asdict(self.calibration), "steady": self.calibration.steady},
        }

    def measured(self) -> str:
        machine = self.machine
        return (
            f"Measured by `{self.command}` on {machine['date']}: {machine['cpu']}, "
            f"{machine['usable_cores']} cores, last cache {machine['last_cache']}, "
            f"{machine['os']}. Instruction sets: poolkit {machine['poolkit_isa']}, torch "
            f"{machine['torch_isa']}{self._limits()}."
        )

    def _limits(self) -> str:
        limits = self.machine.get("peers_limited_by")
        if not isinstance(limits, dict) or not limits:
            return ""
        told = ", ".join(f"{name}={value}" for name, value in limits.items())
        return f", the other peers limited by {told} (ONNX Runtime by nothing)"

    def noise(self) -> list[str]:
        """How far the figures are to be trusted."""
        lines = self.calibration.remarks()
        load = self.machine["load_average"]
        if isinstance(load, float) and load > BUSY_LOAD:
            lines.append(
                f"Busy: the load average was {load} at the start. Other programs take cores away, "
                "and whoever uses all threads waits for the one that lost its core: distrust every "
                "row."
            )
        return lines

    def wrong(self) -> bool:
        """Whether an answer of poolkit was wrong, or it failed to give one."""
        return False

    def as_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def sections(self) -> list[Section]:
        """The tables."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """What the tables come to."""
        raise NotImplementedError

    def plots(self) -> dict[str, str]:
        """Pictures as SVG, by the end of their file name."""
        raise NotImplementedError


@dataclass(frozen=True)
class CaseRun(Run):
    """The case table, with each number of threads."""

    versions: Mapping[str, str]
    peers: Sequence[type[Peer]]
    results: Sequence[CaseResult]
    allocations: Sequence[Allocation] = ()
    mean_targets: Sequence[Target] = ()  # of the geometric mean, where all cases were measured

    @property
    def titles(self) -> dict[str, str]:
        return {
            **{peer.name: peer.title for peer in self.peers},
            BEST: "the best peer",
            ONE_THREAD: "one thread",
        }

    def threads(self) -> list[int]:
        return sorted({result.threads for result in self.results})

    def of(self, threads: int) -> list[CaseResult]:
        return [result for result in self.results if result.threads == threads]

    def alone(self, result: CaseResult) -> CaseResult | None:
        """The same case on one thread."""
        return next((one for one in self.of(1) if one.case.name == result.case.name), None)

    def targets_of(self, result: CaseResult) -> list[TargetResult]:
        return results_of(result, self.alone(result))

    def targets(self, threads: int) -> list[TargetResult]:
        """Of all cases, and of their geometric mean."""
        results = self.of(threads)
        found = [target for result in results for target in self.targets_of(result)]
        mean = geometric_mean(results)
        if mean is not None:
            got = Quartiles(mean, mean, mean)
            name = "geometric mean of all cases"
            found += [TargetResult(name, target, got) for target in self.mean_targets]
        return found

    def wrong(self) -> bool:
        ours = [
            result.outcomes["poolkit"] for result in self.results if "poolkit" in result.outcomes
        ]
        others = [outcome for result in self.results for outcome in result.others.values()]
        return any(outcome.status in ("wrong", "failed") for outcome in (*ours, *others))

    def summary(self) -> list[str]:
        lines = []
        for threads in self.threads():
            mean = geometric_mean(self.of(threads))
            fast = (
                f"{mean:.2f}x as fast as the best peer of each case in the geometric mean; "
                if mean is not None
                else ""
            )
            met = summary(self.targets(threads), self.titles)
            lines.append(f"{in_words(threads)}: {fast}{met}{self._left(threads)}.")
        return lines

    def _left(self, threads: int) -> str:
        """The targets whose other side did not run."""
        left = [
            f"{result.case.name} (against {self.titles.get(target.against, target.against)})"
            for result in self.of(threads)
            for target in unmeasured(result, self.alone(result))
        ]
        return f"; not measured: {', '.join(left)}" if left else ""

    def sections(self) -> list[Section]:
        sections = []
        for threads in self.threads():
            results = self.of(threads)
            compared = threads > 1 and bool(self.of(1))
            rows = [
                tables.case_row(
                    result,
                    self.alone(result),
                    self.targets_of(result),
                    self.peers,
                    self.titles,
                    compared,
                )
                for result in results
            ]
            styles = [tables.style(self.targets_of(result), result) for result in results]
            columns = tables.case_columns(self.peers, compared)
            title = f"{in_words(threads)} of {self.machine['usable_cores']}, {self.machine['cpu']}"
            sections.append(Section(title, columns, rows, styles, left=2))
        sections += [
            tables.target_section(targets, self.titles, threads)
            for threads in self.threads()
            if (targets := self.targets(threads))
        ]
        if self.allocations:
            sections.append(tables.allocation_section(self.allocations))
        notes = [
            tables.CAPTION,
            *tables.peer_remarks(self.peers, self.versions),
            *tables.reasons(self.peers, self.results),
        ]
        return [*sections, Section("How to read the tables", lines=notes)]

    def noise(self) -> list[str]:
        return [*super().noise(), *tables.disturbances(self.results)]

    def plots(self) -> dict[str, str]:
        return {"copy": plots.against_copy(self.results, self.measured_briefly())}

    def measured_briefly(self) -> str:
        return f"{self.machine['cpu']}, {self.machine['poolkit_isa']}"

    def as_json(self) -> dict[str, Any]:
        return {
            **self.heading(),
            "versions": dict(self.versions),
            "notes": {peer.name: peer.note for peer in self.peers},
            "results": [self._result_json(result) for result in self.results],
            "summary": [
                {
                    "threads": threads,
                    "geometric_mean": _rounded(geometric_mean(self.of(threads))),
                    "targets": len(self.targets(threads)),
                    "met": sum(t.verdict == "met" for t in self.targets(threads)),
                    "missed": [
                        {"case": t.subject, **_target_json(t)}
                        for t in self.targets(threads)
                        if t.verdict != "met"
                    ],
                }
                for threads in self.threads()
            ],
            "allocation": [
                {
                    **asdict(each),
                    "ms": {row: _quartiles_json(ms) for row, ms in each.ms.items()},
                    "fresh_over_again": _quartiles_json(each.fresh_over_again),
                }
                for each in self.allocations
            ],
        }

    def _result_json(self, result: CaseResult) -> dict[str, Any]:
        best = result.best_peer()
        case = asdict(result.case)
        del case["targets"]  # with what was measured, below
        return {
            "case": case,
            "threads": result.threads,
            "bytes_moved": result.case.bytes_moved,
            "peers": {name: _outcome_json(outcome) for name, outcome in result.outcomes.items()},
            "other_cases": {name: _outcome_json(o) for name, o in result.others.items()},
            "ratios": {
                "eager/poolkit": _quartiles_json(result.ratio("eager")),
                "poolkit/copy": _quartiles_json(result.ratio("poolkit", "copy")),
                "best/poolkit": _quartiles_json(result.ratio(best)) if best else None,
                "one thread/poolkit": _quartiles_json(scaling(result, self.alone(result))),
            },
            "best_peer": best,
            "targets": [_target_json(target) for target in self.targets_of(result)],
            "copy_drift": _rounded(result.drift()),
            "disturbed": result.disturbed,
        }


@dataclass(frozen=True)
class ScalingRun(Run):
    """One pooling of more and more elements."""

    scaling: Scaling

    def threads(self) -> list[int]:
        return sorted({point.threads for point in self.scaling.points})

    def wrong(self) -> bool:
        return any(point.wrong for point in self.scaling.points)

    def summary(self) -> list[str]:
        return []

    def sections(self) -> list[Section]:
        return [tables.scaling_section(self.scaling, threads) for threads in self.threads()]

    def plots(self) -> dict[str, str]:
        return {"time": plots.against_elements(self.scaling.points, str(self.machine["cpu"]))}

    def as_json(self) -> dict[str, Any]:
        points = self.scaling.points
        return {
            **self.heading(),
            "series": SERIES,
            "points": [
                {
                    "elements": point.elements,
                    "threads": point.threads,
                    "ms": {series: _quartiles_json(ms) for series, ms in point.ms.items()},
                    "ns_per_element": {s: _rounded(point.ns_per_element(s)) for s in point.ms},
                    "wrong": point.wrong,
                }
                for point in points
            ],
            "left_out": list(self.scaling.left_out),
            "growth": {
                in_words(threads): {
                    series: _rounded(growth([p for p in points if p.threads == threads], series))
                    for series in SERIES
                }
                for threads in self.threads()
            },
        }


# -- JSON --


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    if not outcome.seconds:
        return {"status": outcome.status, "reason": outcome.reason}
    times = Quartiles.of([seconds * 1e3 for seconds in outcome.seconds])
    return {
        "status": outcome.status,
        "ms": _quartiles_json(times),
        "rounds": len(outcome.seconds),
        "calls_per_sample": outcome.calls_per_sample,
    }


def _target_json(result: TargetResult) -> dict[str, Any]:
    target = result.target
    return {
        "against": target.against,
        "at_most" if target.at_most else "at_least": target.wanted,
        "got": _quartiles_json(result.got),
        "excess": _rounded(result.excess),
        "verdict": result.verdict,
    }


def _quartiles_json(quartiles: Quartiles | None) -> dict[str, float | None] | None:
    if quartiles is None:
        return None
    return {key: _rounded(value) for key, value in asdict(quartiles).items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


# -- the three forms --


def print_report(run: Run) -> None:
    """The tables on the terminal, and what they come to at the end, where it is seen."""
    last = Section("In short", lines=[run.measured(), *run.noise(), *run.summary()])
    print_sections([*run.sections(), last])


def write_json(path: Path, run: Run) -> None:
    write_whole(path, json.dumps(run.as_json(), indent=2) + "\n")


def write_markdown(path: Path, run: Run) -> None:
    """The report, and its plots in the folder `images` beside it."""
    lines = [f"- {line}" for line in (*run.summary(), *run.noise())]
    parts = ["# Measured", run.measured(), "\n".join(lines)]
    if reason := plots.missing():
        parts.append(f"Without plots: {reason}.")
    else:
        folder = path.parent / "images"
        folder.mkdir(exist_ok=True)
        for name, picture in run.plots().items():
            file = folder / f"{path.stem}-{name}.svg"
            write_whole(file, picture)
            parts.append(f"![{plots.TITLES[name]}](images/{file.name})")
    parts += map(as_markdown, run.sections())
    write_whole(path, "\n\n".join(parts) + "\n")
