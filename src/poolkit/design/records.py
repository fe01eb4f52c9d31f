"""What an advice consists of: plain records, which nothing here computes or draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Basis = Literal["arithmetic", "literature"]


@dataclass(frozen=True)
class Claim:
    """One statement, and what it rests on.

    Attributes:
        text: the statement.
        basis: "arithmetic" follows from shapes and sizes, for this model and this input;
            "literature" was measured by others, on their models and data.
        setting: what it was measured on.
        source: who says so, and where.
    """

    text: str
    basis: Basis = "arithmetic"
    setting: str = ""
    source: str = ""


@dataclass(frozen=True)
class Draft:
    """What a model costs on these inputs, counted by running it.

    Attributes:
        parameters: numbers that are learned.
        multiply_adds: multiplications by weights, each with its addition, in convolutions and
            matrix products.
        activations: bytes of all tensors that a forward makes, each once; views and what is
            changed in place make none.
        outputs: shapes of what the model returns.
        last_map: the sides of the last map; None if nothing has one.
        sees, jump: of that map: input positions that one of its values sees, never more than there
            are, and input positions between neighbours.
    """

    parameters: int
    multiply_adds: int
    activations: int
    outputs: list[list[int]]
    last_map: list[int] | None
    sees: list[int] | None
    jump: list[float] | None


@dataclass(frozen=True)
class Alternative:
    """The model with one change at one site, really built; all else is as it was.

    Attributes:
        name: what takes the place.
        changes: what that means, in words that follow from shapes and sizes.
        draft: what the whole model then costs; None if it cannot be built.
        problem: why it cannot.
        literature: keys of claims in `Advice.literature`.
    """

    name: str
    changes: str
    draft: Draft | None = None
    problem: str = ""
    literature: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """One place where a map gets smaller: a pooling, a strided convolution or a flattened head.

    Attributes:
        name: of the module; the empty name is the model itself.
        kind: ``window`` (it slides), ``bins`` (as many as it is told), ``global`` (one value is
            left), ``convolution`` (with a stride), ``head`` (a linear layer that reads every
            position of a map by itself), ``other`` (as an unpooling).
        operation: what it does, in words.
        source: the line that calls it, as ``net.py:42``, if no module is nothing but this.
        in_shape, out_shape: of its input and its output.
        sees: input positions that one value of the output sees, along each axis, never more than
            are left; None where they are not known.
        extent: how many there are.
        jump: input positions between neighbouring outputs: the effective stride.
        unseen: input positions along each axis, before and behind, that no output sees; None as
            ``sees``.
        claims: what follows from all this.
        alternatives: what could stand there instead.
    """

    name: str
    kind: str
    operation: str
    source: str
    in_shape: list[int]
    out_shape: list[int]
    sees: list[int] | None
    extent: list[int] | None
    jump: list[float] | None
    unseen: list[list[int]] | None
    claims: list[Claim] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """The poolings of a model on paper.

    Attributes:
        model: its name.
        inputs: of what dtype and shape.
        draft: what the model costs as it is.
        sites: in the order in which they run.
        literature: the claims of others that alternatives refer to, by key.
        paper: "shapes" if nothing had values. If the model would not run so: "values" if it ran on
            the tensors that were given, "random" if random numbers stood for sizes; in both with
            its own weights and buffers, and by the branches that these values made it take.
    """

    model: str
    inputs: list[str]
    draft: Draft
    sites: list[Site]
    literature: dict[str, Claim]
    paper: Literal["shapes", "values", "random"] = "shapes"
