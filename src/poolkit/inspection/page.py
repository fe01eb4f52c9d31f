"""The report as one HTML file: no script, no network, pictures and style inside."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from pathlib import Path

from poolkit.errors import MissingExtraError
from poolkit.inspection.pictures import data_uri, ramp
from poolkit.inspection.records import LOOKED_FOR, Findings
from poolkit.inspection.wording import human_bytes, human_ms, human_shape, human_share

_HERE = Path(__file__).parent


def render(report: Findings) -> str:
    """Return the page of ``report``. Needs Jinja2, and Pillow for the colour scale."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "inspect") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "bytes": human_bytes,
        "ms": human_ms,
        "shape": human_shape,
        "share": human_share,
        "number": lambda value: f"{value:.4g}",
        "png": data_uri,
        "jpeg": lambda data: data_uri(data, "jpeg"),
    }
    # The page allows exactly this style and nothing else: whatever a model's names hold, no
    # script and no request can come of it.
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    times = [t for layer in report.layers for t in (layer.torch_ms, layer.poolkit_ms) if t]
    template = environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        style=style,
        digest=digest,
        slowest=max(times, default=1.0),
        ramp=ramp(),
        looked_for=LOOKED_FOR,
    )
