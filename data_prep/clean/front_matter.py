"""Remove the front matter of Markdown: the block of keys at the beginning, which describes the page and is not of it.

It stands between lines of `---` in YAML (Jekyll, Pandoc), or of `+++` in TOML (Hugo). A text that begins with a rule,
which is written `---` too, is left as it is: there is no mapping before the next such line.
"""

from __future__ import annotations

import re
import tomllib

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

CHARACTERS = 2**16  # of front matter, at most
YAML_BLOCK = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
TOML_BLOCK = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def without_front_matter(text: str) -> str:
    """Return a text without its front matter and the empty lines after it; the text itself if it has none."""
    for block, is_mapping in ((YAML_BLOCK, is_yaml_mapping), (TOML_BLOCK, is_toml_mapping)):
        found = block.match(text, 0, CHARACTERS)
        if found is not None:
            return text[found.end() :].lstrip("\r\n") if is_mapping(found[1]) else text
    return text


def is_yaml_mapping(text: str) -> bool:
    """Return whether a text is YAML with keys; values are not resolved, so dates may be impossible ones."""
    reader = YAML(typ="base", pure=True)
    reader.allow_duplicate_keys = True
    try:
        value = reader.load(text)
    except (YAMLError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value)


def is_toml_mapping(text: str) -> bool:
    """Return whether a text is TOML with keys."""
    try:
        return bool(tomllib.loads(text.replace("\r\n", "\n")))
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
