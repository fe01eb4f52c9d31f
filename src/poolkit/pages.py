"""A page of HTML that needs nothing else: no script, no network, its style inside."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poolkit.errors import MissingExtraError


def document(
    template: Path, styles: Sequence[Path], filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """A page from a template; needs Jinja2.

    The template gets `style` and `digest`, for a page that allows exactly this style and nothing
    else: whatever the names in it hold, no script and no request can come of it.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "inspect") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= filters
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    text = template.read_text(encoding="utf-8")
    return environment.from_string(text).render(style=style, digest=digest, **values)
