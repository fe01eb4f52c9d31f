"""``poolkit bench``: poolkit against its peers and against the copy of the same bytes, in one run.

>>> from poolkit.benchmark import main
>>> main(quick=True, threads=[2], cases="stem", json=Path("bench.json"))  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]


def main(
    quick: bool = False,
    json: Path | None = None,
    markdown: Path | None = None,
    threads: list[int] | None = None,
    cases: str | None = None,
    peers: str | None = None,
) -> int:
    """Measure, print the table, write the documents; 1 if an answer of poolkit is wrong, else 0.

    quick: fewer cases and rounds, and torch.compile left out (compiling takes longer than
    measuring) unless `peers` names it. threads: one table for each count; torch's own count where
    not given. cases, peers: comma-separated names or shell patterns. 2 if nothing fits those.
    A missed target is marked in the table and is no error: times depend on the machine.
    """
    # torch takes a second to import, which `poolkit --help` should not wait for.
    import torch

    from . import report, runner
    from .cases import CaseError, load_cases, select
    from .engines import OnnxRuntime, OpenVINO
    from .machine import describe_machine, peer_versions
    from .peers import TORCH_PEERS, Peer

    # The limit comes last in the table, after all that is held against it.
    everyone: list[type[Peer]] = [*TORCH_PEERS[:-1], OnnxRuntime, OpenVINO, TORCH_PEERS[-1]]
    kinds = {peer.name: peer for peer in everyone}
    counts = threads or [torch.get_num_threads()]
    try:
        table = [case for case in load_cases() if not quick or cases or case.quick]
        chosen = set(select([case.name for case in table], cases))
        names = select(list(kinds), peers)
        if min(counts) < 1:
            raise CaseError(f"threads are counted from 1, not {min(counts)}")
    except CaseError as error:
        print(f"poolkit bench: {error}", file=sys.stderr)
        return 2
    if quick and peers is None:
        names.remove("compile")

    schedule = runner.QUICK if quick else runner.FULL
    selected = [kinds[name] for name in names]
    missing = {peer.name: reason for peer in selected if (reason := peer.missing())}
    machine = describe_machine()
    results = []
    for count in counts:
        present = [peer(count) for peer in selected if peer.name not in missing]
        for case in (case for case in table if case.name in chosen):
            print(f"threads {count}: {case.name}", file=sys.stderr, flush=True)
            result = runner.measure(case, present, schedule, count)
            for name, reason in missing.items():
                result.outcomes[name] = runner.Outcome("missing", reason)
            results.append(result)

    run = report.Run(machine, peer_versions(selected), schedule, selected, results)
    report.print_report(run)
    if json is not None:
        report.write_json(Path(json), run)
    if markdown is not None:
        report.write_markdown(Path(markdown), run)
    ours = [result.outcomes["poolkit"].status for result in results if "poolkit" in names]
    return 1 if {"wrong", "failed"} & set(ours) else 0
