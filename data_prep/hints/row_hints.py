"""What is told of rows that are read as they stand although they look like chats, or hold markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from data_prep.hints.transcripts import is_transcript
from data_prep.rows.column_looks import Rows, columns_of, texts_in, values_of
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.grouping import columns_read
from data_prep.rows.record_shapes import cut, listed
from data_prep.rows.row_layouts import Layout

SPEAKERS = (
    "from",
    "author",
    "sender",
    "user",
    "username",
    "speaker",
    "nickname",
    "fromname",
    "sendername",
    "authorname",
)
TIMES = ("date", "ts", "time", "timestamp", "datetime", "createdat", "sentat", "created", "createtime", "sent")
MESSAGE_CHARS = 400  # at most, of a message in the middle of a chat; those of articles have more
CHAT_ROWS = 6  # at least
EACH_SAYS = 2  # messages of a speaker, on average: reviews and posts have nearly as many authors as rows
MARKUP = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|ol|p|span|strong|sub|sup|table|td|tr|u|ul)\b[^<>]*>"
    r"|&(?:nbsp|amp|lt|gt|quot|#\d+);",
    re.IGNORECASE,
)
MOST = 0.8  # of texts that look like conversations
MARKED_SHARE = 0.1  # of rows with markup: from here on it is told


def chat_hint(rows: Rows, layout: Layout) -> Iterator[str]:
    """Yield what becomes of a chat's messages that are read as running text, and how to make conversations of them."""
    if not layout.text or len(rows) < CHAT_ROWS:
        return
    names = columns_of(rows)
    speaker = first_named(SPEAKERS, names)
    time = first_named(TIMES, names)
    if speaker is None or time is None:
        return
    said_by = list(map(str, values_of(rows, speaker)))
    lengths = [len(text) for name in layout.text for value in values_of(rows, name) for text in texts_in(value)]
    if not 1 < len(set(said_by)) <= len(said_by) / EACH_SAYS or median(lengths or [0]) > MESSAGE_CHARS:
        return
    text, when, who = (cut(name) for name in (layout.text[0], time, speaker))
    role = who if all(isinstance(value, str | int) for value in values_of(rows, speaker)) else PLACEHOLDER
    fields = f"fields: {{group_by: {PLACEHOLDER}, order_by: {when}, role: {role}, content: {text}}}"
    yield (
        f"the rows look like the messages of a chat: each {text} is trained as a document of its own, without {who} "
        f"and {when}; to train conversations, write one row for each message, with a column that is the same in all "
        f'rows of a conversation, and `{fields}` (docs/rows.md, "Chats and transcripts")'
    )


def transcript_hint(rows: Rows, layout: Layout) -> Iterator[str]:
    """Yield which running texts look like conversations by the names before their lines."""
    for name in layout.text:
        texts = [value for value in values_of(rows, name) if isinstance(value, str)]
        if texts and sum(map(is_transcript, texts)) >= MOST * len(texts):
            yield (
                f"the texts in {cut(name)} look like conversations, with names or times before their lines, and are "
                'trained in full; to train only the answers, convert them (docs/rows.md, "Chats and transcripts")'
            )


def first_named(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of some columns that has one of the wanted names, however it is written."""
    return next((name for name in names if re.sub(r"[ _-]", "", name.casefold()) in wanted), None)


def markup_hint(rows: Rows, layout: Layout) -> Iterator[str]:
    """Yield which columns hold HTML markup that is trained as it stands."""
    found: dict[str, str] = {}
    for name in columns_read(layout, tuple(columns_of(rows))):
        marks = [match for value in values_of(rows, name) if (match := first_mark(value))]
        if len(marks) >= max(2, MARKED_SHARE * len(rows)):
            found[name] = marks[0]
    if found:
        shown = ", ".join(dict.fromkeys(f"`{mark}`" for mark in found.values()))
        yield (
            f"the texts in {listed(found)} hold HTML markup (such as {shown}), which is trained as it stands; "
            "if that is not meant, remove it from the file first"
        )


def first_mark(value: Any) -> str | None:
    """Return the first markup in the texts of a value."""
    return next((match[0] for text in texts_in(value) if (match := MARKUP.search(text))), None)
