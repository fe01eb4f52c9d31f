"""The report: one table, drawn by rich or written as Markdown, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poolkit.files import write_whole
from poolkit.timing import Quartiles, Schedule

from .cases import Case
from .peers import Peer
from .runner import CaseResult, Outcome

JSON_SCHEMA = 1
# Above this load average before the start, times say more about the other programs.
BUSY_LOAD = 0.7


@dataclass(frozen=True)
class Run:
    """Everything one run of the benchmark found."""

    machine: Mapping[str, object]
    versions: Mapping[str, str]
    schedule: Schedule
    peers: Sequence[type[Peer]]
    results: Sequence[CaseResult]


# -- JSON --


def as_json(run: Run) -> dict[str, Any]:
    return {
        "schema": JSON_SCHEMA,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "settings": asdict(run.schedule),
        "notes": {peer.name: peer.note for peer in run.peers},
        "results": [_result_json(result) for result in run.results],
    }


def _result_json(result: CaseResult) -> dict[str, Any]:
    best = result.best_peer()
    drift = result.drift()
    return {
        "case": asdict(result.case),
        "threads": result.threads,
        "bytes_moved": result.case.bytes_moved,
        "peers": {name: _outcome_json(outcome) for name, outcome in result.outcomes.items()},
        "ratios": {
            "eager/poolkit": _quartiles_json(result.ratio("eager")),
            "poolkit/copy": _quartiles_json(result.ratio("poolkit", "copy")),
            "best/poolkit": _quartiles_json(result.ratio(best)) if best else None,
        },
        "best_peer": best,
        "targets": [
            {
                "against": target.against,
                "wanted": target.wanted,
                "got": _quartiles_json(target.got),
                "verdict": target.verdict,
            }
            for target in result.targets()
        ],
        "copy_drift": None if drift is None else round(drift, 3),
        "disturbed": result.disturbed,
    }


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


def _quartiles_json(quartiles: Quartiles | None) -> dict[str, float] | None:
    if quartiles is None:
        return None
    return {key: float(f"{value:.4g}") for key, value in asdict(quartiles).items()}


# -- the table, as text cells that both rich and Markdown take --


def header(run: Run) -> list[str]:
    titles = [peer.title for peer in run.peers]
    return ["case", "shape", *titles, "vs copy", "vs eager", "vs best peer", "targets"]


def row(run: Run, result: CaseResult) -> list[str]:
    best = result.best_peer()
    against_best = result.ratio(best) if best else None
    titles = {peer.name: peer.title for peer in run.peers}
    targets = ", ".join(
        f"{target.verdict} {target.wanted:g}x {titles[target.against]}"
        for target in result.targets()
    )
    return [
        result.case.name + (" (disturbed)" if result.disturbed else ""),
        _shape(result.case),
        *(_time_cell(result.outcomes.get(peer.name)) for peer in run.peers),
        _ratio_cell(result.ratio("poolkit", "copy")),
        _ratio_cell(result.ratio("eager")),
        f"{_ratio_cell(against_best)} {titles[best]}" if best and against_best else "",
        targets,
    ]


def _shape(case: Case) -> str:
    return "(" + ",".join(map(str, case.shape)) + ")"


def _time_cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if not outcome.seconds:
        return "-" if outcome.status in ("unsupported", "missing") else outcome.status.upper()
    times = Quartiles.of(outcome.seconds)
    spread = (times.high - times.low) / 2 / times.median
    return f"{_three_digits(times.median * 1e3)} ±{spread:.0%}"


def _ratio_cell(ratio: Quartiles | None) -> str:
    return f"{_three_digits(ratio.median)}x" if ratio else ""


def _three_digits(value: float) -> str:
    """
    >>> [_three_digits(value) for value in (0.00234, 0.0512, 2.4, 13.07, 174.2)]
    ['0.00234', '0.0512', '2.40', '13.1', '174']
    """
    for limit, digits in ((0.01, 5), (0.1, 4), (1, 3), (10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


CAPTION = (
    "Milliseconds per call: median ± half the inter-quartile range. Ratios are medians of ratios "
    "taken within a round. vs copy: time of poolkit / time of the copy, 1 is the limit of memory. "
    "vs eager, vs best peer: time of the peer / time of poolkit, above 1 poolkit is faster. "
    "A target is missed where the median ratio is below it, within noise where the upper "
    "quartile is not."
)


def title(run: Run, threads: int) -> str:
    machine = run.machine
    plural = "thread" if threads == 1 else "threads"
    return f"poolkit bench: {threads} {plural} of {machine['usable_cores']}, {machine['cpu']}"


def remarks(run: Run, threads: int) -> list[str]:
    """What the cells leave out: what a call of each peer does, reasons, wrong answers, noise."""
    results = [result for result in run.results if result.threads == threads]
    lines = [f"{peer.title} ({run.versions[peer.name]}): {peer.note}." for peer in run.peers]
    for peer in run.peers:
        cases_by_reason: dict[str, list[str]] = {}
        for result in results:
            outcome = result.outcomes.get(peer.name)
            if outcome and not outcome.seconds:
                reason = f"{outcome.status}: {outcome.reason}"
                cases_by_reason.setdefault(reason, []).append(result.case.name)
        for reason, names in cases_by_reason.items():
            where = "every case" if len(names) == len(results) > 1 else "; ".join(names)
            lines.append(f"{peer.title}, {reason} [{where}]")
    load = run.machine["load_average"]
    if isinstance(load, float) and load > BUSY_LOAD:
        lines.append(
            f"Busy: the load average was {load} at the start. Other programs take cores away, and "
            "whoever uses all threads waits for the one that lost its core: distrust every row."
        )
    disturbed = [
        f"{result.case.name} {drift:+.0%}"
        for result in results
        if result.disturbed and (drift := result.drift()) is not None
    ]
    if disturbed:
        lines.append(
            "Disturbed: the copy's time changed by more than 20 % between the first and the last "
            f"rounds; distrust {', '.join(disturbed)}."
        )
    return lines


def thread_counts(run: Run) -> list[int]:
    return list(dict.fromkeys(result.threads for result in run.results))


def as_markdown(run: Run) -> str:
    machine = run.machine
    parts = [
        f"Measured {machine['date']} on {machine['cpu']}, {machine['usable_cores']} cores, "
        f"{machine['os']}, load average {machine['load_average']} at the start.",
    ]
    columns = header(run)
    for threads in thread_counts(run):
        table = [columns, ["---"] * len(columns)]
        table += [row(run, result) for result in run.results if result.threads == threads]
        lines = ["| " + " | ".join(cell or " " for cell in cells) + " |" for cells in table]
        parts += [f"### {title(run, threads)}", "\n".join(lines), CAPTION]
        parts.append("\n".join(f"- {line}" for line in remarks(run, threads)))
    return "\n\n".join(parts) + "\n"


def print_report(run: Run) -> None:
    """The tables on the terminal; as Markdown where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(as_markdown(run))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 220  # in a file or a pipe: nothing is gained by breaking lines at 80
    for threads in thread_counts(run):
        table = Table(title=title(run, threads), caption=CAPTION, caption_justify="left")
        for index, name in enumerate(header(run)):
            table.add_column(name, justify="left" if index < 2 else "right")
        for result in run.results:
            if result.threads == threads:
                table.add_row(*map(Text, row(run, result)), style=_style(result))
        console.print(table)
        for line in remarks(run, threads):
            console.print(Text(f"- {line}"), style="dim")


def _style(result: CaseResult) -> str:
    if any(outcome.status == "wrong" for outcome in result.outcomes.values()):
        return "bold red"
    verdicts = {target.verdict for target in result.targets()}
    return "red" if "missed" in verdicts else "yellow" if "within noise" in verdicts else ""


def write_json(path: Path, run: Run) -> None:
    write_whole(path, json.dumps(as_json(run), indent=2) + "\n")


def write_markdown(path: Path, run: Run) -> None:
    write_whole(path, as_markdown(run))
