"""Convert one message, in any known form, to turns: role, text, tool calls, reasoning, trained flag."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.documents import Turn
from data_prep.files.bounded_io import RecordError
from data_prep.rows.roles import is_calling, role_of, speaker
from data_prep.rows.row_layouts import Layout
from data_prep.rows.value_paths import opened

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
FLAG_KEYS = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask")
PARTLY = "train_detail"  # Axolotl's key for the trained characters of a turn
MASK_KEY = "mask"  # ambiguous: some data sets mean hidden by it, others trained
CALL_KEYS = ("tool_calls", "function_call")
PLAIN_KEYS = {"role", "content"}
NAME_KEYS = ("tool_call_id", "name")
KNOWN_KEYS = {*ROLE_KEYS, *CONTENT_KEYS, *REASONING_KEYS, *FLAG_KEYS, *CALL_KEYS, MASK_KEY, PARTLY, *NAME_KEYS}
MEDIA_PARTS = ("image", "audio", "video", "file", "input_image", "input_audio")
TEXT_PARTS, REASONING_PARTS = ("text", "input_text", "output_text"), ("reasoning", "thinking")

NOT_MESSAGES = "not a list of role and content"
NEEDS_MEDIA = "needs an image, audio or video"
NOT_A_CALL = "a tool call without a name, or whose arguments are not a JSON object"
NOT_A_FLAG = "a turn's weight, train or loss is neither 0 nor 1"
PART_FLAG = "a turn that is only partly trained"
UNTOLD_MASK = "a turn's mask is ambiguous: hidden or trained"


def turns_of_message(message: Mapping[str, Any], layout: Layout) -> Iterator[Turn]:
    """Yield the turn of a message, or the two of a question with its answer. Raises RecordError."""
    if layout.user is not None:
        yield from exchange(message, layout)
        return
    if layout.role is None and layout.content is None and message.keys() == PLAIN_KEYS:
        name, content = message["role"], message["content"]
        is_said = isinstance(name, str) and isinstance(content, str) and not is_calling(name)
        if is_said:  # the common case, four times as fast
            yield Turn(role_of(name, layout.roles), content)
            return
    yield turn_of_message(message, layout)


def exchange(message: Mapping[str, Any], layout: Layout) -> Iterator[Turn]:
    """Yield a question and its answer."""
    question, answer = message.get(str(layout.user)), message.get(str(layout.assistant))
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RecordError(NOT_MESSAGES)
    yield Turn("user", question)
    yield Turn("assistant", answer, is_trained=flag_of(message, layout))


def turn_of_message(message: Mapping[str, Any], layout: Layout) -> Turn:
    """Return the turn of a message with all of its content. Raises RecordError."""
    name = speaker(first_of(message, (layout.role,) if layout.role else ROLE_KEYS))
    content = first_of(message, (layout.content,) if layout.content else CONTENT_KEYS)
    if name is None:
        raise RecordError(NOT_MESSAGES)
    role = role_of(name, layout.roles)
    if is_calling(name):
        content, message = None, {**message, "tool_calls": calls_of(content)}
    text, more = words_of(content, role)
    calls = [call for key in CALL_KEYS for call in calls_of(message.get(key))]
    if calls:
        more["tool_calls"] = [*more.get("tool_calls", ()), *calls]
    more |= reasoning_of(message, more)
    if content is None:
        if not more:
            raise RecordError(NOT_MESSAGES)
        more = {"content": None, **more}
    names = {key: message[key] for key in NAME_KEYS if isinstance(message.get(key), str) and message[key]}
    return Turn(role, text, {**more, **names}, flag_of(message, layout))


def first_of(message: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the first of these keys that a message has; a null counts as absent."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def reasoning_of(message: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, str]:
    """Return a message's reasoning, unless its parts hold it already. Raises RecordError."""
    told = first_of(message, REASONING_KEYS)
    if told is None:
        return {}
    if not isinstance(told, str):
        raise RecordError("reasoning that is not text")
    return {"reasoning_content": told} if told and "reasoning_content" not in more else {}


def flag_of(message: Mapping[str, Any], layout: Layout) -> bool | None:
    """Return the row's flag that a turn is trained; None if it has none. Raises RecordError."""
    if layout.masked is not None:
        hidden = as_flag(message.get(layout.masked))
        return None if hidden is None else not hidden
    if layout.train is not None:
        return as_flag(message.get(layout.train))
    if message.get(PARTLY):
        raise RecordError(PART_FLAG)
    if message.get(MASK_KEY) is not None:
        raise RecordError(UNTOLD_MASK)
    flags = {as_flag(message[key]) for key in FLAG_KEYS if message.get(key) is not None}
    if len(flags) > 1:
        raise RecordError("a turn's weight, train and loss contradict each other")
    return next(iter(flags), None)


def as_flag(value: Any) -> bool | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RecordError(NOT_A_FLAG)


def words_of(content: Any, role: str) -> tuple[str, dict[str, Any]]:
    """Return a content's text, and the calls and reasoning among its parts. Raises RecordError.

    Text parts are joined with nothing between them, as templates do.
    """
    if content is None:
        return "", {}
    if isinstance(content, str):
        return content, {}
    if role == "tool" and isinstance(content, Mapping):
        return json.dumps(content, ensure_ascii=False), {}  # a result that is not yet text
    if not isinstance(content, list):
        raise RecordError(NOT_MESSAGES)
    found: dict[str, list[Any]] = {"text": [], "reasoning_content": [], "tool_calls": []}
    for part in content:
        key, value = read_part(part)
        found[key] += value if isinstance(value, list) else [value]
    more: dict[str, Any] = {}
    if found["reasoning_content"]:
        more["reasoning_content"] = "\n".join(found["reasoning_content"])
    if found["tool_calls"]:
        more["tool_calls"] = found["tool_calls"]
    return "".join(found["text"]), more


def read_part(part: Any) -> tuple[str, Any]:
    """Return the key that one part of a content adds to, and its value. Raises RecordError."""
    if not isinstance(part, Mapping) or not isinstance(kind := part.get("type", "text"), str):
        raise RecordError(NOT_MESSAGES)
    if any(part.get(key) is not None for key in (*FLAG_KEYS, MASK_KEY)):
        raise RecordError(PART_FLAG)
    value = first_of(part, ("value", "text", kind))
    if kind in ("tool_call", "function_call"):
        return "tool_calls", calls_of(value)
    if kind == "tool_use":
        return "tool_calls", calls_of({**part, "arguments": part.get("input")})
    if any(kind.startswith(medium) for medium in MEDIA_PARTS):
        raise RecordError(NEEDS_MEDIA)
    if kind not in (*TEXT_PARTS, *REASONING_PARTS):
        raise RecordError("a part of unknown type in a message")
    if not isinstance(value, str):
        raise RecordError(NOT_MESSAGES)
    return ("text" if kind in TEXT_PARTS else "reasoning_content"), value


def calls_of(value: Any) -> list[dict[str, Any]]:
    """Return tool calls as `apply_chat_template` gets them, their arguments parsed. Raises RecordError."""
    if isinstance(value, str):
        value = opened(value)
    if value is None or value in ([], ""):
        return []
    calls = value if isinstance(value, list) else [value]
    return [call_of(call) for call in calls]


def call_of(call: Any) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(inner, str):  # {"type": "function", "function": "name", "arguments": ...}
        inner = {"name": inner, "arguments": call.get("arguments")}
    if not isinstance(inner, Mapping) or not isinstance(name := inner.get("name"), str):
        raise RecordError(NOT_A_CALL)
    arguments = first_of(inner, ("arguments", "parameters"))
    if isinstance(arguments, str):
        arguments = opened(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RecordError(NOT_A_CALL)
    ident = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return {"type": "function", **ident, "function": {"name": name, "arguments": dict(arguments)}}
