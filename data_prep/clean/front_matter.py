"""Remove the front matter of Markdown: the block of keys at the beginning, which describes the page and is not of it.

It stands between lines of `---` in YAML (Jekyll, Pandoc), or of `+++` in TOML (Hugo). A rule is written `---` too, so
what looks like text between rules is left as it is: see `is_text`.
"""

from __future__ import annotations

import re
import tomllib
import warnings

from ruamel.yaml import YAML

CHARACTERS = 2**16  # of front matter, at most
BRACKETS = 1000  # that open in YAML, at most: the time that ruamel takes grows with the square of how deep they nest
DOTS = 2000  # in TOML, at most: so it does with those of one key
YAML_BLOCK = re.compile(r"---[ \t]*\r?\n(.*?)^(---|\.\.\.)[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
TOML_BLOCK = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FIRST_KEY = re.compile(r"(?:#.*\n)*[\w.\"'-]+[ \t]*:")
KEY = re.compile(r"^([\w.-]+)[ \t]*:", re.MULTILINE)
WORD = re.compile(r"[\w.-]+")
HEADING = re.compile(r"^#.*\n[ \t]*\r?$", re.MULTILINE)
EMPTY_LINE = re.compile(r"\n[ \t]*\r?\n")
RULE = re.compile(r"^---[ \t]*\r?$", re.MULTILINE)


def without_front_matter(text: str) -> str:
    """Return a text without its front matter and the empty lines after it; the text itself if it has none."""
    found = YAML_BLOCK.match(text, 0, CHARACTERS)
    if found is not None and (keys := yaml_keys(found[1])) and not is_text(found, keys):
        return text[found.end() :].lstrip("\r\n")
    found = TOML_BLOCK.match(text, 0, CHARACTERS)
    if found is not None and is_toml_mapping(found[1]):
        return text[found.end() :].lstrip("\r\n")
    return text


def yaml_keys(block: str) -> list[str]:
    """Return the keys of a block of YAML, none if it is no mapping of words or begins with an empty line, as a text
    after a rule does. Values are not resolved, so dates may be impossible ones.
    """
    if FIRST_KEY.match(block) is None or block.count("[") + block.count("{") > BRACKETS:
        return []
    reader = YAML(typ="base", pure=True)
    reader.allow_duplicate_keys = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anchors that come twice
            value = reader.load(block)
    except Exception:  # noqa: BLE001  # ruamel's errors are of many types, AssertionError among them; it is a text then
        return []
    keys = list(value) if isinstance(value, dict) else []
    return keys if all(isinstance(key, str) and WORD.fullmatch(key) for key in keys) else []


def is_text(found: re.Match[str], keys: list[str]) -> bool:
    """Return whether a mapping is rather text between rules: it has a heading, a paragraph after its only key, an end
    that is no rule, or the next rule encloses the like, as in a series of questions and answers.
    """
    block, after = found[1].rstrip() + "\n", found.string[found.end() : found.end() + CHARACTERS]
    end = RULE.search(after)
    next_keys = KEY.findall(after, 0, end.start() if end is not None else len(after))
    if HEADING.search(found[1]) is not None or set(keys) <= set(next_keys):
        return True
    if len(keys) > 1:
        return False
    return found[2] != "---" or EMPTY_LINE.search(block) is not None or (end is not None and is_keyed(after))


def is_keyed(text: str) -> bool:
    """Return whether a text begins with a word and a colon."""
    return KEY.match(text.lstrip()) is not None


def is_toml_mapping(text: str) -> bool:
    """Return whether a text is TOML with keys."""
    if text.count(".") > DOTS:
        return False
    try:
        return bool(tomllib.loads(text.replace("\r\n", "\n")))
    except (ValueError, RecursionError):  # of numbers with thousands of digits too
        return False
