"""Keep what trafilatura drops of an article: headings and questions before its paragraphs, code and tables in figures.

In a page without an element `article` or `main`, trafilatura keeps the paragraphs alone. A heading is put before a line
of the article only if the line follows it in the same part of the page. All work here is linear in the page's size.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.read.pages.markup import HTML_BLOCKS, HTML_SKIPPED

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
BLOCKS = ("p", "div", "ul", "ol", "dl", "pre", "table", "blockquote", "section", *HEADINGS)
LISTINGS = frozenset(("pre", "table", "blockquote"))  # a figure with one is no picture
OUTSIDE = frozenset(("aside", "nav", "footer", "menu", "dialog"))
ARTICLES = frozenset(("article", "main"))
DEPTH = 64  # of elements around a heading that hold nothing else
MOST_BEFORE = 3  # introductions of a line; more are a list of other pages
PREFORMATTED = frozenset(("pre", "listing", "xmp", "plaintext", "textarea"))
LINES = HTML_BLOCKS | PREFORMATTED | {"tr"}
WORD = re.compile(r"\w+")


def unfolded(tree: Any) -> Any:
    """Return a page's lxml tree in which what trafilatura would drop is in elements that it keeps."""
    for inner in headings_in_summaries(tree):
        inner.tag = "span"  # a heading in a heading takes the text after it away
    for figure in figures_with_listings(tree):
        figure.tag = "div"
    for details in list(tree.iter("details")):
        unfold(details)
    return tree


def headings_in_summaries(tree: Any) -> list[Any]:
    """Return the headings inside of summaries."""
    from lxml.etree import iterwalk

    found, depth = [], 0
    for event, element in iterwalk(tree, events=("start", "end"), tag=("summary", *HEADINGS)):
        if element.tag == "summary":
            depth += 1 if event == "start" else -1
        elif depth and event == "start":
            found.append(element)
    return found


def figures_with_listings(tree: Any) -> list[Any]:
    """Return the figures around listings, tables and quotations."""
    from lxml.etree import iterwalk

    found: list[Any] = []
    around: list[Any] = []  # figures in which there is none so far
    for event, element in iterwalk(tree, events=("start", "end"), tag=("figure", *LISTINGS)):
        if element.tag in LISTINGS:
            found += around
            around.clear()
        elif event == "start":
            around.append(element)
        elif around:
            around.pop()
    return found


def unfold(details: Any) -> None:
    """Make a folded part a heading and its text."""
    details.tag = "div"
    for below in details:
        if below.tag == "summary":
            below.tag = "h3"
        elif below.tag == "div" and next(below.iterdescendants(*BLOCKS), None) is None:
            below.tag = "p"


def with_headings(found: str, on_page: Sequence[tuple[str, list[str]]]) -> str:
    """Return an extracted article with the headings that are missing before lines of it."""
    lines = found.split("\n")
    there, seen = Counter(map(words_of, lines)), Counter(words_of(line) for line, _ in on_page)
    missing: dict[str, deque[list[str]]] = {}
    for line, before in on_page:
        missing.setdefault(words_of(line), deque()).append(before)
    result: list[str] = []
    for line in lines:
        words = words_of(line)
        if words and there[words] == seen[words]:  # else it is unknown which line of the page this one is
            result += after_kept(missing[words].popleft(), result)
        result.append(line)
    return "\n".join(result)


def after_kept(before: list[str], result: list[str]) -> list[str]:
    """Return the introductions of a line after the last that is among the lines just before it: those before that one
    would come too late.
    """
    kept = {words_of(line) for line in result[-len(before) :]} if before else set()
    last = max((number for number, line in enumerate(before, 1) if words_of(line) in kept), default=0)
    return before[last:]


def introduced_lines(tree: Any) -> list[tuple[str, list[str]]]:
    """Return the lines of a page that introduce nothing, each with the headings right before it."""
    from lxml.etree import iterwalk

    page = Outline()
    for event, element in iterwalk(tree, events=("start", "end")):
        page.open(element) if event == "start" else page.close(element)
    page.end_line()
    return page.lines


@dataclass(slots=True)
class Heading:
    """A heading, and the part of the page that it belongs to."""

    element: Any
    part: Any
    text: str = ""
    leads_elsewhere: bool = False


class Outline:
    """Build the lines of a page, and the headings before each, from a walk over its elements."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, list[str]]] = []
        self.parts: list[str] = []  # of the current line
        self.before: list[Heading] = []
        self.are_too_many = False  # headings before the current line
        self.begun: Heading | None = None  # which has no text so far
        self.around: list[Heading] = []  # the open ones, as long as there is no link in them
        self.states = [(False, False, False)]  # of each open element, see `state_in`
        self.skipped = 0
        self.preformatted = 0

    def open(self, element: Any) -> None:
        """Begin an element."""
        name = element.tag
        self.skipped += name in HTML_SKIPPED
        self.states.append(state_in(name, *self.states[-1]))
        if name in LINES or (name == "br" and not self.around):
            self.end_line()
        elif name in ("td", "th", "br"):
            self.parts.append(" ")
        self.preformatted += name in PREFORMATTED
        if name == "a" and not (element.get("href") or "#").startswith("#"):
            for heading in self.around:
                heading.leads_elsewhere = True
            self.around.clear()
        if name in HEADINGS and not any(self.states[-1][1:]):
            self.begun = Heading(element, introduced_part(element))
            self.around.append(self.begun)
        if not self.skipped:
            self.parts.append(element.text or "")

    def close(self, element: Any) -> None:
        """End the element that was opened last, and add the text after it."""
        name = element.tag
        if name in LINES:
            self.end_line()
        self.preformatted -= name in PREFORMATTED
        self.skipped -= name in HTML_SKIPPED
        self.states.pop()
        if self.around and self.around[-1].element is element:
            self.around.pop()
        if self.begun is not None and self.begun.element is element:
            self.begun = None
        if self.before and any(heading.part is element for heading in self.before):
            self.end_line()
            self.before = [heading for heading in self.before if heading.part is not element]
        if not self.skipped:
            self.parts.append(element.tail or "")

    def end_line(self) -> None:
        """End the current line, if it has any text."""
        text = "".join(self.parts)
        self.parts.clear()
        for line in text.split("\n") if self.preformatted else [text]:
            if words := " ".join(line.split()):
                self.add(words)

    def add(self, line: str) -> None:
        """Add a line, which may be a heading of those after it."""
        if self.begun is None:
            self.lines.append((line, [] if self.are_too_many else kept_headings(self.before)))
            self.before, self.are_too_many = [], False
            return
        self.begun.text = line
        self.before.append(self.begun)
        self.begun = None
        if len(self.before) > MOST_BEFORE:
            self.before, self.are_too_many = [], True


def kept_headings(before: list[Heading]) -> list[str]:
    """Return the texts of headings after the last that leads to another page."""
    last = max((number for number, heading in enumerate(before, 1) if heading.leads_elsewhere), default=0)
    return [heading.text for heading in before[last:]]


def state_in(name: str, in_article: bool, is_outside: bool, in_form: bool) -> tuple[bool, bool, bool]:
    """Return whether an element is in an article, outside of the text, or in a form or header around or beside the
    article, from the same of the element around it.
    """
    if name in ARTICLES:
        return True, is_outside, False
    in_form = in_form or name == "form" or (name == "header" and not in_article)
    return in_article, is_outside or name in OUTSIDE, in_form


def introduced_part(heading: Any) -> Any:
    """Return the part of a page that a heading belongs to: what is around it, and around elements with nothing else."""
    element = heading
    for _ in range(DEPTH):
        around = element.getparent()
        if around is None or element.tag in ARTICLES:
            break
        texts = (around.text or "") + (element.tail or "")
        is_alone = element.getprevious() is None and element.getnext() is None and not texts.strip()
        element = around
        if not is_alone:
            break
    return element


def words_of(line: str) -> str:
    """Return a line's words alone: lists and tables are written with other signs by each reader."""
    return " ".join(WORD.findall(line))
