"""Electronic books: what of an EPUB, of version 2 or 3, is its text, and in which order."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from data_prep.files.bounded_io import RecordError
from data_prep.read.pages.markup import decoded_page, html_text

NOT_TEXT = ("image/", "audio/", "video/", "font/", "text/css", "application/pdf")  # a spine may list pictures
NAVIGATION = frozenset({"nav"})  # of a book: its contents, its pages of the print, its landmarks
# As HTML is read, these would hold all that follows; in XHTML `/>` ends them.
ENDED = re.compile(
    r"<(title|script|style|textarea|iframe|noframes|noembed|noscript|xmp|template|pre|nav|rt|rp)\b([^<>]*)/>", re.I
)
CHAPTER_BYTES = 16 * 2**20  # its tree takes 30 times as much memory
LACKING = "EPUB that lacks a chapter which it lists"


@dataclass(frozen=True)
class Item:
    """A file of the book, as its manifest tells."""

    path: str
    kind: str
    properties: str


def book_chapters(book: zipfile.ZipFile) -> Iterator[str]:
    """Yield the text of each chapter in reading order, auxiliary ones (`linear="no"`) last.

    Raises RecordError for a book that is encrypted or lacks a chapter which it lists.
    """
    package = package_path(book)
    spine = spine_of(ElementTree.fromstring(book.read(package)), posixpath.dirname(package))
    names = {name.casefold(): name for name in book.namelist()}  # Windows packs what it finds, in any case
    locked = encrypted_paths(book)
    for item in spine:
        name = names.get(item.path.casefold())
        if name is None:
            raise RecordError(LACKING)
        if name in locked:
            raise RecordError("encrypted EPUB")
        if book.getinfo(name).file_size > CHAPTER_BYTES:
            raise RecordError(f"EPUB with a chapter of more than {CHAPTER_BYTES >> 20} MiB")
        page = decoded_page(book.read(name))
        yield html_text(ENDED.sub(r"<\1\2></\1>", page), NAVIGATION)


def package_path(book: zipfile.ZipFile) -> str:
    container = ElementTree.fromstring(book.read("META-INF/container.xml"))
    return next(element.attrib["full-path"] for element in named(container, "rootfile"))


def spine_of(package: Element, folder: str) -> list[Item]:
    """Return the pages of a package in reading order, without its table of contents."""

    def path_of(href: str) -> str:
        return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(href).path)))

    items = {
        item.attrib["id"]: Item(path_of(item.attrib["href"]), item.get("media-type", ""), item.get("properties", ""))
        for item in named(package, "item")
    }
    references = sorted(named(package, "itemref"), key=lambda reference: reference.get("linear") == "no")
    if any(reference.attrib["idref"] not in items for reference in references):
        raise RecordError(LACKING)
    listed = dict.fromkeys(items[reference.attrib["idref"]] for reference in references)
    pages = [item for item in listed if not item.kind.startswith(NOT_TEXT)]
    contents = {
        path_of(place.attrib["href"])
        for place in named(package, "reference")  # version 2's guide; with a fragment, a part of a page that has more
        if place.get("type") == "toc" and "#" not in place.attrib["href"]
    }
    return [item for item in pages if "nav" not in item.properties.split() and item.path not in contents] or pages


def encrypted_paths(book: zipfile.ZipFile) -> frozenset[str]:
    """Return what the book's own list of encrypted files names; most lists name fonts alone."""
    if "META-INF/encryption.xml" not in book.namelist():
        return frozenset()
    listed = ElementTree.fromstring(book.read("META-INF/encryption.xml"))
    return frozenset(unquote(element.attrib["URI"]) for element in named(listed, "CipherReference"))


def named(tree: Element, name: str) -> Iterator[Element]:
    """Yield the elements of a name in any namespace: books of version 2 were made with several, or none."""
    return tree.iterfind(f".//{{*}}{name}")
