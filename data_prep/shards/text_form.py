"""The form of texts that prepared texts and the prompts of a model trained on them have in common."""

from __future__ import annotations

import re

LINE_ENDS = {  # CR LF, CR, VT, FF, the separators of files, groups, records and units, and NEL
    "\r\n": "\n",
    **dict.fromkeys("\r\x0b\x0c\x1c\x1d\x1e\x85", "\n"),
    "\x1f": " ",
}
FROM_WINDOWS = re.compile("[\x80-\x84\x86-\x9f]")  # the C1 controls but for NEL, which also ends lines
CHARACTERS = {
    code: character for code in range(0x80, 0xA0) if (character := bytes([code]).decode("cp1252", errors="ignore"))
}


def with_line_feeds(text: str) -> str:
    """Return a text whose lines and pages end with a line feed, whatever they ended with."""
    for end, instead in LINE_ENDS.items():
        text = text.replace(end, instead)
    return text


def with_windows_characters(text: str) -> str:
    """Return a text that was Windows-1252 and read as Latin-1 with its quotation marks, dashes and ellipses.

    NEL alone is no sign of such a text, and stays.
    """
    return text if FROM_WINDOWS.search(text) is None else text.translate(CHARACTERS)
