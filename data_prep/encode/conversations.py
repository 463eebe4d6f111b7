"""What of a conversation is trained: each answer in exactly the text that a server would have had.

A template may render earlier turns differently once others follow: Qwen 3 and DeepSeek R1 drop earlier reasoning,
gpt-oss ends answers differently, Mistral moves the tools. A server renders the conversation again for each answer, so
each answer is trained in the rendering that ends with it. Answers whose renderings extend one another share a sequence;
if the template renders each turn independently, that is the whole conversation.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import DataError
from data_prep.documents import shortened
from data_prep.encode.chat_templates import TEMPLATES, ChatTemplate, Messages, RefusedError, Span, dated, read_template
from data_prep.encode.template_forms import ANSWER, REASONING, USER
from data_prep.files.bounded_io import DOCUMENT_BYTES

__all__ = ["CHATML", "TEMPLATES", "ChatTemplate", "Span", "Written", "check_template", "dated", "read_template"]

CHATML = TEMPLATES["chatml"]
FIX = "put {% generation %} ... {% endgeneration %} around what the assistant says and its stop token (as in "
FIX += f"{CHATML}) and name the file in data.chat_template, or write `chat_template: plain`"
ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")  # of models that end turns otherwise
THINK = re.compile(r"</?think>")
DETAIL_CHARS = 60  # of a text in the detail of a rejection
OPENED, CLOSED = "<think>", "</think>"

REFUSED = "refused by the chat template"
LEFT_OUT = "partly left out by the chat template"
TOO_LONG = "longer than 32 MiB as the sequences that the chat template needs"
UNTOLD = "the chat template does not put the answer after the prompt for it"


class UnusableError(Exception):
    """A conversation that cannot be trained on: `reason` is one of few, `detail` is its own."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Written:
    """One sequence: its text, and the spans of it, in characters, that are trained."""

    text: str
    spans: tuple[Span, ...]

    @property
    def through(self) -> str:
        """The text up to the end of what is trained in it."""
        return self.text[: self.spans[-1][1]] if self.spans else ""


def written(
    template: ChatTemplate, messages: Messages, variables: Mapping[str, Any], answers: Sequence[int]
) -> list[Written]:
    """Return the sequences in which the answers, given by their places in `messages`, are trained.

    Raises UnusableError.
    """
    try:
        if template.is_marked:
            at_once = written_at_once(template, messages, variables, answers)
            if at_once is not None:
                return [at_once]
        alone = (answer_written(template, messages[: place + 1], variables) for place in answers)
        sequences = list(joined(alone))
    except RefusedError as error:
        raise UnusableError(REFUSED, str(error)) from None
    if answers[-1] != len(messages) - 1:
        sequences[-1] = with_rest(sequences[-1], template, messages, variables)
    return sequences


def written_at_once(
    template: ChatTemplate, messages: Messages, variables: Mapping[str, Any], answers: Sequence[int]
) -> Written | None:
    """Return a conversation as one sequence by its template's markers; None if that changes an earlier answer."""
    text, spans = template.marked(messages, variables)
    every = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if template.is_ours and len(spans) == len(every):
        check_said(text, [messages[place] for place in answers])
        return Written(text, tuple(span for place, span in zip(every, spans, strict=True) if place in answers))
    ends = {}
    for place in every:
        upto = template.write(messages[: place + 1], variables).rstrip()
        if not text.startswith(upto):
            return None
        ends[place] = len(upto)
    check_said(text, [messages[place] for place in answers])
    begins = [0, *ends.values()]
    trained = {place: (begin, ends[place]) for place, begin in zip(every, begins, strict=False) if place in answers}
    chosen = (span for span in spans if any(begin <= span[0] < end for begin, end in trained.values()))
    return Written(text, tuple(chosen))


def answer_written(template: ChatTemplate, messages: Messages, variables: Mapping[str, Any]) -> Written:
    """Return the last of `messages` as a server has it: after the prompt for it. Raises RefusedError, UnusableError."""
    through = template.write(messages, variables)
    before = prompt_written(template, messages, variables, through)
    thought = reasoning_of(messages[-1])
    said = said_after(before, through, messages) or said_after_prompt(template, before, through, messages, variables)
    if said is None and thought and "enable_thinking" not in variables:  # only a server that is asked to think gets one
        return answer_written(template, messages, {**variables, "enable_thinking": True})
    if said is None:
        raise UnusableError(UNTOLD, shortened(through[common(before, through) :], DETAIL_CHARS))
    if thought and thought not in said and not template.is_marked:
        said = f"{OPENED}\n{thought}\n{CLOSED}\n\n{said.lstrip()}"
    check_said(said, messages[-1:])
    if template.is_marked:
        text, spans = template.marked(messages, variables)
        shared = common(before, text)
        return Written(text, tuple(span for span in spans if span[1] > shared))
    text = before + said
    return Written(text, ((len(before), len(text.rstrip())),))


def prompt_written(template: ChatTemplate, messages: Messages, variables: Mapping[str, Any], through: str) -> str:
    """Return what a model is given to answer. Before a first answer many templates refuse, or write no system's turn:
    there it is the beginning of `through`, up to the end of the first prompt."""
    try:
        before = template.write(messages[:-1], variables, ask=True)
    except RefusedError:
        if len(messages) > 1:
            raise
        before = ""
    if len(messages) > 1 or (before and through.startswith(before)):
        return before
    asked = template.write([USER], variables, ask=True).removeprefix(template.write([USER], variables))
    begin = through.find(asked) + len(asked) if asked in through else 0
    return through[:begin] if begin else through[: max(through.find(next(texts_said(messages[0]), "")), 0)]


def said_after(before: str, through: str, messages: Messages) -> str | None:
    """Return what the model is to say after `before`, some form of which is in `through`; None if it is not found."""
    if through.startswith(before):
        return through[len(before) :]
    opened = before.rstrip()
    if opened.endswith(OPENED) and through.startswith(opened.removesuffix(OPENED)):
        rest = through[len(opened) - len(OPENED) :]
        if CLOSED in rest:
            return rest.lstrip().removeprefix(OPENED).lstrip("\n")
        thought = reasoning_of(messages[-1])
        ended = f"{thought}\n{CLOSED}" if thought else CLOSED
        return ended + (rest if rest.startswith("\n") else f"\n\n{rest}")
    last = list(texts_said(messages[-2]))[-1:] if len(messages) > 1 else []
    at = before.rfind(last[0]) if last else -1  # the turn before and the prompt stand in both, whatever precedes them
    found = through.rfind(before[at:]) if at >= 0 else -1
    return through[found + len(before) - at :] if found >= 0 else None


def said_after_prompt(
    template: ChatTemplate, before: str, through: str, messages: Messages, variables: Mapping[str, Any]
) -> str | None:
    """Return what the model is to say if the prompt for it holds more than the answer's turn begins with."""
    shared = common(before, through)
    turns = template.write(messages[:-1], variables) if len(messages) > 1 else before
    if not before.startswith(turns) or shared <= len(turns) or CLOSED in through[shared:]:
        return None
    return through[shared:]


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the reasoning of an answer, from its own key or its content; empty if there is none."""
    reasoning = next((message[key] for key in REASONING if message.get(key)), None)
    content = message.get("content")
    if reasoning is None and isinstance(content, str) and CLOSED in content:
        reasoning = content.rpartition(CLOSED)[0].rpartition(OPENED)[2]
    return (reasoning or "").strip()


def joined(answers: Iterable[Written]) -> Iterator[Written]:
    """Yield answers in as few sequences as possible: an answer extends the one before if it begins with its text."""
    current: Written | None = None
    size = 0
    for answer in answers:
        if current is not None and answer.text.startswith(current.through):
            current = replace(answer, spans=(*current.spans, *answer.spans))
            continue
        size += len(answer.text)
        if size > DOCUMENT_BYTES:
            raise UnusableError(TOO_LONG)
        if current is not None:
            yield current
        current = answer
    if current is not None:
        yield current


def with_rest(last: Written, template: ChatTemplate, messages: Messages, variables: Mapping[str, Any]) -> Written:
    """Return the last sequence with the turns that follow its answers, if the rendering with them extends it."""
    try:
        whole = template.write(messages, variables)
    except RefusedError:
        return last
    return replace(last, text=whole) if whole.startswith(last.through) else last


def check_said(text: str, messages: Messages) -> None:
    """Raise UnusableError unless the text contains all that the messages say, plain or escaped as in JSON or code."""
    for said in (said for message in messages for said in texts_said(message)):
        if said not in text and not any(spelled in text for spelled in spellings(said)):
            raise UnusableError(LEFT_OUT, shortened(said, DETAIL_CHARS))


def spellings(said: str) -> Iterator[str]:
    """Yield a text as it may be escaped between quotation marks."""
    yield from (json.dumps(said, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    yield said.replace("\\", r"\\").replace("'", r"\'")


def texts_said(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield each text of a message as a template may strip it, in the order in which it is said."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    contents = [piece for part in parts for piece in THINK.split(part.get("text") or "")]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    reasoning = next((message[key] for key in REASONING if message.get(key)), "")
    said = itertools.chain([reasoning], contents, *([call["name"], *leaves(call.get("arguments"))] for call in calls))
    return filter(None, map(str.strip, said))


def leaves(value: Any) -> Iterator[str]:
    """Yield the texts in JSON-like data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)


def common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # `one[:low]` is in common
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def turn_tokens(template: str, tokens: Mapping[str, str], added: Sequence[str]) -> frozenset[str]:
    """Return which of a tokenizer's added tokens the template begins and ends turns with; all if that is not clear.

    They are in a conversation whatever is said in it, unlike tokens inside an answer, such as `<tool_call>`. Blank
    ones, such as Gemma's for line feeds, are in both.
    """
    added = [token for token in added if token.strip()]
    chat, (user, answer) = ChatTemplate(template, tokens), (USER, ANSWER)
    try:
        between, ended = chat.write([user, answer, user], {}), chat.write([user, answer], {}).rstrip()
    except RefusedError:
        return frozenset(added)
    written_there = (token for token in added if token in between or ended.endswith(token) or token in ENDS)
    return frozenset(written_there) | {*tokens.values()}


def check_template(template: str, tokens: Mapping[str, str], controls: Sequence[str]) -> None:
    """Raise DataError unless the template shows what the assistant says and ends it with one of `controls`.

    Conversations of several kinds are tried, since one kind that works is enough.
    """
    chat = ChatTemplate(template, tokens)
    asked: list[list[dict[str, Any]]] = [
        [{"role": role, "content": f"{role} {n}"} for role in ("user", "assistant")] for n in (1, 2)
    ]
    system = {"role": "system", "content": "system 1"}
    problem = None
    told = [*asked[0], *asked[1]]
    in_parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in told]
    for probe in (told, asked[0], [system, *asked[0]], in_parts):
        answers = [place for place, message in enumerate(probe) if message["role"] == "assistant"]
        try:
            sequences = written(chat, probe, {}, answers)
            break
        except UnusableError as error:
            problem = problem or error
    else:
        raise DataError(f"the chat template does not tell what to train: {problem}; {FIX}")
    ends = [sequence.text[start:end].rstrip() for sequence in sequences for start, end in sequence.spans]
    if len(ends) < len(answers):
        raise DataError(f"the chat template marks {len(ends)} of {len(answers)} assistant turns; {FIX}")
    for end in ends if len(ends) == len(answers) else ends[-1:]:  # markers may enclose only parts of an answer
        if not end.endswith(tuple(controls)):
            raise DataError(
                f"the chat template ends what the assistant says with {end[-16:]!r}, which is no special "
                f"token of the tokenizer (it has {', '.join(controls)}): the model would never learn to stop; {FIX}"
            )
