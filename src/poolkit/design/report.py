"""The advice: what was found on paper, and the ways to show it and write it down."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from poolkit.design.records import Findings

#: Of what ``to_dict`` gives. It changes when a key goes or means something else.
JSON_VERSION = 1


class Advice(Findings):
    """The poolings of a model on paper: ``print(advice)`` shows it, ``sites`` has it all."""

    def __str__(self) -> str:
        """The tables, as plain text."""
        from poolkit.design.terminal import lines
        from poolkit.inspection.terminal import as_text

        return as_text(lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, with ``"version": 1`` first."""
        return {"version": JSON_VERSION, **_plain(asdict(self))}

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
