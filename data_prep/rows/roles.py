"""Map the many names of speakers in data to the few roles of a chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from cluster.config_loading import parse_yaml
from cluster.errors import ConfigError
from data_prep.files.bounded_io import RecordError

Role = Literal["system", "user", "assistant", "tool"]
Own = tuple[tuple[str, str], ...]  # a source's `roles`: name, role

ALIASES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer", "sys", "system_prompt"), "system"),
    **dict.fromkeys(
        ("user", "human", "prompter", "customer", "client", "question", "questioner", "instruction", "prompt"), "user"
    ),
    **dict.fromkeys(("usr", "query", "asker", "input"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "ai", "bot", "chatgpt", "agent", "chatbot", "claude"), "assistant"),
    **dict.fromkeys(("answer", "answerer", "response", "output", "gpt4", "gpt-4", "gpt-3.5", "bard"), "assistant"),
    **dict.fromkeys(("bing", "gemini", "llm", "ai_assistant", "completion", "chosen"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython", "tool_output"), "tool"),
    **dict.fromkeys(("tool_result", "function_response", "function_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
CALLING = ("function_call", "tool_call")  # their text is a tool call, as JSON
UNKNOWN = "unknown role"
UNSAFE_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def role_of(name: str, own: Own) -> str:
    """Return the role of the speaker `name`. Raises RecordError if it is unknown."""
    role = known_role(name, own)
    if role is None:
        raise RecordError(UNKNOWN)
    return role


@lru_cache(maxsize=1024)
def known_role(name: str, own: Own = ()) -> str | None:
    """Return the role of the speaker `name`, by the source's `roles` or the known aliases; None if unknown.

    Case does not matter.
    """
    if name in dict(own):
        return dict(own)[name]
    plain = name.strip().casefold()
    folded = {key.strip().casefold(): role for key, role in own}
    return folded.get(plain) or ALIASES.get(plain)


@lru_cache(maxsize=1024)
def is_calling(name: str) -> bool:
    """Return whether the text of a speaker with this name is a tool call, as JSON."""
    return name.strip().casefold() in CALLING


def speaker(value: Any) -> str | None:
    """Return a speaker's name as text, also if it is a number or a boolean; None for any other type."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else None


def line_to_write(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return a `roles` line for unknown names: user and assistant if there are just two speakers, else placeholders."""
    names = list(dict.fromkeys(unknown))
    guess = (
        ["user", "assistant"] if len(names) == 2 and not set(known) & {"user", "assistant"} else ["???"] * len(names)
    )
    return "roles: {" + ", ".join(f"{quoted(name)}: {role}" for name, role in zip(names, guess, strict=True)) + "}"


def quoted(name: str, joints: str = "_-") -> str:
    """Return a name as YAML, also in braces: plain if it is of letters, digits and joints, and is read as this text."""
    is_simple = name.translate(dict.fromkeys(map(ord, joints))).isalnum()
    return name if is_simple and is_text_in_yaml(name) else json_text(name)


def is_text_in_yaml(name: str) -> bool:
    """Return whether YAML reads a plain name as this text, and not as a number, a date, a truth value or nothing."""
    try:
        return bool(parse_yaml(f"{{{name}: {name}}}", name) == {name: name})
    except (ConfigError, ValueError):  # of a date that does not exist
        return False


def json_text(name: str) -> str:
    """Return a text as JSON that is YAML too: on one line, with what YAML allows only escaped."""
    return UNSAFE_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))
