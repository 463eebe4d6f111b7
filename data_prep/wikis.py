"""The articles in a dump of a wiki (MediaWiki's export format), their markup taken off by mwparserfromhell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree import ElementTree

from data_prep.streams import ObjectionError, require_whole

MARKUP_BYTES = 4 * 2**20  # of one article; the longest of Wikipedia have 2 MiB, which take seconds
FED_BYTES = 2**18
PAGE_BYTES = 256 * 2**20  # of one page's XML, all its revisions together
CUT_TAGS = {"table", "ref", "gallery", "math", "timeline", "score", "imagemap", "templatestyles", "syntaxhighlight"}
NO_WORDS = re.compile(r"\[\[\s*(?:[a-z-]{2,12}|[\w ]*)\s*:", re.IGNORECASE)


def read_dump(stream: BinaryIO) -> Iterator[str | ObjectionError]:
    """Yield the text of each article of a dump: pages of the main namespace that do not redirect.

    One page at a time is in memory. Where the file is damaged, raises ObjectionError.
    """
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    stack: list[Any] = []
    since_page = 0
    try:
        while data := stream.read(FED_BYTES):
            parser.feed(data)
            since_page += len(data)
            for page in pages(parser, stack):
                since_page = 0
                if is_article(page):
                    yield article_of(page)
            if since_page > PAGE_BYTES:
                raise ObjectionError(f"page of more than {PAGE_BYTES >> 20} MiB")
        require_whole(stream)
        parser.close()
    except ElementTree.ParseError:
        raise ObjectionError("damaged XML (ParseError)") from None


def pages(parser: Any, stack: list[Any]) -> Iterator[Any]:
    """Yield the pages that the parser has read to their ends, and forget them and all revisions but the last."""
    for event, element in parser.read_events():
        if event == "start":
            stack.append(element)
            continue
        stack.pop()
        if local_name(element) == "page":
            yield element
            stack[-1].remove(element)
        elif local_name(element) == "revision":
            for earlier in [other for other in stack[-1] if local_name(other) == "revision"][:-1]:
                stack[-1].remove(earlier)


def local_name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def child(element: Any, name: str) -> Any:
    return next((inner for inner in element if local_name(inner) == name), None)


def is_article(page: Any) -> bool:
    namespace = child(page, "ns")
    return (namespace is None or namespace.text == "0") and child(page, "redirect") is None


def article_of(page: Any) -> str | ObjectionError:
    """Return an article's title and text, or why it has none."""
    revision = child(page, "revision")
    text = child(revision, "text") if revision is not None else None
    markup = (text.text or "") if text is not None else ""
    if len(markup) > MARKUP_BYTES:
        return ObjectionError(f"page of more than {MARKUP_BYTES >> 20} MiB")
    try:
        plain = plain_text(markup)
    except Exception as error:  # noqa: BLE001  # a parser of strangers' markup may raise anything; it is counted
        return ObjectionError(f"damaged wikitext ({type(error).__name__})")
    if not plain:
        return ObjectionError("wiki page without text")
    title = child(page, "title")
    return f"{title.text}\n\n{plain}" if title is not None and title.text else plain


def plain_text(markup: str) -> str:
    """Return wikitext as plain text: without templates, tables, notes, pictures and categories; headings are lines."""
    import mwparserfromhell

    code = mwparserfromhell.parse(markup, skip_style_tags=False)
    for node in code.filter(recursive=True, matches=is_cut):
        try:
            code.remove(node)
        except ValueError:
            continue  # it stood in one that was removed
    lines = (line.strip() for line in str(code.strip_code(normalize=True, collapse=True)).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def is_cut(node: Any) -> bool:
    """Tell whether a piece of markup has no words of the article."""
    kind = type(node).__name__
    if kind in ("Template", "Comment", "Argument"):
        return True
    if kind == "Tag":
        return str(node.tag).strip().lower() in CUT_TAGS
    return kind == "Wikilink" and NO_WORDS.match(f"[[{node.title}") is not None
