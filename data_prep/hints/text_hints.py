"""What is told of text files that become running text although they look like conversations or cards."""

from __future__ import annotations

from pathlib import Path, PurePath

from data_prep.files.bounded_io import RecordError, open_stream
from data_prep.files.formats import CODE, Format
from data_prep.hints.transcripts import is_transcript, marked_style
from data_prep.rows.field_proposals import joined

LOOK_BYTES = 64 * 2**10
ANKI_BEGINS = "#separator:"  # the first line of its exports
SOURCE_CODE = frozenset(CODE.split())
TRANSCRIPT = (
    "looks like a conversation and is trained in full, with the names and times in it; to train only the answers, "
    'convert it into rows (docs/rows.md, "Chats and transcripts")'
)


def text_hints(location: Path, name: str, form: Format) -> tuple[str, ...]:
    """Return what to tell a person of a text file, from its beginning; nothing of source code."""
    if form.kind != "text" or SOURCE_CODE & {suffix.lower() for suffix in PurePath(name).suffixes[-2:]}:
        return ()
    try:
        with open_stream(location, form.compression, form.encoding, cr_lines=form.cr_lines) as stream:
            text = stream.read(LOOK_BYTES).decode("utf-8-sig", "replace")
    except RecordError:
        return ()  # reading meets it too, and counts it
    if text.startswith(ANKI_BEGINS):
        return ("an export of Anki, trained as one running text; for its cards as pairs write `format: tsv`",)
    style = marked_style(text)
    if style is not None:
        lines = joined([("messages", "text", "")], style)
        return (
            "looks like conversations and is trained in full, with its markers; to train only the answers, write each "
            f'conversation as a row {{"text": ...}} of a .jsonl file, and below its source `{lines}`',
        )
    return (TRANSCRIPT,) if is_transcript(text) else ()
