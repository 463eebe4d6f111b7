"""Turn what is known into one HTML file: templates, style and script from this folder, nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cluster.wording import bytes_text, count_of
from training.reporting.wording import duration, short

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("shardline", "torch", "deepspeed", "transformers")


def render(template: str, **facts: Any) -> str:
    """Return a page. Every text is escaped, and only the page's own script may run, by its digest."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "duration": duration,
        "short": short,
        "bytes": bytes_text,
        "clock": clock,
        "counted": count_of,
    }
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        **facts,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        versions=", ".join(f"{package} {version_of(package)}" for package in PACKAGES),
    )


def clock(time: str) -> str:
    """Return an event's time to the second, without the zone: all are UTC."""
    return time[:19].replace("T", " ")


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
