"""Local paths, user names and secrets in what is about to be published: removed where we write, refused elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REMOVED = "(removed)"
NOT_INSIDE = r"(?<![\w/.~<-])"  # a word, an address or a closing tag goes on here
# an absolute path of two or more names, or one below a home folder
PATH = re.compile(NOT_INSIDE + r"(?:file://|~[\w.-]*(?=/)|(?=/[\w.+@%-]+/))(?:/[\w.+@%=,-]+)+/?")
# a relative path that climbs out of its folder or passes through a home folder
CLIMBING = re.compile(r"(?<![\w/:.])(?:\.\./)+[\w.+@%=,/-]*|(?<![\w/:.])(?:home|Users)/[\w.-]+/[\w.+@%=,/-]*")
ADDRESS = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,20}://)([^\s/@\"'`<>]+@)?([^\s?#\"'`<>)\]]*)([?#][^\s\"'`<>)\]]*)?", re.IGNORECASE
)
SECRET = re.compile(
    r"(?=[hsgxAeB-])(?:\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
    r"|\bBearer\s+[\w.~+/-]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?)",
    re.DOTALL,
)
ASSIGNED = re.compile(
    r"\b((?:[\w-]{0,40}[_-])?(?:api[_-]?key|access[_-]?key(?:[_-]id)?|secret(?:[_-]\w+)*|password|passwd|credentials?"
    r"|(?:auth|access|bearer)[_-]?token)|token)(\s*[=:]\s*['\"]?)(?!null\b|none\b|\(removed\))([^\s'\"&]{4,})",
    re.IGNORECASE,
)
MOST_PASSES = 8  # more than are nested in a text that people write
PERSONAL_KEYS = {"entity", "user", "username"}  # of settings: an account's name


def scrub(text: str) -> str:
    """Return a text with local paths cut to their last name, and without credentials in addresses and secrets.

    What is cut can uncover an address that stood in a path, so this is repeated until nothing changes; `leaks` tells
    what may be left.
    """
    for _ in range(MOST_PASSES):
        before, text = text, scrub_once(text)
        if text == before:
            break
    return text


def scrub_once(text: str) -> str:
    text = SECRET.sub(REMOVED, text)
    text = ADDRESS.sub(lambda found: PATH.sub(last_name, found[0]) if local(found) else found[1] + found[3], text)
    text = PATH.sub(last_name, text)
    text = CLIMBING.sub(last_name, text)
    return ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{REMOVED}", text)


def local(address: re.Match[str]) -> bool:
    return address[1].lower() == "file://"


def last_name(path: re.Match[str]) -> str:
    """Return what is told of a local path: the name of its file or folder."""
    return path[0].rstrip("/").rpartition("/")[2] or REMOVED


def scrubbed(value: Any) -> Any:
    """Return JSON values with every text scrubbed, and the names of accounts removed."""
    if isinstance(value, dict):
        return {
            str(key): REMOVED if key in PERSONAL_KEYS and isinstance(inner, str) else scrubbed(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrubbed(inner) for inner in value]
    return scrub(value) if isinstance(value, str) else value


def leaks(text: str, known: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the kind of everything private in a text that we wrote.

    `known` are texts that must not be in it, such as the token of this process and the folder of the run.
    """
    yield from secrets_in(text, known)
    for number, line in enumerate(text.splitlines(), start=1):
        if PATH.search(line) or CLIMBING.search(line):
            yield number, "a path of this machine"
        if any(found[2] or found[4] for found in ADDRESS.finditer(line)):
            yield number, "an address with a user, a query or a fragment, which may hold a key"
        if ASSIGNED.search(line):
            yield number, "what looks like a password or a key"


def secrets_in(text: str, known: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the kind of what is a secret wherever it stands, even in a tokenizer's vocabulary."""
    for found in SECRET.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, "what looks like a token or a private key"
    for one in known:
        if (at := text.find(one)) >= 0:
            yield text.count("\n", 0, at) + 1, "the token of this process, or the path of a folder of this machine"


def local_paths(value: Any) -> Iterator[str]:
    """Yield the local absolute paths among the texts of JSON values."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from local_paths(inner)
    elif isinstance(value, str) and (value.startswith(("~/", "file://")) or re.match(r"/[^/]+/", value)):
        yield value


def known_secrets(folder: Path, token: str | None) -> list[str]:
    """Return what must not appear in anything that is uploaded: the token, the home folder and the export's."""
    home = str(Path.home())
    paths = [home, str(folder.resolve()), str(folder.resolve().parent)]
    return [*([token] if token else []), *(path for path in paths if path.count("/") > 1)]
