"""``poolkit bench``: poolkit against its peers and against the copy of the same bytes, in one run.

>>> from poolkit.benchmark import main
>>> main(quick=True, threads=[1, 2], cases="stem", json=Path("bench.json"))  # doctest: +SKIP
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .instruction_sets import limited_to

if TYPE_CHECKING:
    from .report import CaseRun, ScalingRun

__all__ = ["main"]


def main(
    quick: bool = False,
    json: Path | None = None,
    markdown: Path | None = None,
    threads: Sequence[int] | None = None,
    cases: str | None = None,
    peers: str | None = None,
    isa: str | None = None,
    scaling: bool = False,
) -> int:
    """Measure, print the tables, write the documents; 1 if an answer of poolkit is wrong, else 0.

    Args:
        quick: fewer cases and rounds, and torch.compile left out (compiling takes longer than
            measuring) unless `peers` names it.
        threads: one table for each count; torch's own count where not given.
        cases, peers: comma-separated names or shell patterns.
        isa: an instruction set, for poolkit and for all peers that let it be chosen.
        scaling: one pooling of more and more elements, instead of the cases.

    Raises:
        PoolValueError: where nothing fits these.

    A missed target is marked and is no error: times depend on the machine.
    """
    options = {
        "--quick": quick, "--scaling": scaling, "--isa": isa, "--cases": cases, "--peers": peers,
        "--threads": ",".join(map(str, threads or [])), "--markdown": markdown,
    }  # fmt: skip
    # Before torch, which takes a second to import, and the peers, which read the environment then.
    with limited_to(isa) as told:
        import torch

        from . import report
        from .cases import CaseError

        counts = list(dict.fromkeys(threads or [torch.get_num_threads()]))
        if min(counts) < 1:
            raise CaseError(f"threads are counted from 1, not {min(counts)}")
        run: CaseRun | ScalingRun
        if scaling:
            run = _measure_scaling(_command(options), told, quick, counts)
        else:
            run = _measure_cases(_command(options), told, quick, counts, cases, peers)
        report.print_report(run)
        if json is not None:
            report.write_json(Path(json), run)
        if markdown is not None:
            report.write_markdown(Path(markdown), run)
        return 1 if run.wrong() else 0


def _measure_cases(
    command: str,
    told: Mapping[str, str],
    quick: bool,
    counts: Sequence[int],
    patterns: str | None,
    peers: str | None,
) -> CaseRun:
    from . import allocation, runner
    from .calibration import Calibrator
    from .cases import load_table, select
    from .document import in_words
    from .engines import OnnxRuntime, OpenVINO
    from .machine import describe_machine, peer_versions
    from .peers import TORCH_PEERS, Peer
    from .report import CaseRun
    from .xla import Jax

    # The limit comes last in the table, after all that is held against it.
    everyone: list[type[Peer]] = [*TORCH_PEERS[:-1], OnnxRuntime, OpenVINO, Jax, TORCH_PEERS[-1]]
    kinds = {peer.name: peer for peer in everyone}
    table = load_table()
    offered = [case for case in table.cases if not quick or patterns or case.quick]
    chosen = select([case.name for case in offered], patterns)
    names = select(list(kinds), peers)
    if quick and peers is None:
        names.remove("compile")

    schedule = runner.QUICK if quick else runner.FULL
    selected = [kinds[name] for name in names]
    missing = {peer.name: reason for peer in selected if (reason := peer.missing())}
    machine = describe_machine(told)
    calibrator = Calibrator()
    results, allocations = [], []
    for case in (case for case in offered if case.name in chosen):
        against = {target.against for target in case.targets}
        others = [other for other in table.cases if other.name in against]
        # All counts of a case one after the other: the machine is then much the same.
        for count in counts:
            what = f"{case.name}, {in_words(count)}"
            _tell(what)
            calibrator.probe(what)
            present = [peer(count) for peer in selected if peer.name not in missing]
            result = runner.measure(case, present, schedule, count, others)
            for name, reason in missing.items():
                result.outcomes[name] = runner.Outcome("missing", reason)
            results.append(result)
            if case.allocation and "poolkit" in names and allocation.available():
                allocations.append(allocation.measure(case, count, schedule))
    calibrator.probe("the end")
    return CaseRun(
        command,
        machine,
        calibrator.found,
        schedule,
        peer_versions(selected),
        selected,
        results,
        allocations,
        table.geometric_mean if len(chosen) == len(table.cases) else (),
    )


def _measure_scaling(
    command: str, told: Mapping[str, str], quick: bool, counts: Sequence[int]
) -> ScalingRun:
    from . import scaling
    from .calibration import Calibrator
    from .machine import describe_machine
    from .report import ScalingRun

    machine = describe_machine(told)
    calibrator = Calibrator()
    schedule = scaling.QUICK if quick else scaling.FULL
    planes = scaling.QUICK_PLANES if quick else scaling.PLANES
    found = scaling.measure(planes, counts, schedule, calibrator, _tell)
    calibrator.probe("the end")
    return ScalingRun(command, machine, calibrator.found, schedule, found)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _command(options: Mapping[str, object]) -> str:
    """The command line that measures the same."""
    words = ["poolkit", "bench"]
    for name, value in options.items():
        if value:
            words += [name] if value is True else [name, str(value)]
    return shlex.join(words)
