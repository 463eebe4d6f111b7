"""Messages as chat templates get them, and the texts that replace what a template has no form for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Line = tuple[Message, bool | None]  # a message and what the row says of its training


def named_results(lines: Sequence[Line]) -> list[Line]:
    """Return messages with the names of the tools in their results, as the calls tell them by their ids."""
    calls = [call for message, _ in lines for call in message.get("tool_calls") or ()]
    names = {call.get("id"): call["function"]["name"] for call in calls}

    def named(message: Message) -> Message:
        name = names.get(message.get("tool_call_id"))
        return {**message, "name": name} if message["role"] == "tool" and name and "name" not in message else message

    return [(named(message), flag) for message, flag in lines]


def as_parts(message: Message) -> Message:
    """Return a message whose content is a list of parts."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def text_of(content: Any) -> str:
    """Return a content as one text: parts follow each other with nothing between, as templates write them."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return content or ""


def without_content(message: Message) -> Message:
    """Return a message without its content."""
    return {key: value for key, value in message.items() if key != "content"}


def call_text(function: Mapping[str, Any]) -> str:
    """Return a call as Hermes' and Qwen's models write it."""
    told = {"name": function["name"], "arguments": function.get("arguments", {})}
    return f"<tool_call>\n{json.dumps(told, ensure_ascii=False)}\n</tool_call>"


def tools_text(tools: Sequence[Any], *, are_calls_ours: bool) -> str:
    """Return what a system turn says of tools; of the form of calls only if the template has none."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    told = f"You can call these tools:\n<tools>\n{listed}\n</tools>"
    if not are_calls_ours:
        return told
    return (
        f"{told}\nTo call one, write its name and the arguments as JSON:\n"
        '<tool_call>\n{"name": "NAME", "arguments": {}}\n</tool_call>\n'
        "What it returns follows in <tool_response></tool_response>."
    )
