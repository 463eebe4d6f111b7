"""A chat template over messages: the text, and which stretches of it the assistant says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cluster.errors import ConfigError, DataError

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]

TEMPLATES = {path.stem: path for path in (Path(__file__).parent / "templates").glob("*.jinja")}
CHATML = TEMPLATES["chatml"]
MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MEND = "put {% generation %} ... {% endgeneration %} around what the assistant says and its stop token (as in "
MEND += f"{CHATML}) and name the file in data.chat_template, or write `chat_template: plain`"


class UntoldMaskError(Exception):
    """The template does not tell which of its tokens the assistant says; the text says why."""


def read_template(name: str | None, own: str | None) -> str | None:
    """Return the template that `data.chat_template` names, or else the tokenizer's own."""
    if name is None:
        return own
    path = TEMPLATES.get(name) or Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template: {name}: expected 'plain', 'chatml' or the path of a Jinja file: {error}"
        ) from None


def render(messages: Messages, template: str, tokens: Mapping[str, str]) -> tuple[str, list[Span]]:
    """Return a conversation's text and the spans of it, in characters, that the assistant says.

    `tokens` are the tokenizer's special tokens by name, as the template uses them. Raises UntoldMaskError.
    """
    if MARKERS.search(template):
        return rendered(messages, template, tokens, marked=True)
    text, _ = rendered(messages, template, tokens)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            spans.append(span_by_prefix(messages[: index + 1], text, template, tokens))
    return text, spans


def span_by_prefix(messages: Messages, text: str, template: str, tokens: Mapping[str, str]) -> Span:
    """Return the span that the last of `messages` adds to what a model is given to answer."""
    before, _ = rendered(messages[:-1], template, tokens, ask=True)
    through, _ = rendered(messages, template, tokens)
    if not (through.startswith(before) and text.startswith(through)):
        raise UntoldMaskError(
            "it has no {% generation %} markers, and writes a turn otherwise when another one follows"
        )
    said = through[len(before) :].rstrip()
    if not said.lstrip().startswith(messages[-1]["content"].strip()):
        raise UntoldMaskError(
            "it has no {% generation %} markers, and does not put the answer right after the prompt for it"
        )
    return len(before), len(before) + len(said)


def rendered(
    messages: Messages, template: str, tokens: Mapping[str, str], *, ask: bool = False, marked: bool = False
) -> tuple[str, list[Span]]:
    """Render with transformers' own renderer; `ask` ends with the prompt for an answer, `marked` returns the spans."""
    from transformers.utils.chat_template_utils import render_jinja_template  # 0.6 s; text needs none of it

    try:
        texts, spans = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=ask,
            **tokens,
        )
    except TemplateError as error:
        raise UntoldMaskError(f"it refuses this conversation: {error}") from None
    return texts[0], [(start, end) for start, end in spans[0]] if marked else []


def check_template(template: str, tokens: Mapping[str, str], controls: Sequence[str]) -> None:
    """Raise DataError unless the template tells what the assistant says and ends it with one of `controls`."""
    probe = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")]
    try:
        text, spans = render(probe, template, tokens)
    except UntoldMaskError as error:
        raise DataError(f"the chat template does not tell what to train: {error}; {MEND}") from None
    if len(spans) != 2:
        raise DataError(f"the chat template marks {len(spans)} of 2 assistant turns; {MEND}")
    for start, end in spans:
        if not text[start:end].rstrip().endswith(tuple(controls)):
            raise DataError(
                f"the chat template ends what the assistant says with {text[start:end][-16:]!r}, which is no special "
                f"token of the tokenizer (it has {', '.join(controls)}): the model would never learn to stop; {MEND}"
            )
