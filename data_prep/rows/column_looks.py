"""Classify a column from a sample of rows: prose, label, id, address, number and so on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

Look = Literal["empty", "text", "label", "id", "address", "number", "messages", "list", "object"]
Rows = Sequence[Mapping[str, Any]]

ADDRESS = re.compile(
    r"(https?|ftp|s3|hf|file)://\S+|\S+@\S+\.\w+|(/|\./)[\w./-]+|[\w-]+\.(jpg|png|txt|json|html)", re.IGNORECASE
)
NUMBER = re.compile(r"[-+]?[\d.,:/-]+([eE][-+]?\d+)?( ?[\d:.]+)?Z?|true|false|yes|no", re.IGNORECASE)
IDS = re.compile(
    r"(.*_)?(id|ids|uuid|guid|hash|sha|sha256|md5|key|index|idx|url|uri|link|path|file|filename)", re.IGNORECASE
)
LABELS = re.compile(
    r"(.*_)?(label|category|type|kind|source|data_source|dataset|lang|language|split|task|model|license|status|name|tag"
    r"|tags|keywords|topic|subject|difficulty|score|rating|rank)",
    re.IGNORECASE,
)
DATES = re.compile(r"(.*_)?(date|time|created|updated|timestamp|expiration|at)", re.IGNORECASE)
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|[ -]+")  # between the words of a name
SHARE_OF_TEXTS = 0.9  # that makes a column one of texts; rows with other values are rejected and counted
FEW = 0.2  # distinct values per row, up to which a column holds labels


def columns_of(rows: Rows) -> list[str]:
    """Return every column of some rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def values_of(rows: Rows, name: str) -> list[Any]:
    """Return a column's values that are neither null nor empty."""
    return [row[name] for row in rows if not is_gap(row.get(name)) and row[name] != ""]


def is_gap(value: Any) -> bool:
    """Return whether a value is missing: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def are_texts(values: Sequence[Any]) -> bool:
    """Return whether nearly all of a column's values are texts."""
    texts = sum(isinstance(value, str) for value in values)
    return texts > 0 and texts >= SHARE_OF_TEXTS * len(values)


def look_of(name: str, values: Sequence[Any]) -> Look:
    """Classify a column by its name and values."""
    if not values:
        return "empty"
    if all(isinstance(value, bool | int | float) for value in values):
        return "number"
    if are_texts(values):
        return look_of_texts(name, [value for value in values if isinstance(value, str)])
    if any(is_messages(value) for value in values):
        return "messages"
    return "list" if any(isinstance(value, list) for value in values) else "object"


def look_of_texts(name: str, texts: Sequence[str]) -> Look:
    """Classify a column of texts: prose has several words and is more than a name."""
    if most(NUMBER.fullmatch(text.strip()) for text in texts):
        return "number"
    if most(ADDRESS.fullmatch(text.strip()) for text in texts):
        return "address"
    if most(looks_opened(text) for text in texts):
        return "object"
    name = HUMP.sub("_", name)
    words = sorted(len(text.split()) for text in texts)[len(texts) // 2]
    if most(len(text.split()) <= 1 and len(text) < 80 and text.isascii() for text in texts):
        return "id" if IDS.fullmatch(name) or len(set(texts)) > FEW * len(texts) + 2 else "label"
    if (LABELS.fullmatch(name) and words <= 4) or (DATES.fullmatch(name) and words <= 8):
        return "label"
    if len(texts) >= 20 and len(set(texts)) <= FEW * len(texts) and words <= 4:
        return "label"
    return "text"


def looks_opened(text: str) -> bool:
    """Return whether a text looks like a list or an object written into a cell."""
    return text.lstrip().startswith(("[{", "{'", '{"', "['", '["', "[["))


def most(flags: Iterable[Any]) -> bool:
    found = [bool(flag) for flag in flags]
    return sum(found) > 0.8 * len(found)


def is_messages(value: Any) -> bool:
    """Return whether a value is a list of messages with role and content, under their usual names."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(item, Mapping)
        and any(isinstance(item.get(key), str) for key in ("role", "from"))
        and not item.keys().isdisjoint(("content", "value", "tool_calls", "function_call"))
        for item in value
    )


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text inside a value."""
    if isinstance(value, str):
        yield value
    items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in items:
        yield from texts_in(item)
