"""Recognize conversations that are written as one text: by turn markers, or by what stands before each message."""

from __future__ import annotations

import re
from collections import Counter

from data_prep.rows.turn_markers import STYLES, Markers, parts_of, split, with_shown

TURNS = 2  # at least, of both user and assistant, or of each speaker: a text may quote one
DATED_SHARE, NAMED_SHARE = 0.3, 0.6  # of lines that begin a message; a message may have several lines
FEW_SPEAKERS = 6  # a text with more names before its lines is a list
DAY = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[ap]\.?\s?m\b\.?)?"
DATED = re.compile(  # [12.03.23, 10:00:01] Anna: ...; 12/03/2023, 10:00 - Anna: ...; [10:01] <anna> ...
    rf"[\u200e\u200f]?[\[(]?(?:{DAY}[,T]?\s+)?{TIME}[\])]?\s*(?:[-\u2013]\s*)?"
    r"(?:<([^<>\n]{1,40})>|([^:\n<>]{1,60}):)\s",
    re.IGNORECASE,
)
NAMED = re.compile(r"([^\W\d_][\w.'\u2019-]*(?: [\w.'\u2019-]+){0,2}): \S")
NO_NAMES = ("debug", "info", "warn", "warning", "error", "critical", "note", "todo", "title", "date", "tags")


def marked_style(text: str) -> Markers | None:
    """Return the turn markers of a text with several turns of both user and assistant."""
    for style in STYLES:
        roles, _ = parts_of(style)
        seen = tuple(mark for mark in roles if mark.strip() in text)  # the search for a pattern takes longer
        turns = Counter(roles[mark] for mark in split(text, seen)[1::2]) if len(seen) > 1 else Counter[str]()
        if min(turns["user"], turns["assistant"]) >= TURNS:
            return with_shown(style, [text])
    return None


def is_transcript(text: str) -> bool:
    """Return whether most messages of a text begin with a time and a name, or with one of a few names."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 * TURNS:
        return False
    dated = names_in(lines, DATED)
    if dated.total() >= DATED_SHARE * len(lines):
        return True
    named = names_in(lines, NAMED)
    is_said = named.total() >= NAMED_SHARE * len(lines) and 1 < len(named) <= FEW_SPEAKERS
    return is_said and min(named.values()) >= TURNS


def names_in(lines: list[str], begins: re.Pattern[str]) -> Counter[str]:
    """Count the names before lines; none if they are the levels of a log or keys."""
    found = [match for line in lines if (match := begins.match(line))]
    names = Counter(next(filter(None, match.groups())).strip() for match in found)
    return names if not any(name.casefold() in NO_NAMES for name in names) else Counter()
