"""The advice as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from poolkit.design.literature import EFFECTIVE_FIELD
from poolkit.design.records import Alternative, Draft, Findings, Site
from poolkit.errors import MissingExtraError
from poolkit.inspection.terminal import plain_table
from poolkit.inspection.wording import human_bytes, human_shape, human_share

try:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    raise MissingExtraError("rich", "inspect") from None

from poolkit.comparison.terminal import human_number


def lines(advice: Findings, width: int = 120) -> Iterator[RenderableType]:
    """What to print of an advice on a terminal of ``width`` columns, piece by piece."""
    yield Text.assemble((advice.model, "bold"), f"  {', '.join(advice.inputs)}")
    draft = advice.draft
    numbers = {key: number for number, key in enumerate(advice.literature, 1)}
    yield Text(
        f"{human_number(draft.parameters)} parameters, {human_number(draft.multiply_adds)} "
        f"multiply-adds, {human_bytes(draft.activations)} of activations for this input."
    )
    if advice.paper != "shapes":
        yield Text(
            "The model does not run without values, so it ran with its weights and buffers on "
            f"{_INPUTS[advice.paper]}. Branches that depend on values were taken as these have it."
        )
    if not advice.sites:
        yield Text("Nothing makes a map smaller: no pooling, strided convolution or flattened map.")
        return
    if last := _last(draft):
        yield Text.assemble(last, (f" [{numbers[EFFECTIVE_FIELD]}]", "dim"))
    for site in advice.sites:
        yield Text("")
        yield from _site(site, draft, numbers)
    yield Text("")
    yield Text(_NOTE, style="dim")
    yield Text("")
    yield Text(
        "Literature; not measured on your model or data (poolkit compare measures there):",
        style="bold",
    )
    for key, claim in advice.literature.items():
        yield Text.assemble(
            (f"[{numbers[key]}] ", "bold"), f"{claim.text} ({claim.setting}). ",
            (f"{claim.source}.", "dim"),
        )  # fmt: skip


_INPUTS = {
    "values": "the inputs that were given",
    "random": "fixed random inputs from 0 to 1 (ones where they are no floats) in place of sizes",
}
_NOTE = (
    "All of the above is arithmetic, for this model and this input: each alternative was built, "
    "all else left as it is, and counted. Figures are differences of the whole model. "
    "Multiply-adds: convolutions and matrix products. Activations: every tensor that a forward "
    "makes, once. Sees, stride: of the last map."
)


def _last(draft: Draft) -> str:
    if draft.sees is None or draft.jump is None:
        return ""
    return (
        f"A value of the last map sees {human_shape(draft.sees)} input positions; neighbours are "
        f"{_jump(draft.jump)} apart."
    )


def _jump(jump: list[float]) -> str:
    sides = [f"{side:.4g}" for side in jump]
    return sides[0] if len(set(sides)) == 1 else "×".join(sides)


def _site(site: Site, was: Draft, numbers: dict[str, int]) -> Iterator[RenderableType]:
    yield Text.assemble(
        (site.name or "(model)", "bold"), f"  {site.operation}  ",
        f"{human_shape(site.in_shape)} → {human_shape(site.out_shape)}",
        (f"  {site.source}" if site.source else "", "dim"),
    )  # fmt: skip
    if seen := _seen(site):
        yield Text(f"  {seen}")
    for claim in site.claims:
        yield Text(f"  {claim.text}")
    built = [row for row in site.alternatives if row.draft is not None]
    if built:
        yield _table(built, was, numbers)
    for problem, names in _problems(site).items():
        yield Text(f"  not built: {', '.join(names)}: {problem}", style="dim")


def _seen(site: Site) -> str:
    if site.kind == "head" or site.sees is None or site.extent is None or site.jump is None:
        return ""
    shares = [seen / extent for seen, extent in zip(site.sees, site.extent, strict=True)]
    if min(shares) == 1:
        return f"sees all of the input's {human_shape(site.extent)}; stride {_jump(site.jump)}"
    words = [human_share(share) for share in shares]
    share = words[0] if len(set(words)) == 1 else " × ".join(words)
    return (
        f"sees {human_shape(site.sees)} of the input's {human_shape(site.extent)} ({share} of a "
        f"side); stride {_jump(site.jump)}"
    )


def _problems(site: Site) -> dict[str, list[str]]:
    """Names of what cannot be built, by the reason."""
    found: dict[str, list[str]] = {}
    for row in site.alternatives:
        if row.draft is None:
            found.setdefault(row.problem, []).append(row.name)
    return found


def _table(rows: list[Alternative], was: Draft, numbers: dict[str, int]) -> Table:
    table = plain_table("  instead")
    for name in ("parameters", "multiply-\nadds", "activations", "sees", "stride"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what changes", overflow="fold")
    for row in rows:
        draft = row.draft
        assert draft is not None
        cited = "".join(f" [{numbers[key]}]" for key in row.literature if key in numbers)
        table.add_row(
            Text(f"  {row.name}"),
            signed(draft.parameters - was.parameters, human_number),
            signed(draft.multiply_adds - was.multiply_adds, human_number),
            signed(draft.activations - was.activations, human_bytes),
            human_shape(draft.sees) if draft.sees and draft.sees != was.sees else "",
            _jump(draft.jump) if draft.jump and draft.jump != was.jump else "",
            Text.assemble(row.changes, _resized(draft, was), (cited, "dim")),
        )
    return table


def _resized(draft: Draft, was: Draft) -> str:
    if draft.last_map is None or draft.last_map == was.last_map:
        return ""
    return f"; last map {human_shape(draft.last_map)}"


def signed(difference: int, human: Callable[[int], str]) -> str:
    """A difference for readers.

    >>> signed(-2048, human_bytes), signed(0, human_number)
    ('−2.0 KiB', '0')
    """
    if not difference:
        return "0"
    return f"{'+' if difference > 0 else '−'}{human(abs(difference))}"
