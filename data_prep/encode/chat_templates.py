"""Chat templates: found by name, dated, and rendered by transformers' own renderer."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cluster.errors import ConfigError

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]

TEMPLATES = {path.stem: path for path in (Path(__file__).parent / "templates").glob("*.jinja")}
MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
NOW = re.compile(r"strftime_now\(\s*(?:'([^']*)'|\"([^\"]*)\")\s*\)")
FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
NOT_FOR_TEMPLATES = frozenset(  # what `apply_chat_template` is told beside variables: a row that holds it means no text
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "return_assistant_tokens_mask",
    }
)


class RefusedError(Exception):
    """The template does not write this conversation; the text says why."""


class ChatTemplate:
    """One template with the special tokens that it writes, by name."""

    def __init__(self, text: str, tokens: Mapping[str, str]) -> None:
        self.text, self.tokens = text, tokens
        self.is_marked = MARKERS.search(text) is not None
        # these write turn after turn, each by itself: tests/data_prep/encode/test_masks.py
        self.is_ours = text in {path.read_text(encoding="utf-8") for path in TEMPLATES.values()}

    def write(self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False) -> str:
        """Return the text of messages; `ask` ends it with the prompt for an answer. Raises RefusedError."""
        return self.rendered(messages, variables, ask=ask)[0]

    def marked(self, messages: Messages, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text and the spans, in characters, that stand between markers. Raises RefusedError."""
        return self.rendered(messages, variables, marked=True)

    def rendered(
        self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False, marked: bool = False
    ) -> tuple[str, list[Span]]:
        """Return what `write` and `marked` do. Raises RefusedError."""
        from transformers.utils.chat_template_utils import render_jinja_template  # 0.6 s; text needs none of it

        given = {key: value for key, value in variables.items() if key not in NOT_FOR_TEMPLATES}
        try:
            texts, spans = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.text,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=ask,
                **{**self.tokens, **given},
            )
        except FAILURES as error:
            raise RefusedError(str(error) or type(error).__name__) from None
        return texts[0], [(start, end) for start, end in spans[0] if end > start] if marked else []


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


def dated(template: str, today: datetime.date) -> str:
    """Return a template that writes `today` where it would write the day on which it is rendered.

    So no preparation holds rows of two days, and the date is part of what its slices are named after.
    """
    return NOW.sub(lambda match: json.dumps(today.strftime(match[1] or match[2])), template)
