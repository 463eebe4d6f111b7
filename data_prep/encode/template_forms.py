"""The forms in which a chat template accepts the parts of a conversation, found by rendering small probes once each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.documents import Document, Turn
from data_prep.encode.chat_templates import ChatTemplate, RefusedError
from data_prep.encode.template_messages import (
    Line,
    Message,
    as_parts,
    call_text,
    named_results,
    text_of,
    tools_text,
    without_content,
)

REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what most templates read
EMPTY: tuple[Message, ...] = ({}, {"content": ""}, {"content": None})  # how nothing but a call may be said
SYSTEM = ("system", "developer")
SHORT_ID = 9  # characters of the ids that Mistral's templates demand

USER, ANSWER = {"role": "user", "content": "Probe?"}, {"role": "assistant", "content": "Probed."}
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "What."}}},
    },
}

TOOLS_TOLD = "conversations whose tools stand in a system turn, since the chat template writes none"
CALLS_TOLD = "tool calls in <tool_call>, since the chat template writes none"
RESULTS_TOLD = "tool results in <tool_response>, since the chat template writes none"
TEXT_LEFT = "texts beside tool calls left out, since the chat template writes only the calls"
REASONING_TOLD = "reasonings in <think>, since the chat template reads none"
SYSTEM_MOVED = "system turns put before the user's, since the chat template takes none"
IDS_MADE = "ids of tool calls replaced, since the chat template takes no others"


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a template takes tool calls; `empty` is the content of a message that only calls."""

    as_text: bool  # the arguments are JSON text, not an object
    empty: Message
    short_ids: bool


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A conversation as it is given to its template; `flags` says for each message whether the row wants it trained."""

    messages: list[Message]
    flags: list[bool | None]
    variables: Mapping[str, Any]


class Forms:
    """The forms that a template accepts. `changed` counts what had to be converted."""

    def __init__(self, template: ChatTemplate, changed: Counter[str]) -> None:
        self.template, self.changed = template, changed

    def shows(self, messages: Sequence[Message], wanted: str, variables: Mapping[str, Any] | None = None) -> str:
        """Return the text of probes if it holds `wanted`, else nothing."""
        try:
            text = self.template.write(messages, variables or {})
        except RefusedError:
            return ""
        return text if wanted in text else ""

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system's turn."""
        told = [{"role": "system", "content": "Probe system."}, USER, ANSWER]
        told = [as_parts(message) for message in told] if self.wants_parts else told
        return any(self.shows(probe, "Probe system.") for probe in (told, told[:2]))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template writes the text of a content that is a list of parts."""
        parts = [{"type": "text", "text": "probe part"}]
        text = self.shows([{"role": "user", "content": parts}, {"role": "assistant", "content": parts}], "probe part")
        return text.count("probe part") == 2 and "'type'" not in text and '"type"' not in text

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template takes contents as parts only, as some of models that also see do."""
        return not self.shows([USER, ANSWER], "Probed.") and self.takes_parts

    @cached_property
    def reasoning(self) -> str | None:
        """The key under which the template reads an answer's reasoning."""
        asked = [[USER, {**ANSWER, key: "probe thought"}] for key in REASONING]
        return next((key for key, probe in zip(REASONING, asked, strict=True) if self.shows(probe, "thought")), None)

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools that it is given."""
        return any(self.shows(probe, "probe_tool", {"tools": [TOOL]}) for probe in ([USER], [USER, ANSWER]))

    @cached_property
    def calls(self) -> CallForm | None:
        """How the template takes calls; None: it writes none."""
        nones = self.shows([USER, ANSWER], "Probed.").count("None")
        for as_text, empty, call_id in itertools.product((False, True), EMPTY, ("call_1", "a" * SHORT_ID)):
            form = CallForm(as_text=as_text, empty=empty, short_ids=call_id != "call_1")
            text = self.shows([USER, probe_call(form, call_id)], "probe_tool")
            garbled = any(sign in text for sign in ("'probe_key'", r"\"probe_key")) or text.count("None") > nones
            if "probe value" in text and not garbled:
                return form
        return None

    @cached_property
    def writes_results(self) -> bool:
        """Whether the template writes what a tool returned, if the tool is named."""
        return self.shows_result({"name": "probe_tool"})

    @cached_property
    def takes_unnamed_results(self) -> bool:
        """Whether the template writes what a tool returned, if no tool is named."""
        return self.shows_result({})

    def shows_result(self, named: Message) -> bool:
        """Return whether the template writes what a tool returned."""
        call = ANSWER if self.calls is None else probe_call(self.calls, "a" * SHORT_ID)
        result = {"role": "tool", **named, "tool_call_id": "a" * SHORT_ID, "content": "probe result"}
        return bool(self.shows([USER, call, result], "probe result"))

    def fed(self, document: Document) -> Fed:
        """Return a document in the forms that the template accepts, and count the conversions."""
        variables = {key: value for key, value in document.variables.items() if key != "tools" or value}
        lines = [(self.message(turn), turn.is_trained) for turn in document.turns]
        if any(message["role"] == "tool" for message, _ in lines) and not (self.calls and self.writes_results):
            lines = list(self.told_results(lines))
        elif any(message["role"] == "tool" for message, _ in lines) and not self.takes_unnamed_results:
            lines = named_results(lines)
        if variables.get("tools") and not self.writes_tools:
            lines = self.with_system(lines, tools_text(variables.pop("tools"), are_calls_ours=self.calls is None))
            self.changed[TOOLS_TOLD] += 1
        if lines[0][0]["role"] in SYSTEM and not self.takes_system:
            lines = self.without_system(lines)
        messages = [as_parts(message) if self.wants_parts else message for message, _ in lines]
        return Fed(messages=messages, flags=[flag for _, flag in lines], variables=variables)

    def message(self, turn: Turn) -> Message:
        """Return one turn as the template takes it."""
        if not turn.more:
            return {"role": turn.role, "content": turn.text}
        rest = {key: value for key, value in turn.more.items() if value and key not in ("content", *REASONING)}
        content = turn.more.get("content", turn.text)
        if isinstance(content, list) and not self.takes_parts:
            content = text_of(content)
        said = {"role": turn.role, "content": content or "", **rest}
        if "tool_call_id" in said and self.calls is not None and self.calls.short_ids:
            said["tool_call_id"] = self.short_id(str(said["tool_call_id"]))
        if turn.role == "assistant":
            said = self.with_calls(said, is_null=content is None) if rest.get("tool_calls") else said
            reasoning = next((turn.more[key] for key in REASONING if turn.more.get(key)), None)
            said = said if reasoning is None else self.with_reasoning(said, reasoning)
        return said

    def with_reasoning(self, message: Message, reasoning: str) -> Message:
        """Return a message with its reasoning where the template reads it, or else in its text."""
        opened = self.opens_reasoning and not self.template.is_marked
        if self.reasoning is not None or opened:
            return {**message, self.reasoning or REASONING[0]: reasoning}
        self.changed[REASONING_TOLD] += 1
        if message.get("tool_calls") and not self.calls_beside_text:
            return {**message, REASONING[0]: reasoning}  # it is put before the call where that is trained
        thought = f"<think>\n{reasoning.strip()}\n</think>\n\n{text_of(message.get('content'))}"
        return {**message, "content": thought}

    def with_calls(self, message: Message, *, is_null: bool) -> Message:
        """Return a message that calls tools in the template's form, or with the calls as text if it has none."""
        form, calls = self.calls, message["tool_calls"]
        if form is None:
            self.changed[CALLS_TOLD] += len(calls)
            told = [call_text(call["function"]) for call in calls]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            return {**rest, "content": "\n".join(filter(None, (text_of(message["content"]), *told)))}
        if message["content"] and not self.calls_beside_text:
            self.changed[TEXT_LEFT] += 1
            message, is_null = {**message, "content": ""}, True
        if not message["content"]:
            is_kept = not is_null and self.calls_beside_nothing
            message = message if is_kept else {**without_content(message), **form.empty}
        return {**message, "tool_calls": [self.call(call, form) for call in calls]}

    @cached_property
    def calls_beside_text(self) -> bool:
        """Whether the template writes what is said beside a call, and the call."""
        form = self.calls
        call = {} if form is None else {**probe_call(form, "a" * SHORT_ID), "content": "Probe text."}
        return form is not None and "probe value" in self.shows([USER, call], "Probe text.")

    @cached_property
    def opens_reasoning(self) -> bool:
        """Whether the prompt for an answer opens a reasoning, which the model then ends."""
        try:
            return self.template.write([USER], {}, ask=True).rstrip().endswith("<think>")
        except RefusedError:
            return False

    @cached_property
    def calls_beside_nothing(self) -> bool:
        """Whether the template writes calls beside a content that is an empty text."""
        form = self.calls
        call = {} if form is None else {**probe_call(form, "a" * SHORT_ID), "content": ""}
        return form is not None and bool(self.shows([USER, call], "probe value"))

    def call(self, call: Mapping[str, Any], form: CallForm) -> Message:
        """Return a tool call in the form that the template takes."""
        function = dict(call["function"])
        if form.as_text and not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
        made = {"type": "function", **call, "function": function}
        if form.short_ids:
            made["id"] = self.short_id(str(call.get("id", "")))
        return made

    def short_id(self, call_id: str) -> str:
        """Return an id as it is if Mistral's templates take it, else one made of it."""
        if len(call_id) == SHORT_ID and call_id.isalnum():
            return call_id
        self.changed[IDS_MADE] += 1
        return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID]

    def told_results(self, lines: Sequence[Line]) -> Iterator[Line]:
        """Yield the messages, each run of tools' results as one message with them as text."""
        for is_result, run in itertools.groupby(lines, key=lambda line: line[0]["role"] == "tool"):
            if not is_result:
                yield from run
                continue
            told = [f"<tool_response>\n{text_of(message['content'])}\n</tool_response>" for message, _ in run]
            self.changed[RESULTS_TOLD] += len(told)
            if self.writes_results:
                yield from (({"role": "tool", "content": text}, None) for text in told)
            else:
                yield {"role": "user", "content": "\n".join(told)}, None

    def with_system(self, lines: list[Line], told: str) -> list[Line]:
        """Return the messages with a text at the end of the system's turn."""
        first, flag = lines[0]
        if first["role"] in SYSTEM:
            return [({**first, "content": f"{text_of(first['content'])}\n\n{told}"}, flag), *lines[1:]]
        return [({"role": "system", "content": told}, None), *lines]

    def without_system(self, lines: list[Line]) -> list[Line]:
        """Return the messages with the system's turn put before the first of the user's, as Gemma's templates do."""
        (system, _), *rest = lines
        if not rest or rest[0][0]["role"] != "user":
            return lines
        self.changed[SYSTEM_MOVED] += 1
        first, flag = rest[0]
        told = f"{text_of(system['content'])}\n\n{text_of(first['content'])}"
        return [({**first, "content": told}, flag), *rest[1:]]


def probe_call(form: CallForm, call_id: str) -> Message:
    """Return a message that calls the probes' tool."""
    arguments: Any = {"probe_key": "probe value"}
    function = {"name": "probe_tool", "arguments": json.dumps(arguments) if form.as_text else arguments}
    return {
        "role": "assistant",
        **form.empty,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }
