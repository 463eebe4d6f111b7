"""Look up values in a row: by a column's name, a path such as `a.b[0].c`, or a pattern with `*`."""

from __future__ import annotations

import ast
import fnmatch
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from data_prep.files.bounded_io import RecordError

STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")
GLUED = re.compile(r"""['"]\s+['"]""")  # in a list printed by numpy, without commas, or inside a text


class Missing:
    """The value at a path that a row does not have."""


MISSING: Final = Missing()


@lru_cache(maxsize=1024)
def steps_of(path: str) -> tuple[str | int, ...] | None:
    """Return a path's steps; None if it is not a valid path."""
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        found = STEP.match(path, at)
        if found is None:
            return None
        steps.append(found[1] if found[1] is not None else int(found[2]))
        at = found.end()
    return tuple(steps)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return the value of the column of this name, or else at this path; MISSING if there is none.

    JSON text along the path is parsed.
    """
    if path in row:
        return row[path]
    if "." not in path and "[" not in path:
        return MISSING
    value: Any = row
    for step in steps_of(path) or ("",):
        value = step_into(opened(value) if isinstance(value, str) else value, step)
    return value


def step_into(value: Any, step: str | int) -> Any:
    """Return a value's item at one step; MISSING if there is none."""
    if isinstance(step, str):
        return value.get(step, MISSING) if isinstance(value, Mapping) else MISSING
    return value[step] if isinstance(value, list) and -len(value) <= step < len(value) else MISSING


def column_of(path: str, names: Iterable[str]) -> str:
    """Return the column that a path begins with: the path itself if there is a column of that name."""
    steps = steps_of(path)
    return path if path in names or not steps else str(steps[0])


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern with `*` matches, in natural order; a name without `*` matches itself."""
    if pattern in names or "*" not in pattern:
        return [pattern]
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    return sorted(
        found,
        key=lambda name: [(len(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)],
    )


def opened(text: str) -> Any:
    """Parse a text that is a JSON or Python list or dict; return any other text unchanged."""
    plain = text.strip()
    if not plain.startswith(("[", "{")):
        return text
    try:
        return json.loads(plain)
    except RecursionError:
        raise RecordError("nested too deeply") from None
    except ValueError:
        return python_value(plain, text)


def python_value(plain: str, text: str) -> Any:
    """Parse Python's `repr` of a list or dict; return the text itself if it is not one.

    Python joins adjacent string literals: a list printed by numpy would silently become one text, so it is rejected.
    """
    try:
        value = ast.literal_eval(plain)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if not isinstance(value, list | dict):
        return text
    if GLUED.search(plain) and has_glued_texts(plain):
        raise RecordError("a list without commas between its items")
    return value


def has_glued_texts(plain: str) -> bool:
    """Return whether a Python literal contains two adjacent string literals without a comma between them."""
    tokens = tokenize.generate_tokens(io.StringIO(plain).readline)
    kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.COMMENT)]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(kinds))


def without_nulls(value: Any) -> Any:
    """Return a value without its null keys: tables such as Parquet fill absent keys with null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
