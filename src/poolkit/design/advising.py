"""The advice itself: run the model as it is, then with every alternative of every site."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.jit import ScriptModule

from poolkit.design.alternatives import Proposal, fitted_heads, proposals
from poolkit.design.calls import calls_as_modules
from poolkit.design.literature import EFFECTIVE_FIELD, LITERATURE
from poolkit.design.paper import Paper, sized
from poolkit.design.records import Alternative, Draft
from poolkit.design.report import Advice
from poolkit.design.sites import Subject
from poolkit.errors import PoolError, PoolTypeError, PoolValueError
from poolkit.inspection.exported import ExportedModel
from poolkit.inspection.inspector import arguments_of
from poolkit.inspection.trace import Run, describe_tensor, tensors_in
from poolkit.inspection.wording import human_shape
from poolkit.optimization.equality import fixed_randomness

Progress = Callable[[str, int, int], None]


def advise(
    model: nn.Module,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Advice:
    """What a model's poolings do to its input, and what others in their places would cost.

    Needs no data and no weights, only sizes: the model and each altered copy of it run on tensors
    without values, and what is reported was counted in that run. A model that looks at values runs
    in memory with its own weights and buffers, and takes the branches that these and the inputs
    make it take: ``paper`` says so. Give it tensors; a size becomes random numbers there.

    Args:
        model: any module. It is not changed.
        inputs: a size, as ``"1x3x224x224"``, ``"1x128:int64"``, a `torch.Size` or a tuple of
            integers; a tensor; or a tuple or list of the positional arguments of ``forward``, in
            which sizes (no plain tuples) stand for tensors. A dict is the keyword arguments.
        kwargs: more keyword arguments of ``forward``.
        name: what to call the model; its class by default.
        progress: called with what is being tried, how many are done, and of how many.

    Returns:
        An :class:`Advice`: for each pooling, strided convolution and flattened head what its
        values see of the input, how far neighbours are apart, what nothing sees, and alternatives
        with the parameters, multiply-adds and bytes of the whole model. Claims say whether they
        are arithmetic or only literature.

    Raises:
        PoolTypeError: ``model`` is no module.
        PoolValueError: there are no inputs, or a text is no size; the model cannot be copied.
        PoolError: the model raised on the inputs; the message has their shapes.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    >>> advice = advise(model, "1x3x9x9")
    >>> [(row.name, row.draft.parameters - advice.draft.parameters)
    ...  for row in advice.sites[1].alternatives]
    [('global average', -256), ('global max', -256), ('pyramid 4×4, 2×2, 1×1', 384)]
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile made cannot be altered
    if not isinstance(model, nn.Module) or isinstance(model, ExportedModel | ScriptModule):
        raise PoolTypeError(
            f"alternatives are built from a torch.nn.Module, got {type(model).__name__}",
            "Give the module itself",
        )
    args, keywords = arguments_of(sized(inputs), kwargs)
    if not any(True for _ in tensors_in((args, keywords))):
        raise PoolValueError("there is no input size", 'Give inputs, as "1x3x224x224"')
    paper = Paper.that_runs(model, *_by_position(model, args, keywords))
    base, shown, base_draft = calls_as_modules(paper, paper.copy(model))
    tell = progress or (lambda what, done, total: None)
    tried = [list(proposals(subject, shown)) for subject in shown]
    done, total = 0, sum(map(len, tried))
    cited: set[str] = set()
    for subject, rows in zip(shown, tried, strict=True):
        for proposal in rows:
            tell(f"{subject.name}: {proposal.name}", done, total)
            row = _try(paper, base, subject, proposal, base_draft)
            subject.site.alternatives.append(row)
            cited.update(row.literature)
            done += 1
    tell("done", total, total)
    return Advice(
        model=name or type(model).__name__,
        inputs=[describe_tensor(x) for x in tensors_in((args, keywords))],
        draft=base_draft,
        sites=[subject.site for subject in shown],
        literature={
            key: claim
            for key, claim in LITERATURE.items()
            if key in cited or (key == EFFECTIVE_FIELD and shown)
        },
        paper=paper.kind,
    )


def _by_position(
    model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, as few as possible by name."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **keywords)
    except (TypeError, ValueError):  # the call will say what is wrong with them
        return args, keywords
    return bound.args, bound.kwargs


def _try(
    paper: Paper, base: nn.Module, subject: Subject, proposal: Proposal, was: Draft
) -> Alternative:
    """Build it in a copy, and count; or say why it cannot be built."""
    changes = proposal.changes
    try:
        model = paper.copy(base)
        with paper.open(), fixed_randomness():
            model = proposal.build(model, paper)
        if proposal.denser:
            draft, _ = paper.draft(model)
        else:
            with fitted_heads(model) as fitted:
                draft, run = paper.draft(model)
            changes += _consequences(subject, run, fitted)
            changes += _returned(draft.outputs, was.outputs)
    except PoolError as error:
        return Alternative(proposal.name, proposal.changes, None, str(error))
    return Alternative(proposal.name, changes, draft, "", proposal.literature)


def _returned(outputs: list[list[int]], before: list[list[int]]) -> str:
    """What the model then returns. Raises PoolValueError if more differs than the size of maps."""
    if outputs == before:
        return ""
    heads = [[(len(shape), shape[:2]) for shape in shapes] for shapes in (outputs, before)]
    if heads[0] != heads[1]:
        raise PoolValueError(f"the model would return {outputs} instead of {before}")
    return f"; the model returns {', '.join(map(human_shape, outputs))}"


def _consequences(subject: Subject, run: Run, fitted: Mapping[str, tuple[int, int]]) -> str:
    """What had to change with it: the size of its map, and the inputs of linear layers."""
    found = ""
    if subject.site.kind in ("window", "convolution"):
        place, before = subject.place, subject.site.out_shape[2:]
        there = [s for s in run.steps if s.name == place or s.name.startswith(f"{place}.")]
        after = list(there[-1].shape[2:]) if there else before
        if after != before:
            found += f"; gives {human_shape(after)}, not {human_shape(before)}"
    for name, (few, many) in fitted.items():
        found += f"; {name} reads {many} values, not {few}"
    return found
