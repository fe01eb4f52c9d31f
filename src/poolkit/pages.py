"""A page of HTML that needs nothing else: no network, its style and script inside."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poolkit.errors import MissingExtraError


def document(
    template: Path,
    styles: Sequence[Path],
    filters: Mapping[str, Callable[..., Any]],
    scripts: Sequence[Path] = (),
    **values: Any,
) -> str:
    """A page from a template; needs Jinja2.

    The template gets `style`, `script` and the digests of both, for a page that allows exactly
    these and nothing else: whatever the names in it hold, no script and no request can come of it.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "inspect") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    style, script = ("".join(map(_text, paths)) for paths in (styles, scripts))
    return environment.from_string(_text(template)).render(
        style=style,
        style_digest=_digest(style),
        script=script,
        script_digest=_digest(script),
        **values,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()
