"""The configuration as trackers get it: flat, and without what does not belong on somebody else's server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from cluster.config_loading import read_yaml
from cluster.paths import RunPaths

LEFT_OUT = ("folder", "trackers", "data.folder", "data.sources")  # sources: addresses may hold keys
SECRET = re.compile(r"(^|_)(token|key|secret|password|credentials?)$", re.IGNORECASE)
PATH = re.compile(r"^(/|~|\.{1,2}/)|://")


def sent_configuration(paths: RunPaths) -> dict[str, Any]:
    """Return the run's saved configuration by dotted key. Of a path only the last name is kept."""
    return dict(flat(read_yaml(paths.config)))


def flat(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{section}{name}"
        if key in LEFT_OUT or SECRET.search(str(name)) or value is None:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{key}.")
        elif isinstance(value, bool | int | float):
            yield key, value
        elif isinstance(value, list):
            yield key, ", ".join(shown(item) for item in value)
        else:
            yield key, shown(value)


def shown(value: Any) -> str:
    text = str(value)
    return PurePosixPath(text).name if PATH.search(text) else text
