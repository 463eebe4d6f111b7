"""Keep what trafilatura drops of an article: headings and questions before its paragraphs, code and tables in figures.

In a page without an element `article` or `main`, trafilatura keeps the paragraphs alone; of buttons, labels and legends
it keeps none anywhere. Those of an article are told from those of menus by what follows them: a line of the article.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_prep.read.pages.markup import text_below

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
# Elements that introduce what follows them. Other buttons do something ("Share") and introduce nothing.
INTRODUCTIONS = ", ".join((*HEADINGS, "summary", "legend", "label", "button[aria-controls]", "button[aria-expanded]"))
BLOCKS = ("p", "div", "ul", "ol", "dl", "pre", "table", "blockquote", "section", *HEADINGS)
GROUPED_TEXT = {  # a figure is often a listing, table or quotation, a group of fields a part of the text
    "figure": ("pre", "table", "blockquote"),
    "fieldset": ("p",),
}
SENTENCES = ("p", "li", "dd", "td")
IN_SENTENCES = ("time", "label", "output")  # which trafilatura cuts out of the sentences around them
OUTSIDE = ("aside", "nav", "footer", "menu")
DEPTH = 64  # of the elements around a heading that are looked at: markup may nest without end
MOST_BEFORE = 3  # introductions of a line; more are a list of other pages
MARK = "\ufdd0"  # no character: no page has it
WORD = re.compile(r"\w+")


def unfolded(tree: Any) -> Any:
    """Return a page's lxml tree in which what trafilatura would drop is in elements that it keeps."""
    for details in list(tree.iter("details")):
        unfold(details)
    for group in list(tree.iter("figure", "fieldset")):
        if next(group.iter(*GROUPED_TEXT[group.tag]), None) is not None:
            group.tag = "div"
    for inline in list(tree.iter(*IN_SENTENCES)):
        parent = inline.getparent()
        if parent is not None and parent.tag in SENTENCES and (parent.text or inline.tail or "").strip():
            inline.drop_tag()
    return tree


def unfold(details: Any) -> None:
    """Make a folded part a heading and its text."""
    details.tag = "div"
    for below in list(details):
        if below.tag == "summary":
            for heading in list(below.iter(*HEADINGS)):
                heading.drop_tag()  # a heading in a heading takes the text after it away
            below.tag = "h3"
        elif below.tag == "div" and list(below.iter(*BLOCKS)) == [below]:
            below.tag = "p"


def with_headings(found: str, page: str) -> str:
    """Return an extracted article with the headings that are missing before lines of it."""
    lines = found.split("\n")
    on_page = list(introduced_lines(page))
    there, seen = Counter(map(words_of, lines)), Counter(words_of(line) for line, _ in on_page)
    missing: dict[str, list[list[str]]] = {}
    for line, before in on_page:
        missing.setdefault(words_of(line), []).append(before)
    result: list[str] = []
    for line in lines:
        words = words_of(line)
        if words and there[words] == seen[words]:  # else it is unknown which line of the page this one is
            result += without_kept(missing[words].pop(0), result)
        result.append(line)
    return "\n".join(result)


def without_kept(before: list[str], result: list[str]) -> list[str]:
    """Return the introductions of a line that are not among the lines just before it."""
    kept = {words_of(line) for line in result[-len(before) :]} if before else set()
    return [line for line in before if words_of(line) not in kept]


def introduced_lines(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of a page that introduce nothing, each with the introductions right before it."""
    from selectolax.lexbor import LexborHTMLParser

    parsed = LexborHTMLParser(page)
    for node in parsed.css(INTRODUCTIONS):
        if not leads_elsewhere(node):
            node.insert_before(MARK)
    before: list[str] = []
    is_introduction = False
    for line in text_below(parsed.body).split("\n"):
        is_introduction |= line.startswith(MARK)
        text = line.replace(MARK, "").strip()
        if not text:
            continue
        if is_introduction:
            before.append(text)
        else:
            yield text, before if len(before) <= MOST_BEFORE else []
            before = []
        is_introduction = line.endswith(MARK)


def leads_elsewhere(node: Any) -> bool:
    """Return whether a heading is a link to another page, or outside of the text."""
    if any(not (link.attributes.get("href") or "#").startswith("#") for link in node.css("a")):
        return True
    for _ in range(DEPTH):
        if node.parent is None:
            break
        node = node.parent
        if node.tag in OUTSIDE:
            return True
    return False


def words_of(line: str) -> str:
    """Return a line's words alone: lists and tables are written with other signs by each reader."""
    return " ".join(WORD.findall(line))
