"""What was measured, as text cells and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poolkit.timing import Quartiles

from .allocation import ROWS, Allocation
from .cases import Case
from .document import Section, in_words
from .peers import Peer
from .runner import DRIFT_LIMIT, CaseResult, Outcome
from .scaling import SERIES, Scaling, growth
from .targets import TargetResult, scaling

Titles = Mapping[str, str]


# -- cases --


def case_columns(peers: Sequence[type[Peer]], with_scaling: bool) -> list[str]:
    ratios = ["vs copy", "vs eager", "vs best peer", *(["vs 1 thread"] if with_scaling else [])]
    return ["case", "shape", *(peer.title for peer in peers), *ratios, "targets"]


def case_row(
    result: CaseResult,
    alone: CaseResult | None,
    targets: Sequence[TargetResult],
    peers: Sequence[type[Peer]],
    titles: Titles,
    with_scaling: bool,
) -> list[str]:
    best = result.best_peer()
    against_best = result.ratio(best) if best else None
    return [
        result.case.name + (" (disturbed)" if result.disturbed else ""),
        shape(result.case),
        *(_time_cell(result.outcomes.get(peer.name)) for peer in peers),
        ratio_cell(result.ratio("poolkit", "copy")),
        ratio_cell(result.ratio("eager")),
        f"{ratio_cell(against_best)} {titles[best]}" if best and against_best else "",
        *([ratio_cell(scaling(result, alone))] if with_scaling else []),
        _targets_cell(targets, titles),
    ]


def shape(case: Case) -> str:
    return "(" + ",".join(map(str, case.shape)) + ")"


def _time_cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if not outcome.seconds:
        return "-" if outcome.status in ("unsupported", "missing") else outcome.status.upper()
    return time_cell(Quartiles.of([1e3 * seconds for seconds in outcome.seconds]))


def time_cell(ms: Quartiles) -> str:
    return f"{three_digits(ms.median)} ±{(ms.high - ms.low) / 2 / ms.median:.0%}"


def ratio_cell(ratio: Quartiles | None) -> str:
    return f"{three_digits(ratio.median)}x" if ratio else ""


def three_digits(value: float) -> str:
    """
    >>> [three_digits(value) for value in (0.00234, 0.0512, 2.4, 13.07, 174.2)]
    ['0.00234', '0.0512', '2.40', '13.1', '174']
    """
    for limit, digits in ((0.01, 5), (0.1, 4), (1, 3), (10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def _targets_cell(targets: Sequence[TargetResult], titles: Titles) -> str:
    """How many are met, and what the others are held against."""
    if not targets:
        return ""
    met = sum(target.verdict == "met" for target in targets)
    others = [
        f"{target.verdict}: {titles.get(target.target.against, target.target.against)}"
        for target in targets
        if target.verdict != "met"
    ]
    return "; ".join([f"{met} of {len(targets)} met", *others])


def style(targets: Sequence[TargetResult], result: CaseResult | None = None) -> str:
    """The style of a row on the terminal."""
    if result and any(outcome.status == "wrong" for outcome in result.outcomes.values()):
        return "bold red"
    verdicts = {target.verdict for target in targets}
    return "red" if "missed" in verdicts else "yellow" if "within noise" in verdicts else ""


CAPTION = (
    "Milliseconds per call: median ± half the inter-quartile range. Ratios are medians of ratios "
    "taken within a round. vs copy: time of poolkit / time of the copy, 1 is the limit of memory. "
    "vs eager, vs best peer: time of the peer / time of poolkit, above 1 poolkit is faster. "
    "vs 1 thread: the median on one thread / the median here, measured one after the other. "
    "Targets are missed where the median ratio misses them, and within noise where the better "
    "quartile does not."
)


def target_section(targets: Sequence[TargetResult], titles: Titles, threads: int) -> Section:
    rows = [
        [
            target.verdict if target.verdict == "met" else target.verdict.upper(),
            target.subject,
            target.asked(titles),
            ratio_cell(target.got),
            f"{abs(target.excess):.0%} {'too slow' if target.excess > 0 else 'to spare'}",
        ]
        for target in targets
    ]
    return Section(
        f"Targets, {in_words(threads)}",
        ["", "case", "target", "measured", "time"],
        rows,
        [style([target]) for target in targets],
        left=3,
    )


# -- remarks --


def peer_remarks(peers: Sequence[type[Peer]], versions: Mapping[str, str]) -> list[str]:
    """What a call of each peer does."""
    return [f"{peer.title} ({versions[peer.name]}): {peer.note}." for peer in peers]


def reasons(peers: Sequence[type[Peer]], results: Sequence[CaseResult]) -> list[str]:
    """Why cells are without a time, once for all cases that have the same reason."""
    lines = []
    every = {result.case.name for result in results}
    for peer in peers:
        cases_by_reason: dict[str, dict[str, None]] = {}
        for result in results:
            outcome = result.outcomes.get(peer.name)
            if outcome and not outcome.seconds:
                reason = f"{outcome.status}: {outcome.reason}"
                cases_by_reason.setdefault(reason, {})[result.case.name] = None
        for reason, names in cases_by_reason.items():
            where = "every case" if len(names) == len(every) > 1 else "; ".join(names)
            lines.append(f"{peer.title}, {reason} [{where}]")
    return lines


def disturbances(results: Sequence[CaseResult]) -> list[str]:
    disturbed = [
        f"{result.case.name} on {in_words(result.threads)} {drift:+.0%}"
        for result in results
        if result.disturbed and (drift := result.drift()) is not None
    ]
    if not disturbed:
        return []
    return [
        f"Disturbed: the copy's time changed by more than {DRIFT_LIMIT:.0%} between the first and "
        f"the last rounds; distrust {', '.join(disturbed)}."
    ]


# -- allocation and scaling --


def allocation_section(found: Sequence[Allocation]) -> Section:
    columns = ["ms per call", *(in_words(each.threads) for each in found)]
    rows = [[text, *(time_cell(each.ms[row]) for each in found)] for row, text in ROWS.items()]
    lines = [f"{in_words(each.threads)}: {each.sentence()}" for each in found]
    return Section("Allocation, apart", columns, rows, left=1, lines=lines)


def scaling_section(found: Scaling, threads: int) -> Section:
    points = [point for point in found.points if point.threads == threads]
    columns = ["elements"]
    for title in SERIES.values():
        columns += [f"{title}, ms", "ns per element"]
    rows = []
    for point in points:
        cells = [f"{point.elements:.4g}"]
        for series in SERIES:
            timed = series in point.ms
            missing = "WRONG" if series in point.wrong else ""
            cells += [time_cell(point.ms[series]) if timed else missing]
            cells += [three_digits(point.ns_per_element(series)) if timed else ""]
        rows.append(cells)
    exponents = [
        f"{title} grows with the power {exponent:.3f} of the elements"
        for series, title in SERIES.items()
        if (exponent := growth(points, series)) is not None
    ]
    lines = [f"Over the last two decades {', '.join(exponents)}; 1 is linear."] if exponents else []
    lines += [
        f"WRONG: {SERIES[series]} of {point.elements:.4g} elements: {mistake}"
        for point in points
        for series, mistake in point.wrong.items()
    ]
    if found.left_out:
        sizes = ", ".join(f"{size:.4g}" for size in found.left_out)
        lines.append(f"Left out for want of memory: {sizes} elements.")
    return Section(f"Time against elements, {in_words(threads)}", columns, rows, lines=lines)
