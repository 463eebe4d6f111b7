"""Exponents and charges, such as 10³ and Na⁺: superscripts of pages, written in the superscript characters of Unicode.

Written as they are they would join the number before them: 10<sup>3</sup> would read 103.
"""

from __future__ import annotations

import re
from typing import Any

RAISED = str.maketrans("0123456789+-\u2212\u2013", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻")
EXPONENT = re.compile("[0-9+\u2212\u2013-]+")
# What may have an exponent: a number, a closing bracket, or a letter or two, alone or at the end of a formula. Longer
# words are the usual units of many letters, others would have the number of a note.
UNITS = "min sec mol rad deg Pa kPa MPa GPa bar kcal cal ppm km cm mm nm ft yd mi kg mg Hz kHz MHz GHz"
BASE = re.compile(rf"(?:[0-9)\]}}]|(?<![^\W\d_])(?:[^\W\d_]{{1,2}}|{UNITS.replace(' ', '|')}))\Z")
BEFORE_CHARS = 8  # of a line that decide it
BREAKS = ("br", "td", "th")
OF_A_NOTE = re.compile(r"ref|note|cite|\bfn", re.IGNORECASE)
NOTE_KEYS = ("id", "class", "role", "epub:type")


def raised(text: str, before: str) -> str | None:
    """Return a superscript in superscript characters if it is an exponent of what is `before`; None if it is none."""
    exponent = text.strip()
    is_exponent = EXPONENT.fullmatch(exponent) and BASE.search(before[-BEFORE_CHARS:])
    return exponent.translate(RAISED) if is_exponent else None


def marks_note(attributes: Any) -> bool:
    """Return whether a superscript is the reference to a note by its attributes."""
    return any(OF_A_NOTE.search(str(attributes.get(key) or "")) for key in NOTE_KEYS)


def with_superscripts(tree: Any, blocks: frozenset[str]) -> Any:
    """Return a page's lxml tree with its exponents in superscript characters; `blocks` begin and end a line."""
    from lxml.etree import iterwalk

    before = ""
    exponents: list[tuple[Any, str]] = []  # the tree is changed after the walk
    for event, element in iterwalk(tree, events=("start", "end")):
        if element.tag in blocks or element.tag in BREAKS:
            before = ""
        if event == "start" and element.tag == "sup" and (exponent := exponent_of(element, before)) is not None:
            exponents.append((element, exponent))
        text = element.text if event == "start" else element.tail
        before = (before + (text or ""))[-BEFORE_CHARS:]
    for element, exponent in exponents:
        tail = element.tail
        element.clear(keep_tail=True)
        element.text, element.tail = exponent, tail
    return tree


def exponent_of(element: Any, before: str) -> str | None:
    """Return an lxml element's superscript in superscript characters; None if it is no exponent."""
    if marks_note(element.attrib) or next(element.iterdescendants("a"), None) is not None:
        return None
    return raised("".join(element.itertext()), before)
