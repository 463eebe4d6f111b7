"""Read the articles in a wiki dump (MediaWiki's export format), stripped of markup with mwparserfromhell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree import ElementTree

from data_prep.files.bounded_io import RecordError, require_whole

MARKUP_BYTES = 4 * 2**20  # of one article; Wikipedia's longest have 2 MiB and take seconds
FED_BYTES = 2**18
PAGE_BYTES = 256 * 2**20  # of one page's XML, all its revisions together
CUT_TAGS = {
    "table",
    "ref",
    "references",
    "gallery",
    "math",
    "timeline",
    "score",
    "imagemap",
    "templatestyles",
    "mapframe",
}
CUT_SPACES = {"6", "14"}  # images and categories, by namespace number
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*")  # [[de:Gans]]: the same article elsewhere


def read_dump(stream: BinaryIO) -> Iterator[str | RecordError]:
    """Yield the text of each article of a dump: pages of the main namespace that do not redirect.

    Only one page at a time is in memory. Raises RecordError where the file is damaged.
    """
    parser: Any = ElementTree.XMLPullParser(["start", "end"])
    stack: list[Any] = []
    spaces = {"file", "image", "category"}
    since_page = 0
    try:
        while data := stream.read(FED_BYTES):
            parser.feed(data)
            since_page += len(data)
            for page in pages(parser, stack, spaces):
                since_page = 0
                if is_article(page):
                    yield article_of(page, spaces)
            if since_page > PAGE_BYTES:
                raise RecordError(f"page of more than {PAGE_BYTES >> 20} MiB")
        require_whole(stream)
        parser.close()
    except ElementTree.ParseError:
        raise RecordError("damaged XML (ParseError)") from None


def pages(parser: Any, stack: list[Any], spaces: set[str]) -> Iterator[Any]:
    """Yield the pages that the parser has completed, then free them; of each page, keep only the last revision.

    The wiki's local names of the namespaces for images and categories are added to `spaces`.
    """
    for event, element in parser.read_events():
        if event == "start":
            stack.append(element)
            continue
        stack.pop()
        if local_name(element) == "page":
            yield element
            stack[-1].remove(element)
        elif local_name(element) == "namespace" and element.get("key") in CUT_SPACES and element.text:
            spaces.add(element.text.lower())
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


def article_of(page: Any, spaces: set[str]) -> str | RecordError:
    """Return an article's title and text, or why it has none."""
    revision = child(page, "revision")
    text = child(revision, "text") if revision is not None else None
    markup = (text.text or "") if text is not None else ""
    if len(markup) > MARKUP_BYTES:
        return RecordError(f"page of more than {MARKUP_BYTES >> 20} MiB")
    try:
        plain = plain_text(markup, spaces)
    except Exception as error:  # noqa: BLE001  # parsers raise anything on unknown markup; the page is counted
        return RecordError(f"damaged wikitext ({type(error).__name__})")
    if not plain:
        return RecordError("wiki page without text")
    title = child(page, "title")
    return f"{title.text}\n\n{plain}" if title is not None and title.text else plain


def plain_text(markup: str, spaces: set[str]) -> str:
    """Return wikitext as plain text, without templates, tables, notes, images and categories; headings are lines."""
    import mwparserfromhell

    text = "".join(words(mwparserfromhell.parse(markup), spaces))
    lines = (line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def words(code: Any, spaces: set[str]) -> Iterator[str]:
    """Yield the text of parsed wikitext in one walk: the library's own strip methods search for each node again."""
    for node in code.nodes if code is not None else ():
        kind = type(node).__name__
        if kind == "Text":
            yield str(node.value)
        elif kind == "HTMLEntity":
            yield str(node.normalize())
        elif kind == "Wikilink":
            yield from words_of_link(node, spaces)
        elif kind in ("ExternalLink", "Heading"):
            yield from words(node.title, spaces)
        elif kind == "Tag":
            yield from words_of_tag(node, spaces)


def words_of_link(link: Any, spaces: set[str]) -> Iterator[str]:
    space, colon, _ = str(link.title).strip().partition(":")
    is_elsewhere = bool(colon) and link.text is None and LANGUAGE.fullmatch(space.strip()) is not None
    if not is_elsewhere and not (colon and space.strip().replace("_", " ").lower() in spaces):
        yield from words(link.text, spaces) if link.text is not None else [str(link.title).strip().removeprefix(":")]


def words_of_tag(tag: Any, spaces: set[str]) -> Iterator[str]:
    name = str(tag.tag).strip().lower()
    if name == "br":
        yield "\n"
    elif name not in CUT_TAGS:
        yield from words(tag.contents, spaces)
